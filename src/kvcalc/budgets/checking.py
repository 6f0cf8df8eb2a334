"""From budget files to verdicts: reads the files, finds models and devices, and asks :mod:`kvcalc.budgets.verdict`."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike, fspath
from pathlib import Path
from typing import Literal

from kvcalc.architecture import Architecture
from kvcalc.budgets.file import LocatedBudget, find_budget_file, load_baseline, load_budgets
from kvcalc.budgets.verdict import Subject, Verdict, judge_all
from kvcalc.errors import InputError, KVCalcError, quote, raise_all
from kvcalc.setup import MTP
from kvcalc.sources.files import is_path
from kvcalc.sources.resolve import load


def check(*files: str | PathLike[str], baseline: str | PathLike[str] | None = None) -> list[Verdict]:
    """Judge every budget of the files; without one, those of ``budgets.toml`` or ``pyproject.toml`` here.

    Args:
        files: budget files (TOML).
        baseline: a file that ``kvcalc check --save-baseline`` wrote.

    Raises:
        KVCalcError: every mistake of the files, each with its table and line.

    A test of one's own::

        def test_every_budget_holds():
            assert [verdict.sentence() for verdict in kvcalc.check("budgets.toml") if not verdict.ok] == []
    """
    paths = [_path(file) for file in files] or [find_budget_file(Path())]
    before = None if baseline is None else load_baseline(_path(baseline))
    return judge_all(read_subjects(paths), before)


def read_subjects(paths: Iterable[Path]) -> list[Subject]:
    """The budgets of several files with their models and devices; all their mistakes are raised together.

    Raises:
        KVCalcError: a file, a model or a device that cannot be read, or a name that stands in two files.
    """
    problems: list[KVCalcError] = []
    located: list[LocatedBudget] = []
    for path in paths:
        try:
            located += load_budgets(path)
        except KVCalcError as error:
            problems.append(error)
    taken: dict[str, LocatedBudget] = {}
    for each in located:
        first = taken.setdefault(each.budget.name, each)
        if first is not each:
            message = f"the name {each.budget.name!r} is taken by {first.place}"
            problems.append(InputError(message, location=each.place))
    models: dict[str, Architecture | KVCalcError] = {}
    memories: dict[str, int | KVCalcError] = {}
    subjects = []
    for each in located:
        model, draft = (_known(models, reference) for reference in (each.reference, each.draft))
        memory = None
        if each.budget.device is not None:
            memory = memories.get(each.budget.device)
            if memory is None:
                memory = memories[each.budget.device] = _memory(each.budget.device)
        wrong = [found for found in (model, draft, memory) if isinstance(found, KVCalcError)]
        problems += [error.at(each.place) for error in wrong]
        if (
            isinstance(model, Architecture)
            and not isinstance(draft, KVCalcError)
            and not isinstance(memory, KVCalcError)
        ):
            subjects.append(Subject(each, model, memory, draft))
    raise_all(problems)
    return subjects


def _known(
    models: dict[str, Architecture | KVCalcError], reference: str | None
) -> Architecture | Literal["mtp"] | KVCalcError | None:
    """The model of a reference, read once for all budgets that name it; ``mtp`` and no draft need no reading."""
    if reference is None:
        return None
    if reference == MTP:
        return MTP
    if reference not in models:
        models[reference] = _model(reference)
    return models[reference]


def _path(file: object) -> Path:
    text = fspath(file) if isinstance(file, PathLike) else file
    if not isinstance(text, str) or not is_path(text):
        raise InputError(f"{quote(file)} is no path of a file")
    return Path(text)


def _model(reference: str) -> Architecture | KVCalcError:
    try:
        return load(reference)
    except KVCalcError as error:
        return error


def _memory(device: str) -> int | KVCalcError:
    from kvcalc.sources.devices import load_device

    try:
        return load_device(device).memory_bytes
    except KVCalcError as error:
        return error
