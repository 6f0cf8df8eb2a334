"""transformers: every recorded cache of 5.23.0, and the CUDA allocator's count on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
from layouts import chunked, full, laid_out, latent, published, recorded, sliding

from kvcalc.architecture import Architecture
from kvcalc.derivation import evaluate
from kvcalc.errors import InputError, NotModelledError, UnsupportedError
from kvcalc.footprints import footprint, kv_cache_bytes
from kvcalc.setup import prepare

RECORDED = recorded("transformers.json")
MODELS = list(dict.fromkeys(row[0] for row in RECORDED["rows"]))


def cache_of(model: Architecture, context: int, batch_size: int = 1, **options: Any) -> Any:
    encoder_tokens = options.pop("encoder_tokens", 0)
    return footprint(
        model,
        context=context,
        batch_size=batch_size,
        engine="transformers",
        engine_options=options,
        encoder_tokens=encoder_tokens,
    ).kv_cache


def state(**fields: int) -> dict[str, Any]:
    return {"kind": "state", **fields}


@pytest.mark.parametrize("slug", MODELS)
def test_every_recorded_cache_is_reproduced_to_the_byte(slug: str) -> None:
    model = published(slug)
    for _, cache, held_after, tokens, batch_size, logical_bytes, storage_bytes in (
        row for row in RECORDED["rows"] if row[0] == slug
    ):
        plan = prepare(model, engine="transformers", engine_options={"cache": cache}).plan
        predicted = plan.allocate(tokens, batch_size)
        where = (cache, held_after, tokens, batch_size)
        held = predicted.steady_bytes if held_after == "decode" else predicted.bytes
        assert (held, *where) == (storage_bytes, *where)
        assert plan.report(tokens, batch_size, 0)["logical_bytes"] == logical_bytes, where
        assert plan.kv_bytes(tokens, batch_size) == predicted.bytes
        assert sum(row.bytes for row in predicted.layers) == predicted.bytes


@pytest.mark.parametrize("row", RECORDED["gpu_rows"], ids=str)
def test_the_cuda_allocators_count_is_met_within_512_bytes_a_tensor(row: list[int]) -> None:
    local, global_, window, context, allocated, nbytes = row
    block = [sliding(window, 4, 256)] * local + [full(4, 256)] * global_
    model = laid_out("26-layers", "gemma3", (block * 26)[:26])
    predicted = cache_of(model, context, prefill_chunk=4096, version="5.17.0")
    assert abs(predicted.bytes - allocated) <= 512 * 2 * 26
    plan = prepare(model, engine="transformers").plan
    assert plan.report(context, 1, 0)["logical_bytes"] == nbytes


@pytest.mark.parametrize(
    "options", [{}, {"prefill_chunk": 1000}, {"prefill_chunk": 30000}, {"cache": "static"}], ids=str
)
@pytest.mark.parametrize("slug", MODELS)
def test_the_shown_formula_evaluates_to_the_shown_bytes(slug: str, options: dict[str, Any]) -> None:
    plan = prepare(published(slug), engine="transformers", engine_options=options).plan
    for context in (1, 700, 32768):
        steps = plan.explain(context, 3)
        values = evaluate(steps)
        assert [values[step.symbol] for step in steps] == [step.value for step in steps]
        assert steps[-1].value == plan.kv_bytes(context, 3) == plan.allocate(context, 3).bytes


def test_a_shorter_last_chunk_does_not_hide_the_full_chunk_before_it() -> None:
    model = laid_out("all-sliding", "mistral", [sliding(512)])
    # 9 x 1000 + 1 tokens: the ninth chunk stood behind 511 slots, the last token behind as many.
    assert cache_of(model, 9001, prefill_chunk=1000).bytes == 256 * (511 + 1000)
    assert cache_of(model, 9001, prefill_chunk=1000).steady_bytes == 256 * 512


def test_a_last_chunk_of_one_token_does_not_hide_the_chunk_before_it_where_layers_are_offloaded() -> None:
    model = laid_out("sliding", "mistral", [sliding(4)] * 3)
    # The layer under way has 4 tokens behind the 3 that it kept; of the next one the 3 that it shows are fetched.
    assert cache_of(model, 9, cache="offloaded", prefill_chunk=4).bytes == 256 * (3 + 4 + 3)


def test_chunks_of_one_token_at_ten_million_tokens_are_the_steady_state() -> None:
    predicted = cache_of(laid_out("mixed", "gemma3", [sliding(1024), full()]), 10 * 2**20, prefill_chunk=1)
    assert predicted.bytes == predicted.steady_bytes == 256 * (1024 + 10 * 2**20)


def test_a_window_of_one_keeps_every_token_of_a_dynamic_cache_and_one_of_a_static_one() -> None:
    model = laid_out("narrow", "mistral", [sliding(1)])
    assert cache_of(model, 5000).steady_bytes == 256 * 5000
    assert any("[-0:]" in note for note in cache_of(model, 5000).notes)
    assert cache_of(model, 5000, cache="static").bytes == 256


def test_the_recurrent_state_of_recurrentgemma_is_outside_and_a_note_says_how_much() -> None:
    predicted = cache_of(published("recurrentgemma-2b"), 4096, batch_size=2)
    # 18 layers of 2560 float32 and 2560 x 3 columns of bfloat16, twice.
    assert any(f"{2 * 18 * 25600:,} bytes" in note for note in predicted.notes)
    assert [row.bytes for row in predicted.layers if row.kind == "state"] == [0]
    assert not any("outside" in note for note in cache_of(published("gemma-3-1b"), 4096).notes)


@pytest.mark.parametrize(
    ("version", "elements"),
    [
        *((version, 40960) for version in ("4.57.1", "5.0", "5.12.0", "5.13.0", "5.14.0")),
        *((version, 576) for version in ("5.15", "5.17.0", "5.18.0", "5.20.0", "5.22.0", "5.23.0", "5.24.0")),
    ],
)
def test_mla_layers_cache_the_latent_since_5_15(version: str, elements: int) -> None:
    assert cache_of(published("deepseek-v3"), 1000, version=version).bytes == 61 * 1000 * 2 * elements


@pytest.mark.parametrize(
    ("version", "elements", "words"),
    [
        ("4.50.0", 40960, "older than the releases read: the rule of 4.57.1 is followed"),
        ("5.14.1", 40960, "not among the releases read: the rule of 5.14.0 is followed"),
        ("5.16.2", 576, "not among the releases read: the rule of 5.15.0 is followed"),
        ("5.99.0", 576, "newer than the releases read: the rule of 5.24.0 is followed"),
    ],
)
def test_a_release_that_was_not_read_follows_the_nearest_older_one_with_a_note(
    version: str, elements: int, words: str
) -> None:
    predicted = cache_of(published("deepseek-v3"), 1000, version=version)
    assert predicted.bytes == 61 * 1000 * 2 * elements
    assert f"transformers {version} is {words}" in predicted.notes
    assert not any("releases read" in note for note in cache_of(published("deepseek-v3"), 1000).notes)


@pytest.mark.parametrize(
    "version", ["4.57.1", "5.0.0", *(f"5.{at}.0" for at in (12, 13, 14, 15, 17, 18, 20, 22, 23, 24))]
)
def test_a_release_that_was_read_is_followed_without_a_remark(version: str) -> None:
    assert not [note for note in cache_of(published("gemma-3-1b"), 8, version=version).notes if "releases read" in note]


#: The CUDA allocator's count of two layers in bfloat16 on an H100, transformers 5.17.0, one forward: batch, tokens.
MEASURED_INDEXED = {(1, 1024): 21_495_808, (1, 8192): 171_966_464, (3, 1024): 64_487_424, (2, 2048): 85_983_232}


def test_mla_layers_with_an_indexer_add_its_key_and_cache_the_latent_since_5_18() -> None:
    layer = latent(rank=512, rope_dim=64, num_heads=16, nope_dim=128, v_head_dim=128, indexer_dim=128)
    model = laid_out("two-indexed", "glm_moe_dsa", [layer, layer])
    for (batch_size, tokens), measured in MEASURED_INDEXED.items():
        assert cache_of(model, tokens, batch_size=batch_size, version="5.17.0").bytes == measured
    for version in ("5.18.0", "5.24.0"):
        for cache in ("dynamic", "static"):
            assert cache_of(model, 1000, version=version, cache=cache).bytes == 2 * 1000 * 2 * (512 + 64 + 128)
    with pytest.raises(UnsupportedError, match="ValueError"):
        cache_of(model, 1000, cache="dynamic_unconfigured")


def test_an_mla_layer_without_its_own_indexer_keeps_no_key_of_one() -> None:
    sizes = {"rank": 512, "rope_dim": 64, "num_heads": 16, "nope_dim": 128, "v_head_dim": 128}
    model = laid_out("shared-indexer", "glm_moe_dsa", [latent(**sizes, indexer_dim=128), latent(**sizes)])
    assert cache_of(model, 1000).bytes == 1000 * 2 * (2 * 576 + 128)
    assert cache_of(model, 1000, version="5.17.0").bytes == 1000 * 2 * (2 * 5120 + 128)


def test_the_states_measured_on_a_gpu_are_met() -> None:
    """Qwen3-Next's four layers, three of them linear, after one forward on an H100 with transformers 5.17.0."""
    linear = state(recurrent_elements=32 * 128 * 128, conv_channels=8192, conv_kernel=4)
    model = laid_out("qwen3-next-like", "qwen3_next", [linear] * 3 + [full(2, 256)])
    measured = {(1, 1024): 8_585_216, (1, 2048): 10_682_368, (1, 4096): 14_876_672, (4, 1024): 34_340_864}
    for (batch_size, tokens), count in measured.items():
        assert cache_of(model, tokens, batch_size=batch_size, version="5.17.0").bytes == count


