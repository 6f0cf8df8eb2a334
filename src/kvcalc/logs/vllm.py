"""What a log of vLLM states, beside vLLM's rule: the configuration, the figures, and why they may differ."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

from kvcalc.architecture import Architecture
from kvcalc.engines.releases import text as version_text
from kvcalc.engines.vllm import VllmPlan
from kvcalc.engines.vllm.versions import SPANS
from kvcalc.errors import InputError, KVCalcError
from kvcalc.logs.base import (
    Change,
    Compared,
    EngineLog,
    Figure,
    Given,
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
from kvcalc.logs.vllm_lines import FLAGS, MARKERS
from kvcalc.sources import shipped
from kvcalc.sources.preset import load_preset
from kvcalc.units import GiB, ceil_div

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
    dated = stated.get("build") or "version" not in stated
    if dated and "printed_by" in stated and "version" not in given.options:
        options["version"] = version = stated["printed_by"]
        built = f"vllm {stated['version']}{stated['build']} is no release" if stated.get("build") else ""
        notes.append(
            f"{built or 'the log states no version'}: the size of its pool is printed at line {stated['printed_at']} "
            f"of kv_cache_utils.py, as in vllm {version} or soon after"
        )
    elif "version" in stated:
        options["version"] = stated["version"]
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


def _explain(start: Start, question: Question, architecture: Architecture, rows: tuple[Compared, ...]) -> str | None:
    return _of_draft(start, question, architecture) or _of_rank(start, question, architecture, rows)


def _of_draft(start: Start, question: Question, architecture: Architecture) -> str | None:
    """A second model that is cached beside the first, at full length: EAGLE's one layer, or a model by itself."""
    if question.draft is not None:
        return None

    def explains(draft: Architecture) -> bool:
        try:
            rows = tuple(_compare(start, replace(question, draft=draft), architecture))
        except KVCalcError:
            return False
        return all(row.verdict != "disagrees" for row in rows)

    last = architecture.layers[architecture.order[-1]]
    if explains(replace(architecture, layers=(last,), order=(0,), mtp_layers=())):
        return "all figures agree with a draft of one layer like the model's last (EAGLE): give it with --draft"
    needed = start.figures.get("needed")
    missing = (
        0 if needed is None else byte_bounds(needed, 2)[0] - _plan(question, architecture).kv_bytes(question.context, 1)
    )
    if missing > 0:
        fitting = [name for name in shipped.names("models") if explains(load_preset(name))]
        if fitting:
            return f"the figures agree with a draft model of the shape of {' or '.join(sorted(fitting)[:3])} beside it"
    drafted = start.stated.get("method", "")
    if not drafted or drafted.endswith(("mtp", "ngram")):
        return None
    growth = f", of about {ceil_div(missing, question.context):,} bytes a token" if missing > 0 else ""
    return f"the draft model that the log states ({drafted}{growth}) is not counted: give it with --draft"


#: The ranks of one start have about the same memory: less than this part of another's has another reason.
_LEAST_OF_A_RANK = 0.4


def _of_rank(start: Start, question: Question, architecture: Architecture, rows: tuple[Compared, ...]) -> str | None:
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
    less = replace(start, figures={**start.figures, "available": memory})
    if not _LEAST_OF_A_RANK * bounds[0] <= blocks * block < bounds[0] or any(
        row.verdict == "disagrees" for row in _compare(less, question, architecture)
    ):
        return None
    return (
        f"all figures agree if another rank had about {memory.printed} GiB: the smallest rank sizes the pool, and the "
        f"log has the memory of {seen} of {ranks} ranks"
    )


LOG = EngineLog(
    "vllm",
    MARKERS,
    FLAGS,
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
