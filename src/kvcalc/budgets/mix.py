"""Sequences of several contexts at a time, such as 48 of 4k tokens beside 16 of 32k, in one engine.

In an engine that gives each sequence the room it needs (paged pools, and the report's accounting), a part of the mix
adds what so many sequences add to an engine that runs already: the cache of two sequences more, less that of two. What
an engine holds once, whatever the number of sequences (the steps under way, a spare page), is then counted once. An
engine that gives every sequence the same room holds all of them at the longest context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from kvcalc.budgets.budget import Part
from kvcalc.engines.base import KVCache, LayerBytes
from kvcalc.footprints import Footprint, footprint_of
from kvcalc.setup import Setup

#: Sequences that run before a part is added: with one alone, some engines reserve for the whole step.
_RUNNING = 2


def whole(parts: Sequence[Part]) -> Part:
    """All sequences at the longest context.

    >>> print(whole([Part(48, 4096), Part(16, 32768)]))
    64 x 32k
    """
    return Part(sum(part.batch_size for part in parts), max(part.context for part in parts))


def kv_bytes(setup: Setup, parts: Sequence[Part]) -> int:
    """The KV cache of the mix."""
    return _sum(setup, parts, setup.plan.kv_bytes)


def required_kv_memory(setup: Setup, parts: Sequence[Part]) -> int:
    """The smallest pool that serves the mix."""
    return _sum(setup, parts, setup.plan.required_kv_memory)


def footprint(setup: Setup, parts: Sequence[Part]) -> Footprint:
    """What the mix takes; the rows of the cache hold all parts, the context is the longest."""
    all_at_once = whole(parts)
    made = footprint_of(setup, all_at_once.context, all_at_once.batch_size)
    if len(parts) == 1 or setup.engine.pads_to_longest:
        return made
    first, *added = _largest_first(parts, setup.plan.kv_bytes)
    cache = setup.plan.allocate(first.context, first.batch_size)
    for part in added:
        more = setup.plan.allocate(part.context, part.batch_size + _RUNNING)
        cache = _plus(cache, more, setup.plan.allocate(part.context, _RUNNING))
    ideal = sum(setup.ideal_plan.kv_bytes(part.context, part.batch_size) for part in parts)
    return replace(made, kv_cache=replace(cache, ideal_bytes=ideal))


def _sum(setup: Setup, parts: Sequence[Part], size: Callable[[int, int], int]) -> int:
    if len(parts) == 1 or setup.engine.pads_to_longest:
        part = whole(parts)
        return size(part.context, part.batch_size)
    first, *added = _largest_first(parts, size)
    return size(first.context, first.batch_size) + sum(_added(part, size) for part in added)


def _largest_first(parts: Sequence[Part], size: Callable[[int, int], int]) -> list[Part]:
    """The parts; first the one that, with what an engine holds once, makes the mix largest."""

    def held_once(part: Part) -> int:
        return size(part.context, part.batch_size) - _added(part, size)

    return sorted(parts, key=held_once, reverse=True)


def _added(part: Part, size: Callable[[int, int], int]) -> int:
    return size(part.context, part.batch_size + _RUNNING) - size(part.context, _RUNNING)


def _plus(cache: KVCache, more: KVCache, less: KVCache) -> KVCache:
    """A cache with the difference of two others, row by row."""
    rows = {_key(row): row for row in cache.layers}
    for sign, other in ((1, more), (-1, less)):
        for row in other.layers:
            held = rows.setdefault(_key(row), replace(row, tokens=0, bytes=0))
            rows[_key(row)] = replace(held, tokens=held.tokens + sign * row.tokens, bytes=held.bytes + sign * row.bytes)
    return replace(
        cache,
        bytes=cache.bytes + more.bytes - less.bytes,
        steady_bytes=cache.steady_bytes + more.steady_bytes - less.steady_bytes,
        layers=tuple(rows.values()),
        padding_bytes=cache.padding_bytes + more.padding_bytes - less.padding_bytes,
        draft_bytes=cache.draft_bytes + more.draft_bytes - less.draft_bytes,
        notes=tuple(dict.fromkeys((*cache.notes, *more.notes))),
    )


def _key(row: LayerBytes) -> tuple[str, str, int, int | None]:
    return row.kind, row.label, row.count, row.window
