"""GGUF headers: exact bytes by tensor type, the vocabulary stepped over, and one error for every bad file."""

import struct
import tracemalloc

import pytest
from bounded import calls_of
from gguf_writer import gguf_header, model_metadata, text, typed, write_gguf

from kvcalc.dtypes import GGML_BLOCKS
from kvcalc.errors import InputError, UnsupportedError
from kvcalc.sources import gguf
from kvcalc.sources.gguf import TENSOR_TYPES, Skipped, parse_gguf, read_gguf

SMALL = model_metadata("llama", block_count=2)
TENSORS = [
    ("token_embd.weight", (256, 1000), "q6_k"),
    ("blk.0.attn_q.weight", (256, 512), "q4_k"),
    ("blk.0.attn_norm.weight", (256,), "f32"),
    ("output.weight", (256, 1000), "q8_0"),
]


def test_bytes_are_those_of_the_blocks(tmp_path):
    header = read_gguf(write_gguf(tmp_path / "m.gguf", SMALL, TENSORS))
    assert [tensor.bytes for tensor in header.tensors] == [1000 * 210, 512 * 144, 1024, 1000 * 256 // 32 * 34]
    assert [tensor.dtype for tensor in header.tensors] == ["q6_k", "q4_k", "f32", "q8_0"]
    assert header.has_data


#: The numbers of ggml.h's enum, the formats' names, and bits a number as their names and papers state them.
FORMATS = """
0 f32 32, 1 f16 16, 2 q4_0 4.5, 3 q4_1 5, 6 q5_0 5.5, 7 q5_1 6, 8 q8_0 8.5, 9 q8_1 9, 10 q2_k 2.625, 11 q3_k 3.4375,
12 q4_k 4.5, 13 q5_k 5.5, 14 q6_k 6.5625, 15 q8_k 9.125, 16 iq2_xxs 2.0625, 17 iq2_xs 2.3125, 18 iq3_xxs 3.0625,
19 iq1_s 1.5625, 20 iq4_nl 4.5, 21 iq3_s 3.4375, 22 iq2_s 2.5625, 23 iq4_xs 4.25, 24 i8 8, 25 i16 16, 26 i32 32,
27 i64 64, 28 f64 64, 29 iq1_m 1.75, 30 bf16 16, 34 tq1_0 1.6875, 35 tq2_0 2.0625, 39 mxfp4 4.25, 40 nvfp4 4.5,
41 q1_0 1.125, 42 q2_0 2.25
"""


def test_formats_have_their_numbers_and_published_bits_per_weight():
    bits = {name: 8 * size / numbers for name, (numbers, size) in GGML_BLOCKS.items()}
    formats = {number: (name, bits[name]) for number, name in TENSOR_TYPES.items()}
    rows = [row.split() for row in FORMATS.split(",")]
    assert formats == {int(number): (name, float(bits)) for number, name, bits in rows}


def test_metadata_of_every_width_is_read(tmp_path):
    values = {0: ("B", 200), 1: ("b", -5), 2: ("H", 258), 3: ("h", -258), 4: ("I", 2**31), 5: ("i", -(2**31))}
    values |= {6: ("f", 0.5), 7: ("?", True), 10: ("Q", 2**63), 11: ("q", -(2**62)), 12: ("d", 0.1)}
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, len(values))
    for number, (code, value) in values.items():
        header += struct.pack("<Q3sI", 3, b"k%02d" % number, number) + struct.pack(f"<{code}", value)
    (tmp_path / "m.gguf").write_bytes(header)
    assert read_gguf(tmp_path / "m.gguf").metadata == {f"k{number:02d}": value for number, (_, value) in values.items()}


def test_version_2_reads_as_version_3(tmp_path):
    headers = [read_gguf(write_gguf(tmp_path / f"{v}.gguf", SMALL, TENSORS, version=v)) for v in (2, 3)]
    assert headers[0] == headers[1]


