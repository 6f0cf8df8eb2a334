"""What a page carries: every model in every engine, version, format and size, as formulas and their numbers.

The keys of the answer are read by ``calculator.js``:

- ``shapes``: derivations without their numbers, each a list of ``[symbol, formula, meaning, unit, source]``;
- ``engines``: by name, what may be picked, and how a server is started;
- ``devices``: with the options that an engine chooses there, and the inputs that formulas need of them;
- ``models``: by name, ``cases`` (the caches), ``loads`` (weights), ``steps`` (working memory) and ``texts`` (reasons
  and notes); what an engine says of a combination is a place in one of them, or a text where it refuses.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import groupby, product
from multiprocessing import get_context
from typing import Any

from kvcalc import __version__
from kvcalc.alternatives import runs_on, usual_engine
from kvcalc.architecture import Architecture
from kvcalc.derivation import Quantity
from kvcalc.device import Device
from kvcalc.dtypes import DTYPES
from kvcalc.engines import engine_class, make_engine
from kvcalc.engines.base import Engine, WorkingMemory
from kvcalc.errors import KVCalcError, NotModelledError
from kvcalc.fitting import Memory
from kvcalc.page.formulas import INPUTS, formulas_of, is_input, split
from kvcalc.report.strips import strip
from kvcalc.serving import option_words, served_name
from kvcalc.setup import Setup, prepare
from kvcalc.sources.preset import known_names, presets
from kvcalc.sources.resolve import load

#: Tensor-parallel sizes that may be picked.
SIZES = (1, 2, 4, 8, 16, 32)
#: Formats of K and V in versions before the newest: the model's own and fp8, in the sizes of one machine.
_OLDER_FORMATS, _OLDER_SIZES = ("fp8_e4m3",), (1, 2, 4, 8)
#: Fewer models are prepared in less time than processes take to start.
_FEW_MODELS = 8
#: The largest integer that JSON's readers keep exactly; larger ones are texts.
_MOST_EXACT = 2**53 - 1


class _Places:
    """Values, each kept once, and where each is."""

    def __init__(self) -> None:
        self.values: dict[Hashable, int] = {}

    def of(self, value: Hashable) -> int:
        return self.values.setdefault(value, len(self.values))

    def listed(self) -> list[Any]:
        return list(self.values)


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
    exported = {name: _Engine(name, devices) for name in engines}
    shapes, found = _Places(), {}
    for name, (each, own) in zip(models, _each(models, engines, devices, workers), strict=True):
        said(name)
        found[name] = each
        places = [shapes.of(shape) for shape in own]
        each["cases"] = [(places[one], a, several if several < 0 else places[several], b, notes)
                         for one, a, several, b, notes in each["cases"]]  # fmt: skip
        each["steps"] = [(places[shape], *rest) for shape, *rest in each["steps"]]
        for engine in exported.values():
            engine.learn(each["engines"][engine.name])
    for engine in exported.values():
        for each in found.values():
            engine.pack(each["engines"][engine.name])
    return {
        "tool": __version__,
        "sizes": SIZES,
        "unnamed": {name: str(value) for name, value in _UNNAMED.inputs.items()},
        "shapes": shapes.listed(),
        "engines": {name: engine.exported() for name, engine in exported.items()},
        "devices": [_device(device, exported.values()) for device in devices],
        "models": found,
    }


def _each(
    models: Sequence[str], engines: Sequence[str], devices: Sequence[Device], workers: int
) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """Every model's tables with their own shapes, in the order of the models."""
    work = partial(_exported, tuple(engines), tuple(devices))
    if workers == 1 or len(models) < _FEW_MODELS:
        yield from map(work, models)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _leave_signals) as pool:
        yield from pool.map(work, models)


def _exported(engines: Sequence[str], devices: Sequence[Device], reference: str) -> tuple[dict[str, Any], list[Any]]:
    shapes = _Places()
    model = _Model(load(reference), shapes, [_Engine(name, devices) for name in engines])
    names = known_names(reference) if reference in presets() else [reference]
    return model.exported(names), shapes.listed()


