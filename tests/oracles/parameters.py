"""The config reader beside the classes of transformers: parameters, cache widths, and files that it saves again.

Every causal, image-text and sequence-to-sequence class of the installed transformers is built on the meta device, with
its default configuration and with random ones; kvcalc reads the same configuration from its full dump and from what
``save_pretrained`` writes. Then the configurations of ``tests/data`` are loaded and saved again by transformers: the
answer may not change.

On a bare machine, without a GPU, in this repository::

    $ pip install . torch==2.13.0 transformers==5.24.0
    $ python tests/oracles/parameters.py
    python tests/oracles/parameters.py [--random 3] [--seed 0] [TYPE ...]
    python tests/oracles/parameters.py --record tests/data/class_defaults.json

It prints the cases: equal, refused by both, refused by one, different, each difference with its reason where one is
known, and the difference with the fewest changed keys first. Nothing is downloaded. ``--record`` writes what the
classes of the types have whose default configuration is that of a file of nothing but its ``model_type``.
"""

# ruff: noqa: E402, S112, S311, T201 - a script that prints its table and asks classes that may refuse anything
from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
warnings.filterwarnings("ignore")
HERE = Path(__file__).resolve().parent  # a file here has the name of the package: it comes last
sys.path[:] = [str(HERE.parent), *[each for each in sys.path if Path(each).resolve() != HERE], str(HERE)]

import torch
import transformers
from configs import read
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from kvcalc import footprint, read_config
from kvcalc.architecture import Architecture
from kvcalc.errors import KVCalcError
from kvcalc.weights import weights

MAPPINGS = (
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
)
#: Where the two differ by definition, and why.
BY_DEFINITION = {
    "axk2": "estimated, with a note: its gated norms are not counted",
    "cpmant": "the class adds 32 learned tokens to the prompt, as a note says",
    "git": "an unknown type, estimated with a note",
    "helium": "the class's output projection is hidden x hidden, which fits no other head width",
    "kosmos-2": "the class ties its head to the embedding whatever the wrapper says",
    "kosmos-2.5": "the class ties its head to the embedding whatever the wrapper says",
    "longcat_flash": "the class has rows for zero experts that no checkpoint holds",
    "modernbert-decoder": "get_decoder() of the class leaves out most of the model",
    "ovis2": "the class sizes an untied head by the wrapper's hidden_size, which is not the text's",
    "phi4_multimodal": "the class keeps its towers inside the decoder",
    "pi0": "an unknown type, estimated with a note",
    "qwen2_5_omni": "the class holds the talker and its tower",
    "t5gemma2": "the class's encoder holds the image tower",
    "zamba2": "untied, the class builds its shared blocks anew for each use",
    "unlimited_ocr": "the separator of images is part of the text here",
}
#: What a random configuration may change, where the default has the key; the class draws its own lists from them.
KNOBS: dict[str, tuple[Any, ...]] = {
    "num_hidden_layers": (1, 2, 3, 5, 8),
    "n_layer": (2, 3),
    "decoder_layers": (1, 3),
    "encoder_layers": (1, 2),
    "hidden_size": (128, 256, 320),
    "d_model": (128, 256),
    "intermediate_size": (96, 200, 512),
    "vocab_size": (1000, 1001),
    "num_attention_heads": (4, 8),
    "num_key_value_heads": (1, 2, 4),
    "head_dim": (16, 32, 64),
    "tie_word_embeddings": (True, False),
    "attention_bias": (True, False),
    "mlp_bias": (True, False),
    "use_bias": (True, False),
    "sliding_window": (16, 64),
    "num_experts": (4, 8),
    "num_local_experts": (4, 8),
    "n_routed_experts": (4, 8),
    "moe_intermediate_size": (32, 48),
    "shared_expert_intermediate_size": (32, 64),
    "n_shared_experts": (1, 2),
    "first_k_dense_replace": (0, 1, 2),
    "q_lora_rank": (None, 32),
    "kv_lora_rank": (32, 64),
    "num_kv_shared_layers": (0, 1),
}


def types() -> dict[str, str]:
    """Every model type of these mappings, and the name of its class."""
    found: dict[str, str] = {}
    for name in MAPPINGS:
        for model_type, classes in getattr(modeling_auto, name, {}).items():
            found.setdefault(model_type, classes if isinstance(classes, str) else classes[0])
    return found


