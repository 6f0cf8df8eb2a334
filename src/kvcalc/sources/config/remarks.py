"""A config.json that was copied by hand: a number with a word behind it, a list told in prose.

Model cards, issues and papers quote configurations so: ``"group_size": "128 (deduced)"``, ``"ignore": "layers 0-2,
self_attn*, lm_head"``. No value that is read here has a space in it, so a text with one is a remark. What it says is
taken where that is plain, and left out otherwise; the answer is an estimate where lists of modules were prose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

#: Keys whose value lists modules.
_LISTS = frozenset({"ignore", "exclude_modules", "modules_to_not_convert", "ignored_layers", "llm_int8_skip_modules"})
_TABLES = ("quantization_config", "compression_config", "quantization", "hqq", "text_config", "hf_quant_config")
_ASIDE = re.compile(r"\([^()]*\)|^\s*\d+(?: names)?:\s*")
_NUMBER = re.compile(r"(-?\d{1,9})\b(?! of\b)")
_FLAG = re.compile(r"(true|false)\b", re.IGNORECASE)
_WORD = re.compile(r"([A-Za-z][\w.-]*)(?:,| \(| or\b)")
_LAYERS = re.compile(r"layers? (\d{1,4})(?:-(\d{1,4}))?")
#: Keys without whose value the answer rests on the defaults of the model type.
_SHAPES = re.compile("types|layers|config|pattern")
_BITS = re.compile(r"(\d{1,2}) bit")


def without_remarks(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The file without its remarks; the same table where it has none.

    >>> told = {"model_type": "llama (as published)", "quantization_config": {"ignore": "2 names: lm_head, mlp.gate"}}
    >>> without_remarks(told)["model_type"], without_remarks(told)["quantization_config"]["ignore"]
    ('llama', ['lm_head', 'mlp.gate'])
    """
    plain = _plain(config)
    nested = {key: _plain(table) for key in _TABLES if isinstance(table := plain.get(key), Mapping)}
    return {**plain, **{key: table for key, table in nested.items() if table is not plain[key]}} if nested else plain


def _plain(table: Mapping[str, Any]) -> Mapping[str, Any]:
    remarks = [key for key, value in table.items() if _has_remark(key, value)]
    if not remarks:
        return table
    kept = {key: value for key, value in table.items() if key not in remarks}
    for key in remarks:
        name = key.partition(" ")[0].rpartition("/")[2]
        value = _meant(name, table[key]) if isinstance(table[key], str) else table[key]
        if value is not None:
            kept |= value if name == "overrides" else {name: value}
        if name in _LISTS or isinstance(value, Mapping) or (value is None and _SHAPES.search(name)):
            kept["told_in_prose"] = True
    return kept


def _has_remark(key: str, value: Any) -> bool:
    return " " in key or "/" in key or (isinstance(value, str) and " " in value.strip() and not key.startswith("_"))


def _meant(key: str, text: str) -> Any:
    """What a remark says under its key, or None where only a person would know."""
    if key in _LISTS:
        return list(_modules(text))
    if key == "quantized_layers":  # "FP8: self_attn; NVFP4: mlp.experts, lm_head"
        by_algorithm = [part.partition(":") for part in text.split(";")]
        return {
            name: {"quant_algo": algorithm.strip()} for algorithm, _, names in by_algorithm for name in _modules(names)
        }
    if key == "overrides":  # "mlp.gate and shared_expert_gate 8 bit"
        bits = _BITS.search(text)
        return {name: {"bits": int(bits[1])} for name in _modules(text)} if bits and ":" not in text else {}
    if found := _NUMBER.match(text):
        return int(found[1])
    if found := _FLAG.match(text):
        return found[1].lower() == "true"
    found = _WORD.match(text)
    return found[1] if found else None


def _modules(text: str) -> Iterator[str]:
    """The modules that a sentence names: "layers 0-2, attention and lm_head (worked out)"."""
    for part in re.split(r",| and ", _ASIDE.sub("", text)):
        words = part.strip()
        numbered = _LAYERS.match(words)
        if numbered:
            first, last = int(numbered[1]), int(numbered[2] or numbered[1])
            yield from (f"model.layers.{layer}.*" for layer in range(first, min(last, first + 1000) + 1))
        elif words:
            name = next((word for word in words.split() if not word.isdecimal()), "")
            yield name.partition("/")[0].rstrip("*")
