"""ARO's order test made from any captions: the caption, or one of four shuffles of its own words."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from evaluation.standard.captioned import Captioned
from evaluation.standard.choices import Choice, Choices

_TRIES = 20
_TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]|_")
_WORD = re.compile(r"[^\W_]")
# Words that are neither nouns nor adjectives. No tagger: it would be a download and a second model to trust.
_OTHER_WORDS = """
    a an the this that these those some any each every all both no another other i you he she it we they me him her
    us them his hers its their our my your who whom whose which what and or but nor so yet while as if because than
    then when where in on at by with without from to of into onto over under above below behind beside between among
    near next through across along around against during before after off out up down toward towards upon inside
    outside for about like is are was were be been being am do does did has have had can could will would may might
    must shall should not n't there here very too also just only together while away back sits sit stands stand lies
    lie runs run walks walk jumps jump holds hold looks look plays play rides ride eats eat wears wear swims swim
    climbs climb gets get goes go takes take makes make leaps leap poses pose watches catches catch throws throw
"""
_OTHER = frozenset(_OTHER_WORDS.split())


def word_order(name: str, captioned: Captioned, *, seed: int = 0) -> Choices:
    """A choice of five per caption; those with fewer than four different shuffles are left out and counted.

    The shuffles: nouns and adjectives among their places, all other words among theirs, words within groups of three,
    the groups of three. All five are joined alike (no space before a comma, first letter as in the caption, full stop
    last), so that nothing but the order tells them apart. Nouns and adjectives are what is on no list of other words
    and does not end like a participle, so numbers can differ a little from those made with a tagger.

    Raises:
        ValueError: no caption is long enough.
    """
    choices: list[Choice] = []
    for photograph, caption in captioned.pairs:
        options = shuffles(caption, seed=seed)
        if options is not None:
            choices.append(Choice(photograph, options, "order"))
    left_out = len(captioned.pairs) - len(choices)
    if not choices:
        raise ValueError(f"{name}: none of {left_out} captions has four different shuffles of its words")
    notes = list(captioned.notes)
    if left_out:
        notes.append(f"{left_out} of {len(captioned.pairs)} captions have no four different shuffles: left out")
    return Choices(name, tuple(choices), groups="orders", notes=tuple(notes), seed=seed, kind="word-order")


def shuffles(caption: str, *, seed: int) -> tuple[str, ...] | None:
    """The caption and its four shuffles, all different; None if there are no such four."""
    words = [token for token in _TOKEN.findall(caption)]
    tail: list[str] = []
    while words and not _WORD.search(words[-1]):
        tail.insert(0, words.pop())
    if not words:
        return None
    capital = words[0][:1].isupper()
    if words[0].casefold() in _OTHER:
        words[0] = words[0].lower()
    draws = random.Random(f"{seed} {caption}")
    options = [_joined(words, tail, capital=capital)]
    for shuffle in (_named, _unnamed, _within, _groups):
        found = next(
            (
                text
                for text in (_joined(shuffle(words, draws), tail, capital=capital) for _ in range(_TRIES))
                if text.casefold() not in {option.casefold() for option in options}
            ),
            None,
        )
        if found is None:
            return None
        options.append(found)
    return tuple(options)


def _is_named(word: str) -> bool:
    """Whether it is taken for a noun or an adjective."""
    folded = word.casefold()
    return bool(_WORD.search(word)) and folded not in _OTHER and not folded.endswith(("ing", "ed", "ly"))


def _among(words: Sequence[str], draws: random.Random, moves: Callable[[str], bool]) -> list[str]:
    places = [at for at, word in enumerate(words) if moves(word)]
    taken = places.copy()
    draws.shuffle(taken)
    out = list(words)
    for place, source in zip(places, taken, strict=True):
        out[place] = words[source]
    return out


def _named(words: Sequence[str], draws: random.Random) -> list[str]:
    return _among(words, draws, _is_named)


def _unnamed(words: Sequence[str], draws: random.Random) -> list[str]:
    return _among(words, draws, lambda word: bool(_WORD.search(word)) and not _is_named(word))


def _within(words: Sequence[str], draws: random.Random) -> list[str]:
    parts = _threes(words)
    for part in parts:
        draws.shuffle(part)
    return [word for part in parts for word in part]


def _groups(words: Sequence[str], draws: random.Random) -> list[str]:
    parts = _threes(words)
    draws.shuffle(parts)
    return [word for part in parts for word in part]


def _threes(words: Sequence[str]) -> list[list[str]]:
    return [list(words[start : start + 3]) for start in range(0, len(words), 3)]


def _joined(words: Sequence[str], tail: Sequence[str], *, capital: bool) -> str:
    text = re.sub(r"\s+([^\w\s(\"])", r"\1", " ".join([*words, *tail]))
    return text[:1].upper() + text[1:] if capital else text
