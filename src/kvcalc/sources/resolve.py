"""A model reference becomes an architecture.

``NAME`` (a preset, by any name that it answers to), ``path/to/spec.toml``, ``path/to/config.json`` or its folder,
``model.gguf``, ``*.safetensors``, ``hf:org/name``, then optionally ``@LAYOUT``. Nothing reaches the network unless it
says ``hf:`` or is the address of a page on the Hub.
"""

from __future__ import annotations

import re
from dataclasses import replace
from os import PathLike, fspath
from os.path import exists, isdir
from pathlib import Path

from kvcalc.architecture import Architecture
from kvcalc.errors import InputError, quote
from kvcalc.layout import parse_layout
from kvcalc.relayout import with_layout
from kvcalc.sources import shipped
from kvcalc.sources.files import is_path
from kvcalc.sources.preset import find_preset, format_left_open, load_preset, load_release, load_spec

_LONGEST_REFERENCE = 4096


def load(reference: str | PathLike[str]) -> Architecture:
    """The architecture that a model reference names: a preset, a file or folder of any known form, or ``hf:org/name``.

    A folder with weights, a ``.safetensors`` or a ``.gguf`` file and the Hub give the weights as they are stored too.

    Raises:
        KVCalcError: nothing of that name, a file that cannot be read, a Hub that does not answer, or a layout that has
            no meaning for the model.

    >>> load("gemma-2-2b@5:1/sw=1024").layout
    '22 sliding (1024) + 4 full'
    """
    text = _text(reference)
    base, variant = split_variant(text)
    model = _load_base(base)
    hints: tuple[str, ...] = ()
    if variant is not None:
        layout = parse_layout(variant)
        model = _with_weights_of_its_own(model, with_layout(model, layout))
        hints = () if layout.hint is None else (layout.hint,)
    return model.changed(provenance=replace(model.provenance, hints=hints, reference=text))


def _text(reference: object) -> str:
    text = fspath(reference) if isinstance(reference, PathLike) else reference
    if not isinstance(text, str) or not text or len(text) > _LONGEST_REFERENCE or not is_path(text):
        raise InputError(f"{quote(reference)} is no model reference", hint="see 'kvcalc models' for names")
    return text


def _with_weights_of_its_own(model: Architecture, rewritten: Architecture) -> Architecture:
    """The rewritten model without the bytes measured for ``model``, where its layers have other weights."""
    if model.provenance.weight_bytes is None:
        return rewritten
    from kvcalc.weights import weights

    # With a format named, the parameters are those of the layers and not those of the files.
    before, after = (weights(each, each.dtype).parameters for each in (model, rewritten))
    if before == after:
        return rewritten
    notes = (*model.provenance.notes, "the layout changes the weights: they are computed, not those of the files")
    computed = replace(
        rewritten.provenance, notes=notes, weight_bytes=None, weight_elements=None, exact_parameters=False
    )
    return rewritten.changed(provenance=computed)


def split_variant(reference: str) -> tuple[str, str | None]:
    """The model and the layout of a reference; a path may hold an ``@`` of its own.

    >>> split_variant("gemma-2-2b@5:1/sw=1024"), split_variant("models/a@b/config.json")
    (('gemma-2-2b', '5:1/sw=1024'), ('models/a@b/config.json', None))
    """
    base, at, variant = reference.rpartition("@")
    if not at or (exists(reference) and not exists(base)):
        return reference, None
    looks_like_path = "\\" in variant or ("/" in variant and "=" not in variant)
    return (reference, None) if looks_like_path and find_preset(base) is None else (base, variant)


def seen_from(folder: Path, reference: str) -> str:
    """A reference that was written in a folder: a path counts from there; a name or an address is itself.

    >>> seen_from(Path("svc"), "google/gemma-3-27b-it"), seen_from(Path("svc"), "ours/config.json")
    ('google/gemma-3-27b-it', 'svc/ours/config.json')
    """
    base, _ = split_variant(reference)
    if base.startswith("hf:") or without_address(base) != base:
        return reference
    is_file = base in (".", "..") or "\\" in base or base.endswith((".toml", ".json", ".gguf", ".safetensors"))
    if "/" in base and not is_file:  # a folder, or a name as the Hub has them
        is_file = exists(folder / base) or (find_preset(base) is None and load_release(base) is None)
    return str(folder / reference) if is_file else reference


def _load_base(base: str) -> Architecture:
    base = without_address(base)
    path = Path(base)
    if base.startswith("hf:"):
        from kvcalc.sources.hub import load_from_hub

        return load_from_hub(base)
    if base.endswith(".toml"):
        return load_spec(path)
    if base.endswith(".gguf"):
        from kvcalc.sources.gguf_model import load_gguf

        return load_gguf(path)
    if base.endswith((".json", ".safetensors")) or (isdir(base) and base not in shipped.names("models")):
        from kvcalc.sources.checkpoint import load_checkpoint

        return load_checkpoint(path)
    preset = find_preset(base)
    if preset is not None:
        return load_preset(preset)
    if exists(base):
        raise InputError(f"{quote(base)} is a file of no known form")
    release = load_release(base)
    if release is not None:
        return release
    if base.startswith((".", "/", "~")) or base.count("/") > 1 or "\\" in base:
        raise InputError(f"no such file: {quote(base)}")
    if "/" in base:
        with_format, asked = format_left_open(base), f"write hf:{base}"
        hint = f"{with_format}, or {asked} to ask the Hub" if with_format else f"to ask the Hub, {asked}"
        raise InputError(f"no such file, and no preset stands for it: {quote(base)}", hint=hint)
    return load_preset(base)


_HUB_ADDRESS = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)"
    r"(?::(?P<format>[\w-]+))?(?:/(?:tree|blob|resolve|raw)/(?P<revision>[\w.-]+).*)?/?",
    re.ASCII,
)
_OLLAMA_ADDRESS = re.compile(r"(?:https?://)?(?:www\.)?ollama\.com/(?:library/)?([\w.:-]+)/?", re.ASCII)


def without_address(base: str) -> str:
    """A reference in place of the address of a page: ``hf:org/name`` for the Hub's, a tag for Ollama's.

    >>> without_address("https://huggingface.co/google/gemma-3-27b-it/blob/main/config.json")
    'hf:google/gemma-3-27b-it'
    >>> without_address("ollama.com/library/gemma3:27b"), without_address("gemma-3-27b")
    ('gemma3:27b', 'gemma-3-27b')
    """
    hub, ollama = _HUB_ADDRESS.fullmatch(base), _OLLAMA_ADDRESS.fullmatch(base)
    if hub is not None:
        if hub["format"] is not None:
            return f"{hub[1]}:{hub['format']}"
        revision = hub["revision"]
        return f"hf:{hub[1]}" + (f"#{revision}" if revision not in (None, "main") else "")
    if ollama is not None:
        return ollama[1]
    if "://" in base:
        raise InputError(f"no address of a model: {quote(base)}", hint="write hf:org/name, or the path of a file")
    return base
