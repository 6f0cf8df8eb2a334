"""The TOML files that ship with kvcalc, by name: beside the package in a wheel or a zip, at the top of a checkout."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from kvcalc.errors import InputError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable


@cache
def _listed(kind: str) -> tuple[str, ...]:
    found = (file.name for file in _folder(kind).iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml")))


def names(kind: str) -> list[str]:
    """The names of one kind (``models``, ``devices``), sorted; no file is opened.

    >>> "gemma-3-27b" in names("models")
    True
    """
    return list(_listed(kind))


def text(kind: str, name: str) -> str | None:
    """The file of that name, or None where there is none; a name with a path in it is none of ours."""
    return (_folder(kind) / f"{name}.toml").read_text(encoding="utf-8") if name in names(kind) else None


def texts(kind: str) -> dict[str, str]:
    """Every file of one kind by its name, in order; the folder is listed once.

    >>> "[gemma3]" in texts("families")["gemma"]
    True
    """
    files = sorted(_folder(kind).iterdir(), key=lambda file: file.name)
    return {
        file.name.removesuffix(".toml"): file.read_text(encoding="utf-8")
        for file in files
        if file.name.endswith(".toml")
    }


def _folder(kind: str) -> Path | Traversable:
    package = Path(__file__).parents[1]
    for presets in (package / "presets", package.parents[1] / "presets"):
        if presets.is_dir():
            return presets / kind
    from importlib.resources import files  # takes longer than all of the above, and reads from a zip too

    zipped = files("kvcalc") / "presets" / kind
    if not zipped.is_dir():
        raise InputError("the presets of kvcalc are missing", hint="install it again", location=str(zipped))
    return zipped
