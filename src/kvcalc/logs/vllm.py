"""vLLM's log: v1/worker/gpu_worker.py, v1/core/kv_cache_utils.py and their older homes, from 0.6 to 0.33."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

from kvcalc.architecture import Architecture
from kvcalc.engines.releases import text as version_text
from kvcalc.engines.vllm import VllmPlan
from kvcalc.engines.vllm.versions import SPANS
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
    first_that_holds,
    known_options,
    printed_gib,
    stated_number,
    unchecked,
)
from kvcalc.units import GiB

# ---- lines ----

_AVAILABLE = re.compile(
    rf"(?:Available KV cache memory: |reserved for KV Cache is |kv_cache_size=|reserved (?=[\d.]+ ?GiB memory for KV))"
    rf"{NUMBER} ?Gi?B"
)
_POOL = re.compile(rf"KV cache size: {COUNT} tokens(?!, KV pool)")
_CONCURRENCY = re.compile(rf"Maximum concurrency for {COUNT} tokens per request: {NUMBER}x")
_SERVE = re.compile(rf"(?:To serve at least one request with the models?'s|The model's) max seq len \({COUNT}\)")
_NEEDED = re.compile(rf"\(?{NUMBER} Gi?B KV cache is needed")
_LESS = re.compile(rf"available KV cache memory \({NUMBER} Gi?B\)")
_ESTIMATE = re.compile(rf"estimated maximum model length is {COUNT}")
_STORED = re.compile(rf"that can be stored in KV cache \({COUNT}\)")
_BLOCKS = re.compile(rf"num_gpu_blocks is: {COUNT}|# (?:GPU|CUDA|cuda) blocks: {COUNT}")
_PADDING_LAYERS = re.compile(r"Add (\d{1,4}) padding layers")
_OVERRIDE = re.compile(rf"with num_gpu_blocks_override={COUNT}")
_ATTENTION_BLOCK = re.compile(rf"Setting attention block size to {COUNT} tokens")
_PAGE_PADDING = re.compile(rf"Padding mamba page size by {NUMBER}%")
_VERSION = re.compile(r"(?:vLLM API server version|LLM engine \(v|version):? ?v?(\d{1,3}\.\d{1,3}(?:\.\d{1,3})?)")
_BATCHED = re.compile(rf"max_num_batched_tokens={COUNT}")
_STORED_FORMAT = re.compile(r"Using (\w{1,30}) data type to store kv cache|Using DeepSeek's (\w{1,30}) KV cache format")
_KERNEL_BLOCK = re.compile(r"kv cache block size to (\d{1,6}) for")
_ASYNC = re.compile(r"[Aa]sync(?:hronous)? scheduling (?:is|will be) (enabled|disabled)")
_LENGTH = re.compile(r"Using max model len (\d{1,10})")
_PARALLEL = re.compile(
    rf"(?:dcp_world_size|cp_world_size) {COUNT}(?: \(pcp_world_size {COUNT} \* dcp_world_size {COUNT})?"
)

_WEIGHTS = re.compile(rf"[Ll]oading (?:model weights )?took {NUMBER} Gi?B")
_PROFILE = re.compile(
    rf"model weights take {NUMBER} ?GiB; non_torch_memory takes {NUMBER} ?GiB; "
    rf"PyTorch activation peak memory takes {NUMBER} ?GiB"
)
_USAGE = re.compile(rf"{NUMBER} GiB for (weight|consumed memory|peak activation|non-torch memory|CUDAGraph memory)")
_USAGE_WORDS = {
    "weight": "weights",
    "consumed memory": "weights_and_non-torch",
    "peak activation": "activation",
    "non-torch memory": "non-torch",
    "CUDAGraph memory": "CUDA_graphs",
}
_GRAPHS = re.compile(rf"(?:Graph capturing finished in {NUMBER} secs?, took |CUDA graph pool memory: ){NUMBER} GiB")
_GRAPHS_ESTIMATED = re.compile(rf"Estimated CUDA graph memory: {NUMBER} GiB|{NUMBER} GiB \(estimated\)")
_OLD_PROFILE = re.compile(rf"peak_torch_memory={NUMBER} ?GiB.{{1,120}}?non_torch_memory={NUMBER} ?GiB")


_TP_RANK = re.compile(r"TP(\d{1,4})")


def _rank(start: Start, line: Line) -> None:
    """The ranks of tensor parallelism that speak, where no line says how many there are."""
    if match := _TP_RANK.search(line.process):
        start.stated["ranks"] = str(max(int(start.stated.get("ranks", 0)), int(match[1]) + 1))


def _available(reader: LogReader, line: Line) -> None:
    match = _AVAILABLE.search(line.text)
    _terms(reader, line)
    if match is None:
        return
    start = reader.of("vllm", line)
    # A process says once what it has. Said again, or after the pool, it is another start's.
    if (
        "pool_tokens" in start.figures
        or "concurrency" in start.figures
        or (line.process and line.process in start.memory)
    ):
        reader.open(line, keep_flags=True)
        start = reader.of("vllm", line)
    figure = Figure("available", match[1], "GiB", line.number)
    if line.process or "" not in start.memory or Decimal(match[1]) < Decimal(start.memory[""].printed):
        start.memory[line.process] = figure
    # Every worker says what it has; the one with the least decides.
    start.figures["available"] = min(start.memory.values(), key=lambda each: Decimal(each.printed))


#: Where vLLM's versions print the pool (kv_cache_utils.py), in two lines until 0.27 and then in one.
_VERSION_OF_LINE = {
    "tokens": {
        1087: "0.11.0",
        1229: "0.11.2",
        1286: "0.12.0",
        1305: "0.14.0",
        1307: "0.16.0",
        1314: "0.17.1",
        1316: "0.18.0",
        1319: "0.19.0",
        1708: "0.20.1",
        1711: "0.20.0",
        1733: "0.22.0",
        1744: "0.23.0",
        2146: "0.24.0",
        2177: "0.26.0",
        2235: "0.27.1",
    },
    "tokens and concurrency": {1870: "0.28.0", 2033: "0.29.0"},
}
_POOL_LINE = re.compile(r"\[kv_cache_utils\.py:(\d{3,5})\]")


def _dated(start: Start, line: Line, kind: str) -> None:
    """The version whose code prints the pool at this line, or the last one before it, for a log that states none."""
    if match := _POOL_LINE.search(line.text):
        known = _VERSION_OF_LINE[kind]
        start.stated["printed_at"] = match[1]
        start.stated["printed_by"] = known[max((at for at in known if at <= int(match[1])), default=min(known))]


def _pool(reader: LogReader, line: Line) -> None:
    pool, concurrency = _POOL.search(line.text), _CONCURRENCY.search(line.text)
    if pool:
        _tokens(reader, line, pool[1])
        _dated(reader.start, line, "tokens and concurrency" if concurrency else "tokens")
    if concurrency:
        start = reader.of("vllm", line)
        start.stated["max_model_len"] = concurrency[1].replace(",", "")
        start.put(line, "x", concurrency=concurrency[2])


#: Lines within which the ranks of one start print their pools, where each prints its own (0.8 to 0.10).
_NEAR = 32


def _tokens(reader: LogReader, line: Line, printed: str) -> None:
    start, tokens = reader.of("vllm", line), int(printed.replace(",", ""))
    known = start.figures.get("pool_tokens")
    if known is not None:
        alike = abs(tokens - int(known.printed)) * 100 <= tokens
        if line.number - known.line > _NEAR or not alike:
            reader.open(line, keep_flags=True)
            start = reader.of("vllm", line)
        elif tokens > int(known.printed):  # another rank's: the one with the least memory decides
            return
    start.put(line, "tokens", pool_tokens=printed)


def _refusal(reader: LogReader, line: Line) -> None:
    serve, needed = _SERVE.search(line.text), _NEEDED.search(line.text)
    less, estimate = _LESS.search(line.text), _ESTIMATE.search(line.text)
    stored = _STORED.search(line.text)
    if not (serve or needed or less or estimate or stored):
        return
    start = reader.of("vllm", line)
    if serve:
        start.stated["max_model_len"] = serve[1].replace(",", "")
    start.put(line, "GiB", needed=needed and needed[1], available=less and less[1])
    start.put(line, "tokens", estimated_max_model_len=estimate and estimate[1], pool_tokens=stored and stored[1])
    if start.stopped is None and (needed or stored):
        start.stopped = ("vLLM refused the context", line.number)


def _blocks(reader: LogReader, line: Line) -> None:
    match = _BLOCKS.search(line.text)
    if match:
        start = reader.of("vllm", line)
        start.put(line, "blocks", blocks=match[1] or match[2])
        start.stated["old_concurrency"] = str(match[1] is None)


def _padding(reader: LogReader, line: Line) -> None:
    match = _PADDING_LAYERS.search(line.text)
    if match:
        start = reader.of("vllm", line)
        known = start.figures.get("padding_layers")
        total = int(match[1]) + (int(known.printed) if known is not None else 0)  # 0.29 says it bucket by bucket
        start.put(line, "layers", padding_layers=str(total))


def _override(reader: LogReader, line: Line) -> None:
    match = _OVERRIDE.search(line.text)
    if match and "num_gpu_blocks=0 with" not in line.text:  # vLLM's own, for a cache to profile its graphs with
        reader.stated("vllm", line)["num_gpu_blocks_override"] = match[1].replace(",", "")


def _attention_block(reader: LogReader, line: Line) -> None:
    block, padding = _ATTENTION_BLOCK.search(line.text), _PAGE_PADDING.search(line.text)
    if block:
        reader.of("vllm", line).put(line, "tokens", attention_block_size=block[1])
    if padding:
        reader.of("vllm", line).put(line, "%", page_padding=padding[1])


def _terms(reader: LogReader, line: Line) -> None:
    start, text = reader.start, line.text
    _rank(start, line)
    if match := _WEIGHTS.search(text):
        start.term(line, "GiB", weights=match[1])
    if match := _PROFILE.search(text):
        start.term(line, "GiB", **{"weights": match[1], "non-torch": match[2], "activation": match[3]})
    if match := _OLD_PROFILE.search(text):
        start.term(line, "GiB", **{"peak_of_weights_and_activation": match[1], "non-torch": match[2]})
    for match in _USAGE.finditer(text):
        start.term(line, "GiB", **{_USAGE_WORDS[match[2]]: match[1]})
    if match := _GRAPHS.search(text):
        start.term(line, "GiB", CUDA_graphs=match[2])
    if match := _GRAPHS_ESTIMATED.search(text):
        start.term(line, "GiB", CUDA_graphs_as_estimated=match[1] or match[2])


def _context_parallel(reader: LogReader, line: Line) -> None:
    match = _PARALLEL.search(line.text)
    if match:
        stated = reader.stated("vllm", line)
        stated["decode_context_parallel_size"] = match[3] or match[1]
        if match[2]:
            stated["prefill_context_parallel_size"] = match[2]


def _version(reader: LogReader, line: Line) -> None:
    match = _VERSION.search(line.text)
    if match:
        reader.stated("vllm", line)["version"] = match[1]


_INSTALLED = re.compile(r"(?:vLLM Version *: *v?|(?<![\w-])vllm==)(\d{1,3}\.\d{1,3}(?:\.\d{1,3})?)")


def _installed(reader: LogReader, line: Line) -> None:
    """The version among the packages that people paste before the log; what the engine itself says goes before it."""
    if match := _INSTALLED.search(line.text):
        reader.stated("vllm", line).setdefault("version", match[1])
        reader.standing["version"] = match[1]


_HUB_PATH = re.compile(r"/models--([\w.-]{1,100}?)--([\w.-]{1,200})")


def _hub_path(reader: LogReader, line: Line) -> None:
    """The model by the folder that the Hub's files lie in, where nothing else names it."""
    if match := _HUB_PATH.search(line.text):
        reader.start.stated.setdefault("file", f"{match[1]}/{match[2]}")


