"""One model's tables: in every engine, for every row, format and size, where its formulas are, or why none are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

from kvcalc.architecture import Architecture
from kvcalc.derivation import Quantity
from kvcalc.device import Device
from kvcalc.dtypes import DTYPES, parse_kv_dtypes
from kvcalc.engines.base import WorkingMemory
from kvcalc.errors import KVCalcError, NotModelledError
from kvcalc.fitting import Memory
from kvcalc.page.formulas import formulas_of
from kvcalc.page.offers import OTHER, SIZES, Offer
from kvcalc.page.packing import Places, runs, shape
from kvcalc.report.strips import strip
from kvcalc.serving import served_name
from kvcalc.setup import MTP, Setup

#: A place in a list; below 0, the place of a reason in ``texts``; None where the page has nothing.
Place = int | None


class Tables:
    """One model's tables, as they are filled.

    Attributes:
        model: the model.
        draft: another model of the page that may be its draft, or None.
        shapes: the texts of derivations, shared with the other models.
        prepared: a row in a choice, format and size: its setup, or why the engine refuses it.
    """

    def __init__(self, model: Architecture, draft: Architecture | None, shapes: Places) -> None:
        self.model, self.draft, self.shapes = model, draft, shapes
        self.cases, self.loads, self.texts, self.lines = Places(), Places(), Places(), Places()
        self.held, self.steps, self.loadings = Places(), Places(), Places()
        self.prepared = cache(self._prepared)

    def exported(self, names: Sequence[str], offers: Iterable[Offer]) -> dict[str, Any]:
        """All that a page knows of the model."""
        engines = {offer.name: self._cells(offer) for offer in offers}
        order = strip(self.model.name, self.model)
        return {
            "names": names[1:],
            "layout": self.model.layout,
            "max_context": self.model.max_context,
            "drafts": self._drafts(),
            "kinds": order.kinds,
            "order": runs(order.order),
            "cases": self.cases.listed(),
            "loads": self.loads.listed(),
            "held": self.held.listed(),
            "steps": self.steps.listed(),
            "loadings": self.loadings.listed(),
            "texts": self.texts.listed(),
            "lines": self.lines.listed(),
            "engines": engines,
        }

    def _drafts(self) -> list[str]:
        other = [] if self.draft is None else [self.draft.provenance.reference or self.draft.name]
        return [MTP, *other] if self.model.mtp_layers else other

    def _cells(self, offer: Offer) -> dict[str, Any]:
        choices = range(len(offer.choices))
        # What an engine chooses on a device is mostly an input of its formulas, and the rest of the table is the same.
        alike = len({self._case(self.prepared(offer, 0, choice, None, 1)) for choice in choices}) == 1
        kv = [self._caches(offer, choice) for choice in choices[: 1 if alike else None]]
        rows = range(len(offer.rows))
        weights = {row: self._weights(offer, row) for row in rows if not row or self._weighs(offer, row)}
        working, by_format = self._working(offer, list(kv[0]))
        return {
            "default": _default(offer, 0, self.model),
            "kv": [{each: runs(places) for each, places in table.items()} for table in kv],
            "weights": {row: runs(places) for row, places in weights.items()},
            "working": {each: runs(places) for each, places in working.items()},
            "by_format": by_format,
            "served": served_name(offer.cls.server, self.model.provenance.reference),
            "elsewhere": offer.elsewhere(self.model),
            "flags": self.lines.of(tuple(map(tuple, offer.flags(self.model)))),
        }

    # --- The cache ---------------------------------------------------------------------------------------------------

    def _caches(self, offer: Offer, choice: int) -> dict[str, list[Place]]:
        """Where the cache of each format is, for every row in every size."""

        def places(kv_format: str) -> list[Place]:
            asked = (self._asked(offer, row, choice, kv_format, size) for row, size in offer.cells)
            return [None if setup is None else self._case(setup) for setup in asked]

        singles = [each for each in DTYPES if self._takes(offer, choice, each)]
        pairs = (f"{key}/{value}" for key, value in product(singles, singles) if offer.takes_pairs and key != value)
        return {kv_format: places(kv_format) for kv_format in (*singles, *pairs)}

    def _takes(self, offer: Offer, choice: int, kv_format: str) -> bool:
        """Whether the newest version takes a format in any size."""
        return any(isinstance(self.prepared(offer, 0, choice, kv_format, size), Setup) for size in SIZES)

    def _asked(self, offer: Offer, row: int, choice: int, kv_format: str | None, size: int) -> Setup | str | None:
        """A setup, or why the engine refuses it, or None where the page has not this row in this format and size."""
        has = offer.rows[row].has(size, kv_format, _default(offer, row, self.model))
        return self.prepared(offer, row, choice, kv_format, size) if has else None

    def _prepared(self, offer: Offer, row: int, choice: int, kv_format: str | None, size: int) -> Setup | str:
        asked = offer.rows[row].draft
        if asked == OTHER and self.draft is None:
            return "this page has no draft for this model"
        try:
            engine = offer.made(row, choice)
            formats = engine.default_kv_dtypes(self.model) if kv_format is None else parse_kv_dtypes(kv_format)
            draft = self.model.mtp if asked == MTP else self.draft if asked else None
            setup = Setup(self.model, engine, *formats, tensor_parallel_size=size, draft=draft)
            _ = setup.plan  # refusals come here
        except KVCalcError as error:
            return _reason(error)
        return setup

    def _case(self, setup: Setup | str) -> int:
        """Where a cache's formulas are."""
        if isinstance(setup, str):
            return self._refused(setup)
        try:
            formulas = formulas_of(setup)
        except NotModelledError as error:
            return self._refused(_reason(error))
        one, several = self._shape(formulas.one), self._shape(formulas.several)
        notes = tuple(self.texts.of(note) for note in _lasting_notes(setup))
        return self.cases.of((*one, *((-1, ()) if several == one else several), notes))

    # --- Weights -----------------------------------------------------------------------------------------------------

    def _weighs(self, offer: Offer, row: int) -> bool:
        """Whether a row changes the weights on a device: a draft and pipeline stages do."""
        setup = self._some(offer, row)
        if setup is None or offer.rows[row].options.keys() == {"version"}:
            return False
        size, plain = setup.tensor_parallel_size, replace(setup, engine=offer.made(), draft=None)
        return self._load(setup, None, size) != self._load(plain, None, size)

    def _some(self, offer: Offer, row: int) -> Setup | None:
        """A row in the first format and size that the engine takes: the model's own cache format may be none of its."""
        found = (self.prepared(offer, row, 0, each, size) for each in (None, *DTYPES) for size in SIZES[:2])
        return next((each for each in found if isinstance(each, Setup)), None)

    def _weights(self, offer: Offer, row: int) -> list[Place]:
        setup = self._some(offer, row)
        return [
            self._load(setup, each, size) if offer.rows[row].has(size) else None
            for size in SIZES
            for each in offer.weight_formats
        ]

    def _load(self, setup: Setup | None, weight_format: str | None, size: int) -> int:
        """Where the weights of a format on one of so many devices are."""
        if setup is None:
            return self._refused("the engine does not run this model")
        try:
            found = replace(setup, weights_dtype=weight_format, tensor_parallel_size=size).weights
        except KVCalcError as error:
            return self._refused(_reason(error))
        notes = tuple(self.texts.of(note) for note in found.notes)
        return self.loads.of((found.bytes, found.parameters, found.dtype, found.exact, notes))

    # --- Working memory ----------------------------------------------------------------------------------------------

    def _working(self, offer: Offer, kv_formats: Sequence[str]) -> tuple[dict[str, list[Place]], bool]:
        """What a device holds beside the files, and whether that is another for each format of the weights.

        By format of K and V, or under "" where that changes nothing. What changes nothing on one device does not on
        several either; a row that changes nothing for the weights as they ship changes nothing for others, but a
        draft does: 25 MB of rounding of Gemma 3 4B's tensors in mxfp4, and none as it ships.
        """
        plain = self.prepared(offer, 0, 0, None, 1)
        as_shipped = self._held(offer, plain, None)
        by_format = any(self._held(offer, plain, each) != as_shipped for each in offer.weight_formats)
        formats = offer.weight_formats if by_format else (None,)
        in_formats = (self._held(offer, self.prepared(offer, 0, 0, each, 1), None) for each in kv_formats)
        by_kv_format = any(each != as_shipped for each in in_formats)
        working: dict[str, list[Place]] = {}
        for kv_format in kv_formats if by_kv_format else (None,):
            places = working[kv_format or ""] = []
            for row, size in offer.cells:
                setup = self._asked(offer, row, 0, kv_format, size)
                as_newest = places[(at := SIZES.index(size) * len(formats)) : at + len(formats)]
                if not isinstance(setup, Setup):  # what has no cache is not asked about the rest
                    places += [None] * len(formats)
                elif as_newest and not offer.rows[row].draft and self._held(offer, setup, None) == as_newest[0]:
                    places += as_newest
                else:
                    places += [self._held(offer, setup, each) for each in formats]
        return working, by_format

    def _held(self, offer: Offer, setup: Setup | str, weight_format: str | None) -> int:
        """Where the working memory, and what loading adds to the weights, are on each platform."""
        if isinstance(setup, str):
            return self._refused(setup)
        if weight_format is not None:
            setup = replace(setup, weights_dtype=weight_format)
        return self.held.of(tuple(place for device in offer.platforms.values() for place in self._on(setup, device)))

    def _on(self, setup: Setup, device: Device) -> tuple[int, int]:
        """Where both are on a device's platform; in a reason, ``{device}`` is its title."""
        try:
            # The pool of one question, so that what has no formula says what kvcalc fit says.
            pool = Memory(device=device).pool(setup, 4096, 2)
        except KVCalcError as error:
            place = self._refused(_reason(error))
            return place, place
        working, reason = pool.working_memory or WorkingMemory(), pool.not_modelled.replace(device.title, "{device}")
        notes = tuple(self.texts.of(note) for note in working.notes)
        step = (*self._shape(working.quantities), notes, self.texts.of(reason) if reason else None)
        return self.steps.of(step), self.loadings.of(self._shape(pool.loading))

    # --- All of them -------------------------------------------------------------------------------------------------

    def _refused(self, reason: str) -> int:
        return -1 - self.texts.of(reason)

    def _shape(self, quantities: Iterable[Quantity]) -> tuple[int, tuple[int | str, ...]]:
        """Where the texts of a derivation are, and its numbers."""
        lines, numbers = shape(quantities)
        return self.shapes.of(lines), numbers


def _default(offer: Offer, row: int, model: Architecture) -> str:
    """The formats of K and V where nobody names any."""
    return "/".join(dict.fromkeys(each.name for each in offer.made(row).default_kv_dtypes(model)))


def _lasting_notes(setup: Setup) -> Iterator[str]:
    """What a reader must know at any context: the notes of the model, and those of its cache that stay."""
    short, long = (setup.plan.allocate(context, 1).notes for context in (1, 2**21))
    yield from (*setup.architecture.provenance.notes, *setup.cache_notes, *(note for note in short if note in long))


def _reason(error: KVCalcError) -> str:
    return f"{error.message}; {error.hint}" if error.hint else error.message
