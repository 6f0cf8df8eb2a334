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
    stated_number,
    unchecked,
)
from kvcalc.units import GiB, ceil_div

# ---- lines ----

#: A group with a unit is a figure, one without states an option. The pool is made twice: once to try how much the rest
#: takes, once for good; the last one counts.
_LINES = [
    re.compile(pattern)
    for pattern in (
        rf"Allocated (?P<allocated__GiB>{NUMBER}) GiB for max tokens in paged KV cache "
        rf"\((?P<pool_tokens__tokens>{COUNT})\)",
        r"Allocate (?P<allocated__B>\d{1,18}) bytes for k/v cache",
        rf"Using (?P<pool_tokens__tokens>{COUNT}) (?:total )?tokens in paged KV cache",
        rf"(?:Number of blocks in KV cache primary pool: |primary blocks=)(?P<blocks__blocks>{COUNT})",
        r"(?:Number of tokens per block: |tokens per block=)(?P<tokens_per_block>\d{1,6})",
        rf"max tokens in paged kv cache: total: {NUMBER} GiB, available: (?P<free__GiB>{NUMBER}) GiB",
        rf"fraction is set (?P<free_gpu_memory_fraction>{NUMBER}), kv size (?:per token )?is (?P<token__B>\d{{1,12}})",
        rf"are set \(to (?P<free_gpu_memory_fraction>{NUMBER}) and (?P<max_tokens>\d{{1,18}})",
    )
]
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


def _read(reader: LogReader, line: Line) -> None:
    for match in filter(None, (pattern.search(line.text) for pattern in _LINES)):
        start = reader.of("tensorrt-llm", line)
        for words, text in match.groupdict().items():
            name, _, unit = words.partition("__")
            if unit:
                start.put(line, unit, **{name: text})
            else:
                start.stated[name] = text


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
    names_here = ("tokens_per_block", "free_gpu_memory_fraction")
    options: dict[str, object] = {name: stated[name] for name in names_here if name in stated}
    if "free" in figures:  # C++ says what it counts blocks from; PyTorch's are counted before
        options["backend"] = "tensorrt"
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
        notes=("not modelled: a pipeline's stages, each of which has some of the layers",) * (_stages(start) > 1),
    )


def _stages(start: Start) -> int:
    return stated_number(start.stated, "pipeline_parallel_size") or 1


def _compare(start: Start, question: Question, architecture: Architecture) -> Iterator[Compared]:
    figures, plan = start.figures, question.setup(architecture).plan
    if _stages(start) > 1:
        yield from (unchecked(name.replace("_", " "), figure) for name, figure in figures.items())
        return
    allocated, tokens, blocks = (figures.get(name) for name in ("allocated", "pool_tokens", "blocks"))
    if allocated is not None and Decimal(allocated.printed):  # AutoDeploy's fake manager has none: it is kept elsewhere
        size = plan.kv_bytes(question.context, 1)
        yield checked("pool", allocated, str(size) if allocated.unit == "B" else f"{size / GiB:.2f}")
    elif tokens is not None:
        yield unchecked("pool", tokens)
    per_block = stated_number(start.stated, "tokens_per_block")
    if blocks is not None and tokens is not None and per_block:
        yield checked("blocks", blocks, str(ceil_div(int(tokens.printed), per_block)))
    if blocks is not None and "max_tokens" in start.stated:  # a limit of tokens may be fewer
        yield unchecked("blocks of the free memory", blocks)
    elif blocks is not None and "free" in figures:
        yield _blocks_of_memory(blocks, figures["free"], question, architecture)
    if "token" in figures:
        yield checked("bytes of a token", figures["token"], str(_token_bytes(question, architecture)))


def _blocks_of_memory(blocks: Figure, free: Figure, question: Question, architecture: Architecture) -> Compared:
    """Blocks beside those of the free memory.

    Where nobody states its part, a number that 0.9 does not give is open; so is one below it among several devices, of
    which the one with the least memory decides.
    """
    fraction = question.options.get("free_gpu_memory_fraction")
    options = {**question.options, "free_gpu_memory_fraction": fraction or _DEFAULT_FRACTION}
    plan = replace(question, options=options).setup(architecture).plan
    least, most = (min(plan.report(1, 1, memory)["blocks_per_window"].values()) for memory in byte_bounds(free, 2))
    printed = int(blocks.printed)
    agrees = least <= printed <= most
    if not agrees and (fraction is None or (printed < least and question.tensor_parallel_size > 1)):
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
    )


LOG = EngineLog(
    "tensorrt-llm",
    (
        ("max tokens in paged kv cache: total", _read),
        ("aka max_tokens_in_paged_kv_cache", _read),
        ("fraction is set ", _read),
        ("in paged KV cache", _read),
        ("bytes for k/v cache", _read),
        ("blocks in KV cache primary pool:", _read),
        ("tokens per block", _read),
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
