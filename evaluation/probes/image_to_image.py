"""Pictures against pictures (the question of "Cross the Gap"): same thing, other pose, place and background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.metrics import TIE
from evaluation.probes.pictures import Picture
from evaluation.probes.pool import Pool
from evaluation.probes.questions import Reads
from evaluation.probes.ranking import average_precision, lucky_precision
from evaluation.probes.readers import Reader, Sentence
from evaluation.probes.rows import ProbeRow, mean_row
from evaluation.scenes.scene import SceneError


@dataclass(frozen=True)
class ImageToImage:
    """labels and groups: int per picture. A picture's own group (same background and pose) is no candidate for it."""

    pictures: tuple[Picture, ...]
    labels: tuple[int, ...]
    groups: tuple[int, ...]
    name: str = "image-to-image"
    reads: Reads = "images"
    texts: tuple[Sentence, ...] = ()

    def measure(self, reader: Reader) -> list[ProbeRow]:
        """Recall at 1 (a tie with a wrong picture is wrong) and mean average precision over queries.

        The pictures of one label are one cluster: whoever is near is near from both sides.
        """
        vectors = reader.image_vectors(self.pictures)
        similar = vectors @ vectors.T
        labels, groups = np.array(self.labels), np.array(self.groups)
        firsts: list[float] = []
        precisions: list[float] = []
        lucky: list[tuple[float, float]] = []
        for query in range(len(self.pictures)):
            candidates = groups != groups[query]
            scores, relevant = similar[query][candidates], (labels == labels[query])[candidates]
            best = relevant[scores >= scores.max() - TIE]
            firsts.append(float(best.all() if reader.ties_wrong else best.mean()))
            precisions.append(average_precision(scores, relevant, ties_wrong=reader.ties_wrong))
            lucky.append((float(relevant.mean()), lucky_precision(int(relevant.sum()), len(relevant))))
        first, precision = (float(value) for value in np.mean(lucky, axis=0))
        return [
            mean_row("recall at 1", firsts, labels, chance=first),
            mean_row("mAP", precisions, labels, chance=precision),
        ]


def build(pool: Pool) -> ImageToImage:
    """All pictures of single things.

    Raises:
        SceneError: one group for each class: nothing relevant is left.
    """
    if pool.size.class_groups < 2:
        raise SceneError(f"image to image needs 2 groups for each class, the pool has {pool.size.class_groups}")
    groups = [(label, group) for label, groups in enumerate(pool.class_groups) for group in groups]
    found = [(Picture(scene), label, at) for at, (label, group) in enumerate(groups) for scene in group.scenes]
    return ImageToImage(
        tuple(picture for picture, _, _ in found),
        tuple(label for _, label, _ in found),
        tuple(group for _, _, group in found),
    )
