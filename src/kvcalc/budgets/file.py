"""Budgets as a person writes them: ``budgets.toml``, or ``[tool.kvcalc]`` in a ``pyproject.toml``.

::

    extends = "../defaults.toml"    # whose [defaults] come first

    [defaults]
    engine = "vllm"
    engine_options = {max_num_batched_tokens = 8192}

    [[budget]]
    name = "prod-128k"
    model = "gemma-3-27b"
    context = "128k"
    limit = "80GiB"

    [[budget]]
    name = "chat"
    model = "gemma-3-27b"
    mix = ["48 x 4k", "16 x 32k"]   # in place of context and batch_size
    device = "h100-80gb"

A default holds for every budget that does not say otherwise. ``limit``, ``on``, ``device``, ``reserve`` and
``utilization`` are one choice: a budget that names a limit or a device takes none of them from the defaults. In the
same way ``engine_options`` belong to their engine, and ``context``, ``batch_size`` and ``mix`` are one workload.

A table that is no budget hides none of the others: it is read as :class:`Unreadable`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from os import PathLike, fspath, walk
from os.path import exists, isdir, isfile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kvcalc.budgets.budget import OWN, Budget, contradictions
from kvcalc.errors import InputError, KVCalcError, did_you_mean, joined, quote
from kvcalc.invalid import located_mistakes, mistakes
from kvcalc.sources.files import is_path, parse_toml, read_text, read_toml
from kvcalc.sources.resolve import seen_from

_LARGEST_FILE = 2**22
_MOST_BUDGETS = 10_000
_MOST_FILES = 10_000
_MOST_EXTENDED = 20
_NAME = "budgets.toml"


@dataclass(frozen=True)
class Place:
    """Where a table stands.

    Attributes:
        file: the file's name as it was given.
        line: the line of its header, or None where it has none (an inline table).
        table: its path, ``[[budget]] 'prod'``; empty for the whole file.
    """

    file: str
    line: int | None = None
    table: str = ""

    def __str__(self) -> str:
        line = f":{self.line}" if self.line else ""
        return f"{self.file}{line}" + (f", {self.table}" if self.table else "")


@dataclass(frozen=True)
class LocatedBudget:
    """A budget and where it stands; its model paths count from ``folder``."""

    budget: Budget
    place: Place
    folder: Path

    @property
    def name(self) -> str:
        """The budget's name."""
        return self.budget.name

    @property
    def reference(self) -> str:
        """The model reference with its path, if it is one, made whole from the file's folder."""
        return seen_from(self.folder, self.budget.model)

    @property
    def draft(self) -> str | None:
        """The reference of the draft model likewise, or ``mtp``."""
        return None if self.budget.draft is None else seen_from(self.folder, self.budget.draft)


@dataclass(frozen=True)
class Unreadable:
    """A file, or a table of one, that is no budget."""

    name: str
    place: Place
    error: KVCalcError


def find_files(named: Sequence[str | PathLike[str]]) -> list[Path]:
    """The budget files of these names: files, patterns such as ``b*.toml``, and folders with all below them.

    Without a name it is the file of this folder.

    Raises:
        InputError: a folder without budgets, or a pattern that no file matches.
    """
    if not named:
        return [find_budget_file(Path())]
    found: list[Path] = []
    for each in named:
        path = path_of(each)
        if isdir(path):
            found += _files_below(path)
        elif has_magic(str(path)) and not exists(path):
            matching = sorted(name for name in glob(str(path), recursive=True) if isfile(name))
            if not matching:
                raise InputError(f"no file matches {quote(str(path))}")
            found += map(Path, matching)
        else:
            found.append(path)
    if len(found) > _MOST_FILES:
        raise InputError(f"these are {len(found):,} files", hint=f"at most {_MOST_FILES:,} at a time")
    return list(dict.fromkeys(found))


def path_of(file: object) -> Path:
    """A path as a person gives it.

    Raises:
        InputError: it is none.
    """
    text = fspath(file) if isinstance(file, PathLike) else file
    if not isinstance(text, str) or not is_path(text):
        raise InputError(f"{quote(file)} is no path of a file")
    return Path(text)


def _files_below(folder: Path) -> list[Path]:
    """Every ``budgets.toml`` in a folder and below it, but for hidden folders; or the folder's ``pyproject.toml``."""
    found = []
    for parent, folders, names in walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if _NAME in names:
            found.append(Path(parent) / _NAME)
    return found or [find_budget_file(folder)]


