"""One matrix behind each tower of a frozen base, so that pictures find pictures and texts find texts.

Mistretta et al., 2025, "Cross the Gap: Exposing the Intra-modal Misalignment in CLIP via Modality Inversion"; the fits
are those of model_store.intra_modal. docs/intra-modal.md says which models have anything to cure: measure first.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import nn

from evaluation.metrics import normalize
from evaluation.same_modality import numbered, search_same
from model_store.intra_modal import (
    VectorMap,
    VectorMaps,
    centred,
    centred_directions,
    isoclip,
    principal,
    random_directions,
)
from training.data.protocol import Source
from training.data.rows import Split
from training.encoder import TorchEncoder, encoder_of
from training.exporting.derive import DerivationSource
from training.exporting.derived_graphs import AdapterSource
from training.features import Features, picture_vectors
from training.method import Context, FitMethod, ModuleUse, Needs, Produced
from training.methods.parts.behind import BehindBase
from training.methods.parts.projections import projections_of
from training.options import Options
from training.publication import Publication
from training.saved import SavedRun

Fit = Literal["text_pca", "isoclip", "mean", "mean_picture_pca", "picture_pca", "random"]
TOWERS = ("image", "text")


class IntraModalOptions(Options):
    """fit: `mean` takes each modality's own mean away and keeps every direction, the others keep some directions.
    `mean` and `mean_picture_pca` are for collections of texts and pictures; `picture_pca` and `random` are controls.

    keep: how many directions, by default half of those that there are; of several validation chooses. top: of
    `isoclip`, how many are left out in front of them. label: columns of the data that two pictures of one kind have in
    common; validation then searches pictures by pictures, which choosing needs. vocabulary: a text file, a name a line,
    whose prompts in `templates` (by default the base's) `text_pca` and `mean` are fitted on instead of the captions of
    training, of which `captions` are drawn for each picture.
    """

    fit: Fit = "text_pca"
    keep: tuple[int, ...] | None = None
    top: tuple[int, ...] = (0,)
    label: tuple[str, ...] = ()
    vocabulary: Path | None = None
    templates: tuple[str, ...] | None = None
    captions: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0, description="of random")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.fit == "mean" and self.keep is not None:
            raise ValueError("mean keeps every direction: leave keep out")
        if self.fit != "isoclip" and self.top != (0,):
            raise ValueError("top belongs to isoclip")
        if not self.top or self.keep == ():
            raise ValueError("keep and top: name one number at least")
        if len(self.keep or (0,)) * len(self.top) > 1 and not self.label:
            raise ValueError("several values of keep or top are chosen from on validation, by pictures of one label")
        return self


def create(options: dict[str, Any]) -> IntraModalMethod:
    return IntraModalMethod(IntraModalOptions.parse(options, method="intra_modal"))


class IntraModalMethod(FitMethod):
    def __init__(self, options: IntraModalOptions) -> None:
        self.options = options
        captions = 0 if options.vocabulary else options.captions
        self.needs = Needs(level="features", labels=options.label, captions=captions)

    # Fitting

    def setup(self, context: Context) -> None:
        self._base, self._source = context.required_base("intra_modal"), context.source
        self.templates = self._base.info.templates
        vocabulary = self.options.vocabulary
        self._prompts = None if vocabulary is None else self._encoded(vocabulary)
        dim = context.required_features().image.shape[1]
        self.maps = {tower: nn.Linear(dim, dim) for tower in TOWERS}

    def fit(self, features: Features) -> None:
        images = normalize(features.image)
        texts = normalize(features.text) if self._prompts is None else self._prompts
        dim = images.shape[1]
        fitted = {knobs: self._fitted(images, texts, *knobs) for knobs in self._grid(dim)}
        chosen, tried = next(iter(fitted)), dict[str, float]()
        if self.options.label:
            validation, labels = normalize(features.validation), kinds(self._source, self.options.label, "validation")
            found = {knobs: picture_search(maps.image(validation), labels)["mAP"] for knobs, maps in fitted.items()}
            chosen = max(found, key=lambda knobs: (found[knobs], knobs[0]))  # of equals, what keeps most
            tried = {f"keep {keep}, top {top}": value for (keep, top), value in found.items()}
            self._report: dict[str, Any] = {
                "pictures": picture_search(fitted[chosen].image(validation), labels),
                "base pictures": picture_search(validation, labels),
                "mAP by knobs": tried,
            }
        else:
            self._report = {}
        self._report |= {"keep": chosen[0], "top": chosen[1]}
        self.maps = {"image": linear(fitted[chosen].image), "text": linear(fitted[chosen].text)}

    def report(self) -> dict[str, Any]:
        return self._report

    def modules(self) -> dict[str, tuple[nn.Module, ModuleUse]]:
        return {tower: (module, "export") for tower, module in self.maps.items()}

    def artifact(self) -> Produced:
        return Produced(
            graphs={f"{tower}_adapter": f"{tower}.forward" for tower in TOWERS},
            templates=self.templates,
            inherited=("image_encoder", "text_encoder"),
        )

    def _encoded(self, vocabulary: Path) -> NDArray[np.float32]:
        """Unit vectors of the prompts of each line."""
        names = [line.strip() for line in vocabulary.read_text(encoding="utf-8").splitlines() if line.strip()]
        templates = self.options.templates or self.templates
        texts = [template.replace("{}", name) for name in names for template in templates]
        return encoder_of(self._base, name="base").encode_texts(texts)

    def _grid(self, dim: int) -> list[tuple[int, int]]:
        """(keep, top) of each candidate."""
        keep = (dim,) if self.options.fit == "mean" else self.options.keep or (max(1, dim // 2),)
        return list(product(keep, self.options.top))

    def _fitted(self, images: NDArray[np.float32], texts: NDArray[np.float32], keep: int, top: int) -> VectorMaps:
        if self.options.fit == "isoclip":
            ends = projections_of(self._base.model)
            return isoclip(ends.image, ends.text, top=top, keep=keep)
        if self.options.fit == "random":
            return random_directions(images.shape[1], keep=keep, seed=self.options.seed)
        if self.options.fit == "mean":
            return centred(images, texts)
        if self.options.fit == "mean_picture_pca":
            return centred_directions(images, texts, keep=keep)
        return principal(texts if self.options.fit == "text_pca" else images, keep=keep)

    # From a checkpoint

    def derivation(self, publication: Publication) -> DerivationSource:
        """Both maps, in a space of their own: vectors of the base and of the derivation cannot be compared."""
        base, trained = publication.base(), _maps_of(publication.run)
        structure = f"intra_modal/1;{self.options.fit}"
        what = f"maps for search inside one modality ({self.options.fit}) behind {base.reference}"
        return DerivationSource(
            base=base,
            structure=structure,
            provenance=publication.provenance(structure, what),
            image_adapter=AdapterSource(module=trained["image"]),
            text_adapter=AdapterSource(module=trained["text"]),
            metrics=publication.metrics(),
        )

    def encoder(self, run: SavedRun) -> TorchEncoder:
        base, trained = run.base(), _maps_of(run)
        model = BehindBase(base.model, image=trained["image"], text=trained["text"])
        return run.encoder(model.encode_image, model.encode_text, base=base)

    def judge(self, run: SavedRun, source: Source, *, split: Literal["validation", "test"]) -> dict[str, Any]:
        """What the data judge an encoder by, and with a label pictures searched by pictures, beside the base's."""
        found = super().judge(run, source, split=split)
        if not self.options.label:
            return found
        labels = kinds(source, self.options.label, split)
        before = picture_vectors(run.base(), source.pictures(split), device="cpu")
        with torch.inference_mode():
            after = _maps_of(run)["image"](torch.from_numpy(normalize(before))).numpy()
        return {
            **found,
            "pictures": picture_search(normalize(after), labels),
            "base pictures": picture_search(normalize(before), labels),
        }


def kinds(source: Source, label: tuple[str, ...], split: Split) -> NDArray[np.int64]:
    """A number for each picture, equal where all label columns are; -1 where one of them says nothing."""
    columns = [source.labels(name, split) for name in label]
    return numbered([None if None in row else "\n".join(map(str, row)) for row in zip(*columns, strict=True)])


def picture_search(vectors: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """mAP and recall at 1, 5 and 10 of each unit vector [N, K] among the others."""
    found = search_same(vectors, vectors, labels)
    return {name: each.value for name, each in found.estimates().items()} | {"chance mAP": found.chance[0]}


def linear(fitted: VectorMap) -> nn.Linear:
    """The map as a module in eval mode, without the normalisation, which whoever compares vectors does."""
    outputs, inputs = fitted.matrix.shape
    module = nn.Linear(inputs, outputs)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(fitted.matrix))
        module.bias.copy_(torch.from_numpy(-fitted.matrix @ fitted.mean))
    return module.eval().requires_grad_(False)


def _maps_of(run: SavedRun) -> Mapping[str, nn.Linear]:
    found: dict[str, nn.Linear] = {}
    for tower in TOWERS:
        state = run.state(tower)
        outputs, inputs = state["weight"].shape
        found[tower] = nn.Linear(inputs, outputs).eval().requires_grad_(False)
        found[tower].load_state_dict(state)
    return found
