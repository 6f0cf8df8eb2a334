"""MLX-LM: every recorded cache of 0.32.2, and what projects that port it printed."""

from __future__ import annotations

from typing import Any

import pytest
from layouts import chunked, full, laid_out, latent, published, recorded, sliding

from kvcalc.architecture import Architecture
from kvcalc.derivation import evaluate
from kvcalc.engines.base import KVCache
from kvcalc.errors import InputError, UnsupportedError
from kvcalc.footprints import footprint, kv_cache_bytes
from kvcalc.setup import prepare
from kvcalc.sources.resolve import load

RECORDED = recorded("mlx_lm.json")


def cache_of(model: Architecture, context: int, batch_size: int = 1, **options: Any) -> KVCache:
    return footprint(model, context=context, batch_size=batch_size, engine="mlx-lm", engine_options=options).kv_cache


@pytest.mark.parametrize("row", RECORDED["rows"], ids=str)
def test_every_recorded_cache_is_reproduced_to_the_byte(row: list[Any]) -> None:
    cache, bits_or_size, prompt, prefill_step_size, decode_tokens, slots_after_prefill, slots, recorded_bytes = row
    options = {"prefill_step_size": prefill_step_size, "decode_tokens": decode_tokens}
    layer = full()
    if cache == "rotating":
        layer = sliding(bits_or_size)
    elif cache == "chunked":
        layer = chunked(bits_or_size)
    elif cache == "quantized":
        options["kv_bits"] = bits_or_size
    predicted = cache_of(laid_out("one-layer", "custom", [layer]), prompt, **options)
    assert predicted.steady_bytes == recorded_bytes
    if slots_after_prefill is not None:
        assert predicted.bytes >= 256 * max(slots_after_prefill, slots)
    elif cache == "quantized":
        assert predicted.steady_bytes == slots * 2 * (64 * bits_or_size // 8 + 4)


def test_a_prefill_leaves_the_recorded_slots_in_a_rotating_buffer() -> None:
    plan = prepare(published("gemma-3-1b"), engine="mlx-lm").plan
    for cache, size, prompt, step, _, slots_after_prefill, *_ in RECORDED["rows"]:
        if cache == "rotating":
            plan = prepare(published("gemma-3-1b"), engine="mlx-lm", engine_options={"prefill_step_size": step}).plan
            chunks, rest = divmod(prompt - 1, step)
            assert plan.rotating_slots(size, (chunks, rest, 0)) == slots_after_prefill  # type: ignore[attr-defined]


@pytest.mark.parametrize("context", [4 * 1024, 16 * 1024, 64 * 1024])
def test_a_gemma_4_shaped_layer_is_flat_at_window_plus_chunk_minus_one(context: int) -> None:
    # rMLX (a port), 2026-06-08: 1,047,552 bytes at 4k, 16k and 64k with chunks of 512.
    model = laid_out("one-layer", "gemma4", [sliding(512, 1, 256)])
    assert cache_of(model, context, prefill_step_size=512).bytes == 1_047_552


def test_gemma_3_1b_at_32k_is_the_printed_139_mib() -> None:
    # mlxcel (an estimator), 2026-06-07: 139 MiB, "22 layers capped at 512, 4 global"; the prefill holds more, and the
    # first generated token grows the global layers by 256 slots.
    predicted = cache_of(published("gemma-3-1b"), 32768, decode_tokens=0)
    assert predicted.steady_bytes == 139 * 2**20
    assert predicted.bytes == 1024 * (22 * (511 + 2047) + 4 * 32768)
    assert cache_of(published("gemma-3-1b"), 32768).steady_bytes == 140 * 2**20
    assert (
        predicted.why
        == "a prefill chunk of 2,047 tokens stands behind window - 1 slots; counted up to 0 generated tokens"
    )


@pytest.mark.parametrize(
    "options", [{}, {"prefill_step_size": 192}, {"decode_tokens": 300}, {"prefill_step_size": 1}], ids=str
)
@pytest.mark.parametrize("slug", ["gemma-3n-e2b", "gpt-oss-20b", "llama-4-scout", "qwen3-next-80b-a3b", "falcon-h1-7b"])
def test_the_shown_formula_evaluates_to_the_shown_bytes(slug: str, options: dict[str, Any]) -> None:
    plan = prepare(published(slug), engine="mlx-lm", engine_options=options).plan
    for context in (1, 2, 770, 2050, 32768):
        steps = plan.explain(context, 3)
        values = evaluate(steps)
        assert [values[step.symbol] for step in steps] == [step.value for step in steps]
        assert steps[-1].value == plan.kv_bytes(context, 3) == plan.allocate(context, 3).bytes


def test_a_prompt_with_one_token_left_for_its_last_chunk_rotates_at_once() -> None:
    # 2050 = 2048 + 1 + the last prompt token: the lone token trims the 2048 slots to the window before the decode.
    predicted = cache_of(laid_out("one-layer", "custom", [sliding(512)]), 2050)
    assert (predicted.bytes, predicted.steady_bytes) == (256 * 2048, 256 * 512)
    predicted = cache_of(laid_out("one-layer", "custom", [sliding(512)]), 2051)
    assert (predicted.bytes, predicted.steady_bytes) == (256 * 2048, 256 * 512)
    # With 130 slots in the buffer the lone token grows it by 256, where two would only be appended.
    model = laid_out("one-layer", "custom", [sliding(512)])
    assert cache_of(model, 132, prefill_step_size=130).steady_bytes == 256 * 386
    assert cache_of(model, 133, prefill_step_size=130).steady_bytes == 256 * 388


@pytest.mark.parametrize("slug", ["gemma-2-2b", "phi-3-mini-4k", "mistral-7b-v0.1"])
def test_models_whose_class_knows_no_window_keep_every_token(slug: str) -> None:
    model = published(slug)
    predicted = cache_of(model, 32768)
    assert all(row.tokens == 32768 + 256 for row in predicted.layers)
    assert predicted.notes == (f"mlx-lm gives {model.model_type} no sliding windows: every layer keeps all tokens",)


def test_max_kv_size_rotates_only_models_that_make_no_cache_of_their_own() -> None:
    assert cache_of(published("gemma-2-2b"), 32768, max_kv_size=1000).steady_bytes == 26 * 4096 * 1000
    llama = published("llama-3.1-8b")
    ignored = cache_of(llama, 32768, max_kv_size=1000)
    assert ignored.steady_bytes == cache_of(llama, 32768).steady_bytes
    assert ignored.notes == ("max_kv_size is ignored: llama makes its own cache",)
    with pytest.raises(InputError, match="max_kv_size"):
        cache_of(llama, 32768, max_kv_size=4)


def test_a_quantised_cache_starts_at_once_in_the_function_and_at_5000_in_the_command() -> None:
    model = laid_out("one-layer", "llama", [full()])
    assert cache_of(model, 8192, kv_bits=4).bytes == 72 * (8192 + 256)
    later = cache_of(model, 8192, kv_bits=4, quantized_kv_start=5000)
    assert (later.bytes, later.steady_bytes) == (256 * 4096, 72 * (8192 + 256))
    note = "quantised from the first token: mlx-lm itself begins at 5,000 (quantized_kv_start)"
    assert cache_of(model, 8192, kv_bits=4).notes == (note,)
    assert later.notes == cache_of(model, 8192).notes == ()
    assert cache_of(model, 4998, kv_bits=4, quantized_kv_start=5000).steady_bytes == 256 * 5120
    assert cache_of(model, 1000, kv_bits=8, kv_group_size=32).bytes == 2 * (64 + 8) * 1024


@pytest.mark.parametrize(
    ("slug", "options"),
    [
        ("gemma-3-1b", {"kv_bits": 4}),
        ("gpt-oss-20b", {"kv_bits": 8}),
        ("gemma-2-2b", {"kv_bits": 4, "max_kv_size": 99}),
    ],
)
def test_rotating_buffers_cannot_be_quantised(slug: str, options: dict[str, int]) -> None:
    with pytest.raises(UnsupportedError, match="NotImplementedError") as refusal:
        cache_of(published(slug), 8192, **options)
    assert refusal.value.hint is not None
    assert "leave kv_bits out" in refusal.value.hint


def test_mla_is_the_latent_or_every_head_as_the_class_has_it() -> None:
    deepseek_v3 = published("deepseek-v3")
    assert cache_of(deepseek_v3, 1024).bytes == 61 * (1024 + 256) * 2 * 576
    assert cache_of(deepseek_v3.changed(model_type="deepseek_v2"), 1024).bytes == 61 * (1024 + 256) * 2 * 40960
    with pytest.raises(
        UnsupportedError, match="keeps its MLA layers, and some classes keep every head for model type custom"
    ):
        cache_of(deepseek_v3.changed(model_type="custom"), 1024)


def test_latents_are_not_quantised_and_decompressed_heads_are() -> None:
    deepseek_v3 = published("deepseek-v3")
    with pytest.raises(UnsupportedError, match=r"deepseek_v3.py:146"):
        cache_of(deepseek_v3, 1024, kv_bits=4)
    heads = cache_of(deepseek_v3.changed(model_type="deepseek_v2"), 1024, kv_bits=4).bytes
    assert heads == 61 * (1024 + 256) * 128 * (192 + 128) * 9 // 16
    # GLM 5.2's latents and index keys stand in a list of caches, which kv_bits leaves alone.
    indexed = laid_out("indexed", "glm_moe_dsa", [latent(indexer_dim=128)])
    assert cache_of(indexed, 1024, kv_bits=4).bytes == cache_of(indexed, 1024).bytes == 1280 * 2 * (576 + 2 * 128)


def test_minimax_m3_keeps_its_index_keys_once_and_is_not_quantised() -> None:
    # Its own classes of mlx-lm 0.32.2, 300 tokens of two sequences: 140,771,328 bytes, with kv_bits=8 as well.
    model = laid_out("m3", "minimax_m3_vl", [full(4, 128)] * 3 + [{**full(4, 128), "indexer_dim": 128}] * 57)
    for options in ({}, {"kv_bits": 8}):
        predicted = cache_of(model, 300, batch_size=2, **options)
        assert predicted.bytes == 2 * 512 * 2 * (60 * 1024 + 57 * 128) == 140_771_328
        assert predicted.why == "buffers grow by 256 slots; counted up to 1 generated token"


@pytest.mark.parametrize(("model_type", "line"), [("gemma2", 89), ("olmo", 91), ("phi3small", 131), ("stablelm", 120)])
def test_a_class_that_computes_with_the_cached_keys_is_not_quantised(model_type: str, line: int) -> None:
    with pytest.raises(UnsupportedError, match=rf"models/{model_type}.py:{line}"):
        cache_of(laid_out("any", model_type, [full()]), 1024, kv_bits=8)


@pytest.mark.parametrize(
    ("slug", "layers", "state_bytes"),
    [
        ("qwen3-next-80b-a3b", 36, 4 * 524288 + 2 * 8192 * 3),  # gated delta net: float32
        ("recurrentgemma-2b", 18, 2 * 2560 + 2 * 2560 * 3),  # RG-LRU: the model's format
        ("lfm2-1.2b", 10, 2 * 2048 * 2),  # a convolution alone
    ],
)
def test_states_keep_kernel_minus_one_columns(slug: str, layers: int, state_bytes: int) -> None:
    rows = cache_of(published(slug), 4096).layers
    assert [(row.count, row.bytes) for row in rows if row.kind == "state"] == [(layers, layers * state_bytes)]


@pytest.mark.parametrize(
    ("model_type", "width"),
    [
        *((name, 4) for name in ("mamba2", "falcon_h1", "nemotron_h", "granitemoehybrid", "olmo_hybrid")),
        *((name, 2) for name in ("jamba", "mamba")),
    ],
)
def test_the_step_size_of_mamba_2_makes_its_state_float32(model_type: str, width: int) -> None:
    model = laid_out("any", model_type, [{"kind": "state", "recurrent_elements": 4096}])
    assert cache_of(model, 100).bytes == 4096 * width


def test_an_indexer_key_is_kept_twice_in_every_layer() -> None:
    # deepseek_v32.py:102 caches the key as K and as V.
    v32 = load("deepseek-v3.2")
    assert cache_of(v32, 1024).bytes == 61 * (1024 + 256) * 2 * (576 + 2 * 128)
    assert cache_of(v32, 1024).notes == ("mlx-lm keeps an indexer key in every layer, as K and as V",)
    kinds = [latent(indexer_dim=128), latent()]
    assert cache_of(laid_out("glm", "glm_moe_dsa", kinds), 1024).bytes == 2 * (1024 + 256) * 2 * (576 + 2 * 128)


@pytest.mark.parametrize("model_type", ["mistral4", "kimi_k3"])
def test_further_classes_cache_the_latent(model_type: str) -> None:
    assert cache_of(laid_out("any", model_type, [latent()]), 1024).bytes == (1024 + 256) * 2 * 576


@pytest.mark.parametrize("model_type", ["smollm3", "solar_open", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"])
def test_max_kv_size_rotates_further_models_without_a_cache_of_their_own(model_type: str) -> None:
    # What tiny models of these types held: max_kv_size of 16 slots.
    assert cache_of(laid_out("any", model_type, [full()]), 1000, max_kv_size=16).steady_bytes == 256 * 16


def test_a_ministral_whose_layers_all_slide_slides_in_none() -> None:
    every, some = [sliding(512)] * 2, [sliding(512), full()]
    assert cache_of(laid_out("any", "ministral3", every), 4096).steady_bytes == 2 * 256 * (4096 + 256)
    assert cache_of(laid_out("any", "ministral3", some), 4096).steady_bytes == 256 * (512 + 4096 + 256)


def test_layers_with_a_state_of_their_own_are_not_quantised() -> None:
    kinds = [{**full(), "extra_state_bytes": 64}, {**sliding(512), "extra_state_bytes": 64}]
    quantised = cache_of(laid_out("baichuan", "baichuan_m1", kinds), 4096, kv_bits=4)
    assert quantised.bytes == cache_of(laid_out("baichuan", "baichuan_m1", kinds), 4096).bytes
    assert "kv_bits leaves chunked layers, and lists of caches, as they are" in quantised.notes[0]


def test_the_columns_of_a_convolution_have_the_caches_format() -> None:
    # mlx-lm's Baichuan-M1 14B in float32, one token of one sequence: 63,160,320 bytes.
    kinds = [{**full(2, 256), "extra_state_bytes": 2048}, {**full(8, 128), "extra_state_bytes": 4096}] * 20
    model = laid_out("baichuan", "baichuan_m1", kinds)
    options = {"decode_tokens": 0}
    exact = kv_cache_bytes(model, context=1, engine="mlx-lm", engine_options=options, kv_cache_dtype="float32")
    assert exact == 20 * (256 * 4 * 2 * (2 * 256 + 8 * 128) + 2 * (2048 + 4096)) == 63_160_320


def test_recurrentgemma_caches_one_head_whatever_its_configuration_says() -> None:
    layer = laid_out("any", "recurrent_gemma", [sliding(2048, num_kv_heads=2)])
    assert (
        cache_of(layer, 100).bytes
        == cache_of(laid_out("any", "recurrent_gemma", [sliding(2048, num_kv_heads=1)]), 100).bytes
    )


def test_a_model_that_mlx_lm_has_no_class_for_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="no class for the model type bamba"):
        cache_of(published("bamba-9b"), 4096)


def test_chunked_layers_are_trimmed_to_their_chunk_by_the_call_after() -> None:
    model = laid_out("one-layer", "llama4", [chunked(8192)])
    predicted = cache_of(model, 32768)
    assert (predicted.bytes, predicted.steady_bytes) == (256 * (8192 + 2048), 256 * (8192 + 256))
    assert not predicted.notes
    assert cache_of(model, 32768, kv_bits=4).bytes == predicted.bytes


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"kind": "cross", "num_kv_heads": 1, "head_dim": 64, "v_head_dim": 64}, "an encoder's K and V"),
        ({"kind": "compressed", "width": 512, "window": 128}, "compressed"),
        ({**full(), "indexer_dim": 128}, "index keys beside full attention"),
        (latent(window=128), r"latent \(128\) layers"),
        (latent(indexer_dim=128), r"latent \+ indexer layers"),
    ],
)
def test_layers_that_it_does_not_run_are_refused(kind: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        cache_of(laid_out("strange", "custom", [kind]), 100)


def test_tensor_parallelism_other_formats_and_broken_groups_are_refused() -> None:
    model = published("llama-3.1-8b")
    with pytest.raises(UnsupportedError, match="tensor parallelism"):
        footprint(model, context=10, engine="mlx-lm", tensor_parallel_size=2)
    with pytest.raises(UnsupportedError, match="q8_0"):
        footprint(model, context=10, engine="mlx-lm", kv_cache_dtype="q8_0")
    with pytest.raises(InputError, match="mlx quantises with 2, 3, 4, 5, 6, 8"):
        cache_of(model, 10, kv_bits=7)
    assert cache_of(model, 10, kv_bits="4") == cache_of(model, 10, kv_bits=4)  # as the command line passes it
    with pytest.raises(UnsupportedError, match="groups of 64"):
        cache_of(laid_out("phi", "phi3", [full(32, 96)]), 10, kv_bits=8)


def test_a_million_tokens_in_chunks_of_one_are_answered_at_once() -> None:
    model = laid_out("mixed", "gemma3", [sliding(1024), full()])
    options = {"prefill_step_size": 1}
    predicted = kv_cache_bytes(model, context=2**40, engine="mlx-lm", engine_options=options)
    assert predicted == 256 * (1024 + 2**40 + 256)


def test_a_design_of_ones_own_needs_no_class() -> None:
    assert cache_of(laid_out("any", "custom", [full()]), 100) == cache_of(laid_out("any", "llama", [full()]), 100)


def test_a_release_that_was_not_read_is_answered_with_a_note() -> None:
    model = laid_out("any", "llama", [full()])
    newer = cache_of(model, 100, version="0.40.0")
    assert newer.bytes == cache_of(model, 100).bytes
    assert newer.notes == ("mlx-lm 0.40.0 is newer than the releases read: the rule of 0.32.2 is followed",)
