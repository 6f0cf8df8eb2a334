"""What the weights of a checkpoint take, from the headers of its safetensors files alone.

A file is eight bytes (the header's length, little endian), a JSON header, and the tensors' bytes; the format is that of
github.com/huggingface/safetensors (README, "Format"). Only the header is read: a checkpoint of 100 GB is answered in
milliseconds, and a quantised one reports what it really takes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from kvcalc.errors import InputError, quote
from kvcalc.sources.files import decoded, opened, parse_strict_json, read_text

if TYPE_CHECKING:
    from kvcalc.architecture import Architecture

#: The format allows a header of 100 MB (safetensors 0.5, MAX_HEADER_SIZE). Published ones have less than a twentieth of
#: that, and each byte of JSON may become many of memory; the Hub's own client takes 25 MB.
LARGEST_HEADER = 2**24
LARGEST_INDEX = 2**25
INDEX_NAME = "model.safetensors.index.json"
_MOST_FILES = 10_000
_MOST_TENSORS = 2**19
_MOST_DIMENSIONS = 32

#: The format's names for its dtypes: ours, and the bits of one number.
_DTYPES: dict[str, tuple[str, int]] = {
    "F64": ("float64", 64),
    "F32": ("float32", 32),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "F8_E4M3": ("fp8_e4m3", 8),
    "F8_E5M2": ("fp8_e5m2", 8),
    "F8_E8M0": ("fp8_e8m0", 8),
    "F6_E2M3": ("fp6_e2m3", 6),
    "F6_E3M2": ("fp6_e3m2", 6),
    "F4": ("fp4", 4),
    "I64": ("int64", 64),
    "I32": ("int32", 32),
    "I16": ("int16", 16),
    "I8": ("int8", 8),
    "U64": ("uint64", 64),
    "U32": ("uint32", 32),
    "U16": ("uint16", 16),
    "U8": ("uint8", 8),
    "BOOL": ("bool", 8),
    "C64": ("complex64", 64),
}
_PLAIN_FLOATS = ("float64", "float32", "float16", "bfloat16")
#: Counters and masks that unquantised checkpoints carry beside their weights.
_BUFFERS = ("int64", "bool")
_DTYPE_NAME = re.compile(r"[A-Z][A-Z0-9_]{1,15}", re.ASCII)
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors", re.ASCII)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file: its storage format, how many numbers its shape states, and its bytes."""

    dtype: str
    elements: int
    bytes: int


@dataclass(frozen=True)
class StoredWeights:
    """All tensors of a checkpoint, added up.

    Attributes:
        bytes_by_dtype: bytes of the tensors by storage format.
        elements: numbers in them; None where some are packed (4-bit weights in an int32, fp8 with scales), because a
            header does not say how many weights a packed number holds.
        files: files that were read.
        head: the head's tensor, which a loader drops where the model has it tied to the embedding.
    """

    bytes_by_dtype: dict[str, int]
    elements: int | None
    files: int
    head: StoredTensor | None = None


def read_weights(path: Path) -> StoredWeights:
    """Bytes by storage format of a ``.safetensors`` file, an index, or a folder with either.

    One part of a checkpoint in several files stands for all of them.

    Raises:
        InputError: a file is missing, truncated, or not what its header says.
    """
    if os.path.isdir(path):
        return _read_folder(path)
    if path.name.endswith(".safetensors.index.json"):
        return _read_index(path)
    names = _parts(path.name, lambda name: path.with_name(name).is_file(), str(path.parent))
    return add_up(without_doubles(read_header(path.with_name(name)) for name in names or [path.name]))


def add_up(headers: Iterable[Mapping[str, StoredTensor]]) -> StoredWeights:
    """The sum over the headers of a checkpoint's files, of which one is in memory at a time.

    Raises:
        InputError: more tensors than any model has.
    """
    sizes: dict[str, int] = {}
    elements: int | None = 0
    files = tensors = 0
    head: StoredTensor | None = None
    for header in headers:
        files += 1
        tensors += len(header)
        if tensors > _MOST_TENSORS:
            raise InputError(f"the files hold more than {_MOST_TENSORS:,} tensors")
        for name, tensor in header.items():
            if name == "lm_head.weight" or name.endswith(".lm_head.weight"):
                head = tensor
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.bytes
            if elements is not None and tensor.dtype not in _BUFFERS:
                elements = elements + tensor.elements if tensor.dtype in _PLAIN_FLOATS else None
    return StoredWeights(sizes, elements, files, head)


