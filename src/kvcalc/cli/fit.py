"""``kvcalc fit MODEL``: does it fit, how much of it, and what would make it fit.

What is left out is what is asked: without an engine every engine that runs there is compared, without a device every
device that serves the workload, without a context the longest that fits.

JSON: the row is the footprint at the stated context (without one: the longest that fits, at most the model's own);
beside the rows stand

- ``verdict``: the answer in a sentence;
- ``pool``: ``device_memory``, ``utilization`` (a decimal as text), ``usable_bytes``, ``weights_bytes``,
  ``activation_bytes``, ``runtime_bytes``, ``graph_bytes``, ``band_bytes``, ``reserve_bytes``, ``kv_memory``,
  ``not_modelled``; all but ``kv_memory`` are null with ``--kv-memory``;
- ``capacity``: ``fits``, ``context``, ``batch_size``, ``max_context``, ``max_batch_size``, ``required_kv_memory``,
  ``missing_bytes``, ``engine_report``, ``reported_context``, ``refusal``;
- ``frontier``: ``context``, ``batch_size``, ``required_kv_memory`` of the largest batch at round contexts and the
  longest context at round batch sizes;
- ``levers``: ``lever``, ``flags``, ``consequence``, ``required_kv_memory``, ``kv_memory``;
- ``splits``: ``tensor_parallel_size``, ``devices``, ``kv_memory``, ``sequences_per_replica``,
  ``replicas``, ``sequences``, ``devices_needed``, ``refusal``; only with several devices;
- ``alternatives``: ``engine``, ``device``, ``devices``, ``fits``, ``max_context``, ``max_batch_size``, ``kv_memory``,
  ``refusal``; only where an engine or a device was left out;
- ``server_command``: the line that starts the server, or null.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated

import typer

from kvcalc.alternatives import Alternative, in_engines, on_devices, runs_on, usual_engine
from kvcalc.architecture import Architecture
from kvcalc.cli import complete, options, question
from kvcalc.device import Device
from kvcalc.engines import REGISTRY
from kvcalc.engines.base import WorkingMemory
from kvcalc.errors import InputError, NotModelledError
from kvcalc.fitting import (
    Capacity,
    Memory,
    Point,
    Replica,
    best_replica,
    capacity_of,
    fits,
    frontier,
    group_sizes,
    replicas,
    required_memory,
    serves,
)
from kvcalc.footprints import footprint_of
from kvcalc.levers import Lever, levers
from kvcalc.report.document import Column, Derivation, Document, Section
from kvcalc.report.records import footprint_record
from kvcalc.serving import server_line
from kvcalc.setup import Setup, options_on
from kvcalc.sources.devices import devices as all_devices
from kvcalc.sources.devices import find_device, load_device, parse_devices
from kvcalc.sources.resolve import split_variant
from kvcalc.units import exact_bytes, format_bytes, parse_count

if TYPE_CHECKING:
    from kvcalc.report.shapes import AlternativeRecord, LeverRecord, PoolRecord, SplitRecord

EXAMPLES = (
    "kvcalc fit gemma-3-27b --device h100-80gb --engine vllm -c 128k\n"
    "kvcalc fit llama-3.1-8b --memory 24GiB --reserve 2GiB -c 32k -b 4\n"
    "kvcalc fit qwen3-30b-a3b -c 32k -b 8\n"
    "kvcalc fit gemma-3-27b --devices 8xh100-80gb --engine vllm -c 32k --sequences 50"
)

#: Devices that a table shows.
_MOST_DEVICES = 12

Wanted = Annotated[
    int | None,
    typer.Option(
        metavar="COUNT",
        help="How many devices serve so many sequences?",
        parser=options.reads(lambda text: parse_count(text, "--sequences")),
    ),
]


OptionalEngineName = Annotated[
    str | None,
    typer.Option(
        "--engine",
        "-e",
        metavar="ENGINE",
        help="Whose rules apply. Default: every engine that runs there.",
        parser=options.one_name("--engine"),
        autocompletion=complete.engines,
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
    engine: OptionalEngineName = None,
    engine_option: options.EngineOptions = None,
    encoder_tokens: options.EncoderTokens = 0,
    draft: options.Draft = None,
    text_only: options.TextOnly = False,
    server: Annotated[bool, typer.Option("--command", help="Print the line that starts the server, alone.")] = False,
    show_frontier: Annotated[
        bool, typer.Option("--frontier", help="Every round context and batch size, and the engine's own figures.")
    ] = False,
    format: options.Format = None,  # noqa: A002 - the option's name
    output: options.Output = None,
    explain: options.Explain = False,
    units: options.UnitsOption = "binary",
) -> int:
    """Whether it fits, and what would make it fit."""
    target = question.target(format, output)
    # Read once: hundreds of devices and engines may be asked about, and what one learns of a model serves the next.
    loaded, drafted = question.load_with_hints(model), question.read_draft(draft)

    def made(name: str, where: Device | None, size: int) -> Setup:
        return question.setups(
            [loaded],
            engines=[name],
            engine_options=engine_option,
            kv_cache_dtypes=kv_cache_dtype and [kv_cache_dtype],
            weights_dtypes=weights_dtype and [weights_dtype],
            tensor_parallel_sizes=[size],
            encoder_tokens=encoder_tokens,
            draft=drafted,
            text_only=text_only,
            device=question.named(where),
        )[0]

    alternatives: list[Alternative] = []
    if all(each is None for each in (memory, device, devices, kv_memory)):
        stated = _stated(loaded, context)
        alternatives = _devices(made, engine, reserve, gpu_memory_utilization, stated, batch_size or 1)
        place = _chosen(alternatives, stated, batch_size or 1, reserve, gpu_memory_utilization)
        tensor_parallel_size = tensor_parallel_size or next((each.count for each in alternatives), 1)
    else:
        place = _place(memory, device, devices, kv_memory, reserve, gpu_memory_utilization)
    name = engine or usual_engine(place.device)
    size = tensor_parallel_size or 1
    if engine is None and not alternatives:
        compared_at = None if context is None else _stated(loaded, context)
        others = sorted(REGISTRY, key=lambda each: each != name)
        alternatives = in_engines(
            others, lambda each: made(each, place.device, size), place.memory, compared_at, batch_size or 1
        )
        name = next((each.engine for each in alternatives if each.setup is not None), name)
    setup = made(name, place.device, size)
    tokens = None if context is None else question.resolved([context], [setup])[0]
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
    served = serves(compared, place.count, total or 1) if compared else answer.fits
    line = _server_line(setup, answer, gpu_memory_utilization)
    if server:
        typer.echo(line or "")
        return 0 if served else 1
    closing = [] if served else _closing(setup, place.memory, split_variant(model)[0], tokens or 1, answer)
    points = frontier(setup, place.memory) if show_frontier or not target.for_people else ([], [])
    sections = [
        _account(setup, answer),
        *([_splits_section(compared, place.count, total)] if compared else []),
        *([_levers_section(closing, tokens or 1, answer.batch_size)] if closing else []),
        *([_alternatives_section(alternatives)] if alternatives else []),
        *([_answer_section(setup, answer, bool(compared))] if show_frontier else []),
        *([_report_section(answer)] if show_frontier and answer.engine_report else []),
        *_frontier_sections(points),
    ]
    verdict = _verdict(setup, answer, place, compared, total, served)
    document = Document(
        title=verdict,
        assumptions=(f"{question.titled(setup)} in {place.label}", *question.assumptions([setup], None, None)),
        sections=tuple(sections),
        records=[footprint_record(setup.reference, shown)],
        schema="fit",
        extra={
            "verdict": verdict,
            "pool": _pool_record(answer),
            "capacity": answer.to_dict(),
            "frontier": [vars(point) for each in points for point in each],
            "levers": [_lever_record(lever, changed) for lever, changed in closing],
            "splits": [_split_record(split, place.count, total) for split in compared],
            "alternatives": [_alternative_record(each) for each in alternatives],
            "server_command": line,
        },
        notes=(
            *_pool_notes(answer),
            *_about(place.device, setup, engine_option or ()),
            *([] if answer.refusal is None else [f"{setup.engine.name} refuses to start: {answer.refusal.message}"]),
            *([] if closing or served else ["no single lever closes the gap: combine several, or more memory"]),
            *shown.notes,
        ),
        derivations=_derivations(setup, answer) if explain else (),
        units=units,
    )
    target.write(document)
    return 0 if served else 1


def _stated(model: Architecture, context: int | None) -> int:
    """The context that a comparison of devices or engines is made at: the model's own where none is stated."""
    plain = question.setups([model])
    return question.resolved([options.OWN_CONTEXT if context is None else context], plain)[0]


