"""Controls for class heads: zero-shot with one number more for each class, fitted on the same shots."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from training.methods.parts.class_heads import F32, F64, I64, ClassHead, LinearHead
from training.methods.parts.few_shot import HeadMethod, best

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def fitted_bias(logits: F32, truth: I64) -> F64:
    """The bias [C], of mean 0, that makes the right classes int64 [n] likeliest beside logits [n, C].

    It is finite where every class has a picture: the classes are then as frequent among the answers as in `truth`.
    """
    fixed, wanted = logits.astype(np.float64), np.bincount(truth, minlength=logits.shape[1]) / len(truth)

    def loss(bias: F64) -> tuple[float, F64]:
        shifted = fixed + bias
        value = float((np.asarray(logsumexp(shifted, axis=1)) - shifted[np.arange(len(truth)), truth]).mean())
        return value, softmax(shifted, axis=1).mean(axis=0) - wanted

    found = minimize(loss, np.zeros(len(wanted)), jac=True, method="L-BFGS-B").x
    return found - found.mean()


def mean_removed(zero_shot: LinearHead, shots: F32) -> F64:
    """The bias [C] that zero-shot gets when the mean of the shots [n, D] is subtracted from every image vector.

    The rest is no longer of length 1, which changes no answer: all logits of a picture are divided by the same number.
    """
    return -(shots.mean(axis=0) @ zero_shot.weight).astype(np.float64)


def frequency_bias(pool: I64) -> F64:
    """The log of each class's share [C] of the pictures, of mean 0. pool: how many each class has, at least one."""
    logs = np.log(pool / pool.sum())
    return logs - logs.mean()


class BiasControl(HeadMethod):
    """One fitted number a class; validation says how much of it is added, as it does for the heads."""

    knobs = ("share",)

    def choose(self, shots: F32, truth: I64, validation: F32, expected: I64) -> tuple[ClassHead, dict[str, Any]]:
        return _shared(self.zero_shot, fitted_bias(self.zero_shot(shots), truth), validation, expected)


class MeanControl(HeadMethod):
    """Image vectors less the mean of the shots, or a share of it; the labels of the shots say nothing."""

    knobs = ("share",)

    def choose(self, shots: F32, truth: I64, validation: F32, expected: I64) -> tuple[ClassHead, dict[str, Any]]:
        return _shared(self.zero_shot, mean_removed(self.zero_shot, shots), validation, expected)


class FrequencyControl(HeadMethod):
    """What is frequent among all training pictures is likelier, as Bayes' rule has it; no picture is looked at."""

    knobs = ("share",)

    def choose(self, shots: F32, truth: I64, validation: F32, expected: I64) -> tuple[ClassHead, dict[str, Any]]:
        return _shared(self.zero_shot, frequency_bias(self.pool), validation, expected)


def _shared(zero_shot: LinearHead, bias: F64, validation: F32, expected: I64) -> tuple[ClassHead, dict[str, Any]]:
    tried = {
        share: LinearHead(weight=zero_shot.weight, bias=zero_shot.bias + (share * bias).astype(np.float32))
        for share in SHARES
    }
    share, curve = best(tried, validation, expected)
    return tried[share], {"share": share, "accuracy_by_share": curve}
