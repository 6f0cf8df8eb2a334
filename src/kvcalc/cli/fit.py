"""``kvcalc fit MODEL``: what fits into a memory, and what would make it fit.

JSON: the row is the footprint at the stated context (without one: the longest that fits, at most the model's own);
beside the rows stand

- ``pool``: ``device_memory``, ``utilization`` (a decimal as text), ``usable_bytes``, ``weights_bytes``,
  ``activation_bytes``, ``runtime_bytes``, ``graph_bytes``, ``band_bytes``, ``reserve_bytes``, ``kv_memory``,
  ``not_modelled``; all but ``kv_memory`` are null with ``--kv-memory``;
- ``capacity``: ``fits``, ``context``, ``batch_size``, ``max_context``, ``max_batch_size``, ``required_kv_memory``,
  ``missing_bytes``, ``engine_report``, ``reported_context``, ``refusal``;
- ``frontier``: ``context``, ``batch_size``, ``required_kv_memory`` of the largest batch at round contexts and the
  longest context at round batch sizes;
- ``levers``: ``lever``, ``flags``, ``consequence``, ``required_kv_memory``, ``kv_memory``;
- ``splits``: ``tensor_parallel_size``, ``devices``, ``kv_memory``, ``sequences_per_replica``,
  ``replicas``, ``sequences``, ``devices_needed``, ``refusal``; only with several devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Annotated

import typer

from kvcalc.cli import options, question
from kvcalc.device import Device
from kvcalc.engines.base import WorkingMemory
from kvcalc.errors import InputError
from kvcalc.fitting import (
    Capacity,
    Memory,
    Point,
    Replica,
    best_replica,
    capacity_of,
    find_device,
    fits,
    frontier,
    group_sizes,
    options_on,
    replicas,
    required_memory,
    serves,
)
from kvcalc.footprints import footprint_of
from kvcalc.levers import Lever, levers
from kvcalc.report.document import Column, Document, Section
from kvcalc.report.records import footprint_record
from kvcalc.report.shapes import CapacityRecord, LeverRecord, PoolRecord, SplitRecord
from kvcalc.setup import Setup
from kvcalc.sources.devices import load_device, parse_devices
from kvcalc.sources.resolve import split_variant
from kvcalc.units import exact_bytes, parse_count

EXAMPLES = (
    "kvcalc fit gemma-3-27b --device h100-80gb --engine vllm -c 128k\n"
    "kvcalc fit llama-3.1-8b --memory 24GiB --reserve 2GiB -c 32k -b 4\n"
    "kvcalc fit gemma-3-27b --devices 8xh100-80gb --engine vllm -c 32k --sequences 50"
)

Wanted = Annotated[
    int | None,
    typer.Option(
        metavar="COUNT",
        help="How many devices serve so many sequences?",
        parser=options.reads(lambda text: parse_count(text, "--sequences")),
    ),
]


def fit(
    model: options.Model,
    context: options.OptionalContext = None,
    batch_size: options.OptionalBatchSize = None,
    memory: options.Memory = None,
    device: options.Device = None,
    devices: options.Devices = None,
    kv_memory: options.KVMemory = None,
    reserve: options.Reserve = 0,
    gpu_memory_utilization: options.GpuMemoryUtilization = None,
    sequences: Wanted = None,
    kv_cache_dtype: options.KVCacheDtype = None,
    weights_dtype: options.WeightsDtype = None,
    tensor_parallel_size: options.OptionalTensorParallelSize = None,
    engine: options.EngineName = "ideal",
    engine_option: options.EngineOptions = None,
    encoder_tokens: options.EncoderTokens = 0,
    draft: options.Draft = None,
    format: options.Format = None,  # noqa: A002 - the option's name
    output: options.Output = None,
    explain: options.Explain = False,
    units: options.UnitsOption = "binary",
) -> int:
    """Whether it fits, and what would make it fit."""
    target = question.target(format, output)
    place = _place(memory, device, devices, kv_memory, reserve, gpu_memory_utilization)
    asked = question.setups(
        [model],
        engines=[engine],
        engine_options=engine_option,
        kv_cache_dtypes=kv_cache_dtype and [kv_cache_dtype],
        weights_dtypes=weights_dtype and [weights_dtype],
        tensor_parallel_sizes=[tensor_parallel_size or 1],
        encoder_tokens=encoder_tokens,
        draft=draft,
        device=place.device,
    )
    (setup,) = asked
    tokens = None if context is None else question.resolved([context], asked)[0]
    compared: list[Replica] = []
    if place.count is not None or sequences is not None:
        if tokens is None:
            raise InputError("how many sequences devices serve depends on their context", hint="say it: -c 32k")
        sizes = group_sizes(place.count) if tensor_parallel_size is None else [tensor_parallel_size]
        compared = replicas(setup, place.memory, tokens, sizes)
    total = sequences or batch_size
    if compared:
        best = best_replica(compared, place.count, total or 1)
        setup = replace(setup, tensor_parallel_size=best.tensor_parallel_size)
    answer = capacity_of(setup, place.memory, tokens, (batch_size or 1) if not compared else 1)
    shown = footprint_of(setup, answer.reported_context, answer.batch_size)
    closing = [] if answer.fits else _closing(setup, place.memory, split_variant(model)[0], tokens or 1, answer)
    points = frontier(setup, place.memory)
    sections = [
        _pool_section(answer, place),
        _answer_section(setup, answer, bool(compared)),
        *([_splits_section(compared, place.count, total)] if compared else []),
        *([_levers_section(closing, tokens or 1, answer.batch_size)] if closing else []),
        *([_report_section(answer)] if answer.engine_report else []),
        *_frontier_sections(points),
    ]
    document = Document(
        title=f"What fits: {question.titled(setup)} ({setup.served.layout}) in {place.label}",
        assumptions=question.assumptions([setup], tokens, answer.batch_size),
        sections=tuple(sections),
        records=[footprint_record(model, shown)],
        schema="fit",
        extra={
            "pool": _pool_record(answer),
            "capacity": _capacity_record(answer),
            "frontier": [vars(point) for line in points for point in line],
            "levers": [_lever_record(lever, made) for lever, made in closing],
            "splits": [_split_record(split, place.count, total) for split in compared],
        },
        notes=(
            *_pool_notes(answer),
            *_about(place.device, setup, engine_option or ()),
            *([] if answer.refusal is None else [f"{setup.engine.name} refuses to start: {answer.refusal.message}"]),
            *([] if closing or answer.fits else ["no single lever closes the gap: combine several, or more memory"]),
            *shown.notes,
        ),
        derivations=(
            (question.derivation(setup, "KV cache, step by step", answer.reported_context, answer.batch_size),)
            if explain
            else ()
        ),
        units=units,
    )
    target.write(document)
    served = serves(compared, place.count, total or 1) if compared else answer.fits
    return 0 if served else 1


def _closing(
    setup: Setup, memory: Memory, reference: str, context: int, answer: Capacity
) -> list[tuple[Lever, Capacity]]:
    """Every lever with which the workload fits, and what fits with it."""

    def holds(changed: Setup, tokens: int, sequences: int) -> bool:
        return fits(changed, memory, tokens, sequences)

    found = levers(setup, context, answer.batch_size, holds, reference)
    return [(each, capacity_of(each.setup, memory, each.context, each.batch_size)) for each in found]


@dataclass(frozen=True)
class _Place:
    """Where the model is to run: the memory of one device, how it is called, and how many devices there are."""

    memory: Memory
    label: str
    device: Device | None = None
    count: int | None = None


def _place(
    memory: int | None,
    device: str | None,
    devices: str | None,
    kv_memory: int | None,
    reserve: int,
    utilization: Fraction | None,
) -> _Place:
    if sum(each is not None for each in (memory, device, devices, kv_memory)) != 1:
        raise InputError(
            "fit needs one memory", hint="--memory 24GiB, --device, --devices 8xNAME, or --kv-memory 40GiB"
        )
    if kv_memory is not None:
        return _Place(Memory(kv_memory, None, utilization, reserve), f"a KV cache of {exact_bytes(kv_memory)}")
    if memory is not None:
        return _Place(Memory(None, find_device(None, memory), utilization, reserve), exact_bytes(memory))
    count, found = (None, load_device(device)) if device is not None else parse_devices(devices or "")
    label = found.name if count is None else f"{count} x {found.name}"
    return _Place(Memory(None, found, utilization, reserve), label, found, count)


def _about(device: Device | None, setup: Setup, given: Sequence[str]) -> Iterator[str]:
    """Where a device's memory comes from, and what the engine chooses by it."""
    if device is None:
        return
    yield f"memory of {device.name}: {device.source}"
    typed = {text.partition("=")[0].rpartition(".")[2].replace("-", "_") for text in given}
    for key, value in options_on(setup.engine.name, {}, device).items():
        if key not in typed:
            yield f"{key}={value}: what {setup.engine.name} chooses on {device.name}"