def _devices(
    made: Callable[[str, Device | None, int], Setup],
    engine: str | None,
    reserve: int,
    utilization: Fraction | None,
    context: int,
    batch_size: int,
) -> list[Alternative]:
    """The devices that serve the workload, the smallest memory in all first."""
    known = [each for each in all_devices() if engine is None or runs_on(engine, each)]
    found = on_devices(
        known,
        lambda each, count: made(engine or usual_engine(each), each, count),
        lambda each: Memory(None, each, utilization, reserve),
        context,
        batch_size,
    )
    return sorted(found, key=lambda each: (each.count, each.device.memory_bytes if each.device else 0))


def _chosen(
    alternatives: Sequence[Alternative], context: int, batch_size: int, reserve: int, utilization: Fraction | None
) -> _Place:
    """The smallest device that serves the workload."""
    first = next(iter(alternatives), None)
    if first is None or first.device is None:
        raise InputError(
            f"no group of up to 8 devices serves {batch_size:,} x {context:,} tokens",
            hint="a shorter -c, a smaller -b, or another --weights-dtype; 'kvcalc devices' lists them",
        )
    return _Place(Memory(None, first.device, utilization, reserve), first.device.name, first.device)


def _verdict(
    setup: Setup, answer: Capacity, place: _Place, compared: Sequence[Replica], total: int | None, served: bool
) -> str:
    """The answer in a sentence."""
    unknown = f" Before {answer.pool.not_modelled}." if answer.pool.not_modelled else ""
    said = _of_replicas(answer, place, compared, total, served) if compared else _of_one(answer)
    return f"{said}.{unknown}"