def build(class_name: str, config: Any) -> torch.nn.Module:
    with torch.device("meta"):
        model: torch.nn.Module = getattr(transformers, class_name)(config)
    return model.eval()


def text_parameters(model: Any, *, whole: bool) -> int:
    """Parameters of the decoder and the head, or of the whole model where its encoder reads text or sound."""
    parts = [model]
    if not whole:
        decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
        parts = [each for each in (decoder or model, model.get_output_embeddings()) if each is not None]
    unique = {id(each): each.numel() for part in parts for each in part.parameters()}
    return sum(unique.values())


def cache_elements(model: Any, *, seq2seq: bool) -> int | None:
    """Numbers of K and V after a forward of 5 tokens (3, behind 5 of the encoder), or None where the meta device or the
    class does not allow one.
    """
    ids = torch.ones((1, 5), dtype=torch.long, device="meta")
    more = {"decoder_input_ids": ids[:, :3]} if seq2seq else {}
    try:
        with torch.no_grad():
            cache = model(input_ids=ids, use_cache=True, **more).past_key_values
        parts = [
            getattr(cache, name) for name in ("self_attention_cache", "cross_attention_cache") if hasattr(cache, name)
        ]
        layers = [layer for part in parts or [cache] for layer in part.layers]
        if any(hasattr(layer, "conv_states") or hasattr(layer, "recurrent_states") for layer in layers):
            return None
        return sum(math.prod(tensor.shape) for layer in layers for tensor in (layer.keys, layer.values))
    except Exception:
        return None


def ours(model: Architecture, *, seq2seq: bool) -> tuple[int, int]:
    """Parameters, and numbers in the cache after the same tokens."""
    tokens = {"context": 3, "encoder_tokens": 5} if seq2seq else {"context": 5}
    cache = footprint(model, kv_cache_dtype="bf16", **tokens).kv_cache
    return weights(model, None).parameters, cache.bytes // 2