_CPU_MEMORY = re.compile(r"for CPU backend is not set, using (\d{1,4}) by default")


def _cpu_memory(reader: LogReader, line: Line) -> None:
    """A CPU has no memory line: it has this much."""
    if match := _CPU_MEMORY.search(line.text):
        reader.stated("vllm", line).setdefault("kv_cache_memory_bytes", str(int(match[1]) * GiB))


def _server(reader: LogReader, line: Line) -> None:
    reader.banner("vllm", line, "server")
    _version(reader, line)


#: The banner of 0.18 and later: "[utils.py:299]  █ ... █  version 0.19.0", then the model in a line of its own.
_BANNER = re.compile(r"(?:^|\]|[█▀▄]) *version (\d{1,3}\.\d{1,3}\.\d)|[█▀▄] *model +(\S{1,300})")


def _logo(reader: LogReader, line: Line) -> None:
    match = _BANNER.search(line.text)
    if match and match[1]:
        _server(reader, line)
    elif match:
        reader.stated("vllm", line).setdefault("model", match[2])


# Only these names are looked for, so that a long line costs one pass whatever stands in it.
_FLAGS = re.compile(
    r"(?<![\w.])['\"]?(model|max_model_len|max_seq_len|max_num_batched_tokens|tensor_parallel_size"
    r"|pipeline_parallel_size|data_parallel_size|kv_cache_dtype|kv_cache_memory_bytes|dtype|block_size"
    r"|async_scheduling|disable_hybrid_kv_cache_manager|enable_prefix_caching|num_gpu_blocks_override"
    r"|num_speculative_tokens|num_spec_tokens|method|max_num_seqs|enforce_eager|gpu_memory_utilization|mamba_cache_dtype"
    r"|mamba_ssm_cache_dtype|decode_context_parallel_size|prefill_context_parallel_size|indexer_kv_dtype)"
    r"['\"]?[=:] ?['\"]?"
    r"([^'\",(){}\[\]\s]{1,300})"
)
_COMMAND = {
    "--model": "model",
    "--max-model-len": "max_model_len",
    "--max_model_len": "max_model_len",
    "--max-num-batched-tokens": "max_num_batched_tokens",
    "--max-num-seqs": "max_num_seqs",
    "--tensor-parallel-size": "tensor_parallel_size",
    "-tp": "tensor_parallel_size",
    "--pipeline-parallel-size": "pipeline_parallel_size",
    "-pp": "pipeline_parallel_size",
    "--decode-context-parallel-size": "decode_context_parallel_size",
    "-dcp": "decode_context_parallel_size",
    "--prefill-context-parallel-size": "prefill_context_parallel_size",
    "-pcp": "prefill_context_parallel_size",
    "--kv-cache-dtype": "kv_cache_dtype",
    "--kv-cache-memory-bytes": "kv_cache_memory_bytes",
    "--kv-cache-memory": "kv_cache_memory_bytes",
    "--dtype": "dtype",
    "--enforce-eager": "enforce_eager",
    "--block-size": "block_size",
    "--num-gpu-blocks-override": "num_gpu_blocks_override",
    "--disable-hybrid-kv-cache-manager": "disable_hybrid_kv_cache_manager",
    "--enable-prefix-caching": "enable_prefix_caching",
    "--no-enable-prefix-caching": "no_prefix_caching",
    "--async-scheduling": "async_scheduling",
    "--indexer-kv-dtype": "indexer_kv_dtype",
    "--mamba-cache-dtype": "mamba_cache_dtype",
    "--mamba-ssm-cache-dtype": "mamba_ssm_cache_dtype",
}
_SERVE_MODEL = re.compile(r"vllm serve +['\"]?([^-\s'\"][^\s'\"]{0,300})")
_DRAFTED = re.compile(r"num_speculative_tokens['\"]?: ?(\d{1,3})")


