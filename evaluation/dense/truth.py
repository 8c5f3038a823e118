"""Ground truth of a labelled picture: which labels are in it, and which pixels are whose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evaluation.locating import Shown

Mask = NDArray[np.bool_]
Box = tuple[float, float, float, float]
Classes = NDArray[np.int16]
BACKGROUND, UNJUDGED = -1, -2


@dataclass(frozen=True, eq=False, kw_only=True)
class Instance:
    """One thing, or several of one label where nobody counted. label: index of the set's labels.

    mask: what is seen of it, bool [height, width]. hit: where pointing at it is right; the mask and what it encloses.
    box: left, upper, right, lower edge in pixels. crowd: a box on it is neither right nor wrong (COCO's `iscrowd`).
    """

    label: int
    mask: Mask
    hit: Mask
    box: Box
    crowd: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class Truth:
    """Sizes in pixels of the upright picture. unjudged: pixels that count nowhere, None if all do."""

    width: int
    height: int
    instances: tuple[Instance, ...]
    unjudged: Mask | None = None

    @property
    def labels(self) -> tuple[int, ...]:
        """Those that are in the picture, ascending."""
        return tuple(sorted({one.label for one in self.instances}))

    @cached_property
    def visible(self) -> tuple[int, ...]:
        """Those with a pixel of their own, ascending: a label wholly under smaller masks, or unjudged, has none."""
        return tuple(label for label in np.unique(self.classes).tolist() if label > BACKGROUND)

    def hits(self, label: int) -> Mask:
        """Where pointing at `label`, which is in the picture, is right."""
        return np.logical_or.reduce([one.hit for one in self.instances if one.label == label])

    @cached_property
    def classes(self) -> Classes:
        """int16 [height, width]: each pixel's label, BACKGROUND or UNJUDGED. Of two masks the smaller is on top."""
        out = np.full((self.height, self.width), BACKGROUND, dtype=np.int16)
        for one in sorted(self.instances, key=lambda each: -int(each.mask.sum())):
            out[one.mask] = one.label
        if self.unjudged is not None:
            out[self.unjudged] = UNJUDGED
        return out


@dataclass(frozen=True, eq=False)
class PictureWithTruth:
    """A picture as the encoder gets it, and what is true of it."""

    name: str
    shown: Shown
    truth: Truth


class LabelledPictures(Protocol):
    """A set of labelled pictures, opened one at a time.

    boxed: whether its things are told apart, so that boxes can be judged. asked: digest of pictures and labels.
    """

    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def boxed(self) -> bool: ...
    @property
    def asked(self) -> str: ...
    @property
    def notes(self) -> Sequence[str]: ...
    def __len__(self) -> int: ...
    def open(self, index: int) -> PictureWithTruth:
        """Raises:
        ValueError: the picture or its labels cannot be used; the message names the file.
        """
        ...
