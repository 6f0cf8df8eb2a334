"""What SGLang sets aside of a device, against start-ups that were printed and against its rule worked out by hand."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

import kvcalc
from kvcalc.architecture import Architecture, Tensor
from kvcalc.derivation import evaluate
from kvcalc.engines.base import WorkingMemory
from kvcalc.errors import NotModelledError
from kvcalc.units import GiB, MiB

STARTUPS = json.loads((Path(__file__).parents[1] / "data" / "sglang_startups.json").read_text())["rows"]


def working(
    model: Architecture | str, device: str, tp: int = 1, *, text_only: bool = False, **options: Any
) -> WorkingMemory:
    return kvcalc.working_memory(
        model, device=device, engine="sglang", engine_options=options, tensor_parallel_size=tp, text_only=text_only
    )


def chosen(*arguments: Any, **options: Any) -> float:
    return evaluate(working(*arguments, **options).quantities)["mem_fraction_static"]


@pytest.mark.parametrize("row", STARTUPS, ids=lambda row: f"{row['model']}-{row['device']}")
def test_what_starts_printed(row: dict[str, Any]) -> None:
    fraction = row["stated"] or chosen(row["model"].removesuffix("-fp8"), row["device"], row["tp"])
    if "fraction" in row:
        assert fraction == row["fraction"]
        return
    if "pools_gib" in row:
        # The budget of the pools is what is free before the weights, times the fraction, less the weights.
        assert row["before_gib"] * fraction - row["weights_gib"] == pytest.approx(row["pools_gib"], abs=0.02)
    if "after_pools_gib" in row:
        # Beside the pools stand the requests' tables of tokens: 4,096 requests of 40,960 tokens are 0.63 GiB.
        aside = row["before_gib"] * (1 - fraction)
        assert aside - 1.3 < row["after_pools_gib"] < aside + 0.05


@pytest.mark.parametrize("row", [row for row in STARTUPS if row["device"] and "pools_gib" in row])
def test_a_device_alone_tells_the_pools_within_the_band(row: dict[str, Any]) -> None:
    model = row["model"].removesuffix("-fp8")
    pool = kvcalc.capacity(
        model, device=row["device"], engine="sglang", weights_dtype="fp8" if row["model"] != model else None
    ).pool
    assert pool.weights_bytes is not None and pool.working_memory is not None
    pools = pool.kv_memory + pool.weights_bytes - row["weights_gib"] * GiB
    assert pools == pytest.approx(row["pools_gib"] * GiB, abs=pool.working_memory.band_bytes)


@pytest.mark.parametrize(
    ("device", "tp", "options", "memory_mib", "reserve_mib"),
    [
        # 512, 1.5 for each token of a chunk, 128 a device, 2 for each sequence of the largest decode graph, 8 for each
        # of 58 prefill graphs of up to 8,192 tokens.
        ("h100-80gb", 1, {}, 81559, 512 + 12288 + 128 + 512 + 8 * 58),
        ("h100-80gb", 8, {}, 81559, 512 + 12288 + 1024 + 1024 + 8 * 58),
        ("rtx-4090", 1, {}, 24564, 512 + 6144 + 128 + 96 + 8 * 50),
        ("rtx-4090", 4, {}, 24564, 512 + 6144 + 512 + 320 + 8 * 50),
        ("l40s", 2, {}, 46068, 512 + 6144 + 256 + 64 + 8 * 50),
        ("b200", 1, {}, 183359, 512 + 24576 + 128 + 1024 + 8 * (58 + 16)),
        ("t4", 1, {}, 14930, 512 + 3072 + 128 + 16 + 8 * 42),
        ("h100-80gb", 1, {"chunked_prefill_size": 1024}, 81559, 10240),  # at least 10 GiB of more than 60
        ("l40s", 1, {"chunked_prefill_size": 1024}, 46068, 512 + 3072 + 128 + 64 + 8 * 38),
        ("l40s", 1, {"chunked_prefill_size": -1}, 46068, 512 + 24576 + 128 + 64),
        ("l40s", 1, {"disable_cuda_graph": True}, 46068, 512 + 6144 + 128),
        ("l40s", 1, {"max_running_requests": 8}, 46068, 512 + 6144 + 128 + 16 + 8 * 50),
        ("l40s", 1, {"cuda_graph_max_bs_decode": 100}, 46068, 512 + 6144 + 128 + 200 + 8 * 50),
        ("h200", 2, {"attn_cp_size": 2}, 143771, 512 + 12288 + 256 + 512),
        (
            "h200",
            8,
            {"dp_size": 8, "enable_dp_attention": True},
            143771,
            512 + 12288 + 1024 + 1024 + 512 * 8 * 3 + 512 * 8 * 3 // 2 + 8 * 58,
        ),
        (
            "h200",
            2,
            {"dp_size": 2, "enable_dp_attention": True},
            143771,
            512 + 12288 + 256 + 512 + 256 * 2 * 3 + 8 * 58,
        ),
    ],
)
def test_the_fraction_by_hand(device: str, tp: int, options: dict[str, Any], memory_mib: int, reserve_mib: int) -> None:
    assert chosen("qwen3-8b", device, tp, **options) == round((memory_mib - reserve_mib) / memory_mib, 3)


def test_latents_take_a_fixed_allowance_for_prefill_graphs_and_deepseek_v4_has_none() -> None:
    latents, v4 = 512 + 12288 + 1024 + 1024 + 1536, 512 + 12288 + 1024 + 1024
    assert chosen("deepseek-v3", "h200", 8) == round((143771 - latents) / 143771, 3)
    assert chosen("deepseek-v4-flash", "h200", 8) == round((143771 - v4) / 143771, 3)


def test_a_model_that_sees_gets_less_by_the_size_of_its_encoder() -> None:
    reserve = 512 + 12288 + 128 + 512  # its prefill is not captured
    fraction = round((81559 - reserve) / 81559, 3)
    text = kvcalc.load("qwen3-8b")
    for layers, factor in ((24, 0.95), (48, 0.95 * 0.9), (240, 0.95 * 0.8), (6, 0.95 * 1.05)):
        seeing = text.changed(towers=(Tensor("vision", 1024, 12 * 1024, count=layers),))
        assert chosen(seeing, "h100-80gb") == pytest.approx(fraction * factor)
        assert chosen(seeing, "h100-80gb", text_only=True) == 0.83
        assert working(seeing, "h100-80gb").band_bytes == 4 * GiB // 10 + 85029027840 // 50
    captured = text.changed(towers=(Tensor("vision", 1024, 12 * 1024, count=24),), model_type="qwen3_5")
    assert chosen(captured, "h100-80gb") == pytest.approx(0.83 * 0.95)


def test_what_is_set_aside_is_the_working_memory() -> None:
    found = working("llama-3.1-8b", "h100-80gb")
    free = 85029027840 - 6 * GiB // 10
    aside = int(free * (1 - 0.83))
    assert found.graph_bytes == (512 + 464) * MiB
    assert found.activation_bytes == aside - found.graph_bytes
    assert found.share_bytes == found.total_bytes == aside + 6 * GiB // 10
    assert found.notes == ("mem_fraction_static is 0.830: sglang sets the rest aside, needed or not",)


def test_a_stated_fraction_takes_the_place_of_the_rule() -> None:
    pool = kvcalc.capacity("llama-3.1-8b", device="h100-80gb", engine="sglang", gpu_memory_utilization="0.9").pool
    assert pool.utilization == Fraction(9, 10) and pool.working_memory is not None
    found = pool.working_memory
    assert (found.activation_bytes, found.graph_bytes, found.notes) == (0, 0, ())
    assert found.share_bytes == found.runtime_bytes * 9 // 10
    assert pool.kv_memory == 85029027840 * 9 // 10 - 16060522496 - found.share_bytes


@pytest.mark.parametrize("device", ["dgx-spark", "m4-max-128gb", "mi300x"])
def test_other_devices_are_not_modelled(device: str) -> None:
    with pytest.raises(NotModelledError, match="what sglang sets aside"):
        working("llama-3.1-8b", device)