def _arguments(reader: LogReader, line: Line) -> None:
    reader.banner("vllm", line, "arguments")
    reader.flags(line, _FLAGS)


def _engine_line(reader: LogReader, line: Line) -> None:
    reader.banner("vllm", line, "engine")
    _version(reader, line)
    reader.flags(line, _FLAGS)


def _chunked(reader: LogReader, line: Line) -> None:
    match = _BATCHED.search(line.text)
    if match:
        reader.stated("vllm", line)["max_num_batched_tokens"] = match[1].replace(",", "")


def _command(reader: LogReader, line: Line) -> None:
    reader.command("vllm", line)
    if match := _SERVE_MODEL.search(line.text):
        reader.stated("vllm", line).setdefault("model", match[1])
    if match := _DRAFTED.search(line.text):
        reader.stated("vllm", line).setdefault("num_speculative_tokens", match[1])


def _stored_format(reader: LogReader, line: Line) -> None:
    match = _STORED_FORMAT.search(line.text)
    if match:
        reader.stated("vllm", line)["kv_cache_dtype"] = match[1] or match[2]


def _settled(reader: LogReader, line: Line) -> None:
    """What the engine decides by itself and says in a sentence."""
    text, stated = line.text, reader.stated("vllm", line)
    _rank(reader.start, line)
    if match := _KERNEL_BLOCK.search(text):
        stated["block_size"] = match[1]
    elif "ybrid KV cache manager is disabled" in text or "urning off hybrid kv cache manager" in text:
        stated["disable_hybrid_kv_cache_manager"] = "True"
    elif match := _ASYNC.search(text):
        stated["async_scheduling"] = str(match[1] == "enabled")


