"""config.json files and folders, good and bad ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bounded import calls_of
from configs import read

import kvcalc
from kvcalc.errors import InputError, KVCalcError

CONFIGS = read("configs.json")


def written(folder: Path, text: str, name: str = "config.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_and_its_folder_are_one_model_named_by_the_folder(tmp_path: Path) -> None:
    path = written(tmp_path / "gemma-3-4b", json.dumps(CONFIGS["gemma-3-4b"]))
    by_file, by_folder = kvcalc.load(str(path)), kvcalc.load(str(path.parent))
    assert by_file == by_folder == kvcalc.load("gemma-3-4b")


def test_another_file_name_names_the_model(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps(CONFIGS["gemma-2-2b"]), "mine.json")
    assert kvcalc.load(str(path)).name == "mine"


def test_a_file_takes_a_variant(tmp_path: Path) -> None:
    path = written(tmp_path / "m", json.dumps(CONFIGS["gemma-2-2b"]))
    assert kvcalc.load(f"{path}@5:1/sw=1024").layout == "22 sliding (1024) + 4 full"


def test_a_preset_wins_over_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "gemma-2-2b", json.dumps(CONFIGS["llama-2-7b"]))
    monkeypatch.chdir(tmp_path)
    assert kvcalc.load("gemma-2-2b").model_type == "gemma2"
    assert kvcalc.load("./gemma-2-2b").model_type == "llama"


def test_infinity_in_a_file_is_let_in(tmp_path: Path) -> None:
    text = json.dumps(CONFIGS["nemotron-h-56b"])
    assert "Infinity" in text
    assert kvcalc.load(str(written(tmp_path / "n", text))).num_layers == 118


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ('{"model_type": "llama"', "not valid JSON"),
        ("[1, 2]", "is a JSON object"),
        ("null", "is a JSON object"),
        ("[" * 10_000, "nested too deeply"),
        ('{"a":' * 10_000, "nested too deeply"),
        ('{"model_type": "llama", "hidden_size": 1' + "0" * 400 + "}", "hidden_size must be between"),
        ('{"model_type": "llama", "hidden_size": 1' + "0" * 5000 + "}", "not valid JSON"),
        ('{"model_type": "llama", "hidden_size": NaN}', "whole number"),
        ('{"model_type": "mistral", "sliding_window": 0}', "sliding_window must be between"),
    ],
)
def test_a_bad_file_is_one_error_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path / "bad", text)
    with pytest.raises(KVCalcError, match=message) as refusal:
        kvcalc.load(str(path))

    def read_again() -> None:
        with pytest.raises(KVCalcError):
            kvcalc.load(str(path))

    assert calls_of(read_again) < 20_000
    assert refusal.value.location is not None
    assert str(path) in refusal.value.location
    assert len(refusal.value.render()) < 1000


def test_a_huge_file_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(2 * 2**30)  # a hole: 2 GiB long, nothing stored
    with pytest.raises(InputError, match="larger than"):
        kvcalc.load(str(path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the file"):
        kvcalc.load(str(tmp_path / "config.json"))


def test_a_long_folder_name_is_cut(tmp_path: Path) -> None:
    path = written(tmp_path / ("m" * 250), json.dumps(CONFIGS["gemma-2-2b"]))
    assert kvcalc.load(str(path)).name == "m" * 200
