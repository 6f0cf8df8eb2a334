"""SGLang's own pools beside kvcalc: random layers, drafts, formats, devices, pages, options and memories.

The engine sizes its pools with its own ``model_executor/pool_configurator.py``, and then makes them: its classes of
``mem_cache`` run as they are, over a ``torch`` that writes down what they allocate. Tokens, slots and bytes of every
pool are compared. What these files import is stubbed (``NAMES`` below).

On a bare machine (no GPU, no torch), in this repository::

    $ pip install . hypothesis numpy
    $ pip install --no-deps sglang==0.5.23
    $ python tests/oracles/sglang.py

``python tests/oracles/sglang.py 150 --seed 1 --record FILE`` writes tests/data/sglang_pools.json anew.

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
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from math import prod
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

HERE = Path(__file__).resolve().parent
sys.path[:] = [each for each in sys.path if Path(each).resolve() != HERE]  # this file has the package's name
sys.path.insert(0, str(HERE.parent))

from comparison import Different, add_options, run, say, shape_of, table
from hypothesis import strategies as st
from sglang_cases import FIGURES, Case, Draft, report_of

import kvcalc.engines.sglang.layers as ours_module
from kvcalc.architecture import LayerKind
from kvcalc.engines.sglang import SGLang
from kvcalc.errors import KVCalcError
from kvcalc.setup import Setup

_SPEC = importlib.util.find_spec("sglang")
assert _SPEC is not None and _SPEC.origin is not None, "pip install --no-deps sglang"
PACKAGE = Path(_SPEC.origin).parent
SOURCE = PACKAGE / "srt"

# ---- a torch that writes down what is allocated -----------------------------------------------------------------


class Format(str):
    """A number format of torch: its name, and the bytes of one number."""

    itemsize: int

    def __new__(cls, name: str, itemsize: int) -> Format:
        """Make one."""
        made = super().__new__(cls, name)
        made.itemsize = itemsize
        return made


_WIDTHS = {
    1: ("int8", "uint8", "bool", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"),
    2: ("bfloat16", "float16"),
    4: ("float32", "int32"),
    8: ("int64", "uint64"),
}
FORMATS = {name: Format(name, width) for width, names in _WIDTHS.items() for name in names}
OURS = {"fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
#: Bytes of every tensor that was made on the device, in their order.
ALLOCATED: list[int] = []


class Tensor:
    """A tensor without numbers: views of it are made as a pool asks for them."""

    def __init__(self, shape: Sequence[int], dtype: Format) -> None:
        self.shape, self.dtype = tuple(shape), dtype

    def __getitem__(self, index: Any) -> Tensor:
        places = index if isinstance(index, tuple) else (index,)
        shape = [
            len(range(*place.indices(size)))
            for place, size in zip(places, self.shape, strict=False)
            if isinstance(place, slice)
        ]
        return Tensor((*shape, *self.shape[len(places) :]), self.dtype)

    def __setitem__(self, *_: Any) -> None:
        pass

    def stride(self, *_: Any) -> tuple[int, ...]:
        """Any strides."""
        return self.shape

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: self


def zeros(*shape: Any, size: Any = None, dtype: Format = FORMATS["float32"], device: str = "", **_: Any) -> Tensor:
    """A tensor, which is written down."""
    given = size if size is not None else shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
    if device == "device":
        ALLOCATED.append(prod(given) * dtype.itemsize)
    return Tensor(given, dtype)


TORCH = MagicMock()
for name, each in FORMATS.items():
    setattr(TORCH, name, each)
TORCH.zeros = TORCH.empty = TORCH.ones = zeros
TORCH.Tensor = Tensor
TORCH._utils._element_size = lambda dtype: dtype.itemsize

# ---- the engine's code ------------------------------------------------------------------------------------------

#: What the engine's functions read of the server: filled for each case.
SCHEDULE, MEMORY, PARALLEL, MAMBA, SPEC, KERNEL = (SimpleNamespace() for _ in range(6))
FEATURES = SimpleNamespace(enable_encoder_swa_bounded_replay=False)
EXEC = SimpleNamespace(mamba=MAMBA, kernel=KERNEL, features=FEATURES)
DISAGG = SimpleNamespace(disaggregation_mode="null", disaggregation_decode_extra_slots=0)
PLATFORM = SimpleNamespace(is_sm90=True, is_sm100=False, is_sm120=False, is_hip=False)


class _Environment:
    """Variables of the environment with the defaults that ``environ.py`` gives them."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        for node in ast.walk(ast.parse((SOURCE / "environ.py").read_text())):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and node.value.args:
                try:
                    self.values[ast.unparse(node.targets[0])] = ast.literal_eval(node.value.args[0])
                except ValueError:
                    continue

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(get=lambda: self.values.get(name), is_set=lambda: False)


