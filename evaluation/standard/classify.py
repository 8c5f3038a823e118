"""Zero-shot classification of an image folder: the best of the class names, in several wordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from evaluation.encoder import Encoder, Vectors, own_templates
from evaluation.probe_results import ProbeResult, RunKey
from evaluation.probes.rows import F64, ProbeRow, mean_row
from evaluation.standard.asking import Asking, Tell, digest, joined, run_key, unasked
from evaluation.standard.image_folder import ImageFolder, LabelledPhotograph, Part, identities, labels_of
from evaluation.standard.marks import macro_row, ranks
from evaluation.standard.photographs import clusters_of
from evaluation.zero_shot import class_matrix
from model_store.templates import named_templates

Wording = Literal["bare", "1", "7", "80", "own"]
WORDINGS: tuple[Wording, ...] = get_args(Wording)
_SINGLE = ("a photo of a {}.",)
_NAMED: Mapping[str, str] = {"bare": "none", "7": "simple", "80": "imagenet"}
_TOP = 5
NO_TEMPLATES = "own templates: n/a, this encoder names none"
_SAID: Mapping[Wording, str] = {
    "bare": "bare names",
    "1": "1 template",
    "7": "7 templates",
    "80": "80 templates",
    "own": "own templates",
}


def wording(name: Wording, encoder: Encoder) -> tuple[str, ...] | None:
    """The templates, each with one {}; None for "own" if the encoder names none."""
    if name == "own":
        return own_templates(encoder)
    return _SINGLE if name == "1" else named_templates(_NAMED[name])


@dataclass(frozen=True)
class ZeroShotTask:
    """`wordings`: the class names alone, in 1, 7 or 80 sentences, or in those of the artifact."""

    name: str
    folder: ImageFolder
    wordings: tuple[Wording, ...] = WORDINGS
    kind: str = "zero-shot"

    def key(self, encoder: Encoder) -> RunKey:
        own = own_templates(encoder) if "own" in self.wordings else None
        return run_key(self, encoder, asked=digest([self._asked(), own]))

    def measure(self, encoder: Encoder, *, progress: Tell | None = None) -> ProbeResult:
        """Rows per wording: top-1, top-5 (from six classes on), the mean over classes; and the majority baseline."""
        items, part = judged(self.folder)
        photographs = [item.photograph for item in items]
        names = self.folder.names
        templates: dict[Wording, tuple[str, ...] | None] = {name: wording(name, encoder) for name in self.wordings}
        if not any(templates.values()):
            return unasked(self.key(encoder), encoder, NO_TEMPLATES)
        texts = {one.format(name) for found in templates.values() for one in found or () for name in names}
        asking = Asking(encoder, self.kind, pictures=len(set(photographs)), texts=len(texts), progress=progress)
        images, truth, clusters = asking.image_vectors(photographs), labels_of(items), clusters_of(photographs)
        rows: list[ProbeRow] = []
        notes = [*self.folder.notes, *([f"judged on the {part} pictures only"] if part else [])]
        for name, found in templates.items():
            if found is None:
                notes.append(NO_TEMPLATES)
                rows += _unasked(f", {_SAID[name]}", classes=len(names))
                continue
            found_ranks = class_ranks(images, class_matrix(asking.text_vectors, names, found), truth)
            rows += class_rows(f", {_SAID[name]}", found_ranks, truth, clusters, classes=len(names))
        rows.append(majority_row(truth, truth, clusters, classes=len(names)))
        return joined(self.key(encoder), asking, rows, asked=self._asked(), notes=notes)

    def _asked(self) -> str:
        return digest([*identities(self.folder), *self.wordings])


def judged(folder: ImageFolder) -> tuple[tuple[LabelledPhotograph, ...], Part | None]:
    """All pictures of a set without folders for its parts, else those of test/, else those of val/."""
    part: Part | None = next((part for part in ("test", "validation") if part in folder.parts), None)
    return tuple(item for item in folder.items if item.part == part), part


def class_ranks(images: Vectors, classes: Vectors, truth: NDArray[np.int64]) -> F64:
    """How many classes fit better than the true one, float64 [n]; ties count as better."""
    return ranks(images, classes, truth[:, None] == np.arange(len(classes))[None, :])


def class_rows(
    suffix: str, found: F64, truth: NDArray[np.int64], clusters: Sequence[int], *, classes: int
) -> list[ProbeRow]:
    """top-1, top-5 where there are more than five classes, and top-1 averaged over the classes that occur."""
    hits = (found == 0).astype(np.float64)
    rows = [mean_row(f"top-1{suffix}", hits, clusters, chance=1 / classes)]
    if classes > _TOP:
        rows.append(mean_row(f"top-{_TOP}{suffix}", (found < _TOP).astype(float), clusters, chance=_TOP / classes))
    return [*rows, macro_row(f"mean over classes{suffix}", hits, truth, clusters, chance=1 / classes)]


def majority_row(
    learnt: NDArray[np.int64], truth: NDArray[np.int64], clusters: Sequence[int], *, classes: int
) -> ProbeRow:
    """What always naming the most frequent class of `learnt` scores on `truth`."""
    named = np.bincount(learnt).argmax()
    return mean_row("majority baseline", (truth == named).astype(float), clusters, chance=1 / classes)


def _unasked(suffix: str, *, classes: int) -> list[ProbeRow]:
    empty = np.zeros(0, dtype=np.int64)
    return class_rows(suffix, np.zeros(0), empty, empty.tolist(), classes=classes)
