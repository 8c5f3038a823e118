"""Linear probe: how well the classes of an image folder can be told apart by planes in the space of frozen vectors."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.encoder import Encoder, Vectors
from evaluation.probe_results import ProbeResult, RunKey
from evaluation.standard.asking import Asking, Tell, digest, joined, run_key
from evaluation.standard.classify import class_rows, majority_row
from evaluation.standard.image_folder import ImageFolder, identities, labels_of, parted
from evaluation.standard.photographs import clusters_of

STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)
_ITERATIONS = 1000


@dataclass(frozen=True)
class LinearProbe:
    """Logistic regression (CLIP, 2021, 3.2): C is chosen on validation, then fitted on training and validation."""

    name: str
    folder: ImageFolder
    seed: int = 0
    kind: str = "linear-probe"

    def __post_init__(self) -> None:
        parts = parted(self.folder, seed=self.seed)
        empty = [part for part, items in parts.items() if not items]
        if empty:
            raise ValueError(f"{self.name}: no picture for {' and '.join(empty)}: too few pictures")
        unseen = set(range(len(self.folder.classes))) - {item.label for item in parts["train"]}
        if unseen:
            name = self.folder.classes[min(unseen)]
            raise ValueError(f"{self.name}: class {name!r} has no picture to train on ({len(unseen)} such classes)")

    def key(self, encoder: Encoder) -> RunKey:
        return run_key(self, encoder, asked=self._asked(), seed=self.seed)

    def measure(self, encoder: Encoder, *, progress: Tell | None = None) -> ProbeResult:
        """top-1, top-5, the mean over classes, and what always naming training's most frequent class scores.

        Raises:
            ModuleNotFoundError: no scikit-learn (extra `eval`).
        """
        require_sklearn()
        parts = parted(self.folder, seed=self.seed)
        asking = Asking(encoder, self.kind, pictures=len(self.folder.items), texts=0, progress=progress)
        vectors = {part: asking.image_vectors([item.photograph for item in items]) for part, items in parts.items()}
        train, validation, truth = (labels_of(parts[part]) for part in ("train", "validation", "test"))
        strength = best_strength(vectors["train"], train, vectors["validation"], validation)
        both = np.concatenate([vectors["train"], vectors["validation"]])
        model = fit(both, np.concatenate([train, validation]), strength=strength)
        found = _ranks(model, vectors["test"], truth)
        clusters = clusters_of(item.photograph for item in parts["test"])
        classes = len(self.folder.classes)
        rows = class_rows("", found, truth, clusters, classes=classes)
        rows.append(majority_row(train, truth, clusters, classes=classes))
        sizes = ", ".join(f"{len(items)} {part}" for part, items in parts.items())
        notes = [*self.folder.notes, f"{sizes}; C = {strength:g}"]
        return joined(self.key(encoder), asking, rows, asked=self._asked(), notes=notes)

    def _asked(self) -> str:
        return digest([*identities(self.folder), self.seed])


def require_sklearn() -> None:
    """Before anything is encoded.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        import sklearn.linear_model  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a linear probe needs scikit-learn: install clipworks[eval]") from error


def fit(vectors: Vectors, labels: NDArray[np.int64], *, strength: float) -> Any:
    """A fitted scikit-learn LogisticRegression. A fit that stops at its limit of steps is used as it is."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=_ITERATIONS).fit(vectors.astype(np.float64), labels)


def best_strength(vectors: Vectors, labels: NDArray[np.int64], validation: Vectors, truth: NDArray[np.int64]) -> float:
    """The one of STRENGTHS (scikit-learn's C) that is right most often on validation; the smallest among equals."""
    scores = [float((fit(vectors, labels, strength=c).predict(validation) == truth).mean()) for c in STRENGTHS]
    return STRENGTHS[int(np.argmax(scores))]


def _ranks(model: Any, vectors: Vectors, truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """How many classes the model finds at least as likely as the true one, float64 [n]."""
    scores = model.predict_log_proba(vectors.astype(np.float64))
    rivals = scores >= scores[np.arange(len(truth)), truth][:, None]
    return rivals.sum(axis=1).astype(np.float64) - 1
