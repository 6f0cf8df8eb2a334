"""transformers: what DynamicCache and StaticCache keep alive, which is more than what they show.

A sliding layer of a DynamicCache keeps a view of its last W - 1 tokens, and the view keeps the whole tensor behind it:
after one forward of N tokens all N stay allocated until the next forward. With W = 4 and a prefill of 10 tokens the
cache shows 3 tokens and holds 10; after one decode step it shows 3 and holds 3 + 1.

Source: transformers 5.24.0 cache_utils.py (:246-248 the views, :524 the static cache, :1959 the layer types).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, assert_never

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
)
from kvcalc.derivation import Derivation, Quantity
from kvcalc.dtypes import BFLOAT16, FLOAT16, FLOAT32, DType, parse_dtype
from kvcalc.engines.base import KVCache, LayerBytes, Loads, WorkingMemory, refuse_tensor_parallel
from kvcalc.engines.options import EngineOptions
from kvcalc.engines.releases import note_on, release
from kvcalc.engines.transformers_memory import Forward, transformers_working_memory
from kvcalc.errors import NotModelledError, UnsupportedError
from kvcalc.units import MAX_TOKENS
from kvcalc.widths import Widths

if TYPE_CHECKING:
    from kvcalc.device import Device
    from kvcalc.setup import Setup

CacheClass = Literal["dynamic", "static", "dynamic_unconfigured"]

#: Releases whose source was read. One between two of them follows the older, and a note says so.
_READ = (
    *("4.57.1", "5.0.0", "5.12.0", "5.13.0", "5.14.0", "5.15.0", "5.17.0", "5.18.0", "5.20.0", "5.22.0", "5.23.0"),
    "5.24.0",
)
_NEWEST = _READ[-1]
#: MLA layers cache the latent since this release, before it every decompressed head.
_LATENT_SINCE = (5, 15, 0)
#: The same of MLA layers with an indexer (modeling_deepseek_v32.py, modeling_glm_moe_dsa.py), which were later.
_INDEXED_LATENT_SINCE = (5, 18, 0)
#: The oldest release whose state layers and indexers were measured: 5.17.0, on an H100.
_MEASURED_SINCE = (5, 17, 0)
#: MiniMaxCache keeps the lightning attention's states in the model's format (modeling_minimax.py:202-209).
_OWN_STATE_CACHE = frozenset({"minimax"})
_SOURCE = f"transformers {_NEWEST} cache_utils.py"


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What the layers of one kind keep of one sequence.

    Attributes:
        kind: the layer kind.
        count: layers of this kind.
        token_bytes: bytes of one token in one layer.
        window: tokens of the window that the layer's cache is made for, or None where it keeps every token.
        fixed_bytes: bytes whatever the context (states, K and V of the encoder's tokens).
        encoder_tokens: length of a cross-attention cache.
    """

    kind: LayerKind
    count: int
    token_bytes: int = 0
    window: int | None = None
    fixed_bytes: int = 0
    encoder_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TransformersPlan:
    """The costs of the distinct kinds and their sums; ``outside_bytes`` are states that live outside the cache."""

    costs: tuple[LayerCost, ...]
    static: bool
    prefill_chunk: int | None
    fixed_bytes: int
    growing_token_bytes: int
    windowed: tuple[tuple[int, int], ...]
    all_token_bytes: int
    outside_bytes: int
    notes: tuple[str, ...]

    def kv_bytes(self, context: int, batch_size: int) -> int:
        """The peak over the forwards of the prefill; a static cache is allocated once."""
        if self.static:
            total = self.fixed_bytes + self.growing_token_bytes * context
            for window, token_bytes in self.windowed:
                total += token_bytes * (context if context < window else window)
            return batch_size * total
        chunk = self.prefill_chunk
        if chunk is None or chunk >= context:
            return batch_size * (self.fixed_bytes + self.all_token_bytes * context)
        past = (context - 1) // chunk * chunk
        arriving = context - past
        total = self._held(past, arriving)
        if arriving < chunk:  # the full chunk before it had fewer tokens behind it, and more of its own
            total = max(total, self._held(past - chunk, chunk))
        return batch_size * total

    def _held(self, past: int, arriving: int) -> int:
        """Bytes of one sequence after a forward of ``arriving`` tokens on ``past`` cached ones."""
        total = self.fixed_bytes + self.growing_token_bytes * (past + arriving)
        for window, token_bytes in self.windowed:
            total += token_bytes * ((past if past < window else window - 1) + arriving)
        return total

    def _peak(self, context: int) -> tuple[int, int]:
        """The fullest forward of the prefill: tokens cached before it, and tokens in it."""
        chunk = self.prefill_chunk
        if chunk is None or chunk >= context:
            return 0, context
        past = (context - 1) // chunk * chunk
        last, before = (past, context - past), (past - chunk, chunk)
        return last if self._held(*last) >= self._held(*before) else before

    def _slots(self, cost: LayerCost, context: int, past: int, arriving: int) -> int:
        if cost.encoder_tokens or not cost.token_bytes:
            return cost.encoder_tokens
        if self.static:
            return context if cost.window is None else min(context, cost.window)
        return (past if cost.window is None else min(past, cost.window - 1)) + arriving

    def allocate(self, context: int, batch_size: int) -> KVCache:
        """One row a layer kind, at the fullest forward of the prefill."""
        past, arriving = self._peak(context)
        rows = []
        for cost in self.costs:
            slots = self._slots(cost, context, past, arriving)
            layer_bytes = cost.fixed_bytes + (0 if cost.encoder_tokens else cost.token_bytes * slots)
            rows.append(
                LayerBytes(
                    cost.kind.kind,
                    kind_label(cost.kind),
                    cost.count,
                    cost.window,
                    batch_size * slots,
                    batch_size * cost.count * layer_bytes,
                )
            )
        total = sum(row.bytes for row in rows)
        steady = total if self.static else batch_size * self._held(context - 1, 1)
        notes = list(self.notes)
        if steady < total:
            notes.append(
                f"views keep all {arriving:,} tokens of a prefill's forward alive on sliding layers until the next "
                "forward; steady_bytes is what one decode step leaves"
            )
        if self.outside_bytes:
            notes.append(
                f"the recurrent and convolution states live in the layers, outside the cache: "
                f"{batch_size * self.outside_bytes:,} bytes more"
            )
        return KVCache(total, steady, tuple(rows), why=self._why(context, past, arriving), notes=tuple(notes))

    def _why(self, context: int, past: int, arriving: int) -> str:
        if self.static:
            return f"allocated for {context:,} tokens; sliding layers min(context, window)"
        if not self.windowed:
            return f"every layer keeps {context:,} tokens"
        if not past:
            return f"one forward of {arriving:,} tokens stays alive as views"
        return f"a chunk of {arriving:,} tokens stays alive behind window - 1 tokens"

    def logical_bytes(self, context: int, batch_size: int) -> int:
        """What the cached tensors' own shapes add up to: a sliding layer shows min(context, window - 1) tokens.

        The memory is ``allocate(...).bytes``; this is the figure that summing ``numel`` gives.
        """
        if self.static:
            return self.kv_bytes(context, batch_size)
        total = self.fixed_bytes + self.growing_token_bytes * context
        for window, token_bytes in self.windowed:
            total += token_bytes * min(context, window - 1)
        return batch_size * total

    def required_kv_memory(self, context: int, batch_size: int) -> int:
        """Exactly the bytes."""
        return self.kv_bytes(context, batch_size)

    def report(self, context: int, batch_size: int, kv_memory: int) -> dict[str, Any]:
        """What summing the tensors' shapes gives (``logical_bytes``) beside what they hold (``storage_bytes``)."""
        return {
            "logical_bytes": self.logical_bytes(context, batch_size),
            "storage_bytes": self.kv_bytes(context, batch_size),
        }

    def explain(self, context: int, batch_size: int) -> tuple[Quantity, ...]:
        """The fullest forward, one product a layer kind, and their sum."""
        work = Derivation(context, batch_size)
        if not self.static:
            self._work_forward(work)
        names = []
        for number, cost in enumerate(self.costs, start=1):
            formula = self._formula(cost)
            if formula != "0":
                names.append(f"layers_{number}")
                meaning = f"{cost.count} {kind_label(cost.kind)}"
                work.let(names[-1], meaning, f"{cost.count} * B * ({formula})", "bytes", _SOURCE)
        work.let("kv_bytes", "KV cache", " + ".join(names) or "0", "bytes", _SOURCE)
        return tuple(work.quantities)

    def _work_forward(self, work: Derivation) -> None:
        """P and q of the fullest forward: with chunks the last one, or the whole one before it."""
        past, arriving, when = "0", "T", "the prefill's one forward"
        if self.prefill_chunk is not None:
            work.let("C", "tokens of a chunk", str(self.prefill_chunk), "tokens", "prefill_chunk")
            work.let("before", "tokens before the last chunk", "(T - 1) // C * C", "tokens")
            grows = f"{self.growing_token_bytes} * "
            last = f"{grows}T" + self._windowed_formula("before", "T - before")
            whole = f"{grows}before" + self._windowed_formula("before - C", "C")
            work.let("last", "one sequence after the last chunk", last, "bytes", _SOURCE)
            work.let("whole", "and after the whole chunk before it", f"{whole} if before else 0", "bytes", _SOURCE)
            past, arriving = "before if last >= whole else before - C", "T - before if last >= whole else C"
            when = "the fullest chunk"
        work.let("P", f"tokens cached before {when}", past, "tokens")
        work.let("q", f"tokens in {when}", arriving, "tokens")

    def _windowed_formula(self, past: str, arriving: str) -> str:
        terms = (f" + {size} * (min({past}, {window - 1}) + {arriving})" for window, size in self.windowed)
        return "".join(terms)

    def _formula(self, cost: LayerCost) -> str:
        if cost.encoder_tokens or not cost.token_bytes:
            return str(cost.fixed_bytes)
        if self.static:
            tokens = "T" if cost.window is None else f"min(T, {cost.window})"
        else:
            tokens = "(P + q)" if cost.window is None else f"(min(P, {cost.window - 1}) + q)"
        fixed = f"{cost.fixed_bytes} + " if cost.fixed_bytes else ""
        return f"{fixed}{cost.token_bytes} * {tokens}"


