"""The JSON Schemas by name: answers by their command, files by what they hold."""

from __future__ import annotations

from pydantic import TypeAdapter

from kvcalc.budgets.baseline import BaselineFile
from kvcalc.budgets.budget import BudgetsFile
from kvcalc.errors import InputError, did_you_mean, quote
from kvcalc.report.shapes import ANSWERS
from kvcalc.sources.spec import ModelSpec

#: What kvcalc reads -> the model of it.
FILES = {"spec": ModelSpec, "budgets": BudgetsFile, "baseline": BaselineFile}
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema_names() -> tuple[str, ...]:
    """Every name that :func:`schema_of` knows."""
    return (*ANSWERS, *FILES)


def schema_of(name: str) -> dict[str, object]:
    """The JSON Schema of a command's answer, or of a file.

    Raises:
        InputError: an unknown name.
    """
    shape = ANSWERS.get(name) or FILES.get(name)
    if shape is None:
        hint = did_you_mean(name, schema_names()) or f"known: {', '.join(schema_names())}"
        raise InputError(f"unknown schema {quote(name)}", hint=hint)
    adapter: TypeAdapter[object] = TypeAdapter(shape)
    title = f"kvcalc {name}"
    return {"$schema": _DIALECT, **adapter.json_schema(by_alias=True), "title": title}
