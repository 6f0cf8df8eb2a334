"""What is left out of a question is what is asked: every engine that serves a workload, every device that it fits.

An alternative that an engine refuses, or that is not modelled, is listed with the reason: silence would read as "no".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kvcalc.device import Device, Platform
from kvcalc.engines import engine_class
from kvcalc.errors import RefusalError
from kvcalc.fitting import Capacity, Memory, capacity_of, fits
from kvcalc.setup import Setup

#: Devices that a model is tried on together, the fewest first.
GROUPS = (1, 2, 4, 8)
#: The engine that people use on a platform where they name none.
_USUAL: dict[Platform, str] = {"metal": "mlx-lm"}


@dataclass(frozen=True)
class Alternative:
    """One way to serve the workload.

    Attributes:
        engine: the engine's name.
        device: the device, or None for a KV memory given as such.
        count: devices that share every layer.
        setup: the model there, or None where the engine refuses it.
        capacity: what fits, or None likewise.
        refusal: the reason, in that case.
    """

    engine: str
    device: Device | None
    count: int
    setup: Setup | None
    capacity: Capacity | None
    refusal: str = ""

    @property
    def fits(self) -> bool:
        """Whether the workload fits there."""
        return self.capacity is not None and self.capacity.fits

    @property
    def not_modelled(self) -> str:
        """Why the engine's working memory there is not in the answer, or empty."""
        return "" if self.capacity is None else self.capacity.pool.not_modelled


def usual_engine(device: Device | None) -> str:
    """The engine that is meant where none is named: vLLM, and MLX on a Mac.

    >>> from kvcalc.sources.devices import load_device
    >>> usual_engine(load_device("apple-m4-max-64gb")), usual_engine(None)
    ('mlx-lm', 'vllm')
    """
    return "vllm" if device is None else _USUAL.get(device.platform, "vllm")


def runs_on(engine: str, device: Device | None) -> bool:
    """Whether an engine runs on a device at all; without one, everything does but the accounting."""
    platforms = engine_class(engine).platforms
    return bool(platforms) if device is None else device.platform in platforms


def in_engines(
    engines: Iterable[str],
    make: Callable[[str], Setup],
    memory: Memory,
    context: int | None,
    batch_size: int,
) -> list[Alternative]:
    """What fits into a memory in each engine that runs there, in the order of ``engines``.

    Args:
        make: the model in the engine of that name; it may refuse.
    """
    found = []
    for engine in engines:
        if not runs_on(engine, memory.device):
            continue
        try:
            setup = make(engine)
            answer = capacity_of(setup, memory, context, batch_size)
            found.append(Alternative(engine, memory.device, setup.devices, setup, answer))
        except RefusalError as error:
            found.append(Alternative(engine, memory.device, 1, None, None, error.message))
    return found


def on_devices(
    devices: Iterable[Device],
    make: Callable[[Device, int], Setup],
    memory: Callable[[Device], Memory],
    context: int,
    batch_size: int,
) -> list[Alternative]:
    """For each device the fewest that serve a workload together; devices that never do are left out.

    Args:
        make: the model on so many of a device; it may refuse.
        memory: a device with what is taken and kept of it.
    """
    found = []
    for device in devices:
        for count in GROUPS:
            try:
                setup, place = make(device, count), memory(device)
                if not fits(setup, place, context, batch_size):
                    continue
                answer = capacity_of(setup, place, context, batch_size)
            except RefusalError:
                continue  # the next size may divide what this one does not
            found.append(Alternative(setup.engine.name, device, count, setup, answer))
            break
    return found