def _of_replicas(answer: Capacity, place: _Place, compared: Sequence[Replica], total: int | None, served: bool) -> str:
    best = best_replica(compared, place.count, total or 1)
    asked = f"{total or 1:,} x {answer.context:,} tokens"
    how = f"(tensor parallel {best.tensor_parallel_size})"
    if place.count is None:
        needed = best.devices_for(total or 1)
        return f"{asked} need {needed:,} devices {how}" if needed is not None else f"{asked}: no device holds one"
    most = best.sequences(place.count)
    limit = "any number of sequences" if most is None else f"{most:,} sequences at most"
    return f"{'Fits' if served else 'Does not fit'}: {asked}; {limit} {how}"


def _of_one(answer: Capacity) -> str:
    longest = "nothing bounds it" if answer.max_context is None else f"{answer.max_context:,}"
    at_batch = f"Longest context at batch {answer.batch_size:,}: {longest}"
    if answer.context is None:
        if answer.fits:
            return f"Fits. {at_batch}"
        over = -answer.kv_memory
        reason = f"the weights alone are {format_bytes(over)} too large" if over > 0 else "not one token fits"
        return f"Does not fit: {reason}"
    asked = f"{answer.batch_size:,} x {answer.context:,} tokens"
    if answer.fits:
        users = "any number" if answer.max_batch_size is None else f"{answer.max_batch_size:,}"
        return f"Fits: {asked}. {at_batch}; most sequences: {users}"
    if answer.missing_bytes is None:
        return f"Does not fit: {asked}, whatever the memory: the engine's options leave no room for it"
    short = f"Does not fit: {asked} is {format_bytes(answer.missing_bytes)} short"
    if answer.kv_memory < 0:
        return f"{short}; the weights alone are {format_bytes(-answer.kv_memory)} too large"
    return f"{short}. {at_batch}"


def _server_line(setup: Setup, answer: Capacity, utilization: Fraction | None) -> str | None:
    """The line that starts the server of the answer, or None where the engine has none."""
    try:
        return server_line(setup, setup.reference, answer.reported_context, answer.batch_size, utilization)
    except NotModelledError:
        return None


def _derivations(setup: Setup, answer: Capacity) -> tuple[Derivation, ...]:
    """The cache's formula, and that of the working memory where there is one."""
    cache = question.derivation(setup, "KV cache, step by step", answer.reported_context, answer.batch_size)
    working = answer.pool.working_memory
    if working is None or not working.quantities:
        return (cache,)
    return (cache, Derivation("Working memory, step by step", working.quantities))


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
    if sum(each is not None for each in (memory, device, devices, kv_memory)) > 1:
        raise InputError("one memory is enough", hint="--memory, --device, --devices or --kv-memory, one of them")
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


