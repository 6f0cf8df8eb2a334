"""kvcalc from Python: what a notebook shows, many contexts at once, each layer in order, hints in tracebacks."""

import json
import pickle
import traceback

import pytest

import kvcalc

MODELS = ["gemma-3-27b", "deepseek-v3", "jamba-v0.1", "t5gemma-2b-2b", "llama-3.1-8b", "deepseek-v4-flash"]


def test_results_are_shown_in_a_line():
    made = kvcalc.footprint("gemma-3-27b", context=32768, engine="vllm")
    assert repr(made) == (
        "<gemma-3-27b, 32,768 tokens x 1, vllm 0.33.0: 50.31 GiB weights + 10.48 GiB KV cache = 60.78 GiB>"
    )
    assert repr(made.weights) == "<27,009,346,304 parameters in bfloat16: 50.31 GiB>"
    assert repr(made.architecture) == "<gemma-3-27b: 52 sliding (1024) + 10 full>"
    assert repr(kvcalc.capacity("gemma-3-27b", kv_memory=4 * kvcalc.GiB, context=32768)) == (
        "<32,768 tokens x 1: fits in 4.00 GiB; longest context 47,104 at batch size 1, largest batch 1>"
    )
    for result in (made, made.kv_cache, made.weights, made.architecture, made.setup.architecture):
        assert len(repr(result)) < 200
        assert pickle.loads(pickle.dumps(result)) == result  # noqa: S301 - our own


def test_a_notebook_shows_a_table_without_anything_that_a_name_could_inject():
    shown = kvcalc.read_config({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}, "<b>")
    html = kvcalc.footprint(shown, context=8)._repr_html_()
    assert "<b>" not in html and "&lt;b&gt;" in html
    assert html.count("<tr>") == 3


def test_a_footprint_is_the_record_of_the_command(kvcalc):
    import kvcalc as library

    printed = json.loads(kvcalc("show", "gemma-3-27b", "-c", "32k", "-e", "vllm", "--json").out)["rows"][0]
    assert library.footprint("gemma-3-27b", context=32768, engine="vllm").to_dict() == printed


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("engine", ["ideal", "transformers"])
def test_many_contexts_are_the_single_answers(name, engine):
    model, contexts = kvcalc.load(name), [131072, 1, 4096, 4097]
    try:
        wanted = [kvcalc.kv_cache_bytes(model, context=context, batch_size=3, engine=engine) for context in contexts]
    except kvcalc.UnsupportedError:
        return
    except kvcalc.NotModelledError:
        return
    assert kvcalc.sweep(model, contexts=contexts, batch_size=3, engine=engine) == wanted


@pytest.mark.parametrize("contexts", [[0], [1, -5], [1.5], ["4k", True], [2**50]])
def test_a_context_that_is_none_is_refused_among_many(contexts):
    with pytest.raises(kvcalc.KVCalcError):
        kvcalc.sweep("gemma-3-1b", contexts=contexts)


def test_no_contexts_are_no_answers():
    assert kvcalc.sweep("gemma-3-1b", contexts=[]) == []


@pytest.mark.parametrize("name", MODELS)
def test_the_layers_in_order_add_up_to_the_cache(name):
    model = kvcalc.load(name)
    for context in (1, 1024, 40000):
        layers = kvcalc.layer_bytes(model, context=context, batch_size=2)
        assert len(layers) == model.num_layers
        assert sum(layers) == kvcalc.kv_cache_bytes(model, context=context, batch_size=2)


def test_a_traceback_ends_with_the_place_and_the_hint():
    with pytest.raises(kvcalc.KVCalcError) as caught:
        kvcalc.load("gema-3-27b")
    lines = traceback.format_exception(caught.value)
    assert lines[-1] == "hint: did you mean 'gemma-3-27b'? see 'kvcalc models'\n"


def test_what_there_is_is_listed():
    assert "gemma-3-27b" in kvcalc.presets()
    assert "vllm" in kvcalc.engine_names()
    assert any(device.name == "h100-80gb" for device in kvcalc.devices())


@pytest.mark.parametrize(
    ("name", "size", "reason", "sizes"),
    [
        ("gemma-3-27b", 5, "32 query heads among 5 devices", "1, 2, 4, 8, 16, 32"),
        ("gemma-3-27b", 64, "32 query heads among 64 devices", "1, 2, 4, 8, 16, 32"),
        ("qwen2.5-7b", 8, "28 query heads among 8 devices", "1, 2, 4, 28"),
    ],
)
def test_heads_that_sglang_does_not_divide_are_refused_with_the_sizes_that_work(name, size, reason, sizes):
    with pytest.raises(kvcalc.UnsupportedError, match=reason) as caught:
        kvcalc.kv_cache_bytes(name, context=1024, engine="sglang", tensor_parallel_size=size)
    assert caught.value.hint == f"sizes that work for {name}: {sizes}"


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_five_devices_for_32_heads_are_no_answer(kvcalc, engine):
    ran = kvcalc("fit", "gemma-3-27b", "--device", "h100-80gb", "-tp", "5", "-e", engine, "-c", "32k")
    assert (ran.code, ran.out) == (2, "")
    assert "1, 2, 4, 8, 16, 32" in ran.err


def test_an_argument_that_no_setup_has_is_named_as_python_does():
    with pytest.raises(TypeError, match="a setup has no argument 'contxt'; it has engine, engine_options, "):
        kvcalc.footprint("gemma-3-1b", context=1024, contxt=2048)
