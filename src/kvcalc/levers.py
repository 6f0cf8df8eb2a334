"""What closes the gap when a workload does not fit: one change at a time, each one tried before it is named.

A lever is only named with a value at which the workload fits; what does not close the gap by itself is not named.
Whether it fits is the caller's question: a pool of memory for ``kvcalc fit``, the limits of a budget for
``kvcalc check``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ParamSpec

from kvcalc.architecture import is_local, window_of
from kvcalc.dtypes import parse_kv_dtypes
from kvcalc.engines import make_engine
from kvcalc.errors import KVCalcError
from kvcalc.layout import Layout
from kvcalc.relayout import with_layout
from kvcalc.setup import Setup
from kvcalc.units import largest

_Asked = ParamSpec("_Asked")

#: Formats of the cache in the order in which they are tried: the least change first.
_KV_FORMATS = ("fp8", "q8_0", "int8_per_token_head", "q4_0", "nvfp4")
_MOST_DEVICES = 64
#: The layout that is tried for a model without local layers: Gemma 3's.
_LOCAL_LAYOUT = Layout(5, 1, 1024)

#: How a change is typed on the command line, by its field in a budget's file.
_FLAGS = {
    "context": "-c {}",
    "batch_size": "-b {}",
    "kv_cache_dtype": "--kv-cache-dtype {}",
    "weights_dtype": "--weights-dtype {}",
    "tensor_parallel_size": "-tp {}",
    "model": "{}",
}


@dataclass(frozen=True)
class Lever:
    """One change with which the workload fits.

    Attributes:
        name: what is changed, in words.
        field: the same by its name in a budget's file.
        value: the new value; for ``engine_options`` the one option that changes.
        consequence: what it means, in a few words.
        setup, context, batch_size: the workload with the change.
    """

    name: str
    field: str
    value: str | int | Mapping[str, Any]
    consequence: str
    setup: Setup
    context: int
    batch_size: int

    @property
    def flags(self) -> str:
        """The change as it is typed."""
        if isinstance(self.value, Mapping):
            return " ".join(f"-E {option}={_plain(value)}" for option, value in self.value.items())
        return _FLAGS[self.field].format(self.value)

    @property
    def toml(self) -> str:
        """The change as a line of budgets.toml."""
        if isinstance(self.value, Mapping):
            options = {**self.setup.engine.set_options, **self.value}
            listed = ", ".join(f"{option} = {json.dumps(value)}" for option, value in options.items())
            return f"{self.field} = {{{listed}}}"
        return f"{self.field} = {json.dumps(self.value)}"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def levers(
    setup: Setup, context: int, batch_size: int, fits: Callable[[Setup, int, int], bool], reference: str
) -> Iterator[Lever]:
    """Every lever that makes the workload fit by itself, each computed when it is asked for.

    Args:
        fits: whether a setup at a context and a batch size fits; it may refuse with a :class:`KVCalcError`.
        reference: the model as typed, without a layout.
    """
    holds = _unless_refused(fits)
    longest = largest(lambda tokens: holds(setup, tokens, batch_size), context - 1)
    if longest:
        yield Lever("context", "context", longest, f"{longest:,} tokens a sequence", setup, longest, batch_size)
    most = largest(lambda sequences: holds(setup, context, sequences), batch_size - 1)
    if most:
        yield Lever("batch size", "batch_size", most, f"{most:,} sequences", setup, context, most)
    yield from setup_levers(setup, context, batch_size, lambda changed: fits(changed, context, batch_size), reference)


def setup_levers(
    setup: Setup, context: int, batch_size: int, fits: Callable[[Setup], bool], reference: str
) -> Iterator[Lever]:
    """The levers that leave the workload as it is.

    Args:
        fits: whether a setup serves the workload; it may refuse with a :class:`KVCalcError`.
        reference: the model as typed, without a layout.
    """
    holds = _unless_refused(fits)

    def lever(name: str, field: str, value: str | int | Mapping[str, Any], consequence: str, changed: Setup) -> Lever:
        return Lever(name, field, value, consequence, changed, context, batch_size)

    for kv_format in _KV_FORMATS:
        k_dtype, v_dtype = parse_kv_dtypes(kv_format)
        changed = replace(setup, k_dtype=k_dtype, v_dtype=v_dtype)
        if holds(changed):
            yield lever("KV format", "kv_cache_dtype", kv_format, f"K and V in {kv_format}", changed)
            break
    for weights_format in setup.engine.weight_formats:
        changed = replace(setup, weights_dtype=weights_format)
        if changed.weights.bytes < setup.weights.bytes and holds(changed):
            yield lever("weights format", "weights_dtype", weights_format, f"weights in {weights_format}", changed)
            break
    for option, values in setup.engine.frugal_options.items():
        for value in values:
            cut = _with_option(setup, option, value)
            if cut is not None and holds(cut):
                change = {option: value}
                yield lever("engine option", "engine_options", change, f"an option of {setup.engine.name}", cut)
                break
    size = 2 * setup.tensor_parallel_size
    while size <= _MOST_DEVICES:
        changed = replace(setup, tensor_parallel_size=size)
        if holds(changed):
            yield lever("devices", "tensor_parallel_size", size, f"tensor parallel over {size} devices", changed)
            break
        size *= 2
    layout, windowed = _windowed(setup, holds)
    if windowed is not None:
        consequence = "another layout: a model to train, not a switch"
        yield lever("window", "model", f"{reference}@{layout}", consequence, windowed)


def _unless_refused(fits: Callable[_Asked, bool]) -> Callable[_Asked, bool]:
    """The same question, answered with no where the engine refuses: such a change closes nothing."""

    def holds(*asked: _Asked.args, **named: _Asked.kwargs) -> bool:
        try:
            return fits(*asked, **named)
        except KVCalcError:
            return False

    return holds


def _with_option(setup: Setup, option: str, value: Any) -> Setup | None:
    engine = setup.engine
    try:
        return replace(setup, engine=make_engine(engine.name, {**engine.set_options, option: value}))
    except KVCalcError:
        return None


def _windowed(setup: Setup, holds: Callable[[Setup], bool]) -> tuple[Layout | None, Setup | None]:
    """The widest window that fits, or a layout with local layers for a model that has none."""
    model = setup.architecture
    widest = max((window_of(kind) or 0 for kind, _ in model.caches if is_local(kind)), default=0)

    def laid_out(layout: Layout) -> Setup | None:
        try:
            # Kept, because thousands of budgets of one model ask for the same.
            changed = model.memo(("with_layout", layout), lambda: with_layout(model, layout))
            return replace(setup, architecture=changed)
        except KVCalcError:
            return None

    def window_fits(window: int) -> bool:
        changed = laid_out(Layout(None, None, window))
        return changed is not None and holds(changed)

    layout: Layout | None = _LOCAL_LAYOUT
    if widest:
        window = largest(window_fits, widest - 1)
        layout = Layout(None, None, window) if window else None
    changed = laid_out(layout) if layout is not None else None
    return (layout, changed) if changed is not None and holds(changed) else (None, None)
