"""``kvcalc fit MODEL``: does it fit, how much of it, and what would make it fit.

What is left out is what is asked: without an engine every engine that runs there is compared, without a device every
device that serves the workload, without a context the longest that fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from kvcalc.architecture import Architecture
from kvcalc.beside import Neighbour, left_by, neighbour
from kvcalc.cli import complete, fit_tables, fit_words, options, pictures, question
from kvcalc.deciding import Choice, Decision, Place, Workload, choose, closing, decide
from kvcalc.device import Device
from kvcalc.errors import InputError, NotModelledError
from kvcalc.fitting import Memory, frontier, parse_utilization
from kvcalc.footprints import Footprint, footprint_of
from kvcalc.report.document import Derivation, Document
from kvcalc.serving import served_name, server_line
from kvcalc.setup import Setup, options_on
from kvcalc.sources.devices import find_device, load_device, parse_devices
from kvcalc.sources.resolve import split_variant
from kvcalc.units import exact_bytes, parse_count

EXAMPLES = (
    "kvcalc fit gemma-3-27b --device h100-80gb --engine vllm -c 128k\n"
    "kvcalc fit llama-3.1-8b --memory 24GiB --reserve 2GiB -c 32k -b 4\n"
    "kvcalc fit qwen3-30b-a3b -c 32k -b 8\n"
    "kvcalc fit gemma-3-27b --devices 8xh100-80gb --engine vllm -c 32k --sequences 50\n"
    "kvcalc fit llama-3.1-8b --device l40s -e vllm -c 32k --average-context 4k --shared-prefix 2k"
)


Wanted = Annotated[
    int | None, options.option("--sequences", "COUNT", "How many devices serve so many sequences?", parse_count)
]
AverageContext = Annotated[
    int | None,
    options.option(
        "--average-context", "TOKENS", "How many users, if their sequences are so long on average?", parse_count
    ),
]
SharedPrefix = Annotated[
    int,
    options.option(
        "--shared-prefix",
        "TOKENS",
        "Tokens that all sequences begin with; counted once where the engine shares them.",
        partial(parse_count, least=0),
        "0",
    ),
]
Beside = Annotated[
    list[str] | None,
    options.option(
        "--beside",
        "MODEL[=PART]",
        "Another model on the device, in an engine of its own with so much of the memory.",
        offer=complete.models,
    ),
]
Calibrate = Annotated[
    str | None,
    options.option("--calibrate", "LOG", "Take the terms that a server's log prints in place of the formulas'."),
]
OptionalEngineName = Annotated[str | None, options.engine_name("every engine that runs there")]


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
    average_context: AverageContext = None,
    shared_prefix: SharedPrefix = 0,
    beside: Beside = None,
    calibrate: Calibrate = None,
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
    plot: options.Plot = None,
    explain: options.Explain = False,
    units: options.UnitsOption = "binary",
) -> int:
    """Whether it fits, and what would make it fit."""
    target = question.target(format, output, plot)
    # Read once: hundreds of devices and engines may be asked about, and what one learns of a model serves the next.
    loaded, drafted = question.load_with_hints(model), question.read_draft(draft)

    def made(name: str, where: Device | None, size: int) -> Setup:
        return question.setups(
            [loaded],
            engines=[name],
            engine_option=engine_option,
            kv_cache_dtypes=kv_cache_dtype and [kv_cache_dtype],
            weights_dtypes=weights_dtype and [weights_dtype],
            tensor_parallel_sizes=[size],
            encoder_tokens=encoder_tokens,
            draft=drafted,
            text_only=text_only,
            device=question.named(where),
        )[0]

    def memory_of(each: Device) -> Memory:
        return Memory(None, each, gpu_memory_utilization, reserve)

    workload = Workload(
        None if context is None else _stated(loaded, context),
        lambda: _stated(loaded, options.OWN_CONTEXT),
        batch_size,
        sequences,
        average_context,
        shared_prefix,
    )
    choice = choose(
        workload,
        _place(memory, device, devices, kv_memory, reserve, gpu_memory_utilization),
        made,
        engine=engine,
        tensor_parallel_size=tensor_parallel_size,
        memory_of=memory_of,
    )
    choice, said = (choice, []) if calibrate is None else _calibrated(choice, calibrate)
    neighbours = _neighbours(beside or (), choice, workload)
    if neighbours:
        rest = left_by(neighbours, choice.place.memory, choice.setup)
        choice = replace(choice, place=replace(choice.place, memory=rest))
    decision = decide(choice, workload, tensor_parallel_size=tensor_parallel_size, neighbours=neighbours)
    line = _server_line(decision)
    if server:
        typer.echo(line or "")
        return 0 if decision.fits else 1
    closes = [] if decision.fits else closing(decision, split_variant(model)[0])
    shows_all = show_frontier or not target.for_people
    points = frontier(decision.setup, decision.place.memory) if shows_all else ([], [])
    answer = decision.capacity
    shown = footprint_of(decision.setup, answer.reported_context, answer.batch_size)
    sections = fit_tables.sections(decision, closes, points if show_frontier else None)
    verdict, where = fit_words.verdict(decision), f"{question.titled(decision.setup)} in {decision.place.label}"
    document = Document(
        title=verdict,
        assumptions=(where, *question.assumptions([decision.setup], None, None)),
        sections=sections,
        records=[shown.to_dict()],
        schema="fit",
        extra={"verdict": verdict, **fit_tables.records(decision, closes, points), "server_command": line},
        notes=(*_notes(decision, said, closes, engine_option or ()), *shown.notes),
        derivations=_derivations(decision, shown) if explain else (),
        units=units,
        charts=(pictures.terms(where, ((label, abs(size)) for label, size, _ in sections[0].rows)),),
    )
    target.write(document)
    return 0 if decision.fits else 1


def _stated(model: Architecture, context: int) -> int:
    """The context in tokens; a warning goes out where it is beyond the model's own."""
    return question.resolved([context], question.setups([model]))[0]


