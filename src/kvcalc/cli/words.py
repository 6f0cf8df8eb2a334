"""The words of the command line that is being answered."""

from __future__ import annotations

from contextvars import ContextVar

#: The program's name and its arguments, as they were typed.
COMMAND: ContextVar[tuple[str, ...]] = ContextVar("COMMAND", default=())
