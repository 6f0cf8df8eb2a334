"""``kvcalc audit LOG``: what an engine printed, held against the prediction."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvcalc.cli import options, question
from kvcalc.errors import InputError
from kvcalc.logs.base import LONGEST_LINE, Compared, Given, LogReport
from kvcalc.logs.reading import bounded_lines
from kvcalc.logs.verdict import Audit, LogAudit, read
from kvcalc.logs.verdict import audit as audit_log
from kvcalc.report.document import Column, Document, Section
from kvcalc.sources.files import remember
from kvcalc.units import parse_count

if TYPE_CHECKING:
    from kvcalc.report.shapes import AuditedRecord, AuditedStart, TermRecord

EXAMPLES = (
    "kvcalc audit server.log\n"
    "journalctl -u vllm | kvcalc audit - --model gemma-3-27b\n"
    "kvcalc audit server.log --start all --format json\n"
    "kvcalc audit llama.log --model gemma-3-12b -E n_ubatch=1024"
)


def audit(
    log: Annotated[
        str,
        typer.Argument(
            metavar="LOG", help="A log of vLLM, llama.cpp, Ollama, SGLang, TensorRT-LLM, MLX-LM; - for stdin."
        ),
    ],
    model: Annotated[
        str | None, options.option("--model", "MODEL", "The model, where the log does not name a preset.")
    ] = None,
    engine: options.OptionalEngineName = None,
    engine_option: options.EngineOptions = None,
    context: options.OptionalContext = None,
    batch_size: options.OptionalBatchSize = None,
    kv_cache_dtype: options.KVCacheDtype = None,
    tensor_parallel_size: options.OptionalTensorParallelSize = None,
    draft: options.Draft = None,
    device: options.Device = None,
    start: Annotated[
        str,
        typer.Option(
            "--start", help="Which starts count: the last of every engine and model (last), all, or a number."
        ),
    ] = "last",
    format: options.CheckFormat = None,  # noqa: A002 - the option's name
    output: options.Output = None,
) -> int:
    """An engine's log against the prediction."""
    target = question.target(format, output)
    wanted = None if start in ("last", "all") else parse_count(start, "--start")
    report = read_log(log)
    if report.cut:
        question.say(f"warning: {report.cut:,} lines were longer than {LONGEST_LINE:,} bytes; their ends were not read")
    engines = [engine] if engine else list(dict.fromkeys(each.engine for each in report.starts if each.engine))
    given = Given(
        engine,
        {},
        context,
        batch_size,
        kv_cache_dtype,
        tensor_parallel_size,
        question.read_draft(draft),
    )
    try:
        found = audit_log(
            report,
            model=None if model is None else question.load_with_hints(model),
            reference=model or "",
            given=given,
            options=dict(question.parse_engines(engines, engine_option)) if engine_option and engines else None,
            device=question.place(None, device),
        )
    except InputError as error:
        raise error.at(log) from None
    shown = _shown(found, start, wanted, log)
    target.write(_document(log, found, shown))
    return 1 if any(each.verdict == "disagrees" for each in shown) else 0


def read_log(log: str) -> LogReport:
    """The starts of a log, a file's or standard input's."""
    if log == "-":
        return read(bounded_lines(sys.stdin.buffer))
    try:
        with Path(log).open("rb") as file:
            remember(file)
            return read(bounded_lines(file))
    except OSError as error:
        raise InputError(f"cannot read the log: {(error.strerror or str(error)).lower()}", location=log) from None


def _shown(found: LogAudit, start: str, wanted: int | None, log: str) -> tuple[Audit, ...]:
    """The starts that count."""
    if wanted is None:
        return found.deciding if start == "last" else tuple(each for each in found.audits if each.rows)
    chosen = tuple(each for each in found.audits if each.start.number == wanted)
    if not chosen:
        numbers = ", ".join(str(each.start.number) for each in found.audits)
        raise InputError(f"the log has no start {wanted} with anything to read", hint=f"it has {numbers}", location=log)
    if not chosen[0].rows:
        raise chosen[0].refusal or InputError(f"start {wanted} printed no figure that could be audited", location=log)
    return chosen


# ---- the answer ----


def _document(log: str, found: LogAudit, shown: tuple[Audit, ...]) -> Document:
    last = shown[-1]
    notes = [note for each in shown for note in _notes(each, alone=len(shown) == 1)]
    notes += [note for audit, note in zip(_aside(found), found.notes, strict=True) if audit not in shown]
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


def _aside(found: LogAudit) -> tuple[Audit, ...]:
    return tuple(each for each in found.audits if each not in found.deciding)


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


def _predicted(row: Compared) -> str:
    return _with_unit(row.predicted, row.unit)


def _signed(row: Compared) -> str:
    if row.verdict != "disagrees" or row.difference is None:
        return ""
    return _with_unit(format(row.difference, "+f"), row.unit)


_COLUMNS = (
    Column("figure", lambda row: row.figure),
    Column("line", lambda row: row.line or None, "count", drop_order=1),
    Column("reported", lambda row: _with_unit(row.reported, row.unit)),
    Column("predicted", _predicted),
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
