"""Probes of bias, of places in a picture and of robustness against readers whose answer is known beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation.encoder import Shown
from evaluation.locating import Found, Label
from evaluation.probes import localisation, mention_bias, multi_label, quads, size_bias, spurious
from evaluation.probes.localisation import IOU, POINTING, best_overlap, enlarged, overlap, pointing
from evaluation.probes.pictures import CORRUPTIONS, Picture
from evaluation.probes.pool import Pool, PoolSize
from evaluation.probes.readers import EncoderReader, Reader, Sentence, TruthReader
from evaluation.probes.rows import F64, ProbeRow, mean_row
from evaluation.scenes.meaning import Enumeration, What, is_true
from evaluation.scenes.negation import has
from evaluation.scenes.palette import COLOURS, RGB
from evaluation.scenes.rendering import render
from evaluation.scenes.scene import Background, Scene, Thing

SMALL = PoolSize(compass=6, class_groups=2, squares=2, counts=2, additions=4, spoilt=16)


@pytest.fixture(scope="module")
def pool() -> Pool:
    return Pool(SMALL)


class ColourEncoder:
    """Sees how much of a picture (or of a grid cell) has which colour, and reads the names of colours: real pixels,
    real texts, no learning."""

    name = space = fingerprint = "colours"
    image_px: int | None = 60
    cells = 5

    def encode_images(self, images: Sequence[Shown]) -> NDArray[np.float32]:
        return np.stack([self._shares(self._picture(image)) for image in images])

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = [[0.0, *(float(colour in text.split()) for colour in COLOURS)] for text in texts]
        return np.array(rows, dtype=np.float32)

    def locate(
        self, images: Sequence[Shown], labels: Sequence[Label], *, boxes: bool = True, short_px: int | None = None
    ) -> list[Found]:
        texts = self.encode_texts([(label.prompts or (label.name,))[0] for label in labels])
        return [self._found(self._picture(image), texts) for image in images]

    def _found(self, image: NDArray[np.uint8], texts: NDArray[np.float32]) -> Found:
        parts = [np.hsplit(row, self.cells) for row in np.vsplit(image, self.cells)]
        grid = np.array([[self._shares(cell) for cell in row] for row in parts])
        maps = np.moveaxis(grid @ texts.T, -1, 0)
        scores = maps.max(axis=(1, 2)).astype(np.float64)
        return Found(width=60, height=60, scores=scores, maps=maps, boxes=(), threshold=0.5)

    def _picture(self, image: Shown) -> NDArray[np.uint8]:
        assert not isinstance(image, bytes)
        return image

    def _shares(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """0.3 for the background, then the share of pixels close to each colour."""
        palette = np.array([RGB[colour] for colour in COLOURS]) * 255
        distance = np.linalg.norm(image.reshape(-1, 1, 3) - palette, axis=2)
        shares = ((distance < 70) & (distance == distance.min(axis=1, keepdims=True))).mean(axis=0)
        return np.array([0.3, *shares], dtype=np.float32)


def rows_of(probe: object, reader: Reader) -> dict[str, ProbeRow]:
    return {row.name: row for row in probe.measure(reader)}  # pyright: ignore[reportAttributeAccessIssue]


class Weighted(TruthReader):
    """The truth, but things weigh by their area: the larger one dominates the vector."""

    def image_vectors(self, pictures: Sequence[Picture]) -> F64:
        single = {thing: super(Weighted, self).image_vectors([Picture(_only(p.scene, thing))])[0]
                  for p in pictures for thing in p.scene.things}  # fmt: skip
        rows = np.array([sum(thing.size**2 * single[thing] for thing in p.scene.things) for p in pictures])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class FirstOnly(TruthReader):
    """Reads no further than the first thing of a list."""

    def text_vectors(self, texts: Sequence[Sentence]) -> F64:
        firsts: list[Sentence] = []
        for text in texts:
            assert isinstance(text.meaning, Enumeration)
            firsts.append(Sentence(text.text, Enumeration(text.meaning.whats[:1])))
        return super().text_vectors(firsts)


def _only(scene: Scene, thing: Thing) -> Scene:
    return Scene(things=(thing,), background=scene.background)


def test_who_sees_the_larger_thing_first_is_caught(pool: Pool) -> None:
    found = rows_of(size_bias.build(pool), Weighted())
    assert found["a thing is found"].value == 1
    assert [found[f"larger wins, area x{ratio}"].value for ratio in (2, 4, 8)] == [1, 1, 1]
    assert found["first of equal things wins"].value == 0.5


def test_who_reads_the_first_mention_only_is_caught(pool: Pool) -> None:
    found = rows_of(mention_bias.build(pool), FirstOnly())
    assert found["2 things, first wins"].value == found["3 things, first wins"].value == 1
    assert found["3 things, third wins"].value == 0


def test_colours_alone_do_not_bind(pool: Pool) -> None:
    """Both captions of a quad name the same colours: a tie, which is wrong, not a half."""
    found = rows_of(quads.build(pool), EncoderReader(ColourEncoder(), size_px=60))
    assert {row.value for row in found.values()} == {0.0}


def test_colours_are_found_and_their_absence_is_not(pool: Pool) -> None:
    probe = multi_label.build(pool)
    found = rows_of(probe, EncoderReader(ColourEncoder(), size_px=60))
    assert found["mAP, there is"].value > found["mAP, there is"].chance + 0.2
    less = found["mAP, there is less there is no"]
    held = [is_true(has(label), each.scene) for label in probe.labels for each in probe.pictures]
    assert less.value == pytest.approx(np.mean(held))  # all pictures tie; luck would put them into some order
    assert less.chance is not None
    assert less.value < less.chance


def test_quads_by_hand() -> None:
    right, one_sided = [[2.0, 1.0], [0.0, 3.0]], [[5.0, 4.0], [2.0, 3.0]]
    no_caption = [[2.0, 3.0], [0.0, 4.0]]
    marks = quads.marked(np.array([right, one_sided, no_caption]), ties_wrong=True)
    assert marks["text"].tolist() == [1, 1, 0]
    assert marks["image"].tolist() == [1, 0, 1]
    assert marks["group"].tolist() == [1, 0, 0]


def test_skew_of_a_reader_that_likes_one_colour(pool: Pool) -> None:
    """A quarter of a shape's pictures has the liked colour, and they fill the top quarter: ln 4."""
    liked = pool.grid[1][0]

    class Liking(TruthReader):
        def scores(self, asked: Sequence[tuple[Picture, Sentence]]) -> F64:
            return np.array([float(picture.scene.things[0].colour == liked) for picture, _ in asked])

    found = rows_of(spurious.build(pool), Liking())
    assert found["skew of neutral queries"].value == pytest.approx(np.log(4))
    assert found["skew of neutral queries"].chance == pytest.approx(0.6, abs=0.3)


