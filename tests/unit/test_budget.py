"""Budgets, their limits and their verdicts; baselines and what they attribute a difference to."""

import json
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvcalc
from kvcalc.budgets.checking import read_subjects
from kvcalc.budgets.file import find_budget_file, load_baseline, load_budgets
from kvcalc.budgets.verdict import Check, Subject, baseline, compare, judge, judge_all
from kvcalc.errors import InputError, KVCalcError
from kvcalc.units import GiB

MODEL = kvcalc.load("gemma-3-27b")


@pytest.fixture
def budgets(tmp_path):
    """Write budgets to a file; each is the text of a table."""

    def written(*tables, defaults="", name="budgets.toml", prefix=""):
        text = f"[{prefix}defaults]\n{defaults}\n" if defaults else ""
        for number, table in enumerate(tables):
            named = "" if "name" in table else f'name = "b{number}"\n'
            text += f"[[{prefix}budget]]\n{named}{table}\n"
        path = tmp_path / name
        path.write_text(text)
        return path

    return written


PLAIN = 'model = "gemma-3-27b"\ncontext = "128k"\nlimit = "{limit}"\n'


def judged(path, before=None):
    return judge_all(read_subjects([path]), before)


def problems(path):
    with pytest.raises(KVCalcError) as caught:
        load_budgets(path)
    return [(each.message, each.hint, each.location) for each in caught.value.problems]


# ---- reading ----


def test_a_budget_says_what_it_says(budgets):
    path = budgets(
        'model = "gemma-3-1b"\ncontext = "32k"\nbatch_size = 4\nkv_cache_dtype = "q8_0/q4_0"\nengine = "llama.cpp"\n'
        'engine_options = {n_ubatch = 256}\nlimit = "24GB"\non = "kv_cache"\nwarn_at = "90%"\nmax_increase = "2.5%"\n'
    )
    budget = load_budgets(path)[0].budget
    assert (budget.context, budget.batch_size, budget.limit, budget.on) == (32768, 4, 24 * 10**9, "kv_cache")
    assert (budget.warn_at, budget.max_increase) == (Fraction(9, 10), Fraction(1, 40))
    assert budget.engine_options == {"n_ubatch": 256}


def test_defaults_hold_where_a_budget_says_nothing_else(budgets):
    defaults = 'context = "32k"\nlimit = "60GiB"\nengine = "llama.cpp"\nengine_options = {n_ubatch = 256}'
    path = budgets('model = "gemma-3-1b"', 'model = "gemma-3-1b"\nengine = "ideal"\ncontext = "8k"', defaults=defaults)
    first, second = (each.budget for each in load_budgets(path))
    assert (first.engine_options, first.context, first.limit) == ({"n_ubatch": 256}, 32768, 60 * GiB)
    assert (second.engine_options, second.context, second.limit) == ({}, 8192, 60 * GiB)


def test_the_table_of_a_pyproject(budgets, tmp_path):
    path = budgets(PLAIN.format(limit="1GiB"), name="pyproject.toml", prefix="tool.kvcalc.")
    assert find_budget_file(tmp_path) == path
    located = load_budgets(path)[0]
    assert located.place == f"{path}:1, [[tool.kvcalc.budget]] 'b0'"


