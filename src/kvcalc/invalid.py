"""What pydantic finds wrong, in the words of kvcalc: the one translation of its ``ValidationError``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from kvcalc.errors import InputError, KVCalcError, did_you_mean, quote


@dataclass(frozen=True)
class Mistake:
    """One mistake in what somebody wrote.

    Attributes:
        path: the field with the tables around it, ``layers.F.head_dim``; empty where the whole is wrong.
        kind: an unknown field, a missing one, or a value that is none.
        reason: why the value is none, in lower case.
        value: the value.
        hint: what would help, where the field's own reader said so.
        is_sentence: the reason comes from a reader of kvcalc, and names the field and the value already.
    """

    path: str
    kind: Literal["unknown", "missing", "wrong"]
    reason: str = ""
    value: object = None
    hint: str | None = None
    is_sentence: bool = False

    @property
    def field(self) -> str:
        """The last step of the path."""
        return self.path.rpartition(".")[2]


def mistakes(error: ValidationError) -> list[Mistake]:
    """Everything that pydantic found, one mistake per field.

    >>> from pydantic import BaseModel
    >>> class Spec(BaseModel):
    ...     layers: int
    >>> try:
    ...     Spec(layers="many")
    ... except ValidationError as error:
    ...     mistakes(error)[0].path
    'layers'
    """
    found: dict[str, Mistake] = {}
    for each in error.errors(include_url=False):
        path = ".".join(str(part) for part in each["loc"] if not _is_branch(str(part)))
        cause = each.get("ctx", {}).get("error")
        if isinstance(cause, ValueError) and cause.args and isinstance(cause.args[0], KVCalcError):
            cause = cause.args[0]
        if each["type"] == "extra_forbidden":
            mistake = Mistake(path, "unknown")
        elif each["type"] == "missing":
            mistake = Mistake(path, "missing")
        elif isinstance(cause, KVCalcError):
            mistake = Mistake(path, "wrong", cause.message, each["input"], cause.hint, is_sentence=True)
        else:
            reason = each["msg"].removeprefix("Value error, ")
            mistake = Mistake(path, "wrong", reason[:1].lower() + reason[1:], each["input"])
        found.setdefault(path, mistake)  # a union reports one mistake for each of its branches
    return list(found.values())


def located_mistakes(error: ValidationError, known: Iterable[str], location: str) -> Iterator[KVCalcError]:
    """The mistakes of a file, or of a table in one, each with its place and the nearest of the ``known`` fields."""
    words = frozenset(known)
    for each in mistakes(error):
        place = f"{location}, {each.path}" if "." in each.path else location
        if each.kind == "unknown":
            yield InputError(f"unknown field {quote(each.field)}", hint=did_you_mean(each.field, words), location=place)
        elif each.kind == "missing":
            yield InputError(f"{each.field} is missing", location=place)
        elif each.is_sentence:
            yield InputError(each.reason, hint=each.hint, location=place)
        else:
            given = "" if isinstance(each.value, dict | list | tuple) else f", not {quote(each.value)}"
            yield InputError(f"{each.field}: {each.reason}{given}", location=place)


def _is_branch(part: str) -> bool:
    """Whether a step of pydantic's path names a branch of a union (``str``, ``LayerSpec``), not a field."""
    return part in ("str", "int") or part.startswith("tuple[") or part.endswith("Spec")
