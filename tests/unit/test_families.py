"""The rows of presets/families: what they may say, and how a model type is found in them."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from kvcalc.errors import NotModelledError, UnsupportedError
from kvcalc.sources import shipped
from kvcalc.sources.config import family, read_config

PLAIN = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "torch_dtype": "bfloat16",
}


def test_a_model_type_stands_in_one_row() -> None:
    named: Counter[str] = Counter()
    for lineage in shipped.names("families"):
        for name, row in tomllib.loads(shipped.text("families", lineage) or "").items():
            named.update([name, *row.get("also", []), *row.get("spellings", {})])
    assert [name for name, times in named.items() if times > 1] == []


def test_a_spelling_stands_for_a_type_of_its_row() -> None:
    for name, row in family.all_families().items():
        for spelling, meant in row.spellings.items():
            assert family.family_of(spelling) == (meant, family.all_families()[meant]), (name, spelling)


def test_a_row_with_an_unknown_word_is_refused() -> None:
    for row in (
        {"ordre": {"rule": "all"}},
        {"order": {"rule": "evry"}},
        {"state": "mamba3"},
        {"special": "gemma5"},
        {"kinds": {"attention": "fulll"}},
        {"attention": {"qk_norm": "heads"}},
    ):
        with pytest.raises(ValidationError):
            family.Family.model_validate(row)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of rows in place of the shipped one."""
    caches = (family._texts, family.lineage, family.family_of)
    monkeypatch.setattr(shipped, "_folder", lambda kind: tmp_path / kind)
    (tmp_path / "families").mkdir()
    for each in caches:
        each.cache_clear()
    yield tmp_path / "families"
    for each in caches:
        each.cache_clear()


def test_a_new_family_with_a_known_order_is_one_file(folder: Path) -> None:
    (folder / "nova.toml").write_text(
        """
        [nova]
        also = ["nova_vl"]
        spellings = { novella = "nova" }
        order = { rule = "every", keys = ["global_every"], period = 4, offset = 0 }
        attention = { qk_norm = "head" }

        [nova.defaults]
        sliding_window = 256

        [nova.published]
        nova-tiny = 234_624
        """
    )
    model = read_config(PLAIN | {"model_type": "nova"})
    assert (model.model_type, model.layout) == ("nova", "2 full + 4 sliding (256)")
    assert read_config(PLAIN | {"model_type": "novella", "global_every": 3}).layout == "2 full + 4 sliding (256)"
    assert read_config(PLAIN | {"model_type": "nova_vl", "global_every": 2}).layout == "3 full + 3 sliding (256)"


def test_a_type_without_a_rule_says_why() -> None:
    with pytest.raises(NotModelledError, match="'rwkv7' is not modelled: its state per channel"):
        read_config(PLAIN | {"model_type": "rwkv7"})
    with pytest.raises(UnsupportedError, match="'xlm-roberta' is an encoder"):
        read_config(PLAIN | {"model_type": "xlm-roberta"})
    with pytest.raises(NotModelledError, match="does not state its layers"):
        read_config({"model_type": "never-heard-of"})
