"""From GGUF metadata to layers, as llama.cpp derives them, and the exact weights by part."""

import pytest
from gguf_writer import model_metadata, write_gguf

from kvcalc.architecture import Full, Latent, NoCache, Parallel, Shared, Sliding, State
from kvcalc.errors import InputError, UnsupportedError
from kvcalc.footprints import footprint, kv_cache_bytes
from kvcalc.sources.gguf_model import load_gguf


@pytest.fixture
def load(tmp_path):
    """Write a file of one architecture and load it; width and heads have small defaults."""

    def write_and_load(arch, tensors=(), **keys):
        stated = {"embedding_length": 2048, "attention__head_count": 16} | keys
        metadata = model_metadata(arch, **{key: value for key, value in stated.items() if value is not None})
        return load_gguf(write_gguf(tmp_path / "model.gguf", metadata, tensors))

    return write_and_load


def kinds(model):
    """The layers as one letter each."""
    letter = {"full": "F", "sliding": "S", "chunked": "C", "latent": "L", "state": "R", "shared": "s", "none": "."}
    return "".join(letter.get(model.layers[index].cache.kind, "P") for index in model.order)


GEMMA3_1B = {
    "block_count": 26,
    "embedding_length": 1152,
    "context_length": 32768,
    "attention__head_count": 4,
    "attention__head_count_kv": 1,
    "attention__key_length": 256,
    "attention__value_length": 256,
    "attention__sliding_window": 512,
}


def test_gemma_3_is_five_to_one_and_costs_what_the_preset_costs(load):
    model = load("gemma3", **GEMMA3_1B)
    assert model.model_type == "gemma3"
    assert model.layout == "22 sliding (512) + 4 full"
    assert kinds(model).startswith("SSSSSFSSSSSF")
    from kvcalc.sources.preset import load_preset

    preset = load_preset("gemma-3-1b")
    for context in (1, 512, 513, 32768):
        assert kv_cache_bytes(model, context=context) == kv_cache_bytes(preset, context=context)


@pytest.mark.parametrize("arch", ["llada", "dream", "rnd1", "llada-moe", "llama-embed"])
def test_a_model_that_llama_cpp_gives_no_memory_keeps_no_cache(load, arch):
    model = load(arch, block_count=32, attention__head_count_kv=4, attention__causal=False, vocab_size=1000)
    assert kinds(model) == 32 * "."
    assert kv_cache_bytes(model, context=32768) == 0
    assert footprint(model, context=32768, engine="llama.cpp").kv_cache.bytes == 0
    assert any("keeps no memory" in note for note in model.provenance.notes)


def test_a_scalar_pattern_overrides_the_period_and_a_list_gives_the_layers(load):
    assert kinds(load("gemma3", **GEMMA3_1B | {"block_count": 6, "attention__sliding_window_pattern": 3})) == "SSFSSF"
    assert kinds(load("gemma3", **GEMMA3_1B | {"block_count": 6, "attention__sliding_window_pattern": 0})) == "SSSSSS"
    pattern = [True, False, False, True, True, False]
    assert kinds(load("gemma3", **GEMMA3_1B | {"block_count": 6, "attention__sliding_window_pattern": pattern})) == (
        "SFFSSF"
    )
    assert kinds(load("gemma3", **GEMMA3_1B | {"block_count": 6, "attention__sliding_window": None})) == "FFFFFF"


