"""vLLM: paged blocks, drawn by groups of layers from one pool.

vLLM gives every layer a page (its K and V of ``block_size`` tokens), collects the layers that need the same blocks
into groups of one size, and lets all groups draw from one pool whose block is as large as the widest group. A request
is charged, for each group, the most blocks that it may hold at once: for sliding layers the window and the tokens of
the steps under way, so the figure depends on ``max_num_batched_tokens`` and on nothing that the model says. Several
requests share one budget of tokens a step, so the tokens under way are counted once for all of them.

Source: vllm 0.33.0 v1/core/kv_cache_planning.py, v1/kv_cache_interface.py, v1/core/single_type_kv_cache_manager.py;
older versions as :mod:`kvcalc.engines.vllm.versions` says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from kvcalc.architecture import (
    Architecture,
    Chunked,
    Compressed,
    Cross,
    Full,
    Latent,
    LayerKind,
    Parallel,
    Sliding,
    State,
    kind_label,
    stage_bounds,
    window_of,
)
from kvcalc.derivation import Derivation, Quantity
from kvcalc.dtypes import DTYPES, DType
from kvcalc.engines.base import KVCache, LayerBytes, Server, WorkingMemory
from kvcalc.engines.options import EngineOptions
from kvcalc.engines.vllm.groups import (
    Form,
    Groups,
    Owned,
    RaisedBlock,
    Spec,
    bytes_per_block,
    grouped,
    model_dtype,
    owned_caches,
    promoted,
    widest,
    with_raised_block,
)
from kvcalc.engines.vllm.versions import NEWEST, Rules, note_on, parsed, rules_of
from kvcalc.engines.vllm_memory import Step, vllm_working_memory
from kvcalc.errors import InputError, NotModelledError, UnsupportedError
from kvcalc.units import MAX_BYTES, MAX_TOKENS, GiB, ceil_div, largest
from kvcalc.widths import Widths

if TYPE_CHECKING:
    from kvcalc.device import Device
    from kvcalc.setup import Setup

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
        "turboquant_k8v4",
        "turboquant_4bit_nc",
        "turboquant_k3v4_nc",
        "turboquant_3bit_nc",
        "ultraquant_4bit",
    }
)

# vllm 0.33.0 config/vllm.py:2236: a config with attention_chunk_size turns the hybrid KV cache manager off.
_CHUNKED_MODELS = frozenset({"llama4"})

# Models whose class says SupportsMambaPrefixCaching (vllm 0.20.0 and 0.27.1 model_executor/models).
_CACHES_ALL_STATES = frozenset(
    {"bamba", "nemotron_h", "jamba", "mamba", "mamba2", "falcon_mamba", "zamba2", "granitemoehybrid", "falcon_h1"}
)

# What sparse attention's kernels take: vllm 0.33.0 v1/attention/backends/mla/indexer.py:286 and :357,
# models/minimax_m3/common/indexer.py:94.
_SPARSE_BLOCK, _COMPRESSED_BLOCK, _SPARSE_GQA_BLOCK, _ULTRAQUANT_BLOCK = 64, 256, 128, 64

# "estimated maximum model length" is a bisection up to max_model_len; the recorded figures use this one.
_LONGEST_ESTIMATE = 2**24


@dataclass(frozen=True, slots=True)
class Blocks:
    """How many blocks one group takes from the pool.

    Attributes:
        form: as in the spec.
        block_size: tokens in one block.
        window: tokens of the window or chunk.
        under_way: tokens of the steps under way that a window keeps beside itself (all of them for one sequence).
        lookahead: slots that a drafter takes ahead of the tokens of a step.
        shards: ranks over which decode context parallelism spreads the tokens.
        fixed: blocks of one sequence that do not depend on the context (states, encoder tokens).
        encoder_blocks: of those, blocks that the encoder's tokens of this workload fill (cross-attention).
    """

    form: Form
    block_size: int
    window: int = 0
    under_way: int = 0
    lookahead: int = 0
    shards: int = 1
    fixed: int = 0
    encoder_blocks: int = 0

    @property
    def label(self) -> str:
        """The form with its window."""
        return f"{self.form} ({self.window})" if self.window else self.form

    def reserved(self, context: int) -> int:
        """The most blocks that a sequence of up to ``context`` tokens may hold at once, as vLLM plans it.

        A window of 6 tokens may start inside a block of 4, [XXCD] [EFGH] [XXXX]: that is the one more block.
        """
        size = self.block_size * self.shards
        match self.form:
            case "sliding" | "sliding latent":
                return -(-min(self.window - 1 + self.under_way, context) // size) + 1
            case "chunked":
                return -(-min(self.window + self.under_way, context) // size)
            case "state" | "cross":
                return self.fixed
            case _:
                return -(-context // size)

    def reserved_formula(self) -> str:
        """:meth:`reserved` over ``T`` (context) and ``F`` (tokens under way)."""
        size = str(self.block_size) if self.shards == 1 else f"({self.block_size} * {self.shards})"
        match self.form:
            case "sliding" | "sliding latent":
                return f"ceil_div(min({self.window} - 1 + F, T), {size}) + 1"
            case "chunked":
                return f"ceil_div(min({self.window} + F, T), {size})"
            case "state" | "cross":
                return str(self.fixed)
            case _:
                return f"ceil_div(T, {size})"

    @property
    def _started(self) -> tuple[int, int, int]:
        """Of a window: blocks held before any step, tokens that open the next one, and the block.

        A window of W tokens before the oldest one under way starts anywhere in its block, so u more tokens reach
        into ``ceil((W - 2 + u) / block) + 1`` blocks; a chunk, which starts at its block's edge, into
        ``ceil((C - 1 + u) / block)``, and one more where blocks do not divide chunks.
        """
        kept = self.window - (2 if self.form != "chunked" else 1) + self.lookahead
        opened = -(-kept // self.block_size)
        beyond = 1 if self.form != "chunked" or self.window % self.block_size else 0
        return opened + beyond, opened * self.block_size - kept + 1, self.block_size

    def most(self, context: int, batch_size: int, under_way: int) -> int:
        """The most blocks that several sequences hold at once, with ``under_way`` tokens of steps between them."""
        match self.form:
            case "sliding" | "sliding latent" | "chunked":
                started, opens, size = self._started
                further = min(batch_size, under_way // opens) + max(0, under_way - batch_size * opens) // size
                return min(batch_size * -(-context // size), batch_size * started + further)
            case "cross":
                return (
                    max(self.fixed, batch_size * self.encoder_blocks)
                    if self.encoder_blocks
                    else self.fixed * batch_size
                )
            case _:
                return batch_size * self.reserved(context)

    def most_formula(self) -> str:
        """:meth:`most` over ``T``, ``B`` and ``F``."""
        match self.form:
            case "sliding" | "sliding latent" | "chunked":
                started, opens, size = self._started
                further = f"min(B, F // {opens}) + max(0, F - B * {opens}) // {size}"
                return f"min(B * ceil_div(T, {size}), B * {started} + {further})"
            case "cross" if self.encoder_blocks:
                return f"max({self.fixed}, B * {self.encoder_blocks})"
            case _:
                return f"B * {self.reserved_formula()}"

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
            case "sliding" | "sliding latent":
                freed = max(0, settled - self.window + 1) // self.block_size
            case "chunked":
                freed = settled // self.window * self.window // self.block_size
            case _:
                freed = 0
        return ceil_div(tokens, self.block_size * self.shards) - freed


@dataclass(frozen=True, slots=True)
class VllmPlan:
    """The groups of a model, and what a block costs on the device that holds the most.

    Attributes:
        engine: the options.
        rules: what the version does.
        kinds: the layer kinds, in order, and how many layers of each this device has.
        specs: the distinct specs as grouped, with the number of this device's layers in the widest group.
        groups: how many groups follow each rule, the first group's rule first.
        group_size: layers of the largest group, over all devices.
        padding_layers: places in the groups that no layer fills.
        bytes_per_block: bytes of one block of the pool on this device.
        stage_block_bytes: the same of every pipeline stage.
        shares: (row, rule) -> bytes of one block of these layers, without padding; row None is the draft's.
        layer_needs: rule and page of each layer by itself, for the start-up check of old versions.
        page_unit: the page that all layers share, or None where they differ.
        block_note: how the attention block of a model with states came about.
        step_tokens: tokens of one decoding sequence in a step: one, and those speculated.
        notes: what a reader must know.
    """

    engine: Vllm
    rules: Rules
    kinds: tuple[tuple[LayerKind, int], ...]
    specs: tuple[tuple[Spec, int], ...]
    groups: tuple[tuple[Blocks, int], ...]
    group_size: int
    padding_layers: int
    bytes_per_block: int
    stage_block_bytes: tuple[int, ...]
    shares: tuple[tuple[int | None, Blocks, int], ...]
    layer_needs: tuple[tuple[Blocks, int], ...]
    page_unit: int | None
    block_note: RaisedBlock | None
    step_tokens: int
    notes: tuple[str, ...]

    @property
    def num_groups(self) -> int:
        """Groups of the whole model."""
        return sum(count for _, count in self.groups)

    def blocks_per_request(self, context: int) -> int:
        """Blocks that one sequence of up to ``context`` tokens may need."""
        return sum(count * rule.reserved(context) for rule, count in self.groups)

    def blocks(self, context: int, batch_size: int) -> int:
        """The most blocks that so many sequences of up to ``context`` tokens hold at once."""
        if batch_size == 1:
            return self.blocks_per_request(context)
        under_way = self._tokens_under_way(batch_size)
        return sum(count * rule.most(context, batch_size, under_way) for rule, count in self.groups)

    def _tokens_under_way(self, batch_size: int) -> int:
        """The steps' tokens, at least one for each sequence in this step and in the one under way."""
        return max(self.engine.tokens_in_flight, batch_size * self._decoding_tokens)

    @property
    def _decoding_tokens(self) -> int:
        """Tokens of one decoding sequence in this step and in the one under way."""
        return self.step_tokens * (1 + self.engine.steps_ahead)

    def kv_bytes(self, context: int, batch_size: int) -> int:
        """The most that the sequences hold at once; for one, what vLLM plans for it."""
        return self.bytes_per_block * self.blocks(context, batch_size)

    def resident_bytes(self, tokens: int, computed: int, in_flight: int) -> int:
        """Bytes that one sequence holds in the step that brings it to ``tokens``."""
        blocks = sum(count * rule.resident(tokens, computed, in_flight) for rule, count in self.groups)
        return self.bytes_per_block * blocks

    def layer_bytes(self, context: int) -> int:
        """The layers' own needs added up: the figure that the start-up check of the oldest versions compares."""
        return sum(page * rule.reserved(context) for rule, page in self.layer_needs)

    def needed_bytes(self, context: int) -> int:
        """The "KV cache is needed" figure of the version's start-up check, for one sequence."""
        match self.rules.check:
            case "layers":
                return self.layer_bytes(context)
            case "first group":
                return self.bytes_per_block * self.groups[0][0].reserved(context) if self.groups else 0
            case _:
                return self.kv_bytes(context, 1)

    def allocate(self, context: int, batch_size: int) -> KVCache:
        """The reservation; padding holds padding layers, padded pages and groups narrower than a block."""
        work = self._derivation(context, batch_size)
        tokens: Counter[int] = Counter()
        for row, rule, _ in self.shares:
            if row is not None and rule.form != "state":
                each = work[f"each_{self._number(rule)}"]
                tokens[row] = max(tokens[row], each * rule.block_size)
        rows = tuple(
            LayerBytes(
                kind.kind,
                kind_label(kind),
                count,
                window_of(kind),
                tokens[index],
                work[f"layers_{index + 1}"] if self._has_share(index) else 0,
            )
            for index, (kind, count) in enumerate(self.kinds)
        )
        steady = batch_size * self.resident_bytes(context, context - 1, self.engine.steps_ahead)
        draft = work["draft_bytes"] if self._has_share(None) else 0
        total = work["kv_bytes"]
        padding = total - draft - sum(row.bytes for row in rows)
        return KVCache(total, steady, rows, padding, self._why(), self.notes, draft_bytes=draft)

    def _has_share(self, row: int | None) -> bool:
        return any(each == row for each, _, _ in self.shares)

    def _number(self, rule: Blocks) -> int:
        return next(at for at, (each, _) in enumerate(self.groups, start=1) if each == rule)

    def _why(self) -> str:
        if not self.groups:
            return "no layer keeps a cache"
        if self.num_groups == 1:
            return f"one group of {self.group_size}"
        if self.page_unit is None:
            return f"{self.num_groups} groups, whose pages stand side by side in a block"
        padding = f", {self.padding_layers} padding layers" if self.padding_layers else ""
        return f"groups of {self.group_size}" + (padding if self.padding_layers != 1 else ", 1 padding layer")

    def required_kv_memory(self, context: int, batch_size: int) -> int:
        """The sequences' blocks and the null block, which the pool keeps back."""
        blocks = self.blocks(context, batch_size) + 1
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
        # A state's block is max_model_len, or the attention block with prefix caching.
        whole = not self.engine.enable_prefix_caching
        smallest = min(context if rule.form == "state" and whole else rule.block_size for rule, _ in self.groups)
        ranks = self.engine.decode_context_parallel_size * self.engine.prefill_context_parallel_size
        return num_blocks, concurrency, num_blocks // self.num_groups * smallest * ranks

    def fits(self, context: int, batch_size: int, kv_memory: int) -> bool:
        """vLLM's start-up check, and room for the further sequences."""
        kept_back = self.bytes_per_block if self.rules.check == "null block" else 0
        if self.needed_bytes(context) + kept_back > kv_memory:
            return False
        return batch_size == 1 or self.kv_bytes(context, batch_size) + kept_back <= kv_memory

    def _estimated_max_model_len(self, kv_memory: int) -> int:
        """The longest context that fits, 0 if none does: vLLM's bisection."""
        return largest(lambda context: self.fits(context, 1, kv_memory), _LONGEST_ESTIMATE)

    def explain(self, context: int, batch_size: int) -> tuple[Quantity, ...]:
        """From the bytes of a page through groups and blocks to the bytes."""
        return tuple(self._derivation(context, batch_size).quantities)

    def _derivation(self, context: int, batch_size: int) -> Derivation:
        work = Derivation(context, batch_size)
        self._work_page(work)
        self._work_blocks(work)
        names = []
        for index, (kind, count) in enumerate(self.kinds):
            if self._has_share(index):
                names.append(f"layers_{index + 1}")
                meaning = f"{count} {kind_label(kind)}, without padding"
                work.let(names[-1], meaning, self._share_formula(index), "bytes")
        if self._has_share(None):
            names.append("draft_bytes")
            work.let("draft_bytes", "the draft's layers", self._share_formula(None), "bytes")
        rest = "".join(f" - {name}" for name in names)
        work.let("padding", "padding of layers, pages and groups", f"bytes_per_block * blocks{rest}", "bytes")
        work.let("kv_bytes", "KV cache", "bytes_per_block * blocks", "bytes")
        return work

    def _share_formula(self, row: int | None) -> str:
        terms = [f"{page} * each_{self._number(rule)}" for each, rule, page in self.shares if each == row]
        return " + ".join(terms)

    def _work_page(self, work: Derivation) -> None:
        planning = f"vllm {NEWEST} v1/core/kv_cache_planning.py"
        if self.block_note:
            raised = self.block_note
            steps = (
                f"round_up({raised.unit} * ceil_div({raised.state_bytes}, {raised.unit} * {raised.token_bytes}), 16)"
            )
            formula = f"max({steps}, {raised.given})"
            meaning = "attention block, raised until its page covers a state"
            work.let("attention_block", meaning, formula, "tokens", f"vllm {NEWEST} platforms/interface.py:1032")
        names, in_widest = [], []
        for number, (spec, layers) in enumerate(self.specs, start=1):
            name = f"page_{number}"
            work.let(name, *_page_text(spec), "bytes", f"vllm {NEWEST} v1/kv_cache_interface.py:586")
            names.append(name)
            in_widest += [f"{layers} * {name}"] if layers else []
        if self.page_unit is not None and len(names) > 1:
            if self.block_note:
                names.append(f"attention_block * {self.block_note.token_bytes}")
            meaning = "page of every layer: the largest"
            page = work.let("page", meaning, f"max({', '.join(names)})", "bytes", f"{planning}:346")
            in_widest = [f"{self.bytes_per_block // page} * page"] if page else []
        where = f" on one of {self.engine.pipeline_stages} stages" if self.engine.pipeline_stages > 1 else ""
        meaning = f"one block of the pool: layers of the widest group{where} ({self._why()})"
        work.let("bytes_per_block", meaning, " + ".join(in_widest) or "0", "bytes", f"{planning}:574")

    def _work_blocks(self, work: Derivation) -> None:
        engine, one = self.engine, work.batch_size == 1
        source = f"vllm {NEWEST} " + ("v1/kv_cache_interface.py" if one else "v1/core/single_type_kv_cache_manager.py")
        if any(rule.window for rule, _ in self.groups):
            formula = f"{engine.batches_in_flight} * {engine.max_num_batched_tokens}"
            meaning = "tokens of the steps under way: batches x max_num_batched_tokens"
            if not one:
                formula = f"max({formula}, B * {self._decoding_tokens})"
                meaning += ", for all sequences together"
            work.let("F", meaning, formula, "tokens", f"vllm {NEWEST} config/vllm.py:588")
        names = []
        for number, (rule, count) in enumerate(self.groups, start=1):
            groups = "1 group" if count == 1 else f"each of {count} groups"
            meaning = f"blocks in {groups} of {rule.label} layers"
            formula = rule.reserved_formula() if one else rule.most_formula()
            work.let(f"each_{number}", meaning, formula, "blocks", source)
            names.append(f"{count} * each_{number}")
        blocks = "blocks that one sequence may need" if one else "the most blocks that the sequences hold at once"
        work.let("blocks", blocks, " + ".join(names) or "0", "blocks")


