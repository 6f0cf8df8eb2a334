"""Charts and layer strips as SVG inside a page: no fonts, files or libraries, colours from the page's style sheet.

Drawn 460 units wide, so that the words stay readable where a phone shows them at three quarters of their size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from textwrap import wrap

from kvcalc.report.axes import PALETTE, bar_remarks, bar_totals, position_axis, value_axis
from kvcalc.report.document import Chart, Series, Strip, Units

_WIDTH = 460
_LINE = 17
_LONGEST_LINE = 62
#: Characters that a page may not hold, escaped or not.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-3.6-3.6h7.2v7.2h-7.2z",
    "M0-4.6L4.4 3.4h-8.8z",
    "M0-5L4.2 0L0 5L-4.2 0z",
    "M0 4.6L4.4-3.4h-8.8z",
    "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
    "M-4-2L-2-4L0-2L2-4L4-2L2 0L4 2L2 4L0 2L-2 4L-4 2L-2 0z",
)
_DASHES = ("", "7 3", "7 3 2 3", "2 3")


def text(words: str) -> str:
    """Words as a page may hold them.

    >>> text("<b>&\\x1b")
    '&lt;b&gt;&amp;\\\\x1b'
    """
    return escape(_FORBIDDEN.sub(lambda match: ascii(match[0])[1:-1], words))


def chart_svg(chart: Chart, units: Units) -> str:
    """One chart; its values are those of the document's table, in the same order."""
    match chart.kind:
        case "bars" | "columns":
            height, drawn = _bars(chart, units)
        case "bounds":
            height, drawn = _bounds(chart, units)
        case _:
            height, drawn = _lines(chart, units)
    return _svg(height, drawn, chart.title)


def _svg(height: float, drawn: list[str], title: str) -> str:
    head = f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{text(title)}">'
    return "".join([head, *drawn, "</svg>"])


