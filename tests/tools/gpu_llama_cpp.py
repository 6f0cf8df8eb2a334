"""llama.cpp's compute buffers on a GPU beside kvcalc's: its own allocator, run without memory on a CUDA build.

On a machine with a GPU, nvcc and CMake, in a checkout of llama.cpp at 0c1e57098 (LLAMA names it)::

    cmake -S $LLAMA -B build -DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=native -DLLAMA_BUILD_COMMON=OFF
    cmake --build build --target llama -j
    g++ -std=c++17 -I$LLAMA/include -I$LLAMA/ggml/include -I$LLAMA/src tests/tools/gpu_llama_cpp.cpp \\
        -Lbuild/bin -lllama -lggml -lggml-base -o buffers
    python tests/tools/gpu_llama_cpp.py models > models.txt
    LD_LIBRARY_PATH=build/bin ./buffers < models.txt > buffers.txt
    python tests/tools/gpu_llama_cpp.py compare buffers.txt

Without a GPU, and for a build that no package ships with CUDA, a device of the library's RPC back end has the same
buffers wherever the cache is f16 and no experts' outputs are added up in place (0 bytes of difference in the contexts
of 16 of the 22 models here, 1 % in DeepSeek's). With the libraries of tests/oracles/llama_cpp.py::

    python tests/tools/gpu_llama_cpp.py serve 127.0.0.1:50052 &
    python tests/tools/gpu_llama_cpp.py rpc 127.0.0.1:50052 > buffers.txt

``models`` writes the metadata of some presets and the contexts to make of each; ``compare`` prints how far the formula
of :mod:`kvcalc.engines.llama_cpp.compute` is from the device's part of each, and what lies on the host. ``record``
writes all of them; tests/data/llama_cpp_cuda.json holds a part.
"""

# ruff: noqa: T201 - a table is what it prints
from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import kvcalc
from kvcalc.architecture import Architecture, Full, Latent, Parallel, Shared, Sliding, State, is_local
from kvcalc.derivation import Derivation
from kvcalc.engines.llama_cpp.compute import Graph, compute_buffer
from kvcalc.engines.llama_cpp.models import model_cache
from kvcalc.engines.llama_cpp.plan import ContextParams
from kvcalc.errors import NotModelledError
from kvcalc.setup import prepare
from kvcalc.units import MiB
from kvcalc.widths import Widths

#: Preset -> llama.cpp's name of its architecture, and keys that no width tells.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-3.1-8b": ("llama", {}),
    "llama-3.3-70b": ("llama", {}),
    "qwen3-8b": ("qwen3", {}),
    "qwen3-30b-a3b": ("qwen3moe", {}),
    "gemma-2-27b": ("gemma2", {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}),
    "gemma-3-4b": ("gemma3", {}),
    "gemma-3-27b": ("gemma3", {}),
    "gpt-oss-20b": ("gpt-oss", {}),
    "phi-3.5-mini": ("phi3", {}),
    "command-r7b": ("cohere2", {"logit_scale": 0.25}),
    "olmo-3-7b": ("olmo2", {}),
    "llama-3.2-1b": ("llama", {}),
    "qwen2.5-7b": ("qwen2", {}),
    "qwen3-32b": ("qwen3", {}),
    "qwen3-235b-a22b": ("qwen3moe", {}),
    "gemma-2-9b": ("gemma2", {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}),
    "gemma-3-12b": ("gemma3", {}),
    "gpt-oss-120b": ("gpt-oss", {}),
    "phi-4": ("phi3", {}),
    "mixtral-8x7b": ("llama", {}),
    "mistral-small-3-24b": ("llama", {}),
    "qwen3-next-80b-a3b": ("qwen3next", {}),
    "qwen3.5-9b": ("qwen35", {}),
    "qwen3.5-27b": ("qwen35", {}),
    "qwen3.5-35b-a3b": ("qwen35moe", {}),
    "qwen3.5-122b-a10b": ("qwen35moe", {}),
    "granite-4.0-h-micro": ("granitehybrid", {"expert_count": 0, "expert_used_count": 0}),
    "granite-4.0-h-small": ("granitehybrid", {}),
    "nemotron-nano-9b-v2": ("nemotron_h", {}),
    "nemotron-3-nano-30b-a3b": ("nemotron_h_moe", {}),
    "lfm2-1.2b": ("lfm2", {}),
    "falcon-h1-7b": ("falcon-h1", {}),
    "falcon-h1-34b": ("falcon-h1", {}),
    "kimi-linear-48b-a3b": ("kimi-linear", {"leading_dense_block_count": 1, "kda.head_dim": 128}),
    "gemma-3n-e2b": ("gemma3n", {}),
    "gemma-3n-e4b": ("gemma3n", {}),
    "gemma-4-e2b": ("gemma4", {}),
    "gemma-4-e4b": ("gemma4", {}),
    "gemma-4-31b": ("gemma4", {}),
    "deepseek-v3": ("deepseek2", {"leading_dense_block_count": 3, "expert_shared_count": 1, "expert_gating_func": 2}),
}
#: flash_attn, n_ubatch, n_ctx, n_seq_max, kv_unified, K and V.
CONTEXTS = [
    *product((1, 0), (128, 512, 2048), (4096, 32768), (1, 4), (0,), ("f16",)),
    *product((1,), (512,), (4096, 32768, 131072), (1, 4), (1,), ("f16", "q8_0", "q4_0")),
]


