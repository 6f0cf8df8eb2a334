"""What a log reports, held against what is predicted for the same model and flags.

A log prints rounded figures; two figures agree when the prediction, rounded as that engine rounds it, has the same
digits. Where they do not, every likely difference is tried, and the first that explains all figures is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from itertools import combinations
from typing import Any, Protocol

from kvcalc.architecture import Architecture, Chunked, Compressed, Cross, Full, Latent, Parallel, Sliding
from kvcalc.errors import InputError, KVCalcError
from kvcalc.footprint import Prepared, prepare
from kvcalc.logs import CacheLine, Figure, LogRun, parse_llama_cache
from kvcalc.units import GiB, MiB, ceil_div, largest

_UNIT_BYTES = {"B": 1, "KiB": 2**10, "MiB": MiB, "GiB": GiB, "TiB": 2**40}


@dataclass(frozen=True)
class Question:
    """The configuration that a prediction is made for.

    Attributes:
        engine: the engine's name here.
        options: its options, as the log and the user state them.
        context: tokens of one sequence.
        batch_size: sequences.
        kv_cache_dtype: format of K and V, or None for the engine's own.
        tensor_parallel_size: devices that share every layer.
        notes: what was assumed where the log is silent.
    """

    engine: str
    options: dict[str, Any]
    context: int
    batch_size: int = 1
    kv_cache_dtype: str | None = None
    tensor_parallel_size: int = 1
    notes: tuple[str, ...] = ()

    def prepared(self, architecture: Architecture) -> Prepared:
        """The engine's plan.

        Raises:
            KVCalcError: the engine refuses the configuration.
        """
        return prepare(
            architecture,
            engine=self.engine,
            engine_options=self.options,
            kv_cache_dtype=self.kv_cache_dtype,
            tensor_parallel_size=self.tensor_parallel_size,
        )


@dataclass(frozen=True)
class Given:
    """What the user says, which goes before what the log states."""

    engine: str | None = None
    options: Mapping[str, Any] | None = None
    context: int | None = None
    batch_size: int | None = None
    kv_cache_dtype: str | None = None
    tensor_parallel_size: int | None = None


@dataclass(frozen=True)
class Compared:
    """One figure: reported and predicted.

    Attributes:
        figure: what it is, in a few words.
        line: its line in the log.
        reported: as printed.
        predicted: printed in the same way.
        unit: the unit of both.
        agrees: whether they agree to the printed digit.
    """

    figure: str
    line: int
    reported: str
    predicted: str
    unit: str
    agrees: bool

    @property
    def difference(self) -> Decimal | None:
        """Reported less predicted; None where one of them is no number."""
        try:
            return Decimal(self.reported) - Decimal(self.predicted)
        except ArithmeticError:
            return None


@dataclass(frozen=True)
class Audit:
    """A run of a log with its predictions, and the likeliest reason where they disagree."""

    question: Question
    rows: tuple[Compared, ...]
    reason: str | None = None

    @property
    def agrees(self) -> bool:
        """Whether every figure agrees."""
        return all(row.agrees for row in self.rows)


def audit(
    run: LogRun, architecture: Architecture, given: Given, presets: Mapping[str, Architecture] | None = None
) -> Audit:
    """Hold the figures of one start of an engine against the prediction.

    Args:
        run: what the log says.
        architecture: the model.
        given: what the user says beside it.
        presets: models that may be a draft model, tried where the log reports more than predicted.

    Raises:
        KVCalcError: the log leaves out what the prediction needs, or the engine refuses the configuration.
    """
    if not run.says_something or run.engine not in engines_of(given.engine):
        raise InputError(f"the log holds no figure of {given.engine or 'an engine'} that could be audited")
    reader = _READERS[run.engine or ""]
    question = _with_known_version(reader.question(run, given), architecture)
    rows = tuple(reader.compare(run, question, architecture))
    if not rows:
        raise InputError("the log holds no figure that could be audited")
    found = Audit(question, rows)
    if found.agrees:
        return found
    return replace(found, reason=_reason(reader, run, found, architecture, given, presets or {}))


def engines_of(engine: str | None) -> tuple[str, ...]:
    """Whose lines an engine's rules may be held against: Ollama runs llama.cpp."""
    if engine is None:
        return tuple(_READERS)
    return ("ollama", "llama.cpp") if engine in ("ollama", "llama.cpp") else (engine,)


