"""The tables of ``kvcalc check``: every budget in a row, and what is to say of those that do not simply hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from kvcalc.budgets.verdict import Verdict
from kvcalc.cli import question
from kvcalc.footprints import Footprint, footprint_of
from kvcalc.report.cells import UNIT_TABLES
from kvcalc.report.document import Column, Derivation, Document, Section, Units
from kvcalc.report.verdicts import verdict_details, verdict_record

#: Notes that are shown; budgets of many models have many.
_MOST_NOTES = 20


def document(verdicts: Sequence[Verdict], units: Units, paths: Sequence[Path]) -> Document:
    """How many budgets hold, and each of them."""
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
    noted = question.notes((each.name, each.footprint) for each in verdicts if each.footprint is not None)
    for each in verdicts:
        if each.ok and each.check is not None and each.check.not_modelled:
            noted.append(f"{each.name}: working memory is not in the limit: {each.check.not_modelled}")
    notes = noted[:_MOST_NOTES]
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
    rows: list[tuple[str, str]] = []
    for verdict in sorted(verdicts, key=lambda each: _ORDER.index(each.status) if each.status in _ORDER else 3):
        rows.append((verdict.status, verdict.sentence(units)))
        rows += [("", line) for line in verdict_details(verdict, units)]
    columns = (Column("verdict", lambda row: row[0], "verdict"), Column("in words", lambda row: row[1]))
    return Section(columns, rows)


def _overview(verdicts: Sequence[Verdict]) -> Section:
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


def derivations(verdict: Verdict) -> Iterator[Derivation]:
    """The cache of a budget step by step; of a mix, that of each part alone."""
    if verdict.budget is None or verdict.footprint is None:
        return
    parts = verdict.budget.parts
    for part in parts:
        title = f"KV cache of {verdict.name}{f', {part} alone' if len(parts) > 1 else ''}, step by step"
        yield question.derivation(footprint_of(verdict.footprint.setup, part.context, part.batch_size), title)
