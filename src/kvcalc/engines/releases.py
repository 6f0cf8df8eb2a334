"""Releases of an engine by their number: which one a reader asks for, and whether that one was read."""

from __future__ import annotations

import re

Release = tuple[int, int, int]

_RELEASE = re.compile(r"v?(\d{1,3})\.(\d{1,3})(?:\.(\d{1,3}))?(?:\.?(?:a|b|rc|dev|post|\+)[a-z0-9.+]{0,40})?", re.ASCII)


def release(version: str) -> Release:
    """The release of a version's text.

    Raises:
        ValueError: the text is no version.

    >>> release("5.15"), release("0.20.2rc1.dev9+g01d4d1ad3")
    ((5, 15, 0), (0, 20, 2))
    """
    match = _RELEASE.fullmatch(version)
    if match is None:
        raise ValueError("no version: write two or three numbers, as in 5.24.0")
    return int(match[1]), int(match[2]), int(match[3] or 0)


def text(found: Release) -> str:
    """A release as it is written.

    >>> text((5, 15, 0))
    '5.15.0'
    """
    return ".".join(map(str, found))


def note_on(engine: str, version: str, read: tuple[Release, ...]) -> str | None:
    """What a reader must know of a version that was not itself read; ``read`` ascends.

    >>> note_on("transformers", "5.99.0", ((5, 23, 0), (5, 24, 0)))
    'transformers 5.99.0 is newer than the releases read: the rule of 5.24.0 is followed'
    """
    found = release(version)
    if found in read:
        return None
    nearest = max((each for each in read if each <= found), default=read[0])
    place = "newer than" if found > read[-1] else "older than" if found < read[0] else "not among"
    return f"{engine} {text(found)} is {place} the releases read: the rule of {text(nearest)} is followed"
