"""Checkpoints on disk and the references that name them."""

import json
import os

import pytest
from configs import read
from gguf_writer import model_metadata, write_gguf

from kvcalc.errors import InputError, KVCalcError
from kvcalc.footprints import footprint
from kvcalc.sources.preset import load_preset
from kvcalc.sources.resolve import load


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a config.json whose reader knows one model: what is tested here is everything around it."""
    monkeypatch.setattr(
        "kvcalc.sources.config.read_config", lambda config, name: load_preset(config["preset"]).changed(name=name)
    )
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text('{"preset": "gemma-3-1b"}')
    return folder


def add_weights(folder, name="model.safetensors", tensor="w", dtype="F8_E4M3", size=1000):
    header = json.dumps({tensor: {"dtype": dtype, "shape": [size], "data_offsets": [0, size]}}).encode()
    (folder / name).write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))


def test_a_folder_is_its_config_and_the_weights_as_they_are_stored(folder):
    add_weights(folder)
    model = load(str(folder))
    assert model.name == "my-model"
    assert model.layout == "22 sliding (512) + 4 full"
    weights = footprint(model, context=1).weights
    assert (weights.bytes, weights.dtype, weights.exact) == (1000, "as stored", True)
    # fp8 numbers may be packed or scales: the parameters are those of the config.
    assert weights.parameters == 999_885_952


def test_a_file_or_an_index_reads_the_config_beside_it(folder):
    add_weights(folder, "a.safetensors", "w1")
    add_weights(folder, "b.safetensors", "w2")
    assert load(str(folder / "a.safetensors")).provenance.weight_bytes == {"fp8_e4m3": 1000}
    placed = {"weight_map": {"w1": "a.safetensors", "w2": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(placed))
    assert load(str(folder / "model.safetensors.index.json")).provenance.weight_bytes == {"fp8_e4m3": 2000}


def test_a_config_alone_and_a_folder_without_weights_measure_nothing(folder):
    for reference in (folder, folder / "config.json"):
        assert load(str(reference)).provenance.weight_bytes is None
    add_weights(folder)
    assert load(str(folder / "config.json")).provenance.weight_bytes is None


def test_plain_weights_that_are_not_the_model_alone_are_said(folder):
    add_weights(folder, dtype="BOOL", tensor="mask")
    header = json.dumps({"w": {"dtype": "BF16", "shape": [10], "data_offsets": [0, 20]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(20))
    model = load(str(folder))
    assert model.provenance.weight_elements == 10
    assert any("hold 10 numbers, the layers here 999,885,952" in note for note in model.provenance.notes)


TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
    "torch_dtype": "bfloat16",
}


def stored_as(folder, names, **changes):
    """A tiny Llama of 1,000 x 64 embedding, a head of that size, and one tensor for all the rest."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY | changes))
    header, at = {}, 0
    for tensor, size in (("model.embed_tokens.weight", 64_000), ("model.rest", 74_048), ("lm_head.weight", 64_000)):
        header[tensor] = {"dtype": "BF16", "shape": [size], "data_offsets": [at, at + 2 * size]}
        at += 2 * size
    text = json.dumps(header).encode()
    for name in names:
        (folder / name).write_bytes(len(text).to_bytes(8, "little") + text + bytes(at))
    return footprint(load(str(folder)), context=1).weights


def test_a_head_that_the_model_has_not_is_left_out_of_the_stored_weights(tmp_path):
    tied = stored_as(tmp_path / "tied", ["model.safetensors"], tie_word_embeddings=True)
    assert (tied.parameters, tied.bytes) == (138_048, 276_096)
    embedding = stored_as(tmp_path / "embedding", ["model.safetensors"], architectures=["LlamaModel"])
    assert (embedding.parameters, embedding.bytes) == (138_048, 276_096)
    untied = stored_as(tmp_path / "untied", ["model.safetensors"])
    assert (untied.parameters, untied.bytes) == (202_048, 404_096)


def test_a_second_copy_beside_the_shards_is_not_counted(tmp_path):
    names = ["model-00001-of-00001.safetensors", "consolidated.safetensors"]
    assert stored_as(tmp_path / "both", names).bytes == 404_096
    assert stored_as(tmp_path / "alone", ["consolidated.safetensors"]).bytes == 404_096


