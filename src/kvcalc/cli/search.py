"""``kvcalc search MODEL``: layouts, windows and formats against a memory budget.

JSON: each row is a footprint at its context, with a key ``search`` beside the usual ones: ``command`` (what shows the
row again), ``fits``, ``local_layers``, ``attention_layers``, ``local_share``, ``pareto`` (null with ``--all``) and
``evidence`` (``ratio``, ``window``, ``text``). Beside the rows stands ``search``: ``candidates`` (the grid),
``walked``, ``fitting``, ``refused`` and ``interrupted``; with ``--all``, which does not know them in advance, only
``candidates``.
"""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from kvcalc import search as grid_search
from kvcalc.cli import options, pictures, question
from kvcalc.errors import InputError, UnsupportedError, quote
from kvcalc.fitting import Memory, fits
from kvcalc.footprints import footprint_of
from kvcalc.layout import Layout, parse_layout
from kvcalc.report.document import Chart, Column, Document, Section, Series
from kvcalc.report.document import Grid as PageGrid
from kvcalc.report.records import footprint_record
from kvcalc.search import Candidate, Configuration, Found, Grid
from kvcalc.setup import options_on
from kvcalc.sources.resolve import split_variant
from kvcalc.units import exact_bytes, parse_count, parse_counts

if TYPE_CHECKING:
    from kvcalc.report.shapes import FoundRecord

#: Configurations that a page's sliders and layer strips show.
_MOST_ON_A_PAGE = 20

EXAMPLES = (
    "kvcalc search gemma-2-2b --ratios 1:1,3:1,5:1,7:1 --windows 512,1024,2048,4096 -c 32k --memory 8GiB --pareto\n"
    "kvcalc search gemma-3-27b --kv-cache-dtype bf16,fp8 --weights-dtype bf16,int4 -c 8k..128k/8k --memory 24GiB\n"
    "kvcalc search gemma-2-2b --ratios 5:1 --windows 256..64k/256 -c 32k --all --format csv"
)


def _ratios(text: str) -> Sequence[Layout]:
    layouts = [parse_layout(word.strip()) for word in text.split(",")]
    for layout in layouts:
        if layout.local is None or layout.window is not None:
            raise InputError(f"a ratio is L:G or global, not {quote(str(layout))}", hint="windows go to --windows")
    return layouts


Ratios = Annotated[
    Sequence[Layout] | None,
    typer.Option(
        metavar="LIST", help="Layouts: global,1:1,5:1. Default: the model's own order.", parser=options.reads(_ratios)
    ),
]
Windows = Annotated[
    Sequence[int] | None,
    typer.Option(
        metavar="LIST",
        help="Windows: 512,1k or 256..64k/256. Default: its own.",
        parser=options.reads(lambda text: parse_counts(text, "--windows")),
    ),
]
Top = Annotated[
    int,
    typer.Option(
        metavar="COUNT",
        help="How many of the candidates with the least memory to keep.",
        parser=options.reads(lambda text: parse_count(text, "--top", most=100_000)),
    ),
]


