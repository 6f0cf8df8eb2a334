"""Parameters of small configurations against what the classes of transformers have, for keys that add to them."""

from __future__ import annotations

from typing import Any

import pytest
from configs import read

from kvcalc import footprint, kv_cache_bytes
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


@pytest.mark.parametrize("name", ["deepseek-v2", "deepseek-v3"])
def test_a_latent_layer_with_biases_has_one_for_each_of_its_narrow_projections(name: str) -> None:
    """DeepseekV3Attention: bias=config.attention_bias in q_a_proj, kv_a_proj_with_mqa and o_proj."""
    config = read("configs.json")[name]
    plain, biased = (weights(read_config(config | {"attention_bias": bias}), None).parameters for bias in (False, True))
    a_layer = config["q_lora_rank"] + config["kv_lora_rank"] + config["qk_rope_head_dim"] + config["hidden_size"]
    assert biased - plain == config["num_hidden_layers"] * a_layer


# What the classes of transformers 5.24.0 have on the meta device with their default configurations, tied weights once,
# towers left out; and the elements of their caches after one forward of these tokens. Written by
# tests/oracles/parameters.py --record; the rows with a config are of types whose sparse file says more than its type.
DEFAULTS = read("class_defaults.json")


@pytest.mark.parametrize("model_type", DEFAULTS)
def test_a_file_of_a_model_type_alone_is_the_default_of_its_class(model_type: str) -> None:
    row = DEFAULTS[model_type]
    model = read_config(row.get("config", {"model_type": model_type}))
    assert weights(model, None).parameters == row["parameters"]
    if "cache" in row:
        tokens, encoder_tokens = row["cache"]["tokens"], row["cache"]["encoder_tokens"]
        cache = footprint(model, context=tokens, encoder_tokens=encoder_tokens, kv_cache_dtype="bf16").kv_cache
        assert cache.bytes == 2 * row["cache"]["elements"]


UNSEEN = read("unseen_configs.json")


@pytest.mark.parametrize("name", UNSEEN)
def test_files_that_the_reader_had_not_seen(name: str) -> None:
    row = UNSEEN[name]
    model = read_config(row["config"], name)
    if row["kv_bytes"] is not None:
        assert kv_cache_bytes(model, context=32_768, kv_cache_dtype="bf16") == row["kv_bytes"]
    if row["parameters"] is not None:
        assert weights(model, None).parameters == row["parameters"]


@pytest.mark.parametrize(
    ("model_type", "config", "parameters"),
    [
        ("kosmos-2", {}, 1_342_289_920),  # get_decoder() of the class, transformers 5.24.0
        ("kosmos-2.5", {}, 846_884_352),
        ("jetmoe", {"num_hidden_layers": 24}, 8_522_237_952),  # jetmoe/jetmoe-8b
        # LayerNorms: OrionStarAI/Orion-14B-Base, 40 layers of two and one behind them with a bias each
        ("orion", {}, 40 * (4 * 5120**2 + 3 * 5120 * 15360 + 4 * 5120) + 2 * 84608 * 5120 + 2 * 5120),
    ],
)
def test_types_of_their_own_spellings(model_type: str, config: dict[str, Any], parameters: int) -> None:
    assert weights(read_config({"model_type": model_type, **config}), None).parameters == parameters
