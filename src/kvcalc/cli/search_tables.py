"""The tables, the chart and the records of ``kvcalc search``: what a walk found, candidate by candidate."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import TYPE_CHECKING

from kvcalc.cli import pictures, question
from kvcalc.cli.options import Served, Shown
from kvcalc.errors import InputError
from kvcalc.fitting import Memory, fits
from kvcalc.footprints import footprint_of
from kvcalc.report.document import Chart, Column, Derivation, Document, Live, Section, Series
from kvcalc.report.strips import strip
from kvcalc.search import Candidate, Configuration, Found, Grid, Walk
from kvcalc.sources.resolve import split_variant
from kvcalc.units import counted

if TYPE_CHECKING:
    from kvcalc.report.shapes import FoundRecord

#: Configurations that a page's sliders and layer strips show.
_MOST_ON_A_PAGE = 20


@dataclass(frozen=True)
class Asked:
    """What holds for every candidate of a search.

    Attributes:
        reference, model: the model as typed, and its name.
        grid: what is varied.
        batch_size: sequences.
        memory: the memory of one device, or None where none was named.
        flags: what every row's command has in common.
    """

    reference: str
    model: str
    grid: Grid
    batch_size: int
    memory: Memory | None
    flags: Sequence[str]

    def command(self, configuration: Configuration, context: int) -> str:
        """What shows one candidate again."""
        words = ["kvcalc", "show", configuration.reference, "-c", str(context)]
        if configuration.kv_cache_dtype is not None:
            words += ["--kv-cache-dtype", configuration.kv_cache_dtype]
        if configuration.weights_dtype is not None:
            words += ["--weights-dtype", configuration.weights_dtype]
        name = configuration.setup.engine.name
        engine = ["--engine", name] if name != "ideal" else []
        options = [word for key, value in configuration.engine_options.items() for word in ("-E", f"{key}={value}")]
        return shlex.join([*words, *self.flags, *engine, *options])

    def record(self, configuration: Configuration, context: int, leads: bool | None) -> FoundRecord:
        """A candidate for programs; ``leads``: whether it stands on the front, where that is known."""
        setup, standing = configuration.setup, configuration.standing
        return {
            **footprint_of(setup, context, self.batch_size).to_dict(),
            "reference": configuration.reference,
            "search": {
                "command": self.command(configuration, context),
                "fits": None if self.memory is None else fits(setup, self.memory, context, self.batch_size),
                "local_layers": configuration.local_layers,
                "attention_layers": configuration.attention_layers,
                "local_share": configuration.local_share,
                "pareto": leads,
                "evidence": {"ratio": standing.ratio, "window": standing.window, "text": standing.text},
            },
        }

    def assumptions(self) -> tuple[str, ...]:
        """What holds for every row."""
        grid = self.grid
        stated = [f"batch size {self.batch_size:,}", f"engine {', '.join(map(_typed, grid.engines))}"]
        for what, formats, own in (
            ("K and V", grid.kv_cache_dtypes, "the engine's own"),
            ("weights", grid.weights_dtypes, "as shipped"),
        ):
            stated.append(f"{what} {', '.join(word or own for word in formats)}")
        return tuple(stated)


def document(asked: Asked, found: Found, shown: Shown, *, pareto: bool, html: bool) -> Document:
    """The candidates with the least memory and those on a front, or those on a front alone."""
    grid, front = asked.grid, {each.number for each in found.front}
    others = [each for each in found.best if each.number not in front]
    rows = found.front if pareto else sorted([*others, *found.front])
    models = {each.configuration.reference: each.configuration.setup.architecture for each in rows}
    walked = {name: getattr(found, name) for name in ("walked", "fitting", "refused", "interrupted")}
    steps: tuple[Derivation, ...] = ()
    if shown.explain:
        footprints = (footprint_of(each.configuration.setup, each.context, asked.batch_size) for each in rows)
        named = (f"{each.configuration.reference} at {each.context:,} tokens" for each in rows)
        steps = question.derivations(footprints, named)
    return Document(
        title=_title(asked, found),
        assumptions=asked.assumptions(),
        sections=tuple(_sections(rows, front, grid, pareto)),
        records=(asked.record(each.configuration, each.context, each.number in front) for each in rows),
        schema="search",
        extra={"search": {"candidates": grid.size, **walked}},
        derivations=steps,
        notes=tuple(_notes(asked, found, rows)),
        units=shown.units,
        charts=(_chart(asked, rows, front),) if rows else (),
        live=_live(rows, asked.batch_size, grid) if html and rows else None,
        strips=tuple(starmap(strip, models.items()))[:_MOST_ON_A_PAGE],
    )


def _sections(shown: Sequence[Candidate], front: set[int], grid: Grid, pareto: bool) -> Iterator[Section]:
    several: list[Column] = []
    if len(grid.engines) > 1:
        several.append(Column("engine", lambda each: _engine(each.configuration, grid)))
    if len(grid.kv_cache_dtypes) > 1:
        several.append(Column("K and V", lambda each: each.configuration.kv_cache_dtype))
    if len(grid.weights_dtypes) > 1:
        several.append(Column("weights format", lambda each: each.configuration.weights_dtype))
    common = [
        Column("candidate", lambda each: each.configuration.reference),
        *several,
        Column("weights", lambda each: each.configuration.setup.weights.bytes, "bytes", drop_order=2),
        Column("KV cache", lambda each: each.kv_bytes, "bytes"),
        Column("total", lambda each: each.memory_bytes, "bytes"),
        Column("local", lambda each: f"{each.local_layers} of {each.configuration.attention_layers}"),
    ]
    # What the report measured is about layouts: it says nothing where none is varied.
    standing = Column("in the report", lambda each: each.configuration.standing.label, drop_order=1)
    evidence = [standing] if grid.ratios or grid.windows else []
    if not pareto:
        columns = (
            *common[:1],
            Column("context", lambda each: each.context, "count"),
            *common[1:],
            Column("front", lambda each: "front" if each.number in front else ""),
            *evidence,
        )
        if shown:
            yield Section(columns, shown, "The least memory first")
        return
    for context in dict.fromkeys(each.context for each in shown):
        rows = [each for each in shown if each.context == context]
        title = f"Pareto front at {context:,} tokens: no candidate has both less memory and fewer local layers"
        yield Section((*common, *evidence), rows, title)


def _chart(asked: Asked, shown: Sequence[Candidate], front: set[int]) -> Chart:
    """Memory over local layers, a group of points a context, and the steps of each front."""
    series = []
    for context in dict.fromkeys(each.context for each in shown):
        here = [each for each in shown if each.context == context]
        best = sorted((each for each in here if each.number in front), key=lambda each: each.local_layers)
        others = [each for each in here if each.number not in front]
        for label, points in ((f"front at {context:,} tokens", best), (f"others at {context:,} tokens", others)):
            if points:
                memory = tuple(each.memory_bytes for each in points)
                local = tuple(each.local_layers for each in points)
                names = tuple(_short_name(each.configuration, asked.grid) for each in points if points is best)
                series.append(Series(label, memory, local, joined=points is best, names=names))
    layers = shown[0].configuration.attention_layers
    device = asked.memory and asked.memory.device
    return Chart(
        "points",
        f"{asked.model}: memory over local layers",
        tuple(series),
        x_title=f"local layers (of {layers} attention layers)",
        y_title="weights and KV cache",
        limit=(device.memory_bytes, asked.memory.label) if asked.memory and device else None,
    )


def _short_name(configuration: Configuration, grid: Grid) -> str:
    """What tells a candidate from the others: its layout, and what else is varied."""
    layout = configuration.reference.partition("@")[2]
    engine = _engine(configuration, grid) if len(grid.engines) > 1 else ""
    words = (layout, engine, configuration.kv_cache_dtype, configuration.weights_dtype)
    return ", ".join(word for word in words if word) or configuration.reference


def _typed(engine: tuple[str, Mapping[str, object]]) -> str:
    name, options = engine
    return f"{name} {options['version']}" if "version" in options else name


def _engine(configuration: Configuration, grid: Grid) -> str:
    """The engine of a candidate; with its version, where the grid has several versions of it."""
    engine = configuration.setup.engine
    several = [name for name, _ in grid.engines].count(engine.name) > 1
    return f"{engine.name} {engine.followed_version}" if several else engine.name


def _live(shown: Sequence[Candidate], batch_size: int, grid: Grid) -> Live:
    """The boxes of a page: the first distinct configurations."""
    distinct = list({id(each.configuration): each.configuration for each in shown}.values())[:_MOST_ON_A_PAGE]
    labels = [_short_name(each, grid) for each in distinct]
    return pictures.live(labels, [each.setup for each in distinct], shown[0].context, batch_size)


def _notes(asked: Asked, found: Found, shown: Sequence[Candidate]) -> Iterator[str]:
    """How much was looked at, what was left out, and what the report measured of it."""
    grid = asked.grid
    if not found.fitting:
        yield "no candidate fits"
    if found.walked == 1 and asked.memory is not None:
        yield "nothing is varied: see --ratios, --windows, --weights-dtype a,b; 'kvcalc fit' names the formats that fit"
    if found.refused:
        yield f"{found.refused:,} candidates left out: {found.reason}"
    if grid.ratios or grid.windows:
        texts = dict.fromkeys(each.configuration.standing.text for each in shown[:10])
        yield from (f"the report: {text}" for text in texts)
        yield (
            f"the report's bounds are for its own 2B and 9B text-only models, not for {asked.model}; between and "
            "beyond its points nothing is predicted"
        )
    if shown:
        yield f"to see a row: {asked.command(shown[0].configuration, shown[0].context)}"


def stream(walk: Walk, asked: Asked, go_on: Callable[[int], bool]) -> Iterator[FoundRecord]:
    """Every candidate for programs, until somebody stops it."""
    walked = 0
    for configuration in walk.configurations():
        for context in asked.grid.contexts:
            if walked % 100 == 0 and not go_on(walked):
                return
            walked += 1
            yield asked.record(configuration, context, None)


def _title(asked: Asked, found: Found) -> str:
    """How many candidates fit, or there are; of an interrupted walk, those it came to."""
    said = f"{counted(found.walked, 'candidate')} for {asked.reference}"
    if asked.memory is not None:
        said = f"{found.fitting:,} of {said} {'fits' if found.fitting == 1 else 'fit'} {asked.memory.label}"
    stopped = f": interrupted after {found.walked:,} of {asked.grid.size:,}, the best so far"
    return said + (stopped if found.interrupted else "")


def base(model: str, grid: Grid) -> str:
    """The model whose layouts are varied: one that has a layout already is a mistake."""
    base, variant = split_variant(model)
    if variant is None or not (grid.ratios or grid.windows):
        return model
    raise InputError("the model has a layout, and the search varies it", hint=f"kvcalc search {base} --ratios ...")


def flags(batch_size: int, tensor_parallel_size: int, served: Served) -> list[str]:
    """What every row's command has in common, defaults left out; formats and engines are the row's own."""
    own = ("kv_cache_dtype", "weights_dtype", "engine_option")
    alike = [(f"--{name.replace('_', '-')}", value) for name, value in vars(served).items() if name not in own]
    words = [*(["-b", str(batch_size)] if batch_size > 1 else [])]
    for flag, value in (("-tp", tensor_parallel_size if tensor_parallel_size > 1 else None), *alike):
        words += [flag] if value is True else [flag, str(value)] if value else []
    return words
