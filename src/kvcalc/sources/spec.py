"""What a person writes to describe a model: short, and nothing said twice.

A layout is a word of :mod:`kvcalc.layout`, a period, a list of layers, or a pattern of letters, one a layer, repeated
to ``num_layers``: ``RRRF`` is three state layers, then a full one. The letters: F full, S sliding, C chunked,
L latent, R state (recurrent or convolution), P state beside full attention, X cross-attention, E attention of an
encoder (nothing is kept), N none; f, s and c read the cache of the last layer of kind F, S and C; others, and other
meanings, stand under ``[layers.LETTER]``.

The models are frozen dataclasses that pydantic validates: unknown fields are forbidden, numbers are strict, and the
descriptions become the JSON Schema. Their annotations stay text until :func:`validate_spec` needs them, because loading
pydantic takes longer than any answer from a shipped preset, whose validity the tests hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from kvcalc.architecture import MOST_LAYERS

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from kvcalc.sources.spec_types import (
        Count,
        Field,
        LayerCount,
        Letter,
        Positive,
        SmallCount,
        Width,
        WidthOrZero,
    )

SPEC_CONFIG = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True, repr=False)
class AttentionSpec:
    """Heads of the attention layers; ``[local_attention]`` states only what differs in local layers."""

    __pydantic_config__ = SPEC_CONFIG
    num_heads: Annotated[Width | None, Field(description="query heads")] = None
    num_kv_heads: Annotated[Width | None, Field(description="KV heads; default: as many as query heads")] = None
    head_dim: Annotated[Width | None, Field(description="width of a K head; default: hidden_size / num_heads")] = None
    v_head_dim: Annotated[Width | None, Field(description="width of a V head; default: head_dim")] = None
    window: Annotated[
        Positive | None, Field(description="tokens of the sliding window, where the layout names none")
    ] = None
    chunk: Annotated[Positive | None, Field(description="tokens of an attention chunk, for chunked layers")] = None
    qk_norm: Annotated[
        Literal["none", "head", "all"] | None,
        Field(description="norm weights on Q and K: none, one for a head's width, or one for all heads together"),
    ] = None
    qkv_bias: Annotated[bool | None, Field(description="biases on the Q, K and V projections")] = None
    output_bias: Annotated[bool | None, Field(description="a bias on the output projection")] = None
    gate: Annotated[
        Literal["none", "head", "full"] | None,
        Field(description="a gate on the attention's output: one number a head, or as wide as the output"),
    ] = None
    gate_bias: Annotated[
        bool | None, Field(description="the biases on Q cover the gate too, which its projection holds (Qwen3-Next)")
    ] = None
    sinks: Annotated[
        bool | None, Field(description="a learned sink logit for each query head (weights, not cache)")
    ] = None
    shares_kv_projection: Annotated[
        bool | None, Field(description="one projection for K and V (Gemma 4); both are cached all the same")
    ] = None
    query_rank: Annotated[Width | None, Field(description="rank of a low-rank query projection (Step-3)")] = None
    indexer_dim: Annotated[
        WidthOrZero | None, Field(description="width of a sparse-attention indexer's key, cached too")
    ] = None
    indexer_heads: Annotated[WidthOrZero | None, Field(description="query heads of the indexer")] = None
    extra_state_bytes: Annotated[Count | None, Field(description="fixed bytes a sequence besides K and V")] = None


@dataclass(frozen=True, kw_only=True, repr=False)
class LatentSpec:
    """Multi-head latent attention (MLA)."""

    __pydantic_config__ = SPEC_CONFIG
    num_heads: Annotated[Width, Field(description="query heads")]
    rank: Annotated[Width, Field(description="width of the cached latent (kv_lora_rank)")]
    rope_dim: Annotated[WidthOrZero, Field(description="width of the cached rope key (qk_rope_head_dim)")]
    nope_dim: Annotated[
        WidthOrZero, Field(description="width of a decompressed K head without rope (qk_nope_head_dim)")
    ]
    v_head_dim: Annotated[Width, Field(description="width of a decompressed V head")]
    query_rank: Annotated[Width | None, Field(description="rank of the query projection (q_lora_rank); none: full")] = (
        None
    )
    window: Annotated[Positive | None, Field(description="tokens of a sliding window over the latents")] = None
    bias: Annotated[bool, Field(description="biases on the low-rank and output projections")] = False
    indexer_dim: Annotated[WidthOrZero, Field(description="width of a sparse-attention indexer's key, cached too")] = 0
    indexer_heads: Annotated[WidthOrZero, Field(description="query heads of the indexer")] = 0


@dataclass(frozen=True, kw_only=True, repr=False)
class StateSpec:
    """State layers: what a sequence keeps whatever its length."""

    __pydantic_config__ = SPEC_CONFIG
    type: Literal["mamba1", "mamba2", "gated_delta_net", "kda", "lightning", "rg_lru", "short_conv"]
    num_heads: Annotated[Width, Field(description="heads (value heads; blocks of an RG-LRU gate)")] = 1
    head_dim: Annotated[WidthOrZero, Field(description="width of a head (of a value head)")] = 0
    num_key_heads: Annotated[WidthOrZero, Field(description="key heads of a gated delta net")] = 0
    key_head_dim: Annotated[WidthOrZero, Field(description="width of a key head of a gated delta net")] = 0
    inner_size: Annotated[WidthOrZero, Field(description="inner width of a Mamba-1 or RG-LRU layer")] = 0
    state_size: Annotated[WidthOrZero, Field(description="state numbers for each inner channel (d_state)")] = 0
    groups: Annotated[WidthOrZero, Field(description="groups of B and C in Mamba-2")] = 1
    dt_rank: Annotated[WidthOrZero, Field(description="rank of the time step's projection in Mamba-1")] = 0
    conv_kernel: Annotated[int, Field(strict=True, ge=1, le=4096, description="columns of the convolution")] = 1
    conv_bias: Annotated[bool, Field(description="a bias on the convolution (and around a short convolution)")] = False
    bias: Annotated[bool, Field(description="biases on the input and output projections")] = False
    norm: Annotated[bool, Field(description="the gated norm of Mamba-2, the norms of Jamba's Mamba-1")] = True
    recurrent_dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], Field(description="storage format of the recurrent part")
    ] = "float32"


@dataclass(frozen=True, kw_only=True, repr=False)
class CompressedSpec:
    """Compressed attention (DeepSeek V4): one tensor for K and V; ``ratio`` stands with each layer."""

    __pydantic_config__ = SPEC_CONFIG
    num_heads: Annotated[Width, Field(description="query heads")]
    width: Annotated[Width, Field(description="width of the one K and V head")]
    window: Annotated[Positive, Field(description="tokens kept uncompressed")]
    query_rank: Annotated[Width, Field(description="rank of the query projection")]
    output_groups: Annotated[Width, Field(description="groups of the output projection")] = 1
    output_rank: Annotated[Width, Field(description="rank of each group of the output projection")]
    indexer_dim: Annotated[
        WidthOrZero, Field(description="width of an indexer's key a compressed entry, where one is kept")
    ] = 0
    indexer_heads: Annotated[WidthOrZero, Field(description="query heads of the indexer")] = 0


@dataclass(frozen=True, kw_only=True, repr=False)
class EncoderSpec:
    """The encoder whose output each decoder layer attends to; what is left out is as in the decoder."""

    __pydantic_config__ = SPEC_CONFIG
    num_layers: LayerCount
    hidden_size: Width | None = None
    intermediate_size: Width | None = None
    num_heads: Width | None = None
    num_kv_heads: Width | None = None
    head_dim: Width | None = None
    norms_per_layer: SmallCount = 4


@dataclass(frozen=True, kw_only=True, repr=False)
class FeedForwardSpec:
    """The feed-forward blocks: up and down projections, and a gate where ``gated``."""

    __pydantic_config__ = SPEC_CONFIG
    intermediate_size: Annotated[
        Width | tuple[Width, ...], Field(description="width of the hidden layer, or one a layer")
    ]
    gated: Annotated[bool, Field(description="a gate projection beside the up projection")] = True
    bias: Annotated[bool, Field(description="biases on the projections")] = False
    shared_layers_size: Annotated[
        Width | None, Field(description="another width in layers that read another layer's cache (Gemma 4 E2B)")
    ] = None
    norm: Annotated[bool, Field(description="a norm of the hidden layer (BitNet)")] = False
    activation_parameters: Annotated[
        SmallCount, Field(description="numbers of the activation function itself (xIELU of Apertus: 2)")
    ] = 0


@dataclass(frozen=True, kw_only=True, repr=False)
class ExpertsSpec:
    """A mixture of experts in place of the feed-forward block of some layers."""

    __pydantic_config__ = SPEC_CONFIG
    count: Annotated[Width, Field(description="routed experts")]
    active: Annotated[Width, Field(description="routed experts that a token reads")]
    intermediate_size: Annotated[Width, Field(description="width of one expert")]
    gated: Annotated[bool, Field(description="a gate projection in each expert")] = True
    bias: Annotated[bool, Field(description="biases in the experts")] = False
    shared_intermediate_size: Annotated[WidthOrZero, Field(description="width of all shared experts together")] = 0
    shared_gate: Annotated[bool, Field(description="a gate on the shared experts")] = False
    router_bias: Annotated[bool, Field(description="a bias on the router's logits that is a weight")] = False
    router_scales: Annotated[
        bool, Field(description="a scale on the router's input and one for each expert (Gemma 4)")
    ] = False
    zero_experts: Annotated[WidthOrZero, Field(description="router rows without an expert behind them (LongCat)")] = 0
    latent_size: Annotated[Width | None, Field(description="width to which the routed experts' input is projected")] = (
        None
    )
    first_dense: Annotated[SmallCount, Field(description="layers at the start that stay dense")] = 0
    every: Annotated[LayerCount, Field(description="experts in every k-th layer")] = 1
    offset: Annotated[SmallCount, Field(description="the first of these layers")] = 0
    dense_layers: Annotated[
        tuple[SmallCount, ...], Field(max_length=MOST_LAYERS, description="other layers that are dense")
    ] = ()
    norm: Annotated[bool, Field(description="a norm behind the experts (A.X-K1)")] = False
    beside_dense: Annotated[bool, Field(description="the dense block stays beside the experts (Gemma 4)")] = False


@dataclass(frozen=True, kw_only=True, repr=False)
class NormsSpec:
    """Norms of the residual stream's width; those on Q and K stand under ``[attention]``."""

    __pydantic_config__ = SPEC_CONFIG
    per_layer: Annotated[SmallCount, Field(description="norms of hidden_size numbers in every layer")] = 2
    final: Annotated[bool, Field(description="a norm behind the last layer")] = True
    embedding: Annotated[bool, Field(description="a norm behind the embedding")] = False
    bias: Annotated[bool, Field(description="norms with a bias (LayerNorm)")] = False


