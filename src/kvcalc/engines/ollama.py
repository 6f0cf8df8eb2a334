"""Ollama: llama.cpp with a slot per parallel request and a batch that grows with the context.

The rule of commit fb30760996 (2026-08-21), which pins llama.cpp b10488: llm/llama_server.go:375-376 and 585-591 (the
command line), server/sched.go:822-867 (the batch). Releases of 2025 (0.6 to 0.13) had an engine of their own with one
cache for all slots, and fs/ggml/ggml.go (GraphSize), an estimate of its size. Read from source.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from kvcalc.architecture import (
    Architecture,
    Chunked,
    Full,
    Latent,
    LayerKind,
    NoCache,
    Parallel,
    Shared,
    Sliding,
    State,
)
from kvcalc.derivation import Derivation
from kvcalc.dtypes import FLOAT16, DType
from kvcalc.engines.base import Loads
from kvcalc.engines.llama_cpp.compute import Graph, llama_cpp_working_memory
from kvcalc.engines.llama_cpp.engine import OLDEST, served
from kvcalc.engines.llama_cpp.models import model_cache
from kvcalc.engines.llama_cpp.plan import ContextParams, LlamaCppPlan, make_plan
from kvcalc.engines.options import EngineOptions
from kvcalc.errors import NotModelledError, UnsupportedError
from kvcalc.units import MAX_TOKENS
from kvcalc.widths import Widths

if TYPE_CHECKING:
    from kvcalc.device import Device, Platform
    from kvcalc.engines.base import WorkingMemory
    from kvcalc.setup import Setup

OWN_ENGINE, DELEGATES = "0.13", "fb30760996"

_OWN_ENGINE_BATCH = 512
#: Bytes of a number in the estimator's eyes (kvCacheBytesPerElement): q8_0 and q4_0 without their scales.
_ESTIMATED_BYTES = {"q8_0": 1.0, "q4_0": 0.5, "float32": 4.0}
#: The models whose windows the estimator knows, gpt-oss's as a constant of its own.
_ESTIMATED_WINDOWS = {"gemma3": None, "gpt_oss": 4096}


def automatic_batch(n_ctx: int) -> int:
    """Ollama's batch for the tokens of all slots together.

    >>> [automatic_batch(n_ctx) for n_ctx in (4096, 4097, 32768, 32769)]
    [512, 1024, 1024, 2048]
    """
    return 512 if n_ctx <= 4096 else 1024 if n_ctx <= 32768 else 2048


def nearest_version(text: str) -> tuple[str, str]:
    """The version whose rule a release follows, and what to say of it where it is another one.

    Raises:
        ValueError: neither a known commit nor a release number.

    >>> nearest_version("0.11.4"), nearest_version("fb30760996")
    (('0.13', ''), ('fb30760996', ''))
    """
    if text.startswith(DELEGATES):
        return DELEGATES, ""
    release = re.fullmatch(r"v?0\.(\d{1,3})(\.\d{1,3})?", text)
    if release is None:
        raise ValueError(f"known versions: {OWN_ENGINE}, {DELEGATES}, and releases as in 0.11.4")
    if 6 <= int(release[1]) <= 13:
        return OWN_ENGINE, ""
    place = "after" if int(release[1]) > 13 else "before the first of"
    return OWN_ENGINE, f"ollama {text} is {place} the releases that are known (0.6 to 0.13): their rule is followed"


def estimated_kv_bytes(architecture: Architecture, dtype: DType, n_ctx: int, parallel: int, batch: int) -> int:
    """``memory.required.kv``: what Ollama 0.6 to 0.13 expected the cache to take, before it was allocated.

    Every attention layer holds ``n_ctx`` tokens, but the sliding ones of Gemma 3 and gpt-oss; q8_0 counts one byte
    for each number and q4_0 half of one, so the estimate is not the allocation.
    Source: ollama 0.13, fs/ggml/ggml.go (GraphSize, kvCacheBytesPerElement).

    Args:
        architecture: the model.
        dtype: the format of K and V.
        n_ctx: tokens of all slots together.
        parallel: slots.
        batch: tokens of a batch.
    """
    element_bytes, total = _ESTIMATED_BYTES.get(dtype.name, 2.0), 0
    owners: dict[str, LayerKind] = {}
    for index in architecture.order:
        kind = architecture.layers[index].cache
        if isinstance(kind, Shared):
            kind = owners.get(kind.of, NoCache())
        owners[kind.kind] = kind
        match kind.attention if isinstance(kind, Parallel) else kind:
            case Full() | Sliding() | Chunked() as attention:
                width = attention.num_kv_heads * (attention.head_dim + attention.v_head_dim)
            case Latent() as latent:
                width = latent.rank + latent.rope_dim + latent.rank
            case State() as state:
                total += 4 * (state.recurrent_elements + state.conv_channels * (state.conv_kernel - 1))
                continue
            case _:
                continue
        tokens = n_ctx
        if isinstance(kind, Sliding) and architecture.model_type in _ESTIMATED_WINDOWS:
            tokens = parallel * (_ESTIMATED_WINDOWS[architecture.model_type] or kind.window) + batch
        total += int(tokens * width * element_bytes)
    return total


@dataclass(frozen=True, slots=True)
class OllamaLaunch:
    """The command line that Ollama makes: ``-c num_ctx x parallel -np parallel -b num_batch -ub num_batch``."""

    num_parallel: int | None
    num_batch: int | None
    own_engine: bool
    drafted_tokens: int = 0

    def params(self, context: int, batch_size: int) -> ContextParams:
        """The parameters, fast."""
        parallel = self.num_parallel or batch_size
        n_ctx = context * parallel
        n_ubatch = min(n_ctx, self.batch(n_ctx))
        return ContextParams(
            n_ctx, n_ubatch, parallel, kv_unified=self.own_engine, swa_full=False, n_rs_seq=self.drafted_tokens
        )

    def batch(self, n_ctx: int) -> int:
        """Tokens of a batch."""
        return self.num_batch or (_OWN_ENGINE_BATCH if self.own_engine else automatic_batch(n_ctx))

    def derive(self, work: Derivation) -> None:
        """The same as quantities."""
        # The thresholds as arithmetic: n // 4097 is 0 up to 4096, so its min with 1 is a step at 4097.
        automatic = "512 + 512 * min(1, n_ctx // 4097) + 1024 * min(1, n_ctx // 32769)"
        batch = str(self.num_batch or (_OWN_ENGINE_BATCH if self.own_engine else automatic))
        launcher = "ollama 0.13 runner/ollamarunner" if self.own_engine else "ollama fb30760996, llm/llama_server.go"
        scheduler = "ollama 0.13 api/types.go" if self.own_engine else "ollama fb30760996, server/sched.go"
        work.let("n_seq_max", "slots", str(self.num_parallel or "B"), "sequences", launcher)
        work.let("n_ctx", "tokens of all slots", "T * n_seq_max", "tokens", launcher)
        work.let("num_batch", "batch", batch, "tokens", scheduler)
        work.let("n_ubatch", "micro-batch", "min(n_ctx, num_batch)", "tokens", launcher)


class Ollama(EngineOptions):
    """Ollama, which launches llama-server; releases of 2025 by ``version`` had an engine of their own."""

    name: ClassVar[str] = "ollama"
    keeps_prefixes_apart: ClassVar[str] = "each slot of its runner keeps its prompt (runner/ollamarunner/cache.go)"
    summary: ClassVar[str] = "llama.cpp, with a slot per parallel request and a batch that grows with the context"
    follows: ClassVar[str] = DELEGATES
    formula: ClassVar[str] = (
        "n_ctx = context x num_parallel, n_seq_max = num_parallel, not unified\n"
        "n_batch = n_ubatch = num_batch: 512 up to 4,096 tokens of n_ctx, 1,024 up to 32,768, 2,048 above\n"
        "then llama.cpp's rule\n"
        "0.6 to 0.13: one cache for all slots, num_batch 512; memory.required.kv is an estimate of its own"
    )
    loads: ClassVar[Loads | None] = Loads(
        "gguf mxfp4 nvfp4",
        "llm/llama_server.go: its models are GGUF files",
    )
    weight_formats: ClassVar[tuple[str, ...]] = (
        "Q8_0",
        "Q6_K",
        "Q5_K_M",
        "Q4_K_M",
        "IQ4_XS",
        "Q3_K_M",
        "IQ3_XXS",
        "Q2_K",
    )
    sources: ClassVar[tuple[str, ...]] = (
        "ollama fb30760996 (2026-08-21): llm/llama_server.go:375-376, 585-591; server/sched.go:822-867",
        "ollama llm/llama_server.go (appendDraftArgs): --spec-draft-n-max draft_num_predict",
        "ollama 0.13: fs/ggml/ggml.go (GraphSize, kvCacheBytesPerElement)",
        "llama.cpp, as for that engine",
    )
    not_modelled: ClassVar[tuple[str, ...]] = (
        "the smaller batch that it falls back to where memory is short, or on CUDA without flash attention",
        "its MLX runner",
    )
    platforms: ClassVar[frozenset[Platform]] = frozenset({"cuda", "rocm", "metal"})
    evidence: ClassVar[str] = "read from source; reproduces recorded Ollama logs"
    releases: ClassVar[tuple[tuple[str, ...], ...]] = ((DELEGATES,), (OWN_ENGINE,))
    frugal_options: ClassVar[Mapping[str, tuple[Any, ...]]] = {"num_batch": (512, 256)}

    num_parallel: int | None = Field(
        None, ge=1, le=256, description="slots (OLLAMA_NUM_PARALLEL); default the batch size"
    )
    num_batch: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="tokens of a batch; default by context x num_parallel"
    )
    draft_num_predict: int = Field(
        4, ge=0, le=1024, description="tokens that a draft proposes; a state is kept for each of them"
    )
    version: str = Field(
        DELEGATES, description="fb30760996 launches llama-server; a release of 2025 (0.6 to 0.13) has its own engine"
    )

    @field_validator("version")
    @classmethod
    def _known_version(cls, version: str) -> str:
        nearest_version(version)
        return version

    @property
    def followed_version(self) -> str:
        """The known version whose rule answers."""
        return nearest_version(self.version)[0]

    @property
    def pads_to_longest(self) -> bool:
        """Slots of one size."""
        return True

    @property
    def batch_limit(self) -> int | None:
        """``num_parallel``: further requests wait."""
        return self.num_parallel

    def default_kv_dtypes(self, architecture: Architecture) -> tuple[DType, DType]:
        """f16, whatever the model's own format."""
        return FLOAT16, FLOAT16

    def prepare(self, setup: Setup) -> LlamaCppPlan:
        """llama.cpp's plan, launched as Ollama does."""
        key = setup.k_dtype
        if key.name != setup.v_dtype.name:
            raise UnsupportedError(
                f"ollama stores K and V in one type, not {key.name} and {setup.v_dtype.name} (envconfig/config.go)",
                hint="OLLAMA_KV_CACHE_TYPE sets both: name one type, or use llama.cpp",
            )
        followed, note = nearest_version(self.version)
        if setup.draft is not None and followed == OWN_ENGINE:
            raise UnsupportedError(
                "ollama 0.6 to 0.13 has no draft models (llm/server.go)", hint="leave the draft out, or name no version"
            )
        own, drafted = served(setup, OLDEST)  # b10488 is older still
        model = model_cache(own, setup, key, key, flash_attn=True, mla=True)
        if note:
            model = replace(model, notes=(note, *model.notes))
        drafted_tokens = self.draft_num_predict if drafted is not None else 0
        launch = OllamaLaunch(self.num_parallel, self.num_batch, followed == OWN_ENGINE, drafted_tokens)
        draft = None if drafted is None else model_cache(drafted, setup, FLOAT16, FLOAT16, flash_attn=True, mla=True)
        plan = make_plan(model, launch, draft)
        if followed != OWN_ENGINE:
            return plan

        def estimate(context: int, batch_size: int) -> int:
            n_ctx, _, parallel, *_ = launch.params(context, batch_size)
            return estimated_kv_bytes(setup.architecture, key, n_ctx, parallel, launch.batch(n_ctx))

        return replace(plan, estimate=estimate)

    def working_memory(self, setup: Setup, device: Device, context: int, batch_size: int) -> WorkingMemory:
        """llama-server's compute buffer, with Ollama's batch.

        Raises:
            NotModelledError: a release of 2025, whose own engine measures its buffers, or as for llama.cpp.
        """
        followed, _ = nearest_version(self.version)
        if followed == OWN_ENGINE or setup.draft is not None:
            raise NotModelledError(
                "the compute buffers of Ollama's own engine, and those of a draft, are not modelled",
                hint="read 'compute graph' in its log",
            )
        launch, work = (
            OllamaLaunch(self.num_parallel, self.num_batch, own_engine=False),
            Derivation(context, batch_size),
        )
        launch.derive(work)
        params = launch.params(context, batch_size)
        plan = setup.plan
        assert isinstance(plan, LlamaCppPlan)
        on_cuda = device.platform in ("cuda", "rocm")
        graph = Graph(params, True, None, False, True, on_cuda)
        return llama_cpp_working_memory(work, plan.model, Widths(setup.architecture), graph, device)
