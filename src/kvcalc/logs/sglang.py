"""SGLang's log: mem_cache/memory_pool.py, managers/scheduler.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar

from kvcalc.architecture import Architecture, Chunked, Compressed, Cross, Full, Latent, Parallel, Sliding
from kvcalc.errors import InputError
from kvcalc.logs.base import (
    MOST_CACHES,
    NUMBER,
    CacheLine,
    Change,
    Compared,
    Figure,
    Given,
    LogReader,
    LogRun,
    Marker,
    Question,
    put,
    read_flags,
    stated_number,
    with_dtype,
    with_options,
    with_parallel,
)
from kvcalc.setup import Setup
from kvcalc.units import GiB

_TOKENS = re.compile(r"#tokens: (\d{1,15})")
_PART = re.compile(rf"\b(KV|K|V) size: {NUMBER} GB")
_DTYPE = re.compile(r"dtype: (?:torch\.)?(\w{1,30})")
_SWA = re.compile(rf"SWAKVPool mem usage: {NUMBER} GB, swa size: (\d{{1,15}}), full size: (\d{{1,15}})")
_TOTAL = re.compile(r"max_total_num_tokens=(\d{1,15})")
_FLAGS = re.compile(
    r"(?<![\w.])(model_path|dtype|kv_cache_dtype|page_size|tp_size|swa_full_tokens_ratio|max_running_requests"
    r"|disable_radix_cache|disable_hybrid_swa_memory|chunked_prefill_size|disable_overlap_schedule|context_len"
    r"|speculative_algorithm)=['\"]?([^'\",()\s]{1,300})"
)


def _pool(reader: LogReader, line: str, number: int) -> None:
    tokens = _TOKENS.search(line)
    parts = list(_PART.finditer(line))
    if tokens is None or not parts:
        return
    run = reader.engine("sglang")
    figures = [Figure("tokens", tokens[1], "tokens", number)]
    figures += [Figure(part[1], part[2], "GB", number) for part in parts]
    dtype = _DTYPE.search(line)
    cache = CacheLine("pool", tuple(figures), (dtype[1],) if dtype else ())
    same = [[figure.printed for figure in known.figures] for known in run.caches]
    if [figure.printed for figure in figures] not in same and len(run.caches) < MOST_CACHES:
        run.caches.append(cache)  # every rank prints its pool, and the ranks are alike


def _hybrid(reader: LogReader, line: str, number: int) -> None:
    match = _SWA.search(line)
    if match:
        run = reader.engine("sglang")
        put(run, number, "GB", pools=match[1])
        put(run, number, "tokens", swa_tokens=match[2], full_tokens=match[3])


def _total(reader: LogReader, line: str, number: int) -> None:
    match = _TOTAL.search(line)
    if match:
        put(reader.engine("sglang"), number, "tokens", max_total_num_tokens=match[1])
        read_flags(reader, line, _FLAGS)


def _arguments(reader: LogReader, line: str, number: int) -> None:
    reader.start()
    read_flags(reader, line, _FLAGS)


def _dtype(reader: LogReader, line: str, number: int) -> None:
    match = re.search(r"KV cache dtype: (?:torch\.)?(\w{1,30})", line)
    if match:
        reader.run.stated["kv_cache_dtype"] = match[1]


_OPTIONS = (
    "page_size",
    "swa_full_tokens_ratio",
    "disable_hybrid_swa_memory",
    "max_running_requests",
    "disable_radix_cache",
    "chunked_prefill_size",
    "disable_overlap_schedule",
)


class SglangLog:
    """What is read in a log, what it states, and what differs where it disagrees."""

    markers: ClassVar[tuple[Marker, ...]] = (
        ("KV Cache is allocated.", _pool),
        ("SWAKVPool mem usage:", _hybrid),
        ("max_total_num_tokens=", _total),
        ("server_args=ServerArgs(", _arguments),
        ("Using KV cache dtype:", _dtype),
    )

    def question(self, run: LogRun, given: Given) -> Question:
        stated = run.stated
        tokens = self._tokens(run)
        if tokens is None:
            raise InputError("the log does not state the tokens of a pool", hint="SGLang prints '#tokens: N'")
        options: dict[str, Any] = {name: stated[name] for name in _OPTIONS if name in stated}
        types = next((cache.types for cache in run.caches if cache.types), ())
        dtype = given.kv_cache_dtype or (types[0] if types else stated.get("kv_cache_dtype") or stated.get("dtype"))
        return Question(
            given.engine or "sglang",
            {**options, **(given.options or {})},
            tokens,
            1,
            dtype,
            given.tensor_parallel_size or stated_number(stated, "tp_size") or 1,
        )

    @staticmethod
    def _tokens(run: LogRun) -> int | None:
        full = run.figures.get("full_tokens")
        if full is not None:
            return int(full.printed) or None
        pools = [tokens for tokens in (cache.get("tokens") for cache in run.caches) if tokens is not None]
        total = run.figures.get("max_total_num_tokens")
        counts = [int(tokens.printed) for tokens in pools] or ([int(total.printed)] if total is not None else [])
        return max(counts, default=0) or None

    def compare(self, run: LogRun, question: Question, architecture: Architecture) -> Iterator[Compared]:
        setup = question.setup(architecture)
        plan = setup.plan
        allocated = plan.kv_bytes(question.context, 1)
        report = plan.report(question.context, 1, plan.required_kv_memory(question.context, 1))
        total, pools = run.figures.get("max_total_num_tokens"), run.figures.get("pools")
        swa = run.figures.get("swa_tokens")
        if pools is not None:
            predicted = f"{allocated / GiB:.2f}"
            yield Compared("all pools", pools.line, pools.printed, predicted, "GB", predicted == pools.printed)
        if swa is not None:
            size = report.get("swa_max_total_num_tokens")
            yield Compared(
                "sliding pool", swa.line, swa.printed, "none" if size is None else str(size), "tokens",
                str(size) == swa.printed,
            )  # fmt: skip
        elif pools is None:
            largest = [cache for cache in run.caches if _tokens_of(cache) == question.context]
            for cache in largest:
                yield from self._pool(cache, allocated, setup, architecture)
        if total is not None:
            predicted = str(question.context)
            yield Compared(
                "max_total_num_tokens", total.line, total.printed, predicted, "tokens", predicted == total.printed
            )

    def _pool(self, cache: CacheLine, allocated: int, setup: Setup, architecture: Architecture) -> Iterator[Compared]:
        key, value = _sides(setup, architecture)
        k_bytes = allocated * key // max(1, key + value)
        for name, size in (("KV", allocated), ("K", k_bytes), ("V", allocated - k_bytes)):
            figure = cache.get(name)
            if figure is not None:
                predicted = f"{size / GiB:.2f}"
                yield Compared(
                    f"pool: {name} size", figure.line, figure.printed, predicted, "GB", predicted == figure.printed
                )

    def changes(self, run: LogRun, question: Question) -> Iterator[Change]:
        for dtype in ("fp8_e4m3", "bfloat16"):
            yield with_dtype(dtype)
        yield from with_parallel(question)
        yield from with_options(
            {
                "page_size": (1, 16, 32, 64, 128, 256),
                "disable_hybrid_swa_memory": (True, False),
                "swa_full_tokens_ratio": (1.0, 0.5, 0.25, 0.1),
            },
            question,
            set(run.stated),
        )


def _tokens_of(cache: CacheLine) -> int:
    tokens = cache.get("tokens")
    return int(tokens.printed) if tokens is not None else 0


def _sides(setup: Setup, architecture: Architecture) -> tuple[int, int]:
    """Bytes of K and of V that one token takes in all layers, as far as the layers keep both."""
    keys = values = 0
    for kind, count in architecture.caches:
        inner = kind.attention if isinstance(kind, Parallel) else kind
        if isinstance(inner, Full | Sliding | Chunked | Cross):
            keys += count * setup.k_dtype.row_bytes(inner.num_kv_heads, inner.head_dim)
            values += count * setup.v_dtype.row_bytes(inner.num_kv_heads, inner.v_head_dim)
        elif isinstance(inner, Latent | Compressed):
            keys += count
    return keys, values


LOG = SglangLog()
