"""``kvcalc devices [WORD]``: the devices that ``--device`` knows, with their memory as a program sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kvcalc.cli import complete, options, question
from kvcalc.errors import InputError, quote
from kvcalc.names import within, words
from kvcalc.report.document import Column, Document, Section
from kvcalc.units import counted

if TYPE_CHECKING:
    from kvcalc.device import Device
    from kvcalc.report.shapes import DeviceRecord

EXAMPLES = "kvcalc devices\nkvcalc devices h100\nkvcalc devices apple --json"


def devices(
    word: Annotated[
        str | None,
        typer.Argument(metavar="WORD", help="Only devices with these words.", autocompletion=complete.devices),
    ] = None,
    format: options.Format = None,  # noqa: A002 - the option's name
    output: options.Output = None,
    units: options.UnitsOption = "binary",
) -> int:
    """Devices with their memory, sources, aliases."""
    from kvcalc.sources.devices import devices as all_devices

    target = question.target(format, output)
    rows = [_record(device) for device in all_devices() if word is None or _has(device, word)]
    if word is not None and not rows:
        raise InputError(f"no device with {quote(word)}", hint="see 'kvcalc devices'")
    columns = (
        Column("device", lambda row: row["name"]),
        Column("memory", lambda row: row["memory_bytes"], "bytes"),
        Column("", lambda row: "" if row["measured"] else "not measured"),
        Column("what it is", lambda row: row["title"], drop_order=1),
        Column("where the figure comes from", lambda row: row["source"], drop_order=2),
        Column("other names", lambda row: ", ".join(row["aliases"]), drop_order=3),
    )
    named = "" if word is None else f" with {word!r}"
    document = Document(
        title=f"{counted(len(rows), 'device')}{named}",
        assumptions=("memory as a program sees it: CUDA's or ROCm's total, Metal's working set",),
        sections=(Section(columns, rows),),
        records=rows,
        schema="devices",
        units=units,
    )
    target.write(document)
    return 0


def _has(device: Device, word: str) -> bool:
    asked = words(word)
    return any(within(asked, words(name)) for name in (device.name, device.title, *device.aliases))


def _record(device: Device) -> DeviceRecord:
    return {
        "name": device.name,
        "title": device.title,
        "memory_bytes": device.memory_bytes,
        "measured": device.measured,
        "source": device.source,
        "unified": device.unified,
        "aliases": list(device.aliases),
    }
