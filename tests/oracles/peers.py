"""Other calculators beside kvcalc: the KV cache of published configurations, and the time of an answer, in one run.

On a bare machine, in this repository; what is not installed has no column::

    python3 -m venv peers && peers/bin/pip install . hf-mem==0.5.6 kvfit==0.3.0 ridgepoint==0.1.2 vramcalc==0.1.2 \
        do-i-have-the-vram==0.1.0
    peers/bin/python tests/oracles/peers.py

One sequence, two bytes a number, from the ``config.json`` of the model's repository as ``tests/data/configs.json`` has
it. Each calculator is asked through the function that its own command line calls, with the table of the text model
where it knows no other; nothing is downloaded. hf-vram-calc, llm-sizer and llm-mem-planner are not asked: they know
models by name, load transformers, or know DeepSeek alone. The last column is what the report's accounting gives.
"""

# ruff: noqa: T201 - a script that prints its tables
from __future__ import annotations

import argparse
import json
import sys
import timeit
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from configs import read

import kvcalc

Config = dict[str, Any]
Answer = Callable[[Config, int], float]
MODELS = (
    "llama-3.1-8b",
    "mistral-7b-v0.1",
    "gemma-2-9b",
    "gemma-3-27b",
    "gemma-4-31b",
    "gpt-oss-20b",
    "deepseek-v3",
    "llama-4-scout",
    "qwen3-next-80b-a3b",
    "jamba-v0.1",
)


def text_of(config: Config) -> Config:
    """The table of the language model."""
    table: Config = config.get("text_config", config)
    return table


def hf_mem() -> Answer:
    from hf_mem.safetensors.kv_cache import compute_safetensors_kv_cache_size

    return lambda config, tokens: int(compute_safetensors_kv_cache_size(text_of(config), "BF16", tokens))


def kvfit() -> Answer:
    from kvfit.architectures import estimate_cache

    return lambda config, tokens: float(estimate_cache(config, context_tokens=tokens).total_bytes)


def ridgepoint() -> Answer:
    import ridgepoint
    from ridgepoint import hf

    def answer(config: Config, tokens: int) -> float:
        hf._download_json = lambda _, name, __: config if name == "config.json" else {}
        found = json.loads(ridgepoint.fit("org/model", "h100-80gb", count=8, ctx=tokens, as_json=True))
        return int(found["capacity"]["bytes_per_seq"])

    return answer


def vramcalc() -> Answer:
    from vramcalc.arch import Arch
    from vramcalc.memory import kv_cache

    return lambda config, tokens: int(kv_cache(Arch.from_config(text_of(config)), 1, tokens, 2))


def do_i_have_the_vram() -> Answer:
    from do_i_have_the_vram.memory_model import calculate_kv_cache_bytes

    return lambda config, tokens: float(calculate_kv_cache_bytes(text_of(config), tokens))


def own() -> Answer:
    return lambda config, tokens: kvcalc.kv_cache_bytes(kvcalc.read_config(config), context=tokens)


PEERS: dict[str, Callable[[], Answer]] = {
    "hf-mem": hf_mem,
    "kvfit": kvfit,
    "ridgepoint": ridgepoint,
    "vramcalc": vramcalc,
    "do-i-have-the-vram": do_i_have_the_vram,
    "kvcalc": own,
}


def installed() -> dict[str, Answer]:
    """The calculators that are here, by name and version; kvcalc comes last."""
    found = {}
    for name, peer in PEERS.items():
        try:
            found[f"{name} {version(name)}"] = peer()
        except (PackageNotFoundError, ImportError) as error:
            print(f"{name} is not here: {error}")
    return found


def said(answer: Answer, config: Config, tokens: int, right: float) -> str:
    """What a calculator says, with the ratio to the report's bytes; or that it refuses."""
    try:
        size = answer(config, tokens)
    except Exception as error:  # whatever another program raises
        return f"refused ({type(error).__name__})"
    return f"{size:,.0f}" + ("" if size == right else f" (x {size / right:.2f})")


def microseconds(answer: Answer, config: Config, tokens: int) -> float:
    """The best of five rounds, in microseconds an answer."""
    timer = timeit.Timer(lambda: answer(config, tokens))
    number = max(1, timer.autorange()[0] // 4)
    return min(timer.repeat(5, number)) / number * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32768)
    tokens = parser.parse_args().tokens
    configs, peers = read("configs.json"), installed()
    print(f"KV cache in bytes at {tokens:,} tokens, and the ratio to the report's accounting where it is another\n")
    table = [["model", *peers]]
    for name in MODELS:
        right = own()(configs[name], tokens)
        table.append([name, *(said(answer, configs[name], tokens, right) for answer in peers.values())])
    print_table(table)
    print("\nan answer from a configuration, llama-3.1-8b\n")
    config = configs["llama-3.1-8b"]
    costs = {name: microseconds(answer, config, tokens) for name, answer in peers.items()}
    model = kvcalc.load("llama-3.1-8b")
    costs["kvcalc, of a model that is loaded"] = microseconds(
        lambda _, context: kvcalc.kv_cache_bytes(model, context=context), config, tokens
    )
    base = costs[f"kvcalc {version('kvcalc')}"]
    print_table(
        [["", "us", "/ kvcalc"], *([name, f"{cost:.2f}", f"{cost / base:.4f}"] for name, cost in costs.items())]
    )


def print_table(rows: list[list[str]]) -> None:
    """Columns as wide as their longest cell, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        print(first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)))


if __name__ == "__main__":
    main()
