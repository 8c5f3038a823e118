"""The whole judgement of drawn scenes: by one who knows, one who guesses, one who cannot say where."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from evaluation.compare import compare
from evaluation.dense.calibrate import fit_presence
from evaluation.dense.judging import (
    BOX_AP,
    MAP,
    MAP_PEAK,
    MAP_POOLED,
    MIOU,
    MIOU_CELLS,
    MIOU_GIVEN,
    POINTING,
    judge,
)
from evaluation.dense.overlays import overlay_of
from evaluation.dense.scene_set import SceneSet, chosen_pairs, draw_scenes
from evaluation.dense.task import scenes_task
from evaluation.dense.truth import Instance, PictureWithTruth, Truth
from evaluation.encoder import DenseArtifactEncoder, DenseEncoder, Shown, open_artifact
from evaluation.locating import Found, Label, Locator, Looking, Vectors
from evaluation.probe_results import ProbeResult, ResultRow, from_json, to_json
from evaluation.report import write_figures, write_html
from model_store.store import Store

TINY_STORE = Path(__file__).parents[1] / "fixtures" / "tiny_store"
PICTURES = 24
NAMES = (POINTING, MIOU, MIOU_GIVEN, MIOU_CELLS, BOX_AP, MAP, MAP_PEAK, MAP_POOLED)


class Knowing:
    """Knows the scenes: a map is the share of a cell that the label covers, boxes lie on the lines of the fine grid."""

    name, space, fingerprint = "knowing", "known", "knows the truth"
    image_px: int | None = 48
    templates = ("{}",)

    def __init__(self, scenes: SceneSet, *, cells: int = 8) -> None:
        self.labels, self.cells = scenes.labels, cells
        samples = [scenes.open(index) for index in range(len(scenes))]
        self.truths = {self._key(sample.shown): sample.truth for sample in samples}
        self.looked_at: list[int] = []

    def encode_images(self, images: Sequence[Shown]) -> Vectors:
        rows = [np.isin(np.arange(len(self.labels)), self.truths[self._key(one)].labels) for one in images]
        return np.array(rows, dtype=np.float32) / np.sqrt(np.sum(rows, axis=1, keepdims=True))

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        return np.array([[name == text for name in self.labels] for text in texts], dtype=np.float32)

    def locate(
        self, images: Sequence[Shown], labels: Sequence[Label], *, boxes: bool = True, short_px: int | None = None
    ) -> list[Found]:
        assert [label.name for label in labels] == list(self.labels)
        self.looked_at.append(len(images))
        return [self._found(self.truths[self._key(image)]) for image in images]

    def _found(self, truth: Truth) -> Found:
        maps = np.stack([self._map(truth, label) for label in range(len(self.labels))])
        boxes: list[NDArray[np.float64]] = [np.zeros((0, 5))] * len(self.labels)
        step = truth.width / (4 * self.cells)
        for label in truth.labels:
            edges = [one.box for one in truth.instances if one.label == label]
            rows = [[*(round(edge / step) * step for edge in box), 1.0] for box in edges]
            boxes[label] = np.array(rows)
        there = np.isin(np.arange(len(self.labels)), truth.labels).astype(np.float64)
        return Found(width=truth.width, height=truth.height, scores=there, maps=maps, boxes=tuple(boxes), threshold=0.5)

    def _map(self, truth: Truth, label: int) -> NDArray[np.float32]:
        """Where pointing is right counts a little, so that the hole of a ring is no tie."""
        masks = [one.mask + 1e-3 * self._middle(one.hit) for one in truth.instances if one.label == label]
        whole = np.sum(masks, axis=0) if masks else np.zeros((truth.height, truth.width))
        side = truth.width // self.cells
        return whole.reshape(self.cells, side, self.cells, side).mean(axis=(1, 3)).astype(np.float32)

    def _middle(self, hit: NDArray[np.bool_]) -> NDArray[np.float64]:
        side = hit.shape[0] // self.cells
        right = hit[side // 2 :: side, side // 2 :: side]
        return 1e3 * np.kron(right * np.random.default_rng(0).uniform(1, 2, right.shape), np.ones((side, side)))

    @staticmethod
    def _key(shown: Shown) -> bytes:
        return shown if isinstance(shown, bytes) else shown.tobytes()


class Guessing(Knowing):
    """Draws everything by lot, whatever it is shown."""

    fingerprint = "guesses"

    def _found(self, truth: Truth) -> Found:
        random = np.random.default_rng(len(self.looked_at))
        count = len(self.labels)
        corner = random.uniform(0, 150, (count, 1, 2))
        boxes = np.concatenate([corner, corner + random.uniform(20, 70, (count, 1, 2)), np.ones((count, 1, 1))], axis=2)
        return Found(
            width=truth.width,
            height=truth.height,
            scores=random.uniform(size=count),
            maps=random.normal(size=(count, self.cells, self.cells)).astype(np.float32),
            boxes=tuple(boxes),
            threshold=0.9,
        )

    def encode_images(self, images: Sequence[Shown]) -> Vectors:
        random = np.random.default_rng(len(self.looked_at))
        return random.normal(size=(len(images), len(self.labels))).astype(np.float32)


@pytest.fixture(scope="module")
def scenes() -> SceneSet:
    return draw_scenes(seed=3, pairs=chosen_pairs("held-out"), pictures=PICTURES)


def measured(encoder: DenseEncoder, **options: object) -> ProbeResult:
    looking = options.get("looking")
    assert looking is None or isinstance(looking, Looking)
    return scenes_task(seed=3, pairs="held-out", pictures=PICTURES, looking=looking).measure(encoder)


def by_name(result: ProbeResult) -> dict[str, ResultRow]:
    return {row.name: row for row in result.rows}


@pytest.fixture(scope="module")
def knowing(scenes: SceneSet) -> Knowing:
    return Knowing(scenes)


@pytest.fixture(scope="module")
def known(knowing: Knowing) -> ProbeResult:
    result = measured(knowing)
    assert knowing.looked_at == [1] * PICTURES  # one look at each picture
    return result


def value(row: ResultRow) -> tuple[float, float, float, float]:
    numbers = row.score, row.chance, row.blind, row.truth
    assert None not in numbers, row
    return tuple(float(number or 0) for number in numbers)  # pyright: ignore[reportReturnType]


def test_scenes_hold_two_to_four_things_and_labels_that_are_absent(scenes: SceneSet) -> None:
    assert {len(scene.things) for scene in scenes.scenes} == {2, 3, 4}
    assert len(scenes.labels) == 16
    for index in range(5):
        sample = scenes.open(index)
        assert len(sample.truth.labels) < len(scenes.labels)
        classes = sample.truth.classes
        for one, thing in zip(sample.truth.instances, scenes.scenes[index].things, strict=True):
            assert scenes.labels[one.label] == f"{thing.colour} {thing.shape}"
            assert (classes[one.mask] == one.label).all()  # they do not overlap
            assert (one.hit & ~one.mask).any() == (thing.shape == "ring")
    assert draw_scenes(seed=4, pairs=scenes.pairs, pictures=3).scenes != scenes.scenes[:3]
    sizes = [len(chosen_pairs(choice)) for choice in ("all", "trained", "held-out")]
    assert sizes == [64, 48, 16]


def test_who_knows_reaches_the_bound(known: ProbeResult) -> None:
    found = by_name(known)
    assert tuple(found) == NAMES
    for name in (POINTING, BOX_AP, MAP, MAP_PEAK, MAP_POOLED):
        score, chance, blind, bound = value(found[name])
        assert score == pytest.approx(bound), name
        assert max(chance, blind) < 0.5 * bound, name
    for name in (MIOU, MIOU_GIVEN, MIOU_CELLS):
        score, chance, blind, bound = value(found[name])
        assert 0.6 * bound < score <= bound + 1e-9, name
        assert max(chance, blind) < 0.3 * score
    assert found[MIOU].score == found[MIOU_GIVEN].score  # it knows which labels are there
    assert value(found[MIOU_CELLS])[3] < value(found[MIOU])[3] < 1  # finer cells, a higher bound
    assert found[POINTING].n == sum(row for row in found[POINTING].outcomes.sizes)  # pyright: ignore[reportOptionalMemberAccess]


def test_who_guesses_is_at_chance(scenes: SceneSet) -> None:
    found = by_name(measured(Guessing(scenes)))
    for name, slack in ((POINTING, 0.08), (MAP, 0.16), (MAP_PEAK, 0.16), (MAP_POOLED, 0.16), (BOX_AP, 0.05)):
        score, chance, blind, _ = value(found[name])
        assert abs(score - chance) < slack, name
        assert abs(blind - chance) < slack, name
    assert value(found[MIOU])[0] < 0.1
    assert value(found[POINTING])[1] == pytest.approx(0.06, abs=0.03)  # the share of a picture that is a thing


def test_the_best_and_the_worst_are_drawn(known: ProbeResult, scenes: SceneSet) -> None:
    assert [each.kind for each in known.overlays] == ["best"] * 4 + ["worst"] * 4
    overlaps = [each.overlap for each in known.overlays]
    assert overlaps[:4] == sorted(overlaps[:4], reverse=True)
    assert overlaps[4:] == sorted(overlaps[4:])
    assert max(overlaps[4:]) < min(overlaps[:4])
    for each in known.overlays:
        with Image.open(io.BytesIO(base64.b64decode(each.webp))) as drawn:
            assert drawn.size == (646, 320)
            pixels = np.asarray(drawn.convert("RGB")).astype(int)
        index = int(each.name.split()[1])
        original = np.asarray(Image.fromarray(np.asarray(scenes.open(index).shown)).resize((320, 320))).astype(int)
        assert np.median(np.abs(pixels[:, :320] - original)) < 6  # the left panel is the picture itself
        assert len(each.lines) == len(scenes.open(index).truth.labels)


def test_results_survive_their_file_and_stand_in_the_report(known: ProbeResult, tmp_path: Path) -> None:
    assert from_json(json.loads(json.dumps(to_json(known)))) == known
    page = tmp_path / "report.html"
    write_html([known], page, title="knowing")
    text = page.read_text(encoding="utf-8")
    assert "What is where" in text
    assert text.count("data:image/webp") == 8
    assert text.index("The best pictures") < text.index("The worst pictures")
    for each in known.overlays:
        assert each.lines[0] in text
    sheets = {path.name for path in write_figures([known], tmp_path / "drawn")}
    assert sheets == {"overview.png", "localize-best.png", "localize-worst.png"}
    with Image.open(tmp_path / "drawn" / "localize-worst.png") as drawn:
        assert drawn.size == (2 * 646 + 16, 2 * (320 + 18) + 16)
    damaged = to_json(known)
    damaged["overlays"][0]["webp"] = "<script>"
    with pytest.raises(ValueError, match="base64"):
        from_json(damaged)


def test_how_it_was_asked_is_kept_and_two_ways_can_be_compared(known: ProbeResult, knowing: Knowing) -> None:
    otherwise = measured(knowing, looking=Looking(short_px=64))
    assert otherwise.key != known.key
    assert otherwise.notes == ("asked with short side 64 px",)
    rows = compare([known], [otherwise]).rows
    assert {row.row for row in rows} == set(NAMES)
    assert {row.verdict for row in rows} == {"no difference seen"}
    assert rows[0].groups == PICTURES


def test_templates_become_the_labels_prompts() -> None:
    asked = Looking(templates=("a {}", "{} here")).labels(["cat"])
    assert asked == [Label("cat", ("a cat", "cat here"))]
    assert Looking().labels(["cat"]) == [Label("cat")]
    with pytest.raises(ValueError, match="exactly one"):
        Looking(templates=("a cat",))


class Broken(Knowing):
    """Answers what nobody can use."""

    def __init__(self, scenes: SceneSet, fault: str) -> None:
        super().__init__(scenes)
        self.fault = fault

    def _found(self, truth: Truth) -> Found:
        found = super()._found(truth)
        maps = found.maps.copy()
        maps[0, 0, 0] = np.nan if self.fault == "NaN" else 0
        changed = maps[:-1] if self.fault == "maps" else maps
        width = found.width + 1 if self.fault == "width" else found.width
        return replace(found, width=width, maps=changed)


@pytest.mark.parametrize(
    ("fault", "message"),
    [("NaN", "scene 0: the encoder answered NaN"), ("maps", "15 maps for 16 labels"), ("width", "225 x 224 pixels")],
)
def test_answers_of_another_form_are_refused(scenes: SceneSet, fault: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measured(Broken(scenes, fault))


def test_what_says_nothing_about_places_is_not_asked() -> None:
    class Plain:
        name = space = fingerprint = "plain"
        image_px: int | None = 48

        def encode_images(self, images: Sequence[Shown]) -> Vectors:
            raise AssertionError("nothing is asked")

        encode_texts = encode_images

    result = scenes_task(pictures=2).measure(Plain())
    assert result.rows == ()
    assert "no dense role" in (result.not_applicable or "")


def test_a_fitted_presence_is_calibrated() -> None:
    """A logistic curve with an offset says on average what is the case; and it is better than saying just that."""
    encoder = open_artifact(Store(TINY_STORE, builtin=False).open("tiny"))
    assert isinstance(encoder, DenseArtifactEncoder)
    pictures = draw_scenes(seed=1, pairs=chosen_pairs("held-out"), pictures=16)
    looking = Looking(templates=("a {}",))
    first, *others = fit_presence(encoder.locator, pictures, looking)
    assert len(others) == 3
    assert first.log_loss <= min(each.log_loss for each in others)
    samples = [pictures.open(index) for index in range(len(pictures))]
    there = np.stack([np.isin(np.arange(16), sample.truth.labels) for sample in samples])
    base = float(there.mean())
    assert first.log_loss <= -(base * np.log(base) + (1 - base) * np.log(1 - base)) + 1e-3
    assert first.presence.positive_templates == ("a {}",)
    fitted = Locator(encoder.locator.run, encoder.locator.spec, first.presence, encoder.encode_texts)
    found = fitted.locate([sample.shown for sample in samples], looking.labels(pictures.labels), boxes=False)
    assert np.mean([one.scores for one in found]) == pytest.approx(base, abs=0.02)
    assert {one.threshold for one in found} == {first.presence.threshold}


SIDE = 32


def a_thing(label: int, left: int, upper: int, right: int, lower: int) -> Instance:
    mask = np.zeros((SIDE, SIDE), dtype=np.bool_)
    mask[upper:lower, left:right] = True
    return Instance(label=label, mask=mask, hit=mask, box=(left, upper, right, lower))


class Covered:
    """Four pictures of label 0 beside what two halves of label 1 cover: label 2, or in the second set nothing."""

    labels, boxed, asked, notes = ("left", "half", "hidden"), True, "covered", ()

    def __init__(self, *, hidden: bool) -> None:
        things = a_thing(0, 2, 2, 12, 30), a_thing(1, 16, 8, 20, 24), a_thing(1, 20, 8, 24, 24)
        self.instances = (*things, a_thing(2, 16, 8, 24, 24)) if hidden else things

    def __len__(self) -> int:
        return 4

    def open(self, index: int) -> PictureWithTruth:
        pixels = np.full((SIDE, SIDE, 3), 60 * index, dtype=np.uint8)
        return PictureWithTruth(f"picture {index}", pixels, Truth(width=SIDE, height=SIDE, instances=self.instances))


class Painting:
    """Answers by lot, the same lot for the same picture."""

    name = space = fingerprint = "painting"
    image_px: int | None = SIDE

    def encode_images(self, images: Sequence[Shown]) -> Vectors:
        return np.ones((len(images), 3), dtype=np.float32)

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        return np.ones((len(texts), 3), dtype=np.float32)

    def locate(
        self, images: Sequence[Shown], labels: Sequence[Label], *, boxes: bool = True, short_px: int | None = None
    ) -> list[Found]:
        random = np.random.default_rng(int(np.asarray(images[0])[0, 0, 0]))
        maps = random.normal(size=(3, 8, 8)).astype(np.float32)
        return [
            Found(width=SIDE, height=SIDE, scores=np.ones(3), maps=maps, boxes=(np.zeros((0, 5)),) * 3, threshold=0.5)
        ]


def test_a_wholly_hidden_label_is_no_row_of_overlaps() -> None:
    with_it, without = judge(Painting(), Covered(hidden=True)), judge(Painting(), Covered(hidden=False))
    for one, other in ((with_it.rows, without.rows), (with_it.blind, without.blind), (with_it.bound, without.bound)):
        for row, same in zip(one, other, strict=True):
            assert np.isfinite(row.value), row.name
            if row.name in (MIOU, MIOU_GIVEN, MIOU_CELLS):
                assert (row.value, row.chance) == (same.value, same.chance), row.name
    for drawn, same in zip(map(overlay_of, with_it.shown), map(overlay_of, without.shown), strict=True):
        assert (drawn.name, drawn.overlap) == (same.name, same.overlap)
        assert drawn.lines[:2] == same.lines[:2]
        assert drawn.lines[2].startswith("hidden: score 1.00, wholly under other masks, pointed ")
