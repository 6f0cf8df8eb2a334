"""A log, read by the markers of every engine, and its figures held against the prediction for the same model and flags.

A log prints rounded figures; two figures agree when the prediction, rounded as that engine rounds it, has the same
digits. Where they do not, every likely difference is tried, and the first that explains all figures is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal
from itertools import combinations

from kvcalc.architecture import Architecture
from kvcalc.errors import InputError, KVCalcError
from kvcalc.logs import llama_cpp, ollama, sglang, tensorrt_llm, vllm
from kvcalc.logs.base import (
    Audit,
    EngineLog,
    Given,
    LogReader,
    LogReport,
    LogRun,
    Marker,
    Question,
    byte_bounds,
    gib,
)
from kvcalc.units import ceil_div

#: An engine's name -> how its log is understood.
LOGS: dict[str, EngineLog] = {
    "vllm": vllm.LOG,
    "llama.cpp": llama_cpp.LOG,
    "sglang": sglang.LOG,
    "ollama": ollama.LOG,
    "tensorrt-llm": tensorrt_llm.LOG,
}
MARKERS: tuple[Marker, ...] = tuple(marker for log in LOGS.values() for marker in log.markers)


def read_log(lines: Iterable[tuple[str, bool]]) -> LogReport:
    """Read the lines of :func:`bounded_lines`.

    >>> line = "llama_kv_cache: size =   38.00 MiB (  4096 cells,   4 layers,  1/1 seqs), K (f16): 19.00 MiB"
    >>> read_log([(line, False)]).runs[0].caches[0].get("cells").printed
    '4096'
    """
    reader = LogReader()
    number = cut = 0
    for number, (line, was_cut) in enumerate(lines, start=1):
        cut += was_cut
        for marker, read in MARKERS:
            if marker in line:
                read(reader, line, number)
                break
    return LogReport(tuple(run for run in reader.runs if run.says_something), number, cut)


def audit(
    run: LogRun, architecture: Architecture, given: Given, presets: Mapping[str, Architecture] | None = None
) -> Audit:
    """Hold the figures of one start of an engine against the prediction.

    Args:
        run: what the log says.
        architecture: the model.
        given: what the user says beside it.
        presets: models that may be a draft model, tried where the log reports more than predicted.

    Raises:
        KVCalcError: the log leaves out what the prediction needs, or the engine refuses the configuration.
    """
    if not run.says_something or run.engine not in engines_of(given.engine):
        raise InputError(f"the log holds no figure of {given.engine or 'an engine'} that could be audited")
    reader = LOGS[run.engine or ""]
    question = _with_known_version(reader.question(run, given), architecture)
    rows = tuple(reader.compare(run, question, architecture))
    if not rows:
        raise InputError("the log holds no figure that could be audited")
    found = Audit(question, rows)
    if found.agrees:
        return found
    return replace(found, reason=_reason(reader, run, found, architecture, given, presets or {}))


def engines_of(engine: str | None) -> tuple[str, ...]:
    """Whose lines an engine's rules may be held against: Ollama runs llama.cpp."""
    if engine is None:
        return tuple(LOGS)
    return ("ollama", "llama.cpp") if engine in ("ollama", "llama.cpp") else (engine,)


def _with_known_version(question: Question, architecture: Architecture) -> Question:
    """The question, without a version whose rule nobody has read: the engine's default then answers, and says so."""
    version = question.options.get("version")
    try:
        question.setup(architecture)
    except KVCalcError:
        rest = {name: value for name, value in question.options.items() if name != "version"}
        without = replace(question, options=rest)
        if version is None:
            raise
        used = without.setup(architecture).engine.followed_version
        note = f"the rule of {question.engine} {version} is not known here: {used}'s is used"
        return replace(without, notes=(*question.notes, note))
    return question


def _reason(
    reader: EngineLog,
    run: LogRun,
    found: Audit,
    architecture: Architecture,
    given: Given,
    presets: Mapping[str, Architecture],
) -> str | None:
    """The first change, or pair of changes, under which all figures agree, else the one under which most do."""
    question = found.question
    said = set(given.options or ())
    changes = [change for change in reader.changes(run, question) if change[0].partition("=")[0] not in said]

    def agreeing(other: Question) -> int:
        try:
            return sum(row.agrees for row in reader.compare(run, other, architecture))
        except KVCalcError:
            return 0

    every, now = len(found.rows), sum(row.agrees for row in found.rows)
    singles = [(agreeing(change(question)), label) for label, change in changes]
    most = max((count for count, _ in singles), default=0)
    best = next((label for count, label in singles if count == most), "")
    if most == every:
        return f"all figures agree with {best}"
    draft = _draft_reason(run, found, architecture, presets)
    if draft is not None:
        return draft
    for (first, change), (second, other) in combinations(changes, 2):
        if first.partition("=")[0] != second.partition("=")[0] and agreeing(other(change(question))) == every:
            return f"all figures agree with {first} and {second}"
    if most > now:
        return f"{most} of {every} figures agree with {best}, the others do not"
    return _layers_reason(found)


def _layers_reason(found: Audit) -> str | None:
    """Another model, where a cache of the log has a number of layers that no cache of this one has."""
    strange = [row.reported for row in found.rows if row.figure.endswith("layers") and not row.agrees]
    if not strange:
        return None
    return f"another model, or a draft model: the log has a cache of {' and one of '.join(strange)} layers"


def _draft_reason(
    run: LogRun, found: Audit, architecture: Architecture, presets: Mapping[str, Architecture]
) -> str | None:
    """A second model that is cached beside the first: vLLM charges a draft model at full length."""
    needed = run.figures.get("needed")
    if run.engine != "vllm" or needed is None:
        return None
    question = found.question
    own = question.setup(architecture).plan.kv_bytes(question.context, 1)
    missing = byte_bounds(needed)[0] - own
    if missing <= 0:
        return None
    fitting = []
    for name, model in presets.items():
        try:
            extra = question.setup(model).plan.kv_bytes(question.context, 1)
        except KVCalcError:
            continue
        if gib(own + extra) == Decimal(needed.printed):
            fitting.append(name)
    if fitting:
        return f"the figures agree with a draft model of the shape of {' or '.join(sorted(fitting)[:3])} beside it"
    growth = ceil_div(missing, question.context)
    if any("spec" in name or name == "method" for name in run.stated):
        return f"the log states speculative decoding: a draft model of about {growth:,} bytes a token would explain it"
    return None
