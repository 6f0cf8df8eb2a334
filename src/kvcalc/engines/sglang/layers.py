"""What SGLang keeps of a layer: the pool that it lies in, bytes of a token and of an index key, and its refusals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvcalc.architecture import (
    Architecture,
    Chunked,
    Cross,
    Full,
    Latent,
    LayerKind,
    Parallel,
    Shared,
    Sliding,
    State,
    is_local,
)
from kvcalc.engines.base import refuse_kind
from kvcalc.errors import UnsupportedError
from kvcalc.units import ceil_div

if TYPE_CHECKING:
    from kvcalc.setup import Setup

VERSION = "0.5.23"
#: Numbers that share one scale of an index key.
_INDEXER_BLOCK = 128
#: Model types with cross-attention that it has a class for: srt/models/mllama.py, whisper.py.
_CROSS_MODELS = frozenset({"mllama", "whisper"})


@dataclass(frozen=True, slots=True)
class Ranks:
    """How the devices of a server share attention (runtime_context.py:135).

    Attributes:
        heads: devices that share the heads of one sequence, tp / groups / attn_cp_size: ``attn_tp_size``.
        groups: groups of devices that each serve sequences of their own: ``attn_dp_size``.
        spread: devices among which the tokens of one sequence lie spread: ``dcp_size``.
        draft_heads: devices that share a draft's heads: all, with context parallelism alone (runtime_context.py:491).
        plain_rows: their kernels read latents in fp8 without scales beside them.
    """

    heads: int = 1
    groups: int = 1
    spread: int = 1
    draft_heads: int = 1
    plain_rows: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of a figure for one device."""
        found = []
        if self.groups > 1:
            found.append(f"attention data parallelism: each of {self.groups} groups holds its own sequences' tokens")
        if self.spread > 1:
            found.append(f"decode context parallelism: a device holds every {self.spread}th page of a sequence")
        return tuple(found)

    def sequences(self, batch_size: int) -> int:
        """The sequences of one group."""
        return ceil_div(batch_size, self.groups)

    @property
    def sequences_formula(self) -> str:
        """:meth:`sequences` of ``B``."""
        return f"ceil_div(B, {self.groups})" if self.groups > 1 else "B"

    def kv_heads(self, num_kv_heads: int) -> int:
        """K and V heads on one device; those that share a sequence's tokens hold the same (model_config.py:1700)."""
        return max(1, num_kv_heads // (self.heads // self.spread))


def in_sliding_pool(kind: LayerKind) -> bool:
    """Whether the layer lies in the sliding pool: a layer that reads another's cache lies where its own type does."""
    return is_local(kind) or (isinstance(kind, Shared) and kind.of != "full")


def shared_note(kinds: Sequence[tuple[LayerKind, int]]) -> list[str]:
    """SGLang's pools have every layer of the configuration (models/gemma4_causal.py:433 reads the owner's alone)."""
    shared = sum(count for kind, count in kinds if isinstance(kind, Shared))
    return [f"{shared} layers read another layer's cache; sglang allocates their own all the same"] if shared else []


def check_kind(architecture: Architecture, kind: LayerKind) -> None:
    keeps = "an encoder's K and V" if isinstance(kind, Cross) and architecture.model_type not in _CROSS_MODELS else ""
    if isinstance(kind, Full | Sliding | Chunked) and kind.extra_state_bytes:
        keeps = "a fixed state beside K and V"
    if keeps:
        raise UnsupportedError(
            f"sglang {VERSION} has no class for {architecture.name} (srt/models), which keeps {keeps}"
        )
    if isinstance(kind, Cross):
        refuse_kind("sglang", architecture, kind, "what an encoder's tokens take of its pool was not checked")


def packs_scales(setup: Setup, ranks: Ranks) -> bool:
    """Whether a latent in fp8 has its scales beside it (kv_cache_configurator.py:3412)."""
    return setup.served.has_sparse_latents and setup.k_dtype.name == "fp8_e4m3" and not ranks.plain_rows


def bytes_of_token(kind: LayerKind, setup: Setup, ranks: Ranks) -> int:
    """Bytes of one token in one layer on one device."""
    if isinstance(kind, Parallel):
        kind = kind.attention
    if isinstance(kind, Latent):  # one latent, whole on every device
        if packs_scales(setup, ranks):
            # A float32 scale for each 128 numbers, and the rope part in bfloat16: 512 + 16 + 128 = 656.
            return kind.rank + kind.rank // _INDEXER_BLOCK * 4 + kind.rope_dim * 2
        return setup.k_dtype.bytes_for(kind.rank + kind.rope_dim)
    assert isinstance(kind, Full | Sliding | Chunked)
    heads = ranks.kv_heads(kind.num_kv_heads)
    return setup.k_dtype.row_bytes(heads, kind.head_dim) + setup.v_dtype.row_bytes(heads, kind.v_head_dim)


def indexer_bytes(kind: LayerKind, setup: Setup, ranks: Ranks) -> int:
    """Bytes of one token's index key: 128 numbers of 8 bits and a float32 scale are 132.

    Every device of decode context parallelism has the keys of all tokens.
    Source: sglang 0.5.23 model_executor/pool_configurator.py:399 and :560.
    """
    if isinstance(kind, Full):
        # MiniMax M3: one head, keys alone, in the model's format, or beside a cache in fp8 in that, on Hopper and
        # Blackwell (memory_pool.py:5831).
        return kind.indexer_dim * (1 if setup.k_dtype.name == "fp8_e4m3" else 2)
    dim = kind.indexer_dim if isinstance(kind, Latent) else 0
    return (dim + dim // _INDEXER_BLOCK * 4) * ranks.spread


def page_of(kinds: Sequence[LayerKind], page_size: int | None) -> int:
    """Tokens of a page: 64 with DeepSeek's index keys, whatever is asked for; 128 with MiniMax's where none are.

    On ROCm without AITER's paged kernels DeepSeek's is 1, which nobody asks for on CUDA.

    Source: sglang 0.5.23 arg_groups/model_overrides/deepseek_v2.py:171, minimax_m3.py:150, overrides.py:1342.
    """
    if any(isinstance(kind, Latent) and kind.indexer_dim for kind in kinds):
        return 1 if page_size == 1 else 64
    sparse = any(isinstance(kind, Full) and kind.indexer_dim for kind in kinds)
    return page_size or (128 if sparse else 1)


def state_of(kind: LayerKind) -> State | None:
    """The recurrent part of a layer, or None."""
    if isinstance(kind, Parallel):
        return kind.state
    return kind if isinstance(kind, State) else None


def one_size(architecture: Architecture, kinds: Sequence[LayerKind], setup: Setup, ranks: Ranks) -> int:
    """Bytes of one token in each of these layers.

    Raises:
        UnsupportedError: they differ, and a pool has one size.
    """
    sizes = {bytes_of_token(kind, setup, ranks) for kind in kinds}
    if len(sizes) != 1:
        raise UnsupportedError(
            f"sglang bills one size of K and V in a pool; {architecture.name} has layers of {len(sizes)} sizes",
            hint="use the ideal engine for the report's accounting, or vllm",
        )
    return sizes.pop()
