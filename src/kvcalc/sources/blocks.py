"""The building blocks of layers: from dimensions to the weight tensors and the state of one block.

D is hidden_size; every function says its count in a formula, as the modules of transformers 5.23.0 have it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from kvcalc.architecture import Part, Split, State, Tensor
from kvcalc.sources.spec import CompressedSpec, DSparkSpec, ExpertsSpec, FeedForwardSpec, LatentSpec, StateSpec


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
    key_bias: bool = True
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
    """Q [h d, D], K [k d, D], V [k dv, D] and output [D, h dv] projections, biases, gates, sinks, Q/K norms.

    A layer that reads another layer's cache has no K and V projections and no K norm; a layer that shares its K and V
    projection has one matrix for both; cross-attention projects K and V from ``source_size`` numbers.
    """
    D, source = hidden_size, source_size or hidden_size
    place = "self_attn" if source_size is None else "encoder_attn"
    query, out = heads.num_heads * heads.head_dim, heads.num_heads * heads.v_head_dim
    gate = {"none": 0, "head": heads.num_heads, "full": out}[heads.gate]
    rank = heads.query_rank
    written = {"k_proj": heads.num_kv_heads * heads.head_dim, "v_proj": heads.num_kv_heads * heads.v_head_dim}
    if heads.shares_kv_projection:
        del written["v_proj"]
    if not owns_kv:
        written = {}
    tensors = [] if rank is None else [_linear("attention", f"{place}.q_a_proj", rank, D)]
    tensors.append(_linear("attention", f"{place}.q_proj", query, rank or D))
    tensors += _projection("attention", f"{place}.o_proj", D, out, heads.output_bias, split="columns")
    if gate:
        tensors.append(_linear("attention", f"{place}.gate_proj", gate, D))
    kv_heads = heads.num_kv_heads
    for name, rows in written.items():
        tensors.append(_linear("attention", f"{place}.{name}", rows, source, split="by_kv_heads", kv_heads=kv_heads))
    if heads.qkv_bias:
        tensors.append(_plain("attention", f"{place}.q_proj.bias", query))
        if gate and heads.gate_bias:
            tensors.append(_plain("attention", f"{place}.gate_proj.bias", gate))
        for name, rows in written.items():
            if name == "k_proj" and not heads.key_bias:
                continue
            role = f"{place}.{name}.bias"
            tensors.append(Tensor("attention", rows, role=role, split="by_kv_heads", kv_heads=kv_heads))
    if heads.sinks:
        tensors.append(_plain("attention", f"{place}.sinks", heads.num_heads))
    if rank is not None:
        tensors.append(_norm(f"{place}.q_a_layernorm", rank))
    if heads.qk_norm == "head":
        normed = (2 if owns_kv else 1) * (2 if heads.qk_norm_bias else 1)
        tensors.append(_norm(f"{place}.qk_norm", heads.head_dim, count=normed))
    elif heads.qk_norm == "all":
        tensors.append(_norm(f"{place}.q_norm", query))
        if owns_kv:
            tensors.append(_norm(f"{place}.k_norm", heads.num_kv_heads * heads.head_dim))
    if heads.indexer_dim:
        # MiniMax-M3: Q and K of the indexer are normed, its heads have no weights of their own.
        dim = heads.indexer_dim
        tensors.append(_linear("attention", "self_attn.indexer.q_proj", heads.indexer_heads * dim, D, split="whole"))
        tensors.append(_linear("attention", "self_attn.indexer.k_proj", dim, D, split="whole"))
        tensors.append(_norm("self_attn.indexer.qk_norm", dim, count=2))
    return tuple(tensors)


def latent_attention(hidden_size: int, heads: LatentSpec) -> tuple[Tensor, ...]:
    """Low-rank Q ([r, D], norm r, [h (nope + rope), r]) or plain Q, latent ([rank + rope, D], norm rank), its
    expansion [h (nope + v), rank] and the output [D, h v].
    """
    D, rank = hidden_size, heads.query_rank
    query = heads.num_heads * (heads.nope_dim + heads.rope_dim)
    latent = heads.rank + heads.rope_dim
    expanded = heads.num_heads * (heads.nope_dim + heads.v_head_dim)
    if rank is None:
        tensors = [_linear("attention", "self_attn.q_proj", query, D)]
    else:
        tensors = [
            *_projection("attention", "self_attn.q_a_proj", rank, D, heads.bias, split="whole"),
            _linear("attention", "self_attn.q_b_proj", query, rank),
            _norm("self_attn.q_a_layernorm", rank),
        ]
    values, bias = heads.num_heads * heads.v_head_dim, heads.bias
    tensors += [
        *_projection("attention", "self_attn.kv_a_proj_with_mqa", latent, D, bias, split="whole"),
        _norm("self_attn.kv_a_layernorm", heads.rank),
        _linear("attention", "self_attn.kv_b_proj", expanded, heads.rank),
        *_projection("attention", "self_attn.o_proj", D, values, bias, split="columns"),
    ]
    if heads.gate:
        tensors.append(_linear("attention", "self_attn.g_proj", values, D))
    if heads.indexer_dim:
        tensors += _indexer(D, rank or D, heads.indexer_heads, heads.indexer_dim)
    return tuple(tensors)


def _indexer(hidden_size: int, query_size: int, num_heads: int, dim: int) -> list[Tensor]:
    """A sparse-attention indexer: queries [i d, q], one key [d, D] with a LayerNorm, weights of its heads [i, D]."""
    return [
        _linear("attention", "self_attn.indexer.wq_b", num_heads * dim, query_size, split="whole"),
        _linear("attention", "self_attn.indexer.wk", dim, hidden_size, split="whole"),
        _linear("attention", "self_attn.indexer.weights_proj", num_heads, hidden_size, split="whole"),
        _norm("self_attn.indexer.k_norm", dim, count=2),
    ]


def compressed_attention(hidden_size: int, heads: CompressedSpec, ratio: int | None) -> tuple[Tensor, ...]:
    """Low-rank Q, one K and V projection with its norm, grouped low-rank output, sinks; with a ratio the compressor:
    values and gates of one entry, a bias for each position in it, a norm (twice as wide where an indexer chooses,
    with an indexer of the same form).
    """
    D, query = hidden_size, heads.num_heads * heads.width
    groups, rank = heads.output_groups, heads.output_rank
    tensors = [
        _linear("attention", "self_attn.wq_a", heads.query_rank, D, split="whole"),
        _linear("attention", "self_attn.wq_b", query, heads.query_rank),
        _linear("attention", "self_attn.wkv", heads.width, D, split="whole"),
        _linear("attention", "self_attn.wo_a", groups * rank, query // groups),
        _linear("attention", "self_attn.wo_b", D, groups * rank, split="columns"),
        _float32(_plain("attention", "self_attn.attn_sink", heads.num_heads)),
        _norm("self_attn.q_norm", heads.query_rank),
        _norm("self_attn.kv_norm", heads.width),
    ]
    if ratio is None:
        return tuple(tensors)
    overlap = 2 if heads.indexer_dim else 1
    for place, width in (("self_attn", heads.width), ("self_attn.indexer", heads.indexer_dim)):
        if width:
            rows = overlap * width
            tensors += [
                _linear("attention", f"{place}.compressor.wkv", rows, D, split="whole"),
                _linear("attention", f"{place}.compressor.wgate", rows, D, split="whole"),
                _float32(Tensor("attention", ratio, rows, role=f"{place}.compressor.ape", split="whole")),
                _plain("attention", f"{place}.compressor.norm", width, split="whole"),
            ]
    if heads.indexer_dim:
        queries, q_rank = heads.indexer_heads * heads.indexer_dim, heads.query_rank
        tensors += [
            _linear("attention", "self_attn.indexer.wq_b", queries, q_rank, split="whole"),
            _linear("attention", "self_attn.indexer.weights_proj", heads.indexer_heads, D, split="whole"),
        ]
    return tuple(tensors)


# The classes of transformers keep these recurrent states in float32 whatever the model's format, as does vllm 0.33.0
# model_executor/layers/mamba/mamba_utils.py (kda_state_dtype).
_FLOAT32_STATES = ("kda", "rg_lru")


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
        recurrent_dtype=shape.recurrent_dtype or ("float32" if shape.type in _FLOAT32_STATES else "model"),
        conv_channels=channels,
        conv_kernel=shape.conv_kernel if channels else 1,
        groups=shape.groups if shape.type == "mamba2" else 0,
        group_channels=2 * shape.state_size if shape.type == "mamba2" else 0,
        scan_chunk=shape.scan_chunk,
    )


def state_mixer(hidden_size: int, shape: StateSpec) -> tuple[Tensor, ...]:
    """The tensors of a state layer's mixer, by its type."""
    return _MIXERS[shape.type](hidden_size, shape)


