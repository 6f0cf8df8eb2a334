"""Which models llama.cpp runs, and what it stores for one cell and one sequence of each of their layers.

Sources: llama.cpp 0c1e57098 and b11739. conversion/__init__.py (which classes are converted), src/models/*.cpp (which
layers slide), llama_model::create_memory in src/llama-model.cpp (which cache a model gets), src/llama-kv-cache.cpp,
src/llama-kv-cache-dsa.cpp, -msa.cpp, -dsv4.cpp, src/llama-memory-hybrid-idx.cpp and src/llama-memory-recurrent.cpp.
Model types are Hugging Face's; a GGUF's architecture is named by its model type.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

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
from kvcalc.engines.base import refuse_tensor_parallel
from kvcalc.errors import NotModelledError, UnsupportedError

if TYPE_CHECKING:
    from kvcalc.dtypes import DType
    from kvcalc.setup import Setup

#: Models whose local layers get the cache of a window: src/models/*.cpp sets swa_type for them. The order of local and
#: global layers is the architecture's own, because the key attention.sliding_window_pattern can state any.
SLIDES = frozenset(
    {
        *("afmoe", "cohere2", "cohere2_moe", "dots3note", "exaone4", "exaone_moe", "gemma2", "gemma3", "gemma3n"),
        *("gemma4", "gemma4_unified", "gpt_oss", "granite_swa", "granitemoe_swa", "laguna", "lfm2", "llama4", "maple"),
        *("mellum", "mimo_v2", "mimo_v2_flash", "muse_glimmer", "olmo2", "olmo3", "plamo3", "smallthinker"),
        *("spark2_5", "step35", "step3p5"),
    }
)
#: Models that llama.cpp runs with every attention layer holding the whole context.
NEVER_SLIDES = frozenset(
    {
        *("apertus", "arcee", "arctic", "baichuan", "bailing_moe", "bailing_moe_v2", "bailingmoe3", "bamba", "bitnet"),
        *("bloom", "chameleon", "chatglm", "codeshell", "cogvlm", "cohere", "dbrx", "deepseek", "deepseek_v2"),
        *("deepseek_v3", "deepseek_v32", "dots1", "ernie4_5", "ernie4_5_moe", "exaone", "falcon", "falcon_h1"),
        *("falcon_mamba", "gemma", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "glm4v", "glm4v_moe", "glm5_next"),
        *("glm_moe_dsa", "gpt2", "gpt_bigcode", "gpt_neox", "granite", "granitemoe", "granitemoehybrid"),
        *("granitemoeshared", "grok", "grovemoe", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hy_v4"),
        *("internlm2", "internlm3", "iquestcoder", "jais", "jais2", "jamba", "kimi_k2", "kimi_k3", "kimi_linear"),
        *("lfm2_moe", "llama", "maincoder", "mamba", "mamba2", "minicpm", "minicpm3", "minimax_m1", "minimax_m2"),
        *("minimax_m3", "minimax_m3_vl", "minimax_text_01", "ministral3", "mistral", "mistral4", "mixtral", "mpt"),
        *("nanbeige", "nemotron", "nemotron-nas", "nemotron_h", "olmo", "olmoe", "openelm", "orion", "phi", "phi3"),
        *("phimoe", "plamo", "plamo2", "plm", "qwen", "qwen2", "qwen2_5_omni", "qwen2_5_vl", "qwen2_audio"),
        *("qwen2_moe", "qwen2_vl", "qwen3", "qwen3_5", "qwen3_5_moe", "qwen3_moe", "qwen3_next", "qwen3_omni_moe"),
        *("qwen3_vl", "qwen3_vl_moe", "qwen4exp", "refact", "rwkv6", "rwkv7", "seed_oss", "smollm3", "solar_open"),
        *("stablelm", "starcoder", "starcoder2", "talkie", "xverse", "youtu"),
        # Architectures of GGUF files that are no model types of Hugging Face.
        *("arwkv7", "bailingmoe2", "deepseek2_ocr", "hrm_text", "hunyuan_vl", "llama_embed", "minimax_01", "paddleocr"),
        *("pangu_embedded", "phi2", "pockettts", "qwen3tts", "rwkv6qwen2"),
    }
)
#: Models that create_memory gives a cache class of its own, whose layers slide by that class's rule.
_OWN_CACHE = frozenset({"deepseek_v4"})
#: Model types that conversion/__init__.py of 0c1e57098 has no class for.
NOT_CONVERTED = frozenset(
    {
        *("axk1", "baichuan_m1", "blt", "codegen", "cwm", "doge", "flex_olmo", "flint", "gpt_neo", "gptj", "helium"),
        *("hunyuan", "hyperclovax", "inkling", "internlm", "kolibri1", "longcat_flash", "mimo", "minimax", "ministral"),
        *("mllama", "muse_spark", "nanochat", "olmo_hybrid", "opt", "persimmon", "phi3small", "phi4_multimodal"),
        *("recurrent_gemma", "rwkv5", "solar", "step3", "t5gemma", "t5gemma2", "telechat", "vaultgemma", "xlstm"),
        *("zamba", "zamba2", "zaya"),
    }
)
#: Models that keep no cache at all: create_memory returns none for encoders and diffusion models.
_WITHOUT_MEMORY = frozenset(
    {
        *("bert", "camembert", "distilbert", "roberta", "xlm-roberta", "eurobert", "jina_embeddings_v3", "modernbert"),
        *("nomic_bert", "neo_bert", "dream", "llada", "llada_moe", "rnd1"),
        *("gemma_embedding", "jina_bert_v2", "jina_bert_v3", "modern_bert", "nomic_bert_moe", "wavtokenizer_dec"),
    }
)
#: Gated-delta, Mamba-2 and convolution models that keep rollback states: llm_arch_supports_rs_rollback.
ROLLS_BACK = frozenset(
    {
        *("bailingmoe3", "deepseek_v4", "glm5_next", "kimi_k3", "lfm2", "lfm2_moe", "nemotron_h", "qwen3_5"),
        *("qwen3_5_moe", "qwen4exp"),
    }
)
_KNOWN_STATES = frozenset(
    {
        *("bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "kimi_linear", "lfm2", "lfm2_moe"),
        *("mamba", "mamba2", "minimax_m1", "minimax_text_01", "nemotron_h", "qwen3_5", "qwen3_5_moe", "qwen3_next"),
    }
)
#: Models whose MLA heads are always stored decompressed (src/models/minicpm3.cpp, plm.cpp).
_DECOMPRESSED = frozenset({"minicpm3", "plm"})
_DROPS_SHARED = frozenset({"gemma4", "gemma4_unified"})
_INDEXERS = frozenset(
    {
        *("deepseek_v32", "dots3note", "glm5_next", "glm_moe_dsa", "hy_v4", "minimax_m3", "minimax_m3_vl", "qwen4exp"),
    }
)
#: MiniMax M3's indexer cache is a plain one of one head, so it has a V too (src/llama-kv-cache-msa.cpp).
_INDEXER_WITH_VALUE = frozenset({"minimax_m3", "minimax_m3_vl"})
#: An indexer over pools of tokens caches key, gate and pooled key for each token, or key and pooled key
#: (src/llama-memory-hybrid-idx.cpp of b11739).
_INDEXER_ROWS = {"glm5_next": 3, "qwen4exp": 2}
_FIXED_WINDOWS = {"llama4": 8192, "smallthinker": 4096}  # models/llama4.cpp, models/smallthinker.cpp
_GEMMA3N_OWNERS = 20  # models/gemma3n.cpp:7
_EXAONE4_SLIDING_LAYERS = 64  # models/exaone4.cpp: the 32B model

_ENCODER_DECODERS = frozenset({"mt5", "t5", "umt5"})
_STATE_BYTES = 4  # states are float32 whatever the KV types

#: The cache types that ``-ctk`` and ``-ctv`` accept (common/arg.cpp:304-314), as llama.cpp prints them.
PRINTED_TYPES = {
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    **{name: name for name in ("q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")},
}

#: A cache of its own size: all tokens, the window, an indexer's keys, or one entry for each so many tokens.
Cells = Literal["cells", "cells_swa", "cells_4", "cells_128"]


@dataclass(frozen=True, slots=True)
class Store:
    """What one layer stores for each cell of one cache.

    Attributes:
        name: the cache, as llama.cpp creates it: each one prints a line of its own.
        cells: the count that its size is a multiple of.
        k_bytes, v_bytes: bytes of one cell.
        formula: the sum of both as arithmetic.
    """

    name: Literal["base", "swa", "indexer", "csa", "hca", "lid"]
    cells: Cells
    k_bytes: int
    v_bytes: int
    formula: str

    @property
    def cell_bytes(self) -> int:
        """K and V of one cell."""
        return self.k_bytes + self.v_bytes


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What llama.cpp stores for the layers of one kind.

    Attributes:
        kind: the layers, as the architecture states them.
        count: layers of this kind.
        stores: what they hold for each cell, the layer's own K and V first.
        conv_bytes, recurrent_bytes: bytes of one row of state in one layer.
        state_formula: the sum of both as arithmetic, empty for a layer without a state.
    """

    kind: LayerKind
    count: int
    stores: tuple[Store, ...] = ()
    conv_bytes: int = 0
    recurrent_bytes: int = 0
    state_formula: str = ""

    @property
    def state_bytes(self) -> int:
        """One row of state in one layer."""
        return self.conv_bytes + self.recurrent_bytes


