"""CLIP-Adapter: a bottleneck behind the frozen image vectors, behind the class vectors, or behind both.

Gao et al., 2021, "CLIP-Adapter: Better Vision-Language Models with Feature Adapters", equations 4 to 7. What differs:
adapters see unit vectors, the authors' those that no one has normalised. They are trained on cached vectors with AdamW
and a cosine, not on augmented pictures. As in their code a second ReLU ends an adapter: what it adds is never negative.
The result is a class head and no image adapter, for it must not change the space that stored vectors are searched in.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn import functional

from training.methods.parts.adapter_heads import AdapterHead, Bottleneck, adapter_head
from training.methods.parts.class_heads import F32, I64, ClassHead, LinearHead
from training.methods.parts.descent import epochs
from training.methods.parts.few_shot import HeadMethod, best, checked_grid
from training.methods.parts.shots import ShotOptions

RATIOS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8)
LEARNED = "learned"


class ClipAdapterOptions(ShotOptions):
    """adapt: the vectors of images, those of the class texts, or both. epochs, batch, rate: of AdamW.

    ratio: how much of a vector is the adapter's. Each value of the grid is trained by itself, validation chooses, and 0
    is zero-shot; with both adapters it is the ratio of both. "learned" has no knob: a logistic layer is trained with
    each adapter and says the ratio of each of its vectors. The paper's Q gives both ratios from image vector and class
    vectors together and has no form there; here an image's ratio comes of the image, a class's of the class.
    """

    adapt: Literal["image", "text", "both"] = "image"
    ratio: Literal["learned"] | Annotated[tuple[Annotated[float, Field(le=1)], ...], AfterValidator(checked_grid)] = (
        RATIOS
    )
    epochs: int = Field(default=100, ge=1)
    batch: int = Field(default=32, ge=1)
    rate: float = Field(default=1e-3, gt=0)


def create(options: dict[str, Any]) -> ClipAdapterMethod:
    return ClipAdapterMethod(ClipAdapterOptions.parse(options, method="clip_adapter"))


class ClipAdapterMethod(HeadMethod):
    """An adapter of the texts ends in the matrix, so without one of the images the head is linear."""

    kinds = (LinearHead, AdapterHead)
    knobs = ("ratio",)

    def __init__(self, options: ClipAdapterOptions) -> None:
        super().__init__(options)
        self.adapter = options

    def choose(self, shots: F32, truth: I64, validation: F32, expected: I64) -> tuple[ClassHead, dict[str, Any]]:
        def trained(ratio: float | None) -> ClassHead:
            return trained_head(self.zero_shot, shots, truth, self.adapter, ratio=ratio, seed=self.seed)

        if self.adapter.ratio == LEARNED:
            return trained(None), {"ratio": LEARNED}
        tried = {ratio: trained(ratio) if ratio else self.zero_shot for ratio in self.adapter.ratio}
        ratio, curve = best(tried, validation, expected)
        return tried[ratio], {"ratio": ratio, "accuracy_by_ratio": curve}


class AdaptedClasses(nn.Module):
    """Unit vectors [B, D] -> logits [B, C] of zero-shot with an adapter on either side, while it is trained."""

    weight: Tensor
    bias: Tensor

    def __init__(self, zero_shot: LinearHead, adapt: str, *, ratio: float | None) -> None:
        super().__init__()
        self.register_buffer("weight", torch.from_numpy(zero_shot.weight.copy()))
        self.register_buffer("bias", torch.from_numpy(zero_shot.bias.copy()))
        dim = len(zero_shot.weight)
        self.image = None if adapt == "text" else Bottleneck(dim, ratio=ratio)
        self.text = None if adapt == "image" else Bottleneck(dim, ratio=ratio)

    def matrix(self) -> Tensor:
        """[D, C]: the class vectors behind their adapter, as long as they were."""
        if self.text is None:
            return self.weight
        return self.text(functional.normalize(self.weight.T, dim=-1)).T * self.weight.norm(dim=0)

    def forward(self, vectors: Tensor) -> Tensor:
        return (vectors if self.image is None else self.image(vectors)) @ self.matrix() + self.bias

    def head(self) -> ClassHead:
        weight, bias = np.ascontiguousarray(self.matrix().detach().numpy()), self.bias.numpy()
        if self.image is None:
            return LinearHead(weight=weight, bias=bias)
        return adapter_head(self.image, weight=weight, bias=bias)


def trained_head(
    zero_shot: LinearHead,
    shots: F32,
    truth: I64,
    options: ClipAdapterOptions,
    *,
    ratio: float | None,
    seed: int,
) -> ClassHead:
    """Adapters after their last epoch of cross-entropy on unit shots [n, D] of classes int64 [n]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AdaptedClasses(zero_shot, options.adapt, ratio=ratio)
    x, y = torch.from_numpy(shots), torch.from_numpy(truth)
    moved = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for _ in epochs(
        moved,
        lambda rows: functional.cross_entropy(model(x[rows]), y[rows]),
        rows=len(x),
        count=options.epochs,
        batch=options.batch,
        rate=options.rate,
        seed=seed,
    ):
        pass
    return model.eval().head()
