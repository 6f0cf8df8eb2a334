"""The command line: a thin shell around the library.

A command is a module of its name: its options, and what it asks the library. What an answer alone needs (engines,
sources, logs, the command's own ``NAME_tables``) is imported inside the function: a help page is made without it.
"""

from __future__ import annotations

import gc
import os
import sys

from kvcalc.cli.process import guarded

TYPE_CHECKING = False  # as in kvcalc: until `guarded` listens, an interrupt ends with Python's own traceback
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> int:
    """Run the command line of this process; its exit code.

    0 = answered; 1 = the answer is no, and nothing else; 2 = usage, input, network or internal error;
    130 = interrupted.
    """
    if sys.argv[1:] == ["--version"]:  # loads nothing but this
        from kvcalc import __version__

        sys.stdout.write(f"kvcalc {__version__}\n")
        return 0
    # Loading modules makes many objects and no garbage: looking for it every 700 of them costs a twentieth of the time.
    gc.set_threshold(100_000, 20, 20)
    # No plugin of pydantic's changes an answer, and looking for some takes as long as an answer.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    from kvcalc.cli.app import run

    return run()


def program() -> NoReturn:
    """The process ``kvcalc``."""
    code = guarded(main)
    gc.freeze()  # what is loaded now goes with the process: looking through it once more takes time and frees nothing
    sys.exit(code)
