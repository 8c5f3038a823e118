"""Pictures against pictures (the question of "Cross the Gap"): same thing, other pose, place and background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.probes.pictures import Picture
from evaluation.probes.pool import Pool
from evaluation.probes.questions import TIE, Reads
from evaluation.probes.ranking import average_precision
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
        """Recall at 1 (a wrong picture of equal score ranks first) and mean average precision over queries."""
        vectors = reader.image_vectors(self.pictures)
        similar = vectors @ vectors.T
        labels, groups = np.array(self.labels), np.array(self.groups)
        firsts: list[float] = []
        precisions: list[float] = []
        prevalence: list[float] = []
        for query in range(len(self.pictures)):
            candidates = groups != groups[query]
            scores, relevant = similar[query][candidates], (labels == labels[query])[candidates]
            firsts.append(float(scores[relevant].max() > scores[~relevant].max() + TIE))
            precisions.append(average_precision(scores, relevant))
            prevalence.append(float(relevant.mean()))
        chance = float(np.mean(prevalence))
        return [
            mean_row("recall at 1", firsts, groups, chance=chance),
            mean_row("mAP", precisions, groups, chance=chance),
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
