"""llama.cpp's log: src/llama-kv-cache.cpp, llama-memory-recurrent.cpp, llama-context.cpp, llama-model.cpp."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, ClassVar

from kvcalc.architecture import Architecture
from kvcalc.errors import InputError
from kvcalc.logs.base import (
    MOST_CACHES,
    NUMBER,
    CacheLine,
    Change,
    Compared,
    Figure,
    Given,
    LogReader,
    LogRun,
    Marker,
    Question,
    stated_number,
    with_dtype,
    with_options,
)

_SIZE = re.compile(rf"(?:size|KV self size) *= *{NUMBER} MiB")
_SHAPE = re.compile(r"\( *(\d{1,12}) cells?, +(\d{1,6}) layers(?:, +(\d{1,6})(?:/(\d{1,6}))? seqs)?")
_PART = re.compile(rf"\b([KVRS]) \((\w{{1,12}})\): *{NUMBER} MiB")
_PARAM = re.compile(
    r"llama_context: (n_seq_max|n_ctx|n_ctx_seq|n_ctx_per_seq|n_batch|n_ubatch|flash_attn|kv_unified) += (\w{1,20})"
)
_INFO = re.compile(r"print_info: (general\.name|arch|n_layer|n_swa) +[=:] ?(.{1,200})")


def parse_cache(line: str, number: int = 0) -> CacheLine | None:
    """One ``size =`` line of llama.cpp; the same pattern reads what the engine here says it would print.

    >>> line = "llama_kv_cache: size = 765.00 MiB ( 4608 cells, 40 layers, 4/1 seqs), K (q8_0): 382.50 MiB"
    >>> [figure.printed for figure in parse_cache(line).figures], parse_cache(line).types
    (['765.00', '4608', '40', '4', '1', '382.50'], ('q8_0',))
    """
    size = _SIZE.search(line)
    if size is None:
        return None
    figures = [Figure("size", size[1], "MiB", number)]
    shape = _SHAPE.search(line)
    if shape:
        names = ("cells", "layers", "seqs", "streams")
        figures += [
            Figure(name, text, "", number) for name, text in zip(names, shape.groups(), strict=True) if text is not None
        ]
    types = []
    for part in _PART.finditer(line):
        figures.append(Figure(part[1], part[3], "MiB", number))
        types.append(part[2])
    return CacheLine("recurrent" if "recurrent" in line else "kv", tuple(figures), tuple(types))


def _cache(reader: LogReader, line: str, number: int) -> None:
    if "buffer size" in line:  # the same bytes once more, device by device
        return
    if "full-size SWA cache" in line:
        reader.run.stated["swa_full"] = "true"
        return
    cache = parse_cache(line, number)
    if cache is not None and len(reader.run.caches) < MOST_CACHES:
        reader.engine("llama.cpp").caches.append(cache)


def _start(reader: LogReader, line: str, number: int) -> None:
    if "constructing" in line:
        if reader.run.caches:
            reader.start(keep_flags=True)
        return
    match = _PARAM.search(line)
    if match:
        reader.run.stated[match[1]] = match[2]


def _info(reader: LogReader, line: str, number: int) -> None:
    match = _INFO.search(line)
    if match is None:
        return
    name, value = match[1], match[2].strip()
    if name == "n_layer" and value.isdecimal():
        reader.run.stated["n_layer"] = value
    elif name == "general.name":
        reader.start()
        reader.run.stated["model"] = value


_TRUE = ("true", "1", "enabled", "auto", "on")


class LlamaCppLog:
    """What is read in a log, what it states, and what differs where it disagrees."""

    markers: ClassVar[tuple[Marker, ...]] = (
        ("llama_kv_cache", _cache),
        ("llama_memory_recurrent: size", _cache),
        ("KV self size", _cache),
        ("llama_context:", _start),
        ("print_info:", _info),
    )

    def question(self, run: LogRun, given: Given) -> Question:
        stated = run.stated
        caches = [cache for cache in run.caches if cache.kind == "kv"]
        shapes = [shape for shape in map(_shape, caches) if shape is not None]
        options: dict[str, Any] = {}
        sequences = (
            given.batch_size or stated_number(stated, "n_seq_max") or max((seqs for _, seqs, _ in shapes), default=1)
        )
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
        elif "n_ctx" in stated and stated_number(stated, "n_ctx"):
            options["n_ctx"] = stated_number(stated, "n_ctx")
        elif shapes:
            options["n_ctx"] = max(cells * streams for cells, _, streams in shapes)
        elif not any(cache.kind == "recurrent" for cache in run.caches):
            raise InputError("the log does not state the context", hint="give it with -c")
        for name in ("n_batch", "n_ubatch"):
            if stated_number(stated, name):
                options[name] = stated_number(stated, name)
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
        plan = question.setup(architecture).plan
        report = plan.report(question.context, question.batch_size, 2**62)
        lines = [line for line in map(parse_cache, report["printed"]) if line is not None]
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

    def changes(self, run: LogRun, question: Question) -> Iterator[Change]:
        skip: set[str] = {name for name in ("swa_full", "kv_unified", "n_ubatch", "flash_attn") if name in run.stated}
        yield from with_options(
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
            yield with_dtype(dtype)


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


LOG = LlamaCppLog()
