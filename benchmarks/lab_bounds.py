"""Bounds of frozen embeddings: readers of sentences, and of text vectors, that no training of a text tower gave.

Two questions about a base whose image tower stays: would a text tower that understood every sentence find the right one
(`sentences_understood`), and does the base's own text embedding still say which colour belongs to which shape
(`text_embedding_read`)?
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.lab_runs import StudyRun, expected
from evaluation.probes.binding import build as binding_questions
from evaluation.probes.negation import build as negation_questions
from evaluation.probes.pool import Pool, PoolSize
from evaluation.probes.questions import Question
from evaluation.scenes.captions import name_of
from evaluation.scenes.config import Pair
from evaluation.scenes.meaning import And, Enumeration, Meaning, Not
from evaluation.scenes.negation import KINDS, Absence, negation_question
from evaluation.scenes.scene import Scene
from training.config import SceneData
from training.data.scenes import SceneRows, draw_scenes
from training.data.source import JUDGED
from training.encoder import TorchEncoder
from training.opening import open_checkpoint

_SCENES, _STEPS, _BATCH, _RATE = 16_000, 4000, 256, 3e-3
_CAPTIONS, _RIDGES = 12_000, (1e-4, 1e-6, 1e-8, 1e-10)
_ABSENCES: tuple[Absence, ...] = ("any", "near", "far")
Accuracy = dict[str, dict[str, float]]
F32 = NDArray[np.float32]


def bounds(base: StudyRun, *, size: PoolSize) -> Accuracy:
    """Accuracy and n of both readers over a base, on scenes of the recipe "negation", by question.

    Raises:
        ValueError: the recipe trains on something else than scenes.
    """
    data = expected(replace(base, recipe="negation", base=base)).data
    if not isinstance(data, SceneData):
        raise ValueError("the recipe negation trains on no scenes")
    torch.manual_seed(0)
    encoder, rows = open_checkpoint(base.folder), draw_scenes(data, seed=base.seed)
    held_out = Pool(size, seed=JUDGED["test"], pairs=rows.pairs)
    return {**sentences_understood(encoder, rows, held_out), **text_embedding_read(encoder, rows, held_out)}


def sentences_understood(encoder: TorchEncoder, rows: SceneRows, held_out: Pool) -> Accuracy:
    """A vector for every thing affirmed, one for every thing denied, one for the kind of sentence; their sum is the
    sentence's. Fitted to choose the true one of four on training scenes, beside the frozen picture vectors.

    What it reaches, a text tower that tells sentences apart perfectly could reach as well.
    """
    two = [row for row, scene in enumerate(rows.scenes) if len(scene.things) == 2][:_SCENES]
    images = torch.from_numpy(encoder.encode_prepared(rows.pixels[two]))
    asked = [(at, each) for at, row in enumerate(two) for each in _questions(rows.scenes[row], at, rows.pairs)]
    pictures = torch.tensor([at for at, _ in asked])
    answers = torch.tensor([each[1] for _, each in asked])
    codes = torch.from_numpy(np.stack([each[0] for _, each in asked]))
    reader = _fitted(images, pictures, codes, answers)
    questions = [q for q in negation_questions(held_out).questions if q.row.startswith("four options")]
    pictured = torch.from_numpy(_pictures(encoder, questions))
    said = torch.from_numpy(np.stack([_codes([o.meaning for o in q.options], rows.pairs) for q in questions]))
    with torch.inference_mode():
        scores = (functional.normalize(reader(said), dim=-1) * pictured[:, None]).sum(-1)
    right = scores.argmax(1).numpy() == np.array([q.answer for q in questions])
    return _by_row(questions, right, prefix="sentences understood: ")


def _fitted(images: Tensor, pictures: Tensor, codes: Tensor, answers: Tensor) -> nn.Linear:
    reader, log_scale = nn.Linear(codes.shape[-1], images.shape[1]), nn.Parameter(torch.tensor(3.0))
    optimizer = torch.optim.AdamW([*reader.parameters(), log_scale], lr=_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / _STEPS)) / 2)
    for _ in range(_STEPS):
        picks = torch.randint(len(codes), (_BATCH,))
        texts = functional.normalize(reader(codes[picks]), dim=-1)
        logits = log_scale.exp() * (texts * images[pictures[picks]][:, None]).sum(-1)
        optimizer.zero_grad()
        functional.cross_entropy(logits, answers[picks]).backward()
        optimizer.step()
        schedule.step()
    return reader


def text_embedding_read(encoder: TorchEncoder, rows: SceneRows, held_out: Pool) -> Accuracy:
    """Ridge regressions of the named pairs on the text vector, and of the shown pairs on the image vector; "colours
    swapped" by the text's alone beside the true picture, by the picture's alone beside the true text, and by both."""
    texts = _captions(rows)
    two = [row for row, scene in enumerate(rows.scenes) if len(scene.things) == 2][:_SCENES]
    shown = _named([Enumeration(tuple(name_of(thing) for thing in rows.scenes[row].things)) for row in two], rows.pairs)
    named = _named([meaning for _, meaning in texts], rows.pairs)
    vectors = encoder.encode_texts([text for text, _ in texts])
    seen = encoder.encode_prepared(rows.pixels[two])
    validation = Pool(held_out.size, seed=JUDGED["validation"], pairs=rows.pairs)

    def outcomes(pool: Pool, of_text: _Ridge, of_image: _Ridge) -> tuple[list[Question], dict[str, NDArray[np.bool_]]]:
        questions = list(binding_questions(pool).questions)
        answers = np.array([q.answer for q in questions])
        says = np.stack([_named([o.meaning for o in q.options], rows.pairs) for q in questions])
        read = np.stack([of_text(encoder.encode_texts([o.text for o in q.options])) for q in questions])
        sees = of_image(_pictures(encoder, questions))
        truth = says[np.arange(len(questions)), answers]
        scores = {
            "read from the text, the picture known": (read * truth[:, None]).sum(-1),
            "read from the picture, the text known": (says * sees[:, None]).sum(-1),
            "read from both": (read * sees[:, None]).sum(-1),
        }
        return questions, {name: score.argmax(1) == answers for name, score in scores.items()}

    fits = [(_Ridge(vectors, named, ridge), _Ridge(seen, shown, ridge)) for ridge in _RIDGES]
    judged = [outcomes(validation, *fit)[1] for fit in fits]
    best = max(range(len(fits)), key=lambda at: float(judged[at]["read from both"].mean()))
    questions, found = outcomes(held_out, *fits[best])
    return {f"{q}, {name}": value for name, right in found.items() for q, value in _by_row(questions, right).items()}


