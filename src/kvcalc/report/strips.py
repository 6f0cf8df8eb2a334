"""The layers of a model in order, as a picture of them needs it."""

from __future__ import annotations

from kvcalc.architecture import Architecture, is_local, kind_label
from kvcalc.report.document import Strip


def strip(label: str, model: Architecture) -> Strip:
    """The layers of a model in order.

    >>> from kvcalc.sources.resolve import load
    >>> strip("gemma", load("gemma-3-1b")).kinds
    (('sliding (512)', True), ('full', False))
    """
    kinds = [(kind_label(layer.cache), is_local(layer.cache)) for layer in model.layers]
    distinct = list(dict.fromkeys(kinds))  # layers that differ in their weights alone look alike
    return Strip(label, tuple(distinct), tuple(distinct.index(kinds[index]) for index in model.order))
