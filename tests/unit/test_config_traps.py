"""What published config.json files do that a reader gets wrong: one test a trap."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from configs import read

import kvcalc
from kvcalc.architecture import Architecture, Full, Sliding
from kvcalc.errors import InputError, KVCalcError, NotModelledError, UnsupportedError
from kvcalc.sources.config import read_config
from kvcalc.weights import weights

CONFIGS = read("configs.json")
PLAIN = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "torch_dtype": "bfloat16",
}


def model(model_type: str, **changes: Any) -> Architecture:
    return read_config(PLAIN | {"model_type": model_type, **changes})


def notes(architecture: Architecture) -> str:
    return "\n".join(architecture.provenance.notes)


def test_a_sparse_file_takes_the_defaults_of_its_model_type_and_says_so() -> None:
    sparse = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    gemma = read_config({"model_type": "gemma3", "text_config": sparse})
    assert gemma.layout == "29 sliding (1024) + 5 full"
    assert gemma.caches[1][0] == Full(num_kv_heads=4, head_dim=256, v_head_dim=256)
    for assumed in ("num_attention_heads 8", "num_key_value_heads 4", "head_dim 256", "vocab_size 262208"):
        assert assumed in notes(gemma)


def test_rules_that_live_in_code() -> None:
    assert model("gemma2", sliding_window=4096).layout == "4 sliding (4096) + 4 full"
    assert model("qwen3_next", full_attention_interval=4, num_experts=4).layout == "6 state + 2 full"
    assert model("llama4", no_rope_layers=[]).layout == "6 chunked (8192) + 2 full"
    assert model("llama4").layout == "6 chunked (8192) + 2 full"


def test_dead_windows() -> None:
    for model_type in ("qwen2", "qwen2_moe", "qwen3_moe"):
        experts = (
            {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64} if "moe" in model_type else {}
        )
        if model_type == "qwen2_moe":
            experts["shared_expert_intermediate_size"] = 64
        for switch in (
            {"use_sliding_window": False, "sliding_window": 4096},
            {"use_sliding_window": True, "sliding_window": None},
        ):
            assert model(model_type, max_window_layers=8, **switch, **experts).layout == "8 full"
    assert model("qwen2", use_sliding_window=False, sliding_window=131072).layout == "8 full"
    assert model("qwen2", use_sliding_window=True, sliding_window=512, max_window_layers=6).layout == (
        "6 full + 2 sliding (512)"
    )
    assert model("qwen2", use_sliding_window=True, sliding_window=512, max_window_layers=28).layout == "8 full"
    wide = model("phi3", sliding_window=262144, max_position_embeddings=131072)
    assert wide.layout == "8 full"
    assert "never used" in notes(wide)
    assert model("llama", sliding_window=512).layout == "8 full"


def test_null_is_not_absent() -> None:
    assert model("mistral").layout == "8 sliding (4096)"
    assert model("mistral", sliding_window=None).layout == "8 full"
    assert model("mistral", sliding_window=4096).layout == "8 sliding (4096)"
    assert model("mixtral").layout == "8 full"


def test_phi3_slides_where_its_window_is_narrower_than_its_context() -> None:
    assert model("phi3", sliding_window=2047, max_position_embeddings=4096).layout == "8 sliding (2047)"


def test_ministral_reads_as_its_file_says() -> None:
    assert model("mistral", sliding_window=32768, max_position_embeddings=32768).layout == "8 sliding (32768)"


def test_one_model_type_has_several_layouts() -> None:
    assert model("exaone4", sliding_window=4096, sliding_window_pattern="LLLG").layout == "6 sliding (4096) + 2 full"
    assert model("exaone4", sliding_window=None, sliding_window_pattern=None).layout == "8 full"
    dense = read_config(CONFIGS["granite-4.0-h-micro"])
    assert {tensor.part for layer in dense.layers for tensor in layer.rest} == {"norms", "feed_forward"}


def test_names_that_lie() -> None:
    # 1 in no_rope_layers is a layer with rope; SmolLM3's list says nothing about the cache.
    assert model("llama4", no_rope_layers=[1, 0] * 4).layout == "4 chunked (8192) + 4 full"
    assert model("smollm3", no_rope_layers=[1, 1, 1, 0] * 2).layout == "8 full"
    mimo = read_config(CONFIGS["mimo-v2-flash"])
    assert CONFIGS["mimo-v2-flash"]["attention_chunk_size"] == 128
    assert mimo.layout == "9 full + 39 sliding (128)"
    assert model("hunyuan_v1_dense", use_cla=False, cla_share_factor=2).layout == "8 full"
    assert model("hunyuan", use_cla=True, cla_share_factor=2, num_experts=1).layout == "4 full + 4 shared"


def test_mla_has_no_kv_heads_and_an_unused_head_dim() -> None:
    config = CONFIGS["deepseek-v3"]
    changed = read_config(config | {"num_key_value_heads": 7, "head_dim": 72})
    assert changed == read_config(config)
    assert kvcalc.kv_cache_bytes(changed, context=1000) == 61 * 1000 * 576 * 2


def test_geometry_by_kind() -> None:
    gemma = read_config(CONFIGS["gemma-4-31b"])
    assert gemma.caches == (
        (Sliding(window=1024, num_kv_heads=16, head_dim=256, v_head_dim=256), 50),
        (Full(num_kv_heads=4, head_dim=512, v_head_dim=512), 10),
    )
    text = CONFIGS["gemma-4-31b"]["text_config"]
    without = read_config({"model_type": "gemma4", "text_config": text | {"attention_k_eq_v": False}})
    assert without.caches[1][0] == Full(num_kv_heads=16, head_dim=512, v_head_dim=512)
    mimo = read_config(CONFIGS["mimo-v2-flash"])
    assert [kind for kind, _ in mimo.caches] == [
        Full(num_kv_heads=4, head_dim=192, v_head_dim=128),
        Sliding(window=128, num_kv_heads=8, head_dim=192, v_head_dim=128),
    ]


def test_sliding_layers_of_mimo_have_twice_the_kv_heads_where_no_key_says_otherwise() -> None:
    config = CONFIGS["mimo-v2-flash"]
    silent = {key: value for key, value in config.items() if not key.startswith("swa_")} | {"num_key_value_heads": 2}
    assert [kind.num_kv_heads for kind, _ in read_config(silent).caches] == [2, 4]  # type: ignore[union-attr]
    stated = silent | {"swa_num_key_value_heads": 2}
    assert [kind.num_kv_heads for kind, _ in read_config(stated).caches] == [2, 2]  # type: ignore[union-attr]


def test_the_last_layer_of_gemma4_is_global_whatever_its_list_says() -> None:
    text = CONFIGS["gemma-4-31b"]["text_config"]
    gemma = read_config({"text_config": text | {"layer_types": ["sliding_attention"] * 60}, "model_type": "gemma4"})
    assert gemma.layout == "59 sliding (1024) + 1 full"
    assert "the last layer is global" in notes(gemma)


def test_a_shared_projection_still_caches_k_and_v() -> None:
    gemma = read_config(CONFIGS["gemma-4-26b-a4b"])
    assert kvcalc.kv_cache_bytes(gemma, context=1024) == 2 * 1024 * 2 * (25 * 8 * 256 + 5 * 2 * 512)


def test_gpt_bigcode_has_one_kv_head_or_one_for_each_query_head() -> None:
    bigcode = {"n_embd": 64, "n_head": 4, "n_layer": 2, "num_key_value_heads": 2, "model_type": "gpt_bigcode"}
    assert read_config(bigcode).caches[0][0] == Full(num_kv_heads=1, head_dim=16, v_head_dim=16)
    many = read_config(bigcode | {"multi_query": False})
    assert many.caches[0][0] == Full(num_kv_heads=4, head_dim=16, v_head_dim=16)


def test_layers_that_share_a_cache_cost_nothing() -> None:
    config = CONFIGS["gemma-3n-e2b"]
    owners = read_config(config | {"text_config": config["text_config"] | {"num_kv_shared_layers": 0}})
    shared = read_config(config)
    assert shared.layout == "16 sliding (512) + 4 full + 8 shared + 2 shared"
    assert kvcalc.kv_cache_bytes(owners, context=512) * 20 == kvcalc.kv_cache_bytes(shared, context=512) * 30


def test_head_dim_is_not_hidden_size_over_heads() -> None:
    assert model("qwen3").caches[0][0] == Full(num_kv_heads=8, head_dim=128, v_head_dim=128)
    assert model("qwen3", num_attention_heads=64).caches[0][0].head_dim == 128  # type: ignore[union-attr]
    assert model("llama", num_attention_heads=64).caches[0][0].head_dim == 64  # type: ignore[union-attr]


def test_mtp_padding_is_no_layer() -> None:
    padded = CONFIGS["step-3.5-flash"]
    assert len(padded["layer_types"]) == 48
    step = read_config(padded)
    assert (step.num_layers, len(step.mtp_layers)) == (45, 3)
    ratios = CONFIGS["deepseek-v4-flash"]["compress_ratios"]
    assert len(ratios) == 44
    assert read_config(CONFIGS["deepseek-v4-flash"]).num_layers == 43


def test_indices_that_count_from_one() -> None:
    kimi = read_config(CONFIGS["kimi-linear-48b-a3b"])
    kinds = [kimi.layers[index].cache.kind for index in kimi.order]
    assert [at for at, kind in enumerate(kinds) if kind == "latent"] == [3, 7, 11, 15, 19, 23, 26]
    config = CONFIGS["kimi-linear-48b-a3b"]
    from_zero = config | {"linear_attn_config": config["linear_attn_config"] | {"full_attn_layers": [0, 3]}}
    with pytest.raises(InputError, match="names layer 0"):
        read_config(from_zero)


def test_indexer_types_name_every_layer() -> None:
    config = read("configs.json")["glm-5.2"]
    types = config["indexer_types"]
    for wrong in (types[:-1], [*types[:-1], "other"]):
        with pytest.raises(InputError, match="full or shared for each"):
            read_config(config | {"indexer_types": wrong})
    assert read_config(config | {"indexer_types": [*types, "full"]}).num_layers == len(
        types
    )  # one of a prediction layer


@pytest.mark.parametrize(
    ("stated", "full"),
    [({"index_topk_freq": 4, "index_skip_topk_offset": 3}, [0, 1, 2, 6, 10, 14, 18]),
     ({"index_topk_freq": 1}, range(20)), ({"index_topk_freq": 3}, [0, 1, 4, 7, 10, 13, 16, 19]),
     ({"index_topk_pattern": "FSSS" * 5}, range(0, 20, 4))],
)  # fmt: skip
def test_indexers_by_frequency_or_pattern_are_those_of_the_list(stated: dict[str, Any], full: Iterable[int]) -> None:
    """GLM-5.2 writes all three; an older file or one of another writer has the schedule alone."""
    config = read("configs.json")["glm-5.2"] | {"num_hidden_layers": 20}
    types = ["full" if at in full else "shared" for at in range(20)]
    alone = {key: value for key, value in config.items() if key != "indexer_types"}
    assert read_config(alone | stated) == read_config(config | {"indexer_types": types})


def test_the_two_lists_of_kimi_linear_are_all_layers_and_none_twice() -> None:
    config = read("configs.json")["kimi-linear-48b-a3b"]
    stated = config["linear_attn_config"]
    linear, full = stated["kda_layers"], stated["full_attn_layers"]
    for changes in ({"kda_layers": [*linear, full[0]]}, {"kda_layers": linear[1:]}):
        with pytest.raises(InputError, match="do not add up"):
            read_config(config | {"linear_attn_config": stated | changes})


def test_one_layer_of_experts_among_dense_ones() -> None:
    config = read("configs.json")["qwen3-30b-a3b"] | {"num_hidden_layers": 4}

    def parameters(*dense: int) -> int:
        return weights(read_config(config | {"mlp_only_layers": list(dense)}), None).parameters

    one_of_experts = parameters(0, 2, 3) - parameters(0, 1, 2, 3)
    assert one_of_experts > 0
    assert parameters() - parameters(0, 1, 2, 3) == 4 * one_of_experts


def test_a_block_of_nemotron_that_multiplies_by_nothing_has_no_feed_forward() -> None:
    config = read("configs.json")["nemotron-super-49b-v1"] | {"num_hidden_layers": 2}
    block = config["block_configs"][0]

    def parameters(ffn: dict[str, Any]) -> int:
        return weights(read_config(config | {"block_configs": [block, block | {"ffn": ffn}]}), None).parameters

    assert parameters({"ffn_mult": 0}) == parameters({"no_op": True}) < parameters({"ffn_mult": 1.3125})


def test_a_width_of_openelm_is_kept_at_nine_tenths() -> None:
    """make_divisible: 10 rounds to 9 of a divisor of 9, which is not below 0.9 x 10."""
    config = read("other_configs.json")["openelm-270m"]["config"] | {"model_dim": 10, "ffn_dim_divisor": 9}
    counted = [
        weights(read_config(config | {"ffn_multipliers": [factor] * 16}), None).parameters for factor in (1.0, 0.9)
    ]
    assert counted[0] == counted[1]


def test_a_null_in_the_file_is_the_default_of_the_class() -> None:
    gemma = {key: value for key, value in CONFIGS["gemma-2-2b"].items() if key != "tie_word_embeddings"}
    assert not any(tensor.part == "head" for tensor in read_config(gemma).tensors)
    scout = CONFIGS["llama-4-scout"]
    assert "tie_word_embeddings" not in scout["text_config"]
    assert any(tensor.part == "head" for tensor in read_config(scout).tensors)


def test_an_encoder_keeps_no_cache() -> None:
    embedding = read("other_configs.json")["embeddinggemma"]["config"]
    encoder = read_config(embedding)
    assert kvcalc.kv_cache_bytes(encoder, context=32768) == 0
    assert "encoder" in notes(encoder)
    with pytest.raises(UnsupportedError, match="encoder"):
        model("bert")


def test_the_file_wins_over_the_class() -> None:
    trinity = read_config(CONFIGS["trinity-mini"])
    assert trinity.layout == "24 sliding (2048) + 8 full"
    minimax = read_config(CONFIGS["minimax-m1-80k"])
    assert minimax.layout == "70 state + 10 full"


def test_infinity_and_lists_of_widths() -> None:
    nemotron = CONFIGS["nemotron-h-56b"]
    assert nemotron["time_step_limit"] == [0.0, float("inf")]
    assert read_config(nemotron).layout == "54 state + 54 none + 10 full"
    widths = read_config(CONFIGS["gemma-3n-e2b"])
    assert isinstance(CONFIGS["gemma-3n-e2b"]["text_config"]["intermediate_size"], list)
    assert widths.num_layers == 30
    assert model("llama", rope_theta=[1e4, 1e6]).num_layers == 8


def test_the_longest_context_is_read_under_its_names() -> None:
    assert read_config(CONFIGS["step-3"]).max_context == 65536
    assert read_config(CONFIGS["kimi-linear-48b-a3b"]).max_context == 1048576


def test_vision_and_audio_parts_are_never_searched() -> None:
    parts = {"vision_config": {"num_hidden_layers": 99, "head_dim": 3}, "audio_config": {"attention_chunk_size": 12}}
    assert model("llama", **parts) == model("llama")
    with pytest.raises(InputError, match="hidden_size is missing"):
        read_config({"model_type": "something", "layer_types": ["full_attention"], **parts})


def test_an_embedding_narrower_than_the_layers_has_projections_in_and_out() -> None:
    # OPT-350m: 331,196,416 parameters; no norm behind the last layer, whose blocks are normed behind them.
    small = {"hidden_size": 1024, "ffn_dim": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
    file = {"model_type": "opt", "vocab_size": 50272, "word_embed_proj_dim": 512, "do_layer_norm_before": False}
    assert weights(read_config(small | file), None).parameters == 331_196_416


def test_float32_files_do_not_make_a_float32_cache() -> None:
    olmo = read_config(CONFIGS["olmo-2-7b"])
    assert (olmo.dtype, olmo.k_dtype) == ("float32", "bfloat16")
    assert kvcalc.kv_cache_bytes(olmo, context=10) == 32 * 10 * 32 * 256 * 2
    assert "float32" in notes(olmo)


def test_an_unknown_model_type_that_states_its_layers_is_read_with_a_note() -> None:
    types = ["sliding_attention", "full_attention"] * 4
    unknown = model("brand_new", layer_types=types, sliding_window=512)
    assert unknown.layout == "4 sliding (512) + 4 full"
    assert "unknown" in notes(unknown)


def test_an_unknown_model_type_with_the_sizes_of_a_plain_decoder_is_estimated() -> None:
    unknown = model("brand_new")
    assert unknown.layout == "8 full"
    assert "a plain decoder" in notes(unknown)
    keys = (
        "sliding_window",
        "attention_chunk_size",
        "mamba_d_state",
        "linear_num_heads",
        "local_attention",
        "loop_num",
    )
    for key in keys:
        with pytest.raises(NotModelledError, match=f"{key} may change what its layers cache"):
            model("brand_new", **{key: 64})
    with pytest.raises(NotModelledError, match="encoder and decoder"):
        model("brand_new", encoder_layers=4)
    with pytest.raises(NotModelledError, match="does not state its layers"):
        read_config({"model_type": "brand_new", "hidden_size": 64})


@pytest.mark.parametrize("model_type", ["brand_new", "llama", "gemma3"])
def test_an_invented_layer_type_is_refused_by_name(model_type: str) -> None:
    with pytest.raises(NotModelledError, match="unknown layer type 'quantum_attention'") as refusal:
        model(model_type, layer_types=["full_attention"] * 7 + ["quantum_attention"])
    assert refusal.value.location == "layer_types[7]"


def test_an_unknown_model_type_with_a_rule_of_its_own_is_refused() -> None:
    types = ["full_attention"] * 8
    for key, value in (("num_kv_shared_layers", 2), ("swa_head_dim", 64), ("use_cla", True)):
        with pytest.raises(NotModelledError, match=f"{key} changes what its layers cache"):
            model("brand_new", layer_types=types, **{key: value})
    assert model("brand_new", layer_types=types, num_kv_shared_layers=0, use_cla=False).layout == "8 full"


def test_an_unknown_model_type_with_a_latent_is_not_billed_as_heads() -> None:
    latent = {"kv_lora_rank": 512, "q_lora_rank": None, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128}
    unknown = model("brand_new", layer_types=["full_attention"] * 8, v_head_dim=128, **latent)
    assert kvcalc.kv_cache_bytes(unknown, context=100) == 8 * 100 * 576 * 2


def test_state_layers_without_a_size_are_refused() -> None:
    with pytest.raises(NotModelledError, match="how large the state is"):
        model("brand_new", layer_types=["linear_attention"] * 8)


def test_a_near_miss_of_a_model_type_is_named() -> None:
    assert "did you mean 'llama'?" in notes(model("lama"))
    with pytest.raises(NotModelledError) as refusal:
        model("lama", sliding_window=512)
    assert refusal.value.hint == "did you mean 'llama'?"


def test_windows_in_a_list_are_repeated_over_the_layers() -> None:
    ragged = model("mistral", sliding_window=[None, 32768, 32768, 32768])
    assert ragged.layout == "2 full + 6 sliding (32768)"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": -1}, "hidden_size must be between"),
        ({"hidden_size": 10**400}, "hidden_size must be between"),
        ({"hidden_size": float("nan")}, "hidden_size must be a whole number"),
        ({"hidden_size": float("inf")}, "hidden_size must be a whole number"),
        ({"hidden_size": 1e400}, "hidden_size must be a whole number"),
        ({"hidden_size": 4096.5}, "hidden_size must be a whole number"),
        ({"hidden_size": True}, "hidden_size must be a whole number"),
        ({"hidden_size": "4096"}, "hidden_size must be a whole number"),
        ({"hidden_size": [4096]}, "hidden_size must be a whole number"),
        ({"hidden_size": None}, None),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be between"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be between"),
        ({"num_attention_heads": 0}, "num_attention_heads must be between"),
        ({"num_attention_heads": 5000}, "do not fit"),
        ({"num_key_value_heads": {}}, "num_key_value_heads must be a whole number"),
        ({"vocab_size": 2**60}, "vocab_size must be between"),
        ({"intermediate_size": [1, -2]}, r"intermediate_size\[1\] must be between"),
        ({"sliding_window": 0, "model_type": "mistral"}, "sliding_window must be between"),
        ({"sliding_window": [], "model_type": "mistral"}, "empty list"),
        ({"sliding_window": None, "layer_types": ["sliding_attention"] * 8}, "no sliding window"),
        ({"layer_types": ["full_attention"] * 3}, "3 entries for 8 layers"),
        ({"layer_types": [1] * 8}, r"layer_types\[0\] must be a text"),
        ({"layer_types": {"a": 1}}, "layer_types must be a list"),
        ({"layer_types": "full_attention"}, "layer_types must be a list"),
        ({"layer_types": ["full_attention"] * 20_000}, "20,000 entries"),
        ({"model_type": 7}, "model_type must be a short text"),
        ({"model_type": "x" * 1000}, "model_type must be a short text"),
        ({"torch_dtype": "float99"}, "unknown dtype"),
        ({"torch_dtype": 16}, "torch_dtype must be a text"),
        ({"text_config": 3}, "text_config must be a table"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"model_type": "bamba", "attn_layer_indices": [2, 8]}, "names layer 8, the model has 8"),
        ({"model_type": "lfm2", "full_attn_idxs": [-1]}, "must be between"),
        ({"model_type": "jamba", "attn_layer_period": 0}, "attn_layer_period must be between"),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "M*-Q----"}, "unknown letter 'Q'"),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "M*"}, "2 letters for 8 layers"),
        ({"model_type": "exaone4", "sliding_window_pattern": "LLXG"}, "letters L and G"),
        ({"model_type": "gemma3n", "num_kv_shared_layers": 8}, "none stands before it"),
        ({"model_type": "gemma3n", "num_kv_shared_layers": 99}, "99 layers share"),
        ({"per_layer_config": {"9": {"head_dim": 4}}}, "names no layer"),
        ({"per_layer_config": {"-1": {"head_dim": 4}}}, "names no layer"),
        ({"per_layer_config": {"1": {"head_dim": -4}}}, "must be between"),
        ({"model_type": "qwen3_moe", "num_experts": 4, "mlp_only_layers": [99]}, "names layer 99"),
        ({"model_type": "deepseek_v4", "compress_ratios": [0, 4, 5, 0, 0, 0, 0, 0]}, "known are 0, 4 and 128"),
        ({"model_type": "falcon", "layer_types": ["mlp"] * 8}, "leaves out the attention"),
        ({"model_type": "lfm2", "full_attn_idxs": [1], "intermediate_size": [8, 9]}, "list of widths"),
        ({"model_type": "rwkv"}, "is not modelled"),
    ],
)
def test_hostile_values_are_one_clear_error(changes: dict[str, Any], message: str | None) -> None:
    config = PLAIN | {"model_type": "llama"} | changes
    if message is None:  # llama's own default takes the place of a null
        assert read_config(config).hidden_size == 4096
        return
    with pytest.raises(KVCalcError, match=message):
        read_config(config)


@pytest.mark.parametrize("config", [[], "text", None, 3, {}, {1: 2}, {str(at): at for at in range(20_000)}])
def test_what_is_no_config_is_refused(config: Any) -> None:
    with pytest.raises(KVCalcError):
        read_config(config)


def test_a_width_that_no_rule_reads_is_said() -> None:
    assert "not read by the rules of llama: ffn_hidden_size 12288" in notes(model("llama", ffn_hidden_size=12288))
    assert "not read by the rules of llama: kv_lora_rank 512" in notes(model("llama", kv_lora_rank=512))
    assert "not read" not in notes(model("telechat", ffn_hidden_size=12288))
    for name, config in CONFIGS.items():
        assert "not read by" not in notes(read_config(config)), name
