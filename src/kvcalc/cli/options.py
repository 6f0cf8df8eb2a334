"""The options that commands share, each defined once: its names, its help, and how its text becomes a value.

A parser is a function of kvcalc's own, from a text and the option's name, so that a wrong value is refused in the one
shape of an error. Options that go together are the fields of a class (:class:`Served`, :class:`Shown`), which a command
takes as one parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from fractions import Fraction
from functools import partial
from inspect import Parameter, Signature, signature
from typing import Annotated, Any

import typer

from kvcalc.cli import complete
from kvcalc.errors import InputError, did_you_mean, quote
from kvcalc.report.document import Units
from kvcalc.report.formats import FORMATS, format_names
from kvcalc.units import parse_bytes, parse_count, parse_counts

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


def _one_count(text: str, option: str, several: str) -> int:
    """One count, for a command that answers for one; ``several`` is the command that takes a list."""
    try:
        return parse_count(text, option)
    except InputError:
        if "," in text:
            raise InputError(f"{option} takes one value here", hint=f"kvcalc {several} takes several") from None
        raise


def _context(text: str, option: str) -> int:
    return OWN_CONTEXT if text.strip() == "max" else _one_count(text, option, "sweep")


def _contexts(text: str, option: str) -> Sequence[int]:
    if "max" not in text.split(","):
        return parse_counts(text, option)
    parts = [part for part in text.split(",") if part != "max"]
    return [*(parse_counts(",".join(parts), option) if parts else ()), OWN_CONTEXT]


def _names(text: str, option: str) -> Sequence[str]:
    """Names with commas between them; an empty one is a mistake."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise InputError(f"{option} has an empty part in {quote(text)}", hint="write a,b,c")
    return parts


def _one_name(text: str, option: str) -> str:
    """One name, for a command that answers for one."""
    first, *others = _names(text, option)
    if others:
        raise InputError(f"{option} takes one value here", hint="kvcalc compare takes several")
    return first


def _format(text: str, _: str) -> str:
    name = text.strip().casefold()
    name = _OTHER_FORMATS.get(name, name)
    if name not in FORMATS:
        hint = did_you_mean(name, FORMATS) or f"known formats: {', '.join(FORMATS)}"
        raise InputError(f"unknown format {quote(text)}", hint=hint)
    return name


def _units(text: str, _: str) -> Units:
    found = _UNITS.get(text.strip().casefold())
    if found is None:
        hint = did_you_mean(text, ("binary", "decimal", "bytes")) or "known: binary, decimal, bytes"
        raise InputError(f"unknown --units {quote(text)}", hint=hint)
    return found


def _utilization(text: str, _: str) -> Fraction:
    from kvcalc.fitting import parse_utilization

    return parse_utilization(text)


def option(
    names: str,
    metavar: str,
    says: str,
    parse: Callable[[str, str], object] | None = None,
    default: str | bool = True,
    offer: Callable[..., list[str]] | None = None,
) -> Any:
    """An option with a value: its names, and how its value is called, explained and read.

    Args:
        parse: what a text means, and the option's first name for what it refuses; Typer asks about defaults too, which
            are values already.
        default: how the default is shown, where it does not speak for itself.
        offer: what a shell completes.
    """
    flags = names.split()

    def read(value: object) -> object:
        return parse(value, flags[0]) if parse is not None and isinstance(value, str) else value

    parser = None if parse is None else read
    return typer.Option(*flags, metavar=metavar, help=says, parser=parser, show_default=default, autocompletion=offer)


def model(metavar: str, says: str) -> Any:
    """An argument that is a model, or several."""
    return typer.Argument(metavar=metavar, help=says, autocompletion=complete.models)


def engine_name(says: str) -> Any:
    """``--engine`` without a default: ``says`` is whose rules apply where it is left out."""
    return option(_ENGINE, "ENGINE", f"Whose rules apply. Default: {says}.", _one_name, offer=complete.engines)


def _formats(command: str) -> Any:
    """``--format`` of a command, with the formats that show its answers."""
    *names, last = format_names(command)
    says = f"{', '.join(names)} or {last}. Default: by the suffix of -o."
    return option("--format -f", "FORMAT", says, _format, offer=complete.formats)


