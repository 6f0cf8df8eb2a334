"""vLLM's own planner and KV cache manager beside kvcalc: random models, flags and memories, compared to the byte.

Needs the source of vllm 0.33.0 and hypothesis; neither torch nor a GPU (what the planner imports besides its own rooms
is replaced by names). On a bare machine, in this repository::

    $ pip install . hypothesis
    $ pip install --no-deps --target engines/vllm vllm==0.33.0
    $ python tests/oracles/vllm.py engines/vllm 2000

Each case is a model (full, sliding, chunked and latent layers, indexers, states, compressed layers, a draft), a cache
format, parallel sizes, options, a memory, and several sequences that are driven through the manager. The last lines are
the counts; where the two differ, the smallest case that differs stands above them. ``--recorded`` asks for the plans of
tests/data/vllm.json instead, and says which of them vLLM answers otherwise.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.machinery
import importlib.util
import json
import math
import sys
import traceback
import types
from collections import Counter, deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comparison import Different, add_options, run, say, shape_of, table
from hypothesis import assume
from hypothesis import strategies as st

from kvcalc.architecture import (
    Architecture,
    Chunked,
    Compressed,
    Full,
    Latent,
    Layer,
    LayerKind,
    NoCache,
    Parallel,
    Shared,
    Sliding,
    State,
    distinct_layers,
    layer_kind,
    stage_bounds,
)
from kvcalc.dtypes import parse_kv_dtypes
from kvcalc.engines.vllm import Vllm, VllmPlan
from kvcalc.engines.vllm.specs import Spec
from kvcalc.errors import KVCalcError
from kvcalc.setup import Setup
from kvcalc.units import ceil_div

PACKAGE, VERSION = "vllm", "0.33.0"

# The files of vLLM that run as they are.
REAL = frozenset(
    f"vllm.{name}"
    for name in (
        "platforms.interface",
        "utils.math_utils",
        "model_executor.layers.mamba.mamba_utils",
        "model_executor.layers.quantization.turboquant.config",
        "v1.attention.ops.ultraquant.format",
        "v1.core.block_pool",
        "v1.core.kv_cache_config_builder",
        "v1.core.kv_cache_coordinator",
        "v1.core.kv_cache_manager",
        "v1.core.kv_cache_metrics",
        "v1.core.kv_cache_planning",
        "v1.core.kv_cache_utils",
        "v1.core.single_type_kv_cache_manager",
        "v1.kv_cache_interface",
        "v1.kv_cache_layout",
        "v1.kv_cache_spec_registry",
        "v1.request",
    )
)
ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1, "float8_e4m3fn": 1, "float8_e5m2": 1, "int8": 1}


class _Anything(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


class _Name(metaclass=_Anything):
    """What an import that the planner does not use stands for: any attribute, any call, a decorator."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *args: Any, **_: Any) -> Any:
        return args[0] if args and callable(args[0]) else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name()


class _NameModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, source: Path) -> None:
        self.source = source

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name in REAL:
            return importlib.util.spec_from_file_location(name, self.source / (name.replace(".", "/") + ".py"))
        if name.split(".", maxsplit=1)[0] in ("vllm", "torch", "numpy", "msgspec", "cbor2", "zmq", "xxhash"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        module = _NameModule(spec.name)
        for name, value in _given(spec.name).items():
            setattr(module, name, value)
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _given(name: str) -> dict[str, Any]:
    """The few functions outside of the real files that the planner calls."""
    match name:
        case "torch":
            return {each: each for each in ELEMENT_BYTES} | {"dtype": str}
        case "vllm.utils.torch_utils":
            return {
                "get_dtype_size": ELEMENT_BYTES.__getitem__,
                "get_kv_cache_torch_dtype": lambda cache, model: model if cache == "auto" else cache,
                "STR_DTYPE_TO_TORCH_DTYPE": {each: each for each in ELEMENT_BYTES} | TORCH_TYPES,
            }
        case "vllm.distributed":
            return {"divide": _divided}
        case "vllm.v1.attention.backend":
            return {"MultipleOf": _MultipleOf}
        case "vllm.v1.hisparse.layout":
            return {"get_hisparse_kv_cache_groups": lambda *_: None}
        case "vllm.config.vllm":
            return {"set_current_vllm_config": lambda _: nullcontext()}
        case "vllm.config.cache":
            return {"get_kv_cache_dtype_handler": lambda _: None}
        case "vllm.model_executor.layers.mamba.abstract":
            return {"get_mamba_prefill_checkpoint_alignment": lambda config: config.checkpoint_alignment}
        case "vllm.model_executor.models":
            return {"ModelRegistry": SimpleNamespace(resolve_model_cls=lambda model, model_config: (model, None))}
        case _:
            return {}


@dataclass(frozen=True)
class _MultipleOf:
    base: int


def _divided(count: int, parts: int) -> int:
    assert count % parts == 0, f"{count} is not divisible by {parts}"
    return count // parts


#: A format of kvcalc -> vLLM's ``--kv-cache-dtype`` and the element that it stores.
TORCH_TYPES = {
    "fp8_e4m3": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
    "fp8_per_token_head": "float8_e4m3fn",
    "int8_per_token_head": "int8",
    "int4_per_token_head": "uint8",
    "nvfp4": "uint8",
    "fp8_ds_mla": "uint8",
    "nvfp4_ds_mla": "uint8",
    "turboquant_k8v4": "uint8",
    "turboquant_4bit_nc": "uint8",
    "turboquant_k3v4_nc": "uint8",
    "turboquant_3bit_nc": "uint8",
    "ultraquant_4bit": "uint8",
}
FORMATS = {"fp8": "fp8_e4m3"}  # the user's word, and what the platform makes of it
LATENT_BYTES = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}


