"""CSV has the columns of all rows, however many and however unlike they are."""

import csv
from io import StringIO

import pytest

from kvcalc.report.csv import render
from kvcalc.report.document import Document


def rows_of(records):
    text = "".join(render(Document("", (), (), records, "check")))
    return list(csv.reader(StringIO(text)))


@pytest.mark.parametrize("many", [0, 1, 300, 5000])
def test_a_column_that_only_the_last_rows_have_is_there_for_all(many):
    records = [*({"a": 1, "b": [{"c": 2}]} for _ in range(many)), {"a": 3, "b": [{"c": 4}, {"c": 5}], "d": {"e": True}}]
    header, *rows = rows_of(iter(records))
    assert header == ["a", "b.0.c", "b.1.c", "d.e"]
    assert rows == [["1", "2", "", ""]] * many + [["3", "4", "5", "true"]]


def test_rows_of_other_shapes_keep_their_places():
    header, *rows = rows_of([{"x": {"y": 1}, "y": 2}, {"x": 3, "y": {"y": 4}}, {"y": None, "x": []}])
    assert header == ["x.y", "y", "x", "y.y"]
    assert rows == [["1", "2", "", ""], ["", "", "3", "4"], ["", "", "", ""]]


def test_a_record_is_a_line_and_text_is_no_formula():
    header, *rows = rows_of([{"=a": "=1+1", "b": "x\ny\x1b", "c": -5, "d": "-0.25", "e": "-2+3", "f": 0.1}])
    assert header == ["'=a", "b", "c", "d", "e", "f"]
    assert rows == [["'=1+1", r"x\ny\x1b", "-5", "-0.25", "'-2+3", "0.1"]]


def test_no_rows_are_an_empty_table():
    assert "".join(render(Document("", (), (), [], "check"))) == "\n"
