"""The tables of ``kvcalc audit`` and the records of its JSON: each start of a log beside its prediction."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kvcalc.logs.base import Compared
from kvcalc.logs.verdict import Audit, LogAudit
from kvcalc.report.document import Column, Document, Section

if TYPE_CHECKING:
    from kvcalc.report.shapes import AuditedRecord, AuditedStart, TermRecord


def document(log: str, found: LogAudit, shown: tuple[Audit, ...]) -> Document:
    """The starts that count, with their figures, and what all starts of the log came to."""
    last = shown[-1]
    notes = [note for each in shown for note in _notes(each, alone=len(shown) == 1)]
    aside = (each for each in found.audits if each not in found.deciding)
    notes += [note for audit, note in zip(aside, found.notes, strict=True) if audit not in shown]
    if len(shown) == 1:
        title, assumptions = f"{last.reference}: {_verdict(last)}", _assumptions(last)
    else:
        wrong = sum(each.verdict == "disagrees" for each in shown)
        title = f"{Path(log).name}: {wrong or 'none'} of {len(shown)} starts {'disagrees' if wrong < 2 else 'disagree'}"
        assumptions = ()
    return Document(
        title=title,
        assumptions=assumptions,
        sections=tuple(section for each in shown for section in _sections(each, alone=len(shown) == 1)),
        records=[record for each in shown for record in _records(each)],
        schema="audit",
        extra={
            "reference": last.reference,
            "agrees": all(each.verdict != "disagrees" for each in shown),
            "reason": last.reason,
            "starts": [_start_record(each, each in shown) for each in found.audits],
            "notes": notes,
        },
        notes=tuple(notes),
        cases=[_case(log, each) for each in shown],
    )


def _verdict(found: Audit) -> str:
    """The verdict on one start in words."""
    checked = [row for row in found.rows if row.verdict != "not checked"]
    left = len(found.rows) - len(checked)
    more = f", {left} not checked" if left else ""
    if not checked:
        return f"nothing could be checked, {left} figures were read"
    wrong = sum(row.verdict == "disagrees" for row in checked)
    if wrong:
        return f"{wrong} of {len(checked)} figures disagree{more}"
    return f"{len(checked)} of {len(checked)} figures agree to the printed digit{more}"


def _assumptions(found: Audit) -> tuple[str, ...]:
    asked = found.question
    if asked is None:
        return ()
    stated = "".join(f" {key}={str(value).lower()}" for key, value in asked.options.items())
    lines = [found.layout, f"engine {asked.engine}{stated}", f"context {asked.context:,} tokens"]
    if asked.batch_size > 1:
        lines.append(f"batch size {asked.batch_size:,}")
    if asked.kv_cache_dtype:
        lines.append(f"K and V {asked.kv_cache_dtype}")
    if asked.tensor_parallel_size > 1:
        lines.append(f"tensor parallel {asked.tensor_parallel_size}")
    return tuple(lines)


def _notes(found: Audit, *, alone: bool) -> Iterator[str]:
    where = "" if alone else f"start {found.start.number}: "
    if found.verdict == "disagrees":
        reason = f"likeliest reason: {found.reason}" if found.reason else "no single flag or version explains it"
        yield where + reason
        if found.difference:
            yield f"{where}the difference is {found.difference}"
    yield from (where + note for note in found.notes)


def _with_unit(printed: str, unit: str) -> str:
    number = f"{int(printed):,}" if printed.isdecimal() else printed
    return f"{number} {unit}" if unit and printed not in ("none", "") else number


def _signed(row: Compared) -> str:
    if row.verdict != "disagrees" or row.difference is None:
        return ""
    return _with_unit(format(row.difference, "+f"), row.unit)


_COLUMNS = (
    Column("figure", lambda row: row.figure),
    Column("line", lambda row: row.line or None, "count", drop_order=1),
    Column("reported", lambda row: _with_unit(row.reported, row.unit)),
    Column("predicted", lambda row: _with_unit(row.predicted, row.unit)),
    Column("difference", _signed),
    Column("verdict", lambda row: row.verdict, "verdict"),
)
_TERM_COLUMNS = (
    Column("also printed", lambda term: term.name),
    Column("line", lambda term: term.line, "count", drop_order=1),
    Column("reported", lambda term: _with_unit(term.printed, term.unit)),
)


_DEVICE_COLUMNS = (
    Column("term", lambda term: term.words),
    Column("reported", lambda term: term.reported_bytes, "bytes"),
    Column("predicted", lambda term: term.predicted_bytes, "bytes"),
    Column("difference", lambda term: term.difference, "bytes"),
)


def _sections(found: Audit, *, alone: bool) -> Iterator[Section]:
    start = found.start
    title = "" if alone else f"Start {start.number}, line {start.line:,}: {found.reference}, {_verdict(found)}"
    yield Section(_COLUMNS, found.rows, title)
    if found.terms:
        yield Section(_DEVICE_COLUMNS, found.terms, "The device's other terms, beside their formulas")
    elif start.terms:
        yield Section(_TERM_COLUMNS, tuple(start.terms.values()), "Other memory, not part of the cache")


def _records(found: Audit) -> Iterator[AuditedRecord]:
    for row in found.rows:
        yield {
            "start": found.start.number,
            "figure": row.figure,
            "line": row.line or None,
            "reported": row.reported,
            "predicted": row.predicted or None,
            "unit": row.unit,
            "difference": None if row.difference is None else str(row.difference),
            "verdict": row.verdict,
        }


#: A verdict here, and in the words of a test report.
_REPORTED = {"agrees": "pass", "disagrees": "fail", "not checked": "not checked"}


def _case(log: str, found: Audit) -> dict[str, object]:
    """A start as a case of a test report; its place is the first figure that disagrees."""
    start = found.start
    wrong = [row for row in found.rows if row.verdict == "disagrees"]
    return {
        "name": f"start {start.number}: {found.reference} in {start.engine}",
        "file": log,
        "line": next((row.line for row in wrong if row.line), start.line or None),
        "verdict": _REPORTED[found.verdict],
        "sentence": f"{found.reference}: {_verdict(found)}",
        "details": [
            *(
                f"{row.figure}: {_with_unit(row.reported, row.unit)} for {_with_unit(row.predicted, row.unit)}"
                for row in wrong
            ),
            *_notes(found, alone=True),
        ],
        "rule": "figures",
        "headroom": None,
    }


def _start_record(found: Audit, shown: bool) -> AuditedStart:
    start = found.start
    terms: list[TermRecord] = [
        {"name": term.name, "reported": term.printed, "unit": term.unit, "line": term.line}
        for term in start.terms.values()
    ]
    return {
        "number": start.number,
        "line": start.line or None,
        "engine": start.engine,
        "version": start.stated.get("version"),
        "reference": found.reference,
        "verdict": found.verdict,
        "counts": shown,
        "reason": found.reason,
        "difference": found.difference,
        "terms": terms,
        "device_terms": [
            {"name": term.name, "reported_bytes": term.reported_bytes, "predicted_bytes": term.predicted_bytes}
            for term in found.terms
        ],
        "notes": list(found.notes),
    }
