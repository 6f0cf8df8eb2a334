"""llama.cpp's own contexts beside kvcalc's: random models and settings, created by the library without memory.

On a bare machine with glibc 2.38 or later (Ubuntu 24.04)::

    $ pip install . hypothesis llama-cpp-py-sync==0.11739
    $ python tests/oracles/llama_cpp.py

That wheel ships libllama of b11739 (commit 0ce8cd114, ggml 0.27.0). With glibc 2.17 or later (Debian 12) the library
is taken from a wheel of b11549 beside it, whose cache is that of b11739, and the declarations from one of b11548::

    pip install . hypothesis llama-cpp-py-sync==0.11548 xllamacpp==2026.10.11549
    python tests/oracles/llama_cpp.py

LLAMA_CPP_LIB may name the library of another build. A model is made from metadata alone
(``llama_model_init_from_user`` with ``no_alloc``), its bytes are those of ``llama_get_memory_breakdown``; both run
in a child of their own, because ggml ends the process where it refuses a tensor.

``--record FILE`` writes the contexts and their bytes (tests/data/llama_cpp_b11739.json is ``260 --seed 1``);
``--fault`` adds one byte to a rule of kvcalc, which must be found.
"""

# ruff: noqa: S311 - imports after the path is mended; random models are no secrets
from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comparison import Different, add_options, run, table, write_rows
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
)
from kvcalc.errors import KVCalcError
from kvcalc.setup import prepare

# The library.

_GGUF_ARRAYS = {bool: (7, ctypes.c_int8), int: (4, ctypes.c_uint32), float: (6, ctypes.c_float)}
_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}


class Library:
    """libllama through the wheel's own declarations, and the calls of ggml-base that make a GGUF."""

    def __init__(self) -> None:
        from llama_cpp_py_sync import _cffi_bindings as bindings

        os.environ.setdefault("GGML_NO_BACKTRACE", "1")
        one_file = importlib.util.find_spec("xllamacpp")  # all of llama.cpp is in it
        usual = Path(bindings.__file__).with_name("libllama.so")
        if one_file is not None and one_file.origin is not None:
            usual = Path(one_file.origin).with_name("xllamacpp.abi3.so")
        path = Path(os.environ.get("LLAMA_CPP_LIB", usual))
        self.ffi = bindings.get_ffi()
        self.llama = self.ffi.dlopen(str(path))
        self.base = ctypes.CDLL(str(next(path.parent.glob("libggml-base.so*"), path)))
        self.base.gguf_init_empty.restype = ctypes.c_void_p
        self.breakdown = ctypes.CDLL(str(path))._Z26llama_get_memory_breakdownPK13llama_context
        self._buffer_name = self.base.ggml_backend_buft_name
        self._buffer_name.restype, self._buffer_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
        self.lines: list[str] = []
        self._log = self.ffi.callback("void(enum ggml_log_level, const char*, void*)", self._keep)
        self._fill = self.ffi.callback("void(struct ggml_tensor*, void*)", lambda tensor, data: None)
        self.llama.llama_log_set(self._log, self.ffi.NULL)
        self.llama.llama_backend_init()

    def _keep(self, level: int, text: Any, data: Any) -> None:
        self.lines.append(self.ffi.string(text).decode(errors="replace"))

    def model(self, metadata: dict[str, Any], n_gpu_layers: int = 0) -> Any:
        """A model of these metadata, without weights."""
        gguf = ctypes.c_void_p(self.base.gguf_init_empty())
        for name, value in metadata.items():
            self._set(gguf, name.encode(), value)
        params = self.llama.llama_model_default_params()
        params.no_alloc, params.n_gpu_layers, params.load_mtp = True, n_gpu_layers, True
        handle = self.ffi.cast("struct gguf_context*", gguf.value)
        model = self.llama.llama_model_init_from_user(handle, self._fill, self.ffi.NULL, params)
        if model == self.ffi.NULL:
            raise RuntimeError("".join(self.lines[-3:]))
        return model

    def _set(self, gguf: Any, name: bytes, value: Any) -> None:
        match value:
            case bool():
                self.base.gguf_set_val_bool(gguf, name, ctypes.c_bool(value))
            case int():
                self.base.gguf_set_val_u32(gguf, name, ctypes.c_uint32(value))
            case float():
                self.base.gguf_set_val_f32(gguf, name, ctypes.c_float(value))
            case str():
                self.base.gguf_set_val_str(gguf, name, value.encode())
            case list():
                code, kind = _GGUF_ARRAYS[type(value[0])]
                data = (kind * len(value))(*value)
                self.base.gguf_set_arr_data(gguf, name, code, data, ctypes.c_size_t(len(value)))

    def context(self, model: Any, params: dict[str, Any]) -> tuple[int, int]:
        """Bytes of a context's memory and of its compute buffers."""
        rows = self.buffers(model, params)
        return sum(row[1] for row in rows), sum(row[2] for row in rows)

    def buffers(self, model: Any, params: dict[str, Any]) -> list[tuple[str, int, int]]:
        """Each buffer type of a context with the bytes of its memory and of its compute buffer."""
        wanted = self.llama.llama_context_default_params()
        for name, value in params.items():
            setattr(wanted, name, value)
        context = self.llama.llama_init_from_model(model, wanted)
        if context == self.ffi.NULL:
            raise RuntimeError("".join(self.lines[-2:]))
        rows = self._breakdown(context)
        self.llama.llama_free(context)
        return [(self._buffer_name(row[0]).decode(), row[1], row[2]) for row in rows]

    def _breakdown(self, context: Any) -> list[tuple[int, int, int]]:
        """(buffer type, context, compute) of each: the nodes of the std::map that the call returns."""
        found, rows = (ctypes.c_uint64 * 6)(), []
        self.breakdown(ctypes.byref(found), ctypes.c_void_p(int(self.ffi.cast("uintptr_t", context))))

        def walk(node: int) -> None:  # colour, parent, left, right; then the key and the value
            if node:
                words = ctypes.cast(node, ctypes.POINTER(ctypes.c_uint64))
                walk(words[2])
                rows.append((words[4], words[6], words[7]))
                walk(words[3])

        walk(found[2])
        return rows


