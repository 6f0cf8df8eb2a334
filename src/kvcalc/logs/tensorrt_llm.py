"""TensorRT-LLM's log: batch_manager/kvCacheManager.cpp, from 0.8 to 1.x."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kvcalc.architecture import Architecture
from kvcalc.errors import InputError
from kvcalc.logs.base import (
    COUNT,
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
    known_options,
    stated_number,
    unchecked,
)
from kvcalc.units import GiB, ceil_div

# ---- lines ----

_POOL = re.compile(rf"Allocated {NUMBER} GiB for max tokens in paged KV cache \({COUNT}\)")
_OLD_BYTES = re.compile(r"Allocate (\d{1,18}) bytes for k/v cache")
_OLD_TOKENS = re.compile(rf"Using {COUNT} tokens in paged KV cache")
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


def _question(start: Start, given: Given) -> Question:
    tokens = start.figures.get("pool_tokens")
    if tokens is None or not int(tokens.printed):
        raise InputError("the log does not state the tokens of a pool")
    options: dict[str, object] = {}
    for name in ("tokens_per_block", "pipeline_parallel_size"):
        if stated_number(start.stated, name):
            options[name] = stated_number(start.stated, name)
    options, notes = known_options("tensorrt-llm", options)
    names = {*options, *given.options}
    if given.kv_cache_dtype:
        names.add("kv_cache_dtype")
    if given.tensor_parallel_size or "tensor_parallel_size" in start.stated:
        names.add("tensor_parallel_size")
    return Question(
        given.engine or "tensorrt-llm",
        {**options, **given.options},
        int(tokens.printed),
        1,
        given.kv_cache_dtype,
        given.tensor_parallel_size or stated_number(start.stated, "tensor_parallel_size") or 1,
        frozenset(names),
        notes=notes,
    )


def _compare(start: Start, question: Question, architecture: Architecture) -> Iterator[Compared]:
    allocated, tokens = start.figures.get("allocated"), start.figures["pool_tokens"]
    size = question.setup(architecture).plan.kv_bytes(question.context, 1)
    if allocated is None:
        yield unchecked("pool", tokens)
    elif allocated.unit == "B":
        yield checked("pool", allocated, str(size))
    else:
        yield checked("pool", allocated, f"{size / GiB:.2f}")
    blocks, per_block = start.figures.get("blocks"), stated_number(start.stated, "tokens_per_block")
    if blocks is not None and per_block:
        yield checked("blocks", blocks, str(ceil_div(int(tokens.printed), per_block)))


def _changes(start: Start, question: Question) -> Iterator[Change]:
    yield from changes(
        question,
        kv_cache_dtype=("fp8", "bfloat16", "nvfp4"),
        tensor_parallel_size=(1, 2, 4, 8),
        pipeline_parallel_size=(2, 4, 8),
    )


LOG = EngineLog(
    "tensorrt-llm",
    (
        ("in paged KV cache", _pool),
        ("bytes for k/v cache", _pool),
        ("blocks in KV cache primary pool:", _blocks),
        ("tokens per block", _blocks),
        ("LLM Args:", _arguments),
        ("trtllm-serve ", _command),
    ),
    _COMMAND,
    (("pool_tokens", "printed its pool"),),
    _question,
    _compare,
    _changes,
    judges=("tensorrt-llm",),
)