def test_a_folder_without_budgets_says_how_to_begin(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    with pytest.raises(InputError, match="no budgets here") as caught:
        find_budget_file(tmp_path)
    assert "--init" in caught.value.hint


def test_all_mistakes_come_at_once_each_with_its_table_and_line(budgets):
    path = budgets(
        'model = "gemma-3-1b"\ncontxt = "32k"\nlimit = "4GiB"',
        'model = "gemma-3-1b"\ncontext = 3.5\nlimit = 40',
        'model = "gemma-3-1b"\ncontext = "8k"\noverhead = "60"\nengine_options = 3',
        defaults='bach = 2\nname = "x"',
    )
    found = problems(path)
    assert [(message, location) for message, _, location in found] == [
        ("name is a budget's own and has no default", f"{path}:1, [defaults]"),
        ("unknown field 'bach'", f"{path}:1, [defaults]"),
        ("unknown field 'contxt'", f"{path}:4, [[budget]] 'b0'"),
        ("context must be a whole number, not 3.5", f"{path}:9, [[budget]] 'b1'"),
        ("limit must be a text with a unit such as '24GiB', not 40", f"{path}:9, [[budget]] 'b1'"),
        (
            "engine_options must be a table such as {block_size = 32}, not 3",
            f"{path}:14, [[budget]] 'b2'",
        ),
        ("overhead must be a percentage such as 60%, not '60'", f"{path}:14, [[budget]] 'b2'"),
    ]
    assert found[2][1] == "did you mean 'context'?"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('context = "8k"\nlimit = "1GiB"', "model is missing"),
        ('model = "gemma-3-1b"\nlimit = "1GiB"', "context is missing"),
        ('model = "gemma-3-1b"\ncontext = "8k"', "nothing is limited"),
        ('model = "gemma-3-1b"\ncontext = "8k"\nlimit = "1GiB"\ndevice = "h200"', "limit and device both say"),
        ('model = "gemma-3-1b"\ncontext = "8k"\noverhead = "5%"\non = "weights"', "there is no limit"),
        ('model = "gemma-3-1b"\ncontext = "8k"\nlimit = "1GiB"\nreserve = "1GiB"', "there is no device"),
        (
            'model = "gemma-3-1b"\ncontext = "8k"\nmax_increase = "5%"\nmin_batch = 2',
            "min_batch must fit into something",
        ),
        ('model = "gemma-3-1b"\ncontext = "8k"\nlimit = "1GiB"\nbatch = 2\nbatch_size = 2', "unknown field 'batch'"),
        ('model = "gemma-3-1b"\ncontext = "8k"\nlimit = "1 gb "\non = "all"', "on: input should be"),
        ('model = "hf:google/gemma-3-27b-it"\ncontext = "8k"\nlimit = "1GiB"', "names no commit"),
        ('model = "hf:google/gemma-3-27b-it#main"\ncontext = "8k"\nlimit = "1GiB"', "names no commit"),
        ('model = "hf:a/b#v1.0@5:1"\ncontext = "8k"\nlimit = "1GiB"', "names no commit"),
        ('model = "gemma-3-1b"\ncontext = "8k"\nlimit = "1GiB"\nmessage = 3', "message: "),
        ('name = "a\\u001bb"\nmodel = "gemma-3-1b"\ncontext = "8k"\nlimit = "1GiB"', "cannot be printed"),
    ],
)
def test_what_a_budget_may_not_say(budgets, table, message):
    assert any(message in found for found, _, _ in problems(budgets(table)))


def test_a_hub_reference_with_a_commit_is_taken(budgets):
    commit = "0123456789abcdef0123456789abcdef01234567"
    path = budgets(f'model = "hf:google/gemma-3-27b-it#{commit}@sw=512"\ncontext = "8k"\nlimit = "1GiB"')
    assert load_budgets(path)[0].reference.startswith("hf:")


def test_a_name_belongs_to_one_budget(budgets, tmp_path):
    plain = 'name = "a"\n' + PLAIN.format(limit="1GiB")
    assert "is taken by" in problems(budgets(plain, plain))[0][0]
    other = tmp_path / "other.toml"
    other.write_text("[[budget]]\n" + plain)
    with pytest.raises(KVCalcError, match="is taken by"):
        read_subjects([budgets(plain), other])


@pytest.mark.parametrize("text", ["budget = 3", "budget = [1]", "[budgets]\n", "", "a = [", 'x = "\\ud800"'])
def test_a_file_that_is_none(tmp_path, text):
    path = tmp_path / "budgets.toml"
    path.write_text(text)
    assert problems(path)


def test_a_header_inside_a_text_or_a_comment_is_none(budgets):
    message = 'message = """\n[[budget]]\n"""\n# [[budget]]\n'
    path = budgets(PLAIN.format(limit="60GiB") + message, PLAIN.format(limit="60GiB"))
    assert [each.line for each in load_budgets(path)] == [1, 11]


def test_an_inline_table_has_a_path_and_no_line(tmp_path):
    path = tmp_path / "budgets.toml"
    path.write_text('budget = [{name = "a", model = "gemma-3-1b", context = "8k", limit = "4GiB"}]')
    assert load_budgets(path)[0].place == f"{path}, [[budget]] 'a'"


