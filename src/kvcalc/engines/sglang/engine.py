"""SGLang 0.5.23: one pool of tokens for all layers, or a second one for the sliding layers of a few model types.

Source: sglang 0.5.23 ``model_executor/pool_configurator.py`` (sizes), ``configs/model_config.py`` (which models have a
sliding pool) and ``mem_cache/memory_pool.py`` (the page that each pool adds).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from kvcalc.architecture import Architecture, LayerKind, NoCache, Shared, State, is_local, window_of
from kvcalc.dtypes import parse_dtype
from kvcalc.engines.base import Loads, Server, refuse_formats, refuse_uneven_heads
from kvcalc.engines.options import EngineOptions
from kvcalc.engines.sglang.layers import (
    INDEXER_PAGE,
    VERSION,
    bytes_of_token,
    check_kind,
    in_sliding_pool,
    indexer_bytes,
    one_size,
    shared_note,
    state_of,
)
from kvcalc.engines.sglang.plan import SGLangPlan
from kvcalc.engines.sglang.pools import CONFIGURATOR, POOL, Pool, sliding_pool
from kvcalc.engines.sglang.states import SLOTS_PER_REQUEST, StatePool
from kvcalc.errors import InputError, NotModelledError, UnsupportedError

if TYPE_CHECKING:
    from kvcalc.setup import Setup

_ALLOW_LIST = f"sglang {VERSION} configs/model_config.py:2651"

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
_PAGE_NOTE = "sglang allocates one page a pool more than its budget (the memory that --mem-fraction-static leaves)"


class SGLang(EngineOptions):
    """SGLang's pools: sized from a budget, filled by all requests together."""

    name: ClassVar[str] = "sglang"
    summary: ClassVar[str] = "SGLang's token pools: every layer in full, but for a few model types with a sliding pool"
    follows: ClassVar[str] = VERSION
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
        f"{CONFIGURATOR} (plain, hybrid and request-capped pools, the refusals)",
        f"{_ALLOW_LIST} (model types with a sliding pool), arg_groups/model_overrides (those forced off)",
        f"{POOL}, :4866 (one page more than the budget in each pool)",
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
            check_kind(architecture, kind)
        local = [(kind, count) for kind, count in kinds if in_sliding_pool(kind)]
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
            if (state := state_of(kind)) is not None
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
            per_request = SLOTS_PER_REQUEST + buffers[self.mamba_radix_cache_strategy]
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
        token_bytes = one_size(architecture, wide or own, setup)
        layers = sum(count for _, count in kinds)
        rows = tuple((kind, count, False, token_bytes + indexer_bytes(kind)) for kind, count in kinds)
        page = INDEXER_PAGE if any(indexer_bytes(kind) for kind, _ in kinds) else 1
        notes = [_PAGE_NOTE, *shared_note(kinds)]
        if any(window_of(kind) for kind, _ in kinds):
            reason = (
                "disable_hybrid_swa_memory is set"
                if self.disable_hybrid_swa_memory
                else f"sglang {VERSION} has no sliding pool for model type {architecture.model_type!r}"
            )
            notes.append(f"{reason}: all {layers} layers are allocated at full length")
            if any(bytes_of_token(kind, setup) != token_bytes for kind in own):
                notes.append(f"every layer is billed at the full layers' {token_bytes:,} bytes a token")
        elif architecture.model_type in HYBRID_MODEL_TYPES:
            notes.append(
                f"sglang {VERSION} expects local layers in model type {architecture.model_type!r}; "
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
        wide = [(kind, count) for kind, count in architecture.caches if not in_sliding_pool(kind)]
        swa_bytes, full_bytes = (
            one_size(architecture, [kind for kind, _ in side if not isinstance(kind, Shared)], setup) if side else 0
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
        notes = [_PAGE_NOTE, *shared_note(architecture.caches)]
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
