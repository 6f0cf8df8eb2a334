"""Exit codes that scripts can trust: streams that are missing or full, and signals at any moment."""

import io
import os
import signal
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from kvcalc.cli.process import complain, guarded, interrupted

BUDGET = '[[budget]]\nname = "small"\nmodel = "gemma-3-1b"\ncontext = "32k"\nlimit = "{limit}"\n'
SHOW = "show gemma-2-2b -c 8k"
KVCALC = [sys.executable, "-m", "kvcalc"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "holds.toml").write_text(BUDGET.format(limit="4GiB"))
    (tmp_path / "fails.toml").write_text(BUDGET.format(limit="1GiB"))
    return tmp_path


def shell(words: str, streams: str) -> subprocess.CompletedProcess[str]:
    command = f'"{sys.executable}" -m kvcalc {words} {streams}'
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)


#: One question for each exit code, and the two ways out that load no command.
CODES = {"check holds.toml": 0, "check fails.toml": 1, "check holds.toml --only gone": 2, "--version": 0, "--help": 0}


@pytest.mark.parametrize(
    ("words", "streams"),
    [
        *product(CODES, (">&-", "2>&-")),
        ("check fails.toml", "<&-"),
        ("check holds.toml", "<&- >&- 2>&-"),
    ],
)
def test_a_missing_stream_is_dev_null(words, streams):
    ran, code = shell(words, streams), CODES[words]
    assert ran.returncode == code
    assert "internal" not in ran.stderr
    assert "Traceback" not in ran.stderr
    if ">&-" not in streams.replace("2>&-", ""):
        assert bool(ran.stdout) == (code != 2)


def test_an_answer_into_a_file_needs_no_standard_output(folder):
    ran = shell("check holds.toml -o answer.csv", ">&-")
    assert (ran.returncode, ran.stderr) == (0, "wrote answer.csv\n")
    assert (folder / "answer.csv").stat().st_size


def test_a_log_from_a_missing_standard_input_is_an_empty_log():
    ran = shell("audit -", "<&-")
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: no figure of a known engine in 0 lines")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize("words", ["--version", SHOW, "--help"])
def test_a_full_disk_ends_as_2(words):
    ran = shell(words, "> /dev/full")
    assert (ran.returncode, ran.stderr) == (2, "error: no space left on device\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_standard_error_changes_no_answer():
    assert shell("check fails.toml", "2> /dev/full").returncode == 1
    assert shell("show nothing", "2> /dev/full").returncode == 2


@pytest.mark.parametrize("words", ["--version", SHOW])
def test_a_reader_that_has_left_ends_it_as_2_and_in_silence(words):
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run([*KVCALC, *words.split()], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (2, "")


def test_whatever_escapes_ends_as_2(capsys):
    def escape():
        raise AttributeError("'NoneType' object has no attribute 'write'")

    assert guarded(escape) == 2
    assert "internal error (AttributeError)" in capsys.readouterr().err
    assert guarded(lambda: sys.exit("words")) == 2
    assert guarded(lambda: sys.exit(1)) == 2
    assert guarded(lambda: sys.exit(0)) == 0
    assert guarded(lambda: 1) == 1


def test_an_interrupt_before_signals_are_heard_ends_as_any_other(monkeypatch):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as a new program has it
    monkeypatch.setattr("kvcalc.cli.process.open_missing_streams", lambda: signal.raise_signal(signal.SIGINT))
    assert guarded(lambda: 0) == 128 + signal.SIGINT


def test_an_interrupt_that_a_class_wraps_is_an_interrupt():
    class Field:
        def __set_name__(self, owner: type, name: str) -> None:
            raise KeyboardInterrupt

    with pytest.raises((RuntimeError, KeyboardInterrupt)) as caught:
        type("Model", (), {"field": Field()})
    assert interrupted(caught.value)
    assert not interrupted(ValueError())


#: Writes a piece of a file through the command line's own guard, and waits for a signal. The signals do at first what
#: they do in a terminal, also under nohup or in the background, which have programs ignore some of them.
WAIT = """
import signal, sys, time
from pathlib import Path
from kvcalc.cli.process import guarded
from kvcalc.report.files import write_file

def work():
    def pieces():
        yield b"new" * 100_000
        print("writing", flush=True)
        time.sleep(60)
    write_file(Path("answer.csv"), pieces())
    return 0

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
sys.exit(guarded(work))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_removes_what_is_half_written_and_ends_as_a_shell_says(folder, number):
    (folder / "answer.csv").write_text("old")
    before = set(folder.iterdir())
    with subprocess.Popen([sys.executable, "-c", WAIT], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout.readline() == b"writing\n"
        program.send_signal(number)
        assert program.stderr.read() == b""
        assert program.wait(300) == 128 + number
    assert set(folder.iterdir()) == before
    assert (folder / "answer.csv").read_text() == "old"


def test_a_signal_while_a_class_is_made_ends_as_any_other(folder):
    """dataclasses make methods with exec(), and "python -m" remembers an interrupt that came out of one."""
    (folder / "program.py").write_text(
        "import signal, sys\nfrom kvcalc.cli.process import guarded\n"
        "sys.exit(guarded(lambda: exec('signal.raise_signal(signal.SIGTERM)')))\n"
    )
    ran = subprocess.run([sys.executable, "-m", "program"], capture_output=True, check=False)
    assert (ran.returncode, ran.stderr) == (128 + signal.SIGTERM, b"")


def test_a_signal_that_is_ignored_stays_ignored():
    code = "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); from kvcalc.cli.process import guarded\n"
    code += "sys.exit(guarded(lambda: signal.raise_signal(signal.SIGHUP) or 0))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_other_module_leaves_the_process():
    package = Path(guarded.__code__.co_filename).parents[1]
    for path in package.rglob("*.py"):
        assert "os._exit" not in path.read_text(encoding="utf-8")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def test_a_complaint_on_a_terminal_is_folded_and_its_first_word_has_a_colour(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    complain("error: no such model as this one\nhint: see: it\nwrote x.svg")
    assert sys.stderr.getvalue() == (
        "\x1b[1;31merror:\x1b[0m no such model as this\n  one\n\x1b[1;36mhint:\x1b[0m see: it\nwrote x.svg\n"
    )
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    complain("warning: far")
    assert sys.stderr.getvalue() == "warning: far\n"
