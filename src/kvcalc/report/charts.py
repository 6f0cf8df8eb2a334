"""Charts as SVG, PNG or PDF files, through matplotlib (the extra ``plot``); nothing else loads it.

The exact figures of a picture stand in its metadata (``Description`` in SVG and PNG, ``Subject`` in PDF), and the same
document always gives the same file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from kvcalc import __version__
from kvcalc.errors import InputError, printable, quote
from kvcalc.report.axes import FILLS, PALETTE, Axis, bar_remarks, bar_totals, position_axis, value_axis
from kvcalc.report.document import Chart, Document, Series, Units
from kvcalc.report.formats import PICTURES
from kvcalc.report.text import printable_document

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_HATCHES = ("", "////", "xx")
_LIMIT: dict[str, Any] = {"color": "#333333", "linestyle": "--", "linewidth": 1.2}
#: A key between the title and the axes.
_ABOVE: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0, "borderpad": 0.2}
_MARKERS = "os^DvPX"
_DASHES = ("-", "--", "-.", ":")
_FONT = "DejaVu Sans"  # matplotlib ships it
#: Text as outlines, so that the picture looks alike everywhere; no random names inside, and no markup in names.
_STYLE: dict[Any, Any] = {
    "font.family": _FONT,
    "text.parse_math": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "kvcalc",
    "pdf.fonttype": 42,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
}


def check_target(path: Path) -> None:
    """Refuse a picture that could not be drawn, before anything is computed.

    Raises:
        InputError: a suffix that is no picture's, or matplotlib is not installed.
    """
    if path.suffix.lower() not in PICTURES:
        raise InputError(f"cannot draw {quote(path.name)}", hint=f"name it *{', *'.join(PICTURES)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        hint = "pip install 'kvcalc[plot]'"
        raise InputError("a picture needs matplotlib, which is not installed", hint=hint) from None


def draw(document: Document, path: Path) -> bytes:
    """The charts of a document as one picture, in the format that the file's suffix names.

    Raises:
        InputError: as :func:`check_target`, or there is nothing to draw.
    """
    check_target(path)
    if not document.charts:
        raise InputError("there is nothing to draw in this answer")
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    document = printable_document(document, _drawable_line())

    columns = 1 if len(document.charts) == 1 else 2
    rows = -(-len(document.charts) // columns)
    heights = [max(map(_height, document.charts[row * columns :][:columns])) for row in range(rows)]
    size = (7.6 * columns, sum(heights) + 0.35)
    with rc_context(_STYLE):
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
        grid = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
        flat = [axes for row in grid for axes in row]
        for axes, chart in zip(flat, document.charts, strict=False):
            _DRAW[chart.kind](axes, chart, document.units)
            pad = 22 if chart.kind in ("bars", "columns") and len(chart.series) > 1 else 6  # the key stands between
            axes.set_title(fill(chart.title, 84), loc="left", fontsize=10.5, fontweight="bold", pad=pad)
        for axes in flat[len(document.charts) :]:
            axes.remove()
        if columns > 1:
            figure.suptitle(document.title, fontsize=12, fontweight="bold")
        caption = fill(" · ".join(document.assumptions), 122 * columns)
        figure.supxlabel(caption, fontsize=8, color="#444444", x=0.01, ha="left")
        picture = BytesIO()
        suffix = path.suffix.lower()[1:]
        figure.savefig(picture, format=suffix, dpi=160, metadata=_metadata(document, suffix))
    drawn = picture.getvalue()
    return re.sub(rb"\n +", b"\n", drawn) if suffix == "svg" else drawn  # its indentation is a tenth of the file


def _drawable_line() -> Callable[[str], str]:
    """What makes a line printable, and shows a letter that the font lacks by its number, as ``\\u4e2d``."""
    from matplotlib.font_manager import findfont, get_font

    letters = get_font(findfont(_FONT)).get_charmap()

    def line(text: str) -> str:
        return "".join(each if ord(each) in letters else ascii(each)[1:-1] for each in printable(text))

    return line


def chart_data(document: Document) -> str:
    """The figures of every chart, exact, as JSON: what a picture's metadata holds."""
    return json.dumps([asdict(chart) for chart in document.charts], sort_keys=True)


def _metadata(document: Document, suffix: str) -> dict[str, Any]:
    tool, data = f"kvcalc {__version__}", chart_data(document)
    match suffix:
        case "svg":
            return {"Title": document.title, "Description": data, "Creator": tool, "Date": None}
        case "pdf":
            return {"Title": document.title, "Subject": data, "Creator": tool, "CreationDate": None}
        case _:
            return {"Title": document.title, "Description": data, "Software": tool}


def _height(chart: Chart) -> float:
    """Inches that a chart takes."""
    return 1.45 + 0.38 * len(chart.names) if chart.kind == "bars" else 3.4 if chart.kind != "bounds" else 2.4


def _parts(chart: Chart) -> Iterator[tuple[list[float], Series, dict[str, Any]]]:
    """Each part of stacked bars: where it starts, its lengths, and how it looks."""
    starts = [0.0] * len(chart.names)
    for number, series in enumerate(chart.series):
        fill, hatch = FILLS[number % len(FILLS)], _HATCHES[number % len(_HATCHES)]
        yield starts, series, {"color": fill, "hatch": hatch, "edgecolor": "#333333", "linewidth": 0.6}
        starts = [start + value for start, value in zip(starts, series.values, strict=True)]


