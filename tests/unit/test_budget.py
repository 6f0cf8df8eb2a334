"""Budgets, their limits and their verdicts; baselines and what they attribute a difference to."""

import json
import re
import tomllib
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvcalc
from kvcalc.budgets import mix
from kvcalc.budgets.baseline import Baseline, BaselineRecord, compare, load_baseline
from kvcalc.budgets.budget import Budget, Part
from kvcalc.budgets.checking import check_files, new_baseline
from kvcalc.budgets.file import (
    LocatedBudget,
    Place,
    Unreadable,
    find_budget_file,
    find_files,
    read_budgets,
)
from kvcalc.budgets.verdict import Check, judge
from kvcalc.device import Device
from kvcalc.errors import InputError
from kvcalc.footprints import footprint_of
from kvcalc.report.shapes import WorkloadRecord
from kvcalc.setup import SetupOptions, prepare
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
    return check_files([path], before)


def located(path):
    found = read_budgets(path)
    assert all(isinstance(each, LocatedBudget) for each in found)
    return found


def problems(path):
    unreadable = [each.error for each in read_budgets(path) if isinstance(each, Unreadable)]
    return [(each.message, each.hint, each.location) for error in unreadable for each in error.problems]


# ---- reading ----


def test_a_budget_says_what_it_says(budgets):
    path = budgets(
        'model = "gemma-3-1b"\ncontext = "32k"\nbatch_size = 4\nkv_cache_dtype = "q8_0/q4_0"\nengine = "llama.cpp"\n'
        'engine_options = {n_ubatch = 256}\nlimit = "24GB"\non = "kv_cache"\nwarn_at = "90%"\nmax_increase = "2.5%"\n'
    )
    budget = located(path)[0].budget
    assert (budget.context, budget.batch_size, budget.limit, budget.on) == (32768, 4, 24 * 10**9, "kv_cache")
    assert (budget.warn_at, budget.max_increase) == (Fraction(9, 10), Fraction(1, 40))
    assert budget.engine_options == {"n_ubatch": 256}


def test_defaults_hold_where_a_budget_says_nothing_else(budgets):
    defaults = 'context = "32k"\nlimit = "60GiB"\nengine = "llama.cpp"\nengine_options = {n_ubatch = 256}'
    path = budgets('model = "gemma-3-1b"', 'model = "gemma-3-1b"\nengine = "ideal"\ncontext = "8k"', defaults=defaults)
    first, second = (each.budget for each in located(path))
    assert (first.engine_options, first.context, first.limit) == ({"n_ubatch": 256}, 32768, 60 * GiB)
    assert (second.engine_options, second.context, second.limit) == ({}, 8192, 60 * GiB)


def test_the_table_of_a_pyproject(budgets, tmp_path):
    path = budgets(PLAIN.format(limit="1GiB"), name="pyproject.toml", prefix="tool.kvcalc.")
    assert find_budget_file(tmp_path) == path
    assert str(located(path)[0].place) == f"{path}:1, [[tool.kvcalc.budget]] 'b0'"


def test_a_folder_without_budgets_says_how_to_begin(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    with pytest.raises(InputError, match="no budgets in") as caught:
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
        ('model = "https://huggingface.co/a/b"\ncontext = "8k"\nlimit = "1GiB"', "names no commit"),
        ('model = "gemma-3-1b"\ndraft = "hf:a/b"\ncontext = "8k"\nlimit = "1GiB"', "names no commit"),
        ('model = "hf:a/b#v1.0@5:1"\ncontext = "8k"\nlimit = "1GiB"', "names no commit"),
        ('model = "gemma-3-1b"\ncontext = "8k"\nlimit = "1GiB"\nmessage = 3', "message: "),
        ('name = "a\\u001bb"\nmodel = "gemma-3-1b"\ncontext = "8k"\nlimit = "1GiB"', "cannot be printed"),
    ],
)
def test_what_a_budget_may_not_say(budgets, table, message):
    assert any(message in found for found, _, _ in problems(budgets(table)))


