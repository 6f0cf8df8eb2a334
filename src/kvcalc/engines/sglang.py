"""SGLang 0.5.23: one pool of tokens for all layers, or a second one for the sliding layers of a few model types.

Source: sglang 0.5.23 ``model_executor/pool_configurator.py`` (sizes), ``configs/model_config.py`` (which models have a
sliding pool) and ``mem_cache/memory_pool.py`` (the page that each pool adds).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from kvcalc.architecture import (
    Architecture,
    Chunked,
    Compressed,
    Cross,
    Full,
    Latent,
    LayerKind,
    NoCache,
    Parallel,
    Shared,
    Sliding,
    State,
    is_local,
    kind_label,
    window_of,
)
from kvcalc.derivation import Derivation, Quantity
from kvcalc.dtypes import parse_dtype
from kvcalc.engines.base import KVCache, LayerBytes, Loads, Server, refuse_formats, refuse_kind, refuse_uneven_heads
from kvcalc.engines.options import EngineOptions
from kvcalc.errors import InputError, NotModelledError, UnsupportedError
from kvcalc.units import GiB, ceil_div, round_up, smallest_reaching

if TYPE_CHECKING:
    from kvcalc.setup import Setup

_VERSION = "0.5.23"
_CONFIGURATOR = f"sglang {_VERSION} model_executor/pool_configurator.py"
_POOL = f"sglang {_VERSION} mem_cache/memory_pool.py:2464"
_STATE_POOL = f"sglang {_VERSION} mem_cache/kv_cache_configurator.py:3229, memory_pool.py:505"
#: Slots that a request may hold while the radix cache is on (kv_cache_configurator.py:227): its own, one that is being
#: written and one that the cache keeps; and those in which an extra buffer follows a prefill or a step.
_SLOTS_PER_REQUEST = 3
#: Tokens in a page of a sparse-attention pool, and tokens that share one scale of an index key.
_INDEXER_PAGE, _INDEXER_BLOCK = 64, 128
_ALLOW_LIST = f"sglang {_VERSION} configs/model_config.py:2651"

#: Model types whose sliding (or chunked) layers get a pool of their own; every other model is allocated in full.
HYBRID_MODEL_TYPES = frozenset(
    {"gpt_oss", "llama4", "gemma4", "gemma4_unified", "mimo_v2_flash", "step3p5", "muse_glimmer"}
)
#: Model types whose window SGLang counts without the current token: 128 in the configuration is 127 in the engine.
_EXCLUSIVE_WINDOW = frozenset({"gemma2", "gemma3", "gemma3n", "gemma4", "gemma4_unified", "gpt_oss"})
#: Tokens between two evictions from the sliding pool (SGLANG_SWA_EVICTION_INTERVAL).
_EVICTION_INTERVAL = 128
#: Storage formats whose pool is elements x bytes; the fp4 and mxfp8 formats add scale buffers of their own.
_DTYPES = frozenset({"bfloat16", "float16", "float32", "fp8_e4m3", "fp8_e5m2"})

#: Model types with cross-attention that it has a class for: srt/models/mllama.py, whisper.py.
_CROSS_MODELS = frozenset({"mllama", "whisper"})

_REFUSED: dict[type, str] = {
    Cross: "what an encoder's tokens take of its pool was not checked",
    Compressed: "compressed layers have pools of their own, which are not modelled",
}


@dataclass(frozen=True, slots=True)
class PoolSizes:
    """What SGLang makes of a budget: ``full`` and ``swa`` are None for a plain pool."""

    max_total_num_tokens: int
    full_max_total_num_tokens: int | None
    swa_max_total_num_tokens: int | None
    allocated_bytes: int


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
    """

    kind: Literal["plain", "hybrid", "capped", "all_sliding"]
    page_size: int
    main_bytes: int
    swa_bytes: int = 0
    ratio: float = 0.0
    capped_tokens: int = 0
    sliding_window_size: int = 0
    least_tokens: int = 0

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
        page = self.page_size
        swa = (self.swa_tokens(main_tokens) + page) * self.swa_bytes if self.swa_bytes else 0
        return (main_tokens + page) * self.main_bytes + swa

    def starts_with(self, main_tokens: int) -> bool:
        """Whether the engine starts with that many tokens in the main pool."""
        if self.kind != "hybrid":
            return main_tokens > 0
        return self.swa_tokens(main_tokens) > self.sliding_window_size + self.page_size

    def sizes(self, kv_memory: int) -> PoolSizes:
        """The pools of a budget.

        Raises:
            UnsupportedError: the engine refuses to start with it.
        """
        main = self.main_tokens(kv_memory)
        if not self.starts_with(main):
            raise UnsupportedError(
                f"sglang refuses to start with {kv_memory:,} bytes of KV memory: {self._shortage(main)}",
                hint="give it more KV memory" + (", or raise swa_full_tokens_ratio" if self.kind == "hybrid" else ""),
            )
        allocated = self.allocated_bytes(main)
        match self.kind:
            case "plain":
                return PoolSizes(main, None, None, allocated)
            case "all_sliding":
                return PoolSizes(main, 0, main, allocated)
            case _:
                return PoolSizes(main, main, self.swa_tokens(main), allocated)

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
    full_layers: int,
    full_token_bytes: int,
    swa_layers: int,
    swa_token_bytes: int,
    ratio: float,
    sliding_window_size: int,
    request_cap: int | None = None,
) -> Pool:
    """A pool for the full layers and one for the sliding layers.

    Args:
        page_size: tokens of a page.
        full_layers: layers of the full pool.
        full_token_bytes: bytes of one token in one of them.
        swa_layers: layers of the sliding pool.
        swa_token_bytes: bytes of one token in one of them.
        ratio: sliding tokens for each full token.
        sliding_window_size: the window as the engine counts it.
        request_cap: tokens that the running requests can hold in the sliding pool, in place of the ratio.
    """
    main, swa = full_layers * full_token_bytes, swa_layers * swa_token_bytes
    if not full_layers:
        return Pool("all_sliding", page_size, swa, least_tokens=page_size)
    if request_cap is not None:
        return Pool(
            "capped", page_size, main, swa, capped_tokens=round_up(request_cap, page_size), least_tokens=page_size
        )
    pool = Pool("hybrid", page_size, main, swa, ratio, sliding_window_size=sliding_window_size)
    guess = int((sliding_window_size + 2 * page_size) / ratio) // page_size
    least_pages = smallest_reaching(guess, lambda pages: pool.starts_with(pages * page_size))
    return replace(pool, least_tokens=least_pages * page_size)


