"""The terms of a device's memory that a log printed: for ``fit --calibrate``, and for ``audit`` on a device."""

from __future__ import annotations

from collections.abc import Mapping

from kvcalc.errors import InputError
from kvcalc.fitting import Measured
from kvcalc.logs.base import Given, LogReport, Start
from kvcalc.logs.verdict import LOGS
from kvcalc.setup import Setup


def terms_of(start: Start) -> Mapping[str, int]:
    """The terms of a start in bytes, by their names in :class:`kvcalc.fitting.Measured`; empty for none."""
    log = LOGS.get(start.engine or "")
    return log.terms(start) if log is not None else {}


def measured(report: LogReport, engine: str, source: str) -> tuple[Measured, Start]:
    """What the last start of an engine that printed such terms says.

    Raises:
        InputError: no start of that engine did.

    >>> from kvcalc.logs.verdict import read
    >>> lines = ["INFO Loading weights took 1 s", "Model loading took 14.99 GiB", "0.25 GiB for non-torch memory"]
    >>> lines += ["1.89 GiB for peak activation", "Available KV cache memory: 55.67 GiB"]
    >>> found, start = measured(read([(line, False) for line in lines]), "vllm", "server.log")
    >>> found.printed["activation_bytes"], start.engine
    (2029372047, 'vllm')
    """
    for start in reversed(report.starts):
        terms = terms_of(start)
        if start.engine == engine and terms:
            return Measured(source, **terms), start
    others = sorted({start.engine for start in report.starts if start.engine and terms_of(start)})
    hint = f"it has those of {', '.join(others)}: --engine {others[0]}" if others else "wanted: a whole start-up"
    raise InputError(f"the log has no term of a device's memory in {engine}'s words", hint=hint)


def contradictions(start: Start, setup: Setup) -> list[str]:
    """Where what a start states is not what the answer assumes: its terms are then those of another setup.

    >>> from kvcalc.setup import prepare
    >>> start = Start(engine="vllm", stated={"max_num_batched_tokens": "2048", "max_model_len": "8192"})
    >>> contradictions(start, prepare("llama-3.1-8b", engine="vllm"))
    ['the log states max_num_batched_tokens=2048, the answer assumes 8192']
    """
    log = LOGS[start.engine or ""]
    stated = log.question(start, Given(context=1))
    known = {**stated.options, "tensor_parallel_size": stated.tensor_parallel_size}
    assumed = {name: getattr(setup.engine, name, None) for name in stated.options}
    assumed["tensor_parallel_size"] = setup.tensor_parallel_size
    return [
        f"the log states {name}={value}, the answer assumes {assumed[name]}"
        for name, value in known.items()
        if assumed[name] is not None and str(assumed[name]).casefold() != str(value).casefold()
    ]
