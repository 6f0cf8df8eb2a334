"""What every log shares: lines, figures, starts; the question that a log asks, and the answer beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from typing import Any, BinaryIO, ClassVar, Protocol

from kvcalc.architecture import Architecture
from kvcalc.setup import Setup, prepare
from kvcalc.units import GiB, MiB, largest

#: Bytes of a line that are read; engines print their arguments in one line of some thousand characters.
LONGEST_LINE = 2**16
MOST_CACHES = 64
_MOST_ARGUMENT_LINES = 500
_MOST_RUNS = 8

UNIT_BYTES = {"B": 1, "KiB": 2**10, "MiB": MiB, "GiB": GiB, "TiB": 2**40}
NUMBER = r"(\d{1,12}(?:\.\d{1,6})?)"
COUNT = r"(\d{1,18}(?:,\d{3}){0,5})"


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
class LogRun:
    """What one start of one engine said.

    Attributes:
        engine: the engine whose lines were seen, by its name here; None before any.
        stated: flags and facts by the engine's own names, as text.
        figures: the figures that stand alone, the last of each name.
        caches: the caches that were listed one by one.
    """

    engine: str | None = None
    stated: dict[str, str] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    caches: list[CacheLine] = field(default_factory=list)

    @property
    def says_something(self) -> bool:
        """Whether there is anything to hold against a prediction."""
        return bool(self.figures or self.caches)


@dataclass(frozen=True)
class LogReport:
    """A log that was read: the last start of an engine, and what stood before it.

    Attributes:
        runs: the starts that said something, the last one last; at most eight are kept.
        lines: lines read.
        cut: lines that were longer than :data:`LONGEST_LINE`.
    """

    runs: tuple[LogRun, ...]
    lines: int
    cut: int = 0


def bounded_lines(file: BinaryIO) -> Iterator[tuple[str, bool]]:
    """The lines of a file, and whether each was cut; what lies behind the limit is skipped, not kept."""
    while data := file.readline(LONGEST_LINE):
        cut = len(data) == LONGEST_LINE and not data.endswith(b"\n")
        rest = data
        while cut and rest and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE)
        yield data.decode("utf-8", "replace"), cut


class LogReader:
    """The runs so far; a line that starts an engine opens another."""

    def __init__(self) -> None:
        self.runs: list[LogRun] = [LogRun()]
        self.argument_lines = 0

    @property
    def run(self) -> LogRun:
        return self.runs[-1]

    def engine(self, name: str) -> LogRun:
        """The run that a figure of this engine belongs to."""
        if self.run.engine not in (None, name):
            self.start()
        self.run.engine = name
        return self.run

    def start(self, *, keep_flags: bool = False) -> None:
        """Another start, if the current run already said something; flags stated before the figures stay with them."""
        if not self.run.says_something:
            return
        stated = dict(self.run.stated) if keep_flags else {}
        self.runs.append(LogRun(stated=stated))
        del self.runs[:-_MOST_RUNS]


#: What a line must hold to be looked at, and who reads it; the first that stands in the line wins.
Marker = tuple[str, Callable[[LogReader, str, int], None]]


def put(run: LogRun, line: int, unit: str = "", **printed: str) -> None:
    """Keep figures of one line; the last of each name stays."""
    for name, text in printed.items():
        run.figures[name] = Figure(name, text.replace(",", ""), unit, line)


def read_flags(reader: LogReader, line: str, pattern: re.Pattern[str]) -> None:
    """Keep the flags of a line of arguments: the first mention is the engine's own, later ones are nested."""
    reader.argument_lines += 1
    if reader.argument_lines > _MOST_ARGUMENT_LINES:
        return
    seen: set[str] = set()
    for match in pattern.finditer(line):
        name = match[1]
        if name in seen or match[2] in ("None", "auto"):
            continue
        seen.add(name)
        reader.run.stated[name] = match[2]


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
        notes: what was assumed where the log is silent.
    """

    engine: str
    options: dict[str, Any]
    context: int
    batch_size: int = 1
    kv_cache_dtype: str | None = None
    tensor_parallel_size: int = 1
    notes: tuple[str, ...] = ()

    def setup(self, architecture: Architecture) -> Setup:
        """The engine's plan.

        Raises:
            KVCalcError: the engine refuses the configuration.
        """
        return prepare(
            architecture,
            engine=self.engine,
            engine_options=self.options,
            kv_cache_dtype=self.kv_cache_dtype,
            tensor_parallel_size=self.tensor_parallel_size,
        )


@dataclass(frozen=True)
class Given:
    """What the user says, which goes before what the log states."""

    engine: str | None = None
    options: Mapping[str, Any] | None = None
    context: int | None = None
    batch_size: int | None = None
    kv_cache_dtype: str | None = None
    tensor_parallel_size: int | None = None


@dataclass(frozen=True)
class Compared:
    """One figure: reported and predicted.

    Attributes:
        figure: what it is, in a few words.
        line: its line in the log.
        reported: as printed.
        predicted: printed in the same way.
        unit: the unit of both.
        agrees: whether they agree to the printed digit.
    """

    figure: str
    line: int
    reported: str
    predicted: str
    unit: str
    agrees: bool

    @property
    def difference(self) -> Decimal | None:
        """Reported less predicted; None where one of them is no number."""
        try:
            return Decimal(self.reported) - Decimal(self.predicted)
        except ArithmeticError:
            return None


@dataclass(frozen=True)
class Audit:
    """A run of a log with its predictions, and the likeliest reason where they disagree."""

    question: Question
    rows: tuple[Compared, ...]
    reason: str | None = None

    @property
    def agrees(self) -> bool:
        """Whether every figure agrees."""
        return all(row.agrees for row in self.rows)


#: A likely difference: its words, and the question with it.
Change = tuple[str, Callable[[Question], Question]]


def with_option(name: str, value: Any) -> Change:
    text = str(value).lower() if isinstance(value, bool) else value
    return f"{name}={text}", lambda question: replace(question, options={**question.options, name: value})


def with_dtype(dtype: str) -> Change:
    return f"kv_cache_dtype={dtype}", lambda question: replace(question, kv_cache_dtype=dtype)


def with_parallel(question: Question) -> Iterator[Change]:
    for tp in (1, 2, 4, 8):
        if tp != question.tensor_parallel_size:
            yield f"tensor_parallel_size={tp}", partial(replace, tensor_parallel_size=tp)


def with_options(candidates: Mapping[str, tuple[Any, ...]], question: Question, skip: set[str]) -> Iterator[Change]:
    """Every value of every option that neither the user nor the log states."""
    for name, values in candidates.items():
        if name in skip:
            continue
        for value in values:
            if str(question.options.get(name)).lower() != str(value).lower():
                yield with_option(name, value)


def stated_number(stated: Mapping[str, str], *names: str) -> int | None:
    for name in names:
        text = stated.get(name, "")
        if text.isdecimal() and len(text) < 16 and int(text):
            return int(text)
    return None


def gib(size: int) -> Decimal:
    # vLLM: round(bytes / 2**30, 2), printed without trailing zeros (older ones "%.2f"): 27.0 and 27.00 are one figure.
    return Decimal(str(round(size / GiB, 2)))


def byte_bounds(figure: Figure, digits: int = 2) -> tuple[int, int]:
    """The least and the most bytes that are printed as this figure."""
    half = Decimal(1).scaleb(-digits) / 2
    scale = UNIT_BYTES[figure.unit]
    value = Decimal(figure.printed)
    return int((value - half) * scale), int((value + half) * scale)


def first_that_holds(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The first number from ``low`` to ``high`` that holds, or ``high``; what holds stays so.

    >>> first_that_holds(1, 100, lambda number: number * number >= 50)
    8
    """
    return low + largest(lambda steps: not holds(low + steps - 1), high - low)


def same_number(predicted: str, printed: str) -> bool:
    return Decimal(predicted) == Decimal(printed)


class EngineLog(Protocol):
    """How one engine's log is understood."""

    markers: ClassVar[tuple[Marker, ...]]

    def question(self, run: LogRun, given: Given) -> Question:
        """The configuration that the log and the user state."""
        ...

    def compare(self, run: LogRun, question: Question, architecture: Architecture) -> Iterator[Compared]:
        """Every figure with its prediction."""
        ...

    def changes(self, run: LogRun, question: Question) -> Iterator[Change]:
        """What may be different, the likeliest first."""
        ...
