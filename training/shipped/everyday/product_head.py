"""The head for products and the gate that opens it: one linear map of the features of all stages, trained by steps.

A step takes products with their titles or with colour and kind, and beside them parts of photographs, things in their
boxes, drawn scenes and classes: what the gate is to stay shut for, and what the head is to know all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, normalize, softplus

from training.config import OptimConfig
from training.loop import rate_at
from training.losses import info_nce

F32 = NDArray[np.float32]
_PHOTOGRAPHS, _THINGS, _SCENES, _CLASSES = 40, 24, 48, 96  # of a step
_CLASS_NOISE = 0.3
_ATTRIBUTES, _GATE = 0.7, 2.0  # weights of their losses
_TITLES = 0.7  # of the products; the others are called by colour and kind
_GATE_START = -2.0
_SCALE_START = 20.0


@dataclass(frozen=True)
class ShownPictures:
    """Pictures ready for the head: standardised features [n, F], and what the model says without it, unit [n, D]."""

    features: F32
    base: F32

    def __getitem__(self, rows: NDArray[np.int64]) -> ShownPictures:
        return ShownPictures(self.features[rows], self.base[rows])


@dataclass(frozen=True)
class Told:
    """Pictures of one kind. texts: for each, the unit vectors [m, D] of what may be said of it; group: which of them
    show the same, so that none is another's negative."""

    shown: ShownPictures
    texts: Sequence[F32]
    group: NDArray[np.int64]


@dataclass(frozen=True)
class Products:
    """titles [n, D]; named: as of Told, for products whose kind is known, else the title. colours, kinds: class of
    each, -1 for none, and the unit vectors of the classes [K, D]."""

    shown: ShownPictures
    titles: F32
    named: Sequence[F32]
    colours: NDArray[np.int64]
    colour_vectors: F32
    kinds: NDArray[np.int64]
    kind_vectors: F32


@dataclass(frozen=True)
class TrainingSet:
    """photographs: parts of each photograph lie one after the other; reduced: the same for thumbnails."""

    products: Products
    photographs: Told
    reduced: ShownPictures
    things: Told
    scenes: Told
    classes: Told


class ProductHead(nn.Module):
    """Standardised features [B, F] -> head vectors [B, D] and gate [B, 1], before the sigmoid."""

    def __init__(self, inputs: int, dim: int, *, high: float, drop: float) -> None:
        super().__init__()
        self.linear, self.gate = nn.Linear(inputs, dim), nn.Linear(inputs, 1)
        nn.init.normal_(self.linear.weight, std=2e-4)
        nn.init.zeros_(self.linear.bias)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, _GATE_START)
        self.log_scale = nn.Parameter(torch.tensor(math.log(_SCALE_START)))
        self.high, self.drop = high, drop

    def forward(self, shown: ShownPictures) -> tuple[Tensor, Tensor, Tensor]:
        """Image vectors of length 1, the head's own of length 1, gates."""
        x = torch.from_numpy(shown.features)
        gate = self.gate(x)
        own = normalize(self.linear(dropout(x, self.drop, self.training)), dim=1)
        return normalize(torch.from_numpy(shown.base) + self.high * gate.sigmoid() * own, dim=1), own, gate


