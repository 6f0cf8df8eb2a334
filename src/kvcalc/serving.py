"""The line that starts a server as an answer assumes it: every flag that the figures depend on."""

from __future__ import annotations

import shlex
from fractions import Fraction

from kvcalc.architecture import Architecture
from kvcalc.engines.base import Engine, Server
from kvcalc.errors import NotModelledError
from kvcalc.setup import Setup
from kvcalc.sources.preset import hub_name


def server_line(setup: Setup, model: str, context: int, batch_size: int, utilization: Fraction | None = None) -> str:
    """The command that serves this setup, ready to paste.

    Args:
        model: the model as the engine is to find it.
        utilization: the part of the device, where it is not the engine's own.

    Raises:
        NotModelledError: the engine has no server.

    >>> from kvcalc.setup import prepare
    >>> from kvcalc.sources.resolve import load
    >>> setup = prepare(load("llama-3.1-8b"), engine="vllm", kv_cache_dtype="fp8", tensor_parallel_size=2)
    >>> server_line(setup, "meta-llama/Llama-3.1-8B", 32768, 8)
    'vllm serve meta-llama/Llama-3.1-8B --max-model-len 32768 --tensor-parallel-size 2 --kv-cache-dtype fp8_e4m3'
    """
    server = setup.engine.server
    if server is None:
        raise NotModelledError(f"{setup.engine.name} has no server that kvcalc knows", hint="name another --engine")
    own = setup.engine.default_kv_dtypes(setup.architecture)
    drafter = None if setup.drafts_itself else setup.draft
    draft = None if drafter is None else drafter.provenance.reference or drafter.name
    values: dict[str, str | None] = {
        "context": str(context),
        "context_in_all": str(context * batch_size),
        "batch_size": str(batch_size),
        "tensor_parallel_size": str(setup.tensor_parallel_size) if setup.tensor_parallel_size > 1 else None,
        "k_dtype": setup.k_dtype.name if (setup.k_dtype, setup.v_dtype) != own else None,
        "v_dtype": setup.v_dtype.name if (setup.k_dtype, setup.v_dtype) != own else None,
        "utilization": None if utilization is None else f"{float(utilization):g}",
        "draft": draft and shlex.quote(served_name(server, draft)),
    }
    words = [word.format(model=shlex.quote(model)) for word in server.program]
    for name, flag in server.flags.items():
        if values[name] is not None:
            words += [flag, str(values[name])]
    if setup.text_only and setup.architecture.towers and server.text_only:
        words.append(server.text_only)
    return " ".join([*words, *option_words(setup.engine, setup.architecture, drafted=setup.draft is not None)])


def served_name(server: Server | None, reference: str) -> str:
    """What an engine's server is to be given as the model.

    >>> from kvcalc.engines import engine_class
    >>> [served_name(engine_class(each).server, "gemma3:27b") for each in ("vllm", "llama.cpp")]
    ['google/gemma-3-27b-pt', 'gemma3:27b']
    """
    return reference if server is not None and server.loads == "file" else hub_name(reference)


def option_words(engine: Engine, model: Architecture, *, drafted: bool) -> list[str]:
    """The options that an engine's server must be told for a model, with a draft or without one, as flags."""
    assert engine.server is not None
    options = {**(engine.draft_options if drafted else {}), **engine.stated_options(model)}
    return [word for option, value in options.items() for word in _option(engine.server, option, value)]


def _option(server: Server, option: str, value: object) -> list[str]:
    """An option of the engine as its flag; what has none there is left out."""
    if f"{option}={value}" in server.named:
        return server.named[f"{option}={value}"].split()
    if option in server.named:
        values = value if isinstance(value, list | tuple) else [value]
        words = [f"{each:g}" if isinstance(each, float) else str(each) for each in values]
        return [server.named[option], ",".join(words)]
    if server.option is None or option in server.no_flags:
        return []
    name = option.replace("_", "-")
    flag = server.option.format(name)
    if isinstance(value, bool):
        return [flag] if value else [server.off.format(name)] if server.off else []
    return [flag, shlex.quote(str(value))]
