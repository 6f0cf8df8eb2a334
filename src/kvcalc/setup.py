"""A model in an engine, with its formats, its parallelism and its draft model: all of a question but its numbers.

Every answer takes a :class:`Setup` and adds a context and a batch size: a footprint, what fits, how it grows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from inspect import Parameter, signature
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, TypeVar, Unpack, get_type_hints

from kvcalc.architecture import Architecture, Part, Stage
from kvcalc.dtypes import DType, parse_kv_dtypes
from kvcalc.engines import engine_class, make_engine
from kvcalc.engines.base import Engine, Plan, refuse_weights
from kvcalc.errors import InputError, quote
from kvcalc.quantization import TOWERS, VISION
from kvcalc.sources.resolve import load
from kvcalc.units import check_count, integer
from kvcalc.weights import Weights, format_of, weights

if TYPE_CHECKING:
    from kvcalc.device import Device

_MOST_DEVICES = 2**20
#: The draft that needs no second model: the model's own multi-token-prediction layers.
MTP: Literal["mtp"] = "mtp"
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _name(value: object, what: str) -> str | None:
    if not isinstance(value, str) and (value is not None or what == "engine"):
        names = "engine, kv_cache_dtype and weights_dtype are names"
        raise InputError(names, hint='as in engine="vllm", kv_cache_dtype="fp8", weights_dtype="int4"')
    return value


def _truth(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{what} is True or False, not {quote(value)}")
    return value


def _draft(value: Architecture | str | PathLike[str] | None, _: str) -> Architecture | str | None:
    return value if value is None or (isinstance(value, str) and value == MTP) else _loaded(value)


def _loaded(model: Architecture | str | PathLike[str]) -> Architecture:
    return model if isinstance(model, Architecture) else load(model)


def plain_options(options: object, _: str = "") -> dict[str, Any]:
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


class SetupOptions(TypedDict, total=False):
    """How a model is served: the arguments of :func:`prepare`, and of every function that takes a model.

    A new one is a line here, with the check of its values, and a field of :class:`Setup`; :func:`kvcalc.footprint` says
    what each of them means.
    """

    engine: Annotated[str, _name]
    engine_options: Annotated[Mapping[str, Any] | None, plain_options]
    kv_cache_dtype: Annotated[str | None, _name]
    weights_dtype: Annotated[str | None, _name]
    tensor_parallel_size: Annotated[int, partial(check_count, most=_MOST_DEVICES)]
    encoder_tokens: Annotated[int, partial(check_count, least=0)]
    draft: Annotated[Architecture | str | PathLike[str] | None, _draft]
    text_only: Annotated[bool, _truth]


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
        text_only: the encoders of images and sound that a checkpoint carries are left out.
    """

    architecture: Architecture
    engine: Engine
    k_dtype: DType
    v_dtype: DType
    tensor_parallel_size: int = 1
    encoder_tokens: int = field(default=0, metadata={"words": "encoder {:,} tokens"})
    weights_dtype: str | None = None
    draft: Architecture | None = field(default=None, metadata={"words": "draft {0.name}"})
    text_only: bool = field(default=False, metadata={"words": "text only"})

    @cached_property
    def workload(self) -> Mapping[str, Any]:
        """The formats, sizes and options in plain values, by their names in the JSON."""
        apart = ("architecture", "engine", "weights_dtype")
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in apart}
        return {name: getattr(value, "name", value) for name, value in values.items()}

    @property
    def words(self) -> tuple[str, ...]:
        """What was stated beside engine, formats and devices, in a few words each; empty where it is the default."""
        said = [(each.metadata["words"], getattr(self, each.name)) for each in fields(self) if each.metadata]
        return tuple(words.format(value) if value else "" for words, value in said)

    @property
    def reference(self) -> str:
        """The model as it was asked for; its name, where it was not."""
        return self.architecture.provenance.reference or self.architecture.name

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: the plans are made anew where the setup arrives."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @property
    def drafts_itself(self) -> bool:
        """Whether the draft is the model's own prediction layers."""
        model = self.architecture
        return bool(model.mtp_layers) and self.draft == model.mtp

    @cached_property
    def served(self) -> Architecture:
        """The model with the layers and tensors of its draft after its own."""
        model, draft = self.architecture, self.draft
        return model if draft is None else model.memo(("served", draft), lambda: model.followed_by(draft))

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

    @property
    def placement(self) -> tuple[Architecture, str | None, int, tuple[Stage, ...]]:
        """What the weights are, in which format, among how many devices in a layer, and what of them in a row."""
        return self.served, self.weights_dtype, self.tensor_parallel_size, self.engine.stages(self.served)

    @property
    def fewer_devices(self) -> tuple[tuple[Part, int], ...]:
        """Parts of the weights that fewer devices share, and how many do."""
        return self.engine.fewer_devices(self.served, self.tensor_parallel_size)

    @cached_property
    def weights(self) -> Weights:
        """The parameters, and their bytes on one device."""
        return weights(*self.placement, self.held, self.fewer_devices)

    @property
    def sees(self) -> bool:
        """Whether the model is served with an encoder of images: its weights may be modelled or not."""
        model = self.architecture
        has = model.image is not None or any(each.part == VISION for each in model.towers)
        return has and not self.text_only and VISION in self.engine.holds_beside

    @property
    def held(self) -> frozenset[str]:
        """What is held of a checkpoint beside the model's own layers; a preset's figures are those of its text."""
        text = self.text_only or self.architecture.text_preset
        return self.engine.holds_beside - (TOWERS if text else frozenset())

    @property
    def tower_bytes(self) -> int:
        """What a preset's encoders of images and sound add on one device, where the engine loads them."""
        if self.text_only or not self.architecture.text_preset:
            return 0
        whole = weights(*self.placement, self.engine.holds_beside, self.fewer_devices)
        return whole.bytes - self.weights.bytes