def _account(setup: Setup, answer: Capacity) -> Section:
    """The device as an account: what each term takes, and a bar for all of it."""
    pool = answer.pool
    needed = answer.required_kv_memory if answer.context is not None else max(0, pool.kv_memory)
    rows: list[tuple[str, int, str]] = []
    if pool.device_memory is not None and pool.utilization is not None:
        assert pool.usable_bytes is not None
        rows = [
            ("device memory", pool.device_memory, ""),
            (f"x utilization {_decimal(pool.utilization)}", pool.usable_bytes, ""),
            ("- weights on one device", -(pool.weights_bytes or 0), setup.weights.dtype),
            *_working_rows(pool.working_memory),
            *([("- reserve", -pool.reserve_bytes, "")] if pool.reserve_bytes else []),
        ]
    rows.append(("= KV memory" if rows else "KV memory, as given", pool.kv_memory, ""))
    total = len(rows) - 1
    if answer.context is not None and needed is not None:
        rows.append(("- KV cache of the workload", -needed, f"{answer.context:,} x {answer.batch_size:,}"))
        rows.append(("= free" if needed <= pool.kv_memory else "= short", pool.kv_memory - needed, ""))
    largest = max(abs(size) for _, size, _ in rows)
    columns = (
        Column("", lambda row: row[0]),
        Column("memory", lambda row: row[1], "bytes"),
        Column("", lambda row: (abs(row[1]),), "bars", drop_order=2, largest=largest),
        Column("exactly", lambda row: row[1], "exact_bytes", drop_order=1),
        Column("", lambda row: row[2], drop_order=3),
    )
    return Section(columns, rows, "", frozenset({total, len(rows) - 1}))


def _working_rows(working: WorkingMemory | None) -> list[tuple[str, int, str]]:
    if working is None or not working.total_bytes:
        return []
    outside = working.share_bytes < working.total_bytes
    band = f"the three within {format_bytes(working.band_bytes)}"
    rows = [
        ("- activations of one step", -working.activation_bytes, band),
        ("- runtime of the device", -working.runtime_bytes, ""),
    ]
    if working.graph_bytes and not outside:
        rows.append(("- CUDA graphs", -working.graph_bytes, ""))
    return rows


def _alternatives_section(alternatives: Sequence[Alternative]) -> Section:
    """The engines or devices beside each other, and why the others do not serve it."""

    def sequences(row: Alternative) -> str | None:
        if row.capacity is None:
            return None
        most = row.capacity.max_batch_size if row.capacity.context is not None else row.capacity.max_context
        return "no bound" if most is None else f"{most:,}"

    by_device = len({each.device.name for each in alternatives if each.device is not None}) > 1
    asked = next((each.capacity for each in alternatives if each.capacity is not None), None)
    most = "sequences" if asked is not None and asked.context is not None else "longest context"
    named = Column("devices", lambda row: f"{row.count} x {row.device.name}")
    engine = Column("engine", lambda row: row.engine)
    columns = (
        *([named, engine] if by_device else [engine]),
        Column("", _standing, "verdict"),
        Column(most, sequences),
        Column("KV memory", lambda row: row.capacity and row.capacity.kv_memory, "bytes"),
        Column("why", lambda row: row.refusal or None, "remark"),
    )
    shown = alternatives[:_MOST_DEVICES] if by_device else alternatives
    title = "In each engine that runs there"
    if by_device:
        rest = f" ({len(shown)} of {len(alternatives)}; json has all)" if len(shown) < len(alternatives) else ""
        title = f"Devices that serve it, the fewest and smallest first{rest}"
    return Section(columns, shown, title)


def _standing(row: Alternative) -> str:
    if row.capacity is None:
        return "not known"
    return "fits" if row.capacity.fits else "does not fit"


def _alternative_record(each: Alternative) -> AlternativeRecord:
    answer = each.capacity
    return {
        "engine": each.engine,
        "device": each.device.name if each.device is not None and each.device.name else None,
        "devices": each.count,
        "fits": each.fits,
        "max_context": None if answer is None else answer.max_context,
        "max_batch_size": None if answer is None else answer.max_batch_size,
        "kv_memory": None if answer is None else answer.kv_memory,
        "refusal": each.refusal,
    }


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
