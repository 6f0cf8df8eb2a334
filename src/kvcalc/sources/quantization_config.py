"""From a checkpoint's own words about its formats to a :class:`~kvcalc.quantization.Quantization`.

The words are those of ``quantization_config`` in a config.json (transformers, compressed-tensors, AutoAWQ, AutoGPTQ,
bitsandbytes, ModelOpt, HQQ, torchao), of ``quantization`` in an MLX model's, and of ``hf_quant_config.json`` beside
older ModelOpt checkpoints. A preset's ``[quantization]`` uses the same words. What covers which modules, and what is
stored beside them, is in :mod:`kvcalc.quantization`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvcalc import quantization as q
from kvcalc.dtypes import parse_dtype
from kvcalc.errors import InputError, quote
from kvcalc.quantization import DeclaredCache, Override, Packing, Quantization, WeightsFormat
from kvcalc.weight_formats import mlx_format

_MOST_MODULES = 500_000
#: Left in the model's own format by who writes fp8 and ModelOpt checkpoints, whatever their lists say.
_SKIPPED = q.ROUTERS | (
    {"eh_proj", "self_attn.indexer.weights_proj", "linear_attn.in_proj_a", "linear_attn.in_proj_b"}
    | {f"self_attn.{at}compressor.{name}" for at in ("", "indexer.") for name in ("wkv", "wgate")}
)
#: What Kimi K3's checkpoint has in bfloat16 though its list does not name it.
_KIMI_KEPT = frozenset({"mlp.fc1_latent_proj", "mlp.fc2_latent_proj"})
_TIED_TWICE = "a tied head is taken as stored twice, as AutoAWQ and AutoGPTQ of 2023 do; others leave it out"
_NESTED_MEAN = "a mean value of some 20 digits is written beside each matrix"
#: Quantisers that load a model by its transformers class, which leaves prediction layers out.
_WITHOUT_PREDICTION = frozenset({"awq", "gptq", "auto-round", "bitsandbytes", "hqq", "torchao", "eetq", "aqlm"})


@dataclass(frozen=True)
class Declared:
    """What a checkpoint declares: the formats of its weights, and that of its cache."""

    weights: WeightsFormat
    cache: DeclaredCache | None = None


#: The keys that hold such a table, and the method that each means by itself.
_TABLES = {"quantization_config": "", "compression_config": "", "quantization": "mlx", "hqq": "hqq"}
_SIDECARS = {
    **dict.fromkeys(("hf_quant_config", "hf_quant_config.json"), "modelopt"),
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
}
#: Keys of the file that say something of its formats: one of DeepSeek V4's, and what a remark leaves behind.
_FROM_AROUND = ("expert_dtype", "told_in_prose")


def declared_table(*places: Mapping[str, Any]) -> dict[str, Any] | None:
    """The table that states a checkpoint's formats, out of a config.json's tables, the outer one first.

    A sidecar counts where no ``quantization_config`` is; it stands under its name.

    Raises:
        InputError: the key holds no table.
    """
    for place in places:
        for key, method in _TABLES.items():
            stated = place.get(key)
            if stated is None or stated == {}:
                continue
            if not isinstance(stated, Mapping):
                raise InputError(f"{key} must be a table, not {quote(stated)}", location=key)
            table = {name: value for name, value in stated.items() if value is not None}
            if method or ("quant_method" not in table and _is_mlx(table)):
                table.setdefault("quant_method", method or "mlx")
            return table | {key: place[key] for place in places for key in _FROM_AROUND if place.get(key) is not None}
    for place in places:
        for key, method in _SIDECARS.items():
            sidecar = place.get(key)
            if not isinstance(sidecar, Mapping):
                continue
            inner = sidecar.get("quantization", sidecar)
            table = dict(inner) if isinstance(inner, Mapping) else {}
            if method == "modelopt" or {"bits", "w_bit"} & table.keys():
                return {"quant_method": method, "sidecar": True, **table}
    return None


def _is_mlx(table: Mapping[str, Any]) -> bool:
    return {"group_size", "bits"} <= table.keys() and "sym" not in table and "zero_point" not in table


_DEEPSEEK_V4 = ("deepseek_v4", "deepseek_ref")


def read_quantization(
    table: Mapping[str, Any], model_type: str, dtype: str = "bfloat16", *, tied: bool = False
) -> Declared:
    """What the table of a checkpoint's formats means for a model type; ``tied``: its head is its embedding.

    Raises:
        InputError: a value that is none.

    >>> read_quantization({"quant_method": "awq", "bits": 4, "group_size": 128}, "llama").weights.name
    'awq'
    """
    method = table.get("quant_method") or _method_of(table)
    if not isinstance(method, str) or len(method) > 100:
        raise InputError(f"quant_method must be a short text, not {quote(method)}", location="quant_method")
    method = method.casefold().replace("_", "-")
    cache = _cache(table, method)
    if method.startswith("modelopt") or (method == "fp8" and table.get("quant_algo")):
        method = "modelopt"
    method = _METHODS.get(method, method)
    weights = _READERS[method](table, model_type) if method in _READERS else _covering_all(method, table)
    if weights is None:
        own, shown = parse_dtype(dtype), method if len(method) < 40 else "a format of its own"
        why = f"not modelled: what {shown} stores; they are counted unquantised"
        return Declared(q.Plain(own, own, buffers=True, holds=q.PUBLISHED, estimated=why), cache)
    packing, holds, estimated = weights.packing, weights.holds, weights.estimated
    if method == "bitsandbytes" and weights.name != "bnb_int8":
        packing = q.bnb_4bit(weights.name.endswith("_double"), dtype)
    if method in _WITHOUT_PREDICTION:
        holds = q.TOWERS
    if table.get("told_in_prose"):
        estimated = "lists of the file are told in prose"
    if tied and (method == "awq" or (method == "gptq" and table.get("sidecar"))):
        holds, estimated = holds | {q.TIED_HEAD}, _TIED_TWICE
    scales = method == "modelopt" and cache is not None and cache.dtype == "fp8_e4m3"
    found = replace(weights, packing=packing, holds=holds, estimated=estimated, cache_scales=scales)
    return Declared(replace(found, method=method), cache)


def _method_of(table: Mapping[str, Any]) -> str:
    producer = table.get("producer")
    if isinstance(producer, Mapping) and producer.get("name") == "modelopt":
        return "modelopt"
    return "modelopt" if table.get("quant_algo") else "mlx" if _is_mlx(table) else "unknown"


# --- values ------------------------------------------------------------------------------------------------------


def _int(table: Mapping[str, Any], key: str, default: int, most: int = 2**20) -> int:
    value = table.get(key)
    if value is None:
        return default
    if type(value) is not int or not -1 <= value <= most:
        raise InputError(f"{key} must be a count, not {quote(value)}", location=key)
    return value


def _bits(table: Mapping[str, Any], key: str, default: int) -> int:
    bits = _int(table, key, default, 32)
    if bits < 1:
        raise InputError(f"{key} must be from 1 to 32, not {quote(bits)}", location=key)
    return bits


def _names(table: Mapping[str, Any], *keys: str) -> tuple[str, ...]:
    listed: list[str] = []
    for key in keys:
        value = table.get(key)
        if value is None:
            continue
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, Sequence) or len(names) > _MOST_MODULES:
            raise InputError(f"{key} must be a list of modules, not {quote(value)}", location=key)
        if not all(isinstance(name, str) and len(name) <= 2000 for name in names):
            raise InputError(f"{key} must list modules by name", location=key)
        listed += names
    return tuple(listed)


def _table(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = table.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping) or len(value) > _MOST_MODULES:
        raise InputError(f"{key} must be a table, not {quote(value)}", location=key)
    return value


# --- one reader a method -----------------------------------------------------------------------------------------


def _mxfp4(table: Mapping[str, Any], model_type: str) -> Quantization:
    kept = _names(table, "modules_to_not_convert")
    return Quantization(
        "mxfp4", q.mxfp4(), kept=kept, only_experts=True, note="mxfp4 covers the experts, the rest stays"
    )


def _fp8(table: Mapping[str, Any], model_type: str) -> Quantization:
    kept = _names(table, "modules_to_not_convert", "ignored_layers")
    tile = table.get("weight_block_size")
    if tile is None:
        static = table.get("activation_scheme") == "static"
        return Quantization("fp8", q.fp8_tensor(8 if static else 4), kept=kept, skips=_SKIPPED)
    packing = q.fp8_tiles(_scale_bytes(model_type), _tile(tile))
    overrides: tuple[Override, ...] = ()
    name = "fp8_block"
    if table.get("expert_dtype") == "fp4":
        overrides = ((("re:.*\\.experts\\..*",), q.mxfp4()),)
        name = "fp8_block_fp4_experts"
    return Quantization(name, packing, kept=kept, overrides=overrides, skips=_SKIPPED)


def _tile(value: Any) -> tuple[int, int]:
    sizes = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else ()
    if len(sizes) != 2 or not all(type(size) is int and 0 < size <= 2**20 for size in sizes):
        raise InputError(f"weight_block_size must be two counts, not {quote(value)}", location="weight_block_size")
    return sizes[0], sizes[1]


def _scale_bytes(model_type: str) -> int:
    """Bytes of a tile's scale: bfloat16 in Qwen's checkpoints, E8M0 in DeepSeek V4's, float32 elsewhere."""
    if model_type in _DEEPSEEK_V4:
        return 1
    return 2 if model_type.startswith("qwen") else 4


