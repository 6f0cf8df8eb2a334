"""Laws of llama.cpp's and Ollama's caches that hold for every workload."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

import kvcalc
from kvcalc.derivation import evaluate
from kvcalc.setup import prepare

MODEL = kvcalc.load("gemma-3-1b")
CONTEXTS = st.integers(1, 200_000)
BATCHES = st.integers(1, 256)
LAUNCHES = st.one_of(
    st.tuples(
        st.just("llama.cpp"),
        st.fixed_dictionaries(
            {
                "n_batch": st.integers(1, 5000),
                "n_ubatch": st.integers(0, 5000),
                "kv_unified": st.booleans(),
                "swa_full": st.booleans(),
            }
        ),
    ),
    st.tuples(st.just("ollama"), st.fixed_dictionaries({}, optional={"num_batch": st.integers(1, 5000)})),
)
Launch = tuple[str, dict[str, Any]]


@given(LAUNCHES, CONTEXTS, BATCHES)
def test_more_tokens_or_sequences_never_take_fewer_bytes(launch: Launch, context: int, batch_size: int) -> None:
    plan = prepare(MODEL, engine=launch[0], engine_options=launch[1]).plan
    size = plan.required_kv_memory(context, batch_size)
    assert plan.required_kv_memory(context + 1, batch_size) >= size
    assert plan.required_kv_memory(context, batch_size + 1) >= size


@given(LAUNCHES, CONTEXTS, BATCHES)
def test_rows_formula_and_fast_path_agree(launch: Launch, context: int, batch_size: int) -> None:
    plan = prepare(MODEL, engine=launch[0], engine_options=launch[1]).plan
    cache, steps = plan.allocate(context, batch_size), plan.explain(context, batch_size)
    assert sum(row.bytes for row in cache.layers) + cache.padding_bytes == cache.bytes
    assert evaluate(steps)["kv_bytes"] == cache.bytes == plan.kv_bytes(context, batch_size)


@given(LAUNCHES, CONTEXTS, BATCHES)
def test_a_reservation_holds_at_least_the_accounting(launch: Launch, context: int, batch_size: int) -> None:
    ideal = kvcalc.kv_cache_bytes(MODEL, context=context, batch_size=batch_size)
    assert prepare(MODEL, engine=launch[0], engine_options=launch[1]).plan.kv_bytes(context, batch_size) >= ideal
