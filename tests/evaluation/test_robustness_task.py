"""Robustness of an encoder whose answers are arithmetic: rows, what meets which encoder, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.encoder import Shown, Vectors
from evaluation.metrics import normalize
from evaluation.probe_results import ProbeResult
from evaluation.robustness.classifier import F32, Pull
from evaluation.robustness.standard_attack import AttackPlan
from evaluation.robustness.task import Robustness
from evaluation.standard.image_folder import ImageFolder, read_image_folder
from model_store.modality.image import OWN_FILES, decode

SIDE, APART = 8, 20
CLASSES = ("blue", "green", "red")
QUICK = AttackPlan(steps=6, targets=1, queries=30)


class Behind:
    """A picture is its mean colour, a class is a channel; nothing is known of how it sees."""

    name = space = fingerprint = "colours"
    image_px = SIDE
    templates = ("{}",)

    def encode_images(self, images: Sequence[Shown]) -> Vectors:
        opened = [decode(each, OWN_FILES) if isinstance(each, bytes) else each for each in images]
        return normalize(np.array([np.asarray(each, dtype=float).mean(axis=(0, 1)) for each in opened]))

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        return np.eye(3)[[2 - CLASSES.index(text) for text in texts]].astype(np.float32)


class Here(Behind):
    """In this process."""

    def prepared(self, images: Sequence[Shown]) -> np.ndarray:
        return np.stack([np.asarray(decode(each, OWN_FILES)) for each in images if isinstance(each, bytes)])


class Open(Here):
    """With gradients."""

    def pulled_vectors(self, pixels: F32) -> tuple[F32, Pull]:
        shape = pixels.shape
        share = 1 / (shape[1] * shape[2])
        return pixels.mean(axis=(1, 2)), lambda weights: np.broadcast_to(
            weights[:, None, None, :] * share, shape
        ).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    """Two pictures of each class, its channel APART levels above the others."""
    root = tmp_path_factory.mktemp("colours")
    for at, name in enumerate(CLASSES):
        (root / name).mkdir()
        for number in range(2):
            colour = [100 + 10 * number] * 3
            colour[2 - at] += APART
            Image.new("RGB", (SIDE, SIDE), tuple(colour)).save(root / name / f"{number}.png")
    return read_image_folder(root)


def asked(encoder: Behind, folder: ImageFolder, *epsilons: float) -> ProbeResult:
    return Robustness("colours", folder, epsilons, 5, QUICK).measure(encoder)


def test_gradients_find_what_arithmetic_says(folder: ImageFolder) -> None:
    result = asked(Open(), folder, 3, 9, 12)
    rows = {row.name: row for row in result.rows}
    assert rows["clean"].score == 1
    assert rows["clean"].n == 5
    assert rows["clean"].chance == pytest.approx(1 / 3)
    # One channel down and another up by epsilon each: APART / 2 is where they meet.
    assert [rows[f"attacked at {epsilon}/255"].score for epsilon in (3, 9, 12)] == [1, 1, 0]
    kinds = [row.score for name, row in rows.items() if name.startswith("corrupted, ") and "mean" not in name]
    assert len(kinds) == 15
    assert rows["corrupted, mean of 15 kinds"].score == pytest.approx(
        np.mean([each for each in kinds if each is not None])
    )
    assert rows["corrupted, pixelate"].score == 1
    assert result.pictures == 5 * (1 + 75 + 3)
    notes = " ".join(result.notes)
    assert "5 pictures, seen at 8 x 8 px" in notes
    assert "9/255: no picture was misled" in notes
    assert "12/255: newly misled by apgd-ce 5" in notes
    assert "by 12 levels at most" in notes


def test_without_gradients_there_is_square_and_behind_a_server_nothing(folder: ImageFolder) -> None:
    result, far = asked(Here(), folder, 9, 60), asked(Behind(), folder, 9, 60)
    scores = {row.name: row.score for row in result.rows}
    assert "attacked by Square alone" in " ".join(result.notes)
    assert scores["attacked at 9/255"] == 1
    assert scores["attacked at 60/255"] < 1  # type: ignore[operator]
    assert not any(row.name.startswith("attacked") for row in far.rows)
    assert "not attacked" in " ".join(far.notes)
    assert [row.score for row in far.rows] == [row.score for row in result.rows][: len(far.rows)]
    again = asked(Here(), folder, 9, 60)
    assert [row.score for row in again.rows] == [row.score for row in result.rows]


def test_one_question_is_one_key(folder: ImageFolder) -> None:
    tasks = [
        Robustness("colours", folder),
        Robustness("colours", folder, (1, 2)),
        Robustness("colours", folder, most=3),
        Robustness("colours", folder, plan=QUICK),
    ]
    keys = [task.key(encoder) for task in tasks for encoder in (Behind(), Here(), Open())]
    assert len(set(keys)) == 12
    assert keys[0] == Robustness("colours", folder).key(Behind())


@pytest.mark.parametrize(
    ("epsilons", "most"), [((0.5,), 1), ((300.0,), 1), ((2.0, 1.0), 1), ((1.0, 1.0), 1), ((1.0,), 0)]
)
def test_what_cannot_be_asked(folder: ImageFolder, epsilons: tuple[float, ...], most: int) -> None:
    with pytest.raises(ValueError, match="epsilons|expected one at least"):
        Robustness("colours", folder, epsilons, most)


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    for name in ("blue", "red"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nxx")
    with pytest.raises(ValueError, match="broken.png"):
        Robustness("broken", read_image_folder(tmp_path), (), 2).measure(Behind())
