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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from glob import glob, has_magic
from os import PathLike, fspath, walk
from os.path import exists, isdir, isfile
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from kvcalc.errors import InputError, KVCalcError, did_you_mean, joined, quote
from kvcalc.invalid import located_mistakes, mistakes
from kvcalc.setup import plain_options
from kvcalc.sources.files import is_path, parse_toml, read_text, read_toml
from kvcalc.sources.resolve import split_variant
from kvcalc.units import check_count, format_count, parse_bytes, parse_count

_LARGEST_FILE = 2**22
_MOST_BUDGETS = 10_000
_MOST_FILES = 10_000
_MOST_EXTENDED = 20
_MOST_PARTS = 100
_MOST_OPTIONS = 100
_NAME = "budgets.toml"

_PART = re.compile(r"([0-9_]{1,15}[kKmM]?)\s?[xX×]\s?([0-9_]{1,15}[kKmM]?)", re.ASCII)
_PERCENT = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)\s?%", re.ASCII)
_COMMIT = re.compile(r"[0-9a-fA-F]{40}", re.ASCII)


def parse_percent(text: str, what: str) -> Fraction:
    """A share such as ``60%`` or ``2.5 %``, exactly.

    >>> parse_percent("2.5%", "max_increase")
    Fraction(1, 40)
    """
    match = _PERCENT.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{what} must be a percentage such as 60%, not {quote(text)}", hint="the % is not optional")
    return Fraction(match[1]) / 100


def _tokens(value: object, what: str) -> int:
    return parse_count(value, what) if isinstance(value, str) else check_count(value, what)


def _size(value: object, what: str) -> int:
    if not isinstance(value, str):
        raise InputError(f"{what} must be a text with a unit such as '24GiB', not {quote(value)}")
    return parse_bytes(value, what)


def _share(value: object, what: str) -> Fraction:
    if not isinstance(value, str):
        raise InputError(f"{what} must be a text with its unit such as '60%', not {quote(value)}")
    return parse_percent(value, what)


def _share_or_size(value: object, what: str) -> Fraction | int:
    if isinstance(value, str) and not value.rstrip().endswith("%"):
        return parse_bytes(value, what)
    return _share(value, what)


