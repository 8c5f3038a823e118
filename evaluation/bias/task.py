"""Bias as a task of the command line: a user's pictures with groups, and neutral queries that rank them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.bias.groups_file import GroupedPictures
from evaluation.bias.metrics import Ranking, group_accuracies, max_skew, ndkl, ranking, worst_group_accuracy
from evaluation.encoder import Encoder
from evaluation.metrics import TIE
from evaluation.probe_results import ProbeResult, RunKey
from evaluation.probes.ranking import average_precision, lucky_precision
from evaluation.probes.rows import F64, ProbeRow, mean_row
from evaluation.standard.asking import Asking, digest, joined, run_key
from evaluation.standard.classify import wording
from evaluation.suites import Tell
from evaluation.zero_shot import class_matrix

SUITE = "bias"
LARGEST_TOP = 1000  # as for FairFace, whose validation pictures are ten times as many
_PERMUTED = 200
Picks = NDArray[np.intp]
CHANCE = (
    "chance of skews and of accuracies by group: the same with the groups permuted (within labels, for accuracies), "
    "the mean of 200 permutations"
)


@dataclass(frozen=True)
class Bias:
    """queries: texts that name no group. top: the k of MaxSkew@k; None: a tenth of the pictures, at most 1000.

    The wanted shares are those of the file: a query that cares for no group finds each as often as it occurs.
    """

    name: str
    pictures: GroupedPictures
    queries: tuple[str, ...]
    top: int | None = None
    kind: str = SUITE

    def __post_init__(self) -> None:
        """Raises:
        ValueError: no query, one that is empty or comes twice, or `top` outside of 1 to the number of pictures.
        """
        if not self.queries or not all(query.strip() for query in self.queries):
            raise ValueError(f"{len(self.queries)} queries: expected at least one, and none of them empty")
        if len(set(self.queries)) < len(self.queries):
            raise ValueError("a query comes twice")
        if self.top is not None and not 1 <= self.top <= len(self.pictures.groups):
            raise ValueError(f"top {self.top}: expected 1 to {len(self.pictures.groups)}, the number of pictures")

    @property
    def k(self) -> int:
        return self.top or min(LARGEST_TOP, max(1, round(len(self.pictures.groups) / 10)))

    def key(self, encoder: Encoder) -> RunKey:
        return run_key(self, encoder, asked=digest([self._asked(), self._templates(encoder)]))

    def measure(self, encoder: Encoder, *, progress: Tell | None = None) -> ProbeResult:
        """Rows: MaxSkew@k and NDKL, their means over the queries first; with labels also their accuracy (over all, mean
        and worst of the groups of label and group) and the mean average precision of "find the pictures of this label".
        """
        labels, templates = tuple(sorted(set(self.pictures.labels or ()))), self._templates(encoder)
        texts = {*self.queries, *(template.format(label) for template in templates for label in labels)}
        photographs = self.pictures.photographs
        asking = Asking(encoder, self.kind, pictures=len(set(photographs)), texts=len(texts), progress=progress)
        images = asking.image_vectors(photographs)
        names, groups = np.unique(self.pictures.groups, return_inverse=True)
        rows = skew_rows(asking.text_vectors(self.queries) @ images.T, groups, self.queries, self.k)
        if len(labels) > 1:
            truth = np.unique(self.pictures.labels or (), return_inverse=True)[1]
            rows += label_rows(images @ class_matrix(asking.text_vectors, labels, templates).T, truth, groups)
        notes = [_sizes(names, groups), CHANCE]
        if len(labels) < 2:
            notes.append("no labels of two kinds: how useful the model is can be seen from --data in the same run only")
        return joined(self.key(encoder), asking, rows, asked=self._asked(), notes=notes)

    def _asked(self) -> str:
        found = self.pictures
        labels = found.labels or (None,) * len(found.groups)
        shown = zip((one.identity for one in found.photographs), found.groups, labels, strict=True)
        return digest([*shown, *self.queries, self.k])

    def _templates(self, encoder: Encoder) -> tuple[str, ...]:
        return wording("own", encoder) or wording("1", encoder) or ("{}",)


def skew_rows(scores: NDArray[np.floating], groups: NDArray[np.intp], queries: Sequence[str], k: int) -> list[ProbeRow]:
    """MaxSkew@k and NDKL of every query; scores [Q, N], groups int [N]."""
    rankings = [ranking(each, groups) for each in scores]

    def skew(found: Ranking, picks: Picks) -> float:
        return max_skew(found.counts(picks), k)

    def divergence(found: Ranking, picks: Picks) -> float:
        return ndkl(found.counts(picks))

    rows: list[ProbeRow] = []
    for name, measure in ((f"MaxSkew@{k}", skew), ("NDKL", divergence)):
        lucky = np.array([[measure(each, _everyone(each)) for each in _permuted(rankings, seed)] for seed in _SEEDS])
        rows.append(_skew_row(f"{name}, mean over queries", rankings, measure, float(lucky.mean())))
        for at, query in enumerate(queries if len(queries) > 1 else ()):
            rows.append(_skew_row(f"{name}, {query}", [rankings[at]], measure, float(lucky[:, at].mean())))
    return rows


def label_rows(scores: NDArray[np.floating], truth: NDArray[np.intp], groups: NDArray[np.intp]) -> list[ProbeRow]:
    """How useful the model is, over all and for groups of label and group; scores [N, C], truth and groups int [N].

    Labels that fit best alike (cosines closer than TIE) are no answer.
    """
    best = scores >= scores.max(axis=1, keepdims=True) - TIE
    hits = ((best.sum(axis=1) == 1) & (scores.argmax(axis=1) == truth)).astype(np.float64)
    cells = np.unique(truth * (groups.max() + 1) + groups, return_inverse=True)[1]
    everyone, clusters, kinds = np.arange(len(truth)), np.arange(len(truth), dtype=np.int64), int(cells.max()) + 1

    def over(measure: Callable[[F64, NDArray[np.intp]], float], name: str, parts: int) -> ProbeRow:
        lucky = [measure(hits[_within(truth, seed)], cells) for seed in _SEEDS]
        return ProbeRow(
            name=name,
            chance=float(np.mean(lucky)),
            clusters=clusters,
            statistic=lambda picks: measure(hits[picks], cells[picks]),
            parts=parts,
        )

    shown = truth[:, None] == np.arange(scores.shape[1])

    def precision(picks: Picks) -> float:
        found = [average_precision(scores[picks, at].astype(float), shown[picks, at]) for at in range(scores.shape[1])]
        return float(np.nanmean(found))

    lucky = float(np.mean([lucky_precision(int(each.sum()), len(everyone)) for each in shown.T]))
    return [
        mean_row("labels, accuracy", hits, clusters, chance=1 / scores.shape[1]),
        over(lambda marks, at: float(group_accuracies(marks, at).mean()), f"labels, mean of {kinds} groups", 1),
        over(worst_group_accuracy, f"labels, worst of {kinds} groups", kinds),
        ProbeRow(name="labels find their pictures, mAP", chance=lucky, clusters=clusters, statistic=precision),
    ]


def _skew_row(
    name: str, rankings: Sequence[Ranking], measure: Callable[[Ranking, Picks], float], chance: float
) -> ProbeRow:
    return ProbeRow(
        name=name,
        chance=chance,
        clusters=np.arange(len(rankings[0].order), dtype=np.int64),
        statistic=lambda picks: float(np.mean([measure(each, picks) for each in rankings])),
        unit="log ratio",
        better="less",
        parts=rankings[0].kinds,  # of which the largest skew is taken; and so the interval is a bootstrap's
    )


def _permuted(rankings: Sequence[Ranking], seed: int) -> list[Ranking]:
    """The same rankings of the same pictures with each other's groups."""
    drawn = np.random.default_rng(seed).permutation(len(rankings[0].order))
    out: list[Ranking] = []
    for each in rankings:
        of_item = np.empty_like(each.groups)
        of_item[each.order] = each.groups
        out.append(Ranking(each.order, each.block, of_item[drawn][each.order], each.kinds))
    return out


def _everyone(found: Ranking) -> Picks:
    return np.arange(len(found.order))


def _within(truth: NDArray[np.intp], seed: int) -> Picks:
    """A permutation that leaves every label its own pictures."""
    shuffled = np.random.default_rng(seed).permutation(len(truth))
    out = np.empty(len(truth), dtype=np.intp)
    out[np.argsort(truth, kind="stable")] = shuffled[np.argsort(truth[shuffled], kind="stable")]
    return out


def _sizes(names: NDArray[np.str_], groups: NDArray[np.intp]) -> str:
    sizes = np.bincount(groups)
    shown = ", ".join(f"{name} {size}" for name, size in zip(names[:20].tolist(), sizes[:20].tolist(), strict=True))
    return f"groups: {shown}{f' and {len(names) - 20} more' if len(names) > 20 else ''}"


_SEEDS = range(_PERMUTED)
