"""How many users a pool serves: at the longest context, at an average length, and with a prefix that all share.

An engine that hands out pages serves as many sequences as their average length allows; one that gives every sequence
the room of the longest does not. What an engine prints of the same question stands beside, under its own name.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvcalc.errors import InputError, RefusalError
from kvcalc.fitting import Capacity, Memory, required_memory
from kvcalc.setup import Setup
from kvcalc.units import MAX_TOKENS, largest

#: What engines print of the sequences that they serve at a time.
_PRINTED = {"max_concurrency": "maximum concurrency", "max_running_requests": "max_running_requests"}


@dataclass(frozen=True)
class Users:
    """One answer to how many sequences run at a time.

    Attributes:
        context: tokens of each sequence, or of the average one.
        shared_prefix: tokens at the beginning that are the same for all.
        sequences: how many; 0 if none, None if nothing bounds them or the engine refuses.
        required_kv_memory: the pool for as many as were asked for; None for an engine's own figure or a refusal.
        printed: the engine's own word for its own figure of it, or empty.
        refusal: why there is no answer, or empty.
    """

    context: int
    shared_prefix: int = 0
    sequences: int | float | None = None
    required_kv_memory: int | None = None
    printed: str = ""
    refusal: str = ""


def most_users(setup: Setup, memory: Memory, context: int, prefix: int = 0) -> int | None:
    """The most sequences of that length at a time whose first tokens are the same; None if nothing bounds them.

    Raises:
        RefusalError: the engine shares no prefix, or how it does is not modelled.

    >>> from kvcalc.setup import prepare
    >>> setup = prepare("llama-3.1-8b", engine="vllm")
    >>> memory = Memory(kv_memory=2**34)
    >>> most_users(setup, memory, 8192), most_users(setup, memory, 8192, prefix=6144)
    (15, 60)
    """

    def holds(sequences: int) -> bool:
        required = required_by(setup, context, sequences, prefix)
        return required is not None and required <= memory.pool(setup, context, sequences).kv_memory

    most = largest(holds, MAX_TOKENS)
    return None if most == MAX_TOKENS else most


def required_by(setup: Setup, context: int, sequences: int, prefix: int) -> int | None:
    """The smallest pool for so many sequences with a prefix that all share; None where no pool serves them."""
    alone = required_memory(setup, context, sequences)
    if alone is None or not prefix:
        return alone
    return setup.engine.required_with_prefix(setup, context, sequences, prefix)


def held_tokens(setup: Setup, context: int, average: int | None) -> int:
    """The tokens that decide how many sequences run: an average, but for an engine that gives each the longest room."""
    if average is None:
        return context
    if average > context:
        raise InputError(f"an average of {average:,} tokens is beyond the context of {context:,}")
    return context if setup.engine.pads_to_longest else average


def users(setup: Setup, memory: Memory, answer: Capacity, average: int | None, prefix: int) -> list[Users]:
    """Every way in which the question was asked, and the engine's own figure.

    Args:
        answer: what fits at the longest context.
        average: tokens of the average sequence.
        prefix: tokens that all sequences begin with.
    """
    context = answer.context or answer.reported_context
    held = held_tokens(setup, context, average)

    def counted(tokens: int, shared: int = 0) -> Users:
        most = most_users(setup, memory, tokens, shared)
        return Users(tokens, shared, most, required_by(setup, tokens, answer.batch_size, shared))

    found = [counted(context)]
    if held != context:
        found.append(counted(held))
    elif average is not None and average != context:
        found.append(Users(average, refusal=f"{setup.engine.name} gives every sequence the room of the longest"))
    if prefix:
        if prefix >= held:
            raise InputError(f"a shared prefix of {prefix:,} tokens leaves nothing of {held:,}")
        try:
            found.append(counted(held, prefix))
        except RefusalError as error:
            found.append(Users(held, prefix, refusal=error.message))
    for key, word in _PRINTED.items():
        if answer.engine_report.get(key) is not None:
            found.append(Users(context, 0, answer.engine_report[key], printed=f"{setup.engine.name} prints {word}"))
    return found