def _page_text(spec: Spec) -> tuple[str, str]:
    """What a page holds, and the product that gives its bytes."""
    if spec.form == "state":
        return "one state", str(spec.own_page)
    label = f"{spec.form} ({spec.window})" if spec.window else spec.form
    role = f", {spec.role}" if spec.role else ""
    entries = str(spec.block_size) if spec.ratio == 1 else f"({spec.block_size} // {spec.ratio})"
    formula = f"{entries} * {spec.heads} * ({spec.key_bytes} + {spec.value_bytes})"
    if spec.alignment > 1:
        formula = f"round_up({formula}, {spec.alignment})"
    return f"one block of a {label} layer{role}: tokens x KV heads x (K + V bytes of a head)", formula


class Vllm(EngineOptions):
    """vLLM's V1 engine with its hybrid KV cache manager.

    For one sequence ``bytes`` is vLLM's own "KV cache is needed" figure: what it must be able to give a request of
    ``context`` tokens at the worst step of its prefill. For several it is the most that they hold at once. The pool
    itself is all of the memory that vLLM is given.
    """

    name: ClassVar[str] = "vllm"
    summary: ClassVar[str] = "blocks for requests at their worst moment: windows plus the tokens of the steps under way"
    follows: ClassVar[str] = NEWEST
    formula: ClassVar[str] = (
        "bytes = bytes_per_block x blocks of all groups\n"
        "page: block_size x KV heads x (K bytes + V bytes); mixed pages grow or are padded to the largest\n"
        "bytes_per_block = layers of the widest group x page; equal layers form groups of one size\n"
        "blocks of one sequence: full and latent ceil(T / block_size); \n"
        "  sliding ceil(min(W - 1 + F, T) / block_size) + 1;\n"
        "  chunked ceil(min(C + F, T) / block_size); state 1 + speculative tokens (+ 1 with prefix caching);\n"
        "  cross-attention ceil(max_num_batched_tokens / block_size)\n"
        "several sequences share the F tokens of the steps under way: a window holds its own tokens for each of them,\n"
        "  and F once for all; everything else is held for each\n"
        "F = (pipeline stages + 1 if async_scheduling) x max_num_batched_tokens; before 0.26.0 one batch"
    )
    weight_formats: ClassVar[tuple[str, ...]] = ("fp8", "int8_channel", "awq", "gptq", "nvfp4", "mxfp4")
    sources: ClassVar[tuple[str, ...]] = (
        "vllm 0.33.0 v1/core/kv_cache_planning.py, v1/kv_cache_interface.py, v1/core/single_type_kv_cache_manager.py",
        "vllm 0.33.0 platforms/interface.py, model_executor/layers/mamba/mamba_utils.py, models/deepseek_v4",
        "vllm 0.11.0 to 0.32.0, twenty releases, for what changed",
    )
    not_modelled: ClassVar[tuple[str, ...]] = (
        "activations, CUDA graphs and what else vLLM profiles: the KV memory is an input",
        "backends that raise the block size at start; sparse attention is taken as on Hopper (fp8 as fp8_ds_mla)",
        "sequences that have ended, until the output of their last step arrives (async scheduling): a step more of one",
        "windows widened by multi-module speculation; sink tokens; HiSparse; ReplaySSM; Octave formats (ROCm)",
        "blocks in steps of 64 tokens, for gated delta nets with prefix caching and FlashInfer's prefill (Hopper)",
        "states of every block (mode all of 0.12 to 0.27, Mamba models with prefix caching): refused",
    )
    evidence: ClassVar[str] = (
        "checked against every recorded row of vLLM's own planner (0.33.0, 0.14.0), of its KV cache manager driven "
        "with one request and with several, against the planner of 0.33.0 on random models of every kind of layer "
        "(tests/oracles/vllm.py), and against figures that servers printed"
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
        no_flags=frozenset({"num_speculative_tokens", "indexer_kv_dtype"}),
    )
    frugal_options: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "disable_hybrid_kv_cache_manager": (False,),
        "async_scheduling": (False,),
        "max_num_batched_tokens": (8192, 4096, 2048, 1024),
    }

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
        parsed(version)  # raises InputError, which pydantic lets through
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

    @classmethod
    def device_options(cls, memory_bytes: int, device: str) -> dict[str, Any]:
        """The steps of the API server by device: 2048 tokens below 70 GiB or on an A100, 16384 from 160 GiB.

        Source: vllm 0.33.0 engine/arg_utils.py:2946.

        >>> from kvcalc.units import GiB
        >>> [Vllm.device_options(size * GiB, "")["max_num_batched_tokens"] for size in (24, 80, 180)]
        [2048, 8192, 16384]
        """
        if memory_bytes >= 160 * GiB:
            return {"max_num_batched_tokens": 16384, "max_num_seqs": 1024}
        if memory_bytes < 70 * GiB or "a100" in device.casefold() or "gb10" in device.casefold():
            return {"max_num_batched_tokens": 2048, "max_num_seqs": 256}
        return {"max_num_batched_tokens": 8192, "max_num_seqs": 1024}

    def working_memory(self, setup: Setup, device: Device, context: int, batch_size: int) -> WorkingMemory:
        """Activations, non-torch memory and CUDA graphs, as the profile run measures them."""
        step = Step(
            tokens=self.max_num_batched_tokens,
            sequences=self.max_num_seqs,
            element_bytes=DTYPES[model_dtype(setup.architecture)].block_bytes,
            tensor_parallel_size=setup.tensor_parallel_size,
            pipeline_stages=self.pipeline_stages,
            takes_graphs=not self.enforce_eager,
            experts_in_place=setup.weights.dtype == "mxfp4",
        )
        return vllm_working_memory(parsed(self.version)[:2], Widths(setup.architecture), step, device)

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

    def block_size_for(self, model: Architecture, dtype: DType) -> int:
        """The block that is asked for, or the one that the model's attention kernels need."""
        if "block_size" in self.model_fields_set:
            return self.block_size
        kinds = [kind for kind, _ in model.caches]
        if any(isinstance(kind, Compressed) for kind in kinds):
            return _COMPRESSED_BLOCK
        if any(isinstance(kind, Full) and kind.indexer_dim for kind in kinds):
            return _SPARSE_GQA_BLOCK
        if any(isinstance(kind, Latent) and kind.indexer_dim for kind in kinds):
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

    def default_kv_dtypes(self, architecture: Architecture) -> tuple[DType, DType]:
        """The model's own formats, as vLLM runs it: DeepSeek V4's compressed layers in fp8, float32 as bfloat16.

        Source: vllm 0.33.0 models/deepseek_v4/attention.py:109, config/model.py (_resolve_auto_dtype).
        """
        if any(isinstance(kind, Compressed) for kind, _ in architecture.caches):
            return DTYPES["fp8_e4m3"], DTYPES["fp8_e4m3"]
        key, value = super().default_kv_dtypes(architecture)
        cast = DTYPES["bfloat16"]
        return (cast if key.name == "float32" else key), (cast if value.name == "float32" else value)

    def prepare(self, setup: Setup) -> VllmPlan:
        """Give every layer its spec, group them, and find the device that holds the most."""
        architecture = setup.architecture
        _check_dtypes(setup)
        _check_parallelism(self, setup)
        _check_states(self, setup)
        notes = _setup_notes(self, setup)
        owned, block_note = with_raised_block(self, setup, owned_caches(self, setup))
        alone = [each.spec for each in owned]
        hybrid_off = self.disable_hybrid_kv_cache_manager or architecture.model_type in _CHUNKED_MODELS
        specs = promoted(alone) if hybrid_off else alone
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
        packs = any(isinstance(kind, Compressed) for kind, _ in setup.served.caches)
        planned = grouped(architecture.name, specs, self.rules, packs=packs)
        if [spec.form for spec in planned.specs] != [spec.form for spec in specs]:
            notes.append(
                "vllm takes blocks for the whole context in every local layer too: their pages and the latent ones "
                "cannot be of one size"
            )
        if block_note:
            state = next(
                spec for spec in planned.specs if spec.form == "state" and spec.state_bytes == block_note.state_bytes
            )
            padding = state.page - state.state_bytes
            notes.append(
                f"attention blocks of {block_note.block_size:,} tokens; a state's page is padded by "
                f"{padding:,} bytes ({padding / state.state_bytes:.2%})"
            )
        return self._plan(setup, owned, planned, block_note, tuple(notes))

    def _plan(
        self,
        setup: Setup,
        owned: list[Owned],
        planned: Groups,
        block_note: RaisedBlock | None,
        notes: tuple[str, ...],
    ) -> VllmPlan:
        # Every stage has the model's groups with its own layers in them; the stage with the dearest block sets the
        # number of blocks of all. The draft runs on the last stage.
        stages = stage_bounds(setup.architecture.num_layers, self.pipeline_parallel_size)
        held = [
            {
                index
                for index, each in enumerate(owned)
                if stage[0] <= min(each.position, setup.architecture.num_layers - 1) < stage[1]
            }
            for stage in stages
        ]
        block_bytes = [bytes_per_block(planned.specs, planned.groups, each) for each in held]
        dearest = block_bytes.index(max(block_bytes))
        if block_bytes[dearest] and not all(block_bytes):
            raise UnsupportedError(
                f"vllm cannot start {setup.architecture.name} in {len(stages)} pipeline stages: one of them keeps no "
                "cache",
                hint="use a smaller pipeline_parallel_size",
            )
        in_widest = widest(planned.specs, planned.groups, held[dearest])
        rules = [self._blocks(planned.specs[group[0]], setup) for group in planned.groups]
        rule_of = {index: rule for group, rule in zip(planned.groups, rules, strict=True) for index in group}
        shares: Counter[tuple[int | None, Blocks]] = Counter()
        needs: Counter[Blocks] = Counter()
        for index in sorted(held[dearest]):
            shares[owned[index].row, rule_of[index]] += planned.specs[index].own_page
            needs[self._blocks(owned[index].spec, setup)] += owned[index].spec.page
        group_size = max((len(group) for group in planned.groups), default=0)
        pages = {spec.page for spec in planned.specs}
        return VllmPlan(
            engine=self,
            rules=self.rules,
            kinds=_kinds_of(setup.architecture, stages[dearest]),
            specs=tuple((spec, in_widest[spec]) for spec in dict.fromkeys(planned.specs)),
            groups=tuple(Counter(rules).items()),
            group_size=group_size,
            padding_layers=group_size * len(planned.groups) - len(owned) if len(pages) == 1 else 0,
            bytes_per_block=block_bytes[dearest],
            stage_block_bytes=tuple(block_bytes),
            shares=tuple((row, rule, size) for (row, rule), size in shares.items()),
            layer_needs=tuple(needs.items()),
            page_unit=pages.pop() if len(pages) == 1 else None,
            block_note=block_note,
            step_tokens=1 + self.speculated_tokens(setup),
            notes=notes,
        )

    def _blocks(self, spec: Spec, setup: Setup) -> Blocks:
        speculated = self.speculated_tokens(setup)
        match spec.form:
            case "sliding" | "sliding latent" | "chunked":
                lookahead = speculated if setup.draft is not None else 0
                return Blocks(spec.form, spec.block_size, spec.window, self.tokens_in_flight, lookahead)
            case "cross":
                if setup.encoder_tokens > self.max_num_batched_tokens:
                    raise UnsupportedError(
                        f"vllm takes no encoder input of {setup.encoder_tokens:,} tokens in steps of "
                        f"{self.max_num_batched_tokens:,}",
                        hint=f"-E max_num_batched_tokens={setup.encoder_tokens}",
                    )
                # Planned for the longest input of an encoder, which is as long as a step (config/scheduler.py:306).
                planned = ceil_div(self.max_num_batched_tokens, spec.block_size)
                encoder_blocks = ceil_div(setup.encoder_tokens, spec.block_size)
                return Blocks("cross", spec.block_size, fixed=planned, encoder_blocks=encoder_blocks)
            case "state":
                states = 1 + (speculated + self.enable_prefix_caching if self.rules.counts_speculation else 0)
                return Blocks("state", spec.block_size, fixed=states)
        shards = self.decode_context_parallel_size
        if self.rules.shards_prefill:
            shards *= self.prefill_context_parallel_size
        return Blocks(spec.form, spec.block_size, shards=shards)


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


