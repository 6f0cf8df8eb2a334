"""LMDeploy's blocks by hand, from the sizes that its schema states; its own plans are asked by the oracle."""

from typing import Any

import pytest

import kvcalc
from kvcalc.architecture import (
    Architecture,
    Chunked,
    Compressed,
    Cross,
    Full,
    Latent,
    Layer,
    LayerKind,
    NoCache,
    Parallel,
    Sliding,
    State,
)
from kvcalc.derivation import evaluate
from kvcalc.dtypes import parse_kv_dtypes
from kvcalc.engines import make_engine
from kvcalc.engines.lmdeploy import LMDeploy, LMDeployPlan
from kvcalc.errors import NotModelledError, UnsupportedError
from kvcalc.serving import server_line
from kvcalc.setup import Setup, prepare
from kvcalc.units import GiB


def plan_of(model: Architecture | str, tp: int = 1, **options: Any) -> LMDeployPlan:
    architecture = kvcalc.load(model) if isinstance(model, str) else model
    plan = Setup(architecture, make_engine("lmdeploy", options), *parse_kv_dtypes("bfloat16"), tp).plan
    assert isinstance(plan, LMDeployPlan)
    return plan


def model(model_type: str, *kinds: LayerKind) -> Architecture:
    layers = tuple(Layer(cache=kind) for kind in kinds)
    return Architecture("some", model_type, layers, tuple(range(len(kinds))), hidden_size=64, vocab_size=1000)


@pytest.mark.parametrize(
    ("name", "tp", "options", "block_bytes"),
    [
        ("llama-3.1-8b", 1, {}, 32 * 2 * 64 * 8 * 128 * 2),
        ("llama-3.1-8b", 4, {}, 32 * 2 * 64 * 2 * 128 * 2),
        ("llama-3.1-8b", 16, {}, 32 * 2 * 64 * 1 * 128 * 2),  # a head on each of 16 devices, twice
        ("llama-3.1-8b", 1, {"quant_policy": 8}, 32 * 2 * 64 * 8 * (128 + 4)),
        ("llama-3.1-8b", 1, {"quant_policy": 4}, 32 * 2 * 64 * 8 * (64 + 4)),
        ("llama-3.1-8b", 1, {"quant_policy": 16}, 32 * 2 * 64 * 8 * 128),
        ("llama-3.1-8b", 1, {"quant_policy": 4, "backend": "turbomind"}, 32 * 2 * 64 * 8 * (64 + 4)),
        ("gemma-3-27b", 1, {}, 62 * 2 * 64 * 16 * 128 * 2),
        ("deepseek-v3", 8, {}, 61 * 64 * 576 * 2),
        ("deepseek-v3.2", 1, {}, 61 * (64 * 576 * 2 + 64 * 132)),
        ("deepseek-v3.2", 1, {"quant_policy": 16}, 61 * (64 * 656 + 64 * 132)),
        ("qwen3.5-27b", 2, {}, 16 * 2 * 64 * 2 * 256 * 2),
    ],
)
def test_a_block_has_the_k_and_v_of_its_tokens(name: str, tp: int, options: dict[str, Any], block_bytes: int) -> None:
    assert plan_of(name, tp, **options).block_bytes == block_bytes


def test_a_latent_is_kept_once_and_its_scales_twice_but_in_turbomind() -> None:
    flash = model("glm4_moe_lite", Latent(512, 64, 20, 192, 256))  # F40's GLM-4.7-Flash, one layer
    assert plan_of(flash).block_bytes == 64 * 576 * 2
    assert plan_of(flash, quant_policy=8).block_bytes == 64 * (576 + 4 + 4)
    assert plan_of(flash, quant_policy=8, backend="turbomind").block_bytes == 64 * (576 + 4)
    # MiniCPM3 keeps its heads decompressed, V as wide as K.
    assert plan_of(model("minicpm3", Latent(256, 32, 40, 64, 64))).block_bytes == 2 * 64 * 40 * 96 * 2


def test_each_part_of_a_block_is_rounded_up_to_256_bytes_but_in_turbomind() -> None:
    narrow = model("llama", Full(num_kv_heads=1, head_dim=80, v_head_dim=80))
    # K: 3 tokens of 160 bytes are 480, in 512.
    assert plan_of(narrow, cache_block_seq_len=3).block_bytes == 2 * 512
    assert plan_of(narrow, cache_block_seq_len=3, backend="turbomind").block_bytes == 2 * 480