def _pool_section(answer: Capacity, place: _Place) -> Section:
    pool = answer.pool
    rows: list[tuple[str, int]] = []
    if pool.device_memory is not None and pool.utilization is not None:
        assert pool.usable_bytes is not None
        rows = [
            ("device memory", pool.device_memory),
            (f"x utilization {_decimal(pool.utilization)}", pool.usable_bytes),
            ("- weights on one device", -(pool.weights_bytes or 0)),
            *_working_rows(pool.working_memory),
            ("- reserve", -(pool.reserve_bytes or 0)),
        ]
    rows.append(("= KV memory" if rows else "KV memory, as given", pool.kv_memory))
    columns = (
        Column("term", lambda row: row[0]),
        Column("memory", lambda row: row[1], "bytes"),
        Column("exactly", lambda row: row[1], "exact_bytes", drop_order=1),
    )
    return Section(columns, rows, "From the device to the pool", frozenset({len(rows) - 1}))


def _working_rows(working: WorkingMemory | None) -> list[tuple[str, int]]:
    if working is None or not working.share_bytes:
        return []
    outside = working.share_bytes < working.total_bytes
    return [
        ("- activations of one step", -working.activation_bytes),
        ("- runtime of the device", -working.runtime_bytes),
        ("- CUDA graphs" + (" (beside the share)" if outside else ""), 0 if outside else -working.graph_bytes),
    ]


