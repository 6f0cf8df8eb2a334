"""vLLM's memory besides weights and KV cache: the activation peak of its profile run, non-torch memory, CUDA graphs.

vLLM runs one dummy step of T tokens (``max_num_batched_tokens``) and samples min(S, T) rows (``max_num_seqs``) of the
whole vocabulary. The peak is almost always the sampler's copies of the logits, not the layers: 1,024 sequences of a
vocabulary of 128,256 are 1.75 GiB, whatever the model behind them.

Source: vllm 0.33.0 v1/worker/gpu_worker.py:641 (the budget), v1/worker/gpu_model_runner.py:5866 and :6072 (the
profile), v1/sample/ops/topk_topp_triton.py:1688 (the top-k buffer),
model_executor/layers/fused_moe/experts/triton_moe.py:240 (the experts' workspaces). The constants are fitted to
recorded start-ups; each says how far it is off. No layer has its metadata in that step: recurrent kernels return before
they take their buffers (mamba/gdn/qwen_gdn_linear_attn.py:1578, mamba/mamba_mixer2.py:787), which come on top of what
vLLM has measured; a sparse-attention indexer reserves its own (sparse_attn_indexer.py:483).
"""

from __future__ import annotations

from dataclasses import dataclass

from kvcalc.architecture import LargestImage, Latent, State
from kvcalc.derivation import Derivation
from kvcalc.device import Device
from kvcalc.engines.base import WorkingMemory
from kvcalc.errors import NotModelledError
from kvcalc.units import GiB, MiB, format_bytes
from kvcalc.widths import Widths

#: The first versions whose sampler works in place, that hold more outside of torch, and that deduct their graphs.
_FUSES, _HOLDS_MORE, _DEDUCTS_GRAPHS = (0, 17), (0, 18), (0, 21)
#: The first versions whose indexer gathers 40 keys for each token of the longest sequence, that profile its scores
#: too, and that gather 16 beyond 262,144 tokens.
_GATHERS, _SCORES, _GATHERS_LESS = (0, 14), (0, 19), (0, 32)
#: Where these rules change.
CHANGES = (_GATHERS, _FUSES, _HOLDS_MORE, _SCORES, _DEDUCTS_GRAPHS, _GATHERS_LESS)
#: Bytes of one logit in the sampler beyond the model's own: float32 logits, probabilities and a sorted copy. Since 0.17
#: top-k and top-p run in place (v1/sample/ops/topk_topp_triton.py).
_FUSED_SAMPLER, _SORTED_SAMPLER = 12, 36
#: What no formula names, beyond the sampler's copies (on Hopper, and elsewhere) and beyond the layers' widest step.
_BESIDE_LOGITS_HOPPER, _BESIDE_LOGITS, _BESIDE_LAYERS = 51 * MiB, 10 * MiB, 15 * MiB
#: The profile of an image encoder whose largest image is not known, in place of the above.
_BESIDE_IMAGE = 256 * MiB


@dataclass(frozen=True, slots=True)
class Step:
    """One step as vLLM profiles it.

    Attributes:
        tokens: max_num_batched_tokens.
        sequences: max_num_seqs.
        element_bytes: bytes of one activation.
        tensor_parallel_size: devices that share every layer.
        pipeline_stages: stages; only the last one has logits.
        takes_graphs: CUDA graphs are captured (not ``enforce_eager``).
        has_image_encoder: the profile runs an image encoder at its largest image too.
        image: that image, where it is known.
        quantises_inputs: activations are 8 bits wide where they meet weights, in a copy beside the wide ones.
        experts_in_place: the expert kernel needs no workspace of the dense kind (mxfp4, nvfp4).
        longest: max_model_len, where an indexer's buffers depend on it.
    """

    tokens: int
    sequences: int
    element_bytes: int
    tensor_parallel_size: int = 1
    pipeline_stages: int = 1
    takes_graphs: bool = True
    has_image_encoder: bool = False
    image: LargestImage | None = None
    quantises_inputs: bool = False
    experts_in_place: bool = False
    longest: int = 0