def _leave_signals() -> None:
    """An interrupt ends a worker without a word: its parent says what is to be said."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class _Engine:
    """An engine as a page knows it: what may be picked, and the formats that any model took."""

    def __init__(self, name: str, devices: Sequence[Device]) -> None:
        self.name, self.cls = name, engine_class(name)
        self.groups = self.cls.releases or ((self.cls.follows,),)
        self.weight_formats = (None, "bf16", *self.cls.weight_formats)
        self.choices: list[dict[str, Any]] = [{}]
        for device in devices:
            options = self.cls.device_options(device.memory_bytes, device.name)
            if options not in self.choices:
                self.choices.append(options)
        classes = {(each.platform, each.unified): each for each in (*devices, _UNNAMED)}
        self.platforms = dict(sorted(classes.items()))
        self.kv_formats: dict[str, None] = {}

    def version(self, group: int) -> dict[str, str]:
        """The option that names a group's version, where the engine has it."""
        return {"version": self.groups[group][0]} if self.cls.releases else {}

    def made(self, group: int, choice: int = 0) -> Engine:
        """The engine itself."""
        return make_engine(self.name, {**self.choices[choice], **self.version(group)})

    @property
    def takes_pairs(self) -> bool:
        """Whether K and V have formats of their own."""
        return self.cls.server is not None and "v_dtype" in self.cls.server.flags

    def learn(self, cells: dict[str, Any]) -> None:
        """The formats that a model took."""
        for table in cells["kv"]:
            self.kv_formats |= {each: None for (_, each), places in table.items() if _taken(places)}

    def pack(self, cells: dict[str, Any]) -> None:
        """One model's cells in the order of all formats, equal neighbours together."""
        order = [(group, kv) for group in range(len(self.groups)) for kv in self.kv_formats]
        absent = (None,) * len(SIZES)
        cells["kv"] = [_runs(place for key in order for place in table.get(key, absent)) for table in cells["kv"]]

    def exported(self) -> dict[str, Any]:
        server, newest = self.cls.server, self.made(0)
        return {
            "summary": self.cls.summary,
            "releases": self.groups if self.cls.releases else [],
            "follows": self.cls.follows,
            "utilization": [self.made(group).utilization_percent for group in range(len(self.groups))],
            "sets_aside": self.cls.sets_aside,
            "kv_formats": list(self.kv_formats),
            "pairs": self.takes_pairs,
            "weight_formats": [each or "" for each in self.weight_formats],
            "platforms": [f"{platform} {unified}" for platform, unified in self.platforms],
            "choices": [{name: str(value) for name, value in choice.items()} for choice in self.choices],
            "inputs": {name: str(getattr(newest, name)) for name in sorted(INPUTS) if hasattr(newest, name)},
            "limits": [
                [None if limit is None else str(limit) for limit in (made.batch_limit, made.context_limit)]
                for made in (self.made(0, choice) for choice in range(len(self.choices)))
            ],
            "sources": self.cls.sources,
            "excluded": self.cls.not_modelled,
            "server": None
            if server is None
            else {
                "program": server.program,
                "flags": list(server.flags.items()),
                "option": server.option,
                "no_flags": sorted(server.no_flags),
            },
        }


_UNNAMED = Device(name="", title="a device", memory_bytes=1, measured=False, source="as given", platform="cuda")