def _answer_section(setup: Setup, answer: Capacity, on_replica: bool) -> Section:
    rows = []
    required = answer.required_kv_memory
    if answer.context is not None:
        said = f"{answer.context:,} tokens x {answer.batch_size:,}"
        if answer.fits:
            verdict = "fits"
        elif required is None:
            verdict = "does not fit, whatever the memory: the engine's options leave no room for it"
        else:
            verdict = "does not fit"
        rows.append({"what": said, "answer": verdict, "needs": required, "missing": answer.missing_bytes or None})
    rows.append(_extreme(setup, answer, f"longest context, batch size {answer.batch_size:,}", "tokens"))
    if answer.context is not None:
        rows.append(_extreme(setup, answer, f"largest batch, {answer.context:,} tokens each", "sequences"))
    columns = [
        Column("workload", lambda row: row["what"]),
        Column("answer", lambda row: row["answer"]),
        # Exact, because the two often agree to all the digits that a GiB is shown with.
        Column("KV memory needed", lambda row: row["needs"], "exact_bytes"),
        Column("one more needs", lambda row: row.get("next"), "exact_bytes", drop_order=1),
    ]
    if answer.missing_bytes:
        columns.append(Column("missing", lambda row: row.get("missing"), "bytes"))
    size = setup.tensor_parallel_size
    return Section(tuple(columns), rows, f"What fits on one replica (tp {size})" if on_replica else "What fits")


def _extreme(setup: Setup, answer: Capacity, what: str, unit: str) -> dict[str, str | int | None]:
    of_context = unit == "tokens"
    most = answer.max_context if of_context else answer.max_batch_size
    if most is None:
        return {"what": what, "answer": "nothing bounds it", "needs": None}

    def needs(number: int) -> int | None:
        if not number:
            return None
        if of_context:
            return required_memory(setup, number, answer.batch_size)
        return required_memory(setup, answer.context or 1, number)

    return {"what": what, "answer": f"{most:,} {unit}", "needs": needs(most), "next": needs(most + 1)}


def _report_section(answer: Capacity) -> Section:
    def shown(value: object) -> str:
        if isinstance(value, bool) or value is None:
            return {True: "yes", False: "no", None: "none"}[value]
        # vLLM logs its concurrency with two decimals.
        return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)

    rows = [
        (name, each)
        for name, value in answer.engine_report.items()
        for each in (value if isinstance(value, list | tuple) else [value])
    ]
    columns = (Column("figure", lambda row: row[0]), Column("value", lambda row: shown(row[1])))
    return Section(columns, rows, f"The engine's own figures at {answer.reported_context:,} tokens")


def _frontier_sections(frontier: tuple[list[Point], list[Point]]) -> Iterator[Section]:
    by_context = (
        Column("context", lambda point: point.context, "count"),
        Column("largest batch", lambda point: point.batch_size, "count"),
        Column("KV memory needed", lambda point: point.required_kv_memory, "bytes"),
    )
    by_batch = (
        Column("batch size", lambda point: point.batch_size, "count"),
        Column("longest context", lambda point: point.context, "count"),
        Column("KV memory needed", lambda point: point.required_kv_memory, "bytes"),
    )
    titles = ("The frontier: the largest batch at each context", "The longest context at each batch size")
    for columns, points, title in zip((by_context, by_batch), frontier, titles, strict=True):
        if points:
            yield Section(columns, points, title)


