"""Laws of the two header readers: bytes from outside give a header or one of our errors, and never anything else."""

import json
import struct

from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvcalc.architecture import Architecture
from kvcalc.errors import KVCalcError
from kvcalc.sources.gguf import GGUFHeader, parse_gguf
from kvcalc.sources.gguf_model import architecture_of
from kvcalc.sources.safetensors import header_length, parse_header

FEW = settings(max_examples=80)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["BF16", "F32", "I32", "F4", "NEW", "", "F32\n"]) | JSON,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | JSON,
    }
)


def outcome(call):
    """What a call gives: its result, or one of our errors; anything else fails the test."""
    try:
        return call()
    except KVCalcError as error:
        return error


@FEW
@given(st.dictionaries(st.text(max_size=4), ENTRY | JSON, max_size=4), st.integers(0, 128))
def test_a_safetensors_header_reads_or_is_one_error(header, data_bytes):
    tensors = outcome(lambda: parse_header(json.dumps(header).encode(), data_bytes, "fuzz"))
    if isinstance(tensors, KVCalcError):
        assert tensors.location == "fuzz"
    else:
        assert sum(tensor.bytes for tensor in tensors.values()) == data_bytes
        assert all(tensor.elements >= 0 for tensor in tensors.values())


@FEW
@given(st.binary(max_size=64), st.integers(0, 2**40))
def test_any_bytes_are_a_safetensors_header_or_one_error(data, file_bytes):
    length = outcome(lambda: header_length(data[:8], file_bytes, "fuzz"))
    tensors = outcome(lambda: parse_header(data[8:], file_bytes, "fuzz"))
    assert isinstance(length, KVCalcError) or length <= file_bytes - 8
    assert isinstance(tensors, dict) or tensors.location == "fuzz"


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def number(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<Ii", 5, value)


MODEL = {"block_count": 3, "embedding_length": 64, "attention.head_count": 4, "attention.key_length": 16}
SMALL = (
    b"GGUF"
    + struct.pack("<IQQ", 3, 2, len(MODEL) + 3)
    + text("general.architecture")
    + struct.pack("<I", 8)
    + text("llama")
    + b"".join(number(f"llama.{key}", value) for key, value in MODEL.items())
    + text("tokenizer.ggml.tokens")
    + struct.pack("<IIQ", 9, 8, 2)
    + text("a")
    + text("b")
    + text("llama.attention.head_count_kv")
    + struct.pack("<IIQ3i", 9, 5, 3, 4, 2, 1)
    + text("blk.0.attn_q.weight")
    + struct.pack("<IQQIQ", 2, 64, 64, 8, 0)
    + text("output.weight")
    + struct.pack("<IQQIQ", 2, 64, 2, 1, 4352)
    + bytes(64 + 4352 + 256)
)


def read(data: bytes) -> None:
    header = outcome(lambda: parse_gguf(data))
    if isinstance(header, KVCalcError):
        assert len(header.render()) < 2000
        return
    assert all(tensor.bytes > 0 for tensor in header.tensors)
    model = outcome(lambda: architecture_of(header, "fuzz", "fuzz"))
    assert isinstance(model, Architecture) or len(model.render()) < 2000


def test_the_header_that_is_damaged_below_reads_when_it_is_not():
    model = architecture_of(parse_gguf(SMALL), "fuzz", "fuzz")
    assert model.num_layers == 3
    assert model.provenance.weight_bytes == {"q8_0": 4352, "f16": 256}


def test_two_strings_of_2_to_the_63_bytes_are_one_error():
    at = SMALL.index(text("a") + text("b"))
    data = SMALL[:at] + b"\xff" * 8 + SMALL[at + 8 :]
    error = outcome(lambda: parse_gguf(data))
    assert isinstance(error, KVCalcError)
    assert "ends inside its header" in error.message


@FEW
@given(
    st.lists(st.tuples(st.integers(4, len(SMALL) - 4700), st.binary(min_size=1, max_size=8)), min_size=1, max_size=3),
    st.integers(0, len(SMALL)),
)
@example([(8, b"\xff" * 8)], len(SMALL))
@example([(SMALL.index(text("a") + text("b")) + 7, b"\x80")], len(SMALL))  # a string of 2**63 bytes before another
def test_a_damaged_gguf_file_reads_or_is_one_error(changes, length):
    data = bytearray(SMALL)
    for at, piece in changes:
        data[at : at + len(piece)] = piece
    read(bytes(data))
    read(bytes(data[:length]))


KEYS = st.sampled_from(
    [
        *("block_count", "embedding_length", "context_length", "vocab_size", "nextn_predict_layers", "expert_count"),
        *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
        *("attention.sliding_window", "attention.sliding_window_pattern", "attention.shared_kv_layers"),
        *("attention.kv_lora_rank", "attention.key_length_mla", "attention.value_length_mla", "rope.dimension_count"),
        *("attention.recurrent_layers", "full_attention_interval", "feed_forward_length", "shortconv.l_cache"),
        *("ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.group_count", "kda.head_dim", "wkv.head_size"),
    ]
)
SIZES = st.integers(-1, 8) | st.sampled_from([64, 2**31, 2**62, 0.5, "four"])
ARCHITECTURES = (
    "llama",
    "gemma3",
    "gemma3n",
    "gemma4",
    "deepseek2",
    "jamba",
    "qwen35",
    "falcon-h1",
    "lfm2",
    "mamba",
    "x",
)


@FEW
@given(
    st.sampled_from(ARCHITECTURES),
    st.dictionaries(KEYS, SIZES | st.lists(SIZES, max_size=6).map(tuple), max_size=12),
    st.booleans(),
)
def test_any_metadata_is_a_model_or_one_error(arch, keys, sane):
    start = {"block_count": 4, "embedding_length": 64, "attention.head_count": 4} if sane else {}
    metadata = {f"{arch}.{key}": value for key, value in (start | keys).items()}
    header = GGUFHeader({"general.architecture": arch} | metadata, ())
    model = outcome(lambda: architecture_of(header, "fuzz", "fuzz"))
    if isinstance(model, KVCalcError):
        assert len(model.render()) < 2000
    else:
        assert model.num_layers + len(model.mtp_layers) == metadata[f"{arch}.block_count"]
