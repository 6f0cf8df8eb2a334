"""``kvcalc audit LOG``: what an engine printed, held against the prediction."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kvcalc.cli import options

EXAMPLES = (
    "kvcalc audit server.log\n"
    "journalctl -u vllm | kvcalc audit - --model gemma-3-27b\n"
    "kvcalc audit llama.log --model gemma-3-12b -E n_ubatch=1024"
)


def audit(
    log: Annotated[str, typer.Argument(metavar="LOG", help="A log of vLLM, llama.cpp, SGLang or Ollama; - for stdin.")],
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="The model, where the log does not name a preset.")
    ] = None,
    engine: Annotated[str | None, typer.Option("--engine", help="Whose rules apply. Default: the log's.")] = None,
    engine_option: options.EngineOptions = None,
    context: Annotated[
        str | None, typer.Option("--context", "-c", "--max-model-len", help="Tokens of one sequence; k is 1024.")
    ] = None,
    batch_size: Annotated[str | None, typer.Option("--batch-size", "-b", help="Sequences.")] = None,
    kv_cache_dtype: options.KVCacheDtype = None,
    tensor_parallel_size: Annotated[
        str | None, typer.Option("--tensor-parallel-size", "-tp", help="Devices that share every layer.")
    ] = None,
    format: options.Format = "table",  # noqa: A002 - the option's name
    output: options.Output = None,
) -> int:
    """Audit a log: reported, predicted and the difference; exit 0 if they agree to the printed digit, 1 if not."""
    from kvcalc.cli import question
    from kvcalc.errors import InputError
    from kvcalc.logs import verdict as auditing
    from kvcalc.logs.base import Given
    from kvcalc.units import parse_count

    report = _read(log)
    if report.cut:
        question.say(f"warning: {report.cut:,} lines were longer than {2**16:,} bytes; their ends were not read")
    engines = auditing.engines_of(engine)
    runs = [each for each in report.runs if each.engine in engines]
    if not runs:
        raise InputError(
            f"no figure of {engine or 'a known engine'} in {report.lines:,} lines",
            hint="wanted: vLLM's 'KV cache' lines, llama.cpp's 'llama_kv_cache', SGLang's 'KV Cache is allocated'",
            location=log,
        )

    def count(text: str | None, option: str) -> int | None:
        return None if text is None else parse_count(text, option)

    run = runs[-1]
    name = engine or run.engine or ""
    given = Given(
        engine,
        question.parse_engine_options(engine_option or [], [name])[name],
        count(context, "--context"),
        count(batch_size, "--batch-size"),
        kv_cache_dtype,
        count(tensor_parallel_size, "--tensor-parallel-size"),
    )
    reference = model or _preset_of(run.stated.get("model") or run.stated.get("model_path"))
    if reference is None:
        named = run.stated.get("model") or run.stated.get("model_path")
        what = "names no model" if named is None else f"names a model that is no preset: {named[:80]!r}"
        raise InputError(f"the log {what}", hint="say which with --model", location=log)
    architecture = question.load_with_hints(reference)
    matching = [each for each in runs if each.engine == run.engine]
    found = [auditing.audit(each, architecture, given) for each in matching]
    # A draft model or a dry run is a start of its own: the last start that agrees is this model's, else the last one.
    chosen = next((each for each in reversed(found) if each.agrees), found[-1])
    if not chosen.agrees and "needed" in run.figures:  # only vLLM's refusal counts a draft model in
        chosen = auditing.audit(run, architecture, given, _presets())
    document = _document(reference, architecture, chosen, len(found))
    question.answer(document, format, output)
    return 0 if chosen.agrees else 1


def _read(log: str) -> Any:
    from kvcalc.errors import InputError
    from kvcalc.logs.base import bounded_lines
    from kvcalc.logs.verdict import read_log
    from kvcalc.sources.files import remember

    if log == "-":
        return read_log(bounded_lines(sys.stdin.buffer))
    try:
        with Path(log).open("rb") as file:
            remember(file)
            return read_log(bounded_lines(file))
    except OSError as error:
        raise InputError(f"cannot read the log: {(error.strerror or str(error)).lower()}", location=log) from None


#: What publishers and converters put behind a model's name, which changes no cache.
_SUFFIX = re.compile(
    r"-(?:it|pt|chat|instruct|base|hf|qat|gguf|awq|gptq|int4|int8|fp8|bf16|f16|nvfp4|w4a16|w8a8|bnb|4bit|8bit|dynamic"
    r"|quantized(?:\.\w{1,9})?|\d{4}|q\d(?:-\w{1,3}){0,3}|ud)$"
)


def _preset_of(name: str | None) -> str | None:
    """The preset that a model's name in a log means, or None; no path and no host of the log is opened for it.

    >>> _preset_of("unsloth/gemma-3-12b-it-bnb-4bit"), _preset_of("Meta Llama 3.1 8B Instruct"), _preset_of("/models/x")
    ('gemma-3-12b', 'llama-3.1-8b', None)
    """
    from kvcalc.sources.preset import known_names

    if not name:
        return None
    shorter = _shortenings(_slug(name))
    known = {_slug(each): preset for preset, names in known_names().items() for each in reversed(names)}
    return next((known[slug] for slug in shorter if slug in known), None)


def _slug(name: str) -> str:
    last = name.rstrip("/").rpartition("/")[2].casefold()
    return re.sub(r"[_ :]", "-", last).removesuffix(".gguf").removeprefix("meta-")


def _shortenings(slug: str) -> list[str]:
    found = [slug]
    while (shorter := _SUFFIX.sub("", found[-1])) != found[-1]:
        found.append(shorter)
    return found


def _presets() -> dict[str, Any]:
    from kvcalc.sources import shipped
    from kvcalc.sources.preset import load_preset

    return {name: load_preset(name) for name in shipped.names("models")}


def _document(reference: str, architecture: Any, found: Any, starts: int) -> Any:
    from kvcalc.report.document import Column, Document, Section

    asked = found.question
    options = (f" {key}={str(value).lower()}" for key, value in asked.options.items())
    stated = [f"engine {asked.engine}" + "".join(options)]
    stated.append(f"context {asked.context:,} tokens")
    if asked.batch_size > 1:
        stated.append(f"batch size {asked.batch_size:,}")
    if asked.kv_cache_dtype:
        stated.append(f"K and V {asked.kv_cache_dtype}")
    if asked.tensor_parallel_size > 1:
        stated.append(f"tensor parallel {asked.tensor_parallel_size}")
    disagreeing = sum(not row.agrees for row in found.rows)
    verdict = (
        f"{len(found.rows)} of {len(found.rows)} figures agree to the printed digit"
        if found.agrees
        else f"{disagreeing} of {len(found.rows)} figures disagree"
    )
    notes = list(asked.notes)
    if starts > 1:
        notes.append(f"the log holds {starts} starts of the engine; one of them is shown")
    if not found.agrees:
        notes.insert(
            0, f"likeliest reason: {found.reason}" if found.reason else "no single flag or version explains it"
        )
    columns = (
        Column("figure", lambda row: row.figure),
        Column("line", lambda row: row.line or None, "count", drop_order=1),
        Column("reported", lambda row: _with_unit(row.reported, row.unit)),
        Column("predicted", lambda row: _with_unit(row.predicted, row.unit)),
        Column("difference", lambda row: "" if row.agrees else _signed(row)),
        Column("verdict", lambda row: "agrees" if row.agrees else "disagrees", "verdict"),
    )
    records = [
        {
            "figure": row.figure,
            "line": row.line or None,
            "reported": row.reported,
            "predicted": row.predicted,
            "unit": row.unit,
            "difference": None if row.difference is None else str(row.difference),
            "agrees": row.agrees,
        }
        for row in found.rows
    ]
    return Document(
        title=f"{reference}: {verdict}",
        assumptions=(architecture.layout, *stated),
        sections=(Section(columns, found.rows),),
        records=records,
        schema="audit",
        extra={"reference": reference, "agrees": found.agrees, "reason": found.reason, "notes": notes},
        notes=tuple(notes),
    )


def _with_unit(printed: str, unit: str) -> str:
    number = f"{int(printed):,}" if printed.isdecimal() else printed
    return f"{number} {unit}" if unit and printed != "none" else number


def _signed(row: Any) -> str:
    return "" if row.difference is None else f"{_with_unit(format(row.difference, '+f'), row.unit)}"