@pytest.mark.parametrize(
    ("arch", "keys", "model_type", "layout"),
    [
        ("llama", {"block_count": 4}, "llama", "4 full"),
        ("gemma2", {"block_count": 5}, "gemma2", "3 sliding (4096) + 2 full"),
        ("gpt-oss", {"block_count": 24, "attention__sliding_window": 128}, "gpt_oss", "12 sliding (128) + 12 full"),
        ("cohere2", {"block_count": 32, "attention__sliding_window": 4096}, "cohere2", "24 sliding (4096) + 8 full"),
        ("olmo2", {"block_count": 8}, "olmo2", "8 full"),
        ("olmo2", {"block_count": 8, "attention__sliding_window": 4096}, "olmo3", "6 sliding (4096) + 2 full"),
        ("exaone4", {"block_count": 30, "attention__sliding_window": 4096}, "exaone4", "30 full"),
        ("exaone4", {"block_count": 64}, "exaone4", "48 sliding (4096) + 16 full"),
        ("exaone-moe", {"block_count": 8}, "exaone_moe", "6 sliding (128) + 2 full"),
        ("llama4", {"block_count": 48}, "llama4", "36 chunked (8192) + 12 full"),
        ("llama4", {"block_count": 48, "attention__sliding_window": 0}, "llama4", "48 full"),
        (
            "smallthinker",
            {"block_count": 8, "attention__sliding_window": 9},
            "smallthinker",
            "2 full + 6 sliding (4096)",
        ),
        ("qwen3moe", {"block_count": 48}, "qwen3_moe", "48 full"),
        ("brand-new", {"block_count": 3}, "brand_new", "3 full"),
    ],
)
def test_the_layout_is_what_llama_cpp_derives(load, arch, keys, model_type, layout):
    model = load(arch, **keys)
    assert (model.model_type, model.layout) == (model_type, layout)


@pytest.mark.parametrize("arch", ["phi3", "llama"])
def test_a_window_that_llama_cpp_does_not_read_is_said_and_not_applied(load, arch):
    model = load(arch, block_count=32, attention__sliding_window=2047)
    assert model.layout == "32 full"
    assert any("window of 2,047 tokens" in note for note in model.provenance.notes)


def test_a_window_that_nobody_places_is_refused_by_its_key(load):
    with pytest.raises(UnsupportedError, match=r"brand-new\.attention\.sliding_window is 4,096"):
        load("brand-new", block_count=4, attention__sliding_window=4096)
    model = load("brand-new", block_count=4, attention__sliding_window=4096, attention__sliding_window_pattern=2)
    assert kinds(model) == "SFSF"


def test_gemma_4_has_its_own_heads_in_local_layers_and_shares_the_last_caches(load):
    model = load(
        "gemma4",
        block_count=6,
        attention__head_count_kv=[16, 16, 4, 16, 16, 4],
        attention__key_length=512,
        attention__value_length=512,
        attention__key_length_swa=256,
        attention__value_length_swa=256,
        attention__sliding_window=1024,
        attention__sliding_window_pattern=[True, True, False, True, True, False],
        attention__shared_kv_layers=2,
    )
    cached = [model.layers[index].cache for index in model.order]
    assert cached[0] == Sliding(window=1024, num_kv_heads=16, head_dim=256, v_head_dim=256)
    assert cached[2] == Full(num_kv_heads=4, head_dim=512, v_head_dim=512)
    assert cached[4:] == [Shared(of="sliding"), Shared(of="full")]


def test_gemma_3n_keeps_its_first_20_layers_whatever_the_file_says(load):
    model = load("gemma3n", block_count=35, attention__sliding_window=512, attention__shared_kv_layers=3)
    assert kinds(model) == "SSSSF" * 4 + "s" * 15


DEEPSEEK = {
    "block_count": 61,
    "embedding_length": 7168,
    "attention__head_count": 128,
    "attention__kv_lora_rank": 512,
    "rope__dimension_count": 64,
}


def test_mla_keys_make_the_latent_the_cache(load):
    model = load(
        "deepseek2",
        **DEEPSEEK,
        attention__head_count_kv=1,
        attention__key_length=576,
        attention__value_length=512,
        attention__key_length_mla=192,
        attention__value_length_mla=128,
    )
    latent = Latent(rank=512, rope_dim=64, num_heads=128, nope_dim=128, v_head_dim=128)
    assert model.caches == ((latent, 61),)
    assert kv_cache_bytes(model, context=1000) == 61 * 1000 * 576 * 2


