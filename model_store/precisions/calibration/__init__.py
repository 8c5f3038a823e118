"""Inputs for int8 ranges and for measuring every precision: photographs, drawn pictures, plain texts.

The photographs are CC BY 2.0; `ATTRIBUTION.tsv` beside them names each one's source and says how it was changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_store.manifest import ImageSpec
from model_store.modality.image import OWN_FILES, decode, prepare
from model_store.modality.text import Tokenizer

FOLDER = Path(__file__).parent
DRAWN_PICTURES = 8
_KINDS = (
    "cat", "dog", "red car", "bus on a street", "bowl of soup", "person riding a bicycle", "plate of food",
    "wooden table", "blue shirt", "leather handbag", "pair of running shoes", "wrist watch", "green tree",
    "mountain lake", "city at night", "beach", "computer keyboard", "old book", "glass of water", "white horse",
)  # fmt: skip
CALIBRATION_TEXTS: tuple[str, ...] = (
    *(f"a photo of a {kind}" for kind in _KINDS),
    *(f"{kind}" for kind in _KINDS[:8]),
    "two people are standing next to each other and looking at a map",
    "a group of young children playing football on a field of grass in front of a school building",
    "there is no dog in this picture",
    "Puma Men Black Sports Shoes",
    "the cup is to the left of the laptop, and the phone is under the newspaper",
    "3 red circles, 2 blue squares & 1 green triangle!",
    "close-up, black and white, 35mm film, f/1.8",
    "what is written on the sign?",
    "una foto de un perro",
    "写真",
    "x",
    "A very detailed description of a large room with a wooden floor, three tall windows on the left side, "
    "a long table with eight chairs, a lamp that hangs from the ceiling, "
    "and a painting of a ship on the wall behind the sofa",
)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Arrays for one model: `pixels` uint8 [N, H, W, 3], `rows` token ids of M texts, specials included, not padded."""

    pixels: NDArray[np.uint8]
    rows: tuple[tuple[int, ...], ...]


def calibration_for(
    image_spec: ImageSpec,
    tokenizer: Tokenizer,
    *,
    pictures: Sequence[bytes] = (),
    texts: Sequence[str] = (),
) -> Calibration:
    """The shipped pictures and texts and `pictures` (encoded) and `texts` beside them, prepared as serving does it.

    A model of a narrow domain (64 px product photographs) should bring some of its own training data.
    """
    encoded = [*calibration_photographs(), *_drawn_pictures(), *pictures]
    return Calibration(
        pixels=np.stack([prepare(decode(data, OWN_FILES), image_spec) for data in encoded]),
        rows=tuple(tuple(tokenizer.encode(text)) for text in [*CALIBRATION_TEXTS, *texts]),
    )


def calibration_photographs() -> list[bytes]:
    """The shipped JPEG files' bytes, by name."""
    return [path.read_bytes() for path in sorted(FOLDER.glob("*.jpg"))]


@cache
def _drawn_pictures() -> tuple[bytes, ...]:
    return tuple(_png(_drawn(seed)) for seed in range(DRAWN_PICTURES))


def _drawn(seed: int) -> Image.Image:
    """A smooth colour field with hard-edged rectangles, on white for half of the seeds (product photographs)."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (4, 5, 3)).astype(np.uint8)
    field = np.asarray(Image.fromarray(coarse).resize((240, 180), Image.Resampling.BICUBIC)).copy()
    picture = np.full_like(field, 255) if seed % 2 else field
    for _ in range(5):
        left, top = int(rng.integers(0, 180)), int(rng.integers(0, 130))
        width, height = int(rng.integers(20, 60)), int(rng.integers(20, 50))
        picture[top : top + height, left : left + width] = rng.integers(0, 256, 3)
    return Image.fromarray(picture)


def _png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
