"""Maps of vectors against their formulas on features, and what they must leave alone."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from model_store.intra_modal import VectorMaps, centred, centred_directions, isoclip, principal, random_directions
from model_store.towers import normalized

DIM, CHANNELS, WIDTH, COUNT = 8, 12, 10, 40
RNG = np.random.default_rng(0)
IMAGE_END, TEXT_END = RNG.standard_normal((DIM, CHANNELS)), RNG.standard_normal((DIM, WIDTH))
PICTURES, TEXTS = RNG.standard_normal((COUNT, CHANNELS)), RNG.standard_normal((COUNT, WIDTH))
IMAGES, WORDS = normalized(PICTURES @ IMAGE_END.T), normalized(TEXTS @ TEXT_END.T)


def cosines(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    one, two = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (a, b))
    return np.asarray(one @ two.T, dtype=np.float64)


@pytest.mark.parametrize(
    "everything",
    [
        principal(WORDS, keep=DIM),
        principal(WORDS[:3], keep=DIM),
        random_directions(DIM, keep=DIM, seed=1),
        isoclip(IMAGE_END, TEXT_END, top=0, keep=DIM),
    ],
)
def test_all_directions_change_no_cosine(everything: VectorMaps) -> None:
    for vectors, mapped in ((IMAGES, everything.image(IMAGES)), (WORDS, everything.text(WORDS))):
        np.testing.assert_allclose(cosines(mapped, mapped), cosines(vectors, vectors), atol=1e-5)
    across = cosines(everything.image(IMAGES), everything.text(WORDS))
    np.testing.assert_allclose(across, cosines(IMAGES, WORDS), atol=1e-5)


@pytest.mark.parametrize(("top", "keep"), [(0, 3), (2, 4), (5, 3)])
@pytest.mark.parametrize("channels", [CHANNELS, 5])
def test_isoclip_is_the_projections_cut_to_the_band(top: int, keep: int, channels: int) -> None:
    """The authors cut the projections, Wi Ub Ub' and Wt Vb Vb', and need the features in front of them."""
    image_end = IMAGE_END[:, :channels]
    left, sizes, right = np.linalg.svd(image_end.T @ TEXT_END)
    if top + keep > min(channels, DIM):
        with pytest.raises(ValueError, match=rf"behind the first {top}: there are {min(channels, DIM)}"):
            isoclip(image_end, TEXT_END, top=top, keep=keep)
        return
    band_left, band_right = left[:, top : top + keep], right[top : top + keep].T
    maps = isoclip(image_end, TEXT_END, top=top, keep=keep)
    images = PICTURES[:, :channels] @ band_left @ band_left.T @ image_end.T
    texts = TEXTS @ band_right @ band_right.T @ TEXT_END.T
    np.testing.assert_allclose(
        maps.image(normalized(PICTURES[:, :channels] @ image_end.T)), normalized(images), atol=1e-5
    )
    np.testing.assert_allclose(maps.text(WORDS), normalized(texts), atol=1e-5)
    inside = np.diag(sizes[top : top + keep])
    across = PICTURES[:, :channels] @ band_left @ inside @ band_right.T @ TEXTS.T
    np.testing.assert_allclose(images @ texts.T, across, atol=1e-8)


def test_principal_directions_are_those_of_the_largest_variance() -> None:
    """Against a singular value decomposition of the centred rows."""
    directions = np.linalg.svd(WORDS - WORDS.mean(axis=0))[2][:3]
    maps = principal(WORDS, keep=3)
    for mapped, vectors in ((maps.image(IMAGES), IMAGES), (maps.text(WORDS), WORDS)):
        np.testing.assert_allclose(np.abs(mapped), np.abs(normalized(vectors @ directions.T)), atol=1e-5)


def test_centring_takes_the_gap_away_and_a_mean_of_its_own_from_each_modality() -> None:
    maps = centred(IMAGES, WORDS)
    np.testing.assert_allclose(maps.image(IMAGES), normalized(IMAGES - IMAGES.mean(axis=0)), atol=1e-6)
    np.testing.assert_allclose(maps.text(WORDS), normalized(WORDS - WORDS.mean(axis=0)), atol=1e-6)
    assert not np.isnan(maps.text(WORDS.mean(axis=0, dtype=np.float64)[None].astype(np.float32))).any()


def test_centred_directions_are_those_of_pictures_behind_each_modalitys_mean() -> None:
    directions = np.linalg.svd(IMAGES - IMAGES.mean(axis=0))[2][:3]
    maps = centred_directions(IMAGES, WORDS, keep=3)
    for mapped, vectors in ((maps.image(IMAGES), IMAGES), (maps.text(WORDS), WORDS)):
        expected = normalized((vectors - vectors.mean(axis=0)) @ directions.T)
        np.testing.assert_allclose(np.abs(mapped), np.abs(expected), atol=1e-5)


@pytest.mark.parametrize("keep", [0, DIM + 1])
def test_more_directions_than_there_are_and_none_are_refused(keep: int) -> None:
    for fit in (lambda: principal(WORDS, keep=keep), lambda: random_directions(DIM, keep=keep, seed=0)):
        with pytest.raises(ValueError, match=f"keep {keep} of {DIM} directions: expected 1 to {DIM}"):
            fit()
    with pytest.raises(ValueError, match="need two vectors, got 1"):
        principal(WORDS[:1], keep=2)
    with pytest.raises(ValueError, match="the projections give 8 and 7 components"):
        isoclip(IMAGE_END, TEXT_END[:7], top=0, keep=2)
