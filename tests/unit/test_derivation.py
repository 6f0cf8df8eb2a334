"""The shown work is guarded: a formula that is not its number, or rows that are not the answer, are internal errors."""

from dataclasses import dataclass, replace
from typing import Any

import pytest

import kvcalc
from kvcalc.cli.app import run
from kvcalc.derivation import Derivation, DerivationError, Quantity, checked
from kvcalc.engines.ideal import Ideal, IdealPlan
from kvcalc.footprints import footprint_of
from kvcalc.setup import Setup, prepare


def test_a_value_is_what_its_formula_evaluates_to():
    work = Derivation(4096, 2)
    assert work.let("slots", "slots", "min(T, 1024)", "tokens") == 1024
    assert work.let("kv_bytes", "KV cache", "B * 8 * slots", "bytes") == work["kv_bytes"] == 2 * 8 * 1024
    assert work.let_float("share", "half of it, as the engine computes it", "kv_bytes * 0.5") == 8192.0
    assert [quantity.symbol for quantity in work.quantities] == ["T", "B", "slots", "kv_bytes", "share"]


def test_a_symbol_has_one_meaning():
    with pytest.raises(DerivationError, match="T is named twice"):
        Derivation(1, 1).let("T", "again", "1")


def test_a_formula_that_is_not_its_number_is_an_error():
    steps = (Quantity("a", "a", "2", 2), Quantity("b", "b", "a * 3", 7))
    with pytest.raises(DerivationError, match="b = a \\* 3 is 6, and is shown as 7"):
        checked(steps, 7)
    with pytest.raises(DerivationError, match="ends at 2, and the answer is 3"):
        checked(steps[:1], 3)
    assert checked(steps[:1], 2) == steps[:1]


@dataclass(frozen=True)
class _ChangedPlan:
    """A made-up version of an engine in which one number of the fast path was changed and its formula was not."""

    plan: IdealPlan

    def kv_bytes(self, context: int, batch_size: int) -> int:
        return self.plan.kv_bytes(context, batch_size) + 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plan, name)


def test_a_version_with_one_changed_rule_cannot_print_two_numbers(monkeypatch, capsys):
    made = Ideal.prepare
    monkeypatch.setattr(Ideal, "prepare", lambda self, setup: _ChangedPlan(made(self, setup)))
    setup: Setup = replace(prepare(kvcalc.load("gemma-3-1b")))
    with pytest.raises(DerivationError, match="the rows hold"):
        footprint_of(setup, 1024, 1)
    assert run(["show", "gemma-3-1b", "-c", "1k", "--explain"]) == 2
    assert "internal error (DerivationError)" in capsys.readouterr().err
