"""Examples and plot data: they repeat what the model answered, fit into a small file, and change no score."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation.encoder import Shown
from evaluation.locating import Found, Label
from evaluation.probe_results import ProbeResult, from_json, read_result, to_json
from evaluation.probes.count import build as build_count
from evaluation.probes.examples import MOST_EXAMPLES, Candidate, Card, choice, choose, example_from_json
from evaluation.probes.few_shot import build as build_few_shot
from evaluation.probes.figures import ChoiceCounts, best_scale, calibration, figures
from evaluation.probes.pool import Pool, PoolSize
from evaluation.probes.readers import TruthReader
from evaluation.suites import Suite, probe_names, run

TINY = PoolSize(compass=3, class_groups=2, squares=1, counts=2, additions=2, spoilt=16)
ALL = Suite(name="tiny", probes=probe_names(), size=TINY)


class DrawnEncoder:
    """A vector drawn by the digest of the input, on a grid too; `constant`: one vector for everything."""

    space = "drawn"
    image_px: int | None = 48
    name = "drawn by lot"

    def __init__(self, *, constant: bool = False) -> None:
        self.fingerprint = f"drawn {constant}"
        self.constant = constant
        self.inputs = 0

    def encode_images(self, images: Sequence[Shown]) -> NDArray[np.float32]:
        return self._draw([image if isinstance(image, bytes) else image.tobytes() for image in images])

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._draw([text.encode() for text in texts])

    def locate(
        self, images: Sequence[Shown], labels: Sequence[Label], *, boxes: bool = True, short_px: int | None = None
    ) -> list[Found]:
        data = [image if isinstance(image, bytes) else image.tobytes() for image in images]
        texts = self._draw([(label.prompts or (label.name,))[0].encode() for label in labels])
        maps = [self._cells(one, texts) for one in data]
        scores = np.zeros(len(labels))
        return [Found(width=48, height=48, scores=scores, maps=each, boxes=(), threshold=0.5) for each in maps]

    def _cells(self, data: bytes, texts: NDArray[np.float32]) -> NDArray[np.float32]:
        cells = self._draw([data + bytes([cell]) for cell in range(12)])
        return np.moveaxis(cells.reshape(3, 4, 64) @ texts.T, -1, 0)

    def _draw(self, inputs: Sequence[bytes]) -> NDArray[np.float32]:
        self.inputs += len(inputs)
        if self.constant:
            return np.ones((len(inputs), 64), dtype=np.float32)
        seeds = [list(hashlib.sha256(data).digest()) for data in inputs]
        return np.array([np.random.default_rng(seed).normal(size=64) for seed in seeds], dtype=np.float32)


@pytest.fixture(scope="module")
def results() -> dict[str, ProbeResult]:
    return {result.key.probe: result for result in run(DrawnEncoder(), ALL)}


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    rows = vectors.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _vector(encoder: DrawnEncoder, card: Card, size_px: int) -> NDArray[np.float64]:
    if card.picture is not None:
        return _unit(encoder.encode_images([card.picture.draw(size_px)]))[0]
    assert card.text is not None
    return _unit(encoder.encode_texts([card.text]))[0]


@pytest.mark.parametrize("probe", [name for name in probe_names() if name != "localisation"])
def test_scores_and_choices_are_those_of_the_encoder(results: dict[str, ProbeResult], probe: str) -> None:
    encoder, result = DrawnEncoder(), results[probe]
    assert 2 <= len(result.examples) <= MOST_EXAMPLES
    for example in result.examples:
        options = np.stack([_vector(encoder, option, result.key.size_px) for option in example.options])
        rights: list[bool] = []
        for query, card in enumerate(example.queries):
            own = options @ _vector(encoder, card, result.key.size_px)
            assert example.scores[query] == pytest.approx(own, abs=1e-5)
            assert example.chosen[query] == (int(own.argmax()),)
            rights.append(int(own.argmax()) in example.right[query])
        assert example.mark == ("right" if all(rights) else "wrong")
        assert len(example.options) <= min(5, example.candidates)


def test_right_options_are_true_of_the_pictures(results: dict[str, ProbeResult]) -> None:
    """Judged by names alone, without the probes' own bookkeeping."""
    for probe in ("binding", "few-shot", "corruption", "replace-add"):
        for example in results[probe].examples:
            picture = example.queries[0].picture
            assert picture is not None
            names = {f"{thing.colour} {thing.shape}" for thing in picture.scene.things}
            said = [option.text or "" for option in example.options]
            (right,) = example.right[0]
            assert any(name in said[right] for name in names)
            if probe == "binding":
                assert all(name in said[right] for name in names)
                assert not any(name in said[1 - right] for name in names)