# Random models: metadata for llama.cpp, and the same model as kvcalc knows it.


@dataclass
class Model:
    """One random model."""

    arch: str
    model_type: str
    kinds: list[LayerKind]
    metadata: dict[str, Any]
    mtp: list[LayerKind] = field(default_factory=list)
    mla: bool = True

    @property
    def architecture(self) -> Architecture:
        layers, order = distinct_layers([Layer(cache=kind) for kind in self.kinds])
        mtp = tuple(Layer(cache=kind) for kind in self.mtp)
        return Architecture(self.arch, self.model_type, layers, order, 64, 256, mtp_layers=mtp)

    @property
    def full_metadata(self) -> dict[str, Any]:
        stated = {**_DEFAULTS, "block_count": len(self.kinds) + len(self.mtp), **self.metadata}
        if self.mtp:
            stated["nextn_predict_layers"] = len(self.mtp)
        named = {f"{self.arch}.{name}": value for name, value in stated.items() if value is not None}
        return {"general.architecture": self.arch, "tokenizer.ggml.model": "no_vocab", **named}


# What some architecture's loader insists on, and no cache depends on.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 256,
    "context_length": 4096,
    "embedding_length": 64,
    "feed_forward_length": 64,
    "leading_dense_block_count": 1,
    "use_parallel_residual": False,
    "logit_scale": 1.0,
    "residual_scale": 3.5,
    "attention.layer_norm_epsilon": 1e-5,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.q_lora_rank": 32,
    "attention.kv_lora_rank": 32,
    "attention.indexer.top_k": 1024,
    "attention.indexer.block_size": 4,
    "attention.indexer.local_blocks": 1,
    "rope.dimension_sections": [8, 8, 8, 8],
    "rope.freq_base_swa": 10000.0,
    "expert_feed_forward_length": 64,
    "expert_shared_feed_forward_length": 64,
    "expert_count": 4,
    "expert_used_count": 2,
    "expert_shared_count": 1,
    "expert_gating_func": 2,
    "expert_weights_scale": 1.0,
    "expert_weights_norm": True,
    "interleave_moe_layer_step": 2,
    "swiglu_clamp_exp": 7.0,
    "hyper_connection.count": 4,
    "hyper_connection.sinkhorn_iterations": 2,
    "hyper_connection.epsilon": 1e-6,
    "hyper_connection.magnitude": 2.0,
    "hyper_connection.low_rank": 8,
    "attn_res.block_size": 2,
    "activation.situ_beta": 4.0,
    "activation.situ_linear_beta": 25.0,
    "kda.gate_lower_bound": -5.0,
    "kda.safe_gate": True,
}


