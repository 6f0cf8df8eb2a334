"""The layers of a model laid out anew: what ``@5:1/sw=1024`` behind a name means for it.

Only attention layers move: a local layer takes the model's own local geometry where it has one and its global geometry
otherwise, and the other way round; state, cross and empty layers stay; weights move with the geometry.
"""

from __future__ import annotations

from dataclasses import replace

from kvcalc.architecture import (
    Architecture,
    Chunked,
    Cross,
    Full,
    Latent,
    Layer,
    LayerKind,
    NoCache,
    Parallel,
    Shared,
    Sliding,
    State,
    distinct_layers,
    is_local,
)
from kvcalc.errors import UnsupportedError
from kvcalc.layout import Layout


def with_layout(model: Architecture, layout: Layout) -> Architecture:
    """The same model with its attention layers laid out anew.

    Raises:
        UnsupportedError: the rewrite has no meaning for this model.

    >>> from kvcalc.layout import parse_layout
    >>> from kvcalc.sources.resolve import load
    >>> with_layout(load("gemma-3-1b"), parse_layout("1:1")).layout
    '13 sliding (512) + 13 full'
    """
    rewritten = _rewritten(model, layout)
    layers, order = distinct_layers(rewritten)
    # A layer with other heads has other weights, and their published count says nothing about them.
    kept = all(model.layers[index].mixer == layer.mixer for index, layer in zip(model.order, rewritten, strict=True))
    exact = model.provenance.exact_parameters and kept
    return model.changed(layers=layers, order=order, provenance=replace(model.provenance, exact_parameters=exact))


def with_window(model: Architecture, window: int) -> Architecture:
    """The same as ``with_layout`` of ``sw=window``, without looking at every layer, for a model with local layers.

    A window has no weights: those that were counted are kept.
    """
    layout = Layout(None, None, window)
    slid = [_laid_out(model, layer, is_local(layer.cache), layout, None) for layer in model.layers]
    layers, places = distinct_layers(slid)  # two that differed in their windows alone are one
    made = model.changed(layers=layers, order=tuple(places[index] for index in model.order))
    made.derived.update({key: found for key, found in model.derived.items() if key[:1] == ("weights",)})
    return made


def _rewritten(model: Architecture, layout: Layout) -> list[Layer]:
    ordered = [model.layers[index] for index in model.order]
    local = next((layer for layer in ordered if is_local(layer.cache)), None)
    global_ = next((layer for layer in ordered if isinstance(layer.cache, Full)), None)
    has_parallel = any(isinstance(layer.cache, Parallel) for layer in ordered)
    if layout.window is None and layout.local and local is None:
        raise UnsupportedError(
            f"{model.name} has no local layers, so {layout} does not say how wide its window is",
            hint=f"write {layout}/sw=1024, with the window that you want",
        )
    if layout.keeps_order and local is None:
        raise UnsupportedError(
            f"{model.name} has no local layers whose window {layout} could set",
            hint=f"write a ratio too, such as 5:1/{layout}",
        )
    if not has_parallel and local is None and global_ is None:
        raise UnsupportedError(f"{model.name} has no attention layers that {layout} could lay out")
    done: dict[tuple[int, bool], Layer] = {}
    result = []
    for position, layer in enumerate(ordered):
        slides = is_local(layer.cache) if layout.keeps_order else layout.is_local(position)
        key = (model.order[position], slides)
        if key not in done:
            done[key] = _laid_out(model, layer, slides, layout, local if slides else global_)
        result.append(done[key])
    owners: set[str] = set()
    for layer in result:
        if isinstance(layer.cache, Shared) and layer.cache.of not in owners:
            raise UnsupportedError(f"{layout} has no meaning for {model.name}: {_NO_OWNER}")
        owners.add(layer.cache.kind)
    return result


_NO_OWNER = "its layers that read another layer's cache would have no layer of their kind to read"


def _laid_out(model: Architecture, layer: Layer, slides: bool, layout: Layout, donor: Layer | None) -> Layer:
    """One layer under a layout; ``donor`` is the model's own layer of the wanted kind, if it has one."""
    cache = layer.cache
    match cache:
        case State() | Cross() | NoCache():
            return layer
        case Full() | Sliding() | Chunked():
            giver = layer if is_local(cache) == slides else (donor or layer)
            wanted = _slide(giver.cache, layout.window) if slides else _widen(giver.cache)
            return replace(layer, cache=wanted, mixer=giver.mixer)
        case Parallel():
            inner = donor.cache.attention if donor and isinstance(donor.cache, Parallel) else cache.attention
            attention = _slide(inner, layout.window) if slides else _widen(inner)
            assert isinstance(attention, Full | Sliding)  # an inner attention is never chunked
            return replace(layer, cache=replace(cache, attention=attention))
        case Shared() if not slides and not layout.keeps_order:
            # Its queries must fit the cache that it reads: those of the model's own readers of a global layer do.
            reader = next((each for each in model.layers if each.cache == Shared(of="full")), layer)
            return replace(layer, cache=Shared(of="full"), mixer=reader.mixer)
        case Shared() if layout.keeps_order:
            return replace(layer, cache=Shared(of="sliding")) if cache.of == "chunked" else layer
        case Latent() if not slides and cache.window is None:
            return layer
    reason = {
        "shared": _NO_OWNER,
        "latent": "a latent (MLA) layer has no sliding form here",
        "compressed": "a compressed layer always keeps its own window and its compressed entries",
    }[cache.kind]
    raise UnsupportedError(f"{layout} has no meaning for {model.name}: {reason}")


def _slide(kind: LayerKind, window: int | None) -> LayerKind:
    if is_local(kind) and window is None:
        return kind
    assert window is not None
    return Sliding(window, **_geometry(kind))


def _widen(kind: LayerKind) -> LayerKind:
    return kind if isinstance(kind, Full) else Full(**_geometry(kind))


def _geometry(kind: LayerKind) -> dict[str, int]:
    """What full, sliding and chunked attention have in common."""
    assert isinstance(kind, Full | Sliding | Chunked)
    heads = {"num_kv_heads": kind.num_kv_heads, "head_dim": kind.head_dim, "v_head_dim": kind.v_head_dim}
    return {**heads, "extra_state_bytes": kind.extra_state_bytes}
