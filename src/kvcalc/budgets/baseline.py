"""Baselines: what the budgets took once, and what a difference from that comes from.

A baseline keeps the inputs and the bytes by part of each budget, sorted by name, and nothing that changes by itself:
neither the tool's version nor the command. A merge of two branches that touched different budgets is clean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kvcalc.budgets.budget import Part
from kvcalc.budgets.file import read_budget_text
from kvcalc.errors import InputError, quote
from kvcalc.footprints import Footprint
from kvcalc.invalid import mistakes
from kvcalc.sources.files import parse_strict_json
from kvcalc.units import BINARY_UNITS, format_bytes

_LARGEST_BASELINE = 2**25
BASELINE_VERSION = 1
#: What is kept at its default too: the first baselines have it. Options that came later are kept where they are set.
_ALWAYS = ("encoder_tokens", "draft")


@dataclass(frozen=True)
class Change:
    """The difference from a baseline.

    Attributes:
        total_bytes: by how much the total grew (negative: shrank).
        parts: the difference part by part (weights, local layers, global layers, states, other layers, padding); their
            sum is ``total_bytes``.
        inputs: what was changed, each as (what, before, now).
    """

    total_bytes: int
    parts: dict[str, int] = field(hash=False)
    inputs: tuple[tuple[str, Any, Any], ...]

    @property
    def is_one(self) -> bool:
        """Whether anything changed at all."""
        return any(self.parts.values()) or bool(self.inputs)

    def sentence(self, units: Mapping[str, int] = BINARY_UNITS) -> str:
        """Which part changed by how much, and which input."""
        if not self.is_one:
            return "no change since the baseline"
        sign = "+" if self.total_bytes >= 0 else "-"
        words = [f"{sign}{format_bytes(abs(self.total_bytes), dict(units))} since the baseline"]
        parts = sorted(((part, size) for part, size in self.parts.items() if size), key=lambda pair: -abs(pair[1]))
        if parts:
            listed = ", ".join(
                f"{part} {'+' if size > 0 else '-'}{format_bytes(abs(size), dict(units))}" for part, size in parts
            )
            words.append(listed)
        if self.inputs:
            words.append(
                "changed: " + ", ".join(f"{what} {_word(old)} -> {_word(new)}" for what, old, new in self.inputs)
            )
        return "; ".join(words)


def _word(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "none" if value is None else str(value)


@dataclass(frozen=True)
class Baseline:
    """A baseline that was read.

    Attributes:
        file: its name as it was given.
        records: a record for each budget's name.
    """

    file: str
    records: Mapping[str, Mapping[str, Any]] = field(hash=False)


def record_of(reference: str, footprint: Footprint, parts: tuple[Part, ...]) -> dict[str, Any]:
    """What a baseline keeps of a budget.

    Args:
        reference: the model as the budget names it.
        parts: the workload; a mix has several.
    """
    engine, setup, counted, cache = footprint.engine, footprint.setup, footprint.weights, footprint.kv_cache
    mix = {"mix": " + ".join(map(str, parts))} if len(parts) > 1 else {}
    return {
        "reference": reference,
        "model": footprint.architecture.name,
        "layout": footprint.architecture.layout,
        "engine": {"name": engine.name, "version": engine.followed_version, "options": engine.given_options},
        "workload": {
            "context": footprint.context,
            "batch_size": footprint.batch_size,
            **mix,
            **{key: value for key, value in setup.workload.items() if value or key in _ALWAYS},
        },
        "weights": {"parameters": counted.parameters, "bytes": counted.bytes, "dtype": counted.dtype},
        "kv_cache": {
            "bytes": cache.bytes,
            "layers": [
                {"kind": row.kind, "count": row.count, "window": row.window, "bytes": row.bytes} for row in cache.layers
            ],
            "padding_bytes": cache.padding_bytes,
            "draft_bytes": cache.draft_bytes,
        },
        "total_bytes": footprint.total_bytes,
    }


def baseline_of(records: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """The baseline that holds those records, each with its budget's name."""
    return {"schema_version": BASELINE_VERSION, "budgets": dict(sorted(records))}


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> Change:
    """The difference between two baseline records, attributed to its parts and to the inputs that changed."""
    old, new = _parts(before), _parts(now)
    parts = {part: new.get(part, 0) - old.get(part, 0) for part in dict.fromkeys((*new, *old))}
    inputs = tuple(
        (what, old_value, new_value) for what, old_value, new_value in _inputs(before, now) if old_value != new_value
    )
    return Change(now["total_bytes"] - before["total_bytes"], parts, inputs)


