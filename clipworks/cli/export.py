"""`clipworks export`: a training checkpoint -> a published artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from clipworks.cli import connect, model_making, output
from clipworks.cli.model_stores import StoreFolder, writable_store

_T = TypeVar("_T")
_PICTURES = (".jpg", ".jpeg", ".png", ".webp")
_CALIBRATION = 64


def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", exists=True, file_okay=False, help="Checkpoint folder of a training run."),
    ],
    name: Annotated[str, typer.Option(help="Name of the artifact; exporting again makes its next version.")],
    precision: Annotated[str, typer.Option(help="Which to build, of fp32,fp16,int8.")] = "fp32,fp16,int8",
    text_precision: Annotated[
        str | None,
        typer.Option(help="Which to build of the text encoder, of a model of its own.", show_default="as --precision"),
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights; kept in the artifact.")] = "not stated",
    training_data: Annotated[str, typer.Option(help="What it was trained on; kept in the artifact.")] = "",
    limits: Annotated[str, typer.Option(help="What it does not know; kept in the artifact.")] = "",
    notice: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Attributions and licence texts; becomes the artifact's file NOTICE.",
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Pictures of its own domain, to calibrate int8 with (64 at most).",
        ),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", exists=True, dir_okay=False, help="Texts of its own domain, one a line."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="JSON of `python -m training.report`; kept in the artifact.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[@VERSION]",
            help="Artifact that a class head or a cured text tower derives from; by default the store's that fits.",
        ),
    ] = None,
    base_checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Where the checkpoint that it was trained behind lies now, if it was moved.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Where its recipe's table lies now, to prove that a changed tower still fits its base.",
        ),
    ] = None,
    dense: Annotated[model_making.Dense, typer.Option(help=model_making.DENSE_HELP)] = "naclip",
    store: StoreFolder = None,
    as_json: connect.AsJson = False,
) -> None:
    """Export a checkpoint to ONNX, prove that it is the same model, and publish it (needs the train extra).

    What keeps parts of its base (a class head, a cured text tower) is published as a derivation: only the new part,
    with the base named.
    """
    from training.publication import WeightsStatement
    from training.publish import publish_checkpoint

    target = writable_store(store)
    with output.steps(name) as step:
        artifact = publish_checkpoint(
            checkpoint,
            name,
            target,
            base=base,
            base_folder=base_checkpoint,
            data_folder=data,
            precisions=model_making.precisions_of(precision),
            text_precisions=None if text_precision is None else model_making.precisions_of(text_precision),
            statement=WeightsStatement(
                licence=licence,
                training_data=training_data,
                limits=limits,
                notice=notice.read_text(encoding="utf-8") if notice else "",
            ),
            pictures=_evenly([path.read_bytes() for path in _pictures_of(pictures)]) if pictures else (),
            texts=_evenly(texts.read_text(encoding="utf-8").splitlines()) if texts else (),
            report=_report_of(report) if report else None,
            dense=dense,
            progress=step,
        )
    model_making.print_published(artifact, as_json)


def _pictures_of(folder: Path) -> list[Path]:
    paths = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in _PICTURES and not path.name.startswith(".") and path.is_file()
    )
    if not paths:
        raise typer.BadParameter(f"{folder} holds no {', '.join(_PICTURES)} file", param_hint="--pictures")
    return paths


def _report_of(path: Path) -> dict[str, object]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return {content["split"]: content["report"]}


def _evenly(found: list[_T]) -> list[_T]:
    """At most _CALIBRATION of them, spread over the whole list."""
    return found[:: -(-len(found) // _CALIBRATION)]
