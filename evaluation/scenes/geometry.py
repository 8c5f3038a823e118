"""Geometry of scenes (place, size, depth) with margins: True, False, or None where people would disagree.

The margins follow CLEVR's idea that a relation counts only when it is plain to see.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from evaluation.scenes.scene import Scene, Thing
from evaluation.scenes.shapes import footprint, reach

Direction = Literal["left", "right", "above", "below"]
DIRECTIONS: tuple[Direction, ...] = ("left", "right", "above", "below")
_STEP: dict[Direction, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}

MARGIN = 0.15  # least distance along the named axis, in image sides
DOMINANCE = 2.0  # least ratio of the distance along the named axis to the one across
MIDDLE = 0.09  # farthest from the middle that is still "in the middle"
LARGER_AREA = 2.0  # least ratio of areas of "bigger"
LARGER_REACH = 1.25  # least ratio of outline radii of "bigger": a hollow ring can look as big as a heavier square
SMALL, LARGE = 0.20, 0.27  # sizes up to which a thing is small, from which it is large
CONTACT = 0.06  # least share of the smaller thing on which one is seen in front of the other
_REFERENCE_PX = 64


def toward(dx: float, dy: float, direction: Direction) -> bool | None:
    """Is an offset (y downwards) in this direction? None between the directions and near zero."""
    sx, sy = _STEP[direction]
    along, across = dx * sx + dy * sy, abs(dx * sy) + abs(dy * sx)
    if along >= MARGIN and along >= DOMINANCE * across:
        return True
    if along <= 0 or (across >= MARGIN and across >= DOMINANCE * along):
        return False
    return None


def direction_of(dx: float, dy: float) -> Direction | None:
    """The one direction that an offset plainly has."""
    return next((d for d in DIRECTIONS if toward(dx, dy, d)), None)


def in_the_middle(thing: Thing) -> bool | None:
    dx, dy = thing.x - 0.5, thing.y - 0.5
    if max(abs(dx), abs(dy)) <= MIDDLE:
        return True
    return False if max(abs(dx), abs(dy)) >= MARGIN else None


def bigger(first: Thing, second: Thing) -> bool | None:
    areas, reaches = (first.size / second.size) ** 2, reach(first) / reach(second)
    if areas >= LARGER_AREA and reaches >= LARGER_REACH:
        return True
    if areas <= 1 / LARGER_AREA and reaches <= 1 / LARGER_REACH:
        return False
    return None


def size_word(thing: Thing) -> Literal["small", "large"] | None:
    return "small" if thing.size <= SMALL else "large" if thing.size >= LARGE else None


def circles_touch(first: Thing, second: Thing, *, gap: float = 0.0) -> bool:
    """Do the circles around two outlines come closer than `gap`?"""
    dx, dy, least = first.x - second.x, first.y - second.y, reach(first) + reach(second) + gap
    return dx * dx + dy * dy < least * least


@dataclass(frozen=True, slots=True)
class Coverage:
    """Areas in pixels of a 64 x 64 reference picture: whole things, what is seen of them, and meetings.

    `contact[(front, back)]` counts pixels that lie in both and show the front one.
    """

    full: tuple[int, ...]
    visible: tuple[int, ...]
    contact: dict[tuple[int, int], int]

    def hidden(self, index: int) -> float:
        return 1 - self.visible[index] / max(1, self.full[index])


def coverage(things: tuple[Thing, ...]) -> Coverage:
    side = _REFERENCE_PX
    inside = np.zeros((len(things), side, side), dtype=bool)
    owner = np.full((side, side), -1, dtype=np.int8)
    for index in sorted(range(len(things)), key=lambda i: things[i].z):
        place = footprint(things[index], side)
        mask = place.distance_px <= 0
        inside[index][place.window] = mask
        owner[place.window][mask] = index
    contact: dict[tuple[int, int], int] = {}
    for front in range(len(things)):
        shown = inside[front] & (owner == front)
        for back in range(len(things)):
            if things[front].z > things[back].z and circles_touch(things[front], things[back]):
                contact[front, back] = int(np.count_nonzero(shown & inside[back]))
    full = tuple(int(np.count_nonzero(mask)) for mask in inside)
    visible = tuple(int(np.count_nonzero(owner == index)) for index in range(len(things)))
    return Coverage(full, visible, contact)


def in_front(scene: Scene, first: int, second: int) -> bool | None:
    """Is thing `first` seen in front of thing `second`? None where they do not visibly overlap."""
    things = scene.things
    if first == second or not circles_touch(things[first], things[second]):
        return None
    seen = _coverage_of(scene)
    front, back = (first, second) if things[first].z > things[second].z else (second, first)
    smaller = min(seen.full[first], seen.full[second])
    if seen.contact.get((front, back), 0) < max(4, CONTACT * smaller):
        return None
    return front == first


@lru_cache(maxsize=256)
def _coverage_of(scene: Scene) -> Coverage:
    return coverage(scene.things)


def any_of(truths: Iterable[bool | None]) -> bool | None:
    """Kleene's "or": True if one is, False if all are, else None."""
    unsure = False
    for truth in truths:
        if truth:
            return True
        unsure = unsure or truth is None
    return None if unsure else False


def all_of(truths: Iterable[bool | None]) -> bool | None:
    """Kleene's "and"."""
    return negate(any_of(negate(truth) for truth in truths))


def negate(truth: bool | None) -> bool | None:
    return None if truth is None else not truth