def test_half_are_right_and_rows_take_turns(results: dict[str, ProbeResult]) -> None:
    marks = [example.mark for example in results["relation"].examples]
    assert marks == ["right", "wrong"] * 4
    wrong = [example.row for example in results["relation"].examples if example.mark == "wrong"]
    assert len(set(wrong)) == 3


def test_other_seeds_and_names_draw_others() -> None:
    cards = tuple(Card(text=str(at)) for at in range(2))
    scores = np.array([1.0, 0.0])
    items = [choice(f"row {at % 3}", Card(text=str(at)), cards, scores, (at % 2,)) for at in range(60)]
    candidates = [Candidate(item.row, item.mark == "right", lambda item=item: item) for item in items]
    drawn = choose(candidates, name="a", seed=0)
    assert drawn == choose(candidates, name="a", seed=0)
    others = [choose(candidates, name="a", seed=1), choose(candidates, name="b", seed=0)]
    assert all(other != drawn for other in others)
    assert len(drawn) == MOST_EXAMPLES
    assert {item.row for item in drawn} == {"row 0", "row 1", "row 2"}


def test_the_seed_chooses() -> None:
    some = replace(ALL, probes=("binding", "image-to-image"))
    first, again = run(DrawnEncoder(), some), run(DrawnEncoder(), some)
    other = run(DrawnEncoder(), replace(some, seed=1))
    assert [result.examples for result in first] == [result.examples for result in again]
    assert all(a.examples != b.examples for a, b in zip(first, other, strict=True))


def test_ties_are_shown_as_ties() -> None:
    for result in run(DrawnEncoder(constant=True), ALL):
        marks = {example.mark for example in result.examples}
        assert marks == {"tie"}, result.key.probe
        for example in result.examples:
            for picked in example.chosen:
                assert picked == tuple(range(len(example.options)))


def test_a_localisation_shows_its_grid(results: dict[str, ProbeResult]) -> None:
    encoder, result = DrawnEncoder(), results["localisation"]
    assert {example.mark for example in result.examples} <= {"right", "wrong"}
    for example in result.examples:
        (card,) = example.queries
        assert card.picture is not None
        assert card.text is not None
        (own,) = encoder.locate([card.picture.draw(48)], [Label("", (card.text,))])
        assert np.array(example.grid) == pytest.approx(own.maps[0], abs=1e-5)


def test_what_is_kept_of_many_options() -> None:
    scores = np.array([0.1, 0.9, 0.2, 0.3, 0.4, 0.5, 0.0])
    options = [Card(text=str(at)) for at in range(7)]
    made = choice("row", Card(text="query"), options, scores, (6,))
    assert [option.text for option in made.options] == ["1", "3", "4", "5", "6"]
    assert (made.right, made.chosen, made.mark, made.candidates) == (((4,),), ((0,),), "wrong", 7)
    assert made.scores == ((0.9, 0.3, 0.4, 0.5, 0.0),)


def test_files_keep_them_and_a_run_resumes(tmp_path: Path, results: dict[str, ProbeResult]) -> None:
    run(DrawnEncoder(), ALL, folder=tmp_path)
    again = DrawnEncoder()
    assert {result.key.probe: result for result in run(again, ALL, folder=tmp_path)} == results
    assert again.inputs == 0
    assert read_result(tmp_path / "quads.json").examples == results["quads"].examples
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < 150_000


def test_older_files_have_none(results: dict[str, ProbeResult]) -> None:
    data = json.loads(json.dumps(to_json(results["few-shot"])))
    del data["examples"], data["figures"]
    old = from_json(data)
    assert (old.examples, old.figures) == ((), None)
    assert old.rows == results["few-shot"].rows


