"""Meanings of captions as data, and the oracle that judges them: `judge(meaning, scene)`.

The oracle has three answers. None means that the scene does not settle the matter (an object almost on the diagonal,
two sizes almost equal, two mentions that may be one object); such a caption is neither right nor wrong and no probe
or training pair may use it. The logic over parts is Kleene's.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Literal, get_args

from evaluation.scenes.geometry import (
    Direction,
    all_of,
    any_of,
    bigger,
    direction_of,
    in_front,
    in_the_middle,
    negate,
    size_word,
    toward,
)
from evaluation.scenes.scene import Scene, Thing

Where = Literal["left", "right", "top", "bottom", "middle"]
RelationName = Literal["left of", "right of", "above", "below", "in front of", "behind", "bigger than", "smaller than"]
WHERES: tuple[Where, ...] = get_args(Where)
RELATIONS: tuple[RelationName, ...] = get_args(RelationName)
INVERSE: dict[RelationName, RelationName] = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "in front of": "behind",
    "behind": "in front of",
    "bigger than": "smaller than",
    "smaller than": "bigger than",
}
SPATIAL: tuple[RelationName, ...] = ("left of", "right of", "above", "below")
OPPOSITES: tuple[tuple[RelationName, RelationName], ...] = (("left of", "right of"), ("above", "below"))
_DIRECTION_OF_PLACE: dict[Where, Direction] = {"left": "left", "right": "right", "top": "above", "bottom": "below"}
_DIRECTION_OF_RELATION: dict[RelationName, Direction] = {
    "left of": "left",
    "right of": "right",
    "above": "above",
    "below": "below",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class What:
    """A description of things; what is None is left open. `but_not` takes some out ("a circle that is not striped")."""

    shape: str | None = None
    colour: str | None = None
    texture: str | None = None
    size: Literal["small", "large"] | None = None
    but_not: What | None = None


@dataclass(frozen=True, slots=True)
class Enumeration:
    """There are these things, each another one: "a red circle and a blue square". One entry says "a red circle"."""

    whats: tuple[What, ...]


@dataclass(frozen=True, slots=True)
class Count:
    """There are exactly `number` of them."""

    what: What
    number: int


@dataclass(frozen=True, slots=True)
class Place:
    """One of them is in this part of the picture."""

    what: What
    where: Where


@dataclass(frozen=True, slots=True)
class Relation:
    """One of `subject` stands so to another thing, one of `target`."""

    subject: What
    name: RelationName
    target: What


@dataclass(frozen=True, slots=True)
class Ground:
    """The background has this tone."""

    tone: str


@dataclass(frozen=True, slots=True)
class Not:
    part: Meaning


@dataclass(frozen=True, slots=True)
class And:
    parts: tuple[Meaning, ...]


Meaning = Enumeration | Count | Place | Relation | Ground | Not | And


def is_true(meaning: Meaning, scene: Scene) -> bool:
    """Plainly true: False also where the scene does not settle it."""
    return judge(meaning, scene) is True


def is_false(meaning: Meaning, scene: Scene) -> bool:
    """Plainly false: False also where the scene does not settle it."""
    return judge(meaning, scene) is False


def judge(meaning: Meaning, scene: Scene) -> bool | None:
    """True, False, or None where the scene does not settle what the caption says."""
    things = scene.things
    match meaning:
        case Enumeration(whats):
            return _listed(whats, scene)
        case Count(what, number):
            truths = [matches(what, thing) for thing in things]
            sure, unsure = truths.count(True), truths.count(None)
            if not sure <= number <= sure + unsure:
                return False
            return True if unsure == 0 else None
        case Place(what, where):
            return any_of(all_of((matches(what, thing), stands(thing, where))) for thing in things)
        case Relation(subject, name, target):
            return any_of(
                all_of((matches(subject, things[a]), matches(target, things[b]), related(scene, a, name, b)))
                for a, b in permutations(range(len(things)), 2)
            )
        case Ground(tone):
            return scene.background.tone == tone
        case Not(part):
            return negate(judge(part, scene))
        case And(parts):
            return all_of([judge(part, scene) for part in parts])


def matches(what: What, thing: Thing) -> bool | None:
    """Does a description fit a thing? None only for a size between small and large."""
    if (
        (what.shape is not None and what.shape != thing.shape)
        or (what.colour is not None and what.colour != thing.colour)
        or (what.texture is not None and what.texture != thing.texture)
    ):
        return False
    truth: bool | None = True
    if what.size is not None:
        size = size_word(thing)
        truth = None if size is None else size == what.size
    return truth if what.but_not is None else all_of((truth, negate(matches(what.but_not, thing))))


def stands(thing: Thing, where: Where) -> bool | None:
    middle = in_the_middle(thing)
    if where == "middle" or middle:
        return middle if where == "middle" else False
    return toward(thing.x - 0.5, thing.y - 0.5, _DIRECTION_OF_PLACE[where])


def place_of(thing: Thing) -> Where | None:
    """The one place that a thing plainly has."""
    return next((where for where in WHERES if stands(thing, where)), None)


def related(scene: Scene, first: int, name: RelationName, second: int) -> bool | None:
    """Does thing `first` stand in this relation to thing `second`?"""
    a, b = scene.things[first], scene.things[second]
    if name in _DIRECTION_OF_RELATION:
        return toward(a.x - b.x, a.y - b.y, _DIRECTION_OF_RELATION[name])
    if name in ("bigger than", "smaller than"):
        return bigger(a, b) if name == "bigger than" else bigger(b, a)
    return in_front(scene, first, second) if name == "in front of" else in_front(scene, second, first)


def spatial_relation(scene: Scene, first: int, second: int) -> RelationName | None:
    """The one of left of, right of, above and below that plainly holds."""
    a, b = scene.things[first], scene.things[second]
    direction = direction_of(a.x - b.x, a.y - b.y)
    return next((name for name, d in _DIRECTION_OF_RELATION.items() if d == direction), None)


def _listed(whats: tuple[What, ...], scene: Scene) -> bool | None:
    """True if every mention can point at a thing of its own; False if one mention fits nothing."""
    table = [[matches(what, thing) for thing in scene.things] for what in whats]
    present = all_of([any_of(row) for row in table])
    if len(whats) == 1 or present is False:
        return present
    if _assignable([[truth is True for truth in row] for row in table]):
        return True
    return None  # "a circle and a red circle" where both may be the same one


def _assignable(table: list[list[bool]]) -> bool:
    """Can every row take a column of its own? (Bipartite matching by augmenting paths.)"""
    owner: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for column, fits in enumerate(table[row]):
            if fits and column not in tried:
                tried.add(column)
                if column not in owner or place(owner[column], tried):
                    owner[column] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(table)))
