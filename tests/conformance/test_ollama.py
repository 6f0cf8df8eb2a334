"""Ollama as llama.cpp with its own parameters, and against published Ollama logs of one slot."""

from typing import Any

import pytest

import kvcalc
from kvcalc.architecture import Architecture, Full, Layer, State
from kvcalc.derivation import evaluate
from kvcalc.errors import InputError, UnsupportedError
from kvcalc.setup import prepare
from kvcalc.units import GiB, MiB


def bytes_of(model: Architecture, context: int, batch_size: int = 1, engine: str = "ollama", **options: Any) -> int:
    return kvcalc.kv_cache_bytes(model, context=context, batch_size=batch_size, engine=engine, engine_options=options)


def test_gemma_3_1b_takes_38_mib_at_4k() -> None:
    assert bytes_of(kvcalc.load("gemma-3-1b"), 4096) == 38 * MiB


def test_flash_attention_and_latents_are_what_llama_cpp_has_by_default() -> None:
    # Without flash attention V would be as wide as the widest layer; without the latent, 128 heads would be kept.
    for name in ("gemma-4-31b", "deepseek-v3"):
        model = kvcalc.load(name)
        assert bytes_of(model, 8192) == bytes_of(model, 8192, engine="llama.cpp", n_ubatch=1024)


def test_qwen_3_30b_takes_3_gib_at_32k() -> None:
    layer = Layer(cache=Full(num_kv_heads=4, head_dim=128, v_head_dim=128))
    order = (0,) * 48
    model = Architecture(
        name="qwen3-30b-a3b", model_type="qwen3_moe", layers=(layer,), order=order, hidden_size=2048, vocab_size=0
    )
    assert bytes_of(model, 32768) == 3 * GiB