def _convolution(place: str, channels: int, shape: StateSpec) -> list[Tensor]:
    """A convolution along the tokens: a kernel for each channel, and its bias."""
    tensors = [Tensor("state", channels, shape.conv_kernel, role=f"{place}.conv1d")]
    return [*tensors, _plain("state", f"{place}.conv1d.bias", channels)] if shape.conv_bias else tensors


def _mamba1(hidden_size: int, shape: StateSpec) -> tuple[Tensor, ...]:
    """In [2 i, D], x [R + 2 N, i], dt [i, R] + i, A [i, N], skip i, out [D, i]; Jamba's norms R + 2 N."""
    inner, N, R = shape.inner_size, shape.state_size, shape.dt_rank
    tensors = [
        *_projection("state", "mamba.in_proj", 2 * inner, hidden_size, shape.bias),
        *_convolution("mamba", inner, shape),
        _linear("state", "mamba.x_proj", R + 2 * N, inner, split="columns"),
        *_projection("state", "mamba.dt_proj", inner, R, bias=True),
        Tensor("state", inner, N, role="mamba.A_log"),
        _plain("state", "mamba.D", inner),
        *_projection("state", "mamba.out_proj", hidden_size, inner, shape.bias, split="columns"),
    ]
    if shape.norm:
        tensors += [_norm("mamba.dt_layernorm", R), _norm("mamba.b_layernorm", N), _norm("mamba.c_layernorm", N)]
    return tuple(tensors)


