"""The words of a command line: as they were typed, and as the commands take them.

People type what they know from the engines (``--tp``, ``--gpu``, ``-ctk``), from other tools (``--json``) or from
memory (``kvcalc gemma-3-27b``). Each of these is turned into the one spelling that the help shows; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextvars import ContextVar

#: The program's name and its arguments, as they were typed.
COMMAND: ContextVar[tuple[str, ...]] = ContextVar("COMMAND", default=())

#: Other names of options, without their dashes, and the name in the help.
_OPTIONS = {
    "batch": "batch-size",
    "concurrency": "batch-size",
    "np": "batch-size",
    "parallel": "batch-size",
    "users": "batch-size",
    "context-length": "context",
    "context-size": "context",
    "ctx": "context",
    "ctx-size": "context",
    "max-model-len": "context",
    "max-seq-len": "context",
    "n-ctx": "context",
    "num-ctx": "context",
    "seq-len": "context",
    "gpu": "device",
    "gpus": "devices",
    "draft-model": "draft",
    "md": "draft",
    "model-draft": "draft",
    "speculative-model": "draft",
    "cache-type": "kv-cache-dtype",
    "kv-cache-type": "kv-cache-dtype",
    "kv-dtype": "kv-cache-dtype",
    "gpu-mem-util": "gpu-memory-utilization",
    "mem-fraction-static": "gpu-memory-utilization",
    "mem": "memory",
    "vram": "memory",
    "out": "output",
    "tensor-parallel": "tensor-parallel-size",
    "tp": "tensor-parallel-size",
    "tp-size": "tensor-parallel-size",
    "dtype": "weights-dtype",
    "quant": "weights-dtype",
    "quantization": "weights-dtype",
    "weight-dtype": "weights-dtype",
    "unit": "units",
}
#: Options of the commands that people know as an engine's.
COMMON_OPTIONS = frozenset(_OPTIONS.values())
#: Options that are another option with its value.
_SHORTHANDS = {
    "--csv": ("--format", "csv"),
    "--html": ("--format", "html"),
    "--json": ("--format", "json"),
    "--markdown": ("--format", "markdown"),
    "--md": ("--format", "markdown"),
    "--mtp": ("--draft", "mtp"),
    "--wide": ("--format", "wide"),
}
#: llama.cpp's flags: the formats of K and of V, which are one option here, and options of the engine.
_LLAMA_CPP = {
    **dict.fromkeys(("-ctk", "--cache-type-k"), "k"),
    **dict.fromkeys(("-ctv", "--cache-type-v"), "v"),
    **dict.fromkeys(("-ngl", "--n-gpu-layers", "--gpu-layers"), "n_gpu_layers"),
    **dict.fromkeys(("-ts", "--tensor-split"), "tensor_split"),
}
#: Other names of commands.
_COMMANDS = {"presets": "models", "list": "models", "ls": "models", "gpus": "devices"}
#: Commands of a list, which once had commands of their own.
_LISTS = ("models", "devices", "engines")


def option_name(name: str) -> str:
    """An option's name as the help has it; Typer asks for every name that it meets.

    >>> option_name("tp"), option_name("kv_cache_dtype"), option_name("batch-size")
    ('tensor-parallel-size', 'kv-cache-dtype', 'batch-size')
    """
    name = name.replace("_", "-")
    return _OPTIONS.get(name, name)


def usual(typed: Sequence[str], commands: Collection[str]) -> list[str]:
    """The command line as the commands take it.

    >>> usual(["gemma-3-27b", "--json"], ["show"])
    ['show', 'gemma-3-27b', '--format', 'json']
    >>> usual(["show", "x", "-ctk", "q8_0", "-ctv", "q4_0"], ["show"])
    ['show', 'x', '--kv-cache-dtype', 'q8_0/q4_0']
    >>> usual(["show", "x", "-ngl", "20"], ["show"])
    ['show', 'x', '-E', 'n_gpu_layers=20']
    """
    words = list(_expanded(_llama_cpp_flags(typed)))
    if not words:
        return words
    first, *rest = words
    if first == "help":
        return [*rest[:1], "--help"]
    first = _COMMANDS.get(first, first)
    if first in _LISTS and rest[:1] in (["show"], ["list"]):
        rest = rest[1:]
    elif first in _LISTS and rest[:1] == ["export"]:
        rest = [*rest[1:], "--spec"]
    if first not in commands and not first.startswith("-") and _looks_like_a_model(first):
        return ["show", first, *rest]
    return [first, *rest]


def _looks_like_a_model(word: str) -> bool:
    """Whether a first word that is no command is meant as a model: one that is known, or written like one."""
    from kvcalc.sources.preset import find_preset

    return any(mark in word for mark in ".:/@-0123456789") or find_preset(word) is not None


def _expanded(words: Sequence[str]) -> Iterator[str]:
    for at, word in enumerate(words):
        if word == "--":
            yield from words[at:]
            return
        yield from _SHORTHANDS.get(word, (word,))


def _llama_cpp_flags(words: Sequence[str]) -> list[str]:
    """``-ctk A -ctv B`` as ``--kv-cache-dtype A/B``, where one alone leaves the other at f16; ``-ngl N`` as ``-E``."""
    formats: dict[str, str] = {}
    rest: list[str] = []
    left = iter(words)
    for word in left:
        name, equals, value = word.partition("=")
        option = _LLAMA_CPP.get(name)
        given = value if equals or option is None else next(left, None)
        if option is None or given is None:
            rest.append(word)
        elif option in ("k", "v"):
            formats[option] = given
        else:
            rest += ["-E", f"{option}={given}"]
    if formats:
        rest += ["--kv-cache-dtype", f"{formats.get('k', 'f16')}/{formats.get('v', 'f16')}"]
    return rest
