"""LMDeploy's own cache plans beside kvcalc: the bytes of a block and of a state slot, and the blocks of a memory.

Each case is a random model (full, sliding and latent layers, index keys, states), a format, a parallel size and a
memory. LMDeploy's schema, layouts and executor are asked on torch's meta device; what they import besides (kernels,
Ray, the cluster) is replaced by names. On a bare machine, in this repository::

    $ pip install . hypothesis torch==2.13.0
    $ pip install --no-deps --target engines/lmdeploy lmdeploy==0.18.0
    $ python tests/oracles/lmdeploy.py engines/lmdeploy

The last lines are the counts; where the two differ, the smallest case that differs stands above them. ``--fault`` makes
kvcalc's blocks a byte too wide, which has to be found.
"""

# ruff: noqa: E402 - imports after the path is mended
from __future__ import annotations

import argparse
import importlib.util
import sys
import types
from collections import Counter
from dataclasses import dataclass
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
from kvcalc.engines.lmdeploy import LMDeploy, LMDeployPlan
from kvcalc.errors import KVCalcError
from kvcalc.setup import Setup


@dataclass(frozen=True)
class Case:
    """One question to both."""

    model_type: str
    kinds: tuple[LayerKind, ...]
    tensor_parallel_size: int
    options: tuple[tuple[str, Any], ...]
    memory: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A model of one geometry, with states or index keys in some."""
    options: dict[str, Any] = {
        "cache_block_seq_len": draw(st.sampled_from([16, 32, 64, 128])),
        "max_batch_size": draw(st.sampled_from([1, 128, 1024])),
        "cache_max_entry_count": draw(st.sampled_from([0.1, 0.5, 0.8, 0.95])),
        "quant_policy": draw(st.sampled_from([0, 0, 4, 8, 16, 17])),
    }
    layers = draw(st.integers(1, 40))
    match draw(st.sampled_from(["full", "sliding", "states", "latent", "indexed", "compressed"])):
        case "compressed":
            window = draw(st.sampled_from([64, 100, 128]))
            one = st.sampled_from(
                [Compressed(512, window), Compressed(512, window, 4, indexer_dim=128), Compressed(512, window, 128)]
            )
            some = draw(st.lists(one, max_size=40))
            kinds: tuple[LayerKind, ...] = (*some, Compressed(512, window, 128))  # without entries there is no block
            model_type = "deepseek_v4"
            options["quant_policy"] = 0
        case "latent":
            kinds = (Latent(draw(st.sampled_from([128, 512])), 64, 16, 128, 128),) * layers
            model_type = "deepseek_v3"
            options["cache_block_seq_len"] = 64
        case "indexed":
            kinds, model_type = (Latent(512, 64, 16, 128, 128, indexer_dim=128),) * layers, "deepseek_v32"
            options |= {"cache_block_seq_len": 64, "quant_policy": draw(st.sampled_from([0, 16]))}
        case kind:
            heads, dim = draw(st.sampled_from([1, 2, 4, 8, 12])), draw(st.sampled_from([64, 80, 96, 128, 256]))
            full = Full(heads, dim, dim)
            kinds, model_type = (full,) * layers, "llama"
            if kind == "sliding":
                kinds, model_type = (Sliding(512, heads, dim, dim), full) * layers, "gpt_oss"
            elif kind == "states":
                delta = draw(st.sampled_from([8, 16, 48]))
                state = State(delta * 128 * 128, conv_channels=delta * 128 + 2048, conv_kernel=4)
                kinds, model_type = (state, state, state, full) * layers, "qwen3_next"
    tp = draw(st.sampled_from([1, 1, 2, 4, 8]))
    return Case(
        model_type,
        kinds,
        tp,
        tuple(options.items()),
        draw(st.sampled_from([2**30, 2**34, 2**36])) + draw(st.integers(0, 2**36)),
    )


class _Named(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The few real files by their path; everything else under lmdeploy is a name that may be imported."""

    REAL = (
        "lmdeploy.messages",
        "lmdeploy.pytorch.config",
        "lmdeploy.pytorch.configurations.builder",
        "lmdeploy.pytorch.configurations.deepseek_v4",
        "lmdeploy.pytorch.consts",
        "lmdeploy.pytorch.engine.cache_engine.layout",
        "lmdeploy.pytorch.engine.cache_engine.plan",
        "lmdeploy.pytorch.engine.cache_engine.schema",
        "lmdeploy.pytorch.engine.cache_engine.view",
        "lmdeploy.pytorch.engine.cache_engine.state",
        "lmdeploy.pytorch.engine.executor.base",
        "lmdeploy.pytorch.backends.cache",
        "lmdeploy.pytorch.backends.default.cache",
    )

    def __init__(self, source: Path) -> None:
        self.source = source

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".", maxsplit=1)[0] != "lmdeploy":
            return None
        if name in self.REAL:
            return importlib.util.spec_from_file_location(name, self.source / f"{name.replace('.', '/')}.py")
        return importlib.util.spec_from_loader(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__path__ = []


class _Anything(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=f"{self.__name__}.{name}")


class Theirs:
    """LMDeploy's plan and executor."""

    def __init__(self, source: Path) -> None:
        sys.meta_path.insert(0, _Named(source))
        from importlib import import_module

        schema = import_module("lmdeploy.pytorch.engine.cache_engine.schema")
        default = import_module("lmdeploy.pytorch.backends.default.cache")
        for name in ("schema", "plan", "state"):
            module: Any = import_module(f"lmdeploy.pytorch.engine.cache_engine.{name}")
            module.get_backend = lambda: self
        self.schema: Any = schema
        self.plan: Any = import_module("lmdeploy.pytorch.engine.cache_engine.plan")
        self.state: Any = import_module("lmdeploy.pytorch.engine.cache_engine.state")
        self.policy: Any = import_module("lmdeploy.messages").QuantPolicy
        self.consts: Any = import_module("lmdeploy.pytorch.consts")
        self.v4: Any = import_module("lmdeploy.pytorch.configurations.deepseek_v4")
        self.executor: Any = import_module("lmdeploy.pytorch.engine.executor.base").ExecutorBase
        self.backend = default.DefaultCacheBackend

    def get_cache_backend(self) -> Any:
        """The layouts of its default back end, which CUDA's is."""
        return self.backend

    def get_k_block_shape(self, block: int, heads: int, width: int, dtype: Any) -> tuple[int, int, int]:
        """backends/attention.py: tokens, heads, numbers."""
        return (block, heads, width)

    get_v_block_shape = get_k_block_shape

    def sizes(self, case: Case) -> tuple[int, int, int]:
        """Bytes of a block, of a state slot, and the blocks of the memory."""
        import torch

        if isinstance(case.kinds[0], Compressed):
            return self.compressed_sizes(case)
        options, tp = dict(case.options), case.tensor_parallel_size
        attention = next(kind for kind in case.kinds if not isinstance(kind, State))
        latent = isinstance(attention, Latent)
        heads = 1 if isinstance(attention, Latent) else attention.num_kv_heads  # type: ignore[attr-defined]
        heads = tp if tp > heads else heads  # configurations/builder.py:63
        key = attention.rank + attention.rope_dim if isinstance(attention, Latent) else attention.head_dim  # type: ignore[attr-defined]
        indexed = bool(getattr(attention, "indexer_dim", 0))
        model = SimpleNamespace(
            num_layers=sum(not isinstance(kind, State) for kind in case.kinds),
            num_key_value_heads=heads,
            head_dim=key,
            k_head_dim=key,
            v_head_dim=0 if latent else key,
            dtype=torch.bfloat16,
            use_mla_fp8_cache=indexed and options["quant_policy"] == 16,
            mla_kv_cache_dtype="bfloat16" if indexed else None,
            use_standard_kv_cache=True,
            vocab_size=1000,
            mla_index_topk=None,
            state_cache_specs=[],
        )
        cache = self.cache_config(case, [])

        def indexers(context: Any) -> list[Any]:
            shape = self.consts.dsa_packed_indexer_k_cache_shape(context.geometry.kernel_block_size, 128)
            request = self.schema.BlockCacheRequest("index", shape, torch.uint8, per_row_contiguous=True)
            return [request] * model.num_layers if indexed else []

        plan = self.plan.build_block_cache_plan(model, cache, tp, indexers)
        states = [kind for kind in case.kinds if isinstance(kind, State)]
        if states:
            one, count = states[0], len(states)
            conv = (count, one.conv_channels // tp, one.conv_kernel)
            cache.states_shapes = [(conv, torch.bfloat16), ((count, one.recurrent_elements // tp), torch.bfloat16)]
            slot = self.state.StateCacheEngine.get_state_slot_nbytes(cache.states_shapes)
        else:
            slot = 0
        size = plan.logical_block_nbytes
        # _get_runtime_size with a whole chunk: logits, and 512 MiB of scores (envs.py, dsa_indexer_max_logits_mb).
        return size, slot, self.blocks(case, cache, model, size, slot, indexed * 512 * 2**20)

    def compressed_sizes(self, case: Case) -> tuple[int, int, int]:
        """The same of DeepSeek V4: the states of its configuration, and what its compressors ask for."""
        import torch

        names = {None: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
        kinds = [kind for kind in case.kinds if isinstance(kind, Compressed)]
        config = SimpleNamespace(
            num_hidden_layers=len(kinds),
            layer_types=[names[kind.ratio] for kind in kinds],
            compress_rates={names[4]: 4, names[128]: 128},
            hidden_size=1,
            num_attention_heads=1,
            eos_token_id=0,
            sliding_window=kinds[0].window,
            vocab_size=1000,
            head_dim=512,
            index_head_dim=128,
        )
        model = self.v4.DeepseekV4ModelConfigBuilder.build(config)
        cache = self.cache_config(case, model.states_shapes)
        self.v4.update_cache_config(cache)
        asked, request = self.consts, partial(self.schema.BlockCacheRequest, per_row_contiguous=True)

        def compressors(context: Any) -> list[Any]:
            found, block = [], context.geometry.kernel_block_size
            for kind in kinds:
                if kind.ratio:  # backends/cuda/v4_compressor.py:73
                    shape = (block // kind.ratio, asked.V4_PACKED_TOKEN_DIM)
                    found.append(request(f"entries {kind.ratio}", shape, torch.float8_e4m3fn))
                if kind.indexer_dim:
                    shape = asked.v4_packed_index_cache_shape(block // 4, kind.indexer_dim)
                    found.append(request("index", shape, torch.uint8))
            return found

        size = self.plan.build_block_cache_plan(model, cache, 1, compressors).logical_block_nbytes
        slot = self.state.StateCacheEngine.get_state_slot_nbytes(model.states_shapes, model.state_cache_specs)
        return size, slot, self.blocks(case, cache, model, size, slot, 0)

    def cache_config(self, case: Case, states_shapes: list[Any]) -> Any:
        """Its CacheConfig, as far as the plans read it."""
        options = dict(case.options)
        return SimpleNamespace(
            block_size=options["cache_block_seq_len"],
            kernel_block_size=options["cache_block_seq_len"],
            quant_policy=self.policy(options["quant_policy"]),
            max_prefill_token_num=8192,
            max_batches=options["max_batch_size"],
            cache_max_entry_count=options["cache_max_entry_count"],
            num_state_caches=None,
            prefix_cache_state_budget=0,
            num_gpu_blocks=0,
            states_shapes=states_shapes,
        )

    def blocks(self, case: Case, cache: Any, model: Any, size: int, slot: int, scores: int) -> int:
        """The blocks of the memory, as the executor counts them."""
        executor = SimpleNamespace(
            cache_config=cache, model_config=model, misc_config=SimpleNamespace(memdecode_config=None)
        )
        executor._get_rank_cache_block_sizes = self.executor._get_rank_cache_block_sizes
        executor._get_min_num_gpu_blocks = self.executor._get_min_num_gpu_blocks
        executor._get_num_gpu_blocks = self.executor._get_num_gpu_blocks
        options = dict(case.options)
        free = case.memory - slot * (options["max_batch_size"] + 2)
        free -= (8192 + 2 * options["max_batch_size"]) * 1000 * 2 + scores
        self.executor._update_num_gpu_blocks(executor, [free], [SimpleNamespace(total=size)], None)
        blocks: int = cache.num_gpu_blocks
        return blocks


def ours(case: Case, *, fault: bool) -> tuple[int, int, int]:
    """The same of kvcalc."""
    layers, order = distinct_layers([Layer(cache=kind) for kind in case.kinds])
    model = Architecture("random", case.model_type, layers, order, hidden_size=1, vocab_size=1000)
    setup = Setup(model, LMDeploy(**dict(case.options)), *parse_kv_dtypes("bfloat16"), case.tensor_parallel_size)
    plan = setup.plan
    assert isinstance(plan, LMDeployPlan)
    blocks = plan.report(1, 1, case.memory)["num_gpu_blocks"]
    return plan.block_bytes + fault, plan.slot_bytes, blocks


def compared(theirs: Theirs, fault: bool, case: Case, counts: Counter[str], reasons: Counter[str]) -> None:
    """Ask both, and count how it ended."""
    try:
        wanted: Any = theirs.sizes(case)
    except (AssertionError, RuntimeError) as error:
        wanted = error
    try:
        found: Any = ours(case, fault=fault)
    except KVCalcError as error:
        found = error
    refused = isinstance(wanted, Exception), isinstance(found, Exception)
    # A memory of two blocks or fewer is no start of LMDeploy's, and a figure of ours.
    few = not refused[1] and found[2] <= 2
    if all(refused) or (refused[0] and few):
        counts["refused by both"] += 1
    elif refused[0]:
        counts["refused by lmdeploy alone"] += 1
        reasons[f"lmdeploy: {shape_of(wanted)}"] += 1
    elif refused[1]:
        counts["refused by kvcalc alone"] += 1
        reasons[f"kvcalc: {shape_of(found)}"] += 1
    elif wanted != found:
        raise Different(f"lmdeploy {wanted}\nkvcalc   {found}")
    else:
        counts["equal"] += 1


def main() -> int:
    """Run the cases and print the counts; 1 where a case differs or one side alone refuses."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("source", type=Path, help="the folder that holds lmdeploy/")
    add_options(arguments, cases=2000, fault="make kvcalc's blocks a byte too wide")
    asked_for = arguments.parse_args()
    ask_both = partial(compared, Theirs(asked_for.source), asked_for.fault)
    say(f"lmdeploy 0.18.0, seed {asked_for.seed}")
    outcome = run(cases(), ask_both, asked_for.cases, asked_for.seed)
    alone = ("refused by kvcalc alone", "refused by lmdeploy alone")
    code = table(outcome, ("cases", "equal", "refused by both", *alone))
    return 1 if any(outcome.counts[name] for name in alone) else code


if __name__ == "__main__":
    sys.exit(main())
