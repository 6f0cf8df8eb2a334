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
from dataclasses import dataclass
from math import lcm
from typing import Any

from kvcalc.architecture import LayerKind, kind_label, window_of
from kvcalc.derivation import Derivation, Quantity
from kvcalc.engines.base import KVCache, LayerBytes
from kvcalc.engines.vllm.blocks import Blocks
from kvcalc.engines.vllm.options import VllmOptions
from kvcalc.engines.vllm.specs import RaisedBlock, Spec
from kvcalc.engines.vllm.versions import NEWEST, Rules
from kvcalc.units import MAX_BYTES, ceil_div, largest

# "estimated maximum model length" is a bisection up to max_model_len; the recorded figures use this one.
_LONGEST_ESTIMATE = 2**24


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
        checked_block_bytes: what the start-up check takes a block for; more than that for DeepSeek V4 before 0.29, and
            for pipeline stages in 0.14 to 0.16.
        logged_groups: rule and bytes of one block of each group, where the logged concurrency counts bytes and not
            blocks (DeepSeek V4 before 0.27); empty otherwise.
        stage_block_bytes: the same of every pipeline stage.
        shares: (row, rule) -> bytes of one block of these layers, without padding; row None is the draft's.
        layer_needs: rule and page of each layer by itself, for the start-up check of old versions.
        page_unit: the page that all layers share, or None where they differ.
        block_note: how the attention block of a model with states came about.
        step_tokens: tokens of one decoding sequence in a step: one, and those speculated.
        notes: what a reader must know.
    """

    engine: VllmOptions
    rules: Rules
    kinds: tuple[tuple[LayerKind, int], ...]
    specs: tuple[tuple[Spec, int], ...]
    groups: tuple[tuple[Blocks, int], ...]
    group_size: int
    padding_layers: int
    bytes_per_block: int
    checked_block_bytes: int
    logged_groups: tuple[tuple[Blocks, int], ...]
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
        return max(self.engine.tokens_of_several, batch_size * self._decoding_tokens)

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
                return self.checked_block_bytes * self.groups[0][0].reserved(context) if self.groups else 0
            case _:
                return self.checked_block_bytes * self.blocks_per_request(context)

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

    def shared_bytes(self, prefix: int) -> int:
        """Bytes of the blocks that a further sequence with the same first ``prefix`` tokens does not take."""
        step = lcm(*(rule.block_size * rule.shards for rule, _ in self.groups))
        keep_all = [(rule, count) for rule, count in self.groups if rule.form in ("full", "latent")]
        blocks = sum(count * rule.reserved(prefix // step * step) for rule, count in keep_all)
        return self.bytes_per_block * blocks

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
        concurrency = num_blocks / self._logged_blocks(context)
        if not self.rules.tokens_by_group:
            return num_blocks, concurrency, int(concurrency * context)
        # A state's block is max_model_len, or the attention block with prefix caching.
        smallest = min(rule.block_size or context for rule, _ in self.groups)
        ranks = self.engine.decode_context_parallel_size * self.engine.prefill_context_parallel_size
        return num_blocks, concurrency, num_blocks // self.num_groups * smallest * ranks

    def _logged_blocks(self, context: int) -> int:
        """Blocks of one sequence, as the logged concurrency counts them: once its bytes over those of the first group.

        Source: vllm 0.26.0 v1/core/kv_cache_utils.py (get_max_concurrency_for_kv_cache_config).
        """
        if not self.logged_groups:
            return self.blocks_per_request(context)
        held = sum(rule.reserved(context) * size for rule, size in self.logged_groups)
        return ceil_div(held, self.logged_groups[0][1])

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
        self._work_required(work)
        work.let("kv_bytes", "KV cache", "bytes_per_block * blocks", "bytes")
        return work

    def _work_required(self, work: Derivation) -> None:
        formula, override = "bytes_per_block * (blocks + 1)", self.engine.num_gpu_blocks_override
        if override is not None:
            formula += f" + (0 if blocks + 1 <= {override} else {MAX_BYTES})"
        work.let("required_bytes", "memory that serves it: one block is kept back", formula, "bytes")

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
        if any(rule.window or rule.form == "cross" for rule, _ in self.groups):
            step = str(engine.max_num_batched_tokens)
            work.let("max_num_batched_tokens", "tokens of one step", step, "tokens", "max_num_batched_tokens")
        if any(rule.window for rule, _ in self.groups):
            formula = f"{engine.batches_in_flight} * max_num_batched_tokens"
            meaning = "tokens of the steps under way: batches x max_num_batched_tokens"
            if not one:
                formula = f"max({engine.steps_of_several} * max_num_batched_tokens, B * {self._decoding_tokens})"
                meaning = "tokens of the steps under way, and of those before them that ended sequences hold still"
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
    if spec.padded_page and spec.role in ("packed", "skipped"):
        formula = f"max({formula}, {spec.padded_page})"
    return f"one block of a {label} layer{role}: tokens x KV heads x (K + V bytes of a head)", formula
