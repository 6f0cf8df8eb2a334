"""What a shell may complete: names that are known without reading any file but a list of names."""

from __future__ import annotations

from collections.abc import Iterable

import typer

#: Layouts that a model's name may be followed by.
_LAYOUTS = ("global", "1:1", "3:1", "5:1", "7:1", "5:1/sw=1024", "sw=1024")


def models(incomplete: str) -> list[str]:
    """Presets; behind an ``@``, layouts."""
    from kvcalc.sources import shipped

    base, at, _ = incomplete.partition("@")
    return _starting(incomplete, (f"{base}@{layout}" for layout in _LAYOUTS) if at else shipped.names("models"))


def engines(incomplete: str) -> list[str]:
    """Engines; behind a comma, another one."""
    from kvcalc.engines import REGISTRY

    return _listed(incomplete, REGISTRY)


def engine_options(ctx: typer.Context, incomplete: str) -> list[str]:
    """The options of the engines that were named, as ``KEY=``; with the engine before them where there are several."""
    from kvcalc.engines import REGISTRY, engine_class

    chosen = ctx.params.get("engine") or ()
    named = [name for name in ([chosen] if isinstance(chosen, str) else chosen) if name in REGISTRY]
    keys = [(name, option.name) for name in named for option in engine_class(name).option_help()]
    return _starting(incomplete, (f"{key}=" if len(named) == 1 else f"{name}.{key}=" for name, key in keys))


def dtypes(incomplete: str) -> list[str]:
    """Storage formats; behind a comma or a slash, another one."""
    from kvcalc.dtypes import DTYPES

    first, slash, rest = incomplete.rpartition("/")
    return [f"{first}{slash}{each}" for each in _listed(rest, DTYPES)]


def devices(incomplete: str) -> list[str]:
    """Devices; behind ``8x``, too."""
    from kvcalc.sources.devices import device_names

    count, times, name = incomplete.partition("x")
    before = f"{count}{times}" if times and count.isdecimal() else ""
    return [f"{before}{each}" for each in _starting(name if before else incomplete, device_names())]


def formats(ctx: typer.Context, incomplete: str) -> list[str]:
    """The output formats of a command."""
    from kvcalc.report.formats import format_names

    return _starting(incomplete, format_names(ctx.info_name or ""))


def schemas(incomplete: str) -> list[str]:
    """What has a JSON Schema."""
    from kvcalc.cli.schemas import schema_names

    return _starting(incomplete, schema_names())


def units(incomplete: str) -> list[str]:
    """How byte sizes are shown."""
    return _starting(incomplete, ("binary", "decimal", "bytes"))


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _listed(incomplete: str, names: Iterable[str]) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in _starting(last, names)]
