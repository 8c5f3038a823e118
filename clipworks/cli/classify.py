"""`clipworks classify`: images and labels -> scores."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from clipworks.cli import connect, output
from clipworks.cli.embed import images_below
from clipworks.cli.failures import FAILED_ITEMS, UsageError
from clipworks.results import ClassifyResult

Labels = Annotated[str | None, typer.Option(help="Labels separated by commas, or @FILE with one on each line.")]
LabelSet = Annotated[str | None, typer.Option(help="A label set that the server has stored.")]
Templates = Annotated[
    list[str] | None,
    typer.Option("--template", help="none, simple, imagenet, or a text with one {}; may be repeated."),
]


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
    model: connect.Model = None,
    url: connect.Url = None,
    api_key: connect.ApiKey = None,
    store: connect.StoreFolder = None,
    timeout_s: connect.TimeoutS = 60.0,
    as_json: connect.AsJson = False,
) -> None:
    """Score labels for each image, best first."""
    wanted = labels_of(labels, label_set)
    names = _images(images)

    async def run() -> ClassifyResult:
        async with connect.vectors_client(
            url=url, api_key=api_key, model=model, store=store, timeout_s=timeout_s
        ) as client:
            return await client.classify(
                names,
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
    if result.errors:
        raise typer.Exit(FAILED_ITEMS)


def _images(given: list[str]) -> list[str]:
    return [name for each in given for name in (images_below(Path(each)) if Path(each).is_dir() else [each])]


def labels_of(text: str | None, label_set: str | None) -> list[str] | None:
    """The labels that were given; None: those of a label set.

    Raises:
        UsageError: neither or both were given, there is no label, or the file cannot be read.
    """
    if (text is None) == (label_set is None):
        raise UsageError("give either --labels cat,dog or --label-set NAME")
    if text is None:
        return None
    if text.startswith("@"):
        try:
            found = Path(text[1:]).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise UsageError(f"--labels {text}: {reason}") from error
    else:
        found = text.split(",")
    labels = [label.strip() for label in found if label.strip()]
    if not labels:
        raise UsageError(f"--labels {text!r}: expected labels separated by commas, such as cat,dog")
    return labels


def templates_of(given: list[str] | None) -> str | list[str] | None:
    return given[0] if given and len(given) == 1 and "{" not in given[0] else given or None


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
