"""What fits: the pool by its terms, the engines' own figures, refusals, several devices, levers."""

import tomllib
from fractions import Fraction

import pytest

from kvcalc import GiB, KVCalcError, capacity, footprint, kv_cache_bytes, load
from kvcalc.architecture import Architecture, Layer, State
from kvcalc.errors import InputError, UnsupportedError
from kvcalc.fitting import Memory, capacity_of, fits, parse_utilization, replicas
from kvcalc.levers import levers
from kvcalc.setup import prepare
from kvcalc.sources.devices import find_device

GEMMA_27B = load("gemma-3-27b")
WEIGHTS = footprint(GEMMA_27B, context=1).weights.bytes

# What vLLM 0.33.0's own planner answered: context, batched tokens, tp, pool -> blocks, bytes, logged tokens,
# concurrency, estimated maximum length.
VLLM = [
    ("gemma-2-2b", 4096, 2048, 1, 42949672960, 50412, 437059584, 402509, 98.26900584795321, 798368),
    ("gemma-3-1b", 131072, 8192, 4, 42949672960, 655360, 952500224, 5910234, 45.09150956378148, 10384272),
    ("gemma-3-1b", 100003, 8192, 1, 23456789012, 357922, 825294848, 2842315, 28.422298102120227, 5625264),
]
# What SGLang 0.5.23's pool configurator answered: pool, tp, page -> tokens, full and sliding tokens, bytes.
SGLANG = [
    ("gpt-oss-20b", 42949672960, 1, 1, 970903, 970903, 776722, 42949681152),
    ("gpt-oss-20b", 42949672960, 2, 64, 1941760, 1941760, 1553408, 42950197248),
    ("gemma-3-1b", 42949672960, 1, 1, 1613193, None, None, 42949677056),
]


@pytest.mark.parametrize(
    ("model", "context", "batched", "tp", "pool", "blocks", "request_bytes", "logged", "concurrency", "longest"), VLLM
)
def test_vllm_says_what_its_planner_says(
    model, context, batched, tp, pool, blocks, request_bytes, logged, concurrency, longest
):
    answer = capacity(
        load(model),
        kv_memory=pool,
        context=context,
        engine="vllm",
        engine_options={"max_num_batched_tokens": batched},
        tensor_parallel_size=tp,
    )
    report = answer.engine_report
    assert report["num_gpu_blocks"] == blocks
    assert report["max_request_bytes"] == request_bytes
    assert report["gpu_kv_cache_size_tokens"] == logged
    assert report["max_concurrency"] == concurrency
    assert report["estimated_max_model_len"] == answer.max_context == longest
    assert report["fits"] == answer.fits


@pytest.mark.parametrize(("model", "pool", "tp", "page", "tokens", "full", "sliding", "allocated"), SGLANG)
def test_sglang_says_what_its_configurator_says(model, pool, tp, page, tokens, full, sliding, allocated):
    answer = capacity(
        load(model),
        kv_memory=pool,
        context=page,
        engine="sglang",
        engine_options={"page_size": page},
        tensor_parallel_size=tp,
    )
    assert answer.engine_report["max_total_num_tokens"] == tokens == answer.max_context
    assert answer.engine_report["full_max_total_num_tokens"] == full
    assert answer.engine_report["swa_max_total_num_tokens"] == sliding
    assert answer.engine_report["allocated_bytes"] == allocated
    assert answer.max_batch_size == tokens // page


def test_the_pool_keeps_every_term():
    pool = capacity(GEMMA_27B, device_memory=80 * GiB, reserve=2 * GiB, engine="vllm").pool
    assert pool.utilization == Fraction(23, 25)
    assert pool.usable_bytes == 80 * GiB * 92 // 100
    # Tables of 131,072 positions and of eight times as many, what the allocator rounds up in each of 62 layers, and
    # the preset's encoder of images.
    held = WEIGHTS + 9 * 131072 * 128 * 2 + 62 * 2**20 + 2 * 423_060_336
    assert (pool.weights_bytes, pool.reserve_bytes) == (held, 2 * GiB)
    assert pool.working_memory.share_bytes > 0
    assert pool.kv_memory == pool.usable_bytes - held - pool.working_memory.share_bytes - 2 * GiB


def test_the_terms_of_a_pool_are_what_is_taken_out_of_the_share():
    assert capacity(GEMMA_27B, kv_memory=GiB).pool.terms == ()
    for version, has_graphs in (("0.33.0", True), ("0.20.0", False)):
        asked = {"device": "h100-80gb", "engine": "vllm", "engine_options": {"version": version}}
        pool = capacity(GEMMA_27B, **asked).pool
        assert sum(term.size for term in pool.terms) == pool.working_memory.share_bytes
        assert ("graph_bytes" in [term.name for term in pool.terms]) == has_graphs


