"""Section 5.2 of the Gemma 3 technical report, as data and as computed tables.

The published figures stand here as they were published; everything else is computed by the cost model. A published
figure is never interpolated. Source: Gemma 3 technical report (2025), section 5.2, figures 3 to 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Literal

from kvcalc.architecture import Architecture
from kvcalc.footprints import Footprint, footprint
from kvcalc.layout import Layout, parse_layout
from kvcalc.relayout import with_layout

#: The reconstruction of the report's 2B ablation model, and the published model it is held against.
RECONSTRUCTION = "gemma3-report-2b"
COUNTERPART = "gemma-2-2b"

#: Figure 3: the local:global ratios that were trained, at 2B and 9B, text only.
ABLATED_RATIOS = ("1:1", "3:1", "5:1", "7:1")
#: Every change of validation perplexity in figure 3 lies within this bound.
RATIO_PERPLEXITY_BOUND = 0.1
#: Figure 4: the windows that were trained, for a 2B model at 1:1 and at 3:1.
ABLATED_WINDOWS = (512, 1024, 2048, 4096)
WINDOW_RATIOS = ("1:1", "3:1")
#: Every change of validation perplexity in figure 4 is claimed to lie within this bound.
WINDOW_PERPLEXITY_BOUND = 0.01

#: Figure 5: five configurations at a context of 32k. The second and third labels are the likely originals.
FIGURE_5_CONTEXT = 32 * 1024
FIGURE_5_LAYOUTS = ("global", "1:1/sw=4096", "1:1/sw=1024", "3:1/sw=4096", "3:1/sw=1024")
#: The axis of figure 5 ends at 5000 MB.
FIGURE_5_AXIS_BYTES = 5000 * 10**6

#: Figure 6: the contexts of its axis, for 5:1 with a window of 1024 against global only.
FIGURE_6_CONTEXTS = tuple(thousand * 1024 for thousand in (1, 4, 8, 16, 32, 64, 128))
FIGURE_6_LAYOUTS = ("global", "5:1/sw=1024")

#: What the copy of the report at hand leaves open.
CAVEATS = (
    "The report does not publish its 2B model's geometry or its byte widths; the reconstruction is one that meets "
    "every published figure, and not the only one (27 layers at exactly 60 % would give 14.8 %).",
    "The copy of the report at hand labels three bars of figure 5 alike; '1:1 sw=1024' and '3:1 sw=4096' are the "
    "likely originals: a conjecture.",
    "Ratios are local:global; the report's '1:3' is 3:1 here.",
)


@dataclass(frozen=True)
class Evidence:
    """What the report published about quality: a bound, never a point.

    Attributes:
        figure: the exhibit.
        varied: what was varied, and over which values.
        models: the models that were trained.
        bound: the largest change of validation perplexity, in either direction.
    """

    figure: str
    varied: str
    models: str
    bound: float


EVIDENCE = (
    Evidence("Fig. 3", f"local:global ratio {', '.join(ABLATED_RATIOS)}", "2B and 9B, text only", 0.1),
    Evidence("Fig. 4", "window 512, 1024, 2048, 4096 at 1:1", "2B, text only", 0.01),
    Evidence("Fig. 4", "window 512, 1024, 2048, 4096 at 3:1", "2B, text only", 0.01),
)


#: Where a layout stands against what was trained: at a trained point, between two of them, outside all of them, or
#: (a window) at a ratio whose window nobody varied. A layout without local layers has nothing that was varied.
Place = Literal["trained", "between", "outside", "not varied", "no local layers"]


@dataclass(frozen=True)
class Standing:
    """Where a layout stands against the report's ablations, and the sentence that says so.

    A change of perplexity is quoted at trained points only, as the bound that was published; between them and beyond
    them nothing is predicted.
    """

    ratio: Place
    window: Place
    text: str

    @property
    def label(self) -> str:
        """Ratio and window in a few words, for a table."""
        if self.ratio == "no local layers":
            return "no local layers"
        return f"ratio {self.ratio}, window {self.window}"


def evidence(layout: Layout) -> Standing:
    """What the report measured of a layout such as ``5:1/sw=1024``.

    >>> evidence(parse_layout("3:1/sw=1024")).label, evidence(parse_layout("5:1/sw=768")).label
    ('ratio trained, window trained', 'ratio trained, window not varied')
    """
    if layout.local == 0:
        return Standing("no local layers", "no local layers", "no local layers: nothing that the report varied")
    ratio, ratio_text = _ratio_place(layout)
    window, window_text = _window_place(layout)
    return Standing(ratio, window, f"{ratio_text}; {window_text}")


def _ratio_place(layout: Layout) -> tuple[Place, str]:
    if layout.local is None or layout.global_ is None:
        return "outside", "layers in no L:G order: not trained in the report"
    word = f"{layout.local}:{layout.global_}"
    if word in ABLATED_RATIOS:
        bound = f"perplexity changed by at most {RATIO_PERPLEXITY_BOUND}, 2B and 9B text-only models"
        return "trained", f"ratio {word} was trained (Fig. 3: {bound})"
    fewest, most = (parse_layout(ABLATED_RATIOS[end]).local or 0 for end in (0, -1))
    # An all-local layout has no global layers, so it lies beyond every ratio.
    if fewest * layout.global_ <= layout.local <= most * layout.global_:
        common = gcd(layout.local, layout.global_)
        same = f"{layout.local // common}:{layout.global_ // common}"
        reason = f"the order of {same} was" if same in ABLATED_RATIOS else f"{_listed(ABLATED_RATIOS)} were"
        return "between", f"ratio {word} was not trained; {reason} (Fig. 3)"
    return "outside", f"ratio {word} lies outside the trained {ABLATED_RATIOS[0]} to {ABLATED_RATIOS[-1]} (Fig. 3)"


def _window_place(layout: Layout) -> tuple[Place, str]:
    if layout.window is None:
        return "not varied", "no single window that the report varied"
    word, window = f"{layout.local}:{layout.global_}", layout.window
    if word not in WINDOW_RATIOS:
        return "not varied", f"windows were varied at {_listed(WINDOW_RATIOS)} only (Fig. 4)"
    if window in ABLATED_WINDOWS:
        bound = f"perplexity changed by at most {WINDOW_PERPLEXITY_BOUND}, 2B text-only models"
        return "trained", f"window {window:,} was trained at {word} (Fig. 4: {bound})"
    if ABLATED_WINDOWS[0] < window < ABLATED_WINDOWS[-1]:
        below = max(trained for trained in ABLATED_WINDOWS if trained < window)
        above = min(trained for trained in ABLATED_WINDOWS if trained > window)
        return "between", f"window {window:,} lies between the trained {below:,} and {above:,} (Fig. 4)"
    trained = f"{ABLATED_WINDOWS[0]:,} to {ABLATED_WINDOWS[-1]:,}"
    return "outside", f"window {window:,} lies outside the trained {trained} (Fig. 4)"


def _listed(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


@dataclass(frozen=True)
class Claim:
    """A sentence of section 5.2 held against the cost model.

    Attributes:
        published: what the report says.
        computed: what the model gives.
        holds: whether the two agree.
        assumption: for which model, and read how.
    """

    published: str
    computed: str
    holds: bool
    assumption: str


def figure_5(model: Architecture) -> list[Footprint]:
    """Model and KV memory of the five configurations, at equal widths of weights and cache."""
    return [footprint(with_layout(model, parse_layout(word)), context=FIGURE_5_CONTEXT) for word in FIGURE_5_LAYOUTS]


def figure_6(model: Architecture) -> list[list[Footprint]]:
    """KV memory over the context: a row a context, a column a layout."""
    layouts = [with_layout(model, parse_layout(word)) for word in FIGURE_6_LAYOUTS]
    return [[footprint(layout, context=context) for layout in layouts] for context in FIGURE_6_CONTEXTS]


def claims(model: Architecture) -> list[Claim]:
    """Every claim of section 5.2 about memory, for one model.

    A percentage without digits behind the point, given as 60 %, holds where the computed value rounds to it at the
    precision of tens (55 % to 65 %).
    """
    bars = figure_5(model)
    curve = figure_6(model)
    by_layout = dict(zip(FIGURE_5_LAYOUTS, bars, strict=True))
    whole, local = by_layout["global"], by_layout["3:1/sw=1024"]
    literal = footprint(with_layout(model, Layout(1, 3, 1024)), context=FIGURE_5_CONTEXT)
    at = f"{model.name}, 32k tokens, batch size 1, {whole.weights.dtype} weights and cache"
    growth = [(row[0].kv_cache.bytes, tokens) for row, tokens in zip(curve, FIGURE_6_CONTEXTS, strict=True)]
    per_token = {size // tokens for size, tokens in growth if size % tokens == 0}
    first, last = curve[0], curve[-1]
    largest = max(made.total_bytes for made in bars)
    return [
        Claim(
            "global only: a memory overhead of 60 % (KV cache over model)",
            _percent(whole),
            _within(whole, 0.55, 0.65),
            at,
        ),
        Claim("3:1 with a window of 1024: less than 15 %", _percent(local), _within(local, 0.0, 0.15), at),
        Claim(
            "the same bar, labelled '1:3', read literally (one local to three global): less than 15 %",
            _percent(literal),
            _within(literal, 0.0, 0.15),
            f"{at}; read so the claim cannot hold, hence '1:3' means 3:1",
        ),
        Claim(
            "model and cache stay under 5000 MB (axis of Fig. 5)",
            f"{largest / 10**6:,.0f} MB",
            largest < FIGURE_5_AXIS_BYTES,
            at,
        ),
        Claim(
            "global only grows exponentially with the context (Fig. 6)",
            f"{min(per_token):,} bytes for every token: linear" if len(per_token) == 1 else "not linear",
            len(per_token) != 1,
            "the axis of Fig. 6 doubles at each step, which makes a straight line look exponential",
        ),
        Claim(
            "5:1 with a window of 1024 grows far more slowly (Fig. 6)",
            f"{_times(last)} less at 128k tokens, {_times(first)} at 1k",
            last[1].kv_cache.bytes * 2 < last[0].kv_cache.bytes,
            f"{model.name}, {whole.weights.dtype} cache",
        ),
    ]


def _percent(made: Footprint) -> str:
    return f"{100 * (made.overhead or 0):.1f} %"


def _within(made: Footprint, low: float, high: float) -> bool:
    return low <= (made.overhead or 0) < high


def _times(pair: list[Footprint]) -> str:
    return f"{pair[0].kv_cache.bytes / pair[1].kv_cache.bytes:.2f} times"
