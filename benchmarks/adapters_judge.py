"""Accuracy of adapters on base, new and other classes, recall of captions, WiSE-FT, and the spread over wordings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.adapters_tasks import AdapterTask, Judging, Naming, Question, ShownRows
from evaluation.metrics import class_mean_accuracy, first_hit_rank, majority_share
from evaluation.zero_shot import class_matrix
from model_store.templates import named_templates
from training.encoder import TorchEncoder
from training.methods.parts.class_heads import ClassHead
from training.methods.parts.conditional import judge_conditions
from training.methods.parts.conditional_run import ConditionalRun
from training.methods.parts.few_shot import scale_of

Logits = NDArray[np.floating]
ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
MOST_LOST = 0.01
_CUT = 10


class Scores(Protocol):
    def names(self, shown: ShownRows, labels: Sequence[str]) -> Logits:
        """Logits [n, C] of pictures and labels."""
        ...

    def captions(self, shown: ShownRows, captions: Sequence[str]) -> Logits:
        """Logits [captions, n]."""
        ...


@dataclass(frozen=True, kw_only=True)
class EncoderScores:
    """Two towers; where the image tower is the base's, its vectors are there already."""

    encoder: TorchEncoder
    templates: tuple[str, ...]
    scale: float
    keeps_images: bool
    seen: dict[int, NDArray[np.float32]] = field(default_factory=dict[int, NDArray[np.float32]])

    def names(self, shown: ShownRows, labels: Sequence[str]) -> Logits:
        return self.scale * self.images(shown) @ class_matrix(self.encoder.encode_texts, labels, self.templates).T

    def captions(self, shown: ShownRows, captions: Sequence[str]) -> Logits:
        return self.scale * self.encoder.encode_texts(captions) @ self.images(shown).T

    def images(self, shown: ShownRows) -> NDArray[np.float32]:
        """Unit vectors [n, D]; pictures are encoded once."""
        if self.keeps_images:
            return shown.vectors
        of = shown.pictures
        if id(of) not in self.seen:
            self.seen[id(of)] = self.encoder.encode_prepared(of.pixels)
        return self.seen[id(of)][shown.rows]


@dataclass(frozen=True, kw_only=True)
class ConditionalScores:
    """A head that says something else of the same name for each picture; captions find what they found before."""

    base: Scores
    run: ConditionalRun

    def names(self, shown: ShownRows, labels: Sequence[str]) -> Logits:
        return self.run.logits(shown.vectors, labels)

    def captions(self, shown: ShownRows, captions: Sequence[str]) -> Logits:
        return self.base.captions(shown, captions)


def base_scores(task: AdapterTask) -> EncoderScores:
    opened = task.opened
    return EncoderScores(
        encoder=task.encoder, templates=opened.info.templates, scale=scale_of(opened), keeps_images=True
    )


@dataclass
class Answered:
    """Logits of every question of one split, kept because alphas mix them."""

    logits: dict[str, Logits]

    @classmethod
    def of(cls, scores: Scores, asked: Mapping[str, Question]) -> Answered:
        return cls(
            {
                name: scores.names(each.shown, each.labels)
                if isinstance(each, Naming)
                else scores.captions(each.shown, each.captions)
                for name, each in asked.items()
            }
        )

    def mixed(self, other: Answered, alpha: float) -> Answered:
        """(1 - alpha) of these logits and alpha of the other's."""
        return Answered({name: (1 - alpha) * own + alpha * other.logits[name] for name, own in self.logits.items()})

    def with_head(self, head: ClassHead, asked: Mapping[str, Question]) -> Answered:
        """What a class head of the base classes answers: everything else is asked of the base."""
        return Answered({**self.logits, "base": head(asked["base"].shown.vectors)})

    def right(self, name: str, question: Question) -> NDArray[np.bool_]:
        """Which pictures are named, or which captions find one of theirs among the first ten."""
        if isinstance(question, Naming):
            return self.logits[name].argmax(axis=1) == question.truth
        return first_hit_rank(self.logits[name], question.relevant) < _CUT


