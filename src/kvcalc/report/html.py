"""One HTML file: tables, charts, layers, derivations, and boxes that compute the cache at any context.

Charts, bars and layers are drawn in the browser (``browser/report.js``) from the document's data, and the boxes
evaluate the engines' own formulas; without JavaScript the numbers stand in the tables. Every name may be hostile: text
is escaped, and data are JSON without a ``<``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from kvcalc import __version__
from kvcalc.derivation import Quantity, evaluate, with_numbers
from kvcalc.report.browser import page, shipped, text
from kvcalc.report.cells import column_cells
from kvcalc.report.document import Chart, Column, Derivation, Document, Live, Section, Strip, Units


def render(document: Document) -> Iterator[str]:
    """The document as one page, a part at a time."""
    return page(document.title, shipped("report.css"), shipped("report.js"), _body(document))


def _body(document: Document) -> Iterator[str]:
    yield f"<main>\n<h1>{text(document.title)}</h1>\n"
    if document.assumptions:
        yield f'<p class="assumptions">{text(" · ".join(document.assumptions))}</p>\n'
    if document.live is not None:
        yield shipped("live.html")
    if document.charts:
        titles = (text(chart.title) for chart in document.charts)
        yield from _figures("Charts", "chart", titles, ' class="drawn" hidden')
    for section in document.sections:
        yield f"<h2>{text(section.title or 'Table')}</h2>\n"
        yield from _table(section, document.units)
    if document.strips:
        yield from _figures("Layers in order", "strip", map(_counted, document.strips), "")
    for derivation in document.derivations:
        yield from _derivation(derivation)
    if document.notes:
        listed = "".join(f"<li>{text(note)}</li>\n" for note in document.notes)
        yield f'<h2>Notes</h2>\n<ul class="notes">\n{listed}</ul>\n'
    yield f"<footer>Computed by kvcalc {__version__}; every byte figure is for one device.</footer>\n</main>\n"
    data = json.dumps(page_data(document), separators=(",", ":")).replace("<", "\\u003c")
    yield f'<script type="application/json" id="document">{data}</script>\n'


def _figures(heading: str, name: str, captions: Iterable[str], attributes: str) -> Iterator[str]:
    """Places that the script fills: without it the captions stay, or nothing."""
    yield f'<section{attributes}>\n<h2>{heading}</h2>\n<div class="charts">\n'
    for number, caption in enumerate(captions):
        yield f'<figure><figcaption>{caption}</figcaption><div id="{name}-{number}"></div></figure>\n'
    yield "</div>\n</section>\n"


def _counted(strip: Strip) -> str:
    kinds = (f"{strip.order.count(index)} {kind}" for index, (kind, _) in enumerate(strip.kinds))
    return text(f"{strip.label}: {len(strip.order)} layers: {', '.join(kinds)}")


def page_data(document: Document) -> dict[str, Any]:
    """What the page's script reads; bytes are texts, which stay whole at any size."""
    return {
        "units": document.units,
        "charts": [_chart(chart) for chart in document.charts],
        "strips": [{"kinds": strip.kinds, "order": strip.order} for strip in document.strips],
        "live": None if document.live is None else _live(document.live),
    }


def _chart(chart: Chart) -> dict[str, Any]:
    series = [{**asdict(each), "values": list(map(str, each.values))} for each in chart.series]
    limit = chart.limit and [str(chart.limit[0]), chart.limit[1]]
    return {**asdict(chart), "series": series, "limit": limit}


def _live(live: Live) -> dict[str, Any]:
    """The formulas of each configuration."""

    def texts(quantities: tuple[Quantity, ...]) -> list[list[str]]:
        return [[each.symbol, each.formula] for each in quantities if each.symbol not in ("T", "B")]

    return {
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


def _table(section: Section, units: Units) -> Iterator[str]:
    """A table whose rows can be sorted, unless some of them are sums of others."""
    sortable = ' class="sortable"' if len(section.rows) > 1 and not section.totals else ""
    pairs = [column_cells(column, section, units) for column in section.columns]
    yield f"{_region(section.title or 'Table')}<table{sortable}><thead><tr>"
    for column, (header, _) in zip(section.columns, pairs, strict=True):
        number = ' class="number"' if column.right_aligned else ""
        yield f'<th scope="col"{number}>{text(header)}</th>' if header else "<td></td>"
    yield "</tr></thead>\n<tbody>\n"
    scales = [_full_bar(column, section) for column in section.columns]
    for place, row in enumerate(section.rows):
        yield '<tr class="total">' if place in section.totals else "<tr>"
        for column, scale, (_, cells) in zip(section.columns, scales, pairs, strict=True):
            value = column.value(row)
            if column.kind == "bars":
                sizes = " ".join(map(str, value or (0,)))
                yield f'<td data-bar="{sizes}" data-whole="{scale}"></td>'
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
        yield f'<div data-legend="{text(json.dumps(legend))}"></div>\n'


def _region(label: str) -> str:
    """What a wide table scrolls in, by keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{text(label)}: table">'


def _full_bar(column: Column, section: Section) -> int:
    if column.kind != "bars":
        return 0
    return column.largest or max((sum(column.value(row) or ()) for row in section.rows), default=0)


def _derivation(derivation: Derivation) -> Iterator[str]:
    values = evaluate(derivation.steps)
    yield f'<h2>{text(derivation.title)}</h2>\n{_region(derivation.title)}<table class="derivation"><thead><tr>'
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