@pytest.mark.parametrize("damage", ["queries", "scores"])
def test_half_an_example_is_refused(results: dict[str, ProbeResult], damage: str) -> None:
    data = json.loads(json.dumps(to_json(results["binding"])))
    del data["examples"][0][damage]
    with pytest.raises(ValueError, match=f"not the result of a probe.*{damage}"):
        from_json(data)
    with pytest.raises(KeyError):
        example_from_json({})


def _diagonal(found: ChoiceCounts) -> bool:
    counts = np.array(found.counts)
    return bool((counts[:, :-1] == np.diag(np.diag(counts))).all() and (counts[:, -1] == 0).all())


def test_the_truth_takes_everything_for_what_it_is() -> None:
    pool = Pool(TINY)
    naming, counting = figures(build_few_shot(pool), TruthReader()), figures(build_count(pool), TruthReader())
    assert naming is not None
    assert counting is not None
    assert naming.choices is not None
    assert counting.choices is not None
    assert _diagonal(naming.choices)
    assert [sum(line) for line in naming.choices.counts] == [
        4
    ] * 16  # the group of 4 pictures of each class that gives no shots
    assert sorted(naming.choices.labels) == sorted(f"{what.colour} {what.shape}" for what in pool.classes)
    assert _diagonal(counting.choices)
    assert [sum(line) for line in counting.choices.counts] == [2] * 10
    assert [each.error for each in naming.reliability] == pytest.approx([0, 0], abs=0.01)


def test_luck_takes_things_for_anything(results: dict[str, ProbeResult]) -> None:
    found = results["few-shot"].figures
    assert found is not None
    assert found.choices is not None
    counts = np.array(found.choices.counts)
    assert counts.sum() == 64
    assert np.trace(counts) / 64 < 0.25
    assert (counts[:, :-1].sum(axis=0) > 0).sum() > 10
    customary = found.reliability[1]
    assert customary.scales == (100.0,)
    assert customary.error > 0.5  # sure of itself and wrong
    assert found.reliability[0].error < customary.error


def test_a_constant_answer_is_a_column_of_ties() -> None:
    result = run(DrawnEncoder(constant=True), replace(ALL, probes=("few-shot",)))[0]
    assert result.figures is not None
    assert result.figures.choices is not None
    assert [line[-1] for line in result.figures.choices.counts] == [4] * 16


def test_calibration_finds_the_scale_and_the_error() -> None:
    random = np.random.default_rng(0)
    scores = random.normal(0, 0.1, size=(6000, 5))
    logits = 30 * scores
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    answers = np.array([random.choice(5, p=line) for line in probabilities])
    fitted, customary = calibration(scores, answers, np.arange(6000) % 2)
    assert fitted.scales == pytest.approx((30, 30), rel=0.1)
    assert fitted.error < 0.03
    at_100 = np.exp(100 * scores) / np.exp(100 * scores).sum(axis=1, keepdims=True)
    sure, right = at_100.max(axis=1), scores.argmax(axis=1) == answers
    error = 0.0
    for low in np.arange(0, 1, 0.1):
        inside = (sure >= low) & ((sure < low + 0.1) | (low > 0.85))
        if inside.any():
            error += inside.mean() * abs(sure[inside].mean() - right[inside].mean())
    assert customary.error == pytest.approx(error, abs=0.01)
    assert sum(each.n for each in customary.bins) == 6000


def test_no_item_is_judged_by_a_scale_fitted_to_it() -> None:
    """One half answers by a scale of 5, the other by one of 50: each must be given the other's."""
    random = np.random.default_rng(1)
    scores = random.normal(0, 0.2, size=(4000, 4))
    halves = np.arange(4000) % 2
    logits = scores * np.where(halves == 0, 5, 50)[:, None]
    noise = random.gumbel(size=scores.shape)
    answers = (logits + noise).argmax(axis=1)
    assert best_scale(scores[halves == 0], answers[halves == 0]) == pytest.approx(5, rel=0.15)
    fitted, _ = calibration(scores, answers, halves)
    assert fitted.scales == pytest.approx((50, 5), rel=0.15)
    others = np.array(fitted.scales)[halves][:, None] * scores
    sure = (np.exp(others) / np.exp(others).sum(axis=1, keepdims=True)).max(axis=1)
    assert sum(each.n * each.confidence for each in fitted.bins) / 4000 == pytest.approx(sure.mean(), abs=1e-4)
