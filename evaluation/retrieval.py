"""Text-to-image and image-to-text retrieval where equal titles, and all titles of a picture, are correct answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics import Estimate, first_hit_rank, mean_estimate, normalize

CUTS = (1, 5, 10)


def title_ids(titles: Sequence[str]) -> NDArray[np.int64]:
    """One id per distinct case-folded title, int64 [N], numbered in order of first appearance."""
    return _numbered([title.casefold() for title in titles])


def retrieval(
    images: NDArray[np.floating],
    texts: NDArray[np.floating],
    titles: Sequence[str],
    *,
    queries: NDArray[np.bool_] | None = None,
    pictures: Sequence[str] | None = None,
) -> dict[str, Estimate]:
    """Recall at 1, 5 and 10 in both directions, keys like `t2i_r@1`, and `chance_t2i_r@1` for a random order.

    `images` and `texts` [N, D] belong to the N rows of `titles`. Text queries are the rows' titles, candidates all
    images; image queries are the rows' images, candidates the distinct titles. Equal titles (case-folded) are hits.
    `queries` restricts who asks, never who is a candidate. `pictures` names the picture of each row, where rows share
    some: a picture is then one candidate, asks once, and all of its titles are hits. Intervals take the titles of one
    picture, and else equal titles, to be answered alike.
    """
    if not len(images) == len(texts) == len(titles):
        raise ValueError(f"{len(images)} images, {len(texts)} texts, {len(titles)} titles: they must be equal")
    ids = title_ids(titles)
    asked = np.ones(len(ids), dtype=bool) if queries is None else queries
    distinct = np.unique(ids, return_index=True)[1]
    shown_by = np.arange(len(ids)) if pictures is None else _numbered(pictures)
    shown = np.unique(shown_by, return_index=True)[1]
    titled = np.zeros((len(shown), len(distinct)), dtype=bool)
    titled[shown_by, ids] = True
    alone = np.isin(np.arange(len(ids)), shown) & asked
    scores = normalize(images) @ normalize(texts).T
    report: dict[str, Estimate] = {}
    for name, table, relevant, groups in (
        ("t2i", scores.T[asked][:, shown], titled.T[ids[asked]], ids[asked] if pictures is None else shown_by[asked]),
        ("i2t", scores[alone][:, distinct], titled[shown_by[alone]], shown_by[alone]),
    ):
        ranks = first_hit_rank(table, relevant)
        for cut in CUTS:
            report[f"{name}_r@{cut}"] = mean_estimate(ranks < cut, groups=groups)
        chance = float(np.mean(relevant.sum(axis=1) / relevant.shape[1]))
        report[f"chance_{name}_r@1"] = Estimate(value=chance, low=chance, high=chance, n=len(relevant))
    return report


def _numbered(names: Sequence[str]) -> NDArray[np.int64]:
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(name, len(seen)) for name in names], dtype=np.int64)
