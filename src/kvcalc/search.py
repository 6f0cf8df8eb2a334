"""Which layout to train, which format to store: a grid of candidates against a memory budget.

A grid of any size is walked in constant memory: only the best candidates and, for each context, the Pareto front of
(memory, local layers) are kept. A front has at most one candidate for each number of local layers.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Unpack

from kvcalc.architecture import Architecture, Cross, Full, Latent, Parallel, Sliding, is_local
from kvcalc.errors import InputError, RefusalError
from kvcalc.fitting import Memory, fits
from kvcalc.layout import Layout
from kvcalc.paper import Standing, evidence
from kvcalc.relayout import with_layout, with_window
from kvcalc.setup import Setup, SetupOptions, prepare
from kvcalc.units import MAX_TOKENS

#: Contexts for which a front is kept; a grid with more of them is streamed, or asked about in parts.
MOST_FRONTS = 1000
#: Candidates between two looks at the clock and at Ctrl-C.
_STRIDE = 256


@dataclass(frozen=True)
class Grid:
    """What is varied; every combination is a candidate.

    Attributes:
        ratios: layouts without a window, such as 5:1 and global; empty keeps the model's own order.
        windows: sliding windows; empty keeps the model's own.
        contexts: tokens in the cache of one sequence.
        engines: engines by name, each with its options.
        kv_cache_dtypes, weights_dtypes: storage formats; None is the engine's, and the model's, own.
    """

    ratios: Sequence[Layout]
    windows: Sequence[int]
    contexts: Sequence[int]
    engines: Sequence[tuple[str, Mapping[str, Any]]] = (("ideal", {}),)
    kv_cache_dtypes: Sequence[str | None] = (None,)
    weights_dtypes: Sequence[str | None] = (None,)

    @property
    def num_layouts(self) -> int:
        """Distinct layouts: a layout without local layers has no window to vary."""
        windowed = max(1, len(self.windows))
        return sum(1 if ratio.local == 0 else windowed for ratio in self.ratios) if self.ratios else windowed

    @property
    def size(self) -> int:
        """Candidates."""
        formats = len(self.engines) * len(self.kv_cache_dtypes) * len(self.weights_dtypes)
        return self.num_layouts * formats * len(self.contexts)

    def layouts(self) -> Iterator[Layout | None]:
        """The layouts in order; None is the model as it stands."""
        for ratio in self.ratios or (None,):
            if ratio is not None and (ratio.local == 0 or not self.windows):
                yield ratio
            elif not self.windows:
                yield None
            for window in self.windows if ratio is None or ratio.local else ():
                yield Layout(None, None, window) if ratio is None else Layout(ratio.local, ratio.global_, window)


@dataclass(frozen=True)
class Configuration:
    """All of a candidate but its context.

    Attributes:
        reference: the model with its layout, as any command takes it.
        setup: the model in its engine.
        engine_options: the options of the engine, as typed or chosen by the device.
        kv_cache_dtype, weights_dtype: as typed, or None.
        local_layers: attention layers that see a part of the context only.
        attention_layers: all attention layers.
    """

    reference: str
    setup: Setup
    engine_options: Mapping[str, Any]
    kv_cache_dtype: str | None
    weights_dtype: str | None
    local_layers: int
    attention_layers: int

    def longest_context(self, batch_size: int) -> int:
        """The longest context that the engine's options allow so many sequences; 0 if they do not run at a time."""
        engine = self.setup.engine
        limit, most = engine.context_limit_at(batch_size), engine.batch_limit
        if most is not None and batch_size > most:
            return 0
        return MAX_TOKENS if limit is None else limit

    @property
    def local_share(self) -> float:
        """Local layers among the attention layers."""
        return self.local_layers / self.attention_layers if self.attention_layers else 0.0

    @property
    def standing(self) -> Standing:
        """What the report measured of this layout."""
        return evidence(layout_of(self.setup.architecture))


class Candidate(NamedTuple):
    """One point of the grid; candidates sort by memory, then by local layers, then by their place in the grid."""

    memory_bytes: int
    local_layers: int
    number: int
    context: int
    kv_bytes: int
    configuration: Configuration


@dataclass
class Found:
    """What a search kept.

    Attributes:
        walked: candidates looked at.
        fitting: those that fit the budget.
        refused: those whose engine does not run the layout, and the first reason.
        best: the candidates with the least memory, in order.
        front: candidates that no other one beats in both memory and local layers, context by context.
        interrupted: the walk was stopped before its end.
    """

    walked: int = 0
    fitting: int = 0
    refused: int = 0
    reason: str = ""
    best: list[Candidate] = field(default_factory=list)
    front: list[Candidate] = field(default_factory=list)
    interrupted: bool = False