def find_budget_file(folder: Path) -> Path:
    """The file that ``kvcalc check`` reads when none is named.

    Raises:
        InputError: the folder has none.
    """
    named = folder / _NAME
    if named.is_file():
        return named
    project = folder / "pyproject.toml"
    if project.is_file() and _tables(read_toml(project, _LARGEST_FILE), project) is not None:
        return project
    where = "here" if folder == Path() else f"in {quote(str(folder))}"
    raise InputError(
        f"no budgets {where}: neither budgets.toml nor [tool.kvcalc] in a pyproject.toml",
        hint="'kvcalc check --init' writes a first budgets.toml",
    )


def read_budgets(path: Path) -> list[LocatedBudget | Unreadable]:
    """The budgets of a file, in its order; what is wrong with the file or its defaults stands before them."""
    whole = Place(str(path))
    try:
        text = read_budget_text(path)
        tables = _tables(parse_toml(text, str(path)), path)
        if tables is None:
            raise InputError("the file has no [tool.kvcalc]", location=str(path))
        problems: list[KVCalcError] = []
        defaults = _read_defaults(tables, text, path, problems)
        given = _given(tables, path)
    except KVCalcError as error:
        return [Unreadable(str(path), whole, error)]
    prefix = _prefix(path)
    headers = _header_lines(text).get(f"{prefix}budget", [])
    found: list[LocatedBudget | Unreadable] = []
    taken: dict[str, Place] = {}
    for number, table in enumerate(given):
        line = headers[number] if len(headers) == len(given) else None
        name = table.get("name")
        title = quote(name) if isinstance(name, str) else f"number {number + 1}"
        place = Place(str(path), line, f"[[{prefix}budget]] {title}")
        label = name if isinstance(name, str) else title
        try:
            budget = _read_budget({**_merged(defaults, table)}, str(place))
            if budget.name in taken:
                message = f"the name {quote(budget.name)} is taken by {taken[budget.name]}"
                raise InputError(message, location=str(place))
        except KVCalcError as error:
            found.append(Unreadable(label, place, error))
            continue
        taken[budget.name] = place
        found.append(LocatedBudget(budget, place, path.parent))
    if problems:  # what its defaults were meant to say, nobody knows: no budget of the file is judged
        unreadable = [each for each in found if isinstance(each, Unreadable)]
        return [Unreadable(str(path), whole, joined(problems)), *unreadable]
    return found


_CONFLICT = re.compile(r"^<{7}(?= |$)", re.MULTILINE)


def read_budget_text(path: Path, largest: int = _LARGEST_FILE) -> str:
    """The text of a file of budgets, or of a baseline.

    Raises:
        InputError: it cannot be read, or a merge left its conflict in it.
    """
    text = read_text(path, largest)
    conflict = _CONFLICT.search(text)
    if conflict is not None:
        line = text.count("\n", 0, conflict.start()) + 1
        hint = "keep one side; 'kvcalc check --save-baseline FILE' writes a baseline anew"
        raise InputError("the file holds an unresolved merge conflict", hint=hint, location=f"{path}:{line}")
    return text


def _prefix(path: Path) -> str:
    return "tool.kvcalc." if path.name == "pyproject.toml" else ""


def _tables(document: dict[str, Any], path: Path) -> dict[str, Any] | None:
    if not _prefix(path):
        return document
    tool = document.get("tool")
    found = tool.get("kvcalc") if isinstance(tool, dict) else None
    return found if isinstance(found, dict) else None


def _given(tables: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    """The tables of the budgets."""
    given = tables.get("budget", [])
    name = f"[[{_prefix(path)}budget]]"
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise InputError(f"a budget is a table {name}", location=str(path))
    if len(given) > _MOST_BUDGETS:
        hint = "split it: one run checks several files, or all below a folder"
        raise InputError(f"the file has more than {_MOST_BUDGETS:,} budgets", hint=hint, location=str(path))
    if not given:
        raise InputError(f"the file has no {name}", location=str(path))
    return given


# Strings and comments are matched first, so that a header inside of one is none.
_TOKENS = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*'
    r"|^[ \t]*\[{1,2}[ \t]*(?P<header>[A-Za-z0-9_. \t-]+?)[ \t]*\]{1,2}[ \t\r]*(?:#[^\n]*)?$",
    re.DOTALL | re.MULTILINE,
)


