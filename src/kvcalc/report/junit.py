"""JUnit's XML: a case for each budget, or each start of a log, the passing ones too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from kvcalc.report.document import Document
from kvcalc.report.text import printable_lines


def render(document: Document) -> Iterator[str]:
    """One suite; a failed budget is a failure, one that only the baseline knows, or that nothing checks, is skipped."""
    records = list(document.cases or document.records)
    failed = sum(record["verdict"] == "fail" for record in records)
    skipped = sum(record["verdict"] in ("removed", "not checked") for record in records)
    counts = f'tests="{len(records)}" failures="{failed}" errors="0" skipped="{skipped}"'
    yield '<?xml version="1.0" encoding="UTF-8"?>\n'
    yield f'<testsuites name="kvcalc" {counts}>\n <testsuite name="kvcalc {document.schema}" {counts} time="0">\n'
    for record in records:
        yield from _case(record)
    yield " </testsuite>\n</testsuites>\n"


def _case(record: Mapping[str, Any]) -> Iterator[str]:
    file, line = record["file"] or "baseline", record["line"]
    place = f" file={_quoted(file)}" + (f' line="{line}"' if line else "")
    yield f'  <testcase classname={_quoted(file)} name={_quoted(record["name"])}{place} time="0">\n'
    sentence, details = record["sentence"], "\n".join(record["details"])
    match record["verdict"]:
        case "fail":
            yield f'   <failure type="{record["rule"]}" message={_quoted(sentence)}>{_text(details)}</failure>\n'
        case "removed" | "not checked":
            yield f"   <skipped message={_quoted(sentence)}/>\n"
        case verdict:
            word = "warning: " if verdict == "warn" else ""
            lines = "\n".join([f"{word}{sentence}", *record["details"]])
            yield f"   <system-out>{_text(lines)}</system-out>\n"
    yield "  </testcase>\n"


def _text(text: str) -> str:
    """Text as XML may hold it; a character that it may not is shown as ``\\x1b``.

    >>> _text("a < b\\x1b")
    'a &lt; b\\\\x1b'
    """
    return escape(printable_lines(text), quote=False)


def _quoted(text: str) -> str:
    # A line break in an attribute is read back as a blank unless it is written as a reference.
    return '"' + _text(text).replace('"', "&quot;").replace("\n", "&#10;") + '"'
