"""Where text from outside becomes printable: once, for every text of a document, before any renderer sees it.

Names, notes and sources come from files that anybody may have written. A terminal obeys escape codes, a CI runner obeys
lines such as ``::error::x``, a spreadsheet obeys cells such as ``=1+1``. Renderers escape their own syntax (Markdown,
XML, CSV); everything that is dangerous whatever the syntax goes here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import cast

from kvcalc.errors import printable
from kvcalc.report.document import Column, Document

#: What a document holds that is no text for people: figures, and the rows that the columns read.
_UNREAD = frozenset({"records", "cases", "extra", "command", "rows", "schema"})


def printable_lines(text: str, line: Callable[[str], str] = printable) -> str:
    r"""A text of several lines without anything that a terminal obeys; its line feeds stay.

    >>> printable_lines("a\r\nb\x1b[31m\rc\u202ed\u2028e")
    'a\nb\\x1b[31m\\rc\\u202ed\\u2028e'
    """
    return "\n".join(map(line, text.replace("\r\n", "\n").split("\n")))


def printable_document(document: Document, line: Callable[[str], str] = printable) -> Document:
    """The document with every text in it printable; what programs read (records, extra, command) stays as it is.

    Cells keep their line feeds; every other text is one line.

    Args:
        line: makes one line printable.
    """

    def changed(value: object) -> object:
        if isinstance(value, str):
            return line(value)
        if isinstance(value, tuple):
            return tuple(map(changed, value))
        if not is_dataclass(value) or isinstance(value, type):
            return value
        read = {field.name: changed(getattr(value, field.name)) for field in fields(value) if field.name not in _UNREAD}
        if isinstance(value, Column):
            read["value"] = partial(_cell, value.value, line)
        return replace(value, **read)

    return cast(Document, changed(document))


def _cell(read: Callable[[object], object], line: Callable[[str], str], row: object) -> object:
    value = read(row)
    return printable_lines(value, line) if isinstance(value, str) else value


_COMMANDS = re.compile(r"##(?=\[)|^\s*(?=::)", re.MULTILINE)


def inert(lines: str) -> str:
    r"""Rendered lines in which a CI runner finds no command: it obeys ``::x`` at a line's start, ``##[x]`` anywhere.

    >>> inert("budget\n  ::error::forged\n##[error]forged")
    'budget\n  \\::error::forged\n##\\[error]forged'
    """
    if "::" not in lines and "##[" not in lines:
        return lines
    return _COMMANDS.sub(r"\g<0>\\", lines)
