"""Text to standard output, and files that are written whole or not at all."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from kvcalc.errors import InputError
from kvcalc.sources.files import identity, was_read


def write(pieces: Iterable[str], path: Path | None) -> None:
    """Write text to standard output, or to a file that appears whole or not at all.

    Raises:
        InputError: the file cannot be written, or it was read.
    """
    check_outputs(path)
    if path is None:
        for piece in pieces:
            sys.stdout.write(_encodable(piece, sys.stdout.encoding or "ascii"))
        sys.stdout.flush()
        return
    write_file(path, (piece.encode("utf-8", "backslashreplace") for piece in pieces))


#: What stands for the characters of tables and bars where standard output cannot encode them.
_PLAIN = str.maketrans({"█": "#", "▒": "=", "░": "-", "─": "-", "·": "|", "±": "~", "×": "x"})


def _encodable(text: str, encoding: str) -> str:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_PLAIN).encode(encoding, "backslashreplace").decode(encoding)
    return text


def check_outputs(*paths: Path | None) -> None:
    """Refuse, before anything is written, an output that was read as an input or that is another output too.

    Raises:
        InputError: with the path.
    """
    taken: set[tuple[int, int] | str] = set()
    for path in paths:
        if path is None or (path.exists() and not path.is_file()):  # /dev/null can be written any number of times
            continue
        if was_read(path):
            raise InputError("the output is a file that was read", hint="write to another file", location=str(path))
        place = identity(path) or os.path.realpath(path)
        if place in taken:
            raise InputError("two outputs are the same file", hint="give each its own", location=str(path))
        taken.add(place)


def write_file(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file beside its place and move it there when it is complete; a link of either kind is written through.

    Raises:
        InputError: the folder or the disk refuses.
    """
    try:
        place = Path(os.path.realpath(path))
        if place.exists() and not place.is_file():  # a device such as /dev/null, or a pipe: there is nothing to replace
            with place.open("wb") as file:
                file.writelines(pieces)
        elif place.is_file() and _cannot_be_replaced(place):
            _overwrite(place, b"".join(pieces))
        else:
            _replace(place, pieces)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise InputError(f"cannot write the file: {reason}", location=str(path)) from None


def _cannot_be_replaced(path: Path) -> bool:
    """Whether a file keeps its place: others know it by another name too, or its folder takes no file beside it."""
    return path.stat().st_nlink > 1 or (not os.access(path.parent, os.W_OK) and os.access(path, os.W_OK))


def _replace(path: Path, pieces: Iterable[bytes]) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:50]}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _overwrite(path: Path, data: bytes) -> None:
    """Write into a file that keeps its place; where that fails, what it held is put back."""
    before = path.read_bytes()
    try:
        path.write_bytes(data)
    except BaseException:
        path.write_bytes(before)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
