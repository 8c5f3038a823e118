"""CLIP-KD: a student learns from what a teacher says of the same pairs (Yang et al., 2024, "CLIP-KD: An Empirical Study
of CLIP Model Distillation"). Every term is a function of `training.distillation_losses`.

The teacher is a checkpoint or any artifact of a store; it answers for the batch's own crops and captions as training
goes on, or once for a number of fixed looks at every row (`looks`), which are then all that training sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from training.batch_norms import statistics_kept
from training.distillation_losses import (
    PairVectors,
    feature_distance,
    gradient_distance,
    interactive_contrast,
    relation_distance,
)
from training.losses import info_nce, positive_pairs, unit
from training.method import Context, ModuleUse, ParamGroup, Produced
from training.methods.base import MAX_LOG_SCALE, TowerOptions, TwoTowers
from training.methods.parts.masking import masked
from training.teachers import Teacher, TeacherVectors

Term = Literal["task", "fd", "mfd", "gd", "icl", "crd", "afd"]
UNIFIED: dict[Term, float] = {"task": 1.0, "crd": 1.0, "icl": 1.0, "fd": 2000.0}
"""The paper's best sum; the weight of fd belongs to a mean over coordinates, of which the paper's models have 512."""
_ALONE: dict[Term, float] = {"task": 1.0}
_TOWERS = ("image", "text")
_START = math.log(1 / 0.07)


class KdOptions(TowerOptions):
    """teacher: the folder of a checkpoint, or `artifact:NAME[@VERSION]` of `store`.

    looks: 0: the teacher answers at every step; else each row is shown and said in so many ways drawn once for all, and
    the teacher's answers are kept on disk. preset "unified" gives the paper's weights; a weight that is named wins.

    task: InfoNCE on the pairs. fd: distance of vectors. mfd: the same for pictures of which `mask_share` of the patches
    of `mask_px` are grey. gd: distance of InfoNCE's gradients. icl: contrast with the other tower of the teacher.
    crd: Kullback-Leibler distance of the batch's softmaxes. afd: InfoNCE on student's and teacher's vectors joined.

    kd_scale: the inverse temperature of crd's softmaxes, one for both; None: each model's own. icl and afd learn
    theirs.
    """

    teacher: str
    store: Path | None = None
    looks: int = Field(default=0, ge=0)
    preset: Literal["none", "unified"] = "none"
    task: float | None = Field(default=None, ge=0)
    fd: float | None = Field(default=None, ge=0)
    mfd: float | None = Field(default=None, ge=0)
    gd: float | None = Field(default=None, ge=0)
    icl: float | None = Field(default=None, ge=0)
    crd: float | None = Field(default=None, ge=0)
    afd: float | None = Field(default=None, ge=0)
    mask_share: float = Field(default=0.75, gt=0, lt=1)
    mask_px: int = Field(default=8, ge=1)
    kd_scale: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _learns_something(self) -> Self:
        if not self.weights():
            raise ValueError('every term has weight 0: set preset = "unified", or one of the terms')
        return self

    def weights(self) -> dict[Term, float]:
        """The terms that count, with their weights; without a preset the task's is 1."""
        base = UNIFIED if self.preset == "unified" else _ALONE
        named: dict[Term, float | None] = {
            "task": self.task,
            "fd": self.fd,
            "mfd": self.mfd,
            "gd": self.gd,
            "icl": self.icl,
            "crd": self.crd,
            "afd": self.afd,
        }
        found = {term: base.get(term, 0.0) if weight is None else weight for term, weight in named.items()}
        return {term: found[term] for term in named if found[term]}


def create(options: dict[str, Any]) -> KdMethod:
    return KdMethod(KdOptions.parse(options, method="kd"))


class Adapters(nn.Module):
    """What the terms need beside the student, thrown away at the end: projections of its vectors to the teacher's size
    where they differ, the fusion of afd, and the inverse temperatures of icl and afd, as logarithms."""

    def __init__(self, own: int, teacher: int, terms: Collection[Term]) -> None:
        super().__init__()
        projects = own != teacher and not {"fd", "mfd", "gd", "icl", "afd"}.isdisjoint(terms)
        self.projections = nn.ModuleDict({each: nn.Linear(own, teacher) for each in _TOWERS} if projects else {})
        self.fusions = nn.ModuleDict({each: nn.Linear(2 * teacher, own) for each in _TOWERS} if "afd" in terms else {})
        self.scales = nn.ParameterDict(
            {each: nn.Parameter(torch.tensor(_START)) for each in ("icl", "afd") if each in terms}
        )

    def projected(self, vectors: Tensor, tower: str) -> Tensor:
        """Un-normalised [B, D] of the student -> unit vectors of the teacher's size."""
        return unit(self.projections[tower](vectors) if self.projections else vectors)

    def fused(self, student: Tensor, teacher: Tensor, tower: str) -> Tensor:
        """Unit vectors of the teacher's size, both [B, D'] -> unit [B, D]."""
        return unit(self.fusions[tower](torch.cat([student, teacher], dim=1)))

    def scale(self, term: Term) -> Tensor:
        return self.scales[term].exp()


