"""Inputs that encoders are measured on: the golden pictures and texts, then those of the calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.golden import GOLDEN_TEXTS, prepared_goldens
from model_store.manifest import ImageSpec
from model_store.modality.text import Tokenizer
from model_store.precisions.calibration import Calibration
from model_store.precisions.measure import MeasuredRows


def measured_pictures(spec: ImageSpec, calibration: Calibration) -> MeasuredRows:
    """Pixels uint8 [N, H, W, 3]."""
    return MeasuredRows(padded=np.concatenate([prepared_goldens(spec), calibration.pixels]))


def measured_texts(tokenizer: Tokenizer, calibration: Calibration) -> MeasuredRows:
    """Ids int64 [M, context length], with the lengths at which padding may be cut."""
    token_rows = [*(tokenizer.encode(text) for text in GOLDEN_TEXTS), *calibration.rows]
    lengths = tuple(len(row) for row in token_rows) if tokenizer.spec.dynamic_length else None
    return MeasuredRows(padded=tokenizer.pad(token_rows, tokenizer.spec.context_length), lengths=lengths)


def calibration_texts(rows: MeasuredRows) -> list[NDArray[Any]]:
    """Of `measured_texts`, the batches of one row that int8 ranges are taken from: not the golden ones."""
    return [rows.batch([index]) for index in range(len(GOLDEN_TEXTS), len(rows.padded))]
