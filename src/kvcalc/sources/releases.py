"""What the name of a quantised release says: ``Qwen/Qwen3-8B-AWQ`` is Qwen3-8B in awq.

A release is named for the model it was made from and for its format. An ending stands here where those who write it
mean one layout by it; ``-FP8`` alone is a scale a tensor, a channel or a tile, by who publishes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kvcalc.gguf_mixes import FILE_TYPES


@dataclass(frozen=True)
class Ending:
    """An ending of a release's name, and the format that it stands for.

    Attributes:
        pattern: the ending; its group is what ``means`` leaves open.
        means: a format by name, or the words of a ``quantization_config``.
        publishers: whose ending it is; empty: anybody's.
        dense: only of models without experts, which some quantisers leave as they are.
    """

    pattern: str
    means: str | Mapping[str, Any]
    publishers: tuple[str, ...] = ()
    dense: bool = False

    def of(self, publisher: str, name: str) -> tuple[str, str | Mapping[str, Any]] | None:
        """The name before it and the format, of a name that has it."""
        found = re.fullmatch(f"(.+?)(?:{self.pattern})", name, re.IGNORECASE)
        if found is None or (self.publishers and publisher.casefold() not in self.publishers):
            return None
        means = self.means if isinstance(self.means, Mapping) else self.means.format(*found.groups()[1:])
        return found[1], means


_TYPES = "|".join(re.escape(name) for name in FILE_TYPES if name not in ("F32", "F16", "BF16"))
_RED_HAT, _NVIDIA, _MLX = ("redhatai", "neuralmagic"), ("nvidia",), ("mlx-community", "lmstudio-community")
_FP8_CACHE = {"quant_method": "modelopt", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
_NVFP4 = {"num_bits": 4, "type": "float", "group_size": 16}
_TILES = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
#: Configurations as these publishers' releases have them (Qwen3-8B-FP8, Meta-Llama-3.1-8B-Instruct-FP8, unsloth's
#: -bnb-4bit, nvidia's Llama-3.1-8B-Instruct-FP8, mlx-community's conversions).
ENDINGS = (
    Ending(rf"(?:-gguf)?[-.:_](ud-\w+|{_TYPES})(?:-gguf)?", "{0}"),
    Ending(r"(?:-gguf)?[-.:](bf16|fp16|f16)(?:-gguf)?", "{0}"),
    Ending(r"-awq(?:-int4)?", "awq"),
    Ending(r"-gptq(?:-int4|-4bit|-4b)?(?:-128g)?", "gptq"),
    Ending(r"-gptq(?:-int8|-8bit)(?:-128g)?", "gptq_8bit"),
    Ending(r"[-.](?:quantized\.)?w4a16(?:-g128)?", "w4a16"),
    Ending(r"[-.](?:quantized\.)?w8a8", "int8_channel"),
    Ending(r"-fp8-dynamic", "fp8_channel"),
    Ending(r"-fp8", {"quant_method": "fp8", "activation_scheme": "static"}, _RED_HAT),
    Ending(r"-fp8-block", _TILES, _RED_HAT),
    Ending(
        r"-nvfp4",
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": _NVFP4, "input_activations": _NVFP4}},
            "ignore": ["lm_head"],
        },
        _RED_HAT,
        dense=True,
    ),
    Ending(r"-fp8", _TILES, ("qwen", "deepseek-ai")),
    Ending(r"-fp8", _FP8_CACHE | {"quant_algo": "FP8"}, _NVIDIA, dense=True),
    Ending(r"-(?:nv)?fp4", _FP8_CACHE | {"quant_algo": "NVFP4"}, _NVIDIA, dense=True),
    Ending(r"(?<!-unsloth)-bnb-4bit", "nf4_double", ("unsloth",)),
    Ending(r"-bnb-nf4", "nf4_double", ("hugging-quants",)),
    Ending(r"-int4-autoround", {"quant_method": "auto-round", "bits": 4, "group_size": 128}, ("intel",)),
    Ending(r"(?:-mlx)?-([234568])bit(?:-dwq)?", "{0}bit", _MLX),
    Ending(r"-mlx-([234568])bit", "{0}bit"),
    Ending(r"-mxfp4(?:-q8)?", {"quant_method": "mlx", "mode": "mxfp4"}, _MLX),
    Ending(r"-mxfp8", {"quant_method": "mlx", "mode": "mxfp8"}, _MLX),
    Ending(r"-nvfp4", {"quant_method": "mlx", "mode": "nvfp4"}, _MLX),
)


#: Endings that leave the format open, and how to say it.
LEFT_OPEN = {
    "-fp8": "write {preset} with --weights-dtype fp8_block, fp8_channel or fp8: who publishes {ending} decides",
    "-gguf": "write '{name}:Q4_K_M', with the type of the file that you mean",
    "-qat": "write {preset} with --weights-dtype Q4_0: what {ending} is trained for, and most of such a file",
    **dict.fromkeys(
        ("-nvfp4", "-fp4", "-mxfp4", "-int4", "-4bit", "-8bit", "-bnb-4bit", "-unsloth-bnb-4bit", "-int8", "-awq-4bit"),
        "write {preset} with --weights-dtype and a format: {ending} is written in several",
    ),
}


def readings(name: str) -> Iterator[tuple[str, str, Ending, str | Mapping[str, Any]]]:
    """The publisher, the name before the ending, the ending, and the format that it stands for.

    >>> [(rest, means) for _, rest, _, means in readings("Qwen/Qwen3-8B-AWQ")]
    [('Qwen3-8B', 'awq')]
    """
    publisher, _, rest = name.rpartition("/")
    for ending in ENDINGS:
        found = ending.of(publisher, rest)
        if found is not None:
            yield publisher, found[0], ending, found[1]
