"""A configuration that was copied by hand: what its remarks say is read, and no answer is called exact for it."""

import pytest

import kvcalc
from kvcalc.sources.config.remarks import without_remarks
from kvcalc.weights import weights

SIZES = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}


def test_a_file_without_remarks_stays_the_file_that_it_is():
    config = {"model_type": "mistral", **SIZES, "quantization_config": {"quant_method": "awq", "bits": 4}}
    assert without_remarks(config) is not config  # its tables were looked through
    assert without_remarks(config) == config
    assert without_remarks(SIZES) is SIZES


def test_a_number_a_flag_or_a_word_with_a_remark_is_what_it_says():
    told = {
        "nbits": "4 (deduced)",
        "group_size": "-1, one group a row",
        "double": "true, deduced",
        "kind": "nf4, deduced",
        "other": "fp4 or nf4",
        "seen": "not seen",
        "_note": "kept as it is",
    }
    meant = {"nbits": 4, "group_size": -1, "double": True, "kind": "nf4", "other": "fp4", "_note": told["_note"]}
    assert without_remarks(told) == meant


def test_modules_told_in_prose_are_modules():
    table = {
        "exclude/ignore": "156: layers 0-1, layer 78, self_attn* and 3 mlp.gate, in_proj_a/b (worked out)",
        "quantized_layers": "FP8: self_attn; NVFP4: mlp.experts, lm_head",
        "overrides": "mlp.gate and shared_expert_gate 8 bit (deduced)",
    }
    layers = [f"model.layers.{layer}.*" for layer in (0, 1, 78)]
    assert without_remarks(table) == {
        "ignore": [*layers, "self_attn", "mlp.gate", "in_proj_a"],
        "quantized_layers": {
            "self_attn": {"quant_algo": "FP8"},
            "mlp.experts": {"quant_algo": "NVFP4"},
            "lm_head": {"quant_algo": "NVFP4"},
        },
        "mlp.gate": {"bits": 8},
        "shared_expert_gate": {"bits": 8},
        "told_in_prose": True,
    }
    assert without_remarks({"overrides": "everything but the experts: 8 bit"}) == {"told_in_prose": True}


@pytest.mark.parametrize(("bits", "size"), [("4 (read)", 4_178_059_264), (2, 2_433_228_800)])
def test_a_table_under_the_name_of_its_method_is_read(bits, size):
    """Mistral 7B as HQQ packs it in ``qmodel.pt``: 4,178,436,800 and 2,433,606,336 bytes with 377,536 of pickle."""
    told = {"hqq (in qmodel.pt)": {"nbits": bits, "group_size": "128 deduced"}}
    counted = weights(kvcalc.read_config({"model_type": "mistral", **SIZES, **told}), None)
    assert (counted.bytes, counted.exact, counted.dtype) == (size, False, "hqq")


def test_the_model_type_is_its_first_word_and_layers_told_in_prose_are_those_of_the_type():
    text = {
        "model_type": "qwen3_5 (text_config)",
        "mtp_num_hidden_layers": "no mtp.* tensors",
        "vision_config": "no one",
    }
    told = {**text, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    stated = {"model_type": "qwen3_5", "quantization_config": told["quantization_config"]}
    counted, plain = (weights(kvcalc.read_config(config), None) for config in (told, stated))
    assert counted.bytes == plain.bytes
    assert "weights are estimated: lists of the file are told in prose" in counted.notes
