"""Budgets and baselines become verdicts; nothing here reads a file or knows a model by name.

A budget states a configuration and its limits. Every limit becomes one :class:`Check` (bytes used, bytes allowed);
the verdict is that of the worst of them. A baseline adds what changed since, part by part, and never loosens a limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import islice
from typing import Any, Literal

from kvcalc.architecture import Architecture
from kvcalc.budgets.file import BASELINE_VERSION, Budget, LocatedBudget
from kvcalc.dtypes import parse_kv_dtypes
from kvcalc.engines import make_engine
from kvcalc.engines.base import Engine
from kvcalc.errors import KVCalcError, raise_all
from kvcalc.footprints import Footprint, footprint_of
from kvcalc.setup import Setup, prepare
from kvcalc.units import BINARY_UNITS, format_bytes, largest

Status = Literal["pass", "warn", "fail", "added", "removed"]
_SEVERITY: dict[Status, int] = {"fail": 0, "warn": 1, "removed": 2, "added": 3, "pass": 4}
_NO_EXTRA: dict[str, Any] = {}


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
    """

    rule: str
    subject: str
    used_bytes: int
    limit_bytes: int
    warn_bytes: int | None = None
    terms: str = ""

    @property
    def headroom_bytes(self) -> int:
        """What is left of the limit; negative where it is exceeded."""
        return self.limit_bytes - self.used_bytes

    @property
    def status(self) -> Status:
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
        shown = dict(units)
        sizes = [format_bytes(size, shown) for size in (self.used_bytes, self.limit_bytes)]
        if sizes[0] == sizes[1] and self.used_bytes != self.limit_bytes:
            shown = {"B": 1}
            sizes = [format_bytes(size, shown) for size in (self.used_bytes, self.limit_bytes)]
        difference = format_bytes(abs(self.headroom_bytes), shown)
        share = "" if self.headroom is None else f" ({abs(100 * self.headroom):,.1f} %)"
        prefix = f"{self.subject} " if self.subject else ""
        ending = f"over by {difference}{share}" if self.headroom_bytes < 0 else f"{difference} left{share}"
        return f"{prefix}{sizes[0]} of {sizes[1]}, {ending}"


@dataclass(frozen=True)
class Change:
    """The difference from a baseline.

    Attributes:
        total_bytes: by how much the total grew (negative: shrank).
        parts: the difference part by part (weights, local layers, global layers, states, other layers, padding); their
            sum is ``total_bytes``.
        inputs: what was changed, each as (what, before, now).
    """

    total_bytes: int
    parts: dict[str, int] = field(hash=False)
    inputs: tuple[tuple[str, Any, Any], ...]

    @property
    def is_one(self) -> bool:
        """Whether anything changed at all."""
        return any(self.parts.values()) or bool(self.inputs)

    def sentence(self, units: Mapping[str, int] = BINARY_UNITS) -> str:
        """Which part changed by how much, and which input."""
        if not self.is_one:
            return "no change since the baseline"
        sign = "+" if self.total_bytes >= 0 else "-"
        words = [f"{sign}{format_bytes(abs(self.total_bytes), dict(units))} since the baseline"]
        parts = sorted(((part, size) for part, size in self.parts.items() if size), key=lambda pair: -abs(pair[1]))
        if parts:
            listed = ", ".join(
                f"{part} {'+' if size > 0 else '-'}{format_bytes(abs(size), dict(units))}" for part, size in parts
            )
            words.append(listed)
        if self.inputs:
            words.append(
                "changed: " + ", ".join(f"{what} {_word(old)} -> {_word(new)}" for what, old, new in self.inputs)
            )
        return "; ".join(words)