class _Ridge:
    """Least squares with a penalty relative to the largest variance of the inputs; [n, D] -> [n, C]."""

    def __init__(self, inputs: F32, targets: F32, penalty: float) -> None:
        self._mean = inputs.mean(axis=0).astype(np.float64)
        centred = inputs - self._mean
        covariance = centred.T @ centred
        covariance += penalty * np.linalg.eigvalsh(covariance)[-1] * np.eye(len(covariance))
        self._weights = np.linalg.solve(covariance, centred.T @ (targets - targets.mean(axis=0)))

    def __call__(self, inputs: F32) -> NDArray[np.float64]:
        return (inputs - self._mean) @ self._weights


def _questions(scene: Scene, seed: int, pairs: Sequence[Pair]) -> list[tuple[F32, int]]:
    """One of each kind: codes [4, C] and the right one's place."""
    made = [
        negation_question(scene, seed, pairs=pairs, kind=kind, how=_ABSENCES[seed % len(_ABSENCES)]) for kind in KINDS
    ]
    return [(_codes([option.meaning for option in each.options], pairs), each.answer) for each in made]


def _codes(meanings: Sequence[Meaning | None], pairs: Sequence[Pair]) -> F32:
    """[n, 2 P + 3]: pairs affirmed, pairs denied, and which kind of sentence it is."""
    out = np.zeros((len(meanings), 2 * len(pairs) + len(KINDS)), dtype=np.float32)
    for at, meaning in enumerate(meanings):
        affirmed, denied = _affirmed_and_denied(meaning)
        for what in affirmed:
            out[at, pairs.index(what)] = 1
        for what in denied:
            out[at, len(pairs) + pairs.index(what)] = 1
        out[at, 2 * len(pairs) + (0 if not denied else 2 if affirmed else 1)] = 1
    return out


def _named(meanings: Sequence[Meaning | None], pairs: Sequence[Pair]) -> F32:
    return _codes(meanings, pairs)[:, : len(pairs)]


def _affirmed_and_denied(meaning: Meaning | None) -> tuple[list[Pair], list[Pair]]:
    match meaning:
        case Enumeration(whats):
            return [(what.shape or "", what.colour or "") for what in whats], []
        case Not(part):
            affirmed, denied = _affirmed_and_denied(part)
            return denied, affirmed
        case And(parts):
            found = [_affirmed_and_denied(part) for part in parts]
            return [each for one, _ in found for each in one], [each for _, one in found for each in one]
        case _:
            raise ValueError(f"no code for {meaning}")


def _captions(rows: SceneRows) -> list[tuple[str, Meaning | None]]:
    """Texts of training that name two things or more, true ones and their hard negatives, each once."""
    found: dict[str, Meaning | None] = {}
    for row in range(len(rows.scenes)):
        if len(found) >= _CAPTIONS:
            break
        drawn = rows.draw(row, 0, negative=True)
        said = ((drawn.text, drawn.meaning), (drawn.negative, drawn.negative_meaning))
        found |= {text: meaning for text, meaning in said if text is not None and _names_two(meaning)}
    return list(found.items())


def _names_two(meaning: Meaning | None) -> bool:
    match meaning:
        case Enumeration(whats):
            return len(whats) > 1 and all(what.shape is not None and what.colour is not None for what in whats)
        case _:
            return False


def _pictures(encoder: TorchEncoder, questions: Sequence[Question]) -> F32:
    """The vector [n, D] of each question's picture."""
    pictures = list(dict.fromkeys(asked.picture for asked in questions))
    vectors = encoder.encode_images([picture.draw(encoder.image_px or 0) for picture in pictures])
    where = {picture: at for at, picture in enumerate(pictures)}
    return vectors[[where[asked.picture] for asked in questions]]


def _by_row(questions: Sequence[Question], right: NDArray[np.bool_], *, prefix: str = "") -> Accuracy:
    rows = np.array([asked.row for asked in questions])
    return {
        f"{prefix}{row}": {"accuracy": float(right[rows == row].mean()), "n": int((rows == row).sum())}
        for row in dict.fromkeys(rows.tolist())
    }
