"""What a workload costs in SGLang's pools: tokens, states, the budget that gives them, and the shown work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kvcalc.architecture import LayerKind, kind_label, window_of
from kvcalc.derivation import Derivation, Quantity
from kvcalc.engines.base import KVCache, LayerBytes
from kvcalc.engines.sglang.layers import Ranks
from kvcalc.engines.sglang.pools import CONFIGURATOR, POOL, Pool
from kvcalc.engines.sglang.states import STATE_POOL, StatePool
from kvcalc.errors import NotModelledError, UnsupportedError
from kvcalc.units import ceil_div, round_up

#: A kind of layers, how many there are, whether their tokens are those of the second pool, and bytes of a token in one.
PoolRow = tuple[LayerKind, int, bool, int]


@dataclass(frozen=True, slots=True)
class SGLangPlan:
    """The pools and the layers in them.

    Attributes:
        own: the model's layers.
        drafted: a draft's, which are in pools of their own and of as many tokens.
        ranks: how devices share attention.
        states: the slots of recurrent states, or None.
        state_rows: the kinds with a state, their layers, and the bytes of one slot in one of them.
    """

    pool: Pool
    own: tuple[PoolRow, ...]
    drafted: tuple[PoolRow, ...]
    why: str
    notes: tuple[str, ...]
    max_running_requests: int | None
    ranks: Ranks
    states: StatePool | None = None
    state_rows: tuple[tuple[LayerKind, int, int], ...] = ()

    @property
    def rows(self) -> tuple[PoolRow, ...]:
        """All layers."""
        return self.own + self.drafted

    def pool_bytes(self, rows: Iterable[PoolRow], main_tokens: int) -> int:
        """Bytes of these layers in their pools beside so many tokens in the main one, with the pages added."""
        tokens = {False: main_tokens, True: self.pool.swa_tokens(main_tokens)}
        return sum(count * (tokens[second] + self.pool.page_size) * size for _, count, second, size in rows)

    def _slots(self, context: int, batch_size: int) -> int:
        """State slots of the smallest budget that serves the workload."""
        assert self.states is not None
        return self.states.slots(self.required_kv_memory(context, batch_size))

    def _needed_tokens(self, context: int, batch_size: int) -> int:
        """Tokens of the sequences of one group that lie on one device, in whole pages."""
        pages = ceil_div(context, self.pool.page_size * self.ranks.spread)
        return self.ranks.sequences(batch_size) * pages * self.pool.page_size

    def _main_tokens(self, context: int, batch_size: int) -> int:
        return max(self._needed_tokens(context, batch_size), self.pool.least_tokens)

    def kv_bytes(self, context: int, batch_size: int) -> int:
        """Bytes of the smallest pool that starts and has a slot for every token of every sequence."""
        main = self._main_tokens(context, batch_size)
        tokens = self.pool.allocated_bytes(main)
        if self.states is None:
            return tokens
        return tokens + self.states.allocated_bytes(self._slots(context, batch_size), main)

    def allocate(self, context: int, batch_size: int) -> KVCache:
        """The pools: one row a layer kind, and the page that each pool adds as padding."""
        pool = self.pool
        main = self._main_tokens(context, batch_size)
        swa = pool.swa_tokens(main)
        rows = []
        for kind, count, second, token_bytes in self.rows:
            tokens = swa if second else main
            window = None if pool.kind == "plain" else window_of(kind)
            rows.append(
                LayerBytes(kind.kind, kind_label(kind), count, window, tokens, count * tokens * token_bytes),
            )
        total = pool.allocated_bytes(main)
        if self.states is not None:
            slots = self._slots(context, batch_size)
            total += self.states.allocated_bytes(slots, main)
            rows += [
                LayerBytes(kind.kind, kind_label(kind), count, None, 0, count * slots * slot_bytes)
                for kind, count, slot_bytes in self.state_rows
            ]
            if verified := self.states.verified_bytes(slots, main):
                layers = sum(count for _, count, _ in self.state_rows)
                rows.append(LayerBytes("state", "states of drafted tokens", layers, None, 0, verified))
        notes = [*self.notes, *self.ranks.notes]
        if main > self._needed_tokens(context, batch_size):
            notes.append(
                f"the pool is larger than the workload: sglang starts with no fewer than {main:,} tokens, because its "
                f"sliding pool must be larger than the window and a page"
            )
        if self.max_running_requests is not None and self.ranks.sequences(batch_size) > self.max_running_requests:
            at_once = self.max_running_requests * self.ranks.groups
            notes.append(f"sglang runs at most {at_once} of these sequences at once")
        return KVCache(total, total, tuple(rows), total - sum(row.bytes for row in rows), self.why, tuple(notes))

    def required_with_prefix(self, context: int, batch_size: int, prefix: int) -> int:
        """The same for sequences whose first ``prefix`` tokens stand in the radix tree once, in whole pages."""
        if self.states is not None:
            raise NotModelledError("what sequences share of a prefix is not modelled for sglang's states")
        page = self.pool.page_size * self.ranks.spread
        sequences = self.ranks.sequences(batch_size)
        shared = (sequences - 1) * (prefix // page * page)
        return self.required_kv_memory(sequences * round_up(context, page) - shared, 1)

    def required_kv_memory(self, context: int, batch_size: int) -> int:
        """The smallest budget with which SGLang builds that pool; it allocates a page a pool more."""
        tokens = self.pool.budget(self._main_tokens(context, batch_size))
        return tokens if self.states is None else self.states.budget(self.ranks.sequences(batch_size), tokens)

    def report(self, context: int, batch_size: int, kv_memory: int) -> dict[str, Any]:
        """SGLang's own names for a budget's pool sizes, and whether the workload fits them.

        Raises:
            UnsupportedError: SGLang refuses to start with that budget.
        """
        slots = None if self.states is None else self.states.slots(kv_memory)
        if self.states is not None and slots is not None and slots < self.states.slots_per_request:
            raise UnsupportedError(
                f"sglang refuses to start with {kv_memory:,} bytes of KV memory: {max(slots, 0)} state slots fit, and "
                f"one request holds {self.states.slots_per_request}",
                hint="give it more KV memory, or set max_mamba_cache_size",
            )
        main = self.pool.starting_tokens(kv_memory if self.states is None else self.states.left(kv_memory))
        full, sliding = self.pool.full_and_sliding(main)
        sequences = self.ranks.sequences(batch_size)
        runs = self.max_running_requests is None or sequences <= self.max_running_requests
        state_figures: dict[str, Any] = {}
        states = 0
        if self.states is not None and slots is not None:
            states = self.states.allocated_bytes(slots, main)
            runs = runs and sequences <= slots // self.states.slots_per_request
            state_figures = {
                "max_mamba_cache_size": slots,
                "conv_state_bytes": (slots + 1) * self.states.conv_bytes,
                "ssm_state_bytes": (slots + 1) * self.states.ssm_bytes,
                "max_running_requests": slots // self.states.slots_per_request,
            }
        return {
            "max_total_num_tokens": main * self.ranks.spread,
            "full_max_total_num_tokens": full,
            "swa_max_total_num_tokens": sliding,
            "allocated_bytes": self.pool.allocated_bytes(main) + states,
            **state_figures,
            "fits": runs and main >= self._needed_tokens(context, batch_size),
        }

    def explain(self, context: int, batch_size: int) -> tuple[Quantity, ...]:
        """Tokens of each pool, bytes of a token in it, the budget that gives them, and the page that each pool adds."""
        pool, work = self.pool, Derivation(context, batch_size)
        name = "sliding" if pool.kind == "all_sliding" else "full" if pool.swa_bytes else "every layer's"
        work.let("P", "page size", str(pool.page_size), "tokens", "page_size")
        sequences, spread = self.ranks.sequences_formula, self.ranks.spread
        tokens = f"{sequences} * round_up(T, P)"
        if spread > 1:
            tokens = f"{sequences} * ceil_div(T, P * {spread}) * P"
        if pool.kind == "hybrid":
            least = str(pool.least_tokens)
            work.let("least", "fewest tokens that sglang starts with", least, "tokens", f"{CONFIGURATOR}:198")
            tokens = f"max({tokens}, least)"
        work.let("F", f"tokens of the {name} pool", tokens, "tokens", CONFIGURATOR)
        work.let("full_cell", f"bytes of a token, {name} pool", self._cell(second=False), "bytes", CONFIGURATOR)
        if pool.swa_bytes + pool.swa_beyond:
            swa, source = str(pool.capped_tokens), f"{CONFIGURATOR}:924"
            if pool.kind == "hybrid":
                ratio = repr(pool.ratio)
                work.let_float("ratio", "sliding tokens a full token", ratio, "", "swa_full_tokens_ratio")
                swa, source = "int(F * ratio) // P * P", f"{CONFIGURATOR}:859"
            work.let("S", "tokens of the sliding pool", swa, "tokens", source)
            work.let("swa_cell", "bytes of a token, sliding pool", self._cell(second=True), "bytes", CONFIGURATOR)
        names: list[str] = []
        for kind, count, second, token_bytes in self.rows:
            names.append(f"layers_{len(names) + 1}")
            of_layer = f"{count} * {'S' if second else 'F'} * {token_bytes}"
            work.let(names[-1], f"{count} {kind_label(kind)}, without the added page", of_layer, "bytes", POOL)
        self._work_budget(work)
        for kind, count, slot_bytes in self.state_rows:
            names.append(f"layers_{len(names) + 1}")
            work.let(names[-1], f"{count} {kind_label(kind)}", f"{count} * slots * {slot_bytes}", "bytes", STATE_POOL)
        total = "(F + P) * full_cell"
        total += " + (S + P) * swa_cell" if pool.swa_bytes + pool.swa_beyond else ""
        if self.states is not None:
            total += " + (slots + 1) * slot"
            if self.states.draft_tokens:
                verified = self.states.verified_formula()
                work.let("drafted", "states of drafted tokens", verified, "bytes", STATE_POOL)
                total += " + drafted"
        work.let("kv_bytes", "KV cache", total, "bytes", POOL)
        return tuple(work.quantities)

    def _work_budget(self, work: Derivation) -> None:
        """The smallest budget, and the state slots that it has: searches, because the engine divides floats."""
        pool, full, swa = self.pool, "full_cell", "swa_cell"
        if pool.main_beyond or pool.swa_beyond:
            meaning = "budget of a token, a draft's layers at the size of the model's"
            full, swa = "full_paid", "swa_paid"
            work.let(full, meaning, f"full_cell - {pool.main_beyond}", "bytes", CONFIGURATOR)
            if pool.kind in ("capped", "hybrid"):
                work.let(swa, meaning, f"swa_cell - {pool.swa_beyond}", "bytes", CONFIGURATOR)
        formula = f"F * {full}"
        if pool.kind == "capped":
            formula += f" + S * {swa}"
        elif pool.kind == "hybrid":
            work.let_float("cell", "budget of one token", f"{full} + ratio * {swa}", "bytes", CONFIGURATOR)
            formula = "smallest_reaching(int(F * cell), lambda budget: int(budget // cell) // P * P >= F)"
        meaning = "memory that gives them, before the added page"
        if self.states is None:
            work.let("required_bytes", meaning, formula, "bytes", CONFIGURATOR)
            return
        work.let("token_bytes", meaning, formula, "bytes", CONFIGURATOR)
        states = " + ".join(f"{count} * {slot_bytes}" for _, count, slot_bytes in self.state_rows)
        work.let("slot", "bytes of one slot, all layers", states, "bytes", STATE_POOL)
        per_request = str(self.states.slots_per_request)
        work.let("each", "slots that a running request may hold", per_request, "slots", STATE_POOL)
        least, slots = self.states.formulas(self.ranks.sequences_formula)
        work.let("least_slots", "slots that leave room for the tokens", least, "slots", STATE_POOL)
        start = "" if self.states.fixed_slots is not None else f", {self.states.start_formula('least_slots')}"
        required = f"token_bytes + {self.states.paid_formula('least_slots')}"
        required = f"max({required}{start})" if start else required
        work.let("required_bytes", "memory that gives tokens and slots", required, "bytes", CONFIGURATOR)
        work.let("slots", "state slots of that memory", slots, "slots", STATE_POOL)

    def _cell(self, *, second: bool) -> str:
        terms = [f"{count} * {token_bytes}" for _, count, in_second, token_bytes in self.rows if in_second == second]
        return " + ".join(terms)