def test_without_mla_keys_the_heads_are_cached_as_llama_cpp_caches_them(load):
    keys = DEEPSEEK | {"attention__head_count_kv": 128, "attention__key_length": 192, "attention__value_length": 128}
    model = load("deepseek2", **keys)
    assert model.caches == ((Full(num_kv_heads=128, head_dim=192, v_head_dim=128), 61),)
    assert any("decompressed heads" in note for note in model.provenance.notes)


def test_an_mla_key_of_the_wrong_width_is_refused(load):
    keys = {"attention__key_length": 500, "attention__key_length_mla": 192, "attention__value_length_mla": 128}
    with pytest.raises(InputError, match="do not make the key of 500"):
        load("deepseek2", **DEEPSEEK, **keys)


SSM = {"ssm__conv_kernel": 4, "ssm__inner_size": 4096, "ssm__state_size": 128, "ssm__group_count": 16}


def test_qwen3_next_keeps_attention_in_every_fourth_layer(load):
    model = load("qwen3next", block_count=48, attention__head_count_kv=2, attention__key_length=256, **SSM)
    assert kinds(model) == "RRRF" * 12
    # 36 layers of 3 columns of 8192 channels and a state of 128 x 4096, as llama.cpp prints it in F32 (79036416 bytes).
    state = State(recurrent_elements=128 * 4096, conv_channels=8192, conv_kernel=4)
    assert model.caches[0] == (state, 36)
    assert 4 * 36 * (3 * state.conv_channels + state.recurrent_elements) == 79_036_416
    assert kinds(load("qwen35", block_count=6, full_attention_interval=3, **SSM)) == "RRFRRF"


def test_layers_without_kv_heads_are_recurrent(load):
    keys = {"block_count": 4, "attention__head_count_kv": [0, 8, 0, 8]}
    jamba = load("jamba", **keys, **SSM)
    assert kinds(jamba) == "RFRF"
    # Mamba 1 has no groups: the convolution is as wide as the inner layer.
    assert jamba.caches[0][0] == State(recurrent_elements=128 * 4096, conv_channels=4096, conv_kernel=4)
    assert load("granitehybrid", **keys, **SSM).caches[0][0].conv_channels == 4096 + 2 * 16 * 128
    lfm2 = load("lfm2", **keys, shortconv__l_cache=3)
    assert lfm2.caches[0] == (State(conv_channels=2048, conv_kernel=3), 2)


def test_nemotron_h_has_layers_without_any_cache(load):
    model = load(
        "nemotron_h",
        block_count=4,
        attention__head_count_kv=[0, 0, 8, 0],
        feed_forward_length=[0, 4096, 0, 4096],
        **SSM,
    )
    assert kinds(model) == "R.F."
    assert model.model_type == "nemotron_h"


def test_falcon_h1_has_both_in_every_layer_and_mamba_no_attention(load):
    model = load("falcon-h1", block_count=3, attention__head_count_kv=2, attention__key_length=128, **SSM)
    assert isinstance(model.layers[0].cache, Parallel)
    assert kinds(load("mamba2", block_count=3, attention__head_count=0, **SSM)) == "RRR"
    assert kinds(load("mamba", block_count=3, attention__head_count=None, **SSM)) == "RRR"


def test_kimi_linear_keeps_a_matrix_for_each_head(load):
    model = load(
        "kimi-linear",
        block_count=4,
        attention__head_count=32,
        attention__head_count_kv=[0, 0, 0, 1],
        attention__kv_lora_rank=512,
        attention__key_length=576,
        attention__value_length=512,
        attention__key_length_mla=192,
        attention__value_length_mla=128,
        kda__head_dim=128,
        ssm__conv_kernel=4,
    )
    assert kinds(model) == "RRRL"
    assert model.caches[0][0] == State(32 * 128 * 128, "float32", conv_channels=3 * 32 * 128, conv_kernel=4)