def _compressed_tensors(table: Mapping[str, Any], model_type: str) -> Quantization | None:
    groups = _table(table, "config_groups")
    whole = table.get("format")
    overrides: list[Override] = []
    default: Packing | None = None
    names = []
    for key, group in groups.items():
        if not isinstance(group, Mapping):
            raise InputError(f"config_groups.{key} must be a table", location="config_groups")
        packing = _scheme(group, group.get("format") or whole, model_type)
        if packing is None:
            return None
        targets = _names(group, "targets") or ("Linear",)
        names.append(packing[0])
        if any(target in ("Linear", "Embedding") for target in targets):
            default = packing[1]
        else:
            overrides.append((targets, packing[1]))
    if not names:
        return None
    # Its lists say what stays; a head that no list keeps is a linear layer like any other.
    return Quantization(
        "+".join(dict.fromkeys(names)),
        default,
        kept=_names(table, "ignore"),
        overrides=tuple(overrides),
        covers=frozenset({"head"}),
        skips=q.ROUTERS | (_KIMI_KEPT if model_type.startswith("kimi") else frozenset()),
    )


def _scheme(group: Mapping[str, Any], form: Any, model_type: str) -> tuple[str, Packing] | None:
    """The name and packing of one group of compressed-tensors, or None where it is not modelled."""
    weights = _table(group, "weights")
    if not weights:
        return None
    bits, kind = _bits(weights, "num_bits", 8), weights.get("type", "int")
    strategy = weights.get("strategy")
    size = _int(weights, "group_size", 0)
    static = bool(_table(group, "input_activations")) and not _table(group, "input_activations").get("dynamic")
    if kind == "float" and bits == 4:
        if form == "mxfp4-pack-quantized" or size == 32:
            return "mxfp4", q.mxfp4()
        activations = bool(_table(group, "input_activations"))
        return "nvfp4", q.nvfp4(size or 16, 2 if activations else 1)
    if form == "pack-quantized" or (kind == "int" and bits < 8):
        small = model_type.startswith("kimi") or (model_type == "deepseek_v3" and size == 32)  # Kimi K2's own type, too
        shape = 8 if small else 16
        packing = q.packed_int(
            bits,
            size if size > 0 else 0,
            symmetric=weights.get("symmetric", True) is not False,
            ordered=weights.get("actorder") in ("group", True),
            shape=shape,
        )
        return f"int{bits}_g{size}" if size > 0 else f"int{bits}_packed", packing
    if bits != 8:
        return None
    name = "fp8" if kind == "float" else "int8"
    match strategy:
        case "block":
            return f"{name}_block", q.fp8_tiles(2, _tile(weights.get("block_structure") or (128, 128)))
        case "tensor":
            return name, q.fp8_tensor(4 if static else 2)
        case "group" if size > 0:
            return f"{name}_g{size}", Packing(name, bits=8, groups=((size, 2),))
    packing = q.channel(8, name=name)
    return f"{name}_channel", replace(packing, matrix_bytes=2) if static else packing


