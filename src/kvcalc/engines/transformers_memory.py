"""transformers' memory besides weights and KV cache: the peak of one prefill forward, by chunk.

A layer frees what it computed before the next one runs, so the peak is that of one layer, whatever their number: the
widest of its feed-forward and its attention. With ``logits_to_keep=1``, as ``generate`` has it, the logits of one token
come after that peak.

Source: measured on an H100 with torch 2.11 and transformers 5.17.0 (the CUDA allocator's peak less what is held
afterwards, weights and cache, and the tensors that were alive at the peak), 50 models of 28 types;
models/llama/modeling_llama.py (the layer), integrations/sdpa_attention.py and masking_utils.py (masks, repeated K and
V), integrations/moe.py (experts), models/mamba2/modeling_mamba2.py and models/mamba/modeling_mamba.py (scans without
kernels), models/deepseek_v32/modeling_deepseek_v32.py (the indexer), models/gemma3n and models/gemma4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvcalc.architecture import Chunked, Compressed, Full, Latent, Layer, Parallel, Sliding, State
from kvcalc.derivation import Derivation
from kvcalc.device import Device
from kvcalc.engines.base import WorkingMemory
from kvcalc.errors import NotModelledError
from kvcalc.units import GiB, MiB
from kvcalc.widths import Widths

#: Types whose feed-forward projects gate and up at once, so that both stay until their product is made.
_FUSED_GATE_UP = frozenset({"phi3", "glm", "glm4"})
#: Types whose Q, K and V come from one projection, which stays beside them: measured, and not taken apart.
_FUSED_PROJECTIONS = _FUSED_GATE_UP | {"gpt_neox"}
#: Types whose experts' outputs are weighted in float32.
_FLOAT32_ROUTING = frozenset({"deepseek_v2", "deepseek_v3"})
#: Types whose softmax over scores stays in the activations' format: bytes of one score in it, ten elsewhere.
_BYTES_OF_SCORE = {"gpt_oss": 6}
#: Types whose norms come after attention and feed-forward, so that the residual stream is what these read.
_NORM_AFTER = frozenset({"exaone4", "olmo2", "olmo3"})
#: Types with a gated delta net, where no kernels of flash-linear-attention are installed; and those of them whose
#: projection is taken apart, so that it stays beside its parts.
_DELTA_NETS, _PACKED = frozenset({"qwen3_next", "qwen3_5", "qwen3_5_moe"}), frozenset({"qwen3_next"})
#: Types with rotary tables of their own for each kind of attention layer.
_OWN_TABLES = frozenset({"gemma3n", "gemma4"})
#: Heads wider than this have no flash attention.
_WIDEST_FLASH = 256
#: A CUDA context with cuBLAS's and cuDNN's own memory.
_CONTEXT, _CONTEXT_BAND = GiB // 2, GiB // 4
#: What the allocator's own rounding moves a peak by.
_ROUNDING = 12 * MiB


@dataclass(frozen=True, slots=True)
class Forward:
    """One forward of a prefill.

    Attributes:
        tokens: tokens of this chunk, of each sequence.
        past: tokens in the cache before it.
        batch_size: sequences.
        element_bytes: bytes of one activation.
        keeps_scores: eager attention, which writes out every score.
    """

    tokens: int
    past: int
    batch_size: int
    element_bytes: int
    keeps_scores: bool = False


@dataclass(frozen=True, slots=True)
class _Attention:
    """The attention layers as far as their masks and copies go."""

    heads: int
    head_dim: int
    repeats: bool
    kv_heads: int
    has_full: bool
    window: int | None


def forwards(context: int, chunk: int | None, forward: Forward) -> Iterator[Forward]:
    """The forwards of a prefill that can hold its peak: the first, the last whole chunk, and the rest."""
    size = min(context, chunk or context)
    last_whole = (context // size - 1) * size
    rest = context - last_whole - size
    for past, tokens in ((0, size), (last_whole, size), (context - rest, rest)):
        if tokens:
            yield Forward(tokens, past, forward.batch_size, forward.element_bytes, forward.keeps_scores)


def transformers_working_memory(
    widths: Widths, context: int, chunk: int | None, one: Forward, device: Device
) -> WorkingMemory:
    """The largest peak of a prefill's forwards, and the CUDA context.

    Raises:
        NotModelledError: states other than Mamba's and the gated delta nets' (their peak depends on the kernels that
            are installed), an indexer without latents, compressed layers, or a device that is not a CUDA device.
    """
    _check(widths, device)
    derived = [peak(widths, each) for each in forwards(context, chunk, one)]
    work = max(derived, key=lambda each: each["activation_bytes"])
    work.let("runtime_bytes", "the CUDA context", str(_CONTEXT), "bytes", "0.25 to 0.75 GiB")
    percent = _percent_off(widths, one)
    band = f"{_CONTEXT_BAND + _ROUNDING} + activation_bytes * {percent} // 100"
    notes = ["generate keeps the logits of one token; all of them cost 4 to 8 bytes per entry of the vocabulary"]
    if _net(widths) is not None:
        notes.append("without the kernels of flash-linear-attention: with them a prefill takes less")
    if _scan_layer(widths) is not None:
        notes.append("without the kernels of mamba-ssm and causal-conv1d: with them a prefill takes far less")
    return WorkingMemory.ended(work, band, tuple(notes))


def _percent_off(widths: Widths, one: Forward) -> int:
    model = widths.architecture
    if model.model_type in _FUSED_PROJECTIONS:
        return 20
    if model.has_latents and one.keeps_scores:
        return 17
    if model.model_type == "gemma4":  # after a past; without one 0.1
        return 6
    return (
        3 if one.keeps_scores or model.has_latents or model.has_states or _attention(widths).window is not None else 1
    )


def _check(widths: Widths, device: Device) -> None:
    recurrent = [layer for layer in widths.architecture.layers if (state := _state(layer)) and state.recurrent_elements]
    compressed = any(isinstance(layer.cache, Compressed) for layer in widths.architecture.layers)
    reason = ""
    if device.platform not in ("cuda", "rocm"):
        reason = f"transformers' memory on {device.title} is not modelled"
    elif recurrent and _net(widths) is None and _scan_layer(widths) is None:
        reason = "the memory of recurrent layers depends on the kernels that are installed, and is not modelled"
    elif compressed or (widths.architecture.has_indexers and not _index_heads(widths)):
        reason = "the memory of sparse or compressed attention of this kind is not modelled"
    if reason:
        hint = "leave room with --reserve, and read torch.cuda.max_memory_allocated()"
        raise NotModelledError(reason, hint=hint)


def _state(layer: Layer) -> State | None:
    kind = layer.cache.state if isinstance(layer.cache, Parallel) else layer.cache
    return kind if isinstance(kind, State) else None


def _rows(layer: Layer) -> dict[str, int]:
    return {tensor.role: tensor.rows for tensor in layer.mixer}


def _attention(widths: Widths) -> _Attention:
    kinds = [layer.cache for layer in widths.architecture.layers]
    inner = [kind.attention if isinstance(kind, Parallel) else kind for kind in kinds]
    windows = [kind.window for kind in inner if isinstance(kind, Sliding)]
    windows += [kind.chunk for kind in inner if isinstance(kind, Chunked)]
    heads = [kind.num_kv_heads for kind in inner if isinstance(kind, Full | Sliding | Chunked)]
    sizes = [kind.head_dim for kind in inner if isinstance(kind, Full | Sliding | Chunked)]
    has_full = len(windows) < len(kinds)
    query, most = widths.query_heads, max(heads, default=0)
    return _Attention(query, max(sizes, default=0), 1 < most < query, most, has_full, min(windows, default=None))


def peak(widths: Widths, forward: Forward) -> Derivation:
    """The peak of one forward, as ``activation_bytes``."""
    attention = _attention(widths)
    work = Derivation(forward.tokens, forward.batch_size)
    work.let("P", "tokens in the cache before this chunk", str(forward.past), "tokens")
    work.let("b", "bytes of one activation", str(forward.element_bytes), "bytes")
    work.let("H", "hidden size", str(widths.hidden))
    rotary = f"4 * {sum(_rotary_widths(widths, attention))} * T" if attention.head_dim else "0"
    work.let("tables", "rotary tables, positions and token ids", f"{rotary} + 8 * T + 8 * B * T", "bytes")
    work.let("mask", "one mask of the chunk against all tokens", "T * (P + T)", "bytes")
    per_mask = "b * B * mask" if forward.keeps_scores else "mask"
    masks = f"({_masks(attention, forward.keeps_scores)}) * {per_mask}"
    work.let("masks", "masks that stay for the whole forward", masks, "bytes")
    work.let("feed_forward", "the widest feed-forward", _feed_forward(work, widths), "bytes", "modeling_llama.py")
    terms = ["feed_forward + masks"]
    if attention.heads:
        terms += _attention_terms(work, attention, widths.architecture.model_type, forward)
    net, scan = _net(widths), _scan_layer(widths)
    if net is not None:
        terms.append(_delta_net(work, net, packed=widths.architecture.model_type in _PACKED))
    if scan is not None:
        terms.append(_scan(work, scan))
    if _index_heads(widths):
        terms.append(_indexer(work, widths))
    largest = f"max({', '.join(terms)})" if len(terms) > 1 else terms[0]
    beside = _per_layer_inputs(work, widths)
    work.let(
        "activation_bytes", "the peak of one forward", f"{largest} + tables{beside}", "bytes", "measured on an H100"
    )
    return work


def _rotary_widths(widths: Widths, attention: _Attention) -> list[int]:
    """Widths of the rotary tables: Gemma 3n and 4 have one for each kind of attention layer."""
    if widths.architecture.model_type not in _OWN_TABLES:
        return [attention.head_dim]
    kinds = [layer.cache for layer in widths.architecture.layers]
    return [max((kind.head_dim for kind in kinds if isinstance(kind, of)), default=0) for of in (Full, Sliding)]


def _attention_terms(work: Derivation, attention: _Attention, model_type: str, forward: Forward) -> list[str]:
    """Queries of all heads beside copies of K and V, scores and masks."""
    work.let("Q", "width of all query heads", f"{attention.heads} * {attention.head_dim}")
    copies = "2 * B * (P + T) * Q * b" if attention.repeats else "0"
    work.let("repeated", "K and V once for each query head", copies, "bytes", "sdpa_attention.py")
    if forward.keeps_scores:
        of_score = _BYTES_OF_SCORE.get(model_type, 10)
        formula = f"{of_score} * B * {attention.heads} * mask + repeated + B * T * b * (3 * H + Q) + masks"
    else:
        formula = "B * T * b * 5 * H + repeated + masks + 2 * B * mask + 1536"
    work.let("attention", "scores, and masks in the activations' format", formula, "bytes", "sdpa_attention.py")
    terms = ["attention" if forward.keeps_scores else "(attention if masks else 0)"]
    if model_type == "gemma4":
        work.let("normed", "norm of the queries in float32", "B * T * ((8 + b) * Q + 3 * H * b) + masks", "bytes")
        terms.append("normed")
    if attention.head_dim > _WIDEST_FLASH and not forward.keeps_scores:
        several = "repeated" if attention.kv_heads > 1 else "0"
        formula = f"B * T * b * (4 * Q + 3 * H) + {several} + masks + (2 * B * mask if P > 0 else 0)"
        work.let("unfused", "attention of heads without flash attention", formula, "bytes", "sdpa_attention.py")
        terms.append("unfused")
    return terms


def _per_layer_inputs(work: Derivation, widths: Widths) -> str:
    """An embedding of each token for every layer, which stays to the end (Gemma 3n and 4)."""
    embedded = [t.columns for t in widths.architecture.tensors if t.role == "embed_tokens_per_layer"]
    if not embedded:
        return ""
    work.let("per_layer", "embeddings of one token, of all layers", f"B * T * b * {embedded[0]}", "bytes")
    return " + per_layer"


def _net(widths: Widths) -> Layer | None:
    """A layer with a gated delta net of a known type, or None."""
    if widths.architecture.model_type not in _DELTA_NETS:
        return None
    nets = (each for each in widths.architecture.layers if any("in_proj_z" in tensor.role for tensor in each.mixer))
    return next(nets, None)


def _delta_net(work: Derivation, net: Layer, packed: bool) -> str:
    """A gated delta net in float32: thirteen and a half tensors as wide as all values, by eight shapes on an H100.

    Queries and keys stay beside their repeats, where they have fewer heads than values.
    """
    state, rows = net.cache, _rows(net)
    assert isinstance(state, State)
    values = rows["linear_attn.in_proj_z"]
    keys = state.conv_channels - values
    copied = keys * (keys < 2 * values) + (state.conv_channels + values) * packed
    formula = f"B * T * (54 * {values} + 5 * H * b // 2 + {copied} * b) + 4 * B * {state.recurrent_elements}"
    work.let("delta", "a gated delta net in float32", formula, "bytes", "modeling_qwen3_next.py")
    return "delta + masks"


def _scan_layer(widths: Widths) -> Layer | None:
    """A layer with Mamba's or Mamba-2's scan, or None."""
    return next((each for each in widths.architecture.layers if "mamba.in_proj" in _rows(each)), None)


def _scan(work: Derivation, layer: Layer) -> str:
    """A scan as its reference writes it: of a chunk every pair of tokens, head and number of a state in float32.

    Falcon-H1's small sibling, 2,048 tokens: 4 x 2,048 x 256 x 32 heads x 128 = 8 GiB of the 8.26 that were counted.
    """
    state, projected = _state(layer), _rows(layer)["mamba.in_proj"]
    assert state is not None
    if not state.groups:  # Mamba-1 has its states of all tokens three times
        inner, size = state.conv_channels, state.recurrent_elements // state.conv_channels
        formula = f"B * T * (12 * {inner * size} + {inner} * (8 + 6 * b) + 4 * H + 2 * b * H)"
        work.let("scan", "the selective scan in float32", formula, "bytes", "modeling_mamba.py")
        return "scan + masks"
    beside = state.groups * state.group_channels
    inner, size = state.conv_channels - beside, state.group_channels // 2
    heads = projected - inner - state.conv_channels
    width = inner // heads
    last = width >= size  # the peak is that of the outputs, not of B times C
    work.let("scanned", "tokens of one chunk of the scan", str(state.scan_chunk or 256), "tokens")
    work.let("padded", "tokens of whole chunks", "ceil_div(T, scanned) * scanned", "tokens")
    pairs = f"scanned * {heads} * ({max(size, width)} + {2 + last})"
    rest = f"{heads} * ({(2 + last) * width} + {2 * size})"
    formula = f"4 * B * padded * ({pairs} + {rest}) + B * T * b * ({projected + state.conv_channels} + 3 * H)"
    work.let("scan", "the chunked scan in float32", formula, "bytes", "modeling_mamba2.py")
    return "scan + masks"


def _index_heads(widths: Widths) -> int:
    """Heads of the indexer that stands beside latents, or 0."""
    return max(_rows(layer).get("self_attn.indexer.weights_proj", 0) for layer in widths.architecture.layers)


def _indexer(work: Derivation, widths: Widths) -> str:
    """Scores of an indexer's heads in float32, twice; with several sequences its keys once for each query instead."""
    kinds = [layer.cache for layer in widths.architecture.layers]
    latent = next(kind for kind in kinds if isinstance(kind, Latent) and kind.indexer_dim)
    heads, width = _index_heads(widths), latent.num_heads * (latent.nope_dim + latent.rope_dim)
    work.let("pair", "bytes of one query and one key", f"4 * ({heads} + max({heads}, {latent.indexer_dim} * (B > 1)))")
    rest = f"B * T * b * (5 * {heads * latent.indexer_dim} // 2 + 3 * H + 3 * {width})"
    work.let("indexer", "scores of the indexer", f"B * mask * (pair + 1) + {rest}", "bytes", "modeling_deepseek_v32.py")
    return "indexer"