def _mamba2(hidden_size: int, shape: StateSpec) -> tuple[Tensor, ...]:
    """In [2 i + 2 G N + H, D], out [D, i]; A, skip and dt H each; gated norm i."""
    H, values = shape.num_heads, shape.num_heads * shape.head_dim
    channels = values + 2 * shape.groups * shape.state_size
    tensors = [
        *_projection("state", "mamba.in_proj", values + channels + H, hidden_size, shape.bias),
        *_convolution("mamba", channels, shape),
        *(_plain("state", f"mamba.{name}", H) for name in ("A_log", "D", "dt_bias")),
        *_projection("state", "mamba.out_proj", hidden_size, values, shape.bias, split="columns"),
    ]
    return (*tensors, _norm("mamba.norm", values)) if shape.norm else tuple(tensors)


def _gated_delta_net(hidden_size: int, shape: StateSpec) -> tuple[Tensor, ...]:
    """Q, K and V, z, and the two gates of H; A and dt H each; gated norm of a head."""
    H, values, keys = shape.num_heads, shape.num_heads * shape.head_dim, shape.num_key_heads * shape.key_head_dim
    wide = _plain("state", "linear_attn.A_log", H), _norm("linear_attn.norm", shape.head_dim)
    return (
        _linear("state", "linear_attn.in_proj_qkv", 2 * keys + values, hidden_size),
        _linear("state", "linear_attn.in_proj_z", values, hidden_size),
        _linear("state", "linear_attn.in_proj_b", H, hidden_size),
        _linear("state", "linear_attn.in_proj_a", H, hidden_size),
        *_convolution("linear_attn", 2 * keys + values, shape),
        *(_float32(each) if shape.float32_parts else each for each in wide),
        _plain("state", "linear_attn.dt_bias", H),
        _linear("state", "linear_attn.out_proj", hidden_size, values, split="columns"),
    )


def _kda(hidden_size: int, shape: StateSpec) -> tuple[Tensor, ...]:
    """Q, K, V, output; two gates, of rank d or full; beta [H, D]; A H, dt H d; gated norm of a head."""
    H, d, values = shape.num_heads, shape.head_dim, shape.num_heads * shape.head_dim
    full = {"none": "", "output": "g", "both": "fg"}[shape.full_gates]
    low = [name for name in "fg" if name not in full]
    small = [
        *(each for name in "qkv" for each in _convolution(f"self_attn.{name}", values, shape)),
        _plain("state", "self_attn.A_log", shape.stored_heads or H),
        _plain("state", "self_attn.dt_bias", values),
        _norm("self_attn.o_norm", d),
    ]
    return (
        *(_linear("state", f"self_attn.{name}_proj", values, hidden_size) for name in "qkv"),
        *(_linear("state", f"self_attn.{name}_proj", values, hidden_size) for name in full),
        *(_linear("state", f"self_attn.{name}_a_proj", d, hidden_size) for name in low),
        *(_linear("state", f"self_attn.{name}_b_proj", values, d) for name in low),
        _linear("state", "self_attn.b_proj", H, hidden_size),
        *(_float32(each) if shape.float32_parts else each for each in small),
        _linear("state", "self_attn.o_proj", hidden_size, values, split="columns"),
    )


