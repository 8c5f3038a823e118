"""Every command with its arguments and options, by typer's own generator."""

from __future__ import annotations

import re
from typing import Any

import typer
from typer.cli import get_docs_for_click

_INTRODUCTION = """# Commands and options

Made from the code; `clipworks COMMAND --help` says the same. What the commands do with files and servers, and what they
print, is in [Command line](../cli.md).

"""


def page() -> str:
    from clipworks.cli import app

    command = typer.main.get_command(app)
    context = typer.Context(command)
    _with_whole_sentences(command, context)
    text = get_docs_for_click(obj=command, ctx=context, name="clipworks", indent=1)
    return _INTRODUCTION + re.sub(r"(?m)^( *)\* ", r"\1- ", text)


def commands() -> list[str]:
    """The names of all commands, as one types them."""
    from clipworks.cli import app

    found: list[str] = []

    def visit(command: Any, context: typer.Context, name: str) -> None:
        found.append(name)
        for each in command.list_commands(context) if hasattr(command, "list_commands") else ():
            visit(command.get_command(context, each), context, f"{name} {each}")

    command = typer.main.get_command(app)
    visit(command, typer.Context(command), "clipworks")
    return found


def _with_whole_sentences(command: Any, context: typer.Context) -> None:
    """Lists of commands cut what a command says after 45 characters, unless it has a short help."""
    if not hasattr(command, "list_commands"):
        return
    for name in command.list_commands(context):
        each = command.get_command(context, name)
        each.short_help = each.short_help or " ".join((each.help or "").split("\n\n")[0].split())
        _with_whole_sentences(each, context)
