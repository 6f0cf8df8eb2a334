"""From what a person wrote to the architecture that it means.

:func:`build` turns a spec into an :class:`~kvcalc.architecture.Architecture` with the blocks of
:mod:`kvcalc.sources.blocks`. Presets, spec files and the config.json reader all come this way.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from kvcalc.architecture import (
    MOST_LAYERS,
    Architecture,
    Chunked,
    Compressed,
    Cross,
    Full,
    LargestImage,
    Latent,
    Layer,
    LayerKind,
    NoCache,
    Parallel,
    Provenance,
    Shared,
    Sliding,
    Tensor,
    distinct_layers,
)
from kvcalc.dtypes import parse_dtype
from kvcalc.errors import InputError, quote
from kvcalc.layout import Layout, parse_layout
from kvcalc.sources import blocks
from kvcalc.sources.spec import LETTERS, EncoderSpec, ExtraSpec, LayerSpec, ModelSpec, PeriodSpec

if TYPE_CHECKING:
    from kvcalc.sources.quantization_config import Declared

_ATTENTION_KINDS = ("full", "sliding", "chunked")
_KINDS = (*_ATTENTION_KINDS, "latent", "state", "parallel", "shared", "cross", "compressed", "encoder", "none")


_Table = TypeVar("_Table")


def build(spec: ModelSpec) -> Architecture:
    """The architecture that a spec means.

    Raises:
        InputError: the spec leaves out what its layers need, or says one thing in two ways.

    >>> from kvcalc.sources.preset import load_preset
    >>> load_preset("gemma-3-1b").layout
    '22 sliding (512) + 4 full'
    """
    builder = _Builder(spec)
    entries = _shared(spec, _entries(spec))
    layers, order = distinct_layers([builder.layer(entry, at) for at, entry in enumerate(entries)])
    word = spec.mtp_layout or ()
    mtp = _letters(spec, word, "mtp_layout") if isinstance(word, str) else [*word]
    declared = _declared(spec) if spec.quantization else None
    k_dtype, v_dtype = (dtype and parse_dtype(dtype).name for dtype in (spec.k_dtype, spec.v_dtype))
    return Architecture(
        name=spec.name,
        model_type=canonical_type(spec.model_type),
        layers=layers,
        order=order,
        hidden_size=spec.hidden_size,
        vocab_size=spec.vocab_size,
        max_context=spec.max_context,
        dtype=parse_dtype(spec.dtype).name,
        k_dtype=k_dtype,
        v_dtype=v_dtype,
        tensors=_model_tensors(spec, builder, len(order)),
        mtp_shipped=spec.mtp_tensors != "none",
        towers=tuple(Tensor(part, count, role=part) for part, count in sorted(spec.towers.items())),
        rope_factors=None if spec.rope_factors == "unknown" else spec.rope_factors,
        image=LargestImage(spec.image.tokens, spec.image.numbers) if spec.image is not None else None,
        rotary=spec.rotary,
        quantization=declared.weights if declared is not None else None,
        declared_cache=declared.cache if declared is not None else None,
        mtp_layers=tuple(builder.mtp_layer(entry, at, len(mtp)) for at, entry in enumerate(mtp)),
        provenance=Provenance(sources=spec.sources, notes=spec.notes),
    )


def _declared(spec: ModelSpec) -> Declared:
    """What the table [quantization] says."""
    from kvcalc.sources.quantization_config import read_quantization  # most specs have none

    model_type, dtype = canonical_type(spec.model_type), parse_dtype(spec.dtype).name
    return read_quantization(spec.quantization or {}, model_type, dtype, tied=spec.tie_embeddings)


def canonical_type(model_type: str) -> str:
    """A Hugging Face model type without the suffix of a text part.

    >>> canonical_type("gemma3_text"), canonical_type("mllama_text_model")
    ('gemma3', 'mllama')
    """
    return model_type.removesuffix("_text_model").removesuffix("_text")


def _entries(spec: ModelSpec) -> list[LayerSpec]:
    """The layers of a spec, one entry each."""
    layout = spec.layout
    if isinstance(layout, tuple):
        entries = [entry for each in layout for entry in _repeated(each)]
        if not entries:
            raise InputError("the list of layers is empty", location="layout")
        if len(entries) > MOST_LAYERS:
            raise InputError(f"the list of layers is longer than {MOST_LAYERS:,}", location="layout")
        if spec.num_layers not in (None, len(entries)):
            raise InputError(
                f"num_layers says {spec.num_layers}, the list of layers has {len(entries)}",
                hint="leave num_layers out: a list of layers derives it",
                location="num_layers",
            )
        return entries
    if isinstance(layout, str) and _is_pattern(layout, spec.layers):
        pattern = _letters(spec, layout, "layout")
        count = spec.num_layers or len(pattern)
        return [pattern[at % len(pattern)] for at in range(count)]
    if spec.num_layers is None:
        raise InputError("num_layers is missing", hint="only a list of layers derives it", location="num_layers")
    if isinstance(layout, PeriodSpec):
        beyond = [position for position in layout.global_ if position >= layout.period]
        if beyond:
            raise InputError(
                f"position {beyond[0]} lies outside a period of {layout.period}",
                hint="positions count from 0",
                location="layout.global",
            )
        local, full = LayerSpec(kind=layout.local), LayerSpec(kind="full")
        return [full if i % layout.period in layout.global_ else local for i in range(spec.num_layers)]
    word = parse_layout(layout)
    if word.keeps_order:
        word = Layout(1, 0, word.window)
    local, full = LayerSpec(kind="sliding", window=word.window), LayerSpec(kind="full")
    block = [local] * (word.local or 0) + [full] * (word.global_ or 0)
    return (block * (spec.num_layers // len(block) + 1))[: spec.num_layers]


def _is_pattern(layout: str, extra: dict[str, LayerSpec]) -> bool:
    """Whether a layout is made of letters: at least one of them no part of the word ``global``."""
    return bool(layout) and layout != "global" and all(letter in LETTERS or letter in extra for letter in layout)


def _letters(spec: ModelSpec, pattern: str, field: str) -> list[LayerSpec]:
    unknown = [letter for letter in pattern if letter not in spec.layers and letter not in LETTERS]
    if unknown:
        hint = f"known letters: {', '.join([*LETTERS, *spec.layers])}"
        raise InputError(f"unknown layer letter {quote(unknown[0])}", hint=hint, location=field)
    if len(pattern) > MOST_LAYERS:
        raise InputError(f"the pattern is longer than {MOST_LAYERS:,} layers", location=field)
    return [spec.layers.get(letter) or LETTERS[letter] for letter in pattern]


def _repeated(entry: str | LayerSpec) -> list[LayerSpec]:
    if isinstance(entry, str):
        return [LayerSpec(kind=entry)]
    return [entry.model_copy(update={"count": 1})] * entry.count


def _shared(spec: ModelSpec, entries: list[LayerSpec]) -> list[LayerSpec]:
    """The entries after the rules of sharing, with an owner before each layer that reads a cache."""
    first_shared = len(entries) - spec.kv_shared_last_layers
    if first_shared < 0:
        raise InputError(
            f"{spec.kv_shared_last_layers} layers share a cache, the model has {len(entries)}",
            location="kv_shared_last_layers",
        )
    result: list[LayerSpec] = []
    owners: set[str] = set()
    for at, entry in enumerate(entries):
        reads = at >= first_shared or at % spec.kv_shared_stride != 0
        each = entry
        if reads and entry.kind in _ATTENTION_KINDS:
            each = entry.model_copy(update={"kind": "shared", "of": entry.kind})
        if each.kind == "shared" and each.of not in owners:
            raise InputError(
                f"layer {at} reads the cache of a {each.of} layer, but none stands before it", location="layout"
            )
        owners.add(each.kind)
        result.append(each)
    return result


class _Builder:
    """Builds each distinct layer of one spec once."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._built: dict[tuple[LayerSpec, str, int | None, int], Layer] = {}
        dense = spec.feed_forward
        self._alike = spec.experts is None and (dense is None or isinstance(dense.intermediate_size, int))
        self._known: dict[int, Layer] = {}  # by the entry's id: a list has few of them, each many times

    def layer(self, entry: LayerSpec, at: int) -> Layer:
        """The layer of an entry at a position, which decides about experts and per-layer widths."""
        if not self._alike:
            return self._layer_at(entry, at)
        known = self._known.get(id(entry))
        if known is None:
            known = self._known[id(entry)] = self._layer_at(entry, at)
        return known

    def _layer_at(self, entry: LayerSpec, at: int) -> Layer:
        block = entry.feed_forward or self._block_at(at)
        width = self._width_at(entry, at) if block != "none" else None
        experts = self.spec.experts
        hashed = self.spec.vocab_size if experts is not None and at < experts.hash_layers else 0
        key = (entry, block, width, hashed)
        built = self._built.get(key)
        if built is None:
            built = self._built[key] = self._layer(entry, block, width, hashed)
        return built

    def mtp_layer(self, entry: LayerSpec, at: int, count: int) -> Layer:
        """One of ``count`` multi-token-prediction layers: a block as behind the last one, and what it has besides."""
        spec = self.spec
        D, streams = spec.hidden_size, spec.hyper_connections
        block = self.layer(entry, MOST_LAYERS + at)
        if spec.dspark is not None:
            ends = {"first": at == 0, "last": at == count - 1}
            own = blocks.dspark_stage(D, streams, spec.vocab_size, spec.dspark, **ends)
        else:
            own = blocks.mtp_projection(D, streams)
        if spec.mtp_tensors == "layers and tables":
            own += blocks.mtp_tables(D, spec.vocab_size)
        return replace(block, rest=(*block.rest, *own), predicts=True)

    def _block_at(self, at: int) -> str:
        experts = self.spec.experts
        if experts is None:
            return "none" if self.spec.feed_forward is None else "dense"
        sparse = at >= experts.first_dense and at not in experts.dense_layers
        return "experts" if sparse and at % experts.every == experts.offset % experts.every else "dense"

    def _width_at(self, entry: LayerSpec, at: int) -> int | None:
        dense = self.spec.feed_forward
        if entry.intermediate_size is not None or dense is None:
            return entry.intermediate_size
        if entry.kind == "shared" and dense.shared_layers_size is not None:
            return dense.shared_layers_size
        if isinstance(dense.intermediate_size, int):
            return dense.intermediate_size
        if not dense.intermediate_size:
            raise InputError("the list of widths is empty", location="feed_forward.intermediate_size")
        return dense.intermediate_size[min(at, len(dense.intermediate_size) - 1)]

    def _layer(self, entry: LayerSpec, block: str, width: int | None, hashed_tokens: int) -> Layer:
        spec = self.spec
        cache, mixer = self._mixer(entry)
        block = block if entry.owns_weights else "none"
        norms = spec.norms.per_layer if entry.norms is None else entry.norms
        rest = [*blocks.norms(spec.hidden_size, norms, spec.norms.bias)]
        if block == "experts":
            if spec.experts is None:
                raise InputError("a layer with experts needs the table [experts]", location="experts")
            dense = spec.feed_forward
            rest += blocks.experts(spec.hidden_size, spec.experts, dense is not None and dense.bias, hashed_tokens)
        if block == "dense" or (block == "experts" and spec.experts is not None and spec.experts.beside_dense):
            if spec.feed_forward is None or width is None:
                raise InputError("a dense layer needs the table [feed_forward]", location="feed_forward")
            rest += blocks.feed_forward(spec.hidden_size, width, spec.feed_forward)
        per_layer = spec.per_layer_input
        if per_layer is not None:
            rest += blocks.per_layer_input(
                spec.hidden_size, per_layer.width, per_layer.altup_inputs, per_layer.laurel_rank
            )
        if spec.hyper_connections:
            rest += blocks.hyper_connections(spec.hidden_size, spec.hyper_connections)
        cross = None
        if spec.encoder is not None and entry.kind in _ATTENTION_KINDS:
            heads = self.heads(entry)
            cross = _cross(heads)
            if not spec.encoder.merged:
                source = spec.encoder.hidden_size or spec.hidden_size
                mixer = (*mixer, *blocks.attention(spec.hidden_size, heads, source_size=source))
        rest += [_extra(each) for each in spec.extra if each.layers in ("all", entry.kind, block)]
        return Layer(cache=cache, mixer=mixer, rest=tuple(rest), cross=cross)

    def _mixer(self, entry: LayerSpec) -> tuple[LayerKind, tuple[Tensor, ...]]:
        spec = self.spec
        D = spec.hidden_size
        match entry.kind:
            case "none":
                return NoCache(), ()
            case "encoder":
                return NoCache(), blocks.attention(D, self.heads(entry))
            case "full" | "sliding" | "chunked":
                heads = self.heads(entry)
                return _attention_cache(entry.kind, heads), blocks.attention(D, heads) if entry.owns_weights else ()
            case "shared":
                heads = self.heads(entry.model_copy(update={"kind": entry.of}))
                return Shared(of=entry.of), blocks.attention(D, heads, owns_kv=False)
            case "cross":
                heads = self.heads(entry)
                return _cross(heads), blocks.attention(D, heads)
            case "latent":
                shape = _stated(spec.latent, "latent", entry.kind)
                if entry.indexer is False:
                    shape = shape.model_copy(update={"indexer_dim": 0, "indexer_heads": 0})
                cache = Latent(
                    rank=shape.rank,
                    rope_dim=shape.rope_dim,
                    num_heads=shape.num_heads,
                    nope_dim=shape.nope_dim,
                    v_head_dim=shape.v_head_dim,
                    window=entry.window or shape.window,
                    indexer_dim=shape.indexer_dim,
                )
                return cache, blocks.latent_attention(D, shape)
            case "state":
                state = _stated(spec.state, "state", entry.kind)
                return blocks.state_cache(D, state), blocks.state_mixer(D, state)
            case "parallel":
                state = _stated(spec.state, "state", entry.kind)
                inner = entry.model_copy(update={"kind": entry.of})
                heads = self.heads(inner)
                attention = _attention_cache(entry.of, heads)
                if not isinstance(attention, Full | Sliding):
                    raise InputError("a parallel layer's attention is full or sliding", location="layout")
                own = blocks.attention(D, heads) if entry.owns_weights else ()
                both = (*own, *blocks.state_mixer(D, state))
                return Parallel(attention=attention, state=blocks.state_cache(D, state)), both
            case "compressed":
                table = _stated(spec.compressed, "compressed", entry.kind)
                if not entry.indexer:
                    table = table.model_copy(update={"indexer_dim": 0})
                compressed = Compressed(
                    width=table.width, window=table.window, ratio=entry.ratio, indexer_dim=table.indexer_dim
                )
                return compressed, blocks.compressed_attention(D, table, entry.ratio)
        known = ", ".join(_KINDS)
        raise InputError(f"unknown layer kind {quote(entry.kind)}", hint=f"known kinds: {known}", location="layout")

    def heads(self, entry: LayerSpec) -> blocks.Heads:
        """The geometry of an attention layer: the entry's own words, then those for local layers, then the model's."""
        spec = self.spec
        stated: dict[str, Any] = {}
        local = spec.local_attention if entry.kind in ("sliding", "chunked") else None
        for table in (spec.attention, local):
            if table is not None:
                stated |= {key: value for key, value in vars(table).items() if value is not None}
        for key in ("window", "num_heads", "num_kv_heads", "head_dim", "v_head_dim"):
            value = getattr(entry, key)
            if value is not None:
                stated[key] = value
        if entry.indexer is False:
            stated.pop("indexer_dim", None)
        if "num_heads" not in stated:
            raise InputError("num_heads is missing", hint="an attention layer needs it", location="attention.num_heads")
        if "head_dim" not in stated:
            stated["head_dim"] = spec.hidden_size // stated["num_heads"] or 1
        stated.setdefault("num_kv_heads", stated["num_heads"])
        stated.setdefault("v_head_dim", stated["head_dim"])
        # One norm for all heads together never has a bias, even in StableLM, whose other norms have.
        stated["qk_norm_bias"] = spec.norms.bias and stated.get("qk_norm") == "head"
        return blocks.Heads(**stated)


