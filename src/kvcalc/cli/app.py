"""The commands by name, and the one place where an error becomes an exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from typing import Annotated

import typer

from kvcalc import __version__
from kvcalc.cli.command import TextCommand, TextGroup
from kvcalc.cli.process import complain, complain_about, drop_what_cannot_be_written, interrupted
from kvcalc.cli.words import COMMAND
from kvcalc.errors import KVCalcError, printable
from kvcalc.sources.files import READ

#: Every command, in the order of the help page; each is a function of its name in a module of its name.
COMMANDS = ("show", "compare", "sweep", "fit", "search", "check", "audit", "paper", "schema")
#: Commands with commands of their own: a Typer app in a module of their name.
GROUPS = ("presets", "engines")


def make_app(names: Iterable[str] = (*COMMANDS, *GROUPS)) -> typer.Typer:
    """The command line with those commands: loading the modules of all takes longer than most answers."""
    app = typer.Typer(
        name="kvcalc",
        help="How much memory do the weights and the KV cache of a model take, in this engine, to the byte.",
        epilog="kvcalc compare gemma-2-2b@global gemma-2-2b@5:1/sw=1024 -c 32k",
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        cls=TextGroup,
    )
    app.callback(invoke_without_command=True)(root)
    for name in names:
        module = import_module(f"kvcalc.cli.{name}")
        if name in GROUPS:
            app.add_typer(module.app, name=name)
        else:
            app.command(name, epilog=module.EXAMPLES, cls=TextCommand)(getattr(module, name))
    return app


def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Answer what stands before a command."""
    if version:
        typer.echo(f"kvcalc {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def run(arguments: list[str] | None = None) -> int:
    """Run a command line; every way to fail ends here, as one message and one exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    COMMAND.set(("kvcalc", *words))
    READ.set(set())
    asked = words[0] if words else ""
    try:
        app = make_app([asked]) if asked in (*COMMANDS, *GROUPS) else make_app()
        code = app(words, prog_name="kvcalc", standalone_mode=False)
        sys.stdout.flush()
    except KVCalcError as error:
        complain(error.render())
    except typer.TyperException as error:
        complain(f"error: {printable(_lowered(error.format_message()))}\nhint: see '{_command_path(error)} --help'")
    except SystemExit as left:  # a shell's completion ends with 0; Typer turns a closed pipe into 1: "no" here
        drop_what_cannot_be_written()
        return 0 if left.code == 0 else 2
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        if interrupted(error):
            return 130
        complain_about(error)
        drop_what_cannot_be_written()
    else:
        return code if isinstance(code, int) else 0
    return 2


def _lowered(message: str) -> str:
    return (message[:1].lower() + message[1:]).rstrip(".").replace("\n", " ")


def _command_path(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return str(context.command_path) if context is not None else "kvcalc"
