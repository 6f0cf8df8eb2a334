"""Text from outside, through every command and format: nothing in an answer is obeyed by what shows it.

A model's path, its notes, its sources and a budget's message are whatever the author of a file likes.
"""

import csv
import json
import re
import subprocess
import sys
from io import StringIO
from xml.etree import ElementTree

import pytest

from kvcalc.report.formats import FORMATS, format_names

#: File names: escape codes, bidi controls, line ends, C1 controls, markup of every reader, formulas, commands of CI.
NAMES = (
    "\x1b]0;pwn\x07\x1b[31mX\u202e\u2028\x9b\r\n::error::forged",
    "::error::forged ##[error]forged",
    "=cmd|' C'!A0",
    "+1-@x",
    "$\\frac{1}$_a*b*`c`<b>&lt;[d](e)|@someone~~f~~ https:\\\\x www.e.org",
    "_\u6a21\u578b[red]x[\\red]",
)
NOTE = "x\r\r### forged heading\r\n\n<b>forged</b>\n::error::forged\n##[error]forged\x1b[31m\u2028```\n~~~\n=1+1"
SPEC = f"""\
name = {{name}}
num_layers = 2
layout = "1:1/sw=16"
hidden_size = 64
vocab_size = 100
max_context = 4096
notes = [{json.dumps(NOTE)}]
sources = ["x\\n```\\n<b>fence</b>\\n```text", {json.dumps(NOTE)}]
[attention]
num_heads = 4
[feed_forward]
intermediate_size = 128
"""
COMMANDS = {
    "show": ("show", "{}", "-c", "1k", "--explain"),
    "compare": ("compare", "{}", "{}@global", "-c", "1k", "--explain"),
    "sweep": ("sweep", "{}", "{}@global", "-c", "1k,2k", "--growth", "--explain"),
    "fit": ("fit", "{}", "--memory", "1MiB", "-c", "1k", "--explain"),
    "search": ("search", "{}", "--ratios", "1:1", "--windows", "8,16", "-c", "1k"),
    "check": ("check", "budgets.toml", "--explain"),
    "audit": ("audit", "{}.log", "--model", "{}"),
}
#: A start of vLLM whose printed pool is not the predicted one, with a model's name that nobody knows.
LOG = """\
INFO non-default args: {{'model': {name!r}, 'max_model_len': 1024, 'max_num_batched_tokens': 8192}}
INFO Available KV cache memory: 4.0 GiB
INFO GPU KV cache size: 291,658 tokens
"""
ASKED = [(command, name) for command in COMMANDS for name in format_names(command)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    budgets = []
    for number, name in enumerate(NAMES):
        (tmp_path / f"{name}.log").write_text(LOG.format(name=name), encoding="utf-8")
        (tmp_path / f"{name}.toml").write_text(SPEC.replace("{name}", json.dumps(name)), encoding="utf-8")
        budget = {"name": f"{number}=1", "model": f"./m{number}.toml", "message": NOTE}
        (tmp_path / f"m{number}.toml").write_text(SPEC.replace("{name}", json.dumps(name)), encoding="utf-8")
        budgets.append(
            "[[budget]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in budget.items())
            + 'context = "1k"\nlimit = "1KiB"\n'
        )  # fmt: skip
    (tmp_path / "budgets.toml").write_text("".join(budgets), encoding="utf-8")
    return tmp_path


def asked(command, name):
    words = (word.replace("{}.log", f"./{name}.log") for word in COMMANDS[command])
    return tuple(word.replace("{}", f"./{name}.toml") for word in words)


@pytest.mark.parametrize(("command", "format_name"), ASKED)
def test_nothing_in_an_answer_is_obeyed(folder, kvcalc, command, format_name):
    for words in dict.fromkeys(asked(command, name) for name in NAMES):  # `check` reads all of them at once
        ran = kvcalc(*words, "--format", format_name)
        assert ran.code in (0, 1) and ran.out, ran.err
        lines = ran.out.split("\n")
        assert all(line.isprintable() for line in lines)
        if format_name != "github":  # no line is a command of a CI runner
            assert not any(line.lstrip().startswith("::") for line in lines)
            assert "##[" not in ran.out
        CHECKS.get(format_name, lambda out: None)(ran.out)


def check_json(out):
    assert json.loads(out)["rows"]


def check_csv(out):
    for row in csv.reader(StringIO(out)):
        assert not any(cell[:1] in ("=", "@", "+") for cell in row)


def check_markdown(out):
    """Outside of its fences no line is a heading, a rule or HTML of anybody else."""
    fence = None
    for line in out.split("\n"):
        run = re.match("`{3,}", line)
        if fence is None and run:
            fence = run[0]
        elif fence is not None and line.rstrip() == fence:
            fence = None
        elif fence is None:
            assert not re.match(r"#+ forged|~~~", line)
            assert not re.search(r"(?<!\\)[<&](?!#8203;)|(?<!\\)\[|(?<![\w\\])@\w|://|www\.|(?<!\\)~", line)
    assert fence is None


def check_github(out):
    commands = [line for line in out.split("\n") if line.startswith("::")]
    assert commands and all(re.match(r"::(error|warning|notice) [^:]*::", line) for line in commands)


def check_xml(out):
    assert list(ElementTree.fromstring(out).iter("testcase"))  # noqa: S314 - our own text


CHECKS = {
    "json": check_json,
    "csv": check_csv,
    "markdown": check_markdown,
    "github": check_github,
    "junit": check_xml,
}


@pytest.mark.parametrize("name", NAMES)
def test_an_error_is_no_command_and_a_line_each(kvcalc, name):
    for words in (("show", f"{name}.toml"), ("show", "gemma-3-1b", "--engine", name), ("check", f"{name}.toml")):
        ran = kvcalc(*words)
        assert ran.code == 2
        lines = ran.err.split("\n")
        assert all(line.isprintable() and not line.lstrip().startswith("::") for line in lines)
        assert "##[" not in ran.err


def test_every_format_is_tried():
    assert {name for _, name in ASKED} == set(FORMATS)


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_picture_shows_names_as_they_are(folder, kvcalc, suffix):
    models = [f"./{name}.toml" for name in NAMES]
    ran = kvcalc("sweep", *models, "-c", "1k,2k", "--plot", f"x.{suffix}", "--format", "json")
    assert (ran.code, ran.err) == (0, f"wrote x.{suffix}\n")
    if suffix == "svg":
        ElementTree.parse(folder / "x.svg")  # noqa: S314 - our own picture


def test_markup_and_underscores_of_names_stand_in_the_key(tmp_path):
    code = """
import matplotlib.axes, sys
from kvcalc.report import charts
from kvcalc.report.document import Chart, Document, Series
series = tuple(Series(label, (1, 2), (1024, 2048), joined=True) for label in ("a$b$c", "_under", "\\x1b"))
shown = []
real = charts._key
def key(axes, chart, drawn, **placed):
    real(axes, chart, drawn, **placed)
    shown.extend((text.get_text(), text.get_parse_math()) for text in axes.get_legend().get_texts())
charts._key = key
from pathlib import Path
charts.draw(Document("", (), (), (), "sweep", charts=(Chart("curves", "", series),)), Path("x.svg"))
print(shown)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[('a$b$c', False), ('_under', False), ('\\\\x1b', False)]\n"
