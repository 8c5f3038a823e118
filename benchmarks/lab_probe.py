"""A linear probe of an image embedding for every (colour, shape) pair, asked the questions of the probes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from benchmarks.lab_runs import StudyRun
from evaluation.encoder import Encoder
from evaluation.probes.binding import build as binding_questions
from evaluation.probes.negation import build as negation_questions
from evaluation.probes.pictures import Picture
from evaluation.probes.pool import Pool, PoolSize
from evaluation.probes.questions import Question
from evaluation.scenes.config import Pair
from evaluation.scenes.meaning import And, Enumeration, Meaning, Not
from training.checkpoint import read_checkpoint
from training.config import SceneData
from training.data.scenes import draw_scenes, scene_splits
from training.data.source import JUDGED
from training.opening import open_checkpoint

_SCENES = 12_000
F64 = NDArray[np.float64]


def probed(base: StudyRun, *, size: PoolSize) -> dict[str, dict[str, float]]:
    """Accuracy and n, by kind of question, of logistic regressions of which pairs are there: fitted on image embeddings
    of training scenes, asked the questions of the held-out seed by the log probability of what each caption says.

    Raises:
        ValueError: the base was not trained on scenes.
    """
    data = read_checkpoint(base.folder).config.data
    if not isinstance(data, SceneData):
        raise ValueError(f"{base.name} was not trained on scenes")
    encoder, pairs = open_checkpoint(base.folder), scene_splits(data).train.pairs
    rows = draw_scenes(data, seed=base.seed)
    two = [at for at, scene in enumerate(rows.scenes) if len(scene.things) == 2][:_SCENES]
    vectors = encoder.encode_prepared(rows.pixels[two])
    named = [{(thing.shape, thing.colour) for thing in rows.scenes[at].things} for at in two]
    probes = [LogisticRegression(C=100.0, max_iter=500).fit(vectors, [pair in one for one in named]) for pair in pairs]
    pool = Pool(size, seed=JUDGED["test"], pairs=pairs)
    asked = [each for each in negation_questions(pool).questions if each.row.startswith("four options")]
    return _accuracies(
        [*binding_questions(pool).questions, *asked], probes, encoder, pairs=pairs, side_px=data.cache_px
    )


def _accuracies(
    questions: Sequence[Question],
    probes: Sequence[LogisticRegression],
    encoder: Encoder,
    *,
    pairs: Sequence[Pair],
    side_px: int,
) -> dict[str, dict[str, float]]:
    pictures = list(dict.fromkeys(asked.picture for asked in questions))
    images = encoder.encode_images([picture.draw(side_px) for picture in pictures])
    log_p = np.stack([one.predict_log_proba(images) for one in probes], axis=1)  # [picture, pair, absent | present]
    where: dict[Picture, int] = {picture: at for at, picture in enumerate(pictures)}
    right: dict[str, list[bool]] = {}
    for asked in questions:
        scores = [_log_likelihood(option.meaning, log_p[where[asked.picture]], pairs) for option in asked.options]
        best = max(score for at, score in enumerate(scores) if at != asked.answer)
        right.setdefault(asked.row, []).append(scores[asked.answer] > best)
    return {row: {"accuracy": float(np.mean(found)), "n": len(found)} for row, found in right.items()}


def _log_likelihood(meaning: Meaning | None, log_p: F64, pairs: Sequence[Pair]) -> float:
    """Of what a caption affirms and denies; log_p [pair, absent | present]."""
    match meaning:
        case Enumeration(whats):
            return float(sum(log_p[pairs.index((what.shape or "", what.colour or "")), 1] for what in whats))
        case Not(Enumeration((what,))):
            return float(log_p[pairs.index((what.shape or "", what.colour or "")), 0])
        case And(parts):
            return sum(_log_likelihood(part, log_p, pairs) for part in parts)
        case _:
            raise ValueError(f"no probe for {meaning}")
