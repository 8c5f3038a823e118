"""Search inside one modality against a plain ranking of each query."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.metrics import normalize
from evaluation.same_modality import numbered, search_same

RNG = np.random.default_rng(0)
VECTORS, OTHERS = (normalize(RNG.standard_normal((60, 6))) for _ in range(2))
LABELS = numbered([None if n % 11 == 0 else "abcd"[n % 4] for n in range(59)] + ["alone"])


@pytest.mark.parametrize("queries", [VECTORS, OTHERS])
@pytest.mark.parametrize("grouped", [False, True])
def test_it_is_the_mean_over_queries_of_a_plain_ranking(queries: np.ndarray, grouped: bool) -> None:
    groups = np.arange(60) // 5 if grouped else np.arange(60)
    precisions, firsts, fifths = [], [], []
    for query in np.flatnonzero(LABELS >= 0):
        among = (LABELS >= 0) & (groups != groups[query])
        scores, relevant = (queries[query] @ VECTORS.T)[among], (LABELS[query] == LABELS)[among]
        if relevant.any():
            ranked = relevant[np.argsort(-scores)]
            precisions.append(np.mean(np.cumsum(ranked)[ranked] / (np.flatnonzero(ranked) + 1)))
            firsts.append(ranked[0])
            fifths.append(ranked[:5].any())
    found = search_same(queries, VECTORS, LABELS, groups=groups if grouped else None)
    estimates = found.estimates()
    assert len(found.precisions) == len(precisions)
    for name, expected in (("mAP", precisions), ("r@1", firsts), ("r@5", fifths)):
        assert estimates[name].value == pytest.approx(np.mean(expected), abs=1e-6)
        assert estimates[name].low < estimates[name].value < estimates[name].high
    assert found.chance[1] < found.chance[0] < 0.5


def test_ties_with_wrong_ones_are_wrong_and_nothing_to_find_is_an_error() -> None:
    equal = np.ones((4, 1), dtype=np.float32)
    found = search_same(equal, equal, np.array([0, 0, 1, 1])).estimates()
    assert (found["mAP"].value, found["r@1"].value, found["r@5"].value) == (pytest.approx(1 / 3), 0, 1)
    with pytest.raises(ValueError, match="none of 2 items has another one of its label"):
        search_same(equal, equal, np.array([0, 1, -1, -1]))
