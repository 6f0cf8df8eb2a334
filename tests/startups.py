"""Start-ups of vLLM that were recorded, and what kvcalc predicts for each: for the tests and for the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kvcalc.architecture import Architecture, Full, LargestImage, Layer, Tensor
from kvcalc.device import Device
from kvcalc.engines.base import WorkingMemory
from kvcalc.engines.vllm_memory import Step, vllm_working_memory
from kvcalc.sources.devices import load_device
from kvcalc.widths import Widths

_FILE = json.loads((Path(__file__).parent / "data" / "vllm_startups.json").read_text(encoding="utf-8"))
STARTUPS: list[dict[str, Any]] = [dict(zip(_FILE["columns"], row, strict=True)) for row in _FILE["rows"]]
#: A card whose name no log told.
_UNNAMED = Device(name="", title="a card", memory_bytes=1, measured=False, source="none", platform="cuda")


def model(row: dict[str, Any]) -> Architecture:
    """A model with the recorded widths; the rest of it does not matter here."""
    hidden, wide, k, m = row["hidden"], row["intermediate"], row["experts_per_token"], row["expert_intermediate"]
    dense = [Tensor("feed_forward", wide, hidden, role="mlp.gate_proj", linear=True)]
    dense.append(Tensor("feed_forward", hidden, wide, role="mlp.down_proj", linear=True))
    routed = [Tensor("experts", hidden, m, 64, role="mlp.experts.down_proj", linear=True, active=k)]
    # Where both are one number, the file has no dense layers beside its experts.
    rest = (*([] if k and m == wide else dense), *(routed if k else []))
    layer = Layer(Full(8, 128, 128), (), tuple(rest))
    return Architecture(row["model"], "llama", (layer,), (0,) * row["layers"], hidden, row["vocab"])


def predicted(row: dict[str, Any]) -> WorkingMemory:
    """The working memory of a recorded start."""
    step = Step(
        row["max_num_batched_tokens"],
        row["max_num_seqs"],
        row["element_bytes"],
        row["tp"],
        row["pp"],
        takes_graphs=not row["enforce_eager"],
        has_image_encoder=row["sees"],
        image=LargestImage(row["image_tokens"], row["image_numbers"]) if row["image_tokens"] else None,
        quantises_inputs=row["quantises_inputs"],
        experts_in_place="gpt-oss" in row["model"],
    )
    major, minor = (int(part) for part in row["version"].split(".")[:2])
    device = load_device(row["device"]) if row["device"] else _UNNAMED
    return vllm_working_memory((major, minor), Widths(model(row)), step, device)
