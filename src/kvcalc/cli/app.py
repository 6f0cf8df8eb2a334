"""The commands by name, and the one place where an error becomes an exit code."""

from __future__ import annotations

import os
import re
import sys
from functools import cache
from importlib import import_module
from typing import Annotated

import typer
from typer.core import TyperCommand

from kvcalc import __version__
from kvcalc.cli.command import Command, CommandGroup
from kvcalc.cli.complete import mend_words
from kvcalc.cli.options import spelled_out
from kvcalc.cli.process import complain, complain_about, drop_what_cannot_be_written, interrupted
from kvcalc.cli.words import COMMAND, option_name, usual
from kvcalc.errors import KVCalcError, did_you_mean, printable
from kvcalc.sources.files import READ

#: Every command by what it is for, in the order of the help page, and what it does in a line; each is a function of its
#: name in a module of its name, which has no other text.
PURPOSES = {
    "Ask": {
        "show": "What one model takes: weights, KV cache, total.",
        "compare": "Models, layouts, engines and formats side by side.",
        "sweep": "The KV cache over the context, as a curve.",
        "fit": "Whether it fits, and what would make it fit.",
    },
    "Design": {
        "search": "Layouts, windows and formats that fit a memory.",
        "paper": "Section 5.2 of the Gemma 3 report, published beside computed.",
    },
    "Guard": {
        "check": "Memory budgets in CI: exit 1 if one fails.",
        "audit": "An engine's log against the prediction.",
    },
    "Look up": {
        "models": "The models that are shipped, or one of them.",
        "devices": "Devices with their memory, sources and other names.",
        "engines": "The engines, or one: options, formula, sources.",
        "page": "The calculator as one HTML file.",
        "schema": "The JSON Schema of an answer, or of a file.",
    },
}
COMMANDS = {name: says for names in PURPOSES.values() for name, says in names.items()}
_EXAMPLES = (
    "kvcalc gemma-3-27b                                    what it takes\n"
    "kvcalc fit llama-3.1-8b --gpu rtx-4090 -e llama.cpp   does it fit my card\n"
    "kvcalc fit gemma-3-27b --gpus 2xh100-sxm -c 8k        how many users\n"
    "kvcalc compare gemma-2-2b@global gemma-2-2b@5:1       which layers to train\n"
    "kvcalc check budgets.toml --format github             a budget in CI"
)


class _Commands(CommandGroup):
    """The commands, each loaded when it is asked for: loading all takes longer than most answers."""

    purposes = PURPOSES

    def get_command(self, ctx: object, cmd_name: str) -> TyperCommand | None:
        """The command of that name, or None."""
        return _command(cmd_name) if cmd_name in COMMANDS else None

    def list_commands(self, ctx: object) -> list[str]:
        """All names, in the order of the help page."""
        return list(COMMANDS)


@cache
def _command(name: str) -> TyperCommand:
    module = import_module(f"kvcalc.cli.{name}")
    alone = typer.Typer(rich_markup_mode=None, add_completion=False)
    alone.command(name, help=COMMANDS[name], epilog=module.EXAMPLES, cls=Command)(spelled_out(getattr(module, name)))
    found = typer.main.get_command(alone)
    assert isinstance(found, TyperCommand)
    return found


def make_app() -> typer.Typer:
    """The command line."""
    app = typer.Typer(
        name="kvcalc",
        help="What the weights and the KV cache of a model take in the engine that serves it, to the byte.",
        epilog=_EXAMPLES,
        context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": option_name},
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        cls=_Commands,
    )
    app.callback(invoke_without_command=True)(root)
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
    mend_words(os.environ)
    try:
        code = make_app()(usual(typed, COMMANDS), prog_name="kvcalc", standalone_mode=False)
        sys.stdout.flush()
    except KVCalcError as error:
        complain(error.render())
    except typer.TyperException as error:
        complain(f"error: {printable(_message(error))}\nhint: {_hint(error)}")
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


def _message(error: typer.TyperException) -> str:
    """What Typer says, in the shape of an error of ours; its own suggestions go by letters alone."""
    message = re.sub(r"\.? ?(\(Possible options: .*\)|Did you mean .*\?)$", "", error.format_message())
    return (message[:1].lower() + message[1:]).rstrip(".").replace("\n", " ")


def _hint(error: typer.TyperException) -> str:
    """What was probably meant: a command, an option of this one, or an engine's; else where to look."""
    context = getattr(error, "ctx", None)
    command = re.match(r"No such command '(.*?)'", error.format_message())
    option = getattr(error, "option_name", None)
    meant = None
    if command is not None:
        meant = did_you_mean(command[1], COMMANDS)
    elif option is not None and context is not None:
        meant = _engine_option(option) or did_you_mean(
            option, [name for each in context.command.params for name in each.opts]
        )
    return meant or f"see '{context.command_path if context is not None else 'kvcalc'} --help'"


def _engine_option(option: str) -> str | None:
    """How an option of an engine's own is given."""
    from kvcalc.engines import REGISTRY, engine_class

    name = option.lstrip("-").replace("-", "_")
    owners = [each for each in REGISTRY if name in {known.name for known in engine_class(each).option_help()}]
    return f"it is an option of {' and '.join(owners)}: -E {name}=..." if owners else None
