"""llama.cpp: cells padded to 256, a smaller cache for sliding layers, a float32 state a sequence.

The rule of commit 0c1e57098: src/llama-context.cpp:246-306 (cells), src/llama-kv-cache-iswa.cpp:69-80 (cells of the
sliding layers), src/llama-kv-cache.cpp:166-234 (bytes), src/llama-memory-recurrent.cpp:101-103 (states) and
src/models/*.cpp (which layers slide). Ollama launches llama.cpp and uses the functions of this module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from kvcalc.architecture import (
    Architecture,
    Chunked,
    Full,
    Latent,
    LayerKind,
    NoCache,
    Parallel,
    Shared,
    Sliding,
    State,
    is_local,
    kind_label,
    window_of,
)
from kvcalc.derivation import Quantity
from kvcalc.dtypes import FLOAT16, DType
from kvcalc.engines.base import KVCache, LayerBytes, refuse_tensor_parallel
from kvcalc.engines.options import EngineOptions
from kvcalc.errors import UnsupportedError
from kvcalc.units import MAX_TOKENS, MiB

if TYPE_CHECKING:
    from kvcalc.setup import Setup

_MOST_SEQUENCES = 256  # LLAMA_MAX_SEQ, src/llama-cparams.h
_STATE_BYTES = 4  # states are float32 whatever the KV types

#: The cache types that ``-ctk`` and ``-ctv`` accept (common/arg.cpp:304-314), as llama.cpp prints them.
_PRINTED_TYPES = {
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    **{name: name for name in ("q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")},
}

# src/models/*.cpp, by the Hugging Face model type that the converter turns into the GGUF architecture. The order of
# local and global layers is the architecture's own: the GGUF key attention.sliding_window_pattern can state any.
_SLIDES = {
    *("gemma2", "gemma3", "gemma3n", "gemma4", "gemma4_unified", "gpt_oss", "cohere2"),
    *("olmo2", "olmo3", "exaone4", "llama4"),
}
_NEVER_SLIDES = {
    *("phi3", "llama", "mistral", "mixtral", "deepseek_v2", "deepseek_v3", "kimi_k2"),
    *("qwen3_next", "jamba", "granitemoehybrid", "lfm2", "lfm2_moe", "falcon_h1"),
}
_KNOWN_STATES = {*_NEVER_SLIDES, "qwen3_5", "qwen3_5_moe"}
_DROPS_SHARED = {"gemma4", "gemma4_unified"}
_LLAMA4_WINDOW = 8192  # models/llama4.cpp
_GEMMA3N_OWNERS = 20  # models/gemma3n.cpp:7
_EXAONE4_SLIDING_LAYERS = 64  # models/exaone4.cpp: the 32B model


class ContextParams(NamedTuple):
    """The fields of ``llama_context_params`` that decide the size of the cache, all resolved.

    ``n_ctx`` is the requested one, before padding; ``n_ubatch`` is already cut to it and to ``n_batch``.
    """

    n_ctx: int
    n_ubatch: int
    n_seq_max: int
    kv_unified: bool = False
    swa_full: bool = False


#: From a workload (context, batch size) to what llama.cpp is started with.
Launch = Callable[[int, int], ContextParams]


def cells(params: ContextParams, window: int) -> tuple[int, int, int]:
    """Cells a stream of the full layers, of the sliding layers, and the number of streams.

    >>> cells(ContextParams(n_ctx=32768, n_ubatch=512, n_seq_max=4), 1024)
    (8192, 1536, 4)
    >>> cells(ContextParams(n_ctx=32768, n_ubatch=512, n_seq_max=4, kv_unified=True), 1024)
    (32768, 4608, 1)
    """
    n_ctx, n_ubatch, n_seq_max, kv_unified, swa_full = params
    # (x + 255) & -256 is round_up(x, 256), without a call: a search asks millions of times.
    padded = (n_ctx + 255) & -256
    if kv_unified:
        full, needed, streams = padded, window * n_seq_max + n_ubatch, 1
    else:
        full, needed, streams = (padded // n_seq_max + 255) & -256, window + n_ubatch, n_seq_max
    if swa_full or needed >= full:
        return full, full, streams
    return full, (needed + 255) & -256, streams


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What llama.cpp stores for the layers of one kind.

    Attributes:
        kind: the layers, as the architecture states them.
        count: layers of this kind.
        slides: they live in the cache of the sliding layers.
        k_bytes, v_bytes: bytes of one cell of one layer.
        cell_formula: the sum of both as arithmetic, empty for a layer without attention.
        conv_bytes, recurrent_bytes: bytes of one sequence's state in one layer.
        state_formula: the sum of both as arithmetic, likewise.
    """

    kind: LayerKind
    count: int
    slides: bool
    k_bytes: int
    v_bytes: int
    cell_formula: str
    conv_bytes: int
    recurrent_bytes: int
    state_formula: str

    @property
    def cell_bytes(self) -> int:
        """K and V of one cell of one layer."""
        return self.k_bytes + self.v_bytes

    @property
    def state_bytes(self) -> int:
        """The state of one sequence in one layer."""
        return self.conv_bytes + self.recurrent_bytes


