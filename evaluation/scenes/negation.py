"""Captions about what is not there, true and false ones alike.

A negated caption must be right as often as wrong, or a model that dislikes the word "no" scores 100 % (the flaw of
CC-Neg and CREPE). `negation_question` follows NegBench: three kinds of caption, each the right one equally often.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from evaluation.scenes.captions import name_of
from evaluation.scenes.config import Pair
from evaluation.scenes.dice import Dice
from evaluation.scenes.frames import Words, frames
from evaluation.scenes.meaning import And, Enumeration, Meaning, Not, What, is_false, is_true
from evaluation.scenes.phrases import Caption, caption, family_of
from evaluation.scenes.scene import Scene, SceneError

Kind = Literal["affirmative", "negative", "hybrid"]
KINDS: tuple[Kind, ...] = ("affirmative", "negative", "hybrid")
Absence = Literal["near", "far", "any"]


def absent(scene: Scene, pairs: Iterable[Pair], *, how: Absence = "any") -> list[What]:
    """Names of things that are not in the scene, out of `pairs` (a training run must not name held-out pairs).

    `near` shares its shape or its colour with something present, and so is a plausible thing to look for; `far`
    shares neither.
    """
    present = {(thing.shape, thing.colour) for thing in scene.things}
    shapes, colours = {shape for shape, _ in present}, {colour for _, colour in present}
    out: list[What] = []
    for shape, colour in pairs:
        near = shape in shapes or colour in colours
        if (shape, colour) not in present and (how == "any" or near == (how == "near")):
            out.append(What(shape=shape, colour=colour))
    return out


def has(*whats: What) -> Enumeration:
    return Enumeration(whats)


def has_no(what: What) -> Not:
    return Not(Enumeration((what,)))


def has_but_not(present: What, missing: What) -> And:
    return And((Enumeration((present,)), Not(Enumeration((missing,)))))


def negatives(scene: Scene, pairs: Iterable[Pair], *, how: Absence = "any", words: Words = "train") -> list[Caption]:
    """ "there is no red circle", true ones, in every frame."""
    meanings = [has_no(what) for what in absent(scene, pairs, how=how)]
    return [caption(m, frame) for m in meanings if is_true(m, scene) for frame in frames("negative", words)]


def hybrids(scene: Scene, pairs: Iterable[Pair], *, how: Absence = "any", words: Words = "train") -> list[Caption]:
    """ "there is a blue square but no red circle", true ones, in every frame."""
    missing = absent(scene, pairs, how=how)
    meanings = [has_but_not(name_of(thing), what) for thing in scene.things for what in missing]
    return [
        caption(m, frame) for m in dict.fromkeys(meanings) if is_true(m, scene) for frame in frames("hybrid", words)
    ]


def exceptions(scene: Scene, *, attribute: Literal["colour", "texture"] = "texture") -> list[Caption]:
    """ "a circle that is not striped", for things of one shape of which only one lacks the property (NegRef)."""
    meanings: list[Meaning] = []
    for thing in scene.things:
        alike = [other for other in scene.things if other.shape == thing.shape]
        values = {getattr(other, attribute) for other in alike if other is not thing}
        if len(alike) > 1 and len(values) == 1 and getattr(thing, attribute) not in values:
            value = values.pop()
            if value == "plain":
                continue  # "not plain" names no property
            exception = What(colour=value) if attribute == "colour" else What(texture=value)
            meanings.append(Enumeration((What(shape=thing.shape, but_not=exception),)))
    return [caption(m) for m in dict.fromkeys(meanings) if is_true(m, scene)]


@dataclass(frozen=True, slots=True)
class NegationQuestion:
    """Options of which exactly one is plainly true and the others are plainly false."""

    options: tuple[Caption, ...]
    answer: int
    kind: Kind


def negation_question(
    scene: Scene,
    seed: int,
    *,
    pairs: Sequence[Pair],
    kind: Kind,
    how: Absence = "any",
    words: Words = "train",
    frame: int | None = None,
) -> NegationQuestion:
    """Four options, shuffled. With A, B in the scene and N not: right is "A and B", "no N" or "A but no N" by `kind`;
    the wrong ones are the other two kinds with A and N exchanged and one more.

    The fourth option is of the right one's kind half the time: then one that sees only the kinds of the options
    guesses at 25 %, whichever kind stands there twice.

    Raises:
        SceneError: fewer than two differently named things, or nothing to be absent.
    """
    dice = Dice("negation question", seed, kind, how)
    names = dice.shuffled(list(dict.fromkeys(name_of(thing) for thing in scene.things)))
    missing = absent(scene, pairs, how=how)
    if len(names) < 2 or not missing:
        raise SceneError(
            f"a question needs two differently named things and an absent one, got {len(names)}, {len(missing)}"
        )
    a, b, n = names[0], names[1], dice.pick(missing)
    right: dict[Kind, Meaning] = {"affirmative": has(a, b), "negative": has_no(n), "hybrid": has_but_not(a, n)}
    wrong: dict[Kind, list[Meaning]] = {
        "affirmative": dice.shuffled([has(a, n), has(n, b)]),
        "negative": dice.shuffled([has_no(a), has_no(b)]),
        "hybrid": dice.shuffled([has_but_not(n, a), has_but_not(b, a)]),
    }
    others: list[Kind] = [other for other in KINDS if other != kind]
    fourth = kind if dice.chance(0.5) else dice.pick(others)
    options = [right[kind], *(wrong[other].pop() for other in others), wrong[fourth].pop()]
    if not is_true(options[0], scene) or not all(is_false(option, scene) for option in options[1:]):
        raise SceneError("the scene does not settle every option")
    order = dice.shuffled(range(len(options)))
    return NegationQuestion(tuple(_framed(options[i], dice, words, frame) for i in order), order.index(0), kind)


def _framed(meaning: Meaning, dice: Dice, words: Words, frame: int | None) -> Caption:
    family = family_of(meaning)
    if family is None:
        raise ValueError(f"no frames fit {meaning}")
    choices = frames(family, words)
    return caption(meaning, dice.pick(choices) if frame is None else choices[frame % len(choices)])
