"""Parameters of the encoders of images and sound that a checkpoint carries: the rows of ``presets/towers``.

A row is named by the model type of the file around the encoder, by that and the encoder's own (``llava/pixtral``), or
by the class where one type stands for several; ``minicpmv/built in`` is one that the file does not state. It says
which keys hold the encoder's numbers, the defaults of its class in transformers 5.24.0, and the formula of its
parameters, projector and all.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from kvcalc.errors import InputError, quote
from kvcalc.sources import shipped
from kvcalc.sources.files import parse_toml
from kvcalc.units import ceil_div, check_count

_MOST = 2**24
_Row = Mapping[str, Any]

#: The keys under which a file keeps its encoders, and what they are of.
_PLACES = {
    "vision": ("vision_config", "visual"),
    "audio": ("audio_config", "audio_encoder_config", "encoder_config"),
}
#: Model types whose files may state no encoder of images though their class has one.
_BUILT_IN = ("molmo", "minicpmv", "phi3_v", "unlimited_ocr", "unlimited-ocr")
#: Keys by which a file names such an encoder without stating it.
_NAMES = ("mm_vision_tower", "vision_tower", "vision_tower_cfg", "visual_config", "img_processor", "timm_model_ids")
_SENSES = {"vision": "image", "audio": "audio"}


def _layer(width: int, inner: int, biases: int, gated: int, norm: int) -> int:
    """A layer: attention, a feed-forward block of two matrices or three, two norms of ``norm`` numbers to a width."""
    ups = 1 + gated
    return 4 * width * width + (ups + 1) * width * inner + biases * (5 * width + ups * inner) + 2 * norm * width


_FUNCTIONS = {"__builtins__": {}, "layer": _layer, "min": min, "max": max, "int": int, "ceil_div": ceil_div}


@cache
def _rows(sense: str) -> dict[str, _Row]:
    """The rows of one kind of encoder by every name, and the formulas that they share."""
    tables = parse_toml(shipped.texts("towers")[sense], f"towers/{sense}.toml")
    return tables | {name: row for row in tables.values() for name in row.get("also", ())}


class _Numbers(dict[str, Any]):
    """The symbols of a formula, each worked out when it is asked for: a number of the file, or another formula."""

    def __init__(self, row: _Row, formulas: _Row, stated: _Row, around: _Row, text_width: int) -> None:
        super().__init__(T=text_width)
        self.row, self.formulas, self.stated, self.around = row, formulas, stated, around

    def __missing__(self, symbol: str) -> Any:
        meaning = self.row[symbol] if symbol in self.row else self.formulas[symbol]
        value = None
        if not isinstance(meaning, str):
            *keys, meaning = meaning
            value = next((number for key in keys if (number := self._stated(key)) is not None), None)
        if value is None:
            # The formulas are kvcalc's own text, never a file's.
            value = eval(meaning, _FUNCTIONS, self) if isinstance(meaning, str) else meaning  # noqa: S307
        self[symbol] = value
        return value

    def _stated(self, key: str) -> int | float | None:
        """What the file says under a key, as a number."""
        if key.startswith("type:"):
            return int(self.around.get("model_type") in key[5:].split("|"))
        counted, outside = key.startswith("#"), "^" in key[:2]
        path, _, wanted = key.lstrip("#^").partition("=")
        value: Any = self.around if outside else self.stated
        for part in path.split("."):
            if isinstance(value, list | tuple):
                value = value[int(part)] if part.isdecimal() and int(part) < len(value) else None
            else:
                value = value.get(part) if isinstance(value, Mapping) else None
        if wanted:
            return int(value == wanted)
        if isinstance(value, list | tuple):
            value = len(value) if counted else value[0] if value else None
        if value is None or isinstance(value, bool):
            return None if value is None else int(value)
        if isinstance(value, float) and 0 < value < _MOST:
            return int(value) if value.is_integer() else value
        return check_count(value, path, least=0, most=_MOST)


def _names_one(config: _Row) -> bool:
    """Whether a file without a table of an encoder of images is of a model that has one."""
    return config.get("model_type") in _BUILT_IN or any(config.get(key) for key in _NAMES)


def _row(sense: str, config: _Row, stated: _Row) -> _Row | None:
    around, classes = config.get("model_type"), config.get("architectures")
    if not stated and around not in _BUILT_IN:
        return None
    names = [each for each in classes if isinstance(each, str)] if isinstance(classes, list) else []
    names += [f"{around}/{stated.get('model_type') if stated else 'built in'}", f"{around}"]
    return next((_rows(sense)[name] for name in names if name in _rows(sense)), None)


def tower_parameters(config: Mapping[str, Any], text_width: int) -> tuple[dict[str, int], list[str]]:
    """Parameters of each encoder that a file has, its projector with it, and why others are not known.

    >>> tower_parameters({"model_type": "gemma3", "vision_config": {"vision_use_head": False}}, 2304)
    ({'vision': 87567360}, [])
    """
    if isinstance(encoder := config.get("encoder"), Mapping):  # T5Gemma 2 keeps its tower there
        config = encoder
    towers, notes = {}, []
    for sense, places in _PLACES.items():
        tables = (config[key] for key in places if isinstance(config.get(key), Mapping))
        stated: Mapping[str, Any] = next((table for table in tables if table), {})
        if not stated and (sense != "vision" or not _names_one(config)):
            continue
        row = _row(sense, config, stated)
        if row is None:
            kind = config.get("model_type")
            kind = kind if isinstance(kind, str) else ""
            notes.append(f"not modelled: the {_SENSES[sense]} encoder of {quote(kind)}; its weights are not counted")
            continue
        try:
            counted = int(_Numbers(row, _rows(sense)["formulas"], stated, config, text_width)["parameters"])
        except (ArithmeticError, TypeError):
            raise InputError(f"the sizes of the {_SENSES[sense]} encoder fit no model") from None
        towers[sense] = check_count(counted, f"parameters of the {_SENSES[sense]} encoder", most=2**50)
    return towers, notes
