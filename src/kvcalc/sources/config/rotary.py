"""Tables of rotary positions: how many positions a configuration scales to, and how many numbers each has.

An engine may keep the cosines and sines of every position. What scales positions lengthens the table: linear scaling by
its factor, yarn to the factor times the original length, longrope by a second table of the original length.

Source: vllm 0.33.0 model_executor/layers/rotary_embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvcalc.sources.config.reader import CONTEXTS, Config
from kvcalc.units import MAX_TOKENS

# Models whose layers have no rotary positions, and those whose local layers have a table of their own, not scaled.
_WITHOUT = frozenset({"jamba", "kimi_linear", "nemotron_h"})
_LOCAL_APART = frozenset({"gemma3", "gemma3n", "olmo3"})
# The part of a head that has rotary positions, where a file leaves it to the class.
_PARTS = {"bamba": 0.5, "glm": 0.5, "glm4": 0.5, "glm4_moe": 0.5, "phi": 0.5}
_PARTS |= {"qwen3_5": 0.25, "qwen3_5_moe": 0.25, "qwen3_next": 0.25}


def rotary_tables(config: Config, width: int) -> tuple[tuple[int, int], ...]:
    """The tables of a file as (positions, numbers of each); ``width`` is that of a head.

    >>> gemma = {"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    >>> rotary_tables(Config(gemma, "gemma3", {}, {}), 256)
    ((131072, 256), (1048576, 256))
    """
    context, stated = config.tokens(*CONTEXTS), config.stated("rope_parameters", "rope_scaling")
    if context is None or config.model_type in _WITHOUT or config.table.get("position_embedding_type") == "nope":
        return ()
    scaling: Mapping[str, Any] = stated if isinstance(stated, Mapping) else {}
    tables = [each for each in scaling.values() if isinstance(each, Mapping)] or [scaling]
    if config.model_type in _LOCAL_APART and len(tables) == 1:
        tables = [{}, scaling]
    said: Any = config.stated("partial_rotary_factor") or scaling.get("partial_rotary_factor")
    part = said if _positive(said) else _PARTS.get(config.model_type, 1)
    numbers = config.count("rotary_dim", "rope_dim") or int(width * min(part, 1))
    return tuple((_positions(config.model_type, each, context), numbers) for each in tables if numbers)


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < MAX_TOKENS


def _positions(model_type: str, scaling: Mapping[str, Any], context: int) -> int:
    kind, factor = scaling.get("rope_type", scaling.get("type")), scaling.get("factor", 1)
    original = scaling.get("original_max_position_embeddings", context)
    if not _positive(factor) or not _positive(original):
        return context
    if "mrope_section" in scaling and model_type.startswith("qwen2"):
        return 4 * context
    lengths = {"linear": context * factor, "yarn": original * factor, "longrope": context + original}
    return min(int(lengths.get(str(kind), context)) or context, MAX_TOKENS)
