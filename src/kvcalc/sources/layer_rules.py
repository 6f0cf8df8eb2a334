"""From a config.json to its list of layers: the spellings that state them, and the rules of model types that do not.

A rule returns one Hugging Face layer type a layer ("full_attention", "sliding_attention" ...).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvcalc.architecture import MOST_LAYERS
from kvcalc.errors import InputError, UnsupportedError, quote
from kvcalc.sources.config_reader import Config
from kvcalc.sources.spec import LETTERS, LayerSpec

FULL, SLIDING, CHUNKED, STATE = "full_attention", "sliding_attention", "chunked_attention", "linear_attention"
Rule = Callable[[Config, int], list[str]]

WINDOW_KEYS = ("sliding_window", "sliding_window_size", "attention_window_size", "interleaved_sliding_window")
MTP_KEYS = (
    "num_nextn_predict_layers",
    "mtp_num_hidden_layers",
    "mtp_num_layers",
    "num_mtp_modules",
    "num_mtp_layers",
)

_NAMED = {
    "full": LETTERS["F"],
    "sliding": LETTERS["S"],
    "chunked": LETTERS["C"],
    "latent": LETTERS["L"],
    "state": LETTERS["R"],
    "parallel": LETTERS["P"],
    "parallel sliding": LayerSpec(kind="parallel", of="sliding"),
    "cross": LETTERS["X"],
    "none": LETTERS["N"],
    "latent without indexer": LayerSpec(kind="latent", indexer=False),
    "full without indexer": LayerSpec(kind="full", indexer=False),
    "window only": LayerSpec(kind="compressed"),
    "dense block": LayerSpec(kind="none", feed_forward="dense"),
    "expert block": LayerSpec(kind="none", feed_forward="experts"),
    "full alone": LayerSpec(kind="full", feed_forward="none"),
    "state alone": LayerSpec(kind="state", feed_forward="none"),
}

#: Hugging Face layer type -> the kind of layer that it is, unless the family says otherwise.
LAYER_TYPES: dict[str, str] = {
    FULL: "full",
    "attention": "full",
    "global_attention": "full",
    SLIDING: "sliding",
    "local_attention": "sliding",
    CHUNKED: "chunked",
    STATE: "state",
    "mamba": "state",
    "mamba2": "state",
    "recurrent": "state",
    "conv": "state",
    "hybrid": "parallel",
    "hybrid_sliding": "parallel sliding",
    "mlp": "dense block",
    "moe": "expert block",
}


def entries_of(config: Config, rule: Rule, kinds: Mapping[str, str], num_layers: int) -> tuple[list[LayerSpec], str]:
    """The layers of a model, and the letters of its multi-token-prediction layers ("" for none)."""
    count = config.count(*MTP_KEYS, least=0, most=MOST_LAYERS) or 0 if config.stated(*MTP_KEYS) is not None else 0
    key = next((key for key in ("layer_types", "layers_block_type") if config.stated(key) is not None), None)
    if key is None:
        types, extra = rule(config, num_layers), []
    else:
        listed = [_text(each, f"{key}[{at}]") for at, each in enumerate(config.sequence(key) or [])]
        if len(listed) not in (num_layers, num_layers + count):
            raise InputError(f"{key} has {len(listed)} entries for {num_layers} layers", location=key)
        types, extra = listed[:num_layers], listed[num_layers:]
    entries = [_entry(each, kinds, key or "layer_types", at) for at, each in enumerate(types)]
    entries = _windowed(config, _overridden(config, entries))
    return entries, _mtp_letters(config, entries, extra, kinds, count)


def _entry(layer_type: str, kinds: Mapping[str, str], key: str, at: int) -> LayerSpec:
    kind = kinds.get(layer_type) or LAYER_TYPES.get(layer_type)
    if kind is None:
        known = ", ".join(dict.fromkeys([*kinds, *LAYER_TYPES]))
        raise UnsupportedError(
            f"unknown layer type {quote(layer_type)}",
            hint=f"what such a layer caches would have to be known: describe it in a spec file; known are {known}",
            location=f"{key}[{at}]",
        )
    if kind.startswith("compressed"):  # "compressed 4" and "compressed 4 indexer"
        _, ratio, *indexer = kind.split()
        return LayerSpec(kind="compressed", ratio=int(ratio), indexer=True if indexer else None)
    return _NAMED[kind]


def _mtp_letters(
    config: Config, entries: list[LayerSpec], extra: list[str], kinds: Mapping[str, str], count: int
) -> str:
    """MTP layers are as the padding of the list says, or like the last attention layer."""
    if not count:
        return ""
    specs = [_entry(each, kinds, "layer_types", len(entries) + at) for at, each in enumerate(extra)]
    if not specs:
        usual = [LETTERS[letter] for letter in "FSCLP"]
        specs = [entry for entry in entries if entry in usual][-1:] * count
    letters = {spec: letter for letter, spec in LETTERS.items()}
    if not specs or not all(spec in letters for spec in specs):
        config.notes.append(f"{count} multi-token-prediction layers are not modelled")
        return ""
    return "".join(letters[spec] for spec in specs)


def _windowed(config: Config, entries: list[LayerSpec]) -> list[LayerSpec]:
    """A list of windows, repeated over the layers, gives each layer its own: null is global."""
    key = next((key for key in WINDOW_KEYS if isinstance(config.stated(key), list | tuple)), None)
    if key is None:
        return entries
    windows = config.sequence(key) or []
    if not windows:
        raise InputError(f"{key} is an empty list", location=key)
    from kvcalc.sources.config_reader import whole

    result = []
    for at, entry in enumerate(entries):
        window = windows[at % len(windows)]
        if entry.kind not in ("full", "sliding"):
            result.append(entry)
        elif window is None:
            result.append(LETTERS["F"])
        else:
            result.append(LayerSpec(kind="sliding", window=whole(window, f"{key}[{at % len(windows)}]", 1, 2**50)))
    return result


_OVERRIDES = {
    "head_dim": "head_dim",
    "v_head_dim": "v_head_dim",
    "num_key_value_heads": "num_kv_heads",
    "num_attention_heads": "num_heads",
    "sliding_window": "window",
}


def _overridden(config: Config, entries: list[LayerSpec]) -> list[LayerSpec]:
    """``per_layer_config``: {"05": {"head_dim": 512}} (transformers 5's form of per-kind geometry)."""
    if config.stated("per_layer_config") is None:
        return entries
    from kvcalc.sources.config_reader import whole

    overrides = config.table_at("per_layer_config")
    result = list(entries)
    cache: dict[tuple[Any, ...], LayerSpec] = {}
    for key in list(overrides.table)[:MOST_LAYERS]:
        place = f"per_layer_config.{key[:20]}"
        if not key.isascii() or not key.isdigit() or len(key) > 6 or int(key) >= len(entries):
            raise InputError(f"{place} names no layer of {len(entries)}", location="per_layer_config")
        changes: dict[str, Any] = {}
        table = overrides.table_at(key)
        for name, value in list(table.table.items())[:100]:
            if name in _OVERRIDES and value is not None:
                changes[_OVERRIDES[name]] = whole(value, f"{place}.{name}", 1)
        entry = entries[int(key)]
        signature = (entry, *sorted(changes.items()))
        if signature not in cache:
            cache[signature] = entry.model_copy(update=changes)
        result[int(key)] = cache[signature]
    return result


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where} must be a text, not {quote(value)}", location=where)
    return value


