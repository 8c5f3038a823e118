"""`clipworks train`: a recipe -> a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from clipworks.cli import connect, output
from clipworks.cli.failures import UsageError


def train(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG", exists=True, dir_okay=False, help="A recipe, such as training/configs/default.toml."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change one setting, such as optim.steps=100; may be repeated."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in run.folder.")] = False,
    as_json: connect.AsJson = False,
) -> None:
    """Train a model with a recipe (needs the train extra)."""
    from training import loop

    try:
        result = loop.train(config, overrides or (), resume=resume, console=Console(stderr=True))
    except ValueError as error:
        raise UsageError(str(error)) from error
    if as_json:
        output.print_json({"folder": str(result.folder), "step": result.step, "metrics": result.metrics})
        return
    output.say(f"checkpoint at step {result.step}: {result.folder}")
    output.say(f"export it: clipworks export {result.folder} --name NAME --store FOLDER")
