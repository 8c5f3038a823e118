"""Models as attacks see them: float pictures in, logits out, and gradients where there are any; without any torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from evaluation.encoder import Encoder

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
Pull = Callable[[NDArray[np.floating]], F32]
"""What the output of a function says of its input: derivatives by the outputs -> derivatives by the inputs."""


class PictureClassifier(Protocol):
    """Pictures float32 [N, H, W, 3] in 0..255 -> logits float64 [N, C]."""

    def logits(self, pixels: F32) -> F64: ...


@runtime_checkable
class PulledClassifier(Protocol):
    """A classifier that can be differentiated: [N, C] of weights pulls back to [N, H, W, 3]."""

    def logits(self, pixels: F32) -> F64: ...
    def pulled(self, pixels: F32) -> tuple[F64, Pull]: ...


@runtime_checkable
class PulledEncoder(Protocol):
    """An encoder that can be differentiated by its pixels."""

    def pulled_vectors(self, pixels: F32) -> tuple[F32, Pull]:
        """Un-normalised vectors [N, D] of float pictures [N, H, W, 3] in 0..255 of the model's size, and their pull.

        Raises:
            ValueError: the model gives no gradients.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class VectorClassifier:
    """Cosines with unit class vectors `classes` float32 [C, D], times `scale`, by an encoder that gives gradients."""

    encoder: PulledEncoder
    classes: F32
    scale: float = 100.0

    def logits(self, pixels: F32) -> F64:
        return self.pulled(pixels)[0]

    def pulled(self, pixels: F32) -> tuple[F64, Pull]:
        vectors, pull = self.encoder.pulled_vectors(pixels)
        lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12).astype(np.float64)
        unit, classes = vectors / lengths, self.classes.astype(np.float64)

        def back(weights: NDArray[np.floating]) -> F32:
            along = self.scale * weights @ classes
            across = (along - (along * unit).sum(axis=1, keepdims=True) * unit) / lengths
            return pull(across)

        return self.scale * unit @ classes.T, back


@dataclass(frozen=True, kw_only=True)
class SeenClassifier:
    """The same by any encoder, whose pictures are whole numbers and which gives no gradients."""

    encoder: Encoder
    classes: F32
    scale: float = 100.0

    def logits(self, pixels: F32) -> F64:
        pictures = np.rint(pixels).astype(np.uint8)
        found = self.encoder.encode_images(list(pictures)).astype(np.float64)
        return self.scale * found @ self.classes.astype(np.float64).T
