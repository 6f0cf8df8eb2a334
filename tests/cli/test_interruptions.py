"""Whatever stops the program, a file is the old one or the new one, and the exit code says which."""

import os
import signal
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import pytest
from answers import checked

from kvcalc.report.files import write_file

SHOW = ("show", "gemma-2-2b", "-c", "8k")
BUDGETS = '[[budget]]\nname = "small"\nmodel = "gemma-3-1b"\ncontext = "32k"\nlimit = "3GiB"\n'
#: Writes a piece of the new file, says so, and waits to be killed.
WRITE_AND_WAIT = """
import sys, time
from pathlib import Path

from kvcalc.report.files import write_file

def pieces():
    yield b"new" * 100_000
    print("writing", flush=True)
    time.sleep(60)

write_file(Path(sys.argv[1]), pieces())
"""


@pytest.fixture
def budgets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "budgets.toml").write_text(BUDGETS)
    return tmp_path


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_process_that_ends_while_it_writes_leaves_the_old_file_whole(tmp_path, end):
    path = tmp_path / "baseline.json"
    path.write_text("old")
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_AND_WAIT, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as program:
        assert program.stdout.readline() == b"writing\n"
        program.send_signal(end)
        assert program.wait(300) != 0
    assert path.read_text() == "old"
    left = [other.name for other in tmp_path.iterdir() if other != path]
    # Nobody can tidy up behind a SIGKILL; an interrupt has the time to.
    assert len(left) <= (end != signal.SIGINT)
    assert all(name.startswith(".baseline.json.") for name in left)


def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path):
    def pieces():
        yield b"new"
        raise KeyboardInterrupt

    path = tmp_path / "answer.csv"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_file(path, pieces())
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="no folder that refuses every user")
def test_a_folder_that_takes_no_file_is_one_error(kvcalc):
    ran = kvcalc(*SHOW, "-o", "/proc/self/answer.json")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: cannot write the file: ")


@pytest.mark.parametrize("option", ["-o", "--save-baseline"])
def test_a_file_in_the_place_of_a_folder_is_one_error(kvcalc, budgets, option):
    (budgets / "file").write_text("old")
    ran = kvcalc("check", option, "file/baseline.json")
    assert ran.code == 2
    assert ran.err.splitlines() == ["error: cannot write the file: not a directory", "  --> file/baseline.json"]
    assert (budgets / "file").read_text() == "old"


def test_a_refused_question_leaves_the_output_and_the_baseline_as_they_were(kvcalc, budgets):
    for words in (("-o", "kept", "--format", "xml"), ("-o", "kept", "--only", "gone"), ("--save-baseline", "kept")):
        if "--save-baseline" in words:  # a budget that nobody can judge has its row in a report, and no baseline
            (budgets / "budgets.toml").write_text(BUDGETS.replace("3GiB", "3 potatoes"))
        (budgets / "kept").write_text("old")
        assert kvcalc("check", *words).code == 2
        assert (budgets / "kept").read_text() == "old"


@pytest.mark.parametrize(
    "words",
    [
        ("show", "gone.toml", "-c", "8k"),
        ("show", "gone/config.json", "-c", "8k"),
        ("show", "gone.gguf", "-c", "8k"),
        ("check", "budgets.toml", "--baseline", "gone.json"),
        ("audit", "gone.log"),
    ],
)
def test_a_file_that_has_vanished_is_one_error_that_names_it(kvcalc, budgets, words):
    ran = kvcalc(*words)
    assert (ran.code, ran.out) == (2, "")
    assert "no such file or directory" in ran.err
    assert "gone" in ran.err.splitlines()[1]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize("option", ["-o", "--save-baseline"])
def test_a_full_disk_under_a_file_is_one_error(kvcalc, budgets, option):
    ran = kvcalc("check", option, "/dev/full")
    assert ran.code == 2
    assert ran.err.splitlines() == ["error: cannot write the file: no space left on device", "  --> /dev/full"]


