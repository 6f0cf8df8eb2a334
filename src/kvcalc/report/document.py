"""The one structure that every command builds and every renderer reads.

A renderer accepts only a :class:`Document`, returns text and never prints. ``records`` are what programs read (JSON,
CSV); ``sections`` are what people read (table, Markdown, HTML). Both come from the same footprints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from kvcalc.derivation import Quantity

#: How a value is shown. ``bytes`` columns share one unit where it shows every value; ``percent`` and ``ratio`` are
#: quotients; ``bars`` is a tuple of byte counts; a ``remark`` is a sentence, which a table shows on a line of its own
#: below the row.
Kind = Literal["text", "count", "bytes", "exact_bytes", "percent", "ratio", "bars", "verdict", "remark"]
Units = Literal["binary", "decimal", "bytes"]


@dataclass(frozen=True)
class Column:
    """One typed column of a section.

    Attributes:
        title: its header; the unit is added to it.
        value: takes the column's value from a row; None is shown as an empty cell.
        kind: how the value is shown.
        drop_order: columns with the highest number are left out first where a terminal is too narrow; 0 stays.
        legend: for bars, what each part stands for.
        largest: the greatest number of bytes where several columns share one unit, or one scale of bars.
    """

    title: str
    value: Callable[[Any], Any]
    kind: Kind = "text"
    drop_order: int = 0
    legend: tuple[str, ...] = ()
    largest: int | None = None

    @property
    def right_aligned(self) -> bool:
        """Numbers stand at the right, words and bars at the left."""
        return self.kind in ("count", "bytes", "exact_bytes", "percent", "ratio")


@dataclass(frozen=True)
class Section:
    """One table of a document, with the sentence above it."""

    columns: tuple[Column, ...]
    rows: Sequence[Any]
    title: str = ""
    #: Rows that are sums of others, set apart from them.
    totals: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Derivation:
    """A formula, shown with and without its numbers."""

    title: str
    steps: tuple[Quantity, ...]
    sources: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """One curve, one part of every bar, one group of points, or one row of bounds.

    Attributes:
        label: what it stands for.
        values: bytes; for bounds, the largest change in either direction.
        positions: where the values stand on the horizontal axis; bars and bounds stand in order and have none.
        joined: whether a line joins them.
        names: for points, what each of them is.
    """

    label: str
    values: tuple[int | float, ...]
    positions: tuple[int, ...] = ()
    joined: bool = False
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chart:
    """A picture of a section's data, in the same order.

    Attributes:
        kind: stacked bars that lie or (columns) stand, curves over tokens, points over a count, or published bounds.
        title: what it shows.
        series: the data.
        names: for bars and bounds, what stands at each place.
        x_title, y_title: what the axes mean; the unit of bytes is added by the renderer.
        logarithmic: which axes of curves are.
        remarks: for bars, a few words at the end of each.
        unit: the one unit of bytes to use, where that is not left to the values.
        limit: a number of bytes to compare with, and what it is.
    """

    kind: Literal["bars", "columns", "curves", "points", "bounds"]
    title: str
    series: tuple[Series, ...]
    names: tuple[str, ...] = ()
    x_title: str = ""
    y_title: str = ""
    logarithmic: Literal["", "x", "xy"] = ""
    remarks: tuple[str, ...] = ()
    unit: str = ""
    limit: tuple[int, str] | None = None


@dataclass(frozen=True)
class LiveRow:
    """A configuration whose cache a page computes itself.

    Attributes:
        label: what it is called.
        weights_bytes: of one device.
        one, several: the formulas of one sequence, and those of several; both empty where they hold for one question
            alone.
    """

    label: str
    weights_bytes: int
    one: tuple[Quantity, ...]
    several: tuple[Quantity, ...]


@dataclass(frozen=True)
class Live:
    """Configurations at any context and batch size.

    Attributes:
        rows: the configurations.
        context, batch_size: where a reader starts.
        longest: the context at which a slider ends; a box takes more.
    """

    rows: tuple[LiveRow, ...]
    context: int
    batch_size: int
    longest: int


@dataclass(frozen=True)
class Strip:
    """A model's layers in order: for each the index of its kind.

    Attributes:
        label: the model.
        kinds: every kind in words, and whether it sees a part of the context only.
        order: for each layer the index of its kind.
    """

    label: str
    kinds: tuple[tuple[str, bool], ...]
    order: tuple[int, ...]


@dataclass(frozen=True)
class Document:
    """All that one command has to say.

    Attributes:
        title: the question in a line.
        assumptions: what holds for every number, stated once.
        sections: tables for people.
        records: rows for programs; may be made as they are read, so that any number of them takes constant memory.
        extra: further top-level keys for programs.
        notes: what a reader must know.
        derivations: the formulas, where they were asked for.
        schema: the name of the shape that ``records`` and ``extra`` follow (:mod:`kvcalc.report.shapes`).
        charts: the sections as pictures.
        strips: the layers of the models, in order.
        live: what a page computes for any context and batch size.
        command: the command line that gave the answer, word by word.
        cases: what a test report shows, where that is not the records: the same keys as those of ``check``.
    """

    title: str
    assumptions: tuple[str, ...]
    sections: tuple[Section, ...]
    records: Iterable[Mapping[str, Any]]
    schema: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    derivations: tuple[Derivation, ...] = ()
    units: Units = "binary"
    charts: tuple[Chart, ...] = ()
    strips: tuple[Strip, ...] = ()
    live: Live | None = None
    command: tuple[str, ...] = ()
    cases: Sequence[Mapping[str, Any]] = ()


def growth_columns(labels: Sequence[str], rows: Sequence[tuple[int, Sequence[int]]]) -> Iterator[Column]:
    """A number and a bar for each configuration over rows of (context, bytes of each); all bars share one scale."""
    largest = max(size for _, sizes in rows for size in sizes)
    for number, label in enumerate(labels):
        yield Column(label, partial(_size, number), "bytes", largest=largest)
        yield Column("", partial(_bar, number), "bars", drop_order=number + 1, largest=largest)


def _size(number: int, row: tuple[int, Sequence[int]]) -> int:
    return row[1][number]


def _bar(number: int, row: tuple[int, Sequence[int]]) -> tuple[int]:
    return (row[1][number],)
