"""Suites: what they cost, how they are resumed, what they write."""

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
from evaluation.probe_results import from_json, read_result, result_rows, to_json
from evaluation.probes.pool import PoolSize
from evaluation.probes.rows import mean_row
from evaluation.scenes.config import SceneConfig
from evaluation.scenes.splits import split
from evaluation.suites import QUICK_PICTURES, QUICK_TEXTS, Step, Suite, cost, picture_px, probe_names, run, suite

TINY = PoolSize(compass=2, class_groups=2, squares=1, counts=1, additions=2, spoilt=16)
SOME = Suite(name="some", probes=("binding", "size-bias", "mention-bias", "localisation"), size=TINY)


class LuckyEncoder:
    """A vector drawn by the digest of the input: repeats itself, knows nothing. `fails_at`: the call that breaks.
    `number`: another number draws other vectors."""

    space = "luck"
    image_px: int | None = 48

    def __init__(self, *, fingerprint: str = "luck 1", fails_at: int | None = None, number: int = 0) -> None:
        self.name = "lucky"
        self.fingerprint = fingerprint
        self._number = number
        self.inputs = 0
        self._left = fails_at

    def encode_images(self, images: Sequence[Shown]) -> NDArray[np.float32]:
        return self._draw([image if isinstance(image, bytes) else image.tobytes() for image in images])

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._draw([text.encode() for text in texts])

    def _draw(self, inputs: Sequence[bytes]) -> NDArray[np.float32]:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise ConnectionError("the endpoint is gone")
        self.inputs += len(inputs)
        seeds = [list(hashlib.sha256(data).digest()) for data in inputs]
        return np.array(
            [np.random.default_rng([*seed, self._number]).normal(size=64) for seed in seeds], dtype=np.float32
        )


def test_quick_stays_within_its_limits() -> None:
    found = cost(suite("quick"))
    assert 400 < found.pictures <= QUICK_PICTURES
    assert 800 < found.texts <= QUICK_TEXTS


def test_full_states_what_it_costs_before_it_runs() -> None:
    encoder = LuckyEncoder()
    found = cost(suite("full"), encoder)
    assert found.pictures > 3000
    assert found.seconds is not None
    assert found.seconds > 0
    assert encoder.inputs < 60


def test_luck_scores_chance_everywhere() -> None:
    """Also the proof that no probe leaks its answer: 16 probes, no row far from what guessing gives, and of 95 %
    intervals hardly one in twenty that misses it."""
    results = run(LuckyEncoder(), suite("quick"))
    assert [result.key.probe for result in results] == list(probe_names())
    rows = {(result.key.probe, row.name): row for result in results for row in result.rows}
    asked, missed = 0, list[tuple[str, str]]()
    for name, row in rows.items():
        if row.chance is None or row.score is None:
            continue
        asked += 1
        assert row.low is not None
        assert row.high is not None
        assert row.low <= row.score <= row.high, name
        if not row.low <= row.chance <= row.high:
            missed.append(name)
        if row.unit == "share" and row.n >= 40:
            spread = 4 * np.sqrt(row.chance * (1 - row.chance) / row.n)
            assert row.score == pytest.approx(row.chance, abs=max(spread, 0.15)), name
    assert asked > 70
    assert len(missed) <= 6, missed


@pytest.mark.long
def test_chance_is_what_random_encoders_score() -> None:
    """Where no simple share is: rankings, a gap between cells, the worst group, a skew, a harmonic mean."""
    chosen = replace(suite("quick"), probes=("adverse", "multi-label", "image-to-image", "few-shot", "spurious"))
    found: dict[str, list[tuple[float, float]]] = {}
    for number in range(10):
        for result in run(LuckyEncoder(number=number), chosen):
            for row in result.rows:
                if row.chance is not None and row.score is not None and row.better != "at chance":
                    found.setdefault(f"{result.key.probe}, {row.name}", []).append((row.score, row.chance))
    assert {"adverse, best cell less worst", "image-to-image, mAP", "spurious, worst of 16 groups"} < found.keys()
    for name, pairs in found.items():
        gaps = np.array([score - chance for score, chance in pairs])
        assert abs(gaps.mean()) <= 4.5 * gaps.std(ddof=1) / len(gaps) ** 0.5 + 1e-9, name  # t of 9 degrees: 1 of 700


def test_every_row_has_its_controls() -> None:
    for result in run(LuckyEncoder(), SOME):
        reads_both = result.key.probe == "binding"
        assert (result.not_applicable is None) == bool(result.rows)
        for row in result.rows:
            assert (row.blind is not None) == reads_both
            assert row.truth is not None
            assert row.bag is not None
            assert row.n > 0 or row.better == "at chance"  # luck may find neither thing


def test_what_lacks_a_grid_of_vectors_does_not_localise() -> None:
    result = run(LuckyEncoder(), SOME)[-1]
    assert result.rows == ()
    assert "no dense role" in (result.not_applicable or "")


