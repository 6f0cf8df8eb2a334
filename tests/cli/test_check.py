"""``kvcalc check`` as a user and as CI run it."""

import csv
import io
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from answers import checked

import kvcalc as package
from kvcalc.report.formats import format_names
from kvcalc.setup import options_on, prepare
from kvcalc.sources.devices import load_device

BUDGETS = """\
[defaults]
context = "128k"

[[budget]]
name = "small"
model = "gemma-3-1b"
limit = "3GiB"

[[budget]]
name = "prod-128k"
model = "gemma-3-27b"
limit = "60GiB"
message = "100 %, or: ask, the platform team"

[[budget]]
name = "tight"
model = "gemma-3-4b"
context = "32k"
limit = "8GiB"
warn_at = "90%"
"""
#: A model in a repository: five local layers, then a global one.
SPEC = """\
name = "ours"
model_type = "gemma3"
num_layers = 26
layout = "5:1/sw=1024"
hidden_size = 1152
vocab_size = 262144
tie_embeddings = true
[attention]
num_heads = 4
num_kv_heads = 1
head_dim = 256
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "budgets.toml").write_text(BUDGETS)
    return tmp_path


def test_one_failing_budget_of_three_ends_as_1(folder, kvcalc):
    ran = kvcalc("check")
    assert (ran.code, ran.err) == (1, "")
    assert ran.out.startswith("2 of 3 budgets hold, 1 with a warning\n")
    lines = [line.strip() for line in ran.out.splitlines()]
    sentence = lines.index("fail      prod-128k: 60.7 GiB of 60.0 GiB, over by 732.2 MiB (1.2 %)")
    assert lines[sentence + 1].startswith("hint: would fit: context = 121699; or ")
    assert "100 %, or: ask, the platform team" in lines


def test_headroom_is_always_shown(folder, kvcalc):
    rows = json.loads(kvcalc("check", "--format", "json").out)["rows"]
    assert [row["verdict"] for row in rows] == ["pass", "fail", "warn"]
    assert all(row["headroom_bytes"] == row["limit_bytes"] - row["used_bytes"] for row in rows)


def test_exit_zero_changes_only_the_1(folder, kvcalc):
    assert kvcalc("check", "--exit-zero").code == 0
    assert kvcalc("check", "--exit-zero", "lost.toml").code == 2
    assert kvcalc("check", "--exit-zero", "--format", "xml").code == 2


ERROR = (
    "error: unknown preset 'gema-3-27b'\n  --> budgets.toml:9, [[budget]] 'prod-128k'\n"
    "hint: did you mean 'gemma-3-27b'? see 'kvcalc models'\n"
)


@pytest.mark.parametrize("format_name", format_names("check"))
def test_a_refused_budget_ends_as_2_and_hides_none_of_the_others_in_any_format(folder, kvcalc, format_name):
    (folder / "budgets.toml").write_text(BUDGETS.replace("gemma-3-27b", "gema-3-27b"))
    for options in ((), ("--exit-zero",)):
        ran = kvcalc("check", "--format", format_name, *options)
        assert (ran.code, ran.err) == (2, ERROR)
        assert "unknown preset" in ran.out and "tight" in ran.out
    target = folder / "report"
    assert kvcalc("check", "--format", format_name, "-o", str(target)).code == 2
    assert "unknown preset" in target.read_text()
    if format_name == "json":
        verdicts = [(row["verdict"], row["error"]) for row in checked("check", ran.out)["rows"]]
        assert verdicts == [("pass", None), ("error", "unknown preset 'gema-3-27b'"), ("warn", None)]
    if format_name == "github":
        assert ran.out.startswith(
            "::error file=budgets.toml,line=9,title=kvcalc%3A prod-128k::prod-128k: unknown preset"
        )
        assert ran.out.endswith("kvcalc check: 3 budgets, 0 failed, 1 with a warning, 1 not judged\n")
    if format_name == "junit":
        suite, found = cases(ran.out)
        assert [suite.get(count) for count in ("tests", "failures", "errors")] == ["3", "0", "1"]
        error = found["prod-128k"].find("error")
        assert error.get("message") == "prod-128k: unknown preset 'gema-3-27b'"
        assert error.text.endswith("budgets.toml:9")


def test_a_file_that_cannot_be_read_has_a_case_too(folder, kvcalc):
    ran = kvcalc("check", "lost.toml", "budgets.toml", "--format", "junit")
    assert ran.code == 2
    assert "cannot read the file" in cases(ran.out)[1]["lost.toml"].find("error").get("message")


def test_only_checks_the_named_budgets(folder, kvcalc):
    ran = kvcalc("check", "--only", "small", "--only", "t*", "--format", "json")
    assert [row["name"] for row in checked("check", ran.out)["rows"]] == ["small", "tight"]
    assert (ran.code, kvcalc("check", "--only", "smal").code) == (0, 2)
    assert kvcalc("check", "--only", "small", "--save-baseline", "b.json").code == 2


def test_without_budgets_it_says_how_to_begin(tmp_path, monkeypatch, kvcalc):
    monkeypatch.chdir(tmp_path)
    ran = kvcalc("check")
    assert ran.code == 2
    assert "hint: 'kvcalc check --init' writes a first budgets.toml" in ran.err


def test_init_writes_budgets_that_hold(tmp_path, monkeypatch, kvcalc):
    monkeypatch.chdir(tmp_path)
    assert kvcalc("check", "--init").code == 2  # no model here
    assert kvcalc("check", "--init", "gemma-3-1b").code == 0
    assert kvcalc("check").code == 0
    before = Path("budgets.toml").read_text()
    again = kvcalc("check", "--init", "gemma-3-4b")
    assert (again.code, Path("budgets.toml").read_text()) == (2, before)
    Path("budgets.toml").unlink()
    Path("model.toml").write_text(SPEC)
    assert kvcalc("check", "--init").code == 0
    assert 'model = "model.toml"' in Path("budgets.toml").read_text()
    assert kvcalc("check").code == 0


# ---- formats ----


def test_json_follows_its_schema(folder, kvcalc):
    kvcalc("check", "--save-baseline", "baseline.json")
    (folder / "budgets.toml").write_text(
        BUDGETS.replace('"small"', '"new"').replace("gemma-3-4b", "gemma-3-4b@sw=1000")
    )
    out = kvcalc("check", "--baseline", "baseline.json", "--format", "json").out
    checked("check", out)
    assert [row["verdict"] for row in json.loads(out)["rows"]] == ["added", "fail", "warn", "removed"]


def test_csv_has_the_paths_of_the_json(folder, kvcalc):
    rows = list(csv.DictReader(io.StringIO(kvcalc("check", "--format", "csv").out)))
    assert [(row["name"], row["verdict"], row["kv_cache.bytes"]) for row in rows][1] == (
        "prod-128k",
        "fail",
        "11173625856",
    )


def test_markdown_is_a_summary_of_a_job(folder, kvcalc):
    out = kvcalc("check", "--format", "markdown").out
    assert out.startswith("### 2 of 3 budgets hold")
    assert "| fail | prod-128k: 60.7 GiB of 60.0 GiB, over by 732.2 MiB (1.2 %) |" in out


def cases(text):
    root = ET.fromstring(text)  # noqa: S314
    assert not root.attrib  # the schema of Jenkins' xUnit plugin knows no count of skipped tests here
    return root[0], {case.get("name"): case for case in root[0].iter("testcase")}


def test_junit_has_a_case_for_every_budget(folder, kvcalc):
    suite, found = cases(kvcalc("check", "--format", "junit").out)
    assert [suite.get(count) for count in ("tests", "failures", "errors", "skipped")] == ["3", "1", "0", "0"]
    failure = found["prod-128k"].find("failure")
    assert failure.get("message") == "prod-128k: 60.7 GiB of 60.0 GiB, over by 732.2 MiB (1.2 %)"
    assert failure.text.endswith("100 %, or: ask, the platform team\nbudgets.toml:9")
    assert set(found["prod-128k"].attrib) == {"classname", "name", "time"}
    assert "bytes of one device" in suite.find("system-out").text
    assert found["small"].find("failure") is None
    assert found["tight"].find("system-out").text.startswith("warning: tight: ")


def test_junit_holds_what_xml_cannot(folder, kvcalc):
    (folder / "budgets.toml").write_text(
        '[[budget]]\nname = "a<b>&\\"c\\""\nmodel = "gemma-3-1b"\ncontext = "8k"\nlimit = "1MiB"\n'
        'message = "]]> \\u001b[31m \\u0000 \\uffff end"\n'
    )
    _, found = cases(kvcalc("check", "--format", "junit").out)
    assert found['a<b>&"c"'].find("failure").text.endswith("]]> \\x1b[31m \\x00 \\uffff end\nbudgets.toml:1")


def test_github_annotates_the_line_of_the_budget_and_escapes(folder, kvcalc):
    error, warning, notice, counts = kvcalc("check", "--format", "github").out.splitlines()
    assert notice.startswith("::notice title=kvcalc::bytes of one device; ")
    assert error.startswith(
        "::error file=budgets.toml,line=9,title=kvcalc%3A prod-128k::prod-128k: 60.7 GiB of 60.0 GiB, "
        "over by 732.2 MiB (1.2 %25)%0Ahint: would fit: "
    )
    assert error.endswith("%0A100 %25, or: ask, the platform team")
    assert warning.startswith("::warning file=budgets.toml,line=15,")
    assert counts == "kvcalc check: 3 budgets, 1 failed, 1 with a warning"


def test_github_has_ten_annotations_at_most_the_worst_first(folder, kvcalc):
    (folder / "budgets.toml").write_text(
        '[defaults]\ncontext = "8k"\n'
        + "".join(f'[[budget]]\nname = "b,{n}:"\nmodel = "gemma-3-1b"\nlimit = "{n}MiB"\n' for n in range(1, 15))
    )
    lines = kvcalc("check", "--format", "github").out.splitlines()
    titles = [line.partition("title=")[2].partition("::")[0] for line in lines[:-2]]
    assert titles == [f"kvcalc%3A b%2C{n}%3A" for n in range(1, 11)]
    assert lines[-1] == "kvcalc check: 14 budgets, 14 failed, 0 with a warning; 4 more have no annotation"


@pytest.mark.parametrize("command", [["show", "gemma-3-1b", "-c", "8k"], ["presets"]])
@pytest.mark.parametrize("format_name", ["junit", "github"])
def test_the_formats_of_ci_belong_to_verdicts(kvcalc, command, format_name):
    ran = kvcalc(*command, "--format", format_name)
    assert ran.code == 2
    assert "is a format of 'kvcalc audit' and 'kvcalc check' alone" in ran.err


# ---- baselines ----


def test_a_wider_window_fails_with_the_increase_in_the_local_layers(folder, kvcalc):
    (folder / "ours.toml").write_text(SPEC)
    total = package.footprint(package.load("ours.toml"), context=32768).total_bytes
    (folder / "budgets.toml").write_text(
        f'[[budget]]\nname = "ours"\nmodel = "ours.toml"\ncontext = "32k"\nlimit = "{total}B"\n'
    )
    assert kvcalc("check", "--save-baseline", "baseline.json").code == 0
    (folder / "ours.toml").write_text(SPEC.replace("sw=1024", "sw=4096"))
    ran = kvcalc("check", "--baseline", "baseline.json")
    assert ran.code == 1
    # 22 local layers, 3,072 tokens more, K and V of 256 numbers of 2 bytes
    assert f"+{22 * 3072 * 1024 / 2**20:.1f} MiB since the baseline; local layers +66.0 MiB; " in ran.out
    assert "changed: sliding window 1,024 -> 4,096" in ran.out


def test_a_wider_window_in_a_config_json_too(folder, kvcalc):
    config = {"model_type": "gemma3_text", "num_hidden_layers": 26, "hidden_size": 1152, "vocab_size": 262144}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "intermediate_size": 6912}
    config |= {"sliding_window": 1024, "sliding_window_pattern": 6}
    (folder / "config.json").write_text(json.dumps(config))
    assert kvcalc("check", "--init", "config.json").code == 2  # there are budgets already
    (folder / "budgets.toml").unlink()
    assert kvcalc("check", "--init").code == 0
    assert kvcalc("check", "--save-baseline", "baseline.json").code == 0
    (folder / "config.json").write_text(json.dumps({**config, "sliding_window": 4096}))
    text = Path("budgets.toml").read_text()
    Path("budgets.toml").write_text(text + 'max_increase = "1%"\n')
    ran = kvcalc("check", "--baseline", "baseline.json")
    assert ran.code == 1
    assert "local layers +66.0 MiB; changed: sliding window 1,024 -> 4,096" in ran.out


def test_a_device_is_a_limit_with_its_terms(folder, kvcalc):
    memory = load_device("h100-80gb").memory_bytes
    (folder / "budgets.toml").write_text(
        '[[budget]]\nname = "a"\nmodel = "gemma-3-27b"\ncontext = "32k"\ndevice = "h100-80gb"\nengine = "vllm"\n'
    )
    ran = kvcalc("check", "--format", "json")
    assert ran.code == 0
    [row] = json.loads(ran.out)["rows"]
    chosen = options_on("vllm", {}, load_device("h100-80gb"))
    setup = prepare(package.load("gemma-3-27b"), engine="vllm", engine_options=chosen)
    working = setup.engine.working_memory(setup, load_device("h100-80gb"), 32768, 1)
    loading = int(setup.engine.loading(setup, load_device("h100-80gb"))[-1].value)
    assert row["limit_bytes"] == memory * 92 // 100 - working.share_bytes - loading
    terms = f"h100-80gb: {memory:,} B x 92 % - {loading:,} B added by loading"
    terms += f" - {working.activation_bytes:,} B of activations of one step"
    terms += f" - {working.runtime_bytes:,} B of runtime of the device - {working.graph_bytes:,} B of CUDA graphs"
    assert row["checks"][0]["terms"] == terms
    # The same terms in three commands.
    asked = ("gemma-3-27b", "-c", "32k", "--device", "h100-80gb", "-e", "vllm", "--format", "json")
    shown, fitted = (json.loads(kvcalc(command, *asked).out)["pool"] for command in ("show", "fit"))
    assert shown == fitted == row["checks"][0]["pool"]
    (folder / "budgets.toml").write_text((folder / "budgets.toml").read_text() + 'reserve = "9GiB"\n')
    assert f"the limit: {terms} - " in " ".join(kvcalc("check").out.split())
    (folder / "budgets.toml").write_text((folder / "budgets.toml").read_text().replace("h100-80gb", "h10-80gb"))
    assert "error: unknown device 'h10-80gb'\n  --> budgets.toml:1, [[budget]] 'a'" in kvcalc("check").err


def test_a_baseline_written_twice_is_the_same(folder, kvcalc):
    kvcalc("check", "--save-baseline", "one.json")
    kvcalc("check", "--save-baseline", "two.json", "--baseline", "one.json")
    first, second = (Path(name).read_bytes() for name in ("one.json", "two.json"))
    assert first == second
    assert b"tool_version" not in first


@pytest.fixture
def saved(folder, kvcalc):
    """A baseline, and budgets that would write another one."""
    kvcalc("check", "--save-baseline", "baseline.json")
    (folder / "budgets.toml").write_text(BUDGETS.replace("gemma-3-4b", "gemma-3-4b@sw=512").replace("60GiB", "70GiB"))
    return Path("baseline.json").read_bytes()


@pytest.mark.parametrize("moment", ["replace", "fsync"])
def test_a_baseline_that_finds_no_space_is_the_old_one(saved, kvcalc, monkeypatch, moment):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, moment, fail)
    assert kvcalc("check", "--save-baseline", "baseline.json").code == 2
    assert Path("baseline.json").read_bytes() == saved


def test_a_baseline_whose_process_ends_before_the_last_step_is_the_old_one(saved):
    program = "import os, sys\nos.replace = lambda *_: os._exit(9)\nfrom kvcalc.cli.app import run\n"
    program += "sys.exit(run(['check', '--save-baseline', 'baseline.json']))"
    variables = {**os.environ, "PYTHONPATH": str(Path(package.__file__).resolve().parents[1])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=variables, check=False)
    assert done.returncode == 9
    assert Path("baseline.json").read_bytes() == saved


def test_a_baseline_is_not_written_while_a_budget_cannot_be_judged(folder, kvcalc):
    (folder / "budgets.toml").write_text(BUDGETS + '\n[[budget]]\nname = "gone"\nmodel = "no-such-model"\n')
    ran = kvcalc("check", "--save-baseline", "new.json")
    assert ran.code == 2 and not Path("new.json").exists()
    assert "warning: new.json is not written: not every budget could be judged" in ran.err


def test_a_failing_check_does_not_move_a_baseline(folder, kvcalc):
    (folder / "budgets.toml").write_text(BUDGETS.replace("60GiB", "70GiB"))
    assert kvcalc("check", "--save-baseline", "baseline.json").code == 0
    before = Path("baseline.json").read_bytes()
    (folder / "budgets.toml").write_text(
        BUDGETS.replace("60GiB", "70GiB").replace("128k", "132k") + 'max_increase = "1%"'
    )
    text = (folder / "budgets.toml").read_text().replace('name = "small"', 'name = "small"\nmax_increase = "0.1%"')
    (folder / "budgets.toml").write_text(text)
    for options in ((), ("--exit-zero",)):
        ran = kvcalc("check", "--baseline", "baseline.json", "--save-baseline", "baseline.json", *options)
        assert ran.code == (0 if options else 1)
        assert "warning: baseline.json stays as it was: not every budget holds" in ran.err
        assert Path("baseline.json").read_bytes() == before
    assert "hint: to accept the increase: kvcalc check --save-baseline baseline.json" in ran.out
    assert kvcalc("check", "--save-baseline", "baseline.json").code == 0
    assert kvcalc("check", "--baseline", "baseline.json").code == 0
    assert Path("baseline.json").read_bytes() != before


def test_a_path_of_an_annotation_counts_from_the_repository(folder, kvcalc, monkeypatch):
    (folder / "service").mkdir()
    (folder / "budgets.toml").rename(folder / "service" / "budgets.toml")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(folder))
    monkeypatch.chdir(folder / "service")
    assert kvcalc("check", "--format", "github").out.startswith("::error file=service/budgets.toml,line=9,")


def test_a_mix_is_explained_part_by_part(folder, kvcalc):
    (folder / "budgets.toml").write_text(
        '[[budget]]\nname = "chat"\nmodel = "gemma-3-27b"\nmix = ["48 x 4k", "16 x 32k"]\nlimit = "200GiB"\n'
    )
    ran = kvcalc("check", "--explain")
    assert ran.code == 0
    assert "KV cache of chat, 48 x 4k alone, step by step" in ran.out
    [row] = checked("check", kvcalc("check", "--format", "json").out)["rows"]
    assert row["mix"] == [{"batch_size": 48, "context": 4096}, {"batch_size": 16, "context": 32768}]


def test_a_refused_file_writes_no_baseline(folder, kvcalc):
    (folder / "budgets.toml").write_text("[[budget]]\n")
    assert kvcalc("check", "--save-baseline", "baseline.json").code == 2
    assert not Path("baseline.json").exists()


# ---- shells ----


def shell(script, folder):
    variables = {**os.environ, "PYTHONPATH": str(Path(package.__file__).resolve().parents[1])}
    command = script.replace("kvcalc", f'"{sys.executable}" -m kvcalc')
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )


def test_set_e_stops_at_a_failing_budget(folder):
    done = shell("set -e; kvcalc check > out; echo not reached", folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert (folder / "out").read_text().startswith("2 of 3 budgets hold")


def test_a_pipe_that_closes_early_does_not_look_like_a_failing_budget(folder):
    many = "".join(
        f'[[budget]]\nname = "b{n}"\nmodel = "gemma-3-1b"\ncontext = "8k"\nlimit = "1GiB"\n' for n in range(400)
    )
    (folder / "budgets.toml").write_text(many)
    done = shell("kvcalc check --format json | head -1; echo ${PIPESTATUS[0]}", folder)
    assert done.stdout == "{\n2\n"
    assert done.stderr == ""


def test_a_check_explains_what_each_budget_takes(kvcalc, tmp_path):
    budgets = tmp_path / "budgets.toml"
    budgets.write_text('[[budget]]\nname = "small"\nmodel = "gemma-3-1b"\ncontext = "8k"\nlimit = "4GiB"\n')
    ran = kvcalc("check", str(budgets), "--explain")
    assert ran.code == 0
    assert "KV cache of small, step by step" in ran.out
    assert "kv_bytes = layers_1 + layers_2" in ran.out
