"""Baselines: what the budgets took once, and what a difference from that comes from.

A baseline keeps the inputs and the bytes by part of each budget, sorted by name, and nothing that changes by itself:
neither the tool's version nor the command. A merge of two branches that touched different budgets is clean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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

        def signed(size: int) -> str:
            return f"{'+' if size >= 0 else '-'}{format_bytes(abs(size), units)}"

        parts = sorted(((part, size) for part, size in self.parts.items() if size), key=lambda pair: -abs(pair[1]))
        listed = ", ".join(f"{part} {signed(size)}" for part, size in parts)
        inputs = ", ".join(f"{what} {_word(old)} -> {_word(new)}" for what, old, new in self.inputs)
        words = (f"{signed(self.total_bytes)} since the baseline", listed, inputs and f"changed: {inputs}")
        return "; ".join(filter(None, words))


def _word(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "none" if value is None else str(value)


_BASELINE = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)
_Bytes = Annotated[int, Field(ge=0, lt=2**200)]
_Word = Annotated[str, Field(max_length=100_000)]
_Plain = bool | int | float | _Word | None


class BaselineLayer(BaseModel):
    """All layers of one kind."""

    model_config = _BASELINE
    kind: _Word
    count: _Bytes
    window: _Bytes | None
    bytes: _Bytes

    @property
    def part(self) -> str:
        """What a change of their bytes is attributed to."""
        if self.kind in ("state", "cross"):
            return {"state": "states", "cross": "cross-attention layers"}[self.kind]
        return "global layers" if self.window is None else "local layers"


class _BaselineCache(BaseModel):
    model_config = _BASELINE
    bytes: _Bytes
    layers: Annotated[list[BaselineLayer], Field(max_length=10_000)]
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


class BaselineRecord(BaseModel):
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
    budgets: dict[str, BaselineRecord]


@dataclass(frozen=True)
class Baseline:
    """A baseline that was read.

    Attributes:
        file: its name as it was given.
        records: a record for each budget's name.
    """

    file: str
    records: Mapping[str, BaselineRecord] = field(hash=False)


def record_of(reference: str, footprint: Footprint, parts: tuple[Part, ...]) -> BaselineRecord:
    """What a baseline keeps of a budget.

    Args:
        reference: the model as the budget names it.
        parts: the workload; a mix has several.
    """
    engine, counted, cache = footprint.engine, footprint.weights, footprint.kv_cache
    mix = {"mix": " + ".join(map(str, parts))} if len(parts) > 1 else {}
    stated = {key: value for key, value in footprint.setup.workload.items() if value or key in _ALWAYS}
    return BaselineRecord(
        reference=reference,
        model=footprint.architecture.name,
        layout=footprint.architecture.layout,
        engine=_BaselineEngine(name=engine.name, version=engine.followed_version, options=engine.given_options),
        workload={"context": footprint.context, "batch_size": footprint.batch_size, **mix, **stated},
        weights=_BaselineWeights(parameters=counted.parameters, bytes=counted.bytes, dtype=counted.dtype),
        kv_cache=_BaselineCache(
            bytes=cache.bytes,
            layers=[
                BaselineLayer(kind=row.kind, count=row.count, window=row.window, bytes=row.bytes)
                for row in cache.layers
            ],
            padding_bytes=cache.padding_bytes,
            draft_bytes=cache.draft_bytes,
        ),
        total_bytes=footprint.total_bytes,
    )


def compare(before: BaselineRecord, now: BaselineRecord) -> Change:
    """The difference between two records, attributed to its parts and to the inputs that changed."""
    old, new = _parts(before), _parts(now)
    parts = {part: new.get(part, 0) - old.get(part, 0) for part in {**new, **old}}
    inputs = tuple(each for each in _inputs(before, now) if each[1] != each[2])
    return Change(now.total_bytes - before.total_bytes, parts, inputs)


def _parts(record: BaselineRecord) -> dict[str, int]:
    cache, parts = record.kv_cache, {"weights": record.weights.bytes}
    for layer in cache.layers:
        parts[layer.part] = parts.get(layer.part, 0) + layer.bytes
    parts["padding"] = cache.padding_bytes
    if cache.draft_bytes:
        parts["draft model"] = cache.draft_bytes
    # An older record may count something that today's parts do not name.
    other = record.total_bytes - sum(parts.values())
    return {**parts, "other": other} if other else parts


def _inputs(before: BaselineRecord, now: BaselineRecord) -> Iterator[tuple[str, Any, Any]]:
    yield "reference", before.reference, now.reference
    yield "model", before.model, now.model
    layers = before.kv_cache.layers, now.kv_cache.layers
    windows = [sorted({layer.window for layer in each if layer.window}) for each in layers]
    counts = [{(layer.kind, layer.count) for layer in each} for each in layers]
    if windows[0] != windows[1] and counts[0] == counts[1] and len(windows[0]) == len(windows[1]) == 1:
        yield "sliding window", windows[0][0], windows[1][0]
    else:
        yield "layout", before.layout, now.layout
    yield "engine name", before.engine.name, now.engine.name
    yield "engine version", before.engine.version, now.engine.version
    for prefix, old, new in (
        ("engine ", before.engine.options, now.engine.options),
        ("", before.workload, now.workload),
    ):
        for key in {**new, **old}:
            yield f"{prefix}{key}", old.get(key), new.get(key)
    yield "parameters", before.weights.parameters, now.weights.parameters
    yield "weights dtype", before.weights.dtype, now.weights.dtype


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
    return Baseline(str(path), records)
