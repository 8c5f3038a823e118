"""Corruptions of pictures in the manner of ImageNet-C: 15 kinds and 3 further ones, five severities, any size.

Hendrycks and Dietterich, 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations". Their
numbers are for pictures of 224 px: lengths in pixels (radii, widths of blurs, shifts) are scaled to the picture's short
side, so that a severity takes the same share of the picture at any size. Noise is drawn for each pixel and is not
scaled. What differs from theirs: frost is drawn (theirs pastes photographs), glass moves pixels by interpolated
distances in place of swapping whole ones, and motion blurs are sums of shifted pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from evaluation.robustness import blurs, colours, noises, weather
from evaluation.robustness.kinds import KINDS, SEVERITIES, Kind

U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]
Draw = Callable[[F64, int, np.random.Generator], F64]
"""Picture float64 [H, W, 3] in [0, 1], severity 1 to 5 -> the same kind of array, perhaps out of range."""

_DRAWN: Mapping[Kind, Draw] = {
    "gaussian_noise": noises.gaussian_noise,
    "shot_noise": noises.shot_noise,
    "impulse_noise": noises.impulse_noise,
    "speckle_noise": noises.speckle_noise,
    "defocus_blur": blurs.defocus_blur,
    "glass_blur": blurs.glass_blur,
    "motion_blur": blurs.motion_blur,
    "zoom_blur": blurs.zoom_blur,
    "gaussian_blur": blurs.gaussian_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": colours.brightness,
    "contrast": colours.contrast,
    "saturate": colours.saturate,
    "elastic_transform": blurs.elastic_transform,
    "pixelate": colours.pixelate,
    "jpeg_compression": colours.jpeg_compression,
}


def corrupted(pixels: U8, kind: Kind, severity: int, rng: np.random.Generator) -> U8:
    """One picture uint8 [H, W, 3], at least 8 px a side, corrupted: the same shape and type.

    Two generators in one state give equal pictures, and what is random is drawn alike at every severity.

    Raises:
        ValueError: no such kind or severity, or a smaller picture.
    """
    if kind not in _DRAWN or severity not in SEVERITIES:
        raise ValueError(f"no corruption {kind!r} of severity {severity}: there are {', '.join(KINDS)}, 1 to 5")
    if pixels.ndim != 3 or min(pixels.shape[:2]) < 8:
        raise ValueError(f"a picture of shape {pixels.shape}: expected [H, W, 3] and sides of at least 8 px")
    found = _DRAWN[kind](pixels / 255.0, severity, rng)
    return np.rint(255 * np.clip(found, 0, 1)).astype(np.uint8)


def all_corrupted(pixels: U8, kind: Kind, severity: int, *, seed: int = 0) -> U8:
    """Pictures uint8 [N, H, W, 3], each by a stream of its own, of (seed, kind, place in the row).

    Raises:
        ValueError: as `corrupted`.
    """
    number = KINDS.index(kind) if kind in KINDS else -1
    streams = (np.random.default_rng((seed, number + 1, at)) for at in range(len(pixels)))
    made = [corrupted(one, kind, severity, rng) for one, rng in zip(pixels, streams, strict=True)]
    return np.stack(made) if made else pixels.copy()
