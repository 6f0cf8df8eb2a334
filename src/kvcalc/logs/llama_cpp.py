"""llama.cpp's log, and its fork ik_llama.cpp's: llama-kv-cache.cpp, llama-memory-recurrent.cpp, llama-context.cpp.

Older lines: llama_kv_cache_unified, llama_kv_cache_init, llama_new_context_with_model and llama_init_from_model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

from kvcalc.architecture import Architecture, Latent
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
    stated_truth,
    unchecked,
)

# ---- lines ----

_SIZE = re.compile(rf"(?:\bsize|KV self size) *= *{NUMBER} MiB")
_SHAPE = re.compile(
    r"\( *(\d{1,12}) cells?, +(\d{1,6}) layers(?:, +(\d{1,6})(?:/(\d{1,6}))? seqs)?(?:,? +(\d{1,6}) rs_seq)?"
)
_PART = re.compile(rf"(?<![\w^])(K|V|R|S|P|c\^KV|K\^R) \((\w{{1,12}})\): *{NUMBER} MiB")
_PARAM = re.compile(
    r"(?:llama_context|llama_new_context_with_model|llama_init_from_model): "
    r"(n_seq_max|n_ctx|n_ctx_seq|n_ctx_per_seq|n_batch|n_ubatch|flash_attn|kv_unified|mla_attn|n_rs_seq) *= *(\w{1,20})"
)
_INFO = re.compile(
    r"(?:print_info|llm_load_print_meta|llama_model_loader: - kv +\d+): +(general\.name|n_layer)"
    r"(?: +str)? *[=:] ?(.{1,200})"
)
_OLD_CELLS = re.compile(
    r"(?:kv_size|n_ctx) = (\d{1,10}),.{0,40}type_k = '(\w{1,12})', type_v = '(\w{1,12})'(?:, n_layer = (\d{1,5}))?"
)
_BUFFER = re.compile(rf"([\w.]{{1,30}})(?:\[\w{{1,20}}\])? +(model|compute|output) +buffer size *= *{NUMBER} MiB")
_FILE = re.compile(r"(?:loading model|loaded meta data|load_model|from) .{0,200}?['\" ]([^\s'\"]{1,300}\.gguf)")
_FAILED = re.compile(r"failed to allocate|cudaMalloc failed|unable to allocate|failed to create .{0,20}context")

_BUILD = re.compile(r"\bbuild(?:_info)? ?[:=] ?b?(\d{3,6})[ -]\(?[0-9a-f]{7,40}\b")
_LAUNCH = re.compile(r"llama-(?:server|cli|bench|perplexity)\b(?:\.exe)?['\"]? .{0,200}?--?\w")
_COMMAND = {
    "-m": "model",
    "--model": "model",
    "-hf": "model",
    "-hfr": "model",
    "--hf-repo": "model",
    "-c": "n_ctx",
    "--ctx-size": "n_ctx",
    "-b": "n_batch",
    "--batch-size": "n_batch",
    "-ub": "n_ubatch",
    "--ubatch-size": "n_ubatch",
    "-np": "n_seq_max",
    "--parallel": "n_seq_max",
    "-ctk": "type_k",
    "--cache-type-k": "type_k",
    "-ctv": "type_v",
    "--cache-type-v": "type_v",
    "-fa": "flash_attn",
    "--flash-attn": "flash_attn",
    "--swa-full": "swa_full",
    "-kvu": "kv_unified",
    "--kv-unified": "kv_unified",
}


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
        names = ("cells", "layers", "seqs", "streams", "rs_seq")
        figures += [
            Figure(name, text, "", number) for name, text in zip(names, shape.groups(), strict=True) if text is not None
        ]
    types = []
    for part in _PART.finditer(line):
        figures.append(Figure(part[1], part[3], "MiB", number))
        types.append(part[2])
    return CacheLine("recurrent" if "recurrent" in line else "kv", tuple(figures), tuple(types))


def _cache(reader: LogReader, line: Line) -> None:
    if "buffer size" in line.text:  # the same bytes once more, device by device
        return
    if "full-size SWA cache" in line.text:
        reader.stated("llama.cpp", line, host="ollama")["swa_full"] = "true"
        return
    if match := _OLD_CELLS.search(line.text):
        _old_cells(reader, line, match)
        return
    cache = parse_cache(line.text, line.number)
    if cache is None:
        return
    start = reader.of("llama.cpp", line, host="ollama")
    again = [figure.printed for figure in cache.figures[:1]]
    # ik_llama.cpp says the sum twice, once in the words of K and V and once in those of latents.
    old = [each for each in start.caches if each.get("layers") is None and cache.get("layers") is None]
    if old and [figure.printed for figure in old[-1].figures[:1]] == again:
        start.caches.remove(old[-1])
    if len(start.caches) < MOST_CACHES:
        start.caches.append(cache)


def _old_cells(reader: LogReader, line: Line, match: re.Match[str]) -> None:
    """The cells of a cache before it is made: the context of versions that print no other."""
    start = reader.start
    if start.engine == "llama.cpp" and start.caches and "kv_size" in start.stated:
        reader.open(line, keep_flags=True)
        start = reader.start
    start.stated["kv_size"] = match[1]
    start.stated["type_k"], start.stated["type_v"] = match[2], match[3]
    start.seen.add("cells")


def _context(reader: LogReader, line: Line) -> None:
    if "constructing" in line.text:
        if reader.start.caches:
            reader.open(line, keep_flags=True)
        return
    _buffer(reader, line)
    match = _PARAM.search(line.text)
    if match:
        reader.stated("llama.cpp", line, host="ollama")[match[1]] = match[2]
        reader.start.seen.add("context")
    elif "KV self size" in line.text:
        _cache(reader, line)


def _buffer(reader: LogReader, line: Line) -> None:
    match = _BUFFER.search(line.text)
    if match and match[2]:
        reader.start.term(line, "MiB", **{f"{match[1]} {match[2]} buffer": match[3]})


#: "|   - CUDA0 (RTX 4090) | 24080 = 9331 + (14200 = 11111 + 2048 + 1041) + 549 |": what no buffer accounts for.
_BREAKDOWN = re.compile(r"- ([\w.]{1,30}) \(.{1,100}?\) *\| *\d+ *= *\d+ *\+ *\([^)]{1,80}\) *\+ *(\d{1,9}) *\|")


def _breakdown(reader: LogReader, line: Line) -> None:
    match = _BREAKDOWN.search(line.text)
    if match:
        reader.start.term(line, "MiB", **{f"{match[1]} unaccounted": match[2]})


def _device_terms(start: Start) -> dict[str, int]:
    """Weights, compute buffer and driver of the device that holds the most weights."""
    models = {
        name.removesuffix(" model buffer"): figure.bytes
        for name, figure in start.terms.items()
        if name.endswith(" model buffer") and not name.startswith("CPU")
    }
    if not models:
        return {}
    device = max(models, key=lambda name: models[name])
    found = {
        "weights_bytes": start.terms.get(f"{device} model buffer"),
        "activation_bytes": start.terms.get(f"{device} compute buffer"),
        "runtime_bytes": start.terms.get(f"{device} unaccounted"),
    }
    return {name: figure.bytes for name, figure in found.items() if figure is not None}


def _info(reader: LogReader, line: Line) -> None:
    match = _INFO.search(line.text)
    if match is None:
        return
    name, value = match[1], match[2].strip()
    if name == "n_layer" and value.isdecimal():
        reader.stated("llama.cpp", line, host="ollama")["n_layer"] = value
    elif name == "general.name":
        if reader.start.has_figures and reader.start.engine == "llama.cpp":
            reader.open(line)
        reader.stated("llama.cpp", line, host="ollama")["model"] = value
        reader.start.seen.add("info")


def _file(reader: LogReader, line: Line) -> None:
    match = _FILE.search(line.text)
    if match:
        if reader.start.has_figures and reader.start.engine == "llama.cpp":
            reader.open(line)
        reader.stated("llama.cpp", line, host="ollama")["file"] = match[1]
        reader.start.seen.add("file")
        reader.start.line = reader.start.line or line.number


def _build(reader: LogReader, line: Line) -> None:
    match = _BUILD.search(line.text)
    if match:
        reader.stated("llama.cpp", line, "build", host="ollama")["version"] = f"b{match[1]}"


def _file_or_command(reader: LogReader, line: Line) -> None:
    if _LAUNCH.search(line.text):
        _command(reader, line)
    else:
        _file(reader, line)


def _command(reader: LogReader, line: Line) -> None:
    if _LAUNCH.search(line.text):
        reader.command("llama.cpp", line)


def _failed(reader: LogReader, line: Line) -> None:
    if _FAILED.search(line.text):
        start = reader.start
        start.stopped = start.stopped or ("memory could not be allocated", line.number)


# ---- what they state, and what they should be ----


def _question(start: Start, given: Given) -> Question:
    stated = start.stated
    caches = [cache for cache in start.caches if cache.kind == "kv"]
    shapes = [shape for shape in map(_shape, caches) if shape is not None]
    options: dict[str, object] = {}
    taken: set[str] = set()
    sequences = given.batch_size or stated_number(stated, "n_seq_max")
    if sequences is None:
        recurrent = next((cache.get("seqs") for cache in start.caches), None)
        sequences = max((seqs for _, seqs, _ in shapes), default=0) or (int(recurrent.printed) if recurrent else 1)
        taken.add("seqs")
    options["n_seq_max"] = sequences
    unified = stated_truth(stated, "kv_unified")
    if unified is None and shapes:
        unified = all(streams == 1 for _, _, streams in shapes)
        taken.add("streams")
    if unified is not None:
        options["kv_unified"] = unified
    n_ctx = given.context * sequences if given.context else stated_number(stated, "n_ctx", "kv_size")
    if n_ctx is None and shapes:
        n_ctx = max(cells * streams for cells, _, streams in shapes)
        taken.add("cells")
    if n_ctx is not None:
        options["n_ctx"] = n_ctx
    elif not any(cache.kind == "recurrent" for cache in start.caches):
        raise InputError("the log does not state the context", hint="give it with -c")
    for name in ("n_batch", "n_ubatch", "n_rs_seq"):
        if stated_number(stated, name):
            options[name] = stated_number(stated, name)
    for name in ("swa_full", "flash_attn"):
        truth = stated_truth(stated, name)
        if truth is not None:
            options[name] = truth
    rows = next((cache.get("rs_seq") for cache in start.caches if cache.get("rs_seq") is not None), None)
    if rows is not None and int(rows.printed):
        options["n_rs_seq"] = int(rows.printed)
    dtype = given.kv_cache_dtype or _format(start, caches)
    context = max(1, (n_ctx or 256) // max(1, sequences))  # a log of states alone says none
    if given.engine == "ollama":
        options = {"num_parallel": sequences}
    if "version" in stated and given.engine != "ollama":
        options["version"] = stated["version"]
    options, notes = known_options(given.engine or "llama.cpp", options)
    if "n_ubatch" not in stated and "n_ubatch" not in given.options:
        notes = (*notes, "n_ubatch is taken for 512")
    names = {*given.options, *(name for name in stated if name in options)}
    if dtype is not None:
        names.add("kv_cache_dtype")
    return Question(
        given.engine or "llama.cpp",
        {**options, **given.options},
        context,
        sequences,
        dtype,
        given.tensor_parallel_size or 1,
        frozenset(names),
        frozenset(taken),
        notes=notes,
    )


def _format(start: Start, caches: list[CacheLine]) -> str | None:
    """The formats of K and V, as a cache's line prints them or a flag states them."""
    types = next((cache.types for cache in caches if cache.types), ())
    if not types and "type_k" in start.stated:
        types = (start.stated["type_k"], start.stated.get("type_v", "f16"))
    return "/".join(dict.fromkeys(types[:2])) if types else None


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


