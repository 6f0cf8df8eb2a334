"""A file read by the row of its model type: the layers of the model, and the other fields of its spec."""

from __future__ import annotations

import re
from collections.abc import Mapping

from kvcalc.architecture import MOST_LAYERS
from kvcalc.errors import InputError
from kvcalc.sources.config.classes import by_class
from kvcalc.sources.config.family import (
    Attention,
    Encoder,
    Extra,
    Family,
    FeedForward,
    Keys,
    Norms,
    PerLayerInput,
    Positions,
    Size,
    Switch,
)
from kvcalc.sources.config.layers import entries_of
from kvcalc.sources.config.parts import STATES, Experts, Fields, experts
from kvcalc.sources.config.reader import (
    CONTEXTS,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    VOCABULARY,
    WINDOWS,
    Config,
)
from kvcalc.sources.config.special import SPECIAL
from kvcalc.sources.spec import LETTERS, LayerSpec


def describe(config: Config, family: Family) -> tuple[list[LayerSpec], Fields]:
    """The layers of a model, one entry each, and the other fields of its spec."""
    num_layers = _layer_count(config, family)
    latent = family.latent and not _without_latent(config)
    kinds = family.kind_of(latent=latent)
    entries, mtp_layers = entries_of(config, family.order, kinds, num_layers, family.mtp_kind)
    if family.last_is_global and entries[-1].kind == "sliding":
        entries[-1] = LETTERS["F"]
        config.notes.append("the last layer is global, whatever the file says: its model type has it so")
    if latent and not any(entry.kind == "latent" for entry in entries):
        raise InputError("no layer of the model has latent attention, which its model type is made of")
    fields = _of_the_model(config, family)
    if mtp_layers:
        # transformers saves a text part alone under its own type, and leaves these layers out.
        alone = not config.outer and str(config.table.get("model_type")).endswith("_text")
        fields |= {"mtp_layout": tuple(mtp_layers), "mtp_tensors": "none" if alone else family.mtp_tensors}
    fields |= _of_the_layers(config, family, entries, fields["hidden_size"])
    config.notes += family.notes
    fields["entries"] = entries
    if family.special is not None:
        SPECIAL[family.special](config, fields)
    entries = fields.pop("entries")
    fields["num_layers"] = len(entries)
    fields["extra"] = (*fields.get("extra", ()), *_extra(config, family.extra, fields))
    if family.no_cache:
        config.notes.append("every token sees every other, and each step reads them all again: no KV cache is kept")
        entries = [LayerSpec(kind="encoder")] * len(entries)
    elif family.bidirectional_if is not None and config.value(family.bidirectional_if) in (True, "all"):
        config.notes.append("bidirectional attention: an encoder, which keeps no KV cache")
        entries = [LayerSpec(kind="encoder")] * len(entries)
    by_class(config, fields)
    fields["rope_factors"] = _rope_factors(config, family, fields)
    _note_unread(config, family)
    return entries, fields


#: A key that says how wide something is, or how many heads or experts there are.
_WIDTH = re.compile(
    "(^|_)(dim|heads?|rank|width|inner|expand|expansion|ffn?|mlp|kv|experts?|hidden|dff)(_|$)", re.IGNORECASE
)
#: One that says it of something else: another part of a wrapper, the rope, the routing, the training.
_OF_SOMETHING_ELSE = re.compile(
    "(^|_)(max|tokens?|ids?|index|rope|rotary|image|vision|visual|audio|video|mm|query|labels?|topk|groups?|target|per"
    "|projector|encoder|capacity|classifier|prompt|time|median|base)(_|$)",
    re.IGNORECASE,
)
#: Keys that other keys say again, or that are of parts which a model without them states all the same.
_SAID_ELSEWHERE = re.compile(
    "(num_attention_heads|num_key_value_heads|n_head_kv|(qk_|v_|qk_rope_)?head_dim|moe_intermediate_size|mamba_expand"
    "|(cross_)?attention_hidden_size|gated_norm_rank)$"
)


def _note_unread(config: Config, family: Family) -> None:
    """Say which keys of the file look like a width or a number of heads, and are read by no rule."""
    read = config.asked.union(family.names.values())
    unread = [
        f"{key[:60]} {value}"
        for key, value in list(config.table.items())[:1000]
        if type(value) is int and value > 1 and key not in read
        if _WIDTH.search(key) and not _OF_SOMETHING_ELSE.search(key) and not _SAID_ELSEWHERE.match(key)
    ]
    if unread:
        listed = ", ".join(unread[:5])
        config.notes.append(f"not read by the rules of {config.model_type}: {listed}; the sizes may differ")


