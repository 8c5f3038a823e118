"""One label set of a server: what it is, how far it is, and what it tells of itself."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np

from clipworks.schemas import LabelSetDetail, LabelSetInfo, LabelSetStatus, WeighedTemplates
from service.tasks.prompts import Prompts
from service.tasks.scoring import ClassMatrix
from service.tasks.stored_set import StoredSet
from service.tasks.zero_shot import unknown_labels
from service.teaching.examples import ExampleVectors
from service.teaching.head import TaughtHead
from service.teaching.report import TeachingReport


@dataclass
class KeptLabelSet:
    """`stored` is None for a file that cannot be read, which `failed` explains.

    pictures: what its templates are weighed by, until they are.
    examples: what it is taught with; `report` says how that went, and `head` is None where the texts alone decide.
    scale: the model's logit scale, 1 where it is not known.
    before: what /classify uses while this is not ready, where only examples changed.
    """

    name: str
    stored: StoredSet | None
    prompts: Prompts
    pictures: ExampleVectors | None = None
    examples: ExampleVectors | None = None
    scale: float = 1.0
    vectors: np.ndarray | None = None
    weak: frozenset[int] = frozenset()
    encoded: int = 0
    head: TaughtHead | None = None
    report: TeachingReport | None = None
    before: ClassMatrix | TaughtHead | None = None
    failed: str | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def model(self) -> str:
        return self.stored.model if self.stored else ""

    @property
    def version(self) -> int:
        """Of its examples; 0: it was never taught."""
        return self.stored.taught.version if self.stored and self.stored.taught else 0

    @property
    def is_taught(self) -> bool:
        """Whether it has examples."""
        return bool(self.examples)

    @property
    def is_ready(self) -> bool:
        return not self.failed and self.vectors is not None and (self.report is not None or not self.is_taught)

    @property
    def classes(self) -> ClassMatrix | TaughtHead | None:
        """What its labels are recognised by; None unless it is ready."""
        if not self.is_ready or self.vectors is None:
            return None
        return self.head or ClassMatrix(self.prompts.names, self.vectors, self.weak)

    @property
    def can_be_taught(self) -> bool:
        """Whether examples can be added and taken away: also if it failed with those that it has."""
        return not self.failed or self.is_taught

    @property
    def weak_names(self) -> list[str]:
        return [self.prompts.names[index] for index in sorted(self.weak)]

    @property
    def status(self) -> LabelSetStatus:
        if self.failed:
            return "failed"
        if self.is_ready:
            return "ready"
        return "encoding" if self.vectors is None else "fitting"

    def info(self) -> LabelSetInfo:
        taught = self.stored.taught if self.stored else None
        return LabelSetInfo(
            name=self.name,
            model=self.model,
            labels=len(self.prompts.labels),
            texts=self.prompts.texts,
            encoded=self.encoded,
            ready=self.is_ready,
            status=self.status,
            failed=self.failed,
            examples=len(self.examples) if self.examples is not None else 0,
            version=taught.version if taught else None,
            warnings=self._warnings(),
        )

    def detail(self) -> LabelSetDetail:
        report = self.report
        return LabelSetDetail(
            **self.info().model_dump(),
            label_names=list(self.prompts.names),
            templates=list(self.prompts.templates),
            weighed=self._weighed(),
            leave_one_out=report.leave_one_out if report else None,
            mix=report.mix if report else None,
            per_label=list(report.per_label) if report else None,
            confused=list(report.confused) if report else None,
            calibrated=self.head.sigmoid is not None if self.head else None,
        )

    def _weighed(self) -> WeighedTemplates | None:
        weighed = self.stored.weighed if self.stored else None
        wanted = self.stored.request.weigh_templates if self.stored else None
        if weighed is None or wanted is None:
            return None
        weights = None if weighed.weights is None else list(weighed.weights)
        return WeighedTemplates(
            collection=wanted.collection,
            reference=wanted.reference,
            how=wanted.how,
            pictures=weighed.pictures,
            weights=weights,
        )

    def _warnings(self) -> list[str]:
        said = [unknown_labels(self.weak_names)] if self.weak and self.head is None else []
        if self.examples is not None and not len(self.examples):
            said.append("it has no example: the words of its labels alone decide")
        return [*said, *(self.report.warnings if self.report else ())]

    def same(self, other: KeptLabelSet) -> bool:
        """Would both have the same vectors under the same labels, and the same examples?"""
        mine, its = self.stored, other.stored
        if mine is None or its is None or not self.same_texts(other):
            return False
        if mine.request.on_unknown != its.request.on_unknown or not _same_weighing(mine, its):
            return False
        return _digest(mine) == _digest(its)

    def same_texts(self, other: KeptLabelSet) -> bool:
        mine, its = self.stored, other.stored
        if mine is None or its is None or (mine.model, mine.fingerprint) != (its.model, its.fingerprint):
            return False
        return self.prompts.digest == other.prompts.digest


def _same_weighing(mine: StoredSet, its: StoredSet) -> bool:
    """Whether their templates are weighed in one way by the same pictures, wherever those lie."""
    if mine.weighed is None or its.weighed is None:
        return mine.weighed is its.weighed
    ways = [each.request.weigh_templates.how for each in (mine, its) if each.request.weigh_templates]
    return mine.weighed.sha256 == its.weighed.sha256 and len(set(ways)) == 1


def _digest(stored: StoredSet) -> str | None:
    return stored.taught.sha256 if stored.taught else None
