"""A picture that a probe shows: a scene, perhaps spoilt, drawn at the size the encoder wants."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from evaluation.scenes.rendering import render
from evaluation.scenes.scene import Scene

Corruption = Literal["noise", "blur", "low contrast", "jpeg"]
CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
_NOISE_LEVELS = 40.0  # standard deviation, of 255
_BLUR_SHARE = 0.02  # of the image side
_CONTRAST = 0.3
_JPEG_QUALITY = 8


@dataclass(frozen=True, slots=True)
class Picture:
    """`corruption` None is the clean picture."""

    scene: Scene
    corruption: Corruption | None = None

    def draw(self, size_px: int) -> NDArray[np.uint8]:
        """uint8 [size_px, size_px, 3], the same on every call."""
        image = render(self.scene, size_px).image
        return image if self.corruption is None else _SPOIL[self.corruption](image, self.scene.seed)


def _noise(image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(0, _NOISE_LEVELS, image.shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def _blur(image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(_BLUR_SHARE * len(image))))


def _low_contrast(image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    mean = image.mean()
    return np.rint(mean + _CONTRAST * (image - mean)).astype(np.uint8)


def _jpeg(image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "JPEG", quality=_JPEG_QUALITY)
    return np.asarray(Image.open(sink).convert("RGB"))


_SPOIL: Mapping[Corruption, Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]] = {
    "noise": _noise,
    "blur": _blur,
    "low contrast": _low_contrast,
    "jpeg": _jpeg,
}
