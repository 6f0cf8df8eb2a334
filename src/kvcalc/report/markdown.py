"""Markdown tables, for a pull request or a job summary."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kvcalc.derivation import evaluate
from kvcalc.report.cells import MARKS, bars, column_cells
from kvcalc.report.document import Column, Derivation, Document, Section, Units
from kvcalc.report.table import derivation_lines

_BAR_WIDTH = 20


def render(document: Document) -> Iterator[str]:
    """The document with one table a section."""
    yield f"### {_escaped(document.title)}\n"
    if document.assumptions:
        yield f"\n{_paragraph(' · '.join(document.assumptions))}\n"
    for section in document.sections:
        if section.title:
            yield f"\n#### {_escaped(section.title)}\n"
        yield "\n"
        yield from _table(section, document.units)
    for derivation in document.derivations:
        yield f"\n#### {_escaped(derivation.title)}\n\n{_fenced(derivation)}"
    if document.notes:
        yield "\n" + "".join(f"- {_paragraph(note)}\n" for note in document.notes)


def _table(section: Section, units: Units) -> Iterator[str]:
    pairs = [_column(column, section, units) for column in section.columns]
    yield "| " + " | ".join(_escaped(header) for header, _ in pairs) + " |\n"
    rules = ("---:" if column.right_aligned else "---" for column in section.columns)
    yield "| " + " | ".join(rules) + " |\n"
    for number in range(len(section.rows)):
        cells = (_escaped(cells[number]) for _, cells in pairs)
        if number in section.totals:
            cells = (f"**{cell}**" if cell else cell for cell in cells)
        yield "| " + " | ".join(cells) + " |\n"


def _column(column: Column, section: Section, units: Units) -> tuple[str, list[str]]:
    if column.kind != "bars":
        return column_cells(column, section, units)
    legend = ", ".join(f"{mark} {meaning}" for mark, meaning in zip(MARKS, column.legend, strict=False))
    return f"{column.title} ({legend})" if legend else column.title, bars(column, section, _BAR_WIDTH)


def _fenced(derivation: Derivation) -> str:
    """The steps as a block of plain text, in a fence that is longer than any inside it."""
    lines = [
        *derivation_lines(derivation.steps, evaluate(derivation.steps)),
        *(f"source: {source}" for source in derivation.sources),
        *(f"not included: {excluded}" for excluded in derivation.excluded),
    ]
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}text", *lines, f"{fence}\n"])


_MENTION = re.compile(r"(?<!\w)@(?=\w)|(?<=\w)@(?=[\w.-]*\w\.\w)")


def _escaped(text: str) -> str:
    r"""A text that Markdown, and what GitHub adds to it, shows as it is: no markup, entity, link or mention.

    >>> print(_escaped("a|b_c &lt; ~d https://e.org www.e.org @f g@h.i gemma-2-2b@global"))
    a\|b\_c \&lt; \~d https:\//e.org www\.e.org @&#8203;f g@&#8203;h.i gemma-2-2b@global
    """
    text = re.sub(r"[\\|*_<`\[&~$]", r"\\\g<0>", " ".join(text.split("\n")))
    text = re.sub(r"(?i:\bwww)(?=\.)", r"\g<0>\\", text.replace("://", r":\//"))
    return _MENTION.sub("@&#8203;", text)


def _paragraph(text: str) -> str:
    r"""The same where a line begins with it: no heading, quotation, list or rule either.

    >>> print(_paragraph("# a"), _paragraph("1. b"), _paragraph("-5"))
    \# a 1\. b \-5
    """
    return re.sub(r"^[#>+=-]|^\d{1,9}(?=[.)])", _opened, _escaped(text.strip()))


def _opened(match: re.Match[str]) -> str:
    return f"{match[0]}\\" if match[0].isdigit() else f"\\{match[0]}"