def search(
    model: options.Model,
    context: options.Contexts = (options.OWN_CONTEXT,),
    ratios: Ratios = None,
    windows: Windows = None,
    batch_size: options.BatchSize = 1,
    memory: options.Memory = None,
    device: options.Device = None,
    reserve: options.Reserve = 0,
    gpu_memory_utilization: options.GpuMemoryUtilization = None,
    kv_cache_dtype: options.KVCacheDtypes = None,
    weights_dtype: options.WeightsDtypes = None,
    tensor_parallel_size: options.TensorParallelSize = 1,
    engine: options.EngineNames = ("ideal",),
    engine_option: options.EngineOptions = None,
    encoder_tokens: options.EncoderTokens = 0,
    draft: options.Draft = None,
    top: Top = 50,
    pareto: Annotated[bool, typer.Option("--pareto", help="Only what none beats in memory and local layers.")] = False,
    every: Annotated[
        bool, typer.Option("--all", help="Every candidate as it comes; with --format csv or json.")
    ] = False,
    format: options.Format = None,  # noqa: A002 - the option's name
    output: options.Output = None,
    plot: options.Plot = None,
    explain: options.Explain = False,
    units: options.UnitsOption = "binary",
) -> int:
    """Layouts and formats that fit a memory."""
    target = question.target(format, output, plot)
    if every and target.for_people:
        raise InputError("--all streams rows for programs", hint="add --format csv or --format json")
    place = question.place(memory, device)
    if place is None and (reserve or gpu_memory_utilization is not None):
        raise InputError("a reserve or a utilization needs a memory", hint="add --memory 24GiB or --device NAME")
    room = None if place is None else Memory(None, place, gpu_memory_utilization, reserve)
    label = None if place is None else place.name or exact_bytes(place.memory_bytes)
    chosen = question.parse_engines(engine, engine_option or ())
    given = {name: options_on(name, options, question.named(place)) for name, options in chosen}
    architecture = question.load_with_hints(model)
    (setup,) = question.setups([model])
    grid = grid_search.Grid(
        ratios=ratios or (),
        windows=windows or (),
        contexts=question.resolved(context, [setup]),
        engines=[name for name, _ in chosen],
        kv_cache_dtypes=kv_cache_dtype or (None,),
        weights_dtypes=weights_dtype or (None,),
    )
    base, shared = _base(model, grid), _flags(batch_size, tensor_parallel_size, encoder_tokens, draft)
    for ratio in grid.ratios:
        if ratio.hint is not None:
            question.say(f"hint: {ratio.hint}")
    walk = grid_search.Walk(
        architecture,
        base,
        grid,
        engine_options=given,
        tensor_parallel_size=tensor_parallel_size,
        encoder_tokens=encoder_tokens,
        draft=question.read_draft(draft),
    )

    def flags(configuration: Configuration) -> Sequence[str]:
        return [*shared, *_engine_flags(configuration, given)]

    def record(configuration: Configuration, at: int, marked: bool | None) -> FoundRecord:
        return _record(configuration, at, batch_size, room, marked, flags(configuration))

    size = grid.size
    with _interruptible() as stopped:
        watch = _Watch(size, stopped)
        if every:

            def rows() -> Iterator[FoundRecord]:
                walked = 0
                for configuration in walk.configurations():
                    for at in grid.contexts:
                        if walked % 100 == 0 and not watch(walked):
                            return
                        walked += 1
                        yield record(configuration, at, None)

            extra = {"search": {"candidates": size}}
            target.write(Document("", (), (), rows(), "search", extra))
            watch.close()
            return 130 if stopped() else 0
        found = grid_search.search(walk, grid.contexts, room, batch_size=batch_size, top=top, go_on=watch)
        watch.close()
    if found.refused and not found.walked:
        raise UnsupportedError(found.reason, hint="every candidate was refused for such a reason")
    front = {candidate.number for candidate in found.front}
    others = [candidate for candidate in found.best if candidate.number not in front]
    shown = found.front if pareto else sorted([*others, *found.front])
    document = Document(
        title=f"{size:,} candidate{'s' * (size != 1)} for {model}" + (f" in {label}" if label else ""),
        assumptions=_assumptions(grid, batch_size, label, found),
        sections=tuple(_sections(shown, front, grid, pareto)),
        records=(record(each.configuration, each.context, each.number in front) for each in shown),
        schema="search",
        extra={
            "search": {
                "candidates": size,
                "walked": found.walked,
                "fitting": found.fitting,
                "refused": found.refused,
                "interrupted": found.interrupted,
            }
        },
        derivations=tuple(
            question.derivation(
                each.configuration.setup,
                f"KV cache of {each.configuration.reference} at {each.context:,} tokens, step by step",
                each.context,
                batch_size,
            )
            for each in shown
        )
        if explain
        else (),
        notes=tuple(_notes(found, grid, architecture.name, shown, flags)),
        units=units,
        charts=tuple(_charts(shown, front, grid)),
        grid=_page_grid(shown, batch_size, grid) if target.format_name == "html" and shown else None,
        strips=tuple(
            pictures.strip(reference, model)
            for reference, model in {
                each.configuration.reference: each.configuration.setup.architecture for each in shown
            }.items()
        )[:_MOST_ON_A_PAGE],
    )
    target.write(document)
    if found.interrupted:
        return 130
    return 1 if room is not None and not found.fitting else 0


def _base(model: str, grid: Grid) -> str:
    base, variant = split_variant(model)
    if variant is None or not (grid.ratios or grid.windows):
        return model
    raise InputError("the model has a layout, and the search varies it", hint=f"kvcalc search {base} --ratios ...")


def _flags(batch_size: int, tensor_parallel_size: int, encoder_tokens: int, draft: str | None) -> list[str]:
    """What every row's command has in common, defaults left out."""
    flags = []
    for flag, value, default in (
        ("-b", batch_size, 1),
        ("-tp", tensor_parallel_size, 1),
        ("--encoder-tokens", encoder_tokens, 0),
    ):
        flags += [flag, str(value)] if value != default else []
    return [*flags, *(["--draft", draft] if draft is not None else [])]


def _engine_flags(configuration: Configuration, given: Mapping[str, Mapping[str, object]]) -> Iterator[str]:
    name = configuration.setup.engine.name
    if name != "ideal":
        yield from ("--engine", name)
    for key, value in given[name].items():
        yield from ("-E", f"{key}={value}")


def command(configuration: Configuration, context: int, flags: Sequence[str]) -> str:
    """What shows one candidate again."""
    words = ["kvcalc", "show", configuration.reference, "-c", str(context)]
    if configuration.kv_cache_dtype is not None:
        words += ["--kv-cache-dtype", configuration.kv_cache_dtype]
    if configuration.weights_dtype is not None:
        words += ["--weights-dtype", configuration.weights_dtype]
    return shlex.join([*words, *flags])


