"""Measure what transformers' caches take of a GPU, beside kvcalc's prediction.

    python tests/tools/gpu_transformers.py [--context 8192] [--chunk 4096] [--batch 1] [--device cuda|cpu] [MODEL ...]

Needs kvcalc, torch and transformers 5. Small models with random weights are built: hybrids, an indexer, layers that
share a cache, compressed ones ...; a prompt is fed in chunks, and after every chunk everything but the model and the
cache is freed: what the CUDA allocator then counts above the model is the cache. One decode step follows. On the CPU
there is no such count, so the storages behind the cached tensors are summed instead. ``--default-allocator`` lets the
allocator hand out blocks with up to 1 MiB too much, as it does by default. Exit 1 if a count is off by more than the
allocator's 512 bytes a tensor.
"""

# ruff: noqa: T201 - a script that prints its table
from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Iterator
from typing import Any

# Without this the allocator hands out a block with up to 1 MiB too much instead of splitting it, and counts all of it:
# of twelve tensors of 3 MiB (gemma-3n-like at batch 3, 1,024 tokens) seven took 4 MiB on an H100.
if "--default-allocator" not in sys.argv:
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", os.environ["PYTORCH_ALLOC_CONF"])

try:
    import torch
    import transformers
except ImportError as missing:
    sys.exit(f"this benchmark needs torch and transformers 5: {missing}")

from kvcalc import read_config
from kvcalc.engines.base import KVCache
from kvcalc.footprints import footprint

