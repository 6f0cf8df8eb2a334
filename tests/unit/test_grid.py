"""Searching a grid: every candidate, the best of them, and the front, against a plain enumeration."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcalc import GiB, footprint, load
from kvcalc.errors import InputError
from kvcalc.fitting import Memory
from kvcalc.layout import parse_layout
from kvcalc.paper import ABLATED_RATIOS, ABLATED_WINDOWS, evidence
from kvcalc.relayout import with_layout
from kvcalc.search import MOST_FRONTS, Grid, Walk, layout_of, search
from kvcalc.sources.devices import find_device

MODEL = load("gemma-2-2b")
RATIOS = ("global", "1:1", "3:1", "5:1", "7:1")
WINDOWS = (512, 1024, 4096)
CONTEXTS = (8192, 32768, 131072)


def grid_of(ratios=RATIOS, windows=WINDOWS, contexts=CONTEXTS, **more):
    return Grid([parse_layout(word) for word in ratios], windows, contexts, **more)


def searched(grid, budget=None, **more):
    return search(Walk(MODEL, "gemma-2-2b", grid), budget, **more)


def test_a_grid_counts_its_candidates_and_global_only_once():
    grid = grid_of(kv_cache_dtypes=("bf16", "fp8"))
    assert grid.num_layouts == 1 + 4 * 3 == len(list(grid.layouts()))
    assert searched(grid).walked == grid.size == 13 * 2 * 3


@settings(max_examples=25)
@given(
    st.lists(st.sampled_from(RATIOS), min_size=1, unique=True),
    st.lists(st.sampled_from(WINDOWS), min_size=1, unique=True),
    st.integers(4 * GiB, 16 * GiB),
    st.integers(1, 8),
)
def test_best_and_front_are_those_of_a_plain_enumeration(ratios, windows, memory, top):
    found = searched(grid_of(ratios, windows), Memory(device=find_device(None, memory)), top=top)
    words = {"global" if ratio == "global" else f"{ratio}/sw={window}" for ratio, window in product(ratios, windows)}
    every = []
    for word, context in product(sorted(words), CONTEXTS):
        model = with_layout(MODEL, parse_layout(word))
        made = footprint(model, context=context)
        if made.total_bytes <= memory:
            local = sum(row.count for row in made.kv_cache.layers if row.kind == "sliding")
            every.append((made.total_bytes, local, context))
    assert found.fitting == len(every)
    assert [each[:2] for each in found.best] == [each[:2] for each in sorted(every)[:top]]
    undominated = {
        (size, local, context)
        for size, local, context in every
        if not any(
            other == context and (more <= size and fewer <= local) and (more, fewer) != (size, local)
            for more, fewer, other in every
        )
    }
    assert {(each.memory_bytes, each.local_layers, each.context) for each in found.front} == undominated


def test_every_candidate_is_reproduced_by_its_reference():
    for each in searched(grid_of()).best:
        configuration = each.configuration
        made = footprint(load(configuration.reference), context=each.context)
        assert (made.total_bytes, made.kv_cache.bytes) == (each.memory_bytes, each.kv_bytes)


def test_a_walk_that_is_stopped_gives_what_it_had_found(monkeypatch):
    monkeypatch.setattr("kvcalc.search._STRIDE", 32)
    grid = grid_of(windows=range(1, 100), contexts=(8192,))
    found = searched(grid, go_on=lambda walked: walked < 200)
    assert found.interrupted
    assert found.walked == 224 < grid.size == 397  # 7 strides of 32, of 4 ratios x 99 windows and the global layout
    assert len(found.best) == 50
    assert found.front


def test_a_layout_that_an_engine_refuses_is_counted_and_says_why():
    grid = grid_of(engines=(("ideal", {}), ("llama.cpp", {})), kv_cache_dtypes=("fp8",))
    found = searched(grid)
    assert found.walked == found.refused == grid.size // 2
    assert "fp8" in found.reason


def test_the_options_of_an_engine_bound_its_candidates():
    grid = grid_of(engines=(("llama.cpp", {"n_ctx": 32768}),))
    walk = Walk(MODEL, "gemma-2-2b", grid)
    found = search(walk, Memory(device=find_device(None, 100 * GiB)))
    assert found.fitting == found.walked * 2 // 3  # 131,072 tokens are beyond n_ctx


def test_more_contexts_than_fronts_are_kept_for_are_refused():
    with pytest.raises(InputError, match="front"):
        searched(grid_of(contexts=range(1, MOST_FRONTS + 2)))


@pytest.mark.parametrize("word", ["global", "1:1/sw=4096", "5:1/sw=1024", "1:3/sw=512", "26:1/sw=64"])
def test_the_order_of_a_models_layers_is_read_back(word):
    model = with_layout(MODEL, parse_layout(word))
    assert with_layout(model, layout_of(model)) == model


def test_every_trained_point_is_trained_and_nothing_else_is():
    for ratio, window in product(ABLATED_RATIOS, ABLATED_WINDOWS):
        standing = evidence(parse_layout(f"{ratio}/sw={window}"))
        assert standing.ratio == "trained"
        assert standing.window == ("trained" if ratio in ("1:1", "3:1") else "not varied")


@pytest.mark.parametrize(
    ("word", "ratio", "window"),
    [
        ("2:1/sw=1024", "between", "not varied"),
        ("2:2/sw=512", "between", "not varied"),
        ("3:1/sw=1536", "trained", "between"),
        ("1:1/sw=511", "trained", "outside"),
        ("3:1/sw=8192", "trained", "outside"),
        ("8:1/sw=1024", "outside", "not varied"),
        ("1:3/sw=1024", "outside", "not varied"),
        ("1:0/sw=1024", "outside", "not varied"),
        ("sw=1024", "outside", "not varied"),
        ("5:1", "trained", "not varied"),
        ("global", "no local layers", "no local layers"),
    ],
)
def test_a_layout_stands_inside_between_or_outside_the_trained_points(word, ratio, window):
    standing = evidence(parse_layout(word))
    assert (standing.ratio, standing.window) == (ratio, window)


@pytest.mark.parametrize("word", ["2:1/sw=1024", "1:1/sw=511", "8:1/sw=64", "global", "3:1/sw=700"])
def test_a_bound_is_quoted_at_trained_points_only(word):
    standing = evidence(parse_layout(word))
    assert ("0.01" in standing.text) == (standing.window == "trained")
    assert ("by at most 0.1," in standing.text) == (standing.ratio == "trained")


def test_options_that_run_fewer_sequences_at_a_time_leave_nothing_that_fits():
    grid = grid_of(("5:1",), (1024,), (4096,), engines=(("llama.cpp", {"n_seq_max": 2, "n_ctx": 8192}),))
    walk = Walk(MODEL, "gemma-2-2b", grid)
    memory = Memory(device=find_device(None, 100 * GiB))
    assert [search(walk, memory, batch_size=batch).fitting for batch in (1, 2, 3)] == [1, 1, 0]


def test_a_window_longer_than_the_context_saves_nothing_and_joins_no_front():
    found = searched(grid_of(("global", "5:1"), (4096,), (1024,)))
    assert found.walked == 2
    assert [candidate.local_layers for candidate in found.front] == [0]


def test_states_are_no_attention_layers():
    grid = Grid((), (), (4096,))
    model = load("nemotron-nano-9b-v2")
    attention = sum(count for kind, count in model.caches if kind.kind == "full")
    (candidate,) = search(Walk(model, "nemotron-nano-9b-v2", grid), None).best
    assert candidate.configuration.attention_layers == attention < model.num_layers