@dataclass(frozen=True, slots=True)
class ModelCache:
    """A model's layers as llama.cpp stores them, whatever the context.

    Attributes:
        layers: one entry per layer kind.
        order: for each of the model's layers its entry in ``layers``.
        window: the one window of all sliding layers (``n_swa``), 0 where none slides.
        per_sequence: a stream for each sequence, each as long as the context, unified or not (DeepSeek V4).
        rolls_back: further rows of state can be kept for speculation.
        value_width: numbers of V in the widest layer.
        k_type, v_type: the types as llama.cpp prints them.
        notes: what a reader must know.
    """

    layers: tuple[LayerCost, ...]
    order: tuple[int, ...]
    window: int
    per_sequence: bool
    rolls_back: bool
    value_width: int
    k_type: str
    v_type: str
    notes: tuple[str, ...]

    def cell_bytes(self, cells: Cells) -> int:
        """Bytes of one cell of that count in all layers."""
        return sum(
            layer.count * store.cell_bytes for layer in self.layers for store in layer.stores if store.cells == cells
        )

    @property
    def state_bytes(self) -> int:
        """One row of state in all layers."""
        return sum(layer.count * layer.state_bytes for layer in self.layers)


def model_cache(
    architecture: Architecture, setup: Setup, key: DType, value: DType, *, flash_attn: bool, mla: bool
) -> ModelCache:
    """What llama.cpp stores for a model with K and V in these types.

    Raises:
        UnsupportedError: llama.cpp refuses the types, or has no such model.
        NotModelledError: a model type that is not known, with layers that no general rule covers.
    """
    refuse_tensor_parallel("llama.cpp", setup)
    _check_model(architecture)
    _check_types(key, value, flash_attn)
    positions = _owned(architecture)
    owners = [(given, kind, count) for (given, kind), count in Counter(positions).items()]
    ignores = _ignored_windows(architecture)
    heads = [_heads(architecture.model_type, _attention(kind), mla) for _, kind, _ in owners]
    own_class = architecture.model_type in _OWN_CACHE
    without_value = own_class or any(each is not None and not each.stores_value for each in heads)
    if without_value and key.name != value.name:
        raise UnsupportedError(
            f"llama.cpp refuses different K and V types ({key.name}, {value.name}) for a cache without V, "
            "as in MLA (src/llama-context.cpp)",
            hint="name one type",
        )
    # Without flash attention V is stored transposed, in rows as wide as the model's widest layer.
    widest = max((each.heads * each.value_dim for each in heads if each and each.stores_value), default=0)
    layers = []
    for (given, kind, count), each in zip(owners, heads, strict=True):
        stores: list[Store] = []
        if isinstance(kind, Compressed):
            stores = _compressed_stores(kind, key)
        elif each is not None:
            slides = _is_local(kind) and not ignores
            stores = [_store(each, key, value, None if flash_attn else widest, slides, flash_attn)]
            stores += _indexer_stores(architecture.model_type, kind, each, key, value)
        layers.append(LayerCost(given, count, tuple(stores), *_state_cost(kind)))
    numbers = {(given, kind): number for number, (given, kind, _) in enumerate(owners)}
    return ModelCache(
        tuple(layers),
        tuple(numbers[pair] for pair in positions),
        0 if ignores else _window(architecture),
        own_class,
        architecture.model_type in ROLLS_BACK,
        widest,
        PRINTED_TYPES[key.name],
        PRINTED_TYPES[value.name],
        _model_notes(architecture, ignores),
    )


