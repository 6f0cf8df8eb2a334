"""What SGLang sets aside of a device: a rule of its server arguments, not a measurement of what is needed.

``mem_fraction_static`` is the part of the memory that is free before the weights come which weights and pools may take.
Where nobody names it, a reserve in MiB is taken off: 1.5 for each token of a prefill chunk, 2 for each sequence of the
largest decode graph, 8 for each prefill graph, and at least 10 GiB on devices of more than 60.

Source: sglang 0.5.23 arg_groups/memory_hook.py:47 (the rule), arg_groups/cuda_graph_hook.py:170 and :480 (the graphs),
mem_cache/kv_cache_configurator.py:2990 (the budget).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvcalc.derivation import Derivation
from kvcalc.device import Device
from kvcalc.engines.base import WorkingMemory
from kvcalc.errors import NotModelledError
from kvcalc.quantization import VISION
from kvcalc.units import GiB

if TYPE_CHECKING:
    from kvcalc.engines.sglang.engine import SGLang
    from kvcalc.setup import Setup

_RULE = "arg_groups/memory_hook.py:281"
#: From that many MiB on: tokens of a prefill chunk, sequences of the largest decode graph with fewer than four devices,
#: and with more.
_BY_MEMORY = (
    (0, 2048, 8, 8),
    (20 * 1024, 4096, 48, 160),
    (35 * 1024, 4096, 32, 160),
    (60 * 1024, 8192, 256, 512),
    (160 * 1024, 16384, 512, 512),
)
#: Models that see and whose prefill is captured all the same (configs/model_config.py:2501), and models that only read
#: and whose prefill is not: KDA attention, and DeepSeek V4.
_CAPTURED = frozenset(
    "cohere2_vision glm5_next intern_s2_mobius kimi_k25 kimi_k3 minimax_m3 muse_glimmer muse_spark paddleocr_vl "
    "qwen3_5 qwen3_5_moe qwen4_exp".split()
)
_NOT_CAPTURED = frozenset({"deepseek_v4", "kimi_linear", "kimi_k3"})
#: What the device's driver, NCCL and others hold before the weights come, of one device and of several: medians of
#: start-ups, and how far they are off.
_RUNTIME, _RUNTIME_OF_SEVERAL = (6 * GiB // 10, 4 * GiB // 10), (11 * GiB // 10, 6 * GiB // 10)


def chunk_on(memory_bytes: int) -> int:
    """Tokens of a prefill chunk on a device of so much memory.

    >>> [chunk_on(size * GiB) for size in (16, 24, 80, 180)]
    [2048, 4096, 8192, 16384]
    """
    return max(row for row in _BY_MEMORY if memory_bytes >= row[0] * 2**20)[1]


def sglang_working_memory(engine: SGLang, setup: Setup, device: Device) -> WorkingMemory:
    """What SGLang leaves of a CUDA device to activations, graphs and what the driver holds.

    Raises:
        NotModelledError: unified memory, or a device that is not a CUDA device.
    """
    if device.platform != "cuda" or device.unified:
        raise NotModelledError(
            f"what sglang sets aside of {device.title} is not modelled",
            hint="give --mem-fraction-static, and read 'Memory pool end. avail mem' in the log",
        )
    work, tp, chunk = Derivation(), setup.tensor_parallel_size, engine.chunked_prefill_size
    work.let("memory_bytes", "memory of the device", str(device.inputs["memory_bytes"]), "bytes")
    work.let("memory_mib", "the same as nvidia-smi shows it", str(device.inputs["memory_mib"]), "MiB")
    work.let("chunked_prefill_size", "tokens of a prefill chunk", str(max(chunk, 0)), "tokens")
    # Without chunks the largest prefill counts (max_prefill_tokens).
    tokens = "max(chunked_prefill_size, 2048)" if chunk > 0 else "16384"
    work.let("tokens", "tokens whose activations count", tokens, "tokens", _RULE)
    graphs = _work_graphs(work, engine, setup)
    work.let("graph_mib", "its allowance for CUDA graphs", " + ".join(graphs) or "0", "MiB", "memory_hook.py:357")
    reserve = f"max(512 + tokens * 3 // 2 + {tp} * 128 + graph_mib, 10240 if memory_mib > 61440 else 0)"
    work.let("reserve", "its reserve", reserve, "MiB", _RULE)
    fraction = "int((memory_mib - reserve) / memory_mib * 1000 + 0.5) / 1000"
    meaning = "mem_fraction_static: the part that weights and pools may take"
    if setup.sees:
        # 5 % less for an encoder of 24 layers of 1,024, of which each further one takes a tenth; at most 20 % more.
        size = sum(tensor.elements for tensor in setup.architecture.towers if tensor.part == VISION)
        layers = f"{size} / (12 * 24 * 1048576)"
        work.let_float("encoder", "its size beside ViT-L/14's", layers, "", "memory_hook.py:410")
        fraction += " * 0.95 * max(0.8, min(1.05, 1.0 - 0.1 * (encoder - 1.0)))"
    work.let_float("mem_fraction_static", meaning, fraction, "", _RULE)
    runtime, off = _RUNTIME if tp == 1 else _RUNTIME_OF_SEVERAL
    work.let("runtime_bytes", "held before weights come: driver, NCCL", str(runtime), "bytes", "median of start-ups")
    aside = "int((memory_bytes - runtime_bytes) * (1 - mem_fraction_static))"
    work.let("aside", "what it sets aside", aside, "bytes", "kv_cache_configurator.py:3009")
    work.let("graph_bytes", "of it for CUDA graphs", "min(graph_mib * 1048576, aside)", "bytes")
    work.let("activation_bytes", "of it for activations", "aside - graph_bytes", "bytes")
    work.let("share_bytes", "all of it", "activation_bytes + runtime_bytes + graph_bytes", "bytes")
    # The part of an encoder is told by its parameters, not by its layers and their width.
    work.let("band_bytes", "how far it may be off", f"{off} + memory_bytes // 50" if setup.sees else str(off), "bytes")
    chosen = f"mem_fraction_static is {work.values['mem_fraction_static']:.3f}"
    return WorkingMemory.derived(work, (f"{chosen}: sglang sets the rest aside, needed or not",))


def _work_graphs(work: Derivation, engine: SGLang, setup: Setup) -> list[str]:
    """The allowance for graphs, term by term."""
    if engine.disable_cuda_graph:
        return []
    column = 2 if setup.tensor_parallel_size < 4 else 3
    largest = str(_BY_MEMORY[0][column])
    for row in _BY_MEMORY[1:]:
        largest = f"{row[column]} if memory_mib >= {row[0]} else {largest}" if row[column] else largest
    if engine.cuda_graph_max_bs_decode is not None:
        largest = str(engine.cuda_graph_max_bs_decode)
    elif engine.max_running_requests is not None:
        largest = f"min({engine.max_running_requests}, {largest})"
    work.let("G", "sequences of the largest decode graph", largest, "sequences", "memory_hook.py:84")
    terms, groups = ["2 * G"], engine.dp_size
    if groups > 1:
        terms.append(f"3 * G * {groups} + (G * {groups} * 3 // 2 if G > 300 else 0)")
    # In most models a prefill runs in captured pieces (breakable CUDA graphs), where no devices share its tokens.
    kind = setup.architecture.model_type
    captured = kind in _CAPTURED if setup.sees else kind not in _NOT_CAPTURED
    if not captured or max(engine.attn_cp_size, engine.dcp_size) > 1:
        return terms
    if setup.architecture.has_latents:
        return [*terms, "1536"]
    sizes = "min(C // 4, 8) + max(0, min((C - 32) // 16, 14)) + max(0, min((C - 256) // 32, 8))"
    sizes += " + max(0, min((C - 512) // 64, 8)) + max(0, min((C - 1024) // 256, 12)) + max(0, (C - 4096) // 512)"
    work.let("prefills", "prefill graphs", sizes.replace("C", "chunked_prefill_size"), "", "cuda_graph_hook.py:480")
    return [*terms, "8 * prefills"]