class _Model:
    """One model's tables, as they are filled."""

    def __init__(self, model: Architecture, shapes: _Places, engines: Iterable[_Engine]) -> None:
        self.model, self.shapes, self.engines = model, shapes, engines
        self.cases, self.loads, self.steps, self.texts = _Places(), _Places(), _Places(), _Places()

    def exported(self, names: Sequence[str]) -> dict[str, Any]:
        own = {engine.name: self._cells(engine) for engine in self.engines}
        order = strip(self.model.name, self.model)
        return {
            "names": names[1:],
            "layout": self.model.layout,
            "max_context": self.model.max_context,
            "kinds": order.kinds,
            "order": _runs(order.order),
            "cases": self.cases.listed(),
            "loads": self.loads.listed(),
            "steps": self.steps.listed(),
            "texts": self.texts.listed(),
            "engines": own,
        }

    def _cells(self, engine: _Engine) -> dict[str, Any]:
        default = engine.made(0).default_kv_dtypes(self.model)
        setups = [self._prepared(engine, 0, choice, None, 1) for choice in range(len(engine.choices))]
        # What an engine chooses on a device is mostly an input of its formulas, and the rest of the table is the same.
        alike = len({self._case(setup) for setup in setups}) == 1
        kv = [self._table(engine, choice) for choice in range(1 if alike else len(engine.choices))]
        base = next((each for each in setups if isinstance(each, Setup)), None)
        weights = [self._load(base, each, size) for size in SIZES for each in engine.weight_formats]
        working, by_format = self._working(engine, setups[0], kv[0])
        return {
            "default": "/".join(dict.fromkeys(each.name for each in default)),
            "kv": kv,
            "weights": _runs(weights),
            "working": working,
            "by_format": by_format,
            "served": served_name(engine.name, self.model.provenance.reference),
            "flags": [_flags(engine.made(0, choice), self.model) for choice in range(len(engine.choices))],
        }

    def _working(
        self, engine: _Engine, default: Setup | str, table: Mapping[tuple[int, str], Sequence[int | None]]
    ) -> tuple[dict[str, list[Any]], bool]:
        """Working memory by format of K and V ("" where it changes nothing), and whether the weights' format counts.

        What changes nothing on one device does not on several either.
        """
        steps = [self._steps(default, each, engine) for each in engine.weight_formats]
        formats = engine.weight_formats if any(each != steps[0] for each in steps) else (None,)
        taken: list[str | None] = [each for (group, each), places in table.items() if not group and _taken(places)]
        in_formats = [self._steps(self._prepared(engine, 0, 0, each, 1), None, engine) for each in taken]
        if all(each == steps[0] for each in in_formats):
            taken = [None]
        absent = [None] * len(engine.platforms)
        working = {
            kv_format or "": _runs(
                step
                for group in range(len(engine.groups))
                for size in SIZES
                for setup in [self._prepared(engine, group, 0, kv_format, size)]
                for each in formats
                for step in (self._steps(setup, each, engine) if size in _sizes(group) else absent)
            )
            for kv_format in taken
        }
        return working, len(formats) > 1

    def _steps(self, setup: Setup | str, weight_format: str | None, engine: _Engine) -> list[int]:
        """Where the working memory on each platform is."""
        if isinstance(setup, Setup) and weight_format is not None:
            setup = replace(setup, weights_dtype=weight_format)
        return [self._step(setup, device) for device in engine.platforms.values()]

    def _table(self, engine: _Engine, choice: int) -> dict[tuple[int, str], list[int | None]]:
        """The place of each version's and format's cache in every size."""
        table = {}
        for group in range(len(engine.groups)):
            default = "/".join(dict.fromkeys(each.name for each in engine.made(group).default_kv_dtypes(self.model)))
            formats = list(DTYPES) if group == 0 else [*dict.fromkeys((default, *_OLDER_FORMATS))]
            for kv_format in formats:
                table[group, kv_format] = self._places(engine, group, choice, kv_format)
            if group == 0 and engine.takes_pairs:
                taken = [each for each in DTYPES if _taken(table[0, each])]
                for key, value in product(taken, taken):
                    if key != value:
                        pair = f"{key}/{value}"
                        table[group, pair] = self._places(engine, group, choice, pair)
        return table

    def _places(self, engine: _Engine, group: int, choice: int, kv_format: str) -> list[int | None]:
        return [
            self._case(self._prepared(engine, group, choice, kv_format, size)) if size in _sizes(group) else None
            for size in SIZES
        ]

    def _prepared(self, engine: _Engine, group: int, choice: int, kv_format: str | None, size: int) -> Setup | str:
        """A setup, or why the engine refuses it."""
        try:
            return prepare(
                self.model,
                engine=engine.name,
                engine_options={**engine.choices[choice], **engine.version(group)},
                kv_cache_dtype=kv_format,
                tensor_parallel_size=size,
            )
        except KVCalcError as error:
            return _reason(error)

    def _case(self, setup: Setup | str) -> int:
        """Where a cache's formulas are; below 0, where the reason of a refusal is."""
        if isinstance(setup, str):
            return -1 - self.texts.of(setup)
        try:
            formulas = formulas_of(setup)
        except NotModelledError as error:
            return -1 - self.texts.of(_reason(error))
        one, several = self._shape(formulas.one), self._shape(formulas.several)
        notes = tuple(self.texts.of(note) for note in _lasting_notes(setup))
        return self.cases.of((*one, *((-1, ()) if several == one else several), notes))

    def _load(self, setup: Setup | None, weight_format: str | None, size: int) -> int:
        """Where the weights of a format on one of so many devices are."""
        if setup is None:
            return -1 - self.texts.of("the engine does not run this model")
        try:
            found = replace(setup, weights_dtype=weight_format, tensor_parallel_size=size).weights
        except KVCalcError as error:
            return -1 - self.texts.of(_reason(error))
        notes = tuple(self.texts.of(note) for note in found.notes)
        return self.loads.of((found.bytes, found.parameters, found.dtype, found.exact, notes))

    def _step(self, setup: Setup | str, device: Device) -> int:
        """Where the working memory on a device's platform is; in a reason, ``{device}`` is its title."""
        if isinstance(setup, str):
            return -1 - self.texts.of(setup)
        try:
            # The pool of one question, so that what has no formula says what kvcalc fit says.
            pool = Memory(device=device).pool(setup, 4096, 2)
        except KVCalcError as error:
            return -1 - self.texts.of(_reason(error))
        working, reason = pool.working_memory or WorkingMemory(), pool.not_modelled.replace(device.title, "{device}")
        notes = tuple(self.texts.of(note) for note in working.notes)
        # What loading adds to weights depends on the device as they do, and is known where working memory is not.
        return self.steps.of(
            (*self._shape((*working.quantities, *pool.loading)), notes, self.texts.of(reason) if reason else None)
        )

    def _shape(self, quantities: Iterable[Quantity]) -> tuple[int, tuple[int | str, ...]]:
        """Where the texts of a derivation are, and its numbers; an input has none, because the page gives it."""
        lines, numbers = [], []
        for each in quantities:
            formula, in_formula = ("", []) if is_input(each) else split(each.formula)
            meaning, in_meaning = split(each.meaning)
            lines.append((each.symbol, formula, meaning, each.unit, each.source))
            numbers += in_formula + in_meaning
        return self.shapes.of(tuple(lines)), tuple(map(_number, numbers))


