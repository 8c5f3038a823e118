"""Augmentation that keeps a caption true: pixels keep their colours and end in uint8, captions lose words at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evaluation.robustness.corruptions import corrupted
from evaluation.robustness.kinds import Kind


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """One corruption of one picture: what it is, and the seed of its noise."""

    kind: Kind
    severity: int
    seed: int

    def of(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 [H, W, 3] -> the same."""
        return corrupted(pixels, self.kind, self.severity, np.random.default_rng(self.seed))


@dataclass(frozen=True, kw_only=True)
class CorruptionAugment:
    """A share of the pictures is corrupted, each by one kind at a severity of the range, all equally likely."""

    share: float
    kinds: tuple[Kind, ...]
    severities: tuple[int, int]

    def draw(self, rng: np.random.Generator) -> Corruption | None:
        """None: the picture stays as it is. As many numbers are drawn either way."""
        chosen, kind, seed = rng.random(), rng.integers(len(self.kinds)), rng.integers(2**31)
        severity = rng.integers(self.severities[0], self.severities[1] + 1)
        if chosen >= self.share:
            return None
        return Corruption(kind=self.kinds[int(kind)], severity=int(severity), seed=int(seed))


@dataclass(frozen=True, kw_only=True)
class View:
    """What was drawn for one picture: its shift, the border and the box of its crop, whether it is mirrored, and how it
    is corrupted."""

    shift: NDArray[np.integer] | None
    margin_px: int
    box: tuple[float, float, float, float] | None
    flipped: bool
    corruption: Corruption | None = None


@dataclass(frozen=True, kw_only=True)
class ImageAugment:
    """Random shift, crop and horizontal flip, and corruptions of some pictures.

    `shift_px` moves the picture by up to that many whole pixels over a border of `fill`: nothing is resampled, so it
    stays as sharp as the pictures that are served. `scale` bounds a crop's side as a share of the source side; over 1
    the picture is shrunk onto a border of `fill`; `aspect` is the largest ratio of the crop's sides.
    Colours are never touched but by `corruption`, because captions name them. `flip` is the chance of mirroring: 0 for
    captions that say left or right.
    """

    size_px: int
    scale: tuple[float, float] = (0.7, 1.0)
    aspect: float = 1.0
    shift_px: int = 0
    flip: float = 0.5
    fill: int = 255
    corruption: CorruptionAugment | None = None

    def __call__(self, pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """uint8 [S, S, 3] -> uint8 [size_px, size_px, 3]."""
        return self.seen(pixels, self.draw(pixels.shape[0], rng))

    def draw(self, side_px: int, rng: np.random.Generator) -> View:
        """How a picture of this side will be seen: cheap, where drawing the pixels is not."""
        shift, crop = None, None
        if self.shift_px:
            shift = rng.integers(-self.shift_px, self.shift_px + 1, size=2)
        if self.scale != (1.0, 1.0) or self.aspect != 1.0 or side_px != self.size_px:
            crop = self._crop(side_px, rng)
        return View(
            shift=shift,
            margin_px=crop[0] if crop else 0,
            box=crop[1] if crop else None,
            flipped=rng.random() < self.flip,
            corruption=self.corruption.draw(rng) if self.corruption else None,
        )

    def seen(self, pixels: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
        """uint8 [S, S, 3] -> uint8 [size_px, size_px, 3]."""
        if view.shift is not None:
            pixels = _shifted(pixels, view.shift, self.fill)
        if view.box is not None or pixels.shape[0] != self.size_px:
            image, side = Image.fromarray(pixels), pixels.shape[0] + 2 * view.margin_px
            if view.margin_px:
                canvas = Image.new("RGB", (side, side), (self.fill, self.fill, self.fill))
                canvas.paste(image, (view.margin_px, view.margin_px))
                image = canvas
            pixels = np.asarray(image.resize((self.size_px, self.size_px), Image.Resampling.BILINEAR, box=view.box))
        pixels = pixels[:, ::-1] if view.flipped else pixels
        return pixels if view.corruption is None else view.corruption.of(pixels)

    def _crop(self, side: int, rng: np.random.Generator) -> tuple[int, tuple[float, float, float, float]]:
        """The margin that is put around the picture, and the box that is cut out of both."""
        stretch = self.aspect ** rng.uniform(-1, 1)
        crop = side * rng.uniform(*self.scale)
        width, height = crop * stretch**0.5, crop / stretch**0.5
        margin = int(np.ceil((max(width, height) - side) / 2)) + 1 if max(width, height) > side else 0
        side += 2 * margin
        left, top = rng.uniform(0, side - width), rng.uniform(0, side - height)
        return margin, (left, top, left + width, top + height)


def _shifted(pixels: NDArray[np.uint8], offset: NDArray[np.integer], fill: int) -> NDArray[np.uint8]:
    """`pixels` [S, S, 3] moved down and right by `offset` (negative: up and left); what is uncovered is `fill`."""
    margin = int(np.abs(offset).max())
    side = pixels.shape[0]
    canvas = np.full((side + 2 * margin, side + 2 * margin, 3), fill, dtype=np.uint8)
    top, left = margin + int(offset[0]), margin + int(offset[1])
    canvas[top : top + side, left : left + side] = pixels
    return canvas[margin : margin + side, margin : margin + side]


@dataclass(frozen=True, kw_only=True)
class CaptionAugment:
    """Random word drop, then a template for a share of the captions.

    `templates` each hold one `{}`; without them a model trained on bare titles loses 15 points of type accuracy
    to the words "a photo of a". At least one word of a caption stays. `tail` is the chance to keep only a title's last
    one to three words, where shops name colour and article type.
    """

    templates: Sequence[str] = ()
    template_share: float = 0.5
    word_drop: float = 0.15
    tail: float = 0.0

    def __call__(self, caption: str, rng: np.random.Generator) -> str:
        words = caption.split()
        if rng.random() < self.tail:
            words = words[-int(rng.integers(1, 4)) :]
        kept = [word for word in words if rng.random() >= self.word_drop]
        caption = " ".join(kept or [words[int(rng.integers(len(words)))]])
        if self.templates and rng.random() < self.template_share:
            caption = self.templates[int(rng.integers(len(self.templates)))].format(caption)
        return caption
