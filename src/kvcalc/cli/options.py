"""The options that commands share, each defined once."""

from __future__ import annotations

from typing import Annotated

import typer

from kvcalc.cli import complete

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A preset, spec.toml, config.json, model.gguf or hf:org/name; then @LAYOUT.",
        autocompletion=complete.models,
    ),
]
Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...",
        help="Presets, files or hf:org/name, each optionally with @LAYOUT.",
        autocompletion=complete.models,
    ),
]
ContextTokens = Annotated[
    str,
    typer.Option("--context", "-c", "--max-model-len", help="Tokens in the cache of one sequence; k is 1024."),
]
Contexts = Annotated[
    str, typer.Option("--context", "-c", "--max-model-len", help="Contexts with commas between them: 1k,4k,32k.")
]
BatchSize = Annotated[str, typer.Option("--batch-size", "-b", help="Sequences.")]
KVCacheDtype = Annotated[
    str | None,
    typer.Option(
        help="Format of K and V, or K/V: bf16, fp8, q8_0, q8_0/q4_0. Default: the engine's own.",
        autocompletion=complete.dtypes,
    ),
]
KVCacheDtypes = Annotated[
    str | None,
    typer.Option(
        "--kv-cache-dtype", help="Formats of K and V; several with commas between them.", autocompletion=complete.dtypes
    ),
]
WeightsDtype = Annotated[
    str | None, typer.Option(help="Format of the weights. Default: the model's own.", autocompletion=complete.dtypes)
]
TensorParallelSize = Annotated[
    str, typer.Option("--tensor-parallel-size", "-tp", help="Devices that share every layer.")
]
OptionalTensorParallelSize = Annotated[
    str | None,
    typer.Option("--tensor-parallel-size", "-tp", help="Devices that share every layer.  [default: 1]"),
]
EngineName = Annotated[
    str, typer.Option("--engine", help="Whose rules apply; see 'kvcalc engines'.", autocompletion=complete.engines)
]
EngineNames = Annotated[
    str, typer.Option("--engine", help="Engines with commas between them: ideal,vllm.", autocompletion=complete.engines)
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
EncoderTokens = Annotated[str, typer.Option(help="Length of the encoder's output, for cross-attention.")]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="MODEL",
        help="The model that proposes tokens, or mtp: the model's own prediction layers.",
        autocompletion=complete.models,
    ),
]
OptionalContext = Annotated[
    str | None,
    typer.Option("--context", "-c", "--max-model-len", help="Tokens in the cache of one sequence; k is 1024."),
]
OptionalBatchSize = Annotated[str | None, typer.Option("--batch-size", "-b", help="Sequences.  [default: 1]")]
Memory = Annotated[str | None, typer.Option("--memory", help="Memory of one device: 24GiB, 80GB.")]
Device = Annotated[
    str | None,
    typer.Option("--device", help="A device by name; see 'kvcalc presets'.", autocompletion=complete.devices),
]
Reserve = Annotated[str, typer.Option("--reserve", help="Memory of the device to keep free.")]
GpuMemoryUtilization = Annotated[
    str | None,
    typer.Option(
        "--gpu-memory-utilization", help="Part of the device that the engine takes. Default: the engine's own."
    ),
]
Format = Annotated[
    str, typer.Option("--format", help="table, json, csv, markdown or html.", autocompletion=complete.formats)
]
Output = Annotated[str | None, typer.Option("--output", "-o", help="Write to a file instead of standard output.")]
Plot = Annotated[
    str | None, typer.Option("--plot", metavar="FILE", help="Draw it too: FILE.svg, FILE.png or FILE.pdf.")
]
Explain = Annotated[bool, typer.Option("--explain", help="Show the formula, and the formula with the numbers.")]
UnitsOption = Annotated[
    str, typer.Option("--units", help="binary (GiB), decimal (GB) or bytes.", autocompletion=complete.units)
]
