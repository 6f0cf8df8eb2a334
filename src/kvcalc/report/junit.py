"""JUnit's XML: a case for each budget, or each start of a log, the passing ones too.

Readers differ in what they take (the Ant and the xUnit schemas of Jenkins, GitLab, GitHub's reporters), so nothing
stands here but what all of them know: no counts on the root, no place as an attribute of a case. The place is the last
line of a failure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from kvcalc.report.document import Document
from kvcalc.report.text import printable_lines


def render(document: Document) -> Iterator[str]:
    """One suite: what fails is a failure, what nobody can judge an error, what was removed or not checked skipped."""
    records = list(document.cases or document.records)
    verdicts = [record["verdict"] for record in records]
    counts = {
        "tests": len(records),
        "failures": verdicts.count("fail"),
        "errors": verdicts.count("error"),
        "skipped": verdicts.count("removed") + verdicts.count("not checked"),
    }
    listed = " ".join(f'{name}="{count}"' for name, count in counts.items())
    yield '<?xml version="1.0" encoding="UTF-8"?>\n'
    yield f'<testsuites>\n <testsuite name="kvcalc {document.schema}" {listed} time="0">\n'
    for record in records:
        yield from _case(record)
    remarks = "\n".join([document.title, "; ".join(document.assumptions), *document.notes])
    yield f"  <system-out>{_text(remarks)}</system-out>\n </testsuite>\n</testsuites>\n"


def _case(record: Mapping[str, Any]) -> Iterator[str]:
    file, line = record["file"] or "baseline", record["line"]
    yield f'  <testcase classname={_quoted(file)} name={_quoted(record["name"])} time="0">\n'
    sentence, details = record["sentence"], list(record["details"])
    place = f"{file}:{line}" if line else file
    match record["verdict"]:
        case "fail" | "error" as verdict:
            element, kind = ("failure", record["rule"]) if verdict == "fail" else ("error", "not judged")
            text = _text("\n".join([*details, place]))
            yield f"   <{element} type={_quoted(kind)} message={_quoted(sentence)}>{text}</{element}>\n"
        case "removed" | "not checked":
            yield f"   <skipped message={_quoted(sentence)}/>\n"
        case verdict:
            word = "warning: " if verdict == "warn" else ""
            yield f"   <system-out>{_text(chr(10).join([f'{word}{sentence}', *details]))}</system-out>\n"
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
