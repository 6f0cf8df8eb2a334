"""How many blocks a group of layers takes from vLLM's pool: for one sequence, for several, and while it grows.

Source: vllm 0.33.0 v1/kv_cache_interface.py, v1/core/single_type_kv_cache_manager.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvcalc.engines.vllm.specs import Form as SpecForm
from kvcalc.units import ceil_div

#: A spec's form, or the states of every block.
Form = SpecForm | Literal["every state"]


@dataclass(frozen=True, slots=True)
class Blocks:
    """How many blocks one group takes from the pool.

    Attributes:
        form: as in the spec.
        block_size: tokens in one block; 0 where a state is the whole sequence's.
        window: tokens of the window or chunk.
        under_way: tokens of the steps under way that a window keeps beside itself (all of them for one sequence).
        lookahead: slots that a drafter takes ahead of the tokens of a step.
        shards: ranks over which decode context parallelism spreads the tokens.
        fixed: blocks of one sequence that do not depend on the context (states, encoder tokens).
        encoder_blocks: of those, blocks that the encoder's tokens of this workload fill (cross-attention).
    """

    form: Form
    block_size: int
    window: int = 0
    under_way: int = 0
    lookahead: int = 0
    shards: int = 1
    fixed: int = 0
    encoder_blocks: int = 0

    @property
    def label(self) -> str:
        """The form with its window."""
        return f"{self.form} ({self.window})" if self.window else self.form

    def reserved(self, context: int) -> int:
        """The most blocks that a sequence of up to ``context`` tokens may hold at once, as vLLM plans it.

        A window of 6 tokens may start inside a block of 4, [XXCD] [EFGH] [XXXX]: that is the one more block.
        """
        size = self.block_size * self.shards
        match self.form:
            case "sliding" | "sliding latent":
                return -(-min(self.window - 1 + self.under_way, context) // size) + 1
            case "chunked":
                return -(-min(self.window + self.under_way, context) // size)
            case "state" | "cross":
                return self.fixed
            case _:
                return -(-context // size)

    def reserved_formula(self) -> str:
        """:meth:`reserved` over ``T`` (context), ``F`` (tokens under way) and ``max_num_batched_tokens``."""
        size = str(self.block_size) if self.shards == 1 else f"({self.block_size} * {self.shards})"
        match self.form:
            case "sliding" | "sliding latent":
                return f"ceil_div(min({self.window} - 1 + F, T), {size}) + 1"
            case "chunked":
                return f"ceil_div(min({self.window} + F, T), {size})"
            case "state":
                return str(self.fixed)
            case "cross":
                return f"ceil_div(max_num_batched_tokens, {self.block_size})"
            case _:
                return f"ceil_div(T, {size})"

    @property
    def _started(self) -> tuple[int, int, int]:
        """Of a window: blocks held before any step, tokens that open the next one, and the block.

        A window of W tokens before the oldest one under way starts anywhere in its block, so u more tokens reach
        into ``ceil((W - 2 + u) / block) + 1`` blocks; a chunk, which starts at its block's edge, into
        ``ceil((C - 1 + u) / block)``, and one more where blocks do not divide chunks.
        """
        kept = self.window - (2 if self.form != "chunked" else 1) + self.lookahead
        opened = -(-kept // self.block_size)
        beyond = 1 if self.form != "chunked" or self.window % self.block_size else 0
        return opened + beyond, opened * self.block_size - kept + 1, self.block_size

    def most(self, context: int, batch_size: int, under_way: int) -> int:
        """The most blocks that several sequences hold at once, with ``under_way`` tokens of steps between them.

        Any of them may have its whole window and tokens under way: one whose prompt begins with a cached prefix has
        the window from its first step on.
        """
        match self.form:
            case "sliding" | "sliding latent" | "chunked":
                started, opens, size = self._started
                further = min(batch_size, under_way // opens) + max(0, under_way - batch_size * opens) // size
                return min(batch_size * -(-context // size), batch_size * started + further)
            case "cross":
                return (
                    max(self.fixed, batch_size * self.encoder_blocks)
                    if self.encoder_blocks
                    else self.fixed * batch_size
                )
            case _:
                return batch_size * self.reserved(context)

    def most_formula(self) -> str:
        """:meth:`most` over ``T``, ``B`` and ``F``."""
        match self.form:
            case "sliding" | "sliding latent" | "chunked":
                started, opens, size = self._started
                further = f"min(B, F // {opens}) + max(0, F - B * {opens}) // {size}"
                return f"min(B * ceil_div(T, {size}), B * {started} + {further})"
            case "cross" if self.encoder_blocks:
                return f"max({self.reserved_formula()}, B * {self.encoder_blocks})"
            case _:
                return f"B * {self.reserved_formula()}"

    def resident(self, tokens: int, computed: int, in_flight: int) -> int:
        """Blocks held in the step that brings a sequence to ``tokens``, with ``computed`` before it.

        Whole blocks before the window of the oldest token still under way are given back first.
        """
        settled = max(0, computed - in_flight)
        match self.form:
            case "state":
                return self.fixed
            case "cross":
                return self.encoder_blocks
            case "sliding" | "sliding latent":
                freed = max(0, settled - self.window + 1) // self.block_size
            case "chunked":
                freed = settled // self.window * self.window // self.block_size
            case _:
                freed = 0
        return ceil_div(tokens, self.block_size * self.shards) - freed