def test_a_name_is_a_name_in_any_folder_and_a_path_counts_from_the_files(tmp_path, monkeypatch):
    service = tmp_path / "service"
    (service / "google" / "gemma-3-4b-it").mkdir(parents=True)
    table = '[[budget]]\nname = "{0}"\nmodel = "{1}"\ncontext = "8k"\nlimit = "1GiB"\n'
    commit = "0123456789abcdef0123456789abcdef01234567"
    address = f"https://huggingface.co/a/b/tree/{commit}"
    models = ["google/gemma-3-27b-it@5:1", "Qwen/Qwen3-8B-AWQ", "google/gemma-3-4b-it", "ours/model", "m.toml", address]
    (service / "budgets.toml").write_text("".join(table.format(*each) for each in enumerate(models)))
    monkeypatch.chdir(tmp_path)
    seen = [each.reference for each in located(Path("service/budgets.toml"))]
    inside = [f"service/{name}" for name in ("google/gemma-3-4b-it", "ours/model", "m.toml")]
    assert seen == [*models[:2], *inside, address]


def test_a_hub_reference_with_a_commit_is_taken(budgets):
    commit = "0123456789abcdef0123456789abcdef01234567"
    path = budgets(f'model = "hf:google/gemma-3-27b-it#{commit}@sw=512"\ncontext = "8k"\nlimit = "1GiB"')
    assert located(path)[0].reference.startswith("hf:")


def test_a_name_belongs_to_one_budget_of_a_file(budgets):
    plain = 'name = "a"\n' + PLAIN.format(limit="1GiB")
    assert "is taken by" in problems(budgets(plain, plain))[0][0]


def test_two_files_may_have_a_budget_of_one_name(budgets, tmp_path):
    plain = 'name = "a"\n' + PLAIN.format(limit="100GiB")
    first, second = budgets(plain), tmp_path / "other.toml"
    second.write_text("[[budget]]\n" + plain + '[[budget]]\nname = "b"\n' + PLAIN.format(limit="100GiB"))
    verdicts = check_files([first, second])
    assert [verdict.name for verdict in verdicts] == [f"{first}: a", f"{second}: a", "b"]
    assert list(new_baseline(verdicts).budgets) == sorted([f"{first}: a", f"{second}: a", "b"])


@pytest.mark.parametrize("text", ["budget = 3", "budget = [1]", "[budgets]\n", "", "a = [", 'x = "\\ud800"'])
def test_a_file_that_is_none(tmp_path, text):
    path = tmp_path / "budgets.toml"
    path.write_text(text)
    assert problems(path)


def test_a_header_inside_a_text_or_a_comment_is_none(budgets):
    message = 'message = """\n[[budget]]\n"""\n# [[budget]]\n'
    path = budgets(PLAIN.format(limit="60GiB") + message, PLAIN.format(limit="60GiB"))
    assert [each.place.line for each in located(path)] == [1, 11]


def test_an_inline_table_has_a_path_and_no_line(tmp_path):
    path = tmp_path / "budgets.toml"
    path.write_text('budget = [{name = "a", model = "gemma-3-1b", context = "8k", limit = "4GiB"}]')
    assert str(located(path)[0].place) == f"{path}, [[budget]] 'a'"


def test_a_file_beside_the_budgets_is_found_from_anywhere(budgets, tmp_path, monkeypatch):
    spec = 'name = "m"\nnum_layers = 2\nhidden_size = 64\nvocab_size = 10\n[attention]\nnum_heads = 2\n'
    (tmp_path / "model.toml").write_text(spec)
    path = budgets('model = "model.toml"\ncontext = "8k"\nlimit = "1GiB"')
    monkeypatch.chdir("/")
    assert judged(path)[0].status == "pass"