def _lightning(hidden_size: int, shape: StateSpec) -> tuple[Tensor, ...]:
    """Q, K and V in one matrix, output gate, output; a norm of all heads."""
    values = shape.num_heads * shape.head_dim
    return (
        _linear("state", "self_attn.qkv_proj", 3 * values, hidden_size),
        _linear("state", "self_attn.output_gate", values, hidden_size),
        _linear("state", "self_attn.out_proj", hidden_size, values, split="columns"),
        _norm("self_attn.norm", values),
    )


def _rg_lru(hidden_size: int, shape: StateSpec) -> tuple[Tensor, ...]:
    """X, y and out with biases; two gates in H blocks with biases; the recurrence's own parameter."""
    width, H = shape.inner_size, shape.num_heads
    block = width // H
    return (
        *_projection("state", "temporal_block.linear_x", width, hidden_size, bias=True),
        *_projection("state", "temporal_block.linear_y", width, hidden_size, bias=True),
        *_projection("state", "temporal_block.linear_out", hidden_size, width, bias=True, split="columns"),
        Tensor("state", block, block, 2 * H, role="temporal_block.rg_lru.gate_weight"),
        *_convolution("temporal_block", width, shape),
        Tensor("state", H * block, count=2, role="temporal_block.rg_lru.gate_bias"),
        _plain("state", "temporal_block.rg_lru.recurrent_param", width),
    )


def _short_conv(hidden_size: int, shape: StateSpec) -> tuple[Tensor, ...]:
    """In [3 D, D], out [D, D]."""
    return (
        *_projection("state", "conv.in_proj", 3 * hidden_size, hidden_size, shape.conv_bias),
        *_convolution("conv", hidden_size, shape),
        *_projection("state", "conv.out_proj", hidden_size, hidden_size, shape.conv_bias, split="columns"),
    )


_MIXERS: dict[str, Callable[[int, StateSpec], tuple[Tensor, ...]]] = {
    "mamba1": _mamba1,
    "mamba2": _mamba2,
    "gated_delta_net": _gated_delta_net,
    "kda": _kda,
    "lightning": _lightning,
    "rg_lru": _rg_lru,
    "short_conv": _short_conv,
}


def feed_forward(hidden_size: int, intermediate_size: int, spec: FeedForwardSpec) -> list[Tensor]:
    """Up and (gated) gate projections [I, D], down [D, I]; biases I each and D; a norm of I."""
    tensors = _block("feed_forward", "mlp", hidden_size, intermediate_size, spec.gated, spec.bias)
    if spec.norm:
        tensors.append(Tensor("norms", intermediate_size, role="mlp.ffn_sub_norm"))
    if spec.activation_parameters:
        tensors.append(_plain("feed_forward", "mlp.act_fn", spec.activation_parameters, split="whole"))
    return tensors


def _block(part: Part, place: str, hidden_size: int, width: int, gated: bool, bias: bool) -> list[Tensor]:
    """One feed-forward block: gate and up [I, D], down [D, I], and their biases."""
    ups = ("gate_proj", "up_proj") if gated else ("up_proj",)
    return [
        *(each for name in ups for each in _projection(part, f"{place}.{name}", width, hidden_size, bias)),
        *_projection(part, f"{place}.down_proj", hidden_size, width, bias, split="columns"),
    ]


