"""What a person writes to describe a model: short, and nothing said twice.

A layout is a word of :mod:`kvcalc.layout`, a period, a list of layers, or a pattern of letters, one a layer, repeated
to ``num_layers``: ``RRRF`` is three state layers, then a full one. The letters: F full, S sliding, C chunked,
L latent, R state (recurrent or convolution), P state beside full attention, X cross-attention, E attention of an
encoder (nothing is kept), N none; f, s and c read the cache of the last layer of kind F, S and C; others, and other
meanings, stand under ``[layers.LETTER]``.

The models are frozen: unknown fields are refused, numbers are strict integers of sane size, and the descriptions become
the JSON Schema (``kvcalc schema spec``).

>>> ModelSpec(name="tiny", num_layers=2, hidden_size=8, vocab_size=9, attention=AttentionSpec(num_heads=2))
ModelSpec(name='tiny', num_layers=2, hidden_size=8, vocab_size=9, attention=AttentionSpec(num_heads=2))
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kvcalc.architecture import MOST_ELEMENTS, MOST_LAYERS, StateDType

Positive = Annotated[int, Field(strict=True, ge=1, le=MOST_ELEMENTS)]
Count = Annotated[int, Field(strict=True, ge=0, le=MOST_ELEMENTS)]
LayerCount = Annotated[int, Field(strict=True, ge=1, le=MOST_LAYERS)]
SmallCount = Annotated[int, Field(strict=True, ge=0, le=MOST_LAYERS)]
Width = Annotated[int, Field(strict=True, ge=1, le=2**31)]  # two of them multiply without leaving 64 bits
WidthOrZero = Annotated[int, Field(strict=True, ge=0, le=2**31)]
KernelSize = Annotated[int, Field(strict=True, ge=1, le=4096)]
Streams = Annotated[int, Field(strict=True, ge=0, le=64)]
Letter = Annotated[str, Field(min_length=1, max_length=1)]
#: The layers that an extra tensor is in: of a cache kind, or with a feed-forward block.
LayerSet = Literal["all", "full", "sliding", "latent", "cross", "state", "parallel", "dense", "experts"]
ShortText = Annotated[str, Field(max_length=200)]


class Table(BaseModel):
    """A table of a spec file: it does not change, and its repr shows what it states."""

    # The schema of a table is made with that of the model around it, where a spec is first read.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    def __repr_args__(self) -> Iterator[tuple[str | None, object]]:
        """The fields that are not as a spec has them anyway."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value != field.get_default(call_default_factory=True):
                yield name, value


class AttentionSpec(Table):
    """Heads of the attention layers; ``[local_attention]`` states only what differs in local layers."""

    num_heads: Width | None = Field(None, description="query heads")
    num_kv_heads: Width | None = Field(None, description="KV heads; default: as many as query heads")
    head_dim: Width | None = Field(None, description="width of a K head; default: hidden_size / num_heads")
    v_head_dim: Width | None = Field(None, description="width of a V head; default: head_dim")
    window: Positive | None = Field(None, description="tokens of the sliding window, where the layout names none")
    chunk: Positive | None = Field(None, description="tokens of an attention chunk, for chunked layers")
    qk_norm: Literal["none", "head", "all"] | None = Field(
        None, description="norm weights on Q and K: none, one for a head's width, or one for all heads together"
    )
    qkv_bias: bool | None = Field(None, description="biases on the Q, K and V projections")
    key_bias: bool | None = Field(None, description="false: K has no bias although Q and V have (Whisper)")
    output_bias: bool | None = Field(None, description="a bias on the output projection")
    gate: Literal["none", "head", "full"] | None = Field(
        None, description="a gate on the attention's output: one number a head, or as wide as the output"
    )
    gate_bias: bool | None = Field(
        None, description="the biases on Q cover the gate too, which its projection holds (Qwen3-Next)"
    )
    sinks: bool | None = Field(None, description="a learned sink logit for each query head (weights, not cache)")
    shares_kv_projection: bool | None = Field(
        None, description="one projection for K and V (Gemma 4); both are cached all the same"
    )
    query_rank: Width | None = Field(None, description="rank of a low-rank query projection (Step-3)")
    indexer_dim: WidthOrZero | None = Field(None, description="width of a sparse-attention indexer's key, cached too")
    indexer_heads: WidthOrZero | None = Field(None, description="query heads of the indexer")
    extra_state_bytes: Count | None = Field(None, description="fixed bytes a sequence besides K and V")