def test_what_cannot_be_judged_hides_nothing_else(budgets, tmp_path):
    plain = PLAIN.format(limit="70GiB")
    path = budgets(
        'model = "gema-3-27b"\ncontext = "8k"\nlimit = "1GiB"',
        plain,
        'model = "lost.toml"\ncontext = "8k"\nlimit = "1GiB"',
        plain + 'engine = "vlm"',
        plain + 'engine = "llama.cpp"\nengine_options = {n_ubtch = 3}',
        plain.replace("context", "contxt"),
        plain + 'device = "h10"\n',
        plain + 'draft = "gema-3-1b"',
    )
    verdicts = check_files([tmp_path / "lost.toml", path])
    assert [verdict.status for verdict in verdicts] == ["error", "error", "pass", *["error"] * 6]
    assert not verdicts[1].ok
    refused = [verdict for verdict in verdicts[:7] if not verdict.ok]
    found = {verdict.name: (str(verdict.error), verdict.error.problems[0].location) for verdict in refused}
    lines = [1, 6, 12, 17, 23, 30]
    assert found == {
        str(tmp_path / "lost.toml"): ("cannot read the file: no such file or directory", str(tmp_path / "lost.toml")),
        "b0": ("unknown preset 'gema-3-27b'", f"{path}:{lines[0]}, [[budget]] 'b0'"),
        "b2": (
            "cannot read the file: no such file or directory",
            f"{path}:{lines[2]}, [[budget]] 'b2', {tmp_path / 'lost.toml'}",
        ),
        "b3": ("unknown engine 'vlm'", f"{path}:{lines[3]}, [[budget]] 'b3'"),
        "b4": ("llama.cpp has no option 'n_ubtch'", f"{path}:{lines[4]}, [[budget]] 'b4'"),
        "b5": ("unknown field 'contxt'", f"{path}:{lines[5]}, [[budget]] 'b5'"),
    }
    assert verdicts[1].sentence() == "b0: unknown preset 'gema-3-27b'"


def test_only_some_budgets(budgets):
    path = budgets(PLAIN.format(limit="70GiB"), 'name = "other"\nmodel = "gema"\ncontext = "8k"\nlimit = "1GiB"')
    before = Baseline("baseline.json", {"gone": record_of(), "b9": record_of()})
    assert [verdict.name for verdict in check_files([path], before, ["b*"])] == ["b0", "b9"]
    with pytest.raises(InputError, match="no budget is named 'othr'") as caught:
        check_files([path], None, ["b0", "othr"])
    assert caught.value.hint == "did you mean 'other'?"


# ---- files ----


def test_defaults_come_from_the_files_that_a_file_extends(budgets, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "base.toml").write_text('[defaults]\nengine = "vllm"\nlimit = "70GiB"\nbatch = 2\n')
    (tmp_path / "a" / "team.toml").write_text('extends = "../base.toml"\n[defaults]\ncontext = "32k"\n')
    path = tmp_path / "a" / "budgets.toml"
    path.write_text(
        'extends = ["team.toml"]\n[defaults]\nwarn_at = "90%"\n[[budget]]\nname = "b"\nmodel = "gemma-3-27b"\n'
        'device = "h200"\n'
    )
    budget = located(path)[0].budget
    assert (budget.engine, budget.context, budget.batch_size, budget.warn_at) == ("vllm", 32768, 2, Fraction(9, 10))
    assert (budget.limit, budget.device) == (None, "h200")


def test_twenty_files_may_extend_one_another(tmp_path):
    for number in range(22):
        path = tmp_path / f"{number}.toml"
        path.write_text(f'extends = "{number + 1}.toml"\n' if number < 21 else '[defaults]\nengine = "vllm"\n')
    text = f'extends = "%s.toml"\n[[budget]]\nname = "b"\n{PLAIN.format(limit="70GiB")}'
    path = tmp_path / "budgets.toml"
    path.write_text(text % 2)  # 2 to 21
    assert located(path)[0].budget.engine == "vllm"
    path.write_text(text % 1)
    assert problems(path)[0][0] == "more than 20 files extend one another"


def test_two_files_that_extend_each_other_are_refused_by_their_name(tmp_path):
    path, other = tmp_path / "budgets.toml", tmp_path / "other.toml"
    path.write_text(f'extends = "other.toml"\n[[budget]]\nname = "b"\n{PLAIN.format(limit="70GiB")}')
    other.write_text('extends = "budgets.toml"\n')
    assert problems(path)[0][0].endswith("extends itself")  # its path is cut where it is long