def _write(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    placed = f' text-anchor="{anchor}"' if anchor != "start" else ""
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{placed}{named}>{text(words)}</text>'


def _fill(x: float, y: float, width: float, height: float, number: int, title: str = "") -> str:
    """A rectangle of one of the fills, with a pattern above it that tells the fills apart without colour."""
    size = f'x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{height:.1f}"'
    hint = f"<title>{text(title)}</title>" if title else ""
    pattern = f'<rect {size} fill="url(#hatch)" pointer-events="none"/>' if number % 2 else ""
    return f'<rect {size} class="fill{number % 3}">{hint}</rect>{pattern}'


def _key(labels: list[str], y: float) -> Iterator[str]:
    x = 2.0
    for number, label in enumerate(labels):
        yield _fill(x, y - 10, 14, 11, number) + _write(x + 19, y, label)
        x += 34 + 7.2 * len(label)


def _bars(chart: Chart, units: Units) -> tuple[float, list[str]]:
    """Each bar below its name, so that long names have room."""
    axis, room = value_axis(chart, units), _WIDTH - 30
    drawn = list(_key([series.label for series in chart.series], 13))
    y, bodies = 30.0, []
    remarks, totals = bar_remarks(chart, units), bar_totals(chart)
    for number, (name, remark) in enumerate(zip(chart.names, remarks, strict=True)):
        for line in _wrapped(f"{name}: {remark}"):
            bodies.append(_write(2, y + 12, line))
            y += _LINE
        start = 0.0
        for part, series in enumerate(chart.series):
            end = start + series.values[number]
            left, right = (2 + room * axis.place(place) for place in (start, end))
            hint = f"{series.label} {int(series.values[number]):,} bytes of {totals[number]:,}"
            bodies.append(_fill(left, y, right - left, 16, part, hint))
            start = end
        y += 26
    for value, label in axis.ticks:
        x = 2 + room * axis.place(value)
        drawn.append(f'<path class="rule" d="M{x:.1f} 26V{y:.1f}"/>')
        bodies.append(_write(x, y + 14, label, "middle" if value else "start", "tick"))
    bodies.append(_write(_WIDTH / 2, y + 32, axis.title, "middle"))
    return y + 38, drawn + bodies


def _lines(chart: Chart, units: Units) -> tuple[float, list[str]]:
    vertical, horizontal = value_axis(chart, units), position_axis(chart)
    left, top, right = 62.0, 30.0, _WIDTH - 14.0
    bottom = top + 230

    def place(at: float, value: float) -> tuple[float, float]:
        return (
            left + (right - left) * horizontal.place(at),
            bottom - (bottom - top) * vertical.place(value),
        )

    drawn = [_write(2, 14, vertical.title)]
    for value, label in vertical.ticks:
        y = bottom - (bottom - top) * vertical.place(value)
        drawn.append(
            f'<path class="rule" d="M{left:g} {y:.1f}H{right:g}"/>' + _write(left - 6, y + 4, label, "end", "tick")
        )
    for value, label in horizontal.ticks:
        x = left + (right - left) * horizontal.place(value)
        drawn.append(f'<path class="rule" d="M{x:.1f} {top:g}V{bottom:g}"/>')
        drawn.append(_write(x, bottom + 16, label, "middle", "tick"))
    drawn.append(f'<path class="axis" d="M{left:g} {top:g}V{bottom:g}H{right:g}"/>')
    drawn.append(_write((left + right) / 2, bottom + 35, horizontal.title, "middle"))
    y = bottom + 60
    for number, series in enumerate(chart.series):
        points = [place(at, value) for at, value in zip(series.positions, series.values, strict=True)]
        drawn += _curve(number, series, points)
        drawn.append(_sample(number, series, y))
        for line in _wrapped(series.label, _LONGEST_LINE - 6):
            drawn.append(_write(44, y + 4, line))
            y += _LINE
    return y, drawn


def _curve(number: int, series: Series, points: list[tuple[float, float]]) -> Iterator[str]:
    name = f"line{number % len(PALETTE)}"
    if series.joined:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        yield f'<path class="{name}" d="M{path}"{_dashes(number)}/>'
    for (x, y), at, value in zip(points, series.positions, series.values, strict=True):
        hint = text(f"{series.label}, {at:,}: {int(value):,} bytes")
        yield f'<path class="dot {name}" transform="translate({x:.1f} {y:.1f})" d="{_marker(number)}">'
        yield f"<title>{hint}</title></path>"


def _sample(number: int, series: Series, y: float) -> str:
    name = f"line{number % len(PALETTE)}"
    line = f'<path class="{name}" d="M6 {y:g}H36"{_dashes(number)}/>' if series.joined else ""
    return f'{line}<path class="dot {name}" transform="translate(21 {y:g})" d="{_marker(number)}"/>'


def _marker(number: int) -> str:
    return _MARKERS[number % len(_MARKERS)]


def _dashes(number: int) -> str:
    dashes = _DASHES[number % len(_DASHES)]
    return f' stroke-dasharray="{dashes}"' if dashes else ""


def _bounds(chart: Chart, units: Units) -> tuple[float, list[str]]:
    axis = value_axis(chart, units)
    left, top, bottom = 52.0, 24.0, 134.0
    step = (_WIDTH - left - 8) / len(chart.names)
    bound = max(value for series in chart.series for value in series.values)
    words = f"published bound: within ±{bound:g}, {', '.join(series.label for series in chart.series)}"

    def height(value: float) -> float:
        return bottom - (bottom - top) * axis.place(value)

    drawn = [
        _write(2, 14, axis.title),
        f'<path class="band" d="M{left:g} {height(bound):.1f}H{_WIDTH - 8}V{height(-bound):.1f}H{left:g}z"/>',
        _write((left + _WIDTH - 8) / 2, height(bound / 2) + 4, words, "middle"),
    ]
    for value, label in axis.ticks:
        drawn.append(_write(left - 6, height(value) + 4, label, "end", "tick"))
    drawn.append(f'<path class="axis" d="M{left:g} {height(0):.1f}H{_WIDTH - 8}"/>')
    for place, name in enumerate(chart.names):
        drawn.append(_write(left + step * (place + 0.5), bottom + 16, name, "middle", "tick"))
    drawn.append(_write((left + _WIDTH) / 2, bottom + 34, chart.x_title, "middle"))
    return bottom + 42, drawn


def strip_svg(strip: Strip) -> str:
    """The layers in order, left to right; a layer that sees a part of the context only is half as tall."""
    width = min(22.0, _WIDTH / len(strip.order))
    marks: dict[int, list[str]] = {}
    for number, index in enumerate(strip.order):
        tall = 14 if strip.kinds[index][1] else 28
        marks.setdefault(index, []).append(f"M{number * width:.1f} 28v-{tall}h{width * 0.86:.1f}v{tall}z")
    drawn = [
        f'<path class="strip{index % len(PALETTE)}" d="{"".join(paths)}">'
        f"<title>{text(strip.kinds[index][0])}</title></path>"
        for index, paths in marks.items()
    ]
    y, x = 46.0, 0.0
    for index, (kind, _) in enumerate(strip.kinds):
        words = f"{strip.order.count(index)} {kind}"
        if x and x + 18 + 7.2 * len(words) > _WIDTH:
            x, y = 0.0, y + _LINE
        drawn.append(f'<rect class="strip{index % len(PALETTE)}" x="{x:g}" y="{y - 10:g}" width="12" height="12"/>')
        drawn.append(_write(x + 17, y, words))
        x += 34 + 7.2 * len(words)
    return _svg(y + 6, drawn, f"layers of {strip.label} in order")


def _wrapped(words: str, width: int = _LONGEST_LINE) -> list[str]:
    return wrap(words, width) or [""]
