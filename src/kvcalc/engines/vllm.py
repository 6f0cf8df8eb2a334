"""vLLM: paged blocks, drawn by groups of layers from one pool.

vLLM gives every layer a page (its K and V of ``block_size`` tokens), collects the layers that need the same blocks
into groups of one size, and lets all groups draw from one pool whose block is as large as the widest group. A request
is charged, for each group, the most blocks that it may hold at once: for sliding layers the window and the tokens of
the steps under way, so the figure depends on ``max_num_batched_tokens`` and on nothing that the model says.

Source: vllm 0.33.0 v1/core/kv_cache_planning.py and v1/kv_cache_interface.py; older versions as :data:`_VERSIONS` says.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, assert_never

from pydantic import Field, field_validator

from kvcalc.architecture import (
    Architecture,
    Chunked,
    Compressed,
    Cross,
    Full,
    Latent,
    Layer,
    LayerKind,
    NoCache,
    Parallel,
    Shared,
    Sliding,
    State,
    kind_label,
    stage_bounds,
    window_of,
)
from kvcalc.derivation import Quantity
from kvcalc.dtypes import DType, parse_dtype
from kvcalc.engines.base import KVCache, LayerBytes, Server, WorkingMemory, refuse_latent_formats
from kvcalc.engines.options import EngineOptions
from kvcalc.engines.vllm_memory import Step, vllm_working_memory
from kvcalc.errors import UnsupportedError, quote
from kvcalc.units import MAX_BYTES, MAX_TOKENS, GiB, ceil_div, largest, round_up
from kvcalc.widths import Widths

if TYPE_CHECKING:
    from kvcalc.device import Device
    from kvcalc.setup import Setup

#: What one spec describes: a parallel layer has two.
_SingleKind = Full | Sliding | Chunked | Latent | State | Shared | Cross | Compressed | NoCache

_KV_DTYPES = frozenset(
    {
        "float32",
        "float16",
        "bfloat16",
        "fp8_e4m3",
        "fp8_e5m2",
        "fp8_per_token_head",
        "int8_per_token_head",
        "int4_per_token_head",
        "nvfp4",
        "fp8_ds_mla",
        "nvfp4_ds_mla",
    }
)

# vllm 0.33.0 config/vllm.py:2236: a config with attention_chunk_size turns the hybrid KV cache manager off.
_CHUNKED_MODELS = frozenset({"llama4"})

# vllm 0.33.0 models/commandr.py:244 passes sliding_window + 1, so that 4096 becomes 4097.
_WINDOW_PLUS_ONE_MODELS = frozenset({"cohere2"})

# The attention block of a model with state layers grows in whole kernel blocks, beside latents in steps of 128 tokens
# (vllm 0.33.0 platforms/interface.py:1068, :1088).
_KERNEL_BLOCK = 16
_LATENT_ALIGNMENT = 128

# "estimated maximum model length" is a bisection up to max_model_len; the recorded figures use this one.
_LONGEST_ESTIMATE = 2**24


@dataclass(frozen=True, slots=True)
class _Rules:
    """What the versions from ``first`` to ``last`` do differently.

    Attributes:
        counts_every_batch: a sliding layer reserves for all batches under way, not for one (PR #47728).
        tokens_by_group: the logged token count is num_blocks // groups * block_size, not concurrency * length.
        padding_percent: the largest bucket sets the group size when it is below so many percent of the smallest
            (None: the smallest always does).
        checks_layers: the start-up check adds up the layers' own needs, without padding layers and null block.
        pads_pages: a page that does not divide the largest is padded to it (before: not served).
        utilization_percent: the default of gpu_memory_utilization.
    """

    first: tuple[int, int, int]
    last: tuple[int, int, int]
    counts_every_batch: bool
    tokens_by_group: bool
    padding_percent: int | None
    checks_layers: bool
    pads_pages: bool
    utilization_percent: int


# Read in 0.11.0, 0.14.0, 0.17.1, 0.20.2, 0.25.1, 0.26.0, 0.27.1, 0.28.0 and 0.33.0. A version between two that agree
# follows them; one between two that differ is refused. The one exception: the padding threshold came with PR #29303 of
# 2025-11-24, after 0.11.2 and before 0.12.0.
_VERSIONS = (
    _Rules((0, 11, 0), (0, 11, 2), False, True, None, True, False, 90),
    _Rules((0, 12, 0), (0, 17, 1), False, True, 125, True, False, 90),
    _Rules((0, 20, 2), (0, 25, 1), False, False, 150, False, True, 92),
    _Rules((0, 26, 0), (0, 33, 0), True, False, 150, False, True, 92),
)
_VERSION = re.compile(r"(\d{1,3})\.(\d{1,3})(?:\.(\d{1,3}))?", re.ASCII)


def _rules_of(version: str) -> _Rules:
    match = _VERSION.fullmatch(version)
    if match:
        parsed = (int(match[1]), int(match[2]), int(match[3] or 0))
        for rules in _VERSIONS:
            if rules.first <= parsed <= rules.last:
                return rules
    spans = (f"{'.'.join(map(str, each.first))} to {'.'.join(map(str, each.last))}" for each in _VERSIONS)
    raise UnsupportedError(
        f"nobody has read how vllm {quote(version)} plans its cache", hint=f"known versions: {', '.join(spans)}"
    )


@dataclass(frozen=True, slots=True)
class _Spec:
    """What the cache of one layer is to vLLM (its KVCacheSpec); layers with equal specs may share a group.

    Attributes:
        form: ``full``, ``latent``, ``sliding``, ``chunked``, ``cross`` or ``state``.
        block_size: tokens in one page.
        heads: KV heads on one device.
        key_bytes, value_bytes: one token's K and V of one head, scales included.
        window: tokens of the window or chunk.
        state_bytes: bytes of one state.
        padded_page: the page's bytes where padding sets them.
    """

    form: str
    block_size: int
    heads: int = 1
    key_bytes: int = 0
    value_bytes: int = 0
    window: int = 0
    state_bytes: int = 0
    padded_page: int | None = None

    @property
    def token_bytes(self) -> int:
        return self.heads * (self.key_bytes + self.value_bytes)

    @property
    def own_page(self) -> int:
        """Bytes of one block of one such layer, without padding."""
        return self.state_bytes if self.form == "state" else self.block_size * self.token_bytes

    @property
    def page(self) -> int:
        """Bytes of one block of one such layer."""
        return self.padded_page or self.own_page


@dataclass(frozen=True, slots=True)
class _Blocks:
    """How many blocks one group takes from the pool for one sequence.

    Attributes:
        form: as in the spec.
        block_size: tokens in one block.
        window: tokens of the window or chunk.
        most_tokens: tokens beyond which the reservation no longer grows.
        fixed: blocks that do not depend on the context (states, encoder tokens, a window's first partial block).
        encoder_blocks: of those, blocks that the encoder's tokens of this workload fill (cross-attention).
    """

    form: str
    block_size: int
    window: int
    most_tokens: int
    fixed: int
    encoder_blocks: int

    def reserved(self, context: int) -> int:
        """The most blocks that a sequence of up to ``context`` tokens may hold at once.

        A window of 6 tokens may start inside a block of 4, [XXCD] [EFGH] [XXXX]: that is the one more block.
        """
        return -(-min(context, self.most_tokens) // self.block_size) + self.fixed

    def resident(self, tokens: int, computed: int, in_flight: int) -> int:
        """Blocks held in the step that brings a sequence to ``tokens``, with ``computed`` before it.

        Whole blocks before the window of the oldest token still under way are given back first.
        """
        settled = max(0, computed - in_flight)
        match self.form:
            case "state":
                return self.fixed
            case "cross":
                return self.encoder_blocks
            case "sliding":
                freed = max(0, settled - self.window + 1) // self.block_size
            case "chunked":
                freed = settled // self.window * self.window // self.block_size
            case _:
                freed = 0
        return ceil_div(tokens, self.block_size) - freed


@dataclass(frozen=True, slots=True)
class _Owned:
    """One cache of the model: where it stands, which kind of layer has it, and its spec."""

    position: int
    kind: int
    spec: _Spec


@dataclass(frozen=True, slots=True)
class VllmPlan:
    """The groups of a model, and what a block costs on the device that holds the most.

    Attributes:
        engine: the options.
        rules: what the version does.
        kinds: the layer kinds, in order, and how many layers of each this device has.
        specs: the distinct specs as grouped, with the number of this device's layers in the widest group.
        groups: how many groups follow each rule.
        group_size: layers of the largest group, over all devices.
        padding_layers: places in the groups that no layer fills.
        bytes_per_block: bytes of one block of the pool on this device.
        terms: (groups, block size, most tokens) of the groups whose blocks grow with the context.
        fixed_blocks: blocks of one request that do not.
        shares: (kind, rule) -> bytes of one block of these layers, without padding.
        layer_needs: rule and page of each layer by itself, for the start-up check of old versions.
        page_unit: the page that all groups share, or None where the layers of one group differ.
        block_note: how the attention block of a model with states came about: (states' bytes, a token's bytes, the
            unit in which it grows, block).
        notes: what a reader must know.
    """

    engine: Vllm
    rules: _Rules
    kinds: tuple[tuple[LayerKind, int], ...]
    specs: tuple[tuple[_Spec, int], ...]
    groups: tuple[tuple[_Blocks, int], ...]
    group_size: int
    padding_layers: int
    bytes_per_block: int
    terms: tuple[tuple[int, int, int], ...]
    fixed_blocks: int
    shares: tuple[tuple[int, _Blocks, int], ...]
    layer_needs: tuple[tuple[_Blocks, int], ...]
    page_unit: int | None
    block_note: tuple[int, int, int, int] | None
    notes: tuple[str, ...]

    @property
    def num_groups(self) -> int:
        """Groups of the whole model."""
        return sum(count for _, count in self.groups)

    def blocks_per_request(self, context: int) -> int:
        """Blocks that one sequence of up to ``context`` tokens may need."""
        blocks = self.fixed_blocks
        for groups, block_size, most_tokens in self.terms:
            blocks += groups * -(-(context if context < most_tokens else most_tokens) // block_size)
        return blocks

    def kv_bytes(self, context: int, batch_size: int) -> int:
        """Batch size x vLLM's "KV cache is needed" figure."""
        return batch_size * self.bytes_per_block * self.blocks_per_request(context)

    def resident_bytes(self, tokens: int, computed: int, in_flight: int) -> int:
        """Bytes that one sequence holds in the step that brings it to ``tokens``."""
        blocks = sum(count * rule.resident(tokens, computed, in_flight) for rule, count in self.groups)
        return self.bytes_per_block * blocks

    def layer_bytes(self, context: int) -> int:
        """The layers' own needs added up: the figure that the start-up check of old versions compares."""
        return sum(page * rule.reserved(context) for rule, page in self.layer_needs)

    def allocate(self, context: int, batch_size: int) -> KVCache:
        """The reservation; padding holds padding layers, padded pages and groups narrower than a block."""
        tokens: Counter[int] = Counter()
        sizes: Counter[int] = Counter()
        for kind, rule, page_bytes in self.shares:
            blocks = batch_size * rule.reserved(context)
            sizes[kind] += blocks * page_bytes
            if rule.form != "state":
                tokens[kind] = blocks * rule.block_size
        rows = tuple(
            LayerBytes(kind.kind, kind_label(kind), count, window_of(kind), tokens[index], sizes[index])
            for index, (kind, count) in enumerate(self.kinds)
        )
        total = self.kv_bytes(context, batch_size)
        in_flight = 1 if self.engine.async_scheduling else 0
        steady = batch_size * self.resident_bytes(context, context - 1, in_flight)
        padding = total - sum(row.bytes for row in rows)
        return KVCache(total, steady, rows, padding, self._why(), self.notes)

    def _why(self) -> str:
        if not self.groups:
            return "no layer keeps a cache"
        if self.num_groups == 1:
            return f"one group of {self.group_size}"
        padding = f", {self.padding_layers} padding layers" if self.padding_layers else ""
        return f"groups of {self.group_size}" + (padding if self.padding_layers != 1 else ", 1 padding layer")

    def required_kv_memory(self, context: int, batch_size: int) -> int:
        """The requests' blocks and the null block, which the pool keeps back."""
        blocks = batch_size * self.blocks_per_request(context) + 1
        required = blocks * self.bytes_per_block
        override = self.engine.num_gpu_blocks_override
        # num_gpu_blocks_override fixes the pool: no budget serves what does not fit into it.
        return required if override is None or blocks <= override else MAX_BYTES + required

    def report(self, context: int, batch_size: int, kv_memory: int) -> dict[str, Any]:
        """What vLLM says when it starts with that much KV memory, and its start-up check."""
        blocks = self.blocks_per_request(context)
        if not blocks or not self.bytes_per_block:  # a model without a cache has one block, the null block
            return {
                "num_gpu_blocks": 1,
                "bytes_per_block": self.bytes_per_block,
                "blocks_per_request": 0,
                "max_request_bytes": 0,
                "max_concurrency": None,
                "gpu_kv_cache_size_tokens": None,
                "fits": True,
                "estimated_max_model_len": None,
            }
        override = self.engine.num_gpu_blocks_override
        num_blocks, concurrency, logged_tokens = self.logged(context, kv_memory)
        pool = kv_memory if override is None else override * self.bytes_per_block
        return {
            "num_gpu_blocks": num_blocks,
            "bytes_per_block": self.bytes_per_block,
            "blocks_per_request": blocks,
            "max_request_bytes": self.bytes_per_block * blocks,
            "max_concurrency": concurrency,
            "gpu_kv_cache_size_tokens": logged_tokens,
            "fits": self.fits(context, batch_size, pool),
            "estimated_max_model_len": self._estimated_max_model_len(kv_memory),
        }

    def logged(self, context: int, kv_memory: int) -> tuple[int, float, int]:
        """What vLLM logs of a pool: its blocks, the concurrency at ``context`` tokens, and the size in tokens."""
        override = self.engine.num_gpu_blocks_override
        num_blocks = kv_memory // self.bytes_per_block if override is None else override
        # A float, as vLLM's own: the logged token count is this float times the length, cut to an integer.
        concurrency = num_blocks / self.blocks_per_request(context)
        if not self.rules.tokens_by_group:
            return num_blocks, concurrency, int(concurrency * context)
        smallest = min(rule.block_size for rule, _ in self.groups)
        return num_blocks, concurrency, num_blocks // self.num_groups * smallest

    def fits(self, context: int, batch_size: int, kv_memory: int) -> bool:
        """vLLM's start-up check."""
        if self.rules.checks_layers:
            return batch_size * self.layer_bytes(context) <= kv_memory
        return self.kv_bytes(context, batch_size) + self.bytes_per_block <= kv_memory  # beside the null block

    def _estimated_max_model_len(self, kv_memory: int) -> int:
        """The longest context that fits, 0 if none does: vLLM's bisection."""
        return largest(lambda context: self.fits(context, 1, kv_memory), _LONGEST_ESTIMATE)

    def explain(self, context: int, batch_size: int) -> tuple[Quantity, ...]:
        """From the bytes of a page through groups and blocks to the bytes."""
        steps = [
            Quantity("T", "context (max_model_len)", str(context), context, "tokens"),
            Quantity("B", "batch size", str(batch_size), batch_size, "sequences"),
            *self._page_steps(),
            *self._request_steps(context),
        ]
        total = self.kv_bytes(context, batch_size)
        steps.append(Quantity("kv_bytes", "KV cache", "B * bytes_per_block * blocks_per_request", total, "bytes"))
        return tuple(steps)

    def _page_steps(self) -> list[Quantity]:
        source = "vllm 0.33.0 v1/kv_cache_interface.py:586"
        steps = []
        if self.block_note:
            states, token_bytes, unit, block_size = self.block_note
            formula = f"round_up({unit} * ceil_div({states}, {unit} * {token_bytes}), {_KERNEL_BLOCK})"
            meaning = "attention block, raised until its page covers a state"
            steps.append(
                Quantity("attention_block", meaning, formula, block_size, "tokens", "vllm platforms/interface.py")
            )
        names, widest = [], []
        for number, (spec, layers) in enumerate(self.specs, start=1):
            name = f"page_{number}"
            formula, meaning = str(spec.own_page), "one state"
            if spec.form != "state":
                formula = f"{spec.block_size} * {spec.heads} * ({spec.key_bytes} + {spec.value_bytes})"
                window = f" ({spec.window})" if spec.window else ""
                label = f"{spec.form}{window}"
                meaning = f"one block of a {label} layer: tokens x KV heads x (K + V bytes of a head)"
            steps.append(Quantity(name, meaning, formula, spec.own_page, "bytes", source))
            names.append(name)
            widest += [f"{layers} * {name}"] if layers else []
        planning = "vllm 0.33.0 v1/core/kv_cache_planning.py"
        if self.page_unit is not None and len(names) > 1:
            page, meaning = self.page_unit, "page of every layer: the largest"
            if self.block_note:
                names.append(f"attention_block * {self.block_note[1]}")
            steps.append(Quantity("page", meaning, f"max({', '.join(names)})", page, "bytes", f"{planning}:346"))
            widest = [f"{self.bytes_per_block // page} * page"]
        where = f" on one of {self.engine.pipeline_stages} stages" if self.engine.pipeline_stages > 1 else ""
        meaning = f"one block of the pool: layers of the widest group{where} ({self._why()})"
        block_bytes = " + ".join(widest) or "0"
        steps.append(
            Quantity("bytes_per_block", meaning, block_bytes, self.bytes_per_block, "bytes", f"{planning}:574")
        )
        return steps

    def _request_steps(self, context: int) -> list[Quantity]:
        engine, source = self.engine, "vllm 0.33.0 v1/kv_cache_interface.py"
        steps, names = [], []
        if any(rule.form in ("sliding", "chunked") for rule, _ in self.groups):
            batches, tokens = engine.batches_in_flight, engine.tokens_in_flight
            formula = f"{batches} * {engine.max_num_batched_tokens}"
            meaning = "tokens of the steps under way: batches x max_num_batched_tokens"
            steps.append(Quantity("F", meaning, formula, tokens, "tokens", "vllm 0.33.0 config/vllm.py:588"))
        for number, (rule, count) in enumerate(self.groups, start=1):
            size = rule.block_size
            match rule.form:
                case "sliding":
                    each, what = f"(ceil_div(min({rule.window} - 1 + F, T), {size}) + 1)", f"sliding ({rule.window})"
                case "chunked":
                    each, what = f"ceil_div(min({rule.window} + F, T), {size})", f"chunked ({rule.window})"
                case "state" | "cross":
                    each, what = str(rule.fixed), rule.form
                case _:
                    each, what = f"ceil_div(T, {size})", rule.form
            groups = "1 group" if count == 1 else f"{count} groups"
            name, value = f"blocks_{number}", count * rule.reserved(context)
            steps.append(Quantity(name, f"{groups} of {what} layers", f"{count} * {each}", value, "blocks", source))
            names.append(name)
        blocks = self.blocks_per_request(context)
        total = " + ".join(names) or "0"
        steps.append(Quantity("blocks_per_request", "blocks that one sequence may need", total, blocks, "blocks"))
        return steps


class Vllm(EngineOptions):
    """vLLM's V1 engine with its hybrid KV cache manager.

    ``bytes`` is vLLM's own "KV cache is needed" figure for each sequence: what it must be able to give a request of
    ``context`` tokens at the worst step of its prefill. The pool itself is all of the memory that vLLM is given.
    """

    name: ClassVar[str] = "vllm"
    summary: ClassVar[str] = "blocks for a request at its worst moment: windows plus the tokens of the steps under way"
    follows: ClassVar[str] = "0.33.0"
    formula: ClassVar[str] = (
        "bytes = B x bytes_per_block x blocks_per_request\n"
        "page: block_size x KV heads x (K bytes + V bytes); mixed pages grow or are padded to the largest\n"
        "bytes_per_block = layers of the widest group x page; equal layers form groups of one size\n"
        "blocks of a group: full and latent ceil(T / block_size); sliding ceil(min(W - 1 + F, T) / block_size) + 1;\n"
        "  chunked ceil(min(C + F, T) / block_size); state 1 + speculative tokens (+ 1 with prefix caching);\n"
        "  cross-attention ceil(max_num_batched_tokens / block_size)\n"
        "F = (pipeline stages + 1 if async_scheduling) x max_num_batched_tokens; before 0.26.0 one batch"
    )
    sources: ClassVar[tuple[str, ...]] = (
        "vllm 0.33.0 v1/core/kv_cache_planning.py, v1/kv_cache_interface.py, v1/core/single_type_kv_cache_manager.py",
        "vllm 0.11.0, 0.14.0, 0.17.1, 0.20.2, 0.25.1, 0.26.0, 0.27.1, 0.28.0 for what changed",
    )
    not_modelled: ClassVar[tuple[str, ...]] = (
        "activations, CUDA graphs and what else vLLM profiles: the KV memory is an input",
        "indexer keys, compressed layers (DeepSeek V4) and windowed latents: refused",
        "backends that raise the block size at start, or pack pages of several sizes into one block",
        "decode and prefill context parallelism; windows widened by multi-module speculation",
        "Mamba-2 groups that tensor parallelism does not divide, which vLLM replicates",
        "blocks in steps of 64 tokens, for gated delta nets with prefix caching and FlashInfer's prefill (Hopper)",
        "0.20.2 to 0.25.1: only the lines that differ were read",
    )
    evidence: ClassVar[str] = (
        "checked against every recorded row of vLLM's own planner (0.33.0, 0.14.0), of its KV cache manager driven "
        "with one request, against the planner of 0.33.0 on random models of every kind of layer, and against figures "
        "that servers printed"
    )
    follows_cache_of: ClassVar[frozenset[str]] = frozenset({"modelopt", "compressed-tensors"})
    server: ClassVar[Server | None] = Server(
        ("vllm", "serve", "{model}"),
        {
            "context": "--max-model-len",
            "tensor_parallel_size": "--tensor-parallel-size",
            "k_dtype": "--kv-cache-dtype",
            "utilization": "--gpu-memory-utilization",
        },
        option="--{}",
        no_flags=frozenset({"num_speculative_tokens"}),
    )
    frugal_options: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "disable_hybrid_kv_cache_manager": (False,),
        "async_scheduling": (False,),
        "max_num_batched_tokens": (8192, 4096, 2048, 1024),
    }

    version: str = Field("0.33.0", description="the vLLM version whose rules to follow")
    block_size: int = Field(16, ge=1, le=MAX_TOKENS, description="tokens in one block")
    max_num_batched_tokens: int = Field(8192, ge=1, le=MAX_TOKENS, description="tokens that one step may process")
    max_num_seqs: int = Field(256, ge=1, le=MAX_TOKENS, description="sequences that run at a time; the sampler's rows")
    async_scheduling: bool = Field(True, description="the next step is scheduled while one runs")
    disable_hybrid_kv_cache_manager: bool = Field(
        False, description="sliding and chunked layers take blocks for the whole context"
    )
    pipeline_parallel_size: int = Field(
        1, ge=1, le=10_000, description="pipeline stages; figures are for the one that holds the most"
    )
    num_gpu_blocks_override: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="blocks of the pool, whatever the memory"
    )
    enable_prefix_caching: bool = Field(False, description="for state layers: one more state a sequence (align mode)")
    num_speculative_tokens: int = Field(
        0, ge=0, le=1024, description="tokens speculated in one step: states are kept for each"
    )
    mamba_cache_dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="format of states; auto is the model's"
    )
    mamba_ssm_cache_dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="format of a state's recurrent part; auto: what the model asks for, else mamba_cache_dtype"
    )

    enforce_eager: bool = Field(False, description="no CUDA graphs")

    @field_validator("version")
    @classmethod
    def _known_version(cls, version: str) -> str:
        _rules_of(version)  # raises UnsupportedError, which pydantic lets through
        return version

    @property
    def utilization_percent(self) -> int:
        """The default of gpu_memory_utilization, in percent: 90 up to 0.17.1, then 92."""
        return _rules_of(self.version).utilization_percent

    @classmethod
    def device_options(cls, memory_bytes: int, device: str) -> dict[str, Any]:
        """Tokens and sequences of a step as the API server sets them: 2048 and 256 below 70 GiB or on an A100, 8192 and
        1024 beyond it, 16384 and 1024 from 160 GiB.

        Source: vllm 0.33.0 engine/arg_utils.py:2946.

        >>> from kvcalc.units import GiB
        >>> [Vllm.device_options(size * GiB, "")["max_num_batched_tokens"] for size in (24, 80, 180)]
        [2048, 8192, 16384]
        """
        if memory_bytes >= 160 * GiB:
            return {"max_num_batched_tokens": 16384, "max_num_seqs": 1024}
        if memory_bytes < 70 * GiB or "a100" in device.casefold():
            return {"max_num_batched_tokens": 2048, "max_num_seqs": 256}
        return {"max_num_batched_tokens": 8192, "max_num_seqs": 1024}

    def working_memory(self, setup: Setup, device: Device, context: int, batch_size: int) -> WorkingMemory:
        """Activations, non-torch memory and CUDA graphs, as the profile run measures them."""
        major, minor = (int(part) for part in self.version.split(".")[:2])
        step = Step(
            tokens=self.max_num_batched_tokens,
            sequences=self.max_num_seqs,
            element_bytes=parse_dtype(setup.architecture.dtype).block_bytes,
            tensor_parallel_size=setup.tensor_parallel_size,
            pipeline_stages=self.pipeline_stages,
            takes_graphs=not self.enforce_eager,
            experts_in_place=setup.weights.dtype == "mxfp4",
        )
        return vllm_working_memory((major, minor), Widths(setup.architecture), step, device)

    @property
    def pipeline_stages(self) -> int:
        """Devices in a row, each with a part of the layers."""
        return self.pipeline_parallel_size

    @property
    def batches_in_flight(self) -> int:
        """Batches whose tokens a window must keep (max_concurrent_batches; one before 0.26.0)."""
        if not _rules_of(self.version).counts_every_batch:
            return 1
        return self.pipeline_parallel_size + (1 if self.async_scheduling else 0)

    @property
    def tokens_in_flight(self) -> int:
        """The F of the formulas: tokens that may be under way beside a window."""
        return self.batches_in_flight * self.max_num_batched_tokens

    def prepare(self, setup: Setup) -> VllmPlan:
        """Give every layer its spec, group them, and find the device that holds the most."""
        architecture = setup.served
        _check_dtypes(setup)
        if self.pipeline_parallel_size > architecture.num_layers:
            raise UnsupportedError(
                f"{architecture.name} has {architecture.num_layers} layers, "
                f"fewer than pipeline_parallel_size={self.pipeline_parallel_size} stages"
            )
        rules, notes = _rules_of(self.version), _setup_notes(self, architecture, setup)
        owned, block_note = _with_attention_block(self, _owned_caches(self, architecture, setup))
        alone = [each.spec for each in owned]
        hybrid_off = self.disable_hybrid_kv_cache_manager or architecture.model_type in _CHUNKED_MODELS
        specs = _promoted(alone) if hybrid_off else alone
        if specs is None:
            raise UnsupportedError(
                f"vllm cannot serve {architecture.name} without its hybrid KV cache manager: "
                "its layers do not become one type",
                hint="leave disable_hybrid_kv_cache_manager out",
            )
        if specs != alone:
            notes.append(_hybrid_off_note(self))
        elif any(spec.form == "chunked" for spec in specs):
            notes.append(
                "vllm plans chunked layers like this only with VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE=1; "
                "without it, as with disable_hybrid_kv_cache_manager, they take blocks for the whole context"
            )
        grouped, groups = _grouped(architecture.name, specs, rules)
        if [spec.form for spec in grouped] != [spec.form for spec in specs]:
            notes.append(
                "vllm takes blocks for the whole context in every local layer too: their pages and the latent ones "
                "cannot be of one size"
            )
        if block_note:
            state = next(spec for spec in grouped if spec.form == "state" and spec.state_bytes == block_note[0])
            padding = state.page - state.state_bytes
            notes.append(
                f"attention blocks of {block_note[-1]:,} tokens; a state's page is padded by "
                f"{padding:,} bytes ({padding / state.state_bytes:.2%})"
            )
        return self._plan(
            architecture,
            setup,
            owned=owned,
            grouped=grouped,
            groups=groups,
            block_note=block_note,
            notes=tuple(notes),
        )

    def _plan(
        self,
        architecture: Architecture,
        setup: Setup,
        *,
        owned: list[_Owned],
        grouped: list[_Spec],
        groups: list[list[int]],
        block_note: tuple[int, int, int, int] | None,
        notes: tuple[str, ...],
    ) -> VllmPlan:
        # Every stage has the model's groups with its own layers in them; the stage with the dearest block sets the
        # number of blocks of all.
        stages = stage_bounds(architecture.num_layers, self.pipeline_parallel_size)
        costs = [[sum(grouped[i].page for i in group if _in(owned[i], stage)) for group in groups] for stage in stages]
        block_bytes = [max(of_stage, default=0) for of_stage in costs]
        bytes_per_block = max(block_bytes)
        if bytes_per_block and not all(block_bytes):
            raise UnsupportedError(
                f"vllm cannot start {architecture.name} in {len(stages)} pipeline stages: one of them keeps no cache",
                hint="use a smaller pipeline_parallel_size",
            )
        dearest = block_bytes.index(bytes_per_block)
        stage = stages[dearest]
        widest = groups[costs[dearest].index(bytes_per_block)] if groups else []
        in_widest = Counter(grouped[i] for i in widest if _in(owned[i], stage))
        rules = {spec: self._blocks(spec, setup) for spec in dict.fromkeys([*grouped, *(o.spec for o in owned)])}
        counted = Counter(rules[grouped[group[0]]] for group in groups)
        shares: Counter[tuple[int, _Blocks]] = Counter()
        needs: Counter[_Blocks] = Counter()
        for each, spec in zip(owned, grouped, strict=True):
            if _in(each, stage):
                shares[each.kind, rules[spec]] += spec.own_page
                needs[rules[each.spec]] += each.spec.page
        group_size = max((len(group) for group in groups), default=0)
        pages = {spec.page for spec in grouped}
        return VllmPlan(
            engine=self,
            rules=_rules_of(self.version),
            kinds=_kinds_of(architecture, stage),
            specs=tuple((spec, in_widest[spec]) for spec in dict.fromkeys(grouped)),
            groups=tuple(counted.items()),
            group_size=group_size,
            padding_layers=group_size * len(groups) - len(owned),
            bytes_per_block=bytes_per_block,
            terms=_terms(counted),
            fixed_blocks=sum(count * rule.fixed for rule, count in counted.items()),
            shares=tuple((kind, rule, size) for (kind, rule), size in shares.items()),
            layer_needs=tuple(needs.items()),
            page_unit=pages.pop() if len(pages) == 1 else None,
            block_note=block_note,
            notes=notes,
        )

    def _blocks(self, spec: _Spec, setup: Setup) -> _Blocks:
        most_tokens, fixed = MAX_TOKENS, 0  # no context is longer
        match spec.form:
            case "sliding":
                most_tokens, fixed = spec.window - 1 + self.tokens_in_flight, 1
            case "chunked":
                most_tokens = spec.window + self.tokens_in_flight
            case "cross":
                if setup.encoder_tokens > self.max_num_batched_tokens:
                    raise UnsupportedError(
                        f"vllm takes no encoder input of {setup.encoder_tokens:,} tokens in steps of "
                        f"{self.max_num_batched_tokens:,}",
                        hint=f"-E max_num_batched_tokens={setup.encoder_tokens}",
                    )
                # Planned for the longest input of an encoder, which is as long as a step (config/scheduler.py:306).
                most_tokens, fixed = 0, ceil_div(self.max_num_batched_tokens, spec.block_size)
            case "state":
                most_tokens, fixed = 0, 1 + self.num_speculative_tokens + (1 if self.enable_prefix_caching else 0)
        encoder_blocks = ceil_div(setup.encoder_tokens, spec.block_size)
        return _Blocks(spec.form, spec.block_size, spec.window, most_tokens, fixed, encoder_blocks)


