"""A setup as formulas: what an engine's derivation says for any context and any batch size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kvcalc.derivation import Quantity
from kvcalc.errors import NotModelledError
from kvcalc.setup import Setup

#: Quantities that a page replaces where their formula is a number: the question, and what engines take of a device.
INPUTS = frozenset(
    {
        *("T", "B", "max_model_len", "k_copied", "v_copied"),
        *("max_num_batched_tokens", "max_num_seqs", "hopper", "blackwell", "nvlink", "multiprocessors"),
        *("memory_bytes", "memory_mib", "chunked_prefill_size"),
    }
)
#: Questions at which a derivation must be the same text: the shortest context, and a long one that ends in a chunk.
_ONE, _SEVERAL = ((1, 1), (2**31 + 11, 1)), ((1, 2), (2**31 + 11, 4096))


@dataclass(frozen=True)
class Formulas:
    """The derivation of one sequence and that of several, which an engine may count in another way.

    ``kv_bytes`` is the cache; ``required_bytes``, where there is one, the budget that it needs; ``layers_1`` ... the
    bytes of its rows.
    """

    one: tuple[Quantity, ...]
    several: tuple[Quantity, ...]


def formulas_of(setup: Setup) -> Formulas:
    """The formulas of a setup's cache.

    Raises:
        NotModelledError: the derivation holds for one question alone (a prefill in chunks of an odd size in mlx-lm).

    >>> from kvcalc.setup import prepare
    >>> from kvcalc.sources.resolve import load
    >>> formulas_of(prepare(load("llama-3.1-8b"))).one[-1].formula
    'layers_1'
    """
    return Formulas(_same_text(setup, _ONE), _same_text(setup, _SEVERAL))


def _same_text(setup: Setup, questions: Iterable[tuple[int, int]]) -> tuple[Quantity, ...]:
    explained = [setup.plan.explain(context, batch_size) for context, batch_size in questions]
    if len(set(map(_texts, explained))) > 1:
        raise NotModelledError(
            f"{setup.engine.name} with these options has no formula that holds for every context",
            hint="kvcalc itself answers for any one context",
        )
    return explained[0]


def _texts(quantities: Iterable[Quantity]) -> tuple[tuple[str, str], ...]:
    return tuple((each.symbol, "" if is_input(each) else each.formula) for each in quantities)


def is_input(quantity: Quantity) -> bool:
    """Whether a page asks for this number: it stands in no rule of the engine.

    >>> is_input(Quantity("T", "context", "4096", 4096)), is_input(Quantity("T", "context", "n + 1", 4097))
    (True, False)
    """
    return quantity.symbol in INPUTS and quantity.formula.isdecimal()
