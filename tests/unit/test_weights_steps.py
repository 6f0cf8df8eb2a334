"""The derivation of the weights: its formulas evaluate to its values, and its end is the bytes."""

import pytest

import kvcalc
from kvcalc.architecture import pipeline
from kvcalc.derivation import evaluate
from kvcalc.weights import weights
from kvcalc.weights_steps import weights_steps


@pytest.mark.parametrize("dtype", [None, "float32", "int4", "q4_0", "fp8"])
@pytest.mark.parametrize(("tp", "stages"), [(1, 1), (4, 1), (1, 3), (2, 2)])
@pytest.mark.parametrize("name", ["gemma-3-27b", "llama-3.1-8b", "gemma-2-2b"])
def test_the_shown_formula_gives_the_shown_bytes(name, dtype, tp, stages):
    model = kvcalc.load(name)
    stages = pipeline(model, stages)
    steps = weights_steps(model, dtype, tp, stages)
    values = evaluate(steps)
    assert all(values[step.symbol] == step.value for step in steps)
    assert steps[-1].value == weights(model, dtype, tp, stages).bytes
    assert values["parameters"] == weights(model, dtype).parameters


def test_weights_measured_in_files_are_derived_from_what_the_files_hold():
    from dataclasses import replace

    model = kvcalc.load("gemma-2-2b")
    model = model.changed(provenance=replace(model.provenance, weight_bytes={"bf16": 10, "f32": 4}))
    assert evaluate(weights_steps(model, None))["weights_bytes"] == 14
    steps = weights_steps(model, None, 2)
    assert (evaluate(steps)["whole_bytes"], steps[-1].value) == (14, weights(model, None, 2).bytes)
