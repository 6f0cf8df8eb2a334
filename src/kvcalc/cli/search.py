"""``kvcalc search MODEL``: layouts, windows and formats against a memory budget."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import typer

from kvcalc.cli import options, question
from kvcalc.errors import InputError, UnsupportedError, quote
from kvcalc.layout import Layout, parse_layout
from kvcalc.report.document import Document
from kvcalc.units import parse_count, parse_counts

EXAMPLES = (
    "kvcalc search gemma-2-2b --ratios 1:1,3:1,5:1,7:1 --windows 512,1024,2048,4096 -c 32k --memory 8GiB --pareto\n"
    "kvcalc search gemma-3-27b --kv-cache-dtype bf16,fp8 --weights-dtype bf16,int4 -c 8k..128k/8k --memory 24GiB\n"
    "kvcalc search gemma-2-2b --ratios 5:1 --windows 256..64k/256 -c 32k --all --format csv"
)


def _ratios(text: str, _: str) -> Sequence[Layout]:
    layouts = [parse_layout(word.strip()) for word in text.split(",")]
    for layout in layouts:
        if layout.local is None or layout.window is not None:
            raise InputError(f"a ratio is L:G or global, not {quote(str(layout))}", hint="windows go to --windows")
    return layouts


Ratios = Annotated[
    Sequence[Layout] | None,
    options.option("--ratios", "LIST", "Layouts: global,1:1,5:1. Default: the model's own order.", _ratios),
]
Windows = Annotated[
    Sequence[int] | None,
    options.option("--windows", "LIST", "Windows: 512,1k or 256..64k/256. Default: its own.", parse_counts),
]
Top = Annotated[
    int,
    options.option(
        "--top",
        "COUNT",
        "How many of the candidates with the least memory to keep.",
        partial(parse_count, most=100_000),
    ),
]


def search(
    model: options.Model,
    context: options.Contexts = (options.OWN_CONTEXT,),
    ratios: Ratios = None,
    windows: Windows = None,
    batch_size: options.BatchSize = 1,
    *,
    room: options.Room,
    tensor_parallel_size: options.TensorParallelSize = 1,
    engine: options.EngineNames = ("ideal",),
    served: options.Served,
    top: Top = 50,
    pareto: Annotated[bool, typer.Option("--pareto", help="Only what none beats in memory and local layers.")] = False,
    every: Annotated[
        bool, typer.Option("--all", help="Every candidate as it comes; with --format csv or json.")
    ] = False,
    shown: options.Shown,
) -> int:
    from kvcalc import search as grid_search
    from kvcalc.cli import search_tables
    from kvcalc.cli.progress import Progress, interruptible
    from kvcalc.setup import options_on

    target = question.target(shown.format, shown.output, shown.plot)
    if every and target.for_people:
        raise InputError("--all streams rows for programs", hint="add --format csv or --format json")
    memory = question.memory_of(room)
    where = None if memory is None else memory.device
    chosen = question.parse_engines(engine, served.engine_option or ())
    engines = [(name, options_on(name, options, where)) for name, options in chosen]
    architecture = question.load_with_hints(model)
    contexts = question.resolved(context, question.setups([architecture]))
    formats = served.kv_cache_dtype or (None,), served.weights_dtype or (None,)
    grid = grid_search.Grid(ratios or (), windows or (), contexts, engines, *formats)
    for ratio in grid.ratios:
        if ratio.hint is not None:
            question.say(f"hint: {ratio.hint}")
    walk = grid_search.Walk(
        architecture,
        search_tables.base(model, grid),
        grid,
        tensor_parallel_size=tensor_parallel_size,
        encoder_tokens=served.encoder_tokens,
        text_only=served.text_only,
        draft=question.read_draft(served.draft),
    )
    shared = search_tables.flags(batch_size, tensor_parallel_size, served)
    asked = search_tables.Asked(model, architecture.name, grid, batch_size, memory, shared)
    with interruptible() as stopped:
        watch = Progress(grid.size, "candidates", stopped)
        if every:
            stream, extra = search_tables.stream(walk, asked, watch), {"search": {"candidates": grid.size}}
            target.write(Document("", (), (), stream, "search", extra))
            watch.close()
            return 130 if stopped() else 0
        found = grid_search.search(walk, memory, batch_size=batch_size, top=top, go_on=watch)
        watch.close()
    if found.refused and not found.walked:
        raise UnsupportedError(found.reason, hint="every candidate was refused for such a reason")
    html = target.format_name == "html"
    target.write(search_tables.document(asked, found, shown, pareto=pareto, html=html))
    if found.interrupted:
        return 130
    return 1 if memory is not None and not found.fitting else 0
