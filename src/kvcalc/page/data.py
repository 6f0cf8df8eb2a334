"""What a page carries: every model in every engine, as formulas and their numbers.

The keys of the answer are read by ``calculator.js``:

- ``quantities``: ``[symbol, formula, meaning, unit, source]`` without their numbers; ``shapes``, derivations as places
  in those; ``texts``, reasons and notes; ``lines``, options as words of a server's line; a model has places in the last
  two;
- ``engines``: by name, what may be picked (:mod:`kvcalc.page.offers`), and how a server is started;
- ``devices``: with the options that an engine chooses there, and the inputs that formulas need of them;
- ``models``: by name, ``cases`` (the caches), ``loads`` (weights), ``held`` (``steps``, the working memory, and
  ``loadings``, on each platform); what an engine says of a combination
  (:mod:`kvcalc.page.tables`) is a place in one of them.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from typing import Any

from kvcalc import __version__
from kvcalc.alternatives import runs_on
from kvcalc.architecture import Architecture
from kvcalc.device import Device
from kvcalc.page.offers import SIZES, UNNAMED, Offer
from kvcalc.page.packing import Places
from kvcalc.page.tables import Tables
from kvcalc.sources.preset import known_names, presets
from kvcalc.sources.resolve import load
from kvcalc.weights import weights

#: Fewer models are prepared in less time than processes take to start.
_FEW_MODELS = 8
#: A draft has at most this part of its model's parameters.
_DRAFT_PART = 4


def page_data(
    models: Sequence[str],
    engines: Sequence[str],
    devices: Sequence[Device],
    said: Callable[[str], None] = lambda name: None,
    workers: int = 1,
) -> dict[str, Any]:
    """The data of a page of these models, engines and devices.

    Args:
        said: is told each model's name when it is ready.
        workers: processes that prepare models at the same time.

    >>> from kvcalc.sources.devices import load_device
    >>> data = page_data(["gemma-3-1b"], ["ideal"], [load_device("rtx-4090")])
    >>> list(data["models"]), len(data["shapes"])
    (['gemma-3-1b'], 2)
    """
    offers = _offers(tuple(engines), tuple(devices))
    quantities, shapes, texts, lines, found = Places(), Places(), Places(), Places(), {}
    for name, (each, own) in zip(models, _each(models, engines, devices, workers), strict=True):
        said(name)
        found[name] = each
        places = [shapes.of(tuple(map(quantities.of, shape))) for shape in own]
        each["cases"] = [
            (places[one], a, several if several < 0 else places[several], b, notes)
            for one, a, several, b, notes in each["cases"]
        ]
        for table in ("steps", "loadings"):
            each[table] = [(places[shape], *rest) for shape, *rest in each[table]]
        each["texts"] = [texts.of(text) for text in each["texts"]]
        each["lines"] = [lines.of(line) for line in each["lines"]]
    return {
        "tool": __version__,
        "sizes": SIZES,
        "unnamed": {name: str(value) for name, value in UNNAMED.inputs.items()},
        "quantities": quantities.listed(),
        "shapes": shapes.listed(),
        "texts": texts.listed(),
        "lines": lines.listed(),
        "engines": {
            offer.name: offer.exported([each["engines"][offer.name] for each in found.values()]) for offer in offers
        },
        "devices": [_device(device, offers) for device in devices],
        "models": found,
    }


def _each(
    models: Sequence[str], engines: Sequence[str], devices: Sequence[Device], workers: int
) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """Every model's tables with their own shapes, in the order of the models."""
    work, drafts = partial(_exported, tuple(engines), tuple(devices)), _drafts(models)
    if workers == 1 or len(models) < _FEW_MODELS:
        yield from map(work, models, drafts)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _leave_signals) as pool:
        yield from pool.map(work, models, drafts)


def _exported(
    engines: tuple[str, ...], devices: tuple[Device, ...], reference: str, draft: str | None
) -> tuple[dict[str, Any], list[Any]]:
    shapes = Places()
    tables = Tables(load(reference), None if draft is None else load(draft), shapes)
    names = known_names(reference) if reference in presets() else [reference]
    return tables.exported(names, _offers(engines, devices)), shapes.listed()


@cache
def _offers(engines: tuple[str, ...], devices: tuple[Device, ...]) -> list[Offer]:
    return [Offer(name, devices) for name in engines]


def _leave_signals() -> None:
    """An interrupt ends a worker without a word: its parent says what is to be said."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _drafts(references: Sequence[str]) -> list[str | None]:
    """For each model the smallest of the others that may be its draft, or None: of its type, with its vocabulary.

    >>> _drafts(["qwen3-32b", "qwen3-0.6b", "qwen3-4b"])
    ['qwen3-0.6b', None, 'qwen3-0.6b']
    """
    models = [load(reference) for reference in references]

    def fits(model: Architecture, other: Architecture) -> bool:
        alike = (other.model_type, other.vocab_size) == (model.model_type, model.vocab_size)
        return alike and _DRAFT_PART * _parameters(other) <= _parameters(model)

    fitting = [[other for other in models if fits(model, other)] for model in models]
    smallest = (min(others, key=_parameters, default=None) for others in fitting)
    return [None if other is None else other.provenance.reference for other in smallest]


def _parameters(model: Architecture) -> int:
    return weights(model, None).parameters


def _device(device: Device, offers: Iterable[Offer]) -> dict[str, Any]:
    """A device, with the options that each engine chooses there."""
    chosen = {
        offer.name: offer.choices.index(offer.cls.device_options(device.memory_bytes, device.name)) for offer in offers
    }
    return {
        "name": device.name,
        "title": device.title,
        "memory_bytes": device.memory_bytes,
        "platform": device.platform,
        "unified": device.unified,
        "inputs": {name: str(value) for name, value in device.inputs.items()},
        "choices": {name: choice for name, choice in chosen.items() if choice},
        "runs": [offer.name for offer in offers if runs_on(offer.name, device)],
    }
