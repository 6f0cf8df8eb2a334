"""A budget's verdict as programs read it, and the lines that every format shows below its sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from kvcalc.budgets.baseline import Change
from kvcalc.budgets.verdict import Verdict

if TYPE_CHECKING:
    from kvcalc.report.shapes import BudgetRecord, ChangeRecord, JudgedRecord


def verdict_record(verdict: Verdict, units: Mapping[str, int]) -> BudgetRecord | JudgedRecord:
    """One row of ``kvcalc check --format json``.

    Args:
        units: the units of the sentences; figures are bytes.
    """
    check, place, budget = verdict.check, verdict.place, verdict.budget
    own: BudgetRecord = {
        "name": verdict.name,
        "verdict": verdict.status,
        "sentence": verdict.sentence(units),
        "details": list(verdict_details(verdict, units)),
        "rule": None if check is None else check.rule,
        "used_bytes": None if check is None else check.used_bytes,
        "limit_bytes": None if check is None else check.limit_bytes,
        "headroom_bytes": None if check is None else check.headroom_bytes,
        "headroom": None if check is None else check.headroom,
        "checks": [
            {
                "rule": each.rule,
                "verdict": each.status,
                "used_bytes": each.used_bytes,
                "limit_bytes": each.limit_bytes,
                "headroom_bytes": each.headroom_bytes,
                "terms": each.terms,
                "pool": None if each.pool is None else each.pool.to_dict(),
            }
            for each in verdict.checks
        ],
        "hints": list(verdict.hints),
        "message": verdict.message,
        "error": None if verdict.error is None else str(verdict.error),
        "mix": [{"batch_size": part.batch_size, "context": part.context} for part in budget.mix]
        if budget is not None and budget.mix
        else None,
        "change": None if verdict.change is None else _change_record(verdict.change),
        "file": None if place is None else place.file,
        "line": None if place is None else place.line,
        "table": None if place is None else place.table,
    }
    if verdict.footprint is None or budget is None:
        return own
    return {**own, **verdict.footprint.to_dict(), "reference": budget.model}


def _change_record(change: Change) -> ChangeRecord:
    return {
        "total_bytes": change.total_bytes,
        "parts": change.parts,
        "inputs": [{"input": what, "before": old, "now": new} for what, old, new in change.inputs],
    }


def verdict_details(verdict: Verdict, units: Mapping[str, int]) -> Iterator[str]:
    """The lines below a verdict's sentence: why, what changed, what would fit, what its author says."""
    if verdict.error is not None:
        problems = verdict.error.problems
        for problem in problems:
            if len(problems) > 1:
                yield problem.message
            if problem.location:
                yield f"--> {problem.location}"
            if problem.hint:
                yield f"hint: {problem.hint}"
    if verdict.change is not None:
        yield verdict.change.sentence(units)
    if verdict.terms and verdict.status in ("fail", "warn"):
        yield f"the limit: {verdict.terms}"
    if verdict.check is not None and verdict.check.not_modelled:
        yield f"working memory is not in the limit: {verdict.check.not_modelled}"
    if verdict.hints:
        yield f"hint: would fit: {'; or '.join(verdict.hints)}"
    for advice in verdict.advice:
        yield f"hint: {advice}"
    if verdict.message:
        yield verdict.message
