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
    from kvcalc.sources.devices import devices as all_devices

    target = question.target(format, output)
    found = [device for device in all_devices() if word is None or _has(device, word)]
    if word is not None and not found:
        raise InputError(f"no device with {quote(word)}", hint="see 'kvcalc devices'")
    columns = (
        Column("device", lambda device: device.name),
        Column("memory", lambda device: device.memory_bytes, "bytes"),
        Column("", lambda device: "" if device.measured else "not measured"),
        Column("what it is", lambda device: device.title, drop_order=1),
        Column("where the figure comes from", lambda device: device.source, drop_order=2),
        Column("other names", lambda device: ", ".join(device.aliases), drop_order=3),
    )
    named = "" if word is None else f" with {word!r}"
    document = Document(
        title=f"{counted(len(found), 'device')}{named}",
        assumptions=("memory as a program sees it: CUDA's or ROCm's total, Metal's working set",),
        sections=(Section(columns, found),),
        records=[device.model_dump(mode="json") for device in found],
        schema="devices",
        units=units,
    )
    target.write(document)
    return 0


def _has(device: Device, word: str) -> bool:
    asked = words(word)
    return any(within(asked, words(name)) for name in (device.name, device.title, *device.aliases))