def _with_known_version(question: Question, architecture: Architecture) -> Question:
    """The question, without a version whose rule nobody has read: the engine's default then answers, and says so."""
    version = question.options.get("version")
    try:
        question.prepared(architecture)
    except KVCalcError:
        rest = {name: value for name, value in question.options.items() if name != "version"}
        without = replace(question, options=rest)
        if version is None:
            raise
        used = without.prepared(architecture).engine.followed_version
        note = f"the rule of {question.engine} {version} is not known here: {used}'s is used"
        return replace(without, notes=(*question.notes, note))
    return question


# ---- reasons ----

_Change = tuple[str, Callable[[Question], Question]]


def _reason(
    reader: _Reader,
    run: LogRun,
    found: Audit,
    architecture: Architecture,
    given: Given,
    presets: Mapping[str, Architecture],
) -> str | None:
    """The first change, or pair of changes, under which all figures agree, else the one under which most do."""
    question = found.question
    said = set(given.options or ())
    changes = [change for change in reader.changes(run, question) if change[0].partition("=")[0] not in said]

    def agreeing(other: Question) -> int:
        try:
            return sum(row.agrees for row in reader.compare(run, other, architecture))
        except KVCalcError:
            return 0

    every, now = len(found.rows), sum(row.agrees for row in found.rows)
    singles = [(agreeing(change(question)), label) for label, change in changes]
    most = max((count for count, _ in singles), default=0)
    best = next((label for count, label in singles if count == most), "")
    if most == every:
        return f"all figures agree with {best}"
    draft = _draft_reason(run, found, architecture, presets)
    if draft is not None:
        return draft
    for (first, change), (second, other) in combinations(changes, 2):
        if first.partition("=")[0] != second.partition("=")[0] and agreeing(other(change(question))) == every:
            return f"all figures agree with {first} and {second}"
    if most > now:
        return f"{most} of {every} figures agree with {best}, the others do not"
    return _layers_reason(found)


def _layers_reason(found: Audit) -> str | None:
    """Another model, where a cache of the log has a number of layers that no cache of this one has."""
    strange = [row.reported for row in found.rows if row.figure.endswith("layers") and not row.agrees]
    if not strange:
        return None
    return f"another model, or a draft model: the log has a cache of {' and one of '.join(strange)} layers"


def _draft_reason(
    run: LogRun, found: Audit, architecture: Architecture, presets: Mapping[str, Architecture]
) -> str | None:
    """A second model that is cached beside the first: vLLM charges a draft model at full length."""
    needed = run.figures.get("needed")
    if run.engine != "vllm" or needed is None:
        return None
    question = found.question
    own = question.prepared(architecture).plan.kv_bytes(question.context, 1)
    missing = _bounds(needed)[0] - own
    if missing <= 0:
        return None
    fitting = []
    for name, model in presets.items():
        try:
            extra = question.prepared(model).plan.kv_bytes(question.context, 1)
        except KVCalcError:
            continue
        if _gib(own + extra) == Decimal(needed.printed):
            fitting.append(name)
    if fitting:
        return f"the figures agree with a draft model of the shape of {' or '.join(sorted(fitting)[:3])} beside it"
    growth = ceil_div(missing, question.context)
    if any("spec" in name or name == "method" for name in run.stated):
        return f"the log states speculative decoding: a draft model of about {growth:,} bytes a token would explain it"
    return None


