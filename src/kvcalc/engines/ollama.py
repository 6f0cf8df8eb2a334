"""Ollama: llama.cpp with a slot for each parallel request and a batch that grows with the context.

The rule of commit fb30760996 (2026-08-21), which pins llama.cpp b10488: llm/llama_server.go:375-376 and 585-591 (the
command line), server/sched.go:822-867 (the batch). Read from source.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from kvcalc.architecture import Architecture
from kvcalc.derivation import Quantity
from kvcalc.dtypes import FLOAT16, DType
from kvcalc.engines.llama_cpp import ContextParams, Launch, LlamaCppPlan, make_plan, model_cache
from kvcalc.engines.options import EngineOptions
from kvcalc.errors import UnsupportedError
from kvcalc.units import MAX_TOKENS

if TYPE_CHECKING:
    from kvcalc.setup import Setup


def automatic_batch(n_ctx: int) -> int:
    """Ollama's batch for the tokens of all slots together.

    >>> [automatic_batch(n_ctx) for n_ctx in (4096, 4097, 32768, 32769)]
    [512, 1024, 1024, 2048]
    """
    return 512 if n_ctx <= 4096 else 1024 if n_ctx <= 32768 else 2048


class Ollama(EngineOptions):
    """Ollama's llama.cpp runner: ``-c num_ctx x parallel -np parallel -b num_batch -ub num_batch``."""

    name: ClassVar[str] = "ollama"
    summary: ClassVar[str] = "llama.cpp, with a slot a parallel request and a batch that grows with the context"
    follows: ClassVar[str] = "fb30760996"
    formula: ClassVar[str] = (
        "n_ctx = context x num_parallel, n_seq_max = num_parallel, not unified\n"
        "n_batch = n_ubatch = num_batch: 512 up to 4,096 tokens of n_ctx, 1,024 up to 32,768, 2,048 above\n"
        "then llama.cpp's rule"
    )
    sources: ClassVar[tuple[str, ...]] = (
        "ollama fb30760996 (2026-08-21): llm/llama_server.go:375-376, 585-591; server/sched.go:822-867",
        "llama.cpp, as for that engine",
    )
    not_modelled: ClassVar[tuple[str, ...]] = (
        "the smaller batch that it falls back to where memory is short, or on CUDA without flash attention",
        "the engine of its own that it ran models with in 2025, and its MLX runner",
    )
    evidence: ClassVar[str] = "read from source; reproduces recorded Ollama logs of one slot"
    frugal_options: ClassVar[Mapping[str, tuple[Any, ...]]] = {"num_batch": (512, 256)}

    num_parallel: int | None = Field(
        None, ge=1, le=256, description="slots (OLLAMA_NUM_PARALLEL); default the batch size"
    )
    num_batch: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="tokens of a batch; default by context x num_parallel"
    )
    version: Literal["fb30760996"] = Field("fb30760996", description="the commit whose rule is followed")

    @property
    def batch_limit(self) -> int | None:
        """``num_parallel``: further requests wait."""
        return self.num_parallel

    def default_kv_dtypes(self, architecture: Architecture) -> tuple[DType, DType]:
        """f16, whatever the model's own format."""
        return FLOAT16, FLOAT16

    def prepare(self, setup: Setup) -> LlamaCppPlan:
        """llama.cpp's plan, launched as Ollama does."""
        architecture = setup.served
        if setup.k_dtype.name != setup.v_dtype.name:
            raise UnsupportedError(
                f"ollama stores K and V in one type, not {setup.k_dtype.name} and {setup.v_dtype.name}",
                hint="OLLAMA_KV_CACHE_TYPE sets both: name one type, or use llama.cpp",
            )
        return make_plan(
            model_cache(architecture, setup, flash_attn=True, mla=True), self._launch(), self._launch_steps
        )

    def _launch(self) -> Launch:
        slots, num_batch = self.num_parallel, self.num_batch

        def launch(context: int, batch_size: int) -> ContextParams:
            parallel = slots or batch_size
            n_ctx = context * parallel
            return ContextParams(n_ctx, min(n_ctx, num_batch or automatic_batch(n_ctx)), parallel)

        return launch

    def _launch_steps(self, context: int, batch_size: int) -> tuple[Quantity, ...]:
        params = self._launch()(context, batch_size)
        batch = self.num_batch or automatic_batch(params.n_ctx)
        # The thresholds as arithmetic: n // 4097 is 0 up to 4096, so its min with 1 is a step at 4097.
        automatic = "512 + 512 * min(1, n_ctx // 4097) + 1024 * min(1, n_ctx // 32769)"
        launcher, scheduler = "ollama fb30760996, llm/llama_server.go", "ollama fb30760996, server/sched.go"
        return (
            Quantity("T", "context", str(context), context, "tokens"),
            Quantity("B", "batch size", str(batch_size), batch_size, "sequences"),
            Quantity("n_seq_max", "slots", str(self.num_parallel or "B"), params.n_seq_max, "sequences", launcher),
            Quantity("n_ctx", "tokens of all slots", "T * n_seq_max", params.n_ctx, "tokens", launcher),
            Quantity("num_batch", "batch", str(self.num_batch or automatic), batch, "tokens", scheduler),
            Quantity("n_ubatch", "micro-batch", "min(n_ctx, num_batch)", params.n_ubatch, "tokens", launcher),
        )
