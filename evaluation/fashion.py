"""Evaluation of a model of product photographs: its colours, its article types and its titles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from evaluation.retrieval import retrieval
from evaluation.zero_shot import EncodeTexts, class_matrix, zero_shot

MIN_PHOTOGRAPHS = 9
# Kind -> the spellings that end a title. The longest spelling that matches wins ("track pants" before "pants").
ARTICLE_TYPES: Mapping[str, tuple[str, ...]] = {
    "t-shirt": ("tshirt", "tshirts", "t-shirt", "t-shirts"),
    "shirt": ("shirt", "shirts"),
    "casual shoes": ("casual shoe", "casual shoes"),
    "sports shoes": ("sports shoe", "sports shoes"),
    "formal shoes": ("formal shoe", "formal shoes"),
    "kurta": ("kurta", "kurtas"),
    "top": ("top", "tops"),
    "sandals": ("sandal", "sandals"),
    "belt": ("belt", "belts"),
    "shorts": ("short", "shorts"),
    "watch": ("watch", "watches"),
    "jeans": ("jeans",),
    "sunglasses": ("sunglasses",),
    "handbag": ("handbag", "handbags"),
    "heels": ("heels",),
    "sweatshirt": ("sweatshirt", "sweatshirts"),
    "wallet": ("wallet", "wallets"),
    "sweater": ("sweater", "sweaters"),
    "socks": ("socks",),
    "flip flops": ("flip flops",),
    "trousers": ("trouser", "trousers"),
    "cap": ("cap", "caps"),
    "flats": ("flats",),
    "vest": ("vest", "vests"),
    "jacket": ("jacket", "jackets"),
    "track pants": ("track pants",),
    "tie": ("tie", "ties"),
    "backpack": ("backpack", "backpacks"),
    "slippers": ("slipper", "slippers"),
}


def article_type(title: str) -> str | None:
    """The kind that a title's last words name, or None when they name none of ARTICLE_TYPES."""
    words = title.casefold().split()
    found: list[tuple[int, str]] = []
    for kind, spellings in ARTICLE_TYPES.items():
        for spelling in spellings:
            tail = spelling.split()
            if words[-len(tail) :] == tail:
                found.append((len(tail), kind))
    return max(found)[1] if found else None


def fashion_report(
    images: NDArray[np.floating],
    encode_texts: EncodeTexts,
    titles: Sequence[str],
    colours: Sequence[str],
    *,
    training_titles: frozenset[str] = frozenset(),
    kin_in_training: NDArray[np.bool_] | None = None,
    templates: Sequence[str] = ("{}",),
) -> dict[str, object]:
    """Retrieval, colour and article-type numbers of rows, over all of them and over those with an unseen title.

    `images` [N, D] belong to `titles` and `colours`; `training_titles` are case-folded. kin_in_training, bool [N]: who
    has a near relative among the training rows; the others are a third set, "unseen_family". A colour counts when
    MIN_PHOTOGRAPHS rows show it. The class list and the gallery are the same for all sets of rows.
    """
    texts = encode_texts(list(titles))
    unseen = np.array([title.casefold() not in training_titles for title in titles])
    frequent = {colour for colour, count in Counter(colours).items() if count >= MIN_PHOTOGRAPHS}
    tasks = {
        "colour": [colour.casefold() if colour in frequent else None for colour in colours],
        "type": [article_type(title) for title in titles],
    }
    report: dict[str, object] = {"rows": len(titles), "rows_with_unseen_title": int(unseen.sum())}
    subsets = {"all": np.ones(len(titles), dtype=bool), "unseen_title": unseen}
    if kin_in_training is not None:
        report["rows_with_unseen_family"] = int((~kin_in_training).sum())
        subsets["unseen_family"] = ~kin_in_training
    for subset, chosen in subsets.items():
        if not chosen.any():
            continue
        numbers: dict[str, object] = {k: asdict(v) for k, v in retrieval(images, texts, titles, queries=chosen).items()}
        for task, truths in tasks.items():
            labels = sorted({truth for truth in truths if truth is not None})
            index = np.array([labels.index(truth) if truth is not None else -1 for truth in truths])
            rows = chosen & (index >= 0)
            if rows.any():
                classes = class_matrix(encode_texts, labels, templates)
                numbers[task] = {**asdict(zero_shot(images[rows], index[rows], classes)), "classes": len(labels)}
        report[subset] = numbers
    return report
