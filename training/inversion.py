"""Inversion of one modality through the frozen tower of the other, offline: seconds a query, never for serving.

Mistretta et al., 2025, "Cross the Gap": `oti` finds a pseudo-word whose prompt has the vector of a picture, `ovi` a few
pseudo-patches whose picture has the vector of a text, so that a search inside one modality becomes one across both. The
recipes are theirs (learning rate, steps, weight decay, 1 - cosine, N(0, 0.02) at first). Rows are optimised together,
and none depends on another.
"""

# torch gives every submodule the type Tensor | Module; open_clip builds on that.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from model_store.modality.text import Tokenizer
from training.checkpoint import LoadedModel
from training.losses import unit
from training.methods.parts.deep_prompts import replaced
from training.methods.parts.token_reader import TokenReader, token_reader
from training.models.towers import DualEncoder, OpenClipDualEncoder, SmallDualEncoder
from training.models.trunks import TOTAL_STRIDE, VitTrunk

TEMPLATE = "a photo of {}"
START_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How pseudo-tokens are optimised with AdamW; the defaults are those of OTI, `OVI` those of OVI."""

    steps: int = 150
    rate: float = 2e-2
    weight_decay: float = 0.01
    seed: int = 42


OVI = Descent(steps=1000)


@dataclass(frozen=True, kw_only=True)
class Inverted:
    """vectors [N, D]: un-normalised, of the other tower. tokens [N, n, W]. losses [steps + 1]: the mean of 1 - cosine
    before each step and after the last one.
    """

    vectors: Tensor
    tokens: Tensor
    losses: Tensor


def oti(
    base: LoadedModel,
    targets: Tensor,
    *,
    words: int = 1,
    template: str = TEMPLATE,
    start: Tensor | None = None,
    descent: Descent | None = None,
) -> Inverted:
    """Text vectors that come as near to image vectors `targets` [N, D] as `words` pseudo-words allow each.

    start [N, words, W]: token embeddings to begin with instead of noise.

    Raises:
        ValueError: a text tower without a transformer, or a template that has not one {} or no room for the words.
    """
    model = base.model
    if isinstance(model, SmallDualEncoder) and model.text.pool == "bag":
        raise ValueError(
            'pool = "bag" adds token vectors up, so a pseudo-word is had without a search: the vector that is missing '
            "from the sum gives the target itself, and a search with it is the search that there was"
        )
    reader = token_reader(model).eval()
    encode, width = prompt_of(reader, base.tokenizer, template=template, words=words)
    return _inverted(encode, targets, (words, width), start, descent or Descent())


def ovi(
    base: LoadedModel,
    targets: Tensor,
    *,
    patches: int = 1,
    start: Tensor | None = None,
    descent: Descent = OVI,
) -> Inverted:
    """Image vectors that come as near to text vectors `targets` [N, D] as `patches` pseudo-patches allow each.

    They stand where the embedded patches of a picture would, each of them repeated over its share of the grid in
    reading order. start [N, patches, W]: what to begin with instead of noise.

    Raises:
        ValueError: an image tower that is no ViT of known layers.
    """
    spec = base.info.image_spec
    encode, width, places = patched(base.model, height_px=spec.height_px, width_px=spec.width_px)
    if not 1 <= patches <= places:
        raise ValueError(f"{patches} pseudo-patches for a grid of {places} places")
    return _inverted(encode, targets, (patches, width), start, descent)


def prompt_of(
    reader: TokenReader, tokenizer: Tokenizer, *, template: str, words: int
) -> tuple[Callable[[Tensor], Tensor], int]:
    """(token embeddings [N, words, W] of what stands for {} -> [N, D], W).

    Raises:
        ValueError: the template has not one {}, or no room.
    """
    before, slot, after = template.partition("{}")
    if not slot or "{}" in after:
        raise ValueError(f"template {template!r}: expected one {{}}")
    left, right = tokenizer.encode(before)[:-1], tokenizer.encode(after)[1:]
    length = len(left) + words + len(right)
    if length > reader.context_length:
        raise ValueError(f"{words} words in {template!r} are {length} tokens, the tower reads {reader.context_length}")
    # What stands in the places of the words is never read.
    ids = torch.tensor([[*left, *[left[0]] * words, *right]], device=next(reader.parameters()).device)
    with torch.no_grad():
        frame = reader.token_embedding(ids)
    end = torch.tensor([length - 1], device=ids.device)

    def encode(tokens: Tensor) -> Tensor:
        count = len(tokens)
        whole = frame.expand(count, -1, -1)
        text = torch.cat([whole[:, : len(left)], tokens, whole[:, len(left) + words :]], dim=1)
        return reader.read(text, end.expand(count))

    return encode, frame.shape[-1]


def patched(model: DualEncoder, *, height_px: int, width_px: int) -> tuple[Callable[[Tensor], Tensor], int, int]:
    """(embedded patches [N, n, W], spread over the grid of a picture -> [N, D], W, places of that grid).

    Raises:
        ValueError: an image tower that is no ViT of known layers.
    """
    if isinstance(model, SmallDualEncoder) and isinstance(model.trunk, VitTrunk):
        rows, columns, width = height_px // TOTAL_STRIDE, width_px // TOTAL_STRIDE, model.trunk.num_features
        trunk = replaced(model.trunk, patches=nn.Identity())

        def read(grid: Tensor) -> Tensor:
            return model.image_projection(trunk.forward_features(grid))

    elif isinstance(model, OpenClipDualEncoder) and isinstance(model.clip.visual, VisionTransformer):
        visual = model.clip.visual
        (rows, columns), width = visual.grid_size, visual.conv1.out_channels
        read = replaced(visual, conv1=nn.Identity())
    else:
        tower = getattr(model, "trunk", None) or getattr(getattr(model, "clip", model), "visual", model)
        raise ValueError(
            f"pseudo-patches stand behind the patch embedding of a ViT; the image tower {type(tower).__name__} is "
            "convolutional, or not known here, and has no such place"
        )

    def encode(tokens: Tensor) -> Tensor:
        grid = nn.functional.interpolate(tokens.transpose(1, 2), size=rows * columns, mode="nearest")
        return read(grid.unflatten(2, (rows, columns)))

    return encode, width, rows * columns


def _inverted(
    encode: Callable[[Tensor], Tensor],
    targets: Tensor,
    shape: tuple[int, int],
    start: Tensor | None,
    descent: Descent,
) -> Inverted:
    count, goal = len(targets), unit(targets.detach().float())
    generator = torch.Generator().manual_seed(descent.seed)
    first = START_STD * torch.randn(count, *shape, generator=generator) if start is None else start
    if first.shape != (count, *shape):
        raise ValueError(f"start is {list(first.shape)}, expected {[count, *shape]}")
    tokens = nn.Parameter(first.detach().clone().to(goal.device))
    optimizer = torch.optim.AdamW([tokens], lr=descent.rate, weight_decay=descent.weight_decay)
    losses: list[Tensor] = []
    with torch.enable_grad():
        for _ in range(descent.steps):
            away = 1 - (unit(encode(tokens)) * goal).sum(dim=1)
            losses.append(away.detach().mean())
            # Summed, so that a row's gradient is its own, whatever the company.
            (tokens.grad,) = torch.autograd.grad(away.sum(), [tokens])
            optimizer.step()
    with torch.no_grad():
        vectors = encode(tokens)
        losses.append((1 - (unit(vectors) * goal).sum(dim=1)).mean())
    return Inverted(vectors=vectors, tokens=tokens.detach(), losses=torch.stack(losses).cpu())
