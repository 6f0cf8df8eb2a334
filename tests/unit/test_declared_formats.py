"""What a checkpoint says of its formats: which engine follows its cache format, which table counts, and sidecars."""

import json

import pytest

import kvcalc
from kvcalc.errors import InputError
from kvcalc.sources.quantization_config import declared_table, read_quantization
from kvcalc.weights import weights

LLAMA = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}
SCHEME = {"dynamic": False, "num_bits": 8, "type": "float"}
LINEAR = 16 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192)


def cache_bytes(config, engine):
    return kvcalc.kv_cache_bytes(kvcalc.read_config(config), context=4096, engine=engine)


@pytest.mark.parametrize(
    ("stated", "engine", "part"),
    [
        (MODELOPT | {"kv_cache_scheme": SCHEME}, "vllm", 2),
        (MODELOPT | {"kv_cache_scheme": SCHEME}, "sglang", 2),
        (MODELOPT | {"kv_cache_quant_algo": "FP8"}, "vllm", 2),
        (MODELOPT | {"kv_cache_quant_algo": None}, "vllm", 1),
        (MODELOPT | {"kv_cache_scheme": SCHEME}, "transformers", 1),
        (MODELOPT | {"kv_cache_scheme": SCHEME}, "ideal", 1),
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": SCHEME}, "vllm", 2),
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": SCHEME}, "sglang", 1),
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": None}, "vllm", 1),
        ({"quant_method": "fp8", "kv_cache_quant_algo": "FP8"}, "vllm", 1),
    ],
)
def test_a_declared_cache_format_is_the_default_where_the_engine_follows_it(stated, engine, part):
    plain = cache_bytes(LLAMA, engine)
    assert cache_bytes(LLAMA | {"quantization_config": stated}, engine) == plain // part


def test_an_explicit_format_wins_over_the_declared_one_and_a_note_says_what_holds():
    model = kvcalc.read_config(LLAMA | {"quantization_config": MODELOPT | {"kv_cache_scheme": SCHEME}})
    followed = kvcalc.footprint(model, context=4096, engine="vllm")
    assert "K and V are fp8_e4m3, as the checkpoint declares" in followed.notes
    chosen = kvcalc.footprint(model, context=4096, engine="vllm", kv_cache_dtype="bf16")
    assert chosen.kv_cache.bytes == 2 * followed.kv_cache.bytes
    assert "the checkpoint declares a cache in fp8_e4m3" in chosen.notes


def test_the_sidecar_counts_in_a_folder_where_the_config_says_nothing(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    sidecar = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(sidecar))
    model = kvcalc.load(str(tmp_path))
    footprint = kvcalc.footprint(model, context=4096, engine="vllm")
    assert footprint.setup.k_dtype.name == "fp8_e4m3"
    norms, table = 33 * 2048, 128256 * 2048
    # Two scalars beside each of the seven matrices of a layer, and one scale of K and of V.
    assert footprint.weights.bytes == LINEAR + 2 * (norms + table) + 16 * (7 * 8 + 8)


def test_the_outer_table_counts_before_that_of_the_text_part():
    outer, inner = {"quantization_config": {"quant_method": "awq"}}, {"quantization_config": {"quant_method": "gptq"}}
    assert declared_table(outer, inner) == {"quant_method": "awq"}
    assert declared_table({}, inner) == {"quant_method": "gptq"}
    assert declared_table({"quantization_config": None}, {"quantization": {"bits": 4, "group_size": 64}}) == {
        "quant_method": "mlx",
        "bits": 4,
        "group_size": 64,
    }


def test_a_static_scheme_keeps_a_scale_of_the_activations_too():
    def size(scheme):
        table = {"quant_method": "fp8", "activation_scheme": scheme}
        return weights(kvcalc.read_config(LLAMA | {"quantization_config": table}), None).bytes

    assert size("static") - size("dynamic") == 4 * 16 * 7  # a float32 for each of seven matrices a layer


@pytest.mark.parametrize(
    ("table", "name"),
    [({}, "mlx_4bit"), ({"sym": True}, "bfloat16"), ({"zero_point": True}, "bfloat16")],  # GPTQ's and AWQ's own words
)
def test_bits_and_groups_alone_are_those_of_mlx(table, name):
    stated = {"bits": 4, "group_size": 64, **table}
    declared = kvcalc.read_config(LLAMA | {"quantization_config": stated}).quantization
    assert declared.name == name


