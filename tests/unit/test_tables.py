"""Tables on narrow screens, and as Markdown."""

import pytest

from kvcalc.derivation import Quantity
from kvcalc.report import markdown, table
from kvcalc.report.document import Column, Derivation, Document, Section
from kvcalc.report.table import Screen

ROWS = (("gemma-3-27b", 2**30, (2**29, 2**29)), ("total", 2**31, ()))
NAME = Column("model", lambda row: row[0])
SIZE = Column("memory", lambda row: row[1], "bytes")
BARS = Column("share", lambda row: row[2], "bars", drop_order=1, legend=("weights", "KV cache"))


def document_of(section, **fields):
    return Document("a title", (), (section,), (), "show", **fields)


def text(document, **screen):
    return "".join(table.render(document, Screen(**screen)))


def test_a_narrowing_screen_first_breaks_the_headers_then_drops_columns_then_lists_the_rows():
    document = document_of(Section((NAME, SIZE, BARS), ROWS))
    wide = len(max(text(document).splitlines(), key=len))
    layouts = [text(document, width=width) for width in range(wide, 4, -1)]
    assert all("1.0" in "".join(shown.split()) for shown in layouts)  # no number is ever lost
    assert "memory (GiB)" in layouts[0]
    assert any("memory" in shown and "memory (GiB)" not in shown and "█" in shown for shown in layouts)
    dropped = next(shown for shown in layouts if "█" not in shown)
    assert "KV cache" not in dropped and "gemma-3-27b" in dropped  # nor is a legend left without its bars
    listed = text(document, width=12)  # too narrow for "gemma-3-27b" beside a size
    assert "model:" in listed and "memory" in listed and "█" not in listed


def test_bars_alone_in_markdown_say_what_their_marks_mean():
    shown = "".join(markdown.render(document_of(Section((NAME, BARS), ROWS, totals=frozenset({1})))))
    assert "| share (█ weights, ▒ KV cache) |" in shown
    assert f"| gemma-3-27b | {'█' * 10}{'▒' * 10} |" in shown
    assert "| **total** |  |" in shown  # an empty cell is not made bold


def test_markdown_has_titles_notes_and_derivations():
    derivation = Derivation("KV cache", (Quantity("T", "context", "8", 8, "tokens"),), ("a report",), ("activations",))
    section = Section((NAME,), ROWS, title="by *model*")
    shown = "".join(markdown.render(document_of(section, derivations=(derivation,), notes=("a | b",))))
    assert "\n#### by \\*model\\*\n" in shown
    assert "\n#### KV cache\n\n```text\n" in shown and "source: a report\nnot included: activations\n```\n" in shown
    assert shown.endswith("\n- a \\| b\n")


@pytest.mark.parametrize("legend", [(), ("weights",)])
def test_a_legend_is_shown_where_there_is_one(legend):
    column = Column("share", lambda row: row[2], "bars", legend=legend)
    document = document_of(Section((NAME, column), ROWS))
    assert ("weights" in "".join(markdown.render(document))) == bool(legend)
    assert ("weights" in text(document)) == bool(legend)
