"""LMDeploy: blocks of 64 tokens in all layers, from a part of the memory that weights, states and a step leave.

Every layer of a block has its K and its V, with scales and zeros where they are quantised. The PyTorch engine rounds
each of these up to 256 bytes; TurboMind packs them. A model whose configuration states one window for all layers gives
blocks back that lie before it; every other model keeps the whole context in every layer. DeepSeek V4 keeps its windows
and what its next entries are made of as states, and its entries in blocks of 256 tokens.

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
    Sliding,
    State,
    kind_label,
)
from kvcalc.derivation import Derivation, Quantity
from kvcalc.dtypes import DTYPES, DType
from kvcalc.engines.base import KVCache, LayerBytes, Server, refuse_formats, refuse_kind, refuse_uneven_heads
from kvcalc.engines.options import EngineOptions
from kvcalc.errors import UnsupportedError
from kvcalc.units import MiB, ceil_div, round_up, smallest_reaching

if TYPE_CHECKING:
    from kvcalc.device import Platform
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
        *("internlm", "internlm2", "internlm3", "kimi_k2", "kimi_k25", "llama", "llama4", "minicpm3", "minicpmv"),
        *("mistral", "mixtral", "mllama", "phi3", "phimoe", "qwen", "qwen2", "qwen2_5_vl", "qwen2_moe", "qwen2_vl"),
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
_ONE_WINDOW = frozenset({"gemma2", "mistral", "mixtral", "phi3", "phimoe", "qwen2", "starcoder2"})
#: MLA heads that are kept decompressed, K and V of one width (pytorch/configurations/minicpm3.py).
_DECOMPRESSED = frozenset({"minicpm3"})

#: quant_policy -> bits of a number, and of its scale and zero together.
_BITS = {0: (16, 0), 4: (4, 32), 8: (8, 32), 16: (8, 0), 17: (8, 0)}

#: DeepSeek V4 (configurations/deepseek_v4.py, consts.py): tokens of a block, and bytes of an entry of 512 numbers: 448
#: in 8 bits, 64 in 16, 7 scales and a byte of padding.
_V4_BLOCK, _V4_WIDTH, _V4_ENTRY_BYTES = 256, 512, 584


@dataclass(frozen=True, slots=True)
class Buffer:
    """One buffer of a layer's block: ``entry_bytes`` for each entry, which stands for ``ratio`` tokens.

    >>> Buffer(2048, rounded=True).bytes(3), Buffer(2048, rounded=True).formula
    (6144, 'round_up(P * 2048, 256)')
    """

    entry_bytes: int
    ratio: int = 1
    rounded: bool = False

    def bytes(self, block_tokens: int) -> int:
        """Bytes in a block of so many tokens."""
        size = block_tokens // self.ratio * self.entry_bytes
        return round_up(size, _ALIGNMENT) if self.rounded else size

    @property
    def formula(self) -> str:
        """:meth:`bytes`, over P."""
        entries = "P" if self.ratio == 1 else f"P // {self.ratio}"
        formula = f"{entries} * {self.entry_bytes}"
        return f"round_up({formula}, {_ALIGNMENT})" if self.rounded else formula


@dataclass(frozen=True, slots=True)
class Kept:
    """What one layer keeps: buffers of blocks, and of each state its name and its bytes a sequence."""

    buffers: tuple[Buffer, ...] = ()
    states: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class LMDeployPlan:
    """The bytes of a block, the blocks of a sequence, and what is set aside before them.

    Attributes:
        engine: the options.
        block_tokens: tokens of a block.
        rows: (kind, layers, what one of them keeps).
        window: tokens before which blocks are given back, 0 for none.
        vocab: logits of one token, for what a step is reserved.
        notes: what a reader must know.
    """

    engine: LMDeploy
    block_tokens: int
    rows: tuple[tuple[LayerKind, int, Kept], ...]
    window: int
    vocab: int
    notes: tuple[str, ...]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in all layers."""
        return sum(count * _block_bytes(kept, self.block_tokens) for _, count, kept in self.rows)

    @property
    def slot_parts(self) -> tuple[int, ...]:
        """Bytes of one state slot, all layers: each state of all its layers lies together."""
        parts: dict[str, int] = {}
        for _, count, kept in self.rows:
            for name, size in kept.states:
                parts[name] = parts.get(name, 0) + count * size
        return tuple(parts.values())

    @property
    def slot_bytes(self) -> int:
        """Bytes of one state slot."""
        return sum(round_up(part, _ALIGNMENT) for part in self.slot_parts)

    @property
    def slots(self) -> int:
        """A slot for each sequence that may run, one for a prefill and one of the system's."""
        return self.engine.max_batch_size + 2

    @property
    def state_bytes(self) -> int:
        """The pool of states."""
        return self.slot_bytes * self.slots

    @property
    def reserved_bytes(self) -> int:
        """What is set aside for a step's logits, and for an indexer's scores, before the cache takes its part."""
        engine = self.engine
        if engine.backend == "turbomind":
            return 0
        return (engine.max_prefill_token_num + 2 * engine.max_batch_size) * self.vocab * 2 + self._score_bytes

    @property
    def _score_bytes(self) -> int:
        return _SCORE_BYTES if any(_indexer(kind) for kind, *_ in self.rows) else 0

    def blocks(self, context: int) -> int:
        """The most blocks that one sequence holds while it grows to ``context`` tokens."""
        size = self.block_tokens
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
        size = self.block_tokens
        blocks, rows = batch_size * self.blocks(context), []
        for kind, count, kept in self.rows:
            taken = blocks * _block_bytes(kept, size) + self.slots * sum(each for _, each in kept.states)
            tokens = blocks * size if kept.buffers else 0
            window = self.window or None if kept.buffers else None
            rows.append(LayerBytes(kind.kind, kind_label(kind), count, window, tokens, count * taken))
        total = self.kv_bytes(context, batch_size)
        held = ceil_div(context, size) - max(0, context - 1 - self.window) // size if self.window else 0
        steady = batch_size * held * self.block_bytes + self.state_bytes if self.window else total
        padding = total - sum(row.bytes for row in rows)
        layers = sum(count for _, count, kept in self.rows if kept.buffers)
        why = f"blocks of {size} tokens in all {layers} layers with attention"
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
            "max_tokens": blocks * self.block_tokens,
            "num_state_caches": self.slots if self.slot_bytes else None,
            "reserved_bytes": self.reserved_bytes,
            "fits": blocks >= batch_size * self.blocks(context),
        }

    def explain(self, context: int, batch_size: int) -> tuple[Quantity, ...]:
        """From a layer's block through the blocks of a sequence to the bytes, and the memory they are a part of."""
        engine, work = self.engine, Derivation(context, batch_size)
        source = _TURBOMIND if engine.backend == "turbomind" else _SCHEMA
        work.let("P", "tokens of a block", str(self.block_tokens), "tokens", "cache_block_seq_len")
        if self.slot_bytes:
            work.let("slots", "state slots", f"{engine.max_batch_size} + 2", "slots", f"{_EXECUTOR}:289")
        in_all = []
        for number, (kind, count, kept) in enumerate(self.rows, start=1):
            if kept.buffers:
                meaning = f"one block of a {kind_label(kind)} layer: K, V, scales and zeros"
                parts = " + ".join(buffer.formula for buffer in kept.buffers)
                work.let(f"layer_{number}", meaning, parts, "bytes", source)
                in_all.append(f"{count} * layer_{number}")
        work.let("block_bytes", "one block in all layers", " + ".join(in_all) or "0", "bytes", source)
        work.let("blocks", "blocks of one sequence at its most", self._blocks_formula(), "blocks", _BLOCK_MANAGER)
        for number, (kind, count, kept) in enumerate(self.rows, start=1):
            terms = [f"B * blocks * layer_{number}"] * bool(kept.buffers)
            terms += [f"slots * {size}" for _, size in kept.states]
            formula = f"{count} * ({' + '.join(terms)})"
            work.let(f"layers_{number}", f"{count} {kind_label(kind)}", formula, "bytes")
        if self.slot_bytes:
            slot = " + ".join(f"round_up({part}, {_ALIGNMENT})" for part in self.slot_parts)
            work.let("state_bytes", "the pool of states", f"slots * ({slot})", "bytes", _EXECUTOR)
        states = " + state_bytes" if self.slot_bytes else ""
        if self.reserved_bytes:
            tokens = f"({engine.max_prefill_token_num} + 2 * {engine.max_batch_size})"
            formula = f"{tokens} * {self.vocab} * 2 + {self._score_bytes}"
            work.let("reserved_bytes", "set aside for a step", formula, "bytes", f"{_EXECUTOR}:219")
        beside = " - reserved_bytes" * bool(self.reserved_bytes) + " - state_bytes" * bool(self.slot_bytes)
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
        "TurboQuant (quant_policy 42), drafts of another geometry, cross-attention, context parallelism",
        "flash-attention for MLA is taken as there (Hopper): without it blocks have 32 tokens",
    )
    platforms: ClassVar[frozenset[Platform]] = frozenset({"cuda"})
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
        refuse_uneven_heads("lmdeploy", setup)
        self._check(architecture)
        rows = tuple((kind, count, self._kept(kind, setup)) for kind, count in architecture.caches)
        rows = tuple(row for row in rows if row[2] != Kept())
        compressed = any(isinstance(kind, Compressed) for kind, *_ in rows)
        block = _V4_BLOCK if compressed else self.cache_block_seq_len
        widths = {_block_bytes(kept, block) for kind, _, kept in rows if kept.buffers}
        if len(widths) > 1 and not compressed and not any(_indexer(kind) for kind, *_ in rows):
            raise UnsupportedError(
                f"lmdeploy has one K and V width for all layers; {architecture.name} has several "
                "(pytorch/config.py, ModelConfig)"
            )
        window = max(architecture.windows, default=0) if architecture.model_type in _ONE_WINDOW else 0
        notes = self._notes(architecture, window)
        if block != self.cache_block_seq_len:
            notes.append(f"lmdeploy sets the blocks of DeepSeek V4 to {block} tokens")
        return LMDeployPlan(self, block, rows, window, architecture.vocab_size, tuple(notes))

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

    def _kept(self, kind: LayerKind, setup: Setup) -> Kept:
        """What one layer keeps on one device; nothing where it has no cache."""
        architecture = setup.architecture
        match kind:
            case NoCache():
                return Kept()
            case State() if self.backend == "turbomind":
                reason = "the parts that TurboMind keeps a state in are not modelled: backend=pytorch is"
                refuse_kind("lmdeploy", architecture, kind, reason)
            case State():
                return _state(kind, setup.tensor_parallel_size, architecture.name)
            case Compressed() if kind.ratio in (None, 4, 128) and kind.width == _V4_WIDTH:
                return _compressed(kind)
            case Cross():
                refuse_kind("lmdeploy", architecture, kind, "what an encoder's tokens take was not checked")
            case Latent(indexer_dim=indexer) if indexer and self.quant_policy not in (0, 16):
                refuse_kind("lmdeploy", architecture, kind, "a quantised latent beside an index key was not checked")
            case Latent():
                return self._attention(kind, setup)
            case Full() | Sliding() | Chunked() if not (kind.extra_state_bytes or _indexer(kind)):
                return self._attention(kind, setup)
        raise UnsupportedError(
            f"lmdeploy {_VERSION} has no class with the {kind_label(kind)} layers of {architecture.name} "
            "(pytorch/configurations, pytorch/models/module_map.py)"
        )

    def _attention(self, kind: Full | Sliding | Chunked | Latent, setup: Setup) -> Kept:
        """K and V, or a latent whose V is a view of K, with scales and zeros where they are quantised.

        Llama 3.1 8B: K of 64 tokens x 8 heads x 128 numbers x 2 bytes are 131,072 bytes, V the same.
        """
        heads, key, value = self._geometry(kind, setup)
        bits, scale_bits = _BITS[self.quant_policy]
        widths = [key, value] if value else [key]
        if _indexer(kind) and self.quant_policy == 16:
            sizes = [_MLA_FP8_BYTES]
        else:
            sizes = [heads * (width * bits // 8) for width in widths]
        if scale_bits:
            # The PyTorch engine has scales of V even where V is a view of K.
            scales = 2 if self.backend == "pytorch" else len(widths)
            sizes += [heads * (scale_bits // 8)] * scales
        buffers = [Buffer(size, rounded=self.backend == "pytorch") for size in sizes]
        if indexer := _indexer(kind):  # a float32 scale beside each key, in rows of their own
            buffers.append(Buffer(indexer + 4))
        return Kept(tuple(buffers))

    def _geometry(self, kind: Full | Sliding | Chunked | Latent, setup: Setup) -> tuple[int, int, int]:
        """Heads on one device, and the widths of K and V; V of latents is a view of K."""
        tp, model = setup.tensor_parallel_size, setup.architecture
        if isinstance(kind, Latent):
            if model.model_type in _DECOMPRESSED:
                width = kind.nope_dim + kind.rope_dim
                return _divided(kind.num_heads, tp, model.name), width, width
            return 1, kind.rank + kind.rope_dim, 0
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


def _block_bytes(kept: Kept, block_tokens: int) -> int:
    """Bytes of one layer's block."""
    return sum(buffer.bytes(block_tokens) for buffer in kept.buffers)


def _indexer(kind: LayerKind) -> int:
    return kind.indexer_dim if isinstance(kind, Latent | Full) else 0


def _divided(heads: int, tp: int, name: str) -> int:
    """KV heads on one device; fewer heads than devices are replicated (configurations/builder.py:63)."""
    if heads % tp and tp % heads:
        raise UnsupportedError(f"lmdeploy does not divide {name}'s {heads} KV heads by {tp} devices")
    return max(1, heads // tp)


def _state(kind: State, tp: int, name: str) -> Kept:
    """The convolution's columns and the recurrent part of a sequence in one layer: 16 bits a number.

    Source: lmdeploy 0.18.0 pytorch/configurations/qwen3_5.py:52 (the kernel's whole width; with
    LMDEPLOY_FP32_MAMBA_SSM_DTYPE the recurrent part is float32).
    """
    if kind.conv_channels % tp or kind.recurrent_elements % tp:
        raise UnsupportedError(f"lmdeploy does not divide {name}'s states by {tp} devices")
    conv = kind.conv_channels // tp * kind.conv_kernel * 2
    return Kept(states=(("conv", conv), ("recurrent", kind.recurrent_elements // tp * 2)))


def _compressed(kind: Compressed) -> Kept:
    """DeepSeek V4: its window, and the KV and the scores that its next entry is made of, as states; entries in blocks.

    With a ratio of 4 entries overlap: twice the rows, each twice as wide, and those of its indexer.
    Source: lmdeploy 0.18.0 pytorch/configurations/deepseek_v4.py, pytorch/backends/cuda/v4_compressor.py:73.
    """
    states = [("window", kind.window * _V4_ENTRY_BYTES)]
    buffers: list[Buffer] = []
    if kind.ratio:
        overlap = 2 if kind.ratio == 4 else 1
        rows = 2 * overlap * kind.ratio
        states.append((f"entry_{kind.ratio}", rows * overlap * kind.width * 4))
        buffers.append(Buffer(_V4_ENTRY_BYTES, kind.ratio))
        if kind.indexer_dim:
            states.append((f"index_{kind.ratio}", rows * overlap * kind.indexer_dim * 4))
            buffers.append(Buffer(kind.indexer_dim + 4, kind.ratio))
    return Kept(tuple(buffers), tuple(states))
