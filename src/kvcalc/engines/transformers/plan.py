"""transformers: what a cache holds after a forward, and after which forward of a prefill it holds most.

A forward of ``q`` tokens arrives on ``P`` cached ones, of each of ``B`` sequences; a layer is a sum of parts, each of
so many slots of so many bytes. A sliding layer of a DynamicCache, for one, has ``min(P, W - 1) + q`` slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, lcm
from typing import Any, Literal, NamedTuple, assert_never

from kvcalc.architecture import LayerKind, kind_label
from kvcalc.derivation import Derivation, Quantity
from kvcalc.engines.base import KVCache, LayerBytes
from kvcalc.units import ceil_div

SOURCE = "transformers 5.24.0 cache_utils.py"

#: What a part has a slot for: each sequence; each token; those of a window, as views or in a static buffer; those that
#: wait to be compressed, as views; each compressed entry; the last entry; groups of quantised tokens; quantised tokens
#: that are a group each; tokens that are not quantised yet; the layer itself, whatever the batch.
Slots = Literal[
    "fixed", "tokens", "window", "buffer", "waiting", "entries", "closed", "groups", "scales", "residual", "layer"
]


class Forward(NamedTuple):
    """One forward: tokens cached before it, tokens in it, and how many a quantised cache keeps as they are after it."""

    past: int
    tokens: int
    residual: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """A part of what one layer keeps.

    Attributes:
        slots: what it has a slot for.
        slot_bytes: bytes of one slot.
        size: tokens of the window or of a compressed entry; quantised groups of one token.
        packed: groups that share the bytes of one, the last ones with fewer; of scales the slots that a lone group has.
    """

    slots: Slots
    slot_bytes: int
    size: int = 1
    packed: int = 1

    def count(self, forward: Forward, batch_size: int) -> int:
        """The slots of a batch after a forward."""
        past, tokens, residual = forward
        size = self.size
        match self.slots:
            case "tokens":
                return batch_size * (past + tokens)
            case "window":
                return batch_size * ((past if past < size else size - 1) + tokens)
            case "fixed":
                return batch_size
            case "buffer":
                return batch_size * min(past + tokens, size)
            case "waiting":
                return batch_size * (past % size + tokens)
            case "entries":
                return batch_size * ((past + tokens) // size)
            case "closed":
                return batch_size * min(1, (past + tokens) // size)
            case "groups":
                return ceil_div(batch_size * (past + tokens - residual) * size, self.packed)
            case "scales":  # quanto gives a tensor that is one group alone a scale an element
                groups = batch_size * (past + tokens - residual)
                return groups if groups > 1 else self.packed
            case "residual":
                return batch_size * residual
            case "layer":
                return 1
        assert_never(self.slots)

    def shown(self, forward: Forward, batch_size: int) -> int:
        """The slots that the cached tensors' own shapes show, of views fewer than they keep alive."""
        cached = forward.past + forward.tokens
        match self.slots:
            case "window":
                return batch_size * min(cached, self.size - 1)
            case "waiting":
                return batch_size * (cached % self.size)
            case _:
                return self.count(forward, batch_size)

    def formula(self, past: str = "P", tokens: str = "q") -> str:
        """:meth:`count` times the bytes of a slot, over ``B``, ``r`` and the forward's two symbols."""
        size = self.size
        quantized = f"B * ({past} + {tokens} - r)"
        count = {
            "fixed": "B",
            "tokens": f"B * ({past} + {tokens})",
            "window": f"B * (min({past}, {size - 1}) + {tokens})",
            "buffer": f"B * min({past} + {tokens}, {size})",
            "waiting": f"B * ({past} - {past} // {size} * {size} + {tokens})",
            "entries": f"B * (({past} + {tokens}) // {size})",
            "closed": f"B * min(1, ({past} + {tokens}) // {size})",
            "groups": f"ceil_div({quantized} * {size}, {self.packed})",
            "scales": f"({quantized} if {quantized} > 1 else {self.packed})",
            "residual": "B * r",
            "layer": "1",
        }[self.slots]
        return f"{self.slot_bytes} * {count}"

    def shown_formula(self, cached: str) -> str:
        """:meth:`shown` of that many cached tokens, times the bytes of a slot."""
        if self.slots == "window":
            return f"{self.slot_bytes} * B * min({cached}, {self.size - 1})"
        return self.formula("0", cached)


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What each of the layers of one kind keeps.

    Attributes:
        kind: the layer kind.
        count: layers of this kind.
        parts: what a layer keeps; the first counts the row's tokens, unless it is fixed.
        window: tokens beyond which such a layer keeps no more, or None.
        encoder_tokens: length of a cross-attention cache.
    """

    kind: LayerKind
    count: int
    parts: tuple[Part, ...] = ()
    window: int | None = None
    encoder_tokens: int = 0

    def bytes_after(self, forward: Forward, batch_size: int) -> int:
        """Bytes of one layer after a forward."""
        return sum(part.slot_bytes * part.count(forward, batch_size) for part in self.parts)

    def row(self, forward: Forward, batch_size: int) -> LayerBytes:
        """All layers of the kind."""
        first = self.parts[0] if self.parts else Part("fixed", 0)
        tokens = batch_size * self.encoder_tokens
        if first.slots != "fixed":  # groups are of all tokens, quantised or not
            counted = Part("tokens", 0) if first.slots == "groups" else first
            tokens = counted.count(forward, batch_size)
        total = self.count * self.bytes_after(forward, batch_size)
        return LayerBytes(self.kind.kind, kind_label(self.kind), self.count, self.window, tokens, total)


@dataclass(frozen=True, slots=True)
class TransformersPlan:
    """The costs of the distinct kinds, and all parts of one sort added up.

    Attributes:
        costs: one a layer kind.
        parts: the parts of all layers, each sort once.
        static: a StaticCache, allocated once.
        prefill_chunk: tokens of a forward of the prefill, or None for the whole prompt.
        residual_length: tokens at which a quantised cache quantises what it keeps as it is; 0: it keeps none so.
        outside_bytes: states that live outside the cache.
        notes: what a reader must know.
    """

    costs: tuple[LayerCost, ...]
    parts: tuple[Part, ...]
    static: bool
    prefill_chunk: int | None
    residual_length: int
    outside_bytes: int
    notes: tuple[str, ...]

    def kv_bytes(self, context: int, batch_size: int) -> int:
        """The peak over the forwards of the prefill; a static cache is allocated once."""
        return max([self._held(forward, batch_size) for forward in self._forwards(context)])

    def _held(self, forward: Forward, batch_size: int) -> int:
        """Bytes after a forward."""
        total = 0
        for part in self.parts:
            total += part.slot_bytes * part.count(forward, batch_size)
        return total

    def _forwards(self, context: int) -> list[Forward]:
        """The forwards one of which is the fullest: the last, and the whole chunks of one cycle before it.

        What waits to be compressed, or to be quantised, repeats with that cycle while all else grows. After a prefill
        that was quantised whole, the first token that waits makes the cache larger; and where the first token is
        quantised alone, its many scales may outweigh what comes after them.
        """
        chunk = self.prefill_chunk
        step = [self._forward(context - 1, 1)] if self.residual_length and context > 1 else []
        if self.residual_length and chunk == 1:
            step.append(self._forward(min(self.residual_length, context) - 1, 1))
        if self.static or chunk is None or chunk >= context:
            return [*step, Forward(0, context)]
        whole, rest = divmod(context, chunk)
        last = [self._forward(whole * chunk, rest)] if rest else []
        starts = range(whole - 1, max(-1, whole - 1 - self._cycle(chunk)), -1)
        return [*step, *last, *(self._forward(at * chunk, chunk) for at in starts)]

    def _cycle(self, chunk: int) -> int:
        """Chunks after which as many tokens wait again."""
        waits = [part.size // gcd(part.size, chunk) for part in self.parts if part.slots == "waiting"]
        return lcm(ceil_div(self.residual_length or 1, chunk), *waits)

    def _forward(self, past: int, tokens: int) -> Forward:
        """A forward on what came before it in chunks."""
        residual = self._residual(past) + tokens
        return Forward(past, tokens, residual if past and residual < self.residual_length else 0)

    def _residual(self, fed: int) -> int:
        """Tokens that wait to be quantised once ``fed`` were fed in chunks; those of the first never do."""
        chunks, rest = divmod(fed, self.prefill_chunk or fed or 1)
        if not chunks or not self.residual_length:
            return 0
        chunk = (fed - rest) // chunks
        waiting = (chunks - 1) % ceil_div(self.residual_length, chunk) * chunk + rest
        return waiting if waiting < self.residual_length else 0

    def _fullest(self, context: int, batch_size: int) -> Forward:
        """The fullest forward of the prefill; of equal ones the last."""
        return max(self._forwards(context), key=lambda forward: self._held(forward, batch_size))

    def allocate(self, context: int, batch_size: int) -> KVCache:
        """One row a layer kind, at the fullest forward of the prefill."""
        forward = self._fullest(context, batch_size)
        rows = tuple(cost.row(forward, batch_size) for cost in self.costs)
        total = sum(row.bytes for row in rows)
        steady = total if self.static else self._held(self._forward(context - 1, 1), batch_size)
        notes = list(self.notes)
        if steady < total and self._keeps_views:
            notes.append(
                f"views keep all {forward.tokens:,} tokens of a prefill's forward alive on sliding layers until the "
                "next forward; steady_bytes is what one decode step leaves"
            )
        if self.outside_bytes:
            notes.append(
                f"the recurrent and convolution states live in the layers, outside the cache: "
                f"{batch_size * self.outside_bytes:,} bytes more"
            )
        return KVCache(total, steady, rows, why=self._why(context, forward), notes=tuple(notes))

    @property
    def _keeps_views(self) -> bool:
        return any(part.slots in ("window", "waiting") for part in self.parts)

    def _why(self, context: int, forward: Forward) -> str:
        if self.static:
            return f"allocated for {context:,} tokens; sliding layers min(context, window)"
        if self.residual_length:
            quantized = forward.past + forward.tokens - forward.residual
            return f"{quantized:,} tokens quantised, {forward.residual:,} as they are"
        if not self._keeps_views:
            return f"every layer keeps {context:,} tokens"
        if not forward.past:
            return f"one forward of {forward.tokens:,} tokens stays alive as views"
        return f"a chunk of {forward.tokens:,} tokens stays alive behind window - 1 tokens"

    def logical_bytes(self, context: int, batch_size: int) -> int:
        """What the cached tensors' own shapes add up to: a sliding layer shows min(context, window - 1) tokens.

        The memory is ``allocate(...).bytes``; this is the figure that summing ``numel`` gives.
        """
        last = self._forwards(context)[0]
        return sum(part.slot_bytes * part.shown(last, batch_size) for part in self.parts)

    def required_kv_memory(self, context: int, batch_size: int) -> int:
        """Exactly the bytes."""
        return self.kv_bytes(context, batch_size)

    def report(self, context: int, batch_size: int, kv_memory: int) -> dict[str, Any]:
        """What summing the tensors' shapes gives (``logical_bytes``) beside what they hold (``storage_bytes``)."""
        return {
            "logical_bytes": self.logical_bytes(context, batch_size),
            "storage_bytes": self.kv_bytes(context, batch_size),
        }

    def explain(self, context: int, batch_size: int) -> tuple[Quantity, ...]:
        """The fullest forward, one sum a layer kind, and their sum."""
        work = Derivation(context, batch_size)
        self._work_forward(work, self._fullest(context, batch_size))
        names = []
        for number, cost in enumerate(self.costs, start=1):
            if cost.parts:
                names.append(f"layers_{number}")
                meaning = f"{cost.count} {kind_label(cost.kind)}"
                work.let(names[-1], meaning, f"{cost.count} * ({sum_of(cost.parts)})", "bytes", SOURCE)
        work.let("kv_bytes", "KV cache", " + ".join(names) or "0", "bytes", SOURCE)
        return tuple(work.quantities)

    def _work_forward(self, work: Derivation, fullest: Forward) -> None:
        """``P`` and ``q`` of the fullest forward: with chunks the last one, or the whole one before it."""
        past, tokens, when = "0", "T", "the one forward that the cache is made for" if self.static else _ONE
        chunk = None if self.static else self.prefill_chunk
        searched = chunk is not None and (self._cycle(chunk) > 1 or self.residual_length > 0)
        if self.residual_length:
            waiting = str(fullest.residual) if searched else "min(1, T - 1)" if self.residual_length > 1 else "0"
            work.let("r", "tokens that are not quantised yet", waiting, "tokens")
        if searched:  # only a search along the chunks finds it
            past, tokens, when = str(fullest.past), str(fullest.tokens), "the fullest chunk"
        elif chunk is not None:
            work.let("C", "tokens of a chunk", str(chunk), "tokens", "prefill_chunk")
            work.let("before", "tokens before the last chunk", "(T - 1) // C * C", "tokens")
            last, whole = sum_of(self.parts, "before", "(T - before)"), sum_of(self.parts, "(before - C)", "C")
            work.let("last", "held after the last chunk", last, "bytes", SOURCE)
            work.let("whole", "and after the whole chunk before it", f"{whole} if before else 0", "bytes", SOURCE)
            past, tokens = "before if last >= whole else before - C", "T - before if last >= whole else C"
            when = "the fullest chunk"
        work.let("P", f"tokens cached before {when}", past, "tokens")
        work.let("q", f"tokens in {when}", tokens, "tokens")


_ONE = "the prefill's one forward"


def sum_of(parts: tuple[Part, ...], past: str = "P", tokens: str = "q") -> str:
    """Bytes of some parts after a forward."""
    return " + ".join(part.formula(past, tokens) for part in parts) or "0"


def summed(costs: tuple[LayerCost, ...]) -> tuple[Part, ...]:
    """The parts of all layers, each sort once."""
    totals: dict[tuple[Slots, int, int], int] = {}
    for cost in costs:
        for part in cost.parts:
            sort = (part.slots, part.size, part.packed)
            totals[sort] = totals.get(sort, 0) + cost.count * part.slot_bytes
    return tuple(Part(slots, slot_bytes, size, packed) for (slots, size, packed), slot_bytes in totals.items())
