"""A head fitted to examples in closed form, mixed with zero-shot by leave-one-out; numpy only.

Logits are those of the labels' texts plus `mix` times those of `model_store.discriminant`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model_store.discriminant import GaussianClasses, fit_gaussians, left_out_logits
from model_store.towers import Activation, activated

F32, F64, I64 = NDArray[np.float32], NDArray[np.float64], NDArray[np.int64]
MIXES = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
USUAL_MIX = 0.05
"""Of mixes that are right equally often the one nearest to it: it lost least over flowers, textures and products."""
UNTESTED_MIX = 0.01
"""Where no example can be left out: it helped where zero-shot was weak, and cost .02 at most elsewhere."""
LEAST_FOR_SIGMOID = 20
_SHARPEST, _FLATTEST, _TEMPERATURES = 1.0, 1000.0, 61
_STEPS, _RIDGE = 50, 1e-6


@dataclass(frozen=True, kw_only=True)
class TaughtHead:
    """logits [C] = unit image vector [D] @ weight [D, C] + bias [C], in the order of `names`.

    temperature: what they are divided by before a softmax. sigmoid: (slope, offset) of the probability that a label
    fits, from its logit; None: too few examples to know.
    """

    names: tuple[str, ...]
    weight: F32
    bias: F32
    temperature: float = 1.0
    sigmoid: tuple[float, float] | None = None

    def logits(self, vector: F32) -> F64:
        """Logits [..., C] of unit vectors [..., D]."""
        return (vector @ self.weight + self.bias).astype(np.float64)

    def scores(self, logits: F64, activation: Activation | None) -> F64:
        """Scores [..., C]; None is softmax, "none" gives the logits back.

        Raises:
            ValueError: sigmoid without its calibration.
        """
        if activation == "none":
            return logits
        if activation != "sigmoid":
            return activated(logits / self.temperature, "softmax")
        if self.sigmoid is None:
            raise ValueError("the head has no calibrated sigmoid")
        slope, offset = self.sigmoid
        return activated(slope * logits + offset, "sigmoid")


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What leaving one out says. tested [n]: examples whose label has another one; only those count.

    predicted, zero_shot: labels as int64 [n], -1 where not tested, and for zero_shot where there are no texts.
    """

    tested: NDArray[np.bool_]
    predicted: I64
    zero_shot: I64
    mix: float


def teach(
    names: Sequence[str], vectors: F32, truth: I64, *, texts: F32 | None, scale: float
) -> tuple[TaughtHead, Judgement]:
    """Fit unit image vectors [n, D] with truth int64 [n] in [0, C); texts: unit vectors of the labels [C, D] or None.

    scale: the model's logit scale. Labels without an example are judged by their texts alone. The mix is the one that
    is most often right about examples that were left out, the temperature the likeliest there.

    Raises:
        ValueError: examples of one label only, or equal vectors throughout.
    """
    fitted = fit_gaussians(vectors, truth, classes=len(names))
    left_out = left_out_logits(fitted, vectors, truth)
    tested = fitted.sizes[truth] > 1
    shown = np.zeros_like(left_out) if texts is None else scale * (vectors @ texts.T).astype(np.float64)
    mix = _best_mix(shown, left_out, truth, tested, has_texts=texts is not None)
    judged = shown + mix * left_out
    weight, bias = _mixed(fitted, mix, texts, scale)
    head = TaughtHead(names=tuple(names), weight=weight, bias=bias)
    if tested.any():
        head = _calibrated(head, judged[tested], truth[tested])
    return head, Judgement(
        tested=tested,
        predicted=np.where(tested, judged.argmax(axis=1), -1),
        zero_shot=np.where(tested, shown.argmax(axis=1), -1) if texts is not None else np.full(len(truth), -1),
        mix=mix,
    )


def _best_mix(shown: F64, left_out: F64, truth: I64, tested: NDArray[np.bool_], *, has_texts: bool) -> float:
    if not has_texts:
        return 1.0
    if not tested.any():
        return UNTESTED_MIX
    right = {mix: int(((shown + mix * left_out).argmax(axis=1) == truth)[tested].sum()) for mix in MIXES}
    most = max(right.values())
    least = min(mix for mix in MIXES if mix) / 4  # where 0 lies on a scale of factors
    best = [mix for mix in MIXES if right[mix] == most]
    return min(best, key=lambda mix: abs(np.log(max(mix, least) / USUAL_MIX)))


def _mixed(fitted: GaussianClasses, mix: float, texts: F32 | None, scale: float) -> tuple[F32, F32]:
    weight, bias = fitted.linear()
    shown = np.zeros_like(weight) if texts is None else scale * texts.T.astype(np.float64)
    return (shown + mix * weight).astype(np.float32), (mix * bias).astype(np.float32)


def _calibrated(head: TaughtHead, logits: F64, truth: I64) -> TaughtHead:
    """With the temperature of softmax, and the curve of sigmoid where there are enough examples."""
    tried = np.geomspace(_SHARPEST, _FLATTEST, _TEMPERATURES)
    temperature = float(min(tried, key=lambda each: _surprise(logits / each, truth)))
    head = replace(head, temperature=temperature)
    if len(truth) < LEAST_FOR_SIGMOID:
        return head
    is_shown = np.zeros(logits.shape, dtype=np.bool_)
    is_shown[np.arange(len(truth)), truth] = True
    return replace(head, sigmoid=_logistic(logits.ravel(), is_shown.ravel()))


def _surprise(logits: F64, truth: I64) -> float:
    """Mean negative log likelihood of softmax."""
    highest = logits.max(axis=1)
    total = np.log(np.exp(logits - highest[:, None]).sum(axis=1)) + highest
    return float((total - logits[np.arange(len(truth)), truth]).mean())


def _logistic(values: F64, truth: NDArray[np.bool_]) -> tuple[float, float]:
    """(slope, offset) of the likeliest sigmoid(slope * value + offset), with the smoothed targets of Platt (1999)."""
    ones = int(truth.sum())
    targets = np.where(truth, (ones + 1) / (ones + 2), 1 / (len(truth) - ones + 2))
    centre, spread = float(values.mean()), float(values.std()) or 1.0
    inputs = np.stack([(values - centre) / spread, np.ones_like(values)], axis=1)
    found = np.zeros(2)
    for _ in range(_STEPS):
        chance = activated(inputs @ found, "sigmoid")
        gradient = inputs.T @ (chance - targets) / len(values) + _RIDGE * found
        curvature = (inputs * (chance * (1 - chance))[:, None]).T @ inputs / len(values) + _RIDGE * np.eye(2)
        change = np.linalg.solve(curvature, gradient)
        change *= min(1.0, 4.0 / max(float(np.abs(change).max()), 1e-12))
        found -= change
        if np.abs(change).max() < 1e-9:
            break
    slope = float(found[0]) / spread
    return slope, float(found[1]) - slope * centre