@dataclass(frozen=True)
class Case:
    """One question to both."""

    layers: tuple[LayerKind, ...]
    draft: tuple[LayerKind, ...]
    dtype: str
    tensor_parallel_size: int
    options: tuple[tuple[str, Any], ...]
    context: int
    memory_blocks: int
    lengths: tuple[int, ...]

    @property
    def setup(self) -> Setup:
        draft = architecture(self.draft) if self.draft else None
        options = dict(self.options)
        if not self.draft:
            options.pop("num_speculative_tokens", None)
        engine = Vllm(**options)
        formats = parse_kv_dtypes(self.dtype)
        return Setup(architecture(self.layers), engine, *formats, self.tensor_parallel_size, draft=draft)


def architecture(kinds: tuple[LayerKind, ...]) -> Architecture:
    layers, order = distinct_layers([Layer(cache=kind) for kind in kinds])
    # Mamba-2's states have groups, those of gated delta nets none; their classes ask for states of their own.
    states = [state for kind in kinds if (state := _state(kind)) is not None]
    model_type = "random" if not states else "nemotron_h" if any(state.groups for state in states) else "qwen3_next"
    return Architecture("random", model_type, layers, order, hidden_size=1, vocab_size=1)


def _state(kind: LayerKind) -> State | None:
    return kind.state if isinstance(kind, Parallel) else kind if isinstance(kind, State) else None


def _hands_out_delta_states(case: Case, engine: Vllm) -> bool:
    """qwen_gdn_linear_attn.py:692."""
    is_delta = case.setup.architecture.model_type == "qwen3_next"
    return is_delta and engine.enable_prefix_caching and engine.gdn_prefill_backend == "flashinfer"