def test_the_states_of_minimax_are_in_its_own_cache_and_format() -> None:
    state = {"kind": "state", "recurrent_elements": 4096}
    minimax, other = (laid_out("any", model_type, [state]) for model_type in ("minimax", "custom"))
    assert (cache_of(minimax, 100).bytes, cache_of(other, 100).bytes) == (2 * 4096, 4 * 4096)
    assert cache_of(other, 100, cache="static").bytes == 4 * 4096
    with pytest.raises(UnsupportedError, match="refuses a StaticCache"):
        cache_of(minimax, 100, cache="static")


def test_cross_attention_holds_the_encoders_tokens() -> None:
    cross = {"kind": "cross", "num_kv_heads": 4, "head_dim": 256, "v_head_dim": 256}
    model = laid_out("t5gemma-like", "t5gemma", [sliding(4096, 4, 256), full(4, 256), cross])
    for options in ({}, {"cache": "static"}, {"cache": "dynamic_unconfigured"}):
        predicted = cache_of(model, 100, batch_size=2, encoder_tokens=300, **options)
        assert predicted.bytes == 2 * 4096 * (2 * 100 + 300)
        assert [row.tokens for row in predicted.layers] == [200, 200, 600]
        steps = prepare(model, engine="transformers", engine_options=options, encoder_tokens=300).plan.explain(100, 2)
        assert evaluate(steps)["layers_3"] == steps[-2].value == 2 * 4096 * 300
    assert "encoder_tokens is 0, so the cross-attention cache is empty" in cache_of(model, 100).notes


