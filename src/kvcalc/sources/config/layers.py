"""From a config.json to its list of layers: what the file states, and the orders of model types whose files do not.

An order gives one Hugging Face layer type a layer ("full_attention", "sliding_attention" ...). Most of them are data, a
row's ``order``; those that no table can say are the functions of :data:`RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from kvcalc.architecture import MOST_LAYERS
from kvcalc.errors import InputError, NotModelledError, quote
from kvcalc.sources.config.reader import CONTEXTS, WINDOWS, Config, whole
from kvcalc.sources.spec import LETTERS, LayerSpec

FULL, SLIDING, CHUNKED, STATE = "full_attention", "sliding_attention", "chunked_attention", "linear_attention"

_MTP_KEYS = (
    "num_nextn_predict_layers",
    "mtp_num_hidden_layers",
    "mtp_num_layers",
    "num_mtp_modules",
    "num_mtp_layers",
)

#: What a row's ``kinds`` may call a layer.
NAMED_KINDS = {
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
    "compressed 4 with indexer": LayerSpec(kind="compressed", ratio=4, indexer=True),
    "compressed 128": LayerSpec(kind="compressed", ratio=128),
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


class Order(BaseModel):
    """The layers of a file that does not list them, in a row's words.

    The rules that are data:

    - ``all``: every layer is of type ``full``;
    - ``listed``: the files of the type always list their layers;
    - ``every``: one layer in each ``period`` is of type ``full``, the one at ``offset``, the others are ``local``;
      with ``from_end`` the layers count from the last one, ``always`` names layers that are ``full`` in any case, and
      with ``whole_periods`` those behind the last whole period are;
    - ``flags``: the list under ``keys`` holds 1 for a ``full`` layer and 0 for a ``local`` one;
    - ``indices``: the list under ``keys`` names the ``full`` layers;
    - ``window``: every layer slides where the file has a window that is not wider than the longest context.

    ``period`` and ``offset`` may name the keys that hold them. Any other ``rule`` is a function of :data:`RULES`.

    Attributes:
        otherwise: the order of a file without the list that ``flags`` and ``indices`` read; every layer full if None.
        needs_window: every layer is full where the file's window is null.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    rule: str = "all"
    full: str = FULL
    local: str = SLIDING
    keys: tuple[str, ...] = ()
    period: int | None = None
    offset: int | str = -1
    from_end: bool = False
    always: tuple[int, ...] = ()
    whole_periods: bool = False
    needs_window: bool = False
    otherwise: Order | None = None

    @field_validator("rule")
    @classmethod
    def _known(cls, rule: str) -> str:
        if rule not in RULES:
            raise ValueError(f"no order is called {rule!r}; known: {', '.join(RULES)}")
        return rule


def layer_types(config: Config, order: Order, num_layers: int) -> list[str]:
    """The layer types that an order gives the layers of a model.

    >>> layer_types(Config({}, "gemma3", {}, {}), Order(rule="every", period=2), 3)
    ['sliding_attention', 'full_attention', 'sliding_attention']
    """
    if order.needs_window and config.value(*WINDOWS) is None:
        return [FULL] * num_layers
    return RULES[order.rule](config, num_layers, order)


def entries_of(
    config: Config, order: Order, kinds: Mapping[str, str], num_layers: int, mtp_kind: str | None = None
) -> tuple[list[LayerSpec], list[LayerSpec]]:
    """The layers of a model, and its multi-token-prediction layers; ``mtp_kind``: what these are in the model type."""
    has_mtp = mtp_kind is not None or config.stated(*_MTP_KEYS) is not None
    count = config.count(*_MTP_KEYS, least=0, most=MOST_LAYERS) or 0 if has_mtp else 0
    key = next((key for key in ("layer_types", "layers_block_type") if config.stated(key) is not None), None)
    if key is None:
        types, extra = layer_types(config, order, num_layers), []
    else:
        listed = config.words(key) or []
        if len(listed) not in (num_layers, num_layers + count):
            raise InputError(f"{key} has {len(listed)} entries for {num_layers} layers", location=key)
        types, extra = listed[:num_layers], listed[num_layers:]
    entries = [_entry(each, kinds, key or "layer_types", at) for at, each in enumerate(types)]
    entries = _windowed(config, _overridden(config, _with_indexers(config, entries)))
    if mtp_kind is not None:
        return entries, [NAMED_KINDS[mtp_kind]] * count
    return entries, _mtp_entries(config, entries, extra, kinds, count)


