"""JSON: integers in bytes, one object, its rows written as they come."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from kvcalc import __version__
from kvcalc.report.document import Document

SCHEMA_VERSION = 2


def render(document: Document) -> Iterator[str]:
    """The records and the further keys of a document."""
    head = {
        "schema_version": SCHEMA_VERSION,
        "tool_version": __version__,
        "command": list(document.command),
        **document.extra,
    }
    yield _dumped(head, indent=1)[:-2] + ',\n "rows": ['
    separator = "\n  "
    for record in document.records:
        yield separator + _dumped(record)
        separator = ",\n  "
    yield "\n ]\n}\n"


def _dumped(value: Mapping[str, object], indent: int | None = None) -> str:
    # "##[" stands in texts alone, and a CI runner obeys it there too.
    return json.dumps(value, indent=indent, allow_nan=False).replace("##[", "##\\u005b")
