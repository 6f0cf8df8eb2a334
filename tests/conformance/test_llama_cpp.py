"""llama.cpp against 680 contexts that llama.cpp 0c1e57098 created itself, and against lines of its logs."""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import kvcalc
from kvcalc.architecture import (
    Architecture,
    Chunked,
    Compressed,
    Cross,
    Full,
    Latent,
    Layer,
    NoCache,
    Shared,
    Sliding,
    State,
    distinct_layers,
    layer_kind,
)
from kvcalc.derivation import evaluate
from kvcalc.engines import make_engine
from kvcalc.engines.llama_cpp import LlamaCppPlan
from kvcalc.errors import InputError, NotModelledError, UnsupportedError
from kvcalc.layout import parse_layout
from kvcalc.relayout import with_layout
from kvcalc.setup import prepare
from kvcalc.units import MiB

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "llama_cpp.json").read_text())
ROWS = [dict(zip(RECORDED["columns"], row, strict=True)) for row in RECORDED["rows"]]


def model_of(name: str, model_type: str, caches: list[Any]) -> Architecture:
    layers, order = distinct_layers([Layer(cache=cache) for cache in caches])
    return Architecture(name=name, model_type=model_type, layers=layers, order=order, hidden_size=1, vocab_size=0)


def recorded_model(name: str) -> Architecture:
    model = RECORDED["models"][name]
    kinds = {code: layer_kind(kind) for code, kind in model["kinds"].items()}
    return model_of(name, model["model_type"], [kinds[code] for code in model["order"]])


def uniform(model_type: str, layers: int, num_kv_heads: int, head_dim: int) -> Architecture:
    return model_of(model_type, model_type, [full(num_kv_heads, head_dim)] * layers)


def full(num_kv_heads: int = 8, head_dim: int = 128) -> Full:
    return Full(num_kv_heads=num_kv_heads, head_dim=head_dim, v_head_dim=head_dim)


def sliding(window: int = 512, num_kv_heads: int = 8, head_dim: int = 128) -> Sliding:
    return Sliding(window=window, num_kv_heads=num_kv_heads, head_dim=head_dim, v_head_dim=head_dim)


def plan(model: Architecture, kv_cache_dtype: str | None = None, **options: Any) -> LlamaCppPlan:
    made = prepare(model, engine="llama.cpp", engine_options=options, kv_cache_dtype=kv_cache_dtype).plan
    assert isinstance(made, LlamaCppPlan)
    return made


