"""The building blocks of layers: from dimensions to the weight tensors and the state of one block.

D is hidden_size; every function says its count in a formula, as the modules of transformers 5.23.0 have it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from kvcalc.architecture import Part, Split, State, Tensor
from kvcalc.sources.spec import CompressedSpec, ExpertsSpec, FeedForwardSpec, LatentSpec, StateSpec


@dataclass(frozen=True, slots=True)
class Heads:
    """The resolved geometry of one attention layer; the fields are those of the spec's ``[attention]``.

    Attributes:
        qk_norm_bias: the norms on Q and K have a bias, as the spec's other norms have.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int | None = None
    chunk: int | None = None
    qk_norm: Literal["none", "head", "all"] = "none"
    qk_norm_bias: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    gate: Literal["none", "head", "full"] = "none"
    gate_bias: bool = False
    sinks: bool = False
    shares_kv_projection: bool = False
    query_rank: int | None = None
    indexer_dim: int = 0
    indexer_heads: int = 0
    extra_state_bytes: int = 0


def attention(
    hidden_size: int, heads: Heads, *, owns_kv: bool = True, source_size: int | None = None
) -> tuple[Tensor, ...]:
    """Q (D x h d), K (D x k d), V (D x k dv) and output (h dv x D) projections, biases, gates, sinks, Q/K norms.

    A layer that reads another layer's cache has no K and V projections and no K norm; a layer that shares its K and V
    projection has one matrix for both; cross-attention projects K and V from ``source_size`` numbers.
    """
    query, key, value = (
        heads.num_heads * heads.head_dim,
        heads.num_kv_heads * heads.head_dim,
        heads.num_kv_heads * heads.v_head_dim,
    )
    out = heads.num_heads * heads.v_head_dim
    if heads.shares_kv_projection:
        value = 0
    gate = {"none": 0, "head": heads.num_heads, "full": out}[heads.gate]
    rank = heads.query_rank
    q_elements = hidden_size * query if rank is None else hidden_size * rank + rank * query
    tensors = [_linear("attention", q_elements + hidden_size * (out + gate))]
    if owns_kv:
        tensors.append(_by_kv_heads((source_size or hidden_size) * (key + value), heads.num_kv_heads, linear=True))
    if heads.qkv_bias:
        tensors.append(_plain("attention", query + (gate if heads.gate_bias else 0)))
        if owns_kv:
            tensors.append(_by_kv_heads(key + value, heads.num_kv_heads))
    if heads.output_bias:
        tensors.append(_plain("attention", hidden_size, split="whole"))
    if heads.sinks:
        tensors.append(_plain("attention", heads.num_heads))
    if rank is not None:
        tensors.append(_plain("norms", rank, split="whole"))
    if heads.qk_norm == "head":
        normed = heads.head_dim * (2 if owns_kv else 1)
        tensors.append(_plain("norms", normed * (2 if heads.qk_norm_bias else 1), split="whole"))
    elif heads.qk_norm == "all":
        tensors.append(_plain("norms", query + (key if owns_kv else 0), split="whole"))
    if heads.indexer_dim:
        # MiniMax-M3: Q and K of the indexer are normed, its heads have no weights of their own.
        queries_and_key = hidden_size * heads.indexer_dim * (heads.indexer_heads + 1)
        tensors.append(_linear("attention", queries_and_key, split="whole"))
        tensors.append(_plain("norms", 2 * heads.indexer_dim, split="whole"))
    return tuple(tensors)