def test_the_utilization_is_the_engines_own_for_its_version_unless_given():
    def usable(**options):
        return capacity(GEMMA_27B, device_memory=100 * GiB, **options).pool.usable_bytes

    assert usable() == 100 * GiB
    assert usable(engine="vllm") == 92 * GiB
    assert usable(engine="vllm", engine_options={"version": "0.17.1"}) == 90 * GiB
    assert usable(engine="vllm", gpu_memory_utilization="0.85") == 85 * GiB


def test_a_utilization_is_exact_where_a_float_is_not():
    odd = 10**15 + 1  # floor(odd x 0.29) as a float is one byte off
    expected = odd * 29 // 100
    assert capacity(GEMMA_27B, device_memory=odd, gpu_memory_utilization="0.29").pool.usable_bytes == expected


@pytest.mark.parametrize("text", ["0", "1.01", "-0.5", "101%", "1e-1", "nan", "", "0.0"])
def test_a_utilization_is_a_decimal_above_0_and_at_most_1(text):
    with pytest.raises(InputError):
        parse_utilization(text)


def test_weights_that_do_not_fit_leave_a_negative_pool_and_no_report():
    answer = capacity(GEMMA_27B, device_memory=24 * GiB, context=1024, batch_size=2, engine="vllm")
    assert answer.kv_memory < 0
    assert (answer.fits, answer.max_context, answer.max_batch_size, answer.engine_report) == (False, 0, 0, {})
    assert answer.missing_bytes == answer.required_kv_memory - answer.kv_memory


def test_nothing_bounds_the_context_of_a_model_whose_layers_all_slide():
    local = load("gemma-2-2b@1:0/sw=512")
    answer = capacity(local, kv_memory=GiB)
    assert (answer.max_context, answer.max_batch_size, answer.fits) == (None, None, True)
    assert capacity(local, kv_memory=1).max_context == 0


def test_without_a_context_the_report_stands_at_the_longest_that_fits_at_most_the_models_own():
    assert capacity(GEMMA_27B, kv_memory=10**12).reported_context == GEMMA_27B.max_context
    short = capacity(GEMMA_27B, kv_memory=GiB)
    assert short.reported_context == short.max_context < GEMMA_27B.max_context
    assert (short.max_batch_size, short.required_kv_memory, short.missing_bytes) == (None, None, None)


def test_a_fixed_n_ctx_caps_the_context_of_a_sequence():
    def longest(batch_size=1, **options):
        return capacity(
            GEMMA_27B, kv_memory=10**12, batch_size=batch_size, engine="llama.cpp", engine_options=options
        ).max_context

    assert longest(n_ctx=8192) == 8192
    assert longest(n_ctx=8192, n_seq_max=2) == 4096
    assert longest(batch_size=2, n_ctx=8192) == 4096


def test_a_context_beyond_the_options_does_not_fit_and_raises_nothing():
    answer = capacity(GEMMA_27B, kv_memory=10**12, context=10**6, engine="llama.cpp", engine_options={"n_ctx": 8192})
    assert (answer.fits, answer.required_kv_memory, answer.missing_bytes) == (False, None, None)


def test_sequences_that_would_wait_are_not_served_at_a_time():
    answer = capacity(GEMMA_27B, kv_memory=10**12, context=1024, engine="ollama", engine_options={"num_parallel": 4})
    assert answer.max_batch_size == 4


def test_an_engine_that_refuses_to_start_raises():
    with pytest.raises(UnsupportedError, match="sliding"):
        capacity(load("gpt-oss-20b"), kv_memory=2**20, engine="sglang")


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"kv_memory": 1, "device_memory": 1},
        {"kv_memory": 1, "reserve": 1},
        {"kv_memory": 1, "gpu_memory_utilization": "0.9"},
        {"kv_memory": -1},
        {"kv_memory": 1.5},
        {"kv_memory": 1, "context": 0},
        {"kv_memory": 1, "batch_size": 0},
    ],
)
def test_a_question_without_one_sane_memory_is_refused(wrong):
    with pytest.raises(KVCalcError):
        capacity(GEMMA_27B, **wrong)


IN_VLLM, ON_80_GIB = prepare(GEMMA_27B, engine="vllm"), Memory(device=find_device(None, 80 * GiB))


