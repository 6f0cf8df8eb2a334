"""Presets and spec files: TOML that states one model each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kvcalc.architecture import Architecture
from kvcalc.errors import InputError, KVCalcError, SeveralErrors, either, quote
from kvcalc.invalid import located_mistakes
from kvcalc.names import near, words
from kvcalc.quantization import WeightsFormat
from kvcalc.sources import shipped
from kvcalc.sources.building import build
from kvcalc.sources.files import parse_toml, read_toml
from kvcalc.sources.releases import LEFT_OPEN, readings
from kvcalc.sources.spec import ModelSpec, field_names, stated_fields
from kvcalc.weight_formats import parse_weights_format
from kvcalc.weights import count_parameters

_LARGEST_SPEC = 2**20
_LONGEST_NAME = 200


def find_preset(name: str) -> str | None:
    """The preset that answers to a name, or None.

    A preset answers to its own name in any case and with any separator, to the Hub ids that it stands for (``hf_ids``,
    and those of its tuned sisters by the same publisher: ``-it``, ``-instruct``, ``-chat``), and to Ollama's tags.

    >>> find_preset("google/gemma-3-27b-it"), find_preset("gemma3:27b"), find_preset("Llama 3.1 8B Instruct")
    ('gemma-3-27b', 'gemma-3-27b', 'llama-3.1-8b')
    >>> find_preset("gemma-3-28b"), find_preset("someone/gemma-3-27b-it")
    (None, None)
    """
    slug = name.strip().casefold()
    if slug in shipped.names("models"):
        return slug
    publisher, slash, rest = name.strip().rpartition("/")
    if len(name) > _LONGEST_NAME or "/" in publisher or not _words(rest):
        return None
    return _answering().get((publisher.casefold(), *_words(rest)) if slash else ("", *_words(rest)))


def hub_name(reference: str) -> str:
    """What the Hub calls a model that was asked for by another of its names; a Hub's name or a path as it is.

    >>> hub_name("gemma3:27b"), hub_name("google/gemma-3-27b-it"), hub_name("models/ours")
    ('google/gemma-3-27b-pt', 'google/gemma-3-27b-it', 'models/ours')
    """
    bare = reference.removeprefix("hf:")
    preset = None if "/" in bare else find_preset(bare)
    return next(iter(preset_tables(preset).get("hf_ids", ())), bare) if preset is not None else bare


def presets() -> list[str]:
    """The names of the models that are shipped, sorted; :func:`kvcalc.load` takes each.

    >>> "gemma-3-27b" in presets()
    True
    """
    return shipped.names("models")


def known_names(preset: str) -> list[str]:
    """The names that a preset answers to: its own, the Hub's ids, Ollama's tags.

    >>> known_names("gemma-2-2b")[:2]
    ['gemma-2-2b', 'google/gemma-2-2b']
    """
    tables = preset_tables(preset)
    return [preset, *tables.get("hf_ids", ()), *tables.get("ollama_tags", ())]


@cache
def _answering() -> dict[tuple[str, ...], str]:
    """The words of every name, after the publisher of a Hub id (or nothing), and the preset behind it."""
    answers: dict[tuple[str, ...], str] = {}
    for preset in presets():
        for name in known_names(preset):
            publisher, _, rest = name.rpartition("/")
            answers[publisher.casefold(), *_words(rest)] = preset
            # The publisher of any of its ids may have tuned it, and a Hub id is often written without one.
            answers.setdefault(("", *_words(rest)), preset)
            if publisher:
                answers.setdefault((publisher.casefold(), *_words(preset)), preset)
    return answers


#: Words by which a tuned model differs from the one it was made from: not in its shape.
_TUNED = frozenset(("it", "instruct", "chat", "pt", "base", "hf", "latest"))


def _words(name: str) -> tuple[str, ...]:
    return tuple(word for word in words(name) if word not in _TUNED)


def preset_text(name: str) -> str:
    """The spec of a shipped preset as it is written in its file, by any name that it answers to.

    Raises:
        InputError: no preset answers to that name.
    """
    found = find_preset(name)
    text = None if found is None else shipped.text("models", found)
    if text is None:
        hint = format_left_open(name) or f"{_meant(name)} see 'kvcalc models'"
        raise InputError(f"unknown preset {quote(name)}", hint=hint)
    return text


def format_left_open(name: str) -> str | None:
    """How to ask for a model whose name ends in a weights format that it leaves open, or None.

    >>> format_left_open("someone/Qwen3-8B-FP8")
    "write 'qwen3-8b' with --weights-dtype fp8_block, fp8_channel or fp8: who publishes '-FP8' decides"
    >>> format_left_open("unsloth/Qwen3-8B-GGUF"), format_left_open("gemma3:27b-it")
    ("write 'unsloth/Qwen3-8B-GGUF:Q4_K_M', with the type of the file that you mean", None)
    """
    publisher, _, rest = name.rpartition("/")
    for ending, hint in LEFT_OPEN.items():
        base = rest[: -len(ending)]
        preset = _base(publisher, base) if rest.casefold().endswith(ending) else None
        if preset is not None:
            return hint.format(preset=quote(preset), name=name, ending=quote(rest[len(base) :]))
    return None


def preset_tables(name: str) -> dict[str, Any]:
    """The tables of a shipped preset, by any name that it answers to.

    Raises:
        InputError: no preset answers to that name.
    """
    return parse_toml(preset_text(name), f"preset {name}")


def _meant(name: str) -> str:
    """What an unknown name was probably meant to be; never one model alone of another kind (phi-4-mini for phi-4)."""
    names = near(name, shipped.names("models"))
    kinds = [{word for word in words(each) if word.isalpha()} for each in (name, *names)]
    if len(names) == 1 and kinds[0] < kinds[1]:
        names = []
    return either(names) or "no preset has this name;"


@cache
def load_preset(name: str) -> Architecture:
    """The architecture of a shipped preset, read once: what ships does not change while a program runs.

    >>> load_preset("gemma-2-2b").layout
    '13 sliding (4096) + 13 full'
    """
    return spec_to_architecture(preset_tables(name), f"preset {name}").changed(text_preset=True)


def load_release(name: str) -> Architecture | None:
    """A preset in the format that the name of a quantised release says (see :mod:`kvcalc.sources.releases`), or None.

    Raises:
        NotModelledError: a format that follows no rule.

    >>> load_release("Qwen/Qwen3-8B-AWQ").quantization.name, load_release("someone/Qwen3-8B-FP8")
    ('awq', None)
    """
    for publisher, rest, ending, means in readings(name):
        preset = _base(publisher, rest)
        model = None if preset is None else load_preset(preset)
        if model is None or (ending.dense and model.has_experts):
            continue
        stored: WeightsFormat
        if isinstance(means, str):
            stored, cache_format = parse_weights_format(means, model), None
        else:
            from kvcalc.sources.quantization_config import read_quantization  # names of models need none

            declared = read_quantization(means, model.model_type, model.dtype)
            stored, cache_format = declared.weights, declared.cache
        known = model.provenance
        note = f"{quote(name)} is read by its name: {model.name} in {stored.name}"
        return model.changed(
            quantization=replace(stored, estimated="its name says the format, no file of it was read"),
            declared_cache=cache_format,
            provenance=replace(known, notes=(*known.notes, note)),
        )
    return None


def _base(publisher: str, name: str) -> str | None:
    """The preset that a release was made from: anybody may have made it, but of one model of the Hub."""
    if not publisher:
        return find_preset(name)
    # bartowski's repositories begin with the publisher: Qwen_Qwen3-8B-GGUF
    asked = {_words(name), _words(name.partition("_")[2])} - {()}
    found = {preset for (owner, *rest), preset in _answering().items() if owner and tuple(rest) in asked}
    return found.pop() if len(found) == 1 else None


def load_spec(path: Path) -> Architecture:
    """The architecture that a spec file states.

    Raises:
        KVCalcError: the file cannot be read, is no TOML, or its spec is wrong (all mistakes at once).
    """
    return spec_to_architecture(read_toml(path, _LARGEST_SPEC), str(path))


def export_spec(spec: ModelSpec) -> str:
    """A spec as the text of a file that :func:`load_spec` reads back as the same model.

    What is as a spec has it anyway is left out.
    """
    stated = stated_fields(spec)
    stated.setdefault("layout", spec.layout)  # the one default that a reader looks for
    tables = {key: stated.pop(key) for key in list(stated) if isinstance(stated[key], dict) and key != "layout"}
    letters = tables.pop("layers", {})
    lines = [f"{key} = {_toml(value)}" for key, value in stated.items()]
    for name, table in (*tables.items(), *((f"layers.{_toml_key(letter)}", each) for letter, each in letters.items())):
        lines += ["", f"[{name}]", *(f"{_toml_key(key)} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        return toml_text(value)
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_toml_key(key)} = {_toml(each)}" for key, each in value.items() if each is not None)
        return "{" + inner + "}"
    return "[" + ", ".join(_toml(each) for each in value) + "]"


def toml_text(text: str) -> str:
    r"""A quoted TOML string.

    >>> toml_text('a "b"\n')
    '"a \\"b\\"\\n"'

    Raises:
        InputError: letters that no text of UTF-8 has, as a file's name may.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError(f"{quote(text)} cannot be written in TOML", hint="its name is no UTF-8: rename the file")
    # A JSON string is a TOML string, but for DEL, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_key(key: str) -> str:
    return key if key.isascii() and key.replace("_", "").replace("-", "").isalnum() else toml_text(key)


def spec_to_architecture(tables: Mapping[str, Any], location: str) -> Architecture:
    """Validate the tables of a spec and build its architecture; mistakes are reported together, with their place."""
    try:
        spec = ModelSpec.model_validate(tables)
        return _counted(build(spec), spec.parameters)
    except ValidationError as error:
        raise SeveralErrors(located_mistakes(error, field_names(), location)) from None
    except KVCalcError as error:
        raise error.at(location) from None


def _counted(architecture: Architecture, published: int | None) -> Architecture:
    """The architecture, its weights marked exact where their count is the published one."""
    if published is None:
        from kvcalc.sources.config.family import with_published_count  # a spec that states its count needs no family

        return with_published_count(architecture)
    known = architecture.provenance
    counted = count_parameters(architecture)
    if counted == published:
        return architecture.changed(provenance=replace(known, exact_parameters=True))
    note = f"the spec states {published:,} parameters, its layers have {counted:,}: the weights are estimated"
    return architecture.changed(provenance=replace(known, notes=(*known.notes, note)))
