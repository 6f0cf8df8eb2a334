"""What only one model type has, and no table can say: the last word on the fields of its spec.

A row names its function in ``special``; the function changes the fields that :mod:`kvcalc.sources.config.describe`
read, among them ``entries``, the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvcalc.architecture import MOST_LAYERS
from kvcalc.errors import InputError, NotModelledError, quote
from kvcalc.sources.config.parts import Fields
from kvcalc.sources.config.reader import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, Config
from kvcalc.sources.spec import LayerSpec
from kvcalc.units import ceil_div


def _width(fields: Fields) -> int:
    """The one feed-forward width of a model type whose layers all have the same."""
    size = _block(fields, "feed_forward")["intermediate_size"]
    if not isinstance(size, int):
        raise InputError("a list of widths has no meaning for this model type", location="intermediate_size")
    return size


def _block(fields: Fields, name: str) -> Fields:
    """A table of the spec that every file of the model type leads to."""
    if name not in fields:
        raise InputError(f"the file leaves out the {name} that its model type has")
    table: Fields = fields[name]
    return table


def _gemma4(config: Config, fields: Fields) -> None:
    """Global layers have a head width of their own, and KV heads of their own where K and V share a projection."""
    attention = _block(fields, "attention")
    shares = config.flag("attention_k_eq_v")
    local: Fields = {}
    if config.stated("per_layer_config") is None:
        local["head_dim"] = attention["head_dim"]
        attention["head_dim"] = config.count("global_head_dim") or attention["head_dim"]
        global_heads = config.count("num_global_key_value_heads") if shares else None
        if global_heads is not None:
            local["num_kv_heads"] = attention["num_kv_heads"]
            attention["num_kv_heads"] = global_heads
    if shares:
        attention["shares_kv_projection"] = True
        local["shares_kv_projection"] = False
    if local:
        fields["local_attention"] = local
    if config.flag("use_double_wide_mlp") and fields["kv_shared_last_layers"]:
        fields["feed_forward"]["shared_layers_size"] = 2 * _width(fields)
    if not config.flag("enable_moe_block"):
        fields.pop("experts", None)
    if "experts" in fields:
        fields["norms"]["per_layer"] += 3


def _t5gemma(config: Config, fields: Fields) -> None:
    encoder = config.outer.get("encoder")
    if not isinstance(encoder, Mapping):
        encoder = {}
    reader = Config(encoder, config.model_type, config.defaults, {})
    fields["encoder"] = {
        "num_layers": reader.need(*LAYERS, most=MOST_LAYERS),
        "hidden_size": reader.need(*HIDDEN),
        "intermediate_size": reader.need("intermediate_size"),
        "num_heads": reader.need(*HEADS),
        "num_kv_heads": reader.count(*KV_HEADS) or reader.need(*HEADS),
        "head_dim": reader.need(*HEAD_DIM),
    }


def _t5gemma2(config: Config, fields: Fields) -> None:
    """One attention over the decoder's tokens and the encoder's: one set of projections, two caches."""
    encoder = config.outer.get("encoder")
    text = encoder.get("text_config") if isinstance(encoder, Mapping) else None
    config.outer = {"encoder": text}
    _t5gemma(config, fields)
    tied = fields["tie_embeddings"]
    fields["encoder"] |= {"embedding": not tied, "merged": True}
    # The end of an image has a vector of its own beside each table.
    end = {"role": "embed_tokens.eoi_embedding", "part": "embedding", "rows": fields["hidden_size"], "count": 2 - tied}
    fields["extra"] = (end,)


def _mimo(config: Config, fields: Fields) -> None:
    """Sliding layers have heads of their own, where the file says nothing twice the KV heads of the full ones."""
    attention = _block(fields, "attention")
    local: Fields = {"num_kv_heads": 2 * attention["num_kv_heads"]}
    for key, name in (
        ("swa_num_attention_heads", "num_heads"),
        ("swa_num_key_value_heads", "num_kv_heads"),
        ("swa_head_dim", "head_dim"),
        ("swa_v_head_dim", "v_head_dim"),
    ):
        number = config.count(key)
        if number is not None:
            local[name] = number
    local = {name: number for name, number in local.items() if number != attention.get(name)}
    local["sinks"] = config.flag("add_swa_attention_sink_bias", default=True)
    fields["local_attention"] = local


def _glm4_moe(config: Config, fields: Fields) -> None:
    """GLM 4.5 stores an embedding and a head with its prediction layer; 4.6, with 202,752 positions, does not any more
    (vllm-project/vllm pull request 27597).
    """
    if "mtp_layout" in fields and fields["mtp_tensors"] == "layers" and fields["max_context"] == 131_072:
        fields["mtp_tensors"] = "layers and tables"


def _falcon(config: Config, fields: Fields) -> None:
    """One KV head, or ``num_kv_heads`` in the new decoder architecture.

    RefinedWeb's own files state no architecture: the 40B of them is the one with a hidden size of 8,192, as vLLM 0.33
    tells them apart too.
    """
    attention = _block(fields, "attention")
    first = config.stated("new_decoder_architecture") is None and "n_head" in config.table
    new = config.flag("new_decoder_architecture") or (first and fields["hidden_size"] == 8192)
    if new:
        kv_heads = config.count("num_kv_heads", "n_head_kv") or attention["num_heads"]
    else:
        kv_heads = 1 if config.flag("multi_query") else attention["num_heads"]
    attention["num_kv_heads"] = kv_heads
    both = new and config.count("num_ln_in_parallel_attn") in (None, 2)
    fields["norms"]["per_layer"] = 2 if both or not (new or config.flag("parallel_attn")) else 1


def _gpt2(config: Config, fields: Fields) -> None:
    """SantaCoder is a GPT-2 whose heads share one K and V."""
    if config.word("attention_head_type") == "multiquery":
        _block(fields, "attention")["num_kv_heads"] = 1


def _chatglm(config: Config, fields: Fields) -> None:
    """The first ChatGLM states ``inner_hidden_size``: LayerNorm, biases, no gate, a tied head."""
    width = config.count("inner_hidden_size")
    if width is None:
        return
    attention = _block(fields, "attention")
    attention |= {"num_kv_heads": attention["num_heads"], "qkv_bias": True, "output_bias": True}
    fields["feed_forward"] = {"intermediate_size": width, "gated": False, "bias": True}
    fields["norms"]["bias"] = True
    fields["tie_embeddings"] = True


def _minicpmv(config: Config, fields: Fields) -> None:
    """The keys of a Llama 3, Qwen2 or Qwen3 at the root; ``version`` tells which, or the keys that it has."""
    version = config.stated("version")
    attention = _block(fields, "attention")
    if version in (4.5, "4.5") or config.stated("head_dim") is not None:
        attention["qk_norm"] = "head"
    elif version in (2.6, "2.6") or (version is None and fields["vocab_size"] > 150_000):
        attention["qkv_bias"] = True
    config.notes.append("which language model it is follows from its version and keys: weights estimated")


def _t5(config: Config, fields: Fields) -> None:
    """``feed_forward_proj``: "relu", or "gated-gelu" for blocks with a gate."""
    _block(fields, "feed_forward")["gated"] = (config.word("feed_forward_proj") or "").startswith("gated-")


def _jetmoe(config: Config, fields: Fields) -> None:
    """Mixtures of attention: each of E experts has its own Q and output for as many heads as there are KV heads."""
    attention = _block(fields, "attention")
    experts, active = config.need("num_local_experts"), config.need("num_experts_per_tok")
    hidden, one = fields["hidden_size"], attention["num_kv_heads"] * attention["head_dim"]
    attention["num_heads"] = active * attention["num_kv_heads"]
    matrix = {"part": "attention", "layers": "all", "columns": hidden}
    fields["extra"] = (
        {"role": "self_attention.experts", "rows": one, "count": max(1, 2 * (experts - active)), "linear": True}
        | matrix,
        {"role": "self_attention.experts.router", "rows": experts} | matrix,
        {"role": "self_attention.experts.bias", "rows": 1} | matrix,
    )


def _hrm_text(config: Config, fields: Fields) -> None:
    """Two stacks of layers that run several times: each run keeps its own cache, the weights are there once."""
    owned = 2 * config.need("num_layers_per_stack", most=MOST_LAYERS)
    count = config.need(*LAYERS, most=MOST_LAYERS)
    again = LayerSpec(kind="full", owns_weights=False)
    fields["entries"] = [LayerSpec(kind="full")] * min(owned, count) + [again] * max(0, count - owned)


def _ouro(config: Config, fields: Fields) -> None:
    """All layers run several times: each run keeps its own cache, the weights are there once."""
    again = [each.model_copy(update={"owns_weights": False, "norms": 0}) for each in fields["entries"]]
    fields["entries"] = fields["entries"] + again * (config.need("total_ut_steps", most=64) - 1)


def _mpt(config: Config, fields: Fields) -> None:
    if config.word("attn_config.attn_type") == "multiquery_attention":
        _block(fields, "attention")["num_kv_heads"] = 1
    fields["feed_forward"] = {
        "intermediate_size": (config.count("expansion_ratio") or 4) * fields["hidden_size"],
        "gated": False,
    }


def _openelm(config: Config, fields: Fields) -> None:
    """Heads and widths differ from layer to layer."""
    kv_heads = config.counts("num_kv_heads", least=1)
    heads = config.counts("num_query_heads", least=1)
    factors = config.sequence("ffn_multipliers")
    count = config.need(*LAYERS, most=MOST_LAYERS)
    if kv_heads is None or heads is None or factors is None or not len(kv_heads) == len(heads) == len(factors) == count:
        raise InputError("num_kv_heads, num_query_heads and ffn_multipliers must name every layer")
    divisor = config.count("ffn_dim_divisor") or 256
    widths = []
    for factor in factors:
        if not isinstance(factor, int | float) or isinstance(factor, bool) or not 0 < factor < 1000:
            raise InputError(f"ffn_multipliers holds {quote(factor)}", location="ffn_multipliers")
        # As OpenELM's make_divisible: to the nearest multiple, and never more than a tenth below.
        exact = factor * fields["hidden_size"]
        width = max(divisor, int(exact + divisor / 2) // divisor * divisor)
        widths.append(width + divisor if width < 0.9 * exact else width)
    fields["feed_forward"] = {"intermediate_size": tuple(widths)}
    fields["attention"] |= {"num_heads": heads[0], "num_kv_heads": kv_heads[0], "head_dim": config.need("head_dim")}
    fields["entries"] = [
        LayerSpec(kind="full", num_heads=h, num_kv_heads=k) for h, k in zip(heads, kv_heads, strict=True)
    ]


def _lfm2(config: Config, fields: Fields) -> None:
    """The width is 2/3 of what the file says, rounded up, unless the file says that it is not to be adjusted."""
    if config.flag("block_auto_adjust_ff_dim"):
        width = 2 * _width(fields) // 3
        factor = config.value("block_ffn_dim_multiplier")
        if factor not in (None, 1, 1.0):
            if not isinstance(factor, int | float) or not 0 < factor < 1000:
                raise InputError(f"block_ffn_dim_multiplier is {quote(factor)}", location="block_ffn_dim_multiplier")
            width = int(factor * width)
        unit = config.need("block_multiple_of")
        fields["feed_forward"]["intermediate_size"] = unit * ceil_div(width, unit)


def _hunyuan(config: Config, fields: Fields) -> None:
    """Cross-layer attention: one layer in ``cla_share_factor`` keeps K and V."""
    if config.flag("use_cla"):
        fields["kv_shared_stride"] = config.count("cla_share_factor", most=MOST_LAYERS) or 1


def _baichuan_m1(config: Config, fields: Fields) -> None:
    """Sliding layers have heads of their own; both keep one past token of K and V for a convolution of width 2."""
    hidden, attention = fields["hidden_size"], _block(fields, "attention")
    heads = config.count("num_swa_attention_heads") or attention["num_heads"]
    local = {"num_heads": heads, "num_kv_heads": config.need("num_swa_key_value_heads"), "head_dim": hidden // heads}
    kept = (config.count("conv_window") or 2) - 1
    for table in (attention, local):
        table["extra_state_bytes"] = kept * 2 * table["num_kv_heads"] * table["head_dim"] * 2
    fields["local_attention"] = local


def _longcat(config: Config, fields: Fields) -> None:
    """Two attentions and two dense blocks a layer, and experts beside the first: two layers here.

    The class has rows of the experts' first matrix for zero experts too, which no checkpoint has and nothing reads.
    """
    experts = _block(fields, "experts")
    experts |= {"every": 2, "offset": 0, "beside_dense": True}
    experts["zero_experts"] = config.count("zero_expert_num", least=0) or 0


def _deepseek_v4(config: Config, fields: Fields) -> None:
    """One shared expert, whatever ``n_shared_experts`` says; no dense block, but its biases are the shared expert's."""
    experts = _block(fields, "experts")
    experts["shared_intermediate_size"] = experts["intermediate_size"]
    fields.pop("feed_forward", None)
    if config.flag("mlp_bias"):
        fields["feed_forward"] = {"intermediate_size": experts["intermediate_size"], "bias": True}
    types = config.words("mlp_layer_types")
    experts["hash_layers"] = config.need("num_hash_layers", least=0) if types is None else types.count("hash_moe")
    targets = config.counts("dspark_target_layer_ids")
    if targets:
        fields["mtp_layout"] = fields["mtp_layout"][:1] * len(targets)
        fields["dspark"] = {"targets": len(targets), "markov_rank": config.need("dspark_markov_rank")}
    fields["compressed"] = {
        "num_heads": config.need(*HEADS),
        "width": config.need("head_dim"),
        "window": config.need("sliding_window", most=2**50),
        "query_rank": config.need("q_lora_rank"),
        "output_groups": config.need("o_groups"),
        "output_rank": config.need("o_lora_rank"),
        "indexer_dim": config.need("index_head_dim"),
        "indexer_heads": config.need("index_n_heads"),
    }
    fields.pop("attention", None)


