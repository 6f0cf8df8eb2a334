"""transformers' offloaded caches: the host keeps the layers, the device those under way.

A layer that is updated stands on the device while the next one is fetched, and then goes back; the last layer fetches
the first again, with its new tokens. Recurrent states never leave, nor do sliding layers of a StaticCache.

Source: transformers 5.24.0 cache_utils.py:1558-1625 (Cache.prefetch, offload, update), :72-82 (a layer's).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from kvcalc.derivation import Derivation, Quantity
from kvcalc.engines.base import KVCache, LayerBytes
from kvcalc.engines.transformers.plan import SOURCE, Forward, LayerCost, Part, sum_of


class Neighbours(NamedTuple):
    """The parts of a layer under way, and of the one that is fetched meanwhile; the last layer fetches the first."""

    updated: tuple[Part, ...]
    fetched: tuple[Part, ...]
    is_last: bool


@dataclass(frozen=True, slots=True)
class OffloadedPlan:
    """What stays on the device, and the distinct neighbours among the layers that do not.

    Attributes:
        resident: kinds with parts that stay, and those parts alone.
        neighbours: pairs of layers that stand on the device at a time.
        offloaded: layers that the host keeps.
        static: a StaticCache, whose layers have their full length from the first update on.
        prefill_chunk: tokens of a forward of the prefill, or None for the whole prompt.
        notes: what a reader must know.
    """

    resident: tuple[LayerCost, ...]
    neighbours: tuple[Neighbours, ...]
    offloaded: int
    static: bool
    prefill_chunk: int | None
    notes: tuple[str, ...]

    def kv_bytes(self, context: int, batch_size: int) -> int:
        """What stays, and the largest two neighbours of any forward."""
        stays = sum(cost.count * cost.bytes_after(Forward(0, context), batch_size) for cost in self.resident)
        return stays + max([self._largest(forward, batch_size) for forward in self._forwards(context)])

    def _forwards(self, context: int) -> Iterator[Forward]:
        """A decode step, and the prefill's last chunks: all of whose tokens a sliding layer keeps for a moment."""
        if self.static:
            yield Forward(0, context)
            return
        yield Forward(context - 1, 1)
        chunk = self.prefill_chunk or context
        before = (context - 1) // chunk * chunk
        yield Forward(before, context - before)
        if before:
            yield Forward(before - chunk, chunk)

    def _largest(self, forward: Forward, batch_size: int) -> int:
        """The most that two neighbours take on the device during a forward."""
        pairs = [0]
        for pair in self.neighbours:
            fetched = Forward(0, forward.past + (forward.tokens if pair.is_last or self.static else 0))
            size = sum(part.slot_bytes * part.count(forward, batch_size) for part in pair.updated)
            pairs.append(size + sum(part.slot_bytes * part.shown(fetched, batch_size) for part in pair.fetched))
        return max(pairs)

    def allocate(self, context: int, batch_size: int) -> KVCache:
        """One row a kind of what stays, and one of the layers under way."""
        rows = [cost.row(Forward(0, context), batch_size) for cost in self.resident]
        stays = sum(row.bytes for row in rows)
        total = self.kv_bytes(context, batch_size)
        if self.neighbours:
            label = f"of {self.offloaded} offloaded: one under way, one fetched"
            count = min(2, self.offloaded)
            rows.append(LayerBytes("full", label, count, None, batch_size * context, total - stays))
        steady = stays + self._largest(next(self._forwards(context)), batch_size)
        why = f"the host keeps {self.offloaded} layers, the device two at a time"
        return KVCache(total, steady, tuple(rows), why=why, notes=self.notes)

    def required_kv_memory(self, context: int, batch_size: int) -> int:
        """Exactly the bytes."""
        return self.kv_bytes(context, batch_size)

    def report(self, context: int, batch_size: int, kv_memory: int) -> dict[str, Any]:
        """Of a cache that is on two devices at once transformers shows no sum."""
        return {}

    def explain(self, context: int, batch_size: int) -> tuple[Quantity, ...]:
        """What stays, and the largest two neighbours of each forward that may be the fullest."""
        work, names = Derivation(context, batch_size), []
        for number, cost in enumerate(self.resident, start=1):
            names.append(f"layers_{number}")
            formula = f"{cost.count} * ({sum_of(cost.parts, '0', 'T')})"
            work.let(names[-1], f"{cost.count} that stay on the device", formula, "bytes", SOURCE)
        if self.neighbours:
            pairs = [self._pair(*forward) for forward in self._shown(work)]
            names.append(f"layers_{len(self.resident) + 1}")
            work.let(names[-1], "a layer under way and the one fetched", f"max({', '.join(pairs)}, 0)", "bytes", SOURCE)
        work.let("kv_bytes", "KV cache on the device", " + ".join(names) or "0", "bytes", SOURCE)
        return tuple(work.quantities)

    def _shown(self, work: Derivation) -> list[tuple[str, str]]:
        """:meth:`_forwards` as symbols: tokens before, and tokens in each."""
        if self.static:
            return [("0", "T")]
        work.let("C", "tokens of a chunk", str(self.prefill_chunk or "T"), "tokens", "prefill_chunk")
        work.let("before", "tokens before the last chunk", "(T - 1) // C * C", "tokens")
        work.let("earlier", "tokens before the chunk before it", "max(0, before - C)", "tokens")
        return [("(T - 1)", "1"), ("before", "(T - before)"), ("earlier", "(before - earlier)")]

    def _pair(self, past: str, tokens: str) -> str:
        pairs = []
        for pair in self.neighbours:
            fetched = f"({past} + {tokens})" if pair.is_last or self.static else past
            parts = [part.shown_formula(fetched) for part in pair.fetched]
            pairs.append(" + ".join([sum_of(pair.updated, past, tokens), *parts]))
        return ", ".join(dict.fromkeys(pairs))


def neighbours(layers: list[tuple[Part, ...]]) -> tuple[Neighbours, ...]:
    """The distinct neighbours among the offloaded layers in their order; a layer alone has none."""
    if len(layers) < 2:
        return tuple(Neighbours(parts, (), True) for parts in layers)
    pairs = [Neighbours(one, next_one, False) for one, next_one in pairwise(layers)]
    return tuple(dict.fromkeys([*pairs, Neighbours(layers[-1], layers[0], True)]))
