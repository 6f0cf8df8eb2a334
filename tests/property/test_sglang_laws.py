"""Laws of SGLang's pools: monotone, and a budget that is exact to the byte."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kvcalc.architecture import Architecture, Full, Layer, Sliding
from kvcalc.dtypes import BFLOAT16
from kvcalc.engines.sglang import SGLang
from kvcalc.engines.sglang.pools import Pool, sliding_pool
from kvcalc.errors import RefusalError
from kvcalc.setup import Setup

pages = st.sampled_from([1, 16, 64, 128])
layers = st.integers(1, 80)
token_bytes = st.integers(1, 5000).map(lambda units: 2 * units)
ratios = st.sampled_from([0.1, 0.25, 1 / 3, 0.8, 1.0]) | st.floats(1e-3, 1.0)


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    page = draw(pages)
    if draw(st.booleans()):
        return Pool("plain", page, draw(layers) * draw(token_bytes), least_tokens=page)
    return sliding_pool(
        page,
        full_bytes=draw(layers) * draw(token_bytes),
        swa_bytes=draw(layers) * draw(token_bytes),
        ratio=draw(ratios),
        sliding_window_size=draw(st.integers(1, 8192)),
        request_cap=draw(st.none() | st.integers(1, 100_000)),
    )


@given(pool=pools(), wanted=st.integers(1, 10**8))
@settings(max_examples=80)
def test_one_byte_less_than_the_budget_does_not_reach_the_tokens(pool: Pool, wanted: int) -> None:
    tokens = max(-(-wanted // pool.page_size) * pool.page_size, pool.least_tokens)
    budget = pool.budget(tokens)
    assert pool.starting_tokens(budget) == tokens
    assert pool.main_tokens(budget - 1) < tokens


@given(pool=pools())
@settings(max_examples=60)
def test_the_least_pool_starts_and_one_page_less_does_not(pool: Pool) -> None:
    assert pool.starts_with(pool.least_tokens)
    assert not pool.starts_with(pool.least_tokens - pool.page_size)


@given(pool=pools(), memory=st.integers(0, 10**13), more=st.integers(0, 10**9))
@settings(max_examples=60)
def test_more_memory_never_holds_fewer_tokens(pool: Pool, memory: int, more: int) -> None:
    try:
        tokens = pool.starting_tokens(memory)
    except RefusalError:
        return
    assert pool.starting_tokens(memory + more) >= tokens
    assert pool.budget(tokens) <= memory


engines = st.builds(
    SGLang,
    page_size=pages,
    swa_full_tokens_ratio=ratios,
    max_running_requests=st.none() | st.integers(1, 64),
    disable_radix_cache=st.booleans(),
)


@given(context=st.integers(1, 10**6), batch=st.integers(1, 64), window=st.integers(1, 4096), engine=engines)
@settings(max_examples=60)
def test_bytes_and_budget_never_fall_with_context_or_batch(
    context: int, batch: int, window: int, engine: SGLang
) -> None:
    full = Full(num_kv_heads=2, head_dim=64, v_head_dim=64)
    local = Sliding(window=window, num_kv_heads=4, head_dim=32, v_head_dim=64)
    model = Architecture(
        name="m",
        model_type="gpt_oss",
        layers=(Layer(cache=full), Layer(cache=local)),
        order=(0, 1, 1, 0, 1),
        hidden_size=8,
        vocab_size=0,
    )
    plan = Setup(model, engine, BFLOAT16, BFLOAT16).plan
    for more_context, more_batch in ((context + 1, batch), (context, batch + 1)):
        assert plan.kv_bytes(context, batch) <= plan.kv_bytes(more_context, more_batch)
        assert plan.required_kv_memory(context, batch) <= plan.required_kv_memory(more_context, more_batch)
