"""llama.cpp's compute buffers on a GPU beside kvcalc's: its own allocator, run without memory on a CUDA build.

On a machine with a GPU, nvcc and CMake, in a checkout of llama.cpp at 0c1e57098 (LLAMA names it)::

    cmake -S $LLAMA -B build -DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=native -DLLAMA_BUILD_COMMON=OFF
    cmake --build build --target llama -j
    g++ -std=c++17 -I$LLAMA/include -I$LLAMA/ggml/include -I$LLAMA/src tests/tools/gpu_llama_cpp.cpp \\
        -Lbuild/bin -lllama -lggml -lggml-base -o buffers
    python tests/tools/gpu_llama_cpp.py models > models.txt
    LD_LIBRARY_PATH=build/bin ./buffers < models.txt > buffers.txt
    python tests/tools/gpu_llama_cpp.py compare buffers.txt

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
from kvcalc.architecture import Full, Latent, Sliding, is_local
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
    for kind, _ in model.caches:
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
    if model.windows:
        keys["attention.sliding_window"] = model.windows[0]
        keys["attention.sliding_window_pattern"] = [is_local(model.layers[at].cache) for at in model.order]
    if widths.num_experts:
        keys |= {
            "expert_count": widths.num_experts,
            "expert_used_count": widths.experts_per_token,
            "expert_feed_forward_length": widths.expert_intermediate,
            "expert_weights_scale": 1.0,
        }
    named = {f"{arch}.{key}": value for key, value in (keys | extra).items()}
    return {"general.architecture": arch, "tokenizer.ggml.model": "no_vocab", **named}


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
    compute_buffer(work, cache, Widths(model), Graph(params, flash, None, False, flash and not model.has_latents))
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


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["models"]:
            print("\n".join(lines()))
        case ["compare", path]:
            compare(Path(path))
        case ["record", path]:
            print(json.dumps(measured(Path(path))))
        case _:
            sys.exit(__doc__)
