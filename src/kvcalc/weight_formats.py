"""The names that people type for a weights format: ``bf16``, ``fp8``, ``awq``, ``nf4``, ``4bit``, ``Q4_K_M``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kvcalc import quantization as q
from kvcalc.dtypes import CACHE_ONLY, DTYPES, parse_dtype
from kvcalc.errors import InputError, NotModelledError, did_you_mean, quote
from kvcalc.gguf_mixes import FILE_TYPES, file_type
from kvcalc.quantization import (
    PUBLISHED,
    ROUTERS,
    TIED_HEAD,
    TOWERS,
    Override,
    Packing,
    Plain,
    Quantization,
    WeightsFormat,
)

if TYPE_CHECKING:
    from kvcalc.architecture import Architecture

#: Parts that MLX quantises beside the linear layers of the blocks.
MLX_COVERS = frozenset({"embedding", "head", "router"})
#: Model types whose router MLX keeps at 8 bit (mlx-lm 0.32.2, quant_predicate), and at the model's own (a gate class).
_MLX_ROUTER_8_BIT = frozenset(
    {"klear", "afmoe", "gemma4", "gpt_oss", "granitemoe", "granitemoehybrid", "jamba", "kimi_linear", "kimi_k3"}
    | {"laguna", "lfm2_moe", "longcat_flash", "mellum", "minimax", "minimax_m2", "minimax_m3", "qwen3_moe"}
    | {"qwen3_next", "qwen3_5_moe", "qwen3_vl_moe", "step3p5", "bailing_moe", "bailing_hybrid"}
)
_MLX_ROUTER_PLAIN = frozenset(
    {"deepseek", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "exaone_moe", "glm4_moe", "glm4_moe_lite"}
    | {"glm_moe_dsa", "kimi_k2", "mimo_v2_flash", "nemotron_h", "solar_open", "muse_spark"}
)
#: mlx-lm 0.32.2, cast_predicate of qwen3_5: published with four bytes (3.5) or two (3.6).
_MLX_STATES = "A_log of its states takes four bytes each or two, as the converted file had it"


def _linear(name: str, method: str, packing: Packing, *, biases_inside: bool = False) -> Quantization:
    return Quantization(
        name,
        packing,
        method,
        biases_inside=biases_inside,
        buffers=False,
        holds=TOWERS,
        note=f"{name} covers the linear layers of the blocks; embeddings, head, norms and routers stay",
    )


def mlx_format(
    model_type: str, bits: int, group: int, mode: str = "affine", kept: tuple[str, ...] = (), *, shipped: bool = False
) -> Quantization:
    """MLX's conversion of a model type: everything with rows of whole groups, routers as its class says.

    >>> mlx_format("llama", 4, 64).name
    'mlx_4bit'
    """
    covers = MLX_COVERS
    overrides: list[Override] = []
    if mode == "mxfp4" and model_type == "gpt_oss":  # its experts are mxfp4 as published, the rest is converted
        overrides.append((("re:(?!.*experts).*",), q.mlx(8, 64)))
    if model_type in _MLX_ROUTER_8_BIT and not shipped:  # a file lists the modules that differ
        overrides.append((tuple(sorted(ROUTERS)), q.mlx(8, 64)))
    elif model_type in _MLX_ROUTER_PLAIN:
        covers = MLX_COVERS - {"router"}
    name = f"mlx_{bits}bit" if mode == "affine" else f"mlx_{mode}"
    if (mode, group) not in (("affine", 64), ("mxfp4", 32), ("mxfp8", 32), ("nvfp4", 16)):
        name += f"_g{group}"
    return Quantization(
        name,
        q.mlx(bits, group, mode),
        "mlx",
        kept=kept,
        overrides=tuple(overrides),
        covers=covers,
        skips=frozenset(),
        group=group,
        buffers=shipped,
        holds=TOWERS,
        note="embedding and head are quantised too",
        estimated=_MLX_STATES if model_type in ("qwen3_5", "qwen3_5_moe") else "",
    )


#: Formats by name, each as its usual writer makes it.
_NAMED: dict[str, Quantization] = {
    each.name: each
    for each in (
        _linear("awq", "awq", q.awq()),
        _linear("gptq", "gptq", q.gptq(), biases_inside=True),
        _linear("gptq_8bit", "gptq", q.gptq(8), biases_inside=True),
        _linear("gptq_3bit", "gptq", q.gptq(3), biases_inside=True),
        _linear("nf4", "bitsandbytes", q.bnb_4bit()),
        _linear("nf4_double", "bitsandbytes", q.bnb_4bit(nested=True)),
        _linear("bnb_int8", "bitsandbytes", q.bnb_int8()),
        _linear("fp8_block", "fp8", q.fp8_tiles(4)),
        _linear("fp8_channel", "compressed-tensors", q.channel(8)),
        _linear("int8_channel", "compressed-tensors", q.channel(8, name="int8")),
        _linear("w4a16", "compressed-tensors", q.packed_int(4, 128)),
        _linear("hqq", "hqq", q.hqq(4, 64)),
        _linear("mxfp8", "mxfp8", q.mxfp8()),
    )
}

_ALIASES = {
    **dict.fromkeys(("fp8_dynamic", "w8a8_fp8"), "fp8_channel"),
    **dict.fromkeys(("w8a8", "w8a8_int8", "int8_w8a8"), "int8_channel"),
    **dict.fromkeys(("bnb", "bnb_4bit", "bitsandbytes", "bnb_nf4", "load_in_4bit"), "nf4"),
    **dict.fromkeys(("bnb_8bit", "load_in_8bit", "llm_int8"), "bnb_int8"),
    **dict.fromkeys(("gptq_4bit", "gptq_int4"), "gptq"),
    **dict.fromkeys(("awq_int4", "awq_4bit"), "awq"),
    **dict.fromkeys(("fp4", "w4a16_nvfp4"), "nvfp4"),
    **dict.fromkeys(("q4", "q4_k"), "q4_k_m"),
    **dict.fromkeys(("q5", "q5_k"), "q5_k_m"),
    "gptq_int8": "gptq_8bit",
    "q6": "q6_k",
    "q8": "q8_0",
    "q3_k": "q3_k_m",
    "auto": "",
}
_FILE_TYPES = {name.casefold(): name for name in FILE_TYPES if name not in ("F32", "F16", "BF16")}
_MLX_NAME = re.compile(r"(?:mlx_)?([234568])_?bit(?:_g(\d{1,4}))?", re.ASCII)


def format_names() -> list[str]:
    """Every name of a weights format, for completion and help."""
    mlx = [f"{bits}bit" for bits in (8, 6, 5, 4, 3)]
    numbers = [name for name in DTYPES if name not in _FILE_TYPES and name not in CACHE_ONLY]
    return [*numbers, *_NAMED, *mlx, *_FILE_TYPES.values()]


def parse_weights_format(text: str, architecture: Architecture) -> WeightsFormat:
    """What a name of a weights format means for one model.

    The name of the format in which the model ships means that one; ``4bit`` and ``8bit`` are MLX's, as on its models'
    names; ``q4`` and ``q8`` are llama.cpp's usual file types, Q4_K_M and Q8_0.

    Raises:
        InputError: an unknown name, with the nearest known one.
        NotModelledError: a format that follows no rule.

    >>> import kvcalc
    >>> model = kvcalc.load("llama-3.1-8b")
    >>> [parse_weights_format(name, model).name for name in ("bf16", "q4_k_m", "4bit", "awq")]
    ['bfloat16', 'Q4_K_M', 'mlx_4bit', 'awq']
    """
    folded = text.strip().casefold().removeprefix("torch.").replace("-", "_")
    folded = _ALIASES.get(folded, folded)
    own = architecture.quantization
    if own is not None and folded and (own.name == folded or own.name.startswith(f"{folded}_")):
        return own
    if folded.startswith("ud_"):
        raise NotModelledError(
            f"{quote(text)} is not modelled: unsloth chooses the type of each tensor by hand",
            hint="name the GGUF file itself: its header lists what it holds",
        )
    if folded in _FILE_TYPES:
        return file_type(_FILE_TYPES[folded], architecture)
    if folded in _NAMED:
        return _NAMED[folded]
    mlx = _MLX_NAME.fullmatch(folded)
    if mlx is not None:
        return mlx_format(architecture.model_type, int(mlx[1]), int(mlx[2] or 64))
    if not folded:
        return shipped_format(architecture)
    try:
        stored = parse_dtype(folded)
    except InputError:
        known = format_names()
        hint = did_you_mean(folded, [*known, *_ALIASES]) or f"known formats: {', '.join(known)}"
        raise InputError(f"unknown weights format {quote(text)}", hint=hint) from None
    if stored.name in CACHE_ONLY:
        raise InputError(f"{stored.name} is a format of the cache, not of weights")
    return Plain(stored, parse_dtype(architecture.dtype))


#: Model types whose publisher stores the head beside the embedding that it is tied to.
_STORES_TIED_HEAD = frozenset({"falcon"})


def shipped_format(architecture: Architecture) -> WeightsFormat:
    """The format in which a model ships: its declared quantisation, or its own numbers."""
    if architecture.quantization is not None:
        return architecture.quantization
    own = parse_dtype(architecture.dtype)
    stored_twice = {TIED_HEAD} if architecture.model_type in _STORES_TIED_HEAD else set()
    return Plain(own, own, buffers=True, holds=PUBLISHED | stored_twice)
