"""MLX-LM's log: what its server keeps of prompts (server.py, 0.32.2); it allocates as it goes and prints no pool."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kvcalc.architecture import Architecture
from kvcalc.errors import InputError
from kvcalc.logs.base import (
    NUMBER,
    Change,
    Compared,
    EngineLog,
    Given,
    Line,
    LogReader,
    Question,
    Start,
    changes,
    checked,
    stated_number,
    unchecked,
)

_CACHES = re.compile(
    rf"(?:Prompt Cache: (\d{{1,6}}) sequences|KV Caches: (\d{{1,6}}) seq), {NUMBER} GB"
    r"(?:, latest user cache (\d{1,9}) tokens)?"
)
_PEAK = re.compile(rf"Peak memory: {NUMBER} GB")
_COMMAND = {"--model": "model"}


def _caches(reader: LogReader, line: Line) -> None:
    match = _CACHES.search(line.text)
    if match:
        start = reader.of("mlx-lm", line)
        start.put(line, "sequences", sequences=match[1] or match[2])
        start.put(line, "gigabytes", prompt_cache=match[3])
        if match[4]:
            start.stated["tokens"] = match[4]


def _peak(reader: LogReader, line: Line) -> None:
    match = _PEAK.search(line.text)
    if match:
        reader.start.term(line, "gigabytes", peak=match[1])


def _command(reader: LogReader, line: Line) -> None:
    reader.command("mlx-lm", line)


def _question(start: Start, given: Given) -> Question:
    context = given.context or stated_number(start.stated, "tokens")
    if context is None:
        raise InputError("the log does not state the tokens of a cache", hint="give them with -c")
    sequences = start.figures.get("sequences")
    named = {name for name in ("batch_size", "kv_cache_dtype") if getattr(given, name) is not None}
    return Question(
        given.engine or "mlx-lm",
        dict(given.options),
        context,
        given.batch_size or (int(sequences.printed) if sequences is not None else 0) or 1,
        given.kv_cache_dtype,
        stated=frozenset({*given.options, *named}),
    )


def _compare(start: Start, question: Question, architecture: Architecture) -> Iterator[Compared]:
    figure = start.figures["prompt_cache"]
    size = question.setup(architecture).plan.kv_bytes(question.context, question.batch_size)
    if question.batch_size == 1 or "batch_size" in question.stated:
        yield checked("prompt cache", figure, f"{size / 10**9:.2f}")
    else:  # several prompts, each of its own length
        yield unchecked(f"prompt cache of {question.batch_size:,} sequences", figure)


def _changes(start: Start, question: Question) -> Iterator[Change]:
    yield from changes(question, kv_cache_dtype=("float16", "float32"))


LOG = EngineLog(
    "mlx-lm",
    (
        ("Prompt Cache: ", _caches),
        ("KV Caches: ", _caches),
        ("Peak memory: ", _peak),
        ("mlx_lm.server ", _command),
        ("mlx_lm server ", _command),
    ),
    _COMMAND,
    (("prompt_cache", "kept a prompt"),),
    _question,
    _compare,
    _changes,
    judges=("mlx-lm",),
)
