"""``kvcalc compare MODEL...``: configurations side by side, as figure 5 of the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvcalc.cli import options

EXAMPLES = (
    "kvcalc compare gemma-2-2b@global gemma-2-2b@1:1/sw=4096 gemma-2-2b@5:1/sw=1024 -c 32k\n"
    "kvcalc compare gemma-3-27b --engine ideal,llama.cpp,vllm,sglang -c 32k\n"
    "kvcalc compare gemma-3-27b gemma-3-27b@global -c 128k --format html -o report.html\n"
    "kvcalc compare llama-3.1-8b --kv-cache-dtype bf16,fp8 -c 128k"
)


def compare(
    models: options.Models,
    context: options.ContextTokens,
    batch_size: options.BatchSize = "1",
    kv_cache_dtype: options.KVCacheDtypes = None,
    weights_dtype: options.WeightsDtype = None,
    tensor_parallel_size: options.TensorParallelSize = "1",
    engine: options.EngineNames = "ideal",
    engine_option: options.EngineOptions = None,
    encoder_tokens: options.EncoderTokens = "0",
    draft: options.Draft = None,
    format: options.Format = "table",  # noqa: A002 - the option's name
    output: options.Output = None,
    plot: options.Plot = None,
    explain: options.Explain = False,
    units: options.UnitsOption = "binary",
) -> int:
    """Compare configurations side by side: layouts, models, engines or KV formats."""
    from kvcalc.cli import pictures, question
    from kvcalc.report.document import Document
    from kvcalc.report.records import footprint_record
    from kvcalc.units import parse_count

    question.check_plot(plot)
    tokens, sequences = parse_count(context, "--context"), parse_count(batch_size, "--batch-size")
    asked = question.ask(
        models,
        engine=engine,
        engine_options=engine_option,
        kv_cache_dtype=kv_cache_dtype,
        weights_dtype=weights_dtype,
        tensor_parallel_size=tensor_parallel_size,
        encoder_tokens=encoder_tokens,
        draft=draft,
    )
    footprints = [each.footprint(tokens, sequences) for each in asked]
    question.warn_beyond_maximum(asked, [tokens])
    labels = configuration_labels(asked)
    one_model = len({each.reference for each in asked}) == 1
    title = f"Weights and KV cache of {asked[0].reference}" if one_model else "Weights and KV cache side by side"
    document = Document(
        title=title,
        assumptions=question.assumptions(asked, tokens, sequences),
        sections=(_section(labels, footprints),),
        records=[footprint_record(each.reference, made) for each, made in zip(asked, footprints, strict=True)],
        schema="compare",
        notes=tuple(dict.fromkeys(note for made in footprints for note in made.notes)),
        derivations=tuple(
            question.derivation(each, f"KV cache of {label}, step by step", tokens, sequences)
            for each, label in zip(asked, labels, strict=True)
        )
        if explain
        else (),
        units=question.parse_units(units),
        charts=(pictures.bars(title, labels, footprints),),
        strips=pictures.strips(asked),
        grid=pictures.grid_of(labels, asked, tokens, sequences) if format == "html" else None,
    )
    question.answer(document, format, output, plot)
    return 0


def configuration_labels(asked: Sequence[Any]) -> list[str]:
    """The reference of each row, with its engine and KV format where they differ between rows."""
    from kvcalc.cli import question

    parts: list[list[str]] = [[each.reference] for each in asked]
    for describe in (lambda each: question.engine_label(each.setup), question.kv_format):
        described = [describe(each) for each in asked]
        if len(set(described)) > 1:
            for part, word in zip(parts, described, strict=True):
                part.append(word)
    if len({part[0] for part in parts}) == 1 and len(parts[0]) > 1:
        parts = [part[1:] for part in parts]  # one model throughout: the title's line would say it again
    return [", ".join(part) for part in parts]


def _section(labels: Sequence[str], footprints: Sequence[Any]) -> Any:
    from kvcalc.report.document import Column, Section

    rows = list(zip(labels, footprints, strict=True))
    base = footprints[0].kv_cache.bytes
    several_engines = len({made.engine.name for made in footprints}) > 1
    why = Column("why", lambda row: row[1].kv_cache.why, "remark")
    columns = [
        Column("configuration", lambda row: row[0]),
        Column("layers", lambda row: row[1].architecture.layout, drop_order=2),
        Column("weights", lambda row: row[1].weights.bytes, "bytes"),
        Column("KV cache", lambda row: row[1].kv_cache.bytes, "bytes"),
        Column("total", lambda row: row[1].total_bytes, "bytes"),
        Column("overhead", lambda row: row[1].overhead, "percent"),
        Column("against first", lambda row: row[1].kv_cache.bytes / base - 1 if base else None, "percent"),
        *([why] if several_engines else []),
        Column(
            "memory",
            lambda row: (row[1].weights.bytes, row[1].kv_cache.bytes),
            "bars",
            drop_order=3,
            legend=("weights", "KV cache"),
        ),
    ]
    return Section(tuple(columns), rows)
