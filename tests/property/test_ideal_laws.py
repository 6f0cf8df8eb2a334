"""The laws of the report's accounting, over random architectures of every layer kind."""

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import architectures

from kvcalc import footprint, kv_cache_bytes
from kvcalc.architecture import kind_label, window_of
from kvcalc.derivation import evaluate
from kvcalc.setup import prepare

contexts = st.integers(1, 2**21)
batches = st.integers(1, 1000)


@given(architectures(), contexts, batches)
def test_the_fast_path_and_the_breakdown_give_the_same_number(model, context, batch_size):
    made = footprint(model, context=context, batch_size=batch_size)
    cache = made.kv_cache
    assert cache.bytes == kv_cache_bytes(model, context=context, batch_size=batch_size)
    assert cache.bytes == sum(row.bytes for row in cache.layers) + cache.padding_bytes
    assert cache.ideal_bytes == cache.steady_bytes == cache.bytes
    assert sum(row.count for row in cache.layers) >= model.num_layers


@given(architectures(), contexts, batches)
def test_it_is_monotone_in_context_and_linear_in_batch(model, context, batch_size):
    one = kv_cache_bytes(model, context=context)
    assert one <= kv_cache_bytes(model, context=context + 1)
    assert kv_cache_bytes(model, context=context, batch_size=batch_size) == batch_size * one


@given(architectures(), contexts)
def test_it_is_a_sum_over_layers(model, context):
    total = sum(row.bytes for row in footprint(model, context=context).kv_cache.layers)
    alone = 0
    for layer, count in zip(model.layers, model.layer_counts, strict=True):
        alone += count * kv_cache_bytes(model.changed(layers=(layer,), order=(0,)), context=context)
    assert alone == total


@given(architectures())
def test_a_window_saturates(model):
    widest = max((window_of(kind) or 0 for kind, _ in model.caches), default=0)
    for kind, _ in model.caches:
        if window_of(kind) is None or kind.kind == "compressed":
            continue
        label = kind_label(kind)
        sizes = [
            sum(row.bytes for row in footprint(model, context=at).kv_cache.layers if row.label == label)
            for at in (max(1, widest), 2 * widest + 7)
        ]
        assert sizes[0] == sizes[1]


@given(architectures(), contexts, batches)
def test_the_shown_formula_evaluates_to_the_shown_number(model, context, batch_size):
    plan = prepare(model).plan
    steps = plan.explain(context, batch_size)
    values = evaluate(steps)
    assert all(values[step.symbol] == step.value for step in steps)
    assert steps[-1].value == plan.kv_bytes(context, batch_size)


@given(architectures(), contexts, st.sampled_from([2, 3, 8, 64]))
@settings(max_examples=50)
def test_tensor_parallelism_never_counts_less_than_its_share(model, context, tp):
    heads = [getattr(getattr(kind, "attention", kind), "num_kv_heads", 1) for kind, _ in model.caches]
    assume(all(count % tp == 0 or count < tp for count in heads))  # 5 // 2 heads: the report's accounting rounds down
    one = kv_cache_bytes(model, context=context)
    assert one <= tp * kv_cache_bytes(model, context=context, tensor_parallel_size=tp)
