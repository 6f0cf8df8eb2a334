"""The words around the numbers: what a derivation calls its steps, and the reason that stands beside a figure."""

from __future__ import annotations

from typing import Any

import pytest

from kvcalc.architecture import Architecture, Chunked, Full, Latent, Layer, LayerKind, Sliding, distinct_layers
from kvcalc.engines import REGISTRY
from kvcalc.setup import prepare

FULL = Full(2, 64, 64)
SLIDING = Sliding(128, 2, 64, 64)
LATENT = Latent(rank=512, rope_dim=64, num_heads=16, nope_dim=128, v_head_dim=128)


def plan(*kinds: LayerKind, engine: str = "vllm", model_type: str = "gemma3", **options: Any) -> Any:
    layers, order = distinct_layers([Layer(kind) for kind in kinds])
    model = Architecture("model", model_type, layers, order, hidden_size=256, vocab_size=1000)
    return prepare(model, engine=engine, engine_options=options).plan


def steps(*kinds: LayerKind, **options: Any) -> dict[str, Any]:
    return {step.symbol: step for step in plan(*kinds, **options).explain(4096, 1)}


@pytest.mark.parametrize("engine", sorted(REGISTRY.keys() - {"sglang"}))  # SGLang names its two pools
def test_numbered_symbols_count_from_1(engine: str) -> None:
    options = {"max_attention_window": (128, 4096)} if engine == "tensorrt-llm" else {}
    numbered: dict[str, list[int]] = {}
    for symbol in steps(SLIDING, FULL, engine=engine, **options):
        name, _, number = symbol.rpartition("_")
        if number.isdecimal():
            numbered.setdefault(name, []).append(int(number))
    assert numbered
    assert all(numbers == [1, 2] for numbers in numbered.values()), numbered


@pytest.mark.parametrize(
    ("kind", "name"), [(FULL, "full"), (SLIDING, "sliding (128)"), (LATENT, "latent"), (Chunked(64, 2, 64, 64), None)]
)
def test_a_page_of_vllm_is_named_after_its_layers(kind: LayerKind, name: str | None) -> None:
    named = steps(kind, model_type="random")["page_1"].meaning
    assert named.startswith(f"one block of a {name or 'chunked (64)'} layer:")


@pytest.mark.parametrize(
    ("local", "global_", "groups", "why"),
    [
        (0, 1, ["1 group of full layers"], "one group of 1"),
        (
            4,
            2,
            ["each of 2 groups of sliding (128) layers", "1 group of full layers"],
            "groups of 2",
        ),
        (
            5,
            2,
            ["each of 3 groups of sliding (128) layers", "1 group of full layers"],
            "groups of 2, 1 padding layer",
        ),
        (
            7,
            3,
            ["each of 3 groups of sliding (128) layers", "1 group of full layers"],
            "groups of 3, 2 padding layers",
        ),
    ],
)
def test_vllm_says_how_its_groups_came_about(local: int, global_: int, groups: list[str], why: str) -> None:
    kinds = [SLIDING] * local + [FULL] * global_
    shown = steps(*kinds)
    meanings = [shown[f"each_{number}"].meaning for number in range(1, len(groups) + 1)]
    assert meanings == [f"blocks in {each}" for each in groups]
    assert shown["bytes_per_block"].meaning == f"one block of the pool: layers of the widest group ({why})"
    assert plan(*kinds).allocate(4096, 1).why == why


def test_vllm_names_the_stage_where_there_are_several() -> None:
    meaning = steps(FULL, FULL, pipeline_parallel_size=2)["bytes_per_block"].meaning
    assert meaning == "one block of the pool: layers of the widest group on one of 2 stages (one group of 2)"


def test_without_the_hybrid_manager_vllm_has_pages_of_one_kind() -> None:
    shown = steps(SLIDING, FULL, disable_hybrid_kv_cache_manager=True)
    assert "page_2" not in shown
    assert shown["page_1"].meaning.startswith("one block of a full layer:")


@pytest.mark.parametrize(
    ("options", "meaning"),
    [
        ({}, "KV cache"),
        ({"max_attention_window": (128,)}, "KV cache"),
        ({"max_attention_window": (128, 4096)}, "KV cache: each window has 1/2 of it"),
    ],
)
def test_tensorrt_llm_says_what_share_a_window_has(options: dict[str, Any], meaning: str) -> None:
    assert steps(SLIDING, FULL, engine="tensorrt-llm", **options)["kv_bytes"].meaning == meaning


@pytest.mark.parametrize(
    ("windows", "formula", "why"),
    [
        (None, "blocks_1 * P * token_1", "all 2 layers full"),
        ((128,), "blocks_1 * P * token_1", "all 2 layers at window 128"),
        ((128, 4096), "2 * max(blocks_1 * P * token_1, blocks_2 * P * token_2)", "2 windows, 1/2 of the pool each"),
    ],
)
def test_tensorrt_llm_takes_the_window_that_needs_most(windows: Any, formula: str, why: str) -> None:
    made = plan(SLIDING, FULL, engine="tensorrt-llm", max_attention_window=windows)
    assert {step.symbol: step.formula for step in made.explain(4096, 1)}["exact_bytes"] == formula
    assert made.allocate(4096, 1).why == why


def test_transformers_shows_the_last_of_equal_chunks() -> None:
    shown = steps(FULL, engine="transformers", prefill_chunk=1024)
    assert (shown["P"].value, shown["q"].value) == (3072, 1024)


def test_mlx_lm_shows_no_chunk_where_the_prompt_is_one_token() -> None:
    shown = {step.symbol: step.value for step in plan(FULL, engine="mlx-lm").explain(1, 1)}
    assert (shown["whole"], shown["rest"], shown["D"], shown["end_1"]) == (0, 0, 2, 256)


def test_llama_cpp_shows_blocks_only_of_formats_that_have_them() -> None:
    for dtype, formula in (("f16", "1 * ((2 * 64 * 2 + 2 * 64 * 2) * cells * streams)"),
                           ("q8_0", "1 * ((2 * 64 // 32 * 34 + 2 * 64 // 32 * 34) * cells * streams)")):  # fmt: skip
        layers, order = distinct_layers([Layer(FULL)])
        model = Architecture("model", "random", layers, order, hidden_size=256, vocab_size=1000)
        made = prepare(model, engine="llama.cpp", kv_cache_dtype=dtype).plan
        shown = {step.symbol: step for step in made.explain(4096, 1)}
        assert shown["layers_1"].formula == formula
        assert "cells_swa" not in shown
        assert made.allocate(4096, 1).why == "cells padded to 256"


def test_mlx_lm_adds_a_step_to_a_trimmed_chunk_for_what_arrives() -> None:
    # 500 tokens are kept, and what arrives gets whole steps: one token at a time 256 slots, a chunk of 300 tokens 512.
    for step_size, slots in ((1, 756), (300, 1012)):
        shown = steps(Chunked(500, 2, 64, 64), engine="mlx-lm", prefill_step_size=step_size)
        assert shown["slots_1"].value == slots


def test_transformers_shows_chunks_in_symbols_where_nothing_waits() -> None:
    work = plan(Sliding(128, 1, 64, 64), engine="transformers", prefill_chunk=64).explain(1000, 1)
    assert [step.symbol for step in work][2:5] == ["C", "before", "last"]


def test_an_offloaded_cache_counts_its_layers_from_1() -> None:
    work = plan(Full(1, 64, 64), Sliding(128, 1, 64, 64), engine="transformers", cache="offloaded_static").explain(
        999, 1
    )
    assert [step.symbol for step in work if step.symbol.startswith("layers_")] == ["layers_1", "layers_2"]