#: What is meant by the value of an argument, or why it is refused.
_CHECKS: dict[str, Callable[[Any, str], Any]] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(SetupOptions, include_extras=True).items()
}
#: The arguments that are fields as they stand.
_FIELDS = {each.name: each.default for each in fields(Setup) if each.name in _CHECKS and each.name != "engine"}
_ARGUMENTS = [
    Parameter(name, Parameter.KEYWORD_ONLY, default=({"engine": "ideal"} | _FIELDS).get(name), annotation=hint)
    for name, hint in get_type_hints(SetupOptions).items()
]


def spelled_out(function: _Function, engine: str = "ideal") -> _Function:
    """A function with the arguments of a setup one by one in its signature, as help() and editors show it."""
    own = signature(function)
    stated = [each for each in own.parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
    first, *others = _ARGUMENTS
    vars(function)["__signature__"] = own.replace(parameters=[*stated, first.replace(default=engine), *others])
    return function


@spelled_out
def prepare(architecture: Architecture | str | PathLike[str], **options: Unpack[SetupOptions]) -> Setup:
    """The setup of these arguments, with its plan; computed once for an architecture.

    A model, or a draft model, may be named as :func:`kvcalc.load` takes it; it is then read anew each time.

    Raises:
        KVCalcError: an unknown engine, option or format, or a combination that the engine refuses.

    >>> from kvcalc.sources.resolve import load
    >>> prepare(load("gemma-3-27b"), engine="vllm").plan.kv_bytes(131072, 1)
    19301662720
    """
    unknown = sorted(options.keys() - _CHECKS.keys())
    if unknown:
        raise TypeError(f"a setup has no argument {unknown[0]!r}; it has {', '.join(_CHECKS)}")
    model = _loaded(architecture)
    given: dict[str, Any] = {name: _CHECKS[name](value, name) for name, value in options.items()}
    key = {name: _hashable(value) if name == "engine_options" else value for name, value in given.items()}
    return model.memo(tuple(key.items()), lambda: _made(model, given))


def _made(model: Architecture, given: Mapping[str, Any]) -> Setup:
    engine = make_engine(given.get("engine", "ideal"), given.get("engine_options", {}))
    kv_format, weights_format = given.get("kv_cache_dtype"), given.get("weights_dtype")
    k_dtype, v_dtype = engine.default_kv_dtypes(model) if kv_format is None else parse_kv_dtypes(kv_format)
    if weights_format is not None:
        refuse_weights(engine, format_of(model, weights_format))
    stated = {name: given[name] for name in _FIELDS if name in given}
    if stated.get("draft") == MTP:
        stated["draft"] = model.mtp
    setup = Setup(model, engine, k_dtype, v_dtype, **stated)
    _ = setup.plan, setup.ideal_plan  # refusals come here, not at the first answer
    return setup


def prepare_on(
    device: Device | None, architecture: Architecture | str | PathLike[str], **options: Unpack[SetupOptions]
) -> Setup:
    """The setup of these arguments, with the options that its engine itself chooses on a device."""
    engine, model = options.get("engine", "ideal"), _loaded(architecture)
    chosen = {} if device is None else engine_class(engine).model_options(model, device)
    options["engine_options"] = {**chosen, **options_on(engine, options.get("engine_options"), device)}
    return prepare(model, **options)


def options_on(engine: str, options: Mapping[str, Any] | None, device: Device | None) -> dict[str, Any]:
    """The options that were given, and for the others what the engine itself chooses on a device that has a name."""
    given = plain_options(options)
    if device is None or not device.name:
        return given
    return {**engine_class(engine).device_options(device.memory_bytes, device.name), **given}


def _hashable(value: object) -> Any:
    """An engine's options as part of a key, each value with its type: True, 1 and 1.0 are one key, and three values."""
    if isinstance(value, dict):
        return tuple(sorted((name, _hashable(each)) for name, each in value.items()))
    if isinstance(value, tuple):
        return tuple(_hashable(each) for each in value)
    return type(value).__name__, value
