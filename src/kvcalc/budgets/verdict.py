"""Budgets become verdicts; nothing here reads a file or knows a model by name.

A budget states a setup, a workload and limits. Every limit becomes one :class:`Check` (bytes used, bytes allowed); the
verdict is that of the worst of them. A baseline adds what changed since, part by part, and never loosens a limit.
A budget that nobody can judge has a verdict of its own, ``error``, and hides none of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import islice
from typing import Any, Literal

from kvcalc.architecture import Architecture
from kvcalc.budgets import mix
from kvcalc.budgets.baseline import Baseline, Change, compare, record_of
from kvcalc.budgets.budget import Budget, Part
from kvcalc.budgets.file import LocatedBudget, Place
from kvcalc.device import Device
from kvcalc.errors import KVCalcError
from kvcalc.fitting import Memory, Pool
from kvcalc.footprints import Footprint
from kvcalc.levers import Lever, levers, setup_levers
from kvcalc.setup import Setup, SetupOptions, prepare_on
from kvcalc.sources.resolve import split_variant
from kvcalc.units import BINARY_UNITS, format_bytes

Status = Literal["pass", "warn", "fail", "error", "added", "removed"]
_SEVERITY: dict[Status, int] = {"error": 0, "fail": 1, "warn": 2, "removed": 3, "added": 4, "pass": 5}
_MOST_HINTS = 4


@dataclass(frozen=True, slots=True)
class Check:
    """One limit of a budget, with what is used of it.

    Attributes:
        rule: the key that states the limit (``limit``, ``device``, ``overhead``, ``min_context`` ...).
        subject: what is measured, in a few words; empty for the total of the budget's own workload.
        used_bytes: bytes on one device.
        limit_bytes: the most that it may be.
        warn_bytes: from here it is a warning, or None.
        terms: how the limit came about, where the budget names a device.
        pool: the same term by term, or None.
    """

    rule: str
    subject: str
    used_bytes: int
    limit_bytes: int
    warn_bytes: int | None = None
    terms: str = ""
    pool: Pool | None = None

    @property
    def not_modelled(self) -> str:
        """Why the working memory of the engine is not among the terms, or empty."""
        return "" if self.pool is None else self.pool.not_modelled

    @property
    def headroom_bytes(self) -> int:
        """What is left of the limit; negative where it is exceeded."""
        return self.limit_bytes - self.used_bytes

    @property
    def status(self) -> Literal["pass", "warn", "fail"]:
        """Whether the limit holds."""
        if self.used_bytes > self.limit_bytes:
            return "fail"
        return "warn" if self.warn_bytes is not None and self.used_bytes >= self.warn_bytes else "pass"

    @property
    def headroom(self) -> float | None:
        """The headroom as a share of the limit."""
        return self.headroom_bytes / self.limit_bytes if self.limit_bytes else None

    def sentence(self, units: Mapping[str, int] = BINARY_UNITS) -> str:
        """Used, allowed and the difference; exact bytes where the rounded values would say nothing.

        >>> gib = 2**30
        >>> Check("limit", "", 41 * gib + gib // 5, 40 * gib).sentence()
        '41.2 GiB of 40.0 GiB, over by 1.2 GiB (3.0 %)'
        >>> Check("limit", "", 40 * gib + 1, 40 * gib).sentence()
        '42,949,672,961 B of 42,949,672,960 B, over by 1 B (0.0 %)'
        """
        shown = units
        sizes = [format_bytes(size, shown) for size in (self.used_bytes, self.limit_bytes)]
        if sizes[0] == sizes[1] and self.used_bytes != self.limit_bytes:
            shown = {"B": 1}
            sizes = [format_bytes(size, shown) for size in (self.used_bytes, self.limit_bytes)]
        difference = format_bytes(abs(self.headroom_bytes), shown)
        share = "" if self.headroom is None else f" ({abs(100 * self.headroom):,.1f} %)"
        prefix = f"{self.subject} " if self.subject else ""
        prefix += "without working memory " if self.not_modelled else ""
        ending = f"over by {difference}{share}" if self.headroom_bytes < 0 else f"{difference} left{share}"
        return f"{prefix}{sizes[0]} of {sizes[1]}, {ending}"


@dataclass(frozen=True)
class Verdict:
    """What one budget comes to.

    Attributes:
        name: the budget's name; with its file where another file has the same name.
        status: pass, warn or fail; ``error`` where it could not be judged; ``added`` where the baseline does not know a
            budget that holds; ``removed`` where the baseline has one that is gone.
        check: the limit with the least headroom, or None where there is nothing to compare with.
        checks: all of its limits.
        hints: what would fit, each computed, as lines of the budget's file.
        advice: what else can be done, in sentences.
        change: the difference from the baseline, where there is one.
        budget: what was stated, or None where nothing could be read.
        place: where it stands, or None for a removed one.
        footprint: what the workload takes, or None where it was not judged.
        error: why it could not be judged.
    """

    name: str
    status: Status
    check: Check | None = None
    checks: tuple[Check, ...] = ()
    hints: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    change: Change | None = None
    budget: Budget | None = field(default=None, hash=False)
    place: Place | None = None
    footprint: Footprint | None = None
    error: KVCalcError | None = None

    @property
    def message(self) -> str | None:
        """The budget's own words, where it does not hold."""
        return self.budget.message if self.budget is not None and self.status == "fail" else None

    @property
    def ok(self) -> bool:
        """Whether every limit of the budget holds."""
        return self.status not in ("fail", "error")

    @property
    def terms(self) -> str:
        """How the worst limit came about, where it is a device."""
        return "" if self.check is None else self.check.terms

    def sentence(self, units: Mapping[str, int] = BINARY_UNITS) -> str:
        """The verdict in one sentence: ``prod-128k: 41.2 GiB of 40.0 GiB, over by 1.2 GiB (3.0 %)``."""
        if self.error is not None:
            return f"{self.name}: {self.error}"
        if self.footprint is None:
            return f"{self.name}: in the baseline, and no longer among the budgets"
        if self.check is None:
            return f"{self.name}: {format_bytes(self.footprint.total_bytes, units)}, no baseline to compare with"
        return f"{self.name}: {self.check.sentence(units)}"


def judge(
    located: LocatedBudget,
    architecture: Architecture,
    device: Device | None = None,
    draft: Architecture | Literal["mtp"] | None = None,
    *,
    baseline: Baseline | None = None,
    name: str = "",
) -> Verdict:
    """The verdict of one budget, with the model, the device and the draft model that it names.

    Args:
        name: what reports and the baseline call it; empty is its own name.

    Raises:
        KVCalcError: the engine refuses the setup, or the workload.
    """
    budget, name = located.budget, name or located.name
    options: dict[str, Any] = {each: getattr(budget, each) for each in SetupOptions.__annotations__}
    setup, parts = prepare_on(device, architecture, **{**options, "draft": draft}), budget.parts
    footprint = mix.footprint(setup, parts)
    limits = tuple(_limits(budget, parts[0], device))
    checks = [limit.check(setup, parts) for limit in limits]
    hints, advice = [], []
    if any(check.status == "fail" for check in checks):
        hints = [lever.toml for lever in islice(_levers(budget, setup, limits), _MOST_HINTS)]
        if not hints:
            advice.append(f"no single change fits; the weights alone take {format_bytes(setup.weights.bytes)}")
    before = None if baseline is None else baseline.records.get(name)
    change = None if before is None else compare(before, record_of(budget.model, footprint, parts))
    if baseline is not None and change is not None and budget.max_increase is not None:
        grown = _increase_check(budget.max_increase, footprint.total_bytes, change)
        checks.append(grown)
        if grown.status == "fail":
            advice.append(f"to accept the increase: kvcalc check --save-baseline {baseline.file}, without --baseline")
    worst = min(checks, key=_how_bad, default=None)
    # Without a baseline a budget that only limits the increase has nothing to compare with: it holds.
    status: Status = "pass" if worst is None else worst.status
    if status == "pass" and baseline is not None and before is None:
        status = "added"
    return Verdict(
        name,
        status,
        worst,
        tuple(checks),
        tuple(hints),
        tuple(advice),
        change,
        budget,
        located.place,
        footprint,
    )


def _how_bad(check: Check) -> tuple[int, float]:
    return _SEVERITY[check.status], -1.0 if check.headroom is None else check.headroom


def _increase_check(allowed: Fraction | int, total_bytes: int, change: Change) -> Check:
    old = total_bytes - change.total_bytes
    most = old + (old * allowed.numerator // allowed.denominator if isinstance(allowed, Fraction) else allowed)
    return Check("max_increase", "with max_increase over the baseline,", total_bytes, most)


@dataclass(frozen=True, slots=True)
class _Limit:
    """A limit that any workload can be held against.

    Attributes:
        part: what is measured.
        size: the limit in bytes, a share of the weights, or the device with what the engine takes of it.
        parts: the workload that must fit in place of the budget's own.
    """

    rule: str
    subject: str
    part: Literal["total", "device", "kv_cache", "weights", "overhead"]
    size: int | Fraction | Memory
    warn_at: Fraction | int | None = None
    parts: tuple[Part, ...] = ()

    def check(self, setup: Setup, parts: tuple[Part, ...]) -> Check:
        """The limit with what a workload uses of it."""
        parts, terms, pool = self.parts or parts, "", None
        used = 0
        if self.part != "weights":
            # A device must hold what the engine needs to start, which may be more than the cache it uses.
            used = (mix.required_kv_memory if self.part == "device" else mix.kv_bytes)(setup, parts)
        if self.part in ("total", "device", "weights"):
            used += setup.weights.bytes
        match self.size:
            case Memory():
                part = mix.whole(parts)
                pool = self.size.pool(setup, part.context, part.batch_size)
                limit, terms = max(0, pool.kv_memory + setup.weights.bytes), _terms(self.size, pool)
            case Fraction():
                limit = setup.weights.bytes * self.size.numerator // self.size.denominator
            case _:
                limit = self.size
        warn = self.warn_at
        if isinstance(warn, Fraction):
            warn = -(-limit * warn.numerator // warn.denominator)
        return Check(self.rule, self.subject, used, limit, warn, terms, pool)


def _terms(memory: Memory, pool: Pool) -> str:
    """What a device leaves for weights and KV cache, term by term."""
    device, share = memory.device, pool.utilization
    assert device is not None and share is not None
    words = f"{device.name}: {device.memory_bytes:,} B x {float(100 * share):g} %"
    words += f" - {pool.loading_bytes:,} B added by loading" if pool.loading_bytes else ""
    words += "".join(f" - {term.size:,} B of {term.words}" for term in pool.terms)
    return words + (f" - {memory.reserve:,} B in reserve" if memory.reserve else "")


_SUBJECTS = {"total": "", "device": "", "kv_cache": "KV cache", "weights": "weights"}


def _limits(budget: Budget, own: Part, device: Device | None) -> Iterator[_Limit]:
    """Every limit of a budget but the one against a baseline."""
    stated: list[_Limit] = []
    if budget.limit is not None:
        stated.append(_Limit("limit", _SUBJECTS[budget.on], budget.on, budget.limit, budget.warn_at))
    if device is not None:
        memory = Memory(device=device, utilization=budget.utilization, reserve=budget.reserve)
        stated.append(_Limit("device", "", "device", memory, budget.warn_at))
    if budget.overhead is not None:
        percent = float(100 * budget.overhead)
        subject = f"KV cache (at most {percent:g} % of the weights)"
        stated.append(_Limit("overhead", subject, "overhead", budget.overhead))
    yield from stated
    for limit in stated:
        if limit.part == "weights":
            continue
        prefix = f" {limit.subject}" if limit.subject else ""
        if budget.min_context is not None and budget.min_context != own.context:
            subject = f"at {budget.min_context:,} tokens (min_context){prefix}"
            longer = (Part(own.batch_size, budget.min_context),)
            yield replace(limit, rule="min_context", subject=subject, parts=longer)
        if budget.min_batch is not None and budget.min_batch != own.batch_size:
            subject = f"at batch size {budget.min_batch:,} (min_batch){prefix}"
            yield replace(limit, rule="min_batch", subject=subject, parts=(Part(budget.min_batch, own.context),))


def _levers(budget: Budget, setup: Setup, limits: tuple[_Limit, ...]) -> Iterator[Lever]:
    """What would fit, one change at a time; nothing is said that was not computed."""
    parts, reference = budget.parts, split_variant(budget.model)[0]
    part = mix.whole(parts)

    def fits(changed: Setup, parts: tuple[Part, ...]) -> bool:
        return all(limit.check(changed, parts).status != "fail" for limit in limits)

    if len(parts) > 1:
        return setup_levers(setup, part.context, part.batch_size, lambda changed: fits(changed, parts), reference)
    return levers(
        setup,
        part.context,
        part.batch_size,
        lambda changed, context, batch_size: fits(changed, (Part(batch_size, context),)),
        reference,
    )
