"""LMDeploy: blocks of 64 tokens in all layers, from a part of the memory that weights, states and a step leave.

Every layer of a block has its K and its V, with scales and zeros where they are quantised. The PyTorch engine rounds
each of these up to 256 bytes; TurboMind packs them. A model whose configuration states one window for all layers gives
blocks back that lie before it; every other model keeps the whole context in every layer.

Source: lmdeploy 0.18.0 pytorch/engine/cache_engine/schema.py and layout.py, pytorch/engine/executor/base.py,
pytorch/configurations; TurboMind: src/turbomind/kernels/attention/block.h at 1263d5cd8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from kvcalc.architecture import (
    Architecture,
    Chunked,
    Compressed,
    Cross,
    Full,
    Latent,
    LayerKind,
    NoCache,
    Parallel,
    Shared,
    Sliding,
    State,
    kind_label,
)
from kvcalc.derivation import Derivation, Quantity
from kvcalc.dtypes import DTYPES, DType
from kvcalc.engines.base import KVCache, LayerBytes, Server, refuse_formats, refuse_kind
from kvcalc.engines.options import EngineOptions
from kvcalc.errors import UnsupportedError
from kvcalc.units import MiB, ceil_div, smallest_reaching

if TYPE_CHECKING:
    from kvcalc.setup import Setup

_VERSION = "0.18.0"
_SCHEMA = f"lmdeploy {_VERSION} pytorch/engine/cache_engine/schema.py"
_TURBOMIND = "lmdeploy src/turbomind/kernels/attention/block.h at 1263d5cd8"
_EXECUTOR = f"lmdeploy {_VERSION} pytorch/engine/executor/base.py"
_BLOCK_MANAGER = f"lmdeploy {_VERSION} pytorch/paging/block_manager"
_ALIGNMENT, _MLA_BLOCK = 256, 64

#: Model types that the PyTorch engine has a class for (pytorch/models/module_map.py).
_PYTORCH_MODELS = frozenset(
    {
        *("baichuan", "chatglm", "cogvlm", "deepseek", "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4"),
        *("gemma", "gemma2", "gemma3", "glm4", "glm4_moe", "glm4_moe_lite", "glm4v", "glm_moe_dsa", "gpt_oss", "hy_v3"),
        *("internlm", "internlm2", "internlm3", "kimi_k2", "kimi_k25", "llama", "llama4", "minicpm3", "mistral"),
        *("ministral", "mixtral", "mllama", "phi3", "phimoe", "qwen", "qwen2", "qwen2_5_vl", "qwen2_moe", "qwen2_vl"),
        *("qwen3", "qwen3_5", "qwen3_5_moe", "qwen3_moe", "qwen3_next", "qwen3_omni_moe", "qwen3_vl", "qwen3_vl_moe"),
        *("sdar", "sdar_moe", "starcoder2"),
    }
)
#: Those that TurboMind has (turbomind/supported_models.py); it is what runs where no backend is named.
_TURBOMIND_MODELS = frozenset(
    {
        *("glm4_moe_lite", "gpt_oss", "internlm2", "internlm3", "llama", "mixtral", "qwen2", "qwen2_5_vl", "qwen2_moe"),
        *("qwen2_vl", "qwen3", "qwen3_5", "qwen3_5_moe", "qwen3_moe"),
    }
)
#: Model types whose one window counts for all layers (pytorch/configurations/default.py, gemma.py); that of others is
#: set to none, because only some of their layers slide.
_ONE_WINDOW = frozenset({"gemma2", "ministral", "mistral", "mixtral", "phi3", "phimoe", "qwen2", "starcoder2"})
#: MLA heads that are kept decompressed, K and V of one width (pytorch/configurations/minicpm3.py).
_DECOMPRESSED = frozenset({"minicpm3"})

#: quant_policy -> bits of a number, and of its scale and zero together.
_BITS = {0: (16, 0), 4: (4, 32), 8: (8, 32), 16: (8, 0), 17: (8, 0)}

_REFUSED: dict[type, str] = {
    Parallel: "a state beside attention in one layer was not checked",
    Shared: "whether layers that read another layer's cache get blocks was not checked",
    Cross: "what an encoder's tokens take was not checked",
    Compressed: "compressed layers have caches of their own, which are not modelled",
}


@dataclass(frozen=True, slots=True)
class LMDeployPlan:
    """The bytes of a block, the blocks of a sequence, and what is set aside before them.

    Attributes:
        engine: the options.
        rows: (kind, layers, formulas of the parts of one layer's block, bytes of that block).
        window: tokens before which blocks are given back, 0 for none.
        state_rows: (kind, layers, bytes of one slot in one of them).
        slot_formula: bytes of one state slot, all layers.
        slot_bytes: its value.
        vocab: logits of one token, for what a step is reserved.
        notes: what a reader must know.
    """

    engine: LMDeploy
    rows: tuple[tuple[LayerKind, int, tuple[str, ...], int], ...]
    window: int
    state_rows: tuple[tuple[LayerKind, int, int], ...]
    slot_formula: str
    slot_bytes: int
    vocab: int
    notes: tuple[str, ...]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in all layers."""
        return sum(count * size for _, count, _, size in self.rows)

    @property
    def state_bytes(self) -> int:
        """The pool of states: a slot for each sequence that may run, one for a prefill and one of the system's."""
        return self.slot_bytes * (self.engine.max_batch_size + 2)

    @property
    def reserved_bytes(self) -> int:
        """What is set aside for a step's logits, and for an indexer's scores, before the cache takes its part."""
        engine = self.engine
        if engine.backend == "turbomind":
            return 0
        scores = _SCORE_BYTES if any(_indexer(kind) for kind, *_ in self.rows) else 0
        return (engine.max_prefill_token_num + 2 * engine.max_batch_size) * self.vocab * 2 + scores

    def blocks(self, context: int) -> int:
        """The most blocks that one sequence holds while it grows to ``context`` tokens."""
        size = self.engine.cache_block_seq_len
        if not self.window:
            return -(-context // size)
        chunk = self.engine.max_prefill_token_num
        before = max(0, context // chunk - 1) * chunk  # the last whole chunk, and what is left after it
        whole = -(-(before + min(context, chunk)) // size) - max(0, before - self.window) // size
        last = context // chunk * chunk
        return max(whole, -(-context // size) - max(0, last - self.window) // size)

    def kv_bytes(self, context: int, batch_size: int) -> int:
        """The sequences' blocks and the pool of states."""
        return batch_size * self.blocks(context) * self.block_bytes + self.state_bytes

    def allocate(self, context: int, batch_size: int) -> KVCache:
        """One row a layer kind; scales, zeros and rounding are the layers' own."""
        size = self.engine.cache_block_seq_len
        blocks = batch_size * self.blocks(context)
        rows = [
            LayerBytes(kind.kind, kind_label(kind), count, self.window or None, blocks * size, blocks * count * each)
            for kind, count, _, each in self.rows
        ]
        slots = self.engine.max_batch_size + 2
        rows += [
            LayerBytes(kind.kind, kind_label(kind), count, None, 0, slots * count * each)
            for kind, count, each in self.state_rows
        ]
        total = self.kv_bytes(context, batch_size)
        held = ceil_div(context, size) - max(0, context - 1 - self.window) // size if self.window else 0
        steady = batch_size * held * self.block_bytes + self.state_bytes if self.window else total
        padding = total - sum(row.bytes for row in rows)
        why = f"blocks of {size} tokens in all {sum(count for _, count, *_ in self.rows)} layers with attention"
        return KVCache(total, steady, tuple(rows), padding, why, self.notes)

    def _num_blocks(self, free_bytes: int) -> int:
        """Blocks of a free memory; the product is a float one, as in the engine."""
        return int((free_bytes - self.state_bytes - self.reserved_bytes) * self.engine.cache_max_entry_count) // max(
            1, self.block_bytes
        )

    def required_kv_memory(self, context: int, batch_size: int) -> int:
        """The smallest memory, free after the weights, of whose part the sequences' blocks are made.

        With a prefill chunk that stays whole: LMDeploy halves it before it has fewer than 16 blocks.
        """
        needed = batch_size * self.blocks(context)
        beside = self.state_bytes + self.reserved_bytes
        share = Fraction(self.engine.cache_max_entry_count)
        guess = beside + ceil_div(needed * self.block_bytes * share.denominator, share.numerator)
        return smallest_reaching(guess, lambda memory: self._num_blocks(memory) >= needed)

    def report(self, context: int, batch_size: int, kv_memory: int) -> dict[str, Any]:
        """LMDeploy's own names for what a free memory gives."""
        blocks = max(0, self._num_blocks(kv_memory))
        return {
            "num_gpu_blocks": blocks,
            "block_bytes": self.block_bytes,
            "max_tokens": blocks * self.engine.cache_block_seq_len,
            "num_state_caches": self.engine.max_batch_size + 2 if self.slot_bytes else None,
            "reserved_bytes": self.reserved_bytes,
            "fits": blocks >= batch_size * self.blocks(context),
        }

    def explain(self, context: int, batch_size: int) -> tuple[Quantity, ...]:
        """From a layer's block through the blocks of a sequence to the bytes, and the memory they are a part of."""
        engine, work = self.engine, Derivation(context, batch_size)
        source = _TURBOMIND if engine.backend == "turbomind" else _SCHEMA
        work.let("P", "tokens of a block", str(engine.cache_block_seq_len), "tokens", "cache_block_seq_len")
        in_all, layers = [], []
        for number, (kind, count, parts, _) in enumerate(self.rows, start=1):
            meaning = f"one block of a {kind_label(kind)} layer: K, V, scales and zeros"
            work.let(f"layer_{number}", meaning, " + ".join(parts), "bytes", source)
            in_all.append(f"{count} * layer_{number}")
        work.let("block_bytes", "one block in all layers", " + ".join(in_all) or "0", "bytes", source)
        work.let("blocks", "blocks of one sequence at its most", self._blocks_formula(), "blocks", _BLOCK_MANAGER)
        for number, (kind, count, *_) in enumerate(self.rows, start=1):
            layers.append(f"layers_{number}")
            work.let(layers[-1], f"{count} {kind_label(kind)}", f"B * blocks * {count} * layer_{number}", "bytes")
        if self.state_rows:
            work.let("slots", "state slots", f"{engine.max_batch_size} + 2", "slots", f"{_EXECUTOR}:289")
            for kind, count, each in self.state_rows:
                layers.append(f"layers_{len(layers) + 1}")
                work.let(layers[-1], f"{count} {kind_label(kind)}", f"slots * {count} * {each}", "bytes")
            work.let("state_bytes", "the pool of states", f"slots * ({self.slot_formula})", "bytes", _EXECUTOR)
        states = " + state_bytes" if self.state_rows else ""
        if self.reserved_bytes:
            tokens = f"({engine.max_prefill_token_num} + 2 * {engine.max_batch_size})"
            scores = f" + {_SCORE_BYTES}" if any(_indexer(kind) for kind, *_ in self.rows) else ""
            formula = f"{tokens} * {self.vocab} * 2{scores}"
            work.let("reserved_bytes", "set aside for a step", formula, "bytes", f"{_EXECUTOR}:219")
        beside = " - reserved_bytes" * bool(self.reserved_bytes) + " - state_bytes" * bool(self.state_rows)
        ratio = engine.cache_max_entry_count
        enough = f"int((memory{beside}) * {ratio!r}) // max(1, block_bytes) >= B * blocks"
        guess = f"int(B * blocks * block_bytes / {ratio!r})"
        memory = f"smallest_reaching({guess}, lambda memory: {enough})"
        work.let("required_bytes", "free memory of whose part they are made", memory, "bytes", f"{_EXECUTOR}:401")
        work.let("kv_bytes", "KV cache", f"B * blocks * block_bytes{states}", "bytes", source)
        return tuple(work.quantities)

    def _blocks_formula(self) -> str:
        if not self.window:
            return "ceil_div(T, P)"
        chunk, window = self.engine.max_prefill_token_num, self.window
        before = f"max(0, T // {chunk} - 1) * {chunk}"
        whole = f"ceil_div({before} + min(T, {chunk}), P) - max(0, {before} - {window}) // P"
        return f"max({whole}, ceil_div(T, P) - max(0, T // {chunk} * {chunk} - {window}) // P)"


class LMDeploy(EngineOptions):
    """LMDeploy's blocks, in its PyTorch engine or in TurboMind."""

    name: ClassVar[str] = "lmdeploy"
    summary: ClassVar[str] = "LMDeploy's blocks of 64 tokens in every layer, from 0.8 of what weights leave free"
    follows: ClassVar[str] = _VERSION
    formula: ClassVar[str] = (
        "bytes = batch size x blocks x block bytes + state slots x slot bytes\n"
        "blocks = ceil(context / 64); where one window counts for all layers, those of the window and a prefill chunk\n"
        "block bytes = layers x (K + V + their scales and zeros), each rounded up to 256 bytes (not in TurboMind)\n"
        "free memory: (free - states - reserve for logits) x cache_max_entry_count gives the blocks"
    )
    weight_formats: ClassVar[tuple[str, ...]] = ("fp8", "awq")
    sources: ClassVar[tuple[str, ...]] = (
        f"{_SCHEMA}, layout.py, state.py; pytorch/configurations; pytorch/models/module_map.py",
        f"{_EXECUTOR} (what is set aside, the number of blocks)",
        f"{_TURBOMIND} (the bytes of a block), src/turbomind/turbomind.cc:296 (its part of the free memory)",
    )
    not_modelled: ClassVar[tuple[str, ...]] = (
        "activations, CUDA graphs and the device's context: leave room for them",
        "states in TurboMind, and the slabs that its object cache cuts blocks from: blocks are counted by bytes alone",
        "TurboQuant (quant_policy 42), drafts of another geometry, DeepSeek V4, cross-attention, context parallelism",
        "flash-attention for MLA is taken as there (Hopper): without it blocks have 32 tokens",
    )
    evidence: ClassVar[str] = (
        "against its own cache plans, built from random models (tests/oracles/lmdeploy.py); no server was run"
    )
    server: ClassVar[Server | None] = Server(
        ("lmdeploy", "serve", "api_server", "{model}"),
        {"context": "--session-len", "tensor_parallel_size": "--tp"},
        option="--{}",
    )
    frugal_options: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "max_prefill_token_num": (4096, 2048),
        "quant_policy": (8, 4),
    }

    version: Literal["0.18.0"] = Field("0.18.0", description="release whose rule is followed")
    backend: Literal["pytorch", "turbomind"] = Field("pytorch", description="which of its two engines runs")
    cache_block_seq_len: int = Field(64, ge=1, le=2**20, description="tokens of a block")
    cache_max_entry_count: float = Field(0.8, gt=0, lt=1, description="part of the free memory that blocks are made of")
    quant_policy: Literal[0, 4, 8, 16, 17] = Field(
        0, description="K and V in 4 or 8 bits with scales, 16: fp8_e4m3, 17: fp8_e5m2 (PyTorch engine); 0: as they are"
    )
    max_batch_size: int = Field(128, ge=1, le=2**20, description="sequences that run at once; state slots follow it")
    max_prefill_token_num: int = Field(8192, ge=1, le=2**30, description="tokens of a prefill chunk")

    @property
    def batch_limit(self) -> int | None:
        """``max_batch_size``, where it is given."""
        return self.max_batch_size if "max_batch_size" in self.model_fields_set else None

    @classmethod
    def device_options(cls, memory_bytes: int, device: str) -> dict[str, Any]:
        """Sequences by the device's name: 384 on an A100, 1024 on Hopper, 128 elsewhere (lmdeploy/utils.py:413).

        >>> LMDeploy.device_options(80 * 2**30, "h100-80gb")
        {'max_batch_size': 1024}
        """
        named = {"a100": 384, "a800": 384, "h100": 1024, "h800": 1024, "l20y": 1024, "h200": 1024}
        found = next((size for name, size in named.items() if name in device.casefold()), None)
        return {} if found is None else {"max_batch_size": found}

    def stated_options(self, model: Architecture) -> dict[str, Any]:
        """The backend too: LMDeploy takes TurboMind where it has the model, unless told otherwise."""
        return {"backend": self.backend, **self.given_options}

    def default_kv_dtypes(self, architecture: Architecture) -> tuple[DType, DType]:
        """The model's format; float32 models run in float16 (messages.py, TurbomindEngineConfig)."""
        key, value = super().default_kv_dtypes(architecture)
        cast = DTYPES["float16"]
        return (cast if key.name == "float32" else key), (cast if value.name == "float32" else value)

    def prepare(self, setup: Setup) -> LMDeployPlan:
        """Price a block of every layer.

        Raises:
            UnsupportedError: no class for the model, or heads that the devices do not divide.
            NotModelledError: a layer kind whose cache was not read.
        """
        architecture = setup.served
        refuse_formats("lmdeploy", setup, frozenset({"bfloat16", "float16"}))
        self._check(architecture)
        rows, states, parts = [], [], []
        for kind, count in architecture.caches:
            if isinstance(kind, State):
                conv, recurrent = _state_parts(kind, count, setup.tensor_parallel_size, architecture.name)
                parts += [f"round_up({conv}, {_ALIGNMENT})", f"round_up({recurrent}, {_ALIGNMENT})"]
                states.append((kind, count, (conv + recurrent) // count))
            elif not isinstance(kind, NoCache):
                formulas, size = self._layer(kind, setup)
                rows.append((kind, count, formulas, size))
        if len({size for _, _, _, size in rows}) > 1 and not any(_indexer(kind) for kind, *_ in rows):
            raise UnsupportedError(
                f"lmdeploy has one K and V width for all layers; {architecture.name} has several "
                "(pytorch/config.py, ModelConfig)"
            )
        window = max(architecture.windows, default=0) if architecture.model_type in _ONE_WINDOW else 0
        return LMDeployPlan(
            self,
            tuple(rows),
            window,
            tuple(states),
            " + ".join(parts),
            _value(" + ".join(parts) or "0"),
            architecture.vocab_size,
            tuple(self._notes(architecture, window)),
        )

    def _check(self, architecture: Architecture) -> None:
        known = _TURBOMIND_MODELS if self.backend == "turbomind" else _PYTORCH_MODELS
        if architecture.model_type not in known:
            place = "turbomind/supported_models.py" if self.backend == "turbomind" else "pytorch/models/module_map.py"
            raise UnsupportedError(
                f"lmdeploy {_VERSION} has no class for model type {architecture.model_type!r} ({place})",
                hint="leave backend out" if self.backend == "turbomind" else "",
            )
        if self.backend == "turbomind" and self.quant_policy in (16, 17):
            raise UnsupportedError("lmdeploy's TurboMind has no fp8 cache (messages.py, TurbomindEngineConfig)")
        keeps_latents = architecture.has_latents and architecture.model_type not in _DECOMPRESSED
        flash_mla = keeps_latents and self.backend == "pytorch"
        if flash_mla and self.cache_block_seq_len != _MLA_BLOCK:
            raise UnsupportedError(
                f"lmdeploy has blocks of {_MLA_BLOCK} tokens alone for latents (executor/base.py, _adjust_block_size)",
                hint="leave cache_block_seq_len out",
            )
        for kind, _ in architecture.caches:
            reason = _REFUSED.get(type(kind))
            if isinstance(kind, State) and self.backend == "turbomind":
                reason = "the parts that TurboMind keeps a state in are not modelled: backend=pytorch is"
            elif isinstance(kind, Full | Sliding | Chunked) and (kind.extra_state_bytes or _indexer(kind)):
                reason = "what its layers keep beside K and V was not checked"
            elif _indexer(kind) and self.quant_policy not in (0, 16):
                reason = "a quantised latent beside an index key was not checked"
            if reason is not None:
                refuse_kind("lmdeploy", architecture, kind, reason)

    def _layer(self, kind: LayerKind, setup: Setup) -> tuple[tuple[str, ...], int]:
        """The parts of one layer's block as formulas over ``P``, and their bytes.

        Llama 3.1 8B: K of 64 tokens x 8 heads x 128 numbers x 2 bytes are 131,072 bytes, V the same.
        """
        heads, key, value = self._geometry(kind, setup)
        bits, scale_bits = _BITS[self.quant_policy]
        widths = [key, value] if value else [key]
        if _indexer(kind) and self.quant_policy == 16:
            parts = [f"P * {_MLA_FP8_BYTES}"]
        else:
            parts = [f"P * {heads} * {width * bits // 8}" for width in widths]
        if scale_bits:
            # The PyTorch engine has scales of V even where V is a view of K.
            scales = 2 if self.backend == "pytorch" else len(widths)
            parts += [f"P * {heads} * {scale_bits // 8}"] * scales
        if self.backend == "pytorch":
            parts = [f"round_up({part}, {_ALIGNMENT})" for part in parts]
        if indexer := _indexer(kind):  # a float32 scale beside each key, in rows of their own
            parts.append(f"P * ({indexer} + 4)")
        return tuple(parts), _value(" + ".join(parts), P=self.cache_block_seq_len)

    def _geometry(self, kind: LayerKind, setup: Setup) -> tuple[int, int, int]:
        """Heads on one device, and the widths of K and V; V of latents is a view of K."""
        tp, model = setup.tensor_parallel_size, setup.architecture
        if isinstance(kind, Latent):
            if model.model_type in _DECOMPRESSED:
                width = kind.nope_dim + kind.rope_dim
                return _divided(kind.num_heads, tp, model.name), width, width
            return 1, kind.rank + kind.rope_dim, 0
        assert isinstance(kind, Full | Sliding | Chunked)
        return _divided(kind.num_kv_heads, tp, model.name), kind.head_dim, kind.v_head_dim

    def _notes(self, architecture: Architecture, window: int) -> list[str]:
        notes = []
        if self.backend == "pytorch" and architecture.model_type in _TURBOMIND_MODELS:
            notes.append("lmdeploy runs this model in TurboMind unless told --backend pytorch")
        if window and any(not isinstance(kind, Sliding) for kind, _ in architecture.caches):
            notes.append(f"lmdeploy gives back blocks before {window:,} tokens in its full layers, too")
        elif not window and architecture.windows:
            notes.append("every layer keeps the whole context: lmdeploy has one rule for all of a model's layers")
        return notes


#: Room for the scores of sparse attention's indexer (executor/base.py:213, envs.py: dsa_indexer_max_logits_mb).
_SCORE_BYTES = 512 * MiB
#: A latent of 512 numbers in 8 bits with 4 scales of 4 bytes, and 64 numbers in bfloat16 (fp8_ds_mla).
_MLA_FP8_BYTES = 656


def _value(formula: str, **symbols: int) -> int:
    """What a formula over these symbols is."""
    work = Derivation()
    for symbol, value in symbols.items():
        work.let(symbol, symbol, str(value))
    return work.let("value", "value", formula)


def _indexer(kind: LayerKind) -> int:
    return kind.indexer_dim if isinstance(kind, Latent | Full) else 0


def _divided(heads: int, tp: int, name: str) -> int:
    """KV heads on one device; fewer heads than devices are replicated (configurations/builder.py:63)."""
    if heads % tp and tp % heads:
        raise UnsupportedError(f"lmdeploy does not divide {name}'s {heads} KV heads by {tp} devices")
    return max(1, heads // tp)


def _state_parts(kind: State, count: int, tp: int, name: str) -> tuple[int, int]:
    """Bytes of a slot's convolution columns and of its recurrent part in all these layers: 16 bits a number.

    Source: lmdeploy 0.18.0 pytorch/configurations/qwen3_5.py:52 (the kernel's whole width; with
    LMDEPLOY_FP32_MAMBA_SSM_DTYPE the recurrent part is float32).
    """
    if kind.conv_channels % tp or kind.recurrent_elements % tp:
        raise UnsupportedError(f"lmdeploy does not divide {name}'s states by {tp} devices")
    conv = count * (kind.conv_channels // tp) * kind.conv_kernel * 2
    return conv, count * (kind.recurrent_elements // tp) * 2
