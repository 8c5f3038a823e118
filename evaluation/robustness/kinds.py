"""Names of the corruptions of ImageNet-C (Hendrycks and Dietterich, 2019), without what draws them."""

from __future__ import annotations

from typing import Literal, get_args

JudgedKind = Literal[
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
]
ExtraKind = Literal["speckle_noise", "gaussian_blur", "saturate"]
Kind = Literal[JudgedKind, ExtraKind]

JUDGED_KINDS: tuple[JudgedKind, ...] = get_args(JudgedKind)
"""The fifteen that a model is judged by."""
EXTRA_KINDS: tuple[ExtraKind, ...] = get_args(ExtraKind)
"""Those that the authors set aside for validation, less spatter: who trains on corruptions trains on these."""
KINDS: tuple[Kind, ...] = (*JUDGED_KINDS, *EXTRA_KINDS)
SEVERITIES = (1, 2, 3, 4, 5)
