"""Prompts in front of several layers of a frozen transformer: learned tokens that are put in anew at each of them.

Jia et al., 2022, "Visual Prompt Tuning" (deep); Khattak et al., 2023, "MaPLe: Multi-modal Prompt Learning". Prompts of
a layer take the place of what the layer before made of its own; the last ones run on like any token.
"""

# torch gives every submodule the type Tensor | Module.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import copy
from typing import Protocol, TypeVar

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import Transformer, VisionTransformer
from torch import Tensor, nn

from training.bases import StoredTowers
from training.methods.parts.contexts import PromptedText
from training.methods.parts.token_reader import TokenReader, token_reader
from training.models.bert import BertTower
from training.models.towers import DualEncoder, OpenClipDualEncoder, SmallDualEncoder
from training.models.trunks import ConvTrunk, PlainTrunk, VitTrunk

PROMPT_STD = 0.02
AnyModule = TypeVar("AnyModule", bound=nn.Module)


class PromptLayers(Protocol):
    """Prompts of one tower."""

    @property
    def layers(self) -> Tensor:
        """[J, n, W]: n tokens for each of the first J layers."""
        ...


class LayerPrompts(nn.Module):
    """Prompts that are parameters themselves."""

    def __init__(self, layers: Tensor) -> None:
        super().__init__()
        self.layers = nn.Parameter(layers.detach().clone())


class TextPrompts(LayerPrompts):
    """Prompts of a text tower, and the embeddings `words` [m, W] of words that stay behind them as they are."""

    def __init__(self, layers: Tensor, words: Tensor) -> None:
        super().__init__(layers)
        self.register_buffer("words", words.detach().clone())

    @property
    def count(self) -> int:
        return self.layers.shape[1] + self.get_buffer("words").shape[0]

    @property
    def vectors(self) -> Tensor:
        """What stands between the start token and a text, [n + m, W]."""
        return torch.cat([self.layers[0], self.get_buffer("words")])


class CoupledPrompts(nn.Module):
    """Prompts of an image tower that are linear functions of a text tower's, one function a layer; J is the text's.

    The text prompts are no submodule: they are trained as what they are.
    """

    def __init__(self, text: TextPrompts, width: int) -> None:
        super().__init__()
        self._text = (text,)
        depth, _, inputs = text.layers.shape
        self.couplings = nn.ModuleList(nn.Linear(inputs, width) for _ in range(depth))

    @property
    def layers(self) -> Tensor:
        pairs = zip(self.couplings, self._text[0].layers, strict=True)
        return torch.stack([coupling(layer) for coupling, layer in pairs])


class TowerPrompts(nn.Module):
    """Prompts of a model: of its image tower, of its text tower, or of both."""

    def __init__(self, image: LayerPrompts | CoupledPrompts | None, text: TextPrompts | None) -> None:
        super().__init__()
        self.image, self.text = image, text

    @classmethod
    def of(cls, state: dict[str, Tensor]) -> TowerPrompts:
        """The prompts of a `constant` state."""
        image = LayerPrompts(state["image.layers"]) if "image.layers" in state else None
        return cls(image, TextPrompts(state["text.layers"], state["text.words"]) if "text.layers" in state else None)

    def constant(self) -> dict[str, Tensor]:
        """The state of equal prompts, of which none depends on another one."""
        found = {} if self.image is None else {"image.layers": self.image.layers.detach()}
        if self.text is not None:
            found |= {f"text.{name}": tensor.detach() for name, tensor in self.text.state_dict().items()}
        return {name: tensor.clone() for name, tensor in found.items()}