def experts(hidden_size: int, spec: ExpertsSpec, linear_bias: bool = False, hashed_tokens: int = 0) -> list[Tensor]:
    """Router [E, D], E experts of which some are active, shared experts, and their biases and gates.

    Where experts are looked up by token, a table [``hashed_tokens``, active] takes the place of the correction.

    Routed experts are stacked matrices, with biases where the spec says so; the shared experts, and the projections
    into a latent width and back, are linear layers like those of a dense block, with biases where ``linear_bias``.
    """
    D, rows, width = hidden_size, spec.count + spec.zero_experts, spec.latent_size or hidden_size
    routed = _block("experts", "mlp.experts", width, spec.intermediate_size, spec.gated, spec.bias)
    active = min(spec.active, spec.count)
    tensors = [Tensor("router", rows, D, role="mlp.gate", split="whole")]
    if hashed_tokens:
        table = Tensor("router", hashed_tokens, active, role="mlp.gate.tid2eid", split="whole")
        tensors.append(replace(table, dtype="int64", buffer=True))
    elif spec.score_correction:
        correction = _plain("router", "mlp.gate.e_score_correction_bias", rows, split="whole")
        tensors.append(replace(_float32(correction), buffer=True))
    if spec.router_bias:
        tensors.append(_plain("router", "mlp.gate.bias", rows, split="whole"))
    tensors += [replace(tensor, count=spec.count, active=active) for tensor in routed]
    if spec.router_scales:
        tensors.append(_plain("router", "mlp.gate.scale", D, split="whole"))
        tensors.append(_plain("router", "mlp.gate.per_expert_scale", spec.count, split="whole"))
    if spec.latent_size:
        tensors += _projection("experts", "mlp.fc1_latent_proj", width, D, linear_bias)
        tensors += _projection("experts", "mlp.fc2_latent_proj", D, width, linear_bias)
        if spec.latent_norm:
            tensors.append(_norm("mlp.latent_norm", width))
    if spec.shared_intermediate_size:
        tensors += _block("experts", "mlp.shared_experts", D, spec.shared_intermediate_size, spec.gated, linear_bias)
    if spec.shared_gate:
        tensors.append(Tensor("router", 1, D, role="mlp.shared_expert_gate", split="whole"))
    if spec.norm:
        tensors.append(_norm("mlp.norm", D))
    return tensors


def per_layer_input(hidden_size: int, width: int, altup_inputs: int, laurel_rank: int) -> list[Tensor]:
    """One layer's part of per-layer embeddings: gate [w, D], projection [D, w], norm D.

    With AltUp over n streams: output scale D, correction n n, prediction n n n, router n D and its norm D; with
    Laurel of rank r: 2 D r and a norm D (Gemma 3n).
    """
    D, n = hidden_size, altup_inputs
    tensors = [
        _linear("other", "per_layer_input_gate", width, D),
        _linear("other", "per_layer_projection", D, width, split="columns"),
        _norm("post_per_layer_input_norm", D),
    ]
    if altup_inputs:
        tensors += [
            _plain("other", "altup.correct_output_scale", D),
            Tensor("other", n, n, role="altup.correction_coefs"),
            Tensor("other", n * n, n, role="altup.prediction_coefs"),
            Tensor("other", n, D, role="altup.modality_router"),
            _norm("altup.router_norm", D),
        ]
    if laurel_rank:
        tensors += [
            _linear("other", "laurel.linear_left", laurel_rank, D),
            _linear("other", "laurel.linear_right", D, laurel_rank, split="columns"),
            _norm("laurel.post_laurel_norm", D),
        ]
    return tensors


def per_layer_embedding(
    hidden_size: int, num_layers: int, vocab_size: int, width: int, altup_inputs: int
) -> list[Tensor]:
    """The model's part of per-layer embeddings: a table [V, L w], a projection [L w, D], a norm w; with AltUp
    2 (n - 1) matrices [D, D].
    """
    D = hidden_size
    tensors = [
        Tensor("embedding", vocab_size, num_layers * width, role="embed_tokens_per_layer"),
        _linear("other", "per_layer_model_projection", num_layers * width, D),
        _norm("per_layer_projection_norm", width),
    ]
    if altup_inputs > 1:
        roles = ("altup_projections", "altup_unembed_projections")
        tensors += [Tensor("other", D, D, altup_inputs - 1, role=role, linear=True) for role in roles]
    return tensors


