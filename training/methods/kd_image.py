"""An image tower distilled into the space of its teacher, whose text tower it keeps: pictures need no captions.

The teacher is the recipe's base: a checkpoint, or a stored artifact. What is published is a derivation of the teacher's
artifact with an image tower of its own, of another size and for other pictures; texts, label sets and, where the proof
allows it, collections stay valid.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from evaluation.agreement import picture_agreement
from model_store.manifest import ImageSpec
from training.batch_norms import statistics_kept
from training.config import ImageTowerConfig
from training.data.protocol import Source
from training.distillation_losses import PairVectors, interactive_contrast, relation_distance, vector_distance
from training.distributed import Gathering
from training.encoder import TorchEncoder
from training.exporting.derive import DerivationSource
from training.losses import positive_pairs, unit
from training.method import Context, ContrastiveMethod, ModuleUse, Needs, ParamGroup, Produced
from training.methods.parts.image_student import ImageStudent, image_derivation
from training.methods.parts.masking import masked
from training.models.image_tower import ImageTower, tower_spec
from training.options import Options
from training.publication import Publication
from training.saved import SavedRun
from training.teachers import Teacher, TeacherVectors

Term = Literal["fd", "mfd", "icl", "crd"]
_PAIRED: frozenset[Term] = frozenset(("icl", "crd"))


class KdImageOptions(Options):
    """image: the student's tower. looks: as of the method kd.

    fd, mfd: distance of its vectors to the teacher's, of whole pictures and of masked ones; weights of a mean over
    coordinates. icl: contrast with the teacher's texts; crd: distance of softmaxes over them; both want captions.
    """

    image: ImageTowerConfig
    looks: int = Field(default=0, ge=0)
    fd: float = Field(default=2000.0, ge=0)
    mfd: float = Field(default=0.0, ge=0)
    icl: float = Field(default=0.0, ge=0)
    crd: float = Field(default=0.0, ge=0)
    mask_share: float = Field(default=0.75, gt=0, lt=1)
    mask_px: int = Field(default=8, ge=1)
    local_loss: bool = False
    gather_with_grad: bool = True

    @model_validator(mode="after")
    def _learns_something(self) -> Self:
        if not self.weights():
            raise ValueError("every term has weight 0")
        self.gathering()
        return self

    def weights(self) -> dict[Term, float]:
        named: dict[Term, float] = {"fd": self.fd, "mfd": self.mfd, "icl": self.icl, "crd": self.crd}
        return {term: weight for term, weight in named.items() if weight}

    def gathering(self) -> Gathering:
        return Gathering(local_loss=self.local_loss, with_gradient=self.gather_with_grad)


def create(options: dict[str, Any]) -> KdImage:
    return KdImage(KdImageOptions.parse(options, method="kd_image"))


class KdImage(ContrastiveMethod):
    def __init__(self, options: KdImageOptions) -> None:
        self.options, self.terms, self.looks = options, options.weights(), options.looks
        self.paired = not _PAIRED.isdisjoint(self.terms)
        seen = ("row", "look") if self.looks else ("second_image",)
        # Texts are tokenised as the base, which is the teacher, takes them.
        self.needs = Needs(fields=("image", *seen, *(("text", "caption_id") if self.paired else ())))
        self.gathering = options.gathering()

    def image_spec(self, spec: ImageSpec) -> ImageSpec:
        return tower_spec(self.options.image)

    def setup(self, context: Context) -> None:
        base = context.required_base("kd_image")
        self.teacher, self.templates = Teacher.of(base, device=context.device), base.info.templates
        self.student = ImageTower(self.options.image, embed_dim=self.teacher.dim).to(context.device)
        self.spec, self.device = tower_spec(self.options.image), context.device
        self.vectors: TeacherVectors | None = None
        if self.looks:
            self.vectors = self.teacher.cached(
                context.source,
                looks=self.looks,
                data_key=context.data_key,
                folder=context.features_folder,
                texts=self.paired,
                track=context.track,
            )
        else:
            self.second = self.teacher.look(texts=False)
        # Pictures without captions cannot be judged by what is found with texts.
        self.shown = None
        if not context.source.captioned:
            pictures = context.source.pictures("validation", self.teacher.image_spec)
            wanted = self.teacher.image_vectors(torch.from_numpy(pictures)).cpu().numpy()
            self.shown = torch.from_numpy(context.source.pictures("validation")), wanted

    def modules(self) -> dict[str, tuple[nn.Module, ModuleUse]]:
        return {"student": (self.student, "export"), "model": (self.teacher.model, "frozen")}

    def param_groups(self) -> list[ParamGroup]:
        return [ParamGroup(parameters={f"student.{name}": p for name, p in self.student.named_parameters()})]

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Unit vectors [b, D] of pictures, and of masked ones where mfd wants them."""
        found = {"image": unit(self.student.encode_image(batch["image"]))}
        if "mfd" in self.terms:
            mean, options = self.student.pixel_input.get_buffer("mean"), self.options
            hidden = masked(batch["image"], share=options.mask_share, patch_px=options.mask_px, mean=mean)
            with statistics_kept([self.student]):  # the model will be shown whole pictures
                found["masked"] = unit(self.student.encode_image(hidden))
        return found

    def compare(self, vectors: dict[str, Tensor], batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        with torch.autocast(batch["image"].device.type, enabled=False):
            rows = self.gathering.rows(len(batch["image"]))
            own = {name: self.gathering.vectors(each) for name, each in vectors.items()}
            its = self._teacher_vectors(batch)
            found: dict[str, Tensor] = {}
            for term, weight in self.terms.items():
                if term in ("fd", "mfd"):
                    loss = vector_distance(own["image" if term == "fd" else "masked"], its.image, rows=rows)
                elif term == "icl":
                    positives = positive_pairs(self.gathering.facts(batch["caption_id"]))
                    pair = PairVectors(own["image"], its.text)
                    loss = interactive_contrast(pair, its, self.teacher.scale, positives=positives, rows=rows)
                else:
                    pair = PairVectors(own["image"], its.text)
                    loss = relation_distance(pair, its, self.teacher.scale, self.teacher.scale, rows=rows)
                found[term] = weight * loss
            return found

    def validated(self) -> dict[str, Any] | None:
        """Of pictures without captions: how near the student is to its teacher."""
        if self.shown is None:
            return None
        pixels, wanted = self.shown
        self.student.eval()
        with torch.no_grad():
            parts = [unit(self.student.encode_image(part.to(self.device))).cpu() for part in pixels.split(64)]
        self.student.train()
        return {"agreement": picture_agreement(torch.cat(parts).numpy(), wanted)}

    def artifact(self) -> Produced:
        return Produced(
            graphs={"image_encoder": "student.encode_image", "text_encoder": "model.encode_text"},
            templates=self.templates,
            inherited=("text_encoder",),
            distillation=self.teacher.taught(self.terms),
        )

    # From a checkpoint

    def derivation(self, publication: Publication) -> DerivationSource:
        return image_derivation(publication, self._trained(publication.run), self.options.image)

    def encoder(self, run: SavedRun) -> TorchEncoder:
        return self._trained(run).encoder()

    def judge(self, run: SavedRun, source: Source, *, split: Literal["validation", "test"]) -> dict[str, Any]:
        """Of pictures without captions, how near the student is to its teacher."""
        if source.captioned:
            return super().judge(run, source, split=split)
        return {"agreement": picture_agreement(*self._trained(run).both_vectors(source, split))}

    def _trained(self, run: SavedRun) -> ImageStudent[ImageTower]:
        base = run.base()
        tower = ImageTower(self.options.image, embed_dim=Teacher.of(base).dim)
        tower.load_state_dict(run.state("student"))
        return ImageStudent(run=run, base=base, tower=tower.eval().requires_grad_(False))

    def _teacher_vectors(self, batch: dict[str, Tensor]) -> PairVectors:
        """Of the rows of all processes; texts [B, 0] where no term wants them."""
        if self.vectors is not None:
            its = self.vectors.of(batch["row"], batch["look"])
        else:
            image = self.teacher.image_vectors(batch["second_image"])
            text = self.teacher.text_vectors(batch["text"]) if self.paired else image[:, :0]
            its = PairVectors(image, text)
        return PairVectors(*(self.gathering.facts(each) for each in its))
