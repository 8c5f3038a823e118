"""The base of a run: a checkpoint, or a published artifact, whose ONNX graphs stand behind the same interface."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model_store.errors import ClipworksError
from model_store.graph import SessionSettings
from model_store.identity import spec_digest
from model_store.manifest import ImageSpec, Role, TextSpec
from model_store.store import Artifact, Store
from model_store.towers import DenseTower, Tower, open_dense_tower, open_tower
from training.checkpoint import Checkpoint, LoadedModel, load_model
from training.config import ARTIFACT, StoredModel, TrainConfig
from training.models.dense import DenseSource
from training.models.towers import DualEncoder


class StoredTowers(DualEncoder):
    """The fp32 graphs of an artifact, adapters included; nothing of it can be trained."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__()
        self.artifact = artifact
        scale = artifact.manifest.logit_scale or 1.0  # not known of some: then scores are cosines
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=False)
        self._towers: dict[Role, Tower] = {
            role: open_tower(artifact, role, "fp32", SessionSettings()) for role in ("image_encoder", "text_encoder")
        }

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self._run("image_encoder", pixels)

    def encode_text(self, ids: Tensor) -> Tensor:
        return self._run("text_encoder", ids)

    def _run(self, role: Role, inputs: Tensor) -> Tensor:
        tower = self._towers[role]
        run: Callable[..., object] = tower if tower.adapter else tower.encoder
        size = len(inputs) if tower.batch_invariant else 1
        parts = [torch.from_numpy(run(part.numpy())) for part in inputs.cpu().split(size)]
        return torch.cat(parts).to(inputs.device)

    def dense_source(self) -> DenseSource | str:
        """The artifact's own dense role, with the adapters behind it, or why it has none."""
        spec = self.artifact.dense_spec
        if spec is None:
            return f"{self.artifact.reference} has no dense_encoder"
        tower = open_dense_tower(self.artifact, "fp32", SessionSettings())
        return DenseSource(module=StoredDense(tower), spec=spec)


class StoredDense(nn.Module):
    """The fp32 dense graph of an artifact: uint8 [B, H, W, 3] -> positions [B, h, w, D], pooled vectors [B, D]."""

    def __init__(self, tower: DenseTower) -> None:
        super().__init__()
        self._tower = tower

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        size = len(pixels) if self._tower.batch_invariant else 1
        found = [self._tower(part.numpy()) for part in pixels.cpu().split(size)]
        positions = torch.from_numpy(np.concatenate([each.positions for each in found]))
        pooled = torch.from_numpy(np.concatenate([each.pooled for each in found]))
        return positions.to(pixels.device), pooled.to(pixels.device)


def open_base(config: TrainConfig) -> LoadedModel | None:
    """The checkpoint or the stored model that a recipe starts from, if it names one.

    Raises:
        ValueError: it cannot be opened.
    """
    if config.base is None:
        return None
    if isinstance(config.model, StoredModel):
        return load_stored(config, open_stored(config.model))
    return load_model(Path(config.base))


def open_stored(model: StoredModel) -> Artifact:
    """The artifact that a recipe names.

    Raises:
        ValueError: it is not there, or has not both towers.
    """
    try:
        artifact = Store(model.store).open(model.reference)
    except ClipworksError as error:
        raise ValueError(f"base {ARTIFACT}{model.reference}: {error}") from error
    specs_of(artifact)
    return artifact


def specs_of(artifact: Artifact) -> tuple[ImageSpec, TextSpec]:
    """Raises:
    ValueError: it has not both towers.
    """
    if artifact.image_spec is None or artifact.text_spec is None:
        raise ValueError(f"base {artifact.reference} needs an image and a text encoder")
    return artifact.image_spec, artifact.text_spec


def stored_tokenizer(artifact: Artifact) -> tuple[TextSpec, bytes]:
    """The text spec and the bytes of the tokenizer file, which a derivation takes from its base."""
    owner, spec = artifact, specs_of(artifact)[1]
    while owner.manifest.text is None and owner.base is not None:
        owner = owner.base
    return spec, owner.read(spec.tokenizer_file)


def load_stored(config: TrainConfig, artifact: Artifact) -> LoadedModel:
    """An artifact as a loaded model; its digests are its fingerprints, so cached features are of no other model."""
    image_spec, text_spec = specs_of(artifact)
    manifest = artifact.manifest
    info = Checkpoint(
        config=config,
        step=0,
        image_spec=image_spec,
        text_spec=text_spec,
        image_spec_digest=spec_digest(image_spec),
        text_spec_digest=spec_digest(text_spec),
        data_digest="",
        tokenizer_sha256=manifest.fingerprint.text or "",
        weights_sha256=stored_digest(artifact),
        git_sha=None,
        graphs={},
        templates=manifest.templates,
        metrics={},
        tools={"clipworks": importlib.metadata.version("clipworks")},
    )
    return LoadedModel(
        info=info,
        model=StoredTowers(artifact),
        tokenizer=artifact.tokenizer(),
        tokenizer_bytes=stored_tokenizer(artifact)[1],
    )


def stored_digest(artifact: Artifact) -> str:
    """What a checkpoint keeps of its base in place of a digest of weights."""
    return f"{ARTIFACT}{artifact.manifest.fingerprint.image}"
