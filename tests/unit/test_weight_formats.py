"""The names of weights formats, what each engine offers, and what it loads of a checkpoint."""

from dataclasses import replace

import pytest

import kvcalc
from kvcalc.engines import REGISTRY, engine_class
from kvcalc.errors import InputError, NotModelledError
from kvcalc.setup import prepare
from kvcalc.weight_formats import format_names, parse_weights_format
from kvcalc.weights import weights

LLAMA = kvcalc.load("llama-3.1-8b")
NAMES = {
    "Q4_K_M": "Q4_K_M",
    "q4_k_m": "Q4_K_M",
    "q4": "Q4_K_M",
    "q8": "Q8_0",
    "iq2_xs": "IQ2_XS",
    "4bit": "mlx_4bit",
    "8bit": "mlx_8bit",
    "mlx-4bit": "mlx_4bit",
    "awq": "awq",
    "gptq-int8": "gptq_8bit",
    "bnb-4bit": "nf4",
    "nf4": "nf4",
    "fp4": "nvfp4",
    "fp8-dynamic": "fp8_channel",
    "auto": "bfloat16",
    "bf16": "bfloat16",
}


@pytest.mark.parametrize(("typed", "name"), NAMES.items())
def test_the_names_that_people_have_are_formats(typed, name):
    assert weights(LLAMA, typed).dtype == name


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(InputError) as refused:
        weights(LLAMA, "q4_k_mm")
    assert "q4_k_m" in (refused.value.hint or "").casefold()


def test_a_file_without_a_rule_is_not_modelled():
    with pytest.raises(NotModelledError):
        weights(LLAMA, "UD-Q4_K_XL")


@pytest.mark.parametrize("engine", REGISTRY)
def test_an_engine_offers_the_best_format_first_and_each_saves_memory(engine):
    sizes = [weights(LLAMA, name).bytes for name in engine_class(engine).weight_formats]
    assert max(sizes) < 1.01 * sizes[0]  # by quality: among formats of four bits the better one need not be larger
    assert all(size < weights(LLAMA, None).bytes for size in sizes)


def test_prediction_layers_are_held_where_they_ship_and_loaded_with_speculation_alone():
    model = kvcalc.load("deepseek-v3")
    shipped, served = prepare(model).weights, prepare(model, engine="vllm").weights
    speculating = prepare(model, engine="vllm", draft="mtp").weights
    assert shipped.bytes == served.shipped_bytes == 688_574_839_360
    assert served.bytes == shipped.bytes - shipped.beside["prediction_layers"]
    assert any("not loaded without speculation" in note for note in served.notes)
    assert speculating.bytes == shipped.bytes
    assert speculating.parameters > served.parameters == shipped.parameters


def test_encoders_are_left_out_for_text_alone_and_by_engines_that_load_none():
    config = {"model_type": "gemma3", "text_config": {"hidden_size": 2560, "num_hidden_layers": 34}}
    config["text_config"] |= {"intermediate_size": 10240, "sliding_window": 1024}
    model = kvcalc.read_config(config | {"vision_config": {"hidden_size": 1152, "patch_size": 14}})
    setup = prepare(model, engine="vllm")
    whole, text = setup.weights, replace(setup, text_only=True).weights
    assert whole.bytes == text.bytes + whole.beside["vision"]
    assert prepare(model, engine="mlx-lm").weights.bytes == text.bytes == 2 * text.parameters


@pytest.mark.parametrize("name", ["ultraquant_4bit", "fp8_per_token_head", "turboquant_k8v4", "fp8_ds_mla"])
def test_a_format_of_the_cache_stores_no_weights(name):
    assert name not in format_names()
    with pytest.raises(InputError, match=f"{name} is a format of the cache, not of weights"):
        parse_weights_format(name, kvcalc.load("llama-3.1-8b"))
