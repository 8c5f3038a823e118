"""`clipworks distill`: a model of the store and some pictures -> a smaller model of the store."""

from __future__ import annotations

import json
import shlex
import tomllib
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from clipworks.cli import connect, model_making, output
from clipworks.cli.failures import INTERRUPTED, UsageError
from clipworks.cli.model_stores import StoreFolder, writable_store

_CAPTIONS = "captions.csv"


def distill(
    teacher: Annotated[
        str, typer.Option(metavar="NAME[@VERSION]", help="Model of the store, or the folder of a checkpoint.")
    ],
    data: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", exists=True, file_okay=False, help=f"Pictures; with captions if {_CAPTIONS} lies there."
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the student; distilling again makes its next version.")],
    student: Annotated[
        str,
        typer.Option(
            metavar="RECIPE",
            help="A recipe of the method kd or kd_image: a TOML file, or a shipped one (clipworks train --list).",
        ),
    ] = "distill/image",
    run: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the run is kept; by default runs/NAME.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe, such as optim.steps=100."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of the run.")] = False,
    precision: Annotated[str, typer.Option(help="Which to build, of fp32,fp16,int8.")] = "fp32,fp16,int8",
    licence: Annotated[str, typer.Option(help="Licence of the weights; kept in the artifact.")] = "not stated",
    training_data: Annotated[str, typer.Option(help="What it was trained on; kept in the artifact.")] = "",
    store: StoreFolder = None,
    as_json: connect.AsJson = False,
) -> None:
    """Train a smaller model on what a teacher says of your pictures, and publish it (needs the train extra).

    By default an image tower that keeps the teacher's texts, for which pictures need no captions. Ctrl-C saves a
    checkpoint; --resume goes on from it.
    """
    from training.publication import WeightsStatement
    from training.publish import publish_checkpoint
    from training.recipes import find_recipe

    target, folder = writable_store(store), run or Path("runs") / name
    try:
        recipe = find_recipe(student)
    except ValueError as error:
        raise UsageError(str(error)) from error
    own = [f"run.folder={json.dumps(str(folder))}", *_settings(recipe, teacher, data, target.root)]
    again = ["clipworks", "distill", "--teacher", teacher, "--data", str(data), "--name", name, "--student", student]
    again += ["--run", str(folder), "--store", str(target.root), "--resume"]
    again += ["--precision", precision, "--licence", licence, "--training-data", training_data]
    again += ["--json"] if as_json else []
    again += [word for each in overrides or () for word in ("--set", each)]
    trained = _train(recipe, [*own, *(overrides or [])], resume=resume, again=again)
    with output.steps(name) as step:
        artifact = publish_checkpoint(
            trained,
            name,
            target,
            precisions=model_making.precisions_of(precision),
            statement=WeightsStatement(licence=licence, training_data=training_data),
            progress=step,
        )
    model_making.print_published(artifact, as_json)


def _train(recipe: Path, settings: list[str], *, resume: bool, again: list[str]) -> Path:
    """The folder of the checkpoint. again: the command that goes on with a run that was stopped."""
    from training import loop
    from training.interrupts import TrainingStopped
    from training.log import headline

    try:
        result = loop.train(recipe, settings, resume=resume, console=Console(stderr=True))
    except TrainingStopped as stopped:
        output.say(f"{stopped}\ngo on with: {shlex.join(again)}")
        raise typer.Exit(INTERRUPTED) from None
    except ValueError as error:
        raise UsageError(str(error)) from error
    if numbers := headline(result.metrics):
        output.say(f"validation: {numbers}")
    return result.folder


def _settings(recipe: Path, teacher: str, data: Path, store: Path | None) -> list[str]:
    """What the command's own options change in the recipe.

    Raises:
        UsageError: it trains by another method.
    """
    from training.config import PicturesData

    written = tomllib.loads(recipe.read_text(encoding="utf-8"))
    method = written.get("method")
    if method not in ("kd", "kd_image"):
        raise UsageError(f"--student {recipe}: its method is {method}, expected kd or kd_image")
    found = [f"data.folder={json.dumps(str(data))}"]
    if (data / _CAPTIONS).is_file() and written.get("data", {}).get("kind") == "pictures":
        # Divided as pictures without captions are.
        own = PicturesData.model_validate({**written["data"], "folder": data})
        split = ", ".join(f"{key} = {json.dumps(value)}" for key, value in own.split.model_dump(mode="json").items())
        table = f'kind = "table", cache_px = {own.cache_px}, split = {{{split}}}, folder = {json.dumps(str(data))}'
        found = [f"data={{{table}}}"]
    named, place = ("base", "run.store") if method == "kd_image" else ("method_options.teacher", "method_options.store")
    if (Path(teacher) / "checkpoint.json").is_file():
        return [*found, f"{named}={json.dumps(teacher)}"]
    return [*found, f'{named}="artifact:{teacher}"', f"{place}={json.dumps(str(store))}"]