def _record(
    configuration: Configuration,
    context: int,
    batch_size: int,
    budget: Memory | None,
    marked: bool | None,
    flags: Sequence[str],
) -> FoundRecord:
    setup, standing = configuration.setup, configuration.standing
    footprint = footprint_of(setup, context, batch_size)
    attention = configuration.attention_layers
    return {
        **footprint_record(configuration.reference, footprint),
        "search": {
            "command": command(configuration, context, flags),
            "fits": None if budget is None else fits(setup, budget, context, batch_size),
            "local_layers": configuration.local_layers,
            "attention_layers": attention,
            "local_share": configuration.local_layers / attention if attention else 0.0,
            "pareto": marked,
            "evidence": {"ratio": standing.ratio, "window": standing.window, "text": standing.text},
        },
    }


def _assumptions(grid: Grid, batch_size: int, label: str | None, found: Found) -> tuple[str, ...]:
    stated = [f"batch size {batch_size:,}", f"engine {', '.join(grid.engines)}"]
    for what, formats in (("K and V", grid.kv_cache_dtypes), ("weights", grid.weights_dtypes)):
        stated.append(f"{what} {', '.join(word or 'as the engine has them' for word in formats)}")
    if label:
        stated.append(f"{found.fitting:,} of {found.walked:,} fit")
    return tuple(stated)


def _sections(shown: Sequence[Candidate], front: set[int], grid: Grid, pareto: bool) -> Iterator[Section]:
    several: list[Column] = []
    if len(grid.engines) > 1:
        several.append(Column("engine", lambda each: each.configuration.setup.engine.name))
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
        Column("local", _local_layers),
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


def _charts(shown: Sequence[Candidate], front: set[int], grid: Grid) -> Iterator[Chart]:
    """Memory over local layers, a group of points a context, and a line through each front."""
    if not shown:
        return
    series = []
    for context in dict.fromkeys(each.context for each in shown):
        here = [each for each in shown if each.context == context]
        best = sorted((each for each in here if each.number in front), key=lambda each: each.local_layers)
        others = [each for each in here if each.number not in front]
        for label, points in ((f"front at {context:,} tokens", best), (f"others at {context:,} tokens", others)):
            if points:
                memory = tuple(each.memory_bytes for each in points)
                series.append(Series(label, memory, tuple(each.local_layers for each in points), joined=points is best))
    layers = shown[0].configuration.attention_layers
    yield Chart(
        "points",
        "Memory over local layers",
        tuple(series),
        x_title=f"local layers (of {layers} attention layers)",
        y_title="weights and KV cache",
    )


def _page_grid(shown: Sequence[Candidate], batch_size: int, grid: Grid) -> PageGrid:
    """The sliders of a page: the first distinct configurations."""
    distinct = list({id(each.configuration): each.configuration for each in shown}.values())[:_MOST_ON_A_PAGE]
    labels = []
    for each in distinct:
        words = [each.reference, *([each.setup.engine.name] if len(grid.engines) > 1 else [])]
        labels.append(", ".join([*words, *filter(None, (each.kv_cache_dtype, each.weights_dtype))]))
    return pictures.grid(labels, [each.setup for each in distinct], shown[0].context, batch_size)


def _local_layers(candidate: Candidate) -> str:
    return f"{candidate.local_layers} of {candidate.configuration.attention_layers}"


def _notes(
    found: Found, grid: Grid, name: str, shown: Sequence[Candidate], flags: Callable[[Configuration], Sequence[str]]
) -> Iterator[str]:
    if found.interrupted:
        yield f"interrupted after {found.walked:,} of {grid.size:,} candidates: the best of those"
    if not found.fitting:
        yield "no candidate fits"
    if found.refused:
        yield f"{found.refused:,} candidates left out: {found.reason}"
    if grid.ratios or grid.windows:
        texts = dict.fromkeys(each.configuration.standing.text for each in shown[:10])
        yield from (f"the report: {text}" for text in texts)
        yield (
            f"the report's bounds are for its own 2B and 9B text-only models, not for {name}; between and beyond its "
            "points nothing is predicted"
        )
    if shown:
        first = shown[0]
        yield f"to see a row: {command(first.configuration, first.context, flags(first.configuration))}"


class _Watch:
    """Says on standard error how far a walk is, once it takes longer than a second; stops it after Ctrl-C."""

    def __init__(self, size: int, stopped: Callable[[], bool]) -> None:
        self._size, self._stopped = size, stopped
        self._next = time.monotonic() + 1.0
        self._terminal = sys.stderr.isatty()
        self._said = False

    def __call__(self, walked: int) -> bool:
        """Whether to go on."""
        now = time.monotonic()
        if now >= self._next:
            line = f"{walked:,} of {self._size:,} candidates ({100 * walked // self._size} %)"
            sys.stderr.write(f"\r{line}" if self._terminal else f"{line}\n")
            sys.stderr.flush()
            self._said = True
            self._next = now + (0.5 if self._terminal else 5.0)
        return not self._stopped()

    def close(self) -> None:
        """End the line of a terminal."""
        if self._said and self._terminal:
            sys.stderr.write("\n")


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks the walk to stop, so that what it found is still printed; a second Ctrl-C ends the program."""
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield lambda: stopped
    finally:
        signal.signal(signal.SIGINT, before)
