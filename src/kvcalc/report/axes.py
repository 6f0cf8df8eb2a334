"""The axes of charts: where values stand and which of them are named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log2, log10

from kvcalc.report.cells import UNIT_TABLES, byte_unit
from kvcalc.report.document import Chart, Units
from kvcalc.units import BINARY_UNITS, DECIMAL_UNITS, format_bytes, format_count, format_in_unit

#: Colours that colour-blind readers tell apart (Okabe and Ito, "Color Universal Design", 2008), in order of use.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
#: The fills of a bar's parts, light and dark, so that they differ in grey too.
FILLS = ("#56B4E9", "#E69F00", "#009E73")
#: Ticks closer than this part of an axis would run into each other.
_CLOSEST = 0.06


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        title: what it means, with its unit.
        low, high: its ends.
        ticks: the values that are named, and their names.
        logarithmic: equal steps are equal factors.
    """

    title: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where a value stands, from 0 to 1.

        >>> Axis("tokens", 1024, 4096, (), logarithmic=True).place(2048)
        0.5
        """
        if self.logarithmic:
            return (log2(value) - log2(self.low)) / (log2(self.high) - log2(self.low))
        return (value - self.low) / (self.high - self.low)


def value_axis(chart: Chart, units: Units) -> Axis:
    """The axis of a chart's values: bytes in one unit, from 0; each tick with its own unit where it is logarithmic."""
    values = [value for series in chart.series for value in series.values]
    if chart.kind == "bounds":
        return _bound_axis(chart.y_title, max(values))
    sizes = [int(value) for value in values]
    if chart.kind in ("bars", "columns"):
        sizes = bar_totals(chart)
    if chart.limit is not None:
        sizes.append(chart.limit[0])
    if "y" in chart.logarithmic and min(sizes) > 0:
        return _logarithmic_bytes(chart.y_title, min(sizes), max(sizes), units)
    unit = chart.unit or byte_unit(sizes, units)
    scale = UNIT_TABLES[units][unit]
    # Lengths and curves start at nothing; points are compared with each other, and stand where they are.
    least = min(sizes) if chart.kind == "points" and min(sizes) < max(sizes) else 0
    step = _round_step(max(max(sizes) - least, 1) / scale / 5)
    room = 0.5 if least else 0.0  # the names of points stand below them
    first, last = floor(least / scale / step - room), ceil(max(sizes) / scale / step)
    last = max(last, first + 1)
    digits = max(0, -floor(log10(step)))
    ticks = tuple((number * step * scale, f"{number * step:,.{digits}f}") for number in range(first, last + 1))
    return Axis(f"{chart.y_title} ({unit})", first * step * scale, last * step * scale, ticks)


def position_axis(chart: Chart) -> Axis:
    """The axis of tokens (curves) or of a count (points)."""
    positions = sorted({position for series in chart.series for position in series.positions})
    if chart.kind == "points":
        low, high = positions[0], max(positions[-1], positions[0] + 1)
        margin = (high - low) / 20
        return Axis(chart.x_title, low - margin, high + margin, _spaced(positions, low, high, str))
    logarithmic = bool(chart.logarithmic) and positions[0] < positions[-1]
    low, high = (positions[0] if logarithmic else 0), max(positions[-1], 1)
    bare = Axis(chart.x_title, low, high, (), logarithmic)
    ticks = _spaced(positions, low, high, format_count, bare.place)
    return Axis(bare.title, low, high, ticks, logarithmic)


def _spaced(
    values: Sequence[int],
    low: int,
    high: int,
    name: Callable[[int], str],
    place: Callable[[float], float] | None = None,
) -> tuple[tuple[float, str], ...]:
    """Those of the values whose names have room, the largest first."""
    kept: list[int] = []
    where = place or (lambda value: (value - low) / (high - low))
    for value in reversed(values):
        if not kept or where(kept[-1]) - where(value) >= _CLOSEST:
            kept.append(value)
    return tuple((value, name(value)) for value in reversed(kept))


def _round_step(step: float) -> float:
    """The next of 1, 2, 5, 10 ... that is not below ``step``.

    >>> _round_step(0.65), _round_step(130)
    (1.0, 200.0)
    """
    scale = 10.0 ** floor(log10(step))
    return next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= step * 0.999)


def _logarithmic_bytes(title: str, smallest: int, largest: int, units: Units) -> Axis:
    base, table = (10, DECIMAL_UNITS) if units == "decimal" else (2, BINARY_UNITS)
    per_decade = log10(base)
    first, last = floor(log10(smallest) / per_decade), ceil(log10(largest) / per_decade)
    last = max(last, first + 1)
    step = ceil((last - first) / 7)
    ticks = tuple((base**power, format_bytes(base**power, table, 0)) for power in range(first, last + 1, step))
    return Axis(f"{title} (logarithmic)", base**first, base**last, ticks, logarithmic=True)


def _bound_axis(title: str, largest: float) -> Axis:
    high = 1.5 * largest
    named = (-largest, 0.0, largest)
    return Axis(title, -high, high, tuple((value, f"{value:+g}" if value else "0") for value in named))


def bar_totals(chart: Chart) -> list[int]:
    """The length of each bar, in bytes."""
    return [sum(int(value) for value in bar) for bar in zip(*(each.values for each in chart.series), strict=True)]


def bar_remarks(chart: Chart, units: Units) -> list[str]:
    """What stands at the end of each bar: its total, and the chart's own words."""
    sizes, unit = bar_totals(chart), chart.unit
    totals = [
        f"{format_in_unit(size, unit, 0)} {unit}" if unit else format_bytes(size, UNIT_TABLES[units]) for size in sizes
    ]
    remarks: Iterable[str] = chart.remarks or [""] * len(totals)
    return [f"{total}{', ' if remark else ''}{remark}" for total, remark in zip(totals, remarks, strict=True)]
