"""Evaluations a second of the cost model, as ratios within one run.

    python tests/tools/throughput.py

Compares ``kvcalc.kv_cache_bytes`` and ``kvcalc.footprint`` with a per-layer loop written straight from the definition,
and with hf-mem's ``compute_safetensors_kv_cache_size`` where hf-mem is installed (``pip install hf-mem==0.5.6``); then
``kvcalc.sweep`` with single calls, engine by engine, and a sweep to CSV with a plain loop that writes rows as wide.
"""

# ruff: noqa: T201 - a script that prints its table
from __future__ import annotations

import csv
import io
import timeit
from collections.abc import Callable, Sequence
from functools import partial

import kvcalc
from kvcalc.architecture import Architecture, Sliding
from kvcalc.engines import REGISTRY
from kvcalc.errors import KVCalcError
from kvcalc.footprints import footprint_of
from kvcalc.report.csv import render
from kvcalc.report.document import Document
from kvcalc.setup import prepare

ROUNDS = 7


def microseconds(function: Callable[[], object]) -> float:
    """The best of several rounds, in microseconds a call."""
    timer = timeit.Timer(function)
    number, _ = timer.autorange()
    return min(timer.repeat(ROUNDS, max(1, number // 4))) / max(1, number // 4) * 1e6


def per_layer_loop(windows: list[int | None], heads: int, head_dim: int, context: int) -> int:
    """The definition: K and V of min(context, window) tokens in every layer, two bytes a number."""
    total = 0
    for window in windows:
        tokens = context if window is None else min(context, window)
        total += 2 * heads * head_dim * tokens * 2
    return total


def loop_for(model: Architecture) -> Callable[[int], int]:
    kinds = [model.layers[index].cache for index in model.order]
    windows = [kind.window if isinstance(kind, Sliding) else None for kind in kinds]
    return lambda context: per_layer_loop(windows, kinds[0].num_kv_heads, kinds[0].head_dim, context)


def main() -> None:
    model = kvcalc.load("gemma-3-27b")
    loop = loop_for(model)
    assert loop(32768) == kvcalc.kv_cache_bytes(model, context=32768)
    base = microseconds(lambda: loop(32768))
    rows = [("a loop over 62 layers", base)]
    try:
        from hf_mem.safetensors.kv_cache import compute_safetensors_kv_cache_size
    except ImportError:
        print("hf-mem is not installed: its row is left out")
    else:
        config = {
            "hidden_size": 5376, "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128,
            "num_hidden_layers": 62, "sliding_window": 1024,
            "layer_types": ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(62)],
        }  # fmt: skip
        rows.append(("hf-mem", microseconds(lambda: compute_safetensors_kv_cache_size(config, "BF16", 32768))))
    rows.append(("kv_cache_bytes", microseconds(partial(kvcalc.kv_cache_bytes, model, context=32768))))
    rows.append(("footprint, whole breakdown", microseconds(partial(kvcalc.footprint, model, context=32768))))
    for name in REGISTRY:
        call = partial(kvcalc.kv_cache_bytes, model, context=32768, engine=name)
        rows.append((f"kv_cache_bytes, {name}", microseconds(call)))
    for name, context, batch_size in (("1k tokens", 1024, 1), ("10M tokens", 10**7, 1), ("batch 10,000", 32768, 10**4)):
        call = partial(kvcalc.kv_cache_bytes, model, context=context, batch_size=batch_size)
        rows.append((f"kv_cache_bytes, {name}", microseconds(call)))
    for reference in ("gemma-2b", "llama-3.1-405b", "llama-4-scout", "deepseek-v3", "nemotron-h-56b"):
        try:
            other = kvcalc.load(reference)
        except KVCalcError:
            continue
        call = partial(kvcalc.kv_cache_bytes, other, context=32768)
        rows.append((f"kv_cache_bytes, {other.num_layers} layers ({reference})", microseconds(call)))
    print(f"{'':52}{'us':>8}{'loop / it':>12}")
    for label, cost in rows:
        print(f"{label:52}{cost:8.2f}{base / cost:12.1f}")

    print(f"\n{'a sweep over 1,000 contexts':52}{'us each':>8}{'single / it':>12}")
    contexts = range(64, 64_001, 64)
    for name in REGISTRY:
        single = partial(all_alone, model, contexts, name)
        swept = microseconds(partial(kvcalc.sweep, model, contexts=contexts, engine=name))
        print(f"{name:52}{swept / len(contexts):8.2f}{microseconds(single) / swept:12.1f}")
    ours, plain = microseconds(partial(to_csv, model, contexts)), microseconds(partial(loop_to_csv, model, contexts))
    print(f"\n{'a sweep to CSV, over a loop that writes as much':52}{'':8}{ours / plain:12.1f}")


def all_alone(model: Architecture, contexts: Sequence[int], engine: str) -> list[int]:
    return [kvcalc.kv_cache_bytes(model, context=context, engine=engine) for context in contexts]


def to_csv(model: Architecture, contexts: Sequence[int]) -> str:
    setup = prepare(model)
    records = (footprint_of(setup, context, 1).to_dict() for context in contexts)
    return "".join(render(Document("", (), (), records, "sweep")))


def loop_to_csv(model: Architecture, contexts: Sequence[int]) -> str:
    _, row = csv.reader(to_csv(model, contexts[:1]).splitlines())
    loop, text = loop_for(model), io.StringIO()
    writer = csv.writer(text)
    for context in contexts:
        writer.writerow([context, loop(context), *row[2:]])
    return text.getvalue()


if __name__ == "__main__":
    main()
