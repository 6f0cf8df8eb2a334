"""How a column's values look in text: one unit for the whole column, or one per cell where that would hide a value."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from kvcalc.report.document import Column, Section, Units
from kvcalc.units import BINARY_UNITS, DECIMAL_UNITS, format_bytes, format_in_unit, unit_for

#: The units that values are shown in, by the name of ``--units``.
UNIT_TABLES: dict[Units, dict[str, int]] = {"binary": BINARY_UNITS, "decimal": DECIMAL_UNITS, "bytes": {"B": 1}}


#: A value below this part of the column's unit would lose its digits: 0.05 TiB is 51.2 GiB.
_LEAST_PART = 10


def column_cells(column: Column, section: Section, units: Units) -> tuple[str, list[str]]:
    """The header and the cells of a column; bars are drawn by the renderer and give empty cells here."""
    values = [column.value(row) for row in section.rows]
    if column.kind != "bytes":
        header = f"{column.title} (B)" if column.kind == "exact_bytes" else column.title
        return header, [_cell(column.kind, value) for value in values]
    unit = byte_unit([column.largest or 0, *(value for value in values if value is not None)], units)
    least = UNIT_TABLES[units][unit]
    if any(value and _LEAST_PART * abs(value) < least for value in values):
        table = UNIT_TABLES[units]
        return column.title, ["" if value is None else format_bytes(value, table, 2) for value in values]
    cells = ["" if value is None else format_in_unit(value, unit, 2) for value in values]
    return f"{column.title} ({unit})", cells


def byte_unit(values: Iterable[int], units: Units) -> str:
    """The one unit of a column or an axis: that of its largest value.

    >>> byte_unit([3489660928, 1], "binary"), byte_unit([3489660928], "decimal"), byte_unit([3489660928], "bytes")
    ('GiB', 'GB', 'B')
    """
    return unit_for(max(map(abs, values), default=0), UNIT_TABLES[units])


def _cell(kind: str, value: Any) -> str:
    if value is None or kind == "bars":
        return ""
    if kind in ("count", "exact_bytes"):
        return f"{value:,}"
    if kind == "percent":
        return format_percent(value)
    if kind == "ratio":
        return f"{value:,.2f}x"
    return str(value)


def format_percent(ratio: float) -> str:
    """A ratio in percent with one digit.

    >>> format_percent(0.1422), format_percent(-0.82)
    ('14.2 %', '-82.0 %')
    """
    return f"{100 * ratio:,.1f} %"


#: The parts of a stacked bar, one mark each.
MARKS = "█▒░"


def bars(column: Column, section: Section, width: int) -> list[str]:
    """The bars of a column in characters: the largest of them fills ``width``."""
    values = [column.value(row) or () for row in section.rows]
    largest = column.largest or max((sum(parts) for parts in values), default=0)
    lengths = (bar_lengths(parts, largest, width) for parts in values)
    return ["".join(mark * length for mark, length in zip(MARKS, each, strict=False)) for each in lengths]


def bar_lengths(parts: tuple[int, ...], largest: int, width: int) -> list[int]:
    """The lengths of a stacked bar's parts, in characters; ``largest`` is the total that fills ``width``.

    The ends are rounded, not the parts, so that a bar's end always stands where its total belongs.

    >>> bar_lengths((50, 25), 100, 20)
    [10, 5]
    """
    ends, reached = [0], 0
    for part in parts:
        reached += part
        ends.append((2 * reached * width + largest) // (2 * largest) if largest else 0)
    return [end - start for start, end in pairwise(ends)]