@dataclass(frozen=True, slots=True)
class ModelCache:
    """A model's layers as llama.cpp stores them, whatever the context: rows, their sums, and what to know.

    ``window`` is the one window of all sliding layers (``n_swa``), 0 where none slides.
    """

    layers: tuple[LayerCost, ...]
    num_layers: int
    window: int
    k_type: str
    v_type: str
    notes: tuple[str, ...]

    def cell_bytes(self, slides: bool) -> int:
        """Bytes of one cell in all full layers, or in all sliding ones."""
        return sum(layer.count * layer.cell_bytes for layer in self.layers if layer.slides == slides)

    @property
    def state_bytes(self) -> int:
        """Bytes of one sequence's states in all layers."""
        return sum(layer.count * layer.state_bytes for layer in self.layers)


def model_cache(architecture: Architecture, setup: Setup, *, flash_attn: bool, mla: bool) -> ModelCache:
    """What llama.cpp stores for a model in these KV types.

    Raises:
        UnsupportedError: llama.cpp refuses the types, or nobody knows what it does with a layer.
    """
    refuse_tensor_parallel("llama.cpp", setup)
    _check_types(setup, flash_attn)
    owners = _owners(architecture)
    for _, kind, _ in owners:
        reason = _unknown(architecture.model_type, kind)
        if reason:
            raise UnsupportedError(
                f"{kind_label(kind)} layers of {architecture.name} are not covered for llama.cpp: {reason}",
                hint="the ideal engine gives the report's accounting for every kind of layer",
            )
    ignores = _ignored_windows(architecture)
    notes = _model_notes(architecture, ignores)
    window = 0 if ignores else _window(architecture)
    heads = [_heads(_attention(kind), mla) for _, kind, _ in owners]
    # Without flash attention V is stored transposed, in rows as wide as the model's widest layer.
    widest = max((each.heads * each.value_dim for each in heads if each and each.stores_value), default=0)
    layers = []
    for (given, kind, count), each in zip(owners, heads, strict=True):
        key = value = conv = recurrent = 0
        cell_formula = state_formula = ""
        if each:
            key, value, cell_formula = _cell(each, setup, None if flash_attn else widest)
        state = _state(kind)
        if state:
            columns = state.conv_kernel - 1
            conv = _STATE_BYTES * state.conv_channels * columns
            recurrent = _STATE_BYTES * state.recurrent_elements
            state_formula = f"{_STATE_BYTES} * ({state.recurrent_elements} + {state.conv_channels} * {columns})"
        slides = is_local(kind) and not ignores
        layers.append(LayerCost(given, count, slides, key, value, cell_formula, conv, recurrent, state_formula))
    key_type, value_type = _PRINTED_TYPES[setup.k_dtype.name], _PRINTED_TYPES[setup.v_dtype.name]
    return ModelCache(tuple(layers), architecture.num_layers, window, key_type, value_type, notes)


