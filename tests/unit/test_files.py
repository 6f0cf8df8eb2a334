"""Files of others: opened, bounded and decoded in one place."""

import os
import tracemalloc

import pytest

from kvcalc.errors import InputError, KVCalcError
from kvcalc.sources import files
from kvcalc.sources.files import parse_json, parse_strict_json, parse_toml, read_bytes, read_text
from kvcalc.sources.resolve import load

MARKS = 2**14


@pytest.fixture(autouse=True)
def bound(monkeypatch):
    monkeypatch.setattr(files, "MOST_MARKS", MARKS)


def test_a_file_is_read_up_to_its_bound_and_no_further(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(InputError, match="larger than 4 bytes"):
        read_bytes(path, 4)


def test_a_byte_order_mark_is_no_text_and_other_encodings_are_refused(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"\xef\xbb\xbftext")
    assert read_text(path, 100) == "text"
    path.write_bytes("text".encode("utf-16"))
    with pytest.raises(InputError, match="not UTF-8"):
        read_text(path, 100)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes that have a name")
@pytest.mark.parametrize(
    "name", ["f.json", "f.toml", "f.gguf", "f.safetensors", "model.safetensors.index.json", "folder/config.json"]
)
def test_a_pipe_and_a_device_are_refused_at_once(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    (path.parent / "config.json").write_text("{}")
    path.unlink(missing_ok=True)
    for make in (lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero"), lambda: path.symlink_to("/dev/tty")):
        make()
        with pytest.raises(KVCalcError):
            load(str(path))
        path.unlink()


@pytest.mark.parametrize(
    "text",
    [
        "[" + "{}," * MARKS + "0]",
        '{"a":[' + "[]," * MARKS + "0]}",
        "{" + ",".join(f'"{number:x}":0' for number in range(MARKS)) + "}",
    ],
)
def test_what_would_become_many_objects_is_refused_before_it_does(text):
    for parse in (parse_json, parse_strict_json):
        tracemalloc.start()
        with pytest.raises(InputError, match="parts"):
            parse(text, "a.json")
        assert tracemalloc.get_traced_memory()[1] < 100_000
        tracemalloc.stop()
    with pytest.raises(InputError, match="parts"):
        parse_toml(text, "a.toml")


def test_brackets_and_commas_inside_a_text_are_no_parts():
    template = "{{[:," * MARKS + '\\"'
    text = '{"chat_template": "' + template + '"}'
    assert len(parse_json(text, "a.json")["chat_template"]) == 5 * MARKS + 1


def test_a_text_without_an_end_takes_one_pass():
    with pytest.raises(InputError, match="not valid JSON"):
        parse_json('{"a": "' + '\\"' * MARKS + "," * 2 * MARKS, "a.json")
