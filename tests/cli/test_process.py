"""The program as a process: pipes, terminals, encodings, what it loads."""

import os
import pty
import signal
import subprocess
import sys

import pytest

COMPARE = ("compare", "gemma-2-2b@global", "gemma-2-2b@5:1/sw=1024", "-c", "8k")


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_kvcalc_loads_neither_typer_nor_rich():
    loaded = loaded_by("import kvcalc; kvcalc.footprint(kvcalc.load('gemma-2-2b'), context=8192)")
    assert loaded.isdisjoint({"typer", "rich"})
    assert "kvcalc.footprints" in loaded


def test_json_and_csv_do_not_load_rich():
    for format_name in ("json", "csv"):
        call = f"run(['show', 'gemma-2-2b', '-c', '8k', '--format', '{format_name}'])"
        assert "rich" not in loaded_by(f"from kvcalc.cli.app import run; {call}")


def test_version_loads_nothing_heavy(process):
    assert process("--version").out.startswith("kvcalc 0.")
    heavy = {"typer", "rich", "pydantic", "kvcalc.architecture"}
    code = "import sys; sys.argv = ['kvcalc', '--version']; from kvcalc.cli import main; main()"
    assert loaded_by(code).isdisjoint(heavy)


def test_a_piped_table_is_never_cut_and_has_no_colours(process):
    ran = process(*COMPARE)
    assert "\x1b" not in ran.out
    assert "22 sliding (1024) + 4 full" in ran.out
    assert "…" not in ran.out


def in_terminal(*arguments: str, width: int, **environment: str) -> str:
    """What the program shows on a terminal of that width."""
    primary, secondary = pty.openpty()
    variables = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS")}
    variables |= {"TERM": "xterm-256color", "COLUMNS": str(width), **environment}
    with subprocess.Popen(
        [sys.executable, "-m", "kvcalc", *arguments], stdout=secondary, stderr=subprocess.DEVNULL, env=variables
    ) as program:
        os.close(secondary)
        shown = b""
        try:
            while piece := os.read(primary, 65536):
                shown += piece
        except OSError:  # how Linux says that the other side is closed
            pass
        program.wait()
    os.close(primary)
    return shown.decode()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal_and_no_word_is_cut(width):
    shown = in_terminal(*COMPARE, width=width, NO_COLOR="1").replace("\r", "")
    assert max(map(len, shown.splitlines())) <= width
    assert "gemma-2-2b@5:1/sw=1024" in shown
    assert "…" not in shown
    assert "\x1b" not in shown  # NO_COLOR


def test_a_terminal_gets_colours_unless_it_can_show_none():
    assert "\x1b[" in in_terminal(*COMPARE, width=120)
    assert "\x1b" not in in_terminal(*COMPARE, width=120, TERM="dumb")


def test_a_terminal_that_knows_no_block_characters_gets_plain_ones(process):
    ran = process(*COMPARE, PYTHONIOENCODING="ascii")
    assert ran.code == 0
    assert ran.out.isascii()
    assert "####" in ran.out


def test_an_interrupt_ends_quietly_with_130(tmp_path):
    log = tmp_path / "slow.log"
    os.mkfifo(log)
    with subprocess.Popen(
        [sys.executable, "-m", "kvcalc", "audit", str(log)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        with log.open("w"):  # opens when the program has opened the other side, and is waiting
            program.send_signal(signal.SIGINT)
            assert program.wait(300) == 130
        assert program.communicate() == (b"", b"")