def _check_types(setup: Setup, flash_attn: bool) -> None:
    for dtype in (setup.k_dtype, setup.v_dtype):
        if dtype.name not in _PRINTED_TYPES:
            hint = f"its types: {', '.join(_PRINTED_TYPES.values())}"
            raise UnsupportedError(f"llama.cpp has no KV cache type {dtype.name}", hint=hint)
    if not flash_attn and setup.v_dtype.block_elements > 1:
        raise UnsupportedError(
            f"llama.cpp refuses a quantised V cache ({setup.v_dtype.name}) without flash attention",
            hint="leave flash_attn on, or store V as f16: --kv-cache-dtype q8_0/f16",
        )


def _unknown(model_type: str, kind: LayerKind) -> str:
    """Why nobody knows what llama.cpp stores for a layer of this kind, or nothing."""
    match kind:
        case Parallel():
            return _unknown(model_type, kind.attention)
        case State() | NoCache():
            return ""
        case Full() | Sliding() | Chunked() if kind.extra_state_bytes:
            return "it is not known to keep a state beside K and V"
        case Full() | Latent() if kind.indexer_dim:
            return "a model with a sparse-attention indexer has a cache class of its own"
        case Full():
            return ""
        case Latent() if kind.window is None:
            return ""
        case Sliding() if model_type in _SLIDES or model_type in _NEVER_SLIDES:
            return ""
        case Chunked() if model_type == "llama4":
            return ""
        case Shared() if model_type in _DROPS_SHARED:
            return ""
        case _:
            return f"no rule is recorded for them in {model_type}"


def _window(architecture: Architecture) -> int:
    """The window of all sliding layers, 0 where there are none."""
    windows = {window_of(kind) or 0 for kind, _ in architecture.caches if is_local(kind)}
    if windows and architecture.model_type == "llama4":
        return _LLAMA4_WINDOW
    if len(windows) > 1:
        raise UnsupportedError(
            f"llama.cpp has one window for all sliding layers, and {architecture.name} has {len(windows)}",
            hint="give all sliding layers one window, as in @sw=1024",
        )
    return windows.pop() if windows else 0


def _model_notes(architecture: Architecture, ignores: str) -> tuple[str, ...]:
    model_type, notes = architecture.model_type, []
    for kind, _ in architecture.caches:
        window = window_of(kind)
        if is_local(kind) and ignores:
            notes.append(f"{ignores}: its {kind_label(kind)} layers keep the whole context")
        elif is_local(kind) and model_type == "llama4" and window != _LLAMA4_WINDOW:
            notes.append(f"llama.cpp sets Llama 4's window to {_LLAMA4_WINDOW:,} tokens, not {window:,}")
        if _state(kind) and model_type not in _KNOWN_STATES:
            notes.append(f"the states of {model_type} follow llama.cpp's general rule; no run of it is recorded")
    if model_type == "gemma3n" and architecture.num_layers > _GEMMA3N_OWNERS:
        notes.append(f"llama.cpp gives a cache to the first {_GEMMA3N_OWNERS} layers of a Gemma 3n, as a constant")
    return tuple(dict.fromkeys(notes))


def _ignored_windows(architecture: Architecture) -> str:
    """Why llama.cpp does not slide in this model, or nothing where it does."""
    if architecture.model_type in _NEVER_SLIDES:
        return f"llama.cpp has no sliding window for {architecture.model_type}"
    if architecture.model_type == "exaone4" and architecture.num_layers != _EXAONE4_SLIDING_LAYERS:
        return f"llama.cpp slides in an EXAONE 4 of {_EXAONE4_SLIDING_LAYERS} layers only"
    return ""


def _owners(architecture: Architecture) -> list[tuple[LayerKind, LayerKind, int]]:
    """Each layer kind as stated, as llama.cpp counts it, and how many there are.

    Only Gemma 3n differs: the first 20 layers own a cache and no other does, wherever the model starts to share.
    """
    if architecture.model_type != "gemma3n":
        return [(kind, kind, count) for kind, count in architecture.caches]
    last: dict[str, LayerKind] = {}
    counts: Counter[tuple[LayerKind, LayerKind]] = Counter()
    for position, index in enumerate(architecture.order):
        kind = owned = architecture.layers[index].cache
        if position >= _GEMMA3N_OWNERS:
            owned = NoCache()
        elif isinstance(kind, Shared):
            owned = last.get(kind.of, kind)
        else:
            last[kind.kind] = kind
        counts[kind, owned] += 1
    return [(kind, owned, count) for (kind, owned), count in counts.items()]


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


