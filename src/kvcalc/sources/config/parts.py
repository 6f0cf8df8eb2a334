"""The parts that the layers of a config.json are made of: mixtures of experts, and state layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict

from kvcalc.dtypes import parse_dtype
from kvcalc.errors import InputError, NotModelledError, quote
from kvcalc.sources.config.reader import HEAD_DIM, HEADS, HIDDEN, Config
from kvcalc.units import ceil_div

Fields = dict[str, Any]


class Sparse(BaseModel):
    """Which layers have experts, where no list of the file says it.

    Layer i has them when ``first`` <= i <= ``last`` and i leaves ``offset`` over when divided by ``step``; the list
    under ``dense`` names exceptions. A text, or a list of them, names the keys that hold the number.

    Attributes:
        always: every layer has experts, whatever lists the file holds.
        last_of_step: the last layer in each step has experts, not the first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    always: bool = False
    first: int | tuple[str, ...] = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
    last: str | None = None
    step: int | tuple[str, ...] = ("moe_layer_freq",)
    offset: str | None = None
    last_of_step: bool = False
    dense: str | None = None


class Experts(BaseModel):
    """A mixture of experts in a row's words: keys that hold its numbers, and what it has besides.

    Attributes:
        count, active, width: keys of the routed experts, of those that a token reads, and of the width of one.
        shared_width: keys of the width of the shared experts.
        shared_count: keys of their number; each is as wide as ``shared_width``, or as a routed one.
        latent_size: the key of the width to which the routed experts' input is projected.
        layers: where the file does not list them.
        needed: a file that does not count its experts is refused.
        others: as the fields of the spec's ``[experts]``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    count: tuple[str, ...] = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    active: tuple[str, ...] = (
        "num_experts_per_tok",
        "num_experts_per_token",
        "experts_per_token",
        "top_k_experts",
        "moe_top_k",
        "moe_topk",
        "moe_k",
    )
    width: tuple[str, ...] = ("moe_intermediate_size",)
    shared_width: tuple[str, ...] = ()
    shared_count: tuple[str, ...] = ()
    latent_size: str | None = None
    gated: bool = True
    bias: bool = False
    shared_gate: bool = False
    router_bias: bool = False
    router_scales: bool = False
    score_correction: bool = False
    norm: bool = False
    beside_dense: bool = False
    layers: Sparse = Sparse()
    needed: bool = False


_SWITCHES = ("gated", "bias", "shared_gate", "router_bias", "router_scales", "score_correction", "norm", "beside_dense")


def experts(config: Config, row: Experts, num_layers: int) -> Fields | None:
    """The spec's ``[experts]``, or None where the file has no routed experts."""
    count = config.need(*row.count) if row.needed else config.uniform(*row.count)
    if not count:
        return None
    size = config.uniform(*row.width) or config.uniform("intermediate_size")
    if not size:
        raise InputError(f"{row.width[0]} is missing", hint="the width of one expert is needed", location=row.width[0])
    fields: Fields = {"count": count, "active": config.uniform(*row.active) or 1, "intermediate_size": size}
    fields |= {name: getattr(row, name) for name in _SWITCHES}
    shared = (config.uniform(*row.shared_width) if row.shared_width else None) or 0
    if row.shared_count:
        shared = (config.uniform(*row.shared_count) or 0) * (shared or size)
    fields["shared_intermediate_size"] = shared
    fields["shared_gate"] = row.shared_gate and shared > 0
    if row.latent_size is not None:
        fields["latent_size"] = config.count(row.latent_size)
    return fields | _placed(_sparse_layers(config, row.layers, num_layers), num_layers)


def _sparse_layers(config: Config, row: Sparse, num_layers: int) -> set[int]:
    """The layers with experts: a list where the file has one, else what the row says."""
    everything = set(range(num_layers))
    if row.always:
        return everything
    types = config.sequence("mlp_layer_types")
    if types is not None:
        return {at for at, each in enumerate(types[:num_layers]) if each not in ("dense", "mlp")}
    enumerated = config.value("moe_layers_enum")
    if isinstance(enumerated, str):
        numbers = [each.strip() for each in enumerated[:100_000].split(",") if each.strip()]
        if not all(each.isascii() and each.isdigit() and len(each) < 6 for each in numbers):
            raise InputError(f"moe_layers_enum must list layers, not {quote(enumerated)}", location="moe_layers_enum")
        return {int(each) for each in numbers} & everything
    for key in ("moe_layers", "moe_layers_enum"):
        listed = config.indices(key, num_layers)
        if listed:
            return listed
    if isinstance(config.stated("moe_layer_freq"), list | tuple):
        flags = config.counts("moe_layer_freq", most=1) or []
        return {at for at, flag in enumerate(flags[:num_layers]) if flag}
    return _stepped(config, row, num_layers)