_OWN = "the model's own"
_CONTEXT, _BATCH, _TP, _ENGINE = "--context -c", "--batch-size -b", "--tensor-parallel-size -tp", "--engine -e"
_KV = "--kv-cache-dtype"
_CONTEXT_SAYS = "Tokens in the cache of one sequence; k is 1024."
_TP_SAYS = "Tensor parallel: devices that share every layer"
_KV_SAYS, _OWN_KV = "Format of K and V, or K/V: bf16, fp8, q8_0, q8_0/q4_0", "Default: the engine's own."
_count = partial(_one_count, several="compare")

Model = Annotated[
    str, model("MODEL", "A preset, Hub id, spec.toml, config.json, model.gguf or hf:org/name; then @LAYOUT.")
]
Models = Annotated[
    list[str], model("MODEL...", "Presets, Hub ids, files or hf:org/name, each optionally with @LAYOUT.")
]
Context = Annotated[int, option(_CONTEXT, "TOKENS", _CONTEXT_SAYS, _context, _OWN)]
#: Without a default: where it is left out, the longest that fits is asked for.
OptionalContext = Annotated[int | None, option(_CONTEXT, "TOKENS", _CONTEXT_SAYS, _context)]
Contexts = Annotated[Sequence[int], option(_CONTEXT, "LIST", "Contexts: 1k,4k,32k or 8k..128k/8k.", _contexts, _OWN)]
BatchSize = Annotated[int, option(_BATCH, "COUNT", "Sequences.", _count)]
OptionalBatchSize = Annotated[int | None, option(_BATCH, "COUNT", "Sequences.  [default: 1]", _count)]
BatchSizes = Annotated[Sequence[int], option(_BATCH, "LIST", "Sequences: 1,4,16.", parse_counts, "1")]
KVCacheDtype = Annotated[str | None, option(_KV, "FORMAT", f"{_KV_SAYS}. {_OWN_KV}", _one_name, offer=complete.dtypes)]
_SEVERAL = "in compare, sweep and search a list: bf16,fp8."
KVCacheDtypes = Annotated[
    Sequence[str] | None,
    option(_KV, "FORMAT", f"{_KV_SAYS}; {_SEVERAL} {_OWN_KV}", _names, offer=complete.dtypes),
]
_WEIGHTS_SAYS = f"Format of the weights: fp8, q4_k_m; {_SEVERAL} Default: as the model ships."
WeightsDtypes = Annotated[
    Sequence[str] | None, option("--weights-dtype", "FORMAT", _WEIGHTS_SAYS, _names, offer=complete.dtypes)
]
TensorParallelSize = Annotated[int, option(_TP, "COUNT", f"{_TP_SAYS}.", _count)]
OptionalTensorParallelSize = Annotated[int | None, option(_TP, "COUNT", f"{_TP_SAYS}.  [default: 1]", _count)]
TensorParallelSizes = Annotated[Sequence[int], option(_TP, "LIST", f"{_TP_SAYS}: 1,2,4.", parse_counts, "1")]
_ONE_ENGINE = "Whose rules apply, with a version if you like: vllm==0.25.1."
_ENGINES = "Engines: ideal,vllm, or vllm==0.25.1,vllm==0.33.0."
EngineName = Annotated[str, option(_ENGINE, "ENGINE", _ONE_ENGINE, _one_name, offer=complete.engines)]
EngineNames = Annotated[Sequence[str], option(_ENGINE, "LIST", _ENGINES, _names, "ideal", complete.engines)]
#: Where it is left out, a log says which.
OptionalEngineName = Annotated[str | None, engine_name("the log's")]
_OF_AN_ENGINE = "An option of the engine by its own name; vllm.block_size=32 among several engines."
EngineOptions = Annotated[
    list[str] | None, option("--engine-option -E", "KEY=VALUE", _OF_AN_ENGINE, offer=complete.engine_options)
]
EncoderTokens = Annotated[
    int,
    option(
        "--encoder-tokens",
        "TOKENS",
        "Length of the encoder's output, for cross-attention.",
        partial(parse_count, least=0),
    ),
]
_DRAFT = "The model that proposes tokens, or mtp: the model's own prediction layers."
Draft = Annotated[str | None, option("--draft", "MODEL", _DRAFT, offer=complete.models)]
TextOnly = Annotated[
    bool, typer.Option("--text-only", help="Leave out the encoders of images and sound that the checkpoint carries.")
]
Memory = Annotated[int | None, option("--memory", "SIZE", "Memory of one device: 24GiB, 80GB.", parse_bytes)]
Device = Annotated[
    str | None, option("--device", "NAME", "A device by name; see 'kvcalc devices'.", offer=complete.devices)
]
Devices = Annotated[str | None, option("--devices", "COUNTxNAME", "Devices: 8xh100-80gb.", offer=complete.devices)]
KVMemory = Annotated[
    int | None, option("--kv-memory", "SIZE", "Memory of the KV cache alone, on one device.", parse_bytes)
]
Reserve = Annotated[int, option("--reserve", "SIZE", "Memory of the device to keep free.", parse_bytes, "0B")]
_PART = "Part of the device that the engine takes, 0.9 or 90%. Default: the engine's own."
GpuMemoryUtilization = Annotated[Fraction | None, option("--gpu-memory-utilization", "PART", _PART, _utilization)]
Format = Annotated[str | None, _formats("show")]
CheckFormat = Annotated[str | None, _formats("check")]
Output = Annotated[
    str | None, option("--output -o", "FILE", "Write to a file; its suffix decides the format: x.json, x.html, x.png.")
]
Plot = Annotated[str | None, option("--plot", "FILE", "Draw it too: FILE.svg, FILE.png or FILE.pdf.")]
Explain = Annotated[bool, typer.Option("--explain", help="Show the formula, and the formula with the numbers.")]
UnitsOption = Annotated[
    Units, option("--units", "UNITS", "binary (GiB), decimal (GB) or bytes.", _units, offer=complete.units)
]