def test_a_budget_without_a_name_is_called_by_its_number(budgets):
    path = budgets('limit = "1GiB"', 'limit = "1GiB"')
    path.write_text(path.read_text().replace('name = "b1"\n', ""))
    assert [each.place.table for each in read_budgets(path)] == ["[[budget]] 'b0'", "[[budget]] number 2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "budgets.toml"', "extends itself"),
        ('extends = "lost.toml"', "cannot read the file"),
        ("extends = 3", "extends names a file"),
        ('extends = "a\\u0000b"', "names no file"),
        ('extnds = "a"', "unknown table 'extnds'"),
    ],
)
def test_what_extends_may_not_say(tmp_path, text, message):
    path = tmp_path / "budgets.toml"
    path.write_text(f'{text}\n[[budget]]\nname = "b"\n{PLAIN.format(limit="70GiB")}')
    assert message in problems(path)[0][0]


def test_patterns_and_folders_are_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/budgets.toml", "b/c/budgets.toml", "b/other.toml", ".hidden/budgets.toml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert [str(path) for path in find_files(["."])] == ["a/budgets.toml", "b/c/budgets.toml"]
    assert [str(path) for path in find_files(["b/*.toml", "b"])] == ["b/other.toml", "b/c/budgets.toml"]
    (tmp_path / "empty").mkdir()
    for wrong in ("x*.toml", "empty", "a\0b"):
        with pytest.raises(InputError):
            find_files([wrong])


def test_a_merge_conflict_is_named(budgets, tmp_path):
    path = budgets(PLAIN.format(limit="70GiB") + "<<<<<<< HEAD\nbatch = 2\n=======\nbatch = 3\n>>>>>>> b\n")
    assert problems(path)[0][::2] == ("the file holds an unresolved merge conflict", f"{path}:6")
    baseline = tmp_path / "baseline.json"
    baseline.write_text('{\n<<<<<<< HEAD\n "schema_version": 1\n=======\n}\n')
    with pytest.raises(InputError, match="merge conflict") as caught:
        load_baseline(baseline)
    assert caught.value.location == f"{baseline}:2"


def test_a_budget_has_a_field_for_every_argument_of_a_setup():
    assert SetupOptions.__annotations__.keys() <= Budget.model_fields.keys()


def test_the_json_has_a_key_for_every_option_of_a_setup():
    assert WorkloadRecord.__annotations__.keys() == {"context", "batch_size", *prepare(MODEL).workload}


# ---- mixes ----

PAGED = ("ideal", "vllm", "sglang", "tensorrt-llm")


@pytest.mark.parametrize("engine", PAGED)
def test_a_mix_of_equals_is_the_whole(engine):
    setup = prepare(MODEL, engine=engine)
    parts = [Part(8, 32768), Part(24, 32768)]
    assert mix.kv_bytes(setup, parts) == setup.plan.kv_bytes(32768, 32)
    made, alone = mix.footprint(setup, parts), footprint_of(setup, 32768, 32)
    assert made.kv_cache == alone.kv_cache
    assert mix.required_kv_memory(setup, parts) == setup.plan.required_kv_memory(32768, 32)


@pytest.mark.parametrize("engine", PAGED)
def test_a_mix_adds_up_and_lies_between_its_extremes(engine):
    setup = prepare(MODEL, engine=engine)
    parts = [Part(48, 4096), Part(16, 32768)]
    made = mix.footprint(setup, parts)
    cache = made.kv_cache
    assert sum(row.bytes for row in cache.layers) + cache.padding_bytes == cache.bytes == mix.kv_bytes(setup, parts)
    assert setup.plan.kv_bytes(4096, 64) < cache.bytes < setup.plan.kv_bytes(32768, 64)
    assert cache.bytes <= setup.plan.kv_bytes(4096, 48) + setup.plan.kv_bytes(32768, 16)
    assert (made.context, made.batch_size) == (32768, 64)
    assert cache.ideal_bytes == sum(
        kvcalc.kv_cache_bytes(MODEL, context=c, batch_size=b) for b, c in ((48, 4096), (16, 32768))
    )


