"""Numbers of a table's split, embedded as the artifact will embed it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.fashion import fashion_report
from evaluation.retrieval import retrieval
from training.data.families import has_kin
from training.data.rows import Row
from training.encoder import TorchEncoder


def table_report(
    encoder: TorchEncoder,
    *,
    rows: Sequence[Row],
    pixels: NDArray[np.uint8],
    training: Sequence[Row],
    report: Literal["retrieval", "fashion"],
) -> dict[str, Any]:
    """Retrieval, and for product photographs naming too; `pixels` uint8 [N, H, W, 3] are the rows' pictures.

    training: the rows that were trained on; products without a relative there are reported apart.
    """
    images, titles = encoder.encode_prepared(pixels), [row.caption for row in rows]
    if report == "retrieval":
        found = retrieval(images, encoder.encode_texts(titles), titles, pictures=[row.image for row in rows])
        return {"all": {name: asdict(value) for name, value in found.items()}}
    return fashion_report(
        images,
        encoder.encode_texts,
        titles,
        [row.labels["baseColour"] for row in rows],
        training_titles=frozenset(row.caption.casefold() for row in training),
        kin_in_training=has_kin(rows, training),
        templates=encoder.templates or ("{}",),
    )
