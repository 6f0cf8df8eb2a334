"""``kvcalc check [FILE...]``: memory budgets in CI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from kvcalc.cli import options

EXAMPLES = (
    "kvcalc check\n"
    "kvcalc check budgets.toml --format github\n"
    "kvcalc check --baseline baseline.json --save-baseline baseline.json\n"
    "kvcalc check --init gemma-3-27b"
)


def check(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="Budget files. Default: budgets.toml, or pyproject.toml, here."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", metavar="FILE", help="Compare with a baseline; limits stay limits.")
    ] = None,
    save_baseline: Annotated[
        str | None, typer.Option("--save-baseline", metavar="FILE", help="Write what the budgets take now.")
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
    from kvcalc.budgets import checking
    from kvcalc.budgets import verdict as budget
    from kvcalc.budgets.file import find_budget_file, load_baseline
    from kvcalc.cli import question
    from kvcalc.report.files import check_outputs, write_file

    target = question.target(format, output)
    if init:
        return _init(files or [])
    before = None if baseline is None else load_baseline(Path(baseline))
    paths = [Path(file) for file in files or []] or [find_budget_file(Path())]
    subjects = checking.read_subjects(paths)
    for hint in dict.fromkeys(hint for each in subjects for hint in each.architecture.provenance.hints):
        question.say(f"hint: {hint}")
    verdicts = budget.judge_all(subjects, before)
    document = _document(verdicts, units, paths)
    if explain:
        made = ((verdict.name, verdict.footprint) for verdict in verdicts if verdict.footprint is not None)
        steps = (question.footprint_derivation(each, f"KV cache of {name}, step by step") for name, each in made)
        document = replace(document, derivations=tuple(steps))
    saved = None if save_baseline is None else Path(save_baseline)
    renewed = saved is not None and baseline is not None and saved.resolve() == Path(baseline).resolve()
    check_outputs(target.path, None if renewed else saved)
    target.write(document)
    if saved is not None:
        import json

        text = json.dumps(budget.baseline(verdicts), indent=1, allow_nan=False) + "\n"
        write_file(saved, [text.encode()])
    return 1 if not exit_zero and any(not verdict.ok for verdict in verdicts) else 0


def _document(verdicts: Sequence[Any], units: Any, paths: Sequence[Path]) -> Any:
    from kvcalc.report.document import Document
    from kvcalc.units import BINARY_UNITS, DECIMAL_UNITS

    table = {"binary": BINARY_UNITS, "decimal": DECIMAL_UNITS, "bytes": {"B": 1}}[units]
    counts = {status: sum(verdict.status == status for verdict in verdicts) for status in ("fail", "warn", "removed")}
    judged = len(verdicts) - counts["removed"]
    holding = judged - counts["fail"]
    words = [f"{holding} of {judged} budgets hold"]
    words += [f"{count} {word}" for word, count in (("with a warning", counts["warn"]),) if count]
    sections = [_overview(verdicts)]
    quiet = ("pass", "added")
    spoken = [each for each in verdicts if each.status not in quiet or (each.change and each.change.is_one)]
    if spoken:
        sections.insert(0, _sentences(spoken, table))
    notes = [note for verdict in verdicts if verdict.footprint is not None for note in verdict.footprint.notes]
    notes += [f"the limit of {check.terms}" for verdict in verdicts for check in verdict.checks if check.terms]
    if counts["fail"]:
        notes.append(f"the limits stand in {', '.join(map(str, paths))}")
    return Document(
        title=", ".join(words),
        assumptions=("bytes of one device", "without activations, CUDA graphs and fragmentation"),
        sections=tuple(sections),
        records=[_record(verdict, table) for verdict in verdicts],
        schema="check",
        notes=tuple(dict.fromkeys(notes)),
        units=units,
    )


def _details(verdict: Any, units: Mapping[str, int]) -> Iterator[str]:
    """The lines below a verdict's sentence: what changed, what would fit, what its author says."""
    if verdict.change is not None:
        yield verdict.change.sentence(units)
    if verdict.hints:
        yield f"hint: would fit: {'; or '.join(verdict.hints)}"
    if verdict.message:
        yield verdict.message


def _sentences(verdicts: Sequence[Any], units: Mapping[str, int]) -> Any:
    from kvcalc.report.document import Column, Section

    rows = []
    for verdict in sorted(
        verdicts, key=lambda verdict: ("fail", "warn").index(verdict.status) if not verdict.ok else 2
    ):
        rows.append((verdict.status, verdict.sentence(units)))
        rows += [("", line) for line in _details(verdict, units)]
    columns = (Column("verdict", lambda row: row[0], "verdict"), Column("in words", lambda row: row[1]))
    return Section(columns, rows)


def _overview(verdicts: Sequence[Any]) -> Any:
    from kvcalc.report.document import Column, Section

    def of_check(name: str) -> Any:
        return lambda verdict: None if verdict.check is None else getattr(verdict.check, name)

    def of_footprint(value: Any) -> Any:
        return lambda verdict: None if verdict.footprint is None else value(verdict.footprint)

    columns = [
        Column("verdict", lambda verdict: verdict.status, "verdict"),
        Column("budget", lambda verdict: verdict.name),
        Column("model", lambda verdict: verdict.located and verdict.located.budget.model, drop_order=2),
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


def _record(verdict: Any, units: Mapping[str, int]) -> dict[str, Any]:
    from kvcalc.report.records import footprint_record

    check, located, change = verdict.check, verdict.located, verdict.change
    own = {
        "name": verdict.name,
        "verdict": verdict.status,
        "sentence": verdict.sentence(units),
        "details": list(_details(verdict, units)),
        "rule": check and check.rule,
        "used_bytes": check and check.used_bytes,
        "limit_bytes": check and check.limit_bytes,
        "headroom_bytes": check and check.headroom_bytes,
        "headroom": check and check.headroom,
        "checks": [
            {
                "rule": each.rule,
                "verdict": each.status,
                "used_bytes": each.used_bytes,
                "limit_bytes": each.limit_bytes,
                "headroom_bytes": each.headroom_bytes,
            }
            for each in verdict.checks
        ],
        "hints": list(verdict.hints),
        "message": verdict.message,
        "change": change
        and {
            "total_bytes": change.total_bytes,
            "parts": change.parts,
            "inputs": [{"input": what, "before": old, "now": new} for what, old, new in change.inputs],
        },
        "file": located and located.file,
        "line": located and located.line,
        "table": located and located.table,
    }
    if located is None:
        return own
    return {**own, **footprint_record(located.budget.model, verdict.footprint)}


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