@pytest.mark.parametrize("name", dict.fromkeys(row["model"] for row in ROWS))
def test_every_recorded_context_is_reproduced_to_the_byte(name: str) -> None:
    model = recorded_model(name)
    for row in (row for row in ROWS if row["model"] == name):
        options = {key: row[key] for key in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max")}
        flags = {key: bool(row[key]) for key in ("kv_unified", "swa_full", "flash_attn", "mla")}
        made = plan(model, f"{row['type_k']}/{row['type_v']}", **options, **flags)
        batch_size = row["n_seq_max"]
        workload = row["n_ctx"] // batch_size, batch_size
        report = made.report(*workload, 0)
        found = {key: report[key] for key in ("cells_swa", "kv_base_bytes", "kv_swa_bytes", "recurrent_bytes")}
        assert (report["n_ctx_per_seq"], found) == (row["cells"], {key: row[key] for key in found}), row
        total = row["kv_base_bytes"] + row["kv_swa_bytes"] + row["recurrent_bytes"]
        cache, steps = made.allocate(*workload), made.explain(*workload)
        assert cache.bytes == cache.steady_bytes == made.kv_bytes(*workload) == total, row
        assert sum(layer.bytes for layer in cache.layers) + cache.padding_bytes == total
        assert evaluate(steps) == {step.symbol: step.value for step in steps}
        assert (steps[-1].symbol, steps[-1].value) == ("kv_bytes", total)


def test_every_kind_of_recorded_option_is_among_the_rows() -> None:
    for key in ("mla", "kv_unified", "swa_full", "flash_attn"):
        assert {row[key] for row in ROWS} == {0, 1}
    assert len(ROWS) == 680


@pytest.mark.parametrize(
    ("name", "n_ctx", "expected"),
    [  # one sequence; 4 slots unified; 4 slots split; one sequence with swa_full
        ("gemma-3-27b", 8192, (1264, 2512, 3136, 3968)),
        ("gemma-3-27b", 32768, (3184, 4432, 5056, 15872)),
        ("gemma-3-27b", 131072, (10864, 12112, 12736, 63488)),
        ("gemma-3-1b", 4096, (38, 71, 104, 104)),
        ("gpt-oss-20b", 4096, (114, 120, 168, 192)),
        ("gemma-4-31b", 32768, (3760, 6160, 7360, 28160)),
    ],
)
def test_measured_mib_of_the_four_ways_to_launch(name: str, n_ctx: int, expected: tuple[int, ...]) -> None:
    model = kvcalc.load(name) if name.startswith("gemma-3") else recorded_model(name)
    split = plan(model).kv_bytes(n_ctx // 4, 4)
    unified = plan(model, kv_unified=True).kv_bytes(n_ctx // 4, 4)
    found = plan(model).kv_bytes(n_ctx, 1), unified, split, plan(model, swa_full=True).kv_bytes(n_ctx, 1)
    assert tuple(size / MiB for size in found) == expected


def test_without_flash_attention_v_is_as_wide_as_the_widest_layer() -> None:
    model = recorded_model("gemma-4-31b")  # V: 4 x 512 in full layers, 16 x 256 in sliding ones
    assert plan(model).kv_bytes(8192, 1) == 1840 * MiB
    assert plan(model, flash_attn=False).kv_bytes(8192, 1) == 2160 * MiB


# Log lines that users published: model, context, batch size, KV types, options, and the lines without their prefix.
QWEN35_SMALL = [State(recurrent_elements=16 * 128 * 128, conv_channels=6144, conv_kernel=4)] * 18 + [full(2, 256)] * 6
LOGGED = {
    "gemma-4-12b q8_0, 4 slots": (
        recorded_model("gemma-4-12b"),
        (2048, 4, "q8_0", {"kv_unified": True}),
        ["size =   68.00 MiB (  8192 cells,   8 layers,  4/1 seqs)", "size =  765.00 MiB (  4608 cells,  40 layers"],
    ),
    "gemma-4-31b q8_0": (
        recorded_model("gemma-4-31b"),
        (147712, 1, "q8_0", {}),
        ["size = 6130.62 MiB (147712 cells,  10 layers,  1/1 seqs)", "50 layers"],
    ),
    "qwen2.5-7b q8_0, 4 slots": (uniform("qwen2", 28, 4, 128), (2048, 4, "q8_0", {"kv_unified": True}), ["238.00 MiB"]),
    "qwen2.5-7b q4_0": (uniform("qwen2", 28, 4, 128), (8192, 1, "q4_0", {}), ["126.00 MiB"]),
    "phi-3-mini-4k": (recorded_model("phi-3-mini-4k"), (4096, 1, "f16", {"n_ubatch": 256}), ["1536.00 MiB"]),
    "qwen3.5-27b": (
        recorded_model("qwen3.5-27b"),
        (24576, 1, "f16", {}),
        [
            "1536.00 MiB",
            "149.62 MiB (     1 cells,  64 layers,  1 seqs  0 rs_seq), R (f32):    5.62 MiB, S (f32):  144.00",
        ],
    ),
    "qwen3.6-27b, 4 slots": (
        recorded_model("qwen3.5-27b"),
        (65536, 4, "f16", {"kv_unified": True}),
        ["16384.00 MiB (262144 cells,  16 layers,  4/1 seqs)", "598.50 MiB (     4 cells,  64 layers,  4 seqs"],
    ),
    "qwen3.5-35b-a3b, 4 slots": (
        recorded_model("qwen3.5-35b-a3b"),
        (4096, 4, "f16", {}),
        [
            "10 layers",
            "251.25 MiB (     4 cells,  40 layers,  4 seqs  0 rs_seq), R (f32):   11.25 MiB, S (f32):  240.00",
        ],
    ),
    "qwen3.5-0.8b q8_0": (
        model_of("qwen3.5-0.8b", "qwen3_5", QWEN35_SMALL),
        (32768, 1, "q8_0", {}),
        [
            "size =  204.00 MiB ( 32768 cells,   6 layers,  1/1 seqs)",
            "19.27 MiB (     1 cells,  24 layers,  1 seqs  0 rs_seq), R (f32):    1.27 MiB, S (f32):   18.00 MiB",
        ],
    ),
    "deepseek-coder-v2-16b without MLA keys, 8 slots": (
        recorded_model("deepseek-v2-lite"),
        (2048, 8, "f16", {"mla": False}),
        ["4320.00 MiB (  2048 cells,  27 layers,  8/8 seqs), K (f16): 2592.00 MiB, V (f16): 1728.00 MiB"],
    ),
    "qwen3-1.7b": (uniform("qwen3", 28, 8, 128), (1024, 1, "f16", {}), ["112.00 MiB (  1024 cells,  28 layers"]),
    "qwen2.5-coder-1.5b": (uniform("qwen2", 28, 2, 128), (4096, 4, "f16", {"kv_unified": True}), ["448.00 MiB"]),
    "olmoe q8_0": (uniform("olmoe", 16, 16, 128), (8192, 1, "q8_0", {}), ["544.00 MiB (  8192 cells,  16 layers"]),
    "devstral-small-2": (uniform("mistral3", 40, 8, 128), (256, 1, "f16", {}), ["40.00 MiB (   256 cells,  40 layers"]),
}


@pytest.mark.parametrize("name", LOGGED)
def test_published_log_lines_are_reproduced_to_the_printed_digit(name: str) -> None:
    model, (context, batch_size, kv_cache_dtype, options), expected = LOGGED[name]
    lines = plan(model, kv_cache_dtype, **options).report(context, batch_size, 0)["printed"]
    assert len(lines) == len(expected)
    for line, fragment in zip(lines, expected, strict=True):
        assert fragment in line


def test_a_whole_line_is_printed_as_llama_cpp_prints_it() -> None:
    report = plan(kvcalc.load("gemma-3-4b"), "q8_0").report(32768, 4, 2**40)
    assert report["printed"][1] == (
        "llama_kv_cache: size =  369.75 MiB (  1536 cells,  29 layers,  4/4 seqs), "
        "K (q8_0):  184.88 MiB, V (q8_0):  184.88 MiB"
    )
    assert (report["streams"], report["n_ctx"], report["fits"]) == (4, 131072, True)


def test_a_whole_line_of_states_is_printed_as_llama_cpp_prints_it() -> None:
    report = plan(model_of("qwen3.5-0.8b", "qwen3_5", QWEN35_SMALL)).report(32768, 1, 2**40)
    assert report["printed"][1] == (
        "llama_memory_recurrent: size =   19.27 MiB (     1 cells,  24 layers,  1 seqs  0 rs_seq), "
        "R (f32):    1.27 MiB, S (f32):   18.00 MiB, P (f32):    0.00 MiB"
    )


def test_gemma_3_270m_takes_39_mib_at_8k() -> None:
    assert plan(kvcalc.load("gemma-3-270m")).kv_bytes(8192, 1) == 39 * MiB


@pytest.mark.parametrize("name", ["mistral-7b-v0.1", "phi-3-mini-4k"])
def test_windows_that_llama_cpp_does_not_read_are_priced_in_full_and_noted(name: str) -> None:
    model = recorded_model(name)
    cache = plan(model).allocate(32768, 1)
    assert cache.bytes == plan(with_layout(model, parse_layout("global"))).kv_bytes(32768, 1)
    assert cache.layers[0].kind == "sliding" and cache.layers[0].window is None
    assert any("keep the whole context" in note for note in cache.notes)


def test_exaone_4_slides_with_64_layers_only() -> None:
    period = [sliding(4096), sliding(4096), sliding(4096), full()]
    large, small = (model_of("exaone", "exaone4", period * blocks) for blocks in (16, 8))
    assert plan(large).report(32768, 1, 0)["cells_swa"] == 4608
    cache = plan(small).allocate(32768, 1)
    assert cache.bytes == 32 * 32768 * 4096 and "64 layers only" in cache.notes[0]


@pytest.mark.parametrize(("layers", "owning"), [(30, 20), (20, 20), (16, 16)])
def test_gemma_3n_owns_twenty_layers_wherever_sharing_starts(layers: int, owning: int) -> None:
    local, global_ = sliding(512, 2, 256), full(2, 256)
    ordered: list[Any] = [global_ if i % 5 == 4 else local for i in range(10)]
    ordered += [Shared(of="full" if i % 5 == 4 else "sliding") for i in range(10, layers)]
    report = plan(model_of("toy", "gemma3n", ordered)).report(8192, 1, 0)
    globals_ = sum(i % 5 == 4 for i in range(owning))
    assert report["kv_base_bytes"] == globals_ * 8192 * 2048
    assert report["kv_swa_bytes"] == (owning - globals_) * 1024 * 2048


def test_llama_4_has_a_window_of_8192_whatever_the_model_says() -> None:
    model = with_layout(recorded_model("llama-4-scout"), parse_layout("3:1/sw=1024"))
    cache = plan(model).allocate(131072, 1)
    assert cache.layers[0].tokens == 8192 + 512 and cache.layers[0].window == 8192
    assert "8,192 tokens, not 1,024" in cache.notes[0]


def test_a_layout_variant_keeps_the_rule_of_its_architecture() -> None:
    model = kvcalc.load("gemma-2-2b@5:1/sw=1024")
    report = plan(model).report(32768, 1, 0)
    assert (report["cells_swa"], report["kv_swa_bytes"]) == (1536, 22 * 1536 * 4096)


def test_layers_that_read_another_cache_take_nothing_in_gemma_4() -> None:
    cache = plan(recorded_model("gemma-4-e4b")).allocate(32768, 1)
    assert [(row.kind, row.count, row.tokens) for row in cache.layers] == [
        ("sliding", 20, 1024),
        ("full", 4, 32768),
        ("shared", 15, 0),
        ("shared", 3, 0),
    ]
    assert sum(row.bytes for row in cache.layers if row.kind == "shared") == 0


@pytest.mark.parametrize(
    ("model", "kv_cache_dtype", "options", "reason"),
    [
        (kvcalc.load("recurrentgemma-2b"), None, {}, "no class for recurrent_gemma"),
        (kvcalc.load("llama-3.1-8b"), "fp8", {}, "no KV cache type fp8_e4m3"),
        (kvcalc.load("llama-3.1-8b"), "q8_0", {"flash_attn": False}, "without flash attention"),
        (recorded_model("deepseek-v3"), "q8_0/f16", {}, "different K and V types"),
        (kvcalc.load("deepseek-v4-flash"), "q8_0/f16", {}, "different K and V types"),
        (uniform("qwen2", 4, 2, 80), "q8_0", {}, "do not divide heads of 80"),
        (uniform("qwen2", 4, 1, 80), "q8_0/f16", {"flash_attn": False}, "do not divide rows of 80"),
        (
            model_of("two", "gemma3", [sliding(512), sliding(1024)]),
            None,
            {},
            "one window for all sliding layers",
        ),
        (model_of("whisper", "whisper", [full(), Cross(8, 64, 64)]), None, {}, "its one encoder-decoder is T5"),
        (model_of("shares", "hunyuan", [full(), Shared()]), None, {}, "no class for hunyuan"),
        (model_of("m1", "baichuan_m1", [replace(full(), extra_state_bytes=64)]), None, {}, "no class for baichuan_m1"),
    ],
)
def test_what_llama_cpp_refuses_is_refused_with_the_place(
    model: Architecture, kv_cache_dtype: str | None, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UnsupportedError, match=reason) as caught:
        plan(model, kv_cache_dtype, **options)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("model_type", "kinds", "reason"),
    [
        ("unheard_of", [sliding(), full()], "no rule of unheard_of"),
        ("unheard_of", [full(), Shared()], "no rule of unheard_of"),
        ("unheard_of", [replace(full(), indexer_dim=64)], "no rule of unheard_of"),
        ("llama", [replace(full(), extra_state_bytes=64)], "beside K and V"),
        ("llama", [Chunked(1024, 8, 128, 128)], "no rule of llama"),
        ("t5", [full(), Cross(8, 64, 64)], "encoder-decoder"),
    ],
)
def test_layers_that_no_rule_of_their_model_type_covers_are_not_modelled(
    model_type: str, kinds: list[Any], reason: str
) -> None:
    with pytest.raises(NotModelledError, match=reason):
        plan(model_of("model", model_type, kinds))


def test_a_model_type_that_llama_cpp_does_not_know_is_priced_by_the_general_rule_and_says_so() -> None:
    cache = plan(model_of("own", "my_model", [full()] * 2)).allocate(4096, 1)
    assert cache.bytes == 2 * 4096 * 4096 and "no model type my_model" in cache.notes[0]
    assert not plan(uniform("qwen2", 2, 8, 128)).allocate(4096, 1).notes


@pytest.mark.parametrize("model_type", ["step35", "step3p5"])
def test_a_gguf_and_a_configuration_name_the_same_rule(model_type: str) -> None:
    report = plan(model_of("step", model_type, [sliding(), full()])).report(8192, 1, 0)
    assert (report["cells_swa"], report["n_ctx_per_seq"]) == (1024, 8192)


def test_tensor_parallelism_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="tensor parallelism"):
        prepare(kvcalc.load("gemma-3-1b"), engine="llama.cpp", tensor_parallel_size=2)


def test_an_unknown_version_is_refused_with_the_known_one() -> None:
    with pytest.raises(InputError, match="0c1e57098"):
        make_engine("llama.cpp", {"version": "nightly"})


def test_mla_in_plain_heads_costs_seventy_times_the_latent() -> None:
    latent = Latent(rank=512, rope_dim=64, num_heads=128, nope_dim=128, v_head_dim=128)
    model = model_of("deepseek", "deepseek_v3", [latent] * 61)
    assert plan(model).kv_bytes(4096, 1) == 61 * 4096 * 576 * 2
    assert plan(model, mla=False).kv_bytes(4096, 1) == 61 * 4096 * 128 * (192 + 128) * 2
    assert plan(model, "q8_0").kv_bytes(4096, 1) == 61 * 4096 * 612


def test_states_are_float32_and_one_a_sequence_whatever_the_kv_types() -> None:
    model = model_of("mamba", "jamba", [State(recurrent_elements=1000, conv_channels=10, conv_kernel=4), NoCache()])
    for kv_cache_dtype in ("f16", "q4_0"):
        assert plan(model, kv_cache_dtype).kv_bytes(131072, 3) == 3 * 4 * (1000 + 30)
    assert plan(model).allocate(1024, 1).why == "one state per sequence"


def test_n_ctx_and_n_seq_max_replace_the_workload_and_say_so() -> None:
    model = kvcalc.load("gemma-3-27b")
    configured = plan(model, n_ctx=32768, n_seq_max=4)
    cache = configured.allocate(32768, 8)
    assert cache.bytes == plan(model).kv_bytes(8192, 4)
    assert cache.notes == (
        "n_ctx leaves 8,192 cells to a sequence: a context of 32,768 tokens does not fit in it",
        "4 of 8 sequences run at a time, the others wait",
    )
    assert configured.allocate(8192, 4).notes == ()
    unified = plan(model, n_ctx=8192, n_seq_max=2, kv_unified=True)
    assert unified.allocate(4096, 2).notes == ()
    assert unified.allocate(5000, 2).notes[0].startswith("n_ctx leaves 4,096 cells to a sequence: ")


@pytest.mark.parametrize(("options", "pads"), [({}, True), ({"kv_unified": True}, False)])
def test_slots_of_one_size_are_as_long_as_the_longest_request(options: dict[str, bool], pads: bool) -> None:
    assert make_engine("llama.cpp", options).pads_to_longest is pads


def test_a_model_whose_layers_all_slide_has_no_other_cache() -> None:
    layers = model_of("m", "olmo3", [Sliding(128, 2, 64, 64)] * 2)
    report = plan(layers).report(4096, 1, 2**40)
    assert (report["kv_base_bytes"], report["kv_swa_bytes"]) == (0, plan(layers).kv_bytes(4096, 1))
    assert make_engine("llama.cpp", {"n_ctx": 32768, "n_seq_max": 4}).context_limit == 8192
    assert make_engine("llama.cpp").context_limit is None


def test_a_micro_batch_of_0_is_the_whole_batch_of_2048() -> None:
    model = kvcalc.load("gemma-3-27b")  # windows of 1024
    assert plan(model, n_ubatch=0).report(131072, 1, 0)["cells_swa"] == 1024 + 2048
    assert plan(model, n_ubatch=4096).report(131072, 1, 0)["cells_swa"] == 1024 + 2048


def test_llama_cpp_has_at_most_256_sequences() -> None:
    assert make_engine("llama.cpp", {"n_seq_max": 256}).batch_limit == 256
    for name, option in (("llama.cpp", "n_seq_max"), ("ollama", "num_parallel")):
        with pytest.raises(InputError):
            make_engine(name, {option: 257})


def test_a_given_n_ctx_is_all_for_one_sequence_unless_n_seq_max_says_otherwise() -> None:
    assert make_engine("llama.cpp", {"n_ctx": 32768}).context_limit == 32768


# Contexts that the library of b11739 created itself, without memory: models of two to four layers.
LATENT = Latent(rank=512, rope_dim=64, num_heads=1, nope_dim=128, v_head_dim=128)


def compressed(ratio: int | None = None, indexer_dim: int = 0) -> Compressed:
    return Compressed(width=64, window=32, ratio=ratio, indexer_dim=indexer_dim)


@pytest.mark.parametrize(
    ("model_type", "kinds", "expected"),
    [
        ("deepseek_v32", [replace(LATENT, indexer_dim=128)] * 2, 11_534_336),
        ("glm_moe_dsa", [replace(LATENT, indexer_dim=128)] * 2, 11_534_336),
        ("minimax_m3", [full(2), replace(full(2), indexer_dim=128)], 10_485_760),
        ("deepseek_v4", [compressed(), compressed(), compressed(4, 128), compressed(128)], 2_736_128),
    ],
)
def test_models_with_a_cache_class_of_their_own(model_type: str, kinds: list[Any], expected: int) -> None:
    made = plan(model_of("toy", model_type, kinds), swa_full=True)
    cache, steps = made.allocate(2048, 2), made.explain(2048, 2)
    assert cache.bytes == made.kv_bytes(2048, 2) == expected == sum(row.bytes for row in cache.layers)
    assert evaluate(steps)["kv_bytes"] == expected


def test_deepseek_v4_keeps_a_stream_for_each_sequence_even_where_the_cache_is_unified() -> None:
    model = model_of("toy", "deepseek_v4", [compressed(), compressed(4, 128), compressed(128)])
    assert plan(model, kv_unified=True).kv_bytes(1024, 4) == plan(model).kv_bytes(4096, 4)
    assert plan(model, n_rs_seq=3).kv_bytes(1024, 1) - plan(model).kv_bytes(1024, 1) == 3 * (
        2 * 4 * 8 * (2 * 64 + 2 * 128) + 2 * 4 * 128 * 64
    )


def test_mimo_keeps_its_own_heads_in_both_caches() -> None:
    made = plan(
        recorded_model("mimo-v2-flash"),
        "bf16/f16",
        n_ctx=12345,
        n_ubatch=128,
        n_seq_max=4,
        kv_unified=True,
        flash_attn=False,
    )
    base, local = made.report(3000, 4, 0)["printed"]
    assert "size =  385.88 MiB ( 12544 cells,   9 layers,  4/1 seqs)" in base
    assert "size =  146.25 MiB (   768 cells,  39 layers,  4/1 seqs)" in local


def test_a_rollback_state_is_a_further_row_for_each_sequence() -> None:
    # llama.cpp issue 23269: Qwen3.6 35B with a draft of two tokens.
    made = plan(recorded_model("qwen3.5-35b-a3b"), n_rs_seq=2, kv_unified=True)
    line = made.report(65536, 1, 0)["printed"][1]
    assert "size =  188.44 MiB (     1 cells,  40 layers,  1 seqs  2 rs_seq)" in line
    assert "R (f32):    8.44 MiB, S (f32):  180.00 MiB" in line
    assert made.allocate(65536, 1).bytes == made.kv_bytes(65536, 1)


def test_models_that_roll_nothing_back_ignore_n_rs_seq_and_say_so() -> None:
    model = model_of("jamba", "jamba", [State(recurrent_elements=1000), full()])
    assert plan(model, n_rs_seq=4).kv_bytes(1024, 2) == plan(model).kv_bytes(1024, 2)
    assert "no rollback states" in plan(model, n_rs_seq=4).allocate(1024, 2).notes[0]


def test_a_draft_of_prediction_layers_opens_a_second_context_in_f16() -> None:
    model = recorded_model("qwen3.5-35b-a3b").changed(mtp_layers=(Layer(cache=full(2, 256)),))
    made = prepare(model, engine="llama.cpp", kv_cache_dtype="q8_0", draft="mtp").plan
    alone = prepare(model, engine="llama.cpp", kv_cache_dtype="q8_0").plan
    cache = made.allocate(65536, 2)
    assert cache.draft_bytes == 2 * 65536 * 2 * 2 * 256 * 2
    assert cache.bytes == made.kv_bytes(65536, 2) == alone.kv_bytes(65536, 2) + cache.draft_bytes
    assert cache.layers == alone.allocate(65536, 2).layers
    assert made.explain(65536, 2)[-1].value == cache.bytes == evaluate(made.explain(65536, 2))["kv_bytes"]
    assert "( 65536 cells,   1 layers,  2/2 seqs), K (f16)" in made.report(65536, 2, 0)["printed"][-1]


def test_a_draft_model_of_its_own_holds_as_many_cells_as_the_model() -> None:
    draft = uniform("qwen3", 4, 2, 64)
    made = prepare(recorded_model("gemma-3-4b"), engine="llama.cpp", draft=draft).plan
    assert made.allocate(1000, 3).draft_bytes == 4 * 3 * 1024 * 2 * 2 * 64 * 2  # 3 streams of 1000 tokens, padded


def test_the_prediction_layers_of_a_model_with_an_indexer_have_none() -> None:
    latent = replace(LATENT, indexer_dim=128)
    model = model_of("glm", "glm_moe_dsa", [latent] * 3).changed(mtp_layers=(Layer(cache=latent),))
    assert prepare(model, engine="llama.cpp", draft="mtp").plan.allocate(1024, 1).draft_bytes == 1024 * 576 * 2


@pytest.mark.parametrize(("version", "layers"), [("b10820", (7, 7)), ("b11067", (6, 1)), ("b11739", (6, 1))])
def test_up_to_b10837_both_contexts_of_a_glm_4_moe_hold_all_layers(version: str, layers: tuple[int, int]) -> None:
    model = uniform("glm4_moe", 6, 2, 64).changed(mtp_layers=(Layer(cache=full(2, 64)),))
    made = prepare(model, engine="llama.cpp", engine_options={"version": version}, draft="mtp").plan
    cache = made.allocate(1024, 1)
    each = 1024 * 2 * 2 * 64 * 2
    assert (cache.bytes - cache.draft_bytes, cache.draft_bytes) == (layers[0] * each, layers[1] * each)
    assert cache.bytes == made.kv_bytes(1024, 1)


def test_llama_server_has_four_slots_in_one_cache_unless_it_is_told_otherwise() -> None:
    model = kvcalc.load("gemma-3-27b")
    server = plan(model, program="llama-server")
    assert server.kv_bytes(8192, 1) == 2512 * MiB
    assert plan(model, program="llama-server", n_seq_max=4, n_ctx=8192).kv_bytes(8192, 1) == 3136 * MiB
    assert plan(model, program="llama-server", kv_unified=False, n_ctx=8192).kv_bytes(8192, 1) == 3136 * MiB
    assert make_engine("llama.cpp", {"program": "llama-server"}).batch_limit == 4


@pytest.mark.parametrize("model_type", ["llada", "dream", "modernbert"])
def test_encoders_and_diffusion_models_keep_nothing(model_type: str) -> None:
    cache = plan(model_of("model", model_type, [full()] * 4)).allocate(4096, 2)
    assert (cache.bytes, cache.layers[0].tokens) == (0, 0)


@pytest.mark.parametrize(
    ("version", "followed", "note"),
    [
        ("b11739", "b11739", ""),
        ("0ce8cd114", "b11739", ""),
        ("0c1e570981ab", "0c1e57098", ""),
        ("b11400", "0c1e57098", "before b11739"),
        ("b10488", "b10837", "before b11739"),
        ("10837", "b10837", ""),
        ("b11600", "b11739", "before b11739"),
        ("12001", "b11739", "after b11739"),
    ],
)
def test_a_build_between_the_known_ones_follows_the_older_rule_and_says_so(
    version: str, followed: str, note: str
) -> None:
    engine = make_engine("llama.cpp", {"version": version})
    assert engine.followed_version == followed
    notes = plan(kvcalc.load("gemma-3-1b"), version=version).allocate(1024, 1).notes
    assert any(note in each for each in notes) if note else not notes


B11739 = json.loads((Path(__file__).parents[1] / "data" / "llama_cpp_b11739.json").read_text())


@pytest.mark.parametrize("model_type", sorted({row["model_type"] for row in B11739["rows"]}))
def test_contexts_of_b11739_are_reproduced_to_the_byte(model_type: str) -> None:
    for row in (row for row in B11739["rows"] if row["model_type"] == model_type):
        kinds = {code: layer_kind(kind) for code, kind in row["kinds"].items()}
        mtp = tuple(Layer(cache=kinds[code]) for code in row["mtp"])
        model = model_of("model", model_type, [kinds[code] for code in row["order"]]).changed(mtp_layers=mtp)
        options = {key: row[key] for key in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq", "mla")}
        flags = {key: bool(row[key]) for key in ("kv_unified", "swa_full", "flash_attn")}
        setup = prepare(
            model,
            engine="llama.cpp",
            engine_options={**options, **flags},
            kv_cache_dtype=row["types"],
            draft="mtp" if mtp else None,
        )
        cache, steps = setup.plan.allocate(row["n_ctx"], 1), setup.plan.explain(row["n_ctx"], 1)
        assert cache.bytes == setup.plan.kv_bytes(row["n_ctx"], 1) == row["bytes"], row
        assert sum(layer.bytes for layer in cache.layers) + cache.draft_bytes == row["bytes"]
        assert evaluate(steps)["kv_bytes"] == row["bytes"]


def test_the_recorded_contexts_are_the_ones_that_the_oracle_wrote() -> None:
    lines = "\n".join(json.dumps(row) for row in B11739["rows"])
    assert sha256(lines.encode()).hexdigest() == B11739["sha256"]
    assert len({row["model_type"] for row in B11739["rows"]}) > 40 and any(row["mtp"] for row in B11739["rows"])