def _attention(rnd: Random) -> tuple[int, int, dict[str, Any]]:
    """KV heads, head dim, and the keys that state them."""
    kv_heads, dim = rnd.choice([1, 2, 4]), rnd.choice([32, 64, 80, 128])
    heads = kv_heads * rnd.choice([1, 2])
    stated = {
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": dim,
        "attention.value_length": dim,
        "rope.dimension_count": dim,
        "embedding_length": heads * dim,
    }
    return kv_heads, dim, stated


def uniform(arch: str, model_type: str) -> Callable[[Random], Model]:
    """Full layers only; a window that llama.cpp does not read is a sliding model to kvcalc."""

    def draw(rnd: Random) -> Model:
        heads, dim, stated = _attention(rnd)
        count = rnd.randint(1, 6)
        kind: LayerKind = Full(heads, dim, dim)
        if arch in ("phi3", "llama") and rnd.random() < 0.3:
            kind = Sliding(rnd.choice([32, 500]), heads, dim, dim)
            stated["attention.sliding_window"] = kind.window
        return Model(arch, model_type, [kind] * count, stated)

    return draw


def sliding(arch: str, model_type: str, *, layers: int | None = None, window: int | None = None) -> Any:
    """Local and global layers in any order; the pattern is written layer by layer."""

    def draw(rnd: Random) -> Model:
        heads, dim, stated = _attention(rnd)
        count = layers or rnd.randint(2, 8)
        width = window or rnd.choice([1, 100, 256, 1000, 2048])
        local = [rnd.random() < 0.6 for _ in range(count)]
        if not any(local):
            local[0] = True
        stated["attention.sliding_window"] = width
        stated["attention.sliding_window_pattern"] = local
        wide: LayerKind = Full(heads, dim, dim)
        near: LayerKind = Sliding(width, heads, dim, dim)
        if arch == "llama4":
            near = Chunked(width, heads, dim, dim)
        if arch == "mimo2":  # heads of its own in each layer, V narrower than K
            near, wide = Sliding(width, 2 * heads, 64, 32), Full(heads, 64, 32)
            stated |= {
                "attention.head_count": 2 * heads,
                "attention.head_count_kv": [2 * heads if each else heads for each in local],
                "attention.key_length": 64,
                "attention.value_length": 32,
                "rope.dimension_count": 64,
            }
        kinds = [near if each else wide for each in local]
        mtp: list[LayerKind] = []
        if arch in ("step35",) and rnd.random() < 0.4:
            mtp, stated["attention.sliding_window_pattern"] = [wide], [*local, False]
        return Model(arch, model_type, kinds, stated, mtp)

    return draw


def gemma4(rnd: Random) -> Model:
    """Local and global layers of other heads, the last of them without a cache of their own."""
    heads, dim, stated = _attention(rnd)
    window, swa_heads, swa_dim = rnd.choice([100, 512]), rnd.choice([1, 2, 8]), rnd.choice([32, 64])
    local = [True, True, False, True, False, True]
    shared = rnd.choice([0, 2])
    local[-1] = shared == 0
    near, wide = Sliding(window, swa_heads, swa_dim, swa_dim), Full(heads, dim, dim)
    kinds: list[LayerKind] = [near if each else wide for each in local]
    if shared:
        kinds[4:], local[4:] = [Shared(of="sliding"), Shared(of="full")], [True, False]
        kinds[2:4], local[2:4] = [near, wide], [True, False]
    stated |= {
        "attention.head_count": 8,
        "attention.head_count_kv": [swa_heads if each else heads for each in local],
        "attention.key_length_swa": swa_dim,
        "attention.value_length_swa": swa_dim,
        "attention.sliding_window": window,
        "attention.sliding_window_pattern": local,
        "attention.shared_kv_layers": shared,
        "embedding_length_per_layer_input": 32,
        "rope.dimension_count_swa": swa_dim,
        "expert_count": None,
        "expert_used_count": None,
    }
    return Model("gemma4", "gemma4", kinds, stated)