class Planner:
    """vLLM's planner and manager, asked what kvcalc is asked."""

    def __init__(self, source: Path) -> None:
        sys.meta_path.insert(0, _Finder(source))
        from importlib import import_module

        self.planning = import_module("vllm.v1.core.kv_cache_planning")
        self.utils = import_module("vllm.v1.core.kv_cache_utils")
        builders = import_module("vllm.v1.core.kv_cache_config_builder")
        builders.get_kv_cache_config_builder = lambda _: self.planning.DefaultKVCacheConfigBuilder()  # type: ignore[attr-defined]
        self.interface = import_module("vllm.v1.kv_cache_interface")
        self.manager = import_module("vllm.v1.core.kv_cache_manager")
        self.layout = import_module("vllm.v1.kv_cache_layout").KVCacheLayout
        self.platform = import_module("vllm.platforms.interface").Platform
        self.mamba = import_module("vllm.model_executor.layers.mamba.mamba_utils")
        self.turboquant = import_module("vllm.model_executor.layers.quantization.turboquant.config").TurboQuantConfig
        self.ultraquant = import_module("vllm.v1.attention.ops.ultraquant.format")
        # One function of a room that needs torch.
        attention = ast.parse(
            (source / "vllm/model_executor/layers/attention/attention.py").read_text(encoding="utf-8")
        )
        wanted = [each for each in attention.body if getattr(each, "name", "") == "_largest_kernel_block_within"]
        room: dict[str, Any] = {"AttentionBackend": Any, "KVCacheSpec": Any}
        exec(compile(ast.Module(wanted, []), "attention.py", "exec"), room)  # noqa: S102
        self.kernel_block = room["_largest_kernel_block_within"]

    def config(self, case: Case, engine: Vllm, context: int) -> Any:
        """What of VllmConfig the planner reads."""
        packs = any(isinstance(kind, Compressed) for kind in case.layers + case.draft)
        layout = self.layout.BLHNC if packs else self.layout.LBNHC
        speculated = engine.speculated_tokens(case.setup) if case.draft else 0
        return SimpleNamespace(
            scheduler_config=SimpleNamespace(
                disable_hybrid_kv_cache_manager=engine.disable_hybrid_kv_cache_manager,
                max_num_encoder_input_tokens=engine.max_num_batched_tokens,
            ),
            cache_config=SimpleNamespace(
                get_resolved_kv_cache_layout=lambda: layout,
                num_gpu_blocks_override=engine.num_gpu_blocks_override,
                prefix_cache_retention_interval=0,
                mamba_cache_mode="align" if engine.enable_prefix_caching else "none",
                enable_prefix_caching=engine.enable_prefix_caching,
                block_size=engine.block_size_for(case.setup.architecture, case.setup.k_dtype),
                cache_dtype="auto" if case.dtype == "bfloat16" else case.dtype,
                kv_cache_dtype_skip_layers=[],
                mamba_page_size_padded=None,
                mamba_block_size=context,
                skip_page_size_padded=None,
            ),
            attention_config=SimpleNamespace(hisparse_config=None),
            model_config=SimpleNamespace(
                max_model_len=context,
                original_max_model_len=context,
                supports_kv_cache_grouping=False,
                dtype="bfloat16",
            ),
            parallel_config=SimpleNamespace(
                decode_context_parallel_size=engine.decode_context_parallel_size,
                prefill_context_parallel_size=engine.prefill_context_parallel_size,
                tensor_parallel_size=case.tensor_parallel_size,
            ),
            speculative_config=None,
            checkpoint_alignment=64 if _hands_out_delta_states(case, engine) else None,
            num_speculative_tokens=speculated,
            num_prefill_lookahead_tokens=0,
            max_in_flight_tokens=engine.tokens_in_flight,
            max_concurrent_batches=engine.batches_in_flight,
        )

    def attention(self, case: Case, config: Any, heads: int, key: int, value: int, **changes: Any) -> Any:
        """A layer's spec with what its backend packs (customize_spec of triton_attn, flashinfer, turboquant ...)."""
        mode = self.interface.get_kv_quant_mode(case.dtype)
        element = ELEMENT_BYTES[TORCH_TYPES.get(case.dtype, case.dtype)]
        per_device = max(1, heads // case.tensor_parallel_size)
        packed: dict[str, Any] = {}
        if case.dtype == "nvfp4":
            assert key == value
            packed = {"num_head_slots": 2 * per_device, "state_content_bytes": key // 2 + key // 16}
        elif case.dtype.endswith("_per_token_head"):
            halves = 2 if case.dtype.startswith("int4") else 1
            packed = {"state_content_bytes": (key // halves + value // halves) * element + 8}
        elif case.dtype.startswith("turboquant"):
            assert key == value
            packed = {"state_content_bytes": self.turboquant.from_cache_dtype(case.dtype, key).slot_size_aligned}
        elif case.dtype == "ultraquant_4bit":
            assert key == value
            packed = {"state_content_bytes": self.ultraquant.slot_size(key, 32)}
        kind = changes.pop("spec", self.interface.FullAttentionSpec)
        made = kind(
            block_size=config.cache_config.block_size,
            num_kv_heads=per_device,
            head_size=key,
            head_size_v=value,
            dtype=TORCH_TYPES.get(case.dtype, case.dtype),
            kv_quant_mode=mode,
            **packed,
            **changes,
        )
        if kind is not self.interface.SlidingWindowSpec:
            return made
        # As the layer chooses its block (model_executor/layers/attention/attention.py, get_kv_cache_spec).
        shared, block_size = config.cache_config.skip_page_size_padded, config.cache_config.block_size
        token_bytes = replace(made, block_size=1).real_page_size_bytes
        sizes = [16, 32, 64, 128] if case.dtype.startswith("turboquant") else [_MultipleOf(16)]
        backend = SimpleNamespace(get_supported_kernel_block_sizes=lambda _: sizes)
        within = self.kernel_block(backend, token_bytes, shared or token_bytes * block_size, block_size, made)
        return replace(made, block_size=within, page_size_padded=shared)

    def latent(self, case: Case, config: Any, kind: Latent, *, sparse: bool) -> Any:
        spec = self.interface
        dtype = "fp8_ds_mla" if sparse and case.dtype.startswith("fp8_e") else case.dtype
        common = {
            "block_size": config.cache_config.block_size,
            "num_kv_heads": 1,
            "head_size": kind.rank + kind.rope_dim,
            "dtype": TORCH_TYPES.get(dtype, dtype),
            "cache_dtype_str": dtype,
            "kv_quant_mode": spec.get_kv_quant_mode(dtype),
            "state_content_bytes": LATENT_BYTES.get(dtype),
        }
        if kind.window is not None:
            return spec.SlidingWindowMLASpec(**common, sliding_window=kind.window)
        return spec.MLAAttentionSpec(**common, is_index_group_leader=bool(kind.indexer_dim))

    def indexer(self, config: Any, width: int, dtype: str, **changes: Any) -> Any:
        roles = self.interface.SparseCacheRole
        block_size = config.cache_config.block_size
        return self.interface.MLAAttentionSpec(
            block_size=block_size, num_kv_heads=1, head_size=width, dtype=dtype, cache_role=roles.INDEXER, **changes
        )

    def state(self, case: Case, config: Any, kind: State, engine: Vllm) -> Any:
        """A gated delta net's or Mamba-2's state, by vLLM's own shapes and formats."""
        shapes, dtypes = self.mamba.MambaStateShapeCalculator, self.mamba.MambaStateDtypeCalculator
        tp, spec = case.tensor_parallel_size, config.num_speculative_tokens
        stated = engine.mamba_ssm_cache_dtype
        if stated == "auto" and kind.recurrent_dtype != "model":
            stated = kind.recurrent_dtype
        if kind.groups:
            size = kind.group_channels // 2
            inner = kind.conv_channels - kind.groups * kind.group_channels
            found = shapes.mamba2_state_shape(
                tp, inner, kind.groups, inner // 64, 64, size, kind.conv_kernel, num_spec=spec
            )
        else:
            heads = kind.recurrent_elements // (128 * 128)
            keys = (kind.conv_channels - heads * 128) // 256
            found = shapes.gated_delta_net_state_shape(tp, keys, heads, 128, 128, kind.conv_kernel, num_spec=spec)
        formats = dtypes.gated_delta_net_state_dtype("bfloat16", engine.mamba_cache_dtype, stated)
        return self.interface.MambaSpec(
            block_size=config.cache_config.mamba_block_size,
            shapes=tuple(tuple(shape) for shape in found),
            dtypes=formats,
            page_size_padded=config.cache_config.mamba_page_size_padded,
            mamba_cache_mode=config.cache_config.mamba_cache_mode,
            num_speculative_blocks=spec,
            # mamba_mixer2.py:1116 and qwen_gdn_linear_attn.py:745
            num_prefill_checkpoint_blocks=int(
                case.setup.architecture.model_type == "nemotron_h" or _hands_out_delta_states(case, engine)
            ),
        )

    def compressed(self, case: Case, config: Any, kind: Compressed, engine: Vllm) -> list[Any]:
        """DeepSeek V4's caches (models/deepseek_v4/attention.py, compressor.py, mla/sparse_swa.py)."""
        spec = self.interface
        packed = case.dtype.startswith("fp8")
        dtype, content, alignment = ("uint8", 584, 576) if packed else ("bfloat16", None, 512)
        common = {"num_kv_heads": 1, "head_size": 512, "dtype": dtype, "alignment": alignment}
        found = [
            spec.SlidingWindowMLASpec(
                block_size=64,
                sliding_window=kind.window,
                state_content_bytes=content,
                model_version="deepseek_v4",
                **common,
            )
        ]
        if kind.ratio is None:
            return found
        found.append(
            spec.MLAAttentionSpec(
                block_size=config.cache_config.block_size,
                tokens_per_state=kind.ratio,
                state_content_bytes=content,
                model_version="deepseek_v4",
                **common,
            )
        )
        widths = [512]
        if kind.indexer_dim:
            size = 68 if engine.indexer_kv_dtype == "mxfp4" else 256 if engine.indexer_kv_dtype == "bf16" else 132
            found.append(
                self.interface.MLAAttentionSpec(
                    block_size=config.cache_config.block_size,
                    num_kv_heads=1,
                    head_size=size,
                    dtype="uint8",
                    tokens_per_state=kind.ratio,
                    alignment=alignment,
                )
            )
            widths.append(128)
        overlap, rows = (2, 4) if kind.ratio == 4 else (1, 8)
        states = [
            spec.SlidingWindowMLASpec(
                block_size=rows,
                num_kv_heads=1,
                head_size=2 * overlap * width,
                dtype="float32",
                sliding_window=overlap * kind.ratio,
                alignment=alignment,
            )
            for width in widths
        ]
        return [*found, *states]

    def layer(self, case: Case, config: Any, kind: LayerKind, engine: Vllm, *, sparse: bool) -> list[Any]:
        spec = self.interface
        match kind:
            case Shared() | NoCache():
                return []
            case Parallel():
                inner = self.layer(case, config, kind.attention, engine, sparse=sparse)
                return [*inner, self.state(case, config, kind.state, engine)]
            case State():
                return [self.state(case, config, kind, engine)]
            case Compressed():
                return self.compressed(case, config, kind, engine)
            case Latent():
                found = [self.latent(case, config, kind, sparse=sparse)]
                if kind.indexer_dim:
                    size = {"mxfp4": 68, "bf16": 256}.get(engine.indexer_kv_dtype, 132)
                    found.append(self.indexer(config, size, "uint8"))
                return found
            case Sliding():
                made = {"spec": spec.SlidingWindowSpec, "sliding_window": kind.window}
                if engine.decode_context_parallel_size > 1:
                    raise ValueError("DCP not support sliding window.")
            case Chunked():
                made = {"spec": spec.ChunkedLocalAttentionSpec, "attention_chunk_size": kind.chunk}
                if engine.decode_context_parallel_size > 1:
                    raise ValueError("DCP not support chunks.")
            case _:
                made = {}
        assert isinstance(kind, Full | Sliding | Chunked)
        found = [self.attention(case, config, kind.num_kv_heads, kind.head_dim, kind.v_head_dim, **made)]
        if isinstance(kind, Full) and kind.indexer_dim:
            if engine.indexer_kv_dtype == "mxfp4":
                raise NotImplementedError("only bf16 or fp8")
            dtype = {"fp8": "float8_e4m3fn"}.get(engine.indexer_kv_dtype, "bfloat16")
            found.append(self.indexer(config, kind.indexer_dim, dtype))
        return found

    def raise_block(self, case: Case, config: Any, engine: Vllm) -> None:
        """Platform._align_hybrid_block_size itself, on the first full layer (or, without one, the first)."""
        kinds = [kind.attention if isinstance(kind, Parallel) else kind for kind in case.layers]
        states = [kind.state if isinstance(kind, Parallel) else kind for kind in case.layers]
        states = [kind for kind in states if isinstance(kind, State)]
        attention = [kind for kind in kinds if isinstance(kind, Full | Latent | Sliding)]
        if not states or not attention:
            return
        first = next((kind for kind in attention if isinstance(kind, Full | Latent)), attention[0])
        largest = max(
            (self.state(case, config, kind, engine) for kind in states), key=lambda spec: spec.page_size_bytes
        )
        is_latent = isinstance(first, Latent)
        heads = 1 if is_latent else max(1, first.num_kv_heads // case.tensor_parallel_size)
        width = first.rank + first.rope_dim if is_latent else first.head_dim

        class Backend:
            @staticmethod
            def get_supported_kernel_block_sizes() -> list[Any]:
                return [_MultipleOf(16)]

            @staticmethod
            def customize_spec(spec: Any) -> Any:
                wanted = self.attention(case, config, 1, width, width)
                return replace(
                    spec,
                    num_head_slots=None if wanted.num_head_slots is None else 2 * heads,
                    state_content_bytes=wanted.state_content_bytes,
                )

        class Platform(self.platform):  # type: ignore[misc, name-defined]
            @classmethod
            def _find_non_ssm_backends(cls, _: Any) -> list[Any]:
                return [Backend]

        class Model:
            @staticmethod
            def get_mamba_state_shape_from_config(_: Any) -> Any:
                return largest.shapes

            @staticmethod
            def get_mamba_state_dtype_from_config(_: Any) -> Any:
                return largest.dtypes

        config.model_config.use_mla = is_latent
        config.model_config.architecture = Model
        config.model_config.get_num_kv_heads = lambda _: heads
        config.model_config.get_head_size = lambda: width
        cache_dtype = config.cache_config.cache_dtype
        if cache_dtype.startswith("turboquant") or cache_dtype == "ultraquant_4bit":
            # These are asked of their backend by name, which is not one of the real files here.
            slot = self.attention(case, config, 1, width, width)
            config.cache_config.cache_dtype = "auto"
            Backend.customize_spec = staticmethod(  # type: ignore[method-assign]
                lambda spec: replace(spec, state_content_bytes=slot.state_content_bytes)
            )
        if is_latent and case.dtype in LATENT_BYTES:
            raise NotImplementedError("a packed latent beside states is one token of another size to the platform")
        Platform._align_hybrid_block_size(config, Backend)
        config.cache_config.cache_dtype = cache_dtype

    def skipped(self, case: Case, config: Any) -> set[int]:
        """The layers that TurboQuant leaves alone, with Platform._align_heterogeneous_kv_block_size for their pages."""
        is_hybrid = any(isinstance(kind, State | Parallel) for kind in case.layers)
        if not case.dtype.startswith("turboquant") or is_hybrid:
            return set()
        stated = SimpleNamespace(is_hybrid=False, hf_text_config=SimpleNamespace(num_hidden_layers=len(case.layers)))
        skipped = {int(each) for each in self.turboquant.get_boundary_skip_layers(stated)}
        full = next((kind for kind in case.layers if isinstance(kind, Full | Sliding)), None)
        if full is None or not skipped:
            return skipped

        class Backend:
            @staticmethod
            def get_supported_kernel_block_sizes() -> list[Any]:
                return [16, 32, 64, 128]

            @staticmethod
            def customize_spec(spec: Any) -> Any:
                if not spec.kv_quant_mode.is_turboquant:
                    return spec
                slot = self.turboquant.from_cache_dtype(case.dtype, full.head_dim).slot_size_aligned
                return replace(spec, state_content_bytes=slot)

        config.model_config.get_num_kv_heads = lambda _: max(1, full.num_kv_heads // case.tensor_parallel_size)
        config.model_config.get_head_size = lambda: full.head_dim
        config.cache_config.kv_cache_dtype_skip_layers = [str(each) for each in skipped]
        self.platform._align_heterogeneous_kv_block_size.__func__(self.platform, config, Backend)
        return skipped

    def specs(self, case: Case, engine: Vllm, config: Any) -> list[dict[str, Any]]:
        """The specs of each worker, layer by layer."""
        self.raise_block(case, config, engine)
        skipped = self.skipped(case, config)
        sparse = any(isinstance(kind, Latent) and kind.indexer_dim for kind in case.layers)
        named: list[tuple[int, str, Any]] = []
        plain = replace(case, dtype="bfloat16")
        for position, kind in enumerate(case.layers + case.draft):
            asked_for = plain if position in skipped else case
            for number, spec in enumerate(self.layer(asked_for, config, kind, engine, sparse=sparse)):
                named.append((min(position, len(case.layers) - 1), f"layer.{position}.{number}", spec))
        stages = stage_bounds(len(case.layers), engine.pipeline_parallel_size)
        return [{name: spec for at, name, spec in named if first <= at < last} for first, last in stages]


def checked(case: Case, engine: Vllm) -> None:
    """What vLLM checks before it plans: parallel sizes (ModelConfig.verify_with_parallel_config, ParallelConfig), and

    that some attention backend takes the cache format.
    """
    _check_formats(case)
    tp, dcp, pcp = case.tensor_parallel_size, engine.decode_context_parallel_size, engine.prefill_context_parallel_size
    if engine.pipeline_parallel_size > len(case.layers):
        raise ValueError("more stages than layers")
    kinds = [kind.attention if isinstance(kind, Parallel) else kind for kind in case.layers]
    heads = [kind.num_kv_heads for kind in kinds if isinstance(kind, Full | Sliding | Chunked)]
    if any(count % tp if count >= tp else tp % count for count in heads):
        raise ValueError("heads are not divisible")
    if any(kind.num_heads % tp for kind in kinds if isinstance(kind, Latent)):
        raise ValueError("heads are not divisible")
    if tp % dcp if pcp == 1 else dcp not in (1, pcp, tp * pcp):
        raise ValueError("context parallel sizes")
    if dcp > 1 and any(isinstance(kind, Compressed) for kind in case.layers + case.draft):
        raise ValueError("windows")


def _check_formats(case: Case) -> None:
    """Latents stay as they are, in fp8 or in a ds_mla layout, which nothing else has; V4's layers have two formats."""
    kinds = [kind.attention if isinstance(kind, Parallel) else kind for kind in case.layers + case.draft]
    for kind in kinds:
        packed = case.dtype.startswith(("turboquant", "ultraquant")) or case.dtype == "nvfp4"
        if isinstance(kind, Latent) and packed:
            raise ValueError("no backend for latents in this format")
        if isinstance(kind, Latent) and case.dtype.endswith("_per_token_head"):
            raise ValueError("no backend for latents in this format")
        if isinstance(kind, Full | Sliding | Chunked) and case.dtype in LATENT_BYTES:
            raise ValueError("no backend for K and V in this format")
        if isinstance(kind, Compressed) and not (case.dtype.startswith("fp8") or case.dtype == "bfloat16"):
            raise ValueError("DeepseekV4 takes fp8 or bfloat16")


def asked(planner: Planner, case: Case, memory: int | None = None) -> dict[str, Any]:
    """What vLLM answers, in a memory of the case's blocks or of these bytes; raises what vLLM raises."""
    setup = case.setup
    engine = setup.engine
    assert isinstance(engine, Vllm)
    checked(case, engine)
    config = planner.config(case, engine, case.context)
    workers = planner.specs(case, engine, config)
    if not any(workers):
        return {"blocks": 0}
    groups = planner.planning.get_global_kv_cache_groups(config, workers)
    builder = planner.planning.DefaultKVCacheConfigBuilder()
    of_workers = [planner.planning._project_kv_cache_groups_to_worker(groups, each) for each in workers]
    per_block = [planner.planning._pool_bytes_per_block(config, each) for each in of_workers]
    if not all(per_block):
        raise ValueError("a worker without a cache")
    needs = [planner.planning._max_memory_usage_bytes_from_groups(builder, config, each) for each in of_workers]
    block = max(per_block)
    memory = case.memory_blocks * block + block // 2 if memory is None else memory
    scheduler_config = SimpleNamespace(kv_cache_groups=groups, num_blocks=memory // block)
    for group in scheduler_config.kv_cache_groups:  # as generate_scheduler_kv_cache_config
        if isinstance(group.kv_cache_spec, planner.interface.UniformTypeKVCacheSpecs):
            group.kv_cache_spec = next(iter(group.kv_cache_spec.kv_cache_specs.values()))
    if engine.num_gpu_blocks_override is not None:
        scheduler_config.num_blocks = engine.num_gpu_blocks_override
    tokens, concurrency = planner.utils.get_kv_cache_capacity(config, scheduler_config)
    pool = memory if engine.num_gpu_blocks_override is None else engine.num_gpu_blocks_override * block
    return {
        "groups": len(groups),
        "group_size": max(len(group.layer_names) for group in groups),
        "bytes_per_block": block,
        "max_request_bytes": max(needs),
        "num_gpu_blocks": scheduler_config.num_blocks,
        "tokens": tokens,
        "concurrency": concurrency,
        "fits": max(needs) <= pool - block,
        "config": scheduler_config,
        "vllm_config": config,
    }


def told(plan: VllmPlan, case: Case) -> dict[str, Any]:
    """What kvcalc answers to the same."""
    if not plan.groups:
        return {"blocks": 0}
    report = plan.report(case.context, 1, case.memory_blocks * plan.bytes_per_block + plan.bytes_per_block // 2)
    return {
        "groups": plan.num_groups,
        "group_size": plan.group_size,
        "bytes_per_block": plan.bytes_per_block,
        "max_request_bytes": report["max_request_bytes"],
        "num_gpu_blocks": report["num_gpu_blocks"],
        "tokens": report["gpu_kv_cache_size_tokens"],
        "concurrency": report["max_concurrency"],
        "fits": report["fits"],
    }


def driven(planner: Planner, case: Case, answer: dict[str, Any], batch_size: int) -> int:
    """The most blocks that so many sequences at a time held, first come first served through vLLM's manager.

    As the scheduler does (v1/core/sched/scheduler.py): running sequences first, in order, one budget of tokens a step.
    A sequence that has ended is one of those at a time, and holds its blocks, until the output of its last step
    arrives; no step has tokens of it meanwhile.
    """
    engine, config = case.setup.engine, answer["vllm_config"]
    assert isinstance(engine, Vllm)
    dcp = engine.decode_context_parallel_size
    answer["config"].num_blocks = 2**16
    kv_config = planner.interface.KVCacheConfig(
        num_blocks=2**16, kv_cache_tensors=[], kv_cache_groups=answer["config"].kv_cache_groups
    )
    block_sizes = [
        planner.utils.resolve_dcp_kv_block_size(group.kv_cache_spec, dcp) for group in kv_config.kv_cache_groups
    ]
    size = math.lcm(*block_sizes)
    manager = planner.manager.KVCacheManager(
        kv_config,
        max_model_len=max(case.lengths),
        scheduler_block_size=size,
        hash_block_size=size,
        max_in_flight_tokens=config.max_in_flight_tokens,
        enable_caching=False,
        dcp_world_size=dcp,
    )
    speculated = config.num_speculative_tokens
    # A drafter writes K and V of its own ahead of a step; n-grams have none (v1/core/sched/scheduler.py).
    lookahead = speculated if case.draft else 0
    waiting = deque(
        SimpleNamespace(
            request_id=str(number),
            num_computed_tokens=0,
            num_in_flight_tokens=0,
            num_tokens=length,
            num_prompt_tokens=max(1, length - number % 4),
            status=None,
            target=length,
        )
        for number, length in enumerate(case.lengths)
    )
    running: list[Any] = []
    under_way: deque[list[tuple[Any, int]]] = deque()
    most = 0
    while waiting or running:
        if len(under_way) == engine.batches_in_flight:  # the oldest step's output arrives
            for request, count in under_way.popleft():
                request.num_in_flight_tokens -= count
        for request in [each for each in running if each.num_computed_tokens == each.target]:
            if not request.num_in_flight_tokens:
                manager.free(request)
                running.remove(request)
        while waiting and len(running) < batch_size:
            running.append(waiting.popleft())
        budget, step = engine.max_num_batched_tokens, []
        for request in running:
            left = request.num_prompt_tokens - request.num_computed_tokens
            if left <= 0:  # the prompt is through: a token and those speculated in each step
                left = min(request.target - request.num_computed_tokens, 1 + speculated)
            count = min(left, budget)
            if count > 0:
                given = manager.allocate_slots(request, count, num_lookahead_tokens=lookahead)
                assert given is not None, "the pool is full"
                step.append((request, count))
                budget -= count
        for request, count in step:
            request.num_computed_tokens += count
            request.num_in_flight_tokens += count
        under_way.append(step)
        most = max(most, kv_config.num_blocks - 1 - manager.block_pool.get_num_free_blocks())
    return most


# ---- random cases -----------------------------------------------------------------------------------------------

heads = st.sampled_from([1, 2, 3, 4, 5, 8, 16])
widths = st.sampled_from([32, 64, 80, 96, 128, 192, 256, 512])


@st.composite
def fulls(draw: Callable[..., Any], indexer: int = 0) -> Full:
    width = draw(widths)
    return Full(draw(heads), width, draw(st.sampled_from([width, width, width, 64, 128])), indexer)


@st.composite
def slidings(draw: Callable[..., Any]) -> Sliding:
    width = draw(widths)
    return Sliding(draw(st.sampled_from([1, 2, 100, 128, 512, 1024, 4096])), draw(heads), width, width)


@st.composite
def chunkeds(draw: Callable[..., Any]) -> Chunked:
    width = draw(widths)
    return Chunked(draw(st.sampled_from([32, 100, 1024, 8192])), draw(heads), width, width)


def latent_of(rank: int, rope: int, heads: int, window: int | None, indexer: int) -> Latent:
    # vLLM merges windows over latents of any width, so that the first sets the page of all: no model has two widths.
    return (
        Latent(rank, rope, heads, 128, 128, None, indexer)
        if window is None
        else Latent(512, 64, heads, 128, 128, window)
    )


latents = st.builds(
    latent_of,
    st.sampled_from([256, 512]),
    st.sampled_from([0, 32, 64]),
    st.sampled_from([8, 16, 128]),
    st.sampled_from([None, None, None, 128]),
    st.sampled_from([0, 0, 128]),
)


@st.composite
def states(draw: Callable[..., Any]) -> State:
    kernel, dtype = draw(st.sampled_from([2, 4])), draw(st.sampled_from(["model", "float32"]))
    if draw(st.booleans()):
        count, keys = draw(st.sampled_from([8, 16, 32, 48])), draw(st.sampled_from([8, 16]))
        return State(count * 128 * 128, dtype, 2 * keys * 128 + count * 128, kernel)
    inner, groups, size = (
        draw(st.sampled_from([1024, 4096])),
        draw(st.sampled_from([1, 2, 8])),
        draw(st.sampled_from([64, 128])),
    )
    return State(inner * size, dtype, inner + 2 * groups * size, kernel, groups=groups, group_channels=2 * size)


compresseds = st.sampled_from(
    [Compressed(512, 128), Compressed(512, 128, 4, 128), Compressed(512, 128, 128), Compressed(512, 256, 4, 128)]
)
parallels = st.builds(Parallel, st.one_of(fulls(), slidings()), states())
PALETTES = (
    st.lists(fulls(), min_size=1, max_size=2),
    st.lists(st.one_of(fulls(), slidings()), min_size=1, max_size=3),
    st.lists(st.one_of(fulls(), slidings(), chunkeds()), min_size=1, max_size=3),
    st.lists(latents, min_size=1, max_size=2),
    st.lists(st.one_of(latents, slidings()), min_size=1, max_size=3),
    st.tuples(states(), fulls()).map(list),
    st.tuples(states(), st.one_of(fulls(), latents, slidings()), states()).map(list),
    st.lists(parallels, min_size=1, max_size=2),
    st.lists(compresseds, min_size=1, max_size=3),
    st.tuples(fulls(), fulls(indexer=128)).map(list),
    st.tuples(slidings(), fulls(), st.just(Shared()), st.just(NoCache())).map(list),
)


def _attention(kind: LayerKind) -> LayerKind:
    return kind.attention if isinstance(kind, Parallel) else kind


def _shares(heads: int, devices: int) -> bool:
    return heads % devices == 0 if heads >= devices else devices % heads == 0


def _all_full(layers: tuple[LayerKind, ...]) -> bool:
    kinds = [_attention(kind) for kind in layers]
    return not any(isinstance(kind, Sliding | Chunked | Compressed) or getattr(kind, "window", None) for kind in kinds)


def _formats(layers: tuple[LayerKind, ...]) -> list[str]:
    """The formats that all layers have."""
    kinds = {type(_attention(kind)) for kind in layers}
    if Compressed in kinds:
        return ["bfloat16", "fp8_e4m3"]
    common = ["bfloat16", "bfloat16", "float16", "float32", "fp8_e4m3", "fp8_e5m2"]
    if Latent in kinds:
        return common if kinds & {Full, Sliding, Chunked} else [*common, *LATENT_BYTES]
    return [*common, *(each for each in TORCH_TYPES if each not in LATENT_BYTES)]


@st.composite
def cases(draw: Callable[..., Any]) -> Case:
    palette = draw(st.one_of(*PALETTES))
    states = [state for kind in palette if (state := _state(kind)) is not None]
    assume(len({state.groups > 0 for state in states}) <= 1)  # no model has Mamba-2 and gated delta nets
    runs = [(kind, draw(st.integers(1, 9))) for kind in palette]
    repeat = draw(st.integers(1, 3))
    layers = tuple(kind for kind, count in runs * repeat for _ in range(count))
    draft: tuple[LayerKind, ...] = ()
    if draw(st.integers(0, 3)) == 0:
        attention = [kind for kind in palette if isinstance(kind, Full | Sliding | Latent | Compressed)]
        same = st.sampled_from(attention) if attention else fulls()
        draft = (draw(st.one_of(same, fulls())),) * draw(st.integers(1, 5))
    options: dict[str, Any] = {
        "max_num_batched_tokens": draw(st.sampled_from([16, 100, 512, 2048, 8192])),
        "async_scheduling": draw(st.booleans()),
        "disable_hybrid_kv_cache_manager": draw(st.integers(0, 9)) == 0,
        "pipeline_parallel_size": draw(st.sampled_from([1, 1, 1, 1, 2, 3])),
        "decode_context_parallel_size": draw(st.sampled_from([1, 1, 1, 1, 2, 4])),
        "enable_prefix_caching": draw(st.integers(0, 3)) == 0,
        "num_speculative_tokens": draw(st.integers(1, 4)),
        "gdn_prefill_backend": draw(st.sampled_from(["triton", "flashinfer"])),
        "mamba_cache_dtype": draw(st.sampled_from(["auto", "auto", "float32"])),
        "mamba_ssm_cache_dtype": draw(st.sampled_from(["auto", "auto", "float32", "float16"])),
        "indexer_kv_dtype": draw(st.sampled_from(["auto", "auto", "mxfp4", "bf16"])),
    }
    if not any(isinstance(kind, Compressed) for kind in layers) and draw(st.booleans()):
        options["block_size"] = draw(st.sampled_from([16, 32, 48, 64, 128]))
    if draw(st.integers(0, 9)) == 0:
        options["num_gpu_blocks_override"] = draw(st.integers(1, 5000))
    if draw(st.integers(0, 4)):  # mostly what vLLM starts
        counts = [kind.num_kv_heads for kind in map(_attention, layers) if isinstance(kind, Full | Sliding | Chunked)]
        tp = draw(st.sampled_from([size for size in (1, 2, 4, 8) if all(_shares(count, size) for count in counts)]))
        options["decode_context_parallel_size"] = draw(
            st.sampled_from([1, 1, 1, tp] if _all_full(layers + draft) else [1])
        )
        options["pipeline_parallel_size"] = min(options["pipeline_parallel_size"], max(1, len(layers) // 3))
        dtype = draw(st.sampled_from(_formats(layers + draft)))
    else:
        tp = draw(st.sampled_from([1, 2, 4, 8]))
        dtype = draw(st.sampled_from(["float16", "float32", *TORCH_TYPES]))
    context = draw(st.sampled_from([1, 15, 16, 17, 100, 1000, 4096, 5000, 32768, 131072]))
    lengths = draw(st.lists(st.integers(1, min(context, 1500)), min_size=3, max_size=8))
    return Case(
        layers,
        draft,
        dtype,
        tp,
        tuple(options.items()),
        context,
        draw(st.integers(1, 20_000)),
        tuple(lengths),
    )


def compared(planner: Planner, case: Case, counts: Counter[str], reasons: Counter[str]) -> None:
    """Ask both, and count how it ended."""
    try:
        plan = case.setup.plan
        ours: dict[str, Any] | KVCalcError = told(plan, case)  # type: ignore[arg-type]
    except KVCalcError as error:
        ours = error
    try:
        theirs: dict[str, Any] | Exception = asked(planner, case)
    except (ValueError, NotImplementedError, AssertionError, TypeError) as error:
        theirs = error
    if isinstance(ours, KVCalcError) or isinstance(theirs, Exception):
        if isinstance(ours, KVCalcError) and isinstance(theirs, Exception):
            counts["refused by both"] += 1
        elif isinstance(ours, KVCalcError):
            counts["refused by kvcalc alone"] += 1
            reasons[f"kvcalc: {shape_of(ours)}"] += 1
        else:
            counts["refused by vllm alone"] += 1
            where = traceback.extract_tb(theirs.__traceback__)[-1]
            reasons[f"vllm: {shape_of(theirs)} in {where.name}: {where.line}"] += 1
        return
    named = {name: value for name, value in theirs.items() if name not in ("config", "vllm_config")}
    if named != ours:
        raise Different(f"vllm {named}\nkvcalc {ours}")
    counts["equal"] += 1
    if "config" in theirs and not (case.setup.engine.enable_prefix_caching):  # type: ignore[attr-defined]
        _compare_sequences(planner, case, theirs, counts)


def _compare_sequences(planner: Planner, case: Case, theirs: dict[str, Any], counts: Counter[str]) -> None:
    plan = case.setup.plan
    assert isinstance(plan, VllmPlan)
    longest, batch = max(case.lengths), ceil_div(len(case.lengths), 2)
    if batch < 2 or batch * plan.step_tokens > plan.engine.max_num_batched_tokens:
        return
    bound = plan.blocks(longest, batch)
    for lengths in (case.lengths, (longest,) * len(case.lengths)):
        most = driven(planner, replace(case, lengths=lengths), theirs, batch)
        if most > bound:
            raise Different(f"{batch} sequences at a time of {lengths} held {most} blocks, more than {bound}")
        counts["driven"] += 1
    counts["held by equal sequences"] += most
    counts["bound of equal sequences"] += bound


def recorded(planner: Planner) -> int:
    """Ask for the recorded plans of tests/data/vllm.json once more; how many are not what the file says."""
    data = json.loads((Path(__file__).parents[1] / "data" / "vllm.json").read_text(encoding="utf-8"))
    columns, rows = data["planner_0_33_0"]["columns"], data["planner_0_33_0"]["rows"]
    same = ("groups", "group_size", "bytes_per_block", "num_gpu_blocks", "tokens", "concurrency")
    others = 0
    for values in rows:
        row = dict(zip(columns, values, strict=True))
        entry = data["models"][row["model"]]
        options = {"max_num_batched_tokens": row["max_num_batched_tokens"], "block_size": row["block_size"]}
        case = Case(
            layers=tuple(layer_kind(entry["kinds"][letter]) for letter in entry["order"]),
            draft=(),
            dtype=FORMATS.get(row["kv_cache_dtype"], row["kv_cache_dtype"]),
            tensor_parallel_size=row["tp"],
            options=tuple((options | row["options"]).items()),
            context=row["max_model_len"],
            memory_blocks=0,
            lengths=(),
        )
        found = asked(planner, case, row["kv_memory"])
        refused = row["tokens"] is None  # "an estimate without tokens belongs to a refusal"
        equal = found["max_request_bytes"] == row["request_bytes"] and found["fits"] != refused
        if not equal or (not refused and any(found[name] != row[name] for name in same)):
            others += 1
            say(
                f"recorded: {row}",
                f"now:      { {name: found[name] for name in (*same, 'max_request_bytes', 'fits')} }",
            )
    say(f"{len(rows):,} recorded plans of vLLM {VERSION}, {others} of them different now")
    return others


def main() -> int:
    """Run the cases and print the counts."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("source", type=Path, help="the folder that holds vllm/")
    add_options(arguments, cases=5000, fault="make kvcalc's pages one byte too wide")
    arguments.add_argument("--recorded", action="store_true", help="ask for the plans of tests/data/vllm.json again")
    asked_for = arguments.parse_args()
    planner = Planner(asked_for.source)
    if asked_for.recorded:
        return 1 if recorded(planner) else 0
    if asked_for.fault:
        right = Spec.own_page.fget
        Spec.own_page = property(lambda spec: right(spec) + 1)  # type: ignore[assignment, misc]
    say(f"{PACKAGE} {VERSION}, seed {asked_for.seed}")
    outcome = run(cases(), partial(compared, planner), asked_for.cases, asked_for.seed)
    rows = ("cases", "equal", "refused by both", "refused by kvcalc alone", "refused by vllm alone", "driven")
    counts, tightness = outcome.counts, list[str]()
    if counts["held by equal sequences"]:
        tight = counts["bound of equal sequences"] / counts["held by equal sequences"] - 1
        tightness = [f"sequences of one length: kvcalc says {tight:.1%} more blocks than the schedule that was driven"]
    return table(outcome, rows, *tightness)


if __name__ == "__main__":
    sys.exit(main())
