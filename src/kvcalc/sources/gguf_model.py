"""From a GGUF header to an architecture: the layers as llama.cpp derives them from the metadata, the weights as listed.

The rules are those of llama.cpp 0c1e57098 (src/llama-model.cpp, load_hparams; src/models/*.cpp, load_arch_hparams;
src/llama-hparams.cpp). A GGUF names its own architecture; engines key their rules on the Hugging Face model type, so
the architecture carries that one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from kvcalc.architecture import (
    Architecture,
    Chunked,
    Full,
    Latent,
    Layer,
    LayerKind,
    NoCache,
    Parallel,
    Part,
    Provenance,
    Shared,
    Sliding,
    State,
    Tensor,
    distinct_layers,
)
from kvcalc.errors import InputError, KVCalcError, UnsupportedError, quote
from kvcalc.sources import shipped
from kvcalc.sources.files import parse_toml
from kvcalc.sources.gguf import GGUFHeader, GGUFTensor, Skipped, Value, read_gguf

_MOST_LAYERS = 10_000
_LARGEST_SIZE = 2**31

#: Keys of layers that this reader knows no size for.
_UNKNOWN_LAYERS = ("wkv.head_size", "attention.compress_ratios", "attention.compress_ratio", "decoder_block_count")


StateRule = Literal["all", "beside attention", "no KV heads", "no KV heads, no feed-forward", "interval"]
_DEFAULT_INTERVAL = 4


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Window(_Row):
    """The window rule of one GGUF architecture: what its code in llama.cpp says where the file says nothing.

    Attributes:
        period: layer i is local when ``i % period < period - 1``; None where the file must give the pattern.
        default: the window of a file without the key; None for no window at all.
        fixed: the window whatever the key says.
        global_first: layer i is local when ``i % period > 0``.
        chunked: the layers attend inside aligned chunks.
        only_layers: the rule holds for models of that many layers alone.
    """

    period: int | None = None
    default: int | None = None
    fixed: int | None = None
    global_first: bool = False
    chunked: bool = False
    only_layers: int | None = None


class GGUFArchitecture(_Row):
    """What llama.cpp's code knows of a GGUF architecture: a table of ``presets/gguf/architectures.toml``.

    Attributes:
        model_type: the Hugging Face model type, where a hyphen turned into an underscore is not all.
        without_cache: what it is, an encoder or another part of a model, which keeps no KV cache.
        keeps_memory: False for models that generate text without one (llama_model::create_memory): each step reads all
            tokens.
        reads_window: False where llama.cpp does not, so that every layer keeps the whole context.
        window: the rule of its windows.
        cache_owners: the first layers that own a cache, whatever the file says.
        states: which layers keep a recurrent state.
        state_groups: False where the convolution has no groups (Mamba 1).
    """

    model_type: str | None = None
    without_cache: str | None = None
    keeps_memory: bool = True
    reads_window: bool = True
    window: Window | None = None
    cache_owners: int | None = None
    states: StateRule | None = None
    state_groups: bool = True


@cache
def _architectures() -> dict[str, GGUFArchitecture]:
    location = "gguf/architectures.toml"
    tables = parse_toml(shipped.text("gguf", "architectures") or "", location)
    return {name: GGUFArchitecture.model_validate(table) for name, table in tables.items()}


def load_gguf(path: Path) -> Architecture:
    """The architecture and the exact weights of a GGUF file, all its parts read.

    Raises:
        InputError: a file that is missing, truncated or wrong, or a key that is missing.
        UnsupportedError: a model without a cache, or layers whose size the keys do not say.
    """
    header = read_gguf(path)
    name = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", path.name, flags=re.ASCII)
    try:
        return architecture_of(header, name, str(path))
    except KVCalcError as error:
        raise error.at(str(path)) from None


def architecture_of(header: GGUFHeader, name: str, source: str) -> Architecture:
    """The architecture that a header describes.

    Args:
        name: what reports call the model.
        source: where the header was read, for the architecture's sources.
    """
    keys = _Keys(header)
    _refuse_what_keeps_no_cache(keys)
    kinds = _layer_kinds(keys)
    tensors_of, others = _by_layer(header, len(kinds))
    ordered = [_layer(keys, kind, tensors_of[index]) for index, kind in enumerate(kinds)]
    mtp = keys.count("nextn_predict_layers", default=0)
    layers, order = distinct_layers(ordered[: len(ordered) - mtp])
    sizes: dict[str, int] = {}
    for tensor in header.tensors:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.bytes
    dtype, notes = _own_dtype(sizes)
    return Architecture(
        name=name,
        model_type=_model_type(keys),
        layers=layers,
        order=order,
        hidden_size=keys.size("embedding_length"),
        vocab_size=_vocabulary(keys, header),
        max_context=keys.size("context_length", default=0) or None,
        dtype=dtype,
        tensors=tuple(_summed(keys, None, others)),
        mtp_layers=tuple(ordered[len(ordered) - mtp :]),
        provenance=Provenance(
            sources=(source,),
            notes=(*keys.notes, *notes, *_file_notes(header, mtp)),
            exact_parameters=bool(sizes),
            weight_bytes=sizes or None,
            weight_elements=sum(each.elements for each in header.tensors if not _is_table(each.name)) or None,
        ),
    )


class _Keys:
    """The metadata of one model: typed access to the keys of its architecture, and what had to be assumed."""

    def __init__(self, header: GGUFHeader) -> None:
        self.metadata = header.metadata
        arch = self.metadata.get("general.architecture")
        if not isinstance(arch, str) or not re.fullmatch(r"[\w.-]{1,64}", arch, re.ASCII):
            raise InputError("general.architecture is missing", hint="a GGUF model names its architecture there")
        self.arch = arch
        self.known = _architectures().get(arch) or GGUFArchitecture()
        self.notes: list[str] = []

    def path(self, key: str) -> str:
        return f"{self.arch}.{key}"

    def get(self, key: str) -> Value | None:
        return self.metadata.get(self.path(key))

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number that may not be zero, unless zero is the default."""
        return self.count(key, default, least=1 if default is None else default and 1)

    def count(self, key: str, default: int | None = None, least: int = 0) -> int:
        value = self.get(key)
        if value is None:
            if default is None:
                raise InputError(f"the key {self.path(key)} is missing", hint="no layer can be sized without it")
            return default
        return self._checked(key, value, least)

    def by_layer(self, key: str, layers: int, default: list[int]) -> list[int]:
        """A number for each layer: one for all, a list, or the default."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, tuple):
            return [self._checked(key, value)] * layers
        if len(value) < layers:
            raise InputError(f"the key {self.path(key)} lists {len(value):,} layers, the model has {layers:,}")
        return [self._checked(key, each) for each in value[:layers]]

    def _checked(self, key: str, value: Value, least: int = 0) -> int:
        if isinstance(value, float | str | tuple | Skipped) or not least <= value <= _LARGEST_SIZE:
            shown = f"{value.length:,} entries" if isinstance(value, Skipped) else quote(value)
            raise InputError(f"the key {self.path(key)} must be a whole number from {least}, not {shown}")
        return int(value)


def _refuse_what_keeps_no_cache(keys: _Keys) -> None:
    what = keys.known.without_cache
    if keys.metadata.get("general.type") in ("adapter", "mmproj", "imatrix"):
        what = f"of type {quote(keys.metadata['general.type'])}"
    if what is not None:
        raise UnsupportedError(
            f"the file is {what}: it keeps no KV cache", hint="name the file of the language model itself"
        )
    for key in _UNKNOWN_LAYERS:
        if keys.get(key) is not None:
            raise UnsupportedError(
                f"no rule for layers with the key {keys.path(key)}",
                hint="a spec file can state the model's layers: see 'kvcalc presets export'",
            )


def _layer_kinds(keys: _Keys) -> list[LayerKind]:
    """The cache of every layer, multi-token-prediction layers last."""
    layers = keys.size("block_count")
    if layers > _MOST_LAYERS:
        raise InputError(f"the key {keys.path('block_count')} says {layers:,} layers: is the file damaged?")
    if not keys.known.keeps_memory:
        keys.notes.append(f"llama.cpp keeps no memory for {keys.arch}: each step reads all tokens again")
        return [NoCache()] * layers
    mtp = keys.count("nextn_predict_layers", default=0)
    if mtp >= layers:
        raise InputError(f"the key {keys.path('nextn_predict_layers')} leaves no layer of {layers:,}")
    states = _state_layers(keys, layers, mtp)
    local, window = _local_layers(keys, layers)
    owners = keys.known.cache_owners or layers - keys.count("attention.shared_kv_layers", default=0)
    attention = _Attention.read(keys, layers) if "attention" in states or "both" in states else None
    state = None if set(states) <= {"attention", "none"} else _state(keys)
    kinds: list[LayerKind] = []
    for index, what in enumerate(states):
        if what == "state":
            assert state is not None
            kinds.append(state)
        elif what == "none" or attention is None or not attention.kv_heads[index]:
            kinds.append(NoCache())
        elif index >= owners:
            of: Literal["full", "sliding", "chunked"] = "full"
            if local[index]:
                of = "chunked" if window.chunked else "sliding"
            kinds.append(Shared(of=of))
        else:
            kind = attention.kind(index, local[index], window)
            if what == "both":
                assert state is not None
                if not isinstance(kind, Full | Sliding):
                    raise UnsupportedError(f"no rule for {kind.kind} attention beside a state in one layer")
                kind = Parallel(attention=kind, state=state)
            kinds.append(kind)
    return kinds


@dataclass(frozen=True, slots=True)
class _ModelWindow:
    """The window of this model's local layers, in tokens (0 where it has none)."""

    tokens: int
    chunked: bool = False