def _length(reader: LogReader, line: Line) -> None:
    match = _LENGTH.search(line.text)
    if match:
        reader.stated("vllm", line).setdefault("max_model_len", match[1])


def _no_memory(reader: LogReader, line: Line) -> None:
    start = reader.of("vllm", line)
    start.stopped = start.stopped or ("no memory was left for the cache", line.number)


# ---- what they state, and what they should be ----

_OPTIONS = (
    "block_size",
    "max_num_batched_tokens",
    "max_num_seqs",
    "enforce_eager",
    "async_scheduling",
    "disable_hybrid_kv_cache_manager",
    "pipeline_parallel_size",
    "num_gpu_blocks_override",
    "enable_prefix_caching",
    "mamba_cache_dtype",
    "mamba_ssm_cache_dtype",
    "decode_context_parallel_size",
    "prefill_context_parallel_size",
    "indexer_kv_dtype",
)
#: Flags that have their default where a start prints its other arguments, or the command that began it.
_ARGUMENTS = {
    "block_size",
    "disable_hybrid_kv_cache_manager",
    "kv_cache_dtype",
    "num_speculative_tokens",
    "pipeline_parallel_size",
    "tensor_parallel_size",
}


def _question(start: Start, given: Given) -> Question:
    stated = start.stated
    context = given.context or stated_number(stated, "max_model_len", "max_seq_len")
    if context is None:
        raise InputError("the log does not state the context", hint="give it with -c")
    options: dict[str, object] = {name: stated[name] for name in _OPTIONS if name in stated}
    if "no_prefix_caching" in stated:
        options.setdefault("enable_prefix_caching", False)
    options, unknown = known_options("vllm", options)
    drafted = stated_number(stated, "num_speculative_tokens", "num_spec_tokens")
    if drafted:
        options["num_speculative_tokens"] = drafted
    notes = list(unknown)
    if "version" in stated:
        options["version"] = stated["version"]
    elif "printed_by" in stated and "version" not in given.options:
        options["version"] = version = stated["printed_by"]
        notes.append(
            f"the log states no version: the size of its pool is printed at line {stated['printed_at']} of "
            f"kv_cache_utils.py, as in vllm {version} or soon after"
        )
    if "max_num_batched_tokens" not in stated and "max_num_batched_tokens" not in given.options:
        notes.append("the log does not state max_num_batched_tokens: the engine's default is used")
    if drafted and given.draft is None and "method" in stated and not stated["method"].endswith(("mtp", "ngram")):
        notes.append(f"the log states a draft model ({stated['method']}), which is not counted: give it with --draft")
    dtype = given.kv_cache_dtype or stated.get("kv_cache_dtype") or stated.get("dtype")
    names = {*options, *given.options, *(name for name in ("tensor_parallel_size", "kv_cache_dtype") if name in stated)}
    if any(each.startswith(("arguments", "command")) for each in start.seen):
        names |= _ARGUMENTS
    names |= {name for name in ("tensor_parallel_size", "kv_cache_dtype") if getattr(given, name) is not None}
    return Question(
        given.engine or "vllm",
        {**options, **given.options},
        context,
        given.batch_size or 1,
        None if dtype is None else dtype.removeprefix("torch."),
        given.tensor_parallel_size or stated_number(stated, "tensor_parallel_size", "ranks") or 1,
        frozenset(names),
        draft=given.draft or ("mtp" if drafted and stated.get("method", "").endswith("mtp") else None),
        notes=tuple(notes),
    )


