"""Retrieval over captioned pictures: a text finds its picture, a picture one of its texts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.encoder import Encoder
from evaluation.probe_results import ProbeResult, RunKey
from evaluation.probes.rows import ProbeRow, mean_row
from evaluation.retrieval import CUTS, title_ids
from evaluation.standard.asking import Asking, Tell, digest, joined, run_key
from evaluation.standard.captioned import Captioned
from evaluation.standard.marks import chance_of_hit, ranks
from evaluation.standard.photographs import clusters_of


@dataclass(frozen=True)
class Recall:
    """Every caption asks for a picture among all; every picture asks for a caption among the distinct ones.

    A caption (case-folded) belongs to all pictures that have it, and a picture to all its captions: each of them is a
    hit (recall at k as in CLIP, 2021: whether any right answer is among the first k).
    """

    name: str
    captioned: Captioned
    kind: str = "retrieval"

    def key(self, encoder: Encoder) -> RunKey:
        return run_key(self, encoder, asked=self._asked())

    def measure(self, encoder: Encoder, *, progress: Tell | None = None) -> ProbeResult:
        """Raises:
        ValueError: as every task; see evaluation.standard.asking.
        """
        photographs = list(dict.fromkeys(photograph for photograph, _ in self.captioned.pairs))
        captions = [caption for _, caption in self.captioned.pairs]
        ids = title_ids(captions)
        first = np.unique(ids, return_index=True)[1]
        asking = Asking(encoder, self.kind, pictures=len(photographs), texts=len(set(captions)), progress=progress)
        images, texts = asking.image_vectors(photographs), asking.text_vectors(captions)
        at = {photograph: index for index, photograph in enumerate(photographs)}
        owners = np.array([at[photograph] for photograph, _ in self.captioned.pairs], dtype=np.int64)
        belongs = np.zeros((len(photographs), len(first)), dtype=bool)
        belongs[owners, ids] = True
        found_images = ranks(texts, images, belongs.T[ids])
        found_texts = ranks(images, texts[first], belongs)
        groups = clusters_of(photographs)
        rows = [
            *_rows("text to image", found_images, belongs.T[ids], [groups[owner] for owner in owners]),
            *_rows("image to text", found_texts, belongs, groups),
        ]
        return joined(self.key(encoder), asking, rows, asked=self._asked(), notes=self.captioned.notes)

    def _asked(self) -> str:
        return digest(f"{photograph.identity} {caption}" for photograph, caption in self.captioned.pairs)


def _rows(
    direction: str, found: NDArray[np.float64], relevant: NDArray[np.bool_], clusters: list[int]
) -> list[ProbeRow]:
    hits, candidates = relevant.sum(axis=1), relevant.shape[1]
    return [
        mean_row(
            f"{direction}, R@{cut}",
            (found < cut).astype(np.float64),
            clusters,
            chance=chance_of_hit(hits, candidates, cut),
        )
        for cut in CUTS
    ]
