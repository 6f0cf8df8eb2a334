"""What commands put into their documents beside tables: charts, layers in order, and the grid that sliders look up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from kvcalc.errors import KVCalcError
from kvcalc.report.cells import format_percent
from kvcalc.report.document import Chart, Grid, Series, Strip
from kvcalc.report.strips import strip

if TYPE_CHECKING:
    from kvcalc.footprints import Footprint
    from kvcalc.setup import Setup

#: Figures in one page's grid: about 150 kB of them.
MOST_FIGURES = 9_000


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
    return terms(title, [row for row in rows if row[1]])


def terms(title: str, rows: Iterable[tuple[str, int]]) -> Chart:
    """A bar for each term of a sum."""
    names, sizes = zip(*rows, strict=True)
    return Chart("bars", title, (Series("bytes", sizes),), names, y_title="memory of one device")


def strips(setups: Iterable[Setup]) -> tuple[Strip, ...]:
    """The layers of each distinct model."""
    return tuple(strip(label, model) for label, model in {e.reference: e.architecture for e in setups}.items())


def grid(labels: Sequence[str], setups: Sequence[Setup], context: int, batch_size: int) -> Grid:
    """Exact KV bytes at round contexts and batch sizes, and at those asked for.

    Many setups get fewer of them: a page stays under 300 kB.
    """
    tops = max(2**20, context)
    powers = [2**power for power in range(10, tops.bit_length() + 1) if 2**power <= tops]
    halves = [3 * power // 2 for power in powers if 3 * power // 2 <= tops]
    batches = [2**power for power in range(9)]
    choices = (
        ({context, *powers, *halves}, {batch_size, *batches, 3, 6, 12, 24}),
        ({context, *powers[::2]}, {batch_size, *batches[::2]}),
        ({context}, {batch_size}),
    )
    most = MOST_FIGURES // len(setups)
    tokens, sequences = next((pair for pair in choices if len(pair[0]) * len(pair[1]) <= most), choices[-1])
    return Grid(
        tuple(labels),
        tuple(each.weights.bytes for each in setups),
        tuple(sorted(tokens)),
        tuple(sorted(sequences)),
        tuple(
            tuple(tuple(_kv_bytes(each, at, size) for size in sorted(sequences)) for at in sorted(tokens))
            for each in setups
        ),
        context,
        batch_size,
    )


def _kv_bytes(setup: Setup, context: int, batch_size: int) -> int | None:
    try:
        return setup.plan.kv_bytes(context, batch_size)
    except KVCalcError:  # an engine with a fixed context refuses longer ones
        return None