def _local_layers(keys: _Keys, layers: int) -> tuple[list[bool], _ModelWindow]:
    """Which layers attend to a part of the context, and how wide it is."""
    everywhere = [False] * layers
    key, pattern_key = "attention.sliding_window", "attention.sliding_window_pattern"
    stated = keys.count(key, default=0)
    rule = keys.known.window
    if not keys.known.reads_window:
        if stated:
            keys.notes.append(
                f"llama.cpp runs {keys.arch} without its window of {stated:,} tokens: every layer is full"
            )
        return everywhere, _ModelWindow(0)
    if rule is None:
        if not stated:
            return everywhere, _ModelWindow(0)
        if keys.get(pattern_key) is None:
            raise UnsupportedError(
                f"{keys.path(key)} is {stated:,} and nothing says which layers it holds for",
                hint=f"the key {keys.path(pattern_key)} would; {keys.arch!r} has no rule of its own here",
            )
        rule = Window()
    if keys.get(key) is None and rule.default is not None:
        stated = rule.default
    if rule.only_layers not in (None, layers) or not stated:
        return everywhere, _ModelWindow(0)
    window = _ModelWindow(rule.fixed or stated, rule.chunked)
    pattern = keys.get(pattern_key)
    if isinstance(pattern, tuple):
        return [bool(each) for each in keys.by_layer(pattern_key, layers, [])], window
    period = keys.count(pattern_key, default=rule.period)
    if period == 0:  # llama_hparams::set_swa_pattern: every layer
        return [True] * layers, window
    if rule.global_first:
        return [index % period > 0 for index in range(layers)], window
    return [index % period < period - 1 for index in range(layers)], window


