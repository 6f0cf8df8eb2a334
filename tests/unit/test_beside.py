"""Several models on one device: what each takes, and what is left."""

from fractions import Fraction

import pytest

import kvcalc
from kvcalc.beside import left_by, neighbour
from kvcalc.fitting import Memory, fits
from kvcalc.setup import prepare
from kvcalc.sources.devices import load_device

H100 = load_device("h100-80gb")
SMALL = prepare("qwen3-0.6b", engine="vllm")
LLAMA = prepare("llama-3.1-8b", engine="vllm")


def test_an_engine_without_parts_takes_what_one_sequence_needs():
    setup = prepare("qwen3-0.6b", engine="llama.cpp")
    found = neighbour(setup, H100, 8192, None)
    working = setup.engine.working_memory(setup, H100, 8192, 1)
    needed = setup.plan.required_kv_memory(8192, 1)
    assert found.taken_bytes == setup.weights.bytes + working.share_bytes + needed
    assert (found.part, found.capacity.context, found.capacity.batch_size) == (None, 8192, 1)
    left = left_by([found, found], Memory(device=H100, reserve=5), prepare("llama-3.1-8b", engine="llama.cpp"))
    assert (left.reserve, left.utilization) == (5 + 2 * found.taken_bytes, None)
    with pytest.raises(kvcalc.KVCalcError, match="takes no part of a device"):
        neighbour(setup, H100, 8192, Fraction(1, 10))


def test_the_smallest_part_that_serves_one_sequence():
    found = neighbour(SMALL, H100, 8192, None)
    assert found.part is not None and found.part.denominator in (100, 50, 25, 20, 10)
    assert fits(SMALL, Memory(device=H100, utilization=found.part), 8192, 1)
    assert not fits(SMALL, Memory(device=H100, utilization=found.part - Fraction(1, 100)), 8192, 1)
    assert found.taken_bytes == H100.memory_bytes * found.part.numerator // found.part.denominator
    assert found.capacity.max_batch_size is not None and found.capacity.max_batch_size >= 1
    with pytest.raises(kvcalc.KVCalcError, match="even alone"):
        neighbour(prepare("llama-3.1-405b", engine="vllm"), H100, 8192, None)


@pytest.mark.parametrize(
    ("parts", "stated", "utilization", "over"),
    [
        # What is left in hundredths, at most the engine's own 0.92.
        (["0.4"], None, "0.6", 0),
        (["0.05"], None, "0.92", 0),
        (["0.4", "0.3"], None, "0.3", 0),
        # A stated part stays, and what it overlaps is not there.
        (["0.4"], "0.5", "0.5", 0),
        (["0.4"], "0.9", "0.9", 0.3),
        # Nothing is left: all of the engine's own part is missing.
        (["0.6", "0.4"], None, "0.92", 0.92),
    ],
)
def test_what_neighbours_leave(parts, stated, utilization, over):
    neighbours = [neighbour(SMALL, H100, 8192, Fraction(part)) for part in parts]
    memory = Memory(device=H100, utilization=None if stated is None else Fraction(stated), reserve=7)
    left = left_by(neighbours, memory, LLAMA)
    assert left.utilization == Fraction(utilization)
    assert abs(left.reserve - 7 - over * H100.memory_bytes) <= 2