def _kimi_linear(config: Config, fields: Fields) -> None:
    """Kimi K3 mixes residual streams of its blocks: a norm and a query before each half of a layer and behind the last
    one. Its checkpoint has float32 parts, and rows of the decay for whole groups of 128 heads, zeros behind its own.
    """
    if not config.count("attn_res_block_size"):
        return
    hidden, state = fields["hidden_size"], _block(fields, "state")
    state |= {"float32_parts": True, "stored_heads": 128 * ceil_div(state["num_heads"], 128)}
    vector = {"part": "norms", "rows": hidden}
    fields["extra"] = (
        {"role": "attn_res", "layers": "all", "count": 4} | vector,
        {"role": "output_attn_res", "count": 2} | vector,
    )
    if "experts" in fields:
        fields["experts"]["latent_norm"] = config.flag("latent_moe_use_norm")


def _nas(config: Config, fields: Fields) -> None:
    """``block_configs``: each layer says whether it has attention and a feed-forward block, and how wide.

    DeciLM's first files list ``num_key_value_heads_per_layer`` instead.
    """
    count = config.need(*LAYERS, most=MOST_LAYERS)
    attention = _block(fields, "attention")
    listed = config.counts("num_key_value_heads_per_layer", least=1)
    if listed is not None and len(listed) == count:
        fields["entries"] = [LayerSpec(kind="full", num_kv_heads=each) for each in listed]
        return
    blocks = config.sequence("block_configs")
    if blocks is None or len(blocks) != count:
        raise InputError(f"block_configs must name all of {count} layers", location="block_configs")
    hidden, heads = fields["hidden_size"], attention["num_heads"]
    entries = []
    for at, block in enumerate(blocks):
        place = f"block_configs[{at}]"
        if not isinstance(block, Mapping):
            raise InputError(f"{place} must be a table", location=place)
        reader = Config(block, config.model_type, {}, {})
        entries.append(_nas_layer(reader.table_at("attention"), reader.table_at("ffn"), hidden, heads, place))
    fields["entries"] = entries
    fields["feed_forward"] = {"intermediate_size": max([e.intermediate_size or 1 for e in entries])}
    attention["num_kv_heads"] = next((e.num_kv_heads for e in entries if e.num_kv_heads), heads)