def _awq(table: Mapping[str, Any], model_type: str) -> Quantization:
    bits, group = (
        _bits(table, "bits", _bits(table, "w_bit", 4)),
        _int(table, "group_size", _int(table, "q_group_size", 128)),
    )
    kept = _names(table, "modules_to_not_convert")
    return Quantization(_sized("awq", bits, 4), q.awq(bits, group), kept=kept)


def _sized(name: str, bits: int, usual: int) -> str:
    return name if bits == usual else f"{name}_{bits}bit"


#: Writers of GPTQ that store a bias only where the module has one (gptqmodel/utils/model.py, create_quant_layer).
_WITHOUT_ZERO_BIASES = "gptqmodel"
_UNKNOWN_WRITER = "the configuration does not tell which writer packed it: one of early 2023 takes up to 3 % more"


def _gptq_writer(table: Mapping[str, Any]) -> str:
    """What ``meta`` says of the program that wrote the checkpoint (``gptqmodel:2.2.0``), or nothing."""
    writer = _table(table, "meta").get("quantizer")
    if isinstance(writer, list | tuple) and writer:
        writer = writer[0]
    return writer[:100].casefold() if isinstance(writer, str) else ""


def _gptq(table: Mapping[str, Any], model_type: str) -> Quantization:
    bits, group = _bits(table, "bits", 4), _int(table, "group_size", 128)
    writer = _gptq_writer(table)
    zero_biases = not writer.startswith(_WITHOUT_ZERO_BIASES)

    def packed(bits: int, group: int) -> Packing:
        return q.gptq(bits, group) if zero_biases else replace(q.gptq(bits, group), row_bytes=0)

    kept = list(_names(table, "modules_to_not_convert"))
    overrides: list[Override] = []
    for pattern, settings in _table(table, "dynamic").items():
        if not isinstance(pattern, str):
            continue
        if pattern.startswith("-:"):
            kept.append("re:" + pattern[2:])
        elif isinstance(settings, Mapping):
            own = packed(_bits(settings, "bits", bits), _int(settings, "group_size", group))
            overrides.append((("re:" + pattern.removeprefix("+:"),), own))
    listed = table.get("modules_in_block_to_quantize")
    packing: Packing | None = packed(bits, group)
    if isinstance(listed, Sequence) and not isinstance(listed, str) and listed:
        inside = [each for part in listed for each in (part if isinstance(part, list | tuple) else [part])]
        overrides.append((_names({"modules": inside}, "modules"), packing))
        packing = None
    return Quantization(
        _sized("gptq", bits, 4),
        packing,
        kept=tuple(kept),
        overrides=tuple(overrides),
        covers=frozenset({"head"}) if table.get("lm_head") is True else frozenset(),
        biases_inside=zero_biases,
        estimated="" if writer or table.get("checkpoint_format") else _UNKNOWN_WRITER,
    )


