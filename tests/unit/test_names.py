"""Models by the names that people have: no network, no other size, no other model."""

import pytest

from kvcalc.errors import InputError, NotModelledError
from kvcalc.names import near
from kvcalc.sources.preset import find_preset, known_names, load_preset, presets
from kvcalc.sources.resolve import load
from kvcalc.weights import weights


def test_every_name_of_a_preset_is_found_and_stands_for_one_model():
    for preset in presets():
        assert {find_preset(name) for name in known_names(preset)} == {preset}


@pytest.mark.parametrize(
    ("written", "preset"),
    [("google/gemma-3-27b-it", "gemma-3-27b"), ("Gemma-3-27B", "gemma-3-27b"), ("gemma3:27b", "gemma-3-27b"),
     ("gemma-3-27b-it", "gemma-3-27b"), ("gemma_3 27B", "gemma-3-27b"), ("Qwen/Qwen3-8B", "qwen3-8b"),
     ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"), ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
     ("llama3.1:8b", "llama-3.1-8b"), ("llama3.1", "llama-3.1-8b"), ("llama-2-7b-chat-hf", "llama-2-7b"),
     ("deepseek-ai/DeepSeek-R1", "deepseek-v3"), ("qwen3:30b", "qwen3-30b-a3b"), ("GPT_OSS 20B", "gpt-oss-20b"),
     ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b-v0.3"), ("ollama.com/library/gemma3:27b", "gemma-3-27b")],
)  # fmt: skip
def test_a_model_is_found_by_any_name_that_people_have(written, preset):
    assert load(written) == load_preset(preset)


@pytest.mark.parametrize(
    "written",
    ["gemma-22b", "gemma-27b", "mistral-7b", "phi-5", "qwen3-9b", "someone/gemma-3-27b-it",
     "google/gemma-3-28b", "gemma3:27b-it-q4_K_M", "google/models/gemma-3-27b", "27b", "it", "", "/", "a/" * 300],
)  # fmt: skip
def test_no_other_model_answers(written):
    assert find_preset(written) is None


@pytest.mark.parametrize(
    ("written", "hint"),
    [("gemma-27b", "did you mean 'gemma-2-27b' or 'gemma-3-27b'?"), ("mistral-7b-v0", "mistral-7b-v0.3"),
     ("gema-3-27b", "did you mean 'gemma-3-27b'?"), ("phi-5", "no preset has this name"),
     ("gemma-8b", "no preset has this name"), ("nothing-at-all", "see 'kvcalc models'")],
)  # fmt: skip
def test_a_suggestion_has_the_words_that_were_typed_and_never_another_size(written, hint):
    with pytest.raises(InputError) as caught:
        load(written)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("written", "message", "hint"),
    [("someone/gemma-3-27b-it", "no preset stands for it", "write hf:someone/gemma-3-27b-it"),
     ("cyankiwi/Qwen3-8B-AWQ-4bit", "no preset", "'-AWQ-4bit' is written in several, or write hf:cyankiwi/Qwen3-8B-"),
     ("someone/Qwen3-8B-FP8", "no preset", "who publishes '-FP8' decides"),
     ("nvidia/Qwen3-30B-A3B-FP4", "no preset", "write 'qwen3-30b-a3b' with --weights-dtype and a format"),
     ("unsloth/Qwen3-8B-GGUF", "no preset", "write 'unsloth/Qwen3-8B-GGUF:Q4_K_M', with the type of the file"),
     ("gemma3:27b-it-qat", "unknown preset", "write 'gemma-3-27b' with --weights-dtype Q4_0"),
     ("someone/else-AWQ", "no preset", "to ask the Hub, write hf:someone/else-AWQ"),
     ("./nothere", "no such file", ""), ("a/b/c", "no such file", ""), ("~/model", "no such file", ""),
     ("https://example.org/config.json", "no address of a model", "hf:org/name"),
     ("hf.co/bartowski/x-GGUF:Q4_K_M", "no preset", "write hf:bartowski/x-GGUF:Q4_K_M"),
     ("gemma-3-27b@5:1/1024", "5:1/1024", "")],
)  # fmt: skip
def test_what_is_no_model_is_refused_with_what_to_write(written, message, hint):
    with pytest.raises(InputError, match=message) as caught:
        load(written)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("written", "preset", "stored", "cache"),
    [("RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8", "llama-3.1-8b", "fp8", None),
     ("Qwen/Qwen3-8B-FP8", "qwen3-8b", "fp8_block", None), ("Qwen/Qwen3-8B-AWQ", "qwen3-8b", "awq", None),
     ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int8", "qwen2.5-7b", "gptq_8bit", None),
     ("TheBloke/Llama-2-13B-chat-GPTQ", "llama-2-13b", "gptq", None),
     ("hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4", "llama-3.1-70b", "awq", None),
     ("unsloth/Qwen3-8B-bnb-4bit", "qwen3-8b", "nf4_double", None),
     ("mlx-community/Qwen3-8B-4bit", "qwen3-8b", "mlx_4bit", None),
     ("lmstudio-community/Qwen3-8B-MLX-8bit", "qwen3-8b", "mlx_8bit", None),
     ("mlx-community/gpt-oss-20b-MXFP4-Q8", "gpt-oss-20b", "mlx_mxfp4", None),
     ("RedHatAI/Qwen3-8B-quantized.w4a16", "qwen3-8b", "w4a16", None),
     ("RedHatAI/Qwen3-8B-FP8-dynamic", "qwen3-8b", "fp8_channel", None),
     ("RedHatAI/Qwen3-8B-NVFP4", "qwen3-8b", "nvfp4", None),
     ("nvidia/Llama-3.1-8B-Instruct-FP8", "llama-3.1-8b", "fp8", "fp8_e4m3"),
     ("nvidia/Qwen3-8B-FP4", "qwen3-8b", "nvfp4", "fp8_e4m3"),
     ("llama3.1:8b-instruct-q4_K_M", "llama-3.1-8b", "Q4_K_M", None), ("qwen3:8b-fp16", "qwen3-8b", "float16", None),
     ("unsloth/gpt-oss-20b-BF16", "gpt-oss-20b", "bfloat16", None),
     ("hf.co/bartowski/google_gemma-3-27b-it-GGUF:Q5_K_M", "gemma-3-27b", "Q5_K_M", None),
     ("unsloth/DeepSeek-R1-GGUF:Q8_0", "deepseek-v3", "Q8_0", None),
     ("deepseek-r1:7b-qwen-distill-q4_K_M", "deepseek-r1-distill-qwen-7b", "Q4_K_M", None),
     ("TheBloke/Mistral-7B-Instruct-v0.2-GPTQ", "mistral-7b-v0.2", "gptq", None),
     ("Intel/Qwen3-8B-int4-AutoRound", "qwen3-8b", "autoround", None),
     ("mlx-community/Qwen3-30B-A3B-4bit-DWQ", "qwen3-30b-a3b", "mlx_4bit", None),
     ("hugging-quants/Meta-Llama-3.1-8B-Instruct-BNB-NF4", "llama-3.1-8b", "nf4_double", None)],
)  # fmt: skip
def test_a_release_is_its_model_in_the_format_that_its_name_says(written, preset, stored, cache):
    model = load(written)
    counted = weights(model, None)
    assert (model, counted.dtype) == (load_preset(preset), stored)
    assert (model.declared_cache.dtype if model.declared_cache else None) == cache
    assert f"is read by its name: {preset} in {stored}" in " ".join(model.provenance.notes)
    assert "weights are estimated: its name says the format, no file of it was read" in counted.notes


def test_a_release_whose_tensor_types_follow_no_rule_is_not_modelled():
    with pytest.raises(NotModelledError, match="unsloth chooses the type of each tensor by hand"):
        load("hf.co/unsloth/Qwen3-8B-GGUF:UD-Q4_K_XL")


def test_letters_suggest_only_among_names_with_the_same_numbers():
    assert near("exllamav2", ["ollama", "llama.cpp"]) == []
    assert near("nf4", ["nvfp4", "mxfp4"]) == []
    assert near("iq2_xs", ["q2_k"]) == []
    assert near("h100", ["h100-80gb", "h200", "h100-nvl-94gb"]) == ["h100-80gb", "h100-nvl-94gb"]
