"""A pretrained trunk whose vectors are mapped to those of a sentence encoder, by its own classifier and by a head."""

# torch gives every submodule and buffer the type Tensor | Module; timm builds on that.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from training.aligned_config import AlignedConfig, AlignedImageConfig, ClassMapConfig
from training.models.bert import BertTower
from training.models.towers import OPENAI_SCALE, DualEncoder, PixelInput


class ClassMap(nn.Module):
    """What a classifier says of a picture as a vector: logits [..., K] -> weight * unit(softmax(logits / T) @ C).

    `vectors` C [K, D] are the text vectors of the classes (Norouzi et al., 2014, ConSE, over all classes). `linear`, if
    the recipe has one, maps the features [..., F] in front of the classifier to vectors too.
    """

    def __init__(self, config: ClassMapConfig, *, classes: int, features: int, dim: int) -> None:
        super().__init__()
        self.temperature, self.weight, self.share = config.temperature, config.weight, config.linear
        self.vectors = nn.Parameter(torch.zeros(classes, dim))
        self.linear = nn.Linear(features, dim) if config.linear else None

    def forward(self, logits: Tensor, features: Tensor) -> Tensor:
        mixed = nn.functional.normalize((logits / self.temperature).softmax(dim=-1) @ self.vectors, dim=-1)
        if self.linear is not None:
            mixed = mixed + self.share * nn.functional.normalize(self.linear(features), dim=-1)
            mixed = nn.functional.normalize(mixed, dim=-1)
        return mixed * self.weight


class FeatureHead(nn.Module):
    """A trunk's pooled features [..., F] -> [..., D]: linear, or an MLP of one hidden layer.

    It starts at zero, as a correction of the class map, where there is one and nothing is brought to length 1.
    """

    def __init__(self, config: AlignedImageConfig, *, inputs: int, dim: int, silent: bool) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.hidden = nn.Linear(inputs, config.hidden) if config.head == "mlp" else None
        outputs = dim if config.gate is None else dim + 1
        self.out = nn.Linear(inputs if self.hidden is None else config.hidden, outputs)
        self.unit, self.gate = config.unit, config.gate
        if silent and not self.unit:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    @property
    def is_linear(self) -> bool:
        return self.hidden is None and not self.unit

    def forward(self, features: Tensor) -> Tensor:
        x = self.dropout(features)
        if self.hidden is not None:
            x = nn.functional.gelu(self.hidden(x))
        x = self.out(x)
        if self.gate is None:
            return nn.functional.normalize(x, dim=-1) if self.unit else x
        low, high = self.gate
        opened = low + high * x[..., -1:].sigmoid()
        return nn.functional.normalize(x[..., :-1], dim=-1) * opened