def _check_types(key: DType, value: DType, flash_attn: bool) -> None:
    for dtype in (key, value):
        if dtype.name not in PRINTED_TYPES:
            hint = f"its types: {', '.join(PRINTED_TYPES.values())}"
            raise UnsupportedError(f"llama.cpp has no KV cache type {dtype.name} (common/arg.cpp)", hint=hint)
    if not flash_attn and value.block_elements > 1:
        raise UnsupportedError(
            f"llama.cpp refuses a quantised V cache ({value.name}) without flash attention (src/llama-context.cpp)",
            hint="leave flash_attn on, or store V as f16: --kv-cache-dtype q8_0/f16",
        )


def _check_model(architecture: Architecture) -> None:
    model_type = architecture.model_type
    if model_type in NOT_CONVERTED:
        raise UnsupportedError(
            f"llama.cpp does not run {architecture.name}: conversion/__init__.py has no class for {model_type}",
            hint="use vllm, transformers or mlx-lm",
        )
    if model_type not in _ENCODER_DECODERS and any(isinstance(kind, Cross) for kind, _ in architecture.caches):
        raise UnsupportedError(
            f"llama.cpp does not run {architecture.name}: its one encoder-decoder is T5 (conversion/__init__.py)",
            hint="use transformers or vllm",
        )
    for kind, _ in architecture.caches:
        reason = _unknown(model_type, kind)
        if reason:
            raise NotModelledError(
                f"{kind_label(kind)} layers of {architecture.name} are not modelled for llama.cpp: {reason}",
                hint="the ideal engine gives the report's accounting for every kind of layer",
            )


