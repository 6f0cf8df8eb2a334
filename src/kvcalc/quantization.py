"""How checkpoints store quantised weights: the bytes of one matrix, and which matrices a format covers.

A :class:`Packing` is the layout of one kind of tensor on disk; a :class:`Quantization` says which tensors of a model
take which packing, by their modules. Everything here is a pure formula; reading a ``quantization_config`` is
:mod:`kvcalc.sources.quantization_config`, the names that people type are :mod:`kvcalc.weight_formats`, and llama.cpp's
own choice is :mod:`kvcalc.gguf_mixes`.

Layouts as their writers pack them: AutoGPTQ 9f7d370 ``qlinear_cuda_old.py``, AutoAWQ 88e4c76 ``linear/gemm.py``,
bitsandbytes 95f9af3 ``QuantState.as_dict``, compressed-tensors ac8e2ba ``compressors``, Model-Optimizer a2fbac7
``torch/export``, mlx-lm d78bf58 ``quantize_model``, transformers 5.24.0 ``integrations``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import Field, dataclass, replace
from fnmatch import translate
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from kvcalc.dtypes import DType, parse_dtype
from kvcalc.units import ceil_div

if TYPE_CHECKING:
    from kvcalc.architecture import Architecture, Tensor


#: What a checkpoint may hold beside the model's own layers, as rows name it.
PREDICTION, VISION, AUDIO, TIED_HEAD = "prediction_layers", "vision", "audio", "tied_head"
#: A GGUF file's table of what each frequency of the rotary embedding is divided by.
ROPE_FACTORS = "rope_factors"
TOWERS = frozenset({VISION, AUDIO})
PUBLISHED = TOWERS | {PREDICTION}
EVERYTHING = PUBLISHED | {TIED_HEAD, ROPE_FACTORS}


@dataclass(frozen=True, slots=True)
class Packing:
    """The bytes of a matrix [rows, columns]: its numbers, and what is stored beside them.

    Attributes:
        name: what notes call it.
        bits: of one number; a row is filled up to whole words of ``word_bits``.
        word_bits: 32 where numbers are packed into 32-bit words, 8 otherwise.
        groups: (numbers, bytes) along a row: scales, zero points, or whole blocks; 0 numbers stand for the whole row.
        flat_groups: (numbers, bytes) over the whole matrix, whatever its rows.
        zero_bits: bits of a zero point for each output and group, packed into 32-bit words along the outputs.
        row_bytes: for each output (a channel's scale, a bias).
        column_bytes: for each input (GPTQ's index of groups).
        tile: rows and columns that share a scale of ``tile_bytes``.
        matrix_bytes: for each matrix (scalar scales, a shape).
        text: a JSON text beside each matrix, which states its shape too.

    >>> Packing("mxfp4", bits=4, groups=((32, 1),)).bytes(2880, 2880)
    4406400
    """

    name: str
    bits: int = 0
    word_bits: int = 8
    groups: tuple[tuple[int, int], ...] = ()
    flat_groups: tuple[tuple[int, int], ...] = ()
    zero_bits: int = 0
    row_bytes: int = 0
    column_bytes: int = 0
    tile: tuple[int, int] = (1, 1)
    tile_bytes: int = 0
    matrix_bytes: int = 0
    text: str = ""

    def bytes(self, rows: int, columns: int) -> int:
        """Bytes of one matrix; a vector has one column."""
        size = self.number_bytes(rows, columns)
        for numbers, each in self.groups:
            size += rows * _groups(columns, numbers) * each
        for numbers, each in self.flat_groups:
            size += ceil_div(rows * columns, numbers) * each
        if self.zero_bits:
            size += 4 * ceil_div(rows * self.zero_bits, 32) * _groups(columns, self.groups[0][0])
        high, wide = self.tile
        tiles = ceil_div(rows, high) * ceil_div(columns, wide) if self.tile_bytes else 0
        size += rows * self.row_bytes + columns * self.column_bytes + tiles * self.tile_bytes + self.matrix_bytes
        return size + len(self.text + f"{rows}{columns}" if self.text else "")

    def number_bytes(self, rows: int, columns: int) -> int:
        """Bytes of its numbers alone, without what is stored beside them."""
        return rows * ceil_div(columns * self.bits, self.word_bits) * self.word_bits // 8

    def as_part(self) -> Packing:
        """The packing of a matrix that is stored as part of a larger one: no inputs or scalars of its own."""
        return replace(self, column_bytes=0, matrix_bytes=0)


def _groups(columns: int, numbers: int) -> int:
    return ceil_div(columns, numbers) if numbers > 0 else 1


@cache
def plain(dtype: DType) -> Packing:
    """A storage format of numbers or blocks, as it stands along a row.

    >>> from kvcalc.dtypes import parse_dtype
    >>> plain(parse_dtype("q8_0")).bytes(2, 64)
    136
    """
    return Packing(dtype.name, groups=((dtype.block_elements, dtype.block_bytes),))


def stored_as(dtype: str) -> Packing:
    """The packing of a tensor that has a storage format of its own, numbers of a table among them.

    >>> stored_as("float32").bytes(2, 3), stored_as("int64").bytes(2, 3)
    (24, 48)
    """
    return Packing("int64", groups=((1, 8),)) if dtype == "int64" else plain(parse_dtype(dtype))


#: A tensor that another one's packing holds already (the biases that GPTQ writes with every matrix).
ABSENT = Packing("stored with its matrix")


def mxfp4() -> Packing:
    """Groups of 32 numbers: 16 bytes and one E8M0 scale (gpt-oss: ``_blocks`` and ``_scales``)."""
    return Packing("mxfp4", bits=4, groups=((32, 1),))


def mxfp8() -> Packing:
    """Groups of 32 numbers: a byte each and one E8M0 scale."""
    return Packing("mxfp8", bits=8, groups=((32, 1),))


def nvfp4(group: int = 16, scalars: int = 2) -> Packing:
    """Groups of 16 numbers: 8 bytes and one fp8 scale; ``scalars`` float32 beside each matrix."""
    return Packing("nvfp4", bits=4, groups=((group, 1),), matrix_bytes=4 * scalars)


def fp8_tiles(scale_bytes: int, tile: tuple[int, int] = (128, 128)) -> Packing:
    """One byte a number, one scale for each tile (``weight_scale_inv``)."""
    return Packing(f"fp8 in tiles of {tile[0]} x {tile[1]}", bits=8, tile=tile, tile_bytes=scale_bytes)


def fp8_tensor(scalar_bytes: int = 8) -> Packing:
    """One byte a number, scalar scales of the weight and (static) of its input."""
    return Packing("fp8 per tensor", bits=8, matrix_bytes=scalar_bytes)


def channel(bits: int, scale_bytes: int = 2, name: str = "fp8") -> Packing:
    """``bits`` a number, one scale for each output."""
    return Packing(f"{name} per channel", bits=bits, row_bytes=scale_bytes)


def packed_int(bits: int, group: int, *, symmetric: bool = True, ordered: bool = False, shape: int = 16) -> Packing:
    """compressed-tensors ``pack-quantized``: words of 32 bits, bfloat16 scales, the shape beside each matrix."""
    return Packing(
        f"int{bits} in groups of {group}" if group > 0 else f"int{bits} per channel",
        bits=bits,
        word_bits=32,
        groups=((group, 2),),
        zero_bits=0 if symmetric else bits,
        column_bytes=4 if ordered else 0,
        matrix_bytes=shape,
    )


def awq(bits: int = 4, group: int = 128) -> Packing:
    """AutoAWQ's gemm: words of 32 bits along the outputs, zero points and 16-bit scales for each group."""
    return Packing(f"awq {bits} bit", bits=bits, word_bits=32, groups=((group, 2),), zero_bits=bits)


def gptq(bits: int = 4, group: int = 128) -> Packing:
    """AutoGPTQ: as awq, and the group of every input (``g_idx``) and a bias for every output, zero or not."""
    return Packing(
        f"gptq {bits} bit", bits=bits, word_bits=32, groups=((group, 2),), zero_bits=bits, row_bytes=2, column_bytes=4
    )


def bnb_4bit(nested: bool = False, dtype: str = "bfloat16") -> Packing:
    """bitsandbytes: two numbers a byte, a float32 maximum for each 64 (quantised again where ``nested``), its tables.

    The state is a JSON text beside each matrix; where nested it holds a mean value of 20 digits or so.
    """
    text = f'{{"quant_type": "nf4", "blocksize": 64, "dtype": "{dtype}", "shape": [, ]}}'
    if nested:
        return Packing(
            "nf4, double", flat_groups=((2, 1), (64, 1), (16384, 4)), matrix_bytes=4 * 256 + 4 * 16, text=text + _NESTED
        )
    return Packing("nf4", flat_groups=((2, 1), (64, 4)), matrix_bytes=4 * 16, text=text)


_NESTED = ', "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.012345678901234567'


def bnb_int8() -> Packing:
    """bitsandbytes: one byte a number, a float32 scale for each output, one byte that names the layout."""
    return Packing("int8 (bitsandbytes)", bits=8, row_bytes=4, matrix_bytes=1)


def mlx(bits: int = 4, group: int = 64, mode: str = "affine") -> Packing:
    """MLX: words of 32 bits; affine has a 16-bit scale and bias for each group, the fp modes one byte."""
    beside = 4 if mode == "affine" else 1
    return Packing(f"mlx {mode} {bits} bit", bits=bits, word_bits=32, groups=((group, beside),))


def hqq(bits: int, group: int) -> Packing:
    """HQQ with quantised zeros: for each group one byte and a 16-bit scale (fitted to published files)."""
    return Packing(f"hqq {bits} bit", bits=bits, flat_groups=((group, 3),))


class WeightsFormat(Protocol):
    """What stores a model's tensors; ``packer`` binds it to one model.

    ``name`` is what answers print, ``method`` who reads it, in the words of a ``quant_method`` (``gguf`` and ``mlx``
    besides; empty: plain numbers, or no one format), ``note`` what the figure holds, ``estimated`` why only the files
    can tell exactly (empty: the figure is exact), ``buffers`` whether the checkpoint's buffers are in it, and
    ``holds`` what files of the format hold beside the model's own layers.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def name(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def note(self) -> str: ...
    @property
    def estimated(self) -> str: ...
    @property
    def buffers(self) -> bool: ...
    @property
    def holds(self) -> frozenset[str]: ...
    def packer(self, architecture: Architecture) -> Packer: ...


#: The packings of a tensor in the layers at some positions, each with the number of layers that it holds for. Position
#: None stands for no layer; prediction layers follow the last one.
Packer = Callable[["Tensor", Sequence[int | None]], Iterable[tuple[Packing, int]]]


@dataclass(frozen=True)
class Plain:
    """One storage format for every tensor, or for the linear layers of the blocks where it is a format of those."""

    stored: DType
    own: DType
    buffers: bool = False
    holds: frozenset[str] = TOWERS
    estimated: str = ""

    @property
    def name(self) -> str:
        return self.stored.name

    @property
    def method(self) -> str:
        name = self.stored.name
        if name.startswith(("q", "iq")):
            return "gguf"
        return next((method for method in ("fp8", "nvfp4", "mxfp4") if name.startswith(method)), "")

    @property
    def note(self) -> str:
        if not self.stored.linear_only:
            return self.stored.note
        kept = f"{self.stored.name} covers the linear layers; embeddings, head, norms and routers stay {self.own.name}"
        return f"{kept}; {self.stored.note}" if self.stored.note else kept

    def packer(self, architecture: Architecture) -> Packer:
        stored, own = plain(self.stored), plain(self.own)
        everything = not self.stored.linear_only
        as_shipped = self.buffers

        def packings_of(tensor: Tensor, positions: Sequence[int | None]) -> list[tuple[Packing, int]]:
            if as_shipped and tensor.dtype:
                return [(stored_as(tensor.dtype), len(positions))]
            covered = everything or (tensor.linear and tensor.part != "head")
            return [(stored if covered else own, len(positions))]

        return packings_of


@dataclass(frozen=True, slots=True)
class DeclaredCache:
    """The format of K and V that a checkpoint declares, and whose word it is (``modelopt``, ``compressed-tensors``)."""

    dtype: str
    by: str


# --- which modules -----------------------------------------------------------------------------------------------

#: How checkpoints spell the beginning of a role, beside the words of Llama's and DeepSeek's classes.
_SPELLINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("mlp.gate", ("mlp.router", "router", "router.proj", "block_sparse_moe.gate", "feed_forward.router", "moe.gate")),
    (
        "mlp.experts",
        tuple(f"{at}experts.0" for at in ("mlp.", "", "block_sparse_moe.", "feed_forward.", "mixer.", "ffn.")),
    ),
    ("mlp.shared_experts", ("mlp.shared_expert", "feed_forward.shared_expert", "share_expert", "mlp.shared_mlp")),
    ("mlp", ("feed_forward", "mixer", "ffn")),
    ("self_attn.indexer.weights_proj", ("self_attn.indexers_proj",)),
    ("self_attn", ("attention", "attn", "mixer")),
    ("mamba", ("mixer",)),
    ("lm_head", ("head", "output")),
    ("embed_tokens", ("embed", "embeddings", "tok_embeddings", "word_embeddings")),
)
_WRAPPERS = re.compile(r"^(?:(?:model|language_model|backbone|transformer|text_model)\.)+")
_LEAVES = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


#: Types whose modules have other names than these, so that the usual ones would mean another module.
_OWN_NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "gemma4": (("mlp.experts", "experts"), ("mlp.gate", "router.proj")),
}


@cache
def _spelled(role: str, model_type: str = "") -> tuple[str, ...]:
    """The names that a module may have in its layer, the first the role itself.

    >>> _spelled("mlp.shared_expert_gate")
    ('mlp.shared_expert_gate', 'feed_forward.shared_expert_gate', 'mixer.shared_expert_gate', 'ffn.shared_expert_gate')
    """
    for beginning, own in _OWN_NAMES.get(model_type, ()):
        if f"{role}.".startswith(f"{beginning}."):
            return (own + role[len(beginning) :],)
    names = [role]
    for beginning, others in _SPELLINGS:
        if f"{role}.".startswith(f"{beginning}."):
            names += [other + role[len(beginning) :] for other in others]
    head, _, leaf = role.rpartition(".")
    if leaf in _LEAVES and head == "mlp.experts":
        names += [f"{name.rpartition('.')[0]}.{_LEAVES[leaf]}" for name in tuple(names)]
    return tuple(names)


def module_names(role: str, layer: int | None, num_layers: int, model_type: str = "") -> tuple[str, ...]:
    """The full names that a module may have, without the wrappers before ``layers``.

    A prediction layer is counted on from the last layer, or under ``mtp``.

    >>> module_names("self_attn.q_proj", 3, 32)[:2]
    ('layers.3.self_attn.q_proj', 'layers.3.attention.q_proj')
    """
    spelled = _spelled(role, model_type)
    if layer is None:
        return spelled
    names = tuple(f"layers.{layer}.{each}" for each in spelled)
    if layer < num_layers:
        return names
    own = layer - num_layers
    return (*names, *(f"mtp.layers.{own}.{each}" for each in spelled), *(f"mtp.{own}.{each}" for each in spelled))


_NEVER = re.compile(r"(?!)")
#: The number of a layer in a name or glob, and a star behind it.
_LAYER = re.compile(r"^(?!re:).*\blayers\.([0-9]+)(\*?)(?![^.])")
_DIGIT = re.compile(r"[0-9]")


class Modules:
    """A list of modules as quantisers write it: names, globs (``*``) and regular expressions (``re:``).

    A name stands for the module and all in it; a name without a layer stands wherever its words do.

    >>> listed = Modules(["lm_head", "model.layers.0*", "re:.*self_attn.*", "gate"])
    >>> [listed.has(names) for names in (("lm_head",), ("layers.3.mlp.gate",), ("layers.3.mlp.gate_proj",))]
    [True, True, False]
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._names: set[str] = set()
        self._words: list[str] = []
        globs: list[str] = []
        self._expressions: list[re.Pattern[str]] = []
        self._layers: set[str] = set()
        self._layers_starts: tuple[str, ...] = ()
        for pattern in patterns:
            self._remember_numbers(pattern)
            if pattern.startswith("re:"):
                self._expressions.append(compiled(pattern[3:]))
                continue
            name = _WRAPPERS.sub("", pattern)
            if "*" in name or "?" in name:
                globs.append(translate(name)[:-2])  # without its end, \Z or from Python 3.14 on \z
            else:
                self._names.add(name.removesuffix(".weight"))
                if not name.startswith("layers."):
                    self._words.append(f".{name.removesuffix('.weight')}.")
        # One expression for all of them: a checkpoint may list hundreds, and a model has thousands of modules.
        self._glob = re.compile(rf"(?:{'|'.join(globs)})(?:\..*)?\Z") if globs else _NEVER

    def _remember_numbers(self, pattern: str) -> None:
        named = _LAYER.search(pattern)
        if named is None and _DIGIT.search(pattern):
            self._layers_starts = ("",)
        elif named is not None and named[2]:
            self._layers_starts += (named[1],)
        elif named is not None:
            self._layers.add(named[1])

    def tells(self, layer: int) -> bool:
        """Whether the list may say of a layer what it does not say of others whose number has as many digits.

        >>> listed = Modules(["model.layers.1*", "model.layers.30.mlp", "model.layers.?.self_attn"])
        >>> [layer for layer in range(40) if listed.tells(layer)]
        [1, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 30]
        """
        number = str(layer)
        return number in self._layers or number.startswith(self._layers_starts)

    def has(self, names: tuple[str, ...]) -> bool:
        """Whether a module of one of these names is in the list."""
        return any(self._has(name) for name in names)

    def _has(self, name: str) -> bool:
        inside = name
        while inside and self._names:
            if inside in self._names:
                return True
            inside = inside.rpartition(".")[0]
        if self._glob.match(name):
            return True
        dotted = f".{name}."
        if any(word in dotted for word in self._words):
            return True
        wrapped = (name, f"model.{name}", f"model.language_model.{name}") if self._expressions else ()
        return any(expression.match(each) for expression in self._expressions for each in wrapped)


_LONGEST_EXPRESSION = 1000
_NESTED_REPEAT = re.compile(r"[+*}]\)*[+*{]")


def compiled(expression: str) -> re.Pattern[str]:
    """A regular expression out of a file; one that is none, or could take for ever, matches nothing."""
    if len(expression) > _LONGEST_EXPRESSION or _NESTED_REPEAT.search(expression):
        return _NEVER
    try:
        return re.compile(expression)
    except (re.error, RecursionError, OverflowError):
        return _NEVER


# --- one checkpoint's formats ------------------------------------------------------------------------------------

_QKV = ("self_attn.qkv_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"))
_GATE_UP = ("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj"))
_QUERY_GATE = ("self_attn.q_proj", ("self_attn.q_proj", "self_attn.gate_proj"))
_QKVZ = ("linear_attn.in_proj_qkvz", ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z"))
_BA = ("linear_attn.in_proj_ba", ("linear_attn.in_proj_b", "linear_attn.in_proj_a"))
#: Modules that checkpoints of some model types hold as one matrix, under its name.
_ONE_MATRIX: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    **dict.fromkeys(("phi3", "phi4_multimodal", "phi4mm", "chatglm"), (_QKV, _GATE_UP)),
    **dict.fromkeys(("glm4", "glm"), (_GATE_UP,)),
    **dict.fromkeys(("falcon", "gpt_neox", "bloom", "mpt", "gpt2", "gpt_bigcode", "qwen", "internlm2"), (_QKV,)),
    **dict.fromkeys(("baichuan", "baichuan_m1", "dbrx"), (_QKV,)),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe"), (_QUERY_GATE,)),
    "qwen3_next": (_QUERY_GATE, _QKVZ, _BA),
}