def _attention_kinds(architecture: Architecture) -> list[LayerKind]:
    return [kind.attention if isinstance(kind, Parallel) else kind for kind, _ in architecture.caches]


def _check_parallelism(engine: Vllm, setup: Setup) -> None:
    """What vLLM refuses of parallel sizes (vllm 0.33.0 config/model.py:1557, config/parallel.py:594)."""
    architecture, tp = setup.architecture, setup.tensor_parallel_size
    if engine.pipeline_parallel_size > architecture.num_layers:
        raise UnsupportedError(
            f"{architecture.name} has {architecture.num_layers} layers, "
            f"fewer than pipeline_parallel_size={engine.pipeline_parallel_size} stages"
        )
    counts = _head_counts(architecture)
    if not _divides(counts, tp):
        heads = ", ".join(f"{count} {what}" for what, count in counts)
        sizes = ", ".join(str(size) for size in range(1, 129) if _divides(counts, size))
        raise UnsupportedError(
            f"vllm does not divide the heads of {architecture.name} ({heads}) by tensor_parallel_size={tp}",
            hint=f"sizes that divide them: {sizes}",
        )
    _check_context_parallelism(engine, setup)


def _head_counts(architecture: Architecture) -> list[tuple[str, int]]:
    """The distinct head counts of the attention layers: KV heads, and query heads where the weights tell them."""
    counts: dict[tuple[str, int], None] = {}
    for layer in architecture.layers:
        kind = layer.cache.attention if isinstance(layer.cache, Parallel) else layer.cache
        if isinstance(kind, Latent):
            counts["heads", kind.num_heads] = None
        elif isinstance(kind, Full | Sliding | Chunked):
            counts["KV heads", kind.num_kv_heads] = None
            queries = next((each for each in layer.mixer if each.role == "self_attn.q_proj"), None)
            if queries is not None and queries.rows % kind.head_dim == 0:
                counts["query heads", queries.rows // kind.head_dim] = None
    return list(counts)


def _divides(counts: list[tuple[str, int]], tp: int) -> bool:
    """Whether each device gets as many heads as another; fewer KV heads than devices are replicated evenly."""
    return all(count % tp == 0 or (what == "KV heads" and count < tp and tp % count == 0) for what, count in counts)


def _check_context_parallelism(engine: Vllm, setup: Setup) -> None:
    dcp, pcp, tp = engine.decode_context_parallel_size, engine.prefill_context_parallel_size, setup.tensor_parallel_size
    model = setup.architecture.name
    if pcp == 1 and tp % dcp:
        raise UnsupportedError(
            f"vllm divides tensor_parallel_size={tp} by decode_context_parallel_size={dcp}, which does not divide it"
        )
    if pcp > 1 and dcp not in (1, pcp, tp * pcp):
        raise UnsupportedError(
            f"vllm has no decode_context_parallel_size={dcp} beside prefill_context_parallel_size={pcp} and "
            f"tensor_parallel_size={tp}",
            hint=f"sizes that it has: {', '.join(map(str, sorted({1, pcp, tp * pcp})))}",
        )
    if dcp == 1:
        return
    kinds = _attention_kinds(setup.served)
    if any(isinstance(kind, Sliding | Chunked | Compressed) or window_of(kind) for kind in kinds):
        raise UnsupportedError(f"vllm has no decode context parallelism for {model}'s windows")


def _check_states(engine: Vllm, setup: Setup) -> None:
    kinds = [kind for kind, _ in setup.architecture.caches]
    if not any(isinstance(kind, State | Parallel) for kind in kinds):
        return
    own = setup.architecture.mtp_layers and setup.draft is setup.architecture.mtp
    if setup.draft is not None and not own and "num_speculative_tokens" not in engine.model_fields_set:
        raise InputError(
            f"how many tokens the draft of {setup.architecture.name} proposes decides its states",
            hint="-E num_speculative_tokens=N",
        )
    keeps_all = engine.enable_prefix_caching and engine.rules.caches_all_states and not engine.speculated_tokens(setup)
    if keeps_all and setup.architecture.model_type in _CACHES_ALL_STATES:
        raise NotModelledError(
            f"not modelled: the states that vllm {engine.version} keeps of {setup.architecture.name} for every block, "
            "in steps of its kernel's chunk",
            hint="leave enable_prefix_caching out, or use version=0.28.0 or a newer one",
        )


def _setup_notes(engine: Vllm, setup: Setup) -> list[str]:
    architecture, tp = setup.architecture, setup.tensor_parallel_size
    version = note_on(engine.version)
    notes = [version] if version else []
    kinds = _attention_kinds(architecture)
    heads = [kind.num_kv_heads for kind in kinds if isinstance(kind, Full | Sliding | Chunked | Cross)]
    if heads and tp > min(heads):
        notes.append(f"{min(heads)} KV heads on {tp} devices: they are replicated, not divided")
    dcp = engine.decode_context_parallel_size
    if dcp > 1 and heads and (tp <= max(heads) or dcp > tp // max(heads)):
        # vllm 0.33.0 config/model.py:1579; its planner divides the tokens all the same.
        notes.append(
            f"vllm starts decode context parallelism beside KV heads only where so many devices share a head: "
            f"{max(heads) * dcp} devices for {max(heads)} heads and {dcp} ranks"
        )
    if tp > 1 and any(isinstance(kind, Latent) for kind in kinds):
        notes.append("every device keeps the whole latent: tensor parallelism does not divide it")
    if architecture.model_type == "cohere2" and any(isinstance(kind, Sliding) for kind in kinds):
        notes.append("vllm gives this model a window of one token more")
    if any(isinstance(kind, Latent) and kind.indexer_dim for kind in kinds) and setup.k_dtype.name.startswith("fp8_e"):
        notes.append(
            "sparse attention keeps fp8 latents as fp8_ds_mla, 656 bytes a token (Blackwell: one byte a number)"
        )
    if any(isinstance(kind, State | Parallel) for kind, _ in architecture.caches) and architecture.dtype not in (
        "bfloat16",
        "float16",
    ):
        notes.append(f"states are taken in {model_dtype(architecture)}, in which vllm runs {architecture.dtype} models")
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
