"""transformers' memory besides weights and KV cache: the peak of one prefill forward, by chunk.

A layer frees what it computed before the next one runs, so the peak is that of one layer, whatever their number: the
widest of its feed-forward and its attention. With ``logits_to_keep=1``, as ``generate`` has it, the logits of one token
come after that peak.

Source: measured on an H100 with torch 2.11 and transformers 5.17.0 (the CUDA allocator's peak less what is held
afterwards, weights and cache), 30 models of 19 types; models/llama/modeling_llama.py (the layer),
integrations/sdpa_attention.py and masking_utils.py (masks, repeated K and V), integrations/moe.py (experts).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvcalc.architecture import Chunked, Full, Layer, Parallel, Sliding, State
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
        NotModelledError: Mamba's and other states (their peak depends on the kernels that are installed), layers of an
            indexer, several residual streams, or a device that is not a CUDA device.
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
    return WorkingMemory.ended(work, band, tuple(notes))


def _percent_off(widths: Widths, one: Forward) -> int:
    model = widths.architecture
    if model.model_type in _FUSED_PROJECTIONS:
        return 20
    if model.has_latents and one.keeps_scores:
        return 17
    return (
        3 if one.keeps_scores or model.has_latents or model.has_states or _attention(widths).window is not None else 1
    )


def _check(widths: Widths, device: Device) -> None:
    states = any(isinstance(layer.cache, Parallel) for layer in widths.architecture.layers)
    states |= any(state.recurrent_elements > 0 for state in _with_states(widths))
    reason = ""
    if device.platform not in ("cuda", "rocm"):
        reason = f"transformers' memory on {device.title} is not modelled"
    elif states and _net(widths) is None:
        reason = "the memory of recurrent layers depends on the kernels that are installed, and is not modelled"
    elif widths.architecture.has_indexers:
        reason = "the memory of sparse-attention indexers is not modelled"
    elif any("per_layer" in tensor.role for tensor in widths.architecture.tensors):
        reason = "the memory of transformers beside per-layer embeddings is not modelled"
    if reason:
        hint = "leave room with --reserve, and read torch.cuda.max_memory_allocated()"
        raise NotModelledError(reason, hint=hint)


def _with_states(widths: Widths) -> list[State]:
    return [layer.cache for layer in widths.architecture.layers if isinstance(layer.cache, State)]


def _attention(widths: Widths) -> _Attention:
    kinds = [layer.cache for layer in widths.architecture.layers]
    inner = [kind.attention if isinstance(kind, Parallel) else kind for kind in kinds]
    windows = [kind.window for kind in inner if isinstance(kind, Sliding)]
    windows += [kind.chunk for kind in inner if isinstance(kind, Chunked)]
    heads = [kind.num_kv_heads for kind in inner if isinstance(kind, Full | Sliding | Chunked)]
    sizes = [kind.head_dim for kind in inner if isinstance(kind, Full | Sliding | Chunked)]
    has_full = len(windows) < len(kinds)
    query = widths.query_heads
    return _Attention(
        query, max(sizes, default=0), bool(heads) and query > max(heads), has_full, min(windows, default=None)
    )


def peak(widths: Widths, forward: Forward) -> Derivation:
    """The peak of one forward, as ``activation_bytes``."""
    attention = _attention(widths)
    work = Derivation(forward.tokens, forward.batch_size)
    work.let("P", "tokens in the cache before this chunk", str(forward.past), "tokens")
    work.let("b", "bytes of one activation", str(forward.element_bytes), "bytes")
    work.let("H", "hidden size", str(widths.hidden))
    rotary = f"4 * {attention.head_dim} * T" if attention.head_dim else "0"
    work.let("tables", "rotary tables, positions and token ids", f"{rotary} + 8 * T + 8 * B * T", "bytes")
    work.let("mask", "one mask of the chunk against all tokens", "T * (P + T)", "bytes")
    per_mask = "b * B * mask" if forward.keeps_scores else "mask"
    masks = f"({_masks(attention, forward.keeps_scores)}) * {per_mask}"
    work.let("masks", "masks that stay for the whole forward", masks, "bytes")
    work.let("feed_forward", "the widest feed-forward", _feed_forward(work, widths), "bytes", "modeling_llama.py")
    terms = ["feed_forward + masks"]
    if attention.heads:
        work.let("Q", "width of all query heads", f"{attention.heads} * {attention.head_dim}")
        copies = "2 * B * (P + T) * Q * b" if attention.repeats else "0"
        work.let("repeated", "K and V once for each query head", copies, "bytes", "sdpa_attention.py")
        if forward.keeps_scores:
            of_score = _BYTES_OF_SCORE.get(widths.architecture.model_type, 10)
            formula = f"{of_score} * B * {attention.heads} * mask + repeated + B * T * b * (3 * H + Q) + masks"
        else:
            formula = "B * T * b * 5 * H + repeated + masks + 2 * B * mask + 1536"
        work.let("attention", "scores, and masks in the activations' format", formula, "bytes", "sdpa_attention.py")
        terms.append("attention" if forward.keeps_scores else "(attention if masks else 0)")
    net = _net(widths)
    if net is not None:
        terms.append(_delta_net(work, net, packed=widths.architecture.model_type in _PACKED))
    largest = f"max({', '.join(terms)})" if len(terms) > 1 else terms[0]
    work.let("activation_bytes", "the peak of one forward", f"{largest} + tables", "bytes", "measured on an H100")
    return work


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
    state, rows = net.cache, {tensor.role: tensor.rows for tensor in net.mixer}
    assert isinstance(state, State)
    values = rows["linear_attn.in_proj_z"]
    keys = state.conv_channels - values
    copied = keys * (keys < 2 * values) + (state.conv_channels + values) * packed
    formula = f"B * T * (54 * {values} + 5 * H * b // 2 + {copied} * b) + 4 * B * {state.recurrent_elements}"
    work.let("delta", "a gated delta net in float32", formula, "bytes", "modeling_qwen3_next.py")
    return "delta + masks"


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
