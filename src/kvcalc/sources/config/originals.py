"""Files that are no config.json of transformers: state-spaces' Mamba, and the ``params.json`` of Mistral and Meta.

They name no model type; their own keys tell them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvcalc.sources.config.reader import Config
from kvcalc.units import ceil_div

_PARAMS = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "intermediate_size": "hidden_dim",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "sliding_window": "sliding_window",
    "max_position_embeddings": "max_position_embeddings",
    "tie_word_embeddings": "tied_embeddings",
    "kv_lora_rank": "kv_lora_rank",
    "q_lora_rank": "q_lora_rank",
    "qk_rope_head_dim": "qk_rope_head_dim",
    "qk_nope_head_dim": "qk_nope_head_dim",
    "v_head_dim": "v_head_dim",
    "num_local_experts": "moe.num_experts",
    "num_experts_per_tok": "moe.num_experts_per_tok",
    "moe_intermediate_size": "moe.expert_hidden_dim",
    "first_k_dense_replace": "moe.first_k_dense_replace",
    "n_shared_experts": "moe.num_shared_experts",
}


def as_transformers(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config.json of transformers that says the same; any other file is returned as it is.

    >>> as_transformers({"dim": 4096, "n_layers": 32, "n_heads": 32, "hidden_dim": 14336})["model_type"]
    'mistral'
    """
    if "model_type" in config or "architectures" in config:
        return config
    if "ssm_cfg" in config and "d_model" in config:
        return _state_spaces(config)
    if "dim" in config and "n_layers" in config and "n_heads" in config:
        return _params(config)
    return config


def _state_spaces(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """``MambaConfig`` of mamba_ssm: the vocabulary is padded, ``ssm_cfg`` holds what differs from the layer's defaults.

    Defaults of mamba_ssm 2.2's Mamba (state 16, kernel 4, twice as wide) and Mamba2 (state 128, heads of 64).
    """
    reader = Config(config, "mamba", {"vocab_size": 50277, "pad_vocab_size_multiple": 8, "ssm_cfg.expand": 2}, {})
    multiple = reader.need("pad_vocab_size_multiple")
    second = reader.word("ssm_cfg.layer") == "Mamba2"
    hidden, expand = reader.need("d_model"), reader.need("ssm_cfg.expand")
    sizes: dict[str, Any] = {
        "model_type": "mamba2" if second else "mamba",
        "hidden_size": hidden,
        "num_hidden_layers": reader.need("n_layer"),
        "vocab_size": multiple * ceil_div(reader.need("vocab_size"), multiple),
        "expand": expand,
        "state_size": reader.count("ssm_cfg.d_state") or (128 if second else 16),
        "conv_kernel": reader.count("ssm_cfg.d_conv") or 4,
        "tie_word_embeddings": config.get("tie_embeddings", True),
    }
    if second:
        head_dim = reader.count("ssm_cfg.headdim") or 64
        sizes |= {
            "head_dim": head_dim,
            "num_heads": expand * hidden // head_dim or 1,
            "n_groups": reader.count("ssm_cfg.ngroups") or 1,
        }
    return sizes


def _params(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Mistral's ``params.json``, and Meta's, which states ``ffn_dim_multiplier`` in place of the width."""
    reader = Config(config, "mistral", {}, {})
    table = {usual: value for usual, own in _PARAMS.items() if (value := reader.stated(own)) is not None}
    if table.get("vocab_size") == -1:  # Meta's files leave it to the tokenizer
        table["vocab_size"] = 32_000
    if "hidden_dim" not in config and ("multiple_of" in config or "ffn_dim_multiplier" in config):
        return table | {"model_type": "llama", "intermediate_size": _metas_width(reader)}
    table.setdefault("sliding_window", None)
    if "kv_lora_rank" in table:
        return table | {"model_type": "mistral4"}
    return table | {"model_type": "mixtral" if "num_local_experts" in table else "mistral"}


def _metas_width(reader: Config) -> int:
    """Two thirds of four times ``dim``, times ``ffn_dim_multiplier``, rounded up to ``multiple_of``."""
    multiple = reader.count("multiple_of") or 256
    factor = reader.value("ffn_dim_multiplier")
    width = 8 * reader.need("dim") // 3
    if isinstance(factor, int | float) and 0 < factor < 1000:
        width = int(factor * width)
    return multiple * ceil_div(width, multiple)