@dataclass(frozen=True, kw_only=True, repr=False)
class PerLayerInputSpec:
    """Embeddings of their own for every layer (Gemma 3n, Gemma 4 E2B and E4B)."""

    __pydantic_config__ = SPEC_CONFIG
    width: Annotated[Width, Field(description="width of one layer's embedding")]
    vocab_size: Annotated[Width, Field(description="rows of the table")]
    altup_inputs: Annotated[int, Field(strict=True, ge=0, le=64, description="streams of AltUp")] = 0
    laurel_rank: Annotated[WidthOrZero, Field(description="rank of Laurel's residual")] = 0


@dataclass(frozen=True, kw_only=True, repr=False)
class PeriodSpec:
    """A layout by period: ``{period = 6, global = [5]}``; positions that are not global are local."""

    __pydantic_config__ = SPEC_CONFIG
    period: LayerCount
    global_: Annotated[tuple[Count, ...], Field(alias="global", max_length=MOST_LAYERS)]
    local: Annotated[str, Field(description="kind of the other layers")] = "sliding"


@dataclass(frozen=True, kw_only=True, repr=False)
class LayerSpec:
    """One kind of layer and what differs in it; in a list, ``count`` of them in a row."""

    __pydantic_config__ = SPEC_CONFIG
    kind: str
    count: LayerCount = 1
    of: Annotated[
        Literal["full", "sliding", "chunked"],
        Field(description="shared: the kind of layer whose cache it reads; parallel: the kind of its attention"),
    ] = "full"
    window: Positive | None = None
    num_heads: Width | None = None
    num_kv_heads: Width | None = None
    head_dim: Width | None = None
    v_head_dim: Width | None = None
    ratio: Annotated[Positive | None, Field(description="tokens that one entry of a compressed layer stands for")] = (
        None
    )
    indexer: Annotated[
        bool | None, Field(description="whether this layer keeps indexer keys; default: if the model has")
    ] = None
    feed_forward: Annotated[Literal["dense", "experts", "none"] | None, Field(description="default: by [experts]")] = (
        None
    )
    intermediate_size: Width | None = None
    norms: SmallCount | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class ModelSpec:
    """A model as a spec file or a preset states it."""

    __pydantic_config__ = SPEC_CONFIG
    name: Annotated[str, Field(min_length=1, max_length=200, description="what reports call the model")]
    model_type: Annotated[
        Annotated[str, Field(max_length=100)],
        Field(description="the Hugging Face model type; engines key some of their rules on it"),
    ] = "custom"
    family: Annotated[
        Annotated[str, Field(max_length=100)] | None, Field(description="how 'kvcalc presets' groups it")
    ] = None
    hf_id: Annotated[
        Annotated[str, Field(max_length=200)] | None, Field(description="the model's repository on the Hub")
    ] = None
    sources: Annotated[tuple[str, ...], Field(description="where the numbers come from, one document a line")] = ()
    notes: Annotated[tuple[str, ...], Field(description="assumptions, printed with the numbers")] = ()
    num_layers: Annotated[
        LayerCount | None, Field(description="layers; a list or a full pattern of layers derives it")
    ] = None
    layout: Annotated[
        str | PeriodSpec | tuple[str | LayerSpec, ...],
        Field(description="'global', 'L:G', 'L:G/sw=N', letters such as 'RRRF', a period, or the list of layers"),
    ] = "global"
    max_context: Annotated[Positive | None, Field(description="positions the model was made for")] = None
    dtype: Annotated[str, Field(description="storage format of the weights as published")] = "bfloat16"
    k_dtype: Annotated[str | None, Field(description="storage format of K, where it is not the weights'")] = None
    v_dtype: Annotated[str | None, Field(description="storage format of V, likewise")] = None
    hidden_size: Width
    vocab_size: WidthOrZero
    tie_embeddings: Annotated[bool, Field(description="the head reuses the embedding")] = False
    head_bias: Annotated[bool, Field(description="a bias on the head")] = False
    learned_positions: Annotated[WidthOrZero, Field(description="rows of a table of learned positions")] = 0
    hyper_connections: Annotated[
        Annotated[int, Field(strict=True, ge=0, le=64)],
        Field(description="residual streams that hyper-connections mix (DeepSeek V4)"),
    ] = 0
    kv_shared_last_layers: Annotated[
        SmallCount,
        Field(description="layers at the end that read the cache of the last layer of their kind before them"),
    ] = 0
    kv_shared_stride: Annotated[
        LayerCount, Field(description="one layer in this many owns a cache, the next ones read it")
    ] = 1
    attention: AttentionSpec | None = None
    local_attention: AttentionSpec | None = None
    latent: LatentSpec | None = None
    state: StateSpec | None = None
    compressed: CompressedSpec | None = None
    encoder: EncoderSpec | None = None
    feed_forward: FeedForwardSpec | None = None
    experts: ExpertsSpec | None = None
    norms: NormsSpec = NormsSpec()
    per_layer_input: PerLayerInputSpec | None = None
    layers: Annotated[dict[Letter, LayerSpec], Field(description="letters of the layout beyond the usual ones")] = (
        field(default_factory=dict)
    )
    mtp_layout: Annotated[str | None, Field(description="letters of the multi-token-prediction layers")] = None


