"""Captions for training and for written data sets: drawn at random, true, with a hard negative on request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from evaluation.scenes.captions import attributes, counts, grounds, name_of, places, relations
from evaluation.scenes.config import Pair, SceneConfig
from evaluation.scenes.contrasts import near_misses
from evaluation.scenes.dice import Dice
from evaluation.scenes.frames import Words, frames
from evaluation.scenes.meaning import And, Enumeration, Meaning, Not, Place, is_false, is_true
from evaluation.scenes.negation import absent, has_but_not, has_no
from evaluation.scenes.phrases import Caption, caption, family_of, say
from evaluation.scenes.records import SceneRecord
from evaluation.scenes.sampling import sample
from evaluation.scenes.scene import Scene

Topic = Literal[
    "attributes", "mentions", "places", "relations", "depths", "sizes", "counts", "grounds", "negatives", "hybrids"
]
DEFAULT_MIX: Mapping[Topic, float] = {
    "attributes": 0.2,
    "mentions": 0.2,
    "places": 0.2,
    "relations": 0.15,
    "counts": 0.1,
    "negatives": 0.075,
    "hybrids": 0.075,
}
_MOST_MENTIONS = 3
_REORDERED = 0.75


@dataclass(frozen=True, slots=True)
class CaptionPair:
    """A true caption and a false one that is easily mistaken for it."""

    right: Caption
    wrong: Caption


def draw_caption(
    scene: Scene, seed: int, *, pairs: Sequence[Pair], mix: Mapping[Topic, float] = DEFAULT_MIX, words: Words = "train"
) -> Caption:
    """A true caption: its topic by the weights of `mix`, its meaning and its frame at random.

    A topic that has nothing to say about the scene gives way to the next. Absent things are named out of `pairs`.

    Raises:
        ValueError: no topic of the mix has anything to say.
    """
    dice = Dice("caption", scene.seed, seed)
    weights: dict[Topic, float] = {topic: weight for topic, weight in mix.items() if weight > 0}
    while weights:
        topic = _weighted(dice, weights)
        del weights[topic]
        meanings = _meanings(scene, topic, dice, pairs)
        if meanings:
            return _framed(dice.pick(meanings), dice, words)
    raise ValueError(f"no topic of {sorted(mix)} has a plain truth about scene {scene.seed}")


def draw_with_negative(
    scene: Scene, seed: int, *, pairs: Sequence[Pair], mix: Mapping[Topic, float] = DEFAULT_MIX, words: Words = "train"
) -> CaptionPair | None:
    """A drawn caption and a plainly false one nearby, in the same frame where it fits; None if there is none.

    Where a listing has a hard negative of the very same words ("a red circle and a blue square" with exchanged
    colours), it is taken three times of four: drawn evenly, the many ways to replace a word would make it rare.
    Relations keep the even draw: other directions teach direction, and models that saw mostly exchanged things did not
    learn it.
    Where the mix denies anything, a caption that denies is wrong as often as right: half of the true ones have a hard
    negative that affirms, and as many affirmations one that denies (as long as the mix has enough of them).
    """
    right = draw_caption(scene, seed, pairs=pairs, mix=mix, words=words)
    dice = Dice("twin", scene.seed, seed)
    close = near_misses(right.meaning, pairs)
    names = list(dict.fromkeys(name_of(thing) for thing in scene.things))
    if isinstance(right.meaning, Place):  # another thing that is there, but elsewhere
        close += [Place(name, right.meaning.where) for name in names if name != right.meaning.what]
    if isinstance(right.meaning, And):  # what is there is denied
        close += [has_but_not(a, b) for a in names for b in names if a != b]
    if isinstance(right.meaning, Not):
        close += [has_no(name) for name in names]
    rate = _denial_rate(mix)
    denying: bool | None = None
    if _denies(right.meaning):
        denying = dice.chance(0.5)
    elif rate and isinstance(right.meaning, Enumeration):
        denying = dice.chance(rate)
        close += [has_no(name) for name in names]
        close += [has_but_not(a, b) for a in names for b in names if a != b]
    wrong = [meaning for meaning in close if is_false(meaning, scene)]
    if not wrong:
        return None
    fitting = [meaning for meaning in wrong if denying in (None, _denies(meaning))] or wrong
    reordered = [meaning for meaning in fitting if _words(meaning) == _words(right.meaning)]
    if not isinstance(right.meaning, Enumeration):
        reordered = []
    chosen = dice.pick(reordered if reordered and dice.chance(_REORDERED) else fitting)
    if family_of(chosen) == family_of(right.meaning):
        return CaptionPair(right, caption(chosen, right.frame))
    return CaptionPair(right, _framed(chosen, dice, words))


def draw_records(
    config: SceneConfig, seeds: Iterable[int], *, captions: int = 5, mix: Mapping[Topic, float] = DEFAULT_MIX
) -> Iterator[SceneRecord]:
    """Records for the writers: one scene per seed with up to `captions` different captions."""
    for seed in seeds:
        scene = sample(seed, config)
        drawn = [draw_caption(scene, number, pairs=config.pairs, mix=mix) for number in range(captions)]
        unique = {one.text: one for one in drawn}
        yield SceneRecord(key=f"{seed:08d}", scene=scene, captions=tuple(unique.values()))


def _meanings(scene: Scene, topic: Topic, dice: Dice, pairs: Sequence[Pair]) -> list[Meaning]:
    """True meanings of one topic; a few drawn ones where all would be many."""
    if topic in ("negatives", "hybrids"):
        missing = absent(scene, pairs, how=dice.pick(("near", "any")))
        what = dice.pick(missing) if missing else None
        if what is None or not scene.things:
            return []
        there = name_of(dice.pick(scene.things))
        meaning = has_no(what) if topic == "negatives" else has_but_not(there, what)
        return [meaning] if is_true(meaning, scene) else []
    if topic == "mentions":
        names = list(dict.fromkeys(name_of(thing) for thing in scene.things))  # "two red circles" is for counts
        meaning = Enumeration(tuple(dice.shuffled(names)[:_MOST_MENTIONS]))
        return [meaning] if is_true(meaning, scene) else []
    found = {
        "attributes": lambda: attributes(scene),
        "places": lambda: places(scene),
        "relations": lambda: relations(scene),
        "depths": lambda: relations(scene, ("in front of", "behind")),
        "sizes": lambda: relations(scene, ("bigger than", "smaller than")),
        "counts": lambda: counts(scene),
        "grounds": lambda: grounds(scene),
    }[topic]()
    return [one.meaning for one in found]


def _denies(meaning: Meaning) -> bool:
    return isinstance(meaning, Not) or (isinstance(meaning, And) and any(_denies(part) for part in meaning.parts))


def _denial_rate(mix: Mapping[Topic, float]) -> float:
    """How often an affirmation gets a negative that denies: as many in all as denials get one that affirms."""
    denials = mix.get("negatives", 0.0) + mix.get("hybrids", 0.0)
    affirmations = mix.get("attributes", 0.0) + mix.get("mentions", 0.0)
    return min(1.0, denials / 2 / affirmations) if affirmations else 0.0


def _words(meaning: Meaning) -> list[str]:
    """The words of the meaning's plainest sentence, sorted; articles count as one word."""
    return sorted("a" if word == "an" else word for word in say(meaning).split())


def _framed(meaning: Meaning, dice: Dice, words: Words) -> Caption:
    family = family_of(meaning)
    return caption(meaning, dice.pick(frames(family, words)) if family else None)


def _weighted(dice: Dice, weights: Mapping[Topic, float]) -> Topic:
    mark = dice.fractions(1)[0] * sum(weights.values())
    for topic, weight in weights.items():
        mark -= weight
        if mark < 0:
            return topic
    return list(weights)[-1]
