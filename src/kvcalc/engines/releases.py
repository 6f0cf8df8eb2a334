"""Releases of an engine by their number: which one a reader asks for, and whether that one was read."""

from __future__ import annotations

import re

Release = tuple[int, int, int]

_RELEASE = re.compile(r"v?(\d{1,3})\.(\d{1,3})(?:\.(\d{1,3}))?(?:\.?(?:a|b|rc|dev|post|\+)[a-z0-9.+]{0,40})?", re.ASCII)


def release(text: str) -> Release:
    """The release of a version's text.

    Raises:
        ValueError: the text is no version.

    >>> release("5.15"), release("5.24.0.dev0")
    ((5, 15, 0), (5, 24, 0))
    """
    match = _RELEASE.fullmatch(text)
    if match is None:
        raise ValueError("no version: write two or three numbers, as in 5.24.0")
    return int(match[1]), int(match[2]), int(match[3] or 0)


def note_on(engine: str, text: str, read: tuple[str, ...]) -> str | None:
    """What a reader must know of a release that was not itself read; ``read`` ascends.

    >>> note_on("transformers", "5.99.0", ("5.23.0", "5.24.0"))
    'transformers 5.99.0 is newer than the releases read: it is taken to cache as 5.24.0 does'
    """
    found = release(text)
    known = [release(each) for each in read]
    if found in known:
        return None
    nearest = max((each for each in known if each <= found), default=known[0])
    place = "newer than" if found > known[-1] else "older than" if found < known[0] else "not among"
    return f"{engine} {text} is {place} the releases read: it is taken to cache as {'.'.join(map(str, nearest))} does"
