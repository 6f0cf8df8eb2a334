"""SGLang's pools of tokens: what a budget gives, what is allocated, and the budget that gives so many tokens.

Source: sglang 0.5.23 ``model_executor/pool_configurator.py`` (sizes) and ``mem_cache/memory_pool.py`` (the page that
each pool adds).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from kvcalc.errors import UnsupportedError
from kvcalc.units import ceil_div, round_up, smallest_reaching

CONFIGURATOR = "sglang 0.5.23 model_executor/pool_configurator.py"
POOL = "sglang 0.5.23 mem_cache/memory_pool.py:2464"


@dataclass(frozen=True, slots=True)
class Pool:
    """A layout of the pool; ``main`` is the pool that ``max_total_num_tokens`` counts.

    Attributes:
        kind: plain (every layer in one pool), hybrid (full and sliding), capped (hybrid, the sliding pool sized by
            the running requests), all_sliding (no full layer: the sliding pool is the main one).
        page_size: tokens of a page.
        main_bytes: bytes of one token in all layers of the main pool.
        swa_bytes: bytes of one token in all layers of the second, sliding pool.
        ratio: sliding tokens for each full token (hybrid).
        capped_tokens: tokens of the sliding pool (capped).
        sliding_window_size: the window as the engine counts it; a hybrid pool must be larger than it and a page.
        least_tokens: the fewest tokens of the main pool with which the engine starts.
        main_beyond: bytes of one token that are allocated beyond ``main_bytes``: a draft's layers are paid for at the
            size of the model's, and take their own.
        swa_beyond: the same of the second pool.
    """

    kind: Literal["plain", "hybrid", "capped", "all_sliding"]
    page_size: int
    main_bytes: int
    swa_bytes: int = 0
    ratio: float = 0.0
    capped_tokens: int = 0
    sliding_window_size: int = 0
    least_tokens: int = 0
    main_beyond: int = 0
    swa_beyond: int = 0

    @property
    def cell(self) -> float:
        """Budget of one token of the main pool: an integer, but for a hybrid pool a float as in the engine.

        gpt-oss-20b: 2048 x 12 + 0.8 x (2048 x 12) = 44236.8 bytes.
        """
        return self.main_bytes + self.ratio * self.swa_bytes if self.kind == "hybrid" else self.main_bytes

    def swa_tokens(self, main_tokens: int) -> int:
        """Tokens of the second pool beside ``main_tokens`` in the main one."""
        if self.kind == "hybrid":
            # A float product, cut off and aligned, as in the engine.
            return int(main_tokens * self.ratio) // self.page_size * self.page_size
        return self.capped_tokens

    def main_tokens(self, kv_memory: int) -> int:
        """Tokens of the main pool for a budget, before any refusal."""
        page = self.page_size
        if self.kind == "hybrid":
            return int(kv_memory // self.cell) // page * page  # floor division of floats, as in the engine
        return (kv_memory - self.capped_tokens * self.swa_bytes) // self.main_bytes // page * page

    def allocated_bytes(self, main_tokens: int) -> int:
        """Bytes of both pools, with the one page that each of them adds."""
        page, swa_bytes = self.page_size, self.swa_bytes + self.swa_beyond
        swa = (self.swa_tokens(main_tokens) + page) * swa_bytes if swa_bytes else 0
        return (main_tokens + page) * (self.main_bytes + self.main_beyond) + swa

    def starts_with(self, main_tokens: int) -> bool:
        """Whether the engine starts with that many tokens in the main pool."""
        if self.kind != "hybrid":
            return main_tokens > 0
        return self.swa_tokens(main_tokens) > self.sliding_window_size + self.page_size

    def starting_tokens(self, kv_memory: int) -> int:
        """Tokens of the main pool for a budget.

        Raises:
            UnsupportedError: the engine refuses to start with it.
        """
        main = self.main_tokens(kv_memory)
        if not self.starts_with(main):
            raise UnsupportedError(
                f"sglang refuses to start with {kv_memory:,} bytes of KV memory: {self._shortage(main)}",
                hint="give it more KV memory" + (", or raise swa_full_tokens_ratio" if self.kind == "hybrid" else ""),
            )
        return main

    def full_and_sliding(self, main_tokens: int) -> tuple[int | None, int | None]:
        """Tokens of the full and of the sliding pool beside so many in the main one; None for a plain pool."""
        match self.kind:
            case "plain":
                return None, None
            case "all_sliding":
                return 0, main_tokens
            case _:
                return main_tokens, self.swa_tokens(main_tokens)

    def _shortage(self, main: int) -> str:
        if self.kind == "hybrid":
            floor = f"{self.sliding_window_size:,} + {self.page_size:,}"
            return f"its sliding pool of {self.swa_tokens(main):,} tokens is not above the window and a page ({floor})"
        if self.kind == "capped":
            return f"a sliding pool of {self.capped_tokens:,} tokens leaves no room for the full layers"
        return "not one page of tokens fits"

    def budget(self, main_tokens: int) -> int:
        """The smallest budget, in bytes, that gives the main pool so many tokens (a multiple of the page)."""
        if self.kind != "hybrid":
            return self.capped_tokens * self.swa_bytes + main_tokens * self.main_bytes
        numerator, denominator = self.cell.as_integer_ratio()
        guess = ceil_div(main_tokens * numerator, denominator)
        return smallest_reaching(guess, lambda budget: self.main_tokens(budget) >= main_tokens)


def sliding_pool(
    page_size: int,
    *,
    full_bytes: int,
    swa_bytes: int,
    ratio: float,
    sliding_window_size: int,
    request_cap: int | None = None,
    draft_paid: tuple[int, int] = (0, 0),
    draft_bytes: tuple[int, int] = (0, 0),
) -> Pool:
    """A pool for the full layers and one for the sliding layers.

    Args:
        page_size: tokens of a page.
        full_bytes: bytes of one token in all layers of the full pool; 0 where the model has none.
        swa_bytes: bytes of one token in all layers of the sliding pool.
        ratio: sliding tokens for each full token.
        sliding_window_size: the window as the engine counts it.
        request_cap: tokens that the running requests can hold in the sliding pool, in place of the ratio.
        draft_paid: what one token of a draft takes of the budgets of both pools.
        draft_bytes: bytes of one token of a draft in both pools.
    """
    if not full_bytes:
        paid, held = sum(draft_paid), sum(draft_bytes)
        return Pool("all_sliding", page_size, swa_bytes + paid, least_tokens=page_size, main_beyond=held - paid)
    main, swa = full_bytes + draft_paid[0], swa_bytes + draft_paid[1]
    beyond = tuple(held - paid for held, paid in zip(draft_bytes, draft_paid, strict=True))
    if request_cap is not None:
        capped = round_up(request_cap, page_size)
        return Pool("capped", page_size, main, swa, 0.0, capped, 0, page_size, *beyond)
    pool = Pool("hybrid", page_size, main, swa, ratio, 0, sliding_window_size, 0, *beyond)
    guess = int((sliding_window_size + 2 * page_size) / ratio) // page_size
    least_pages = smallest_reaching(guess, lambda pages: pool.starts_with(pages * page_size))
    return replace(pool, least_tokens=least_pages * page_size)
