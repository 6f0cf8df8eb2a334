"""How data are kept small: a value once, equal neighbours together, and texts apart from their numbers."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

from kvcalc.derivation import Quantity
from kvcalc.page.formulas import is_input

#: A number that stands alone: neither a part of a symbol (``layers_1``) nor of another number.
_NUMBER = re.compile(r"(?<![A-Za-z_0-9.])\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![A-Za-z_0-9.]*[A-Za-z_])")
#: The largest integer that JSON's readers keep exactly; larger ones are texts.
_MOST_EXACT = 2**53 - 1
#: What stands for a number in a text without its numbers.
HOLE = "\N{PILCROW SIGN}"


class Places:
    """Values, each kept once, and where each is."""

    def __init__(self) -> None:
        self._values: dict[Hashable, int] = {}

    def of(self, value: Hashable) -> int:
        """Where a value is, from now on."""
        return self._values.setdefault(value, len(self._values))

    def listed(self) -> list[Any]:
        """The values in the order of their places."""
        return list(self._values)


def runs(values: Iterable[Any]) -> list[Any]:
    """Equal neighbours as a value and their number.

    >>> runs([7, 7, 7, None])
    [7, 3, None, 1]
    """
    return [part for value, same in groupby(values) for part in (value, sum(1 for _ in same))]


def in_columns(models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The models with what is alike in them side by side, where deflate finds it; ``calculator.js`` turns it back."""
    columns = _columns(list(models.values()))
    engines = {name: _columns(tables) for name, tables in _columns(columns.pop("engines")).items()}
    return {"names": list(models), "columns": columns, "engines": engines}


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {key: [row[key] for row in rows] for key in rows[0]}


def shape(quantities: Iterable[Quantity]) -> tuple[tuple[tuple[str, ...], ...], tuple[int | str, ...]]:
    """The texts of a derivation without their numbers, and those; an input has none, because the page gives it.

    >>> shape([Quantity("T", "context", "4096", 4096), Quantity("m", "slots", "min(T, 1024)", 1024)])
    ((('T', '', 'context', '', ''), ('m', 'min(T, ¶)', 'slots', '', '')), (1024,))
    """
    lines: list[tuple[str, ...]] = []
    numbers: list[int | str] = []
    for each in quantities:
        formula, in_formula = ("", ()) if is_input(each) else split(each.formula)
        meaning, in_meaning = split(each.meaning)
        lines.append((each.symbol, formula, meaning, each.unit, each.source))
        numbers += in_formula + in_meaning
    return tuple(lines), tuple(numbers)


@lru_cache(2**14)
def split(text: str) -> tuple[str, tuple[int | str, ...]]:
    """A text without its numbers, and those as JSON has them.

    >>> split("24 * B * min(T, 1024) + layers_1")
    ('¶ * B * min(T, ¶) + layers_1', (24, 1024))
    """
    return _NUMBER.sub(HOLE, text), tuple(map(_number, _NUMBER.findall(text)))


def _number(text: str) -> int | str:
    """One with leading zeros, a fraction or too many digits is a text."""
    return int(text) if text.isdecimal() and str(int(text)) == text and int(text) <= _MOST_EXACT else text