class KdMethod(TwoTowers):
    """The paper's code masks the pictures of every term when it masks; here only mfd looks at masked pictures. Its
    fusion expects the student's size beside the teacher's, and fails where they differ; here both have the teacher's.
    """

    def __init__(self, options: KdOptions) -> None:
        self.looks = options.looks
        seen = ("row", "look") if options.looks else ("second_image", "second_text")
        self.fields = ("image", "text", "caption_id", *seen)
        super().__init__(options)
        self.kd, self.terms = options, options.weights()

    def setup(self, context: Context) -> None:
        super().setup(context)
        self.teacher = Teacher.open(self.kd.teacher, store=self.kd.store, device=context.device)
        self.vectors: TeacherVectors | None = None
        if self.kd.looks:
            self.vectors = self.teacher.cached(
                context.source,
                looks=self.kd.looks,
                data_key=context.data_key,
                folder=context.features_folder,
                track=context.track,
            )
        else:
            self.second = self.teacher.look()
        said = torch.from_numpy(context.tokenizer.pad([context.tokenizer.encode("a")])).to(context.device)
        with torch.no_grad():
            own = self.model.encode_text(said).shape[1]
        self.adapters = Adapters(own, self.teacher.dim, self.terms).to(context.device)

    def modules(self) -> dict[str, tuple[nn.Module, ModuleUse]]:
        return {**super().modules(), "adapters": (self.adapters, "train_only")}

    def artifact(self) -> Produced:
        return replace(super().artifact(), distillation=self.teacher.taught(self.terms))

    def param_groups(self) -> list[ParamGroup]:
        beside = {f"adapters.{name}": parameter for name, parameter in self.adapters.named_parameters()}
        return [*super().param_groups(), *([ParamGroup(parameters=beside)] if beside else [])]

    def constrain(self) -> None:
        super().constrain()
        for scale in self.adapters.scales.values():
            scale.clamp_(0, MAX_LOG_SCALE)

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Un-normalised vectors [b, D] of pictures and texts, and of masked pictures where mfd wants them."""
        found = {"image": self.model.encode_image(batch["image"]), "text": self.model.encode_text(batch["text"])}
        if "mfd" in self.terms:
            mean = self.model.pixel_input.get_buffer("mean")
            hidden = masked(batch["image"], share=self.kd.mask_share, patch_px=self.kd.mask_px, mean=mean)
            with statistics_kept([self.model]):  # the model will be shown whole pictures
                found["masked"] = self.model.encode_image(hidden)
        return {name: vectors.float() for name, vectors in found.items()}

    def compare(self, vectors: dict[str, Tensor], batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        with torch.autocast(batch["image"].device.type, enabled=False):
            losses = self._losses({name: self.gathering.vectors(each) for name, each in vectors.items()}, batch)
            return {term: weight * losses[term]() for term, weight in self.terms.items()}

    def _losses(self, vectors: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[Term, Callable[[], Tensor]]:
        """Every term, to be worked out if it counts; `vectors` of all processes."""
        rows = self.gathering.rows(len(batch["image"]))
        positives = positive_pairs(self.gathering.facts(batch["caption_id"]))
        its = PairVectors(*(self.gathering.facts(each) for each in self._teacher_vectors(batch)))
        own = PairVectors(unit(vectors["image"]), unit(vectors["text"]))
        near = PairVectors(*(self.adapters.projected(vectors[tower], tower) for tower in _TOWERS))
        scale, its_scale = self.model.logit_scale.exp(), self.teacher.scale
        crd_scale, crd_its = scale, its_scale
        if self.kd.kd_scale is not None:
            crd_scale = crd_its = torch.full_like(its_scale, self.kd.kd_scale)

        def mfd() -> Tensor:
            hidden = PairVectors(self.adapters.projected(vectors["masked"], "image"), near.text)
            return feature_distance(hidden, its, rows=rows)

        def afd() -> Tensor:
            image = self.adapters.fused(near.image, its.image, "image")
            text = self.adapters.fused(near.text, its.text, "text")
            return info_nce(image, text, self.adapters.scale("afd"), positives, rows=rows)

        return {
            "task": lambda: info_nce(*own, scale, positives, excused=self.excused(batch), rows=rows),
            "fd": lambda: feature_distance(near, its, rows=rows),
            "mfd": mfd,
            "gd": lambda: gradient_distance(near, its, scale, its_scale, positives=positives, rows=rows),
            "icl": lambda: interactive_contrast(near, its, self.adapters.scale("icl"), positives=positives, rows=rows),
            "crd": lambda: relation_distance(own, its, crd_scale, crd_its, rows=rows),
            "afd": afd,
        }

    def _teacher_vectors(self, batch: dict[str, Tensor]) -> PairVectors:
        """Of this process's rows."""
        if self.vectors is not None:
            return self.vectors.of(batch["row"], batch["look"])
        return self.teacher.vectors(batch["second_image"], batch["second_text"])