def hyper_connections(hidden_size: int, streams: int) -> list[Tensor]:
    """One layer's two mixers of n residual streams (DeepSeek V4): n (n + 2) rows over n D numbers, biases, 3 scales."""
    rows = streams * (streams + 2)
    return [
        _float32(Tensor("other", rows, streams * hidden_size, 2, role="hc.fn", split="whole")),
        _float32(Tensor("other", rows, count=2, role="hc.base", split="whole")),
        _float32(Tensor("other", 3, count=2, role="hc.scale", split="whole")),
    ]


def hyper_head(hidden_size: int, streams: int) -> list[Tensor]:
    """The mixer that joins n residual streams behind the last layer."""
    return [
        _float32(Tensor("other", streams, streams * hidden_size, role="hc_head.fn", split="whole")),
        _float32(_plain("other", "hc_head.base", streams, split="whole")),
        _float32(_plain("other", "hc_head.scale", 1, split="whole")),
    ]


def mtp_projection(hidden_size: int, streams: int) -> list[Tensor]:
    """What a multi-token-prediction layer has besides its block: a projection [D, 2 D] and three norms.

    With residual streams it has a projection [D, D] for the embedding, one for the hidden state, and a mixer of its own
    that joins the streams (DeepSeek V4).
    """
    D = hidden_size
    if not streams:
        return [_linear("other", "eh_proj", D, 2 * D), *norms(D, 3, bias=False)]
    projections = [_linear("other", f"{name}_proj", D, D) for name in "eh"]
    return [*projections, *norms(D, 3, bias=False), *hyper_head(D, streams)]


def dspark_stage(
    hidden_size: int, streams: int, vocab_size: int, shape: DSparkSpec, *, first: bool, last: bool
) -> list[Tensor]:
    """What a stage of a DSpark draft has besides its block (sglang 0.5.23 models/deepseek_v4_dspark.py).

    The first one joins the hidden states of its targets: a projection [D, t D] and a norm. The last one has a norm, a
    mixer that joins the residual streams, two tables [V, r] and the confidence's weights [1, D + r].
    """
    D, rank = hidden_size, shape.markov_rank
    tensors = []
    if first:
        tensors += [_linear("other", "main_proj", D, shape.targets * D), *norms(D, 1, bias=False)]
    if last:
        tensors += [*norms(D, 1, bias=False), *hyper_head(D, streams)]
        tensors.append(Tensor("other", vocab_size, rank, 2, role="markov_head", split="whole"))
        tensors.append(Tensor("other", 1, D + rank, role="confidence_head", split="whole"))
    return tensors


def mtp_tables(hidden_size: int, vocab_size: int) -> list[Tensor]:
    """An embedding and a head that checkpoints hold once more with a multi-token-prediction layer (DeepSeek V3)."""
    return [
        Tensor("embedding", vocab_size, hidden_size, role="embed_tokens", buffer=True),
        Tensor("head", vocab_size, hidden_size, role="shared_head.head", buffer=True),
    ]


def norms(hidden_size: int, count: int, bias: bool) -> list[Tensor]:
    """``count`` norms of D numbers, twice that with biases."""
    return [_norm("norm", hidden_size, count=count * (2 if bias else 1))] if count else []


def repeated(tensors: tuple[Tensor, ...], times: int) -> list[Tensor]:
    """The tensors of ``times`` equal blocks as one entry each."""
    return [replace(tensor, count=tensor.count * times) for tensor in tensors]


def _linear(part: Part, role: str, rows: int, columns: int, *, split: Split = "rows", kv_heads: int = 0) -> Tensor:
    return Tensor(part, rows, columns, role=role, linear=True, split=split, kv_heads=kv_heads)


def _projection(part: Part, role: str, rows: int, columns: int, bias: bool, *, split: Split = "rows") -> list[Tensor]:
    """A linear layer, and its bias where it has one: divided as the rows are, or whole."""
    tensors = [_linear(part, role, rows, columns, split=split)]
    return (
        [*tensors, _plain(part, f"{role}.bias", rows, split="rows" if split == "rows" else "whole")]
        if bias
        else tensors
    )


def _plain(part: Part, role: str, elements: int, *, split: Split = "rows") -> Tensor:
    return Tensor(part, elements, role=role, split=split)


def _float32(tensor: Tensor) -> Tensor:
    """A tensor that checkpoints store as float32 whatever the model's format."""
    return replace(tensor, dtype="float32")


def _norm(role: str, width: int, *, count: int = 1) -> Tensor:
    return Tensor("norms", width, count=count, role=role, split="whole")
