"""``kvcalc presets``: the models that are shipped."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kvcalc.cli import options
from kvcalc.cli.command import TextCommand, TextGroup

PresetName = Annotated[str, typer.Argument(metavar="NAME", help="A preset, as 'kvcalc presets' lists it.")]
app = typer.Typer(
    help="List the model presets, show one, or export one as a spec file.",
    epilog="kvcalc presets --kind sliding\nkvcalc presets show gemma-3-27b\nkvcalc presets export gemma-3-1b",
    rich_markup_mode=None,
    cls=TextGroup,
)


@app.callback(invoke_without_command=True)
def presets(
    context: typer.Context,
    search: Annotated[str | None, typer.Option(help="Only presets with this word in their name.")] = None,
    family: Annotated[str | None, typer.Option(help="Only presets of this family, such as gemma.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only presets with layers of this kind, such as sliding.")] = None,
    format: options.Format = "table",  # noqa: A002 - the option's name
    output: options.Output = None,
) -> int:
    """List the presets with layout, parameters and bytes per token."""
    if context.invoked_subcommand is not None:
        return 0
    from kvcalc.cli import question
    from kvcalc.report.document import Column, Document, Section

    rows = [row for row in _rows() if _wanted(row, search, family, kind)]
    columns = (
        Column("family", lambda row: row["family"], drop_order=2),
        Column("preset", lambda row: row["name"]),
        Column("layers", lambda row: row["layout"]),
        Column("local:global", lambda row: row["ratio"], drop_order=4),
        Column("window", lambda row: ", ".join(f"{window:,}" for window in row["windows"]), drop_order=5),
        Column("parameters", lambda row: row["parameters"], "count"),
        Column("", lambda row: "" if row["exact_weights"] else "estimated", drop_order=1),
        Column("B per token", lambda row: row["bytes_per_token"], "count"),
        Column("made for", lambda row: row["max_context"], "count", drop_order=3),
    )
    document = Document(
        title=f"{len(rows)} model presets",
        assumptions=("bytes per token: the layers whose cache still grows at the model's longest context", "bfloat16"),
        sections=(Section(columns, rows),),
        records=rows,
        schema="presets",
    )
    question.answer(document, format, output)
    return 0


def _wanted(row: Any, search: str | None, family: str | None, kind: str | None) -> bool:
    return (
        (search is None or search.casefold() in row["name"])
        and (family is None or family.casefold() == row["family"])
        and (kind is None or kind.casefold() in row["kinds"])
    )


def _rows() -> list[dict[str, Any]]:
    from kvcalc.sources import shipped

    rows = [_row(name) for name in shipped.names("models")]
    return sorted(rows, key=lambda row: (str(row["family"]), row["name"]))


def _row(name: str) -> dict[str, Any]:
    """What is told of a preset; the growth is the report's accounting at bfloat16, beyond the model's own context."""
    from kvcalc.footprint import kv_cache_bytes
    from kvcalc.sources.preset import load_preset, preset_tables
    from kvcalc.weights import weights

    tables, model = preset_tables(name), load_preset(name)
    longest = model.max_context or 2**20
    sizes = [kv_cache_bytes(model, context=at, kv_cache_dtype="bf16") for at in (longest, 2 * longest)]
    counted = weights(model, None)
    return {
        "name": name,
        "family": tables.get("family"),
        "model_type": model.model_type,
        "layout": model.layout,
        "ratio": model.ratio,
        "windows": list(model.windows),
        "kinds": sorted({kind.kind for kind, _ in model.caches}),
        "parameters": counted.parameters,
        "active_parameters": counted.active_parameters,
        "exact_weights": counted.exact,
        "bytes_per_token": (sizes[1] - sizes[0]) // longest,
        "max_context": model.max_context,
        "dtype": model.dtype,
        "hf_id": next(iter(tables.get("hf_ids", ())), None),
        "sources": list(model.provenance.sources),
        "notes": list(model.provenance.notes),
    }


@app.command("show", cls=TextCommand)
def show_preset(
    name: PresetName,
    format: options.Format = "table",  # noqa: A002 - the option's name
    output: options.Output = None,
) -> int:
    """Show one preset: its layers in order, its numbers, and where they come from."""
    from kvcalc.architecture import is_local
    from kvcalc.cli import question
    from kvcalc.report.document import Column, Document, Section
    from kvcalc.sources.preset import load_preset

    row, model = _row(name), load_preset(name)
    marks = {index: _mark(layer.cache.kind, is_local(layer.cache)) for index, layer in enumerate(model.layers)}
    counted = f"{row['parameters']:,}" + ("" if row["exact_weights"] else " (estimated)")
    if row["active_parameters"] != row["parameters"]:
        counted += f", {row['active_parameters']:,} of them active"
    longest = "not stated" if row["max_context"] is None else f"{row['max_context']:,} tokens"
    facts = [
        ("layers", model.layout),
        ("in order", "".join(marks[index] for index in model.order)),
        ("", "█ keeps the whole context   ▒ a part of it   ░ a state   · nothing"),
        ("parameters", counted),
        ("growth", f"{row['bytes_per_token']:,} bytes a token at bfloat16, beyond every window"),
        ("made for", longest),
        ("stored as", model.dtype),
        *([("on the Hub", row["hf_id"])] if row["hf_id"] else []),
        *(("source", source) for source in row["sources"]),
    ]
    columns = (Column("", lambda fact: fact[0]), Column("", lambda fact: fact[1]))
    document = Document(name, (), (Section(columns, facts),), [row], "presets", notes=model.provenance.notes)
    question.answer(document, format, output)
    return 0


def _mark(kind: str, local: bool) -> str:
    if kind in ("none", "shared"):
        return "·"
    return "░" if kind == "state" else "▒" if local or kind == "compressed" else "█"


@app.command("export", cls=TextCommand)
def export(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A preset, or a config.json.")],
    output: options.Output = None,
) -> int:
    """Export a preset, or the model of a config.json, as a spec file that can be edited and used."""
    from pathlib import Path

    from kvcalc.report.files import write
    from kvcalc.sources.preset import export_spec, preset_text

    if name.endswith(".json"):
        from kvcalc.sources.checkpoint import LARGEST_CONFIG, parse_config
        from kvcalc.sources.config import config_to_spec
        from kvcalc.sources.files import read_bytes

        path = Path(name)
        text = export_spec(
            config_to_spec(parse_config(read_bytes(path, LARGEST_CONFIG), name), path.resolve().parent.name)
        )
    else:
        text = preset_text(name)
    write([text], None if output is None else Path(output))
    return 0
