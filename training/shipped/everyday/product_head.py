"""The head for products, the attention that it sees them by, and the gate that opens it, trained by steps.

A step takes products with their titles or with colour and kind, as they are or smaller and elsewhere, and beside them
parts of photographs, things in their boxes, drawn scenes and classes: what the gate is to stay shut for, and what the
head is to know all the same.
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

from training.losses import info_nce
from training.optimization import rate_at
from training.run_config import OptimConfig
from training.shipped.everyday.photograph_head import Scaling

F32 = NDArray[np.float32]
F16 = NDArray[np.float16]
_AS_THEY_ARE = 0.3  # of the products; the others are shown elsewhere
_PHOTOGRAPHS, _THINGS, _SCENES, _CLASSES = 64, 48, 48, 96  # of a step
_CLASS_NOISE = 0.3
_ATTRIBUTES, _GATE = 0.7, 2.0  # weights of their losses
_SHUT = 4.0  # what opening for a photograph weighs, beside not opening for a product
_TITLES = 0.7  # of the products; the others are called by colour and kind
_GATE_START = -2.0
_SCALE_START = 20.0


@dataclass(frozen=True)
class ShownPictures:
    """Pictures ready for the head: features of their squares [n, N, F], and what the model says without it, unit
    [n, D]."""

    squares: F16
    base: F32

    def __getitem__(self, rows: NDArray[np.int64]) -> ShownPictures:
        return ShownPictures(self.squares[rows], self.base[rows])

    @classmethod
    def joined(cls, parts: Sequence[ShownPictures]) -> ShownPictures:
        return cls(np.concatenate([part.squares for part in parts]), np.concatenate([part.base for part in parts]))


@dataclass(frozen=True)
class Told:
    """Pictures of one kind. texts: for each, the unit vectors [m, D] of what may be said of it; group: which of them
    show the same, so that none is another's negative."""

    shown: ShownPictures
    texts: Sequence[F32]
    group: NDArray[np.int64]


@dataclass(frozen=True)
class Products:
    """elsewhere: the same products in other pictures. titles [n, D]; named: as of Told, for products whose kind is
    known, else the title. colours, kinds: class of each, -1 for none, and the unit vectors of the classes [K, D].
    """

    shown: ShownPictures
    elsewhere: Sequence[ShownPictures]
    titles: F32
    named: Sequence[F32]
    colours: NDArray[np.int64]
    colour_vectors: F32
    kinds: NDArray[np.int64]
    kind_vectors: F32


@dataclass(frozen=True)
class TrainingSet:
    """photographs: parts of each photograph lie one after the other; reduced: the same for thumbnails. classes: their
    pictures have one square."""

    products: Products
    photographs: Told
    reduced: ShownPictures
    things: Told
    scenes: Told
    classes: Told


class ProductHead(nn.Module):
    """Features of squares [B, N, F] -> head vectors [B, D] and gate [B, 1], before the sigmoid."""

    def __init__(self, scaling: Scaling, dim: int, *, high: float, drop: float) -> None:
        super().__init__()
        inputs = len(scaling.mean)
        self.mean, self.deviation = torch.from_numpy(scaling.mean), torch.from_numpy(scaling.deviation)
        self.attention, self.linear, self.gate = nn.Linear(inputs, 1), nn.Linear(inputs, dim), nn.Linear(inputs, 1)
        nn.init.zeros_(self.attention.weight)
        nn.init.normal_(self.linear.weight, std=2e-4)
        nn.init.zeros_(self.linear.bias)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, _GATE_START)
        self.log_scale = nn.Parameter(torch.tensor(math.log(_SCALE_START)))
        self.high, self.drop = high, drop

    def forward(self, shown: ShownPictures) -> tuple[Tensor, Tensor, Tensor]:
        """Image vectors of length 1, the head's own of length 1, gates."""
        squares = (torch.from_numpy(np.asarray(shown.squares, dtype=np.float32)) - self.mean) / self.deviation
        x = (self.attention(squares).softmax(dim=1) * squares).sum(dim=1)
        x = dropout(x, self.drop, self.training)
        gate, own = self.gate(x), normalize(self.linear(x), dim=1)
        return normalize(torch.from_numpy(shown.base) + self.high * gate.sigmoid() * own, dim=1), own, gate


