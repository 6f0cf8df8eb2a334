"""What closes the gap when a workload does not fit: one change at a time, each one checked by ``capacity``.

A lever is only named with a value at which the workload fits; what does not close the gap by itself is not named.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from kvcalc.architecture import is_local, window_of
from kvcalc.dtypes import parse_kv_dtypes
from kvcalc.errors import RefusalError
from kvcalc.fitting import Capacity, Memory, capacity_of
from kvcalc.layout import Layout
from kvcalc.setup import Setup
from kvcalc.units import largest

#: Formats of the cache in the order in which they are tried: the least change first.
_KV_FORMATS = ("fp8", "q8_0", "int8_per_token_head", "q4_0", "nvfp4")
_WEIGHT_FORMATS = ("fp8", "int4")
_MOST_DEVICES = 64
#: The layout that is tried for a model without local layers: Gemma 3's.
_LOCAL_LAYOUT = Layout(5, 1, 1024)


@dataclass(frozen=True)
class Lever:
    """One change with which the workload fits.

    Attributes:
        name: what is changed.
        flags: the change as it is typed.
        consequence: what it means, in a few words.
        capacity: the answer with the change; its ``fits`` is true.
    """

    name: str
    flags: str
    consequence: str
    capacity: Capacity


def levers(setup: Setup, memory: Memory, reference: str, context: int, batch_size: int) -> list[Lever]:
    """Every lever that makes the workload fit by itself.

    Args:
        reference: the model as typed, without a layout.
    """
    answer = capacity_of(setup, memory, context, batch_size)
    found = [
        *_less_work(setup, memory, answer, context, batch_size),
        *_formats(setup, memory, context, batch_size),
        *_windows(setup, memory, reference, context, batch_size),
        *_devices(setup, memory, context, batch_size),
    ]
    return [lever for lever in found if lever.capacity.fits]


def _less_work(setup: Setup, memory: Memory, answer: Capacity, context: int, batch_size: int) -> Iterator[Lever]:
    if answer.max_context:
        shorter = capacity_of(setup, memory, answer.max_context, batch_size)
        yield Lever("context", f"-c {answer.max_context}", f"{answer.max_context:,} tokens a sequence", shorter)
    if answer.max_batch_size:
        fewer = capacity_of(setup, memory, context, answer.max_batch_size)
        yield Lever("batch size", f"-b {answer.max_batch_size}", f"{answer.max_batch_size:,} sequences", fewer)


def _formats(setup: Setup, memory: Memory, context: int, batch_size: int) -> Iterator[Lever]:
    for name in _KV_FORMATS:
        answer = _in_format(setup, memory, name, context, batch_size)
        if answer is not None and answer.fits:
            yield Lever("KV format", f"--kv-cache-dtype {name}", f"K and V in {name}", answer)
            break
    if memory.device_memory is None:
        return
    for name in _WEIGHT_FORMATS:
        answer = _answer(setup, memory, context, batch_size, weights_dtype=name)
        if answer is not None and answer.fits:
            yield Lever("weights format", f"--weights-dtype {name}", f"weights in {name}", answer)
            break


def _windows(setup: Setup, memory: Memory, reference: str, context: int, batch_size: int) -> Iterator[Lever]:
    model = setup.architecture
    widest = max((window_of(kind) or 0 for kind, _ in model.caches if is_local(kind)), default=0)

    def with_layout(layout: Layout) -> Capacity | None:
        try:
            changed = model.with_layout(layout)
        except RefusalError:
            return None
        return _answer(setup, memory, context, batch_size, architecture=changed)

    def window_fits(window: int) -> bool:
        answer = with_layout(Layout(None, None, window))
        return answer is not None and answer.fits

    if widest:
        window = largest(window_fits, widest - 1)
        layout = Layout(None, None, window) if window else None
    else:
        layout = _LOCAL_LAYOUT
    answer = with_layout(layout) if layout else None
    if answer is not None:
        yield Lever("window", f"{reference}@{layout}", "another layout: a model to train, not a switch", answer)


def _devices(setup: Setup, memory: Memory, context: int, batch_size: int) -> Iterator[Lever]:
    size = 2 * setup.tensor_parallel_size
    while size <= _MOST_DEVICES:
        answer = _answer(setup, memory, context, batch_size, tensor_parallel_size=size)
        if answer is None:  # the engine does not divide a layer
            return
        if answer.fits:
            yield Lever("devices", f"-tp {size}", f"{size} devices that share every layer", answer)
            return
        size *= 2


def _answer(setup: Setup, memory: Memory, context: int, batch_size: int, **changes: Any) -> Capacity | None:
    try:
        return capacity_of(replace(setup, **changes), memory, context, batch_size)
    except RefusalError:
        return None  # a lever that the engine refuses closes nothing


def _in_format(setup: Setup, memory: Memory, kv_format: str, context: int, batch_size: int) -> Capacity | None:
    k_dtype, v_dtype = parse_kv_dtypes(kv_format)
    return _answer(setup, memory, context, batch_size, k_dtype=k_dtype, v_dtype=v_dtype)
