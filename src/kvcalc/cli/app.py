"""The commands by name, and the one place where an error becomes an exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from typing import Annotated

import typer

from kvcalc import __version__
from kvcalc.cli.command import Command, CommandGroup
from kvcalc.cli.process import complain, complain_about, drop_what_cannot_be_written, interrupted
from kvcalc.cli.words import COMMAND, option_name, usual
from kvcalc.errors import KVCalcError, printable
from kvcalc.sources.files import READ

#: Every command by what it is for, in the order of the help page; each is a function of its name in a module of its
#: name.
PURPOSES = {
    "Ask": ("show", "compare", "sweep", "fit"),
    "Design": ("search", "paper"),
    "Guard": ("check", "audit"),
    "Look up": ("models", "devices", "engines", "schema"),
}
COMMANDS = tuple(name for names in PURPOSES.values() for name in names)
_EXAMPLES = (
    "kvcalc gemma-3-27b                                    what it takes\n"
    "kvcalc fit llama-3.1-8b --gpu rtx-4090 -e llama.cpp   does it fit my card\n"
    "kvcalc fit gemma-3-27b --gpus 2xh100-sxm -c 8k        how many users\n"
    "kvcalc compare gemma-2-2b@global gemma-2-2b@5:1       which layers to train\n"
    "kvcalc check budgets.toml --format github             a budget in CI"
)


class _Group(CommandGroup):
    purposes = PURPOSES


def make_app(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The command line with those commands: loading the modules of all takes longer than most answers."""
    app = typer.Typer(
        name="kvcalc",
        help="How much memory do the weights and the KV cache of a model take, in this engine, to the byte.",
        epilog=_EXAMPLES,
        context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": option_name},
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        cls=_Group,
    )
    app.callback(invoke_without_command=True)(root)
    for name in names:
        module = import_module(f"kvcalc.cli.{name}")
        app.command(name, epilog=module.EXAMPLES, cls=Command)(getattr(module, name))
    return app


def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version and leave.")] = False,
) -> None:
    """Answer what stands before a command."""
    if version:
        typer.echo(f"kvcalc {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def run(arguments: list[str] | None = None) -> int:
    """Run a command line; every way to fail ends here, as one message and one exit code."""
    typed = sys.argv[1:] if arguments is None else arguments
    COMMAND.set(("kvcalc", *typed))
    READ.set(set())
    try:
        words = usual(typed, COMMANDS)
        asked = words[0] if words else ""
        app = make_app([asked]) if asked in COMMANDS else make_app()
        code = app(words, prog_name="kvcalc", standalone_mode=False)
        sys.stdout.flush()
    except KVCalcError as error:
        complain(error.render())
    except typer.TyperException as error:
        complain(f"error: {printable(_lowered(error.format_message()))}\nhint: {_hint(error)}")
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


def _hint(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return f"see '{context.command_path if context is not None else 'kvcalc'} --help'"