def _auto_round(table: Mapping[str, Any], model_type: str) -> Quantization:
    """AutoRound packs as AWQ or as GPTQ without indices, by its ``packing_format``."""
    if "awq" in str(table.get("packing_format", ""))[:100]:
        return replace(_awq(table, model_type), name="autoround")
    bits, group = _bits(table, "bits", 4), _int(table, "group_size", 128)
    packing = replace(q.gptq(bits, group), row_bytes=0)
    extra: list[Override] = []
    for name, settings in _table(table, "extra_config").items():
        if isinstance(settings, Mapping) and isinstance(name, str):
            own = _bits(settings, "bits", bits)
            extra.append(((name,), None if own >= 16 else replace(q.gptq(own, group), row_bytes=0)))
    return Quantization("autoround", packing, overrides=tuple(extra))


def _bitsandbytes(table: Mapping[str, Any], model_type: str) -> Quantization:
    kept = _names(table, "llm_int8_skip_modules")
    if table.get("load_in_4bit") is True or table.get("_load_in_4bit") is True:
        nested = table.get("bnb_4bit_use_double_quant") is True
        kind = table.get("bnb_4bit_quant_type")
        name = ("fp4_bnb" if kind == "fp4" else "nf4") + ("_double" if nested else "")
        return Quantization(name, q.bnb_4bit(nested), kept=kept, estimated=_NESTED_MEAN if nested else "")
    return Quantization("bnb_int8", q.bnb_int8(), kept=kept)


