"""Maps and presence scores against sums written out by hand, and what must hold whatever the numbers are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from model_store.label_vectors import LabelVectors
from model_store.manifest import Presence
from model_store.presence import default_presence, directions, presence_scores, score_maps

ROWS, COLUMNS, DIM = 3, 4, 8


def units(count: int, seed: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(count, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def positions(seed: int = 7) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(ROWS, COLUMNS, DIM)).astype(np.float32)


def presence(**more: object) -> Presence:
    return Presence.model_validate(
        {"positive_templates": ["a {}"], "scale": 3.0, "aggregation": "max", "divide_by": "one"} | more
    )


def test_a_map_is_the_projection_minus_the_mean_of_the_other_texts() -> None:
    labels = LabelVectors(positive=units(3, 0), neutral=units(2, 1))
    cells, maps = positions(), score_maps(positions(), labels, presence())
    assert maps.shape == (3, ROWS, COLUMNS)
    assert maps.dtype == np.float32
    texts = [*labels.positive, *units(2, 1)]
    for label in range(3):
        others = [text for index, text in enumerate(texts) if index != label]
        for row in range(ROWS):
            for column in range(COLUMNS):
                cell = cells[row, column]
                wanted = float(cell @ texts[label]) - sum(float(cell @ text) for text in others) / len(others)
                assert maps[label, row, column] == pytest.approx(wanted, abs=1e-5)


def test_it_ranks_as_the_plain_mean_over_all_texts_does() -> None:
    labels = LabelVectors(positive=units(4, 2), neutral=units(3, 3))
    mean = np.concatenate([labels.positive, units(3, 3)]).mean(axis=0)
    plain = np.einsum("hwd,cd->chw", positions(), labels.positive - mean)
    np.testing.assert_allclose(score_maps(positions(), labels, presence()) * 6 / 7, plain, atol=1e-5)


def test_one_label_alone_is_projected_as_it_is() -> None:
    one = LabelVectors(positive=units(1, 4))
    np.testing.assert_allclose(
        score_maps(positions(), one, presence())[0], positions() @ units(1, 4)[0], rtol=1e-5, atol=1e-6
    )


def test_a_neutral_text_is_what_one_label_is_compared_with() -> None:
    one = LabelVectors(positive=units(1, 4), neutral=units(1, 5))
    wanted = positions() @ (units(1, 4)[0] - units(1, 5)[0])
    np.testing.assert_allclose(score_maps(positions(), one, presence())[0], wanted, rtol=1e-4, atol=1e-5)


def test_negative_prompts_take_the_place_of_the_mean() -> None:
    labels = LabelVectors(positive=units(3, 0), negative=units(3, 8), neutral=units(2, 1))
    wanted = np.einsum("hwd,cd->chw", positions(), units(3, 0) - units(3, 8))
    found = score_maps(positions(), labels, presence(negative_templates=["no {}"]))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    with pytest.raises(ValueError, match="negative vector"):
        score_maps(positions(), LabelVectors(positive=units(3, 0)), presence(negative_templates=["no {}"]))


def test_long_vectors_count_more_unless_cosine_is_asked_for() -> None:
    cells, labels = positions(), LabelVectors(positive=units(2, 0))
    longer = cells.copy()
    longer[1, 2] *= 10
    plain, stretched = (score_maps(each, labels, presence()) for each in (cells, longer))
    np.testing.assert_allclose(stretched[:, 1, 2], 10 * plain[:, 1, 2], rtol=1e-4)
    cosine = presence(similarity="cosine")
    np.testing.assert_allclose(score_maps(longer, labels, cosine), score_maps(cells, labels, cosine), atol=1e-6)


def test_a_label_without_a_known_word_has_no_map_and_changes_no_other() -> None:
    unknown = np.zeros((1, DIM), dtype=np.float32)
    with_it = score_maps(positions(), LabelVectors(positive=np.concatenate([units(2, 0), unknown])), presence())
    np.testing.assert_array_equal(with_it[2], 0)
    np.testing.assert_allclose(
        with_it[:2], score_maps(positions(), LabelVectors(positive=units(2, 0)), presence()), atol=1e-6
    )


@pytest.mark.parametrize("aggregation", ["max", "softmax_sum", "pooled"])
@pytest.mark.parametrize("divide_by", ["one", "pooled_norm"])
def test_scores_are_the_stated_formula(aggregation: str, divide_by: str) -> None:
    rule = presence(
        aggregation=aggregation, divide_by=divide_by, calibration_slope=0.7, calibration_offset=-0.4, scale=2.5
    )
    labels, pooled = LabelVectors(positive=units(3, 0)), positions(11)[0, 0]
    maps = score_maps(positions(), labels, rule)
    length = float(np.linalg.norm(pooled)) if divide_by == "pooled_norm" else 1.0
    for label, found in enumerate(presence_scores(maps, pooled, labels, rule)):
        values = [2.5 * float(value) / length for value in maps[label].ravel()]
        if aggregation == "max":
            aggregate = max(values)
        elif aggregation == "softmax_sum":
            weights = [math.exp(value) for value in values]
            aggregate = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
        else:
            aggregate = 2.5 * float(pooled @ directions(labels, rule)[label]) / length
        assert found == pytest.approx(1 / (1 + math.exp(-(0.7 * aggregate - 0.4))), abs=1e-6)


def test_the_calibration_knows_how_many_were_asked_and_how_long_the_vector_is() -> None:
    plain = presence(aggregation="pooled", divide_by="one", calibration_slope=0.7, calibration_offset=-0.4)
    rule = plain.model_copy(update={"calibration_count": -1.1, "calibration_length": 0.3})
    unknown = np.zeros((2, DIM), dtype=np.float32)
    labels = LabelVectors(positive=np.concatenate([units(3, 0), unknown]))
    pooled, maps = positions(11)[0, 0], score_maps(positions(), labels, rule)
    before, after = (presence_scores(maps, pooled, labels, each)[:3] for each in (plain, rule))
    added = np.log(after / (1 - after)) - np.log(before / (1 - before))
    # Labels without a known word are not counted.
    np.testing.assert_allclose(added, -1.1 * math.log(3) + 0.3 * np.linalg.norm(pooled), rtol=1e-4)
    np.testing.assert_array_equal(presence_scores(maps, pooled, labels, rule)[3:], 0)


def test_a_presence_without_them_is_written_as_before() -> None:
    assert not {"calibration_count", "calibration_length"} & set(presence(aggregation="max").model_dump())


def test_the_length_of_all_vectors_together_does_not_matter_when_divided() -> None:
    rule, labels = presence(divide_by="pooled_norm"), LabelVectors(positive=units(3, 0))
    pooled = positions(11)[0, 0]
    once = presence_scores(score_maps(positions(), labels, rule), pooled, labels, rule)
    np.testing.assert_allclose(
        presence_scores(score_maps(positions() * 50, labels, rule), pooled * 50, labels, rule), once, rtol=1e-4
    )


@given(
    scale=st.floats(1e-3, 1e4),
    offset=st.floats(-50, 50),
    stretch=st.floats(0, 1e20),
    aggregation=st.sampled_from(["max", "softmax_sum", "pooled"]),
)
def test_scores_are_probabilities_whatever_comes(scale: float, offset: float, stretch: float, aggregation: str) -> None:
    rule = presence(scale=scale, calibration_offset=offset, aggregation=aggregation)
    labels = LabelVectors(positive=units(2, 0))
    cells = (positions() * stretch).astype(np.float32)
    found = presence_scores(score_maps(cells, labels, rule), cells.mean(axis=(0, 1)), labels, rule)
    assert found.dtype == np.float64
    assert ((found >= 0) & (found <= 1)).all()


def test_the_default_compares_with_empty_prompts() -> None:
    rule = default_presence(("a photo of a {}.", "{}", "a photo of a {}."), 20.0)
    assert rule.neutral_texts == ("a photo of a .", "")
    assert rule.positive_templates == ("a photo of a {}.", "{}", "a photo of a {}.")
    assert rule.similarity == "projection"


def test_a_template_needs_a_place_for_the_label() -> None:
    with pytest.raises(ValidationError, match="exactly one"):
        presence(negative_templates=["no such thing"])
    with pytest.raises(ValidationError):
        presence(positive_templates=[])
