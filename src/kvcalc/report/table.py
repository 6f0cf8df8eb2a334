"""Tables for a terminal, a pipe or a file.

The width decides: what stands in words is folded, then columns that may go are left out (and said to be), then the rows
are listed one below the other. No word and no number is ever broken or cut. A terminal has its own width; a pipe and a
file get :data:`PIPE_WIDTH`, which the logs of CI show without a scroll bar; ``--wide`` leaves no column out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from rich.cells import cell_len

from kvcalc.derivation import Quantity, evaluate, with_numbers
from kvcalc.report.cells import MARKS, bars, column_cells
from kvcalc.report.document import Column, Derivation, Document, Section, Units

PIPE_WIDTH = 120
#: Columns of a table that leaves none out, whatever it is shown on.
WIDEST = 10_000
#: Words fold into columns of this width before a column is left out.
_COMFORTABLE = 24
_GAP = "   "
_BAR_WIDTH, _SHORT_BAR = 30, 12
_BOLD, _DIM, _GREEN, _YELLOW, _RED = "1", "2", "32", "33", "31"
#: Cyan, magenta, green: seen on dark screens and on light ones.
_BAR_STYLES = ("36", "35", "32")
_VERDICT_STYLES = {
    "holds": _GREEN,
    "pass": _GREEN,
    "fits": _GREEN,
    "agrees": _GREEN,
    "warn": _YELLOW,
    "added": _GREEN,
    "removed": _YELLOW,
}


@dataclass(frozen=True)
class Screen:
    """What the text is shown on.

    Attributes:
        width: columns that a table may take.
        text_width: columns at which titles, notes and formulas fold; None where they stay one line, as in a pipe.
        color: whether escape codes are wanted.
    """

    width: int = PIPE_WIDTH
    text_width: int | None = None
    color: bool = False

    def styled(self, text: str, style: str) -> str:
        """A text in a style, if there are styles and it has one."""
        return f"\x1b[{style}m{text}\x1b[0m" if self.color and style and text else text

    def lines(self, text: str, style: str, indent: str = "") -> str:
        """Running text, folded; the lines after the first are indented."""
        return "".join(f"{self.styled(line, style)}\n" for line in self.folded(text, indent))

    def folded(self, text: str, indent: str = "") -> list[str]:
        """The lines of a running text."""
        return _fold(text, self.text_width, indent)


def render(document: Document, screen: Screen = Screen()) -> Iterator[str]:
    """The document as text, a piece at a time."""
    yield screen.lines(document.title, _BOLD)
    if document.assumptions:
        yield screen.lines(" · ".join(document.assumptions), _DIM)
    for section in document.sections:
        if section.title:
            yield "\n" + screen.lines(section.title, _BOLD)
        yield from _section(section, document.units, screen)
    for derivation in document.derivations:
        yield from _derivation(derivation, screen)
    if document.notes:
        yield "\n"
    for note in document.notes:
        yield screen.lines(f"note: {note}", _DIM, "  ")


def _length(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)


def _fold(text: str, width: int | None, indent: str = "") -> list[str]:
    """The lines of a text, each at most ``width`` wide unless a single word is wider.

    >>> _fold("a text of words", 9, "  ")
    ['a text of', '  words']
    >>> _fold("  a text of words", 11, "    ")
    ['  a text of', '    words']
    """
    lines: list[str] = []
    for paragraph in text.split("\n"):
        if width is None or _length(paragraph) <= width:
            lines.append(paragraph)
            continue
        line, *words = paragraph.split(" ")
        for word in words:
            longer = f"{line} {word}"
            if line.strip() and _length(longer) > width:
                lines.append(line)
                line = indent + word
            else:
                line = longer
        lines.append(line)
    return lines


@dataclass(frozen=True, eq=False)
class _Drawn:
    """A column as it will be printed.

    Attributes:
        cells: the text of each row.
        styles: its style, likewise.
    """

    column: Column
    header: str
    cells: Sequence[str]
    styles: Sequence[str]

    @property
    def is_bars(self) -> bool:
        """Bars are drawn when the width is known."""
        return self.column.kind == "bars"

    @property
    def folds(self) -> bool:
        """Words may go on in the next line; numbers and bars may not."""
        return self.column.kind in ("text", "verdict")

    @property
    def name(self) -> str:
        """What the column is called where it is not shown."""
        return self.column.title or ("bars" if self.is_bars else "remarks")

    @cached_property
    def natural(self) -> int:
        """The width at which nothing folds."""
        if self.is_bars:
            return max(_BAR_WIDTH, _length(self.header))
        return max(_length(line) for text in (self.header, *self.cells) for line in text.split("\n"))

    @cached_property
    def narrowest(self) -> int:
        """The width of the longest word; of words that may not fold, of the longest line."""
        if self.is_bars:
            return max(_SHORT_BAR, _length(self.header))
        wholes = [] if self.folds else [line for cell in self.cells for line in cell.split("\n")]
        words = [self.header] if wholes else [self.header, *self.cells]
        return max(map(_length, (*wholes, *(word for text in words for word in text.split()))), default=0)

    @cached_property
    def comfortable(self) -> int:
        """The width at which words fold and stay readable."""
        return max(self.narrowest, min(self.natural, _COMFORTABLE)) if self.folds else self.narrowest


def _section(section: Section, units: Units, screen: Screen) -> Iterator[str]:
    remarks = [_draw(column, section, units) for column in section.columns if column.kind == "remark"]
    drawn = [_draw(column, section, units) for column in section.columns if column.kind != "remark"]
    shown = _shown(drawn, screen.width)
    if _total([each.narrowest for each in shown]) > screen.width:
        yield from _listed([*drawn, *remarks], screen)
        return
    yield from _rows(shown, remarks, section, screen)
    yield _legend([each.column for each in shown], screen)
    hidden = [each.name for each in drawn if each not in shown]
    if hidden:
        words = f"not shown in {screen.width} columns: {', '.join(dict.fromkeys(hidden))} (--wide shows all)"
        yield "".join(f"{screen.styled(line, _DIM)}\n" for line in _fold(words, screen.width, "  "))


def _total(widths: Sequence[int]) -> int:
    """Characters of a table whose columns have those widths."""
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _shown(drawn: list[_Drawn], width: int) -> list[_Drawn]:
    """The columns that are shown: where there is no room, those with the highest drop order go first."""
    gone: list[_Drawn] = []
    shown = list(drawn)
    while _total([each.comfortable for each in shown]) > width and any(each.column.drop_order for each in shown):
        gone.append(max(shown, key=lambda each: each.column.drop_order))
        shown.remove(gone[-1])
    for each in reversed(gone):  # a narrow column may have room where a wide one had to go
        again = [one for one in drawn if one in shown or one is each]
        if _total([each.comfortable for each in again]) <= width:
            shown = again
    return shown


def _widths(shown: Sequence[_Drawn], width: int) -> list[int]:
    """The width of each column: the natural one, less what bars, then titles of numbers, then words give away."""
    widths = [each.natural for each in shown]
    least = [each.comfortable for each in shown]
    if _total(least) > width:
        least = [each.narrowest for each in shown]
    for _ in range(_total(widths) - width):
        open_to = [number for number in range(len(shown)) if widths[number] > least[number]]
        widths[max(open_to, key=lambda at: (shown[at].is_bars, not shown[at].folds, widths[at]))] -= 1
    return widths


def _rows(shown: Sequence[_Drawn], remarks: Sequence[_Drawn], section: Section, screen: Screen) -> Iterator[str]:
    widths = _widths(shown, screen.width)
    columns = [
        replace(each, cells=bars(each.column, section, width)) if each.is_bars else each
        for each, width in zip(shown, widths, strict=True)
    ]
    if any(each.header for each in shown):
        yield from _line([each.header for each in shown], [_BOLD] * len(shown), columns, widths, screen)
        yield "─" * _total(widths) + "\n"
    for number in range(len(section.rows)):
        styles = [each.styles[number] for each in shown]
        if number in section.totals:
            styles = [style or _BOLD for style in styles]
        yield from _line([each.cells[number] for each in columns], styles, columns, widths, screen)
        for remark in remarks:
            if remark.cells[number]:
                for line in _fold(f"  {remark.column.title}: {remark.cells[number]}", screen.width, "    "):
                    yield screen.styled(line, _DIM) + "\n"


def _line(
    cells: Sequence[str], styles: Sequence[str], columns: Sequence[_Drawn], widths: Sequence[int], screen: Screen
) -> Iterator[str]:
    """One row, which takes several lines where a cell folds."""
    lines = [cells]  # nearly every row of a long table
    if any("\n" in cell or _length(cell) > width for cell, width in zip(cells, widths, strict=True)):
        folded = [_fold(cell, width) for cell, width in zip(cells, widths, strict=True)]
        height = max(map(len, folded))
        lines = [[each[at] if at < len(each) else "" for each in folded] for at in range(height)]
    for line in lines:
        parts = []
        for text, style, each, width in zip(line, styles, columns, widths, strict=True):
            room = " " * (width - _length(text))
            is_bar = each.is_bars and not text.strip(MARKS)  # its title is none
            drawn = _colored_bar(text, screen) if is_bar else screen.styled(text, style)
            parts.append(room + drawn if each.column.right_aligned else drawn + room)
        yield _GAP.join(parts).rstrip(" ") + "\n"


def _draw(column: Column, section: Section, units: Units) -> _Drawn:
    header, cells = column_cells(column, section, units)
    styles = [""] * len(cells)
    if column.kind == "verdict":
        styles = [_VERDICT_STYLES.get(cell.split(" ")[0].rstrip(","), _RED) for cell in cells]
    return _Drawn(column, header, cells, styles)


def _colored_bar(bar: str, screen: Screen) -> str:
    runs = ((mark * bar.count(mark), style) for mark, style in zip(MARKS, _BAR_STYLES, strict=True))
    return "".join(screen.styled(run, style) for run, style in runs) if screen.color else bar


def _legend(columns: list[Column], screen: Screen) -> str:
    legend = next((column.legend for column in columns if column.legend), ())
    meanings = zip(MARKS, _BAR_STYLES, legend, strict=False)
    parts = [f"{screen.styled(mark, style)} {screen.styled(meaning, _DIM)}" for mark, style, meaning in meanings]
    return "   ".join(parts) + "\n" if parts else ""


def _listed(drawn: Sequence[_Drawn], screen: Screen) -> Iterator[str]:
    """Each row as lines of ``header: value``, for a screen narrower than any table."""
    shown = [each for each in drawn if not each.is_bars]
    for number in range(len(shown[0].cells)):
        pairs = [(each.header.replace("\n", " "), each.cells[number]) for each in shown if each.cells[number]]
        for at, (header, cell) in enumerate(pairs):
            for line in _fold(f"{'  ' if at else ''}{header}: {cell}", screen.width, "    "):
                yield line + "\n"


def _derivation(derivation: Derivation, screen: Screen) -> Iterator[str]:
    yield "\n" + screen.lines(derivation.title, _BOLD)
    for line in derivation_lines(derivation.steps, evaluate(derivation.steps)):
        yield screen.lines(f"  {line}", "", "    ")
    for source in derivation.sources:
        yield screen.lines(f"  source: {source}", _DIM, "    ")
    for excluded in derivation.excluded:
        yield screen.lines(f"  not included: {excluded}", _DIM, "    ")


def derivation_lines(steps: tuple[Quantity, ...], values: dict[str, int | float]) -> Iterator[str]:
    """Each step as ``symbol = formula = the same with numbers = value unit``, and what the symbol means."""
    for step in steps:
        shown = f"{values[step.symbol]:,}" + (f" {step.unit}" if step.unit else "")
        numbers = with_numbers(step, values)
        parts = [step.symbol, *([step.formula] if not step.formula.replace("_", "").isdigit() else [])]
        if numbers not in (step.formula, shown):
            parts.append(numbers)
        yield f"{' = '.join([*parts, shown])}    [{step.meaning}]"
