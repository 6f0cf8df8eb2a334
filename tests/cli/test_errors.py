"""One shape of error, on standard error; nothing on standard output; exit code 2."""

import pytest

QUESTIONS = {
    "unknown preset": (
        ("show", "gema-3-27b", "-c", "1k"),
        "unknown preset 'gema-3-27b'",
        "did you mean 'gemma-3-27b'?",
    ),
    "hub without hf:": (("show", "someone/gemma-3-27b-it", "-c", "1k"), "no such file", "hf:someone/gemma-3-27b-it"),
    "zero context": (("show", "gemma-2-2b", "-c", "0"), "--context must be at least 1", ""),
    "negative context": (("show", "gemma-2-2b", "-c", "-5"), "--context must be a whole number", ""),
    "fractional context": (("show", "gemma-2-2b", "-c", "1.5"), "--context must be a whole number", ""),
    "absurd context": (("show", "gemma-2-2b", "-c", "9" * 400), "--context must be a whole number", ""),
    "large context": (("show", "gemma-2-2b", "-c", "9" * 15), "--context must be at most", ""),
    "wordy context": (("show", "gemma-2-2b", "-c", "many"), "--context must be a whole number", "k is 1024"),
    "zero batch": (("show", "gemma-2-2b", "-c", "1k", "-b", "0"), "--batch-size must be at least 1", ""),
    "empty ratio": (("show", "gemma-2-2b@0:0", "-c", "1k"), "layout '0:0' has no layers", "L:G"),
    "bad ratio": (("show", "gemma-2-2b@5-1", "-c", "1k"), "unknown layout '5-1'", "L:G"),
    "no window": (("show", "llama-3.1-8b@5:1", "-c", "1k"), "does not say how wide", "5:1/sw=1024"),
    "nothing slides": (("show", "llama-3.1-8b@sw=512", "-c", "1k"), "no local layers", "5:1/sw=512"),
    "unknown engine": (("show", "gemma-2-2b", "-c", "1k", "--engine", "ideall"), "unknown engine", "'ideal'?"),
    "unknown option": (
        ("show", "gemma-2-2b", "--contxt", "1k"),
        "no such option: --contxt",
        "did you mean '--context'?",
    ),
    "unknown command": (("shwo", "gemma-2-2b"), "no such command 'shwo'", "did you mean 'show'?"),
    "no command at all": (("xyzzy",), "no such command 'xyzzy'", "see 'kvcalc --help'"),
    "an engine's option": (("show", "gemma-2-2b", "--block-size", "16"), "no such option", "of vllm: -E block_size="),
    "two formats for one answer": (
        ("show", "gemma-2-2b", "-c", "1k", "--weights-dtype", "fp8,bf16"),
        "--weights-dtype takes one value here",
        "kvcalc compare",
    ),
    "unknown format": (("show", "gemma-2-2b", "-c", "1k", "--format", "jsn"), "unknown format 'jsn'", "'json'?"),
    "unknown dtype": (("show", "gemma-2-2b", "-c", "1k", "--kv-cache-dtype", "q8_"), "unknown dtype 'q8_'", "'q8_0'"),
    "unknown units": (("show", "gemma-2-2b", "-c", "1k", "--units", "binry"), "unknown --units", "'binary'?"),
    "engine option": (("show", "gemma-2-2b", "-c", "1k", "-E", "a=1"), "ideal has no option 'a'", ""),
    "no engine option": (("show", "gemma-2-2b", "-c", "1k", "-E", "a"), "is not KEY=VALUE", ""),
    "no folder": (("show", "gemma-2-2b", "-c", "1k", "-o", "/no/such/folder/x"), "cannot write the file", ""),
    "too long a table": (("sweep", "gemma-2-2b", "-c", "1..20000"), "more than the 10,000", "--format csv"),
    "several engines": (("show", "gemma-2-2b", "--engine", "ideal,vllm"), "--engine takes one value", "compare"),
    "several contexts": (("show", "gemma-2-2b", "-c", "8k,32k"), "--context takes one value", "kvcalc sweep"),
    "several batches": (("show", "gemma-2-2b", "-b", "4,8"), "--batch-size takes one value", "kvcalc compare"),
    "a list or a number": (("sweep", "gemma-2-2b", "-c", "131,072"), "reads as 2 numbers", "131072"),
    "an engine inside": (("show", "gemma-2-2b", "-e", "LM Studio"), "is no engine of its own", "llama.cpp"),
    "two formats": (("show", "gemma-2-2b", "--json", "-o", "x.csv"), "contradict each other", "leave --format out"),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_mistake_is_one_error_with_a_hint_and_exit_code_2(kvcalc, question):
    arguments, message, hint = QUESTIONS[question]
    ran = kvcalc(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert hint in ran.err


def test_all_mistakes_of_a_spec_come_at_once_with_their_places(kvcalc, tmp_path):
    spec = tmp_path / "bad.toml"
    spec.write_text(
        'name = "x"\nnum_layers = 0\nhiden_size = 5\nhidden_size = 64\nvocab_size = -1\nlayout = "5:1"\n'
        "[attention]\nnum_heads = 1.5\n"
    )
    ran = kvcalc("show", str(spec), "-c", "1k")
    assert ran.code == 2
    for mistake in ("num_layers: ", "unknown field 'hiden_size'", "vocab_size: "):
        assert f"error: {mistake}" in ran.err
    assert ran.err.count(f"--> {spec}\n") == 3
    assert f"--> {spec}, attention.num_heads" in ran.err
    assert "did you mean 'hidden_size'?" in ran.err


@pytest.mark.parametrize("text", ["", "[", "x = " + "[" * 10_000, "name = 1e400", "x = " + "9" * 5000, "\ufeff\0"])
def test_a_malformed_spec_is_one_error(kvcalc, tmp_path, text):
    spec = tmp_path / "bad.toml"
    spec.write_text(text)
    ran = kvcalc("show", str(spec), "-c", "1k")
    assert ran.code == 2
    assert ran.err.startswith("error: ")
    assert "internal" not in ran.err


def test_a_context_beyond_the_models_maximum_is_a_warning(kvcalc):
    ran = kvcalc("show", "gemma-2-2b", "-c", "32k")
    assert ran.code == 0
    assert ran.err == "warning: gemma-2-2b was made for 8,192 tokens; 32,768 is beyond that\n"


def test_a_ratio_with_more_global_than_local_layers_is_taken_literally_with_a_hint(kvcalc):
    ran = kvcalc("show", "gemma-3-27b@1:3", "-c", "32k", "--format", "json")
    assert ran.code == 0
    assert '"layout": "16 sliding (1024) + 46 full"' in ran.out
    assert ran.err.startswith("hint: 1:3 has fewer local than global layers")
    assert "is 3:1 here" in ran.err


@pytest.mark.parametrize(
    "words",
    [
        ("show", "\x1b[31mred", "-c", "1k"),
        ("show", "a/\x1b[31m\nred", "-c", "1k"),
        ("show", "\x1b[31m\n.toml", "-c", "1k"),
        ("show", "--\x1b[31m\nred"),
        ("compare", "gemma-2-2b", "-c", "1k", "--engine", "ideal,vllm", "-E", "\x1b[31m\nred=1"),
    ],
)
def test_no_escape_sequence_and_no_line_of_its_own_reaches_the_terminal(kvcalc, words):
    ran = kvcalc(*words)
    assert (ran.code, ran.out) == (2, "")
    assert all(line.startswith(("error: ", "hint: ", "  --> ")) for line in ran.err.splitlines())
    assert ran.err.replace("\n", "").isprintable()