@dataclass(frozen=True)
class Served:
    """How a model is served; a new option is a field here. Every combination of the formats is a setup of its own."""

    kv_cache_dtype: KVCacheDtypes = None
    weights_dtype: WeightsDtypes = None
    engine_option: EngineOptions = None
    encoder_tokens: EncoderTokens = 0
    draft: Draft = None
    text_only: TextOnly = False

    def of_one(self) -> Served:
        """The same, for a command that answers for one setup.

        Raises:
            InputError: several formats.
        """
        for name in ("kv_cache_dtype", "weights_dtype"):
            if len(getattr(self, name) or ()) > 1:
                flag = f"--{name.replace('_', '-')}"
                raise InputError(f"{flag} takes one value here", hint="kvcalc compare takes several")
        return self


@dataclass(frozen=True)
class Room:
    """The memory of one device, and how much of it an engine has."""

    memory: Memory = None
    device: Device = None
    reserve: Reserve = 0
    gpu_memory_utilization: GpuMemoryUtilization = None


@dataclass(frozen=True)
class Shown:
    """Where an answer goes, and how much of it is shown."""

    format: Format = None
    output: Output = None
    plot: Plot = None
    explain: Explain = False
    units: UnitsOption = "binary"


def spelled_out(command: Callable[..., int]) -> Callable[..., int]:
    """A command as Typer reads it: in place of a parameter that is a class of options, each of those options.

    Their defaults are the class's, or those of the object that is the parameter's own default.
    """
    bundles: dict[str, type[Any]] = {}
    parameters: list[Parameter] = []
    for name, each in signature(command, eval_str=True).parameters.items():
        if isinstance(each.annotation, type) and is_dataclass(each.annotation):
            bundles[name] = each.annotation
            usual = {} if each.default is Parameter.empty else vars(each.default)
            fields = signature(each.annotation, eval_str=True).parameters
            parameters += (field.replace(default=usual.get(of, field.default)) for of, field in fields.items())
        else:
            parameters.append(each)

    def called(**values: object) -> int:
        for name, bundle in bundles.items():
            values[name] = bundle(**{each: values.pop(each) for each in bundle.__dataclass_fields__})
        return command(**values)

    in_any_order = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in parameters]
    vars(called)["__signature__"] = Signature(in_any_order)
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    return called