@pytest.mark.parametrize("engine", ["llama.cpp", "ollama", "transformers", "mlx-lm"])
def test_an_engine_with_equal_rooms_holds_all_at_the_longest(engine):
    setup = prepare(MODEL, engine=engine)
    assert mix.kv_bytes(setup, [Part(3, 4096), Part(1, 32768)]) == setup.plan.kv_bytes(32768, 4)


def test_a_mix_counts_the_draft_of_each_part():
    setup = prepare(MODEL, engine="llama.cpp", engine_options={"kv_unified": True}, draft=kvcalc.load("gemma-3-1b"))
    made = mix.footprint(setup, [Part(2, 4096), Part(1, 32768)]).kv_cache
    assert sum(row.bytes for row in made.layers) + made.padding_bytes + made.draft_bytes == made.bytes
    assert made.draft_bytes > 0


def test_a_mix_is_a_workload_of_a_budget(budgets):
    table = 'model = "gemma-3-27b"\nmix = ["48 x 4k", "16x32k"]\nlimit = "{}"\n'
    path = budgets(table.format("200GiB"), table.format("100GiB"), defaults='context = "8k"\nbatch = 4')
    holds, fails = judged(path)
    assert holds.ok and not fails.ok
    assert all(hint.split(" = ")[0] not in ("context", "batch_size") for hint in fails.hints)
    assert new_baseline([holds]).budgets["b0"].workload["mix"] == "48 x 4k + 16 x 32k"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('mix = "4k"', "is no number of sequences"),
        ("mix = []", "must be a list"),
        ('mix = ["0 x 4k"]', "must be at least 1"),
        ('mix = ["1 x 4k"]\ncontext = "8k"', "mix and context both say"),
        ('mix = ["1 x 4k"]\nmin_batch = 2', "mix and min_batch both say"),
    ],
)
def test_what_a_mix_may_not_say(budgets, text, message):
    assert any(message in found for found, _, _ in problems(budgets(f'model = "gemma-3-1b"\nlimit = "1GiB"\n{text}')))


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


def device_of(memory_bytes):
    return Device(name="x", title="x", memory_bytes=memory_bytes, measured=False, source="a test", platform="cuda")


def test_a_device_is_a_limit_less_its_reserve(budgets):
    one = located(budgets('model = "gemma-3-27b"\ncontext = "128k"\ndevice = "x"\nreserve = "1GiB"'))[0]
    verdict = judge(one, MODEL, device_of(62 * GiB))
    assert (verdict.check.limit_bytes, verdict.status) == (61 * GiB, "pass")
    assert verdict.terms == f"x: {62 * GiB:,} B x 100 % - {GiB:,} B in reserve"
    assert judge(one, MODEL, device_of(61 * GiB)).status == "fail"


def test_a_device_must_hold_what_the_engine_needs_to_start(budgets):
    table = 'model = "gemma-3-27b"\ncontext = "32k"\ndevice = "x"\nengine = "vllm"\nutilization = "50%"\n'
    table += "engine_options = {max_num_batched_tokens = 8192, max_num_seqs = 256}"
    one = located(budgets(table))[0]
    verdict = judge(one, MODEL, device_of(200 * GiB))
    setup = verdict.footprint.setup
    working = setup.engine.working_memory(setup, device_of(200 * GiB), 32768, 1).share_bytes
    working += setup.engine.loading(setup, device_of(200 * GiB))[-1].value
    needed = verdict.footprint.total_bytes + setup.plan.bytes_per_block  # the null block
    assert (verdict.check.used_bytes, verdict.check.limit_bytes) == (needed, 100 * GiB - working)
    assert sum(int(size.replace(",", "")) for size in re.findall(r" - ([\d,]+) B", verdict.terms)) == working
    assert verdict.check.pool.working_memory.share_bytes + verdict.check.pool.loading_bytes == working
    least = 2 * (needed + working)
    assert judge(one, MODEL, device_of(least)).check.headroom_bytes == 0
    assert judge(one, MODEL, device_of(least - 2)).status == "fail"


