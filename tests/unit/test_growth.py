"""The rules of growth: rates, and the contexts at which one thing overtakes another."""

import pytest

from kvcalc import load
from kvcalc.architecture import Architecture, Full, Layer, Sliding
from kvcalc.growth import growth
from kvcalc.setup import prepare

HEADS = {"num_kv_heads": 1, "head_dim": 64, "v_head_dim": 64}
ENGINES = ("ideal", "llama.cpp", "vllm", "mlx-lm")


def rules_of(reference, engine="ideal", batch_size=1):
    setup = prepare(load(reference), engine=engine)
    return setup, setup.weights.bytes, growth(setup, batch_size)


def test_a_token_costs_every_layer_below_the_window_and_the_global_ones_beyond():
    _, _, rules = rules_of("gemma-2-2b@5:1/sw=1024")  # 22 local and 4 global layers of 4096 bytes a token
    assert (rules.early_bytes_per_token, rules.late_bytes_per_token) == (26 * 4096, 4 * 4096)
    assert rules.saturation_context == 1024


@pytest.mark.parametrize("engine", ENGINES)
def test_the_context_of_each_crossing_is_the_first(engine):
    setup, size, rules = rules_of("gemma-3-27b", engine)
    plan = setup.plan

    def local_bytes(context):
        return sum(row.bytes for row in plan.allocate(context, 1).layers if row.window is not None)

    over = rules.overtakes_weights_context
    assert plan.kv_bytes(over, 1) > size >= plan.kv_bytes(over - 1, 1)
    small = rules.small_share_context
    assert 100 * local_bytes(small) < plan.kv_bytes(small, 1)
    assert 100 * local_bytes(small - 1) >= plan.kv_bytes(small - 1, 1)
    full = rules.saturation_context
    assert local_bytes(full) == local_bytes(2**30) > local_bytes(full - 1)


def test_the_early_rate_is_that_of_every_layer_so_it_ends_at_the_smallest_window():
    """Three layers of 2 x 2 B x 64 a token; the windows of 128 and 1,024 fill one after the other."""
    kinds = [Sliding(window=128, **HEADS), Sliding(window=1024, **HEADS), Full(**HEADS)]
    layers = tuple(Layer(cache=kind) for kind in kinds)
    model = Architecture("two windows", "custom", layers, (0, 1, 2), hidden_size=1, vocab_size=1)
    rules = growth(prepare(model), 1)
    assert (rules.early_bytes_per_token, rules.late_bytes_per_token) == (3 * 256, 256)
    assert rules.saturation_context == 1024


def test_a_model_without_windows_has_one_rate():
    _, _, rules = rules_of("gemma-2-2b@global")
    assert (rules.has_windows, rules.early_bytes_per_token, rules.saturation_context) == (False, None, None)
    assert rules.late_bytes_per_token == 26 * 4096


def test_a_cache_that_stops_growing_never_overtakes_the_weights():
    _, _, rules = rules_of("gemma-2-2b@1:0/sw=512")
    assert rules.late_bytes_per_token == 0
    assert (rules.overtakes_weights_context, rules.small_share_context) == (None, None)
    assert rules.saturation_context == 512


@pytest.mark.parametrize(("reference", "engine"), [("gpt-oss-20b", "sglang"), ("gemma-3-27b", "transformers")])
def test_windows_that_an_engine_never_stops_paying_for_never_fill(reference, engine):
    # SGLang's sliding pool is a share of the full one; transformers holds a whole prefill behind each window.
    _, _, rules = rules_of(reference, engine)
    assert rules.has_windows
    assert (rules.saturation_context, rules.small_share_context) == (None, None)
