"""The answer of ``kvcalc fit`` in a sentence, what a reader must know of it, and the line that starts its server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvcalc.deciding import Decision
from kvcalc.errors import NotModelledError
from kvcalc.fitting import Pool
from kvcalc.serving import served_name, server_line
from kvcalc.setup import options_on
from kvcalc.units import counted, format_bytes


def verdict(decision: Decision) -> str:
    """The answer in a sentence."""
    pool = decision.capacity.pool
    said = _of_replicas(decision) if decision.replicas else _of_one(decision)
    if not pool.not_modelled:
        return f"{said}."
    # What is left out stands before the figures: a reader of one line must not take it for the whole device.
    answer, mark, figures = said.partition(":") if ":" in said.partition(".")[0] else said.partition(".")
    return f"{answer} before working memory{mark}{figures}. Note: {pool.not_modelled}; {pool.advice}."


def _of_replicas(decision: Decision) -> str:
    best, place, total = decision.best, decision.place, decision.total or 1
    asked = f"{total:,} x {decision.capacity.context:,} tokens"
    how = f"(tensor parallel {best.tensor_parallel_size})"
    if place.count is None:
        needed = best.devices_for(total)
        return f"{asked} need {needed:,} devices {how}" if needed is not None else f"{asked}: no device holds one"
    most = best.sequences(place.count)
    limit = "any number of sequences" if most is None else f"{most:,} sequences at most"
    return f"{'Fits' if decision.fits else 'Does not fit'}: {asked}; {limit} {how}"


def _of_one(decision: Decision) -> str:
    answer = decision.capacity
    longest = "nothing bounds it" if answer.max_context is None else f"{answer.max_context:,}"
    at_batch = f"Longest context at batch {answer.batch_size:,}: {longest}"
    if decision.users:
        return _of_users(decision)
    if answer.context is None:
        if answer.fits:
            return f"Fits. {at_batch}"
        return f"Does not fit: {_too_large(answer.pool) if answer.kv_memory < 0 else 'not one token fits'}"
    asked = f"{answer.batch_size:,} x {answer.context:,} tokens"
    crowded = next((each for each in decision.neighbours if not each.capacity.fits), None)
    if answer.fits and crowded is not None:
        return f"Does not fit: {crowded.setup.reference} beside it has no room for a sequence"
    if answer.fits:
        users = "any number" if answer.max_batch_size is None else f"{answer.max_batch_size:,}"
        return f"Fits: {asked}. {at_batch}; most sequences: {users}"
    if answer.missing_bytes is None:
        return f"Does not fit: {asked}, whatever the memory: the engine's options leave no room for it"
    short = f"Does not fit: {asked} is {format_bytes(answer.missing_bytes)} short"
    if answer.kv_memory < 0:
        return f"{short}; {_too_large(answer.pool)}"
    return f"{short}. {at_batch}"


def _too_large(pool: Pool) -> str:
    """What leaves nothing for the cache: the weights, or what the engine works with beside them."""
    alone = (pool.weights_bytes or 0) - (pool.usable_bytes or 0)
    if alone > 0:
        return f"the weights alone are {format_bytes(alone)} too large"
    return f"weights and working memory are {format_bytes(-pool.kv_memory)} too large"


def _of_users(decision: Decision) -> str:
    """How many users there are in the last sense that was asked for."""
    answer = decision.capacity
    last = decision.answered
    assert last is not None
    most = "any number" if last.sequences is None else f"{last.sequences:,}"
    length = f"{last.context:,} tokens" + (" on average" if last.context < answer.reported_context else "")
    shared = f", {last.shared_prefix:,} of them shared" if last.shared_prefix else ""
    fits = "Fits" if decision.fits else "Does not fit"
    return f"{fits}: {counted(answer.batch_size, 'user')} asked for, {most} fit at {length}{shared}"


def notes(decision: Decision, said: Sequence[str], closes: Sequence[object]) -> Iterator[str]:
    """What a reader must know of the answer.

    Args:
        said: of a log's terms.
        closes: the levers that close a gap.
    """
    setup, answer, device = decision.setup, decision.capacity, decision.place.memory.device
    if answer.pool.working_memory is not None:
        yield from answer.pool.working_memory.notes
    yield from said
    yield from setup.engine.start_notes(setup, answer.engine_report)
    if device is not None and device.name:
        yield f"memory of {device.name}: {device.source}"
        for key, value in options_on(setup.engine.name, {}, device).items():
            if setup.engine.set_options.get(key) == value:
                yield f"{key}={value}: what {setup.engine.name} chooses on {device.name}"
    if answer.refusal is not None:
        yield f"{setup.engine.name} refuses to start: {answer.refusal.message}"
    if not closes and not decision.fits:
        yield "no single lever closes the gap: combine several, or more memory"


def starting_line(decision: Decision) -> str | None:
    """The line that starts the server of the answer, or None where the engine has none."""
    setup, answer, utilization = decision.setup, decision.capacity, decision.place.memory.utilization
    name = served_name(setup.engine.server, setup.reference)
    try:
        return server_line(setup, name, answer.reported_context, answer.batch_size, utilization)
    except NotModelledError:
        return None
