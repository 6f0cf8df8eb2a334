"""transformers: what DynamicCache and StaticCache keep alive, which is more than what they show.

A sliding layer of a DynamicCache keeps a view of its last W - 1 tokens, and the view keeps the whole tensor behind it:
after one forward of N tokens all N stay allocated until the next forward. With W = 4 and a prefill of 10 tokens the
cache shows 3 tokens and holds 10; after one decode step it shows 3 and holds 3 + 1.

Source: transformers 5.24.0 cache_utils.py (:246-248 the views, :524 the static cache, :1959 the layer types).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, assert_never

from pydantic import Field, field_validator, model_validator

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
)
from kvcalc.dtypes import BFLOAT16, FLOAT16, FLOAT32, DType, parse_dtype
from kvcalc.engines.base import Loads, WorkingMemory, refuse_tensor_parallel
from kvcalc.engines.options import EngineOptions
from kvcalc.engines.releases import Release, note_on, release, text
from kvcalc.engines.transformers.offloaded import OffloadedPlan, neighbours
from kvcalc.engines.transformers.plan import SOURCE, LayerCost, Part, TransformersPlan, summed
from kvcalc.engines.transformers_memory import Forward, transformers_working_memory
from kvcalc.errors import NotModelledError, UnsupportedError
from kvcalc.units import MAX_TOKENS, ceil_div
from kvcalc.widths import Widths

if TYPE_CHECKING:
    from kvcalc.device import Device, Platform
    from kvcalc.setup import Setup

CacheClass = Literal["dynamic", "static", "quantized", "offloaded", "offloaded_static", "dynamic_unconfigured"]
Backend = Literal["quanto", "hqq", "fp8"]

#: Releases whose source was read. One between two of them follows the older, and a note says so.
_READ: tuple[Release, ...] = (
    *((4, 57, 1), (5, 0, 0)),
    *((5, minor, 0) for minor in (12, 13, 14, 15, 17, 18, 20, 22, 23, 24)),
)
_NEWEST = text(_READ[-1])
#: MLA layers cache the latent since this release, before it every decompressed head.
_LATENT_SINCE = (5, 15, 0)
#: The same of MLA layers with an indexer (modeling_deepseek_v32.py, modeling_glm_moe_dsa.py), which were later.
_INDEXED_LATENT_SINCE = (5, 18, 0)
#: The oldest release whose state layers and indexers were measured: 5.17.0, on an H100.
_MEASURED_SINCE = (5, 17, 0)
#: The oldest release read that has DeepSeek V4 and MiniMax M3, whose layers have caches of their own.
_SPARSE_SINCE = (5, 12, 0)
#: A StaticCache has a width of its own for V since this release, ...
_STATIC_V_SINCE = (5, 0, 0)
#: ... and a QuantizedCache refuses all but full attention, and knows fp8, since these.
_QUANTIZED_CHECKS_SINCE, _FP8_SINCE = (5, 14, 0), (5, 22, 0)
#: Names of caches that generate() still takes (generation/configuration_utils.py:50, generation/utils.py:2123).
_OLD_NAMES = {
    "sliding_window": "static",
    "hybrid": "dynamic",
    "hybrid_chunked": "static",
    "offloaded_hybrid": "offloaded_static",
    "offloaded_hybrid_chunked": "offloaded_static",
}
#: Bits that a backend quantises to (cache_utils.py:928, :977).
_BITS: dict[Backend, tuple[int, ...]] = {"quanto": (2, 4), "hqq": (1, 2, 3, 4, 8), "fp8": (8,)}
#: The classes whose forward takes no cache at all: every step computes all tokens (models/openai/modeling_openai.py).
_WITHOUT_CACHE = frozenset({"openai-gpt"})
#: MiniMaxCache keeps the lightning attention's states in the model's format (modeling_minimax.py:202-209).
_OWN_STATE_CACHE = frozenset({"minimax"})


class Transformers(EngineOptions):
    """Hugging Face transformers: DynamicCache, StaticCache, QuantizedCache, and DynamicCache without a config."""

    name: ClassVar[str] = "transformers"
    keeps_prefixes_apart: ClassVar[str] = "generate gives each row of a batch its cache (cache_utils.py)"
    summary: ClassVar[str] = "DynamicCache or StaticCache; a prefill's sliding layers stay allocated in full as views"
    follows: ClassVar[str] = _NEWEST
    formula: ClassVar[str] = (
        "dynamic: bytes = B x sum over layers of token bytes x (full: P + q; sliding, chunked: min(P, W - 1) + q),\n"
        "  at the fullest forward of the prefill: q tokens on P cached ones; without prefill_chunk P = 0, q = context\n"
        "  steady_bytes: q = 1, so a sliding layer holds min(context, W)\n"
        "static: full context, sliding and chunked min(context, W)\n"
        "dynamic_unconfigured: every layer full\n"
        "quantized: full layers alone, an element takes nbits / 8 + 2 x element bytes / q_group_size; the last tokens\n"
        "  (fewer than residual_length) stay as they are; fp8: one byte an element and 8 a layer\n"
        "offloaded: states, and the largest two layers in a row; offloaded_static: sliding layers stay, too\n"
        "compressed (DeepSeek V4): K = V of the window, one entry for ratio tokens, and the tokens that wait for one\n"
        "state layers: conv channels x kernel x element bytes + recurrent elements x 4"
    )
    loads: ClassVar[Loads | None] = Loads(
        "auto-round awq bitsandbytes compressed-tensors eetq fbgemm-fp8 fp8 gguf gptq hqq mxfp4 mxfp8 nvfp4 torchao",
        "quantizers/auto.py",
    )
    weight_formats: ClassVar[tuple[str, ...]] = ("bnb_int8", "awq", "gptq", "nf4", "nf4_double")
    sources: ClassVar[tuple[str, ...]] = (
        "transformers 5.24.0 cache_utils.py:246-248 (views), :524 (static), :1959 (layer types)",
        "transformers 4.57.1, 5.0.0, 5.12.0 cache_utils.py: the same views",
        "MLA: decompressed heads in 4.57.1 to 5.14.0, the latent since 5.15.0 (with an indexer since 5.18.0)",
        "transformers 5.24.0 cache_utils.py:316, :670: one indexer key a token in layers that own an indexer",
        "transformers 5.24.0 cache_utils.py:750-1060 (quantised: optimum-quanto 0.2.7, hqq 0.2.8), :1558 (offloaded)",
        "transformers 5.12.0 to 5.24.0 models/deepseek_v4, models/minimax_m3_vl: caches of their own, the same in all",
    )
    not_modelled: ClassVar[tuple[str, ...]] = (
        "QuantizedCache with axis_key or axis_value other than 0, and the copy that it dequantises in every step",
        "the second copy of one layer's K or V that torch.cat needs for a moment in every decode step",
        "the CUDA allocator's rounding of each tensor to 512 bytes, and up to 1 MiB of a block that it does not split",
        "a sequence that generate() ends: its last token is never cached, so P prompt and G new tokens are P + G - 1",
        "multi-token-prediction layers: transformers does not run them",
    )
    platforms: ClassVar[frozenset[Platform]] = frozenset({"cuda", "rocm", "metal", "gaudi", "tpu"})
    evidence: ClassVar[str] = (
        "every recorded cache of transformers 5.23.0 to the byte, held and logical (5.24.0 has the same rules by its "
        "source); its own models and caches at random (tests/oracles/transformers.py): 0 bytes of difference; the CUDA "
        "allocator's count of 5.17.0 on an H200 within 512 bytes a tensor"
    )
    releases: ClassVar[tuple[tuple[str, ...], ...]] = tuple((text(each),) for each in reversed(_READ))
    frugal_options: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "cache": ("dynamic", "static"),
        "prefill_chunk": (8192, 2048),
    }

    cache: CacheClass = Field(
        "dynamic",
        description="cache_implementation of generate(); dynamic_unconfigured is DynamicCache() without the config",
    )
    backend: Backend = Field("quanto", description="what quantises, where cache=quantized")
    nbits: int = Field(4, description="bits of a quantised element: 2 or 4, with hqq 1, 2, 3, 4 or 8")
    q_group_size: int = Field(64, ge=8, le=MAX_TOKENS, multiple_of=8, description="elements that share a scale")
    residual_length: int = Field(
        128, ge=1, le=MAX_TOKENS, description="tokens at which the cache quantises what it keeps as it is"
    )
    prefill_chunk: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="tokens a forward of the prefill; None: the whole prompt in one forward"
    )
    attn_implementation: Literal["sdpa", "eager"] = Field(
        "sdpa", description="sdpa, or eager: every score is written out; the cache is the same"
    )
    version: str = Field(_NEWEST, description="release; it decides what MLA layers cache")

    @property
    def pads_to_longest(self) -> bool:
        """A batch is padded to its longest sequence."""
        return True

    @field_validator("cache", mode="before")
    @classmethod
    def _todays_name(cls, cache: Any) -> Any:
        return _OLD_NAMES.get(cache, cache) if isinstance(cache, str) else cache

    @model_validator(mode="after")
    def _bits_of_backend(self) -> Self:
        if self.backend != "fp8" and self.nbits not in _BITS[self.backend]:
            known = ", ".join(map(str, _BITS[self.backend]))
            raise ValueError(f"{self.backend} quantises to {known} bits")
        return self

    @field_validator("version")
    @classmethod
    def _known_version(cls, version: str) -> str:
        release(version)  # raises ValueError where the text is no version
        return version

    def working_memory(self, setup: Setup, device: Device, context: int, batch_size: int) -> WorkingMemory:
        """The peak of one forward of the prefill, and the CUDA context."""
        one = Forward(
            tokens=context,
            past=0,
            batch_size=batch_size,
            element_bytes=parse_dtype(setup.architecture.dtype).block_bytes,
            keeps_scores=self.attn_implementation == "eager",
        )
        return transformers_working_memory(Widths(setup.architecture), context, self.prefill_chunk, one, device)

    @property
    def is_static(self) -> bool:
        """A StaticCache, whose tensors have their full length from the start."""
        return self.cache in ("static", "offloaded_static")

    def prepare(self, setup: Setup) -> TransformersPlan | OffloadedPlan:
        """Compute the parts of each distinct kind once.

        Raises:
            UnsupportedError: tensor parallelism, a quantised format, or a cache class that the model does not run with.
            NotModelledError: a layer whose cache is not known.
        """
        architecture = setup.served
        refuse_tensor_parallel(self.name, setup)
        if architecture.model_type in _WITHOUT_CACHE:
            raise UnsupportedError(
                f"transformers keeps no cache of {architecture.name}: its class takes none (models/openai)",
                hint="use ideal for the report's accounting",
            )
        for dtype in (setup.k_dtype, setup.v_dtype):
            refuse_other_than_float(self.name, dtype, "transformers caches what the model computes; use bfloat16")
        costs = tuple(self._cost(architecture, kind, count, setup) for kind, count in architecture.caches)
        if self.cache in ("offloaded", "offloaded_static"):
            return self._offloaded(architecture, costs, self._notes(architecture, setup))
        keeps_some = self.cache == "quantized" and self.backend != "fp8"
        return TransformersPlan(
            costs=costs,
            parts=summed(costs),
            static=self.is_static,
            prefill_chunk=self.prefill_chunk,
            residual_length=self.residual_length if keeps_some else 0,
            outside_bytes=_outside_bytes(architecture, setup),
            notes=self._notes(architecture, setup),
        )

    def _offloaded(self, model: Architecture, costs: tuple[LayerCost, ...], notes: tuple[str, ...]) -> OffloadedPlan:
        """States stay on the device, and so do the sliding layers of a StaticCache; the host keeps all others."""
        resident: list[LayerCost] = []
        moved: dict[LayerKind, tuple[Part, ...]] = {}
        for cost in costs:
            match cost.kind:
                case State() if not _keeps_state_outside(model):
                    resident.append(cost)
                case Sliding() | Chunked() if self.is_static:
                    resident.append(cost)
                case Full(indexer_dim=0) | Sliding() | Chunked() | Latent(indexer_dim=0):
                    moved[cost.kind] = cost.parts
                case Shared() | NoCache():
                    pass
                case _:
                    raise _unknown(model, f"{kind_label(cost.kind)} layers in an offloaded cache", "use cache=dynamic")
        order = [model.layers[at].cache for at in model.order]
        layers = [moved[kind] for kind in order if kind in moved]
        if not layers and any(cost.window for cost in resident):
            raise UnsupportedError(
                f"a StaticCache offloads full layers alone, and {model.name} has none (cache_utils.py:1575)",
                hint="use cache=static",
            )
        return OffloadedPlan(
            tuple(resident), neighbours(layers), len(layers), self.is_static, self.prefill_chunk, notes
        )

    def _cost(self, model: Architecture, kind: LayerKind, count: int, setup: Setup) -> LayerCost:
        if self.cache == "quantized":
            return self._quantized(model, kind, count, setup)
        key, value = setup.k_dtype.block_bytes, setup.v_dtype.block_bytes
        match kind:
            case Full() | Sliding() | Chunked():
                window = self._window(kind)
                return LayerCost(kind, count, self._attention(model, kind, window, key, value), window)
            case Latent():
                return LayerCost(kind, count, self._latent(model, kind, key, value))
            case State():
                return LayerCost(kind, count, _fixed(self._state_bytes(model, kind, key)))
            case Parallel():
                window = self._window(kind.attention)
                parts = self._attention(model, kind.attention, window, key, value)
                return LayerCost(kind, count, parts + _fixed(self._state_bytes(model, kind.state, key)), window)
            case Cross():
                tokens = setup.encoder_tokens
                return LayerCost(kind, count, _fixed(tokens * _pair(kind, key, value)), encoder_tokens=tokens)
            case Compressed():
                return LayerCost(kind, count, self._compressed(model, kind, key, value), kind.window)
            case Shared() | NoCache():
                return LayerCost(kind, count)
        assert_never(kind)

    def _window(self, kind: Full | Sliding | Chunked) -> int | None:
        if isinstance(kind, Full) or self.cache == "dynamic_unconfigured":
            return None
        window = kind.chunk if isinstance(kind, Chunked) else kind.window
        # A window of 1 keeps 1 - 1 = 0 tokens by the slice [-0:], which is the whole tensor.
        return None if window == 1 and not self.is_static else window

    def _attention(
        self, model: Architecture, kind: Full | Sliding | Chunked, window: int | None, key: int, value: int
    ) -> tuple[Part, ...]:
        if kind.extra_state_bytes:
            raise UnsupportedError(
                f"no class of transformers {_NEWEST} keeps a convolution over K and V (models/auto/auto_mappings.py): "
                f"{model.name} runs there by code of its own repository alone",
                hint="use mlx-lm, or ideal for the report's accounting",
            )
        self._check_static_widths(model, kind.head_dim, kind.v_head_dim)
        token_bytes = _pair(kind, key, value)
        if isinstance(kind, Full) and kind.indexer_dim:
            self._check_own_cache(
                model, "index keys", "update_index", "models/minimax_m3_vl/modeling_minimax_m3_vl.py:570"
            )
            token_bytes += kind.indexer_dim * key
        if window is None:
            return (Part("tokens", token_bytes),)
        return (Part("buffer" if self.is_static else "window", token_bytes, window),)

    def _compressed(self, model: Architecture, kind: Compressed, key: int, value: int) -> tuple[Part, ...]:
        """DeepSeek V4's layers: K is V, but in those of a window alone; what waits for an entry are views, too.

        With four tokens an entry, each entry takes a part of the entry before, so the last one's four tokens stay.
        Source: transformers 5.24.0 models/deepseek_v4/modeling_deepseek_v4.py:157-330.
        """
        where = "models/deepseek_v4/modeling_deepseek_v4.py:1229"
        self._check_own_cache(model, "compressed entries", "store_compression_weights", where)
        if self.is_static:
            raise UnsupportedError(f"no StaticCache has compressed layers ({where})", hint="use cache=dynamic")
        if kind.ratio is None:
            return (Part("window", kind.width * (key + value), kind.window),)
        width = kind.width + kind.indexer_dim
        entries = (Part("window", kind.width * key, kind.window), Part("entries", width * key, kind.ratio))
        if not kind.indexer_dim:
            return (*entries, Part("waiting", 2 * width * key, kind.ratio))
        # The gate of the last entry has the format of its bias, which is float32.
        last = Part("closed", kind.ratio * width * (key + 4), kind.ratio)
        return (*entries, Part("waiting", 2 * 2 * width * key, kind.ratio), last)

    def _check_own_cache(self, model: Architecture, what: str, method: str, where: str) -> None:
        """Refuse what only a layer class of the model's own keeps, where another class stands in its place."""
        if release(self.version) < _SPARSE_SINCE:
            raise _unknown(model, f"{what} in {self.version}", f"use version={_NEWEST}")
        if self.cache == "dynamic_unconfigured":
            raise UnsupportedError(
                f"DynamicCache() without a config has no {method}, so {model.name} ends in an AttributeError ({where})",
                hint="use cache=dynamic, which passes the config as generate() does",
            )

    def _check_static_widths(self, model: Architecture, k_dim: int, v_dim: int) -> None:
        if self.is_static and k_dim != v_dim and release(self.version) < _STATIC_V_SINCE:
            raise UnsupportedError(
                f"a StaticCache of transformers {self.version} gives V the width of K, and those of {model.name} "
                "differ (cache_utils.py:283)",
                hint="use cache=dynamic",
            )

    def _latent(self, model: Architecture, kind: Latent, key: int, value: int) -> tuple[Part, ...]:
        if kind.window is not None:
            raise _unknown(model, "latent (MLA) layers with a window")
        if kind.indexer_dim:
            if release(self.version) < _MEASURED_SINCE:
                raise _unknown(model, f"sparse-attention indexers in {self.version}", f"use version={_NEWEST}")
            if self.cache == "dynamic_unconfigured":
                raise UnsupportedError(
                    f"DynamicCache() without a config has no indexer keys, so {model.name} ends in a ValueError "
                    f"({SOURCE}:1713)",
                    hint="use cache=dynamic, which passes the config as generate() does",
                )
        k_dim, v_dim, heads = kind.rank, kind.rope_dim, 1
        if not self._caches_latent(model):
            k_dim, v_dim, heads = kind.nope_dim + kind.rope_dim, kind.v_head_dim, kind.num_heads
            self._check_static_widths(model, k_dim, v_dim)
        return (Part("tokens", heads * (k_dim * key + v_dim * value) + kind.indexer_dim * key),)

    def _quantized(self, model: Architecture, kind: LayerKind, count: int, setup: Setup) -> LayerCost:
        """A layer of a QuantizedCache: K and V in groups, but the tokens since they were last quantised.

        Source: transformers 5.24.0 cache_utils.py:750-1060, :2226; optimum-quanto 0.2.7 tensor/grouped.py, packed.py,
        optimizers/affine_optimizer.py; hqq 0.2.8 core/quantize.py, bitpack.py.
        """
        checks = release(self.version) >= _QUANTIZED_CHECKS_SINCE
        match kind:
            case Full(indexer_dim=0, extra_state_bytes=0):
                rows = ((kind.num_kv_heads, kind.head_dim), (kind.num_kv_heads, kind.v_head_dim))
            case Sliding(extra_state_bytes=0) | Chunked(extra_state_bytes=0) if not checks:
                rows = ((kind.num_kv_heads, kind.head_dim), (kind.num_kv_heads, kind.v_head_dim))
            case Latent(indexer_dim=0, window=None) if self._caches_latent(model):
                rows = ((1, kind.rank), (1, kind.rope_dim))
            case Latent(indexer_dim=0, window=None):
                rows = ((kind.num_heads, kind.nope_dim + kind.rope_dim), (kind.num_heads, kind.v_head_dim))
            case Shared() if not checks:
                return LayerCost(kind, count)
            case _:
                raise UnsupportedError(
                    f"a QuantizedCache is for full attention alone, and {model.name} has {kind_label(kind)} layers "
                    "(cache_utils.py:2235)",
                    hint="use cache=dynamic",
                )
        if self.backend == "fp8":
            if release(self.version) < _FP8_SINCE:
                raise UnsupportedError(
                    f"transformers {self.version} has no fp8 backend (cache_utils.py of 5.22.0 is the first)",
                    hint="use backend=quanto or hqq",
                )
            scales = Part("layer", 2 * 4)
            return LayerCost(kind, count, (Part("tokens", sum(heads * dim for heads, dim in rows)), scales))
        formats = (setup.k_dtype.block_bytes, setup.v_dtype.block_bytes)
        parts = [
            part
            for (heads, dim), element_bytes in zip(rows, formats, strict=True)
            for part in self._groups(model, heads * dim, element_bytes)
        ]
        as_is = sum(heads * dim * each for (heads, dim), each in zip(rows, formats, strict=True))
        return LayerCost(kind, count, (*parts, Part("residual", as_is)))

    def _groups(self, model: Architecture, elements: int, element_bytes: int) -> tuple[Part, ...]:
        """K or V of so many elements a token: packed bits, and a scale and a zero point a group."""
        group = self.q_group_size
        if elements % group:
            raise UnsupportedError(
                f"{self.backend} quantises groups of {group}, and a token of {model.name} has {elements} elements",
                hint="use a q_group_size that divides them",
            )
        size = elements // group
        scales = Part("groups", 2 * element_bytes, size)
        if self.backend == "quanto":  # packs along the groups: two of 4 bits share the bytes of one
            alone = Part("scales", 2 * element_bytes, packed=group)
            return Part("groups", group, size, 8 // self.nbits), alone if size == 1 else scales
        # hqq packs inside of a group, ten of 3 bits in an int32.
        packed = 4 * ceil_div(group, 10) if self.nbits == 3 else ceil_div(group * self.nbits, 8)
        return Part("groups", packed, size), scales

    def _caches_latent(self, model: Architecture) -> bool:
        """Whether MLA layers cache the latent; the classes with an indexer do so later than the others.

        A layer that reads another layer's indexer is of the same class: in 5.17.0 it caches its heads, too.
        """
        return release(self.version) >= (_INDEXED_LATENT_SINCE if model.has_sparse_latents else _LATENT_SINCE)

    def _state_bytes(self, model: Architecture, state: State, element_bytes: int) -> int:
        """States of one sequence: ``conv_kernel`` columns in the model's format, the recurrent part in float32."""
        if _keeps_state_outside(model):
            return 0
        if self.cache == "dynamic_unconfigured":
            raise UnsupportedError(
                f"DynamicCache() without a config has no state layers, so {model.name} ends in an IndexError "
                f"({SOURCE}:1642)",
                hint="use cache=dynamic, which passes the config as generate() does",
            )
        if release(self.version) < _MEASURED_SINCE:
            raise _unknown(model, f"state layers in {self.version}", f"use version={_NEWEST}")
        if self.is_static and model.model_type in _OWN_STATE_CACHE:
            raise UnsupportedError(
                f"transformers refuses a StaticCache for {model.name}, whose states need a cache class of its own",
                hint="use cache=dynamic",
            )
        recurrent_bytes = element_bytes if model.model_type in _OWN_STATE_CACHE else 4
        return state.conv_channels * state.conv_kernel * element_bytes + recurrent_bytes * state.recurrent_elements

    def _notes(self, model: Architecture, setup: Setup) -> tuple[str, ...]:
        note = note_on(self.name, self.version, _READ)
        notes = [note] if note else []
        if self.cache == "quantized" and self.backend != "fp8":
            notes.append(f"while decoding, up to {self.residual_length - 1} tokens stand beside it as they are")
        kinds = [kind for kind, _ in model.caches]
        if self.cache == "dynamic_unconfigured" and any(isinstance(kind, Sliding | Chunked) for kind in kinds):
            notes.append("DynamicCache() without the config knows no windows: every attention layer keeps all tokens")
        if self.cache == "dynamic" and any(isinstance(kind, Sliding) and kind.window == 1 for kind in kinds):
            notes.append("a window of 1 keeps every token: the slice [-0:] is the whole tensor")
        if model.has_latents and not self._caches_latent(model):
            notes.append(f"transformers {self.version} caches decompressed MLA heads; {_NEWEST} the latent")
        if any(isinstance(kind, Cross) for kind in kinds) and not setup.encoder_tokens:
            notes.append("encoder_tokens is 0, so the cross-attention cache is empty")
        if model.has_states and not _keeps_state_outside(model):
            form = "in the model's format" if model.model_type in _OWN_STATE_CACHE else "float32"
            notes.append(f"recurrent states are {form}, as on the pure torch path; CUDA kernels may differ")
        return tuple(notes)


def _pair(kind: Full | Sliding | Chunked | Cross, key: int, value: int) -> int:
    """Bytes of K and V of one token."""
    return kind.num_kv_heads * (kind.head_dim * key + kind.v_head_dim * value)


def _fixed(size: int) -> tuple[Part, ...]:
    return (Part("fixed", size),) if size else ()


def refuse_other_than_float(engine: str, dtype: DType, hint: str) -> None:
    """Refuse a storage format other than float32, float16 and bfloat16."""
    if dtype not in (FLOAT32, FLOAT16, BFLOAT16):
        raise UnsupportedError(f"{engine} does not cache K and V as {dtype.name} here", hint=hint)


def _keeps_state_outside(model: Architecture) -> bool:
    """RecurrentGemma keeps its RG-LRU and convolution states as attributes of the layers, not in the cache."""
    return model.model_type == "recurrent_gemma"


def _outside_bytes(model: Architecture, setup: Setup) -> int:
    if not _keeps_state_outside(model):
        return 0
    # These layers keep kernel - 1 columns, unlike the cache's own state layers.
    element_bytes = setup.k_dtype.block_bytes
    return sum(
        count * (kind.conv_channels * (kind.conv_kernel - 1) * element_bytes + kind.recurrent_elements * 4)
        for kind, count in model.caches
        if isinstance(kind, State)
    )


def _unknown(model: Architecture, what: str, hint: str = "use ideal for the report's accounting") -> NotModelledError:
    return NotModelledError(f"not modelled: how transformers caches {what} ({model.name})", hint=hint)
