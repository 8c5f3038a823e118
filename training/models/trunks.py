"""Small convolutional trunks, registered with timm: plain 3x3 convolutions with BatchNorm, which folds away at export.

The total stride is 8, so that a position's vector still says where: 8 x 8 positions for a 64 px picture.
Residual blocks follow He et al., 2016; on two cores they learn in minutes what a ViT of equal cost does not.
"""

# torch gives every submodule the type Tensor | Module.
# pyright: reportArgumentType=false

from __future__ import annotations

from collections.abc import Sequence

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
