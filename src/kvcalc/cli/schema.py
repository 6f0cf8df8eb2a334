"""``kvcalc schema [NAME]``: the JSON Schemas of what kvcalc writes and reads, made when they are asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kvcalc.cli import complete, options
from kvcalc.report.files import write

EXAMPLES = "kvcalc schema\nkvcalc schema show\nkvcalc schema spec -o spec.schema.json"


def schema(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="A command, or spec: a model's file.", autocompletion=complete.schemas),
    ] = None,
    output: options.Output = None,
) -> int:
    from kvcalc.cli.schemas import schema_names, schema_of

    if name is None:
        text = "".join(f"{each}\n" for each in schema_names())
    else:
        text = json.dumps(schema_of(name), indent=1) + "\n"
    write([text], None if output is None else Path(output))
    return 0
