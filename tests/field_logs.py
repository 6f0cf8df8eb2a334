"""Figures that engines printed, as log lines with the shapes of their models."""

import json
from pathlib import Path

from kvcalc.architecture import Architecture, Full, Latent, Layer, Sliding, State
from kvcalc.logs.base import Given

DATA = json.loads((Path(__file__).parent / "data" / "field_logs.json").read_text(encoding="utf-8"))
LOGS = {each["id"]: each for each in DATA["logs"]}


def cache(kind, *sizes):
    match kind:
        case "full":
            heads, dim = sizes
            return Full(num_kv_heads=heads, head_dim=dim, v_head_dim=dim)
        case "sliding":
            heads, dim, window = sizes
            return Sliding(window=window, num_kv_heads=heads, head_dim=dim, v_head_dim=dim)
        case "state":
            recurrent, dtype, channels, kernel = sizes
            return State(recurrent, dtype, conv_channels=channels, conv_kernel=kernel)
        case "latent":
            rank, rope, heads, nope, value = sizes
            return Latent(rank=rank, rope_dim=rope, num_heads=heads, nope_dim=nope, v_head_dim=value)


def architecture(name):
    """The model of a log, from the shape that its engine printed or its publisher states."""
    model = DATA["models"][name]
    layers = tuple(Layer(cache=cache(kind, *sizes)) for kind, _, *sizes in model["layers"])
    order = tuple(index for index, (_, count, *_) in enumerate(model["layers"]) for _ in range(count))
    return Architecture(
        name=name, model_type=model["model_type"], layers=layers, order=order, hidden_size=1, vocab_size=0
    )


def given(row):
    return Given(**row.get("given", {}))
