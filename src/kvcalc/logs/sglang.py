"""SGLang's log: mem_cache/memory_pool.py, managers/scheduler.py, model_executor/model_runner.py, 0.4 and 0.5."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Literal

from kvcalc.architecture import Architecture, Chunked, Full, Parallel, Sliding, is_local
from kvcalc.engines.base import Plan
from kvcalc.engines.sglang import SGLang, SGLangPlan
from kvcalc.engines.sglang.compressed import CompressedPlan
from kvcalc.engines.sglang.plan import PoolRow
from kvcalc.engines.sglang.states import StatePool
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
    stated_number,
    stated_truth,
    unchecked,
)
from kvcalc.logs.models import preset_of
from kvcalc.sources.preset import load_preset
from kvcalc.units import GiB

# ---- lines ----

_TOKENS = re.compile(r"#tokens: (\d{1,15})")
_PART = re.compile(rf"\b(KV|K|V) size: {NUMBER} ?GB")
_DTYPE = re.compile(r"dtype: (?:torch\.)?(\w{1,30})")
_SWA = re.compile(rf"SWAKVPool mem usage: {NUMBER} ?GB, swa size: (\d{{1,15}}), full size: (\d{{1,15}})")
_STATES = re.compile(r"(max_mamba_cache_size): (\d{1,12})")
_STATE_PARTS = ("conv_state", "ssm_state", "intermediate_ssm_state_cache", "intermediate_conv_window_cache")
_STATE_PART = re.compile(rf"\b({'|'.join(_STATE_PARTS)}) size: {NUMBER} ?GB")
_COMPRESSED = re.compile(r"\b(full|swa|c4|c128|c4_state)=(\d{1,15})")
#: Before it said "unified", a release counted a latent as 584 bytes and not as its part of a page.
_CELL = re.compile(rf"unified=\w{{1,9}}, .{{0,200}}?bytes_per_full_token={NUMBER}")
_TOTAL = re.compile(r"max_total_num_tokens=(\d{1,15})")
#: What ``server_args`` and a command line say: the options of the engine, and what a server is told of a setup, as
#: ``fit --command`` writes them (``--dp-size`` and ``dp_size``).
_SERVER = SGLang.server
assert _SERVER is not None
_NAMES = (
    *("model_path", "served_model_name", "dtype", "pp_size", "attn_dp_size"),
    *(flag.removeprefix("--").replace("-", "_") for flag in _SERVER.flags.values()),
    *(name for name in SGLang.model_fields if name != "version"),
)
#: Names of other releases, and short ones.
_RENAMED = {
    "cuda_graph_max_bs": "cuda_graph_max_bs_decode",
    "mamba_scheduler_strategy": "mamba_radix_cache_strategy",
    "nsa_prefill_backend": "dsa_prefill_backend",
    "nsa_decode_backend": "dsa_decode_backend",
    "speculative_dflash_block_size": "speculative_num_draft_tokens",
}
_SHORT = {
    "model": "model_path",
    "tp": "tp_size",
    "tensor-parallel-size": "tp_size",
    "dp": "dp_size",
    "data-parallel-size": "dp_size",
    "attention-data-parallel-size": "attn_dp_size",
    "attention-context-parallel-size": "attn_cp_size",
    "decode-context-parallel-size": "dcp_size",
    "pipeline-parallel-size": "pp_size",
    "speculative-draft-model": "speculative_draft_model_path",
}
_COMMAND = {f"--{name.replace('_', '-')}": name for name in (*_NAMES, *_RENAMED)}
_COMMAND |= {f"--{flag}": name for flag, name in _SHORT.items()}
_FLAGS = re.compile(rf"(?<![\w.])['\"]?({'|'.join((*_NAMES, *_RENAMED))})['\"]?[=:] ?['\"]?([^'\",()\s]{{1,300}})")
#: DeepSeek V4's pools: what the log calls them, and in words.
_COMPRESSED_POOLS = {
    "swa": "windows",
    "c4": "entries of 4 tokens",
    "c128": "entries of 128 tokens",
    "c4_state": "states behind entries of 4",
}
#: Algorithms that draft with the model's own prediction layers where no other model is named.
_OWN_LAYERS = frozenset({"EAGLE", "NEXTN", "FROZEN_KV_MTP"})
#: Prediction layers as a repository of their own: lmsys/DeepSeek-V3-NextN.
_PREDICTS = re.compile(r"(?i)next-?n|[-_]mtp")
_BY_MODEL = frozenset({"page_size", "swa_full_tokens_ratio"})
_RUNNING = re.compile(r"max_running_requests=(\d{1,9})")
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


def _compressed(reader: LogReader, line: Line) -> None:
    start = reader.of("sglang", line)
    sizes = {f"{name}_tokens": size for name, size in _COMPRESSED.findall(line.text)}
    cell = _CELL.search(line.text)
    if cell:
        start.put(line, "B", token_bytes=cell[1])
    elif sizes:  # said again where max_total_tokens is less than what fits
        start.put(line, "tokens", **sizes)


def _total(reader: LogReader, line: Line) -> None:
    match = _TOTAL.search(line.text)
    if match:
        start = reader.of("sglang", line)
        start.put(line, "tokens", max_total_num_tokens=match[1])
        if running := _RUNNING.search(line.text):
            start.stated["running"] = running[1]


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


def _question(start: Start, given: Given) -> Question:
    stated = {_RENAMED.get(name, name): value for name, value in start.stated.items()}
    tokens = _pool_tokens(start)
    if tokens is None:
        raise InputError("the log does not state the tokens of a pool", hint="SGLang prints '#tokens: N'")
    groups = _attention_groups(stated)
    options, notes = _known_options(stated)
    if groups > 1:
        options |= {"dp_size": groups, "enable_dp_attention": True}
    # What the start took, whatever its flags and its memory made it choose; one device's are a group's.
    if (slots := start.figures.get("state_slots")) is not None:
        options["max_mamba_cache_size"] = int(slots.printed) * groups
    if "running" in stated and "intermediate_ssm_state_cache" in start.figures:
        options["max_running_requests"] = int(stated["running"]) * groups
    draft, of_draft = _draft(start, stated, given)
    types = next((cache.types for cache in start.caches if cache.types), ())
    dtype = given.kv_cache_dtype or (types[0] if types else stated.get("kv_cache_dtype") or stated.get("dtype"))
    names = {*options, *given.options, *(SGLang.model_fields.keys() & stated.keys())}
    if given.kv_cache_dtype or types or "kv_cache_dtype" in stated:
        names.add("kv_cache_dtype")
    if given.tensor_parallel_size is not None or "tp_size" in stated:
        names.add("tensor_parallel_size")
    return Question(
        given.engine or "sglang",
        {**options, **given.options},
        tokens * (stated_number(stated, "dcp_size") or 1),
        1,
        dtype,
        given.tensor_parallel_size or stated_number(stated, "tp_size") or 1,
        frozenset(names),
        draft=draft,
        notes=(*notes, *of_draft),
    )


def _known_options(stated: Mapping[str, str]) -> tuple[dict[str, object], list[str]]:
    """The options of the engine that are stated, but for groups and defaults, and a note for each not modelled.

    A model has its own defaults of a page and of a ratio, so that one that is stated is an option.
    """
    options: dict[str, object] = {}
    notes = []
    for name in (*sorted(SGLang.model_fields.keys() - {"dp_size", "enable_dp_attention"}), "pp_size"):
        if name in stated and (name, stated[name]) != ("pp_size", "1"):
            try:
                made = SGLang.from_options({name: stated[name]})
            except InputError:
                notes.append(f"not modelled: {name}={stated[name]}")
                continue
            if name in _BY_MODEL or getattr(made, name) != SGLang.model_fields[name].default:
                options[name] = stated[name]
    return options, notes


def _attention_groups(stated: Mapping[str, str]) -> int:
    """Groups of attention data parallelism: ``attn_dp_size``, and before 0.5.2x ``dp_size`` with a flag."""
    groups = stated_number(stated, "attn_dp_size") or 1
    if groups == 1 and stated_truth(stated, "enable_dp_attention"):
        groups = stated_number(stated, "dp_size") or 1
    return groups


def _draft(
    start: Start, stated: Mapping[str, str], given: Given
) -> tuple[Architecture | Literal["mtp"] | None, tuple[str, ...]]:
    """The draft that is given or stated: a preset, or the model's own layers where no other model is named."""
    if given.draft is not None:
        return given.draft, ()
    algorithm, path = stated.get("speculative_algorithm"), stated.get("speculative_draft_model_path")
    model, preset = stated.get("model_path"), preset_of(path)
    is_own = path in (None, model) or _PREDICTS.search(path) or (preset is not None and preset == preset_of(model))
    if algorithm in _OWN_LAYERS and is_own:
        return "mtp", ()
    if algorithm is not None and preset is not None:
        return load_preset(preset), ()
    if algorithm is not None:
        named = f" {path}" if path else ""
        return None, (f"the log states a draft{named} ({algorithm}), which is not counted: give it with --draft",)
    pools = [cache for cache in start.caches if _tokens_of(cache) == _pool_tokens(start)]
    if len(pools) < 2:
        return None, ()
    token_bytes = sum(figure.bytes for figure in pools[1].figures if figure.unit == "GB") / _tokens_of(pools[1])
    return None, (
        f"a second pool of as many tokens, of about {token_bytes:,.0f} bytes each, is a draft's or another pipeline "
        "stage's: give the draft with --draft",
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
    plan = question.setup(architecture).plan
    figures, total = start.figures, start.figures.get("max_total_num_tokens")
    if isinstance(plan, SGLangPlan):
        main = question.context // plan.ranks.spread
        yield from _state_rows(figures, plan.states, main)
        if (pools := figures.get("pools")) is not None:
            yield checked("all pools", pools, _gib(plan.pool_bytes(plan.own, main)))
        if (swa := figures.get("swa_tokens")) is not None:
            sizes = {"plain": "none", "all_sliding": str(main)}
            yield checked("sliding pool", swa, sizes.get(plan.pool.kind, str(plan.pool.swa_tokens(main))))
        yield from _pool_rows(start.caches, plan, main)
    else:
        yield from _compressed_rows(figures, plan, question.context)
    if total is not None:
        known = start.caches or "full_tokens" in figures
        yield checked(total.name, total, str(question.context)) if known else unchecked(total.name, total)


def _compressed_rows(figures: Mapping[str, Figure], plan: Plan, context: int) -> Iterator[Compared]:
    """DeepSeek V4's pools beside one of so many tokens, and what a token takes of the budget."""
    report = plan.report(context, 1, plan.required_kv_memory(context, 1))
    for name, words in _COMPRESSED_POOLS.items():
        if (figure := figures.get(f"{name}_tokens")) is not None:
            size = report[f"{name}_pool_size" if name == "c4_state" else f"{name}_max_total_num_tokens"]
            yield checked(words, figure, str(size))
    if (cell := figures.get("token_bytes")) is not None and isinstance(plan, CompressedPlan):
        yield checked("budget of a token", cell, f"{plan.token_bytes:.2f}")


def _gib(size: int) -> str:
    return f"{size / GiB:.2f}"


def _state_rows(figures: Mapping[str, Figure], states: StatePool | None, tokens: int) -> Iterator[Compared]:
    """The slots' sizes; those of drafted tokens where the draft is known."""
    sizes: dict[str, int | None] = dict.fromkeys(_STATE_PARTS, None if states is None or not states.draft_tokens else 0)
    sizes |= {"conv_state": 0, "ssm_state": 0}
    if states is not None and (slots := states.fixed_slots) is not None:
        sizes |= {"conv_state": (slots + 1) * states.conv_bytes, "ssm_state": (slots + 1) * states.ssm_bytes}
        if states.draft_tokens:
            windows, parts = states.verified(slots, tokens)
            sizes |= {"intermediate_ssm_state_cache": parts, "intermediate_conv_window_cache": windows}
    for name, size in sizes.items():
        if (figure := figures.get(name)) is not None:
            words = name.replace("_", " ")
            yield unchecked(words, figure) if size is None else checked(words, figure, _gib(size))


def _pool_rows(caches: list[CacheLine], plan: SGLangPlan, main: int) -> Iterator[Compared]:
    """K and V of each pool that is printed, beside the first of the plan's that has as many tokens."""
    pools = [
        ("pool", main, [row for row in plan.own if not row[2]]),
        ("sliding pool", plan.pool.swa_tokens(main), [row for row in plan.own if row[2]]),
        ("draft pool", main, list(plan.drafted)),
    ]
    for cache in caches:
        found = next((pool for pool in pools if pool[2] and pool[1] == _tokens_of(cache)), None)
        if found is None:
            yield from (unchecked(f"another pool: {figure.name}", figure) for figure in cache.figures)
            continue
        pools.remove(found)
        name, _, rows = found
        size = plan.pool_bytes(rows, main)
        keys = size * _key_part(rows)
        for part, part_bytes in (("KV", size), ("K", int(keys)), ("V", int(size - keys))):
            if (figure := cache.get(part)) is not None:
                yield checked(f"{name}: {part} size", figure, _gib(part_bytes))


def _key_part(rows: list[PoolRow]) -> Fraction:
    """K of K and V: all layers of a pool have the widths of its full ones."""
    kinds = [kind.attention if isinstance(kind, Parallel) else kind for kind, *_ in rows]
    sides = [kind for kind in kinds if isinstance(kind, Full | Sliding | Chunked)]
    widest = min(sides, key=is_local, default=None)
    return Fraction(1) if widest is None else Fraction(widest.head_dim, widest.head_dim + widest.v_head_dim)


def _tokens_of(cache: CacheLine) -> int:
    tokens = cache.get("tokens")
    return int(tokens.printed) if tokens is not None else 0


def _changes(start: Start, question: Question) -> Iterator[Change]:
    yield from changes(
        question,
        kv_cache_dtype=("fp8_e4m3", "bfloat16"),
        tensor_parallel_size=(1, 2, 4, 8),
        page_size=(1, 16, 32, 64, 128, 256),
        mamba_ssm_dtype=("bfloat16", "float16"),
        mamba_radix_cache_strategy=("no_buffer", "extra_buffer_lazy"),
        speculative_num_draft_tokens=(2, 3, 5, 6, 8, 16),
        disable_hybrid_swa_memory=(True, False),
        swa_full_tokens_ratio=(1.0, 0.5, 0.25, 0.1),
    )


LOG = EngineLog(
    "sglang",
    (
        ("KV Cache is allocated.", _pool),
        ("KV cache allocated.", _pool),
        ("SWAKVPool mem usage:", _hybrid),
        ("DSV4 pool sizes:", _compressed),
        ("DSV4 memory calculation:", _compressed),
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
    terms=lambda start: {"weights_bytes": start.terms["weights"].bytes} if "weights" in start.terms else {},
)
