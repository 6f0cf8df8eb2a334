"""``kvcalc check [FILE...]``: memory budgets in CI."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvcalc.cli import options

if TYPE_CHECKING:
    from kvcalc.budgets.verdict import Verdict
    from kvcalc.footprints import Footprint
    from kvcalc.report.document import Derivation, Document, Section, Units

EXAMPLES = (
    "kvcalc check\n"
    "kvcalc check budgets.toml --format github\n"
    "kvcalc check services/ --only 'chat-*'\n"
    "kvcalc check --baseline baseline.json --save-baseline baseline.json\n"
    "kvcalc check --init gemma-3-27b"
)


def check(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE", help="Budget files, 'b*.toml', or folders. Default: budgets.toml, or pyproject.toml, here."
        ),
    ] = None,
    only: Annotated[
        list[str] | None, options.option("--only", "NAME", "Only budgets of this name; 'chat-*' too.")
    ] = None,
    baseline: Annotated[
        str | None, options.option("--baseline", "FILE", "Compare with a baseline; limits stay limits.")
    ] = None,
    save_baseline: Annotated[
        str | None, options.option("--save-baseline", "FILE", "Write what the budgets take now.")
    ] = None,
    exit_zero: Annotated[bool, typer.Option("--exit-zero", help="Exit 0 where a budget fails.")] = False,
    init: Annotated[
        bool, typer.Option("--init", help="Write a first budgets.toml for a model, or for the config.json here.")
    ] = False,
    format: options.CheckFormat = None,  # noqa: A002 - the option's name
    output: options.Output = None,
    explain: options.Explain = False,
    units: options.UnitsOption = "binary",
) -> int:
    """Memory budgets in CI: exit 1 if one fails."""
    from kvcalc.budgets.baseline import load_baseline
    from kvcalc.budgets.checking import check_files
    from kvcalc.budgets.file import find_files
    from kvcalc.cli import question
    from kvcalc.errors import joined
    from kvcalc.report.files import check_outputs

    target = question.target(format, output)
    if init:
        return _init(files or [])
    before = None if baseline is None else load_baseline(Path(baseline))
    paths = find_files(files or [])
    verdicts = check_files(paths, before, only or [])
    models = (verdict.footprint.architecture for verdict in verdicts if verdict.footprint is not None)
    for hint in dict.fromkeys(hint for model in models for hint in model.provenance.hints):
        question.say(f"hint: {hint}")
    document = _document(verdicts, units, paths)
    if explain:
        document = replace(document, derivations=tuple(step for each in verdicts for step in _derivations(each)))
    saved = None if save_baseline is None else Path(save_baseline)
    renewed = saved is not None and baseline is not None and saved.resolve() == Path(baseline).resolve()
    check_outputs(target.path, None if renewed else saved)
    target.write(document)
    errors = [verdict.error for verdict in verdicts if verdict.error is not None]
    if saved is not None:
        _save(saved, verdicts, bool(only))
    if errors:
        raise joined(errors)
    return 1 if not exit_zero and any(not verdict.ok for verdict in verdicts) else 0


def _save(path: Path, verdicts: Sequence[Verdict], partial: bool) -> None:
    """Write the baseline; one that is there is not moved while a budget does not hold."""
    from kvcalc.budgets.checking import new_baseline
    from kvcalc.cli import question
    from kvcalc.errors import InputError
    from kvcalc.report.files import write_file

    if partial:
        raise InputError("a baseline holds every budget", hint="leave --only out, or --save-baseline")
    if any(verdict.status == "error" for verdict in verdicts):
        return
    if path.exists() and not all(verdict.ok for verdict in verdicts):
        question.say(f"warning: {path} stays as it was: not every budget holds")
        return
    text = json.dumps(new_baseline(verdicts), indent=1, allow_nan=False) + "\n"
    write_file(path, [text.encode()])


def _derivations(verdict: Verdict) -> Iterator[Derivation]:
    """The cache of a budget step by step; of a mix, that of each part alone."""
    from kvcalc.cli import question

    if verdict.budget is None or verdict.footprint is None:
        return
    parts = verdict.budget.parts
    for part in parts:
        title = f"KV cache of {verdict.name}{f', {part} alone' if len(parts) > 1 else ''}, step by step"
        yield question.derivation(verdict.footprint.setup, title, part.context, part.batch_size)


#: Notes that are shown; budgets of many models have many.
_MOST_NOTES = 20


def _document(verdicts: Sequence[Verdict], units: Units, paths: Sequence[Path]) -> Document:
    from kvcalc.report.cells import UNIT_TABLES
    from kvcalc.report.document import Document
    from kvcalc.report.verdicts import verdict_record

    table = UNIT_TABLES[units]
    statuses = [verdict.status for verdict in verdicts]
    judged = len(verdicts) - statuses.count("removed")
    holding = judged - statuses.count("fail") - statuses.count("error")
    words = [f"{holding} of {judged} budgets hold"]
    for status, word in (("warn", "with a warning"), ("error", "not judged")):
        if status in statuses:
            words.append(f"{statuses.count(status)} {word}")
    spoken = [each for each in verdicts if each.status not in ("pass", "added") or (each.change and each.change.is_one)]
    sections = [*([_sentences(spoken, table)] if spoken else []), _overview(verdicts)]
    noted = dict.fromkeys(note for each in verdicts if each.footprint is not None for note in each.footprint.notes)
    for each in verdicts:
        if each.ok and each.check is not None and each.check.not_modelled:
            noted[f"{each.name}: working memory is not in the limit: {each.check.not_modelled}"] = None
    notes = [*noted][:_MOST_NOTES]
    if len(noted) > _MOST_NOTES:
        notes.append(f"{len(noted) - _MOST_NOTES} more notes stand in --format json")
    if "fail" in statuses:
        notes.append(f"the limits stand in {', '.join(map(str, paths[:_MOST_NOTES]))}")
    return Document(
        title=", ".join(words),
        assumptions=(
            "bytes of one device",
            "weights and KV cache; what else an engine takes is off the limit of a device",
        ),
        sections=tuple(sections),
        records=[verdict_record(verdict, table) for verdict in verdicts],
        schema="check",
        notes=tuple(notes),
        units=units,
    )


_ORDER = ("error", "fail", "warn")


def _sentences(verdicts: Sequence[Verdict], units: Mapping[str, int]) -> Section:
    from kvcalc.report.document import Column, Section
    from kvcalc.report.verdicts import verdict_details

    rows: list[tuple[str, str]] = []
    for verdict in sorted(verdicts, key=lambda each: _ORDER.index(each.status) if each.status in _ORDER else 3):
        rows.append((verdict.status, verdict.sentence(units)))
        rows += [("", line) for line in verdict_details(verdict, units)]
    columns = (Column("verdict", lambda row: row[0], "verdict"), Column("in words", lambda row: row[1]))
    return Section(columns, rows)


def _overview(verdicts: Sequence[Verdict]) -> Section:
    from kvcalc.report.document import Column, Section

    def of_check(name: str) -> Callable[[Verdict], object]:
        return lambda verdict: None if verdict.check is None else getattr(verdict.check, name)

    def of_footprint(value: Callable[[Footprint], object]) -> Callable[[Verdict], object]:
        return lambda verdict: None if verdict.footprint is None else value(verdict.footprint)

    columns = [
        Column("verdict", lambda verdict: verdict.status, "verdict"),
        Column("budget", lambda verdict: verdict.name),
        Column("model", lambda verdict: verdict.budget and verdict.budget.model, drop_order=2),
        Column("context", of_footprint(lambda made: made.context), "count", drop_order=3),
        Column("batch", of_footprint(lambda made: made.batch_size), "count", drop_order=4),
        Column("engine", of_footprint(lambda made: made.engine.name), drop_order=5),
        Column("rule", of_check("rule"), drop_order=1),
        Column("used", of_check("used_bytes"), "bytes"),
        Column("limit", of_check("limit_bytes"), "bytes"),
        Column("headroom", of_check("headroom_bytes"), "bytes"),
        Column("of the limit", of_check("headroom"), "percent"),
    ]
    if any(verdict.change is not None for verdict in verdicts):
        change = Column("change", lambda verdict: verdict.change and verdict.change.total_bytes, "bytes")
        columns.append(change)
    return Section(tuple(columns), verdicts)


_FIRST = """\
# Memory budgets: 'kvcalc check' fails where one of them is exceeded. Sizes are for one device.
# Weights and KV cache; activations, CUDA graphs and fragmentation are not in it.

