"""What the caches of a model's layers are to vLLM: a spec for each, and the attention block beside states.

Source: vllm 0.33.0 v1/kv_cache_interface.py, model_executor/layers/attention, models/deepseek_v4; what older versions
do otherwise stands in :mod:`kvcalc.engines.vllm.versions`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import lcm
from typing import TYPE_CHECKING, Literal

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
    window_of,
)
from kvcalc.dtypes import DTYPES, DType
from kvcalc.engines.base import refuse_latent_formats
from kvcalc.engines.vllm.options import VllmOptions
from kvcalc.errors import NotModelledError, UnsupportedError
from kvcalc.units import ceil_div, round_up

if TYPE_CHECKING:
    from kvcalc.setup import Setup

#: What a spec is to the planner (its KVCacheSpec class): the names of the layer kinds, and windows over latents.
Form = Literal["full", "latent", "sliding", "sliding latent", "chunked", "cross", "state"]

#: Tokens of an attention kernel's block; blocks beside states grow in whole ones.
KERNEL_BLOCK = 16

#: Tokens of a chunk of FlashInfer's gated delta net (FLASHINFER_GDN_CHECKPOINT_ALIGNMENT): it hands states out there.
CHECKPOINT_BLOCK = 64

# vllm 0.33.0 models/commandr.py:244 passes sliding_window + 1, so that 4096 becomes 4097.
_WINDOW_PLUS_ONE_MODELS = frozenset({"cohere2"})

#: Tokens of the blocks that TurboQuant's kernels take (v1/attention/backends/turboquant_attn.py:164).
_PACKED_BLOCKS = (16, 32, 64, 128)

#: Forms that keep every token.
FULL = ("full", "latent")


@dataclass(frozen=True, slots=True)
class Spec:
    """What one cache of one layer is to vLLM (its KVCacheSpec); layers with equal specs may share a group.

    Attributes:
        form: its class.
        block_size: tokens in one page.
        heads: KV heads on one device.
        key_bytes, value_bytes: one token's K and V of one head, scales included.
        ratio: tokens that one stored entry stands for.
        window: tokens of the window or chunk.
        state_bytes: bytes of one state.
        alignment: a page is rounded up to so many bytes.
        role: what it keeps where that is not K and V: ``indexer``; of TurboQuant ``skipped`` (left in the model's
            format) and, of windows, ``packed``.
        padded_page: the page's bytes where padding sets them.
    """

    form: Form
    block_size: int
    heads: int = 1
    key_bytes: int = 0
    value_bytes: int = 0
    ratio: int = 1
    window: int = 0
    state_bytes: int = 0
    alignment: int = 1
    role: str = ""
    padded_page: int | None = None

    @property
    def token_bytes(self) -> int:
        """Bytes of one stored entry, all heads of the device together."""
        return self.heads * (self.key_bytes + self.value_bytes)

    @property
    def own_page(self) -> int:
        """Bytes of one block of one such layer, without padding."""
        return self.state_bytes if self.form == "state" else self.block_size // self.ratio * self.token_bytes

    @property
    def page(self) -> int:
        """Bytes of one block of one such layer."""
        return self.padded_page or round_up(self.own_page, self.alignment)


@dataclass(frozen=True, slots=True)
class Owned:
    """One cache: the layer that keeps it, which row of the answer it belongs to, and its spec.

    ``row`` is the index of the layer kind in ``setup.architecture.caches``, or None for a cache of the draft.
    """

    position: int
    row: int | None
    spec: Spec


def owned_caches(engine: VllmOptions, setup: Setup) -> list[Owned]:
    """The caches of the model and of its draft, layer by layer; layers that keep none own none."""
    rows = {kind: index for index, (kind, _) in enumerate(setup.architecture.caches)}
    served, last = setup.served, setup.architecture.num_layers
    specs = [list(_layer_specs(engine, setup, layer)) for layer in served.layers]
    owned = [
        Owned(position, rows[kind] if position < last else None, spec)
        for position, index in enumerate(served.order)
        for kind, spec in specs[index]
    ]
    return _skipping_boundaries(engine, setup, owned)


def _layer_specs(engine: VllmOptions, setup: Setup, layer: Layer) -> Iterator[tuple[LayerKind, Spec]]:
    kept = layer.cache
    for kind in (kept.attention, kept.state) if isinstance(kept, Parallel) else (kept,):
        for spec in _specs(engine, setup, kind):
            yield kept, spec
    if layer.cross is not None:
        for spec in _specs(engine, setup, layer.cross):
            yield layer.cross, spec


def _specs(engine: VllmOptions, setup: Setup, kind: LayerKind) -> Iterator[Spec]:
    """The caches of one layer of a kind: one, none, or several beside each other."""
    dtype, model = setup.k_dtype, setup.architecture
    block_size = engine.block_size_for(model, dtype)
    match kind:
        case Shared() | NoCache():
            return
        case Full() | Sliding() | Chunked() | Cross():
            if not isinstance(kind, Cross) and kind.extra_state_bytes:
                raise UnsupportedError(
                    f"vllm has no attention that keeps a fixed state beside K and V, as {model.name}'s does: no "
                    "release from 0.11.0 to 0.33.0 has a class for Baichuan-M1 (model_executor/models/registry.py)"
                )
            refuse_latent_formats(kind, dtype)
            heads = max(1, kind.num_kv_heads // setup.tensor_parallel_size)
            key, value = _head_bytes(model.name, dtype, kind.head_dim, kind.v_head_dim)
            window = window_of(kind) or 0
            if isinstance(kind, Sliding) and model.model_type in _WINDOW_PLUS_ONE_MODELS:
                window += 1
            yield Spec(kind.kind, block_size, heads, key, value, window=window)
            if isinstance(kind, Full) and kind.indexer_dim:
                # MiniMax-M3 keeps its index keys in bfloat16 (models/minimax_m3/common/indexer.py:147).
                yield Spec("latent", block_size, 1, _indexer_bytes(engine, kind.indexer_dim, "bf16"), role="indexer")
        case Latent():
            if dtype.head_scale_bytes or dtype.name == "nvfp4" or dtype.packed_bits:
                raise UnsupportedError(
                    f"vllm has no latent (MLA) layers in {dtype.name}", hint="use bfloat16, fp8 or fp8_ds_mla"
                )
            # One latent on every device, whatever the parallelism; sparse attention reads fp8 as fp8_ds_mla.
            packed = DTYPES["fp8_ds_mla"] if model.has_sparse_latents and dtype.name.startswith("fp8_e") else dtype
            size = packed.latent_token_bytes or packed.bytes_for(kind.rank + kind.rope_dim)
            if kind.window is None:
                yield Spec("latent", block_size, 1, size)
            else:
                yield Spec("sliding latent", block_size, 1, size, window=kind.window)
            if kind.indexer_dim:
                yield Spec("latent", block_size, 1, _indexer_bytes(engine, kind.indexer_dim, "fp8"), role="indexer")
        case State():
            yield Spec("state", block_size, state_bytes=_state_bytes(engine, setup, kind))
        case Compressed():  # pragma: no branch - a parallel layer's attention and state are given one by one
            yield from _compressed_specs(engine, setup, kind, block_size)


def _head_bytes(model: str, dtype: DType, key_width: int, value_width: int) -> tuple[int, int]:
    """Bytes of one token's K and V of one head, scales included.

    TurboQuant packs both into one slot, which counts here as K.
    """
    if dtype.packed_bits:
        if key_width != value_width:
            raise UnsupportedError(
                f"vllm packs K and V of one width, and {model}'s heads are {key_width} and {value_width} wide",
                hint="use fp8 or bfloat16",
            )
        return dtype.packed_head_bytes(key_width), 0
    if dtype.name == "nvfp4":
        if key_width != value_width:
            raise UnsupportedError(
                f"vllm has no nvfp4 cache for {model}, whose heads are {key_width} and {value_width} wide",
                hint="use fp8 or bfloat16",
            )
        # Half a byte a number and one scale for 16, both cut (vllm 0.33.0 utils/torch_utils.py:542).
        return key_width // 2 + key_width // 16, value_width // 2 + value_width // 16
    if dtype.name == "ultraquant_4bit" and (key_width != value_width or key_width % 32):
        raise UnsupportedError(
            f"vllm packs heads of whole 32 numbers, and {model}'s are {key_width} and {value_width} wide",
            hint="use fp8 or bfloat16",
        )
    if dtype.name == "int4_per_token_head":
        return key_width // 2 + dtype.head_scale_bytes, value_width // 2 + dtype.head_scale_bytes
    return (
        dtype.bytes_for(key_width) + dtype.head_scale_bytes,
        dtype.bytes_for(value_width) + dtype.head_scale_bytes,
    )


def _indexer_bytes(engine: VllmOptions, width: int, default: str) -> int:
    """Bytes of one index key: 128 numbers are 256, 128 + 4 (a float32 scale for each 128) or 64 + 4 (one for each 32).

    Source: vllm 0.33.0 models/deepseek_v4/attention.py:1020, model_executor/models/deepseek_v2.py:659.
    """
    match default if engine.indexer_kv_dtype == "auto" else engine.indexer_kv_dtype:
        case "bf16":
            return 2 * width
        case "mxfp4" if default == "bf16":
            raise UnsupportedError("vllm keeps MiniMax-M3's index keys in bf16 or fp8, not in mxfp4")
        case "mxfp4":
            return width // 2 + width // 32
        case _:
            return width if default == "bf16" else width + width // 128 * 4


def _state_bytes(engine: VllmOptions, setup: Setup, kind: State) -> int:
    """Bytes of one sequence's state on one device.

    "auto" is the model's format for both parts, unless the model itself asks for another one of the recurrent part.
    Source: vllm 0.33.0 model_executor/layers/mamba/mamba_utils.py, model_executor/models/config.py:817, :956.
    """
    tp, model = setup.tensor_parallel_size, setup.architecture
    # Groups of B and C that the devices do not divide are extended, so that each has those of its heads (mamba_utils
    # .py, extra_groups_for_head_shards): one group on 4 devices is four.
    extra = tp - kind.groups if kind.groups and kind.groups % tp else 0
    channels = kind.conv_channels + max(extra, 0) * kind.group_channels
    if kind.recurrent_elements % tp or channels % tp or extra < 0:
        raise UnsupportedError(
            f"vllm divides {model.name}'s states by tensor_parallel_size={tp}, which does not divide them",
            hint="use a power of two",
        )
    conv = engine.mamba_cache_dtype if engine.mamba_cache_dtype != "auto" else model_dtype(model)
    asked = conv if kind.recurrent_dtype == "model" else kind.recurrent_dtype
    recurrent = engine.mamba_ssm_cache_dtype if engine.mamba_ssm_cache_dtype != "auto" else asked
    # Every speculated token is one more column of the convolution.
    columns = kind.conv_kernel - 1 + engine.speculated_tokens(setup)
    size = DTYPES[recurrent].block_bytes * (kind.recurrent_elements // tp)
    return size + DTYPES[conv].block_bytes * (channels // tp) * columns


def model_dtype(model: Architecture) -> str:
    """The format in which vLLM runs a model: float32 is cast to bfloat16, quantised weights compute in it."""
    return model.dtype if model.dtype in ("bfloat16", "float16") else "bfloat16"


def _compressed_specs(engine: VllmOptions, setup: Setup, kind: Compressed, block_size: int) -> Iterator[Spec]:
    """DeepSeek V4's layers: a window of latents, compressed latents and index keys, and the states that compress.

    One token's latent is 448 bytes without and 128 with rope and 8 of scales; every page is a multiple of 576 bytes.
    Source: vllm 0.33.0 models/deepseek_v4/attention.py:859-930, compressor.py:140-205, v1/attention/backends/mla/
    sparse_swa.py:128.
    """
    dtype, model = setup.k_dtype, setup.architecture
    if kind.width != 512 or kind.ratio not in (None, 4, 128) or (kind.indexer_dim or 128) != 128:
        raise NotModelledError(
            f"how vllm keeps {model.name}'s compressed layers is known for DeepSeek V4's widths only"
        )
    if dtype.name.startswith("fp8"):
        token_bytes, alignment = 584, 576
    elif dtype.name == "bfloat16":
        token_bytes, alignment = 2 * kind.width, 512
    else:
        raise UnsupportedError(f"vllm has no compressed layers in {dtype.name}", hint="use fp8 or bfloat16")
    yield Spec("sliding latent", 64, 1, token_bytes, window=kind.window, alignment=alignment, role="window")
    if kind.ratio is None:
        return
    yield Spec("latent", block_size, 1, token_bytes, ratio=kind.ratio, alignment=alignment)
    # The states hold K and scores of the tokens that are not compressed yet, two windows of them where these overlap.
    overlap, rows = (2, 4) if kind.ratio == 4 else (1, 8)
    widths = [kind.width]
    if kind.indexer_dim:
        size = _indexer_bytes(engine, kind.indexer_dim, "fp8")
        yield Spec("latent", block_size, 1, size, ratio=kind.ratio, alignment=alignment, role="indexer")
        widths.append(kind.indexer_dim)
    for width in widths:
        size = 2 * overlap * width * 4
        window = overlap * kind.ratio
        yield Spec("sliding latent", rows, 1, size, window=window, alignment=alignment, role="compressor")


def _skipping_boundaries(engine: VllmOptions, setup: Setup, owned: list[Owned]) -> list[Owned]:
    """TurboQuant leaves the first two and the last two layers of a model without states in the model's format.

    Beside states it packs all attention; windows there, and several shapes, were driven to differ, and are refused.

    The packed block grows until it covers 16 tokens of a skipped layer. Full layers, packed or not, have that block, so
    that their pages have two sizes; windows have the largest block of their kernel within a packed page.

    Source: vllm 0.33.0 layers/quantization/turboquant/config.py (get_boundary_skip_layers), platforms/interface.py:823,
    model_executor/layers/attention/attention.py:101.
    """
    layers, model = setup.architecture.num_layers, setup.architecture.name
    own = [each.spec for each in owned if each.position < layers and each.spec.form != "state"]
    if not setup.k_dtype.name.startswith("turboquant") or not own:
        return owned
    has_states = any(each.spec.form == "state" for each in owned)
    forms = {"full", "state"} if has_states else {"full", "sliding"} if engine.rules.packs_windows else {"full"}
    if any(each.spec.form not in forms for each in owned) or len({(spec.heads, spec.key_bytes) for spec in own}) > 1:
        raise NotModelledError(
            f"not modelled: how vllm gives {model}'s layers of several kinds pages of one size with "
            f"{setup.k_dtype.name}",
            hint="use fp8 or nvfp4",
        )
    if has_states:
        return owned
    edge = min(2, layers // 2)
    model_format = DTYPES[model_dtype(setup.architecture)]
    plain = replace(setup, k_dtype=model_format, v_dtype=model_format)
    whole = {each.position: each.spec for each in owned_caches(engine, plain)}
    skipped = {at for at in whole if at < edge or layers - edge <= at < layers}
    token_bytes, unit = own[0].token_bytes, max(KERNEL_BLOCK, own[0].block_size)
    largest = max((whole[at].token_bytes for at in skipped), default=0)
    block_size = max(own[0].block_size, unit * ceil_div(largest * KERNEL_BLOCK, unit * token_bytes))
    page = block_size * token_bytes

    def changed(each: Owned) -> Owned:
        is_skipped = each.position in skipped
        spec = whole[each.position] if is_skipped else each.spec
        if spec.form == "full":
            return replace(each, spec=replace(spec, block_size=block_size, role="skipped" if is_skipped else ""))
        most = page // spec.token_bytes
        sizes = (most - most % KERNEL_BLOCK,) if is_skipped else _PACKED_BLOCKS
        block = max((size for size in sizes if size <= most), default=0)
        if not block:
            raise UnsupportedError(f"vllm cannot start {model}: a window of its draft is larger than a packed page")
        role = "skipped" if is_skipped else "packed"
        return replace(each, spec=replace(spec, block_size=block, padded_page=page if skipped else None, role=role))

    return [changed(each) for each in owned]


@dataclass(frozen=True, slots=True)
class RaisedBlock:
    """How the attention block of a model with states came about.

    Attributes:
        state_bytes: the largest state.
        token_bytes: one token of an attention layer, V counted as wide as K.
        unit: tokens in which the block grows.
        given: the block before it was raised.
        block_size: the block.
    """

    state_bytes: int
    token_bytes: int
    unit: int
    given: int
    block_size: int


def with_raised_block(engine: VllmOptions, setup: Setup, owned: list[Owned]) -> tuple[list[Owned], RaisedBlock | None]:
    """Raise the attention block until its page covers a state, which is then padded to it.

    Qwen3.5-27B: a state of 3,207,168 bytes over pages of 4,096 bytes a token is 783 tokens, so blocks of 784, or of 832
    where ``block_size`` is 64. A token counts here as if V were as wide as K.

    Source: vllm 0.33.0 platforms/interface.py:1032-1125.
    """
    rules, dtype = engine.rules, setup.k_dtype
    own = [each.spec for each in owned if each.row is not None]
    states = max((spec.state_bytes for spec in own if spec.form == "state"), default=0)
    attention = [spec for spec in own if spec.form != "state"]
    if not states or not attention:
        return owned, None
    spec = next((spec for spec in attention if spec.form in FULL), attention[0])
    is_latent = spec.form in ("latent", "sliding latent")
    token_bytes = spec.token_bytes if is_latent or dtype.packed_bits else spec.heads * 2 * spec.key_bytes
    unit = rules.latent_steps if is_latent else KERNEL_BLOCK
    if rules.steps_from_block_size:
        unit = max(unit, spec.block_size)
    if chunk := engine.chunk_of_every_state(setup):
        unit = lcm(unit, chunk)
    if engine.exports_delta_states(setup.architecture, engine.gdn_prefill_backend):
        unit = lcm(unit, CHECKPOINT_BLOCK)
    raised = round_up(unit * ceil_div(states, unit * token_bytes), KERNEL_BLOCK)
    block_size = max(raised, spec.block_size)
    page = block_size * token_bytes
    raised_to = [replace(each.spec, block_size=block_size) for each in owned]
    aligned = [
        replace(each, spec=replace(spec, padded_page=page) if spec.form == "state" else spec)
        for each, spec in zip(owned, raised_to, strict=True)
    ]
    return aligned, RaisedBlock(states, token_bytes, unit, spec.block_size, block_size)