def test_a_vocabulary_of_65536_tokens_takes_a_step_a_token_and_no_memory(tmp_path):
    tokens = [f"token {number}" for number in range(65_536)]
    metadata = SMALL | {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0] * len(tokens),
        "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.chat_template": "x" * 100_000,
    }
    path = write_gguf(tmp_path / "m.gguf", metadata, TENSORS)
    assert read_gguf(path).metadata["tokenizer.ggml.tokens"] == Skipped(65_536)
    assert calls_of(lambda: read_gguf(path)) < 65_536 + 2000  # one for the length of each token
    tracemalloc.start()
    read_gguf(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300_000  # two windows of the file, and what is kept


def test_lists_a_layer_long_are_kept(tmp_path):
    metadata = SMALL | {"llama.heads": [8, 0, 8], "llama.local": [True, False]}
    header = read_gguf(write_gguf(tmp_path / "m.gguf", metadata))
    assert header.metadata["llama.heads"] == (8, 0, 8)
    assert header.metadata["llama.local"] == (True, False)


def split(folder, parts, count=None, total=None):
    for number, tensors in enumerate(parts, start=1):
        metadata = {"split.no": number - 1, "split.count": count or len(parts)}
        if number == 1:
            metadata |= SMALL | {"split.tensors.count": sum(map(len, parts)) if total is None else total}
        write_gguf(folder / f"m-{number:05d}-of-{len(parts):05d}.gguf", metadata, tensors)


def test_any_part_of_a_split_model_stands_for_all(tmp_path):
    split(tmp_path, [[], TENSORS[:2], TENSORS[2:]])
    for number in (1, 2, 3):
        header = read_gguf(tmp_path / f"m-{number:05d}-of-00003.gguf")
        assert [tensor.name for tensor in header.tensors] == [name for name, _, _ in TENSORS]
        assert header.metadata["general.architecture"] == "llama"


def test_parts_that_do_not_say_their_number_are_taken_by_their_names(tmp_path):
    write_gguf(tmp_path / "m-00001-of-00002.gguf", SMALL | {"split.count": 2}, TENSORS[:2])
    write_gguf(tmp_path / "m-00002-of-00002.gguf", {"split.count": 2}, TENSORS[2:])
    assert len(read_gguf(tmp_path / "m-00002-of-00002.gguf").tensors) == len(TENSORS)


def test_a_tensor_has_up_to_four_dimensions(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", SMALL, [("w", (2, 3, 5, 7), "f32")])
    assert read_gguf(path).tensors[0].elements == 2 * 3 * 5 * 7


def test_a_missing_part_is_named(tmp_path):
    split(tmp_path, [TENSORS[:2], TENSORS[2:]])
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(InputError, match="m-00002-of-00002"):
        read_gguf(tmp_path / "m-00001-of-00002.gguf")


def test_parts_that_do_not_add_up_are_refused(tmp_path):
    split(tmp_path, [TENSORS[:2], TENSORS[2:]], total=5)
    with pytest.raises(InputError, match="hold 4 tensors, the first one promises 5"):
        read_gguf(tmp_path / "m-00001-of-00002.gguf")
    split(tmp_path, [TENSORS[:2], TENSORS[:2]])
    with pytest.raises(InputError, match=r"two parts of the model hold tensor 'token_embd\.weight'"):
        read_gguf(tmp_path / "m-00001-of-00002.gguf")
    split(tmp_path, [TENSORS[:2], TENSORS[2:]], count=2**33)
    with pytest.raises(InputError, match="its name does not say which"):
        read_gguf(tmp_path / "m-00001-of-00002.gguf")


def test_the_parts_of_a_model_have_one_bound_and_one_place_each(tmp_path, monkeypatch):
    split(tmp_path, [TENSORS[:3], TENSORS[3:]])
    first, second = (tmp_path / f"m-{number:05d}-of-00002.gguf" for number in (1, 2))
    bounds = gguf._Bounds
    monkeypatch.setattr(gguf, "_Bounds", lambda: bounds(tensors=3))
    with pytest.raises(InputError, match="claims 1 tensors") as caught:
        read_gguf(first)
    assert str(second) in caught.value.location
    monkeypatch.undo()
    second.unlink()
    second.symlink_to(first)  # two hundred links to one small file would be two hundred parts
    with pytest.raises(InputError, match="not part 2 of the model"):
        read_gguf(first)


def test_a_file_that_is_shortened_while_it_is_read_is_one_error(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "m.gguf", SMALL | {"list": ["token"] * 50_000}, TENSORS)
    whole = gguf._Reader.array

    def shortened(reader, key):
        with path.open("r+b") as file:
            file.truncate(100_000)
        return whole(reader, key)

    monkeypatch.setattr(gguf._Reader, "array", shortened)
    with pytest.raises(InputError, match="ends inside its header"):
        read_gguf(path)


def test_a_file_that_ends_anywhere_inside_is_one_error(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", SMALL | {"list": ["a", "b"]}, TENSORS)
    whole = path.read_bytes()
    header_bytes = len(gguf_header(SMALL | {"list": ["a", "b"]}, TENSORS))
    for length in (*range(0, header_bytes - 1, 3), header_bytes + 40, len(whole) - 40):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError) as caught:
            read_gguf(path)
        assert str(path) in caught.value.location


def test_a_header_alone_still_lists_its_weights(tmp_path):
    header = read_gguf(write_gguf(tmp_path / "m.gguf", SMALL, TENSORS, data=False))
    assert not header.has_data
    assert len(header.tensors) == 4


def counts(tensors: int, keys: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (counts(2**63, 0), "claims 9,223,372,036,854,775,808 tensors"),
        (counts(0, 2**63), "claims 9,223,372,036,854,775,808 metadata keys"),
        (counts(150_000, 0), "claims 150,000 tensors"),
        (counts(10, 0), "claims 10 tensors"),  # of 24 bytes at least: the file has 88
        (counts(0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 2**63), "strings"),
        (counts(0, 1) + text("k") + struct.pack("<IIQ", 9, 4, 2**63), "ends inside"),
        (counts(0, 1) + text("k") + struct.pack("<IIQQ", 9, 8, 1, 2**64 - 1), "ends inside"),
        (counts(0, 1) + struct.pack("<QI", 2**63, 0), "the name of a metadata key"),
        (counts(0, 1) + text("k") + struct.pack("<IIQ", 9, 9, 1), "list of unknown type 9"),
        (counts(0, 1) + text("k") + struct.pack("<I", 99), "unknown type 99"),
        (counts(0, 2) + (text("k") + typed(1)) * 2, "stands twice"),
        (counts(0, 1) + text("general.alignment") + typed(33), "power of two"),
        (counts(1, 0) + text("w") + struct.pack("<IQ", 5, 1), "5 dimensions"),
        (counts(1, 0) + text("w") + struct.pack("<IQQIQ", 2, 2**63, 2**63, 0, 0), "cannot be stored"),
        (counts(1, 0) + text("w") + struct.pack("<IQIQ", 1, 0, 0, 0), "cannot be stored"),
        (counts(1, 0) + text("w") + struct.pack("<IQIQ", 1, 100, 2, 0), "cannot be stored as q4_0"),
        (counts(2, 0) + (text("w") + struct.pack("<IQIQ", 1, 8, 0, 0)) * 2, "same name"),
        (b"GGML" + bytes(60), "does not begin with"),
        (b"PK\x03\x04" + bytes(60), "does not begin with"),
    ],
)
def test_a_bad_header_is_one_error_at_once(tmp_path, content, reason):
    path = tmp_path / "m.gguf"
    path.write_bytes(content + bytes(64))

    def read():
        with pytest.raises(InputError, match=reason):
            read_gguf(path)

    assert calls_of(read) < 1000


def test_two_gigabytes_of_empty_strings_are_refused_at_once(tmp_path):
    path = tmp_path / "m.gguf"
    with path.open("wb") as file:
        file.write(counts(0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 250_000_000))
        file.truncate(2**31)

    def read():
        with pytest.raises(InputError, match="claims 250,000,000 strings"):
            read_gguf(path)

    assert calls_of(read) < 1000


def test_the_bound_on_strings_is_the_last_that_is_read(monkeypatch):
    bounds = gguf._Bounds
    header = gguf_header(SMALL | {"list": [""] * 100}, [])  # the strings are the end of the file, eight bytes each
    monkeypatch.setattr(gguf, "_Bounds", lambda: bounds(strings=100))
    assert parse_gguf(header).metadata["list"] == Skipped(100)
    monkeypatch.setattr(gguf, "_Bounds", lambda: bounds(strings=99))
    with pytest.raises(InputError, match="claims 100 strings"):
        parse_gguf(header)
    monkeypatch.undo()
    with pytest.raises(InputError, match="claims 100 strings"):
        parse_gguf(header[:-8])


def test_overlapping_and_misaligned_data_is_refused():
    def header(*offsets):
        tensors = b"".join(
            text(f"w{number}") + struct.pack("<IQIQ", 1, 16, 0, offset) for number, offset in enumerate(offsets)
        )
        return counts(len(offsets), 0) + tensors + bytes(400)

    assert len(parse_gguf(header(64, 0)).tensors) == 2
    for offsets in ((0, 32), (0, 65), (0, 0)):
        with pytest.raises(InputError, match="overlaps"):
            parse_gguf(header(*offsets))
    with pytest.raises(InputError, match="the header lists"):
        parse_gguf(header(0, 2**62))


@pytest.mark.parametrize(
    ("version", "reason"), [(struct.pack(">I", 3), "big-endian"), (struct.pack("<I", 1), "1"), (b"\xff" * 4, "version")]
)
def test_other_versions_and_byte_orders_are_refused_with_the_reason(tmp_path, version, reason):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + version + bytes(40))
    with pytest.raises(UnsupportedError, match=reason):
        read_gguf(path)


def test_an_unknown_tensor_type_is_refused_by_name():
    content = counts(1, 0) + text("w") + struct.pack("<IQIQ", 1, 8, 31, 0) + bytes(64)
    with pytest.raises(UnsupportedError, match="tensor 'w' has the unknown type 31"):
        parse_gguf(content)


def test_missing_files_and_folders_are_errors(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_gguf(tmp_path / "gone.gguf")
    with pytest.raises(InputError, match="not a regular file"):
        read_gguf(tmp_path)
