"""Kinds of files beside the plain config.json of a decoder, each in several forms."""

from __future__ import annotations

from typing import Any

import pytest

from kvcalc import footprint, kv_cache_bytes
from kvcalc.errors import InputError, NotModelledError, UnsupportedError
from kvcalc.sources.blocks import per_layer_embedding
from kvcalc.sources.config import read_config
from kvcalc.sources.config.originals import as_transformers
from kvcalc.weights import weights

LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
WHOLE, BODY = 8_030_261_248, 7_504_924_672


def parameters(config: dict[str, Any]) -> int:
    return weights(read_config(config), None).parameters


WHISPER_LARGE_V3 = {
    "model_type": "whisper",
    "d_model": 1280,
    "decoder_layers": 32,
    "encoder_layers": 32,
    "decoder_attention_heads": 20,
    "encoder_attention_heads": 20,
    "decoder_ffn_dim": 5120,
    "encoder_ffn_dim": 5120,
    "num_mel_bins": 128,
    "vocab_size": 51866,
}
T5_V1_1_XL = {
    "model_type": "t5",
    "d_model": 2048,
    "d_ff": 5120,
    "d_kv": 64,
    "num_heads": 32,
    "num_layers": 24,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "vocab_size": 32128,
}
NLLB_600M = {
    "model_type": "m2m_100",
    "d_model": 1024,
    "decoder_layers": 12,
    "encoder_layers": 12,
    "decoder_attention_heads": 16,
    "encoder_attention_heads": 16,
    "decoder_ffn_dim": 4096,
    "encoder_ffn_dim": 4096,
    "vocab_size": 256206,
}


@pytest.mark.parametrize(
    ("config", "count", "kv_bytes"),
    [
        (WHISPER_LARGE_V3, 1_543_490_560, 32 * 2 * 1280 * 2),
        (T5_V1_1_XL, 2_849_757_184, 24 * 2 * 2048 * 2),
        (NLLB_600M, 615_073_792, 12 * 2 * 1024 * 2),
    ],
)
def test_encoder_decoders_keep_what_the_decoder_reads(config: dict[str, Any], count: int, kv_bytes: int) -> None:
    model = read_config(config)
    assert weights(model, None).parameters == count
    assert kv_cache_bytes(model, context=1000) == 1000 * kv_bytes
    assert any("encoder_tokens" in note for note in model.provenance.notes)


@pytest.mark.parametrize(
    "around",
    ["text_config", "llm_cfg", "lm_config", "decoder_config", "language_config", "backbone_config", "vlm_config"],
)
def test_a_language_model_is_found_under_any_usual_name(around: str) -> None:
    assert parameters({"model_type": "my_wrapper", around: LLAMA, "vision_config": {"hidden_size": 8}}) == WHOLE
    assert parameters({"model_type": "my_wrapper", around: {"model_type": "llava", "text_config": LLAMA}}) == WHOLE


@pytest.mark.parametrize("around", ["text_config", "thinker_config"])
def test_a_language_model_is_found_four_tables_deep(around: str) -> None:
    config: dict[str, Any] = LLAMA
    for _ in range(4):
        config = {around: config}
    assert parameters(config) == WHOLE
    with pytest.raises(InputError):
        read_config({around: config})


def test_a_vision_backbone_is_no_language_model() -> None:
    vision = {"hidden_size": 1280, "num_hidden_layers": 2, "num_attention_heads": 16, "model_type": "siglip"}
    assert parameters(LLAMA | {"backbone_config": vision}) == WHOLE


def test_an_unknown_type_is_what_its_class_says() -> None:
    model = read_config(LLAMA | {"model_type": "my_llama", "architectures": ["LlamaForCausalLM"]})
    assert (model.model_type, weights(model, None).parameters) == ("llama", WHOLE)
    assert read_config(LLAMA | {"model_type": "Yi"}).model_type == "yi"
    assert read_config(LLAMA | {"model_type": "stablelm_epoch"}).model_type == "stablelm"