def variants(model_type: str, count: int, seed: int) -> Iterator[tuple[dict[str, Any], Any]]:
    """The default configuration, then random ones, as far as the class takes them; with what was changed."""
    try:
        default = CONFIG_MAPPING[model_type]()
    except Exception:
        return
    yield {}, default
    stated = default.to_dict()
    draw = random.Random(f"{model_type} {seed}")
    # Of a wrapper only the head: its other keys are those of towers and projectors.
    knobs = [key for key in KNOBS if key in stated and ("text_config" not in stated or key == "tie_word_embeddings")]
    for _ in range(count if knobs else 0):
        chosen = draw.sample(knobs, k=min(len(knobs), draw.randint(1, 6)))
        changes = {key: draw.choice(KNOBS[key]) for key in chosen}
        try:
            config = CONFIG_MAPPING[model_type](**changes)
        except Exception:
            continue
        sizes = config.to_dict()
        heads, hidden = (sizes.get(key) for key in ("num_attention_heads", "hidden_size"))
        if isinstance(heads, int) and isinstance(hidden, int) and hidden < 8 * heads:
            continue  # heads too narrow for their rope
        yield changes, config


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as its file has it."""
    loaded: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))
    return loaded


def reads_an_encoder(file: Mapping[str, Any]) -> bool:
    return bool(file.get("is_encoder_decoder")) and "text_config" not in file


def comparable(model: Architecture) -> bool:
    """Whether the cache holds K, V and latents alone: states and compressed entries are laid out otherwise."""
    return not any(
        layer.cache.kind in ("state", "parallel", "compressed") or getattr(layer.cache, "indexer_dim", 0)
        for layer in model.layers
    )


def compare(model_type: str, class_name: str, changes: dict[str, Any], config: Any) -> tuple[str, str]:
    """One case: its verdict, and what is to be said of it."""
    files = [plain(config.to_dict()), plain(config.to_diff_dict())]
    answers = []
    for file in files:
        try:
            answers.append(read_config(file))
        except KVCalcError as error:
            answers.append(error)
    try:
        model = build(class_name, config)
    except Exception as error:
        refused = all(isinstance(each, KVCalcError) for each in answers)
        return "refused by both" if refused else "refused by the class", f"{type(error).__name__}: {str(error)[:80]}"
    first = answers[0]
    if isinstance(first, KVCalcError):
        return "refused by kvcalc", f"{type(first).__name__}: {first.message}"
    if isinstance(answers[1], KVCalcError) or answers[1] != first:
        return "different", "the sparse file gives another answer than the full one"
    seq2seq = reads_an_encoder(files[0])
    elements = cache_elements(model, seq2seq=seq2seq)
    expected = text_parameters(model, whole=seq2seq)
    parameters, cached = ours(first, seq2seq=seq2seq)
    wrong = []
    if parameters != expected:
        wrong.append(f"parameters {parameters:,}, the class has {expected:,}")
    compared = elements is not None and comparable(first)
    if compared and cached != elements:
        wrong.append(f"{cached:,} numbers cached, the class has {elements:,}")
    if wrong:
        return "different", "; ".join(wrong)
    return ("equal" if compared else "equal, cache not compared"), ""


def record(path: Path) -> None:
    """Write the counts of the default configurations, one model type a line."""
    rows = {}
    for model_type, class_name in sorted(types().items()):
        for _, config in variants(model_type, 0, 0):
            try:
                file, model = plain(config.to_dict()), build(class_name, config)
                if read_config({"model_type": model_type}) != read_config(file):
                    continue
            except Exception:
                continue
            seq2seq = reads_an_encoder(file)
            parameters = text_parameters(model, whole=seq2seq)
            elements = cache_elements(model, seq2seq=seq2seq)
            if parameters != ours(read_config(file), seq2seq=seq2seq)[0]:
                continue
            rows[model_type] = {"parameters": parameters}
            if elements is not None and comparable(read_config(file)):
                tokens = {"tokens": 3, "encoder_tokens": 5} if seq2seq else {"tokens": 5, "encoder_tokens": 0}
                rows[model_type]["cache"] = tokens | {"elements": elements}
    lines = [f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{len(rows)} model types of transformers {transformers.__version__}")


def saved_again() -> Iterator[tuple[str, str, str]]:
    """Each configuration of tests/data: its name, the verdict on what transformers saves of it, and why."""
    files = {**read("configs.json"), **{name: row["config"] for name, row in read("other_configs.json").items()}}
    files |= {name: row["config"] for name, row in read("unseen_configs.json").items()}
    for name, file in files.items():
        model_type = file.get("model_type")
        if model_type not in CONFIG_MAPPING:
            continue
        try:
            before = read_config(file)
            config = CONFIG_MAPPING[model_type](**{key: value for key, value in file.items() if key != "model_type"})
        except Exception as error:
            yield name, "refused by the class", str(error)[:80]
            continue
        for form, again in (("in full", config.to_dict()), ("sparse", config.to_diff_dict())):
            written = plain(again) | {"architectures": file.get("architectures")}
            # A wrapper's own default, which its checkpoints contradict (Kimi K2.5, Mistral Large 3), is none of the
            # file's words; nor is the one that PaddleOCR-VL's class puts in the place of what the file says.
            written.pop("tie_word_embeddings", None)
            if "tie_word_embeddings" in file:
                written["tie_word_embeddings"] = file["tie_word_embeddings"]
            try:
                after = read_config(written)
                same = ours(before, seq2seq=False) == ours(after, seq2seq=False) and before.layout == after.layout
                yield name, "equal" if same else "different", f"saved {form}: {before.layout} -> {after.layout}"
            except KVCalcError as error:
                yield name, "refused by kvcalc", f"saved {form}: {error.message}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="model types (default: all)")
    parser.add_argument("--random", type=int, default=3, help="random configurations of each type")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="write the default counts to this file, and compare nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.record is not None:
        record(asked.record)
        return
    known = types()
    verdicts: Counter[str] = Counter()
    different: list[tuple[int, str]] = []
    for model_type in asked.types or sorted(known):
        for changes, config in variants(model_type, asked.random, asked.seed):
            verdict, why = compare(model_type, known[model_type], changes, config)
            if verdict == "different" and model_type in BY_DEFINITION:
                verdict, why = "different by definition", BY_DEFINITION[model_type]
            verdicts[verdict] += 1
            if verdict == "different":
                different.append((len(changes), f"{model_type} {changes}: {why}"))
            elif verdict == "refused by kvcalc" and not changes:
                print(f"{model_type}: {why}")
    again: Counter[str] = Counter()
    for name, verdict, why in () if asked.types else saved_again():
        again[verdict] += 1
        if verdict == "different":
            different.append((0, f"{name}: {why}"))
    for _, line in sorted(different):
        print(line)
    print(f"transformers {transformers.__version__}: {dict(verdicts)}")
    print(f"saved again: {dict(again)}")
    raise SystemExit(bool(different))


if __name__ == "__main__":
    main()
