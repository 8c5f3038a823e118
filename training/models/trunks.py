"""Small trunks, registered with timm: plain 3x3 convolutions with BatchNorm, which folds away at export, and ViTs.

The total stride is 8, so that a position's vector still says where: 8 x 8 positions for a 64 px picture.
Residual blocks follow He et al., 2016; on two cores they learn in minutes what a ViT of equal cost does not.
"""

# torch gives every submodule the type Tensor | Module.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false

from __future__ import annotations

from collections.abc import Sequence

import torch
from open_clip.transformer import Transformer
from timm.models import register_model
from torch import Tensor, nn

TOTAL_STRIDE = 8


class ConvUnit(nn.Sequential):
    """3x3 convolution, BatchNorm, and a ReLU unless `activate` is off: [B, C, H, W] -> [B, C', H/stride, W/stride]."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, activate: bool = True) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        super().__init__(*layers, *([nn.ReLU()] if activate else []))


class ResidualUnit(nn.Module):
    """Two convolutions around an identity: [B, C, H, W] -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvUnit(channels, channels)
        self.second = ConvUnit(channels, channels, activate=False)
        self.activation = nn.ReLU()
        # A block starts as the identity (Goyal et al., 2017, section 5.1).
        nn.init.zeros_(self.second[1].weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x + self.second(self.first(x)))


class ConvTrunk(nn.Module):
    """Normalised pixels [B, 3, H, W] -> features [B, widths[-1], H/8, W/8].

    Four stages of `widths` channels; stage i ends with `depths[i]` residual units; the first three halve the picture.
    """

    def __init__(self, *, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        inputs = 3
        for width, depth, stride in zip(widths, depths, (2, 2, 2, 1), strict=True):
            stages.append(
                nn.Sequential(ConvUnit(inputs, width, stride=stride), *(ResidualUnit(width) for _ in range(depth)))
            )
            inputs = width
        self.stages = nn.Sequential(*stages)
        self.num_features = inputs

    def forward_features(self, x: Tensor) -> Tensor:
        return self.stages(x)

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features [B, num_features], as timm's `num_classes=0` models answer."""
        return self.forward_features(x).mean(dim=(2, 3))


class PlainTrunk(nn.Module):
    """Normalised pixels [B, 3, H, W] -> features [B, widths[-1], H/8, W/8]: convolutions in a row, no shortcuts.

    The first layer keeps the full resolution, so that small prints and thin stripes survive; then every second of
    the next layers halves the picture, three times.
    """

    def __init__(self, *, widths: Sequence[int]) -> None:
        super().__init__()
        pairs = zip((3, *widths[:-1]), widths, strict=True)
        self.layers = nn.Sequential(
            *(
                ConvUnit(inputs, outputs, stride=2 if index in (1, 3, 5) else 1)
                for index, (inputs, outputs) in enumerate(pairs)
            )
        )
        self.num_features = widths[-1]

    def forward_features(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features [B, num_features]."""
        return self.forward_features(x).mean(dim=(2, 3))


class VitTrunk(nn.Module):
    """Normalised pixels [B, 3, H, W] -> features [B, width, H/8, W/8]: patches of 8 px through a transformer with norms
    in front of its branches (Dosovitskiy et al., 2021), without a class token: the head pools.

    Positions are sines and cosines of row and column (Beyer et al., 2022, "Better plain ViT baselines for ImageNet"),
    so it takes pictures of any size. A trunk that has lost channels keeps the positions of those that are left,
    `position_channels` of the `position_width` that there were.
    """

    def __init__(self, *, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, kernel_size=TOTAL_STRIDE, stride=TOTAL_STRIDE)
        self.transformer = Transformer(width=width, layers=layers, heads=heads, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.num_features = width
        self.position_width = width
        self.position_channels: tuple[int, ...] | None = None
        scale_init(self.transformer, width)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        rows, columns = x.shape[2:]
        positions = sine_positions(rows, columns, self.position_width)
        if self.position_channels is not None:
            positions = positions[:, list(self.position_channels)]
        tokens = x.flatten(2).permute(0, 2, 1) + positions.to(x)
        tokens = self.norm(self.transformer(tokens))
        return tokens.permute(0, 2, 1).unflatten(2, (rows, columns))

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features [B, num_features]."""
        return self.forward_features(x).mean(dim=(2, 3))


def scale_init(transformer: Transformer, width: int) -> None:
    """CLIP's initialisation: residual branches shrink with depth (open_clip's TextTransformer.init_parameters)."""
    blocks = transformer.resblocks
    residual_std, attention_std, hidden_std = width**-0.5 * (2 * len(blocks)) ** -0.5, width**-0.5, (2 * width) ** -0.5
    for block in blocks:
        nn.init.normal_(block.attn.in_proj_weight, std=attention_std)
        nn.init.normal_(block.attn.out_proj.weight, std=residual_std)
        nn.init.normal_(block.mlp.c_fc.weight, std=hidden_std)
        nn.init.normal_(block.mlp.c_proj.weight, std=residual_std)


def sine_positions(rows: int, columns: int, width: int) -> Tensor:
    """[rows * columns, width], width divisible by 4: sines and cosines of the row, then those of the column."""
    rates = 10_000 ** -(torch.arange(width // 4) / (width // 4))
    down, across = torch.arange(rows)[:, None] * rates, torch.arange(columns)[:, None] * rates
    down, across = (torch.cat([angle.sin(), angle.cos()], dim=1) for angle in (down, across))
    # Expanded, not repeated: the exporter writes a repetition for the size that it sees, and grids are free.
    down, across = down[:, None].expand(-1, columns, -1), across[None].expand(rows, -1, -1)
    return torch.cat([down, across], dim=2).flatten(0, 1)


# timm's registry calls entry points with its own keywords, which own weights have no use for.
@register_model
def clipworks_conv_t(pretrained: bool = False, **_timm_options: object) -> ConvTrunk:
    """0.5 M parameters: for tests and for very small budgets."""
    return ConvTrunk(widths=(16, 32, 64, 128), depths=(0, 0, 1, 1))


@register_model
def clipworks_conv_s(pretrained: bool = False, **_timm_options: object) -> ConvTrunk:
    """1.9 M parameters."""
    return ConvTrunk(widths=(32, 64, 128, 256), depths=(0, 1, 1, 1))


@register_model
def clipworks_conv_m(pretrained: bool = False, **_timm_options: object) -> ConvTrunk:
    """3.1 M parameters."""
    return ConvTrunk(widths=(32, 64, 128, 256), depths=(0, 1, 1, 2))


@register_model
def clipworks_plain_s(pretrained: bool = False, **_timm_options: object) -> PlainTrunk:
    """1.2 M parameters."""
    return PlainTrunk(widths=(32, 32, 64, 64, 128, 128, 256, 256))


@register_model
def clipworks_vit_t(pretrained: bool = False, **_timm_options: object) -> VitTrunk:
    """1.2 M parameters: width 128, 6 layers of 4 heads."""
    return VitTrunk(width=128, layers=6, heads=4)


@register_model
def clipworks_vit_s(pretrained: bool = False, **_timm_options: object) -> VitTrunk:
    """4.8 M parameters: width 256, 6 layers of 4 heads."""
    return VitTrunk(width=256, layers=6, heads=4)