def test_the_head_is_what_the_class_has() -> None:
    labels = {"0": "no", "1": "maybe", "2": "yes"}
    assert parameters(LLAMA | {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}) == BODY + 4096
    assert parameters(LLAMA | {"architectures": ["LlamaForSequenceClassification"], "id2label": labels}) == (
        BODY + 3 * 4096
    )
    assert parameters(LLAMA | {"architectures": ["LlamaForTokenClassification"]}) == BODY + 2 * 4096 + 2
    assert parameters(LLAMA | {"architectures": ["LlamaForRewardModel"]}) == BODY + 4096
    assert parameters(LLAMA | {"architectures": ["LlamaModel"]}) == BODY
    assert parameters(LLAMA | {"architectures": ["LlavaLlamaModel"]}) == WHOLE
    assert parameters(LLAMA | {"architectures": ["LlamaModel"], "auto_map": {"AutoModelForCausalLM": "m.L"}}) == WHOLE


def test_an_embedding_model_of_an_unknown_type_keeps_nothing() -> None:
    with pytest.raises(UnsupportedError, match="'llama_bidirec' is an encoder"):
        read_config(LLAMA | {"model_type": "llama_bidirec", "architectures": ["LlamaBidirectionalModel"]})


def test_an_eagle_3_draft_reads_the_embedding_and_three_states_of_its_target() -> None:
    draft = LLAMA | {"architectures": ["LlamaForCausalLMEagle3"], "num_hidden_layers": 1, "draft_vocab_size": 32000}
    block = (BODY - 128256 * 4096 - 4096) // 32
    second_input, joined, head, norms = (4096 + 2 * 1024) * 4096, 3 * 4096**2, 32000 * 4096, 2 * 4096
    assert parameters(draft) == block + second_input + joined + head + norms


def test_experts_of_a_dense_type_are_read_and_said() -> None:
    model = read_config(LLAMA | {"num_local_experts": 8, "num_experts_per_tok": 2})
    assert weights(model, None).parameters == WHOLE + 32 * (7 * 3 * 4096 * 14336 + 8 * 4096)
    assert any("weights estimated" in note for note in model.provenance.notes)
    assert parameters(LLAMA | {"num_experts": 1}) == WHOLE
    two = LLAMA | {"num_experts": 2, "num_experts_per_tok": 1}
    assert parameters(two) == WHOLE + 32 * (3 * 4096 * 14336 + 2 * 4096)


PARAMS = {"dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8}


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (PARAMS | {"vocab_size": 32000, "sliding_window": 4096}, 7_241_732_096),
        (PARAMS | {"vocab_size": 32000, "moe": {"num_experts": 8, "num_experts_per_tok": 2}}, 46_702_792_704),
        ({"dim": 4096, "n_layers": 32, "n_heads": 32, "multiple_of": 256, "vocab_size": -1}, 6_738_415_616),
        ({"dim": 4096, "n_layers": 32, "n_heads": 32, "ffn_dim_multiplier": 1, "vocab_size": -1}, 6_738_415_616),
        (
            {"dim": 8192, "n_layers": 80, "n_heads": 64, "n_kv_heads": 8, "multiple_of": 4096, "vocab_size": 32000}
            | {"ffn_dim_multiplier": 1.3},
            68_976_648_192,
        ),
        ({"d_model": 2560, "n_layer": 64, "vocab_size": 50277, "ssm_cfg": {}}, 2_768_345_600),
        (
            {"d_model": 2560, "n_layer": 64, "vocab_size": 50277, "ssm_cfg": {"layer": "Mamba2"}}
            | {"pad_vocab_size_multiple": 16},
            2_702_599_680,
        ),
    ],
)
def test_files_of_other_programs_name_no_model_type(config: dict[str, Any], count: int) -> None:
    assert parameters(config) == count


@pytest.mark.parametrize(
    "config", [{"dim": 64}, {"dim": 64, "n_layers": 2}, {"n_layers": 2, "n_heads": 4}, {"ssm_cfg": {}}]
)
def test_a_file_that_lacks_their_keys_is_none_of_other_programs(config: dict[str, Any]) -> None:
    assert as_transformers(config) is config