def _in(owned: _Owned, stage: tuple[int, int]) -> bool:
    return stage[0] <= owned.position < stage[1]


def _terms(groups: Counter[_Blocks]) -> tuple[tuple[int, int, int], ...]:
    growing: Counter[tuple[int, int]] = Counter()
    for rule, count in groups.items():
        if rule.most_tokens:
            growing[rule.block_size, rule.most_tokens] += count
    return tuple((count, block_size, most_tokens) for (block_size, most_tokens), count in growing.items())


def _kinds_of(architecture: Architecture, stage: tuple[int, int]) -> tuple[tuple[LayerKind, int], ...]:
    """The model's layer kinds, with the number of layers of each in one stage."""
    counts: Counter[LayerKind] = Counter()
    for index in architecture.order[stage[0] : stage[1]]:
        layer = architecture.layers[index]
        counts[layer.cache] += 1
        if layer.cross is not None:
            counts[layer.cross] += 1
    return tuple((kind, counts[kind]) for kind, _ in architecture.caches)


def _check_dtypes(setup: Setup) -> None:
    if setup.k_dtype != setup.v_dtype:
        raise UnsupportedError(
            f"vllm has one format for K and V, not {setup.k_dtype.name}/{setup.v_dtype.name}",
            hint="name one format, or use llama.cpp for a pair",
        )
    if setup.k_dtype.name not in _KV_DTYPES:
        raise UnsupportedError(
            f"vllm has no KV cache in {setup.k_dtype.name}", hint=f"it has {', '.join(sorted(_KV_DTYPES))}"
        )


