"""The one shape of an error: what is wrong, where it was found, what to do about it.

Every refusal of kvcalc is a :class:`KVCalcError`; the command line prints it and ends with exit code 2::

    error: unknown preset 'gema-3-27b'
      --> budgets.toml:12, [[budget]] 'prod'
    hint: did you mean 'gemma-3-27b'? see 'kvcalc models'
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_LONGEST_ECHO = 80


class KVCalcError(Exception):
    """A question that has no answer, with the place and a hint.

    Args:
        message: one sentence in lower case, without a full stop at its end.
        hint: what would help, as one sentence.
        location: the file, table or option where it was found.

    A traceback ends with the place and the hint, so that a notebook shows them too.

    >>> error = KVCalcError("unknown engine 'vlm'", hint="did you mean 'vllm'?")
    >>> str(error), error.__notes__
    ("unknown engine 'vlm'", ["hint: did you mean 'vllm'?"])
    """

    def __init__(self, message: str, *, hint: str | None = None, location: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.location = location
        if location:
            self.add_note(f"  --> {printable(location)}")
        if hint:
            self.add_note(f"hint: {printable(hint)}")

    @property
    def problems(self) -> tuple[KVCalcError, ...]:
        """The separate mistakes: one here, several in :class:`SeveralErrors`."""
        return (self,)

    def at(self, location: str) -> KVCalcError:
        """The same error, found at ``location`` (an inner location is kept behind it)."""
        inner = f"{location}, {self.location}" if self.location else location
        return type(self)(self.message, hint=self.hint, location=inner)

    def render(self) -> str:
        """The lines for standard error, without a newline at their end."""
        lines = [f"error: {self.message}"]
        if self.location:
            lines.append(f"  --> {self.location}")
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(map(printable, lines))


class InputError(KVCalcError):
    """A file, a value or an option that cannot be read as what it should be."""


class RefusalError(KVCalcError):
    """A question that is well formed and has no answer: one of the two below."""


class UnsupportedError(RefusalError):
    """The engine itself does not do it, or the rewrite has no meaning; the message says where that is known from."""


class NotModelledError(RefusalError):
    """Nobody here knows what the engine does with it: a debt of kvcalc, and counted as one."""


class NetworkError(KVCalcError):
    """A Hub request that failed; the message never holds a token."""


class SeveralErrors(KVCalcError):
    """All mistakes of one input, reported together."""

    def __init__(self, problems: Iterable[KVCalcError]) -> None:
        self._problems = tuple(problem for each in problems for problem in each.problems)
        count = len(self._problems)
        first = self._problems[0].message
        super().__init__(first if count == 1 else f"{count} mistakes, the first: {first}")
        for problem in self._problems:
            self.add_note(problem.render())

    def __reduce__(self) -> tuple[type[SeveralErrors], tuple[tuple[KVCalcError, ...]]]:
        return SeveralErrors, (self._problems,)  # its argument is no message, as pickle takes it to be

    @property
    def problems(self) -> tuple[KVCalcError, ...]:
        return self._problems

    def at(self, location: str) -> SeveralErrors:
        return SeveralErrors(problem.at(location) for problem in self._problems)

    def render(self) -> str:
        return "\n".join(problem.render() for problem in self._problems)


def joined(problems: list[KVCalcError]) -> KVCalcError:
    """The collected mistakes as one error: one as itself, several together."""
    return problems[0] if len(problems) == 1 else SeveralErrors(problems)


def quote(value: object) -> str:
    """A value as an error shows it: quoted, escaped and never longer than a line.

    >>> quote("gema\\x1b[31m")
    "'gema\\\\x1b[31m'"
    """
    text = value if isinstance(value, str) else _shown(value)
    shown = repr(text if len(text) <= _LONGEST_ECHO else text[: _LONGEST_ECHO - 3] + "...")
    return shown if isinstance(value, str) else shown[1:-1]


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        # Python refuses to print integers of more than 4300 digits; nobody wants to read 80 of them.
        return f"an integer of {value.bit_length()} bits"
    try:
        return repr(value)
    except Exception:  # such an integer inside of a list, nesting without an end, a class of somebody's own
        return f"a {type(value).__name__} that cannot be shown"


def printable(line: str) -> str:
    """A line for people without anything that a terminal, or a CI runner that finds ``##[`` in it, would obey.

    >>> printable("a\\x1b[31m\\nb")
    'a\\\\x1b[31m\\\\nb'
    """
    if "##[" in line:
        line = line.replace("##[", "##\\[")
    if line.isprintable():
        return line
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The near misses among ``known`` as a question, or None; never one with other numbers in it.

    >>> did_you_mean("gema-3-27b", ["gemma-3-27b", "llama-3.1-8b"])
    "did you mean 'gemma-3-27b'?"
    >>> did_you_mean("llama-8b", ["gemma-3-27b", "llama-3.1-8b", "llama-3-8b"])
    "did you mean 'llama-3.1-8b' or 'llama-3-8b'?"
    """
    from kvcalc.names import near  # loaded only when something is wrong

    return either(near(word, known))


def either(names: Sequence[str]) -> str | None:
    """Suggested names as a question, or None where there are none."""
    if not names:
        return None
    *most, last = (repr(name) for name in names)
    return f"did you mean {', '.join(most)} or {last}?" if most else f"did you mean {last}?"