def test_latents_are_plain_attention_where_the_file_has_none() -> None:
    sizes = {"qk_nope_head_dim": 0, "qk_rope_head_dim": 0, "v_head_dim": 0, "num_key_value_heads": 32}
    for rank in ({"kv_lora_rank": None}, {"use_mla": False, "kv_lora_rank": 512}, {"kv_lora_rank": 0}):
        model = read_config(LLAMA | {"model_type": "deepseek_v2"} | sizes | rank)
        assert kv_cache_bytes(model, context=1000) == 32 * 1000 * 2 * 4096 * 2
    wide = LLAMA | {"model_type": "deepseek_v3", "kv_lora_rank": None, "num_key_value_heads": 32}
    split = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
    assert kv_cache_bytes(read_config(wide | split), context=1000) == 32 * 1000 * 32 * (192 + 128) * 2


def test_a_model_of_two_types_is_refused_with_its_reason() -> None:
    with pytest.raises(NotModelledError, match="models of two types"):
        read_config({"model_type": "vision-encoder-decoder", "decoder": {"model_type": "mbart"}})


def test_the_outer_table_decides_whether_the_head_is_tied() -> None:
    table = 128256 * 4096
    for outer, inner, tied in ((True, False, True), (False, True, False), (None, True, True), (None, False, False)):
        text = LLAMA | {"tie_word_embeddings": inner}
        file = {"model_type": "llava", "text_config": text} | ({} if outer is None else {"tie_word_embeddings": outer})
        assert parameters(file) == (WHOLE - table if tied else WHOLE)


