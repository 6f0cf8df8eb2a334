"""What TensorRT-LLM runs, and what one layer keeps: buffers a token, and states a sequence.

Source: TensorRT-LLM ``tensorrt_llm/_torch/models/_arch_index.py`` at 065ff9e93780 (the models of its PyTorch backend),
``docs/source/models/supported-models.md`` at 00b6d5a25c30 (those of AutoDeploy), ``tensorrt_llm/models/__init__.py`` of
1.2 (those of engines that are built); ``_torch/pyexecutor/config_utils.py`` at 00679c66c3e3 (states), and the cache
managers of ``_torch/attention_backend/sparse``: ``dsa`` at 0bbb76d22e61, ``deepseek_v4`` at 015279e0fc9d,
``minimax_m3`` at 0462117eb769, which is read and not run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvcalc.architecture import (
    Architecture,
    Chunked,
    Compressed,
    Cross,
    Full,
    Latent,
    LayerKind,
    NoCache,
    Shared,
    Sliding,
    State,
    kind_label,
)
from kvcalc.dtypes import DType, parse_dtype
from kvcalc.engines.base import refuse_uneven_heads
from kvcalc.errors import NotModelledError, UnsupportedError
from kvcalc.units import ceil_div

if TYPE_CHECKING:
    from kvcalc.setup import Setup

_REGISTRY = "_torch/models/_arch_index.py at 065ff9e93780"

_PYTORCH = frozenset(
    {
        *("afmoe", "apertus", "bart", "chatglm", "cohere2", "deci", "deepseek_v3", "deepseek_v32", "deepseek_v4"),
        *("dream", "exaone4", "exaone4_5", "exaone_moe", "gemma3", "gemma4", "gemma4_unified", "glm4_moe"),
        *("glm_moe_dsa", "gpt_oss", "hunyuan_v1_dense", "hunyuan_v1_moe", "hyperclovax", "kimi_k2", "kimi_k25"),
        *("kimi_k3", "kimi_linear", "laguna", "llama", "llama4", "mbart", "minicpmv4_6", "minimax_m2"),
        *("minimax_m3", "minimax_m3_vl", "ministral3", "mistral", "mistral3", "mixtral", "mllama", "nemotron"),
        *("nemotron-nas", "nemotron_h", "phi3", "phi4_multimodal", "phi4mm", "qwen2", "qwen2_5_vl", "qwen2_moe"),
        *("qwen2_vl", "qwen3", "qwen3_5", "qwen3_5_moe", "qwen3_moe", "qwen3_next", "qwen3_vl", "qwen3_vl_moe"),
        *("seed_oss", "starcoder2", "step3p5", "step3p7", "t5", "whisper"),
    }
)
_AUTODEPLOY = frozenset(
    {"deepseek_v2", "exaone", "glm4_moe_lite", "granite", "internlm3", "olmo3", "openelm", "smollm3"}
)
#: Model types that engines which are built have alone; they round the blocks of a free memory up.
BUILT = frozenset(
    {
        *("arctic", "baichuan", "bloom", "cohere", "dbrx", "deepseek", "falcon", "gemma", "gemma2", "gpt2"),
        *("gpt_bigcode", "gpt_neox", "gptj", "granitemoe", "grok-1", "internlm", "internlm2", "jais", "mpt", "opt"),
        *("phi", "phi3small", "phimoe", "qwen"),
    }
)
#: Model types whose cache managers nobody here has read.
_OWN_MANAGERS = frozenset({"deepseek_v41", "glm5_next", "inkling", "qwen4_exp"})
#: Model types with recurrent states, and the format of the recurrent part: the model's own even where a configuration
#: names one to compute in (Qwen3.5's ``mamba_ssm_dtype``), its ``mamba_ssm_cache_dtype``, or always float32 (KDA).
_STATES = {
    "nemotron_h": "stated",
    "qwen3_next": "model",
    "qwen3_5": "model",
    "qwen3_5_moe": "model",
    "kimi_linear": "float32",
    "kimi_k3": "float32",
}


@dataclass(frozen=True, slots=True)
class Part:
    """Buffers of one layer that are kept equally long.

    Attributes:
        token_bytes: bytes of one entry in each buffer; of a state, bytes of a sequence.
        window: tokens that are kept, or None for all.
        ratio: tokens that one entry stands for, 0 for a state: one entry a sequence.
    """

    token_bytes: tuple[int, ...]
    window: int | None = None
    ratio: int = 1

    def block_sizes(self, tokens_per_block: int) -> tuple[int, ...]:
        """Bytes of one block, or of a sequence's state, in each buffer."""
        entries = tokens_per_block // self.ratio if self.ratio else 1
        return tuple([entries * each for each in self.token_bytes])


