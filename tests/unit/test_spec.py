"""A spec, shipped or not, is validated; what it states is what it shows and what is written back."""

import pytest
from pydantic import ValidationError

from kvcalc.errors import KVCalcError
from kvcalc.sources.preset import spec_to_architecture
from kvcalc.sources.spec import AttentionSpec, ModelSpec, stated_fields

SMALL = {"name": "m", "num_layers": 2, "hidden_size": 8, "vocab_size": 9, "attention": {"num_heads": 2}}


@pytest.mark.parametrize(
    "layout", ["5:1/sw=4", {"period": 3, "global": [2]}, ["full", {"kind": "sliding", "window": 4, "count": 2}]]
)
def test_every_way_to_write_a_layout_is_written_back_as_it_was_read(layout):
    spec = ModelSpec.model_validate(SMALL | {"layout": layout, "layers": {"Z": {"kind": "full", "num_heads": 4}}})
    assert ModelSpec.model_validate(stated_fields(spec)) == spec


def test_a_period_repeats_and_its_positions_count_from_zero():
    tables = SMALL | {
        "num_layers": 7,
        "layout": {"period": 3, "global": [2]},
        "attention": {"num_heads": 2, "window": 4},
    }
    model = spec_to_architecture(tables, "spec.toml")
    assert [model.layers[index].cache.kind for index in model.order] == [*("sliding", "sliding", "full") * 2, "sliding"]


def test_the_longest_pattern_is_the_last_that_is_read(monkeypatch):
    monkeypatch.setattr("kvcalc.sources.building.MOST_LAYERS", 4)
    tables = {name: value for name, value in SMALL.items() if name != "num_layers"}
    assert spec_to_architecture(tables | {"layout": "FFFF"}, "spec.toml").num_layers == 4
    with pytest.raises(KVCalcError, match="longer than 4 layers"):
        spec_to_architecture(tables | {"layout": "FFFFF"}, "spec.toml")


def test_a_spec_does_not_change_and_shows_what_it_states():
    spec = ModelSpec.model_validate(SMALL)
    assert repr(spec) == (
        "ModelSpec(name='m', num_layers=2, hidden_size=8, vocab_size=9, attention=AttentionSpec(num_heads=2))"
    )
    with pytest.raises(ValidationError, match="frozen"):
        spec.attention.num_heads = 3
    assert len({AttentionSpec(num_heads=2), spec.attention}) == 1


@pytest.mark.parametrize(
    "change",
    [{"num_layers": True}, {"num_layers": "2"}, {"num_layers": 2.0}, {"surprise": 1}, {"attention": {"num_heads": 0}},
     {"layout": ["full"] * 3}, {"layout": {"period": 2, "global": [2]}}, {"layout": []}, {"hidden_size": 2**40}],
)  # fmt: skip
def test_a_spec_of_wrong_types_or_unknown_fields_is_refused(change):
    with pytest.raises(KVCalcError):
        spec_to_architecture(SMALL | change, "spec.toml")
