"""Shared by few-shot heads around their fit: classes, shots, zero-shot logits, validation, the report.

Fitted on unit image vectors of a frozen base, so the head is all that is published: everything else is inherited.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from torch import nn

from evaluation.metrics import normalize
from evaluation.zero_shot import class_matrix
from training.checkpoint import HEAD_PREFIX, LoadedModel, load_head
from training.data.protocol import Source
from training.data.rows import Split
from training.encoder import TorchEncoder, encoder_of
from training.exporting.derive import DerivationSource
from training.features import Features, picture_vectors
from training.method import Context, FitMethod, ModuleUse, Needs, Produced
from training.methods.parts.class_heads import (
    F32,
    I64,
    ClassHead,
    LinearHead,
    accuracy,
    best_of,
    judge_head,
    read,
)
from training.methods.parts.linear_heads import truth_of, zero_shot_head
from training.methods.parts.shots import ShotOptions, ShotTask, shot_task
from training.publication import Publication
from training.saved import SavedRun


class HeadMethod(FitMethod):
    """Subclasses turn shots into a head, and set their knobs on validation."""

    kinds: ClassVar[tuple[type[ClassHead], ...]] = (LinearHead,)
    """What its heads may be; a checkpoint is opened as the one whose arrays it holds."""
    knobs: ClassVar[tuple[str, ...]] = ()
    """What `choose` sets on validation: entries of what was tried."""

    task: ShotTask
    classes: tuple[str, ...]
    pool: I64
    """How many training pictures each class has, of which the shots are some."""
    zero_shot: LinearHead
    head: ClassHead
    seed: int
    """The recipe's, for a subclass that draws."""

    def __init__(self, options: ShotOptions) -> None:
        self.options = options
        self.needs = Needs(level="features", labels=(options.label,), captions=0)

    @abstractmethod
    def choose(self, shots: F32, truth: I64, validation: F32, expected: I64) -> tuple[ClassHead, dict[str, Any]]:
        """The head of these unit vectors [n, D] and classes int64 [n], and what was tried on validation.

        What was tried holds the chosen value of each of `knobs` under its name.
        """

    def setup(self, context: Context) -> None:
        base = context.required_base("a class head")
        self.seed = context.seed
        self.task = shot_task(context.source, self.options)
        self.classes, self.pool = self.task.classes, self.task.pool
        self.templates = self.options.templates or base.info.templates
        encoder = encoder_of(base, name="base", device=context.device)
        self.zero_shot = zero_shot_head(
            class_matrix(encoder.encode_texts, self.classes, self.templates),
            scale=scale_of(base),
        )

    def fit(self, features: Features) -> None:
        task = self.task
        validation, expected = normalize(features.validation[task.known]), task.expected
        self.head, tried = self.choose(normalize(features.image[task.rows]), task.truth, validation, expected)
        self._report = {
            "zero_shot": judge_head(self.zero_shot, validation, expected),
            "head": judge_head(self.head, validation, expected),
            "tried": tried,
            "shots": task.report(),
        }

    def report(self) -> dict[str, Any]:
        return self._report

    def modules(self) -> dict[str, tuple[nn.Module, ModuleUse]]:
        return {}

    def artifact(self) -> Produced:
        return Produced(
            arrays={f"{HEAD_PREFIX}{name}": array for name, array in self.head.arrays().items()},
            labels=self.classes,
            templates=self.templates,
            inherited=("image_encoder", "text_encoder"),
        )

    # From a checkpoint

    def opened(self, run: SavedRun) -> ClassHead:
        """The head that a checkpoint holds.

        Raises:
            ValueError: it holds none of this method's, or a file differs from its digest.
        """
        stored = load_head(run.folder)
        try:
            return read(self.kinds, stored.arrays, labels=stored.labels)
        except ValueError as error:
            raise ValueError(f"{run.folder}: {error}") from error

    def derivation(self, publication: Publication) -> DerivationSource:
        """Only the head is new; its base is the artifact that was made of the very weights it was fitted on."""
        run = publication.run
        method, label = run.info.config.method, self.options.label
        structure = f"class_head/1;{method}"
        return DerivationSource(
            base=publication.base(),
            structure=structure,
            provenance=publication.provenance(structure, f"class head of {method} for {label}"),
            heads={head_name(label): self.opened(run).source(run.info.labels)},
            metrics=publication.metrics(),
        )

    def encoder(self, run: SavedRun) -> TorchEncoder:
        method = run.info.config.method
        raise ValueError(f"{run.folder} is a class head of method {method}, not a model: it encodes nothing")

    def judge(self, run: SavedRun, source: Source, *, split: Literal["validation", "test"]) -> dict[str, Any]:
        """The head behind its base, beside zero-shot."""
        info = run.info
        return report_head(
            self.opened(run),
            run.base(),
            source,
            split=split,
            label=self.options.label,
            labels=info.labels,
            templates=info.templates,
        )


def best(tried: Mapping[float, ClassHead], validation: F32, expected: I64) -> tuple[float, dict[str, float]]:
    """The value that is most often right on validation, the smallest of equals, and every value's accuracy."""
    found = {value: accuracy(head, validation, expected) for value, head in tried.items()}
    return best_of(found), {f"{value:g}": share for value, share in sorted(found.items())}


def checked_grid(values: tuple[float, ...]) -> tuple[float, ...]:
    """Raises:
    ValueError: an empty grid, equal values, or a negative one.
    """
    if not values or len(set(values)) != len(values) or min(values) < 0 or not np.isfinite(values).all():
        raise ValueError(f"grid {values} must be different numbers, none below 0")
    return values


def report_head(
    head: ClassHead,
    base: LoadedModel,
    source: Source,
    *,
    split: Split,
    label: str,
    labels: tuple[str, ...],
    templates: tuple[str, ...],
) -> dict[str, Any]:
    """A head behind the very base that it was fitted on, on one split, beside zero-shot of `labels` in `templates`.

    Raises:
        ValueError: no picture of the split has one of the head's classes.
    """
    truth = truth_of(source.labels(label, split), labels)
    known = truth >= 0
    if not known.any():
        raise ValueError(f"no picture of {split} has one of the {len(labels)} classes of {label!r}")
    vectors = normalize(picture_vectors(base, source.pictures(split)[known], device="cpu"))
    encoder = encoder_of(base, name="base")
    zero_shot = zero_shot_head(class_matrix(encoder.encode_texts, labels, templates), scale=scale_of(base))
    return {
        "label": label,
        "without_a_class": int((~known).sum()),
        "zero_shot": judge_head(zero_shot, vectors, truth[known]),
        "head": judge_head(head, vectors, truth[known]),
    }


def head_name(label: str) -> str:
    """A label column as a head is called: small letters, digits and . _ - only."""
    return re.sub(r"[^a-z0-9._-]+", "-", label.casefold()).strip("-._")[:64] or "classes"


def scale_of(base: LoadedModel) -> float:
    """What the base multiplies cosines with."""
    return float(base.model.logit_scale.exp().reshape(-1)[0])