def _of_the_model(config: Config, family: Family) -> Fields:
    """What stands outside the layers, and what all of them share."""
    fields: Fields = {
        "hidden_size": config.need(*HIDDEN),
        "vocab_size": config.need(*VOCABULARY),
        "max_context": config.tokens(*CONTEXTS),
        "tie_embeddings": not family.never_tied and _tied(config),
        "head_bias": _on(config, family.head_bias),
        "norms": _norms(config, family.norms),
    }
    if family.learned_positions is not None:
        fields["learned_positions"] = _positions(config, family.learned_positions)
    if family.embedding_size is not None:
        fields["embedding_size"] = config.count(family.embedding_size)
    if family.hyper_connections is not None:
        fields["hyper_connections"] = config.count(family.hyper_connections, least=0, most=64) or 0
    if family.kv_shared_last_layers is not None:
        fields["kv_shared_last_layers"] = config.count(family.kv_shared_last_layers, least=0) or 0
    if family.per_layer_input is not None:
        fields["per_layer_input"] = _per_layer_input(config, family.per_layer_input)
    if family.encoder is not None:
        fields["encoder"] = _encoder(config, family.encoder)
        if family.encoder.shared_tables and config.table.get("tie_word_embeddings") is False:
            fields["encoder"]["embedding"] = True
            table = {"rows": fields["vocab_size"], "columns": fields["hidden_size"]}
            fields["extra"] = ({"role": "decoder.embed_tokens", "part": "embedding"} | table,)
        config.notes.append("the cross-attention cache is as long as the encoder's input: encoder_tokens")
    return fields


def _of_the_layers(config: Config, family: Family, entries: list[LayerSpec], hidden_size: int) -> Fields:
    """What the layers are made of: attention, latents, states, feed-forward blocks and experts."""
    fields: Fields = {}
    kinds = {entry.kind for entry in entries}
    if kinds & {"full", "sliding", "chunked", "parallel", "cross"}:
        fields["attention"] = _attention(config, family, hidden_size, entries)
        fields["local_attention"] = _local_attention(config, family.attention)
    if "latent" in kinds:
        fields["latent"] = _latent(config, hidden_size)
    if kinds & {"state", "parallel"}:
        fields["state"] = STATES[family.state or "as_stated"](config)
    parts = {
        "feed_forward": _feed_forward(config, family.feed_forward, hidden_size),
        "experts": _experts(config, family, len(entries)),
    }
    return fields | {name: table for name, table in parts.items() if table is not None}


def _without_latent(config: Config) -> bool:
    """Whether a file of a latent type has plain attention (DeepSeek-OCR): no rank, or ``use_mla`` false."""
    stated = config.table.get("kv_lora_rank", config.defaults.get("kv_lora_rank"))
    return config.table.get("use_mla") is False or stated in (None, 0)


def _norms(config: Config, row: Norms) -> Fields:
    per_layer = row.per_layer
    if row.parallel_if is not None and config.flag(row.parallel_if):
        per_layer = 1
    if row.behind_if is not None and config.flag(row.behind_if):
        per_layer = 4
    return {"per_layer": per_layer, "bias": row.bias, "final": _on(config, row.final), "embedding": row.embedding}


def _experts(config: Config, family: Family, num_layers: int) -> Fields | None:
    """The mixture of experts; a file of a dense type may have one under the usual keys (MiniCPM-MoE)."""
    if family.experts is not None:
        return experts(config, family.experts, num_layers)
    usual = Experts(shared_count=("n_shared_experts", "num_shared_experts"))
    count = config.stated(*usual.count)
    if count is None or (isinstance(count, int) and count < 2):
        return None
    config.notes.append(f"experts, which {config.model_type} files seldom have, are read as usual: weights estimated")
    return experts(config, usual, num_layers)


