"""Tables of learned positions read at another grid, with shapes that may stay open in an exported graph."""

from __future__ import annotations

import torch
from torch import Tensor

_CUBIC_A = -0.75  # of torch's and OpenCV's bicubic
_TAPS = 2  # a cubic kernel reaches two cells to each side


def resample_grid(table: Tensor, grid: tuple[int, int], rows: int, columns: int) -> Tensor:
    """A table of positions [grid[0] * grid[1], C] read at rows x columns cells: [rows * columns, C].

    The same numbers as bicubic `torch.nn.functional.interpolate` without antialiasing, written as two products, so that
    rows and columns may be free axes of a graph. At the table's own grid it is the table itself, bit for bit.
    """
    cells = table.unflatten(0, grid)
    down, across = (
        cubic_weights(source, target, table.dtype) for source, target in zip(grid, (rows, columns), strict=True)
    )
    # [rows, H] x [H, W * C], then [columns, W] x [rows, W, C]
    tall = (down @ cells.flatten(1)).unflatten(1, (grid[1], -1))
    return (across @ tall).flatten(0, 1)


def cubic_weights(source: int, target: int, dtype: torch.dtype) -> Tensor:
    """Bicubic weights [target, source] of one axis (Keys, 1981, with a = -0.75), edges repeated."""
    centres = (torch.arange(target, dtype=dtype) + 0.5) * source / target - 0.5
    distance = (centres[:, None] - torch.arange(-_TAPS, source + _TAPS, dtype=dtype)).abs()
    near = ((_CUBIC_A + 2) * distance - (_CUBIC_A + 3)) * distance * distance + 1
    far = ((_CUBIC_A * distance - 5 * _CUBIC_A) * distance + 8 * _CUBIC_A) * distance - 4 * _CUBIC_A
    weights = torch.where(distance <= 1, near, torch.where(distance < _TAPS, far, torch.zeros_like(far)))
    if source == 1:
        return weights.sum(dim=1, keepdim=True)
    # What would be read beyond an edge is read at the edge.
    edge = _TAPS + 1
    first, last = weights[:, :edge].sum(dim=1, keepdim=True), weights[:, -edge:].sum(dim=1, keepdim=True)
    return torch.cat([first, weights[:, edge:-edge], last], dim=1)


def centre_distances(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Squared distances between cell centres, in cells: [rows * columns, rows * columns]."""
    row = torch.arange(rows, dtype=dtype)[:, None].expand(rows, columns).reshape(-1)
    column = torch.arange(columns, dtype=dtype).expand(rows, columns).reshape(-1)
    return (row[:, None] - row) ** 2 + (column[:, None] - column) ** 2
