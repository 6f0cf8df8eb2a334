"""Tables of rotary positions, as a config.json states them and as an architecture has them without one."""

from typing import Any

import pytest

import kvcalc

SHAPE = {
    "hidden_size": 4096,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
}
LATENT = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}


@pytest.mark.parametrize(
    ("model_type", "stated", "tables"),
    [
        ("llama", {}, ((32768, 128),)),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, ((65536, 128),)),
        ("llama", {"rope_scaling": {"type": "linear", "factor": "two"}}, ((32768, 128),)),
        (
            "qwen2",
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
            ((131072, 128),),
        ),
        (
            "phi3",
            {"rope_scaling": {"type": "longrope", "original_max_position_embeddings": 4096}},
            ((32768 + 4096, 128),),
        ),
        ("glm4", {"head_dim": 128, "partial_rotary_factor": 0.5}, ((32768, 64),)),
        ("minimax_m2", {"rotary_dim": 64, "head_dim": 128}, ((32768, 64),)),
        ("qwen2_5_vl", {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}, ((4 * 32768, 128),)),
        (
            "gemma3_text",
            {
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default"},
                    "full_attention": {"rope_type": "linear", "factor": 8.0},
                }
            },
            ((32768, 256), (8 * 32768, 256)),
        ),
        ("gemma3_text", {}, ((32768, 256), (32768, 256))),
        ("granitemoehybrid", {"position_embedding_type": "nope", "layer_types": ["attention"] * 4}, ()),
        ("deepseek_v2", {**LATENT, "first_k_dense_replace": 4}, ((32768, 64),)),
    ],
)
def test_the_tables_of_a_file(model_type: str, stated: dict[str, Any], tables: tuple[tuple[int, int], ...]) -> None:
    model = kvcalc.read_config({"model_type": model_type, **SHAPE, **stated})
    assert model.rotary_tables == tables


def test_heads_of_two_widths_have_a_table_each() -> None:
    assert kvcalc.load("gemma-4-31b").rotary_tables == ((262144, 256), (262144, 512))
    assert kvcalc.load("falcon-h1-7b").rotary_tables == ((262144, 128),)
    assert kvcalc.load("gemma-3-12b").rotary_tables == ((131072, 256), (1048576, 256))
