"""What a model is made of, as far as its memory is concerned: layer kinds, weights and their order.

An :class:`Architecture` stores each distinct layer once, with the order in which they stand; every cost is computed
once per distinct layer. All sizes are counts of elements or tokens; bytes appear only with a storage format.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeVar, get_args

from kvcalc.errors import InputError, UnsupportedError, did_you_mean, quote
from kvcalc.layout import Layout
from kvcalc.quantization import DeclaredCache, WeightsFormat
from kvcalc.units import check_count

#: The largest count of elements in one tensor or state.
MOST_ELEMENTS = 2**50
#: The most layers that a spec or a configuration may state.
MOST_LAYERS = 10_000
#: The most that is remembered of what was computed from one architecture.
_MOST_DERIVED = 256


class _Sized:
    """A layer kind whose sizes are counts, or it is refused: it may come from any file, or from Python.

    A size whose default is 0 or None may be that; so may the parts of a latent's key.
    """

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            default = getattr(type(self), name, 1)
            if isinstance(default, str) or (default is None and value is None):
                continue
            least = 0 if default == 0 or name in ("rope_dim", "nope_dim") else 1
            check_count(value, f"{name} of a {self.kind} layer", least=least, most=MOST_ELEMENTS)


@dataclass(frozen=True)
class Full(_Sized):
    """Global attention: K and V of every token.

    ``indexer_dim`` is the width of one more key a token that a sparse-attention indexer keeps (MiniMax-M3), at K's
    dtype; ``extra_state_bytes`` are fixed bytes a sequence (Baichuan-M1's short convolution over K and V).
    """

    kind: ClassVar[Literal["full"]] = "full"
    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    indexer_dim: int = 0
    extra_state_bytes: int = 0


@dataclass(frozen=True)
class Sliding(_Sized):
    """Local attention: K and V of the last ``window`` tokens, the current one included."""

    kind: ClassVar[Literal["sliding"]] = "sliding"
    window: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    extra_state_bytes: int = 0


@dataclass(frozen=True)
class Chunked(_Sized):
    """Attention inside aligned chunks of ``chunk`` tokens (Llama 4)."""

    kind: ClassVar[Literal["chunked"]] = "chunked"
    chunk: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    extra_state_bytes: int = 0


@dataclass(frozen=True)
class Latent(_Sized):
    """Multi-head latent attention: one latent of ``rank`` and one rope key a token, whatever the number of heads.

    ``num_heads``, ``nope_dim`` and ``v_head_dim`` describe the decompressed heads, for engines and versions that cache
    those instead. ``indexer_dim`` is the width of a sparse-attention indexer's key (0: none).
    """

    kind: ClassVar[Literal["latent"]] = "latent"
    rank: int
    rope_dim: int
    num_heads: int
    nope_dim: int
    v_head_dim: int
    window: int | None = None
    indexer_dim: int = 0


#: The format of a state's part: its own, or the model's, for the engines that ask the model.
StateDType = Literal["model", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class State(_Sized):
    """A fixed state a sequence: a recurrent part and the last columns of a convolution.

    ``conv_kernel`` is the kernel's width: transformers keeps that many columns, everyone else one fewer. A format is
    the model's unless its configuration, or the kind of state, asks for another (Qwen3.5's ``mamba_ssm_dtype``, KDA).
    Of the channels, ``groups`` x ``group_channels`` belong to Mamba-2's groups of B and C, which an engine may
    replicate where devices do not divide them. ``scan_chunk`` tokens are scanned at once, which decides what a prefill
    takes and not what is kept; 0 is Mamba-2's usual 256.
    """

    kind: ClassVar[Literal["state"]] = "state"
    recurrent_elements: int = 0
    recurrent_dtype: StateDType = "model"
    conv_channels: int = 0
    conv_kernel: int = 1
    groups: int = 0
    group_channels: int = 0
    scan_chunk: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Parallel:
    """Attention and a state side by side in one layer (Falcon-H1)."""

    kind: ClassVar[Literal["parallel"]] = "parallel"
    attention: Full | Sliding
    state: State


@dataclass(frozen=True)
class Shared:
    """A layer that reads the cache of an earlier layer of kind ``of``: no bytes of its own."""

    kind: ClassVar[Literal["shared"]] = "shared"
    of: Literal["full", "sliding", "chunked"] = "full"


@dataclass(frozen=True)
class Cross(_Sized):
    """Attention to an encoder's output: K and V of every encoder token."""

    kind: ClassVar[Literal["cross"]] = "cross"
    num_kv_heads: int
    head_dim: int
    v_head_dim: int


