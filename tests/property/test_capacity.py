"""The inverse: at the answer it fits, and one token or one sequence more does not, in every engine."""

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import setups, uniform

from kvcalc import capacity, kv_cache_bytes
from kvcalc.fitting import Memory, capacity_of
from kvcalc.units import MAX_TOKENS, largest

budgets = st.integers(0, 2**20) | st.integers(0, 2**40)
contexts = st.integers(1, 2**21)
batches = st.integers(1, 300)


@settings(max_examples=80)
@given(setups(), budgets, contexts, batches)
def test_it_fits_at_the_answer_and_not_one_step_beyond(setup, kv_memory, context, batch_size):
    answer = capacity_of(setup, Memory(kv_memory), context, batch_size)
    required, engine = setup.plan.required_kv_memory, setup.engine

    def allowed(tokens: int, sequences: int) -> bool:
        longest, most = engine.context_limit_at(sequences), engine.batch_limit
        return (longest is None or tokens <= longest) and (most is None or sequences <= most)

    def serves(tokens: int, sequences: int) -> bool:
        return allowed(tokens, sequences) and required(tokens, sequences) <= answer.kv_memory

    if answer.max_context is None:
        assert serves(MAX_TOKENS, batch_size)
    else:
        assert answer.max_context == 0 or serves(answer.max_context, batch_size)
        assert not serves(answer.max_context + 1, batch_size)
    if answer.max_batch_size is None:
        assert serves(context, MAX_TOKENS)
    else:
        assert answer.max_batch_size == 0 or serves(context, answer.max_batch_size)
        assert not serves(context, answer.max_batch_size + 1)
    assert answer.fits == serves(context, batch_size)


@settings(max_examples=60)
@given(setups(), budgets, contexts, batches)
def test_fits_says_the_same_as_both_answers(setup, kv_memory, context, batch_size):
    # A fixed n_ctx without n_seq_max is shared out in padded streams, whose sum rises and falls with the batch.
    assume(setup.engine.context_limit is None)
    answer = capacity_of(setup, Memory(kv_memory), context, batch_size)
    assert answer.fits == (answer.max_context is None or context <= answer.max_context)
    assert answer.fits == (answer.max_batch_size is None or batch_size <= answer.max_batch_size)


@settings(max_examples=40)
@given(setups(), contexts, batches)
def test_the_required_memory_is_the_smallest_that_fits(setup, context, batch_size):
    required = capacity_of(setup, Memory(0), context, batch_size).required_kv_memory
    assume(required)
    assert capacity_of(setup, Memory(required), context, batch_size).fits
    short = capacity_of(setup, Memory(required - 1), context, batch_size)
    assert (short.fits, short.missing_bytes) == (False, 1)


@settings(max_examples=40)
@given(uniform(), contexts, batches)
def test_the_answer_for_its_own_footprint_is_at_least_itself(model, context, batch_size):
    size = kv_cache_bytes(model, context=context, batch_size=batch_size)
    answer = capacity(model, kv_memory=size, context=context, batch_size=batch_size)
    assert answer.fits
    assert answer.max_context is None or answer.max_context >= context
    assert answer.max_batch_size == batch_size


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_largest_finds_the_last_number_that_holds_in_a_logarithm_of_steps(edge, most):
    asked_about = []

    def holds(number: int) -> bool:
        asked_about.append(number)
        return number <= edge

    assert largest(holds, most) == min(edge, most)
    assert len(asked_about) <= 2 * (min(edge, most) + 1).bit_length() + 2
    assert all(1 <= number <= most for number in asked_about)
