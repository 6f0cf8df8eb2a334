"""``kvcalc compare MODEL...``: setups side by side, as figure 5 of the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvcalc.cli import options, pictures, question
from kvcalc.report.cells import UNIT_TABLES
from kvcalc.report.document import Column, Document, Section, Units
from kvcalc.units import format_bytes

if TYPE_CHECKING:
    from kvcalc.fitting import Memory
    from kvcalc.footprints import Footprint
    from kvcalc.setup import Setup

EXAMPLES = (
    "kvcalc compare gemma-2-2b@global gemma-2-2b@1:1/sw=4096 gemma-2-2b@5:1/sw=1024 -c 32k\n"
    "kvcalc compare gemma-3-27b --engine ideal,llama.cpp,vllm,sglang -c 32k\n"
    "kvcalc compare gemma-3-27b llama-3.1-8b --engine vllm --device h100-80gb -c 32k\n"
    "kvcalc compare llama-3.1-8b --weights-dtype bf16,q8_0,q4_k --kv-cache-dtype f16,q8_0 -c 128k\n"
    "kvcalc compare gemma-3-27b gemma-3-27b@global -c 128k -o report.html"
)


def compare(
    models: options.Models,
    context: options.Context = options.OWN_CONTEXT,
    batch_size: options.BatchSizes = (1,),
    *,
    tensor_parallel_size: options.TensorParallelSizes = (1,),
    engine: options.EngineNames = ("ideal",),
    served: options.Served,
    room: options.Room,
    shown: options.Shown,
) -> int:
    from kvcalc.footprints import footprint_of

    target = question.target(shown.format, shown.output, shown.plot)
    memory = question.memory_of(room)
    where = None if memory is None else memory.device
    asked = question.setups(models, served, engine, tensor_parallel_size, where)
    (tokens,) = question.resolved([context], asked)
    footprints = [footprint_of(setup, tokens, batch) for setup in asked for batch in batch_size]
    labels = _labels(asked, batch_size)
    one_model = len({setup.reference for setup in asked}) == 1
    title = f"Weights and KV cache of {question.titled(asked[0])}" if one_model else "Weights and KV cache side by side"
    fixed = question.assumptions(asked, tokens, batch_size[0] if len(batch_size) == 1 else None)
    document = Document(
        title=title,
        assumptions=(*fixed, *([] if memory is None else [f"on {memory.label}"])),
        sections=(_section(labels, footprints, memory, shown.units),),
        records=[made.to_dict() for made in footprints],
        schema="compare",
        notes=tuple(question.notes((made.setup.reference, made) for made in footprints)),
        derivations=question.derivations(footprints, labels) if shown.explain else (),
        units=shown.units,
        charts=(pictures.bars(title, labels, footprints),),
        strips=pictures.strips(asked),
        live=pictures.live(question.labels(asked), asked, tokens, batch_size[0])
        if target.format_name == "html"
        else None,
    )
    target.write(document)
    return 0


def _labels(asked: Sequence[Setup], batch_sizes: Sequence[int]) -> list[str]:
    """What names each row: the setup, and the batch size where there are several."""
    named = question.labels(asked)
    if len(batch_sizes) == 1:
        return named
    sizes = [f"batch size {batch:,}" for batch in batch_sizes]
    return sizes if len(asked) == 1 else [f"{label}, {size}" for label in named for size in sizes]


def _section(labels: Sequence[str], footprints: Sequence[Footprint], memory: Memory | None, units: Units) -> Section:
    rows = list(zip(labels, footprints, strict=True))
    base = footprints[0].kv_cache.bytes
    columns = [
        Column("configuration", lambda row: row[0]),
        Column("layers", lambda row: row[1].architecture.layout, drop_order=2),
        Column("weights", lambda row: row[1].weights.bytes, "bytes"),
        Column("KV cache", lambda row: row[1].kv_cache.bytes, "bytes"),
        Column("KV vs first", lambda row: row[1].kv_cache.bytes / base if base else None, "ratio"),
        Column("total", lambda row: row[1].total_bytes, "bytes"),
        Column("KV over weights", lambda row: row[1].overhead, "percent", drop_order=1),
    ]
    if memory is not None:
        columns.append(Column("fits", lambda row: _verdict(row[1], memory, units), "verdict"))
    columns.append(
        Column(
            "memory",
            lambda row: (row[1].weights.bytes, row[1].kv_cache.bytes),
            "bars",
            drop_order=3,
            legend=("weights", "KV cache"),
        )
    )
    if len({made.engine.name for made in footprints}) > 1:
        columns.append(Column("why", lambda row: row[1].kv_cache.why, "remark"))
    return Section(tuple(columns), rows)


def _verdict(footprint: Footprint, memory: Memory, units: Units) -> str:
    """Whether a footprint fits the memory, and by how much."""
    from kvcalc.fitting import capacity_of

    answer = capacity_of(footprint.setup, memory, footprint.context, footprint.batch_size)
    if answer.required_kv_memory is None:
        return "does not fit"
    left = answer.kv_memory - answer.required_kv_memory
    size = format_bytes(abs(left), UNIT_TABLES[units], 2)
    before = " before working memory" if answer.pool.not_modelled else ""
    return f"fits, {size} left{before}" if answer.fits else f"does not fit, {size} short{before}"
