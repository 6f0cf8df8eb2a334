"""The options that commands share, each defined once: its names, its help, and how its text becomes a value.

A parser is a function of kvcalc's own, so that a wrong value is refused in the one shape of an error. Typer asks it
about defaults too, which are values already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Annotated, TypeVar

import typer

from kvcalc.cli import complete
from kvcalc.errors import InputError, did_you_mean, quote
from kvcalc.report.document import Units
from kvcalc.report.formats import FORMATS
from kvcalc.units import parse_bytes, parse_count, parse_counts

_Value = TypeVar("_Value")

#: The context that ``-c max`` stands for: the one that the model was made for.
OWN_CONTEXT = 0
_OTHER_FORMATS = {"md": "markdown", "text": "table", "txt": "table"}
_UNITS: dict[str, Units] = {
    "binary": "binary",
    "gib": "binary",
    "mib": "binary",
    "iec": "binary",
    "decimal": "decimal",
    "gb": "decimal",
    "mb": "decimal",
    "si": "decimal",
    "bytes": "bytes",
    "b": "bytes",
}


def reads(parse: Callable[[str], _Value]) -> Callable[[str | _Value], _Value]:
    """A parser for Typer: text is parsed, a default stays as it is."""

    def read(value: str | _Value) -> _Value:
        return parse(value) if isinstance(value, str) else value

    return read


def _count(option: str, several: str = "", least: int = 1) -> Callable[[str | int], int]:
    """A parser of one count; ``several`` names the command that takes a list."""

    def parse(text: str) -> int:
        try:
            return parse_count(text, option, least=least)
        except InputError:
            if several and "," in text:
                raise InputError(f"{option} takes one value here", hint=f"kvcalc {several} takes several") from None
            raise

    return reads(parse)


def _context(text: str) -> int:
    return OWN_CONTEXT if text.strip() == "max" else _count("--context", "sweep")(text)


def _contexts(text: str) -> Sequence[int]:
    if "max" not in text.split(","):
        return parse_counts(text, "--context")
    parts = [part for part in text.split(",") if part != "max"]
    return [*(parse_counts(",".join(parts), "--context") if parts else ()), OWN_CONTEXT]


def _names(option: str) -> Callable[[str | Sequence[str]], Sequence[str]]:
    """A parser of names with commas between them; an empty one is a mistake."""

    def parse(text: str) -> Sequence[str]:
        parts = [part.strip() for part in text.split(",")]
        if not all(parts):
            raise InputError(f"{option} has an empty part in {quote(text)}", hint="write a,b,c")
        return parts

    return reads(parse)


def one_name(option: str) -> Callable[[str], str]:
    """A parser of one name, for a command that answers for one."""

    def parse(text: str) -> str:
        first, *others = _names(option)(text)
        if others:
            raise InputError(f"{option} takes one value here", hint="kvcalc compare takes several")
        return first

    return parse


def _format(text: str) -> str:
    name = text.strip().casefold()
    name = _OTHER_FORMATS.get(name, name)
    if name not in FORMATS:
        hint = did_you_mean(name, FORMATS) or f"known formats: {', '.join(FORMATS)}"
        raise InputError(f"unknown format {quote(text)}", hint=hint)
    return name


def _units(text: str) -> Units:
    found = _UNITS.get(text.strip().casefold())
    if found is None:
        hint = did_you_mean(text, ("binary", "decimal", "bytes")) or "known: binary, decimal, bytes"
        raise InputError(f"unknown --units {quote(text)}", hint=hint)
    return found


def _utilization(text: str) -> Fraction:
    from kvcalc.fitting import parse_utilization

    return parse_utilization(text)


_CONTEXT, _BATCH, _TP = ("--context", "-c"), ("--batch-size", "-b"), ("--tensor-parallel-size", "-tp")
_KV, _WEIGHTS = "--kv-cache-dtype", "--weights-dtype"
_CONTEXT_HELP = "Tokens in the cache of one sequence; k is 1024."
_OWN = "the model's own"

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A preset, Hub id, spec.toml, config.json, model.gguf or hf:org/name; then @LAYOUT.",
        autocompletion=complete.models,
    ),
]
Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...",
        help="Presets, Hub ids, files or hf:org/name, each optionally with @LAYOUT.",
        autocompletion=complete.models,
    ),
]
Context = Annotated[
    int, typer.Option(*_CONTEXT, metavar="TOKENS", help=_CONTEXT_HELP, parser=reads(_context), show_default=_OWN)
]
#: Without a default: where it is left out, the longest that fits is asked for.
OptionalContext = Annotated[
    int | None, typer.Option(*_CONTEXT, metavar="TOKENS", help=_CONTEXT_HELP, parser=reads(_context))
]
Contexts = Annotated[
    Sequence[int],
    typer.Option(
        *_CONTEXT,
        metavar="LIST",
        help="Contexts: 1k,4k,32k or 8k..128k/8k.",
        parser=reads(_contexts),
        show_default=_OWN,
    ),
]
BatchSize = Annotated[
    int, typer.Option(*_BATCH, metavar="COUNT", help="Sequences.", parser=_count("--batch-size", "compare"))
]
OptionalBatchSize = Annotated[
    int | None,
    typer.Option(*_BATCH, metavar="COUNT", help="Sequences.  [default: 1]", parser=_count("--batch-size", "compare")),
]
BatchSizes = Annotated[
    Sequence[int],
    typer.Option(
        *_BATCH,
        metavar="LIST",
        help="Sequences: 1,4,16.",
        show_default="1",
        parser=reads(lambda text: parse_counts(text, "--batch-size")),
    ),
]
KVCacheDtype = Annotated[
    str | None,
    typer.Option(
        _KV,
        metavar="FORMAT",
        help="Format of K and V, or K/V: bf16, fp8, q8_0, q8_0/q4_0. Default: the engine's own.",
        parser=one_name(_KV),
        autocompletion=complete.dtypes,
    ),
]
KVCacheDtypes = Annotated[
    Sequence[str] | None,
    typer.Option(
        _KV,
        metavar="LIST",
        help="Formats of K and V: bf16,fp8. Default: the engine's own.",
        parser=_names(_KV),
        autocompletion=complete.dtypes,
    ),
]
WeightsDtype = Annotated[
    str | None,
    typer.Option(
        _WEIGHTS,
        metavar="FORMAT",
        help="Format of the weights. Default: as the model ships.",
        parser=one_name(_WEIGHTS),
        autocompletion=complete.dtypes,
    ),
]
WeightsDtypes = Annotated[
    Sequence[str] | None,
    typer.Option(
        _WEIGHTS,
        metavar="LIST",
        help="Formats of the weights: bf16,fp8,q4_k_m. Default: as the model ships.",
        parser=_names(_WEIGHTS),
        autocompletion=complete.dtypes,
    ),
]
TensorParallelSize = Annotated[
    int,
    typer.Option(
        *_TP,
        metavar="COUNT",
        help="Tensor parallel: devices that share every layer.",
        parser=_count("--tensor-parallel-size", "compare"),
    ),
]
OptionalTensorParallelSize = Annotated[
    int | None,
    typer.Option(
        *_TP,
        metavar="COUNT",
        help="Tensor parallel: devices that share every layer.  [default: 1]",
        parser=_count("--tensor-parallel-size", "compare"),
    ),
]
TensorParallelSizes = Annotated[
    Sequence[int],
    typer.Option(
        *_TP,
        metavar="LIST",
        help="Tensor parallel: devices that share every layer: 1,2,4.",
        show_default="1",
        parser=reads(lambda text: parse_counts(text, "--tensor-parallel-size")),
    ),
]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        "-e",
        metavar="ENGINE",
        help="Whose rules apply, with a version if you like: vllm==0.25.1.",
        parser=one_name("--engine"),
        autocompletion=complete.engines,
    ),
]
#: Without a default: where it is left out, a log or a budget says which.
OptionalEngineName = Annotated[
    str | None,
    typer.Option(
        "--engine",
        "-e",
        metavar="ENGINE",
        help="Whose rules apply. Default: the log's.",
        parser=one_name("--engine"),
        autocompletion=complete.engines,
    ),
]
EngineNames = Annotated[
    Sequence[str],
    typer.Option(
        "--engine",
        "-e",
        metavar="LIST",
        help="Engines: ideal,vllm, or vllm==0.25.1,vllm==0.33.0.",
        parser=_names("--engine"),
        show_default="ideal",
        autocompletion=complete.engines,
    ),
]
EngineOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-option",
        "-E",
        metavar="KEY=VALUE",
        help="An option of the engine by its own name; vllm.block_size=32 among several engines.",
        autocompletion=complete.engine_options,
    ),
]
EncoderTokens = Annotated[
    int,
    typer.Option(
        "--encoder-tokens",
        metavar="TOKENS",
        help="Length of the encoder's output, for cross-attention.",
        parser=_count("--encoder-tokens", least=0),
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="MODEL",
        help="The model that proposes tokens, or mtp: the model's own prediction layers.",
        autocompletion=complete.models,
    ),
]
TextOnly = Annotated[
    bool, typer.Option("--text-only", help="Leave out the encoders of images and sound that the checkpoint carries.")
]
Memory = Annotated[
    int | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="Memory of one device: 24GiB, 80GB.",
        parser=reads(lambda text: parse_bytes(text, "--memory")),
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="NAME", help="A device by name; see 'kvcalc devices'.", autocompletion=complete.devices
    ),
]
Devices = Annotated[
    str | None,
    typer.Option("--devices", metavar="COUNTxNAME", help="Devices: 8xh100-80gb.", autocompletion=complete.devices),
]
KVMemory = Annotated[
    int | None,
    typer.Option(
        "--kv-memory",
        metavar="SIZE",
        help="Memory of the KV cache alone, on one device.",
        parser=reads(lambda text: parse_bytes(text, "--kv-memory")),
    ),
]
Reserve = Annotated[
    int,
    typer.Option(
        "--reserve",
        metavar="SIZE",
        help="Memory of the device to keep free.",
        show_default="0B",
        parser=reads(lambda text: parse_bytes(text, "--reserve")),
    ),
]
GpuMemoryUtilization = Annotated[
    Fraction | None,
    typer.Option(
        "--gpu-memory-utilization",
        metavar="PART",
        parser=reads(_utilization),
        help="Part of the device that the engine takes, 0.9 or 90%. Default: the engine's own.",
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        "-f",
        metavar="FORMAT",
        help="table, wide, json, csv, markdown or html. Default: by the suffix of -o.",
        parser=_format,
        autocompletion=complete.formats,
    ),
]
CheckFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        "-f",
        metavar="FORMAT",
        parser=_format,
        autocompletion=complete.formats,
        help="table, wide, json, csv, markdown, html, junit or github. Default: by the suffix of -o.",
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Write to a file; its suffix decides the format: x.json, x.html, x.png."
    ),
]
Plot = Annotated[
    str | None, typer.Option("--plot", metavar="FILE", help="Draw it too: FILE.svg, FILE.png or FILE.pdf.")
]
Explain = Annotated[bool, typer.Option("--explain", help="Show the formula, and the formula with the numbers.")]
UnitsOption = Annotated[
    Units,
    typer.Option(
        "--units",
        metavar="UNITS",
        help="binary (GiB), decimal (GB) or bytes.",
        parser=reads(_units),
        autocompletion=complete.units,
    ),
]
