"""How many users a pool serves, and the terms that a log prints in place of a formula's."""

from fractions import Fraction

import pytest

import kvcalc
from kvcalc.engines.base import WorkingMemory
from kvcalc.fitting import Measured, Memory
from kvcalc.logs.measured import measured, terms_of
from kvcalc.logs.verdict import read
from kvcalc.setup import prepare
from kvcalc.sources.devices import load_device
from kvcalc.users import most_users

GIB = 2**30


@pytest.mark.parametrize(
    ("model", "options", "shared"),
    [
        # 2,047 tokens are 127 whole blocks of 16; K and V of a token are 131,072 bytes in 32 layers.
        ("llama-3.1-8b", {}, 127 * 16 * 131072),
        ("llama-3.1-8b", {"block_size": 64}, 31 * 64 * 131072),
        # Ten full layers in groups of ten: their blocks alone, 1 MiB and more each, are shared; windows are not.
        ("gemma-3-27b", {}, 127 * 1310720),
    ],
)
def test_vllm_shares_whole_blocks_of_the_groups_that_keep_all(model, options, shared):
    setup = prepare(model, engine="vllm", engine_options=options)
    apart = setup.plan.required_kv_memory(8192, 5)
    assert apart - setup.engine.required_with_prefix(setup, 8192, 5, 2047) == 4 * shared


def test_sglang_shares_whole_pages():
    setup = prepare("llama-3.1-8b", engine="sglang", engine_options={"page_size": 64})
    apart = setup.plan.required_kv_memory(8192, 5)
    assert apart - setup.engine.required_with_prefix(setup, 8192, 5, 2047) == 4 * 31 * 64 * 131072


@pytest.mark.parametrize(
    ("model", "engine", "options", "reason"),
    [
        ("llama-3.1-8b", "vllm", {"enable_prefix_caching": False}, "enable_prefix_caching is off"),
        ("qwen3.5-27b", "vllm", {}, "not modelled for vllm's states"),
        ("llama-3.1-8b", "sglang", {"disable_radix_cache": True}, "disable_radix_cache"),
        ("qwen3.5-27b", "sglang", {}, "not modelled for sglang's states"),
        ("llama-3.1-8b", "transformers", {}, "each row of a batch its cache"),
        ("llama-3.1-8b", "mlx-lm", {}, "copied to each request"),
        ("llama-3.1-8b", "tensorrt-llm", {}, "not modelled for tensorrt-llm"),
    ],
)
def test_an_engine_that_shares_no_prefix_is_asked_in_vain(model, engine, options, reason):
    setup = prepare(model, engine=engine, engine_options=options)
    with pytest.raises(kvcalc.KVCalcError, match=reason):
        setup.engine.required_with_prefix(setup, 8192, 5, 2048)


def test_nothing_bounds_users_of_a_cache_that_takes_nothing_more():
    setup = prepare("llama-3.1-8b", engine="vllm", engine_options={"max_num_seqs": 4})
    assert most_users(setup, Memory(kv_memory=2**40), 1024, prefix=512) == 4
    assert most_users(setup, Memory(kv_memory=2**20), 1024) == 0


# ---- terms of a log ----


def test_terms_stand_in_place_of_formulas_and_the_rest_stays():
    setup = prepare("llama-3.1-8b", engine="vllm")
    place = load_device("h100-80gb")
    formula = Memory(device=place).pool(setup, 8192, 1)
    terms = Measured("server.log", activation_bytes=GIB)
    pool = Memory(device=place, measured=(terms, setup)).pool(setup, 8192, 1)
    assert pool.working_memory.activation_bytes == GIB
    assert pool.working_memory.graph_bytes == formula.working_memory.graph_bytes
    assert pool.kv_memory - formula.kv_memory == formula.working_memory.activation_bytes - GIB
    assert (pool.weights_bytes, pool.measured) == (formula.weights_bytes, terms)
    other = prepare("llama-3.1-8b", engine="vllm", weights_dtype="fp8")
    assert Memory(device=place, measured=(terms, setup)).pool(other, 8192, 1).measured is None


def test_terms_of_a_log_are_enough_where_no_formula_holds():
    setup = prepare("llama-3.1-8b", engine="vllm")
    place = load_device("dgx-spark")
    assert Memory(device=place).pool(setup, 8192, 1).not_modelled
    half = Measured("server.log", activation_bytes=GIB)
    whole = Measured("server.log", activation_bytes=GIB, runtime_bytes=GIB, graph_bytes=GIB, weights_bytes=50 * GIB)
    assert Memory(device=place, measured=(half, setup)).pool(setup, 8192, 1).not_modelled
    pool = Memory(device=place, measured=(whole, setup)).pool(setup, 8192, 1)
    assert (pool.not_modelled, pool.working_memory.share_bytes, pool.weights_bytes) == ("", 3 * GIB, 50 * GIB)


def test_graphs_beside_the_share_stay_there():
    old = prepare("llama-3.1-8b", engine="vllm", engine_options={"version": "0.19.0"})
    working = old.engine.working_memory(old, load_device("h100-80gb"), 8192, 1)
    printed = Measured("server.log", activation_bytes=GIB, runtime_bytes=GIB, graph_bytes=5 * GIB).over(working)
    assert (printed.share_bytes, printed.total_bytes) == (2 * GIB, 7 * GIB)
    assert Measured("x").over(WorkingMemory(1, 2, 3, 4, 3)).share_bytes == 3