def _masks(attention: _Attention, keeps_scores: bool) -> str:
    """Masks that are made: causal attention without a past needs none, and each kind of layer has its own."""
    full, slides = int(attention.has_full), attention.window is not None
    if keeps_scores:
        return str(full + slides)
    terms = ["(1 if P > 0 else 0)"] if full else []
    terms += [f"(1 if P > 0 or P + T >= {attention.window} else 0)"] if slides else []
    return f"{' + '.join(terms)} if T > 1 else 0" if terms else "0"


def _feed_forward(work: Derivation, widths: Widths) -> str:
    dense = 0
    if widths.intermediate and not widths.experts_per_token:
        dense = 2 if not widths.is_gated else 4 if widths.architecture.model_type in _FUSED_GATE_UP else 3
    work.let("I", "width of the dense feed-forward", str(widths.intermediate))
    if widths.architecture.model_type == "gemma3n":  # a sparse activation, and four residual streams before and after
        return "B * T * b * (4 * I + 20 * H)"
    if not widths.experts_per_token:
        rows = 3 if widths.architecture.model_type in _NORM_AFTER else 4
        return f"B * T * b * ({dense} * I + {rows} * H)"
    work.let("k", "experts that one token reads", str(widths.experts_per_token))
    work.let("m", "width of one expert", str(widths.expert_intermediate))
    work.let("E", "experts", str(widths.num_experts))
    rows = 6 if widths.architecture.model_type in _FLOAT32_ROUTING else 4
    shared = 1 if widths.intermediate else 0
    experts = f"B * T * (b * ((4 + {shared}) * H + k * max({rows} * H, 4 * m + H)) + 41 * k + 2 * E) + 1024"
    return f"max(B * T * b * (3 * I + 4 * H), {experts})"
