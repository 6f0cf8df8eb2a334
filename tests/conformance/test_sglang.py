"""SGLang's pools against figures recorded from its own pool functions, and against what a server printed."""

import json
from pathlib import Path
from typing import Any

import pytest
from sglang_cases import Case
from sglang_cases import plan_of as case_plan

import kvcalc
from kvcalc.architecture import Architecture, Compressed, Cross, Full, Latent, Layer, LayerKind, Sliding, State
from kvcalc.cli.question import weights_derivation
from kvcalc.derivation import evaluate
from kvcalc.dtypes import parse_kv_dtypes
from kvcalc.engines import make_engine
from kvcalc.engines.base import Plan
from kvcalc.engines.sglang import SGLangPlan
from kvcalc.errors import InputError, NotModelledError, RefusalError, UnsupportedError
from kvcalc.layout import parse_layout
from kvcalc.relayout import with_layout
from kvcalc.setup import Setup, prepare, prepare_on
from kvcalc.sources.devices import load_device
from kvcalc.units import GiB

DATA = json.loads((Path(__file__).parents[1] / "data" / "sglang_pools.json").read_text())


def model(name: str, model_type: str, *kinds: tuple[LayerKind, int]) -> Architecture:
    order = tuple(index for index, (_, count) in enumerate(kinds) for _ in range(count))
    layers = tuple(Layer(cache=kind) for kind, _ in kinds)
    return Architecture(
        name=name, model_type=model_type, layers=layers, order=order, hidden_size=64, vocab_size=0, dtype="bfloat16"
    )


def plan_of(architecture: Architecture, tp: int = 1, dtype: str = "bfloat16", **options: Any) -> SGLangPlan:
    engine = make_engine("sglang", options)
    plan = Setup(architecture, engine, *parse_kv_dtypes(dtype), tensor_parallel_size=tp).plan
    assert isinstance(plan, SGLangPlan)
    return plan


@pytest.mark.parametrize("row", DATA["rows"], ids=lambda row: f"{row[0]['family']}-{json.dumps(row[0])[-60:]}")
def test_every_recorded_pool(row: list[Any]) -> None:
    case, expected = Case.of(row[0]), row[1]
    plan = case_plan(case)
    if expected is None:
        with pytest.raises(UnsupportedError, match="refuses to start"):
            plan.report(1, 1, case.memory)
        return
    report = plan.report(1, 1, case.memory)
    assert [report.get(name) for name in DATA["figures"]] == expected
    for context, batch in ((1, 1), (4097, 3), (131072, 40)):
        cache = plan.allocate(context, batch)
        values = evaluate(plan.explain(context, batch))
        assert values["kv_bytes"] == cache.bytes == plan.kv_bytes(context, batch)
        assert values["required_bytes"] == plan.required_kv_memory(context, batch)
        assert sum(layer.bytes for layer in cache.layers) + cache.padding_bytes == cache.bytes
        # The smallest budget gives the same bytes (beside states more tokens), and one byte less does not serve.
        budget = plan.required_kv_memory(context, batch)
        allocated = plan.report(context, 1, budget)["allocated_bytes"]
        assert allocated == cache.bytes or (case.family == "states" and allocated > cache.bytes)
        assert not _serves(plan, context, batch, budget - 1)


def _serves(plan: Plan, context: int, batch: int, memory: int) -> bool:
    try:
        return bool(plan.report(context, batch, memory)["fits"])
    except UnsupportedError:
        return False


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
    plan = plan_of(kvcalc.load("gpt-oss-20b"), page_size=64)
    cache = plan.allocate(1, 1)
    assert cache.layers[1].tokens > 127 + 64
    assert any("larger than the workload" in note for note in cache.notes)
    budget = plan.required_kv_memory(1, 1)
    assert plan.report(1, 1, budget)["allocated_bytes"] == cache.bytes
    with pytest.raises(UnsupportedError, match="not above the window and a page \\(127 \\+ 64\\)"):
        plan.report(1, 1, budget - 1)


def test_requests_above_max_running_requests_do_not_fit() -> None:
    plan = plan_of(kvcalc.load("llama-3.1-8b"), max_running_requests=4)
    assert plan.report(100, 4, GiB)["fits"] and not plan.report(100, 5, GiB)["fits"]
    assert any("at most 4" in note for note in plan.allocate(100, 5).notes)


