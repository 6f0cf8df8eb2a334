"""SGLang's log: mem_cache/memory_pool.py, managers/scheduler.py, model_executor/model_runner.py, 0.4 and 0.5."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from kvcalc.architecture import Architecture, Chunked, Compressed, Cross, Full, Latent, Parallel, Sliding
from kvcalc.errors import InputError
from kvcalc.logs.base import (
    MOST_CACHES,
    NUMBER,
    CacheLine,
    Change,
    Compared,
    EngineLog,
    Figure,
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
from kvcalc.setup import Setup
from kvcalc.units import GiB

# ---- lines ----

_TOKENS = re.compile(r"#tokens: (\d{1,15})")
_PART = re.compile(rf"\b(KV|K|V) size: {NUMBER} ?GB")
_DTYPE = re.compile(r"dtype: (?:torch\.)?(\w{1,30})")
_SWA = re.compile(rf"SWAKVPool mem usage: {NUMBER} ?GB, swa size: (\d{{1,15}}), full size: (\d{{1,15}})")
_STATES = re.compile(r"(max_mamba_cache_size): (\d{1,12})")
_STATE_PART = re.compile(
    rf"\b(conv_state|ssm_state|intermediate_ssm_state_cache|intermediate_conv_window_cache) size: {NUMBER} ?GB"
)
_TOTAL = re.compile(r"max_total_num_tokens=(\d{1,15})")
_FLAGS = re.compile(
    r"(?<![\w.])['\"]?(model_path|dtype|kv_cache_dtype|page_size|tp_size|dp_size|pp_size|swa_full_tokens_ratio"
    r"|max_running_requests|disable_radix_cache|disable_hybrid_swa_memory|chunked_prefill_size|enable_dp_attention"
    r"|disable_overlap_schedule|context_len|speculative_algorithm|speculative_num_draft_tokens|mamba_ssm_dtype"
    r"|mamba_full_memory_ratio|max_mamba_cache_size|mem_fraction_static)['\"]?[=:] ?['\"]?([^'\",()\s]{1,300})"
)
_COMMAND = {
    "--model-path": "model_path",
    "--model": "model_path",
    "--tp": "tp_size",
    "--tp-size": "tp_size",
    "--tensor-parallel-size": "tp_size",
    "--dp": "dp_size",
    "--dp-size": "dp_size",
    "--data-parallel-size": "dp_size",
    "--enable-dp-attention": "enable_dp_attention",
    "--kv-cache-dtype": "kv_cache_dtype",
    "--page-size": "page_size",
    "--dtype": "dtype",
    "--chunked-prefill-size": "chunked_prefill_size",
    "--disable-radix-cache": "disable_radix_cache",
    "--disable-hybrid-swa-memory": "disable_hybrid_swa_memory",
    "--swa-full-tokens-ratio": "swa_full_tokens_ratio",
    "--mamba-ssm-dtype": "mamba_ssm_dtype",
}
_WEIGHTS = re.compile(rf"Load weight end\b.{{0,300}}?\bmem usage={NUMBER} ?GB")
_GRAPHS = re.compile(rf"[Cc]apture .{{0,60}}graph end\b.{{0,120}}?\bmem usage={NUMBER} ?GB")


def _pool(reader: LogReader, line: Line) -> None:
    tokens = _TOKENS.search(line.text)
    parts = list(_PART.finditer(line.text))
    if tokens is None or not parts:
        return
    start = reader.of("sglang", line)
    if "max_total_num_tokens" in start.figures:  # printed behind the pools: these are another start's
        reader.open(line, keep_flags=True)
        start = reader.of("sglang", line)
    figures = [Figure("tokens", tokens[1], "tokens", line.number)]
    figures += [Figure(part[1], part[2], "GB", line.number) for part in parts]
    dtype = _DTYPE.search(line.text)
    same = [[figure.printed for figure in known.figures] for known in start.caches]
    if [figure.printed for figure in figures] not in same and len(start.caches) < MOST_CACHES:
        # Every rank prints its pool, and the ranks are alike.
        start.caches.append(CacheLine("pool", tuple(figures), (dtype[1],) if dtype else ()))


def _hybrid(reader: LogReader, line: Line) -> None:
    match = _SWA.search(line.text)
    if match:
        start = reader.of("sglang", line)
        start.put(line, "GB", pools=match[1])
        start.put(line, "tokens", swa_tokens=match[2], full_tokens=match[3])


def _states(reader: LogReader, line: Line) -> None:
    slots, parts = _STATES.search(line.text), list(_STATE_PART.finditer(line.text))
    if parts:
        start = reader.of("sglang", line)
        start.put(line, "slots", state_slots=slots and slots[2])
        for part in parts:
            start.put(line, "GB", **{part[1]: part[2]})


def _total(reader: LogReader, line: Line) -> None:
    match = _TOTAL.search(line.text)
    if match:
        reader.of("sglang", line).put(line, "tokens", max_total_num_tokens=match[1])
        reader.flags(line, _FLAGS)


def _arguments(reader: LogReader, line: Line) -> None:
    reader.banner("sglang", line, "arguments")
    reader.flags(line, _FLAGS)


def _command(reader: LogReader, line: Line) -> None:
    reader.command("sglang", line)


def _format(reader: LogReader, line: Line) -> None:
    match = re.search(r"KV cache dtype: (?:torch\.)?(\w{1,30})", line.text)
    if match:
        reader.stated("sglang", line)["kv_cache_dtype"] = match[1]


def _terms(reader: LogReader, line: Line) -> None:
    weights, graphs = _WEIGHTS.search(line.text), _GRAPHS.search(line.text)
    reader.start.term(line, "GB", weights=weights and weights[1], CUDA_graphs=graphs and graphs[1])


def _no_memory(reader: LogReader, line: Line) -> None:
    start = reader.start
    start.stopped = start.stopped or ("not enough memory for the pool", line.number)


# ---- what they state, and what they should be ----

_OPTIONS = (
    "page_size",
    "swa_full_tokens_ratio",
    "disable_hybrid_swa_memory",
    "max_running_requests",
    "disable_radix_cache",
    "chunked_prefill_size",
    "disable_overlap_schedule",
    "max_mamba_cache_size",
)


def _question(start: Start, given: Given) -> Question:
    stated = start.stated
    tokens = _pool_tokens(start)
    if tokens is None:
        raise InputError("the log does not state the tokens of a pool", hint="SGLang prints '#tokens: N'")
    options: dict[str, object] = {name: stated[name] for name in _OPTIONS if name in stated}
    slots = start.figures.get("state_slots")
    if slots is not None:  # what the start took, whatever its flags and its memory made it choose
        options["max_mamba_cache_size"] = int(slots.printed)
    types = next((cache.types for cache in start.caches if cache.types), ())
    options, notes = known_options("sglang", options)
    dtype = given.kv_cache_dtype or (types[0] if types else stated.get("kv_cache_dtype") or stated.get("dtype"))
    tp = given.tensor_parallel_size or stated_number(stated, "tp_size") or 1
    if given.tensor_parallel_size is None and stated.get("enable_dp_attention", "").casefold() == "true":
        tp = max(1, tp // (stated_number(stated, "dp_size") or 1))  # attention is shared by tp / dp devices
    names = {*options, *given.options}
    if given.kv_cache_dtype or types or "kv_cache_dtype" in stated:
        names.add("kv_cache_dtype")
    if given.tensor_parallel_size is not None or "tp_size" in stated:
        names.add("tensor_parallel_size")
    return Question(
        given.engine or "sglang",
        {**options, **given.options},
        tokens,
        1,
        dtype,
        tp,
        frozenset(names),
        notes=notes,
    )


def _pool_tokens(start: Start) -> int | None:
    full = start.figures.get("full_tokens")
    if full is not None:
        return int(full.printed) or None
    pools = [tokens for tokens in (cache.get("tokens") for cache in start.caches) if tokens is not None]
    total = start.figures.get("max_total_num_tokens")
    counts = [int(tokens.printed) for tokens in pools] or ([int(total.printed)] if total is not None else [])
    return max(counts, default=0) or None


def _compare(start: Start, question: Question, architecture: Architecture) -> Iterator[Compared]:
    setup = question.setup(architecture)
    allocated = setup.plan.kv_bytes(question.context, 1)
    report = setup.plan.report(question.context, 1, setup.plan.required_kv_memory(question.context, 1))
    total, pools = start.figures.get("max_total_num_tokens"), start.figures.get("pools")
    swa = start.figures.get("swa_tokens")
    states = {name: _size_of(report, f"{name}_bytes") for name in ("conv_state", "ssm_state")}
    attention = allocated - sum(states.values())
    for name, state_bytes in states.items():
        if name in start.figures:
            yield checked(name.replace("_", " "), start.figures[name], f"{state_bytes / GiB:.2f}")
    if pools is not None:
        yield checked("all pools", pools, f"{allocated / GiB:.2f}")
    if swa is not None:
        size = report.get("swa_max_total_num_tokens")
        yield checked("sliding pool", swa, "none" if size is None else str(size))
    elif pools is None:
        largest = [cache for cache in start.caches if _tokens_of(cache) == question.context]
        for cache in largest[:1]:
            yield from _pool_rows(cache, attention, setup, architecture)
        for cache in [*largest[1:], *(cache for cache in start.caches if cache not in largest)]:
            yield from (unchecked(f"another pool: {figure.name}", figure) for figure in cache.figures)
    for name in ("intermediate_ssm_state_cache", "intermediate_conv_window_cache"):
        if name in start.figures:
            yield unchecked(name.replace("_", " "), start.figures[name])
    if total is not None:
        if start.caches or pools is not None:
            yield checked("max_total_num_tokens", total, str(question.context))
        else:
            yield unchecked("max_total_num_tokens", total)


def _size_of(report: Mapping[str, object], name: str) -> int:
    """A size that the engine's report has for models with states, else 0."""
    size = report.get(name)
    return size if isinstance(size, int) else 0