def _flags(engine: Engine, model: Architecture) -> list[str]:
    """The options of an engine as the words of its server's line."""
    return [] if engine.server is None else option_words(engine, engine.server, model)


def _sizes(group: int) -> tuple[int, ...]:
    return SIZES if group == 0 else _OLDER_SIZES


def _taken(places: Iterable[int | None]) -> bool:
    return any(place is not None and place >= 0 for place in places)


def _lasting_notes(setup: Setup) -> Iterator[str]:
    """What a reader must know at any context: the notes of the model, and those of its cache that stay."""
    short, long = (setup.plan.allocate(context, 1).notes for context in (1, 2**21))
    yield from (*setup.architecture.provenance.notes, *setup.cache_notes, *(note for note in short if note in long))


def _reason(error: KVCalcError) -> str:
    return f"{error.message}; {error.hint}" if error.hint else error.message


def _number(text: str) -> int | str:
    """A number as JSON has it; one with leading zeros, a fraction or too many digits is a text."""
    return int(text) if text.isdecimal() and str(int(text)) == text and int(text) <= _MOST_EXACT else text


def _runs(values: Iterable[Any]) -> list[Any]:
    """Equal neighbours as a value and their number.

    >>> _runs([7, 7, 7, None])
    [7, 3, None, 1]
    """
    return [part for value, same in groupby(values) for part in (value, sum(1 for _ in same))]


def _device(device: Device, engines: Iterable[_Engine]) -> dict[str, Any]:
    """A device, with the options that each engine chooses there."""
    chosen = {
        engine.name: engine.choices.index(engine.cls.device_options(device.memory_bytes, device.name))
        for engine in engines
    }
    return {
        "name": device.name,
        "title": device.title,
        "memory_bytes": device.memory_bytes,
        "source": device.source,
        "platform": device.platform,
        "unified": device.unified,
        "inputs": {name: str(value) for name, value in device.inputs.items()},
        "choices": {name: choice for name, choice in chosen.items() if choice},
        "usual": usual_engine(device),
        "runs": [engine.name for engine in engines if runs_on(engine.name, device)],
    }