def test_a_file_beside_the_budgets_is_found_from_anywhere(budgets, tmp_path, monkeypatch):
    spec = 'name = "m"\nnum_layers = 2\nhidden_size = 64\nvocab_size = 10\n[attention]\nnum_heads = 2\n'
    (tmp_path / "model.toml").write_text(spec)
    path = budgets('model = "model.toml"\ncontext = "8k"\nlimit = "1GiB"')
    monkeypatch.chdir("/")
    assert judged(path)[0].status == "pass"


def test_mistakes_of_models_engines_and_files_come_together(budgets, tmp_path):
    path = budgets(
        'model = "gema-3-27b"\ncontext = "8k"\nlimit = "1GiB"', 'model = "lost.toml"\ncontext = "8k"\nlimit = "1GiB"'
    )
    with pytest.raises(KVCalcError) as caught:
        read_subjects([path, tmp_path / "lost.toml"])
    found = [(each.message, each.location) for each in caught.value.problems]
    assert [message for message, _ in found] == [
        "cannot read the file: no such file or directory",
        "unknown preset 'gema-3-27b'",
        "cannot read the file: no such file or directory",
    ]
    assert found[1][1] == f"{path}:1, [[budget]] 'b0'"
    assert found[2][1].startswith(f"{path}:6, [[budget]] 'b1'")


def test_engines_refuse_with_the_place_of_the_budget(budgets):
    plain = PLAIN.format(limit="1GiB")
    path = budgets(plain + 'engine = "vlm"', plain + 'engine = "llama.cpp"\nengine_options = {n_ubtch = 3}')
    with pytest.raises(KVCalcError) as caught:
        judged(path)
    assert [(each.message, each.location) for each in caught.value.problems] == [
        ("unknown engine 'vlm'", f"{path}:1, [[budget]] 'b0'"),
        ("llama.cpp has no option 'n_ubtch'", f"{path}:7, [[budget]] 'b1'"),
    ]


# ---- verdicts ----


def test_the_sentence_says_by_how_much(budgets):
    verdict = judged(budgets(PLAIN.format(limit="60GiB")))[0]
    assert verdict.sentence() == "b0: 60.7 GiB of 60.0 GiB, over by 732.2 MiB (1.2 %)"
    assert (verdict.status, verdict.ok) == ("fail", False)


def test_a_budget_holds_to_the_byte():
    total = kvcalc.footprint(MODEL, context=131072).total_bytes
    assert Check("limit", "", total, total).status == "pass"
    assert Check("limit", "", total + 1, total).status == "fail"


def test_rounded_values_that_tie_give_way_to_exact_bytes():
    assert Check("limit", "", 40 * GiB + 1, 40 * GiB).sentence() == (
        "42,949,672,961 B of 42,949,672,960 B, over by 1 B (0.0 %)"
    )
    assert Check("limit", "", 40 * GiB, 40 * GiB).sentence() == "40.0 GiB of 40.0 GiB, 0 B left (0.0 %)"


@pytest.mark.parametrize(
    ("limit", "status"),
    [
        ('limit = "60GiB"', "fail"),
        ('limit = "70GiB"\nwarn_at = "80%"', "warn"),
        ('limit = "70GiB"\nwarn_at = "60GiB"', "warn"),
        ('limit = "70GiB"\nwarn_at = "90%"', "pass"),
        ('limit = "10GiB"\non = "kv_cache"', "fail"),
        ('limit = "11GiB"\non = "kv_cache"', "pass"),
        ('limit = "50GiB"\non = "weights"', "fail"),
        ('overhead = "20%"', "fail"),
        ('overhead = "21%"', "pass"),
        ('limit = "70GiB"\nmin_context = "256k"', "fail"),
        ('limit = "75GiB"\nmin_context = "256k"', "pass"),
        ('limit = "70GiB"\nmin_batch = 2', "fail"),
        ('overhead = "21%"\nmin_batch = 2', "fail"),
        ('max_increase = "1%"', "pass"),
    ],
)
def test_every_kind_of_limit(budgets, limit, status):
    verdict = judged(budgets(f'model = "gemma-3-27b"\ncontext = "128k"\n{limit}'))[0]
    assert verdict.status == status


