"""Tables on narrow screens, and as Markdown."""

import re

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


def test_a_narrowing_screen_shortens_bars_then_folds_titles_then_drops_columns_then_lists_the_rows():
    document = document_of(Section((NAME, SIZE, BARS), ROWS))
    wide = len(max(text(document, width=500).splitlines(), key=len))
    layouts = [text(document, width=width) for width in range(wide, 4, -1)]
    assert all("1.0" in "".join(shown.split()) for shown in layouts)  # no number is ever lost
    assert "memory (GiB)" in layouts[0] and "█" * 15 in layouts[0]
    assert any("memory (GiB)" in shown and "█" in shown and "█" * 15 not in shown for shown in layouts)
    assert any("memory" in shown and "memory (GiB)" not in shown and "█" in shown for shown in layouts)
    dropped = next(shown for shown in layouts if "█" not in shown)
    assert "KV cache" not in dropped and "gemma-3-27b" in dropped  # nor is a legend left without its bars
    assert "not shown in 34 columns: share\n  (--wide shows all)" in dropped
    assert "█" in text(document, width=35)
    listed = text(document, width=12)  # too narrow for "gemma-3-27b" beside a size
    assert "model:" in listed and "memory" in listed and "█" not in listed and "not shown" not in listed


@pytest.mark.parametrize("width", range(20, 130))
def test_no_line_of_a_table_is_wider_than_its_screen_and_no_word_is_broken(width):
    words = Column("in words", lambda row: "one or two words of which none breaks", drop_order=2)
    why = Column("why", lambda row: "a sentence of its own", "remark")
    lines = text(document_of(Section((NAME, words, SIZE, BARS, why), ROWS)), width=width).splitlines()
    assert max(map(len, lines)) <= width or width < 24  # "gemma-3-27b" and a size
    shown = {word for line in lines for word in line.split()}
    assert {"gemma-3-27b", "why:", "sentence"} <= shown
    assert {"breaks"} & shown or any("not shown" in line for line in lines)


def test_a_narrow_column_is_shown_where_a_wide_one_had_to_go():
    wide = Column("wide", lambda row: "sentence", drop_order=3)
    narrow = Column("no", lambda row: 1, "count", drop_order=4)
    shown = text(document_of(Section((NAME, wide, narrow), ROWS)), width=20)
    assert "not shown in 20 columns: wide" in " ".join(shown.split())
    assert shown.splitlines()[1].split() == ["model", "no"]


def test_words_fold_to_the_longest_where_no_column_may_go():
    words = Column("in words", lambda row: "one or two words of which none breaks")
    shown = text(document_of(Section((NAME, words), ROWS, title="a section")), width=22)
    assert max(map(len, shown.splitlines())) <= 22
    assert "\na section\n" in shown


def test_a_table_without_titles_has_no_line_below_them():
    facts = (Column("", lambda row: row[0]), Column("", lambda row: row[1], "count"))
    assert "─" not in text(document_of(Section(facts, ROWS)))


def test_a_remark_stands_on_a_line_of_its_own_below_its_row():
    why = Column("why", lambda row: "it is so" if row[0] == "total" else "", "remark")
    lines = text(document_of(Section((NAME, SIZE, why), ROWS))).splitlines()
    assert [line.split()[0] for line in lines[3:]] == ["gemma-3-27b", "total", "why:"]
    assert lines[-1] == "  why: it is so"


def test_colours_do_not_change_the_text():
    verdict = Column("", lambda row: "fits" if row[2] else "does not fit", "verdict")
    document = document_of(Section((NAME, BARS, verdict), ROWS, totals=frozenset({1})), notes=("a note",))
    coloured = text(document, color=True)
    assert re.sub("\x1b\\[[0-9;]*m", "", coloured) == text(document)
    assert "\x1b[32mfits\x1b[0m" in coloured and "\x1b[31mdoes not fit" in coloured
    assert "\x1b[1mtotal" in coloured and "\x1b[2mnote: a note" in coloured
    assert "\x1b[36m" in coloured and "\x1b[90m" not in coloured


def test_running_text_folds_on_a_terminal_and_stays_a_line_in_a_pipe():
    document = document_of(Section((NAME,), ROWS), notes=("words " * 40,))
    assert max(map(len, text(document, width=60, text_width=60).splitlines())) <= 60
    assert max(map(len, text(document).splitlines())) > 200


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


def test_a_verdict_has_its_colour_whatever_stands_behind_its_first_word():
    cells = {"fits, 2.00 GiB left": 32, "does not fit, 1.00 GiB short": 31, "pass": 32, "warn": 33}
    section = Section((Column("", lambda row: row, "verdict"),), list(cells))
    shown = text(document_of(section), color=True)
    for cell, code in cells.items():
        assert f"\x1b[{code}m{cell}\x1b[0m" in shown
