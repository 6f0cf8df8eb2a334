"""Typed, bounded access to a config.json dictionary.

Every value is checked when it is read; a key that the file lacks takes the default of its model type, and what was
taken that way is remembered, because the answer depends on it. A name with a dot is a key of a nested table
(``attn_config.kv_n_heads``), or an entry of a list (``moe_intermediate_size.0``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvcalc.architecture import MOST_LAYERS
from kvcalc.errors import InputError, quote

_MOST_WIDTH = 2**31
_MOST_TOKENS = 2**50

#: The spellings of the keys that nearly every file has.
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
KV_HEADS = ("num_key_value_heads", "num_attention_groups", "multi_query_group_num", "num_kv_heads", "n_head_kv")
HEAD_DIM = ("head_dim", "attention_head_dim", "kv_channels", "hidden_size_per_head", "qk_head_dim")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers")
HIDDEN = ("hidden_size", "n_embd", "d_model", "n_embed", "model_dim")
VOCABULARY = ("vocab_size", "padded_vocab_size")
WINDOWS = ("sliding_window", "sliding_window_size", "attention_window_size", "interleaved_sliding_window")
CONTEXTS = (
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


class Config:
    """The text part of a config.json, with the defaults of its model type.

    Args:
        table: the dictionary.
        model_type: the canonical model type, for messages.
        defaults: values of keys that the file may leave out.
        outer: the dictionary around a nested text part, for the few keys that may stand at either level.
    """

    def __init__(
        self, table: Mapping[str, Any], model_type: str, defaults: Mapping[str, Any], outer: Mapping[str, Any]
    ) -> None:
        self.table = table
        self.model_type = model_type
        self.defaults = defaults
        self.outer = outer
        self.assumed: dict[str, Any] = {}
        self.asked: set[str] = set()
        self.notes: list[str] = []

    def _found(self, name: str) -> tuple[bool, Any]:
        """Whether the file has a key, and its value."""
        if name in self.table:
            return True, self.table[name]
        if "." not in name:
            return False, None
        place: Any = self.table
        for part in name.split("."):
            if part.isdecimal() and not isinstance(place, Mapping):
                place = place[int(part)] if isinstance(place, list | tuple) and int(part) < len(place) else None
            elif place is not None and not isinstance(place, Mapping):
                raise InputError(f"{name} lies in {quote(place)}, which is no table", location=name)
            else:
                place = None if place is None else place.get(part)
        return place is not None, place

    def value(self, *names: str) -> Any:
        """The first stated value that is not null; an explicit null; or the default of the model type."""
        self.asked.update(names)
        stated_null = False
        for name in names:
            stated, value = self._found(name)
            if value is not None:
                return value
            stated_null = stated_null or stated
        if stated_null:
            return None
        for name in names:
            if self.defaults.get(name) is not None:
                self.assumed[name] = self.defaults[name]
                return self.defaults[name]
        return None

    def stated(self, *names: str) -> Any:
        """The first value that the file states and that is not null; no default."""
        self.asked.update(names)
        return next((value for name in names if (value := self._found(name)[1]) is not None), None)

    def count(self, *names: str, least: int = 1, most: int = _MOST_WIDTH) -> int | None:
        """A whole number, or None where it is null or absent."""
        value = self.value(*names)
        return None if value is None else whole(value, self.named(*names), least, most)

    def need(self, *names: str, least: int = 1, most: int = _MOST_WIDTH) -> int:
        """A whole number that the model cannot do without.

        Raises:
            InputError: neither the file nor the model type states it.
        """
        number = self.count(*names, least=least, most=most)
        if number is None:
            default = next((self.defaults[name] for name in names if self.defaults.get(name) is not None), None)
            if default is not None:
                self.assumed[names[0]] = default
                return whole(default, names[0], least, most)
            raise InputError(
                f"{names[0]} is missing",
                hint=f"the config.json of a {quote(self.model_type)} model states it; other spellings: "
                + (", ".join(names[1:]) or "none"),
                location=names[0],
            )
        return number

    def tokens(self, *names: str) -> int | None:
        """A number of tokens, or None."""
        return self.count(*names, most=_MOST_TOKENS)

    def flag(self, *names: str, default: bool = False) -> bool:
        """True or false."""
        value = self.value(*names)
        if value is None:
            return default
        if not isinstance(value, bool) and value not in (0, 1):
            raise InputError(f"{self.named(*names)} must be true or false, not {quote(value)}", location=names[0])
        return bool(value)

    def word(self, *names: str) -> str | None:
        """A text, or None."""
        value = self.value(*names)
        if value is not None and not isinstance(value, str):
            raise InputError(f"{self.named(*names)} must be a text, not {quote(value)}", location=names[0])
        return value

    def table_at(self, name: str) -> Config:
        """A nested table (empty where the file has none)."""
        value = self.value(name)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise InputError(f"{name} must be a table, not {quote(value)}", location=name)
        return Config(value, self.model_type, {}, {})

    def sequence(self, name: str, most: int = MOST_LAYERS) -> list[Any] | None:
        """A list of bounded length, or None."""
        value = self.value(name)
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            raise InputError(f"{name} must be a list, not {quote(value)}", location=name)
        if len(value) > most:
            raise InputError(f"{name} has {len(value):,} entries, more than {most:,}", location=name)
        return list(value)

    def words(self, name: str) -> list[str] | None:
        """A list of texts, or None."""
        values = self.sequence(name)
        for at, value in enumerate(values or []):
            if not isinstance(value, str):
                raise InputError(f"{name}[{at}] must be a text, not {quote(value)}", location=f"{name}[{at}]")
        return values

    def counts(self, name: str, least: int = 0, most: int = _MOST_WIDTH) -> list[int] | None:
        """A list of whole numbers, or None."""
        values = self.sequence(name)
        return (
            None if values is None else [whole(value, f"{name}[{at}]", least, most) for at, value in enumerate(values)]
        )

    def indices(self, name: str, num_layers: int, base: int = 0) -> set[int] | None:
        """Layer indices as a set that counts from 0, or None.

        Raises:
            InputError: an index lies outside the model.
        """
        values = self.counts(name, least=0)
        if values is None:
            return None
        for value in values:
            if not base <= value < num_layers + base:
                raise InputError(f"{name} names layer {value}, the model has {num_layers}", location=name)
        return {value - base for value in values}

    def uniform(self, *names: str, least: int = 0) -> int | None:
        """A whole number, or a list of equal ones.

        Raises:
            InputError: the list names different numbers, which no rule here covers.
        """
        value = self.value(*names)
        if isinstance(value, list | tuple):
            numbers = {whole(each, self.named(*names), least, _MOST_WIDTH) for each in value[:MOST_LAYERS]}
            if len(numbers) != 1:
                raise InputError(f"{self.named(*names)} differs from layer to layer, which no rule covers here")
            return numbers.pop()
        return self.count(*names, least=least)

    def named(self, *names: str) -> str:
        """The spelling that the file uses."""
        return next((name for name in names if self._found(name)[0]), names[0])


def renamed(table: Mapping[str, Any], names: Mapping[str, str]) -> Mapping[str, Any]:
    """A table with usual keys in place of the names that a model type has for them.

    What stands under the type's own name wins: BART's files hold a ``num_hidden_layers`` that is the encoder's.

    >>> renamed({"decoder_layers": 4, "num_hidden_layers": 2}, {"num_hidden_layers": "decoder_layers"})
    {'decoder_layers': 4, 'num_hidden_layers': 4}
    """
    reader = Config(table, "", {}, {})
    stated = {usual: value for usual, own in names.items() if (value := reader.stated(own)) is not None}
    return {**table, **stated} if stated else table


def whole(value: Any, what: str, least: int = 0, most: int = _MOST_WIDTH) -> int:
    """A JSON number as an integer between ``least`` and ``most``.

    >>> whole(4096.0, "hidden_size")
    4096
    """
    # 10^400 arrives as an integer, 1e400 as infinity, and some writers print 4096 as 4096.0.
    if isinstance(value, float) and value.is_integer() and abs(value) < 2.0**53:
        value = int(value)
    if type(value) is not int:
        raise InputError(f"{what} must be a whole number, not {quote(value)}", location=what)
    if not least <= value <= most:
        raise InputError(f"{what} must be between {least:,} and {most:,}, not {quote(value)}", location=what)
    return value
