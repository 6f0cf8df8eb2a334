"""From what was typed to footprints: the reading that all commands share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kvcalc.architecture import Architecture
from kvcalc.cli.process import complain
from kvcalc.cli.words import COMMAND
from kvcalc.derivation import checked
from kvcalc.engines import REGISTRY
from kvcalc.engines.base import Engine, Plan
from kvcalc.errors import InputError, did_you_mean, printable, quote
from kvcalc.footprint import Footprint, footprint_of
from kvcalc.report.document import Derivation, Document, Units
from kvcalc.report.files import check_outputs, write, write_file
from kvcalc.report.formats import FORMATS, render
from kvcalc.setup import MTP, Setup, prepare
from kvcalc.sources.resolve import load
from kvcalc.units import parse_count

_UNITS: tuple[Literal["binary"], Literal["decimal"], Literal["bytes"]] = ("binary", "decimal", "bytes")


@dataclass(frozen=True)
class Asked:
    """One setup to price, with the model as typed."""

    reference: str
    setup: Setup

    def footprint(self, context: int, batch_size: int) -> Footprint:
        """The configuration at one context and batch size."""
        return footprint_of(self.setup, context, batch_size)


def ask(
    references: Sequence[str],
    *,
    engine: str = "ideal",
    engine_options: Sequence[str] | None = None,
    kv_cache_dtype: str | None = None,
    weights_dtype: str | None = None,
    tensor_parallel_size: str = "1",
    encoder_tokens: str = "0",
    draft: str | None = None,
) -> list[Asked]:
    """Every combination of models, engines and KV formats, in the order in which they were typed."""
    engines = split_list(engine, "--engine")
    options = parse_engine_options(engine_options or [], engines)
    formats = split_list(kv_cache_dtype, "--kv-cache-dtype") if kv_cache_dtype is not None else [None]
    tp = parse_count(tensor_parallel_size, "--tensor-parallel-size")
    encoder = parse_count(encoder_tokens, "--encoder-tokens", least=0)
    drafted = read_draft(draft)
    models = {reference: load_with_hints(reference) for reference in dict.fromkeys(references)}
    return [
        Asked(
            reference,
            prepare(
                models[reference],
                engine=name,
                engine_options=options[name],
                kv_cache_dtype=kv_format,
                weights_dtype=weights_dtype,
                tensor_parallel_size=tp,
                encoder_tokens=encoder,
                draft=drafted,
            ),
        )
        for reference in references
        for name in engines
        for kv_format in formats
    ]


def read_draft(draft: str | None) -> Architecture | Literal["mtp"] | None:
    """The draft model of ``--draft``: a reference, or ``mtp`` for the model's own prediction layers."""
    if draft is None:
        return None
    return MTP if draft == MTP else load_with_hints(draft)


def load_with_hints(reference: str) -> Architecture:
    """The architecture of a reference; its hints go to standard error."""
    architecture = load(reference)
    for hint in architecture.provenance.hints:
        say(f"hint: {hint}")
    return architecture


def warn_beyond_maximum(asked: Iterable[Asked], contexts: Iterable[int]) -> None:
    """Say on standard error where a context is longer than the model was made for."""
    longest = max(contexts)
    for architecture in {each.setup.architecture.name: each.setup.architecture for each in asked}.values():
        if architecture.max_context is not None and longest > architecture.max_context:
            made_for = f"{architecture.name} was made for {architecture.max_context:,} tokens"
            say(f"warning: {made_for}; {longest:,} is beyond that")


def say(line: str) -> None:
    """One line for people, on standard error."""
    complain(printable(line))


