"""CSV: the JSON's rows, one line each, with dotted paths as columns (``kv_cache.layers.0.kind``).

The columns are those of all rows, and a row may be made as it is read: the lines wait in a temporary file until the
last one is known. Memory stays constant, and no column is lost.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from io import StringIO
from itertools import islice
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING, cast

from kvcalc.errors import printable
from kvcalc.report.document import Document

if TYPE_CHECKING:
    from _csv import Writer

#: Bytes of lines that stay in memory; more of them go to a file.
_IN_MEMORY = 2**22
#: Lines that are handed on at once.
_AT_ONCE = 256
_NUMBER = re.compile(r"[+-]?[0-9][0-9,]*(?:\.[0-9]+)?")


def render(document: Document) -> Iterator[str]:
    """The records of a document, flattened; where a row has no such value, its cell is empty."""
    columns: dict[str, int] = {}
    with SpooledTemporaryFile(_IN_MEMORY, "w+", encoding="utf-8", newline="") as lines:
        widths = _write_lines(document.records, columns, csv.writer(lines, lineterminator="\n"))
        lines.seek(0)
        header = StringIO()
        csv.writer(header, lineterminator="\n").writerow(map(_cell, columns))
        yield header.getvalue()
        for first, (start, width) in enumerate(widths, 1):
            end = widths[first][0] if first < len(widths) else None
            segment = islice(lines, None if end is None else end - start)
            missing = "," * (len(columns) - width) + "\n"
            while block := list(islice(segment, _AT_ONCE)):
                yield "".join(block if missing == "\n" else [line[:-1] + missing for line in block])


def _write_lines(records: Iterable[object], columns: dict[str, int], writer: Writer) -> list[tuple[int, int]]:
    """Write a line for each record, and learn the columns; returned is from which line on how many were known."""
    places: dict[tuple[object, ...], list[int]] = {}
    whole: set[tuple[object, ...]] = set()
    widths: list[tuple[int, int]] = []
    for number, record in enumerate(records):
        shape: list[object] = []
        leaves: list[object] = []
        _take(record, shape, leaves)
        at = places.get(key := tuple(shape))
        if at is None:
            at = places[key] = [columns.setdefault(path, len(columns)) for path in _paths(record)]
            if not widths or widths[-1][1] != len(columns):
                widths.append((number, len(columns)))
            if at == list(range(len(columns))):  # nearly every row of a long table: it is the columns, in their order
                whole.add(key)
        row = leaves
        if key not in whole or len(leaves) < len(columns):
            row = [""] * len(columns)
            for place, leaf in zip(at, leaves, strict=True):
                row[place] = leaf
        writer.writerow(row)
    return widths


def _take(value: object, shape: list[object], leaves: list[object]) -> None:
    """The leaves of a record in order, and its shape: records of one shape have the same paths."""
    if isinstance(value, dict):
        shape.append(tuple(value))
        inner: Iterable[object] = value.values()
    else:
        assert isinstance(value, list | tuple)
        shape.append(len(value))
        inner = value
    for number, each in enumerate(inner):
        kind = type(each)
        if kind is int:
            leaves.append(each)
        elif kind is str:
            leaves.append(_cell(each))
        elif kind is bool:
            leaves.append("true" if each else "false")
        elif each is None or kind is float:
            leaves.append(each)
        elif each:
            shape.append(number)
            _take(each, shape, leaves)
        else:  # an empty list or object
            leaves.append("")


def _paths(value: object, path: str = "") -> Iterator[str]:
    """The dotted paths of the leaves, in the order of :func:`_take`."""
    items = value.items() if isinstance(value, dict) else enumerate(cast("list[object]", value))
    for key, inner in items:
        below = f"{path}{key}"
        if isinstance(inner, dict | list | tuple) and inner:
            yield from _paths(inner, f"{below}.")
        else:
            yield below


@lru_cache(1024)
def _cell(text: str) -> str:
    r"""A text as a spreadsheet shows it and never computes it: what would begin a formula stands behind a quote.

    >>> _cell("=1+1"), _cell("-0.5"), _cell("a\x1b\n")
    ("'=1+1", '-0.5', 'a\\x1b\\n')
    """
    if not text.isprintable():
        text = printable(text)
    return f"'{text}" if text[:1] in _FORMULA and not _NUMBER.fullmatch(text) else text


_FORMULA = frozenset("=+-@")
