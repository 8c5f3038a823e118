"""Answers of /localize as results: arrays where numpy is there, lists where it is not, PNG and masks as they came."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from clipworks import results, schemas


def located(answer: schemas.Localization) -> results.Located:
    """One picture. Raises ValueError when a heatmap does not have the size it says."""
    return results.Located(width=answer.width, height=answer.height, labels=[_label(each) for each in answer.labels])


def _label(answer: schemas.LabelLocation) -> results.LocatedLabel:
    return results.LocatedLabel(
        label=answer.label,
        score=answer.score,
        present=answer.present,
        boxes=[_box(each) for each in answer.boxes],
        heatmap=None if answer.heatmap is None else _heatmap(answer.heatmap),
        weak=answer.weak,
    )


def _box(answer: schemas.Box) -> results.Box:
    rle = answer.mask
    mask = None if rle is None else results.Mask(height=rle.size[0], width=rle.size[1], counts=rle.counts)
    return results.Box(x0=answer.x0, y0=answer.y0, x1=answer.x1, y1=answer.y1, score=answer.score, mask=mask)


def _heatmap(answer: schemas.HeatmapArray | schemas.HeatmapPng) -> results.Heatmap:
    if isinstance(answer, schemas.HeatmapPng):
        try:
            png = base64.b64decode(answer.png, validate=True)
        except binascii.Error as error:
            raise ValueError("a heatmap is not base64") from error
        return results.Heatmap(values=None, png=png, low=answer.low, high=answer.high)
    if len(answer.values) != answer.rows or any(len(row) != answer.columns for row in answer.values) or not answer.rows:
        raise ValueError(f"a heatmap does not have {answer.rows} x {answer.columns} values")
    flat = [value for row in answer.values for value in row]
    return results.Heatmap(values=_array(answer.values), png=None, low=min(flat), high=max(flat))


def _array(values: list[list[float]]) -> Any:
    try:
        import numpy as np
    except ImportError:
        return values
    return np.array(values, dtype=np.float32)
