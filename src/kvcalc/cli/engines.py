"""``kvcalc engines [NAME]``: whose rules are known, and one engine's options, formula and sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvcalc.cli import complete, options, question
from kvcalc.report.document import Column, Document, Section

if TYPE_CHECKING:
    from kvcalc.engines.base import Engine

EXAMPLES = "kvcalc engines\nkvcalc engines vllm"


def engines(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Show this engine and its options.", autocompletion=complete.engines),
    ] = None,
    format: options.Format = None,  # noqa: A002 - the option's name
    output: options.Output = None,
) -> int:
    from kvcalc.engines import REGISTRY, engine_class, engine_name

    target = question.target(format, output)
    if name is not None:
        target.write(_one(engine_class(engine_name(name))))
        return 0
    rows = [_record(engine_class(each)) for each in REGISTRY]
    columns = (
        Column("engine", lambda row: row["name"]),
        Column("follows", lambda row: row["follows"]),
        Column("what it prices", lambda row: row["summary"]),
        Column("evidence", lambda row: row["evidence"], drop_order=1),
    )
    target.write(Document("Engines", (), (Section(columns, rows),), rows, "engines"))
    return 0


def _one(engine: type[Engine]) -> Document:
    """Everything that is known of one engine."""
    row = _record(engine)
    facts = [("follows", row["follows"]), ("evidence", row["evidence"])]
    if row["platforms"]:
        facts.append(("runs on", ", ".join(row["platforms"])))
    facts += [("formula", line) for line in row["formula"].splitlines()]
    facts += [("source", source) for source in row["sources"]]
    facts += [("not modelled", left_out) for left_out in row["not_modelled"]]
    two = (Column("", lambda fact: fact[0]), Column("", lambda fact: fact[1]))
    option_columns = (
        Column("option", lambda option: option["name"]),
        Column("default", lambda option: "none" if option["default"] is None else option["default"]),
        Column("meaning", lambda option: option["description"]),
    )
    sections = [Section(two, facts)]
    if row["options"]:
        sections.append(Section(option_columns, row["options"], "Options (-E KEY=VALUE)"))
    return Document(f"{row['name']}: {row['summary']}", (), tuple(sections), [row], "engines")


#: What an engine says of itself, by its own names and those of the JSON.
_STATED = ("name", "summary", "follows", "evidence", "formula", "sources", "not_modelled")


def _record(engine: type[Engine]) -> dict[str, Any]:
    return {
        **{each: getattr(engine, each) for each in _STATED},
        "platforms": sorted(engine.platforms),
        "options": [vars(option) for option in engine.option_help()],
    }