def vllm_working_memory(version: tuple[int, int], widths: Widths, step: Step, device: Device) -> WorkingMemory:
    """The working memory of a vLLM of that version (0.11 and later) on one CUDA device.

    Raises:
        NotModelledError: unified memory, or a device that is not a CUDA device.
    """
    _check(device)
    work, fused = Derivation(), version >= _FUSES
    _work_inputs(work, step, widths, device)
    factor = 3 if widths.is_gated else 2
    layer = f"T * b * (ceil_div({factor} * I, tp) + 4 * H)"
    # One record: Mistral Small 3.1 in w8a8 prints 2.18 GiB, 0.15 more than in bfloat16, and I of a byte are 0.25.
    layer += " + T * ceil_div(I, tp)" if step.quantises_inputs else ""
    indexer = _work_indexer(work, version, step, widths)
    if indexer and version >= _SCORES:  # before the feed-forward of its layer
        layer = f"max({layer}, {512 * MiB} + 4 * T * H * b)"
    work.let("forward", "the widest layer", layer, "bytes", "gpu_model_runner.py:6072")
    _work_logits(work, fused)
    terms = ["max(forward, logits)"]
    if step.pipeline_stages > 1:
        # A stage that is not the last has no logits, and keeps what it sends and receives; the largest stage counts.
        work.let("between", "what a stage sends and receives", "2 * T * H * b", "bytes")
        terms = ["max(forward + between, logits)"]
    if widths.experts_per_token and fused and not step.experts_in_place:
        work.let("k", "experts that one token reads", str(widths.experts_per_token))
        work.let("m", "width of one expert", str(widths.expert_intermediate))
        meaning = "the experts' two workspaces, kept after the step"
        experts = "T * k * (max(ceil_div(2 * m, tp), H) + max(ceil_div(m, tp), H)) * b"
        work.let("experts", meaning, experts, "bytes", "fused_moe/experts/triton_moe.py:240")
        terms.append("experts")
    terms += indexer
    beside = f"({_BESIDE_LAYERS} if forward > logits else {_BESIDE_LOGITS_HOPPER} if hopper else {_BESIDE_LOGITS})"
    terms += _image_terms(work, step, beside)
    work.let("activation_bytes", "the profiled peak", " + ".join(terms), "bytes", "fitted: +-0.05 GiB")
    runtime, runtime_band = _runtime(version, step)
    work.let("runtime_bytes", "outside of torch: driver, NCCL, kernels", runtime, "bytes", "median of start-ups")
    graphs = _work_graphs(work, step, widths.architecture.num_layers)
    deducted = version >= _DEDUCTS_GRAPHS
    share = "activation_bytes + runtime_bytes" + (" + graph_bytes" if deducted else "")
    work.let("share_bytes", "the part that vllm takes out of its own share", share, "bytes")
    band = (GiB // 5 if step.has_image_encoder and step.image is None else GiB // 20) + runtime_band
    band += 2 * GiB // 5 if graphs and deducted else 0
    band += 2 * GiB if widths.architecture.has_states and version >= _HOLDS_MORE else 0  # 3.81 GiB outside of torch
    work.let("band_bytes", "how far it may be off", str(band), "bytes")
    notes = [f"vllm before 0.21 captures its CUDA graphs, about {graphs / GiB:.1f} GiB, beside its share"]
    return WorkingMemory.derived(work, (*(notes if graphs and not deducted else ()), *_beside_profile(step, widths)))


def _work_logits(work: Derivation, fused: bool) -> None:
    """The sampler's copies of the logits, and from 0.17 on the buffer of its top-k kernel."""
    formula = f"B * V * (b + {_FUSED_SAMPLER if fused else _SORTED_SAMPLER}) + T * H * b"
    if fused:
        meaning = "rows of the top-k kernel's buffer: a power of two of the multiprocessors it uses"
        rows = "min(power_of_two(min(multiprocessors, B)), multiprocessors)"
        work.let("rows", meaning, rows, "rows", "topk_topp_triton.py:1688")
        formula += " + rows * V * 4"
    work.let("logits", "the sampler's copies of the logits", formula, "bytes", "gpu_model_runner.py:5866")


def _work_graphs(work: Derivation, step: Step, layers: int) -> int:
    """CUDA graphs: a tenth of a GiB, and what all 51 sizes take, by how many of them so many sequences have."""
    work.let("largest", "sequences of the largest graph", "min(2 * max_num_seqs, 512)", "sequences", "config/vllm.py")
    steps = "min(largest, 255) // 8 + ((largest - 240) // 16 if largest >= 256 else 0)"
    work.let("sizes", "1, 2, 4, and from 8 on every eighth, from 256 on every sixteenth", f"3 + {steps}", "graphs")
    always, at_all_sizes = GiB // 10, GiB // 2 - GiB // 10
    of_sizes = f"{always} + {at_all_sizes} * sizes // 51 + {layers} * {13 * GiB} // 1000 * sizes // 51"
    formula = of_sizes if step.takes_graphs else "0"
    return work.let("graph_bytes", "CUDA graphs of these sizes", formula, "bytes", "fitted: +-0.4 GiB")


def _work_indexer(work: Derivation, version: tuple[int, int], step: Step, widths: Widths) -> list[str]:
    """The keys that an indexer of latents gathers for a prefill, in a buffer that stays: 128 numbers and a scale.

    GLM 5.2 with 819,200 tokens in 0.26.0: 40 x 132 x 819,200 = 4.03 of the 6.31 GiB that its start printed.
    """
    kinds = [layer.cache for layer in widths.architecture.layers]
    width = max((kind.indexer_dim for kind in kinds if isinstance(kind, Latent)), default=0)
    if not width or version < _GATHERS:
        return []
    work.let("max_model_len", "tokens of the longest sequence", str(step.longest), "tokens", "max_model_len")
    keys = "40" if version < _GATHERS_LESS else f"(40 if max_model_len <= {2**18} else 16)"
    formula = f"{keys} * max_model_len * ({width} + 4)"
    work.let("indexer", "keys that the indexer gathers", formula, "bytes", "attention/backends/mla/indexer.py:916")
    return ["indexer"]


def _beside_profile(step: Step, widths: Widths) -> tuple[str, ...]:
    """What a gated delta net's kernels take in a prefill, which no profile sees (vllm issue 52872).

    For each token w, u, v_new and o as wide as all values, decays in 64 x 6 bytes a head, and one state for 64 tokens.
    """
    if not widths.architecture.has_states:
        return ()
    about = ""
    for layer in widths.architecture.layers:
        rows = {tensor.role: tensor.rows for tensor in layer.mixer}
        if isinstance(layer.cache, State) and "linear_attn.in_proj_z" in rows:
            values, heads = rows["linear_attn.in_proj_z"], rows["linear_attn.in_proj_b"]
            of_token = 4 * values * step.element_bytes + 384 * heads
            of_token += layer.cache.recurrent_elements * step.element_bytes // 64
            size = of_token * step.tokens // step.tensor_parallel_size
            about = f", about {format_bytes(size, digits=1)} for {step.tokens:,} tokens"
    return (f"vllm's profile does not see what recurrent kernels take in a prefill{about}: leave it free",)


def _work_inputs(work: Derivation, step: Step, widths: Widths, device: Device) -> None:
    """The options of a step, what it needs of the device, and the widths of the model."""
    work.let("max_num_batched_tokens", "tokens of one step", str(step.tokens), "tokens", "max_num_batched_tokens")
    work.let("max_num_seqs", "sequences of one step", str(step.sequences), "sequences", "max_num_seqs")
    for name in ("hopper", "nvlink", "multiprocessors"):
        work.let(name, "of the device", str(device.inputs[name]))
    work.let("T", "tokens of the profiled step", "max_num_batched_tokens", "tokens")
    work.let("B", "rows that are sampled", "min(max_num_seqs, T)", "rows")
    work.let("b", "bytes of one activation", str(step.element_bytes), "bytes")
    work.let("tp", "devices that share every layer", str(step.tensor_parallel_size), "devices")
    work.let("H", "hidden size", str(widths.hidden))
    work.let("I", "feed-forward, gate and up and their product", str(widths.intermediate))
    work.let("V", "vocabulary", str(widths.vocab))


def _image_terms(work: Derivation, step: Step, beside: str) -> list[str]:
    """What no other term names: with images, those that a step holds and what became of them stay to the end."""
    if not step.has_image_encoder or step.image is None:
        return [str(_BESIDE_IMAGE) if step.has_image_encoder else beside]
    work.let("image_tokens", "tokens of the largest image", str(step.image.tokens), "tokens")
    work.let("image_numbers", "numbers of its pixels", str(step.image.numbers))
    work.let(
        "images",
        "images of one step: their pixels and their tokens",
        "min(max(T, image_tokens) // image_tokens, max_num_seqs) * b * (image_numbers + image_tokens * H)",
        "bytes",
        "multimodal/encoder_budget.py:145, gpu_model_runner.py:6112",
    )
    return [beside, "images"]


def _check(device: Device) -> None:
    reason = ""
    if device.platform not in ("cuda", "rocm"):
        reason = f"vllm's memory on {device.title} is not modelled"
    elif device.unified:
        reason = f"vllm's memory beside the CPU's, on {device.title}, is not modelled"
    if reason:
        hint = "leave a tenth of the device free with --reserve, and read 'Available KV cache memory' in the log"
        raise NotModelledError(reason, hint=hint)


def _runtime(version: tuple[int, int], step: Step) -> tuple[str, int]:
    """Memory outside of torch's allocator, and how far that may be off: medians of start-ups that were printed.

    From 0.18 on kernels hold local memory on every multiprocessor: 0.07 GiB on 36 of them, 0.23 to 0.26 on 132 to 188.
    """
    holds_more, devices = version >= _HOLDS_MORE, step.tensor_parallel_size * step.pipeline_stages
    if devices > 1:
        # NCCL's buffers, on Hopper with those of NVLink's switch: of four devices in every version (about 2.3 GiB in
        # 0.9, issue 21348), of two from 0.18 on. Before 0.18, over PCIe: 0.20 to 0.24 GiB on 4 to 16 cards.
        on_hopper = (207 if holds_more or devices >= 4 else 97) * GiB // 100
        linked = 97 * GiB // 100
        elsewhere = str(linked) if holds_more else f"{linked} if nvlink else {GiB // 5}"
        return f"{on_hopper} if hopper else {elsewhere}", GiB
    if holds_more:
        return f"{GiB // 4} * min(multiprocessors, 132) // 132", GiB // 5
    return f"{13 * GiB // 100} if hopper else {3 * GiB // 100}", GiB // 5  # 0.02 to 0.08 on 13 cards
