"""Pictures that everyday-small is trained on, as its image tower takes them, and what is said of each."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from evaluation.fashion import article_type
from model_store.manifest import ImageSpec
from model_store.modality.image import OWN_FILES, decode, prepare
from training.config import SceneData, SplitConfig
from training.data.coco import Instances, read_captions, read_instances
from training.data.reader import read_table
from training.data.rows import Split
from training.data.scenes import draw_scenes

U8 = NDArray[np.uint8]
CROPS, REDUCED_CROPS = 24, 12  # of each photograph
REDUCED_SHORT_PX = 150
_REDUCED_QUALITY = 85
_LEAST_BOX_PX2 = 40 * 40
_BOX_MARGIN = 1.25
_CAPTIONS = 4  # of each scene


@dataclass(frozen=True)
class CaptionedPhotograph:
    path: Path
    captions: tuple[str, ...]


@dataclass(frozen=True)
class BoxedThing:
    """photograph: its index; box: left, upper, right, lower in pixels."""

    photograph: int
    box: tuple[float, float, float, float]
    name: str


@dataclass(frozen=True)
class ShopProduct:
    """kind: what the title's last words name, one of evaluation.fashion's kinds, or None."""

    path: Path
    title: str
    colour: str
    kind: str | None


def read_photographs(coco: Path) -> tuple[list[CaptionedPhotograph], list[BoxedThing]]:
    """The photographs of train2017 with their captions, and the things in them that are not too small.

    Raises:
        OSError, ValueError: not a folder with COCO's `annotations` and `train2017`.
    """
    captions: dict[str, list[str]] = {}
    for row in read_captions(coco / "annotations" / "captions_train2017.json"):
        captions.setdefault(row.image, []).append(row.caption)
    names = list(captions)
    found = [CaptionedPhotograph(coco / "train2017" / name, tuple(captions[name])) for name in names]
    where = {name: at for at, name in enumerate(names)}
    things: list[BoxedThing] = []
    for picture in read_instances(coco / "annotations" / "instances_train2017.json"):
        if picture.image in where:
            things += _things(picture, where[picture.image])
    return found, things


def _things(picture: Instances, photograph: int) -> Iterator[BoxedThing]:
    for label, box, crowd in zip(picture.labels, picture.boxes.tolist(), picture.crowd.tolist(), strict=True):
        left, upper, right, lower = box
        if not crowd and (right - left) * (lower - upper) >= _LEAST_BOX_PX2:
            yield BoxedThing(photograph, (left, upper, right, lower), label)


def read_shop(folder: Path, split: SplitConfig, wanted: Split = "train") -> list[ShopProduct]:
    """Products of one split, in the table's order.

    Raises:
        OSError, ValueError: no table with these columns in `folder`, or no product of this split.
    """
    rows = read_table(folder / "captions.csv", label_columns=("baseColour",))
    found = [
        ShopProduct(folder / row.image, row.caption, row.labels["baseColour"].lower(), article_type(row.caption))
        for row, its in zip(rows, split.of(rows), strict=True)
        if its == wanted
    ]
    if not found:
        raise ValueError(f"{folder}: no product of the {wanted} split")
    return found


def whole(pictures: Sequence[Path], spec: ImageSpec) -> Iterator[U8]:
    """Each as it is served."""
    for path in pictures:
        yield prepare(decode(path.read_bytes(), OWN_FILES), spec)


def crops(photographs: Sequence[CaptionedPhotograph], side_px: int) -> Iterator[U8]:
    """CROPS nearly square parts of each, half of them mirrored."""
    for seed, each in enumerate(photographs):
        yield from _crops(opened(each.path), seed=seed, count=CROPS, side_px=side_px)


def reduced(photographs: Sequence[CaptionedPhotograph], spec: ImageSpec) -> Iterator[U8]:
    """Each made as small as a thumbnail first."""
    for each in photographs:
        yield prepare(thumbnail(opened(each.path)), spec)


def reduced_crops(photographs: Sequence[CaptionedPhotograph], side_px: int) -> Iterator[U8]:
    """REDUCED_CROPS parts of each thumbnail."""
    for seed, each in enumerate(photographs):
        yield from _crops(thumbnail(opened(each.path)), seed=seed, count=REDUCED_CROPS, side_px=side_px)


def boxed(photographs: Sequence[CaptionedPhotograph], things: Sequence[BoxedThing], side_px: int) -> Iterator[U8]:
    """The square around each thing, a quarter wider than it; what the photograph's edges cut off is not made up for."""
    for thing in things:
        image = opened(photographs[thing.photograph].path)
        left, upper, right, lower = thing.box
        side = max(right - left, lower - upper) * _BOX_MARGIN
        x, y = (left + right) / 2, (upper + lower) / 2
        edges = (
            round(max(0, x - side / 2)),
            round(max(0, y - side / 2)),
            round(min(image.width, x + side / 2)),
            round(min(image.height, y + side / 2)),
        )
        yield np.asarray(image.crop(edges).resize((side_px, side_px), Image.Resampling.BICUBIC))


def drawn_scenes(data: SceneData) -> tuple[U8, list[tuple[str, ...]]]:
    """Pictures [N, S, S, 3] and four true captions of each."""
    rows = draw_scenes(data, seed=0)
    captions = [
        tuple(rows.draw(row, number, negative=False).text for number in range(_CAPTIONS))
        for row in range(len(rows.scenes))
    ]
    return rows.pixels, captions


def opened(path: Path) -> Image.Image:
    """RGB, as it is served."""
    return decode(path.read_bytes(), OWN_FILES).convert("RGB")


def thumbnail(image: Image.Image) -> Image.Image:
    """As a JPEG whose short side is REDUCED_SHORT_PX."""
    scale = REDUCED_SHORT_PX / min(image.size)
    small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=_REDUCED_QUALITY)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


def _crops(image: Image.Image, *, seed: int, count: int, side_px: int) -> Iterator[U8]:
    rng = random.Random(seed)
    for _ in range(count):
        side, ratio = min(image.size) * rng.uniform(0.7, 1.0), rng.uniform(0.85, 1.18)
        width, height = min(image.width, side * ratio**0.5), min(image.height, side / ratio**0.5)
        x, y = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
        part = image.resize((side_px, side_px), Image.Resampling.BICUBIC, box=(x, y, x + width, y + height))
        yield np.asarray(ImageOps.mirror(part) if rng.random() < 0.5 else part)