def _compare(start: Start, question: Question, architecture: Architecture) -> Iterator[Compared]:
    setup = question.setup(architecture)
    report = setup.plan.report(question.context, question.batch_size, 2**62)
    lines = [line for line in map(parse_cache, report["printed"]) if line is not None]
    layers = start.stated.get("n_layer")
    if layers is not None:
        reported = Figure("n_layer", layers, "", 0)
        yield checked("layers of the model", reported, _layers(layers, architecture.num_layers, architecture))
    latents = [cache for cache in start.caches if cache.get("c^KV") is not None]
    required = [*lines]
    lines += _draft_lines(start, question, architecture, lines)
    for cache in start.caches:
        if cache.get("layers") is None:  # an old version prints one sum
            yield from _old_sum(cache, lines, architecture, placeholder=bool(latents) and cache not in latents)
            continue
        match = _counterpart(cache, lines)
        if match is not None:
            lines.remove(match)
        yield from _compare_lines(cache, match, question, architecture)
    for line in lines if len(start.caches) > 1 and not latents else ():
        size = line.get("size") if line in required else None
        if size is not None and Decimal(size.printed):
            yield Compared(f"{_title(line)}: size", 0, "none", size.printed, "MiB", "disagrees")


def _draft_lines(
    start: Start, question: Question, architecture: Architecture, lines: list[CacheLine]
) -> list[CacheLine]:
    """The cache of the model's own prediction layers, which are a second context, where the log has such a cache."""
    known = {layers.printed for layers in (line.get("layers") for line in lines) if layers is not None}
    strange = [each for each in start.caches if (layers := each.get("layers")) and layers.printed not in known]
    if not architecture.mtp_layers or question.draft is not None or not strange:
        return []
    types = dict(zip(("cache_type_k_draft", "cache_type_v_draft"), strange[0].types, strict=False))
    options, _ = known_options(question.engine, {**question.options, **types})
    report = replace(question, options=options, draft="mtp").setup(architecture).plan
    printed = map(parse_cache, report.report(question.context, question.batch_size, 2**62)["printed"])
    return [line for line in printed if line is not None and line not in lines]


