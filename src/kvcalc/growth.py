"""The rules of growth of a configuration: what one more token costs, and when what overtakes what.

Contexts are found by bisection over the engine's own plan and are exact; rates are differences of whole caches over a
span of tokens, because an engine grows by blocks and not by tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from kvcalc.setup import Setup
from kvcalc.units import MAX_TOKENS, largest

#: The span over which the final rate is taken, and where it begins: far beyond every window.
_SPAN = 2**20
_FAR = 2**30

_LOCAL_SHARE = Fraction(1, 100)


@dataclass(frozen=True)
class Growth:
    """How one configuration's cache grows with the context, at one batch size.

    Attributes:
        early_bytes_per_token: the rate over the second half of the smallest window, or None without a window.
        late_bytes_per_token: the rate over 2^20 tokens far beyond every window.
        saturation_context: the context from which the windowed layers hold no more; None without such layers, or
            where they never stop (an engine whose pool gives them a fixed share).
        overtakes_weights_context: the first context whose cache is larger than the weights, or None up to 2^40.
        small_share_context: the context from which the windowed layers are under 1 % of the cache, or None likewise.
        has_windows: some layers keep a window only.
    """

    early_bytes_per_token: Fraction | None
    late_bytes_per_token: Fraction
    saturation_context: int | None
    overtakes_weights_context: int | None
    small_share_context: int | None
    has_windows: bool


def growth(setup: Setup, batch_size: int) -> Growth:
    """The rules of growth of one configuration.

    >>> from kvcalc.setup import prepare
    >>> from kvcalc.sources.resolve import load
    >>> rules = growth(prepare(load("gemma-3-27b")), 1)
    >>> int(rules.early_bytes_per_token), int(rules.late_bytes_per_token)
    (507904, 81920)
    >>> rules.saturation_context, rules.overtakes_weights_context, rules.small_share_context
    (1024, 654084, 527156)
    """
    plan, weights_bytes = setup.plan, setup.weights.bytes

    def kv_bytes(context: int) -> int:
        return plan.kv_bytes(context, batch_size)

    def windowed_bytes(context: int) -> int:
        return sum(row.bytes for row in plan.allocate(context, batch_size).layers if row.window is not None)

    rows = plan.allocate(MAX_TOKENS, batch_size).layers
    window = min((row.window for row in rows if row.window is not None), default=None)
    late = Fraction(kv_bytes(_FAR + _SPAN) - kv_bytes(_FAR), _SPAN)
    overtakes = _first(lambda context: kv_bytes(context) > weights_bytes)
    if window is None:
        return Growth(None, late, None, overtakes, None, has_windows=False)
    span = max(1, window // 2)
    early = Fraction(kv_bytes(window) - kv_bytes(window - span), span) if window > 1 else None
    held = windowed_bytes(MAX_TOKENS)
    saturates = windowed_bytes(MAX_TOKENS // 2) == held
    return Growth(
        early_bytes_per_token=early,
        late_bytes_per_token=late,
        saturation_context=_first(lambda context: windowed_bytes(context) >= held) if saturates else None,
        overtakes_weights_context=overtakes,
        small_share_context=_first(lambda context: windowed_bytes(context) < _LOCAL_SHARE * kv_bytes(context)),
        has_windows=True,
    )


def _first(holds: Callable[[int], bool]) -> int | None:
    """The first context at which something holds that goes on holding, or None if it never does."""
    last_without = largest(lambda context: not holds(context), MAX_TOKENS)
    return None if last_without == MAX_TOKENS else last_without + 1
