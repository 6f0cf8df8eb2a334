"""vLLM as an engine: what it says of itself, and a setup's way to its plan.

Source: vllm 0.33.0 config/, engine/arg_utils.py; older versions as :mod:`kvcalc.engines.vllm.versions` says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from kvcalc.architecture import Architecture, Compressed, LayerKind, stage_bounds
from kvcalc.derivation import Quantity
from kvcalc.dtypes import DTYPES, DType
from kvcalc.engines.base import Loads, Server, WorkingMemory
from kvcalc.engines.releases import release
from kvcalc.engines.vllm.blocks import Blocks
from kvcalc.engines.vllm.checks import hybrid_off_note, notes_on, refuse
from kvcalc.engines.vllm.groups import Groups, block_of, bytes_of, grouped, promoted
from kvcalc.engines.vllm.options import VllmOptions
from kvcalc.engines.vllm.plan import VllmPlan
from kvcalc.engines.vllm.specs import Owned, RaisedBlock, Spec, model_dtype, owned_caches, with_raised_block
from kvcalc.engines.vllm.versions import NEWEST, releases_by_rules
from kvcalc.engines.vllm_loading import loading as added_by_loading
from kvcalc.engines.vllm_memory import Step, vllm_working_memory
from kvcalc.errors import NotModelledError, UnsupportedError
from kvcalc.units import GiB, ceil_div
from kvcalc.widths import Widths

if TYPE_CHECKING:
    from kvcalc.device import Device, Platform
    from kvcalc.setup import Setup

# vllm 0.33.0 config/vllm.py:2236: a config with attention_chunk_size turns the hybrid KV cache manager off.
_CHUNKED_MODELS = frozenset({"llama4"})

# Formats whose kernels take activations of 8 bits (vllm 0.33.0 model_executor/layers/quantization).
_WITH_8_BIT_INPUTS = frozenset({"fp8_e4m3", "fp8_channel", "fp8_block", "int8_channel"})


class Vllm(VllmOptions):
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
        "  and F once for all; everything else is held for each; F is then of more steps, because a sequence that has\n"
        "  ended holds its last ones until their output arrives: 2 x (stages + 1 if async_scheduling) - 1 steps\n"
        "F = (pipeline stages + 1 if async_scheduling) x max_num_batched_tokens; before 0.26.0 one batch"
    )
    loads: ClassVar[Loads | None] = Loads(
        "auto-round awq compressed-tensors fbgemm-fp8 fp8 gptq modelopt mxfp4 mxfp8 nvfp4 torchao",
        "model_executor/layers/quantization/__init__.py",
    )
    weight_formats: ClassVar[tuple[str, ...]] = ("fp8", "int8_channel", "awq", "gptq", "nvfp4", "mxfp4")
    sources: ClassVar[tuple[str, ...]] = (
        "vllm 0.33.0 v1/core/kv_cache_planning.py, v1/kv_cache_interface.py, v1/core/single_type_kv_cache_manager.py",
        "vllm 0.33.0 platforms/interface.py, model_executor/layers/mamba/mamba_utils.py, models/deepseek_v4",
        "vllm 0.11.0 to 0.32.0, twenty-three releases, for what changed",
    )
    not_modelled: ClassVar[tuple[str, ...]] = (
        "activations, CUDA graphs and what else vLLM profiles: the KV memory is an input",
        "backends that raise the block size at start; sparse attention is taken as on Hopper (fp8 as fp8_ds_mla)",
        "KV connectors that move blocks while steps run: they keep those of ended sequences a step longer",
        "windows widened by multi-module speculation; sink tokens; HiSparse; ReplaySSM; Octave formats (ROCm)",
    )
    platforms: ClassVar[frozenset[Platform]] = frozenset({"cuda", "rocm", "gaudi", "tpu"})
    evidence: ClassVar[str] = (
        "checked against every recorded row of vLLM's own planner (0.33.0, 0.14.0), of its KV cache manager driven "
        "with one request and with several, against the planner of 0.33.0 on random models of every kind of layer "
        "(tests/oracles/vllm.py), and against figures that servers printed"
    )
    releases: ClassVar[tuple[tuple[str, ...], ...]] = releases_by_rules()
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
        off="--no-{}",
        no_flags=frozenset({"num_speculative_tokens", "indexer_kv_dtype"}),
        text_only="--language-model-only",
    )
    frugal_options: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "disable_hybrid_kv_cache_manager": (False,),
        # The sampler's copies of the logits, a row a sequence: 1,024 of Llama 3.1's are 1.8 GiB.
        "max_num_seqs": (512, 256, 128, 64, 32, 16),
        "async_scheduling": (False,),
        "max_num_batched_tokens": (8192, 4096, 2048, 1024),
        "enforce_eager": (True,),
    }

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

    def loading(self, setup: Setup, device: Device) -> tuple[Quantity, ...]:
        """What vLLM holds beside the weights of the files: a kernel's layout, tables, what the allocator rounds."""
        if device.platform not in ("cuda", "rocm"):
            return super().loading(setup, device)
        version, tokens, tp = release(self.version)[:2], self.max_num_batched_tokens, setup.tensor_parallel_size
        asked = (setup.weights_dtype, tp, self.pipeline_stages, setup.text_only, setup.draft, device)
        key = ("loading", version, tokens, *asked)
        return setup.architecture.memo(key, lambda: tuple(added_by_loading(setup, version, device, tokens).quantities))

    def required_with_prefix(self, setup: Setup, context: int, batch_size: int, prefix: int) -> int:
        """The full blocks of the prefix once, in the groups that keep all tokens; a window may have passed it.

        Source: vllm 0.33.0 v1/core/kv_cache_coordinator.py:806 (a hit is a multiple of every group's block).
        """
        if "enable_prefix_caching" in self.model_fields_set and not self.enable_prefix_caching:
            raise UnsupportedError("vllm shares no prefix where enable_prefix_caching is off")
        if setup.served.has_states:
            raise NotModelledError("what sequences share of a prefix is not modelled for vllm's states")
        plan = setup.plan
        assert isinstance(plan, VllmPlan)
        return plan.required_kv_memory(context, batch_size) - (batch_size - 1) * plan.shared_bytes(prefix)

    def working_memory(self, setup: Setup, device: Device, context: int, batch_size: int) -> WorkingMemory:
        """Activations, non-torch memory and CUDA graphs, as the profile run measures them."""
        model, version = setup.architecture, release(self.version)[:2]
        step = Step(
            tokens=self.max_num_batched_tokens,
            sequences=self.max_num_seqs,
            element_bytes=DTYPES[_computes_in(setup)].block_bytes,
            tensor_parallel_size=setup.tensor_parallel_size,
            pipeline_stages=self.pipeline_stages,
            takes_graphs=not self.enforce_eager,
            # Of a preset whose largest image is not known, the profile is that of its text.
            has_image_encoder=setup.sees and not (model.text_preset and model.image is None),
            image=model.image,
            quantises_inputs=setup.weights.dtype in _WITH_8_BIT_INPUTS,
            experts_in_place=setup.weights.dtype in ("mxfp4", "nvfp4"),
            longest=context if setup.served.has_indexers else 0,
        )
        # The same for every context and batch, which an inverse tries by the dozen.
        return model.memo(
            ("working memory", version, step, device), lambda: vllm_working_memory(version, Widths(model), step, device)
        )

    def start_notes(self, setup: Setup, report: Mapping[str, Any]) -> tuple[str, ...]:
        """No more sequences than blocks beside states, or the start fails: a sequence decodes with a block for each.

        Qwen3.8 27B on an H100 with 0.28.0: "max_num_seqs (1024) exceeds available Mamba cache blocks (969)".
        Source: vllm 0.28.0 config/compilation.py:1493, from 0.20.0 on.
        """
        blocks = report.get("num_gpu_blocks", self.max_num_seqs)
        graphs = self.rules.counts_state_blocks and not self.enforce_eager
        if not graphs or blocks >= self.max_num_seqs or not setup.architecture.has_states:
            return ()
        return (
            f"vllm starts with no more sequences than blocks beside states: -E max_num_seqs={blocks} "
            f"(--max-num-seqs {blocks}), not {self.max_num_seqs}",
        )

    def stated_options(self, model: Architecture) -> dict[str, Any]:
        """The options that were given, and prefix caching where its default here is not the server's."""
        return {
            **self.given_options,
            **({"enable_prefix_caching": False} if self.leaves_prefixes_out(model) else {}),
        }

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
        refuse(self, setup)
        notes = notes_on(self, setup)
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
            notes.append(hybrid_off_note(self))
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
        packs = any(isinstance(kind, Compressed) for kind, _ in setup.served.caches)
        packing = self.rules.packing if packs and len(planned.groups) > 1 else ""
        blocks = [block_of(planned, each, packing) for each in held]
        block_bytes = [bytes_of(each) for each in blocks]
        dearest = block_bytes.index(max(block_bytes))
        if block_bytes[dearest] and not all(block_bytes):
            raise UnsupportedError(
                f"vllm cannot start {setup.architecture.name} in {len(stages)} pipeline stages: one of them keeps no "
                "cache",
                hint="use a smaller pipeline_parallel_size",
            )
        in_widest = blocks[dearest]
        # Before 0.29 the start-up check counts tuples, however the pool's block is laid out.
        checked = set(range(len(owned))) if self.rules.checks_all_stages else held[dearest]
        checked_block = block_of(planned, checked, packing if packing in ("", "split") else "tuples")
        rules = [self._blocks(planned.specs[group[0]], setup) for group in planned.groups]
        rule_of = {index: rule for group, rule in zip(planned.groups, rules, strict=True) for index in group}
        alone = {spec: self._blocks(spec, setup) for spec in {each.spec for each in owned}}
        shares: Counter[tuple[int | None, Blocks]] = Counter()
        needs: Counter[Blocks] = Counter()
        for index in sorted(held[dearest]):
            shares[owned[index].row, rule_of[index]] += planned.specs[index].own_page
            needs[alone[owned[index].spec]] += owned[index].spec.page
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
            checked_block_bytes=bytes_of(checked_block),
            logged_groups=tuple(
                (rule, sum(planned.specs[index].page for index in group if index in held[dearest]))
                for rule, group in zip(rules, planned.groups, strict=True)
                if packing in ("tuples", "slots")
            ),
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
            case "state" if self.chunk_of_every_state(setup):
                return Blocks("every state", spec.block_size)
            case "state":
                states = 1 + self.cached_states(setup.architecture) + speculated * self.rules.counts_speculation
                return Blocks("state", spec.block_size if self.aligns_states else 0, fixed=states)
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


def _computes_in(setup: Setup) -> str:
    """The format of activations: that of ``--dtype`` where the weights are asked for in one, else the model's."""
    asked = setup.weights.dtype if setup.weights_dtype is not None else ""
    return asked if asked in ("float32", "float16", "bfloat16") else model_dtype(setup.architecture)
