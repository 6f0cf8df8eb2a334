"""The shell steps of the GitHub action, run as the action runs them; and the hook for pre-commit."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import kvcalc

ROOT = Path(__file__).parents[2]
ACTION = ROOT / ".github" / "actions" / "check" / "action.yml"
BUDGET = '[[budget]]\nname = "prod"\nmodel = "gemma-3-1b"\ncontext = "32k"\nlimit = "{limit}"\n'


def scripts():
    """The ``run:`` blocks of the action, in their order."""
    text = ACTION.read_text(encoding="utf-8")
    return [textwrap.dedent(block) for block in re.findall(r"^ +run: \|\n((?:        .*\n|\n)+)", text, re.MULTILINE)]


@pytest.fixture
def step(tmp_path):
    """Run a step of the action in a folder, with programs of ours before those of the machine."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, command in (
        ("kvcalc", f'exec "{sys.executable}" -m kvcalc "$@"'),
        ("python3", 'printf "%s\\n" "$*" >> installed'),
    ):
        program = programs / name
        program.write_text(f"#!/bin/sh\n{command}\n")
        program.chmod(0o755)

    def ran(number, **environment):
        script = tmp_path / "step.sh"
        script.write_text(scripts()[number])
        variables = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", **environment}
        variables["PYTHONPATH"] = str(Path(kvcalc.__file__).resolve().parents[1])
        command = ["bash", "--noprofile", "--norc", "-euo", "pipefail", str(script)]
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)

    return ran


def test_every_step_of_the_action_is_run_here():
    assert len(scripts()) == ACTION.read_text(encoding="utf-8").count("run:") == 2


def test_the_first_step_installs_what_it_is_told_to_and_no_option(step, tmp_path):
    done = step(0, KVCALC_INSTALL="kvcalc==1.2; touch never")
    assert done.returncode == 0
    assert (tmp_path / "installed").read_text().endswith(" -- kvcalc==1.2; touch never\n")
    assert not (tmp_path / "never").exists()


def test_a_budget_that_cannot_be_judged_is_annotated_and_in_the_summary(step, tmp_path):
    (tmp_path / "budgets.toml").write_text(
        BUDGET.format(limit="3GiB") + BUDGET.replace("prod", "lost").replace("-1b", "-x")
    )
    done = step(1, GITHUB_STEP_SUMMARY=str(tmp_path / "summary.md"), KVCALC_FILES="", KVCALC_BASELINE="")
    assert done.returncode == 2
    assert done.stdout.startswith("::error file=budgets.toml,line=6,title=kvcalc%3A lost::")
    assert "1 of 2 budgets hold, 1 not judged" in (tmp_path / "summary.md").read_text()


def test_the_action_installs_the_checkout_that_it_is_a_part_of(step, tmp_path):
    assert step(0, KVCALC_INSTALL="checkout", GITHUB_ACTION_PATH=str(ACTION.parent)).returncode == 0
    installed = Path((tmp_path / "installed").read_text().split(" -- ")[1].strip())
    assert installed.resolve() == ROOT
    assert (installed / "pyproject.toml").is_file()
    assert re.search(r"^    default: checkout$", ACTION.read_text(encoding="utf-8"), re.MULTILINE)


def test_a_failing_budget_fails_the_step_with_an_annotation_and_a_summary(step, tmp_path):
    (tmp_path / "my budgets.toml").write_text(BUDGET.format(limit="1GiB"))
    summary = tmp_path / "summary.md"
    done = step(1, KVCALC_FILES="my budgets.toml\n", KVCALC_BASELINE="", GITHUB_STEP_SUMMARY=str(summary))
    assert done.returncode == 1
    assert done.stdout.startswith("::error file=my budgets.toml,line=1,title=kvcalc%3A prod::prod: ")
    assert "| fail | prod |" in summary.read_text()


def test_budgets_that_hold_pass_the_step_without_a_summary_file(step, tmp_path):
    (tmp_path / "budgets.toml").write_text(BUDGET.format(limit="4GiB"))
    done = step(1, KVCALC_FILES="", KVCALC_BASELINE="", GITHUB_STEP_SUMMARY="")
    assert (done.returncode, done.stdout) == (0, "kvcalc check: 1 budget, 0 failed, 0 with a warning\n")


def test_a_broken_file_and_a_lost_baseline_end_as_2(step, tmp_path):
    (tmp_path / "budgets.toml").write_text("[[budget]]\n")
    assert step(1, KVCALC_FILES="", KVCALC_BASELINE="", GITHUB_STEP_SUMMARY="").returncode == 2
    (tmp_path / "budgets.toml").write_text(BUDGET.format(limit="4GiB"))
    assert step(1, KVCALC_FILES="", KVCALC_BASELINE="lost.json", GITHUB_STEP_SUMMARY="").returncode == 2


def test_the_hook_for_pre_commit_runs_whatever_has_changed():
    """A budget reads specs, configs, weights and baselines of any name: no pattern of file names knows them all."""
    hook = (ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8")
    assert re.search(r"^  entry: kvcalc check$", hook, re.MULTILINE)
    assert re.search(r"^  always_run: true\b", hook, re.MULTILINE)
    assert not re.search(r"^  (files|types):", hook, re.MULTILINE)
