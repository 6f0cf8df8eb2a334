"""A case of SGLang's pools as plain data: recorded ones in tests/data/sglang_pools.json, random ones in its oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvcalc.architecture import Architecture, Compressed, Full, Latent, Layer, LayerKind, Shared, Sliding, State
from kvcalc.dtypes import parse_kv_dtypes
from kvcalc.engines import make_engine
from kvcalc.engines.base import Plan
from kvcalc.setup import Setup


@dataclass(frozen=True)
class Draft:
    """A draft: its layers and their heads (KV heads, K dim, V dim), the steps and tokens that the engine takes."""

    layers: int
    heads: tuple[int, int, int]
    steps: int
    branches: int
    tokens: int
    block: bool = False


@dataclass(frozen=True)
class Case:
    """A model, a server and a memory.

    Attributes:
        family: plain, sliding, states, latent, sparse (MiniMax M3) or v4 (DeepSeek V4).
        layers: ``F`` full (in v4: a window alone), ``S`` sliding, ``M`` state, ``C`` and ``D`` entries of 4 and 128.
        heads: KV heads, K dim and V dim of full layers; ``sliding`` of sliding ones.
        window: tokens of a sliding layer's window.
        latent: rank, rope dim and indexer dim, or None.
        shared: the last layers that read another's cache, in plain and sliding.
        skips: every how many layers one reads the index keys of another; 0 for none.
        sparse: 0 and the width of an index key of MiniMax's sparse layers, or None.
        state: recurrent elements, convolution channels, kernel.
        has_pool: the model type has a sliding pool.
        dtype: format of the cache.
        tp, dp, cp, dcp: devices; groups of attention data parallelism; of a prefill; of decode context parallelism.
        memory: bytes for the pools.
        options: the engine's options.
        draft: the draft, or None.
    """

    family: str
    layers: str
    heads: tuple[int, int, int] = (8, 128, 128)
    sliding: tuple[int, int, int] = (8, 128, 128)
    window: int = 128
    latent: tuple[int, int, int] | None = None
    shared: int = 0
    skips: int = 0
    sparse: tuple[int, int] | None = None
    state: tuple[int, int, int] = (4096, 1024, 4)
    has_pool: bool = False
    dtype: str = "bfloat16"
    tp: int = 1
    dp: int = 1
    cp: int = 1
    dcp: int = 1
    memory: int = 2**34
    options: tuple[tuple[str, Any], ...] = ()
    draft: Draft | None = None

    @classmethod
    def of(cls, row: dict[str, Any]) -> Case:
        """A case from JSON."""
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
        given["options"] = tuple((name, value) for name, value in row.get("options", ()))
        if row.get("draft") is not None:
            given["draft"] = Draft(**{**row["draft"], "heads": tuple(row["draft"]["heads"])})
        return cls(**given)


def _architecture(name: str, model_type: str, kinds: list[LayerKind]) -> Architecture:
    distinct = list(dict.fromkeys(kinds))
    return Architecture(
        name=name,
        model_type=model_type,
        layers=tuple(Layer(cache=kind) for kind in distinct),
        order=tuple(distinct.index(kind) for kind in kinds),
        hidden_size=64,
        vocab_size=0,
        dtype="bfloat16",
    )


def _kind(case: Case, code: str, layer: int) -> LayerKind:
    if layer >= len(case.layers) - case.shared:
        return Shared("sliding" if code == "S" else "full")
    heads, key, value = case.sliding if code == "S" else case.heads
    elements, channels, kernel = case.state
    match code:
        case "S":
            return Sliding(num_kv_heads=heads, head_dim=key, v_head_dim=value, window=case.window)
        case "M":
            return State(recurrent_elements=elements, conv_channels=channels, conv_kernel=kernel)
        case "C":
            return Compressed(512, 128, 4, 128)
        case "D":
            return Compressed(512, 128, 128)
    if case.family == "v4":
        return Compressed(512, 128)
    if case.latent is not None:
        rank, rope, indexer = case.latent
        owns = not (case.skips and layer % case.skips == 0)
        return Latent(rank, rope, num_heads=64, nope_dim=64, v_head_dim=64, indexer_dim=indexer if owns else 0)
    index = case.sparse[1] if case.sparse is not None and layer >= 3 else 0
    return Full(num_kv_heads=heads, head_dim=key, v_head_dim=value, indexer_dim=index)


def plan_of(case: Case) -> Plan:
    """The plan of a case.

    Raises:
        KVCalcError: kvcalc refuses it.
    """
    kinds = [_kind(case, code, layer) for layer, code in enumerate(case.layers)]
    types = {"sparse": "minimax_m3", "v4": "deepseek_v4"}
    model = _architecture("random", types.get(case.family, "mimo_v2_flash" if case.has_pool else "other"), kinds)
    draft = None
    if case.draft is not None:
        heads, key, value = case.draft.heads
        of_draft = Full(num_kv_heads=heads, head_dim=key, v_head_dim=value)
        one = of_draft if case.latent is None and case.family != "v4" else _kind(case, "F", 1)
        draft = _architecture("draft", "other", [one] * case.draft.layers)
    options = {"dp_size": case.dp, "attn_cp_size": case.cp, "dcp_size": case.dcp, **dict(case.options)}
    if case.dp > 1:
        options["enable_dp_attention"] = True
    engine = make_engine("sglang", options)
    return Setup(model, engine, *parse_kv_dtypes(case.dtype), tensor_parallel_size=case.tp, draft=draft).plan


FIGURES = (
    "max_total_num_tokens",
    "full_max_total_num_tokens",
    "swa_max_total_num_tokens",
    "max_mamba_cache_size",
    "c128_state_pool_size",
    "allocated_bytes",
)


def report_of(case: Case) -> dict[str, int | None]:
    """Tokens, slots and bytes by kvcalc.

    Raises:
        KVCalcError: it refuses the case.
    """
    report = plan_of(case).report(1, 1, case.memory)
    return {name: report.get(name) for name in FIGURES}