def _unknown(model_type: str, kind: LayerKind) -> str:
    """Why no rule says what llama.cpp stores for a layer of this kind, or nothing."""
    no_rule = f"no rule of {model_type} is known"
    match kind:
        case Parallel():
            return _unknown(model_type, kind.attention)
        case State() | NoCache():
            return ""
        case Full() | Sliding() | Chunked() if kind.extra_state_bytes:
            return "a state beside K and V has no place in its cache"
        case Full() | Latent() if kind.indexer_dim and model_type not in _INDEXERS:
            return no_rule
        case Sliding() | Latent() if window_of(kind) and model_type not in SLIDES | NEVER_SLIDES:
            return no_rule
        case Chunked() if model_type != "llama4":
            return no_rule
        case Shared() if model_type not in _DROPS_SHARED | {"gemma3n"}:
            return no_rule
        case Compressed() if model_type not in _OWN_CACHE or kind.ratio not in (None, 4, 128):
            return no_rule
        case Cross():
            return "no run of an encoder-decoder is recorded"
        case _:
            return ""


def _is_local(kind: LayerKind) -> bool:
    return not isinstance(kind, Compressed) and window_of(kind) is not None


def _window(architecture: Architecture) -> int:
    """The window of all sliding layers, 0 where there are none."""
    windows = {window for kind, _ in architecture.caches if (window := window_of(kind)) is not None}
    if windows and architecture.model_type in _FIXED_WINDOWS:
        return _FIXED_WINDOWS[architecture.model_type]
    if len(windows) > 1:
        raise UnsupportedError(
            f"llama.cpp has one window for all sliding layers (n_swa), and {architecture.name} has {len(windows)}",
            hint="give all sliding layers one window, as in @sw=1024",
        )
    return windows.pop() if windows else 0


