"""The preset that a model's name in a log means: repositories, files, paths of the Hub's cache, tags, titles."""

from __future__ import annotations

import re

from kvcalc.sources.preset import find_preset

#: What publishers, converters and quantisers put behind a model's name, which changes no cache.
_SUFFIX = re.compile(
    r"[-.]?(?:it|pt|chat|instruct|thinking|base|text|hf|qat|gguf|mlx|awq|gptq|exl2|exl3|autoround|modelopt|marlin|unsloth"
    r"|torchao|compressed|tensors|[iuf]?q\d[\w-]{0,8}|ud|int[248]|fp8|fp4|mxfp4|nvfp4|bf16|f16|fp16|f32|w\d{1,2}a\d{1,2}(?:kv\d)?"
    r"|bnb|\d{1,2}bit|dynamic|static|block|channel|w8|g\d{2,3}|quantized(?:\.\w{1,9})?|\d{4}|v\d(?:\.\d)?|preview|latest"
    r"|[smlx]{1,2}|k|imatrix|i1|\d{5}-of-\d{5})$"
)
#: Names that say nothing of the model: what holds it does.
_NOTHING = re.compile(
    r"(?:model|ggml-model|consolidated|config|snapshots?|main|weights|hf|original|[0-9a-f]{7,64}|\d{1,3}|\.+|)"
)
_ENDING = re.compile(r"\.(?:gguf|safetensors|json|bin|engine)$|-\d{5}-of-\d{5}$")


def preset_of(name: str | None) -> str | None:
    """The preset that a model's name in a log means, or None; no path and no host of the log is opened for it.

    >>> preset_of("unsloth/gemma-3-12b-it-bnb-4bit"), preset_of("Meta Llama 3.1 8B Instruct"), preset_of("/models/x")
    ('gemma-3-12b', 'llama-3.1-8b', None)
    >>> preset_of("/root/.cache/huggingface/hub/models--google--gemma-3-27b-it/snapshots/005ad3404e59/")
    'gemma-3-27b'
    >>> preset_of("/kaggle/input/models/google/gemma-4/transformers/gemma-4-31b-it/1")
    'gemma-4-31b'
    >>> preset_of("gemma3:27b"), preset_of("unsloth/gemma-4-31B-it-GGUF:UD-Q5_K_XL")
    ('gemma-3-27b', 'gemma-4-31b')
    """
    for slug in _slugs(name or ""):
        for shorter in _shortenings(slug):
            found = find_preset(shorter)
            if found is not None:
                return found
    return None


def _slugs(name: str) -> list[str]:
    """The names in a path that may be the model's, the likeliest first: the last part that says anything, and a tag."""
    parts = re.split(r"[/\\]", name.strip().strip("'\""))
    for part in reversed(parts):
        repository = re.fullmatch(r"models--.{0,100}--(.{1,200})", part)
        slug = _slug(repository[1] if repository else part)
        if not _NOTHING.fullmatch(slug):
            whole = slug.replace(":", "-")
            return [whole, slug.partition(":")[0]] if ":" in slug else [slug]
    return []


def _slug(part: str) -> str:
    slug = re.sub(r"[_ ]+", "-", part.casefold())
    while _ENDING.search(slug):
        slug = _ENDING.sub("", slug)
    return slug.removeprefix("meta-").removeprefix("mistralai-").removeprefix("google-")


def _shortenings(slug: str) -> list[str]:
    """The name, and what is left of it as its endings are taken off one after another."""
    found = [slug]
    while (shorter := _SUFFIX.sub("", found[-1]).rstrip("-.")) != found[-1] and shorter:
        found.append(shorter)
    return found
