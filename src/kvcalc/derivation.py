"""Work that is shown: named quantities whose values are computed from the formulas that a reader sees.

An engine states its rule once, as a :class:`Derivation`: each quantity is a symbol, a formula over earlier symbols, a
unit and a source, and its value is what that formula evaluates to. The rows of a cache and ``--explain`` both read it.
The one other text of a rule is the fast path (``Plan.kv_bytes``); :func:`checked` compares the two.

>>> work = Derivation(context=32768, batch_size=2)
>>> work.let("slots", "slots of a sliding layer", "min(T, 1024)", "tokens")
1024
>>> work.let("kv_bytes", "KV cache", "B * 52 * 8192 * slots", "bytes")
872415232
>>> work["kv_bytes"] == 2 * 52 * 8192 * 1024
True
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import CodeType
from typing import Any

from kvcalc.units import ceil_div, power_of_two, round_up, smallest_reaching

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "int": int,
    "ceil_div": ceil_div,
    "round_up": round_up,
    "power_of_two": power_of_two,
    "smallest_reaching": smallest_reaching,
}
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_GLOBALS: dict[str, Any] = {"__builtins__": {}, **_FUNCTIONS}


class DerivationError(Exception):
    """A shown formula that is not the number it stands for: a mistake in kvcalc, never in a question."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """One line of a derivation.

    Attributes:
        symbol: its name in later formulas.
        meaning: what it is, in words.
        formula: arithmetic over the symbols of earlier lines (``+ - * / // min max int ceil_div round_up
            power_of_two``), a choice (``a if b > c else d``), a search (``smallest_reaching(guess, lambda n: ...)``)
            or a number. It holds for any context and batch size, so that a page can ask it about others.
        value: what the formula evaluates to.
        unit: tokens, blocks, bytes ...
        source: where the formula is known from, file and version.
    """

    symbol: str
    meaning: str
    formula: str
    value: int | float
    unit: str = ""
    source: str = ""


@dataclass(slots=True)
class Derivation:
    """Quantities in the order in which they are computed; ``T`` (context) and ``B`` (batch size) come first, if any."""

    context: int | None = None
    batch_size: int | None = None
    quantities: list[Quantity] = field(default_factory=list)
    values: dict[str, int | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.context is not None:
            self.let("T", "context", str(self.context), "tokens")
        if self.batch_size is not None:
            self.let("B", "batch size", str(self.batch_size), "sequences")

    def let(self, symbol: str, meaning: str, formula: str, unit: str = "", source: str = "") -> int:
        """Add a quantity; its value is what the formula evaluates to.

        Returns:
            The value, of a formula over integers (:meth:`let_float` is for those that the engine computes in floats).
        """
        value = _evaluated(formula, self.values)
        assert isinstance(value, int), formula
        self._add(symbol, meaning, formula, value, unit, source)
        return value

    def let_float(self, symbol: str, meaning: str, formula: str, unit: str = "", source: str = "") -> float:
        """Add a quantity that the engine itself computes in floats."""
        value = float(_evaluated(formula, self.values))
        self._add(symbol, meaning, formula, value, unit, source)
        return value

    def _add(self, symbol: str, meaning: str, formula: str, value: float, unit: str, source: str) -> None:
        if symbol in self.values:
            raise DerivationError(f"{symbol} is named twice")
        self.values[symbol] = value
        self.quantities.append(Quantity(symbol, meaning, formula, value, unit, source))

    def __getitem__(self, symbol: str) -> int:
        value = self.values[symbol]
        assert isinstance(value, int), symbol
        return value


@cache
def _compiled(formula: str) -> CodeType:
    return compile(formula, "<formula>", "eval")


def _evaluated(formula: str, values: Mapping[str, int | float]) -> int | float:
    # The formulas are the engines' own text, never input. Those with a number of the question in them are not kept.
    if formula.isdecimal():
        return int(formula)
    # One scope for functions and values: what a lambda names is looked up there.
    value: int | float = eval(_compiled(formula), {**_GLOBALS, **values})  # noqa: S307
    return value


def evaluate(quantities: Iterable[Quantity]) -> dict[str, int | float]:
    """The value of every symbol, computed from the formulas as they are shown."""
    values: dict[str, int | float] = {}
    for quantity in quantities:
        values[quantity.symbol] = _evaluated(quantity.formula, values)
    return values


def checked(quantities: tuple[Quantity, ...], total: int) -> tuple[Quantity, ...]:
    """The quantities, after their formulas were evaluated once more and compared with what they stand for.

    Args:
        quantities: a derivation whose last line is the total.
        total: the number that the derivation explains.

    Raises:
        DerivationError: a formula does not evaluate to its value, or the last line is not the total.
    """
    values = evaluate(quantities)
    for quantity in quantities:
        if values[quantity.symbol] != quantity.value:
            shown, worked = quantity.value, values[quantity.symbol]
            raise DerivationError(f"{quantity.symbol} = {quantity.formula} is {worked}, and is shown as {shown}")
    if quantities[-1].value != total:
        raise DerivationError(f"the derivation ends at {quantities[-1].value}, and the answer is {total}")
    return quantities


def with_numbers(quantity: Quantity, values: Mapping[str, int | float]) -> str:
    """The formula of a quantity with the numbers in place of the symbols.

    >>> slots = Quantity("m", "slots", "min(T, W)", 1024)
    >>> with_numbers(slots, {"T": 32768, "W": 1024})
    'min(32,768, 1,024)'
    """

    def number(match: re.Match[str]) -> str:
        value = values.get(match[0])
        return match[0] if value is None else f"{value:,}"

    return _SYMBOL.sub(number, quantity.formula)