def _stepped(config: Config, row: Sparse, num_layers: int) -> set[int]:
    first = row.first if isinstance(row.first, int) else config.uniform(*row.first) or 0
    step: int | None = row.step if isinstance(row.step, int) else config.count(*row.step, least=0)
    if step == 0:
        return set()
    step = step or 1
    offset = config.need(row.offset, least=0) if row.offset is not None else step - 1 if row.last_of_step else 0
    last = num_layers - 1
    if row.last is not None and config.value(row.last) not in (None, -1):
        last = config.uniform(row.last) or 0
    dense = config.indices(row.dense, num_layers) if row.dense is not None else None
    return {at for at in range(first, min(last + 1, num_layers)) if at % step == offset} - (dense or set())


def _placed(sparse: set[int], num_layers: int) -> Fields:
    """A set of layers in the words of the spec: first_dense, every and offset, or the dense ones one by one."""
    if not sparse:
        return {"first_dense": num_layers}
    first = min(sparse)
    if sparse == set(range(first, num_layers)):
        return {"first_dense": first} if first else {}
    steps = sorted(sparse)
    step = steps[1] - steps[0] if len(steps) > 1 else num_layers
    if sparse == set(range(first, num_layers, step)):
        return {"every": step, "offset": first % step} | ({"first_dense": first} if first >= step else {})
    return {"dense_layers": tuple(at for at in range(num_layers) if at not in sparse)}


def _mamba1(config: Config) -> Fields:
    hidden = config.need(*HIDDEN)
    inner = config.count("mamba_expand", "expand") or 2
    rank = config.value("mamba_dt_rank", "time_step_rank")
    return {
        "type": "mamba1",
        "inner_size": inner * hidden,
        "state_size": config.need("mamba_d_state", "state_size"),
        "dt_rank": ceil_div(hidden, 16) if rank in (None, "auto") else config.need("mamba_dt_rank", "time_step_rank"),
        "conv_kernel": config.need("mamba_d_conv", "conv_kernel", "d_conv"),
        "conv_bias": config.flag("mamba_conv_bias", "use_conv_bias", default=True),
        "bias": config.flag("mamba_proj_bias", "use_bias"),
    }


def _plain_mamba(config: Config) -> Fields:
    inner = config.count("intermediate_size", "d_inner")
    return _mamba1(config) | {"norm": False} | ({"inner_size": inner} if inner else {})


