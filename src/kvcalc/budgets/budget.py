"""What a budget states, and what of it contradicts itself: one ``[[budget]]`` as a person writes it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, PlainValidator

from kvcalc.errors import InputError, KVCalcError, quote
from kvcalc.setup import plain_options
from kvcalc.sources.resolve import split_variant, without_address
from kvcalc.units import check_count, format_count, parse_bytes, parse_count

_MOST_PARTS = 100
_MOST_OPTIONS = 100
_PART = re.compile(r"([0-9_]{1,15}[kKmM]?)\s?[xX×]\s?([0-9_]{1,15}[kKmM]?)", re.ASCII)
_PERCENT = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)\s?%", re.ASCII)
_COMMIT = re.compile(r"[0-9a-fA-F]{40}", re.ASCII)


def parse_percent(text: str, what: str) -> Fraction:
    """A share such as ``60%`` or ``2.5 %``, exactly.

    >>> parse_percent("2.5%", "max_increase")
    Fraction(1, 40)
    """
    match = _PERCENT.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{what} must be a percentage such as 60%, not {quote(text)}", hint="the % is not optional")
    return Fraction(match[1]) / 100


def _tokens(value: object, what: str) -> int:
    return parse_count(value, what) if isinstance(value, str) else check_count(value, what)


def _size(value: object, what: str) -> int:
    if not isinstance(value, str):
        raise InputError(f"{what} must be a text with a unit such as '24GiB', not {quote(value)}")
    return parse_bytes(value, what)


def _share(value: object, what: str) -> Fraction:
    if not isinstance(value, str):
        raise InputError(f"{what} must be a text with its unit such as '60%', not {quote(value)}")
    return parse_percent(value, what)


def _share_or_size(value: object, what: str) -> Fraction | int:
    if isinstance(value, str) and not value.rstrip().endswith("%"):
        return parse_bytes(value, what)
    return _share(value, what)


def _mix(value: object, what: str) -> tuple[Part, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not 0 < len(texts) <= _MOST_PARTS:
        raise InputError(f"{what} must be a list such as ['48 x 4k', '16 x 32k'], not {quote(value)}")
    matches = [_PART.fullmatch(text.strip()) if isinstance(text, str) else None for text in texts]
    for text, match in zip(texts, matches, strict=True):
        if match is None:
            reason = f"{what}: {quote(text)} is no number of sequences and their context"
            raise InputError(reason, hint="write '48 x 4k': 48 sequences of 4,096 tokens")
    return tuple(Part(parse_count(match[1], what), parse_count(match[2], what)) for match in matches if match)


def _options(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) > _MOST_OPTIONS:
        raise InputError(f"{what} must be a table such as {{block_size = 32}}, not {quote(value)}")
    return plain_options(value)


def _read_as(parse: Callable[[object, str], Any], what: str, written: Any = str) -> PlainValidator:
    """A field that ``parse`` reads; ``written`` is what a file may hold, for the JSON Schema."""

    def read(value: object) -> Any:
        try:
            return parse(value, what)
        except KVCalcError as error:
            raise ValueError(error) from None

    return PlainValidator(read, json_schema_input_type=written)


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(InputError(f"{quote(text)} has characters that cannot be printed"))
    return text


_Line = Annotated[str, Field(strict=True, min_length=1, max_length=4096)]


@dataclass(frozen=True)
class Part:
    """A part of a workload: so many sequences of one context."""

    batch_size: int
    context: int

    def __str__(self) -> str:
        return f"{self.batch_size} x {format_count(self.context)}"


class Budget(BaseModel):
    """One ``[[budget]]``: a setup, a workload, and what they may take. All byte figures are for one device.

    The fields from ``draft`` to ``engine_options`` are the arguments of :func:`kvcalc.setup.prepare`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
    name: Annotated[str, Field(strict=True, min_length=1, max_length=200), AfterValidator(_printable)] = Field(
        description="what reports and baselines call the budget"
    )
    model: _Line = Field(description="a model reference; paths count from the folder of the budgets' file")
    context: Annotated[int | None, _read_as(_tokens, "context", int | str)] = Field(
        None, description="tokens in the cache of one sequence; default: min_context"
    )
    batch_size: Annotated[int, _read_as(_tokens, "batch_size", int | str)] = Field(
        1, validation_alias=AliasChoices("batch_size", "batch"), description="sequences"
    )
    mix: Annotated[tuple[Part, ...], _read_as(_mix, "mix", list[str])] = Field(
        (), description="sequences of several contexts at a time: ['48 x 4k', '16 x 32k']"
    )
    draft: _Line | None = Field(None, description="a draft model, or mtp: its own prediction layers")
    kv_cache_dtype: _Line | None = Field(None, description="format of K and V, or K/V")
    weights_dtype: _Line | None = Field(None, description="format of the weights")
    tensor_parallel_size: Annotated[int, _read_as(_tokens, "tensor_parallel_size", int | str)] = 1
    encoder_tokens: Annotated[int, _read_as(_tokens, "encoder_tokens", int | str)] = 0
    text_only: bool = Field(False, strict=True, description="leave out the encoders of images and sound")
    engine: _Line = Field("ideal", description="whose rules apply")
    engine_options: Annotated[dict[str, Any], _read_as(_options, "engine_options", dict[str, Any])] = Field(
        default={}, description="its options, by its own names"
    )
    limit: Annotated[int | None, _read_as(_size, "limit")] = Field(None, description="a size with its unit: 40GiB")
    on: Literal["total", "kv_cache", "weights"] = Field("total", description="what the limit is for")
    device: _Line | None = Field(None, description="an accelerator whose memory is the limit, instead of limit")
    utilization: Annotated[Fraction | None, _read_as(_share, "utilization")] = Field(
        None, description="share of the device that the engine takes; default: the engine's own"
    )
    reserve: Annotated[int, _read_as(_size, "reserve")] = Field(0, description="bytes of the device left free")
    overhead: Annotated[Fraction | None, _read_as(_share, "overhead")] = Field(
        None, description="the most that the KV cache may take, as a share of the weights"
    )
    min_context: Annotated[int | None, _read_as(_tokens, "min_context", int | str)] = Field(
        None, description="a context that must still fit"
    )
    min_batch: Annotated[int | None, _read_as(_tokens, "min_batch", int | str)] = Field(
        None, description="a batch size that must still fit"
    )
    warn_at: Annotated[Fraction | int | None, _read_as(_share_or_size, "warn_at")] = Field(
        None, description="a share of the limit, or a size, from which the verdict is a warning"
    )
    max_increase: Annotated[Fraction | int | None, _read_as(_share_or_size, "max_increase")] = Field(
        None, description="the most that the total may grow against a baseline: 2% or 512MiB"
    )
    message: Annotated[str, Field(strict=True, max_length=2000)] | None = Field(
        None, description="what to tell the person whose change does not fit"
    )

    @property
    def parts(self) -> tuple[Part, ...]:
        """The workload: one part, unless it is a mix."""
        context = self.context or self.min_context
        assert self.mix or context is not None  # a budget without any is refused when it is read
        return self.mix or (Part(self.batch_size, context or 0),)


