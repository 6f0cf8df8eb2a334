"""A tiny GGUF writer for the tests: metadata, a list of tensors, and a hole in place of their data."""

import struct
from pathlib import Path

from kvcalc.dtypes import GGML_BLOCKS
from kvcalc.sources.gguf import TENSOR_TYPES
from kvcalc.units import round_up

_TYPE_NUMBERS = {name: number for number, name in TENSOR_TYPES.items()}


def text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def typed(value: object) -> bytes:
    """A value with its type, as metadata holds it; lists of numbers are int32, as the converter writes them."""
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<IQ", 10, value) if value >= 2**31 else struct.pack("<Ii", 5, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + text(value)
        case [str(), *_]:
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
        case [bool(), *_]:
            return struct.pack("<IIQ", 9, 7, len(value)) + bytes(value)
        case _:
            return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)


def gguf_header(
    metadata: dict[str, object], tensors: list[tuple[str, tuple[int, ...], str]], version: int = 3
) -> bytes:
    """The header of a file with tensors of (name, shape, type), laid out one behind the other."""
    parts = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(metadata))]
    parts += [text(key) + typed(value) for key, value in metadata.items()]
    offset = 0
    for name, shape, dtype in tensors:
        number = _TYPE_NUMBERS[dtype]
        parts.append(text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, number, offset))
        offset += round_up(tensor_bytes(shape, dtype), 32)
    return b"".join(parts)


def tensor_bytes(shape: tuple[int, ...], dtype: str) -> int:
    block, size = GGML_BLOCKS[dtype]
    elements = 1
    for each in shape:
        elements *= each
    return elements // block * size


def write_gguf(path: Path, metadata: dict[str, object], tensors=(), *, data: bool = True, version: int = 3) -> Path:
    header = gguf_header(metadata, list(tensors), version)
    with path.open("wb") as file:
        file.write(header)
        if data and tensors:
            size = sum(round_up(tensor_bytes(shape, dtype), 32) for _, shape, dtype in tensors)
            file.truncate(round_up(len(header), 32) + size)
    return path


def model_metadata(arch: str, **keys: object) -> dict[str, object]:
    """The metadata of a model; ``attention__head_count`` is the key ``ARCH.attention.head_count``."""
    named = {f"{arch}.{key.replace('__', '.')}": value for key, value in keys.items()}
    return {"general.architecture": arch, **named}
