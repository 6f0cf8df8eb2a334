"""The options that commands share, each defined once: its names, its help, and how its text becomes a value.

A parser is a function of kvcalc's own, so that a wrong value is refused in the one shape of an error. Typer asks it
about defaults too, which are values already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Annotated, Any, TypeVar

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


def _count(option: str, several: str = "", least: int = 1) -> Callable[[str], int]:
    """A parser of one count; ``several`` names the command that takes a list."""

    def parse(text: str) -> int:
        try:
            return parse_count(text, option, least=least)
        except InputError:
            if several and "," in text:
                raise InputError(f"{option} takes one value here", hint=f"kvcalc {several} takes several") from None
            raise

    return parse


def _counts(option: str) -> Callable[[str], Sequence[int]]:
    """A parser of counts with commas between them, or a range."""
    return lambda text: parse_counts(text, option)


def _size(option: str) -> Callable[[str], int]:
    """A parser of a number of bytes."""
    return lambda text: parse_bytes(text, option)


def _context(text: str) -> int:
    return OWN_CONTEXT if text.strip() == "max" else _count("--context", "sweep")(text)


def _contexts(text: str) -> Sequence[int]:
    if "max" not in text.split(","):
        return parse_counts(text, "--context")
    parts = [part for part in text.split(",") if part != "max"]
    return [*(parse_counts(",".join(parts), "--context") if parts else ()), OWN_CONTEXT]


def _names(option: str) -> Callable[[str], Sequence[str]]:
    """A parser of names with commas between them; an empty one is a mistake."""

    def parse(text: str) -> Sequence[str]:
        parts = [part.strip() for part in text.split(",")]
        if not all(parts):
            raise InputError(f"{option} has an empty part in {quote(text)}", hint="write a,b,c")
        return parts

    return parse


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


def option(
    names: str,
    metavar: str,
    says: str,
    parse: Callable[[str], object] | None = None,
    default: str | bool = True,
    offer: Callable[..., list[str]] | None = None,
) -> Any:
    """An option with a value: its names, and how its value is called, explained and read.

    Args:
        default: how the default is shown, where it does not speak for itself.
        offer: what a shell completes.
    """
    parser = None if parse is None else reads(parse)
    return typer.Option(
        *names.split(), metavar=metavar, help=says, parser=parser, show_default=default, autocompletion=offer
    )


_OWN = "the model's own"
_CONTEXT, _CONTEXT_SAYS = "--context -c", "Tokens in the cache of one sequence; k is 1024."
_BATCH, _TP, _ENGINE = "--batch-size -b", "--tensor-parallel-size -tp", "--engine -e"
_KV, _WEIGHTS = "--kv-cache-dtype", "--weights-dtype"
_TP_SAYS = "Tensor parallel: devices that share every layer"
_KV_SAYS = "Format of K and V, or K/V: bf16, fp8, q8_0, q8_0/q4_0. Default: the engine's own."
_BATCH_COUNT, _TP_COUNT = _count("--batch-size", "compare"), _count("--tensor-parallel-size", "compare")

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
Context = Annotated[int, option(_CONTEXT, "TOKENS", _CONTEXT_SAYS, _context, _OWN)]
#: Without a default: where it is left out, the longest that fits is asked for.
OptionalContext = Annotated[int | None, option(_CONTEXT, "TOKENS", _CONTEXT_SAYS, _context)]
Contexts = Annotated[Sequence[int], option(_CONTEXT, "LIST", "Contexts: 1k,4k,32k or 8k..128k/8k.", _contexts, _OWN)]
BatchSize = Annotated[int, option(_BATCH, "COUNT", "Sequences.", _BATCH_COUNT)]
OptionalBatchSize = Annotated[int | None, option(_BATCH, "COUNT", "Sequences.  [default: 1]", _BATCH_COUNT)]
BatchSizes = Annotated[Sequence[int], option(_BATCH, "LIST", "Sequences: 1,4,16.", _counts("--batch-size"), "1")]
KVCacheDtype = Annotated[str | None, option(_KV, "FORMAT", _KV_SAYS, one_name(_KV), offer=complete.dtypes)]
KVCacheDtypes = Annotated[
    Sequence[str] | None,
    option(_KV, "LIST", "Formats of K and V: bf16,fp8. Default: the engine's own.", _names(_KV), offer=complete.dtypes),
]
WeightsDtype = Annotated[
    str | None,
    option(
        _WEIGHTS,
        "FORMAT",
        "Format of the weights. Default: as the model ships.",
        one_name(_WEIGHTS),
        offer=complete.dtypes,
    ),
]
WeightsDtypes = Annotated[
    Sequence[str] | None,
    option(
        _WEIGHTS,
        "LIST",
        "Formats of the weights: bf16,fp8,q4_k_m. Default: as the model ships.",
        _names(_WEIGHTS),
        offer=complete.dtypes,
    ),
]
TensorParallelSize = Annotated[int, option(_TP, "COUNT", f"{_TP_SAYS}.", _TP_COUNT)]
OptionalTensorParallelSize = Annotated[int | None, option(_TP, "COUNT", f"{_TP_SAYS}.  [default: 1]", _TP_COUNT)]
TensorParallelSizes = Annotated[
    Sequence[int], option(_TP, "LIST", f"{_TP_SAYS}: 1,2,4.", _counts("--tensor-parallel-size"), "1")
]
EngineName = Annotated[
    str,
    option(
        _ENGINE,
        "ENGINE",
        "Whose rules apply, with a version if you like: vllm==0.25.1.",
        one_name("--engine"),
        offer=complete.engines,
    ),
]
EngineNames = Annotated[
    Sequence[str],
    option(
        _ENGINE,
        "LIST",
        "Engines: ideal,vllm, or vllm==0.25.1,vllm==0.33.0.",
        _names("--engine"),
        "ideal",
        complete.engines,
    ),
]
EngineOptions = Annotated[
    list[str] | None,
    option(
        "--engine-option -E",
        "KEY=VALUE",
        "An option of the engine by its own name; vllm.block_size=32 among several engines.",
        offer=complete.engine_options,
    ),
]
EncoderTokens = Annotated[
    int,
    option(
        "--encoder-tokens",
        "TOKENS",
        "Length of the encoder's output, for cross-attention.",
        _count("--encoder-tokens", least=0),
    ),
]
Draft = Annotated[
    str | None,
    option(
        "--draft",
        "MODEL",
        "The model that proposes tokens, or mtp: the model's own prediction layers.",
        offer=complete.models,
    ),
]
TextOnly = Annotated[
    bool, typer.Option("--text-only", help="Leave out the encoders of images and sound that the checkpoint carries.")
]
Memory = Annotated[int | None, option("--memory", "SIZE", "Memory of one device: 24GiB, 80GB.", _size("--memory"))]
Device = Annotated[
    str | None, option("--device", "NAME", "A device by name; see 'kvcalc devices'.", offer=complete.devices)
]
Devices = Annotated[str | None, option("--devices", "COUNTxNAME", "Devices: 8xh100-80gb.", offer=complete.devices)]
KVMemory = Annotated[
    int | None,
    option("--kv-memory", "SIZE", "Memory of the KV cache alone, on one device.", _size("--kv-memory")),
]
Reserve = Annotated[int, option("--reserve", "SIZE", "Memory of the device to keep free.", _size("--reserve"), "0B")]
GpuMemoryUtilization = Annotated[
    Fraction | None,
    option(
        "--gpu-memory-utilization",
        "PART",
        "Part of the device that the engine takes, 0.9 or 90%. Default: the engine's own.",
        _utilization,
    ),
]
_FORMAT = "--format -f"
Format = Annotated[
    str | None,
    option(
        _FORMAT,
        "FORMAT",
        "table, wide, json, csv, markdown or html. Default: by the suffix of -o.",
        _format,
        offer=complete.formats,
    ),
]
CheckFormat = Annotated[
    str | None,
    option(
        _FORMAT,
        "FORMAT",
        "table, wide, json, csv, markdown, html, junit or github. Default: by the suffix of -o.",
        _format,
        offer=complete.formats,
    ),
]
Output = Annotated[
    str | None,
    option("--output -o", "FILE", "Write to a file; its suffix decides the format: x.json, x.html, x.png."),
]
Plot = Annotated[str | None, option("--plot", "FILE", "Draw it too: FILE.svg, FILE.png or FILE.pdf.")]
Explain = Annotated[bool, typer.Option("--explain", help="Show the formula, and the formula with the numbers.")]
UnitsOption = Annotated[
    Units, option("--units", "UNITS", "binary (GiB), decimal (GB) or bytes.", _units, offer=complete.units)
]


def engine_name(says: str) -> Any:
    """``--engine`` without a default: ``says`` is whose rules apply where it is left out."""
    return option(
        _ENGINE, "ENGINE", f"Whose rules apply. Default: {says}.", one_name("--engine"), offer=complete.engines
    )


#: Where it is left out, a log says which.
OptionalEngineName = Annotated[str | None, engine_name("the log's")]