def layer_parts(kind: LayerKind, setup: Setup, ssm_dtype: str = "auto") -> tuple[Part, ...]:
    """What one layer keeps on one device; nothing where it has no cache.

    Raises:
        UnsupportedError: TensorRT-LLM has no such layer, or does not divide it among the devices.
    """
    if isinstance(kind, State):
        return _state(kind, setup, ssm_dtype)
    rule = _RULES.get(type(kind))
    if rule is None:
        raise UnsupportedError(
            f"tensorrt-llm has no {kind_label(kind)} layers (_torch/pyexecutor/_util.py at 000439672005)"
        )
    return rule(kind, setup)


def _attention(kind: Full | Sliding | Chunked | Cross, setup: Setup) -> tuple[Part, ...]:
    """K and V, heads rounded up; an indexer's key in 16 bits or more, whole on every device (MiniMax M3)."""
    if kind.head_dim != kind.v_head_dim or getattr(kind, "extra_state_bytes", False):
        raise UnsupportedError(
            f"tensorrt-llm has K and V of one width and nothing beside them, not the {kind_label(kind)} layers of "
            f"{setup.architecture.name} (_torch/pyexecutor/kv_cache/kv_cache_manager_v2.py at 000439672005)"
        )
    heads = ceil_div(kind.num_kv_heads, setup.tensor_parallel_size)
    sizes = (*_stored(setup.k_dtype, heads * kind.head_dim), *_stored(setup.v_dtype, heads * kind.head_dim))
    if isinstance(kind, Full) and kind.indexer_dim:
        sizes += (kind.indexer_dim * (4 if setup.k_dtype.name == "float32" else 2),)
    return (Part(sizes),)


def _latent(kind: Latent, setup: Setup) -> tuple[Part, ...]:
    """One latent, whole on every device, and an indexer's key in 8 bits with a float32 scale for 128 numbers."""
    sizes = _stored(setup.k_dtype, kind.rank + kind.rope_dim)
    if kind.indexer_dim:
        sizes += (_index_bytes(kind.indexer_dim),)
    return (Part(sizes),)


def _compressed(kind: Compressed, setup: Setup) -> tuple[Part, ...]:
    """DeepSeek V4: the window, the entries, and what the compressor has of the next entry (KV and scores, float32).

    With a ratio of 4 an entry overlaps the one before it, and what the compressor keeps is as wide twice.
    """
    if kind.ratio not in (None, 4, 128):
        raise UnsupportedError(
            f"tensorrt-llm compresses 4 or 128 tokens to an entry, not {kind.ratio} "
            "(_torch/attention_backend/sparse/deepseek_v4/cache_manager.py at 015279e0fc9d)"
        )
    if setup.k_dtype.name not in ("bfloat16", "fp8_e4m3"):
        raise UnsupportedError(
            f"tensorrt-llm keeps compressed layers in bfloat16 or fp8, not {setup.k_dtype.name} "
            "(_torch/attention_backend/sparse/deepseek_v4/cache_manager.py at 015279e0fc9d)"
        )
    size = _stored(setup.k_dtype, kind.width)
    parts = [Part(size, kind.window)]
    if kind.ratio:
        entry = (*size, _index_bytes(kind.indexer_dim)) if kind.indexer_dim else size
        overlap = 2 if kind.ratio == 4 else 1
        widths = (kind.width, kind.indexer_dim) if kind.indexer_dim else (kind.width,)
        scratch = tuple(4 * overlap * width for width in widths for _ in ("kv", "score"))
        parts += [Part(entry, ratio=kind.ratio), Part(scratch, overlap * kind.ratio)]
    return tuple(parts)


def owner_of(kind: LayerKind, architecture: Architecture) -> LayerKind:
    """The layer whose cache it reads; itself, where it has its own."""
    if not isinstance(kind, Shared):
        return kind
    return next((each for each, _ in architecture.caches if each.kind == kind.of), NoCache())


def _shared(kind: Shared, setup: Setup) -> tuple[Part, ...]:
    """A layer that reads another's cache has blocks of its own all the same, of the shape of its kind."""
    return layer_parts(owner_of(kind, setup.served), setup)


_RULES: dict[type, Callable[[Any, Setup], tuple[Part, ...]]] = {
    Full: _attention,
    Sliding: _attention,
    Chunked: _attention,
    Cross: _attention,
    Latent: _latent,
    Compressed: _compressed,
    Shared: _shared,
    NoCache: lambda kind, setup: (),
}


