"""``kvcalc fit MODEL``: does it fit, how much of it, and what would make it fit.

What is left out is what is asked: without an engine every engine that runs there is compared, without a device every
device that serves the workload, without a context the longest that fits.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from kvcalc.cli import complete, options, question
from kvcalc.units import parse_count

if TYPE_CHECKING:
    from kvcalc.device import Device
    from kvcalc.setup import Setup

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
    devices: options.Devices = None,
    kv_memory: options.KVMemory = None,
    sequences: Wanted = None,
    average_context: AverageContext = None,
    shared_prefix: SharedPrefix = 0,
    beside: Beside = None,
    calibrate: Calibrate = None,
    *,
    room: options.Room,
    tensor_parallel_size: options.OptionalTensorParallelSize = None,
    engine: OptionalEngineName = None,
    served: options.Served,
    server: Annotated[bool, typer.Option("--command", help="Print the line that starts the server, alone.")] = False,
    show_frontier: Annotated[
        bool, typer.Option("--frontier", help="Every round context and batch size, and the engine's own figures.")
    ] = False,
    shown: options.Shown,
) -> int:
    from kvcalc.beside import left_by
    from kvcalc.cli import fit_question, fit_tables, fit_words
    from kvcalc.deciding import Workload, choose, decide
    from kvcalc.sources.resolve import split_variant

    target = question.target(shown.format, shown.output, shown.plot)
    # Read once: hundreds of devices and engines may be asked about, and what one learns of a model serves the next.
    loaded, drafted = question.load_with_hints(model), question.read_draft(served.of_one().draft)

    def made(name: str, where: Device | None, size: int) -> Setup:
        return question.setups([loaded], served, name, size, where, drafted)[0]

    workload = Workload(
        None if context is None else fit_question.stated(loaded, context),
        lambda: fit_question.stated(loaded, options.OWN_CONTEXT),
        batch_size,
        sequences,
        average_context,
        shared_prefix,
    )
    choice = choose(
        workload,
        fit_question.place(room, devices, kv_memory),
        made,
        engine=engine,
        tensor_parallel_size=tensor_parallel_size,
        memory_of=lambda device: fit_question.on(device, room),
    )
    choice, said = (choice, []) if calibrate is None else fit_question.calibrated(choice, calibrate)
    neighbours = fit_question.neighbours(beside or (), choice, workload)
    if neighbours:
        rest = left_by(neighbours, choice.place.memory, choice.setup)
        choice = replace(choice, place=replace(choice.place, memory=rest))
    decision = decide(choice, workload, tensor_parallel_size=tensor_parallel_size, neighbours=neighbours)
    if server:
        typer.echo(fit_words.starting_line(decision) or "")
        return 0 if decision.fits else 1
    frontier = "tables" if show_frontier else "" if target.for_people else "records"
    target.write(fit_tables.document(decision, split_variant(model)[0], said, shown, frontier))
    return 0 if decision.fits else 1
