"""Holding an answer's JSON to the shape that ``kvcalc schema`` prints."""

from typing import Any

from pydantic import TypeAdapter

from kvcalc.report.shapes import ANSWERS


def checked(command: str, text: str) -> dict[str, Any]:
    """The answer of a command, once it has every key of its shape and no other."""
    adapter: TypeAdapter[dict[str, Any]] = TypeAdapter(ANSWERS[command])
    return adapter.validate_json(text)
