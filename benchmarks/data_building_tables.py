"""Tables and the plot of docs/data-building.md."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.marked import ROOT

PAGE = ROOT / "docs" / "data-building.md"
PLOT = ROOT / "docs" / "pictures" / "data-building.png"
BANDS = ("frequent", "middle", "rare")


def bands(values: Sequence[float]) -> list[float]:
    """Means of the frequent, the middle and the rare third."""
    return [float(np.mean(part)) for part in np.array_split(np.asarray(values, dtype=np.float64), len(BANDS))]