@dataclass(frozen=True)
class Compressed(_Sized):
    """One tensor for K and V (DeepSeek V4): ``width`` elements for each of min(context, window) tokens.

    With a ``ratio`` it also keeps ``width + indexer_dim`` elements for each of context // ratio compressed entries.
    """

    kind: ClassVar[Literal["compressed"]] = "compressed"
    width: int
    window: int
    ratio: int | None = None
    indexer_dim: int = 0


@dataclass(frozen=True)
class NoCache:
    """A layer without a cache: a feed-forward block that counts as a layer, or a skipped attention."""

    kind: ClassVar[Literal["none"]] = "none"


LayerKind = Full | Sliding | Chunked | Latent | State | Parallel | Shared | Cross | Compressed | NoCache

#: Every layer kind by its name.
KINDS: dict[str, type[Any]] = {kind.kind: kind for kind in get_args(LayerKind)}


def layer_kind(table: Mapping[str, Any]) -> LayerKind:
    """A layer kind from plain data: ``kind`` names it, the other keys are its fields.

    Raises:
        InputError: an unknown kind, or fields that it does not have.

    >>> layer_kind({"kind": "sliding", "window": 512, "num_kv_heads": 1, "head_dim": 256, "v_head_dim": 256}).window
    512
    """
    stated = dict(table)
    name = stated.pop("kind", None)
    if name not in KINDS:
        hint = did_you_mean(str(name), KINDS) or f"known kinds: {', '.join(KINDS)}"
        raise InputError(f"unknown layer kind {quote(name)}", hint=hint)
    names = {each.name for each in fields(KINDS[name])}
    for unknown in stated.keys() - names:
        raise InputError(f"a {name} layer has no {quote(unknown)}", hint=did_you_mean(unknown, names))
    inner = {key: layer_kind(value) for key, value in stated.items() if isinstance(value, Mapping)}
    try:
        kind: LayerKind = KINDS[name](**{**stated, **inner})
    except TypeError:
        missing = ", ".join(sorted(names - stated.keys()))
        raise InputError(f"a {name} layer lacks one of {missing}") from None
    return kind


Part = Literal[
    "embedding",
    "attention",
    "state",
    "feed_forward",
    "experts",
    "router",
    "norms",
    "head",
    "other",
    "vision",
    "audio",
    "tied_head",
    "rope_factors",
]
Split = Literal["rows", "columns", "by_kv_heads", "whole"]


@dataclass(frozen=True)
class Tensor:
    """``count`` weight tensors alike, each of ``rows`` x ``columns`` numbers, of one layer or of the model.

    Attributes:
        part: what the tensor belongs to, as reports list it.
        rows: outputs of a matrix [out, in], or the numbers of a vector.
        columns: inputs of a matrix; 1 for a vector.
        count: how many there are (the routed experts; norms of one width).
        role: the module's path in its layer, in the words of Llama's and DeepSeek's classes (``self_attn.q_proj``,
            ``mlp.experts.down_proj``), or the parameter's (``self_attn.q_proj.bias``); formats go by it.
        linear: a linear layer's matrix, so that a quantised weight format covers it.
        split: how tensor parallelism places it: rows divided, columns divided, rows divided by KV heads (replicated
            beyond them), or whole.
        kv_heads: the KV heads that ``by_kv_heads`` divides by.
        active: how many of ``count`` are read for one token (routed experts); None for all.
        dtype: its own storage format, where it is not the model's.
        buffer: a checkpoint stores it, but it is no parameter (the correction of a router's scores).

    >>> Tensor("attention", 4096, 512, role="self_attn.q_proj", linear=True).elements
    2097152
    """

    part: Part
    rows: int
    columns: int = 1
    count: int = 1
    role: str = ""
    linear: bool = False
    split: Split = "rows"
    kv_heads: int = 0
    active: int | None = None
    dtype: str | None = None
    buffer: bool = False

    @property
    def elements(self) -> int:
        """Parameters in all of them: a buffer holds none."""
        return 0 if self.buffer else self.count * self.rows * self.columns

    @property
    def active_elements(self) -> int:
        """Parameters that one token reads."""
        return 0 if self.buffer else (self.count if self.active is None else self.active) * self.rows * self.columns


@dataclass(frozen=True)
class Layer:
    """One distinct layer: the cache it keeps, the tensors of its mixer (attention or state), and the rest.

    ``cross`` is a cross-attention cache beside the layer's own (T5Gemma's decoder); ``predicts`` marks a
    multi-token-prediction layer.
    """

    cache: LayerKind
    mixer: tuple[Tensor, ...] = ()
    rest: tuple[Tensor, ...] = ()
    cross: Cross | None = None
    predicts: bool = False