def _stated(table: _Table | None, name: str, kind: str) -> _Table:
    """A table of the spec that layers of this kind cannot do without."""
    if table is None:
        raise InputError(f"{kind} layers need the table [{name}]", location=name)
    return table


def _attention_cache(kind: str, heads: blocks.Heads) -> LayerKind:
    geometry: dict[str, Any] = {
        "num_kv_heads": heads.num_kv_heads,
        "head_dim": heads.head_dim,
        "v_head_dim": heads.v_head_dim,
        "extra_state_bytes": heads.extra_state_bytes,
    }
    if kind == "full":
        return Full(indexer_dim=heads.indexer_dim, **geometry)
    if kind == "sliding":
        if heads.window is None:
            hint = "write layout = '5:1/sw=1024', or window under [attention]"
            raise InputError("sliding layers need a window", hint=hint, location="layout")
        return Sliding(window=heads.window, **geometry)
    if heads.chunk is None:
        raise InputError("chunked layers need a chunk", hint="write chunk under [attention]", location="layout")
    return Chunked(chunk=heads.chunk, **geometry)


def _cross(heads: blocks.Heads) -> Cross:
    return Cross(num_kv_heads=heads.num_kv_heads, head_dim=heads.head_dim, v_head_dim=heads.v_head_dim)


