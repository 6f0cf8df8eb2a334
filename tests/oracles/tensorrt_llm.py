"""TensorRT-LLM's own cache managers beside kvcalc: bytes of a token, blocks of a memory, and pools with their slots.

Each case is a random model, a format, a parallel size and a memory. Three pieces of TensorRT-LLM are asked on the CPU:
KVCacheManager's division of a memory among windows (``_torch/pyexecutor/resource_manager.py``), the sizes of a layer
(K and V, latents, index keys, states, DeepSeek V4's entries), and the pools of ``runtime/kv_cache_manager_v2``:
storage, life cycles and slots. The package cannot be imported without CUDA, so the functions and classes that are named
below are cut out of its files and run as they stand; types of annotations, the logger and the device's memory are
replaced. On a bare machine, in this repository::

    $ pip install . hypothesis
    $ git clone --quiet --depth 1 --filter=blob:none --no-checkout https://github.com/NVIDIA/TensorRT-LLM engines/trtllm
    $ git -C engines/trtllm checkout HEAD -- tensorrt_llm
    $ git -C engines/trtllm fetch --quiet --depth 1 origin 0004396720054fd8e205cbf616f21f0b57c6b412
    $ git -C engines/trtllm checkout FETCH_HEAD -- tensorrt_llm/runtime tensorrt_llm/_torch/attention_backend
    $ python tests/oracles/tensorrt_llm.py engines/trtllm

The last checkout is for kv_cache_manager_v2, which later revisions have in C++. The last lines are the counts; where
the two differ, the smallest case that differs stands above them. ``--fault`` makes kvcalc's token or slot a byte too
wide, which has to be found.
"""

# ruff: noqa: E402 - imports after the path is mended
from __future__ import annotations
import __future__ as future

import argparse
import ast
import copy
import dataclasses
import enum
import itertools
import math
import operator
import os
import sys
import types
import typing
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [each for each in sys.path if str(Path(each).resolve()) != HERE]  # this file has the package's name
sys.path.insert(0, str(Path(HERE).parent))

from comparison import Different, add_options, run, say, shape_of, table
from hypothesis import strategies as st

from kvcalc.architecture import (
    Architecture,
    Compressed,
    Full,
    Latent,
    Layer,
    LayerKind,
    Sliding,
    State,
    distinct_layers,
)
from kvcalc.dtypes import parse_kv_dtypes
from kvcalc.engines.tensorrt_llm import TensorRTLLM
from kvcalc.engines.tensorrt_llm.pools import PoolsPlan
from kvcalc.engines.tensorrt_llm.shares import SharesPlan
from kvcalc.errors import KVCalcError
from kvcalc.setup import Setup
from kvcalc.units import ceil_div

#: Numbers of a state's head, and columns of its convolution, as every model of it has them.
_STATE_WIDTH, _KERNEL = 128, 4
#: kvcalc's formats, and the names that TensorRT-LLM has for them.
_FORMATS = {"bfloat16": "BF16", "float16": "HALF", "float32": "FLOAT", "fp8": "FP8", "nvfp4": "NVFP4"}


