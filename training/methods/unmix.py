"""Unmix: which labels are in the picture and where, from a frozen base's positions (Unmix-CLIP / DCLIP, 2025).

A linear map of every position, a small network on positive and negative prompts of every label, the asymmetric loss on
scores that are aggregated over positions, and MFI, which pushes the labels' texts apart. The base's towers keep their
bytes; what is trained ships as dense_adapter, image_adapter, text_adapter and a presence.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from evaluation.probes.ranking import average_precision
from model_store.manifest import Presence
from training.checkpoint import LoadedModel
from training.encoder import TorchEncoder
from training.exporting.derive import DerivationSource
from training.exporting.derived_graphs import AdapterSource
from training.losses import asymmetric_loss, mutual_feature_information, unit
from training.method import Context, ModuleUse, Needs, ParamGroup, Produced, StepMethod
from training.methods.parts.presence_calibration import Calibrated, calibrate
from training.methods.parts.unmix import (
    HEADS,
    Norm,
    UnmixedModel,
    UnmixHeads,
    aggregated,
    directions,
    load_unmix,
    off_diagonal,
)
from training.options import Options
from training.publication import Publication
from training.saved import SavedRun

_CHUNK = 64
SOURCES: dict[str, Any] = {
    # A third party's code of Unmix-CLIP and the ASL library's defaults, as far as they are known; its other settings
    # (SGD, rate 0.002, momentum 0.9, batch 16, 50 epochs, 448 px) belong to the recipe.
    "templates": ("There is a {}.", "There is no {}."),
    "size": 256,
    "hidden": 384,
    "norm": "batch",
    "residual": False,
    "similarity": "cosine",
    "scale": 20.0,
    "slope": 5.0,
    "learn_slope": False,
    "gamma_positive": 1.0,
    "gamma_negative": 4.0,
    "clip": 0.05,
    "mfi": 7e-5 * 0.2,
    "mfi_over": "sum",
}


class UnmixOptions(Options):
    """label: the label column whose values are the classes. dense_px: side of the pictures; none: as the exported
    dense role has it, so that heads are fitted on the grid they are served on.

    templates: the positive and, where there is one, the negative prompt. With a negative prompt a label is compared
    with its own denial, which the base's text tower must understand; without, with the other labels.
    size: of the common space; none: the base's. residual: what is learnt of texts is added to the base's rows, so that
    the heads start as the training-free scores, and labels that are never trained stay where they were.
    norm: "layer" looks at a row alone; "batch" keeps the statistics of the trained labels for all others.
    slope: factor of aggregated scores in the loss; learn_slope, and the offset always. gammas and clip: of the loss.
    mfi: weight of MFI; over the "mean" of all pairs of rows, or their "sum". For unit rows the sources' two weights
    multiply, as the other term of their MFI is constant. pooling_kept: the ablation that scores pooled vectors.
    preset: "sources" sets everything that is not given here to the sources' values.
    """

    preset: Literal["sources"] | None = None
    label: str = "pair"
    dense_px: int | None = Field(default=None, ge=16)
    templates: tuple[str, ...] = Field(default=("there is a {}", "there is no {}"), min_length=1, max_length=2)
    size: int | None = Field(default=None, ge=2)
    hidden: int = Field(default=256, ge=2)
    norm: Norm = "layer"
    residual: bool = True
    similarity: Literal["cosine", "projection"] = "projection"
    scale: float = Field(default=20.0, gt=0)
    slope: float = Field(default=0.5, gt=0)
    learn_slope: bool = True
    gamma_positive: float = Field(default=1.0, ge=0)
    gamma_negative: float = Field(default=2.0, ge=0)
    clip: float = Field(default=0.05, ge=0, lt=1)
    mfi: float = Field(default=0.0, ge=0)
    mfi_over: Literal["mean", "sum"] = "mean"
    pooling_kept: bool = False

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, values: Any) -> Any:
        return {**SOURCES, **values} if isinstance(values, dict) and values.get("preset") == "sources" else values

    def rule(self) -> Presence:
        """The presence before its calibration."""
        return Presence(
            positive_templates=self.templates[:1],
            negative_templates=self.templates[1:],
            similarity=self.similarity,
            scale=self.scale,
            aggregation="pooled" if self.pooling_kept else "softmax_sum",
        )


def create(options: dict[str, Any]) -> UnmixMethod:
    return UnmixMethod(UnmixOptions.parse(options, method="unmix"))


class UnmixMethod(StepMethod):
    heads: UnmixHeads
    texts: Tensor
    """Unit rows of the base's prompts: [2, C, D], the positive ones first, or [1, C, D]."""

    def __init__(self, options: UnmixOptions) -> None:
        self.options, self.rule = options, options.rule()
        self.needs = Needs(
            fields=("dense_embeds", "image_embeds", "present"),
            level="dense",
            labels=(options.label,),
            captions=0,
            dense_px=options.dense_px,
        )

    def setup(self, context: Context) -> None:
        base, features, options = context.required_base("unmix"), context.required_features(), self.options
        if not features.present.any(axis=0).all():
            unseen = features.names[~features.present.any(axis=0)]
            raise ValueError(f"unmix: no training picture shows {', '.join(unseen[:5])}: leave such labels out")
        dim = features.image.shape[1]
        if options.residual and options.size not in (None, dim):
            raise ValueError(f"unmix: residual = true keeps the base's size {dim}, size is {options.size}")
        self.heads = UnmixHeads(
            dim, options.size or dim, options.hidden, norm=options.norm, residual=options.residual
        ).to(context.device)
        with torch.no_grad():
            self.heads.slope_log.fill_(float(np.log(options.slope)))
            # Few labels are in a picture: start at their share, as focal losses do.
            share = float(features.present.mean())
            self.heads.offset.fill_(float(np.log(share / (1 - share))) if 0 < share < 1 else 0.0)
        self.heads.slope_log.requires_grad_(options.learn_slope)
        self.texts = _prompts(base, [str(name) for name in features.names], options.templates, context.device)
        self._model = UnmixedModel(base, self.heads).to(context.device)
        self._validation = features.validation_dense, features.validation, features.validation_present
        self._calibrated: Calibrated | None = None

    def modules(self) -> dict[str, tuple[nn.Module, ModuleUse]]:
        return {"heads": (self.heads, "export"), "model": (self._model, "frozen")}

    def param_groups(self) -> list[ParamGroup]:
        # Decay would pull the image map to zero; what means "nothing learnt" is the identity.
        named = {f"heads.{name}": p for name, p in self.heads.named_parameters() if p.requires_grad}
        return [ParamGroup(parameters=named, weight_decay=0.0 if self.options.residual else None)]

    def step(self, batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        options = self.options
        with torch.autocast(batch["dense_embeds"].device.type, enabled=False):
            rows = self._rows()
            scores = self._scores(batch["dense_embeds"], batch["image_embeds"], rows)
            loss = asymmetric_loss(
                self.heads.slope_log.exp() * scores + self.heads.offset,
                batch["present"],
                gamma_positive=options.gamma_positive,
                gamma_negative=options.gamma_negative,
                clip=options.clip,
            )
            together = rows.flatten(0, 1)
            pairs = len(together) * (len(together) - 1) if options.mfi_over == "sum" else 1
            return {"asymmetric": loss, "mfi": options.mfi * pairs * mutual_feature_information(together)}

    def validated(self) -> dict[str, Any]:
        """mAP over the labels, the mean |cosine| of different labels' texts, and how the calibrated presence does."""
        scores, rows = self._validation_scores()
        present = self._validation[2]
        found = [average_precision(scores[:, at], present[:, at]) for at in range(present.shape[1])]
        calibrated = calibrate(scores, present)
        return {
            "presence": {
                "mAP": float(np.nanmean(found)),
                "text cosine": off_diagonal(rows[0]),
                "F1": calibrated.f1,
                "Brier": calibrated.brier,
            }
        }

    def weights(self) -> dict[str, Tensor]:
        self._calibrated = calibrate(self._validation_scores()[0], self._validation[2])
        return {f"{HEADS}{name}": tensor for name, tensor in self.heads.state_dict().items()}

    def artifact(self) -> Produced:
        found = self._calibrated
        calibration = {} if found is None else found.settings()
        return Produced(
            graphs={
                "image_encoder": "model.encode_image",
                "text_encoder": "model.encode_text",
                "image_adapter": "heads.image",
                "dense_adapter": "heads.image",
                "text_adapter": "heads.text",
            },
            templates=self.options.templates[:1],
            inherited=("image_encoder", "text_encoder", "dense_encoder"),
            presence=self.rule.model_copy(update=calibration),
        )

    def derivation(self, publication: Publication) -> DerivationSource:
        """Two adapters and a presence behind the artifact that was made of the very weights they were fitted on.

        Positions and pooled vectors go through the same map and are not normalised before it, so the mean of a
        picture's positions stays its vector. Both towers changed and nothing is claimed about the base's space: it is
        one of its own.
        """
        unmix, base = load_unmix(publication.run.folder), publication.base(roles=("dense_encoder",))
        structure = f"adapters/1;{unmix.info.config.method}"
        pictures = AdapterSource(module=unmix.heads.image, normalized_input=False)
        return DerivationSource(
            base=base,
            structure=structure,
            provenance=publication.provenance(
                structure, f"adapters of {unmix.info.config.method} behind {base.reference}"
            ),
            image_adapter=pictures,
            dense_adapter=pictures,
            text_adapter=AdapterSource(module=unmix.heads.text),
            templates=unmix.info.templates,
            presence=unmix.presence,
            metrics=publication.metrics(),
        )

    def encoder(self, run: SavedRun) -> TorchEncoder:
        base = run.base()
        model = load_unmix(run.folder).behind(base)
        return run.encoder(model.encode_image, model.encode_text, base=base)

    def _rows(self) -> Tensor:
        """Unit rows of the projected prompts, [1 or 2, C, D']."""
        return unit(self.heads.text(self.texts.flatten(0, 1))).unflatten(0, self.texts.shape[:2])

    def _scores(self, positions: Tensor, pooled: Tensor, rows: Tensor) -> Tensor:
        """Aggregated scores [B, C] of the base's positions [B, h, w, D] and pooled vectors [B, D]."""
        image = self.heads.image
        towards = directions(rows[0], rows[1] if len(rows) > 1 else None)
        return aggregated(image(positions.flatten(1, 2)), image(pooled), towards, self.rule)

    def _validation_scores(self) -> tuple[NDArray[np.float64], Tensor]:
        """Scores [V, C] of the validation pictures, and the rows, with the weights as they are."""
        training = self.heads.training
        self.heads.eval()
        dense, pooled, _ = self._validation
        device = self.texts.device
        found: list[NDArray[np.float64]] = []
        try:
            with torch.inference_mode():
                rows = self._rows()
                for at in range(0, len(dense), _CHUNK):
                    cells, whole = (torch.from_numpy(each[at : at + _CHUNK]).to(device) for each in (dense, pooled))
                    found.append(self._scores(cells.float(), whole, rows).double().cpu().numpy())
        finally:
            self.heads.train(training)
        return np.concatenate(found), rows


def _prompts(base: LoadedModel, names: list[str], templates: tuple[str, ...], device: str) -> Tensor:
    texts = [base.tokenizer.encode(template.format(name)) for template in templates for name in names]
    with torch.inference_mode():
        rows = unit(base.model.to(device).encode_text(torch.from_numpy(base.tokenizer.pad(texts)).to(device)))
    return rows.clone().unflatten(0, (len(templates), len(names)))
