"""How far a long walk is, on standard error; and Ctrl-C as a wish to stop, so that what was found is still printed."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Seconds before the first line: most answers are there by then.
_QUIET = 1.0
#: Seconds between two lines, where a terminal writes the later over the former, and where it does not.
_ON_A_TERMINAL, _IN_A_LOG = 0.5, 5.0


class Progress:
    """A line with the part that is done, the rate and the time left, once a walk takes longer than a second."""

    def __init__(self, size: int, noun: str, stopped: Callable[[], bool] = lambda: False) -> None:
        self._size, self._noun, self._stopped = size, noun, stopped
        self._began = time.monotonic()
        self._next = self._began + _QUIET
        self._terminal = sys.stderr.isatty()
        self._said = False

    def __call__(self, done: int) -> bool:
        """Whether to go on."""
        now = time.monotonic()
        if now >= self._next:
            line = progress_line(done, self._size, self._noun, now - self._began)
            sys.stderr.write(f"\r{line}\x1b[K" if self._terminal else f"{line}\n")
            sys.stderr.flush()
            self._said = True
            self._next = now + (_ON_A_TERMINAL if self._terminal else _IN_A_LOG)
        return not self._stopped()

    def close(self) -> None:
        """End the line of a terminal."""
        if self._said and self._terminal:
            sys.stderr.write("\n")


def progress_line(done: int, size: int, noun: str, seconds: float) -> str:
    """How far a walk is.

    >>> progress_line(50_000, 150_000, "candidates", 5.0)
    '50,000 of 150,000 candidates (33 %), 10,000 a second, 10 s left'
    """
    rate = done / seconds
    left = f", {(size - done) / rate:,.0f} s left" if rate else ""
    return f"{done:,} of {size:,} {noun} ({100 * done // size} %), {rate:,.0f} a second{left}"


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks the walk to stop, so that what it found is still printed; a second Ctrl-C ends the program."""
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield lambda: stopped
    finally:
        signal.signal(signal.SIGINT, before)
