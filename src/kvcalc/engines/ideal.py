"""The report's own accounting: a sliding layer holds min(context, window) tokens, a global layer all of them.

Source: Gemma 3 technical report (2025), section 5.2 and figures 5 and 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, assert_never

from kvcalc.architecture import (
    Chunked,
    Compressed,
    Cross,
    Full,
    Latent,
    LayerKind,
    NoCache,
    Parallel,
    Shared,
    Sliding,
    State,
    kind_label,
    window_of,
)
from kvcalc.derivation import Derivation, Quantity
from kvcalc.engines.base import Engine, KVCache, LayerBytes, WorkingMemory, refuse_latent_formats, refuse_uneven_heads
from kvcalc.quantization import EVERYTHING

if TYPE_CHECKING:
    from kvcalc.device import Device
    from kvcalc.setup import Setup


_SOURCE = "Gemma 3 technical report, section 5.2"


@dataclass(frozen=True, slots=True)
class KindCost:
    """The bytes of one sequence in one layer: fixed + per_token x min(T, window) + per_entry x (T // ratio).

    Attributes:
        fixed_bytes: bytes whatever the context (states, and K and V of the encoder's tokens).
        token_bytes: bytes of one cached token.
        window: the most tokens that are cached, or None for all.
        entry_bytes: bytes of one compressed entry.
        ratio: tokens that one compressed entry stands for.
        encoder_tokens: length of a cross-attention cache.
    """

    fixed_bytes: int = 0
    token_bytes: int = 0
    window: int | None = None
    entry_bytes: int = 0
    ratio: int = 1
    encoder_tokens: int = 0

    def bytes_at(self, context: int) -> int:
        """Bytes of one sequence of ``context`` tokens in one layer."""
        tokens = context if self.window is None or context < self.window else self.window
        return self.fixed_bytes + self.token_bytes * tokens + self.entry_bytes * (context // self.ratio)

    def tokens_at(self, context: int) -> int:
        """Token slots of one sequence in one layer (a state has none)."""
        if self.encoder_tokens:
            return self.encoder_tokens
        if not self.token_bytes:
            return 0
        return context if self.window is None or context < self.window else self.window


def kind_cost(kind: LayerKind, setup: Setup) -> KindCost:
    """What one layer of a kind costs by the report's accounting, on one of ``tensor_parallel_size`` devices.

    KV heads are divided, at least one on each device; latents and states stay whole.

    Raises:
        UnsupportedError: a format that only latents have, for a layer that is none.
    """
    tp, key, value = setup.tensor_parallel_size, setup.k_dtype, setup.v_dtype
    match kind:
        case Full() | Sliding() | Chunked() | Cross():
            refuse_latent_formats(kind, key, value)
            heads = max(1, kind.num_kv_heads // tp)
            pair = key.row_bytes(heads, kind.head_dim) + value.row_bytes(heads, kind.v_head_dim)
            if isinstance(kind, Cross):
                return KindCost(fixed_bytes=pair * setup.encoder_tokens, encoder_tokens=setup.encoder_tokens)
            indexer = key.bytes_for(kind.indexer_dim) if isinstance(kind, Full) else 0
            return KindCost(kind.extra_state_bytes, pair + indexer, window_of(kind))
        case Latent():
            latent = key.latent_token_bytes or key.bytes_for(kind.rank + kind.rope_dim)
            return KindCost(0, latent + key.bytes_for(kind.indexer_dim), kind.window)
        case State():
            return KindCost(state_bytes(kind, kind.conv_kernel - 1))
        case Parallel():
            attention = kind_cost(kind.attention, setup)
            fixed = attention.fixed_bytes + state_bytes(kind.state, kind.state.conv_kernel - 1)
            return KindCost(fixed, attention.token_bytes, attention.window)
        case Compressed():
            entry = key.bytes_for(kind.width) + key.bytes_for(kind.indexer_dim) if kind.ratio else 0
            return KindCost(0, key.bytes_for(kind.width), kind.window, entry, kind.ratio or 1)
        case Shared() | NoCache():
            return KindCost()
    assert_never(kind)


def state_bytes(state: State, conv_columns: int) -> int:
    """Bytes of one sequence's state, with that many columns of the convolution, whatever formats the model asks for."""
    return 4 * state.recurrent_elements + 2 * state.conv_channels * conv_columns


@dataclass(frozen=True, slots=True)
class IdealPlan:
    """The costs of the distinct kinds with their labels, and their sums for contexts beyond every window."""

    kinds: tuple[tuple[LayerKind, str, int, KindCost], ...]
    saturation: int
    saturated_bytes: int
    growth: int
    has_entries: bool

    def kv_bytes(self, context: int, batch_size: int) -> int:
        """Bytes of the whole cache; beyond the widest window it is one straight line."""
        if context >= self.saturation and not self.has_entries:
            return batch_size * (self.saturated_bytes + self.growth * context)
        total = 0
        for _, _, count, cost in self.kinds:
            total += count * cost.bytes_at(context)
        return batch_size * total

    def allocate(self, context: int, batch_size: int) -> KVCache:
        """The cache, with one row per layer kind."""
        work = self._derivation(context, batch_size)
        rows = tuple(
            LayerBytes(
                kind.kind,
                label,
                count,
                cost.window,
                batch_size * cost.tokens_at(context),
                work[f"layers_{number}"] if _formula(cost) else 0,
            )
            for number, (kind, label, count, cost) in enumerate(self.kinds, start=1)
        )
        total = work["kv_bytes"]
        return KVCache(total, total, rows, why="min(context, window) tokens per layer", ideal_bytes=total)

    def required_kv_memory(self, context: int, batch_size: int) -> int:
        """Exactly the bytes."""
        return self.kv_bytes(context, batch_size)

    def report(self, context: int, batch_size: int, kv_memory: int) -> dict[str, Any]:
        """An accounting has no figures of its own."""
        return {}

    def explain(self, context: int, batch_size: int) -> tuple[Quantity, ...]:
        """One product per layer kind, and their sum."""
        return tuple(self._derivation(context, batch_size).quantities)

    def _derivation(self, context: int, batch_size: int) -> Derivation:
        work, names = Derivation(context, batch_size), []
        for number, (_, label, count, cost) in enumerate(self.kinds, start=1):
            formula = _formula(cost)
            if formula:
                names.append(f"layers_{number}")
                work.let(names[-1], f"{count} {label}", f"{count} * B * ({formula})", "bytes", _SOURCE)
        work.let("kv_bytes", "KV cache", " + ".join(names) or "0", "bytes", _SOURCE)
        return work


def _formula(cost: KindCost) -> str:
    terms = []
    if cost.fixed_bytes:
        terms.append(str(cost.fixed_bytes))
    if cost.token_bytes:
        tokens = "T" if cost.window is None else f"min(T, {cost.window})"
        terms.append(f"{cost.token_bytes} * {tokens}")
    if cost.entry_bytes:
        terms.append(f"{cost.entry_bytes} * (T // {cost.ratio})")
    return " + ".join(terms)


@dataclass(frozen=True)
class Ideal(Engine):
    """The Gemma 3 report's accounting, without any engine's padding or reserve."""

    name: ClassVar[str] = "ideal"
    summary: ClassVar[str] = "the report's own accounting: a sliding layer holds min(context, window) tokens"
    follows: ClassVar[str] = "report 2025-03"
    formula: ClassVar[str] = (
        "bytes = B x sum over layers of min(T, window) x KV heads x (K dim x K bytes + V dim x V bytes)\n"
        "state layers: recurrent elements x 4 + channels x (kernel - 1) x 2; cross layers: encoder tokens"
    )
    holds_beside: ClassVar[frozenset[str]] = EVERYTHING
    sources: ClassVar[tuple[str, ...]] = ("Gemma 3 technical report (2025), section 5.2, figures 5 and 6",)
    not_modelled: ClassVar[tuple[str, ...]] = ("any engine's padding, blocks or reserve: ask for an engine by name",)
    evidence: ClassVar[str] = "checked against every row of the recorded ideal figures"

    def working_memory(self, setup: Setup, device: Device, context: int, batch_size: int) -> WorkingMemory:
        """None: an accounting runs nothing."""
        return WorkingMemory()

    def loading(self, setup: Setup, device: Device) -> tuple[Quantity, ...]:
        """Nothing: an accounting loads nothing."""
        return ()

    def prepare(self, setup: Setup) -> IdealPlan:
        """Compute the cost of each distinct kind once.

        Raises:
            UnsupportedError: heads that the devices do not divide, where this accounting itself is asked for.
        """
        if setup.engine.name == self.name:
            refuse_uneven_heads(self.name, setup)
        architecture = setup.served
        kinds = tuple((kind, kind_label(kind), count, kind_cost(kind, setup)) for kind, count in architecture.caches)
        costs = [(count, cost) for _, _, count, cost in kinds]
        windows = [cost.window for _, cost in costs if cost.window is not None]
        saturation = max(windows, default=0)
        fixed = sum(count * (cost.fixed_bytes + cost.token_bytes * (cost.window or 0)) for count, cost in costs)
        growth = sum(count * cost.token_bytes for count, cost in costs if cost.window is None)
        return IdealPlan(kinds, saturation, fixed, growth, any(cost.entry_bytes for _, cost in costs))
