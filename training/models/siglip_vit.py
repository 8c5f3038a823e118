"""SigLIP's image tower with any widths, as a timm model that open_clip's configurations can name.

timm's own entries of it have fixed sizes and the exact GELU, where transformers' checkpoints have its tanh form.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from timm.models import is_model, register_model
from timm.models.vision_transformer import VisionTransformer

Gelu = Literal["gelu", "gelu_tanh"]


@dataclass(frozen=True, kw_only=True)
class SiglipVit:
    """width, depth, heads, mlp (hidden width) of the blocks; patch and picture in pixels."""

    width: int
    depth: int
    heads: int
    mlp: int
    patch_px: int
    size_px: int
    act: Gelu

    @property
    def name(self) -> str:
        """What open_clip's `timm_model_name` calls it; it says all there is to know of the architecture."""
        return "siglip_vit_" + "_".join(str(value) for value in asdict(self).values())


def register(tower: SiglipVit) -> str:
    """Make timm know this tower; its name, which is the same for equal towers."""

    def create(pretrained: bool = False, **settings: Any) -> VisionTransformer:
        del pretrained  # there is nothing to download
        for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            settings.pop(name, None)
        return VisionTransformer(
            img_size=tower.size_px,
            patch_size=tower.patch_px,
            embed_dim=tower.width,
            depth=tower.depth,
            num_heads=tower.heads,
            mlp_ratio=tower.mlp / tower.width,
            class_token=False,
            act_layer=tower.act,
            **settings,
        )

    if not is_model(tower.name):
        create.__name__ = tower.name
        register_model(create)
    return tower.name
