"""`clipworks classify`: images and labels -> scores."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Literal

import typer

from clipworks.cli import connect, output, picture_files
from clipworks.cli.embed import taken_pictures
from clipworks.cli.failures import FAILED_ITEMS
from clipworks.cli.file_names import text_of
from clipworks.cli.label_options import Labels, LabelSet, Templates, labels_of, templates_of
from clipworks.results import ClassifyResult


def classify(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Images, or folders of images.")],
    labels: Labels = None,
    label_set: LabelSet = None,
    templates: Templates = None,
    activation: Annotated[
        Literal["softmax", "sigmoid", "none"] | None, typer.Option(help="Default: the model's own.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many labels to show for each image.")] = 5,
    threshold: Annotated[float | None, typer.Option(help="Leave out labels that score less.")] = None,
    exclude: picture_files.Exclude = None,
    include: picture_files.Include = None,
    hidden: picture_files.Hidden = False,
    follow_links: picture_files.FollowLinks = False,
    model: connect.Model = None,
    url: connect.Url = None,
    api_key: connect.ApiKey = None,
    store: connect.StoreFolder = None,
    data: connect.DataFolder = None,
    timeout_s: connect.RequestTimeoutS = None,
    as_json: connect.AsJson = False,
) -> None:
    """Score labels for each image, best first."""
    wanted = labels_of(labels, label_set)
    selection = picture_files.Selection(
        hidden=hidden, follow_links=follow_links, include=include or (), exclude=exclude or ()
    )
    files = taken_pictures(images, selection)
    names = [text_of(each) for each in files.paths]

    async def run() -> ClassifyResult:
        async with connect.label_sets_client(
            url=url,
            api_key=api_key,
            model=model,
            store=store,
            data=data,
            timeout_s=timeout_s,
            is_stored=label_set is not None,
        ) as client:
            return await client.classify(
                files.paths,
                wanted,
                label_set=label_set,
                templates=templates_of(templates),
                activation=activation,
                model=model,
                top_k=top_k,
                threshold=threshold,
                on_error="item",
                progress=sys.stderr.isatty() and len(names) > 1,
            )

    with output.saying_warnings():
        result = asyncio.run(run())
    if as_json:
        output.print_json(
            {
                "model": result.identity.model if result.identity else None,
                "data": [
                    {"image": name, "error": str(result.errors[index])}
                    if index in result.errors
                    else {"image": name, "predictions": [each.model_dump() for each in result.predictions[index]]}
                    for index, name in enumerate(names)
                ],
            }
        )
    else:
        _print(names, result)
    if not as_json:
        for index, error in result.errors.items():
            output.say(f"failed: {names[index]}: {error}")
    files.say()
    if result.errors or files.unread:
        raise typer.Exit(FAILED_ITEMS)


def _print(names: list[str], result: ClassifyResult) -> None:
    rows = [
        [
            name if place == 0 or not output.is_terminal() else "",
            each.label,
            f"{each.score:.4f}",
            "" if each.similarity is None else f"{each.similarity:.4f}",
        ]
        for name, predictions in zip(names, result.predictions, strict=True)
        for place, each in enumerate(predictions)
    ]
    if rows or not output.is_terminal():
        title = result.identity.model if result.identity else None
        output.print_table(["image", "label", "score", "similarity"], rows, title=title)
    elif not result.errors:
        output.say("no label reaches the threshold")