def test_working_memory_that_is_not_modelled_is_said_in_the_verdict(budgets):
    table = 'model = "gemma-3-1b"\ncontext = "8k"\ndevice = "h200"\nengine = "tensorrt-llm"'
    verdict = judged(budgets(table))[0]
    assert verdict.sentence().startswith("b0: without working memory 2.1 GiB of ")
    assert verdict.check.not_modelled == "the working memory of tensorrt-llm is not modelled"


def test_the_message_is_for_those_who_fail(budgets):
    words = 'message = "ask the platform team"'
    failing, holding = judged(budgets(PLAIN.format(limit="60GiB") + words, PLAIN.format(limit="70GiB") + words))
    assert (failing.message, holding.message) == ("ask the platform team", None)


# ---- hints ----


def with_hint(said, hint):
    """The verdict of the budget with a hint as one of its lines."""
    budget = Budget.model_validate({**said, **tomllib.loads(hint)})
    model = kvcalc.load(budget.model)
    return judge(LocatedBudget(budget, Place("f"), Path()), model)


def test_the_context_of_a_hint_is_the_largest_that_fits():
    said = {"name": "b", "model": "gemma-3-27b", "context": "128k", "limit": "60GiB"}
    hint = with_hint(said, "").hints[0]
    assert with_hint(said, hint).ok
    assert not with_hint(said, f"context = {tomllib.loads(hint)['context'] + 1}").ok


@pytest.mark.parametrize(
    ("said", "fields"),
    [
        (
            {"context": "128k", "limit": "82GiB", "batch_size": 4},
            ["context", "batch_size", "kv_cache_dtype", "weights_dtype"],
        ),
        ({"context": "128k", "limit": "65GiB", "engine": "vllm", "engine_options": {"block_size": 32}}, ["context"]),
        (
            {"context": "32k", "limit": "55GiB", "engine": "vllm", "engine_options": {"version": "0.14.0"}},
            ["context", "engine_options"],
        ),
        ({"mix": ["48 x 4k", "16 x 32k"], "limit": "100GiB"}, ["kv_cache_dtype", "weights_dtype"]),
        ({"context": "32k", "limit": "52GiB", "engine": "sglang"}, ["context"]),
        ({"context": "4k", "overhead": "0.5%"}, ["context"]),
    ],
)
def test_every_hint_is_a_line_of_the_file_with_which_the_budget_holds(said, fields):
    said = {"name": "b", "model": "gemma-3-27b", **said}
    failing = with_hint(said, "")
    assert not failing.ok
    assert {hint.split(" = ")[0] for hint in failing.hints} >= set(fields)
    assert all(with_hint(said, hint).ok for hint in failing.hints)
    for hint in failing.hints:  # a line of options keeps those that were there
        options = tomllib.loads(hint).get("engine_options")
        assert options is None or options.items() >= said.get("engine_options", {}).items()


def test_where_no_single_change_fits_that_is_said(budgets):
    verdict = judged(budgets(PLAIN.format(limit="512MiB")))[0]
    assert verdict.hints == ()
    assert verdict.advice == ("no single change fits; the weights alone take 50.3 GiB",)


def test_an_increase_that_is_meant_can_be_accepted(budgets):
    path = budgets(PLAIN.format(limit="70GiB") + 'max_increase = "2%"')
    before = baseline_of(path)
    path.write_text(path.read_text().replace('"128k"', '"160k"'))
    verdict = judged(path, before)[0]
    assert verdict.hints == ()
    assert verdict.advice == ("to accept the increase: kvcalc check --save-baseline baseline.json, without --baseline",)


@settings(max_examples=30)
@given(st.integers(1, 2**20), st.integers(1, 64), st.integers(1, 120))
def test_a_hint_never_says_what_does_not_fit(context, batch, limit):
    said = {"name": "x", "model": "gemma-3-27b", "context": context, "batch_size": batch, "limit": f"{limit}GiB"}
    verdict = with_hint(said, "")
    assert all(with_hint(said, hint).ok for hint in verdict.hints)
    assert verdict.ok == (kvcalc.footprint(MODEL, context=context, batch_size=batch).total_bytes <= limit * GiB)
    assert verdict.ok == (not verdict.hints and not verdict.advice)