def all_of(layer_type: str) -> Rule:
    """Every layer of one type."""
    return lambda _config, num_layers: [layer_type] * num_layers


def all_full(_config: Config, num_layers: int) -> list[str]:
    """Every layer is global."""
    return [FULL] * num_layers


def every(*keys: str, default: int | None = None, local: str = SLIDING, offset: int = -1) -> Rule:
    """The last of every p layers is global (or, with an offset, the one at that place); p stands under one of keys."""

    def rule(config: Config, num_layers: int) -> list[str]:
        period = config.count(*keys, most=MOST_LAYERS) if keys else None
        period = period or default
        if period is None:
            raise InputError(f"{keys[0]} is missing", hint="or layer_types", location=keys[0])
        return [FULL if i % period == offset % period else local for i in range(num_layers)]

    return rule


def with_live_window(rule: Rule) -> Rule:
    """A rule for a window that may be null: then every layer is global."""

    def checked(config: Config, num_layers: int) -> list[str]:
        return rule(config, num_layers) if config.value(*WINDOW_KEYS) is not None else [FULL] * num_layers

    return checked


def sliding_if_stated(config: Config, num_layers: int) -> list[str]:
    """A window makes every layer slide (Mistral, Phi-3), unless it is wider than the model's longest context."""
    window = config.value(*WINDOW_KEYS)
    if window is None or isinstance(window, list | tuple):
        return [FULL] * num_layers
    tokens = config.tokens(*WINDOW_KEYS)
    longest = config.tokens(*CONTEXT_KEYS)
    if tokens is not None and longest is not None and tokens > longest:
        config.notes.append(f"the sliding window of {tokens:,} is wider than {longest:,} positions: never used")
        return [FULL] * num_layers
    return [SLIDING] * num_layers