def _pool_rows(cache: CacheLine, allocated: int, setup: Setup, architecture: Architecture) -> Iterator[Compared]:
    key, value = _sides(setup, architecture)
    k_bytes = allocated * key // max(1, key + value)
    for name, size in (("KV", allocated), ("K", k_bytes), ("V", allocated - k_bytes)):
        figure = cache.get(name)
        if figure is not None:
            yield checked(f"pool: {name} size", figure, f"{size / GiB:.2f}")


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


def _changes(start: Start, question: Question) -> Iterator[Change]:
    yield from changes(
        question,
        kv_cache_dtype=("fp8_e4m3", "bfloat16"),
        tensor_parallel_size=(1, 2, 4, 8),
        page_size=(1, 16, 32, 64, 128, 256),
        disable_hybrid_swa_memory=(True, False),
        swa_full_tokens_ratio=(1.0, 0.5, 0.25, 0.1),
    )


LOG = EngineLog(
    "sglang",
    (
        ("KV Cache is allocated.", _pool),
        ("KV cache allocated.", _pool),
        ("SWAKVPool mem usage:", _hybrid),
        ("Mamba Cache is allocated", _states),
        ("max_total_num_tokens=", _total),
        ("server_args=", _arguments),
        ("Using KV cache dtype:", _format),
        ("Load weight end", _terms),
        ("graph end", _terms),
        ("Not enough memory. Please try to increase", _no_memory),
        ("sglang.launch_server", _command),
        ("sglang serve", _command),
    ),
    _COMMAND,
    (
        ("weights", "loaded its weights"),
        ("max_total_num_tokens", "printed its pool"),
        ("CUDA graphs", "captured its CUDA graphs"),
    ),
    _question,
    _compare,
    _changes,
    judges=("sglang",),
)