def test_what_autoround_says_of_a_module_is_a_table_or_nothing():
    plain = {"quant_method": "auto-round", "bits": 4, "group_size": 128}
    module = "model.layers.0.mlp.down_proj"
    sizes = [
        weights(kvcalc.read_config(LLAMA | {"quantization_config": plain | {"extra_config": extra}}), None).bytes
        for extra in ({}, {module: 7}, {module: {"bits": 8}})
    ]
    assert sizes[0] == sizes[1] < sizes[2]


def test_hqq_says_its_bits_in_any_of_three_places():
    settings = {"nbits": 2, "group_size": 128}
    tables = ({"weight_quant_params": settings}, settings)
    sizes = {
        weights(kvcalc.read_config(LLAMA | {"quantization_config": {"quant_method": "hqq", **table}}), None).bytes
        for table in ({"quant_config": tables[0]}, {"quant_config": tables[1]}, settings)
    }
    fewer_bits = weights(kvcalc.read_config(LLAMA | {"quantization_config": {"quant_method": "hqq"}}), None).bytes
    assert len(sizes) == 1
    assert sizes.pop() < fewer_bits  # 4 bits, where it says none


def test_an_unknown_method_is_said_to_be_not_modelled_and_no_figure_of_it_is_exact():
    wider = {"quant_method": "aqlm", "out_group_size": 8}
    for method, stated in (("vptq", {"quant_method": "vptq"}), ("aqlm", wider)):
        counted = kvcalc.footprint(kvcalc.read_config(LLAMA | {"quantization_config": stated}), context=4096)
        assert counted.weights.bytes == 2 * counted.weights.parameters
        assert any(f"not modelled: what {method} stores" in note for note in counted.notes)
        assert not counted.weights.exact