class LatentSpec(Table):
    """Multi-head latent attention (MLA)."""

    num_heads: Width = Field(description="query heads")
    rank: Width = Field(description="width of the cached latent (kv_lora_rank)")
    rope_dim: WidthOrZero = Field(description="width of the cached rope key (qk_rope_head_dim)")
    nope_dim: WidthOrZero = Field(description="width of a decompressed K head without rope (qk_nope_head_dim)")
    v_head_dim: Width = Field(description="width of a decompressed V head")
    query_rank: Width | None = Field(None, description="rank of the query projection (q_lora_rank); none: full")
    window: Positive | None = Field(None, description="tokens of a sliding window over the latents")
    bias: bool = Field(False, description="biases on the low-rank and output projections")
    gate: bool = Field(False, description="a gate as wide as the output (Kimi K3)")
    indexer_dim: WidthOrZero = Field(0, description="width of a sparse-attention indexer's key, cached too")
    indexer_heads: WidthOrZero = Field(0, description="query heads of the indexer")


class StateSpec(Table):
    """State layers: what a sequence keeps whatever its length."""

    type: Literal["mamba1", "mamba2", "gated_delta_net", "kda", "lightning", "rg_lru", "short_conv"]
    num_heads: Width = Field(1, description="heads (value heads; blocks of an RG-LRU gate)")
    head_dim: WidthOrZero = Field(0, description="width of a head (of a value head)")
    num_key_heads: WidthOrZero = Field(0, description="key heads of a gated delta net")
    key_head_dim: WidthOrZero = Field(0, description="width of a key head of a gated delta net")
    inner_size: WidthOrZero = Field(0, description="inner width of a Mamba-1 or RG-LRU layer")
    state_size: WidthOrZero = Field(0, description="state numbers for each inner channel (d_state)")
    groups: WidthOrZero = Field(1, description="groups of B and C in Mamba-2")
    dt_rank: WidthOrZero = Field(0, description="rank of the time step's projection in Mamba-1")
    scan_chunk: WidthOrZero = Field(0, description="tokens that Mamba-2's scan takes at once; 0: 256")
    conv_kernel: KernelSize = Field(1, description="columns of the convolution")
    conv_bias: bool = Field(False, description="a bias on the convolution (and around a short convolution)")
    bias: bool = Field(False, description="biases on the input and output projections")
    norm: bool = Field(True, description="the gated norm of Mamba-2, the norms of Jamba's Mamba-1")
    full_gates: Literal["none", "output", "both"] = Field(
        "none", description="gates of KDA that are of full rank: that of the output (Kimi K3), both (BailingHybrid)"
    )
    stored_heads: WidthOrZero = Field(
        0, description="rows of KDA's decay in the checkpoint, where they are more than its heads (Kimi K3)"
    )
    float32_parts: bool = Field(
        False,
        description="decay and norm are stored as float32 (Qwen3.5), in KDA convolutions and time steps too (Kimi K3)",
    )
    recurrent_dtype: StateDType | None = Field(
        None, description="storage format of the recurrent part; none: float32 in kda and rg_lru, else the model's"
    )


class CompressedSpec(Table):
    """Compressed attention (DeepSeek V4): one tensor for K and V; ``ratio`` stands with each layer."""

    num_heads: Width = Field(description="query heads")
    width: Width = Field(description="width of the one K and V head")
    window: Positive = Field(description="tokens kept uncompressed")
    query_rank: Width = Field(description="rank of the query projection")
    output_groups: Width = Field(1, description="groups of the output projection")
    output_rank: Width = Field(description="rank of each group of the output projection")
    indexer_dim: WidthOrZero = Field(0, description="width of an indexer's key a compressed entry, where one is kept")
    indexer_heads: WidthOrZero = Field(0, description="query heads of the indexer")


class ImageSpec(Table):
    """The largest image that an encoder takes: what vLLM profiles its memory with."""

    tokens: Width = Field(description="tokens that it becomes")
    numbers: Positive = Field(description="numbers of its pixels, as the processor hands them over")


class EncoderSpec(Table):
    """The encoder whose output each decoder layer attends to; what is left out is as in the decoder."""

    num_layers: LayerCount
    hidden_size: Width | None = None
    intermediate_size: Width | None = None
    num_heads: Width | None = None
    num_kv_heads: Width | None = None
    head_dim: Width | None = None
    gated: bool | None = None
    norms_per_layer: SmallCount = 4
    norms: SmallCount = Field(1, description="norms outside the layers: behind the last one, behind the embedding")
    embedding: bool = Field(True, description="a table of its own, not the decoder's")
    merged: bool = Field(False, description="decoder layers read its output through their own K and V projections")
    learned_positions: WidthOrZero = Field(0, description="rows of a table of learned positions")


