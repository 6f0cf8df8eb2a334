"""What commands put into their documents beside tables: charts, layers in order, and the grid that sliders look up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from kvcalc.errors import NotModelledError
from kvcalc.report.cells import format_percent
from kvcalc.report.document import Chart, Live, LiveRow, Series, Strip

if TYPE_CHECKING:
    from kvcalc.footprints import Footprint
    from kvcalc.setup import Setup


def bars(title: str, labels: Sequence[str], footprints: Sequence[Footprint]) -> Chart:
    """Weights and KV cache of each configuration, stacked."""
    return Chart(
        "bars",
        title,
        (
            Series("weights", tuple(made.weights.bytes for made in footprints)),
            Series("KV cache", tuple(made.kv_cache.bytes for made in footprints)),
        ),
        names=tuple(labels),
        y_title="memory of one device",
        remarks=tuple(
            "" if made.overhead is None else f"KV {format_percent(made.overhead)} of weights" for made in footprints
        ),
    )


def curves(
    title: str,
    labels: Sequence[str],
    rows: Sequence[tuple[int, Sequence[int]]],
    logarithmic: Literal["", "x", "xy"] = "",
    unit: str = "",
) -> Chart:
    """The KV cache of each configuration over rows of (context, bytes of each), as figure 6 of the report.

    Curves that coincide are one, with all their names: the later one would hide the others.
    """
    contexts = tuple(tokens for tokens, _ in rows)
    named: dict[tuple[int, ...], list[str]] = {}
    for number, label in enumerate(labels):
        named.setdefault(tuple(sizes[number] for _, sizes in rows), []).append(label)
    series = (Series(" = ".join(names), sizes, contexts, joined=True) for sizes, names in named.items())
    return Chart(
        "curves",
        title,
        tuple(series),
        x_title="context (tokens)",
        y_title="KV cache",
        logarithmic=logarithmic,
        unit=unit,
    )


def parts(title: str, footprint: Footprint) -> Chart:
    """The weights and each kind of layer's cache."""
    cache = footprint.kv_cache
    rows = (
        ("weights", footprint.weights.bytes),
        *((f"KV: {row.label}", row.bytes) for row in cache.layers),
        ("KV: padding", cache.padding_bytes),
        ("KV: draft", cache.draft_bytes),
    )
    return terms(title, [row for row in rows if row[1]] or rows[:1])


def terms(title: str, rows: Iterable[tuple[str, int]]) -> Chart:
    """A bar for each term of a sum."""
    sizes = dict(rows)
    return Chart("bars", title, (Series("bytes", tuple(sizes.values())),), tuple(sizes), y_title="memory of one device")


def strips(setups: Iterable[Setup]) -> tuple[Strip, ...]:
    """The layers of each distinct model."""
    from kvcalc.report.strips import strip  # what a help page does not need

    return tuple(strip(label, model) for label, model in {e.reference: e.architecture for e in setups}.items())


def live(labels: Sequence[str], setups: Sequence[Setup], context: int, batch_size: int) -> Live:
    """The engines' own formulas, for a page that evaluates them at any context and batch size."""
    made_for = max((each.architecture.max_context or context for each in setups), default=context)
    rows = (_live_row(label, setup) for label, setup in zip(labels, setups, strict=True))
    return Live(tuple(rows), context, batch_size, max(made_for, context))


def _live_row(label: str, setup: Setup) -> LiveRow:
    from kvcalc.page.formulas import formulas_of

    try:
        formulas = formulas_of(setup)
    except NotModelledError:  # they hold for one question alone
        return LiveRow(label, setup.weights.bytes, (), ())
    return LiveRow(label, setup.weights.bytes, formulas.one, formulas.several)
