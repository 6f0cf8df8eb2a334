"""How the help pages look: examples on lines that can be copied, and commands by what they are for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from typer.core import TyperCommand, TyperGroup


class _Page(Protocol):
    """What a help page is written to."""

    def write(self, string: str) -> None:
        """Add a text as it stands."""

    def section(self, name: str) -> AbstractContextManager[None]:
        """Add what follows under a heading."""

    def write_dl(self, rows: Sequence[tuple[str, str]], *, col_spacing: int) -> None:
        """Add terms and what they mean, folded."""


def _write_examples(page: _Page, examples: str | None) -> None:
    """The examples of a help page, each on a line of its own and never folded."""
    if examples:
        page.write("\nExamples:\n" + "".join(f"  {line}\n" for line in examples.splitlines()))


class Command(TyperCommand):
    """A command whose epilog is examples."""

    def format_epilog(self, ctx: object, formatter: _Page) -> None:
        """Write the examples."""
        _write_examples(formatter, self.epilog)


class CommandGroup(TyperGroup):
    """Commands listed in groups; its epilog is examples."""

    #: What the commands are for, their names, and what each says in a line.
    purposes: Mapping[str, Mapping[str, str]] = {}

    def format_commands(self, ctx: object, formatter: _Page) -> None:
        """Write each group of commands with its purpose."""
        for purpose, commands in self.purposes.items():
            with formatter.section(purpose):
                formatter.write_dl(list(commands.items()), col_spacing=3)

    def format_epilog(self, ctx: object, formatter: _Page) -> None:
        """Write the examples."""
        _write_examples(formatter, self.epilog)
