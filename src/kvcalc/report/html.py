"""One HTML file: tables, charts, layers, derivations, and boxes that compute the cache at any context.

The page loads nothing and asks no network; what stands in it without JavaScript is complete but for sorting and the
boxes, which evaluate the engines' formulas (:mod:`kvcalc.page`). Every name in it may be hostile: text is escaped, and
the formulas are JSON without a ``<``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from kvcalc import __version__
from kvcalc.derivation import Quantity, evaluate, with_numbers
from kvcalc.report.cells import UNIT_TABLES, column_cells
from kvcalc.report.document import Column, Derivation, Document, Live, Section, Units
from kvcalc.report.svg import chart_svg, strip_svg, text

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_HATCH = (
    '<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs>'
    '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<path d="M0 0V6" stroke="#333" stroke-width="1.2"/></pattern></defs></svg>'
)


def render(document: Document) -> Iterator[str]:
    """The document as one page, a part at a time."""
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield f"<title>{text(document.title)}</title>\n<style>\n{_shipped('page.css')}</style>\n</head>\n<body>\n<main>\n"
    yield f"<h1>{text(document.title)}</h1>\n"
    if document.assumptions:
        yield f'<p class="assumptions">{text(" · ".join(document.assumptions))}</p>\n'
    if document.live is not None:
        yield _explore()
    if document.charts:
        yield f'{_HATCH}<h2>Charts</h2>\n<div class="charts">\n'
        for chart in document.charts:
            drawn = chart_svg(chart, document.units)
            yield f"<figure><figcaption>{text(chart.title)}</figcaption>{drawn}</figure>\n"
        yield "</div>\n"
    for section in document.sections:
        yield f"<h2>{text(section.title or 'Table')}</h2>\n"
        yield from _table(section, document.units)
    if document.strips:
        yield '<h2>Layers in order</h2>\n<div class="charts">\n'
        for strip in document.strips:
            yield f"<figure><figcaption>{text(strip.label)}</figcaption>{strip_svg(strip)}</figure>\n"
        yield "</div>\n"
    for derivation in document.derivations:
        yield from _derivation(derivation)
    if document.notes:
        listed = "".join(f"<li>{text(note)}</li>\n" for note in document.notes)
        yield f'<h2>Notes</h2>\n<ul class="notes">\n{listed}</ul>\n'
    yield f"<footer>Computed by kvcalc {__version__}; every byte figure is for one device.</footer>\n</main>\n"
    script = _shipped("page.js")
    if document.live is not None:
        data = json.dumps(live_data(document.live, document.units), separators=(",", ":")).replace("<", "\\u003c")
        yield f'<script type="application/json" id="live">{data}</script>\n'
        script = files("kvcalc.page").joinpath("calculator.js").read_text(encoding="utf-8") + script
    yield f"<script>\n{script}</script>\n</body>\n</html>\n"


def _shipped(name: str) -> str:
    return files("kvcalc.report").joinpath(name).read_text(encoding="utf-8")


def live_data(live: Live, units: Units) -> dict[str, Any]:
    """What the page's script reads: the formulas of each configuration, and integers as texts, which stay whole."""

    def texts(quantities: tuple[Quantity, ...]) -> list[list[str]]:
        return [[each.symbol, each.formula] for each in quantities if each.symbol not in ("T", "B")]

    return {
        "units": [[name, str(scale)] for name, scale in UNIT_TABLES[units].items()],
        "context": str(live.context),
        "batch_size": str(live.batch_size),
        "longest": str(live.longest),
        "rows": [
            {
                "label": row.label,
                "weights_bytes": str(row.weights_bytes),
                "one": texts(row.one),
                "several": texts(row.several) if row.several != row.one else [],
            }
            for row in live.rows
        ],
    }


