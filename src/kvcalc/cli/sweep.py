"""``kvcalc sweep MODEL...``: the KV cache over the context, as figure 6 of the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvcalc.cli import options

if TYPE_CHECKING:
    from kvcalc.growth import Growth
    from kvcalc.report.shapes import FootprintRecord

EXAMPLES = (
    "kvcalc sweep gemma-2-2b@global gemma-2-2b@5:1/sw=1024\n"
    "kvcalc sweep gemma-2-2b@global gemma-2-2b@5:1/sw=1024 --log --plot growth.svg\n"
    "kvcalc sweep gemma-3-27b --engine ideal,vllm -c 8k,32k,128k --format csv"
)


_MOST_ROWS = 10_000


def sweep(
    models: options.Models,
    context: options.Contexts = "1k,4k,8k,16k,32k,64k,128k",
    batch_size: options.BatchSize = "1",
    kv_cache_dtype: options.KVCacheDtypes = None,
    weights_dtype: options.WeightsDtype = None,
    tensor_parallel_size: options.TensorParallelSize = "1",
    engine: options.EngineNames = "ideal",
    engine_option: options.EngineOptions = None,
    encoder_tokens: options.EncoderTokens = "0",
    draft: options.Draft = None,
    growth: Annotated[bool, typer.Option("--growth", help="Add what one more token costs, and when.")] = False,
    format: options.Format = "table",  # noqa: A002 - the option's name
    output: options.Output = None,
    plot: options.Plot = None,
    log: Annotated[bool, typer.Option("--log", help="Logarithmic axes in charts.")] = False,
    explain: options.Explain = False,
    units: options.UnitsOption = "binary",
) -> int:
    """Sweep the context: a row a context, a column a configuration."""
    from kvcalc.cli import pictures, question
    from kvcalc.cli.compare import configuration_labels
    from kvcalc.errors import InputError
    from kvcalc.report.document import Document
    from kvcalc.report.records import footprint_record
    from kvcalc.units import parse_count, parse_counts

    question.check_plot(plot)
    contexts, sequences = parse_counts(context, "--context"), parse_count(batch_size, "--batch-size")
    shown = question.for_people(format)
    if (shown or plot is not None) and len(contexts) > _MOST_ROWS:
        raise InputError(
            f"{len(contexts):,} contexts are more than the {_MOST_ROWS:,} that a table or a chart can show",
            hint="--format csv and json stream any number",
        )
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
    question.warn_beyond_maximum(asked, contexts)
    labels = configuration_labels(asked)
    rules = _rules(asked, sequences) if growth else []

    def records() -> Iterator[FootprintRecord]:
        for tokens in contexts:
            for each in asked:
                yield footprint_record(each.reference, each.footprint(tokens, sequences))

    rows = _rows(asked, contexts, sequences) if shown or plot is not None else []
    document = Document(
        title="KV cache over the context",
        assumptions=question.assumptions(asked, None, sequences),
        sections=tuple(_sections(labels, rows, rules)) if shown else (),
        records=records(),
        schema="sweep",
        extra={"growth": [_growth_record(each, rule) for each, rule in zip(asked, rules, strict=True)]}
        if growth
        else {},
        notes=tuple(dict.fromkeys(note for each in asked for note in each.footprint(contexts[-1], sequences).notes)),
        derivations=tuple(
            question.derivation(each, f"{label} at {contexts[-1]:,} tokens, step by step", contexts[-1], sequences)
            for each, label in zip(asked, labels, strict=True)
        )
        if explain
        else (),
        units=question.parse_units(units),
        charts=(pictures.curves("KV cache over the context", labels, rows, log),) if rows else (),
        strips=pictures.strips(asked),
        grid=pictures.grid_of(labels, asked, contexts[-1], sequences) if format == "html" else None,
    )
    question.answer(document, format, output, plot)
    return 0


def _rows(asked: Sequence[Any], contexts: Sequence[int], batch_size: int) -> list[tuple[int, list[int]]]:
    return [(tokens, [each.setup.plan.kv_bytes(tokens, batch_size) for each in asked]) for tokens in contexts]


def _sections(
    labels: Sequence[str], rows: Sequence[tuple[int, Sequence[int]]], rules: Sequence[Growth]
) -> Iterator[Any]:
    from kvcalc.report.document import Column, Section, growth_columns

    yield Section((Column("context", lambda row: row[0], "count"), *growth_columns(labels, rows)), rows)
    if not rules:
        return
    columns = (
        Column("configuration", lambda row: row[0]),
        Column("bytes a token, below the window", lambda row: _rate(row[1].early_bytes_per_token)),
        Column("beyond it", lambda row: _rate(row[1].late_bytes_per_token)),
        Column("windows full from", lambda row: _reached(row[1].saturation_context, row[1].has_windows)),
        Column("KV over weights from", lambda row: _reached(row[1].overtakes_weights_context)),
        Column("local under 1 % from", lambda row: _reached(row[1].small_share_context, row[1].has_windows)),
    )
    yield Section(columns, list(zip(labels, rules, strict=True)), "Rules of growth (contexts in tokens)")


def _rules(asked: Sequence[Any], batch_size: int) -> list[Growth]:
    from kvcalc.growth import growth

    return [growth(each.setup, batch_size) for each in asked]


def _rate(rate: Any) -> str:
    if rate is None:
        return "no window"
    # An engine's blocks may not divide the span: the mean rate is then a fraction of a byte.
    return f"{rate.numerator:,}" if rate.denominator == 1 else f"{float(rate):,.1f}"


def _reached(context: int | None, applies: bool = True) -> str:
    if not applies:
        return "no window"
    return "never" if context is None else f"{context:,}"


def _growth_record(each: Any, rule: Growth) -> dict[str, Any]:
    """One configuration's rules; rates that are whole bytes are integers, a context that is never reached is null."""

    def rate(value: Any) -> int | float | None:
        return None if value is None else int(value) if value.denominator == 1 else float(value)

    return {
        "reference": each.reference,
        "engine": each.setup.engine.name,
        "early_bytes_per_token": rate(rule.early_bytes_per_token),
        "late_bytes_per_token": rate(rule.late_bytes_per_token),
        "saturation_context": rule.saturation_context,
        "overtakes_weights_context": rule.overtakes_weights_context,
        "small_share_context": rule.small_share_context,
    }
