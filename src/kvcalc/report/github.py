"""GitHub's workflow commands: annotations on the lines of the budgets, or figures of a log, that fail.

GitHub shows ten annotations of a kind a step, so ten at most are written, the worst first. A path counts from the
repository, wherever the step runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kvcalc.report.document import Document
from kvcalc.report.text import printable_lines

_MOST = 10
_COUNTED = {"check": "budget", "audit": "start"}
_LEVELS = {"error": "error", "fail": "error", "warn": "warning"}


def render(document: Document) -> Iterator[str]:
    """The annotations, a notice of what a reader must know, then one line of plain text with the counts."""
    records = list(document.cases or document.records)
    noted = sorted((record for record in records if record["verdict"] in _LEVELS), key=_how_bad)
    for record in noted[:_MOST]:
        yield _annotation(record)
    if noted or document.notes:
        yield f"::notice title=kvcalc::{_data(chr(10).join(['; '.join(document.assumptions), *document.notes]))}\n"
    verdicts = [record["verdict"] for record in records]
    counts = f"{verdicts.count('fail')} failed, {verdicts.count('warn')} with a warning"
    not_judged = f", {verdicts.count('error')} not judged" if "error" in verdicts else ""
    left_out = f"; {len(noted) - _MOST} more have no annotation" if len(noted) > _MOST else ""
    counted = f"{len(records)} {_COUNTED[document.schema]}{'' if len(records) == 1 else 's'}"
    yield f"kvcalc {document.schema}: {counted}, {counts}{not_judged}{left_out}\n"


def _how_bad(record: Mapping[str, Any]) -> tuple[int, float]:
    headroom = record["headroom"]
    return list(_LEVELS).index(record["verdict"]), -1.0 if headroom is None else headroom


def _annotation(record: Mapping[str, Any]) -> str:
    file = None if record["file"] is None else _in_repository(record["file"])
    properties = {"file": file, "line": record["line"], "title": f"kvcalc: {record['name']}"}
    listed = ",".join(f"{key}={_property(str(value))}" for key, value in properties.items() if value is not None)
    text = "\n".join([record["sentence"], *record["details"]])
    return f"::{_LEVELS[record['verdict']]} {listed}::{_data(text)}\n"


def _in_repository(file: str) -> str:
    workspace = os.environ.get("GITHUB_WORKSPACE")
    if not workspace:
        return file
    path = Path(file).resolve()
    return path.relative_to(workspace).as_posix() if path.is_relative_to(workspace) else file


def _data(text: str) -> str:
    """A message as a workflow command holds it; the percent sign first, because the others bring more of them.

    >>> _data("over by 3.0 %\\nhint")
    'over by 3.0 %25%0Ahint'
    """
    return printable_lines(text).replace("%", "%25").replace("\n", "%0A")


def _property(text: str) -> str:
    """A property: a colon and a comma would end it.

    >>> _property("a:b,c")
    'a%3Ab%2Cc'
    """
    return _data(text).replace(":", "%3A").replace(",", "%2C")