def _heads(attention: _Attention | None, mla: bool) -> _Heads | None:
    match attention:
        case None:
            return None
        case Latent() if mla:
            return _Heads(1, attention.rank + attention.rope_dim, attention.rank, stores_value=False)
        case Latent():
            return _Heads(attention.num_heads, attention.nope_dim + attention.rope_dim, attention.v_head_dim)
        case _:
            return _Heads(attention.num_kv_heads, attention.head_dim, attention.v_head_dim)


def _cell(heads: _Heads, setup: Setup, value_width: int | None) -> tuple[int, int, str]:
    """K and V bytes of one cell of one layer, and their sum as arithmetic; ``value_width`` replaces V's own width."""
    key, value = setup.k_dtype, setup.v_dtype
    _check_blocks(heads, key, value)
    key_bytes = key.row_bytes(heads.heads, heads.key_dim)
    formula = _row_formula(f"{heads.heads} * {heads.key_dim}", key)
    if not heads.stores_value:
        return key_bytes, 0, formula
    shown = f"{heads.heads} * {heads.value_dim}" if value_width is None else str(value_width)
    value_bytes = value.bytes_for(value_width or heads.heads * heads.value_dim)
    return key_bytes, value_bytes, f"{formula} + {_row_formula(shown, value)}"


def _row_formula(elements: str, dtype: DType) -> str:
    if dtype.block_elements == 1:
        return f"{elements} * {dtype.block_bytes}"
    return f"{elements} // {dtype.block_elements} * {dtype.block_bytes}"


def _check_blocks(heads: _Heads, key: DType, value: DType) -> None:
    if not heads.stores_value and key.name != value.name:
        raise UnsupportedError(
            f"llama.cpp refuses different K and V types ({key.name}, {value.name}) for MLA",
            hint="an MLA cache has no V of its own: name one type",
        )
    for dtype, dim, what in ((key, heads.key_dim, "K"), (value, heads.value_dim, "V")):
        if dim % dtype.block_elements:
            raise UnsupportedError(
                f"llama.cpp refuses {dtype.name} for {what}: its blocks of {dtype.block_elements} do not divide "
                f"heads of {dim}",
                hint="use f16, bf16 or f32",
            )


