"""What a model's caches hold at the largest moment of a generation, and the work that shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvcalc.architecture import LayerKind, kind_label
from kvcalc.derivation import Derivation, Quantity
from kvcalc.engines.base import KVCache, LayerBytes
from kvcalc.engines.mlx_lm.slots import STEP, Growth, Moment, grown
from kvcalc.units import round_up

_SOURCE = "mlx-lm 0.32.2 models/cache.py"


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What the layers of one kind keep of one sequence.

    Attributes:
        kind: the layer kind.
        count: layers of this kind.
        token_bytes: bytes of one slot in one layer.
        quantized_token_bytes: the same once quantised (``kv_bits``); equal where the layer stays as it is.
        window: size of a RotatingKVCache, or None.
        chunk: size of a ChunkedKVCache, or None.
        fixed_bytes: bytes of states, whatever the context.
    """

    kind: LayerKind
    count: int
    token_bytes: int = 0
    quantized_token_bytes: int = 0
    window: int | None = None
    chunk: int | None = None
    fixed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class MlxLmPlan:
    """The costs of the distinct kinds, and the growth pattern of the prefill's chunks."""

    costs: tuple[LayerCost, ...]
    growth: Growth
    single_tokens: int
    quantized_start: int | None
    fixed_bytes: int
    full_token_bytes: int
    full_quantized_bytes: int
    bounded: tuple[LayerCost, ...]
    windows: tuple[tuple[int, int], ...]
    is_simple: bool
    notes: tuple[str, ...]

    def kv_bytes(self, context: int, batch_size: int) -> int:
        """The largest after any prefill chunk or decode step."""
        if self.is_simple:
            return batch_size * self._simple_bytes(context)
        return batch_size * max([self._bytes_at(moment) for moment in self._moments(context)])

    def _simple_bytes(self, context: int) -> int:
        """The largest of `_moments` where layers are full or rotating and of one format: the same sums, faster."""
        chunk = self.growth.chunk
        fed = context - 1
        rest = fed % chunk
        past = fed - rest
        slots = past if chunk % STEP == 0 else self.growth.after(past // chunk)
        full, windows = self.full_quantized_bytes if self.quantized_start == 0 else self.full_token_bytes, self.windows
        largest = 0
        if windows and past:
            largest = full * slots
            for window, token_bytes in windows:
                largest += token_bytes * ((past - chunk if past - chunk < window else window - 1) + chunk)
        if rest:
            slots = grown(past, slots, rest)
            if windows and rest > 1:
                total = full * slots
                for window, token_bytes in windows:
                    total += token_bytes * ((past if past < window else window - 1) + rest)
                largest = max(largest, total)
        missing = fed + self.single_tokens - slots
        total = full * (slots + round_up(missing, STEP) if missing > 0 else slots)
        if windows:
            end = Moment(past // chunk, rest, self.single_tokens)
            for window, token_bytes in windows:
                total += token_bytes * (window if past > window else self.rotating_slots(window, end))
        return self.fixed_bytes + (total if total > largest else largest)

    def _end(self, context: int) -> Moment:
        chunks, rest = divmod(context - 1, self.growth.chunk)
        return Moment(chunks, rest, self.single_tokens)

    def _moments(self, context: int) -> list[Moment]:
        """The moments one of which is the largest.

        Full layers never shrink. A rotating buffer grows over the full chunks, may be smaller after the shorter last
        one, and drops to its window with the first decode step, after which nothing shrinks. So it is enough to look
        after the last full chunk, after the prefill and at the end; and, for what else shrinks once, just before.
        """
        chunk = self.growth.chunk
        end = self._end(context)
        chunks, rest, decoded = end
        moments = [end]
        if chunks:
            moments.append(Moment(chunks, 0, 0))
        if rest:
            moments.append(Moment(chunks, rest, 0))
        before = self.quantized_start
        if before and before <= context - 1 + decoded:
            moments += self._last_boundary_up_to(before - 1, context)
        for cost in self.bounded:
            if cost.chunk is not None:
                # A ChunkedKVCache is first trimmed by the call that finds more than `chunk` tokens in it.
                if chunk % STEP and cost.chunk // chunk < chunks:  # else the buffer is no larger than chunk + n before
                    moments.append(Moment(cost.chunk // chunk + 1, 0, 0))
                steps = cost.chunk + 1 - (context - 1)
                if 0 < steps < decoded:
                    moments.append(Moment(chunks, rest, steps))
        return moments

    def _last_boundary_up_to(self, tokens: int, context: int) -> list[Moment]:
        """The last chunk or decode step that ends with at most ``tokens`` tokens in the cache."""
        end = self._end(context)
        if tokens >= context - 1:
            return [Moment(end.chunks, end.rest, tokens - (context - 1))]
        chunks = tokens // self.growth.chunk
        return [Moment(chunks, 0, 0)] if chunks else []

    def _bytes_at(self, moment: Moment) -> int:
        chunks, rest, decoded = moment
        quantized = self.quantized_start is not None
        if self.quantized_start:
            quantized = chunks * self.growth.chunk + rest + decoded >= self.quantized_start
        total = self.fixed_bytes
        full = self.full_quantized_bytes if quantized else self.full_token_bytes
        if full:
            total += full * self.full_slots(moment)
        for cost in self.bounded:
            total += cost.count * cost.token_bytes * self._slots(cost, moment)
        return total

    def _slots(self, cost: LayerCost, moment: Moment) -> int:
        if not cost.token_bytes:
            return 0
        if cost.window is not None:
            return self.rotating_slots(cost.window, moment)
        if cost.chunk is not None:
            return self.chunked_slots(cost.chunk, moment)
        return self.full_slots(moment)

    def full_slots(self, moment: Moment) -> int:
        """Slots of a KVCache."""
        chunks, rest, decoded = moment
        offset = chunks * self.growth.chunk
        slots = offset if self.growth.chunk % STEP == 0 else self.growth.after(chunks)
        if rest:
            slots = grown(offset, slots, rest)
            offset += rest
        missing = offset + decoded - slots
        return slots + round_up(missing, STEP) if missing > 0 else slots

    def rotating_slots(self, window: int, moment: Moment) -> int:
        """Slots of a RotatingKVCache: chunks are appended to at most window - 1 slots, single tokens rotate."""
        chunks, rest, decoded = moment
        chunk = self.growth.chunk
        past = chunks * chunk
        slots = 0
        if chunk == 1:  # a chunk of one token takes the decode path
            decoded += chunks
        elif chunks:
            slots = (past - chunk if past - chunk < window else window - 1) + chunk
        if rest == 1:
            decoded += 1
        elif rest:
            slots = (past if past < window else window - 1) + rest
        return min(window, slots + round_up(decoded, STEP)) if decoded else slots

    def chunked_slots(self, chunk_size: int, moment: Moment) -> int:
        """Slots of a ChunkedKVCache: a KVCache that each call first trims to ``chunk_size``."""
        chunks, rest, decoded = moment
        chunk = self.growth.chunk
        if decoded:
            before, arriving = chunks * chunk + rest + decoded - 1, 1
        elif rest:
            before, arriving = chunks * chunk, rest
        else:
            before, arriving = (chunks - 1) * chunk, chunk
        return self.full_slots(moment) if before <= chunk_size else chunk_size + round_up(arriving, STEP)

    def allocate(self, context: int, batch_size: int) -> KVCache:
        """One row a layer kind, at the largest moment."""
        peak = max(self._moments(context), key=self._bytes_at)
        rows = []
        for cost in self.costs:
            slots = self._slots(cost, peak)
            layer_bytes = cost.fixed_bytes + self._slot_bytes(cost, peak) * slots
            window = cost.window if cost.chunk is None else cost.chunk
            rows.append(
                LayerBytes(
                    cost.kind.kind,
                    kind_label(cost.kind),
                    cost.count,
                    window,
                    batch_size * slots,
                    batch_size * cost.count * layer_bytes,
                )
            )
        total = sum(row.bytes for row in rows)
        steady = batch_size * self._bytes_at(self._end(context))
        return KVCache(total, steady, tuple(rows), why=self._why(peak), notes=self.notes)

    def _slot_bytes(self, cost: LayerCost, moment: Moment) -> int:
        tokens = moment.chunks * self.growth.chunk + moment.rest + moment.decoded
        quantized = self.quantized_start is not None and tokens >= self.quantized_start
        return cost.quantized_token_bytes if quantized else cost.token_bytes

    def _why(self, peak: Moment) -> str:
        generated = self.single_tokens - 1
        until = f"; counted up to {generated:,} generated token{'s' * (generated != 1)}"
        if not self.bounded:
            return "buffers grow by 256 slots" + until
        if peak.decoded:
            return "rotating buffers of the window, others grow by 256 slots" + until
        arriving = peak.rest or self.growth.chunk
        return f"a prefill chunk of {arriving:,} tokens stands behind window - 1 slots" + until

    def required_kv_memory(self, context: int, batch_size: int) -> int:
        """Exactly the bytes."""
        return self.kv_bytes(context, batch_size)

    def report(self, context: int, batch_size: int, kv_memory: int) -> dict[str, Any]:
        """MLX-LM names no figures of its own."""
        return {}

    def explain(self, context: int, batch_size: int) -> tuple[Quantity, ...]:
        """The slots of each kind at every moment that may be the largest, the bytes then, and the largest of them."""
        work = Derivation(context, batch_size)
        work.let("C", "tokens of a prefill chunk", str(self.growth.chunk), "tokens", "prefill_step_size")
        work.let("fed", "prompt tokens that are fed in chunks", "T - 1", "tokens")
        work.let("whole", "of them in whole chunks", "fed // C * C", "tokens")
        work.let("rest", "tokens of the shorter chunk after those", "fed - whole", "tokens")
        alone = "tokens fed alone: the last of the prompt and generated ones"
        work.let("D", alone, str(self.single_tokens), "tokens", "decode_tokens")
        moments = self._shown_moments(context)
        kept = [(number, cost) for number, cost in enumerate(self.costs, start=1) if cost.token_bytes]
        for moment in moments:
            for number, cost in kept:
                label = f"slots of {cost.count} {kind_label(cost.kind)}, {moment.when}"
                work.let(f"{moment.name}_{number}", label, self._slots_formula(cost, moment), "slots", _SOURCE)
            sizes = [f"{cost.count} * {self._slot_formula(cost, moment)} * {moment.name}_{at}" for at, cost in kept]
            formula = " + ".join(sizes) or "0"
            work.let(f"{moment.name}_bytes", f"one sequence, {moment.when}", formula, "bytes", _SOURCE)
        chosen = _chosen(moments)
        names = []
        for number, cost in enumerate(self.costs, start=1):
            terms = [str(cost.fixed_bytes)] if cost.fixed_bytes else []
            if cost.token_bytes:
                slots = chosen([f"{moment.name}_{number}" for moment in moments])
                work.let(f"slots_{number}", "slots at the largest of these moments", slots, "slots")
                terms.append(f"{chosen([self._slot_formula(cost, moment) for moment in moments])} * slots_{number}")
            if terms:
                names.append(f"layers_{number}")
                formula = f"{cost.count} * B * ({' + '.join(terms)})"
                work.let(names[-1], f"{cost.count} {kind_label(cost.kind)}", formula, "bytes", _SOURCE)
        work.let("kv_bytes", "KV cache", " + ".join(names) or "0", "bytes", _SOURCE)
        return tuple(work.quantities)

    def _shown_moments(self, context: int) -> list[_Shown]:
        """Every moment of any question, then those of this one alone (where quantising begins, where a chunk is cut).

        Full layers never shrink, so without others the end is the largest.
        """
        end = self._end(context)
        shown = [_Shown("end", "at the end", end, "whole", "rest", "D")]
        if not self.bounded and not self.quantized_start:
            return shown
        shown.append(_Shown("chunk", "after the last whole chunk", Moment(end.chunks, 0, 0), "whole", "0", "0"))
        shown.append(_Shown("prefill", "after the prefill", Moment(end.chunks, end.rest, 0), "whole", "rest", "0"))
        usual = {each.at for each in shown}
        for moment in self._moments(context):
            if moment not in usual:
                fed = (str(moment.chunks * self.growth.chunk), str(moment.rest), str(moment.decoded))
                shown.append(_Shown(f"then{len(shown)}", f"after {' + '.join(fed)} tokens", moment, *fed))
        return shown

    def _slot_formula(self, cost: LayerCost, moment: _Shown) -> str:
        """Bytes of one slot of one layer, quantised by then or not."""
        if self.quantized_start is None or cost.token_bytes == cost.quantized_token_bytes:
            return str(cost.token_bytes)
        if not self.quantized_start:
            return str(cost.quantized_token_bytes)
        cached = f"{moment.whole} + {moment.rest} + {moment.decoded} >= {self.quantized_start}"
        return f"({cost.quantized_token_bytes} if {cached} else {cost.token_bytes})"

    def _slots_formula(self, cost: LayerCost, moment: _Shown) -> str:
        if cost.window is not None:
            return self._rotating_formula(cost.window, moment)
        return self._full_formula(moment) if cost.chunk is None else self._chunked_formula(cost.chunk, moment)

    def _full_formula(self, moment: _Shown) -> str:
        """:meth:`full_slots`; chunks that are no multiple of 256 leave a number that only their history explains."""
        whole, rest, decoded = moment.whole, moment.rest, moment.decoded
        slots = f"{whole} + round_up({rest}, {STEP})"
        if self.growth.chunk % STEP:
            slots = str(self.full_slots(moment.at._replace(decoded=0)))
        if decoded == "0":
            return slots
        return f"{slots} + round_up(max(0, {whole} + {rest} + {decoded} - ({slots})), {STEP})"

    def _rotating_formula(self, window: int, moment: _Shown) -> str:
        """:meth:`rotating_slots`."""
        whole, rest, decoded = moment.whole, moment.rest, moment.decoded
        if self.growth.chunk == 1:  # every token rotates
            return f"min({window}, round_up({whole} + {decoded}, {STEP}))"
        chunks = f"(min({whole} - C, {window - 1}) + C if {whole} else 0)"
        if rest == "0" and decoded == "0":
            return chunks
        # One token left for the last chunk rotates as the decoded ones do.
        slots = f"(min({whole}, {window - 1}) + {rest} if {rest} > 1 else {chunks})"
        if decoded == "0":
            return f"(min({window}, {chunks} + {STEP}) if {rest} == 1 else {slots})"
        return f"min({window}, {slots} + round_up({decoded} + (1 if {rest} == 1 else 0), {STEP}))"

    def _chunked_formula(self, chunk_size: int, moment: _Shown) -> str:
        """:meth:`chunked_slots`."""
        whole, rest, decoded = moment.whole, moment.rest, moment.decoded
        full = self._full_formula(moment)
        after_chunk = f"({full} if {whole} - C <= {chunk_size} else {chunk_size} + round_up(C, {STEP}))"
        after_rest = f"({full} if {whole} <= {chunk_size} else {chunk_size} + round_up({rest}, {STEP}))"
        if decoded != "0":
            return f"({full} if {whole} + {rest} + {decoded} - 1 <= {chunk_size} else {chunk_size} + {STEP})"
        return after_chunk if rest == "0" else f"({after_rest} if {rest} else {after_chunk})"


@dataclass(frozen=True, slots=True)
class _Shown:
    """A moment in formulas: its name, and the tokens in whole chunks, in the shorter one and fed one by one."""

    name: str
    when: str
    at: Moment
    whole: str
    rest: str
    decoded: str


def _chosen(moments: list[_Shown]) -> Callable[[list[str]], str]:
    """What picks, of one formula a moment, that of the largest moment; of equal ones the first."""
    sizes = [f"{moment.name}_bytes" for moment in moments]

    def pick(formulas: list[str]) -> str:
        if len(set(formulas)) == 1:
            return formulas[0]
        choices = [
            f"{formula} if {size} == max({', '.join(sizes)}) else "
            for formula, size in zip(formulas[:-1], sizes[:-1], strict=True)
        ]
        return f"({''.join(choices)}{formulas[-1]})"

    return pick