@dataclass(frozen=True, slots=True)
class StatePool:
    """The slots of recurrent states, which take their part of the budget before the tokens do.

    Attributes:
        conv_bytes: bytes of one slot's convolution columns in all state layers on one device.
        ssm_bytes: bytes of one slot's recurrent part, likewise.
        slots_per_request: slots that one running request may hold: its own, and those that the radix cache keeps.
        ratio: bytes of states for each byte of tokens (``mamba_full_memory_ratio``).
        fixed_slots: the slots, where an option sets them.
        draft_tokens: states that a running request keeps while a draft's tokens are verified.
        most_running: requests that run at once, for those states.
    """

    conv_bytes: int
    ssm_bytes: int
    slots_per_request: int
    ratio: float
    fixed_slots: int | None = None
    draft_tokens: int = 0
    most_running: int = 0

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot."""
        return self.conv_bytes + self.ssm_bytes

    def slots(self, kv_memory: int) -> int:
        """Slots of a budget; one more is allocated as padding, and paid for first.

        Floats as in the engine, which counts its memory in GiB.
        """
        if self.fixed_slots is not None:
            return self.fixed_slots
        share = kv_memory / GiB * self.ratio / (1 + self.ratio) * GiB
        per_slot = self.slot_bytes * (1 + self.draft_tokens / self.slots_per_request)
        return int((share - self.slot_bytes * (1 + self.draft_tokens)) // per_slot)

    def verified_states(self, slots: int) -> int:
        """States kept while drafted tokens are verified, of so many slots' running requests and the padding one."""
        return self.draft_tokens * (min(self.most_running, slots // self.slots_per_request) + 1)

    def allocated_bytes(self, slots: int) -> int:
        """Bytes of so many slots and the padding one, and of the states of drafted tokens."""
        return (slots + 1 + self.verified_states(slots)) * self.slot_bytes

    def left(self, kv_memory: int) -> int:
        """What the slots leave of a budget for tokens."""
        return kv_memory - self.allocated_bytes(self.slots(kv_memory))

    def slots_for(self, batch_size: int, token_bytes: int) -> int:
        """The fewest slots from which on every larger budget has room for the requests and for the tokens.

        A budget grows by slots and by tokens in turn: each further slot takes its bytes from the tokens at once, so
        the tokens must still fit just after the next slot came.
        """
        if self.fixed_slots is not None:
            return self.fixed_slots
        needed = batch_size * self.slots_per_request
        guess = max(needed, int(token_bytes * self.ratio / self.slot_bytes) - 2)
        return max(needed, smallest_reaching(guess, lambda slots: self.left(self.start_of(slots + 1)) >= token_bytes))

    def start_of(self, slots: int) -> int:
        """The smallest budget that has so many slots."""
        slots_in_all = slots + 1 + self.draft_tokens * (slots // self.slots_per_request + 1)
        guess = int(slots_in_all * self.slot_bytes * (1 + self.ratio) / self.ratio)
        return smallest_reaching(guess, lambda budget: self.slots(budget) >= slots)

    def formulas(self) -> tuple[str, str]:
        """:meth:`slots_for` over ``B``, ``each``, ``token_bytes`` and ``slot``; :meth:`slots` of ``required_bytes``."""
        if self.fixed_slots is not None:
            return str(self.fixed_slots), str(self.fixed_slots)
        start = self.start_formula("(count + 1)")
        left = f"(lambda budget: budget - {self.allocated_formula(self._slots_formula('budget'))})({start})"
        guess = f"max(B * each, int(token_bytes * {self.ratio!r} / slot) - 2)"
        least = f"max(B * each, smallest_reaching({guess}, lambda count: {left} >= token_bytes))"
        return least, self._slots_formula("required_bytes")

    def start_formula(self, slots: str) -> str:
        """:meth:`start_of` over ``slot``."""
        drafted = f" + {self.draft_tokens} * ({slots} // each + 1)" if self.draft_tokens else ""
        guess = f"int(({slots} + 1{drafted}) * slot * (1 + {self.ratio!r}) / {self.ratio!r})"
        return f"smallest_reaching({guess}, lambda memory: {self._slots_formula('memory')} >= {slots})"

    def _slots_formula(self, memory: str) -> str:
        share = f"{memory} / {GiB} * {self.ratio!r} / (1 + {self.ratio!r}) * {GiB}"
        if not self.draft_tokens:
            return f"int(({share} - slot) // slot)"
        return f"int(({share} - slot * {1 + self.draft_tokens}) // (slot * (1 + {self.draft_tokens} / each)))"

    def allocated_formula(self, slots: str) -> str:
        """:meth:`allocated_bytes` over ``slot`` and ``each``."""
        return f"({slots} + 1{self.verified_formula(slots)}) * slot"

    def verified_formula(self, slots: str) -> str:
        """:meth:`verified_states` over ``each``, as a term; nothing without a draft."""
        return f" + {self.draft_tokens} * (min({self.most_running}, {slots} // each) + 1)" if self.draft_tokens else ""

    def budget(self, batch_size: int, token_bytes: int) -> int:
        """The smallest budget from which on so many requests and bytes of tokens have room."""
        slots = self.slots_for(batch_size, token_bytes)
        with_tokens = token_bytes + self.allocated_bytes(slots)
        return with_tokens if self.fixed_slots is not None else max(with_tokens, self.start_of(slots))


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
            work.let("least", "fewest tokens that sglang starts with", least, "tokens", f"{_CONFIGURATOR}:198")
            tokens = f"max({tokens}, least)"
        work.let("F", f"tokens of the {name} pool", tokens, "tokens", _CONFIGURATOR)
        work.let("full_cell", f"bytes of a token, {name} pool", self._cell(second=False), "bytes", _CONFIGURATOR)
        if pool.swa_bytes:
            swa, source = str(pool.capped_tokens), f"{_CONFIGURATOR}:924"
            if pool.kind == "hybrid":
                ratio = repr(pool.ratio)
                work.let_float("ratio", "sliding tokens a full token", ratio, "", "swa_full_tokens_ratio")
                swa, source = "int(F * ratio) // P * P", f"{_CONFIGURATOR}:859"
            work.let("S", "tokens of the sliding pool", swa, "tokens", source)
            work.let("swa_cell", "bytes of a token, sliding pool", self._cell(second=True), "bytes", _CONFIGURATOR)
        names: list[str] = []
        for kind, count, second, token_bytes in self.rows:
            names.append(f"layers_{len(names) + 1}")
            of_layer = f"{count} * {'S' if second else 'F'} * {token_bytes}"
            work.let(names[-1], f"{count} {kind_label(kind)}, without the added page", of_layer, "bytes", _POOL)
        self._work_budget(work)
        for kind, count, slot_bytes in self.state_rows:
            names.append(f"layers_{len(names) + 1}")
            assert self.states is not None
            kept = f"{count} * (slots{self.states.verified_formula('slots')}) * {slot_bytes}"
            work.let(names[-1], f"{count} {kind_label(kind)}", kept, "bytes", _STATE_POOL)
        total = "(F + P) * full_cell"
        total += " + (S + P) * swa_cell" if pool.swa_bytes else ""
        total += f" + {self.states.allocated_formula('slots')}" if self.states is not None else ""
        work.let("kv_bytes", "KV cache", total, "bytes", _POOL)
        return tuple(work.quantities)

    def _work_budget(self, work: Derivation) -> None:
        """The smallest budget, and the state slots that it has: searches, because the engine divides floats."""
        formula = "F * full_cell"
        if self.pool.kind == "capped":
            formula += " + S * swa_cell"
        elif self.pool.kind == "hybrid":
            work.let_float("cell", "budget of one token", "full_cell + ratio * swa_cell", "bytes", _CONFIGURATOR)
            formula = "smallest_reaching(int(F * cell), lambda budget: int(budget // cell) // P * P >= F)"
        meaning = "memory that gives them, before the added page"
        if self.states is None:
            work.let("required_bytes", meaning, formula, "bytes", _CONFIGURATOR)
            return
        work.let("token_bytes", meaning, formula, "bytes", _CONFIGURATOR)
        states = " + ".join(f"{count} * {slot_bytes}" for _, count, slot_bytes in self.state_rows)
        work.let("slot", "bytes of one slot, all layers", states, "bytes", _STATE_POOL)
        per_request = str(self.states.slots_per_request)
        work.let("each", "slots that a running request may hold", per_request, "slots", _STATE_POOL)
        least, slots = self.states.formulas()
        work.let("least_slots", "slots that leave room for the tokens", least, "slots", _STATE_POOL)
        start = "" if self.states.fixed_slots is not None else f", {self.states.start_formula('least_slots')}"
        required = f"token_bytes + {self.states.allocated_formula('least_slots')}"
        required = f"max({required}{start})" if start else required
        work.let("required_bytes", "memory that gives tokens and slots", required, "bytes", _CONFIGURATOR)
        work.let("slots", "state slots of that memory", slots, "slots", _STATE_POOL)

    def _cell(self, *, second: bool) -> str:
        terms = [f"{count} * {token_bytes}" for _, count, in_second, token_bytes in self.rows if in_second == second]
        return " + ".join(terms)


class SGLang(EngineOptions):
    """SGLang's pools: sized from a budget, filled by all requests together."""

    name: ClassVar[str] = "sglang"
    summary: ClassVar[str] = "SGLang's token pools: every layer in full, but for a few model types with a sliding pool"
    follows: ClassVar[str] = _VERSION
    formula: ClassVar[str] = (
        "plain:  bytes = (tokens + page) x cell, cell = layers x KV heads x (K dim + V dim) x element bytes\n"
        "hybrid: bytes = (F + page) x full cell + (S + page) x sliding cell, S = int(F x swa_full_tokens_ratio)\n"
        "tokens (or F) = the smallest >= batch size x context, in whole pages, that SGLang starts with\n"
        "a budget gives tokens = budget // cell (hybrid: budget // (full cell + ratio x sliding cell)), in whole pages"
    )
    loads: ClassVar[Loads | None] = Loads(
        "auto-round awq bitsandbytes compressed-tensors fp8 gguf gptq modelopt mxfp4 mxfp8 nvfp4 torchao",
        "srt/layers/quantization/__init__.py",
    )
    weight_formats: ClassVar[tuple[str, ...]] = ("fp8", "int8_channel", "awq", "gptq", "nvfp4", "mxfp4")
    sources: ClassVar[tuple[str, ...]] = (
        f"{_CONFIGURATOR} (plain, hybrid and request-capped pools, the refusals)",
        f"{_ALLOW_LIST} (model types with a sliding pool), arg_groups/model_overrides (those forced off)",
        f"{_POOL}, :4866 (one page more than the budget in each pool)",
    )
    not_modelled: ClassVar[tuple[str, ...]] = (
        "DeepSeek V4's pools: refused; unified memory, HiSparse, ReplaySSM, context parallelism, fp4 and mxfp8 caches",
        "MiniMax M3: index keys in 8 bits beside an fp8 cache on Hopper; its nvfp4 pool",
        "mem_fraction_static and its reserve: the budget is an input",
        "models that only their configuration marks with is_hybrid_swa: they are priced in full",
    )
    evidence: ClassVar[str] = (
        "exact on every recorded figure of SGLang's own pool functions, and on its CPU allocations; "
        "no GPU server was run"
    )
    follows_cache_of: ClassVar[frozenset[str]] = frozenset({"modelopt"})
    server: ClassVar[Server | None] = Server(
        ("python3", "-m", "sglang.launch_server", "--model-path", "{model}"),
        {
            "context": "--context-length",
            "tensor_parallel_size": "--tp-size",
            "k_dtype": "--kv-cache-dtype",
            "utilization": "--mem-fraction-static",
        },
        option="--{}",
    )
    frugal_options: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "disable_hybrid_swa_memory": (False,),
        "swa_full_tokens_ratio": (0.5, 0.2, 0.1),
    }

    version: Literal["0.5.23"] = Field("0.5.23", description="release whose rule is followed")
    page_size: int = Field(1, ge=1, le=2**20, description="tokens of a page (some attention backends need 64 or 128)")
    swa_full_tokens_ratio: float = Field(
        0.8,
        ge=1e-6,
        le=1,
        description="tokens of the sliding pool for each token of the full pool",
    )
    disable_hybrid_swa_memory: bool = Field(False, description="allocate every layer in full")
    max_running_requests: int | None = Field(None, ge=1, le=2**30, description="sequences that run at once")
    disable_radix_cache: bool = Field(
        False, description="no prefix cache; with max_running_requests the sliding pool is sized by the requests"
    )
    chunked_prefill_size: int = Field(
        8192, ge=-1, le=2**30, description="tokens of a prefill chunk; -1 or 0 turns it off"
    )
    disable_overlap_schedule: bool = Field(False, description="one prefill chunk in flight in place of two")

    mamba_full_memory_ratio: float = Field(
        0.9, gt=0, le=100, description="bytes of recurrent states for each byte of tokens"
    )
    mamba_ssm_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="format of a state's recurrent part"
    )
    speculative_num_draft_tokens: int | None = Field(
        None, ge=1, le=1024, description="tokens that a draft proposes, each with a state until it is verified"
    )
    max_mamba_cache_size: int | None = Field(None, ge=1, le=2**30, description="state slots, whatever the memory")
    mamba_radix_cache_strategy: Literal["extra_buffer", "extra_buffer_lazy", "no_buffer"] = Field(
        "extra_buffer", description="slots that follow a running request: 5, 4 or 3 for each in all"
    )

    @property
    def batch_limit(self) -> int | None:
        """``max_running_requests``: further requests wait."""
        return self.max_running_requests

    def required_with_prefix(self, setup: Setup, context: int, batch_size: int, prefix: int) -> int:
        """The pool of the sequences with their common pages once (srt/mem_cache/radix_cache.py, match_prefix)."""
        if self.disable_radix_cache:
            raise UnsupportedError("sglang shares no prefix with disable_radix_cache")
        plan = setup.plan
        assert isinstance(plan, SGLangPlan)
        if plan.states is not None:
            raise NotModelledError("what sequences share of a prefix is not modelled for sglang's states")
        return plan.required_with_prefix(context, batch_size, prefix)

    def prepare(self, setup: Setup) -> SGLangPlan:
        """Choose the pool, and price one token in it.

        Raises:
            UnsupportedError: a layer kind or storage format whose pool is not modelled.
        """
        architecture = setup.served
        refuse_formats("sglang", setup, _DTYPES)
        refuse_uneven_heads("sglang", setup)
        kinds = architecture.caches
        for kind, _ in kinds:
            _check_kind(architecture, kind)
        local = [(kind, count) for kind, count in kinds if _is_local(kind)]
        hybrid = bool(local) and architecture.model_type in HYBRID_MODEL_TYPES and not self.disable_hybrid_swa_memory
        if hybrid:
            return self._sliding_plan(architecture, setup, local)
        plan = self._plain_plan(architecture, setup)
        return self._with_states(plan, architecture, setup)

    def _with_states(self, plan: SGLangPlan, architecture: Architecture, setup: Setup) -> SGLangPlan:
        """The plan with a pool of state slots, where the model has recurrent layers."""
        tp = setup.tensor_parallel_size
        found = [
            (kind, state, count)
            for kind, count in architecture.caches
            if (state := _state_of(kind)) is not None
            and state.recurrent_elements + state.conv_channels * (state.conv_kernel - 1)
        ]
        if not found:
            return plan
        conv = ssm = 0
        rows = []
        for kind, state, count in found:
            if state.conv_channels % tp or state.recurrent_elements % tp:
                raise UnsupportedError(
                    f"sglang divides {architecture.name}'s states by {tp} devices, which does not divide them",
                    hint="use a power of two",
                )
            columns = state.conv_channels // tp * (state.conv_kernel - 1) * parse_dtype(architecture.dtype).block_bytes
            recurrent = state.recurrent_elements // tp * parse_dtype(self.mamba_ssm_dtype).block_bytes
            conv, ssm = conv + count * columns, ssm + count * recurrent
            rows.append((kind, count, columns + recurrent))
        per_request, fixed = 1, self.max_mamba_cache_size
        if self.disable_radix_cache:
            fixed = fixed or self.max_running_requests
        else:
            ahead = 1 if self.disable_overlap_schedule else 2
            buffers = {"extra_buffer": ahead, "extra_buffer_lazy": 1, "no_buffer": 0}
            per_request = _SLOTS_PER_REQUEST + buffers[self.mamba_radix_cache_strategy]
        drafted = self._drafted_tokens(setup)
        running = self.max_running_requests or 0
        states = StatePool(conv, ssm, per_request, self.mamba_full_memory_ratio, fixed, drafted, running)
        notes = (*plan.notes, f"a running request may hold {per_request} state slots: its own and the radix cache's")
        return replace(plan, states=states, state_rows=tuple(rows), notes=notes)

    def _drafted_tokens(self, setup: Setup) -> int:
        """Tokens that a draft proposes, each with a state of its own until it is verified; 0 without a draft.

        Source: sglang 0.5.23 mem_cache/kv_cache_configurator.py:3280 (both options are asserted there).
        """
        if setup.draft is None:
            return 0
        for option in ("speculative_num_draft_tokens", "max_running_requests"):
            if getattr(self, option) is None:
                raise InputError(
                    f"how many states sglang keeps for the draft of {setup.architecture.name} depends on {option}",
                    hint=f"-E {option}=N",
                )
        return self.speculative_num_draft_tokens or 0

    def _plain_plan(self, architecture: Architecture, setup: Setup) -> SGLangPlan:
        # Layers with a state alone, or with no cache at all, have no tokens in the pool.
        kinds = [(kind, count) for kind, count in architecture.caches if not isinstance(kind, State | NoCache)]
        if not kinds:
            raise NotModelledError(
                f"how sglang sizes a pool for {architecture.name}, which has no attention, is not known"
            )
        # One head size for all layers: the full layers', where there are any.
        own = [kind for kind, _ in kinds if not isinstance(kind, Shared)]
        wide = [kind for kind in own if not is_local(kind)]
        token_bytes = _one_size(architecture, wide or own, setup)
        layers = sum(count for _, count in kinds)
        rows = tuple((kind, count, False, token_bytes + _indexer_bytes(kind)) for kind, count in kinds)
        page = _INDEXER_PAGE if any(_indexer_bytes(kind) for kind, _ in kinds) else 1
        notes = [_PAGE_NOTE, *_shared_note(kinds)]
        if any(window_of(kind) for kind, _ in kinds):
            reason = (
                "disable_hybrid_swa_memory is set"
                if self.disable_hybrid_swa_memory
                else f"sglang {_VERSION} has no sliding pool for model type {architecture.model_type!r}"
            )
            notes.append(f"{reason}: all {layers} layers are allocated at full length")
            if any(_token_bytes(kind, setup) != token_bytes for kind in own):
                notes.append(f"every layer is billed at the full layers' {token_bytes:,} bytes a token")
        elif architecture.model_type in HYBRID_MODEL_TYPES:
            notes.append(
                f"sglang {_VERSION} expects local layers in model type {architecture.model_type!r}; "
                "without any it is priced as one plain pool"
            )
        page = max(page, self.page_size)
        pool = Pool("plain", page, sum(count * size for _, count, _, size in rows), least_tokens=page)
        why = (
            f"all {layers} layers full"
            if layers == architecture.num_layers
            else f"{layers} layers with attention, full"
        )
        return SGLangPlan(pool, rows, why, tuple(notes), self.max_running_requests)

    def _sliding_plan(self, architecture: Architecture, setup: Setup, local: list[tuple[LayerKind, int]]) -> SGLangPlan:
        wide = [(kind, count) for kind, count in architecture.caches if not _is_local(kind)]
        swa_bytes, full_bytes = (
            _one_size(architecture, [kind for kind, _ in side if not isinstance(kind, Shared)], setup) if side else 0
            for side in (local, wide)
        )
        swa_layers, full_layers = sum(count for _, count in local), sum(count for _, count in wide)
        window = max(window_of(kind) or 0 for kind, _ in local)
        window -= architecture.model_type in _EXCLUSIVE_WINDOW
        pool = sliding_pool(
            self.page_size,
            full_layers=full_layers,
            full_token_bytes=full_bytes,
            swa_layers=swa_layers,
            swa_token_bytes=swa_bytes,
            ratio=self.swa_full_tokens_ratio,
            sliding_window_size=window,
            request_cap=self._request_cap(window),
        )
        rows = (
            *((kind, count, False, full_bytes) for kind, count in wide),
            *((kind, count, bool(wide), swa_bytes) for kind, count in local),
        )
        notes = [_PAGE_NOTE, *_shared_note(architecture.caches)]
        match pool.kind:
            case "hybrid":
                ratio = self.swa_full_tokens_ratio
                why = f"{swa_layers} local layers hold {ratio:g} of the {full_layers} full layers' tokens"
                notes.append(
                    "the sliding pool follows swa_full_tokens_ratio "
                    f"({ratio:g}), not the window: a smaller ratio makes it smaller"
                )
            case "capped":
                why = f"sliding pool of {pool.capped_tokens:,} tokens for {self.max_running_requests} requests"
                notes.append("the sliding pool is sized by max_running_requests, whatever the context")
            case _:
                why = f"all {swa_layers} layers in one sliding pool"
                notes.append("no full layer: sglang counts max_total_num_tokens in the sliding pool")
        return SGLangPlan(pool, rows, why, tuple(notes), self.max_running_requests)

    def _request_cap(self, window: int) -> int | None:
        """Tokens that the running requests can hold in the sliding pool; None where the ratio sizes it."""
        if self.max_running_requests is None or not self.disable_radix_cache or self.chunked_prefill_size <= 0:
            return None
        chunks = 1 if self.disable_overlap_schedule else 2
        per_request = window + _EVICTION_INTERVAL + 2 * self.page_size
        return per_request * self.max_running_requests + chunks * self.chunked_prefill_size + self.page_size


_PAGE_NOTE = "sglang allocates one page a pool more than its budget (the memory that --mem-fraction-static leaves)"


def _is_local(kind: LayerKind) -> bool:
    """Whether the layer lies in the sliding pool: a layer that reads another's cache lies where its own type does."""
    return is_local(kind) or (isinstance(kind, Shared) and kind.of != "full")


def _shared_note(kinds: Sequence[tuple[LayerKind, int]]) -> list[str]:
    """SGLang's pools have every layer of the configuration (models/gemma4_causal.py:433 reads the owner's alone)."""
    shared = sum(count for kind, count in kinds if isinstance(kind, Shared))
    return [f"{shared} layers read another layer's cache; sglang allocates their own all the same"] if shared else []


def _check_kind(architecture: Architecture, kind: LayerKind) -> None:
    keeps = "an encoder's K and V" if isinstance(kind, Cross) and architecture.model_type not in _CROSS_MODELS else ""
    if isinstance(kind, Full | Sliding | Chunked) and kind.extra_state_bytes:
        keeps = "a fixed state beside K and V"
    if keeps:
        raise UnsupportedError(
            f"sglang {_VERSION} has no class for {architecture.name} (srt/models), which keeps {keeps}"
        )
    reason = _REFUSED.get(type(kind))
    if reason is not None:
        refuse_kind("sglang", architecture, kind, reason)


def _token_bytes(kind: LayerKind, setup: Setup) -> int:
    """Bytes of one token in one layer on one device."""
    if isinstance(kind, Parallel):
        kind = kind.attention
    if isinstance(kind, Latent):  # one latent, whole on every device
        if setup.served.has_sparse_latents and setup.k_dtype.name == "fp8_e4m3":
            # In all layers of such a model (kv_cache_configurator.py:3412): a float32 scale for each 128 numbers, and
            # the rope part in bfloat16: 512 + 16 + 128 = 656.
            return kind.rank + kind.rank // _INDEXER_BLOCK * 4 + kind.rope_dim * 2
        return setup.k_dtype.bytes_for(kind.rank + kind.rope_dim)
    assert isinstance(kind, Full | Sliding | Chunked)
    heads = max(1, kind.num_kv_heads // setup.tensor_parallel_size)
    return setup.k_dtype.row_bytes(heads, kind.head_dim) + setup.v_dtype.row_bytes(heads, kind.v_head_dim)


def _indexer_bytes(kind: LayerKind) -> int:
    """Bytes of one token's index key: 128 numbers of 8 bits and a float32 scale are 132.

    Source: sglang 0.5.23 model_executor/pool_configurator.py:560.
    """
    if isinstance(kind, Full):  # MiniMax M3: one head of the model's format, keys alone (memory_pool.py:5831)
        return 2 * kind.indexer_dim
    dim = kind.indexer_dim if isinstance(kind, Latent) else 0
    return dim + dim // _INDEXER_BLOCK * 4


def _state_of(kind: LayerKind) -> State | None:
    if isinstance(kind, Parallel):
        return kind.state
    return kind if isinstance(kind, State) else None


def _one_size(architecture: Architecture, kinds: Sequence[LayerKind], setup: Setup) -> int:
    sizes = {_token_bytes(kind, setup) for kind in kinds}
    if len(sizes) != 1:
        raise UnsupportedError(
            f"sglang bills one size of K and V in a pool; {architecture.name} has layers of {len(sizes)} sizes",
            hint="use the ideal engine for the report's accounting, or vllm",
        )
    return sizes.pop()