def _with_option(name: str, value: Any) -> _Change:
    text = str(value).lower() if isinstance(value, bool) else value
    return f"{name}={text}", lambda question: replace(question, options={**question.options, name: value})


def _with_dtype(dtype: str) -> _Change:
    return f"kv_cache_dtype={dtype}", lambda question: replace(question, kv_cache_dtype=dtype)


def _parallel(question: Question) -> Iterator[_Change]:
    for tp in (1, 2, 4, 8):
        if tp != question.tensor_parallel_size:
            yield f"tensor_parallel_size={tp}", partial(replace, tensor_parallel_size=tp)


def _options(candidates: Mapping[str, tuple[Any, ...]], question: Question, skip: set[str]) -> Iterator[_Change]:
    """Every value of every option that neither the user nor the log states."""
    for name, values in candidates.items():
        if name in skip:
            continue
        for value in values:
            if str(question.options.get(name)).lower() != str(value).lower():
                yield _with_option(name, value)


# ---- engines ----


class _Reader(Protocol):
    """How one engine's log is understood."""

    def question(self, run: LogRun, given: Given) -> Question:
        """The configuration that the log and the user state."""
        ...

    def compare(self, run: LogRun, question: Question, architecture: Architecture) -> Iterator[Compared]:
        """Every figure with its prediction."""
        ...

    def changes(self, run: LogRun, question: Question) -> Iterator[_Change]:
        """What may be different, the likeliest first."""
        ...


def _number(stated: Mapping[str, str], *names: str) -> int | None:
    for name in names:
        text = stated.get(name, "")
        if text.isdecimal() and len(text) < 16 and int(text):
            return int(text)
    return None


def _gib(size: int) -> Decimal:
    # vLLM: round(bytes / 2**30, 2), printed without trailing zeros (older ones "%.2f"): 27.0 and 27.00 are one figure.
    return Decimal(str(round(size / GiB, 2)))


def _bounds(figure: Figure, digits: int = 2) -> tuple[int, int]:
    """The least and the most bytes that are printed as this figure."""
    half = Decimal(1).scaleb(-digits) / 2
    scale = _UNIT_BYTES[figure.unit]
    value = Decimal(figure.printed)
    return int((value - half) * scale), int((value + half) * scale)


_VLLM_OPTIONS = (
    "version",
    "block_size",
    "max_num_batched_tokens",
    "async_scheduling",
    "disable_hybrid_kv_cache_manager",
    "pipeline_parallel_size",
    "num_gpu_blocks_override",
    "enable_prefix_caching",
)


