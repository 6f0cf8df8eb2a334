"""How the files of one model type are read: the rows of ``presets/families``, one file a lineage.

A row is a table named by its model type. Adding a model type is adding a row; its fields say what the files leave out
(``defaults``), in which order the layers stand (``order``), and what they are made of. Where a field may be a text, the
text names the key of the file that decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, lru_cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict

from kvcalc.architecture import Architecture
from kvcalc.sources import shipped
from kvcalc.sources.building import canonical_type
from kvcalc.sources.config.layers import NAMED_KINDS, Order
from kvcalc.sources.config.parts import STATES, Experts
from kvcalc.sources.config.special import SPECIAL
from kvcalc.sources.files import parse_toml
from kvcalc.sources.spec import LayerSet
from kvcalc.weights import count_parameters

#: Yes, no, the key that says so, or ``not`` and the key that denies it.
Switch = bool | str
Keys = tuple[str, ...]
#: A number, the name of one (a key of the file, or one of hidden_size, num_heads, num_kv_heads, head_dim, vocab_size,
#: num_layers, intermediate_size), or several to multiply.
Size = int | str | tuple[int | str, ...]


def _one_of(names: Mapping[str, object]) -> AfterValidator:
    """What refuses a name that none of these is."""

    def known(name: str) -> str:
        if name not in names:
            raise ValueError(f"unknown name {name!r}; known: {', '.join(names)}")
        return name

    return AfterValidator(known)


_KindName = Annotated[str, _one_of(NAMED_KINDS)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Attention(_Table):
    """Attention layers, beside what every file states (heads, KV heads, head width).

    Attributes:
        kv_heads: keys of the KV heads; none: the usual spellings.
        kv_heads_if: the key that must be true for KV heads to be fewer than heads (ChatGLM).
        one_kv_head_if: the key that alone decides: one KV head, or as many as heads (GPT-BigCode).
        qk_norm_if: the key that must be true for the norms on Q and K.
        gate_if: the key that must be true for the gate.
        query_rank, indexer_dim, indexer_heads: keys of these numbers.
        local: what differs in sliding and chunked layers: a field of the spec's ``[local_attention]``, and its keys.
        others: as the fields of the spec's ``[attention]``.
    """

    kv_heads: Keys = ()
    kv_heads_if: str | None = None
    one_kv_head_if: str | None = None
    qk_norm: Literal["none", "head", "all"] = "none"
    qk_norm_if: str | None = None
    qkv_bias: Switch = False
    key_bias: bool = True
    output_bias: Switch = False
    gate: Literal["none", "head", "full"] = "none"
    gate_if: str | None = None
    gate_bias: bool = False
    sinks: bool = False
    query_rank: Keys = ()
    indexer_dim: Keys = ()
    indexer_heads: Keys = ()
    local: dict[Literal["num_heads", "num_kv_heads", "head_dim", "v_head_dim"], Keys] = {}


class FeedForward(_Table):
    """Feed-forward blocks.

    Attributes:
        width: keys of the width; none: the layers have no such block, or ``width_factor`` says how wide.
        width_factor: the width over hidden_size, or its key, where the file states no width.
        width_divisor: the width is that of the file divided by this (Qwen counts the gate too).
        others: as the fields of the spec's ``[feed_forward]``.
    """

    width: Keys = ("intermediate_size",)
    width_factor: int | str | None = None
    width_divisor: int = 1
    gated: bool = True
    bias: Switch = False
    norm: bool = False
    activation_parameters: int = 0


class Norms(_Table):
    """Norms of the residual stream.

    Attributes:
        parallel_if: where this key is true, attention and feed-forward read the same norm: one a layer.
        behind_if: where this key is true, both blocks have a norm behind them too: four a layer.
        others: as the fields of the spec's ``[norms]``.
    """

    per_layer: int = 2
    bias: bool = False
    final: Switch = True
    embedding: bool = False
    parallel_if: str | None = None
    behind_if: str | None = None


class PerLayerInput(_Table):
    """Embeddings of their own for every layer: the keys of the numbers in the spec's ``[per_layer_input]``."""

    width: str
    vocab_size: str
    altup_inputs: str | None = None
    laurel_rank: str | None = None


