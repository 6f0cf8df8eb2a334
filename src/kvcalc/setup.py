"""A model in an engine, with its formats, its parallelism and its draft model: all of a question but its numbers.

Every answer takes a :class:`Setup` and adds a context and a batch size: a footprint, what fits, how it grows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

from kvcalc.architecture import Architecture
from kvcalc.dtypes import DType, parse_kv_dtypes
from kvcalc.engines import engine_class, make_engine
from kvcalc.engines.base import Engine, Plan, refuse_weights
from kvcalc.errors import InputError, quote
from kvcalc.quantization import TOWERS
from kvcalc.sources.resolve import load
from kvcalc.units import check_count, integer
from kvcalc.weights import Weights, format_of, weights

if TYPE_CHECKING:
    from kvcalc.device import Device

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
        text_only: the encoders of images and sound that a checkpoint carries are left out.
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
    text_only: bool = False

    @property
    def reference(self) -> str:
        """The model as it was asked for; its name, where it was not."""
        return self.architecture.provenance.reference or self.architecture.name

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: the plans are made anew where the setup arrives."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

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

    @property
    def weights_notes(self) -> tuple[str, ...]:
        """That the engine does not read the weights as they ship, where it does not."""
        shipped, engine = self.architecture.quantization, self.engine
        if shipped is None or self.weights_dtype is not None or engine.reads(shipped):
            return ()
        others = ", ".join(engine.weight_formats)
        return (f"{engine.name} reads no {shipped.name} weights: convert them, and say to what ({others})",)

    @cached_property
    def weights(self) -> Weights:
        """The parameters, and their bytes on one device."""
        tp, stages = self.tensor_parallel_size, self.engine.pipeline_stages
        return weights(self.served, self.weights_dtype, tp, stages, self.held)

    @property
    def held(self) -> frozenset[str]:
        """What is held of a checkpoint beside the model's own layers."""
        return self.engine.holds_beside - (TOWERS if self.text_only else frozenset())


def prepare(
    architecture: Architecture | str | PathLike[str],
    *,
    engine: str = "ideal",
    engine_options: Mapping[str, Any] | None = None,
    kv_cache_dtype: str | None = None,
    weights_dtype: str | None = None,
    tensor_parallel_size: int = 1,
    encoder_tokens: int = 0,
    draft: Architecture | str | PathLike[str] | None = None,
    text_only: bool = False,
) -> Setup:
    """The setup of these arguments, with its plan; computed once for an architecture.

    A model, or a draft model, may be named as :func:`kvcalc.load` takes it; it is then read anew each time.

    Raises:
        KVCalcError: an unknown engine, option or format, or a combination that the engine refuses.

    >>> from kvcalc.sources.resolve import load
    >>> prepare(load("gemma-3-27b"), engine="vllm").plan.kv_bytes(131072, 1)
    19301662720
    """
    model = _loaded(architecture)
    chosen_draft = draft if draft is None or (isinstance(draft, str) and draft == MTP) else _loaded(draft)
    given = plain_options(engine_options)
    options = tuple(sorted((name, _hashable(value)) for name, value in given.items()))
    if not isinstance(engine, str) or not all(isinstance(each, str | None) for each in (kv_cache_dtype, weights_dtype)):
        names = "engine, kv_cache_dtype and weights_dtype are names"
        raise InputError(names, hint='as in engine="vllm", kv_cache_dtype="fp8", weights_dtype="int4"')
    tp = check_count(tensor_parallel_size, "tensor_parallel_size", most=_MOST_DEVICES)
    encoder = check_count(encoder_tokens, "encoder_tokens", least=0)
    if not isinstance(text_only, bool):
        raise InputError(f"text_only is True or False, not {quote(text_only)}")
    key = (engine, options, kv_cache_dtype, weights_dtype, tp, encoder, chosen_draft, text_only)

    def build() -> Setup:
        chosen = make_engine(engine, given)
        if kv_cache_dtype is None:
            key_dtype, value_dtype = chosen.default_kv_dtypes(model)
        else:
            key_dtype, value_dtype = parse_kv_dtypes(kv_cache_dtype)
        drafted = chosen_draft if isinstance(chosen_draft, Architecture | None) else model.mtp
        if weights_dtype is not None:
            refuse_weights(chosen, format_of(model, weights_dtype))
        setup = Setup(model, chosen, key_dtype, value_dtype, tp, encoder, weights_dtype, drafted, text_only)
        _ = setup.plan, setup.ideal_plan  # refusals come here, not at the first answer
        return setup

    return model.memo(key, build)


def _loaded(model: Architecture | str | PathLike[str]) -> Architecture:
    return model if isinstance(model, Architecture) else load(model)


def options_on(engine: str, options: Mapping[str, Any] | None, device: Device | None) -> dict[str, Any]:
    """The options that were given, and those that the engine itself chooses on a device where they were not."""
    given = plain_options(options)
    if device is None:
        return given
    return {**engine_class(engine).device_options(device.memory_bytes, device.name), **given}


def plain_options(options: object) -> dict[str, Any]:
    """An engine's options as Python's own values: numbers, words, and tuples of them.

    Raises:
        InputError: no mapping, or a value that no option has.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise InputError(f"engine_options is a mapping of names to values, not {quote(options)}")
    plain = {}
    for name, value in options.items():
        whole = [_plain(each) for each in value] if isinstance(value, list | tuple) else [_plain(value)]
        if not all(isinstance(each, str | int | float | None) for each in whole):
            raise InputError(f"engine option {quote(name)} must be a number, a word or a list, not {quote(value)}")
        plain[name] = tuple(whole) if isinstance(value, list | tuple) else whole[0]
    return plain


def _plain(value: object) -> object:
    whole = integer(value)
    return value if whole is None else whole


def _hashable(value: object) -> Any:
    """An option's value as part of a key, with its type: True, 1 and 1.0 are one key, and three values to an option."""
    if isinstance(value, tuple):
        return tuple(_hashable(each) for each in value)
    return type(value).__name__, value
