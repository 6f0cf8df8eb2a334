"""Ollama's log: what its scheduler estimated (llm/memory.go) and its own engine allocated (ml/device.go)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction

from kvcalc.architecture import Architecture
from kvcalc.dtypes import parse_dtype
from kvcalc.engines.ollama import estimated_kv_bytes
from kvcalc.errors import InputError
from kvcalc.logs.base import (
    MOST_CACHES,
    UNIT_BYTES,
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
    byte_bounds,
    changes,
    checked,
    stated_number,
)

# ---- lines ----

_SIZE = re.compile(
    r"msg=\"(kv cache|model weights|compute graph)\" device=(\S{1,40}) size=\"(\d{1,9}(?:\.\d)?) ([KMGT]i)?B\""
)
_REQUIRED = re.compile(r"memory\.required\.kv=\"(\d{1,9}(?:\.\d)?) ([KMGT]i)?B\"")
_TERMS = re.compile(r"memory\.(weights\.total|graph\.full|graph\.partial)=\"(\d{1,9}(?:\.\d)?) ([KMGT]i)?B\"")
_BY_LAYER = re.compile(r"required\.([\w.]{1,40})\.Cache=\"?(\[[\d A-Z]{1,8000}\]|\d{1,18}[A-Z]?)")
_LOAD = re.compile(r"\b(Parallel|BatchSize|KvSize|KvCacheType|FlashAttention):(\w{0,20})")
_LOAD_NAMES = {
    "Parallel": "n_seq_max",
    "BatchSize": "n_batch",
    "KvSize": "n_ctx",
    "KvCacheType": "type_k",
    "FlashAttention": "flash_attn",
}
_ENVIRONMENT = re.compile(r"\bOLLAMA_(KV_CACHE_TYPE|NUM_PARALLEL|CONTEXT_LENGTH):(\w{1,20})")
_COMMAND = {
    "--ctx-size": "n_ctx",
    "-c": "n_ctx",
    "--batch-size": "n_batch",
    "-b": "n_batch",
    "--parallel": "n_seq_max",
    "-np": "n_seq_max",
    "--kv-cache-type": "type_k",
    "--cache-type-k": "type_k",
}
_ENVIRONMENT_NAMES = {"KV_CACHE_TYPE": "type_k", "NUM_PARALLEL": "n_seq_max", "CONTEXT_LENGTH": "context"}
_VERSION = re.compile(r"\(version (\d{1,3}\.\d{1,3}\.\d{1,3})")


def _cache(reader: LogReader, line: Line) -> None:
    match = _SIZE.search(line.text)
    if match is None:
        return
    figure = Figure("size", match[3], f"{match[4] or ''}B", line.number)
    if match[1] != "kv cache":
        reader.start.term(line, figure.unit, **{f"{match[1]} on {match[2]}": figure.printed})
        return
    start = reader.of("ollama", line)
    known = [cache for cache in start.caches if match[2] not in cache.types]  # the fit is tried several times: the last
    start.caches = [*known[: MOST_CACHES - 1], CacheLine("device", (figure,), (match[2],))]


def _required(reader: LogReader, line: Line) -> None:
    match = _REQUIRED.search(line.text)
    if match is None:
        return
    if "required_kv" in reader.start.figures:
        reader.open(line)
    reader.of("ollama", line).put(line, f"{match[2] or ''}B", required_kv=match[1])
    reader.continued(line)
    for term in _TERMS.finditer(line.text):
        reader.start.term(line, f"{term[3] or ''}B", **{term[1].replace(".", " "): term[2]})


def _layers(reader: LogReader, line: Line) -> None:
    """``required.CUDA0.Cache="[b1 b2 ...]"``: bytes of each layer on a device, U behind one that did not fit."""
    found = list(_BY_LAYER.finditer(line.text))
    if not found:
        return
    start = reader.of("ollama", line)
    start.caches = [cache for cache in start.caches if cache.kind != "layers"]  # each try says all devices again
    for match in found[:MOST_CACHES]:
        sizes = [size for size in re.findall(r"\d{1,18}", match[2]) if int(size)]
        total = Figure("size", str(sum(map(int, sizes))), "B", line.number)
        count = Figure("layers", str(len(sizes)), "", line.number)
        start.caches.append(CacheLine("layers", (total, count), (match[1],)))


def _load(reader: LogReader, line: Line) -> None:
    for match in _LOAD.finditer(line.text[:4096]):
        if match[2]:
            reader.stated("ollama", line)[_LOAD_NAMES[match[1]]] = match[2]
    reader.start.seen.add("load")


def _runner(reader: LogReader, line: Line) -> None:
    """``cmd="ollama runner --ctx-size ..."``: what the runner's command does not name has its default."""
    if reader.start.has_figures and ("starting runner" in line.text or "runner" in reader.start.seen):
        reader.open(line)
    if "--ctx-size" in line.text:
        stated = reader.stated("ollama", line)
        for name in ("n_ctx", "n_batch", "n_seq_max", "type_k"):
            stated.pop(name, None)
        reader.continued(line)
        stated.setdefault("type_k", "f16")
        reader.start.seen.add("runner")


def _environment(reader: LogReader, line: Line) -> None:
    """The server's environment, which holds for every model that it loads."""
    if reader.start.has_figures:
        reader.open(line)
    for match in _ENVIRONMENT.finditer(line.text):
        if match[2] != "0":
            reader.standing[_ENVIRONMENT_NAMES[match[1]]] = match[2]
    reader.start.stated |= reader.standing
    reader.start.seen.add("environment")


