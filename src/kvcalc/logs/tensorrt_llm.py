"""TensorRT-LLM's log: batch_manager/kvCacheManager.cpp."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from kvcalc.architecture import Architecture
from kvcalc.errors import InputError
from kvcalc.logs.base import (
    COUNT,
    NUMBER,
    Change,
    Compared,
    Given,
    LogReader,
    LogRun,
    Marker,
    Question,
    put,
    same_number,
    with_dtype,
    with_parallel,
)
from kvcalc.units import GiB

_TENSORRT = re.compile(rf"Allocated {NUMBER} GiB for max tokens in paged KV cache \({COUNT}\)")


def _tensorrt(reader: LogReader, line: str, number: int) -> None:
    match = _TENSORRT.search(line)
    if match:
        run = reader.engine("tensorrt-llm")
        put(run, number, "GiB", allocated=match[1])
        put(run, number, "tokens", pool_tokens=match[2])


class TensorrtLog:
    """What is read in a log, what it states, and what differs where it disagrees."""

    markers: ClassVar[tuple[Marker, ...]] = (("in paged KV cache (", _tensorrt),)

    def question(self, run: LogRun, given: Given) -> Question:
        tokens = run.figures.get("pool_tokens")
        if tokens is None or not int(tokens.printed):
            raise InputError("the log does not state the tokens of a pool")
        return Question(
            given.engine or "tensorrt-llm",
            dict(given.options or {}),
            int(tokens.printed),
            1,
            given.kv_cache_dtype,
            given.tensor_parallel_size or 1,
        )

    def compare(self, run: LogRun, question: Question, architecture: Architecture) -> Iterator[Compared]:
        allocated = run.figures["allocated"]
        predicted = f"{question.setup(architecture).plan.kv_bytes(question.context, 1) / GiB:.2f}"
        yield Compared(
            "pool", allocated.line, allocated.printed, predicted, "GiB", same_number(predicted, allocated.printed)
        )

    def changes(self, run: LogRun, question: Question) -> Iterator[Change]:
        for dtype in ("fp8", "bfloat16", "nvfp4"):
            yield with_dtype(dtype)
        yield from with_parallel(question)


LOG = TensorrtLog()
