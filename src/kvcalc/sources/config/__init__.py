"""config.json to architecture: a pure function, without a line of the model's code being run.

The text part is found by name, never by a recursive search (vision and audio parts have heads and layers too); its
``model_type`` selects a row of :mod:`~kvcalc.sources.config.family`, which knows the defaults and the layer order; the
rest is read from the keys. A layer type, a sharing rule or a model type without a rule is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from kvcalc.architecture import Architecture
from kvcalc.dtypes import parse_dtype
from kvcalc.errors import InputError, KVCalcError, NotModelledError, UnsupportedError, did_you_mean, quote
from kvcalc.invalid import mistakes
from kvcalc.sources.building import build, canonical_type
from kvcalc.sources.config.describe import describe
from kvcalc.sources.config.family import (
    Attention,
    Family,
    all_families,
    family_of,
    with_published_count,
)
from kvcalc.sources.config.parts import Experts
from kvcalc.sources.config.reader import Config, renamed
from kvcalc.sources.quantization_config import declared_table
from kvcalc.sources.spec import LETTERS, LayerSpec, ModelSpec

_MOST_KEYS = 10_000
_LONGEST_NAME = 200
_NESTINGS = ("text_config", "llm_config", "language_config", "decoder", "text_model_config")

_EXPERTS = Experts(shared_count=("n_shared_experts", "num_shared_experts"))
#: For a model type without a row, in a file that states its layers.
_UNKNOWN = Family(attention=Attention(qkv_bias="attention_bias", output_bias="attention_bias"), experts=_EXPERTS)
_UNKNOWN_LATENT = Family(latent=True, experts=_EXPERTS)

#: Keys that change what a layer caches in a way that only the rule of a model type tells.
_TELLING_KEYS = (
    "num_kv_shared_layers",
    "use_cla",
    "kv_source_layers",
    "num_global_key_value_heads",
    "global_head_dim",
    "swa_num_key_value_heads",
    "swa_head_dim",
    "attention_other_setting",
    "compress_ratios",
    "index_head_dim",
    "block_configs",
)


def read_config(config: Mapping[str, Any], name: str = "config") -> Architecture:
    """The architecture that a config.json describes.

    Args:
        config: the file's dictionary, as ``json.load`` gives it.
        name: what reports call the model.

    Raises:
        KVCalcError: a value is no sane number, a key is missing, or the file describes something without a rule here.

    >>> sparse = {"model_type": "gemma3", "text_config": {"hidden_size": 2560, "intermediate_size": 10240,
    ...           "num_hidden_layers": 34, "sliding_window": 1024}}
    >>> read_config(sparse).layout
    '29 sliding (1024) + 5 full'
    """
    return with_published_count(build(config_to_spec(config, name)))


def config_to_spec(config: Mapping[str, Any], name: str = "config") -> ModelSpec:
    """The spec that says the same as a config.json; see :func:`read_config`."""
    if not isinstance(config, Mapping):
        raise InputError(f"a config.json is a table, not {quote(type(config).__name__)}")
    if len(config) > _MOST_KEYS or not all(isinstance(key, str) for key in config):
        raise InputError(f"a config.json has at most {_MOST_KEYS:,} keys, all of them texts")
    table, outer = _text_part(config)
    model_type, family = _family(table, outer)
    reader = Config(renamed(table, family.names), model_type, family.defaults, outer)
    entries, fields = describe(reader, family)
    notes = [*reader.notes, *_notes(reader, family)]
    cache_dtype, dtype = None, _dtype(reader, notes)
    if dtype not in ("bfloat16", "float16"):
        cache_dtype = "bfloat16"
        notes.append(f"{dtype} is how the file stores the weights; the cache is taken as bfloat16")
    fields |= layout_fields(entries, fields)
    stated = {
        "name": name[:_LONGEST_NAME] or "config",
        "model_type": model_type,
        "sources": ("config.json",),
        "notes": tuple(notes),
        "dtype": dtype,
        "k_dtype": cache_dtype,
        "v_dtype": cache_dtype,
        "quantization": declared_table(outer, table),
    }
    return _validated(stated | fields)


def layout_fields(entries: list[LayerSpec], fields: dict[str, Any]) -> dict[str, Any]:
    """A list of layers in the shortest form that a spec has: a ratio, or letters and the meaning of new ones."""
    letters: dict[LayerSpec, str] = {spec: letter for letter, spec in LETTERS.items()}
    new: dict[str, LayerSpec] = {}
    unused = [letter for letter in "ABDGHIJKMOQTUVWYZabdeghijklmnopqrtuvwxyz0123456789" if letter not in LETTERS]
    word = []
    for entry in entries:
        letter = letters.get(entry)
        if letter is None:
            if not unused:
                return {"layout": tuple(entries)}
            letter = letters[entry] = unused.pop(0)
            new[letter] = entry
        word.append(letter)
    layout = _shortest("".join(word))
    attention = fields.get("attention", {})
    if ":" in layout and isinstance(attention.get("window"), int):
        layout += f"/sw={attention.pop('window')}"
    named: dict[str, Any] = {"num_layers": len(entries), "layout": layout}
    return named | ({"layers": new} if new else {})


def _shortest(word: str) -> str:
    """The ratio, or the shortest run of letters that repeats to the whole word.

    >>> _shortest("SSSSSF" * 4 + "SS"), _shortest("RRSRRSRR"), _shortest("FFFF"), _shortest("FFSF")
    ('5:1', 'RRS', 'global', 'FFSF')
    """
    # Compared with itself, shifted: nothing is built, so that thousands of layers cost no more than reading them.
    fits = (size for size in range(1, len(word) // 2 + 1) if word.startswith(word[size:]))
    period = next(fits, len(word))  # a run that does not come twice is no period
    run = word[:period]
    if run == "F":
        return "global"
    local = run.rstrip("F")
    if set(local) == {"S"} and local != word:
        return f"{len(local)}:{period - len(local)}"
    return run


def _validated(fields: dict[str, Any]) -> ModelSpec:
    try:
        return ModelSpec.model_validate(fields)
    except ValidationError as error:
        first = mistakes(error)[0]
        reason = f"{first.path}: {first.reason or first.kind}, not {quote(first.value)}"
        raise InputError(f"the file describes no model: {reason}") from None


def _text_part(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The table of the language model, and the table around it (empty where it is the file itself)."""
    thinker = config.get("thinker_config")
    if isinstance(thinker, Mapping) and isinstance(thinker.get("text_config"), Mapping):
        return thinker["text_config"], thinker
    for nesting in _NESTINGS:
        part = config.get(nesting)
        if isinstance(part, Mapping) and (part or (nesting == "text_config" and "hidden_size" not in config)):
            return part, config
        if part is not None and not isinstance(part, Mapping):
            raise InputError(f"{nesting} must be a table, not {quote(part)}", location=nesting)
    return config, {}


