"""`clipworks export`: a training checkpoint -> a published artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipworks.cli import connect, models, output


def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", exists=True, file_okay=False, help="Checkpoint folder of a training run."),
    ],
    name: Annotated[str, typer.Option(help="Name of the artifact; exporting again makes its next version.")],
    precision: Annotated[str, typer.Option(help="Which to build, of fp32,fp16,int8.")] = "fp32,fp16,int8",
    licence: Annotated[str, typer.Option(help="Licence of the weights; kept in the artifact.")] = "not stated",
    training_data: Annotated[str, typer.Option(help="What it was trained on; kept in the artifact.")] = "",
    limits: Annotated[str, typer.Option(help="What it does not know; kept in the artifact.")] = "",
    store: models.StoreFolder = None,
    as_json: connect.AsJson = False,
) -> None:
    """Export a checkpoint to ONNX, prove that it is the same model, and publish it (needs the train extra)."""
    from training.export import export_checkpoint

    target = models.writable_store(store)
    with output.steps(name) as step:
        artifact = export_checkpoint(
            checkpoint,
            name,
            target,
            precisions=models.precisions_of(precision),
            licence=licence,
            training_data=training_data,
            limits=limits,
            progress=step,
        )
    models.print_published(artifact, as_json)
