"""The whole test suite on every Python at hand, with the lowest and the newest allowed typer, rich and pydantic.

python tests/tools/matrix.py [PYTHON...]

PYTHON is a version ("3.12") or an interpreter's path; without any, all of VERSIONS. A version is looked for on PATH,
among pyenv's and among uv's. Each run has an environment of its own in a temporary folder, and needs a package index.
The lowest versions are the lower bounds in pyproject.toml. Exits 1 when a run fails.
"""

# ruff: noqa: T201 - a script that prints its table
from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

VERSIONS = ("3.11", "3.12", "3.13", "3.14")
ROOT = Path(__file__).resolve().parents[2]
ROW = "{:8} {:8} {:8} {:8} {:>8} {:>8} {:>8}"


def main() -> int:
    print(ROW.format("python", *bounds(), "passed", "failed", "seconds"), flush=True)
    failures = 0
    for wanted in sys.argv[1:] or VERSIONS:
        interpreter = find(wanted)
        if interpreter is None:
            print(f"{wanted:8} not on this machine", flush=True)
            continue
        for pins in ([f"{name}=={lowest}" for name, lowest in bounds().items()], []):
            failures += run(interpreter, pins)
    return 1 if failures else 0


def bounds() -> dict[str, str]:
    """The dependencies and their lower bounds: ``typer>=0.29,<1`` is typer: 0.29."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        dependencies = tomllib.load(file)["project"]["dependencies"]
    return dict(re.match(r"([\w-]+)>=([\d.]+)", each).groups() for each in dependencies)  # type: ignore[union-attr]


def find(wanted: str) -> str | None:
    """An interpreter that starts; pyenv's shims stand on PATH also for versions that are not switched on."""
    for candidate in candidates(wanted):
        try:
            subprocess.run([candidate, "-c", "import venv, ensurepip"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return candidate
    return None


def candidates(wanted: str) -> Iterator[str]:
    if "/" in wanted:
        yield wanted
        return
    for folder, pattern in ((".pyenv/versions", f"{wanted}.*"), (".local/share/uv/python", f"cpython-{wanted}.*")):
        for each in sorted((Path.home() / folder).glob(pattern)):
            yield str(each / "bin" / "python")
    yield shutil.which(f"python{wanted}") or wanted


def run(interpreter: str, pins: list[str]) -> bool:
    """One row of the table; whether the run failed. What a failed run wrote goes to standard error."""
    with tempfile.TemporaryDirectory(prefix="kvcalc-matrix-") as folder:
        subprocess.run([interpreter, "-m", "venv", folder], check=True)
        python = next(each for each in (f"{folder}/bin/python", f"{folder}/Scripts/python.exe") if Path(each).exists())
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--upgrade"]
        installed = subprocess.run([*pip, "-e", f"{ROOT}[test]", *pins], capture_output=True, text=True, check=False)
        if installed.returncode:
            print(f"{interpreter} {' '.join(pins)}: cannot be installed", flush=True)
            print(installed.stderr, file=sys.stderr)
            return True
        start = time.perf_counter()
        tests = subprocess.run(
            [python, "-m", "pytest", "-p", "no:cacheprovider"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - start
        counts = {word: count for count, word in re.findall(r"(\d+) (passed|failed|error)", tests.stdout)}
        failed = int(counts.get("failed", 0)) + int(counts.get("error", 0))
        versions = [version(python, name) for name in ("python", *bounds())]
        print(ROW.format(*versions, counts.get("passed", 0), failed, f"{seconds:.0f}"), flush=True)
        if tests.returncode:
            print(tests.stdout[-20_000:] + tests.stderr, file=sys.stderr)
        return tests.returncode != 0


def version(python: str, name: str) -> str:
    """The version of a package in an environment, or of its Python."""
    code = f"import importlib.metadata; print(importlib.metadata.version({name!r}))"
    if name == "python":
        code = "import platform; print(platform.python_version())"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
