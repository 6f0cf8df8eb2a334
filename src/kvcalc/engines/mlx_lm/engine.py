"""MLX-LM's options, and what its class of a model keeps of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, assert_never

from pydantic import Field, ValidationInfo, field_validator

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
from kvcalc.derivation import Derivation
from kvcalc.dtypes import BFLOAT16, FLOAT16, FLOAT32, parse_dtype
from kvcalc.engines.base import Loads, Server, WorkingMemory, refuse_tensor_parallel
from kvcalc.engines.mlx_lm import classes
from kvcalc.engines.mlx_lm.memory import mlx_lm_working_memory
from kvcalc.engines.mlx_lm.plan import LayerCost, MlxLmPlan
from kvcalc.engines.mlx_lm.slots import Growth
from kvcalc.engines.options import EngineOptions
from kvcalc.engines.releases import note_on, release, text
from kvcalc.errors import UnsupportedError
from kvcalc.units import MAX_TOKENS
from kvcalc.widths import Widths

if TYPE_CHECKING:
    from kvcalc.device import Device, Platform
    from kvcalc.setup import Setup

#: Releases whose source was read.
_READ = ((0, 32, 2),)
_NEWEST = text(_READ[-1])


class MlxLm(EngineOptions):
    """MLX-LM on Apple silicon: KVCache, RotatingKVCache, QuantizedKVCache, ChunkedKVCache and ArraysCache."""

    name: ClassVar[str] = "mlx-lm"
    keeps_prefixes_apart: ClassVar[str] = "a cached prompt is copied to each request (mlx_lm/models/cache.py:1652)"
    summary: ClassVar[str] = "buffers grow by 256 slots; a prefill chunk stretches rotating buffers past the window"
    follows: ClassVar[str] = "0.32.2"
    formula: ClassVar[str] = (
        "context - 1 prompt tokens in chunks of prefill_step_size, then the last and decode_tokens more one by one\n"
        "full: on overflow slots = offset + ceil(n / 256) x 256 (uncut at multiples of 256)\n"
        "rotating: after a chunk min(past, W - 1) + n; after m single tokens min(W, slots + ceil(m / 256) x 256)\n"
        "bytes = B x sum of slots x KV heads x (K dim + V dim) x element bytes, at the largest moment\n"
        "kv_bits: an element takes bits / 8 + 2 x element bytes / kv_group_size"
    )
    loads: ClassVar[Loads | None] = Loads(
        "awq compressed-tensors gptq mlx modelopt mxfp4 mxfp8 nvfp4",
        "mlx_lm/utils.py load_model",
    )
    weight_formats: ClassVar[tuple[str, ...]] = ("8bit", "6bit", "5bit", "4bit", "3bit")
    holds_beside: ClassVar[frozenset[str]] = frozenset()
    sources: ClassVar[tuple[str, ...]] = (
        "mlx-lm 0.32.2 mlx_lm/models/cache.py:251-300, :345-360, :462-520, :553, :803 (lists of caches)",
        "mlx-lm 0.32.2 generate.py (chunks), make_cache of each model, ChunkedKVCache, gated_delta.py, ssm.py",
    )
    not_modelled: ClassVar[tuple[str, ...]] = (
        "tokens beyond decode_tokens: by default the figure is after one generated token",
        "the buffer cache of MLX itself, and the old buffer that lives while a larger one is filled",
        "prompts of several lengths in one batch (BatchKVCache pads them)",
        "speculative decoding with a draft model, and a prompt cache loaded from a file",
        "a RecurrentGemma whose lru_width is not its hidden_size (the class takes the hidden_size)",
    )
    platforms: ClassVar[frozenset[Platform]] = frozenset({"metal"})
    evidence: ClassVar[str] = (
        "every recorded cache of mlx-lm 0.32.2 to the byte; its own models of the published configurations with random "
        "prompts, chunks and options (tests/oracles/mlx_lm.py): 0 bytes of difference"
    )
    server: ClassVar[Server | None] = Server(("mlx_lm.server", "--model", "{model}"), {})
    releases: ClassVar[tuple[tuple[str, ...], ...]] = tuple((text(each),) for each in reversed(_READ))
    frugal_options: ClassVar[Mapping[str, tuple[Any, ...]]] = {"prefill_step_size": (1024, 512)}

    version: str = Field(_NEWEST, description="release whose rule is followed")
    prefill_step_size: int = Field(2048, ge=1, le=MAX_TOKENS, description="tokens of a prefill chunk")
    decode_tokens: int = Field(
        1, ge=0, le=MAX_TOKENS, description="generated tokens that are fed back, after the last prompt token"
    )
    max_kv_size: int | None = Field(
        None, ge=5, le=MAX_TOKENS, description="rotating buffers of this size, for models without make_cache"
    )
    kv_bits: int | None = Field(None, description="quantise the cache to so many bits")
    kv_group_size: int = Field(64, description="elements that share a scale and a bias")
    quantized_kv_start: int = Field(
        0,
        ge=0,
        le=MAX_TOKENS,
        description="tokens from which kv_bits applies; mlx-lm's own default is 5000, here it is the whole cache",
    )

    @property
    def pads_to_longest(self) -> bool:
        """A batch is padded to its longest sequence."""
        return True

    @field_validator("version")
    @classmethod
    def _known_version(cls, version: str) -> str:
        release(version)  # raises ValueError where the text is no version
        return version

    @field_validator("kv_bits", "kv_group_size")
    @classmethod
    def _known_to_mlx(cls, value: int | None, info: ValidationInfo) -> int | None:
        known = (2, 3, 4, 5, 6, 8) if info.field_name == "kv_bits" else (32, 64, 128)
        if value is not None and value not in known:
            raise ValueError(f"mlx quantises with {', '.join(map(str, known))}")
        return value

    def prepare(self, setup: Setup) -> MlxLmPlan:
        """Compute the cost of each distinct kind, and the growth pattern of the chunks, once.

        Raises:
            UnsupportedError: tensor parallelism, a quantised format, kv_bits where MLX-LM cannot quantise, a model type
                without a class, or a layer that no class of its keeps.
        """
        architecture = setup.served
        refuse_tensor_parallel(self.name, setup)
        if architecture.model_type not in classes.WITH_CLASS:
            raise UnsupportedError(
                f"mlx-lm {_NEWEST} does not run {architecture.name}: it has no class for the model type "
                f"{architecture.model_type} (mlx_lm/utils.py:222)",
                hint="use ideal for the report's accounting, or llama.cpp",
            )
        for dtype in (setup.k_dtype, setup.v_dtype):
            if dtype not in (FLOAT32, FLOAT16, BFLOAT16):
                hint = "quantise the cache with kv_bits=8 or kv_bits=4"
                raise UnsupportedError(f"mlx-lm does not cache K and V as {dtype.name}", hint=hint)
        costs = tuple(self._cost(architecture, kind, count, setup) for kind, count in architecture.caches)
        full = [cost for cost in costs if cost.token_bytes and cost.window is None and cost.chunk is None]
        bounded = tuple(cost for cost in costs if cost.window is not None or cost.chunk is not None)
        windows: dict[int, int] = {}
        for cost in bounded:
            if cost.window is not None:
                windows[cost.window] = windows.get(cost.window, 0) + cost.count * cost.token_bytes
        has_chunked = any(cost.chunk is not None for cost in bounded)
        return MlxLmPlan(
            costs=costs,
            growth=Growth.of(self.prefill_step_size),
            single_tokens=1 + self.decode_tokens,  # the last prompt token is fed alone, too
            quantized_start=self.quantized_kv_start if self.kv_bits is not None else None,
            fixed_bytes=sum(cost.count * cost.fixed_bytes for cost in costs),
            full_token_bytes=sum(cost.count * cost.token_bytes for cost in full),
            full_quantized_bytes=sum(cost.count * cost.quantized_token_bytes for cost in full),
            bounded=bounded,
            windows=tuple(windows.items()),
            is_simple=not has_chunked and not (self.kv_bits is not None and self.quantized_kv_start),
            notes=self._notes(architecture, costs),
        )

    def working_memory(self, setup: Setup, device: Device, context: int, batch_size: int) -> WorkingMemory:
        """The peak of a prefill chunk."""
        element = parse_dtype(setup.architecture.dtype).block_bytes
        work, quantises = Derivation(context, batch_size), self.kv_bits is not None
        widths = Widths(setup.architecture)
        return mlx_lm_working_memory(widths, work, self.prefill_step_size, element, quantises, device)

    def _cost(self, model: Architecture, kind: LayerKind, count: int, setup: Setup) -> LayerCost:
        key = setup.k_dtype.block_bytes
        match kind:
            case Full() | Sliding() | Chunked():
                window = self._window(model, kind)
                heads = 1 if model.model_type in classes.ONE_KV_HEAD else kind.num_kv_heads
                cost = self._heads(model, kind, (heads, kind.head_dim, kind.v_head_dim), window, setup)
                index_key = key * kind.indexer_dim if isinstance(kind, Full) else 0
                if index_key and model.model_type not in classes.WITH_INDEX_KEYS:
                    raise _no_class(model, "index keys beside full attention")
                return replace(
                    cost,
                    count=count,
                    token_bytes=cost.token_bytes + index_key,
                    quantized_token_bytes=cost.quantized_token_bytes + index_key,
                    fixed_bytes=kind.extra_state_bytes * key // 2,  # stated for a format of two bytes
                )
            case Latent():
                return replace(self._latent(model, kind, setup), count=count)
            case State():
                return LayerCost(kind, count, fixed_bytes=_state_bytes(model, kind, key))
            case Parallel():
                inner = kind.attention
                dims = (inner.num_kv_heads, inner.head_dim, inner.v_head_dim)
                cost = self._heads(model, kind, dims, self._window(model, inner), setup)
                return replace(cost, count=count, fixed_bytes=_state_bytes(model, kind.state, key))
            case Cross():
                raise _no_class(model, "an encoder's K and V")
            case Compressed():
                raise _no_class(model, "DeepSeek V4's compressed layers")
            case Shared() | NoCache():
                return LayerCost(kind, count)
        assert_never(kind)

    def _window(self, model: Architecture, kind: Full | Sliding | Chunked) -> int | None:
        if model.model_type in classes.WITHOUT_MAKE_CACHE:
            return self.max_kv_size
        if not isinstance(kind, Sliding) or _ignores_window(model):
            return None
        return kind.window

    def _refuse_quantized(self, model: Architecture, window: int | None) -> None:
        reason = ""
        if window is not None:
            reason = (
                f"the rotating buffers of {model.name}: RotatingKVCache.to_quantized raises NotImplementedError once "
                f"{self.quantized_kv_start:,} tokens are cached"
            )
        elif model.model_type in classes.NEVER_QUANTIZED:
            line = classes.NEVER_QUANTIZED[model.model_type]
            reason = f"the cache of {model.name}: its class computes with it (models/{model.model_type}.py:{line})"
        if reason:
            hint = "leave kv_bits out" + (", or max_kv_size" if self.max_kv_size is not None else "")
            raise UnsupportedError(f"mlx-lm cannot quantise {reason}", hint=hint)

    def _quantized(self, elements: int, element_bytes: int) -> int:
        """Bytes of one head's K or V of one token: packed bits, and a scale and a bias a group."""
        assert self.kv_bits is not None
        if elements % self.kv_group_size:
            raise UnsupportedError(
                f"mlx quantises whole groups of {self.kv_group_size}, and a head of {elements} has none",
                hint="use a kv_group_size that divides the head dim",
            )
        return elements * self.kv_bits // 8 + 2 * element_bytes * (elements // self.kv_group_size)

    def _heads(
        self, model: Architecture, kind: LayerKind, dims: tuple[int, int, int], window: int | None, setup: Setup
    ) -> LayerCost:
        """A layer of K and V: ``dims`` are its heads and the widths of one head's K and V."""
        heads, k_dim, v_dim = dims
        key, value = setup.k_dtype.block_bytes, setup.v_dtype.block_bytes
        token_bytes = quantized = heads * (k_dim * key + v_dim * value)
        if self.kv_bits is not None and not _stays_unquantized(model, kind):
            self._refuse_quantized(model, window)
            quantized = heads * (self._quantized(k_dim, key) + self._quantized(v_dim, value))
        chunk = kind.chunk if isinstance(kind, Chunked) else None
        return LayerCost(kind, 1, token_bytes, quantized, None if chunk else window, chunk)

    def _latent(self, model: Architecture, kind: Latent, setup: Setup) -> LayerCost:
        if kind.window is not None or (kind.indexer_dim and model.model_type not in classes.WITH_INDEXER):
            raise _no_class(model, f"{kind_label(kind)} layers")
        window = self.max_kv_size if model.model_type in classes.WITHOUT_MAKE_CACHE else None
        if model.model_type in classes.DECOMPRESSED:
            dims = (kind.num_heads, kind.nope_dim + kind.rope_dim, kind.v_head_dim)
            return self._heads(model, kind, dims, window, setup)
        if model.model_type not in classes.LATENT:
            raise _no_class(model, "its MLA layers, and some classes keep every head")
        if self.kv_bits is not None and not _stays_unquantized(model, kind):
            raise UnsupportedError(
                f"mlx-lm cannot quantise latents: the class of {model.name} asks the cached array for its transpose, "
                "which the quantised form lacks (models/deepseek_v3.py:146)",
                hint="leave kv_bits out",
            )
        key, value = setup.k_dtype.block_bytes, setup.v_dtype.block_bytes
        # Every layer of these classes has an indexer, also one that the model lets read another layer's.
        indexer = max(each.indexer_dim for each, _ in model.caches if isinstance(each, Latent))
        token_bytes = kind.rank * key + kind.rope_dim * value + indexer * (key + value)
        return LayerCost(kind, 1, token_bytes, token_bytes, window)

    def _notes(self, model: Architecture, costs: tuple[LayerCost, ...]) -> tuple[str, ...]:
        note = note_on(self.name, self.version, _READ)
        notes = [note] if note else []
        kinds = [cost.kind for cost in costs]
        if any(isinstance(kind, Sliding) for kind in kinds) and _ignores_window(model):
            notes.append(f"mlx-lm gives {model.model_type} no sliding windows: every layer keeps all tokens")
        if self.max_kv_size is not None and model.model_type not in classes.WITHOUT_MAKE_CACHE:
            notes.append(f"max_kv_size is ignored: {model.model_type} makes its own cache")
        if model.has_sparse_latents:
            notes.append("mlx-lm keeps an indexer key in every layer, as K and as V")
        if model.has_states:
            form = "float32" if model.model_type in classes.FLOAT32_STATE else "the model's format"
            notes.append(f"recurrent states are in {form}, with kernel - 1 convolution columns")
        if self.kv_bits is not None and any(_stays_unquantized(model, kind) for kind in kinds):
            notes.append("kv_bits leaves chunked layers, and lists of caches, as they are: they have no to_quantized")
        if self.kv_bits is not None and self.quantized_kv_start == 0:
            notes.append("quantised from the first token: mlx-lm itself begins at 5,000 (quantized_kv_start)")
        return tuple(notes)


