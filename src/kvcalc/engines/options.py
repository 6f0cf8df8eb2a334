"""Engine options as frozen pydantic models: validated, documented, with the engine's own names and defaults.

Kept apart from :mod:`kvcalc.engines.base`, so that an engine without options does not load pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from kvcalc.engines.base import Engine, OptionHelp
from kvcalc.errors import InputError, KVCalcError, did_you_mean, joined, quote
from kvcalc.invalid import Mistake, mistakes


class EngineOptions(BaseModel, Engine):
    """An engine whose fields are its options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _listed_numbers(cls, given: dict[str, Any]) -> dict[str, Any]:
        """A command line has texts: pydantic reads a number from one, but not where the numbers are listed."""
        listed = {name for name, field in cls.model_fields.items() if int in map(type, get_args(field.annotation))}
        return {
            name: int(value) if name in listed and isinstance(value, str) and value.isdecimal() else value
            for name, value in given.items()
        }

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """The engine with its options; mistakes are reported together, with the nearest known name."""
        try:
            return cls(**options)
        except ValidationError as error:
            problems = [cls._problem(each) for each in mistakes(error)]
        raise joined(problems)

    @classmethod
    def _problem(cls, found: Mistake) -> KVCalcError:
        if found.kind == "unknown":
            hint = did_you_mean(found.field, cls.model_fields) or f"its options: {', '.join(cls.model_fields)}"
            return InputError(f"{cls.name} has no option {quote(found.field)}", hint=hint)
        shown = f"{found.path}={quote(found.value)}: " if found.path else ""
        return InputError(
            f"{cls.name} option {shown}{found.reason}", hint=found.hint or f"see 'kvcalc engines show {cls.name}'"
        )

    @classmethod
    def option_help(cls) -> tuple[OptionHelp, ...]:
        """Every option with its default and its meaning."""
        return tuple(
            OptionHelp(name, field.default, field.description or "") for name, field in cls.model_fields.items()
        )

    @property
    def set_options(self) -> dict[str, Any]:
        """The options that were given, the version among them."""
        return self.model_dump(mode="json", exclude_unset=True)
