"""SGLang's own pool sizes beside kvcalc: random layers, formats, devices, pages, options and memories.

The engine's ``model_executor/pool_configurator.py`` is run as it is; ``_handle_max_mamba_cache``, the head counts and
the width of a latent are taken out of the files they stand in. What they import is stubbed (``NAMES`` below).

On a bare machine (no GPU, no torch), in this repository::

    $ pip install . hypothesis
    $ pip install --no-deps sglang==0.5.23
    $ python tests/oracles/sglang.py

The last lines are the counts; where the two differ, the smallest case that differs stands above them. ``--fault`` makes
a token of kvcalc's pools a byte too wide, which has to be found.
"""

# ruff: noqa: E402 - imports after the path is mended
from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

HERE = Path(__file__).resolve().parent
sys.path[:] = [each for each in sys.path if Path(each).resolve() != HERE]  # this file has the package's name
sys.path.insert(0, str(HERE.parent))

from comparison import Different, add_options, run, say, shape_of, table
from hypothesis import strategies as st

import kvcalc.engines.sglang.layers as ours_module
from kvcalc.architecture import Architecture, Full, Latent, Layer, LayerKind, Sliding, State
from kvcalc.dtypes import parse_kv_dtypes
from kvcalc.engines import make_engine
from kvcalc.engines.sglang import SGLang
from kvcalc.errors import KVCalcError
from kvcalc.setup import Setup

_SPEC = importlib.util.find_spec("sglang")
assert _SPEC is not None and _SPEC.origin is not None, "pip install --no-deps sglang"
SOURCE = Path(_SPEC.origin).parent / "srt"
WIDTHS = {"bfloat16": 2, "float16": 2, "float32": 4, "fp8_e4m3": 1, "fp8_e5m2": 1}

# ---- the engine's code ------------------------------------------------------------------------------------------

#: What the engine's functions read of the server: filled for each case.
SCHEDULE, MEMORY, PARALLEL, MAMBA = (SimpleNamespace() for _ in range(4))
TORCH = SimpleNamespace(
    _utils=SimpleNamespace(_element_size=(WIDTHS | {"uint8": 1}).__getitem__),
    float8_e4m3fn="fp8_e4m3",
    bfloat16="bfloat16",
    float32="float32",
)
EXEC = SimpleNamespace(mamba=MAMBA, kernel=SimpleNamespace(dsa_prefill_backend="fa3", dsa_decode_backend="fa3"))
SPEC = SimpleNamespace(speculative_num_draft_tokens=None, speculative_algorithm=None)
DISAGG = SimpleNamespace(disaggregation_mode="null")
ENVS = MagicMock()
ENVS.SGLANG_SWA_EVICTION_INTERVAL.get.return_value = 128
ENVS.SGLANG_OPT_MAMBA_SKIP_DECODE_LOCK.get.return_value = False
ENVS.SGLANG_NPU_ENABLE_SPARSE_KV_OFFLOAD.get.return_value = False


def _override(_: str, max_mamba_cache_size: int) -> None:
    SCHEDULE.max_mamba_cache_size = max_mamba_cache_size


NAMES: dict[str, Any] = {
    "torch": TORCH,
    "envs": ENVS,
    "get_schedule": lambda: SCHEDULE,
    "get_memory": lambda: MEMORY,
    "get_parallel": lambda: PARALLEL,
    "get_exec": lambda: EXEC,
    "get_spec": lambda: SPEC,
    "get_disagg": lambda: DISAGG,
    "get_context": lambda: SimpleNamespace(override=_override),
    "AttentionArch": SimpleNamespace(MLA="mla", MHA="mha", SSM="ssm"),
    "DSATokenToKVPool": SimpleNamespace(
        quant_block_size=128, rope_storage_dtype=SimpleNamespace(itemsize=2), index_k_with_scale_buffer_dtype="fp8_e4m3"
    ),
    "mambaish_config": lambda config: config.mambaish,
    "is_deepseek_dsa": lambda config: config.index_head_dim is not None,
    "get_dsa_index_head_dim": lambda config: config.index_head_dim,
    "get_dsa_index_kpool": lambda _: 1,
    "is_deepseek_v4": lambda _: False,
    "is_minimax_sparse": lambda _: False,
    "is_float4_e2m1fn_x2": lambda _: False,
    "is_hip": lambda: False,
    "is_npu": lambda: False,
    "_is_hip": False,
    "_pd_prefill_skips_mamba_spec_state": lambda: False,
    "_should_elide_dsa_index_k": lambda **_: False,
    "compute_page_shard_scratch_bytes": lambda *_, **__: 0,
    "get_glm_dsa_layer_split_effective_num_layers": lambda _, layers: layers,
    "parse_qsa_profile": lambda _: None,
    "logger": MagicMock(),
}


