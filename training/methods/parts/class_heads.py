"""Class heads: logits of unit image vectors, the arrays that a checkpoint keeps, and the graph that is served."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from evaluation.metrics import class_mean_accuracy, majority_share, mean_estimate
from training.exporting.derived_graphs import HeadSource, linear_head

F32, F64, I64 = NDArray[np.float32], NDArray[np.float64], NDArray[np.int64]
Knob = TypeVar("Knob", float, tuple[float, float])


@dataclass(frozen=True, kw_only=True)
class ClassHead(ABC):
    """Logits [n, C] of unit image vectors [n, D].

    A subclass is a frozen dataclass whose fields are float32 arrays and nothing else: a checkpoint keeps them by name,
    and `read` makes the head again. They hold logits = vectors @ weight [D, C] + bias [C], and what is added to those.
    """

    weight: F32
    bias: F32

    def __post_init__(self) -> None:
        """Raises:
        ValueError: the arrays do not fit together.
        """
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[1:]:
            raise ValueError(f"weight {self.weight.shape} and bias {self.bias.shape} differ")

    @abstractmethod
    def __call__(self, vectors: NDArray[np.floating]) -> F32:
        """Logits [n, C] of unit vectors [n, D]."""

    @abstractmethod
    def module(self) -> nn.Module:
        """The same in torch, in eval mode and fp32: unit vectors [B, D] -> logits [B, C]."""

    def source(self, labels: Sequence[str]) -> HeadSource:
        """As it is exported; `labels` names the columns."""
        return HeadSource(module=self.module(), labels=tuple(labels))

    def arrays(self) -> dict[str, F32]:
        """What a checkpoint keeps."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True, kw_only=True)
class LinearHead(ClassHead):
    """logits [n, C] = unit image vectors [n, D] @ weight [D, C] + bias [C]."""

    def __call__(self, vectors: NDArray[np.floating]) -> F32:
        return vectors.astype(np.float32) @ self.weight + self.bias

    def module(self) -> nn.Module:
        return self.source([str(at) for at in range(len(self.bias))]).module

    def source(self, labels: Sequence[str]) -> HeadSource:
        return linear_head(self.weight.T, self.bias, labels)


def read(kinds: Sequence[type[ClassHead]], arrays: Mapping[str, F32], *, labels: Sequence[str]) -> ClassHead:
    """The head that these arrays are: the one of `kinds` whose fields they are.

    Raises:
        ValueError: none of them has just these arrays, or they do not fit together or with the labels.
    """
    for kind in kinds:
        if {each.name for each in fields(kind)} == set(arrays):
            head = kind(**arrays)
            if len(head.bias) != len(labels):
                raise ValueError(f"weight {head.weight.shape}, bias {head.bias.shape} and {len(labels)} labels differ")
            return head
    raise ValueError(f"arrays {sorted(arrays)} are none of {', '.join(kind.__name__ for kind in kinds)}")


def accuracy(head: ClassHead, vectors: NDArray[np.floating], truth: I64) -> float:
    return float((head(vectors).argmax(axis=1) == truth).mean())


def judge_head(head: ClassHead, vectors: NDArray[np.floating], truth: I64) -> dict[str, Any]:
    """Accuracy with its interval, averaged over classes, and its floors; unit vectors [n, D], truth in [0, C)."""
    return judge_predictions(head(vectors).argmax(axis=1), truth, classes=len(head.bias))


def judge_predictions(predicted: I64, truth: I64, *, classes: int) -> dict[str, Any]:
    """As `judge_head`, of the classes that were named: int64 [n] in [0, classes)."""
    return {
        "accuracy": asdict(mean_estimate(predicted == truth)),
        "class_mean": class_mean_accuracy(predicted, truth),
        "majority": majority_share(truth),
        "chance": 1 / classes,
        "classes": classes,
    }


def best_of(found: Mapping[Knob, float]) -> Knob:
    """The knob of the largest number, the smallest knob of equals; of several knobs the first counts first."""
    return max(sorted(found), key=lambda knob: found[knob])
