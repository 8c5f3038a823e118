"""A head fitted to examples in closed form, mixed with zero-shot by leave-one-out; numpy only.

Logits are those of the labels' texts plus `mix` times those of `model_store.discriminant`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model_store.discriminant import GaussianClasses, fit_gaussians, left_out_logits
from model_store.platt import fit_platt
from model_store.towers import Activation, activated

F32, F64, I64 = NDArray[np.float32], NDArray[np.float64], NDArray[np.int64]
MIXES = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
USUAL_MIX = 0.05
"""Of mixes that are right equally often the one nearest to it: it lost least over flowers, textures and products."""
UNTESTED_MIX = 0.01
"""Where no example can be left out: it helped where zero-shot was weak, and cost .02 at most elsewhere."""
LEAST_FOR_SIGMOID = 20
_NAMED = 10
_SHARPEST, _FLATTEST, _TEMPERATURES = 1.0, 1000.0, 61
_NEVER = 30.0  # below the others, for a label that neither texts nor examples speak for


@dataclass(frozen=True, kw_only=True)
class TaughtHead:
    """logits [C] = unit image vector [D] @ weight [D, C] + bias [C], in the order of `names`.

    temperature: what they are divided by before a softmax. sigmoid: (slope, offset) of the probability that a label
    fits, from its logit; None: `no_sigmoid` says why.
    texts: [D, C] of the logits of the texts alone, where `untaught` labels (bool [C]) have no example; else None.
    """

    names: tuple[str, ...]
    weight: F32
    bias: F32
    temperature: float = 1.0
    sigmoid: tuple[float, float] | None = None
    no_sigmoid: str = "no example could be left out"
    texts: F32 | None = None
    untaught: NDArray[np.bool_] | None = None

    def logits(self, vector: F32) -> F64:
        """Logits [..., C] of unit vectors [..., D].

        With labels that have no example the examples only say which of the others it is: these have together what
        their texts give them, so that the rest can be compared with them. Such logits need no temperature.
        """
        whole = (vector @ self.weight + self.bias).astype(np.float64)
        if self.untaught is None:
            return whole
        shown = None if self.texts is None else (vector @ self.texts).astype(np.float64)
        return _beside_untaught(whole / self.temperature, shown, self.untaught)

    def scores(self, logits: F64, activation: Activation | None) -> F64:
        """Scores [..., C]; None is softmax, "none" gives the logits back.

        Raises:
            ValueError: sigmoid without its calibration.
        """
        if activation == "none":
            return logits
        if activation != "sigmoid":
            return activated(logits / (self.temperature if self.untaught is None else 1.0), "softmax")
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

    scale: the model's logit scale. The mix is the one that is most often right about examples that were left out, the
    temperature the likeliest there. A text without a direction speaks for its label as the mean of the others does.

    Raises:
        ValueError: examples of one label only, or equal vectors throughout.
    """
    fitted = fit_gaussians(vectors, truth, classes=len(names))
    left_out = left_out_logits(fitted, vectors, truth)
    tested = fitted.sizes[truth] > 1
    texts = None if texts is None else _with_directions(texts)
    shown = np.zeros_like(left_out) if texts is None else scale * (vectors @ texts.T).astype(np.float64)
    seen = np.ix_(tested, fitted.present)
    mix = _best_mix(shown[seen], left_out[seen], _among(truth[tested], fitted.present), has_texts=texts is not None)
    judged = shown + mix * left_out
    weight, bias = _mixed(fitted, mix, texts, scale)
    head = TaughtHead(names=tuple(names), weight=weight, bias=bias)
    if tested.any():
        head = _calibrated(head, judged[seen], _among(truth[tested], fitted.present))
    if not fitted.present.all():
        judged = _beside_untaught(judged / head.temperature, None if texts is None else shown, ~fitted.present)
        by_texts = None if texts is None else np.float32(scale) * np.ascontiguousarray(texts.T)
        head = replace(head, untaught=~fitted.present, texts=by_texts, sigmoid=None)
    if head.sigmoid is None:
        head = replace(head, no_sigmoid=_why_no_sigmoid(names, ~fitted.present, int(tested.sum())))
    return head, Judgement(
        tested=tested,
        predicted=np.where(tested, judged.argmax(axis=1), -1),
        zero_shot=np.where(tested, shown.argmax(axis=1), -1) if texts is not None else np.full(len(truth), -1),
        mix=mix,
    )