def take(path: str, *names: str) -> None:
    """Add functions, methods and constants of a file of the engine to ``NAMES``, as they stand there."""
    tree = ast.parse((SOURCE / path).read_text())
    nodes: list[ast.stmt] = [
        node
        for node in ast.walk(tree)
        if (isinstance(node, ast.FunctionDef) and node.name in names)
        or (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in names)
    ]
    nodes.insert(0, ast.ImportFrom("__future__", [ast.alias("annotations")], 0))
    exec(compile(ast.fix_missing_locations(ast.Module(nodes, [])), path, "exec"), NAMES)  # noqa: S102
    absent = set(names) - set(NAMES)
    assert not absent, f"{path} has no {absent}"


class _Part(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules of the engine, and torch, with nothing in them but ``NAMES``."""

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        ours = name.split(".", maxsplit=1)[0] in ("sglang", "torch")
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if ours else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        vars(module).update(vars(TORCH) if spec.name == "torch" else NAMES)
        module.__getattr__ = lambda name: MagicMock(name=name)  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


take("utils/common.py", "ceil_align", "ceil_div")
take("configs/model_config.py", "get_num_kv_heads", "get_swa_num_kv_heads")
take(
    "mem_cache/kv_cache_configurator.py",
    "_handle_max_mamba_cache",
    "_calculate_mamba_ratio",
    "calculate_mla_kv_cache_dim",
    "MAMBA_CACHE_SIZE_MAX_RUNNING_REQUESTS_RATIO",
    "MAMBA_CACHE_BASE_RATIO_DROP_ON_SKIP",
    "MAMBA_CACHE_V2_ADDITIONAL_RATIO_NO_BUFFER",
)
sys.meta_path.insert(0, _Part())
_POOLS = SOURCE / "model_executor" / "pool_configurator.py"
_spec = importlib.util.spec_from_file_location("pool_configurator", _POOLS)
assert _spec is not None and _spec.loader is not None
POOLS = importlib.util.module_from_spec(_spec)
sys.modules["pool_configurator"] = POOLS
_spec.loader.exec_module(POOLS)


# ---- a case in both ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Layers as a text (``F`` full, ``S`` sliding, ``M`` state), their shapes, a server and a memory."""

    layers: str
    heads: tuple[int, int, int]
    sliding: tuple[int, int, int]
    window: int
    latent: tuple[int, int, int] | None
    state: tuple[int, int, int]
    has_pool: bool
    dtype: str
    tp: int
    memory: int
    options: tuple[tuple[str, Any], ...]


def told(case: Case) -> dict[str, int | None]:
    """The sizes by kvcalc.

    Raises:
        KVCalcError: it refuses the case.
    """
    kv_heads, head_dim, v_head_dim = case.heads
    swa_heads, swa_dim, swa_v_dim = case.sliding
    full: LayerKind = Full(num_kv_heads=kv_heads, head_dim=head_dim, v_head_dim=v_head_dim)
    if case.latent is not None:
        rank, rope, indexer = case.latent
        full = Latent(rank=rank, rope_dim=rope, num_heads=8, nope_dim=64, v_head_dim=64, indexer_dim=indexer)
    elements, channels, kernel = case.state
    kinds: dict[str, LayerKind] = {
        "F": full,
        "S": Sliding(num_kv_heads=swa_heads, head_dim=swa_dim, v_head_dim=swa_v_dim, window=case.window),
        "M": State(recurrent_elements=elements, conv_channels=channels, conv_kernel=kernel),
    }
    used = sorted(set(case.layers))
    model = Architecture(
        name="random",
        model_type="mimo_v2_flash" if case.has_pool else "other",
        layers=tuple(Layer(cache=kinds[code]) for code in used),
        order=tuple(used.index(code) for code in case.layers),
        hidden_size=64,
        vocab_size=0,
        dtype="bfloat16",
    )
    engine = make_engine("sglang", dict(case.options))
    plan = Setup(model, engine, *parse_kv_dtypes(case.dtype), tensor_parallel_size=case.tp).plan
    report = plan.report(1, 1, case.memory)
    wanted = ("max_total_num_tokens", "full_max_total_num_tokens", "swa_max_total_num_tokens", "max_mamba_cache_size")
    return {name: report.get(name) for name in wanted}


def asked(case: Case) -> dict[str, int | None]:
    """The sizes by the engine.

    Raises:
        Exception: it does not start so.
    """
    given = SGLang(**dict(case.options))
    ids = {code: [index for index, each in enumerate(case.layers) if each == code] for code in "FSM"}
    hybrid = case.has_pool and bool(ids["S"]) and not given.disable_hybrid_swa_memory
    for name in ("swa_full_tokens_ratio", "max_running_requests", "chunked_prefill_size", "disable_overlap_schedule"):
        setattr(SCHEDULE, name, getattr(given, name))
    SCHEDULE.mamba_full_memory_ratio = given.mamba_full_memory_ratio
    SCHEDULE.max_mamba_cache_size, SCHEDULE.max_total_tokens = given.max_mamba_cache_size, None
    MEMORY.disable_radix_cache, MEMORY.enable_unified_memory = given.disable_radix_cache, False
    MEMORY.enable_hisparse = False
    PARALLEL.attn_tp_size, PARALLEL.attn_dcp_size = case.tp, 1
    MAMBA.enable_mamba_extra_buffer = given.mamba_radix_cache_strategy != "no_buffer"
    MAMBA.enable_mamba_extra_buffer_lazy = given.mamba_radix_cache_strategy == "extra_buffer_lazy"
    MAMBA.enable_linear_replayssm_spec = False
    states = None
    if ids["M"]:
        elements, channels, kernel = case.state
        width = WIDTHS[given.mamba_ssm_dtype]
        slot = len(ids["M"]) * (channels // case.tp * (kernel - 1) * 2 + elements // case.tp * width)
        states = SimpleNamespace(
            full_attention_layer_ids=ids["F"] + ids["S"],
            mamba2_cache_params=SimpleNamespace(layers=ids["M"], mamba_cache_per_req=slot),
        )
    # A model without a sliding pool has one size for all layers: its own, or of its sliding layers alone.
    plain = case.heads if ids["F"] else case.sliding
    kv_heads, head_dim, v_head_dim = plain
    swa_heads, swa_dim, swa_v_dim = case.sliding
    rank, rope, indexer = case.latent or (0, 0, 0)
    model = SimpleNamespace(
        hf_config=SimpleNamespace(index_head_dim=indexer or None),
        hf_text_config=SimpleNamespace(swa_num_key_value_heads=swa_heads),
        is_draft_model=False,
        attention_arch="mla" if case.latent else "mha",
        kv_lora_rank=rank,
        qk_rope_head_dim=rope,
        head_dim=head_dim,
        v_head_dim=v_head_dim,
        swa_head_dim=swa_dim,
        swa_v_head_dim=swa_v_dim,
        mambaish=states,
        context_len=4096,
        get_total_num_kv_heads=lambda: kv_heads,
    )
    for method in ("get_num_kv_heads", "get_swa_num_kv_heads"):
        setattr(model, method, NAMES[method].__get__(model))
    no_draft = SimpleNamespace(
        **{f"is_{name}": lambda: False for name in ("eagle", "standalone", "dflash_family")}, is_none=lambda: True
    )
    runner = SimpleNamespace(
        model_config=model,
        server_args=SimpleNamespace(enable_hisparse=False),
        kv_cache_dtype_str=case.dtype,
        kv_cache_dtype=case.dtype,
        use_mla_backend=case.latent is not None,
        is_hybrid_swa=hybrid,
        is_draft_worker=False,
        layer_info=SimpleNamespace(
            start_layer=0,
            end_layer=len(case.layers),
            num_effective_layers=len(ids["F"]) + len(ids["S"]),
            full_attention_layer_ids=ids["F"],
            swa_attention_layer_ids=ids["S"],
        ),
        sliding_window_size=case.window if hybrid else None,
        page_size=page_of(case),
        pp_size=1,
        attn_dp_size=1,
        spec_algorithm=no_draft,
        mambaish_config=states,
        extra_mamba_cache_bytes_per_req=0,
        fused_entry_bytes=lambda _: None,
    )
    runner._calculate_mamba_ratio = NAMES["_calculate_mamba_ratio"].__get__(runner)
    memory = case.memory
    if states is not None:
        memory = int(NAMES["_handle_max_mamba_cache"](runner, memory / (1 << 30)) * (1 << 30))
    sizes = POOLS.create_memory_pool_configurator(runner).calculate_pool_sizes(memory, runner.page_size)
    return {
        "max_total_num_tokens": sizes.max_total_num_tokens,
        "full_max_total_num_tokens": sizes.full_max_total_num_tokens,
        "swa_max_total_num_tokens": sizes.swa_max_total_num_tokens,
        "max_mamba_cache_size": SCHEDULE.max_mamba_cache_size if states is not None else None,
    }


def page_of(case: Case) -> int:
    """Tokens of a page: a sparse-attention model has at least 64 (arg_groups/overrides)."""
    page = int(dict(case.options).get("page_size", 1))
    return max(page, 64) if case.latent is not None and case.latent[2] else page


# ---- random cases -----------------------------------------------------------------------------------------------

_SHAPES = st.tuples(st.sampled_from([1, 2, 4, 8, 12]), st.sampled_from([64, 80, 128, 256]), st.sampled_from([64, 128]))


@st.composite
def cases(draw: Callable[..., Any]) -> Case:
    """A model with full and sliding layers, with full layers and states, or with latents; a server and a memory."""
    family = draw(st.sampled_from(["plain", "sliding", "states", "latent"]))
    codes = {"plain": "F", "sliding": "FS", "states": "FM", "latent": "F"}[family]
    layers = "".join(draw(st.lists(st.sampled_from(codes), min_size=1, max_size=64)))
    if family == "states" and "F" not in layers:
        layers += "F"
    heads = draw(_SHAPES)
    latents = st.tuples(st.sampled_from([256, 512]), st.sampled_from([32, 64]), st.sampled_from([0, 128]))
    options: dict[str, Any] = {"page_size": draw(st.sampled_from([1, 1, 16, 64, 128]))}
    if draw(st.booleans()):
        options["max_running_requests"] = draw(st.integers(1, 300))
        options["disable_radix_cache"] = draw(st.booleans())
    if family == "sliding":
        options["swa_full_tokens_ratio"] = draw(st.sampled_from([0.8, 0.5, 0.1, 0.33, 1.0]))
        options["chunked_prefill_size"] = draw(st.sampled_from([-1, 512, 2048, 8192]))
        options["disable_overlap_schedule"] = draw(st.booleans())
        options["disable_hybrid_swa_memory"] = draw(st.integers(0, 4)) == 0
    if family == "states":
        options["mamba_full_memory_ratio"] = draw(st.sampled_from([0.9, 0.5, 0.2, 2.0]))
        options["mamba_ssm_dtype"] = draw(st.sampled_from(["float32", "bfloat16"]))
        options["mamba_radix_cache_strategy"] = draw(st.sampled_from(["extra_buffer", "no_buffer"]))
        options["max_mamba_cache_size"] = draw(st.none() | st.integers(1, 500))
    return Case(
        layers,
        heads,
        draw(st.just(heads) | _SHAPES),
        draw(st.sampled_from([128, 512, 1024, 4096])),
        draw(latents) if family == "latent" else None,
        (draw(st.sampled_from([4096, 65536, 524288])), draw(st.sampled_from([1024, 8192])), 4),
        draw(st.booleans()) if family == "sliding" else False,
        draw(st.sampled_from(sorted(WIDTHS))),
        draw(st.sampled_from([1, 1, 2, 4, 8])),
        draw(st.integers(2**20, 2**36)),
        tuple(options.items()),
    )


def compared(case: Case, counts: Counter[str], reasons: Counter[str]) -> None:
    """Ask both, and count how it ended."""
    ours, theirs = _answer(told, case, KVCalcError), _answer(asked, case, RuntimeError, ValueError)
    match isinstance(ours, Exception), isinstance(theirs, Exception):
        case True, True:
            counts["refused by both"] += 1
        case True, False:
            counts["refused by kvcalc alone"] += 1
            reasons[f"kvcalc: {shape_of(ours)}"] += 1
        case False, True:
            counts["refused by sglang alone"] += 1
            reasons[f"sglang: {shape_of(theirs)}"] += 1
        case _ if ours != theirs:
            raise Different(f"sglang {theirs}\nkvcalc {ours}")
        case _:
            counts["equal"] += 1


def _answer(ask: Callable[[Case], dict[str, int | None]], case: Case, *refusals: type[Exception]) -> object:
    try:
        return ask(case)
    except refusals as error:
        return error


def main() -> int:
    """Run the cases and print the counts."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(arguments, cases=3000, fault="make kvcalc's tokens a byte too wide")
    asked_for = arguments.parse_args()
    if asked_for.fault:
        right = ours_module.bytes_of_token

        def wrong(kind: LayerKind, setup: Setup) -> int:
            return right(kind, setup) + 1

        ours_module.bytes_of_token = wrong
    say(f"sglang {version('sglang')}, seed {asked_for.seed}")
    outcome = run(cases(), compared, asked_for.cases, asked_for.seed)
    rows = ("cases", "equal", "refused by both", "refused by kvcalc alone", "refused by sglang alone")
    return table(outcome, rows)


if __name__ == "__main__":
    sys.exit(main())
