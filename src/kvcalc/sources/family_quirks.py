"""What only one model type has: the last word on the fields of its spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvcalc.architecture import MOST_LAYERS
from kvcalc.errors import InputError, UnsupportedError, quote
from kvcalc.sources.config_reader import Config
from kvcalc.sources.family_parts import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, Fields
from kvcalc.sources.spec import LayerSpec
from kvcalc.units import ceil_div


def bidirectional(config: Config, fields: Fields) -> None:
    """A model whose tokens see each other both ways keeps nothing between tokens."""
    if config.value("use_bidirectional_attention") not in (True, "all"):
        return
    config.notes.append("bidirectional attention: an encoder, which keeps no KV cache")
    fields["bidirectional"] = True


def _width(fields: Fields) -> int:
    """The one feed-forward width of a model type whose layers all have the same."""
    size = fields["feed_forward"]["intermediate_size"]
    if not isinstance(size, int):
        raise InputError("a list of widths has no meaning for this model type", location="intermediate_size")
    return size


def qwen(config: Config, fields: Fields) -> None:
    """Half of what the file says: it counts the gate too."""
    fields["feed_forward"] = {"intermediate_size": _width(fields) // 2}


def _per_layer_input(config: Config, fields: Fields, **more: Any) -> None:
    width = config.count("hidden_size_per_layer_input", least=0)
    if width:
        rows = config.need("vocab_size_per_layer_input")
        fields["per_layer_input"] = {"width": width, "vocab_size": rows} | more


def gemma3n(config: Config, fields: Fields) -> None:
    fields["kv_shared_last_layers"] = config.count("num_kv_shared_layers", least=0) or 0
    altup = config.count("altup_num_inputs", most=64) or 0
    _per_layer_input(config, fields, altup_inputs=altup, laurel_rank=config.count("laurel_rank", least=0) or 0)


def gemma4(config: Config, fields: Fields) -> None:
    """Global layers have a head width of their own, and KV heads of their own where K and V share a projection."""
    fields["kv_shared_last_layers"] = config.count("num_kv_shared_layers", least=0) or 0
    attention = fields["attention"]
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
    _per_layer_input(config, fields)
    if config.flag("use_double_wide_mlp") and fields["kv_shared_last_layers"]:
        fields["feed_forward"]["shared_layers_size"] = 2 * _width(fields)
    if not config.flag("enable_moe_block"):
        fields.pop("experts", None)
    if "experts" in fields:
        fields["norms"]["per_layer"] += 3
    bidirectional(config, fields)


def t5gemma(config: Config, fields: Fields) -> None:
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
    config.notes.append("the cross-attention cache is as long as the encoder's input: encoder_tokens")


def mllama(config: Config, fields: Fields) -> None:
    config.notes.append("cross-attention layers cache the image tokens: encoder_tokens; the gates are not counted")


def llama4(config: Config, fields: Fields) -> None:
    """Dense layers have a width of their own; each layer with experts has one shared expert."""
    dense = config.need("intermediate_size_mlp")
    fields["feed_forward"]["intermediate_size"] = dense


def only_experts(config: Config, fields: Fields) -> None:
    """``intermediate_size`` is the experts' own width: no layer is dense."""
    if "experts" in fields:
        fields.pop("feed_forward", None)


def qwen3_5(config: Config, fields: Fields) -> None:
    """The query projection holds the gate; where every layer has experts, no layer reads ``intermediate_size``."""
    fields["attention"]["gate_bias"] = True
    if "experts" in fields and not fields["experts"].keys() & {"first_dense", "dense_layers", "every"}:
        fields.pop("feed_forward", None)


def mimo(config: Config, fields: Fields) -> None:
    """Sliding layers have heads of their own, where the file says nothing twice the KV heads of the full ones."""
    local: Fields = {"num_kv_heads": 2 * fields["attention"]["num_kv_heads"]}
    for key, name in (
        ("swa_num_attention_heads", "num_heads"),
        ("swa_num_key_value_heads", "num_kv_heads"),
        ("swa_head_dim", "head_dim"),
        ("swa_v_head_dim", "v_head_dim"),
    ):
        number = config.count(key)
        if number is not None:
            local[name] = number
    local = {name: number for name, number in local.items() if number != fields["attention"].get(name)}
    local["sinks"] = config.flag("add_swa_attention_sink_bias", default=True)
    fields["local_attention"] = local


def step3p5(config: Config, fields: Fields) -> None:
    """Sliding layers may have other head counts, under ``attention_other_setting``."""
    other = config.table_at("attention_other_setting")
    local: Fields = {}
    for keys, name in (
        (("num_attention_heads",), "num_heads"),
        (("num_attention_groups", "num_key_value_heads"), "num_kv_heads"),
        (("head_dim",), "head_dim"),
    ):
        number = other.count(*keys)
        if number is not None:
            local[name] = number
    heads = config.count("num_sliding_attention_heads")
    if heads is not None:
        local["num_heads"] = heads
    if local:
        fields["local_attention"] = local