def _setup_notes(engine: Vllm, architecture: Architecture, setup: Setup) -> list[str]:
    notes, tp = [], setup.tensor_parallel_size
    kinds = [kind.attention if isinstance(kind, Parallel) else kind for kind, _ in architecture.caches]
    heads = [kind.num_kv_heads for kind in kinds if isinstance(kind, Full | Sliding | Chunked | Cross)]
    if heads and tp > min(heads):
        notes.append(f"{min(heads)} KV heads on {tp} devices: they are replicated, not divided")
    if tp > 1 and any(isinstance(kind, Latent) for kind in kinds):
        notes.append("every device keeps the whole latent: tensor parallelism does not divide it")
    if architecture.model_type in _WINDOW_PLUS_ONE_MODELS and any(isinstance(kind, Sliding) for kind in kinds):
        notes.append("vllm gives this model a window of one token more")
    if any(isinstance(kind, Cross) for kind in kinds):
        notes.append(
            f"cross-attention is planned for {engine.max_num_batched_tokens:,} encoder tokens "
            f"(max_num_batched_tokens); while decoding it holds {setup.encoder_tokens:,} (encoder_tokens)"
        )
    return notes


def _hybrid_off_note(engine: Vllm) -> str:
    reason = "its hybrid KV cache manager is disabled"
    if not engine.disable_hybrid_kv_cache_manager:
        reason = "it turns its hybrid KV cache manager off for chunked attention"
    return f"vllm takes blocks for the whole context in every local layer too: {reason}"


