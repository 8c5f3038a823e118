"""Probabilities of a search by a text: formulas by hand, and what a manifest refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from model_store.manifest import Manifest, SearchCalibration
from model_store.search_presence import evidence, hit_probabilities, match_probability, neutral_mean
from model_store.store import BUILTIN_FOLDER

CURVES = SearchCalibration(
    neutral_texts=("a photo",), hit_slope=10, hit_offset=-3, match_slope=20, match_offset=-4, threshold=0.4
)


def sigmoid(x: float) -> float:
    return 1 / (1 + float(np.exp(-x)))


def test_formulas_by_hand() -> None:
    neutral = np.array([[0.6, 0.8, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]], np.float32)
    mean = neutral_mean(neutral)
    assert mean == pytest.approx([0.3, 0.9, 0.0])  # a text without a known word is no direction
    pictures = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], np.float32)
    text = np.array([0.5, 0.8, 0.25], np.float32)
    found = evidence(pictures, text, mean)
    assert found == pytest.approx([0.2, 0.25])
    each = np.stack([text, text[::-1]])
    assert evidence(pictures, each, mean) == pytest.approx([0.2, 0.5])
    assert hit_probabilities(found, CURVES) == pytest.approx([sigmoid(-1), sigmoid(-0.5)])
    assert match_probability(found, CURVES) == pytest.approx(sigmoid(20 * 0.25 - 4))
    assert match_probability(np.zeros(0), CURVES) == 0.0


def test_neutral_texts_of_which_nothing_is_known_compare_with_nothing() -> None:
    with pytest.raises(ValueError, match="knows nothing of any neutral text"):
        neutral_mean(np.zeros((3, 4), np.float32))


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=10))
def test_the_best_hit_decides_and_more_evidence_is_likelier(found: list[float]) -> None:
    values = np.array(found)
    every = match_probability(values, CURVES)
    assert every == match_probability(values[[int(values.argmax())]], CURVES)
    assert 0 <= every <= 1
    assert match_probability(values + 0.1, CURVES) >= every
    assert (np.diff(hit_probabilities(np.sort(values), CURVES)) >= 0).all()


@pytest.mark.parametrize(
    "change",
    [{"neutral_texts": []}, {"hit_slope": 0}, {"match_slope": -1.0}, {"threshold": 1.5}, {"slope": 1.0}],
)
def test_what_says_nothing_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SearchCalibration.model_validate(CURVES.model_dump() | change)


@pytest.mark.parametrize("name", ["everyday-small", "everyday-tiny"])
def test_what_is_shipped_is_calibrated_and_older_manifests_stay_as_they_were(name: str) -> None:
    text = Path(BUILTIN_FOLDER, name, "1", "manifest.json").read_text(encoding="utf-8")
    manifest = Manifest.model_validate_json(text)
    assert manifest.search is not None
    assert 0 < manifest.search.threshold < 1
    assert len(manifest.search.neutral_texts) > 1
    older = json.loads(text)
    del older["search"]
    kept = Manifest.model_validate(older)
    assert kept.search is None
    assert "search" not in kept.model_dump(mode="json")