def split_list(text: str, option: str) -> list[str]:
    """The parts of a list with commas between them; an empty part is a mistake."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise InputError(f"{option} has an empty part in {quote(text)}", hint="write a,b,c")
    return parts


def only_one(engine: str, kv_cache_dtype: str | None, command: str) -> None:
    """Refuse lists of engines or KV formats, for a command that answers for one of each."""
    if "," in engine or "," in (kv_cache_dtype or ""):
        raise InputError(f"{command} answers for one engine and one KV format", hint="kvcalc compare takes several")


def parse_engine_options(given: Sequence[str], engines: Sequence[str]) -> dict[str, dict[str, str]]:
    """``KEY=VALUE`` options by engine; ``ENGINE.KEY=VALUE`` where there are several.

    >>> parse_engine_options(["vllm.block_size=32"], ["ideal", "vllm"])
    {'ideal': {}, 'vllm': {'block_size': '32'}}
    """
    options: dict[str, dict[str, str]] = {engine: {} for engine in engines}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"engine option {quote(text)} is not KEY=VALUE", hint="as in -E block_size=32")
        owner = next((name for name in REGISTRY if key.startswith(f"{name}.")), None)
        if owner is not None:
            key = key.removeprefix(f"{owner}.")
        elif len(engines) == 1:
            owner = engines[0]
        else:
            hint = f"say whose option it is, as in -E {engines[-1]}.{key}={value}"
            raise InputError(f"engine option {quote(key)} among several engines", hint=hint)
        if owner not in options:
            raise InputError(f"option {quote(text)} is for {owner}, which was not asked for", hint=f"--engine {owner}")
        if key in options[owner]:
            raise InputError(f"engine option {quote(key)} is given twice")
        options[owner][key] = value
    return options


def parse_units(text: str) -> Units:
    """``binary``, ``decimal`` or ``bytes``."""
    for units in _UNITS:
        if text == units:
            return units
    hint = did_you_mean(text, _UNITS) or f"known: {', '.join(_UNITS)}"
    raise InputError(f"unknown --units {quote(text)}", hint=hint)


def assumptions(asked: Sequence[Asked], context: int | None, batch_size: int) -> tuple[str, ...]:
    """What holds for every row, stated once; what differs between rows is left to them."""
    stated = []
    if context is not None:
        stated.append(f"context {context:,} tokens")
    stated.append(f"batch size {batch_size:,}")
    setups = [each.setup for each in asked]
    formats = {_kv_format(setup.k_dtype.name, setup.v_dtype.name) for setup in setups}
    if len(formats) == 1:
        stated.append(f"K and V {formats.pop()}")
    weights = {each.footprint(1, 1).weights.dtype for each in asked}
    if len(weights) == 1:
        stated.append(f"weights {weights.pop()}")
    engines = {engine_label(each.setup) for each in asked}
    if len(engines) == 1:
        stated.append(f"engine {engines.pop()}")
    devices = {each.setup.devices for each in asked}
    if devices != {1}:
        stated.append(f"one of {max(devices)} devices")
    if setups[0].encoder_tokens:
        stated.append(f"encoder {setups[0].encoder_tokens:,} tokens")
    return tuple(stated)


def engine_label(setup: Setup) -> str:
    """An engine with its version and the options that were given."""
    engine = setup.engine
    listed = "".join(f" {key}={value}" for key, value in engine.given_options.items())
    version = "" if engine.name == "ideal" else f" {engine.followed_version}"
    return f"{engine.name}{version}{listed}"


def _kv_format(key: str, value: str) -> str:
    return key if key == value else f"{key}/{value}"


def kv_format(asked: Asked) -> str:
    """The formats of K and V in a word."""
    return _kv_format(asked.setup.k_dtype.name, asked.setup.v_dtype.name)


def derivation(asked: Asked, title: str, context: int, batch_size: int) -> Derivation:
    """The engine's formula for one configuration."""
    return setup_derivation(asked.setup, title, context, batch_size)


def setup_derivation(setup: Setup, title: str, context: int, batch_size: int) -> Derivation:
    """The engine's formula for what was prepared, at one context and batch size."""
    return _derivation(setup.engine, setup.plan, title, context, batch_size)


def footprint_derivation(footprint: Footprint, title: str) -> Derivation:
    """The engine's formula for a footprint that was made elsewhere."""
    return setup_derivation(footprint.setup, title, footprint.context, footprint.batch_size)


def _derivation(engine: Engine, plan: Plan, title: str, context: int, batch_size: int) -> Derivation:
    excluded = ("activations, CUDA graphs and fragmentation", *engine.not_modelled)
    quantities = checked(plan.explain(context, batch_size), plan.kv_bytes(context, batch_size))
    return Derivation(title, quantities, engine.sources, excluded)


def weights_derivation(asked: Asked) -> Derivation:
    """The parameters by part and their bytes."""
    from kvcalc.weights_steps import weights_steps

    setup = asked.setup
    tp, stages = setup.tensor_parallel_size, setup.engine.pipeline_stages
    steps = weights_steps(setup.served, setup.weights_dtype, tp, stages)
    return Derivation("Weights, step by step", checked(steps, setup.weights.bytes), setup.served.provenance.sources)


def for_people(format_name: str) -> bool:
    """Whether a format shows the sections; programs read the records alone, and any number of them."""
    return format_name not in FORMATS or FORMATS[format_name].reads == "sections"


def check_plot(plot: str | None) -> None:
    """Refuse a picture that cannot be drawn before anything is computed."""
    if plot is not None:
        from kvcalc.report.charts import check_target

        check_target(Path(plot))


def answer(document: Document, format_name: str, output: str | None, plot: str | None = None) -> None:
    """Render a document to standard output or to a file, and its charts to a picture where one is asked for."""
    path = None if output is None else Path(output)
    check_outputs(path, None if plot is None else Path(plot))
    document = replace(document, command=COMMAND.get())
    pieces = render(document, format_name, to_file=path is not None)
    if plot is not None:
        from kvcalc.report.charts import draw

        write_file(Path(plot), [draw(document, Path(plot))])
    write(pieces, path)