def test_an_unconfigured_cache_of_a_chunked_model_keeps_every_token() -> None:
    model = laid_out("llama-4-like", "llama4", [chunked(8192), full()])
    assert cache_of(model, 20000, cache="dynamic_unconfigured").steady_bytes == 2 * 256 * 20000
    assert cache_of(model, 20000).steady_bytes == 256 * (8192 + 20000)


@pytest.mark.parametrize("slug", ["bamba-9b", "falcon-h1-7b", "lfm2-1.2b"])
def test_a_hybrid_without_a_config_is_the_engines_index_error(slug: str) -> None:
    with pytest.raises(UnsupportedError, match="IndexError"):
        cache_of(published(slug), 100, cache="dynamic_unconfigured")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ({"kind": "compressed", "width": 512, "window": 128, "ratio": 4}, {"version": "5.0.0"}),
        (latent(indexer_dim=128), {"version": "5.15.0"}),
        (latent(window=128), {}),
        ({**full(), "indexer_dim": 128}, {"version": "5.0.0"}),
        (state(recurrent_elements=64), {"version": "5.12.0"}),
    ],
)
def test_what_is_not_modelled_is_refused_with_the_reason(kind: dict[str, Any], options: dict[str, Any]) -> None:
    with pytest.raises(NotModelledError, match="not modelled: how transformers caches") as refusal:
        cache_of(laid_out("strange", "custom", [kind]), 100, **options)
    assert refusal.value.hint


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ({"kind": "compressed", "width": 512, "window": 128}, {"cache": "static"}, "no StaticCache has compressed"),
        ({"kind": "compressed", "width": 512, "window": 128}, {"cache": "dynamic_unconfigured"}, "AttributeError"),
        ({**full(), "indexer_dim": 128}, {"cache": "dynamic_unconfigured"}, "no update_index"),
        ({**full(), "extra_state_bytes": 512}, {}, "no class of transformers 5.24.0 keeps a convolution over K and V"),
        (latent(), {"version": "4.57.1", "cache": "static"}, "gives V the width of K"),
        (latent(indexer_dim=128), {"cache": "quantized"}, "for full attention alone"),
        (sliding(128), {"cache": "quantized"}, r"for full attention alone, and strange has sliding \(128\) layers"),
        ({"kind": "none"}, {"cache": "quantized"}, "for full attention alone"),
        (state(recurrent_elements=64), {"cache": "quantized", "version": "5.12.0"}, "for full attention alone"),
        (full(3, 80), {"cache": "quantized"}, "quanto quantises groups of 64, and a token of strange has 240"),
        (full(), {"cache": "quantized", "backend": "fp8", "version": "5.20.0"}, "has no fp8 backend"),
    ],
)
def test_what_transformers_refuses_is_refused_with_the_place(
    kind: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UnsupportedError, match=words) as refusal:
        cache_of(laid_out("strange", "custom", [kind]), 100, **options)
    assert "use " in (refusal.value.hint or "")