def _header_lines(text: str) -> dict[str, list[int]]:
    """The lines of the headers of each table.

    >>> _header_lines('[defaults]\\n[[budget]]\\nmessage = "[[budget]]"\\n[[ budget ]] # 2\\n')
    {'defaults': [1], 'budget': [2, 4]}
    """
    lines: dict[str, list[int]] = {}
    number, at = 1, 0
    for match in _TOKENS.finditer(text):
        header = match["header"]
        if header is not None:
            number += text.count("\n", at, match.start("header"))
            at = match.start("header")
            lines.setdefault(re.sub(r"\s", "", header), []).append(number)
    return lines


_KNOWN = ("budget", "defaults", "extends", "$schema")


def _read_defaults(
    tables: Mapping[str, Any], text: str, path: Path, problems: list[KVCalcError], extended: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """The sound defaults of a file over those of the files that it extends; mistakes go to ``problems``."""
    prefix = _prefix(path)
    top = f"{path}, [{prefix.rstrip('.')}]" if prefix else str(path)
    for key in sorted(tables.keys() - {*_KNOWN}):
        hint = did_you_mean(key, _KNOWN) or "a budget is a table [[budget]]; [defaults] holds for all"
        problems.append(InputError(f"unknown table {quote(key)}", hint=hint, location=top))
    defaults: dict[str, Any] = {}
    for name in _extended_names(tables.get("extends", []), top, problems):
        try:
            base = _extended_defaults(path.parent / name, problems, (*extended, path), top)
            defaults = {**_merged(defaults, base)}
        except KVCalcError as error:
            problems.append(error)
    lines = _header_lines(text).get(f"{prefix}defaults", [None])
    place = str(Place(str(path), lines[0], f"[{prefix}defaults]"))
    own = tables.get("defaults", {})
    if not isinstance(own, dict):
        problems.append(InputError("defaults is a table", location=place))
        own = {}
    problems += [InputError(f"{key} is a budget's own and has no default", location=place) for key in OWN if key in own]
    shared = {key: value for key, value in own.items() if key not in OWN}
    try:
        Budget.model_validate({"name": "defaults", "model": "defaults", **shared})
    except ValidationError as error:
        problems += located_mistakes(error, Budget.model_fields, place)
        wrong = {each.path.partition(".")[0] for each in mistakes(error)}
        shared = {key: value for key, value in shared.items() if key not in wrong}
    if isinstance(shared.get("draft"), str) and extended:
        shared["draft"] = seen_from(path.parent.resolve(), shared["draft"])
    return {**_merged(defaults, shared)}


def _extended_names(value: object, top: str, problems: list[KVCalcError]) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or len(names) > _MOST_EXTENDED or not all(isinstance(name, str) for name in names):
        problems.append(InputError("extends names a file, or a list of them", location=top))
        return []
    if any("\0" in name for name in names):
        problems.append(InputError("extends names no file", location=top))
        return []
    return names


def _extended_defaults(path: Path, problems: list[KVCalcError], extended: tuple[Path, ...], top: str) -> dict[str, Any]:
    if path.resolve() in [each.resolve() for each in extended]:
        raise InputError(f"{quote(str(path))} extends itself", location=top)
    if len(extended) > _MOST_EXTENDED:
        raise InputError(f"more than {_MOST_EXTENDED} files extend one another", location=top)
    text = read_budget_text(path)
    tables = _tables(parse_toml(text, str(path)), path)
    return {} if tables is None else _read_defaults(tables, text, path, problems, extended)


_ONE_LIMIT = frozenset(("limit", "on", "device", "reserve", "utilization"))
_ONE_WORKLOAD = frozenset(("context", "batch_size", "batch", "mix"))


def _merged(defaults: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """A budget's own words over the defaults.

    >>> _merged({"device": "h200", "batch": 2, "reserve": "1GiB"}, {"limit": "4GiB"})
    {'batch': 2, 'limit': '4GiB'}
    """
    dropped: set[str] = set()
    if "limit" in table or "device" in table:
        dropped |= _ONE_LIMIT
    if "engine" in table:
        dropped.add("engine_options")
    if "mix" in table:
        dropped |= _ONE_WORKLOAD
    elif table.keys() & _ONE_WORKLOAD:
        dropped.add("mix")
    if "batch_size" in table or "batch" in table:
        dropped |= {"batch_size", "batch"}
    return {**{key: value for key, value in defaults.items() if key not in dropped}, **table}


def _read_budget(table: Mapping[str, Any], place: str) -> Budget:
    try:
        budget = Budget.model_validate(table)
    except ValidationError as error:
        raise joined(list(located_mistakes(error, Budget.model_fields, place))) from None
    found = [InputError(message, hint=hint, location=place) for message, hint in contradictions(budget)]
    if found:
        raise joined([*found])
    return budget
