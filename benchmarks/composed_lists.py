"""Lists that do not repeat themselves: MMR and the folding of near-duplicates, for benchmarks/composed.py."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from benchmarks.composed_data import ComposedEncoder, Gallery
from benchmarks.composed_judge import difference, interval

F64 = NDArray[np.float64]
POOL, TOP = 100, 10
LAMBDAS = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3)
SCALES = ("as they are", "relevance 0 to 1 in the pool", "both 0 to 1 in the pool")
FOLDS = (0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995)
SHARE = 0.05


def mmr(relevance: F64, similar: F64, *, balance: float, top: int = TOP) -> list[int]:
    """Places of `top` candidates by maximal marginal relevance (Carbonell and Goldstein, 1998).

    relevance [n], similar [n, n]; balance: their lambda, 1 is relevance alone.
    """
    chosen = [int(np.argmax(relevance))]
    nearest = similar[chosen[0]].copy()
    left = np.ones(len(relevance), dtype=bool)
    left[chosen[0]] = False
    while len(chosen) < min(top, len(relevance)):
        worth = np.where(left, balance * relevance - (1 - balance) * nearest, -np.inf)
        best = int(np.argmax(worth))
        chosen.append(best)
        left[best] = False
        nearest = np.maximum(nearest, similar[best])
    return chosen


def diversity(gallery: Gallery, encoder: ComposedEncoder, names: Sequence[str]) -> dict[str, Any]:
    """Scale -> lambda -> means over the names, asked as texts: P@10, distinct (article, colour), mean cosine inside."""
    vectors = gallery.unit
    texts = encoder.texts(names)
    found: dict[str, Any] = {}
    plain: dict[str, F64] = {}
    for scale in SCALES:
        found[scale] = {}
        for balance in LAMBDAS:
            rows: dict[str, list[float]] = {"P@10": [], "distinct": [], "cosine inside": []}
            for name, text in zip(names, texts, strict=True):
                cosines = vectors @ text
                pool = np.argsort(-cosines, kind="stable")[:POOL]
                relevance, similar = cosines[pool], vectors[pool] @ vectors[pool].T
                if scale != SCALES[0]:
                    relevance = (relevance - relevance.min()) / np.ptp(relevance)
                if scale == SCALES[2]:
                    similar = (similar - similar.min()) / (1 - similar.min())
                best = pool[mmr(relevance, similar, balance=balance)]
                inside = vectors[best] @ vectors[best].T
                rows["P@10"].append(float(gallery.labels[name][best].mean()))
                rows["distinct"].append(float(len({gallery.kinds[i] for i in best})))
                rows["cosine inside"].append(float(inside[np.triu_indices(len(best), 1)].mean()))
            values = {key: np.array(row) for key, row in rows.items()}
            plain = plain or values
            found[scale][str(balance)] = {
                key: {
                    "value": float(row.mean()),
                    "interval": interval(row, names),
                    "to_plain": difference(row, plain[key], names),
                }
                for key, row in values.items()
            }
    return found


def _saved(picture: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


def _cropped(picture: Image.Image, share: float) -> Image.Image:
    """Without `share` of each side's length, half of it at either end."""
    dx, dy = round(picture.width * share / 2), round(picture.height * share / 2)
    return picture.crop((dx, dy, picture.width - dx, picture.height - dy))


COPIES: Mapping[str, Callable[[Image.Image], bytes]] = {
    "JPEG quality 50": lambda picture: _saved(picture, 50),
    "JPEG quality 20": lambda picture: _saved(picture, 20),
    "half the size": lambda picture: _saved(picture.resize((picture.width // 2, picture.height // 2)), 90),
    "crop 5 %": lambda picture: _saved(_cropped(picture, 0.05), 90),
    "crop 15 %": lambda picture: _saved(_cropped(picture, 0.15), 90),
    "brightness +15 %": lambda picture: _saved(ImageEnhance.Brightness(picture).enhance(1.15), 90),
    "mirrored": lambda picture: _saved(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 90),
}


def folding(gallery: Gallery, encoder: ComposedEncoder, folder: Path, *, share: float = SHARE) -> dict[str, Any]:
    """Threshold -> recall of copies by kind, and what else is folded: other pictures that have one as near.

    Of products of equal title, or of equal article and colour, a near one is counted apart: it may be a copy.
    """
    order = sorted(range(len(gallery.names)), key=lambda i: hashlib.sha256(gallery.names[i].encode()).hexdigest())
    chosen = order[: max(1, round(share * len(order)))]
    vectors = gallery.unit
    pictures = [Image.open(folder / gallery.names[i]).convert("RGB") for i in chosen]
    near: dict[str, F64] = {}
    for kind, change in COPIES.items():
        raw = encoder.pictures([change(picture) for picture in pictures]).astype(np.float64)
        near[kind] = (raw / np.linalg.norm(raw, axis=1, keepdims=True) * vectors[chosen]).sum(axis=1)
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -1.0)
    different = similar.copy()
    if gallery.titles:
        titles, kinds = np.array(gallery.titles), np.array(["|".join(kind) for kind in gallery.kinds])
        different = np.where(titles[:, None] == titles[None, :], -1.0, similar)
        unlike = np.where(kinds[:, None] == kinds[None, :], -1.0, different)
    else:
        unlike = different
    return {
        "pictures": len(gallery.names),
        "copied": len(chosen),
        "thresholds": {
            str(threshold): {
                "recall": {kind: float((values >= threshold).mean()) for kind, values in near.items()},
                "any other": float((similar.max(axis=1) >= threshold).mean()),
                "another title": float((different.max(axis=1) >= threshold).mean()),
                "another article or colour": float((unlike.max(axis=1) >= threshold).mean()),
            }
            for threshold in FOLDS
        },
    }