def _levers_section(levers: Sequence[tuple[Lever, Capacity]], context: int, batch_size: int) -> Section:
    columns = (
        Column("lever", lambda row: row[0].name),
        Column("change", lambda row: row[0].flags),
        Column("which is", lambda row: row[0].consequence, drop_order=2),
        Column("KV memory", lambda row: row[1].kv_memory, "bytes", drop_order=1),
        Column("needed", lambda row: row[1].required_kv_memory, "bytes"),
    )
    workload = f"{context:,} tokens x {batch_size:,}"
    return Section(columns, levers, f"What makes {workload} fit: any one of these, or less of it")


def _splits_section(compared: Sequence[Replica], count: int | None, total: int | None) -> Section:
    rows = [_split_record(split, count, total) for split in compared]
    most = max((row["sequences"] for row in rows if row["sequences"] is not None), default=0)
    needed = [each for row in rows if (each := row["devices_needed"]) is not None and each <= (count or each)]
    fewest = min(needed, default=None)

    def verdict(row: SplitRecord) -> str:
        if row["refusal"]:
            return str(row["refusal"])
        words = []
        if count is not None and most and row["sequences"] == most:
            words.append("serves the most sequences")
        if total is not None and fewest is not None and row["devices_needed"] == fewest:
            words.append(f"the fewest devices for {total:,} sequences")
        return ", ".join(words)

    columns = [
        Column("tp", lambda row: row["tensor_parallel_size"], "count"),
        Column("KV memory a device", lambda row: row["kv_memory"], "bytes", drop_order=1),
        Column("sequences a replica", lambda row: row["sequences_per_replica"], "count"),
    ]
    if count is not None:
        columns.append(Column("replicas", lambda row: row["replicas"], "count"))
        columns.append(Column("sequences", lambda row: row["sequences"], "count"))
    if total is not None:
        columns.append(Column("devices needed", lambda row: row["devices_needed"], "count"))
    columns.append(Column("", verdict))
    return Section(tuple(columns), rows, "Groups of devices that share every layer, and replicas of them")


def _pool_record(answer: Capacity) -> PoolRecord:
    pool = answer.pool
    working = pool.working_memory
    return {
        "device_memory": pool.device_memory,
        "utilization": None if pool.utilization is None else _decimal(pool.utilization),
        "usable_bytes": pool.usable_bytes,
        "weights_bytes": pool.weights_bytes,
        "activation_bytes": None if working is None else working.activation_bytes,
        "runtime_bytes": None if working is None else working.runtime_bytes,
        "graph_bytes": None if working is None else working.graph_bytes,
        "band_bytes": None if working is None else working.band_bytes,
        "reserve_bytes": pool.reserve_bytes,
        "kv_memory": pool.kv_memory,
        "not_modelled": pool.not_modelled or None,
    }


def _pool_notes(answer: Capacity) -> list[str]:
    """What a reader must know of the working memory."""
    pool = answer.pool
    notes = list(pool.working_memory.notes) if pool.working_memory is not None else []
    if pool.not_modelled:
        notes.append(f"{pool.not_modelled}: leave a tenth of the device free with --reserve")
    return notes


def _capacity_record(answer: Capacity) -> CapacityRecord:
    return {
        "fits": answer.fits,
        "context": answer.context,
        "batch_size": answer.batch_size,
        "max_context": answer.max_context,
        "max_batch_size": answer.max_batch_size,
        "required_kv_memory": answer.required_kv_memory,
        "missing_bytes": answer.missing_bytes,
        "engine_report": answer.engine_report,
        "reported_context": answer.reported_context,
        "refusal": None if answer.refusal is None else answer.refusal.message,
    }


def _lever_record(lever: Lever, answer: Capacity) -> LeverRecord:
    return {
        "lever": lever.name,
        "flags": lever.flags,
        "consequence": lever.consequence,
        "required_kv_memory": answer.required_kv_memory,
        "kv_memory": answer.kv_memory,
    }


def _split_record(split: Replica, count: int | None, total: int | None) -> SplitRecord:
    return {
        "tensor_parallel_size": split.tensor_parallel_size,
        "devices_per_replica": split.devices,
        "kv_memory": None if split.capacity is None else split.capacity.kv_memory,
        "sequences_per_replica": None if split.capacity is None else split.capacity.max_batch_size,
        "replicas": None if count is None else count // split.devices,
        "sequences": None if count is None else split.sequences(count),
        "devices_needed": None if total is None else split.devices_for(total),
        "refusal": split.refusal,
    }


def _decimal(fraction: Fraction) -> str:
    """The decimal that a utilization was: its denominator divides a power of ten.

    >>> from fractions import Fraction
    >>> _decimal(Fraction(23, 25)), _decimal(Fraction(1))
    ('0.92', '1')
    """
    from decimal import Decimal

    return format((Decimal(fraction.numerator) / Decimal(fraction.denominator)).normalize(), "f")
