"""Which weights an engine reads: others are refused by the place that says so, or noted where they are what ships."""

import pytest

import kvcalc
from kvcalc.engines import engine_class, engine_names
from kvcalc.errors import UnsupportedError
from kvcalc.weight_formats import parse_weights_format
from kvcalc.weights import weights

MODEL = kvcalc.load("llama-3-8b")


def bytes_of(engine, weights_dtype, **options):
    return kvcalc.footprint(MODEL, context=1024, engine=engine, weights_dtype=weights_dtype, **options).weights.bytes


@pytest.mark.parametrize(
    ("engine", "weights_dtype", "source"),
    [
        ("vllm", "Q4_K_M", "layers/quantization/__init__.py"),
        ("vllm", "nf4", "layers/quantization/__init__.py"),
        ("vllm", "4bit", "layers/quantization/__init__.py"),
        ("sglang", "hqq", "srt/layers/quantization"),
        ("transformers", "4bit", "quantizers/auto.py"),
        ("llama.cpp", "awq", "GGUF files alone"),
        ("llama.cpp", "fp8", "GGUF files alone"),
        ("ollama", "gptq", "GGUF files"),
        ("mlx-lm", "Q4_K_M", "load_model"),
        ("mlx-lm", "nf4", "load_model"),
    ],
)
def test_weights_that_an_engine_does_not_read_are_refused(engine, weights_dtype, source):
    with pytest.raises(UnsupportedError, match=r"reads no .* weights") as refused:
        bytes_of(engine, weights_dtype)
    assert source in refused.value.message
    assert "formats that it reads: " in (refused.value.hint or "")


@pytest.mark.parametrize(
    ("engine", "weights_dtype"),
    [
        ("vllm", "awq"),
        ("vllm", "int4"),
        ("sglang", "Q4_K_M"),
        ("transformers", "nf4"),
        ("mlx-lm", "awq"),
        ("ideal", "hqq"),
    ],
)
def test_weights_that_an_engine_reads_are_counted(engine, weights_dtype):
    assert bytes_of(engine, weights_dtype) == weights(MODEL, weights_dtype).bytes


def test_an_older_version_may_have_read_more():
    assert bytes_of("vllm", "Q4_K_M", engine_options={"version": "0.11.0"}) == weights(MODEL, "Q4_K_M").bytes


@pytest.mark.parametrize("name", engine_names())
def test_levers_are_formats_that_the_engine_reads_best_quality_first(name):
    offered = engine_class(name).weight_formats
    engine = engine_class(name).from_options({})
    assert all(engine.reads(parse_weights_format(each, MODEL)) for each in offered)
    bits = [round(8 * weights(MODEL, each).bytes / 8_030_261_248) for each in offered]
    assert bits == sorted(bits, reverse=True)


def test_weights_that_ship_in_a_format_that_the_engine_does_not_read_are_noted():
    notes = kvcalc.footprint("deepseek-v3", context=1024, engine="llama.cpp").notes
    assert any(note.startswith("llama.cpp reads no fp8_block weights: convert them") for note in notes)
    for engine, weights_dtype in (("vllm", None), ("llama.cpp", "Q4_K_M"), ("ideal", None)):
        read = kvcalc.footprint("deepseek-v3", context=1024, engine=engine, weights_dtype=weights_dtype).notes
        assert not any("reads no" in note for note in read)
