"""LABCLIP: one matrix on a frozen model's text vectors, which binds attributes where the image vectors hold them.

Koishigarina et al., 2025, "CLIP Behaves like a Bag-of-Words Model Cross-modally but not Uni-modally". The matrix ends
in the text projection, the image tower is untouched: stored image vectors stay valid.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from training.bases import StoredTowers
from training.encoder import TorchEncoder
from training.exporting.derive import DerivationSource
from training.exporting.derived_graphs import AdapterSource
from training.losses import info_nce, negclip_loss, positive_pairs, unit, usable_negatives
from training.method import Context, ModuleUse, Needs, ParamGroup, Produced, StepMethod
from training.methods.base import MAX_LOG_SCALE
from training.methods.parts.text_tower import space_proof, text_derivation
from training.models.text_fold import Side, check_fold, folded, text_ends
from training.models.towers import DualEncoder
from training.options import Options
from training.publication import Publication
from training.saved import SavedRun

_LEAST_VARIANCE = 1e-8


class LabclipOptions(Options):
    """captions: how many of each picture are cached (a table has one). hard_negatives: false leaves the false captions
    out (the paper's variant SB). own_negatives_only: a false caption counts against its own picture only.

    start_scale: factor of the cosines at the first step; none: the base's own. The official code starts at 1, where
    the softmax over a batch is all but flat and the loss only asks for a larger mean difference; the base's factor is
    the one its vectors were trained under and the one that is served.

    whiten: the matrix is learnt in coordinates in which the cached texts have equal variance (not in the paper). What
    tells the captions of a pair apart may be a ten-thousandth of a text vector's variance: plain steps never get there.
    """

    captions: int = Field(default=4, ge=1)
    hard_negatives: bool = True
    own_negatives_only: bool = False
    start_scale: float | None = Field(default=None, ge=1, le=100)
    whiten: bool = True
    templates: tuple[str, ...] | None = None


def create(options: dict[str, Any]) -> LabclipMethod:
    return LabclipMethod(LabclipOptions.parse(options, method="labclip"))


class TextMap(nn.Module):
    """The matrix I + change @ basis [D, D], the identity at first, and the logarithm of the cosines' factor."""

    basis: Tensor

    def __init__(self, dim: int, *, log_scale: float, basis: Tensor | None = None) -> None:
        super().__init__()
        self.change = nn.Parameter(torch.zeros(dim, dim))
        self.register_buffer("basis", torch.eye(dim) if basis is None else basis)
        self.log_scale = nn.Parameter(torch.tensor(log_scale))

    def matrix(self) -> Tensor:
        """[D, D], to be multiplied with column vectors."""
        return torch.eye(len(self.basis), device=self.basis.device) + self.change @ self.basis

    def forward(self, text: Tensor) -> Tensor:
        """[B, D] -> [B, D]."""
        return text + text @ self.basis.T @ self.change.T


def whitening(vectors: NDArray[np.float32]) -> Tensor:
    """Symmetric [D, D] that gives the rows of `vectors` [n, D] equal variance in every direction (ZCA).

    Directions with less than a hundred-millionth of the largest variance are rounding and stay small. The largest
    direction keeps its length, so that a step there is as large as without whitening.
    """
    covariance = np.cov(vectors.astype(np.float64), rowvar=False)
    variances, directions = np.linalg.eigh(covariance)
    largest = variances.max()
    if not largest > 0:
        return torch.eye(vectors.shape[1])
    lengths = np.sqrt(largest / (np.maximum(variances, 0) + largest * _LEAST_VARIANCE))
    return torch.from_numpy((directions * lengths) @ directions.T).float()


class FoldedModel(nn.Module):
    """The doors of a model whose text projection holds the map as it is at that moment."""

    def __init__(self, model: DualEncoder, fold: Callable[[], None]) -> None:
        super().__init__()
        self.model, self._fold = model, fold

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)

    def encode_text(self, ids: Tensor) -> Tensor:
        self._fold()
        return self.model.encode_text(ids)


class MappedTexts(nn.Module):
    """A stored model with the map behind its text vectors; the map is no submodule, so freezing leaves it alone."""

    def __init__(self, model: DualEncoder, text_map: TextMap) -> None:
        super().__init__()
        self.model, self._map = model, (text_map,)

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)

    def encode_text(self, ids: Tensor) -> Tensor:
        return self._map[0](self.model.encode_text(ids).float())


