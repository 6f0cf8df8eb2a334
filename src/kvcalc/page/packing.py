"""How data are kept small: a value once, equal neighbours together, and texts apart from their numbers."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from itertools import groupby
from typing import Any

from kvcalc.derivation import Quantity
from kvcalc.page.formulas import is_input, split

#: The largest integer that JSON's readers keep exactly; larger ones are texts.
_MOST_EXACT = 2**53 - 1


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


def shape(quantities: Iterable[Quantity]) -> tuple[tuple[tuple[str, ...], ...], tuple[int | str, ...]]:
    """The texts of a derivation without their numbers, and those; an input has none, because the page gives it.

    >>> shape([Quantity("T", "context", "4096", 4096), Quantity("m", "slots", "min(T, 1024)", 1024)])
    ((('T', '', 'context', '', ''), ('m', 'min(T, ¶)', 'slots', '', '')), (1024,))
    """
    lines, numbers = [], []
    for each in quantities:
        formula, in_formula = ("", []) if is_input(each) else split(each.formula)
        meaning, in_meaning = split(each.meaning)
        lines.append((each.symbol, formula, meaning, each.unit, each.source))
        numbers += in_formula + in_meaning
    return tuple(lines), tuple(map(_number, numbers))


def _number(text: str) -> int | str:
    """A number as JSON has it; one with leading zeros, a fraction or too many digits is a text."""
    return int(text) if text.isdecimal() and str(int(text)) == text and int(text) <= _MOST_EXACT else text