def metadata(name: str) -> dict[str, Any]:
    """A preset's GGUF keys, by the widths that kvcalc knows of it."""
    model = kvcalc.load(name)
    widths, (arch, extra) = Widths(model), MODELS[name]
    keys: dict[str, Any] = {
        "block_count": model.num_layers,
        "context_length": model.max_context or 131072,
        "vocab_size": model.vocab_size,
        "embedding_length": model.hidden_size,
        "feed_forward_length": widths.intermediate or widths.expert_intermediate,
        "attention.head_count": widths.query_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
    }
    for cache, _ in model.caches:
        kind = cache.attention if isinstance(cache, Parallel) else cache
        match kind:
            case Full() | Sliding():
                keys |= {
                    "attention.head_count_kv": kind.num_kv_heads,
                    "attention.key_length": kind.head_dim,
                    "attention.value_length": kind.v_head_dim,
                    "rope.dimension_count": kind.head_dim,
                }
            case Latent():
                keys |= {
                    "attention.head_count": kind.num_heads,
                    "attention.head_count_kv": 1,
                    "attention.q_lora_rank": 1536,
                    "attention.kv_lora_rank": kind.rank,
                    "attention.key_length": kind.rank + kind.rope_dim,
                    "attention.value_length": kind.rank,
                    "attention.key_length_mla": kind.nope_dim + kind.rope_dim,
                    "attention.value_length_mla": kind.v_head_dim,
                    "rope.dimension_count": kind.rope_dim,
                }
    if model.has_states:
        keys = {**ASKED_OF_HYBRIDS, **keys, **_of_states(model)}
    if model.windows:
        keys["attention.sliding_window"] = model.windows[0]
        keys["attention.sliding_window_pattern"] = [is_local(model.layers[at].cache) for at in model.order]
    if arch in ("gemma3n", "gemma4"):
        keys |= _of_gemma(model)
    if widths.num_experts:
        keys |= {
            "expert_count": widths.num_experts,
            "expert_used_count": widths.experts_per_token,
            "expert_feed_forward_length": widths.expert_intermediate,
            "expert_weights_scale": 1.0,
        }
    named = {f"{arch}.{key}": value for key, value in (keys | extra).items()}
    return {"general.architecture": arch, "tokenizer.ggml.model": "no_vocab", **named}


#: What the loader asks of hybrids and no buffer depends on.
ASKED_OF_HYBRIDS: dict[str, Any] = {
    "residual_scale": 1.0,
    "embedding_scale": 1.0,
    "attention.scale": 1.0,
    "logit_scale": 1.0,
    "rope.dimension_sections": [8, 8, 8, 8],
    "expert_shared_count": 1,
    "expert_gating_func": 2,
    "expert_weights_norm": True,
    "full_attention_interval": 4,
}


