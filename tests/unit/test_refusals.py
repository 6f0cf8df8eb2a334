"""What the core refuses in the library's own words, and the formulas of the rarer layer kinds."""

import pytest

import kvcalc
from kvcalc import load
from kvcalc.architecture import (
    Architecture,
    Compressed,
    Cross,
    Full,
    Layer,
    Sliding,
    State,
    distinct_layers,
    layer_kind,
)
from kvcalc.derivation import evaluate
from kvcalc.dtypes import BFLOAT16
from kvcalc.engines.ideal import Ideal
from kvcalc.errors import InputError, RefusalError, SeveralErrors, UnsupportedError
from kvcalc.layout import parse_layout
from kvcalc.paper import evidence
from kvcalc.setup import Setup, prepare
from kvcalc.units import parse_counts, smallest_reaching

FULL = Full(2, 64, 64)  # 2 heads x (64 + 64) x 2 bytes = 512 bytes a token
STATE = State(1000, "float32", conv_channels=96, conv_kernel=4)  # 4000 bytes + 96 x 3 x 2 = 4576 bytes


def model_of(*kinds, model_type="random", cross=None):
    layers, order = distinct_layers([Layer(kind, cross=cross) for kind in kinds])
    return Architecture("model", model_type, layers, order, hidden_size=256, vocab_size=1000)


# Architectures and what is read into them.


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "slidng"}, "unknown layer kind 'slidng'"),
        ({"kind": 3}, "unknown layer kind 3"),
        ({"kind": "none", "window": 4}, "a none layer has no 'window'"),
        ({"kind": "sliding", "window": 4}, "a sliding layer lacks one of "),
    ],
)
def test_a_layer_kind_of_other_fields_is_refused(table, message):
    with pytest.raises(InputError) as refused:
        layer_kind(table)
    assert refused.value.message.startswith(message)


def test_an_order_names_only_layers_that_exist():
    with pytest.raises(InputError, match="names layers that it does not have"):
        Architecture("model", "random", (Layer(FULL),), (0, 1), hidden_size=256, vocab_size=1000)


def test_a_model_without_multi_token_prediction_has_none_to_add():
    with pytest.raises(UnsupportedError, match="no multi-token-prediction layers"):
        prepare(model_of(FULL), draft="mtp")


def test_every_one_of_several_errors_gets_the_location():
    several = SeveralErrors([InputError("one"), InputError("two", location="line 2")]).at("a.toml")
    assert [problem.location for problem in several.problems] == ["a.toml", "a.toml, line 2"]


def test_a_list_of_ranges_has_at_most_2_to_the_20_counts():
    assert len(parse_counts("1..1048576/1")) == 2**20  # one range is never written out
    with pytest.raises(InputError, match="more than 1,048,576 values"):
        parse_counts("1..1048576/1,1")


def test_a_layout_without_local_layers_is_nothing_that_was_ablated():
    assert evidence(parse_layout("global")).label == "no local layers"


@pytest.mark.parametrize("arguments", [{"engine": 3}, {"engine": ["vllm"]}, {"kv_cache_dtype": ["fp8"]}])
def test_engine_and_format_are_names(arguments):
    for question in (kvcalc.kv_cache_bytes, kvcalc.footprint):
        with pytest.raises(InputError, match="engine, kv_cache_dtype and weights_dtype are names"):
            question(load("gemma-3-1b"), context=1024, **arguments)


@pytest.mark.parametrize("guess", [-5, 0, 1, 30, 39, 40, 41, 50, 10**6])
def test_the_inverse_finds_the_smallest_from_any_guess(guess):
    assert smallest_reaching(guess, lambda pool: pool >= 40) == 40
    assert smallest_reaching(guess, lambda pool: True) == 0


def test_a_setup_is_on_one_device_without_an_encoder_or_a_draft():
    model, engine = load("gemma-3-1b"), Ideal()
    assert Setup(model, engine, BFLOAT16, BFLOAT16) == Setup(model, engine, BFLOAT16, BFLOAT16, 1, 0, None, None)


# Engines.


@pytest.mark.parametrize("name", ["ideal", "transformers", "mlx-lm"])
def test_an_engine_that_allocates_as_it_goes_needs_its_bytes(name):
    plan = prepare(load("gemma-3-1b"), engine=name).plan
    assert plan.required_kv_memory(4096, 3) == plan.allocate(4096, 3).bytes


def test_the_accounting_of_states_entries_and_encoders_adds_up():
    # A window of 128 rows of 64 x 2 bytes, and one entry of 128 bytes for each 4 tokens.
    model = model_of(FULL, STATE, Compressed(width=64, window=128, ratio=4), cross=Cross(2, 64, 64))
    plan = prepare(model, encoder_tokens=100).plan
    each = 2 * (1000 * 512 + 4576 + 128 * 128 + 250 * 128 + 3 * 100 * 512)
    assert plan.kv_bytes(1000, 2) == each
    tokens = {row.kind: row.tokens for row in plan.allocate(1000, 2).layers}
    assert tokens == {"full": 2000, "cross": 200, "state": 0, "compressed": 256}
    steps = plan.explain(1000, 2)
    assert evaluate(steps)["kv_bytes"] == each
    without_encoder = prepare(model).plan
    assert without_encoder.kv_bytes(1000, 2) == each - 2 * 3 * 100 * 512
    assert all(step.value for step in without_encoder.explain(1000, 2))  # nothing is listed with 0 bytes