def step3(config: Config, fields: Fields) -> None:
    fields["attention"]["query_rank"] = config.need("share_q_dim")


def falcon(config: Config, fields: Fields) -> None:
    """One KV head, or ``num_kv_heads`` in the new decoder architecture."""
    heads = fields["attention"]["num_heads"]
    if config.flag("new_decoder_architecture"):
        kv_heads = config.count("num_kv_heads", "n_head_kv") or heads
    else:
        kv_heads = 1 if config.flag("multi_query") else heads
    fields["attention"]["num_kv_heads"] = kv_heads
    parallel = config.flag("parallel_attn") or config.flag("new_decoder_architecture")
    both = config.flag("new_decoder_architecture") and config.count("num_ln_in_parallel_attn") in (None, 2)
    fields["norms"]["per_layer"] = 2 if both or not parallel else 1


def gpt2(config: Config, fields: Fields) -> None:
    fields["learned_positions"] = config.need("n_positions", "n_ctx")


def gpt_bigcode(config: Config, fields: Fields) -> None:
    """One KV head, or one for each query head: the class reads no ``num_key_value_heads``."""
    gpt2(config, fields)
    attention = fields["attention"]
    attention["num_kv_heads"] = 1 if config.flag("multi_query") else attention["num_heads"]


def opt(config: Config, fields: Fields) -> None:
    """No norm behind the last layer where each layer has its norms behind its blocks (OPT-350m)."""
    fields["learned_positions"] = config.need("max_position_embeddings") + 2
    fields["norms"]["final"] = config.flag("do_layer_norm_before", default=True)
    width = config.count("word_embed_proj_dim")
    if width not in (None, fields["hidden_size"]):
        config.notes.append(f"the embedding of width {width} and its two projections are counted as one full width")


def bloom(config: Config, fields: Fields) -> None:
    fields["norms"]["embedding"] = True


def head_bias(config: Config, fields: Fields) -> None:
    fields["head_bias"] = True


def ernie_moe(config: Config, fields: Fields) -> None:
    """``use_bias`` is for the head too."""
    fields["head_bias"] = config.flag("use_bias")


def nemotron_h(config: Config, fields: Fields) -> None:
    """The routed experts may work in a narrower space; of the keys for Mamba's biases the class reads ``use_bias``."""
    if "experts" in fields:
        fields["experts"]["latent_size"] = config.count("moe_latent_size")
    if "state" in fields:
        fields["state"]["bias"] = config.flag("use_bias")


def parallel_residual(config: Config, fields: Fields) -> None:
    if config.flag("use_parallel_residual"):
        fields["norms"]["per_layer"] = 1


def multi_query(config: Config, fields: Fields) -> None:
    """ChatGLM: KV heads only where ``multi_query_attention`` is true."""
    if not config.flag("multi_query_attention"):
        fields["attention"]["num_kv_heads"] = fields["attention"]["num_heads"]


def mpt(config: Config, fields: Fields) -> None:
    table = config.table_at("attn_config")
    heads = fields["attention"]["num_heads"]
    kv_heads = 1 if table.word("attn_type") == "multiquery_attention" else table.count("kv_n_heads") or heads
    fields["attention"]["num_kv_heads"] = kv_heads
    fields["feed_forward"] = {
        "intermediate_size": (config.count("expansion_ratio") or 4) * fields["hidden_size"],
        "gated": False,
    }


def dbrx(config: Config, fields: Fields) -> None:
    attention, dense = config.table_at("attn_config"), config.table_at("ffn_config")
    fields["attention"]["num_kv_heads"] = attention.count("kv_n_heads") or 1
    fields["experts"] = {
        "count": dense.count("moe_num_experts") or 4,
        "active": dense.count("moe_top_k") or 1,
        "intermediate_size": dense.count("ffn_hidden_size") or 3584,
    }


def openelm(config: Config, fields: Fields) -> None:
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


def lfm2(config: Config, fields: Fields) -> None:
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