def _layers(reported: str, predicted: int, architecture: Architecture) -> str:
    """The layer count: builds that count the layers of a draft print them too, at no size."""
    counted = reported == str(predicted + len(architecture.mtp_layers))
    return reported if counted else str(predicted)


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


#: Fields that say nothing of the size, or that older lines have not.
_SILENT = {"P", "rs_seq"}
_WORDS = {"R": "R (convolution)", "S": "S (recurrent)"}


def _compare_lines(
    cache: CacheLine, match: CacheLine | None, question: Question, architecture: Architecture
) -> Iterator[Compared]:
    title = _title(cache)
    for figure in cache.figures:
        found = match.get(figure.name) if match is not None else None
        if figure.name in _SILENT or (found is None and match is not None):
            continue
        name = f"{title}: {_WORDS.get(figure.name, figure.name)}"
        predicted = found.printed if found is not None else "none"
        if figure.name == "layers" and cache.kind == "recurrent" and predicted.isdecimal():
            predicted = _layers(figure.printed, int(predicted), architecture)
        if figure.name in question.taken and figure.printed == predicted:
            yield unchecked(name, figure)
        else:
            yield checked(name, figure, predicted, agrees=figure.printed == predicted)


def _old_sum(
    cache: CacheLine, lines: list[CacheLine], architecture: Architecture, *, placeholder: bool
) -> Iterator[Compared]:
    parts = {"size": Decimal(0), "K": Decimal(0), "V": Decimal(0)}
    for figure in (figure for line in lines if line.kind == "kv" for figure in line.figures):
        if figure.name in parts:
            parts[figure.name] += Decimal(figure.printed)
    latent = next((kind for kind, _ in architecture.caches if isinstance(kind, Latent)), None)
    rope = Decimal(latent.rope_dim) / (latent.rank + latent.rope_dim) if latent is not None else Decimal(0)
    if cache.get("K^R") is not None:
        parts["K^R"], parts["c^KV"] = parts["K"] * rope, parts["K"] * (1 - rope)
    else:
        parts["c^KV"] = parts["K"]
    for figure in cache.figures:
        if placeholder:
            yield unchecked(f"another KV cache: {figure.name}", figure)
        elif figure.name in parts:
            yield checked(f"KV cache: {figure.name}", figure, f"{parts[figure.name]:.2f}")