def _entry(layer_type: str, kinds: Mapping[str, str], key: str, at: int) -> LayerSpec:
    kind = kinds.get(layer_type) or LAYER_TYPES.get(layer_type)
    if kind is None:
        known = ", ".join(dict.fromkeys([*kinds, *LAYER_TYPES]))
        raise NotModelledError(
            f"unknown layer type {quote(layer_type)}",
            hint=f"what such a layer caches would have to be known: describe it in a spec file; known are {known}",
            location=f"{key}[{at}]",
        )
    return NAMED_KINDS[kind]


def _mtp_entries(
    config: Config, entries: list[LayerSpec], extra: list[str], kinds: Mapping[str, str], count: int
) -> list[LayerSpec]:
    """MTP layers are as the padding of the list says, or like the last attention layer."""
    if not count:
        return []
    usual = [LETTERS[letter] for letter in "FSCLP"]
    specs = [_entry(each, kinds, "layer_types", len(entries) + at) for at, each in enumerate(extra)]
    specs = specs or [entry for entry in entries if entry in usual][-1:] * count
    if not specs:
        config.notes.append(f"{count} multi-token-prediction layers are not modelled")
    return specs


def _with_indexers(config: Config, entries: list[LayerSpec]) -> list[LayerSpec]:
    """``indexer_types``: "full" layers keep indexer keys, "shared" ones read the choice of the layer before.

    Without that list ``index_topk_pattern`` ("FSSS...") or ``index_topk_freq`` says the same: every so many layers from
    ``index_skip_topk_offset`` on, as transformers 5.24.0 reads it (configuration_glm_moe_dsa.py).
    """
    if config.stated("indexer_types") is not None:
        types = config.words("indexer_types") or []
    elif isinstance(pattern := config.stated("index_topk_pattern"), str):
        types = [{"F": "full", "S": "shared"}.get(letter, letter) for letter in pattern[: len(entries)]]
    elif config.stated("index_topk_freq") is not None:
        every, first = config.need("index_topk_freq"), config.count("index_skip_topk_offset", least=0)
        skipped = (max(at - (2 if first is None else first) + 1, 0) % every for at in range(len(entries)))
        types = ["shared" if each else "full" for each in skipped]
    else:
        return entries
    if len(types) < len(entries) or not set(types) <= {"full", "shared"}:
        raise InputError(
            f"indexer_types must say full or shared for each of {len(entries)} layers", location="indexer_types"
        )
    without = NAMED_KINDS["latent without indexer"]
    return [
        without if each == "shared" and entry.kind == "latent" else entry
        for each, entry in zip(types, entries, strict=False)
    ]


def _windowed(config: Config, entries: list[LayerSpec]) -> list[LayerSpec]:
    """A list of windows, repeated over the layers, gives each layer its own: null is global."""
    key = next((key for key in WINDOWS if isinstance(config.stated(key), list | tuple)), None)
    if key is None:
        return entries
    windows = config.sequence(key) or []
    if not windows:
        raise InputError(f"{key} is an empty list", location=key)
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


def _all(_config: Config, num_layers: int, order: Order) -> list[str]:
    return [order.full] * num_layers


def _listed(_config: Config, _num_layers: int, _order: Order) -> list[str]:
    raise InputError("layer_types is missing", hint="the files of this model type list them", location="layer_types")


