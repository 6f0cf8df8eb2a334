"""From what ``kvcalc fit`` was asked to a place: the device or the memory, what a log prints of it, models beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from kvcalc.architecture import Architecture
from kvcalc.beside import Neighbour, neighbour
from kvcalc.cli import question
from kvcalc.deciding import Choice, Place, Workload
from kvcalc.errors import InputError
from kvcalc.fitting import Memory, parse_utilization
from kvcalc.sources.devices import find_device, load_device, parse_devices
from kvcalc.units import exact_bytes


def stated(model: Architecture, context: int) -> int:
    """The context in tokens; a warning goes out where it is beyond the model's own."""
    return question.resolved([context], question.setups([model]))[0]


def place(
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


def calibrated(choice: Choice, log: str) -> tuple[Choice, list[str]]:
    """The choice with the terms of a log for its setup, and where the log is of another one."""
    device = choice.place.memory.device
    if device is None:
        raise InputError("--calibrate gives terms of a device's memory", hint="name the --device")
    from kvcalc.cli.audit import read_log  # the readers of logs, which other answers do without
    from kvcalc.logs.measured import measured

    terms, notes = measured(read_log(log), choice.setup, device, Path(log).name)
    memory = replace(choice.place.memory, measured=(terms, choice.setup))
    return replace(choice, place=replace(choice.place, memory=memory)), notes


def neighbours(beside: Sequence[str], choice: Choice, workload: Workload) -> list[Neighbour]:
    """The models of ``--beside``, each in the engine of the answer, with the part that was typed behind ``=``."""
    device, name = choice.place.memory.device, choice.setup.engine.name
    if beside and device is None:
        raise InputError("--beside needs a device that the models share", hint="name the --device")
    found = []
    for text in beside:
        reference, equals, part = text.rpartition("=")
        (setup,) = question.setups([reference if equals else text], engine=name, device=question.named(device))
        context = workload.context or setup.architecture.max_context or workload.compared_at
        assert device is not None
        found.append(neighbour(setup, device, context, parse_utilization(part) if equals else None))
    return found