def _override(_: str, max_mamba_cache_size: int) -> None:
    SCHEDULE.max_mamba_cache_size = max_mamba_cache_size


NAMES: dict[str, Any] = {
    "torch": TORCH,
    "envs": _Environment(),
    "get_schedule": lambda: SCHEDULE,
    "get_memory": lambda: MEMORY,
    "get_parallel": lambda: PARALLEL,
    "get_exec": lambda: EXEC,
    "get_spec": lambda: SPEC,
    "get_disagg": lambda: DISAGG,
    "get_platform": lambda: PLATFORM,
    "get_context": lambda: SimpleNamespace(override=_override),
    "max_speculative_num_draft_tokens": lambda: SPEC.speculative_num_draft_tokens,
    "get_alloc_page_size": lambda: SCHEDULE.page_size,
    "SpeculativeAlgorithm": SimpleNamespace(
        from_string=lambda name: SimpleNamespace(
            is_uno=lambda: False, has_draft_kv=lambda: True, is_dspark=lambda: name == "DSPARK"
        )
    ),
    "AttentionArch": SimpleNamespace(MLA="mla", MHA="mha", SSM="ssm"),
    "mambaish_config": lambda config: config.mambaish,
    "is_deepseek_dsa": lambda config: config.index_head_dim is not None,
    "get_dsa_index_head_dim": lambda config: config.index_head_dim,
    "get_dsa_index_kpool": lambda _: 1,
    "dsa_layer_skips_topk": lambda config, layer: layer in config.skips,
    "is_deepseek_v4": lambda config: config.compress_ratios is not None,
    "is_minimax_sparse": lambda config: config.sparse is not None,
    "get_minimax_sparse_attention_config": lambda config: {"sparse_index_dim": config.sparse[1]},
    "get_minimax_sparse_layer_ids": lambda _: ([0, 1, 2], list(range(3, 1000))),
    "get_minimax_sparse_disable_value_layer_ids": lambda _: list(range(3, 1000)),
    "uses_minimax_m3_nvfp4_native_stack": lambda _: False,
    "m3_fp8_attn_gemm_enabled": lambda _: False,
    "resolving_view": lambda args: args,
    "is_float4_e2m1fn_x2": lambda _: False,
    "is_cuda": lambda: True,
    "_is_cuda": True,
    **dict.fromkeys(
        ("is_hip", "is_npu", "is_cpu", "is_xpu", "is_gfx95_supported", "cpu_has_amx_support"), lambda: False
    ),
    **dict.fromkeys(("is_unified_kv_triton", "is_unified_kv_fp8", "cpu_has_amx_support"), lambda: False),
    **dict.fromkeys(("_is_hip", "_is_npu", "_is_cpu", "_is_gfx95_supported"), False),
    "get_bool_env_var": lambda *_: False,
    "_pd_prefill_skips_mamba_spec_state": lambda: False,
    "_should_elide_dsa_index_k": lambda is_draft_worker: not is_draft_worker,
    "compute_page_shard_scratch_bytes": lambda *_, **__: 0,
    "get_glm_dsa_layer_split_effective_num_layers": lambda _, layers: layers,
    "get_glm_dsa_cp_layer_shard_info": lambda _: (None, 1),
    "parse_qsa_profile": lambda _: None,
    "maybe_init_custom_mem_pool": lambda **_: (False, None, None),
    "aiter_can_use_preshuffle_paged_mqa": lambda: False,
    "UnquantizedKVCacheMethod": type("UnquantizedKVCacheMethod", (), {}),
    "DEEPGEMM_PAGED_SPARSE_MQA_LOGITS": False,
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


REAL: dict[str, Path] = {}


class _Part(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules of the engine, torch and triton, with nothing in them but ``NAMES``; files in ``REAL`` as they are."""

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        if name in REAL:
            return importlib.util.spec_from_file_location(name, REAL[name])
        ours = name.split(".", maxsplit=1)[0] in ("sglang", "torch", "triton")
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if ours else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        if spec.name == "torch":
            return TORCH
        module = ModuleType(spec.name)
        vars(module).update(NAMES)
        module.__getattr__ = lambda name: MagicMock(name=name)  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def real(path: str) -> ModuleType:
    """A file of the engine, which runs as it is."""
    name = "sglang." + path.removesuffix(".py").replace("/", ".")
    REAL[name] = PACKAGE / path
    return importlib.import_module(name)


take("utils/common.py", "ceil_align", "ceil_div", "spec_decode_alloc_len_per_request")
take("configs/model_config.py", "get_num_kv_heads", "get_swa_num_kv_heads")
take("mem_cache/allocation_sizing.py", "get_alloc_len_per_decode", "get_mamba_tracking_slots")
take("speculative/dflash_utils.py", "scale_kv_cell_size_per_token_for_dflash")
take(
    "mem_cache/kv_cache_configurator.py",
    "_handle_max_mamba_cache",
    "_calculate_mamba_ratio",
    "resolve_max_num_reqs",
    "calculate_mla_kv_cache_dim",
    "MAMBA_CACHE_SIZE_MAX_RUNNING_REQUESTS_RATIO",
    "MAMBA_CACHE_BASE_RATIO_DROP_ON_SKIP",
    "MAMBA_CACHE_V2_ADDITIONAL_RATIO_NO_BUFFER",
)
sys.meta_path.insert(0, _Part())
real("kernels/ops/attention/dsv4/kv_layout.py")
real("srt/mem_cache/index_key_cache.py")
MEMORY_POOL = real("srt/mem_cache/memory_pool.py")
NAMES["DSATokenToKVPool"] = MEMORY_POOL.DSATokenToKVPool
real("srt/mem_cache/base_swa_memory_pool.py")
SWA_POOL = real("srt/mem_cache/swa_memory_pool.py")
real("srt/mem_cache/deepseek_v4_compress_state.py")
V4_POOL = real("srt/mem_cache/deepseek_v4_memory_pool.py")
POOLS = real("srt/model_executor/pool_configurator.py")
NAMES["logger"] = MagicMock()


# ---- a case in the engine ---------------------------------------------------------------------------------------


def asked(case: Case) -> dict[str, int | None]:
    """Tokens, slots and bytes by the engine.

    Raises:
        Exception: it does not start so.
    """
    given = SGLang(**dict(case.options))
    ids = {code: [index for index, each in enumerate(case.layers) if each == code] for code in "FSMCD"}
    hybrid = case.family == "v4" or (case.has_pool and bool(ids["S"]) and not given.disable_hybrid_swa_memory)
    heads = case.tp // (case.dp * case.cp)
    _server(case, given, heads)
    runner = _runner(case, given, ids, heads, hybrid=hybrid)
    memory = case.memory
    if runner.mambaish_config is not None:
        memory = int(NAMES["_handle_max_mamba_cache"](runner, memory / (1 << 30)) * (1 << 30))
    configurator = POOLS.create_memory_pool_configurator(runner)
    sizes = configurator.calculate_pool_sizes(memory, runner.page_size)
    sizes.max_running_requests = NAMES["resolve_max_num_reqs"](runner, sizes.max_total_num_tokens)
    sizes = configurator.finalize_with_max_running_requests(sizes)
    ALLOCATED.clear()
    _allocate(case, given, runner, sizes, heads, ids)
    spread = case.dcp if not hybrid else 1
    return {
        "max_total_num_tokens": sizes.max_total_num_tokens * spread,
        "full_max_total_num_tokens": sizes.full_max_total_num_tokens,
        "swa_max_total_num_tokens": sizes.swa_max_total_num_tokens,
        "max_mamba_cache_size": SCHEDULE.max_mamba_cache_size if runner.mambaish_config is not None else None,
        "c128_state_pool_size": sizes.c128_state_pool_size if case.family == "v4" else None,
        "allocated_bytes": sum(ALLOCATED),
    }


def _server(case: Case, given: SGLang, heads: int) -> None:
    """Fill in what the functions read of the server."""
    for name in ("swa_full_tokens_ratio", "disable_overlap_schedule", "mamba_full_memory_ratio"):
        setattr(SCHEDULE, name, getattr(given, name))
    SCHEDULE.chunked_prefill_size = given.chunked_prefill_size // case.dp  # arg_groups/parallel_hook.py:343
    SCHEDULE.max_running_requests, SCHEDULE.page_size = given.max_running_requests, page_of(case)
    SCHEDULE.max_mamba_cache_size, SCHEDULE.max_total_tokens = given.max_mamba_cache_size, None
    SCHEDULE.swa_prefix_tails = None
    SCHEDULE._swa_full_tokens_ratio_explicitly_set = True  # by arg_groups/model_overrides/deepseek_v4.py:48
    if case.family == "v4":
        stated = "swa_full_tokens_ratio" in given.model_fields_set
        SCHEDULE.swa_full_tokens_ratio = given.swa_full_tokens_ratio if stated else 0.1
        SCHEDULE.max_running_requests = given.max_running_requests or 256
    MEMORY.disable_radix_cache, MEMORY.enable_unified_memory = given.disable_radix_cache, False
    MEMORY.enable_hisparse = False
    PARALLEL.attn_tp_size, PARALLEL.attn_dcp_size = heads, case.dcp
    MAMBA.enable_mamba_extra_buffer = given.mamba_radix_cache_strategy != "no_buffer"
    MAMBA.enable_mamba_extra_buffer_lazy = given.mamba_radix_cache_strategy == "extra_buffer_lazy"
    MAMBA.enable_linear_replayssm_spec = False
    dsa = "trtllm" if case.dcp > 1 else "flashmla_kv"
    KERNEL.dsa_prefill_backend = given.dsa_prefill_backend or dsa
    KERNEL.dsa_decode_backend = given.dsa_decode_backend or dsa
    KERNEL.dsv4_attn_backend, KERNEL.enable_deepseek_v4_fp4_indexer = "flashmla", given.enable_deepseek_v4_fp4_indexer
    SPEC.speculative_algorithm = SPEC.speculative_num_steps = SPEC.speculative_eagle_topk = None
    SPEC.speculative_num_draft_tokens = None
    if case.draft is not None:
        SPEC.speculative_algorithm = given.speculative_algorithm
        SPEC.speculative_num_steps, SPEC.speculative_eagle_topk = case.draft.steps, case.draft.branches
        SPEC.speculative_num_draft_tokens = case.draft.tokens
        if SCHEDULE.max_running_requests is None:
            SCHEDULE.max_running_requests = 48


def _runner(case: Case, given: SGLang, ids: dict[str, list[int]], heads: int, *, hybrid: bool) -> SimpleNamespace:
    """The engine's view of the model."""
    states = None
    if ids["M"]:
        elements, channels, kernel = case.state
        ssm, conv = FORMATS[given.mamba_ssm_dtype], FORMATS["bfloat16"]
        shape = SimpleNamespace(
            conv=[(channels // heads, kernel - 1)],
            temporal=(elements // heads, 1, 1),
            disable_conv_window_dedup=False,
            conv_kernel=kernel,
        )
        slot = len(ids["M"]) * (channels // heads * (kernel - 1) * 2 + elements // heads * ssm.itemsize)
        states = SimpleNamespace(
            full_attention_layer_ids=ids["F"],
            mamba2_cache_params=SimpleNamespace(
                layers=ids["M"],
                mamba_cache_per_req=slot,
                shape=shape,
                dtype=SimpleNamespace(conv=conv, temporal=ssm),
                is_kda=False,
            ),
        )
    # A model without a sliding pool has one size for all layers: its own, or of its sliding layers alone.
    kv_heads, head_dim, v_head_dim = case.heads if ids["F"] else case.sliding
    swa_heads, swa_dim, swa_v_dim = case.sliding
    rank, rope, indexer = case.latent or (0, 0, 0)
    ratios = None
    if case.family == "v4":
        ratios = [{"F": 0, "C": 4, "D": 128}[code] for code in case.layers]
    skips = frozenset(range(0, len(case.layers), case.skips)) if case.skips else frozenset()
    model = SimpleNamespace(
        hf_config=SimpleNamespace(
            index_head_dim=indexer or None,
            skips=skips,
            compress_ratios=ratios,
            kv_source_layer_ids=[],
            sparse=case.sparse,
        ),
        hf_text_config=SimpleNamespace(swa_num_key_value_heads=swa_heads),
        quantization=None,
        is_draft_model=False,
        attention_arch="mla" if case.latent else "mha",
        kv_lora_rank=rank,
        qk_rope_head_dim=64 if case.family == "v4" else rope,
        qk_nope_head_dim=448,
        index_head_dim=128,
        compress_ratios=ratios,
        window_size=128,
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
    draft = case.draft
    block, name = draft is not None and draft.block, given.speculative_algorithm if draft is not None else ""
    algorithm = SimpleNamespace(
        is_none=lambda: draft is None,
        is_eagle=lambda: name in ("EAGLE", "EAGLE3"),
        is_standalone=lambda: name == "STANDALONE",
        is_dflash_family=lambda: block,
        is_dspark=lambda: name == "DSPARK",
    )
    layers = draft.layers if draft is not None else None
    runner = SimpleNamespace(
        model_config=model,
        server_args=SimpleNamespace(enable_hisparse=False),
        kv_cache_dtype_str=case.dtype,
        kv_cache_dtype=FORMATS[OURS.get(case.dtype, case.dtype)],
        model_dtype=FORMATS["bfloat16"],
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
        sliding_window_size=(128 if case.family == "v4" else case.window) if hybrid else None,
        page_size=page_of(case),
        pp_size=1,
        attn_dp_size=case.dp,
        spec_algorithm=algorithm,
        spec_aux_config=SimpleNamespace(
            eagle_draft_num_layers=layers, eagle_draft_swa_num_layers=None, dflash_draft_num_layers=layers
        ),
        dflash_draft_cell_size_per_token=_draft_cell(case) if block else None,
        mambaish_config=states,
        hybrid_gdn_config=None,
        hybrid_kda_config=None,
        extra_mamba_cache_bytes_per_req=0,
        fused_entry_bytes=lambda _: None,
    )
    runner._calculate_mamba_ratio = NAMES["_calculate_mamba_ratio"].__get__(runner)
    return runner


def _draft_heads(case: Case) -> int:
    """Devices that share a draft's heads (runtime_context.py:491)."""
    return case.tp if case.cp > 1 and case.dp == 1 else case.tp // (case.dp * case.cp)


def _draft_cell(case: Case) -> int:
    """``dflash_draft_cell_size_per_token`` of a draft."""
    assert case.draft is not None
    kv_heads, key, value = case.draft.heads
    size = FORMATS[OURS.get(case.dtype, case.dtype)].itemsize
    return max(1, kv_heads // _draft_heads(case)) * (key + value) * case.draft.layers * size


def _allocate(
    case: Case, given: SGLang, runner: SimpleNamespace, sizes: Any, heads: int, ids: dict[str, list[int]]
) -> None:
    """Make the pools as ``kv_cache_configurator.py`` does (``_build_*_kv_pool``), the draft's after the model's."""
    dtype, page, model = runner.kv_cache_dtype, runner.page_size, runner.model_config
    common = {"dtype": dtype, "device": "device", "enable_memory_saver": False}
    layers, tokens = len(ids["F"]) + len(ids["S"]), sizes.max_total_num_tokens
    mha = MEMORY_POOL.MHATokenToKVPool
    if case.family == "v4":
        _allocate_v4(case, runner, sizes, model.compress_ratios, draft=False)
    elif runner.is_hybrid_swa:
        SWA_POOL.SWAKVPool(
            size=sizes.full_max_total_num_tokens,
            size_swa=sizes.swa_max_total_num_tokens,
            page_size=page,
            head_num=model.get_num_kv_heads(heads),
            head_dim=model.head_dim,
            v_head_dim=model.v_head_dim,
            swa_head_num=model.get_swa_num_kv_heads(heads),
            swa_head_dim=model.swa_head_dim,
            swa_v_head_dim=model.swa_v_head_dim,
            swa_attention_layer_ids=ids["S"],
            full_attention_layer_ids=ids["F"],
            **common,
        )
    elif case.sparse is not None:
        MEMORY_POOL.MiniMaxSparseKVPool(
            size=tokens,
            page_size=page,
            head_num=model.get_num_kv_heads(heads),
            head_dim=model.head_dim,
            idx_head_dim=case.sparse[1],
            dense_layer_ids=[0, 1, 2],
            sparse_layer_ids=list(range(3, layers)),
            disable_value_sparse_layer_ids=list(range(3, layers)),
            index_dtype=MEMORY_POOL.get_minimax_sparse_index_dtype(
                fp8_attn_gemm=False, kv_cache_dtype=dtype, model_dtype=runner.model_dtype
            ),
            start_layer=0,
            end_layer=layers,
            **common,
        )
    elif case.latent is not None:
        _latents(case, runner, tokens, layers, draft=False)
    else:
        kv_heads = model.get_num_kv_heads(heads, case.dcp)
        mha(
            size=tokens,
            page_size=page,
            head_num=kv_heads,
            head_dim=model.head_dim,
            v_head_dim=model.v_head_dim,
            layer_num=layers,
            **common,
        )
    if runner.mambaish_config is not None:
        MEMORY_POOL.MambaPool(
            size=SCHEDULE.max_mamba_cache_size,
            spec_state_size=sizes.max_running_requests,
            cache_params=runner.mambaish_config.mamba2_cache_params,
            mamba_layer_ids=ids["M"],
            device="device",
            speculative_num_draft_tokens=SPEC.speculative_num_draft_tokens,
            speculative_eagle_topk=SPEC.speculative_eagle_topk,
        )
    if case.draft is None:
        return
    # A draft's pool has the numbers of tokens of all devices of decode context parallelism (loc_space_scale).
    if case.family == "v4":
        _allocate_v4(case, runner, sizes, [0] * case.draft.layers, draft=True)
    elif case.latent is not None:
        _latents(case, runner, tokens * case.dcp, case.draft.layers, draft=True)
    else:
        kv_heads, key, value = case.draft.heads
        mha(
            size=(sizes.full_max_total_num_tokens or tokens) * case.dcp,
            page_size=page * case.dcp,
            head_num=max(1, kv_heads // _draft_heads(case)),
            head_dim=key,
            v_head_dim=value,
            layer_num=case.draft.layers,
            **common,
        )


def _latents(case: Case, runner: SimpleNamespace, tokens: int, layers: int, *, draft: bool) -> None:
    assert case.latent is not None
    rank, rope, indexer = case.latent
    spread = case.dcp if draft else 1
    common = {
        "page_size": runner.page_size * spread,
        "dtype": runner.kv_cache_dtype,
        "kv_lora_rank": rank,
        "qk_rope_head_dim": rope,
        "layer_num": layers,
        "device": "device",
        "enable_memory_saver": False,
        "dcp_replicated": spread > 1,
    }
    if not indexer:
        MEMORY_POOL.MLATokenToKVPool(tokens, **common)
        return
    width = NAMES["calculate_mla_kv_cache_dim"](model_config=runner.model_config, kv_cache_dtype=runner.kv_cache_dtype)
    skips = runner.model_config.hf_config.skips
    MEMORY_POOL.DSATokenToKVPool(
        tokens,
        index_head_dim=indexer,
        kv_cache_dim=width,
        skip_topk_layers=None if draft else [layer in skips for layer in range(layers)],
        **common,
    )


def _allocate_v4(case: Case, runner: SimpleNamespace, sizes: Any, ratios: list[int], *, draft: bool) -> None:
    layout, option = V4_POOL.select_dsv4_kv_layout()
    V4_POOL.DeepSeekV4TokenToKVPool(
        max_num_reqs=sizes.max_running_requests,
        num_req_slots=sizes.max_running_requests + 1,  # ReqToTokenPool has a row of padding
        swa_size=sizes.swa_max_total_num_tokens,
        c4_size=0 if draft else sizes.c4_max_total_num_tokens,
        c128_size=0 if draft else sizes.c128_max_total_num_tokens,
        c4_state_pool_size=0 if draft else sizes.c4_state_pool_size,
        c128_state_pool_size=0 if draft else sizes.c128_state_pool_size,
        page_size=256,
        swa_page_size=256,
        sliding_window=128,
        dtype=runner.kv_cache_dtype,
        c4_state_dtype=FORMATS["float32"],
        c128_state_dtype=FORMATS["float32"],
        qk_nope_head_dim=448,
        qk_rope_head_dim=64,
        indexer_head_dim=128,
        layer_num=len(ratios),
        device="device",
        enable_memory_saver=False,
        compression_ratios=ratios,
        start_layer=0,
        end_layer=len(ratios),
        online_mtp_max_draft_tokens=SPEC.speculative_num_draft_tokens or 0,
        full_size=sizes.full_max_total_num_tokens,
        is_draft_worker=draft,
        kv_layout=layout,
        compressed_kv_layout=option,
    )


def page_of(case: Case) -> int:
    """Tokens of a page, after the overrides of the model (arg_groups/model_overrides)."""
    stated = dict(case.options).get("page_size")
    if case.family == "v4":
        return 256
    if case.latent is not None and case.latent[2]:
        return 64
    return int(stated or (128 if case.sparse is not None else 1))


# ---- random cases -----------------------------------------------------------------------------------------------

_SHAPES = st.tuples(st.sampled_from([1, 2, 4, 8, 12]), st.sampled_from([64, 80, 128, 256]), st.sampled_from([64, 128]))
_CODES = {"plain": "F", "sliding": "FS", "states": "FM", "latent": "F", "sparse": "F", "v4": "FCD"}
_FORMATS = ("bfloat16", "float16", "float32", "fp8_e4m3", "fp8_e5m2")


@st.composite
def cases(draw: Callable[..., Any]) -> Case:
    """A model of one of the families, a server, perhaps a draft, and a memory."""
    family = draw(st.sampled_from(sorted(_CODES)))
    layers = "".join(draw(st.lists(st.sampled_from(_CODES[family]), min_size=4, max_size=64)))
    if family == "states" and "F" not in layers:
        layers += "F"
    shared = draw(st.integers(0, len(layers) // 2)) if family in ("plain", "sliding") else 0
    while set(layers[: len(layers) - shared]) != set(layers):  # each reads a layer of its own kind
        shared -= 1
    heads = draw(_SHAPES)
    latents = st.tuples(st.sampled_from([256, 512]), st.sampled_from([32, 64]), st.sampled_from([0, 128]))
    latent = draw(latents) if family == "latent" else None
    if family == "sparse":
        heads = (draw(st.sampled_from([1, 4, 8])), 128, 128)
    options: dict[str, Any] = {}
    if draw(st.booleans()):
        options["page_size"] = draw(st.sampled_from([16, 64, 128]))
    if draw(st.booleans()):
        options["max_running_requests"] = draw(st.integers(1, 300))
        options["disable_radix_cache"] = draw(st.booleans())
    if family == "sliding":
        options["swa_full_tokens_ratio"] = draw(st.sampled_from([0.8, 0.5, 0.1, 0.33, 1.0]))
        options["chunked_prefill_size"] = draw(st.sampled_from([-1, 512, 2048, 8192]))
        options["disable_overlap_schedule"] = draw(st.booleans())
        options["disable_hybrid_swa_memory"] = draw(st.integers(0, 4)) == 0
    if latent is not None and latent[2] and draw(st.booleans()):
        kernels = draw(st.sampled_from(["trtllm trtllm", "flashmla_kv trtllm", "tilelang tilelang", "tilelang fa3"]))
        options["dsa_prefill_backend"], options["dsa_decode_backend"] = kernels.split()
    if family == "states":
        options["mamba_full_memory_ratio"] = draw(st.sampled_from([0.9, 0.5, 0.2, 2.0]))
        options["mamba_ssm_dtype"] = draw(st.sampled_from(["float32", "bfloat16"]))
        options["mamba_radix_cache_strategy"] = draw(st.sampled_from(["extra_buffer", "no_buffer"]))
        options["max_mamba_cache_size"] = draw(st.none() | st.integers(8, 500))
    if family == "v4":
        options["enable_deepseek_v4_fp4_indexer"] = draw(st.booleans())
        if draw(st.booleans()):
            options["swa_full_tokens_ratio"] = draw(st.sampled_from([0.8, 0.2, 0.05]))
    dp, cp = draw(st.sampled_from([1, 1, 1, 2, 4])), draw(st.sampled_from([1, 1, 1, 2]))
    dcp = draw(st.sampled_from([1, 1, 2, 4])) if family in ("plain", "states", "latent") else 1
    draft = draw(st.none() | _drafts(family, options))
    return Case(
        family,
        layers,
        heads,
        draw(st.just(heads) | _SHAPES),
        draw(st.sampled_from([128, 512, 1024, 4096])),
        latent,
        shared,
        draw(st.sampled_from([0, 3, 4])) if latent is not None and latent[2] else 0,
        (0, 128) if family == "sparse" else None,
        (draw(st.sampled_from([4096, 65536, 524288])), draw(st.sampled_from([1024, 8192])), 4),
        draw(st.booleans()) if family == "sliding" else False,
        "fp8_e4m3" if family == "v4" else draw(st.sampled_from(_FORMATS)),
        draw(st.sampled_from([1, 1, 2, 4])) * dp * cp * dcp,
        dp,
        cp,
        dcp,
        draw(st.integers(2**22, 2**30) | st.integers(2**30, 2**37)),
        tuple(options.items()),
        draft,
    )


@st.composite
def _drafts(draw: Callable[..., Any], family: str, options: dict[str, Any]) -> Draft:
    """A draft, and the options that ask for it; what the engine chooses where they are left out."""
    chains = ["EAGLE", "EAGLE3", "STANDALONE"]
    # The engine knows DFLASH drafts of heads alone, and V4 asserts EAGLE with one branch.
    algorithm = draw(
        st.sampled_from(["EAGLE"] if family == "v4" else chains if family == "latent" else [*chains, "DFLASH"])
    )
    options["speculative_algorithm"] = algorithm
    if algorithm == "DFLASH":
        tokens = draw(st.sampled_from([8, 16]))
        options["speculative_num_draft_tokens"] = tokens
        return Draft(draw(st.integers(1, 5)), draw(_SHAPES), 1, 1, tokens, block=True)
    steps, branches, tokens = 3, 1, 4
    if draw(st.booleans()):
        steps = draw(st.integers(1, 6))
        branches = 1 if family == "v4" else draw(st.sampled_from([1, 1, 4]))
        tokens = steps + 1 if branches == 1 else draw(st.integers(2, steps * branches))
        options["speculative_num_steps"], options["speculative_eagle_topk"] = steps, branches
        options["speculative_num_draft_tokens"] = tokens
    return Draft(draw(st.integers(1, 3)), draw(_SHAPES), steps, branches, tokens)


# ---- the run ----------------------------------------------------------------------------------------------------


def compared(case: Case, counts: Counter[str], reasons: Counter[str]) -> None:
    """Ask both, and count how it ended."""
    ours, theirs = _answer(report_of, case, KVCalcError), _answer(asked, case, RuntimeError, ValueError)
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
            reasons[f"equal: {case.family}{', a draft' if case.draft is not None else ''}"] += 1


def _answer(ask: Callable[[Case], dict[str, int | None]], case: Case, *refusals: type[Exception]) -> object:
    try:
        return ask(case)
    except refusals as error:
        return error


def record(path: Path, count: int, start: int) -> None:
    """Write random cases with what the engine answers to each: its figures, or null where it does not start."""
    rows: list[list[Any]] = []

    def answered(case: Case, counts: Counter[str], _: Counter[str]) -> None:
        found = _answer(asked, case, RuntimeError, ValueError)
        plain = Case(case.family, case.layers)
        stated = {name: value for name, value in asdict(case).items() if value != getattr(plain, name)}
        given = {"family": case.family, "layers": case.layers, **stated}
        rows.append([given, None if isinstance(found, Exception) else [found[name] for name in FIGURES]])

    run(cases(), answered, count, start)
    head = {"engine": f"sglang {version('sglang')}", "seed": start, "figures": FIGURES}
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    path.write_text(f'{json.dumps(head)[:-1]}, "rows": [\n{lines}\n]}}\n')
    say(f"{len(rows)} cases")


def main() -> int:
    """Run the cases and print the counts."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(arguments, cases=3000, fault="make kvcalc's tokens a byte too wide")
    arguments.add_argument("--record", type=Path, metavar="FILE", help="write what the engine answers to a file")
    asked_for = arguments.parse_args()
    if asked_for.record is not None:
        record(asked_for.record, asked_for.cases, asked_for.seed)
        return 0
    if asked_for.fault:
        right = ours_module.bytes_of_token

        def wrong(kind: LayerKind, setup: Setup, ranks: ours_module.Ranks) -> int:
            return right(kind, setup, ranks) + 1

        ours_module.bytes_of_token = wrong
    say(f"sglang {version('sglang')}, seed {asked_for.seed}")
    outcome = run(cases(), compared, asked_for.cases, asked_for.seed)
    rows = ("cases", "equal", "refused by both", "refused by kvcalc alone", "refused by sglang alone")
    return table(outcome, rows)


if __name__ == "__main__":
    sys.exit(main())