@dataclass(frozen=True)
class Case:
    """One question to both."""

    model_type: str
    kinds: tuple[LayerKind, ...]
    dtype: str
    tensor_parallel_size: int
    options: tuple[tuple[str, Any], ...]
    context: int
    batch_size: int
    memory: int
    state_heads: int = 0


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Windows that share a memory, or what the pools of V2 are for: states and several head widths."""
    options: dict[str, Any] = {
        "tokens_per_block": draw(st.sampled_from([1, 16, 32, 64, 128])),
        "free_gpu_memory_fraction": draw(st.sampled_from([0.1, 0.5, 0.9, 0.95, 0.99])),
    }
    tp, layers, heads = (
        draw(st.sampled_from([1, 1, 2, 3, 4, 8])),
        draw(st.integers(1, 40)),
        st.sampled_from([1, 2, 6, 8]),
    )
    model_type, state_heads, dim = "custom", 0, draw(st.sampled_from([64, 80, 128, 256]))
    context = draw(st.integers(1, 2**18))
    latent = Latent(draw(st.sampled_from([128, 512])), 64, 24, 128, 128)
    kinds: tuple[LayerKind, ...]
    shapes = ["windows", "latent", "indexed", "states", "latent and states", "widths", "compressed"]
    match draw(st.sampled_from(shapes)):
        case "windows":
            count = draw(st.integers(1, 7))  # each window has a layer
            options["max_attention_window"] = tuple(
                draw(st.lists(st.integers(1, max(context, count)), min_size=count, max_size=count, unique=True))
            )
            kinds = tuple(Full(draw(heads), dim, dim) for _ in range(layers + count))
        case "latent":
            kinds = (latent,) * layers
        case "indexed":  # some layers own an index key
            indexed = replace(latent, indexer_dim=draw(st.sampled_from([128, 256])))
            kinds = (indexed, *(draw(st.sampled_from([latent, indexed])) for _ in range(layers)))
        case "compressed":
            window = draw(st.sampled_from([64, 100, 128]))
            some = [Compressed(512, window, ratio, 128 if ratio == 4 else 0) for ratio in (None, 4, 128)]
            kinds = tuple(draw(st.lists(st.sampled_from(some), min_size=1, max_size=40)))
            model_type, options["tokens_per_block"] = "deepseek_v4", draw(st.sampled_from([128, 256]))
        case "widths":
            narrow = Full(draw(heads), dim, dim)
            wide = Full(draw(heads), 512, 512)
            window = draw(st.integers(1, 4096))
            local = Sliding(window, draw(heads), dim, dim)
            kinds = (*(draw(st.sampled_from([narrow, wide, local])) for _ in range(layers)), narrow, wide)
        case kind:
            state_heads = 24 * draw(st.sampled_from([1, 2, 4]))  # what all of the sizes above divide
            width, group = state_heads * _STATE_WIDTH, 24 * _STATE_WIDTH
            model_type = "kimi_linear" if kind == "latent and states" else "qwen3_5"
            state = State(width * _STATE_WIDTH, conv_channels=width + 2 * group, conv_kernel=_KERNEL)
            attention = latent if model_type == "kimi_linear" else Full(draw(heads), dim, dim)
            kinds = (*(draw(st.sampled_from([state, attention])) for _ in range(layers)), state, attention)
            options["max_batch_size"] = draw(st.sampled_from([None, 1, 64]))
    return Case(
        model_type,
        kinds,
        draw(st.sampled_from(["bfloat16", "fp8"] if model_type == "deepseek_v4" else list(_FORMATS))),
        tp,
        tuple(options.items()),
        context,
        min(draw(st.integers(1, 64)), options.get("max_batch_size") or 64),
        2**30 + draw(st.integers(0, 2**38)),
        state_heads,
    )


def named(path: Path) -> dict[str, ast.stmt]:
    """The statements of a file that define something, by name."""
    found: dict[str, ast.stmt] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            found[ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)] = node
    return found


def run_here(nodes: list[ast.stmt], path: Path, names: dict[str, Any]) -> None:
    """Run statements of a file; annotations are not looked at."""
    code = compile(
        ast.fix_missing_locations(ast.Module(nodes, [])),
        str(path),
        "exec",
        future.annotations.compiler_flag,
        dont_inherit=True,
    )
    exec(code, names)  # noqa: S102


def cut(path: Path, names: dict[str, Any], wanted: str = "") -> None:
    """Define in ``names`` what is listed of a file, or all of it."""
    found = named(path)
    run_here([found[each] for each in wanted.split() or found], path, names)


def cut_class(path: Path, names: dict[str, Any], name: str, methods: str) -> type:
    """A class of some of a class's methods."""
    body = [each for each in method_nodes(path, name) if each.name in methods.split()]
    run_here([ast.ClassDef(name, [], [], body, [])], path, names)  # type: ignore[list-item]
    found: type = names[name]
    return found


def method_nodes(path: Path, name: str) -> list[ast.FunctionDef]:
    """The methods of a class."""
    node = named(path)[name]
    assert isinstance(node, ast.ClassDef)
    return [each for each in node.body if isinstance(each, ast.FunctionDef)]


def branch(path: Path, name: str, test: str, sets: str) -> ast.stmt:
    """The ``if`` of a constructor that has this test, and sets this attribute."""
    constructor = next(each for each in method_nodes(path, name) if each.name == "__init__")
    return next(
        each
        for each in ast.walk(constructor)
        if isinstance(each, ast.If) and ast.unparse(each.test) == test and sets in ast.unparse(each)
    )