def _model_tensors(spec: ModelSpec, builder: _Builder, num_layers: int) -> tuple[Tensor, ...]:
    D = spec.hidden_size
    width = spec.embedding_size or D
    tensors = []
    if spec.embedding:
        tensors.append(Tensor("embedding", spec.vocab_size, width, role="embed_tokens"))
    if width != D:
        tensors.append(Tensor("embedding", D, width, role="project_in", linear=True))
        tensors.append(Tensor("head", width, D, role="project_out", linear=True))
    if spec.learned_positions:
        tensors.append(Tensor("embedding", spec.learned_positions, D, role="embed_positions"))
    ends = int(spec.norms.final) + int(spec.norms.embedding)
    tensors += blocks.norms(spec.hidden_size, ends, spec.norms.bias)
    per_layer = spec.per_layer_input
    if per_layer is not None:
        tensors += blocks.per_layer_embedding(
            spec.hidden_size, num_layers, per_layer.vocab_size, per_layer.width, per_layer.altup_inputs
        )
    if spec.hyper_connections:
        tensors += blocks.hyper_head(spec.hidden_size, spec.hyper_connections)
    if spec.encoder is not None:
        tensors += _encoder_tensors(spec, spec.encoder, builder)
    tensors += [_extra(each) for each in spec.extra if each.layers is None]
    rows = spec.vocab_size if spec.head_rows is None else spec.head_rows
    tied = spec.tie_embeddings and rows == spec.vocab_size
    if rows and not tied:
        tensors.append(Tensor("head", rows, width, role="lm_head", linear=True))
    if rows and spec.head_bias:
        tensors.append(Tensor("head", rows, role="lm_head.bias"))
    return tuple(tensors)


