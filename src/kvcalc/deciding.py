"""Does it fit, and what would: one answer from a model, a place and a workload, any of which may be left out.

What is left out is what is asked: without an engine every engine that runs there is compared, without a device every
device that serves the workload, without a context the longest that fits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kvcalc.alternatives import GROUPS, Alternative, in_engines, on_devices, runs_on, usual_engine
from kvcalc.beside import Neighbour
from kvcalc.device import Device
from kvcalc.engines import REGISTRY
from kvcalc.errors import RefusalError
from kvcalc.fitting import Capacity, Memory, Replica, best_replica, capacity_of, fits, group_sizes, replicas, serves
from kvcalc.levers import Lever, levers
from kvcalc.setup import Setup
from kvcalc.sources.devices import devices
from kvcalc.users import Users, held_tokens, users

#: The model in the engine of that name, on so many of a device; it may refuse.
Make = Callable[[str, Device | None, int], Setup]


@dataclass(frozen=True)
class Place:
    """Where a model is to run.

    Attributes:
        memory: of one device, with what is taken and kept of it.
        label: how the place is called.
        count: devices, where their number was stated.
    """

    memory: Memory
    label: str
    count: int | None = None


@dataclass(frozen=True)
class Workload:
    """What is to be served; None is what is asked for.

    Attributes:
        context: the longest context of a sequence.
        own_context: the context that comparisons are made at where none is stated.
        batch_size: sequences at a time.
        sequences: sequences at a time over all replicas.
        average_context: tokens of the average sequence.
        shared_prefix: tokens that all sequences begin with.
    """

    context: int | None
    own_context: Callable[[], int]
    batch_size: int | None = None
    sequences: int | None = None
    average_context: int | None = None
    shared_prefix: int = 0

    @property
    def compared_at(self) -> int:
        """The context of a comparison of devices."""
        return self.context or self.own_context()


@dataclass(frozen=True)
class Choice:
    """A setup and a place, where a question left some of it out, and what else was looked at."""

    setup: Setup
    place: Place
    alternatives: Sequence[Alternative] = ()


def choose(
    workload: Workload,
    place: Place | None,
    make: Make,
    *,
    engine: str | None = None,
    tensor_parallel_size: int | None = None,
    memory_of: Callable[[Device], Memory],
) -> Choice:
    """The setup and the place that an answer is about.

    Args:
        place: None is the smallest group of devices that serves the workload.
        engine: None is the usual one there, and the others are compared with it.
        memory_of: a device with what is taken and kept of it.

    Raises:
        KVCalcError: every engine, or the one that is named, refuses the model.
    """
    if place is None:
        return _on_some_device(workload, make, engine, tensor_parallel_size, memory_of)
    memory, size = place.memory, tensor_parallel_size or 1
    if engine is not None:
        return Choice(make(engine, memory.device, size), place)
    usual = usual_engine(memory.device)
    compared = in_engines(
        sorted(REGISTRY, key=lambda each: each != usual),
        lambda each: make(each, memory.device, size),
        memory,
        workload.context,
        workload.batch_size or 1,
    )
    first = next((each.setup for each in compared if each.setup is not None), None)
    # A size that the usual engine does not divide heads by is refused: it was typed, and another engine was not.
    refused = first is None or (size > 1 and first.engine.name != usual)
    return Choice(make(usual, memory.device, size) if refused or first is None else first, place, compared)


def _on_some_device(
    workload: Workload,
    make: Make,
    engine: str | None,
    tensor_parallel_size: int | None,
    memory_of: Callable[[Device], Memory],
) -> Choice:
    """The devices that serve the workload, the fewest and smallest first; where none do, as many of the largest."""
    known = [each for each in devices() if engine is None or runs_on(engine, each)]

    def made(device: Device, count: int) -> Setup:
        return make(engine or usual_engine(device), device, count)

    found = on_devices(known, made, memory_of, workload.compared_at, workload.batch_size or 1)
    # Of as few devices, those whose working memory is known stand first: the others may not serve it after all.
    found.sort(key=lambda each: (each.count, bool(each.not_modelled), each.device.memory_bytes if each.device else 0))
    first = next(iter(found), None)
    if first is not None and first.device is not None and first.setup is not None:
        setup = first.setup
        if tensor_parallel_size is not None:
            setup = made(first.device, tensor_parallel_size)
        return Choice(setup, Place(memory_of(first.device), first.device.name), found)
    largest, setup = _largest_group(known, made)
    return Choice(setup, Place(memory_of(largest), f"{setup.devices} x {largest.name}, the largest there is"))


def _largest_group(known: Sequence[Device], made: Callable[[Device, int], Setup]) -> tuple[Device, Setup]:
    """The most devices that share a model, of the largest memory: what does not fit there fits nowhere."""
    refusal: RefusalError | None = None
    for count in reversed(GROUPS):
        for device in reversed(known):
            try:
                return device, made(device, count)
            except RefusalError as error:
                refusal = error
    assert refusal is not None
    raise refusal


@dataclass(frozen=True)
class Decision:
    """The answer.

    Attributes:
        fits: what was asked is served.
        setup: the model as the answer is about it.
        place: where it runs.
        capacity: what one replica serves.
        alternatives: engines or devices beside each other, where one was left out.
        replicas: groups of devices and what one replica of each serves, where several devices are asked about.
        total: sequences that are to be served, or None.
        users: how many sequences run, in each sense that was asked for.
        neighbours: other models on the device.
    """

    fits: bool
    setup: Setup
    place: Place
    capacity: Capacity
    alternatives: Sequence[Alternative] = ()
    replicas: Sequence[Replica] = ()
    total: int | None = None
    users: Sequence[Users] = ()
    neighbours: Sequence[Neighbour] = ()

    @property
    def answered(self) -> Users | None:
        """Of the senses in which users were asked for the last one that has an answer."""
        return next((each for each in reversed(self.users) if not each.printed and not each.refusal), None)

    @property
    def best(self) -> Replica:
        """Of the groups the one whose copies serve the most, or the sequences on the fewest devices."""
        return best_replica(self.replicas, self.place.count, self.total or 1)


def decide(
    choice: Choice, workload: Workload, *, tensor_parallel_size: int | None = None, neighbours: Sequence[Neighbour] = ()
) -> Decision:
    """Whether the workload is served there.

    Args:
        tensor_parallel_size: the only one to try, where several devices are asked about.
        neighbours: other models on the device; what they take is no longer in its memory.
    """
    setup, place, context = choice.setup, choice.place, workload.context
    total = workload.sequences or workload.batch_size
    compared: list[Replica] = []
    if place.count is not None or workload.sequences is not None:
        context = context or workload.own_context()
        sizes = group_sizes(place.count) if tensor_parallel_size is None else [tensor_parallel_size]
        held = held_tokens(setup, context, workload.average_context)
        compared = replicas(setup, place.memory, held, sizes)
        best = best_replica(compared, place.count, total or 1)
        setup = replace(setup, tensor_parallel_size=best.tensor_parallel_size)
    answer = capacity_of(setup, place.memory, context, 1 if compared else workload.batch_size or 1)
    asked = workload.average_context is not None or workload.shared_prefix > 0
    counted = users(setup, place.memory, answer, workload.average_context, workload.shared_prefix) if asked else []
    decision = Decision(answer.fits, setup, place, answer, choice.alternatives, compared, total, counted, neighbours)
    served, sense = decision.fits, decision.answered
    if compared:
        served = serves(compared, place.count, total or 1)
    elif sense is not None:
        alone = fits(setup, place.memory, answer.reported_context, 1)
        served = alone and (sense.sequences is None or sense.sequences >= answer.batch_size)
    return replace(decision, fits=served and all(each.capacity.fits for each in neighbours))


def closing(decision: Decision, reference: str) -> list[tuple[Lever, Capacity]]:
    """Every lever with which the workload fits, and what fits with it.

    Args:
        reference: the model as typed, without a layout.
    """
    memory, answer = decision.place.memory, decision.capacity
    found = levers(
        decision.setup,
        answer.context or 1,
        answer.batch_size,
        lambda changed, tokens, sequences: fits(changed, memory, tokens, sequences),
        reference,
    )
    return [(each, capacity_of(each.setup, memory, each.context, each.batch_size)) for each in found]
