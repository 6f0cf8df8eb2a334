"""The weekly job finds every oracle, and each says what it needs and which version kvcalc knows."""

import json
import os
import re
import subprocess
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKFLOW = (ROOT / ".github/workflows/engines.yml").read_text(encoding="utf-8")
#: All but the tables of other calculators and of recorded start-ups, which run no engine.
TABLES = {"peers.py", "device_memory.py"}
ORACLES = sorted(path for path in (ROOT / "tests/oracles").glob("*.py") if path.name not in TABLES)


def scripts() -> list[str]:
    """The steps of the workflow that are shell scripts of several lines."""
    blocks = re.findall(r"^ +run: \|\n((?: {10}.*\n)+)|^ +- run: \|\n((?: {10}.*\n)+)", WORKFLOW, re.MULTILINE)
    return [textwrap.dedent(first or second) for first, second in blocks]


@pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").iterdir()), ids=lambda path: path.stem)
def test_a_workflow_runs_the_code_of_others_at_one_commit(path):
    used = re.findall(r"uses: (.*)", path.read_text(encoding="utf-8"))
    assert used
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", name) for name in used)


def test_the_workflow_lists_every_oracle(tmp_path):
    output = tmp_path / "output"
    environment = os.environ | {"GITHUB_OUTPUT": str(output)}
    subprocess.run(["bash", "-e", "-c", scripts()[0]], cwd=ROOT, env=environment, check=True)
    name, _, listed = output.read_text().strip().partition("=")
    assert (name, json.loads(listed)) == ("oracles", [path.stem for path in ORACLES])


@pytest.mark.parametrize("path", ORACLES, ids=[path.stem for path in ORACLES])
def test_an_oracle_is_installed_at_its_newest_and_run_by_its_own_words(path, tmp_path):
    for name in ("git", "pip", "python"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "{name} $*" >> "$OUT"\n')
        program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": str(tmp_path / "out")}
    script = scripts()[1].replace("answer.txt", str(tmp_path / "answer.txt"))
    command = ["bash", "-eo", "pipefail", "-c", script]
    subprocess.run(command, cwd=ROOT, env=environment | {"SCRIPT": str(path)}, check=True, capture_output=True)
    first, *installed, ran = (tmp_path / "out").read_text().splitlines()
    assert first.startswith("pip install . ")
    assert all(line.startswith(("pip install ", "git ")) and "==" not in line for line in (first, *installed))
    assert ran.startswith(f"python tests/oracles/{path.name}")
    known = r"^    \$ (pip install .*==\d|git .* [0-9a-f]{40}$)"
    assert re.search(known, path.read_text(encoding="utf-8"), re.MULTILINE)


def test_a_job_fails_where_its_oracle_does_and_its_summary_begins_at_the_smallest_case(tmp_path):
    oracle = tmp_path / "oracle.py"
    commands = ("echo 7 cases", "echo the smallest case that differs: 3 tokens; false", "echo not reached")
    oracle.write_text("".join(f"    $ {each}\n" for each in commands))
    environment = {**os.environ, "SCRIPT": str(oracle), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary")}
    _, run, summarize = scripts()
    command = ["bash", "-eo", "pipefail", "-c", run]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert ran.returncode == 1
    subprocess.run(["bash", "-e", "-c", summarize], cwd=tmp_path, env=environment, check=True)
    fence, first, *_ = (tmp_path / "summary").read_text().splitlines()
    assert (fence, first) == ("```text", "the smallest case that differs: 3 tokens")