#: DeepSeek V4's own classes on the meta device, transformers 5.24.0 with torch 2.13: a layer of a window, and two each
#: of four and of 128 tokens an entry; tokens, chunk, batch, then bytes held, shown, and held after a decode step.
COMPRESSED = {
    (300, None, 2): (12_741_632, 2_374_656, 2_468_864),
    (700, 90, 1): (3_373_056, 1_515_008, 1_562_112),
    (700, 256, 3): (19_169_280, 4_545_024, 4_686_336),
}


@pytest.mark.parametrize("question", COMPRESSED, ids=str)
def test_the_compressed_layers_of_deepseek_v4_keep_what_waits_as_views(question: tuple[int, int | None, int]) -> None:
    tokens, chunk, batch_size = question
    alone = {"kind": "compressed", "width": 512, "window": 128}
    few, many = {**alone, "ratio": 4, "indexer_dim": 128}, {**alone, "ratio": 128}
    model = laid_out("deepseek-v4-like", "deepseek_v4", [alone, few, many, few, many])
    plan = prepare(model, engine="transformers", engine_options={"prefill_chunk": chunk}).plan
    predicted = plan.allocate(tokens, batch_size)
    logical = plan.report(tokens, batch_size, 0)["logical_bytes"]
    assert (predicted.bytes, logical, predicted.steady_bytes) == COMPRESSED[question]
    assert (
        evaluate(plan.explain(tokens, batch_size))["kv_bytes"] == predicted.bytes == plan.kv_bytes(tokens, batch_size)
    )
    assert sum(row.bytes for row in predicted.layers) == predicted.bytes


def test_minimax_m3_keeps_one_index_key_a_token() -> None:
    # Measured likewise: 50 tokens of two sequences, 4 KV heads of 128 in each layer, index keys of 128 in the last.
    model = laid_out("minimax-m3-like", "minimax_m3", [full(4, 128)] * 3 + [{**full(4, 128), "indexer_dim": 128}])
    for cache in ("dynamic", "static"):
        assert cache_of(model, 50, batch_size=2, cache=cache).bytes == 50 * 2 * 2 * (4 * 2 * 4 * 128 + 128)


#: transformers' QuantizedCache with optimum-quanto 0.2.7 and hqq 0.2.8 on the CPU: backend, bits, group, residual,
#: K and V (heads, K dim, V dim), format, batch, tokens, chunk; bytes at the fullest moment and after a decode step.
QUANTIZED = [
    (("quanto", 4, 64, 128, (2, 64, 64), "bfloat16", 1, 1000, None), (144_368, 144_368)),
    (("quanto", 4, 64, 128, (1, 64, 64), "bfloat16", 3, 301, None), (65_568, 65_568)),  # an odd count of groups
    (("quanto", 2, 64, 128, (1, 64, 64), "float32", 3, 301, None), (44_736, 44_736)),
    (("quanto", 4, 32, 128, (2, 128, 64), "bfloat16", 2, 1000, 50), (537_600, 532_800)),
    # A tensor that is one group alone has a scale and a zero point an element, until more tokens are quantised with it.
    (("quanto", 4, 64, 1, (1, 64, 64), "bfloat16", 1, 1, None), (640, 640)),
    (("quanto", 4, 64, 1, (1, 64, 64), "float32", 1, 3, 1), (1_152, 304)),
    (("quanto", 4, 64, 5, (1, 64, 64), "float32", 1, 16, 1), (3_200, 1_280)),
    (("hqq", 3, 64, 128, (2, 64, 64), "bfloat16", 1, 1000, None), (128_384, 128_384)),
    (("hqq", 8, 64, 128, (2, 64, 64), "float16", 2, 333, None), (181_632, 181_632)),
    (("hqq", 1, 64, 1, (2, 64, 64), "float16", 2, 333, None), (31_968, 31_968)),
    (("fp8", 8, 64, 128, (2, 128, 64), "bfloat16", 2, 1000, 50), (768_008, 768_008)),
]


