"""Laws of prefixes that all sequences share: never more memory than apart, and all of it given back."""

from hypothesis import given, settings
from hypothesis import strategies as st

import kvcalc
from kvcalc.fitting import Memory
from kvcalc.setup import prepare
from kvcalc.users import most_users, required_by

MODELS = {name: kvcalc.load(name) for name in ("llama-3.1-8b", "gemma-3-27b", "deepseek-v2-lite")}
QUESTIONS = st.tuples(st.sampled_from(sorted(MODELS)), st.sampled_from(("vllm", "sglang")), st.integers(2, 65_536))


@settings(max_examples=60)
@given(QUESTIONS, st.integers(1, 300), st.data())
def test_what_is_shared_is_held_once(question, sequences, data):
    model, engine, context = question
    setup = prepare(MODELS[model], engine=engine)
    apart = required_by(setup, context, sequences, 0)
    prefix = data.draw(st.integers(1, context - 1))
    shared, longer = (required_by(setup, context, sequences, tokens) for tokens in (prefix, context - 1))
    assert longer <= shared <= apart
    assert required_by(setup, context, 1, prefix) == required_by(setup, context, 1, 0)
    # Each further sequence still takes what it does not share.
    assert required_by(setup, context, sequences + 1, prefix) >= shared


@settings(max_examples=20, deadline=None)
@given(QUESTIONS, st.integers(2**30, 2**37))
def test_a_shared_prefix_never_costs_a_user(question, kv_memory):
    model, engine, context = question
    setup, memory = prepare(MODELS[model], engine=engine), Memory(kv_memory=kv_memory)
    alone, shared = most_users(setup, memory, context), most_users(setup, memory, context, prefix=context // 2)
    assert shared is None or alone is None or shared >= alone