class ImagePromptedBlocks(nn.Module):
    """A transformer with prompts behind its tokens: [B, L, W] -> [B, L, W].

    What it says of the prompts is cut off, so a class token and a grid are where they were. norm: what the tokens have
    come through before, which the first prompts are put through too.
    """

    def __init__(self, transformer: Transformer, prompts: PromptLayers, *, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.resblocks, self.prompts = transformer.resblocks, prompts
        self.norm = nn.Identity() if norm is None else norm

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        length, layers = x.shape[1], self.prompts.layers
        for at, block in enumerate(self.resblocks):
            if at < len(layers):
                own = (self.norm(layers[0]) if at == 0 else layers[at]).to(x.dtype)
                x = torch.cat([x[:, :length], own.expand(x.shape[0], -1, -1)], dim=1)
            x = block(x, attn_mask=attn_mask)
        return x[:, :length]


class TextPromptedBlocks(nn.Module):
    """A transformer whose tokens have prompts behind the start token, the first ones already: [B, L, W] -> the same."""

    def __init__(self, transformer: Transformer, prompts: PromptLayers) -> None:
        super().__init__()
        self.resblocks, self.prompts = transformer.resblocks, prompts

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        layers = self.prompts.layers
        for at, block in enumerate(self.resblocks):
            x = block(behind_start(x, layers, at), attn_mask=attn_mask)
        return x


class PromptedLayer(nn.Module):
    """One layer of a sentence encoder, with the prompts of that layer behind the start token."""

    def __init__(self, layer: nn.Module, prompts: PromptLayers, at: int) -> None:
        super().__init__()
        self.layer, self.prompts, self.at = layer, prompts, at

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """[B, L, W] and what is added to the attention scores, [B, 1, 1, L] -> [B, L, W]."""
        return self.layer(behind_start(x, self.prompts.layers, self.at), bias)


def behind_start(x: Tensor, layers: Tensor, at: int) -> Tensor:
    """Tokens [B, L, W] with the prompts of layer `at` in the place of those of the layer before; the first ones are
    among the tokens already."""
    if not 0 < at < len(layers):
        return x
    own = layers[at].to(x.dtype).expand(x.shape[0], -1, -1)
    return torch.cat([x[:, :1], own, x[:, 1 + own.shape[1] :]], dim=1)


class PromptedTowers(nn.Module):
    """A frozen base read with prompts; these are no submodule, so freezing leaves them alone."""

    def __init__(self, base: DualEncoder, prompts: TowerPrompts) -> None:
        super().__init__()
        self.base = base
        self._image = (base if prompts.image is None else image_prompted(base, prompts.image),)
        self._text = (None if prompts.text is None else text_prompted(base, prompts.text),)

    @property
    def image(self) -> DualEncoder:
        """The model whose image tower has the prompts; its text tower is the base's."""
        return self._image[0]

    @property
    def text(self) -> PromptedText | None:
        """The text tower with its prompts; None: the base's, without."""
        return self._text[0]

    def encode_image(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> [B, D]."""
        return self.image.encode_image(pixels)

    def encode_text(self, ids: Tensor) -> Tensor:
        """int64 [B, L] -> [B, D]."""
        return self.base.encode_text(ids) if self.text is None else self.text(ids)


def image_prompted(model: DualEncoder, prompts: PromptLayers) -> DualEncoder:
    """`model` with prompts in its image tower; both share all weights.

    Raises:
        ValueError: its tower has no place for prompts; the message says why.
    """
    transformer = image_transformer(model)
    if isinstance(model, SmallDualEncoder):
        return replaced(model, trunk=replaced(model.trunk, transformer=ImagePromptedBlocks(transformer, prompts)))
    visual = model.clip.visual
    blocks = ImagePromptedBlocks(transformer, prompts, norm=visual.ln_pre)
    return replaced(model, clip=replaced(model.clip, visual=replaced(visual, transformer=blocks)))


def text_prompted(model: DualEncoder, prompts: TextPrompts) -> PromptedText:
    """The text tower of `model` with prompts behind the start token of every text; both share all weights.

    Raises:
        ValueError: its tower has no place for prompts; the message says why.
    """
    reader = token_reader(model)
    if isinstance(reader, BertTower):
        layers = (PromptedLayer(layer, prompts, at) for at, layer in enumerate(reader.layers))
        return PromptedText(replaced(reader, layers=nn.ModuleList(layers)), prompts, position="end").eval()
    blocks = TextPromptedBlocks(reader.transformer, prompts)
    return PromptedText(replaced(reader, transformer=blocks), prompts, position="end").eval()


def image_transformer(model: DualEncoder) -> Transformer:
    """The layers of an image tower, if prompts among its tokens can mean something.

    Raises:
        ValueError: they cannot; the message says why.
    """
    if isinstance(model, StoredTowers):
        raise ValueError("a stored model is a graph, in which nothing can be put: take its checkpoint as base")
    if isinstance(model, SmallDualEncoder):
        tower = trunk = model.trunk
    elif isinstance(model, OpenClipDualEncoder):
        tower = model.clip.visual
        trunk = getattr(tower, "trunk", tower)
    else:
        raise ValueError(f"deep visual prompts need a ViT of known layers, {type(model).__name__} has none")
    if isinstance(tower, ConvTrunk | PlainTrunk | ModifiedResNet):
        raise ValueError(
            "deep visual prompts are extra tokens for attention layers; this image tower is convolutional and has none"
        )
    if not isinstance(tower, VitTrunk | VisionTransformer):
        raise ValueError(f"deep visual prompts need a ViT of known layers, and {type(trunk).__name__} is none of them")
    if getattr(tower, "attn_pool", None) is not None:
        raise ValueError("deep visual prompts are not known for an image tower that ends in attention pooling")
    return _known(tower.transformer)


def text_shape(reader: TokenReader) -> tuple[int, int]:
    """How many layers a text tower that `token_reader` gave has, and the width of its tokens.

    Raises:
        ValueError: its layers are not known.
    """
    if isinstance(reader, BertTower):
        return len(reader.layers), reader.positions.shape[1]
    transformer = _known(reader.transformer)
    return transformer.layers, transformer.width


def replaced(module: AnyModule, **children: nn.Module) -> AnyModule:
    """The module with other children in place of some; everything else is shared, and `module` stays as it is."""
    made = copy.copy(module)
    made._modules = {**module._modules, **children}  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return made


def _known(transformer: nn.Module) -> Transformer:
    if not (isinstance(transformer, Transformer) and transformer.batch_first):
        raise ValueError(f"deep prompts need open_clip's own transformer, {type(transformer).__name__} is another one")
    return transformer
