"""A picture with what was found drawn on it: boxes with legible tags, the map of one label as heat. Needs Pillow."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from clipworks.errors import UnreadableInput
from clipworks.results import Box, Heatmap, Located, LocatedLabel

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font = FreeTypeFont | ImageFont

_LEAST_PX = 640  # smaller pictures are enlarged, so that tags can be read and do not hide them
_COLOURS = (
    "#e6194b",
    "#3cb44b",
    "#4363d8",
    "#ff8c1a",
    "#911eb4",
    "#00b8c4",
    "#f032e6",
    "#9a6324",
    "#ffd500",
    "#808000",
)
# Dark violet over red to pale yellow: ordered in lightness too, so that it can be read in grey.
_HEAT = (
    (0.0, (30, 12, 70)),
    (0.35, (150, 30, 100)),
    (0.65, (235, 85, 45)),
    (0.85, (252, 180, 40)),
    (1.0, (252, 255, 190)),
)
_WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "DejaVuSans.ttf")


class _Tag(NamedTuple):
    """A label's text on its colour: left, upper, right, lower in pixels of the drawing."""

    area: tuple[float, float, float, float]
    text: str
    colour: str
    font: Font


def open_picture(path: Path) -> Image:
    """The upright RGB picture of a file, as the server sees it: by the same decoder.

    Raises:
        OSError: it cannot be read. UnreadableInput: it is no picture.
    """
    from model_store.errors import InputError
    from model_store.modality.image import OWN_FILES, decode

    try:
        return decode(path.read_bytes(), OWN_FILES)
    except InputError as error:
        raise UnreadableInput(f"{path} cannot be drawn on: {error}") from error


