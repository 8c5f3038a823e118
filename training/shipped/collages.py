"""Pictures whose labels and places are known: product photographs on white, one, four in a grid, or scattered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from evaluation.fashion import article_type
from training.config import SplitBy, SplitConfig
from training.data.reader import read_table
from training.data.rows import Split

Layout = Literal["single", "grid", "scattered"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
Edges = tuple[int, int, int, int]
_WHITE = 240  # a pixel with a darker channel is the product's
_TILE_PX = 224
_SCATTERED_PX = ((640, 480), (480, 640), (600, 600))
_SIDES_PX = (120, 260)
_MOST = 5
_TRIES = 200


@dataclass(frozen=True)
class Product:
    """A photograph and the kind of article that its title ends with."""

    path: Path
    kind: str


@dataclass(frozen=True)
class CollageThing:
    """edges: left, upper, right, lower of what is not white, in pixels."""

    kind: str
    edges: Edges


@dataclass(frozen=True, eq=False)
class Collage:
    layout: Layout
    image: Image.Image
    things: tuple[CollageThing, ...]


def read_products(folder: Path, split: Split, *, by: SplitBy) -> list[Product]:
    """Products of a split, in the table's order, whose title names one of evaluation.fashion's kinds.

    by: what decides, the product's family or its number; remainders as in the recipes of the shipped models.

    Raises:
        OSError, ValueError: no captions.csv in `folder` with these columns, or there is none of this split.
    """
    rows = read_table(folder / "captions.csv")
    splits = SplitConfig(by=by, modulo=10, test=(1,), validation=(2,)).of(rows)
    found = [
        Product(folder / row.image, kind)
        for row, its in zip(rows, splits, strict=True)
        if its == split and (kind := article_type(row.caption)) is not None
    ]
    if not found:
        raise ValueError(f"{folder}: no product of the {split} split")
    return found


def singles(products: Sequence[Product]) -> Iterator[Collage]:
    """Each photograph as it is."""
    for product in products:
        image = open_product(product)
        yield Collage("single", image, (CollageThing(product.kind, edges_of(image)),))


def collages(products: Sequence[Product], layout: Layout, count: int, *, seed: int) -> Iterator[Collage]:
    """`count` pictures of products drawn with replacement; the same seed gives the same pictures."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        if layout == "grid":
            yield _grid([products[index] for index in rng.integers(len(products), size=4)])
        elif layout == "scattered":
            yield _scattered(products, rng)
        else:
            yield next(singles([products[int(rng.integers(len(products)))]]))


def open_product(product: Product) -> Image.Image:
    with Image.open(product.path) as image:
        return image.convert("RGB")


def edges_of(image: Image.Image) -> Edges:
    """The smallest box around everything that is not white; the whole picture if all is."""
    dark = np.asarray(image).min(axis=2) < _WHITE
    rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
    if not len(rows):
        return (0, 0, image.width, image.height)
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def _grid(products: Sequence[Product]) -> Collage:
    """Two by two."""
    canvas = Image.new("RGB", (2 * _TILE_PX, 2 * _TILE_PX), "white")
    places = ((0, 0), (_TILE_PX, 0), (0, _TILE_PX), (_TILE_PX, _TILE_PX))
    things = [_paste(canvas, each, _TILE_PX, *place) for each, place in zip(products, places, strict=True)]
    return Collage("grid", canvas, tuple(things))


def _scattered(products: Sequence[Product], rng: np.random.Generator) -> Collage:
    """One to five photographs of different sizes that do not overlap."""
    width, height = _SCATTERED_PX[rng.integers(len(_SCATTERED_PX))]
    canvas = Image.new("RGB", (width, height), "white")
    wanted = int(rng.integers(1, _MOST + 1))
    taken: list[Edges] = []
    things: list[CollageThing] = []
    for _ in range(_TRIES):
        if len(things) == wanted:
            break
        side = int(rng.integers(*_SIDES_PX))
        left, upper = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
        square = (left, upper, left + side, upper + side)
        if any(_touch(square, other) for other in taken):
            continue
        taken.append(square)
        things.append(_paste(canvas, products[int(rng.integers(len(products)))], side, left, upper))
    return Collage("scattered", canvas, tuple(things))


def _paste(canvas: Image.Image, product: Product, side: int, left: int, upper: int) -> CollageThing:
    image = open_product(product).resize((side, side), Image.Resampling.BICUBIC)
    canvas.paste(image, (left, upper))
    x0, y0, x1, y1 = edges_of(image)
    return CollageThing(product.kind, (x0 + left, y0 + upper, x1 + left, y1 + upper))


def _touch(one: Edges, other: Edges) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