@dataclass(frozen=True, slots=True)
class LlamaCppPlan:
    """llama.cpp's answers for one model, however it is launched.

    The rows of a cache hold whole cells, padding cells too, because llama.cpp reserves and fills them alike:
    ``tokens`` is cells x streams, the rows add up to ``bytes``, and ``padding_bytes`` is 0.
    """

    model: ModelCache
    launch: Launch
    launch_steps: Callable[[int, int], tuple[Quantity, ...]]
    full_bytes: int
    sliding_bytes: int
    state_bytes: int

    def kv_bytes(self, context: int, batch_size: int) -> int:
        """Bytes of all caches: (full cells + sliding cells) x streams, and the states."""
        params = self.launch(context, batch_size)
        full, sliding, streams = cells(params, self.model.window)
        return streams * (full * self.full_bytes + sliding * self.sliding_bytes) + params.n_seq_max * self.state_bytes

    def allocate(self, context: int, batch_size: int) -> KVCache:
        """The cache, with one row a layer kind."""
        params = self.launch(context, batch_size)
        full, sliding, streams = cells(params, self.model.window)
        rows = []
        for layer in self.model.layers:
            slots = (sliding if layer.slides else full) * streams if layer.cell_bytes else 0
            rows.append(
                LayerBytes(
                    layer.kind.kind,
                    kind_label(layer.kind),
                    layer.count,
                    self.model.window if layer.slides and not params.swa_full else None,
                    slots,
                    layer.count * (layer.cell_bytes * slots + layer.state_bytes * params.n_seq_max),
                )
            )
        total = sum(row.bytes for row in rows)
        notes = (*self.model.notes, *_workload_notes(params, full, context, batch_size))
        return KVCache(total, total, tuple(rows), why=self._why(params, full, sliding), notes=notes)

    def required_kv_memory(self, context: int, batch_size: int) -> int:
        """Exactly the bytes."""
        return self.kv_bytes(context, batch_size)

    def report(self, context: int, batch_size: int, kv_memory: int) -> dict[str, Any]:
        """llama.cpp's own figures, and the lines that it prints for them."""
        params = self.launch(context, batch_size)
        full, sliding, streams = cells(params, self.model.window)
        base, local = self._sums(False, full * streams), self._sums(True, sliding * streams)
        recurrent = self.state_bytes * params.n_seq_max
        return {
            "n_ctx": full * streams,
            "n_ctx_per_seq": full,
            "cells_swa": sliding if local.layers else 0,
            "streams": streams,
            "kv_base_bytes": base.k_bytes + base.v_bytes,
            "kv_swa_bytes": local.k_bytes + local.v_bytes,
            "recurrent_bytes": recurrent,
            "printed": self._printed(params, (base, full), (local, sliding)),
            "fits": base.k_bytes + base.v_bytes + local.k_bytes + local.v_bytes + recurrent <= kv_memory,
        }

    def explain(self, context: int, batch_size: int) -> tuple[Quantity, ...]:
        """The launch parameters, the cells, one product a layer kind, and their sum."""
        params = self.launch(context, batch_size)
        full, sliding, streams = cells(params, self.model.window)
        source = "llama.cpp 0c1e57098, src/llama-context.cpp"
        padded = "round_up(n_ctx, 256)"
        shape = padded if params.kv_unified else f"round_up({padded} // n_seq_max, 256)"
        steps = [
            *self.launch_steps(context, batch_size),
            Quantity("streams", "streams", "1" if params.kv_unified else "n_seq_max", streams, "streams", source),
            Quantity("cells", "cells a stream", shape, full, "cells", source),
        ]
        if self.model.window:
            window = f"{self.model.window} * n_seq_max" if params.kv_unified else str(self.model.window)
            local = "cells" if params.swa_full else f"round_up(min(cells, {window} + n_ubatch), 256)"
            where = "src/llama-kv-cache-iswa.cpp"
            steps.append(Quantity("cells_swa", "cells a stream of sliding layers", local, sliding, "cells", where))
        names = []
        for number, (layer, row) in enumerate(
            zip(self.model.layers, self.allocate(context, batch_size).layers, strict=True), start=1
        ):
            terms = []
            if layer.cell_bytes:
                terms.append(f"({layer.cell_formula}) * {'cells_swa' if layer.slides else 'cells'} * streams")
            if layer.state_bytes:
                terms.append(f"{layer.state_formula} * n_seq_max")
            if terms:
                names.append(f"layers_{number}")
                where = "src/llama-kv-cache.cpp" if layer.cell_bytes else "src/llama-memory-recurrent.cpp"
                formula = f"{layer.count} * ({' + '.join(terms)})"
                steps.append(Quantity(names[-1], f"{layer.count} {row.label}", formula, row.bytes, "bytes", where))
        total = self.kv_bytes(context, batch_size)
        steps.append(Quantity("kv_bytes", "KV cache", " + ".join(names) or "0", total, "bytes", source))
        return tuple(steps)

    def _why(self, params: ContextParams, full: int, sliding: int) -> str:
        if not self.model.window:
            return "cells padded to 256" if self.full_bytes else "one state a sequence"
        if params.swa_full:
            return "swa_full: sliding layers hold every cell"
        if sliding == full:
            return "window and micro-batch exceed the context"
        window = f"window x {params.n_seq_max}" if params.kv_unified else "window"
        return f"sliding layers: {window} + {params.n_ubatch}, padded to 256"

    def _sums(self, slides: bool, slots: int) -> _Sums:
        kept = [layer for layer in self.model.layers if layer.cell_bytes and layer.slides == slides]
        return _Sums(
            sum(layer.count for layer in kept),
            slots * sum(layer.count * layer.k_bytes for layer in kept),
            slots * sum(layer.count * layer.v_bytes for layer in kept),
        )

    def _printed(self, params: ContextParams, *caches: tuple[_Sums, int]) -> list[str]:
        sequences = params.n_seq_max
        streams = 1 if params.kv_unified else sequences
        lines = [
            f"llama_kv_cache: size = {_mib(sums.k_bytes + sums.v_bytes)} ({count:6d} cells, {sums.layers:3d} layers, "
            f"{sequences:2d}/{streams} seqs), K ({self.model.k_type}): {_mib(sums.k_bytes)}, "
            f"V ({self.model.v_type}): {_mib(sums.v_bytes)}"
            for sums, count in caches
            if sums.layers
        ]
        if self.state_bytes:
            conv = sequences * sum(layer.count * layer.conv_bytes for layer in self.model.layers)
            recurrent = sequences * sum(layer.count * layer.recurrent_bytes for layer in self.model.layers)
            lines.append(
                f"llama_memory_recurrent: size = {_mib(conv + recurrent)} ({sequences:6d} cells, "
                f"{self.model.num_layers:3d} layers, {sequences:2d} seqs  0 rs_seq), R (f32): {_mib(conv)}, "
                f"S (f32): {_mib(recurrent)}, P (f32):    0.00 MiB"
            )
        return lines