H100 = load_device("h100-80gb")
LLAMA = prepare("llama-3.1-8b", engine="vllm")


def report(*lines):
    return read([(line, False) for line in lines])


def test_the_terms_of_vllm_by_version():
    old = report(
        "Model loading took 14.99 GiB",
        "model weights take 14.99GiB; non_torch_memory takes 0.13GiB; PyTorch activation peak memory takes 1.18GiB; "
        "the rest of the memory reserved for KV Cache is 54.97GiB.",
    )
    assert measured(old, LLAMA, H100, "x")[0].printed == {
        "weights_bytes": int(14.99 * GIB),
        "activation_bytes": int(1.18 * GIB),
        "runtime_bytes": int(0.13 * GIB),
    }
    # Weights and non-torch in one, and the estimate of the graphs within the activations.
    new = report(
        "Available KV cache memory: 54.93 GiB",
        "Model loading took 14.99 GiB",
        "Actual usage is 15.24 GiB for consumed memory (weights + non-torch), 2.68 GiB for peak activation, and",
        "CUDA graph pool memory: 0.91 GiB (actual), 0.84 GiB (estimated), difference: 0.07 GiB (7.7%).",
    )
    found = measured(new, LLAMA, H100, "x")[0]
    assert [round(size / GIB, 2) for size in found.printed.values()] == [14.99, 1.84, 0.25, 0.84]
    # Without the estimate nobody can take it from the activations.
    taken = "Actual usage is 15.24 GiB for consumed memory (weights + non-torch), 2.68 GiB for peak activation, and"
    blind = report("Model loading took 14.99 GiB", taken, "GPU KV cache size: 449,984 tokens")
    assert set(measured(blind, LLAMA, H100, "x")[0].printed) == {"weights_bytes", "runtime_bytes"}
    blind = report("Model loading took 14.99 GiB", "GPU KV cache size: 449,984 tokens")
    assert set(measured(blind, LLAMA, H100, "x")[0].printed) == {"weights_bytes"}


@pytest.mark.parametrize(("setup", "utilization"), [(LLAMA, "0.92"), (prepare("qwen3.5-27b", engine="vllm"), "0.95")])
def test_a_pool_that_is_printed_says_what_all_else_takes(setup, utilization):
    printed = report(
        f"non-default args: {{'gpu_memory_utilization': {utilization}}}",
        "Model loading took 14.99 GiB",
        "Available KV cache memory: 52.93 GiB",
    )
    terms, notes = measured(printed, setup, H100, "server.log")
    assert notes[-1] == "activations are the rest that server.log leaves between its share and its pool"
    pool = Memory(device=H100, utilization=Fraction(utilization), measured=(terms, setup)).pool(setup, 8192, 1)
    assert (pool.kv_memory, pool.not_modelled) == (int(52.93 * GIB), "")
    fixed = report(
        "non-default args: {'kv_cache_memory_bytes': 1}",
        "Model loading took 14.99 GiB",
        "Available KV cache memory: 9 GiB",
    )
    assert "activation_bytes" not in measured(fixed, setup, H100, "x")[0].printed


def test_the_terms_of_llama_cpp_are_those_of_the_device_with_the_weights():
    log = report(
        "llama_kv_cache: size = 4096.00 MiB ( 32768 cells, 32 layers, 1/1 seqs), K (f16): 2048.00 MiB",
        "load_tensors:   CPU_Mapped model buffer size =   281.81 MiB",
        "load_tensors:        CUDA0 model buffer size =  4403.49 MiB",
        "llama_context:      CUDA0 compute buffer size =   258.50 MiB",
        "llama_memory_breakdown_print: | - CUDA0 (RTX 4090) | 24080 = 14000 + (9020 = 4403 + 4096 + 258) + 549 |",
    )
    found, _ = measured(log, prepare("llama-3.1-8b", engine="llama.cpp"), H100, "llama.log")
    assert found.printed == {
        "weights_bytes": int(4403.49 * 2**20),
        "activation_bytes": int(258.5 * 2**20),
        "runtime_bytes": 549 * 2**20,
    }
    on_the_processor = report("llama_kv_cache: size = 4096.00 MiB ( 32768 cells, 32 layers, 1/1 seqs)")
    assert not terms_of(on_the_processor.starts[-1])
    with pytest.raises(kvcalc.KVCalcError, match=r"no term of a device's memory in vllm's words"):
        measured(on_the_processor, LLAMA, H100, "x")


def test_the_terms_of_ollama_are_those_of_a_device():
    log = report(
        'msg="kv cache" device=CUDA0 size="1.0 GiB"',
        'msg="model weights" device=CUDA0 size="4.1 GiB"',
        'msg="model weights" device=CPU size="281.8 MiB"',
        'msg="compute graph" device=CUDA0 size="98.0 MiB"',
    )
    setup = prepare("llama-3.1-8b", engine="ollama")
    assert measured(log, setup, H100, "x")[0].printed == {
        "weights_bytes": int(4.1 * GIB),
        "activation_bytes": 98 * 2**20,
    }
    assert not terms_of(report('msg="kv cache" device=CUDA0 size="1.0 GiB"').starts[-1])
