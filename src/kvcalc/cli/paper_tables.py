"""The tables and charts of ``kvcalc paper``, and the records of its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kvcalc import paper as section
from kvcalc.cli import pictures, question
from kvcalc.footprints import Footprint
from kvcalc.report.document import Chart, Column, Document, Section, Series, Units, growth_columns
from kvcalc.report.strips import strip

if TYPE_CHECKING:
    from kvcalc.report.shapes import ExhibitRecord

#: The unit of the report's axes, in each of the units that an answer may have.
_AXIS_UNITS: dict[Units, str] = {"decimal": "MB", "binary": "MiB", "bytes": "B"}
_CHANGE = "change of perplexity"


def document(figure: int | None, explain: bool, units: Units, is_page: bool) -> Document:
    """Section 5.2, or one figure of it alone.

    Args:
        explain: add the formulas of figure 5.
        is_page: add what a page computes for any context and batch size.
    """
    asked = question.setups([section.RECONSTRUCTION])
    rebuilt = asked[0].architecture
    counterpart = question.load_with_hints(section.COUNTERPART)
    bars, curve = section.figure_5(rebuilt), section.figure_6(rebuilt)
    claims = [*section.claims(rebuilt), *section.claims(counterpart)[:2]]

    layouts = dict.fromkeys([*section.FIGURE_5_LAYOUTS, *section.FIGURE_6_LAYOUTS])
    variants = question.setups([f"{section.RECONSTRUCTION}@{word}" for word in layouts])
    labels = [_label(word) for word in layouts]
    unit = _AXIS_UNITS[units]
    figures = {
        3: _figure_3_chart(),
        4: _figure_4_chart(),
        5: _figure_5_chart(bars, unit),
        6: _figure_6_chart(curve, unit),
    }
    tables = {3: _evidence("Fig. 3"), 4: _evidence("Fig. 4"), 5: _figure_5(bars), 6: _figure_6(curve)}
    shown = figures if figure is None else [figure]

    pairs = [(5, *each) for each in zip(section.FIGURE_5_LAYOUTS, bars, strict=True)]
    pairs += [(6, *each) for row in curve for each in zip(section.FIGURE_6_LAYOUTS, row, strict=True)]
    records: list[ExhibitRecord] = [
        {
            "exhibit": "Fig. 5" if number == 5 else "Fig. 6",
            **made.to_dict(),
            "reference": f"{section.RECONSTRUCTION}@{word}",
        }
        for number, word, made in pairs
        if number in shown
    ]
    return Document(
        title="Gemma 3 technical report, section 5.2: published beside computed",
        assumptions=(
            f"model {rebuilt.name} (a reconstruction)",
            *question.assumptions(asked, None, 1),
            f"{bars[0].weights.parameters:,} parameters",
        ),
        sections=(*(tables[number] for number in shown), *([_claims(claims)] if figure is None else [])),
        records=records,
        extra={
            "claims": [vars(claim) for claim in claims],
            "evidence": [vars(each) for each in section.EVIDENCE],
            "caveats": list(section.CAVEATS),
        },
        schema="paper",
        notes=(*section.CAVEATS, *rebuilt.provenance.notes),
        derivations=question.derivations(bars, (one.reference for one in variants)) if explain else (),
        units=units,
        charts=tuple(figures[number] for number in shown),
        strips=tuple(strip(label, one.architecture) for label, one in zip(labels, variants, strict=True)),
        live=pictures.live(labels, variants, section.FIGURE_5_CONTEXT, 1) if is_page else None,
    )


def _figure_3_chart() -> Chart:
    ratios = Series("2B and 9B", (section.RATIO_PERPLEXITY_BOUND,) * len(section.ABLATED_RATIOS))
    title = "Fig. 3: quality over the ratio (published bounds)"
    return Chart("bounds", title, (ratios,), section.ABLATED_RATIOS, "local:global", _CHANGE)


def _figure_4_chart() -> Chart:
    windows = tuple(
        Series(f"2B at {ratio}", (section.WINDOW_PERPLEXITY_BOUND,) * len(section.ABLATED_WINDOWS))
        for ratio in section.WINDOW_RATIOS
    )
    title = "Fig. 4: quality over the window (published bounds)"
    return Chart("bounds", title, windows, tuple(map(str, section.ABLATED_WINDOWS)), "window (tokens)", _CHANGE)


def _figure_5_chart(bars: Sequence[Footprint], unit: str) -> Chart:
    """Bars that stand, named and in megabytes as in the report."""
    title, labels = "Fig. 5: model and KV cache at 32,768 tokens", [_label(word) for word in section.FIGURE_5_LAYOUTS]
    lying = pictures.bars(title, labels, bars)
    parts = (replace(lying.series[0], label="model"), *lying.series[1:])
    return replace(lying, kind="columns", series=parts, unit=unit)


def _figure_6_chart(curve: Sequence[Sequence[Footprint]], unit: str) -> Chart:
    """Its contexts stand as far apart as in the report, where each step of the axis is about a doubling."""
    labels = [_label(word) for word in section.FIGURE_6_LAYOUTS]
    return pictures.curves("Fig. 6: KV cache over the context", labels, _growth(curve), "x", unit)


def _label(layout: str) -> str:
    return layout.replace("/", " ")


def _growth(curve: Sequence[Sequence[Footprint]]) -> list[tuple[int, list[int]]]:
    pairs = zip(section.FIGURE_6_CONTEXTS, curve, strict=True)
    return [(tokens, [made.kv_cache.bytes for made in row]) for tokens, row in pairs]


def _evidence(figure: str) -> Section:
    columns = (
        Column("varied", lambda row: row.varied),
        Column("models", lambda row: row.models, drop_order=1),
        Column("change of perplexity", lambda row: f"within ±{row.bound}"),
    )
    rows = [row for row in section.EVIDENCE if row.figure == figure]
    return Section(columns, rows, f"{figure}: quality, as published (bounds, not points)")


def _figure_5(bars: Sequence[Footprint]) -> Section:
    columns = (
        Column("configuration", lambda row: _label(row[0])),
        Column("layers", lambda row: row[1].architecture.layout, drop_order=1),
        Column("model", lambda row: row[1].weights.bytes, "bytes"),
        Column("KV cache", lambda row: row[1].kv_cache.bytes, "bytes"),
        Column("KV over weights", lambda row: row[1].overhead, "percent"),
        Column(
            "memory",
            lambda row: (row[1].weights.bytes, row[1].kv_cache.bytes),
            "bars",
            drop_order=2,
            legend=("model", "KV cache"),
        ),
    )
    rows = list(zip(section.FIGURE_5_LAYOUTS, bars, strict=True))
    return Section(columns, rows, "Fig. 5: model and KV cache, computed at 32,768 tokens")


def _figure_6(curve: Sequence[Sequence[Footprint]]) -> Section:
    rows = _growth(curve)
    labels = [_label(word) for word in section.FIGURE_6_LAYOUTS]
    columns = (Column("context", lambda row: row[0], "count"), *growth_columns(labels, rows))
    return Section(columns, rows, "Fig. 6: KV cache over the context, computed")


def _claims(claims: Sequence[section.Claim]) -> Section:
    columns = (
        Column("published", lambda row: row.published),
        Column("computed", lambda row: row.computed),
        Column("", lambda row: "holds" if row.holds else "does not hold", "verdict"),
        Column("under", lambda row: row.assumption, "remark"),
    )
    return Section(columns, claims, "Claims")