def gemma3n(rnd: Random) -> Model:
    """20 layers own a cache whatever the file says."""
    heads, dim, stated = _attention(rnd)
    window, count = rnd.choice([100, 512]), rnd.randint(22, 30)
    own: list[LayerKind] = [
        Full(heads, dim, dim) if at % 5 == 4 else Sliding(window, heads, dim, dim) for at in range(20)
    ]
    rest: list[LayerKind] = [Shared(of="full" if at % 5 == 4 else "sliding") for at in range(20, count)]
    stated |= {"attention.sliding_window": window, "embedding_length_per_layer_input": 32, "feed_forward_length": 64}
    return Model("gemma3n", "gemma3n", [*own, *rest], stated)


def _latent(rnd: Random) -> tuple[Latent, dict[str, Any]]:
    rank, rope, nope, value = rnd.choice([64, 128, 512]), rnd.choice([32, 64]), rnd.choice([32, 64]), 64
    stated = {
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + rope,
        "attention.value_length": rank,
        "attention.key_length_mla": nope + rope,
        "attention.value_length_mla": value,
        "rope.dimension_count": rope,
        "embedding_length": 128,
    }
    return Latent(rank, rope, 2, nope, value), stated


def latent(arch: str, model_type: str) -> Callable[[Random], Model]:
    """MLA; in deepseek2 also a file without the MLA keys."""

    def draw(rnd: Random) -> Model:
        kind, stated = _latent(rnd)
        count, mla = rnd.randint(1, 5), True
        if arch == "deepseek2" and rnd.random() < 0.3:
            mla = False
            stated |= {
                "attention.head_count_kv": 2,
                "attention.key_length": kind.nope_dim + kind.rope_dim,
                "attention.value_length": kind.v_head_dim,
                "attention.key_length_mla": None,
                "attention.value_length_mla": None,
            }
        mtp: list[LayerKind] = [kind] if arch == "deepseek2" and mla and rnd.random() < 0.3 else []
        return Model(arch, model_type, [kind] * count, stated, mtp, mla)

    return draw


def decompressed(rnd: Random) -> Model:
    """MiniCPM 3 stores the heads of its latents."""
    nope, rope, value, heads = 64, 32, 64, rnd.choice([1, 2, 4])
    stated = {
        "attention.head_count": heads,
        "attention.head_count_kv": heads,
        "attention.key_length": nope + rope,
        "attention.value_length": value,
        "rope.dimension_count": rope,
        "embedding_length": heads * value,
    }
    return Model("minicpm3", "minicpm3", [Latent(32, rope, heads, nope, value)] * rnd.randint(1, 5), stated)


def indexed(arch: str, model_type: str) -> Callable[[Random], Model]:
    """MLA with a sparse-attention indexer; in some, later layers use an earlier one's choice."""

    def draw(rnd: Random) -> Model:
        kind, stated = _latent(rnd)
        count, width = rnd.randint(2, 6), 128 if arch == "hy_v4" else rnd.choice([64, 128])
        owners = [at == 0 or rnd.random() < 0.5 for at in range(count)]
        if arch in ("deepseek32", "dots3note"):
            owners = [True] * count
        with_key = Latent(kind.rank, kind.rope_dim, 2, kind.nope_dim, kind.v_head_dim, indexer_dim=width)
        kinds: list[LayerKind] = [with_key if each else kind for each in owners]
        stated |= {"attention.indexer.head_count": 64, "attention.indexer.key_length": width}
        stated["attention.indexer.types"] = [int(each) for each in owners]
        if arch == "dots3note":
            window = rnd.choice([100, 512])
            near = Latent(kind.rank, kind.rope_dim, 2, kind.nope_dim, kind.v_head_dim, window=window)
            kinds = [near if at % 2 else each for at, each in enumerate(kinds)]
            stated |= {
                "attention.sliding_window": window,
                "attention.sliding_window_pattern": [bool(at % 2) for at in range(count)],
                "attention.kv_lora_rank_swa": kind.rank,
                "attention.key_length_swa": kind.rank + kind.rope_dim,
                "attention.value_length_swa": kind.rank,
                "attention.key_length_mla_swa": kind.nope_dim + kind.rope_dim,
                "attention.value_length_mla_swa": kind.v_head_dim,
            }
            stated["attention.indexer.types"] = [int(each and at % 2 == 0) for at, each in enumerate(owners)]
        mtp: list[LayerKind] = []
        if arch in ("glm-dsa", "deepseek32") and rnd.random() < 0.4:
            mtp = [with_key]
        return Model(arch, model_type, kinds, stated, mtp)

    return draw