def latent_attention(hidden_size: int, heads: LatentSpec) -> tuple[Tensor, ...]:
    """Low-rank Q (D x r, norm r, r x h (nope + rope)) or plain Q, latent (D x (rank + rope), norm rank), its
    expansion (rank x h (nope + v)) and the output (h v x D).
    """
    query = heads.num_heads * (heads.nope_dim + heads.rope_dim)
    rank = heads.query_rank
    latent = heads.rank + heads.rope_dim
    expanded = heads.rank * heads.num_heads * (heads.nope_dim + heads.v_head_dim)
    output = heads.num_heads * heads.v_head_dim * hidden_size
    tensors = [
        _linear("attention", expanded + output + (hidden_size * query if rank is None else rank * query)),
        _linear("attention", hidden_size * (latent + (rank or 0)), split="whole"),
        _plain("norms", heads.rank + (rank or 0), split="whole"),
    ]
    if heads.bias:
        tensors.append(_plain("attention", latent + (rank or 0) + hidden_size, split="whole"))
    if heads.indexer_dim:
        tensors += _indexer(hidden_size, rank or hidden_size, heads.indexer_heads, heads.indexer_dim)
    return tuple(tensors)


def _indexer(hidden_size: int, query_size: int, num_heads: int, dim: int) -> list[Tensor]:
    """A sparse-attention indexer: queries (q x i d), one key (D x d) with a LayerNorm, weights of its heads (D x i)."""
    matrices = query_size * num_heads * dim + hidden_size * (dim + num_heads)
    return [_linear("attention", matrices, split="whole"), _plain("norms", 2 * dim, split="whole")]


def compressed_attention(hidden_size: int, heads: CompressedSpec, ratio: int | None) -> tuple[Tensor, ...]:
    """Low-rank Q, one K and V projection with its norm, grouped low-rank output, sinks; with a ratio the compressor:
    values and gates of one entry, a bias for each position in it, a norm (twice as wide where an indexer chooses,
    with an indexer of the same form).
    """
    D, query = hidden_size, heads.num_heads * heads.width
    output = heads.output_rank * (query + heads.output_groups * D)
    tensors = [
        _linear("attention", heads.query_rank * query + output),
        _linear("attention", D * (heads.query_rank + heads.width), split="whole"),
        _plain("attention", heads.num_heads),
        _plain("norms", heads.query_rank + heads.width, split="whole"),
    ]
    if ratio is None:
        return tuple(tensors)
    overlap = 2 if heads.indexer_dim else 1
    for width in (heads.width, heads.indexer_dim):
        if width:
            tensors.append(_linear("attention", 2 * overlap * D * width, split="whole"))
            tensors.append(_plain("attention", ratio * overlap * width + width, split="whole"))
    if heads.indexer_dim:
        matrices = heads.query_rank * heads.indexer_heads * heads.indexer_dim + D * heads.indexer_heads
        tensors.append(_linear("attention", matrices, split="whole"))
    return tuple(tensors)


def state_cache(hidden_size: int, shape: StateSpec) -> State:
    """The state that a sequence keeps: recurrent elements, and channels x kernel of the convolution."""
    values, keys = shape.num_heads * shape.head_dim, shape.num_key_heads * shape.key_head_dim
    recurrent, channels = {
        "mamba1": (shape.inner_size * shape.state_size, shape.inner_size),
        "mamba2": (values * shape.state_size, values + 2 * shape.groups * shape.state_size),
        "gated_delta_net": (values * shape.key_head_dim, 2 * keys + values),
        "kda": (values * shape.head_dim, 3 * values),
        "lightning": (values * shape.head_dim, 0),
        "rg_lru": (shape.inner_size, shape.inner_size),
        "short_conv": (0, hidden_size),
    }[shape.type]
    return State(
        recurrent_elements=recurrent,
        recurrent_dtype=shape.recurrent_dtype,
        conv_channels=channels,
        conv_kernel=shape.conv_kernel if channels else 1,
    )


