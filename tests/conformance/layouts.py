"""Published layer layouts as architectures without weights, for engines whose models are no presets."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from kvcalc.architecture import Architecture, Layer, distinct_layers, layer_kind

_LAYOUTS = Path(__file__).parents[1] / "data" / "layouts.json"


def recorded(name: str) -> Any:
    """A file of ``tests/data``."""
    return json.loads((_LAYOUTS.parent / name).read_text(encoding="utf-8"))


def laid_out(name: str, model_type: str, kinds: list[dict[str, Any]]) -> Architecture:
    """An architecture of these layers in this order, without weights."""
    layers, order = distinct_layers([Layer(cache=layer_kind(kind)) for kind in kinds])
    return Architecture(name=name, model_type=model_type, layers=layers, order=order, hidden_size=1, vocab_size=0)


@cache
def published(slug: str) -> Architecture:
    """One of the layouts in ``layouts.json``."""
    layout = recorded("layouts.json")[slug]
    return laid_out(slug, layout["model_type"], [layout["kinds"][code] for code in layout["layers"]])


def full(num_kv_heads: int = 1, head_dim: int = 64) -> dict[str, Any]:
    """A global attention layer."""
    return {"kind": "full", "num_kv_heads": num_kv_heads, "head_dim": head_dim, "v_head_dim": head_dim}


def sliding(window: int, num_kv_heads: int = 1, head_dim: int = 64) -> dict[str, Any]:
    """A sliding-window attention layer."""
    return {**full(num_kv_heads, head_dim), "kind": "sliding", "window": window}


def chunked(chunk: int) -> dict[str, Any]:
    """A chunked attention layer."""
    return {**full(), "kind": "chunked", "chunk": chunk}


def latent(**changes: int) -> dict[str, Any]:
    """An MLA layer as wide as DeepSeek V3's."""
    sizes = {"rank": 512, "rope_dim": 64, "num_heads": 128, "nope_dim": 128, "v_head_dim": 128}
    return {"kind": "latent", **sizes, **changes}