@pytest.mark.parametrize(("question", "measured"), QUANTIZED, ids=str)
def test_a_quantised_cache_is_met_to_the_byte(question: tuple[Any, ...], measured: tuple[int, int]) -> None:
    backend, nbits, group, residual, (heads, k_dim, v_dim), dtype, batch_size, tokens, chunk = question
    kind = {"kind": "full", "num_kv_heads": heads, "head_dim": k_dim, "v_head_dim": v_dim}
    options = {"cache": "quantized", "backend": backend, "nbits": nbits, "q_group_size": group}
    options |= {"residual_length": residual, "prefill_chunk": chunk}
    plan = prepare(
        laid_out("one", "llama", [kind]), engine="transformers", engine_options=options, kv_cache_dtype=dtype
    ).plan
    predicted = plan.allocate(tokens, batch_size)
    assert (predicted.bytes, predicted.steady_bytes) == measured
    assert (
        evaluate(plan.explain(tokens, batch_size))["kv_bytes"] == predicted.bytes == plan.kv_bytes(tokens, batch_size)
    )
    assert not any("views" in note for note in predicted.notes)
    assert plan.allocate(1, 1).bytes == plan.allocate(1, 1).steady_bytes


def test_a_quantised_cache_says_what_waits_and_what_is_quantised() -> None:
    predicted = cache_of(published("llama-3.1-8b"), 32768, cache="quantized")
    assert predicted.layers[0].tokens == 32768
    assert predicted.why == "32,767 tokens quantised, 1 as they are"
    assert "while decoding, up to 127 tokens stand beside it as they are" in predicted.notes
    # 4.5 bits an element, and one token of 16.
    assert predicted.bytes == 32 * 2 * 1024 * (32767 * 9 + 32) // 16


#: transformers 5.24.0's offloaded caches, driven with an imagined host: layers (s slides over 16 tokens; two heads of
#: 64), cache, tokens, chunk, batch; the most that the device held at a time, and in a decode step.
OFFLOADED = {
    ("sffs", "offloaded", 300, None, 2): (613_376, 613_376),
    ("sffs", "offloaded", 300, 50, 1): (306_688, 306_688),
    ("fsss", "offloaded", 129, None, 1): (132_096, 74_240),
    ("sffs", "offloaded_static", 300, None, 2): (647_168, 647_168),
    ("f", "offloaded", 40, 16, 3): (61_440, 61_440),
    ("ss", "offloaded", 129, 50, 1): (40_960, 15_872),
}


@pytest.mark.parametrize("question", OFFLOADED, ids=str)
def test_an_offloaded_cache_has_two_layers_on_the_device(question: tuple[str, str, int, int | None, int]) -> None:
    layers, cache, tokens, chunk, batch_size = question
    kinds = [sliding(16, 2) if letter == "s" else full(2) for letter in layers]
    options = {"cache": cache, "prefill_chunk": chunk}
    plan = prepare(laid_out("any", "gemma3", kinds), engine="transformers", engine_options=options).plan
    predicted = plan.allocate(tokens, batch_size)
    assert (predicted.bytes, predicted.steady_bytes) == OFFLOADED[question]
    assert sum(row.bytes for row in predicted.layers) == predicted.bytes == plan.kv_bytes(tokens, batch_size)
    assert evaluate(plan.explain(tokens, batch_size))["kv_bytes"] == plan.required_kv_memory(tokens, batch_size)
    assert plan.report(tokens, batch_size, 0) == {}


def test_states_stay_on_the_device_and_readers_of_another_layer_take_nothing() -> None:
    linear, reader = state(recurrent_elements=64), {"kind": "shared"}
    predicted = cache_of(laid_out("hybrid", "qwen3_next", [linear, full(), full(), reader]), 100, cache="offloaded")
    assert [row.bytes for row in predicted.layers] == [4 * 64, 2 * 100 * 256]
    assert predicted.why == "the host keeps 2 layers, the device two at a time"
    alone = prepare(
        laid_out("states", "mamba2", [linear]), engine="transformers", engine_options={"cache": "offloaded"}
    )
    assert alone.plan.allocate(100, 1).bytes == evaluate(alone.plan.explain(100, 1))["kv_bytes"] == 4 * 64


