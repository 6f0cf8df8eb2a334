"""What Python callers write: plain meanings are taken, everything else is an InputError."""

from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

import kvcalc
from kvcalc.errors import InputError, KVCalcError, quote
from kvcalc.sources.resolve import load

numpy = pytest.importorskip("numpy")
MODEL = load("gemma-3-1b")
DEEP: list[object] = []
for _ in range(100_000):
    DEEP = [DEEP]


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError


#: Values that are none of what any argument wants.
WRONG = [
    None,
    True,
    1.5,
    float("nan"),
    -1,
    10**5000,
    [10**5000],
    {"a": 10**5000},
    DEEP,
    b"gemma-3-1b",
    object(),
    Odd(),
    "\0",
    "\ud800",
    numpy.array([1, 2]),
]


def test_the_meaning_of_plain_values_is_taken(tmp_path, monkeypatch):
    size = kvcalc.kv_cache_bytes(MODEL, context=32768, batch_size=2)
    for context, batch in ((numpy.int64(32768), numpy.uint8(2)), (numpy.int32(32768), 2)):
        assert kvcalc.kv_cache_bytes(MODEL, context=context, batch_size=batch) == size
        made = kvcalc.footprint(MODEL, context=context, batch_size=batch)
        assert (made.kv_cache.bytes, type(made.context)) == (size, int)
    options = {"max_num_batched_tokens": numpy.int64(4096)}
    assert kvcalc.kv_cache_bytes(MODEL, context=8192, engine="vllm", engine_options=options)
    for name in ("gemma-3-1b", "google/gemma-3-1b-it"):
        assert kvcalc.kv_cache_bytes(name, context=32768, batch_size=2) == size
        assert kvcalc.footprint(name, context=32768, batch_size=2).kv_cache.bytes == size
        assert kvcalc.capacity(name, kv_memory=size, context=32768).fits
    spec = tmp_path / "ours.toml"
    spec.write_text(kvcalc.sources.preset.preset_text("gemma-3-1b"))
    for path in (spec, str(spec)):
        assert kvcalc.load(path) == MODEL
        assert kvcalc.kv_cache_bytes(path, context=32768, batch_size=2) == size
    monkeypatch.chdir(tmp_path)
    assert kvcalc.load(Path("ours.toml")) == MODEL


def test_a_share_of_a_device_is_the_decimal_that_it_prints_as():
    shares = ("0.9", 0.9, Decimal("0.9"), Fraction(9, 10), numpy.float64(0.9), numpy.float32(0.9))
    pools = {
        kvcalc.capacity(MODEL, device_memory=2**36, gpu_memory_utilization=share).pool.kv_memory for share in shares
    }
    assert len(pools) == 1
    assert kvcalc.capacity(MODEL, device_memory=2**36, gpu_memory_utilization=1).pool.utilization == 1
    for wrong in (0, 1.01, -0.5, float("nan"), float("inf"), True, "110%", "0.9x", [0.9], Fraction(3, 2)):
        with pytest.raises(InputError):
            kvcalc.capacity(MODEL, device_memory=2**36, gpu_memory_utilization=wrong)


def outcome(call):
    """The error that a call ends in; None where the value has a meaning there, as None often has."""
    try:
        call()
    except KVCalcError as error:
        return error
    return None


@pytest.mark.parametrize("wrong", WRONG, ids=lambda value: type(value).__name__)
def test_every_wrong_value_is_an_error_of_ours(wrong):
    """None is a value of many arguments; all else must be refused in kvcalc's own words."""
    calls = [
        lambda: kvcalc.load(wrong),
        lambda: kvcalc.check(wrong),
        lambda: kvcalc.check("budgets.toml", baseline=wrong),
        lambda: kvcalc.footprint(wrong, context=1024),
        lambda: kvcalc.kv_cache_bytes(wrong, context=1024),
        lambda: kvcalc.capacity(wrong, kv_memory=2**30),
        lambda: kvcalc.read_config(wrong),
        lambda: kvcalc.read_config({"model_type": "llama", "hidden_size": wrong}),
        lambda: kvcalc.read_config({"model_type": wrong}),
    ]
    for name in ("context", "batch_size", "engine", "kv_cache_dtype", "weights_dtype", "tensor_parallel_size", "draft"):
        calls.append(lambda name=name: kvcalc.footprint(MODEL, **{"context": 1024, name: wrong}))
        if name != "weights_dtype":
            calls.append(lambda name=name: kvcalc.kv_cache_bytes(MODEL, **{"context": 1024, name: wrong}))
    calls.append(lambda: kvcalc.footprint(MODEL, context=1024, engine="vllm", engine_options=wrong))
    calls.append(lambda: kvcalc.footprint(MODEL, context=1024, engine="vllm", engine_options={"block_size": wrong}))
    calls.append(lambda: kvcalc.footprint(MODEL, context=1024, engine="vllm", engine_options={3: 1}))
    calls.append(lambda: kvcalc.capacity(MODEL, kv_memory=wrong))
    calls.append(lambda: kvcalc.capacity(MODEL, device=wrong))
    calls.append(lambda: kvcalc.capacity(MODEL, device="h100-80gb", engine=wrong))
    calls.append(lambda: kvcalc.capacity(MODEL, device="h100-80gb", engine="vllm", engine_options=wrong))
    calls.append(lambda: kvcalc.working_memory(wrong, device="h100-80gb"))
    calls.append(lambda: kvcalc.working_memory(MODEL, device=wrong))
    calls.append(lambda: kvcalc.working_memory(MODEL, device="h100-80gb", context=wrong))
    calls.append(lambda: kvcalc.capacity(MODEL, device_memory=2**36, reserve=wrong))
    for call in calls:
        error = outcome(call)
        assert error is None or len(error.render()) < 2000


def test_a_name_that_no_system_has_is_an_error(tmp_path):
    for name in (
        "x" * 300,
        "x" * 300 + ".json",
        "x" * 300 + ".gguf",
        "x" * 300 + ".toml",
        "a\0.toml",
        "hf:" + "x" * 300,
    ):
        with pytest.raises(KVCalcError):
            kvcalc.load(name)
        if "\0" in name:
            with pytest.raises(KVCalcError):
                kvcalc.check(name)
        else:
            assert [verdict.status for verdict in kvcalc.check(name)] == ["error"]


def test_quoting_never_fails():
    for value in WRONG:
        assert 0 < len(quote(value)) < 120
        assert quote(value).isprintable()
