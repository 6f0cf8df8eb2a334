"""The bytes of one matrix in each format, and which modules a list of modules means."""

import pytest

import kvcalc
from kvcalc import quantization as q
from kvcalc.quantization import Modules, module_names
from kvcalc.weights import weights

# Worked out by hand from the layouts that the formats' writers pack.
MATRICES = [
    (q.mxfp4(), 2880, 2880, 17 * 2880 * 2880 // 32),
    (q.nvfp4(), 512, 2048, 512 * 1024 + 512 * 128 + 8),
    (q.fp8_tiles(4), 576, 7168, 576 * 7168 + 4 * 5 * 56),
    (q.fp8_tiles(2), 128, 128, 128 * 128 + 2),
    (q.channel(8), 4096, 1024, 4096 * 1024 + 2 * 4096),
    (q.packed_int(4, 32, symmetric=False), 512, 2048, 4 * 512 * 256 + 2 * 512 * 64 + 4 * 64 * 64 + 16),
    (q.packed_int(4, 128, ordered=True), 512, 2048, 4 * 512 * 256 + 2 * 512 * 16 + 16 + 4 * 2048),
    (q.awq(), 4096, 4096, 4096 * 2048 + 32 * 512 * 4 + 2 * 32 * 4096),
    (q.gptq(), 4096, 4096, 4096 * 2048 + 32 * 512 * 4 + 2 * 32 * 4096 + 4 * 4096 + 2 * 4096),
    (q.gptq(8, -1), 4096, 4096, 4096 * 4096 + 1024 * 4 + 2 * 4096 + 4 * 4096 + 2 * 4096),
    (q.gptq(3), 8192, 8192, 8192 * 768 * 4 + 64 * 768 * 4 + 2 * 64 * 8192 + 6 * 8192),
    (q.bnb_4bit(dtype="float16"), 4096, 4096, 4096 * 2048 + 4096 * 64 * 4 + 64 + 81),
    (q.bnb_int8(), 2560, 2560, 2560 * 2560 + 4 * 2560 + 1),
    (q.mlx(4, 64), 2048, 2048, 2048 * 1024 + 4 * 2048 * 32),
    (q.mlx(4, 32, "mxfp4"), 2880, 2880, 2880 * 1440 + 2880 * 90),
    (q.hqq(2, 128), 4096, 4096, 4096 * 1024 + 3 * 4096 * 32),
]


@pytest.mark.parametrize(("packing", "rows", "columns", "size"), MATRICES)
def test_a_matrix_takes_what_its_writer_packs(packing, rows, columns, size):
    assert packing.bytes(rows, columns) == size


def test_a_part_of_a_larger_matrix_has_no_inputs_of_its_own():
    whole, part = q.gptq(), q.gptq().as_part()
    assert whole.bytes(3 * 64, 128) == whole.bytes(64, 128) + 2 * part.bytes(64, 128)


@pytest.mark.parametrize(
    ("patterns", "role", "listed"),
    [
        (["lm_head"], "lm_head", True),
        (["model.language_model.layers.3.mlp.gate"], "mlp.gate", True),
        (["model.layers.30.mlp.gate"], "mlp.gate", False),
        (["model.layers.3"], "self_attn.q_proj", True),
        (["model.layers.3*"], "self_attn.q_proj", True),
        (["model.layers.*.self_attn"], "self_attn.q_proj", True),
        (["gate"], "mlp.gate", True),
        (["gate"], "mlp.gate_proj", False),
        (["model.layers.3.block_sparse_moe.gate"], "mlp.gate", True),
        (["re:.*mlp\\.(gate|up|gate_up|down)_proj.*"], "mlp.gate_proj", True),
        (["re:.*mlp\\.(gate|up|gate_up|down)_proj.*"], "mlp.experts.gate_proj", False),
        (["re:.*self_attn.*"], "self_attn.kv_b_proj", True),
        (["backbone.layers.3.mixer.in_proj"], "mamba.in_proj", True),
        (["layers.3.ffn.experts"], "mlp.experts.down_proj", True),
        (["re:(a+)+$"], "mlp.gate", False),
        (["re:("], "mlp.gate", False),
    ],
)
def test_lists_of_modules_mean_what_quantisers_write(patterns, role, listed):
    names = module_names(role, None if role == "lm_head" else 3, 32)
    assert Modules(patterns).has(names) is listed


def test_a_prediction_layer_follows_the_last_one():
    names = module_names("mlp.experts.up_proj", 61, 61)
    assert Modules(["model.layers.61*"]).has(names)
    assert Modules(["mtp.layers.0*"]).has(names)
    assert not Modules(["model.layers.60*"]).has(names)


def test_lists_are_asked_of_the_layers_that_they_tell_apart():
    by_number = Modules(["model.layers.3.mlp", "model.layers.2*", "lm_head"])
    assert [layer for layer in range(30) if by_number.tells(layer)] == [2, 3, *range(20, 30)]
    assert not any(Modules(["model.layers.*.self_attn", "re:.*mlp.*"]).tells(layer) for layer in range(30))
    assert all(Modules(["re:.*layers\\.[0-4]\\..*"]).tells(layer) for layer in range(30))


def test_a_layer_that_a_list_names_has_a_packing_of_its_own():
    text = {"model_type": "qwen3", "num_hidden_layers": 12, "quantization_config": {"quant_method": "fp8"}}

    def shipped(*kept):
        declared = text["quantization_config"] | {"modules_to_not_convert": list(kept)}
        return weights(kvcalc.read_config(text | {"quantization_config": declared}), None).bytes

    everything = shipped("model.layers.*.mlp.gate_proj") - shipped()
    one_layer = shipped("model.layers.3.mlp.gate_proj") - shipped()
    one_digit = shipped("model.layers.?.mlp.gate_proj") - shipped()
    assert (everything, one_digit) == (12 * one_layer, 10 * one_layer)
