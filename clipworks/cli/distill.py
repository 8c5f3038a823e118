"""`clipworks distill`: a model of the store and some pictures -> a smaller model of the store."""

from __future__ import annotations

import json
import shlex
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
    from training import loop
    from training.config import load_config
    from training.interrupts import TrainingStopped
    from training.log import headline
    from training.publication import WeightsStatement
    from training.publish import publish_checkpoint
    from training.recipes import find_recipe

    target, folder = writable_store(store), run or Path("runs") / name
    changed = [f"run.folder={json.dumps(str(folder))}", *(overrides or [])]
    try:
        recipe = find_recipe(student)
        settings = [*_settings(recipe, teacher, data, target.root), *changed]
        method = load_config(recipe, settings).method
        if method not in ("kd", "kd_image"):
            raise UsageError(f"--student {student}: its method is {method}, expected kd or kd_image")
        result = loop.train(recipe, settings, resume=resume, console=Console(stderr=True))
    except TrainingStopped as stopped:
        again = ["clipworks", "distill", "--teacher", teacher, "--data", str(data), "--name", name, "--resume"]
        again += ["--student", student, "--run", str(folder), *(w for each in overrides or () for w in ("--set", each))]
        again += ["--store", str(target.root)] if store else []
        output.say(f"{stopped}\ngo on with: {shlex.join(again)}")
        raise typer.Exit(INTERRUPTED) from None
    except ValueError as error:
        raise UsageError(str(error)) from error
    if numbers := headline(result.metrics):
        output.say(f"validation: {numbers}")
    with output.steps(name) as step:
        artifact = publish_checkpoint(
            folder,
            name,
            target,
            precisions=model_making.precisions_of(precision),
            statement=WeightsStatement(licence=licence, training_data=training_data),
            progress=step,
        )
    model_making.print_published(artifact, as_json)


def _settings(recipe: Path, teacher: str, data: Path, store: Path | None) -> list[str]:
    """What the command's own options change in the recipe."""
    import tomllib

    written = tomllib.loads(recipe.read_text(encoding="utf-8"))
    checkpoint = (Path(teacher) / "checkpoint.json").is_file()
    named = json.dumps(str(Path(teacher)) if checkpoint else f"artifact:{teacher}")
    found = [f"data.folder={json.dumps(str(data))}"]
    if (data / _CAPTIONS).is_file() and written.get("data", {}).get("kind") == "pictures":
        # The same split rule as of pictures without captions.
        split = '{by = "name", modulo = 10, validation = [2], test = [1]}'
        cache = written["data"].get("cache_px", 64)
        found = [f'data={{kind = "table", cache_px = {cache}, split = {split}, folder = {json.dumps(str(data))}}}']
    if written.get("method") == "kd_image":
        found.append(f"base={named}")
        place = "run.store"
    else:
        found.append(f"method_options.teacher={named}")
        place = "method_options.store"
    return [*found, f"{place}={json.dumps(str(store))}"] if store and not checkpoint else found
