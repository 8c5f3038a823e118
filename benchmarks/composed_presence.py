"""When to say that nothing matches: signals of a search whose thing is in no picture, for benchmarks/composed.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.composed_data import ComposedEncoder, Gallery
from benchmarks.composed_formulas import Presences, probability
from model_store.search_presence import FIRST, evidence, match_probability, neutral_mean

F64 = NDArray[np.float64]
Cases = Mapping[str, Mapping[str, F64]]  # signal -> "match" or "none" -> values
_DRAWS = 1000
_FEWEST = 2
SIGNALS = (
    "max cosine",
    "max cosine - neutral",
    "(max - mean) / sd",
    "max P",
    "max P, median length",
    "max P, length 1",
    "P of the first",
    "P of the first, length 1",
    "calibrated for searches",
)


def removed(gallery: Gallery, encoder: ComposedEncoder, presences: Presences, names: Sequence[str]) -> Cases:
    """The whole gallery against the gallery without the thing's pictures, for names that two pictures or more show.

    A picture that may show it counts as showing it.
    """
    nobody = np.zeros(len(gallery.names), dtype=bool)
    kept = [name for name in names if gallery.labels[name].sum() >= _FEWEST]
    shown = [gallery.labels[name] | gallery.unsure.get(name, nobody) for name in kept]
    return _cases(
        _signals(gallery, encoder, presences, kept, [~nobody] * len(kept)),
        _signals(gallery, encoder, presences, kept, [~each for each in shown]),
    )


def foreign(
    gallery: Gallery, encoder: ComposedEncoder, presences: Presences, names: Sequence[str], others: Sequence[str]
) -> Cases:
    """Names of what the gallery shows against names of things that are foreign to it, the gallery as it is."""
    every = np.ones(len(gallery.names), dtype=bool)
    kept = [name for name in names if gallery.labels[name].sum() >= _FEWEST]
    return _cases(
        _signals(gallery, encoder, presences, kept, [every] * len(kept)),
        _signals(gallery, encoder, presences, others, [every] * len(others)),
    )


def _cases(match: F64, none: F64) -> Cases:
    return {signal: {"match": match[:, at], "none": none[:, at]} for at, signal in enumerate(SIGNALS)}


def _signals(
    gallery: Gallery,
    encoder: ComposedEncoder,
    presences: Presences,
    names: Sequence[str],
    parts: Sequence[NDArray[np.bool_]],
) -> F64:
    """[names, SIGNALS] of each name in its part of the gallery."""
    texts = encoder.texts(names)
    cosines = texts @ gallery.unit.T
    neutral = presences.neutral.mean(axis=0) @ gallery.unit.T
    own, median, one = (
        probability(presences.logits(names, gallery, lengths=each)) for each in ("own", "median", "one")
    )
    mean = neutral_mean(encoder.texts(presences.search.neutral_texts).astype(np.float32))
    rows: list[tuple[float, ...]] = []
    for row, at in enumerate(parts):
        cosine = cosines[row, at]
        first = int(np.argmax(cosine))
        best = np.argsort(-cosine, kind="stable")[:FIRST]
        found = evidence(gallery.unit[at][best].astype(np.float32), texts[row].astype(np.float32), mean)
        rows.append(
            (
                cosine.max(),
                (cosine - neutral[at]).max(),
                (cosine.max() - cosine.mean()) / cosine.std(),
                own[row, at].max(),
                median[row, at].max(),
                one[row, at].max(),
                own[row, at][first],
                one[row, at][first],
                match_probability(found, presences.search),
            )
        )
    return np.array(rows, dtype=np.float64)


def auroc(match: F64, none: F64) -> float:
    """The chance that a search with a match has the greater signal; ties count half (Mann and Whitney, 1947)."""
    return float(((match[:, None] > none[None]) + 0.5 * (match[:, None] == none[None])).mean())


def best_threshold(seen: Sequence[Mapping[str, F64]]) -> float:
    """Of the best balanced accuracy, each data set counting alike: below it nothing matches."""
    values = np.unique(np.concatenate([each[case] for each in seen for case in ("match", "none")]))
    middles = (values[1:] + values[:-1]) / 2

    def worth(threshold: float) -> float:
        return sum(float((each["match"] >= threshold).mean() + (each["none"] < threshold).mean()) for each in seen)

    return float(max(middles, key=worth))


def at_threshold(match: F64, none: F64, threshold: float) -> dict[str, float | None]:
    """Of the answer "no good match": precision and recall, with as many searches of either kind."""
    said, wrongly = float((none < threshold).mean()), float((match < threshold).mean())
    precision = said / (said + wrongly) if said + wrongly else None
    return {"threshold": threshold, "precision": precision, "recall": said, "false": wrongly}


def judged(
    validation: Cases, heldout: Cases, *, common: Mapping[str, float], shipped: Mapping[str, float]
) -> dict[str, Any]:
    """Signal -> AUROC with its interval over names, and the answer at three thresholds.

    fitted: on this data's validation; common: one for all data, from their validation; shipped: the presence's own.
    """
    found: dict[str, Any] = {}
    for signal in SIGNALS:
        match, none = heldout[signal]["match"], heldout[signal]["none"]
        random = np.random.default_rng(0)
        draws: list[float] = []
        for _ in range(_DRAWS):
            at = random.integers(len(match), size=len(match))
            # The same names on both sides where there are as many.
            other = at if len(none) == len(match) else random.integers(len(none), size=len(none))
            draws.append(auroc(match[at], none[other]))
        low, high = np.percentile(draws, (2.5, 97.5))
        found[signal] = {
            "names": [len(match), len(none)],
            "auroc": auroc(match, none),
            "interval": (float(low), float(high)),
            "fitted": at_threshold(match, none, best_threshold([validation[signal]])),
            "common": at_threshold(match, none, common[signal]),
            "shipped": at_threshold(match, none, shipped[signal]) if signal in shipped else None,
        }
    return found
