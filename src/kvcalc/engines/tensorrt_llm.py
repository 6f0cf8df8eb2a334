"""TensorRT-LLM: blocks of tokens in one pool a window size, each window with an equal share of the memory.

Source: TensorRT-LLM ``tensorrt_llm/_torch/pyexecutor/resource_manager.py`` at 001541bad83b (KVCacheManager V1), read
and not run.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from operator import ge
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from kvcalc.architecture import (
    Architecture,
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
from kvcalc.engines.base import KVCache, LayerBytes, Server, refuse_formats, refuse_kind
from kvcalc.engines.options import EngineOptions
from kvcalc.errors import KVCalcError, NotModelledError, UnsupportedError
from kvcalc.units import MAX_TOKENS, ceil_div, parse_counts, smallest_reaching

if TYPE_CHECKING:
    from kvcalc.setup import Setup

_COMMIT = "001541bad83b"
_SOURCE = f"TensorRT-LLM {_COMMIT} _torch/pyexecutor/resource_manager.py"
_DTYPES = frozenset({"bfloat16", "float16", "float32", "fp8_e4m3", "int8", "nvfp4"})
#: Below this many bytes one byte less is a larger step than the engine's three float roundings (3 x 2^-53), so that
#: no pool below the exact answer is ever enough; 1/3 of the exact answer may still round down and need one byte more.
_NO_FEWER_BELOW = 2**50
_MOST_WINDOWS = 1024

_REFUSED: dict[type, str] = {
    State: "a state has a manager of its own, which is not modelled",
    Parallel: "a state has a manager of its own, which is not modelled",
    Shared: "whether layers that read another layer's cache get blocks was not checked",
    Cross: "the share of a cross-attention cache was not checked",
    Compressed: "compressed layers are not modelled",
    NoCache: "whether layers without a cache get blocks was not checked",
}


@dataclass(frozen=True, slots=True)
class WindowPool:
    """The layers of one window size: they share blocks.

    Attributes:
        window: tokens that a sequence keeps in these layers, or None for all.
        token_bytes: bytes of one token in all these layers on one device.
        layers: (kind, layers of this kind, bytes of one token in one of them).
    """

    window: int | None
    token_bytes: int
    layers: tuple[tuple[LayerKind, int, int], ...]


@dataclass(frozen=True, slots=True)
class TensorRTLLMPlan:
    """The windows and the words; ``fraction`` is None where the budget is the pool itself."""

    windows: tuple[WindowPool, ...]
    tokens_per_block: int
    fraction: float | None
    why: str
    notes: tuple[str, ...]

    def _needed(self, context: int, batch_size: int) -> tuple[int, ...]:
        """Blocks that the sequences need in each window."""
        size = self.tokens_per_block
        kept = [context if each.window is None or context < each.window else each.window for each in self.windows]
        return tuple([batch_size * -(-tokens // size) for tokens in kept])

    def _blocks(self, memory: int, fraction: float | None) -> tuple[int, ...]:
        """Blocks of each window for a memory; the divisions are float divisions, as in the engine."""
        if len(self.windows) == 1:
            max_tokens = (memory if fraction is None else fraction * memory) / self.windows[0].token_bytes
            return (int(max_tokens // self.tokens_per_block),)
        pool = memory if fraction is None else int(memory * fraction)
        share = 1.0 / len(self.windows)
        size = self.tokens_per_block
        return tuple([int((pool * share / each.token_bytes) // size) for each in self.windows])

    def _reaches(self, memory: int, fraction: float | None, needed: tuple[int, ...]) -> bool:
        return all(map(ge, self._blocks(memory, fraction), needed))

    def kv_bytes(self, context: int, batch_size: int) -> int:
        """Bytes of the smallest pool that gives every window its blocks."""
        windows, size = self.windows, self.tokens_per_block
        largest = 0
        for each in windows:
            tokens = context if each.window is None or context < each.window else each.window
            taken = -(-tokens // size) * each.token_bytes
            largest = max(largest, taken)
        pool = len(windows) * batch_size * size * largest
        small = pool < _NO_FEWER_BELOW
        if small and len(windows) & (len(windows) - 1) == 0:
            return pool  # a share of 1/1, 1/2, 1/4 ... is exact
        needed = self._needed(context, batch_size)
        if small and self._reaches(pool, None, needed):
            return pool
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
        guess = -(-pool // Fraction(fraction))
        return smallest_reaching(guess, lambda memory: self._reaches(memory, fraction, needed))

    def report(self, context: int, batch_size: int, kv_memory: int) -> dict[str, Any]:
        """Blocks of each window, the free blocks that TensorRT-LLM reports, and what they take."""
        blocks, needed = self._blocks(kv_memory, self.fraction), self._needed(context, batch_size)
        size = self.tokens_per_block
        named = {str(each.window or "max_seq_len"): has for each, has in zip(self.windows, blocks, strict=True)}
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
        """Blocks and bytes a window, and the pool whose equal shares cover the largest."""
        work, windows = Derivation(context, batch_size), len(self.windows)
        work.let("P", "tokens per block", str(self.tokens_per_block), "tokens", "tokens_per_block")
        taken: list[str] = []
        rows = 0
        for number, each in enumerate(self.windows, start=1):
            label = "full length" if each.window is None else f"window {each.window}"
            tokens = "T" if each.window is None else f"min(T, {each.window})"
            work.let(f"blocks_{number}", f"blocks, {label}", f"B * ceil_div({tokens}, P)", "blocks", _SOURCE)
            formula = " + ".join(f"{count} * {token_bytes}" for _, count, token_bytes in each.layers)
            work.let(f"token_{number}", f"bytes of a token, {label}", formula, "bytes", _SOURCE)
            for kind, count, token_bytes in each.layers:
                rows += 1
                formula = f"{count} * blocks_{number} * P * {token_bytes}"
                work.let(f"layers_{rows}", f"{count} {kind_label(kind)}, {label}", formula, "bytes", _SOURCE)
            taken.append(f"blocks_{number} * P * token_{number}")
        exact = taken[0] if windows == 1 else f"{windows} * max({', '.join(taken)})"
        work.let("exact_bytes", "pool, but for the rounding of the engine's float divisions", exact, "bytes", _SOURCE)
        meaning = "KV cache" if windows == 1 else f"KV cache: each window has 1/{windows} of it"
        pool = self._search("exact_bytes", None)
        if self.fraction is not None:
            work.let("pool_bytes", "the pool", pool, "bytes", _SOURCE)
            free = self._search(f"int(pool_bytes / {self.fraction!r})", self.fraction)
            work.let("required_bytes", "free memory that it is cut from", free, "bytes", _SOURCE)
            pool = "pool_bytes"
        work.let("kv_bytes", meaning, pool, "bytes", _SOURCE)
        return tuple(work.quantities)

    def _search(self, guess: str, fraction: float | None) -> str:
        """The smallest memory that gives every window its blocks, as :meth:`_blocks` divides it."""
        memory = "memory" if fraction is None else f"{fraction!r} * memory"
        if len(self.windows) > 1:
            pool = "memory" if fraction is None else f"int(memory * {fraction!r})"
            memory = f"{pool} * {1.0 / len(self.windows)!r}"
        enough = [
            f"int({memory} / token_{number} // P) >= blocks_{number}" for number in range(1, len(self.windows) + 1)
        ]
        return f"smallest_reaching({guess}, lambda memory: {' and '.join(enough)})"


class TensorRTLLM(EngineOptions):
    """TensorRT-LLM's blocks, by the rule of its source."""

    name: ClassVar[str] = "tensorrt-llm"
    summary: ClassVar[str] = "TensorRT-LLM's blocks: every window size gets an equal share of the pool"
    follows: ClassVar[str] = _COMMIT
    formula: ClassVar[str] = (
        "blocks(w) = batch size x ceil(min(context, w) / tokens_per_block), for each window size w\n"
        "bytes = number of windows x max over w of blocks(w) x tokens_per_block x bytes of a token in w's layers\n"
        "bytes of a token = layers x ceil(KV heads / tp) x 2 x head dim x element bytes (MLA: one latent, whole)\n"
        "a pool gives w: int(pool / number of windows / bytes of a token // tokens_per_block) blocks"
    )
    weight_formats: ClassVar[tuple[str, ...]] = ("fp8", "int8_channel", "awq", "nvfp4")
    sources: ClassVar[tuple[str, ...]] = (f"{_SOURCE} (KVCacheManager V1)",)
    not_modelled: ClassVar[tuple[str, ...]] = (
        "KVCacheManagerV2, and TRTLLM_WINDOW_SIZE_SHARES: the shares are equal",
        "the spare block of a sliding window, and the shrinking of windows when one sequence does not fit",
        "states, shared, cross-attention and compressed layers, sparse-attention indexers: refused",
    )
    evidence: ClassVar[str] = (
        "read from the source, never run; one server's printed figures (MLA, fp8) agree to the last printed digit"
    )
    server: ClassVar[Server | None] = Server(
        ("trtllm-serve", "{model}"),
        {
            "context": "--max_seq_len",
            "batch_size": "--max_batch_size",
            "tensor_parallel_size": "--tp_size",
            "utilization": "--kv_cache_free_gpu_memory_fraction",
        },
    )
    follows_cache_of: ClassVar[frozenset[str]] = frozenset({"modelopt"})

    tokens_per_block: int = Field(32, ge=1, le=2**20, description="tokens of a block")
    max_attention_window: tuple[int, ...] | None = Field(
        None,
        description="window of each layer, repeated over the layers, as 1024,1024,131072; none: every layer is full",
    )
    free_gpu_memory_fraction: float | None = Field(
        None,
        ge=1e-6,
        le=1,
        description="part of the KV memory that becomes the pool; none: all of it (TensorRT-LLM: 0.9 of what is free)",
    )

    @field_validator("max_attention_window", mode="before")
    @classmethod
    def _windows(cls, value: object) -> object:
        if isinstance(value, str):
            try:
                return tuple(parse_counts(value, "max_attention_window"))
            except KVCalcError as error:
                raise ValueError(error.message) from None
        return (value,) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("max_attention_window")
    @classmethod
    def _in_range(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and not 1 <= len(value) <= _MOST_WINDOWS:
            raise ValueError(f"max_attention_window takes 1 to {_MOST_WINDOWS} windows")
        if value is not None and not all(1 <= window <= MAX_TOKENS for window in value):
            raise ValueError(f"a window must be between 1 and {MAX_TOKENS:,} tokens")
        return value

    def prepare(self, setup: Setup) -> TensorRTLLMPlan:
        """Group the layers by window, and price one token in each group.

        Raises:
            UnsupportedError: a layer kind or storage format that is not modelled.
        """
        architecture = setup.served
        refuse_formats("tensorrt-llm", setup, _DTYPES)
        for kind, _ in architecture.caches:
            _check_kind(architecture, kind)
        _check_one_head_dim(architecture)
        windows = _grouped(architecture, setup, self.max_attention_window)
        if len(windows) > 1 and setup.k_dtype.name == "nvfp4":
            raise UnsupportedError(
                "tensorrt-llm leaves the scales of an nvfp4 cache out when it divides a pool between windows",
                hint="use fp8, or one window for all layers",
            )
        notes = ["tensorrt-llm's rule is read from its source and was not checked against a run"]
        layers = architecture.num_layers
        if self.max_attention_window is None:
            why = f"all {layers} layers full"
            if any(window_of(kind) for kind, _ in architecture.caches):
                notes.append("without max_attention_window every layer is allocated at full length")
        elif len(windows) > 1:
            why = f"{len(windows)} windows, 1/{len(windows)} of the pool each"
            notes.append("every window size has the same share of the pool, whatever its layers need")
        else:
            why = f"all {layers} layers at window {windows[0].window}"
        return TensorRTLLMPlan(windows, self.tokens_per_block, self.free_gpu_memory_fraction, why, tuple(notes))


def _grouped(architecture: Architecture, setup: Setup, option: tuple[int, ...] | None) -> tuple[WindowPool, ...]:
    """The layers by window, in ascending order; ``option`` is repeated over the layers."""
    if option is None:
        kinds = [(kind, count, _token_bytes(kind, setup)) for kind, count in architecture.caches]
        return (WindowPool(None, sum(count * each for _, count, each in kinds), tuple(kinds)),)
    counts: dict[int, dict[int, int]] = {}  # window -> distinct layer -> layers
    for position, index in enumerate(architecture.order):
        window = option[position % len(option)]
        of_window = counts.setdefault(window, {})
        of_window[index] = of_window.get(index, 0) + 1
    pools = []
    for window in sorted(counts):
        members: dict[LayerKind, int] = {}
        for index, count in counts[window].items():
            kind = architecture.layers[index].cache
            members[kind] = members.get(kind, 0) + count
        kinds = [(kind, count, _token_bytes(kind, setup)) for kind, count in members.items()]
        pools.append(WindowPool(window, sum(count * each for _, count, each in kinds), tuple(kinds)))
    return tuple(pools)


def _check_kind(architecture: Architecture, kind: LayerKind) -> None:
    reason = _REFUSED.get(type(kind))
    if isinstance(kind, Full | Latent) and kind.indexer_dim:
        reason = "the key of a sparse-attention indexer is not modelled"
    elif isinstance(kind, Full | Sliding | Chunked) and kind.extra_state_bytes:
        reason = "fixed bytes of a sequence beside K and V were not checked"
    if reason is not None:
        refuse_kind("tensorrt-llm", architecture, kind, reason)


def _check_one_head_dim(architecture: Architecture) -> None:
    dims = set()
    for kind, _ in architecture.caches:
        if isinstance(kind, Latent):
            dims.add((kind.rank, kind.rope_dim))
        else:
            assert isinstance(kind, Full | Sliding | Chunked)
            dims.add((kind.head_dim, kind.head_dim))
            dims.add((kind.v_head_dim, kind.v_head_dim))
    if len(dims) > 1:
        raise NotModelledError(
            f"tensorrt-llm's KVCacheManager V1 takes one head dim for K and V of all layers, {architecture.name} has "
            f"{len(dims)}; KVCacheManagerV2, which takes more, is not modelled",
            hint="use the ideal engine for the report's accounting, or vllm",
        )


def _token_bytes(kind: LayerKind, setup: Setup) -> int:
    """Bytes of one token in one layer on one device; KV heads are divided and rounded up, unlike in vLLM and SGLang."""
    if isinstance(kind, Latent):  # one latent, whole on every device
        return setup.k_dtype.bytes_for(kind.rank + kind.rope_dim)
    assert isinstance(kind, Full | Sliding | Chunked)
    heads = ceil_div(kind.num_kv_heads, setup.tensor_parallel_size)
    return setup.k_dtype.row_bytes(heads, kind.head_dim) + setup.v_dtype.row_bytes(heads, kind.v_head_dim)