def _family(table: Mapping[str, Any], outer: Mapping[str, Any]) -> tuple[str, Family]:
    """The model type of a file and its row.

    Raises:
        UnsupportedError: the model keeps no cache.
        NotModelledError: there is no rule for the type.
    """
    for place in (table, outer):
        stated = place.get("model_type")
        if stated is not None and (not isinstance(stated, str) or len(stated) > 100):
            raise InputError(f"model_type must be a short text, not {quote(stated)}", location="model_type")
    name = table.get("model_type") or outer.get("model_type") or _type_of_class(table, outer)
    found = family_of(name)
    if found is None:
        return canonical_type(name), _unknown(table, canonical_type(name))
    model_type, family = found
    if family.encoder_only:
        raise UnsupportedError(
            f"{quote(model_type)} is an encoder: it keeps no KV cache",
            hint="name a model that generates text",
            location="model_type",
        )
    if family.not_modelled is not None:
        raise NotModelledError(
            f"model_type {quote(model_type)} is not modelled: {family.not_modelled}",
            hint="describe the model in a spec file: kvcalc presets export NAME shows one",
            location="model_type",
        )
    return model_type, family


def _unknown(table: Mapping[str, Any], model_type: str) -> Family:
    """The row for an unknown model type that states its layers, if nothing hints at a rule of its own."""
    if all(table.get(key) is None for key in ("layer_types", "layers_block_type")):
        raise NotModelledError(
            f"unknown model_type {quote(model_type)}, and the file does not state its layers (no layer_types)",
            hint=did_you_mean(model_type, all_families()) or "a file with layer_types, or a spec file, is needed",
            location="model_type",
        )
    for key in _TELLING_KEYS:
        if table.get(key):
            raise NotModelledError(
                f"unknown model_type {quote(model_type)}, and {key} changes what its layers cache",
                hint="the rule of that model type would be needed: describe the model in a spec file",
                location=key,
            )
    return _UNKNOWN if table.get("kv_lora_rank") is None else _UNKNOWN_LATENT


def _type_of_class(table: Mapping[str, Any], outer: Mapping[str, Any]) -> str:
    """The model type by the name of the model's class, where the file has no model_type."""
    names = table.get("architectures") or outer.get("architectures")
    if isinstance(names, list | tuple) and names and isinstance(names[0], str):
        word = names[0][:100].removesuffix("ForCausalLM").removesuffix("LMHeadModel").lower()
        known = {model_type.replace("_", ""): model_type for model_type in all_families()}
        if word in known:
            return known[word]
    raise InputError("model_type is missing", hint="is it the config.json of a language model?", location="model_type")


def _dtype(reader: Config, notes: list[str]) -> str:
    """The storage format of the weights: torch_dtype, then dtype, in the text part, then around it."""
    stated = None
    for place in (reader.table, reader.outer):
        stated = stated or place.get("torch_dtype") or place.get("dtype")
    if stated is not None and not isinstance(stated, str):
        raise InputError(f"torch_dtype must be a text, not {quote(stated)}", location="torch_dtype")
    dtype = "bfloat16"
    if stated is None or stated == "auto":
        notes.append("the file states no dtype: bfloat16 is assumed")
    else:
        try:
            dtype = parse_dtype(stated).name
        except KVCalcError as error:
            raise error.at("torch_dtype") from None
    return dtype


def _notes(reader: Config, family: Family) -> list[str]:
    notes = []
    if reader.assumed:
        listed = ", ".join(f"{key} {_shown(value)}" for key, value in reader.assumed.items())
        notes.append(f"not in the file, so the defaults of {reader.model_type} hold: {listed}")
    if family is _UNKNOWN or family is _UNKNOWN_LATENT:
        notes.append(f"model_type {quote(reader.model_type)} is unknown: layers as stated, weights estimated")
    return notes


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
