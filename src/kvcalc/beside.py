"""Several models on one device, each in an engine of its own that takes a part of the memory.

An engine with a fraction (``gpu_memory_utilization``) takes all of its part, whatever its cache needs; one without
takes what its weights, its working memory and one sequence need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from kvcalc.device import Device
from kvcalc.errors import InputError
from kvcalc.fitting import Capacity, Memory, capacity_of, fits
from kvcalc.setup import Setup
from kvcalc.units import largest

#: Parts are stated in hundredths of a device.
_PARTS = 100


@dataclass(frozen=True)
class Neighbour:
    """Another model on the device.

    Attributes:
        setup: the model in its engine.
        part: the part of the device that the engine is given, or None where it takes none.
        taken_bytes: memory of the device that is its own.
        capacity: what it serves in that.
    """

    setup: Setup
    part: Fraction | None
    taken_bytes: int
    capacity: Capacity


def neighbour(setup: Setup, device: Device, context: int, part: Fraction | None) -> Neighbour:
    """A model beside another one: in the part that it is given, or in the smallest that serves one sequence.

    Raises:
        InputError: no part of the device is large enough, or the engine takes no parts.

    >>> from kvcalc.setup import prepare
    >>> from kvcalc.sources.devices import load_device
    >>> found = neighbour(prepare("qwen3-0.6b", engine="vllm"), load_device("h100-80gb"), 32768, None)
    >>> str(found.part), found.capacity.max_batch_size
    ('9/100', 1)
    """
    if not _takes_parts(setup):
        if part is not None:
            reason = f"{setup.engine.name} takes no part of a device"
            raise InputError(reason, hint="leave the =PART of --beside out")
        pool = Memory(device=device).pool(setup, context, 1)
        taken = device.memory_bytes - pool.kv_memory + setup.plan.required_kv_memory(context, 1)
        return Neighbour(setup, None, taken, capacity_of(setup, Memory(device=device), context))
    if part is None:

        def too_small(hundredths: int) -> bool:
            return not fits(setup, Memory(device=device, utilization=Fraction(hundredths, _PARTS)), context, 1)

        smaller = largest(too_small, _PARTS)
        if smaller == _PARTS:
            raise InputError(f"{setup.reference} does not fit {device.title} at {context:,} tokens, even alone")
        part = Fraction(smaller + 1, _PARTS)
    memory = Memory(device=device, utilization=part)
    taken = device.memory_bytes * part.numerator // part.denominator
    return Neighbour(setup, part, taken, capacity_of(setup, memory, context))


def _takes_parts(setup: Setup) -> bool:
    server = setup.engine.server
    return server is not None and "utilization" in server.flags


def left_by(neighbours: Sequence[Neighbour], memory: Memory, setup: Setup) -> Memory:
    """What neighbours leave of a device to a setup: the rest in hundredths, or all of it less what they take.

    A part that was stated stays; what it overlaps the others' is memory that is not there, a reserve.
    """
    device = memory.device
    assert device is not None
    taken = sum(each.taken_bytes for each in neighbours)
    if not _takes_parts(setup) or (setup.engine.sets_aside and memory.utilization is None):
        return replace(memory, reserve=memory.reserve + taken)
    default = Fraction(setup.engine.utilization_percent, _PARTS)
    rest = Fraction((device.memory_bytes - taken) * _PARTS // device.memory_bytes, _PARTS)
    part = memory.utilization or (min(default, rest) if rest > 0 else default)
    over = int(part * device.memory_bytes) + taken - device.memory_bytes
    return replace(memory, utilization=part, reserve=memory.reserve + max(0, over))