def contradictions(budget: Budget) -> Iterator[tuple[str, str]]:
    """What of a budget contradicts itself or is missing, each with what to write."""
    stated = budget.model_fields_set
    if not budget.mix and budget.context is None and budget.min_context is None:
        yield "context is missing", 'write context = "32k", or mix = ["48 x 4k", "16 x 32k"]'
    for key in sorted(stated & {"context", "batch_size", "min_context", "min_batch"}):
        if budget.mix:
            yield f"mix and {key} both say what the workload is", "leave one of them out"
    if budget.limit is not None and budget.device is not None:
        yield "limit and device both say what the memory is", "leave one of them out"
    if not any((budget.limit is not None, budget.device, budget.overhead is not None, budget.max_increase is not None)):
        yield "nothing is limited", 'write limit = "40GiB", a device, overhead = "60%" or max_increase = "2%"'
    if "on" in stated and budget.limit is None:
        yield "on says what a limit is for, and there is no limit", 'write limit = "40GiB"'
    for key in ("reserve", "utilization"):
        if key in stated and budget.device is None:
            yield f"{key} is a part of a device, and there is no device", 'write device = "h200"'
    for key in ("min_context", "min_batch"):
        if key in stated and budget.limit is None and budget.device is None and budget.overhead is None:
            yield f"{key} must fit into something", 'write limit = "40GiB", or a device'
    for reference in filter(None, (budget.model, budget.draft)):
        base, _ = split_variant(reference)
        with suppress(InputError):  # an address of no model is refused where the model is read
            base = without_address(base)
        if base.startswith("hf:") and not _COMMIT.fullmatch(base.partition("#")[2]):
            yield (
                f"the Hub reference {quote(reference)} names no commit",
                "write hf:org/name# and the 40 digits of a commit: a branch moves, and CI must not change its mind",
            )


#: Fields that are a budget's own and have no default.
OWN = ("name", "model")


def _describe(schema: dict[str, Any]) -> None:
    """Give the defaults the fields of a budget but its own two, and both the short name of one."""
    fields = schema.get("$defs", {}).get("Budget", Budget.model_json_schema())["properties"]
    fields["batch"] = {**fields["batch_size"], "description": "the same as batch_size"}
    shared = {key: value for key, value in fields.items() if key not in OWN}
    schema["properties"]["defaults"] |= {"type": "object", "properties": shared, "additionalProperties": False}
    schema["properties"]["defaults"].pop("anyOf", None)


class BudgetsFile(BaseModel):
    """A whole ``budgets.toml``, for its JSON Schema; :func:`read_budgets` reads one table at a time."""

    model_config = ConfigDict(extra="forbid", defer_build=True, json_schema_extra=_describe)
    dialect: str | None = Field(None, alias="$schema", description="where an editor finds this schema")
    extends: str | list[str] | None = Field(
        None, description="files whose defaults come first, from this file's folder"
    )
    defaults: dict[str, Any] | None = Field(None, description="what holds for every budget that says nothing else")
    budget: list[Budget] = Field(default=[], description="the budgets")