class DataType(enum.Enum):
    """The formats of the C++ bindings."""

    INT64, FLOAT, INT32, BF16, HALF, BOOL, FP8, INT8, UINT8, NVFP4 = range(10)


class Theirs:
    """The cut code."""

    def __init__(self, source: Path) -> None:
        package = source / "tensorrt_llm"
        executor, v2 = package / "_torch/pyexecutor", package / "runtime/kv_cache_manager_v2"
        self.version = (package / "version.py").read_text(encoding="utf-8").split('"')[1]
        self.free = 0
        role = SimpleNamespace(ALL="all", KEY="key", VALUE="value", KEY_BLOCK_SCALE="ks", VALUE_BLOCK_SCALE="vs")
        names = self.names = vars(typing) | {
            "__name__": "cut", "copy": copy, "enum": enum, "math": math, "operator": operator, "os": os,
            "Enum": enum.Enum, "IntEnum": enum.IntEnum, "defaultdict": defaultdict, "dataclass": dataclass,
            "field": dataclasses.field, "Fraction": Fraction, "pairwise": itertools.pairwise, "logger": MagicMock(),
            "torch": SimpleNamespace(cuda=SimpleNamespace(mem_get_info=lambda: (self.free, self.free))), "NDEBUG": True,
            "DataType": DataType, "CacheTypeCpp": MagicMock(), "Role": role, "mapping": None,
        }  # fmt: skip
        module = sys.modules["cut"] = types.ModuleType("cut")  # where dataclasses look for what annotations name
        vars(module).update(names)
        cut(package / "_utils.py", names, "_binding_dtype_bits get_size_in_bytes")
        self.one = executor / "resource_manager.py"
        self.shares = cut_class(self.one, names, "KVCacheManager", """
            calculate_scaling_factor_size_bytes get_cache_bytes_per_token calculate_max_num_blocks
            _calculate_cache_bytes_per_token_for_layers get_pool_for_layer _get_window_size_to_layers
            adjust_window_sizes_for_vswa calculate_max_num_blocks_for_vswa""")  # fmt: skip
        self.layer = cut_class(executor / "kv_cache/kv_cache_manager_v2.py", names, "KVCacheManagerV2",
                               "get_layer_bytes_per_token calculate_scaling_factor_size_bytes")  # fmt: skip
        cut(v2 / "_common.py", names, "CacheTier BlockOrdinal LayerId SlidingWindowSize")
        cut(v2 / "_utils.py", names, """
            T U Index IndexO Idx HomoTuple TypedIndexList HalfOpenRange div_up round_up exact_div intersect value_or
            get_uniform_attribute is_sorted typed_range filled_list typed_len typed_enumerate typed_map""")  # fmt: skip
        cut(v2 / "_storage/_core.py", names, "PoolGroupIndex PoolIndex")
        for file in ("_config.py", "_life_cycle_registry.py", "_storage/_config.py"):
            cut(v2 / file, names)
        cut_class(v2 / "_storage/_core.py", names, "CacheLevelStorage",
                  "_grains_to_slots _grains_for_slots ratio_to_slot_count_list")  # fmt: skip
        manager = v2 / "_storage_manager.py"
        cut_class(manager, names, "CacheLevelManager", "cache_tier_granularity")
        self.storage = cut_class(manager, names, "StorageManager", """
            get_pool_group_index num_pool_groups slot_size _compute_slots_for_batch _slots_to_bytes
            _min_quota_for_level _compute_slot_count_for_level""")  # fmt: skip
        self.hybrid = executor / "kv_cache/mamba_cache_manager/mamba_cache_manager_v2.py"
        self.state_sizes = branch(
            self.hybrid, "MambaHybridCacheManagerV2", "self.local_num_mamba_layers > 0", "self.ssm_bytes"
        )
        sparse = package / "_torch/attention_backend/sparse"
        cut(sparse / "dsa/cache_manager.py", names, "_get_indexer_k_cache_bytes_per_token")
        found = {name: path for path in sorted((sparse / "deepseek_v4").glob("*.py")) for name in named(path)}
        for name in """
            DEEPSEEK_V4_SPARSE_RATIO DEEPSEEK_V4_OVERLAP_COMPRESSOR_RATIO DeepseekV4AttentionType is_overlap_compressor
            is_sparse_layer is_compress_layer compress_ratio_has_attention get_attn_dim get_token_bytes""".split():
            cut(found[name], names, name)
        self.v4 = cut_class(sparse / "deepseek_v4/cache_manager.py", names, "DeepseekV4CacheManager",
                            "_get_window_size _get_attn_bytes_per_block")  # fmt: skip
        self.heads = branch(self.one, "KVCacheManager", "isinstance(num_kv_heads, int)", "num_kv_heads_per_layer")

    @staticmethod
    def width(kind: LayerKind) -> int:
        """Numbers of a head, or of a latent."""
        return kind.rank + kind.rope_dim if isinstance(kind, Latent) else kind.head_dim  # type: ignore[union-attr]

    def divided_heads(self, case: Case) -> list[int]:
        """KV heads of each layer on one device."""
        manager = SimpleNamespace(num_layers=len(case.kinds), pp_layers=range(len(case.kinds)), num_local_layers=1)
        wanted = [getattr(kind, "num_kv_heads", 0) for kind in case.kinds]
        names = {"self": manager, "num_kv_heads": wanted, "tp_size": case.tensor_parallel_size}
        run_here([self.heads], self.one, self.names | names)
        found: list[int] = manager.num_kv_heads_per_layer
        return [heads or isinstance(kind, Latent) for heads, kind in zip(found, case.kinds, strict=True)]

    def blocks(self, case: Case, memory: int) -> dict[int, int]:
        """KVCacheManager's blocks a window."""
        options, kind = dict(case.options), case.kinds[0]
        latent = isinstance(kind, Latent)
        windows = list(options.get("max_attention_window") or [2**19])
        self.free = memory
        manager: Any = self.shares()
        vars(manager).update(
            num_kv_heads_per_layer=self.divided_heads(case), kv_factor=1 if latent else 2,
            head_dim=self.width(kind), dtype=DataType[_FORMATS[case.dtype]],
            tokens_per_block=options["tokens_per_block"], is_linear_attention=False,
            is_vswa=len(windows) > 1, max_attention_window_vec=windows, num_local_layers=len(case.kinds),
            pp_layers=range(len(case.kinds)), pool_configurations=[],
        )  # fmt: skip
        if latent:  # DSA's pool has its index keys in the same blocks
            keys = sum(
                self.names["_get_indexer_k_cache_bytes_per_token"](kind.indexer_dim, 128, use_fp4=False)
                for kind in case.kinds
                if isinstance(kind, Latent) and kind.indexer_dim
            )
            size = manager.get_cache_bytes_per_token() + keys
            manager.get_cache_bytes_per_token = lambda: size
        config = SimpleNamespace(
            free_gpu_memory_fraction=options["free_gpu_memory_fraction"], max_tokens=None, host_cache_size=0,
            max_gpu_total_bytes=0,
        )  # fmt: skip
        if len(windows) > 1:
            blocks = manager.calculate_max_num_blocks_for_vswa(config)
            return {window: number for window, (number, _) in blocks.items()}
        mapping = SimpleNamespace(world_size=1)
        number, _ = manager.calculate_max_num_blocks(
            config, manager.head_dim, manager.tokens_per_block, mapping, manager.dtype, manager.kv_factor
        )
        return {windows[0]: number}

    def state_bytes(self, case: Case) -> tuple[int, int]:
        """The recurrent part and the convolution of a sequence in one layer; a model in bfloat16."""
        recurrent = SimpleNamespace(itemsize=4 if case.model_type == "kimi_linear" else 2)
        manager = SimpleNamespace(
            local_num_mamba_layers=1, ssm_state_dtype=recurrent, conv_state_dtype=SimpleNamespace(itemsize=2)
        )
        run_here([self.state_sizes], self.hybrid, self.names | {
            "self": manager, "_mamba_effective_tp_size": lambda _: case.tensor_parallel_size, "kwargs": {},
            "mamba_head_dim": _STATE_WIDTH, "mamba_num_heads": case.state_heads, "mamba_d_state": _STATE_WIDTH,
            "mamba_n_groups": 24, "mamba_d_conv": _KERNEL, "conv_state_layout": "x_b_c",
            "state_update_strategy": SimpleNamespace(uses_replay=False),
        })  # fmt: skip
        return manager.ssm_bytes, manager.conv_bytes

    def layers(self, case: Case) -> Iterator[tuple[dict[str, int], int | None, bool]]:
        """What V2 calls layers: buffers with their bytes a block, the window, and whether it is a state."""
        block = dict(case.options)["tokens_per_block"]
        for kind, heads in zip(case.kinds, self.divided_heads(case), strict=True):
            if isinstance(kind, State):
                yield dict(zip("sc", self.state_bytes(case), strict=True)), None, True
            elif isinstance(kind, Compressed):
                manager: Any = self.v4()
                vars(manager).update(
                    dtype=DataType[_FORMATS[case.dtype]], head_dim=kind.width, index_head_dim=128,
                    tokens_per_block=block, _compress_ratios=[kind.ratio or 1], _indexer_k_dtype="fp8",
                    compressed_block_sizes=[block // (kind.ratio or 1)], _swa_window_size=kind.window, _max_draft_len=0,
                    use_fp8_ds_mla=False,
                )  # fmt: skip
                for part in self.names["DeepseekV4AttentionType"]:
                    if self.names["compress_ratio_has_attention"](kind.ratio or 1, part):
                        size = manager._get_attn_bytes_per_block(part, 0)
                        yield {part.name: size}, manager._get_window_size(kind.ratio or 1, part), False
            else:
                latent, width = isinstance(kind, Latent), self.width(kind)
                manager = self.layer()
                vars(manager).update(
                    dtype=DataType[_FORMATS[case.dtype]], kv_factor=1 if latent else 2, head_dim=width,
                    kv_cache_type="", num_kv_heads_per_layer=[heads], head_dim_per_layer=[width],
                )  # fmt: skip
                roles = ["key"] if latent else ["key", "value"]
                roles += [f"{role[0]}s" for role in roles] if case.dtype == "nvfp4" else []
                sizes = {role: manager.get_layer_bytes_per_token(0, role) * block for role in roles}
                yield sizes, kind.window if isinstance(kind, Sliding) else None, False

    def pools(self, case: Case) -> tuple[list[tuple[int, int]], int, bool]:
        """Each pool's bytes of a slot and slots, the bytes of all, and whether V2 divides those as it should."""
        names, options = self.names, dict(case.options)
        block, layers = options["tokens_per_block"], []
        for index, (sizes, window, state) in enumerate(self.layers(case)):
            buffers = [names["BufferConfig"](role, size) for role, size in sizes.items()]
            kind = names["SsmLayerConfig" if state else "AttentionLayerConfig"]
            layers.append(kind(index, buffers) if state else kind(index, buffers, window))
        tier = names["GpuCacheTierConfig"](1)
        config = names["KVCacheManagerConfig"](block, [tier], layers, commit_min_snapshot=True)
        plan = names["create_storage_config"](config)
        storage: Any = self.storage()
        storage._life_cycles, storage._slot_desc_list = names["LifeCycleRegistry"](config), plan.slot_desc_list
        storage._life_cycle_grouping = plan.life_cycle_grouping()
        slots = [0] * len(plan.slot_desc_list)
        for number, cycle in enumerate(storage._life_cycles.get()):
            group = storage._life_cycle_grouping[number]
            if number == storage._life_cycles.ssm_life_cycle_id:
                slots[group] += (options.get("max_batch_size") or case.batch_size) + 1
            else:  # the most while a request grows: what it holds comes back a block later
                lengths = range(max(1, case.context - block + 1), case.context + 1)
                held = [ceil_div(length, block) - len(cycle.get_stale_range(length - 1, block)) for length in lengths]
                slots[group] += case.batch_size * max(held)
        total = quota = 0
        while not total or quota < total:  # a multiple follows from the memory, and the memory from the multiple
            quota = total or 1
            granularity = names["CacheLevelManager"].cache_tier_granularity(names["CacheTier"].GPU_MEM, quota)
            total = sum(storage._slots_to_bytes(slots, granularity))
        storage._min_slots = slots
        slot_sizes = [storage.slot_size(group) for group in range(len(slots))]
        given = storage._compute_slot_count_for_level(
            names["GpuCacheTierConfig"](total), slot_sizes, [1 / len(slots)] * len(slots)
        )
        divides = all(has >= wants for has, wants in zip(given, slots, strict=True))
        found = [(size, number) for of_group, number in zip(slot_sizes, slots, strict=True) for size in of_group]
        return sorted(found), total, divides


def ours(case: Case) -> SharesPlan | PoolsPlan:
    """The plan of kvcalc."""
    layers, order = distinct_layers([Layer(cache=kind) for kind in case.kinds])
    model = Architecture("random", case.model_type, layers, order, hidden_size=1, vocab_size=1000)
    engine = TensorRTLLM(**dict(case.options))
    plan = Setup(model, engine, *parse_kv_dtypes(case.dtype), case.tensor_parallel_size).plan
    assert isinstance(plan, SharesPlan | PoolsPlan)
    return plan


def differences(theirs: Theirs, fault: bool, case: Case, plan: SharesPlan | PoolsPlan) -> tuple[Any, Any]:
    """What each has, where both answer."""
    context, batch_size = case.context, case.batch_size
    if isinstance(plan, PoolsPlan):
        held = {cycle: plan._held(cycle, context, batch_size) for cycle in plan.cycles}
        pools = sorted((size + fault, sum(held[cycle] for cycle in cycles)) for cycles, size in plan.pools)
        return theirs.pools(case), (pools, plan.kv_bytes(context, batch_size), True)
    if fault:
        windows = tuple(replace(each, token_bytes=each.token_bytes + 1) for each in plan.windows)
        plan = replace(plan, windows=windows)
    needed = plan.required_kv_memory(context, batch_size)
    wanted = dict(zip([each.window or 2**19 for each in plan.windows], plan._needed(context, batch_size), strict=True))
    enough = [
        all(theirs.blocks(case, memory).get(window, 0) >= number for window, number in wanted.items())
        for memory in (needed, needed - 1)
    ]
    report = plan.report(context, batch_size, case.memory)["blocks_per_window"]
    found = {2**19 if window == "max_seq_len" else int(window): number for window, number in report.items()}
    return (theirs.blocks(case, case.memory), enough), (found, [True, False])


def shrinks(case: Case, plan: SharesPlan | PoolsPlan) -> bool:
    """Whether one sequence of full windows does not fit, so that TensorRT-LLM shrinks them, which is not modelled."""
    if isinstance(plan, PoolsPlan) or len(plan.windows) == 1:
        return False
    pool = int(min(case.memory, plan.required_kv_memory(case.context, case.batch_size) - 1) * (plan.fraction or 1))
    return sum((each.window or 0) * each.token_bytes for each in plan.windows) >= pool


def compared(theirs: Theirs, fault: bool, case: Case, counts: Counter[str], reasons: Counter[str]) -> None:
    """Ask both, and count how it ended."""
    try:
        plan = ours(case)
    except KVCalcError as error:
        counts["refused by kvcalc alone"] += 1
        reasons[f"kvcalc: {shape_of(error)}"] += 1
        return
    if shrinks(case, plan):
        counts["windows that shrink"] += 1
        return
    wanted, found = differences(theirs, fault, case, plan)
    if wanted != found:
        raise Different(f"{case}\ntensorrt-llm {wanted}\nkvcalc       {found}")
    counts["equal"] += 1


def main() -> int:
    """Run the cases and print the counts; 1 where a case differs or one side alone refuses."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("source", type=Path, help="the checkout that holds tensorrt_llm/")
    add_options(arguments, cases=2000, fault="make kvcalc's token or slot a byte too wide")
    asked_for = arguments.parse_args()
    theirs = Theirs(asked_for.source)
    say(f"tensorrt-llm {theirs.version}, seed {asked_for.seed}")
    outcome = run(cases(), partial(compared, theirs, asked_for.fault), asked_for.cases, asked_for.seed)
    code = table(outcome, ("cases", "equal", "windows that shrink", "refused by kvcalc alone"))
    return 1 if outcome.counts["refused by kvcalc alone"] else code


if __name__ == "__main__":
    sys.exit(main())
