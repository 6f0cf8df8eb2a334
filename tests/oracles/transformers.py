"""transformers' own classes beside kvcalc: what a cache keeps alive after each forward, for models of every type.

Each case is a model type with a random configuration, built on the meta device: no memory and no GPU, but every shape,
stride and storage as it is. A prompt is fed in chunks, and one token more; after each forward the storages behind the
cached tensors are added up. Quantised caches need values: those are driven on the CPU, without a model.

On a bare machine, in this repository::

    $ pip install . hypothesis torch==2.13.0 transformers==5.24.0 optimum-quanto==0.2.7
    $ pip install --no-deps hqq==0.2.8.post1 termcolor tqdm
    $ python tests/oracles/transformers.py
    python tests/oracles/transformers.py 100 --types qwen3_next,gemma3n_text --seed 7

``python tests/oracles/transformers.py --record FILE`` asks for the rows of tests/data/transformers.json anew.

The last lines are the counts; where the two differ, the smallest case that differs stands above them. ``--fault`` makes
one of kvcalc's slots a byte too wide, which has to be found.
"""

# ruff: noqa: E402 - imports after the path is mended; configurations that a class refuses are drawn again
from __future__ import annotations

import argparse
import inspect
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [each for each in sys.path if str(Path(each).resolve()) != HERE]  # this file has the package's name
warnings.filterwarnings("ignore")

import torch
import transformers
from hypothesis import strategies as st

sys.path += [str(Path(HERE).parent), HERE]

from comparison import Different, add_options, run, say, shape_of, table, write_rows
from configs import read
from parameters import BY_DEFINITION, KNOBS, build, plain, reads_an_encoder, types
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from kvcalc import read_config
from kvcalc.architecture import Latent
from kvcalc.engines.transformers.plan import Part
from kvcalc.errors import KVCalcError
from kvcalc.setup import prepare

#: Small numbers for what a class has a large default of; a case draws some of KNOBS beside them.
SMALL: dict[str, Any] = {
    "num_hidden_layers": 4,
    "n_layer": 3,
    "decoder_layers": 2,
    "encoder_layers": 1,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "vocab_size": 512,
    "pad_token_id": 0,
    "o_groups": 2,
}
#: Numbers of layers of each model type that has to have several kinds among them.
LAYERS = (2, 4, 5, 8, 9)
#: Text models inside of wrappers that no mapping of transformers names by itself.
INNER = {"minimax_m3_vl_text": "MiniMaxM3VLForCausalLM"}
#: Types whose caches are driven without a model, and those caches.
QUANTIZED, OFFLOADED = ("llama", "qwen3", "deepseek_v3"), ("llama", "gemma3_text", "mistral", "gpt_oss", "deepseek_v3")
DRIVEN = ("quantized", "offloaded", "offloaded_static")


@dataclass(frozen=True)
class Case:
    """A model, and a prompt fed in chunks."""

    model_type: str
    changes: tuple[tuple[str, Any], ...]
    cache: str
    dtype: str
    batch_size: int
    context: int
    chunk: int | None
    encoder_tokens: int
    quantized: tuple[tuple[str, Any], ...] = ()

    def config(self) -> Any:
        """The configuration, as its class makes it.

        Raises:
            Exception: whatever the class raises.
        """
        stated = defaults(self.model_type)
        given = {key: value for key, value in SMALL.items() if key in stated} | dict(self.changes)
        if "kv_lora_rank" in stated:  # every query head has keys of its own
            given["num_key_value_heads"] = given.get("num_attention_heads", SMALL["num_attention_heads"])
        return CONFIG_MAPPING[self.model_type](**given)

    def chunks(self, tokens: int) -> list[int]:
        """Tokens of each forward of a prefill."""
        size = self.chunk or tokens or 1
        return [min(size, tokens - start) for start in range(0, tokens, size)]


@cache
def defaults(model_type: str) -> dict[str, Any]:
    """What the default configuration of a type states; nothing where there is none."""
    try:
        stated: dict[str, Any] = CONFIG_MAPPING[model_type]().to_dict()
    except Exception:
        return {}
    return stated