class Walk:
    """The candidates of a grid, one configuration after the other.

    Attributes:
        grid: what is varied.
        refused: candidates left out because the engine or the model refuses them, so far.
        reason: the first refusal.
    """

    def __init__(self, model: Architecture, reference: str, grid: Grid, **alike: Unpack[SetupOptions]) -> None:
        self.grid = grid
        self._model, self._reference, self._alike = model, reference, alike
        self.refused = 0
        self.reason = ""

    def configurations(self) -> Iterator[Configuration]:
        """Every combination of layout, engine and formats that is not refused.

        Raises:
            KVCalcError: an unknown engine, option or format.
        """
        grid = self.grid
        laid_out: dict[tuple[int | None, int | None], Architecture] = {}
        for layout in grid.layouts():
            reference = self._reference if layout is None else f"{self._reference}@{layout}"
            for engine, options in grid.engines:
                for kv_format in grid.kv_cache_dtypes:
                    try:
                        model = self._model if layout is None else self._laid_out(layout, laid_out)
                        setup = self._prepare(model, engine, options, kv_format)
                    except RefusalError as error:
                        self.refused += len(grid.weights_dtypes) * len(grid.contexts)
                        self.reason = self.reason or f"{reference}: {error.message}"
                        continue
                    local, attention = _attention_layers(setup.served)
                    for weights_format in grid.weights_dtypes:
                        stored = replace(setup, weights_dtype=weights_format)
                        yield Configuration(reference, stored, options, kv_format, weights_format, local, attention)

    def _laid_out(self, layout: Layout, known: dict[tuple[int | None, int | None], Architecture]) -> Architecture:
        """The model in a layout; the layers are laid out once for each ratio, and for each window slid alone."""
        ratio = layout.local, layout.global_
        if ratio not in known:
            known[ratio] = with_layout(self._model, layout)
        elif layout.window is not None:
            return with_window(known[ratio], layout.window)
        return known[ratio]

    def _prepare(self, model: Architecture, engine: str, options: Mapping[str, Any], kv_format: str | None) -> Setup:
        own: SetupOptions = {"engine": engine, "engine_options": options, "kv_cache_dtype": kv_format}
        return prepare(model, **(self._alike | own))


def search(
    walk: Walk,
    memory: Memory | None,
    *,
    batch_size: int = 1,
    top: int = 50,
    go_on: Callable[[int], bool] = lambda walked: True,
) -> Found:
    """Walk a grid; keep the ``top`` candidates with the least memory, and the Pareto front for each context.

    Args:
        memory: the memory of one device; None takes every candidate.
        go_on: is told now and then how many candidates were looked at; False stops the walk.

    Raises:
        KVCalcError: an unknown engine, option or format, or more than 1,000 contexts.
    """
    contexts = walk.grid.contexts
    if len(contexts) > MOST_FRONTS:
        reason = f"{len(contexts):,} contexts are more than the {MOST_FRONTS:,} that a front is kept for"
        raise InputError(reason, hint="--all --format csv streams any number")
    found = Found()
    fronts: dict[int, dict[int, Candidate]] = {context: {} for context in contexts}
    found.best = heapq.nsmallest(top, _fitting(walk, memory, batch_size, go_on, found, fronts))
    found.refused, found.reason = walk.refused, walk.reason
    found.front = [candidate for context in contexts for candidate in _undominated(fronts[context])]
    return found


def _fitting(
    walk: Walk,
    memory: Memory | None,
    batch_size: int,
    go_on: Callable[[int], bool],
    found: Found,
    fronts: Mapping[int, dict[int, Candidate]],
) -> Iterator[Candidate]:
    """The candidates that fit, counted, with the least of each number of local layers put to the fronts."""
    for configuration in walk.configurations():
        setup, local = configuration.setup, configuration.local_layers
        kv_bytes, weights_bytes = setup.plan.kv_bytes, setup.weights.bytes
        longest = configuration.longest_context(batch_size)
        for context in walk.grid.contexts:
            if found.walked % _STRIDE == 0 and not go_on(found.walked):
                found.interrupted = True
                return
            found.walked += 1
            if context > longest or (memory is not None and not fits(setup, memory, context, batch_size)):
                continue
            found.fitting += 1
            size = kv_bytes(context, batch_size)
            candidate = Candidate(weights_bytes + size, local, found.walked, context, size, configuration)
            front = fronts[context]
            if local not in front or candidate.memory_bytes < front[local].memory_bytes:
                front[local] = candidate
            yield candidate


def _undominated(front: Mapping[int, Candidate]) -> Iterator[Candidate]:
    """The candidates of one context, from the fewest local layers on, each with less memory than all before it."""
    least: int | None = None
    for local in sorted(front):
        if least is None or front[local].memory_bytes < least:
            least = front[local].memory_bytes
            yield front[local]


def _attention_layers(model: Architecture) -> tuple[int, int]:
    """Local attention layers, and all attention layers."""
    local = attention = 0
    for kind, count in model.caches:
        if isinstance(kind, Full | Sliding | Latent | Parallel | Cross) or is_local(kind):
            attention += count
            local += count * is_local(kind)
    return local, attention


def layout_of(model: Architecture) -> Layout:
    """The ``L:G`` order and the window that a model's layers follow; ``sw=N`` or less where they follow none.

    >>> from kvcalc.sources.resolve import load
    >>> str(layout_of(load("gemma-3-27b")))
    '5:1/sw=1024'
    """
    kinds = [model.layers[index].cache for index in model.order]
    slides = [is_local(kind) for kind in kinds]
    windows = {getattr(kind, "window", None) for kind in kinds if is_local(kind)}
    window = windows.pop() if len(windows) == 1 else None
    if not any(slides):
        return Layout(0, 1, None)
    local = slides.index(False) if False in slides else len(slides)
    # The global layers of a block end where the next local one begins.
    global_ = next((at for at, slide in enumerate(slides[local:]) if slide), len(slides) - local)
    layout = Layout(local, global_, window)
    follows = local > 0 and all(layout.is_local(index) == slide for index, slide in enumerate(slides))
    return layout if follows else Layout(None, None, window)
