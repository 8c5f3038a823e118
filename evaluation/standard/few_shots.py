"""Base and new classes of an image folder (CoOp's split), and what 1 to 16 pictures per class add on the base ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.encoder import Encoder, Vectors
from evaluation.probe_results import ProbeResult, RunKey
from evaluation.probes.few_shot import harmonic_row
from evaluation.probes.rows import F64, ProbeRow, mean_row
from evaluation.standard.asking import Asking, Tell, digest, joined, run_key, unasked
from evaluation.standard.classify import NO_TEMPLATES, Wording, class_ranks, majority_row, wording
from evaluation.standard.image_folder import ImageFolder, LabelledPhotograph, identities, in_hash_order, labels_of
from evaluation.standard.linear import best_strength, fit, require_sklearn
from evaluation.standard.photographs import clusters_of
from evaluation.zero_shot import class_matrix

SHOTS = (1, 2, 4, 8, 16)
_VALIDATION_SHOTS = 4  # as many as shots, at most these (CoOp)
_DRAWS = 3


@dataclass(frozen=True)
class FewShots:
    """The first half of the sorted classes is base (the larger half), the second new.

    Shots come from train/ where the set has it, else from the first half of a class's pictures in an order by hash,
    20 at most; all others are tests. Each row of shots is the mean of three draws.
    """

    name: str
    folder: ImageFolder
    wording: Wording = "1"
    seed: int = 0
    kind: str = "few-shot-folder"

    def __post_init__(self) -> None:
        base, new = self._tests()
        if not base or not new:
            raise ValueError(f"{self.name}: no test picture for the {'base' if not base else 'new'} classes")

    @property
    def base(self) -> int:
        """How many classes are base."""
        return (len(self.folder.classes) + 1) // 2

    def key(self, encoder: Encoder) -> RunKey:
        own = wording("own", encoder) if self.wording == "own" else None
        return run_key(self, encoder, asked=digest([self._asked(), own]), seed=self.seed)

    def measure(self, encoder: Encoder, *, progress: Tell | None = None) -> ProbeResult:
        """Zero-shot on base among base classes, on new among new ones, their harmonic mean; shots on base.

        Raises:
            ModuleNotFoundError: no scikit-learn (extra `eval`).
        """
        require_sklearn()
        templates = wording(self.wording, encoder)
        if templates is None:
            return unasked(self.key(encoder), encoder, NO_TEMPLATES)
        base, new = self._tests()
        pools = [self._class(label)[0] for label in range(self.base)]
        names = self.folder.names
        photographs = [item.photograph for item in (*base, *new, *(item for pool in pools for item in pool))]
        texts = {template.format(name) for template in templates for name in names}
        asking = Asking(encoder, self.kind, pictures=len(photographs), texts=len(texts), progress=progress)
        matrix, found = class_matrix(asking.text_vectors, names, templates), asking.image_vectors(photographs)
        clusters = clusters_of(photographs[: len(base) + len(new)])
        truth = labels_of(base)
        base_images, new_images, shots = np.split(found, [len(base), len(base) + len(new)])
        rows = self._zero_shot(
            class_ranks(base_images, matrix[: self.base], truth) == 0,
            class_ranks(new_images, matrix[self.base :], labels_of(new) - self.base) == 0,
            clusters,
        )
        parts = np.split(shots, np.cumsum([len(pool) for pool in pools])[:-1])
        notes = [
            *self.folder.notes,
            f"{self.base} base, {len(names) - self.base} new classes; templates={self.wording}",
        ]
        for count in SHOTS:
            needed, smallest = count + min(count, _VALIDATION_SHOTS), min(len(part) for part in parts)
            if smallest < needed:
                notes.append(f"base, {_shots(count)}: n/a, {needed} pictures a class are needed, one has {smallest}")
                continue
            marks = self._marks(parts, base_images, truth, count)
            rows.append(mean_row(f"base, {_shots(count)}", marks, clusters[: len(base)], chance=1 / self.base))
        rows.append(majority_row(truth, truth, clusters[: len(base)], classes=self.base))
        return joined(self.key(encoder), asking, rows, asked=self._asked(), notes=notes)

    def _zero_shot(self, base: NDArray[np.bool_], new: NDArray[np.bool_], clusters: list[int]) -> list[ProbeRow]:
        classes, marks = len(self.folder.classes), (base.astype(np.float64), new.astype(np.float64))
        return [
            mean_row("base, zero-shot", marks[0], clusters[: len(base)], chance=1 / self.base),
            mean_row("new, zero-shot", marks[1], clusters[len(base) :], chance=1 / (classes - self.base)),
            harmonic_row(*marks, clusters, classes=(self.base, classes - self.base), name="harmonic mean, zero-shot"),
        ]

    def _marks(self, pools: list[Vectors], tests: Vectors, truth: NDArray[np.int64], count: int) -> F64:
        """Credit of each base test, the mean over draws of the shots."""
        held = min(count, _VALIDATION_SHOTS)
        labels, held_labels = np.repeat(np.arange(len(pools)), count), np.repeat(np.arange(len(pools)), held)
        marks = np.zeros(len(tests))
        for draw in range(_DRAWS):
            random = np.random.default_rng((self.seed, draw))
            orders = [random.permutation(len(pool)) for pool in pools]
            shots = np.concatenate([pool[order[:count]] for pool, order in zip(pools, orders, strict=True)])
            others = [pool[order[count : count + held]] for pool, order in zip(pools, orders, strict=True)]
            strength = best_strength(shots, labels, np.concatenate(others), held_labels)
            marks += fit(shots, labels, strength=strength).predict(tests) == truth
        return marks / _DRAWS

    def _tests(self) -> tuple[list[LabelledPhotograph], list[LabelledPhotograph]]:
        """Of the base classes, and of the new ones."""
        tests = [self._class(label)[1] for label in range(len(self.folder.classes))]
        base, new = tests[: self.base], tests[self.base :]
        return [item for items in base for item in items], [item for items in new for item in items]

    def _class(self, label: int) -> tuple[list[LabelledPhotograph], list[LabelledPhotograph]]:
        items = [item for item in self.folder.items if item.label == label]
        if None not in self.folder.parts:
            tested = "test" if "test" in self.folder.parts else "validation"
            return [i for i in items if i.part == "train"], [i for i in items if i.part == tested]
        ordered = in_hash_order(items, seed=self.seed)
        kept = min(len(ordered) // 2, max(SHOTS) + _VALIDATION_SHOTS)
        return ordered[:kept], ordered[kept:]

    def _asked(self) -> str:
        return digest([*identities(self.folder), self.wording, self.seed])


def _shots(count: int) -> str:
    return f"{count} shot" + ("s" if count > 1 else "")
