"""Every option of every engine: its default, and the last values on both sides of its range."""

from __future__ import annotations

from typing import Any

import pytest

from kvcalc.engines import REGISTRY, engine_class, make_engine
from kvcalc.errors import InputError, KVCalcError
from kvcalc.page.offers import Offer

TOKENS = 2**40  # more than any model has, and quick to compute with

#: Engine -> option -> (default, smallest, largest, refused below, refused above).
NUMBERS: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama.cpp": {
        "n_batch": (2048, 1, TOKENS, 0, TOKENS + 1),
        "n_ubatch": (512, 0, TOKENS, -1, TOKENS + 1),
        "n_ctx": (None, 1, TOKENS, 0, TOKENS + 1),
        "n_seq_max": (None, 1, 256, 0, 257),
        "n_rs_seq": (0, 0, 1024, -1, 1025),
        "n_outputs_max": (None, 1, TOKENS, 0, TOKENS + 1),
        "n_gpu_layers": (None, 0, 10_000, -1, 10_001),
    },
    "ollama": {
        "num_parallel": (None, 1, 256, 0, 257),
        "num_batch": (None, 1, TOKENS, 0, TOKENS + 1),
        "draft_num_predict": (4, 0, 1024, -1, 1025),
    },
    "vllm": {
        "block_size": (16, 1, TOKENS, 0, TOKENS + 1),
        "max_num_batched_tokens": (8192, 1, TOKENS, 0, TOKENS + 1),
        "max_num_seqs": (256, 1, TOKENS, 0, TOKENS + 1),
        "pipeline_parallel_size": (1, 1, 10_000, 0, 10_001),
        "num_gpu_blocks_override": (None, 1, TOKENS, 0, TOKENS + 1),
        "num_speculative_tokens": (0, 0, 1024, -1, 1025),
        "decode_context_parallel_size": (1, 1, 10_000, 0, 10_001),
        "prefill_context_parallel_size": (1, 1, 10_000, 0, 10_001),
    },
    "sglang": {
        "page_size": (1, 1, 2**20, 0, 2**20 + 1),
        "swa_full_tokens_ratio": (0.8, 1e-6, 1, 0.9e-6, 1.000001),
        "max_running_requests": (None, 1, 2**30, 0, 2**30 + 1),
        "chunked_prefill_size": (8192, -1, 2**30, -2, 2**30 + 1),
        "max_mamba_cache_size": (None, 1, 2**30, 0, 2**30 + 1),
        "speculative_num_steps": (None, 1, 1024, 0, 1025),
        "speculative_eagle_topk": (None, 1, 64, 0, 65),
        "speculative_num_draft_tokens": (None, 1, 1024, 0, 1025),
        "dp_size": (1, 1, 2**16, 0, 2**16 + 1),
        "attn_cp_size": (1, 1, 2**16, 0, 2**16 + 1),
        "dcp_size": (1, 1, 2**16, 0, 2**16 + 1),
        "cuda_graph_max_bs_decode": (None, 1, 2**20, 0, 2**20 + 1),
        "mamba_full_memory_ratio": (0.9, 1e-6, 100, 0, 100.1),
    },
    "tensorrt-llm": {
        "tokens_per_block": (32, 1, 2**20, 0, 2**20 + 1),
        "free_gpu_memory_fraction": (None, 1e-6, 0.999, 0.9e-6, 1),
        "max_batch_size": (None, 1, 2**20, 0, 2**20 + 1),
        "cross_kv_cache_fraction": (None, 0.001, 0.999, 0, 1),
    },
    "lmdeploy": {
        "cache_block_seq_len": (64, 1, 2**20, 0, 2**20 + 1),
        "cache_max_entry_count": (0.8, 0.001, 0.999, 0, 1),
        "max_batch_size": (128, 1, 2**20, 0, 2**20 + 1),
        "max_prefill_token_num": (8192, 1, 2**30, 0, 2**30 + 1),
    },
    "transformers": {
        "prefill_chunk": (None, 1, TOKENS, 0, TOKENS + 1),
        "q_group_size": (64, 8, TOKENS, 7, TOKENS + 1),
        "residual_length": (128, 1, TOKENS, 0, TOKENS + 1),
    },
    "mlx-lm": {
        "prefill_step_size": (2048, 1, TOKENS, 0, TOKENS + 1),
        "decode_tokens": (1, 0, TOKENS, -1, TOKENS + 1),
        "max_kv_size": (None, 5, TOKENS, 4, TOKENS + 1),
        "quantized_kv_start": (0, 0, TOKENS, -1, TOKENS + 1),
    },
}
#: Engine -> option -> (default, other values that it takes, refused).
CHOICES: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama.cpp": {
        "kv_unified": (False, (True,), (2,)),
        "swa_full": (False, (True,), (2,)),
        "flash_attn": (True, (False,), (2,)),
        "mla": (True, (False,), (2,)),
        "cache_type_k_draft": ("f16", ("q8_0",), ("q9",)),
        "cache_type_v_draft": ("f16", ("bf16",), ("q9",)),
        "tensor_split": (None, ("3,1", (1.0, 2.5)), ((), "0,0", "a")),
        "program": ("llama-cli", ("llama-server",), ("llama-bench",)),
        "version": ("b11739", ("0c1e57098", "0ce8cd114", "b10488"), ("latest", "b12")),
    },
    "ollama": {"version": ("fb30760996", ("0.12.6", "v0.6.3", "0.20"), ("1.0", "latest"))},
    "vllm": {
        "async_scheduling": (True, (False,), (2,)),
        "disable_hybrid_kv_cache_manager": (False, (True,), (2,)),
        "enable_prefix_caching": (False, (True,), (2,)),
        "mamba_cache_dtype": ("auto", ("float32", "float16", "bfloat16"), ("fp8", 2)),
        "mamba_ssm_cache_dtype": ("auto", ("float32", "float16", "bfloat16"), ("fp8", 2)),
        "enforce_eager": (False, (True,), (2,)),
        "version": (
            "0.33.0",
            ("0.10.2", "0.11", "0.18.0", "0.20.2rc1.dev9+g01d4d1ad3", "v0.25.1", "0.34.0", "1.0"),
            ("latest", "0", "0.33.0.1", "1234.0", "0.33.0 or so"),
        ),
        "indexer_kv_dtype": ("auto", ("bf16", "fp8", "mxfp4"), ("fp4", 8)),
        "gdn_prefill_backend": ("triton", ("flashinfer",), ("cutedsl", 2)),
    },
    "sglang": {
        "enable_dp_attention": (False, (True,), (2,)),
        "enable_dp_lm_head": (False, (True,), (2,)),
        "enable_deepseek_v4_fp4_indexer": (False, (True,), (2,)),
        "dsa_prefill_backend": (None, ("trtllm", "flashmla_sparse"), ("fp8", 1)),
        "dsa_decode_backend": (None, ("trtllm", "tilelang"), ("fp8", 1)),
        "disable_cuda_graph": (False, (True,), (2,)),
        "speculative_algorithm": (
            "EAGLE",
            ("EAGLE3", "NEXTN", "STANDALONE", "DFLASH", "DSPARK"),
            ("eagle", "NGRAM", 2),
        ),
        "disable_hybrid_swa_memory": (False, (True,), (2,)),
        "disable_radix_cache": (False, (True,), (2,)),
        "mamba_ssm_dtype": ("float32", ("bfloat16", "float16"), ("fp8", 2)),
        "mamba_radix_cache_strategy": ("extra_buffer", ("extra_buffer_lazy", "no_buffer"), ("auto", 2)),
        "disable_overlap_schedule": (False, (True,), (2,)),
        "version": ("0.5.23", (), ("0.5.22",)),
    },
    "lmdeploy": {
        "version": ("0.18.0", (), ("0.17.0",)),
        "backend": ("pytorch", ("turbomind",), ("vllm", 2)),
        "quant_policy": (0, (4, 8, 16, 17), (42, 2)),
    },
    "tensorrt-llm": {
        "version": ("1.4.0rc1", ("0.8", "0.13.0.dev2024082000", "1.2.0rc2"), ("new", "1")),
        "backend": (None, ("pytorch", "tensorrt"), ("autodeploy", 2)),
        "max_attention_window": (
            None,
            ("1", "1024,131072", (1,), (TOKENS,), (4096,) * 1024, 512),
            ((), (0,), (TOKENS + 1,), (4096,) * 1025, "0", True, "a few"),
        ),
        "mamba_ssm_cache_dtype": ("auto", ("float32", "bfloat16", "float16"), ("fp8", 4)),
    },
    "transformers": {
        "cache": (
            "dynamic",
            ("static", "quantized", "offloaded", "offloaded_static", "dynamic_unconfigured", "hybrid"),
            ("paged", 2),
        ),
        "backend": ("quanto", ("hqq", "fp8"), ("gguf", 2)),
        "nbits": (4, (2,), (1, 3, 8, 16)),
        "attn_implementation": ("sdpa", ("eager",), ("flash_attention_2", 2)),
        "version": ("5.24.0", ("5.0", "4.57.1", "5.14.1", "5.23.0", "5.99.0", "5.25.0.dev0"), ("5", "4.57.0.1", "new")),
    },
    "mlx-lm": {
        "version": ("0.32.2", ("0.31.0", "0.33", "1.0.0"), ("0", "new")),
        "kv_bits": (None, (2, 3, 4, 5, 6, 8), (1, 7, 9, 16)),
        "kv_group_size": (64, (32, 128), (31, 33, 96, 129, 256)),
    },
}
RANGES = [(engine, option, *row) for engine, options in NUMBERS.items() for option, row in options.items()]
WORDS = [(engine, option, *row) for engine, options in CHOICES.items() for option, row in options.items()]