def _nas_layer(attention: Config, dense: Config, hidden: int, heads: int, place: str) -> LayerSpec:
    if attention.flag("sparsify") or attention.count("num_sink_tokens", least=0):
        raise NotModelledError("no rule covers sink tokens or sparsified attention", location=f"{place}.attention")
    kind = "full"
    changes: dict[str, Any] = {}
    if attention.flag("no_op") or attention.flag("replace_with_linear"):
        kind = "none"
    else:
        window = attention.tokens("window_length")
        if window is not None:
            kind, changes["window"] = "sliding", window
        group = attention.count("n_heads_in_group") or 1
        changes["num_kv_heads"] = attention.count("num_key_value_heads") or heads // group or 1
    width = dense.count("intermediate_size")
    factor = dense.value("ffn_mult")
    if width is None and isinstance(factor, int | float) and 0 < factor < 1000:
        width = 256 * ceil_div(int(2 * factor * hidden / 3), 256)
    absent = dense.flag("no_op") or dense.flag("replace_with_linear") or width is None
    return LayerSpec(
        kind=kind,
        feed_forward="none" if absent else "dense",
        intermediate_size=None if absent else width,
        norms=int(kind != "none") + int(not absent),
        **changes,
    )


def _zamba2(config: Config, fields: Fields) -> None:
    """Transformer blocks that hybrid layers share in turn: each exists once, each use has its own cache, a matrix
    behind it and an adapter of low rank (Zamba2AttentionDecoderLayer of transformers 5.24.0). They read 2 D numbers.
    """
    hidden, width = fields["hidden_size"], _width(fields)
    attention = _block(fields, "attention")
    attention["head_dim"] = config.count("attention_head_dim") or 2 * hidden // attention["num_heads"]
    heads, head_dim = attention["num_heads"], attention["head_dim"]
    wide, rank = 2 * hidden, config.need("adapter_rank")
    blocks = config.need("num_mem_blocks", most=MOST_LAYERS)
    once = {"part": "attention", "linear": True, "count": blocks}
    use: Fields = {"part": "attention", "linear": True, "layers": "parallel"}
    extra: list[Fields] = [
        {
            "role": "shared_transformer.self_attn.qkv_proj",
            "rows": (heads + 2 * attention["num_kv_heads"]) * head_dim,
            "columns": wide,
        }
        | once,
        {"role": "shared_transformer.self_attn.o_proj", "rows": hidden, "columns": heads * head_dim} | once,
        {"role": "shared_transformer.feed_forward", "rows": 3 * width, "columns": hidden} | once,
        {"role": "shared_transformer.norms", "part": "norms", "rows": wide + hidden, "count": blocks},
        {"role": "linear", "rows": hidden, "columns": hidden} | use,
        {"role": "gate_up_proj_adapter", "rows": hidden + 2 * width, "columns": rank} | use,
    ]
    if config.flag("use_shared_attention_adapter"):
        extra.append({"role": "qkv_adapter", "rows": 2 * wide, "columns": rank, "count": 3} | use)
    fields["extra"] = tuple(extra)
    fields["entries"] = [
        each.model_copy(update={"owns_weights": False}) if each.kind == "parallel" else each
        for each in fields["entries"]
    ]


#: What a row's ``special`` may be.
SPECIAL: dict[str, Callable[[Config, Fields], None]] = {
    "gemma4": _gemma4,
    "t5gemma": _t5gemma,
    "t5gemma2": _t5gemma2,
    "mimo": _mimo,
    "glm4_moe": _glm4_moe,
    "falcon": _falcon,
    "t5": _t5,
    "gpt2": _gpt2,
    "chatglm": _chatglm,
    "minicpmv": _minicpmv,
    "jetmoe": _jetmoe,
    "hrm_text": _hrm_text,
    "ouro": _ouro,
    "mpt": _mpt,
    "openelm": _openelm,
    "lfm2": _lfm2,
    "hunyuan": _hunyuan,
    "baichuan_m1": _baichuan_m1,
    "longcat": _longcat,
    "deepseek_v4": _deepseek_v4,
    "kimi_linear": _kimi_linear,
    "nas": _nas,
    "zamba2": _zamba2,
}