def minimax_m3(rnd: Random) -> Model:
    """Leading layers without an indexer, the others with one of K and V."""
    heads, dim, stated = _attention(rnd)
    count, dense, width = rnd.randint(2, 6), rnd.randint(0, 2), rnd.choice([64, 128])
    kinds: list[LayerKind] = [Full(heads, dim, dim)] * dense + [Full(heads, dim, dim, indexer_dim=width)] * (
        count - dense
    )
    stated |= {"attention.indexer.head_count": heads, "attention.indexer.key_length": width}
    stated["leading_dense_block_count"] = dense
    return Model("minimax-m3", "minimax_m3", kinds, stated)


def deepseek4(rnd: Random) -> Model:
    """Windows, and an entry for each 4 or 128 tokens."""
    width, window, indexer = 64, rnd.choice([32, 128, 600]), 128
    ratios = [4, 128, *(rnd.choice([0, 4, 128]) for _ in range(rnd.randint(0, 5)))]
    rnd.shuffle(ratios)
    kinds: list[LayerKind] = [
        Compressed(width, window, ratio or None, indexer if ratio == 4 else 0) for ratio in ratios
    ]
    stated = {
        "embedding_length": 512,
        "attention.head_count": 8,
        "attention.head_count_kv": 1,
        "attention.key_length": width,
        "attention.value_length": width,
        "rope.dimension_count": 32,
        "attention.sliding_window": window,
        "attention.indexer.head_count": 64,
        "attention.indexer.key_length": indexer,
        "attention.output_group_count": 8,
        "attention.output_lora_rank": 32,
        "attention.compress_ratios": ratios,
        "attention.compress_rope_freq_base": 160000.0,
        "hash_layer_count": 0,
        "expert_gating_func": 4,
    }
    return Model("deepseek4", "deepseek_v4", kinds, stated)


def _state(rnd: Random, groups: int, inner: int = 0) -> tuple[State, dict[str, Any]]:
    kernel, inner, size = rnd.choice([2, 4]), inner or rnd.choice([256, 512]), 128
    stated = {
        "ssm.conv_kernel": kernel,
        "ssm.inner_size": inner,
        "ssm.state_size": size,
        "ssm.group_count": groups,
        "ssm.time_step_rank": inner // 128,
    }
    return State(size * inner, conv_channels=inner + 2 * groups * size, conv_kernel=kernel), stated


