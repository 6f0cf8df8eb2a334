"""Storage formats: how many bytes a row of numbers takes, and every engine's spelling of them.

A format stores blocks of ``block_elements`` numbers in ``block_bytes`` bytes (q8_0: 32 numbers in 34 bytes), and may
add a scale for each KV head and token (``head_scale_bytes``, vLLM's per-token-head formats).
"""

from __future__ import annotations

from dataclasses import dataclass

from kvcalc.errors import InputError, did_you_mean, quote
from kvcalc.units import ceil_div, round_up


@dataclass(frozen=True, slots=True)
class DType:
    """One storage format.

    Attributes:
        name: the canonical name, as reports print it.
        block_elements: numbers in one block.
        block_bytes: bytes of one block, scales included.
        head_scale_bytes: bytes beside the numbers for each KV head, token and side (K or V).
        linear_only: as a weight format it covers the linear layers; embeddings, norms, routers, convolutions and
            biases stay in the model's own format.
        latent_token_bytes: fixed bytes of one token of one MLA layer, where the format defines them itself.
        packed_bits: bits of a K and of a V number, where the format packs both into one slot a head and token.
        packed_scale_bytes: bytes of scales and norms in such a slot.
        note: what the figure holds, in a few words.
    """

    name: str
    block_elements: int
    block_bytes: int
    head_scale_bytes: int = 0
    linear_only: bool = False
    latent_token_bytes: int | None = None
    packed_bits: tuple[int, int] | None = None
    packed_scale_bytes: int = 0
    note: str = ""

    def bytes_for(self, elements: int) -> int:
        """Bytes of a row of ``elements`` numbers, rounded up to whole blocks.

        >>> parse_dtype("q8_0").bytes_for(256), parse_dtype("bf16").bytes_for(256)
        (272, 512)
        """
        return -(-elements // self.block_elements) * self.block_bytes

    def row_bytes(self, heads: int, width: int) -> int:
        """Bytes of one token of one layer on one side (K or V): all heads' numbers in a row, and their scales.

        >>> parse_dtype("fp8_per_token_head").row_bytes(8, 128), parse_dtype("q8_0").row_bytes(8, 128)
        (1056, 1088)
        """
        if self.packed_bits is not None:
            return heads * self.packed_head_bytes(width) // 2
        return self.bytes_for(heads * width) + heads * self.head_scale_bytes

    def packed_head_bytes(self, width: int) -> int:
        """Bytes of one token of one head, K and V in one slot of whole 2 bytes.

        >>> parse_dtype("turboquant_4bit_nc").packed_head_bytes(256)
        262
        """
        assert self.packed_bits is not None
        key, value = self.packed_bits
        return round_up(ceil_div(width * key, 8) + ceil_div(width * value, 8) + self.packed_scale_bytes, 2)


#: Numbers and bytes of one block of each type of llama.cpp's tensors: ggml/src/ggml-common.h, as in 0c1e57098 (q2_0 is
#: of a later one).
GGML_BLOCKS: dict[str, tuple[int, int]] = (
    {"f64": (1, 8), "f32": (1, 4), "f16": (1, 2), "bf16": (1, 2), "i64": (1, 8), "i32": (1, 4), "i16": (1, 2)}
    | {"i8": (1, 1), "q4_0": (32, 18), "q4_1": (32, 20), "q5_0": (32, 22), "q5_1": (32, 24), "q8_0": (32, 34)}
    | {"q8_1": (32, 36), "iq4_nl": (32, 18), "mxfp4": (32, 17), "nvfp4": (64, 36), "q2_0": (64, 18), "q1_0": (128, 18)}
    | {"q2_k": (256, 84), "q3_k": (256, 110), "q4_k": (256, 144), "q5_k": (256, 176), "q6_k": (256, 210)}
    | {"q8_k": (256, 292), "iq4_xs": (256, 136), "iq3_s": (256, 110), "iq3_xxs": (256, 98), "iq2_s": (256, 82)}
    | {"iq2_xs": (256, 74), "iq2_xxs": (256, 66), "iq1_m": (256, 56), "iq1_s": (256, 50)}
    | {"tq1_0": (256, 54), "tq2_0": (256, 66)}
)

# vLLM's scales: vllm 0.33.0 v1/attention/backends/triton_attn.py:308 (one float32 a head, token and side).
# fp8_ds_mla, nvfp4_ds_mla: vllm 0.33.0 mla_attention.py:1371. NVFP4: 16 numbers in 8 bytes and one fp8 scale.
# TurboQuant: vllm 0.33.0 layers/quantization/turboquant/config.py; UltraQuant: v1/attention/ops/ultraquant/format.py.
_PACKED = "K, V and their scales in one slot a head and token"
_FORMATS = (
    DType("float32", 1, 4),
    DType("float16", 1, 2),
    DType("bfloat16", 1, 2),
    DType("sfp8", 1, 1, note="one byte for every number, embeddings too (the report's SFP8)"),
    DType("fp8_e4m3", 1, 1, linear_only=True, note="one byte a number; scales per tensor are not counted"),
    DType("fp8_e5m2", 1, 1, linear_only=True, note="one byte a number; scales per tensor are not counted"),
    DType("int8", 1, 1, linear_only=True, note="one byte a number; scales per tensor are not counted"),
    DType("int4", 128, 66, linear_only=True, note="groups of 128 numbers: 64 bytes and one 2-byte scale"),
    DType("int4_g64", 64, 34, linear_only=True, note="groups of 64 numbers: 32 bytes and one 2-byte scale"),
    DType("int4_g32", 32, 18, linear_only=True, note="groups of 32 numbers: 16 bytes and one 2-byte scale"),
    DType("mxfp4", 32, 17, linear_only=True, note="groups of 32 numbers: 16 bytes and one 1-byte scale"),
    DType("nvfp4", 16, 9, linear_only=True, note="groups of 16 numbers: 8 bytes and one fp8 scale"),
    DType("fp8_per_token_head", 1, 1, head_scale_bytes=4, note="one float32 scale a head, token and side"),
    DType("int8_per_token_head", 1, 1, head_scale_bytes=4, note="one float32 scale a head, token and side"),
    DType("int4_per_token_head", 2, 1, head_scale_bytes=4, note="one float32 scale a head, token and side"),
    DType("fp8_ds_mla", 1, 1, latent_token_bytes=656, note="656 bytes a token of an MLA layer"),
    DType("nvfp4_ds_mla", 2, 1, latent_token_bytes=352, note="352 bytes a token of an MLA layer"),
    DType("turboquant_k8v4", 4, 3, packed_bits=(8, 4), packed_scale_bytes=4, note=_PACKED),
    DType("turboquant_4bit_nc", 2, 1, packed_bits=(4, 4), packed_scale_bytes=6, note=_PACKED),
    DType("turboquant_k3v4_nc", 16, 7, packed_bits=(3, 4), packed_scale_bytes=6, note=_PACKED),
    DType("turboquant_3bit_nc", 8, 3, packed_bits=(3, 3), packed_scale_bytes=6, note=_PACKED),
    DType("ultraquant_4bit", 32, 17, note="groups of 32 numbers: 16 bytes and one 1-byte scale"),
    *(
        DType(name, *GGML_BLOCKS[name], linear_only=True)
        for name in "q8_0 q5_1 q5_0 q4_1 q4_0 iq4_nl q6_k q5_k q4_k q3_k q2_k".split()
    ),
)

#: Every format by its canonical name.
DTYPES = {dtype.name: dtype for dtype in _FORMATS}
#: Formats of a cache that store no weights.
CACHE_ONLY = frozenset(
    {each.name for each in _FORMATS if each.head_scale_bytes or each.latent_token_bytes or each.packed_bits}
    | {"ultraquant_4bit"}
)

_ALIASES = {
    "f32": "float32",
    "fp32": "float32",
    "float": "float32",
    "f16": "float16",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "fp8": "fp8_e4m3",
    "f8": "fp8_e4m3",
    "f8_e4m3": "fp8_e4m3",
    "float8_e4m3fn": "fp8_e4m3",
    "float8_e5m2": "fp8_e5m2",
    "f8_e5m2": "fp8_e5m2",
    "i8": "int8",
    "q4": "q4_0",
    "q8": "q8_0",
    "i4": "int4",
    "int4_g128": "int4",
    "fp8_inc": "fp8_e4m3",
    "nvfp4_4over6": "nvfp4",
}

BFLOAT16 = DTYPES["bfloat16"]
FLOAT16 = DTYPES["float16"]
FLOAT32 = DTYPES["float32"]


def parse_dtype(text: str) -> DType:
    """A storage format by any engine's spelling (``bf16``, ``torch.bfloat16``, ``fp8``, ``q8_0`` ...).

    Raises:
        InputError: unknown, with the nearest known name.

    >>> parse_dtype("bf16").name, parse_dtype("fp8").name
    ('bfloat16', 'fp8_e4m3')
    """
    if not isinstance(text, str):
        raise InputError(f"a dtype is a name such as 'bf16', not {quote(text)}")
    folded = text.strip().casefold().removeprefix("torch.").replace("-", "_")
    dtype = DTYPES.get(_ALIASES.get(folded, folded))
    if dtype is None:
        hint = did_you_mean(folded, [*DTYPES, *_ALIASES]) or f"known formats: {', '.join(DTYPES)}"
        raise InputError(f"unknown dtype {quote(text)}", hint=hint)
    return dtype


def parse_kv_dtypes(text: str) -> tuple[DType, DType]:
    """The formats of K and V: one for both, or ``K/V`` (``"q8_0/q4_0"``).

    >>> [dtype.name for dtype in parse_kv_dtypes("q8_0/q4_0")]
    ['q8_0', 'q4_0']
    """
    first, slash, second = text.partition("/")
    key_dtype = parse_dtype(first)
    return key_dtype, parse_dtype(second) if slash else key_dtype