class Positions(_Table):
    """A table of learned positions: the keys of its rows, and rows besides (OPT and BART have two)."""

    rows: Keys
    extra: int = 0


class Encoder(_Table):
    """The encoder that each decoder layer attends to: the keys of its numbers, which are the decoder's where none is.

    Attributes:
        shared_tables: both sides read one table where the head is tied to it, and have one each beside it otherwise.
        others: as the fields of the spec's ``[encoder]``.
    """

    num_layers: Keys
    hidden_size: Keys = ()
    intermediate_size: Keys = ()
    num_heads: Keys = ()
    num_kv_heads: Keys = ()
    head_dim: Keys = ()
    gated: bool | None = None
    norms_per_layer: int = 2
    norms: int = 1
    embedding: Switch = False
    shared_tables: bool = False
    learned_positions: Positions | None = None


class Extra(_Table):
    """Weights that no other table has, as the spec's ``[[extra]]``; ``when`` is whether the model has them."""

    role: str
    part: Literal["embedding", "attention", "state", "feed_forward", "experts", "router", "norms", "head", "other"] = (
        "other"
    )
    rows: Size
    columns: Size = 1
    count: Size = 1
    linear: bool = False
    layers: LayerSet | None = None
    when: Switch = True


class Family(_Table):
    """How the files of one model type are read.

    Attributes:
        also: model types of their own whose files are read in the same way.
        wrappers: those of them that a file has around a text part of this row's name, and that count.
        spellings: other names, and the model type that each stands for: a wrapper's whose text part this is, or an old
            one.
        encoder_only: a model that keeps nothing from token to token and generates no text.
        no_cache: a model that generates text and keeps nothing (a diffusion language model).
        bidirectional_if: the key that makes the model an encoder: its tokens see each other both ways.
        not_modelled: why there is no rule for the type.
        remote: a class beside the checkpoint, which calls the whole model, with its head, ...Model.
        names: a usual key -> the key that holds its number in these files; a dot leads into a nested table.
        defaults: values of keys that a file may leave out.
        order: the layers of a file that does not list them.
        kinds: layer types that mean something of their own here.
        mtp_kind: what its multi-token-prediction layers are, by a name of ``NAMED_KINDS``; none: as the file lists
            them, or like its last attention layer.
        mtp_tensors: what checkpoints hold of multi-token-prediction layers, as the spec says it.
        latent: full attention is multi-head latent attention.
        state: how state layers are read, as the keys say if None.
        layers_factor: layers here for one of the file (LongCat has two attentions in each).
        last_is_global: the last layer is global even where the file lists it as sliding (Gemma 4).
        rope: the type of its rotary embedding where the file states none ("as stated": only the file tells).
        never_tied: the class has a head of its own, whatever ``tie_word_embeddings`` says.
        head_bias: a bias on the head.
        embedding_size: the key of the width of an embedding narrower than the layers.
        hyper_connections, kv_shared_last_layers: keys of these numbers.
        notes: what a reader of the numbers must know.
        special: the function of :data:`~kvcalc.sources.config.special.SPECIAL` that has the last word.
        published: name of a published model -> its parameters, as its publisher states them or as the class of
            transformers 5.23.0 has them with the published configuration, tied weights once.
    """

    also: Keys = ()
    wrappers: Keys = ()
    spellings: dict[str, str] = {}
    encoder_only: bool = False
    no_cache: bool = False
    bidirectional_if: str | None = None
    not_modelled: str | None = None
    remote: bool = False
    names: dict[str, str] = {}
    defaults: dict[str, Any] = {}
    order: Order = Order()
    kinds: dict[str, _KindName] = {}
    mtp_kind: _KindName | None = None
    mtp_tensors: Literal["layers", "layers and tables", "none"] = "layers"
    latent: bool = False
    state: Annotated[str, _one_of(STATES)] | None = None
    attention: Attention = Attention()
    feed_forward: FeedForward = FeedForward()
    experts: Experts | None = None
    norms: Norms = Norms()
    per_layer_input: PerLayerInput | None = None
    layers_factor: int = 1
    last_is_global: bool = False
    rope: str = ""
    never_tied: bool = False
    head_bias: Switch = False
    embedding_size: str | None = None
    learned_positions: Positions | None = None
    encoder: Encoder | None = None
    extra: tuple[Extra, ...] = ()
    hyper_connections: str | None = None
    kv_shared_last_layers: str | None = None
    notes: Keys = ()
    special: Annotated[str, _one_of(SPECIAL)] | None = None
    published: dict[str, int] = {}

    def kind_of(self, *, latent: bool) -> Mapping[str, str]:
        """What each layer type means in these files; ``latent``: with multi-head latent attention."""
        if not latent:
            return self.kinds
        types = ("full_attention", "indexed_attention", "deepseek_sparse_attention")
        return dict.fromkeys(types, "latent") | self.kinds


