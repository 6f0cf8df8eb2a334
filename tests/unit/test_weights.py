"""Parameters by part, their bytes in a format, and on one of several devices."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvcalc
from kvcalc.architecture import pipeline, stage_bounds
from kvcalc.weights import weights


def test_parts_add_up_to_the_parameters():
    counted = weights(kvcalc.load("gemma-2-2b"), None)
    assert counted.parts["embedding"] == 256000 * 2304  # tied: the head has no part of its own
    assert "head" not in counted.parts
    assert sum(counted.parts.values()) == counted.parameters == 2614341888
    assert weights(kvcalc.load("llama-3.1-8b"), None).parts["head"] == 128256 * 4096


@pytest.mark.parametrize(("dtype", "width"), [("bfloat16", 2), ("fp16", 2), ("float32", 4), ("sfp8", 1)])
def test_a_plain_format_covers_every_number(dtype, width):
    assert weights(kvcalc.load("gemma-2-2b"), dtype).bytes == 2614341888 * width


@pytest.mark.parametrize(
    ("dtype", "block", "size"), [("fp8", 1, 1), ("int8", 1, 1), ("int4", 128, 66), ("nvfp4", 16, 9)]
)
def test_a_quantised_format_covers_the_linear_layers_alone(dtype, block, size):
    model = kvcalc.load("gemma-2-2b")
    parts = weights(model, None).parts
    linear = parts["attention"] + parts["feed_forward"]
    plain = parts["embedding"] + parts["norms"]
    assert weights(model, dtype).bytes == linear // block * size + plain * 2
    assert "linear layers" in weights(model, dtype).notes[0]


def test_tensor_parallelism_divides_matrices_and_keeps_norms_whole():
    model = kvcalc.load("llama-3.1-8b")
    parts = weights(model, None).parts
    matrices = sum(parts.values()) - parts["norms"]
    assert weights(model, None, 8).bytes == 2 * (matrices // 8 + parts["norms"])


def test_kv_projections_are_replicated_beyond_the_kv_heads():
    model = kvcalc.load("gemma-3-1b")  # one KV head
    kv_projections = 2 * 26 * 2 * 1152 * 256
    two, four = (weights(model, None, tp).bytes for tp in (2, 4))
    norms = 2 * weights(model, None).parts["norms"]
    assert (two - kv_projections - norms) == 2 * (four - kv_projections - norms)


@given(st.integers(1, 200), st.integers(1, 16))
def test_stages_cover_every_layer_once(layers, stages):
    bounds = stage_bounds(layers, stages)
    assert [index for first, last in bounds for index in range(first, last)] == list(range(layers))
    assert max(last - first for first, last in bounds) - min(last - first for first, last in bounds) <= 1


def test_a_device_has_its_part_of_what_the_files_hold():
    model = kvcalc.load("gemma-2-2b")
    computed = {
        (tp, stages): weights(model, None, tp, pipeline(model, stages)).bytes for tp in (1, 2) for stages in (1, 2)
    }
    stored = model.changed(provenance=replace(model.provenance, weight_bytes={"q8_0": 10**9, "f32": 10**6}))
    for (tp, stages), size in computed.items():
        part = weights(stored, None, tp, pipeline(model, stages))
        assert part.bytes == -(-(10**9 + 10**6) * size // computed[1, 1])
        assert (part.exact, part.dtype) == (True, "as stored")
    estimated = replace(stored.provenance, exact_parameters=False)
    assert weights(stored.changed(provenance=estimated), None).exact  # a measured size is no estimate


def test_a_device_has_all_that_the_files_hold_where_no_part_is_known():
    model = kvcalc.load("gemma-2-2b")
    layers = tuple(replace(layer, mixer=(), rest=()) for layer in model.layers)
    bare = model.changed(layers=layers, tensors=(), provenance=replace(model.provenance, weight_bytes={"q8_0": 10**9}))
    assert weights(bare, None, 2).bytes == weights(bare, None).bytes == 10**9


def test_a_tied_head_keeps_a_copy_of_the_embedding_on_the_last_stage():
    model = kvcalc.load("gemma-2-2b")
    parts = weights(model, None).parts
    layer = (parts["attention"] + parts["feed_forward"] + parts["norms"] - 2304) // 26
    assert weights(model, None, 1, pipeline(model, 2)).bytes == 2 * (13 * layer + parts["embedding"] + 2304)


def test_a_format_whose_bytes_only_the_files_tell_is_an_estimate_of_an_exact_count():
    model = kvcalc.load("llama-3.1-8b")
    mixed = weights(model, "IQ4_XS")
    assert (mixed.exact_parameters, mixed.exact) == (True, False)
    assert "weights are estimated: its mix depends on an importance matrix" in mixed.notes
    assert weights(model, "Q4_K_M").exact


def test_the_prediction_layers_of_deepseek_v4_are_full_layers_with_two_projections_and_a_mixer():
    model, d = kvcalc.load("deepseek-v4-flash"), 4096
    (layer,) = model.mtp_layers
    (window_only, _) = (model.layers[model.order[at]] for at in (0, 2))
    own = sum(tensor.elements for tensor in layer.rest) - sum(tensor.elements for tensor in window_only.rest)
    assert own == 2 * d * d + 3 * d + 4 * 4 * d + 4 + 1
    # Behind the first three layers a correction of the router's scores takes the place of the table of experts.
    (table,) = (tensor for tensor in window_only.rest if tensor.dtype == "int64")
    assert (table.rows, table.columns, table.buffer) == (129280, 6, True)
    assert not any(tensor.dtype == "int64" for tensor in layer.rest)


def test_the_stages_of_a_dspark_draft_have_what_joins_them_at_their_ends():
    first, middle, last = (
        {tensor.role for tensor in layer.rest} for layer in kvcalc.load("deepseek-v4-pro-0813").mtp_layers
    )
    assert first - middle == {"main_proj"}
    assert last - middle == {"hc_head.fn", "hc_head.base", "hc_head.scale", "markov_head", "confidence_head"}