@cache
def base_answers(task: AdapterTask) -> dict[Judging, Answered]:
    """Of both splits; worked out once for all adapters."""
    scores = base_scores(task)
    return {split: Answered.of(scores, asked) for split, asked in task.asked.items()}


def numbers(answered: Answered, asked: Mapping[str, Question]) -> dict[str, Any]:
    """By question: share that is right, n, and for the classes of the task the class mean and who is right."""
    found: dict[str, Any] = {}
    for name, question in asked.items():
        right = answered.right(name, question)
        found[name] = {"value": float(right.mean()), "n": len(right)}
        if name in ("base", "new") and isinstance(question, Naming):
            predicted = answered.logits[name].argmax(axis=1)
            found[name] |= {
                "class_mean": class_mean_accuracy(predicted, question.truth),
                "majority": majority_share(question.truth),
                "chance": 1 / len(question.labels),
                "right": np.packbits(right).tobytes().hex(),
            }
    return found


def harmonic(base: float, new: float) -> float:
    return 0.0 if base + new == 0 else 2 * base * new / (base + new)


def elsewhere(found: Mapping[str, Any]) -> float:
    """The mean over what is about no class of the task: other labels, other pictures, retrieval."""
    return float(np.mean([each["value"] for name, each in found.items() if name not in ("base", "new")]))


def wise_ft(
    asked: Mapping[Judging, Mapping[str, Question]],
    at: Callable[[float], Mapping[Judging, Answered]],
    alphas: Sequence[float] = ALPHAS,
) -> dict[str, Any]:
    """The alpha that is best on base classes of validation and loses a point of `elsewhere` there at most.

    at: alpha -> what a model between base (0) and adapter (1) answers, by split.
    """
    curve: list[dict[str, Any]] = []
    for alpha in alphas:
        answered = at(alpha)
        found = {split: numbers(answered[split], questions) for split, questions in asked.items()}
        curve.append({"alpha": alpha, **{split: _short(each) for split, each in found.items()}})
    floor = curve[0]["validation"]["elsewhere"] - MOST_LOST
    allowed = [point for point in curve if point["validation"]["elsewhere"] >= floor - 1e-9]
    chosen = max(allowed, key=lambda point: (point["validation"]["base"], -point["alpha"]))
    return {"chosen": chosen["alpha"], "curve": curve}


def _short(found: Mapping[str, Any]) -> dict[str, float]:
    return {"base": found["base"]["value"], "new": found["new"]["value"], "elsewhere": elsewhere(found)}


def conditions(task: AdapterTask, scores: ConditionalScores, name: str) -> dict[str, float]:
    """Accuracy with each picture's own contexts, with those of the mean picture, and with those of another one."""
    question = task.asked["test"][name]
    if not isinstance(question, Naming):
        raise ValueError(f"{name} is no question of names")
    tokenizer = task.opened.tokenizer
    ids = torch.from_numpy(tokenizer.pad([tokenizer.encode(label) for label in question.labels]))
    found = judge_conditions(scores.run.head, question.shown.vectors, question.truth, ids)
    return {kind: judged["accuracy"]["value"] for kind, judged in found.items()}


def prompt_spread(task: AdapterTask, scores: EncoderScores, name: str = "base") -> dict[str, Any]:
    """Accuracy of one encoder over wordings: each of OpenAI's 80 alone, and the means of 7 and of 80."""
    question = task.asked["test"][name]
    if not isinstance(question, Naming):
        raise ValueError(f"{name} is no question of names")
    images = scores.images(question.shown)

    def accuracy(templates: Sequence[str]) -> float:
        classes = class_matrix(scores.encoder.encode_texts, question.labels, templates)
        return float(((images @ classes.T).argmax(axis=1) == question.truth).mean())

    every = named_templates("imagenet")
    single = np.array([accuracy([template]) for template in every])
    return {
        "single": {
            "mean": float(single.mean()),
            "sd": float(single.std()),
            "lowest": float(single.min()),
            "highest": float(single.max()),
        },
        "1": accuracy(scores.templates),
        "7": accuracy(named_templates("simple")),
        "80": accuracy(every),
    }