def test_min_context_alone_is_the_context(budgets):
    verdict = judged(budgets('model = "gemma-3-27b"\nmin_context = "128k"\nlimit = "60GiB"'))[0]
    assert verdict.footprint.context == 131072
    assert [check.rule for check in verdict.checks] == ["limit"]


def test_the_worst_limit_speaks(budgets):
    table = 'model = "gemma-3-27b"\ncontext = "128k"\nlimit = "70GiB"\nmin_batch = 4\nmin_context = "256k"'
    verdict = judged(budgets(table))[0]
    assert verdict.sentence().startswith("b0: at batch size 4 (min_batch) 91.9 GiB of 70.0 GiB")
    assert [(check.rule, check.status) for check in verdict.checks] == [
        ("limit", "pass"),
        ("min_context", "fail"),
        ("min_batch", "fail"),
    ]


def test_a_device_is_a_limit_less_its_reserve(budgets):
    located = load_budgets(budgets('model = "gemma-3-27b"\ncontext = "128k"\ndevice = "x"\nreserve = "1GiB"'))[0]
    verdict = judge(Subject(located, MODEL, 62 * GiB))
    assert (verdict.check.limit_bytes, verdict.status) == (61 * GiB, "pass")
    assert judge(Subject(located, MODEL, 61 * GiB)).status == "fail"


def test_a_device_must_hold_what_the_engine_needs_to_start(budgets):
    table = 'model = "gemma-3-27b"\ncontext = "32k"\ndevice = "x"\nengine = "vllm"\nutilization = "50%"'
    located = load_budgets(budgets(table))[0]
    made = kvcalc.footprint(MODEL, context=32768, engine="vllm")
    block = made.setup.plan.bytes_per_block
    needed = made.total_bytes + block  # the null block
    assert judge(Subject(located, MODEL, 2 * needed)).check.headroom_bytes == 0
    assert judge(Subject(located, MODEL, 2 * needed - 2)).status == "fail"


def test_the_message_is_for_those_who_fail(budgets):
    words = 'message = "ask the platform team"'
    failing, holding = judged(budgets(PLAIN.format(limit="60GiB") + words, PLAIN.format(limit="70GiB") + words))
    assert (failing.message, holding.message) == ("ask the platform team", None)


# ---- hints ----


def with_hint(path, replacement):
    """The verdict of the budget after it was changed as the hint says."""
    text = path.read_text()
    for old, new in replacement.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return judged(path)[0]


def test_the_context_of_a_hint_is_the_largest_that_fits(budgets):
    path = budgets(PLAIN.format(limit="60GiB"))
    hint = judged(path)[0].hints[0]
    context = int(hint.removeprefix("a context of at most ").removesuffix(" tokens").replace(",", ""))
    assert with_hint(path, {'"128k"': str(context)}).ok
    assert not with_hint(path, {f"context = {context}": f"context = {context + 1}"}).ok


def test_the_batch_and_the_dtype_of_a_hint_fit(budgets):
    path = budgets('model = "gemma-3-27b"\ncontext = "128k"\nlimit = "82GiB"\nbatch_size = 4')
    hints = judged(path)[0].hints
    assert "a batch size of at most 3" in hints
    assert 'kv_cache_dtype = "fp8"' in hints
    assert with_hint(path, {"batch_size = 4": 'batch_size = 4\nkv_cache_dtype = "fp8"'}).ok
    assert with_hint(path, {'\nkv_cache_dtype = "fp8"': "", "batch_size = 4": "batch_size = 3"}).ok


def test_an_engine_option_of_a_hint_fits(budgets):
    path = budgets('model = "gemma-3-27b"\ncontext = "32k"\nengine = "vllm"\nlimit = "60GiB"')
    hint = judged(path)[0].hints[0]
    assert hint.startswith("vllm max_num_batched_tokens=")
    option = f"engine_options = {{{hint.removeprefix('vllm ').replace('=', ' = ')}}}"
    assert with_hint(path, {'engine = "vllm"': f'engine = "vllm"\n{option}'}).ok


