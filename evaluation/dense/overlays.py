"""A picture with its truth, and beside it with what was answered: where the labels in it were found, and how well."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from evaluation.dense.truth import Mask, PictureWithTruth
from evaluation.locating import Found
from evaluation.probes.localisation import best_cells
from model_store.modality.image import OWN_FILES, decode
from model_store.regions import stretch

Kind = Literal["best", "worst"]
RGB = tuple[int, int, int]
PANEL_PX = 320  # longest side of one of the two panels
_FONT_PX, _TAG_PX, _GAP_PX = 13, 17, 6
_WHITE: RGB = (255, 255, 255)
_Area = tuple[float, float, float, float]
_COLOURS: tuple[RGB, ...] = (
    (230, 25, 75),
    (0, 130, 200),
    (60, 180, 75),
    (245, 130, 48),
    (145, 30, 180),
    (0, 170, 170),
    (240, 50, 230),
    (154, 99, 36),
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Showing:
    """A judged picture, kept to be drawn. overlaps, points: of each label in it (IoU with labels given, None where it
    is wholly under other masks; 1: pointed at it). names: of all labels."""

    sample: PictureWithTruth
    found: Found
    overlaps: tuple[float | None, ...]
    points: tuple[float, ...]
    kind: Kind = "best"
    names: tuple[str, ...] = ()

    @property
    def overlap(self) -> float:
        """Mean IoU of the labels that are to be seen, at least one."""
        return float(np.mean([each for each in self.overlaps if each is not None]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """A drawn picture as plain data. overlap: mean IoU of its labels. lines: what is drawn, in words. webp: base64."""

    kind: Kind
    name: str
    overlap: float
    lines: tuple[str, ...]
    webp: str


def overlay_from_json(data: Mapping[str, Any]) -> Overlay:
    """The inverse of `asdict`, also after a trip through a file.

    Raises:
        KeyError, TypeError, ValueError: not an overlay.
    """
    base64.b64decode(data["webp"], validate=True)
    return Overlay(**{**data, "lines": tuple(data["lines"])})


def overlay_of(shown: Showing) -> Overlay:
    sink = io.BytesIO()
    draw_showing(shown).save(sink, "WEBP", quality=82, method=4)
    return Overlay(
        kind=shown.kind,
        name=shown.sample.name,
        overlap=shown.overlap,
        lines=tuple(_lines(shown)),
        webp=base64.b64encode(sink.getvalue()).decode("ascii"),
    )


def draw_showing(shown: Showing) -> Image.Image:
    """Two panels. Left: outlines of the things, each label in its colour. Right: the map of each of these labels in its
    colour, a cross where it is highest, and the best boxes, as many as there are things."""
    truth = shown.sample.truth
    picture = _opened(shown.sample)
    scale = PANEL_PX / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    colours = {label: _COLOURS[at % len(_COLOURS)] for at, label in enumerate(truth.labels)}
    whole = Image.new("RGB", (2 * size[0] + _GAP_PX, size[1]), "white")
    whole.paste(_with_truth(picture, shown, colours), (0, 0))
    whole.paste(_with_answer(picture, shown, colours), (size[0] + _GAP_PX, 0))
    return whole


def _opened(sample: PictureWithTruth) -> Image.Image:
    shown = sample.shown
    return decode(shown, OWN_FILES) if isinstance(shown, bytes) else Image.fromarray(shown)


def _with_truth(picture: Image.Image, shown: Showing, colours: dict[int, RGB]) -> Image.Image:
    pixels = np.array(picture)
    instances = shown.sample.truth.instances
    masks = [np.asarray(Image.fromarray(one.mask).resize(picture.size)) for one in instances]
    for one, mask in zip(instances, masks, strict=True):
        pixels[_grown(mask, 3) & ~mask] = (0, 0, 0)
        pixels[_grown(mask, 2) & ~mask] = colours[one.label]
    canvas = Image.fromarray(pixels)
    drawing = ImageDraw.Draw(canvas)
    tagged: set[int] = set()
    taken: list[_Area] = []
    for one, mask in sorted(zip(instances, masks, strict=True), key=lambda each: -int(each[1].sum())):
        rows, columns = np.nonzero(mask)
        if one.label not in tagged and len(rows):
            tagged.add(one.label)
            name = shown.names[one.label]
            left = float(columns.mean()) - drawing.textlength(name, font=ImageFont.load_default(_FONT_PX)) / 2 - 3
            places = [(left, float(rows.max()) + 3), (left, float(rows.min()) - _TAG_PX - 3)]
            taken.append(_tag(drawing, name, places, colours[one.label], picture.size, taken=taken))
    return canvas


def _with_answer(picture: Image.Image, shown: Showing, colours: dict[int, RGB]) -> Image.Image:
    found = shown.found
    labels = list(colours)
    width, height = picture.size
    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32) * 0.8 + 40
    if labels:
        heights = np.stack([_risen(found.maps[label], height, width) for label in labels])
        best = heights.argmax(axis=0)
        tint = np.array([colours[label] for label in labels], dtype=np.float32)[best]
        cover = 0.85 * np.clip(np.take_along_axis(heights, best[None], axis=0)[0], 0, 1)[..., None] ** 1.5
        grey = grey * (1 - cover) + tint * cover
    canvas = Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
    drawing = ImageDraw.Draw(canvas)
    across, down = width / found.width, height / found.height
    boxes = _best_boxes(shown)
    for label, box in boxes[::-1]:  # the best one last, on top
        left, upper, right, lower = box[0] * across, box[1] * down, box[2] * across - 1, box[3] * down - 1
        drawing.rectangle([left, upper, max(left, right), max(upper, lower)], outline="black", width=4)
        drawing.rectangle([left + 1, upper + 1, max(left + 1, right - 1), max(upper + 1, lower - 1)],
                          outline=colours.get(label, _WHITE), width=2)  # fmt: skip
    taken: list[_Area] = []
    for label, box in boxes:
        text, left, upper, lower = f"{shown.names[label]} {box[4]:.2f}", box[0] * across, box[1] * down, box[3] * down
        places = [(left, upper - _TAG_PX), (left, lower), (left, upper), (left, lower - _TAG_PX)]
        taken.append(_tag(drawing, text, places, colours.get(label, _WHITE), picture.size, taken=taken))
    for label in labels:
        for row, column in best_cells(found.maps[label])[:1].tolist():
            rows, columns = found.grid
            _cross(drawing, (column + 0.5) * width / columns, (row + 0.5) * height / rows, colours[label])
    return canvas


def _risen(heat: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """A map as the share of its way from median to peak, enlarged."""
    ground, peak = float(np.median(heat)), float(heat.max())
    return (stretch(heat, height, width) - ground) / max(peak - ground, 1e-12)


def _best_boxes(shown: Showing) -> list[tuple[int, list[float]]]:
    """(label, box) of labels that are called present, best first."""
    found = shown.found
    boxes = [
        (label, box)
        for label in np.flatnonzero(found.scores >= found.threshold).tolist()
        for box in found.boxes[label].tolist()
    ]
    boxes.sort(key=lambda each: -each[1][4])
    return boxes[: len(shown.sample.truth.instances)]


def _grown(mask: Mask, by: int) -> Mask:
    """The mask and all within `by` pixels, corners cut."""
    out = mask.copy()
    for _ in range(by):
        wider = out.copy()
        wider[1:] |= out[:-1]
        wider[:-1] |= out[1:]
        wider[:, 1:] |= out[:, :-1]
        wider[:, :-1] |= out[:, 1:]
        out = wider
    return out


def _cross(drawing: ImageDraw.ImageDraw, x: float, y: float, colour: RGB) -> None:
    for width, ink in ((5, "black"), (3, "white"), (1, colour)):
        arm = 6 + width / 2
        drawing.line([x - arm, y, x + arm, y], fill=ink, width=width)
        drawing.line([x, y - arm, x, y + arm], fill=ink, width=width)


def _tag(
    drawing: ImageDraw.ImageDraw,
    text: str,
    places: Sequence[tuple[float, float]],
    colour: RGB,
    size: tuple[int, int],
    *,
    taken: Sequence[_Area] = (),
) -> _Area:
    """The text at the first of some places (left, upper) that no other tag has, moved into the picture."""
    font = ImageFont.load_default(_FONT_PX)
    width = drawing.textlength(text, font=font) + 6
    lefts = (max(0.0, min(left, size[0] - 1 - width)) for left, _ in places)
    uppers = (max(0.0, min(upper, size[1] - 1 - _TAG_PX)) for _, upper in places)
    areas = [(left, upper, left + width, upper + _TAG_PX) for left, upper in zip(lefts, uppers, strict=True)]
    area = next((each for each in areas if not any(_meet(each, other) for other in taken)), areas[0])
    drawing.rectangle(area, fill=colour, outline="black")
    red, green, blue = ((channel / 255) ** 2.2 for channel in colour)
    light = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18  # relative luminance, WCAG 2
    drawing.text((area[0] + 3, area[1]), text, fill="black" if light else "white", font=font)
    return area


def _meet(one: _Area, other: _Area) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _said(overlap: float | None) -> str:
    return "wholly under other masks" if overlap is None else f"IoU {overlap:.2f}"


def _lines(shown: Showing) -> list[str]:
    found, names = shown.found, shown.names
    lines = [
        f"{names[label]}: score {found.scores[label]:.2f}, {_said(overlap)}, pointed {'right' if point else 'wrong'}"
        for label, overlap, point in zip(shown.sample.truth.labels, shown.overlaps, shown.points, strict=True)
    ]
    there = set(shown.sample.truth.labels)
    wrong: Sequence[int] = [
        label for label in np.argsort(-found.scores, kind="stable").tolist()
        if label not in there and found.scores[label] >= found.threshold
    ]  # fmt: skip
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        some = ", ".join(f"{names[label]} {found.scores[label]:.2f}" for label in wrong[:3])
        lines.append(f"called present and are not: {some}{more}")
    return lines