def _columns(axes: Axes, chart: Chart, units: Units) -> None:
    """Bars that stand, as in figure 5 of the report."""
    axis, places = value_axis(chart, units), range(len(chart.names))
    drawn = [axes.bar(places, each.values, 0.62, starts, **look)[0] for starts, each, look in _parts(chart)]
    for place, end, remark in zip(places, bar_totals(chart), bar_remarks(chart, units), strict=True):
        words = remark.replace(", ", "\n")
        axes.annotate(words, (place, end), (0, 3), textcoords="offset points", ha="center", fontsize=8, color="#222222")
    axes.set_xticks(places, [name.replace(" ", "\n") for name in chart.names])
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
    axes.set_ylim(0, axis.high * 1.18)
    axes.set_yticks([value for value, _ in axis.ticks], [name for _, name in axis.ticks])
    axes.set_ylabel(axis.title)
    _key(axes, chart, drawn, **_ABOVE, ncols=len(drawn))


def _bars(axes: Axes, chart: Chart, units: Units) -> None:
    axis, places = value_axis(chart, units), range(len(chart.names))
    drawn = [axes.barh(places, each.values, 0.62, starts, **look)[0] for starts, each, look in _parts(chart)]
    for place, end, remark in zip(places, bar_totals(chart), bar_remarks(chart, units), strict=True):
        axes.annotate(
            remark, (end, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5, color="#222222"
        )
    axes.set_yticks(places, chart.names)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, axis.high * 1.35)
    axes.set_xticks([value for value, _ in axis.ticks], [name for _, name in axis.ticks])
    axes.set_xlabel(axis.title)
    if len(drawn) > 1:
        _key(axes, chart, drawn, **_ABOVE, ncols=len(drawn))


def _lines(axes: Axes, chart: Chart, units: Units) -> None:
    vertical, horizontal = value_axis(chart, units), position_axis(chart)
    drawn: list[Artist] = []
    for number, series in enumerate(chart.series):
        drawn += axes.plot(
            series.positions,
            series.values,
            color=PALETTE[number % len(PALETTE)],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=4.5,
            linestyle=_DASHES[number % len(_DASHES)] if series.joined else "none",
            linewidth=1.6,
            # Between two points of a front there is no candidate: the memory of the one holds up to the next.
            drawstyle="steps-post" if chart.kind == "points" else "default",
            clip_on=False,
            zorder=3 if series.joined else 2,  # a front stands before the points that it beats
        )
    if chart.limit is not None:
        axes.axhline(chart.limit[0], **_LIMIT)
        place: dict[str, Any] = {
            "xycoords": ("axes fraction", "data"),
            "textcoords": "offset points",
            "va": "top",
            "fontsize": 8.5,
        }
        axes.annotate(chart.limit[1], (0, chart.limit[0]), (4, -3), **place)
    _name_points(axes, chart, horizontal, vertical)
    if horizontal.logarithmic:
        axes.set_xscale("log", base=2)
    if vertical.logarithmic:
        axes.set_yscale("log", base=2)
    axes.set_xlim(horizontal.low, horizontal.high)
    axes.set_ylim(vertical.low, vertical.high)
    axes.set_xticks([value for value, _ in horizontal.ticks], [name for _, name in horizontal.ticks])
    axes.set_yticks([value for value, _ in vertical.ticks], [name for _, name in vertical.ticks])
    axes.minorticks_off()
    axes.set_xlabel(horizontal.title)
    axes.set_ylabel(vertical.title)
    _key(axes, chart, drawn, loc="best")


def _name_points(axes: Axes, chart: Chart, horizontal: Axis, vertical: Axis) -> None:
    """The names of points, below their steps, where nothing else stands; a name in the way of another moves down."""
    taken: list[tuple[float, float, float]] = []
    for series in chart.series:
        for name, at, value in zip(series.names, series.positions, series.values, strict=False):
            place, height, width = horizontal.place(at), vertical.place(value), 0.0105 * len(name)
            side = "left" if place < 0.5 else "right"
            left, lines = place - (width if side == "right" else 0), 0
            while any(abs(height - y) < 0.05 and left < x + w and x < left + width for x, y, w in taken):
                height, lines = height - 0.05, lines + 1
            taken.append((left, height, width))
            offset = (5 if side == "left" else -5, -5 - 11 * lines)
            style: dict[str, Any] = {"textcoords": "offset points", "ha": side, "va": "top", "fontsize": 8.5}
            axes.annotate(name, (at, value), offset, **style)


def _bounds(axes: Axes, chart: Chart, units: Units) -> None:
    """A grey band: a bound was published and no points, so none are drawn."""
    axis, series = value_axis(chart, units), chart.series
    places, bound = range(len(chart.names)), max(value for each in series for value in each.values)
    axes.axhspan(-bound, bound, color="#DDDDDD", zorder=0)
    axes.axhline(0, color="#333333", linewidth=0.8)
    words = f"published bound: within \u00b1{bound:g}\n{', '.join(each.label for each in series)}"
    axes.text(places[-1] / 2, bound / 2, words, ha="center", va="center", fontsize=9, color="#222222")
    axes.set_xticks(places, chart.names)
    axes.set_xlim(-0.5, places[-1] + 0.5)
    axes.set_ylim(axis.low, axis.high)
    axes.set_yticks([value for value, _ in axis.ticks], [name for _, name in axis.ticks])
    axes.grid(visible=False, axis="x")
    axes.set_xlabel(chart.x_title)
    axes.set_ylabel(axis.title)


def _key(axes: Axes, chart: Chart, drawn: Sequence[Artist], **placed: Any) -> None:
    """Name the series. The words are set last: matplotlib leaves out a label that begins with an underscore."""
    key = axes.legend(drawn, [str(number) for number in range(len(drawn))], fontsize=9, **placed)
    for words, series in zip(key.get_texts(), chart.series, strict=True):
        words.set_text(fill(series.label, 60))


_DRAW = {"bars": _bars, "columns": _columns, "curves": _lines, "points": _lines, "bounds": _bounds}
