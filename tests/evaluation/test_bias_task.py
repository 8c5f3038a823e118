"""Bias of an encoder whose answers are known, over pictures on disk: rows, controls and what is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.bias.groups_file import read_groups
from evaluation.bias.task import Bias
from evaluation.encoder import Shown, Vectors
from evaluation.metrics import normalize
from evaluation.probe_results import ProbeResult, ResultRow
from model_store.modality.image import OWN_FILES, decode

QUERIES = ("fair", "unfair")
EVERY = 8  # pictures of each label and group


class ColourEncoder:
    """A picture is its mean colour: red is the group, green the label, blue says nothing. A text is one of TEXTS."""

    name = space = fingerprint = "colours"
    image_px = 4
    templates = ("{}",)
    TEXTS = {"fair": (0, 0, 1), "unfair": (1, 0, 0), "dark": (0.5, -1, 1), "light": (-0.5, 1, 1)}

    def encode_images(self, images: Sequence[Shown]) -> Vectors:
        opened = [decode(image, OWN_FILES) for image in images if isinstance(image, bytes)]
        return normalize(np.array([np.asarray(image, dtype=float).mean(axis=(0, 1)) - 100 for image in opened]))

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        return normalize(np.array([self.TEXTS[text] for text in texts], dtype=float))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    lines = ["path,group,label"]
    for number in range(4 * EVERY):
        group, label = number % 2, number // 2 % 2
        colour = (60 + 80 * group + rng.integers(8), 80 + 40 * label + rng.integers(8), 90 + rng.integers(20))
        Image.new("RGB", (4, 4), tuple(map(int, colour))).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{('A', 'B')[group]},{('dark', 'light')[label]}")
    (folder / "groups.csv").write_text("\n".join(lines))
    return folder / "groups.csv"


@pytest.fixture(scope="module")
def result(table: Path) -> ProbeResult:
    return Bias("g", read_groups(table), QUERIES, top=10).measure(ColourEncoder())


def rows(result: ProbeResult) -> dict[str, ResultRow]:
    return {row.name: row for row in result.rows}


def test_rows_are_what_the_vectors_say(table: Path, result: ProbeResult) -> None:
    found, pictures, encoder = rows(result), read_groups(table), ColourEncoder()
    images = encoder.encode_images([one.shown() for one in pictures.photographs]).astype(float)
    skews: list[float] = []
    for query in QUERIES:
        order = np.argsort(-(images @ encoder.encode_texts([query])[0]))[:10]
        shares = [sum(pictures.groups[at] == group for at in order) / 10 for group in "AB"]
        skews.append(math.log(max(shares) / 0.5))
        assert found[f"MaxSkew@10, {query}"].score == pytest.approx(skews[-1])
    assert found["MaxSkew@10, mean over queries"].score == pytest.approx(np.mean(skews))
    best = np.argmax(images @ encoder.encode_texts(["dark", "light"]).T, axis=1)
    hits = np.array([("dark", "light")[at] for at in best]) == np.array(pictures.labels)
    cells = [group + label for group, label in zip(pictures.groups, pictures.labels or (), strict=True)]
    of_cells = {cell: hits[[each == cell for each in cells]].mean() for cell in set(cells)}
    assert found["labels, accuracy"].score == pytest.approx(hits.mean())
    assert found["labels, mean of 4 groups"].score == pytest.approx(np.mean(list(of_cells.values())))
    assert found["labels, worst of 4 groups"].score == pytest.approx(min(of_cells.values()))
    assert min(of_cells.values()) < hits.mean() < 1  # the case has something to find


def test_controls_and_intervals(result: ProbeResult) -> None:
    found = rows(result)
    unfair, fair = found["NDKL, unfair"], found["NDKL, fair"]
    assert unfair.score == pytest.approx(found["NDKL, mean over queries"].score * 2 - fair.score)  # type: ignore[operator]
    # All of B come first: no order of groups is worse; luck lies far below, and within the other one's interval.
    assert unfair.low > unfair.chance > 0  # type: ignore[operator]
    assert found["MaxSkew@10, unfair"].score == pytest.approx(math.log(2))
    assert all(row.low <= row.score <= row.high for row in result.rows)  # type: ignore[operator]
    worst, mean = found["labels, worst of 4 groups"], found["labels, mean of 4 groups"]
    assert mean.chance == pytest.approx(mean.score)  # groups are of equal size
    assert worst.score < worst.chance < mean.score  # type: ignore[operator]
    assert result.notes[0] == "groups: A 16, B 16"


def test_one_question_is_one_key(table: Path) -> None:
    pictures, encoder = read_groups(table), ColourEncoder()
    asked = [Bias("g", pictures, QUERIES), Bias("g", pictures, QUERIES, top=4), Bias("g", pictures, QUERIES[:1])]
    assert asked[0].k == 3
    assert len({task.key(encoder) for task in asked}) == 3
    assert asked[0].key(encoder) == Bias("g", read_groups(table), QUERIES, top=3).key(encoder)


@pytest.mark.parametrize(
    ("queries", "top", "said"),
    [
        ((), None, "0 queries"),
        (("a", " "), None, "none of them empty"),
        (("a", "a"), None, "twice"),
        (("a",), 33, "32"),
    ],
)
def test_what_cannot_be_asked(table: Path, queries: tuple[str, ...], top: int | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Bias("g", read_groups(table), queries, top)
