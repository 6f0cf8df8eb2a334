"""TensorRT-LLM: its options, and which of its two managers serves a model."""

from __future__ import annotations

from ctypes import c_float
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from kvcalc.architecture import Architecture, Chunked, Compressed, Cross, Full, LayerKind, NoCache, Sliding
from kvcalc.engines.base import Plan, Server, refuse_formats
from kvcalc.engines.options import EngineOptions
from kvcalc.engines.releases import release
from kvcalc.engines.tensorrt_llm.models import BUILT, check_model, layer_parts, owner_of, uses_pools
from kvcalc.engines.tensorrt_llm.pools import Cycle, PoolsPlan, pools_of
from kvcalc.engines.tensorrt_llm.shares import SharesPlan, WindowPool
from kvcalc.errors import KVCalcError, NotModelledError, UnsupportedError
from kvcalc.units import MAX_TOKENS, parse_counts

if TYPE_CHECKING:
    from kvcalc.device import Platform
    from kvcalc.setup import Setup

_DTYPES = frozenset({"bfloat16", "float16", "float32", "fp8_e4m3", "int8", "nvfp4"})
#: Tokens of a block that DeepSeek V4's manager has (deepseek_v4/cache_manager.py at 015279e0fc9d); the first is taken.
_V4_BLOCKS = (128, 256)
#: The release from which on PyTorch runs a model where nobody says (trtllm-serve, --backend).
_PYTORCH_SINCE = (1, 0, 0)


