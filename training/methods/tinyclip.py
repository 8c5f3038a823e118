"""TinyCLIP: a smaller student that inherits its teacher's weights and mimics its affinities.

Wu et al., 2023, "TinyCLIP: CLIP Distillation via Affinity Mimicking and Weight Inheritance".

The student is cut out of the base: by hand (`image`, `text`), or by masks that are learned (`masks`) and applied, so
that a checkpoint always holds a small dense model. A second stage takes the first one's checkpoint as its base.

Where the authors' code (microsoft/Cream, TinyCLIP) does otherwise:
- their masks end as numbers between 0 and 1 that are multiplied into the weights; here a unit that stays counts whole,
  and as many stay as are expected to be open;
- a kept layer keeps one head and one MLP unit at least;
- they count steps (a ramp of 1000, masks fixed after 3000); here all are shares of `optim.steps`, and the target of the
  sparsity starts from 0;
- sparsity is counted in the parameters of the blocks of one tower, each tower with a target of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from training.checkpoint import LoadedModel
from training.config import ModelConfig, OpenClipConfig, SmallConfig
from training.distillation_losses import PairVectors, affinity_loss
from training.losses import info_nce, positive_pairs
from training.method import Context, ModuleUse, ParamGroup, Produced
from training.methods.base import TowerOptions, TwoTowers
from training.methods.parts.gates import UNITS, Multipliers, TowerGates, Unit
from training.methods.parts.inheritance import TowerSize, chosen, inherited_state, kept_shape
from training.methods.parts.masked_towers import MaskedDualEncoder
from training.models.building import build_model
from training.models.tower_plans import SIDES, Side, plan_of, shape_of
from training.models.towers import DualEncoder, SmallDualEncoder
from training.options import Options
from training.slim_config import SlimShape, SlimTower
from training.teachers import Teacher

_CHANNEL_STREAM, _MASK_STREAM = 2**40, 2**41


class MaskOptions(Options):
    """image, text: the sparsity that each tower is pruned to, as a share of its blocks' parameters; 0: no masks.

    over: what masks may close. ramp_share: over this share of the steps the target rises from 0, linearly. fixed_share:
    over the last share of the steps the masks stay as they are. rate_share: rate of masks and multipliers relative to
    the weights'; the paper's are 0.02 and 1e-4. start: log_alpha of every mask; at 4 it is open with 99.6 %.
    multiplier: both Lagrange multipliers at the start.
    """

    image: float = Field(default=0.0, ge=0, lt=1)
    text: float = Field(default=0.0, ge=0, lt=1)
    over: tuple[Unit, ...] = Field(default=UNITS, min_length=1)
    ramp_share: float = Field(default=0.2, gt=0, le=1)
    fixed_share: float = Field(default=0.4, ge=0, lt=1)
    rate_share: float = Field(default=200.0, gt=0)
    start: float = 4.0
    multiplier: float = Field(default=10.0, ge=0)

    @model_validator(mode="after")
    def _takes_its_time(self) -> Self:
        if self.ramp_share + self.fixed_share > 1:
            raise ValueError("ramp_share and fixed_share exceed the steps: the ramp ends before the masks are fixed")
        if not self.image and not self.text:
            raise ValueError("masks of no tower: set image or text to the sparsity that is wanted")
        return self

    def target(self, side: Side) -> float:
        return self.image if side == "image" else self.text


class TinyclipOptions(TowerOptions):
    """image, text: what the student's towers inherit, by hand. masks: what they lose, learned.

    channels: "random" takes channels, heads and MLP units at random in place of the first ones. start: "random" begins
    with new weights in the same shape. scale: in front of both softmaxes of the affinity loss, "teacher": the teacher's
    own. task_weight: of InfoNCE, beside it. teacher: None: the base; else, for a second stage, the folder of a
    checkpoint or `artifact:NAME[@VERSION]` of `store`, which sees the same crops and captions as it takes them.
    """

    image: TowerSize | None = None
    text: TowerSize | None = None
    channels: Literal["first", "random"] = "first"
    start: Literal["inherited", "random"] = "inherited"
    masks: MaskOptions | None = None
    scale: float | Literal["teacher"] = 50.0
    task_weight: float = Field(default=0.0, ge=0)
    teacher: str | None = None
    store: Path | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.masks is not None and (self.image or self.text):
            raise ValueError("a tower shrinks by hand (image, text) or by masks, not both: chain two runs")
        if self.scale != "teacher" and self.scale <= 0:
            raise ValueError(f"scale is {self.scale}, expected a positive number")
        return self


def create(options: dict[str, Any]) -> TinyclipMethod:
    return TinyclipMethod(TinyclipOptions.parse(options, method="tinyclip"))


class TinyclipMethod(TwoTowers):
    def __init__(self, options: TinyclipOptions) -> None:
        # The base takes a batch as the student does.
        self.seen = ("image", "text") if options.teacher is None else ("second_image", "second_text")
        self.fields = tuple(dict.fromkeys((*self.fields, *self.seen)))
        super().__init__(options)
        self.tinyclip = options

    def setup(self, context: Context) -> None:
        base = context.required_base("tinyclip")
        if base.model.logit_bias is not None and self.tinyclip.task_weight:
            raise ValueError("task_weight is of InfoNCE: this base was trained with the sigmoid loss")
        described = base.info.config.model
        if not isinstance(described, SmallConfig | OpenClipConfig):
            raise ValueError(f"tinyclip shrinks models of kind small and open_clip, not {described.kind}")
        if _architecture(context.model) != _architecture(described):
            raise ValueError("the recipe's model is another one than the base's: leave [model] out")
        if self.tinyclip.teacher is None:
            self.teacher = Teacher.of(base, device=context.device)
        else:
            self.teacher = Teacher.open(self.tinyclip.teacher, store=self.tinyclip.store, device=context.device)
            self.second = self.teacher.look()
        self.seed = context.seed
        student, self.described = self._student(base, described, context)
        self.model = self.student = student.to(context.device)
        student.lock(*(self._part(name) for name in self.options.frozen))
        self.multipliers = nn.ModuleDict()
        if masks := self.tinyclip.masks:
            sides: list[Side] = [side for side in SIDES if masks.target(side)]
            gates: dict[Side, TowerGates] = {side: self._gates(side, masks) for side in sides}
            self.multipliers.update({side: Multipliers(masks.multiplier) for side in sides})
            self.model = MaskedDualEncoder(student, gates).to(context.device)
            self.multipliers.to(context.device)
            self._pruned(self.model)

    def modules(self) -> dict[str, tuple[nn.Module, ModuleUse]]:
        found: dict[str, tuple[nn.Module, ModuleUse]] = {
            "model": (self.model, "export"),
            "teacher": (self.teacher.model, "frozen"),
        }
        return {**found, "multipliers": (self.multipliers, "train_only")} if len(self.multipliers) else found

    def param_groups(self) -> list[ParamGroup]:
        named = {f"model.{name}": p for name, p in self.model.named_parameters() if p.requires_grad}
        gates = {name: p for name, p in named.items() if name.startswith("model.gates.")}
        text = {name: p for name, p in named.items() if name.startswith(("model.text.", "model.dense.text."))}
        rest = {name: p for name, p in named.items() if name not in gates and name not in text}
        climbing = {f"multipliers.{name}": p for name, p in self.multipliers.named_parameters()}
        share = self.tinyclip.masks.rate_share if self.tinyclip.masks else 1.0
        groups = [
            ParamGroup(parameters=rest),
            ParamGroup(parameters=text, rate_share=self.options.text_rate_share),
            ParamGroup(parameters=gates, rate_share=share, weight_decay=0),
            ParamGroup(parameters=climbing, rate_share=share, weight_decay=0, maximize=True),
        ]
        return [group for group in groups if group.parameters]

    def prepare(self, step: int, progress: float) -> None:
        if not isinstance(self.model, MaskedDualEncoder) or not self.tinyclip.masks:
            return
        stream = torch.Generator().manual_seed(_MASK_STREAM + self.seed * 2**20 + step)
        for side in self.model.plans:
            gates = self.model.tower_gates(side)
            if progress >= 1 - self.tinyclip.masks.fixed_share:
                gates.fix()
            else:
                gates.draw(stream)

    def compare(self, vectors: dict[str, Tensor], batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        student = PairVectors(*(self.gathering.vectors(vectors[side]) for side in SIDES))
        its = self.teacher.vectors(*(batch[name] for name in self.seen))
        teacher = PairVectors(*(self.gathering.facts(each) for each in its))
        rows, given = self.gathering.rows(len(batch["image"])), self.tinyclip.scale
        with torch.autocast(student.image.device.type, enabled=False):
            scale = self.teacher.scale if given == "teacher" else given
            losses = {"affinity": affinity_loss(student, teacher, scale, scale, rows=rows)}
            if self.tinyclip.task_weight:
                positives = positive_pairs(self.gathering.facts(batch["caption_id"]))
                own, excused = self.model.logit_scale.exp(), self.excused(batch)
                task = info_nce(*student, own, positives, excused=excused, rows=rows)
                losses["info_nce"] = self.tinyclip.task_weight * task
            return {**losses, **self._sparsity_losses(progress)}

    def artifact(self) -> Produced:
        produced = self.produced()
        if isinstance(self.student, SmallDualEncoder):
            produced.graphs["dense_encoder"] = "model.encode_dense"
        terms = {"affinity": 1.0} | ({"task": self.tinyclip.task_weight} if self.tinyclip.task_weight else {})
        return replace(produced, model=self.described, distillation=self.teacher.taught(terms))

    def weights(self) -> dict[str, Tensor]:
        """The dense model: what the masks close is cut off."""
        if not isinstance(self.model, MaskedDualEncoder):
            return super().weights()
        return {f"model.{name}": tensor for name, tensor in self._pruned(self.model).items()}

    def _student(
        self, base: LoadedModel, described: SmallConfig | OpenClipConfig, context: Context
    ) -> tuple[DualEncoder, SmallConfig | OpenClipConfig]:
        """The base, or what is inherited of it, and its description."""
        state, shapes = base.model.state_dict(), dict[Side, SlimTower]()
        stream = torch.Generator().manual_seed(_CHANNEL_STREAM + context.seed)
        for side in SIDES:
            size = self.tinyclip.image if side == "image" else self.tinyclip.text
            if size is None:
                continue
            plan = plan_of(base.model, side)
            shape = shape_of(base.model, plan)
            if plan.fixed_width is not None and size.width not in (None, shape.width):
                raise ValueError(f"{side}.width stays {shape.width}: {plan.fixed_width}")
            kept = chosen(shape, size, channels=self.tinyclip.channels, stream=stream)
            state, shapes[side] = inherited_state(state, plan, shape, kept), kept_shape(shape, kept)
        described = slimmer(described, shapes)
        spec = context.tokenizer.spec
        if spec.end_id is None:
            raise ValueError("a text tower needs a tokenizer with an end id")
        student = build_model(described, vocab_size=spec.vocab_size, end_id=spec.end_id)
        if self.tinyclip.start == "inherited":
            student.load_state_dict(state)
        return student, described

    def _gates(self, side: Side, masks: MaskOptions) -> TowerGates:
        """Raises:
        ValueError: a tower that cannot shrink, or not in its channels.
        """
        plan = plan_of(self.student, side)
        if plan.fixed_width is not None and "channels" in masks.over:
            raise ValueError(f"the {side} tower's channels stay, {plan.fixed_width}: leave them out of masks.over")
        return TowerGates(shape_of(self.student, plan), start=masks.start, over=masks.over)

    def _pruned(self, model: MaskedDualEncoder) -> dict[str, Tensor]:
        """The state of what the masks leave, whose description is noted."""
        state, shapes = model.pruned()
        self.described = slimmer(self.described, shapes)
        return state

    def _sparsity_losses(self, progress: float) -> dict[str, Tensor]:
        masks, found = self.tinyclip.masks, dict[str, Tensor]()
        if not masks or not isinstance(self.model, MaskedDualEncoder) or progress >= 1 - masks.fixed_share:
            return found
        for side in self.model.plans:
            target = masks.target(side) * min(1.0, progress / masks.ramp_share)
            found[f"sparsity_{side}"] = self.multipliers[side](self.model.tower_gates(side).sparsity(), target)
        return found


def _architecture(model: ModelConfig) -> dict[str, Any]:
    return model.model_dump(exclude={"pretrained", "activation", "store"})


def slimmer(described: SmallConfig | OpenClipConfig, towers: Mapping[Side, SlimTower]) -> SmallConfig | OpenClipConfig:
    """The description of a model with other towers; an OpenClipConfig no longer names where weights come from."""
    if not towers:
        return described
    slim = (described.slim or SlimShape()).model_copy(update={str(side): tower for side, tower in towers.items()})
    changes: dict[str, Any] = {"slim": slim}
    if isinstance(described, OpenClipConfig):
        changes |= {"pretrained": None, "activation": None, "store": None}
    return described.model_copy(update=changes)