def _owned_caches(engine: Vllm, architecture: Architecture, setup: Setup) -> list[_Owned]:
    """The caches of the model, layer by layer; layers that keep none own none."""
    kind_index = {kind: index for index, (kind, _) in enumerate(architecture.caches)}
    widened = 1 if architecture.model_type in _WINDOW_PLUS_ONE_MODELS else 0
    specs = [
        [(kind_index[kind], spec) for kind, spec in _layer_specs(engine, architecture.name, layer, setup, widened)]
        for layer in architecture.layers
    ]
    return [
        _Owned(position, kind, spec) for position, index in enumerate(architecture.order) for kind, spec in specs[index]
    ]


def _layer_specs(
    engine: Vllm, model: str, layer: Layer, setup: Setup, widened: int
) -> Iterable[tuple[LayerKind, _Spec]]:
    kept = layer.cache
    kinds: tuple[_SingleKind, ...] = (kept.attention, kept.state) if isinstance(kept, Parallel) else (kept,)
    for kind in kinds:
        spec = _spec(engine, model, kind, setup, widened)
        if spec is not None:
            yield layer.cache, spec
    if layer.cross is not None:
        spec = _spec(engine, model, layer.cross, setup, widened)
        assert spec is not None
        yield layer.cross, spec


def _spec(engine: Vllm, model: str, kind: _SingleKind, setup: Setup, widened: int) -> _Spec | None:
    dtype, tp = setup.k_dtype, setup.tensor_parallel_size
    match kind:
        case Shared() | NoCache():
            return None
        case Full() | Sliding() | Chunked() | Cross():
            if not isinstance(kind, Cross) and kind.extra_state_bytes:
                raise UnsupportedError(f"nobody knows how vllm keeps the fixed state of {model}'s attention layers")
            if isinstance(kind, Full) and kind.indexer_dim:
                raise _no_indexer(model)
            refuse_latent_formats(kind, dtype)
            # Divided, at least one on each device: 10 heads on 4 devices are 2 each.
            heads = max(1, kind.num_kv_heads // tp)
            if dtype.name == "nvfp4" and kind.head_dim != kind.v_head_dim:
                raise UnsupportedError(
                    f"vllm has no nvfp4 cache for {model}, whose heads are {kind.head_dim} and {kind.v_head_dim} wide",
                    hint="use fp8 or bfloat16",
                )
            key, value = _head_bytes(dtype, kind.head_dim), _head_bytes(dtype, kind.v_head_dim)
            window = kind.window + widened if isinstance(kind, Sliding) else window_of(kind) or 0
            return _Spec(kind.kind, engine.block_size, heads, key, value, window)
        case Latent():
            if kind.indexer_dim:
                raise _no_indexer(model)
            if kind.window is not None:
                raise UnsupportedError(f"nobody has read how vllm keeps {model}'s latents with a window")
            if dtype.head_scale_bytes or dtype.name == "nvfp4":
                raise UnsupportedError(
                    f"vllm has no latent (MLA) layers in {dtype.name}", hint="use bfloat16, fp8 or fp8_ds_mla"
                )
            # One latent on every device, whatever the parallelism.
            latent = dtype.latent_token_bytes or dtype.bytes_for(kind.rank + kind.rope_dim)
            return _Spec("latent", engine.block_size, 1, latent)
        case State():
            if kind.recurrent_elements % tp or kind.conv_channels % tp:
                raise UnsupportedError(
                    f"vllm divides {model}'s states by tensor_parallel_size={tp}, which does not divide them",
                    hint="use a power of two",
                )
            # Every speculated token is one more column of the convolution.
            columns = kind.conv_kernel - 1 + engine.num_speculative_tokens
            recurrent, conv = _state_formats(engine, kind, setup)
            size = recurrent * (kind.recurrent_elements // tp) + conv * (kind.conv_channels // tp) * columns
            return _Spec("state", engine.block_size, state_bytes=size)
        case Compressed():
            raise UnsupportedError(f"vllm packs {model}'s compressed layers by a rule of their own, not modelled here")
    assert_never(kind)


def _state_formats(engine: Vllm, state: State, setup: Setup) -> tuple[int, int]:
    """Bytes of one number of a state's recurrent part, and of its convolution.

    "auto" is the model's format for both, unless the model itself asks for another one of the recurrent part.
    Source: vllm 0.33.0 model_executor/layers/mamba/mamba_utils.py:58-147, model_executor/models/config.py:817, :956.
    """
    model = setup.architecture.dtype if setup.architecture.dtype in ("bfloat16", "float16") else "bfloat16"
    conv = engine.mamba_cache_dtype if engine.mamba_cache_dtype != "auto" else model
    asked = conv if state.recurrent_dtype == "model" else state.recurrent_dtype
    recurrent = engine.mamba_ssm_cache_dtype if engine.mamba_ssm_cache_dtype != "auto" else asked
    return parse_dtype(recurrent).block_bytes, parse_dtype(conv).block_bytes


def _no_indexer(model: str) -> UnsupportedError:
    return UnsupportedError(f"how vllm keeps the indexer keys of {model} is not modelled here")


def _head_bytes(dtype: DType, width: int) -> int:
    return dtype.bytes_for(width) + dtype.head_scale_bytes


def _with_attention_block(engine: Vllm, owned: list[_Owned]) -> tuple[list[_Owned], tuple[int, int, int, int] | None]:
    """Raise the attention block until its page covers a state, which is then padded to it.

    Qwen3.5-27B: a state of 3,207,168 bytes over pages of 4,096 bytes a token is 783 tokens, so blocks of 784, or of 832
    where ``block_size`` is 64. A token counts here as if V were as wide as K.

    Source: vllm 0.33.0 platforms/interface.py:1032-1125.
    """
    states = max((each.spec.state_bytes for each in owned if each.spec.form == "state"), default=0)
    attention = [each.spec for each in owned if each.spec.form != "state"]
    if not states or not attention:
        return owned, None
    spec = next((spec for spec in attention if spec.form in ("full", "latent")), attention[0])
    is_latent = spec.form == "latent"
    token_bytes = spec.token_bytes if is_latent else spec.heads * 2 * spec.key_bytes
    unit = max(_LATENT_ALIGNMENT if is_latent else _KERNEL_BLOCK, engine.block_size)
    block_size = round_up(unit * ceil_div(states, unit * token_bytes), _KERNEL_BLOCK)
    page = block_size * token_bytes
    aligned = [
        replace(each, spec=replace(each.spec, padded_page=page))
        if each.spec.form == "state"
        else replace(each, spec=replace(each.spec, block_size=block_size))
        for each in owned
    ]
    return aligned, (states, token_bytes, unit, block_size)


def _is_one_type(specs: list[_Spec]) -> bool:
    """Whether all layers need the same number of token slots, so that one group holds them."""
    first = specs[0]
    full = ("full", "latent")
    if first.form in full:
        return all(spec.form in full and spec.block_size == first.block_size for spec in specs)
    return all(
        (spec.form, spec.window, spec.block_size) == (first.form, first.window, first.block_size) for spec in specs
    )


def _promoted(specs: list[_Spec]) -> list[_Spec] | None:
    """Every local layer as a full one, where there are full ones; None if that leaves more than one type.

    Full layers keep the window that they had, and without latents vLLM merges one window or chunk at the most
    (v1/kv_cache_interface.py:659).
    """
    if not specs or _is_one_type(specs):
        return specs
    lengths = {form: {spec.window for spec in specs if spec.form == form} for form in ("sliding", "chunked")}
    if any(len(each) > 1 for each in lengths.values()) and not any(spec.form == "latent" for spec in specs):
        return None
    if any(spec.form in ("full", "latent") for spec in specs):
        local = ("sliding", "chunked")
        specs = [replace(spec, form="full", window=0) if spec.form in local else spec for spec in specs]
    return specs if _is_one_type(specs) else None


def _grouped(model: str, specs: list[_Spec], rules: _Rules) -> tuple[list[_Spec], list[list[int]]]:
    """The specs with unified pages, and the groups as lists of indices into them."""
    if not specs:
        return [], []
    everything = list(range(len(specs)))
    if _is_one_type(specs):
        return specs, [everything]
    unified = _unified(specs, rules)
    if unified is None:
        # A latent page neither grows nor is padded; beside ordinary windows vLLM then takes all layers as full ones.
        local = any(spec.form == "sliding" for spec in specs) and not any(spec.form == "chunked" for spec in specs)
        fallback = _promoted(specs) if rules.pads_pages and local else None
        if fallback is None:
            pages = ", ".join(f"{page:,}" for page in sorted({spec.page for spec in specs}))
            raise UnsupportedError(f"vllm cannot give {model} pages of one size: {pages} bytes")
        return fallback, [everything]
    buckets: dict[_Spec, list[int]] = {}
    for index, spec in enumerate(unified):
        buckets.setdefault(spec, []).append(index)
    size, largest = min(map(len, buckets.values())), max(map(len, buckets.values()))
    # 18 sliding and 13 full layers: 18 is below 1.5 x 13, so two groups of 18, one with 5 padding layers.
    if rules.padding_percent is not None and 100 * largest < rules.padding_percent * size:
        size = largest
    groups = []
    for layers in buckets.values():
        count = ceil_div(len(layers), size)
        groups += [layers[at::count] for at in range(count)]
    return unified, groups


def _unified(specs: list[_Spec], rules: _Rules) -> list[_Spec] | None:
    """The specs with pages of one size: larger blocks where the page divides the largest, else padding."""
    largest = max(spec.page for spec in specs)
    unified: dict[_Spec, _Spec] = {}
    for spec in dict.fromkeys(specs):
        if spec.page == largest:
            unified[spec] = spec
        elif spec.form == "state":
            unified[spec] = replace(spec, padded_page=largest)
        elif largest % spec.page == 0:
            unified[spec] = replace(spec, block_size=spec.block_size * (largest // spec.page))
        elif spec.form != "latent" and rules.pads_pages:
            unified[spec] = replace(spec, padded_page=largest)
        else:
            return None
    return [unified[spec] for spec in specs]
