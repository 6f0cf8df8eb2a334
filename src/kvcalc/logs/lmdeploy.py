"""LMDeploy's log: its PyTorch engine (executor/base.py, 0.18.0), and TurboMind's block manager and object cache."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal

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
    stated_number,
    unchecked,
)
from kvcalc.units import MiB

# ---- lines ----

_BLOCK = re.compile(rf"\[BlockManager\] (?:block_size = {NUMBER} MB|max_block_count = {COUNT})")
_TRUNCATED = re.compile(rf"`session_len` truncated to {COUNT}")
_BUDGET = re.compile(rf"Object cache budget: {NUMBER} MB from (?:free|cacheable) {NUMBER} MB and ratio {NUMBER}")
_MEMORY = re.compile(rf"(minimal free gpu|estimated max runtime) memory: {COUNT} mb")
_FLAGS = re.compile(
    r"(?<![\w.])(backend|tp|session_len|max_batch_size|max_batches|cache_max_entry_count|cache_block_seq_len|block_size"
    r"|quant_policy|max_prefill_token_num|num_gpu_blocks|num_state_caches)=(?:<[\w.]{1,40}: |['\"])?"
    r"([^'\",(){}\s<>]{1,300})"
)
_COMMAND = {
    "--tp": "tp",
    "--backend": "backend",
    "--session-len": "session_len",
    "--max-batch-size": "max_batch_size",
    "--cache-max-entry-count": "cache_max_entry_count",
    "--cache-block-seq-len": "cache_block_seq_len",
    "--quant-policy": "quant_policy",
    "--max-prefill-token-num": "max_prefill_token_num",
}
#: A budget and a free memory in hundredths of MiB, the one a part of the other; the part itself is in thousandths.
_TWO_ROUNDINGS, _RATIO_ROUNDING = Decimal("0.01"), Decimal("0.0005")
_SERVE_MODEL = re.compile(r"lmdeploy serve api_server ['\"]?([^-\s'\"][^\s'\"]{0,300})")


def _turbomind(reader: LogReader, line: Line) -> None:
    block, cut, budget = (each.search(line.text) for each in (_BLOCK, _TRUNCATED, _BUDGET))
    start = reader.of("lmdeploy", line)
    start.stated["backend"] = "turbomind"
    start.put(line, "MiB", block=block and block[1])
    start.put(line, "blocks", blocks=block and block[2])
    start.put(line, "tokens", session_len=cut and cut[1])
    if budget:
        start.put(line, "MiB", budget=budget[1], free=budget[2])
        start.put(line, ratio=budget[3])


def _cache_config(reader: LogReader, line: Line) -> None:
    start = reader.of("lmdeploy", line)
    reader.flags(line, _FLAGS)
    start.put(line, "blocks", blocks=start.stated.pop("num_gpu_blocks", None))
    start.put(line, "slots", state_slots=start.stated.pop("num_state_caches", None))


def _memory(reader: LogReader, line: Line) -> None:
    if match := _MEMORY.search(line.text):
        name = "free" if match[1] == "minimal free gpu" else "reserved"
        reader.of("lmdeploy", line).put(line, "MiB", **{name: match[2]})


def _arguments(reader: LogReader, line: Line) -> None:
    reader.banner("lmdeploy", line, "arguments")
    reader.flags(line, _FLAGS)


def _command(reader: LogReader, line: Line) -> None:
    reader.command("lmdeploy", line, _SERVE_MODEL)


# ---- what they state, and what they should be ----

#: Options and the words that state them; those of the cache itself go before those of the arguments.
_OPTIONS = {
    "cache_block_seq_len": ("block_size", "cache_block_seq_len"),
    "max_batch_size": ("max_batches", "max_batch_size"),
    "max_prefill_token_num": ("max_prefill_token_num",),
    "quant_policy": ("quant_policy",),
}


def _question(start: Start, given: Given) -> Question:
    options: dict[str, object] = {}
    for option, words in _OPTIONS.items():
        if number := stated_number(start.stated, *words):
            options[option] = number
    if "cache_max_entry_count" in start.stated:
        options["cache_max_entry_count"] = start.stated["cache_max_entry_count"]
    if start.stated.get("backend") == "turbomind":
        options["backend"] = "turbomind"
    blocks, session = start.figures.get("blocks"), stated_number(start.stated, "session_len")
    options |= given.options
    context = given.context or (int(blocks.printed) * _block_tokens(options) if blocks is not None else session)
    if not context:
        raise InputError("the log states neither blocks nor a session", hint="give the tokens of a sequence with -c")
    tp = given.tensor_parallel_size or stated_number(start.stated, "tp")
    said = {name for name in ("quant_policy", "cache_max_entry_count") if name in start.stated}
    return Question(
        given.engine or "lmdeploy",
        options,
        context,
        1,
        given.kv_cache_dtype,
        tp or 1,
        frozenset({*options, *said} | ({"tensor_parallel_size"} if tp else set())),
    )


def _block_tokens(options: Mapping[str, object]) -> int:
    return int(str(options.get("cache_block_seq_len", 64)))


def _compare(start: Start, question: Question, architecture: Architecture) -> Iterator[Compared]:
    plan, figures = question.setup(architecture).plan, start.figures
    free, blocks = figures.get("free"), figures.get("blocks")
    report = plan.report(question.context, 1, free.bytes if free is not None else 0)
    if "block" in figures:
        size = report["block_bytes"]
        whole = "." not in figures["block"].printed  # some versions print whole MiB
        yield checked("block", figures["block"], str(size // MiB) if whole else f"{size / MiB:.3f}")
    if blocks is not None and free is not None:  # whole MiB were printed of the free memory
        most = plan.report(question.context, 1, free.bytes + MiB - 1)["num_gpu_blocks"]
        agrees = report["num_gpu_blocks"] <= int(blocks.printed) <= most
        yield checked("blocks", blocks, str(report["num_gpu_blocks"]), agrees=agrees)
    elif blocks is not None:
        yield unchecked("blocks", blocks)
    if blocks is not None and "session_len" in figures:
        tokens = int(blocks.printed) * _block_tokens(question.options)
        yield checked("session", figures["session_len"], str(tokens))
    if "budget" in figures and free is not None:
        ratio, rounding = question.options.get("cache_max_entry_count"), _TWO_ROUNDINGS
        if ratio is None:
            ratio, rounding = figures["ratio"].printed, rounding + Decimal(free.printed) * _RATIO_ROUNDING
        budget = Decimal(free.printed) * Decimal(str(ratio))
        agrees = abs(budget - Decimal(figures["budget"].printed)) <= rounding
        yield checked("budget", figures["budget"], f"{budget:.2f}", agrees=agrees)
    if "reserved" in figures:
        yield checked("reserve of a step", figures["reserved"], str(report["reserved_bytes"] // MiB))
    if "state_slots" in figures:
        yield checked("state slots", figures["state_slots"], str(report["num_state_caches"]))


def _changes(start: Start, question: Question) -> Iterator[Change]:
    yield from changes(
        question,
        quant_policy=(0, 4, 8),
        tensor_parallel_size=(1, 2, 4, 8),
        cache_block_seq_len=(64, 128, 32),
    )


LOG = EngineLog(
    "lmdeploy",
    (
        ("[BlockManager] ", _turbomind),
        ("`session_len` truncated to ", _turbomind),
        ("Object cache budget: ", _turbomind),
        ("CacheConfig(max_batches=", _cache_config),
        ("minimal free gpu memory: ", _memory),
        ("estimated max runtime memory: ", _memory),
        ("input backend=", _arguments),
        ("lmdeploy serve api_server ", _command),
    ),
    _COMMAND,
    (("free", "measured its free memory"), ("blocks", "counted its blocks"), ("budget", "set its cache's budget")),
    _question,
    _compare,
    _changes,
    judges=("lmdeploy",),
)
