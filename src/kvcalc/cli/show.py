"""``kvcalc show MODEL``: one model, its weights, its KV cache by layer kind, the total."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvcalc.cli import options, pictures, question
from kvcalc.report.cells import UNIT_TABLES
from kvcalc.report.document import Column, Document, Section, Units
from kvcalc.units import format_bytes

if TYPE_CHECKING:
    from kvcalc.fitting import Pool
    from kvcalc.footprints import Footprint

EXAMPLES = (
    "kvcalc show gemma-3-27b -c 128k\n"
    "kvcalc show google/gemma-3-27b-it --engine vllm -b 4 --tp 2\n"
    "kvcalc show gemma-3-27b@global -c 32k --explain\n"
    "kvcalc show llama-3.1-8b -c 8k --kv-cache-dtype fp8 -o llama.json"
)


def show(
    model: options.Model,
    context: options.Context = options.OWN_CONTEXT,
    batch_size: options.BatchSize = 1,
    *,
    tensor_parallel_size: options.TensorParallelSize = 1,
    engine: options.EngineName = "ideal",
    served: options.Served,
    room: options.Room,
    shown: options.Shown,
) -> int:
    from kvcalc.footprints import footprint_of

    target = question.target(shown.format, shown.output, shown.plot)
    memory = question.memory_of(room)
    where = None if memory is None else memory.device
    (setup,) = asked = question.setups([model], served.of_one(), engine, tensor_parallel_size, where)
    (tokens,) = question.resolved([context], asked)
    footprint = footprint_of(setup, tokens, batch_size)
    pool = None if memory is None else memory.pool(setup, tokens, batch_size)
    steps = question.derivation(footprint, "KV cache, step by step"), question.weights_derivation(setup)
    document = Document(
        title=_verdict(footprint, shown.units),
        assumptions=(footprint.architecture.layout, *question.assumptions(asked, tokens, batch_size)),
        sections=(_section(footprint, pool, shown.units),),
        records=[footprint.to_dict()],
        schema="show",
        extra={"pool": None if pool is None else pool.to_dict()},
        notes=(*footprint.notes, *([f"{pool.not_modelled}: {pool.advice}"] if pool and pool.not_modelled else [])),
        derivations=steps if shown.explain else (),
        units=shown.units,
        charts=(pictures.parts(f"{question.titled(setup)} at {tokens:,} tokens", footprint),),
        strips=pictures.strips(asked),
        live=pictures.live([setup.reference], asked, tokens, batch_size) if target.format_name == "html" else None,
    )
    target.write(document)
    return 0


def _verdict(footprint: Footprint, units: Units) -> str:
    """The answer in a line."""
    sizes = (footprint.total_bytes, footprint.weights.bytes, footprint.kv_cache.bytes)
    total, weights, cache = (format_bytes(size, UNIT_TABLES[units], 2) for size in sizes)
    each = " on each device" if footprint.devices > 1 else ""
    return f"{question.titled(footprint.setup)}: {total}{each} = {weights} weights + {cache} KV cache"


def _section(footprint: Footprint, pool: Pool | None, units: Units) -> Section:
    weights, cache = footprint.weights, footprint.kv_cache
    estimated = "" if weights.exact else " (bytes estimated)" if weights.exact_parameters else " (estimated)"
    rows: list[dict[str, str | int | float | None]] = [
        {"part": f"KV: {row.label}", "layers": row.count, "tokens": row.tokens or None, "bytes": row.bytes}
        for row in cache.layers
    ]
    if cache.padding_bytes:
        rows.append({"part": "KV: padding", "bytes": cache.padding_bytes})
    if cache.draft_bytes:
        rows.append({"part": "KV: draft", "bytes": cache.draft_bytes})
    totals = {len(rows), len(rows) + 1}
    rows.append({"part": "KV cache", "bytes": cache.bytes, "share": footprint.overhead})
    rows.append({"part": f"weights: {weights.parameters:,} parameters{estimated}", "bytes": weights.bytes})
    if weights.active_parameters != weights.parameters:
        rows.append({"part": f"  of them active: {weights.active_parameters:,} parameters"})
    totals.add(len(rows))
    rows.append({"part": "total", "bytes": footprint.total_bytes})
    if cache.steady_bytes != cache.bytes:
        rows.append({"part": "KV while decoding", "bytes": cache.steady_bytes})
    if cache.ideal_bytes != cache.bytes:
        rows.append({"part": "KV by the report's accounting", "bytes": cache.ideal_bytes})
    if pool is not None:
        totals |= {len(rows) + len(device := _device_rows(footprint, pool)) - 1}
        rows += device
    exactly = Column("exactly", lambda row: row.get("bytes"), "exact_bytes", drop_order=1)
    columns = (
        Column("part", lambda row: row["part"]),
        Column("layers", lambda row: row.get("layers"), "count"),
        Column("tokens x batch", lambda row: row.get("tokens"), "count", drop_order=2),
        Column("memory", lambda row: row.get("bytes"), "bytes"),
        *([exactly] if units != "bytes" else []),
        Column("KV over weights", lambda row: row.get("share"), "percent"),
    )
    return Section(columns, rows, totals=frozenset(totals))


def _device_rows(footprint: Footprint, pool: Pool) -> list[dict[str, str | int | float | None]]:
    """What the engine takes of a device besides, and what is left of its share."""
    assert pool.usable_bytes is not None
    rows: list[dict[str, str | int | float | None]] = []
    if pool.loading_bytes:
        rows.append({"part": "weights: added by loading", "bytes": pool.loading_bytes})
    rows += [{"part": term.words, "bytes": term.size} for term in pool.terms]
    if pool.reserve_bytes:
        rows.append({"part": "reserve", "bytes": pool.reserve_bytes})
    # The engine's own need, as in ``fit``: vLLM keeps a block back, SGLang a page.
    left = pool.kv_memory - footprint.setup.plan.required_kv_memory(footprint.context, footprint.batch_size)
    return [*rows, {"part": f"left of {format_bytes(pool.usable_bytes, digits=2)} of the device", "bytes": left}]
