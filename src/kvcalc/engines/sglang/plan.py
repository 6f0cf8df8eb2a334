"""What a workload costs in SGLang's pools: tokens, states, the budget that gives them, and the shown work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvcalc.architecture import LayerKind, kind_label, window_of
from kvcalc.derivation import Derivation, Quantity
from kvcalc.engines.base import KVCache, LayerBytes
from kvcalc.engines.sglang.pools import CONFIGURATOR, POOL, Pool
from kvcalc.engines.sglang.states import STATE_POOL, StatePool
from kvcalc.errors import UnsupportedError
from kvcalc.units import round_up


@dataclass(frozen=True, slots=True)
class SGLangPlan:
    """A pool and the layers in it: kind, layers, whether they are in the second pool, bytes of a token in one.

    Attributes:
        states: the slots of recurrent states, or None.
        state_rows: the kinds with a state, their layers, and the bytes of one slot in one of them.
    """

    pool: Pool
    rows: tuple[tuple[LayerKind, int, bool, int], ...]
    why: str
    notes: tuple[str, ...]
    max_running_requests: int | None
    states: StatePool | None = None
    state_rows: tuple[tuple[LayerKind, int, int], ...] = ()

    def _slots(self, context: int, batch_size: int) -> int:
        """State slots of the smallest budget that serves the workload."""
        assert self.states is not None
        return self.states.slots(self.required_kv_memory(context, batch_size))

    def _state_bytes(self, context: int, batch_size: int) -> int:
        return 0 if self.states is None else self.states.allocated_bytes(self._slots(context, batch_size))

    def _main_tokens(self, context: int, batch_size: int) -> int:
        page = self.pool.page_size
        return max(batch_size * (-(-context // page) * page), self.pool.least_tokens)

    def kv_bytes(self, context: int, batch_size: int) -> int:
        """Bytes of the smallest pool that starts and has a slot for every token of every sequence."""
        tokens = self.pool.allocated_bytes(self._main_tokens(context, batch_size))
        return tokens + self._state_bytes(context, batch_size)

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
            kept = slots + self.states.verified_states(slots)
            total += self.states.allocated_bytes(slots)
            rows += [
                LayerBytes(kind.kind, kind_label(kind), count, None, 0, count * kept * slot_bytes)
                for kind, count, slot_bytes in self.state_rows
            ]
        notes = list(self.notes)
        if main > batch_size * round_up(context, pool.page_size):
            notes.append(
                f"the pool is larger than the workload: sglang starts with no fewer than {main:,} tokens, because its "
                f"sliding pool must be larger than the window and a page"
            )
        if self.max_running_requests is not None and batch_size > self.max_running_requests:
            notes.append(f"sglang runs at most {self.max_running_requests} of these sequences at once")
        return KVCache(total, total, tuple(rows), total - sum(row.bytes for row in rows), self.why, tuple(notes))

    def required_with_prefix(self, context: int, batch_size: int, prefix: int) -> int:
        """The same for sequences whose first ``prefix`` tokens stand in the radix tree once, in whole pages."""
        page = self.pool.page_size
        shared = (batch_size - 1) * (prefix // page * page)
        return self.required_kv_memory(batch_size * round_up(context, page) - shared, 1)

    def required_kv_memory(self, context: int, batch_size: int) -> int:
        """The smallest budget with which SGLang builds that pool; it allocates a page a pool more."""
        tokens = self.pool.budget(self._main_tokens(context, batch_size))
        return tokens if self.states is None else self.states.budget(batch_size, tokens)

    def report(self, context: int, batch_size: int, kv_memory: int) -> dict[str, Any]:
        """SGLang's own names for a budget's pool sizes, and whether the workload fits them.

        Raises:
            UnsupportedError: SGLang refuses to start with that budget.
        """
        slots = None if self.states is None else self.states.slots(kv_memory)
        if slots is not None and slots <= 0:
            raise UnsupportedError(
                f"sglang refuses to start with {kv_memory:,} bytes of KV memory: not one state slot fits",
                hint="give it more KV memory, or set max_mamba_cache_size",
            )
        sizes = self.pool.sizes(kv_memory if self.states is None else self.states.left(kv_memory))
        runs = self.max_running_requests is None or batch_size <= self.max_running_requests
        state_figures: dict[str, Any] = {}
        if self.states is not None and slots is not None:
            runs = runs and batch_size <= slots // self.states.slots_per_request
            state_figures = {
                "max_mamba_cache_size": slots,
                "conv_state_bytes": (slots + 1) * self.states.conv_bytes,
                "ssm_state_bytes": (slots + 1) * self.states.ssm_bytes,
                "max_running_requests": slots // self.states.slots_per_request,
            }
        return {
            "max_total_num_tokens": sizes.max_total_num_tokens,
            "full_max_total_num_tokens": sizes.full_max_total_num_tokens,
            "swa_max_total_num_tokens": sizes.swa_max_total_num_tokens,
            "allocated_bytes": sizes.allocated_bytes + (0 if slots is None else self._allocated_states(slots)),
            **state_figures,
            "fits": runs and sizes.max_total_num_tokens >= batch_size * round_up(context, self.pool.page_size),
        }

    def _allocated_states(self, slots: int) -> int:
        return 0 if self.states is None else self.states.allocated_bytes(slots)

    def explain(self, context: int, batch_size: int) -> tuple[Quantity, ...]:
        """Tokens of each pool, bytes of a token in it, the budget that gives them, and the page that each pool adds."""
        pool, work = self.pool, Derivation(context, batch_size)
        name = "sliding" if pool.kind == "all_sliding" else "full" if pool.swa_bytes else "every layer's"
        work.let("P", "page size", str(pool.page_size), "tokens", "page_size")
        tokens = "B * round_up(T, P)"
        if pool.kind == "hybrid":
            least = str(pool.least_tokens)
            work.let("least", "fewest tokens that sglang starts with", least, "tokens", f"{CONFIGURATOR}:198")
            tokens = f"max({tokens}, least)"
        work.let("F", f"tokens of the {name} pool", tokens, "tokens", CONFIGURATOR)
        work.let("full_cell", f"bytes of a token, {name} pool", self._cell(second=False), "bytes", CONFIGURATOR)
        if pool.swa_bytes:
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
            assert self.states is not None
            kept = f"{count} * (slots{self.states.verified_formula('slots')}) * {slot_bytes}"
            work.let(names[-1], f"{count} {kind_label(kind)}", kept, "bytes", STATE_POOL)
        total = "(F + P) * full_cell"
        total += " + (S + P) * swa_cell" if pool.swa_bytes else ""
        total += f" + {self.states.allocated_formula('slots')}" if self.states is not None else ""
        work.let("kv_bytes", "KV cache", total, "bytes", POOL)
        return tuple(work.quantities)

    def _work_budget(self, work: Derivation) -> None:
        """The smallest budget, and the state slots that it has: searches, because the engine divides floats."""
        formula = "F * full_cell"
        if self.pool.kind == "capped":
            formula += " + S * swa_cell"
        elif self.pool.kind == "hybrid":
            work.let_float("cell", "budget of one token", "full_cell + ratio * swa_cell", "bytes", CONFIGURATOR)
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
        least, slots = self.states.formulas()
        work.let("least_slots", "slots that leave room for the tokens", least, "slots", STATE_POOL)
        start = "" if self.states.fixed_slots is not None else f", {self.states.start_formula('least_slots')}"
        required = f"token_bytes + {self.states.allocated_formula('least_slots')}"
        required = f"max({required}{start})" if start else required
        work.let("required_bytes", "memory that gives tokens and slots", required, "bytes", CONFIGURATOR)
        work.let("slots", "state slots of that memory", slots, "slots", STATE_POOL)

    def _cell(self, *, second: bool) -> str:
        terms = [f"{count} * {token_bytes}" for _, count, in_second, token_bytes in self.rows if in_second == second]
        return " + ".join(terms)
