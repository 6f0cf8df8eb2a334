"""The process around a command line: its streams, the signals that end it, and the exit code that is left.

Nothing of this matters to a caller from Python; :func:`kvcalc.cli.program` alone uses it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

#: Exit codes of a shell: a program that a signal ends leaves with 128 and the signal's number.
_SIGNALLED = 128
_ENDING = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


def guarded(work: Callable[[], int]) -> int:
    """The exit code of ``work``, run as a process: whatever escapes it ends as 2, a signal as 128 and its number.

    1 says that the answer is no. A pipe that closes, a full disk or a mistake of kvcalc must never look like that.
    """
    signals = _Signals()
    code = 2
    try:
        open_missing_streams()
        signals.listen()
        try:
            code = work()
            sys.stdout.flush()
        except SystemExit as left:
            code = 0 if left.code in (0, None) else 2
        except Exception as error:
            code = 2
            if signals.caught is None:  # else it is the interrupt: a class that is being made wraps it in its own error
                complain_about(error)
        drop_what_cannot_be_written()
        signals.leave()  # all is said; what comes now ends the process as it would any other
    except KeyboardInterrupt:
        signals.caught = signals.caught or signal.SIGINT  # Python's own handler was there until `listen`
    # Python remembers an interrupt inside of exec(), as dataclasses use it, and would end by SIGINT whatever the code.
    exec("")  # noqa: S102 - the next exec() makes it forget that
    return code if signals.caught is None else _SIGNALLED + signals.caught


class _Signals:
    """The signals that ask the program to end: each raises KeyboardInterrupt, so that files are tidied up."""

    def __init__(self) -> None:
        self.caught: int | None = None
        self.heard: list[int] = []

    def listen(self) -> None:
        for name in _ENDING:
            number = getattr(signal, name, None)
            # What a shell or nohup has told us to ignore stays ignored.
            if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, self._catch)
                self.heard.append(number)

    def leave(self) -> None:
        for number in self.heard:
            signal.signal(number, signal.SIG_DFL)

    def _catch(self, number: int, _frame: FrameType | None) -> None:
        self.caught = number
        signal.signal(number, signal.SIG_DFL)  # a second one ends the program where it stands
        raise KeyboardInterrupt


def open_missing_streams() -> None:
    """Put /dev/null in the place of a standard stream that was closed before the program began.

    A daemon, cron and some CI runners start programs without one, and Python then has None in its place.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - open until the process ends


def complain(message: str) -> None:
    """Lines for people on standard error; where nobody reads there, the exit code has to tell."""
    if sys.stderr is None:
        return
    encoding = sys.stderr.encoding or "ascii"
    try:
        if sys.stderr.isatty():
            message = _on_a_terminal(message)
        sys.stderr.write(message.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass


#: How the word before the colon is shown; gcc has the same, which are seen on dark screens and on light ones.
_STYLES = {"error": "1;31", "warning": "1;35", "hint": "1;36"}


def _on_a_terminal(message: str) -> str:
    """Lines folded to the terminal's width, each with its first word in a colour."""
    from kvcalc.report.formats import screen

    shown = screen(sys.stderr)
    lines = []
    for line in message.split("\n"):
        first, *rest = shown.folded(line, "  ")
        word, colon, said = first.partition(":")
        if colon and word in _STYLES:
            first = shown.styled(f"{word}:", _STYLES[word]) + said
        lines += [first, *rest]
    return "\n".join(lines)


def complain_about(error: Exception) -> None:
    """Say of an exception that is no answer of kvcalc's what it is; nothing of a pipe that was closed."""
    if isinstance(error, BrokenPipeError):
        return
    if isinstance(error, OSError):
        complain(f"error: {(error.strerror or str(error)).lower()}")
        return
    if os.environ.get("KVCALC_DEBUG"):
        import traceback

        complain("".join(traceback.format_exception(error)))
    complain(
        f"error: internal error ({type(error).__name__}): this is a mistake in kvcalc, not in your question\n"
        "hint: set KVCALC_DEBUG=1 to see where, and report it"
    )


def interrupted(error: BaseException | None) -> bool:
    """Whether an exception comes from an interrupt: a class that is being made wraps it in an error of its own."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def drop_what_cannot_be_written() -> None:
    """Flush both streams, and point one that cannot be written at nothing: Python flushes once more at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
