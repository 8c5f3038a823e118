"""Word order (ARO): the caption against four shuffles of its own words.

The only probe whose wrong options are never right anywhere: shuffled English is odd, and the blind control says how
far that alone leads. Read the score as its distance from the blind one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evaluation.probes.pictures import Picture
from evaluation.probes.pool import Pool, named
from evaluation.probes.questions import Question, Quiz, question
from evaluation.probes.readers import Sentence, said, text_words
from evaluation.scenes.dice import Dice
from evaluation.scenes.meaning import Enumeration
from evaluation.scenes.scene import SceneError

_FRAME = "a picture of {a}"
_TRIES = 100


def build(pool: Pool) -> Quiz:
    """One order of mention for each colouring of a compass group, asked of its four layouts."""
    questions: list[Question] = []
    for cluster, group in enumerate(pool.compass):
        for turn, scenes in enumerate((group.plain, group.swapped)):
            whats = [named(thing) for thing in scenes["left of"].things]
            if (cluster + turn) % 2:
                whats.reverse()
            right = said(Enumeration(tuple(whats)), _FRAME)
            reordered = said(Enumeration(tuple(reversed(whats))), _FRAME)
            wrong = [Sentence(text, None) for text in shuffles(right.text, {reordered.text}, Dice("order", right.text))]
            for scene in scenes.values():
                questions.append(question(Picture(scene), right, wrong, row="four shuffles", cluster=cluster))
    return Quiz("order", tuple(questions))


def shuffles(text: str, true: set[str], dice: Dice) -> list[str]:
    """Four texts of the same words: names shuffled, other words shuffled, groups of three moved, groups shuffled
    inside. None is `text`, one of `true`, or another of the four.

    Raises:
        SceneError: the words are too few or too equal.
    """
    words = text.split()
    ways: tuple[Callable[[Sequence[str], Dice], list[str]], ...] = (
        lambda words, dice: _some(words, dice, names=True),
        lambda words, dice: _some(words, dice, names=False),
        _groups_moved,
        _groups_stirred,
    )
    out: list[str] = []
    for way in ways:
        for _ in range(_TRIES):
            candidate = " ".join(way(words, dice))
            if candidate != text and candidate not in true and candidate not in out:
                out.append(candidate)
                break
        else:
            raise SceneError(f"{text!r} has no further shuffle")
    return out


def _some(words: Sequence[str], dice: Dice, *, names: bool) -> list[str]:
    """Shuffle the names of shapes and colours among themselves, or all other words."""
    at = [index for index, word in enumerate(words) if bool(text_words(word)) == names]
    out = list(words)
    for index, other in zip(at, dice.shuffled(at), strict=True):
        out[index] = words[other]
    return out


def _groups(words: Sequence[str]) -> list[Sequence[str]]:
    return [words[start : start + 3] for start in range(0, len(words), 3)]


def _groups_moved(words: Sequence[str], dice: Dice) -> list[str]:
    return [word for group in dice.shuffled(_groups(words)) for word in group]


def _groups_stirred(words: Sequence[str], dice: Dice) -> list[str]:
    return [word for group in _groups(words) for word in dice.shuffled(group)]