def train_product_head(
    data: TrainingSet,
    scaling: Scaling,
    optim: OptimConfig,
    *,
    high: float,
    drop: float,
    seed: int,
    say: Callable[[str], None],
) -> ProductHead:
    """The head after `optim.steps` steps of AdamW, in eval mode."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    head = ProductHead(scaling, data.products.titles.shape[1], high=high, drop=drop)
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
    shown, picked = _shown_products(shop, products, rng)
    texts = [shop.titles[row] if rng.random() < _TITLES else _any(shop.named[row], rng) for row in picked]
    image, _, gate = head(shown)
    scale = head.log_scale.exp()
    losses = {"products": _contrast(image, np.stack(texts), _same_texts(texts), scale)}
    for name, classes, known in (
        ("colours", shop.colours, shop.colour_vectors),
        ("kinds", shop.kinds, shop.kind_vectors),
    ):
        logits = scale * image @ torch.from_numpy(known).T
        losses[name] = _ATTRIBUTES * cross_entropy(logits, torch.from_numpy(classes[picked]), ignore_index=-1)

    others, said, groups, photographs, classes = _others(data, head.deviation.numpy(), rng)
    image, own, shut = head(others)
    same = (groups[:, None] == groups[None]) | _same_texts(list(said))
    losses["others"] = _contrast(image, said, same, scale)
    # What the head says of photographs is right as well, should the gate be open; the gate is not asked about scenes.
    losses["head"] = (1 - (own[:photographs] * torch.from_numpy(said[:photographs])).sum(dim=1)).mean()
    shut = torch.cat([shut[:photographs], shut[len(shut) - classes :]])
    losses["gate"] = _GATE * (_SHUT * softplus(shut).mean() + softplus(-gate).mean())
    return losses


def _shown_products(shop: Products, count: int, rng: np.random.Generator) -> tuple[ShownPictures, NDArray[np.int64]]:
    """`count` products, each in one of its pictures, and which they are."""
    ways = [shop.shown, *shop.elsewhere]
    picked = _picked(len(shop.titles), count, rng)
    way = np.where(rng.random(len(picked)) < _AS_THEY_ARE, 0, 1 + rng.integers(max(1, len(ways) - 1), size=len(picked)))
    way = np.sort(np.minimum(way, len(ways) - 1))
    return ShownPictures.joined([each[picked[way == at]] for at, each in enumerate(ways)]), picked


def _others(
    data: TrainingSet, noise: F32, rng: np.random.Generator
) -> tuple[ShownPictures, F32, NDArray[np.int64], int, int]:
    """Pictures, a text vector of each, its group; how many show photographs and what is in them, which come first, and
    how many are classes, which come last. noise: the deviation of the features."""
    picked = _picked(len(data.photographs.texts), _PHOTOGRAPHS, rng)
    photographs = len(picked)
    parts = _parts(data.photographs.shown, len(data.photographs.texts), picked, rng)
    small = _parts(data.reduced, len(data.photographs.texts), picked, rng)
    thumbnail = rng.random(photographs) < 0.5
    shown = [
        ShownPictures(
            np.where(thumbnail[:, None, None], small.squares, parts.squares),
            np.where(thumbnail[:, None], small.base, parts.base),
        )
    ]
    texts = [_any(data.photographs.texts[row], rng) for row in picked]
    groups, offset = [data.photographs.group[picked]], int(data.photographs.group.max()) + 1
    for told, count in ((data.things, _THINGS), (data.scenes, _SCENES), (data.classes, _CLASSES)):
        rows = _picked(len(told.texts), count, rng)
        some = told.shown[rows]
        shown.append(_with_noise(some, noise, parts.squares.shape[1], rng) if told is data.classes else some)
        texts += [_any(told.texts[row], rng) for row in rows]
        groups.append(told.group[rows] + offset)
        offset += int(told.group.max()) + 1
    photographs += len(groups[1])
    return ShownPictures.joined(shown), np.stack(texts), np.concatenate(groups), photographs, len(groups[-1])


def _with_noise(classes: ShownPictures, deviation: F32, squares: int, rng: np.random.Generator) -> ShownPictures:
    """Pictures of one square each, the features changed by chance, as pictures of so many equal ones."""
    noise = _CLASS_NOISE * deviation * rng.standard_normal(classes.squares.shape)
    return ShownPictures((classes.squares + noise).astype(np.float16).repeat(squares, axis=1), classes.base)


def _parts(
    shown: ShownPictures, photographs: int, picked: NDArray[np.int64], rng: np.random.Generator
) -> ShownPictures:
    """A random part of each picked photograph."""
    each = len(shown.base) // photographs
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
