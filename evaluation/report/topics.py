"""The probes in plain words: what each asks, and what its main rows say about a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a good score in this row means, as words that follow "can". more, less: for a bias, either leaning."""

    row: str
    says: str
    more: str = ""
    less: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    title: str
    asks: str
    claims: tuple[Claim, ...] = ()


TOPICS: Mapping[str, Topic] = {
    "binding": Topic(
        title="Which colour belongs to which thing",
        asks="“A red circle and a blue square”, or the same words with the colours exchanged?",
        claims=(Claim(row="colours swapped", says="tell which colour belongs to which thing"),),
    ),
    "place": Topic(
        title="Where a thing is",
        asks="Is the one thing in the picture on the left, on the right, at the top or at the bottom?",
        claims=(Claim(row="four places", says="tell where a single thing is"),),
    ),
    "relation": Topic(
        title="How two things stand to each other",
        asks="Is A left of, right of, above or below B?",
        claims=(Claim(row="things exchanged", says="tell “A left of B” from “B left of A”"),),
    ),
    "order": Topic(
        title="Order of words",
        asks="Which is the caption: the sentence, or one of four shuffles of its words?",
        claims=(Claim(row="four shuffles", says="prefer a sentence to its shuffled words"),),
    ),
    "replace-add": Topic(
        title="One thing too many, or another one",
        asks="One word of the caption is replaced, or a thing is added that is not there. Is it noticed?",
        claims=(
            Claim(row="replace object", says="notice that a caption names another thing"),
            Claim(row="replace colour", says="notice that a caption names another colour"),
            Claim(row="replace shape", says="notice that a caption names another shape"),
            Claim(row="add object", says="notice that a caption adds a thing"),
        ),
    ),
    "quads": Topic(
        title="Two pictures, two captions of the same words",
        asks="Each caption fits one picture. Does each picture find its caption, and each caption its picture?",
        claims=(Claim(row="colours, group", says="sort two pictures and two captions of the same words"),),
    ),
    "size-bias": Topic(
        title="Bias to the larger thing",
        asks="A picture holds two things. Which of them does the nearest picture of a single thing show?",
        claims=(
            Claim(
                row="larger wins, area x8",
                says="larger and smaller things (area x8) win equally often",
                more="the larger of two things (area x8) wins",
                less="the smaller of two things (area x8) wins",
            ),
        ),
    ),
    "mention-bias": Topic(
        title="Bias to the first mention",
        asks="A text lists two or three things. Which of them does the nearest text about a single thing name?",
        claims=(
            Claim(
                row="2 things, first wins",
                says="first and second mention win equally often",
                more="the thing that is mentioned first wins",
                less="the thing that is mentioned last wins",
            ),
        ),
    ),
    "adverse": Topic(
        title="Replaced things that go unnoticed",
        asks="One of two named things is replaced. Does it matter how large it is, or whether it is named last?",
    ),
    "count": Topic(
        title="Counting",
        asks="“Three circles” or “four circles”? And which of the numbers one to ten fits best?",
        claims=(Claim(row="one more or less", says="tell n things from n + 1"),),
    ),
    "negation": Topic(
        title="Negation",
        asks="Which sentence is true: what is there, what is not there, or a mixture? “There is a” or “there is no”?",
        claims=(
            Claim(row="is or is no", says="tell “there is a …” from “there is no …”"),
            Claim(row="four options, hybrid", says="understand “a … but no …”"),
        ),
    ),
    "multi-label": Topic(
        title="Which shapes and colours occur",
        asks="All pictures are ranked by how well “there is a …” fits. Do those that hold it come first?",
        claims=(Claim(row="mAP, there is", says="find the pictures that hold a shape or a colour"),),
    ),
    "image-to-image": Topic(
        title="The same thing in another picture",
        asks="Of all other pictures, is the nearest one of the same thing, in another pose, place and background?",
        claims=(Claim(row="recall at 1", says="find the same thing in another picture"),),
    ),
    "few-shot": Topic(
        title="Naming a single thing",
        asks="Which of eight names fits, without and with a few labelled pictures, on classes with and without them?",
        claims=(
            Claim(row="base, zero-shot", says="name a single thing among eight"),
            Claim(row="new, zero-shot", says="name a single thing among eight others"),
        ),
    ),
    "spurious": Topic(
        title="Shapes in unusual colours",
        asks="Is a shape named equally well in every colour, and does “a circle” prefer one colour?",
        claims=(Claim(row="shape named", says="name a shape, whatever its colour"),),
    ),
    "corruption": Topic(
        title="Spoilt pictures",
        asks="Is a single thing still named among sixteen under noise, blur, low contrast and compression?",
        claims=(
            Claim(row="clean", says="name a single thing among sixteen"),
            Claim(row="mean of corrupted", says="name a single thing in a spoilt picture"),
        ),
    ),
    "localize": Topic(
        title="What is where",
        asks="Two to four things in a picture, all pairs of shape and colour as labels: which are there, and where?",
        claims=(
            Claim(row="pointing game", says="point at every thing in a picture of several"),
            Claim(row="mAP, presence", says="say which things a picture of several holds"),
        ),
    ),
    "localisation": Topic(
        title="Pointing",
        asks="Does the cell of the picture that fits “a red circle” best lie on the red circle?",
        claims=(Claim(row="pointing game", says="point at the thing that a text names"),),
    ),
}
