# pyright: basic, reportMissingImports=false
"""pandas: a data frame with a column of vectors; so for Dask's `map_partitions` and Spark's `mapInPandas`.

from clipworks.batch import Embedder
from clipworks.integrations.pandas import embed_frame

frame = embed_frame(frame, Embedder("everyday-small", column="file"))
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas

from clipworks.batch import ADDED, ColumnEmbedder


def embed_frame(frame: pandas.DataFrame, embedder: ColumnEmbedder) -> pandas.DataFrame:
    """A copy with the columns vector (an array in each row, None where there is none), error, space and fingerprint.

    Raises:
        ValueError: as `clipworks.batch.Embedder.__call__`.
    """
    columns: Any = frame
    called = embedder(columns)
    vectors: list[Any] = [None if error else row for row, error in zip(called["vector"], called["error"], strict=True)]
    added = {name: pandas.Series(called[name], index=frame.index, dtype=object) for name in ADDED[1:]}
    return frame.assign(vector=pandas.Series(vectors, index=frame.index, dtype=object), **added)


def matrix(frame: pandas.DataFrame) -> np.ndarray:
    """The vectors, float32 [n, dim], of the rows that have one: those of `frame[frame.error == ""]`."""
    rows = list(frame.loc[frame["error"] == "", "vector"])
    return np.stack(rows).astype(np.float32) if rows else np.empty((0, 0), dtype=np.float32)