def _mix(value: object, what: str) -> tuple[Part, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not 0 < len(texts) <= _MOST_PARTS:
        raise InputError(f"{what} must be a list such as ['48 x 4k', '16 x 32k'], not {quote(value)}")
    matches = [_PART.fullmatch(text.strip()) if isinstance(text, str) else None for text in texts]
    for text, match in zip(texts, matches, strict=True):
        if match is None:
            reason = f"{what}: {quote(text)} is no number of sequences and their context"
            raise InputError(reason, hint="write '48 x 4k': 48 sequences of 4,096 tokens")
    return tuple(Part(parse_count(match[1], what), parse_count(match[2], what)) for match in matches if match)


def _options(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) > _MOST_OPTIONS:
        raise InputError(f"{what} must be a table such as {{block_size = 32}}, not {quote(value)}")
    return plain_options(value)


def _read_as(parse: Callable[[object, str], Any], what: str, written: Any = str) -> PlainValidator:
    """A field that ``parse`` reads; ``written`` is what a file may hold, for the JSON Schema."""

    def read(value: object) -> Any:
        try:
            return parse(value, what)
        except KVCalcError as error:
            raise ValueError(error) from None

    return PlainValidator(read, json_schema_input_type=written)


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(InputError(f"{quote(text)} has characters that cannot be printed"))
    return text


_Line = Annotated[str, Field(strict=True, min_length=1, max_length=4096)]


@dataclass(frozen=True)
class Part:
    """A part of a workload: so many sequences of one context."""

    batch_size: int
    context: int

    def __str__(self) -> str:
        return f"{self.batch_size} x {format_count(self.context)}"


class Budget(BaseModel):
    """One ``[[budget]]``: a setup, a workload, and what they may take. All byte figures are for one device.

    The fields from ``draft`` to ``engine_options`` are the arguments of :func:`kvcalc.setup.prepare`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
    name: Annotated[str, Field(strict=True, min_length=1, max_length=200), AfterValidator(_printable)] = Field(
        description="what reports and baselines call the budget"
    )
    model: _Line = Field(description="a model reference; paths count from the folder of the budgets' file")
    context: Annotated[int | None, _read_as(_tokens, "context", int | str)] = Field(
        None, description="tokens in the cache of one sequence; default: min_context"
    )
    batch_size: Annotated[int, _read_as(_tokens, "batch_size", int | str)] = Field(
        1, validation_alias=AliasChoices("batch_size", "batch"), description="sequences"
    )
    mix: Annotated[tuple[Part, ...], _read_as(_mix, "mix", list[str])] = Field(
        (), description="sequences of several contexts at a time: ['48 x 4k', '16 x 32k']"
    )
    draft: _Line | None = Field(None, description="a draft model, or mtp: its own prediction layers")
    kv_cache_dtype: _Line | None = Field(None, description="format of K and V, or K/V")
    weights_dtype: _Line | None = Field(None, description="format of the weights")
    tensor_parallel_size: Annotated[int, _read_as(_tokens, "tensor_parallel_size", int | str)] = 1
    encoder_tokens: Annotated[int, _read_as(_tokens, "encoder_tokens", int | str)] = 0
    text_only: bool = Field(False, strict=True, description="leave out the encoders of images and sound")
    engine: _Line = Field("ideal", description="whose rules apply")
    engine_options: Annotated[dict[str, Any], _read_as(_options, "engine_options", dict[str, Any])] = Field(
        default={}, description="its options, by its own names"
    )
    limit: Annotated[int | None, _read_as(_size, "limit")] = Field(None, description="a size with its unit: 40GiB")
    on: Literal["total", "kv_cache", "weights"] = Field("total", description="what the limit is for")
    device: _Line | None = Field(None, description="an accelerator whose memory is the limit, instead of limit")
    utilization: Annotated[Fraction | None, _read_as(_share, "utilization")] = Field(
        None, description="share of the device that the engine takes; default: the engine's own"
    )
    reserve: Annotated[int, _read_as(_size, "reserve")] = Field(0, description="bytes of the device left free")
    overhead: Annotated[Fraction | None, _read_as(_share, "overhead")] = Field(
        None, description="the most that the KV cache may take, as a share of the weights"
    )
    min_context: Annotated[int | None, _read_as(_tokens, "min_context", int | str)] = Field(
        None, description="a context that must still fit"
    )
    min_batch: Annotated[int | None, _read_as(_tokens, "min_batch", int | str)] = Field(
        None, description="a batch size that must still fit"
    )
    warn_at: Annotated[Fraction | int | None, _read_as(_share_or_size, "warn_at")] = Field(
        None, description="a share of the limit, or a size, from which the verdict is a warning"
    )
    max_increase: Annotated[Fraction | int | None, _read_as(_share_or_size, "max_increase")] = Field(
        None, description="the most that the total may grow against a baseline: 2% or 512MiB"
    )
    message: Annotated[str, Field(strict=True, max_length=2000)] | None = Field(
        None, description="what to tell the person whose change does not fit"
    )

    @property
    def parts(self) -> tuple[Part, ...]:
        """The workload: one part, unless it is a mix."""
        context = self.context or self.min_context
        assert self.mix or context is not None  # a budget without any is refused when it is read
        return self.mix or (Part(self.batch_size, context or 0),)


_OWN = ("name", "model")


def _describe(schema: dict[str, Any]) -> None:
    """Give the defaults the fields of a budget but its own two, and both the short name of one."""
    fields = schema.get("$defs", {}).get("Budget", Budget.model_json_schema())["properties"]
    fields["batch"] = {**fields["batch_size"], "description": "the same as batch_size"}
    shared = {key: value for key, value in fields.items() if key not in _OWN}
    schema["properties"]["defaults"] |= {"type": "object", "properties": shared, "additionalProperties": False}
    schema["properties"]["defaults"].pop("anyOf", None)


class BudgetsFile(BaseModel):
    """A whole ``budgets.toml``, for its JSON Schema; :func:`read_budgets` reads one table at a time."""

    model_config = ConfigDict(extra="forbid", defer_build=True, json_schema_extra=_describe)
    dialect: str | None = Field(None, alias="$schema", description="where an editor finds this schema")
    extends: str | list[str] | None = Field(
        None, description="files whose defaults come first, from this file's folder"
    )
    defaults: dict[str, Any] | None = Field(None, description="what holds for every budget that says nothing else")
    budget: list[Budget] = Field(default=[], description="the budgets")


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
        return _from_folder(self.folder, self.budget.model)

    @property
    def draft(self) -> str | None:
        """The reference of the draft model likewise, or ``mtp``."""
        return None if self.budget.draft is None else _from_folder(self.folder, self.budget.draft)


@dataclass(frozen=True)
class Unreadable:
    """A file, or a table of one, that is no budget."""

    name: str
    place: Place
    error: KVCalcError


def _from_folder(folder: Path, reference: str) -> str:
    base, _ = split_variant(reference)
    is_path = not base.startswith("hf:") and ("/" in base or "\\" in base or _ends_as_file(base))
    return str(folder / reference) if is_path else reference


def _ends_as_file(base: str) -> bool:
    return base in (".", "..") or base.endswith((".toml", ".json", ".gguf", ".safetensors"))


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
    problems += [
        InputError(f"{key} is a budget's own and has no default", location=place) for key in _OWN if key in own
    ]
    shared = {key: value for key, value in own.items() if key not in _OWN}
    try:
        Budget.model_validate({"name": "defaults", "model": "defaults", **shared})
    except ValidationError as error:
        problems += located_mistakes(error, Budget.model_fields, place)
        wrong = {each.path.partition(".")[0] for each in mistakes(error)}
        shared = {key: value for key, value in shared.items() if key not in wrong}
    if isinstance(shared.get("draft"), str) and extended:
        shared["draft"] = _from_folder(path.parent.resolve(), shared["draft"])
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
    found: list[KVCalcError] = [
        InputError(message, hint=hint, location=place) for message, hint in _contradictions(budget)
    ]
    if found:
        raise joined(found)
    return budget


def _contradictions(budget: Budget) -> Iterator[tuple[str, str | None]]:
    stated = budget.model_fields_set
    if not budget.mix and budget.context is None and budget.min_context is None:
        yield "context is missing", 'write context = "32k", or mix = ["48 x 4k", "16 x 32k"]'
    for key in sorted(stated & {"context", "batch_size", "min_context", "min_batch"}):
        if budget.mix:
            yield f"mix and {key} both say what the workload is", "leave one of them out"
    if budget.limit is not None and budget.device is not None:
        yield "limit and device both say what the memory is", "leave one of them out"
    if not any((budget.limit is not None, budget.device, budget.overhead is not None, budget.max_increase is not None)):
        yield "nothing is limited", 'write limit = "40GiB", a device, overhead = "60%" or max_increase = "2%"'
    if "on" in stated and budget.limit is None:
        yield "on says what a limit is for, and there is no limit", 'write limit = "40GiB"'
    for key in ("reserve", "utilization"):
        if key in stated and budget.device is None:
            yield f"{key} is a part of a device, and there is no device", 'write device = "h200"'
    for key in ("min_context", "min_batch"):
        if key in stated and budget.limit is None and budget.device is None and budget.overhead is None:
            yield f"{key} must fit into something", 'write limit = "40GiB", or a device'
    if budget.model.startswith("hf:"):
        base, _ = split_variant(budget.model)
        revision = base.partition("#")[2]
        if not _COMMIT.fullmatch(revision):
            yield (
                f"the Hub reference {quote(budget.model)} names no commit",
                "write hf:org/name# and the 40 digits of a commit: a branch moves, and CI must not change its mind",
            )
