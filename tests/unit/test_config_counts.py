"""Parameters of small configurations against what the classes of transformers have, for keys that add to them."""

from __future__ import annotations

from typing import Any

import pytest
from configs import read

from kvcalc.sources.config import read_config
from kvcalc.weights import weights

MODELS = read("class_counts.json")["models"]
ROWS = [
    pytest.param(row["config"] | {"model_type": model_type} | changes, parameters, id=" ".join([model_type, *changes]))
    for model_type, row in MODELS.items()
    for changes, parameters in row["parameters"]
]


@pytest.mark.parametrize(("config", "parameters"), ROWS)
def test_parameters_are_those_of_the_class(config: dict[str, Any], parameters: int) -> None:
    assert weights(read_config(config), None).parameters == parameters


@pytest.mark.parametrize(
    ("model_type", "parameters"),
    [
        ("apertus", 6979596352),
        ("axk1", 518983052288),
        ("bitnet", 2741155840),
        ("flint", 39785287456),
        ("helium", 2172643840),
        ("hyperclovax", 6738677760),
        ("internlm3", 8804241408),
        ("iquestcoder", 39794283520),
        ("kolibri1", 78103055360),
        ("laguna", 33189975808),
        ("mimo_v2_flash", 308778768832),
        ("nanochat", 256573440),
        ("persimmon", 9397175296),
    ],
)
def test_a_file_of_a_model_type_alone_is_the_default_of_its_class(model_type: str, parameters: int) -> None:
    assert weights(read_config({"model_type": model_type}), None).parameters == parameters