def train_product_head(
    data: TrainingSet, optim: OptimConfig, *, high: float, drop: float, seed: int, say: Callable[[str], None]
) -> ProductHead:
    """The head after `optim.steps` steps of AdamW, in eval mode."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    features, dim = data.products.shown.features.shape[1], data.products.titles.shape[1]
    head = ProductHead(features, dim, high=high, drop=drop)
    matrices = [p for p in head.parameters() if p.ndim > 1]
    vectors = [p for p in head.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=optim.rate, betas=optim.betas, eps=optim.epsilon)
    for step in range(optim.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, optim)
        losses = _losses(head, data, rng, products=optim.batch_size)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(head.parameters(), optim.clip_norm)
        optimizer.step()
        if (step + 1) % 100 == 0:
            say(f"step {step + 1}: " + ", ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items()))
    return head.eval()


def _losses(head: ProductHead, data: TrainingSet, rng: np.random.Generator, *, products: int) -> dict[str, Tensor]:
    shop = data.products
    picked = _picked(len(shop.titles), products, rng)
    texts = [shop.titles[row] if rng.random() < _TITLES else _any(shop.named[row], rng) for row in picked]
    image, _, gate = head(shop.shown[picked])
    scale = head.log_scale.exp()
    losses = {"products": _contrast(image, np.stack(texts), _same_texts(texts), scale)}
    for name, classes, known in (
        ("colours", shop.colours, shop.colour_vectors),
        ("kinds", shop.kinds, shop.kind_vectors),
    ):
        logits = scale * image @ torch.from_numpy(known).T
        losses[name] = _ATTRIBUTES * cross_entropy(logits, torch.from_numpy(classes[picked]), ignore_index=-1)

    others, said, groups, photographs, classes = _others(data, rng)
    image, own, shut = head(others)
    same = (groups[:, None] == groups[None]) | _same_texts(list(said))
    losses["others"] = _contrast(image, said, same, scale)
    # What the head says of photographs is right as well, should the gate be open; the gate is not asked about scenes.
    losses["head"] = (1 - (own[:photographs] * torch.from_numpy(said[:photographs])).sum(dim=1)).mean()
    shut = torch.cat([shut[:photographs], shut[len(shut) - classes :]])
    losses["gate"] = _GATE * (softplus(shut).mean() + softplus(-gate).mean())
    return losses


def _others(data: TrainingSet, rng: np.random.Generator) -> tuple[ShownPictures, F32, NDArray[np.int64], int, int]:
    """Pictures, a text vector of each, its group; how many show photographs and what is in them, which come first, and
    how many are classes, which come last."""
    picked = _picked(len(data.photographs.texts), _PHOTOGRAPHS, rng)
    photographs = len(picked)
    parts = _parts(data.photographs.shown, len(data.photographs.texts), picked, rng)
    small = _parts(data.reduced, len(data.photographs.texts), picked, rng)
    thumbnail = (rng.random(photographs) < 0.5)[:, None]
    shown = [ShownPictures(*(np.where(thumbnail, getattr(small, n), getattr(parts, n)) for n in ("features", "base")))]
    texts = [_any(data.photographs.texts[row], rng) for row in picked]
    groups, offset = [data.photographs.group[picked]], int(data.photographs.group.max()) + 1
    for told, count in ((data.things, _THINGS), (data.scenes, _SCENES), (data.classes, _CLASSES)):
        rows = _picked(len(told.texts), count, rng)
        shown.append(told.shown[rows])
        texts += [_any(told.texts[row], rng) for row in rows]
        groups.append(told.group[rows] + offset)
        offset += int(told.group.max()) + 1
    noise = _CLASS_NOISE * rng.standard_normal(shown[-1].features.shape)
    shown[-1] = ShownPictures((shown[-1].features + noise).astype(np.float32), shown[-1].base)
    together = ShownPictures(*(np.concatenate([getattr(each, n) for each in shown]) for n in ("features", "base")))
    photographs += len(groups[1])
    return together, np.stack(texts), np.concatenate(groups), photographs, len(groups[-1])


def _parts(
    shown: ShownPictures, photographs: int, picked: NDArray[np.int64], rng: np.random.Generator
) -> ShownPictures:
    """A random part of each picked photograph."""
    each = len(shown.features) // photographs
    return shown[picked * each + rng.integers(each, size=len(picked))]


def _picked(of: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`count` different ones, or all."""
    return rng.permutation(of)[:count]


def _any(texts: F32, rng: np.random.Generator) -> F32:
    return texts[rng.integers(len(texts))]


def _same_texts(texts: Sequence[F32]) -> NDArray[np.bool_]:
    keys = np.unique([text.tobytes() for text in texts], return_inverse=True)[1]
    return keys[:, None] == keys[None]


def _contrast(image: Tensor, texts: F32, same: NDArray[np.bool_], scale: Tensor) -> Tensor:
    return info_nce(image, torch.from_numpy(texts), scale, torch.from_numpy(same))
