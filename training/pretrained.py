"""Weights that other people trained as the start of a run: a tag of open_clip, or a file of weights."""

from __future__ import annotations

from typing import Any

from model_store.errors import ExportRefused
from training.config import OpenClipConfig
from training.importing.openclip_weights import find_weights, load_model
from training.models.towers import OpenClipDualEncoder

_PREPARED = ("mean", "std", "interpolation", "resize_mode")


def load_pretrained(model: OpenClipDualEncoder, config: OpenClipConfig) -> None:
    """Put the weights that the recipe names into a model that was just built; a tag is downloaded.

    Raises:
        ValueError: they cannot be had, are of another architecture, or saw pictures that were prepared otherwise.
    """
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


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
