"""The formulas that a page carries, evaluated by its own JavaScript, are the library's answers to the byte."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import Any

import pytest
from javascript import Run, javascript

import kvcalc
from kvcalc.architecture import Architecture
from kvcalc.derivation import Quantity, evaluate
from kvcalc.engines import engine_class, engine_names
from kvcalc.errors import KVCalcError, NotModelledError, RefusalError
from kvcalc.fitting import Memory, fits, required_memory
from kvcalc.page.data import page_data
from kvcalc.page.formulas import Formulas, formulas_of, is_input
from kvcalc.page.offers import FEW_SIZES, SIZES, Offer
from kvcalc.page.packing import in_columns
from kvcalc.page.render import render
from kvcalc.setup import Setup, options_on, prepare
from kvcalc.sources.devices import devices, find_device, load_device
from kvcalc.sources.preset import presets


@pytest.fixture(scope="module")
def run() -> Run:
    return javascript()


def context_and_batch(random_: random.Random) -> tuple[int, int]:
    """Mostly of the sizes that people ask about, now and then far beyond 2^53 bytes."""
    context = int(2 ** random_.uniform(0, random_.choice([12, 18, 24, 40])))
    return context, random_.choice([1, int(2 ** random_.uniform(0, random_.choice([6, 12, 40])))])


@cache
def models() -> dict[str, Architecture]:
    return {name: kvcalc.load(name) for name in presets()}


@cache
def offer(engine: str) -> Offer:
    return Offer(engine, [])


def some_setups(random_: random.Random) -> Iterator[Setup]:
    """A preset of each model type in every engine as it is by default, and any preset in every third engine also in one
    version, format and size at random, and with one of its options or its own draft."""
    types = {model.model_type: name for name, model in models().items()}
    for number, (reference, model) in enumerate(models().items()):
        for at, name in enumerate(engine_names()):
            is_varied = (number + at) % 3 == 0
            if not is_varied and reference != types[model.model_type]:
                continue
            engine = engine_class(name)
            releases = [release for group in engine.releases for release in group]
            options = {"version": random_.choice(releases)} if releases else {}
            formats = random_.choice([None, "fp8", "bf16", "f16", "q8_0", "q8_0/q4_0", "int8", "nvfp4"])
            picks = [({name: value}, None) for name, value in offer(name).picks] + [({}, "mtp")]
            picked, draft = random_.choice(picks)
            asked = (
                ({}, None, 1, None),
                (options, formats, random_.choice(SIZES), None),
                (picked, random_.choice([None, "fp8"]), random_.choice(FEW_SIZES), draft),
            )
            for chosen, kv_format, size, drafted in asked[: None if is_varied else 1]:
                try:
                    yield prepare(
                        model,
                        engine=name,
                        engine_options=chosen,
                        kv_cache_dtype=kv_format,
                        tensor_parallel_size=size,
                        draft=drafted,
                    )
                except KVCalcError:
                    continue


def as_page_has_it(quantities: tuple[Quantity, ...]) -> list[list[str]]:
    return [[each.symbol, "" if is_input(each) else each.formula] for each in quantities]


def inputs_of(formulas: Formulas) -> dict[str, str]:
    return {each.symbol: each.formula for each in (*formulas.one, *formulas.several) if is_input(each)}


def test_the_formulas_of_every_preset_in_every_engine_are_its_bytes(run: Run) -> None:
    random_ = random.Random(20)  # noqa: S311
    asked, known = [], []
    for setup in some_setups(random_):
        try:
            formulas = formulas_of(setup)
        except NotModelledError:  # they hold for one question alone
            continue
        questions = [context_and_batch(random_) for _ in range(16)]
        one, several = map(as_page_has_it, (formulas.one, formulas.several))
        asked.append([one, several, inputs_of(formulas), [[str(each) for each in pair] for pair in questions]])
        known.append(
            [[str(setup.plan.kv_bytes(*pair)), str(setup.plan.required_kv_memory(*pair))] for pair in questions]
        )
    answered = run(
        f"""{json.dumps(asked)}.map(([one, several, inputs, questions]) => questions.map(([T, B]) => {{
            const lines = (B === "1" ? one : several).map(([symbol, formula]) => ({{ symbol, formula }}));
            const values = evaluate(lines, {{ ...inputs, T, B }});
            return [values.kv_bytes, values.required_bytes ?? values.kv_bytes].map(String);
        }}))"""
    )
    assert sum(map(len, known)) > 20_000
    wrong = [at for at, (page, library) in enumerate(zip(answered, known, strict=True)) if page != library]
    assert not wrong, (asked[wrong[0]][0], answered[wrong[0]], known[wrong[0]])


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    """A small page: windows and experts in mxfp4, states, latents, and three kinds of memory."""
    places = [load_device(name) for name in ("h100-80gb", "b200", "apple-m4-max-64gb")]
    return page_data(["gpt-oss-20b", "qwen3.5-4b", "deepseek-v2-lite"], engine_names(), places)


@pytest.fixture(scope="module")
def page(run: Run, data: dict[str, Any]) -> Run:
    run(f"(globalThis.data = {json.dumps(data)}, 0)")
    return run


def test_a_page_of_every_preset_has_less_than_three_megabytes(data: dict[str, Any]) -> None:
    """One model, and what two more add to it for each other preset: 2.4 MB, and the page of all has 1.7."""
    first = dict([next(iter(data["models"].items()))])
    whole, one = (sum(map(len, render({**data, "models": models}))) for models in (data["models"], first))
    assert one + (whole - one) / (len(data["models"]) - 1) * len(presets()) < 3_000_000


def questions(data: dict[str, Any], random_: random.Random, number: int) -> list[dict[str, Any]]:
    asked = []
    for _ in range(number):
        name = random_.choice(list(data["engines"]))
        engine, (context, batch) = data["engines"][name], context_and_batch(random_)
        releases = [release for group in engine["releases"] for release in group]
        part = random_.choice([None, None, ["85", "100"], ["1", "2"]])
        model = random_.choice(list(data["models"]))
        picks = [({name: value}, "") for name, value in engine["picks"]]
        drafts = [({}, draft) for draft in data["models"][model]["drafts"]]
        plain = random_.random() < 0.5
        options, draft = ({}, "") if plain else random_.choice([*picks, *drafts] or [({}, "")])
        for each in engine["inputs"]:
            if random_.random() < 0.2:
                options = {**options, each: str(int(2 ** random_.uniform(0, 17)))}
        asked.append(
            {
                "model": model,
                "options": options,
                "draft": draft,
                "engine": name,
                "version": "" if options or draft else random_.choice(["", *releases]),
                "device": random_.choice(["", *(device["name"] for device in data["devices"])]),
                "memory": str(random_.randrange(2**33, 2**39)),
                "kv": random_.choice(["", "", *engine["kv_formats"]]),
                "weights": random_.choice(["", *engine["weight_formats"]]),
                "size": random_.choice([1, 1, *SIZES]),
                "utilization": part,
                "reserve": random_.choice(["0", str(2**30)]),
                "T": str(context),
                "B": str(batch),
                "most": random_.choice(["tokens", "sequences"]),
            }
        )
    return asked


def asked_of(question: dict[str, Any]) -> tuple[Setup, Memory]:
    """The library's own question."""
    place = load_device(question["device"]) if question["device"] else None
    options = dict(question["options"])
    if question["version"]:
        options["version"] = question["version"]
    setup = prepare(
        models()[question["model"]],
        engine=question["engine"],
        engine_options=options_on(question["engine"], options, place),
        kv_cache_dtype=question["kv"] or None,
        weights_dtype=question["weights"] or None,
        tensor_parallel_size=question["size"],
        draft=question["draft"] or None,
    )
    assert setup.weights
    whole = find_device(place, None if place else int(question["memory"]))
    utilization = question["utilization"] and Fraction(*map(int, question["utilization"]))
    return setup, Memory(None, whole, utilization, int(question["reserve"]))