def test_a_shape_known_in_one_colour_only_has_a_bad_worst_group(pool: Pool) -> None:
    shapes, colours = pool.grid
    aligned = dict(zip(shapes, colours, strict=True))

    class Shortcut(TruthReader):
        """Answers the shape that went with the colour."""

        def scores(self, asked: Sequence[tuple[Picture, Sentence]]) -> F64:
            out: list[float] = []
            for picture, text in asked:
                assert isinstance(text.meaning, Enumeration)
                shape = text.meaning.whats[0].shape or ""
                out.append(float(aligned[shape] == picture.scene.things[0].colour))
            return np.array(out)

    found = rows_of(spurious.build(pool, aligned=aligned), Shortcut())
    assert found["shape named, training's colour"].value == 1
    assert found["shape named, other colours"].value == 0
    assert found["worst of 16 groups"].value == 0
    assert found["shape named"].value == 0.25


def ring_scene() -> Scene:
    ring = Thing(shape="ring", colour="red", size=0.4, x=0.5, y=0.5, z=0)
    return Scene(things=(ring,), background=Background())


def test_the_pointing_game_counts_the_filled_outline() -> None:
    phrase = localisation.Phrase(Picture(ring_scene()), Sentence("", Enumeration((What(shape="ring"),))), 0, 0)
    outline, mask = localisation.truth(phrase, 96)
    assert outline[48, 48]
    assert not mask[48, 48]  # the hole shows the background
    grid_map = np.zeros((3, 3))
    grid_map[1, 1] = 1
    assert pointing(grid_map, outline) == 1
    assert pointing(1e-9 * grid_map, outline) == 1  # a projection's scale is the model's own
    assert pointing(np.roll(grid_map, 1, axis=0), outline) == 0
    assert pointing(np.ones((3, 3)), outline) == 0  # several best cells point nowhere


def test_the_bound_of_the_grid_is_the_best_set_of_cells() -> None:
    mask = render(ring_scene(), 48).masks[0]
    sets = [np.array([bits >> cell & 1 for cell in range(9)], dtype=bool).reshape(3, 3) for bits in range(1, 512)]
    best = max(overlap(enlarged(cells, 48), mask) for cells in sets)
    assert best_overlap(mask, 3, 3) == pytest.approx(best)
    assert best_overlap(mask, 48, 48) == 1


def test_colours_localise_within_the_bound_of_their_grid(pool: Pool) -> None:
    probe = localisation.build(pool)
    reader = EncoderReader(ColourEncoder(), size_px=60)
    found, bound = rows_of(probe, reader), {row.name: row for row in probe.bound(reader)}
    assert reader.grid() == (5, 5)
    assert 0.3 < bound[IOU].value < 1
    assert found[POINTING].chance is not None
    assert found[POINTING].chance + 0.2 < found[POINTING].value <= bound[POINTING].value
    assert found[IOU].chance is not None
    assert found[IOU].chance < found[IOU].value <= bound[IOU].value


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_corruption_changes_the_picture_and_repeats(pool: Pool, kind: str) -> None:
    scene = pool.class_groups[0][0].scenes[0]
    clean, spoilt = Picture(scene).draw(64), Picture(scene, kind).draw(64)  # pyright: ignore[reportArgumentType]
    assert spoilt.shape == clean.shape
    assert spoilt.dtype == np.uint8
    assert np.abs(spoilt.astype(int) - clean).mean() > 0.2
    assert np.array_equal(spoilt, Picture(scene, kind).draw(64))  # pyright: ignore[reportArgumentType]


def test_items_of_one_group_are_resampled_together() -> None:
    """Ten groups whose four items agree are ten observations, not forty."""
    outcomes = np.repeat([0, 1] * 5, 4) * 1.0
    together = mean_row("", outcomes, np.repeat(np.arange(10), 4), chance=0.5).interval()
    apart = mean_row("", outcomes, np.arange(40), chance=0.5).interval()
    assert together[1] - together[0] > 1.7 * (apart[1] - apart[0])
    assert together[0] < 0.5 < together[1]
    one = ProbeRow(name="", chance=None, clusters=np.arange(40), statistic=lambda picks: float(outcomes[picks].mean()))
    assert one.interval() == pytest.approx(apart, abs=0.05)  # the slow way agrees with the quick one