@settings(max_examples=30)
@given(st.integers(1, 2**20), st.integers(1, 64), st.integers(1, 120))
def test_a_hint_never_says_what_does_not_fit(context, batch, limit):
    from pathlib import Path

    from kvcalc.budgets.file import Budget, LocatedBudget

    said = {"name": "x", "model": "gemma-3-27b", "context": context, "batch": batch, "limit": f"{limit}GiB"}
    budget = Budget.model_validate(said)
    verdict = judge(Subject(LocatedBudget(budget=budget, file="f", line=1, table="t", folder=Path()), MODEL))
    for hint in verdict.hints:
        if hint.startswith("a context"):
            tokens = int(hint.split(" ")[5].replace(",", ""))
            assert kvcalc.footprint(MODEL, context=tokens, batch_size=batch).total_bytes <= limit * GiB
        elif hint.startswith("a batch"):
            count = int(hint.split(" ")[6].replace(",", ""))
            assert kvcalc.footprint(MODEL, context=context, batch_size=count).total_bytes <= limit * GiB
        else:
            field, dtype = hint.split(" = ")
            changed = kvcalc.footprint(MODEL, context=context, batch_size=batch, **{field: dtype.strip('"')})
            assert changed.total_bytes <= limit * GiB
    assert verdict.ok == (kvcalc.footprint(MODEL, context=context, batch_size=batch).total_bytes <= limit * GiB)


# ---- baselines ----


def baseline_of(path):
    return json.loads(json.dumps(baseline(judged(path))))["budgets"]


def test_the_same_again_is_no_change(budgets):
    path = budgets(PLAIN.format(limit="70GiB"))
    verdict = judged(path, baseline_of(path))[0]
    assert verdict.change.sentence() == "no change since the baseline"
    assert verdict.status == "pass"


def test_a_wider_window_is_attributed_to_the_local_layers(budgets):
    path = budgets(PLAIN.format(limit="70GiB"))
    before = baseline_of(path)
    path.write_text(path.read_text().replace("gemma-3-27b", "gemma-3-27b@sw=4096"))
    change = judged(path, before)[0].change
    assert change.parts == {"weights": 0, "local layers": 3 * 436207616, "global layers": 0, "padding": 0}
    assert ("sliding window", 1024, 4096) in change.inputs
    assert "local layers +1.2 GiB" in change.sentence()


def test_padding_and_options_are_named(budgets):
    path = budgets('model = "gemma-3-27b"\ncontext = "32k"\nengine = "vllm"\nlimit = "100GiB"')
    before = baseline_of(path)
    path.write_text(path.read_text() + "engine_options = {max_num_batched_tokens = 2048}\n")
    change = judged(path, before)[0].change
    assert sum(change.parts.values()) == change.total_bytes < 0
    assert change.parts["padding"] < 0
    assert ("engine max_num_batched_tokens", None, 2048) in change.inputs


def test_a_baseline_never_loosens_a_limit(budgets):
    path = budgets(PLAIN.format(limit="60GiB"))
    assert judged(path, baseline_of(path))[0].status == "fail"
    assert judged(path, {})[0].status == "fail"


def test_the_increase_has_a_limit_of_its_own(budgets):
    path = budgets(PLAIN.format(limit="70GiB") + 'max_increase = "2%"')
    before = baseline_of(path)
    text = path.read_text()
    path.write_text(text.replace('"128k"', '"160k"'))
    verdict = judged(path, before)[0]
    assert (verdict.status, verdict.check.rule) == ("fail", "max_increase")
    path.write_text(text.replace('"128k"', '"160k"').replace('"2%"', '"3GiB"'))
    assert judged(path, before)[0].status == "pass"


def test_added_and_removed_budgets_are_said(budgets):
    before = baseline_of(budgets('name = "old"\n' + PLAIN.format(limit="70GiB")))
    verdicts = judged(budgets('name = "new"\n' + PLAIN.format(limit="70GiB")), before)
    assert [(verdict.name, verdict.status, verdict.ok) for verdict in verdicts] == [
        ("new", "added", True),
        ("old", "removed", True),
    ]


def test_a_baseline_is_sorted_and_holds_no_tool_version(budgets):
    path = budgets(*('name = "%s"\n' % name + PLAIN.format(limit="70GiB") for name in "cab"))  # noqa: UP031
    made = baseline(judged(path))
    assert list(made["budgets"]) == ["a", "b", "c"]
    assert "tool_version" not in json.dumps(made)


