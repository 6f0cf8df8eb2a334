"""A model in an engine, with its formats, its parallelism and its draft model: all of a question but its numbers.

Every answer takes a :class:`Setup` and adds a context and a batch size: a footprint, what fits, how it grows.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from kvcalc.architecture import Architecture
from kvcalc.dtypes import DType, parse_kv_dtypes
from kvcalc.engines import make_engine
from kvcalc.engines.base import Engine, Plan
from kvcalc.errors import InputError
from kvcalc.units import check_count
from kvcalc.weights import Weights, weights

_MOST_DEVICES = 2**20
#: The draft that needs no second model: the model's own multi-token-prediction layers.
MTP: Literal["mtp"] = "mtp"


@dataclass(frozen=True)
class Setup:
    """A model as it is served; :func:`prepare` makes one from names.

    Attributes:
        architecture: the model, without its draft.
        engine: the engine with its options.
        k_dtype, v_dtype: storage formats of K and V.
        tensor_parallel_size: devices that share every layer.
        encoder_tokens: length of the encoder's output, for cross-attention caches.
        weights_dtype: storage format of the weights; None is the model's own.
        draft: the model that proposes tokens (speculative decoding), or None.
    """

    architecture: Architecture
    engine: Engine
    k_dtype: DType
    v_dtype: DType
    tensor_parallel_size: int = 1
    encoder_tokens: int = 0
    weights_dtype: str | None = None
    draft: Architecture | None = None

    @property
    def reference(self) -> str:
        """The model as it was asked for; its name, where it was not."""
        return self.architecture.provenance.reference or self.architecture.name

    @cached_property
    def served(self) -> Architecture:
        """The model with the layers and tensors of its draft after its own."""
        return self.architecture if self.draft is None else self.architecture.followed_by(self.draft)

    @cached_property
    def plan(self) -> Plan:
        """The engine's answers, for any context and batch size.

        Raises:
            KVCalcError: the engine refuses the setup, or it is not modelled.
        """
        return self.engine.prepare(self)

    @cached_property
    def ideal_plan(self) -> Plan:
        """The report's own accounting of the same setup."""
        return self.plan if self.engine.name == "ideal" else make_engine("ideal").prepare(self)

    @property
    def devices(self) -> int:
        """Devices that the model is spread over: tensor parallel x pipeline stages."""
        return self.tensor_parallel_size * self.engine.pipeline_stages

    @property
    def cache_notes(self) -> tuple[str, ...]:
        """Whether K and V are in the format that the checkpoint declares, where it declares one."""
        declared = self.architecture.declared_cache
        if declared is None:
            return ()
        if self.k_dtype.name == self.v_dtype.name == declared.dtype:
            return (f"K and V are {declared.dtype}, as the checkpoint declares",)
        return (f"the checkpoint declares a cache in {declared.dtype}",)

    @cached_property
    def weights(self) -> Weights:
        """The parameters, and their bytes on one device."""
        return weights(self.served, self.weights_dtype, self.tensor_parallel_size, self.engine.pipeline_stages)


def prepare(
    architecture: Architecture,
    *,
    engine: str = "ideal",
    engine_options: Mapping[str, Any] | None = None,
    kv_cache_dtype: str | None = None,
    weights_dtype: str | None = None,
    tensor_parallel_size: int = 1,
    encoder_tokens: int = 0,
    draft: Architecture | Literal["mtp"] | None = None,
) -> Setup:
    """The setup of these arguments, with its plan; computed once for an architecture.

    Raises:
        KVCalcError: an unknown engine, option or format, or a combination that the engine refuses.

    >>> from kvcalc.sources.resolve import load
    >>> prepare(load("gemma-3-27b"), engine="vllm").plan.kv_bytes(131072, 1)
    19301662720
    """
    options: tuple[Any, ...] = ()
    if engine_options:
        options = tuple(sorted((name, _hashable(value)) for name, value in engine_options.items()))
    if not isinstance(engine, str) or not isinstance(kv_cache_dtype, str | None):
        raise InputError("engine and kv_cache_dtype are names", hint='as in engine="vllm", kv_cache_dtype="fp8"')
    key = (engine, options, kv_cache_dtype, weights_dtype, tensor_parallel_size, encoder_tokens, draft)

    def build() -> Setup:
        check_count(tensor_parallel_size, "tensor_parallel_size", most=_MOST_DEVICES)
        check_count(encoder_tokens, "encoder_tokens", least=0)
        chosen = make_engine(engine, engine_options)
        if kv_cache_dtype is None:
            key_dtype, value_dtype = chosen.default_kv_dtypes(architecture)
        else:
            key_dtype, value_dtype = parse_kv_dtypes(kv_cache_dtype)
        drafted = architecture.mtp if draft == MTP else draft
        setup = Setup(
            architecture,
            chosen,
            key_dtype,
            value_dtype,
            tensor_parallel_size,
            encoder_tokens,
            weights_dtype,
            drafted,
        )
        _ = setup.plan, setup.ideal_plan  # refusals come here, not at the first answer
        return setup

    return architecture.memo(key, build)


def _hashable(value: Any) -> Any:
    """An option's value as part of a key: a list (a window for each layer) as a tuple, the rest as it is or prints."""
    if isinstance(value, list | tuple):
        return tuple(_hashable(each) for each in value)
    # With its type: True, 1 and 1.0 are one key to a dictionary, and three values to an option.
    return (type(value).__name__, value if isinstance(value, Hashable) else repr(value))
