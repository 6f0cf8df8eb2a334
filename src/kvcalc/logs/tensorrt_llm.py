"""TensorRT-LLM's log: batch_manager/kvCacheManager.cpp from 0.8 to 1.x, and _torch/pyexecutor/_util.py's profiling."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

from kvcalc.architecture import Architecture
from kvcalc.errors import InputError
from kvcalc.logs.base import (
    COUNT,
    NUMBER,
    Change,
    Compared,
    EngineLog,
    Figure,
    Given,
    Line,
    LogReader,
    Question,
    Start,
    byte_bounds,
    changes,
    checked,
    known_options,
    stated_number,
    unchecked,
)
from kvcalc.units import GiB, ceil_div

# ---- lines ----

_POOL = re.compile(rf"Allocated {NUMBER} GiB for max tokens in paged KV cache \({COUNT}\)")
_OLD_BYTES = re.compile(r"Allocate (\d{1,18}) bytes for k/v cache")
_OLD_TOKENS = re.compile(rf"Using {COUNT} (?:total )?tokens in paged KV cache")
#: Both lines are C++'s own count of blocks; PyTorch's is made before its pool is.
_FREE = re.compile(rf"calculating max tokens in paged kv cache: total: {NUMBER} GiB, available: {NUMBER} GiB")
_PROFILED = re.compile(rf"fraction is set {NUMBER}, kv size (?:per token )?is (\d{{1,12}})")
_FRACTION = re.compile(rf"are set \(to {NUMBER} and \d")
_BLOCKS = re.compile(rf"(?:Number of blocks in KV cache primary pool: |primary blocks=){COUNT}")
_TOKENS_PER_BLOCK = re.compile(r"(?:Number of tokens per block: |tokens per block=)(\d{1,6})")
_FLAGS = re.compile(
    r"(?<![\w.])['\"]?(model|tensor_parallel_size|pipeline_parallel_size|tokens_per_block)['\"]?[=:] ?['\"]?"
    r"([^'\",(){}\s]{1,300})"
)
_COMMAND = {
    "--tp_size": "tensor_parallel_size",
    "--pp_size": "pipeline_parallel_size",
    "--tp": "tensor_parallel_size",
    "--model": "model",
}
_SERVE_MODEL = re.compile(r"trtllm-serve (?:serve )?['\"]?([^-\s'\"][^\s'\"]{0,300})")


def _pool(reader: LogReader, line: Line) -> None:
    match, size, tokens = (each.search(line.text) for each in (_POOL, _OLD_BYTES, _OLD_TOKENS))
    if not (match or size or tokens):
        return
    start = reader.of("tensorrt-llm", line)
    # The pool is made twice: once to try how much the rest takes, once for good. The last one counts.
    if match:
        start.put(line, "GiB", allocated=match[1])
        start.put(line, "tokens", pool_tokens=match[2])
    start.put(line, "B", allocated=size and size[1])
    start.put(line, "tokens", pool_tokens=tokens and tokens[1])


def _free(reader: LogReader, line: Line) -> None:
    """What C++ counts blocks from: an engine that is built."""
    if match := _FREE.search(line.text):
        start = reader.of("tensorrt-llm", line)
        start.stated["backend"] = "tensorrt"
        start.put(line, "GiB", free=match[2])


def _fraction(reader: LogReader, line: Line) -> None:
    if match := _FRACTION.search(line.text):
        reader.of("tensorrt-llm", line).stated["free_gpu_memory_fraction"] = match[1]


def _profiled(reader: LogReader, line: Line) -> None:
    if match := _PROFILED.search(line.text):
        start = reader.of("tensorrt-llm", line)
        start.stated["free_gpu_memory_fraction"] = match[1]
        start.put(line, "B", token=match[2])


def _blocks(reader: LogReader, line: Line) -> None:
    blocks, size = _BLOCKS.search(line.text), _TOKENS_PER_BLOCK.search(line.text)
    if blocks or size:
        start = reader.of("tensorrt-llm", line)
        start.put(line, "blocks", blocks=blocks and blocks[1])
        if size:
            start.stated["tokens_per_block"] = size[1]


def _arguments(reader: LogReader, line: Line) -> None:
    reader.banner("tensorrt-llm", line, "arguments")
    reader.flags(line, _FLAGS)


def _command(reader: LogReader, line: Line) -> None:
    reader.command("tensorrt-llm", line, _SERVE_MODEL)


# ---- what they state, and what they should be ----

#: The part of a free memory that becomes the pool, where nobody says (KvCacheConfig::kDefaultGpuMemFraction).
_DEFAULT_FRACTION = 0.9


def _question(start: Start, given: Given) -> Question:
    figures, stated = start.figures, start.stated
    options: dict[str, object] = {}
    for name in ("tokens_per_block", "pipeline_parallel_size"):
        if stated_number(stated, name):
            options[name] = stated_number(stated, name)
    options, notes = known_options("tensorrt-llm", options)
    options |= {name: stated[name] for name in ("backend", "free_gpu_memory_fraction") if name in stated}
    tokens = int(figures["pool_tokens"].printed) if "pool_tokens" in figures else 0
    if not tokens and "blocks" in figures:
        tokens = int(figures["blocks"].printed) * int(str({**options, **given.options}.get("tokens_per_block", 0)))
    if not tokens and "token" in figures:
        tokens = 1
    if not tokens:
        raise InputError(
            "the log does not state the tokens of a pool",
            hint="-E tokens_per_block=64 where it has blocks" if "blocks" in figures else "",
        )
    names = {*options, *given.options}
    if given.kv_cache_dtype:
        names.add("kv_cache_dtype")
    if given.tensor_parallel_size or "tensor_parallel_size" in stated:
        names.add("tensor_parallel_size")
    return Question(
        given.engine or "tensorrt-llm",
        {**options, **given.options},
        tokens,
        1,
        given.kv_cache_dtype,
        given.tensor_parallel_size or stated_number(stated, "tensor_parallel_size") or 1,
        frozenset(names),
        notes=notes,
    )


def _compare(start: Start, question: Question, architecture: Architecture) -> Iterator[Compared]:
    figures, plan = start.figures, question.setup(architecture).plan
    allocated, tokens, blocks = (figures.get(name) for name in ("allocated", "pool_tokens", "blocks"))
    if allocated is not None and Decimal(allocated.printed):  # AutoDeploy's fake manager has none: it is kept elsewhere
        size = plan.kv_bytes(question.context, 1)
        yield checked("pool", allocated, str(size) if allocated.unit == "B" else f"{size / GiB:.2f}")
    elif tokens is not None:
        yield unchecked("pool", tokens)
    per_block = stated_number(start.stated, "tokens_per_block")
    if blocks is not None and tokens is not None and per_block:
        yield checked("blocks", blocks, str(ceil_div(int(tokens.printed), per_block)))
    if blocks is not None and "free" in figures:
        yield _blocks_of_memory(blocks, figures["free"], question, architecture)
    if "token" in figures:
        yield checked("bytes of a token", figures["token"], str(_token_bytes(question, architecture)))


def _blocks_of_memory(blocks: Figure, free: Figure, question: Question, architecture: Architecture) -> Compared:
    """Blocks beside those of the free memory; where nobody states its part, a number that 0.9 does not give is open."""
    fraction = question.options.get("free_gpu_memory_fraction")
    options = {**question.options, "free_gpu_memory_fraction": fraction or _DEFAULT_FRACTION}
    plan = replace(question, options=options).setup(architecture).plan
    least, most = (min(plan.report(1, 1, memory)["blocks_per_window"].values()) for memory in byte_bounds(free, 2))
    agrees = least <= int(blocks.printed) <= most
    if not agrees and fraction is None:
        return unchecked("blocks of the free memory", blocks)
    return checked("blocks of the free memory", blocks, str(least), agrees=agrees)


def _token_bytes(question: Question, architecture: Architecture) -> int:
    """Bytes of a token as the profiling counts them: K and V of one device's share of the heads, not rounded up."""
    options = {**question.options, "tokens_per_block": 1}
    tp = 1 if architecture.has_latents else question.tensor_parallel_size
    plan = replace(question, options=options, tensor_parallel_size=1).setup(architecture).plan
    return plan.kv_bytes(1, 1) // tp


def _changes(start: Start, question: Question) -> Iterator[Change]:
    yield from changes(
        question,
        kv_cache_dtype=("fp8", "bfloat16", "nvfp4", "int8"),
        tensor_parallel_size=(1, 2, 4, 8),
        pipeline_parallel_size=(2, 4, 8),
    )


LOG = EngineLog(
    "tensorrt-llm",
    (
        ("max tokens in paged kv cache: total", _free),
        ("aka max_tokens_in_paged_kv_cache", _fraction),
        ("fraction is set ", _profiled),
        ("in paged KV cache", _pool),
        ("bytes for k/v cache", _pool),
        ("blocks in KV cache primary pool:", _blocks),
        ("tokens per block", _blocks),
        ("LLM Args:", _arguments),
        ("trtllm-serve ", _command),
    ),
    _COMMAND,
    (("token", "profiled its memory"), ("blocks", "counted its blocks"), ("pool_tokens", "printed its pool")),
    _question,
    _compare,
    _changes,
    judges=("tensorrt-llm",),
)
