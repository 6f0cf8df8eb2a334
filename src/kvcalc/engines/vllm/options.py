"""vLLM's options, and what follows from them alone or for one model.

Source: vllm 0.33.0 config/, engine/arg_utils.py; older versions as :mod:`kvcalc.engines.vllm.versions` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from kvcalc.architecture import Architecture, Compressed, Full, Parallel, State
from kvcalc.dtypes import DType
from kvcalc.engines.options import EngineOptions
from kvcalc.engines.releases import release
from kvcalc.engines.vllm.versions import NEWEST, Rules, rules_of
from kvcalc.units import MAX_TOKENS

if TYPE_CHECKING:
    from kvcalc.setup import Setup

# Tokens of a chunk of the scan, the class's default, of the models whose class says SupportsMambaPrefixCaching: with
# prefix caching they keep a state for every block (vllm 0.27.1 model_executor/models, config/model.py:1531).
_CHUNK_OF_EVERY_STATE = {
    "bamba": 256,
    "falcon_h1": 256,
    "falcon_mamba": 2048,
    "granitemoehybrid": 256,
    "jamba": 2048,
    "mamba": 2048,
    "mamba2": 256,
    "nemotron_h": 128,
    "zamba2": 256,
}

# Models of MambaMixer2 and of the gated delta nets of Qwen (vllm 0.33.0 model_executor/models).
_MAMBA2_MODELS = frozenset({"falcon_h1", "granitemoehybrid", "mamba2", "nemotron_h", "zamba2"})
_DELTA_MODELS = frozenset({"qwen3_next", "qwen3_5", "qwen3_5_moe"})

# What sparse attention's kernels take: vllm 0.33.0 v1/attention/backends/mla/indexer.py:286 and :357,
# models/minimax_m3/common/indexer.py:94.
_SPARSE_BLOCK, _COMPRESSED_BLOCK, _SPARSE_GQA_BLOCK, _ULTRAQUANT_BLOCK = 64, 256, 128, 64


class VllmOptions(EngineOptions):
    """What a user may state of vLLM."""

    version: str = Field(NEWEST, description="the vLLM version whose rules to follow")
    block_size: int = Field(16, ge=1, le=MAX_TOKENS, description="tokens in one block (sparse attention: its kernel's)")
    max_num_batched_tokens: int = Field(8192, ge=1, le=MAX_TOKENS, description="tokens that one step may process")
    max_num_seqs: int = Field(256, ge=1, le=MAX_TOKENS, description="sequences that run at a time; the sampler's rows")
    async_scheduling: bool = Field(True, description="the next step is scheduled while one runs")
    disable_hybrid_kv_cache_manager: bool = Field(
        False, description="sliding and chunked layers take blocks for the whole context"
    )
    enforce_eager: bool = Field(False, description="no CUDA graphs: less working memory, the same cache")
    pipeline_parallel_size: int = Field(
        1, ge=1, le=10_000, description="pipeline stages; figures are for the one that holds the most"
    )
    decode_context_parallel_size: int = Field(
        1, ge=1, le=10_000, description="ranks of tensor parallelism that divide a sequence's tokens between them"
    )
    prefill_context_parallel_size: int = Field(1, ge=1, le=10_000, description="ranks that divide a prompt's tokens")
    num_gpu_blocks_override: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="blocks of the pool, whatever the memory"
    )
    enable_prefix_caching: bool = Field(False, description="for state layers: one more state a sequence (align mode)")
    num_speculative_tokens: int = Field(
        0,
        ge=0,
        le=1024,
        description="tokens speculated in one step; with mtp the model's prediction layers if left out",
    )
    gdn_prefill_backend: Literal["triton", "flashinfer"] = Field(
        "triton", description="kernels of gated delta nets; vllm takes flashinfer on Hopper and Blackwell"
    )
    mamba_cache_dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="format of states; auto is the model's"
    )
    mamba_ssm_cache_dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="format of a state's recurrent part; auto: what the model asks for, else mamba_cache_dtype"
    )
    indexer_kv_dtype: Literal["auto", "bf16", "fp8", "mxfp4"] = Field(
        "auto", description="format of sparse attention's index keys; auto: fp8 (MiniMax-M3: bf16)"
    )

    @field_validator("version")
    @classmethod
    def _known_version(cls, version: str) -> str:
        release(version)  # raises ValueError where the text is no version
        return version

    @property
    def rules(self) -> Rules:
        """What the version does."""
        return rules_of(self.version)

    @property
    def utilization_percent(self) -> int:
        """The default of gpu_memory_utilization, in percent: 90 up to 0.19, then 92."""
        return self.rules.utilization_percent

    @property
    def batch_limit(self) -> int | None:
        """``max_num_seqs``, where it is given: no more sequences run at the same time."""
        return self.max_num_seqs if "max_num_seqs" in self.model_fields_set else None

    @property
    def pipeline_stages(self) -> int:
        """Devices in a row, each with a part of the layers."""
        return self.pipeline_parallel_size

    @property
    def batches_in_flight(self) -> int:
        """Batches whose tokens a window must keep (max_concurrent_batches; one before 0.26.0)."""
        if not self.rules.counts_every_batch:
            return 1
        return self.pipeline_parallel_size + self.steps_ahead

    @property
    def steps_ahead(self) -> int:
        """Steps under way while the next one is scheduled."""
        return 1 if self.async_scheduling else 0

    @property
    def tokens_in_flight(self) -> int:
        """The F of the formulas: tokens that may be under way beside a window."""
        return self.batches_in_flight * self.max_num_batched_tokens

    @property
    def steps_of_several(self) -> int:
        """Steps whose tokens several sequences may hold beside their windows at once.

        A sequence gives blocks back when it is scheduled. One that ended keeps what its last step found under way until
        the output of that step arrives: a prompt in two steps of 8192 tokens still holds both of them, while the next
        prompt is in its first. (vllm 0.33.0 v1/core/sched/scheduler.py:801, v1/engine/core.py:708)
        """
        return self.batches_in_flight + self.pipeline_parallel_size + self.steps_ahead - 1

    @property
    def tokens_of_several(self) -> int:
        """The F of the formulas for several sequences."""
        return self.steps_of_several * self.max_num_batched_tokens

    def block_size_for(self, model: Architecture, dtype: DType) -> int:
        """The block that is asked for, or the one that the model's attention kernels need."""
        if "block_size" in self.model_fields_set:
            return self.block_size
        kinds = [kind for kind, _ in model.caches]
        if any(isinstance(kind, Compressed) for kind in kinds):
            return _COMPRESSED_BLOCK
        if any(isinstance(kind, Full) and kind.indexer_dim for kind in kinds):
            return _SPARSE_GQA_BLOCK
        if model.has_sparse_latents:
            return _SPARSE_BLOCK
        return _ULTRAQUANT_BLOCK if dtype.name == "ultraquant_4bit" else self.block_size

    def speculated_tokens(self, setup: Setup) -> int:
        """Tokens speculated in one step: what is given, or one for each of the model's own prediction layers.

        Source: vllm 0.33.0 config/speculative.py (n_predict).
        """
        if "num_speculative_tokens" in self.model_fields_set or setup.draft is None:
            return self.num_speculative_tokens
        own = setup.architecture.mtp_layers and setup.draft is setup.architecture.mtp
        return setup.draft.num_layers if own else 1

    def leaves_prefixes_out(self, model: Architecture) -> bool:
        """Whether the version caches this model's prefixes unless told otherwise, and the question leaves it open.

        Source: vllm 0.26.0 config/model.py (is_prefix_caching_supported: hybrid models, not those of states alone).
        """
        kinds = [kind for kind, _ in model.caches]
        hybrid = any(isinstance(kind, Parallel) for kind in kinds) or (
            any(isinstance(kind, State) for kind in kinds) and any(not isinstance(kind, State) for kind in kinds)
        )
        return hybrid and self.rules.caches_hybrid_prefixes and "enable_prefix_caching" not in self.model_fields_set

    def chunk_of_every_state(self, setup: Setup) -> int | None:
        """The chunk in whose steps blocks grow where a state is kept for every block (mode "all"), or None.

        Source: vllm 0.27.1 model_executor/models/config.py:613, platforms/interface.py:890.
        """
        if not self.enable_prefix_caching or not self.rules.caches_all_states or self.speculated_tokens(setup):
            return None
        return _CHUNK_OF_EVERY_STATE.get(setup.architecture.model_type)

    @property
    def aligns_states(self) -> bool:
        """Whether a state belongs to a block of tokens (mode "align"), and not to the whole sequence."""
        return self.enable_prefix_caching and self.rules.aligns_states

    def cached_states(self, model: Architecture) -> int:
        """States that a sequence keeps for prefix caching: that of its last whole block, and one being written.

        Source: vllm 0.33.0 v1/kv_cache_interface.py:1135, model_executor/layers/mamba/mamba_mixer2.py:1108.
        """
        if not self.aligns_states:
            return 0
        mamba2 = self.rules.checkpoints_mamba2 and model.model_type in _MAMBA2_MODELS
        return 1 + (mamba2 or self.exports_delta_states(model, self.gdn_prefill_backend))

    def exports_delta_states(self, model: Architecture, backend: str) -> bool:
        """Whether these kernels hand out states of gated delta nets on the way (qwen_gdn_linear_attn.py:692)."""
        return (
            self.aligns_states
            and self.rules.checkpoints_gdn
            and backend == "flashinfer"
            and model.model_type in _DELTA_MODELS
        )