@pytest.mark.parametrize(
    ("context", "num_batch"), [(2048, 512), (4096, 512), (4097, 1024), (32768, 1024), (32769, 2048), (131072, 2048)]
)
def test_the_batch_grows_with_the_context_and_with_it_the_sliding_cache(context: int, num_batch: int) -> None:
    model = kvcalc.load("gemma-3-27b")
    assert bytes_of(model, context) == bytes_of(model, context, engine="llama.cpp", n_ubatch=num_batch)
    made = prepare(model, engine="ollama").plan
    assert made.report(context, 1, 0)["cells_swa"] == min(-(-context // 256) * 256, 1024 + num_batch)


def test_slots_have_streams_of_their_own_and_count_in_the_batch() -> None:
    model = kvcalc.load("gemma-3-12b")
    report = prepare(model, engine="ollama").plan.report(4096, 4, 0)  # 16,384 tokens in all: a batch of 1024
    assert (report["streams"], report["n_ctx_per_seq"], report["cells_swa"]) == (4, 4096, 2048)
    assert bytes_of(model, 4096, num_parallel=4) == bytes_of(model, 4096, 4)
    assert bytes_of(model, 4096, 4, num_batch=512) == bytes_of(model, 4096, 4, engine="llama.cpp")


@pytest.mark.parametrize(("context", "batch_size"), [(100, 1), (4096, 1), (4096, 2), (40000, 3)])
@pytest.mark.parametrize("options", [{}, {"num_parallel": 2}, {"num_batch": 300}])
def test_the_shown_formula_gives_the_shown_number(context: int, batch_size: int, options: dict[str, int]) -> None:
    made = prepare(kvcalc.load("gemma-3-4b"), engine="ollama", engine_options=options).plan
    steps = made.explain(context, batch_size)
    assert evaluate(steps) == {step.symbol: step.value for step in steps}
    cache = made.allocate(context, batch_size)
    assert steps[-1].value == made.kv_bytes(context, batch_size) == cache.bytes == sum(r.bytes for r in cache.layers)


def test_k_and_v_have_one_type_because_one_variable_sets_both() -> None:
    with pytest.raises(UnsupportedError, match="one type"):
        kvcalc.kv_cache_bytes(kvcalc.load("gemma-3-1b"), context=1024, engine="ollama", kv_cache_dtype="q8_0/f16")


def test_the_default_type_is_f16_and_an_unknown_version_is_refused() -> None:
    setup = prepare(kvcalc.load("gemma-3-1b"), engine="ollama")
    assert (setup.k_dtype.name, setup.v_dtype.name) == ("float16", "float16")
    with pytest.raises(InputError, match="fb30760996"):
        bytes_of(kvcalc.load("gemma-3-1b"), 1024, version="latest")


@pytest.mark.parametrize(
    ("model", "dtype", "parallel", "printed"),
    [("gemma-3-12b", "f16", 1, 992.0), ("gemma-3-4b", "q8_0", 4, 341.0)],  # ollama issues 12000 and 10061
)
def test_the_estimate_of_ollamas_own_engine_is_what_its_logs_print(
    model: str, dtype: str, parallel: int, printed: float
) -> None:
    options = {"version": "0.11", "num_parallel": parallel, "num_batch": 512}
    made = prepare(kvcalc.load(model), engine="ollama", kv_cache_dtype=dtype, engine_options=options).plan
    report = made.report(8192 // parallel, parallel, 0)
    assert report["memory_required_kv"] == printed * MiB
    assert report["streams"] == 1  # and what it allocates is one cache for all slots
    assert made.kv_bytes(8192 // parallel, parallel) >= report["memory_required_kv"]


def test_the_estimate_counts_every_layer_of_other_models_in_full() -> None:
    def estimate(name: str, dtype: str = "f16") -> int:
        setup = prepare(kvcalc.load(name), engine="ollama", kv_cache_dtype=dtype, engine_options={"version": "0.13"})
        found: int = setup.plan.report(4096, 1, 0)["memory_required_kv"]
        return found

    assert estimate("llama-3.1-8b") == 512 * MiB
    assert estimate("llama-3.1-8b", "q4_0") == 128 * MiB  # half a byte for each number, without the scales
    assert estimate("gpt-oss-20b") == (12 * (4096 + 512) + 12 * 4096) * 2 * 8 * 64 * 2
    # 6 layers of attention; 10 convolutions of 2,048 channels keep 2 columns of 4 bytes.
    assert estimate("lfm2-1.2b") == 6 * 4096 * 2 * 8 * 64 * 2 + 10 * 4 * 2048 * 2
    assert estimate("deepseek-v2-lite") == 27 * 4096 * (512 + 64 + 512) * 2


@pytest.mark.parametrize(
    ("version", "followed", "note"),
    [
        ("0.6.3", "0.13", ""),
        ("v0.13.1", "0.13", ""),
        ("0.14.0", "0.13", "after"),
        ("0.5.13", "0.13", "before"),
        ("fb30760996", "fb30760996", ""),
    ],
)
def test_releases_of_2025_follow_the_rule_of_their_own_engine(version: str, followed: str, note: str) -> None:
    setup = prepare(kvcalc.load("gemma-3-1b"), engine="ollama", engine_options={"version": version})
    assert setup.engine.followed_version == followed
    assert any(note in each for each in setup.plan.allocate(1024, 1).notes) == bool(note)


def test_a_draft_opens_a_second_context_and_keeps_a_state_for_each_token_that_it_proposes() -> None:
    attention, state = Full(2, 128, 128), State(recurrent_elements=1000)
    layers = (Layer(cache=attention), Layer(cache=state))
    model = Architecture("toy", "qwen3_5", layers, (1, 1, 1, 0), 64, 256, mtp_layers=(layers[0],))
    alone, drafted = (prepare(model, engine="ollama", draft=draft).plan for draft in (None, "mtp"))
    each = 2048 * 2 * 2 * 128 * 2
    assert alone.kv_bytes(2048, 1) == each + 3 * 4 * 1000
    assert drafted.kv_bytes(2048, 1) == 2 * each + 5 * 3 * 4 * 1000  # draft_num_predict is 4
    assert drafted.allocate(2048, 1).draft_bytes == each
    with pytest.raises(UnsupportedError, match="no draft models"):
        prepare(model, engine="ollama", draft="mtp", engine_options={"version": "0.12"})