_ALGORITHMS: dict[str, tuple[str, Packing]] = {
    "FP8": ("fp8", q.fp8_tensor(8)),
    "FP8_PB_WO": ("fp8_block", q.fp8_tiles(4)),
    "FP8_PB_REAL": ("fp8_block", q.fp8_tiles(4)),
    "FP8_PER_CHANNEL_PER_TOKEN": ("fp8_channel", q.channel(8, 4)),
    "NVFP4": ("nvfp4", q.nvfp4()),
    "W4A16_NVFP4": ("nvfp4", q.nvfp4()),
    "NVFP4_AWQ": ("nvfp4", replace(q.nvfp4(), column_bytes=2)),
    "MXFP8": ("mxfp8", q.mxfp8()),
    "MXFP4": ("mxfp4", q.mxfp4()),
    "W4A16_AWQ": ("int4_awq", Packing("int4", bits=4, groups=((128, 2),), column_bytes=2)),
    "W4A8_AWQ": ("int4_awq", Packing("int4", bits=4, groups=((128, 2),), column_bytes=2, matrix_bytes=8)),
    "W8A8_SQ_PER_CHANNEL": ("int8_channel", Packing("int8", bits=8, row_bytes=4, column_bytes=2)),
}


def _modelopt(table: Mapping[str, Any], model_type: str) -> Quantization | None:
    inner = table.get("quantization")
    stated = {**table, **inner} if isinstance(inner, Mapping) else table
    algorithm = stated.get("quant_algo") or stated.get("moe_quant_algo")
    kept = _names(stated, "exclude_modules", "ignore")
    if algorithm == "MIXED_PRECISION":
        by_algorithm: dict[str, list[str]] = {}
        for module, settings in _table(stated, "quantized_layers").items():
            own = settings.get("quant_algo") if isinstance(settings, Mapping) else None
            if own not in _ALGORITHMS:
                return None
            by_algorithm.setdefault(own, []).append(module)
        if not by_algorithm:
            return None
        overrides: list[Override]
        overrides = [(tuple(modules), _ALGORITHMS[own][1]) for own, modules in by_algorithm.items()]
        name = "+".join(dict.fromkeys(_ALGORITHMS[own][0] for own in sorted(by_algorithm)))
        default = None
        if table.get("weight_block_size") is not None:  # DeepSeek V4: what is not listed keeps the publisher's fp8
            default, kept = q.fp8_tiles(_scale_bytes(model_type), _tile(table["weight_block_size"])), ()
        elif model_type in _DEEPSEEK_V4:
            default, kept = q.fp8_tiles(_scale_bytes(model_type)), ()
        return Quantization(name, default, kept=kept, overrides=tuple(overrides), skips=_SKIPPED)
    if not isinstance(algorithm, str) or algorithm not in _ALGORITHMS:
        return None
    name, packing = _ALGORITHMS[algorithm]
    covers = frozenset() if any("lm_head" in each for each in kept) or not kept else frozenset({"head"})
    return Quantization(name, packing, kept=kept, covers=covers, skips=_SKIPPED)


