"""What SGLang keeps of a layer: the pool that it lies in, bytes of a token and of an index key, and its refusals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvcalc.architecture import (
    Architecture,
    Chunked,
    Compressed,
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

if TYPE_CHECKING:
    from kvcalc.setup import Setup

VERSION = "0.5.23"
#: Tokens in a page of a sparse-attention pool, and tokens that share one scale of an index key.
INDEXER_PAGE, _INDEXER_BLOCK = 64, 128
#: Model types with cross-attention that it has a class for: srt/models/mllama.py, whisper.py.
_CROSS_MODELS = frozenset({"mllama", "whisper"})

_REFUSED: dict[type, str] = {
    Cross: "what an encoder's tokens take of its pool was not checked",
    Compressed: "compressed layers have pools of their own, which are not modelled",
}


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
    reason = _REFUSED.get(type(kind))
    if reason is not None:
        refuse_kind("sglang", architecture, kind, reason)


def bytes_of_token(kind: LayerKind, setup: Setup) -> int:
    """Bytes of one token in one layer on one device."""
    if isinstance(kind, Parallel):
        kind = kind.attention
    if isinstance(kind, Latent):  # one latent, whole on every device
        if setup.served.has_sparse_latents and setup.k_dtype.name == "fp8_e4m3":
            # In all layers of such a model (kv_cache_configurator.py:3412): a float32 scale for each 128 numbers, and
            # the rope part in bfloat16: 512 + 16 + 128 = 656.
            return kind.rank + kind.rank // _INDEXER_BLOCK * 4 + kind.rope_dim * 2
        return setup.k_dtype.bytes_for(kind.rank + kind.rope_dim)
    assert isinstance(kind, Full | Sliding | Chunked)
    heads = max(1, kind.num_kv_heads // setup.tensor_parallel_size)
    return setup.k_dtype.row_bytes(heads, kind.head_dim) + setup.v_dtype.row_bytes(heads, kind.v_head_dim)


def indexer_bytes(kind: LayerKind) -> int:
    """Bytes of one token's index key: 128 numbers of 8 bits and a float32 scale are 132.

    Source: sglang 0.5.23 model_executor/pool_configurator.py:560.
    """
    if isinstance(kind, Full):  # MiniMax M3: one head of the model's format, keys alone (memory_pool.py:5831)
        return 2 * kind.indexer_dim
    dim = kind.indexer_dim if isinstance(kind, Latent) else 0
    return dim + dim // _INDEXER_BLOCK * 4


def state_of(kind: LayerKind) -> State | None:
    if isinstance(kind, Parallel):
        return kind.state
    return kind if isinstance(kind, State) else None


def one_size(architecture: Architecture, kinds: Sequence[LayerKind], setup: Setup) -> int:
    sizes = {bytes_of_token(kind, setup) for kind in kinds}
    if len(sizes) != 1:
        raise UnsupportedError(
            f"sglang bills one size of K and V in a pool; {architecture.name} has layers of {len(sizes)} sizes",
            hint="use the ideal engine for the report's accounting, or vllm",
        )
    return sizes.pop()