def test_what_fits_on_a_page_fits_in_the_library(page: Run, data: dict[str, Any]) -> None:
    asked = questions(data, random.Random(7), 2_000)  # noqa: S311
    answered = page(
        f"""{json.dumps(asked)}.map((asked) => {{
            const utilization = asked.utilization && asked.utilization.map(BigInt);
            const plan = planOf(data, {{ ...asked, utilization, reserve: BigInt(asked.reserve) }});
            if (plan.refusal !== undefined) return {{ refusal: plan.refusal }};
            const [T, B] = [BigInt(asked.T), BigInt(asked.B)], pool = plan.pool(T, B);
            const answer = {{
                required: plan.required(T, B), kv_memory: pool.kv_memory, activation: pool.activation_bytes,
                band: pool.band_bytes, weights: plan.weights.bytes,
                tokens: asked.most === "tokens" ? plan.maxContext(B) : null,
                sequences: asked.most === "sequences" ? plan.maxSequences(T) : null,
            }};
            const text = (value) => (value === null ? null : String(value));
            return Object.fromEntries(Object.entries(answer).map(([name, value]) => [name, text(value)]));
        }})"""
    )
    compared = 0
    for question, answer in zip(asked, answered, strict=True):
        try:
            setup, memory = asked_of(question)
        except RefusalError:
            assert "refusal" in answer, question
            continue
        if "refusal" in answer:
            assert "this page" in answer["refusal"], (question, answer)
            continue
        compared += 1
        context, batch = int(question["T"]), int(question["B"])
        pool, required = memory.pool(setup, context, batch), required_memory(setup, context, batch)
        assert pool.working_memory is not None
        assert answer | {"tokens": None, "sequences": None} == {
            "required": None if required is None else str(required),
            "kv_memory": str(pool.kv_memory),
            "activation": str(pool.working_memory.activation_bytes),
            "band": str(pool.working_memory.band_bytes),
            "weights": str(setup.weights.bytes),
            "tokens": None,
            "sequences": None,
        }, question
        if answer["tokens"] is not None:
            most = int(answer["tokens"])
            assert not most or fits(setup, memory, most, batch), (question, answer)
            assert not fits(setup, memory, most + 1, batch), (question, answer)
        if answer["sequences"] is not None:
            most = int(answer["sequences"])
            assert not most or fits(setup, memory, context, most), (question, answer)
            assert not fits(setup, memory, context, most + 1), (question, answer)
    assert compared > 700


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"options": {"block_size": "32", "enforce_eager": "true"}}, "one option or a draft at a time"),
        ({"options": {"block_size": "32"}, "draft": "mtp"}, "one option or a draft at a time"),
        ({"options": {"block_size": "32"}, "version": "0.25.1"}, "in the newest version alone"),
        ({"options": {"block_size": "33"}}, "has not this draft or option"),
        ({"draft": "llama-3.2-1b"}, "has not this draft or option"),
        ({"options": {"block_size": "32"}, "size": 32}, "has not all these formats and sizes"),
    ],
)
def test_what_a_page_has_no_formulas_of_is_the_command_lines(page: Run, asked: dict[str, Any], said: str) -> None:
    question = {"model": "qwen3.5-4b", "engine": "vllm", "device": "h100-80gb", **asked}
    refusal = page(f"planOf(data, {json.dumps(question)}).refusal")
    assert said in refusal
    assert "the command line has" in refusal