class ExtraSpec(Table):
    """Weights that no other table has: ``count`` tensors of rows x columns, in the model or in each layer of a kind."""

    role: ShortText = Field(description="the parameter's path in its layer or in the model")
    part: Literal["embedding", "attention", "state", "feed_forward", "experts", "router", "norms", "head", "other"] = (
        "other"
    )
    rows: Width
    columns: Width = 1
    count: Width = 1
    linear: bool = Field(False, description="a linear layer's matrix, which a quantised format covers")
    layers: Literal["all", "full", "sliding", "latent", "cross", "state", "parallel", "dense", "experts"] | None = (
        Field(
            None, description="in each layer of this cache kind, or with this feed-forward block; default: in the model"
        )
    )


class FeedForwardSpec(Table):
    """The feed-forward blocks: up and down projections, and a gate where ``gated``."""

    intermediate_size: Width | tuple[Width, ...] = Field(description="width of the hidden layer, or one a layer")
    gated: bool = Field(True, description="a gate projection beside the up projection")
    bias: bool = Field(False, description="biases on the projections")
    shared_layers_size: Width | None = Field(
        None, description="another width in layers that read another layer's cache (Gemma 4 E2B)"
    )
    norm: bool = Field(False, description="a norm of the hidden layer (BitNet)")
    activation_parameters: SmallCount = Field(
        0, description="numbers of the activation function itself (xIELU of Apertus: 2)"
    )


class ExpertsSpec(Table):
    """A mixture of experts in place of the feed-forward block of some layers."""

    count: Width = Field(description="routed experts")
    active: Width = Field(description="routed experts that a token reads")
    intermediate_size: Width = Field(description="width of one expert")
    gated: bool = Field(True, description="a gate projection in each expert")
    bias: bool = Field(False, description="biases in the experts")
    shared_intermediate_size: WidthOrZero = Field(0, description="width of all shared experts together")
    shared_gate: bool = Field(False, description="a gate on the shared experts")
    router_bias: bool = Field(False, description="a bias on the router's logits that is a weight")
    score_correction: bool = Field(
        False, description="a float32 correction of the router's scores, which checkpoints hold as a buffer"
    )
    router_scales: bool = Field(False, description="a scale on the router's input and one for each expert (Gemma 4)")
    zero_experts: WidthOrZero = Field(0, description="router rows without an expert behind them (LongCat)")
    latent_size: Width | None = Field(None, description="width to which the routed experts' input is projected")
    latent_norm: bool = Field(False, description="a norm of the routed experts' output in that width (Kimi K3)")
    hash_layers: SmallCount = Field(
        0, description="layers at the start whose experts are looked up by token in a table (DeepSeek V4)"
    )
    first_dense: SmallCount = Field(0, description="layers at the start that stay dense")
    every: LayerCount = Field(1, description="experts in every k-th layer")
    offset: SmallCount = Field(0, description="the first of these layers")
    dense_layers: tuple[SmallCount, ...] = Field((), max_length=MOST_LAYERS, description="other layers that are dense")
    norm: bool = Field(False, description="a norm behind the experts (A.X-K1)")
    beside_dense: bool = Field(False, description="the dense block stays beside the experts (Gemma 4)")


class NormsSpec(Table):
    """Norms of the residual stream's width; those on Q and K stand under ``[attention]``."""

    per_layer: SmallCount = Field(2, description="norms of hidden_size numbers in every layer")
    final: bool = Field(True, description="a norm behind the last layer")
    embedding: bool = Field(False, description="a norm behind the embedding")
    bias: bool = Field(False, description="norms with a bias (LayerNorm)")


class PerLayerInputSpec(Table):
    """Embeddings of their own for every layer (Gemma 3n, Gemma 4 E2B and E4B)."""

    width: Width = Field(description="width of one layer's embedding")
    vocab_size: Width = Field(description="rows of the table")
    altup_inputs: Streams = Field(0, description="streams of AltUp")
    laurel_rank: WidthOrZero = Field(0, description="rank of Laurel's residual")


class DSparkSpec(Table):
    """DSpark: prediction layers that draft a block of tokens at once from hidden states of the model."""

    targets: Width = Field(description="layers of the model whose hidden states enter the first stage")
    markov_rank: Width = Field(description="rank of the table that joins one drafted token to the next")


class PeriodSpec(Table):
    """A layout by period: ``{period = 6, global = [5]}``; positions that are not global are local."""

    period: LayerCount
    global_: tuple[Count, ...] = Field(alias="global", max_length=MOST_LAYERS)
    local: str = Field("sliding", description="kind of the other layers")


class LayerSpec(Table):
    """One kind of layer and what differs in it; in a list, ``count`` of them in a row."""

    kind: str
    count: LayerCount = 1
    of: Literal["full", "sliding", "chunked"] = Field(
        "full", description="shared: the kind of layer whose cache it reads; parallel: the kind of its attention"
    )
    window: Positive | None = None
    num_heads: Width | None = None
    num_kv_heads: Width | None = None
    head_dim: Width | None = None
    v_head_dim: Width | None = None
    ratio: Positive | None = Field(None, description="tokens that one entry of a compressed layer stands for")
    indexer: bool | None = Field(None, description="whether this layer keeps indexer keys; default: if the model has")
    feed_forward: Literal["dense", "experts", "none"] | None = Field(None, description="default: by [experts]")
    intermediate_size: Width | None = None
    norms: SmallCount | None = None
    owns_weights: bool = Field(
        True, description="false: attention and feed-forward are those of a block that several layers share (Zamba2)"
    )