def test_a_layout_can_be_asked_of_a_file(folder):
    add_weights(folder)
    assert load(f"{folder}@global").layout == "26 full"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not valid JSON"),
        ("[]", "a JSON object"),
        ("[" * 100_000, "too deeply"),
        ('{"a": ' + "1" * 5000 + "}", "not valid JSON"),
        (" " * 2**23, "larger than"),
    ],
)
def test_a_bad_config_is_one_error_with_its_place(folder, content, reason):
    (folder / "config.json").write_text(content)
    with pytest.raises(InputError, match=reason) as caught:
        load(str(folder))
    assert "config.json" in caught.value.location


def test_weights_without_a_config_say_what_is_missing(folder):
    add_weights(folder)
    os.remove(folder / "config.json")
    for reference in (folder, folder / "model.safetensors"):
        with pytest.raises(InputError, match=r"no config\.json"):
            load(str(reference))


def test_a_gguf_file_is_a_model_reference(tmp_path):
    metadata = model_metadata("llama", block_count=4, embedding_length=256, attention__head_count=8)
    path = write_gguf(tmp_path / "tiny-q8_0.gguf", metadata, [("token_embd.weight", (256, 100), "q8_0")])
    model = load(str(path))
    assert (model.name, model.layout) == ("tiny-q8_0", "4 full")
    assert footprint(model, context=1).weights.bytes == 27200
    assert load(f"{path}@1:1/sw=64").layout == "2 sliding (64) + 2 full"


def test_a_layout_that_changes_the_weights_does_not_keep_those_of_the_file(tmp_path):
    keys = {"attention__head_count": 8, "attention__key_length": 64, "attention__key_length_swa": 32}
    keys |= {"attention__sliding_window": 512, "attention__sliding_window_pattern": [True, False]}
    metadata = model_metadata("gemma4", block_count=2, embedding_length=256, **keys)
    tensors = [("blk.0.attn_q.weight", (256, 256), "q8_0"), ("blk.1.attn_q.weight", (256, 512), "q8_0")]
    path = write_gguf(tmp_path / "m.gguf", metadata, tensors)
    model = load(f"{path}@global")
    assert model.provenance.weight_bytes is None
    weights = footprint(model, context=1).weights
    assert (weights.parameters, weights.exact) == (2 * 256 * 512, False)


@pytest.mark.parametrize("reference", ["gone/model.gguf", "gone/config.json", "gone/model.safetensors", "hf:a/b/c"])
def test_what_is_not_there_is_one_error(reference):
    with pytest.raises(KVCalcError):
        load(reference)


@pytest.mark.parametrize(("name", "is_kept"), [("llama-3.1-8b", True), ("mimo-v2-flash", False)])
def test_files_are_not_what_another_layout_takes_where_its_layers_have_other_weights(tmp_path, name, is_kept):
    """MiMo's sliding layers have twice the KV heads of its global ones; all layers of Llama are alike."""
    (tmp_path / "config.json").write_text(json.dumps(read("configs.json")[name]))
    add_weights(tmp_path, size=20)
    stored = load(str(tmp_path)).provenance.weight_bytes
    assert sum(stored.values()) == 20
    provenance = load(f"{tmp_path}@1:1/sw=64").provenance
    assert provenance.weight_bytes == (stored if is_kept else None)
    assert any("the layout changes the weights" in note for note in provenance.notes) != is_kept


def test_what_old_writers_say_beside_a_config_is_read(tmp_path):
    """AutoGPTQ and AutoAWQ of 2023 keep their settings in a file of their own; ONNX exporters have one of that name."""
    plain = {"model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(plain | {"num_attention_heads": 4, "vocab_size": 1000}))
    sidecar = tmp_path / "quantize_config.json"
    sidecar.write_text('{"per_channel": true, "reduce_range": true}')
    assert load(str(tmp_path)).quantization is None
    sidecar.write_text('{"bits": 4, "group_size": 128, "desc_act": false}')
    assert load(str(tmp_path)).quantization.name == "gptq"
    sidecar.unlink()
    (tmp_path / "quant_config.json").write_text('{"zero_point": true, "q_group_size": 64, "w_bit": 4}')
    awq = load(str(tmp_path)).quantization
    assert (awq.name, awq.packing.groups) == ("awq", ((64, 2),))
