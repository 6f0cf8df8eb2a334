"""The output formats by name. A format is its module here (``render`` takes a document) and its line in ``FORMATS``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, TextIO

from kvcalc.errors import InputError
from kvcalc.report.document import Document
from kvcalc.report.text import inert, printable_document

if TYPE_CHECKING:
    from kvcalc.report.table import Screen


@dataclass(frozen=True)
class Format:
    """One output format.

    Attributes:
        suffixes: how its files end.
        reads: what it shows of a document: the sections for people, or the records for programs.
        only_for: the schemas of the documents that it can show; empty for all.
    """

    suffixes: tuple[str, ...]
    reads: str
    only_for: frozenset[str] = frozenset()


_VERDICTS = frozenset({"check", "audit"})
FORMATS = {
    "table": Format((".txt",), "sections"),
    "wide": Format((), "sections"),
    "json": Format((".json",), "records"),
    "csv": Format((".csv",), "records"),
    "markdown": Format((".md",), "sections"),
    "html": Format((".html", ".htm"), "sections"),
    "junit": Format((".xml",), "records", _VERDICTS),
    "github": Format((), "records", _VERDICTS),
}


#: How the files of pictures end.
PICTURES = (".svg", ".png", ".pdf")


def format_names(schema: str) -> tuple[str, ...]:
    """The formats of a command's answers, by the schema of its documents.

    >>> format_names("show")
    ('table', 'wide', 'json', 'csv', 'markdown', 'html')
    """
    return tuple(name for name, each in FORMATS.items() if not each.only_for or schema in each.only_for)


def format_of_file(name: str) -> str | None:
    """The format that a file's suffix names, or None.

    >>> format_of_file("report.html"), format_of_file("report")
    ('html', None)
    """
    lowered = name.lower()
    return next((format_name for format_name, each in FORMATS.items() if lowered.endswith(each.suffixes)), None)


def render(document: Document, format_name: str, *, to_file: bool = False) -> Iterator[str]:
    """The document in one of the formats; every text in it is printable.

    Raises:
        InputError: it does not show such a document.
    """
    known = format_names(document.schema)
    if format_name not in known:
        commands = " and ".join(f"'kvcalc {name}'" for name in sorted(FORMATS[format_name].only_for))
        raise InputError(f"{format_name} is a format of {commands} alone", hint=f"known: {', '.join(known)}")
    safe = printable_document(document)
    if format_name == "github":  # the one format that is made of commands
        from kvcalc.report import github

        return github.render(safe)
    if format_name in ("table", "wide"):
        from kvcalc.report import table

        shown_on = table.Screen() if to_file else screen()
        if format_name == "wide":
            shown_on = replace(shown_on, width=table.WIDEST)
        return map(inert, table.render(safe, shown_on))
    pieces: Iterator[str] = import_module(f"kvcalc.report.{format_name}").render(safe)
    return map(inert, pieces)


def screen(stream: TextIO | None = None) -> Screen:
    """What a stream (standard output) is: a terminal with its width and colours, or a pipe."""
    from kvcalc.report.table import PIPE_WIDTH, Screen

    stream = stream or sys.stdout
    environment, terminal = os.environ, stream.isatty()
    columns = environment.get("COLUMNS", "")
    width = int(columns) if columns.isdecimal() and 0 < int(columns) < 10_000 else None
    if width is None and terminal:
        width = os.get_terminal_size(stream.fileno()).columns or 80
    forced = environment.get("FORCE_COLOR", "0") not in ("", "0") or environment.get("CLICOLOR_FORCE", "0") != "0"
    plain = environment.get("NO_COLOR") or environment.get("TERM") == "dumb"
    return Screen(width or PIPE_WIDTH, width if terminal else None, (terminal or forced) and not plain)