def test_the_same_questions_are_not_asked_twice(tmp_path: Path) -> None:
    first = run(LuckyEncoder(), SOME, folder=tmp_path)
    again = LuckyEncoder()
    assert run(again, SOME, folder=tmp_path) == first
    assert again.inputs == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.json" for name in SOME.probes)


def test_a_broken_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        run(LuckyEncoder(fails_at=3), SOME, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["binding.json"]
    whole, rest = LuckyEncoder(), LuckyEncoder()
    assert run(rest, SOME, folder=tmp_path) == run(whole, SOME)
    assert 0 < rest.inputs < whole.inputs


@pytest.mark.parametrize("change", ["fingerprint", "seed", "size", "damage"])
def test_another_question_is_asked_again(tmp_path: Path, change: str) -> None:
    run(LuckyEncoder(), SOME, folder=tmp_path)
    encoder, chosen = LuckyEncoder(), SOME
    if change == "fingerprint":
        encoder = LuckyEncoder(fingerprint="luck 2")
    elif change == "seed":
        chosen = replace(SOME, seed=1)
    elif change == "size":
        encoder.image_px = 64
    else:
        (tmp_path / "binding.json").write_text("{", encoding="utf-8")
    run(encoder, chosen, folder=tmp_path)
    assert encoder.inputs > 0


def test_progress_counts_up_to_its_total() -> None:
    steps: list[Step] = []
    encoder = LuckyEncoder()
    run(encoder, SOME, progress=steps.append)
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[-1].done == steps[-1].total == encoder.inputs
    assert list(dict.fromkeys(step.probe for step in steps)) == list(SOME.probes)


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    result = run(LuckyEncoder(), SOME, folder=tmp_path)[0]
    assert read_result(tmp_path / "binding.json") == result
    assert from_json(json.loads(json.dumps(to_json(result)))) == result
    with pytest.raises(ValueError, match="not the result of a probe"):
        from_json({"key": {}})


def test_held_out_pairs_without_a_grid_say_so() -> None:
    heldout = split(SceneConfig()).heldout.pairs
    chosen = replace(SOME, probes=("binding", "place"), pairs=heldout)
    asked, unasked = run(LuckyEncoder(), chosen)
    assert asked.rows
    assert "no scenes for this probe" in (unasked.not_applicable or "")


def test_the_training_distribution_is_named_when_it_is_missing() -> None:
    chosen = replace(SOME, probes=("spurious",))
    (unknown,) = run(LuckyEncoder(), chosen)
    assert "n/a" in unknown.notes[0]
    (known,) = run(LuckyEncoder(), replace(chosen, correlated={"circle": "red"}))
    assert known.notes == ()
    assert known.key != unknown.key


def test_an_encoder_that_answers_nonsense_is_refused() -> None:
    class Nonsense(LuckyEncoder):
        def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
            return np.full((len(texts), 64), np.nan, dtype=np.float32)

    with pytest.raises(ValueError, match="NaN"):
        run(Nonsense(), SOME)


def test_a_control_with_other_rows_is_refused() -> None:
    rows, others = ([mean_row(name, [1.0], [0], chance=0.5)] for name in ("a", "b"))
    with pytest.raises(ValueError, match="control has rows"):
        result_rows(rows, {"bag": others})


def test_unknown_suites_and_sizes() -> None:
    with pytest.raises(ValueError, match="expected one of quick, full, binding"):
        suite("everything")
    assert suite("count").probes == ("count",)
    encoder = LuckyEncoder()
    for own, drawn in ((None, 224), (32, 48), (336, 336), (1024, 448)):
        encoder.image_px = own
        assert picture_px(encoder) == drawn


class DriftingEncoder(LuckyEncoder):
    """Vectors that tell when an input came and nothing else: a half turn in `turn` inputs, from the run's start or, as
    places in a request, anew with each call."""

    def __init__(self, turn: int, *, by_request: bool) -> None:
        super().__init__(fingerprint=f"drift {turn} {by_request}")
        self._turn, self._by_request = turn, by_request
        self._came = {"image": 0, "text": 0}

    def encode_images(self, images: Sequence[Shown]) -> NDArray[np.float32]:
        return self._told("image", len(images))

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._told("text", len(texts))

    def _told(self, kind: str, count: int) -> NDArray[np.float32]:
        first = 0 if self._by_request else self._came[kind]
        self._came[kind] += count
        angles = np.pi * (first + np.arange(count)) / self._turn
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@pytest.mark.parametrize(("turn", "by_request"), [(2000, False), (500, False), (64, True)])
def test_the_order_of_arrival_wins_nothing(turn: int, by_request: bool) -> None:
    results = run(DriftingEncoder(turn, by_request=by_request), suite("quick"))
    rows = {(result.key.probe, row.name): row for result in results for row in result.rows if row.better == "more"}
    won = [
        name for name, row in rows.items() if row.low is not None and row.chance is not None and row.low > row.chance
    ]
    assert len(rows) > 60
    assert len(won) <= 2, won  # of 95 % intervals
    assert not {probe for probe, _ in won} & {"image-to-image", "multi-label", "few-shot"}
    assert ("negation", "four options, near thing absent") not in won
