"""Search inside one modality: pictures by a picture, or texts by a text, of which those of the same label are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics import Estimate, mean_estimate
from evaluation.probes.ranking import average_precision, lucky_precision

CUTS = (1, 5, 10)
_CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class SameModality:
    """precisions, hits: of each query that has something to find, float64 [Q] and bool [Q, 3] (within 1, 5 and 10).

    labels: int64 [Q], of the queries: those of one label are answered alike, so intervals take them as one group.
    chance: the mean average precision and the recall at 1 of a random order.
    """

    precisions: NDArray[np.float64]
    hits: NDArray[np.bool_]
    labels: NDArray[np.int64]
    chance: tuple[float, float]

    def estimates(self) -> dict[str, Estimate]:
        """`mAP`, `r@1`, `r@5` and `r@10`, with 95 % intervals over labels."""
        found = {"mAP": mean_estimate(self.precisions, groups=self.labels)}
        for at, cut in enumerate(CUTS):
            found[f"r@{cut}"] = mean_estimate(self.hits[:, at], groups=self.labels)
        return found


def numbered(labels: Sequence[str | None]) -> NDArray[np.int64]:
    """A number for each distinct label, int64 [N]; None is -1, which neither asks nor is found."""
    names = sorted({label for label in labels if label is not None})
    where = {name: at for at, name in enumerate(names)}
    return np.array([-1 if label is None else where[label] for label in labels], dtype=np.int64)


def search_same(
    queries: NDArray[np.floating],
    candidates: NDArray[np.floating],
    labels: NDArray[np.int64],
    *,
    groups: NDArray[np.int64] | None = None,
) -> SameModality:
    """Each of the unit queries [N, K] among the unit candidates [N, K], row i of both being item i.

    Queries may have come another way than candidates, such as through the other tower. labels int64 [N], -1 for none:
    such an item is neither query nor candidate. groups int64 [N]: items of a query's own group, by default the query
    alone, are no candidates of it. A tie with a wrong item is wrong.

    Raises:
        ValueError: no query has anything to find.
    """
    known = np.flatnonzero(labels >= 0)
    queries, candidates, labels = queries[known], candidates[known], labels[known]
    groups = np.arange(len(labels)) if groups is None else groups[known]
    precisions: list[float] = []
    hits: list[list[bool]] = []
    asked: list[int] = []
    lucky: list[tuple[float, float]] = []
    for start in range(0, len(labels), _CHUNK):
        scores = queries[start : start + _CHUNK].astype(np.float64) @ candidates.T.astype(np.float64)
        for query, row in enumerate(scores, start):
            among = groups != groups[query]
            relevant = (labels == labels[query])[among]
            if not relevant.any():
                continue
            found = row[among]
            rank = int((found[~relevant] >= found[relevant].max()).sum())
            precisions.append(average_precision(found, relevant))
            hits.append([rank < cut for cut in CUTS])
            asked.append(int(labels[query]))
            lucky.append((lucky_precision(int(relevant.sum()), len(relevant)), float(relevant.mean())))
    if not asked:
        raise ValueError(f"none of {len(labels)} items has another one of its label: there is nothing to find")
    precision, first = (float(value) for value in np.mean(lucky, axis=0))
    return SameModality(
        precisions=np.array(precisions),
        hits=np.array(hits),
        labels=np.array(asked, dtype=np.int64),
        chance=(precision, first),
    )