# ---- baselines ----


def baseline_of(path):
    return Baseline("baseline.json", new_baseline(judged(path)).budgets)


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
    assert judged(path, Baseline("baseline.json", {}))[0].status == "fail"


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
    made = new_baseline(judged(path))
    assert list(made.budgets) == ["a", "b", "c"]
    assert "tool_version" not in made.model_dump_json()


def test_the_parts_of_a_change_add_up(budgets):
    path = budgets(
        'model = "gemma-3-1b"\ncontext = "8k"\nlimit = "70GiB"', 'model = "gemma-2-9b"\ncontext = "8k"\nlimit = "70GiB"'
    )
    first, second = baseline_of(path).records.values()
    change = compare(first, second)
    assert sum(change.parts.values()) == change.total_bytes == second.total_bytes - first.total_bytes
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
    saved = new_baseline(judged(budgets(PLAIN.format(limit="70GiB"))))
    path, made = tmp_path / "baseline.json", saved.model_dump()
    path.write_text(json.dumps(made))
    assert load_baseline(path).records == saved.budgets
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
    kv_bytes = sum(parts.values())
    return BaselineRecord(
        reference="a",
        model="a",
        layout="1 full",
        engine={"name": "ideal", "version": "1", "options": {}},
        workload={},
        weights={"parameters": 50, "bytes": 100, "dtype": "bfloat16"},
        kv_cache={"bytes": kv_bytes, "layers": layers, "padding_bytes": 0},
        total_bytes=100 + kv_bytes,
    )


def test_states_and_cross_attention_are_parts_of_their_own():
    change = compare(record_of(full=5, state=10, cross=20), record_of(full=6, state=30, cross=15))
    expected = {"weights": 0, "global layers": 1, "states": 20, "cross-attention layers": -5, "padding": 0}
    assert change.parts == expected
    sentence = "+16 B since the baseline; states +20 B, cross-attention layers -5 B, global layers +1 B"
    assert change.sentence({"B": 1}) == sentence


def test_an_input_that_changes_no_byte_is_still_named():
    before, now = record_of(full=5), record_of(full=5).model_copy(update={"model": "b"})
    assert compare(before, now).sentence({"B": 1}) == "+0 B since the baseline; changed: model a -> b"
    assert compare(before, before).sentence() == "no change since the baseline"


def test_a_verdict_without_a_limit_or_without_a_budget_still_says_what_it_is(budgets):
    path = budgets('model = "gemma-3-1b"\ncontext = "8k"\nmax_increase = "1MiB"')
    verdicts = judged(path, Baseline("baseline.json", {"gone": record_of(full=5)}))
    sentences = {verdict.name: verdict.sentence() for verdict in verdicts}
    assert sentences["gone"] == "gone: in the baseline, and no longer among the budgets"
    assert sentences["b0"].endswith("GiB, no baseline to compare with")


def test_a_baseline_keeps_what_was_judged_and_a_mix_only_where_there_is_one(budgets):
    path = budgets(PLAIN.format(limit="60GiB"), 'model = "nobody"\ncontext = "1k"\nlimit = "1GiB"\n')
    kept = new_baseline(judged(path)).budgets
    assert list(kept) == ["b0"]
    assert "mix" not in kept["b0"].workload
    assert hash(baseline_of(path)) == hash(baseline_of(path))


@pytest.mark.parametrize(("model", "draft"), [("gemma-3-27b", "gemma-3-1b"), ("deepseek-v3", "mtp")])
def test_a_budget_counts_the_draft_that_it_names(budgets, model, draft):
    table = f'model = "{model}"\ndraft = "{draft}"\nengine = "llama.cpp"\ncontext = "8k"\nlimit = "1TiB"\n'
    [verdict] = judged(budgets(table))
    named = draft if draft == "mtp" else kvcalc.load(draft)
    whole = kvcalc.footprint(kvcalc.load(model), context=8192, engine="llama.cpp", draft=named)
    assert verdict.footprint.total_bytes == whole.total_bytes
    assert whole.kv_cache.draft_bytes > 0
