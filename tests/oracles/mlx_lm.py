"""mlx-lm's own models beside kvcalc: what their caches hold over a generation, for every published configuration.

Each case is a configuration of tests/data with a few of its numbers changed, and a prompt that is fed as generate_step
feeds it: chunks, the last token, generated ones. MLX is lazy, so nothing is computed: a graph of a model of any size is
built in milliseconds, and its caches have the shapes that they would have.

On a bare machine (Linux or macOS, no GPU), in this repository::

    $ pip install . hypothesis "mlx[cpu]==0.32.4" mlx-lm==0.32.2
    $ python tests/oracles/mlx_lm.py
    python tests/oracles/mlx_lm.py 200 --types gemma3,minimax_m3_vl --seed 7

``python tests/oracles/mlx_lm.py --record FILE`` asks the cache classes for the rows of tests/data/mlx_lm.json anew.

The last lines are the counts; where the two differ, the smallest case that differs stands above them. ``--fault`` makes
one of kvcalc's slots a byte too wide, which has to be found.
"""

# ruff: noqa: E402 - imports after the path is mended
from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [each for each in sys.path if str(Path(each).resolve()) != HERE]  # this file has the package's name
sys.path.insert(0, str(Path(HERE).parent))

import mlx.core as mx
from comparison import Different, add_options, run, say, shape_of, table, write_rows
from configs import read
from hypothesis import strategies as st
from mlx_lm.generate import maybe_quantize_kv_cache
from mlx_lm.models.base import BaseModelArgs
from mlx_lm.models.cache import ChunkedKVCache, KVCache, RotatingKVCache, make_prompt_cache
from mlx_lm.utils import MODEL_REMAPPING, _get_classes

from kvcalc import read_config
from kvcalc.engines.mlx_lm import MlxLm
from kvcalc.errors import KVCalcError
from kvcalc.setup import prepare

#: Numbers that a case may change, where the file has them. No head_dim: several classes divide the hidden size instead,
#: which in a published file is the same.
KNOBS: dict[str, tuple[int, ...]] = {
    "num_key_value_heads": (1, 2, 4),
    "sliding_window": (8, 100, 512),
    "attention_chunk_size": (16, 300),
}


@dataclass(frozen=True)
class Case:
    """A configuration by its name, what is changed of it, a workload and options."""

    name: str
    changes: tuple[tuple[str, int], ...]
    dtype: str
    batch_size: int
    context: int
    options: tuple[tuple[str, int], ...]

    @property
    def file(self) -> dict[str, Any]:
        """The configuration, as a file has it."""
        file = dict(FILES[self.name])
        file.pop("quantization_config", None)
        text = dict(file["text_config"]) if isinstance(file.get("text_config"), dict) else file
        for key, value in self.changes:
            if isinstance(text.get(key), int):
                text[key] = value
        return file if text is file else file | {"text_config": text}


def files() -> dict[str, dict[str, Any]]:
    """Every configuration of tests/data."""
    found = dict(read("configs.json"))
    for name in ("other_configs.json", "unseen_configs.json"):
        found |= {slug: row["config"] for slug, row in read(name).items()}
    return found


FILES = files()
#: Files that mlx-lm's class does not take for what they are, though kvcalc does, and why.
BY_DEFINITION = {
    "embeddinggemma": "an encoder here; the class gives it the cache of a Gemma 3",
    "phi-1.5-msft": "phixtral reads none of its keys, so that the class's defaults would be the model",
    "mistral-large-3": "mistral3 takes a text part of type deepseek_v3 for a Llama",
    "nemotron-nano-9b-v2": "the compact file lacks head_dim, which the published one states",
    "olmo-7b": "mlx_lm.models.olmo ends the process without ai2-olmo",
}


#: What a class asks for and the compact files of tests/data leave out; none of it decides what a cache holds.
USUAL: dict[str, Any] = {
    "index_block_size": 128,
    "index_n_heads": 4,
    "index_topk_blocks": 16,
    "attention_method": "MLA",
    "layer_rope_theta": None,
    "mamba_d_state": 128,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "rotary_dim": 64,
    "scoring_func": "sigmoid",
    "time_step_limit": (0.0, 1.0),
    "topk_method": "noaux_tc",
}
YARN = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 1.0}
YARN |= {"short_factor": [1.0] * 16, "long_factor": [1.0] * 16, "beta_fast": 32, "beta_slow": 1}
BY_TYPE: dict[str, Any] = {"int": 1, "float": 1.0, "bool": False, "str": "silu", "list": (), "dict": {}}


