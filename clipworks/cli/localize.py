"""`clipworks localize`: an image and labels -> what is where, drawn on the image."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from clipworks.cli import connect, output
from clipworks.cli.failures import UsageError
from clipworks.cli.file_names import text_of
from clipworks.cli.label_options import Labels, LabelSet, Templates, labels_of, names_of, templates_of
from clipworks.results import LocalizeResult, Located, LocatedLabel
from clipworks.schemas import Included

_DRAWN = (".png", ".jpg", ".jpeg", ".webp")
_BEST = "best"


def localize(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="One image.")],
    labels: Labels = None,
    label_set: LabelSet = None,
    templates: Templates = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Score of a label that is present. Default: the model's own.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Draw the boxes on the image: .png, .jpg or .webp.")] = None,
    heat: Annotated[
        str | None, typer.Option(metavar="LABEL", help=f"Draw this label's map too; {_BEST}: that of the best label.")
    ] = None,
    masks: Annotated[bool, typer.Option("--masks", help="With --json: masks of the boxes (COCO run lengths).")] = False,
    short_px: Annotated[
        int | None, typer.Option(min=8, max=4096, help="Look at the image at this short side: less is faster.")
    ] = None,
    model: connect.Model = None,
    url: connect.Url = None,
    api_key: connect.ApiKey = None,
    store: connect.StoreFolder = None,
    timeout_s: connect.RequestTimeoutS = None,
    as_json: connect.AsJson = False,
) -> None:
    """Say which labels are in an image, how sure, and where; --out draws it."""
    wanted = labels_of(labels, label_set)
    if out is not None and out.suffix.lower() not in _DRAWN:
        raise UsageError(f"--out {out}: expected a name that ends with {', '.join(_DRAWN)}")
    if heat is not None and out is None:
        raise UsageError("--heat is drawn on the image: give --out overlay.png too")
    if not image.is_file():
        raise UsageError(f"{text_of(image)}: no such file" if not image.exists() else f"{text_of(image)}: not a file")
    if heat not in (None, _BEST) and wanted is not None and heat not in names_of(wanted):
        raise UsageError(f"--heat {heat!r}: expected one of the labels, or {_BEST}")

    async def run() -> tuple[LocalizeResult, LocatedLabel | None]:
        async with connect.vectors_client(
            url=url, api_key=api_key, model=model, store=store, timeout_s=timeout_s
        ) as client:

            async def ask(include: list[Included], heatmap_labels: list[str] | None = None) -> LocalizeResult:
                return await client.localize(
                    [image],
                    wanted,
                    label_set=label_set,
                    templates=templates_of(templates),
                    model=model,
                    threshold=threshold,
                    include=include,
                    heatmap_format="png",
                    heatmap_labels=heatmap_labels,
                    short_px=short_px,
                    on_error="item",
                )

            result = await ask(["boxes", "mask"] if masks else ["boxes"])
            if heat is None:
                return result, None
            shown = _only(result).labels[0].label if heat == _BEST else heat
            mapped = _only(await ask(["heatmap"], [shown]))
            return result, next(each for each in mapped.labels if each.label == shown)

    with output.saying_warnings():
        result, heated = asyncio.run(run())
    found = _only(result)
    if out is not None:
        _draw(image, found, heated, result.threshold, out)
    if as_json:
        output.print_json(_described(image, found, result))
    else:
        _print(found, result)
    if out is not None:
        output.say(f"drawn: {out}")


def _only(result: LocalizeResult) -> Located:
    """The one image's answer. Raises its error."""
    found = result.images[0]
    if found is None:
        raise result.errors[0]
    return found


def _draw(image: Path, found: Located, heated: LocatedLabel | None, threshold: float | None, out: Path) -> None:
    from clipworks.cli.overlay import draw_overlay, open_picture

    try:
        picture = open_picture(image)
    except OSError as error:
        raise UsageError(f"{image} cannot be drawn on: {error}") from error
    draw_overlay(picture, found, heat=heated, threshold=threshold).save(out)


def _described(image: Path, found: Located, result: LocalizeResult) -> dict[str, Any]:
    return {
        "model": result.identity.model if result.identity else None,
        "threshold": result.threshold,
        "image": text_of(image),
        **asdict(found),
    }


def _print(found: Located, result: LocalizeResult) -> None:
    rows = [
        [
            each.label,
            f"{each.score:.4f}",
            "yes" if each.present else "no",
            " ".join(f"{box.x0:.0f},{box.y0:.0f}-{box.x1:.0f},{box.y1:.0f}" for box in each.boxes),
        ]
        for each in found.labels
    ]
    title = f"{result.identity.model if result.identity else ''}: {found.width} x {found.height} px"
    output.print_table(["label", "score", "present", "boxes (x0,y0-x1,y1)"], rows, title=title)
