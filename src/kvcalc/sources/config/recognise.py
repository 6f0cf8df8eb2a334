"""Which table of a file describes the language model, which model type it is of, and which row reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvcalc.errors import InputError, NotModelledError, UnsupportedError, did_you_mean, quote
from kvcalc.sources.building import canonical_type
from kvcalc.sources.config.family import Attention, Family, all_families, family_of, family_of_class
from kvcalc.sources.config.originals import as_transformers
from kvcalc.sources.config.parts import Experts
from kvcalc.sources.config.reader import HEADS, HIDDEN, LAYERS, WINDOWS

#: Where a wrapper keeps its language model; the second line only where the part has layers of its own.
_NESTINGS = ("text_config", "llm_config", "language_config", "decoder", "text_model_config")
_OTHER_NESTINGS = (
    "llm_cfg",
    "vlm_config",
    "decoder_config",
    "lm_config",
    "language_model_config",
    "language_model",
    "text_decoder_config",
    "llm_model_config",
    "base_model_config",
    "model_config",
    "backbone_config",
)
_DEEPEST = 4

_EXPERTS = Experts(shared_count=("n_shared_experts", "num_shared_experts"))
_BIASES = Attention(qkv_bias="attention_bias", output_bias="attention_bias")
#: For a model type without a row.
UNKNOWN = Family(attention=_BIASES, experts=_EXPERTS)
UNKNOWN_LATENT = Family(latent=True, experts=_EXPERTS)

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
#: The same, where the file does not state its layers either.
_TELLING_WORDS = re.compile(
    "sliding|window|chunk|local(?!_experts)|global|mamba|ssm|d_state|linear_|conv_|latent|lora_rank|lora_dim"
    "|(?<!token_)compress"
    "|shared_kv|kv_shared|recurrent|loop|ut_steps|cycles|reuse|ngram|pattern|cross_attention|attn_type|attention_type"
    "|block_type|mixer|lightning|layer_group|delta|retention|full_attn"
)


@dataclass(frozen=True)
class Recognised:
    """The language model's table, the table around it (empty where it is the file), and how it is read."""

    table: Mapping[str, Any]
    outer: Mapping[str, Any]
    model_type: str
    family: Family
    notes: list[str] = field(default_factory=list)


def recognise(config: Mapping[str, Any]) -> Recognised:
    """The language model that a file describes.

    Raises:
        UnsupportedError: the model keeps no cache.
        NotModelledError: there is no rule for it.
    """
    table, outer = _text_part(as_transformers(config), {})
    for place in (table, outer):
        stated = place.get("model_type")
        if stated is not None and (not isinstance(stated, str) or len(stated) > 100):
            raise InputError(f"model_type must be a short text, not {quote(stated)}", location="model_type")
    names = [place["model_type"] for place in (table, outer) if place.get("model_type")]
    found = next((each for each in _candidates(table, outer) if each is not None), None)
    composed = family_of(outer["model_type"]) if outer.get("model_type") else None
    if composed is not None and (composed[1].not_modelled is not None or composed[0] in composed[1].wrappers):
        found = composed
    if found is None:
        if not names:
            raise InputError(
                "model_type is missing", hint="is it the config.json of a language model?", location="model_type"
            )
        model_type = canonical_type(names[0])
        return Recognised(table, outer, model_type, *_unknown(table, model_type))
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
            hint="describe the model in a spec file: kvcalc models export NAME shows one",
            location="model_type",
        )
    renamed = table.get("model_type") and family_of(table["model_type"]) is None
    notes = [f"model_type {quote(table['model_type'])} is read as {model_type}, its class's type"] if renamed else []
    return Recognised(table, outer, model_type, family, notes)


def _candidates(table: Mapping[str, Any], outer: Mapping[str, Any]) -> Iterator[tuple[str, Family] | None]:
    """What the model type may be, by its names from the innermost to the outermost."""
    for place in (table, outer):
        if place.get("model_type"):
            yield family_of(place["model_type"])
        names = place.get("architectures")
        if isinstance(names, list | tuple) and names and isinstance(names[0], str):
            yield family_of_class(names[0][:100])


