"""TensorRT-LLM's rule as its source states it, and against figures that one server printed."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvcalc
from kvcalc.architecture import Architecture, Full, Latent, Layer, LayerKind, Shared, Sliding, State
from kvcalc.derivation import evaluate
from kvcalc.dtypes import parse_kv_dtypes
from kvcalc.engines import make_engine
from kvcalc.engines.tensorrt_llm import TensorRTLLMPlan
from kvcalc.errors import InputError, NotModelledError, RefusalError, UnsupportedError
from kvcalc.setup import Setup
from kvcalc.units import GiB

GEMMA_3_WINDOWS = "1024,1024,1024,1024,1024,131072"


def model(*kinds: tuple[LayerKind, int], dtype: str = "bfloat16") -> Architecture:
    order = tuple(index for index, (_, count) in enumerate(kinds) for _ in range(count))
    layers = tuple(Layer(cache=kind) for kind, _ in kinds)
    return Architecture(
        name="some", model_type="some", layers=layers, order=order, hidden_size=64, vocab_size=0, dtype=dtype
    )


def plan_of(architecture: Architecture, tp: int = 1, dtype: str = "bfloat16", **options: Any) -> TensorRTLLMPlan:
    engine = make_engine("tensorrt-llm", options)
    plan = Setup(architecture, engine, *parse_kv_dtypes(dtype), tensor_parallel_size=tp).plan
    assert isinstance(plan, TensorRTLLMPlan)
    return plan


def test_the_blocks_tokens_and_gib_that_a_server_printed_for_kimi_k2_5() -> None:
    # its log: window size 262144, 32 tokens a block, 158,543 primary blocks, 166.02 GiB for 5,073,376 tokens, fp8
    latent = Latent(rank=512, rope_dim=64, num_heads=64, nope_dim=128, v_head_dim=128)
    plan = plan_of(model((latent, 61)), dtype="fp8")
    pool = plan.kv_bytes(5_073_376, 1)
    assert f"{pool / GiB:.2f}" == "166.02"
    report = plan.report(262144, 1, pool)
    assert report["blocks_per_window"] == {"max_seq_len": 158_543} and report["max_tokens"] == 5_073_376
    assert -(-262144 // plan.tokens_per_block) == 8192
    assert plan.report(262144, 19, pool)["fits"] and not plan.report(262144, 20, pool)["fits"]


def test_forty_gib_of_gemma_3_27b_give_half_to_the_sliding_layers() -> None:
    plan = plan_of(kvcalc.load("gemma-3-27b"), max_attention_window=GEMMA_3_WINDOWS)
    report = plan.report(131072, 1, 40 * GiB)
    assert report["blocks_per_window"] == {"1024": 1575, "131072": 8192}
    assert report["num_free_blocks"] == 1575
    assert plan.report(131072, 2, 40 * GiB)["fits"] and not plan.report(131072, 3, 40 * GiB)["fits"]
    cache = plan.allocate(131072, 2)
    assert cache.bytes == 40 * GiB and sum(row.bytes for row in cache.layers) < 22 * GiB
    assert [(row.count, row.tokens) for row in cache.layers] == [(52, 2048), (10, 262144)]


def test_without_windows_every_layer_is_full() -> None:
    plan = plan_of(kvcalc.load("gemma-3-27b"))
    cache = plan.allocate(1000, 1)
    assert cache.why == "all 62 layers full"
    assert cache.bytes == 62 * 1024 * 16 * 2 * 128 * 2
    assert any("full length" in note for note in cache.notes) and any("not checked" in note for note in cache.notes)


@pytest.mark.parametrize(("tp", "heads"), [(1, 6), (2, 3), (4, 2), (5, 2), (8, 1)])
def test_kv_heads_are_divided_and_rounded_up(tp: int, heads: int) -> None:
    full = Full(num_kv_heads=6, head_dim=64, v_head_dim=64)
    assert plan_of(model((full, 2)), tp).kv_bytes(32, 1) == 2 * 32 * heads * 2 * 64 * 2


def test_windows_repeat_over_the_layers() -> None:
    full = Full(num_kv_heads=1, head_dim=64, v_head_dim=64)
    plan = plan_of(model((full, 5)), max_attention_window=[64, 128])
    assert [(each.window, each.token_bytes) for each in plan.windows] == [(64, 3 * 256), (128, 2 * 256)]


def test_an_nvfp4_cache_pays_one_scale_for_16_numbers() -> None:
    full = Full(num_kv_heads=2, head_dim=64, v_head_dim=64)
    assert plan_of(model((full, 1)), dtype="nvfp4").kv_bytes(32, 1) == 32 * 256 * 9 // 16
    with pytest.raises(UnsupportedError, match="scales"):
        plan_of(model((full, 2)), dtype="nvfp4", max_attention_window="64,128")


_FULL = Full(num_kv_heads=2, head_dim=64, v_head_dim=64)
_LOCAL = Sliding(window=512, num_kv_heads=3, head_dim=64, v_head_dim=64)


@given(
    windows=st.none() | st.lists(st.integers(1, 5000), min_size=1, max_size=5),
    size=st.sampled_from([1, 16, 32, 64]),
    fraction=st.none() | st.sampled_from([0.9, 0.95, 1.0]) | st.floats(0.05, 1.0),
    context=st.integers(1, 10**6),
    batch=st.integers(1, 100),
)
@settings(max_examples=150)
def test_the_pool_is_the_smallest_and_never_falls(
    windows: list[int] | None, size: int, fraction: float | None, context: int, batch: int
) -> None:
    plan = plan_of(
        model((_FULL, 3), (_LOCAL, 7)),
        tokens_per_block=size,
        max_attention_window=tuple(windows) if windows else None,
        free_gpu_memory_fraction=fraction,
    )
    budget = plan.required_kv_memory(context, batch)
    assert plan.report(context, batch, budget)["fits"]
    assert not plan.report(context, batch, budget - 1)["fits"]
    assert plan.kv_bytes(context, batch) <= budget
    assert plan.kv_bytes(context, batch) <= min(plan.kv_bytes(context + 1, batch), plan.kv_bytes(context, batch + 1))
    cache = plan.allocate(context, batch)
    assert sum(row.bytes for row in cache.layers) + cache.padding_bytes == cache.bytes and cache.padding_bytes >= 0
    steps = plan.explain(context, batch)
    values = evaluate(steps)
    assert all(values[step.symbol] == step.value for step in steps) and steps[-1].value == cache.bytes


@pytest.mark.parametrize(
    "kind",
    [Shared(), State(recurrent_elements=8), Full(num_kv_heads=2, head_dim=64, v_head_dim=64, indexer_dim=64)],
)
def test_what_was_not_read_is_refused(kind: LayerKind) -> None:
    with pytest.raises(RefusalError, match="not modelled"):
        plan_of(model((_FULL, 1), (kind, 1)))


def test_several_head_dims_are_refused() -> None:
    with pytest.raises(NotModelledError, match="one head dim"):
        plan_of(model((Full(num_kv_heads=2, head_dim=192, v_head_dim=128), 4)))
    with pytest.raises(NotModelledError, match="one head dim"):
        plan_of(model((_FULL, 1), (Full(num_kv_heads=2, head_dim=128, v_head_dim=128), 1)))


@pytest.mark.parametrize("dtype", ["q8_0", "fp8/bf16"])
def test_formats_that_it_does_not_store_are_refused(dtype: str) -> None:
    with pytest.raises(UnsupportedError):
        plan_of(model((_FULL, 1)), dtype=dtype)


@pytest.mark.parametrize(
    "options",
    [
        {"max_attention_window": "1024,x"},
        {"max_attention_window": "0"},
        {"max_attention_window": []},
        {"max_attention_window": 2**60},
        {"tokens_per_block": 0},
        {"free_gpu_memory_fraction": 1.5},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        make_engine("tensorrt-llm", options)


def test_one_window_may_be_written_as_a_number() -> None:
    assert make_engine("tensorrt-llm", {"max_attention_window": "4k"}).model_dump()["max_attention_window"] == (4096,)
    assert make_engine("tensorrt-llm", {"max_attention_window": 512}).model_dump()["max_attention_window"] == (512,)


def test_windows_given_as_a_list_are_the_same_option() -> None:
    architecture = model((_FULL, 6))
    answers = {
        kvcalc.kv_cache_bytes(
            architecture, context=4096, engine="tensorrt-llm", engine_options={"max_attention_window": windows}
        )
        for windows in ([64, 128], (64, 128), "64,128")
    }
    assert answers == {2 * 128 * 3 * 512}
    with pytest.raises(InputError, match="max_attention_window"):
        kvcalc.kv_cache_bytes(
            architecture, context=4096, engine="tensorrt-llm", engine_options={"max_attention_window": {"local": 64}}
        )


@pytest.mark.parametrize("context", [7, 4096, 2**39])
@pytest.mark.parametrize("count", [3, 5, 6, 7, 11, 49])
def test_shares_that_floats_round_down_cost_the_byte_that_the_engine_needs(count: int, context: int) -> None:
    windows = tuple(range(context, context + count))
    plan = plan_of(model((_FULL, count)), tokens_per_block=1, max_attention_window=windows)
    pool = plan.kv_bytes(context, 1)
    assert plan.report(context, 1, pool)["fits"] and not plan.report(context, 1, pool - 1)["fits"]
    steps = plan.explain(context, 1)
    assert evaluate(steps)["kv_bytes"] == pool
