"""Text to standard output, and files that are written whole or not at all."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from kvcalc.errors import InputError


def write(pieces: Iterable[str], path: Path | None) -> None:
    """Write text to standard output, or to a file that appears whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    if path is None:
        for piece in pieces:
            sys.stdout.write(_encodable(piece, sys.stdout.encoding or "ascii"))
        sys.stdout.flush()
        return
    write_file(path, (piece.encode() for piece in pieces))


#: What stands for the characters of tables and bars where standard output cannot encode them.
_PLAIN = str.maketrans({"█": "#", "▒": "=", "░": "-", "─": "-", "·": "|", "±": "~", "×": "x"})


def _encodable(text: str, encoding: str) -> str:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_PLAIN).encode(encoding, "backslashreplace").decode(encoding)
    return text


def write_file(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file beside its place and move it there when it is complete.

    Raises:
        InputError: the folder or the disk refuses.
    """
    if path.exists() and not path.is_file():  # a device such as /dev/null, or a pipe: there is nothing to replace
        _write_into(path, pieces)
        return
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent or Path(), prefix=f".{path.name[:50]}.")
        with os.fdopen(descriptor, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise InputError(f"cannot write the file: {reason}", location=str(path)) from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _write_into(path: Path, pieces: Iterable[bytes]) -> None:
    try:
        with path.open("wb") as file:
            for piece in pieces:
                file.write(piece)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise InputError(f"cannot write the file: {reason}", location=str(path)) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
