"""What files hold besides layers: a tied head for the second time, a GGUF's table of rope factors."""

import pytest

import kvcalc
from kvcalc.weights import weights

LLAMA = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 256}
HEADS = {"num_attention_heads": 2, "head_dim": 32}
OPT = {"model_type": "opt", "hidden_size": 2048, "ffn_dim": 8192, "num_hidden_layers": 24, "num_attention_heads": 32}


def _factors(**stated):
    return kvcalc.read_config(LLAMA | HEADS | stated).rope_factors


def test_factors_are_one_for_each_pair_of_a_head_or_two_where_long_prompts_have_their_own():
    llama3 = {"rope_type": "llama3", "factor": 8.0}
    longrope = {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}
    assert _factors(rope_scaling=llama3) == _factors(rope_parameters={"full_attention": llama3}) == 16
    assert _factors(rope_scaling=longrope) == 32
    assert _factors(rope_scaling=longrope, partial_rotary_factor=0.75) == 24
    assert _factors(rope_scaling={"rope_type": "yarn", "factor": 4.0}) == 0
    assert _factors(rope_scaling=None) == _factors(rope_theta=10000.0) == 0
    assert _factors() is None  # Llama 2 or Llama 3.1: nothing tells
    assert kvcalc.read_config({"model_type": "mistral", "hidden_size": 64, **HEADS}).rope_factors == 0
    assert kvcalc.read_config({"model_type": "gemma4", "text_config": {"hidden_size": 1536}}).rope_factors == 256


@pytest.mark.parametrize(("name", "size"), [("llama-3.1-8b", 4_912_898_304), ("llama-3.2-3b", 2_011_539_712)])
def test_a_gguf_file_of_llama_3_holds_a_table_of_64_factors(name, size):
    """Files of 4,920,739,232 and 2,019,377,696 bytes, less their metadata; the last 256 bytes are ``rope_freqs``."""
    counted = weights(kvcalc.load(name), "Q4_K_M")
    assert (counted.bytes, counted.exact, counted.beside) == (size, True, {"rope_factors": 256})
    assert kvcalc.footprint(name, context=512, engine="llama.cpp", weights_dtype="Q4_K_M").weights.bytes == size
    assert weights(kvcalc.load(name), "bf16").beside == {}


def test_a_gguf_file_of_which_nothing_tells_is_an_estimate():
    counted = weights(kvcalc.read_config(LLAMA | HEADS), "Q4_K_M")
    assert not counted.exact
    assert any("rope_scaling" in note for note in counted.notes)


def test_an_awq_checkpoint_of_a_tied_model_holds_its_head_twice_and_an_engine_once():
    """A file of 1,049,163,152 bytes with a header of 79,248."""
    stated = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
    model = kvcalc.read_config(OPT | {"vocab_size": 50272, "tie_word_embeddings": True, "quantization_config": stated})
    counted = weights(model, None)
    assert (counted.bytes, counted.exact) == (1_049_083_904, False)
    assert counted.beside == {"tied_head": 2 * 50272 * 2048}
    held = kvcalc.footprint(model, context=512, engine="vllm").weights
    assert held.bytes == counted.bytes - 2 * 50272 * 2048
    assert held.shipped_bytes == counted.bytes
    assert any("they are tied" in note for note in held.notes)


def test_what_nothing_tells_travels_through_a_spec_file():
    from kvcalc.sources.config import config_to_spec
    from kvcalc.sources.preset import export_spec

    assert 'rope_factors = "unknown"' in export_spec(config_to_spec(LLAMA | HEADS))
