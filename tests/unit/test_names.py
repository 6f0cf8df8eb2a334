"""Models by the names that people have: no network, no other size, no other model."""

import pytest

from kvcalc.errors import InputError
from kvcalc.names import near
from kvcalc.sources.preset import find_preset, known_names, load_preset, presets
from kvcalc.sources.resolve import load


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
     ("Qwen/Qwen3-8B-AWQ", "no preset", "'Qwen/Qwen3-8B' with --weights-dtype awq, or write hf:Qwen/Qwen3-8B-AWQ"),
     ("llama3.1:8b-instruct-q8_0", "unknown preset", "write 'llama3.1:8b-instruct' with --weights-dtype Q8_0"),
     ("./nothere", "no such file", ""), ("a/b/c", "no such file", ""), ("~/model", "no such file", ""),
     ("https://example.org/config.json", "no address of a model", "hf:org/name"),
     ("hf.co/bartowski/x-GGUF:Q4_K_M", "no part of a model's name", "hf:bartowski/x-GGUF with --weights-dtype Q4_K_M"),
     ("gemma-3-27b@5:1/1024", "5:1/1024", "")],
)  # fmt: skip
def test_what_is_no_model_is_refused_with_what_to_write(written, message, hint):
    with pytest.raises(InputError, match=message) as caught:
        load(written)
    assert hint in (caught.value.hint or "")


def test_letters_suggest_only_among_names_with_the_same_numbers():
    assert near("exllamav2", ["ollama", "llama.cpp"]) == []
    assert near("nf4", ["nvfp4", "mxfp4"]) == []
    assert near("iq2_xs", ["q2_k"]) == []
    assert near("h100", ["h100-80gb", "h200", "h100-nvl-94gb"]) == ["h100-80gb", "h100-nvl-94gb"]