def test_what_an_offloaded_cache_does_with_other_layers_is_not_modelled() -> None:
    for kind in (latent(indexer_dim=128), {"kind": "compressed", "width": 512, "window": 128}):
        with pytest.raises(NotModelledError, match="layers in an offloaded cache"):
            cache_of(laid_out("other", "custom", [kind]), 100, cache="offloaded")
    with pytest.raises(UnsupportedError, match="a StaticCache offloads full layers alone"):
        cache_of(laid_out("sliding", "mistral", [sliding(128)]), 100, cache="offloaded_static")


def test_latents_are_quantised_as_keys_and_values_and_so_were_decompressed_heads() -> None:
    model = laid_out("mla", "deepseek_v3", [latent(num_heads=16)])
    assert cache_of(model, 128, cache="quantized", residual_length=1).bytes == 128 * (512 + 64) * 9 // 16
    older = cache_of(model, 128, cache="quantized", residual_length=1, version="5.14.0")
    assert older.bytes == 128 * 16 * (192 + 128) * 9 // 16


def test_a_quantised_cache_before_5_14_took_every_layer_for_a_full_one() -> None:
    model = laid_out("gemma-like", "gemma3", [sliding(128), full(), {"kind": "shared"}])
    predicted = cache_of(model, 1024, cache="quantized", residual_length=1, version="5.12.0")
    assert predicted.bytes == 2 * 1024 * 128 * 9 // 16


@pytest.mark.parametrize(
    ("name", "today"),
    [
        ("sliding_window", "static"),
        ("hybrid_chunked", "static"),
        ("hybrid", "dynamic"),
        ("offloaded_hybrid", "offloaded_static"),
        ("offloaded_hybrid_chunked", "offloaded_static"),
    ],
)
def test_generates_older_names_of_caches_are_taken(name: str, today: str) -> None:
    model = published("gemma-3-1b")
    assert cache_of(model, 4096, cache=name).bytes == cache_of(model, 4096, cache=today).bytes


def test_a_backend_has_its_own_bits() -> None:
    with pytest.raises(InputError, match="quanto quantises to 2, 4 bits"):
        cache_of(published("llama-3.1-8b"), 100, cache="quantized", nbits=3)


def test_a_static_cache_of_decompressed_heads_has_both_widths_since_5() -> None:
    model = laid_out("mla", "deepseek_v3", [latent(num_heads=16)])
    assert cache_of(model, 100, cache="static", version="5.12.0").bytes == 100 * 2 * 16 * (192 + 128)


def test_a_class_that_takes_no_cache_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="its class takes none"):
        cache_of(laid_out("gpt", "openai-gpt", [full()]), 100)


def test_tensor_parallelism_and_quantised_formats_are_refused() -> None:
    model = published("llama-3.1-8b")
    with pytest.raises(UnsupportedError, match="tensor parallelism"):
        footprint(model, context=10, engine="transformers", tensor_parallel_size=2)
    with pytest.raises(UnsupportedError, match="q8_0"):
        footprint(model, context=10, engine="transformers", kv_cache_dtype="q8_0")


def test_states_take_the_cache_format_for_the_convolution_and_float32_for_the_rest() -> None:
    model = laid_out("state", "mamba2", [state(recurrent_elements=1000, conv_channels=10, conv_kernel=4)])
    for dtype, element_bytes in (("bfloat16", 2), ("float32", 4)):
        predicted = kv_cache_bytes(model, context=7, engine="transformers", kv_cache_dtype=dtype)
        assert predicted == 4 * 1000 + 10 * 4 * element_bytes


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "one forward of 32,768 tokens stays alive as views"),
        ({"cache": "quantized", "version": "5.12.0"}, "32,767 tokens quantised, 1 as they are"),
        ({"prefill_chunk": 4096}, "a chunk of 4,096 tokens stays alive behind window - 1 tokens"),
        ({"cache": "static"}, "allocated for 32,768 tokens; sliding layers min(context, window)"),
        ({"cache": "dynamic_unconfigured"}, "every layer keeps 32,768 tokens"),
    ],
)
def test_the_reason_is_said_in_a_few_words(options: dict[str, Any], why: str) -> None:
    assert cache_of(published("gemma-3-1b"), 32768, **options).why == why
