"""Objects that travel: pickled, copied, hashed and compared after they were used with every engine."""

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest

import kvcalc
from kvcalc import errors
from kvcalc.architecture import Architecture
from kvcalc.engines import REGISTRY
from kvcalc.errors import KVCalcError, SeveralErrors
from kvcalc.setup import prepare
from kvcalc.sources.resolve import load

BUDGET = '[[budget]]\nname = "b"\nmodel = "gemma-3-1b"\ncontext = "32k"\nengine = "{engine}"\nlimit = "{limit}"\n'


@pytest.fixture(scope="module")
def used() -> Architecture:
    """A model that every engine has priced."""
    model = load("gemma-3-1b")
    for engine in REGISTRY:
        kvcalc.footprint(model, context=8192, engine=engine)
        kvcalc.capacity(model, kv_memory=2**33, context=8192, engine=engine)
    return model


def again(value):
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - it was written in the same line


def test_a_model_travels_without_what_was_derived_from_it(used):
    fresh = load("gemma-3-1b")
    assert len(pickle.dumps(used)) == len(pickle.dumps(fresh))
    for arrived in (again(used), copy.copy(used), copy.deepcopy(used)):
        assert arrived == used
        assert hash(arrived) == hash(used)
        assert arrived.derived == {}
        assert arrived.layout == used.layout


def test_a_cache_shows_its_size_with_two_digits(used):
    assert repr(kvcalc.footprint(used, context=32_768).kv_cache).startswith("<KV cache 139.00 MiB: ")


@pytest.mark.parametrize("engine", REGISTRY)
def test_answers_travel_and_are_keys(used, engine):
    setup = prepare(used, engine=engine)
    made = kvcalc.footprint(used, context=8192, engine=engine)
    for value in (setup, made, made.weights, made.kv_cache, kvcalc.capacity(used, kv_memory=2**33, engine=engine)):
        assert again(value) == value
        assert {value: 1}[again(value)] == 1
    arrived = again(setup)
    assert arrived.plan.kv_bytes(8192, 3) == setup.plan.kv_bytes(8192, 3)
    held = kvcalc.capacity(used, device_memory=2**36, context=8192, engine=engine)
    assert again(held) == held
    assert {held: 1}[again(held)] == 1


@pytest.mark.parametrize("engine", REGISTRY)
def test_verdicts_travel_and_are_keys(tmp_path, engine):
    path = tmp_path / "budgets.toml"
    for limit in ("64GiB", "1GiB"):
        path.write_text(BUDGET.format(engine=engine, limit=limit))
        (verdict,) = kvcalc.check(path)
        assert again(verdict) == verdict
        assert {verdict: 1}[again(verdict)] == 1
        assert again(verdict).sentence() == verdict.sentence()


def every_error() -> list[type[KVCalcError]]:
    found = [KVCalcError]
    for each in found:
        found += each.__subclasses__()
    return [each for each in found if each is not SeveralErrors]


@pytest.mark.parametrize("kind", every_error())
def test_errors_travel(kind):
    error = kind("no such thing", hint="try another", location="here")
    for arrived in (again(error), copy.copy(error), again(SeveralErrors([error, error])).problems[1]):
        assert type(arrived) is kind
        assert (arrived.message, arrived.hint, arrived.location) == ("no such thing", "try another", "here")
    assert again(SeveralErrors([error, error])).render() == SeveralErrors([error, error]).render()
    assert errors.joined([error]) is error


def test_two_mistakes_arrive_from_another_process(tmp_path):
    path = tmp_path / "budgets.toml"
    path.write_text('[[budget]]\nname = "b"\nmodel = "gemma-3-1b"\ncontext = 3.5\nlimit = 3\n')
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        [verdict] = pool.submit(kvcalc.check, path).result()
        assert isinstance(verdict.error, SeveralErrors) and len(verdict.error.problems) == 2
        model = load("gemma-3-1b")
        size = kvcalc.kv_cache_bytes(model, context=8192, engine="llama.cpp")
        assert pool.submit(kvcalc.kv_cache_bytes, model, context=8192, engine="llama.cpp").result() == size


def test_a_model_forgets_what_was_asked_long_ago():
    model = load("gemma-3-1b")
    for tokens in range(1, 300):
        prepare(model, engine="vllm", engine_options={"max_num_batched_tokens": tokens})
        assert len(model.derived) <= 256
    assert len(model.derived) == 256  # the oldest goes, not all
    first = prepare(model, engine="vllm", engine_options={"max_num_batched_tokens": 299})
    assert prepare(model, engine="vllm", engine_options={"max_num_batched_tokens": 299}) is first
    assert replace(model, name="other").derived == {}