def test_states_have_a_slot_for_each_sequence_that_may_run_and_two_more() -> None:
    plan = plan_of("qwen3.5-27b", max_batch_size=16)
    slot = 48 * (10240 * 4 + 48 * 128 * 128) * 2  # the kernel's whole width, and 16 bits a number
    assert (plan.slot_bytes, plan.state_bytes) == (slot, 18 * slot)
    assert plan.kv_bytes(64, 3) == 3 * plan.block_bytes + 18 * slot
    assert plan.report(64, 1, 60 * GiB)["num_state_caches"] == 18


def test_deepseek_v4_keeps_windows_as_states_and_its_entries_in_blocks_of_256() -> None:
    layers = Compressed(512, 128), Compressed(512, 128, 4, indexer_dim=128), Compressed(512, 128, 128)
    plan = plan_of(model("deepseek_v4", *layers), max_batch_size=6)
    # an entry is 584 bytes, its indexer's key 132; 256 tokens are 64 entries of 4 tokens, or 2 of 128
    assert plan.block_bytes == 64 * (584 + 132) + 2 * 584
    slot = 3 * 128 * 584 + 16 * 1024 * 4 + 16 * 256 * 4 + 256 * 512 * 4
    assert (plan.slot_bytes, plan.state_bytes) == (slot, 8 * slot)
    assert plan.kv_bytes(257, 3) == 3 * 2 * plan.block_bytes + 8 * slot
    rows = plan.allocate(257, 3).layers
    assert [(row.count, row.tokens) for row in rows] == [(1, 0), (1, 1536), (1, 1536)]
    assert rows[0].bytes == 8 * 128 * 584 and sum(row.bytes for row in rows) == plan.kv_bytes(257, 3)
    assert any("256 tokens" in note for note in plan.notes) and plan.report(1, 1, 10 * GiB)["max_tokens"] % 256 == 0