class _Vllm:
    def question(self, run: LogRun, given: Given) -> Question:
        stated = run.stated
        context = given.context or _number(stated, "max_model_len", "max_seq_len")
        if context is None:
            raise InputError("the log does not state the context", hint="give it with -c")
        options: dict[str, Any] = {name: stated[name] for name in _VLLM_OPTIONS if name in stated}
        drafted = _number(stated, "num_speculative_tokens", "num_spec_tokens")
        if drafted:
            options["num_speculative_tokens"] = drafted
        dtype = stated.get("kv_cache_dtype") or stated.get("dtype")
        tp = given.tensor_parallel_size or _number(stated, "tensor_parallel_size") or 1
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
        plan = question.prepared(architecture).plan
        figures, context = run.figures, question.context
        needed, available = figures.get("needed"), figures.get("available")
        if needed is not None:
            predicted = _gib(plan.kv_bytes(context, 1))
            agrees = predicted == Decimal(needed.printed)
            yield Compared("needed for one request", needed.line, needed.printed, str(predicted), "GiB", agrees)
        exact = _number(run.stated, "kv_cache_memory_bytes")
        bounds = (exact, exact) if exact else _bounds(available) if available is not None else None
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
        memory = _first(*bounds, lambda memory: not reported or plan.fits(reported, 1, memory))
        agrees = longest(memory) == reported
        predicted = reported if agrees else longest(sum(bounds) // 2)
        return Compared("estimated maximum length", estimate.line, estimate.printed, str(predicted), "tokens", agrees)

    def _pool(self, plan: Any, run: LogRun, bounds: tuple[int, int] | None, context: int) -> Iterator[Compared]:
        block = plan.report(context, 1, GiB)["bytes_per_block"]
        blocks = _number(run.stated, "num_gpu_blocks")
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
            first = _first(low, high, lambda number: Decimal(says(number)[1]) >= Decimal(concurrency.printed))
            predicted = says(first)[1]
            agrees = predicted == concurrency.printed
            yield Compared("concurrency", concurrency.line, concurrency.printed, predicted, "x", agrees)
            return
        reported = int(tokens.printed)
        first = _first(low, high, lambda number: says(number)[0] >= reported)
        behind = _first(first, high, lambda number: says(number)[0] > reported)
        found = says(first)[0] == reported
        nearest = first if found else (low + high) // 2 if bounds is not None else first
        predicted_tokens, predicted_concurrency = says(nearest)
        yield Compared("KV cache size", tokens.line, tokens.printed, str(predicted_tokens), "tokens", found)
        if concurrency is not None:
            candidates = {says(number)[1] for number in range(first, min(behind, first + 256) + 1)} if found else set()
            agrees = concurrency.printed in candidates or concurrency.printed == predicted_concurrency
            shown = concurrency.printed if agrees else predicted_concurrency
            yield Compared("concurrency", concurrency.line, concurrency.printed, shown, "x", agrees)

    def changes(self, run: LogRun, question: Question) -> Iterator[_Change]:
        skip = set(run.stated)
        yield from _options(
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
                yield _with_dtype(dtype)
        yield from _parallel(question)
        yield from _options(
            {"block_size": (32, 64, 128), "enable_prefix_caching": (True, False), "num_speculative_tokens": (1, 2, 3)},
            question,
            skip,
        )


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The first number from ``low`` to ``high`` that holds, or ``high``; what holds stays so.

    >>> _first(1, 100, lambda number: number * number >= 50)
    8
    """
    return low + largest(lambda steps: not holds(low + steps - 1), high - low)


_TRUE = ("true", "1", "enabled", "auto", "on")


class _LlamaCpp:
    def question(self, run: LogRun, given: Given) -> Question:
        stated = run.stated
        caches = [cache for cache in run.caches if cache.kind == "kv"]
        shapes = [shape for shape in map(_shape, caches) if shape is not None]
        options: dict[str, Any] = {}
        sequences = given.batch_size or _number(stated, "n_seq_max") or max((seqs for _, seqs, _ in shapes), default=1)
        if "n_seq_max" not in stated and given.batch_size is None and not shapes:
            recurrent = next((cache.get("seqs") for cache in run.caches), None)
            sequences = int(recurrent.printed) if recurrent else 1
        options["n_seq_max"] = sequences
        if "kv_unified" in stated:
            options["kv_unified"] = stated["kv_unified"] in _TRUE
        elif shapes:
            options["kv_unified"] = all(streams == 1 for _, _, streams in shapes)
        if given.context is not None:
            options["n_ctx"] = given.context * sequences
        elif "n_ctx" in stated and _number(stated, "n_ctx"):
            options["n_ctx"] = _number(stated, "n_ctx")
        elif shapes:
            options["n_ctx"] = max(cells * streams for cells, _, streams in shapes)
        elif not any(cache.kind == "recurrent" for cache in run.caches):
            raise InputError("the log does not state the context", hint="give it with -c")
        for name in ("n_batch", "n_ubatch"):
            if _number(stated, name):
                options[name] = _number(stated, name)
        if "swa_full" in stated:
            options["swa_full"] = True
        if "flash_attn" in stated:
            options["flash_attn"] = stated["flash_attn"] in _TRUE
        types = next((cache.types for cache in caches if cache.types), ())
        dtype = given.kv_cache_dtype or ("/".join(types[:2]) if types else None)
        context = max(1, options.get("n_ctx", 256) // max(1, sequences))  # a log may state none
        if given.engine == "ollama":
            options = {"num_parallel": sequences}
        notes = [] if "n_ubatch" in stated or "n_ubatch" in (given.options or {}) else ["n_ubatch is taken for 512"]
        return Question(
            given.engine or "llama.cpp",
            {**options, **(given.options or {})},
            context,
            sequences,
            dtype,
            given.tensor_parallel_size or 1,
            tuple(notes),
        )

    def compare(self, run: LogRun, question: Question, architecture: Architecture) -> Iterator[Compared]:
        plan = question.prepared(architecture).plan
        report = plan.report(question.context, question.batch_size, 2**62)
        lines = [line for line in map(parse_llama_cache, report["printed"]) if line is not None]
        layers = run.stated.get("n_layer")
        if layers is not None:
            predicted = str(architecture.num_layers)
            yield Compared("layers of the model", 0, layers, predicted, "", layers == predicted)
        for cache in run.caches:
            if cache.get("layers") is None:  # an old version prints one sum
                yield from _old_sum(cache, lines)
                continue
            match = _counterpart(cache, lines)
            if match is not None:
                lines.remove(match)
            yield from _compare_lines(cache, match)
        for line in lines if len(run.caches) > 1 else ():
            size = line.get("size")
            if size is not None and Decimal(size.printed):
                yield Compared(f"{_title(line)}: size", 0, "none", size.printed, "MiB", False)

    def changes(self, run: LogRun, question: Question) -> Iterator[_Change]:
        skip: set[str] = {name for name in ("swa_full", "kv_unified", "n_ubatch", "flash_attn") if name in run.stated}
        yield from _options(
            {
                "swa_full": (True, False),
                "n_ubatch": (1024, 2048, 256, 128, 64, 4096),
                "mla": (False,),
                "kv_unified": (True, False),
                "flash_attn": (False,),
                "n_seq_max": (1, 2, 4, 8),
            },
            question,
            skip,
        )
        for dtype in ("f16", "q8_0", "q4_0", "bf16", "f32"):
            yield _with_dtype(dtype)


def _shape(cache: CacheLine) -> tuple[int, int, int] | None:
    """Cells, sequences and streams of a line; an old version prints no streams and has one."""
    cells, seqs, streams = cache.get("cells"), cache.get("seqs"), cache.get("streams")
    if cells is None or not 0 < int(cells.printed) < 2**40:
        return None
    return (
        int(cells.printed),
        max(1, int(seqs.printed)) if seqs else 1,
        max(1, int(streams.printed)) if streams else 1,
    )


def _counterpart(cache: CacheLine, lines: list[CacheLine]) -> CacheLine | None:
    alike = [line for line in lines if line.kind == cache.kind]
    for name in ("layers", "cells"):
        wanted = cache.get(name)
        for line in alike:
            found = line.get(name)
            if wanted is not None and found is not None and wanted.printed == found.printed:
                return line
    return alike[0] if alike else None


def _title(cache: CacheLine) -> str:
    layers = cache.get("layers")
    kind = "recurrent state" if cache.kind == "recurrent" else "KV cache"
    return f"{kind} of {layers.printed} layers" if layers is not None else kind


def _compare_lines(cache: CacheLine, match: CacheLine | None) -> Iterator[Compared]:
    title = _title(cache)
    for figure in cache.figures:
        if figure.name == "P":
            continue
        found = match.get(figure.name) if match is not None else None
        predicted = found.printed if found is not None else "none"
        if found is None and match is not None:
            continue  # an older version of the line says more, or less, of itself
        words = {"K": "K", "V": "V", "R": "R (convolution)", "S": "S (recurrent)"}.get(figure.name, figure.name)
        yield Compared(
            f"{title}: {words}", figure.line, figure.printed, predicted, figure.unit, figure.printed == predicted
        )


def _old_sum(cache: CacheLine, lines: list[CacheLine]) -> Iterator[Compared]:
    for name in ("size", "K", "V"):
        reported = cache.get(name)
        parts = [part for part in (line.get(name) for line in lines if line.kind == "kv") if part is not None]
        if reported is not None:
            total = str(sum((Decimal(part.printed) for part in parts), Decimal(0)))
            yield Compared(
                f"KV cache: {name}", reported.line, reported.printed, total, "MiB", reported.printed == total
            )


_SGLANG_OPTIONS = (
    "page_size",
    "swa_full_tokens_ratio",
    "disable_hybrid_swa_memory",
    "max_running_requests",
    "disable_radix_cache",
    "chunked_prefill_size",
    "disable_overlap_schedule",
)


class _Sglang:
    def question(self, run: LogRun, given: Given) -> Question:
        stated = run.stated
        tokens = self._tokens(run)
        if tokens is None:
            raise InputError("the log does not state the tokens of a pool", hint="SGLang prints '#tokens: N'")
        options: dict[str, Any] = {name: stated[name] for name in _SGLANG_OPTIONS if name in stated}
        types = next((cache.types for cache in run.caches if cache.types), ())
        dtype = given.kv_cache_dtype or (types[0] if types else stated.get("kv_cache_dtype") or stated.get("dtype"))
        return Question(
            given.engine or "sglang",
            {**options, **(given.options or {})},
            tokens,
            1,
            dtype,
            given.tensor_parallel_size or _number(stated, "tp_size") or 1,
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
        prepared = question.prepared(architecture)
        plan = prepared.plan
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
                yield from self._pool(cache, allocated, prepared, architecture)
        if total is not None:
            predicted = str(question.context)
            yield Compared(
                "max_total_num_tokens", total.line, total.printed, predicted, "tokens", predicted == total.printed
            )

    def _pool(
        self, cache: CacheLine, allocated: int, prepared: Prepared, architecture: Architecture
    ) -> Iterator[Compared]:
        key, value = _sides(prepared, architecture)
        k_bytes = allocated * key // max(1, key + value)
        for name, size in (("KV", allocated), ("K", k_bytes), ("V", allocated - k_bytes)):
            figure = cache.get(name)
            if figure is not None:
                predicted = f"{size / GiB:.2f}"
                yield Compared(
                    f"pool: {name} size", figure.line, figure.printed, predicted, "GB", predicted == figure.printed
                )

    def changes(self, run: LogRun, question: Question) -> Iterator[_Change]:
        for dtype in ("fp8_e4m3", "bfloat16"):
            yield _with_dtype(dtype)
        yield from _parallel(question)
        yield from _options(
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


def _sides(prepared: Prepared, architecture: Architecture) -> tuple[int, int]:
    """Bytes of K and of V that one token takes in all layers, as far as the layers keep both."""
    keys = values = 0
    setup = prepared.setup
    for kind, count in architecture.caches:
        inner = kind.attention if isinstance(kind, Parallel) else kind
        if isinstance(inner, Full | Sliding | Chunked | Cross):
            keys += count * setup.k_dtype.row_bytes(inner.num_kv_heads, inner.head_dim)
            values += count * setup.v_dtype.row_bytes(inner.num_kv_heads, inner.v_head_dim)
        elif isinstance(inner, Latent | Compressed):
            keys += count
    return keys, values


class _Ollama:
    """Ollama's own engine: one cache for all slots, so llama.cpp's rule with kv_unified."""

    def question(self, run: LogRun, given: Given) -> Question:
        stated = run.stated
        parallel = given.batch_size or _number(stated, "Parallel") or 1
        n_ctx = given.context * parallel if given.context else _number(stated, "KvSize")
        if n_ctx is None:
            raise InputError("the log does not state the context", hint="give it with -c")
        dtype = given.kv_cache_dtype or stated.get("KvCacheType") or None
        if given.engine == "ollama":
            options: dict[str, Any] = {"num_parallel": parallel}
            if _number(stated, "BatchSize"):
                options["num_batch"] = _number(stated, "BatchSize")
        else:
            options = {"n_ctx": n_ctx, "n_seq_max": parallel, "kv_unified": True}
            options["n_ubatch"] = _number(stated, "BatchSize") or 512
        return Question(
            given.engine or "llama.cpp",
            {**options, **(given.options or {})},
            max(1, n_ctx // parallel),
            parallel,
            dtype,
            notes=("Ollama's own engine keeps one cache for all slots: llama.cpp's rule with kv_unified",),
        )

    def compare(self, run: LogRun, question: Question, architecture: Architecture) -> Iterator[Compared]:
        size = question.prepared(architecture).plan.kv_bytes(question.context, question.batch_size)
        required = run.figures.get("required_kv")
        sizes = [figure for figure in (cache.get("size") for cache in run.caches) if figure is not None]
        if required is not None:
            yield self._one("KV cache required", required, size)
        if len(sizes) == 1:
            yield self._one("KV cache", sizes[0], size)
        elif sizes:
            low, high = (sum(_bounds(figure, 1)[side] for figure in sizes) for side in (0, 1))
            unit = max((figure.unit for figure in sizes), key=lambda unit: _UNIT_BYTES[unit])
            total = sum(Decimal(figure.printed) * _UNIT_BYTES[figure.unit] for figure in sizes) / _UNIT_BYTES[unit]
            agrees = low <= size <= high
            reported = f"{total:.1f}"
            predicted = reported if agrees else f"{size / _UNIT_BYTES[unit]:.1f}"
            yield Compared(f"KV cache on {len(sizes)} devices", sizes[0].line, reported, predicted, unit, agrees)

    @staticmethod
    def _one(name: str, figure: Figure, size: int) -> Compared:
        predicted = f"{size / _UNIT_BYTES[figure.unit]:.1f}"
        return Compared(name, figure.line, figure.printed, predicted, figure.unit, _same(predicted, figure.printed))

    def changes(self, run: LogRun, question: Question) -> Iterator[_Change]:
        skip = {"n_ubatch"} if "BatchSize" in run.stated else set()
        yield from _options({"n_ubatch": (1024, 2048, 256)}, question, skip)
        for dtype in ("q8_0", "q4_0", "f16"):
            yield _with_dtype(dtype)
        yield from _options({"kv_unified": (False,), "swa_full": (True,), "n_seq_max": (1, 2, 4)}, question, set())


def _same(predicted: str, printed: str) -> bool:
    return Decimal(predicted) == Decimal(printed)


class _Tensorrt:
    def question(self, run: LogRun, given: Given) -> Question:
        tokens = run.figures.get("pool_tokens")
        if tokens is None or not int(tokens.printed):
            raise InputError("the log does not state the tokens of a pool")
        return Question(
            given.engine or "tensorrt-llm",
            dict(given.options or {}),
            int(tokens.printed),
            1,
            given.kv_cache_dtype,
            given.tensor_parallel_size or 1,
        )

    def compare(self, run: LogRun, question: Question, architecture: Architecture) -> Iterator[Compared]:
        allocated = run.figures["allocated"]
        predicted = f"{question.prepared(architecture).plan.kv_bytes(question.context, 1) / GiB:.2f}"
        yield Compared("pool", allocated.line, allocated.printed, predicted, "GiB", _same(predicted, allocated.printed))

    def changes(self, run: LogRun, question: Question) -> Iterator[_Change]:
        for dtype in ("fp8", "bfloat16", "nvfp4"):
            yield _with_dtype(dtype)
        yield from _parallel(question)


_READERS: dict[str, _Reader] = {
    "vllm": _Vllm(),
    "llama.cpp": _LlamaCpp(),
    "sglang": _Sglang(),
    "ollama": _Ollama(),
    "tensorrt-llm": _Tensorrt(),
}
