"""Whatever a config.json holds, the answer is an architecture or one error of ours."""

from __future__ import annotations

from typing import Any

from configs import read
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcalc import kv_cache_bytes
from kvcalc.errors import KVCalcError
from kvcalc.sources.config import read_config

CONFIGS = read("configs.json")
_NAMES = sorted(CONFIGS)
_KEYS = sorted({key for config in CONFIGS.values() for key in (*config, *config.get("text_config", {}))})
_JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(-2, 40)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["full_attention", "sliding_attention", "linear_attention", "moe", "M*-E", "LLLG"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(_KEYS) | st.text(max_size=4), inner),
    max_leaves=6,
)


@settings(max_examples=80)
@given(st.sampled_from(_NAMES), st.dictionaries(st.sampled_from(_KEYS), _JUNK, min_size=1, max_size=3))
def test_a_published_file_with_junk_in_it_never_breaks_the_reader(name: str, junk: dict[str, Any]) -> None:
    config = CONFIGS[name]
    text = config.get("text_config")
    read_or_refused(config | junk if text is None else config | {"text_config": text | junk})


@given(st.dictionaries(st.sampled_from(_KEYS) | st.just("model_type"), _JUNK, max_size=6))
def test_junk_alone_never_breaks_the_reader(junk: dict[str, Any]) -> None:
    read_or_refused(junk)


def read_or_refused(config: dict[str, Any]) -> None:
    refusal = None
    try:
        model = read_config(config)
    except KVCalcError as error:
        refusal = error.render()
    else:
        assert 0 <= kv_cache_bytes(model, context=1000) <= kv_cache_bytes(model, context=2000)
    assert refusal is None or 0 < len(refusal) < 2000
