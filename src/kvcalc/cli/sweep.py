"""``kvcalc sweep MODEL...``: the KV cache over the context, as figure 6 of the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated

import typer

from kvcalc.cli import options, pictures, question
from kvcalc.cli.progress import Progress
from kvcalc.errors import InputError
from kvcalc.report.document import Column, Document, Section, growth_columns

if TYPE_CHECKING:
    from kvcalc.growth import Growth
    from kvcalc.report.shapes import FootprintRecord, GrowthRecord
    from kvcalc.setup import Setup

EXAMPLES = (
    "kvcalc sweep gemma-2-2b@global gemma-2-2b@5:1/sw=1024\n"
    "kvcalc sweep gemma-2-2b@global gemma-2-2b@5:1/sw=1024 --log --plot growth.svg\n"
    "kvcalc sweep gemma-3-27b --engine ideal,vllm -c 8k..128k/8k -o growth.csv"
)
_CONTEXTS = tuple(1024 * k for k in (1, 4, 8, 16, 32, 64, 128))
_MOST_ROWS = 10_000
#: Contexts between two looks at the clock.
_STRIDE = 256


def sweep(
    models: options.Models,
    context: options.Contexts = _CONTEXTS,
    batch_size: options.BatchSize = 1,
    *,
    tensor_parallel_size: options.TensorParallelSizes = (1,),
    engine: options.EngineNames = ("ideal",),
    served: options.Served,
    rules: Annotated[bool, typer.Option("--growth", help="Add what one more token costs, and when.")] = False,
    log: Annotated[bool, typer.Option("--log", help="Logarithmic axes in charts.")] = False,
    shown: options.Shown,
) -> int:
    from kvcalc.footprints import footprint_of
    from kvcalc.growth import growth

    target = question.target(shown.format, shown.output, shown.plot)
    tables = target.for_people
    if (tables or shown.plot is not None) and len(context) > _MOST_ROWS:
        raise InputError(
            f"{len(context):,} contexts are more than the {_MOST_ROWS:,} that a table or a chart can show",
            hint="--format csv and json stream any number",
        )
    asked = question.setups(models, served, engine, tensor_parallel_size)
    contexts = question.resolved(context, asked)
    labels = question.labels(asked)
    grown = [growth(setup, batch_size) for setup in asked] if rules else []
    last = [footprint_of(setup, contexts[-1], batch_size) for setup in asked]

    def records() -> Iterator[FootprintRecord]:
        watch = Progress(len(contexts), "contexts")
        for number, tokens in enumerate(contexts):
            if number % _STRIDE == 0:
                watch(number)
            for setup in asked:
                yield footprint_of(setup, tokens, batch_size).to_dict()
        watch.close()

    rows: list[tuple[int, list[int]]] = []
    if tables or shown.plot is not None:
        rows = [(tokens, [each.plan.kv_bytes(tokens, batch_size) for each in asked]) for tokens in contexts]
    one_model = len({setup.reference for setup in asked}) == 1
    title = f"KV cache of {question.titled(asked[0])} over the context" if one_model else "KV cache over the context"
    document = Document(
        title=title,
        assumptions=question.assumptions(asked, None, batch_size),
        sections=tuple(_sections(labels, rows, grown)) if tables else (),
        records=records(),
        schema="sweep",
        extra={"growth": [_growth_record(setup, rule) for setup, rule in zip(asked, grown, strict=True)]}
        if rules
        else {},
        notes=tuple(question.notes((made.setup.reference, made) for made in last)),
        derivations=question.derivations(last, (f"{label} at {contexts[-1]:,} tokens" for label in labels))
        if shown.explain
        else (),
        units=shown.units,
        charts=(pictures.curves(title, labels, rows, "xy" if log else ""),) if rows else (),
        strips=pictures.strips(asked),
        live=pictures.live(labels, asked, contexts[-1], batch_size) if target.format_name == "html" else None,
    )
    target.write(document)
    return 0


def _sections(
    labels: Sequence[str], rows: Sequence[tuple[int, Sequence[int]]], rules: Sequence[Growth]
) -> Iterator[Section]:
    yield Section((Column("context", lambda row: row[0], "count"), *growth_columns(labels, rows)), rows)
    if not rules:
        return
    columns = (
        Column("configuration", lambda row: row[0]),
        Column("bytes a token, below the window", lambda row: _rate(row[1].early_bytes_per_token)),
        Column("beyond it", lambda row: _rate(row[1].late_bytes_per_token)),
        Column("windows full from", lambda row: _reached(row[1].saturation_context, row[1].has_windows)),
        Column("KV over weights from", lambda row: _reached(row[1].overtakes_weights_context)),
        Column("local under 1 % from", lambda row: _reached(row[1].small_share_context, row[1].has_windows)),
    )
    yield Section(columns, list(zip(labels, rules, strict=True)), "Rules of growth (contexts in tokens)")


def _rate(rate: Fraction | None) -> str:
    if rate is None:
        return "no window"
    # An engine's blocks may not divide the span: the mean rate is then a fraction of a byte.
    return f"{rate.numerator:,}" if rate.denominator == 1 else f"{float(rate):,.1f}"


def _reached(context: int | None, applies: bool = True) -> str:
    if not applies:
        return "no window"
    return "never" if context is None else f"{context:,}"


def _growth_record(setup: Setup, rule: Growth) -> GrowthRecord:
    """One configuration's rules; rates that are whole bytes are integers, a context that is never reached is null."""

    def rate(value: Fraction) -> int | float:
        return int(value) if value.denominator == 1 else float(value)

    return {
        "reference": setup.reference,
        "engine": setup.engine.name,
        "early_bytes_per_token": None if rule.early_bytes_per_token is None else rate(rule.early_bytes_per_token),
        "late_bytes_per_token": rate(rule.late_bytes_per_token),
        "saturation_context": rule.saturation_context,
        "overtakes_weights_context": rule.overtakes_weights_context,
        "small_share_context": rule.small_share_context,
    }