def state_mixer(hidden_size: int, shape: StateSpec) -> tuple[Tensor, ...]:
    """The tensors of a state layer's mixer, by its type."""
    D, K = hidden_size, shape.conv_kernel
    H, values = shape.num_heads, shape.num_heads * shape.head_dim
    keys = shape.num_key_heads * shape.key_head_dim
    conv_rows = K + (1 if shape.conv_bias else 0)
    matrices, others, norm = 0, 0, 0
    match shape.type:
        case "mamba1":  # in 2 D i, x i (R + 2 N), dt R i + i, A i N, skip i, out i D; Jamba's norms R + 2 N
            inner, N, R = shape.inner_size, shape.state_size, shape.dt_rank
            matrices = 3 * D * inner + inner * (R + 2 * N) + R * inner
            others = inner * (conv_rows + N + 2) + (2 * inner + D if shape.bias else 0)
            norm = R + 2 * N if shape.norm else 0
        case "mamba2":  # in D (2 i + 2 G N + H), out i D; A, skip and dt H each; gated norm i
            channels = values + 2 * shape.groups * shape.state_size
            projected = values + channels + H
            matrices = D * (projected + values)
            others = channels * conv_rows + 3 * H + (projected + D if shape.bias else 0)
            norm = values if shape.norm else 0
        case "gated_delta_net":  # q, k, v, z and the two gates of H; A and dt H each; gated norm of a head
            matrices = D * (2 * keys + 2 * values + 2 * H) + values * D
            others = (2 * keys + values) * conv_rows + 2 * H
            norm = shape.head_dim
        case "kda":  # q, k, v, output; two gates of rank d; beta D H; A H, dt H d; gated norm of a head
            matrices = 4 * D * values + 2 * (D + values) * shape.head_dim + D * H
            others = 3 * values * conv_rows + H + values
            norm = shape.head_dim
        case "lightning":  # q, k, v, output gate, output; a norm of all heads
            matrices = 5 * D * values
            norm = values
        case "rg_lru":  # x, y and out with biases; two gates in H blocks with biases; the recurrence's own parameter
            width = shape.inner_size
            matrices = 3 * D * width + 2 * width * (width // H)
            others = 2 * width + D + width * conv_rows + width + 2 * width
        case "short_conv":  # in 3 D D, out D D
            matrices = 4 * D * D
            others = D * conv_rows + (4 * D if shape.conv_bias else 0)
    tensors = [_linear("state", matrices)]
    if others:
        tensors.append(_plain("state", others))
    if norm:
        tensors.append(_plain("norms", norm, split="whole"))
    return tuple(tensors)


def feed_forward(hidden_size: int, intermediate_size: int, spec: FeedForwardSpec) -> list[Tensor]:
    """Up, down and (gated) gate projections: 3 D I, or 2 D I without a gate; biases I each and D; a norm of I."""
    ups = 2 if spec.gated else 1
    tensors = [_linear("feed_forward", (ups + 1) * hidden_size * intermediate_size)]
    if spec.bias:
        tensors.append(_plain("feed_forward", ups * intermediate_size + hidden_size))
    if spec.norm:
        tensors.append(_plain("norms", intermediate_size))
    if spec.activation_parameters:
        tensors.append(_plain("feed_forward", spec.activation_parameters, split="whole"))
    return tensors


def experts(hidden_size: int, spec: ExpertsSpec, linear_bias: bool = False) -> list[Tensor]:
    """Router (D x E), E experts of which some are active, shared experts, and their biases and gates.

    Routed experts are stacked matrices, with biases where the spec says so; the shared experts, and the projections
    into a latent width and back, are linear layers like those of a dense block, with biases where ``linear_bias``.
    """
    ups = 2 if spec.gated else 1
    width = spec.latent_size or hidden_size
    one = (ups + 1) * width * spec.intermediate_size
    one_bias = ups * spec.intermediate_size + width if spec.bias else 0
    rows = spec.count + spec.zero_experts
    active = min(spec.active, spec.count)
    tensors = [
        _plain("router", hidden_size * rows + (rows if spec.router_bias else 0), split="whole"),
        Tensor(part="experts", elements=spec.count * one, linear=True, active_elements=active * one),
    ]
    if one_bias:
        tensors.append(Tensor(part="experts", elements=spec.count * one_bias, active_elements=active * one_bias))
    if spec.router_scales:
        tensors.append(_plain("router", hidden_size + spec.count, split="whole"))
    if spec.latent_size:
        tensors.append(_linear("experts", 2 * hidden_size * spec.latent_size))
        if linear_bias:
            tensors.append(_plain("experts", spec.latent_size + hidden_size))
    if spec.shared_intermediate_size:
        tensors.append(_linear("experts", (ups + 1) * hidden_size * spec.shared_intermediate_size))
        if linear_bias:
            tensors.append(_plain("experts", ups * spec.shared_intermediate_size + hidden_size))
    if spec.shared_gate:
        tensors.append(_plain("router", hidden_size, split="whole"))
    if spec.norm:
        tensors.append(_plain("norms", hidden_size, split="whole"))
    return tensors


def per_layer_input(hidden_size: int, width: int, altup_inputs: int, laurel_rank: int) -> list[Tensor]:
    """One layer's part of per-layer embeddings: gate D w, projection w D, norm D.

    With AltUp over n streams: output scale D, correction n n, prediction n n n, router D n and its norm D; with
    Laurel of rank r: 2 D r and a norm D (Gemma 3n).
    """
    tensors = [_linear("other", 2 * hidden_size * width), *norms(hidden_size, 1, bias=False)]
    if altup_inputs:
        n = altup_inputs
        tensors += [_plain("other", hidden_size + n**2 + n**3 + hidden_size * n), *norms(hidden_size, 1, bias=False)]
    if laurel_rank:
        tensors += [_linear("other", 2 * hidden_size * laurel_rank), *norms(hidden_size, 1, bias=False)]
    return tensors


def per_layer_embedding(
    hidden_size: int, num_layers: int, vocab_size: int, width: int, altup_inputs: int
) -> list[Tensor]:
    """The model's part of per-layer embeddings: a table V x L w, a projection D x L w, a norm w; with AltUp
    2 (n - 1) D D.
    """
    tensors = [
        _plain("embedding", vocab_size * num_layers * width),
        _linear("other", hidden_size * num_layers * width),
        _plain("norms", width, split="whole"),
    ]
    if altup_inputs > 1:
        tensors.append(_linear("other", 2 * (altup_inputs - 1) * hidden_size**2))
    return tensors


def hyper_connections(hidden_size: int, streams: int) -> list[Tensor]:
    """One layer's two mixers of n residual streams (DeepSeek V4): n (n + 2) rows over n D numbers, biases, 3 scales."""
    rows = streams * (streams + 2)
    return [_plain("other", 2 * (rows * streams * hidden_size + rows + 3), split="whole")]


def hyper_head(hidden_size: int, streams: int) -> list[Tensor]:
    """The mixer that joins n residual streams behind the last layer."""
    return [_plain("other", streams * streams * hidden_size + streams + 1, split="whole")]


def mtp_projection(hidden_size: int) -> list[Tensor]:
    """What a multi-token-prediction layer has besides its block: a projection 2 D x D and three norms."""
    return [_linear("other", 2 * hidden_size**2), *norms(hidden_size, 3, bias=False)]


def norms(hidden_size: int, count: int, bias: bool) -> list[Tensor]:
    """``count`` norms of D numbers, twice that with biases."""
    elements = count * hidden_size * (2 if bias else 1)
    return [_plain("norms", elements, split="whole")] if elements else []


def repeated(tensors: tuple[Tensor, ...], times: int) -> list[Tensor]:
    """The tensors of ``times`` equal blocks as one entry each."""
    return [replace(tensor, elements=tensor.elements * times) for tensor in tensors]


def _by_kv_heads(elements: int, kv_heads: int, *, linear: bool = False) -> Tensor:
    return Tensor(part="attention", elements=elements, linear=linear, split="by_kv_heads", kv_heads=kv_heads)


def _linear(part: Part, elements: int, split: Split = "divided") -> Tensor:
    return Tensor(part=part, elements=elements, linear=True, split=split)


def _plain(part: Part, elements: int, split: Split = "divided") -> Tensor:
    return Tensor(part=part, elements=elements, split=split)
