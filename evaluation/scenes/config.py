"""Configuration of scenes: the ranges that are drawn from, and the rules by which a scene is thrown away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from evaluation.scenes.geometry import CONTACT, circles_touch, coverage, direction_of
from evaluation.scenes.meaning import place_of
from evaluation.scenes.palette import COLOURS, PATTERNS, SHAPES, TEXTURES, TONES
from evaluation.scenes.scene import SceneError, Thing
from evaluation.scenes.shapes import reach

Pair = tuple[str, str]
Attribute = Literal["shape", "colour", "texture"]
Overlap = Literal["never", "allowed", "required"]
LEAST_TEXTURED = 0.16


def all_pairs(shapes: Sequence[str] = SHAPES, colours: Sequence[str] = COLOURS) -> tuple[Pair, ...]:
    """Every (shape, colour), shape by shape."""
    return tuple((shape, colour) for shape in shapes for colour in colours)


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """What `sample` draws from. Lengths are shares of the image side, areas shares of the image.

    count: fewest and most things. size: square root of a thing's area, lowest and highest. turn_deg: most that a
    thing is turned either way. pairs: the (shape, colour) combinations that may occur.
    share / differ_in: attributes that all things have in common / in which no two things agree.
    distinct_pairs: no two things agree in both shape and colour.
    overlap: `never` keeps the circles around things apart by `gap`; `allowed` lets things hide each other up to
    `most_hidden` of their area; `required` makes things 0 and 1 overlap plainly.
    decided_pair: things 0 and 1 stand plainly left of, right of, above or below each other.
    decided_place: thing 0 is plainly on the left, on the right, at the top, at the bottom or in the middle.
    least_visible: least visible area of a thing; CLEVR's 200 pixels of 320 x 240.
    stream: a name; the same seed in another stream is another scene.
    """

    count: tuple[int, int] = (1, 4)
    size: tuple[float, float] = (0.17, 0.30)
    turn_deg: int = 25
    pairs: tuple[Pair, ...] = all_pairs()
    textures: tuple[str, ...] = TEXTURES
    patterns: tuple[str, ...] = PATTERNS
    tones: tuple[str, ...] = TONES
    share: tuple[Attribute, ...] = ()
    differ_in: tuple[Attribute, ...] = ()
    distinct_pairs: bool = False
    overlap: Overlap = "never"
    gap: float = 0.015
    most_hidden: float = 0.35
    least_visible: float = 200 / (320 * 240)
    decided_pair: bool = False
    decided_place: bool = False
    stream: str = "scenes"

    def __post_init__(self) -> None:
        low, high = self.count
        if not 1 <= low <= high:
            raise SceneError(f"count must be 1 <= fewest <= most, got {self.count}")
        if not 0 < self.size[0] <= self.size[1] <= 1:
            raise SceneError(f"size must be 0 < lowest <= highest <= 1, got {self.size}")
        for name in ("pairs", "textures", "patterns", "tones"):
            if not getattr(self, name):
                raise SceneError(f"{name} is empty: nothing to draw from")
        if self.size[0] < LEAST_TEXTURED and set(self.textures) != {"plain"}:
            raise SceneError(f"textures cannot be told apart below size {LEAST_TEXTURED}: use textures=('plain',)")
        unknown = sorted(set(self.pairs) - set(all_pairs()))
        if unknown:
            raise SceneError(f"pairs {unknown} are not (shape, colour)")
        if set(self.share) & set(self.differ_in):
            raise SceneError(f"share {self.share} and differ_in {self.differ_in} contradict each other")
        if self.distinct_pairs and {"shape", "colour"} <= set(self.share) and high > 1:
            raise SceneError("distinct_pairs contradicts sharing shape and colour")
        kinds = {
            "shape": {s for s, _ in self.pairs},
            "colour": {c for _, c in self.pairs},
            "texture": set(self.textures),
        }
        for attribute in self.differ_in:
            if len(kinds[attribute]) < high:
                raise SceneError(f"{high} things cannot all differ in {attribute}: {sorted(kinds[attribute])}")
        if (self.decided_pair or self.overlap == "required") and low < 2:
            raise SceneError(f"decided_pair and overlap='required' speak of two things, count is {self.count}")


def look_problem(things: Sequence[Thing], config: SceneConfig) -> str | None:
    """The first rule about number, shape, colour and texture that these things break, or None."""
    low, high = config.count
    if not low <= len(things) <= high:
        return f"{len(things)} things, expected {low} to {high}"
    for thing in things:
        if (thing.shape, thing.colour) not in config.pairs:
            return f"a {thing.colour} {thing.shape} is not among the config's pairs"
        if thing.texture not in config.textures:
            return f"texture {thing.texture} is not among {config.textures}"
    for first, second in combinations(things, 2):
        for attribute in config.share:
            if getattr(first, attribute) != getattr(second, attribute):
                return f"things must share their {attribute}"
        for attribute in config.differ_in:
            if getattr(first, attribute) == getattr(second, attribute):
                return f"things must differ in {attribute}"
        if config.distinct_pairs and (first.shape, first.colour) == (second.shape, second.colour):
            return f"two things are {first.colour} {first.shape}"
    return None


def layout_problem(things: Sequence[Thing], config: SceneConfig) -> str | None:
    """The first rule about position, size and visibility that these things break, or None."""
    for index, thing in enumerate(things):
        edge = reach(thing)
        if not (edge <= thing.x <= 1 - edge and edge <= thing.y <= 1 - edge):
            return f"thing {index} reaches out of the picture"
        if thing.size**2 < config.least_visible:
            return f"thing {index} covers {thing.size**2:.4f} of the picture, least is {config.least_visible:.4f}"
    if config.decided_place and place_of(things[0]) is None:
        return "thing 0 has no plain place"
    if config.decided_pair and direction_of(things[0].x - things[1].x, things[0].y - things[1].y) is None:
        return "things 0 and 1 stand in no plain direction"
    touching = [pair for pair in combinations(range(len(things)), 2) if circles_touch(things[pair[0]], things[pair[1]])]
    if config.overlap == "never":
        return _apart_problem(things, config.gap)
    return _hidden_problem(tuple(things), config) if touching or config.overlap == "required" else None


def _apart_problem(things: Sequence[Thing], gap: float) -> str | None:
    for a, b in combinations(range(len(things)), 2):
        if circles_touch(things[a], things[b], gap=gap):
            return f"things {a} and {b} are closer than {gap}"
    return None


def _hidden_problem(things: tuple[Thing, ...], config: SceneConfig) -> str | None:
    seen = coverage(things)
    picture = 64 * 64
    for index in range(len(things)):
        if seen.hidden(index) > config.most_hidden:
            return f"thing {index} is {seen.hidden(index):.2f} hidden, most is {config.most_hidden}"
        if seen.visible[index] / picture < config.least_visible:
            return f"thing {index} shows too little"
    if config.overlap == "required":
        contact = seen.contact.get((0, 1), 0) + seen.contact.get((1, 0), 0)
        if contact < max(4, CONTACT * min(seen.full[0], seen.full[1])):
            return "things 0 and 1 do not plainly overlap"
    return None
