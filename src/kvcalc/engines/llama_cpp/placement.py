"""Where llama.cpp puts the layers of a model: ``-ngl`` and ``--tensor-split``.

Source: llama.cpp 0c1e57098, src/llama-model.cpp:1560-1614 (load_tensors). Layers are offloaded from the last one on,
the output first of all; the devices share what is offloaded in order, by their part of the split. A layer's cache lies
with its weights; the token embedding stays in host memory, and a tied head is a copy of it on the output's device.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from kvcalc.architecture import Architecture, Layer

HOST = "host"


@dataclass(frozen=True, slots=True)
class Place:
    """One device, or host memory.

    Attributes:
        device: ``host``, or the device's number.
        layers: the model's layers there, by position; prediction layers come after its own.
        has_output: the final norm and the head are there.
        parameters: numbers of the weights there.
    """

    device: str
    layers: tuple[int, ...]
    has_output: bool
    parameters: int = 0


def places_of(architecture: Architecture, n_gpu_layers: int | None, tensor_split: Sequence[float]) -> tuple[Place, ...]:
    """The places of a model with its prediction layers, and the numbers of the weights in each."""
    layers = architecture.num_layers + len(architecture.mtp_layers)
    found = placement(layers, n_gpu_layers, tensor_split)
    return tuple(replace(place, parameters=_parameters_at(architecture, place)) for place in found)


def placement(num_layers: int, n_gpu_layers: int | None, tensor_split: Sequence[float]) -> tuple[Place, ...]:
    """The places of ``num_layers`` layers (prediction layers too) and of the output; host memory comes first.

    Args:
        num_layers: layers of the file.
        n_gpu_layers: layers to offload, the output as one of them; None for all.
        tensor_split: each device's part, in any unit.

    >>> [(place.device, len(place.layers), place.has_output) for place in placement(48, 20, [1])]
    [('host', 29, False), ('0', 19, True)]
    >>> [(place.device, len(place.layers)) for place in placement(32, None, [3, 1])]
    [('host', 0), ('0', 25), ('1', 7)]
    """
    wanted = num_layers + 1 if n_gpu_layers is None else n_gpu_layers
    first, offloaded = max(num_layers + 1 - wanted, 0), min(wanted, num_layers + 1)
    sums = [_single(each) for each in accumulate(map(_single, tensor_split))]
    ends = [_single(each / sums[-1]) for each in sums]
    devices = [HOST] * first
    devices += [str(bisect_right(ends, _single(at / offloaded))) for at in range(num_layers + 1 - first)]
    found = []
    for device in dict.fromkeys([HOST, *devices]):
        layers = tuple(at for at, each in enumerate(devices[:-1]) if each == device)
        found.append(Place(device, layers, devices[-1] == device))
    return tuple(found)


def _parameters_at(architecture: Architecture, place: Place) -> int:
    """Numbers of the weights in one place: its layers, the output, and in host memory the embedding."""
    ordered: list[Layer] = [architecture.layers[index] for index in architecture.order]
    ordered += architecture.mtp_layers
    count = sum(tensor.elements for at in place.layers for tensor in (*ordered[at].mixer, *ordered[at].rest))
    embedding = [tensor for tensor in architecture.tensors if tensor.part == "embedding"]
    others = [tensor for tensor in architecture.tensors if tensor.part != "embedding"]
    if place.device == HOST:
        count += sum(tensor.elements for tensor in embedding)
    if place.has_output:
        tied = not any(tensor.part == "head" for tensor in others)
        count += sum(tensor.elements for tensor in (*others, *(embedding if tied else ())))
    return count


def _single(number: float) -> float:
    """A number as the engine's 32-bit float holds it."""
    rounded: float = struct.unpack("f", struct.pack("f", number))[0]
    return rounded