def test_one_prefill_chunk_is_in_flight_without_overlap() -> None:
    options = {"max_running_requests": 8, "disable_radix_cache": True}
    swa = [
        plan_of(kvcalc.load("gpt-oss-20b"), **options, disable_overlap_schedule=off).report(1, 1, 10 * GiB)
        for off in (False, True)
    ]
    assert swa[0]["swa_max_total_num_tokens"] - swa[1]["swa_max_total_num_tokens"] == 8192


@pytest.mark.parametrize(("size", "kind"), [(-1, "hybrid"), (0, "hybrid"), (1, "capped")])
def test_the_requests_size_the_sliding_pool_where_the_prefill_is_chunked(size: int, kind: str) -> None:
    options = {"max_running_requests": 8, "disable_radix_cache": True, "chunked_prefill_size": size}
    assert plan_of(kvcalc.load("gpt-oss-20b"), **options).pool.kind == kind


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
    pool = plan_of(kvcalc.load("minimax-m3")).pool
    assert (pool.main_bytes, pool.page_size) == (60 * 4 * 2 * 128 * 2 + 57 * 128 * 2, 128)
    assert plan_of(kvcalc.load("minimax-m3"), dtype="fp8").pool.main_bytes == 60 * 4 * 2 * 128 + 57 * 128


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
        verifying = min(16, slots // each) + 1
        assert states.paid_bytes(slots) == (slots + 1 + 4 * verifying) * states.slot_bytes
        # The windows of four tokens in a chain are 4 + 3 - 1 columns of 48 layers, not 4 x 3.
        shared = verifying * 48 * 10240 * 2 * (12 - 6)
        assert states.allocated_bytes(slots, 10**6) == states.paid_bytes(slots) - shared
    assert states.verified_bytes(500, 6) == (3 + 1) * (4 * states.slot_bytes - 48 * 10240 * 2 * 6)
    for context, batch in ((8192, 1), (32768, 3)):
        cache = plan.allocate(context, batch)
        values = evaluate(plan.explain(context, batch))
        assert values["kv_bytes"] == cache.bytes == plan.kv_bytes(context, batch)
        assert values["required_bytes"] == plan.required_kv_memory(context, batch)
        assert plan.report(context, batch, plan.required_kv_memory(context, batch))["fits"]


@pytest.mark.parametrize(
    ("model_type", "given", "tokens"),
    [
        ("qwen3_5", {}, 4),
        ("llama", {}, 8),
        ("llama", {"speculative_algorithm": "STANDALONE"}, 4),
        ("llama", {"speculative_num_steps": 2}, 3),
        ("llama", {"speculative_num_draft_tokens": 6}, 6),
        ("llama", {"speculative_num_steps": 2, "speculative_eagle_topk": 4}, 8),
        ("llama", {"speculative_algorithm": "DFLASH"}, 16),
    ],
)
def test_what_is_drafted_where_nobody_says(model_type: str, given: dict[str, Any], tokens: int) -> None:
    full = Full(num_kv_heads=2, head_dim=64, v_head_dim=64)
    target = model("target", model_type, (full, 2), (State(recurrent_elements=64), 2))
    engine = make_engine("sglang", given)
    plan = Setup(target, engine, *parse_kv_dtypes("bf16"), draft=model("draft", "llama", (full, 1))).plan
    assert isinstance(plan, SGLangPlan) and plan.states is not None
    assert (plan.states.draft_tokens, plan.states.most_running) == (tokens, 48)


@pytest.mark.parametrize("dtype", ["q8_0", "fp8/bf16", "nvfp4"])
def test_formats_without_a_modelled_pool_are_refused(dtype: str) -> None:
    with pytest.raises(UnsupportedError):
        plan_of(kvcalc.load("llama-3.1-8b"), dtype=dtype)


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
    plan = plan_of(with_layout(kvcalc.load("gpt-oss-20b"), parse_layout("global")))
    assert plan.kv_bytes(1000, 1) == 1001 * 24 * 2048
    assert any("expects local layers" in note for note in plan.notes)


# Devices that share attention, and drafts.


def test_sparse_latents_on_blackwell_are_rows_of_fp8() -> None:
    def plan(model: str, device: str) -> tuple[str, int]:
        setup = prepare_on(load_device(device), model, engine="sglang", tensor_parallel_size=8)
        assert isinstance(setup.plan, SGLangPlan)
        return setup.k_dtype.name, setup.plan.pool.main_bytes

    assert plan("deepseek-v3.2", "h200") == ("bfloat16", 61 * (576 * 2 + 132))
    assert plan("deepseek-v3.2", "b200") == ("fp8_e4m3", 61 * (576 + 132))
    assert plan("deepseek-v3.2", "rtx-pro-6000-blackwell") == ("fp8_e4m3", 61 * (576 + 132))
    assert plan("glm-5.1", "rtx-pro-6000-blackwell") == ("fp8_e4m3", 78 * (656 + 132))
    assert plan("deepseek-v3", "b200") == ("bfloat16", 61 * 576 * 2)  # not sparse


def test_attention_data_parallelism_divides_sequences_and_holds_more_heads() -> None:
    qwen = kvcalc.load("qwen3-30b-a3b")  # 48 layers of 4 heads of 128
    alone, grouped = plan_of(qwen, tp=8), plan_of(qwen, tp=8, dp_size=4, enable_dp_attention=True)
    assert (alone.pool.main_bytes, grouped.pool.main_bytes) == (48 * 1 * 256 * 2, 48 * 2 * 256 * 2)
    assert grouped.kv_bytes(1000, 6) == (2 * 1000 + 1) * grouped.pool.main_bytes
    assert grouped.report(1000, 6, 2000 * grouped.pool.main_bytes)["fits"]
    assert "each of 4 groups" in grouped.allocate(1000, 6).notes[-1]
    limited = plan_of(qwen, tp=8, dp_size=4, enable_dp_attention=True, max_running_requests=8)
    assert limited.max_running_requests == 2
    assert "at most 8 of these sequences" in limited.allocate(1000, 9).notes[-1]


def test_attention_data_parallelism_holds_attention_and_the_embedding_in_each_group() -> None:
    def held(model: str, tp: int, **options: Any) -> int:
        return prepare(model, engine="sglang", engine_options=options, tensor_parallel_size=tp).weights.bytes

    groups = {"dp_size": 4, "enable_dp_attention": True}
    # Qwen3-30B-A3B: 48 layers of 2048 x 4096 (q, o) and 2048 x 4 heads of 128 (k, v), of which one of eight devices has
    # a head and one of two has two; a vocabulary of 151,936.
    attention = 48 * 2 * (2048 * 4096 * 3 // 8 + 2048 * 128) * 2
    table = 151936 * 2048 * 2
    assert held("qwen3-30b-a3b", 8, **groups) - held("qwen3-30b-a3b", 8) == attention + table * 3 // 8
    head = {"enable_dp_lm_head": True}
    assert held("qwen3-30b-a3b", 8, **groups, **head) - held("qwen3-30b-a3b", 8, **groups) == table * 3 // 8
    # A prefill that devices share divides no more of attention than two do, and the embedding as ever.
    assert held("qwen3-30b-a3b", 8, attn_cp_size=4) - held("qwen3-30b-a3b", 8) == attention
    # Qwen3.5 has the whole embedding on every device: 248,320 x 2,048.
    options = {"dp_size": 2, "enable_dp_attention": True}
    setup = prepare("qwen3.5-35b-a3b", engine="sglang", engine_options=options, tensor_parallel_size=4)
    values = {each.symbol: each.value for each in weights_derivation(setup).steps}
    assert values["embedding_bytes"] == 248320 * 2048 * 2


def test_decode_context_parallelism_divides_pages_and_not_index_keys() -> None:
    deepseek = kvcalc.load("deepseek-v3.2")
    packed = plan_of(deepseek, tp=8, dtype="fp8")
    assert packed.pool.main_bytes == 61 * (656 + 132)
    assert "scales beside them" in packed.allocate(1000, 1).notes[-1]
    kernels = ({"dsa_decode_backend": "trtllm"}, {"dsa_prefill_backend": "trtllm", "dsa_decode_backend": "fa3"})
    both = {"dsa_prefill_backend": "tilelang", "dsa_decode_backend": "tilelang"}
    for options in (*kernels, both):
        assert plan_of(deepseek, tp=8, dtype="fp8", **options).pool.main_bytes == 61 * (576 + 132)
    assert plan_of(deepseek, tp=8, dtype="fp8", dsa_decode_backend="tilelang").pool.main_bytes == 61 * (656 + 132)
    plan = plan_of(deepseek, tp=8, dtype="fp8", dcp_size=4)
    assert not any("scales beside them" in note for note in plan.allocate(1000, 1).notes)
    assert plan.pool.main_bytes == 61 * (576 + 4 * 132)  # plain rows, and the index keys of all four devices
    assert plan.kv_bytes(1000, 2) == (2 * 4 * 64 + 64) * plan.pool.main_bytes  # 1000 tokens: 4 pages of 4 x 64
    assert plan.report(1, 1, 640 * plan.pool.main_bytes)["max_total_num_tokens"] == 4 * 640
    assert plan.required_with_prefix(1000, 3, 600) == (4 + 2 * 2) * 64 * plan.pool.main_bytes
    llama = plan_of(kvcalc.load("llama-3.1-8b"), tp=8, dcp_size=2)
    assert llama.pool.main_bytes == 32 * 2 * 256 * 2  # eight heads in four groups


@pytest.mark.parametrize(
    ("name", "tp", "options", "refusal"),
    [
        ("llama-3.1-8b", 8, {"dp_size": 2}, InputError),
        ("llama-3.1-8b", 8, {"dp_size": 3, "enable_dp_attention": True}, UnsupportedError),
        ("llama-3.1-8b", 8, {"attn_cp_size": 4, "dcp_size": 4}, UnsupportedError),
        ("gpt-oss-20b", 8, {"dcp_size": 2}, NotModelledError),
        ("deepseek-v4-flash", 8, {"dcp_size": 2}, NotModelledError),
    ],
)
def test_devices_that_do_not_divide_are_refused(
    name: str, tp: int, options: dict[str, Any], refusal: type[Exception]
) -> None:
    with pytest.raises(refusal):
        kvcalc.footprint(name, context=1, engine="sglang", engine_options=options, tensor_parallel_size=tp)


@pytest.mark.parametrize(
    ("options", "in_a_step"),
    [
        ({}, 2 * 4),  # a chain of three steps and four tokens, twice, because a step is under way
        ({"disable_overlap_schedule": True}, 4),
        ({"disable_overlap_schedule": True, "page_size": 16}, 16),
        ({"speculative_num_steps": 5, "speculative_eagle_topk": 4, "speculative_num_draft_tokens": 8}, 2 * 20),
        # 2 x 15 + 5 tokens of a branch touch two pages of 16, of four branches eight pages.
        (
            {"speculative_num_steps": 5, "speculative_eagle_topk": 4, "page_size": 16},
            2 * 2 * 16 * 4,
        ),
        (
            {
                "speculative_num_steps": 5,
                "speculative_eagle_topk": 4,
                "page_size": 16,
                "disable_overlap_schedule": True,
            },
            32 * 4,
        ),
    ],
)
def test_a_draft_takes_room_in_a_sliding_pool_that_the_requests_size(options: dict[str, Any], in_a_step: int) -> None:
    gpt = kvcalc.load("gpt-oss-20b")
    full = Full(num_kv_heads=8, head_dim=64, v_head_dim=64)
    engine = make_engine("sglang", {"max_running_requests": 10, "disable_radix_cache": True, **options})
    plan = Setup(gpt, engine, *parse_kv_dtypes("bf16"), draft=model("draft", "llama", (full, 1))).plan
    assert isinstance(plan, SGLangPlan)
    page = options.get("page_size", 1)
    tokens = {5: 8 if "speculative_num_draft_tokens" in options else 20}.get(options.get("speculative_num_steps"), 4)
    chunks = 1 if "disable_overlap_schedule" in options else 2
    per_request = 127 + 128 * tokens + page + in_a_step
    assert plan.pool.capped_tokens == -(-(10 * per_request + chunks * 8192 + page) // page) * page
    assert plan.pool.main_bytes == 13 * 2048 and plan.pool.swa_bytes == 12 * 2048


def test_prediction_layers_of_a_model_with_a_sliding_pool_are_paid_for_there() -> None:
    step = kvcalc.load("step-3.5-flash")
    engine = make_engine("sglang", {})
    plan = Setup(step, engine, *parse_kv_dtypes("bf16"), draft=step.mtp).plan
    assert isinstance(plan, SGLangPlan)
    one = 8 * 2 * 128 * 2
    assert (plan.pool.main_bytes, plan.pool.swa_bytes, plan.pool.swa_beyond) == (12 * one, (33 + 3) * one, 0)
    # Other prediction layers than the model's sliding ones are paid for as these, and lie in the full pool.
    newer = kvcalc.load("step-3.7-flash")
    plan = Setup(newer, engine, *parse_kv_dtypes("bf16"), draft=newer.mtp).plan
    assert isinstance(plan, SGLangPlan)
    assert (plan.pool.main_beyond, plan.pool.swa_beyond) == (3 * one, -3 * one)
    cache = plan.allocate(100_000, 1)
    assert cache.bytes == evaluate(plan.explain(100_000, 1))["kv_bytes"]
    assert cache.bytes == plan.report(1, 1, plan.required_kv_memory(100_000, 1))["allocated_bytes"]


def test_a_block_draft_is_paid_for_at_its_own_size() -> None:
    gpt, full = kvcalc.load("gpt-oss-20b"), Full(num_kv_heads=4, head_dim=128, v_head_dim=128)
    draft = model("draft", "llama", (full, 5))
    for target, main in ((gpt, 12 * 2048), (kvcalc.load("llama-3.1-8b"), 32 * 4096)):
        engine = make_engine("sglang", {"speculative_algorithm": "DFLASH"})
        plan = Setup(target, engine, *parse_kv_dtypes("bf16"), draft=draft).plan
        assert isinstance(plan, SGLangPlan)
        assert (plan.pool.main_bytes, plan.pool.main_beyond) == (main + 5 * 2048, 0)


def test_a_draft_with_states_is_not_modelled() -> None:
    engine, llama = make_engine("sglang"), kvcalc.load("llama-3.1-8b")
    draft = model("draft", "mamba2", (State(recurrent_elements=64), 1))
    with pytest.raises(NotModelledError, match="a draft with state layers"):
        Setup(llama, engine, *parse_kv_dtypes("bf16"), draft=draft).plan  # noqa: B018 - the plan is made on demand


# DeepSeek V4.


def test_the_pools_of_deepseek_v4_flash_by_hand() -> None:
    # F 65,536 tokens; S int(65,536 x 0.1) in pages of 256: 6,400. Every pool has room for 256 tokens more.
    made = kvcalc.footprint("deepseek-v4-flash", context=65_536, engine="sglang")
    window = (6_400 // 256 + 1) * 149_760  # 256 x 584 bytes in multiples of 576
    fours = (65_536 // 256 + 4) * (37_440 + 64 * 132) + (6_400 // 256 * 8 + 8 + 1 + 3) // 4 * 4 * 4 * (512 + 128) * 4
    many = (65_536 // 256 + 128) * 1_728 + (257 * 128 + 128 + 128) * 2 * 512 * 4
    assert [row.bytes for row in made.kv_cache.layers] == [2 * window, 21 * (window + fours), 20 * (window + many)]
    assert made.kv_cache.bytes == 43 * window + 21 * fours + 20 * many
    # With a prediction layer states wait longer, and the layer has a window of its own.
    drafting = kvcalc.footprint("deepseek-v4-flash", context=65_536, engine="sglang", draft="mtp")
    states = 21 * 25 * 8 * 4 * (512 + 128) * 4 + 20 * 257 * 128 * 2 * 512 * 4
    rings = 21 * 8 * 4 * (512 + 128) * 4 + 20 * 128 * 2 * 512 * 4
    assert drafting.kv_cache.layers[-1].label == "draft: window"
    assert drafting.kv_cache.bytes - made.kv_cache.bytes == window + states + rings


def test_options_of_deepseek_v4() -> None:
    def cache(**options: Any) -> int:
        made = kvcalc.footprint("deepseek-v4-pro", context=65_536, engine="sglang", engine_options=options)
        return made.kv_cache.bytes

    assert cache() - cache(enable_deepseek_v4_fp4_indexer=True) == 30 * (256 + 4) * 64 * (132 - 68)
    assert cache() - cache(max_running_requests=128) == 31 * 128 * 128 * 2 * 512 * 4
    assert cache(swa_full_tokens_ratio=0.2) - cache() > 61 * 25 * 149_760
    assert cache(page_size=64) == cache()


def test_what_deepseek_v4_is_refused() -> None:
    flash = kvcalc.load("deepseek-v4-flash")
    for dtype in ("bf16", "fp8/bf16"):
        with pytest.raises(UnsupportedError, match="in fp8_e4m3 alone"):
            Setup(flash, make_engine("sglang"), *parse_kv_dtypes(dtype)).plan  # noqa: B018
    with pytest.raises(UnsupportedError, match="of DeepSeek V4 alone"):
        plan_of(model("other", "deepseek_v4", (Compressed(256, 128), 2)), dtype="fp8")
    setup = Setup(flash, make_engine("sglang"), *parse_kv_dtypes("fp8"))
    with pytest.raises(NotModelledError, match="compressed layers"):
        setup.engine.required_with_prefix(setup, 1000, 2, 500)
    with pytest.raises(UnsupportedError, match=r"not above the window and a page \(128 \+ 256\)"):
        setup.plan.report(1, 1, 2**30)
    assert any("no fewer than 5,120 tokens" in note for note in setup.plan.allocate(1, 1).notes)


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
        assert not _serves(plan, context, batch, required - 1)
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
    with pytest.raises(UnsupportedError, match="0 state slots fit, and one request holds 5"):
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
