"""``kvcalc paper``: section 5.2 of the Gemma 3 report, published beside computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kvcalc import paper as section
from kvcalc.cli import options, pictures, question
from kvcalc.footprints import Footprint
from kvcalc.report.document import Chart, Column, Document, Section, Series, growth_columns
from kvcalc.report.records import footprint_record

if TYPE_CHECKING:
    from kvcalc.report.shapes import ExhibitRecord

EXAMPLES = "kvcalc paper\nkvcalc paper --plot figures.pdf\nkvcalc paper --format json\nkvcalc paper -o section-5.2.md"


def paper(
    format: options.Format = None,  # noqa: A002 - the option's name
    output: options.Output = None,
    plot: options.Plot = None,
    explain: options.Explain = False,
    units: options.UnitsOption = "decimal",
) -> int:
    """Gemma 3's section 5.2, published and computed."""
    target = question.target(format, output, plot)
    asked = question.setups([section.RECONSTRUCTION])
    rebuilt = asked[0].architecture
    counterpart = question.load_with_hints(section.COUNTERPART)
    bars, curve = section.figure_5(rebuilt), section.figure_6(rebuilt)
    claims = [*section.claims(rebuilt), *section.claims(counterpart)[:2]]

    layouts = dict.fromkeys([*section.FIGURE_5_LAYOUTS, *section.FIGURE_6_LAYOUTS])
    variants = question.setups([f"{section.RECONSTRUCTION}@{word}" for word in layouts])
    labels = [word.replace("/", " ") for word in layouts]

    def records() -> Iterator[ExhibitRecord]:
        for word, made in zip(section.FIGURE_5_LAYOUTS, bars, strict=True):
            yield {"exhibit": "Fig. 5", **footprint_record(f"{section.RECONSTRUCTION}@{word}", made)}
        for row in curve:
            for word, made in zip(section.FIGURE_6_LAYOUTS, row, strict=True):
                yield {"exhibit": "Fig. 6", **footprint_record(f"{section.RECONSTRUCTION}@{word}", made)}

    document = Document(
        title="Gemma 3 technical report, section 5.2: published beside computed",
        assumptions=(
            f"model {rebuilt.name} (a reconstruction)",
            *question.assumptions(asked, None, 1),
            f"{bars[0].weights.parameters:,} parameters",
        ),
        sections=(_evidence(), _figure_5(bars), _figure_6(curve), _claims(claims)),
        records=records(),
        extra={
            "claims": [vars(claim) for claim in claims],
            "evidence": [vars(each) for each in section.EVIDENCE],
            "caveats": list(section.CAVEATS),
        },
        schema="paper",
        notes=(*section.CAVEATS, *rebuilt.provenance.notes),
        derivations=tuple(
            question.derivation(one, f"KV cache of {one.reference}, step by step", section.FIGURE_5_CONTEXT, 1)
            for one in variants[: len(section.FIGURE_5_LAYOUTS)]
        )
        if explain
        else (),
        units=units,
        charts=_charts(bars, curve),
        strips=tuple(pictures.strip(label, one.architecture) for label, one in zip(labels, variants, strict=True)),
        grid=pictures.grid(labels, variants, section.FIGURE_5_CONTEXT, 1) if target.format_name == "html" else None,
    )
    target.write(document)
    return 0


def _charts(bars: Sequence[Footprint], curve: Sequence[Sequence[Footprint]]) -> tuple[Chart, ...]:
    change = "change of perplexity"
    ratios = Series("2B and 9B", (section.RATIO_PERPLEXITY_BOUND,) * len(section.ABLATED_RATIOS))
    windows = (
        Series(f"2B at {ratio}", (section.WINDOW_PERPLEXITY_BOUND,) * len(section.ABLATED_WINDOWS))
        for ratio in section.WINDOW_RATIOS
    )
    return (
        Chart(
            "bounds",
            "Fig. 3: quality over the ratio (published bounds)",
            (ratios,),
            section.ABLATED_RATIOS,
            "local:global",
            change,
        ),
        Chart(
            "bounds",
            "Fig. 4: quality over the window (published bounds)",
            tuple(windows),
            tuple(map(str, section.ABLATED_WINDOWS)),
            "window (tokens)",
            change,
        ),
        pictures.bars(
            "Fig. 5: model and KV cache at 32,768 tokens", [w.replace("/", " ") for w in section.FIGURE_5_LAYOUTS], bars
        ),
        pictures.curves(
            "Fig. 6: KV cache over the context", [w.replace("/", " ") for w in section.FIGURE_6_LAYOUTS], _growth(curve)
        ),
    )


def _growth(curve: Sequence[Sequence[Footprint]]) -> list[tuple[int, list[int]]]:
    pairs = zip(section.FIGURE_6_CONTEXTS, curve, strict=True)
    return [(tokens, [made.kv_cache.bytes for made in row]) for tokens, row in pairs]


def _evidence() -> Section:
    columns = (
        Column("exhibit", lambda row: row.figure),
        Column("varied", lambda row: row.varied),
        Column("models", lambda row: row.models, drop_order=1),
        Column("change of perplexity", lambda row: f"within ±{row.bound}"),
    )
    return Section(columns, section.EVIDENCE, "Fig. 3 and 4: quality, as published (bounds, not points)")


def _figure_5(bars: Sequence[Footprint]) -> Section:
    columns = (
        Column("configuration", lambda row: row[0].replace("/", " ")),
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
    labels = [word.replace("/", " ") for word in section.FIGURE_6_LAYOUTS]
    columns = (Column("context", lambda row: row[0], "count"), *growth_columns(labels, rows))
    return Section(columns, rows, "Fig. 6: KV cache over the context, computed")


def _claims(claims: Sequence[section.Claim]) -> Section:
    columns = (
        Column("published", lambda row: row.published),
        Column("computed", lambda row: row.computed),
        Column("", lambda row: "holds" if row.holds else "does not hold", "verdict"),
        Column("under", lambda row: row.assumption, drop_order=1),
    )
    return Section(columns, claims, "Claims")
