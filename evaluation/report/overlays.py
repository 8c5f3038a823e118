"""Pictures that went best and worst, with truth and answer drawn on them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from evaluation.dense.overlays import Kind, Overlay
from evaluation.report.markup import Markup, element

_TITLES: tuple[tuple[Kind, str], ...] = (("best", "The best pictures"), ("worst", "The worst pictures"))
_GAP_PX, _LINE_PX = 16, 18
_LEGEND = (
    "Left: the truth, each label in its colour. Right: the map of each of these labels in its colour, a cross where it "
    "is highest, and the best boxes of labels that are called present, as many as there are things (white: of a label "
    "that is not there). Ranked by the mean IoU of the labels that are there, when these are given."
)


def overlays(found: Sequence[Overlay]) -> list[Markup]:
    """A heading and figures for the best, then for the worst; nothing for none."""
    parts: list[Markup] = []
    for kind, title in _TITLES:
        some = [each for each in found if each.kind == kind]
        if some:
            figures = element("div", {"class": "overlays"}, *(_figure(each) for each in some))
            parts += [element("h4", None, title), figures]
    return [*parts, element("p", {"class": "note"}, _LEGEND)] if parts else []


def _figure(shown: Overlay) -> Markup:
    lines = [element("li", None, line) for line in shown.lines]
    words = f"{shown.name}, truth and answer. {'; '.join(shown.lines)}"
    return element(
        "figure",
        {"class": f"overlay {shown.kind}"},
        element("img", {"src": f"data:image/webp;base64,{shown.webp}", "alt": words}),
        element(
            "figcaption",
            None,
            element("strong", None, f"{shown.name}: mean IoU {100 * shown.overlap:.0f} %"),
            element("ul", None, *lines),
        ),
    )


def sheet(shown: Sequence[Overlay], *, columns: int = 2) -> Image.Image:
    """Overlays side by side on white, a line with the name and the mean IoU under each."""
    panels: list[Image.Image] = []
    for each in shown:
        with Image.open(io.BytesIO(base64.b64decode(each.webp))) as opened:
            panels.append(opened.convert("RGB"))
    width, height = max(one.width for one in panels), max(one.height for one in panels)
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    step = width + _GAP_PX, height + _LINE_PX + _GAP_PX
    out = Image.new("RGB", (columns * step[0] - _GAP_PX, rows * step[1] - _GAP_PX), "white")
    drawing = ImageDraw.Draw(out)
    for at, (panel, each) in enumerate(zip(panels, shown, strict=True)):
        left, upper = at % columns * step[0], at // columns * step[1]
        out.paste(panel, (left, upper))
        words = f"{each.name}: mean IoU {each.overlap:.2f}"
        drawing.text((left, upper + height + 2), words, fill="black", font=ImageFont.load_default(13))
    return out