@dataclass(frozen=True, slots=True)
class _Attention:
    """Heads of the attention layers: KV heads by layer, and the widths of K and V, everywhere and in local layers."""

    kv_heads: list[int]
    widths: tuple[int, int]
    local_widths: tuple[int, int]
    latent: Latent | None
    indexer_dim: int

    @staticmethod
    def read(keys: _Keys, layers: int) -> _Attention:
        if keys.get("attention.head_count") is None:
            raise InputError(f"the key {keys.path('attention.head_count')} is missing", hint="no head can be sized")
        heads = keys.by_layer("attention.head_count", layers, [])
        kv_heads = keys.by_layer("attention.head_count_kv", layers, heads)
        most = next((count for count in heads if count), 0)
        width = keys.size("embedding_length") // most if most else 0
        key, value = (keys.count(f"attention.{side}_length", default=width) for side in ("key", "value"))
        local_key = keys.count("attention.key_length_swa", default=key)
        local_value = keys.count("attention.value_length_swa", default=value)
        if any(kv_heads) and not (key and value and local_key and local_value):
            raise InputError("the heads have no width", hint=f"see the key {keys.path('attention.key_length')}")
        indexer_dim = keys.count("attention.indexer.key_length", default=0)
        latent = _latent(keys, most, key, indexer_dim)
        return _Attention(kv_heads, (key, value), (local_key, local_value), latent, indexer_dim)

    def kind(self, index: int, local: bool, window: _ModelWindow) -> LayerKind:
        if self.latent is not None:
            return replace(self.latent, window=window.tokens) if local else self.latent
        kv_heads = self.kv_heads[index]
        if not local:
            return Full(kv_heads, *self.widths, self.indexer_dim)
        return (Chunked if window.chunked else Sliding)(window.tokens, kv_heads, *self.local_widths)


