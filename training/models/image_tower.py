"""An image tower by itself, for students that share their teacher's text tower."""

# torch gives every submodule the type Tensor | Module.
# pyright: reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import timm
from torch import Tensor, nn

from model_store.manifest import ImageSpec
from training.config import ImageTowerConfig
from training.models.towers import PixelInput, pooling_head


class ImageTower(nn.Module):
    """A trunk behind the pixel normalisation, with a pooling head: the image side of the small kind of model."""

    def __init__(self, config: ImageTowerConfig, *, embed_dim: int) -> None:
        super().__init__()
        self.pixel_input = PixelInput(config.mean, config.std)
        self.trunk = timm.create_model(config.trunk, pretrained=False, num_classes=0)
        self.image_projection = pooling_head(config, channels=self.trunk.num_features, embed_dim=embed_dim)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> un-normalised [B, D]."""
        return self.image_projection(self._features(pixels))

    def encode_dense_and_pooled(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, H, W, 3] -> un-normalised [B, h, w, D] and [B, D]."""
        return self.image_projection.dense_and_pooled(self._features(pixels))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encode_image(pixels)

    def _features(self, pixels: Tensor) -> Tensor:
        return self.trunk.forward_features(self.pixel_input(self.pixel_input.unit_range(pixels)))


def tower_spec(config: ImageTowerConfig) -> ImageSpec:
    """How pictures reach it."""
    return ImageSpec(
        height_px=config.size_px,
        width_px=config.size_px,
        resize_mode="shortest",
        interpolation="bicubic",
        mean=config.mean,
        std=config.std,
    )