@classmethod  # type: ignore[misc]
def _filled(cls: Any, file: dict[str, Any]) -> Any:
    """The arguments of a class: what the file says, and the usual value of what it leaves out."""
    given: dict[str, Any] = {"rope_theta": USUAL["rope_theta"], **file}
    given.setdefault("num_key_value_heads", given.get("num_attention_heads"))
    given.setdefault("sliding_window_size", given.get("sliding_window"))
    if given.get("model_type") in ("deepseek_v2", "minicpm3"):  # their classes read it whatever it is
        given.setdefault("rope_scaling", YARN)
    known = {each.name: each for each in dataclasses.fields(cls)}
    for name, each in known.items():
        has_default = each.default is not dataclasses.MISSING or each.default_factory is not dataclasses.MISSING
        if given.get(name) is None and (name.startswith("index_") or not has_default):
            kind = str(getattr(each.type, "__name__", each.type)).lower()
            given[name] = USUAL.get(
                name, next((value for start, value in BY_TYPE.items() if kind.startswith(start)), None)
            )
    return cls(**{name: value for name, value in given.items() if name in known})


BaseModelArgs.from_dict = _filled


def runnable(file: dict[str, Any]) -> dict[str, Any]:
    """A file that mlx-lm has a class for: the text of a wrapper stands in its wrapper."""
    name = str(file.get("model_type"))
    if importlib.util.find_spec(f"mlx_lm.models.{MODEL_REMAPPING.get(name, name)}") is None and name.endswith("_text"):
        return {"model_type": name.removesuffix("_text"), "text_config": file}
    return file


def asked(case: Case) -> dict[str, int]:
    """The most that the caches hold after a chunk or a token, and what they hold at the end.

    Raises:
        Exception: there is no class for the model, or it cannot be run so.
    """
    file, options = runnable(case.file), dict(case.options)
    model_class, arguments = _get_classes(file)
    model = model_class(arguments.from_dict(file))
    model.set_dtype(getattr(mx, case.dtype))
    cache = make_prompt_cache(model, options.get("max_kv_size"))
    step = options.get("prefill_step_size", 2048)
    fed = [min(step, case.context - 1 - start) for start in range(0, case.context - 1, step)]
    most = held = 0
    for count in (*fed, *[1] * (1 + options.get("decode_tokens", 1))):
        model(mx.zeros((case.batch_size, count), mx.int32), cache=cache)
        maybe_quantize_kv_cache(
            cache, options.get("quantized_kv_start", 0), options.get("kv_group_size", 64), options.get("kv_bits")
        )
        held = sum(each.nbytes for each in cache)
        most = max(most, held)
    return {"bytes": most, "steady_bytes": held}


def recorded(kind: str, size: int | None, prompt: int, step: int, decode_tokens: int) -> tuple[int | None, int, int]:
    """Slots of a layer with one head of 64 after the prefill (a rotating buffer) and at the end, and its bytes then."""
    makers = {"rotating": partial(RotatingKVCache, max_size=size), "chunked": partial(ChunkedKVCache, size)}
    cache = [makers.get(kind, KVCache)()]
    fed = [min(step, prompt - 1 - start) for start in range(0, prompt - 1, step)]
    slots: list[int] = []
    for count in (*fed, *[1] * (1 + decode_tokens)):
        if kind == "chunked":
            cache[0].maybe_trim_front()
        cache[0].update_and_fetch(*[mx.zeros((1, 1, count, 64), mx.float16)] * 2)
        if kind == "quantized":
            maybe_quantize_kv_cache(cache, 0, 64, size)
        keys = cache[0].keys
        slots.append((keys[0] if isinstance(keys, tuple | list) else keys).shape[2])
    return slots[len(fed) - 1] if kind == "rotating" else None, slots[-1], cache[0].nbytes


def record(path: Path) -> None:
    """Write tests/data/mlx_lm.json with what the installed version answers to its rows."""
    data = read("mlx_lm.json")
    rows = [[*row[:5], *recorded(*row[:5])] for row in data["rows"]]
    write_rows(path, data | {"mlx_lm": version("mlx-lm"), "rows": rows})


