"""Rich tables for a terminal or a pipe.

A terminal decides the width: columns that may go are left out until the rest fits, then words fold, then the rows are
listed one below the other. A pipe decides nothing: the table takes the width that it needs and is never cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvcalc.derivation import Quantity, evaluate, with_numbers
from kvcalc.report.cells import bar_lengths, column_cells
from kvcalc.report.document import Column, Derivation, Document, Section, Units

_UNLIMITED = 10_000
_BAR_WIDTH = 30
_MARKS = "█▒░"
_BAR_STYLES = ("blue", "yellow", "magenta")
_VERDICT_STYLES = {
    "holds": "green",
    "pass": "green",
    "fits": "green",
    "warn": "yellow",
    "added": "green",
    "removed": "yellow",
}


@dataclass(frozen=True)
class Screen:
    """What the text is shown on.

    Attributes:
        width: columns of a terminal, or None for a pipe or a file.
        color: whether escape codes are wanted.
    """

    width: int | None = None
    color: bool = False


def render(document: Document, screen: Screen = Screen()) -> Iterator[str]:
    """The document as text, a piece at a time."""
    console = Console(
        file=StringIO(),
        width=screen.width or _UNLIMITED,
        height=100,  # with TERM=dumb Rich believes a width only together with a height
        color_system="standard" if screen.color else None,
        force_terminal=screen.color,
        no_color=not screen.color,
        legacy_windows=False,
        highlight=False,
        markup=False,
        emoji=False,
    )
    yield _printed(console, Text(document.title, style="bold"))
    if document.assumptions:
        yield _printed(console, Text(" · ".join(document.assumptions), style="bright_black"))
    for section in document.sections:
        if section.title:
            yield _printed(console, Text(f"\n{section.title}", style="bold"))
        yield _section(console, section, document.units)
    for derivation in document.derivations:
        yield _derivation(console, derivation)
    if document.notes:
        yield "\n"
    for note in document.notes:
        yield _printed(console, Text(f"note: {note}", style="bright_black"))


def _printed(console: Console, content: Text | Table) -> str:
    with console.capture() as captured:
        console.print(content, soft_wrap=isinstance(content, Text) and console.width == _UNLIMITED)
    # A table pads its lines to its width; a reader of a pipe wants no blanks at the ends.
    return re.sub(r"[ ]+(?=\n)", "", captured.get())


def _section(console: Console, section: Section, units: Units) -> str:
    drawn = [_draw(column, section, units) for column in section.columns]
    if _width(drawn, _natural) > console.width:  # first the units go below the titles
        drawn = [replace(each, header=each.header.replace(" (", "\n(")) for each in drawn]
    while _width(drawn, _natural) > console.width and any(each.column.drop_order for each in drawn):
        drawn.remove(max(drawn, key=lambda each: each.column.drop_order))
    if _width(drawn, _narrowest) > console.width:
        return _listed(console, drawn)
    titled = any(each.header for each in drawn)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, show_header=titled)
    for each in drawn:
        right = each.column.right_aligned
        table.add_column(
            Text(each.header), justify="right" if right else "left", no_wrap=not each.folds, overflow="fold"
        )
    for number, row in enumerate(zip(*(each.cells for each in drawn), strict=True)):
        table.add_row(*row, style="bold" if number in section.totals else None)
    return _printed(console, table) + _legend(console, [each.column for each in drawn])


@dataclass(frozen=True)
class _Drawn:
    """A column as it will be printed."""

    column: Column
    header: str
    cells: list[Text]

    @property
    def folds(self) -> bool:
        """Words may go on in the next line; numbers and bars may not."""
        return self.column.kind in ("text", "verdict")


def _draw(column: Column, section: Section, units: Units) -> _Drawn:
    header, texts = column_cells(column, section, units)
    return _Drawn(column, header, _bars(column, section) if column.kind == "bars" else _styled(column, texts))


def _width(drawn: list[_Drawn], of: Callable[[_Drawn], int]) -> int:
    """Characters of a table whose columns have those widths, with a blank, a line and a blank between them."""
    return sum(map(of, drawn)) + 3 * (len(drawn) - 1)


def _natural(drawn: _Drawn) -> int:
    return max(cell_len(line) for text in (drawn.header, *map(str, drawn.cells)) for line in text.split("\n"))


def _narrowest(drawn: _Drawn) -> int:
    if not drawn.folds:
        return _natural(drawn)
    return max((cell_len(word) for text in (drawn.header, *map(str, drawn.cells)) for word in text.split()), default=0)


def _styled(column: Column, texts: list[str]) -> list[Text]:
    if column.kind != "verdict":
        return [Text(text) for text in texts]
    return [Text(text, style=_VERDICT_STYLES.get(text.split(" ")[0], "red")) for text in texts]


def _bars(column: Column, section: Section) -> list[Text]:
    values = [column.value(row) or () for row in section.rows]
    largest = column.largest or max((sum(parts) for parts in values), default=0)
    bars: list[Text] = []
    for parts in values:
        bar = Text()
        for length, mark, style in zip(bar_lengths(parts, largest, _BAR_WIDTH), _MARKS, _BAR_STYLES, strict=False):
            bar.append(mark * length, style=style)
        bars.append(bar)
    return bars


def _legend(console: Console, columns: list[Column]) -> str:
    legends = [column.legend for column in columns if column.legend]
    if not legends:
        return ""
    line = Text()
    for mark, style, meaning in zip(_MARKS, _BAR_STYLES, legends[0], strict=False):
        line.append(f"{mark} ", style=style)
        line.append(f"{meaning}   ", style="bright_black")
    return _printed(console, line)


def _listed(console: Console, drawn: list[_Drawn]) -> str:
    """Each row as lines of ``header: value``, for a screen narrower than any table."""
    shown = [each for each in drawn if each.column.kind != "bars"]
    blocks = []
    for number in range(len(shown[0].cells)):
        pairs = ((each.header.replace("\n", " "), str(each.cells[number])) for each in shown)
        blocks.append("\n  ".join(f"{header}: {cell}" for header, cell in pairs if cell))
    return _printed(console, Text("\n".join(blocks)))


def _derivation(console: Console, derivation: Derivation) -> str:
    values = evaluate(derivation.steps)
    text = Text(f"\n{derivation.title}\n", style="bold")
    for line in derivation_lines(derivation.steps, values):
        text.append(f"  {line}\n", style="not bold")
    for source in derivation.sources:
        text.append(f"  source: {source}\n", style="not bold bright_black")
    for excluded in derivation.excluded:
        text.append(f"  not included: {excluded}\n", style="not bold bright_black")
    text.rstrip()
    return _printed(console, text)


def derivation_lines(steps: tuple[Quantity, ...], values: dict[str, int | float]) -> Iterator[str]:
    """Each step as ``symbol = formula = the same with numbers = value unit``, and what the symbol means."""
    for step in steps:
        shown = f"{values[step.symbol]:,}" + (f" {step.unit}" if step.unit else "")
        numbers = with_numbers(step, values)
        parts = [step.symbol, *([step.formula] if not step.formula.replace("_", "").isdigit() else [])]
        if numbers not in (step.formula, shown):
            parts.append(numbers)
        yield f"{' = '.join([*parts, shown])}    [{step.meaning}]"
