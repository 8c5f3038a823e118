"""A model of any kind from its settings, and how pictures reach it."""

# torch gives every submodule the type Tensor | Module; open_clip builds on that.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import open_clip

from model_store.manifest import ImageSpec
from training.aligned_config import AlignedConfig, AlignedImageConfig
from training.config import ModelConfig, SmallConfig, StoredModel
from training.models.aligned import AlignedDualEncoder
from training.models.slimming import slim_towers
from training.models.towers import DualEncoder, OpenClipDualEncoder, SmallDualEncoder


def build_model(config: ModelConfig, *, vocab_size: int, end_id: int) -> DualEncoder:
    """A freshly initialised model of `config`; weights come from the caller's torch seed."""
    if isinstance(config, StoredModel):
        raise ValueError(
            f"{config.reference} is a stored model, whose weights are not trained: take its checkpoint as base, "
            "or a method that works on its vectors (gda, linear_probe)"
        )
    if isinstance(config, AlignedConfig):
        return AlignedDualEncoder(config, vocab_size=vocab_size)
    if isinstance(config, SmallConfig):
        model = SmallDualEncoder(config, vocab_size=vocab_size, end_id=end_id)
    else:
        model = OpenClipDualEncoder(config)
    if config.slim is not None:
        slim_towers(model, config.slim)
    return model


def image_spec(config: ModelConfig, *, size_px: int | None = None) -> ImageSpec:
    """How pictures reach the model; `size_px` overrides the side (the training cache keeps more to crop from)."""
    if isinstance(config, SmallConfig | AlignedConfig):
        image = config.image
        side = size_px or image.size_px
        return ImageSpec(
            height_px=side,
            width_px=side,
            resize_mode=image.resize_mode if isinstance(image, AlignedImageConfig) else "shortest",
            interpolation=image.interpolation if isinstance(image, AlignedImageConfig) else "bicubic",
            mean=image.mean,
            std=image.std,
        )
    # open_clip works its preprocessing out while it builds, so ask a model that is thrown away.
    preprocess = open_clip.create_model(config.architecture, pretrained=None).visual.preprocess_cfg
    size = size_px or preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    return ImageSpec(
        height_px=height,
        width_px=width,
        resize_mode=preprocess["resize_mode"],
        interpolation=preprocess["interpolation"],
        fill=preprocess["fill_color"],
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
    )