def _latent(keys: _Keys, heads: int, key_length: int, indexer_dim: int) -> Latent | None:
    """Multi-head latent attention, where the file has the keys that make llama.cpp cache the latent."""
    key_dim, value_dim = (keys.count(f"attention.{side}_length_mla", default=0) for side in ("key", "value"))
    if not key_dim or not value_dim:
        if keys.get("attention.kv_lora_rank") is not None:
            keys.notes.append(
                f"without the key {keys.path('attention.key_length_mla')} llama.cpp caches the decompressed heads"
            )
        return None
    rank = keys.size("attention.kv_lora_rank")
    rope_dim = keys.count("rope.dimension_count", default=max(0, key_length - rank))
    if rank + rope_dim != key_length or rope_dim > key_dim:
        raise InputError(
            f"a latent of {rank:,} and a rope key of {rope_dim:,} do not make the key of {key_length:,}",
            location=keys.path("attention.key_length"),
        )
    return Latent(
        rank=rank,
        rope_dim=rope_dim,
        num_heads=heads,
        nope_dim=key_dim - rope_dim,
        v_head_dim=value_dim,
        indexer_dim=indexer_dim,
    )


def _state_layers(keys: _Keys, layers: int, mtp: int) -> list[Literal["attention", "state", "both", "none"]]:
    """What every layer mixes its tokens with."""
    rule = keys.known.states or _general_state_rule(keys)
    if rule is None:
        return ["attention"] * layers
    if rule == "all":
        return ["state"] * layers
    if rule == "beside attention":
        return ["both"] * layers
    if rule == "interval":
        interval = keys.size("full_attention_interval", default=_DEFAULT_INTERVAL)
        stated = keys.by_layer(
            "attention.recurrent_layers", layers, [int((index + 1) % interval != 0) for index in range(layers)]
        )
        return ["state" if stated[index] and index < layers - mtp else "attention" for index in range(layers)]
    kv_heads = keys.by_layer("attention.head_count_kv", layers, [1] * layers)
    widths = [0] * layers
    if rule == "no KV heads, no feed-forward":
        widths = keys.by_layer("feed_forward_length", layers, widths)
    return [
        "attention" if heads else "none" if width else "state" for heads, width in zip(kv_heads, widths, strict=True)
    ]


def _general_state_rule(keys: _Keys) -> StateRule | None:
    """The rule of an architecture that has none of its own, from the keys that the file has."""
    key = next(
        (key for key in ("ssm.conv_kernel", "shortconv.l_cache", "kda.head_dim") if keys.get(key) is not None), None
    )
    if key is None:
        return None
    kv_heads = keys.get("attention.head_count_kv")
    if isinstance(kv_heads, tuple) and 0 in kv_heads:
        return "no KV heads"
    if keys.get("full_attention_interval") is not None or keys.get("attention.recurrent_layers") is not None:
        return "interval"
    raise UnsupportedError(
        f"the key {keys.path(key)} states a recurrent state and nothing says which layers keep it",
        hint=f"zeros in {keys.path('attention.head_count_kv')} would; {keys.arch!r} has no rule of its own here",
    )


