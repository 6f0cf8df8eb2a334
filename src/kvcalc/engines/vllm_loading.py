"""What vLLM adds to weights when it loads them: gpt-oss's experts in a kernel's layout, and what stays beside.

The kernel follows the device: Triton's on Hopper, FlashInfer's on data-centre Blackwell, Marlin on the others. Each
pads the matrices of an expert to its tiles; biases become float32 but for Marlin; and before 0.25 Triton's path keeps
the scales of the file beside those that it rearranged.

Source: vllm 0.14.0, 0.15.0, 0.16.0, 0.17.0, 0.19.0, 0.21.0 to 0.28.0, 0.31.0 and 0.33.0,
model_executor/layers/fused_moe/oracle/mxfp4.py (select_mxfp4_moe_backend,
mxfp4_round_up_hidden_size_and_intermediate_size, convert_gpt_oss_weight_to_mxfp4_moe_kernel_format; before 0.18
model_executor/layers/quantization/mxfp4.py), third_party/triton_kernels/tensor_details/layout_details/hopper_value.py
and hopper_scale.py. Printed by 0.19.0 on an H100 for gpt-oss-20b: 13.64 GiB; the file and this: 13.60.
"""

from __future__ import annotations

from kvcalc.derivation import Derivation
from kvcalc.device import Device
from kvcalc.widths import Widths

#: The first versions that: pad values to tiles of 64 bytes; no longer do; drop the file's scales; pad groups to fours;
#: pad the intermediate width to 128 in FlashInfer's layout, and not to 256.
_PADS_VALUES, _PADS_NO_VALUES, _DROPS_SCALES, _PADS_GROUPS, _PADS_LESS = (0, 17), (0, 22), (0, 25), (0, 26), (0, 27)
#: Where these rules change.
CHANGES = (_PADS_VALUES, _PADS_NO_VALUES, _DROPS_SCALES, _PADS_GROUPS, _PADS_LESS)


def mxfp4_loading(version: tuple[int, int], widths: Widths, tensor_parallel_size: int, device: Device) -> Derivation:
    """What one CUDA device holds of gpt-oss's experts, less their part of the file: ``loading_bytes``.

    >>> from kvcalc.sources.devices import load_device
    >>> from kvcalc.sources.resolve import load
    >>> experts = Widths(load("gpt-oss-20b"))
    >>> mxfp4_loading((0, 19), experts, 1, load_device("h100-80gb"))["loading_bytes"]  # 1,100,160 for each of 768
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
    work.let("loading_bytes", "what loading adds", f"{experts} * (expert_held - expert_file)", "bytes")
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