def qwen2(config: Config, num_layers: int) -> list[str]:
    """Layers from ``max_window_layers`` on slide, where ``use_sliding_window`` is true and there is a window."""
    if not config.flag("use_sliding_window") or config.value("sliding_window") is None:
        return [FULL] * num_layers
    first = config.count("max_window_layers", least=0)
    return [SLIDING if first is not None and i >= first else FULL for i in range(num_layers)]


def qwen2_moe(config: Config, num_layers: int) -> list[str]:
    """Qwen2-MoE's own rule: even layers below ``max_window_layers`` slide, where the switch is on."""
    if not config.flag("use_sliding_window") or config.value("sliding_window") is None:
        return [FULL] * num_layers
    first = config.count("max_window_layers", least=0) or 0
    return [SLIDING if i % 2 == 0 and i < first else FULL for i in range(num_layers)]


def use_sliding_window(config: Config, num_layers: int) -> list[str]:
    """All layers slide where ``use_sliding_window`` is true (Qwen3-MoE)."""
    on = config.flag("use_sliding_window") and config.value("sliding_window") is not None
    return [SLIDING if on else FULL] * num_layers


def exaone4(config: Config, num_layers: int) -> list[str]:
    """``sliding_window_pattern``: an integer, or a text of L and G repeated over the layers, the last one global."""
    if config.value("sliding_window") is None:
        return [FULL] * num_layers
    pattern = config.value("sliding_window_pattern")
    if not isinstance(pattern, str):
        return every("sliding_window_pattern", default=4)(config, num_layers)
    if not pattern or set(pattern) - {"L", "G"} or len(pattern) > MOST_LAYERS:
        raise InputError(
            f"sliding_window_pattern must be letters L and G, not {quote(pattern)}", location="sliding_window_pattern"
        )
    return [FULL if pattern[i % len(pattern)] == "G" else SLIDING for i in range(num_layers)]


def llama4(config: Config, num_layers: int) -> list[str]:
    """1 in ``no_rope_layers`` is a layer with rope, which is chunked, 0 a global one; empty: every fourth is global."""
    if config.value("attention_chunk_size") is None:
        return [FULL] * num_layers
    with_rope = config.counts("no_rope_layers", most=1)
    if not with_rope:
        return every("no_rope_layer_interval", default=4, local=CHUNKED)(config, num_layers)
    if len(with_rope) != num_layers:
        raise InputError(
            f"no_rope_layers has {len(with_rope)} entries for {num_layers} layers", location="no_rope_layers"
        )
    return [CHUNKED if rope else FULL for rope in with_rope]


def by_flags(key: str, on: str, off: str, otherwise: Rule) -> Rule:
    """A list of 0 and 1, one a layer (padding behind the last layer is left out)."""

    def rule(config: Config, num_layers: int) -> list[str]:
        flags = config.counts(key, most=1)
        if flags is None:
            return otherwise(config, num_layers)
        if len(flags) < num_layers:
            raise InputError(f"{key} has {len(flags)} entries for {num_layers} layers", location=key)
        return [on if flag else off for flag in flags[:num_layers]]

    return rule


def by_indices(key: str, inside: str, outside: str, otherwise: Rule) -> Rule:
    """A list of the layers of one type."""

    def rule(config: Config, num_layers: int) -> list[str]:
        chosen = config.indices(key, num_layers)
        if chosen is None:
            return otherwise(config, num_layers)
        return [inside if i in chosen else outside for i in range(num_layers)]

    return rule


def repeated_blocks(config: Config, num_layers: int) -> list[str]:
    """``block_types`` or ``_block_types``, repeated over the layers (RecurrentGemma)."""
    key = "block_types" if config.stated("block_types") is not None else "_block_types"
    blocks = config.sequence(key) or config.sequence("block_types")
    if not blocks:
        raise InputError("block_types is missing", location="block_types")
    names = [_text(each, f"{key}[{at}]") for at, each in enumerate(blocks)]
    return [SLIDING if names[i % len(names)] == "attention" else names[i % len(names)] for i in range(num_layers)]


def jamba(config: Config, num_layers: int) -> list[str]:
    """Attention where i % attn_layer_period == attn_layer_offset."""
    period = config.need("attn_layer_period", most=MOST_LAYERS)
    offset = config.need("attn_layer_offset", least=0, most=MOST_LAYERS)
    return [FULL if i % period == offset else STATE for i in range(num_layers)]