def _state(kind: State, setup: Setup, ssm_dtype: str) -> tuple[Part, ...]:
    """The recurrent part, and ``kernel - 1`` columns of the convolution in the model's format."""
    model, tp = setup.architecture, setup.tensor_parallel_size
    rule = _STATES.get(model.model_type)
    if rule is None:
        raise UnsupportedError(
            f"tensorrt-llm keeps no states for model type {model.model_type!r} "
            "(_torch/pyexecutor/config_utils.py at 00679c66c3e3, is_hybrid_linear)"
        )
    if kind.recurrent_elements % tp or kind.conv_channels % tp:
        raise UnsupportedError(f"tensorrt-llm does not divide the states of {model.name} among {tp} devices")
    if setup.draft is not None:
        raise NotModelledError(
            f"tensorrt-llm is not modelled for a draft beside states ({model.name}): what it keeps between draft "
            "tokens was not read",
            hint="leave the draft out",
        )
    of_rule = {"model": "model", "stated": kind.recurrent_dtype, "float32": "float32"}[rule]
    chosen = of_rule if ssm_dtype == "auto" or rule == "float32" else ssm_dtype
    own = parse_dtype(model.dtype)
    recurrent = own if chosen == "model" else parse_dtype(chosen)
    columns = kind.conv_channels // tp * (kind.conv_kernel - 1)
    return (Part((recurrent.bytes_for(kind.recurrent_elements // tp), own.bytes_for(columns)), ratio=0),)


def _stored(dtype: DType, elements: int) -> tuple[int, ...]:
    """The buffers of so many numbers: nvfp4 keeps its scales, one a 16 numbers, in a buffer of their own."""
    if dtype.name == "nvfp4":
        if elements % 16:
            raise UnsupportedError(
                f"tensorrt-llm has nvfp4 caches of whole groups of 16 numbers, not of {elements} "
                "(_torch/pyexecutor/resource_manager.py, calculate_scaling_factor_size_bytes)"
            )
        return elements // 2, elements // 16
    return (dtype.bytes_for(elements),)


def _index_bytes(width: int) -> int:
    return width + width // 128 * 4


def check_model(setup: Setup) -> tuple[str, ...]:
    """Refuse what TensorRT-LLM has no class for, and heads that it does not divide; notes on what runs the model.

    Raises:
        UnsupportedError: with the registry, or the sizes that work.
        NotModelledError: a manager of the model's own.
    """
    model, caches = setup.architecture.model_type, [kind for kind, _ in setup.served.caches]
    refuse_uneven_heads("tensorrt-llm", setup)
    shapes = {(kind.rank, kind.rope_dim) for kind in caches if isinstance(kind, Latent)}
    shapes |= {(kind.head_dim, 0) for kind in caches if isinstance(kind, Full | Sliding | Chunked) and shapes}
    if len(shapes) > 1 or all(isinstance(kind, NoCache | Cross) for kind in caches):
        raise UnsupportedError(
            "tensorrt-llm keeps latents of one shape in all layers that attend, or K and V, which "
            f"{setup.architecture.name} has not (_torch/pyexecutor/_util.py at 000439672005, _create_kv_cache_manager)"
        )
    if model in _AUTODEPLOY:
        return (f"tensorrt-llm runs model type {model} in its AutoDeploy backend, with the same blocks",)
    if model in BUILT:
        return (f"tensorrt-llm runs model type {model} in engines that are built (up to 1.2), whose blocks round up",)
    if model in _OWN_MANAGERS:
        raise NotModelledError(
            f"tensorrt-llm is not modelled for model type {model!r}: its own cache manager was not read",
            hint="use the ideal engine for the report's accounting, or vllm",
        )
    if model not in _PYTORCH and model != "custom":
        raise UnsupportedError(f"tensorrt-llm's PyTorch backend has no class for model type {model!r} ({_REGISTRY})")
    return ()


def uses_pools(architecture: Architecture) -> bool:
    """Whether KVCacheManagerV2 serves the model where nobody chooses: states, several head widths, index keys of M3,
    compressed layers.
    """
    widths = {kind.head_dim for kind, _ in architecture.caches if isinstance(kind, Full | Sliding | Chunked)}
    indexed = any(isinstance(kind, Full) and kind.indexer_dim for kind, _ in architecture.caches)
    compressed = any(isinstance(kind, Compressed) for kind, _ in architecture.caches)
    return architecture.has_states or indexed or compressed or len(widths) > 1