#: Modules, and their packing (None: they stay).
Override = tuple[tuple[str, ...], Packing | None]
#: The routers, which all but MLX leave in the model's own format.
ROUTERS = frozenset({"mlp.gate", "mlp.shared_expert_gate"})
#: Parts beside the linear layers of the blocks that a quantiser may cover.
_LISTED_BY_NAME = frozenset({"head", "embedding", "router"})


@dataclass(frozen=True)
class Quantization:
    """The formats of one checkpoint: what covers which modules, and what stays as the model is.

    Attributes:
        name: what answers print (``fp8``, ``awq``, ``mxfp4``).
        packing: the packing of the modules that are covered and not listed otherwise; None where only lists cover.
        kept: modules that stay, as the file lists them.
        overrides: lists of modules with a packing of their own (None: they stay); the first that has a module counts.
        covers: parts of a model that are covered beside the linear layers of its blocks.
        skips: roles that the quantiser leaves out whatever the lists say.
        group: a row whose length this does not divide stays (1: any).
        only_experts: nothing but the routed experts is covered.
        biases_inside: the packing holds the biases of what it covers.
        cache_scales: a float32 scale of K and of V stands with each layer (ModelOpt's fp8 caches).
        estimated, note, buffers, holds: see :class:`WeightsFormat`.
    """

    name: str
    packing: Packing | None
    method: str = ""
    kept: tuple[str, ...] = ()
    overrides: tuple[Override, ...] = ()
    covers: frozenset[str] = frozenset()
    skips: frozenset[str] = ROUTERS
    group: int = 1
    only_experts: bool = False
    biases_inside: bool = False
    cache_scales: bool = False
    estimated: str = ""
    note: str = ""
    buffers: bool = True
    holds: frozenset[str] = PUBLISHED

    def packer(self, architecture: Architecture) -> Packer:
        """The packing of each of a model's tensors; see :class:`WeightsFormat`."""
        kept = Modules(self.kept)
        overrides = [(Modules(names), packing) for names, packing in self.overrides]
        listed = [kept, *(names for names, _ in overrides)]
        own = plain(parse_dtype(architecture.dtype))
        one = _ONE_MATRIX.get(architecture.model_type, ())
        whole = {part: name for name, parts in one for part in parts}
        first = {parts[0] for _, parts in one}
        num_layers = architecture.num_layers

        def packing_in(layer: int | None, tensor: Tensor) -> Packing:
            stays = stored_as(tensor.dtype) if tensor.dtype else own
            role = tensor.role.removesuffix(".bias")
            bias = role != tensor.role
            if (bias and (not self.biases_inside or role.endswith("conv1d"))) or (tensor.columns == 1 and not bias):
                return stays
            names = module_names(whole.get(role, role), layer, num_layers, architecture.model_type)
            packing = self.packing if self._covers(tensor, role, bias) else None
            if role not in self.skips and (tensor.linear or bias or tensor.part in _LISTED_BY_NAME):
                packing = next((each for modules, each in overrides if modules.has(names)), packing)
            if packing is None or kept.has(names) or (tensor.columns % self.group and not bias):
                packing = stays
            elif bias:
                packing = ABSENT
            elif role in whole and role not in first:
                packing = packing.as_part()
            if self.cache_scales and role in ("self_attn.k_proj", "self_attn.v_proj"):
                return replace(packing, matrix_bytes=packing.matrix_bytes + 4)
            return packing

        def alike(layer: int | None) -> Hashable:
            # No list without a digit in it tells layer 12 from layer 13; it may tell 9 from 10 ("layers.?.mlp").
            if layer is None or layer >= num_layers or any(modules.tells(layer) for modules in listed):
                return layer
            return f"{len(str(layer))} digits"

        def packings_of(tensor: Tensor, positions: Sequence[int | None]) -> list[tuple[Packing, int]]:
            groups: dict[Hashable, list[int | None]] = {}
            for layer in positions:
                groups.setdefault(alike(layer), []).append(layer)
            return [(packing_in(group[0], tensor), len(group)) for group in groups.values()]

        return packings_of

    def _covers(self, tensor: Tensor, role: str, bias: bool) -> bool:
        if role in self.skips:
            return False
        if self.only_experts:
            return role.startswith("mlp.experts.")
        if tensor.part in TOWERS:
            return False
        if tensor.part in _LISTED_BY_NAME:
            return tensor.part in self.covers
        return tensor.linear or bias
