"""Budgets as a person writes them: ``budgets.toml``, or ``[tool.kvcalc]`` in a ``pyproject.toml``.

::

    [defaults]
    engine = "vllm"
    engine_options = {max_num_batched_tokens = 8192}

    [[budget]]
    name = "prod-128k"
    model = "gemma-3-27b"
    context = "128k"
    limit = "80GiB"

A default holds for every budget that does not say otherwise. ``limit``, ``on``, ``device``, ``reserve`` and
``utilization`` are one choice: a budget that names a limit or a device takes none of them from the defaults. In the
same way ``engine_options`` belong to their engine: a budget that names an engine starts without options.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from kvcalc.errors import InputError, KVCalcError, did_you_mean, quote, raise_all
from kvcalc.invalid import located_mistakes, mistakes
from kvcalc.sources.files import parse_strict_json, parse_toml, read_bytes, read_text, read_toml
from kvcalc.sources.resolve import split_variant
from kvcalc.units import check_count, parse_bytes, parse_count

_LARGEST_FILE = 2**22
_LARGEST_BASELINE = 2**25
_MOST_BUDGETS = 10_000
BASELINE_VERSION = 1

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


_MOST_OPTIONS = 100


def _options(value: object, what: str) -> dict[str, Any]:
    """A table of plain values; a list becomes a tuple, so that equal options are one key."""
    if not isinstance(value, dict) or len(value) > _MOST_OPTIONS:
        raise InputError(f"{what} must be a table such as {{block_size = 32}}, not {quote(value)}")
    return {key: _plain(given, f"{what} {quote(key)}") for key, given in value.items()}


def _plain(value: object, what: str) -> Any:
    if isinstance(value, list):
        return tuple(_plain(each, what) for each in value)
    if not isinstance(value, str | int | float | bool):
        raise InputError(f"{what} must be a number, a word or a list of them, not {quote(value)}")
    return value


def _read_as(parse: Callable[[object, str], Any], what: str) -> PlainValidator:
    def read(value: object) -> Any:
        try:
            return parse(value, what)
        except KVCalcError as error:
            raise ValueError(error) from None

    return PlainValidator(read)


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(InputError(f"{quote(text)} has characters that cannot be printed"))
    return text


_Line = Annotated[str, Field(strict=True, min_length=1, max_length=4096)]


class Budget(BaseModel):
    """One ``[[budget]]``: a configuration, and what it may take. All byte figures are for one device."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
    name: Annotated[str, Field(strict=True, min_length=1, max_length=200), AfterValidator(_printable)] = Field(
        description="what reports and baselines call the budget"
    )
    model: _Line = Field(description="a model reference; paths count from the folder of the budgets' file")
    context: Annotated[int | None, _read_as(_tokens, "context")] = Field(
        None, description="tokens in the cache of one sequence; default: min_context"
    )
    batch_size: Annotated[int, _read_as(_tokens, "batch_size")] = Field(
        1, validation_alias=AliasChoices("batch_size", "batch"), description="sequences"
    )
    kv_cache_dtype: _Line | None = Field(None, description="format of K and V, or K/V")
    weights_dtype: _Line | None = Field(None, description="format of the weights")
    tensor_parallel_size: Annotated[int, _read_as(_tokens, "tensor_parallel_size")] = 1
    encoder_tokens: Annotated[int, _read_as(_tokens, "encoder_tokens")] = 0
    draft: _Line | None = Field(None, description="a draft model, or mtp: its own prediction layers")
    engine: _Line = Field("ideal", description="whose rules apply")
    engine_options: Annotated[dict[str, Any], _read_as(_options, "engine_options")] = Field(
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
    min_context: Annotated[int | None, _read_as(_tokens, "min_context")] = Field(
        None, description="a context that must still fit"
    )
    min_batch: Annotated[int | None, _read_as(_tokens, "min_batch")] = Field(
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


class LocatedBudget(BaseModel):
    """A budget and where it stands.

    Attributes:
        budget: what it says.
        file: the file's name as it was given.
        line: the line of its header, or None where it has none (an inline table).
        table: the path of its table, ``[[budget]] 'prod'``.
        folder: where its model paths count from.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)
    budget: Budget
    file: str
    line: int | None
    table: str
    folder: Path

    @property
    def place(self) -> str:
        """The place as errors print it: ``budgets.toml:12, [[budget]] 'prod'``."""
        return _place(self.file, self.line, self.table)

    @property
    def reference(self) -> str:
        """The model reference with its path, if it is one, made whole from the file's folder."""
        return self._from_folder(self.budget.model)

    @property
    def draft(self) -> str | None:
        """The reference of the draft model likewise, or ``mtp``."""
        return None if self.budget.draft is None else self._from_folder(self.budget.draft)

    def _from_folder(self, reference: str) -> str:
        base, _ = split_variant(reference)
        is_path = not base.startswith("hf:") and ("/" in base or "\\" in base or _ends_as_file(base))
        return str(self.folder / reference) if is_path else reference


def _ends_as_file(base: str) -> bool:
    return base in (".", "..") or base.endswith((".toml", ".json", ".gguf", ".safetensors"))


def _place(file: str, line: int | None, table: str) -> str:
    return f"{file}:{line}, {table}" if line else f"{file}, {table}"


def find_budget_file(folder: Path) -> Path:
    """The file that ``kvcalc check`` reads when none is named.

    Raises:
        InputError: the folder has none.
    """
    named = folder / "budgets.toml"
    if named.is_file():
        return named
    project = folder / "pyproject.toml"
    if project.is_file() and _tables(read_toml(project, _LARGEST_FILE), True) is not None:
        return project
    raise InputError(
        "no budgets here: neither budgets.toml nor [tool.kvcalc] in a pyproject.toml",
        hint="'kvcalc check --init' writes a first budgets.toml",
    )


def load_budgets(path: Path) -> list[LocatedBudget]:
    """The budgets of a file, in its order.

    Raises:
        KVCalcError: every mistake of the file, each with its table and the line of its header.
    """
    text = read_text(path, _LARGEST_FILE)
    document = parse_toml(text, str(path))
    in_project = path.name == "pyproject.toml"
    tables = _tables(document, in_project)
    prefix = "tool.kvcalc." if in_project else ""
    if tables is None:
        raise InputError("the file has no [tool.kvcalc]", location=str(path))
    lines = _header_lines(text)
    problems: list[KVCalcError] = []
    for key in tables.keys() - {"budget", "defaults"}:
        hint = did_you_mean(key, ("budget", "defaults")) or "a budget is a table [[budget]]; [defaults] holds for all"
        location = f"{path}, [{prefix.rstrip('.')}]" if prefix else str(path)
        problems.append(InputError(f"unknown table {quote(key)}", hint=hint, location=location))
    default_lines = lines.get(f"{prefix}defaults", [None])
    defaults = _read_defaults(
        tables.get("defaults", {}), _place(str(path), default_lines[0], f"[{prefix}defaults]"), problems
    )
    given = tables.get("budget", [])
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise InputError(f"a budget is a table [[{prefix}budget]]", location=str(path))
    if len(given) > _MOST_BUDGETS:
        raise InputError(f"the file has more than {_MOST_BUDGETS:,} budgets", location=str(path))
    if not given and not problems:
        raise InputError(f"the file has no [[{prefix}budget]]", location=str(path))
    headers = lines.get(f"{prefix}budget", [])
    located = []
    seen: dict[str, str] = {}
    for number, table in enumerate(given):
        line = headers[number] if len(headers) == len(given) else None
        name = table.get("name")
        title = quote(name) if isinstance(name, str) else f"number {number + 1}"
        label = f"[[{prefix}budget]] {title}"
        place = _place(str(path), line, label)
        found = _read_budget(_merged(defaults, table), place, problems)
        if found is None:
            continue
        if found.name in seen:
            problems.append(InputError(f"the name {quote(found.name)} is taken by {seen[found.name]}", location=place))
        seen[found.name] = place
        located.append(LocatedBudget.model_construct(
            budget=found, file=str(path), line=line, table=label, folder=path.parent
        ))  # fmt: skip
    raise_all(problems)
    return located


def _tables(document: dict[str, Any], in_project: bool) -> dict[str, Any] | None:
    if not in_project:
        return document
    tool = document.get("tool")
    found = tool.get("kvcalc") if isinstance(tool, dict) else None
    return found if isinstance(found, dict) else None


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


def _read_defaults(table: Any, place: str, problems: list[KVCalcError]) -> dict[str, Any]:
    """The defaults without their mistakes, so that a mistake in them is reported once and not for every budget."""
    if not isinstance(table, dict):
        problems.append(InputError("defaults is a table", location=place))
        return {}
    wrong: set[str] = set()
    for key in table.keys() & {"name", "model"}:
        problems.append(InputError(f"{key} is a budget's own and has no default", location=place))
        wrong.add(key)
    sound = {key: value for key, value in table.items() if key not in wrong}
    try:
        Budget.model_validate({"name": "defaults", "model": "defaults", **sound})
    except ValidationError as error:
        problems += located_mistakes(error, Budget.model_fields, place)
        wrong |= {each.path.partition(".")[0] for each in mistakes(error)}
    return {key: value for key, value in sound.items() if key not in wrong}


_ONE_CHOICE = ("limit", "on", "device", "reserve", "utilization")


def _merged(defaults: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """A budget's own words over the defaults.

    >>> _merged({"device": "h200", "batch": 2, "reserve": "1GiB"}, {"limit": "4GiB"})
    {'batch': 2, 'limit': '4GiB'}
    """
    dropped: set[str] = set()
    if "limit" in table or "device" in table:
        dropped |= set(_ONE_CHOICE)
    if "engine" in table:
        dropped.add("engine_options")
    if "batch_size" in table or "batch" in table:
        dropped |= {"batch_size", "batch"}
    return {**{key: value for key, value in defaults.items() if key not in dropped}, **table}


def _read_budget(table: Mapping[str, Any], place: str, problems: list[KVCalcError]) -> Budget | None:
    try:
        budget = Budget.model_validate(table)
    except ValidationError as error:
        problems += located_mistakes(error, Budget.model_fields, place)
        return None
    found = [InputError(message, hint=hint, location=place) for message, hint in _contradictions(budget)]
    problems += found
    return None if found else budget


def _contradictions(budget: Budget) -> Iterator[tuple[str, str | None]]:
    stated = budget.model_fields_set
    if budget.context is None and budget.min_context is None:
        yield "context is missing", 'write context = "32k"'
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


_BASELINE = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)
_Bytes = Annotated[int, Field(ge=0, lt=2**200)]
_Word = Annotated[str, Field(max_length=100_000)]
_Plain = bool | int | float | _Word | None


class _BaselineLayer(BaseModel):
    model_config = _BASELINE
    kind: _Word
    count: _Bytes
    window: _Bytes | None
    bytes: _Bytes


class _BaselineCache(BaseModel):
    model_config = _BASELINE
    bytes: _Bytes
    layers: Annotated[list[_BaselineLayer], Field(max_length=10_000)]
    padding_bytes: _Bytes


class _BaselineWeights(BaseModel):
    model_config = _BASELINE
    parameters: _Bytes
    bytes: _Bytes
    dtype: _Word


class _BaselineEngine(BaseModel):
    model_config = _BASELINE
    name: _Word
    version: _Word
    options: dict[str, _Plain | list[_Plain]]


class _BaselineRecord(BaseModel):
    """What is kept of a budget; ``budget.baseline_record`` makes one."""

    model_config = _BASELINE
    reference: _Word
    model: _Word
    layout: _Word
    engine: _BaselineEngine
    workload: dict[str, _Plain]
    weights: _BaselineWeights
    kv_cache: _BaselineCache
    total_bytes: _Bytes


class _Baseline(BaseModel):
    model_config = _BASELINE
    schema_version: int
    budgets: dict[str, _BaselineRecord]


def load_baseline(path: Path) -> dict[str, dict[str, Any]]:
    """What a baseline holds: a record for each budget's name.

    Raises:
        InputError: no baseline, or one of another version.
    """
    hint = "'kvcalc check --save-baseline FILE' writes one"
    document = parse_strict_json(read_bytes(path, _LARGEST_BASELINE), str(path))
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != BASELINE_VERSION:
        message = f"not a baseline of version {BASELINE_VERSION}" + (f", but {quote(version)}" if version else "")
        raise InputError(message, hint=hint, location=str(path))
    try:
        return {name: record.model_dump() for name, record in _Baseline.model_validate(document).budgets.items()}
    except ValidationError as error:
        first = mistakes(error)[0]
        reason = first.reason or {"unknown": "an unknown field", "missing": "a field is missing"}[first.kind]
        raise InputError(f"not a baseline: {reason}", hint=hint, location=f"{path}, {quote(first.path)}") from None