def test_llama_cpp_starts_with_at_most_256_sequences():
    plan = prepare(model_of(FULL), engine="llama.cpp").plan
    assert "at most 256 sequences: 257 need several contexts" in " ".join(plan.allocate(256, 257).notes)
    assert "at most 256" not in " ".join(plan.allocate(256, 256).notes)


def test_llama_cpp_says_where_no_run_of_a_state_is_recorded():
    assert "no run of it is recorded" in " ".join(
        prepare(model_of(STATE), engine="llama.cpp").plan.allocate(9, 1).notes
    )
    assert not prepare(load("qwen3.5-27b"), engine="llama.cpp").plan.allocate(9, 1).notes


def test_llama_cpp_gives_a_cache_to_the_first_20_layers_of_a_gemma_3n():
    long, short = (model_of(*[FULL] * count, model_type="gemma3n") for count in (30, 20))
    note = "first 20 layers of a Gemma 3n"
    assert note in " ".join(prepare(long, engine="llama.cpp").plan.allocate(512, 1).notes)
    assert note not in " ".join(prepare(short, engine="llama.cpp").plan.allocate(512, 1).notes)


LATENT = {"rank": 512, "rope_dim": 64, "num_heads": 16, "nope_dim": 128, "v_head_dim": 128}


@pytest.mark.parametrize(
    ("engine", "kind", "reason"),
    [
        ("vllm", Full(2, 64, 64, extra_state_bytes=64), "fixed state beside K and V, as model's"),
        ("vllm", Compressed(width=64, window=128), "known for DeepSeek V4's widths only"),
    ],
)
def test_what_nobody_has_read_in_an_engine_is_refused(engine, kind, reason):
    with pytest.raises(RefusalError) as refused:
        prepare(model_of(kind, model_type="deepseek_v2"), engine=engine)
    assert reason in refused.value.message


@pytest.mark.parametrize(
    ("kinds", "pages"),
    [
        ((FULL, STATE), 2 * 8192),  # 16 tokens of 512 bytes are a page of 8192 bytes, above the state's 4576
        # The sliding layer's page: 16 tokens of 1024 bytes. It takes one more, as a window may start inside a page.
        ((FULL, STATE, Sliding(128, 4, 64, 64)), 4 * 16384),
    ],
)
def test_vllm_pads_a_state_to_the_largest_page(kinds, pages):
    cache = prepare(model_of(*kinds), engine="vllm").plan.allocate(1, 1)
    rows = {row.kind: row.bytes for row in cache.layers}
    assert rows["state"] == 4576
    assert cache.bytes == sum(rows.values()) + cache.padding_bytes == pages


def test_vllm_pages_the_encoder_output_of_every_cross_layer():
    model, options = model_of(FULL, FULL, cross=Cross(2, 64, 64)), {"max_num_batched_tokens": 1500}
    cache = prepare(model, engine="vllm", encoder_tokens=1500, engine_options=options).plan.allocate(448, 1)
    rows = {row.kind: row for row in cache.layers}
    assert (rows["full"].count, rows["cross"].count) == (2, 2)
    assert rows["full"].bytes == 2 * 448 * 512
    assert rows["cross"].bytes == 2 * 1504 * 512  # 94 blocks of 16 hold 1500 tokens


def test_a_prefill_of_whole_chunks_peaks_at_its_last():
    def size(context):
        options = {"prefill_chunk": 256}
        model = model_of(Sliding(128, 2, 64, 64))
        return prepare(model, engine="transformers", engine_options=options).plan.kv_bytes(context, 1)

    assert size(512) == size(1024) == (127 + 256) * 512  # window - 1 tokens, and the chunk that arrives


def test_sglang_needs_room_for_the_full_layers_beside_a_pool_of_its_requests():
    options = {"max_running_requests": 8, "disable_radix_cache": True}
    plan = prepare(load("gpt-oss-20b"), engine="sglang", engine_options=options).plan
    with pytest.raises(UnsupportedError, match="leaves no room for the full layers"):
        plan.report(1, 1, 1024)
    assert plan.report(1, 1, plan.required_kv_memory(1, 1))["fits"]


def test_sglang_starts_with_no_less_than_a_page():
    plan = prepare(load("llama-3.1-8b"), engine="sglang", engine_options={"page_size": 64}).plan
    with pytest.raises(UnsupportedError, match="not one page of tokens fits"):
        plan.report(1, 1, 63 * 131072)  # a token is 131,072 bytes
