"""Text-to-image and image-to-text retrieval where equal titles are all correct answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics import Estimate, bootstrap, first_hit_rank, normalize

CUTS = (1, 5, 10)


def title_ids(titles: Sequence[str]) -> NDArray[np.int64]:
    """One id per distinct case-folded title, int64 [N], numbered in order of first appearance."""
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(title.casefold(), len(seen)) for title in titles], dtype=np.int64)


def retrieval(
    images: NDArray[np.floating],
    texts: NDArray[np.floating],
    titles: Sequence[str],
    *,
    queries: NDArray[np.bool_] | None = None,
) -> dict[str, Estimate]:
    """Recall at 1, 5 and 10 in both directions, keys like `t2i_r@1`, and `chance_t2i_r@1` for a random order.

    `images` and `texts` [N, D] belong to the N rows of `titles`. Text queries are the rows' titles, candidates all
    images; image queries are the rows' images, candidates the distinct titles. Equal titles (case-folded) are hits.
    `queries` restricts who asks, never who is a candidate.
    """
    if not len(images) == len(texts) == len(titles):
        raise ValueError(f"{len(images)} images, {len(texts)} texts, {len(titles)} titles: they must be equal")
    ids = title_ids(titles)
    asked = np.ones(len(ids), dtype=bool) if queries is None else queries
    distinct = np.unique(ids, return_index=True)[1]
    scores = normalize(images) @ normalize(texts).T
    report: dict[str, Estimate] = {}
    for name, table, relevant in (
        ("t2i", scores.T[asked], ids[asked][:, None] == ids[None, :]),
        ("i2t", scores[asked][:, distinct], ids[asked][:, None] == ids[distinct][None, :]),
    ):
        ranks = first_hit_rank(table, relevant)
        for cut in CUTS:
            report[f"{name}_r@{cut}"] = bootstrap(ranks < cut)
        chance = float(np.mean(relevant.sum(axis=1) / relevant.shape[1]))
        report[f"chance_{name}_r@1"] = Estimate(value=chance, low=chance, high=chance, n=int(asked.sum()))
    return report
