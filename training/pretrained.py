"""Weights that are there already as the start of a run: a tag of open_clip, a file, or a stored artifact."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from model_store.errors import ArtifactError, ExportRefused
from model_store.store import Store
from training.config import ARTIFACT, OpenClipConfig
from training.importing.openclip_weights import find_weights, load_model
from training.importing.stored_weights import read_stored_weights
from training.models.towers import OpenClipDualEncoder

_PREPARED = ("mean", "std", "interpolation", "resize_mode")


def load_pretrained(model: OpenClipDualEncoder, config: OpenClipConfig) -> None:
    """Put the weights that the recipe names into a model that was just built; a tag is downloaded.

    Raises:
        ValueError: they cannot be had, are of another architecture, or saw pictures or texts that were prepared
            otherwise.
    """
    if (config.pretrained or "").startswith(ARTIFACT):
        model.clip.load_state_dict(_stored(config))
        return
    try:
        weights = find_weights(config.architecture, config.pretrained, activation=config.activation)
        if weights.architecture != config.architecture:
            raise ValueError(
                f"model.pretrained {config.pretrained} is a {weights.architecture}: set model.architecture to it"
            )
        found = load_model(weights)
    except ExportRefused as error:
        raise ValueError(
            f"model.pretrained {config.pretrained}: {error} (in a recipe --activation is model.activation)"
        ) from error
    ours: Any = getattr(model.clip.visual, "preprocess_cfg")  # noqa: B009  (an attribute no class declares)
    for name in _PREPARED:
        if _plain(ours[name]) != _plain(weights.preprocess[name]):
            raise ValueError(
                f"model.pretrained {config.pretrained} was trained on pictures with {name} {weights.preprocess[name]}, "
                f"training prepares them with {ours[name]}"
            )
    model.clip.load_state_dict(found.state_dict())


def _stored(config: OpenClipConfig) -> dict[str, Tensor]:
    """Raises:
    ValueError: the artifact is not there, or its weights cannot be had exactly.
    """
    try:
        if config.activation is not None:
            raise ExportRefused("an artifact records its activation; model.activation is for files")
        artifact = Store(config.store).open((config.pretrained or "").removeprefix(ARTIFACT))
        return read_stored_weights(artifact, config)
    except ArtifactError as error:
        raise ValueError(f"model.pretrained {config.pretrained}: {error}") from error


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
