"""English sentences of meanings: `say(meaning)`. Two meanings that differ in truth never get one text."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.scenes.frames import Family, Words, frames
from evaluation.scenes.meaning import And, Count, Enumeration, Ground, Meaning, Not, Place, Relation, What

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PLACES = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "middle": "in the middle",
}


@dataclass(frozen=True, slots=True)
class Caption:
    """A text, what it says, and the frame it was said in."""

    text: str
    meaning: Meaning
    frame: str


def say(meaning: Meaning, frame: str | None = None) -> str:
    """The text of a meaning; `frame` is one of `frames(family_of(meaning))`, by default the first.

    Raises:
        ValueError: a combination that no sentence here can carry, such as a negation of a count.
    """
    if frame is None and family_of(meaning) is None:
        return _joined(meaning)
    return (frame or frames(_family(meaning))[0]).format(**_slots(meaning))


def caption(meaning: Meaning, frame: str | None = None) -> Caption:
    """`say`, kept with what was said."""
    family = family_of(meaning)
    chosen = frame if frame is not None else frames(family)[0] if family else ""
    return Caption(say(meaning, chosen or None), meaning, chosen)


def captions(meaning: Meaning, words: Words = "train") -> list[Caption]:
    """The meaning in every frame of one set of words."""
    return [caption(meaning, frame) for frame in frames(_family(meaning), words)]


def family_of(meaning: Meaning) -> Family | None:
    """Which frames fit; None for a conjunction, which is said part by part."""
    match meaning:
        case Enumeration():
            return "affirmative"
        case Not(Enumeration((_,))):
            return "negative"
        case Not(Place()):
            return "no_place"
        case And((Enumeration(), Not(Enumeration((_,))))):
            return "hybrid"
        case Place():
            return "place"
        case Relation():
            return "relation"
        case Count():
            return "count"
        case Ground():
            return "ground"
    return None


def noun(what: What, *, plural: bool = False) -> str:
    """ "large striped red circle", "circles that are not striped", without article."""
    head = what.shape or "shape"
    if plural:
        head += "es" if head.endswith("s") else "s"
    words = [word for word in (what.size, what.texture, what.colour) if word is not None]
    return " ".join([*words, head]) + _exception(what.but_not, plural=plural)


def with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _exception(but_not: What | None, *, plural: bool) -> str:
    if but_not is None:
        return ""
    be = "are" if plural else "is"
    words = [word for word in (but_not.size, but_not.texture, but_not.colour) if word is not None]
    if but_not.shape is None and len(words) == 1:
        return f" that {be} not {words[0]}"
    if but_not.shape is not None and not plural:
        return f" that is not {with_article(noun(but_not))}"
    raise ValueError(f"no English here for 'that {be} not' with {but_not}")


def _family(meaning: Meaning) -> Family:
    family = family_of(meaning)
    if family is None:
        raise ValueError(f"no frames fit {type(meaning).__name__} of these parts")
    return family


def _slots(meaning: Meaning) -> dict[str, str]:
    match meaning:
        case Enumeration(whats):
            return {"a": _list(whats)}
        case Not(Enumeration((what,))):
            return {"no": noun(what), "a_no": with_article(noun(what))}
        case Not(Place(what, where)):
            return {"no": noun(what), "place": PLACES[where]}
        case And((Enumeration(whats), Not(Enumeration((what,))))):
            return {"a": _list(whats), "no": noun(what), "a_no": with_article(noun(what))}
        case Place(what, where):
            return {"a": with_article(noun(what)), "place": PLACES[where]}
        case Relation(subject, name, target):
            return {"a": with_article(noun(subject)), "relation": name, "b": with_article(noun(target))}
        case Count(what, number):
            if not 0 < number < len(NUMBERS):
                raise ValueError(f"counts have words from one to ten, got {number}")
            be = "is" if number == 1 else "are"
            return {"n": NUMBERS[number], "things": noun(what, plural=number != 1), "be": be}
        case Ground(tone):
            return {"tone": tone}
    raise ValueError(f"no slots for {type(meaning).__name__}")


def _list(whats: tuple[What, ...]) -> str:
    """ "a red circle", "a red circle and a blue square", "a red circle and a blue square and a green star".

    "and" throughout: commas would tell how many things there are.
    """
    if not whats:
        raise ValueError("a listing needs at least one description")
    return " and ".join(with_article(noun(what)) for what in whats)


def _joined(meaning: Meaning) -> str:
    if not isinstance(meaning, And) or not meaning.parts:
        raise ValueError(f"no English here for {type(meaning).__name__} of these parts")
    text = say(meaning.parts[0])
    for part in meaning.parts[1:]:
        text += (" on " if isinstance(part, Ground) else " and ") + say(part)
    return text