def draw_overlay(picture: Image, found: Located, *, heat: LocatedLabel | None = None, threshold: float | None) -> Image:
    """The picture, at least 640 px on its long side, with every box of `found` and the map of `heat`.

    A line below says what the map shows, and that nothing was found if so.
    """
    from PIL import Image as images
    from PIL import ImageDraw

    factor = max(1.0, _LEAST_PX / max(picture.size))
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    canvas = picture if size == picture.size else picture.resize(size, images.Resampling.BICUBIC)
    canvas = canvas.convert("RGB")
    if heat is not None and heat.heatmap is not None:
        canvas = _heated(canvas, heat.heatmap)
    drawing = ImageDraw.Draw(canvas)
    font_px = max(15, min(max(canvas.size) // 42, 96))
    stroke = max(2, font_px // 7)
    scale = (canvas.width / found.width, canvas.height / found.height)
    present = [each for each in found.labels if each.present]
    placed: list[_Tag] = []
    for place, label in enumerate(present):
        colour = _COLOURS[place % len(_COLOURS)]
        for box in label.boxes:
            edges = _edges(box, scale, canvas.size, stroke)
            drawing.rectangle(edges, outline="black", width=stroke + 2)
            drawing.rectangle([edges[0] + 1, edges[1] + 1, edges[2] - 1, edges[3] - 1], outline=colour, width=stroke)
            text = f"{label.label} {box.score:.2f}"
            placed.append(_tag(drawing, text, colour, font_px, edges, canvas.size, placed))
    for tag in reversed(placed):  # the best one last: on top where two cannot avoid each other
        drawing.rectangle(tag.area, fill=tag.colour, outline="black")
        drawing.text((tag.area[0] + font_px // 4, tag.area[1]), tag.text, fill=_ink(tag.colour), font=tag.font)
    note = _note(found, present, heat, threshold)
    return _with_note(canvas, note, font_px) if note else canvas


def _heated(canvas: Image, heatmap: Heatmap) -> Image:
    """The picture in grey under the map's colours; where the label is no likelier than others (0) it is only grey."""
    from PIL import Image as images

    with images.open(io.BytesIO(heatmap.png or b"")) as opened:
        levels = opened.convert("L").resize(canvas.size, images.Resampling.BILINEAR)
    low, high = heatmap.low, heatmap.high
    ground = 255 * -low / (high - low) if low < 0 < high else 0.0
    shares = [max(0.0, (level - ground) / (255 - ground)) for level in range(256)]
    tables = [[_heat_colour(share)[channel] for share in shares] for channel in range(3)]
    colours = images.merge("RGB", [levels.point(table) for table in tables])
    cover = levels.point([round(255 * min(0.72, 1.1 * share)) for share in shares])
    return images.composite(colours, canvas.convert("L").convert("RGB"), cover)


def _heat_colour(share: float) -> tuple[int, int, int]:
    for (low, dark), (high, light) in zip(_HEAT[:-1], _HEAT[1:], strict=True):
        if share <= high:
            part = (share - low) / (high - low)
            red, green, blue = (round(a + part * (b - a)) for a, b in zip(dark, light, strict=True))
            return red, green, blue
    return _HEAT[-1][1]


def _edges(box: Box, scale: tuple[float, float], size: tuple[int, int], stroke: int) -> list[float]:
    """Left, upper, right, lower inside the drawing, never so thin that nothing would be seen."""
    left, right = box.x0 * scale[0], box.x1 * scale[0]
    upper, lower = box.y0 * scale[1], box.y1 * scale[1]
    least = 2.0 * (stroke + 2)
    left, upper = min(left, size[0] - 1 - least), min(upper, size[1] - 1 - least)
    return [
        max(left, 0),
        max(upper, 0),
        min(max(right, left + least), size[0] - 1),
        min(max(lower, upper + least), size[1] - 1),
    ]


def _tag(
    drawing: ImageDraw,
    text: str,
    colour: str,
    font_px: int,
    edges: Sequence[float],
    size: tuple[int, int],
    placed: Sequence[_Tag],
) -> _Tag:
    """The text at the first of some places around its box that no other tag takes, cut if it is too long."""
    font = _font(text, font_px)
    text = _cut(drawing, text, font, size[0] - font_px)
    width, height = drawing.textlength(text, font=font) + font_px // 2, 1.35 * font_px
    left = min(max(edges[0], 0), size[0] - 1 - width)
    right = min(max(edges[2] - width, 0), size[0] - 1 - width)
    uppers = (edges[1] - height, edges[1], edges[3], edges[3] - height)
    places = [(x, min(max(y, 0), size[1] - 1 - height)) for y in uppers for x in (left, right)]
    places += [(left, min(edges[1] + n * height, size[1] - 1 - height)) for n in range(1, 12)]
    areas = [(x, y, x + width, y + height) for x, y in places]
    free = (area for area in areas if not any(_meet(area, other.area) for other in placed))
    return _Tag(next(free, areas[0]), text, colour, font)


def _meet(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _cut(drawing: ImageDraw, text: str, font: Font, width: float) -> str:
    if drawing.textlength(text, font=font) <= width:
        return text
    name, _, score = text.rpartition(" ")
    while name and drawing.textlength(f"{name}… {score}", font=font) > width:
        name = name[:-1]
    return f"{name}… {score}"


def _font(text: str, font_px: int) -> Font:
    """Pillow's own font; one of the system's for letters that it may lack."""
    from PIL import ImageFont as fonts

    if any(ord(letter) > 0x24F and letter != "…" for letter in text):
        for name in _WIDE_FONTS:
            try:
                return fonts.truetype(name, font_px)
            except OSError:
                continue
    return fonts.load_default(font_px)


def _ink(colour: str) -> str:
    """Black or white, whichever is easier to read on it (relative luminance, WCAG 2)."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return "black" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18 else "white"


def _note(found: Located, present: Sequence[LocatedLabel], heat: LocatedLabel | None, threshold: float | None) -> str:
    parts: list[str] = []
    if heat is not None and heat.heatmap is not None:
        parts.append(f"heat: {heat.label} {heat.score:.2f}")
    if not present and found.labels:
        best = found.labels[0]
        limit = "" if threshold is None else f" {threshold:.2f}"
        parts.append(f"no label reaches the threshold{limit}; best: {best.label} {best.score:.2f}")
    return "; ".join(parts)


def _with_note(canvas: Image, note: str, font_px: int) -> Image:
    from PIL import Image as images
    from PIL import ImageDraw

    height = round(1.6 * font_px)
    whole = images.new("RGB", (canvas.width, canvas.height + height), "#14171c")
    whole.paste(canvas, (0, 0))
    drawing = ImageDraw.Draw(whole)
    font = _font(note, font_px)
    text = _cut(drawing, note, font, canvas.width - font_px)
    drawing.text((font_px // 2, canvas.height + font_px // 8), text, fill="white", font=font)
    return whole
