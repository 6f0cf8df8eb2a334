"""Published quantised checkpoints: what their configurations give is what their files hold, to the byte.

The figures are tensor bytes: a safetensors file has a header besides, a GGUF file its metadata. Where only a file can
tell (which writer packed it, whether prediction layers were kept) a row says how far off the rule may be.
"""

import json
from pathlib import Path

import pytest

import kvcalc
from kvcalc.weights import weights
from kvcalc.weights_steps import weights_steps

ROWS = json.loads((Path(__file__).parents[1] / "data" / "quantised.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("row", ROWS, ids=[f"{row['model']}:{row['weights_dtype'] or 'shipped'}" for row in ROWS])
def test_a_checkpoint_takes_what_was_published(row):
    model = kvcalc.read_config(row["config"])
    counted = weights(model, row["weights_dtype"])
    assert counted.bytes == pytest.approx(row["bytes"], rel=row.get("within", 0), abs=0)
    assert weights_steps(model, row["weights_dtype"])[-1].value == counted.bytes
    if row.get("within", 0) > 0.002:  # what the configuration does not tell is said
        assert any(note.startswith("weights are estimated") for note in counted.notes)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("gpt-oss-20b", 13_761_264_768),
        ("gpt-oss-120b", 65_248_815_744),
        ("deepseek-v3", 688_574_839_360),  # the index's total_size less 163 headers
        ("kimi-k2", 1_029_173_249_888),  # without 61 buffers of rotary embeddings
    ],
)
def test_a_preset_ships_as_its_publisher_does(name, size):
    assert weights(kvcalc.load(name), None).bytes == size


def test_a_file_holds_the_buffers_of_routers_in_four_bytes_each():
    """DeepSeek-V3-0324 Q8_0 as printed, 714,368,583,680 B, less the ``attn_kv_b`` that its fork keeps besides."""
    counted = weights(kvcalc.load("deepseek-v3"), "Q8_0")
    assert counted.bytes == 714_368_583_680 - 61 * 512 * 128 * 256 * 34 // 32
    assert not counted.exact  # whether a file has one expansion of its latents or both, only the file tells
    flash = kvcalc.load("deepseek-v4-flash")
    corrections, tables = 40 * 256 * 4, 3 * 129_280 * 6 * 4
    counted = weights(flash, "Q8_0")
    assert counted.bytes == 302_236_768_156 + corrections + tables
    assert not counted.exact
    assert "weights are estimated: not proved: no file of its architecture was read" in counted.notes
