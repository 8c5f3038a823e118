"""The logistic curve of a presence, against scikit-learn and against what it must not do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.platt import fit_platt


@given(seed=st.integers(0, 1000), slope=st.floats(-3, 3), offset=st.floats(-2, 2), spread=st.floats(0.01, 100))
def test_it_is_the_likeliest_curve(seed: int, slope: float, offset: float, spread: float) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=400)
    truth = rng.random(400) < 1 / (1 + np.exp(-(slope * scores + offset)))
    weights = rng.uniform(0.5, 2, 400)
    if truth.all() or not truth.any():
        return
    reference = (
        pytest.importorskip("sklearn.linear_model")
        .LogisticRegression(C=1e8, tol=1e-10, max_iter=2000)
        .fit(scores[:, None], truth, sample_weight=weights)
    )
    found = fit_platt(scores * spread, truth, weights)
    wanted = float(reference.coef_[0, 0]) / spread, float(reference.intercept_[0])
    assert found[0] * spread == pytest.approx(wanted[0] * spread, abs=2e-3)
    assert found[1] == pytest.approx(wanted[1], abs=2e-3)


def test_scores_without_an_error_give_a_finite_curve() -> None:
    slope, offset = fit_platt(np.array([-1.0, -0.5, 0.5, 1.0]), np.array([False, False, True, True]))
    assert np.isfinite([slope, offset]).all()
    assert slope > 3
    flat = fit_platt(np.zeros(4), np.array([False, True, True, True]))
    assert 1 / (1 + np.exp(-flat[1])) == pytest.approx(0.75, abs=1e-3)


def test_one_answer_tells_nothing_apart() -> None:
    with pytest.raises(ValueError, match="nothing to tell apart"):
        fit_platt(np.arange(3.0), np.ones(3, dtype=bool))