class TensorRTLLM(EngineOptions):
    """TensorRT-LLM's blocks, by the rule of its source."""

    name: ClassVar[str] = "tensorrt-llm"
    summary: ClassVar[str] = (
        "TensorRT-LLM's blocks: a pool a window size with an equal share, or pools of its V2 manager"
    )
    follows: ClassVar[str] = "000439672005"
    formula: ClassVar[str] = (
        "blocks(w) = batch size x ceil(min(context, w) / tokens_per_block), for each window size w\n"
        "bytes = number of windows x max over w of blocks(w) x tokens_per_block x bytes of a token in w's layers\n"
        "bytes of a token = layers x ceil(KV heads / tp) x 2 x head dim x element bytes (MLA: one latent, whole)\n"
        "a pool gives w: int(pool / number of windows / bytes of a token // tokens_per_block) blocks\n"
        "an engine that is built rounds up: ceil(int(fraction x free / bytes of a token) / tokens_per_block)\n"
        "states, several head widths, compressed layers (V2): pools of buffers of one size, each rounded up to 2 MiB\n"
        "(to 32 MiB from 16 GiB on); states have a slot a sequence and one more"
    )
    weight_formats: ClassVar[tuple[str, ...]] = ("fp8", "int8_channel", "awq", "nvfp4")
    sources: ClassVar[tuple[str, ...]] = (
        "TensorRT-LLM 001541bad83b _torch/pyexecutor/resource_manager.py (KVCacheManager V1)",
        "TensorRT-LLM 0.12 to 0.16 cpp/tensorrt_llm/batch_manager/kvCacheManager.cpp, calculateMaxNumBlocks (built)",
        "TensorRT-LLM _torch/pyexecutor/_util.py at 000439672005 (which manager), runtime/kv_cache_manager_v2 (V2)",
        "TensorRT-LLM _torch/attention_backend/sparse: dsa, deepseek_v4, minimax_m3; _torch/models/_arch_index.py",
    )
    not_modelled: ClassVar[tuple[str, ...]] = (
        "TRTLLM_WINDOW_SIZE_SHARES: the shares are equal; models that V1 serves when they are told to use V2",
        "the spare block of a sliding window, and the shrinking of windows when one sequence does not fit",
        "what a prefill chunk holds before a window (V2), snapshots of states, drafts beside states",
        "the caches of AutoDeploy where they are no plain blocks",
    )
    platforms: ClassVar[frozenset[Platform]] = frozenset({"cuda"})
    evidence: ClassVar[str] = (
        "against its own managers' Python with random models (tests/oracles/tensorrt_llm.py), and against servers' "
        "printed figures; MiniMax M3's index keys are read from the source alone"
    )
    server: ClassVar[Server | None] = Server(
        ("trtllm-serve", "{model}"),
        {
            "context": "--max_seq_len",
            "batch_size": "--max_batch_size",
            "tensor_parallel_size": "--tp_size",
            "utilization": "--kv_cache_free_gpu_memory_fraction",
        },
    )
    follows_cache_of: ClassVar[frozenset[str]] = frozenset({"modelopt"})

    version: str = Field("1.4.0rc1", description="release; before 1.0 models run in engines that are built")
    backend: Literal["pytorch", "tensorrt"] | None = Field(
        None,
        description="what runs the model; tensorrt: an engine that is built, which rounds blocks up; none: by version",
    )
    tokens_per_block: int = Field(
        32, ge=1, le=2**20, description="tokens of a block; where nobody names it 128 for DeepSeek V4"
    )
    max_attention_window: tuple[Annotated[int, Field(ge=1, le=MAX_TOKENS)], ...] | None = Field(
        None,
        max_length=1024,
        description="window of each layer, repeated over the layers, as 1024,1024,131072; none: every layer is full, "
        "but in models of the V2 manager each has its own",
    )
    free_gpu_memory_fraction: float | None = Field(
        None,
        ge=1e-6,
        lt=1,
        description="part of the KV memory that becomes the pool; none: all of it (TensorRT-LLM: 0.9 of what is free)",
    )
    max_batch_size: int | None = Field(
        None, ge=1, le=2**20, description="sequences that states have slots for; none: those that are asked about"
    )
    mamba_ssm_cache_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="format of the recurrent part of states; auto: by the model"
    )
    cross_kv_cache_fraction: float | None = Field(
        None, gt=0, lt=1, description="part of the pool that an encoder's tokens have; encoder-decoders need it"
    )

    @field_validator("version")
    @classmethod
    def _known_version(cls, version: str) -> str:
        release(version)  # raises ValueError where the text is no version
        return version

    @field_validator("max_attention_window", mode="before")
    @classmethod
    def _windows(cls, value: object) -> object:
        if value in ((), []):
            raise ValueError("max_attention_window takes one window or more")
        if isinstance(value, str):
            try:
                return tuple(parse_counts(value, "max_attention_window"))
            except KVCalcError as error:
                raise ValueError(error.message) from None
        return (value,) if isinstance(value, int) and not isinstance(value, bool) else value

    @property
    def batch_limit(self) -> int | None:
        """``max_batch_size``, where it is given."""
        return self.max_batch_size

    @property
    def _builds(self) -> bool:
        if self.backend is None:
            return release(self.version) < _PYTORCH_SINCE
        return self.backend == "tensorrt"

    def prepare(self, setup: Setup) -> Plan:
        """The windows or the pools of the layers, each with its bytes.

        Raises:
            UnsupportedError: TensorRT-LLM does not run the model, or not in this setup.
            NotModelledError: it has a manager for it that was not read.
        """
        refuse_formats("tensorrt-llm", setup, _DTYPES)
        notes = [*check_model(setup)]
        if any(isinstance(kind, Full) and kind.indexer_dim for kind, _ in setup.served.caches):
            notes.append("tensorrt-llm's rule for index keys beside K and V is read from its source and not run")
        if not uses_pools(setup.served):
            return self._shares(setup, notes)
        if self._builds:
            raise UnsupportedError(
                f"tensorrt-llm builds no engine of a model like {setup.architecture.name} "
                "(kvCacheManager.cpp: K and V of one width in every layer)",
                hint="leave backend out",
            )
        return self._pools(setup, notes)

    def _by_window(self, architecture: Architecture) -> dict[int | None, dict[LayerKind, int]]:
        """The layers with a cache of each window: that of the option, none, or with pools the layers' own."""
        option, own = self.max_attention_window, _own_windows(architecture)
        found: dict[int | None, dict[LayerKind, int]] = {}
        for position, index in enumerate(architecture.order):
            kind = architecture.layers[index].cache
            if not isinstance(kind, NoCache):
                if option is None or isinstance(kind, Compressed):
                    window = own.get(kind)
                else:
                    window = option[position % len(option)]
                members = found.setdefault(window, {})
                members[kind] = members.get(kind, 0) + 1
        return {window: found[window] for window in sorted(found, key=lambda each: each or MAX_TOKENS + 1)}

    def _shares(self, setup: Setup, notes: list[str]) -> SharesPlan:
        architecture, option = setup.served, self.max_attention_window
        groups: list[tuple[int | None, int | None, dict[LayerKind, int]]]
        groups = [(window, None, members) for window, members in self._by_window(architecture).items()]
        shares = [Fraction(1, len(groups))] * len(groups)
        cross: dict[LayerKind, int] = {kind: count for kind, count in architecture.caches if isinstance(kind, Cross)}
        if cross:
            encoder = self._encoder_share(architecture)
            shares = [*((1 - encoder) * share for share in shares), encoder]
            groups.append((None, setup.encoder_tokens, cross))
        windows = []
        for (window, tokens, members), share in zip(groups, shares, strict=True):
            layers = tuple((kind, count, _token_bytes(kind, setup)) for kind, count in members.items())
            windows.append(WindowPool(window, sum(count * each for _, count, each in layers), layers, share, tokens))
        built = self._builds or architecture.model_type in BUILT
        if built and len(windows) > 1:
            raise NotModelledError(
                "tensorrt-llm is not modelled for several windows in an engine that is built: its shares were not read",
                hint="one max_attention_window, or a model that its PyTorch backend has",
            )
        fraction, rounded_up = self.free_gpu_memory_fraction, 0
        if built and fraction is not None:  # C++ has a float of 32 bits, and rounds the blocks of a free memory up
            fraction, rounded_up = c_float(fraction).value, self.tokens_per_block - 1
        if option is None and architecture.windows:
            notes.append("without max_attention_window every layer is allocated at full length")
        own = len(windows) - bool(cross)
        why = (
            f"{own} windows, 1/{own} of the pool each"
            if own > 1
            else f"all {architecture.num_layers} layers {'full' if option is None else f'at window {option[0]}'}"
        )
        return SharesPlan(tuple(windows), self.tokens_per_block, fraction, rounded_up, why, tuple(notes))

    def _encoder_share(self, architecture: Architecture) -> Fraction:
        if self.cross_kv_cache_fraction is None:
            raise UnsupportedError(
                f"tensorrt-llm serves {architecture.name} with a cross_kv_cache_fraction alone "
                "(_torch/pyexecutor/_util.py at 000439672005, _split_kv_cache_budget_for_cross)",
                hint="-E cross_kv_cache_fraction=0.5, or another part of the pool for the encoder's tokens",
            )
        return Fraction(self.cross_kv_cache_fraction)

    def _pools(self, setup: Setup, notes: list[str]) -> PoolsPlan:
        architecture = setup.served
        compressed = any(isinstance(kind, Compressed) for kind, _ in architecture.caches)
        named = "tokens_per_block" in self.model_fields_set
        block = self.tokens_per_block if named or not compressed else _V4_BLOCKS[0]
        if compressed and block not in _V4_BLOCKS:
            raise UnsupportedError(
                f"tensorrt-llm has blocks of 128 or 256 tokens for compressed layers, not {block} "
                "(_torch/attention_backend/sparse/deepseek_v4/cache_manager.py at 015279e0fc9d)",
                hint="leave tokens_per_block out",
            )
        layers = []
        for window, members in self._by_window(architecture).items():
            for kind, count in members.items():
                parts = layer_parts(kind, setup, self.mamba_ssm_cache_dtype)
                cycles = tuple((Cycle(part.window or window, slots=not part.ratio), part) for part in parts)
                layers.append((kind, count, cycles))
        notes.append(
            "how V2 divides its memory among its pools follows avg_seq_len: set to the requests that are asked about"
        )
        if compressed:
            notes.append("on Hopper tensorrt-llm serves DeepSeek V4 with fp8_ds_mla alone, which is not modelled")
        return PoolsPlan(
            tuple(layers),
            pools_of(tuple(layers), block),
            block,
            self.max_batch_size,
            self.free_gpu_memory_fraction,
            f"blocks of {block} tokens in pools of KVCacheManagerV2",
            tuple(notes),
        )


def _own_windows(architecture: Architecture) -> dict[LayerKind, int]:
    """The window of each sliding layer where the V2 manager serves the model, and not all layers have that one."""
    windows, full = {}, False
    for kind, _ in architecture.caches:
        owner = owner_of(kind, architecture)
        if isinstance(owner, Sliding):
            windows[kind] = owner.window
        full = full or isinstance(owner, Full | Chunked)
    mixed = full or len(set(windows.values())) > 1
    return windows if uses_pools(architecture) and mixed else {}


def _token_bytes(kind: LayerKind, setup: Setup) -> int:
    """Bytes of one token in one layer on one device."""
    return sum(sum(part.token_bytes) for part in layer_parts(kind, setup))
