"""``kvcalc page``: the calculator as one HTML file, for a team to host or to mail."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from kvcalc.cli import complete, options, question
from kvcalc.errors import InputError
from kvcalc.report.files import check_outputs, write

EXAMPLES = (
    "kvcalc page -o kvcalc.html\n"
    "kvcalc page --model gemma-3-27b --model llama-3.1-8b --engine vllm -o ours.html\n"
    "kvcalc page --device h100-80gb --device rtx-4090 -o cards.html"
)


def page(
    output: Annotated[str, options.option("--output -o", "FILE", "The HTML file.")],
    model: Annotated[
        list[str] | None, options.option("--model", "MODEL", "Only this one; repeatable.", offer=complete.models)
    ] = None,
    engine: Annotated[
        list[str] | None, options.option("--engine -e", "ENGINE", "Only this one; repeatable.", offer=complete.engines)
    ] = None,
    device: Annotated[
        list[str] | None, options.option("--device", "DEVICE", "Only this one; repeatable.", offer=complete.devices)
    ] = None,
) -> int:
    from kvcalc.engines import engine_name, engine_names
    from kvcalc.page.data import page_data
    from kvcalc.page.render import render
    from kvcalc.sources.devices import devices, load_device
    from kvcalc.sources.preset import presets

    path = Path(output)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError("a page is an HTML file", hint="-o kvcalc.html")
    check_outputs(path)
    models = list(dict.fromkeys(model or presets()))
    engines = list(dict.fromkeys(engine_name(each) for each in engine or engine_names()))
    places = devices() if device is None else [load_device(each) for each in dict.fromkeys(device)]
    done = 0

    def said(name: str) -> None:
        nonlocal done
        done += 1
        if done % 20 == 0 and done < len(models):
            question.say(f"{done} of {len(models)} models, up to {name}")

    write(render(page_data(models, engines, places, said, os.cpu_count() or 1)), path)
    question.say(f"wrote {path} ({path.stat().st_size:,} bytes: {len(models)} models, {len(engines)} engines)")
    return 0