#: The usual letters of a layout.
LETTERS = {
    "F": LayerSpec(kind="full"),
    "S": LayerSpec(kind="sliding"),
    "C": LayerSpec(kind="chunked"),
    "L": LayerSpec(kind="latent"),
    "R": LayerSpec(kind="state"),
    "P": LayerSpec(kind="parallel"),
    "X": LayerSpec(kind="cross"),
    "E": LayerSpec(kind="encoder"),
    "N": LayerSpec(kind="none"),
    "f": LayerSpec(kind="shared", of="full"),
    "s": LayerSpec(kind="shared", of="sliding"),
    "c": LayerSpec(kind="shared", of="chunked"),
}


@cache
def spec_adapter() -> TypeAdapter[ModelSpec]:
    """The validator of specs; the first call loads pydantic and reads the annotations above."""
    from pydantic import TypeAdapter

    from kvcalc.sources import spec_types

    globals().update({name: getattr(spec_types, name) for name in spec_types.__all__})
    return TypeAdapter(ModelSpec)


def validate_spec(tables: Mapping[str, Any]) -> ModelSpec:
    """The spec that the tables of a file state.

    Raises:
        pydantic.ValidationError: an unknown field, a missing one, or a value that is none.
    """
    return spec_adapter().validate_python(tables)


