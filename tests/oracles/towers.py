"""Encoders of images and sound: the classes of transformers beside kvcalc's rows in ``presets/towers``.

Every model type that has a row is built on the meta device with random sizes of its encoders; what is no part of the
decoder or its head is compared with what kvcalc counts from the same configuration.

On a bare machine, without a GPU, in this repository::

    $ pip install . torch==2.13.0 transformers==5.24.0
    $ python tests/oracles/towers.py
    python tests/oracles/towers.py [--cases 10] [--seed 0] [TYPE ...]
    python tests/oracles/towers.py --cases 2 --record tests/data/towers.json

It prints the cases of each type, equal and different, and the first different one.
"""

# ruff: noqa: E402, S112, S311, T201 - a script that prints its table and asks classes that may refuse anything
from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent  # a file here has the name of the package: it comes last
sys.path[:] = [*[each for each in sys.path if Path(each).resolve() != HERE], str(HERE)]

import torch
from parameters import CONFIG_MAPPING, build, modeling_auto, plain, text_parameters
from parameters import types as decoders

from kvcalc.sources import shipped
from kvcalc.sources.config.towers import tower_parameters
from kvcalc.sources.files import parse_toml

#: What a random configuration may change, where the encoder or the file around it has the key.
SIZES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("hidden_size", "d_model", "embed_dim", "hidden_dim"), (480, 960)),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "mlp_dim"), (96, 200, 256)),
    **dict.fromkeys(("num_hidden_layers", "depth", "encoder_layers", "num_layers"), (1, 2, 3)),
    **dict.fromkeys(("num_attention_heads", "num_heads"), (4, 8)),
    **dict.fromkeys(("out_hidden_size", "output_dim", "alignment_intermediate_size"), (96, 128)),
    **dict.fromkeys(("head_dim", "dim_head"), (16, 32)),
    **dict.fromkeys(("num_position_embeddings", "num_patches", "position_embedding_size"), (16, 64)),
    **dict.fromkeys(("vision_use_head", "attention_bias", "projector_bias"), (True, False)),
    **dict.fromkeys(("multimodal_projector_bias", "projector_use_layernorm"), (True, False)),
    "patch_size": (8, 14, 16),
    "image_size": (112, 224, 336),
    "spatial_merge_size": (1, 2),
    "mlp_ratio": (2, 4),
    "num_mel_bins": (80, 128),
    "max_source_positions": (100, 1500),
    "downsample_hidden_size": (32, 48),
    "projector_hidden_size": (64, 96),
    "conv_kernel_size": (3, 5),
}
_NO_SIZE = re.compile(
    "token_i|token$|dropout|eps$|range|^(return|output_hid|output_att|is_|chunk_size|use_cache|scale_e)"
)
ENCODERS = ("vision_config", "audio_config", "encoder_config")


def types() -> dict[str, str]:
    """The types that have a row, and the names of their classes."""
    classes = decoders()
    for mapping in dir(modeling_auto):
        if mapping.startswith("MODEL_FOR") and mapping.endswith("_MAPPING_NAMES"):
            for name, found in getattr(modeling_auto, mapping).items():
                classes.setdefault(name, found if isinstance(found, str) else found[0])
    rows = [parse_toml(text, "towers") for text in shipped.texts("towers").values()]
    names = {name for tables in rows for key, row in tables.items() for name in (key, *row.get("also", ()))}
    return {name: classes[name] for name in sorted(names & classes.keys())}


def cases(model_type: str, class_name: str, count: int, seed: int) -> Iterator[tuple[dict[str, Any], int, int]]:
    """Random configurations that the class takes: the file, the width of the text, the encoders' parameters."""
    draw = random.Random(f"{model_type} {seed}")
    for _ in range(3 * count):
        try:
            stated = plain(CONFIG_MAPPING[model_type]().to_dict())
            places = {key: dict(stated.get(key) or {}) for key in ENCODERS if key in stated}
            for table in places.values():
                listed = "global_attn_indexes" in table  # a list of layers that none may leave
                known = [key for key in table if key in SIZES and not (listed and key == "num_hidden_layers")]
                for key in draw.sample(known, k=min(3, len(known))):
                    table[key] = draw.choice(SIZES[key])
                if "num_key_value_heads" in table and "num_attention_heads" in table:
                    table["num_key_value_heads"] = table["num_attention_heads"]
            around = {key: draw.choice(SIZES[key]) for key in stated if key in SIZES and "projector" in key}
            text = {key: stated[key] for key in ("text_config",) if isinstance(stated.get(key), dict)}
            config = CONFIG_MAPPING[model_type](**text, **places, **around)
            model = build(class_name, config)
            whole = sum({id(each): each.numel() for each in model.parameters()}.values())
            width = config.get_text_config().hidden_size
            encoders = whole - text_parameters(model, whole=False)
            if not encoders:  # Mllama's class counts its encoder among the decoder's parts
                return
            yield plain(config.to_dict()), width, encoders
        except Exception:
            continue
        count -= 1
        if not count:
            return


def recorded(file: dict[str, Any]) -> dict[str, Any]:
    """The numbers, switches and lists of a configuration's encoders and of the file around them."""

    def sizes(table: dict[str, Any]) -> dict[str, Any]:
        numbers = {key: each for key, each in table.items() if isinstance(each, bool | int | float | list)}
        words = {key: table[key] for key in ("model_type", "norm_type") if isinstance(table.get(key), str)}
        return {key: each for key, each in numbers.items() if not _NO_SIZE.search(key)} | words

    tables = {key: sizes(file[key]) for key in (*ENCODERS, "projector_config") if isinstance(file.get(key), dict)}
    return {key: each for key, each in sizes(file).items() if not isinstance(each, list)} | tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="model types (default: all)")
    parser.add_argument("--cases", type=int, default=10, help="random configurations of each type")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="write the equal cases to this file")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows, different = [], 0
    known = types()
    for model_type in asked.types or known:
        equal = 0
        for file, width, parameters in cases(model_type, known[model_type], asked.cases, asked.seed):
            counted = sum(tower_parameters(file, width)[0].values())
            if counted == parameters:
                equal += 1
                rows.append({"config": recorded(file), "text_width": width, "parameters": parameters})
            else:
                different += 1
                print(f"{model_type}: {parameters:,}, kvcalc {counted:,}: {json.dumps(recorded(file))}")
                break
        print(f"{model_type}: {equal} equal")
    if asked.record is not None:
        asked.record.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    raise SystemExit(bool(different))


if __name__ == "__main__":
    main()
