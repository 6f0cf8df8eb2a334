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
from kvcalc.errors import InputError, KVCalcError, quote
from kvcalc.invalid import mistakes
from kvcalc.sources.building import build
from kvcalc.sources.config.describe import describe
from kvcalc.sources.config.family import with_published_count
from kvcalc.sources.config.images import largest_image
from kvcalc.sources.config.reader import Config, renamed
from kvcalc.sources.config.recognise import recognise
from kvcalc.sources.config.remarks import without_remarks
from kvcalc.sources.config.rotary import rotary_tables
from kvcalc.sources.config.towers import tower_parameters
from kvcalc.sources.quantization_config import declared_table
from kvcalc.sources.spec import LETTERS, LayerSpec, ModelSpec

_MOST_KEYS = 10_000
_LONGEST_NAME = 200


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
    config = without_remarks(config)
    model = recognise(config)
    table = renamed(model.table, model.family.names)
    reader = Config(table, model.model_type, model.family.defaults, model.outer)
    entries, fields = describe(reader, model.family)
    notes = [*reader.notes, *_assumed(reader), *model.notes]
    cache_dtype, dtype = None, _dtype(reader, notes)
    if dtype not in ("bfloat16", "float16"):
        cache_dtype = "bfloat16"
        notes.append(f"{dtype} is how the file stores the weights; the cache is taken as bfloat16")
    towers, unknown = tower_parameters(model.outer or config, fields["hidden_size"])
    fields["towers"] = towers
    if "vision" in towers:
        fields["image"] = largest_image(model.outer or config)
    notes += unknown
    fields |= _rotary(reader, fields) | layout_fields(entries, fields)
    stated = {
        "name": name[:_LONGEST_NAME] or "config",
        "model_type": model.model_type,
        "sources": ("config.json",),
        "notes": tuple(notes),
        "dtype": dtype,
        "k_dtype": cache_dtype,
        "v_dtype": cache_dtype,
        "quantization": declared_table(config, model.outer, model.table),
    }
    return _validated(stated | fields)


def _rotary(reader: Config, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of rotary positions, where they are not of every position and of the whole width of the heads."""
    latent, attention = fields.get("latent"), fields.get("attention")
    width = latent["rope_dim"] if latent else attention["head_dim"] if attention else 0
    local = (fields.get("local_attention") or {}).get("head_dim", width)
    tables = rotary_tables(reader, width)
    return {} if tables == ((fields["max_context"], width),) or local != width or not width else {"rotary": tables}


def layout_fields(entries: list[LayerSpec], fields: dict[str, Any]) -> dict[str, Any]:
    """A list of layers in the shortest form that a spec has: a ratio, or letters and the meaning of new ones.

    The letters of prediction layers (``mtp_layout``) are among them.
    """
    predicted = list(fields.get("mtp_layout", ()))
    letters: dict[LayerSpec, str] = {spec: letter for letter, spec in LETTERS.items()}
    new: dict[str, LayerSpec] = {}
    unused = [letter for letter in "ABDGHIJKMOQTUVWYZabdeghijklmnopqrtuvwxyz0123456789" if letter not in LETTERS]
    for entry in dict.fromkeys([*entries, *predicted]):
        if entry not in letters:
            if not unused:
                return {"layout": tuple(entries)}
            letter = letters[entry] = unused.pop(0)
            new[letter] = entry
    layout = _shortest("".join(letters[entry] for entry in entries))
    attention = fields.get("attention", {})
    if ":" in layout and isinstance(attention.get("window"), int):
        layout += f"/sw={attention.pop('window')}"
    named: dict[str, Any] = {"num_layers": len(entries), "layout": layout}
    named |= {"mtp_layout": "".join(letters[entry] for entry in predicted)} if predicted else {}
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


def _assumed(reader: Config) -> list[str]:
    """What the answer rests on that is not in the file."""
    if not reader.assumed:
        return []
    listed = ", ".join(f"{key} {_shown(value)}" for key, value in reader.assumed.items())
    return [f"not in the file, so the defaults of {reader.model_type} hold: {listed}"]


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
