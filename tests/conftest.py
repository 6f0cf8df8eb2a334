"""Running the command line as a user does, and in this process where only its answer matters; and no deadlines."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import settings

from kvcalc.cli.app import run

# No test holds a clock, hypothesis neither; on CI with what it sets there.
# A commit gives the same verdict, and the same coverage, each time; tests/tools/fuzz.py looks at new inputs by a seed.
settings.register_profile("kvcalc", settings(), deadline=None, derandomize=True, database=None)
settings.load_profile("kvcalc")

# The programs that tests start load bytecode, as an installed program does, and need not be compiled each time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell exports COLUMNS, and pytest-xdist sets it: tables would be as wide as the screen of whoever runs them.
os.environ.pop("COLUMNS", None)
# A shell starts what it runs in the background deaf to SIGINT, and programs inherit that from this process.
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Ran:
    """What a command line printed and how it ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def kvcalc(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a command line in this process."""

    def ran(*arguments: str) -> Ran:
        code = run(list(arguments))
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return ran


@pytest.fixture
def process() -> Callable[..., Ran]:
    """Run a command line in a process of its own, with further environment variables."""

    def ran(*arguments: str, **environment: str) -> Ran:
        variables = {**os.environ, **environment}
        done = subprocess.run(
            [sys.executable, "-m", "kvcalc", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            env=variables,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return ran