def _parts(record: Mapping[str, Any]) -> dict[str, int]:
    parts = {"weights": record["weights"]["bytes"]}
    for layer in record["kv_cache"]["layers"]:
        part = _part(layer)
        parts[part] = parts.get(part, 0) + layer["bytes"]
    parts["padding"] = record["kv_cache"]["padding_bytes"]
    drafted = record["kv_cache"].get("draft_bytes")
    if drafted:
        parts["draft model"] = drafted
    # An older record may count something that today's parts do not name.
    other = record["total_bytes"] - sum(parts.values())
    return {**parts, "other": other} if other else parts


def _part(layer: Mapping[str, Any]) -> str:
    if layer["kind"] == "state":
        return "states"
    if layer["kind"] == "cross":
        return "cross-attention layers"
    return "global layers" if layer.get("window") is None else "local layers"


def _inputs(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for what in ("reference", "model"):
        yield what, before.get(what), now.get(what)
    windows = [sorted({layer["window"] for layer in _layers(each) if layer.get("window")}) for each in (before, now)]
    counts = [{(layer["kind"], layer.get("count")) for layer in _layers(each)} for each in (before, now)]
    if windows[0] != windows[1] and counts[0] == counts[1] and len(windows[0]) == len(windows[1]) == 1:
        yield "sliding window", windows[0][0], windows[1][0]
    else:
        yield "layout", before.get("layout"), now.get("layout")
    for table in ("engine", "workload"):
        old, new = (_flat(each.get(table)) for each in (before, now))
        for key in dict.fromkeys((*new, *old)):
            yield (f"engine {key}" if table == "engine" else key), old.get(key), new.get(key)
    old, new = (_flat(each.get("weights")) for each in (before, now))
    yield "parameters", old.get("parameters"), new.get("parameters")
    yield "weights dtype", old.get("dtype"), new.get("dtype")


def _layers(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    layers: list[Mapping[str, Any]] = record["kv_cache"]["layers"]
    return layers


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {path: value} if path else {}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, key if path in ("", "options") else f"{path}.{key}")
    return flat


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
    draft_bytes: _Bytes = 0  # baselines of version 0.1 have none


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
    """What is kept of a budget; ``record_of`` makes one."""

    model_config = _BASELINE
    reference: _Word
    model: _Word
    layout: _Word
    engine: _BaselineEngine
    workload: dict[str, _Plain]
    weights: _BaselineWeights
    kv_cache: _BaselineCache
    total_bytes: _Bytes


class BaselineFile(BaseModel):
    """A baseline, as ``--save-baseline`` writes it: a record per budget, by name."""

    model_config = _BASELINE
    schema_version: int
    budgets: dict[str, _BaselineRecord]


def load_baseline(path: Path) -> Baseline:
    """The baseline in a file.

    Raises:
        InputError: no baseline, one of another version, or one with a merge conflict in it.
    """
    hint = "'kvcalc check --save-baseline FILE' writes one"
    text = read_budget_text(path, _LARGEST_BASELINE)
    document = parse_strict_json(text, str(path))
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != BASELINE_VERSION:
        message = f"not a baseline of version {BASELINE_VERSION}" + (f", but {quote(version)}" if version else "")
        raise InputError(message, hint=hint, location=str(path))
    try:
        records = BaselineFile.model_validate(document).budgets
    except ValidationError as error:
        first = mistakes(error)[0]
        reason = first.reason or {"unknown": "an unknown field", "missing": "a field is missing"}[first.kind]
        raise InputError(f"not a baseline: {reason}", hint=hint, location=f"{path}, {quote(first.path)}") from None
    return Baseline(str(path), {name: record.model_dump() for name, record in records.items()})
