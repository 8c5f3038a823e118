"""One-matrix maps of unit vectors for searches inside one modality: x -> unit(W (x - m)). Numpy only.

A contrastive loss compares pictures with texts and never pictures with pictures, so cosines of two pictures may depend
on directions that the loss left alone (Mistretta et al., 2025, "Cross the Gap"; whether they do is disputed: arXiv
2603.16100). The fits below leave such directions out. Two more, of pictures' own directions and of random ones, are
controls: a fit that does not beat them has cured nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_store.towers import Vectors, normalized

F64 = NDArray[np.float64]
_RANK = 1e-10  # of the largest singular value; less is rounding


@dataclass(frozen=True, kw_only=True)
class VectorMap:
    """matrix float32 [K, D]; mean float32 [D], subtracted first."""

    matrix: Vectors
    mean: Vectors

    def __call__(self, vectors: NDArray[np.floating]) -> Vectors:
        """Unit vectors [N, D] -> unit vectors [N, K]; a row that the map makes zero stays zero."""
        return normalized((vectors - self.mean) @ self.matrix.T)


@dataclass(frozen=True, kw_only=True)
class VectorMaps:
    """The maps of image vectors and of text vectors into one space."""

    image: VectorMap
    text: VectorMap


def principal(vectors: NDArray[np.floating], *, keep: int) -> VectorMaps:
    """Both modalities in the `keep` directions in which `vectors` [N, D] vary most, the first ones first.

    Of texts it is the cure that the survey of IsoCLIP's authors lists as PCA, of pictures a control. The mean only
    serves to find the directions and is not subtracted, so all D directions change no cosine.

    Raises:
        ValueError: fewer than two vectors, or keep outside 1..D.
    """
    count, dim = vectors.shape
    if count < 2:
        raise ValueError(f"principal directions need two vectors, got {count}")
    _check_keep(keep, dim)
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    # Of the covariance, so that there are D directions even of fewer vectors.
    directions = np.linalg.eigh(centred.T @ centred)[1][:, ::-1]
    return _shared(directions[:, :keep].T)


def random_directions(dim: int, *, keep: int, seed: int) -> VectorMaps:
    """Both modalities in `keep` orthonormal directions drawn at random: what leaving out alone does. A control.

    Raises:
        ValueError: keep outside 1..dim.
    """
    _check_keep(keep, dim)
    drawn = np.random.default_rng(seed).standard_normal((dim, keep))
    return _shared(np.linalg.qr(drawn)[0].T)


def centred(images: NDArray[np.floating], texts: NDArray[np.floating]) -> VectorMaps:
    """Each modality less its own mean, of unit vectors [N, D] and [M, D].

    For collections of pictures and texts together, where the gap between the means otherwise decides which modality
    comes first (Liang et al., 2022, "Mind the Gap"; arXiv 2507.19054, "GR-CLIP").
    """
    eye = np.eye(images.shape[1], dtype=np.float32)
    return VectorMaps(
        image=VectorMap(matrix=eye, mean=_mean(images)),
        text=VectorMap(matrix=eye, mean=_mean(texts)),
    )


def centred_directions(images: NDArray[np.floating], texts: NDArray[np.floating], *, keep: int) -> VectorMaps:
    """As `centred`, and then only the `keep` directions in which pictures vary most; see `principal`."""
    means, directions = centred(images, texts), principal(images, keep=keep)
    return VectorMaps(
        image=VectorMap(matrix=directions.image.matrix, mean=means.image.mean),
        text=VectorMap(matrix=directions.text.matrix, mean=means.text.mean),
    )


def isoclip(
    image_projection: NDArray[np.floating], text_projection: NDArray[np.floating], *, top: int, keep: int
) -> VectorMaps:
    """Only the directions that the two projections share about equally (Magistri et al., 2026, "IsoCLIP").

    image_projection Wi [D, C] and text_projection Wt [D, W] are what ends the towers; a bias is one more column. With
    Wi' Wt = U S V', the first `top` directions are left out, `keep` are kept and the rest is left out: image features f
    become Wi Ub Ub' f instead of Wi f, text features Wt Vb Vb' g. As Ub lies in the row space of Wi, that is a [D, D]
    map of the vectors Wi f themselves, Wi Ub Ub' pinv(Wi), and no tower has to be opened.

    Raises:
        ValueError: the projections end in different sizes, or the band is not within the directions that there are.
    """
    if image_projection.shape[0] != text_projection.shape[0]:
        raise ValueError(
            f"the projections give {image_projection.shape[0]} and {text_projection.shape[0]} components: expected one"
        )
    # Wi' = Q R with orthonormal Q, which drops out of all that follows: [C, W] is never made.
    image, text = (np.linalg.qr(each.T.astype(np.float64))[1] for each in (image_projection, text_projection))
    left, sizes, right = np.linalg.svd(image @ text.T, full_matrices=False)
    count = int((sizes > _RANK * sizes[0]).sum())
    if top < 0 or keep < 1 or top + keep > count:
        raise ValueError(f"a band of {keep} directions behind the first {top}: there are {count}")
    band = slice(top, top + keep)
    return VectorMaps(image=_through(image.T, left[:, band]), text=_through(text.T, right[band].T))


def _through(projection: F64, band: F64) -> VectorMap:
    return _linear(projection @ band @ band.T @ np.linalg.pinv(projection))


def _shared(matrix: F64) -> VectorMaps:
    return VectorMaps(image=_linear(matrix), text=_linear(matrix))


def _linear(matrix: F64) -> VectorMap:
    return VectorMap(matrix=matrix.astype(np.float32), mean=np.zeros_like(matrix[0], dtype=np.float32))


def _mean(vectors: NDArray[np.floating]) -> Vectors:
    return vectors.astype(np.float64).mean(axis=0).astype(np.float32)


def _check_keep(keep: int, dim: int) -> None:
    if not 1 <= keep <= dim:
        raise ValueError(f"keep {keep} of {dim} directions: expected 1 to {dim}")
