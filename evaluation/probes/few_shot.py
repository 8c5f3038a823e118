"""Few shots with base and new classes (CoOp's split): what is gained on seen classes, what is left on unseen ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics import normalize
from evaluation.probes.pictures import Picture
from evaluation.probes.pool import Pool
from evaluation.probes.questions import Reads, credit
from evaluation.probes.readers import Reader, Sentence, said
from evaluation.probes.rows import F64, ProbeRow, mean_row
from evaluation.scenes.meaning import Enumeration, What
from evaluation.scenes.scene import SceneError

_FRAME = "a picture of {a}"
_CHANCE_DRAWS = 20_000


@dataclass(frozen=True, slots=True)
class ShotExample:
    """`label` counts within base or within new."""

    picture: Picture
    label: int
    cluster: int


@dataclass(frozen=True)
class FewShot:
    """Base and new classes share no combination of shape and colour; shots and tests share no scene or background."""

    base: tuple[What, ...]
    new: tuple[What, ...]
    shots: tuple[ShotExample, ...]
    base_tests: tuple[ShotExample, ...]
    new_tests: tuple[ShotExample, ...]
    name: str = "few-shot"
    reads: Reads = "both"

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return tuple(example.picture for example in (*self.shots, *self.base_tests, *self.new_tests))

    @property
    def texts(self) -> tuple[Sentence, ...]:
        return tuple(said(Enumeration((what,)), _FRAME) for what in (*self.base, *self.new))

    def measure(self, reader: Reader) -> list[ProbeRow]:
        """Zero-shot on both halves; on base also with prototypes, the mean of a class's text and of its shots.

        A method that learns prompts brings its own encoder of texts; here nothing is learnt that new classes could
        profit from, so their score is the zero-shot one and the harmonic mean takes it.
        """
        texts = reader.text_vectors(self.texts)
        base_texts, new_texts = texts[: len(self.base)], texts[len(self.base) :]
        base, new = self._vectors(reader, self.base_tests), self._vectors(reader, self.new_tests)
        shots, labels = self._vectors(reader, self.shots), np.array([example.label for example in self.shots])
        means = normalize(np.stack([shots[labels == label].mean(axis=0) for label in range(len(self.base))]))
        prototypes = normalize(base_texts + means).astype(np.float64)
        per_class = len(self.shots) // len(self.base)
        ties_wrong = reader.ties_wrong
        found = {
            "base, zero-shot": (_marks(base, base_texts, self.base_tests, ties_wrong), self.base_tests, len(self.base)),
            f"base, {per_class} shots": (
                _marks(base, prototypes, self.base_tests, ties_wrong),
                self.base_tests,
                len(self.base),
            ),
            "new, zero-shot": (_marks(new, new_texts, self.new_tests, ties_wrong), self.new_tests, len(self.new)),
        }
        rows = [
            mean_row(name, marks, [example.cluster for example in tests], chance=1 / classes)
            for name, (marks, tests, classes) in found.items()
        ]
        clusters = [example.cluster for example in (*self.base_tests, *self.new_tests)]
        base_marks, new_marks = found[f"base, {per_class} shots"][0], found["new, zero-shot"][0]
        return [*rows, harmonic_row(base_marks, new_marks, clusters, classes=(len(self.base), len(self.new)))]

    def _vectors(self, reader: Reader, examples: tuple[ShotExample, ...]) -> F64:
        return reader.image_vectors([example.picture for example in examples])


def harmonic_row(
    base: F64, new: F64, clusters: Sequence[int], *, classes: tuple[int, int], name: str = "harmonic mean"
) -> ProbeRow:
    """Of the mean marks on base and on new tests; `clusters` belong to the base tests, then to the new ones.

    classes: of base and new. Chance is measured: a harmonic mean of two lucky shares lies below that of their means.
    """
    marks = np.concatenate([base, new])
    is_base = np.arange(len(marks)) < len(base)

    def harmonic(picks: NDArray[np.intp]) -> float:
        first, second = marks[picks[is_base[picks]]], marks[picks[~is_base[picks]]]
        if not len(first) or not len(second):
            return float("nan")
        a, b = float(first.mean()), float(second.mean())
        return 2 * a * b / (a + b) if a + b else 0.0

    random = np.random.default_rng(0)
    lucky = [
        random.binomial(len(part), 1 / count, _CHANCE_DRAWS) / len(part)
        for part, count in zip((base, new), classes, strict=True)
    ]
    both = lucky[0] + lucky[1]
    chance = float((2 * lucky[0] * lucky[1] / np.where(both > 0, both, 1)).mean())
    return ProbeRow(name=name, chance=chance, clusters=np.array(clusters), statistic=harmonic)


def _marks(images: F64, classes: F64, tests: tuple[ShotExample, ...], ties_wrong: bool) -> F64:
    scores = images @ classes.T
    return np.array(
        [credit(row, example.label, ties_wrong=ties_wrong) for row, example in zip(scores, tests, strict=True)]
    )


def build(pool: Pool) -> FewShot:
    """The grid as a chessboard: black fields are base, white ones new, so every word occurs in both halves.

    The first quarter of a class's groups (at least one) are its shots, the others its tests.

    Raises:
        SceneError: one group for each class: no test is left.
    """
    if pool.size.class_groups < 2:
        raise SceneError(f"few-shot needs 2 groups for each class, the pool has {pool.size.class_groups}")
    side, kept = len(pool.grid[1]), max(1, pool.size.class_groups // 4)
    halves: tuple[list[int], list[int]] = ([], [])
    for index in range(len(pool.classes)):
        halves[(index // side + index % side) % 2].append(index)
    made: list[tuple[list[ShotExample], list[ShotExample]]] = []
    for half in halves:
        shots, tests = [], []
        for label, index in enumerate(half):
            for at, group in enumerate(pool.class_groups[index]):
                examples = [ShotExample(Picture(s), label, index * pool.size.class_groups + at) for s in group.scenes]
                (shots if at < kept else tests).extend(examples)
        made.append((shots, tests))
    (shots, base_tests), (_, new_tests) = made
    base, new = (tuple(pool.classes[index] for index in half) for half in halves)
    return FewShot(base, new, tuple(shots), tuple(base_tests), tuple(new_tests))