def test_replicas_divide_heads_and_weights_and_count_whole_replicas():
    one, two, eight = replicas(IN_VLLM, ON_80_GIB, 32768, (1, 2, 8))
    assert one.capacity.pool.weights_bytes > two.capacity.pool.weights_bytes > eight.capacity.pool.weights_bytes
    assert one.sequences(8) == 8 * one.capacity.max_batch_size
    assert eight.sequences(8) == eight.capacity.max_batch_size
    assert two.sequences(1) == 0  # half a replica serves nobody
    each = two.capacity.max_batch_size
    assert (two.devices_for(each), two.devices_for(each + 1)) == (2, 4)


def test_a_latent_cache_is_never_divided():
    model = load("deepseek-v3")
    one, eight = replicas(prepare(model, engine="vllm"), Memory(40 * GiB), 32768, (1, 8))
    assert one.capacity.max_batch_size == eight.capacity.max_batch_size


def test_heads_that_do_not_divide_are_replicated():
    one, two = replicas(prepare(load("gemma-3-1b"), engine="vllm"), Memory(4 * GiB), 32768, (1, 2))  # one KV head
    assert one.capacity.max_batch_size == two.capacity.max_batch_size


def test_an_engine_that_does_not_divide_a_layer_says_so_in_the_replica():
    one, two = replicas(prepare(GEMMA_27B, engine="llama.cpp"), ON_80_GIB, 32768, (1, 2))
    assert one.capacity.max_batch_size
    assert two.capacity is None
    assert "tensor parallelism" in two.refusal
    assert (two.sequences(8), two.devices_for(1)) == (0, None)


def levers_in(setup, memory, reference, context, batch_size):
    def holds(changed, tokens, sequences):
        return fits(changed, memory, tokens, sequences)

    return {lever.name: lever for lever in levers(setup, context, batch_size, holds, reference)}


def test_every_lever_named_closes_the_gap():
    context, batch_size = 131072, 4
    found = levers_in(IN_VLLM, ON_80_GIB, "gemma-3-27b", context, batch_size)
    assert found.keys() >= {"context", "devices"}
    for lever in found.values():
        assert capacity_of(lever.setup, ON_80_GIB, lever.context, lever.batch_size).fits


def test_a_lever_is_written_as_a_command_and_as_a_line_of_a_file():
    setup = prepare(GEMMA_27B, engine="vllm", engine_options={"block_size": 32})
    pool = setup.plan.required_kv_memory(32768, 1) - 1
    found = levers_in(setup, Memory(pool), "gemma-3-27b@global", 32768, 1)
    option = found["engine option"]
    assert option.flags in ("-E async_scheduling=false", "-E max_num_batched_tokens=4096")
    assert option.toml.startswith("engine_options = {block_size = 32, ")
    assert tomllib.loads(option.toml)["engine_options"].items() >= {"block_size": 32, **option.value}.items()
    assert tomllib.loads(found["KV format"].toml) == {"kv_cache_dtype": "fp8"}
    assert found["KV format"].flags == "--kv-cache-dtype fp8"
    assert tomllib.loads(found["context"].toml) == {"context": found["context"].context}


def test_the_window_lever_is_the_widest_that_fits():
    model = load("gemma-2-2b")
    pool = kv_cache_bytes(load("gemma-2-2b@sw=1000"), context=8192)
    found = levers_in(prepare(model), Memory(pool), "gemma-2-2b", 8192, 1)
    assert found["window"].flags == "gemma-2-2b@sw=1000"
    assert not capacity(load("gemma-2-2b@sw=1001"), kv_memory=pool, context=8192).fits


def test_a_model_without_local_layers_is_offered_some():
    setup = prepare(load("llama-3.1-8b"))
    found = levers_in(setup, Memory(4 * GiB), "llama-3.1-8b", 65536, 1)
    assert found["window"].flags == "llama-3.1-8b@5:1/sw=1024"
    assert "train" in found["window"].consequence


def test_no_lever_is_named_that_the_engine_or_the_model_refuses():
    # llama.cpp divides no layer among devices, and a model of states alone has no layer to give a window.
    refused = prepare(load("gemma-3-27b"), engine="llama.cpp")
    assert "devices" not in levers_in(refused, Memory(2 * GiB), "gemma-3-27b", 131072, 4)
    layer = Layer(State(recurrent_elements=2**20))
    states = Architecture("states", "mamba2", (layer,), (0,) * 8, hidden_size=64, vocab_size=1000)
    assert "window" not in levers_in(prepare(states), Memory(2**20), "states", 4096, 4)
