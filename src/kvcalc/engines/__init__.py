"""The registry: every engine by name, loaded when it is asked for.

Adding an engine is its module and one line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from kvcalc.engines.base import Engine
from kvcalc.errors import InputError, NotModelledError, did_you_mean, quote

#: Engine name -> module and class.
REGISTRY = {
    "ideal": ("kvcalc.engines.ideal", "Ideal"),
    "llama.cpp": ("kvcalc.engines.llama_cpp", "LlamaCpp"),
    "ollama": ("kvcalc.engines.ollama", "Ollama"),
    "vllm": ("kvcalc.engines.vllm", "Vllm"),
    "sglang": ("kvcalc.engines.sglang", "SGLang"),
    "tensorrt-llm": ("kvcalc.engines.tensorrt_llm", "TensorRTLLM"),
    "transformers": ("kvcalc.engines.transformers", "Transformers"),
    "mlx-lm": ("kvcalc.engines.mlx_lm", "MlxLm"),
    "lmdeploy": ("kvcalc.engines.lmdeploy", "LMDeploy"),
}


#: Other names by their letters and digits alone, and the engine that they mean.
_OTHER_NAMES = {
    "hf": "transformers",
    "huggingface": "transformers",
    "llama": "llama.cpp",
    "llamaserver": "llama.cpp",
    "mlx": "mlx-lm",
    "tensorrt": "tensorrt-llm",
    "trt": "tensorrt-llm",
    "trtllm": "tensorrt-llm",
}
#: Programs that people name, and what they run inside.
_BUILT_ON = {
    "gpt4all": "llama.cpp",
    "jan": "llama.cpp",
    "koboldcpp": "llama.cpp",
    "llamafile": "llama.cpp",
    "lmstudio": "llama.cpp (or mlx-lm, for MLX models)",
    "textgenerationwebui": "llama.cpp or transformers, by the loader that is chosen",
}
#: Engines of their own whose allocation nobody here has read.
_NOT_READ = ("ctranslate2", "deepspeedmii", "exllama", "exllamav2", "exllamav3", "mlcllm", "tabbyapi", "tgi")


def engine_name(text: str) -> str:
    """The engine's name in the registry, from any usual spelling.

    Raises:
        InputError: no such engine; for a program that runs one of ours inside, with that one as the hint.
        NotModelledError: an engine that is known by name alone.

    >>> engine_name("vLLM"), engine_name("llama_cpp"), engine_name("trt-llm")
    ('vllm', 'llama.cpp', 'tensorrt-llm')
    """
    if not isinstance(text, str):
        raise InputError(f"engine is a name such as 'vllm', not {quote(text)}")
    if text in REGISTRY:
        return text
    letters = "".join(filter(str.isalnum, text.casefold()))
    known = {"".join(filter(str.isalnum, name)): name for name in REGISTRY} | _OTHER_NAMES
    if letters in known:
        return known[letters]
    if letters in _BUILT_ON:
        raise InputError(f"{quote(text)} is no engine of its own", hint=f"it runs {_BUILT_ON[letters]}")
    if letters in _NOT_READ:
        reason = f"not modelled: how {quote(text)} allocates its cache has not been read"
        raise NotModelledError(reason, hint="--engine ideal is the least that any engine takes")
    hint = did_you_mean(text, REGISTRY) or f"known engines: {', '.join(REGISTRY)};"
    raise InputError(f"unknown engine {quote(text)}", hint=f"{hint} see 'kvcalc engines'")


def engine_names() -> list[str]:
    """The engines whose rules are known.

    >>> engine_names()[:3]
    ['ideal', 'llama.cpp', 'ollama']
    """
    return list(REGISTRY)


def engine_class(name: str) -> type[Engine]:
    """The class of an engine by its name, in any usual spelling.

    Raises:
        InputError: no such engine.
    """
    module, class_name = REGISTRY[engine_name(name)]
    found: type[Engine] = getattr(import_module(module), class_name)
    return found


def make_engine(name: str, options: Mapping[str, Any] | None = None) -> Engine:
    """An engine with its options, by the engine's own names.

    Raises:
        InputError: no such engine, no such option (the nearest is suggested), or a value out of range.

    >>> make_engine("ideal").name
    'ideal'
    """
    return engine_class(name).from_options(options or {})
