"""Shifted pictures, asked of encoders that are made to know frames, or to know things."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from evaluation.encoder import Shown
from evaluation.probe_results import ProbeResult, from_json, to_json
from evaluation.standard.shifted import SHIFTS
from evaluation.standard.specs import task
from model_store.modality.image import decode

COLOURS = {"blue": (20, 30, 220), "green": (20, 190, 30), "pink": (230, 20, 230), "red": (220, 20, 20)}
NAMES = tuple(COLOURS)


class Counting:
    """Names the colour that covers most of a picture, if it covers enough of it, else always the first."""

    name, space, fingerprint = "counting", "colours", "counting 1"
    image_px: int | None = None
    templates = ("{} thing",)

    def __init__(self, least: float = 0.0) -> None:
        self.least = least

    def encode_images(self, images: Sequence[Shown]) -> NDArray[np.float32]:
        found = np.zeros((len(images), len(NAMES)), dtype=np.float32)
        for row, image in zip(found, images, strict=True):
            pixels = np.asarray(decode(image)) if isinstance(image, bytes) else image[::4, ::4]
            near = [np.abs(pixels.astype(int) - colour).max(axis=2) < 40 for colour in COLOURS.values()]
            shares = np.array([each.mean() for each in near])
            row[:] = shares if shares.max() > max(self.least, 1e-4) else np.eye(len(NAMES))[0]
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([np.eye(len(NAMES), dtype=np.float32)[NAMES.index(text.split()[0])] for text in texts])


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("things")
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for number in range(2):
            image = Image.new("RGB", (60, 60), "white")
            ImageDraw.Draw(image).rectangle((4 + number, 4, 55, 55), fill=colour)
            image.save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def backgrounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("backgrounds")
    for number in range(3):
        noise = np.random.default_rng(number).integers(90, 160, (50, 70, 1), dtype=np.uint8).repeat(3, axis=2)
        Image.fromarray(noise).save(root / f"{number}.png")
    return root


def scores(result: ProbeResult) -> dict[str, float | None]:
    return {row.name: row.score for row in result.rows}


def test_an_encoder_that_knows_things_keeps_everything(things: Path, backgrounds: Path) -> None:
    result = task(f"shifted:{things},backgrounds={backgrounds}").measure(Counting())
    found = scores(result)
    assert list(found) == ["as it is", *(each.name for each in SHIFTS), *(f"kept: {each.name}" for each in SHIFTS)]
    assert set(found.values()) == {1.0}
    assert {row.n for row in result.rows} == {8}
    chances = {row.name: row.chance for row in result.rows}
    assert chances["as it is"] == chances["grey, 50 %"] == 0.25
    # With another thing in the picture there is one rival less, unless it is of the same class.
    beside = chances["own background, 50 %, beside one other"]
    assert beside is not None
    assert 0.25 < beside <= 1 / 3
    assert chances["kept: grey, 50 %"] is None
    assert scores(from_json(to_json(result))) == found


def test_an_encoder_that_knows_frames_is_seen_to(things: Path, backgrounds: Path) -> None:
    """It names what covers 40 % of a picture: at 70 % of the size that is .49 * .74 or less."""
    found = scores(task(f"shifted:{things},backgrounds={backgrounds}").measure(Counting(least=0.4)))
    for name, score in found.items():
        if name.endswith("beside three others"):
            continue  # which may be of one colour, and cover enough together
        small = "100 %" not in name and name != "as it is"
        assert score == (0.25 if small else 1.0), name


def test_large_photographs_are_shown_as_small_ones_are(things: Path, tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).mkdir()
        with Image.open(things / name / "0.png") as image:
            image.resize((900, 900)).save(tmp_path / name / "0.png")
    assert set(scores(task(f"shifted:{tmp_path}").measure(Counting())).values()) == {1.0}


def test_rivals_in_the_picture_do_not_count(things: Path) -> None:
    """Of several things of one size the encoder names another half of the time: that is no error."""
    found = scores(task(f"shifted:{things}").measure(Counting()))
    assert found["own background, 50 %, beside three others"] == 1.0


def test_without_backgrounds_there_are_no_such_rows_and_a_note(things: Path) -> None:
    result = task(f"shifted:{things}").measure(Counting())
    assert not [row.name for row in result.rows if "photographs" in row.name]
    assert any("backgrounds=" in note for note in result.notes)


def test_pictures_without_a_plain_background_are_counted_and_left_out(things: Path, tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes((things / name / "0.png").read_bytes())
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "red" / "1.png")
    result = task(f"shifted:{tmp_path}").measure(Counting())
    assert {row.n for row in result.rows} == {4}
    assert "1 pictures have no plain background around one thing: left out" in result.notes


def test_the_same_seed_draws_the_same_and_another_does_not(things: Path, backgrounds: Path) -> None:
    class Remembering(Counting):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[bytes] = []

        def encode_images(self, images: Sequence[Shown]) -> NDArray[np.float32]:
            self.seen += [image if isinstance(image, bytes) else image.tobytes() for image in images]
            return super().encode_images(images)

    runs = []
    for seed in (0, 0, 1):
        encoder = Remembering()
        task(f"shifted:{things},backgrounds={backgrounds},seed={seed}").measure(encoder)
        runs.append(encoder.seen)
    assert runs[0] == runs[1] != runs[2]
    keys = {task(f"shifted:{things},seed={seed}").key(Counting()) for seed in (0, 1)}
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("shifted:{things},backgrounds=/nowhere/at/all", "no such folder"),
        ("shifted:{things},templates=all", "takes one of"),
        ("shifted:{things},images=x", "has no option 'images'"),
    ],
)
def test_wrong_specifications_say_why(things: Path, specification: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(specification.format(things=things))