def test_a_state_that_nobody_places_is_refused_by_its_key(load):
    with pytest.raises(UnsupportedError, match=r"brand-new\.ssm\.conv_kernel"):
        load("brand-new", block_count=4, **SSM)
    assert kinds(load("brand-new", block_count=4, attention__head_count_kv=[0, 8, 0, 8], **SSM)) == "RFRF"


def test_a_layer_without_kv_heads_in_a_model_without_state_keeps_nothing(load):
    model = load("deci", block_count=3, attention__head_count=[8, 0, 8], attention__head_count_kv=[2, 0, 4])
    assert [type(model.layers[index].cache) for index in model.order] == [Full, NoCache, Full]
    assert model.caches[0][0].head_dim == 2048 // 8


def test_multi_token_prediction_layers_cost_only_when_asked_for(load):
    model = load("glm4moe", block_count=47, nextn_predict_layers=1)
    assert (model.num_layers, len(model.mtp_layers)) == (46, 1)
    plain, with_mtp = (footprint(model, context=1000, draft=draft).kv_cache.bytes for draft in (None, "mtp"))
    assert with_mtp * 46 == plain * 47


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (model_metadata("bert", block_count=4), "an encoder"),
        (model_metadata("clip", block_count=4), "projector"),
        (model_metadata("llama", block_count=4) | {"general.type": "adapter"}, "'adapter'"),
        (model_metadata("rwkv6", block_count=4, wkv__head_size=64), r"rwkv6\.wkv\.head_size"),
        (model_metadata("t5", block_count=4, decoder_block_count=4), r"t5\.decoder_block_count"),
    ],
)
def test_what_has_no_cache_or_no_rule_is_refused(tmp_path, metadata, reason):
    with pytest.raises(UnsupportedError, match=reason):
        load_gguf(write_gguf(tmp_path / "m.gguf", metadata))


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"block_count": None}, r"llama\.block_count is missing"),
        ({"block_count": 0}, r"llama\.block_count must be a whole number from 1, not 0"),
        ({"block_count": -1}, "whole number from 1, not -1"),
        ({"block_count": 2**62}, "whole number"),
        ({"block_count": 2_000_000}, "2,000,000 layers"),
        ({"block_count": 4.0}, "whole number"),
        ({"block_count": "four"}, "whole number"),
        ({"block_count": ["four"]}, "1 entries"),
        ({"embedding_length": None}, r"llama\.embedding_length is missing"),
        ({"attention__head_count": None}, r"llama\.attention\.head_count is missing"),
        ({"attention__head_count": 4096}, "no width"),
        ({"attention__head_count_kv": [1, 2]}, "lists 2 layers, the model has 4"),
        ({"attention__head_count_kv": -3}, "whole number from 0"),
        ({"nextn_predict_layers": 4}, "leaves no layer"),
    ],
)
def test_a_bad_key_is_one_error_with_its_name(load, keys, reason):
    with pytest.raises(InputError, match=reason) as caught:
        load("llama", **{"block_count": 4} | keys)
    assert "model.gguf" in caught.value.location


MOE_TENSORS = [
    ("token_embd.weight", (2048, 1000), "q6_k"),
    ("blk.0.attn_norm.weight", (2048,), "f32"),
    ("blk.0.attn_q.weight", (2048, 2048), "q4_k"),
    ("blk.0.attn_k.weight", (2048, 512), "q4_k"),
    ("blk.0.attn_v.weight", (2048, 512), "q6_k"),
    ("blk.0.attn_output.weight", (2048, 2048), "q4_k"),
    ("blk.0.ffn_norm.weight", (2048,), "f32"),
    ("blk.0.ffn_gate_inp.weight", (2048, 8), "f32"),
    ("blk.0.ffn_up_exps.weight", (2048, 768, 8), "q4_k"),
    ("output_norm.weight", (2048,), "f32"),
    ("output.weight", (2048, 1000), "q8_0"),
    ("rope_freqs.weight", (64,), "f32"),
]