class LabclipMethod(StepMethod):
    """The map ends in the text projection of a copy of the base. A stored model has no weights to write it into, so it
    ships as a text_adapter behind the text graph: the same function, one product later.
    """

    map: TextMap
    model: DualEncoder
    """The base: a copy of it that `fold` writes the map into, or the stored model."""

    def __init__(self, options: LabclipOptions) -> None:
        self.options = options
        negatives = ("negative_embeds", "negative_id", "has_negative") if options.hard_negatives else ()
        self.needs = Needs(
            fields=("image_embeds", "text_embeds", "caption_id", *negatives),
            level="features",
            captions=options.captions,
        )

    def setup(self, context: Context) -> None:
        base, features = context.required_base("labclip"), context.required_features()
        if self.options.hard_negatives and not features.has_negative.any():
            raise ValueError(
                "labclip: no training caption has a hard negative; give some, or set hard_negatives = false"
            )
        self._is_stored = isinstance(base.model, StoredTowers)
        if self._is_stored:
            self.model = base.model
        else:
            self._copy(base.model, context)
        self._templates = self.options.templates or base.info.templates
        start = self.options.start_scale
        log_scale = float(self.model.logit_scale.reshape(-1)[0]) if start is None else math.log(start)
        basis = whitening(features.text) if self.options.whiten else None
        self.map = TextMap(features.text.shape[1], log_scale=log_scale, basis=basis).to(context.device)

    def _copy(self, model: DualEncoder, context: Context) -> None:
        self.model = copy.deepcopy(model).to(context.device).requires_grad_(False).eval()
        self._ends: dict[str, Side] = text_ends(self.model)
        ids = torch.from_numpy(context.tokenizer.pad([context.tokenizer.encode("a red circle and a blue square")]))
        check_fold(self.model, self._ends, ids.to(context.device))
        self._base = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def modules(self) -> dict[str, tuple[nn.Module, ModuleUse]]:
        if self._is_stored:
            return {"map": (self.map, "export"), "model": (MappedTexts(self.model, self.map), "frozen")}
        return {"map": (self.map, "train_only"), "model": (FoldedModel(self.model, self.fold), "frozen")}

    def param_groups(self) -> list[ParamGroup]:
        # Decay would pull the map to zero; what means "nothing learnt" is the identity.
        return [ParamGroup(parameters={f"map.{name}": p for name, p in self.map.named_parameters()}, weight_decay=0.0)]

    def step(self, batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        with torch.autocast(batch["image_embeds"].device.type, enabled=False):
            image, text = unit(batch["image_embeds"]), unit(self.map(batch["text_embeds"]))
            scale, ids = self.map.log_scale.exp(), batch["caption_id"]
            positives = positive_pairs(ids)
            if not self.options.hard_negatives:
                return {"info_nce": info_nce(image, text, scale, positives)}
            negative = unit(self.map(batch["negative_embeds"]))
            usable = usable_negatives(
                ids, batch["negative_id"], batch["has_negative"], own_only=self.options.own_negatives_only
            )
            return {"negclip": negclip_loss(image, text, negative, scale, positives=positives, usable=usable)}

    def constrain(self) -> None:
        self.map.log_scale.clamp_(0, MAX_LOG_SCALE)

    def fold(self) -> None:
        """Bring `model` up to date with the map.

        The learnt factor becomes the model's, except where a bias stands beside it (SigLIP): those two were fitted
        together, and this loss knows no bias.
        """
        state = folded(self._base, self._ends, self.map.matrix().detach())
        self.model.load_state_dict(state)
        if self.model.logit_bias is None:
            with torch.no_grad():
                self.model.logit_scale.fill_(float(self.map.log_scale))

    def weights(self) -> dict[str, Tensor]:
        if self._is_stored:
            return super().weights()
        self.fold()
        return {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}

    def artifact(self) -> Produced:
        graphs = {"image_encoder": "model.encode_image", "text_encoder": "model.encode_text"}
        if self._is_stored:
            graphs["text_adapter"] = "map.forward"
        return Produced(
            graphs=graphs,
            templates=self._templates,
            inherited=("image_encoder", "text_encoder") if self._is_stored else ("image_encoder",),
        )

    def derivation(self, publication: Publication) -> DerivationSource:
        run = publication.run
        if "text_adapter" not in run.info.graphs:
            return text_derivation(publication)
        base, fitted = publication.base(), _map_of(run)
        structure = f"text map/1;{run.info.config.method}"
        return DerivationSource(
            base=base,
            structure=structure,
            provenance=publication.provenance(structure, f"a map of text vectors behind {base.reference}"),
            text_adapter=AdapterSource(module=fitted),
            proofs=(space_proof(run, self.encoder(run), data_folder=publication.data_folder),),
            templates=run.info.templates,
            logit_scale=None if base.manifest.logit_bias else math.exp(float(fitted.log_scale)),
            metrics=publication.metrics(),
        )

    def encoder(self, run: SavedRun) -> TorchEncoder:
        if "text_adapter" not in run.info.graphs:
            return run.own_encoder()
        base = run.base()
        mapped = MappedTexts(base.model, _map_of(run)).eval()
        return run.encoder(mapped.encode_image, mapped.encode_text, base=base)


def _map_of(run: SavedRun) -> TextMap:
    """The map of a checkpoint, in eval mode and without gradients."""
    state = run.state("map")
    found = TextMap(len(state["change"]), log_scale=0.0)
    found.load_state_dict(state)
    return found.eval().requires_grad_(False)
