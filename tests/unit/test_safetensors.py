"""Safetensors headers: exact bytes by dtype from headers alone, and one error for every bad file."""

import json
import os
import tracemalloc
from pathlib import Path

import pytest
from bounded import calls_of

from kvcalc.errors import InputError
from kvcalc.sources.safetensors import LARGEST_HEADER, StoredTensor, add_up, read_header, read_weights


def header_of(tensors: dict[str, tuple[str, list[int], int]]) -> bytes:
    """A header for tensors of (dtype, shape, bytes), laid out one behind the other."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, (dtype, shape, size) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}
        start += size
    return json.dumps(entries).encode()


def write(path: Path, tensors: dict[str, tuple[str, list[int], int]]) -> Path:
    header = header_of(tensors)
    size = sum(each[2] for each in tensors.values())
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)  # the weights are a hole in the file: nobody reads them
    return path


def raw(path: Path, header: bytes, data_bytes: int = 0, length: int | None = None) -> Path:
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + bytes(data_bytes))
    return path


def test_bytes_are_added_by_dtype_and_numbers_counted(tmp_path):
    file = write(tmp_path / "m.safetensors", {"a": ("BF16", [3, 5], 30), "b": ("F32", [7], 28), "c": ("BF16", [], 2)})
    stored = read_weights(file)
    assert stored.bytes_by_dtype == {"bfloat16": 32, "float32": 28}
    assert stored.elements == 15 + 7 + 1


def test_a_packed_checkpoint_has_its_real_bytes_and_no_count_of_weights(tmp_path):
    file = write(tmp_path / "m.safetensors", {"qweight": ("I32", [512, 64], 131072), "scales": ("F16", [32, 64], 4096)})
    stored = read_weights(file)
    assert stored.bytes_by_dtype == {"int32": 131072, "float16": 4096}
    assert stored.elements is None


def test_counters_beside_plain_weights_are_bytes_but_no_weights(tmp_path):
    file = write(tmp_path / "m.safetensors", {"w": ("F16", [4], 8), "position_ids": ("I64", [1, 6], 48)})
    assert read_weights(file).elements == 4
    assert sum(read_weights(file).bytes_by_dtype.values()) == 56


def test_numbers_below_a_byte_are_measured_in_bits(tmp_path):
    file = write(tmp_path / "m.safetensors", {"w": ("F4", [3, 64], 96)})
    assert read_weights(file).bytes_by_dtype == {"fp4": 96}


def test_a_dtype_of_the_future_is_stored_in_the_bytes_of_its_offsets(tmp_path):
    assert read_weights(write(tmp_path / "m.safetensors", {"w": ("F2_NEW", [64], 16)})).bytes_by_dtype == {"f2_new": 16}


def test_a_checkpoint_of_100_gb_is_answered_from_its_headers(tmp_path):
    for number in range(1, 11):
        tensors = {f"layer.{number}.{each}": ("BF16", [5_000_000, 100], 10**9) for each in range(10)}
        write(tmp_path / f"model-{number:05d}-of-00010.safetensors", tensors)
    stored = read_weights(tmp_path)
    assert calls_of(lambda: read_weights(tmp_path)) < 100 * 100  # of 100 tensors
    assert stored.bytes_by_dtype == {"bfloat16": 10**11}
    assert stored.elements == 5 * 10**10
    assert stored.files == 10


def test_one_part_stands_for_all_parts(tmp_path):
    for number in (1, 2):
        write(tmp_path / f"model-{number:05d}-of-00002.safetensors", {f"w{number}": ("F16", [10], 20)})
    assert read_weights(tmp_path / "model-00002-of-00002.safetensors").bytes_by_dtype == {"float16": 40}


def test_a_missing_part_is_named(tmp_path):
    write(tmp_path / "model-00001-of-00002.safetensors", {"w": ("F16", [10], 20)})
    for reference in (tmp_path, tmp_path / "model-00001-of-00002.safetensors"):
        with pytest.raises(InputError, match="model-00002-of-00002"):
            read_weights(reference)


def test_the_index_says_which_files_belong_together(tmp_path):
    write(tmp_path / "a.safetensors", {"w1": ("F16", [10], 20), "left over": ("F16", [10], 20)})
    write(tmp_path / "b.safetensors", {"w2": ("F16", [10], 20)})
    write(tmp_path / "consolidated.safetensors", {"w1": ("F16", [10], 20)})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w1": "a.safetensors", "w2": "b.safetensors"}}))
    for reference in (tmp_path, index):
        stored = read_weights(reference)
        assert (stored.bytes_by_dtype, stored.files) == ({"float16": 40}, 2)


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ({}, "no weight_map"),
        ([], "no weight_map"),
        ({"weight_map": {"w": "../secret.safetensors"}}, "none of its folder"),
        ({"weight_map": {"w": "/etc/passwd"}}, "none of its folder"),
        ({"weight_map": {"w": 7}}, "none of its folder"),
        ({"weight_map": {"w": "gone.safetensors"}}, "no such file"),
        ({"weight_map": {"other": "a.safetensors"}}, "a file without it"),
    ],
)
def test_a_bad_index_is_one_error(tmp_path, index, reason):
    write(tmp_path / "a.safetensors", {"w": ("F16", [10], 20)})
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match=reason):
        read_weights(path)


def test_the_same_tensor_in_two_files_is_refused(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.safetensors", {"w": ("F16", [10], 20)})
    with pytest.raises(InputError, match="two files hold a tensor named 'w'"):
        read_weights(tmp_path)
    for name in ("a", "b"):
        write(tmp_path / f"{name}.safetensors", {"w": ("F16", [10], 20), "b": ("F16", [10], 20)})
    with pytest.raises(InputError, match="two files hold a tensor named 'b'"):  # the first in the alphabet, each time
        read_weights(tmp_path)


W = '"dtype":"F16","shape":[4]'


@pytest.mark.parametrize(
    ("header", "data_bytes", "reason"),
    [
        (b"", 0, "not valid JSON"),
        (b"[]", 0, "not a JSON object"),
        (b"\xff\xff", 0, "not UTF-8"),
        (b"[" * 100_000, 0, "too deeply"),
        (b'{"w": 5}', 0, "not described"),
        (b'{"w":{"shape":[4],"data_offsets":[0,8]}}', 8, "no dtype"),
        (b'{"w":{"dtype":"F16","shape":[-4],"data_offsets":[0,8]}}', 8, "shape"),
        (b'{"w":{"dtype":"F16","shape":[1e3],"data_offsets":[0,8]}}', 8, "shape"),
        (b'{"w":{"dtype":"F16","shape":[true],"data_offsets":[0,2]}}', 2, "shape"),
        (b'{"w":{"dtype":"F16","shape":[1' + b"0" * 400 + b'],"data_offsets":[0,8]}}', 8, "shape"),
        (b'{"w":{"dtype":"F16","shape":[1' + b"0" * 5000 + b'],"data_offsets":[0,8]}}', 8, "not valid JSON"),
        (b'{"w":{"dtype":"F16","shape":[NaN],"data_offsets":[0,8]}}', 8, "not valid JSON"),
        (f'{{"w":{{{W},"data_offsets":[8,0]}}}}'.encode(), 8, "no range"),
        (f'{{"w":{{{W},"data_offsets":[-8,0]}}}}'.encode(), 8, "no range"),
        (f'{{"w":{{{W},"data_offsets":[0]}}}}'.encode(), 8, "no range"),
        (f'{{"w":{{{W},"data_offsets":[0,6]}}}}'.encode(), 6, "4 F16 numbers has 6 bytes"),
        (f'{{"w":{{{W},"data_offsets":[0,8]}}}}'.encode(), 7, "lists 8 bytes of tensors, the file holds 7"),
        (f'{{"w":{{{W},"data_offsets":[0,8]}}}}'.encode(), 9, "belong to none"),
        (f'{{"v":{{{W},"data_offsets":[0,8]}},"w":{{{W},"data_offsets":[4,12]}}}}'.encode(), 12, "overlaps"),
        (f'{{"v":{{{W},"data_offsets":[0,8]}},"w":{{{W},"data_offsets":[9,17]}}}}'.encode(), 17, "a hole"),
        (f'{{"w":{{{W},"data_offsets":[0,8]}},"w":{{{W},"data_offsets":[0,8]}}}}'.encode(), 8, "twice"),
    ],
)
def test_a_bad_header_is_one_error(tmp_path, header, data_bytes, reason):
    path = raw(tmp_path / "m.safetensors", header, data_bytes)
    with pytest.raises(InputError, match=reason) as caught:
        read_header(path)
    assert str(path) in caught.value.location
    assert len(caught.value.render()) < 1000


@pytest.mark.parametrize("length", [3, 2**62, 2**64 - 1, LARGEST_HEADER + 1])
def test_a_header_longer_than_the_file_is_refused_at_once(tmp_path, length):
    path = raw(tmp_path / "m.safetensors", b"{}", length=length)
    with pytest.raises(InputError, match="the header claims"):
        read_header(path)


def test_a_file_of_two_gigabytes_that_is_no_checkpoint_is_refused_at_once(tmp_path):
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write(b"\xff" * 8)
        file.truncate(2**31)
    with pytest.raises(InputError, match="the header claims"):
        read_header(path)


@pytest.mark.parametrize("content", [b"", b"\x00\x00"])
def test_an_empty_file_is_one_error(tmp_path, content):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="too short"):
        read_header(path)


def test_a_missing_file_a_pipe_and_an_empty_folder_are_errors(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_weights(tmp_path / "gone.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(InputError, match="not a regular file"):
        read_weights(tmp_path / "pipe.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no safetensors file"):
        read_weights(tmp_path / "empty")


def test_a_checkpoint_has_a_bound_on_its_tensors_over_all_files(monkeypatch):
    monkeypatch.setattr("kvcalc.sources.safetensors._MOST_TENSORS", 3)
    header = {"a": StoredTensor("bfloat16", 1, 2), "b": StoredTensor("bfloat16", 1, 2)}
    assert add_up([header]).bytes_by_dtype == {"bfloat16": 4}
    with pytest.raises(InputError, match="more than 3 tensors"):
        add_up([header, header])


def test_a_header_above_the_bound_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write((90_000_000).to_bytes(8, "little"))
        file.truncate(100_000_000)
    with pytest.raises(InputError, match="more than the 16,777,216"):
        read_header(path)


def test_an_index_takes_four_times_its_bytes_so_that_the_largest_stays_below_200_mb(tmp_path, monkeypatch):
    names = {f"model.layers.{at // 256}.mlp.experts.{at % 256}.down_proj.weight": at // 500 for at in range(10_000)}
    placed = {name: f"model-{file:05d}-of-00020.safetensors" for name, file in names.items()}
    index = tmp_path / "model.safetensors.index.json"
    size = index.write_text(json.dumps({"weight_map": placed}))
    monkeypatch.setattr("kvcalc.sources.safetensors.LARGEST_INDEX", size)  # room for it is made before it is read
    tracemalloc.start()
    with pytest.raises(InputError, match="no such file"):
        read_weights(index)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4.5 * size  # bytes and text at once would be 5.1
