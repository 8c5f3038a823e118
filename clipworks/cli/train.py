"""`clipworks train`: a recipe -> a checkpoint."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from clipworks.cli import connect, output
from clipworks.cli.failures import INTERRUPTED, UsageError


def train(
    config: Annotated[
        str | None,
        typer.Argument(metavar="CONFIG", help="A recipe: a TOML file, or the name of a shipped one (see --list)."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change one setting, such as optim.steps=100; may be repeated."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in run.folder.")] = False,
    from_step: Annotated[
        int | None, typer.Option("--from-step", metavar="STEP", help="Go on from that step's checkpoint instead.")
    ] = None,
    list_recipes: Annotated[bool, typer.Option("--list", help="List the shipped recipes.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the recipe, to be saved and changed.")] = False,
    as_json: connect.AsJson = False,
) -> None:
    """Train a model with a recipe (needs the train extra). Ctrl-C saves a checkpoint; --resume goes on from it."""
    from training.recipes import find_recipe, shipped_recipes

    if list_recipes:
        for name, about in shipped_recipes().items():
            output.say(f"{name}\t{about}" if not sys.stdout.isatty() else f"{name:24} {about}")
        return
    if config is None:
        raise UsageError(
            "which recipe? give a file or a name: clipworks train captions --set data.folder=FOLDER (--list)"
        )
    try:
        path = find_recipe(config)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if show:
        sys.stdout.write(path.read_text(encoding="utf-8"))
        return
    _run(path, config, overrides or [], resume=resume, from_step=from_step, as_json=as_json)


def _run(path: Path, config: str, overrides: list[str], *, resume: bool, from_step: int | None, as_json: bool) -> None:
    from training import loop
    from training.distributed import launched_first
    from training.interrupts import TrainingStopped
    from training.log import headline

    try:
        result = loop.train(path, overrides, resume=resume, from_step=from_step, console=Console(stderr=True))
    except TrainingStopped as stopped:
        words = ["clipworks", "train", config, *(word for each in overrides for word in ("--set", each)), "--resume"]
        output.say(f"{stopped}\ngo on with: {shlex.join(words)}")
        raise typer.Exit(INTERRUPTED) from None
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not launched_first():
        return
    if as_json:
        output.print_json({"folder": str(result.folder), "step": result.step, "metrics": result.metrics})
        return
    if numbers := headline(result.metrics):
        output.say(f"validation: {numbers}")
    output.say(f"checkpoint at step {result.step}: {result.folder}")
    output.say(f"export it: clipworks export {shlex.quote(str(result.folder))} --name NAME --store FOLDER")
