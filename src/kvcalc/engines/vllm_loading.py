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

#: The first versions that: pad values to tiles of 64 bytes; no longer do; drop the file's scales; pad groups to fours.
_PADS_VALUES, _PADS_NO_VALUES, _DROPS_SCALES, _PADS_GROUPS = (0, 17), (0, 22), (0, 25), (0, 26)
#: The first version whose FlashInfer layout pads the intermediate width to 128 and not to 256.
_PADS_LESS = (0, 27)
_FILE = "E * (3 * I * H * 17 // 32 + 2 * (2 * I + H))"


def mxfp4_loading(version: tuple[int, int], widths: Widths, tensor_parallel_size: int, device: Device) -> Derivation:
    """What one device holds of gpt-oss's experts, less their part of the file: ``loading_bytes``.

    >>> from kvcalc.sources.devices import load_device
    >>> from kvcalc.sources.resolve import load
    >>> experts = Widths(load("gpt-oss-20b"))
    >>> mxfp4_loading((0, 19), experts, 1, load_device("h100-80gb"))["loading_bytes"]  # 1,100,160 for each of 768
    844922880
    """
    work = Derivation()
    experts = widths.num_experts * widths.architecture.num_layers
    work.let("E", "experts of all layers", str(experts))
    work.let("tp", "devices that share every layer", str(tensor_parallel_size), "devices")
    work.let("H", "hidden size", str(widths.hidden))
    work.let("I", "width of one expert, on one device", f"ceil_div({widths.expert_intermediate}, tp)")
    major = (device.compute_capability or "").partition(".")[0]
    held = _on_hopper(work, version) if major == "9" else _padded(work, version, major == "10")
    work.let("held", "experts as the kernel has them", held, "bytes", "fused_moe/oracle/mxfp4.py")
    work.let("file", "the same in the file: 4 bits a number, a scale for 32, biases", _FILE, "bytes")
    work.let("loading_bytes", "what loading adds", "held - file", "bytes")
    return work


def _on_hopper(work: Derivation, version: tuple[int, int]) -> str:
    """Triton's layout: rows of scales in 256, and in some versions values in tiles of 64 bytes."""
    tile = 64 if _PADS_VALUES <= version < _PADS_NO_VALUES else 1
    groups = 4 if version >= _PADS_GROUPS else 2
    work.let("Ip", "that width in whole steps of 64", "round_up(I, 64)")
    work.let(
        "values",
        "values of one expert",
        f"2 * Ip * round_up(H // 2, {tile}) + round_up(H, {tile}) * round_up(Ip // 2, {tile})",
        "bytes",
        "triton_kernels hopper_value.py",
    )
    work.let(
        "scales",
        "scales of one expert",
        f"round_up(2 * Ip, 256) * round_up(H // 32, {groups}) + round_up(H, 256) * round_up(Ip // 32, {groups})",
        "bytes",
        "triton_kernels hopper_scale.py",
    )
    kept = "3 * Ip * H // 32" if version < _DROPS_SCALES else "0"
    work.let("kept", "the file's scales, which stay beside them", kept, "bytes")
    return "E * (values + scales + kept + 4 * (2 * Ip + H))"


def _padded(work: Derivation, version: tuple[int, int], flashinfer: bool) -> str:
    """Marlin's and FlashInfer's layouts: both widths in whole steps."""
    step = 256 if flashinfer and version < _PADS_LESS else 128
    work.let("Ip", f"that width in whole steps of {step}", f"round_up(I, {step})")
    work.let("Hp", "hidden size in whole steps of 256", "round_up(H, 256)")
    bias_bytes = 4 if flashinfer else 2
    return f"E * (3 * Ip * Hp * 17 // 32 + {bias_bytes} * (2 * Ip + Hp))"
