"""SGLang's pools against figures recorded from its own pool functions, and against what a server printed."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import kvcalc
from kvcalc.architecture import Architecture, Compressed, Cross, Full, Latent, Layer, LayerKind, Sliding, State
from kvcalc.derivation import evaluate
from kvcalc.dtypes import parse_kv_dtypes
from kvcalc.engines import make_engine
from kvcalc.engines.sglang import SGLangPlan
from kvcalc.errors import InputError, NotModelledError, RefusalError, UnsupportedError
from kvcalc.layout import parse_layout
from kvcalc.relayout import with_layout
from kvcalc.setup import Setup
from kvcalc.units import GiB

DATA = json.loads((Path(__file__).parents[1] / "data" / "sglang_pools.json").read_text())


def model(name: str, model_type: str, *kinds: tuple[LayerKind, int]) -> Architecture:
    order = tuple(index for index, (_, count) in enumerate(kinds) for _ in range(count))
    layers = tuple(Layer(cache=kind) for kind, _ in kinds)
    return Architecture(
        name=name, model_type=model_type, layers=layers, order=order, hidden_size=64, vocab_size=0, dtype="bfloat16"
    )


@cache
def recorded_model(name: str, *, forced: bool = False) -> Architecture:
    """A model of the data; ``forced`` gives it a model type that has a sliding pool."""
    row = DATA["models"][name]
    heads, dim = row["kv_heads"], row["head_dim"]
    full = Full(num_kv_heads=heads, head_dim=dim, v_head_dim=dim)
    order = tuple("FS".index(code) for code in row["layers"])
    layers = [Layer(cache=full)]
    if row["window"]:
        layers.append(Layer(cache=Sliding(window=row["window"], num_kv_heads=heads, head_dim=dim, v_head_dim=dim)))
    return Architecture(
        name=name,
        model_type="gemma4" if forced else row["model_type"],
        layers=tuple(layers),
        order=order,
        hidden_size=64,
        vocab_size=0,
    )


def plan_of(architecture: Architecture, tp: int = 1, dtype: str = "bfloat16", **options: Any) -> SGLangPlan:
    engine = make_engine("sglang", options)
    plan = Setup(architecture, engine, *parse_kv_dtypes(dtype), tensor_parallel_size=tp).plan
    assert isinstance(plan, SGLangPlan)
    return plan


@pytest.mark.parametrize("row", DATA["rows"], ids=lambda row: f"{row[0]}-{row[1]}-{json.dumps(row[2:6])}")
def test_every_recorded_pool(row: list[Any]) -> None:
    name, available, tp, dtype, options, forced, expected = row
    plan = plan_of(recorded_model(name, forced=forced), tp, dtype, **options)
    if expected is None:
        with pytest.raises(UnsupportedError, match="refuses to start"):
            plan.report(1, 1, available)
        return
    report = plan.report(1, 1, available)
    keys = ("max_total_num_tokens", "full_max_total_num_tokens", "swa_max_total_num_tokens", "allocated_bytes")
    assert [report[key] for key in keys] == expected
    # the same pool, asked for by its tokens: the same bytes, from a budget that is no larger and one byte tighter
    tokens = expected[0]
    assert plan.kv_bytes(tokens, 1) == plan.allocate(tokens, 1).bytes == expected[3]
    budget = plan.required_kv_memory(tokens, 1)
    assert budget <= available
    assert plan.report(tokens, 1, budget)["fits"] and plan.report(tokens, 1, budget)["allocated_bytes"] == expected[3]


def test_the_cell_that_a_server_printed_for_gemma_4_26b() -> None:
    full = Full(num_kv_heads=2, head_dim=512, v_head_dim=512)
    local = Sliding(window=1024, num_kv_heads=8, head_dim=256, v_head_dim=256)
    plan = plan_of(model("gemma-4-26b-a4b", "gemma4", (local, 25), (full, 5)))
    assert (plan.pool.main_bytes // 5, plan.pool.swa_bytes // 25, plan.pool.cell) == (4096, 8192, 184320.0)


def test_forty_gib_of_gemma_3_27b_hold_84562_tokens_in_62_full_layers() -> None:
    plan = plan_of(kvcalc.load("gemma-3-27b"))
    assert plan.report(1, 1, 40 * GiB)["max_total_num_tokens"] == 84562
    cache = plan.allocate(32768, 1)
    assert cache.why == "all 62 layers full"
    assert cache.bytes == cache.steady_bytes == (32768 + 1) * 62 * 16 * 256 * 2
    assert any("no sliding pool for model type 'gemma3'" in note for note in cache.notes)


def test_forty_gib_of_deepseek_v3_hold_611191_latents_at_any_tp() -> None:
    latent = Latent(rank=512, rope_dim=64, num_heads=128, nope_dim=128, v_head_dim=128)
    architecture = model("deepseek-v3", "deepseek_v3", (latent, 61))
    for tp in (1, 8):
        assert plan_of(architecture, tp).report(1, 1, 40 * GiB)["max_total_num_tokens"] == 611191


def test_a_page_of_64_allocates_33554432_bytes_above_the_budget_of_olmo_3_7b() -> None:
    full = Full(num_kv_heads=32, head_dim=128, v_head_dim=128)
    local = Sliding(window=4096, num_kv_heads=32, head_dim=128, v_head_dim=128)
    plan = plan_of(model("olmo-3-7b", "olmo3", (local, 24), (full, 8)), page_size=64)
    assert plan.kv_bytes(4096, 1) - plan.required_kv_memory(4096, 1) == 33_554_432
    assert plan.allocate(4096, 1).padding_bytes == 33_554_432


def test_a_disabled_sliding_pool_bills_every_layer_at_the_full_layers_size() -> None:
    full = Full(num_kv_heads=2, head_dim=512, v_head_dim=512)
    local = Sliding(window=1024, num_kv_heads=8, head_dim=256, v_head_dim=256)
    plan = plan_of(model("gemma-4-26b-a4b", "gemma4", (local, 25), (full, 5)), disable_hybrid_swa_memory=True)
    assert plan.kv_bytes(1000, 1) == 1001 * 30 * 4096
    assert any("4,096 bytes a token" in note for note in plan.notes)


def test_a_hybrid_pool_of_local_layers_alone_counts_the_sliding_tokens() -> None:
    local = Sliding(window=128, num_kv_heads=8, head_dim=64, v_head_dim=64)
    plan = plan_of(model("all-local", "gpt_oss", (local, 24)), page_size=16)
    report = plan.report(1000, 1, GiB)
    assert report["full_max_total_num_tokens"] == 0
    assert report["max_total_num_tokens"] == report["swa_max_total_num_tokens"] == GiB // (24 * 2048) // 16 * 16


def test_the_smallest_pool_starts_even_for_one_token() -> None:
    plan = plan_of(recorded_model("gpt-oss-20b"), page_size=64)
    cache = plan.allocate(1, 1)
    assert cache.layers[1].tokens > 127 + 64
    assert any("larger than the workload" in note for note in cache.notes)
    budget = plan.required_kv_memory(1, 1)
    assert plan.report(1, 1, budget)["allocated_bytes"] == cache.bytes
    with pytest.raises(UnsupportedError, match="not above the window and a page \\(127 \\+ 64\\)"):
        plan.report(1, 1, budget - 1)


def test_requests_above_max_running_requests_do_not_fit() -> None:
    plan = plan_of(recorded_model("llama-3.1-8b"), max_running_requests=4)
    assert plan.report(100, 4, GiB)["fits"] and not plan.report(100, 5, GiB)["fits"]
    assert any("at most 4" in note for note in plan.allocate(100, 5).notes)


def test_one_prefill_chunk_is_in_flight_without_overlap() -> None:
    options = {"max_running_requests": 8, "disable_radix_cache": True}
    swa = [
        plan_of(recorded_model("gpt-oss-20b"), **options, disable_overlap_schedule=off).report(1, 1, 10 * GiB)
        for off in (False, True)
    ]
    assert swa[0]["swa_max_total_num_tokens"] - swa[1]["swa_max_total_num_tokens"] == 8192


@pytest.mark.parametrize(("size", "kind"), [(-1, "hybrid"), (0, "hybrid"), (1, "capped")])
def test_the_requests_size_the_sliding_pool_where_the_prefill_is_chunked(size: int, kind: str) -> None:
    options = {"max_running_requests": 8, "disable_radix_cache": True, "chunked_prefill_size": size}
    assert plan_of(recorded_model("gpt-oss-20b"), **options).pool.kind == kind


@pytest.mark.parametrize("options", [{}, {"max_running_requests": 8, "disable_radix_cache": True, "page_size": 64}])
@pytest.mark.parametrize("name", DATA["models"])
def test_the_shown_formula_gives_the_bytes_and_the_rows_sum_to_them(name: str, options: dict[str, Any]) -> None:
    for forced in (False, True):
        plan = plan_of(recorded_model(name, forced=forced), **options)
        for context, batch in ((1, 1), (4097, 3), (131072, 2)):
            cache = plan.allocate(context, batch)
            steps = plan.explain(context, batch)
            values = evaluate(steps)
            assert all(values[step.symbol] == step.value for step in steps)
            assert steps[-1].value == cache.bytes == plan.kv_bytes(context, batch)
            assert sum(row.bytes for row in cache.layers) + cache.padding_bytes == cache.bytes


@pytest.mark.parametrize(
    "kind",
    [
        Compressed(width=512, window=128),
        Full(num_kv_heads=1, head_dim=64, v_head_dim=64, extra_state_bytes=8),
        Cross(num_kv_heads=1, head_dim=64, v_head_dim=64),
        Full(num_kv_heads=2, head_dim=64, v_head_dim=64),
    ],
)
def test_what_was_not_checked_is_refused(kind: LayerKind) -> None:
    plain = Full(num_kv_heads=1, head_dim=64, v_head_dim=64)
    with pytest.raises(RefusalError, match=r"^sglang "):
        plan_of(model("some", "gemma4", (plain, 1), (kind, 1)))


def test_models_with_cross_attention_that_it_runs_are_not_said_to_be_unsupported() -> None:
    plain, cross = (kind(num_kv_heads=1, head_dim=64, v_head_dim=64) for kind in (Full, Cross))
    with pytest.raises(NotModelledError):
        plan_of(model("some", "mllama", (plain, 1), (cross, 1)))
    with pytest.raises(UnsupportedError):
        plan_of(model("some", "t5", (plain, 1), (cross, 1)))


def test_layers_that_read_anothers_cache_are_allocated_all_the_same() -> None:
    # gemma-4-e2b: 12 + 16 sliding layers of 1 x 256, 3 + 4 full ones of 1 x 512, K and V in bfloat16.
    pool = plan_of(kvcalc.load("gemma-4-e2b")).pool
    assert (pool.main_bytes, pool.swa_bytes) == (7 * 2 * 512 * 2, 28 * 2 * 256 * 2)
    # hunyuan-large: 64 layers of 8 heads of 80, of which 32 own a cache.
    assert plan_of(kvcalc.load("hunyuan-large")).pool.main_bytes == 64 * 8 * 2 * 80 * 2


def test_minimax_m3_has_one_index_key_beside_k_and_v() -> None:
    assert plan_of(kvcalc.load("minimax-m3")).pool.main_bytes == 60 * 4 * 2 * 128 * 2 + 57 * 128 * 2


def test_a_draft_adds_its_layers_and_states_that_wait_to_be_verified() -> None:
    qwen = kvcalc.load("qwen3.5-27b")
    engine = make_engine("sglang", {"speculative_num_draft_tokens": 4, "max_running_requests": 16})
    plan = Setup(qwen, engine, *parse_kv_dtypes("bf16"), draft=qwen.mtp).plan
    assert isinstance(plan, SGLangPlan) and plan.states is not None
    assert plan.pool.main_bytes == (16 + 1) * 2 * 4 * 256 * 2  # 16 full layers and the prediction layer's
    states = plan.states
    each = states.slots_per_request
    budget = 60 * GiB
    share = budget * 0.9 / 1.9
    assert states.slots(budget) == int((share - states.slot_bytes * 5) // (states.slot_bytes * (1 + 4 / each)))
    for slots in (1, 40, 500):
        waiting = 4 * (min(16, slots // each) + 1)
        assert states.allocated_bytes(slots) == (slots + 1 + waiting) * states.slot_bytes
    for context, batch in ((8192, 1), (32768, 3)):
        cache = plan.allocate(context, batch)
        values = evaluate(plan.explain(context, batch))
        assert values["kv_bytes"] == cache.bytes == plan.kv_bytes(context, batch)
        assert values["required_bytes"] == plan.required_kv_memory(context, batch)
        assert plan.report(context, batch, plan.required_kv_memory(context, batch))["fits"]


@pytest.mark.parametrize("left_out", ["speculative_num_draft_tokens", "max_running_requests"])
def test_a_draft_beside_states_needs_both_options_that_the_server_asserts(left_out: str) -> None:
    qwen = kvcalc.load("qwen3.5-27b")
    given = {"speculative_num_draft_tokens": 4, "max_running_requests": 16}
    engine = make_engine("sglang", {key: value for key, value in given.items() if key != left_out})
    with pytest.raises(InputError, match=left_out):
        Setup(qwen, engine, *parse_kv_dtypes("bf16"), draft=qwen.mtp).plan  # noqa: B018 - the plan is made on demand


@pytest.mark.parametrize("dtype", ["q8_0", "fp8/bf16", "nvfp4"])
def test_formats_without_a_modelled_pool_are_refused(dtype: str) -> None:
    with pytest.raises(UnsupportedError):
        plan_of(recorded_model("llama-3.1-8b"), dtype=dtype)


@pytest.mark.parametrize(
    "options",
    [
        {"swa_full_tokens_ratio": 0},
        {"swa_full_tokens_ratio": "nan"},
        {"swa_full_tokens_ratio": 1.01},
        {"chunked_prefill_size": -2},
        {"page_size": 0},
        {"version": "0.4.0"},
        {"pages": 1},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        make_engine("sglang", options)


def test_a_hybrid_model_type_without_local_layers_is_a_plain_pool_and_says_so() -> None:
    plan = plan_of(with_layout(recorded_model("gpt-oss-20b"), parse_layout("global")))
    assert plan.kv_bytes(1000, 1) == 1001 * 24 * 2048
    assert any("expects local layers" in note for note in plan.notes)


# State slots and index keys.


def test_the_slots_of_a_printed_start_are_met() -> None:
    # Logs of servers: 360 slots of a Qwen3.8-27B shape (conv 0.99 GB, ssm 50.77 GB), 64 of a Qwen3.5-9B shape.
    plan = plan_of(kvcalc.load("qwen3.5-27b"), dtype="fp8_e4m3", max_mamba_cache_size=360)
    states = (361 * 48 * 10240 * 3 * 2, 361 * 48 * 48 * 128 * 128 * 4)
    report = plan.report(1, 1, sum(states) + 228_520 * 16 * 4 * 512)
    assert (report["conv_state_bytes"], report["ssm_state_bytes"]) == states
    assert [round(size / GiB, 2) for size in states] == [0.99, 50.77]
    assert (report["max_total_num_tokens"], report["max_running_requests"]) == (228_520, 72)


def test_a_ratio_shares_a_budget_between_slots_and_tokens() -> None:
    plan = plan_of(kvcalc.load("qwen3.5-27b"))
    slot = 48 * (10240 * 3 * 2 + 48 * 128 * 128 * 4)
    report = plan.report(1, 1, 40 * GiB)
    # The padding slot is paid for first: int((40 GiB x 0.9 / 1.9 - slot) / slot).
    slots = int((40 * GiB * 0.9 / 1.9 - slot) // slot)
    assert report["max_mamba_cache_size"] == slots
    assert report["max_total_num_tokens"] == (40 * GiB - (slots + 1) * slot) // (16 * 4 * 2 * 256 * 2)
    assert not report["fits"] or report["max_running_requests"] >= 1


@pytest.mark.parametrize(
    ("options", "per_request"),
    [
        ({}, 5),
        ({"disable_overlap_schedule": True}, 4),
        ({"mamba_radix_cache_strategy": "extra_buffer_lazy"}, 4),
        ({"mamba_radix_cache_strategy": "no_buffer"}, 3),
        ({"disable_radix_cache": True}, 1),
    ],
)
def test_a_running_request_holds_slots_of_its_own_and_the_radix_caches(
    options: dict[str, Any], per_request: int
) -> None:
    plan = plan_of(kvcalc.load("qwen3-next-80b-a3b"), max_mamba_cache_size=100, **options)
    assert plan.report(1, 1, 40 * GiB)["max_running_requests"] == 100 // per_request


@pytest.mark.parametrize("model", ["qwen3.5-27b", "nemotron-nano-9b-v2", "falcon-h1-7b", "granite-4.0-h-small"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_budget_from_the_required_one_on_serves_a_hybrid(model: str, dtype: str) -> None:
    plan = plan_of(kvcalc.load(model), mamba_ssm_dtype=dtype)
    for context, batch in ((1, 1), (4096, 1), (32768, 7), (262144, 3)):
        required = plan.required_kv_memory(context, batch)
        assert plan.report(context, batch, required)["fits"]
        assert not plan.report(context, batch, required - 1)["fits"]
        assert plan.states is not None
        for more in (1, plan.states.slot_bytes // 2, plan.states.slot_bytes, 3 * plan.states.slot_bytes, GiB):
            assert plan.report(context, batch, required + more)["fits"]
        cache = plan.allocate(context, batch)
        assert sum(row.bytes for row in cache.layers) + cache.padding_bytes == cache.bytes


def test_without_a_radix_cache_the_running_requests_are_the_slots() -> None:
    plan = plan_of(kvcalc.load("qwen3.5-27b"), disable_radix_cache=True, max_running_requests=8)
    assert plan.report(1, 8, 40 * GiB)["max_mamba_cache_size"] == 8
    assert plan.required_kv_memory(1000, 8) - plan.required_kv_memory(1000, 1) == 7 * 1000 * 65536


def test_states_are_divided_by_devices_that_divide_them() -> None:
    one, two = (plan_of(kvcalc.load("qwen3.5-27b"), tp=tp).states for tp in (1, 2))
    assert one is not None and two is not None
    assert one.slot_bytes == 2 * two.slot_bytes
    with pytest.raises(UnsupportedError, match="states by 12 devices"):
        plan_of(kvcalc.load("qwen3.5-27b"), tp=12)


def test_a_budget_without_a_slot_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="not one state slot fits"):
        plan_of(kvcalc.load("qwen3.5-27b")).report(1, 1, 2**20)


def test_an_index_key_is_132_bytes_and_its_pages_have_64_tokens() -> None:
    # DeepSeek V3.2 as a server printed it: (975,424 + 64) x 61 x (656 + 132) bytes are 43.67 GiB.
    plan = plan_of(kvcalc.load("deepseek-v3.2"), dtype="fp8_e4m3")
    report = plan.report(1, 1, 975_424 * 61 * 788)
    assert report["max_total_num_tokens"] == 975_424
    assert round(report["allocated_bytes"] / GiB, 2) == 43.67
    assert plan_of(kvcalc.load("deepseek-v3.2")).pool.main_bytes == 61 * (576 * 2 + 132)


def test_a_model_without_attention_is_not_modelled() -> None:
    with pytest.raises(NotModelledError, match="has no attention"):
        plan_of(model("states", "mamba2", (State(recurrent_elements=64), 4)))
    empty = model("empty", "some", (Full(1, 64, 64), 1), (State(conv_channels=4, conv_kernel=1), 1))
    assert plan_of(empty).states is None


def test_glm_5_2_has_scaled_latents_in_every_layer_and_index_keys_in_those_that_own_one() -> None:
    pool = plan_of(kvcalc.load("glm-5.2"), dtype="fp8").pool
    assert pool.main_bytes == 78 * 656 + 21 * 132
    assert plan_of(kvcalc.load("glm-5.2")).pool.main_bytes == 78 * 576 * 2 + 21 * 132