def _mamba2(config: Config) -> Fields:
    hidden = config.need(*HIDDEN)
    inner = config.count("mamba_d_ssm") or (config.count("mamba_expand", "expand", "expansion_factor") or 2) * hidden
    stated = config.value("mamba_d_head", "mamba_head_dim", "mamba_headdim")
    heads_keys = ("mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "num_heads")
    if config.stated(*heads_keys) is None and config.stated("mamba_headdim") is not None:  # the first Zamba2
        heads = inner // config.need("mamba_headdim") or 1
    else:
        heads = config.need(*heads_keys)
    if stated in (None, "auto"):
        head_dim = config.count("head_dim") if config.model_type == "mamba2" else inner // heads
    else:
        head_dim = config.need("mamba_d_head", "mamba_head_dim", "mamba_headdim")
    return {
        "type": "mamba2",
        "num_heads": heads,
        "head_dim": head_dim or inner // heads,
        "state_size": config.need("mamba_d_state", "ssm_state_size", "state_size"),
        "groups": config.need("mamba_n_groups", "n_groups", "mamba_ngroups"),
        "scan_chunk": config.count("mamba_chunk_size", "chunk_size") or 0,
        "conv_kernel": config.need("mamba_d_conv", "conv_kernel", "conv_dimension"),
        "conv_bias": config.flag("mamba_conv_bias", "use_conv_bias", default=True),
        "bias": config.flag("mamba_proj_bias", "use_bias", "add_bias_linear"),
        "norm": config.flag("mamba_rms_norm", default=True),
    }


def _nemotron_mamba2(config: Config) -> Fields:
    """Of the keys for Mamba's biases the class reads ``use_bias`` alone; its states are float32 unless it says."""
    stated = _recurrent_dtype(config, "mamba_ssm_cache_dtype")
    return _mamba2(config) | {"bias": config.flag("use_bias"), "recurrent_dtype": stated or "float32"}


def _recurrent_dtype(config: Config, key: str) -> str | None:
    """The format that the file asks for its recurrent states, or None."""
    stated = config.value(key)
    return None if stated is None or not isinstance(stated, str) or stated == "auto" else parse_dtype(stated).name


def _gated_delta_net(config: Config) -> Fields:
    return {
        "type": "gated_delta_net",
        "num_heads": config.count("linear_num_value_heads") or config.need(*HEADS),
        "head_dim": config.need("linear_value_head_dim"),
        "num_key_heads": config.count("linear_num_key_heads") or config.need(*HEADS),
        "key_head_dim": config.need("linear_key_head_dim"),
        "conv_kernel": config.need("linear_conv_kernel_dim"),
        "recurrent_dtype": _recurrent_dtype(config, "mamba_ssm_dtype"),
        # So Qwen3.5 was published (3.6 and what transformers saves again is not): 24 x (32 + 128) numbers of the 9B.
        "float32_parts": config.outer.get("transformers_version") == "4.57.0.dev0"
        and config.model_type != "qwen3_next",
    }


def _kda(config: Config) -> Fields:
    return {
        "type": "kda",
        "num_heads": config.need("linear_attn_config.num_heads", "linear_num_heads"),
        "head_dim": config.need("linear_attn_config.head_dim", "linear_head_dim"),
        "conv_kernel": config.need("linear_attn_config.short_conv_kernel_size", "linear_conv_kernel_dim"),
        "full_gates": "output" if config.flag("linear_attn_config.use_full_rank_gate") else "none",
    }


def _kda_full_gates(config: Config) -> Fields:
    """Gates of full rank (BailingHybrid)."""
    return _kda(config) | {"full_gates": "both"}


def _lightning(config: Config) -> Fields:
    heads = config.need(*HEADS)
    return {
        "type": "lightning",
        "num_heads": heads,
        "head_dim": config.count(*HEAD_DIM) or config.need(*HIDDEN) // heads,
    }


def _rg_lru(config: Config) -> Fields:
    return {
        "type": "rg_lru",
        "num_heads": config.need(*HEADS),
        "inner_size": config.count("lru_width") or config.need(*HIDDEN),
        "conv_kernel": config.need("conv1d_width"),
        "conv_bias": True,
    }


def _short_conv(config: Config) -> Fields:
    return {
        "type": "short_conv",
        "conv_kernel": config.need("conv_L_cache"),
        "conv_bias": config.flag("conv_bias"),
    }


def _stated_state(config: Config) -> Fields:
    """State layers of a model type without a rule: the keys must say which kind they are."""
    if config.stated("linear_value_head_dim") is not None:
        return _gated_delta_net(config)
    if config.stated("mamba_n_heads", "mamba_num_heads") is not None:
        return _mamba2(config)
    if config.stated("linear_attn_config") is not None:
        return _kda(config)
    if config.stated("conv_L_cache") is not None:
        return _short_conv(config)
    raise NotModelledError(
        "the model has state layers, but no key says how large the state is",
        hint="known: linear_value_head_dim, mamba_n_heads, mamba_num_heads, linear_attn_config, conv_L_cache",
        location="layer_types",
    )


#: What a row's ``state`` may be: how the state layers of a model type are read.
STATES: dict[str, Callable[[Config], Fields]] = {
    "mamba1": _mamba1,
    "plain_mamba": _plain_mamba,
    "mamba2": _mamba2,
    "nemotron_mamba2": _nemotron_mamba2,
    "gated_delta_net": _gated_delta_net,
    "kda": _kda,
    "kda_full_gates": _kda_full_gates,
    "lightning": _lightning,
    "rg_lru": _rg_lru,
    "short_conv": _short_conv,
    "as_stated": _stated_state,
}