class AlignedDualEncoder(DualEncoder):
    """Class map and head behind a timm trunk, and a BERT tower; see AlignedConfig."""

    def __init__(self, config: AlignedConfig, *, vocab_size: int) -> None:
        super().__init__()
        image, shape, mapped = config.image, config.text.shape, config.class_map
        if shape is None or (mapped is not None and mapped.count is None):
            raise ValueError("an aligned model's recipe is read with load_config, which fills in what its sources say")
        classes = mapped.count if mapped is not None and mapped.count is not None else 0
        self.pixel_input = PixelInput(image.mean, image.std)
        self.trunk: Any = timm.create_model(image.trunk, pretrained=False, num_classes=classes)
        infos: Any = self.trunk.feature_info
        self.stride_px = int(infos[-1]["reduction"])
        if image.size_px % self.stride_px == 0:
            fix_same_padding(self.trunk)
        self.stages = tuple(infos[at]["module"] if isinstance(at, int) else at for at in image.stages)
        channels, self.strides = self._shapes_of_stages()
        inputs = self.trunk.head_hidden_size + sum(channels)
        self.head = (
            None
            if image.head == "none"
            else FeatureHead(image, inputs=inputs, dim=shape.width, silent=mapped is not None)
        )
        self.class_map = (
            None
            if mapped is None
            else ClassMap(mapped, classes=classes, features=self.trunk.head_hidden_size, dim=shape.width)
        )
        self.text = BertTower(shape, vocab_size=vocab_size, context_length=config.text.context_length)
        self.logit_scale = nn.Parameter(torch.tensor(OPENAI_SCALE))
        self.logit_bias = None

    def encode_pixels(self, x: Tensor) -> Tensor:
        features = self.features(x)
        return self.from_features(features, self.logits(features))

    def encode_text(self, ids: Tensor) -> Tensor:
        return self.text(ids)

    def encode_dense(self, pixels: Tensor) -> Tensor:
        return self.encode_dense_and_pooled(pixels)[0]

    def encode_dense_and_pooled(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Every cell of the last grid is mapped as the whole picture's features are; sides are multiples of
        `stride_px`."""
        last, stages = self._maps(self.pixel_input.unit_range(pixels))
        # Finer stages are averaged over the cells of the last grid: their mean over cells is then their mean.
        ratios = [self.stride_px // stride for stride in self.strides]
        finer = zip(stages, ratios, strict=True)
        cells = [last, *(nn.functional.avg_pool2d(each, ratio) for each, ratio in finer)]
        grid = torch.cat(cells, dim=1)
        batch, channels, rows, columns = grid.shape
        pooled = grid.mean(dim=(2, 3))
        # As rows of a matrix: an exported graph then holds the weights as the image encoder's does, and can share them.
        positions = grid.permute(0, 2, 3, 1).reshape(-1, channels)
        mapped = self.from_features(positions, self.logits(positions)).view(batch, rows, columns, -1)
        return mapped, self.from_features(pooled, self.logits(pooled))

    def features(self, x: Tensor) -> Tensor:
        """float [B, 3, H, W] in [0, 1] -> [B, F]: the trunk's pooled features, then the means of the chosen stages."""
        last, stages = self._maps(x)
        pooled = self.trunk.forward_head(last, pre_logits=True)
        return torch.cat([pooled, *(each.mean(dim=(2, 3)) for each in stages)], dim=1)

    def logits(self, features: Tensor) -> Tensor | None:
        """[..., F] -> [..., K] of the trunk's own classifier; None without a class map."""
        if self.class_map is None:
            return None
        return self.trunk.get_classifier()(features[..., : self.trunk.head_hidden_size])

    def from_features(self, features: Tensor, logits: Tensor | None) -> Tensor:
        """[..., F] and [..., K] -> [..., D]."""
        parts: list[Tensor] = []
        if self.class_map is not None and logits is not None:
            parts.append(self.class_map(logits, features[..., : self.trunk.head_hidden_size]))
        if self.head is not None:
            parts.append(self.head(features))
        return sum(parts[1:], start=parts[0])

    @property
    def positions_average(self) -> bool:
        """Whether the mean of the cells' vectors is the picture's."""
        return self.class_map is None and self.head is not None and self.head.is_linear

    def image_parts(self) -> tuple[nn.Module, ...]:
        parts = (self.pixel_input, self.trunk, self.head, self.class_map)
        return tuple(part for part in parts if part is not None)

    def checkpoint_gradients(self) -> None:
        super().checkpoint_gradients()
        self.text.checkpointing = True

    def _maps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The last feature map, and those of the chosen stages, each [B, C, h, w]."""
        x = self.pixel_input(x)
        if not self.stages:
            return self.trunk.forward_features(x), []
        kept: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for name in self.stages:
                hooks.enter_context(_keeping(self.trunk.get_submodule(name), kept, name))
            last = self.trunk.forward_features(x)
        return last, [kept[name] for name in self.stages]

    def _shapes_of_stages(self) -> tuple[list[int], list[int]]:
        """Channels and stride of each chosen stage.

        Raises:
            ValueError: there is no such module, or it gives no map of positions.
        """
        side = 2 * self.stride_px
        try:
            with torch.no_grad():
                self.trunk.eval()
                stages = self._maps(torch.zeros(1, 3, side, side))[1]
                self.trunk.train()
        except (AttributeError, KeyError) as error:
            raise ValueError(f"model.image.stages: the trunk has no stage {error}") from error
        for name, found in zip(self.stages, stages, strict=True):
            if found.ndim != 4 or self.stride_px % (side // found.shape[-1]):
                raise ValueError(f"model.image.stages: {name} gives {list(found.shape)}, no map of positions")
        return [each.shape[1] for each in stages], [side // each.shape[-1] for each in stages]


@contextmanager
def _keeping(module: nn.Module, kept: dict[str, Tensor], name: str) -> Iterator[None]:
    """While it is open, what `module` gives lies in `kept` too."""
    handle = module.register_forward_hook(lambda _module, _inputs, output: kept.__setitem__(name, output))
    try:
        yield
    finally:
        handle.remove()


class EvenPaddedConv2d(nn.Conv2d):
    """A strided convolution with TensorFlow's SAME padding of inputs whose sides are multiples of the stride.

    timm works that padding out of each input's size, which no graph with free sizes can hold.
    """

    def forward(self, input: Tensor) -> Tensor:
        pads: list[int] = []
        for kernel, stride in zip(reversed(self.kernel_size), reversed(self.stride), strict=True):
            total = max(kernel - stride, 0)
            pads += [total // 2, total - total // 2]
        padded = nn.functional.pad(input, pads)
        return nn.functional.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def fix_same_padding(trunk: nn.Module) -> None:
    """Let strided convolutions pad by a constant; right for pictures whose sides are multiples of the total stride."""
    for parent in list(trunk.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is Conv2dSame and child.dilation == (1, 1):
                fixed = EvenPaddedConv2d(
                    child.in_channels,
                    child.out_channels,
                    child.kernel_size,
                    stride=child.stride,
                    groups=child.groups,
                    bias=child.bias is not None,
                )
                fixed.weight, fixed.bias = child.weight, child.bias
                setattr(parent, name, fixed)