def hybrid(arch: str, model_type: str) -> Callable[[Random], Model]:
    """States and attention: by layers without KV heads, by an interval, or side by side."""

    def draw(rnd: Random) -> Model:
        heads, dim, stated = _attention(rnd)
        doubled = 2 * stated["embedding_length"] if arch in ("jamba", "granitehybrid") else 0
        state, stated_state = _state(rnd, 0 if arch == "jamba" else 2, doubled)
        count, every = rnd.choice([4, 8]), rnd.choice([2, 4])
        attends = [(at + 1) % every == 0 for at in range(count)]
        wide: LayerKind = Full(heads, dim, dim)
        stated |= stated_state
        if arch == "falcon-h1":
            return Model(arch, model_type, [Parallel(Full(heads, dim, dim), state)] * count, stated)
        if arch == "qwen4exp":
            wide = Full(heads, dim, dim, indexer_dim=dim)
            stated |= {"attention.indexer.head_count": heads, "attention.indexer.key_length": dim}
            stated |= {"attention.compress_ratios": [4] * count, "rope.dimension_sections": [dim // 8] * 4}
        if arch.startswith("lfm2"):
            columns = rnd.choice([3, 4])
            width = stated["embedding_length"]
            state = State(0, conv_channels=width, conv_kernel=columns)
            stated["shortconv.l_cache"] = columns
        kinds: list[LayerKind] = [wide if each else state for each in attends]
        mtp: list[LayerKind] = []
        if arch.startswith("qwen"):
            stated["full_attention_interval"] = every
            mtp = [wide] if arch.startswith("qwen35") and rnd.random() < 0.4 else []
        else:
            stated["attention.head_count_kv"] = [heads if each else 0 for each in attends]
        if arch.startswith("nemotron_h"):
            kinds[0], stated["feed_forward_length"] = NoCache(), [64, *[0] * (count - 1)]
            if attends[0]:
                stated["attention.head_count_kv"][0] = 0
        return Model(arch, model_type, kinds, stated, mtp)

    return draw


def mamba(arch: str, model_type: str) -> Callable[[Random], Model]:
    """States alone."""

    def draw(rnd: Random) -> Model:
        state, stated = _state(rnd, 2 if arch == "mamba2" else 0)
        stated |= {
            "embedding_length": stated["ssm.inner_size"] // 2,
            "ssm.group_count": 2 if arch == "mamba2" else None,
        }
        return Model(arch, model_type, [state] * rnd.randint(1, 6), stated)

    return draw


def kda(arch: str, model_type: str) -> Callable[[Random], Model]:
    """Kimi's delta attention beside MLA, in GLM-5-next with an indexer of three rows."""

    def draw(rnd: Random) -> Model:
        kind, stated = _latent(rnd)
        kernel, count, heads = rnd.choice([2, 4]), rnd.choice([4, 8]), 2
        state = State(heads * 128 * 128, conv_channels=3 * heads * 128, conv_kernel=kernel)
        attends = [at % 4 == 3 for at in range(count)]
        stated |= {"ssm.conv_kernel": kernel, "kda.head_dim": 128}
        stated["attention.head_count_kv"] = [1 if each else 0 for each in attends]
        wide: LayerKind = kind
        if arch == "glm5-next":
            stated |= {"attention.indexer.head_count": 64, "attention.indexer.key_length": 128}
            stated |= {"attention.indexer.kpool": 4, "attention.key_length": kind.rank, "rope.dimension_count": 0}
            wide = Latent(kind.rank, 0, 2, kind.nope_dim + kind.rope_dim, kind.v_head_dim, indexer_dim=128)
        return Model(arch, model_type, [wide if each else state for each in attends], stated)

    return draw


FAMILIES: dict[str, Callable[[Random], Model]] = {
    **{arch: uniform(arch, arch) for arch in ("llama", "qwen2", "qwen3", "gemma", "phi3", "granite", "starcoder2")},
    "command-r": uniform("command-r", "cohere"),
    "glm4moe": uniform("glm4moe", "glm4_moe"),
    "gemma2": sliding("gemma2", "gemma2"),
    "gemma3": sliding("gemma3", "gemma3"),
    "gemma3n": gemma3n,
    "gemma4": gemma4,
    "cohere2": sliding("cohere2", "cohere2"),
    "cohere2moe": sliding("cohere2moe", "cohere2_moe"),
    "olmo2": sliding("olmo2", "olmo3"),
    "gpt-oss": sliding("gpt-oss", "gpt_oss"),
    "exaone4": sliding("exaone4", "exaone4", layers=64),
    "exaone-moe": sliding("exaone-moe", "exaone_moe"),
    "llama4": sliding("llama4", "llama4", window=8192),
    "afmoe": sliding("afmoe", "afmoe"),
    "mimo2": sliding("mimo2", "mimo_v2_flash"),
    "step35": sliding("step35", "step3p5"),
    "muse-glimmer": sliding("muse-glimmer", "muse_glimmer"),
    "laguna": sliding("laguna", "laguna"),
    "granite_swa": sliding("granite_swa", "granite_swa"),
    "maple": sliding("maple", "maple"),
    "mellum": sliding("mellum", "mellum"),
    "smallthinker": sliding("smallthinker", "smallthinker", window=4096),
    "spark2_5": sliding("spark2_5", "spark2_5"),
    "plamo3": sliding("plamo3", "plamo3"),
    "deepseek2": latent("deepseek2", "deepseek_v3"),
    "mistral4": latent("mistral4", "mistral4"),
    "minicpm3": decompressed,
    "deepseek32": indexed("deepseek32", "deepseek_v32"),
    "glm-dsa": indexed("glm-dsa", "glm_moe_dsa"),
    "hy_v4": indexed("hy_v4", "hy_v4"),
    "dots3note": indexed("dots3note", "dots3note"),
    "minimax-m3": minimax_m3,
    "deepseek4": deepseek4,
    "jamba": hybrid("jamba", "jamba"),
    "falcon-h1": hybrid("falcon-h1", "falcon_h1"),
    "granitehybrid": hybrid("granitehybrid", "granitemoehybrid"),
    "lfm2": hybrid("lfm2", "lfm2"),
    "lfm2moe": hybrid("lfm2moe", "lfm2_moe"),
    "qwen3next": hybrid("qwen3next", "qwen3_next"),
    "qwen35": hybrid("qwen35", "qwen3_5"),
    "qwen35moe": hybrid("qwen35moe", "qwen3_5_moe"),
    "qwen4exp": hybrid("qwen4exp", "qwen4exp"),
    "nemotron_h": hybrid("nemotron_h", "nemotron_h"),
    "mamba": mamba("mamba", "mamba"),
    "mamba2": mamba("mamba2", "mamba2"),
    "kimi-linear": kda("kimi-linear", "kimi_linear"),
    "kimi-k3": kda("kimi-k3", "kimi_k3"),
    "glm5-next": kda("glm5-next", "glm5_next"),
}


@dataclass
class Case:
    """A model, what llama.cpp is started with, and the types of K and V."""

    model: Model
    params: dict[str, int]
    k_type: str
    v_type: str
    drafted: bool

    @property
    def words(self) -> str:
        draft = ", with its MTP draft" if self.drafted else ""
        return f"{self.model.arch} [{self.model.architecture.layout}] {self.params} {self.k_type}/{self.v_type}{draft}"


def draw_case(rnd: Random) -> Case:
    """A random case: most of small settings, some of large ones."""
    model = FAMILIES[rnd.choice(sorted(FAMILIES))](rnd)
    slots = rnd.choice([1, 1, 2, 3, 4, 16])
    params = {
        "n_ctx": max(slots, rnd.choice([rnd.randint(1, 1000), rnd.randint(1000, 9000), rnd.randint(9000, 140_000)])),
        "n_batch": rnd.choice([2048, 2048, rnd.randint(1, 3000)]),
        "n_ubatch": rnd.choice([512, 512, 0, rnd.randint(1, 2500)]),
        "n_seq_max": slots,
        "n_rs_seq": rnd.choice([0, 0, 1, 3]),
        "kv_unified": rnd.choice([0, 0, 1]),
        "swa_full": rnd.choice([0, 0, 0, 1]),
        "flash_attn": rnd.choice([1, 1, 0]),
    }
    k_type = rnd.choice(["f16", "bf16", "f32"] if rnd.random() < 0.6 else sorted(_TYPES))
    v_type = k_type if rnd.random() < 0.8 else rnd.choice(sorted(_TYPES))
    return Case(model, params, k_type, v_type, bool(model.mtp) and rnd.random() < 0.7)


# Both sides.


def in_child(work: Callable[[], Any]) -> Any:
    """What ``work`` returns in a process of its own; None where it ends the process or raises."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.write(writer, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else None


def engine_bytes(library: Library, case: Case) -> tuple[int, int] | str:
    """Bytes of llama.cpp's caches and its compute buffers; or what it says where it refuses."""

    def work() -> tuple[int, int] | str:
        try:
            return context()
        except RuntimeError as error:
            return str(error)

    def context() -> tuple[int, int]:
        model = library.model(case.model.full_metadata)
        params = {name: value for name, value in case.params.items() if name != "flash_attn"}
        params |= {"flash_attn_type": case.params["flash_attn"], "type_k": _TYPES[case.k_type]}
        params["type_v"] = _TYPES[case.v_type]
        size, compute = library.context(model, params)
        if case.drafted:
            slots = case.params["n_seq_max"]
            padded = -(-case.params["n_ctx"] // 256) * 256
            if not case.params["kv_unified"]:
                padded = -(-(padded // slots) // 256) * 256 * slots
            draft = params | {"n_ctx": padded, "n_rs_seq": 0, "ctx_type": 1, "type_k": 1, "type_v": 1}
            size += library.context(model, draft)[0]
        return size, compute

    found = in_child(work)
    if isinstance(found, list):
        return found[0], found[1]
    return found or "the process ended"


def our_bytes(case: Case) -> int | str:
    """Bytes of kvcalc's cache for the same; or what it says where it refuses."""
    options = {
        name: value for name, value in case.params.items() if name not in ("kv_unified", "swa_full", "flash_attn")
    }
    flags = {name: bool(case.params[name]) for name in ("kv_unified", "swa_full", "flash_attn")}
    try:
        setup = prepare(
            case.model.architecture,
            engine="llama.cpp",
            engine_options={**options, **flags, "mla": case.model.mla},
            kv_cache_dtype=f"{case.k_type}/{case.v_type}",
            draft="mtp" if case.drafted else None,
        )
    except KVCalcError as error:
        return error.message
    return setup.plan.kv_bytes(case.params["n_ctx"], 1)


def compared(library: Library, fault: int, case: Case, counts: Counter[str], reasons: Counter[str]) -> None:
    """Count how a case ends; ``Different`` with both answers where they are not equal."""
    theirs, ours = engine_bytes(library, case), our_bytes(case)
    if isinstance(theirs, str) and isinstance(ours, str):
        counts["refused by both"] += 1
    elif isinstance(theirs, str):
        counts["refused by llama.cpp alone"] += 1
        reasons[f"llama.cpp, {case.model.arch}: {theirs.strip()}"] += 1
    elif isinstance(ours, str):
        counts["refused by kvcalc alone"] += 1
        reasons[f"kvcalc, {case.model.arch}: {ours}"] += 1
    elif theirs[0] != ours + fault:
        raise Different(f"{case.words}\n    llama.cpp: {theirs}\n    kvcalc: {ours}")
    else:
        counts["equal"] += 1


def main() -> int:
    """Compare random cases, or write so many down; 1 where a case differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, cases=1500, fault="a byte more in kvcalc's cache")
    parser.add_argument("--record", type=Path, help="write the cases and their bytes to this file, and compare nothing")
    asked = parser.parse_args()
    library = Library()
    if asked.record is not None:
        record(library, asked.cases, asked.seed, asked.record)
        return 0
    cases = st.randoms(use_true_random=False).map(draw_case)
    outcome = run(cases, partial(compared, library, int(asked.fault)), asked.cases, asked.seed)
    rows = ("cases", "equal", "refused by both", "refused by llama.cpp alone", "refused by kvcalc alone")
    return table(outcome, rows)


def record(library: Library, count: int, seed: int, path: Path) -> None:
    """Write the cases that llama.cpp answers, with its bytes."""
    rnd = Random(seed)
    drawn = [draw_case(rnd) for _ in range(count)]
    answers = [(case, engine_bytes(library, case)) for case in drawn]
    rows = [_row(case, answer[0]) for case, answer in answers if not isinstance(answer, str)]
    data = {"version": "b11739", "made_by": "tests/oracles/llama_cpp.py", "cases": count, "seed": seed}
    checksum = sha256("\n".join(map(json.dumps, rows)).encode()).hexdigest()
    write_rows(path, data | {"sha256": checksum, "rows": rows})


def _row(case: Case, kv_bytes: int) -> dict[str, Any]:
    """A case as data: the layers in kvcalc's words, the settings, and the bytes."""
    model = case.model
    distinct = list(dict.fromkeys([*model.kinds, *model.mtp]))
    letters = {kind: "abcdefghij"[at] for at, kind in enumerate(distinct)}
    return {
        "model_type": model.model_type,
        "kinds": {letters[kind]: _table(kind) for kind in distinct},
        "order": "".join(letters[kind] for kind in model.kinds),
        "mtp": "".join(letters[kind] for kind in model.mtp) if case.drafted else "",
        "mla": model.mla,
        "types": f"{case.k_type}/{case.v_type}",
        **case.params,
        "bytes": kv_bytes,
    }


def _table(kind: LayerKind) -> dict[str, Any]:
    """A layer kind as a table that ``layer_kind`` reads, without what is left at its default."""
    stated = {each.name: getattr(kind, each.name) for each in fields(kind) if getattr(kind, each.name) != each.default}
    if isinstance(kind, Parallel):
        stated = {name: _table(value) for name, value in stated.items()}
    return {"kind": kind.kind, **stated}


if __name__ == "__main__":
    sys.exit(main())
