"""Standard tasks against torchmetrics, scikit-learn and numpy, on generated pictures; and what controls must score."""

from __future__ import annotations

import hashlib
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from evaluation.encoder import Shown, open_artifact
from evaluation.probe_results import ProbeResult, from_json, to_json
from evaluation.standard.asking import Task
from evaluation.standard.captioned import Captioned
from evaluation.standard.choices import Choice, Choices
from evaluation.standard.classify import ZeroShotTask
from evaluation.standard.few_shots import FewShots
from evaluation.standard.image_folder import parted, read_image_folder
from evaluation.standard.linear import STRENGTHS, LinearProbe
from evaluation.standard.photographs import Photograph, photograph
from evaluation.standard.recall import Recall
from evaluation.standard.specs import task
from evaluation.suites import Step
from model_store.modality.image import decode
from model_store.store import Store
from model_store.templates import named_templates

TINY_STORE = Path(__file__).parents[1] / "fixtures" / "tiny_store"
COLOURS = {
    "black": (10, 10, 10),
    "blue": (20, 30, 220),
    "cyan": (10, 200, 210),
    "green": (20, 190, 30),
    "pink": (230, 120, 180),
    "red": (220, 20, 20),
    "yellow": (230, 220, 20),
}
Vectors = NDArray[np.float32]


class HazyEncoder:
    """Mean colour of a picture, colours that a text names, both under noise that the input itself decides.

    constant: the same vector for everything.
    """

    name = "hazy"
    space = "haze"
    fingerprint = "hazy 1"
    image_px: int | None = 8

    def __init__(
        self, *, haze: float = 0.6, constant: bool = False, templates: tuple[str, ...] | None = ("{} seen",)
    ) -> None:
        self.templates = templates
        self._haze, self._constant = haze, constant
        self.images = self.texts = 0

    def encode_images(self, images: Sequence[Shown]) -> Vectors:
        self.images += len(images)
        arrays = [np.asarray(decode(image)) if isinstance(image, bytes) else image for image in images]
        return np.stack([self._vector(array.mean(axis=(0, 1)) / 128 - 1, array.tobytes()) for array in arrays])

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        self.texts += len(texts)
        named = [[np.array(COLOURS[c]) / 128 - 1 for c in COLOURS if c in text] for text in texts]
        return np.stack(
            [
                self._vector(np.mean(found, axis=0) if found else np.zeros(3), t.encode())
                for found, t in zip(named, texts, strict=True)
            ]
        )

    def _vector(self, colour: NDArray[np.float64], data: bytes) -> Vectors:
        if self._constant:
            return np.ones(12, dtype=np.float32)
        noise = np.random.default_rng(list(hashlib.sha256(data).digest())).normal(size=12) * self._haze
        noise[:3] += colour
        return (noise / np.linalg.norm(noise)).astype(np.float32)


