"""How far the memory of a device is off: recorded start-ups and allocators beside kvcalc, as a table of errors.

Needs nothing but this repository::

    python tests/oracles/device_memory.py
    python tests/oracles/device_memory.py --rows      # every record with its error

The errors are absolute, in GiB; beside them stand those of two rules of thumb for the same records: no reserve at all,
and a tenth of the device.
"""

# ruff: noqa: E402, T201 - a script that prints its table; paths come first

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "conformance")]

from startups import STARTUPS, predicted
from test_llama_cpp_compute import ON_A_DEVICE, computed
from test_llama_cpp_compute import ROWS as BUFFERS
from test_llama_cpp_compute import predicted as on_device
from test_transformers_memory import ROWS as PEAKS
from test_transformers_memory import predicted as peak_of

from kvcalc.sources.devices import load_device
from kvcalc.units import GiB, MiB


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", action="store_true", help="every record with its error")
    shows_rows = parser.parse_args().rows
    print(f"{'what':56} {'n':>4} {'median':>8} {'90th':>8} {'most':>8} {'no reserve':>11} {'a tenth':>8}")
    text, seeing = ([row for row in STARTUPS if row["sees"] is sees] for sees in (False, True))
    _vllm("vLLM, activations, text", text, "activation_gib", lambda row: predicted(row).activation_bytes, shows_rows)
    _vllm(
        "vLLM, activations, images", seeing, "activation_gib", lambda row: predicted(row).activation_bytes, shows_rows
    )
    _vllm("vLLM, non-torch", STARTUPS, "non_torch_gib", lambda row: predicted(row).runtime_bytes, shows_rows)
    _vllm("vLLM, CUDA graphs", STARTUPS, "cuda_graph_gib", lambda row: predicted(row).graph_bytes, shows_rows)
    _available("vLLM, Available KV cache memory, text", text, shows_rows)
    _available("vLLM, Available KV cache memory, images", seeing, shows_rows)
    caches: dict[Any, Any] = {}
    for build in ("b11739", "0c1e57098"):
        for outputs in (0, 1):
            rows = [row for row in BUFFERS if (row["build"], row["all_outputs"]) == (build, outputs)]
            errors = [abs(computed(row, caches) - row["compute_mib"] * MiB) / GiB for row in rows]
            held = [row["compute_mib"] * MiB / GiB for row in rows]
            _line(f"llama.cpp {build}, compute buffer, {'all' if outputs else 'a slot of'} outputs", errors, held)
    for build in ("b11739", "0c1e57098"):
        for cache in ("f16", "q8_0"):
            rows = [
                row for row in ON_A_DEVICE if (row["version"], row["type_k"], row["flash_attn"]) == (build, cache, 1)
            ]
            errors = [abs(on_device(row).activation_bytes - row["device"]) / GiB for row in rows]
            _line(f"llama.cpp {build} on a device, {cache} cache", errors, [row["device"] / GiB for row in rows])
    errors = [abs(peak_of(row) - row["working_bytes"]) / GiB for row in PEAKS]
    _line("transformers, peak of a prefill", errors, [row["working_bytes"] / GiB for row in PEAKS])


def _vllm(
    what: str, rows: list[dict[str, Any]], figure: str, size: Callable[[dict[str, Any]], int], shows_rows: bool
) -> None:
    printed = [row for row in rows if row[figure] is not None]
    errors = [size(row) / GiB - row[figure] for row in printed]
    _line(what, errors, [row[figure] for row in printed])
    if shows_rows:
        _each(printed, errors)


def _available(what: str, rows: list[dict[str, Any]], shows_rows: bool) -> None:
    """Requested memory less weights as printed and the predicted rest, beside what was printed."""
    known = [row for row in rows if row["weights_gib"] and None not in (row["requested_gib"], row["available_gib"])]
    none = [row["requested_gib"] - row["weights_gib"] - row["available_gib"] for row in known]
    errors = [left - predicted(row).share_bytes / GiB for row, left in zip(known, none, strict=True)]
    tenths = [
        left - (load_device(row["device"]).memory_bytes / GiB / 10 if row["device"] else 0)
        for row, left in zip(known, none, strict=True)
    ]
    _line(what, errors, none, tenths)
    if shows_rows:
        _each(known, errors)


def _each(rows: list[dict[str, Any]], errors: list[float]) -> None:
    for row, error in sorted(zip(rows, errors, strict=True), key=lambda each: -abs(each[1])):
        print(f"    {error:+8.3f}  {row['version']:8} {row['model']}, tp {row['tp']}")


def _line(what: str, errors: Iterable[float], none: Iterable[float], tenths: Iterable[float] = ()) -> None:
    sizes = sorted(abs(error) for error in errors)
    beside = [f"{median(map(abs, each)):11.2f}" for each in (list(none), list(tenths)) if each]
    ninth = sizes[-(-9 * len(sizes) // 10) - 1]  # the nearest rank: of 40 the 36th
    print(f"{what:56} {len(sizes):4} {median(sizes):8.3f} {ninth:8.3f} {sizes[-1]:8.3f} {' '.join(beside)}")


if __name__ == "__main__":
    main()