def _explore() -> str:
    """The boxes and sliders; without JavaScript they stay hidden."""

    def box(name: str, title: str) -> str:
        return (
            f'<div><label for="{name}">{title}: <output for="{name}"></output></label>'
            f'<input id="{name}" inputmode="numeric" autocomplete="off">'
            f'<input type="range" id="{name}-range" min="0" step="1" aria-label="{title}"></div>'
        )

    heads = ("KV cache", "exactly (B)", "total", "overhead")
    return (
        '<section id="explore" hidden>\n<h2>At any context and batch size</h2>\n<div class="sliders">'
        f"{box('context', 'context')}{box('batch', 'batch size')}</div>\n"
        '<div class="scroll" tabindex="0" role="region" aria-label="At any context and batch size: table"><table>'
        "<thead><tr><th>configuration</th>"
        + "".join(f'<th class="number">{head}</th>' for head in heads)
        + "<th>weights and KV cache</th></tr></thead><tbody></tbody></table></div>\n</section>\n"
    )


def _table(section: Section, units: Units) -> Iterator[str]:
    """A table whose rows can be sorted, unless some of them are sums of others."""
    sortable = len(section.rows) > 1 and not section.totals
    pairs = [column_cells(column, section, units) for column in section.columns]
    yield f'<div class="scroll"><table{" class=sortable" if sortable else ""}><thead><tr>'
    for column, (header, _) in zip(section.columns, pairs, strict=True):
        number = ' class="number"' if column.right_aligned else ""
        button = f"<button>{text(header)}</button>" if sortable and header and column.kind != "bars" else text(header)
        yield f"<th{number}>{button}</th>"
    yield "</tr></thead>\n<tbody>\n"
    scales = [_full_bar(column, section) for column in section.columns]
    for place, row in enumerate(section.rows):
        yield '<tr class="total">' if place in section.totals else "<tr>"
        for column, scale, (_, cells) in zip(section.columns, scales, pairs, strict=True):
            value = column.value(row)
            if column.kind == "bars":
                yield f"<td>{_bar(value or (), scale)}</td>"
            elif column.right_aligned:
                exact = "" if value is None else f' data-value="{value}"'
                yield f'<td class="number"{exact}>{text(cells[place])}</td>'
            else:
                wide = " class=wide" if len(cells[place]) > 40 else ""
                yield f"<td{wide}>{text(cells[place])}</td>"
        yield "</tr>\n"
    yield "</tbody></table></div>\n"
    legend = next((column.legend for column in section.columns if column.legend), ())
    if legend:
        meanings = (f'<span><i class="fill{number}"></i>{text(word)}</span>' for number, word in enumerate(legend))
        yield f'<p class="legend">{"".join(meanings)}</p>\n'


def _full_bar(column: Column, section: Section) -> int:
    if column.kind != "bars":
        return 0
    return column.largest or max((sum(column.value(row) or ()) for row in section.rows), default=0)


def _bar(parts: tuple[int, ...], scale: int) -> str:
    widths = (100 * part / scale if scale else 0 for part in parts)
    inner = "".join(f'<i class="fill{number}" style="width:{width:.2f}%"></i>' for number, width in enumerate(widths))
    return f'<div class="bar">{inner}</div>'


def _derivation(derivation: Derivation) -> Iterator[str]:
    values = evaluate(derivation.steps)
    yield f'<h2>{text(derivation.title)}</h2>\n<div class="scroll"><table class="derivation"><thead><tr>'
    yield '<th>symbol</th><th>meaning</th><th>formula</th><th>with numbers</th><th class="number">value</th>'
    yield "<th>source</th></tr></thead>\n<tbody>\n"
    for step in derivation.steps:
        numbers = with_numbers(step, values)
        shown = f"{values[step.symbol]:,}" + (f" {step.unit}" if step.unit else "")
        is_number = step.formula.replace("_", "").isdigit()
        yield f"<tr><td><code>{text(step.symbol)}</code></td><td>{text(step.meaning)}</td>"
        yield "<td></td><td></td>" if is_number else f"<td><code>{text(step.formula)}</code></td>"
        yield "" if is_number else f"<td><code>{text(numbers)}</code></td>"
        yield f'<td class="number">{text(shown)}</td><td class="source">{text(step.source)}</td></tr>\n'
    yield "</tbody></table></div>\n"
    for source in derivation.sources:
        yield f'<p class="source">source: {text(source)}</p>\n'
    for excluded in derivation.excluded:
        yield f'<p class="source">not included: {text(excluded)}</p>\n'