def _beside_untaught(logits: F64, shown: F64 | None, untaught: NDArray[np.bool_]) -> F64:
    """Logits [..., C] in which the taught labels have together what their texts give them, of tempered logits [..., C].

    shown: of the texts, None without any: then nothing speaks for the others, and they come last.
    """
    whole, taught = logits.copy(), ~untaught
    among = _log_softmax(logits[..., taught])
    whole[..., taught] = among if shown is None else among + _log_sum(shown[..., taught])
    whole[..., untaught] = among.min(axis=-1, keepdims=True) - _NEVER if shown is None else shown[..., untaught]
    return whole


def _with_directions(texts: F32) -> F32 | None:
    """Rows of zeros, of words that the model does not know, as the mean of the others; None: there are no others."""
    silent = np.flatnonzero(~np.any(texts, axis=1))
    if len(silent) == len(texts):
        return None
    whole = texts.copy()
    whole[silent] = texts.sum(axis=0) / (len(texts) - len(silent))
    return whole


def _among(truth: I64, present: NDArray[np.bool_]) -> I64:
    """Indices into all labels as indices into those that are present."""
    return (np.cumsum(present) - 1)[truth]


def _best_mix(shown: F64, left_out: F64, truth: I64, *, has_texts: bool) -> float:
    """Of logits [n, C] of examples that were left out, among the labels with examples."""
    if not has_texts:
        return 1.0
    if not len(truth):
        return UNTESTED_MIX
    right = {mix: int(np.equal((shown + mix * left_out).argmax(axis=1), truth).sum()) for mix in MIXES}
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
    # As if one in n + 2 were mistaken: otherwise a few examples that are all right would make it certain.
    smoothing = 1 / (len(truth) + 2)
    temperature = float(min(tried, key=lambda each: _surprise(logits / each, truth, smoothing)))
    head = replace(head, temperature=temperature)
    if len(truth) < LEAST_FOR_SIGMOID:
        return head
    is_shown = np.zeros(logits.shape, dtype=np.bool_)
    is_shown[np.arange(len(truth)), truth] = True
    return replace(head, sigmoid=_curve(logits.ravel(), is_shown.ravel()))


def _why_no_sigmoid(names: Sequence[str], untaught: NDArray[np.bool_], tested: int) -> str:
    """What is missing, and how to come by it."""
    missing = [repr(name) for name, is_missing in zip(names, untaught.tolist(), strict=True) if is_missing]
    why: list[str] = []
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        why.append(f"there is no example of {', '.join(missing[:_NAMED])}{more}, and it takes one of every label")
    if tested < LEAST_FOR_SIGMOID:
        why.append(f"{tested} examples could be left out, and it takes {LEAST_FOR_SIGMOID} whose label has another one")
    if not why:
        why.append("of the examples left out those with a higher logit of a label show it no more often")
    return "; ".join(why)


def _surprise(logits: F64, truth: I64, smoothing: float) -> float:
    """Mean cross-entropy of softmax; so much of each target is shared by all labels."""
    likely = _log_softmax(logits)
    right = likely[np.arange(len(truth)), truth]
    return float(-((1 - smoothing) * right + smoothing * likely.mean(axis=1)).mean())


def _log_sum(logits: F64) -> F64:
    """log of the sum of exp over the last axis, which is kept."""
    highest = logits.max(axis=-1, keepdims=True)
    return np.log(np.exp(logits - highest).sum(axis=-1, keepdims=True)) + highest


def _log_softmax(logits: F64) -> F64:
    return logits - _log_sum(logits)


def _curve(values: F64, truth: NDArray[np.bool_]) -> tuple[float, float] | None:
    """(slope, offset) of the likeliest sigmoid(slope * value + offset), with the smoothed targets of Platt (1999).

    None: it falls, so the logits say nothing about single labels.
    """
    ones = int(truth.sum())
    targets = np.where(truth, (ones + 1) / (ones + 2), 1 / (len(truth) - ones + 2))
    slope, offset = fit_platt(values, targets)
    return (slope, offset) if slope > 0 else None