def _of_gemma(model: Architecture) -> dict[str, Any]:
    """Keys of layers that read another's cache, of two widths of heads, and of per-layer embeddings."""
    ordered = [model.layers[at].cache for at in model.order]
    of = {type(kind): kind for kind in ordered if isinstance(kind, Full | Sliding)}
    local = [isinstance(kind, Sliding) or (isinstance(kind, Shared) and kind.of == "sliding") for kind in ordered]
    wide, near = of[Full], of[Sliding]
    embedded = sum(t.columns for t in model.tensors if t.role == "embed_tokens_per_layer")
    return {
        "attention.key_length": wide.head_dim,
        "attention.value_length": wide.v_head_dim,
        "rope.dimension_count": wide.head_dim,
        "attention.key_length_swa": near.head_dim,
        "attention.value_length_swa": near.v_head_dim,
        "rope.dimension_count_swa": near.head_dim,
        "attention.head_count_kv": [(near if each else wide).num_kv_heads for each in local],
        "attention.sliding_window_pattern": local,
        "attention.shared_kv_layers": sum(isinstance(kind, Shared) for kind in ordered),
        "embedding_length_per_layer_input": embedded // model.num_layers,
        "rope.freq_base_swa": 10000.0,
    }


def _of_states(model: Architecture) -> dict[str, Any]:
    """Keys of a hybrid's states: which layers have them, and their widths by the projections around them."""
    ordered = [model.layers[at] for at in model.order]
    layer = next(each for each in ordered if isinstance(each.cache, State | Parallel))
    state, rows = layer.cache, {tensor.role: tensor for tensor in layer.mixer if tensor.linear}
    state = state.state if isinstance(state, Parallel) else state
    assert isinstance(state, State)
    heads = [each.cache.num_kv_heads if isinstance(each.cache, Full) else 0 for each in ordered]
    dense = [max((t.columns for t in each.rest if t.role.endswith("down_proj")), default=0) for each in ordered]
    keys: dict[str, Any] = {"ssm.conv_kernel": state.conv_kernel, "shortconv.l_cache": state.conv_kernel}
    if "linear_attn.out_proj" in rows:  # values and, as wide as they are together, queries and keys of each group
        inner = rows["linear_attn.out_proj"].columns
        groups, steps = (state.conv_channels - inner) // 256, rows["linear_attn.in_proj_b"].rows
        size = 128
    else:
        if not isinstance(layer.cache, Parallel):
            keys["attention.head_count_kv"] = heads
        if model.has_latents:
            keys["attention.head_count_kv"] = [int(isinstance(each.cache, Latent)) for each in ordered]
        if model.model_type == "nemotron_h":
            keys["feed_forward_length"] = dense
        if not state.groups:
            return keys
        inner, groups, size = rows["mamba.out_proj"].columns, state.groups, state.group_channels // 2
        steps = rows["mamba.in_proj"].rows - 2 * inner - state.groups * state.group_channels
    shared = [t.columns for each in ordered for t in each.rest if "shared" in t.role and t.role.endswith("down_proj")]
    return keys | {
        "ssm.inner_size": inner,
        "ssm.state_size": size,
        "ssm.group_count": groups,
        "ssm.time_step_rank": steps,
        "expert_shared_feed_forward_length": max(shared, default=0),
    }


def lines() -> Iterator[str]:
    """The models and contexts, as gpu_llama_cpp.cpp reads them."""
    for name in MODELS:
        yield f"model {name}"
        for key, value in metadata(name).items():
            yield _line(key, value)
        for flash, ubatch, ctx, seqs, unified, dtype in CONTEXTS:
            yield f"context {flash} {ubatch} {ctx} {seqs} {unified} {dtype} {dtype if flash else 'f16'} {seqs}"


def _line(key: str, value: Any) -> str:
    match value:
        case bool():
            return f"b {key} {int(value)}"
        case int():
            return f"u {key} {value}"
        case float():
            return f"f {key} {value}"
        case str():
            return f"s {key} {value}"
    letter = "o" if isinstance(value[0], bool) else "a"
    return f"{letter} {key} {' '.join(str(int(each)) for each in value)}"


