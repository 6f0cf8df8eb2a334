"""The terms of a device's memory that a log printed: for ``fit --calibrate``, and for ``audit`` on a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kvcalc.device import Device
from kvcalc.errors import InputError
from kvcalc.fitting import Measured, Memory, parse_utilization
from kvcalc.logs.base import Given, LogReport, Start
from kvcalc.logs.verdict import LOGS
from kvcalc.setup import Setup


def terms_of(start: Start) -> Mapping[str, int]:
    """The terms of a start in bytes, by their names in :class:`kvcalc.fitting.Measured`; empty for none."""
    log = LOGS.get(start.engine or "")
    return log.terms(start) if log is not None else {}


def measured(report: LogReport, setup: Setup, device: Device, source: str) -> tuple[Measured, list[str]]:
    """What the last start of a setup's engine that printed such terms says, and what a reader must know of it.

    Raises:
        InputError: no start of that engine did.

    >>> from kvcalc.logs.verdict import read
    >>> from kvcalc.setup import prepare
    >>> from kvcalc.sources.devices import load_device
    >>> lines = ["Model loading took 14.99 GiB", "1.89 GiB for peak activation", "Available KV cache memory: 55.67 GiB"]
    >>> report, setup = read([(line, False) for line in lines]), prepare("llama-3.1-8b", engine="vllm")
    >>> measured(report, setup, load_device("h100-80gb"), "server.log")[0].printed
    {'weights_bytes': 16095389941, 'activation_bytes': 2029372047}
    """
    engine = setup.engine.name
    for start in reversed(report.starts):
        terms = terms_of(start)
        if start.engine == engine and terms:
            notes = contradictions(start, setup)
            found = Measured(source, **terms)
            rest = None if "activation_bytes" in terms else _rest(found, start, setup, device)
            if rest is None:
                return found, notes
            notes.append(f"activations are the rest that {source} leaves between its share and its pool")
            return rest, notes
    others = sorted({start.engine for start in report.starts if start.engine and terms_of(start)})
    hint = f"it has those of {', '.join(others)}: --engine {others[0]}" if others else "wanted: a whole start-up"
    raise InputError(f"the log has no term of a device's memory in {engine}'s words", hint=hint)


def _rest(found: Measured, start: Start, setup: Setup, device: Device) -> Measured | None:
    """Activations as what the printed pool leaves of the engine's share, where a log prints the pool and not them."""
    available, stated = start.figures.get("available"), start.stated.get("gpu_memory_utilization")
    if available is None or "kv_cache_memory_bytes" in start.stated:
        return None
    share = parse_utilization(stated) if stated is not None else None
    pool = Memory(device=device, utilization=share, measured=(found, setup)).pool(setup, 1, 1)
    working = pool.working_memory
    assert working is not None
    activation = max(0, working.activation_bytes + pool.kv_memory - available.bytes)
    return replace(found, activation_bytes=activation, runtime_bytes=working.runtime_bytes)


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
