"""What a shell may complete: names that are known without reading any file but a list of names."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping, Sequence
from contextvars import ContextVar

import typer

#: Layouts that a model's name may be followed by.
_LAYOUTS = ("global", "1:1", "3:1", "5:1", "7:1", "5:1/sw=1024", "sw=1024")
#: What stands before the word that a shell sends: bash breaks words at these marks, and replaces the last piece alone.
_KEPT: ContextVar[str] = ContextVar("_KEPT", default="")
_BREAKS = "@:="


def mend_words(environment: MutableMapping[str, str]) -> None:
    """Make the words of a line that bash wants to have completed what was typed: it sends ``m@5:`` as four."""
    words, at = environment.get("COMP_WORDS", "").split("\n"), environment.get("COMP_CWORD", "")
    if at.isdecimal() and len(words) > 1:
        typed, kept = whole_words(words[: int(at) + 1])
        environment["COMP_WORDS"], environment["COMP_CWORD"] = "\n".join(typed), str(len(typed) - 1)
        _KEPT.set(kept)


def whole_words(words: Sequence[str]) -> tuple[list[str], str]:
    """Words that bash broke, whole again but for the last, and what stands before that one.

    >>> whole_words(["kvcalc", "gemma-3-27b", "@", "5", ":"])
    (['kvcalc', ''], 'gemma-3-27b@5:')
    >>> whole_words(["kvcalc", "-e", "vllm", "==", "0.2", "-c", "8"])
    (['kvcalc', '-e', 'vllm==0.2', '-c', '8'], '')
    """
    whole: list[str] = []
    broken = False
    for word in words:
        breaks = bool(word) and not word.strip(_BREAKS)
        if whole and (breaks or (broken and word)):
            whole[-1] += word
        else:
            whole.append(word)
        last, broken = "" if breaks else word, breaks
    kept = whole[-1].removesuffix(last)
    if kept.endswith("@"):  # readline replaces this mark too
        kept, last = kept[:-1], f"@{last}"
    whole[-1] = last
    if kept.startswith("-"):  # --engine=vl: an option and its value
        whole.insert(-1, kept.rstrip("="))
        kept = ""
    return whole, kept


def models(incomplete: str) -> list[str]:
    """Presets; behind an ``@``, layouts."""
    from kvcalc.sources import shipped

    base, at, _ = (_KEPT.get() + incomplete).partition("@")
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
    kept = _KEPT.get()
    return [name.removeprefix(kept) for name in names if name.startswith(kept + incomplete)]


def _listed(incomplete: str, names: Iterable[str]) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in _starting(last, names)]