def _plan(question: Question, architecture: Architecture) -> VllmPlan:
    plan = question.setup(architecture).plan
    if not isinstance(plan, VllmPlan):
        raise InputError(f"a log of vllm is held against vllm's rule, not {question.engine}'s")
    return plan


def _compare(start: Start, question: Question, architecture: Architecture) -> Iterator[Compared]:
    plan = _plan(question, architecture)
    figures, context = start.figures, question.context
    needed = figures.get("needed")
    if needed is not None:
        yield checked("needed for one request", needed, printed_gib(plan.needed_bytes(context)))
    bounds = _memory(start)
    estimate = figures.get("estimated_max_model_len")
    if estimate is not None:
        yield unchecked("estimated maximum length", estimate) if bounds is None else _estimate(plan, estimate, bounds)
    yield from _block(plan, start)
    padding = figures.get("padding_layers")
    if padding is not None:
        yield checked("padding layers", padding, str(plan.padding_layers))
    yield from _pool_rows(plan, start, bounds, context)


def _memory(start: Start) -> tuple[int, int] | None:
    """The least and the most bytes that the cache may have: a flag says them exactly, the log to 0.01 GiB."""
    exact = stated_number(start.stated, "kv_cache_memory_bytes")
    if exact:
        return exact, exact
    available = start.figures.get("available")
    return None if available is None else byte_bounds(available, 2)