def _mlx(table: Mapping[str, Any], model_type: str) -> Quantization:
    mode = table.get("mode", "affine")
    usual = {"affine": (4, 64), "mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}
    if mode not in usual:
        raise InputError(f"mode must be one of {', '.join(usual)}, not {quote(mode)}", location="quantization.mode")
    bits, group = _bits(table, "bits", usual[mode][0]), _int(table, "group_size", usual[mode][1])
    overrides: list[Override] = []
    for path, settings in table.items():
        if settings is False:
            overrides.append(((path,), None))
        elif isinstance(settings, Mapping):
            own_mode = settings.get("mode", "affine" if "bits" in settings else mode)
            own_bits, own_group = usual.get(own_mode, usual["affine"])
            own = q.mlx(_bits(settings, "bits", own_bits), _int(settings, "group_size", own_group), own_mode)
            overrides.append(((path,), own))
    shipped = mlx_format(model_type, bits, group, mode, shipped=True)
    return replace(shipped, overrides=(*_merged(overrides), *shipped.overrides))


def _merged(
    overrides: list[Override],
) -> list[Override]:
    """Lists of modules with the same packing as one list."""
    lists: dict[Packing | None, list[str]] = {}
    for names, packing in overrides:
        lists.setdefault(packing, []).extend(names)
    return [(tuple(names), packing) for packing, names in lists.items()]


def _hqq(table: Mapping[str, Any], model_type: str) -> Quantization:
    inner = _table(table, "quant_config")
    settings = inner.get("weight_quant_params", inner or table)
    if not isinstance(settings, Mapping):
        raise InputError("weight_quant_params must be a table", location="quant_config")
    packing = q.hqq(_bits(settings, "nbits", 4), max(1, _int(settings, "group_size", 64)))
    kept = _names(table, "skip_modules")
    return Quantization("hqq", packing, kept=kept, estimated="its rule is fitted to published files")


def _torchao(table: Mapping[str, Any], model_type: str) -> Quantization | None:
    stated = table.get("quant_type")
    if isinstance(stated, Mapping):  # {"default": {"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 128}}}
        stated = stated.get("default", stated)
    name = stated.get("_type") if isinstance(stated, Mapping) else stated
    data = _table(stated, "_data") if isinstance(stated, Mapping) else _table(table, "quant_type_kwargs")
    if not isinstance(name, str):
        return None
    folded = name.casefold().replace("_", "")
    why = "torchao's files hold tensors in a layout of its own"
    if folded.startswith("int4weightonly"):
        group = max(1, _int(data, "group_size", 128))
        return Quantization("torchao_int4", Packing("int4", bits=4, groups=((group, 4),)), estimated=why)
    if folded.startswith(("int8weightonly", "int8dynamic")):
        return Quantization("torchao_int8", q.channel(8, name="int8"), estimated=why)
    if folded.startswith("float8"):
        return Quantization("torchao_fp8", q.channel(8, 4), estimated=why)
    return None


def _aqlm(table: Mapping[str, Any], model_type: str) -> Quantization | None:
    """A code of 8 or 16 bits for each group and codebook, a scale for each output, the codebooks of each matrix."""
    books, bits = _int(table, "num_codebooks", 1, 64), _bits(table, "nbits_per_codebook", 16)
    group = _int(table, "in_group_size", 8, 1024)
    if _int(table, "out_group_size", 1) != 1 or bits > 16 or books < 1 or group < 1:
        return None
    codes = ((group, books * (1 if bits <= 8 else 2)),)
    packing = Packing("aqlm", groups=codes, row_bytes=2, matrix_bytes=books * 2**bits * group * 2)
    kept = tuple(name.removesuffix(".weight") for name in _names(table, "linear_weights_not_to_quantize"))
    return Quantization("aqlm", packing, kept=kept)


def _gemma(table: Mapping[str, Any], model_type: str) -> Quantization:
    """Gemma's quantised training: 2, 4 or 8 bits, a float32 scale for each output, scales of what goes in and out."""

    def packed(bits: int) -> Packing:
        return Packing(f"int{bits}", bits=bits, row_bytes=4, matrix_bytes=8)

    bits = _bits(table, "num_bits", 4)
    overrides = tuple(
        ((f"re:.*(?:{pattern})",), packed(_bits(settings, "num_bits", bits)))
        for pattern, settings in _table(table, "module_quant_configs").items()
        if isinstance(settings, Mapping)
    )
    return Quantization(
        f"gemma_int{bits}",
        packed(bits),
        kept=_names(table, "modules_to_not_convert"),
        overrides=overrides,
        covers=frozenset({"head", "embedding"}) if table.get("quantize_embeddings") is True else frozenset({"head"}),
        estimated="no file of this format was compared",
    )


#: Formats that cover the linear layers, all alike (bitnet: four numbers a byte and one scale).
_ALIKE = {
    "fbgemm-fp8": ("fp8_channel", q.channel(8, 4)),
    "eetq": ("int8_channel", q.channel(8, name="int8")),
    "bitnet": ("bitnet", Packing("bitnet", bits=2, matrix_bytes=2)),
    "mxfp8": ("mxfp8", q.mxfp8()),
}


def _covering_all(method: str, table: Mapping[str, Any]) -> Quantization | None:
    if method not in _ALIKE:
        return None
    name, packing = _ALIKE[method]
    return Quantization(name, packing, kept=_names(table, "modules_to_not_convert"))


#: Other words of a ``quant_method`` for what one reader reads.
_METHODS = {
    **dict.fromkeys(("gptqmodel", "gptq-marlin"), "gptq"),
    **dict.fromkeys(("intel/auto-round", "inc"), "auto-round"),
    "awq-marlin": "awq",
}
_READERS = {
    "mxfp4": _mxfp4,
    "fp8": _fp8,
    "compressed-tensors": _compressed_tensors,
    "awq": _awq,
    "gptq": _gptq,
    "auto-round": _auto_round,
    "bitsandbytes": _bitsandbytes,
    "modelopt": _modelopt,
    "mlx": _mlx,
    "hqq": _hqq,
    "torchao": _torchao,
    "aqlm": _aqlm,
    "gemma": _gemma,
}


# --- the cache ---------------------------------------------------------------------------------------------------

_CACHE_ALGORITHMS = {"fp8": "fp8_e4m3", "nvfp4": "nvfp4"}


def _cache(table: Mapping[str, Any], method: str) -> DeclaredCache | None:
    """The cache format that a checkpoint declares.

    As vLLM 0.33.0 reads it (utils/torch_utils.py, get_kv_cache_quant_algo_string; attention.py): the scheme first,
    ModelOpt's word for it otherwise.
    """
    inner = table.get("quantization")
    stated = {**table, **inner} if isinstance(inner, Mapping) else table
    by = "modelopt" if method.startswith("modelopt") or stated.get("quant_algo") else method
    scheme = stated.get("kv_cache_scheme")
    word = scheme if isinstance(scheme, str) else stated.get("kv_cache_quant_algo") if by == "modelopt" else None
    dtype = _CACHE_ALGORITHMS.get(word.casefold()) if isinstance(word, str) else None
    if isinstance(scheme, Mapping) and scheme.get("type") == "float":
        dtype = {8: "fp8_e4m3", 4: "nvfp4"}.get(scheme.get("num_bits", 0))
    return DeclaredCache(dtype, by) if dtype is not None else None
