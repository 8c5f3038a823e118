"""An image tower that is trained on attacked pictures, beside the text tower of its base: FARE, TeCoA."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor, nn

from training.exporting.derive import DerivationSource
from training.exporting.export import source_of_checkpoint
from training.method import Context, ModuleUse, ParamGroup, Produced, StepMethod
from training.methods.parts.image_student import ImageStudent, image_proofs_that_hold
from training.methods.parts.pixel_attack import PixelAttack, attacked
from training.methods.parts.tower_parameters import lock_the_other, tower_parameters
from training.models.aligned import AlignedDualEncoder
from training.models.towers import DualEncoder, SmallDualEncoder
from training.publication import Publication


class AdversarialOptions(PixelAttack):
    """clean_weight: how much of the loss is that of the clean pictures; the rest is that of the attacked ones."""

    clean_weight: float = Field(default=0.0, ge=0, le=1)


class AdversarialTower(StepMethod):
    """All weights of the image tower move, the text tower stays; subclasses say which loss is attacked and lowered.

    Batch norms keep the statistics of their base, and train their weights. Those of a batch would couple its pictures,
    so that an attack could use its batch mates; and running ones would become a mixture of clean and attacked pictures,
    which differ (Xie et al., 2020, "Adversarial Examples Improve Image Recognition", AdvProp). What is attacked here is
    the function that is served.

    Both passes are in fp32 at any `run.precision`: bf16 has eight bits, and rounds a step of one level away.
    """

    name: str
    by_captions = False
    """Whether classes were learnt, so that pictures alone do not prove that the space is kept."""

    def __init__(self, options: AdversarialOptions) -> None:
        self.adversarial = options

    def setup(self, context: Context) -> None:
        base = context.required_base(self.name)
        try:
            self._moving = tuple(tower_parameters(base.model, "image"))
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        self.base, self.templates = base.model.to(context.device), base.info.templates
        self.model: DualEncoder = copy.deepcopy(base.model).to(context.device)
        lock_the_other(self.model, "image")
        for name in self._moving:
            self.model.get_parameter(name).requires_grad_(True)
        self.model.keep_statistics()

    def modules(self) -> dict[str, tuple[nn.Module, ModuleUse]]:
        return {"model": (self.model, "export"), "base": (self.base, "frozen")}

    def param_groups(self) -> list[ParamGroup]:
        return [ParamGroup(parameters={f"model.{name}": self.model.get_parameter(name) for name in self._moving})]

    def losses(self, pixels: Tensor, wanted: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Of attacked pictures and, where they count, of clean ones, both weighted.

        wanted: un-normalised vectors [B, D] of the pictures uint8 [B, H, W, 3] -> their losses [B].
        """
        weight, model = self.adversarial.clean_weight, self.model
        with torch.autocast(pixels.device.type, enabled=False):
            training = model.training
            model.eval()  # without dropout, whose draws an attack would follow
            changed = attacked(pixels, lambda x: wanted(model.encode_image(x).float()), self.adversarial)
            model.train(training)
            found = {"attacked": (1 - weight) * wanted(model.encode_image(changed).float()).mean()}
            if weight:
                found["clean"] = weight * wanted(model.encode_image(pixels).float()).mean()
        return found

    def artifact(self) -> Produced:
        graphs = {"image_encoder": "model.encode_image", "text_encoder": "model.encode_text"}
        if isinstance(self.model, SmallDualEncoder | AlignedDualEncoder):
            graphs["dense_encoder"] = "model.encode_dense"
        return Produced(graphs=graphs, templates=self.templates, inherited=("text_encoder",))

    def derivation(self, publication: Publication) -> DerivationSource:
        """The image tower, in the base's space where validation proves it, else in one of its own.

        Raises:
            ValueError: the base or the data are not where the recipe says.
            ExportRefused: the store has no artifact of the base.
        """
        run, statement = publication.run, publication.statement
        loaded = run.model()
        whole = source_of_checkpoint(
            loaded,
            licence=statement.licence,
            training_data=statement.training_data,
            limits=statement.limits,
            report=publication.report,
        )
        student = ImageStudent(run=run, base=run.base(), tower=loaded.model)
        proofs, measured = image_proofs_that_hold(publication, student, by_captions=self.by_captions)
        return DerivationSource(
            base=publication.base(),
            structure=whole.structure,
            provenance=whole.provenance,
            image=whole.image,
            image_weights=whole.image_weights,
            dense=whole.dense,
            proofs=proofs,
            templates=whole.templates,
            metrics={**whole.metrics, **measured},
            storage=whole.storage,
        )