class Transformers(EngineOptions):
    """Hugging Face transformers: DynamicCache, StaticCache, and DynamicCache without a config."""

    name: ClassVar[str] = "transformers"
    summary: ClassVar[str] = "DynamicCache or StaticCache; a prefill's sliding layers stay allocated in full as views"
    follows: ClassVar[str] = _NEWEST
    formula: ClassVar[str] = (
        "dynamic: bytes = B x sum over layers of token bytes x (full: P + q; sliding, chunked: min(P, W - 1) + q),\n"
        "  at the fullest forward of the prefill: q tokens on P cached ones; without prefill_chunk P = 0, q = context\n"
        "  steady_bytes: q = 1, so a sliding layer holds min(context, W)\n"
        "static: full context, sliding and chunked min(context, W)\n"
        "dynamic_unconfigured: every layer full\n"
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
    )
    not_modelled: ClassVar[tuple[str, ...]] = (
        "QuantizedCache (it refuses sliding layers)",
        "the second copy of one layer's K or V that torch.cat needs for a moment in every decode step",
        "the CUDA allocator's rounding of each tensor to 512 bytes",
        "a sequence that generate() ends: its last token is never cached, so P prompt and G new tokens are P + G - 1",
        "multi-token-prediction layers: transformers does not run them",
        "the compressed layers of DeepSeek V4",
    )
    evidence: ClassVar[str] = (
        "every recorded cache of transformers 5.23.0 to the byte, held and logical (5.24.0 has the same rules by its "
        "source); the CUDA allocator's count of 5.17.0 on an H200 within 512 bytes a tensor"
    )
    frugal_options: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "cache": ("dynamic", "static"),
        "prefill_chunk": (8192, 2048),
    }

    cache: CacheClass = Field(
        "dynamic", description="the cache class; dynamic_unconfigured is DynamicCache() without the model's config"
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

    def prepare(self, setup: Setup) -> TransformersPlan:
        """Compute the cost of each distinct kind once.

        Raises:
            UnsupportedError: tensor parallelism, a quantised format, or a cache class that the model does not run with.
            NotModelledError: a layer whose cache is not known.
        """
        architecture = setup.served
        refuse_tensor_parallel(self.name, setup)
        for dtype in (setup.k_dtype, setup.v_dtype):
            refuse_other_than_float(self.name, dtype, "transformers caches what the model computes; use bfloat16")
        costs = tuple(self._cost(architecture, kind, count, setup) for kind, count in architecture.caches)
        growing = sum(c.count * c.token_bytes for c in costs if c.window is None and not c.encoder_tokens)
        windows: dict[int, int] = {}
        for cost in costs:
            if cost.window is not None:
                windows[cost.window] = windows.get(cost.window, 0) + cost.count * cost.token_bytes
        return TransformersPlan(
            costs=costs,
            static=self.cache == "static",
            prefill_chunk=self.prefill_chunk,
            fixed_bytes=sum(cost.count * cost.fixed_bytes for cost in costs),
            growing_token_bytes=growing,
            windowed=tuple(windows.items()),
            all_token_bytes=growing + sum(windows.values()),
            outside_bytes=_outside_bytes(architecture, setup),
            notes=self._notes(architecture, setup),
        )

    def _cost(self, model: Architecture, kind: LayerKind, count: int, setup: Setup) -> LayerCost:
        key, value = setup.k_dtype.block_bytes, setup.v_dtype.block_bytes
        match kind:
            case Full(indexer_dim=indexer) if indexer:
                raise _unknown(model, "sparse-attention indexers")
            case Full() | Sliding() | Chunked():
                if kind.extra_state_bytes:
                    raise _unknown(model, "a convolution over K and V")
                token_bytes = kind.num_kv_heads * (kind.head_dim * key + kind.v_head_dim * value)
                return LayerCost(kind, count, token_bytes, self._window(kind))
            case Latent():
                return LayerCost(kind, count, self._latent_token_bytes(model, kind, key, value))
            case State():
                return LayerCost(kind, count, fixed_bytes=self._state_bytes(model, kind, key))
            case Parallel():
                inner = self._cost(model, kind.attention, count, setup)
                fixed = self._state_bytes(model, kind.state, key)
                return LayerCost(kind, count, inner.token_bytes, inner.window, fixed)
            case Cross():
                token_bytes = kind.num_kv_heads * (kind.head_dim * key + kind.v_head_dim * value)
                tokens = setup.encoder_tokens
                return LayerCost(kind, count, fixed_bytes=token_bytes * tokens, encoder_tokens=tokens)
            case Compressed():
                raise _unknown(model, "compressed K = V layers")
            case Shared() | NoCache():
                return LayerCost(kind, count)
        assert_never(kind)

    def _window(self, kind: Full | Sliding | Chunked) -> int | None:
        if isinstance(kind, Full) or self.cache == "dynamic_unconfigured":
            return None
        window = kind.chunk if isinstance(kind, Chunked) else kind.window
        # A window of 1 keeps 1 - 1 = 0 tokens by the slice [-0:], which is the whole tensor.
        return None if window == 1 and self.cache == "dynamic" else window

    def _latent_token_bytes(self, model: Architecture, kind: Latent, key: int, value: int) -> int:
        if kind.window is not None:
            raise _unknown(model, "latent (MLA) layers with a window")
        if kind.indexer_dim:
            if release(self.version) < _MEASURED_SINCE:
                raise _unknown(model, f"sparse-attention indexers in {self.version}", f"use version={_NEWEST}")
            if self.cache == "dynamic_unconfigured":
                raise UnsupportedError(
                    f"DynamicCache() without a config has no indexer keys, so {model.name} ends in a ValueError "
                    f"({_SOURCE}:1713)",
                    hint="use cache=dynamic, which passes the config as generate() does",
                )
        indexer_bytes = kind.indexer_dim * key
        if self._caches_latent(model):
            return kind.rank * key + kind.rope_dim * value + indexer_bytes
        if self.cache == "static":
            raise _unknown(model, f"decompressed MLA heads in a StaticCache of {self.version}")
        return kind.num_heads * ((kind.nope_dim + kind.rope_dim) * key + kind.v_head_dim * value) + indexer_bytes

    def _caches_latent(self, model: Architecture) -> bool:
        """Whether MLA layers cache the latent; the classes with an indexer do so later than the others.

        A layer that reads another layer's indexer is of the same class: in 5.17.0 it caches its heads, too.
        """
        indexed = any(isinstance(kind, Latent) and kind.indexer_dim for kind, _ in model.caches)
        return release(self.version) >= (_INDEXED_LATENT_SINCE if indexed else _LATENT_SINCE)

    def _state_bytes(self, model: Architecture, state: State, element_bytes: int) -> int:
        """States of one sequence: ``conv_kernel`` columns in the model's format, the recurrent part in float32."""
        if _keeps_state_outside(model):
            return 0
        if self.cache == "dynamic_unconfigured":
            raise UnsupportedError(
                f"DynamicCache() without a config has no state layers, so {model.name} ends in an IndexError "
                f"({_SOURCE}:1642)",
                hint="use cache=dynamic, which passes the config as generate() does",
            )
        if release(self.version) < _MEASURED_SINCE:
            raise _unknown(model, f"state layers in {self.version}", f"use version={_NEWEST}")
        if self.cache == "static" and model.model_type in _OWN_STATE_CACHE:
            raise UnsupportedError(
                f"transformers refuses a StaticCache for {model.name}, whose states need a cache class of its own",
                hint="use cache=dynamic",
            )
        recurrent_bytes = element_bytes if model.model_type in _OWN_STATE_CACHE else 4
        return state.conv_channels * state.conv_kernel * element_bytes + recurrent_bytes * state.recurrent_elements

    def _notes(self, model: Architecture, setup: Setup) -> tuple[str, ...]:
        note = note_on(self.name, self.version, _READ)
        notes = [note] if note else []
        kinds = [kind for kind, _ in model.caches]
        if self.cache == "dynamic_unconfigured" and any(isinstance(kind, Sliding | Chunked) for kind in kinds):
            notes.append("DynamicCache() without the config knows no windows: every attention layer keeps all tokens")
        if self.cache == "dynamic" and any(isinstance(kind, Sliding) and kind.window == 1 for kind in kinds):
            notes.append("a window of 1 keeps every token: the slice [-0:] is the whole tensor")
        if any(isinstance(kind, Latent) for kind in kinds) and not self._caches_latent(model):
            notes.append(f"transformers {self.version} caches decompressed MLA heads; {_NEWEST} the latent")
        if any(isinstance(kind, Cross) for kind in kinds) and not setup.encoder_tokens:
            notes.append("encoder_tokens is 0, so the cross-attention cache is empty")
        if any(isinstance(kind, State | Parallel) for kind in kinds) and not _keeps_state_outside(model):
            form = "in the model's format" if model.model_type in _OWN_STATE_CACHE else "float32"
            notes.append(f"recurrent states are {form}, as on the pure torch path; CUDA kernels may differ")
        return tuple(notes)


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