def test_weights_are_the_bytes_of_the_file_and_its_parameters_by_part(load):
    keys = {"attention__head_count_kv": 4, "expert_count": 8, "expert_used_count": 2, "block_count": 1}
    model = load("qwen3moe", MOE_TENSORS, **keys)
    weights = footprint(model, context=1).weights
    blocks = {"q4_k": (2 * 2048 * 2048 + 512 * 2048 + 2048 * 768 * 8) // 256 * 144, "q6_k": 1512 * 2048 // 256 * 210}
    blocks |= {"q8_0": 1000 * 2048 // 32 * 34, "f32": 4 * (3 * 2048 + 2048 * 8 + 64)}
    assert model.provenance.weight_bytes == blocks
    assert weights.bytes == sum(blocks.values())
    assert weights.exact
    assert weights.parts == {
        "embedding": 2_048_000,
        "norms": 3 * 2048,
        "head": 2_048_000,
        "attention": 2 * 2048 * 2048 + 2 * 512 * 2048,
        "router": 2048 * 8,
        "experts": 2048 * 768 * 8,
    }
    # The table of rope factors takes bytes and is no parameter.
    assert model.provenance.weight_elements == weights.parameters
    assert weights.parameters == sum(weights.parts.values())
    assert weights.active_parameters == weights.parameters - 2048 * 768 * 6


def test_the_most_layers_are_the_last_that_are_read(load, monkeypatch):
    monkeypatch.setattr("kvcalc.sources.gguf_model._MOST_LAYERS", 2)
    assert load("llama", block_count=2, attention__head_count_kv=4).num_layers == 2
    with pytest.raises(InputError, match="says 3 layers"):
        load("llama", block_count=3, attention__head_count_kv=4)


def test_another_weight_format_is_estimated_from_the_parameters(load):
    model = load("qwen3moe", MOE_TENSORS, attention__head_count_kv=4, block_count=1, expert_count=8)
    weights = footprint(model, context=1, weights_dtype="bfloat16").weights
    assert weights.bytes == 2 * weights.parameters


def test_layers_of_different_quantisation_are_one_distinct_layer(load):
    tensors = [(f"blk.{layer}.attn_q.weight", (2048, 2048), dtype) for layer, dtype in enumerate(["q4_k", "q6_k"])]
    assert len(load("llama", tensors, block_count=2).layers) == 1


def test_a_tensor_of_a_layer_that_does_not_exist_is_refused(load):
    with pytest.raises(InputError, match="belongs to no layer"):
        load("llama", [("blk.7.attn_q.weight", (256, 256), "f16")], block_count=2)


def test_a_file_without_tensors_says_that_its_weights_are_not_known(load):
    model = load("llama", block_count=2)
    assert not footprint(model, context=1).weights.exact
    assert any("lists no tensors" in note for note in model.provenance.notes)


def test_the_own_dtype_is_known_only_of_an_unquantised_file(load):
    assert load("llama", [("w", (256, 256), "f16")], block_count=2).dtype == "float16"
    quantised = load("llama", [("w", (256, 256), "q4_k")], block_count=2)
    assert quantised.dtype == "bfloat16"
    assert any("is assumed" in note for note in quantised.provenance.notes)


def test_the_vocabulary_is_counted_from_its_tokens(load, tmp_path):
    metadata = model_metadata("llama", block_count=1, embedding_length=64, attention__head_count=4)
    path = write_gguf(tmp_path / "v.gguf", metadata | {"tokenizer.ggml.tokens": ["a", "b", "c"]})
    assert load_gguf(path).vocab_size == 3
    assert load("llama", [("token_embd.weight", (2048, 77), "f16")], block_count=1).vocab_size == 77
