"""The largest image that a model's encoder takes: the tokens that it becomes, and the numbers of its pixels.

vLLM profiles its memory with as many of them as a step holds. Where the size is the image processor's and not the
config.json's (Qwen's ``max_pixels``, the tiles of Llama 4 and InternVL), it is the one that the publishers ship.

Source: vllm 0.33.0 model_executor/models (``get_image_size_with_most_features``, ``get_num_image_tokens``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvcalc.errors import InputError
from kvcalc.units import check_count

_MOST = 2**16
_CHANNELS = 3
#: Pixels of the largest image in the preprocessor_config.json of Qwen's models: 16,384 squares of 28 or of 32.
_QWEN_TOKENS = 16_384
_FRAMES = 2  # an image is two frames of a film


def _side(vision: Mapping[str, Any], key: str, default: int) -> int:
    return check_count(vision.get(key) or default, key, least=1, most=_MOST)


def _gemma3(config: Mapping[str, Any], vision: Mapping[str, Any]) -> tuple[int, int]:
    size = _side(vision, "image_size", 896)
    return _side(config, "mm_tokens_per_image", 256), _CHANNELS * size * size


def _squares(size: int, square: int) -> int:
    return (-(-size // square)) ** 2


def _paligemma(config: Mapping[str, Any], vision: Mapping[str, Any]) -> tuple[int, int]:
    size = _side(vision, "image_size", 224)
    return _squares(size, _side(vision, "patch_size", 14)), _CHANNELS * size * size


def _pixtral(config: Mapping[str, Any], vision: Mapping[str, Any]) -> tuple[int, int]:
    size = _side(vision, "image_size", 1540)
    merge = _side(config, "spatial_merge_size", 1 if config.get("model_type") == "llava" else 2)
    return _squares(size, _side(vision, "patch_size", 14) * merge), _CHANNELS * size * size


def _llava(config: Mapping[str, Any], vision: Mapping[str, Any]) -> tuple[int, int]:
    if vision.get("model_type") == "pixtral":
        return _pixtral(config, vision)
    size = _side(vision, "image_size", 336)
    return _squares(size, _side(vision, "patch_size", 14)), _CHANNELS * size * size


def _llava_next(config: Mapping[str, Any], vision: Mapping[str, Any]) -> tuple[int, int]:
    """The image as a whole, and in the tiles of the largest grid, each row of patches with a line break."""
    size = _side(vision, "image_size", 336)
    patches = size // _side(vision, "patch_size", 14)
    stated = config.get("image_grid_pinpoints")
    grids = [
        (check_count(grid[0], "image_grid_pinpoints") // size, check_count(grid[1], "image_grid_pinpoints") // size)
        for grid in (stated if isinstance(stated, list) else ())
        if isinstance(grid, list | tuple) and len(grid) == 2
    ]
    rows, columns = max(grids, key=lambda grid: (grid[0] * grid[1], grid[0]), default=(2, 2))
    tokens = patches * patches * (1 + rows * columns) + patches * rows
    return tokens, (1 + rows * columns) * _CHANNELS * size * size


def _tiles(config: Mapping[str, Any], vision: Mapping[str, Any]) -> tuple[int, int]:
    """The image as a whole and in as many tiles as its processor cuts; four patches of a tile are one token."""
    tiles, size, patch = (17, 336, 14) if config.get("model_type") == "llama4" else (13, 448, 14)
    size, patch = _first(vision.get("image_size"), size), _first(vision.get("patch_size"), patch)
    return tiles * (size // patch) ** 2 // 4, tiles * _CHANNELS * size * size


def _first(value: Any, default: int) -> int:
    """A size, or the height of a pair."""
    one = value[0] if isinstance(value, list | tuple) and value else value
    return check_count(one or default, "size", least=1, most=_MOST)


def _qwen(config: Mapping[str, Any], vision: Mapping[str, Any]) -> tuple[int, int]:
    old = config.get("model_type") in ("qwen2_vl", "qwen2_5_vl")
    square = _side(vision, "patch_size", 14 if old else 16) * _side(vision, "spatial_merge_size", 2)
    return _QWEN_TOKENS, _QWEN_TOKENS * _CHANNELS * _FRAMES * square * square


_IMAGES: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[int, int]]] = {
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "mistral3": _pixtral,
    "llava": _llava,
    "llava_next": _llava_next,
    "llama4": _tiles,
    "internvl": _tiles,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "qwen3_vl_moe": _qwen,
    "qwen3_5": _qwen,
    "qwen3_5_moe": _qwen,
}


def largest_image(config: Mapping[str, Any]) -> dict[str, int] | None:
    """The table ``image`` of a spec for a config.json with an encoder of images, or None where no rule is known.

    >>> vision = {"image_size": 896, "patch_size": 14}
    >>> largest_image({"model_type": "gemma3", "mm_tokens_per_image": 256, "vision_config": vision})
    {'tokens': 256, 'numbers': 2408448}
    """
    vision = config.get("vision_config")
    rule = _IMAGES.get(str(config.get("model_type")))
    if rule is None or not isinstance(vision, Mapping):
        return None
    try:
        tokens, numbers = rule(config, vision)
    except InputError:
        return None  # sizes in words of their own: the text model has an answer all the same
    return {"tokens": tokens, "numbers": numbers} if 0 < tokens <= _MOST**2 else None