def paint(path: Path, colour: tuple[int, int, int], seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 60, (8, 8, 3))
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven classes, from 50 pictures (black) to 62 (yellow)."""
    root = tmp_path_factory.mktemp("photos")
    for at, (name, colour) in enumerate(COLOURS.items()):
        for number in range(50 + 2 * at):
            paint(root / name / f"{number:02}.png", colour, 1000 * at + number)
    return root


def scores(result: ProbeResult) -> dict[str, float | None]:
    return {row.name: row.score for row in result.rows}


def vectors(encoder: HazyEncoder, shown: Sequence[Photograph]) -> Vectors:
    return encoder.encode_images([one.path.read_bytes() for one in shown])


def test_zero_shot_is_scikit_learns_accuracy(photos: Path) -> None:
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

    encoder = HazyEncoder()
    result = task(f"folder:{photos}").measure(encoder)
    found = read_image_folder(photos)
    images = vectors(encoder, [item.photograph for item in found.items])
    truth = [item.label for item in found.items]
    for said, templates in {
        "bare names": ("{}",),
        "1 template": ("a photo of a {}.",),
        "7 templates": named_templates("simple"),
        "80 templates": named_templates("imagenet"),
        "own templates": ("{} seen",),
    }.items():
        classes = []
        for name in COLOURS:
            mean = encoder.encode_texts([t.replace("{}", name) for t in templates]).mean(axis=0)
            classes.append(mean / np.linalg.norm(mean))
        table = images @ np.stack(classes).T
        for row, reference in {
            "top-1": accuracy_score(truth, table.argmax(axis=1)),
            "top-5": top_k_accuracy_score(truth, table, k=5),
            "mean over classes": balanced_accuracy_score(truth, table.argmax(axis=1)),
        }.items():
            assert scores(result)[f"{row}, {said}"] == pytest.approx(float(reference), abs=1e-6), (row, said)
    assert 0.2 < float(scores(result)["top-1, bare names"] or 0) < 0.98  # else the comparison says nothing
    assert scores(result)["majority baseline"] == pytest.approx(62 / len(found.items))
    by_name = {row.name: row for row in result.rows}
    assert by_name["top-5, bare names"].chance == pytest.approx(5 / 7)
    assert by_name["top-1, bare names"].n == len(found.items) == result.pictures == 392


def test_an_encoder_without_templates_of_its_own_says_so(photos: Path) -> None:
    encoder = HazyEncoder(templates=None)
    result = task(f"folder:{photos}").measure(encoder)
    row = next(row for row in result.rows if "own" in row.name)
    assert (row.name, row.n, row.score) == ("top-1, own templates", 0, None)
    assert "own templates: n/a, this encoder names none" in result.notes
    assert from_json(json.loads(json.dumps(to_json(result)))) == result
    for kind in ("folder", "few-shot"):
        asked = task(f"{kind}:{photos},templates=own").measure(encoder)
        assert (asked.rows, asked.not_applicable) == ((), "own templates: n/a, this encoder names none")


def test_an_artifact_brings_its_templates(photos: Path) -> None:
    artifact = Store(TINY_STORE, builtin=False).open("tiny")
    result = task(f"folder:{photos},templates=own").measure(open_artifact(artifact))
    assert result.texts == len(artifact.manifest.templates) * len(COLOURS)
    assert result.rows[0].score is not None


def captioned(root: Path) -> Captioned:
    """Several captions a picture, among them one that many share, and two pictures with equal colours."""
    pairs: list[tuple[Photograph, str]] = []
    names = list(COLOURS)
    for number in range(60):
        name = names[number % 7]
        one = photograph(paint(root / f"{number}.png", COLOURS[name], number), f"{number}.png")
        pairs += [(one, f"{name} number {number}"), (one, f"a {name} one"), (one, f"A {name} ONE")][: 1 + number % 3]
    return Captioned(tuple(pairs))


def expected_recall(data: Captioned, encoder: HazyEncoder) -> dict[str, tuple[Vectors, NDArray[np.bool_]]]:
    """Direction -> scores and truth [queries, candidates], by the names and the letters of the captions."""
    shown = list(dict.fromkeys(one for one, _ in data.pairs))
    texts = [caption for _, caption in data.pairs]
    distinct = list({caption.casefold(): caption for caption in reversed(texts)}.values())
    right = {(one.name, caption.casefold()) for one, caption in data.pairs}

    def truth(captions: list[str]) -> NDArray[np.bool_]:
        return np.array([[(one.name, caption.casefold()) in right for caption in captions] for one in shown])

    images = vectors(encoder, shown)
    return {
        "text to image": (encoder.encode_texts(texts) @ images.T, truth(texts).T),
        "image to text": (images @ encoder.encode_texts(distinct).T, truth(distinct)),
    }


def test_recall_is_a_hit_among_the_first_k(tmp_path: Path) -> None:
    data, encoder = captioned(tmp_path), HazyEncoder()
    rows = {row.name: row for row in Recall("x", data).measure(encoder).rows}
    for direction, (table, relevant) in expected_recall(data, encoder).items():
        order = np.argsort(-table, axis=1)
        sorted_hits = np.take_along_axis(relevant, order, axis=1)
        chances = np.random.default_rng(0).permuted(np.tile(relevant, (300, 1)), axis=1)
        for cut in (1, 5, 10):
            row = rows.pop(f"{direction}, R@{cut}")
            assert (row.score, row.n) == (pytest.approx(sorted_hits[:, :cut].any(axis=1).mean()), len(relevant))
            assert row.chance == pytest.approx(chances[:, :cut].any(axis=1).mean(), abs=0.01)
            assert 0.05 < float(row.score or 0) < 1
    assert not rows


@pytest.mark.slow
@pytest.mark.torch
def test_recall_is_torchmetrics_hit_rate(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    hit_rate = pytest.importorskip("torchmetrics.retrieval").RetrievalHitRate
    data, encoder = captioned(tmp_path), HazyEncoder()
    found = scores(Recall("x", data).measure(encoder))
    for direction, (table, relevant) in expected_recall(data, encoder).items():
        index = torch.arange(len(table))[:, None].expand(table.shape)
        for cut in (1, 5, 10):
            asked = torch.tensor(table).flatten(), torch.tensor(relevant).flatten(), index.flatten()
            assert found[f"{direction}, R@{cut}"] == pytest.approx(float(hit_rate(top_k=cut)(*asked)), abs=1e-6)


def test_pictures_and_texts_are_encoded_once_and_counted(tmp_path: Path) -> None:
    encoder, steps = HazyEncoder(), list[Step]()
    result = Recall("x", captioned(tmp_path)).measure(encoder, progress=steps.append)
    assert (encoder.images, encoder.texts) == (result.pictures, result.texts) == (60, 60 + 7 * 2)
    assert (steps[0].done, steps[-1].done, steps[-1].total) == (0, 134, 134)


def choices(root: Path, *, least: int = 1) -> Choices:
    """Group "often" 30 times, "rare" 6 times, two of each picture; the caption names the colour, its rival another."""
    names = list(COLOURS)
    made: list[Choice] = []
    for number in range(36):
        at = number // 2
        name, other = names[at % 7], names[(at + 1 + number // 7) % 7]
        one = photograph(paint(root / f"{at}.png", COLOURS[name], at), f"{at}.png")
        made.append(Choice(one, (f"a {name} thing", f"a {other} thing"), "rare" if number % 6 == 0 else "often"))
    return Choices("x", tuple(made), groups="types", least=least)


def test_choices_are_counted_by_group_and_beside_a_blind_control(tmp_path: Path) -> None:
    data, encoder = choices(tmp_path), HazyEncoder(haze=0.9)
    rows = {row.name: row for row in data.measure(encoder).rows}
    images = vectors(encoder, [choice.photograph for choice in data.choices]).astype(float)
    true, false = (encoder.encode_texts([c.options[at] for c in data.choices]).astype(float) for at in (0, 1))
    right = (images * true).sum(axis=1) > (images * false).sum(axis=1)
    blind = (true - false) @ images.mean(axis=0) > 0
    rare = np.array([choice.group == "rare" for choice in data.choices])
    assert list(rows) == ["often", "rare", "all", "mean over types"]
    for name, picks in (("often", ~rare), ("rare", rare), ("all", rare | True)):
        assert (rows[name].score, rows[name].blind) == pytest.approx((right[picks].mean(), blind[picks].mean()))
        assert (rows[name].n, rows[name].chance) == (picks.sum(), 0.5)
    assert rows["mean over types"].score == pytest.approx((right[rare].mean() + right[~rare].mean()) / 2)
    assert 0.5 < right.mean() < 1
    fewer = {row.name: row for row in choices(tmp_path, least=25).measure(encoder).rows}
    assert list(fewer) == ["often", "all", "mean over types with at least 25"]
    assert fewer["mean over types with at least 25"].score == rows["often"].score


def test_equal_options_are_no_choice(photos: Path) -> None:
    one = photograph(photos / "red" / "00.png", "00.png")
    with pytest.raises(ValueError, match=r"00.png: two options are one text"):
        Choice(one, ("a dog", "A dog"), "x")


def test_shots_and_zero_shot_against_numpy(photos: Path) -> None:
    encoder = HazyEncoder()
    data = FewShots("x", read_image_folder(photos))
    result = data.measure(encoder)
    found = scores(result)
    # The 20 pictures of a class that are first by hash are for shots; half of 50 would be more.
    rows: dict[bool, list[bool]] = {True: [], False: []}
    classes = encoder.encode_texts([f"a photo of a {name}." for name in COLOURS])
    for label, name in enumerate(COLOURS):
        files = sorted(
            (photos / name).iterdir(), key=lambda path: hashlib.sha256(f"0 {name}/{path.name}".encode()).digest()[:8]
        )
        is_base = label < 4
        half = slice(0, 4) if is_base else slice(4, 7)
        for path in files[20:]:
            guessed = (encoder.encode_images([path.read_bytes()]) @ classes[half].T).argmax()
            rows[is_base].append(guessed == label - (0 if is_base else 4))
    base, new = np.mean(rows[True]), np.mean(rows[False])
    assert found["base, zero-shot"] == pytest.approx(base)
    assert found["new, zero-shot"] == pytest.approx(new)
    assert found["harmonic mean, zero-shot"] == pytest.approx(statistics.harmonic_mean([float(base), float(new)]))
    assert {row.name: row.chance for row in result.rows}["harmonic mean, zero-shot"] == pytest.approx(2 / 7, abs=0.005)
    assert found["majority baseline"] == pytest.approx(36 / (30 + 32 + 34 + 36))
    shots = [found[f"base, {count} shot{'s' if count > 1 else ''}"] for count in (1, 2, 4, 8, 16)]
    assert 0.25 < float(shots[0] or 0) < float(shots[-1] or 0) <= 1
    assert data.measure(encoder) == result


def test_too_few_pictures_for_shots_are_said(tmp_path: Path) -> None:
    for at, name in enumerate(("blue", "green", "red")):
        for number in range(8):
            paint(tmp_path / name / f"{number}.png", COLOURS[name], 10 * at + number)
    result = task(f"few-shot:{tmp_path}").measure(HazyEncoder())
    assert [row.name for row in result.rows if "shot" in row.name and "zero" not in row.name] == [
        "base, 1 shot",
        "base, 2 shots",
    ]
    assert "base, 4 shots: n/a, 8 pictures a class are needed, one has 4" in result.notes


def test_linear_probe_is_scikit_learns_own_search(photos: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score
    from sklearn.model_selection import GridSearchCV, PredefinedSplit

    encoder, folder = HazyEncoder(haze=0.9), read_image_folder(photos)
    result = LinearProbe("x", folder).measure(encoder)
    parts = parted(folder)
    both = [*parts["train"], *parts["validation"]]
    split = PredefinedSplit([-1] * len(parts["train"]) + [0] * len(parts["validation"]))
    search = GridSearchCV(LogisticRegression(max_iter=1000), {"C": list(STRENGTHS)}, cv=split)
    search.fit(vectors(encoder, [item.photograph for item in both]), [item.label for item in both])
    tests, truth = vectors(encoder, [i.photograph for i in parts["test"]]), [i.label for i in parts["test"]]
    guessed = search.predict(tests)
    assert scores(result) == pytest.approx(
        {
            "top-1": accuracy_score(truth, guessed),
            "top-5": top_k_accuracy_score(truth, search.predict_proba(tests), k=5),
            "mean over classes": balanced_accuracy_score(truth, guessed),
            "majority baseline": np.mean(
                np.array(truth) == np.bincount([item.label for item in parts["train"]]).argmax()
            ),
        },
        abs=1e-6,
    )
    assert f"C = {search.best_params_['C']:g}" in result.notes[-1]
    assert 0.3 < float(scores(result)["top-1"] or 0) < 1


def test_a_class_without_training_pictures_is_refused(tmp_path: Path) -> None:
    for name in ("train/red", "train/blue", "test/red", "test/blue", "test/green"):
        for number in range(9):
            paint(tmp_path / name / f"{number}.png", COLOURS[name.split("/")[1]], number)
    with pytest.raises(ValueError, match=r"class 'green' has no picture to train on"):
        task(f"linear:{tmp_path}")
    zero_shot = task(f"folder:{tmp_path},templates=bare").measure(HazyEncoder())
    assert (zero_shot.rows[0].n, zero_shot.notes) == (27, ("judged on the test pictures only",))


def test_a_model_that_sees_nothing_scores_no_more_than_its_controls(photos: Path, tmp_path: Path) -> None:
    """All vectors equal: ties are wrong everywhere, whatever is first; blind shares them."""
    encoder = HazyEncoder(constant=True)
    for asked in (ZeroShotTask("x", read_image_folder(photos)), Recall("x", captioned(tmp_path / "a"))):
        result = asked.measure(encoder)
        assert all(row.score == 0 for row in result.rows if row.name != "majority baseline")
    for row in choices(tmp_path / "b").measure(encoder).rows:
        assert (row.score, row.blind) == (0, 0.5)
    probe = scores(LinearProbe("x", read_image_folder(photos)).measure(encoder))
    assert probe["top-1"] == probe["majority baseline"]


def test_keys_change_with_the_data_the_encoder_and_the_specification(tmp_path: Path) -> None:
    paint(tmp_path / "red" / "0.png", COLOURS["red"], 0)
    paint(tmp_path / "blue" / "0.png", COLOURS["blue"], 0)

    def key(*, spec: str = "folder:{},templates=own", templates: tuple[str, ...] = ("{}",)) -> object:
        encoder, found = HazyEncoder(templates=templates), task(spec.format(tmp_path))
        assert found.measure(encoder).key == found.key(encoder)
        return found.key(encoder)

    first = key()
    assert key() == first
    assert key(templates=("a {}",)) != first
    assert key(spec="folder:{},templates=bare") != first
    (tmp_path / "classes.txt").write_text("sky\nfire\n")
    assert key() != first
    (tmp_path / "classes.txt").unlink()
    paint(tmp_path / "red" / "1.png", COLOURS["red"], 1)
    assert key() != first


def test_a_picture_that_does_not_decode_is_named(photos: Path, tmp_path: Path) -> None:
    paint(tmp_path / "red" / "0.png", COLOURS["red"], 0)
    paint(tmp_path / "blue" / "0.png", COLOURS["blue"], 0).write_bytes(b"no picture")
    artifact = open_artifact(Store(TINY_STORE, builtin=False).open("tiny"))
    found: Task = task(f"folder:{tmp_path},templates=bare")
    with pytest.raises(ValueError, match=r"blue/0.png: not an image of an accepted format"):
        found.measure(artifact)
    (tmp_path / "blue" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"blue/0.png: cannot be read"):
        found.measure(artifact)


def test_an_answer_of_nan_is_an_error(photos: Path) -> None:
    class Broken(HazyEncoder):
        def encode_texts(self, texts: Sequence[str]) -> Vectors:
            return super().encode_texts(texts) * np.float32("nan")

    with pytest.raises(ValueError, match="the encoder answered NaN"):
        task(f"folder:{photos},templates=bare").measure(Broken())


def test_a_box_is_what_the_encoder_sees(tmp_path: Path) -> None:
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    image[:4], image[4:] = COLOURS["red"], COLOURS["blue"]
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "PNG")
    (tmp_path / "two.png").write_bytes(sink.getvalue())
    made = [
        Choice(photograph(tmp_path / "two.png", "two.png", box=(0, top, 8, 4)), (f"{true} side", f"{false} side"), "x")
        for top, true, false in ((0, "red", "blue"), (4, "blue", "red"))
    ]
    rows = Choices("x", tuple(made), groups="types").measure(HazyEncoder(haze=0.0)).rows
    assert [(row.name, row.n, row.score) for row in rows] == [("all", 2, 1.0)]