def _estimate(plan: VllmPlan, estimate: Figure, bounds: tuple[int, int]) -> Compared:
    def longest(memory: int) -> int:
        found: int = plan.report(1, 1, memory)["estimated_max_model_len"]
        return found

    # The memory is printed to 0.01 GiB: the estimate must be the one of some memory of that print. It is at least the
    # reported length where that length fits.
    reported = int(estimate.printed)
    memory = first_that_holds(*bounds, lambda memory: not reported or plan.fits(reported, 1, memory))
    agrees = longest(memory) == reported
    return checked(
        "estimated maximum length", estimate, str(reported if agrees else longest(sum(bounds) // 2)), agrees=agrees
    )


def _block(plan: VllmPlan, start: Start) -> Iterator[Compared]:
    block, padding = start.figures.get("attention_block_size"), start.figures.get("page_padding")
    raised = plan.block_note
    if block is not None:
        yield checked("attention block", block, "none" if raised is None else str(raised.block_size))
    if padding is not None:
        percent = "none"
        if raised is not None:
            percent = f"{100 * (raised.block_size * raised.token_bytes - raised.state_bytes) / raised.state_bytes:.2f}"
        yield checked("padding of a state's page", padding, percent)


def _pool_rows(plan: VllmPlan, start: Start, bounds: tuple[int, int] | None, context: int) -> Iterator[Compared]:
    figures = start.figures
    blocks, tokens, concurrency = figures.get("blocks"), figures.get("pool_tokens"), figures.get("concurrency")
    block = plan.report(context, 1, GiB)["bytes_per_block"]
    if not block:
        yield from (
            unchecked(name, each) for name, each in (("KV cache size", tokens), ("concurrency", concurrency)) if each
        )
        return
    memory = None if bounds is None else _blocks_held(plan, start, bounds)
    if blocks is not None:
        count = int(blocks.printed)
        if memory is None:
            yield unchecked("blocks", blocks)
        else:
            agrees = memory[0] <= count <= memory[1]
            yield checked("blocks", blocks, str(count if agrees else sum(memory) // 2), agrees=agrees)
        memory = count, count
    if tokens is not None:
        yield from _token_rows(plan, start, memory, context, tokens)
    elif concurrency is not None and memory is not None:
        first = first_that_holds(
            *memory, lambda number: Decimal(_says(plan, start, number, context)[1]) >= Decimal(concurrency.printed)
        )
        yield checked("concurrency", concurrency, _says(plan, start, first, context)[1])
    elif concurrency is not None:
        yield unchecked("concurrency", concurrency)


_STAGE = re.compile(r"PP(\d{1,3})(?:_|$)")


def _blocks_held(plan: VllmPlan, start: Start, bounds: tuple[int, int]) -> tuple[int, int]:
    """The fewest and the most blocks that the memory holds: of the pipeline stage that holds the fewest.

    Stages differ in their layers and in what is left for the cache: 40 GiB over 16 layers are less than 38 over 15.
    """
    stages = plan.stage_block_bytes
    ranks = [
        (byte_bounds(figure, 2), stages[int(stage[1])])
        for process, figure in start.memory.items()
        if (stage := _STAGE.search(process)) and int(stage[1]) < len(stages)
    ]
    if not ranks or bounds[0] == bounds[1]:  # no stage is named, or a flag says the bytes of each
        return bounds[0] // plan.bytes_per_block, bounds[1] // plan.bytes_per_block
    return min(low // size for (low, _), size in ranks), min(high // size for (_, high), size in ranks)


def _says(plan: VllmPlan, start: Start, blocks: int, context: int) -> tuple[int, str]:
    """The tokens and the concurrency that vLLM prints of so many blocks."""
    block = plan.report(context, 1, GiB)["bytes_per_block"]
    _, concurrent, tokens = plan.logged(context, blocks * block)
    if start.stated.get("old_concurrency") == "True" and plan.num_groups == 1:
        # V0 and the first V1 count tokens, and do not round a request to blocks.
        tokens = blocks * plan.engine.block_size
        concurrent = tokens / context
    return tokens, f"{concurrent:.2f}"


def _token_rows(
    plan: VllmPlan, start: Start, memory: tuple[int, int] | None, context: int, tokens: Figure
) -> Iterator[Compared]:
    reported, concurrency = int(tokens.printed), start.figures.get("concurrency")
    low, high = memory or (1, 2**40)
    first = first_that_holds(low, high, lambda number: _says(plan, start, number, context)[0] >= reported)
    behind = first_that_holds(first, high, lambda number: _says(plan, start, number, context)[0] > reported)
    found = _says(plan, start, first, context)[0] == reported
    nearest = first if found or memory is None else (low + high) // 2
    predicted_tokens, predicted_concurrency = _says(plan, start, nearest, context)
    if memory is not None:
        yield checked("KV cache size", tokens, str(predicted_tokens), agrees=found)
    elif found:
        yield unchecked("KV cache size", tokens)
    else:  # whatever the memory, the rule never gives this number
        yield checked("KV cache size", tokens, str(predicted_tokens), agrees=False)
    if concurrency is None:
        return
    candidates = {_says(plan, start, number, context)[1] for number in range(first, min(behind, first + 256) + 1)}
    ratio = f"{reported / context:.2f}"
    if found and memory is None and concurrency.printed == ratio and ratio in candidates:
        yield unchecked("concurrency", concurrency)  # tokens through the context, for any model
    elif found and concurrency.printed in candidates:
        yield checked("concurrency", concurrency, concurrency.printed)
    else:
        yield checked("concurrency", concurrency, predicted_concurrency)


def _device_terms(start: Start) -> dict[str, int]:
    """Weights, activations, what is outside of torch, and the graphs that the budget was reduced by.

    Since 0.26 weights and non-torch are one figure, and the activations hold the estimate of the graphs
    (v1/worker/gpu_worker.py:724); before 0.21 nothing is deducted for graphs, and what they took is their term.
    """
    sizes = {name: figure.bytes for name, figure in start.terms.items()}
    weights, consumed = sizes.get("weights"), sizes.get("weights and non-torch")
    graphs = sizes.get("CUDA graphs as estimated", sizes.get("CUDA graphs"))
    activation, runtime = sizes.get("activation"), sizes.get("non-torch")
    if consumed is not None and weights is not None:
        runtime = max(0, consumed - weights)
        activation = None if activation is None or graphs is None else max(0, activation - graphs)
    found = {
        "weights_bytes": weights,
        "activation_bytes": activation,
        "runtime_bytes": runtime,
        "graph_bytes": graphs,
    }
    return {name: size for name, size in found.items() if size is not None}


def _changes(start: Start, question: Question) -> Iterator[Change]:
    yield from changes(
        question,
        max_num_batched_tokens=(2048, 8192, 16384, 4096, 32768),
        async_scheduling=(False, True),
        version=tuple(version_text(each.first) for each in reversed(SPANS)),
        disable_hybrid_kv_cache_manager=(True, False),
        kv_cache_dtype=("fp8", "bfloat16"),
        tensor_parallel_size=(1, 2, 4, 8),
        pipeline_parallel_size=(1, 2, 4, 8),
        block_size=(32, 64, 128),
        enable_prefix_caching=(True, False),
        num_speculative_tokens=(1, 2, 3),
    )


#: The ranks of one start have about the same memory: less than this part of another's has another reason.
_LEAST_OF_A_RANK = 0.4


def _explain(start: Start, question: Question, architecture: Architecture, rows: tuple[Compared, ...]) -> str | None:
    """Another rank with less memory: the smallest rank sizes the pool, and not every rank may be in the log."""
    tokens, bounds = start.figures.get("pool_tokens"), _memory(start)
    stages = stated_number(start.stated, "pipeline_parallel_size") or 1
    ranks, seen = question.tensor_parallel_size * stages, len(start.memory)
    wrong = {row.figure for row in rows if row.verdict == "disagrees"}
    if tokens is None or bounds is None or seen >= ranks or not wrong <= {"KV cache size", "concurrency"}:
        return None
    plan, context, reported = _plan(question, architecture), question.context, int(tokens.printed)
    block = plan.report(context, 1, GiB)["bytes_per_block"]
    blocks = first_that_holds(1, bounds[0] // block, lambda number: _says(plan, start, number, context)[0] >= reported)
    memory = Figure("available", f"{blocks * block / GiB:.2f}", "GiB", tokens.line)
    less = replace_memory(start, memory)
    if not _LEAST_OF_A_RANK * bounds[0] <= blocks * block < bounds[0] or any(
        row.verdict == "disagrees" for row in _compare(less, question, architecture)
    ):
        return None
    return (
        f"all figures agree if another rank had about {memory.printed} GiB: the smallest rank sizes the pool, and the "
        f"log has the memory of {seen} of {ranks} ranks"
    )


def replace_memory(start: Start, memory: Figure) -> Start:
    """The start as it would be if the smallest rank had this memory."""
    return replace(start, figures={**start.figures, "available": memory})


LOG = EngineLog(
    "vllm",
    (
        ("Available KV cache memory:", _available),
        ("reserved for KV Cache is", _available),
        ("GiB memory for KV", _available),
        ("kv_cache_size=", _available),
        ("KV cache size:", _pool),
        ("Maximum concurrency for", _pool),
        ("To serve at least one request", _refusal),
        ("KV cache is needed", _refusal),
        ("available KV cache memory (", _refusal),
        ("estimated maximum model length", _refusal),
        ("that can be stored in KV cache (", _refusal),
        ("num_gpu_blocks is:", _blocks),
        ("# GPU blocks:", _blocks),
        ("# CUDA blocks:", _blocks),
        ("# cuda blocks:", _blocks),
        ("padding layers, may waste", _padding),
        ("with num_gpu_blocks_override=", _override),
        ("Setting attention block size", _attention_block),
        ("Padding mamba page size by", _attention_block),
        ("cp_world_size ", _context_parallel),
        ("non-default args:", _arguments),
        ("args: Namespace(", _arguments),
        ("LLM engine (v", _engine_line),
        ("V1 LLM engine with config", _engine_line),
        ("vLLM API server version", _server),
        ("vLLM Version ", _installed),
        ("vllm==", _installed),
        ("for CPU backend is not set, using", _cpu_memory),
        (" version 0.", _logo),
        ("version 0.", _logo),
        ("█  model ", _logo),
        ("data type to store kv cache", _stored_format),
        ("KV cache format", _stored_format),
        ("Using max model len", _length),
        ("kv cache block size to ", _settled),
        ("ybrid KV cache manager is disabled", _settled),
        ("urning off hybrid kv cache manager", _settled),
        (" scheduling is ", _settled),
        (" scheduling will be ", _settled),
        ("Chunked prefill is enabled", _chunked),
        ("oading took ", _terms),
        ("model weights took", _terms),
        ("model weights take", _terms),
        ("for peak activation", _terms),
        ("Graph capturing finished", _terms),
        ("CUDA graph pool memory:", _terms),
        ("Estimated CUDA graph memory:", _terms),
        ("No available memory for the cache blocks", _no_memory),
        ("vllm serve ", _command),
        ("vllm.entrypoints", _command),
        ("/models--", _hub_path),
    ),
    _COMMAND,
    (
        ("weights", "loaded its weights"),
        ("available", "measured the memory left for the cache"),
        ("pool_tokens", "printed its pool"),
        ("CUDA graphs", "captured its CUDA graphs"),
    ),
    _question,
    _compare,
    _changes,
    _explain,
    ("vllm",),
    _device_terms,
)
