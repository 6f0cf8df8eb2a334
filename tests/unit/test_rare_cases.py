"""Cases that few models reach, each against a figure counted by hand or the words of its refusal."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

import kvcalc
from kvcalc.dtypes import DTYPES, parse_dtype
from kvcalc.engines.ollama import estimated_kv_bytes
from kvcalc.engines.vllm import Vllm
from kvcalc.engines.vllm.groups import _unified
from kvcalc.engines.vllm.specs import Spec
from kvcalc.fitting import Memory, frontier
from kvcalc.levers import _with_option
from kvcalc.setup import prepare
from kvcalc.sources.devices import find_device
from kvcalc.units import GiB


def test_a_dtype_that_is_no_text_is_refused() -> None:
    with pytest.raises(kvcalc.InputError, match="a dtype is a name such as 'bf16', not 3"):
        parse_dtype(3)  # type: ignore[arg-type]


def test_a_working_memory_shows_its_parts() -> None:
    llama = kvcalc.load("llama-3.1-8b")
    shown = repr(kvcalc.working_memory(llama, device="h100-80gb", engine="vllm"))
    assert shown.startswith("<1.89 GiB activations + 256.00 MiB runtime + ")


def test_the_sampler_before_vllm_0_17_sorts_and_takes_more() -> None:
    llama = kvcalc.load("llama-3.1-8b")

    def rows(version: str) -> tuple[int, bool]:
        options = {"version": version, "max_num_seqs": 1024}
        working = kvcalc.working_memory(llama, device="h100-80gb", engine="vllm", engine_options=options)
        return working.activation_bytes, any(each.symbol == "rows" for each in working.quantities)

    sorted_bytes, has_buffer = rows("0.14.0")
    fused_bytes, has_rows = rows("0.17.0")
    assert sorted_bytes > fused_bytes
    assert (has_buffer, has_rows) == (False, True)


def test_projections_in_one_matrix_widen_the_band() -> None:
    def relative_band(name: str) -> float:
        working = kvcalc.working_memory(kvcalc.load(name), device="h100-80gb", engine="transformers", context=65536)
        return working.band_bytes / working.activation_bytes

    assert relative_band("phi-3-mini-4k") > 0.2 > relative_band("llama-3.1-8b")


def test_working_memory_without_a_context_is_that_of_the_longest() -> None:
    asked = partial(kvcalc.working_memory, kvcalc.load("phi-3-mini-4k"), device="h100-80gb", engine="transformers")
    assert asked() == asked(context=4096) != asked(context=2048)


def test_a_pool_whose_working_memory_nobody_models_says_what_to_do() -> None:
    setup = prepare(kvcalc.load("gemma-3-1b"), engine="tensorrt-llm")
    pool = Memory(device=find_device("h200", None)).pool(setup, 8192, 1)
    assert pool.advice.startswith("leave a tenth of the device free with --reserve")


def test_ollama_expects_two_latents_and_a_rope_part_per_token() -> None:
    model = kvcalc.load("deepseek-v2-lite")
    width = 512 + 64 + 512
    assert estimated_kv_bytes(model, DTYPES["float16"], 4096, 1, 512) == 27 * width * 4096 * 2


def test_ollama_expects_a_cache_of_layers_that_share_one() -> None:
    model = kvcalc.load("gemma-3n-e2b")
    assert estimated_kv_bytes(model, DTYPES["float16"], 4096, 1, 512) == 30 * 2 * (256 + 256) * 4096 * 2


def test_ollama_expects_states_in_float32_at_every_context() -> None:
    model = kvcalc.load("nemotron-nano-9b-v2")
    short, long = (estimated_kv_bytes(model, DTYPES["float16"], n_ctx, 1, 512) for n_ctx in (4096, 8192))
    attention = long - short
    assert attention == 4 * 8 * (128 + 128) * 4096 * 2
    states = short - attention
    # 27 Mamba-2 layers: 128 heads of 80 by 128 numbers, and 3 columns of 10,240 + 2 * 8 * 128 channels.
    assert states == 27 * 4 * (128 * 80 * 128 + 3 * (10240 + 2 * 8 * 128))


def test_states_of_a_float32_model_are_taken_as_vllm_runs_it() -> None:
    model = replace(kvcalc.load("nemotron-nano-9b-v2"), dtype="float32")
    notes = kvcalc.footprint(model, context=4096, engine="vllm").notes
    assert any("in which vllm runs float32 models" in note for note in notes)


@pytest.mark.parametrize("name", ["glm-5", "minimax-m3"])
def test_index_keys_in_bfloat16_take_two_bytes_a_number(name: str) -> None:
    def kv_bytes(dtype: str) -> int:
        options = {"indexer_kv_dtype": dtype}
        return kvcalc.footprint(kvcalc.load(name), context=65536, engine="vllm", engine_options=options).kv_cache.bytes

    assert kv_bytes("bf16") > kv_bytes("fp8")


def test_the_frontier_of_no_memory_is_empty() -> None:
    setup = prepare(kvcalc.load("llama-3.1-8b"), engine="vllm")
    assert frontier(setup, Memory(kv_memory=1)) == ([], [])


def test_the_frontier_of_a_bounded_cache_has_no_longest_context() -> None:
    setup = prepare(kvcalc.load("mistral-7b-v0.1"))
    at_contexts, at_batches = frontier(setup, Memory(kv_memory=GiB))
    assert at_contexts
    assert all(point.required_kv_memory <= GiB for point in [*at_contexts, *at_batches])
    assert frontier(setup, Memory(kv_memory=2**50))[1] == []


def test_compressed_layers_in_float16_are_refused() -> None:
    with pytest.raises(kvcalc.UnsupportedError, match="no compressed layers in float16"):
        kvcalc.footprint(kvcalc.load("deepseek-v4-flash"), context=4096, engine="vllm", kv_cache_dtype="fp16")


def test_an_option_that_the_engine_refuses_is_no_lever() -> None:
    setup = prepare(kvcalc.load("llama-3.1-8b"), engine="vllm")
    assert _with_option(setup, "max_num_seqs", -1) is None


def test_cross_attention_shows_the_blocks_of_its_encoders_tokens() -> None:
    setup = prepare(kvcalc.load("t5gemma-2b-2b"), engine="vllm", encoder_tokens=700)
    formulas = {each.formula: each.value for each in setup.plan.explain(448, 2)}
    # ceil(700 / 16) = 44 blocks for each of two sequences; ceil(8192 / 16) = 512 are planned for one step.
    assert formulas["max(ceil_div(max_num_batched_tokens, 16), B * 44)"] == 512


def test_a_model_of_four_layers_has_none_in_turboquant_and_its_blocks_all_the_same() -> None:
    small = replace(kvcalc.load("llama-3.1-8b"), order=(0,) * 4)
    packed = kvcalc.footprint(small, context=4096, engine="vllm", kv_cache_dtype="turboquant_k8v4").kv_cache
    # 48 packed tokens of 8 x 196 bytes, 3 x 16, cover 16 of 4,096 bytes in bfloat16: ceil(4096 / 48) = 86 blocks.
    assert packed.bytes == 86 * 48 * 4 * 4096


def test_a_prediction_layer_in_host_memory_adds_none_of_the_models_own_cache() -> None:
    cache = kvcalc.footprint(
        kvcalc.load("glm-4.5-air"), context=4096, engine="llama.cpp", engine_options={"n_gpu_layers": 0}
    ).kv_cache
    held = 46 * 4096 * 8 * (128 + 128) * 2
    assert f"host memory holds the token embedding, 47 layers and {held:,} bytes of the cache" in cache.notes


def test_a_state_smaller_than_a_page_is_padded_since_vllm_0_26_only() -> None:
    attention, state = Spec("full", 16, 1, 1024), Spec("state", 16, state_bytes=1000)
    assert _unified([attention, state], Vllm(version="0.20.0").rules) is None
    padded = _unified([attention, state], Vllm(version="0.26.0").rules)
    assert padded is not None
    assert [each.page for each in padded] == [16 * 1024, 16 * 1024]


def test_index_keys_of_minimax_m3_are_refused_in_mxfp4() -> None:
    with pytest.raises(kvcalc.UnsupportedError, match="not in mxfp4"):
        kvcalc.footprint(
            kvcalc.load("minimax-m3"), context=4096, engine="vllm", engine_options={"indexer_kv_dtype": "mxfp4"}
        )


def test_compressed_layers_in_bfloat16_take_more_than_in_fp8() -> None:
    model = kvcalc.load("deepseek-v4-flash")
    half, whole = (
        kvcalc.footprint(model, context=65536, engine="vllm", kv_cache_dtype=each).kv_cache.bytes
        for each in ("fp8", "bf16")
    )
    assert half < whole


def test_sglang_shows_its_state_slots_and_one_more() -> None:
    setup = prepare(kvcalc.load("qwen3.5-9b"), engine="sglang", engine_options={"max_mamba_cache_size": 40})
    values = {each.symbol: each.value for each in setup.plan.explain(4096, 1)}
    # 8 full layers of 4 heads of 256 in bfloat16; page size 1, so one token of padding.
    assert values["kv_bytes"] == 4097 * 8 * 2 * 4 * 256 * 2 + 41 * 51_511_296 == setup.plan.kv_bytes(4096, 1)


def test_the_reports_accounting_divides_kv_heads_over_devices() -> None:
    whole, part = (kvcalc.kv_cache_bytes("llama-3.1-8b", context=1000, tensor_parallel_size=tp) for tp in (1, 4))
    assert (whole, part) == (32 * 1000 * 2 * 8 * 128 * 2, 32 * 1000 * 2 * 2 * 128 * 2)
