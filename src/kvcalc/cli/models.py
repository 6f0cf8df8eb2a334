"""``kvcalc models [NAME]``: the models that are shipped, one of them, or one as a spec file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvcalc.cli import complete, options, question
from kvcalc.names import within, words
from kvcalc.report.files import write

EXAMPLES = (
    "kvcalc models\n"
    "kvcalc models gemma\n"
    "kvcalc models --kind sliding\n"
    "kvcalc models gemma-3-27b\n"
    "kvcalc models gemma-3-1b --spec -o my-model.toml"
)


def models(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="Show this preset, or list those with these words.", autocompletion=complete.models
        ),
    ] = None,
    search: Annotated[str | None, typer.Option(help="Only presets with this word in their name.")] = None,
    family: Annotated[str | None, typer.Option(help="Only presets of this family, such as gemma.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only presets with layers of this kind, such as sliding.")] = None,
    spec: Annotated[
        bool, typer.Option("--spec", help="Write NAME, a preset or a config.json, as a spec file that can be edited.")
    ] = False,
    format: options.Format = None,  # noqa: A002 - the option's name
    output: options.Output = None,
) -> int:
    from kvcalc.cli import models_tables as tables
    from kvcalc.sources import shipped
    from kvcalc.sources.preset import find_preset, preset_text

    if spec:
        write([tables.spec(name)], None if output is None else Path(output))
        return 0
    target = question.target(format, output)
    found = None if name is None else find_preset(name)
    alike = [] if name is None else [each for each in shipped.names("models") if within(words(name), words(each))]
    if found is not None and (found == name or len(alike) < 2):  # 'gemma' is a tag of Ollama's, and a word of many
        target.write(tables.one(found))
        return 0
    rows = [row for row in tables.rows_with(name) if tables.is_wanted(row, search, family, kind)]
    if name is not None and not rows:
        preset_text(name)  # says what was probably meant
    target.write(tables.several(rows))
    return 0
