"""MLX-LM's memory besides weights and KV cache: the peak of one prefill chunk, by its tokens and its keys.

MLX allocates what it encodes and frees a layer's arrays when its command buffer is done: two layers stand at a time,
eight where a gated delta net keeps the device busy. A buffer of the cache stands beside the longer one that replaces
it. Attention writes no scores where heads are 64, 80 or 128 wide; elsewhere (Qwen3.5: 256, Gemma 4: 256 and 512) and
with a quantised cache every score is written once. What was freed stays in MLX's own cache of buffers, which gives it
back when memory is wanted (gc_limit, 95 % of the working set): it is not counted.

Source: mlx-lm 0.32.2 generate.py (generate_step: chunks of prefill_step_size, then clear_cache), models/base.py:64 and
:110; mlx 0.32 backend/metal/scaled_dot_product_attention.cpp (which heads are fused), allocator.cpp. Peaks that
``mx.get_peak_memory`` printed, all in public: Qwen3.8-27B-4bit at 131,072 tokens (mlx-lm pull 1781),
Qwen3.6-35B-A3B-4bit at 8k to 192k, 64 kB more for each key of a chunk of 2,048 (issue 1480), Gemma 4 31B at 21,400 and
38,500 (claude-code-local pull 44), Mistral 7B at 33,898 (pull 40).
"""

from __future__ import annotations

from kvcalc.architecture import Full
from kvcalc.derivation import Derivation
from kvcalc.device import Device
from kvcalc.engines.base import WorkingMemory
from kvcalc.errors import NotModelledError
from kvcalc.units import GiB
from kvcalc.widths import Widths

#: Widths of heads whose attention writes no scores.
_FUSED = frozenset({64, 80, 128})
#: How far it may be off: arrays that two layers share, states, the tokenizer's process; and in percent.
_BAND, _PERCENT = GiB, 20


def mlx_lm_working_memory(
    widths: Widths, work: Derivation, chunk: int, element_bytes: int, writes_scores: bool, device: Device
) -> WorkingMemory:
    """The peak of a prefill chunk at the end of a context.

    Args:
        work: with the context and the batch size, ``T`` and ``B``.
        chunk: prefill_step_size.
        element_bytes: bytes of one activation.
        writes_scores: the cache is quantised.

    Raises:
        NotModelledError: latents, indexers, Mamba's scan (61 GB in one version of mlx-lm and 24 in the next), or a
            device that is no Mac.
    """
    _check(widths, device)
    work.let("chunk", "tokens of a prefill chunk", f"min({chunk}, T)", "tokens", "prefill_step_size")
    work.let("b", "bytes of one activation", str(element_bytes), "bytes")
    work.let("H", "hidden size", str(widths.hidden))
    rows = (3 if widths.is_gated else 2) * widths.intermediate
    if widths.experts_per_token:
        rows += widths.experts_per_token * (3 * widths.expert_intermediate + widths.hidden)
    work.let("layer", "the feed-forward of one layer", f"B * chunk * b * ({rows} + 4 * H)", "bytes")
    work.let("whole", "tokens of whole chunks", "T // chunk * chunk", "tokens")
    meaning = "pairs of a query and a key in the fullest chunk: the last whole one, or the rest"
    work.let("pairs", meaning, "max(chunk * whole, (T - whole) * T)")
    work.let("scores", "scores of one layer", _scores(widths, writes_scores), "bytes", "models/base.py")
    work.let("replaced", "a layer's cache beside the longer one", _longest_cache(widths), "bytes", "models/cache.py")
    layers = 8 if widths.architecture.has_states else 2
    work.let("activation_bytes", "the peak of a chunk", f"{layers} * layer + scores + replaced", "bytes")
    work.let("runtime_bytes", "part of the device that Metal does not hand out", "0", "bytes")
    band = f"{_BAND} + activation_bytes * {_PERCENT} // 100"
    notes = (
        ("activations are in proportion to --prefill-step-size: 512 was as fast where it was measured",)
        if chunk > 512
        else ()
    )
    return WorkingMemory.ended(work, band, notes)


def _check(widths: Widths, device: Device) -> None:
    model, reason = widths.architecture, ""
    if device.platform != "metal":
        reason = f"mlx-lm's memory on {device.title} is not modelled"
    elif model.has_latents or model.has_indexers:
        reason = "mlx-lm's memory of latents and indexers in a prefill is not modelled"
    elif any("mamba." in tensor.role for layer in model.layers for tensor in layer.mixer):
        reason = "mlx-lm's memory of Mamba's scan is not modelled"
    if reason:
        hint = "leave room with --reserve, and read the 'Peak memory' that mlx_lm.generate prints"
        raise NotModelledError(reason, hint=hint)


def _scores(widths: Widths, writes_scores: bool) -> str:
    """Scores of the widest attention: one for each head, query and key."""
    for layer in widths.architecture.layers:
        kind = layer.cache
        if isinstance(kind, Full) and (writes_scores or kind.head_dim not in _FUSED):
            return f"{widths.query_heads} * B * pairs * b"
    return "0"


def _longest_cache(widths: Widths) -> str:
    kinds = [layer.cache for layer in widths.architecture.layers]
    rows = [kind.num_kv_heads * (kind.head_dim + kind.v_head_dim) for kind in kinds if isinstance(kind, Full)]
    return f"B * T * b * {max(rows, default=0)}"