def without_doubles(headers: Iterable[dict[str, StoredTensor]]) -> Iterator[dict[str, StoredTensor]]:
    """The headers of files that no index lists.

    Raises:
        InputError: two files hold a tensor of the same name.
    """
    seen: set[str] = set()
    for header in headers:
        twice = seen.intersection(header)
        if twice:
            hint = "an index (model.safetensors.index.json) would say which of the files belong together"
            raise InputError(f"two files hold a tensor named {quote(min(twice))}", hint=hint)
        seen.update(header)
        yield header


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, from its header; no weight is read.

    Raises:
        InputError: the file cannot be read, is truncated, or its header is wrong.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = header_length(file.read(8), size, str(path))
        text = file.read(length)
    return parse_header(text, size - 8 - length, str(path))


def with_stored_weights(architecture: Architecture, stored: StoredWeights, source: str) -> Architecture:
    """The architecture with the bytes that its files take; what the files hold beside the model is said in a note."""
    from kvcalc.weights import weights

    notes = architecture.provenance.notes
    if stored.head is not None and not any(tensor.part == "head" for tensor in architecture.tensors):
        stored = _without_head(stored, stored.head)
        notes += ("the files hold a head that the model does not load (tied to its embedding, or of no use to it)",)
    counted = weights(architecture, None).parameters
    if stored.elements is not None and stored.elements != counted:
        notes += (
            f"the files hold {stored.elements:,} numbers, the layers here {counted:,}: the files are what counts",
        )
    measured = replace(
        architecture.provenance,
        sources=(*architecture.provenance.sources, source),
        notes=notes,
        weight_bytes=stored.bytes_by_dtype,
        weight_elements=stored.elements,
    )
    return architecture.changed(provenance=measured)


def _without_head(stored: StoredWeights, head: StoredTensor) -> StoredWeights:
    sizes = {**stored.bytes_by_dtype, head.dtype: stored.bytes_by_dtype[head.dtype] - head.bytes}
    elements = None if stored.elements is None else stored.elements - head.elements
    return replace(stored, bytes_by_dtype={name: size for name, size in sizes.items() if size}, elements=elements)


def header_length(prefix: bytes, file_bytes: int, location: str) -> int:
    """The length that a file's first eight bytes state, checked against the file and the format's limit.

    >>> header_length(bytes([2, 0, 0, 0, 0, 0, 0, 0]), 10, "x.safetensors")
    2
    """
    if len(prefix) < 8:
        raise InputError("the file is too short for a safetensors header", location=location)
    length = int.from_bytes(prefix[:8], "little")
    if length > LARGEST_HEADER:
        raise InputError(
            f"the header claims {length:,} bytes, more than the {LARGEST_HEADER:,} of any model",
            hint="is this a safetensors file?",
            location=location,
        )
    if length > file_bytes - 8:
        raise InputError(
            f"the header claims {length:,} bytes, the file has {max(0, file_bytes - 8):,} behind its length",
            hint="the file is truncated, or no safetensors file",
            location=location,
        )
    return length


def parse_header(data: bytes, data_bytes: int, location: str) -> dict[str, StoredTensor]:
    """The tensors that a header lists; together they must be exactly the ``data_bytes`` behind it.

    Raises:
        InputError: not JSON, not a header, or offsets that overlap, leave holes or lie outside the file.

    >>> parse_header(b'{"w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}', 12, "x.safetensors")
    {'w': StoredTensor(dtype='bfloat16', elements=6, bytes=12)}
    """
    entries = parse_strict_json(decoded(data, location), location)
    if not isinstance(entries, dict):
        raise InputError("the header is not a JSON object", location=location)
    entries.pop("__metadata__", None)
    tensors: dict[str, StoredTensor] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        tensors[name], span = _tensor(name, entry, location)
        spans.append((*span, name))
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            what = "overlaps the one before it" if start < end else "leaves a hole before it"
            raise InputError(f"tensor {quote(name)} {what}", location=location)
        end = stop
    if end > data_bytes:
        raise InputError(
            f"the header lists {end:,} bytes of tensors, the file holds {max(0, data_bytes):,}",
            hint="the file is truncated: fetch it again",
            location=location,
        )
    if end < data_bytes:
        raise InputError(f"{data_bytes - end:,} bytes behind the last tensor belong to none", location=location)
    return tensors