def test_an_interrupted_search_ends_with_130_and_shows_the_best_so_far():
    grid = ("--ratios", "1:1,5:1", "--windows", "1..1000000", "-c", "1k,2k", "--memory", "80GiB", "--top", "3")
    words = ("search", "gemma-2-2b", *grid, "--format", "json")
    with subprocess.Popen(
        [sys.executable, "-m", "kvcalc", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert "of 4,000,000 candidates" in program.stderr.readline()  # its progress: it is searching
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=300)
    assert program.returncode == 130
    assert "Traceback" not in err
    answer = checked("search", out)
    assert answer["search"]["interrupted"]
    assert len(answer["rows"]) >= 3  # the best so far, and the front


def wrapped():
    """What Python 3.11 does where an interrupt comes while a class is made."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt as error:
        raise RuntimeError("Error calling __set_name__") from error


@pytest.mark.parametrize("interrupted", [partial(signal.raise_signal, signal.SIGINT), wrapped])
def test_an_interrupt_while_the_program_loads_ends_quietly_with_130(monkeypatch, capsys, interrupted):
    import kvcalc.cli

    monkeypatch.setattr("kvcalc.cli.app.run", interrupted)
    monkeypatch.setattr(sys, "argv", ["kvcalc"])
    with pytest.raises(SystemExit) as ended:
        kvcalc.cli.program()
    assert ended.value.code == 130
    assert capsys.readouterr().err == ""


LLAMA = '{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, '
LLAMA += '"intermediate_size": 128, "vocab_size": 100}'
VLLM_LOG = "INFO vLLM API server version 0.26.0\nINFO non-default args: {'model': 'google/gemma-3-27b-it'}\n"
VLLM_LOG += "INFO Available KV cache memory: 40.0 GiB\nINFO GPU KV cache size: 291,658 tokens\n"


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("check budgets.toml -o budgets.toml", "budgets.toml"),
        ("check budgets.toml -o link.toml", "budgets.toml"),
        ("check budgets.toml -o hard.toml", "budgets.toml"),
        ("check budgets.toml -o ../{folder}/budgets.toml", "budgets.toml"),
        ("check budgets.toml --save-baseline budgets.toml", "budgets.toml"),
        ("check ours.toml -o config.json", "config.json"),
        ("check ours.toml --save-baseline config.json", "config.json"),
        ("show config.json -c 1k -o config.json", "config.json"),
        ("show . -c 1k --format json -o config.json", "config.json"),
        ("compare config.json gemma-3-1b -c 1k -o config.json", "config.json"),
        ("presets export config.json -o config.json", "config.json"),
        ("audit server.log -c 128k -o server.log", "server.log"),
    ],
)
def test_no_answer_overwrites_what_was_read(kvcalc, budgets, words, kept):
    (budgets / "config.json").write_text(LLAMA)
    (budgets / "ours.toml").write_text(BUDGETS.replace("gemma-3-1b", "config.json"))
    (budgets / "server.log").write_text(VLLM_LOG)
    (budgets / "link.toml").symlink_to("budgets.toml")
    (budgets / "hard.toml").hardlink_to(budgets / "budgets.toml")
    before = {file: file.read_bytes() for file in budgets.iterdir()}
    ran = kvcalc(*words.format(folder=budgets.name).split())
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: the output is a file that was read\n")
    assert any(name in ran.err for name in (kept, "link.toml", "hard.toml"))
    assert {file: file.read_bytes() for file in budgets.iterdir()} == before


@pytest.mark.parametrize(
    "words",
    [
        "check -o answer.json --save-baseline answer.json",
        "check -o answer.json --save-baseline link",
        "sweep gemma-3-1b -c 1k,2k --plot answer.svg -o picture",
    ],
)
def test_two_outputs_are_two_files(kvcalc, budgets, words):
    (budgets / "link").symlink_to("answer.json")
    (budgets / "picture").symlink_to("answer.svg")
    ran = kvcalc(*words.split())
    assert (ran.code, ran.out) == (2, "")
    assert "two outputs are the same file" in ran.err
    assert not [file for file in budgets.iterdir() if file.name.startswith("answer")]


def test_two_names_of_one_file_are_one_output(kvcalc, budgets):
    (budgets / "one").write_text("old")
    (budgets / "two").hardlink_to(budgets / "one")
    ran = kvcalc("check", "-o", "one", "--save-baseline", "two")
    assert (ran.code, ran.out) == (2, "")
    assert "two outputs are the same file" in ran.err
    assert (budgets / "one").read_text() == "old"


def test_a_baseline_is_renewed_in_its_place_and_dev_null_takes_any_number_of_outputs(kvcalc, budgets):
    assert kvcalc("check", "--save-baseline", "baseline.json").code == 0
    assert kvcalc("check", "--baseline", "baseline.json", "--save-baseline", "./baseline.json").code == 0
    assert kvcalc("check", "-o", "/dev/null", "--save-baseline", "/dev/null").code == 0


def test_a_link_is_written_through_also_where_its_target_is_not_there_yet(kvcalc, budgets):
    (budgets / "folder").mkdir()
    for target in ("there", "not-there"):
        (budgets / "link").unlink(missing_ok=True)
        (budgets / "link").symlink_to(f"folder/{target}")
        (budgets / "folder" / "there").write_text("old")
        assert kvcalc(*SHOW, "--format", "csv", "-o", "link").code == 0
        assert (budgets / "link").is_symlink()
        assert (budgets / "folder" / target).read_text().startswith("reference")


def test_a_file_of_two_names_is_written_through_or_stays_as_it_was(budgets):
    (budgets / "one").write_text("old, and longer")
    (budgets / "two").hardlink_to(budgets / "one")
    write_file(budgets / "two", [b"new"])
    assert (budgets / "one").read_text() == "new"

    def pieces():
        yield b"newer"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(budgets / "two", pieces())
    assert [file.read_text() for file in budgets.iterdir() if file.name in ("one", "two")] == ["new", "new"]


def test_a_file_in_a_folder_that_takes_no_other_is_overwritten_or_stays_as_it_was(budgets, monkeypatch):
    path = budgets / "answer.csv"
    path.write_text("old, and longer")
    access = os.access
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != budgets and access(place, mode))
    write_file(path, [b"new"])
    assert path.read_text() == "new"
    assert [file.name for file in budgets.iterdir() if file.name.startswith(".")] == []

    def pieces():
        yield b"newer"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(path, pieces())
    assert path.read_text() == "new"


def test_a_first_budget_file_reads_back_whatever_the_name(kvcalc, budgets):
    (budgets / "budgets.toml").unlink()
    for name in ("a\x7f.json", 'b"\\.json', "c\u202e.json", "d'é.json"):
        (budgets / name).write_text(LLAMA)
        assert kvcalc("check", "--init", name).code == 0
        assert tomllib.loads((budgets / "budgets.toml").read_text())["budget"][0]["model"] == name
        assert kvcalc("check").code == 0
        (budgets / "budgets.toml").unlink()
    name = os.fsdecode(b"\xff.json")
    (budgets / name).write_text(LLAMA)
    ran = kvcalc("check", "--init", name)
    assert (ran.code, (budgets / "budgets.toml").exists()) == (2, False)
    assert "cannot be written in TOML" in ran.err