class _Sums(NamedTuple):
    layers: int
    k_bytes: int
    v_bytes: int


def _mib(size: int) -> str:
    # llama.cpp prints a float with "%7.2f": 5.625 MiB is "5.62", where rounding half up would say "5.63".
    return f"{size / MiB:7.2f} MiB"


def _workload_notes(params: ContextParams, full: int, context: int, batch_size: int) -> list[str]:
    notes = []
    held = full // batch_size if params.kv_unified else full
    if held < context:
        notes.append(f"n_ctx leaves {held:,} cells to a sequence: a context of {context:,} tokens does not fit in it")
    if batch_size > params.n_seq_max:
        notes.append(f"{params.n_seq_max} of {batch_size} sequences run at a time, the others wait")
    if params.n_seq_max > _MOST_SEQUENCES:
        notes.append(
            f"llama.cpp starts with at most {_MOST_SEQUENCES} sequences: {params.n_seq_max} need several contexts"
        )
    return notes


def make_plan(
    model: ModelCache, launch: Launch, launch_steps: Callable[[int, int], tuple[Quantity, ...]]
) -> LlamaCppPlan:
    """A plan for a model and a way to launch llama.cpp, with the sums that every answer needs."""
    return LlamaCppPlan(
        model, launch, launch_steps, model.cell_bytes(slides=False), model.cell_bytes(slides=True), model.state_bytes
    )


