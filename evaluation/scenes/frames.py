"""The sentences that meanings are put into, in sets of words.

`train` is what a model may be trained on, and `varied` is more of the same words for who wants more than a handful of
sentences. `recombined` holds new sentences made only of words that occur in `train`
(a test compares the vocabularies), so it measures whether a negation was understood or a template learnt. `unseen`
uses negation words that training never shows ("without", "lacks", "missing", "instead of"); its affirmative frames use
unseen words too, so that an unknown word is no sign of a negation. No sentence of these two begins like one of
training: neither with the first three words of one, nor with the whole of a shorter one, where any slot counts as a
word and all slots as the same one. In `recombined` each beginning stands in all three kinds, so that it tells none.

Slots: {a} a list with articles; {no} a bare noun phrase; {a_no} the same with its article; {place} {relation} {b};
{be} {n} {things}; {tone}.
"""

from __future__ import annotations

from typing import Literal

Words = Literal["train", "varied", "recombined", "unseen"]
Family = Literal["affirmative", "negative", "hybrid", "no_place", "place", "relation", "count", "ground"]
WORDS: tuple[Words, ...] = ("train", "recombined", "unseen")  # what probes ask in

FRAMES: dict[Family, dict[Words, tuple[str, ...]]] = {
    "affirmative": {
        "train": ("{a}", "a picture of {a}", "there is {a}", "a picture with {a}", "{a} in the picture"),
        "recombined": ("there in the picture is {a}", "in a picture there is {a}", "the picture is with {a}"),
        "unseen": ("the image shows {a}", "the image contains {a}", "here appears {a}", "look at {a}"),
    },
    "negative": {
        "train": (
            "there is no {no}",
            "a picture with no {no}",
            "no {no} in the picture",
            "{a_no} is not in the picture",
        ),
        "recombined": (
            "there in the picture is no {no}",
            "in a picture there is not {a_no}",
            "the picture is with no {no}",
        ),
        "unseen": (
            "an image without {a_no}",
            "the image lacks {a_no}",
            "missing here is {a_no}",
            "nothing here is {a_no}",
        ),
    },
    "hybrid": {
        "train": ("there is {a} but no {no}", "a picture with {a} and no {no}", "{a} but no {no} in the picture"),
        "recombined": (
            "there in the picture is {a} but no {no}",
            "in a picture there is {a} but not {a_no}",
            "the picture is with {a} and with no {no}",
        ),
        "unseen": (
            "an image of {a} without {a_no}",
            "here is {a} instead of {a_no}",
            "the image shows {a} yet lacks {a_no}",
        ),
    },
    "no_place": {"train": ("no {no} {place}", "there is no {no} {place}", "a picture with no {no} {place}")},
    "place": {"train": ("{a} {place}", "there is {a} {place}", "a picture with {a} {place}", "{place} there is {a}")},
    "relation": {"train": ("{a} {relation} {b}", "there is {a} {relation} {b}", "a picture of {a} {relation} {b}")},
    "count": {
        "train": ("{n} {things}", "there {be} {n} {things}", "a picture of {n} {things}", "{n} {things} in the picture")
    },
    "ground": {"train": ("a {tone} background", "there is a {tone} background", "a picture with a {tone} background")},
}

_MORE: dict[Family, tuple[str, ...]] = {
    "affirmative": ("in the picture is {a}", "there is a picture with {a}", "{a} in a picture", "the picture with {a}"),
    "negative": (
        "no {no}",
        "not {a_no}",
        "there is not {a_no}",
        "{a_no} is not there",
        "in the picture no {no}",
        "no {no} is in the picture",
        "a picture of no {no}",
        "there is a picture with no {no}",
    ),
    "hybrid": (
        "{a} but not {a_no}",
        "{a} and no {no}",
        "no {no} but {a}",
        "there is {a} and not {a_no}",
        "there is {a} and there is no {no}",
        "a picture of {a} but no {no}",
        "a picture with no {no} but with {a}",
        "no {no} in the picture but {a}",
        "{a} in the picture and no {no}",
    ),
}


def frames(family: Family, words: Words = "train") -> tuple[str, ...]:
    """The frames of a family; those without held-out frames (all that hold no negation) answer with `train`."""
    if words == "varied":
        return (*FRAMES[family]["train"], *_MORE.get(family, ()))
    return FRAMES[family].get(words, FRAMES[family]["train"])
