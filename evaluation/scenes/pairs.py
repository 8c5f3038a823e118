"""Minimal pairs: the same scene with exactly one factor changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from evaluation.scenes.config import SceneConfig, layout_problem, look_problem
from evaluation.scenes.dice import Dice
from evaluation.scenes.geometry import MARGIN, in_front
from evaluation.scenes.palette import COLOURS, SHAPES, TONE_LEVELS
from evaluation.scenes.scene import Scene, SceneError, Thing
from evaluation.scenes.shapes import reach

Field = Literal["shape", "colour", "texture", "size", "position", "rotation", "depth", "shade"]
Factor = Literal[
    "shape", "colour", "texture", "size", "position", "rotation", "background",
    "swap shape", "swap colour", "swap texture", "swap size", "swap position", "swap depth",
    "one less",
]  # fmt: skip
_TRIES = 200
_LEAST_TURN_DEG = 15
_LEAST_GROWTH = 1.4  # of the area
_LOOKS_ALIKE_DEG = {"circle": 0, "ring": 0, "square": 90, "cross": 90, "star": 72, "triangle": 120}


def change(scene: Scene, index: int, thing: Thing) -> Scene:
    """The scene with another thing in one place: `change(scene, 0, replace(scene.things[0], colour="red"))`.

    Checks no config.
    """
    return replace(scene, things=(*scene.things[:index], thing, *scene.things[index + 1 :]))


def swap(scene: Scene, field: Field, first: int = 0, second: int = 1) -> Scene:
    """Two things exchange one field; "position" is x and y together. Checks no config.

    Sizes are areas, so a swap of shapes keeps how much of the picture each thing covers.
    """
    names = {"position": ("x", "y"), "rotation": ("rotation_deg",), "depth": ("z",)}.get(field, (field,))
    things = list(scene.things)
    a, b = things[first], things[second]
    things[first] = replace(a, **{name: getattr(b, name) for name in names})
    things[second] = replace(b, **{name: getattr(a, name) for name in names})
    return replace(scene, things=tuple(things))


def remove(scene: Scene, index: int) -> Scene:
    """The scene without one thing; later things move up one index."""
    return replace(scene, things=scene.things[:index] + scene.things[index + 1 :])


def problem(scene: Scene, config: SceneConfig) -> str | None:
    """The first rule of the config that the scene breaks, or None."""
    return look_problem(scene.things, config) or layout_problem(scene.things, config)


def differences(first: Scene, second: Scene) -> set[tuple[int, str]]:
    """(index, field) of every difference; index -1 is the background, and a missing thing differs in "presence"."""
    out: set[tuple[int, str]] = set()
    if first.background != second.background:
        out.add((-1, "background"))
    for index in range(max(len(first.things), len(second.things))):
        if index >= min(len(first.things), len(second.things)):
            out.add((index, "presence"))
            continue
        a, b = first.things[index], second.things[index]
        fields = {"x": "position", "y": "position", "rotation_deg": "rotation", "z": "depth"}
        names = ("shape", "colour", "texture", "size", "x", "y", "z", "rotation_deg", "shade")
        out |= {(index, fields.get(name, name)) for name in names if getattr(a, name) != getattr(b, name)}
    return out


def minimal_pair(scene: Scene, factor: Factor, *, config: SceneConfig, seed: int = 0) -> Scene:
    """Another scene that keeps the config's rules and differs in one factor only.

    A plain factor changes one thing, drawn by the seed; a "swap" factor exchanges a field of things 0 and 1; "one less"
    removes a thing. With a config of `split`, changed and swapped things stay within that split's pairs.

    Raises:
        SceneError: the factor cannot be changed within the rules (equal colours to swap, no free place, ...).
    """
    dice = Dice("minimal pair", config.stream, scene.seed, factor, seed)
    rules = config
    if factor == "one less":
        overlap = "never" if config.overlap == "never" else "allowed"
        rules = replace(config, count=(1, config.count[1]), decided_pair=False, overlap=overlap)
    reason = "nothing tried"
    for _ in range(1 if factor.startswith("swap ") else _TRIES):
        other = _proposal(scene, factor, dice, config)
        broken = _unseen(scene, other) or (problem(other, rules) if other.things else "no thing is left")
        if broken is None:
            return other
        reason = broken
    raise SceneError(f"scene {scene.seed} has no minimal pair in {factor}: {reason}")


def _unseen(scene: Scene, other: Scene) -> str | None:
    """Why nobody would see the difference between a scene and its proposed counterpart, or None."""
    found = differences(scene, other)
    if not found:
        return "the change changes nothing"
    for index, name in found:
        if index < 0 or name not in ("size", "rotation", "position", "depth"):
            continue
        a, b = scene.things[index], other.things[index]
        if name == "size" and max(a.size / b.size, b.size / a.size) ** 2 < _LEAST_GROWTH:
            return f"sizes {a.size} and {b.size} look alike"
        if name == "rotation" and _visible_turn(a, b) < _LEAST_TURN_DEG:
            return f"a {a.texture} {a.shape} turned from {a.rotation_deg} to {b.rotation_deg} degrees looks alike"
        if name == "position" and max(abs(a.x - b.x), abs(a.y - b.y)) < MARGIN:
            return "the thing hardly moves"
        if name == "depth" and not any(in_front(scene, index, i) is not None for i in range(len(scene.things))):
            return "the things do not overlap"
    return None


def _visible_turn(a: Thing, b: Thing) -> float:
    """Degrees between two rotations, less the turns that leave the look unchanged."""
    period = _LOOKS_ALIKE_DEG.get(a.shape, 360)
    if period == 0:
        period = {"plain": 0, "striped": 180}.get(a.texture, 90)
    turn = (a.rotation_deg - b.rotation_deg) % period if period else 0
    return min(turn, period - turn)


def _proposal(scene: Scene, factor: Factor, dice: Dice, config: SceneConfig) -> Scene:
    if factor == "background":
        tone = dice.pick([tone for tone in config.tones if tone != scene.background.tone] or config.tones)
        level = dice.uniform(*TONE_LEVELS[tone])
        pattern, seed = dice.pick(config.patterns), dice.between(0, 2**31 - 1)
        return replace(scene, background=replace(scene.background, tone=tone, level=level, pattern=pattern, seed=seed))
    index = dice.between(0, len(scene.things) - 1)
    if factor == "one less":
        return remove(scene, index)
    if factor.startswith("swap "):
        if len(scene.things) < 2:
            raise SceneError(f"scene {scene.seed} has {len(scene.things)} thing, a swap needs two")
        field: Field = factor.removeprefix("swap ")  # pyright: ignore[reportAssignmentType]
        return swap(scene, field)
    return change(scene, index, _CHANGES[factor](scene.things[index], dice, config))


def _elsewhere(thing: Thing, dice: Dice, config: SceneConfig) -> Thing:
    edge = reach(thing) + 1 / 1024
    return replace(thing, x=dice.uniform(edge, 1 - edge), y=dice.uniform(edge, 1 - edge))


_CHANGES: dict[str, Callable[[Thing, Dice, SceneConfig], Thing]] = {
    "shape": lambda thing, dice, config: replace(thing, shape=dice.pick(SHAPES)),
    "colour": lambda thing, dice, config: replace(thing, colour=dice.pick(COLOURS)),
    "texture": lambda thing, dice, config: replace(thing, texture=dice.pick(config.textures)),
    "size": lambda thing, dice, config: replace(thing, size=dice.uniform(*config.size)),
    "position": _elsewhere,
    "rotation": lambda thing, dice, config: replace(
        thing, rotation_deg=dice.between(-config.turn_deg, config.turn_deg)
    ),
}
