"""What ``@LAYOUT`` does to layers beyond plain heads: per-kind geometry, states, sharing, latents, chunks."""

from __future__ import annotations

from dataclasses import replace

import pytest

import kvcalc
from kvcalc.architecture import Full, Sliding
from kvcalc.errors import UnsupportedError
from kvcalc.layout import parse_layout
from kvcalc.relayout import with_layout, with_window
from kvcalc.setup import prepare
from kvcalc.sources import shipped
from kvcalc.weights import weights


def layout_of(reference: str) -> str:
    return kvcalc.load(reference).layout


def test_each_kind_keeps_the_geometry_that_the_model_has_for_it() -> None:
    model = kvcalc.load("gemma-4-31b@1:1")
    caches = [kind for kind, _ in model.caches]
    assert caches == [
        Sliding(window=1024, num_kv_heads=16, head_dim=256, v_head_dim=256),
        Full(num_kv_heads=4, head_dim=512, v_head_dim=512),
    ]


def test_projections_move_with_the_geometry() -> None:
    as_published, all_global = kvcalc.load("gemma-4-31b"), kvcalc.load("gemma-4-31b@global")
    # Local: 5376 x 256 x (2 x 32 + 2 x 16) and norms 2 x 256; global: 5376 x 512 x (2 x 32 + 4), K and V in one.
    local, global_ = 5376 * 256 * 96 + 512, 5376 * 512 * 68 + 1024
    moved = weights(all_global, None).parameters - weights(as_published, None).parameters
    assert moved == 50 * (global_ - local)


def test_a_variant_with_other_weights_is_no_longer_exact() -> None:
    assert weights(kvcalc.load("gemma-4-31b"), None).exact
    assert weights(kvcalc.load("gemma-4-31b@5:1"), None).exact
    assert not weights(kvcalc.load("gemma-4-31b@global"), None).exact
    assert weights(kvcalc.load("gemma-2-2b@global"), None).exact  # one geometry for both kinds
    assert not prepare(kvcalc.load("deepseek-v3"), draft="mtp").weights.exact


def test_states_and_blocks_without_a_cache_stay() -> None:
    assert layout_of("jamba-v0.1@1:1/sw=1024") == "28 state + 4 sliding (1024)"
    assert layout_of("nemotron-h-56b@3:1/sw=4096").startswith("54 state + 54 none")
    assert layout_of("recurrentgemma-2b@global") == "18 state + 8 full"


def test_the_attention_of_a_parallel_layer_slides_and_its_state_stays() -> None:
    assert layout_of("falcon-h1-7b@1:1/sw=1024") == "22 parallel sliding (1024) + 22 parallel full"


def test_chunked_layers_are_local() -> None:
    assert layout_of("llama-4-scout@1:1") == "24 chunked (8192) + 24 full"
    assert layout_of("llama-4-scout@sw=1024") == "36 sliding (1024) + 12 full"
    assert layout_of("llama-4-scout@global") == "48 full"


def test_shared_layers_follow_their_owner_to_global() -> None:
    assert layout_of("gemma-4-e2b@global") == "15 full + 20 shared"
    assert layout_of("gemma-3n-e2b@sw=256") == "16 sliding (256) + 4 full + 8 shared + 2 shared"


def test_readers_of_a_global_cache_have_queries_of_its_width() -> None:
    model = kvcalc.load("gemma-4-e2b@global")
    queries = {layer.mixer[0].elements for layer in model.layers}
    assert queries == {1536 * 8 * 512}


@pytest.mark.parametrize(
    "reference",
    [
        "deepseek-v3@global",
        "deepseek-v3@1:1/sw=1024",
        "deepseek-v4-flash@sw=64",
        "kimi-linear-48b-a3b@1:1/sw=1024",
        "gemma-4-e2b@5:1",
        "gemma-3n-e2b@1:1",
        "hunyuan-large@1:1/sw=1024",
        "jamba-v0.1@sw=1024",
    ],
)
def test_a_rewrite_without_a_meaning_is_refused(reference: str) -> None:
    with pytest.raises(UnsupportedError, match=r"no meaning|no attention layers|no local layers"):
        kvcalc.load(reference)


@pytest.mark.parametrize("first", ["5:1/sw=512", "1:2/sw=512", "sw=512"])
def test_another_window_is_the_layout_with_that_window(first: str) -> None:
    compared = 0
    for model in map(kvcalc.load, shipped.names("models")):
        try:
            made = with_layout(model, parse_layout(first))
        except UnsupportedError:
            continue  # no layout that a window could follow
        for window in (256, 512, 4096):
            assert with_window(made, window) == with_layout(model, replace(parse_layout(first), window=window))
            compared += 1
    assert compared > 60


def test_another_window_keeps_the_weights_that_were_counted() -> None:
    model = with_layout(kvcalc.load("gemma-3-27b"), parse_layout("5:1/sw=512"))
    counted = weights(model, None)
    slid = with_window(model, 1024)
    assert weights(slid, None) is counted == weights(kvcalc.load("gemma-3-27b"), None)
    assert kvcalc.kv_cache_bytes(slid, context=32768) == 3_120_562_176
