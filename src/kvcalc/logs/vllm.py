"""vLLM's log: v1/worker/gpu_worker.py, v1/core/kv_cache_utils.py and their older homes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, ClassVar

from kvcalc.architecture import Architecture
from kvcalc.errors import InputError
from kvcalc.logs.base import (
    COUNT,
    NUMBER,
    Change,
    Compared,
    Figure,
    Given,
    LogReader,
    LogRun,
    Marker,
    Question,
    byte_bounds,
    first_that_holds,
    gib,
    put,
    read_flags,
    stated_number,
    with_dtype,
    with_options,
    with_parallel,
)
from kvcalc.units import GiB

_AVAILABLE = re.compile(rf"Available KV cache memory: {NUMBER} Gi?B")
_POOL = re.compile(rf"GPU KV cache size: {COUNT} tokens(?!, KV pool)")
_CONCURRENCY = re.compile(rf"Maximum concurrency for {COUNT} tokens per request: {NUMBER}x")
_SERVE = re.compile(rf"To serve at least one request with the models?'s max seq len \({COUNT}\)")
_NEEDED = re.compile(rf"\(?{NUMBER} Gi?B KV cache is needed")
_LESS = re.compile(rf"available KV cache memory \({NUMBER} Gi?B\)")
_ESTIMATE = re.compile(rf"estimated maximum model length is {COUNT}")
_BLOCKS = re.compile(rf"num_gpu_blocks is: {COUNT}|# (?:GPU|CUDA) blocks: {COUNT}")
_ATTENTION_BLOCK = re.compile(rf"Setting attention block size to {COUNT} tokens")
_VERSION = re.compile(r"(?:vLLM API server version|LLM engine \(v|version) ?v?(\d{1,3}\.\d{1,3}(?:\.\d{1,3})?)")
_BATCHED = re.compile(rf"max_num_batched_tokens={COUNT}")


def _available(reader: LogReader, line: str, number: int) -> None:
    match = _AVAILABLE.search(line)
    if match:
        run = reader.engine("vllm")
        known = run.figures.get("available")
        # Every worker says what it has; the one with the least decides. A figure after the pool's is a new start's.
        if known is not None and "pool_tokens" in run.figures:
            reader.start(keep_flags=True)
            run, known = reader.engine("vllm"), None
        if known is None or float(match[1]) < float(known.printed):
            put(run, number, "GiB", available=match[1])


def _pool(reader: LogReader, line: str, number: int) -> None:
    pool, concurrency = _POOL.search(line), _CONCURRENCY.search(line)
    if pool:
        put(reader.engine("vllm"), number, "tokens", pool_tokens=pool[1])
    if concurrency:
        run = reader.engine("vllm")
        run.stated["max_model_len"] = concurrency[1].replace(",", "")
        put(run, number, "x", concurrency=concurrency[2])


def _refusal(reader: LogReader, line: str, number: int) -> None:
    serve, needed = _SERVE.search(line), _NEEDED.search(line)
    if serve:
        reader.engine("vllm").stated["max_model_len"] = serve[1].replace(",", "")
    if needed:
        put(reader.engine("vllm"), number, "GiB", needed=needed[1])
    less, estimate = _LESS.search(line), _ESTIMATE.search(line)
    if less:
        put(reader.engine("vllm"), number, "GiB", available=less[1])
    if estimate:
        put(reader.engine("vllm"), number, "tokens", estimated_max_model_len=estimate[1])


def _blocks(reader: LogReader, line: str, number: int) -> None:
    match = _BLOCKS.search(line)
    if match:
        reader.engine("vllm").stated["num_gpu_blocks"] = (match[1] or match[2]).replace(",", "")


def _attention_block(reader: LogReader, line: str, number: int) -> None:
    match = _ATTENTION_BLOCK.search(line)
    if match:
        put(reader.engine("vllm"), number, "tokens", attention_block_size=match[1])


def _version(reader: LogReader, line: str, number: int) -> None:
    match = _VERSION.search(line)
    if match:
        reader.run.stated["version"] = match[1]


def _server(reader: LogReader, line: str, number: int) -> None:
    reader.start()
    _version(reader, line, number)


# Only these names are looked for, so that a long line costs one pass whatever stands in it.
_FLAGS = re.compile(
    r"(?<![\w.])['\"]?(model|max_model_len|max_seq_len|max_num_batched_tokens|tensor_parallel_size"
    r"|pipeline_parallel_size|kv_cache_dtype|kv_cache_memory_bytes|dtype|block_size|async_scheduling"
    r"|disable_hybrid_kv_cache_manager|enable_prefix_caching|num_gpu_blocks_override|num_speculative_tokens"
    r"|num_spec_tokens|method)['\"]?[=:] ?['\"]?([^'\",(){}\s]{1,300})"
)


def _arguments(reader: LogReader, line: str, number: int) -> None:
    reader.start()
    read_flags(reader, line, _FLAGS)


def _engine_line(reader: LogReader, line: str, number: int) -> None:
    _version(reader, line, number)
    read_flags(reader, line, _FLAGS)


def _chunked(reader: LogReader, line: str, number: int) -> None:
    match = _BATCHED.search(line)
    if match:
        reader.run.stated["max_num_batched_tokens"] = match[1].replace(",", "")


_OPTIONS = (
    "version",
    "block_size",
    "max_num_batched_tokens",
    "async_scheduling",
    "disable_hybrid_kv_cache_manager",
    "pipeline_parallel_size",
    "num_gpu_blocks_override",
    "enable_prefix_caching",
)


class VllmLog:
    """What is read in a log, what it states, and what differs where it disagrees."""

    markers: ClassVar[tuple[Marker, ...]] = (
        ("Available KV cache memory:", _available),
        ("GPU KV cache size:", _pool),
        ("Maximum concurrency for", _pool),
        ("To serve at least one request", _refusal),
        ("KV cache is needed", _refusal),
        ("available KV cache memory (", _refusal),
        ("estimated maximum model length", _refusal),
        ("num_gpu_blocks is:", _blocks),
        ("# GPU blocks:", _blocks),
        ("# CUDA blocks:", _blocks),
        ("Setting attention block size", _attention_block),
        ("non-default args:", _arguments),
        ("LLM engine (v", _engine_line),
        ("vLLM API server version", _server),
        ("Chunked prefill is enabled", _chunked),
    )

    def question(self, run: LogRun, given: Given) -> Question:
        stated = run.stated
        context = given.context or stated_number(stated, "max_model_len", "max_seq_len")
        if context is None:
            raise InputError("the log does not state the context", hint="give it with -c")
        options: dict[str, Any] = {name: stated[name] for name in _OPTIONS if name in stated}
        drafted = stated_number(stated, "num_speculative_tokens", "num_spec_tokens")
        if drafted:
            options["num_speculative_tokens"] = drafted
        dtype = stated.get("kv_cache_dtype") or stated.get("dtype")
        tp = given.tensor_parallel_size or stated_number(stated, "tensor_parallel_size") or 1
        notes = []
        if "max_num_batched_tokens" not in stated and "max_num_batched_tokens" not in (given.options or {}):
            notes.append("the log does not state max_num_batched_tokens: the engine's default is used")
        return Question(
            given.engine or "vllm",
            {**options, **(given.options or {})},
            context,
            given.batch_size or 1,
            given.kv_cache_dtype or dtype,
            tp,
            tuple(notes),
        )

    def compare(self, run: LogRun, question: Question, architecture: Architecture) -> Iterator[Compared]:
        plan = question.setup(architecture).plan
        figures, context = run.figures, question.context
        needed, available = figures.get("needed"), figures.get("available")
        if needed is not None:
            predicted = gib(plan.kv_bytes(context, 1))
            agrees = predicted == Decimal(needed.printed)
            yield Compared("needed for one request", needed.line, needed.printed, str(predicted), "GiB", agrees)
        exact = stated_number(run.stated, "kv_cache_memory_bytes")
        bounds = (exact, exact) if exact else byte_bounds(available) if available is not None else None
        estimate = figures.get("estimated_max_model_len")
        if estimate is not None and bounds is not None:
            yield self._estimate(plan, estimate, bounds, context)
        attention_block = figures.get("attention_block_size")
        if attention_block is not None:
            steps = plan.explain(context, 1)
            found = next((str(step.value) for step in steps if step.symbol == "attention_block"), "none")
            agrees = found == attention_block.printed
            yield Compared("attention block", attention_block.line, attention_block.printed, found, "tokens", agrees)
        if "pool_tokens" in figures or "concurrency" in figures:
            yield from self._pool(plan, run, bounds, context)

    def _estimate(self, plan: Any, estimate: Figure, bounds: tuple[int, int], context: int) -> Compared:
        def longest(memory: int) -> int:
            found: int = plan.report(context, 1, memory)["estimated_max_model_len"]
            return found

        # The memory is printed to 0.01 GiB: the estimate must be the one of some memory of that print.
        reported = int(estimate.printed)
        # It is at least the reported length where that length fits.
        memory = first_that_holds(*bounds, lambda memory: not reported or plan.fits(reported, 1, memory))
        agrees = longest(memory) == reported
        predicted = reported if agrees else longest(sum(bounds) // 2)
        return Compared("estimated maximum length", estimate.line, estimate.printed, str(predicted), "tokens", agrees)

    def _pool(self, plan: Any, run: LogRun, bounds: tuple[int, int] | None, context: int) -> Iterator[Compared]:
        block = plan.report(context, 1, GiB)["bytes_per_block"]
        blocks = stated_number(run.stated, "num_gpu_blocks")
        tokens, concurrency = run.figures.get("pool_tokens"), run.figures.get("concurrency")
        if blocks is not None:
            low = high = blocks
        elif bounds is not None:
            low, high = bounds[0] // block, bounds[1] // block
        else:  # without a memory the figures can only be held against each other
            low, high = 1, 2**40

        def says(number: int) -> tuple[int, str]:
            _, concurrent, logged_tokens = plan.logged(context, number * block)
            return logged_tokens, f"{concurrent:.2f}"

        if tokens is None:
            assert concurrency is not None
            first = first_that_holds(low, high, lambda number: Decimal(says(number)[1]) >= Decimal(concurrency.printed))
            predicted = says(first)[1]
            agrees = predicted == concurrency.printed
            yield Compared("concurrency", concurrency.line, concurrency.printed, predicted, "x", agrees)
            return
        reported = int(tokens.printed)
        first = first_that_holds(low, high, lambda number: says(number)[0] >= reported)
        behind = first_that_holds(first, high, lambda number: says(number)[0] > reported)
        found = says(first)[0] == reported
        nearest = first if found else (low + high) // 2 if bounds is not None else first
        predicted_tokens, predicted_concurrency = says(nearest)
        yield Compared("KV cache size", tokens.line, tokens.printed, str(predicted_tokens), "tokens", found)
        if concurrency is not None:
            candidates = {says(number)[1] for number in range(first, min(behind, first + 256) + 1)} if found else set()
            agrees = concurrency.printed in candidates or concurrency.printed == predicted_concurrency
            shown = concurrency.printed if agrees else predicted_concurrency
            yield Compared("concurrency", concurrency.line, concurrency.printed, shown, "x", agrees)

    def changes(self, run: LogRun, question: Question) -> Iterator[Change]:
        skip = set(run.stated)
        yield from with_options(
            {
                "max_num_batched_tokens": (2048, 8192, 16384, 4096, 32768),
                "async_scheduling": (False, True),
                "version": ("0.25.1", "0.17.1", "0.11.0", "0.33.0"),
                "disable_hybrid_kv_cache_manager": (True, False),
            },
            question,
            skip - {"version"},
        )
        for dtype in ("fp8", "bfloat16"):
            if dtype != question.kv_cache_dtype:
                yield with_dtype(dtype)
        yield from with_parallel(question)
        yield from with_options(
            {"block_size": (32, 64, 128), "enable_prefix_caching": (True, False), "num_speculative_tokens": (1, 2, 3)},
            question,
            skip,
        )


LOG = VllmLog()