@cache
def _texts() -> dict[str, str]:
    """The rows of each lineage as text: small files, read once."""
    return shipped.texts("families")


@cache
def lineage(file_name: str) -> dict[str, Family]:
    """The rows of one file, by model type; a type that is read like another stands under its own name too."""
    tables = parse_toml(_texts()[file_name], f"families/{file_name}.toml")
    rows = {name: Family.model_validate(_tuples(table)) for name, table in tables.items()}
    return rows | {name: row for row in rows.values() for name in row.also}


def _tuples(value: Any) -> Any:
    """TOML's lists as the tuples of a frozen row; ``defaults`` stay as a config.json has them."""
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    if isinstance(value, dict):
        return {key: each if key == "defaults" else _tuples(each) for key, each in value.items()}
    return value


@lru_cache(maxsize=1024)  # names come from files
def family_of(name: str) -> tuple[str, Family] | None:
    """The model type that a name stands for and its row, or None.

    Only the files that hold the name are read as tables.

    >>> family_of("gemma2_text")[0], family_of("RefinedWeb")[0], family_of("Yi")[0], family_of("nobody")
    ('gemma2', 'falcon', 'yi', None)
    """
    usual = name.lower().replace("-", "_")
    for each in dict.fromkeys((name, canonical_type(name), usual, canonical_type(usual))):
        for file_name, text in _texts().items():
            if each in text:
                rows = lineage(file_name)
                if each in rows:
                    return each, rows[each]
                for row in rows.values():
                    if each in row.spellings:
                        return row.spellings[each], row
    return None


#: What follows the model type in the name of a class.
_CLASS_ENDS = re.compile(r"(Text)?(For[A-Z]\w*|LMHeadModel|DoubleHeadsModel|RewardModel|Model)$")


@lru_cache(maxsize=1024)
def family_of_class(name: str) -> tuple[str, Family] | None:
    """The model type and row that the name of a model's class tells, or None.

    >>> family_of_class("DeepseekV4ForCausalLM")[0], family_of_class("GPT2LMHeadModel")[0], family_of_class("Nobody")
    ('deepseek_v4', 'gpt2', None)
    """
    word = _CLASS_ENDS.sub("", name).lower()
    for model_type in all_families():
        if model_type.replace("_", "").replace("-", "") == word:
            return family_of(model_type)
    return None


def all_families() -> dict[str, Family]:
    """Every row by model type, for near misses and for the tests."""
    return {name: row for file_name in _texts() for name, row in lineage(file_name).items()}


def with_published_count(architecture: Architecture) -> Architecture:
    """The architecture, its weights marked exact where their count is a published one of its model type."""
    found = family_of(architecture.model_type)
    if found is None or count_parameters(architecture) not in found[1].published.values():
        return architecture
    return architecture.changed(provenance=replace(architecture.provenance, exact_parameters=True))
