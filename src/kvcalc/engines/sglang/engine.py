"""SGLang 0.5.23: one pool of tokens for all layers, or a second one for the sliding layers of a few model types.

Source: sglang 0.5.23 ``model_executor/pool_configurator.py`` (sizes), ``configs/model_config.py`` (which models have a
sliding pool) and ``mem_cache/memory_pool.py`` (the page that each pool adds).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from kvcalc.architecture import Architecture, Compressed, LayerKind, NoCache, Part, Shared, State, is_local, window_of
from kvcalc.dtypes import DTYPES, DType, parse_dtype
from kvcalc.engines.base import Loads, Server, WorkingMemory, refuse_formats, refuse_uneven_heads
from kvcalc.engines.options import EngineOptions
from kvcalc.engines.sglang.compressed import (
    DEFAULT_COMPRESSED_RATIO,
    DEFAULT_COMPRESSED_RUNNING,
    INDEX_KEY,
    CompressedPlan,
    compressed_rows,
)
from kvcalc.engines.sglang.drafts import DEFAULT_RUNNING, Speculation, draft_pool, paid_in_plain_pool
from kvcalc.engines.sglang.layers import (
    VERSION,
    Ranks,
    bytes_of_token,
    check_kind,
    in_sliding_pool,
    indexer_bytes,
    one_size,
    packs_scales,
    page_of,
    shared_note,
    state_of,
)
from kvcalc.engines.sglang.memory import chunk_on, sglang_working_memory
from kvcalc.engines.sglang.plan import SGLangPlan
from kvcalc.engines.sglang.pools import CONFIGURATOR, POOL, Pool, sliding_pool
from kvcalc.engines.sglang.states import SLOTS_PER_REQUEST, StatePool
from kvcalc.errors import InputError, NotModelledError, UnsupportedError

if TYPE_CHECKING:
    from kvcalc.device import Device, Platform
    from kvcalc.setup import Setup

_ALLOW_LIST = f"sglang {VERSION} configs/model_config.py:2651"

#: Model types whose sliding (or chunked) layers get a pool of their own; every other model is allocated in full.
HYBRID_MODEL_TYPES = frozenset(
    "beam gemma4 gemma4_unified gpt_oss granite_swa granitemoe_swa laguna llama4 mellum mimo_v2_flash muse_glimmer "
    "step3p5".split()
)
#: Those whose window SGLang counts without the current token: 128 in the configuration is 127 in the engine.
_EXCLUSIVE_WINDOW = frozenset({"beam", "gemma4", "gemma4_unified", "gpt_oss", "mellum", "muse_glimmer"})
#: Tokens between two evictions from the sliding pool (SGLANG_SWA_EVICTION_INTERVAL).
_EVICTION_INTERVAL = 128
#: Storage formats whose pool is elements x bytes; the fp4 and mxfp8 formats add scale buffers of their own.
_DTYPES = frozenset({"bfloat16", "float16", "float32", "fp8_e4m3", "fp8_e5m2"})
#: Model types whose states are transposed before a convolution: the windows of drafted tokens are kept one by one.
_OWN_WINDOWS = frozenset({"kimi_linear", "glm5_next", "kimi_k3"})
#: Model types whose embedding is whole on every device beside attention data parallelism (models/qwen3_5.py:1872).
_WHOLE_EMBEDDING = frozenset("bailing_moe_linear deepseek_v4 exaone_moe qwen3_5 qwen3_5_moe sarvam_moe step3p5".split())
#: Bytes of an index key of 128 numbers of 4 bits, with a scale for each 32.
_FP4_INDEX_KEY = 68
_SM12_GLM = "flashinfer_sparse_mla"
DsaBackend = Literal[
    "aiter",
    "fa3",
    "flashinfer_sparse_mla",
    "flashmla_auto",
    "flashmla_kv",
    "flashmla_sparse",
    "flashmla_sparse_q8",
    "tilelang",
    "triton",
    "triton_sparse_mla",
    "trtllm",
]
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
        "a budget gives tokens = budget // cell (hybrid: budget // (full + ratio x sliding cell)), in whole pages\n"
        "DeepSeek V4: pools of windows, of entries of 4 and 128 tokens, of index keys, and the states behind entries\n"
        "states: slots for requests and the radix cache; drafts: a pool of as many tokens, and states to be verified\n"
        "dp_size with enable_dp_attention: the batch size divided by it; dcp_size: a sequence's pages divided by it"
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
        f"sglang {VERSION} mem_cache/deepseek_v4_memory_pool.py, mem_cache/kv_cache_configurator.py:3229 (states)",
    )
    not_modelled: ClassVar[tuple[str, ...]] = (
        "unified memory, HiSparse, ReplaySSM, fp4 and mxfp8 caches, MiniMax M3's nvfp4 pool",
        "DeepSeek V4 on Blackwell with other page layouts than the default one, and on ROCm",
        "what is needed beside weights and pools: 'fit' says what its rule sets aside (mem_fraction_static)",
        "models that only their configuration marks with is_hybrid_swa: they are priced in full",
    )
    platforms: ClassVar[frozenset[Platform]] = frozenset({"cuda", "rocm", "tpu"})
    evidence: ClassVar[str] = (
        "exact on what SGLang's own pool functions and pools answer to random models and servers, drafts among them; "
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
            "draft": "--speculative-draft-model-path",
        },
        option="--{}",
    )
    sets_aside: ClassVar[bool] = True
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

    cuda_graph_max_bs_decode: int | None = Field(
        None, ge=1, le=2**20, description="sequences of the largest decode graph; by the device's memory"
    )
    disable_cuda_graph: bool = Field(False, description="run decode steps and prefills without CUDA graphs")
    mamba_full_memory_ratio: float = Field(
        0.9, gt=0, le=100, description="bytes of recurrent states for each byte of tokens"
    )
    mamba_ssm_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="format of a state's recurrent part"
    )
    speculative_algorithm: Literal["EAGLE", "EAGLE3", "NEXTN", "STANDALONE", "DFLASH", "DSPARK"] = Field(
        "EAGLE", description="how a draft proposes tokens; EAGLE is that of prediction layers too"
    )
    speculative_num_steps: int | None = Field(None, ge=1, le=1024, description="steps of a draft; by default 3 or 5")
    speculative_eagle_topk: int | None = Field(
        None, ge=1, le=64, description="tokens that a draft follows in each step; by default 1, or a Llama's 4"
    )
    speculative_num_draft_tokens: int | None = Field(
        None, ge=1, le=1024, description="tokens that are verified at once, each with a state until then; 4 or 8"
    )
    dp_size: int = Field(1, ge=1, le=2**16, description="groups of devices that serve sequences of their own")
    enable_dp_attention: bool = Field(
        False, description="dp_size divides the devices of tensor parallelism: attention is held by tp / dp_size"
    )
    enable_dp_lm_head: bool = Field(False, description="the head is divided as attention is, not by all devices")
    attn_cp_size: int = Field(1, ge=1, le=2**16, description="devices that share the tokens of a prefill")
    dcp_size: int = Field(1, ge=1, le=2**16, description="devices among which the tokens of one sequence are spread")
    dsa_prefill_backend: DsaBackend | None = Field(
        None, description="kernels of a sparse prefill over latents; trtllm is Blackwell's in fp8"
    )
    dsa_decode_backend: DsaBackend | None = Field(None, description="the same of decoding")
    enable_deepseek_v4_fp4_indexer: bool = Field(False, description="DeepSeek V4's index keys in 4 bits")
    max_mamba_cache_size: int | None = Field(None, ge=1, le=2**30, description="state slots, whatever the memory")
    mamba_radix_cache_strategy: Literal["extra_buffer", "extra_buffer_lazy", "no_buffer"] = Field(
        "extra_buffer", description="slots that follow a running request: 5, 4 or 3 for each in all"
    )

    @property
    def _attention_groups(self) -> int:
        """Groups of devices that each hold all of attention, for sequences of their own or for parts of a prefill."""
        return self.dp_size * self.attn_cp_size

    @property
    def batch_limit(self) -> int | None:
        """``max_running_requests``: further requests wait."""
        return self.max_running_requests

    @property
    def draft_options(self) -> dict[str, Any]:
        """The algorithm, without which a draft is not used."""
        return {"speculative_algorithm": self.speculative_algorithm}

    @classmethod
    def device_options(cls, memory_bytes: int, device: str) -> dict[str, Any]:
        """A prefill chunk by the device's memory (arg_groups/memory_hook.py:88).

        >>> SGLang.device_options(24 * 2**30, "rtx-4090")
        {'chunked_prefill_size': 4096}
        """
        return {"chunked_prefill_size": chunk_on(memory_bytes)}

    @classmethod
    def model_options(cls, model: Architecture, device: Device) -> dict[str, Any]:
        """Blackwell's kernels of sparse latents (arg_groups/overrides.py:601): TensorRT-LLM's, but for GLM on SM12x."""
        generation = (device.compute_capability or "0").partition(".")[0]
        if not model.has_sparse_latents or int(generation) < 10:
            return {}
        kernels = _SM12_GLM if generation == "12" and model.model_type == "glm_moe_dsa" else "trtllm"
        return {"dsa_prefill_backend": kernels, "dsa_decode_backend": kernels}

    def fewer_devices(self, model: Architecture, tensor_parallel_size: int) -> tuple[tuple[Part, int], ...]:
        """Attention and the embedding, which the devices of one group share (runtime_context.py:135).

        Of DeepSeek V3 on eight devices in eight groups each has all of attention, and an eighth of the experts.
        """
        heads = tensor_parallel_size // self._attention_groups
        mixers: tuple[tuple[Part, int], ...] = (("attention", heads), ("state", heads))
        if self.dp_size == 1:
            return mixers if heads < tensor_parallel_size else ()
        head: tuple[tuple[Part, int], ...] = (("head", heads),) if self.enable_dp_lm_head else ()
        return (*mixers, ("embedding", 1 if model.model_type in _WHOLE_EMBEDDING else heads), *head)

    def working_memory(self, setup: Setup, device: Device, context: int, batch_size: int) -> WorkingMemory:
        """What it sets aside by its own rule: 1 - mem_fraction_static of the memory that is free before the weights."""
        # The same for every context and batch, which an inverse tries by the dozen.
        key = ("sglang", self, setup.tensor_parallel_size, setup.sees, device)
        return setup.architecture.memo(key, lambda: sglang_working_memory(self, setup, device))

    def required_with_prefix(self, setup: Setup, context: int, batch_size: int, prefix: int) -> int:
        """The pool of the sequences with their common pages once (srt/mem_cache/radix_cache.py, match_prefix)."""
        if self.disable_radix_cache:
            raise UnsupportedError("sglang shares no prefix with disable_radix_cache")
        plan = setup.plan
        assert isinstance(plan, SGLangPlan | CompressedPlan)
        return plan.required_with_prefix(context, batch_size, prefix)

    def default_kv_dtypes(self, architecture: Architecture) -> tuple[DType, DType]:
        """The model's own formats; compressed layers, and sparse latents on Blackwell, are in fp8.

        Source: sglang 0.5.23 arg_groups/overrides.py:892 and :532.
        """
        kernels = {self.dsa_prefill_backend, self.dsa_decode_backend}
        on_blackwell = architecture.has_sparse_latents and kernels & {"trtllm", _SM12_GLM}
        if on_blackwell or any(isinstance(kind, Compressed) for kind, _ in architecture.caches):
            return DTYPES["fp8_e4m3"], DTYPES["fp8_e4m3"]
        return super().default_kv_dtypes(architecture)

    def prepare(self, setup: Setup) -> SGLangPlan | CompressedPlan:
        """Choose the pools, and price one token in them.

        Raises:
            UnsupportedError: a layer kind, a storage format or numbers of devices that the engine refuses.
        """
        model, ranks = setup.architecture, self._ranks(setup)
        if any(isinstance(kind, Compressed) for kind, _ in model.caches):
            return self._compressed_plan(setup, ranks)
        refuse_formats("sglang", setup, _DTYPES)
        refuse_uneven_heads("sglang", replace(setup, tensor_parallel_size=ranks.heads))
        for kind, _ in (*model.caches, *(setup.draft.caches if setup.draft is not None else ())):
            check_kind(model, kind)
        local = [(kind, count) for kind, count in model.caches if in_sliding_pool(kind)]
        if local and model.model_type in HYBRID_MODEL_TYPES and not self.disable_hybrid_swa_memory:
            return self._sliding_plan(setup, ranks, local)
        return self._with_states(self._plain_plan(setup, ranks), setup, ranks)

    def _ranks(self, setup: Setup) -> Ranks:
        """How the devices share attention.

        Raises:
            InputError: more than one group without attention data parallelism, which is another server's devices.
            UnsupportedError: numbers of devices that do not divide one another.
        """
        tp = setup.tensor_parallel_size
        if self.dp_size > 1 and not self.enable_dp_attention:
            raise InputError(
                f"dp_size={self.dp_size} starts as many servers, each with all of the model",
                hint="ask for one of them, or set enable_dp_attention=true",
            )
        heads, rest = divmod(tp, self._attention_groups)
        if rest or heads % self.dcp_size:
            sizes = f"dp_size {self.dp_size} x attn_cp_size {self.attn_cp_size} x dcp_size {self.dcp_size}"
            raise UnsupportedError(f"sglang divides {tp} devices, of which {sizes} is no divisor", hint="raise --tp")
        alone = self.attn_cp_size > 1 and self.dp_size == 1
        # TensorRT-LLM's kernels for either phase, which decode context parallelism needs, or TileLang's for both.
        kernels = {self.dsa_prefill_backend, self.dsa_decode_backend}
        plain = "trtllm" in kernels or kernels == {"tilelang"} or self.dcp_size > 1
        return Ranks(heads, self.dp_size, self.dcp_size, tp if alone else heads, plain)

    def _running(self, setup: Setup) -> int | None:
        """Requests that run at once in one group; None where nothing sets them."""
        running = self.max_running_requests
        if running is None and setup.draft is not None:
            running = DEFAULT_RUNNING
        return None if running is None else max(1, running // self.dp_size)

    def _speculation(self, setup: Setup) -> Speculation | None:
        given = (self.speculative_num_steps, self.speculative_eagle_topk, self.speculative_num_draft_tokens)
        if setup.draft is None:
            return None
        return Speculation.of(setup.architecture, self.speculative_algorithm, *given)

    def _compressed_plan(self, setup: Setup, ranks: Ranks) -> CompressedPlan:
        """DeepSeek V4: pages of 256 tokens, whatever ``page_size`` says (arg_groups/model_overrides/deepseek_v4.py)."""
        model, draft = setup.architecture, setup.draft
        if setup.k_dtype.name != "fp8_e4m3" or setup.v_dtype != setup.k_dtype:
            raise UnsupportedError(
                f"sglang has pools for {model.name}'s compressed layers in fp8_e4m3 alone "
                "(mem_cache/deepseek_v4_memory_pool.py:321)",
                hint="leave --kv-cache-dtype out",
            )
        if ranks.spread > 1:
            raise NotModelledError("compressed layers with decode context parallelism are not modelled for sglang")
        kinds = (*model.caches, *(draft.caches if draft is not None else ()))
        rows = compressed_rows(model.name, tuple(kind for kind, _ in kinds), model.caches)
        stated = "swa_full_tokens_ratio" in self.model_fields_set
        running = self.max_running_requests or DEFAULT_COMPRESSED_RUNNING
        return CompressedPlan(
            rows,
            draft.num_layers if draft is not None else 0,
            draft is not None,
            self.swa_full_tokens_ratio if stated else DEFAULT_COMPRESSED_RATIO,
            max(1, running // self.dp_size),
            ranks,
            _FP4_INDEX_KEY if self.enable_deepseek_v4_fp4_indexer else INDEX_KEY,
        )

    def _with_states(self, plan: SGLangPlan, setup: Setup, ranks: Ranks) -> SGLangPlan:
        """The plan with a pool of state slots, where the model has recurrent layers."""
        model, tp = setup.architecture, ranks.heads
        found = [
            (kind, state, count)
            for kind, count in model.caches
            if (state := state_of(kind)) is not None
            and state.recurrent_elements + state.conv_channels * (state.conv_kernel - 1)
        ]
        if not found:
            return plan
        speculation = self._speculation(setup)
        drafted = speculation.tokens if speculation is not None else 0
        conv = ssm = shared = 0
        rows = []
        for kind, state, count in found:
            if state.conv_channels % tp or state.recurrent_elements % tp:
                raise UnsupportedError(
                    f"sglang divides {model.name}'s states by {tp} devices, which does not divide them",
                    hint="use a power of two",
                )
            column = state.conv_channels // tp * parse_dtype(model.dtype).block_bytes
            width = state.conv_kernel - 1
            recurrent = state.recurrent_elements // tp * parse_dtype(self.mamba_ssm_dtype).block_bytes
            conv, ssm = conv + count * column * width, ssm + count * recurrent
            rows.append((kind, count, column * width + recurrent))
            if speculation is not None and speculation.branches == 1 and model.model_type not in _OWN_WINDOWS:
                # A chain's windows overlap: K - 1 columns for each of D tokens are D + K - 2 that are allocated.
                shared += count * column * (drafted * width - (drafted + width - 1 if width else 0))
        running = self._running(setup)
        per_request, fixed = 1, self.max_mamba_cache_size
        fixed = None if fixed is None else fixed // self.dp_size
        if self.disable_radix_cache:
            fixed = fixed or running
        else:
            ahead = 1 if self.disable_overlap_schedule else 2
            buffers = {"extra_buffer": ahead, "extra_buffer_lazy": 1, "no_buffer": 0}
            per_request = SLOTS_PER_REQUEST + buffers[self.mamba_radix_cache_strategy]
        ratio = self.mamba_full_memory_ratio
        states = StatePool(conv, ssm, per_request, ratio, fixed, drafted, running or 0, shared)
        notes = (*plan.notes, f"a running request may hold {per_request} state slots: its own and the radix cache's")
        return replace(plan, states=states, state_rows=tuple(rows), notes=notes)

    def _plain_plan(self, setup: Setup, ranks: Ranks) -> SGLangPlan:
        # Layers with a state alone, or with no cache at all, have no tokens in the pool.
        model = setup.architecture
        kinds = [(kind, count) for kind, count in model.caches if not isinstance(kind, State | NoCache)]
        if not kinds:
            raise NotModelledError(f"how sglang sizes a pool for {model.name}, which has no attention, is not known")
        # One head size for all layers: the full layers', where there are any.
        own = [kind for kind, _ in kinds if not isinstance(kind, Shared)]
        wide = [kind for kind in own if not is_local(kind)]
        token_bytes = one_size(model, wide or own, setup, ranks)
        layers = sum(count for _, count in kinds)
        rows = tuple((kind, count, False, token_bytes + indexer_bytes(kind, setup, ranks)) for kind, count in kinds)
        notes = [_PAGE_NOTE, *shared_note(kinds)]
        if packs_scales(setup, ranks):
            notes.append(
                "latents have their scales beside them; on Blackwell it takes dsa_decode_backend=trtllm, which has none"
            )
        if any(window_of(kind) for kind, _ in kinds):
            reason = (
                "disable_hybrid_swa_memory is set"
                if self.disable_hybrid_swa_memory
                else f"sglang {VERSION} has no sliding pool for model type {model.model_type!r}"
            )
            notes.append(f"{reason}: all {layers} layers are allocated at full length")
            if any(bytes_of_token(kind, setup, ranks) != token_bytes for kind in own):
                notes.append(f"every layer is billed at the full layers' {token_bytes:,} bytes a token")
        elif model.model_type in HYBRID_MODEL_TYPES:
            notes.append(
                f"sglang {VERSION} expects local layers in model type {model.model_type!r}; "
                "without any it is priced as one plain pool"
            )
        page = page_of(own, self.page_size if "page_size" in self.model_fields_set else None)
        draft = draft_pool(setup, ranks, self.speculative_algorithm, HYBRID_MODEL_TYPES, 0)
        cell = sum(count * size for _, count, _, size in rows)
        paid = paid_in_plain_pool(draft, kinds, cell, setup, ranks)
        beyond = draft.bytes(sliding=False) - paid
        pool = Pool("plain", page, cell + paid, least_tokens=page, main_beyond=beyond)
        every = layers == model.num_layers
        why = f"all {layers} layers full" if every else f"{layers} layers with attention, full"
        return SGLangPlan(pool, rows, draft.rows, why, tuple(notes), self._running(setup), ranks)

    def _sliding_plan(self, setup: Setup, ranks: Ranks, local: list[tuple[LayerKind, int]]) -> SGLangPlan:
        model = setup.architecture
        if ranks.spread > 1:
            raise NotModelledError("a sliding pool with decode context parallelism is not modelled for sglang")
        wide = [(kind, count) for kind, count in model.caches if not in_sliding_pool(kind)]
        swa_bytes, full_bytes = (
            one_size(model, [kind for kind, _ in side if not isinstance(kind, Shared)], setup, ranks) if side else 0
            for side in (local, wide)
        )
        swa_layers, full_layers = sum(count for _, count in local), sum(count for _, count in wide)
        window = max(window_of(kind) or 0 for kind, _ in local)
        window -= model.model_type in _EXCLUSIVE_WINDOW
        draft = draft_pool(setup, ranks, self.speculative_algorithm, HYBRID_MODEL_TYPES, swa_layers)
        pool = sliding_pool(
            self.page_size,
            full_bytes=full_layers * full_bytes,
            swa_bytes=swa_layers * swa_bytes,
            draft_paid=draft.paid_beside_windows(full_bytes or swa_bytes, swa_bytes),
            draft_bytes=(draft.bytes(sliding=False), draft.bytes(sliding=True)),
            ratio=self.swa_full_tokens_ratio,
            sliding_window_size=window,
            request_cap=self._request_cap(setup, window),
        )
        rows = (
            *((kind, count, False, full_bytes) for kind, count in wide),
            *((kind, count, bool(wide), swa_bytes) for kind, count in local),
        )
        drafted = tuple((kind, count, second and bool(wide), size) for kind, count, second, size in draft.rows)
        notes = [_PAGE_NOTE, *shared_note(model.caches)]
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
        return SGLangPlan(pool, rows, drafted, why, tuple(notes), self._running(setup), ranks)

    def _request_cap(self, setup: Setup, window: int) -> int | None:
        """Tokens that the running requests can hold in the sliding pool; None where the ratio sizes it.

        Source: sglang 0.5.23 model_executor/pool_configurator.py:924.
        """
        running = self._running(setup)
        if running is None or not self.disable_radix_cache or self.chunked_prefill_size <= 0:
            return None
        page, speculation = self.page_size, self._speculation(setup)
        drafted = 1 if speculation is None else speculation.tokens
        in_a_step = page
        if speculation is not None:
            in_a_step = speculation.decode_tokens(page, overlaps=not self.disable_overlap_schedule)
        per_request = window + _EVICTION_INTERVAL * drafted + page + in_a_step
        chunks = 1 if self.disable_overlap_schedule else 2
        return per_request * running + chunks * (self.chunked_prefill_size // self.dp_size) + page