#: A small decoder: D 64, I 96, V 500, 2 layers, 4 heads and 2 KV heads of 16.
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
    "tie_word_embeddings": False,
}
ATTENTION, TABLES = 2 * 64 * 64 + 2 * 64 * 32, 2 * 500 * 64 + 64
BLOCK = 3 * 64 * 96
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@pytest.mark.parametrize(
    ("config", "layout", "count"),
    [
        (
            SMALL | {"model_type": "PanguEmbedded", "bias": True},
            "2 full",
            2 * (ATTENTION + BLOCK + 4 * 64 + 64) + TABLES,
        ),
        (
            SMALL | {"model_type": "ouro", "total_ut_steps": 3},  # three runs of the layers, each with its own cache
            "6 full",
            2 * (ATTENTION + BLOCK + 4 * 64) + TABLES + 65,
        ),
        (
            SMALL | {"model_type": "arctic", "num_local_experts": 4, "num_experts_per_tok": 2},
            "2 full",
            2 * (ATTENTION + 3 * 64 * 64 + 4 * BLOCK + 4 * 64 + 3 * 64) + TABLES,
        ),
        (
            SMALL | {"model_type": "Klear", "head_dim": 16, "decoder_sparse_step": 1, "n_shared_experts": 1} | EXPERTS,
            "2 full",
            2 * (ATTENTION + 2 * 16 + 5 * 3 * 64 * 32 + 4 * 64 + 2 * 64 + 2 + 2 * 64) + TABLES,
        ),
        (
            {"model_type": "jais", "n_embd": 64, "n_head": 4, "n_layer": 2, "n_inner": 96, "vocab_size": 500},
            "2 full",
            2 * (4 * 64 * 64 + 4 * 64 + BLOCK + 2 * 96 + 64 + 4 * 64) + 500 * 64 + 2 * 64,
        ),
        (
            # Seven layers in groups of three: the last of each group is full, and so is what is left over.
            SMALL
            | {"model_type": "bailing_moe_linear", "num_hidden_layers": 7, "layer_group_size": 3, "head_dim": 16}
            | EXPERTS
            | {"num_shared_experts": 1, "first_k_dense_replace": 7},
            "4 state + 3 full",
            3 * (ATTENTION + 2 * 16) + 4 * (5 * 64 * 64 + 64 + 2 * 16) + 7 * (BLOCK + 2 * 64) + TABLES,
        ),
        (SMALL | {"model_type": "sdar", "head_dim": 16}, "2 full", 2 * (ATTENTION + BLOCK + 2 * 16 + 2 * 64) + TABLES),
        (
            SMALL | {"model_type": "dots_ocr", "attention_bias": True, "max_window_layers": 2},
            "2 full",
            2 * (ATTENTION + BLOCK + 64 + 2 * 32 + 2 * 64) + TABLES,
        ),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_types_of_remote_code_have_the_layers_and_weights_of_their_classes(
    config: dict[str, Any], layout: str, count: int
) -> None:
    assert (read_config(config).layout, parameters(config)) == (layout, count)


def test_latents_are_read_by_the_names_of_pangu_too() -> None:
    usual = {"kv_lora_rank": 32, "q_lora_rank": 48, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
    own = dict(
        zip(
            ("attention_kv_lora_dim", "attention_q_lora_dim", "attention_qk_dim", "attention_qk_rope_dim"),
            usual.values(),
            strict=False,
        ),
        attention_v_dim=16,
    )
    pangu = SMALL | {"model_type": "pangu_ultra_moe", "sandwich_norm": True, "first_k_dense_replace": 2}
    assert read_config(pangu | usual) == read_config(pangu | own)
    assert kv_cache_bytes(read_config(pangu | own), context=10) == 10 * 2 * (32 + 8) * 2
    unknown = read_config(SMALL | usual | {"model_type": "nobody"})  # latents that a file states in full need no row
    assert unknown.layout == "2 latent"


@pytest.mark.parametrize(
    ("more", "telling"),
    [
        ({"mixer_types": ["attention", "lightning"]}, "mixer_types"),
        ({"total_ut_steps": 4}, "total_ut_steps"),
        ({"attention_kv_lora_dim": 512}, "attention_kv_lora_dim"),
        ({"max_window_layers": 2, "sliding_window": 128}, "sliding_window|max_window_layers"),
        ({"kinds_of_layers": ["this", "that"]}, "kinds_of_layers"),
    ],
)
def test_an_unknown_type_whose_keys_may_change_its_cache_is_refused(more: dict[str, Any], telling: str) -> None:
    with pytest.raises(NotModelledError, match=telling):
        read_config(SMALL | {"model_type": "nobody"} | more)


@pytest.mark.parametrize(
    "more",
    [
        {"max_window_layers": 2, "sliding_window": None},
        {"max_window_layers": 2, "sliding_window": 128, "use_sliding_window": False},
        {"num_local_experts": 4, "decoder_sparse_step": 1},
        {"kinds_of_layers": ["this", "this"]},
    ],
)
def test_an_unknown_type_whose_keys_change_nothing_is_a_plain_decoder(more: dict[str, Any]) -> None:
    assert read_config(SMALL | {"model_type": "nobody"} | more).layout == "2 full"


def test_a_dspark_draft_has_tables_from_token_to_token_and_a_confidence() -> None:
    draft = SMALL | {"model_type": "qwen3", "head_dim": 16, "dflash_config": {"target_layer_ids": [0, 1, 2]}}
    plain = parameters(draft | {"architectures": ["DFlashDraftModel"]})
    layers = parameters(draft | {"tie_word_embeddings": True}) - 500 * 64  # embedding and head are the target's
    assert plain == layers + 3 * 64 * 64 + 64
    untapped = draft | {"architectures": ["DFlashDraftModel"], "dflash_config": {"target_layer_ids": []}}
    assert parameters(untapped) == layers + 2 * 64 * 64 + 64  # as many taps as layers
    settings = {"markov_rank": 8, "enable_confidence_head": True, "confidence_head_with_markov": True}
    dspark = draft | {"architectures": ["DSparkDraftModel"]}
    dspark["dflash_config"] = draft["dflash_config"] | settings
    assert parameters(dspark) == plain + 2 * 500 * 8 + 64 + 8 + 1
    domino = read_config(draft | {"architectures": ["DominoDraftModel"]})
    assert any("projector is not counted" in note for note in domino.provenance.notes)


def test_a_peagle_draft_reads_its_target_as_eagle3_does() -> None:
    draft = SMALL | {"model_type": "llama", "draft_vocab_size": 100}
    eagle = read_config(draft | {"architectures": ["LlamaForCausalLMEagle3"]})
    assert read_config(draft | {"architectures": ["PEagleDraftModel"]}) == eagle


def test_a_tied_file_of_a_class_that_never_ties_has_a_head():
    config = {"model_type": "nemotron_h", "hidden_size": 64, "layers_block_type": ["attention", "mlp"], "head_dim": 16}
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 256}
    assert parameters(config | sizes | {"tie_word_embeddings": True}) == 57_536  # NemotronHForCausalLM, meta device


def test_a_text_part_that_transformers_saved_alone_has_no_prediction_layers():
    text = {"hidden_size": 64, "num_hidden_layers": 4, "mtp_num_hidden_layers": 1, "vocab_size": 128}
    whole = weights(read_config({"model_type": "qwen3_5", "text_config": text}), None)
    alone = weights(read_config({"model_type": "qwen3_5_text", **text}), None)
    assert whole.bytes - alone.bytes == whole.beside["prediction_layers"] > 0


def test_the_compression_of_image_tokens_changes_no_layer():
    plain = LLAMA | {"model_type": "videollama3_qwen2", "use_token_compression": True}
    assert kv_cache_bytes(read_config(plain), context=1024) == kv_cache_bytes(read_config(LLAMA), context=1024)
    with pytest.raises(NotModelledError):
        read_config(plain | {"use_compression": True})


T5GEMMA2 = {
    "model_type": "t5gemma2",
    "encoder": {"model_type": "t5gemma2_encoder", "text_config": {}, "vision_config": {"hidden_size": 768}},
    "decoder": {"model_type": "t5gemma2_decoder", "num_hidden_layers": 26},
}


@pytest.mark.parametrize(("tied", "whole"), [(True, 4_747_846_400), (False, 5_956_103_168)])
def test_a_decoder_that_attends_to_both_sides_at_once_has_one_set_of_projections(tied: bool, whole: int) -> None:
    """T5Gemma2ForConditionalGeneration on the meta device, its image tower of 94,654,464 parameters among them."""
    model = read_config(T5GEMMA2 | {"tie_word_embeddings": tied})
    counted = weights(model, "bf16")
    assert counted.parameters == whole - 94_654_464
    assert counted.beside == {"vision": 2 * 94_654_464}
    cached = footprint(model, context=100, encoder_tokens=50).kv_cache.ideal_bytes
    assert cached == 26 * 150 * 2 * 4 * 256 * 2


def test_the_tower_of_minicpm_v_2_6_is_siglip_and_its_resampler() -> None:
    """Counted by hand, no published total seen: SigLIP so400m without its pooling head, and a resampler of 64 queries:
    kv_proj, an attention of 3584 with biases, three norms and a projection.
    """
    siglip = 588 * 1152 + 1152 + 4900 * 1152 + 27 * 15_239_504 + 2 * 1152
    resampler = 64 * 3584 + 1152 * 3584 + 4 * (3584**2 + 3584) + 6 * 3584 + 3584**2
    text = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    sizes = {"num_key_value_heads": 4, "vocab_size": 151666, "tie_word_embeddings": False, "query_num": 64}
    config = {"model_type": "minicpmv", "version": 2.6, "vision_config": {"model_type": "siglip"}} | text | sizes
    assert weights(read_config(config), None).beside == {"vision": 2 * (siglip + resampler)}


def test_a_florence_file_of_microsoft_leaves_out_the_type_of_its_text_part() -> None:
    text = {
        "d_model": 768,
        "decoder_layers": 6,
        "encoder_layers": 6,
        "decoder_attention_heads": 12,
        "vocab_size": 51289,
    }
    text |= {"encoder_attention_heads": 12, "decoder_ffn_dim": 3072, "encoder_ffn_dim": 3072}
    stated = {"model_type": "florence2", "text_config": text | {"model_type": "florence2_language"}}
    assert parameters({"model_type": "florence2", "text_config": text}) == parameters(stated) == 140_206_848


@pytest.mark.parametrize("tied", [True, False])
def test_kimi_linear_has_a_head_of_its_own_whatever_the_file_says(tied: bool) -> None:
    # KimiLinearForCausalLM of transformers 5.24.0 on the meta device, by its defaults, with either
    kinds = ["full_attention" if at and at % 4 == 0 else "linear_attention" for at in range(27)]
    file = {"model_type": "kimi_linear", "tie_word_embeddings": tied, "layer_types": kinds}
    assert parameters({**file, "mlp_layer_types": ["dense"] + ["sparse"] * 26}) == 49_133_074_464


TINY = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
TINY |= {"intermediate_size": 128, "tie_word_embeddings": False}


def test_the_first_class_of_a_file_decides_its_head() -> None:
    classes = ["LlamaForCausalLM", "LlamaModel"]
    first, last = ({**TINY, "architectures": each} for each in (classes, classes[::-1]))
    assert parameters(first) - parameters(last) == 100 * 64


def test_gptq_quantises_the_head_where_it_says_so() -> None:
    def size(head: bool) -> int:
        packed = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "lm_head": head}
        return weights(read_config({**TINY, "quantization_config": packed}), None).bytes

    # 100 rows of 64 numbers in place of 2 bytes each: words of 8 numbers; for each of two groups 100 scales of 2 bytes
    # and 13 words of zero points; the group of each column, 4 bytes; the bias that AutoGPTQ gives every matrix
    assert size(False) - size(True) == 100 * 64 * 2 - (100 * 64 // 2 + 2 * (100 * 2 + 13 * 4) + 64 * 4 + 100 * 2)


@pytest.mark.parametrize(("streams", "matrices"), [(0, 0), (1, 0), (2, 2), (4, 6)])
def test_altup_has_two_matrices_for_each_stream_but_the_first(streams: int, matrices: int) -> None:
    def size(count: int) -> int:
        return sum(each.elements for each in per_layer_embedding(64, 2, 100, 8, count))

    assert size(streams) - size(0) == matrices * 64 * 64


def test_layers_that_kimi_linear_does_not_list_are_of_the_other_kind() -> None:
    linear = {"head_dim": 128, "num_heads": 32, "short_conv_kernel_size": 4}
    file = {"model_type": "kimi_linear", "num_hidden_layers": 4}
    whole, by_kda, by_full = (
        read_config({**file, "linear_attn_config": linear | lists})
        for lists in (
            {"kda_layers": [1, 2, 3], "full_attn_layers": [4]},
            {"kda_layers": [1, 2, 3]},
            {"full_attn_layers": [4]},
        )
    )
    assert [layer.cache.kind for layer in (whole.layers[at] for at in whole.order)] == ["state"] * 3 + ["latent"]
    assert by_kda.caches == by_full.caches == whole.caches


def test_stablelm_in_parallel_has_one_norm_a_layer() -> None:
    apart, parallel = (
        parameters({**TINY, "model_type": "stablelm", "use_parallel_residual": on}) for on in (False, True)
    )
    assert apart - parallel == 2 * 2 * 64  # a weight and a bias in each of two layers


def test_feed_forwards_may_have_a_width_for_each_layer() -> None:
    even, uneven = (parameters({**TINY, "intermediate_size": widths}) for widths in ([128, 128], [128, 96]))
    assert even == parameters(TINY)
    assert even - uneven == 3 * 64 * 32


@pytest.mark.parametrize(("stated", "group"), [({}, 64), ({"group_size": 1}, 1), ({"group_size": 32}, 32)])
def test_hqq_has_a_scale_and_a_zero_point_for_each_group(stated: dict[str, int], group: int) -> None:
    def size(settings: dict[str, Any]) -> int:
        packed = {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, **settings}}}
        return weights(read_config({**TINY, "quantization_config": packed}), None).bytes

    numbers = 2 * (4 * 64 * 64 + 3 * 64 * 128)
    assert size(stated) - size({"group_size": 16}) == 3 * (numbers // group - numbers // 16)  # 2 bytes and 1
