"""Dense towers: what a model gives for every position, and the picture sizes that it takes."""

# torch gives every submodule the type Tensor | Module; open_clip builds on that.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from model_store.errors import ExportRefused
from model_store.manifest import DenseSpec, ImageSpec
from training.models.aligned import AlignedDualEncoder
from training.models.dense_towers import Attention, NoPositions, ResNetDense, TimmDense, VitDense
from training.models.image_tower import ImageTower
from training.models.pixels import PixelNormalize
from training.models.towers import AttentionHead, DualEncoder, FlatHead, MeanHead, OpenClipDualEncoder, SmallDualEncoder
from training.models.trunks import TOTAL_STRIDE

DenseChoice = Literal["maskclip", "sclip", "naclip", "none"]
DENSE_CHOICES: tuple[DenseChoice, ...] = get_args(DenseChoice)
DEFAULT_DENSE: DenseChoice = "naclip"
GRID_CELLS = 14  # of the short side, at least: a 7 x 7 grid cannot show more than half of a small thing
LONGEST = 3  # times the short side; what is longer gets a shorter short side


@dataclass(frozen=True, kw_only=True)
class DenseSource:
    """module: eval mode, fp32, uint8 [B, H, W, 3] -> un-normalised (positions [B, rows, columns, D], pooled [B, D]) for
    every size that `spec` gives.
    """

    module: nn.Module
    spec: DenseSpec


class DenseGraph(nn.Module):
    """A tower of training.models.dense_towers behind the pixel normalisation."""

    def __init__(self, tower: nn.Module, spec: ImageSpec) -> None:
        super().__init__()
        self.normalize = PixelNormalize(spec.mean, spec.std)
        self.tower = tower

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.tower(self.normalize(pixels))


class OwnDenseGraph(nn.Module):
    """An own trunk and head; it has its normalisation inside."""

    def __init__(self, model: SmallDualEncoder | AlignedDualEncoder | ImageTower) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.encode_dense_and_pooled(pixels)


def dense_of_model(
    model: DualEncoder, spec: ImageSpec, choice: DenseChoice = DEFAULT_DENSE
) -> DenseSource | str | None:
    """The dense role of a model of any kind, or why it has none; None: not asked for (see dense_of_openclip)."""
    if choice == "none":
        return None
    if isinstance(model, OpenClipDualEncoder):
        return dense_of_openclip(model.clip.get_submodule("visual"), spec, choice)
    if isinstance(model, SmallDualEncoder):
        return dense_of_own(model, spec)
    if isinstance(model, AlignedDualEncoder):
        return dense_of_aligned(model, spec)
    return "only own trunks and open_clip's towers are known here"


def dense_of_openclip(visual: nn.Module, spec: ImageSpec, choice: DenseChoice) -> DenseSource | str | None:
    """The dense role of an open_clip image tower, or why it has none; None: not asked for.

    `choice` is the attention of a ViT's last block; other towers have no choice but "none".
    """
    if choice == "none":
        return None
    try:
        tower, pooling, stride, attention = _openclip_tower(visual, choice)
    except NoPositions as error:
        return f"no vector for a position: {error}"
    return DenseSource(
        module=DenseGraph(tower, spec).eval(),
        spec=free_sizes(spec, stride_px=stride, pooling=pooling, attention=attention),
    )


def _openclip_tower(
    visual: nn.Module, choice: Attention
) -> tuple[nn.Module, Literal["mean", "attention", "token"], int, Literal["none"] | Attention]:
    if isinstance(visual, VisionTransformer):
        height, width = visual.conv1.kernel_size
        if height != width:
            raise NoPositions(f"its patches are {height} x {width} pixels, not square")
        return VitDense(visual, choice), "token", height, choice
    if isinstance(visual, ModifiedResNet):
        return ResNetDense(visual), "attention", 32, "none"
    if isinstance(visual, TimmModel):
        return TimmDense(visual), "mean", _stride_of(visual), "none"
    raise NoPositions(f"{type(visual).__name__} is not known here")


def _stride_of(visual: TimmModel) -> int:
    info: Any = getattr(visual.trunk, "feature_info", None)
    stride = info[-1]["reduction"] if info else None
    if not isinstance(stride, int):
        raise NoPositions("its trunk does not say its stride")
    return stride


def dense_of_own(model: SmallDualEncoder | ImageTower, spec: ImageSpec) -> DenseSource:
    """The dense role of an own trunk: free sizes, except behind a flat head, whose places have weights of their own."""
    head = model.image_projection
    module = OwnDenseGraph(model).eval()
    if isinstance(head, FlatHead):
        fixed = DenseSpec(
            stride_px=TOTAL_STRIDE,
            short_px=min(spec.height_px, spec.width_px),
            max_long_px=max(spec.height_px, spec.width_px),
            sizes="fixed",
            height_px=spec.height_px,
            width_px=spec.width_px,
            pooling="flat",
            interpolation=spec.interpolation,
            mean=spec.mean,
            std=spec.std,
        )
        return DenseSource(module=module, spec=fixed)
    pooling: Literal["mean", "attention"] = "mean" if isinstance(head, MeanHead) else "attention"
    if pooling == "attention" and not isinstance(head, AttentionHead):
        raise ExportRefused(f"a head of type {type(head).__name__} has no dense role")
    return DenseSource(module=module, spec=free_sizes(spec, stride_px=TOTAL_STRIDE, pooling=pooling))


def dense_of_aligned(model: AlignedDualEncoder, spec: ImageSpec) -> DenseSource | str:
    """The dense role of an aligned trunk, or why it has none."""
    stride = model.stride_px
    if odd := [side for side in (spec.height_px, spec.width_px) if side % stride]:
        return f"pictures of {odd[0]} px are no multiple of the trunk's stride of {stride} px: its padding is not fixed"
    pooling: Literal["mean", "token"] = "mean" if model.positions_average else "token"
    return DenseSource(module=OwnDenseGraph(model).eval(), spec=free_sizes(spec, stride_px=stride, pooling=pooling))


def free_sizes(
    spec: ImageSpec,
    *,
    stride_px: int,
    pooling: Literal["mean", "attention", "token"],
    attention: Literal["none"] | Attention = "none",
) -> DenseSpec:
    """Pictures of any size, at least GRID_CELLS cells and the image encoder's own size on the short side."""
    own_cells = round(min(spec.height_px, spec.width_px) / stride_px)
    short_px = max(GRID_CELLS, own_cells) * stride_px
    return DenseSpec(
        stride_px=stride_px,
        short_px=short_px,
        max_long_px=LONGEST * short_px,
        sizes="free",
        attention=attention,
        pooling=pooling,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
    )
