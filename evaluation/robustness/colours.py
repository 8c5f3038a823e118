"""Brightness, contrast, saturation, and what files do: on float64 [H, W, 3] in [0, 1], see `corruptions`."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

F64 = NDArray[np.float64]


def brightness(x: F64, severity: int, rng: np.random.Generator) -> F64:
    """More value in the sense of HSV; hue and saturation stay."""
    more = (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    value = x.max(axis=2, keepdims=True)
    wanted = np.clip(value + more, 0, 1)
    return np.where(value > 0, x * wanted / np.maximum(value, 1e-9), wanted)


def contrast(x: F64, severity: int, rng: np.random.Generator) -> F64:
    kept = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    means = x.mean(axis=(0, 1), keepdims=True)
    return (x - means) * kept + means


def saturate(x: F64, severity: int, rng: np.random.Generator) -> F64:
    """Another saturation in the sense of HSV, at first less and then more of it: colours may lose their names."""
    times, more = ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))[severity - 1]
    value = x.max(axis=2, keepdims=True)
    less = (value - x) / np.maximum(value, 1e-9)  # of each channel; the largest of a pixel is its saturation
    saturation = less.max(axis=2, keepdims=True)
    wanted = np.clip(saturation * times + more, 0, 1)
    # A grey pixel has the hue red, as in the authors' HSV.
    grey = saturation <= 1e-9
    share = np.where(grey, np.array([0.0, 1.0, 1.0]), less / np.maximum(saturation, 1e-9))
    return value * (1 - wanted * share)


def pixelate(x: F64, severity: int, rng: np.random.Generator) -> F64:
    kept = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    height, width = x.shape[:2]
    few = max(1, int(width * kept)), max(1, int(height * kept))
    image = _picture(x).resize(few, Image.Resampling.BOX)
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST)) / 255.0


def jpeg_compression(x: F64, severity: int, rng: np.random.Generator) -> F64:
    sink = io.BytesIO()
    _picture(x).save(sink, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    return np.asarray(Image.open(sink)) / 255.0


def _picture(x: F64) -> Image.Image:
    return Image.fromarray(np.rint(255 * np.clip(x, 0, 1)).astype(np.uint8))
