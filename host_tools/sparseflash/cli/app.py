"""The verbs by name, each imported from its file when it is asked for."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sparseflash import __version__
from sparseflash.cli import console

VERBS = {
    "run": "run",
    "load": "model",
    "info": "model",
    "plan": "fit",
    "calibrate": "model",
    "sparsity": "measure",
    "distill": "distill",
    "generate": "build",
    "build": "build",
    "flash": "build",
    "validate": "device",
    "perplexity": "measure",
    "bench": "device",
    "chat": "chat",
    "boards": "boards",
    "models": "model",
    "report": "report",
    "conform": "conform",
    "size": "build",
    "stack": "build",
    "flash-curve": "device",
    "prices": "measure",
    "train-predictor": "measure",
    "export-gguf": "model",
}
"""Files of the verbs, in the order of the help."""
ALIASES = {"demo": "run", "fetch": "load"}
"""Words of the Makefile."""


class Verbs(TyperGroup):
    """Finds a verb in its file."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in VERBS:
            return None
        if name not in self.commands:
            verbs = import_module(f"sparseflash.cli.{VERBS[name]}").app
            for verb, command in typer.main.get_group(verbs).commands.items():
                command.params += _output_options()
                self.commands[verb] = command
        return self.commands[name]


def _keep(name: str) -> Any:
    def keep(given: bool) -> bool:
        if given:
            setattr(console.asked, name, True)
        return given

    return keep


def _flag(name: str, text: str) -> Any:
    options = {"expose_value": False, "callback": _keep(name), "help": text, "show_default": False}
    return typer.Option(False, f"--{name}", **options)


@cache
def _output_options() -> list[Any]:
    """The options that every verb has: they say how it prints."""
    only = typer.Typer(add_completion=False)

    @only.command()
    def _(
        as_json: bool = _flag("json", "the figures as JSON on the standard output"),
        quiet: bool = _flag("quiet", "neither progress nor sentences, only figures and errors"),
        verbose: bool = _flag("verbose", "the commands of compilers, and where an error arose"),
    ) -> None: ...

    return list(typer.main.get_command(only).params)


app = typer.Typer(
    cls=Verbs, pretty_exceptions_enable=False, no_args_is_help=True, rich_markup_mode=None
)


def _version(asked: bool) -> None:
    if asked:
        console.say(f"sparseflash {__version__}")
        raise typer.Exit


@app.callback(
    epilog="\b\nExamples:\n"
    "  sparseflash run --model story             pack, build, validate, measure, talk: on this PC\n"
    "  sparseflash plan --model story --boards   where does it fit?\n"
    "  sparseflash run --model story --board mps2-an386\n"
    "  sparseflash chat --model story\n"
)
def sparseflash(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="and stop")
    ] = False,
) -> None:
    """Language models on microcontrollers, reading only the weights each token needs."""