def _extra(spec: ExtraSpec) -> Tensor:
    return Tensor(spec.part, spec.rows, spec.columns, spec.count, role=spec.role, linear=spec.linear, split="whole")


def _encoder_tensors(spec: ModelSpec, encoder: EncoderSpec, builder: _Builder) -> list[Tensor]:
    """The encoder's embedding and positions where it has its own, its layers, and the norms outside them."""
    hidden = encoder.hidden_size or spec.hidden_size
    entry = LayerSpec(
        kind="full", num_heads=encoder.num_heads, num_kv_heads=encoder.num_kv_heads, head_dim=encoder.head_dim
    )
    dense = spec.feed_forward
    width = encoder.intermediate_size or (dense.intermediate_size if dense is not None else None)
    if dense is None or not isinstance(width, int):
        raise InputError("an encoder needs one feed-forward width", location="encoder.intermediate_size")
    if encoder.gated is not None:
        dense = dense.model_copy(update={"gated": encoder.gated})
    layer = (
        *blocks.attention(hidden, builder.heads(entry)),
        *blocks.norms(hidden, encoder.norms_per_layer, spec.norms.bias),
        *blocks.feed_forward(hidden, width, dense),
    )
    tensors = []
    if encoder.embedding:
        tensors.append(Tensor("embedding", spec.vocab_size, hidden, role="encoder.embed_tokens"))
    if encoder.learned_positions:
        tensors.append(Tensor("embedding", encoder.learned_positions, hidden, role="encoder.embed_positions"))
    tensors += blocks.repeated(layer, encoder.num_layers)
    return [*tensors, *blocks.norms(hidden, encoder.norms, spec.norms.bias)]
