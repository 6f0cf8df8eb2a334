"""GGUF files: the header alone, as metadata and a list of tensors.

The format is that of ggml/docs/gguf.md (versions 2 and 3, little endian). The reader keeps what describes the model and
steps over the rest: a vocabulary of 262,144 tokens is measured, never built. :mod:`kvcalc.sources.gguf_model` makes an
architecture of it.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path
from typing import BinaryIO

from kvcalc.dtypes import GGML_BLOCKS
from kvcalc.errors import InputError, KVCalcError, UnsupportedError, quote
from kvcalc.sources.files import opened
from kvcalc.units import round_up

# Bounds far above every published model, so that a header which claims 2^63 of something costs nothing.
_MOST_KEYS = 10_000
_MOST_TENSORS = 200_000
_MOST_STRINGS = 4_000_000
_MOST_KEPT = 1_000_000
_MOST_PARTS = 10_000
_LONGEST_NAME = 1_024
_LONGEST_VALUE = 4_096
_LONGEST_LIST = 10_000
_LARGEST_TENSOR = 2**50
#: Bytes of a file that are in memory at a time. A memory map would need none, and a file that is shortened while it is
#: mapped, as a download that starts again does, ends the whole process.
_WINDOW = 2**16

#: ggml/include/ggml.h, enum ggml_type (llama.cpp 0c1e57098; type 42 is of a later one): the types by number. Those that
#: were removed have none.
_TYPES = """
    f32 f16 q4_0 q4_1 - - q5_0 q5_1 q8_0 q8_1 q2_k q3_k q4_k q5_k q6_k q8_k iq2_xxs iq2_xs iq3_xxs iq1_s iq4_nl iq3_s
    iq2_s iq4_xs i8 i16 i32 i64 f64 iq1_m bf16 - - - tq1_0 tq2_0 - - - mxfp4 nvfp4 q1_0 q2_0
"""
TENSOR_TYPES = {number: name for number, name in enumerate(_TYPES.split()) if name != "-"}

_STRING, _ARRAY = 8, 9
_SCALARS = {
    number: struct.Struct(f"<{code}")
    for number, code in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "?",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.ASCII)

Scalar = int | float | bool | str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A list that was stepped over: how many entries it has."""

    length: int


Value = Scalar | tuple[Scalar, ...] | Skipped


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor of the list: its name, shape (innermost first), storage format and bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    elements: int
    bytes: int


@dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file, or all parts of one, say before the weights begin.

    Attributes:
        metadata: key -> value; lists of strings and long lists are :class:`Skipped`.
        tensors: every tensor, in the order of the files.
        has_data: the weights follow; False for a file that is a header alone.
    """

    metadata: Mapping[str, Value]
    tensors: tuple[GGUFTensor, ...]
    has_data: bool = True


def read_gguf(path: Path) -> GGUFHeader:
    """The header of a GGUF file; of all its parts where it is one of several.

    Raises:
        InputError: the file is missing, truncated, or not what it claims to be.
        UnsupportedError: a version or byte order that is not read.
    """
    header = _read_part(path, _Bounds())
    count = header.metadata.get("split.count", 0)
    if not isinstance(count, int) or count <= 1:
        return header
    name = _PART.fullmatch(path.name)
    if name is None or int(name[3]) != count or count > _MOST_PARTS:
        raise InputError(
            f"the file is one of {quote(count)} parts and its name does not say which",
            hint="parts are named NAME-00001-of-00003.gguf, as llama-gguf-split writes them",
            location=str(path),
        )
    bounds = _Bounds()
    metadata: Mapping[str, Value] = {}
    tensors: dict[str, GGUFTensor] = {}
    has_data = True
    for number in range(1, count + 1):
        part = path.with_name(f"{name[1]}-{number:05d}-of-{name[3]}.gguf")
        if not part.is_file():
            raise InputError(f"a part of the model is missing: {quote(part.name)}", location=str(path.parent))
        header = _read_part(part, bounds)
        if header.metadata.get("split.no", number - 1) != number - 1:
            raise InputError(f"the file is not part {number} of the model", location=str(part))
        for tensor in header.tensors:
            if tensor.name in tensors:
                raise InputError(f"two parts of the model hold tensor {quote(tensor.name)}", location=str(part))
            tensors[tensor.name] = tensor
        metadata = metadata or header.metadata
        has_data &= header.has_data
    expected = metadata.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise InputError(
            f"the parts hold {len(tensors):,} tensors, the first one promises {quote(expected)}", location=str(path)
        )
    return GGUFHeader(metadata, tuple(tensors.values()), has_data)


@dataclass
class _Bounds:
    """How much more a model, in one file or in several, may make us read and keep."""

    tensors: int = _MOST_TENSORS
    strings: int = _MOST_STRINGS
    kept: int = _MOST_KEPT


def _read_part(path: Path, bounds: _Bounds) -> GGUFHeader:
    with opened(path) as file:
        try:
            return _Reader(file, bounds).header()
        except KVCalcError as error:
            raise error.at(str(path)) from None


def parse_gguf(data: bytes) -> GGUFHeader:
    """The header of one file's bytes.

    Raises:
        InputError: truncated, or not what it claims to be.
        UnsupportedError: a version or byte order that is not read.
    """
    return _Reader(BytesIO(data), _Bounds()).header()


class _Reader:
    """A position in a file, and a window of bytes around it."""

    def __init__(self, file: BinaryIO, bounds: _Bounds) -> None:
        self.file = file
        self.bounds = bounds
        self.size = file.seek(0, os.SEEK_END)
        self.at = 0
        self.window = b""
        self.first = 0

    def at_hand(self, length: int) -> int:
        """Where the next ``length`` bytes begin in the window, which moves on to hold them."""
        start = self.at - self.first
        if start + length > len(self.window):
            if self.at + length <= self.size:
                self.file.seek(self.at)
                self.window, self.first, start = self.file.read(max(length, _WINDOW)), self.at, 0
            if start + length > len(self.window):  # the file may have become shorter since it was opened
                raise InputError("the file ends inside its header", hint="it is truncated: fetch it again")
        return start

    def header(self) -> GGUFHeader:
        if self.size < 24:
            raise InputError("the file is too short for a GGUF header")
        if self.bytes(4) != b"GGUF":
            raise InputError("not a GGUF file: it does not begin with 'GGUF'")
        version = self.number(_U32)
        if version and version & 0xFFFF == 0:  # 3 in the other byte order is 0x03000000
            raise UnsupportedError("a big-endian GGUF file is not read", hint="convert it with gguf_convert_endian.py")
        if version not in (2, 3):
            raise UnsupportedError(f"GGUF version {version} is not read", hint="versions 2 and 3 are")
        tensor_count = self.count(self.bounds.tensors, 24, "tensors")
        self.bounds.tensors -= tensor_count
        key_count = self.count(_MOST_KEYS, 12, "metadata keys")
        metadata: dict[str, Value] = {}
        for _ in range(key_count):
            key = self.name("a metadata key")
            if key in metadata:
                raise InputError(f"the metadata key {quote(key)} stands twice")
            metadata[key] = self.value(self.number(_U32), key)
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
            raise InputError(f"general.alignment must be a power of two, not {quote(alignment)}")
        listed = [self.tensor() for _ in range(tensor_count)]
        if len({tensor.name for tensor, _ in listed}) != len(listed):
            raise InputError("two tensors have the same name")
        has_data = self.check_data(listed, alignment)
        return GGUFHeader(metadata, tuple(tensor for tensor, _ in listed), has_data)

    def number(self, form: struct.Struct) -> int:
        value = self.scalar(form)
        assert isinstance(value, int)
        return value

    def scalar(self, form: struct.Struct) -> Scalar:
        start = self.at_hand(form.size)  # it may move the window
        (value,) = form.unpack_from(self.window, start)
        self.at += form.size
        scalar: Scalar = value
        return scalar

    def bytes(self, length: int) -> bytes:
        start = self.at_hand(length)
        self.at += length
        return self.window[start : start + length]

    def count(self, most: int, least_bytes: int, what: str) -> int:
        """A count whose entries take at least ``least_bytes`` each, so that the file itself bounds it."""
        count = self.number(_U64)
        if count > most or count * least_bytes > self.size:
            raise InputError(f"the header claims {count:,} {what}", hint="no model has so many: is the file damaged?")
        return count

    def name(self, what: str) -> str:
        length = self.number(_U64)
        if length > _LONGEST_NAME:
            raise InputError(f"the name of {what} claims {length:,} bytes", hint="is the file damaged?")
        return self.text(length)

    def text(self, length: int) -> str:
        return self.bytes(length).decode("utf-8", "replace")

    def skip(self, length: int) -> None:
        self.at += length
        if self.at > self.size:
            raise InputError("the file ends inside its header", hint="it is truncated: fetch it again")

    def value(self, kind: int, key: str) -> Value:
        if kind == _STRING:
            length = self.number(_U64)
            if length <= _LONGEST_VALUE:
                return self.text(length)
            self.skip(length)  # a chat template
            return Skipped(length)
        if kind == _ARRAY:
            return self.array(key)
        form = _SCALARS.get(kind)
        if form is None:
            raise InputError(f"the metadata key {quote(key)} has a value of unknown type {kind}")
        return self.scalar(form)

    def array(self, key: str) -> Value:
        kind = self.number(_U32)
        length = self.number(_U64)
        if kind == _STRING:
            self.skip_strings(length, key)
            return Skipped(length)
        form = _SCALARS.get(kind)
        if form is None:
            raise InputError(f"the metadata key {quote(key)} is a list of unknown type {kind}")
        if length > _LONGEST_LIST or length > self.bounds.kept:
            self.skip(length * form.size)
            return Skipped(length)
        self.bounds.kept -= length
        return struct.unpack(f"<{length}{form.format[1:]}", self.bytes(length * form.size))

    def skip_strings(self, count: int, key: str) -> None:
        """Step over ``count`` strings: one read each, because only a string itself says where the next begins."""
        if count > self.bounds.strings or count * 8 > self.size - self.at:
            raise InputError(f"the metadata key {quote(key)} claims {count:,} strings", hint="is the file damaged?")
        self.bounds.strings -= count
        read = _U64.unpack_from
        while count:
            at = self.at_hand(8)
            window, last = self.window, len(self.window) - 8
            while count and at <= last:
                at += 8 + read(window, at)[0]
                count -= 1
            self.at = self.first + at
            self.skip(0)

    def tensor(self) -> tuple[GGUFTensor, int]:
        name = self.name("a tensor")
        dimensions = self.number(_U32)
        if not 1 <= dimensions <= 4:
            raise InputError(f"tensor {quote(name)} claims {dimensions} dimensions")
        shape = tuple(self.number(_U64) for _ in range(dimensions))
        kind, offset = self.number(_U32), self.number(_U64)
        if kind not in TENSOR_TYPES:
            raise UnsupportedError(
                f"tensor {quote(name)} has the unknown type {kind}", hint="its size in bytes is not known here"
            )
        dtype = TENSOR_TYPES[kind]
        block, block_bytes = GGML_BLOCKS[dtype]
        elements = prod(shape)
        if not 0 < elements <= _LARGEST_TENSOR or shape[0] % block:
            shown = " x ".join(f"{size:,}" for size in shape)
            raise InputError(f"tensor {quote(name)} of {shown} numbers cannot be stored as {dtype}")
        return GGUFTensor(name, shape, dtype, elements, elements // block * block_bytes), offset

    def check_data(self, listed: list[tuple[GGUFTensor, int]], alignment: int) -> bool:
        """Whether the weights follow; refuses tensors that overlap or lie behind the file's end."""
        start = round_up(self.at, alignment)
        if start >= self.size:
            return not listed  # a header alone, as tools write it to describe a model
        end = 0
        for tensor, offset in sorted(listed, key=lambda each: each[1]):
            if offset % alignment or offset < end:
                raise InputError(f"the data of tensor {quote(tensor.name)} overlaps another's or is not aligned")
            end = offset + tensor.bytes
        if start + end > self.size:
            raise InputError(
                f"the header lists {start + end:,} bytes, the file has {self.size:,}",
                hint="the file is truncated: fetch it again",
            )
        return True
