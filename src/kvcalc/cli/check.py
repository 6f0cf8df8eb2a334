"""``kvcalc check [FILE...]``: memory budgets in CI."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from kvcalc.cli import options

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
    from kvcalc.budgets.baseline import load_baseline
    from kvcalc.budgets.checking import check_files
    from kvcalc.budgets.file import find_files
    from kvcalc.cli import check_files as written
    from kvcalc.cli import check_tables, question
    from kvcalc.errors import joined
    from kvcalc.report.files import check_outputs

    target = question.target(format, output)
    if init:
        return written.first_budgets(files or [])
    before = None if baseline is None else load_baseline(Path(baseline))
    paths = find_files(files or [])
    verdicts = check_files(paths, before, only or [])
    models = (verdict.footprint.architecture for verdict in verdicts if verdict.footprint is not None)
    for hint in dict.fromkeys(hint for model in models for hint in model.provenance.hints):
        question.say(f"hint: {hint}")
    document = check_tables.document(verdicts, units, paths)
    if explain:
        document = replace(
            document, derivations=tuple(step for each in verdicts for step in check_tables.derivations(each))
        )
    saved = None if save_baseline is None else Path(save_baseline)
    renewed = saved is not None and baseline is not None and saved.resolve() == Path(baseline).resolve()
    check_outputs(target.path, None if renewed else saved)
    target.write(document)
    errors = [verdict.error for verdict in verdicts if verdict.error is not None]
    if saved is not None:
        written.save_baseline(saved, verdicts, bool(only))
    if errors:
        raise joined(errors)
    return 1 if not exit_zero and any(not verdict.ok for verdict in verdicts) else 0
