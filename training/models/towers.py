"""The two towers: uint8 pixels or token ids in, un-normalised vectors out; one graph to train, export and serve."""

# torch gives every submodule and buffer the type Tensor | Module; open_clip and timm build on that.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

import math

import open_clip
import timm
import torch
from open_clip.transformer import Transformer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.config import ImageTowerConfig, OpenClipConfig, SmallConfig, TextTowerConfig
from training.models.positions import resample_grid
from training.models.trunks import TOTAL_STRIDE, scale_init  # the import also registers the own trunks with timm

OPENAI_SCALE = math.log(1 / 0.07)


class PixelInput(nn.Module):
    """Pixels to what a trunk wants: the first layer of every image graph, so mean and std cannot be forgotten."""

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def unit_range(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> float [B, 3, H, W] in [0, 1]."""
        return pixels.permute(0, 3, 1, 2).to(self.mean.dtype) / 255

    def forward(self, x: Tensor) -> Tensor:
        """float [B, 3, H, W] in [0, 1] -> normalised."""
        return (x - self.mean) / self.std


class DualEncoder(nn.Module):
    """What the loop, the methods and the exporter know of a model; subclasses give the three `encode_*` below."""

    logit_scale: nn.Parameter
    logit_bias: nn.Parameter | None
    pixel_input: PixelInput
    locked: tuple[nn.Module, ...] = ()
    """What stays in eval mode."""

    def encode_image(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> un-normalised [B, D]."""
        return self.encode_pixels(self.pixel_input.unit_range(pixels))

    def encode_dense(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> un-normalised [B, h, w, D].

        The mean over positions is `encode_image`, except behind an attention head, whose pooling weighs them.
        """
        raise NotImplementedError(f"{type(self).__name__} has no per-position vectors")

    def encode_dense_and_pooled(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, H, W, 3] -> un-normalised [B, h, w, D] and [B, D] in one run, at any size the head takes."""
        raise NotImplementedError(f"{type(self).__name__} has no per-position vectors")

    def encode_pixels(self, x: Tensor) -> Tensor:
        """float [B, 3, H, W] in [0, 1] -> un-normalised [B, D]; for methods that need gradients of pixels."""
        raise NotImplementedError

    def encode_text(self, ids: Tensor) -> Tensor:
        """int64 [B, L], L up to the context length -> un-normalised [B, D]."""
        raise NotImplementedError

    def image_parts(self) -> tuple[nn.Module, ...]:
        """The modules of the image tower."""
        raise NotImplementedError

    def checkpoint_gradients(self) -> None:
        """From now on, keep the inputs of transformer blocks only, and compute the rest again during backward (Chen et
        al., 2016): gradients are equal, memory for activations shrinks, a step takes about a third longer.

        Raises:
            ValueError: an image tower that is trained has batch norms, or blocks that do not offer it.
        """
        norms = (m for part in self.image_parts() for m in part.modules() if isinstance(m, _BatchNorm))
        if any(norm.training for norm in norms):
            # They would count a batch twice in their statistics.
            raise ValueError("run.gradient_checkpointing is for transformers: this image tower trains batch norms")

    def lock(self, *parts: nn.Module) -> None:
        """Freeze submodules for good: no gradients, and their statistics stay (Zhai et al., 2022, LiT)."""
        self.locked = (*self.locked, *parts)
        for part in parts:
            part.requires_grad_(False).eval()

    def keep_statistics(self) -> None:
        """From now on batch norms work with the statistics that they have; their weights and biases may be trained."""
        norms = tuple(module for module in self.modules() if isinstance(module, _BatchNorm))
        self.locked = (*self.locked, *norms)
        for norm in norms:
            norm.eval()

    def lock_image(self) -> None:
        self.lock(*self.image_parts())

    def train(self, mode: bool = True) -> DualEncoder:
        super().train(mode)
        for part in self.locked:
            part.eval()
        return self


class TextTower(nn.Module):
    """Causal transformer over token ids (Radford et al., 2021), optionally with the mean of its token embeddings added.

    `pool`: "eos" reads the end token; "eos+bag" adds the projected mean of the tokens' embeddings, which learns rare
    words from few captions; "bag" is that mean alone. Ids after the end token never matter, so rows may be cut
    anywhere behind it.
    """

    def __init__(self, config: TextTowerConfig, *, vocab_size: int, end_id: int, embed_dim: int) -> None:
        super().__init__()
        width, length = config.width, config.context_length
        self.end_id, self.pool, self.context_length = end_id, config.pool, length
        self.token_embedding = nn.Embedding(vocab_size, width)
        nn.init.normal_(self.token_embedding.weight, std=config.embedding_std)
        self.dropout = nn.Dropout(config.dropout)
        if config.pool != "bag":
            self.positional_embedding = nn.Parameter(torch.randn(length, width) * 0.01)
            self.transformer = Transformer(width=width, layers=config.layers, heads=config.heads, batch_first=True)
            scale_init(self.transformer, width)
            self.ln_final = nn.LayerNorm(width)
            self.projection = nn.Linear(width, embed_dim, bias=False)
            mask = torch.full((length, length), float("-inf")).triu_(1)
            self.register_buffer("causal_mask", mask, persistent=False)
        if config.pool != "eos":
            if not config.bag_projection and width != embed_dim:
                raise ValueError(f"bag_projection = false needs text width {width} = embed_dim {embed_dim}")
            projection = nn.Linear(width, embed_dim, bias=False)
            self.bag_projection = projection if config.bag_projection else nn.Identity()
        if config.pool == "eos+bag":
            # At first the end token says the same of every text: it starts silent, as a correction of the bag.
            nn.init.zeros_(self.projection.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [B, L] -> [B, D]."""
        end = self.end_of(ids)
        return self.read(self.token_embedding(ids), end)

    def end_of(self, ids: Tensor) -> Tensor:
        """Where each row of int64 [B, L] has its end token: int64 [B]."""
        return (ids == self.end_id).to(torch.int64).argmax(dim=-1)

    def token_vectors(self, ids: Tensor) -> Tensor:
        """int64 [B, L] -> [B, L, W], behind the last norm; of a bag the embeddings, which know no order."""
        tokens = self.token_embedding(ids)
        return tokens if self.pool == "bag" else self.ln_final(self._attended(tokens))

    def read(self, tokens: Tensor, end: Tensor) -> Tensor:
        """Embedded tokens [B, L, W], each row with its end token at `end` int64 [B] -> [B, D]."""
        length = tokens.shape[1]
        out: Tensor | None = None
        if self.pool != "bag":
            x = self._attended(tokens)
            at_end = x[torch.arange(tokens.shape[0], device=tokens.device), end]
            out = self.projection(self.ln_final(at_end))
        if self.pool != "eos":
            positions = torch.arange(length, device=tokens.device)[None, :]
            inside = ((positions > 0) & (positions < end[:, None])).to(tokens.dtype)[..., None]
            mean = (tokens * inside).sum(dim=1) / inside.sum(dim=1).clamp(min=1)
            bag = self.bag_projection(self.dropout(mean))
            out = bag if out is None else out + bag
        if out is None:
            raise ValueError(f"unknown pool {self.pool!r}")
        return out

    def _attended(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        x = self.dropout(tokens + self.positional_embedding[:length])
        return self.transformer(x, attn_mask=self.causal_mask[:length, :length])

    def checkpoint_gradients(self) -> None:
        if self.pool != "bag":
            self.transformer.grad_checkpointing = True


class MeanHead(nn.Linear):
    """One projection for every position, then their mean: knows what, forgets where."""

    def __init__(self, channels: int, embed_dim: int, *, dropout: float) -> None:
        super().__init__(channels, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, D]."""
        return super().forward(self.dropout(input.mean(dim=(2, 3))))

    def dense(self, features: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, h, w, D]; the mean over positions is `forward`."""
        batch, channels, rows, columns = features.shape
        # As rows of a matrix: an exported graph then holds the weight as the image encoder's does, and can share it.
        cells = features.permute(0, 2, 3, 1).reshape(-1, channels)
        return super().forward(cells).view(batch, rows, columns, self.out_features)

    def dense_and_pooled(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, h, w] -> [B, h, w, D] and their mean [B, D]."""
        positions = self.dense(features)
        return positions, positions.mean(dim=(1, 2))


class FlatHead(nn.Module):
    """A projection of its own for every position, added up: a linear layer on the flattened grid, so it knows where."""

    def __init__(self, channels: int, embed_dim: int, *, grid: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.weight = nn.Parameter(torch.randn(grid * grid, channels, embed_dim) * (grid * grid * channels) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(embed_dim))

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, D]."""
        positions = self.dropout(features).flatten(2).permute(0, 2, 1)
        return positions.flatten(1) @ self.weight.flatten(0, 1) + self.bias

    def dense(self, features: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, h, w, D]: each position's share times their number; the mean is `forward`."""
        batch, _, rows, columns = features.shape
        shares = torch.bmm(features.flatten(2).permute(2, 0, 1), self.weight).transpose(0, 1) * (rows * columns)
        return (shares + self.bias).view(batch, rows, columns, -1)

    def dense_and_pooled(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, h, w] -> [B, h, w, D] and their mean [B, D]."""
        positions = self.dense(features)
        return positions, positions.mean(dim=(1, 2))


class AttentionHead(nn.Module):
    """Attention pooling with position embeddings, as CLIP's ResNets have it (Radford et al., 2021, 2.4)."""

    def __init__(self, channels: int, embed_dim: int, *, grid: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.position = nn.Parameter(torch.randn(grid * grid + 1, channels) * channels**-0.5)
        self.query, self.key = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.value, self.projection = nn.Linear(channels, channels), nn.Linear(channels, embed_dim)
        self.heads = heads
        self.grid = (grid, grid)

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, D]."""
        return self._pooled(features, self.position)

    def dense(self, features: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, h, w, D]: values projected position by position (Zhou et al., 2022, MaskCLIP)."""
        batch, _, rows, columns = features.shape
        x = features.flatten(2).permute(0, 2, 1) + resample_grid(self.position[1:], self.grid, rows, columns)
        return self.projection(self.value(x)).view(batch, rows, columns, -1)

    def dense_and_pooled(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, h, w] -> [B, h, w, D] and [B, D], at any grid: position embeddings are resampled."""
        rows, columns = features.shape[2:]
        table = torch.cat([self.position[:1], resample_grid(self.position[1:], self.grid, rows, columns)])
        return self.dense(features), self._pooled(features, table)

    def _pooled(self, features: Tensor, table: Tensor) -> Tensor:
        x = features.flatten(2).permute(0, 2, 1)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + table
        query, key, value = self._split(self.query(x[:, :1])), self._split(self.key(x)), self._split(self.value(x))
        pooled = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.projection(self.dropout(pooled.permute(0, 2, 1, 3).flatten(2)[:, 0]))

    def _split(self, x: Tensor) -> Tensor:
        """[B, L, C] -> [B, heads, L, C / heads]."""
        return x.unflatten(2, (self.heads, -1)).permute(0, 2, 1, 3)


class SmallDualEncoder(DualEncoder):
    """An own trunk with a pooling head, and a small text tower."""

    def __init__(self, config: SmallConfig, *, vocab_size: int, end_id: int) -> None:
        super().__init__()
        image = config.image
        self.pixel_input = PixelInput(image.mean, image.std)
        self.trunk = timm.create_model(image.trunk, pretrained=False, num_classes=0)
        self.image_projection = pooling_head(image, channels=self.trunk.num_features, embed_dim=config.embed_dim)
        self.text = TextTower(config.text, vocab_size=vocab_size, end_id=end_id, embed_dim=config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(OPENAI_SCALE))
        self.logit_bias = nn.Parameter(torch.tensor(0.0)) if config.logit_bias else None

    def encode_pixels(self, x: Tensor) -> Tensor:
        return self.image_projection(self._features(x))

    def encode_dense(self, pixels: Tensor) -> Tensor:
        return self.image_projection.dense(self._features(self.pixel_input.unit_range(pixels)))

    def encode_dense_and_pooled(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.image_projection.dense_and_pooled(self._features(self.pixel_input.unit_range(pixels)))

    def encode_text(self, ids: Tensor) -> Tensor:
        return self.text(ids)

    def image_parts(self) -> tuple[nn.Module, ...]:
        return self.pixel_input, self.trunk, self.image_projection

    def checkpoint_gradients(self) -> None:
        super().checkpoint_gradients()
        self.text.checkpoint_gradients()

    def _features(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> [B, C, h, w]."""
        return self.trunk.forward_features(self.pixel_input(x))


class OpenClipDualEncoder(DualEncoder):
    """Any open_clip architecture behind the same doors, for fine-tuning."""

    def __init__(self, config: OpenClipConfig) -> None:
        super().__init__()
        self.clip = open_clip.create_model(config.architecture, pretrained=None)
        preprocess = self.clip.visual.preprocess_cfg
        self.pixel_input = PixelInput(tuple(preprocess["mean"]), tuple(preprocess["std"]))

    @property
    def logit_scale(self) -> nn.Parameter:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.clip.logit_scale

    @property
    def logit_bias(self) -> nn.Parameter | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.clip.logit_bias

    def encode_pixels(self, x: Tensor) -> Tensor:
        return self.clip.encode_image(self.pixel_input(x))

    def encode_text(self, ids: Tensor) -> Tensor:
        # open_clip takes whole rows only; what stands behind the end of a causal text changes nothing.
        missing = self.clip.context_length - ids.shape[1]
        return self.clip.encode_text(nn.functional.pad(ids, (0, missing)) if missing > 0 else ids)

    def image_parts(self) -> tuple[nn.Module, ...]:
        return self.pixel_input, self.clip.visual

    def checkpoint_gradients(self) -> None:
        super().checkpoint_gradients()
        trunk = getattr(self.clip.visual, "trunk", None)
        try:
            if trunk is not None:  # open_clip hides that a trunk of timm's refuses
                trunk.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:
            raise ValueError(f"run.gradient_checkpointing: timm's {type(trunk).__name__} does not offer it") from error
        self.clip.set_grad_checkpointing(True)


def pooling_head(image: ImageTowerConfig, *, channels: int, embed_dim: int) -> MeanHead | FlatHead | AttentionHead:
    """What turns a trunk's features into vectors."""
    grid = image.size_px // TOTAL_STRIDE
    if image.pool == "mean":
        return MeanHead(channels, embed_dim, dropout=image.dropout)
    if image.pool == "flat":
        return FlatHead(channels, embed_dim, grid=grid, dropout=image.dropout)
    return AttentionHead(channels, embed_dim, grid=grid, heads=4, dropout=image.dropout)