def _changes(start: Start, question: Question) -> Iterator[Change]:
    yield from changes(
        question,
        swa_full=(True, False),
        n_ubatch=(1024, 2048, 256, 128, 64, 4096),
        mla=(False,),
        kv_unified=(True, False),
        flash_attn=(False,),
        n_seq_max=(1, 2, 4, 8),
        kv_cache_dtype=("f16", "q8_0", "q4_0", "bf16", "f32"),
    )


def _another_model(
    start: Start, question: Question, architecture: Architecture, rows: tuple[Compared, ...]
) -> str | None:
    """Another model, where a cache of the log has a number of layers that no cache of this one has."""
    strange = [row.reported for row in rows if row.figure.endswith("layers") and row.verdict == "disagrees"]
    if not strange:
        return None
    return f"another model, or a draft model: the log has a cache of {' and one of '.join(strange)} layers"


LOG = EngineLog(
    "llama.cpp",
    (
        ("llama_kv_cache", _cache),
        ("llama_memory_recurrent: size", _cache),
        ("KV self size", _cache),
        ("llama_context:", _context),
        ("llama_new_context_with_model:", _context),
        ("llama_init_from_model:", _context),
        ("sched_reserve:", _buffer),
        ("load_tensors:", _buffer),
        ("llm_load_tensors:", _buffer),
        ("memory_breakdown_print:", _breakdown),
        ("general.name", _info),
        ("print_info: n_layer", _info),
        ("llm_load_print_meta: n_layer", _info),
        ("build: ", _build),
        ("build_info: ", _build),
        ("build = ", _build),
        (".gguf", _file_or_command),
        ("llama-server", _command),
        ("llama-cli", _command),
        ("cudaMalloc failed", _failed),
        ("failed to allocate", _failed),
    ),
    _COMMAND,
    (("KV cache", "printed its cache"),),
    _question,
    _compare,
    _changes,
    _another_model,
    ("llama.cpp", "ollama"),
    _device_terms,
)