@pytest.mark.parametrize("engine", REGISTRY)
def test_every_option_stands_in_these_tables_with_its_default(engine: str) -> None:
    tables = {**NUMBERS.get(engine, {}), **CHOICES.get(engine, {})}
    assert {option.name: option.default for option in engine_class(engine).option_help()} == {
        option: row[0] for option, row in tables.items()
    }


@pytest.mark.parametrize(("engine", "option", "default", "smallest", "largest", "below", "above"), RANGES)
def test_a_number_is_taken_up_to_the_ends_of_its_range(
    engine: str, option: str, default: Any, smallest: Any, largest: Any, below: Any, above: Any
) -> None:
    for value in (smallest, largest):
        assert getattr(make_engine(engine, {option: value}), option) == value
    for value in (below, above, float("nan"), float("inf"), "", "many"):
        with pytest.raises(InputError, match=option):
            make_engine(engine, {option: value})


@pytest.mark.parametrize(("engine", "option", "default", "taken", "refused"), WORDS)
def test_a_choice_is_one_of_those_that_the_engine_has(
    engine: str, option: str, default: Any, taken: tuple[Any, ...], refused: tuple[Any, ...]
) -> None:
    for value in (default, *taken):
        make_engine(engine, {option: value})
    for value in refused:
        with pytest.raises(KVCalcError):
            make_engine(engine, {option: value})


@pytest.mark.parametrize("engine", REGISTRY)
def test_every_value_that_a_page_offers_is_taken_as_a_command_line_writes_it(engine: str) -> None:
    offer = Offer(engine, [])
    for (option, value), (name, text) in zip(offer.picks, offer.exported([])["picks"], strict=True):
        assert option == name
        assert getattr(make_engine(engine, {name: text}), name) == value


@pytest.mark.parametrize("engine", REGISTRY)
def test_every_option_has_its_meaning_in_words(engine: str) -> None:
    assert all(each.description for each in engine_class(engine).option_help())
