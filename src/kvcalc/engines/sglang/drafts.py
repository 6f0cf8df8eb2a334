"""Speculation in SGLang: what it drafts where nobody says, and the pool of the draft's own layers.

The draft has a pool of as many tokens as the model, in its own sizes. EAGLE, MTP and standalone drafts are paid for at
the size of the model's layers; block drafts (DFLASH, DSPARK) at their own.

Source: sglang 0.5.23 ``model_executor/pool_configurator.py:252`` and :735, ``model_runner_components/
spec_aux_hidden_state.py:130``, ``arg_groups/speculative_hook.py:1430``, ``mem_cache/allocation_sizing.py:28``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvcalc.architecture import Architecture, LayerKind, NoCache
from kvcalc.engines.sglang.layers import Ranks, bytes_of_token, in_sliding_pool, indexer_bytes
from kvcalc.errors import NotModelledError
from kvcalc.units import round_up

if TYPE_CHECKING:
    from kvcalc.setup import Setup

#: Steps, branches and tokens of a draft by default; a Llama's drafts branch.
_CHAIN, _TREE = (3, 1, 4), (5, 4, 8)
_TREES = frozenset({"llama", "grok-1"})
#: Algorithms whose draft proposes a block at once.
BLOCKS = frozenset({"DFLASH", "DSPARK"})
#: Requests that run at once with speculation, where nobody says.
DEFAULT_RUNNING = 48


@dataclass(frozen=True, slots=True)
class Speculation:
    """How tokens are drafted.

    Attributes:
        algorithm: ``speculative_algorithm``.
        steps: steps of the draft.
        branches: tokens that it follows in each (``speculative_eagle_topk``).
        tokens: tokens that are verified at once.
    """

    algorithm: str
    steps: int
    branches: int
    tokens: int

    @classmethod
    def of(
        cls, model: Architecture, algorithm: str, steps: int | None, branches: int | None, tokens: int | None
    ) -> Speculation:
        """The speculation of options, with the engine's defaults: a chain of four tokens."""
        if algorithm in BLOCKS:
            return cls(algorithm, 1, 1, tokens or 16)
        if steps is None and branches is None and tokens is None:
            tree = model.model_type in _TREES and algorithm != "STANDALONE"
            return cls(algorithm, *(_TREE if tree else _CHAIN))
        steps, branches = steps or (tokens or 2) - 1, branches or 1
        return cls(algorithm, steps, branches, steps + 1 if branches == 1 else tokens or steps * branches)

    def decode_tokens(self, page_size: int, *, overlaps: bool) -> int:
        """Tokens of the sliding pool that one request may take in a step of decoding (pool_configurator.py:941)."""
        if overlaps:
            needed = max(self.steps * self.branches, self.tokens)
            if page_size > 1 and self.branches > 1:
                pages = (2 * (page_size - 1) + self.steps) // page_size
                needed = max(pages * page_size * self.branches, self.tokens)
            return 2 * needed
        spare = page_size if self.branches > 1 and page_size > 1 else 0
        return max(
            round_up(self.steps + spare, page_size) * self.branches,
            round_up(self.tokens, page_size),
        )


@dataclass(frozen=True, slots=True)
class DraftPool:
    """The pool of a draft's layers.

    Attributes:
        rows: kinds of layers, their number, whether their tokens are those of the sliding pool, and bytes of a token.
        layers: how many there are.
        sliding: how many the engine pays for in the sliding pool.
        own_size: they are paid for at their own size, in the main pool.
    """

    rows: tuple[tuple[LayerKind, int, bool, int], ...] = ()
    layers: int = 0
    sliding: int = 0
    own_size: bool = False

    def paid_beside_windows(self, full_bytes: int, swa_bytes: int) -> tuple[int, int]:
        """What one token takes of the budgets of a full and a sliding pool, by bytes of a token in a layer of each."""
        if self.own_size:
            return self.bytes(sliding=False) + self.bytes(sliding=True), 0
        return (self.layers - self.sliding) * full_bytes, self.sliding * swa_bytes

    def bytes(self, *, sliding: bool) -> int:
        """Bytes of one token in all layers of that pool."""
        return sum(count * size for _, count, second, size in self.rows if second == sliding)


def draft_pool(
    setup: Setup, ranks: Ranks, algorithm: str, hybrid_types: frozenset[str], sliding_layers: int
) -> DraftPool:
    """The pool of a setup's draft; an empty one without.

    Args:
        setup: the model with its draft.
        ranks: how devices share the model's attention.
        algorithm: ``speculative_algorithm``.
        hybrid_types: model types that have a sliding pool.
        sliding_layers: layers of the model in its sliding pool; 0 where it has none.

    Raises:
        NotModelledError: the draft has other layers than attention.
    """
    draft = setup.draft
    if draft is None:
        return DraftPool()
    # Every device of context parallelism has all tokens of a draft; its heads are divided among those of a group.
    drafting = replace(ranks, heads=ranks.draft_heads * ranks.spread)
    kinds = [(kind, count) for kind, count in draft.caches if not isinstance(kind, NoCache)]
    is_hybrid = sliding_layers > 0 and draft.model_type in hybrid_types
    rows = []
    for kind, count in kinds:
        if kind.kind not in ("full", "sliding", "chunked", "latent"):
            raise NotModelledError(f"the pool of a draft with {kind.kind} layers is not modelled for sglang")
        second = is_hybrid and in_sliding_pool(kind)
        size = bytes_of_token(kind, setup, drafting) * ranks.spread + indexer_bytes(kind, setup, ranks)
        rows.append((kind, count, second, size))
    layers = sum(count for _, count in kinds)
    sliding = sum(count for _, count, second, _ in rows if second)
    if is_hybrid and setup.drafts_itself:
        # The model's own prediction layers: their number is read from its configuration, the split from its layers.
        sliding = min(sliding_layers, layers)
    return DraftPool(tuple(rows), layers, sliding, algorithm in BLOCKS)


def paid_in_plain_pool(
    draft: DraftPool, kinds: Sequence[tuple[LayerKind, int]], cell: int, setup: Setup, ranks: Ranks
) -> int:
    """What one token of a draft takes of the budget of a plain pool, whose tokens take ``cell`` bytes.

    DeepSeek's index keys are counted apart from the latents, which alone are divided by context parallelism.
    """
    if not draft.layers:
        return 0
    if draft.own_size:
        return draft.bytes(sliding=False)
    layers = sum(count for _, count in kinds)
    if not any(kind.kind == "latent" and indexer_bytes(kind, setup, ranks) for kind, _ in kinds):
        return int(cell * draft.layers / layers)
    keys = sum(count * indexer_bytes(kind, setup, ranks) for kind, count in kinds)
    key = max(indexer_bytes(kind, setup, ranks) for kind, _ in kinds)
    return int((cell - keys) * draft.layers / layers) * ranks.spread + key * draft.layers
