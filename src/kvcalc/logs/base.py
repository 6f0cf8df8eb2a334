"""What every log shares: lines and figures, the starts of an engine, the question that a start asks, and its answer.

A log may be of any size and may be hostile: a line is cut at :data:`LONGEST_LINE`, every pattern is linear in the line,
and of what repeats only the last is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Literal

from kvcalc.architecture import Architecture
from kvcalc.engines import engine_class
from kvcalc.setup import Setup, prepare
from kvcalc.units import GiB, KiB, MiB, largest

#: Bytes of a line that are read; engines print their arguments in one line of some thousand characters.
LONGEST_LINE = 2**16
MOST_CACHES = 64
MOST_STARTS = 64
_MOST_REPLICAS = 64
_MOST_ARGUMENT_LINES = 2_000

UNIT_BYTES = {"B": 1, "KiB": KiB, "MiB": MiB, "GiB": GiB, "TiB": 2**40, "gigabytes": 10**9}
NUMBER = r"(\d{1,12}(?:\.\d{1,6})?)"
COUNT = r"(\d{1,18}(?:,\d{3}){0,5})"

#: ``not checked``: nothing in the log, or in the rule, says what the figure should be.
Verdict = Literal["agrees", "disagrees", "not checked"]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a log, without colours and wrapping.

    Attributes:
        text: the line.
        number: its number, from 1.
    """

    text: str
    number: int

    @property
    def process(self) -> str:
        """The process and rank at the head of the line, without its number: two processes of one start differ in it.

        >>> Line("(Worker_DP1_TP0 pid=12) INFO 06-01 x", 1).process, Line("[2025-03-08 12:29:21 DP1 TP0] x", 1).process
        ('Worker_DP1_TP0', 'DP1 TP0')
        >>> Line("qwen-1 | (Worker pid=7) (Worker_TP1 pid=7) INFO x", 1).process
        'Worker_TP1'
        """
        named = (" ".join(filter(None, match.groups())).strip() for match in _PROCESS.finditer(self.text[:200]))
        return next(filter(None, named), "")

    @property
    def replica(self) -> int:
        """The data-parallel engine that speaks: 0 where the line names none."""
        match = _REPLICA.search(self.process)
        return int(match[1]) if match else 0


