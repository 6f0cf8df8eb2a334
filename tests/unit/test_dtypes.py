"""What a number takes in each format, as its makers publish it."""

from __future__ import annotations

import pytest

import kvcalc
from kvcalc.dtypes import parse_dtype
from kvcalc.errors import UnsupportedError

#: Bits a number, block scales included: of a ggml type, as ggml prints them; of groups, bits + scale bits / group.
BITS = {
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "sfp8": 8,
    "fp8_e4m3": 8,
    "fp8_e5m2": 8,
    "int8": 8,
    "int4": 4 + 16 / 128,
    "int4_g64": 4 + 16 / 64,
    "int4_g32": 4 + 16 / 32,
    "mxfp4": 4 + 8 / 32,
    "nvfp4": 4 + 8 / 16,
    "q8_0": 8.5,
    "q5_1": 6,
    "q5_0": 5.5,
    "q4_1": 5,
    "q4_0": 4.5,
    "iq4_nl": 4.5,
    "q6_k": 6.5625,
    "q5_k": 5.5,
    "q4_k": 4.5,
    "q3_k": 3.4375,
    "q2_k": 2.625,
}


@pytest.mark.parametrize("name", BITS)
def test_bits_of_a_number(name: str) -> None:
    dtype = parse_dtype(name)
    assert 8 * dtype.block_bytes / dtype.block_elements == BITS[name]


@pytest.mark.parametrize("name", BITS)
def test_a_format_of_weights_leaves_embeddings_and_norms_where_it_is_a_quantisation(name: str) -> None:
    assert parse_dtype(name).linear_only is (name not in {"float32", "float16", "bfloat16", "sfp8"})


@pytest.mark.parametrize(("name", "latent", "indexer"), [("fp8_ds_mla", 656, 128), ("nvfp4_ds_mla", 352, 64)])
def test_a_format_of_latents_is_one_of_nothing_else(name: str, latent: int, indexer: int) -> None:
    model = kvcalc.load("deepseek-v3.2")  # 61 latents, each with an indexer key of 128 numbers
    assert kvcalc.kv_cache_bytes(model, context=1000, kv_cache_dtype=name) == 61 * 1000 * (latent + indexer)
    with pytest.raises(UnsupportedError, match=f"{name} is a format of latent"):
        kvcalc.kv_cache_bytes(kvcalc.load("gemma-3-1b"), context=1000, kv_cache_dtype=name)


@pytest.mark.parametrize(
    ("name", "head_bytes"),
    # 128 numbers and one float32 scale
    [("fp8_per_token_head", 128 + 4), ("int8_per_token_head", 128 + 4), ("int4_per_token_head", 64 + 4)],
)
def test_bytes_of_a_head_with_its_own_scale(name: str, head_bytes: int) -> None:
    assert parse_dtype(name).row_bytes(8, 128) == 8 * head_bytes
