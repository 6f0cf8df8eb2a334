"""From budget files to verdicts: reads the files, finds models and devices, and asks :mod:`kvcalc.budgets.verdict`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Literal, TypeVar

from kvcalc.architecture import Architecture
from kvcalc.budgets.baseline import BASELINE_VERSION, Baseline, BaselineFile, load_baseline, record_of
from kvcalc.budgets.file import LocatedBudget, Unreadable, find_files, path_of, read_budgets
from kvcalc.budgets.verdict import Verdict, judge
from kvcalc.device import Device
from kvcalc.errors import InputError, KVCalcError, did_you_mean, quote
from kvcalc.setup import MTP
from kvcalc.sources.devices import load_device
from kvcalc.sources.resolve import load

_T = TypeVar("_T")


def check(
    *files: str | PathLike[str], baseline: str | PathLike[str] | None = None, only: Sequence[str] = ()
) -> list[Verdict]:
    """Judge every budget of the files; without one, those of ``budgets.toml`` or ``pyproject.toml`` here.

    A budget, or a file, that cannot be read or judged has a verdict too: its ``status`` is ``error``, and its ``error``
    says why.

    Args:
        files: budget files (TOML), patterns such as ``b*.toml``, and folders with all ``budgets.toml`` below them.
        baseline: a file that ``kvcalc check --save-baseline`` wrote.
        only: names of budgets, or patterns of names; empty for all.

    Raises:
        KVCalcError: no budgets are there, the baseline is none, or no budget has such a name.

    A test of one's own::

        def test_every_budget_holds():
            assert [verdict.sentence() for verdict in kvcalc.check("budgets.toml") if not verdict.ok] == []
    """
    before = None if baseline is None else load_baseline(path_of(baseline))
    return check_files(find_files(files), before, only)


def check_files(paths: Iterable[Path], baseline: Baseline | None = None, only: Sequence[str] = ()) -> list[Verdict]:
    """A verdict for each budget in the order of the files, then one for each that only the baseline knows.

    Raises:
        InputError: no budget has one of the names.
    """
    read = [each for path in paths for each in read_budgets(path)]
    counts = Counter(each.name for each in read)
    labelled = [(each.name if counts[each.name] == 1 else f"{each.place.file}: {each.name}", each) for each in read]
    known = {label for label, _ in labelled}
    chosen = [(label, each) for label, each in labelled if _is_chosen(each.name, only)]
    for pattern in only:
        if not any(fnmatchcase(each.name, pattern) for each in read):
            hint = did_you_mean(pattern, (each.name for each in read)) or "see 'kvcalc check' without --only"
            raise InputError(f"no budget is named {quote(pattern)}", hint=hint)
    find_model, find_device = _remembered(load), _remembered(load_device)
    verdicts = [_verdict(label, each, baseline, find_model, find_device) for label, each in chosen]
    gone = sorted(name for name in (baseline.records if baseline else ()) if name not in known)
    return verdicts + [Verdict(name, "removed") for name in gone if _is_chosen(name, only)]


def _is_chosen(name: str, only: Sequence[str]) -> bool:
    return not only or any(fnmatchcase(name, pattern) for pattern in only)


def _remembered(find: Callable[[str], _T]) -> Callable[[str], _T]:
    """The same look-up, done once per name; a name that is refused is refused again without looking."""

    @cache
    def found(name: str) -> _T | KVCalcError:
        try:
            return find(name)
        except KVCalcError as error:
            return error

    def answer(name: str) -> _T:
        result = found(name)
        if isinstance(result, KVCalcError):
            raise result
        return result

    return answer


def _verdict(
    name: str,
    each: LocatedBudget | Unreadable,
    baseline: Baseline | None,
    find_model: Callable[[str], Architecture],
    find_device: Callable[[str], Device],
) -> Verdict:
    if isinstance(each, Unreadable):
        return Verdict(name, "error", place=each.place, error=each.error)
    budget = each.budget
    try:
        draft: Architecture | Literal["mtp"] | None = None
        if each.draft is not None:
            draft = MTP if each.draft == MTP else find_model(each.draft)
        device = None if budget.device is None else find_device(budget.device)
        return judge(each, find_model(each.reference), device, draft, baseline=baseline, name=name)
    except KVCalcError as error:
        return Verdict(name, "error", budget=budget, place=each.place, error=error.at(str(each.place)))


def new_baseline(verdicts: Iterable[Verdict]) -> BaselineFile:
    """The baseline that a run leaves behind: what every judged budget takes, sorted by name."""
    records = {
        verdict.name: record_of(verdict.budget.model, verdict.footprint, verdict.budget.parts)
        for verdict in verdicts
        if verdict.budget is not None and verdict.footprint is not None
    }
    return BaselineFile(schema_version=BASELINE_VERSION, budgets=dict(sorted(records.items())))