def test_what_an_engine_chooses_for_a_model_on_a_device_is_the_command_lines(run: Run) -> None:
    whole = page_data(["deepseek-v3.2"], ["sglang"], [load_device("b200"), load_device("h200")])
    run(f"(globalThis.sparse = {json.dumps(whole)}, 0)")
    asked = {"model": "deepseek-v3.2", "engine": "sglang", "size": 8}
    refusals = [
        run(f"planOf(sparse, {json.dumps(asked | {'device': name})}).refusal ?? ''") for name in ("b200", "h200")
    ]
    assert "has not what sglang chooses for this model on b200: the command line has" in refusals[0]
    assert not refusals[1]


def test_every_device_has_a_platform_and_its_choices(data: dict[str, Any]) -> None:
    whole = page_data(["smollm2-135m"], ["ideal", "mlx-lm"], devices())
    assert {device["platform"] for device in whole["devices"]} == {"cuda", "rocm", "metal", "gaudi", "tpu"}
    assert {len(engine["platforms"]) for engine in whole["engines"].values()} == {
        len({(each.platform, each.unified) for each in devices()})
    }
    assert data["engines"]["vllm"]["choices"][1:] != []


def test_several_processes_make_the_same_page() -> None:
    names, places = presets()[:8], [load_device("rtx-4090")]
    told: list[str] = []
    several = page_data(names, ["ideal"], places, told.append, workers=2)
    assert several == page_data(names, ["ideal"], places)
    assert told == list(several["models"]) == names


