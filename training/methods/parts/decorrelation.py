"""A penalty on what scores of neutral texts say of a group: a loss term beside the contrastive loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from training.losses import group_covariance, unit
from training.method import Context
from training.models.towers import DualEncoder
from training.options import Options


class DecorrelationOptions(Options):
    """group: the label column of what scores must not tell. queries: texts that name no group. weight: of the term.

    within: a label column; groups are compared among pictures of one such label, so that a label which is rarer in one
    group may still be found less often there. None: among all pictures.
    """

    group: str
    queries: tuple[str, ...] = Field(min_length=1)
    weight: float = Field(gt=0)
    within: str | None = None


class Decorrelation:
    """`group_covariance` of the cosines between pictures and the queries; both towers get its gradient."""

    def __init__(self, options: DecorrelationOptions, context: Context) -> None:
        """Raises:
        ValueError: no such label column, or fewer than two groups.
        """
        groups = _numbers(context.source.labels(options.group))
        if groups.max() < 1:
            raise ValueError(
                f"decorrelation: the label {options.group!r} of the training rows has fewer than two values"
            )
        within = torch.zeros_like(groups) if options.within is None else _numbers(context.source.labels(options.within))
        self._groups, self._classes = groups.to(context.device), within.to(context.device)
        ids = context.tokenizer.pad([context.tokenizer.encode(query) for query in options.queries])
        self._ids, self._weight = torch.from_numpy(ids).to(context.device), options.weight

    def penalty(self, model: DualEncoder, image: Tensor, rows: Tensor) -> Tensor:
        """A scalar, weighted. image: unit vectors [B, D]; rows: int64 [B], numbers of training rows."""
        queries = unit(model.encode_text(self._ids))
        return self._weight * group_covariance(image @ queries.T, self._groups[rows], self._classes[rows])


def _numbers(labels: Sequence[str | None]) -> Tensor:
    """int64 [n]: values by their order; -1 where there is none."""
    at = {value: number for number, value in enumerate(sorted({value for value in labels if value is not None}))}
    return torch.tensor([-1 if value is None else at[value] for value in labels])