def _text_part(
    config: Mapping[str, Any], around: Mapping[str, Any], depth: int = 0
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The table of the language model, and the table around it (empty where it is the file itself)."""
    if depth == _DEEPEST:
        return config, around
    thinker = config.get("thinker_config")
    if isinstance(thinker, Mapping):
        return _text_part(thinker, config, depth + 1)
    for nesting in _NESTINGS:
        part = config.get(nesting)
        if isinstance(part, Mapping) and (part or (nesting == "text_config" and "hidden_size" not in config)):
            return _text_part(part, config, depth + 1)
        if part is not None and not isinstance(part, Mapping):
            raise InputError(f"{nesting} must be a table, not {quote(part)}", location=nesting)
    for nesting in _OTHER_NESTINGS:
        part = config.get(nesting)
        if isinstance(part, Mapping) and _has_layers(part) and not (nesting == "backbone_config" and _counted(config)):
            return _text_part(part, config, depth + 1)
    return config, around


def _has_layers(part: Mapping[str, Any]) -> bool:
    """Whether a table describes a decoder, or holds one that does."""
    return _counted(part) or any(isinstance(part.get(nesting), Mapping) for nesting in _NESTINGS)


def _counted(table: Mapping[str, Any]) -> bool:
    return all(any(table.get(key) is not None for key in keys) for keys in (LAYERS, HIDDEN))


def _unknown(table: Mapping[str, Any], model_type: str) -> tuple[Family, list[str]]:
    """The row for an unknown model type that states its layers, or a plain decoder's sizes, if nothing hints at a rule
    of its own.
    """
    beginnings = {key.partition("_")[0] for key in list(table)[:1000] if key != "decoder_sparse_step"}
    if table.get("is_encoder_decoder") or beginnings & {"encoder", "decoder"}:
        raise _not_modelled(model_type, "its encoder and decoder have no row", "model_type")
    both_ways = "bidirec" in model_type.lower()  # llama_bidirec and its kin: embedding models
    if both_ways or table.get("is_decoder") is False or table.get("type_vocab_size") is not None:
        raise UnsupportedError(
            f"{quote(model_type)} is an encoder: it keeps no KV cache",
            hint="name a model that generates text",
            location="model_type",
        )
    for key in _TELLING_KEYS:
        if table.get(key):
            raise _not_modelled(model_type, f"{key} changes what its layers cache", key)
    family = UNKNOWN if table.get("kv_lora_rank") is None else UNKNOWN_LATENT
    if any(table.get(key) is not None for key in ("layer_types", "layers_block_type")):
        return family, [f"model_type {quote(model_type)} is unknown: layers as stated, weights estimated"]
    if not _counted(table) or all(table.get(key) is None for key in HEADS):
        raise NotModelledError(
            f"unknown model_type {quote(model_type)}, and the file does not state its layers",
            hint=did_you_mean(model_type, all_families()) or "a file with layer_types, or a spec file, is needed",
            location="model_type",
        )
    for key in list(table)[:1000]:
        if table[key] and _tells(key, table):
            raise _not_modelled(model_type, f"{key[:60]} may change what its layers cache", key[:60])
    near = did_you_mean(model_type, all_families())
    assumed = "a plain decoder of the stated heads and layers is assumed, weights estimated"
    return family, [f"model_type {quote(model_type)} is unknown{f' ({near})' if near else ''}: {assumed}"]


def _tells(key: str, table: Mapping[str, Any]) -> bool:
    """Whether a key of a model type without a row may change what its layers cache."""
    if _differs_by_layer(table[key], table):
        return True
    found = _TELLING_WORDS.search(key)
    if found is None or table.get(f"use_{key}") is False:
        return False
    if found[0] == "window":  # how many layers slide says nothing where none does
        return table.get("use_sliding_window") is not False and any(table.get(name) for name in WINDOWS)
    return found[0] != "lora_rank" or table.get("qk_rope_head_dim") is None


def _differs_by_layer(value: Any, table: Mapping[str, Any]) -> bool:
    """Whether a value is a list of words, one a layer, that are not all the same."""
    count = next((table[key] for key in LAYERS if table.get(key) is not None), None)
    listed = isinstance(value, list | tuple) and len(value) == count
    return listed and all(isinstance(each, str) for each in value) and len(set(value)) > 1


def _not_modelled(model_type: str, reason: str, key: str) -> NotModelledError:
    return NotModelledError(
        f"unknown model_type {quote(model_type)}, and {reason}",
        hint=did_you_mean(model_type, all_families())
        or "the rule of that model type would be needed: describe the model in a spec file",
        location=key,
    )