FORMULAS = (
    *("7 // 2", "-7 // 2", "7 // -2", "-(7 // 2) - -3", "2 * 3 + 4 // 3", "7 / 2", "2 / 4 + 1", "int(-7 / 2)"),
    *("7.5 // 2", "-7.5 // 2", "7.5 // -2", "1e22 // 7", "10 // 0.1", "3 * 0.1", "36893488147419103233 / 3"),
    *("18014398509481985 / 18014398509481983", "9007199254740993 / 2", "9007199254740993 * 1.0"),
    *("1 / 36893488147419103232", "36893488147419103232 / 7", "2 * 0.5 + 1", "3 - 0.5"),
    *("min(3, 2, 5)", "max(3, 2.5)", "round_up(17, 16)", "ceil_div(17, 16)", "power_of_two(1)", "power_of_two(132)"),
    *("1 if 2 > 1 else 3", "1 if 2 < 1 else 2 if 0 else 3", "4 if 1 >= 1 and 0 else 5", "4 if 0 or 1 == 1.0 else 5"),
    *("smallest_reaching(90, lambda n: int(n * 0.9) >= 36)", "smallest_reaching(-4, lambda n: n * n > 50)"),
    *("(lambda n: n + (lambda m: m * n)(3))(4)", "smallest_reaching(0, lambda n: n != 0)", "1 if 3 <= 2 else 0"),
    *("4 * (64 + max(64, 128 * (2 > 1)))", "3 * (2 == 2.0) + (1 != 1) - (2 <= 1)"),
)  # fmt: skip


def test_the_arithmetic_of_a_page_is_pythons(run: Run) -> None:
    quantities = [Quantity(f"q{number}", "", formula, 0) for number, formula in enumerate(FORMULAS)]
    lines = json.dumps([{"symbol": each.symbol, "formula": each.formula} for each in quantities])
    shown = run(f"Object.entries(evaluate({lines}, {{}})).map(([name, value]) => [typeof value, String(value)])")
    for (kind, text), quantity, value in zip(shown, quantities, evaluate(quantities).values(), strict=True):
        assert kind == ("bigint" if isinstance(value, int) else "number"), quantity.formula
        assert (int(text) if isinstance(value, int) else float(text)) == value, quantity.formula


@pytest.mark.parametrize("formula", ["1 +", "(1", "1 2", "nothing", "min(1"])
def test_a_text_that_is_no_formula_is_an_error(run: Run, formula: str) -> None:
    wrong = json.dumps([{"symbol": "a", "formula": formula}])
    script = f"(() => {{ try {{ evaluate({wrong}, {{}}); return ''; }} catch (error) {{ return error.message; }} }})()"
    assert run(script)


def test_a_derivation_of_one_question_alone_is_not_exported() -> None:
    odd = prepare(models()["gemma-3-1b"], engine="mlx-lm", engine_options={"prefill_step_size": 192})
    with pytest.raises(kvcalc.NotModelledError, match="holds for every context"):
        formulas_of(replace(odd))


def test_the_models_of_a_page_are_turned_into_columns_and_back(page: Run, data: dict[str, Any]) -> None:
    assert page(f"byName({json.dumps(in_columns(data['models']))})") == json.loads(json.dumps(data["models"]))


def test_a_model_whose_own_cache_format_is_refused_has_its_weights_in_others(run: Run) -> None:
    place = load_device("h100-80gb")
    run(f"(globalThis.report = {json.dumps(page_data(['gemma3-report-2b'], ['transformers'], [place]))}, 0)")
    question = {"model": "gemma3-report-2b", "engine": "transformers", "device": place.name, "size": 1, "options": {}}
    for kv_format in ("", "bfloat16"):
        asked = json.dumps({**question, "kv": kv_format, "weights": "", "version": "", "draft": ""})
        plan = f"planOf(report, {{ ...{asked}, utilization: null, reserve: 0n }})"
        if kv_format:
            setup = prepare("gemma3-report-2b", engine="transformers", kv_cache_dtype=kv_format)
            assert run(f"{plan}.weights.bytes") == str(setup.weights.bytes)
        else:
            assert "sfp8" in run(f"{plan}.refusal")