def test_the_parts_of_a_change_add_up(budgets):
    path = budgets(
        'model = "gemma-3-1b"\ncontext = "8k"\nlimit = "70GiB"', 'model = "gemma-2-9b"\ncontext = "8k"\nlimit = "70GiB"'
    )
    first, second = baseline_of(path).values()
    change = compare(first, second)
    assert sum(change.parts.values()) == change.total_bytes == second["total_bytes"] - first["total_bytes"]
    assert {what for what, _, _ in change.inputs} >= {"model", "layout", "parameters"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"budgets": 3}',
        '{"schema_version": 2, "budgets": {}}',
        '{"schema_version": 1, "budgets": {"a": 3}}',
        '{"schema_version": 1, "budgets": {"a": {"weights": {"bytes": -1}, "kv_cache": {"layers": []}}}}',
        '{"schema_version": 1, "budgets": {"a": {"total_bytes": NaN}}}',
        '{"schema_version": 1, "budgets": {"a": {"weights": {}, "kv_cache": {"layers": [{}]}}}}',
        "[" * 100_000,
        '{"schema_version": 1, "budgets": {"a": ' + '{"engine": ' * 500 + "1" + "}" * 502,
    ],
)
def test_a_baseline_that_is_none(tmp_path, text):
    path = tmp_path / "baseline.json"
    path.write_text(text)
    with pytest.raises(InputError):
        load_baseline(path)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [("window", "x"), ("window", [1]), ("count", -1), ("bytes", 1.5), ("bytes", 10**100), ("bytes", True), ("new", 1)],
)
def test_a_baseline_edited_by_hand_is_refused_with_the_field(budgets, tmp_path, field, wrong):
    made = baseline(judged(budgets(PLAIN.format(limit="70GiB"))))
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(made))
    assert load_baseline(path) == json.loads(json.dumps(made))["budgets"]
    made["budgets"]["b0"]["kv_cache"]["layers"][0][field] = wrong
    path.write_text(json.dumps(made))
    with pytest.raises(InputError, match="not a baseline: ") as caught:
        load_baseline(path)
    assert f"layers.0.{field}" in caught.value.location


def test_check_is_a_function_too(budgets, monkeypatch, tmp_path):
    path = budgets(PLAIN.format(limit="60GiB"))
    assert [verdict.ok for verdict in kvcalc.check(path)] == [False]
    monkeypatch.chdir(tmp_path)
    assert [verdict.ok for verdict in kvcalc.check()] == [False]


def record_of(**parts):
    layers = [{"kind": kind, "window": None, "count": 1, "bytes": size} for kind, size in parts.items()]
    return {
        "weights": {"bytes": 100},
        "kv_cache": {"layers": layers, "padding_bytes": 0},
        "total_bytes": 100 + sum(parts.values()),
    }


def test_states_and_cross_attention_are_parts_of_their_own():
    change = compare(record_of(full=5, state=10, cross=20), record_of(full=6, state=30, cross=15))
    expected = {"weights": 0, "global layers": 1, "states": 20, "cross-attention layers": -5, "padding": 0}
    assert change.parts == expected
    sentence = "+16 B since the baseline; states +20 B, cross-attention layers -5 B, global layers +1 B"
    assert change.sentence({"B": 1}) == sentence


def test_an_input_that_changes_no_byte_is_still_named():
    before, now = {**record_of(full=5), "model": "a"}, {**record_of(full=5), "model": "b"}
    assert compare(before, now).sentence({"B": 1}) == "+0 B since the baseline; changed: model a -> b"
    assert compare(before, before).sentence() == "no change since the baseline"


def test_a_verdict_without_a_limit_or_without_a_budget_still_says_what_it_is(budgets):
    path = budgets('model = "gemma-3-1b"\ncontext = "8k"\nmax_increase = "1MiB"')
    verdicts = judge_all(read_subjects([path]), {"gone": record_of(full=5)})
    sentences = {verdict.name: verdict.sentence() for verdict in verdicts}
    assert sentences["gone"] == "gone: in the baseline, and no longer among the budgets"
    assert sentences["b0"].endswith("GiB, no baseline to compare with")