class ModelSpec(Table):
    """A model as a spec file or a preset states it."""

    name: str = Field(min_length=1, max_length=200, description="what reports call the model")
    model_type: ShortText = Field(
        "custom", description="the Hugging Face model type; engines key some of their rules on it"
    )
    family: ShortText | None = Field(None, description="how 'kvcalc models' groups it")
    hf_ids: tuple[ShortText, ...] = Field(
        (), description="the model's repositories on the Hub: that of these numbers, then others of the same shape"
    )
    ollama_tags: tuple[ShortText, ...] = Field((), description="Ollama's names for it, where its own words differ")
    sources: tuple[str, ...] = Field((), description="where the numbers come from, one document a line")
    notes: tuple[str, ...] = Field((), description="assumptions, printed with the numbers")
    num_layers: LayerCount | None = Field(None, description="layers; a list or a full pattern of layers derives it")
    layout: str | PeriodSpec | tuple[str | LayerSpec, ...] = Field(
        "global", description="'global', 'L:G', 'L:G/sw=N', letters such as 'RRRF', a period, or the list of layers"
    )
    max_context: Positive | None = Field(None, description="positions the model was made for")
    parameters: Positive | None = Field(
        None, description="the published count, tied weights once: the weights are exact where the layers add up to it"
    )
    dtype: str = Field("bfloat16", description="storage format of the weights as published")
    k_dtype: str | None = Field(None, description="storage format of K, where it is not the weights'")
    v_dtype: str | None = Field(None, description="storage format of V, likewise")
    hidden_size: Width
    vocab_size: WidthOrZero
    tie_embeddings: bool = Field(False, description="the head reuses the embedding")
    head_bias: bool = Field(False, description="a bias on the head")
    head_rows: WidthOrZero | None = Field(
        None, description="rows of the head: labels, a draft's vocabulary, 0 for no head; default: the vocabulary"
    )
    embedding: bool = Field(True, description="an embedding of its own; false: a draft that reads its target's")
    embedding_size: Width | None = Field(
        None, description="width of the embedding, with projections to hidden_size and back (OPT-350m)"
    )
    learned_positions: WidthOrZero = Field(0, description="rows of a table of learned positions")
    hyper_connections: Streams = Field(0, description="residual streams that hyper-connections mix (DeepSeek V4)")
    kv_shared_last_layers: SmallCount = Field(
        0, description="layers at the end that read the cache of the last layer of their kind before them"
    )
    kv_shared_stride: LayerCount = Field(1, description="one layer in this many owns a cache, the next ones read it")
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
    extra: tuple[ExtraSpec, ...] = Field((), max_length=100, description="weights that no other table has")
    layers: dict[Letter, LayerSpec] = Field(
        default_factory=dict, description="letters of the layout beyond the usual ones"
    )
    mtp_layout: str | tuple[LayerSpec, ...] | None = Field(
        None, description="letters of the multi-token-prediction layers, or a list of them"
    )
    mtp_tensors: Literal["layers", "layers and tables", "none"] = Field(
        "layers", description="what checkpoints hold of these layers: all, an embedding and a head too, or nothing"
    )
    dspark: DSparkSpec | None = Field(
        None, description="these layers are the stages of one draft of several tokens (DeepSeek V4 of August 2026)"
    )
    towers: dict[Literal["vision", "audio"], Positive] = Field(
        default_factory=dict, description="parameters of the encoders of images and sound that a checkpoint carries"
    )
    rope_factors: WidthOrZero | Literal["unknown"] = Field(
        0, description="numbers of the tables of rope factors in a GGUF file"
    )
    image: ImageSpec | None = None
    rotary: tuple[tuple[Positive, Positive], ...] | None = Field(
        None,
        max_length=8,
        description="tables of rotary positions, as [positions, numbers of each]; default: max_context by each width",
    )
    quantization: dict[str, Any] | None = Field(
        None, description="the formats that ship, in the words of a config.json's quantization_config"
    )


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


def stated_fields(spec: ModelSpec) -> dict[str, Any]:
    """What a spec says beyond the defaults, by the names of a file."""
    return spec.model_dump(exclude_defaults=True, by_alias=True)


def field_names() -> set[str]:
    """Every word that a spec file knows, for near misses."""
    return {field.alias or name for table in Table.__subclasses__() for name, field in table.model_fields.items()}
