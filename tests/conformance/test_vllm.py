"""The vLLM engine against vLLM's own planner and KV cache manager, and against figures that servers printed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    Shared,
    Sliding,
    State,
    distinct_layers,
    layer_kind,
)
from kvcalc.derivation import evaluate
from kvcalc.dtypes import parse_kv_dtypes
from kvcalc.engines import make_engine
from kvcalc.engines.vllm import Vllm, VllmPlan, versions
from kvcalc.engines.vllm.blocks import Blocks
from kvcalc.engines.vllm.versions import READ, SPANS
from kvcalc.errors import InputError, KVCalcError, NotModelledError, RefusalError, UnsupportedError
from kvcalc.setup import Setup
from kvcalc.units import GiB, ceil_div

RECORDED = json.loads((Path(__file__).parent.parent / "data" / "vllm.json").read_text(encoding="utf-8"))


def model(*runs: tuple[LayerKind, int], model_type: str = "custom", repeat: int = 1) -> Architecture:
    """A model without weights from runs of layers."""
    layers, order = distinct_layers([Layer(cache=kind) for kind, count in runs * repeat for _ in range(count)])
    return Architecture(name="model", model_type=model_type, layers=layers, order=order, hidden_size=1, vocab_size=1)


def full(heads: int, width: int, v_width: int | None = None) -> Full:
    return Full(num_kv_heads=heads, head_dim=width, v_head_dim=v_width or width)


def sliding(window: int, heads: int, width: int, v_width: int | None = None) -> Sliding:
    return Sliding(window=window, num_kv_heads=heads, head_dim=width, v_head_dim=v_width or width)


def latent(**changes: Any) -> Latent:
    return Latent(**{"rank": 512, "rope_dim": 64, "num_heads": 128, "nope_dim": 128, "v_head_dim": 128, **changes})


def gated_delta_net(value_heads: int, key_heads: int = 16) -> State:
    """The linear attention of Qwen3-Next and Qwen3.5."""
    channels = 2 * key_heads * 128 + value_heads * 128
    return State(value_heads * 128 * 128, "float32", conv_channels=channels, conv_kernel=4)


def plan(
    architecture: Architecture, dtype: str = "bfloat16", tp: int = 1, encoder_tokens: int = 0, **options: Any
) -> VllmPlan:
    engine = Vllm(**options)
    return engine.prepare(Setup(architecture, engine, *parse_kv_dtypes(dtype), tp, encoder_tokens))


MODELS = {
    name: model(*((layer_kind(entry["kinds"][letter]), 1) for letter in entry["order"]))
    for name, entry in RECORDED["models"].items()
}


def recorded(section: str) -> list[dict[str, Any]]:
    table = RECORDED[section]
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def row_id(row: dict[str, Any]) -> str:
    return "-".join(str(value) for value in list(row.values())[:5])


QWEN_27B = model((gated_delta_net(48), 3), (full(4, 256), 1), repeat=16)
GEMMA_4_31B = model((sliding(1024, 16, 256), 5), (full(4, 512), 1), repeat=10)
MIMO = model((sliding(128, 8, 192, 128), 39), (full(4, 192, 128), 9))
LLAMA_4 = model((Chunked(chunk=8192, num_kv_heads=8, head_dim=128, v_head_dim=128), 3), (full(8, 128), 1), repeat=12)
SAMPLES = {
    "gemma-3-1b": MODELS["gemma-3-1b"],
    "gemma-4-31b": GEMMA_4_31B,
    "mimo": MIMO,
    "two windows": MODELS["synthetic-two-windows"],
    "chunked": LLAMA_4,
    "llama 4": LLAMA_4.changed(model_type="llama4"),
    "cohere 2": model((sliding(4096, 8, 128), 3), (full(8, 128), 1), repeat=8, model_type="cohere2"),
    "latent": model((latent(), 61)),
    "latent beside windows": model((latent(), 3), (sliding(128, 8, 128), 3)),
    "all sliding": model((sliding(4096, 8, 128), 32)),
    "two widths, all full": model((full(8, 128), 5), (full(4, 64), 2)),
    "padded pages": model((sliding(100, 3, 80), 4), (full(4, 128), 2)),
    "states": QWEN_27B,
    "states beside wide keys": model((gated_delta_net(48), 3), (full(8, 128, 64), 1)),
    "states alone": model((gated_delta_net(16), 4)),
    "states beside latents": model((gated_delta_net(32), 3), (latent(), 1), repeat=6),
    "parallel": model((Parallel(attention=full(2, 128), state=gated_delta_net(24)), 44)),
    "shared": model(
        (sliding(512, 2, 256), 4), (full(2, 256), 1), (Shared(of="sliding"), 4), (Shared(of="full"), 1), repeat=2
    ),
    "cross": model((full(8, 128), 2), (Cross(num_kv_heads=8, head_dim=128, v_head_dim=128), 2)),
    "no cache": model((NoCache(), 3)),
}


@pytest.mark.parametrize("row", recorded("planner_0_33_0"), ids=row_id)
def test_every_figure_of_the_planner(row: dict[str, Any]) -> None:
    options = {
        **row["options"],
        "max_num_batched_tokens": row["max_num_batched_tokens"],
        "block_size": row["block_size"],
    }
    planned = plan(MODELS[row["model"]], row["kv_cache_dtype"], row["tp"], **options)
    context = row["max_model_len"]
    assert planned.layer_bytes(context) == row["layers_bytes"]
    assert planned.num_groups == row["groups"]
    assert planned.group_size == row["group_size"]
    assert planned.padding_layers == row["padding_layers"]
    assert planned.kv_bytes(context, 1) == row["request_bytes"]
    report = planned.report(context, 1, row["kv_memory"])
    assert report["bytes_per_block"] == row["bytes_per_block"]
    assert report["blocks_per_request"] == row["request_blocks"]
    assert report["max_request_bytes"] == row["request_bytes"]
    assert report["estimated_max_model_len"] == row["estimate"]
    assert report["fits"] is (row["tokens"] is not None)
    if report["fits"]:
        assert report["num_gpu_blocks"] == row["num_gpu_blocks"]
        assert report["max_concurrency"] == row["concurrency"]
        assert report["gpu_kv_cache_size_tokens"] == row["tokens"]


@pytest.mark.parametrize("row", recorded("planner_0_14_0"), ids=row_id)
def test_every_figure_of_the_old_planner(row: dict[str, Any]) -> None:
    tokens = row["max_num_batched_tokens"]
    planned = plan(MODELS[row["model"]], tp=row["tp"], version="0.14.0", max_num_batched_tokens=tokens)
    report = planned.report(row["max_model_len"], 1, 40 * GiB)
    assert planned.layer_bytes(row["max_model_len"]) == row["layers_bytes"]
    assert report["num_gpu_blocks"] == row["num_gpu_blocks"]
    assert report["gpu_kv_cache_size_tokens"] == row["tokens"]
    assert report["max_concurrency"] == row["concurrency"]
    assert report["fits"]


@pytest.mark.parametrize("row", recorded("manager_0_33_0"), ids=row_id)
def test_what_the_manager_held_at_the_last_step_and_at_its_peak(row: dict[str, Any]) -> None:
    most, prompt, is_async = row["max_num_batched_tokens"], row["prompt_tokens"], row["async_scheduling"]
    planned = plan(MODELS[row["model"]], max_num_batched_tokens=most, async_scheduling=is_async)
    steps = [min(most, prompt - done) for done in range(0, prompt, most)] + [1] * row["decode_tokens"]
    held, computed, step_before = [], 0, 0
    for step in steps:
        held.append(planned.resident_bytes(computed + step, computed, step_before if is_async else 0))
        computed, step_before = computed + step, step
    assert held[-1] == row["final_bytes"]
    assert max(held) == row["peak_bytes"]


@pytest.mark.parametrize(
    ("heads", "dtype", "speculative", "block", "padding"),
    [
        ((48, 4), "bfloat16", 0, 784, "0.13%"),
        ((48, 4), "fp8", 0, 1568, "0.13%"),
        ((48, 4), "bfloat16", 7, 832, "1.71%"),
        ((32, 2), "bfloat16", 0, 1056, "0.76%"),
        ((32, 2), "fp8", 0, 2096, "0.00%"),
        ((64, 2), "fp8", 0, 4176, "0.19%"),
        ((32, 4), "bfloat16", 0, 528, "0.76%"),
        ((16, 2), "bfloat16", 0, 544, "2.64%"),
    ],
)
def test_attention_blocks_that_servers_of_qwen_3_5_printed(
    heads: tuple[int, int], dtype: str, speculative: int, block: int, padding: str
) -> None:
    value_heads, kv_heads = heads
    qwen = model((gated_delta_net(value_heads), 3), (full(kv_heads, 256), 1), repeat=8)
    planned = plan(qwen, dtype, num_speculative_tokens=speculative)
    assert evaluate(planned.explain(8192, 1))["attention_block"] == block
    assert any(f"blocks of {block:,} tokens" in note and f"({padding})" in note for note in planned.notes)


@pytest.mark.parametrize(
    ("attention", "repeat", "block_size", "bytes_per_block"),
    # What vLLM 0.33.0's planner answered, with the blocks that Platform._align_hybrid_block_size chose.
    [
        (full(4, 256), 16, 16, 51_380_224),
        (full(4, 256), 16, 32, 52_428_800),
        (full(4, 256), 16, 64, 54_525_952),
        (latent(), 6, 16, 19_464_192),  # in steps of 128
        (full(8, 128, 64), 1, 16, 3_211_264),  # a token counted as if V were 128 wide
    ],
)
def test_the_attention_block_beside_states_grows_in_the_steps_of_the_planner(
    attention: LayerKind, repeat: int, block_size: int, bytes_per_block: int
) -> None:
    planned = plan(model((gated_delta_net(48), 3), (attention, 1), repeat=repeat), block_size=block_size)
    assert planned.bytes_per_block == bytes_per_block


def test_the_attention_block_beside_states_and_windows_alone_follows_the_first_window() -> None:
    wide, narrow = sliding(128, 8, 128), sliding(128, 4, 128)
    blocks = {
        plan(model((gated_delta_net(16), 1), (first, 1), (second, 1))).block_note.block_size  # type: ignore[union-attr]
        for first, second in ((wide, narrow), (wide, wide))
    }
    assert blocks == {16 * ceil_div(16 * 128 * 128 * 4 + 3 * 6144 * 2, 16 * 4096)}


def test_the_pool_that_a_server_of_qwen_3_8_27b_printed() -> None:
    # 4.99 GiB on each of 2 devices, fp8, prefix caching: "302,921 tokens", "2.31x"
    planned = plan(QWEN_27B, "fp8", 2, enable_prefix_caching=True)
    report = planned.report(131072, 1, 499 * GiB // 100)
    assert planned.num_groups == 4
    assert planned.group_size == 16
    assert report["gpu_kv_cache_size_tokens"] == 302_921
    assert f"{report['max_concurrency']:.2f}" == "2.31"


def test_what_servers_of_gemma_4_31b_said_they_needed() -> None:
    options = {"max_num_batched_tokens": 32768}
    needed = {
        version: plan(GEMMA_4_31B, version=version, **options).kv_bytes(262144, 1) for version in ("0.26.0", "0.25.1")
    }
    assert f"{needed['0.26.0'] / GiB:.2f}" == "70.79"
    assert f"{needed['0.25.1'] / GiB:.2f}" == "45.79"
    all_full = plan(GEMMA_4_31B, disable_hybrid_kv_cache_manager=True)
    assert all_full.kv_bytes(262144, 1) == 220 * GiB


def test_what_a_server_of_qwen3_vl_32b_said_before_it_refused() -> None:
    planned = plan(model((full(8, 128), 64)), tp=2, version="0.14.0", block_size=128)
    report = planned.report(262144, 1, 21_540_531_712)
    assert report["max_request_bytes"] == 32 * GiB
    assert not report["fits"]
    assert report["estimated_max_model_len"] == 164_224


def test_a_draft_model_of_the_same_shape_joins_the_one_group() -> None:
    assert plan(model((full(8, 128), 80 + 28)), tp=2).kv_bytes(131072, 1) == 27 * GiB


def test_a_drafter_of_five_layers_sets_the_group_size() -> None:
    drafted = model((gated_delta_net(48), 48), (full(4, 256), 16), (full(4, 256, 128), 5))
    assert plan(drafted).group_size == 5


def test_gemma_3_27b_is_groups_of_ten_with_eight_padding_layers() -> None:
    cache = kvcalc.footprint(kvcalc.load("gemma-3-27b"), context=131072, engine="vllm").kv_cache
    assert cache.why == "groups of 10, 8 padding layers"
    # The 52 sliding layers have 60 places in their 6 groups, so 8 places of 52 are padding.
    sliding_row = next(row for row in cache.layers if row.kind == "sliding")
    assert cache.padding_bytes * 52 == sliding_row.bytes * 8


@pytest.mark.parametrize(
    ("versions", "blocks", "tokens", "concurrency"),
    [
        (("0.11.0", "0.11.2", "0.12.0", "0.14.0", "0.17.1"), 11_654, 74_896, "2.81"),  # 40 GiB of 7 groups of 16 tokens
        (("0.20.2", "0.25.1"), 11_654, 368_540, "2.81"),  # one batch of 8192 tokens beside the window
        (("0.26.0", "0.33.0"), 14_726, 291_658, "2.23"),  # two
    ],
)
def test_the_version_decides_what_is_logged_and_reserved(
    versions: tuple[str, ...], blocks: int, tokens: int, concurrency: str
) -> None:
    for version in versions:
        report = plan(kvcalc.load("gemma-3-27b"), version=version).report(131072, 1, 40 * GiB)
        assert report["blocks_per_request"] == blocks
        assert (report["gpu_kv_cache_size_tokens"], f"{report['max_concurrency']:.2f}") == (tokens, concurrency)


@pytest.mark.parametrize(
    ("version", "checks_layers"),
    [("0.11.0", True), ("0.12.0", True), ("0.19.0", False), ("0.28.0", False)],
)
def test_the_start_up_check_of_old_versions_adds_up_the_layers(version: str, checks_layers: bool) -> None:
    planned = plan(kvcalc.load("gemma-3-1b"), version=version)
    # 22 sliding layers of 1 + (511 + F) / 16 blocks and 4 full ones, of 16 x 1024 bytes, without the 2 padding layers.
    needed = planned.layer_bytes(32768) if checks_layers else planned.kv_bytes(32768, 1)
    assert planned.needed_bytes(32768) == needed
    assert planned.report(32768, 1, needed)["fits"]
    assert not planned.report(32768, 1, needed - 1)["fits"]


def test_no_block_is_given_back_before_a_token_is_computed() -> None:
    for kind in (sliding(1, 1, 64), Chunked(chunk=1, num_kv_heads=1, head_dim=64, v_head_dim=64)):
        planned = plan(model((kind, 1)), block_size=1)
        # Step by step: one token under way, then two, then the first of three is given back.
        held = [planned.resident_bytes(tokens, tokens - 1, 1) // 256 for tokens in (1, 2, 3)]
        assert held == [1, 2, 2]


@pytest.mark.parametrize(
    ("local_layers", "full_layers", "sizes"),
    [
        (12, 10, (10, 12, 12, 12)),
        (12, 9, (9, 9, 12, 12)),
        (26, 21, (21, 26, 26, 26)),
        (10, 8, (8, 8, 10, 10)),  # 10 is 1.25 x 8: not below it
        (12, 8, (8, 8, 8, 8)),  # 12 is 1.5 x 8
        (31, 25, (25, 31, 31, 31)),  # 1.24 times as many
        (76, 51, (51, 51, 76, 76)),  # 1.49 times
    ],
)
def test_the_group_size_threshold_of_each_version(
    local_layers: int, full_layers: int, sizes: tuple[int, int, int, int]
) -> None:
    mixed = model((sliding(1024, 8, 128), local_layers), (full(8, 128), full_layers))
    versions = ("0.11.0", "0.17.1", "0.20.2", "0.33.0")
    assert tuple(plan(mixed, version=version).group_size for version in versions) == sizes


def test_the_null_block_is_checked_since_0_29() -> None:
    # One block more than a request needs: 0.28.0 compares the request with all blocks of the pool.
    for version, blocks in (("0.28.0", 2048), ("0.29.0", 2049), ("0.33.0", 2049)):
        planned = plan(model((full(8, 128), 32)), version=version)
        pool = blocks * planned.bytes_per_block
        assert planned.report(32768, 1, pool)["estimated_max_model_len"] == 32768
        assert not planned.report(32768, 1, pool - 1)["fits"]


def test_versions_from_0_14_to_0_18_check_the_first_group_alone() -> None:
    planned = plan(model((sliding(1024, 8, 128), 20), (full(8, 128), 4)), version="0.18.0")
    assert planned.needed_bytes(131072) == planned.bytes_per_block * planned.groups[0][0].reserved(131072)
    assert planned.needed_bytes(131072) < planned.kv_bytes(131072, 1)


@pytest.mark.parametrize(
    ("version", "as_in"),
    [
        ("0.10.2", "older than the releases read: the rule of 0.11.0 is followed"),
        ("0.13", "not among the releases read: the rule of 0.12.0 is followed"),
        ("0.20.2rc1.dev9+g01d4d1ad3", None),
        ("0.21.0", "not among the releases read: the rule of 0.20.2 is followed"),
        ("v0.29.1rc1", "not among the releases read: the rule of 0.29.0 is followed"),
        ("0.33.0", None),
        ("0.34.0", "newer than the releases read: the rule of 0.33.0 is followed"),
    ],
)
def test_a_version_that_was_not_read_follows_the_nearest_older_one_and_says_so(version: str, as_in: str | None) -> None:
    notes = plan(QWEN_27B, version=version).notes
    assert [note for note in notes if "releases read" in note] == (
        [f"vllm {_short(version)} is {as_in}"] if as_in else []
    )


_READ = "0.11.0 0.11.2 0.12.0 0.14.0 0.17.1 0.18.0 0.19.0 0.20.0 0.20.1 0.20.2 0.22.0 0.24.0 0.25.1 0.26.0 0.27.1"


@pytest.mark.parametrize("version", [*_READ.split(), *(f"0.{minor}.0" for minor in range(28, 34))])
def test_a_version_that_was_read_is_followed_without_a_remark(version: str) -> None:
    assert not [note for note in plan(QWEN_27B, version=version).notes if "releases read" in note]


#: The last version with a class of these types (_PREVIOUSLY_SUPPORTED_MODELS of 0.33.0), and the one after it.
DROPPED = {
    ("0.10.2", "0.11.0"): "phi4flash motif mllama",
    ("0.22.0", "0.23.0"): "jais",
    ("0.23.0", "0.24.0"): "bamba baichuan dots1 internlm minimax minimax_m1 minimax_text_01 qwen xverse",
    ("0.24.0", "0.25.0"): "grok-1",
    ("0.25.0", "0.26.0"): "persimmon fuyu",
    ("0.26.0", "0.27.0"): "ouro plamo2",
    ("0.28.0", "0.29.0"): "arctic chameleon mpt",
}


@pytest.mark.parametrize(
    ("last", "after", "model_type"),
    [(*versions, each) for versions, types in DROPPED.items() for each in types.split()],
)
def test_a_type_that_vllm_dropped_is_planned_as_its_last_version_did(last: str, after: str, model_type: str) -> None:
    layers = model((full(8, 128), 2), model_type=model_type)
    note = f"vllm has no class of its own for this model after {last}: planned as that version did"
    assert (note in plan(layers, version=after).notes, note in plan(layers, version=last).notes) == (True, False)


@pytest.mark.parametrize(
    ("tp", "ranks", "devices"), [(4, 2, 16), (8, 2, 16), (16, 2, None), (16, 4, 32), (32, 4, None), (8, 1, None)]
)
def test_context_parallelism_wants_as_many_devices_for_each_head(tp: int, ranks: int, devices: int | None) -> None:
    notes = plan(model((full(8, 128), 2)), tp=tp, decode_context_parallel_size=ranks).notes
    said = [note.rpartition(": ")[2] for note in notes if note.startswith("vllm starts decode context parallelism")]
    assert said == ([] if devices is None else [f"{devices} devices for 8 heads and {ranks} ranks"])


def test_sequences_decode_a_token_each_though_a_step_has_fewer_tokens() -> None:
    """A window of 18 keeps 16 tokens in 2 blocks, the next opens a third; of two tokens each one such is over."""
    planned = plan(model((sliding(18, 8, 128), 2)), max_num_batched_tokens=64, max_num_seqs=64)
    assert planned.blocks(4096, 3000) == 3000 * 2 + 3000 + 3000 // 16


def _short(version: str) -> str:
    return {"0.13": "0.13.0", "v0.29.1rc1": "0.29.1"}.get(version, version)


@pytest.mark.parametrize("version", ["latest", "", "0", "0.33.0.1.2.", "1234.0", "0.33/0"])
def test_a_text_that_is_no_version_is_an_input_error(version: str) -> None:
    with pytest.raises(InputError, match="no version: write two or three numbers"):
        make_engine("vllm", {"version": version})


CHANGES: list[dict[str, Any]] = [
    {"counts_every_batch": False},
    {"padding_percent": None},
    {"padding_percent": 400},
    {"counts_speculation": False},
    {"pads_attention": False},
    {"pads_states": False},
    {"steps_from_block_size": False},
    {"latent_steps": 512},
    {"tokens_by_group": True},
    {"check": "layers"},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: "-".join(map(str, *change.items())))
def test_a_made_up_version_with_one_other_rule_cannot_print_two_numbers(
    change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = replace(SPANS[-1], first=(0, 34, 0), **change)
    monkeypatch.setattr(versions, "SPANS", (*SPANS, newest))
    for name, sample in SAMPLES.items():
        for batch_size in (1, 7):
            try:
                made = plan(sample, version="0.34.0", num_speculative_tokens=2, block_size=32)
            except KVCalcError:
                continue
            cache = made.allocate(5000, batch_size)
            shown = evaluate(made.explain(5000, batch_size))["kv_bytes"]
            assert cache.bytes == made.kv_bytes(5000, batch_size) == shown, name


def test_every_span_has_a_row_and_they_are_in_order() -> None:
    firsts = [rules.first for rules in SPANS]
    assert firsts == sorted(set(firsts))
    assert set(firsts) <= {(0, 15, 0), (0, 17, 0), (0, 27, 0), *READ}


def test_the_default_memory_fraction_follows_the_version() -> None:
    assert Vllm().utilization_percent == 92
    assert Vllm(version="0.25").utilization_percent == 92
    assert Vllm(version="0.17.1").utilization_percent == 90
    assert Vllm(version="0.11.2").utilization_percent == 90
    assert Vllm(version="0.33").utilization_percent == 92  # 0.33 is 0.33.0, the last that was read


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({}, 2 * 8192),
        ({"async_scheduling": False}, 8192),
        ({"pipeline_parallel_size": 4}, 5 * 8192),
        ({"pipeline_parallel_size": 4, "async_scheduling": False}, 4 * 8192),
        ({"version": "0.25.1", "pipeline_parallel_size": 4}, 8192),
    ],
)
def test_tokens_under_way(options: dict[str, Any], tokens: int) -> None:
    assert Vllm(**options).tokens_in_flight == tokens


def test_pipeline_stages_keep_the_models_groups_and_pay_for_their_own_layers() -> None:
    whole, staged = plan(GEMMA_4_31B), plan(GEMMA_4_31B, pipeline_parallel_size=3)
    assert staged.num_groups == whole.num_groups == 6
    assert staged.group_size == 10
    # 20 layers a stage: the third holds 4 full layers, the others 3 and at most 4 of one sliding group.
    assert staged.bytes_per_block == 4 * whole.bytes_per_block // 10
    one_kind = plan(kvcalc.load("llama-3.1-8b"), pipeline_parallel_size=3)
    assert one_kind.bytes_per_block == 11 * 65536
    assert sum(row.count for row in one_kind.allocate(4096, 1).layers) == 11
    with pytest.raises(UnsupportedError, match="fewer than pipeline_parallel_size=33"):
        plan(kvcalc.load("llama-3.1-8b"), pipeline_parallel_size=33)


@pytest.mark.parametrize(
    ("version", "gibibytes", "longest"), [("0.12.0", 12, 69_472), ("0.15.1", 24, 34_736), ("0.17.1", 12, 69_472)]
)
def test_the_check_of_0_14_to_0_16_holds_every_stage_against_one_stages_memory(
    version: str, gibibytes: int, longest: int
) -> None:
    # vllm issue 34076, 0.15.2rc1: 24.0 GiB for 262,144 tokens, and 34,736 tokens in 3.18 GiB.
    planned = plan(kvcalc.load("qwen3-30b-a3b"), version=version, pipeline_parallel_size=2)
    assert planned.needed_bytes(262_144) == gibibytes * GiB
    assert planned.report(262_144, 1, int(3.1808 * GiB))["estimated_max_model_len"] == longest


def test_a_stage_without_a_cache_cannot_start() -> None:
    halves = model((full(8, 128), 2), (NoCache(), 2))
    assert plan(halves).kv_bytes(16, 1) == 2 * 65536
    with pytest.raises(UnsupportedError, match="in 2 pipeline stages: one of them keeps no cache"):
        plan(halves, pipeline_parallel_size=2)
    assert plan(SAMPLES["no cache"], pipeline_parallel_size=3).kv_bytes(16, 1) == 0


def test_llama_4_is_full_in_every_layer_and_says_so() -> None:
    llama, custom = plan(SAMPLES["llama 4"]), plan(LLAMA_4)
    assert llama.kv_bytes(131072, 1) == 48 * 131072 * 4096
    assert custom.kv_bytes(131072, 1) < llama.kv_bytes(131072, 1)
    assert plan(LLAMA_4, disable_hybrid_kv_cache_manager=True).kv_bytes(131072, 1) == llama.kv_bytes(131072, 1)
    assert "chunked attention" in llama.notes[0]
    assert "VLLM_ALLOW_CHUNKED_LOCAL_ATTN" in custom.notes[0]


def test_cohere_2_slides_over_one_token_more() -> None:
    layers = ((sliding(4096, 8, 128), 3), (full(8, 128), 1))
    wide = model((sliding(4097, 8, 128), 3), (full(8, 128), 1), repeat=8)
    cohere, other = model(*layers, repeat=8, model_type="cohere2"), model(*layers, repeat=8)
    one = {"max_num_batched_tokens": 1, "async_scheduling": False}
    assert plan(cohere, **one).kv_bytes(131072, 1) == plan(wide, **one).kv_bytes(131072, 1)
    assert plan(cohere, **one).kv_bytes(131072, 1) > plan(other, **one).kv_bytes(131072, 1)
    # With steps of a multiple of 16 tokens the block hides it.
    assert plan(cohere).kv_bytes(131072, 1) == plan(other).kv_bytes(131072, 1)


def test_layers_that_share_a_cache_cost_nothing_and_stand_in_no_group() -> None:
    shared, alone = SAMPLES["shared"], model((sliding(512, 2, 256), 4), (full(2, 256), 1), repeat=2)
    assert plan(shared).kv_bytes(32768, 3) == plan(alone).kv_bytes(32768, 3)
    assert [row.bytes for row in plan(shared).allocate(32768, 1).layers if row.kind == "shared"] == [0, 0]


@pytest.mark.parametrize(
    ("dtype", "token_bytes"),
    [
        ("bfloat16", 1024),
        ("fp8", 512),
        ("fp8_per_token_head", 528),
        ("int8_per_token_head", 528),
        ("int4_per_token_head", 272),
        ("nvfp4", 288),
    ],
)
def test_bytes_of_a_token_in_two_heads_of_128(dtype: str, token_bytes: int) -> None:
    assert plan(model((full(2, 128), 1)), dtype).bytes_per_block == 16 * token_bytes


@pytest.mark.parametrize(
    ("dtype", "token_bytes"), [("bfloat16", 1152), ("fp8", 576), ("fp8_ds_mla", 656), ("nvfp4_ds_mla", 352)]
)
def test_a_latent_is_whole_on_every_device(dtype: str, token_bytes: int) -> None:
    assert plan(SAMPLES["latent"], dtype, tp=8).bytes_per_block == 61 * 16 * token_bytes
    assert "the whole latent" in plan(SAMPLES["latent"], dtype, tp=2).notes[0]
    assert plan(SAMPLES["latent"], dtype).notes == ()


@pytest.mark.parametrize(
    ("memory_bytes", "device", "tokens", "sequences"),
    [
        (70 * GiB - 1, "", 2048, 256),
        (70 * GiB, "", 8192, 1024),
        (80 * GiB, "A100-SXM4-80GB", 2048, 256),
        (119 * GiB, "NVIDIA GB10", 2048, 256),
        (160 * GiB - 1, "", 8192, 1024),
        (160 * GiB, "", 16384, 1024),
    ],
)
def test_a_step_follows_the_device(memory_bytes: int, device: str, tokens: int, sequences: int) -> None:
    chosen = Vllm.device_options(memory_bytes, device)
    assert chosen == {"max_num_batched_tokens": tokens, "max_num_seqs": sequences}


def test_heads_are_divided_evenly_or_replicated_evenly_and_no_other_way() -> None:
    with pytest.raises(UnsupportedError, match=r"does not divide the heads of model \(10 KV heads\) by") as refusal:
        plan(model((full(10, 64), 1)), tp=4)
    assert refusal.value.hint == "sizes that divide them: 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120"
    assert plan(model((full(10, 64), 1)), tp=5).bytes_per_block == 16 * 2 * 256
    assert plan(model((full(1, 64), 1)), tp=4).bytes_per_block == 16 * 256
    # Kinds are divided by themselves: 16 and 4 heads on 8 devices are 2 and 1, so pages of 32,768 bytes both.
    assert plan(GEMMA_4_31B, tp=8).bytes_per_block == 10 * 32768


def test_pages_grow_where_they_divide_the_largest_and_are_padded_where_not() -> None:
    assert {rule.block_size for rule, _ in plan(MIMO).groups} == {16, 32}
    padded = plan(SAMPLES["padded pages"])
    assert {rule.block_size for rule, _ in padded.groups} == {16}
    assert padded.bytes_per_block == 2 * 32768
    assert plan(SAMPLES["padded pages"], version="0.24.0").bytes_per_block == 2 * 32768
    for version in ("0.11.0", "0.22.0"):
        with pytest.raises(UnsupportedError, match="pages of one size: 15,360, 32,768 bytes"):
            plan(SAMPLES["padded pages"], version=version)


def test_latents_beside_windows_that_do_not_fit_are_all_full() -> None:
    both = plan(SAMPLES["latent beside windows"])
    assert both.num_groups == 1
    assert both.kv_bytes(131072, 1) == 131072 * 3 * (1152 + 4096)
    assert "whole context" in both.notes[0]


def test_an_all_sliding_model_keeps_its_window_without_the_hybrid_manager() -> None:
    sample = SAMPLES["all sliding"]
    off = plan(sample, disable_hybrid_kv_cache_manager=True)
    assert off.kv_bytes(131072, 1) == plan(sample).kv_bytes(131072, 1) == 32 * 65536 * (1280 + 1)
    local, chunk = sliding(512, 8, 128), Chunked(chunk=512, num_kv_heads=8, head_dim=128, v_head_dim=128)
    wider = sliding(1024, 8, 128)
    for kinds in ((local, wider), (local, chunk), (local, wider, full(8, 128))):
        with pytest.raises(UnsupportedError, match="do not become one type"):
            plan(model(*((kind, 2) for kind in kinds)), disable_hybrid_kv_cache_manager=True)
    assert plan(model((local, 2), (full(8, 128), 2)), disable_hybrid_kv_cache_manager=True).num_groups == 1


def test_states_are_counted_for_every_speculated_token_and_for_prefix_caching() -> None:
    alone = SAMPLES["states alone"]
    state = 16 * 128 * 128 * 4 + 3 * 6144 * 2
    assert plan(alone).kv_bytes(8192, 2) == 2 * 4 * state
    assert plan(alone, enable_prefix_caching=True).kv_bytes(8192, 2) == 2 * 2 * 4 * state
    assert plan(alone, num_speculative_tokens=3).kv_bytes(8192, 2) == 2 * 4 * 4 * (state + 3 * 6144 * 2)
    assert plan(alone, tp=2).kv_bytes(8192, 1) == 4 * state // 2
    assert plan(alone, block_size=1).kv_bytes(8192, 1) == 4 * state


def test_cross_attention_is_counted_for_the_encoders_tokens() -> None:
    sample = SAMPLES["cross"]
    whisper, without = (plan(sample, encoder_tokens=tokens) for tokens in (1500, 0))
    # vLLM plans an encoder input as long as a step, and holds what the encoder has written.
    planned = (448 + 8192) // 16 * 2 * 65536
    assert whisper.kv_bytes(448, 1) == without.kv_bytes(448, 1) == planned
    assert plan(sample, block_size=1).kv_bytes(448, 1) == (448 + 8192) * 2 * 4096
    held = [made.allocate(448, 1).steady_bytes for made in (whisper, without)]
    assert held == [(448 // 16 + blocks) * 2 * 65536 for blocks in (ceil_div(1500, 16), 0)]
    assert "planned for 8,192 encoder tokens" in whisper.notes[0]
    assert "it holds 1,500" in whisper.notes[0]
    plan(sample, encoder_tokens=8192)
    with pytest.raises(UnsupportedError, match="no encoder input of 8,193 tokens in steps of 8,192"):
        plan(sample, encoder_tokens=8193)


def test_a_layer_with_two_caches_is_a_layer_of_each_kind() -> None:
    decoder = Layer(cache=full(8, 128), cross=Cross(num_kv_heads=8, head_dim=128, v_head_dim=128))
    layers, order = distinct_layers([decoder] * 3)
    whole = Architecture(name="model", model_type="t5", layers=layers, order=order, hidden_size=1, vocab_size=1)
    assert [row.count for row in plan(whole).allocate(448, 1).layers] == [3, 3]


def test_a_model_without_a_cache_takes_nothing_and_fits() -> None:
    empty = plan(SAMPLES["no cache"])
    assert empty.required_kv_memory(4096, 8) == 0
    report = empty.report(4096, 8, GiB)
    assert (report["num_gpu_blocks"], report["blocks_per_request"], report["max_request_bytes"]) == (1, 0, 0)
    assert empty.report(4096, 8, 0)["fits"]
    assert empty.report(4096, 8, 0)["max_concurrency"] is None


@pytest.mark.parametrize(
    ("kind", "dtype", "reason"),
    [
        (latent(), "fp8_per_token_head", "no latent"),
        (latent(), "turboquant_k8v4", "no latent"),
        (Compressed(width=512, window=128, ratio=4), "int8_per_token_head", "no compressed layers in"),
        (Compressed(width=64, window=128, ratio=4), "bfloat16", "known for DeepSeek V4's widths only"),
        (full(8, 192, 128), "turboquant_3bit_nc", "packs K and V of one width"),
        (full(8, 80), "ultraquant_4bit", "packs heads of whole 32 numbers"),
        (latent(window=128), "int4_per_token_head", "no latent"),
        (full(8, 128), "fp8_ds_mla", "format of latent"),
        (full(8, 128), "q8_0", "no KV cache in q8_0"),
        (full(8, 128), "fp8/bfloat16", "one format for K and V"),
        (full(8, 192, 128), "nvfp4", "no nvfp4 cache for model, whose heads are 192 and 128 wide"),
        (Full(num_kv_heads=8, head_dim=128, v_head_dim=128, extra_state_bytes=64), "bfloat16", "fixed state"),
    ],
)
def test_what_vllm_does_not_run_or_nobody_has_read_is_refused(kind: LayerKind, dtype: str, reason: str) -> None:
    with pytest.raises(RefusalError, match=reason):
        plan(model((kind, 2)), dtype)


def test_a_state_that_the_devices_cannot_divide_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="does not divide"):
        plan(model((gated_delta_net(16), 2)), tp=7)


@pytest.mark.parametrize("options", [{"block_size": 0}, {"max_num_batched_tokens": -1}, {"blocksize": 16}])
def test_options_out_of_range_or_unknown_are_input_errors(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        make_engine("vllm", options)


@pytest.mark.parametrize(
    ("context", "is_async", "blocks"),
    # the step of the last token has context - 1 computed; with async scheduling, one of these is still under way
    [(1039, False, 65), (1040, False, 64), (1040, True, 65), (1041, True, 65), (1057, True, 65)],
)
def test_a_block_is_given_back_when_the_window_of_the_oldest_token_under_way_has_left_it(
    context: int, is_async: bool, blocks: int
) -> None:
    local = model((sliding(1024, 8, 128), 4))
    cache = plan(local, async_scheduling=is_async).allocate(context, 3)
    assert cache.steady_bytes == 3 * blocks * 4 * 16 * (2 * 8 * 128 * 2)


def test_resident_bytes_are_those_of_one_sequence() -> None:
    one = plan(kvcalc.load("gemma-3-27b")).resident_bytes(4096, 4095, 1)
    # The full group holds 256 blocks; each sliding one has given back the 191 before the window of the token that is
    # still under way.
    assert one == (6 * (256 - 191) + 256) * 1310720


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"async_scheduling": False, "block_size": 32},
        {"pipeline_parallel_size": 2},
        {"enable_prefix_caching": True, "num_speculative_tokens": 2},
    ],
)
def test_rows_add_up_and_the_steps_give_the_bytes(name: str, options: dict[str, Any]) -> None:
    planned = plan(SAMPLES[name], **options)
    for context, batch in [(1, 1), (1000, 3), (131072, 2)]:
        cache, steps = planned.allocate(context, batch), planned.explain(context, batch)
        values = evaluate(steps)
        assert {step.symbol: step.value for step in steps} == values
        assert steps[-1].value == cache.bytes == planned.kv_bytes(context, batch)
        assert all(step.unit for step in steps)
        assert sum(row.bytes for row in cache.layers) + cache.padding_bytes == cache.bytes
        assert cache.padding_bytes >= 0
        assert 0 <= cache.steady_bytes <= cache.bytes


@given(
    name=st.sampled_from(sorted(SAMPLES)),
    context=st.integers(1, 300_000),
    further=st.integers(0, 40_000),
    batch=st.integers(1, 64),
)
@settings(max_examples=60)
def test_more_context_or_more_sequences_never_take_less(name: str, context: int, further: int, batch: int) -> None:
    planned = plan(SAMPLES[name])
    here = planned.kv_bytes(context, batch)
    assert planned.kv_bytes(context + further, batch) >= here
    assert planned.kv_bytes(context, batch + 1) >= here
    assert planned.required_kv_memory(context + further, batch) >= planned.required_kv_memory(context, batch)


@given(
    name=st.sampled_from(sorted(SAMPLES.keys() - {"no cache"})),
    context=st.integers(1, 300_000),
    batch=st.integers(1, 64),
)
@settings(max_examples=60)
def test_the_required_memory_fits_and_one_block_less_does_not(name: str, context: int, batch: int) -> None:
    planned = plan(SAMPLES[name])
    required = planned.required_kv_memory(context, batch)
    assert planned.report(context, batch, required)["fits"]
    assert not planned.report(context, batch, required - 1)["fits"]
    assert not planned.report(context, batch, required - planned.bytes_per_block)["fits"]


@given(name=st.sampled_from(sorted(SAMPLES)), kv_memory=st.integers(0, 2**36))
@settings(max_examples=40)
def test_the_estimated_length_is_the_last_that_fits(name: str, kv_memory: int) -> None:
    planned = plan(SAMPLES[name])
    longest = planned.report(1, 1, kv_memory)["estimated_max_model_len"]
    if longest:
        assert planned.report(longest, 1, kv_memory)["fits"]
    if longest is not None and longest < 2**24:
        assert not planned.report(longest + 1, 1, kv_memory)["fits"]


def test_a_pool_fixed_by_an_override_serves_what_its_blocks_hold_and_no_more() -> None:
    llama = kvcalc.load("llama-3.1-8b")
    free, fixed = plan(llama), plan(llama, num_gpu_blocks_override=8193)
    assert fixed.required_kv_memory(131072, 1) == free.required_kv_memory(131072, 1)
    assert fixed.report(131072, 1, 40 * GiB)["fits"]
    assert fixed.required_kv_memory(131073, 1) > 2**70
    assert not fixed.report(131073, 1, 400 * GiB)["fits"]


def test_every_refusal_of_a_sample_is_a_kvcalc_error() -> None:
    options = {"disable_hybrid_kv_cache_manager": True}
    refused = set()
    for name, sample in SAMPLES.items():
        try:
            plan(sample, **options)
        except KVCalcError:
            refused.add(name)
    states = {"states", "states beside wide keys", "states beside latents", "parallel"}
    assert refused == {"two windows", "cross", *states}


@pytest.mark.parametrize(
    ("state", "attention", "dtype", "options", "block"),
    [
        # granite-4.0-h-1b, printed by 0.19.0: 48 x 64 x 128 x 2 + 3 x 3,328 x 2 = 806,400 bytes over 2,048 a token
        (State(48 * 64 * 128, conv_channels=3328, conv_kernel=4), full(4, 128), "bfloat16", {}, 400),
        # Qwen3-Next-80B-A3B, printed by 0.10.2: its configuration asks for no float32, unlike Qwen3.5's
        (State(32 * 128 * 128, conv_channels=8192, conv_kernel=4), full(2, 256), "bfloat16", {}, 544),
        # Qwen3.8-27B with 15 and with 7 speculative tokens and states in float16, printed in September 2026
        (
            gated_delta_net(48),
            full(4, 256),
            "bfloat16",
            {"mamba_ssm_cache_dtype": "float16", "num_speculative_tokens": 15},
            480,
        ),
        (
            gated_delta_net(48),
            full(4, 256),
            "int8_per_token_head",
            {"mamba_ssm_cache_dtype": "float16", "num_speculative_tokens": 7},
            864,
        ),
        # Both parts in float32: 3,145,728 + 3 x 10,240 x 4 = 3,268,608 bytes over 4,096 a token
        (gated_delta_net(48), full(4, 256), "bfloat16", {"mamba_cache_dtype": "float32"}, 800),
    ],
)
def test_a_states_format_is_the_models_unless_it_is_asked_otherwise(
    state: State, attention: Full, dtype: str, options: dict[str, Any], block: int
) -> None:
    made = plan(model((state, 3), (attention, 1)), dtype, **options)
    assert made.block_note is not None
    assert made.block_note.block_size == block


@pytest.mark.parametrize(
    ("name", "ranks", "block_size", "kv_bytes"),
    # What vLLM 0.33.0's planner answered for 131,072 tokens on 8 devices, bytes of one rank.
    [
        ("llama-3.1-8b", 1, 16, 2_147_483_648),
        ("llama-3.1-8b", 2, 16, 1_073_741_824),
        ("llama-3.1-8b", 4, 16, 536_870_912),
        ("llama-3.1-8b", 8, 64, 268_435_456),
        ("deepseek-v3", 1, 16, 9_210_691_584),
        ("deepseek-v3", 2, 16, 4_605_345_792),
        ("deepseek-v3", 4, 16, 2_302_672_896),
        ("deepseek-v3", 8, 64, 1_151_336_448),
    ],
)
def test_decode_context_parallelism_divides_the_tokens(name: str, ranks: int, block_size: int, kv_bytes: int) -> None:
    planned = plan(kvcalc.load(name), tp=8, decode_context_parallel_size=ranks, block_size=block_size)
    assert planned.kv_bytes(131072, 1) == kv_bytes


@pytest.mark.parametrize(
    ("tp", "options", "reason"),
    [
        (8, {"decode_context_parallel_size": 3}, "does not divide it"),
        (2, {"decode_context_parallel_size": 3, "prefill_context_parallel_size": 2}, "beside prefill_context"),
    ],
)
def test_context_parallel_sizes_that_vllm_refuses_are_refused(tp: int, options: dict[str, int], reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        plan(model((latent(), 4)), tp=tp, **options)


def test_prompt_and_decode_context_parallelism_may_share_all_devices() -> None:
    alone = plan(model((latent(), 4)), tp=2, prefill_context_parallel_size=2)
    for ranks in (2, 4):  # pcp, and tp * pcp
        made = plan(model((latent(), 4)), tp=2, prefill_context_parallel_size=2, decode_context_parallel_size=ranks)
        assert made.kv_bytes(65_536, 1) < alone.kv_bytes(65_536, 1)


def test_windows_have_no_decode_context_parallelism() -> None:
    with pytest.raises(UnsupportedError, match="for model's windows"):
        plan(model((sliding(128, 1, 64), 1), (full(1, 64), 1)), tp=2, decode_context_parallel_size=2)


@pytest.mark.parametrize(
    ("model_name", "context", "batch_size", "tp", "is_async", "driven", "times"),
    # The most that vLLM 0.33.0's KV cache manager held, first come first served, all sequences at full length.
    [
        # One that ended with its prompt, one in its prompt and 62 that decode; 25,997,803,520 without the first.
        ("gemma-3-27b", 12_288, 64, 4, True, 26_844_528_640, 1.03),
        # The same where all begin with a cached prefix: two in long prompts after 1,024 tokens, 62 in their last 32.
        ("gemma-3-27b", 12_288, 64, 4, True, 27_171_225_600, 1.01),
        ("gemma-3-27b", 12_288, 64, 4, False, 25_082_593_280, 1.02),
        ("llama-3.1-8b", 4_096, 16, 1, True, 8_589_934_592, 1.0),
    ],
)
def test_several_sequences_take_what_a_schedule_reaches_and_little_more(
    model_name: str, context: int, batch_size: int, tp: int, is_async: bool, driven: int, times: float
) -> None:
    planned = plan(kvcalc.load(model_name), tp=tp, async_scheduling=is_async)
    assert driven <= planned.kv_bytes(context, batch_size) <= times * driven


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"async_scheduling": False}, 1),
        ({}, 3),  # two under way, and the one before them that an ended sequence still holds
        ({"pipeline_parallel_size": 2}, 5),
        ({"version": "0.25.1"}, 2),  # a window keeps one step
    ],
)
def test_sequences_that_ended_hold_the_steps_before(options: dict[str, Any], steps: int) -> None:
    local = plan(model((sliding(128, 1, 64), 4)), max_num_batched_tokens=512, **options)
    # A window of 128 is 9 blocks, and further tokens of F open others: 2 sequences of any length.
    held = 2 * 9 + min(2, steps * 512 // 3) + (steps * 512 - 2 * 3) // 16
    assert local.blocks(100_000, 2) == held


def test_states_are_kept_for_prefixes_from_0_15_on() -> None:
    # A public log of Qwen3.5 122B in int4, two devices, 0.16.1: 1.73 GiB, 75,168 tokens, 1.89x at 131,072.
    options = {"version": "0.16.0", "enable_prefix_caching": True, "max_num_batched_tokens": 8192}
    found = kvcalc.capacity(
        "qwen3.5-122b-a10b",
        kv_memory=int(1.73 * GiB),
        context=131072,
        engine="vllm",
        engine_options=options,
        kv_cache_dtype="fp8",
        tensor_parallel_size=2,
    ).engine_report
    assert (found["gpu_kv_cache_size_tokens"], f"{found['max_concurrency']:.2f}") == (75168, "1.89")


@pytest.mark.parametrize(
    ("version", "block_bytes", "needed_bytes", "concurrency"),
    [
        # DeepSeek V4 Flash: 21 layers with pages of 37,440 and 8,640 bytes, 20 with 1,728, 43 windows in two groups.
        # 0.22: as many tuples of the three sizes as the larger group of windows has; the request in bytes of the first
        # group's blocks, 21 x (37,440 + 8,640) + 20 x 1,728.
        ("0.22.0", 22 * (37440 + 8640 + 1728), 22 * 47808, 1),
        # 0.24: slots for 22 large pages, 21 small ones and 20 of the smallest; the check counts tuples still.
        ("0.24.0", 22 * 37440 + 21 * 8640 + 20 * 1728, 22 * 47808, 1),
        # 0.27: groups one over the other, the widest sets the block; the request in blocks.
        ("0.27.1", 1_002_240, 22 * 47808, 0),
        ("0.29.0", 1_002_240, 1_002_240, 0),
    ],
)
def test_pages_of_several_sizes_share_a_block_as_the_version_packs_them(
    version: str, block_bytes: int, needed_bytes: int, concurrency: int
) -> None:
    options = {"version": version, "max_num_batched_tokens": 8192, "async_scheduling": False}
    plan = kvcalc.footprint("deepseek-v4-flash", context=30000, engine="vllm", engine_options=options).setup.plan
    assert isinstance(plan, VllmPlan)
    # 118 blocks of 256 tokens, two groups of windows in blocks of 64, compressors' in blocks of 4 and of 8.
    blocks = 118 + 2 * (ceil_div(127 + 8192, 64) + 1) + ceil_div(7 + 8192, 4) + 1 + ceil_div(127 + 8192, 8) + 1
    assert plan.blocks_per_request(30000) == blocks == 3472
    assert (plan.bytes_per_block, plan.needed_bytes(30000)) == (block_bytes, needed_bytes * blocks)
    held = 118 * 1_002_240 + 131 * 43 * 37440 + 2051 * 21 * (37440 + 8640) + 1041 * 20 * 37440
    logged = ceil_div(held, 1_002_240) if concurrency else blocks
    assert plan.logged(30000, 10_000 * block_bytes)[1] == 10_000 / logged
    assert plan.kv_bytes(30000, 1) == plan.allocate(30000, 1).bytes == plan.explain(30000, 1)[-1].value


def test_windows_that_no_page_of_the_full_layers_covers_are_refused_before_0_27() -> None:
    options = {"version": "0.22.0", "block_size": 64}  # 16 compressed entries a page, beside windows of 64
    with pytest.raises(UnsupportedError, match="cannot pad the windows"):
        kvcalc.footprint("deepseek-v4-flash", context=8, engine="vllm", engine_options=options)


def test_a_draft_has_a_row_and_groups_of_its_own() -> None:
    # DFlash's 5 layers beside 16 full and 48 state layers: 4 + 1 + 10 groups of 5, as a server of 0.20.2 grouped them.
    engine = Vllm(num_speculative_tokens=5, enable_prefix_caching=True, version="0.20.2")
    drafted = Setup(QWEN_27B, engine, *parse_kv_dtypes("bfloat16"), 2, draft=model((full(8, 128), 5)))
    planned = engine.prepare(drafted)
    assert (planned.num_groups, planned.group_size) == (15, 5)
    assert planned.blocks_per_request(200_000) == 5 * 246 + 10 * 7
    cache = planned.allocate(200_000, 1)
    assert cache.draft_bytes == 246 * 816 * 5 * 2048
    assert cache.draft_bytes + cache.padding_bytes + sum(row.bytes for row in cache.layers) == cache.bytes


def test_a_draft_beside_states_must_say_how_many_tokens_it_proposes() -> None:
    engine = Vllm()
    with pytest.raises(InputError, match="how many tokens the draft of model proposes"):
        engine.prepare(Setup(QWEN_27B, engine, *parse_kv_dtypes("bf16"), draft=model((full(8, 128), 5))))


def test_prediction_layers_of_the_model_propose_a_token_each() -> None:
    qwen = QWEN_27B.changed(mtp_layers=(Layer(cache=full(4, 256)),))
    engine = Vllm(enable_prefix_caching=True)
    planned = engine.prepare(Setup(qwen, engine, *parse_kv_dtypes("bf16"), draft=qwen.mtp))
    assert (planned.group_size, planned.padding_layers) == (17, 3)  # "Add 3 padding layers": 48 states in groups of 17
    assert planned.step_tokens == 2


@pytest.mark.parametrize(
    ("name", "dtype", "options", "bytes_per_block"),
    [
        ("deepseek-v3.2", "fp8", {}, 61 * 64 * (656 + 132)),
        ("deepseek-v3.2", "fp8", {"indexer_kv_dtype": "mxfp4"}, 61 * 64 * (656 + 68)),
        ("deepseek-v3.2", "nvfp4_ds_mla", {}, 61 * 64 * (352 + 132)),
        ("deepseek-v3.2", "bf16", {}, 61 * 64 * (1152 + 132)),
        ("glm-5.2", "fp8", {}, 64 * (78 * 656 + 21 * 132)),  # 57 of 78 layers read another layer's choice
        ("minimax-m3", "bf16", {}, 128 * (60 * 2048 + 57 * 256)),
        ("deepseek-v4-flash", "fp8", {}, 1_002_240),  # "packed stride", with blocks of 256, 64, 8 and 4 tokens
    ],
)
def test_sparse_attention_keeps_index_keys(
    name: str, dtype: str, options: dict[str, str], bytes_per_block: int
) -> None:
    assert plan(kvcalc.load(name), dtype, **options).bytes_per_block == bytes_per_block


def test_deepseek_v4_packs_pages_of_several_sizes_into_five_groups() -> None:
    planned = plan(kvcalc.load("deepseek-v4-flash"), "fp8")
    assert sorted((rule.block_size, count) for rule, count in planned.groups) == [(4, 1), (8, 1), (64, 2), (256, 1)]
    assert planned.allocate(4096, 1).why == "5 groups, whose pages stand side by side in a block"


def test_turboquant_leaves_the_outer_layers_of_a_model_without_states_alone() -> None:
    llama = plan(kvcalc.load("llama-3.1-8b"), "turboquant_4bit_nc")
    # 28 layers of 8 x (66 + 68) bytes a token, in blocks of 64 that cover 16 tokens of the 4 others, of 4,096 bytes.
    assert llama.bytes_per_block == 64 * (28 * 8 * 134 + 4 * 4096)
    with pytest.raises(NotModelledError, match="layers of several kinds"):
        plan(GEMMA_4_31B, "turboquant_4bit_nc")


def test_turboquant_packs_windows_in_pages_of_the_full_layers() -> None:
    # A packed token of 2 heads is 2 x 134 bytes, one in bfloat16 1,024: 64 packed ones cover 16 of those.
    local, whole = sliding(512, 2, 128), full(2, 128)
    mixed = model((local, 5), (whole, 1), (local, 5), (whole, 1))
    planned = plan(mixed, "turboquant_4bit_nc", version="0.30.0")
    # The last full layer keeps 64 x 1,024 bytes, to which all pages are padded; its window beside it has blocks of 16.
    assert planned.page_unit == 64 * 1024
    assert {(spec.form, spec.role, spec.block_size) for spec, _ in planned.specs} == {
        ("sliding", "skipped", 16),
        ("sliding", "packed", 64),
        ("full", "", 64),
        ("full", "skipped", 64),
    }
    assert planned.explain(4096, 1)[-1].value == planned.kv_bytes(4096, 1)
    # Without a full layer at the edges the packed page is the largest, and blocks of 48 become 32 in its kernel.
    inner = model((local, 3), (whole, 1), (local, 3))
    packed = plan(inner, "turboquant_k8v4", block_size=48)
    assert packed.page_unit == 48 * 2 * 196
    assert {spec.block_size for spec, _ in packed.specs if spec.form == "sliding"} == {32, 16}
    assert packed.explain(4096, 1)[-1].value == packed.kv_bytes(4096, 1)
    with pytest.raises(NotModelledError, match="layers of several kinds"):
        plan(mixed, "turboquant_4bit_nc", version="0.29.0")


@pytest.mark.parametrize("other", [full(4, 128), sliding(512, 2, 128)])
def test_turboquant_beside_states_is_known_for_full_attention_of_one_shape(other: LayerKind) -> None:
    state, one = (gated_delta_net(24), 2), (full(2, 128), 2)
    assert plan(model(state, one), "turboquant_k8v4").block_note
    with pytest.raises(NotModelledError, match="layers of several kinds"):
        plan(model(state, one, (other, 2)), "turboquant_k8v4")


def test_a_window_of_a_draft_that_no_packed_page_holds_is_refused() -> None:
    target, engine, draft = model((full(1, 32), 6)), Vllm(), model((sliding(64, 16, 128), 1))
    with pytest.raises(UnsupportedError, match="a window of its draft is larger than a packed page"):
        engine.prepare(Setup(target, engine, *parse_kv_dtypes("turboquant_k8v4"), draft=draft))


@pytest.mark.parametrize(("layers", "packed"), [(1, 1), (2, 0), (3, 1), (5, 1), (6, 2)])
def test_the_packed_block_of_turboquant_grows_also_where_it_leaves_every_layer_alone(layers: int, packed: int) -> None:
    """A packed token takes 52 bytes, one of a skipped layer 128: 48 packed ones, 3 x 16, cover 16 of those."""
    block = 48 if layers > 1 else 16
    planned = plan(model((full(1, 32), layers)), "turboquant_k8v4")
    assert planned.bytes_per_block == block * (packed * 52 + (layers - packed) * 128)


@pytest.mark.parametrize(
    ("blocks", "most"),
    [
        # A window of 18 keeps 16 tokens before the oldest under way: a block, one more where they start inside of it,
        # and the one token under way opens a third for one of the two sequences.
        (Blocks("sliding", 16, window=18), 2 * 2 + 1),
        (Blocks("sliding", 16, window=17), 2 * 2),
        (Blocks("sliding", 16, window=19), 2 * 3),
        (Blocks("sliding", 16, window=18, lookahead=1), 2 * 3),
        # A chunk of 16 keeps 15 tokens from the edge of a block; one of 17 or 20 may begin inside of one.
        (Blocks("chunked", 16, window=16), 2 * 1),
        (Blocks("chunked", 16, window=17), 2 * 2 + 1),
        (Blocks("chunked", 16, window=20), 2 * 3),
    ],
)
def test_the_most_blocks_that_two_sequences_hold_with_one_token_under_way(blocks: Blocks, most: int) -> None:
    assert blocks.most(1000, 2, 1) == most
    assert blocks.most(16, 2, 1) == 2


def test_vllm_runs_a_float32_model_in_bfloat16() -> None:
    olmo = model((full(8, 128), 4)).changed(dtype="float32")
    assert [dtype.name for dtype in Vllm().default_kv_dtypes(olmo)] == ["bfloat16", "bfloat16"]


def test_groups_of_mamba_2_are_replicated_where_the_devices_do_not_divide_them() -> None:
    # 4,096 channels of 64 heads and one group of 2 x 128: with 4 devices 1,024 and a group of its own each.
    state = State(4096 * 128, conv_channels=4096 + 256, conv_kernel=4, groups=1, group_channels=256)
    planned = plan(model((state, 4)), tp=4)
    assert planned.bytes_per_block == 4 * 2 * (1024 * 128 + 3 * (1024 + 256))


def test_windows_over_latents_cannot_be_merged_with_latents() -> None:
    both = model((latent(), 3), (latent(window=128), 3))
    assert plan(both).num_groups == 2
    with pytest.raises(UnsupportedError, match="do not become one type"):
        plan(both, disable_hybrid_kv_cache_manager=True)


GRANITE = model(
    (State(48 * 64 * 128, conv_channels=3328, conv_kernel=4, groups=1, group_channels=256), 36), (full(4, 128), 4)
)


@pytest.mark.parametrize(
    ("model_type", "options", "states"),
    [
        ("granitemoehybrid", {}, 3),  # its last whole block's, the running one, and one that the prefill writes
        ("granitemoehybrid", {"version": "0.31.0"}, 2),
        ("qwen3_next", {}, 2),
        ("qwen3_next", {"gdn_prefill_backend": "flashinfer"}, 3),
        ("qwen3_next", {"gdn_prefill_backend": "flashinfer", "version": "0.32.0"}, 2),
        ("olmo_hybrid", {"gdn_prefill_backend": "flashinfer"}, 2),
    ],
)
def test_prefix_caching_keeps_the_states_of_the_last_whole_block(
    model_type: str, options: dict[str, str], states: int
) -> None:
    hybrid = GRANITE.changed(model_type=model_type)
    planned = plan(hybrid, enable_prefix_caching=True, **options)
    assert sorted((rule.form, rule.reserved(4096)) for rule, _ in planned.groups) == [
        ("full", ceil_div(4096, planned.groups[-1][0].block_size)),
        ("state", states),
    ]
    assert plan(hybrid, **options).groups[0][0].fixed == 1


def test_before_0_28_mamba_models_keep_a_state_for_every_block() -> None:
    # PR 25752: a state of 799,744 bytes over 2,048 bytes a token is 391 tokens, so blocks of two chunks of 256.
    hybrid = GRANITE.changed(model_type="granitemoehybrid")
    planned = plan(hybrid, enable_prefix_caching=True, version="0.19.0")
    assert planned.block_note is not None and planned.block_note.block_size == 512
    assert planned.blocks_per_request(4096) == (9 + 1) * 8
    assert "whole chunks of 256" in "\n".join(planned.notes)
    blocks, _, tokens = planned.logged(4096, GiB)
    assert tokens == blocks // 10 * 512
    # With speculation it falls back to the state of the last whole block.
    speculative = plan(hybrid, enable_prefix_caching=True, version="0.19.0", num_speculative_tokens=2)
    assert [rule.fixed for rule, _ in speculative.groups if rule.form == "state"] == [4]


def test_a_state_of_the_last_whole_block_counts_that_blocks_tokens() -> None:
    # Tokens = blocks // groups x smallest block (up to 0.20.0); the states' is the attention block in align mode.
    for caching in (False, True):
        blocks, _, tokens = plan(QWEN_27B, version="0.19.0", enable_prefix_caching=caching).logged(32768, 20 * GiB)
        assert tokens == blocks // 4 * 784
    # Up to 0.16 prefix caching is turned off for gated delta nets.
    old = plan(QWEN_27B, version="0.14.0", enable_prefix_caching=True)
    assert [(rule.form, rule.block_size) for rule, _ in old.groups if rule.form == "state"] == [("state", 0)]


def test_flashinfers_delta_nets_raise_the_block_in_steps_of_64() -> None:
    qwen = QWEN_27B.changed(model_type="qwen3_5")
    sizes = {
        backend: plan(qwen, enable_prefix_caching=True, gdn_prefill_backend=backend).block_note.block_size
        for backend in ("triton", "flashinfer")
    }
    assert sizes == {"triton": 784, "flashinfer": 832}


def test_a_note_tells_what_vllm_turns_on_for_models_with_states() -> None:
    def notes(model_type: str, **options: Any) -> str:
        return "\n".join(plan(GRANITE.changed(model_type=model_type), **options).notes)

    assert "turns on for models with states" in notes("granitemoehybrid")
    assert "turns on" not in notes("granitemoehybrid", version="0.25.1")
    assert "turns on" not in notes("granitemoehybrid", enable_prefix_caching=False)
    assert "turns on" not in "\n".join(plan(SAMPLES["states alone"]).notes)
    assert "gdn_prefill_backend=flashinfer" in notes("qwen3_5", enable_prefix_caching=True)
    assert "no class of its own for this model after 0.23.0" in notes("bamba")
    assert "no class of its own" not in notes("bamba", version="0.22.0")


def test_the_server_is_told_what_the_answer_assumes_of_prefixes() -> None:
    assert Vllm().stated_options(GRANITE) == {"enable_prefix_caching": False}
    assert Vllm(enable_prefix_caching=True).stated_options(GRANITE) == {"enable_prefix_caching": True}
    assert Vllm().stated_options(SAMPLES["states alone"]) == {}


@pytest.mark.parametrize(
    ("options", "blocks", "noted"),
    [
        ({}, 969, True),  # issue 49064: 1024 sequences, 969 blocks, on an H100 with 0.28.0
        ({}, 1024, False),
        ({"version": "0.19.0"}, 969, False),
        ({"enforce_eager": True}, 969, False),
    ],
)
def test_a_server_of_a_model_with_states_needs_a_block_for_each_sequence(
    options: dict[str, Any], blocks: int, noted: bool
) -> None:
    engine = Vllm(max_num_seqs=1024, **options)
    setup = Setup(QWEN_27B, engine, *parse_kv_dtypes("bf16"))
    notes = engine.start_notes(setup, {"num_gpu_blocks": blocks})
    assert ("--max-num-seqs 969" in "".join(notes)) == noted
    assert engine.start_notes(Setup(GEMMA_4_31B, engine, *parse_kv_dtypes("bf16")), {"num_gpu_blocks": 1}) == ()
