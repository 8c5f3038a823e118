"""Views of pictures, each shown to the teacher once: what it said is kept beside what the student's first blocks, which
are not trained, make of it.

Photographs are few, so each is shown in many parts, also of a thumbnail, and mixed with other pictures (Beyer et al.,
2022, "Knowledge distillation: A good teacher is patient and consistent"). Student and teacher see the same view, each
at its own size.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from model_store.files import whole_file
from training.shipped.everyday.pictures import thumbnail
from training.teachers import Teacher

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
_CHUNK = 32
_KEPT_OPEN = 4096  # pictures, whole sets of which fit in memory
_MIXED, _THUMBNAILS = 0.25, 0.5  # shares of the views
_LEAST_LIGHT, _MOST_LIGHT = 0.7, 1.3


@dataclass(frozen=True)
class PictureSet:
    """open: the pictures, each read when it is asked for. digest: of what they are read from. views: how many are
    drawn. least: the smallest part of a short side that is shown. thumbnails: half of the views are of the picture made
    small before.
    """

    name: str
    open: Sequence[Callable[[], Image.Image]]
    digest: str
    views: int
    least: float
    thumbnails: bool = False


@dataclass(frozen=True)
class SeenViews:
    """maps: float16 [N, C, h, w] of the student's first blocks. stages: float32 [N, F], the means that its head takes
    of them. vectors: unit float32 [N, D], the teacher's.
    """

    maps: NDArray[np.float16]
    stages: F32
    vectors: F32

    def __len__(self) -> int:
        return len(self.vectors)


Look = Callable[[U8], tuple[NDArray[np.float16], F32]]
"""Pictures [B, S, S, 3] -> maps and stages."""


def seen_views(
    pictures: PictureSet,
    others: Sequence[PictureSet],
    teacher: Teacher,
    look: Look,
    *,
    size_px: int,
    seed: int,
    key: str,
    folder: Path,
) -> SeenViews:
    """The views of a set and what the teacher said of them, read from `folder` if they lie there.

    others: what its views are mixed with. key: names what `look` depends on.
    """
    drawn = [pictures.name, pictures.digest, pictures.views, pictures.least, pictures.thumbnails]
    mixed = [[each.name, each.digest] for each in others]
    parts = [2, drawn, mixed, teacher.digest, size_px, seed, key]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    paths = {part: folder / f"{pictures.name}-{digest}-{part}.npy" for part in ("maps", "stages", "vectors")}
    if not all(path.exists() for path in paths.values()):
        folder.mkdir(parents=True, exist_ok=True)
        views = _views(pictures, others, sizes=(size_px, teacher.size_px), rng=random.Random(f"{pictures.name} {seed}"))
        found: list[SeenViews] = []
        while chunk := list(islice(views, _CHUNK)):
            found.append(_seen(*zip(*chunk, strict=True), teacher=teacher, look=look))
        for part, path in paths.items():
            with whole_file(path) as stream:
                np.save(stream, np.concatenate([getattr(each, part) for each in found]))
    return SeenViews(np.load(paths["maps"], mmap_mode="r"), np.load(paths["stages"]), np.load(paths["vectors"]))


def whole_pictures(pictures: PictureSet, teacher: Teacher, look: Look, *, size_px: int) -> SeenViews:
    """Every picture of a set once, its middle as both would be served."""
    own, its = [], []
    for each in pictures.open:
        image = each()
        side = min(image.size)
        box = ((image.width - side) / 2, (image.height - side) / 2)
        region = (*box, box[0] + side, box[1] + side)
        own.append(_rendered(image, region, size_px, mirrored=False))
        its.append(_rendered(image, region, teacher.size_px, mirrored=False))
    return _seen(own, its, teacher=teacher, look=look)


def _seen(own: Sequence[U8], its: Sequence[U8], *, teacher: Teacher, look: Look) -> SeenViews:
    vectors = teacher.image_vectors(torch.from_numpy(np.stack(its))).numpy()
    return SeenViews(*look(np.stack(own)), vectors)


def _views(
    pictures: PictureSet, others: Sequence[PictureSet], *, sizes: tuple[int, int], rng: random.Random
) -> Iterator[tuple[U8, U8]]:
    """Every picture in turn, in an order drawn anew each time round."""
    opened: dict[tuple[str, int], Image.Image] = {}
    order: list[int] = []
    for _ in range(pictures.views):
        if not order:
            order = rng.sample(range(len(pictures.open)), len(pictures.open))
        found = _view(pictures, order.pop(), sizes, rng, opened)
        if rng.random() < _MIXED:
            other = rng.choice(others)
            beside = _view(other, rng.randrange(len(other.open)), sizes, rng, opened)
            share = rng.uniform(0.3, 0.7)
            found = tuple(_blended(a, b, share) for a, b in zip(found, beside, strict=True))
        yield found[0], found[1]


def _view(
    pictures: PictureSet,
    which: int,
    sizes: tuple[int, int],
    rng: random.Random,
    opened: dict[tuple[str, int], Image.Image],
) -> tuple[U8, ...]:
    small = pictures.thumbnails and rng.random() < _THUMBNAILS
    key = (f"{pictures.name}{' small' if small else ''}", which)
    image = opened.get(key)
    if image is None:
        image = pictures.open[which]()
        image = thumbnail(image) if small else image
        if len(pictures.open) <= _KEPT_OPEN:
            opened[key] = image
    side, ratio = min(image.size) * rng.uniform(pictures.least, 1.0), rng.uniform(0.85, 1.18)
    width, height = min(image.width, side * ratio**0.5), min(image.height, side / ratio**0.5)
    x, y = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    mirrored, light = rng.random() < 0.5, rng.uniform(_LEAST_LIGHT, _MOST_LIGHT) if rng.random() < 0.5 else 1.0
    region = (x, y, x + width, y + height)
    return tuple(_rendered(image, region, size, mirrored=mirrored, light=light) for size in sizes)


def _rendered(
    image: Image.Image,
    region: tuple[float, float, float, float],
    size_px: int,
    *,
    mirrored: bool,
    light: float = 1.0,
) -> U8:
    part = image.resize((size_px, size_px), Image.Resampling.BICUBIC, box=region)
    part = ImageOps.mirror(part) if mirrored else part
    return np.asarray(part if light == 1 else ImageEnhance.Brightness(part).enhance(light))


def _blended(first: U8, second: U8, share: float) -> U8:
    return np.round(share * first.astype(np.float32) + (1 - share) * second).astype(np.uint8)
