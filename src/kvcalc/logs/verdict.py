"""A log held against predictions: each start with its own model and engine, and the likeliest reason of a difference.

A log prints rounded figures; two figures agree when the prediction, rounded as that engine rounds it, has the same
digits. Where they do not, every likely difference that the log does not rule out is tried, and the first that explains
all figures is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import combinations

from kvcalc.architecture import Architecture
from kvcalc.device import Device
from kvcalc.errors import InputError, KVCalcError, NotModelledError, quote
from kvcalc.logs import llama_cpp, lmdeploy, mlx_lm, ollama, sglang, tensorrt_llm, vllm
from kvcalc.logs.base import (
    COMMON,
    UNIT_BYTES,
    Compared,
    EngineLog,
    Given,
    LogReport,
    Marker,
    Question,
    Start,
    Verdict,
)
from kvcalc.logs.models import preset_of
from kvcalc.logs.reading import read_log
from kvcalc.setup import options_on
from kvcalc.sources.preset import load_preset
from kvcalc.units import GiB

#: How the log of each engine is understood; the markers of the first ones are looked for first: those of vLLM are words
#: ("speculative") that stand in SGLang's arguments too.
LOGS: Mapping[str, EngineLog] = {
    log.engine: log
    for log in (sglang.LOG, vllm.LOG, ollama.LOG, llama_cpp.LOG, tensorrt_llm.LOG, mlx_lm.LOG, lmdeploy.LOG)
}
MARKERS: tuple[Marker, ...] = (*(marker for log in LOGS.values() for marker in log.markers), *COMMON)


@dataclass(frozen=True)
class DeviceTerm:
    """Another part of a device's memory, beside what the formula says.

    Attributes:
        name: as in :class:`kvcalc.fitting.Measured` (``activation_bytes`` ...).
        reported_bytes: what the log printed, as far as its digits go.
        predicted_bytes: what weights and formulas say.
    """

    name: str
    reported_bytes: int
    predicted_bytes: int

    @property
    def difference(self) -> int:
        """Reported less predicted."""
        return self.reported_bytes - self.predicted_bytes

    @property
    def words(self) -> str:
        """The name without its unit."""
        return {"graph_bytes": "CUDA graphs"}.get(self.name, self.name.removesuffix("_bytes"))


@dataclass(frozen=True)
class Audit:
    """One start with its predictions.

    Attributes:
        start: what the log says.
        reference: the model that it is held against, a preset's name or what the user gave; None for another's.
        question: the configuration that the prediction is for; None where there is none.
        rows: every figure, reported and predicted.
        reason: the likeliest reason, where figures disagree.
        difference: the largest difference in tokens and requests, in words.
        notes: what a reader must know: what was assumed, and why nothing was checked.
        layout: the model's layers in words.
        refusal: why there is no prediction.
        terms: the other parts of the device's memory beside their formulas, where a device was named.
    """

    start: Start
    reference: str | None = None
    question: Question | None = None
    rows: tuple[Compared, ...] = ()
    reason: str | None = None
    difference: str | None = None
    notes: tuple[str, ...] = ()
    layout: str = ""
    refusal: KVCalcError | None = None
    terms: tuple[DeviceTerm, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """``disagrees`` if a figure does; ``agrees`` if one does and none disagrees."""
        found = {row.verdict for row in self.rows}
        return "disagrees" if "disagrees" in found else "agrees" if "agrees" in found else "not checked"


@dataclass(frozen=True)
class LogAudit:
    """A whole log.

    Attributes:
        report: what was read.
        audits: every start that says anything, in the log's order.
    """

    report: LogReport
    audits: tuple[Audit, ...]

    @property
    def deciding(self) -> tuple[Audit, ...]:
        """Of every engine and model the last start that has figures to compare: they decide whether the log agrees.

        A context of other layers in the same process (a draft's) is a start of its own.
        """
        counted = [audit for audit in self.audits if audit.rows and audit.reference is not None]
        last = {(audit.start.engine, audit.reference, _layer_counts(audit.start)): audit for audit in counted}
        return tuple(sorted(last.values(), key=lambda audit: audit.start.number))

    @property
    def notes(self) -> tuple[str, ...]:
        """What became of the starts that do not decide."""
        return tuple(_aside(audit) for audit in self.audits if audit not in self.deciding)


def _layer_counts(start: Start) -> tuple[str, ...]:
    return tuple(layers.printed for layers in (cache.get("layers") for cache in start.caches) if layers is not None)


def audit(
    report: LogReport,
    *,
    model: Architecture | None = None,
    reference: str = "",
    given: Given | None = None,
    options: Mapping[str, Mapping[str, object]] | None = None,
    device: Device | None = None,
) -> LogAudit:
    """Hold every start of a log against the prediction for its own model, flags and version.

    Args:
        report: what :func:`read_log` read.
        model: the model, where the log does not name a preset.
        reference: the name of that model.
        given: what the user says beside the log, which goes before it.
        options: engine options by the engine whose log they are for.
        device: where the engine ran: its other terms are then held against their formulas.

    Raises:
        KVCalcError: the log has no figure, names no model, leaves out what a prediction needs, or the engine refuses.

    >>> log = "llama_kv_cache: size = 38.00 MiB ( 4096 cells, 26 layers, 1/1 seqs), K (f16): 19.00 MiB"
    >>> found = audit(read([(log, False)]), model=load_preset("gemma-3-1b"))
    >>> found.audits[0].verdict
    'disagrees'
    """
    given, user = given or Given(), None if model is None else (reference, model)
    starts = [start for start in report.starts if _judged(start, given.engine)]
    if not any(start.has_figures for start in starts):
        raise _no_figures(report, starts, given.engine)
    audits = []
    for start in starts:
        own = replace(given, options=(options or {}).get(given.engine or start.engine or "", given.options))
        audits.append(_audit_start(start, _model_of(start, starts, user), own, device))
    if not any(each.rows for each in audits):
        raise next((each.refusal for each in reversed(audits) if each.refusal), _nothing_to_compare(starts))
    return LogAudit(report, tuple(_excused(each, audits) for each in audits))


def read(lines: Iterable[tuple[str, bool]]) -> LogReport:
    """Read a log with the markers of every engine; :func:`kvcalc.logs.reading.bounded_lines` gives its lines."""
    return read_log(lines, MARKERS, {log.engine: log.flags for log in LOGS.values()})


def _judged(start: Start, engine: str | None) -> bool:
    """Whether an engine's rule may be held against this start; without figures it may be any engine's."""
    log = LOGS.get(start.engine or "")
    return engine is None or (log is None and not start.has_figures) or (log is not None and engine in log.judges)


def _no_figures(report: LogReport, starts: list[Start], engine: str | None) -> InputError:
    came = f"; the last start {how_far(starts[-1])}" if starts else ""
    return InputError(
        f"no figure of {engine or 'a known engine'} in {report.lines:,} lines{came}",
        hint="wanted: vLLM's 'KV cache' lines, llama.cpp's 'llama_kv_cache', SGLang's 'KV Cache is allocated'",
    )


def _nothing_to_compare(starts: list[Start]) -> InputError:
    last = next(start for start in reversed(starts) if start.has_figures)
    return InputError(f"the log holds no figure that could be audited: the last start with any {how_far(last)}")


# ---- the model of a start ----


def _model_of(
    start: Start, starts: list[Start], user: tuple[str, Architecture] | None
) -> tuple[str, Architecture] | None:
    """The model of a start: the user's, but for a start that names another preset beside one that may be the user's."""
    own = preset_of(_name(start))
    if user is not None:
        others = {preset_of(_name(each)) for each in starts if each.has_figures}
        if own is None or own == user[0] or others.isdisjoint((user[0], None)):
            return user
    return None if own is None else (own, load_preset(own))


def _name(start: Start) -> str | None:
    """What a start calls its model: the first name that is a preset's, or the first one."""
    stated = (start.stated.get(name) for name in ("model", "model_path", "served_model_name", "file"))
    names = [name for name in stated if name]
    return next((name for name in names if preset_of(name)), names[0] if names else None)


# ---- one start ----


def _audit_start(start: Start, model: tuple[str, Architecture] | None, given: Given, device: Device | None) -> Audit:
    if not start.has_figures:
        return Audit(start)
    if model is None:
        named = _name(start)
        what = "names no model" if named is None else f"names a model that is no preset: {quote(named)}"
        return Audit(start, refusal=InputError(f"the log {what}", hint="say which with --model"))
    try:
        return audit_start(start, model[1], given, reference=model[0], device=device)
    except KVCalcError as error:
        return Audit(start, model[0], refusal=error)


def audit_start(
    start: Start,
    architecture: Architecture,
    given: Given,
    *,
    reference: str = "",
    device: Device | None = None,
) -> Audit:
    """Hold the figures of one start of an engine against the prediction.

    Args:
        start: what the log says.
        architecture: the model.
        given: what the user says beside it.
        reference: the model's name.
        device: where the engine ran, or None.

    Raises:
        KVCalcError: the log leaves out what the prediction needs, or the engine refuses the configuration.
    """
    log = LOGS[start.engine or ""]
    question = _with_known_version(_with_known_draft(log.question(start, given), architecture), architecture)
    if device is not None:
        question = replace(question, options=options_on(question.engine, question.options, device))
    rows = tuple(_rows(log, start, question, architecture))
    terms, why = ((), ()) if device is None else _device_terms(log, start, question, architecture, device)
    notes = (*question.notes, *_of_engine(question, architecture), *why)
    found = Audit(start, reference, question, rows, notes=notes, layout=architecture.layout, terms=terms)
    if found.verdict != "disagrees":
        return found
    reason = _reason(log, found, architecture)
    return replace(found, reason=reason, difference=_difference(found, architecture))


def _device_terms(
    log: EngineLog, start: Start, question: Question, architecture: Architecture, device: Device
) -> tuple[tuple[DeviceTerm, ...], tuple[str, ...]]:
    """The other terms that a start printed beside their formulas, and which of them differs most."""
    setup = question.setup(architecture)
    loading = setup.engine.loading(setup, device)
    predicted = {"weights_bytes": setup.weights.bytes + (int(loading[-1].value) if loading else 0)}
    notes: list[str] = []
    try:
        working = setup.engine.working_memory(setup, device, question.context, question.batch_size)
        for name in ("activation_bytes", "runtime_bytes", "graph_bytes"):
            predicted[name] = getattr(working, name)
    except NotModelledError as error:
        notes.append(error.message)
    printed = log.terms(start)
    terms = tuple(DeviceTerm(name, size, predicted[name]) for name, size in printed.items() if name in predicted)
    if terms:
        most = max(terms, key=lambda term: abs(term.difference))
        reported, expected = most.reported_bytes / GiB, most.predicted_bytes / GiB
        notes.append(
            f"the term that differs most is {most.words}: {reported:.2f} GiB printed, {expected:.2f} predicted"
        )
    return terms, tuple(notes)


def _rows(log: EngineLog, start: Start, question: Question, architecture: Architecture) -> Iterable[Compared]:
    """The figures of a start, and those of its further data-parallel engines that differ from them."""
    first = list(log.compare(start, question, architecture))
    yield from first
    known = {(row.figure, row.reported, row.verdict) for row in first}
    for rank, replica in sorted(start.replicas.items()):
        for row in log.compare(replica, question, architecture):
            if (row.figure, row.reported, row.verdict) not in known:
                yield replace(row, figure=f"{row.figure} (DP {rank})")


def _of_engine(question: Question, architecture: Architecture) -> tuple[str, ...]:
    """What the engine does with this model otherwise than one would think, and whose rule its version follows."""
    return question.setup(architecture).plan.allocate(question.context, question.batch_size).notes


def _with_known_draft(question: Question, architecture: Architecture) -> Question:
    """The question without prediction layers that the log states and the model here has not."""
    if question.draft != "mtp" or architecture.mtp_layers:
        return question
    note = f"the log states prediction layers (MTP), which {architecture.name} has not: they are not counted"
    return replace(question, draft=None, notes=(*question.notes, note))


def _with_known_version(question: Question, architecture: Architecture) -> Question:
    """The question, without a version whose rule is not modelled: the engine's default then answers, and says so."""
    version = question.options.get("version")
    try:
        question.setup(architecture)
    except KVCalcError:
        if version is None:
            raise
        rest = {name: value for name, value in question.options.items() if name != "version"}
        without = replace(question, options=rest)
        used = without.setup(architecture).engine.followed_version
        note = f"the rule of {question.engine} {version} is not known here: {used}'s is used"
        return replace(without, notes=(*question.notes, note))
    return question


def _excused(audit: Audit, audits: list[Audit]) -> Audit:
    """A start none of whose caches has the layers of its model, beside another start of that model, is a draft's."""
    layers = [row for row in audit.rows if row.figure.endswith(": layers")]
    others = [each for each in audits if each is not audit and each.rows and each.reference == audit.reference]
    if audit.verdict != "disagrees" or not layers or any(row.verdict == "agrees" for row in layers):
        return audit
    if not any(each.verdict == "agrees" for each in others):
        return audit
    rows = tuple(replace(row, predicted="", verdict="not checked") for row in audit.rows if row.line)
    counts = " and ".join(row.reported for row in layers)
    note = f"a cache of {counts} layers is none of {audit.reference}'s: another model's, perhaps its draft's"
    return replace(audit, reference=None, rows=rows, reason=None, difference=None, notes=(note,))


# ---- in words ----


def how_far(start: Start) -> str:
    """How far a start came, and what ended it.

    >>> how_far(Start(stopped=("no memory was left for the cache", 12)))
    'stopped before it printed any figure: no memory was left for the cache (line 12)'
    """
    log = LOGS.get(start.engine or "")
    logs = list(LOGS.values()) if log is None else [log]
    reached = [words for log in logs for name, words in log.stages if name in start.figures or name in start.terms]
    ended = f": {start.stopped[0]} (line {start.stopped[1]:,})" if start.stopped else ""
    return f"{reached[-1]}, and no more{ended}" if reached else f"stopped before it printed any figure{ended}"


def _aside(audit: Audit) -> str:
    start = audit.start
    where = f"start {start.number}" + (f", line {start.line:,}" if start.line else "")
    if audit.refusal is not None:
        return f"{where}: {audit.refusal.message}"
    if audit.rows and audit.reference is None:
        return f"{where}: {audit.notes[0]}"
    if not audit.rows:
        return f"{where}: {how_far(start)}"
    wrong = [row for row in audit.rows if row.verdict == "disagrees"]
    if not wrong:
        return f"{where}, before the last one of {audit.reference}: {audit.verdict}"
    told = ", ".join(f"{row.figure} {row.reported} for {row.predicted}" for row in wrong[:2])
    return f"{where}, before the last one of {audit.reference}, disagrees: {told}"


def _difference(found: Audit, architecture: Architecture) -> str | None:
    """The largest difference of a cache in tokens and requests."""
    question = found.question
    if question is None:
        return None
    size = question.setup(architecture).plan.kv_bytes(question.context, question.batch_size)
    token_bytes = Decimal(size) / (question.context * question.batch_size)
    tokens = []
    for row in found.rows:
        if row.verdict == "disagrees" and row.difference is not None and not row.figure.startswith("recurrent"):
            if row.unit == "tokens" and row.figure.startswith(("KV cache", "estimated", "max_total")):
                tokens.append(row.difference)
            elif row.unit.replace("GB", "GiB") in UNIT_BYTES and token_bytes:
                tokens.append(row.difference * UNIT_BYTES[row.unit.replace("GB", "GiB")] / token_bytes)
    if not tokens:
        return None
    most = max(tokens, key=abs)
    request = _request_tokens(found.start, question)
    several = request is not None and abs(most) / request >= Decimal("0.005")
    requests = f", {abs(most) / (request or 1):,.2f} requests of {request:,} tokens," if several else ""
    return f"{abs(most):,.0f} tokens{requests} {'more' if most > 0 else 'less'} than predicted"


def _request_tokens(start: Start, question: Question) -> int | None:
    if start.engine in ("sglang", "tensorrt-llm"):  # their question is the whole pool
        length = start.stated.get("context_len", "")
        return int(length) if length.isdecimal() and 0 < len(length) < 16 and int(length) else None
    return question.context


# ---- reasons ----


def _reason(log: EngineLog, found: Audit, architecture: Architecture) -> str | None:
    """The first change, or pair of changes, under which all figures agree, else the one under which most do."""
    assert found.question is not None
    start, question = found.start, found.question
    tried = list(log.changes(start, question))

    def outcome(other: Question) -> tuple[Compared, ...]:
        try:
            return tuple(_rows(log, start, other, architecture))
        except KVCalcError:
            return ()

    def agreeing(rows: tuple[Compared, ...]) -> int:
        return sum(row.verdict != "disagrees" for row in rows)

    every, now = len(found.rows), agreeing(found.rows)
    singles = [(change, outcome(change.of(question))) for change in tried]
    most = max((agreeing(rows) for _, rows in singles), default=0)
    best = next((change.label for change, rows in singles if agreeing(rows) == most), "")
    if most >= every:
        return f"all figures agree with {best}"
    other = log.explain(start, question, architecture, found.rows)
    if other is not None and not other.startswith("another model"):
        return other
    # A change that moves nothing by itself, or that the engine refuses, is no half of a reason.
    moving = [change for change, rows in singles if rows and rows != found.rows]
    for first, second in combinations(moving, 2):
        if first.option != second.option and agreeing(outcome(second.of(first.of(question)))) >= every:
            return f"all figures agree with {first.label} and {second.label}"
    if most > now:
        return f"{most} of {every} figures agree with {best}, the others do not"
    return other
