"""The row schema: one captioned image, and the rule that says which split it is in."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.scenes.meaning import Meaning

Split = Literal["train", "validation", "test"]
_LAST_NUMBER = re.compile(r"(\d+)(?!.*\d)")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image file with its caption; `group` is the number that decides the split (a product id).

    `negative`: a caption that is plainly false for this image.
    """

    image: str
    caption: str
    group: int
    labels: dict[str, str] = field(default_factory=dict)
    negative: str | None = None


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """Which split a group number is in: its remainder modulo `modulo`; what is listed nowhere is training."""

    modulo: int
    validation: tuple[int, ...]
    test: tuple[int, ...]

    def __post_init__(self) -> None:
        listed = (*self.validation, *self.test)
        if len(set(listed)) != len(listed) or any(not 0 <= r < self.modulo for r in listed):
            raise ValueError(f"split remainders {listed} must be distinct and in 0..{self.modulo - 1}")

    def of(self, group: int) -> Split:
        remainder = group % self.modulo
        return "test" if remainder in self.test else "validation" if remainder in self.validation else "train"


def group_of(image: str) -> int:
    """The last run of digits in the file name without its extension (`images/10001.jpg` -> 10001).

    Raises:
        ValueError: there is none.
    """
    stem = image.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    match = _LAST_NUMBER.search(stem)
    if match is None:
        raise ValueError(f'image name {image!r} holds no number to split by; set data.split.by to "name"')
    return int(match.group(1))


def group_of_name(image: str) -> int:
    """A number that depends on the whole path only, for files whose names hold no number that means anything."""
    return int.from_bytes(hashlib.sha256(image.encode("utf-8", "surrogateescape")).digest()[:6], "big")


def caption_ids(captions: Sequence[str]) -> NDArray[np.int64]:
    """One id per distinct case-folded caption, int64 [N]: rows that share an id are positives of each other."""
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(caption.casefold(), len(seen)) for caption in captions], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A true caption and, where one was asked for and exists, a plainly false one that is easily mistaken for it.

    meaning, negative_meaning: what they say, where the data know it.
    """

    text: str
    negative: str | None = None
    meaning: Meaning | None = None
    negative_meaning: Meaning | None = None


@dataclass(frozen=True, kw_only=True)
class LabelledRow:
    """Pictures uint8 [n, H, W, 3] and which of `names` each shows: present bool [n, C]."""

    pixels: NDArray[np.uint8]
    names: tuple[str, ...]
    present: NDArray[np.bool_]