def _ignores_window(model: Architecture) -> bool:
    """Whether mlx-lm's class knows no window, whatever the configuration declares.

    A Mistral 7B v0.1, whose layers all slide, declares no ``layer_types``, and gets no windows.
    """
    if model.model_type in classes.WITHOUT_MAKE_CACHE:
        return True
    all_slide = not any(isinstance(kind, Full) for kind, _ in model.caches)
    return model.model_type in classes.SLIDES_BY_LAYER_TYPES and all_slide


def _stays_unquantized(model: Architecture, kind: LayerKind) -> bool:
    """Whether the cache of a layer has no to_quantized: ChunkedKVCache, ArraysCache, CacheList."""
    return model.model_type in classes.CACHE_LISTS or isinstance(kind, Chunked | Parallel) or _keeps_columns(kind)


def _keeps_columns(kind: LayerKind) -> bool:
    """Baichuan-M1's attention layers, which keep a past token of K and V for a convolution."""
    return isinstance(kind, Full | Sliding) and bool(kind.extra_state_bytes)


def _state_bytes(model: Architecture, state: State, element_bytes: int) -> int:
    recurrent = 4 if model.model_type in classes.FLOAT32_STATE else element_bytes
    return state.recurrent_elements * recurrent + state.conv_channels * (state.conv_kernel - 1) * element_bytes


def _no_class(model: Architecture, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"no class of mlx-lm {_NEWEST} keeps {what} for model type {model.model_type} (mlx_lm/utils.py:224)",
        hint="use ideal for the report's accounting",
    )
