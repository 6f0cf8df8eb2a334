"""``kvcalc show MODEL``: one model, its weights, its KV cache by layer kind, the total and the overhead."""

from __future__ import annotations

from typing import Any

from kvcalc.cli import options

EXAMPLES = (
    "kvcalc show gemma-3-27b -c 128k\n"
    "kvcalc show gemma-3-27b@global -c 32k -b 4 --explain\n"
    "kvcalc show llama-3.1-8b -c 8k --kv-cache-dtype fp8 --format json"
)


def show(
    model: options.Model,
    context: options.ContextTokens,
    batch_size: options.BatchSize = "1",
    kv_cache_dtype: options.KVCacheDtype = None,
    weights_dtype: options.WeightsDtype = None,
    tensor_parallel_size: options.TensorParallelSize = "1",
    engine: options.EngineName = "ideal",
    engine_option: options.EngineOptions = None,
    encoder_tokens: options.EncoderTokens = "0",
    draft: options.Draft = None,
    format: options.Format = "table",  # noqa: A002 - the option's name
    output: options.Output = None,
    explain: options.Explain = False,
    units: options.UnitsOption = "binary",
) -> int:
    """Show what one model takes: its weights, its KV cache by layer kind, the total and the overhead."""
    from kvcalc.cli import pictures, question
    from kvcalc.errors import InputError
    from kvcalc.report.document import Document
    from kvcalc.report.records import footprint_record
    from kvcalc.units import parse_count

    tokens, sequences = parse_count(context, "--context"), parse_count(batch_size, "--batch-size")
    asked = question.ask(
        [model],
        engine=engine,
        engine_options=engine_option,
        kv_cache_dtype=kv_cache_dtype,
        weights_dtype=weights_dtype,
        tensor_parallel_size=tensor_parallel_size,
        encoder_tokens=encoder_tokens,
        draft=draft,
    )
    if len(asked) > 1:
        raise InputError("show answers for one engine and one KV format", hint="kvcalc compare takes several")
    one = asked[0]
    footprint = one.footprint(tokens, sequences)
    question.warn_beyond_maximum(asked, [tokens])
    document = Document(
        title=f"{one.reference}: {footprint.architecture.layout}",
        assumptions=question.assumptions(asked, tokens, sequences),
        sections=(_section(footprint),),
        records=[footprint_record(one.reference, footprint)],
        schema="show",
        notes=footprint.notes,
        derivations=(
            question.derivation(one, "KV cache, step by step", tokens, sequences),
            question.weights_derivation(one),
        )
        if explain
        else (),
        units=question.parse_units(units),
        strips=pictures.strips(asked),
        grid=pictures.grid_of([one.reference], asked, tokens, sequences) if format == "html" else None,
    )
    question.answer(document, format, output)
    return 0


def _section(footprint: Any) -> Any:
    from kvcalc.report.document import Column, Section

    weights, cache = footprint.weights, footprint.kv_cache
    estimated = "" if weights.exact else " (estimated)"
    rows: list[dict[str, Any]] = [
        {"part": f"KV: {row.label}", "layers": row.count, "tokens": row.tokens or None, "bytes": row.bytes}
        for row in cache.layers
    ]
    if cache.padding_bytes:
        rows.append({"part": "KV: padding", "bytes": cache.padding_bytes})
    totals = {len(rows), len(rows) + 1}
    count = f"{weights.parameters:,} parameters"
    rows.append({"part": "KV cache", "bytes": cache.bytes, "share": footprint.overhead, "of": "of the weights"})
    rows.append({"part": f"weights: {count}{estimated}", "bytes": weights.bytes})
    if weights.active_parameters != weights.parameters:
        rows.append({"part": f"  of them active: {weights.active_parameters:,} parameters"})
    totals.add(len(rows))
    rows.append({"part": "total", "bytes": footprint.total_bytes})
    if cache.steady_bytes != cache.bytes:
        rows.append({"part": "KV while decoding", "bytes": cache.steady_bytes})
    if cache.ideal_bytes != cache.bytes:
        rows.append({"part": "KV by the report's accounting", "bytes": cache.ideal_bytes})
    columns = (
        Column("part", lambda row: row["part"]),
        Column("layers", lambda row: row.get("layers"), "count"),
        Column("token slots", lambda row: row.get("tokens"), "count", drop_order=2),
        Column("memory", lambda row: row.get("bytes"), "bytes"),
        Column("exactly", lambda row: row.get("bytes"), "exact_bytes", drop_order=1),
        Column("overhead", lambda row: row.get("share"), "percent"),
    )
    return Section(columns, rows, totals=frozenset(totals))
