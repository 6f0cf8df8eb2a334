"""The tables of ``kvcalc models``, and the spec file of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kvcalc.architecture import is_local
from kvcalc.errors import InputError
from kvcalc.footprints import kv_cache_bytes
from kvcalc.names import within, words
from kvcalc.report.document import Column, Document, Section
from kvcalc.sources import shipped
from kvcalc.sources.checkpoint import LARGEST_CONFIG, parse_config
from kvcalc.sources.config import config_to_spec
from kvcalc.sources.files import read_bytes
from kvcalc.sources.preset import export_spec, load_preset, preset_tables, preset_text
from kvcalc.units import counted
from kvcalc.weights import weights

if TYPE_CHECKING:
    from kvcalc.report.shapes import PresetRecord


def spec(name: str | None) -> str:
    """A preset's file, or the model of a config.json as one."""
    if name is None:
        raise InputError("--spec needs a model", hint="kvcalc models gemma-3-1b --spec")
    if not name.endswith(".json"):
        return preset_text(name)
    path = Path(name)
    config = parse_config(read_bytes(path, LARGEST_CONFIG), name)
    return export_spec(config_to_spec(config, path.resolve().parent.name))


def rows_with(word: str | None) -> list[PresetRecord]:
    """The presets with all words of a name."""
    asked = words(word or "")
    rows = [_record(name) for name in shipped.names("models") if within(asked, words(name))]
    return sorted(rows, key=lambda row: (str(row["family"]), row["name"]))


def is_wanted(row: PresetRecord, search: str | None, family: str | None, kind: str | None) -> bool:
    """Whether a preset is one of those that the options ask for."""
    return (
        (search is None or search.casefold() in row["name"])
        and (family is None or family.casefold() == row["family"])
        and (kind is None or kind.casefold() in row["kinds"])
    )


def several(rows: list[PresetRecord]) -> Document:
    """Presets beside each other."""
    columns = (
        Column("family", lambda row: row["family"], drop_order=2),
        Column("model", lambda row: row["name"]),
        Column("layers", lambda row: row["layout"]),
        Column("local:global", lambda row: row["ratio"], drop_order=4),
        Column("window", lambda row: ", ".join(f"{window:,}" for window in row["windows"]), drop_order=5),
        Column("parameters", lambda row: row["parameters"], "count"),
        Column("", lambda row: "" if row["exact_parameters"] else "estimated", drop_order=1),
        Column("B per token", lambda row: row["bytes_per_token"], "count"),
        Column("longest context", lambda row: row["max_context"], "count", drop_order=3),
    )
    return Document(
        title=counted(len(rows), "model"),
        assumptions=("bytes per token: the layers whose cache still grows at the model's longest context", "bfloat16"),
        sections=(Section(columns, rows),),
        records=rows,
        schema="models",
    )


def _record(name: str) -> PresetRecord:
    """What is told of a preset; the growth is the report's accounting at bfloat16, beyond the model's own context."""
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
        "exact_parameters": model.provenance.exact_parameters,
        "bytes_per_token": (sizes[1] - sizes[0]) // longest,
        "max_context": model.max_context,
        "dtype": model.dtype,
        "hf_ids": list(tables.get("hf_ids", ())),
        "ollama_tags": list(tables.get("ollama_tags", ())),
        "sources": list(model.provenance.sources),
        "notes": list(model.provenance.notes),
    }


def one(name: str) -> Document:
    """One preset: its layers in order, its numbers, the names it answers to, and where the numbers come from."""
    row, model = _record(name), load_preset(name)
    marks = {index: _mark(layer.cache.kind, is_local(layer.cache)) for index, layer in enumerate(model.layers)}
    counted = f"{row['parameters']:,}" + ("" if row["exact_parameters"] else " (estimated)")
    if row["active_parameters"] != row["parameters"]:
        counted += f", {row['active_parameters']:,} of them active"
    longest = "not stated" if row["max_context"] is None else f"{row['max_context']:,} tokens"
    facts = [
        ("layers", model.layout),
        ("in order", "".join(marks[index] for index in model.order)),
        ("", "█ keeps the whole context   ▒ a part of it   ░ a state   · nothing"),
        ("parameters", counted),
        ("growth", f"{row['bytes_per_token']:,} bytes per token at bfloat16, beyond every window"),
        ("longest context", longest),
        ("stored as", model.dtype),
        *(("on the Hub", each) for each in row["hf_ids"]),
        *(("Ollama's tag", each) for each in row["ollama_tags"]),
        *(("source", source) for source in row["sources"]),
    ]
    columns = (Column("", lambda fact: fact[0]), Column("", lambda fact: fact[1]))
    return Document(name, (), (Section(columns, facts),), [row], "models", notes=model.provenance.notes)


def _mark(kind: str, local: bool) -> str:
    if kind in ("none", "shared"):
        return "·"
    return "░" if kind == "state" else "▒" if local or kind == "compressed" else "█"