def hybrid_pattern(config: Config, num_layers: int) -> list[str]:
    """``hybrid_override_pattern``: M state, * attention, - feed-forward, E experts (Nemotron-H)."""
    pattern = config.word("hybrid_override_pattern")
    if pattern is None:
        raise InputError(
            "hybrid_override_pattern is missing", hint="or layers_block_type", location="hybrid_override_pattern"
        )
    names = {"M": STATE, "*": FULL, "-": "mlp", "E": "moe"}
    unknown = [letter for letter in pattern if letter not in names]
    if unknown:
        raise UnsupportedError(f"unknown letter {quote(unknown[0])} in hybrid_override_pattern")
    if len(pattern) != num_layers:
        raise InputError(
            f"hybrid_override_pattern has {len(pattern)} letters for {num_layers} layers",
            location="hybrid_override_pattern",
        )
    return [names[letter] for letter in pattern]


def kimi_linear(config: Config, num_layers: int) -> list[str]:
    """``linear_attn_config``: kda_layers and full_attn_layers count from ONE."""
    table = config.table_at("linear_attn_config")
    full = table.indices("full_attn_layers", num_layers, base=1)
    linear = table.indices("kda_layers", num_layers, base=1)
    if full is None and linear is None:
        raise InputError(
            "linear_attn_config states neither full_attn_layers nor kda_layers",
            hint="or layer_types is needed",
            location="linear_attn_config",
        )
    if full is None:
        assert linear is not None
        full = set(range(num_layers)) - linear
    if linear is not None and (full & linear or full | linear != set(range(num_layers))):
        raise InputError(
            "kda_layers and full_attn_layers do not add up to the layers of the model",
            hint="both lists count from 1",
            location="linear_attn_config",
        )
    return [FULL if i in full else STATE for i in range(num_layers)]


def from_the_end(period: int) -> Rule:
    """Global layers counted from the last one (Muse)."""
    return lambda _config, count: [FULL if (count - 1 - i) % period == 0 else SLIDING for i in range(count)]


def mimo(config: Config, num_layers: int) -> list[str]:
    """MiMo-V2's irregular start: 0, 5, 11, 17 ... are global."""
    return [FULL if i == 0 or (i + 1) % 6 == 0 else SLIDING for i in range(num_layers)]


def flint(config: Config, num_layers: int) -> list[str]:
    """The first two, i % 4 == 1 and the last layer are global."""
    return [FULL if i < 2 or i % 4 == 1 or i == num_layers - 1 else SLIDING for i in range(num_layers)]


def gemma4(config: Config, num_layers: int) -> list[str]:
    """Every sixth layer is global, and the last one always."""
    return [*every(default=6)(config, num_layers)[:-1], FULL]


def glm_dsa(config: Config, num_layers: int) -> list[str]:
    """``indexer_types``: "full" layers keep indexer keys, "shared" ones read the choice of the layer before."""
    types = config.sequence("indexer_types")
    if types is None:
        return ["indexed_attention"] * num_layers
    if len(types) < num_layers or not all(each in ("full", "shared") for each in types):
        raise InputError(
            f"indexer_types must say full or shared for each of {num_layers} layers", location="indexer_types"
        )
    return ["indexed_attention" if each == "full" else FULL for each in types[:num_layers]]


def deepseek_v4(config: Config, num_layers: int) -> list[str]:
    """``compress_ratios``: 0 keeps the window only, 4 and 128 compress; an entry behind the last layer is MTP's."""
    ratios = config.counts("compress_ratios")
    if ratios is None:
        start = ["heavily_compressed_attention"] * min(2, num_layers)
        rest = range(num_layers - len(start))
        return start + ["compressed_sparse_attention" if i % 2 else "heavily_compressed_attention" for i in rest]
    names = {0: SLIDING, 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
    if len(ratios) < num_layers:
        raise InputError(
            f"compress_ratios has {len(ratios)} entries for {num_layers} layers", location="compress_ratios"
        )
    unknown = [ratio for ratio in ratios if ratio not in names]
    if unknown:
        raise UnsupportedError(
            f"compress_ratios names {unknown[0]}, known are 0, 4 and 128", location="compress_ratios"
        )
    return [names[ratio] for ratio in ratios[:num_layers]]


def minimax_m3(config: Config, num_layers: int) -> list[str]:
    """``sparse_attention_config.sparse_attention_freq``: 1 is a full layer with an indexer key."""
    freq = config.table_at("sparse_attention_config").counts("sparse_attention_freq", most=1)
    if freq is None:
        return [FULL] * num_layers
    if len(freq) < num_layers:
        raise InputError(f"sparse_attention_freq has {len(freq)} entries for {num_layers} layers")
    return ["minimax_m3_sparse" if each else FULL for each in freq[:num_layers]]


CONTEXT_KEYS = (
    "max_position_embeddings",
    "max_position_embedding",
    "model_max_length",
    "max_seq_len",
    "n_positions",
    "seq_length",
    "max_sequence_length",
    "max_context_length",
    "n_ctx",
)