def _place(
    memory: int | None,
    device: str | None,
    devices: str | None,
    kv_memory: int | None,
    reserve: int,
    utilization: Fraction | None,
) -> Place | None:
    """Where the model is to run, or None where that is asked."""
    named = sum(each is not None for each in (memory, device, devices, kv_memory))
    if named > 1:
        raise InputError("one memory is enough", hint="one of --memory, --device, --devices 2xNAME, --kv-memory")
    if kv_memory is not None:
        return Place(Memory(kv_memory, None, utilization, reserve), f"a KV cache of {exact_bytes(kv_memory)}")
    if memory is not None:
        return Place(Memory(None, find_device(None, memory), utilization, reserve), exact_bytes(memory))
    if not named:
        return None
    count, found = (None, load_device(device)) if device is not None else parse_devices(devices or "")
    label = found.name if count is None else f"{count} x {found.name}"
    return Place(Memory(None, found, utilization, reserve), label, count)


def _calibrated(choice: Choice, log: str) -> tuple[Choice, list[str]]:
    """The choice with the terms of a log for its setup, and where the log is of another one."""
    device = choice.place.memory.device
    if device is None:
        raise InputError("--calibrate gives terms of a device's memory", hint="name the --device")
    from kvcalc.cli.audit import read_log
    from kvcalc.logs.measured import measured

    terms, notes = measured(read_log(log), choice.setup, device, Path(log).name)
    memory = replace(choice.place.memory, measured=(terms, choice.setup))
    return replace(choice, place=replace(choice.place, memory=memory)), notes


def _neighbours(beside: Sequence[str], choice: Choice, workload: Workload) -> list[Neighbour]:
    """The models of ``--beside``, each in the engine of the answer, with the part that was typed behind ``=``."""
    device, name = choice.place.memory.device, choice.setup.engine.name
    if beside and device is None:
        raise InputError("--beside needs a device that the models share", hint="name the --device")
    found = []
    for text in beside:
        reference, equals, part = text.rpartition("=")
        (setup,) = question.setups([reference if equals else text], engines=[name], device=question.named(device))
        context = workload.context or setup.architecture.max_context or workload.compared_at
        assert device is not None
        found.append(neighbour(setup, device, context, parse_utilization(part) if equals else None))
    return found


def _server_line(decision: Decision) -> str | None:
    """The line that starts the server of the answer, or None where the engine has none."""
    setup, answer, utilization = decision.setup, decision.capacity, decision.place.memory.utilization
    name = served_name(setup.engine.name, setup.reference)
    try:
        return server_line(setup, name, answer.reported_context, answer.batch_size, utilization)
    except NotModelledError:
        return None


def _derivations(decision: Decision, shown: Footprint) -> tuple[Derivation, ...]:
    """The cache's formula, and that of the working memory where there is one."""
    working, loading = decision.capacity.pool.working_memory, decision.capacity.pool.loading
    found = [question.derivation(shown, "KV cache, step by step")]
    if loading:
        found.append(Derivation("What loading adds to the weights, step by step", loading))
    if working is not None and working.quantities:
        found.append(Derivation("Working memory, step by step", working.quantities))
    return tuple(found)


def _notes(decision: Decision, said: Sequence[str], closes: Sequence[object], given: Sequence[str]) -> Iterator[str]:
    """What a reader must know of the answer.

    Args:
        said: of a log's terms.
        closes: the levers that close a gap.
        given: the engine's options as they were typed.
    """
    setup, answer, device = decision.setup, decision.capacity, decision.place.memory.device
    if answer.pool.working_memory is not None:
        yield from answer.pool.working_memory.notes
    yield from said
    yield from setup.engine.start_notes(setup, answer.engine_report)
    if device is not None and device.name:
        yield f"memory of {device.name}: {device.source}"
        typed = {text.partition("=")[0].rpartition(".")[2].replace("-", "_") for text in given}
        for key, value in options_on(setup.engine.name, {}, device).items():
            if key not in typed:
                yield f"{key}={value}: what {setup.engine.name} chooses on {device.name}"
    if answer.refusal is not None:
        yield f"{setup.engine.name} refuses to start: {answer.refusal.message}"
    if not closes and not decision.fits:
        yield "no single lever closes the gap: combine several, or more memory"
