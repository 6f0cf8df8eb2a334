"""TensorRT-LLM's first manager (KVCacheManager): a pool a window size, each with an equal share of the memory.

An encoder-decoder divides the memory between its own cache and that of the encoder's tokens first.

Source: TensorRT-LLM ``tensorrt_llm/_torch/pyexecutor/resource_manager.py`` at 001541bad83b, ``_util.py`` at
000439672005 (_split_kv_cache_budget_for_cross).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from operator import ge
from typing import Any

from kvcalc.architecture import LayerKind, kind_label
from kvcalc.derivation import Derivation, Quantity
from kvcalc.engines.base import KVCache, LayerBytes
from kvcalc.units import smallest_reaching

_SOURCE = "TensorRT-LLM 001541bad83b _torch/pyexecutor/resource_manager.py"


@dataclass(frozen=True, slots=True)
class WindowPool:
    """The layers of one window size: they share blocks.

    Attributes:
        window: tokens that a sequence keeps in these layers, or None for all.
        token_bytes: bytes of one token in all these layers on one device.
        layers: (kind, layers of this kind, bytes of one token in one of them).
        share: the part of the memory that is theirs.
        encoder_tokens: tokens that these layers keep whatever the context, or None.
    """

    window: int | None
    token_bytes: int
    layers: tuple[tuple[LayerKind, int, int], ...]
    share: Fraction
    encoder_tokens: int | None = None

    @property
    def label(self) -> str:
        """Its window, in words."""
        if self.encoder_tokens is not None:
            return f"encoder {self.encoder_tokens}"
        return "full length" if self.window is None else f"window {self.window}"

    def kept(self, context: int) -> int:
        """Tokens of one sequence in these layers."""
        if self.encoder_tokens is not None:
            return self.encoder_tokens
        return context if self.window is None or context < self.window else self.window

    @property
    def formula(self) -> str:
        """:meth:`kept`, over T."""
        if self.encoder_tokens is not None:
            return str(self.encoder_tokens)
        return "T" if self.window is None else f"min(T, {self.window})"


@dataclass(frozen=True, slots=True)
class SharesPlan:
    """The windows and the words.

    ``fraction`` is None where the budget is the pool itself; ``rounded_up`` are tokens that a part of a block is
    rounded up by: all of a block but one in an engine that is built, none elsewhere.
    """

    windows: tuple[WindowPool, ...]
    tokens_per_block: int
    fraction: float | None
    rounded_up: int
    why: str
    notes: tuple[str, ...]

    def _needed(self, context: int, batch_size: int) -> tuple[int, ...]:
        """Blocks that the sequences need in each window."""
        size = self.tokens_per_block
        return tuple([batch_size * -(-each.kept(context) // size) for each in self.windows])

    def _blocks(self, memory: int, fraction: float | None) -> tuple[int, ...]:
        """Blocks of each window for a memory; the divisions are float divisions, as in the engine."""
        if len(self.windows) == 1:
            max_tokens = (memory if fraction is None else fraction * memory) / self.windows[0].token_bytes
            rounded_up = 0 if fraction is None else self.rounded_up
            return ((int(max_tokens) + rounded_up) // self.tokens_per_block,)
        pool = memory if fraction is None else int(memory * fraction)
        size = self.tokens_per_block
        return tuple([int((pool * float(each.share) / each.token_bytes) // size) for each in self.windows])

    def _reaches(self, memory: int, fraction: float | None, needed: tuple[int, ...]) -> bool:
        return all(map(ge, self._blocks(memory, fraction), needed))

    def kv_bytes(self, context: int, batch_size: int) -> int:
        """Bytes of the smallest pool that gives every window its blocks."""
        needed, size, pool = self._needed(context, batch_size), self.tokens_per_block, 0
        for each, blocks in zip(self.windows, needed, strict=True):
            taken, share = blocks * size * each.token_bytes, each.share
            pool = max(pool, -(-taken * share.denominator // share.numerator))
        return smallest_reaching(pool, lambda memory: self._reaches(memory, None, needed))

    def allocate(self, context: int, batch_size: int) -> KVCache:
        """The blocks that the sequences need; the rest of the windows' equal shares is padding."""
        total = self.kv_bytes(context, batch_size)
        rows = []
        for each, blocks in zip(self.windows, self._needed(context, batch_size), strict=True):
            tokens = blocks * self.tokens_per_block
            rows += [
                LayerBytes(kind.kind, kind_label(kind), count, each.window, tokens, tokens * count * token_bytes)
                for kind, count, token_bytes in each.layers
            ]
        padding = total - sum(row.bytes for row in rows)
        return KVCache(total, total, tuple(rows), padding, self.why, self.notes)

    def required_kv_memory(self, context: int, batch_size: int) -> int:
        """The smallest budget: the pool, or with ``free_gpu_memory_fraction`` the free memory that it is cut from."""
        pool = self.kv_bytes(context, batch_size)
        if self.fraction is None:
            return pool
        fraction, needed = self.fraction, self._needed(context, batch_size)
        guess = -(-(pool - self.rounded_up * self.windows[0].token_bytes) // Fraction(fraction))
        return smallest_reaching(guess, lambda memory: self._reaches(memory, fraction, needed))

    def report(self, context: int, batch_size: int, kv_memory: int) -> dict[str, Any]:
        """Blocks of each window, the free blocks that TensorRT-LLM reports, and what they take."""
        blocks, needed = self._blocks(kv_memory, self.fraction), self._needed(context, batch_size)
        size = self.tokens_per_block
        named = {
            "encoder" if each.encoder_tokens is not None else str(each.window or "max_seq_len"): has
            for each, has in zip(self.windows, blocks, strict=True)
        }
        return {
            "blocks_per_window": named,
            "num_free_blocks": min(blocks),
            "max_tokens": min(blocks) * size,
            "allocated_bytes": sum(
                has * size * each.token_bytes for has, each in zip(blocks, self.windows, strict=True)
            ),
            "fits": all(has >= wants for has, wants in zip(blocks, needed, strict=True)),
        }

    def explain(self, context: int, batch_size: int) -> tuple[Quantity, ...]:
        """Blocks and bytes a window, and the pool whose shares cover the largest."""
        work, windows = Derivation(context, batch_size), len(self.windows)
        work.let("P", "tokens per block", str(self.tokens_per_block), "tokens", "tokens_per_block")
        taken: list[str] = []
        rows = 0
        for number, each in enumerate(self.windows, start=1):
            blocks = f"B * ceil_div({each.formula}, P)"
            work.let(f"blocks_{number}", f"blocks, {each.label}", blocks, "blocks", _SOURCE)
            formula = " + ".join(f"{count} * {token_bytes}" for _, count, token_bytes in each.layers)
            work.let(f"token_{number}", f"bytes of a token, {each.label}", formula, "bytes", _SOURCE)
            for kind, count, token_bytes in each.layers:
                rows += 1
                formula = f"{count} * blocks_{number} * P * {token_bytes}"
                work.let(f"layers_{rows}", f"{count} {kind_label(kind)}, {each.label}", formula, "bytes", _SOURCE)
            taken.append(f"blocks_{number} * P * token_{number}")
        work.let("exact_bytes", "pool, but for the rounding of the engine's float divisions", self._exact(taken),
                 "bytes", _SOURCE)  # fmt: skip
        shares = {each.share for each in self.windows}
        each_has = f"each window has {self.windows[0].share} of it" if len(shares) == 1 else "each has its share of it"
        meaning = "KV cache" if windows == 1 else f"KV cache: {each_has}"
        pool = self._search("exact_bytes", None)
        if self.fraction is not None:
            work.let("pool_bytes", "the pool", pool, "bytes", _SOURCE)
            least = f"pool_bytes - {self.rounded_up} * token_1" if self.rounded_up else "pool_bytes"
            free = self._search(f"int(({least}) / {self.fraction!r})", self.fraction)
            work.let("required_bytes", "free memory that it is cut from", free, "bytes", _SOURCE)
            pool = "pool_bytes"
        work.let("kv_bytes", meaning, pool, "bytes", _SOURCE)
        return tuple(work.quantities)

    def _exact(self, taken: list[str]) -> str:
        """The pool whose shares are what each window takes."""
        shares = [each.share for each in self.windows]
        if len(set(shares)) > 1:
            whole = [
                f"ceil_div({each} * {share.denominator}, {share.numerator})"
                for each, share in zip(taken, shares, strict=True)
            ]
            return f"max({', '.join(whole)})"
        return taken[0] if len(taken) == 1 else f"{len(taken)} * max({', '.join(taken)})"

    def _search(self, guess: str, fraction: float | None) -> str:
        """The smallest memory that gives every window its blocks, as :meth:`_blocks` divides it."""
        memory = "memory" if fraction is None else f"{fraction!r} * memory"
        if len(self.windows) > 1:
            memory = "memory" if fraction is None else f"int(memory * {fraction!r})"
        enough = []
        for number, each in enumerate(self.windows, start=1):
            part = memory if len(self.windows) == 1 else f"{memory} * {float(each.share)!r}"
            blocks = f"int({part} / token_{number} // P)"
            if self.rounded_up and fraction is not None:
                blocks = f"(int({part} / token_{number}) + {self.rounded_up}) // P"
            enough.append(f"{blocks} >= blocks_{number}")
        return f"smallest_reaching({guess}, lambda memory: {' and '.join(enough)})"
