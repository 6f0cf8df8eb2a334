"""From what ``kvcalc fit`` was asked to a place: the device or the memory, what a log prints of it, models beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kvcalc.architecture import Architecture
from kvcalc.beside import Neighbour, neighbour
from kvcalc.cli import question
from kvcalc.cli.options import Room
from kvcalc.deciding import Choice, Place, Workload
from kvcalc.device import Device
from kvcalc.errors import InputError
from kvcalc.fitting import Memory, parse_utilization
from kvcalc.sources.devices import parse_devices


def stated(model: Architecture, context: int) -> int:
    """The context in tokens; a warning goes out where it is beyond the model's own."""
    return question.resolved([context], question.setups([model]))[0]


def place(room: Room, devices: str | None, kv_memory: int | None) -> Place | None:
    """Where the model is to run, or None where that is asked."""
    named = sum(each is not None for each in (room.memory, room.device, devices, kv_memory))
    if named > 1:
        raise InputError("one memory is enough", hint="one of --memory, --device, --devices 2xNAME, --kv-memory")
    if not named:
        return None
    if devices is not None:
        count, found = parse_devices(devices)
        return Place(on(found, room), f"{count} x {found.name}", count)
    known = None if kv_memory is None else Memory(kv_memory, None, room.gpu_memory_utilization, room.reserve)
    memory = known or question.memory_of(room)
    assert memory is not None
    return Place(memory, memory.label)


def on(device: Device, room: Room) -> Memory:
    """A device with what is taken and kept of it."""
    return Memory(None, device, room.gpu_memory_utilization, room.reserve)


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
        (setup,) = question.setups([reference if equals else text], engine=name, device=device)
        context = workload.context or setup.architecture.max_context or workload.compared_at
        assert device is not None
        found.append(neighbour(setup, device, context, parse_utilization(part) if equals else None))
    return found