def _word(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "none" if value is None else str(value)


@dataclass(frozen=True)
class Verdict:
    """What one budget comes to.

    Attributes:
        name: the budget's name.
        status: pass, warn or fail; ``added`` where the baseline does not know a budget that holds; ``removed`` where
            the baseline has one that is gone.
        check: the limit with the least headroom, or None where there is nothing to compare with.
        checks: all of its limits.
        hints: what would fit, each computed.
        change: the difference from the baseline, where there is one.
        located: the budget and its place, or None for a removed one.
        footprint: what the configuration takes, or None likewise.
    """

    name: str
    status: Status
    check: Check | None
    checks: tuple[Check, ...] = ()
    hints: tuple[str, ...] = ()
    change: Change | None = None
    located: LocatedBudget | None = field(default=None, hash=False)
    footprint: Footprint | None = None

    @property
    def message(self) -> str | None:
        """The budget's own words, where it does not hold."""
        return self.located.budget.message if self.located is not None and self.status == "fail" else None

    @property
    def ok(self) -> bool:
        """Whether every limit of the budget holds."""
        return self.status != "fail"

    def sentence(self, units: Mapping[str, int] = BINARY_UNITS) -> str:
        """The verdict in one sentence: ``prod-128k: 41.2 GiB of 40.0 GiB, over by 1.2 GiB (3.0 %)``."""
        if self.footprint is None:
            return f"{self.name}: in the baseline, and no longer among the budgets"
        if self.check is None:
            return f"{self.name}: {format_bytes(self.footprint.total_bytes, dict(units))}, no baseline to compare with"
        return f"{self.name}: {self.check.sentence(units)}"


@dataclass(frozen=True)
class Subject:
    """A budget with all that is needed to judge it: its models, and its device's memory where it names one."""

    located: LocatedBudget
    architecture: Architecture
    device_bytes: int | None = None
    draft: Architecture | Literal["mtp"] | None = None


def judge_all(subjects: Sequence[Subject], baseline: Mapping[str, Mapping[str, Any]] | None = None) -> list[Verdict]:
    """A verdict for each budget, then one for each that only the baseline knows.

    Raises:
        KVCalcError: every budget whose engine refuses it, each with its place.
    """
    verdicts: list[Verdict] = []
    problems: list[KVCalcError] = []
    for subject in subjects:
        name = subject.located.budget.name
        try:
            verdicts.append(judge(subject, None if baseline is None else baseline.get(name, _NO_EXTRA)))
        except KVCalcError as error:
            problems.append(error.at(subject.located.place))
    raise_all(problems)
    known = {verdict.name for verdict in verdicts}
    verdicts += [Verdict(name, "removed", None) for name in sorted(baseline or ()) if name not in known]
    return verdicts


def judge(subject: Subject, before: Mapping[str, Any] | None = None) -> Verdict:
    """The verdict of one budget.

    Args:
        before: its record in the baseline; empty where the baseline does not know it, None without a baseline.

    Raises:
        KVCalcError: the engine refuses the configuration.
    """
    budget = subject.located.budget
    workload = _Workload.of(subject)
    footprint = footprint_of(workload.setup, workload.context, workload.batch_size)
    limits = tuple(_limits(budget, workload, subject.device_bytes))
    checks = [limit.check(workload) for limit in limits]
    change = None
    if before:
        change = compare(before, baseline_record(subject.located, footprint))
        if budget.max_increase is not None:
            checks.append(_increase_check(budget.max_increase, footprint.total_bytes, change))
    worst = min(checks, key=_how_bad, default=None)
    # Without a baseline a budget that only limits the increase has nothing to compare with: it holds.
    status: Status = "pass" if worst is None else worst.status
    if status == "pass" and before is not None and not before:
        status = "added"
    hints = tuple(islice(_hints(workload, limits), _MOST_HINTS)) if status == "fail" else ()
    return Verdict(budget.name, status, worst, tuple(checks), hints, change, subject.located, footprint)


def _how_bad(check: Check) -> tuple[int, float]:
    return _SEVERITY[check.status], -1.0 if check.headroom is None else check.headroom


def _increase_check(allowed: Fraction | int, total_bytes: int, change: Change) -> Check:
    old = total_bytes - change.total_bytes
    most = old + (old * allowed.numerator // allowed.denominator if isinstance(allowed, Fraction) else allowed)
    return Check("max_increase", "with max_increase over the baseline,", total_bytes, most)


@dataclass(frozen=True, slots=True)
class _Workload:
    """A setup at one context and batch size, so that a limit can be measured again with another of them."""

    setup: Setup
    context: int
    batch_size: int

    @classmethod
    def of(cls, subject: Subject) -> _Workload:
        """What the budget states."""
        budget = subject.located.budget
        setup = prepare(
            subject.architecture,
            engine=budget.engine,
            engine_options=budget.engine_options,
            kv_cache_dtype=budget.kv_cache_dtype,
            weights_dtype=budget.weights_dtype,
            tensor_parallel_size=budget.tensor_parallel_size,
            encoder_tokens=budget.encoder_tokens,
            draft=subject.draft,
        )
        context = budget.context or budget.min_context
        assert context is not None  # a budget without both is refused when it is read
        return cls(setup, context, budget.batch_size)


@dataclass(frozen=True, slots=True)
class _Limit:
    """A limit that any configuration can be held against."""

    rule: str
    subject: str
    part: Literal["total", "device", "kv_cache", "weights", "overhead"]
    limit_bytes: int
    share: Fraction | None
    warn_at: Fraction | int | None
    context: int | None = None
    batch_size: int | None = None
    terms: str = ""

    def check(self, workload: _Workload) -> Check:
        """The limit with what the configuration uses of it."""
        context, batch_size = self.context or workload.context, self.batch_size or workload.batch_size
        used, limit = 0, self.limit_bytes
        if self.part != "weights":
            plan = workload.setup.plan
            # A device must hold what the engine needs to start, which may be more than the cache it uses.
            of = plan.required_kv_memory if self.part == "device" else plan.kv_bytes
            used = of(context, batch_size)
        if self.part in ("total", "device", "weights"):
            used += workload.setup.weights.bytes
        if self.share is not None:
            limit = workload.setup.weights.bytes * self.share.numerator // self.share.denominator
        warn = self.warn_at
        if isinstance(warn, Fraction):
            warn = -(-limit * warn.numerator // warn.denominator)
        return Check(self.rule, self.subject, used, limit, warn, self.terms)


_SUBJECTS = {"total": "", "device": "", "kv_cache": "KV cache", "weights": "weights"}


def _limits(budget: Budget, workload: _Workload, device_bytes: int | None) -> Iterator[_Limit]:
    """Every limit of a budget but the one against a baseline."""
    stated: list[_Limit] = []
    if budget.limit is not None:
        subject = _SUBJECTS[budget.on]
        stated.append(_Limit("limit", subject, budget.on, budget.limit, None, budget.warn_at))
    if device_bytes is not None:
        share = budget.utilization
        if share is None:
            share = Fraction(workload.setup.engine.utilization_percent, 100)
        usable = device_bytes * share.numerator // share.denominator - budget.reserve
        terms = f"{budget.device}: {device_bytes:,} B x {float(100 * share):g} % - {budget.reserve:,} B in reserve"
        stated.append(_Limit("device", "", "device", max(0, usable), None, budget.warn_at, terms=terms))
    if budget.overhead is not None:
        percent = float(100 * budget.overhead)
        subject = f"KV cache (at most {percent:g} % of the weights)"
        stated.append(_Limit("overhead", subject, "overhead", 0, budget.overhead, None))
    yield from stated
    for limit in stated:
        if limit.part == "weights":
            continue
        prefix = f" {limit.subject}" if limit.subject else ""
        if budget.min_context is not None and budget.min_context != workload.context:
            subject = f"at {budget.min_context:,} tokens (min_context){prefix}"
            yield replace(limit, rule="min_context", subject=subject, context=budget.min_context)
        if budget.min_batch is not None and budget.min_batch != workload.batch_size:
            subject = f"at batch size {budget.min_batch:,} (min_batch){prefix}"
            yield replace(limit, rule="min_batch", subject=subject, batch_size=budget.min_batch)


# ---- hints: each is computed before it is said ----

#: KV formats worth proposing, by engine; others take fp8.
_KV_FORMATS: dict[str, tuple[str, ...]] = {
    "llama.cpp": ("q8_0", "q4_0"),
    "ollama": ("q8_0", "q4_0"),
    "transformers": (),
    "mlx-lm": (),
}
#: Engine options that take less memory, in the order in which they hurt least.
_FRUGAL_OPTIONS: dict[str, tuple[tuple[str, tuple[Any, ...]], ...]] = {
    "vllm": (
        ("disable_hybrid_kv_cache_manager", (False,)),
        ("max_num_batched_tokens", (8192, 4096, 2048, 1024)),
        ("async_scheduling", (False,)),
    ),
    "sglang": (("disable_hybrid_swa_memory", (False,)), ("swa_full_tokens_ratio", (0.5, 0.2, 0.1))),
    "llama.cpp": (("swa_full", (False,)), ("kv_unified", (True,)), ("n_ubatch", (256, 128))),
    "ollama": (("num_batch", (512, 256)),),
    "transformers": (("cache", ("dynamic", "static")), ("prefill_chunk", (8192, 2048))),
    "mlx-lm": (("prefill_step_size", (1024, 512)),),
}
_MOST_HINTS = 4


def _hints(workload: _Workload, limits: Sequence[_Limit]) -> Iterator[str]:
    """What would fit, one change at a time, the cheapest first; nothing is said that was not computed."""

    def holds(other: _Workload) -> bool:
        return all(limit.check(other).status != "fail" for limit in limits)

    if not limits or holds(workload):  # only the increase is too large: nothing here makes it smaller
        return
    name, options = workload.setup.engine.name, _options_of(workload.setup.engine)
    for option, values in _FRUGAL_OPTIONS.get(name, ()):
        for value in values:
            other = _changed(workload, {**options, option: value})
            if other is not None and holds(other):
                yield f"{name} {option}={str(value).lower() if isinstance(value, bool) else value}"
                break
    longest = largest(lambda tokens: holds(replace(workload, context=tokens)), workload.context - 1)
    if longest:
        yield f"a context of at most {longest:,} tokens"
    fewest = largest(lambda count: holds(replace(workload, batch_size=count)), workload.batch_size - 1)
    if fewest:
        yield f"a batch size of at most {fewest:,}"
    for dtype in _KV_FORMATS.get(name, ("fp8",)):
        other = _changed(workload, options, kv_cache_dtype=dtype)
        if other is not None and holds(other):
            yield f'kv_cache_dtype = "{dtype}"'
            break
    for dtype in ("fp8", "int4"):
        if workload.setup.weights.bytes and holds(
            replace(workload, setup=replace(workload.setup, weights_dtype=dtype))
        ):
            yield f'weights_dtype = "{dtype}"'
            break


def _options_of(engine: Engine) -> dict[str, Any]:
    """The options as they were given, the version too."""
    return {**engine.given_options, **({"version": engine.followed_version} if hasattr(engine, "version") else {})}


def _changed(workload: _Workload, options: Mapping[str, Any], kv_cache_dtype: str | None = None) -> _Workload | None:
    """The workload with other options or another KV format, or None where the engine refuses that."""
    setup = workload.setup
    k_dtype, v_dtype = parse_kv_dtypes(kv_cache_dtype) if kv_cache_dtype else (setup.k_dtype, setup.v_dtype)
    try:
        changed = replace(setup, engine=make_engine(setup.engine.name, options), k_dtype=k_dtype, v_dtype=v_dtype)
        _ = changed.plan
    except KVCalcError:
        return None
    return replace(workload, setup=changed)


# ---- baselines ----


def baseline_record(located: LocatedBudget, footprint: Footprint) -> dict[str, Any]:
    """What a baseline keeps of a budget: the inputs, and the bytes by part; nothing that changes by itself."""
    engine, setup, counted, cache = footprint.engine, footprint.setup, footprint.weights, footprint.kv_cache
    return {
        "reference": located.budget.model,
        "model": footprint.architecture.name,
        "layout": footprint.architecture.layout,
        "engine": {"name": engine.name, "version": engine.followed_version, "options": engine.given_options},
        "workload": {
            "context": footprint.context,
            "batch_size": footprint.batch_size,
            "k_dtype": setup.k_dtype.name,
            "v_dtype": setup.v_dtype.name,
            "tensor_parallel_size": setup.tensor_parallel_size,
            "encoder_tokens": setup.encoder_tokens,
            "draft": setup.draft.name if setup.draft else None,
        },
        "weights": {"parameters": counted.parameters, "bytes": counted.bytes, "dtype": counted.dtype},
        "kv_cache": {
            "bytes": cache.bytes,
            "layers": [
                {"kind": row.kind, "count": row.count, "window": row.window, "bytes": row.bytes} for row in cache.layers
            ],
            "padding_bytes": cache.padding_bytes,
        },
        "total_bytes": footprint.total_bytes,
    }


def baseline(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The baseline that a run leaves behind: sorted by name, without the tool's version."""
    records = {
        verdict.name: baseline_record(verdict.located, verdict.footprint)
        for verdict in verdicts
        if verdict.located is not None and verdict.footprint is not None
    }
    return {"schema_version": BASELINE_VERSION, "budgets": {name: records[name] for name in sorted(records)}}


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> Change:
    """The difference between two baseline records, attributed to its parts and to the inputs that changed."""
    old, new = _parts(before), _parts(now)
    parts = {part: new.get(part, 0) - old.get(part, 0) for part in dict.fromkeys((*new, *old))}
    inputs = tuple(
        (what, old_value, new_value) for what, old_value, new_value in _inputs(before, now) if old_value != new_value
    )
    return Change(now["total_bytes"] - before["total_bytes"], parts, inputs)


def _parts(record: Mapping[str, Any]) -> dict[str, int]:
    parts = {"weights": record["weights"]["bytes"]}
    for layer in record["kv_cache"]["layers"]:
        part = _part(layer)
        parts[part] = parts.get(part, 0) + layer["bytes"]
    parts["padding"] = record["kv_cache"]["padding_bytes"]
    # An older record may count something that today's parts do not name.
    other = record["total_bytes"] - sum(parts.values())
    return {**parts, "other": other} if other else parts


def _part(layer: Mapping[str, Any]) -> str:
    if layer["kind"] == "state":
        return "states"
    if layer["kind"] == "cross":
        return "cross-attention layers"
    return "global layers" if layer.get("window") is None else "local layers"


def _inputs(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for what in ("reference", "model"):
        yield what, before.get(what), now.get(what)
    windows = [sorted({layer["window"] for layer in _layers(each) if layer.get("window")}) for each in (before, now)]
    counts = [{(layer["kind"], layer.get("count")) for layer in _layers(each)} for each in (before, now)]
    if windows[0] != windows[1] and counts[0] == counts[1] and len(windows[0]) == len(windows[1]) == 1:
        yield "sliding window", windows[0][0], windows[1][0]
    else:
        yield "layout", before.get("layout"), now.get("layout")
    for table in ("engine", "workload"):
        old, new = (_flat(each.get(table)) for each in (before, now))
        for key in dict.fromkeys((*new, *old)):
            yield (f"engine {key}" if table == "engine" else key), old.get(key), new.get(key)
    old, new = (_flat(each.get("weights")) for each in (before, now))
    yield "parameters", old.get("parameters"), new.get("parameters")
    yield "weights dtype", old.get("dtype"), new.get("dtype")


def _layers(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    layers: list[Mapping[str, Any]] = record["kv_cache"]["layers"]
    return layers


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {path: value} if path else {}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, key if path in ("", "options") else f"{path}.{key}")
    return flat