def _tensor(name: str, entry: Any, location: str) -> tuple[StoredTensor, tuple[int, int]]:
    if not isinstance(entry, dict):
        raise InputError(f"tensor {quote(name)} is not described by an object", location=location)
    stated, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(stated, str) or not _DTYPE_NAME.fullmatch(stated):
        raise InputError(f"tensor {quote(name)} has no dtype", location=location)
    if not _are_counts(shape) or len(shape) > _MOST_DIMENSIONS:
        raise InputError(f"the shape of tensor {quote(name)} is no list of sizes", location=location)
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InputError(f"the data_offsets of tensor {quote(name)} are no range of bytes", location=location)
    elements, size = prod(shape), offsets[1] - offsets[0]
    # A dtype younger than this table is stored in the bytes that its offsets say, like any other.
    dtype, bits = _DTYPES.get(stated, (stated.lower(), None))
    if bits is not None and elements * bits != size * 8:
        raise InputError(
            f"tensor {quote(name)} of {elements:,} {stated} numbers has {size:,} bytes in its data_offsets",
            location=location,
        )
    return StoredTensor(dtype, elements, size), (offsets[0], offsets[1])


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 2**63 for each in value)


def _read_folder(folder: Path) -> StoredWeights:
    """By its index; else ``model.safetensors``, else all files but Mistral's second copy (``consolidated``)."""
    index, single = folder / INDEX_NAME, folder / "model.safetensors"
    if index.is_file():
        return _read_index(index)
    if single.is_file():
        return add_up([read_header(single)])
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    found = [name for name in found if not name.startswith("consolidated")] or found
    if not found:
        raise InputError("no safetensors file in the folder", location=str(folder))
    complete: set[str] = set()
    for name in found:
        if name not in complete:
            complete.update(_parts(name, set(found).__contains__, str(folder)))
    return add_up(without_doubles(read_header(folder / name) for name in found))


def _read_index(path: Path) -> StoredWeights:
    placed = parse_index(read_text(path, LARGEST_INDEX), str(path))
    return add_up(
        listed_tensors(read_header(path.parent / name), names, str(path.parent / name))
        for name, names in placed.items()
    )


def parse_index(text: str, location: str) -> dict[str, list[str]]:
    """The files of an index, with the names of the tensors in each.

    Raises:
        InputError: not an index, or a file outside the index's own folder.

    >>> parse_index('{"weight_map": {"a": "model-1.safetensors"}}', "index")
    {'model-1.safetensors': ['a']}
    """
    index = parse_strict_json(text, location)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError("the index has no weight_map", location=location)
    placed: dict[str, list[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w][\w.+-]{0,200}\.safetensors", name, re.ASCII):
            raise InputError(f"the index names a file that is none of its folder: {quote(name)}", location=location)
        placed.setdefault(name, []).append(tensor)
    if len(placed) > _MOST_FILES:
        raise InputError(f"the index names more than {_MOST_FILES:,} files", location=location)
    return dict(sorted(placed.items()))


def listed_tensors(header: Mapping[str, StoredTensor], names: Iterable[str], location: str) -> dict[str, StoredTensor]:
    """The tensors of one file that the index places there.

    Raises:
        InputError: the file lacks one of them.
    """
    missing = [name for name in names if name not in header]
    if missing:
        raise InputError(f"the index places tensor {quote(missing[0])} in a file without it", location=location)
    return {name: header[name] for name in names}


def _parts(name: str, has: Callable[[str], bool], location: str) -> list[str]:
    """The names of all parts where a file's name is that of one; a folder ``has`` each of them, or it is an error."""
    part = _PART.fullmatch(name)
    if part is None:
        return []
    count = int(part[3])
    if not 1 <= int(part[2]) <= count <= _MOST_FILES:
        raise InputError(f"{quote(name)} is no part of a checkpoint", location=location)
    names = [f"{part[1]}-{number:05d}-of-{part[3]}.safetensors" for number in range(1, count + 1)]
    for each in names:
        if not has(each):
            raise InputError(f"a part of the checkpoint is missing: {quote(each)}", location=location)
    return names