def test_where_one_window_counts_for_all_layers_blocks_before_it_are_given_back() -> None:
    plan = plan_of("mistral-7b-v0.1")
    chunk, window = 8192 // 64, 4096 // 64
    assert plan.blocks(8192) == chunk  # nothing lies before the first chunk
    assert plan.blocks(64 * 1024) == chunk + window
    assert plan.blocks(8192 + 64) == max(chunk, chunk + 1 - (8192 - 4096) // 64)
    cache = plan.allocate(64 * 1024, 1)
    assert cache.steady_bytes == (64 * 1024 // 64 - (64 * 1024 - 1 - 4096) // 64) * plan.block_bytes
    assert "full layers, too" in "\n".join(plan_of("gemma-2-9b").notes)
    assert "every layer keeps the whole context" in "\n".join(plan_of("gemma-3-27b").notes)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3.5-27b", "mistral-7b-v0.1", "gpt-oss-20b"])
@pytest.mark.parametrize(
    "options", [{}, {"cache_max_entry_count": 0.35, "max_batch_size": 7, "cache_block_seq_len": 32}]
)
def test_the_shown_work_is_the_work_and_the_memory_is_the_least(name: str, options: dict[str, Any]) -> None:
    plan = plan_of(name, **options)
    for context, batch in ((1, 1), (5000, 3), (40_000, 2)):
        cache = plan.allocate(context, batch)
        values = evaluate(plan.explain(context, batch))
        assert values["kv_bytes"] == cache.bytes == plan.kv_bytes(context, batch)
        assert sum(row.bytes for row in cache.layers) + cache.padding_bytes == cache.bytes
        memory = plan.required_kv_memory(context, batch)
        assert values["required_bytes"] == memory
        assert plan.report(context, batch, memory)["fits"] and not plan.report(context, batch, memory - 1)["fits"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama-3.1-8b", {"backend": "turbomind", "quant_policy": 8}),
        ("glm-5.2", {}),
        ("deepseek-v4-flash", {"max_batch_size": 32}),
        ("qwen3.5-27b", {}),
    ],
)
def test_the_work_of_turbomind_and_of_sparse_attention_is_shown_too(name: str, options: dict[str, Any]) -> None:
    plan = plan_of(name, **options)
    values = evaluate(plan.explain(5000, 3))
    assert values["kv_bytes"] == plan.kv_bytes(5000, 3)
    assert values["required_bytes"] == plan.required_kv_memory(5000, 3)


def test_sparse_attention_sets_room_for_its_scores_aside_and_latents_have_one_block_size() -> None:
    plan = plan_of("deepseek-v3.2")
    assert plan.reserved_bytes == (8192 + 2 * 128) * 129280 * 2 + 512 * 2**20
    with pytest.raises(UnsupportedError, match="blocks of 64 tokens alone"):
        plan_of("deepseek-v3", cache_block_seq_len=32)


def test_a_step_of_logits_is_set_aside_before_the_cache_takes_its_part() -> None:
    plan = plan_of("llama-3.1-8b")
    assert plan.reserved_bytes == (8192 + 2 * 128) * 128256 * 2
    free = 60 * GiB
    assert plan.report(1, 1, free)["num_gpu_blocks"] == int((free - plan.reserved_bytes) * 0.8) // plan.block_bytes
    assert plan_of("llama-3.1-8b", backend="turbomind").reserved_bytes == 0
    assert plan.report(1, 1, 1)["num_gpu_blocks"] == 0


@pytest.mark.parametrize(
    ("found", "options", "error"),
    [
        (model("gemma4", Full(1, 64, 64)), {}, UnsupportedError),
        (model("gemma3", Full(1, 64, 64)), {"backend": "turbomind"}, UnsupportedError),
        (model("llama", Full(1, 64, 64)), {"backend": "turbomind", "quant_policy": 16}, UnsupportedError),
        (model("llama", Full(1, 64, 64), Full(2, 64, 64)), {}, UnsupportedError),
        (model("mllama", Full(1, 64, 64), Cross(1, 64, 64)), {}, NotModelledError),
        (model("llama", Full(1, 64, 64, extra_state_bytes=8)), {}, UnsupportedError),
        (model("llama", Parallel(Full(1, 64, 64), State(64))), {}, UnsupportedError),
        (model("deepseek_v4", Compressed(256, 128, 4)), {}, UnsupportedError),
        (model("deepseek_v32", Latent(512, 64, 4, 64, 64, indexer_dim=128)), {"quant_policy": 8}, NotModelledError),
        (model("qwen3_5", State(64, conv_channels=8, conv_kernel=4)), {"backend": "turbomind"}, NotModelledError),
    ],
)
def test_what_it_does_not_run_or_nobody_read_is_refused(
    found: Architecture, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"^lmdeploy"):
        plan_of(found, **options)


@pytest.mark.parametrize("kind", [Full(3, 64, 64), State(3, conv_channels=3, conv_kernel=4)])
def test_devices_that_do_not_divide_a_model_are_refused(kind: LayerKind) -> None:
    with pytest.raises(UnsupportedError, match="does not divide"):
        plan_of(model("qwen3_next", kind), 2)


def test_layers_without_a_cache_take_nothing_and_chunks_are_kept_whole() -> None:
    chunked = model("llama4", Chunked(8192, 1, 64, 64), Full(1, 64, 64), NoCache())
    assert plan_of(chunked).block_bytes == 2 * 2 * 64 * 64 * 2
    empty = plan_of(model("llama", NoCache()))
    assert (empty.kv_bytes(100, 2), empty.required_kv_memory(100, 2) >= 0) == (0, True)
    assert evaluate(empty.explain(100, 2))["kv_bytes"] == 0


def test_its_defaults_by_device_and_its_server() -> None:
    assert LMDeploy.device_options(24 * GiB, "rtx-4090") == {}
    assert LMDeploy().batch_limit is None and LMDeploy(max_batch_size=4).batch_limit == 4
    floats = [
        dtype.name for dtype in LMDeploy().default_kv_dtypes(model("llama", Full(1, 64, 64)).changed(dtype="float32"))
    ]
    assert floats == ["float16", "float16"]
    setup = prepare(kvcalc.load("llama-3.1-8b"), engine="lmdeploy", engine_options={"quant_policy": 8})
    line = "lmdeploy serve api_server M --session-len 4096 --backend pytorch --quant-policy 8"
    assert server_line(setup, "M", 4096, 1) == line
    assert any("TurboMind unless told" in note for note in setup.plan.allocate(1, 1).notes)


def test_sliding_layers_of_mixed_models_keep_the_whole_context() -> None:
    mixed = model("gpt_oss", Sliding(128, 1, 64, 64), Full(1, 64, 64))
    assert plan_of(mixed).blocks(6400) == 100


@pytest.mark.parametrize("backend", ["pytorch", "turbomind"])
def test_the_work_names_the_source_of_its_backend(backend: str) -> None:
    steps = {step.symbol: step.source for step in plan_of("qwen3-8b", backend=backend).explain(1024, 1)}
    assert ("turbomind" in steps["layer_1"]) == (backend == "turbomind")
