"""What vLLM's versions do differently: one row for each span of versions that agree.

Every release in :data:`READ` was read at its source. A version between two of them follows the older one, a newer one
the newest and an older one the oldest, and a note says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from kvcalc.engines import vllm_loading, vllm_memory
from kvcalc.engines.releases import Release, release, text

#: The version that answers where none is named.
NEWEST = "0.33.0"


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one span of versions.

    Attributes:
        first: the first version that follows them.
        utilization_percent: the default of gpu_memory_utilization.
        counts_every_batch: a window reserves for all batches under way, not for one (PR 47728).
        tokens_by_group: the logged token count is num_blocks // groups * smallest block, not concurrency * length.
        padding_percent: the largest bucket sets the group size when it is below so many percent of the smallest
            (None: the smallest always does).
        check: what the start-up check compares with the memory: the layers' own needs added up, the blocks of the
            first group alone, those of all groups, or those and the null block (PR 47272).
        checks_all_stages: it takes the layers of all pipeline stages for one's (issue 34076).
        pads_attention, pads_states: a page that does not divide the largest is padded to it, not refused.
        counts_speculation: a request reserves a state for every speculated token, and one more in align mode.
        aligns_states: models with states can have prefix caching, and keep that of the last whole block ("align").
        caches_all_states: with it, Mamba models keep a state for every block instead ("all").
        steps_from_block_size: the attention block beside states grows in steps of block_size where that is larger.
        latent_steps: tokens in which it grows beside latents.
        shards_prefill: prefill context parallelism divides the cache as decode context parallelism does.
        counts_state_blocks: a server of a model with states starts with no more sequences than blocks.
        caches_hybrid_prefixes: prefix caching is on for models with states unless it is turned off.
        packing: how pages of several sizes share a block (DeepSeek V4): so many tuples of one page of each size as the
            widest group needs; so many slots of each size; groups one over the other; or those, with windows split so
            that they do not widen the block.
        packs_windows: TurboQuant packs windows, too, in pages as large as those of the full layers.
        checkpoints_mamba2, checkpoints_gdn: with prefix caching, a prompt's prefill writes one more state, where its
            last whole block ends (Mamba-2; gated delta nets with FlashInfer's kernels).
    """

    first: Release
    utilization_percent: int
    counts_every_batch: bool
    tokens_by_group: bool
    padding_percent: int | None
    check: Literal["layers", "first group", "groups", "null block"]
    checks_all_stages: bool
    pads_attention: bool
    pads_states: bool
    counts_speculation: bool
    aligns_states: bool
    caches_all_states: bool
    steps_from_block_size: bool
    latent_steps: int
    shards_prefill: bool
    counts_state_blocks: bool
    caches_hybrid_prefixes: bool
    packing: Literal["tuples", "slots", "overlaid", "split"]
    packs_windows: bool
    checkpoints_mamba2: bool
    checkpoints_gdn: bool


_0_11 = Rules(
    first=(0, 11, 0),
    utilization_percent=90,
    counts_every_batch=False,
    tokens_by_group=True,
    padding_percent=None,
    check="layers",
    checks_all_stages=False,
    pads_attention=False,
    pads_states=False,
    counts_speculation=False,
    aligns_states=False,
    caches_all_states=False,
    steps_from_block_size=False,
    latent_steps=64,
    shards_prefill=False,
    counts_state_blocks=False,
    caches_hybrid_prefixes=False,
    packing="tuples",
    packs_windows=False,
    checkpoints_mamba2=False,
    checkpoints_gdn=False,
)
_0_12 = replace(_0_11, first=(0, 12, 0), padding_percent=125, shards_prefill=True, caches_all_states=True)
_0_14 = replace(_0_12, first=(0, 14, 0), check="first group", checks_all_stages=True)
_0_15 = replace(_0_14, first=(0, 15, 0), counts_speculation=True, aligns_states=True)
_0_17 = replace(_0_15, first=(0, 17, 0), checks_all_stages=False)
_0_18 = replace(_0_17, first=(0, 18, 0), padding_percent=150)
_0_19 = replace(_0_18, first=(0, 19, 0), check="groups")
_0_20 = replace(
    _0_19,
    first=(0, 20, 0),
    utilization_percent=92,
    steps_from_block_size=True,
    latent_steps=16,
    counts_state_blocks=True,
)
_0_20_1 = replace(_0_20, first=(0, 20, 1), tokens_by_group=False)
_0_23 = replace(_0_20_1, first=(0, 23, 0), packing="slots")
_0_24 = replace(_0_23, first=(0, 24, 0), pads_attention=True)
_0_26 = replace(
    _0_24,
    first=(0, 26, 0),
    counts_every_batch=True,
    pads_states=True,
    shards_prefill=False,
    caches_hybrid_prefixes=True,
)
_0_27 = replace(_0_26, first=(0, 27, 0), latent_steps=128, packing="overlaid")
_0_28 = replace(_0_27, first=(0, 28, 0), caches_all_states=False)
_0_29 = replace(_0_28, first=(0, 29, 0), check="null block", packing="split")
_0_30 = replace(_0_29, first=(0, 30, 0), packs_windows=True)
_0_32 = replace(_0_30, first=(0, 32, 0), checkpoints_mamba2=True)
_0_33 = replace(_0_32, first=(0, 33, 0), checkpoints_gdn=True)

#: The spans, oldest first; each ends where the next begins.
SPANS = (
    _0_11,
    _0_12,
    _0_14,
    _0_15,
    _0_17,
    _0_18,
    _0_19,
    _0_20,
    _0_20_1,
    _0_23,
    _0_24,
    _0_26,
    _0_27,
    _0_28,
    _0_29,
    _0_30,
    _0_32,
    _0_33,
)

#: The releases whose planner was read, oldest first.
READ: tuple[Release, ...] = (
    (0, 11, 0),
    (0, 11, 2),
    (0, 12, 0),
    (0, 14, 0),
    (0, 15, 1),
    (0, 16, 0),
    (0, 17, 1),
    (0, 18, 0),
    (0, 19, 0),
    (0, 20, 0),
    (0, 20, 1),
    (0, 20, 2),
    (0, 22, 0),
    (0, 23, 0),
    (0, 24, 0),
    (0, 25, 1),
    (0, 26, 0),
    (0, 27, 1),
    (0, 28, 0),
    (0, 29, 0),
    (0, 30, 0),
    (0, 31, 0),
    (0, 32, 0),
    (0, 33, 0),
)


@lru_cache(maxsize=64)  # a plan asks some fifty times
def rules_of(version: str) -> Rules:
    """The rules of a version.

    >>> rules_of("0.25.1").counts_every_batch, rules_of("0.26.0").counts_every_batch
    (False, True)
    """
    found = release(version)
    return next((rules for rules in reversed(SPANS) if rules.first <= found), SPANS[0])


def releases_by_rules() -> tuple[tuple[str, ...], ...]:
    """The releases that were read, the newest first, those together that plan, load and profile by the same rules.

    >>> releases_by_rules()[-1]
    ('0.11.2', '0.11.0')
    """
    alike: dict[tuple[Release, int], list[str]] = {}
    for each in reversed(READ):
        changed = sum(each[:2] >= change for change in (*vllm_loading.CHANGES, *vllm_memory.CHANGES))
        alike.setdefault((rules_of(text(each)).first, changed), []).append(text(each))
    return tuple(map(tuple, alike.values()))
