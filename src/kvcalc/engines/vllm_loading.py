"""What vLLM holds of a model beside the weights of its files: the row ``added by loading``.

* gpt-oss's experts in a kernel's layout. The kernel follows the device: Triton's on Hopper, FlashInfer's on data-centre
  Blackwell, Marlin on the others. Each pads the matrices of an expert to its tiles; biases become float32 but for
  Marlin; and before 0.25 Triton's path keeps the scales of the file beside those that it rearranged.
* Tables of rotary positions, once for all layers. Gemma 3 12B has one of 131,072 positions and one of eight times as
  many, for its scaled layers: 576 MiB.
* A vocabulary in whole steps of 64.
* Quantised latent projections in 16 bits beside the quantised ones (MLA), a kernel's workspace, and which tokens an
  indexer chose, once for all layers: with GLM 5.2 and steps of 8,192 tokens 64 MiB.
* What PyTorch's allocator rounds: it takes memory of 10 MiB and more in steps of 2 MiB, and gives back what is left
  of a step where that is more than 1 MiB. Qwen2.5 7B's gate and up are 259 MiB, and take 260.

Source: vllm 0.14.0, 0.15.0, 0.16.0, 0.17.0, 0.19.0, 0.21.0 to 0.28.0, 0.31.0 and 0.33.0,
model_executor/layers/fused_moe/oracle/mxfp4.py (select_mxfp4_moe_backend,
mxfp4_round_up_hidden_size_and_intermediate_size, convert_gpt_oss_weight_to_mxfp4_moe_kernel_format; before 0.18
model_executor/layers/quantization/mxfp4.py), third_party/triton_kernels/tensor_details/layout_details/hopper_value.py
and hopper_scale.py; model_executor/layers/rotary_embedding, model_executor/layers/vocab_parallel_embedding.py,
model_executor/layers/attention/mla_attention.py (process_weights_after_loading),
v1/attention/backends/mla/flashinfer_mla.py; torch 2.9 c10/cuda/CUDACachingAllocator.cpp (get_allocation_size,
should_split). Printed by 0.19.0 on an H100: gpt-oss-20b 13.64 GiB, Gemma 3 12B 23.31, Qwen2.5 7B 14.25.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from kvcalc.derivation import Derivation
from kvcalc.device import Device
from kvcalc.units import round_up
from kvcalc.weights import Stored, device_shape, largest_stage, placed
from kvcalc.widths import Widths

if TYPE_CHECKING:
    from kvcalc.setup import Setup

_MIB = 2**20
#: The first versions that: pad values to tiles of 64 bytes; no longer do; drop the file's scales; pad groups to fours;
#: pad the intermediate width to 128 in FlashInfer's layout, and not to 256.
_PADS_VALUES, _PADS_NO_VALUES, _DROPS_SCALES, _PADS_GROUPS, _PADS_LESS = (0, 17), (0, 22), (0, 25), (0, 26), (0, 27)
#: The first versions without a workspace of 128 MiB for latents from the start, and whose tables for images and films
#: are as long as the context, not four times as long.
_NO_WORKSPACE, _SHORT_TABLES = (0, 25), (0, 32)
#: Tokens that an indexer of latents chooses (index_topk of DeepSeek V3.2 and GLM 5).
_CHOSEN = 2048
#: Where these rules change.
CHANGES = (_PADS_VALUES, _PADS_NO_VALUES, _DROPS_SCALES, _PADS_GROUPS, _PADS_LESS, _SHORT_TABLES)

#: Models whose tables are four times as long as the context (MRotaryEmbedding); the last ones until 0.32.
_MROPE_MODELS = frozenset({"qwen2_vl", "qwen2_5_vl"})
_MROPE_MODELS_ONCE = frozenset({"qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"})
#: Models whose tables stay float32 (models/gpt_oss.py:114).
_FLOAT32_TABLES = frozenset({"gpt_oss"})
#: Projections that one matrix of vLLM holds, by the last word of their roles.
_FUSED = {
    "q_proj": "qkv",
    "k_proj": "qkv",
    "v_proj": "qkv",
    "gate_proj": "gate_up",
    "up_proj": "gate_up",
    "q_a_proj": "qkv_a",
    "kv_a_proj_with_mqa": "qkv_a",
}


def loading(setup: Setup, version: tuple[int, int], device: Device, step_tokens: int) -> Derivation:
    """What one device holds beside its part of the files, by cause; it ends with ``loading_bytes``.

    >>> from kvcalc.setup import prepare
    >>> from kvcalc.sources.devices import load_device
    >>> qwen, device = prepare("qwen2.5-7b", engine="vllm"), load_device("h100-80gb")
    >>> loading(qwen, (0, 19), device, 8192)["allocator_bytes"] // 2**20
    57
    """
    model, tp = setup.architecture, setup.tensor_parallel_size
    served = model.model_type == "gpt_oss" and device.platform == "cuda" and not device.unified
    kernel = served and setup.weights.dtype == "mxfp4"
    stages = placed(setup.served, setup.weights_dtype, setup.engine.stages(setup.served), setup.held)
    held = [each for each in largest_stage(stages, tp) if not (kernel and each.tensor.part == "experts")]
    work = mxfp4_loading(version, Widths(model), tp, device) if kernel else Derivation()
    terms = ["experts_bytes"] if kernel else []

    def add(name: str, meaning: str, formula: str, source: str) -> None:
        if formula != "0":
            work.let(name, meaning, formula, "bytes", source)
            terms.append(name)

    add("towers_bytes", "a preset's encoders of images and sound", str(setup.tower_bytes), "")
    element = 4 if model.model_type in _FLOAT32_TABLES or setup.weights_dtype == "float32" else 2
    longer = model.model_type in _MROPE_MODELS or (model.model_type in _MROPE_MODELS_ONCE and version < _SHORT_TABLES)
    times = "4 * " if longer else ""
    tables = [f"{times}{positions} * {width} * {element}" for positions, width in model.rotary_tables]
    meaning = "tables of rotary positions: positions x numbers of each"
    add("rotary_bytes", meaning, " + ".join(tables) or "0", "model_executor/layers/rotary_embedding")
    add("vocabulary_bytes", "a vocabulary in whole steps of 64", _vocabulary(held, tp), "vocab_parallel_embedding.py")
    if model.has_latents:
        add("latent_bytes", "quantised kv_b_proj, held in 16 bits too", _latents(held, tp), "mla_attention.py")
        if version < _NO_WORKSPACE and not model.has_sparse_latents:
            add("workspace_bytes", "FlashInfer's workspace", f"{128 * _MIB}", "mla/flashinfer_mla.py")
    if model.has_sparse_latents:
        work.let("max_num_batched_tokens", "tokens of one step", str(step_tokens), "tokens", "max_num_batched_tokens")
        meaning = "which tokens the indexer chose: index_topk numbers of 4 bytes for each of a step"
        add("chosen_bytes", meaning, f"max_num_batched_tokens * {_CHOSEN} * 4", "models/deepseek_v2.py:1442")
    add("allocator_bytes", "what PyTorch's allocator rounds up", _rounded(held, tp), "CUDACachingAllocator.cpp")
    work.let("loading_bytes", "what loading adds", " + ".join(terms) or "0", "bytes")
    return work


def _sum(terms: Counter[int]) -> str:
    return " + ".join(f"{count} * {size}" for size, count in terms.items() if size) or "0"


def _vocabulary(held: list[Stored], tp: int) -> str:
    """The rows by which the embedding and the head grow, each of their own format."""
    terms: Counter[int] = Counter()
    for each in held:
        if each.tensor.role in ("embed_tokens", "lm_head"):
            rows, columns = device_shape(each.tensor, tp)
            padded = round_up(each.tensor.rows, 64) // tp
            terms[max(0, each.packing.bytes(padded, columns) - each.packing.bytes(rows, columns))] += each.count
    return _sum(terms)


def _latents(held: list[Stored], tp: int) -> str:
    terms: Counter[int] = Counter()
    for each in held:
        if each.tensor.role.endswith("kv_b_proj") and each.packing.number_bytes(1, 16) not in (0, 32):
            rows, columns = device_shape(each.tensor, tp)
            terms[2 * rows * columns] += each.count
    return _sum(terms)


def _rounded(held: list[Stored], tp: int) -> str:
    """What the matrices take beyond their size, those together that vLLM holds as one."""
    sizes: Counter[tuple[int | None, str, int]] = Counter()
    for each in held:
        shape = device_shape(each.tensor, tp)
        module, _, word = each.tensor.role.rpartition(".")
        numbers = each.packing.number_bytes(*shape) or each.packing.bytes(*shape)
        name = f"{module}.{_FUSED.get(word, word)}"
        sizes[each.layer, name, each.count] += each.tensor.count * numbers
    terms: Counter[int] = Counter()
    for (_, _, count), size in sizes.items():
        terms[allocated(size) - size] += count
    return _sum(terms)


def allocated(size: int) -> int:
    """The bytes that PyTorch's allocator counts for a tensor of 10 MiB or more.

    >>> [allocated(size * 2**20 // 2) / 2**20 for size in (518, 63, 45)]  # 259 MiB, 31.5 MiB, 22.5 MiB
    [260.0, 32.0, 22.5]
    """
    step = round_up(size, 2 * _MIB)
    return step if size >= 10 * _MIB and step - size <= _MIB else size


def mxfp4_loading(version: tuple[int, int], widths: Widths, tensor_parallel_size: int, device: Device) -> Derivation:
    """What one CUDA device holds of gpt-oss's experts, less their part of the file: ``experts_bytes``.

    >>> from kvcalc.sources.devices import load_device
    >>> from kvcalc.sources.resolve import load
    >>> experts = Widths(load("gpt-oss-20b"))
    >>> mxfp4_loading((0, 19), experts, 1, load_device("h100-80gb"))["experts_bytes"]  # 1,100,160 for each of 768
    844922880
    """
    work = Derivation()
    for name in ("hopper", "blackwell"):
        work.let(name, f"1 on {name.capitalize()}, else 0", str(device.inputs[name]))
    experts = widths.num_experts * widths.architecture.num_layers
    work.let("tp", "devices that share every layer", str(tensor_parallel_size), "devices")
    work.let("H", "hidden size", str(widths.hidden))
    work.let("width", "of one expert, on one device", f"ceil_div({widths.expert_intermediate}, tp)")
    _work_triton(work, version)
    _work_padded(work, version)
    held = "on_hopper if hopper else elsewhere"
    work.let("expert_held", "one expert as the device's kernel has it", held, "bytes", "fused_moe/oracle/mxfp4.py")
    file = "3 * width * H * 17 // 32 + 2 * (2 * width + H)"
    work.let("expert_file", "the same in the file: 4 bits a number, a scale for 32, biases", file, "bytes")
    work.let("experts_bytes", "what their layout adds", f"{experts} * (expert_held - expert_file)", "bytes")
    return work


def _work_triton(work: Derivation, version: tuple[int, int]) -> None:
    """Triton's layout: rows of scales in 256, and in some versions values in tiles of 64 bytes."""
    tile = 64 if _PADS_VALUES <= version < _PADS_NO_VALUES else 1
    groups = 4 if version >= _PADS_GROUPS else 2
    work.let("stepped", "that width in whole steps of 64", "round_up(width, 64)")
    values = f"2 * stepped * round_up(H // 2, {tile}) + round_up(H, {tile}) * round_up(stepped // 2, {tile})"
    work.let("values", "on Hopper, values", values, "bytes", "triton_kernels hopper_value.py")
    scales = f"round_up(2 * stepped, 256) * round_up(H // 32, {groups})"
    scales += f" + round_up(H, 256) * round_up(stepped // 32, {groups})"
    work.let("scales", "on Hopper, scales", scales, "bytes", "triton_kernels hopper_scale.py")
    kept = "3 * stepped * H // 32" if version < _DROPS_SCALES else "0"
    work.let("kept", "on Hopper, the file's scales, which stay beside them", kept, "bytes")
    work.let("on_hopper", "and biases in float32", "values + scales + kept + 4 * (2 * stepped + H)", "bytes")


def _work_padded(work: Derivation, version: tuple[int, int]) -> None:
    """Marlin's and FlashInfer's layouts: both widths in whole steps."""
    step = 128 if version >= _PADS_LESS else 256
    work.let("padded", "that width in whole steps", f"round_up(width, {step} if blackwell else 128)")
    work.let("rows", "hidden size in whole steps of 256", "round_up(H, 256)")
    biases = "(4 if blackwell else 2) * (2 * padded + rows)"
    work.let("elsewhere", "values, scales and biases", f"3 * padded * rows * 17 // 32 + {biases}", "bytes")