def _model_notes(architecture: Architecture, ignores: str) -> tuple[str, ...]:
    model_type, notes = architecture.model_type, []
    if model_type not in SLIDES | NEVER_SLIDES | _OWN_CACHE | _WITHOUT_MEMORY:
        notes.append(f"no model type {model_type} is known in llama.cpp: its layers follow the general rule")
    fixed = _FIXED_WINDOWS.get(model_type)
    for kind, _ in architecture.caches:
        window = window_of(kind)
        if _is_local(kind) and ignores:
            notes.append(f"{ignores}: its {kind_label(kind)} layers keep the whole context")
        elif _is_local(kind) and fixed is not None and window != fixed:
            notes.append(f"llama.cpp sets the window of {model_type} to {fixed:,} tokens, not {window:,}")
        if _state(kind) and model_type not in _KNOWN_STATES:
            notes.append(f"the states of {model_type} follow llama.cpp's general rule; no run of it is recorded")
    if model_type == "gemma3n" and architecture.num_layers > _GEMMA3N_OWNERS:
        notes.append(f"llama.cpp gives a cache to the first {_GEMMA3N_OWNERS} layers of a Gemma 3n, as a constant")
    if model_type in _OWN_CACHE:
        notes.append("llama.cpp gives each sequence of this model a cache as long as the context, unified or not")
    return tuple(dict.fromkeys(notes))


def _ignored_windows(architecture: Architecture) -> str:
    """Why llama.cpp does not slide in this model, or nothing where it does."""
    if architecture.model_type in NEVER_SLIDES:
        return f"llama.cpp has no sliding window for {architecture.model_type}"
    if architecture.model_type == "exaone4" and architecture.num_layers != _EXAONE4_SLIDING_LAYERS:
        return f"llama.cpp slides in an EXAONE 4 of {_EXAONE4_SLIDING_LAYERS} layers only"
    return ""


def _owned(architecture: Architecture) -> list[tuple[LayerKind, LayerKind]]:
    """Each of the model's layers as stated, and as llama.cpp counts it.

    In Gemma 3n the first 20 layers own a cache and no other does, wherever the model starts to share; encoders and
    diffusion models keep nothing.
    """
    last: dict[str, LayerKind] = {}
    pairs: list[tuple[LayerKind, LayerKind]] = []
    for position, index in enumerate(architecture.order):
        kind = owned = architecture.layers[index].cache
        if architecture.model_type in _WITHOUT_MEMORY:
            owned = NoCache()
        elif architecture.model_type == "gemma3n":
            if position >= _GEMMA3N_OWNERS:
                owned = NoCache()
            elif isinstance(kind, Shared):
                owned = last.get(kind.of, kind)
            else:
                last[kind.kind] = kind
        pairs.append((kind, owned))
    return pairs


class _Heads(NamedTuple):
    """One attention layer as llama.cpp sees it; an MLA layer stores its latent as the K of one head, and no V."""

    heads: int
    key_dim: int
    value_dim: int
    stores_value: bool = True


_Attention = Full | Sliding | Chunked | Latent


def _attention(kind: LayerKind) -> _Attention | None:
    if isinstance(kind, Parallel):
        return kind.attention
    return kind if isinstance(kind, _Attention) else None


def _state(kind: LayerKind) -> State | None:
    if isinstance(kind, Parallel):
        return kind.state
    return kind if isinstance(kind, State) else None


def _heads(model_type: str, attention: _Attention | None, mla: bool) -> _Heads | None:
    match attention:
        case None:
            return None
        case Latent() if mla and model_type not in _DECOMPRESSED:
            return _Heads(1, attention.rank + attention.rope_dim, attention.rank, stores_value=False)
        case Latent():
            return _Heads(attention.num_heads, attention.nope_dim + attention.rope_dim, attention.v_head_dim)
        case _:
            return _Heads(attention.num_kv_heads, attention.head_dim, attention.v_head_dim)


