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


def test_the_workflow_lists_every_oracle(tmp_path):
    output = tmp_path / "output"
    environment = os.environ | {"GITHUB_OUTPUT": str(output)}
    subprocess.run(["bash", "-e", "-c", scripts()[0]], cwd=ROOT, env=environment, check=True)
    name, _, listed = output.read_text().strip().partition("=")
    assert (name, json.loads(listed)) == ("oracles", [path.stem for path in ORACLES])


@pytest.mark.parametrize("path", ORACLES, ids=[path.stem for path in ORACLES])
def test_an_oracle_is_installed_at_its_newest_and_run_by_its_own_words(path, tmp_path):
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$*" >> "$OUT"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": str(tmp_path / "out")}
    _, install, run, _ = scripts()
    for script in (install, run):
        command = ["bash", "-eo", "pipefail", "-c", script.replace("answer.txt", str(tmp_path / "answer.txt"))]
        subprocess.run(command, cwd=ROOT, env=environment | {"SCRIPT": str(path)}, check=True)
    *installed, ran = (tmp_path / "out").read_text().splitlines()
    assert installed
    assert all(line.startswith("-m pip install ") and "==" not in line for line in installed)
    assert ran.startswith(str(path))
    assert "==" in "".join(re.findall(r"^# needs: (.*)", path.read_text(encoding="utf-8"), re.MULTILINE))
