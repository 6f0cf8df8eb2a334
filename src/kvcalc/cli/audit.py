"""``kvcalc audit LOG``: what an engine printed, held against the prediction."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvcalc.cli import options, question
from kvcalc.errors import InputError
from kvcalc.units import parse_count

if TYPE_CHECKING:
    from kvcalc.logs.base import LogReport
    from kvcalc.logs.verdict import Audit, LogAudit

EXAMPLES = (
    "kvcalc audit server.log\n"
    "journalctl -u vllm | kvcalc audit - --model gemma-3-27b\n"
    "kvcalc audit server.log --start all --format json\n"
    "kvcalc audit llama.log --model gemma-3-12b -E n_ubatch=1024"
)


def audit(
    log: Annotated[
        str,
        typer.Argument(
            metavar="LOG", help="A log of vLLM, llama.cpp, Ollama, SGLang, TensorRT-LLM, MLX-LM, LMDeploy; - for stdin."
        ),
    ],
    model: Annotated[
        str | None, options.option("--model", "MODEL", "The model, where the log does not name a preset.")
    ] = None,
    engine: options.OptionalEngineName = None,
    engine_option: options.EngineOptions = None,
    context: options.OptionalContext = None,
    batch_size: options.OptionalBatchSize = None,
    kv_cache_dtype: options.KVCacheDtype = None,
    tensor_parallel_size: options.OptionalTensorParallelSize = None,
    draft: options.Draft = None,
    device: options.Device = None,
    start: Annotated[
        str,
        typer.Option(
            "--start", help="Which starts count: the last of every engine and model (last), all, or a number."
        ),
    ] = "last",
    format: options.CheckFormat = None,  # noqa: A002 - the option's name
    output: options.Output = None,
) -> int:
    from kvcalc.cli import audit_tables
    from kvcalc.logs.base import LONGEST_LINE, Given
    from kvcalc.logs.verdict import audit as audit_log
    from kvcalc.sources.devices import find_device

    target = question.target(format, output)
    wanted = None if start in ("last", "all") else parse_count(start, "--start")
    report = read_log(log)
    if report.cut:
        question.say(f"warning: {report.cut:,} lines were longer than {LONGEST_LINE:,} bytes; their ends were not read")
    engines = [engine] if engine else list(dict.fromkeys(each.engine for each in report.starts if each.engine))
    given = Given(
        engine,
        {},
        context,
        batch_size,
        kv_cache_dtype,
        tensor_parallel_size,
        question.read_draft(draft),
    )
    try:
        found = audit_log(
            report,
            model=None if model is None else question.load_with_hints(model),
            reference=model or "",
            given=given,
            options=dict(question.parse_engines(engines, engine_option)) if engine_option and engines else None,
            device=find_device(device, None),
        )
    except InputError as error:
        raise error.at(log) from None
    shown = _shown(found, start, wanted, log)
    target.write(audit_tables.document(log, found, shown))
    return 1 if any(each.verdict == "disagrees" for each in shown) else 0


def read_log(log: str) -> LogReport:
    """The starts of a log, a file's or standard input's."""
    from kvcalc.logs.reading import bounded_lines
    from kvcalc.logs.verdict import read
    from kvcalc.sources.files import remember

    if log == "-":
        return read(bounded_lines(sys.stdin.buffer))
    try:
        with Path(log).open("rb") as file:
            remember(file)
            return read(bounded_lines(file))
    except OSError as error:
        raise InputError(f"cannot read the log: {(error.strerror or str(error)).lower()}", location=log) from None


def _shown(found: LogAudit, start: str, wanted: int | None, log: str) -> tuple[Audit, ...]:
    """The starts that count."""
    if wanted is None:
        return found.deciding if start == "last" else tuple(each for each in found.audits if each.rows)
    chosen = tuple(each for each in found.audits if each.start.number == wanted)
    if not chosen:
        numbers = ", ".join(str(each.start.number) for each in found.audits)
        raise InputError(f"the log has no start {wanted} with anything to read", hint=f"it has {numbers}", location=log)
    if not chosen[0].rows:
        raise chosen[0].refusal or InputError(f"start {wanted} printed no figure that could be audited", location=log)
    return chosen