def tensors(kept: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """Every tensor that an object refers to: a cache, its layers, their dictionaries of states."""
    if id(kept) in seen:
        return
    seen.add(id(kept))
    if hasattr(kept, "__tensor_flatten__") and type(kept) is not torch.Tensor:  # quanto's: a wrapper around others
        yield from (each for name in kept.__tensor_flatten__()[0] for each in tensors(getattr(kept, name), seen))
    elif isinstance(kept, torch.Tensor):
        yield kept
    elif isinstance(kept, dict):
        for each in kept.values():
            yield from tensors(each, seen)
    elif isinstance(kept, list | tuple):
        for each in kept:
            yield from tensors(each, seen)
    elif type(kept).__module__.startswith(("transformers", "optimum")) and hasattr(kept, "__dict__"):
        yield from tensors(vars(kept), seen)


def held(cache: Any) -> tuple[int, int]:
    """Bytes of the storages behind a cache's tensors, and of the tensors' own shapes; counters are no cache."""
    if isinstance(cache, Offloading):
        return cache.most, cache.most
    kept = [each for each in tensors(cache, set()) if each.dtype != torch.long]
    storages = {each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in kept}
    return sum(storages.values()), sum(each.numel() * each.element_size() for each in kept)


@torch.inference_mode()
def asked(case: Case) -> dict[str, int]:
    """What transformers keeps: the most after a chunk, after the last one by shapes, and after a decode step.

    Raises:
        Exception: the class cannot be built, run or cached so.
    """
    feed = {"quantized": quantizing, "offloaded": offloading, "offloaded_static": offloading}.get(case.cache, running)(
        case
    )

    def after(chunks: list[int]) -> list[tuple[int, int]]:
        kept: Any = None
        sizes = []
        for count in chunks:
            kept = feed(kept, count)
            sizes.append(held(kept))
        return sizes

    prefill = after(case.chunks(case.context))
    answer = {"bytes": max(size for size, _ in prefill), "logical_bytes": prefill[-1][1]}
    if case.cache == "static":
        return {**answer, "steady_bytes": answer["bytes"]}
    answer["steady_bytes"] = after([*case.chunks(case.context - 1), 1])[-1][0]
    if case.cache in DRIVEN:  # a decode step may hold more than the prefill did
        answer["bytes"] = max(answer["bytes"], answer["steady_bytes"])
        del answer["logical_bytes"]
    return answer


def running(case: Case) -> Callable[[Any, int], Any]:
    """A forward of the model on the meta device: a cache (None: a new one) and tokens to what the cache becomes."""
    config = case.config()
    torch.set_default_dtype(getattr(torch, case.dtype))
    try:
        model = build(CLASSES[case.model_type], config)
    finally:
        torch.set_default_dtype(torch.float32)
    for part in (config, config.get_text_config(decoder=True)):
        part._attn_implementation = "eager"
        part._experts_implementation = "batched_mm"
    seq2seq = reads_an_encoder(plain(config.to_dict()))
    name = next(name for name in ("cache", "past_key_values", "cache_params") if name in parameters_of(model))

    def new_cache() -> Any:
        if case.cache == "dynamic":  # the model makes its own, as generate() does; RecurrentGemma would not return it
            return transformers.DynamicCache(config=config) if case.model_type == "recurrent_gemma" else None
        made = [
            transformers.StaticCache(config=config, max_cache_len=tokens)
            if case.cache == "static"
            else transformers.DynamicCache()
            for tokens in (case.context, case.encoder_tokens)[: 1 + seq2seq]
        ]
        return transformers.EncoderDecoderCache(*made) if seq2seq else made[0]

    def feed(kept: Any, count: int) -> Any:
        ids = torch.ones((case.batch_size, count), dtype=torch.long, device="meta")
        encoder_ids = torch.ones((case.batch_size, case.encoder_tokens), dtype=torch.long, device="meta")
        texts = {"input_ids": encoder_ids, "decoder_input_ids": ids} if seq2seq else {"input_ids": ids}
        given = new_cache() if kept is None else kept
        output = model(**texts, **{name: given}, use_cache=True)
        return getattr(output, name, given)

    return feed


def parameters_of(model: Any) -> Mapping[str, Any]:
    """What a model's forward takes, its deprecated names left out."""
    return inspect.signature(inspect.unwrap(model.forward)).parameters


def shapes_of(kind: Any, count: int) -> tuple[tuple[int, int, int], ...]:
    """K and V of so many tokens of one sequence."""
    if isinstance(kind, Latent):
        return (1, count, kind.rank), (1, count, kind.rope_dim)
    return (kind.num_kv_heads, count, kind.head_dim), (kind.num_kv_heads, count, kind.v_head_dim)


def quantizing(case: Case) -> Callable[[Any, int], Any]:
    """Random K and V of every layer into a QuantizedCache on the CPU: it looks at their values."""
    config = case.config()
    kinds = [layer.cache for layer in read_config(plain(config.to_dict())).layers]
    options = {
        name: value for name, value in case.quantized if name == "backend" or dict(case.quantized)["backend"] != "fp8"
    }

    def feed(kept: Any, count: int) -> Any:
        filled = transformers.QuantizedCache(config=config, **options) if kept is None else kept
        for at in range(config.num_hidden_layers):
            shapes = shapes_of(kinds[min(at, len(kinds) - 1)], count)
            keys, values = (torch.randn(case.batch_size, *shape).to(getattr(torch, case.dtype)) for shape in shapes)
            filled.update(keys, values, at)
        return filled

    return feed


class Offloading:
    """A cache whose host is imagined: what a layer sends there is copied and marked, so that it can run anywhere."""

    def __init__(self, cache: Any) -> None:
        self.cache, self.most = cache, 0
        cache.offloading, cache.only_non_sliding = True, isinstance(cache, transformers.StaticCache)
        cache.prefetch_stream = MagicMock()
        for layer in cache.layers:
            layer.on_host = False
            layer.offload, layer.prefetch = partial(self.move, layer, True), partial(self.move, layer, False)

    def move(self, layer: Any, to_host: bool) -> None:
        """Copy K and V of a layer that has some, and note what the device holds before they go."""
        if to_host:
            layers = [each for each in self.cache.layers if not each.on_host]
            self.most = max(self.most, held([tensors_of(each) for each in layers])[0])
        if layer.is_initialized and layer.on_host != to_host:
            layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
            layer.on_host = to_host


def tensors_of(layer: Any) -> list[torch.Tensor]:
    return [layer.keys, layer.values] if layer.is_initialized else []


def offloading(case: Case) -> Callable[[Any, int], Any]:
    """K and V without values of every layer into an offloaded cache, whose own code decides which layers move when."""
    config = case.config()
    model = read_config(plain(config.to_dict()))
    kinds = [model.layers[at].cache for at in model.order]

    def feed(kept: Any, count: int) -> Any:
        if kept is None:
            static = transformers.StaticCache(config=config, max_cache_len=case.context)
            kept = Offloading(static if case.cache == "offloaded_static" else transformers.DynamicCache(config=config))
        kept.most = 0 if case.cache == "offloaded" else kept.most
        with patch("torch.cuda.default_stream", MagicMock()):
            for at, kind in enumerate(kinds):
                shapes = shapes_of(kind, count)
                keys, values = (
                    torch.empty(case.batch_size, *each, dtype=getattr(torch, case.dtype), device="meta")
                    for each in shapes
                )
                kept.cache.update(keys, values, at)
        return kept

    return feed


@torch.inference_mode()
def recorded(file: Mapping[str, Any], cache_class: str, held_after: str, tokens: int, batch_size: int) -> list[int]:
    """Bytes of a published model's cache by its tensors' shapes, and of the storage behind them."""
    text = {**file, **file.get("text_config", {})}
    usual = {key: value for key, value in defaults(text["model_type"]).items() if key in SMALL}
    changes = tuple((usual | {key: value for key, value in text.items() if key != "text_config"}).items())
    case = Case(text["model_type"], changes, cache_class, "bfloat16", batch_size, tokens, None, 0)
    feed, kept = running(case), None
    for count in (tokens - 1, 1) if held_after == "decode" else (tokens,):
        kept = feed(kept, count)
    storage, logical = held(kept)
    return [logical, storage]


def record(path: Path) -> None:
    """Write tests/data/transformers.json with what the installed version answers to the rows of its models."""
    data, files = read("transformers.json"), read("configs.json")
    rows = [[*row[:5], *recorded(files[row[0]], *row[1:5])] for row in data["rows"]]
    write_rows(path, data | {"transformers": transformers.__version__, "rows": rows})


def told(case: Case) -> dict[str, int]:
    """The same of kvcalc.

    Raises:
        KVCalcError: it refuses the configuration, or the cache.
    """
    file = plain(case.config().to_dict())
    options = {"cache": case.cache, "prefill_chunk": case.chunk, "version": transformers.__version__}
    setup = prepare(
        read_config(file),
        engine="transformers",
        engine_options={name: value for name, value in (*options.items(), *case.quantized) if value is not None},
        kv_cache_dtype=case.dtype,
        encoder_tokens=case.encoder_tokens if reads_an_encoder(file) else 0,
    )
    cache = setup.plan.allocate(case.context, case.batch_size)
    answer = {"bytes": cache.bytes, "steady_bytes": cache.steady_bytes}
    if case.cache not in DRIVEN:
        answer["logical_bytes"] = setup.plan.report(case.context, case.batch_size, 0)["logical_bytes"]
    return answer


# ---- random cases -----------------------------------------------------------------------------------------------

#: The types whose configuration states the text model itself, and the class of each; parameters.py says which differ
#: by definition (CPM-Ant adds 32 learned tokens to every prompt).
CLASSES = {
    name: class_name
    for name, class_name in sorted((types() | INNER).items())
    if name in CONFIG_MAPPING and name not in BY_DEFINITION and defaults(name) and "text_config" not in defaults(name)
}


@st.composite
def cases(draw: Callable[..., Any], names: tuple[str, ...]) -> Case:
    """A case of one of these model types."""
    model_type = draw(st.sampled_from(names))
    cache_class = draw(st.sampled_from(["dynamic", "dynamic", "dynamic", "static", "dynamic_unconfigured"]))
    if model_type in QUANTIZED and draw(st.booleans()):
        cache_class = "quantized"
    elif model_type in OFFLOADED and draw(st.booleans()):
        cache_class = draw(st.sampled_from(["offloaded", "offloaded", "offloaded_static"]))
    stated = defaults(model_type)
    knobs = [key for key in KNOBS if key in stated and key not in ("num_hidden_layers", "vocab_size")]
    chosen = draw(st.lists(st.sampled_from(knobs), max_size=3, unique=True)) if knobs else []
    changes = {key: draw(st.sampled_from(KNOBS[key])) for key in chosen}
    if "num_hidden_layers" in stated:
        changes["num_hidden_layers"] = draw(st.sampled_from(LAYERS))
    if cache_class == "quantized":
        changes["num_hidden_layers"] = draw(st.sampled_from([1, 2]))
    backend = draw(st.sampled_from(["quanto", "hqq", "fp8"]))
    quantized = {
        "backend": backend,
        "nbits": draw(st.sampled_from([2, 4] if backend == "quanto" else [1, 2, 3, 4, 8])),
        "q_group_size": draw(st.sampled_from([16, 32, 64])),
        "residual_length": draw(st.sampled_from([1, 5, 128])),
    }
    # A forward a token takes its time: short prompts for those.
    chunk = draw(st.sampled_from([None, None, None, 1, 5, 16, 50, 128]))
    lengths = [1, 2, 7, 16] if chunk in (1, 5) else [1, 2, 7, 16, 40, 129, 300]
    return Case(
        model_type,
        tuple(sorted(changes.items())),
        cache_class,
        draw(st.sampled_from(["bfloat16", "bfloat16", "float16", "float32"])),
        draw(st.sampled_from([1, 1, 2, 3])),
        draw(st.sampled_from(lengths)),
        chunk,
        draw(st.sampled_from([1, 9])),
        tuple(quantized.items()) if cache_class == "quantized" else (),
    )


def compared(case: Case, counts: Counter[str], reasons: Counter[str]) -> None:
    """Ask both, and count how it ended."""
    if counts["cases"] % 100 == 0:
        say(f"  {counts['cases']:,} cases, {counts['equal']:,} equal")
    try:
        ours: dict[str, int] | Exception = told(case)
    except KVCalcError as error:
        ours = error
    except Exception:
        counts["no such configuration"] += 1
        return
    try:
        theirs: dict[str, int] | Exception = asked(case)
    except Exception as error:
        theirs = error
    if isinstance(ours, Exception) or isinstance(theirs, Exception):
        refused = ("kvcalc", ours) if isinstance(ours, Exception) else ("transformers", theirs)
        both = isinstance(ours, Exception) and isinstance(theirs, Exception)
        counts["refused by both" if both else f"refused by {refused[0]} alone"] += 1
        if not both:
            reasons[f"{refused[0]}: {case.model_type}, {case.cache}: {shape_of(refused[1])}"] += 1
    elif ours != theirs:
        raise Different(f"transformers {theirs}\nkvcalc {ours}")
    else:
        counts["equal"] += 1
        counts[f"equal, {case.cache}"] += 1


def main() -> int:
    """Run the cases and print the counts."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(arguments, cases=2000, fault="make a slot of kvcalc's a byte too wide")
    arguments.add_argument("--types", default="", help="model types with commas between them (default: all)")
    arguments.add_argument("--record", type=Path, help="write the rows of transformers.json here, and compare nothing")
    asked_for = arguments.parse_args()
    torch.set_num_threads(1)
    if asked_for.record is not None:
        record(asked_for.record)
        return 0
    if asked_for.fault:
        right = Part.__init__
        Part.__init__ = lambda self, slots, slot_bytes, *rest, **more: right(self, slots, slot_bytes + 1, *rest, **more)  # type: ignore[method-assign]
    names = tuple(asked_for.types.split(",")) if asked_for.types else tuple(CLASSES)
    say(
        f"transformers {transformers.__version__}, torch {torch.__version__}, {len(names)} types, seed {asked_for.seed}"
    )
    outcome = run(cases(names), compared, asked_for.cases, asked_for.seed)
    rows = ["cases", "no such configuration", *sorted(name for name in outcome.counts if name.startswith("equal"))]
    rows += ["refused by both", "refused by kvcalc alone", "refused by transformers alone"]
    return table(outcome, rows)


if __name__ == "__main__":
    sys.exit(main())
