"""llama.cpp with its options, as a program of its own launches it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from kvcalc.architecture import Architecture, Latent, Layer, Stage
from kvcalc.derivation import Derivation
from kvcalc.dtypes import FLOAT16, DType, parse_dtype
from kvcalc.engines.base import Loads, Server
from kvcalc.engines.llama_cpp.compute import FIT_PARAMS, Graph, llama_cpp_working_memory
from kvcalc.engines.llama_cpp.models import ModelCache, model_cache
from kvcalc.engines.llama_cpp.placement import HOST, Place, PlacedPlan, placed_plan, placement
from kvcalc.engines.llama_cpp.plan import MOST_SEQUENCES, ContextParams, LlamaCppPlan, make_plan
from kvcalc.engines.options import EngineOptions
from kvcalc.errors import NotModelledError
from kvcalc.quantization import ROPE_FACTORS
from kvcalc.units import MAX_TOKENS
from kvcalc.widths import Widths

if TYPE_CHECKING:
    from kvcalc.device import Device, Platform
    from kvcalc.engines.base import WorkingMemory
    from kvcalc.setup import Setup

_MOST_DEVICES = 16  # GGML_CUDA_MAX_DEVICES
_SERVER_SLOTS = 4  # llama-server -np auto, tools/server/server.cpp:156-160
#: GLM and DeepSeek with a sparse-attention indexer: their prediction layers attend without one (src/llama-model.cpp).
_DENSE_MTP = frozenset({"deepseek_v32", "dots3note", "glm_moe_dsa"})

OLDEST, PINNED, NEWEST = "b10837", "0c1e57098", "b11739"
#: The first build that was run and follows each version: b11227 has the ggml of 0c1e57098 (0.25.3), b11352 its compute
#: buffers still, b11548 those of b11739.
_FIRST_BUILDS = {NEWEST: 11548, PINNED: 11067, OLDEST: 0}
_NAMES = {"0ce8cd114": NEWEST, PINNED: PINNED, NEWEST: NEWEST, OLDEST: OLDEST}
#: Up to b10837 (run; b11067 is mended) both contexts of these hold the prediction layers and all others.
_UNFILTERED_MTP = frozenset(
    {*("cohere2_moe", "deepseek_v2", "deepseek_v3", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "kimi_k2", "youtu")}
)


def nearest_version(text: str) -> tuple[str, str]:
    """The known version whose rule a build follows, and what to say of it where it is another one.

    Raises:
        ValueError: neither a known commit nor a build number.

    >>> nearest_version("b11739")
    ('b11739', '')
    >>> nearest_version("b11400")
    ('0c1e57098', 'llama.cpp b11400 is before b11739: the rule of 0c1e57098 is followed')
    """
    known = next((version for name, version in _NAMES.items() if text.startswith(name) or f"b{text}" == name), None)
    if known is not None:
        return known, ""
    build = re.fullmatch(r"b?(\d{3,6})", text)
    if build is None:
        raise ValueError(f"known versions: {OLDEST}, {PINNED}, {NEWEST}, and other builds as in b11400")
    number = int(build[1])
    found = next(version for version, first in _FIRST_BUILDS.items() if number >= first)
    place = "after" if number > int(NEWEST[1:]) else "before"
    return found, f"llama.cpp b{number} is {place} {NEWEST}: the rule of {found} is followed"


@dataclass(frozen=True, slots=True)
class OwnLaunch:
    """llama.cpp started with its own flags; what is None follows from the workload."""

    n_batch: int
    n_ubatch: int
    n_ctx: int | None
    n_seq_max: int | None
    kv_unified: bool
    swa_full: bool
    n_rs_seq: int

    def params(self, context: int, batch_size: int) -> ContextParams:
        """The parameters, fast."""
        n_ctx = self.n_ctx or context * batch_size
        n_ubatch = min(n_ctx, self.n_batch, self.n_ubatch or self.n_batch)
        slots = self.n_seq_max or batch_size
        return ContextParams(n_ctx, n_ubatch, slots, self.kv_unified, self.swa_full, self.n_rs_seq)

    def derive(self, work: Derivation) -> None:
        """The same as quantities."""
        source = "llama.cpp src/llama-context.cpp"
        work.let("n_ctx", "tokens of all sequences", str(self.n_ctx or "T * B"), "tokens")
        work.let("n_seq_max", "sequences at a time", str(self.n_seq_max or "B"), "sequences")
        work.let("n_batch", "logical batch", f"min(n_ctx, {self.n_batch})", "tokens", source)
        work.let("n_ubatch", "micro-batch", f"min(n_batch, {self.n_ubatch or 'n_batch'})", "tokens", source)


def served(setup: Setup, version: str) -> tuple[Architecture, Architecture | None]:
    """The layers of the model's own context, and those of the second one that a draft opens.

    The model's own prediction layers are the draft of ``mtp``: llama.cpp opens a context of the same model that holds
    those layers alone.
    """
    model, draft = setup.architecture, setup.draft
    if draft is None or not model.mtp_layers or draft != model.mtp:
        return model, draft
    if version == OLDEST and model.model_type in _UNFILTERED_MTP:
        whole = model.followed_by(draft)
        return whole, whole
    if model.model_type in _DENSE_MTP:
        draft = draft.changed(layers=tuple(map(_without_indexer, draft.layers)))
    return model, draft


def _without_indexer(layer: Layer) -> Layer:
    return replace(layer, cache=replace(layer.cache, indexer_dim=0)) if isinstance(layer.cache, Latent) else layer


class LlamaCpp(EngineOptions):
    """llama.cpp as a library or ``llama-cli`` launches it, or with ``program`` as ``llama-server`` does."""

    name: ClassVar[str] = "llama.cpp"
    keeps_prefixes_apart: ClassVar[str] = "each slot of llama-server keeps its prompt (tools/server/server-context.cpp)"
    summary: ClassVar[str] = (
        "reserves padded cells when the context is created; sliding layers get a cache of their own"
    )
    follows: ClassVar[str] = NEWEST
    formula: ClassVar[str] = (
        "cells = round_up(round_up(n_ctx, 256) // n_seq_max, 256), streams = n_seq_max; "
        "kv_unified: round_up(n_ctx, 256), 1 stream\n"
        "cells_swa = round_up(min(cells, window (x n_seq_max if kv_unified) + n_ubatch), 256); swa_full: cells\n"
        "bytes = streams x sum over layers of cells x KV heads x (K dim x K bytes + V dim x V bytes)\n"
        "      + n_seq_max x (1 + n_rs_seq) x 4 x sum over state layers of recurrent + channels x (kernel - 1)\n"
        "MLA: K is the latent (rank + rope dim) and there is no V; an indexer's keys have a cache of as many cells\n"
        "a draft opens a second context of as many tokens, with K and V in f16"
    )
    loads: ClassVar[Loads | None] = Loads(
        "gguf mxfp4 nvfp4",
        "src/llama-model-loader.cpp: GGUF files alone",
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
    holds_beside: ClassVar[frozenset[str]] = frozenset({ROPE_FACTORS})
    sources: ClassVar[tuple[str, ...]] = (
        "llama.cpp 0c1e57098 (ggml 0.25.3): src/llama-context.cpp:246-306, src/llama-kv-cache.cpp:166-234",
        "src/llama-kv-cache-iswa.cpp:69-80, src/llama-memory-recurrent.cpp:101-103, src/models/*.cpp",
        "src/llama-model.cpp (create_memory), src/llama-kv-cache-dsa.cpp, -msa.cpp, -dsv4.cpp; common/speculative.cpp",
        "llama.cpp b11739 (ggml 0.27.0): the library itself, contexts without memory",
    )
    not_modelled: ClassVar[tuple[str, ...]] = (
        "CUDA's padding of quantised rows that are no multiple of 512 numbers (hundreds of bytes)",
        "prompt caches in host memory",
    )
    platforms: ClassVar[frozenset[Platform]] = frozenset({"cuda", "rocm", "metal"})
    evidence: ClassVar[str] = (
        "680 recorded contexts of 17 models, to the byte and to the printed line; "
        "1,500 random contexts of 54 architectures through the library of b11739: 1,202 equal, 0 different"
    )
    releases: ClassVar[tuple[tuple[str, ...], ...]] = ((NEWEST,), (PINNED,), (OLDEST,))
    frugal_options: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "swa_full": (False,),
        "kv_unified": (True,),
        "n_ubatch": (256, 128),
    }
    server: ClassVar[Server | None] = Server(
        ("llama-server", "-m", "{model}"),
        {"context_in_all": "-c", "batch_size": "-np", "k_dtype": "-ctk", "v_dtype": "-ctv", "draft": "-md"},
        named={
            "n_batch": "-b",
            "n_ubatch": "-ub",
            "kv_unified=True": "-kvu",
            "kv_unified=False": "-no-kvu",
            "swa_full=True": "--swa-full",
            "flash_attn=False": "-fa off",
            "cache_type_k_draft": "-ctkd",
            "cache_type_v_draft": "-ctvd",
            "n_gpu_layers": "-ngl",
            "tensor_split": "-ts",
        },
        loads="file",
    )

    n_batch: int = Field(2048, ge=1, le=MAX_TOKENS, description="tokens of a logical batch (-b)")
    n_ubatch: int = Field(512, ge=0, le=MAX_TOKENS, description="tokens of a micro-batch (-ub); 0 is n_batch")
    n_ctx: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="tokens of all sequences together (-c); default context x batch size"
    )
    n_seq_max: int | None = Field(
        None, ge=1, le=MOST_SEQUENCES, description="sequences at a time (-np); default the batch size"
    )
    kv_unified: bool = Field(False, description="one stream of cells for all sequences (-kvu)")
    swa_full: bool = Field(False, description="a full-size cache for sliding layers (--swa-full)")
    flash_attn: bool = Field(True, description="flash attention on or auto; false is -fa off")
    mla: bool = Field(True, description="false: a GGUF without MLA keys, whose cache holds decompressed heads")
    n_rs_seq: int = Field(
        0, ge=0, le=1024, description="further rows of state per sequence to roll back to (the draft's n_max)"
    )
    cache_type_k_draft: str = Field("f16", description="K cache type of a draft's context (-ctkd)")
    cache_type_v_draft: str = Field("f16", description="V cache type of a draft's context (-ctvd)")
    n_outputs_max: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="rows of logits of a batch; default n_seq_max, as llama-server has them"
    )
    n_gpu_layers: int | None = Field(
        None, ge=0, le=10_000, description="layers on the devices, the output as one (-ngl); default all"
    )
    tensor_split: tuple[float, ...] | None = Field(
        None, description="each device's part of the layers (-ts 3,1); default one device"
    )
    program: Literal["llama-cli", "llama-server"] = Field(
        "llama-cli",
        description="whose defaults: llama-server has 4 slots in one unified cache where n_seq_max is left out",
    )
    version: str = Field(
        NEWEST, description="the build or commit whose rule is followed: 0c1e57098, b11739 or b<number>"
    )

    @field_validator("version")
    @classmethod
    def _known_version(cls, version: str) -> str:
        nearest_version(version)
        return version

    @field_validator("tensor_split", mode="before")
    @classmethod
    def _parts(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value

    @field_validator("tensor_split")
    @classmethod
    def _some_part(cls, parts: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if parts is not None and not (0 < len(parts) <= _MOST_DEVICES and min(parts) >= 0 and 0 < sum(parts) < 2**31):
            raise ValueError(f"one part for each of at most {_MOST_DEVICES} devices, as in 3,1")
        return parts

    @field_validator("cache_type_k_draft", "cache_type_v_draft")
    @classmethod
    def _known_type(cls, name: str) -> str:
        return parse_dtype(name).name

    @property
    def followed_version(self) -> str:
        """The known version whose rule answers."""
        return nearest_version(self.version)[0]

    @property
    def slots(self) -> int | None:
        """Sequences at a time, where the options say so: ``n_seq_max``, or llama-server's 4."""
        server = _SERVER_SLOTS if self.program == "llama-server" else None
        return self.n_seq_max or server

    @property
    def pads_to_longest(self) -> bool:
        """Slots of one size, unless they share one buffer."""
        return not self._launch().kv_unified

    @property
    def context_limit(self) -> int | None:
        """``n_ctx // n_seq_max`` where ``n_ctx`` is given (one sequence where ``n_seq_max`` is not)."""
        return self.context_limit_at(1)

    def context_limit_at(self, batch_size: int) -> int | None:
        """``n_ctx // n_seq_max``; each sequence is one of ``n_seq_max`` where that is not given."""
        return None if self.n_ctx is None else self.n_ctx // (self.n_seq_max or batch_size)

    @property
    def batch_limit(self) -> int | None:
        """The slots: further sequences wait."""
        return self.slots

    def default_kv_dtypes(self, architecture: Architecture) -> tuple[DType, DType]:
        """f16, whatever the model's own format."""
        return FLOAT16, FLOAT16

    @property
    def pipeline_stages(self) -> int:
        """The devices of a split."""
        return len(self.tensor_split or (1,))

    def stages(self, model: Architecture) -> tuple[Stage, ...]:
        """The layers of each device, where the options say so; otherwise the whole file."""
        if not self._places_layers:
            return super().stages(model)
        return tuple(place.stage for place in self._placed(model) if place.device != HOST)

    @property
    def _places_layers(self) -> bool:
        return self.n_gpu_layers is not None or self.tensor_split is not None

    def _placed(self, model: Architecture) -> tuple[Place, ...]:
        return placement(model.num_layers + len(model.mtp_layers), self.n_gpu_layers, self.tensor_split or (1.0,))

    def prepare(self, setup: Setup) -> LlamaCppPlan | PlacedPlan:
        """Compute what one cell and one row of state cost, once.

        Raises:
            NotModelledError: a draft whose layers lie in several places.
        """
        flash, mla = self.flash_attn, self.mla
        own, drafted = served(setup, self.followed_version)
        model = model_cache(own, setup, setup.k_dtype, setup.v_dtype, flash_attn=flash, mla=mla)
        draft = None
        if drafted is not None:
            types = parse_dtype(self.cache_type_k_draft), parse_dtype(self.cache_type_v_draft)
            draft = model_cache(drafted, setup, *types, flash_attn=flash, mla=mla)
        plan = make_plan(replace(model, notes=(*self._notes(setup, model), *model.notes)), self._launch(), draft)
        if not self._places_layers:
            return plan
        if draft is not None:
            reason = "where llama.cpp puts the layers of a draft (-ngld) is not modelled"
            raise NotModelledError(reason, hint="leave n_gpu_layers and tensor_split out")
        return placed_plan(setup.architecture, plan, self._placed(setup.architecture))

    def working_memory(self, setup: Setup, device: Device, context: int, batch_size: int) -> WorkingMemory:
        """The compute buffer, and the context of the device's driver.

        Raises:
            NotModelledError: a draft, layers elsewhere, and what no formula holds for; llama-fit-params knows.
        """
        layers = setup.architecture.num_layers + len(setup.architecture.mtp_layers)
        reason = "of a draft's context" if setup.draft is not None else ""
        if self.n_gpu_layers is not None and self.n_gpu_layers <= layers:
            reason = "with layers in host memory"
        elif len(self.tensor_split or ()) > 1:
            reason = "over several devices"
        if reason:
            raise NotModelledError(f"llama.cpp's compute buffer {reason} is not modelled", hint=FIT_PARAMS)
        launch, work = self._launch(), Derivation(context, batch_size)
        launch.derive(work)
        params = launch.params(context, batch_size)
        on_cuda = device.platform in ("cuda", "rocm")
        graph = Graph(params, self.flash_attn, self.n_outputs_max, self.followed_version == NEWEST, True, on_cuda)
        plan = setup.plan
        assert isinstance(plan, LlamaCppPlan | PlacedPlan)
        return llama_cpp_working_memory(work, plan.model, Widths(setup.architecture), graph, device)

    def _notes(self, setup: Setup, model: ModelCache) -> tuple[str, ...]:
        notes = [nearest_version(self.version)[1]]
        if self.n_rs_seq and not model.rolls_back:
            notes.append(f"llama.cpp keeps no rollback states for {setup.architecture.model_type}: n_rs_seq is 0")
        if setup.draft is not None and model.rolls_back and model.state_bytes and not self.n_rs_seq:
            notes.append("an MTP, EAGLE-3 or DFlash draft of llama-server keeps n_max (3) rows more: -E n_rs_seq=3")
        return tuple(note for note in notes if note)

    def _launch(self) -> OwnLaunch:
        unified = self.kv_unified
        if self.program == "llama-server" and self.n_seq_max is None and "kv_unified" not in self.model_fields_set:
            unified = True
        return OwnLaunch(self.n_batch, self.n_ubatch, self.n_ctx, self.slots, unified, self.swa_full, self.n_rs_seq)
