"""The log of Ollama's own engine: ml/device.go, runner/ollamarunner; server/sched.go."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, ClassVar

from kvcalc.architecture import Architecture
from kvcalc.errors import InputError
from kvcalc.logs.base import (
    MOST_CACHES,
    UNIT_BYTES,
    CacheLine,
    Change,
    Compared,
    Figure,
    Given,
    LogReader,
    LogRun,
    Marker,
    Question,
    byte_bounds,
    put,
    same_number,
    stated_number,
    with_dtype,
    with_options,
)

_SIZE = re.compile(r"msg=\"kv cache\" device=(\S{1,40}) size=\"(\d{1,9}(?:\.\d)?) ([KMGT]i)?B\"")
_REQUIRED = re.compile(r"memory\.required\.kv=\"(\d{1,9}(?:\.\d)?) ([KMGT]i)?B\"")
_LOAD = re.compile(r"\b(Parallel|BatchSize|KvSize|KvCacheType|FlashAttention):(\w{0,20})")
_FLAG = re.compile(r"--(ctx-size|batch-size|parallel|kv-cache-type) (\w{1,20})")
_NAMES = {
    "ctx-size": "KvSize",
    "batch-size": "BatchSize",
    "parallel": "Parallel",
    "kv-cache-type": "KvCacheType",
}


def _cache(reader: LogReader, line: str, number: int) -> None:
    match = _SIZE.search(line)
    if match is None:
        return
    run = reader.engine("ollama")
    figure = Figure("size", match[2], f"{match[3] or ''}B", number)
    known = [cache for cache in run.caches if match[1] not in cache.types]  # the fit is tried several times: the last
    run.caches = [*known[: MOST_CACHES - 1], CacheLine("device", (figure,), (match[1],))]


def _required(reader: LogReader, line: str, number: int) -> None:
    match = _REQUIRED.search(line)
    if match:
        put(reader.engine("ollama"), number, f"{match[2] or ''}B", required_kv=match[1])
        _flags(reader, line, number)


def _load(reader: LogReader, line: str, number: int) -> None:
    for match in _LOAD.finditer(line[:4096]):
        if match[2]:
            reader.run.stated[match[1]] = match[2]


def _flags(reader: LogReader, line: str, number: int) -> None:
    for match in _FLAG.finditer(line[:4096]):
        reader.run.stated[_NAMES[match[1]]] = match[2]


class OllamaLog:
    """What is read in a log, what it states, and what differs where it disagrees."""

    markers: ClassVar[tuple[Marker, ...]] = (
        ('msg="kv cache"', _cache),
        ("memory.required.kv=", _required),
        ("KvSize:", _load),
        ("--ctx-size ", _flags),
    )

    """Ollama's own engine: one cache for all slots, so llama.cpp's rule with kv_unified."""

    def question(self, run: LogRun, given: Given) -> Question:
        stated = run.stated
        parallel = given.batch_size or stated_number(stated, "Parallel") or 1
        n_ctx = given.context * parallel if given.context else stated_number(stated, "KvSize")
        if n_ctx is None:
            raise InputError("the log does not state the context", hint="give it with -c")
        dtype = given.kv_cache_dtype or stated.get("KvCacheType") or None
        if given.engine == "ollama":
            options: dict[str, Any] = {"num_parallel": parallel}
            if stated_number(stated, "BatchSize"):
                options["num_batch"] = stated_number(stated, "BatchSize")
        else:
            options = {"n_ctx": n_ctx, "n_seq_max": parallel, "kv_unified": True}
            options["n_ubatch"] = stated_number(stated, "BatchSize") or 512
        return Question(
            given.engine or "llama.cpp",
            {**options, **(given.options or {})},
            max(1, n_ctx // parallel),
            parallel,
            dtype,
            notes=("Ollama's own engine keeps one cache for all slots: llama.cpp's rule with kv_unified",),
        )

    def compare(self, run: LogRun, question: Question, architecture: Architecture) -> Iterator[Compared]:
        size = question.setup(architecture).plan.kv_bytes(question.context, question.batch_size)
        required = run.figures.get("required_kv")
        sizes = [figure for figure in (cache.get("size") for cache in run.caches) if figure is not None]
        if required is not None:
            yield self._one("KV cache required", required, size)
        if len(sizes) == 1:
            yield self._one("KV cache", sizes[0], size)
        elif sizes:
            low, high = (sum(byte_bounds(figure, 1)[side] for figure in sizes) for side in (0, 1))
            unit = max((figure.unit for figure in sizes), key=lambda unit: UNIT_BYTES[unit])
            total = sum(Decimal(figure.printed) * UNIT_BYTES[figure.unit] for figure in sizes) / UNIT_BYTES[unit]
            agrees = low <= size <= high
            reported = f"{total:.1f}"
            predicted = reported if agrees else f"{size / UNIT_BYTES[unit]:.1f}"
            yield Compared(f"KV cache on {len(sizes)} devices", sizes[0].line, reported, predicted, unit, agrees)

    @staticmethod
    def _one(name: str, figure: Figure, size: int) -> Compared:
        predicted = f"{size / UNIT_BYTES[figure.unit]:.1f}"
        return Compared(
            name, figure.line, figure.printed, predicted, figure.unit, same_number(predicted, figure.printed)
        )

    def changes(self, run: LogRun, question: Question) -> Iterator[Change]:
        skip = {"n_ubatch"} if "BatchSize" in run.stated else set()
        yield from with_options({"n_ubatch": (1024, 2048, 256)}, question, skip)
        for dtype in ("q8_0", "q4_0", "f16"):
            yield with_dtype(dtype)
        yield from with_options({"kv_unified": (False,), "swa_full": (True,), "n_seq_max": (1, 2, 4)}, question, set())


LOG = OllamaLog()
