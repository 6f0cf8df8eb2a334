"""Measure what transformers' DynamicCache takes of a GPU, beside kvcalc's prediction.

    python tests/tools/gpu_transformers.py [--context 32768] [--chunk 4096] [--device cuda|cpu]

Needs kvcalc, torch and transformers 5. Three small models with random weights are built, a prompt is fed in chunks,
and after every chunk everything but the model and the cache is freed: what the CUDA allocator then counts above the
model is the cache. One decode step follows. On the CPU there is no such count, so the storages behind the cached
tensors are summed instead. Exit 1 if a count is off by more than the allocator's 512 bytes a tensor.
"""

# ruff: noqa: T201 - a script that prints its table
from __future__ import annotations

import argparse
import gc
import os
import sys
from typing import Any

# Without this the allocator hands out a block with up to 1 MiB too much instead of splitting it, and counts all of it.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", os.environ["PYTORCH_ALLOC_CONF"])

try:
    import torch
    import transformers
except ImportError as missing:
    sys.exit(f"this benchmark needs torch and transformers 5: {missing}")

from kvcalc.footprints import footprint
from kvcalc.sources.building import build
from kvcalc.sources.spec import AttentionSpec, ModelSpec

ROUNDING = 512  # bytes: the CUDA allocator's smallest block
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "vocab_size": 1024,
    "max_position_embeddings": 1 << 20,
    "pad_token_id": 0,
}


def layer_types(layout: str, num_layers: int) -> list[str]:
    """``5:1`` as transformers writes it, local first."""
    local, global_ = (int(count) for count in layout.split(":"))
    return ["sliding_attention" if i % (local + global_) < local else "full_attention" for i in range(num_layers)]


def models() -> list[tuple[str, str, Any]]:
    """Name, layout and configuration of each model."""
    gemma = transformers.Gemma3TextConfig(
        **SIZES,
        num_hidden_layers=14,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=128,
        sliding_window=512,
        layer_types=layer_types("5:1", 14),
    )
    mistral = transformers.MistralConfig(
        **SIZES, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4, head_dim=64, sliding_window=1000
    )
    gpt_oss = transformers.GptOssConfig(
        **SIZES,
        num_hidden_layers=7,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=64,
        sliding_window=128,
        num_local_experts=4,
        num_experts_per_tok=2,
        layer_types=layer_types("1:1", 7),
    )
    return [
        ("gemma-3-like", "5:1", gemma),
        ("mistral-like", "1:0", mistral),
        ("gpt-oss-like", "1:1", gpt_oss),
    ]


def predicted(layout: str, config: Any, context: int, chunk: int) -> Any:
    """kvcalc's cache for the same layers."""
    spec = ModelSpec(
        name=config.model_type,
        num_layers=config.num_hidden_layers,
        layout=f"{layout}/sw={config.sliding_window}",
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        attention=AttentionSpec(
            num_heads=config.num_attention_heads, num_kv_heads=config.num_key_value_heads, head_dim=config.head_dim
        ),
    )
    options = {"prefill_chunk": chunk}
    return footprint(build(spec), context=context, engine="transformers", engine_options=options).kv_cache


def held(cache: Any, model_bytes: int, device: str) -> int:
    """Bytes that the cache keeps alive, once all else is freed."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        return int(torch.cuda.memory_allocated()) - model_bytes
    storages = {}
    for layer in cache.layers:
        for tensor in (layer.keys, layer.values):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


@torch.inference_mode()
def measured(config: Any, context: int, chunk: int, device: str) -> tuple[int, int]:
    """The most that the cache held after a chunk of the prefill, and what it held after one decode step."""
    model = transformers.AutoModel.from_config(config, dtype=torch.bfloat16).to(device).eval()
    tokens = torch.randint(0, config.vocab_size, (1, context + 1)).to(device)

    def feed(cache: Any, start: int, end: int) -> None:
        model(input_ids=tokens[:, start:end], past_key_values=cache, use_cache=True)

    warm_up = transformers.DynamicCache(config=config)  # the first matrix products leave their workspaces behind
    feed(warm_up, 0, min(chunk, context))
    feed(warm_up, min(chunk, context), min(chunk, context) + 1)
    del warm_up
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
    model_bytes = int(torch.cuda.memory_allocated()) if device == "cuda" else 0
    cache = transformers.DynamicCache(config=config)
    largest = 0
    for start in range(0, context, chunk):
        feed(cache, start, min(start + chunk, context))
        largest = max(largest, held(cache, model_bytes, device))
    feed(cache, context, context + 1)
    return largest, held(cache, model_bytes, device)


def main() -> int:
    """Print the table; 1 if a prediction is off."""
    parser = argparse.ArgumentParser(description="kvcalc's transformers engine beside the CUDA allocator")
    parser.add_argument("--context", type=int, default=32768, help="prompt tokens")
    parser.add_argument("--chunk", type=int, default=4096, help="tokens of a prefill chunk")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no CUDA device here; --device cpu sums the tensors' storages instead")
    where = torch.cuda.get_device_name() if options.device == "cuda" else "CPU, storages summed"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {where}")
    print(f"{options.context:,} tokens in chunks of {options.chunk:,}, then one decode step; bytes\n")
    print(f"{'model':<14}{'after':<10}{'predicted':>14}{'measured':>14}{'difference':>12}{'bound':>8}")
    is_off = False
    for name, layout, config in models():
        prefill, decode = measured(config, options.context, options.chunk, options.device)
        bound = 2 * config.num_hidden_layers * ROUNDING
        rows = (
            ("prefill", predicted(layout, config, options.context, options.chunk).bytes, prefill),
            (
                "decode",
                predicted(layout, config, options.context + 1, options.chunk).steady_bytes,
                decode,
            ),
        )
        for stage, expected, found in rows:
            difference = found - expected
            print(f"{name:<14}{stage:<10}{expected:>14,}{found:>14,}{difference:>12,}{bound:>8,}")
            is_off = is_off or abs(difference) > bound
    return 1 if is_off else 0


if __name__ == "__main__":
    sys.exit(main())
