"""Laws of MLX-LM's closed forms: they are what walking through every chunk and decode step gives."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvcalc.architecture import Architecture, Chunked, Full, Layer, LayerKind, Sliding
from kvcalc.derivation import evaluate
from kvcalc.engines.mlx_lm import MlxLm
from kvcalc.setup import prepare


@dataclass
class Buffer:
    """The slots of one array, as the cache classes change them; ``window`` or ``chunk`` select the class."""

    window: int | None = None
    chunk: int | None = None
    slots: int = 0
    offset: int = 0
    start: int = 0

    def feed(self, arriving: int) -> None:
        if self.window is None:
            self._grow(arriving)
        elif arriving == 1:
            self._rotate(self.window)
        else:
            valid = self.slots
            self.slots = (self.window - 1 if valid - self.window + 1 > 0 else valid) + arriving
        self.offset += arriving

    def _grow(self, arriving: int) -> None:
        if self.chunk is not None and self.offset - self.start > self.chunk:
            self.start = self.offset - self.chunk
            self.slots = self.chunk
        previous = self.offset - self.start
        if previous + arriving > self.slots:
            if self.slots and previous % 256:
                self.slots = previous
            self.slots += (256 + arriving - 1) // 256 * 256

    def _rotate(self, window: int) -> None:
        if self.slots == 0 or (self.offset >= self.slots and self.slots < window):
            self.slots += min(256, window - self.offset)
        self.slots = min(self.slots, window)


def walked(kinds: list[LayerKind], context: int, step: int, decode: int, start: int | None) -> tuple[int, int]:
    """The largest and the last bytes: 256 a slot, 72 a slot of a full layer quantised from ``start`` tokens on."""
    buffers = [Buffer(getattr(kind, "window", None), getattr(kind, "chunk", None)) for kind in kinds]
    arrivals = []
    left = context - 1
    while left:
        arrivals.append(min(step, left))
        left -= arrivals[-1]
    largest = now = 0
    for arriving in arrivals + [1] * (1 + decode):
        now = 0
        for buffer, kind in zip(buffers, kinds, strict=True):
            buffer.feed(arriving)
            quantized = start is not None and isinstance(kind, Full) and buffer.offset >= start
            now += buffer.slots * (72 if quantized else 256)
        largest = max(largest, now)
    return largest, now


def model(kinds: list[LayerKind]) -> Architecture:
    layers = tuple(Layer(cache=kind) for kind in kinds)
    order = tuple(range(len(kinds)))
    return Architecture(name="any", model_type="custom", layers=layers, order=order, hidden_size=1, vocab_size=0)


HEADS = {"num_kv_heads": 1, "head_dim": 64, "v_head_dim": 64}
STEPS = st.one_of(st.integers(1, 700), st.sampled_from([1, 2, 128, 192, 255, 256, 257, 512, 2048]))
WINDOWS = st.one_of(st.integers(1, 1200), st.sampled_from([1, 2, 128, 256, 512]))
LAYERS: st.SearchStrategy[LayerKind] = st.one_of(
    st.just(Full(**HEADS)),
    WINDOWS.map(lambda window: Sliding(window=window, **HEADS)),
    WINDOWS.map(lambda chunk: Chunked(chunk=chunk, **HEADS)),
)


@settings(max_examples=150)
@given(st.lists(LAYERS, min_size=1, max_size=3), st.integers(1, 4000), STEPS, st.integers(0, 900))
@example(kinds=[Chunked(chunk=500, **HEADS)], context=4000, step=100, decode=10)  # trimmed between two chunks
@example(kinds=[Chunked(chunk=500, **HEADS)], context=300, step=512, decode=400)  # trimmed while decoding
@example(kinds=[Chunked(chunk=768, **HEADS)], context=4000, step=192, decode=10)  # largest with the chunk before that
# Largest with the token before the first one that trims, which is one of the first two to be decoded: the rotating
# buffer has grown by then.
@example(kinds=[Sliding(window=5000, **HEADS), Chunked(chunk=1610, **HEADS)], context=1601, step=320, decode=100)
@example(kinds=[Sliding(window=5000, **HEADS), Chunked(chunk=1600, **HEADS)], context=1601, step=320, decode=100)
@example(kinds=[Sliding(window=512, **HEADS)], context=515, step=512, decode=0)  # largest with a last chunk of 2
@example(kinds=[Sliding(window=5000, **HEADS)], context=102, step=100, decode=254)  # a lone token, and 255: 256 in all
def test_the_closed_form_is_the_largest_of_every_step(
    kinds: list[LayerKind], context: int, step: int, decode: int
) -> None:
    options = {"prefill_step_size": step, "decode_tokens": decode}
    plan = prepare(model(kinds), engine="mlx-lm", engine_options=options).plan
    predicted = plan.allocate(context, 1)
    assert (predicted.bytes, predicted.steady_bytes) == walked(kinds, context, step, decode, None)
    assert plan.kv_bytes(context, 3) == 3 * predicted.bytes == 3 * sum(row.bytes for row in predicted.layers)
    steps = plan.explain(context, 2)
    values = evaluate(steps)
    assert [values[step.symbol] for step in steps] == [step.value for step in steps]
    assert steps[-1].value == 2 * predicted.bytes


@settings(max_examples=80)
@given(st.booleans(), st.integers(1, 4000), STEPS, st.integers(0, 900), st.integers(0, 4000))
@example(with_chunked=False, context=100, step=64, decode=300, start=200)  # quantised while decoding
@example(with_chunked=False, context=1000, step=64, decode=0, start=200)  # quantised during the prefill
@example(with_chunked=False, context=1000, step=512, decode=0, start=200)  # quantised by the first chunk
@example(with_chunked=False, context=1000, step=512, decode=0, start=999)  # quantised by the last chunk
@example(with_chunked=False, context=1000, step=512, decode=0, start=1000)  # quantised by the last token
@example(with_chunked=False, context=1025, step=1024, decode=1, start=1026)  # largest with a token before that grows
@example(with_chunked=True, context=3000, step=512, decode=0, start=1600)  # largest with the third chunk, not the last
def test_quantising_later_is_the_largest_of_before_and_after(
    with_chunked: bool, context: int, step: int, decode: int, start: int
) -> None:
    kinds: list[LayerKind] = [Full(**HEADS)] + ([Chunked(chunk=700, **HEADS)] if with_chunked else [])
    options = {"prefill_step_size": step, "decode_tokens": decode, "kv_bits": 4, "quantized_kv_start": start}
    plan = prepare(model(kinds), engine="mlx-lm", engine_options=options).plan
    predicted = plan.allocate(context, 1)
    assert (predicted.bytes, predicted.steady_bytes) == walked(kinds, context, step, decode, start)
    assert plan.kv_bytes(context, 1) == predicted.bytes == evaluate(plan.explain(context, 1))["kv_bytes"]


@given(st.integers(1, 2**40), st.integers(1, 2**40), st.integers(1, 2**40))
def test_any_context_and_chunk_has_an_answer_that_holds_its_tokens(context: int, step: int, decode: int) -> None:
    engine = MlxLm(prefill_step_size=step, decode_tokens=decode)
    plan = prepare(model([Full(**HEADS)]), engine="mlx-lm", engine_options=engine.model_dump()).plan
    assert 0 <= plan.kv_bytes(context, 1) // 256 - (context + decode) < 1024