class LlamaCpp(EngineOptions):
    """llama.cpp as a library or ``llama-cli`` launches it: no server defaults."""

    name: ClassVar[str] = "llama.cpp"
    summary: ClassVar[str] = (
        "reserves padded cells when the context is created; sliding layers get a cache of their own"
    )
    follows: ClassVar[str] = "0c1e57098"
    formula: ClassVar[str] = (
        "cells = round_up(round_up(n_ctx, 256) // n_seq_max, 256), streams = n_seq_max; "
        "kv_unified: round_up(n_ctx, 256), 1 stream\n"
        "cells_swa = round_up(min(cells, window (x n_seq_max if kv_unified) + n_ubatch), 256); swa_full: cells\n"
        "bytes = streams x sum over layers of cells x KV heads x (K dim x K bytes + V dim x V bytes)\n"
        "      + n_seq_max x sum over state layers of 4 x (recurrent elements + channels x (kernel - 1))\n"
        "MLA: K is the latent (rank + rope dim) and there is no V"
    )
    sources: ClassVar[tuple[str, ...]] = (
        "llama.cpp 0c1e57098 (ggml 0.25.3): src/llama-context.cpp:246-306, src/llama-kv-cache.cpp:166-234",
        "src/llama-kv-cache-iswa.cpp:69-80, src/llama-memory-recurrent.cpp:101-103, src/models/*.cpp",
    )
    not_modelled: ClassVar[tuple[str, ...]] = (
        "llama-server's default of 4 slots in one unified cache: -b 4 -E kv_unified=true",
        "CUDA's padding of quantised rows that are no multiple of 512 numbers (hundreds of bytes)",
        "compute buffers, prompt caches in host memory, rollback states for speculation",
        "models with an indexer or a compressed cache (DeepSeek V3.2 and V4, GLM 5.2, MiniMax M3)",
    )
    evidence: ClassVar[str] = "680 recorded contexts of 17 models, to the byte and to the printed line"
    frugal_options: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "swa_full": (False,),
        "kv_unified": (True,),
        "n_ubatch": (256, 128),
    }

    n_batch: int = Field(2048, ge=1, le=MAX_TOKENS, description="tokens of a logical batch (-b)")
    n_ubatch: int = Field(512, ge=0, le=MAX_TOKENS, description="tokens of a micro-batch (-ub); 0 is n_batch")
    n_ctx: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="tokens of all sequences together (-c); default context x batch size"
    )
    n_seq_max: int | None = Field(
        None, ge=1, le=_MOST_SEQUENCES, description="sequences at a time (-np); default the batch size"
    )
    kv_unified: bool = Field(False, description="one stream of cells for all sequences (-kvu)")
    swa_full: bool = Field(False, description="a full-size cache for sliding layers (--swa-full)")
    flash_attn: bool = Field(True, description="flash attention on or auto; false is -fa off")
    mla: bool = Field(True, description="false: a GGUF without MLA keys, whose cache holds decompressed heads")
    version: Literal["0c1e57098"] = Field("0c1e57098", description="the commit whose rule is followed")

    @property
    def context_limit(self) -> int | None:
        """``n_ctx // n_seq_max`` where ``n_ctx`` is given (one sequence where ``n_seq_max`` is not)."""
        return self.context_limit_at(1)

    def context_limit_at(self, batch_size: int) -> int | None:
        """``n_ctx // n_seq_max``; each sequence is one of ``n_seq_max`` where that is not given."""
        return None if self.n_ctx is None else self.n_ctx // (self.n_seq_max or batch_size)

    @property
    def batch_limit(self) -> int | None:
        """``n_seq_max``: further sequences wait."""
        return self.n_seq_max

    def default_kv_dtypes(self, architecture: Architecture) -> tuple[DType, DType]:
        """f16, whatever the model's own format."""
        return FLOAT16, FLOAT16

    def prepare(self, setup: Setup) -> LlamaCppPlan:
        """Compute what one cell and one state cost, once."""
        architecture = setup.served
        model = model_cache(architecture, setup, flash_attn=self.flash_attn, mla=self.mla)
        return make_plan(model, self._launch(), self._launch_steps)

    def _launch(self) -> Launch:
        fixed_ctx, fixed_seq, kv_unified, swa_full = self.n_ctx, self.n_seq_max, self.kv_unified, self.swa_full
        micro_batch = min(self.n_batch, self.n_ubatch or self.n_batch)

        def launch(context: int, batch_size: int) -> ContextParams:
            n_ctx = fixed_ctx or context * batch_size
            n_ubatch = n_ctx if n_ctx < micro_batch else micro_batch
            return ContextParams(n_ctx, n_ubatch, fixed_seq or batch_size, kv_unified, swa_full)

        return launch

    def _launch_steps(self, context: int, batch_size: int) -> tuple[Quantity, ...]:
        params = self._launch()(context, batch_size)
        source = "llama.cpp 0c1e57098, src/llama-context.cpp"
        batch = min(params.n_ctx, self.n_batch)
        return (
            Quantity("T", "context", str(context), context, "tokens"),
            Quantity("B", "batch size", str(batch_size), batch_size, "sequences"),
            Quantity("n_ctx", "tokens of all sequences", str(self.n_ctx or "T * B"), params.n_ctx, "tokens"),
            Quantity("n_seq_max", "sequences at a time", str(self.n_seq_max or "B"), params.n_seq_max, "sequences"),
            Quantity("n_batch", "logical batch", f"min(n_ctx, {self.n_batch})", batch, "tokens", source),
            Quantity(
                "n_ubatch",
                "micro-batch",
                f"min(n_batch, {self.n_ubatch or 'n_batch'})",
                params.n_ubatch,
                "tokens",
                source,
            ),
        )