[[budget]]
name = {name}
model = {model}
context = {context}
batch_size = 1
engine = "ideal"        # or the one that you serve with; see 'kvcalc engines'
limit = "{limit}"  # now {total:,} B; or device = "h200"
warn_at = "95%"
"""
_DEFAULT_CONTEXT = 32768


def _init(references: Sequence[str]) -> int:
    """Write a first budgets.toml beside nothing else; an existing one stays as it is."""
    from kvcalc.cli import question
    from kvcalc.errors import InputError, printable
    from kvcalc.footprints import footprint
    from kvcalc.report.files import write_file
    from kvcalc.sources.preset import toml_text
    from kvcalc.units import GiB, MiB, ceil_div, exact_bytes, format_count

    path = Path("budgets.toml")
    if path.exists():
        raise InputError("budgets.toml is there already", hint="edit it, or move it away", location=str(path))
    if len(references) > 1:
        raise InputError("--init writes a budget for one model", hint="kvcalc check --init gemma-3-27b")
    reference = references[0] if references else _model_here()
    model = question.load_with_hints(reference)
    context = min(_DEFAULT_CONTEXT, model.max_context or _DEFAULT_CONTEXT)
    total = footprint(model, context=context).total_bytes
    step = GiB if total > 4 * GiB else 16 * MiB
    limit = ceil_div(total * 11, 10 * step) * step
    text = _FIRST.format(
        name=toml_text(printable(model.name)),
        model=toml_text(reference),
        context=toml_text(format_count(context)),
        limit=exact_bytes(limit),
        total=total,
    )
    write_file(path, [text.encode("utf-8", "backslashreplace")])
    question.say(
        f"wrote {path}: {model.name} at {context:,} tokens; now 'kvcalc check' holds it to {exact_bytes(limit)}"
    )
    return 0


def _model_here() -> str:
    from kvcalc.errors import InputError

    found = [name for name in ("config.json", "model.toml") if Path(name).is_file()]
    found += sorted(str(path) for path in Path().glob("*.gguf"))
    if not found:
        raise InputError("no config.json and no GGUF file here", hint="name a model: kvcalc check --init gemma-3-27b")
    return found[0]