@dataclass(frozen=True)
class LargestImage:
    """The largest image that a model's encoder takes.

    Attributes:
        tokens: tokens that it becomes.
        numbers: numbers of its pixels, as the processor hands them over.
    """

    tokens: int
    numbers: int


@dataclass(frozen=True)
class Provenance:
    """Where the numbers come from; two architectures that differ only here are equal.

    Attributes:
        sources: documents and files, one line each.
        notes: what was assumed, or what a reader must know; printed with the numbers.
        hints: questions to the person who wrote the reference; the command line prints them on standard error.
        exact_parameters: the parameter count was proved against a published or instantiated figure.
        weight_bytes: bytes of the tensors measured in files by storage format, or None where no file was read.
        weight_elements: numbers in those tensors, or None likewise.
        reference: the model as it was asked for (``gemma-2-2b@5:1``), or nothing.
    """

    sources: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    exact_parameters: bool = False
    weight_bytes: dict[str, int] | None = None
    weight_elements: int | None = None
    reference: str = ""


_T = TypeVar("_T")


@dataclass(frozen=True)
class Architecture:
    """A model's layers and weights.

    Attributes:
        name: what reports call it.
        model_type: the Hugging Face model type without a ``_text`` suffix; engines key some rules on it.
        layers: the distinct layers.
        order: for each of the model's layers the index of its distinct layer.
        hidden_size: width of the residual stream.
        vocab_size: rows of the embedding.
        max_context: positions the model was made for, or None where nothing says so.
        dtype: storage format of the weights as published.
        k_dtype, v_dtype: storage formats of the cache, where the model asks for others than ``dtype``.
        tensors: the tensors that belong to no layer (embedding, final norm, head).
        mtp_layers: multi-token-prediction layers, in order; they cost only when asked for.
        mtp_shipped: whether the checkpoint holds those layers.
        towers: the tensors of the encoders of images and sound that a checkpoint carries; no part of ``parameters``.
        text_preset: the towers are those of the checkpoint that engines load, and no part of the model's own figures.
        rope_factors: numbers of the tables of rope factors in its GGUF file, or None where nothing tells.
        image: the largest image that such an encoder takes, or None where that is not known.
        rotary: the tables of rotary positions, as (positions, numbers of each); None is one of ``max_context``
            positions for each width of the heads.
        quantization: the formats in which the checkpoint ships, where they are not ``dtype``.
        declared_cache: the format of K and V that the checkpoint declares; some engines follow it.
        provenance: sources, notes and measured bytes; like what its checkpoint is made of, no part of equality.

    A spec file or :func:`kvcalc.load` makes one; :func:`kvcalc.read_config` makes one from a config.json.
    """

    name: str
    model_type: str
    layers: tuple[Layer, ...]
    order: tuple[int, ...]
    hidden_size: int
    vocab_size: int
    max_context: int | None = None
    dtype: str = "bfloat16"
    k_dtype: str | None = None
    v_dtype: str | None = None
    tensors: tuple[Tensor, ...] = ()
    mtp_layers: tuple[Layer, ...] = ()
    mtp_shipped: bool = field(default=True, compare=False)
    towers: tuple[Tensor, ...] = field(default=(), compare=False)
    text_preset: bool = field(default=False, compare=False)
    rope_factors: int | None = field(default=0, compare=False)
    image: LargestImage | None = field(default=None, compare=False)
    rotary: tuple[tuple[int, int], ...] | None = field(default=None, compare=False)
    quantization: WeightsFormat | None = field(default=None, compare=False)
    declared_cache: DeclaredCache | None = field(default=None, compare=False)
    provenance: Provenance = field(default=Provenance(), compare=False)

    def __post_init__(self) -> None:
        check_count(self.hidden_size, "hidden_size", most=MOST_ELEMENTS)
        check_count(self.vocab_size, "vocab_size", least=0, most=MOST_ELEMENTS)
        if self.max_context is not None:
            check_count(self.max_context, "max_context")
        if not self.order or not all(0 <= index < len(self.layers) for index in self.order):
            raise InputError(f"the order of {self.name} names layers that it does not have")

    def __repr__(self) -> str:
        return f"<{self.name}: {self.layout}>"

    @property
    def num_layers(self) -> int:
        """Layers of the model, as its configuration counts them."""
        return len(self.order)

    @cached_property
    def layer_counts(self) -> tuple[int, ...]:
        """How often each of ``layers`` stands in ``order``."""
        return tuple(self.order.count(index) for index in range(len(self.layers)))

    @cached_property
    def caches(self) -> tuple[tuple[LayerKind, int], ...]:
        """The distinct caches and how many layers keep each, in order of first appearance.

        Layers that differ only in their weights count together; the cross-attention caches of an encoder-decoder
        stand last.
        """
        counted = list(zip(self.layers, self.layer_counts, strict=True))
        crossed = ((layer.cross, n) for layer, n in counted if layer.cross is not None)
        counts: dict[LayerKind, int] = {}
        for kind, n in (*((layer.cache, n) for layer, n in counted), *crossed):
            counts[kind] = counts.get(kind, 0) + n
        return tuple(counts.items())

    @cached_property
    def layout(self) -> str:
        """The layers in words: ``52 sliding (1024) + 10 full``."""
        return " + ".join(f"{count} {kind_label(kind)}" for kind, count in self.caches)

    @cached_property
    def derived(self) -> OrderedDict[Any, Any]:
        """What was computed from this architecture, by key; see :meth:`memo`."""
        return OrderedDict()

    def memo(self, key: Any, build: Callable[[], _T]) -> _T:
        """What ``build()`` gave for ``key`` the first time: derived facts live as long as the architecture does.

        Whoever tries thousands of options keeps the last few: beyond a bound, the oldest is forgotten.
        """
        found: _T | None = self.derived.get(key)
        if found is None:
            found = self.derived[key] = build()
            if len(self.derived) > _MOST_DERIVED:
                self.derived.popitem(last=False)
        return found

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: what was derived from them is computed anew where the architecture arrives."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @property
    def windows(self) -> tuple[int, ...]:
        """The distinct windows and chunks of the layers, ascending."""
        return tuple(sorted({window for kind, _ in self.caches if (window := window_of(kind)) is not None}))

    @property
    def rotary_tables(self) -> tuple[tuple[int, int], ...]:
        """The tables of rotary positions, stated or one for each width of the heads."""
        if self.rotary is not None:
            return self.rotary
        kinds = [kind.attention if isinstance(kind, Parallel) else kind for kind, _ in self.caches]
        widths = [
            kind.rope_dim if isinstance(kind, Latent) else kind.head_dim
            for kind in kinds
            if isinstance(kind, Full | Sliding | Chunked | Latent)
        ]
        return tuple((self.max_context or 0, width) for width in dict.fromkeys(widths))

    @property
    def has_experts(self) -> bool:
        """Whether a layer has routed experts."""
        return any(tensor.part == "experts" for layer in self.layers for tensor in layer.rest)

    @property
    def has_latents(self) -> bool:
        """Whether a layer keeps latents (MLA)."""
        return any(isinstance(kind, Latent) for kind, _ in self.caches)

    @property
    def has_sparse_latents(self) -> bool:
        """Whether a layer keeps latents and the keys of the indexer that chooses among them."""
        return any(isinstance(kind, Latent) and kind.indexer_dim for kind, _ in self.caches)

    @property
    def has_indexers(self) -> bool:
        """Whether a layer of any kind keeps the keys of a sparse-attention indexer."""
        return any(getattr(kind, "indexer_dim", 0) for kind, _ in self.caches)

    @property
    def has_states(self) -> bool:
        """Whether a layer keeps a recurrent state, alone or beside attention."""
        return any(isinstance(kind, State | Parallel) for kind, _ in self.caches)

    @property
    def ratio(self) -> str | None:
        """Local to global attention layers: ``5:1`` where a block of that shape repeats, else their counts.

        None where no attention layer is local. A state or empty layer belongs to neither.
        """
        kinds = (self.layers[at].cache for at in self.order)
        flags = [is_local(kind) for kind in kinds if isinstance(kind, Full | Sliding | Chunked | Parallel)]
        if not any(flags):
            return None
        if all(flags):
            return "1:0"
        for local in range(1, len(flags) + 1):
            for global_ in (1, 2, 3):
                block = Layout(local, global_, None)
                if local + global_ <= len(flags) and flags == [block.is_local(at) for at in range(len(flags))]:
                    return f"{local}:{global_}"
        return f"{sum(flags)}:{len(flags) - sum(flags)}"

    def changed(self, **changes: Any) -> Architecture:
        """The architecture with other values in some fields, and nothing derived carried over."""
        return replace(self, **changes)

    @property
    def mtp(self) -> Architecture:
        """The model's own multi-token-prediction layers as a draft model, which shares its embedding and head.

        Raises:
            UnsupportedError: it has none.
        """
        if not self.mtp_layers:
            raise UnsupportedError(f"{self.name} has no multi-token-prediction layers", hint="leave the draft out")
        return self.memo("mtp", self._mtp)

    def _mtp(self) -> Architecture:
        layers, order = distinct_layers([*self.mtp_layers])
        counted = Provenance(exact_parameters=False)
        return self.changed(
            name=f"{self.name}'s MTP layers",
            layers=layers,
            order=order,
            tensors=(),
            mtp_layers=(),
            provenance=counted,
        )

    def followed_by(self, draft: Architecture) -> Architecture:
        """The model with the layers and tensors of a draft model after its own."""
        ordered = [each.layers[index] for each in (self, draft) for index in each.order]
        layers, order = distinct_layers(ordered)
        exact = self.provenance.exact_parameters and draft.provenance.exact_parameters
        return self.changed(
            layers=layers,
            order=order,
            tensors=(*self.tensors, *draft.tensors),
            mtp_layers=(),
            provenance=replace(self.provenance, exact_parameters=exact),
        )


