"""What a shell completes, and how help pages end."""

import subprocess
import sys

import pytest

from kvcalc.cli import complete
from kvcalc.cli.app import COMMANDS


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["gemma-3-27b", "@", "5", ":"], ["1", "1/sw=1024"]),
        (["gemma-3-27b", "@"], ["@global", "@1:1", "@3:1", "@5:1", "@7:1", "@5:1/sw=1024", "@sw=1024"]),
        (["gemma-3-27b", "@", "gl"], ["@global"]),
        (["gemma-3-27b", "--engine", "=", "ol"], ["ollama"]),
        (["-e", "vllm", "-E", "block_size", "="], []),
        (["gemma-3-27b", "@", "global", "-e", "ol"], ["ollama"]),
    ],
)
def test_bash_completes_behind_the_marks_at_which_it_breaks_words(kvcalc, monkeypatch, words, expected):
    line = ["kvcalc", "show", *words]
    for name, value in asked_by_bash("\n".join(line)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COMP_CWORD", str(len(line) - 1))
    assert kvcalc().out.split() == expected


def asked_by_bash(line: str) -> dict[str, str]:
    """How bash asks for the last word of a line (of a line that ends with a blank: for a new word)."""
    return {"_KVCALC_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("kvcalc sh", ["show"]),
        ("kvcalc show gemma-3-2", ["gemma-3-270m", "gemma-3-27b"]),
        ("kvcalc compare gemma-3-27b --engine ideal,vl", ["ideal,vllm"]),
        ("kvcalc show gemma-3-27b --engine vllm -E max_num_b", ["max_num_batched_tokens="]),
        ("kvcalc compare gemma-3-27b --engine vllm,llama.cpp -E llama.cpp.n_b", ["llama.cpp.n_batch="]),
        ("kvcalc check --format j", ["json", "junit"]),
    ],
)
def test_a_shell_completes_names(kvcalc, monkeypatch, line, expected):
    for name, value in asked_by_bash(line).items():
        monkeypatch.setenv(name, value)
    ran = kvcalc()
    assert (ran.code, ran.out.split(), ran.err) == (0, expected, "")


def test_a_process_completes_names(process):
    ran = process(**asked_by_bash("kvcalc sh"))
    assert (ran.code, ran.out, ran.err) == (0, "show\n", "")


def test_every_kind_of_name_is_completed():
    assert "gemma-2-2b@5:1" in complete.models("gemma-2-2b@")
    assert complete.models("gemma-3-27b") == ["gemma-3-27b"]
    assert complete.dtypes("q8") == ["q8_0"]
    assert complete.dtypes("bfloat16,q8_0/q5_") == ["bfloat16,q8_0/q5_1", "bfloat16,q8_0/q5_0", "bfloat16,q8_0/q5_k"]
    assert complete.dtypes("q8_0/q4_") == ["q8_0/q4_1", "q8_0/q4_0", "q8_0/q4_k"]
    assert complete.devices("8xh100-80") == ["8xh100-80gb"]
    assert complete.devices("h100-80") == ["h100-80gb"]
    assert complete.units("b") == ["binary", "bytes"]


def test_completing_loads_no_model_and_no_renderer():
    code = (
        "import sys; from kvcalc.cli import complete; complete.models('g'); complete.engines('v'); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"pydantic", "rich.table", "kvcalc.engines.vllm"}.isdisjoint(loaded)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_help_page_leads_with_a_sentence_and_ends_with_examples_a_line_each(kvcalc, command):
    lines = kvcalc(command, "--help").out.rstrip().splitlines()
    assert lines[2].strip()[0].isupper()
    examples = lines[lines.index("Examples:") + 1 :]
    assert examples
    assert all(line.startswith("  ") and f"kvcalc {command}" in line for line in examples)
