"""The page as a file: whole, small, and closed to everything outside of it."""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from hashlib import sha256
from pathlib import Path
from zlib import decompress

import pytest

from kvcalc.cli.app import run

SMALL = ["page", "--model", "gemma-3-1b", "--engine", "vLLM", "--engine", "ideal", "--device", "rtx-4090"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "kvcalc.html"
    assert run([*SMALL, "-o", str(path)]) == 0
    return path.read_text(encoding="utf-8")


def test_a_page_of_one_model_holds_what_was_asked_for(page: str) -> None:
    packed = re.search(r'<script type="text/plain" id="data">([^<]*)</script>', page)
    assert packed is not None
    data = json.loads(decompress(b64decode(packed[1]), wbits=-15))
    assert data["models"]["names"] == ["gemma-3-1b"]
    assert list(data["engines"]) == ["vllm", "ideal"]
    assert [device["name"] for device in data["devices"]] == ["rtx-4090"]
    assert len(page) < 100_000


def test_nothing_runs_in_a_page_but_what_its_policy_names(page: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; ")
    assert "unsafe" not in policy[1]
    for kind, tag in (("style", "style"), ("script", "script")):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert f"{kind}-src 'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" in policy[1]


def test_a_page_loads_nothing(page: str) -> None:
    assert re.findall(r'\b(?:src|href|action)="([^"]*)"', page) == ["data:,"]
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|innerHTML|insertAdjacentHTML|eval\(|new Function", page)


def test_every_box_has_a_label(page: str) -> None:
    labelled = set(re.findall(r'<label for="([a-z]+)"', page))
    boxes = set(re.findall(r'<(?:input|select) (?:type="[a-z]+" )?id="([a-z]+)"', page))
    assert boxes <= labelled
    assert labelled - boxes == {"model", "device", "weights", "kv"}  # pickers, whose boxes the script makes
    assert all('aria-label="' in each for each in re.findall(r'<input type="range"[^>]*>', page))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "page.txt"], "a page is an HTML file"),
        (["-o", "a.html", "--model", "gema-3-1b"], "did you mean 'gemma-3-1b'"),
        (["-o", "a.html", "--device", "h100-79gb"], "unknown device"),
        (["-o", "a.html", "--engine", "vlm"], "did you mean 'vllm'"),
        ([], "--output"),
    ],
)
def test_what_a_page_cannot_be_made_of_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["page", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