def _store(heads: _Heads, key: DType, value: DType, value_width: int | None, slides: bool, flash_attn: bool) -> Store:
    """K and V of one layer; ``value_width`` replaces V's own width."""
    _check_blocks(heads, key, value, flash_attn)
    key_bytes, value_bytes = key.row_bytes(heads.heads, heads.key_dim), 0
    formula = _row_formula(f"{heads.heads} * {heads.key_dim}", key)
    if heads.stores_value:
        shown = f"{heads.heads} * {heads.value_dim}" if value_width is None else str(value_width)
        value_bytes = value.bytes_for(value_width or heads.heads * heads.value_dim)
        formula = f"{formula} + {_row_formula(shown, value)}"
    if slides:
        return Store("swa", "cells_swa", key_bytes, value_bytes, formula)
    return Store("base", "cells", key_bytes, value_bytes, formula)


def _indexer_stores(model_type: str, kind: LayerKind, heads: _Heads, key: DType, value: DType) -> list[Store]:
    """The keys of a sparse-attention indexer, in a cache beside the layers' own and as long."""
    if not isinstance(kind, Full | Latent) or not kind.indexer_dim:
        return []
    width = kind.indexer_dim * _INDEXER_ROWS.get(model_type, 1)
    formula, value_bytes = _row_formula(str(width), key), 0
    if model_type in _INDEXER_WITH_VALUE:
        value_bytes = value.bytes_for(heads.value_dim)
        formula = f"{formula} + {_row_formula(str(heads.value_dim), value)}"
    return [Store("indexer", "cells", key.bytes_for(width), value_bytes, formula)]


def _compressed_stores(kind: Compressed, key: DType) -> list[Store]:
    """DeepSeek V4: K of the window, of one entry for each 4 or 128 tokens, and the indexer's keys of the former."""
    row, formula = key.bytes_for(kind.width), _row_formula(str(kind.width), key)
    stores = [Store("swa", "cells_swa", row, 0, formula)]
    if kind.ratio == 4:
        stores.append(Store("csa", "cells_4", row, 0, formula))
        indexer = key.bytes_for(kind.indexer_dim)
        stores.append(Store("lid", "cells_4", indexer, 0, _row_formula(str(kind.indexer_dim), key)))
    elif kind.ratio == 128:
        stores.append(Store("hca", "cells_128", row, 0, formula))
    return stores


def _state_cost(kind: LayerKind) -> tuple[int, int, str]:
    """Bytes of the convolution's and of the recurrent part of one row of state, and their sum as arithmetic."""
    if isinstance(kind, Compressed) and kind.ratio:
        # llama_dsv4_comp_state: float32 keys and scores of the entries under way, ratio 4 with those of two entries.
        rows, width = (8, 2 * kind.width) if kind.ratio == 4 else (128, kind.width)
        indexer = 2 * kind.indexer_dim if kind.ratio == 4 else 0
        return 0, 2 * _STATE_BYTES * rows * (width + indexer), f"2 * {_STATE_BYTES} * {rows} * ({width} + {indexer})"
    state = _state(kind)
    if state is None:
        return 0, 0, ""
    columns = state.conv_kernel - 1
    conv = _STATE_BYTES * state.conv_channels * columns
    recurrent = _STATE_BYTES * state.recurrent_elements
    return conv, recurrent, f"{_STATE_BYTES} * ({state.recurrent_elements} + {state.conv_channels} * {columns})"


def _row_formula(elements: str, dtype: DType) -> str:
    if dtype.block_elements == 1:
        return f"{elements} * {dtype.block_bytes}"
    return f"{elements} // {dtype.block_elements} * {dtype.block_bytes}"


def _check_blocks(heads: _Heads, key: DType, value: DType, flash_attn: bool) -> None:
    for dtype, dim, what in ((key, heads.key_dim, "K"), (value, heads.value_dim, "V")):
        row = dim if flash_attn else heads.heads * dim
        if row % dtype.block_elements:
            raise UnsupportedError(
                f"llama.cpp refuses {dtype.name} for {what}: its blocks of {dtype.block_elements} do not divide "
                f"{'heads' if flash_attn else 'rows'} of {row} (src/llama-context.cpp)",
                hint="use f16, bf16 or f32",
            )