def told(case: Case) -> dict[str, int]:
    """The same of kvcalc.

    Raises:
        KVCalcError: it refuses the configuration, or the cache.
    """
    model = read_config(case.file)
    plan = prepare(model, engine="mlx-lm", engine_options=dict(case.options), kv_cache_dtype=case.dtype).plan
    cache = plan.allocate(case.context, case.batch_size)
    return {"bytes": cache.bytes, "steady_bytes": cache.steady_bytes}


# ---- random cases -----------------------------------------------------------------------------------------------


@st.composite
def cases(draw: Callable[..., Any], names: tuple[str, ...]) -> Case:
    """A case of one of these configurations."""
    knobs = draw(st.lists(st.sampled_from(sorted(KNOBS)), max_size=2, unique=True))
    options: dict[str, int] = {}
    if draw(st.booleans()):
        options["prefill_step_size"] = draw(st.sampled_from([1, 7, 64, 100, 192, 256, 300, 512]))
    if draw(st.integers(0, 3)) == 0:
        options["decode_tokens"] = draw(st.sampled_from([0, 2, 20]))
    if draw(st.integers(0, 3)) == 0:
        options["max_kv_size"] = draw(st.sampled_from([5, 64, 256, 300]))
    if draw(st.integers(0, 2)) == 0:
        options["kv_bits"] = draw(st.sampled_from([2, 3, 4, 5, 6, 8]))
        options["kv_group_size"] = draw(st.sampled_from([32, 64, 64, 128]))
        options["quantized_kv_start"] = draw(st.sampled_from([0, 0, 50, 280]))
    # A chunk of one token is a graph a token: short prompts for those.
    longest = 40 if options.get("prefill_step_size", 64) < 64 else 1100
    return Case(
        draw(st.sampled_from(names)),
        tuple((key, draw(st.sampled_from(KNOBS[key]))) for key in sorted(knobs)),
        draw(st.sampled_from(["bfloat16", "bfloat16", "float16", "float32"])),
        draw(st.sampled_from([1, 1, 2, 3])),
        draw(st.integers(1, longest)),
        tuple(options.items()),
    )


def compared(case: Case, counts: Counter[str], reasons: Counter[str]) -> None:
    """Ask both, and count how it ended."""
    try:
        ours: dict[str, int] | KVCalcError = told(case)
    except KVCalcError as error:
        ours = error
    try:
        theirs: dict[str, int] | BaseException = asked(case)
    except (Exception, SystemExit) as error:
        theirs = error
    if isinstance(ours, KVCalcError) or isinstance(theirs, BaseException):
        refused = ("kvcalc", ours) if isinstance(ours, KVCalcError) else ("mlx-lm", theirs)
        both = isinstance(ours, KVCalcError) and isinstance(theirs, BaseException)
        counts["refused by both" if both else f"refused by {refused[0]} alone"] += 1
        if not both:
            reasons[f"{refused[0]}: {case.name}: {shape_of(refused[1])}"] += 1
    elif ours != theirs:
        raise Different(f"mlx-lm {theirs}\nkvcalc {ours}")
    else:
        counts["equal"] += 1


def main() -> int:
    """Run the cases and print the counts."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(arguments, cases=2000, fault="make a slot of kvcalc's a byte too wide")
    arguments.add_argument("--types", default="", help="model types with commas between them (default: all)")
    arguments.add_argument("--record", type=Path, help="write the rows of mlx_lm.json here, and compare nothing")
    asked_for = arguments.parse_args()
    if asked_for.record is not None:
        record(asked_for.record)
        return 0
    if asked_for.fault:
        right = MlxLm._heads
        MlxLm._heads = lambda *given: replace(  # type: ignore[method-assign]
            cost := right(*given),
            token_bytes=cost.token_bytes + 1,
            quantized_token_bytes=cost.quantized_token_bytes + 1,
        )
    wanted = set(asked_for.types.split(",")) if asked_for.types else set()
    names = tuple(
        name
        for name, file in FILES.items()
        if name not in BY_DEFINITION and (not wanted or file.get("model_type") in wanted)
    )
    say(f"mlx-lm {version('mlx-lm')}, mlx {version('mlx')}, {len(names)} configurations, seed {asked_for.seed}")
    outcome = run(cases(names), compared, asked_for.cases, asked_for.seed)
    rows = ("cases", "equal", "refused by both", "refused by kvcalc alone", "refused by mlx-lm alone")
    return table(outcome, rows)


if __name__ == "__main__":
    sys.exit(main())