def measured(path: Path) -> list[dict[str, Any]]:
    """Each context with the compute bytes of the device and of the host."""
    found: dict[tuple[str, ...], dict[str, int]] = defaultdict(lambda: {"device": 0, "host": 0})
    for line in path.read_text().splitlines():
        words = line.split()
        if words[-1] == "refused":
            continue
        *question, buffer, _, compute = words
        found[tuple(question)]["host" if "Host" in buffer or "CPU" in buffer else "device"] += int(compute)
    columns = ("model", "flash_attn", "n_ubatch", "n_ctx", "n_seq_max", "kv_unified", "type_k", "type_v")
    rows = []
    for (name, _, *values, _), parts in found.items():
        plain = [int(value) if value.isdecimal() else value for value in values]
        rows.append({**dict(zip(columns, [name, *plain], strict=True)), **parts})
    return rows


def predicted(row: dict[str, Any]) -> int:
    """What kvcalc says of a context's buffer."""
    model, flash = kvcalc.load(row["model"]), bool(row["flash_attn"])
    setup = prepare(
        model,
        engine="llama.cpp",
        kv_cache_dtype=f"{row['type_k']}/{row['type_v']}",
        engine_options={"flash_attn": flash},
    )
    cache = model_cache(model, setup, setup.k_dtype, setup.v_dtype, flash_attn=flash, mla=True)
    params = ContextParams(row["n_ctx"], min(row["n_ubatch"], row["n_ctx"]), row["n_seq_max"], bool(row["kv_unified"]))
    work = Derivation()
    for symbol in ("n_ctx", "n_seq_max", "n_ubatch"):
        work.let(symbol, symbol, str(getattr(params, symbol)))
    compute_buffer(work, cache, Widths(model), Graph(params, flash, None, False, True, flash))
    return work["activation_bytes"]


def compare(path: Path) -> None:
    """Print how far the formula is from the device's part, by model and setting."""
    errors = defaultdict(list)
    for row in measured(path):
        try:
            bytes_ = predicted(row)
        except NotModelledError as error:
            print(f"{row['model']}: {error}")
            continue
        percent = (bytes_ - row["device"]) / row["device"] * 100
        group = "flash" if row["flash_attn"] else "plain"
        errors[row["model"], group, row["type_k"]].append((percent, row, bytes_))
    for (name, group, dtype), each in errors.items():
        percents = sorted(abs(percent) for percent, *_ in each)
        percent, row, bytes_ = max(each, key=lambda found: abs(found[0]))
        print(
            f"{name:16} {group} {dtype:5} n {len(each):3} median {median(percents):6.2f} % most {percent:+7.2f} %",
            end="",
        )
        shown = {key: value for key, value in row.items() if key.startswith(("n_", "kv"))}
        print(f"  {bytes_ / MiB:9.2f} for {row['device'] / MiB:9.2f} MiB, host {row['host'] / MiB:7.2f} {shown}")


def over_rpc(endpoint: str) -> None:
    """Print the buffers of every context on a device of an RPC server, in the words of gpu_llama_cpp.cpp."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
    from llama_cpp import _TYPES, Library
    from llama_cpp_py_sync.rpc import rpc_devices

    library = Library()
    rpc_devices([endpoint])
    for name in MODELS:
        model = library.model(metadata(name), n_gpu_layers=999)
        for flash, ubatch, ctx, seqs, unified, dtype in CONTEXTS:
            if dtype != "f16":  # no RPC server makes room for copies in f16
                continue
            params = {"n_ubatch": ubatch, "n_ctx": ctx, "n_seq_max": seqs, "kv_unified": bool(unified), "n_batch": 2048}
            types = {"type_k": _TYPES[dtype], "type_v": _TYPES[dtype], "n_outputs_max": seqs, "swa_full": False}
            for buffer, memory, compute in library.buffers(model, {**params, **types, "flash_attn_type": flash}):
                print(
                    f"{name} context {flash} {ubatch} {ctx} {seqs} {unified} f16 f16 {seqs} {buffer} {memory} {compute}"
                )


def serve(endpoint: str) -> None:
    """Serve this machine's processor as a device, until the process is stopped."""
    from llama_cpp_py_sync.rpc import start_rpc_server

    start_rpc_server(endpoint, devices=["CPU"])


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["models"]:
            print("\n".join(lines()))
        case ["compare", path]:
            compare(Path(path))
        case ["rpc", endpoint]:
            over_rpc(endpoint)
        case ["serve", endpoint]:
            serve(endpoint)
        case ["record", path]:
            print(json.dumps(measured(Path(path))))
        case _:
            sys.exit(__doc__)