def _state(keys: _Keys) -> State:
    """The recurrent state of one layer: llama_hparams::n_embd_r (``kernel - 1`` columns) and n_embd_s."""
    if keys.get("shortconv.l_cache") is not None:
        return State(conv_channels=keys.size("embedding_length"), conv_kernel=keys.size("shortconv.l_cache"))
    kernel = keys.size("ssm.conv_kernel")
    if keys.get("kda.head_dim") is not None:
        width = keys.size("kda.head_dim")
        heads = max(keys.by_layer("attention.head_count", keys.size("block_count"), [0]))
        return State(width * width * heads, "float32", conv_channels=3 * heads * width, conv_kernel=kernel)
    inner, size = keys.size("ssm.inner_size"), keys.size("ssm.state_size")
    groups = keys.count("ssm.group_count", default=0) if keys.known.state_groups else 0
    return State(recurrent_elements=size * inner, conv_channels=inner + 2 * groups * size, conv_kernel=kernel)


def _model_type(keys: _Keys) -> str:
    if keys.arch == "olmo2" and keys.count("attention.sliding_window", default=0):
        return "olmo3"  # llama.cpp runs both under one name; only OLMo 3 has a window
    return keys.known.model_type or keys.arch.replace("-", "_")


def _vocabulary(keys: _Keys, header: GGUFHeader) -> int:
    tokens = keys.metadata.get("tokenizer.ggml.tokens")
    if keys.get("vocab_size") is not None:
        return keys.size("vocab_size")
    if isinstance(tokens, Skipped):
        return tokens.length
    table = next((each for each in header.tensors if each.name == "token_embd.weight"), None)
    return table.shape[-1] if table else 0


def _own_dtype(sizes: dict[str, int]) -> tuple[str, list[str]]:
    """The model's own dtype, in which engines other than llama.cpp keep its cache."""
    plain = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
    largest = max(sizes, key=lambda name: sizes[name], default="")
    if largest in plain:
        return plain[largest], []
    return "bfloat16", ["a quantised GGUF does not say the model's own dtype: bfloat16 is assumed"]


def _file_notes(header: GGUFHeader, mtp: int) -> list[str]:
    notes = []
    if not header.tensors:
        notes.append("the file lists no tensors: its weights are not known, and counted as none")
    elif not header.has_data:
        notes.append("the file is a header alone: its weights are those that it lists")
    if mtp and header.tensors:
        notes.append(
            f"the weights include {mtp} multi-token-prediction layer{'s' if mtp > 1 else ''}, as the file does"
        )
    return notes


_BLOCK = re.compile(r"blk\.(\d{1,5})\.(.+)", re.ASCII)


def _is_table(name: str) -> bool:
    """Whether a tensor is a table of rope factors, which the model computes elsewhere: bytes, but no parameters."""
    return "rope_freqs" in name or "rope_factors" in name


def _by_layer(header: GGUFHeader, layers: int) -> tuple[list[list[GGUFTensor]], list[GGUFTensor]]:
    """The tensors of each layer, and those that belong to none."""
    within: list[list[GGUFTensor]] = [[] for _ in range(layers)]
    others = []
    for tensor in header.tensors:
        block = _BLOCK.fullmatch(tensor.name)
        if block is None:
            others.append(tensor)
        elif int(block[1]) < layers:
            within[int(block[1])].append(tensor)
        else:
            raise InputError(f"tensor {quote(tensor.name)} belongs to no layer: the model has {layers:,}")
    return within, others