def distinct_layers(ordered: list[Layer]) -> tuple[tuple[Layer, ...], tuple[int, ...]]:
    """The distinct layers of a list, and the list as indices into them."""
    distinct: list[Layer] = []
    order: list[int] = []
    seen: dict[int, int] = {}  # id -> index: most layers are the same object, and comparing models is slow
    for layer in ordered:
        index = seen.get(id(layer))
        if index is None:
            index = next((at for at, other in enumerate(distinct) if other == layer), len(distinct))
            if index == len(distinct):
                distinct.append(layer)
            seen[id(layer)] = index
        order.append(index)
    return tuple(distinct), tuple(order)


def stage_bounds(num_layers: int, stages: int) -> list[tuple[int, int]]:
    """The layers of each pipeline stage as (first, one after the last).

    As vLLM 0.33.0 (distributed/utils.py, get_pp_indices): what does not divide goes one layer each to the stages
    before the last, the later ones first.

    >>> stage_bounds(62, 4)
    [(0, 15), (15, 31), (31, 47), (47, 62)]
    """
    base, left = divmod(num_layers, stages)
    sizes = [base] * stages
    for extra in range(2, left + 2):
        sizes[-extra] += 1
    bounds, start = [], 0
    for size in sizes:
        bounds.append((start, start + size))
        start += size
    return bounds


