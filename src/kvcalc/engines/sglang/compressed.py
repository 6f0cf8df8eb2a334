"""DeepSeek V4 in SGLang: a paged pool of windows, pools of compressed latents and index keys, and compressor states.

One budget is divided as for a hybrid model: F tokens in all layers' compressed pools and S = F x ratio in the windows'.
A latent is 448 numbers of 8 bits, 64 of 16 and 8 bytes of scales; every page is a multiple of 576 bytes.

Source: sglang 0.5.23 ``model_executor/pool_configurator.py:1066`` (the budget),
``mem_cache/deepseek_v4_memory_pool.py`` (the pools), ``mem_cache/deepseek_v4_compress_state.py`` (the states),
``kernels/ops/attention/dsv4/kv_layout.py`` (the pages).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kvcalc.architecture import Compressed, LayerKind, kind_label
from kvcalc.derivation import Derivation, Quantity
from kvcalc.engines.base import KVCache, LayerBytes
from kvcalc.engines.sglang.layers import Ranks
from kvcalc.errors import NotModelledError, UnsupportedError
from kvcalc.units import round_up, smallest_reaching

_SIZES = "sglang 0.5.23 model_executor/pool_configurator.py:1409"
_PAGES = "sglang 0.5.23 mem_cache/deepseek_v4_memory_pool.py:166"
_STATES = "sglang 0.5.23 mem_cache/deepseek_v4_compress_state.py:161"

#: Tokens of a page of the windows; a pool of entries of ``ratio`` tokens has pages of 256 // ratio of them.
PAGE = 256
#: Bytes of a latent, and what a page of latents is rounded up to.
_LATENT, _ALIGNMENT = 584, 576
_WIDTH, _INDEXER = 512, 128
#: The part of F that the windows get where nobody names one (pool_configurator.py:1046), and the requests that run at
#: once likewise (arg_groups/deepseek_v4_hook.py:136).
DEFAULT_COMPRESSED_RATIO, DEFAULT_COMPRESSED_RUNNING = 0.1, 256
#: Bytes of an index key: 128 numbers of 8 bits and a scale.
INDEX_KEY = 132
#: Tokens whose K and scores wait for their entry, by its ratio, without and with a draft.
_RINGS = {4: (8, 16), 128: (128, 256)}


def latent_page_bytes(ratio: int = 1) -> int:
    """Bytes of a page of latents, each for ``ratio`` tokens.

    >>> latent_page_bytes(), latent_page_bytes(4), latent_page_bytes(128)
    (149760, 37440, 1728)
    """
    return round_up(PAGE // ratio * _LATENT, _ALIGNMENT)


@dataclass(frozen=True)
class CompressedPlan:
    """The pools of compressed layers.

    Attributes:
        rows: the model's kinds of layers and how many it has of each.
        draft_layers: layers of a draft, which keep a window alone, in a pool of as many tokens.
        drafts: whether tokens are drafted.
        ratio: tokens of the windows' pool for each token of the compressed ones.
        running: requests that run at once on one device.
        ranks: how devices share attention.
        index_bytes: bytes of an index key: 132, or 68 in 4 bits (the budget counts 132 all the same).
    """

    rows: tuple[tuple[Compressed, int], ...]
    draft_layers: int
    drafts: bool
    ratio: float
    running: int
    ranks: Ranks
    index_bytes: int

    @cached_property
    def window(self) -> int:
        """Tokens of the widest window."""
        return max(kind.window for kind, _ in self.rows)

    def _layers(self, ratio: int) -> int:
        return sum(count for kind, count in self.rows if kind.ratio == ratio)

    def _ring(self, ratio: int) -> int:
        return _RINGS[ratio][self.drafts]

    # ---- the budget, in floats as in the engine ----

    @cached_property
    def token_bytes(self) -> float:
        """Budget of one token, all layers: ``bytes_per_full_token``."""
        layers, fours = sum(count for _, count in self.rows), self._layers(4)
        states = self._ring(4) / PAGE * (16 * _WIDTH + 16 * _INDEXER) * fours
        window = latent_page_bytes() / PAGE * layers + states
        entries = 0.0
        if fours:
            entries += (1 / 4 * (latent_page_bytes(4) / (PAGE // 4)) + 1 / 4 * INDEX_KEY) * fours
        if many := self._layers(128):
            entries += 1 / 128 * (latent_page_bytes(128) / (PAGE // 128)) * many
        total = self.ratio * window + entries
        return total * ((layers + 1) / layers) if self.drafts else total

    def _state_rows(self, ratio: int, size: int) -> int:
        """Rows of a pool of states: the rings, one more of them and one row, in whole entries."""
        return round_up(size + self._ring(ratio) + 1, ratio)

    def _waiting_bytes(self, running: int) -> int:
        """Bytes of the states behind entries of 128 tokens: a ring for each request that runs, and one for padding."""
        rows = self._state_rows(128, (running + 1) * self._ring(128))
        return rows * 8 * _WIDTH * self._layers(128)

    def main_tokens(self, kv_memory: int) -> int:
        """F of a budget."""
        left = max(kv_memory - self._waiting_bytes(self.running), 0)
        return int(left / self.token_bytes) // PAGE * PAGE

    def window_tokens(self, main: int) -> int:
        """S beside F."""
        return int(main * self.ratio) // PAGE * PAGE

    def runs(self, main: int) -> int:
        """Requests that run at once beside F tokens (kv_cache_configurator.py:3119)."""
        return min(self.running, main // 2)

    def starts_with(self, main: int) -> bool:
        """Whether the engine starts: one request must find room in the windows' pool."""
        return self.window_tokens(main) > self.window + PAGE

    @cached_property
    def least_tokens(self) -> int:
        """The fewest tokens with which it starts."""
        guess = int((self.window + 2 * PAGE) / self.ratio) // PAGE
        return smallest_reaching(guess, lambda pages: self.starts_with(pages * PAGE)) * PAGE

    # ---- what is allocated ----

    def layer_bytes(self, kind: Compressed, main: int) -> int:
        """Bytes of one layer: its window, its entries, its index keys, and the states of both."""
        windows = self.window_tokens(main) // PAGE
        # Each pool has room for one page of 256 tokens more, whatever its own pages hold.
        size = (windows + 1) * latent_page_bytes()
        if kind.ratio == 4:
            pages = main // PAGE + PAGE // 64
            rows = self._state_rows(4, windows * self._ring(4))
            size += pages * (latent_page_bytes(4) + 64 * self.index_bytes) + rows * 16 * (_WIDTH + _INDEXER)
        elif kind.ratio == 128:
            size += (main // PAGE + PAGE // 2) * latent_page_bytes(128)
            size += self._state_rows(128, (self.runs(main) + 1) * self._ring(128)) * 8 * _WIDTH
        return size

    def allocated_bytes(self, main: int) -> int:
        """Bytes of all pools, a draft's among them."""
        own = sum(count * self.layer_bytes(kind, main) for kind, count in self.rows)
        return own + self._draft_bytes(main)

    def _draft_bytes(self, main: int) -> int:
        return self.draft_layers * (self.window_tokens(main) // PAGE + 1) * latent_page_bytes()

    # ---- a workload ----

    def _main_tokens(self, context: int, batch_size: int) -> int:
        return max(self.ranks.sequences(batch_size) * round_up(context, PAGE), self.least_tokens)

    def kv_bytes(self, context: int, batch_size: int) -> int:
        """Bytes of the smallest pools that start and have room for every token."""
        return self.allocated_bytes(self._main_tokens(context, batch_size))

    def allocate(self, context: int, batch_size: int) -> KVCache:
        """A row for each kind of layer; the window of a draft follows."""
        main = self._main_tokens(context, batch_size)
        windows = self.window_tokens(main)
        rows = [
            LayerBytes(kind.kind, kind_label(kind), count, kind.window, main, count * self.layer_bytes(kind, main))
            for kind, count in self.rows
        ]
        if self.draft_layers:
            kind: LayerKind = Compressed(_WIDTH, self.window)
            size = self._draft_bytes(main)
            rows.append(LayerBytes(kind.kind, "draft: window", self.draft_layers, self.window, windows, size))
        total = self.allocated_bytes(main)
        why = f"windows of {windows:,} tokens beside {main:,} in compressed entries"
        notes = [
            f"the windows' pool follows swa_full_tokens_ratio ({self.ratio:g}), not the context",
            f"states of {self.runs(main):,} running requests are held whatever the workload (max_running_requests)",
        ]
        if main > self.ranks.sequences(batch_size) * round_up(context, PAGE):
            notes.append(f"the pool is larger than the workload: sglang starts with no fewer than {main:,} tokens")
        return KVCache(total, total, tuple(rows), 0, why, (*notes, *self.ranks.notes))

    def required_with_prefix(self, context: int, batch_size: int, prefix: int) -> int:
        """Not known: the windows behind a prefix are kept apart."""
        raise NotModelledError("what sequences share of a prefix is not modelled for sglang's compressed layers")

    def required_kv_memory(self, context: int, batch_size: int) -> int:
        """The smallest budget with which SGLang builds those pools."""
        main = self._main_tokens(context, batch_size)
        guess = int(main * self.token_bytes) + self._waiting_bytes(self.running)
        return smallest_reaching(guess, lambda memory: self.main_tokens(memory) >= main)

    def report(self, context: int, batch_size: int, kv_memory: int) -> dict[str, Any]:
        """SGLang's own names for the pools of a budget.

        Raises:
            UnsupportedError: SGLang refuses to start with that budget.
        """
        main = self.main_tokens(kv_memory)
        if not self.starts_with(main):
            raise UnsupportedError(
                f"sglang refuses to start with {kv_memory:,} bytes of KV memory: its sliding pool of "
                f"{self.window_tokens(main):,} tokens is not above the window and a page ({self.window} + {PAGE})",
                hint="give it more KV memory, or raise swa_full_tokens_ratio",
            )
        windows, runs = self.window_tokens(main), self.runs(main)
        sequences = self.ranks.sequences(batch_size)
        return {
            "max_total_num_tokens": main,
            "full_max_total_num_tokens": main,
            "swa_max_total_num_tokens": windows,
            "c4_max_total_num_tokens": main // 4,
            "c128_max_total_num_tokens": main // 128,
            "c4_state_pool_size": windows // PAGE * self._ring(4) if self._layers(4) else 0,
            "c128_state_pool_size": (runs + 1) * self._ring(128) if self._layers(128) else 0,
            "allocated_bytes": self.allocated_bytes(main),
            "max_running_requests": runs,
            "fits": sequences <= runs and main >= sequences * round_up(context, PAGE),
        }

    def explain(self, context: int, batch_size: int) -> tuple[Quantity, ...]:
        """Tokens of the pools, the budget that gives them, and the bytes of a layer of each kind."""
        work = Derivation(context, batch_size)
        work.let("P", "tokens of a page", str(PAGE), "tokens", _SIZES)
        work.let("least", "fewest tokens that sglang starts with", str(self.least_tokens), "tokens", _SIZES)
        tokens = f"max({self.ranks.sequences_formula} * round_up(T, P), least)"
        work.let("F", "tokens in compressed entries", tokens, "tokens", _SIZES)
        work.let_float("ratio", "tokens in windows for each of them", repr(self.ratio), "", "swa_full_tokens_ratio")
        work.let("S", "tokens in windows", "int(F * ratio) // P * P", "tokens", _SIZES)
        work.let("R", "requests that run at once", f"min({self.running}, F // 2)", "requests", "max_running_requests")
        work.let_float("cell", "budget of one token, all layers", repr(self.token_bytes), "bytes", _SIZES)
        fixed = str(self._waiting_bytes(self.running))
        work.let("fixed", "budget of the states behind entries of 128 tokens", fixed, "bytes", _SIZES)
        formula = "smallest_reaching(int(F * cell) + fixed, lambda m: int(max(m - fixed, 0) / cell) // P * P >= F)"
        work.let("required_bytes", "memory that gives them", formula, "bytes", _SIZES)
        window = f"(S // P + 1) * {latent_page_bytes()}"
        work.let("window_bytes", "window of one layer", window, "bytes", _PAGES)
        terms: list[str] = []
        for kind, count in self.rows:
            terms.append(f"layers_{len(terms) + 1}")
            formula = self._layer_formula(kind)
            work.let(terms[-1], f"{count} {kind_label(kind)}", f"{count} * ({formula})", "bytes", _STATES)
        if self.draft_layers:
            terms.append("draft")
            work.let("draft", "windows of the draft", f"{self.draft_layers} * window_bytes", "bytes", _PAGES)
        work.let("kv_bytes", "KV cache", " + ".join(terms), "bytes")
        return tuple(work.quantities)

    def _layer_formula(self, kind: Compressed) -> str:
        if kind.ratio == 4:
            ring = self._ring(4)
            page = latent_page_bytes(4) + 64 * self.index_bytes
            states = f"round_up(S // P * {ring} + {ring + 1}, 4) * {16 * (_WIDTH + _INDEXER)}"
            return f"window_bytes + (F // P + 4) * {page} + {states}"
        if kind.ratio == 128:
            ring = self._ring(128)
            states = f"round_up((R + 1) * {ring} + {ring + 1}, 128) * {8 * _WIDTH}"
            return f"window_bytes + (F // P + 128) * {latent_page_bytes(128)} + {states}"
        return "window_bytes"


def compressed_rows(
    name: str, kinds: tuple[LayerKind, ...], rows: tuple[tuple[LayerKind, int], ...]
) -> tuple[tuple[Compressed, int], ...]:
    """The rows, all of compressed layers.

    Raises:
        UnsupportedError: layers of other widths than DeepSeek V4's, whose page its pools assert.
    """
    for kind in kinds:
        known = isinstance(kind, Compressed) and kind.width == _WIDTH and kind.ratio in (None, 4, 128)
        if not known or (isinstance(kind, Compressed) and kind.indexer_dim != (_INDEXER if kind.ratio == 4 else 0)):
            raise UnsupportedError(
                f"sglang has pools for the compressed layers of DeepSeek V4 alone, and {name} has "
                f"{kind_label(kind)} layers (mem_cache/deepseek_v4_memory_pool.py:316)"
            )
    return tuple((kind, count) for kind, count in rows if isinstance(kind, Compressed))
