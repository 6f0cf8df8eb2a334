"""Files that others wrote: opened, bounded and decoded here, and every fault is an error that names the file.

A file is read to the end only up to a size, and only where it is a regular file: a pipe may never be written to, and a
device may never end. What its bytes become is bounded too, because ``{},`` is three bytes of a file and a hundred of
memory.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from kvcalc.errors import InputError, quote

#: The most brackets, commas and colons of one file. Each makes at most some 150 bytes; a header of 80,000 tensors and
#: an index of 500,000 have fewer.
MOST_MARKS = 2**20
_MARKS = "{[,:="
# A text in quotes, also one that has no end, or a mark outside of one; without going back, so that one pass is enough.
_TEXT_OR_MARK = re.compile(r'"(?:[^"\\]|\\.)*+"?|([{\[,:=])', re.DOTALL)


#: Device and inode of the files that were read in answering one command line, which no answer may overwrite.
READ: ContextVar[set[tuple[int, int]] | None] = ContextVar("READ", default=None)


def remember(file: BinaryIO) -> None:
    """Count a file among those that were read, where a command line keeps account of them."""
    read = READ.get()
    if read is not None:
        status = os.fstat(file.fileno())
        read.add((status.st_dev, status.st_ino))


def identity(path: Path) -> tuple[int, int] | None:
    """What all names of one file, links of both kinds, have in common; None where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def was_read(path: Path) -> bool:
    """Whether a file was read before, under this name or another."""
    return identity(path) in (READ.get() or ())


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file, open for reading bytes.

    Raises:
        InputError: it is missing, no regular file, or it cannot be read; also where reading it fails later.
    """
    # Without waiting: a pipe that nobody writes to, or a terminal, would hold the program for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            hint = "write what a pipe gives to a file first"
            raise InputError("not a regular file", hint=hint, location=str(path))
        with open(descriptor, "rb") as file:
            remember(file)
            yield file
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise InputError(f"cannot read the file: {reason}", location=str(path)) from None


def is_path(text: str) -> bool:
    """Whether the system can have a file of that name at all: no zero byte, nothing that it cannot encode.

    >>> is_path("a b"), is_path("a\\0")
    (True, False)
    """
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def read_bytes(path: Path, largest: int) -> bytes:
    """The bytes of a regular file that has at most ``largest`` of them.

    Raises:
        InputError: it cannot be read, or is larger.
    """
    with opened(path) as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise InputError(f"the file is larger than {largest:,} bytes", location=str(path))
    return data


def read_text(path: Path, largest: int) -> str:
    """The text of a file of at most ``largest`` bytes.

    Raises:
        InputError: it cannot be read, is larger, or not UTF-8.
    """
    return decoded(read_bytes(path, largest), str(path))


def read_toml(path: Path, largest: int) -> dict[str, Any]:
    """The tables of a TOML file of at most ``largest`` bytes.

    Raises:
        InputError: it cannot be read, or is no TOML.
    """
    return parse_toml(read_text(path, largest), str(path))


def decoded(data: bytes, location: str) -> str:
    """Bytes as the UTF-8 text that they are, without the byte order mark that editors on Windows put first.

    Raises:
        InputError: not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("the file is not UTF-8 text", location=location) from None


def parse_toml(text: str, location: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        InputError: not TOML, nested too deeply, or of more parts than any file of ours.

    >>> parse_toml("[budget]\\nname = 'prod'", "budgets.toml")
    {'budget': {'name': 'prod'}}
    """
    _bound(text, location)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise InputError("the file is nested too deeply", location=location) from None
    except ValueError as error:  # no TOML, or an integer of more than 4300 digits
        raise InputError(f"not valid TOML: {quote(str(error))}", location=location) from None


def parse_json(text: str, location: str) -> Any:
    """JSON as people write it: ``NaN`` and ``Infinity`` are let through, and of a name given twice the last one counts.

    Raises:
        InputError: not JSON, nested too deeply, or of more parts than any file of ours.

    >>> parse_json('{"rope_scaling": Infinity}', "config.json")
    {'rope_scaling': inf}
    """
    return _json(text, location)


def parse_strict_json(text: str, location: str) -> Any:
    """JSON as programs write it: no name twice in one object, and no ``NaN``.

    Raises:
        InputError: not JSON of that kind, nested too deeply, or of more parts than any file of ours.
    """
    return _json(text, location, _without_doubles, _no_constant)


def _json(
    text: str,
    location: str,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
    constant: Callable[[str], Any] | None = None,
) -> Any:
    _bound(text, location)
    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except RecursionError:
        raise InputError("the JSON is nested too deeply", location=location) from None
    except ValueError as error:  # no JSON, or an integer of more than 4300 digits
        raise InputError(f"not valid JSON: {quote(str(error))}", location=location) from None


def _bound(text: str, location: str) -> None:
    """Refuse a text that would become many objects, before it does."""
    if sum(map(text.count, _MARKS)) <= MOST_MARKS:
        return
    # Perhaps most of them are in a text, such as a chat template, which is one object.
    marks = (found for found in _TEXT_OR_MARK.finditer(text) if found[1])
    if next(islice(marks, MOST_MARKS, None), None):
        raise InputError(f"the file has more than {MOST_MARKS:,} parts", location=location)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return result


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is no number")