def _layer(keys: _Keys, kind: LayerKind, tensors: list[GGUFTensor]) -> Layer:
    mixer: list[GGUFTensor] = []
    rest: list[GGUFTensor] = []
    for tensor in tensors:
        (mixer if _is_mixer(tensor.name) else rest).append(tensor)
    return Layer(cache=kind, mixer=tuple(_summed(keys, kind, mixer)), rest=tuple(_summed(keys, kind, rest)))


#: The part of a tensor by its name without layer and kind; the first that fits.
_PARTS: tuple[tuple[str, Part], ...] = (
    ("token_embd|per_layer_token_embd|position_embd|token_types", "embedding"),
    ("output|cls", "head"),
    (".*norm.*", "norms"),
    ("(ffn_gate_inp|exp_probs_b).*", "router"),
    (".*_exps", "experts"),
    ("ffn_.*", "feed_forward"),
    ("(ssm_|shortconv).*", "state"),
    ("(attn_|indexer).*", "attention"),
)
_MIXERS = ("attn_", "ssm_", "shortconv", "indexer")
_RESIDUAL_NORMS = ("attn_norm", "attn_post_norm", "attn_norm_2")


def _is_mixer(name: str) -> bool:
    stem = _stem(name)
    return stem.startswith(_MIXERS) and stem not in _RESIDUAL_NORMS


def _stem(name: str) -> str:
    """A tensor's name without its layer and its kind: ``blk.3.attn_q.weight`` -> ``attn_q``."""
    return _role(name).partition(".")[0]


def _role(name: str) -> str:
    """A tensor's name without its layer: ``blk.3.attn_q.weight`` -> ``attn_q``, but ``attn_q.bias``."""
    block = _BLOCK.fullmatch(name)
    return (block[2] if block else name).removesuffix(".weight")


def _summed(keys: _Keys, kind: LayerKind | None, tensors: list[GGUFTensor]) -> list[Tensor]:
    """The tensors of one layer, or of none, those alike as one entry."""
    alike: dict[Tensor, int] = {}
    for tensor in tensors:
        if not _is_table(tensor.name):
            part = _part(tensor.name, kind)
            columns, rows, stacked = _shape(tensor, part)
            linear = columns > 1 and part not in ("embedding", "norms", "router") and "conv1d" not in tensor.name
            kv_heads = _kv_heads(tensor.name, kind)
            one = Tensor(
                part,
                rows,
                columns,
                role=_role(tensor.name),
                linear=linear,
                split="by_kv_heads" if kv_heads else "whole" if part in ("norms", "router") else "rows",
                kv_heads=kv_heads,
            )
            alike[one] = alike.get(one, 0) + stacked
    return [
        replace(one, count=count, active=_active(keys, count) if one.part == "experts" else None)
        for one, count in alike.items()
    ]


def _shape(tensor: GGUFTensor, part: Part) -> tuple[int, int, int]:
    """Columns, rows, and how many matrices of that shape are stacked: experts, and the biases of experts."""
    if len(tensor.shape) < 2:
        return 1, tensor.elements, 1
    if len(tensor.shape) == 2 and part == "experts":
        return 1, *tensor.shape
    columns, rows, *stacked = tensor.shape
    return columns, rows, prod(stacked)


def _part(name: str, kind: LayerKind | None) -> Part:
    stem = _stem(name)
    found: list[Part] = [part for pattern, part in _PARTS if re.fullmatch(pattern, stem)] or ["other"]
    return "state" if found[0] == "attention" and isinstance(kind, State) else found[0]


def _kv_heads(name: str, kind: LayerKind | None) -> int:
    """The KV heads by which tensor parallelism divides a tensor; 0 where it does not."""
    attention = kind.attention if isinstance(kind, Parallel) else kind
    if isinstance(attention, Full | Sliding | Chunked) and _stem(name) in ("attn_k", "attn_v"):
        return attention.num_kv_heads
    return 0


def _active(keys: _Keys, count: int) -> int:
    """How many of the routed experts' matrices one token reads."""
    experts = keys.count("expert_count", default=0)
    used = min(experts, keys.count("expert_used_count", default=experts))
    return count * used // experts if experts else count