def _layer_count(config: Config, family: Family) -> int:
    """The layers that the file counts, times the layers here for each of them; a list of layers counts itself."""
    listed = config.stated("layer_types", "layers_block_type")
    pattern = config.stated("hybrid_override_pattern")
    if config.value(*LAYERS) is None and isinstance(listed or pattern, list | tuple | str):
        num_layers = len(listed or pattern)
    else:
        num_layers = config.need(*LAYERS, most=MOST_LAYERS // family.layers_factor) * family.layers_factor
    if not 1 <= num_layers <= MOST_LAYERS:
        raise InputError(f"the model has {num_layers} layers, outside 1 to {MOST_LAYERS:,}", location=LAYERS[0])
    return num_layers


def _tied(config: Config) -> bool:
    """``tie_word_embeddings`` of the file around the text part, which transformers 5 follows, of the text part, or of
    the class.
    """
    for table in (config.outer, config.table):
        for name in ("tie_word_embeddings", "tie_embedding", "share_input_output_layers"):
            if isinstance(table.get(name), bool):
                return bool(table[name])
    return config.flag("tie_word_embeddings")


def _on(config: Config, switch: Switch) -> bool:
    if isinstance(switch, bool):
        return switch
    return not config.flag(switch[4:]) if switch.startswith("not ") else config.flag(switch)


def _attention(config: Config, family: Family, hidden_size: int, entries: list[LayerSpec]) -> Fields:
    row = family.attention
    heads = _first(config, "num_query_heads") or config.need(*HEADS)
    kv_heads = _first(config, "num_kv_heads") or config.count(*(row.kv_heads or KV_HEADS)) or heads
    if row.kv_heads_if is not None and not config.flag(row.kv_heads_if):
        kv_heads = heads
    if row.one_kv_head_if is not None:
        kv_heads = 1 if config.flag(row.one_kv_head_if) else heads
    head_dim = config.count(*HEAD_DIM) or hidden_size // heads
    if family.latent:  # a latent type's file without latents
        split = [config.count(key, least=0) or 0 for key in ("qk_nope_head_dim", "qk_rope_head_dim")]
        head_dim = sum(split) or hidden_size // heads
    if head_dim < 1:
        raise InputError(f"{heads} heads do not fit into a hidden size of {hidden_size}", location=HEADS[0])
    normed = row.qk_norm_if is None or config.flag(row.qk_norm_if)
    fields: Fields = {
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "qk_norm": row.qk_norm if normed else "none",
        "qkv_bias": _on(config, row.qkv_bias),
        "key_bias": None if row.key_bias else False,
        "output_bias": _on(config, row.output_bias),
        "gate": row.gate if row.gate_if is None or config.flag(row.gate_if) else "none",
        "gate_bias": row.gate_bias,
        "sinks": row.sinks,
    }
    value_dim = config.count("v_head_dim", least=0)
    if value_dim and value_dim != head_dim:
        fields["v_head_dim"] = value_dim
    kinds = {entry.of if entry.kind == "parallel" else entry.kind for entry in entries if entry.window is None}
    if "sliding" in kinds:
        fields["window"] = _window(config)
    if "chunked" in kinds:
        fields["chunk"] = config.need("attention_chunk_size", most=2**50)
    numbers = {"query_rank": row.query_rank, "indexer_dim": row.indexer_dim, "indexer_heads": row.indexer_heads}
    fields |= {name: config.need(*keys) for name, keys in numbers.items() if keys}
    return {name: value for name, value in fields.items() if name == "key_bias" or value not in (False, "none")}


def _local_attention(config: Config, row: Attention) -> Fields | None:
    """What the file says of sliding and chunked layers alone."""
    numbers = {name: config.count(*keys) for name, keys in row.local.items()}
    return {name: number for name, number in numbers.items() if number is not None} or None


def _first(config: Config, key: str) -> int | None:
    """The first of a list of numbers, one a layer, or None where the key holds no list."""
    if not isinstance(config.stated(key), list | tuple):
        return None
    numbers = config.counts(key, least=1)
    return numbers[0] if numbers else None


def _window(config: Config) -> int:
    window = config.tokens(*WINDOWS)
    if window is None:
        raise InputError(
            "the model has sliding layers, but no sliding window",
            hint=f"known keys: {', '.join(WINDOWS)}",
            location=config.named(*WINDOWS),
        )
    if config.value("use_bidirectional_attention") in (True, "all"):
        window = window // 2 + 1
    return window


def _latent(config: Config, hidden_size: int) -> Fields:
    heads = config.need(*HEADS)
    fields: Fields = {
        "num_heads": heads,
        "rank": config.need("kv_lora_rank"),
        "rope_dim": config.need("qk_rope_head_dim", least=0),
        "nope_dim": config.need("qk_nope_head_dim", least=0),
        "v_head_dim": config.count("v_head_dim") or hidden_size // heads or 1,
        "query_rank": config.count("q_lora_rank"),
    }
    if config.flag("attention_bias"):
        fields["bias"] = True
    if config.flag("mla_use_output_gate"):
        fields["gate"] = True
    if config.value("index_head_dim") is not None:
        fields["indexer_dim"] = config.need("index_head_dim")
        fields["indexer_heads"] = config.need("index_n_heads")
    return fields


def _feed_forward(config: Config, row: FeedForward, hidden_size: int) -> Fields | None:
    size = _widths(config, row.width) if row.width else None
    if size is None and row.width_factor is not None:
        factor = row.width_factor
        size = (config.need(factor, most=10_000) if isinstance(factor, str) else factor) * hidden_size
    if not size:
        return None
    if row.width_divisor != 1:
        if not isinstance(size, int):
            raise InputError("a list of widths has no meaning for this model type", location=row.width[0])
        size //= row.width_divisor
    return {
        "intermediate_size": size,
        "gated": row.gated,
        "bias": _on(config, row.bias),
        "norm": row.norm,
        "activation_parameters": row.activation_parameters,
    }


def _positions(config: Config, row: Positions) -> int:
    return config.need(*row.rows) + row.extra


def _encoder(config: Config, row: Encoder) -> Fields:
    """The encoder's numbers; what the file does not say of it is the decoder's."""
    keys = {
        "hidden_size": row.hidden_size,
        "intermediate_size": row.intermediate_size,
        "num_heads": row.num_heads,
        "num_kv_heads": row.num_kv_heads,
        "head_dim": row.head_dim,
    }
    fields: Fields = {name: config.count(*each) for name, each in keys.items() if each}
    if row.learned_positions is not None:
        fields["learned_positions"] = _positions(config, row.learned_positions)
    return fields | {
        "num_layers": config.need(*row.num_layers, most=MOST_LAYERS),
        "gated": row.gated,
        "norms_per_layer": row.norms_per_layer,
        "norms": row.norms,
        "embedding": _on(config, row.embedding),
    }


def _extra(config: Config, rows: tuple[Extra, ...], fields: Fields) -> list[Fields]:
    """Weights that no other table has; one without elements is left out."""
    attention = fields.get("attention", {})
    known = {name: attention.get(name) for name in ("num_heads", "num_kv_heads", "head_dim")} | {
        **{name: fields[name] for name in ("hidden_size", "vocab_size", "num_layers")},
        "intermediate_size": fields.get("feed_forward", {}).get("intermediate_size"),
    }

    def size(stated: Size) -> int:
        product = 1
        for factor in stated if isinstance(stated, tuple) else (stated,):
            named = known.get(factor) if isinstance(factor, str) else factor
            product *= config.need(str(factor), least=0) if named is None else named
        return product

    extra = []
    for row in rows:
        if not _on(config, row.when):
            continue
        sizes = {"rows": size(row.rows), "columns": size(row.columns), "count": size(row.count)}
        if all(sizes.values()):
            extra.append({"role": row.role, "part": row.part, "linear": row.linear, "layers": row.layers} | sizes)
    return extra


def _rope_factors(config: Config, family: Family, fields: Fields) -> int | str:
    """Numbers of the tables of rope factors that llama.cpp's converter writes beside the weights.

    One for each pair of a head's numbers (Llama 3, Gemma 4), or two where long prompts have their own (Phi 3); see
    llama.cpp 0274f0fc, conversion/llama.py, gemma.py, phi.py and minicpm.py (generate_extra_tensors).
    """
    places = [config.table, config.outer]
    stated = [place[key] for place in places for key in ("rope_scaling", "rope_parameters") if key in place]
    rope = next((each for each in stated if isinstance(each, Mapping)), {})
    rope = each if isinstance(each := rope.get("full_attention"), Mapping) else rope
    unstated = not stated and not any("rope_theta" in place for place in places)
    head_dim: int = fields.get("attention", {}).get("head_dim", 0)
    match rope.get("rope_type") or rope.get("type") or family.rope:
        case "llama3" | "proportional":
            return head_dim // 2
        case "longrope" | "su":
            part = rope.get("partial_rotary_factor", config.value("partial_rotary_factor"))
            width: int = fields.get("latent", {}).get("rope_dim", head_dim)
            return int(width * part) if isinstance(part, int | float) and 0 < part < 1 else width
        case "as stated" if unstated:
            return "unknown"
    return 0


def _widths(config: Config, keys: Keys) -> int | tuple[int, ...] | None:
    """The width of the feed-forward blocks, or one a layer where they differ."""
    if not isinstance(config.value(*keys), list | tuple):
        return config.count(*keys)
    numbers = config.counts(config.named(*keys), least=1) or []
    return numbers[0] if len(set(numbers)) == 1 else tuple(numbers)


def _per_layer_input(config: Config, row: PerLayerInput) -> Fields | None:
    width = config.count(row.width, least=0)
    if not width:
        return None
    fields: Fields = {"width": width, "vocab_size": config.need(row.vocab_size)}
    if row.altup_inputs is not None:
        fields["altup_inputs"] = config.count(row.altup_inputs, most=64) or 0
    if row.laurel_rank is not None:
        fields["laurel_rank"] = config.count(row.laurel_rank, least=0) or 0
    return fields