LLAMA_2 = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "torch_dtype": "float16",
}
BITNET = {
    "model_type": "bitnet",
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_hidden_layers": 30,
    "vocab_size": 128256,
    "num_attention_heads": 20,
    "num_key_value_heads": 5,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize(
    ("config", "stated", "printed"),
    [
        # ISTA-DASLab/Llama-2-7b-AQLM-2Bit-1x16-hf prints 2.38 GB, microsoft/bitnet-b1.58-2B-4T 1.18.
        (LLAMA_2, {"quant_method": "aqlm", "num_codebooks": 1, "nbits_per_codebook": 16, "in_group_size": 8}, 2.38),
        (BITNET, {"quant_method": "bitnet", "linear_class": "autobitlinear"}, 1.18),
    ],
)
def test_codes_and_ternary_numbers_take_what_was_printed(config, stated, printed):
    size = weights(kvcalc.read_config(config | {"quantization_config": stated}), None).bytes
    assert round(size / 10**9, 2) == printed


def test_gemmas_own_format_packs_rows_with_a_scale_each_and_modules_of_other_bits():
    stated = {"quant_method": "gemma", "num_bits": 4, "module_quant_configs": {"down_proj": {"num_bits": 8}, "up": 1}}
    config = LLAMA_2 | {"model_type": "gemma3_text", "tie_word_embeddings": True, "num_hidden_layers": 1}
    sizes = [
        weights(kvcalc.read_config(config | {"quantization_config": stated | more}), None).bytes
        for more in ({}, {"quantize_embeddings": True}, {"modules_to_not_convert": ["down_proj"]})
    ]
    down, table = 4096 * 11008, 32000 * 4096
    assert sizes[0] - sizes[1] == 2 * table - (table // 2 + 4 * 32000 + 8)
    assert sizes[2] - sizes[0] == 2 * down - (down + 4 * 4096 + 8)


@pytest.mark.parametrize("method", ["gptq_marlin", "awq_marlin", "inc"])
def test_the_name_of_a_kernel_is_that_of_its_format(method):
    own = {"gptq_marlin": "gptq", "awq_marlin": "awq", "inc": "auto-round"}[method]
    table = {"bits": 4, "group_size": 128}
    assert read_quantization(table | {"quant_method": method}, "llama") == read_quantization(
        table | {"quant_method": own}, "llama"
    )


@pytest.mark.parametrize(
    "stated",
    [
        {"quant_method": 4},
        {"quant_method": "awq", "bits": "four"},
        {"quant_method": "awq", "bits": 0},
        {"quant_method": "fp8", "weight_block_size": [128]},
        {"quant_method": "fp8", "modules_to_not_convert": 7},
        {"quant_method": "gptq", "dynamic": []},
        {"quant_method": "mlx", "mode": "affine2"},
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": 1}},
    ],
)
def test_values_that_are_none_are_refused(stated):
    with pytest.raises(InputError):
        read_quantization(stated, "llama")


def test_bf16_asks_for_the_unquantised_weights_and_the_note_names_what_ships():
    shipped = kvcalc.footprint(kvcalc.load("gpt-oss-20b"), context=4096).weights
    assert (shipped.bytes, shipped.dtype, shipped.exact) == (13_761_264_768, "mxfp4", True)
    plain = kvcalc.footprint(kvcalc.load("gpt-oss-20b"), context=4096, weights_dtype="bf16").weights
    assert plain.bytes == 2 * plain.parameters
    assert plain.notes[0] == "the checkpoint ships in mxfp4"
    assert (
        kvcalc.footprint(kvcalc.load("gpt-oss-20b"), context=4096, weights_dtype="mxfp4").weights.bytes == shipped.bytes
    )


def test_a_gptq_checkpoint_has_zero_biases_by_its_writer():
    config = {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 512, "intermediate_size": 1024}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 1000}

    def shipped(**more):
        declared = {"quant_method": "gptq", "bits": 4, "group_size": 128} | more
        return weights(kvcalc.read_config(config | {"quantization_config": declared}), None)

    older = shipped(checkpoint_format="gptq")
    newer = shipped(checkpoint_format="gptq", meta={"quantizer": ["gptqmodel:2.2.0"]})
    assert older.bytes - newer.bytes == 2 * (4 * 512 + 2 * 1024 + 512)  # a bias of two bytes for every output
    assert not any("estimated" in note for note in newer.notes)
    assert any("does not tell which writer" in note for note in shipped().notes)


def groups(scheme, form=None):
    table = {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": scheme, "targets": ["Linear"]}}}
    return table if form is None else table | {"format": form}


@pytest.mark.parametrize(
    ("table", "name", "bits_of_a_number", "group", "tile"),
    [
        (
            groups({"type": "float", "strategy": "channel"}),
            "fp8_channel",
            8,
            (),
            (1, 1),
        ),  # eight bits unless it says so
        (groups({"num_bits": 8, "group_size": 128}, "pack-quantized"), "int8_g128", 8, ((128, 2),), (1, 1)),
        (groups({"num_bits": 4, "group_size": 128}), "int4_g128", 4, ((128, 2),), (1, 1)),
        (groups({"num_bits": 8, "type": "float", "strategy": "block"}), "fp8_block", 8, (), (128, 128)),
        (
            groups({"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [64, 32]}),
            "fp8_block",
            8,
            (),
            (64, 32),
        ),
        ({"quant_method": "fp8", "weight_block_size": [64, 128]}, "fp8_block", 8, (), (64, 128)),
        ({"quant_method": "mlx"}, "mlx_4bit", 4, ((64, 4),), (1, 1)),
        ({"quant_method": "mlx", "mode": "affine", "bits": 8}, "mlx_8bit", 8, ((64, 4),), (1, 1)),
    ],
)
def test_what_a_table_does_not_say_is_the_usual(table, name, bits_of_a_number, group, tile):
    declared = read_quantization(table, "llama").weights
    packing = declared.packing
    assert (declared.name, packing.bits, packing.groups, packing.tile) == (name, bits_of_a_number, group, tile)


@pytest.mark.parametrize(("bits", "dtype"), [(8, "fp8_e4m3"), (4, "nvfp4")])
def test_a_cache_scheme_of_floats_is_known_by_its_bits(bits, dtype):
    table = {"quant_method": "compressed-tensors", "kv_cache_scheme": {"type": "float", "num_bits": bits}}
    assert read_quantization(table, "llama").cache.dtype == dtype


def test_a_table_under_mlxs_own_key_needs_no_method():
    assert declared_table({"quantization": {"bits": 4}})["quant_method"] == "mlx"
    assert declared_table({"quantization_config": {"bits": 4, "group_size": 64}})["quant_method"] == "mlx"
    assert "quant_method" not in declared_table({"quantization_config": {"bits": 4, "group_size": 64, "sym": True}})
