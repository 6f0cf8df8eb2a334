"""Where llama.cpp puts the layers of a model: ``-ngl`` and ``--tensor-split``.

Source: llama.cpp 0c1e57098, src/llama-model.cpp:1560-1614 (load_tensors). Layers are offloaded from the last one on,
the output first of all; the devices share what is offloaded in order, by their part of the split. A layer's cache lies
with its weights; the token embedding stays in host memory, and a tied head is a copy of it on the output's device.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from kvcalc.architecture import Architecture, Layer, Stage
from kvcalc.derivation import Quantity
from kvcalc.engines.base import KVCache
from kvcalc.engines.llama_cpp.models import ModelCache
from kvcalc.engines.llama_cpp.plan import LlamaCppPlan, make_plan

HOST = "host"


@dataclass(frozen=True, slots=True)
class Place:
    """One device, or host memory.

    Attributes:
        device: ``host``, or the device's number.
        layers: the model's layers there, by position; prediction layers come after its own.
        has_output: the final norm and the head are there.
    """

    device: str
    layers: tuple[int, ...]
    has_output: bool

    @property
    def stage(self) -> Stage:
        """The same as what lies there of the weights."""
        first, end = (self.layers[0], self.layers[-1] + 1) if self.layers else (0, 0)
        return Stage(first, end, self.device == HOST, self.has_output)


_NOTHING = Place("", (), has_output=False)


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


@dataclass(frozen=True, slots=True)
class PlacedPlan:
    """The cache of a model whose layers lie in several places; the figures are those of the device that keeps most.

    Attributes:
        whole: the plan of all layers, whose lines llama.cpp prints.
        places: where the layers are.
        plans: the layers of each place.
        parameters: numbers of the weights in each place.
    """

    whole: LlamaCppPlan
    places: tuple[Place, ...]
    plans: tuple[LlamaCppPlan, ...]
    parameters: tuple[int, ...]

    @property
    def model(self) -> ModelCache:
        """The whole model."""
        return self.whole.model

    def kv_bytes(self, context: int, batch_size: int) -> int:
        """Bytes on the device that keeps most of the cache."""
        return self._fullest(context, batch_size).kv_bytes(context, batch_size)

    def allocate(self, context: int, batch_size: int) -> KVCache:
        """The cache of that device, and what lies elsewhere."""
        cache = self._fullest(context, batch_size).allocate(context, batch_size)
        notes = [
            f"{'host memory' if place.device == HOST else f'device {place.device}'} holds "
            f"{'the token embedding, ' if place.device == HOST else ''}{len(place.layers)} layers and "
            f"{plan.kv_bytes(context, batch_size):,} bytes of the cache"
            for place, plan in zip(self.places, self.plans, strict=True)
        ]
        return replace(cache, notes=(*cache.notes, *notes))

    def required_kv_memory(self, context: int, batch_size: int) -> int:
        """Exactly the bytes."""
        return self.kv_bytes(context, batch_size)

    def report(self, context: int, batch_size: int, kv_memory: int) -> dict[str, Any]:
        """llama.cpp's figures of the whole model, and where it puts the layers."""
        placed = [
            {
                "device": place.device,
                "layers": len(place.layers),
                "output": place.has_output,
                "kv_bytes": plan.kv_bytes(context, batch_size),
                "parameters": parameters,
            }
            for place, plan, parameters in zip(self.places, self.plans, self.parameters, strict=True)
        ]
        fits = self.kv_bytes(context, batch_size) <= kv_memory
        return {**self.whole.report(context, batch_size, kv_memory), "fits": fits, "placement": placed}

    def explain(self, context: int, batch_size: int) -> tuple[Quantity, ...]:
        """The derivation of the device that keeps most."""
        return self._fullest(context, batch_size).explain(context, batch_size)

    def _fullest(self, context: int, batch_size: int) -> LlamaCppPlan:
        nothing = make_plan(_part(self.model, _NOTHING), self.whole.launch)
        return max(self.plans[1:], key=lambda plan: plan.kv_bytes(context, batch_size), default=nothing)


def placed_plan(architecture: Architecture, whole: LlamaCppPlan, places: tuple[Place, ...]) -> PlacedPlan:
    """A plan of all layers as one of the layers in each place."""
    plans = tuple(make_plan(_part(whole.model, place), whole.launch) for place in places)
    return PlacedPlan(whole, places, plans, tuple(_parameters_at(architecture, place) for place in places))


def _part(model: ModelCache, place: Place) -> ModelCache:
    """The layers of one place; a model's own prediction layers are its draft's, and keep no cache of its own."""
    counts = Counter(model.order[at] for at in place.layers if at < len(model.order))
    kept = [number for number in range(len(model.layers)) if counts[number]]
    return replace(
        model,
        layers=tuple(replace(model.layers[number], count=counts[number]) for number in kept),
        order=tuple(kept.index(number) for number in sorted(counts.elements())),
    )


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