def spec_json_schema() -> dict[str, Any]:
    """The JSON Schema of a spec file; ``spec.schema.json`` in the package is its text, for editors that complete."""
    schema = spec_adapter().json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "kvcalc model spec"
    return schema


_TABLES: dict[str, Any] = {
    "attention": AttentionSpec,
    "local_attention": AttentionSpec,
    "latent": LatentSpec,
    "state": StateSpec,
    "compressed": CompressedSpec,
    "encoder": EncoderSpec,
    "feed_forward": FeedForwardSpec,
    "experts": ExpertsSpec,
    "norms": NormsSpec,
    "per_layer_input": PerLayerInputSpec,
}


def trusted_spec(tables: Mapping[str, Any]) -> ModelSpec:
    """The spec of tables that are known to be valid: the shipped presets.

    The same answer as :func:`validate_spec`, without loading pydantic.
    """
    stated: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in tables.items()
    }
    for name in _TABLES.keys() & stated.keys():
        table = {key: tuple(value) if isinstance(value, list) else value for key, value in stated[name].items()}
        stated[name] = _TABLES[name](**table)
    if "layers" in stated:
        stated["layers"] = {letter: LayerSpec(**entry) for letter, entry in stated["layers"].items()}
    layout = stated.get("layout")
    if isinstance(layout, tuple):
        stated["layout"] = tuple(LayerSpec(**each) if isinstance(each, Mapping) else each for each in layout)
    elif isinstance(layout, Mapping):
        stated["layout"] = PeriodSpec(
            **{key: each for key, each in layout.items() if key != "global"},
            global_=tuple(layout["global"]),
        )
    return ModelSpec(**stated)


def stated_fields(spec: Any) -> dict[str, Any]:
    """What a spec, or a table of one, says beyond the defaults, by the names of a file."""
    stated = {}
    for each in fields(spec):
        value = getattr(spec, each.name)
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if value != default:
            stated[file_name(each.name)] = _plain(value)
    return stated


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return stated_fields(value)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def file_name(field_name: str) -> str:
    """A field by the name that a file gives it: ``global`` is a word of Python's own."""
    return field_name.removesuffix("_")


def field_names() -> set[str]:
    """Every word that a spec file knows, for near misses."""
    classes = (ModelSpec, LayerSpec, PeriodSpec, *_TABLES.values())
    return {file_name(each.name) for model in classes for each in fields(model)}