ROUNDING = 512  # bytes: the CUDA allocator's smallest block
SIZES = {"hidden_size": 256, "vocab_size": 1024, "max_position_embeddings": 1 << 20, "pad_token_id": 0}
HEADS = {"intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128}
EXPERTS = {"moe_intermediate_size": 256, "num_experts_per_tok": 2}
SPARSE = {
    **EXPERTS,
    "num_hidden_layers": 3,
    "intermediate_size": 512,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "q_lora_rank": 128,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}
LINEAR = {
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}
S, F = "sliding_attention", "full_attention"
#: Name -> configuration class, and its arguments beside SIZES.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma-3-like": (
        "Gemma3TextConfig",
        {**HEADS, "num_hidden_layers": 14, "sliding_window": 512, "layer_types": [S, S, S, S, S, F] * 2 + [S, S]},
    ),
    "mistral-like": ("MistralConfig", {**HEADS, "num_hidden_layers": 6, "sliding_window": 1000}),
    "gpt-oss-like": (
        "GptOssConfig",
        {
            **HEADS,
            "num_hidden_layers": 7,
            "sliding_window": 128,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": [S, F, S, F, S, F, S],
        },
    ),
    # Layers that read another layer's cache.
    "gemma-3n-like": (
        "Gemma3nTextConfig",
        {
            **HEADS,
            "head_dim": 256,
            "num_hidden_layers": 10,
            "num_kv_shared_layers": 4,
            "sliding_window": 512,
            "layer_types": [S, S, S, S, F] * 2,
            "vocab_size_per_layer_input": 1024,
            "hidden_size_per_layer_input": 64,
            "activation_sparsity_pattern": [0.0] * 10,
        },
    ),
    # Hybrids: a gated delta net, and Mamba-2 beside attention in each layer.
    "qwen3-next-like": (
        "Qwen3NextConfig",
        {
            **HEADS,
            **EXPERTS,
            **LINEAR,
            "num_hidden_layers": 4,
            "num_experts": 4,
            "shared_expert_intermediate_size": 256,
        },
    ),
    "falcon-h1-like": (
        "FalconH1Config",
        {
            **HEADS,
            "num_hidden_layers": 3,
            "mamba_d_ssm": 512,
            "mamba_n_heads": 8,
            "mamba_d_head": 64,
            "mamba_d_state": 128,
            "mamba_n_groups": 1,
        },
    ),
    # MLA, with and without an indexer.
    "deepseek-v3-like": ("DeepseekV3Config", SPARSE),
    "glm-5-like": (
        "GlmMoeDsaConfig",
        {**SPARSE, "index_n_heads": 4, "index_head_dim": 128, "index_topk": 256},
    ),
    "deepseek-v4-like": (
        "DeepseekV4Config",
        {
            **EXPERTS,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "head_dim": 512,
            "q_lora_rank": 128,
            "o_groups": 2,
            "o_lora_rank": 64,
            "n_routed_experts": 4,
            "index_n_heads": 4,
            "index_topk": 64,
            "layer_types": [S, "compressed_sparse_attention", "heavily_compressed_attention"],
        },
    ),
    "minimax-m3-like": (
        "MiniMaxM3VLTextConfig",
        {**HEADS, "num_hidden_layers": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
}


def predicted(config: Any, context: int, batch_size: int, chunk: int) -> KVCache:
    """kvcalc's cache for the same configuration."""
    options = {"prefill_chunk": chunk, "version": transformers.__version__}
    model = read_config({**config.to_dict(), "dtype": "bfloat16"})
    return footprint(
        model, context=context, batch_size=batch_size, engine="transformers", engine_options=options
    ).kv_cache


def tensors(kept: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """Every tensor that a cache refers to."""
    if isinstance(kept, torch.Tensor):
        yield kept
    elif id(kept) not in seen and (
        isinstance(kept, dict | list | tuple) or type(kept).__module__.startswith("transformers")
    ):
        seen.add(id(kept))
        inner = kept if isinstance(kept, list | tuple) else (kept if isinstance(kept, dict) else vars(kept)).values()
        for each in inner:
            yield from tensors(each, seen)


def storages(cache: Any) -> dict[int, int]:
    """The storages behind a cache's tensors, counters left out, and their bytes."""
    kept = [each.untyped_storage() for each in tensors(cache, set()) if each.dtype != torch.long]
    return {each.data_ptr(): each.nbytes() for each in kept if each.nbytes()}


def held(cache: Any, model_bytes: int, device: str) -> int:
    """Bytes that the cache keeps alive, once all else is freed."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        return int(torch.cuda.memory_allocated()) - model_bytes
    return sum(storages(cache).values())


@torch.inference_mode()
def measured(config: Any, options: argparse.Namespace) -> tuple[int, int, int]:
    """The most that the cache held after a chunk of the prefill, what after one decode step, and its tensors."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).to(options.device).eval()
    tokens = torch.randint(1, config.vocab_size, (options.batch, options.context + 1)).to(options.device)

    def feed(cache: Any, start: int, end: int) -> None:
        model(input_ids=tokens[:, start:end], past_key_values=cache, use_cache=True, logits_to_keep=1)

    first = min(options.chunk, options.context)
    warm_up = transformers.DynamicCache(config=config)  # the first matrix products leave their workspaces behind
    feed(warm_up, 0, first)
    feed(warm_up, first, first + 1)
    del warm_up
    gc.collect()
    if options.device == "cuda":
        torch.cuda.synchronize()
    model_bytes = int(torch.cuda.memory_allocated()) if options.device == "cuda" else 0
    cache = transformers.DynamicCache(config=config)
    largest = 0
    for start in range(0, options.context, options.chunk):
        feed(cache, start, min(start + options.chunk, options.context))
        largest = max(largest, held(cache, model_bytes, options.device))
    feed(cache, options.context, options.context + 1)
    return largest, held(cache, model_bytes, options.device), len(storages(cache))


def main() -> int:
    """Print the table; 1 if a prediction is off."""
    parser = argparse.ArgumentParser(description="kvcalc's transformers engine beside the CUDA allocator")
    parser.add_argument("models", nargs="*", help=f"of {', '.join(MODELS)} (default: all)")
    parser.add_argument("--context", type=int, default=8192, help="prompt tokens")
    parser.add_argument("--chunk", type=int, default=4096, help="tokens of a prefill chunk")
    parser.add_argument("--batch", type=int, default=1, help="sequences")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--default-allocator", action="store_true", help="blocks of up to 1 MiB more than was asked for"
    )
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no CUDA device here; --device cpu sums the tensors' storages instead")
    where = torch.cuda.get_device_name() if options.device == "cuda" else "CPU, storages summed"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {where}")
    print(f"{options.batch} x {options.context:,} tokens in chunks of {options.chunk:,}, then one decode step; bytes\n")
    print(f"{'model':<18}{'after':<10}{'predicted':>14}{'measured':>14}{'difference':>12}{'bound':>8}", flush=True)
    is_off = False
    for name in options.models or MODELS:
        class_name, arguments = MODELS[name]
        try:
            config = getattr(transformers, class_name)(**SIZES, **arguments)
            prefill, decode, count = measured(config, options)
        except Exception as error:  # a class that this release or this device does not run: the others are measured
            print(f"{name:<18}not run: {type(error).__name__}: {str(error)[:90]}", flush=True)
            continue
        bound = count * ROUNDING
        rows = (
            ("prefill", predicted(config, options.context, options.batch, options.chunk).bytes, prefill),
            ("decode", predicted(config, options.context + 1, options.batch, options.chunk).steady_bytes, decode),
        )
        for stage, expected, found in rows:
            difference = found - expected
            print(f"{name:<18}{stage:<10}{expected:>14,}{found:>14,}{difference:>12,}{bound:>8,}", flush=True)
            is_off = is_off or abs(difference) > bound
    return 1 if is_off else 0


if __name__ == "__main__":
    sys.exit(main())
