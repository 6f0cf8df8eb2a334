"""Laws of the transformers engine: the closed form is what walking through every forward gives."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kvcalc.architecture import Architecture, Chunked, Full, Layer, LayerKind, Sliding
from kvcalc.derivation import evaluate
from kvcalc.setup import prepare

HEADS = {"num_kv_heads": 1, "head_dim": 64, "v_head_dim": 64}
WINDOWS = st.one_of(st.integers(1, 600), st.sampled_from([1, 2, 128]))
LAYERS: st.SearchStrategy[LayerKind] = st.one_of(
    st.just(Full(**HEADS)),
    WINDOWS.map(lambda window: Sliding(window=window, **HEADS)),
    WINDOWS.map(lambda chunk: Chunked(chunk=chunk, **HEADS)),
)


def model(kinds: list[LayerKind]) -> Architecture:
    layers = tuple(Layer(cache=kind) for kind in kinds)
    order = tuple(range(len(kinds)))
    return Architecture(name="any", model_type="custom", layers=layers, order=order, hidden_size=1, vocab_size=0)


def forward(kind: LayerKind, cached: list[int], arriving: list[int]) -> tuple[list[int], int]:
    """What a layer caches after a forward, and the tokens of the tensor that stays alive behind it."""
    whole = cached + arriving
    window = getattr(kind, "window", None) or getattr(kind, "chunk", None)
    return (whole if window is None else whole[-window + 1 :]), len(whole)


def walked(kinds: list[LayerKind], forwards: list[int]) -> tuple[int, int, int]:
    """The largest and the last bytes held over these forwards, and the bytes shown after them: 256 a token."""
    cached: list[list[int]] = [[] for _ in kinds]
    largest = held = 0
    for arriving in forwards:
        held = 0
        for index, kind in enumerate(kinds):
            cached[index], alive = forward(kind, cached[index], [0] * arriving)
            held += 256 * alive
        largest = max(largest, held)
    return largest, held, 256 * sum(len(each) for each in cached)


@settings(max_examples=200)
@given(st.lists(LAYERS, min_size=1, max_size=3), st.integers(1, 1500), st.integers(1, 700) | st.none())
def test_the_closed_form_is_the_largest_of_every_forward(
    kinds: list[LayerKind], context: int, chunk: int | None
) -> None:
    options = {} if chunk is None else {"prefill_chunk": chunk}
    plan = prepare(model(kinds), engine="transformers", engine_options=options).plan
    size = chunk or context
    forwards = [min(size, context - start) for start in range(0, context, size)]
    largest, _, shown = walked(kinds, forwards)
    steady = walked(kinds, [context - 1, 1] if context > 1 else [1])[1]
    predicted = plan.allocate(context, 1)
    assert (predicted.bytes, predicted.steady_bytes) == (largest, steady)
    assert plan.report(context, 1, 0)["logical_bytes"] == shown
    assert plan.kv_bytes(context, 3) == 3 * largest == evaluate(plan.explain(context, 3))["kv_bytes"]
