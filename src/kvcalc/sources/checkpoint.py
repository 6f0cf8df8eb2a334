"""A checkpoint on disk: its config.json says what the model is, its safetensors headers what the weights take."""

from __future__ import annotations

from collections.abc import Mapping
from os import fsencode
from os.path import isdir
from pathlib import Path
from typing import Any

from kvcalc.architecture import Architecture
from kvcalc.errors import InputError, KVCalcError
from kvcalc.sources.files import decoded, parse_json, read_bytes
from kvcalc.sources.safetensors import INDEX_NAME, read_weights, with_stored_weights

#: Far above any published config.json: the longest list every layer of the model.
LARGEST_CONFIG = 2**22
#: What older writers say of formats beside a config.json that says nothing of them: ModelOpt, AutoGPTQ, AutoAWQ.
SIDECARS = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")


def load_checkpoint(path: Path) -> Architecture:
    """The architecture of a config.json, of a folder with one, or of safetensors files beside one.

    A config.json alone is the model without its files; a folder, a ``.safetensors`` file or an index is the model with
    the weights as they are stored.

    Raises:
        KVCalcError: no config.json, or a file that is wrong.
    """
    if path.suffix == ".json" and not path.name.endswith(".index.json"):
        return _architecture(path)
    folder = path if isdir(path) else path.parent
    config = folder / "config.json"
    if not config.is_file():
        hint = "the config.json of the model says what its layers are: put it beside the weights"
        raise InputError("no config.json in the folder", hint=hint, location=str(folder))
    architecture = _architecture(config)
    if isdir(path) and not (folder / INDEX_NAME).is_file() and not any(folder.glob("*.safetensors")):
        return architecture
    return with_stored_weights(architecture, read_weights(path), str(path))


def _architecture(path: Path) -> Architecture:
    config = parse_config(read_bytes(path, LARGEST_CONFIG), str(path))
    if path.name == "config.json":
        config = with_sidecar(config, path.parent)
    from kvcalc.sources.config import read_config  # a file that is no JSON needs none of its rules

    called = path.resolve().parent.name if path.name == "config.json" else path.stem
    name = fsencode(called).decode("utf-8", "backslashreplace")  # a file's name need not be a text
    try:
        return read_config(config, name)
    except KVCalcError as error:
        raise error.at(str(path)) from None


def with_sidecar(config: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """A config.json with the file beside it that says how the weights are stored, under that file's name."""
    for sidecar in (folder / name for name in SIDECARS):
        if sidecar.is_file():
            return {**config, sidecar.name: parse_config(read_bytes(sidecar, LARGEST_CONFIG), str(sidecar))}
    return config


def parse_config(data: bytes, location: str) -> Mapping[str, Any]:
    """The dictionary of a config.json; ``Infinity`` and ``NaN`` are let through, because published files hold them.

    Raises:
        InputError: not JSON, or not an object.

    >>> parse_config(b'{"model_type": "llama", "rope_scaling": Infinity}', "config.json")["model_type"]
    'llama'
    """
    config = parse_json(decoded(data, location), location)
    if not isinstance(config, dict):
        raise InputError("a config.json is a JSON object, this is none", location=location)
    return config
