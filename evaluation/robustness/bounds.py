"""The ball around a picture that an attack may use, and what of an attack a file can hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.robustness.classifier import F32, U8


@dataclass(frozen=True)
class Ball:
    """Pictures that differ from `clean` uint8 [N, H, W, 3] by at most `epsilon` of 255 levels in each value."""

    clean: U8
    epsilon: float

    def __post_init__(self) -> None:
        """Raises:
        ValueError: epsilon is not above 0.
        """
        if not self.epsilon > 0:
            raise ValueError(f"epsilon {self.epsilon}: expected more than 0, in levels of 255")

    def inside(self, pixels: F32) -> F32:
        """The nearest floats of the ball, in 0..255."""
        middle = self.clean.astype(np.float32)
        return np.clip(np.clip(pixels, middle - self.epsilon, middle + self.epsilon), 0, 255)

    def picture(self, pixels: F32) -> U8:
        """The nearest picture of whole levels that is in the ball: at most floor(epsilon) levels from the clean one."""
        reach, middle = np.floor(self.epsilon), self.clean.astype(np.float32)
        return np.clip(np.clip(np.rint(pixels), middle - reach, middle + reach), 0, 255).astype(np.uint8)

    def of(self, rows: np.ndarray) -> Ball:
        """The ball of some of the pictures, by index or mask."""
        return Ball(self.clean[rows], self.epsilon)


@dataclass(frozen=True)
class Moved:
    """How far pictures were moved: the largest step in levels, and the share of values that moved at all, each [N]."""

    largest: np.ndarray
    share: np.ndarray


def moved(clean: U8, pictures: U8) -> Moved:
    """Of pictures [N, H, W, 3] beside their clean ones."""
    steps = np.abs(pictures.astype(np.int64) - clean.astype(np.int64)).reshape(len(clean), -1)
    return Moved(largest=steps.max(axis=1), share=(steps > 0).mean(axis=1))