def _every(config: Config, num_layers: int, order: Order) -> list[str]:
    period = config.count(*order.keys, most=MOST_LAYERS) if order.keys else None
    period = period or order.period
    if period is None:
        raise InputError(f"{order.keys[0]} is missing", hint="or layer_types", location=order.keys[0])
    offset = order.offset
    if isinstance(offset, str):
        offset = config.need(offset, least=0, most=MOST_LAYERS)
        globals_ = {at for at in range(num_layers) if at % period == offset}
    else:
        globals_ = {at for at in range(num_layers) if at % period == offset % period}
    if order.from_end:
        globals_ = {num_layers - 1 - at for at in globals_}
    globals_ |= {at % num_layers for at in order.always}
    if order.whole_periods:
        globals_ |= set(range(num_layers // period * period, num_layers))
    return [order.full if at in globals_ else order.local for at in range(num_layers)]


def _flags(config: Config, num_layers: int, order: Order) -> list[str]:
    key = config.named(*order.keys)
    flags = config.counts(key, most=1)
    if flags is None:
        return layer_types(config, order.otherwise or Order(), num_layers)
    return [order.full if flag else order.local for flag in _for_each(flags, key, num_layers)]


def _for_each(numbers: list[int], key: str, num_layers: int) -> list[int]:
    """A number for each layer; padding behind the last one is left out."""
    if len(numbers) < num_layers:
        raise InputError(f"{key} has {len(numbers)} entries for {num_layers} layers", location=key)
    return numbers[:num_layers]


def _indices(config: Config, num_layers: int, order: Order) -> list[str]:
    chosen = config.indices(config.named(*order.keys), num_layers)
    if chosen is None:
        return layer_types(config, order.otherwise or Order(), num_layers)
    return [order.full if at in chosen else order.local for at in range(num_layers)]


def _window(config: Config, num_layers: int, _order: Order) -> list[str]:
    """Mistral, Phi-3: a window makes every layer slide, unless it is wider than the model's longest context."""
    window = config.value(*WINDOWS)
    if window is None or isinstance(window, list | tuple):
        return [FULL] * num_layers
    tokens = config.tokens(*WINDOWS)
    longest = config.tokens(*CONTEXTS)
    if tokens is not None and longest is not None and tokens > longest:
        config.notes.append(f"the sliding window of {tokens:,} is wider than {longest:,} positions: never used")
        return [FULL] * num_layers
    return [SLIDING] * num_layers


def _slides(config: Config) -> bool:
    return config.flag("use_sliding_window") and config.value("sliding_window") is not None


def _qwen2(config: Config, num_layers: int, _order: Order) -> list[str]:
    """Layers from ``max_window_layers`` on slide, where ``use_sliding_window`` is true and there is a window."""
    if not _slides(config):
        return [FULL] * num_layers
    first = config.count("max_window_layers", least=0)
    return [SLIDING if first is not None and i >= first else FULL for i in range(num_layers)]


def _qwen2_moe(config: Config, num_layers: int, _order: Order) -> list[str]:
    """Qwen2-MoE's own rule: even layers below ``max_window_layers`` slide, where the switch is on."""
    if not _slides(config):
        return [FULL] * num_layers
    first = config.count("max_window_layers", least=0) or 0
    return [SLIDING if i % 2 == 0 and i < first else FULL for i in range(num_layers)]


def _qwen3_moe(config: Config, num_layers: int, _order: Order) -> list[str]:
    """All layers slide where ``use_sliding_window`` is true."""
    return [SLIDING if _slides(config) else FULL] * num_layers


def _exaone4(config: Config, num_layers: int, order: Order) -> list[str]:
    """``sliding_window_pattern``: an integer, or a text of L and G repeated over the layers."""
    pattern = config.value("sliding_window_pattern")
    if not isinstance(pattern, str):
        return _every(config, num_layers, order)
    if not pattern or set(pattern) - {"L", "G"} or len(pattern) > MOST_LAYERS:
        raise InputError(
            f"sliding_window_pattern must be letters L and G, not {quote(pattern)}", location="sliding_window_pattern"
        )
    return [FULL if pattern[i % len(pattern)] == "G" else SLIDING for i in range(num_layers)]


def _llama4(config: Config, num_layers: int, order: Order) -> list[str]:
    """1 in ``no_rope_layers`` is a layer with rope, which is chunked, 0 a global one; empty: every fourth is global."""
    if config.value("attention_chunk_size") is None:
        return [FULL] * num_layers
    with_rope = config.counts("no_rope_layers", most=1)
    if not with_rope:
        return _every(config, num_layers, order)
    if len(with_rope) != num_layers:
        raise InputError(
            f"no_rope_layers has {len(with_rope)} entries for {num_layers} layers", location="no_rope_layers"
        )
    return [CHUNKED if rope else FULL for rope in with_rope]


def _recurrent_gemma(config: Config, num_layers: int, _order: Order) -> list[str]:
    """``block_types`` or ``_block_types``, repeated over the layers; its attention slides."""
    names = config.words("_block_types") if config.stated("block_types") is None else None
    names = names or config.words("block_types")
    if not names:
        raise InputError("block_types is missing", location="block_types")
    blocks = [SLIDING if name == "attention" else name for name in names]
    return [blocks[i % len(blocks)] for i in range(num_layers)]


def _nemotron_h(config: Config, num_layers: int, _order: Order) -> list[str]:
    """``hybrid_override_pattern``: M state, * attention, - feed-forward, E experts."""
    pattern = config.word("hybrid_override_pattern")
    if pattern is None:
        raise InputError(
            "hybrid_override_pattern is missing", hint="or layers_block_type", location="hybrid_override_pattern"
        )
    names = {"M": STATE, "*": FULL, "-": "mlp", "E": "moe"}
    unknown = [letter for letter in pattern if letter not in names]
    if unknown:
        raise NotModelledError(f"unknown letter {quote(unknown[0])} in hybrid_override_pattern")
    if len(pattern) != num_layers:
        raise InputError(
            f"hybrid_override_pattern has {len(pattern)} letters for {num_layers} layers",
            location="hybrid_override_pattern",
        )
    return [names[letter] for letter in pattern]


def _kimi_linear(config: Config, num_layers: int, _order: Order) -> list[str]:
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


def _deepseek_v4(config: Config, num_layers: int, _order: Order) -> list[str]:
    """``compress_ratios``: 0 keeps the window only, 4 and 128 compress; an entry behind the last layer is MTP's."""
    ratios = config.counts("compress_ratios")
    if ratios is None:
        start = ["heavily_compressed_attention"] * min(2, num_layers)
        rest = range(num_layers - len(start))
        return start + ["compressed_sparse_attention" if i % 2 else "heavily_compressed_attention" for i in rest]
    names = {0: SLIDING, 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
    kept = _for_each(ratios, "compress_ratios", num_layers)
    unknown = [ratio for ratio in ratios if ratio not in names]
    if unknown:
        raise NotModelledError(
            f"compress_ratios names {unknown[0]}, known are 0, 4 and 128", location="compress_ratios"
        )
    return [names[ratio] for ratio in kept]


def _minimax_m3(config: Config, num_layers: int, _order: Order) -> list[str]:
    """``sparse_attention_config.sparse_attention_freq``: 1 is a full layer with an indexer key."""
    freq = config.table_at("sparse_attention_config").counts("sparse_attention_freq", most=1)
    if freq is None:
        return [FULL] * num_layers
    return ["minimax_m3_sparse" if each else FULL for each in _for_each(freq, "sparse_attention_freq", num_layers)]


#: What an order's ``rule`` may be.
RULES: dict[str, Callable[[Config, int, Order], list[str]]] = {
    "all": _all,
    "listed": _listed,
    "every": _every,
    "flags": _flags,
    "indices": _indices,
    "window": _window,
    "qwen2": _qwen2,
    "qwen2_moe": _qwen2_moe,
    "qwen3_moe": _qwen3_moe,
    "exaone4": _exaone4,
    "llama4": _llama4,
    "recurrent_gemma": _recurrent_gemma,
    "nemotron_h": _nemotron_h,
    "kimi_linear": _kimi_linear,
    "deepseek_v4": _deepseek_v4,
    "minimax_m3": _minimax_m3,
}