#: "(Worker_TP1 pid=12)", "(VllmWorker rank=1 pid=12)", "[2025-03-08 12:29:21 TP1]", "(RayWorker pid=12, ip=10.0.0.2)".
_PROCESS = re.compile(
    r"\((?:(VllmWorker (?:TP|rank=)\d{1,4})|(\w{1,40}_(?:[A-Z]{2,3}\d{1,4}_?){1,6})|\w{1,40}) pid=\d"
    r"|\[[\d :.,T-]{8,30} ((?:[A-Z]{2,4}(?:_[A-Z]{2})?\d{1,4} ?){1,6})\]"
    r"|\((RayWorker\w{0,20}|VllmWorkerProcess) (pid=\d{1,9}(?:, ip=[\d.]{7,15})?)"
)
_REPLICA = re.compile(r"(?:^|(?<!MOE)[_ ])DP(\d{1,4})(?:[_ ]|$)")


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a log.

    Attributes:
        name: what it is (``needed``, ``size``, ``cells`` ...).
        printed: its digits as they stand in the log, without thousands separators.
        unit: the unit behind them, or nothing.
        line: the number of its line, from 1.
    """

    name: str
    printed: str
    unit: str
    line: int

    @property
    def bytes(self) -> int:
        """The bytes that the digits say, where the unit is one of bytes."""
        return int(Decimal(self.printed) * UNIT_BYTES[self.unit.replace("GB", "GiB")])


@dataclass(frozen=True, slots=True)
class CacheLine:
    """One line of an engine that lists its caches one by one (llama.cpp, SGLang, Ollama's devices)."""

    kind: str
    figures: tuple[Figure, ...]
    types: tuple[str, ...] = ()

    def get(self, name: str) -> Figure | None:
        """The figure of that name, if the line has it."""
        return next((figure for figure in self.figures if figure.name == name), None)


@dataclass
class Start:
    """What one start of one engine said; a data-parallel engine beside the first is a start within it.

    Attributes:
        line: the number of its first line that was understood.
        number: which start of the log it is, from 1.
        engine: the engine whose lines were seen, by its name here; None before any.
        stated: flags and facts by the engine's own names, as text.
        figures: the figures that stand alone, the last of each name.
        caches: the caches that were listed one by one.
        memory: what is left for the cache, by the process that measured it.
        terms: the other parts of a device's memory in words, as printed: weights, activation, CUDA graphs ...
        seen: the banners that were printed, each with its process.
        replicas: further data-parallel engines of this start, by rank.
        stopped: the words of the error that ended it, and their line.
    """

    line: int = 0
    number: int = 1
    engine: str | None = None
    stated: dict[str, str] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    caches: list[CacheLine] = field(default_factory=list)
    memory: dict[str, Figure] = field(default_factory=dict)
    terms: dict[str, Figure] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    replicas: dict[int, Start] = field(default_factory=dict)
    stopped: tuple[str, int] | None = None

    @property
    def has_figures(self) -> bool:
        """Whether there is anything to hold against a prediction."""
        return bool(self.figures or self.caches)

    @property
    def says_something(self) -> bool:
        """Whether a figure or a banner was seen."""
        return self.has_figures or bool(self.seen or self.terms)

    def put(self, line: Line, unit: str = "", **printed: str | None) -> None:
        """Keep the figures of one line; the last of each name stays."""
        for name, text in printed.items():
            if text is not None:
                self.figures[name] = Figure(name, text.replace(",", ""), unit, line.number)

    def term(self, line: Line, unit: str, **printed: str | None) -> None:
        """Keep other parts of the device's memory; underscores are blanks, and the largest of several ranks stays."""
        for name, text in printed.items():
            words = name.replace("_", " ")
            if text is not None:
                known = self.terms.get(words)
                if known is None or Decimal(known.printed) < Decimal(text):
                    self.terms[words] = Figure(words, text, unit, line.number)


@dataclass(frozen=True)
class LogReport:
    """A log that was read.

    Attributes:
        starts: the starts that said something, the last one last; at most :data:`MOST_STARTS` are kept.
        lines: lines read.
        cut: lines that were longer than :data:`LONGEST_LINE`.
    """

    starts: tuple[Start, ...]
    lines: int
    cut: int = 0


class LogReader:
    """The starts so far; a banner that was already seen in a start, or a figure after the last one, opens another."""

    def __init__(self, commands: Mapping[str, Mapping[str, str]]) -> None:
        """Read with the flags of every engine's command line, and their names here."""
        self.commands = commands
        self.commanded: str | None = None
        self.starts: list[Start] = [Start()]
        self.opened = 1
        self.argument_lines = 0
        #: A flag in a list of arguments whose value may be the next item.
        self.item = ""
        #: Flags of a server that loads several models one after another (Ollama).
        self.standing: dict[str, str] = {}

    @property
    def start(self) -> Start:
        """The start that a line belongs to."""
        return self.starts[-1]

    def of(self, engine: str, line: Line, host: str | None = None) -> Start:
        """The start, or the data-parallel engine in it, that a figure of this engine belongs to.

        Args:
            engine: whose figure it is.
            line: the line.
            host: an engine that runs this one: what it stated holds (Ollama runs llama.cpp).
        """
        if self.start.engine not in (None, engine):
            self.open(line, keep_flags=self.start.engine == host)
        start = self.start
        start.engine = engine
        start.line = start.line or line.number
        replica = line.replica
        if not replica or (len(start.replicas) >= _MOST_REPLICAS and replica not in start.replicas):
            return start
        return start.replicas.setdefault(replica, Start(line.number, start.number, engine, start.stated))

    def stated(self, engine: str, line: Line, kind: str = "flags", host: str | None = None) -> dict[str, str]:
        """What the start states that a line with flags of this engine belongs to."""
        if self.start.engine not in (None, engine, host):
            self.open(line)
        self.start.seen.add(kind)
        self.start.line = self.start.line or line.number
        return self.start.stated

    def banner(self, engine: str, line: Line, kind: str) -> None:
        """A line that each process of an engine prints once a start, and that states flags."""
        key = f"{kind} {line.process}"
        if key in self.start.seen:
            self.open(line)
        self.stated(engine, line, key)

    def open(self, line: Line, *, keep_flags: bool = False) -> None:
        """Another start, if the current one already said something; flags may stay with it."""
        last = self.start
        if not last.says_something:
            return
        self.opened += 1
        stated = {**self.standing, **(last.stated if keep_flags else {})}
        self.starts.append(Start(line.number, self.opened, stated=stated, seen=set(last.seen) if keep_flags else set()))
        if len(self.starts) > MOST_STARTS:  # one without figures goes first: the last figures are what is wanted
            empty = next((each for each in self.starts[:-1] if not each.has_figures), self.starts[0])
            self.starts.remove(empty)

    def flags(self, line: Line, pattern: re.Pattern[str]) -> None:
        """Keep the flags of a line of arguments: the first mention is the engine's own, later ones are nested."""
        self.argument_lines += 1
        if self.argument_lines > _MOST_ARGUMENT_LINES:
            return
        seen: set[str] = set()
        for match in pattern.finditer(line.text):
            if match[1] not in seen and match[2] not in ("None", "auto", "null"):
                seen.add(match[1])
                self.start.stated[match[1]] = match[2]

    def command(self, engine: str, line: Line, model: re.Pattern[str] | None = None) -> None:
        """A command line that an engine or a shell echoes; it begins a start, and what the engine states wins.

        Args:
            model: finds the model where the command names it without a flag.
        """
        self.banner(engine, line, "command")
        self.commanded = engine
        self.continued(line)
        if model is not None and (match := model.search(line.text)):
            self.stated(engine, line).setdefault("model", match[1])

    def continued(self, line: Line) -> None:
        """The flags of a command line, or of a line of it; without a command before it, those of any engine."""
        self.argument_lines += 1
        if self.argument_lines > _MOST_ARGUMENT_LINES:
            return
        text = line.text
        if item := _ITEM.fullmatch(text):  # of a YAML file: - "--max-model-len", and - "8192" in the next line
            text = item[2] if item[2].startswith("-") else f"{self.item} {item[2]}"
            self.item = item[2] if item[2].startswith("-") else ""
        own = self.commands.get(self.commanded or self.start.engine or "")
        for names in self.commands.values() if own is None else (own,):
            for match in _FLAG.finditer(text):
                name = names.get(match[1]) or names.get(match[1].replace("_", "-"))
                if name is not None and self.start.stated.get(name, "true") == "true":
                    value = match[2] if match[2] is not None else "true"
                    self.start.stated[name] = value.strip("'\"")


def stopped(reader: LogReader, line: Line) -> None:
    """An error that ends a start of any engine."""
    words = next((words for mark, words in _ENDS.items() if mark in line.text), None)
    if words is not None and reader.start.stopped is None:
        reader.start.stopped = (words, line.number)


_ENDS = {
    "CUDA out of memory": "CUDA out of memory",
    "HIP out of memory": "HIP out of memory",
    "OutOfMemory": "out of memory",
    "OOMKilled": "killed for its memory",
    "Engine core initialization failed": "the engine's core did not start",
}

#: A flag and its value; a flag without one is followed by another flag, by the end or by a line break's backslash.
_FLAG = re.compile(r"(?<![\w-])(--?[a-zA-Z][\w.-]{0,60})(?:(?:=| {1,4})(?![-\\\s])([^\s,\]]{1,300}))?")

_ITEM = re.compile(r"\s*- +(['\"]?)(.*)\1\s*")

#: What a line must hold to be looked at, and who reads it; the first that stands in the line wins.
Marker = tuple[str, Callable[[LogReader, Line], None]]
#: Markers of no engine; they are looked for last.
COMMON: tuple[Marker, ...] = tuple((mark, stopped) for mark in _ENDS)


@dataclass(frozen=True)
class Question:
    """The configuration that a prediction is made for.

    Attributes:
        engine: the engine's name here.
        options: its options, as the log and the user state them.
        context: tokens of one sequence.
        batch_size: sequences.
        kv_cache_dtype: format of K and V, or None for the engine's own.
        tensor_parallel_size: devices that share every layer.
        stated: the options, formats and sizes that the log or the user states: no reason may contradict them.
        taken: names of the log's figures that the configuration was taken from: they are held against nothing.
        draft: the model that proposes tokens, or the model's own prediction layers.
        notes: what was assumed where the log is silent.
    """

    engine: str
    options: Mapping[str, object]
    context: int
    batch_size: int = 1
    kv_cache_dtype: str | None = None
    tensor_parallel_size: int = 1
    stated: frozenset[str] = frozenset()
    taken: frozenset[str] = frozenset()
    draft: Architecture | Literal["mtp"] | None = None
    notes: tuple[str, ...] = ()

    def setup(self, architecture: Architecture) -> Setup:
        """The model in the engine.

        Raises:
            KVCalcError: the engine refuses the configuration.
        """
        return prepare(
            architecture,
            engine=self.engine,
            engine_options=self.options,
            kv_cache_dtype=self.kv_cache_dtype,
            tensor_parallel_size=self.tensor_parallel_size,
            draft=self.draft,
        )


@dataclass(frozen=True)
class Given:
    """What the user says, which goes before what the log states."""

    engine: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    context: int | None = None
    batch_size: int | None = None
    kv_cache_dtype: str | None = None
    tensor_parallel_size: int | None = None
    draft: Architecture | Literal["mtp"] | None = None


@dataclass(frozen=True)
class Compared:
    """One figure: reported and predicted.

    Attributes:
        figure: what it is, in a few words.
        line: its line in the log, 0 where it has none.
        reported: as printed.
        predicted: printed in the same way; empty where it is not checked.
        unit: the unit of both.
        verdict: whether they agree to the printed digit.
    """

    figure: str
    line: int
    reported: str
    predicted: str
    unit: str
    verdict: Verdict

    @property
    def difference(self) -> Decimal | None:
        """Reported less predicted; None where one of them is no number."""
        try:
            return Decimal(self.reported) - Decimal(self.predicted)
        except ArithmeticError:
            return None


def checked(figure: str, reported: Figure, predicted: str, *, agrees: bool | None = None) -> Compared:
    """A figure beside its prediction; without ``agrees`` they agree if they are one number."""
    same = same_number(predicted, reported.printed) if agrees is None else agrees
    shown = reported.printed if same else predicted
    return Compared(figure, reported.line, reported.printed, shown, reported.unit, "agrees" if same else "disagrees")


def unchecked(figure: str, reported: Figure) -> Compared:
    """A figure that nothing says anything about: it was taken for the prediction itself, or there is no rule."""
    return Compared(figure, reported.line, reported.printed, "", reported.unit, "not checked")


@dataclass(frozen=True)
class Change:
    """A likely difference between what runs and what was predicted.

    Attributes:
        option: the option, or the field of the question, that would be different.
        value: its other value.
    """

    option: str
    value: object

    @property
    def label(self) -> str:
        """As a user would write it."""
        return f"{self.option}={str(self.value).lower() if isinstance(self.value, bool) else self.value}"

    def of(self, question: Question) -> Question:
        """The question with this difference."""
        if self.option == "kv_cache_dtype":
            return replace(question, kv_cache_dtype=str(self.value))
        if self.option == "tensor_parallel_size" and isinstance(self.value, int):
            return replace(question, tensor_parallel_size=self.value)
        return replace(question, options={**question.options, self.option: self.value})


def changes(question: Question, **candidates: tuple[object, ...]) -> Iterator[Change]:
    """Every value of every option that neither the user nor the log states, and that is another than now."""
    for name, values in candidates.items():
        if name in question.stated:
            continue
        now = getattr(question, name) if hasattr(question, name) else question.options.get(name)
        for value in values:
            if str(now).lower() != str(value).lower():
                yield Change(name, value)


@dataclass(frozen=True)
class EngineLog:
    """How one engine's log is understood.

    Attributes:
        engine: the engine's name here.
        markers: what is read in it.
        flags: the flags of its command line, and their names here.
        stages: the figures and terms in the order in which a start prints them, in words: how far it came.
        question: the configuration that the log and the user state.
        compare: every figure with its prediction.
        changes: what may be different, the likeliest first.
        explain: a reason that is no option, from the rows that disagree, or None.
        judges: the engines whose rule may be held against these lines.
        terms: the terms of a device's memory, by their names in :class:`kvcalc.fitting.Measured`.
    """

    engine: str
    markers: tuple[Marker, ...]
    flags: Mapping[str, str]
    stages: tuple[tuple[str, str], ...]
    question: Callable[[Start, Given], Question]
    compare: Callable[[Start, Question, Architecture], Iterator[Compared]]
    changes: Callable[[Start, Question], Iterator[Change]]
    explain: Callable[[Start, Question, Architecture, tuple[Compared, ...]], str | None] = lambda *_: None
    judges: tuple[str, ...] = ()
    terms: Callable[[Start], Mapping[str, int]] = lambda _: {}


def known_options(engine: str, options: Mapping[str, object]) -> tuple[dict[str, object], tuple[str, ...]]:
    """The options that an engine has, and a note for those that a log states and the engine here has not."""
    names = {option.name for option in engine_class(engine).option_help()}
    known = {name: value for name, value in options.items() if name in names}
    notes = (f"not modelled: {name}={value}" for name, value in options.items() if name not in names)
    return known, tuple(notes)


def stated_number(stated: Mapping[str, str], *names: str) -> int | None:
    """The first of these that is a whole number above nought."""
    for name in names:
        text = stated.get(name, "").replace(",", "")
        if text.isdecimal() and len(text) < 16 and int(text):
            return int(text)
    return None


def stated_truth(stated: Mapping[str, str], name: str) -> bool | None:
    """Whether a flag is on, in any of the ways in which engines print it; None where it is not stated."""
    text = stated.get(name)
    return None if text is None else text.casefold() in ("true", "1", "enabled", "auto", "on", "yes")


def printed_gib(size: int) -> str:
    """Bytes as vLLM prints them: round(bytes / 2**30, 2), so that 27.0 and 27.00 are one figure."""
    return str(round(size / GiB, 2))


def byte_bounds(figure: Figure, places: int) -> tuple[int, int]:
    """The least and the most bytes that an engine prints as this figure with so many places.

    >>> byte_bounds(Figure("available", "40.0", "GiB", 1), 2) == (int(39.995 * 2**30), int(40.005 * 2**30))
    True
    """
    printed, half = Decimal(figure.printed), Decimal(1).scaleb(-places) / 2
    scale = UNIT_BYTES[figure.unit.replace("GB", "GiB")]
    return int((printed - half) * scale), int((printed + half) * scale)


def first_that_holds(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The first number from ``low`` to ``high`` that holds, or ``high``; what holds stays so.

    >>> first_that_holds(1, 100, lambda number: number * number >= 50)
    8
    """
    return low + largest(lambda steps: not holds(low + steps - 1), high - low)


def same_number(predicted: str, printed: str) -> bool:
    """Whether two printed figures are one number; words are only equal to themselves."""
    try:
        return Decimal(predicted) == Decimal(printed)
    except ArithmeticError:
        return predicted == printed