def recurrent_gemma(config: Config, fields: Fields) -> None:
    fields["feed_forward"] = {"intermediate_size": config.need("intermediate_size") // 2, "bias": True}


def apertus(config: Config, fields: Fields) -> None:
    """The activation, xIELU, has two numbers of its own."""
    fields["feed_forward"]["activation_parameters"] = 2


def axk1(config: Config, fields: Fields) -> None:
    fields["experts"]["norm"] = True


def bitnet(config: Config, fields: Fields) -> None:
    fields["feed_forward"]["norm"] = True


def hyperclovax(config: Config, fields: Fields) -> None:
    """Both blocks have a norm behind them too, unless ``use_post_norm`` is false."""
    if config.flag("use_post_norm"):
        fields["norms"]["per_layer"] = 4


def hunyuan(config: Config, fields: Fields) -> None:
    if config.flag("use_cla"):
        fields["kv_shared_stride"] = config.count("cla_share_factor", most=MOST_LAYERS) or 1


def hunyuan_moe(config: Config, fields: Fields) -> None:
    hunyuan(config, fields)
    if "experts" in fields:
        fields.pop("feed_forward", None)


def baichuan_m1(config: Config, fields: Fields) -> None:
    """Sliding layers have heads of their own; both keep one past token of K and V for a convolution of width 2."""
    hidden = fields["hidden_size"]
    heads = config.count("num_swa_attention_heads") or fields["attention"]["num_heads"]
    local = {"num_heads": heads, "num_kv_heads": config.need("num_swa_key_value_heads"), "head_dim": hidden // heads}
    kept = (config.count("conv_window") or 2) - 1
    for table in (fields["attention"], local):
        table["extra_state_bytes"] = kept * 2 * table["num_kv_heads"] * table["head_dim"] * 2
    fields["local_attention"] = local


def longcat(config: Config, fields: Fields) -> None:
    """Two attentions and two dense blocks a layer, and experts beside the first: two layers here.

    The class has rows of the experts' first matrix for zero experts too, which no checkpoint has and nothing reads.
    """
    config.notes.append("each layer of the file has two attentions: it counts as two layers here")
    fields["experts"] |= {"every": 2, "offset": 0, "beside_dense": True}
    fields["experts"]["zero_experts"] = config.count("zero_expert_num", least=0) or 0


def deepseek_v4(config: Config, fields: Fields) -> None:
    """One shared expert, whatever ``n_shared_experts`` says; no dense block, but its biases are the shared expert's."""
    experts = fields["experts"]
    experts["shared_intermediate_size"] = experts["intermediate_size"]
    fields.pop("feed_forward", None)
    if config.flag("mlp_bias"):
        fields["feed_forward"] = {"intermediate_size": experts["intermediate_size"], "bias": True}
    fields["hyper_connections"] = config.count("hc_mult", least=0, most=64) or 0
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


def minimax_m3(config: Config, fields: Fields) -> None:
    table = config.table_at("sparse_attention_config")
    dim = table.count("sparse_index_dim") or config.need("index_head_dim")
    heads = table.count("sparse_num_index_heads") or config.need("index_n_heads")
    fields["attention"] |= {"indexer_dim": dim, "indexer_heads": heads}
    fields["feed_forward"]["intermediate_size"] = config.need("dense_intermediate_size")


def nas(config: Config, fields: Fields) -> None:
    """``block_configs``: each layer says whether it has attention and a feed-forward block, and how wide.

    DeciLM's first files list ``num_key_value_heads_per_layer`` instead.
    """
    count = config.need(*LAYERS, most=MOST_LAYERS)
    listed = config.counts("num_key_value_heads_per_layer", least=1)
    if listed is not None and len(listed) == count:
        fields["entries"] = [LayerSpec(kind="full", num_kv_heads=each) for each in listed]
        return
    blocks = config.sequence("block_configs")
    if blocks is None or len(blocks) != count:
        raise InputError(f"block_configs must name all of {count} layers", location="block_configs")
    hidden, heads = fields["hidden_size"], fields["attention"]["num_heads"]
    entries = []
    for at, block in enumerate(blocks):
        place = f"block_configs[{at}]"
        if not isinstance(block, Mapping):
            raise InputError(f"{place} must be a table", location=place)
        reader = Config(block, config.model_type, {}, {})
        entries.append(_nas_layer(reader.table_at("attention"), reader.table_at("ffn"), hidden, heads, place))
    fields["entries"] = entries
    fields["feed_forward"] = {"intermediate_size": max([e.intermediate_size or 1 for e in entries])}
    fields["attention"]["num_kv_heads"] = next((e.num_kv_heads for e in entries if e.num_kv_heads), heads)


def _nas_layer(attention: Config, dense: Config, hidden: int, heads: int, place: str) -> LayerSpec:
    if attention.flag("sparsify") or attention.count("num_sink_tokens", least=0):
        raise UnsupportedError("no rule covers sink tokens or sparsified attention", location=f"{place}.attention")
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


def zamba2(config: Config, fields: Fields) -> None:
    """The attention blocks read twice the hidden size, share their weights, and each use keeps its own cache."""
    hidden = fields["hidden_size"]
    heads = fields["attention"]["num_heads"]
    fields["attention"]["head_dim"] = config.count("attention_head_dim") or 2 * hidden // heads
    config.notes.append("the shared attention block is counted at each of its uses: the weights are an upper estimate")


def phimoe(config: Config, fields: Fields) -> None:
    only_experts(config, fields)
    fields["head_bias"] = config.flag("lm_head_bias")


def granite_hybrid(config: Config, fields: Fields) -> None:
    """With no routed experts the shared block is the dense one; it stays beside the experts otherwise."""
    shared = config.count("shared_intermediate_size", least=0) or 0
    if "experts" in fields:
        fields.pop("feed_forward", None)
    else:
        fields["feed_forward"] = {"intermediate_size": shared}