def _version(reader: LogReader, line: Line) -> None:
    match = _VERSION.search(line.text)
    if match:
        reader.standing["version"] = reader.stated("ollama", line)["version"] = match[1]


# ---- what they state, and what they should be ----


def _question(start: Start, given: Given) -> Question:
    stated = start.stated
    parallel = given.batch_size or stated_number(stated, "n_seq_max") or 1
    n_ctx = given.context * parallel if given.context else stated_number(stated, "n_ctx")
    if n_ctx is None and stated_number(stated, "context"):
        n_ctx = (stated_number(stated, "context") or 1) * parallel
    if n_ctx is None:
        raise InputError("the log does not state the context", hint="give it with -c")
    batch = stated_number(stated, "n_batch")
    if given.engine == "ollama":
        options: dict[str, object] = {"num_parallel": parallel}
        if batch:
            options["num_batch"] = batch
    else:
        options = {"n_ctx": n_ctx, "n_seq_max": parallel, "kv_unified": True, "n_ubatch": batch or 512}
    said = {"n_ubatch": "n_batch", "num_batch": "n_batch", "n_seq_max": "n_seq_max", "kv_cache_dtype": "type_k"}
    names = {*given.options, *(name for name, flag in said.items() if flag in stated)}
    return Question(
        given.engine or "llama.cpp",
        {**options, **given.options},
        max(1, n_ctx // parallel),
        parallel,
        given.kv_cache_dtype or stated.get("type_k"),
        stated=frozenset(names | ({"kv_cache_dtype"} if given.kv_cache_dtype else set())),
        notes=("Ollama's own engine keeps one cache for all slots: llama.cpp's rule with kv_unified",),
    )


def _compare(start: Start, question: Question, architecture: Architecture) -> Iterator[Compared]:
    size = question.setup(architecture).plan.kv_bytes(question.context, question.batch_size)
    required = start.figures.get("required_kv")
    if required is not None:
        options = {name: str(value) for name, value in question.options.items()}
        n_ctx = stated_number(options, "n_ctx") or question.context * question.batch_size
        batch = stated_number(options, "n_ubatch", "num_batch") or 512
        dtype = parse_dtype(question.kv_cache_dtype or "f16")
        estimated = estimated_kv_bytes(architecture, dtype, n_ctx, question.batch_size, batch)
        yield _one("KV cache as estimated", required, Fraction(estimated))
    listed = [cache for cache in start.caches if cache.kind == "layers"]
    if listed:
        total = sum(figure.bytes for figure in (cache.get("size") for cache in listed) if figure is not None)
        line = next(figure.line for figure in listed[0].figures)
        devices = f" on {len(listed)} devices" if len(listed) > 1 else ""
        yield checked(f"KV cache, layer by layer{devices}", Figure("size", str(total), "B", line), str(size))
    sizes = [cache.get("size") for cache in start.caches if cache.kind == "device"]
    known = [figure for figure in sizes if figure is not None]
    if len(known) == 1:
        yield _one("KV cache", known[0], Fraction(size))
    elif known:
        yield _devices(known, size)


def _devices(sizes: list[Figure], size: int) -> Compared:
    low, high = (sum(byte_bounds(figure, 1)[side] for figure in sizes) for side in (0, 1))
    unit = max((figure.unit for figure in sizes), key=lambda unit: UNIT_BYTES[unit])
    total = sum(Decimal(figure.printed) * UNIT_BYTES[figure.unit] for figure in sizes) / UNIT_BYTES[unit]
    reported = Figure("size", f"{total:.1f}", unit, sizes[0].line)
    predicted = f"{size / UNIT_BYTES[unit]:.1f}"
    return checked(f"KV cache on {len(sizes)} devices", reported, predicted, agrees=low <= size <= high)


def _one(name: str, figure: Figure, size: Fraction) -> Compared:
    return checked(name, figure, f"{float(size / UNIT_BYTES[figure.unit]):.1f}")


def _changes(start: Start, question: Question) -> Iterator[Change]:
    yield from changes(
        question,
        n_ubatch=(1024, 2048, 256),
        kv_cache_dtype=("q8_0", "q4_0", "f16"),
        kv_unified=(False,),
        swa_full=(True,),
        n_seq_max=(1, 2, 4),
        mla=(False,),
    )


def _device_terms(start: Start) -> dict[str, int]:
    """Weights and compute graph of the device that holds the most weights."""
    weights = {
        name.removeprefix("model weights on "): figure.bytes
        for name, figure in start.terms.items()
        if name.startswith("model weights on ") and not name.endswith(" CPU")
    }
    if not weights:
        return {}
    device = max(weights, key=lambda name: weights[name])
    graph = start.terms.get(f"compute graph on {device}")
    return {"weights_bytes": weights[device]} | ({} if graph is None else {"activation_bytes": graph.bytes})


LOG = EngineLog(
    "ollama",
    (
        ('msg="kv cache"', _cache),
        ('msg="model weights"', _cache),
        ('msg="compute graph"', _cache),
        ("memory.required.kv=", _required),
        (".Cache=", _layers),
        ("KvSize:", _load),
        ('cmd="', _runner),
        ('msg="server config"', _environment),
        ("(version 0.", _version),
    ),
    _COMMAND,
    (("required_kv", "estimated its cache"),),
    _question,
    _compare,
    _changes,
    judges=("llama.cpp", "ollama"),
    terms=_device_terms,
)