@dataclass(frozen=True, slots=True)
class Stage:
    """Layers in a row on one device, or on those that share each of them.

    Attributes:
        first, end: the layers by position, the last one before ``end``; prediction layers come after the model's own.
        has_embedding: the embedding is there, and what stands before the first layer (encoders).
        has_output: the final norm and the head are there; a tied head is a copy of the embedding.
    """

    first: int
    end: int
    has_embedding: bool
    has_output: bool


def pipeline(architecture: Architecture, count: int) -> tuple[Stage, ...]:
    """The stages of a model on ``count`` devices in a row: the embedding on the first, the output on the last."""
    bounds = stage_bounds(architecture.num_layers, count)
    bounds[-1] = (bounds[-1][0], architecture.num_layers + len(architecture.mtp_layers))
    return tuple(Stage(first, end, at == 0, at == count - 1) for at, (first, end) in enumerate(bounds))


def kind_label(kind: LayerKind) -> str:
    """A layer kind in a word or two, as layouts and tables name it."""
    match kind:
        case Sliding():
            return f"sliding ({kind.window})"
        case Chunked():
            return f"chunked ({kind.chunk})"
        case Latent():
            window = f" ({kind.window})" if kind.window else ""
            return f"latent{window}" + (" + indexer" if kind.indexer_dim else "")
        case Compressed():
            ratio = f", 1/{kind.ratio}" if kind.ratio else ""
            return f"compressed ({kind.window}{ratio})"
        case Full() if kind.indexer_dim:
            return "full + indexer"
        case Parallel():
            return f"parallel {kind_label(kind.attention)}"
        case _:
            return kind.kind


def window_of(kind: LayerKind) -> int | None:
    """The tokens beyond which a layer of this kind keeps no more (None: it keeps all, or none)."""
    match kind:
        case Sliding() | Latent() | Compressed():
            return kind.window
        case Chunked():
            return kind.chunk
        case Parallel():
            return window_of(kind.attention)
        case _:
            return None


def is_local(kind: LayerKind) -> bool:
    """Whether a layer attends to a part of the context only."""
    return isinstance(kind, Sliding | Chunked) or (isinstance(kind, Parallel) and is_local(kind.attention))
