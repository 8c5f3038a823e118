"""The truth of a picture before any pixel exists: things on a background, frozen, hashable and plain JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from evaluation.scenes.palette import COLOURS, PATTERNS, SHAPES, TEXTURES, TONES


class SceneError(ValueError):
    """A scene, a config or a change that cannot exist; the message says what was got and what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One object. The unit of length is the side of the image; x grows to the right, y downwards.

    `size` is the square root of the drawn area, so two things of one size cover equally many pixels whatever their
    shapes; `x`, `y` is the middle of its outline; the thing with the higher `z` lies in front; `rotation_deg` turns
    clockwise; `shade` in -1..1 is a brightness that no caption names.
    """

    shape: str
    colour: str
    texture: str = "plain"
    size: float
    x: float
    y: float
    z: int
    rotation_deg: int = 0
    shade: float = 0.0

    def __post_init__(self) -> None:
        _known("shape", self.shape, SHAPES)
        _known("colour", self.colour, COLOURS)
        _known("texture", self.texture, TEXTURES)
        if not 0 < self.size <= 1 or not -1 <= self.shade <= 1:
            raise SceneError(f"size must be in (0, 1] and shade in [-1, 1], got {self.size} and {self.shade}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """What lies behind: `level` is its grey in 0..1, `tint` shifts red and blue, `seed` draws the pattern."""

    pattern: str = "plain"
    tone: str = "light"
    level: float = 0.9
    tint: tuple[float, float] = (0.0, 0.0)
    seed: int = 0

    def __post_init__(self) -> None:
        _known("pattern", self.pattern, PATTERNS)
        _known("tone", self.tone, TONES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """`things` keep their index for life (minimal pairs compare by it); depth is `z`, not the order of the tuple."""

    things: tuple[Thing, ...]
    background: Background
    seed: int = 0

    def __post_init__(self) -> None:
        if len({thing.z for thing in self.things}) != len(self.things):
            raise SceneError(f"every thing needs its own z, got {[thing.z for thing in self.things]}")


def depth_ranks(scene: Scene) -> tuple[int, ...]:
    """Per thing: 0 for the nearest, 1 for the next, and so on."""
    order = sorted(range(len(scene.things)), key=lambda index: -scene.things[index].z)
    return tuple(order.index(index) for index in range(len(order)))


def scene_to_json(scene: Scene) -> dict[str, Any]:
    return asdict(scene)


def scene_from_json(data: Mapping[str, Any]) -> Scene:
    """The inverse of `scene_to_json`, also after a trip through a JSON file.

    Raises:
        SceneError: a missing or unknown key, or a value that no scene can have.
    """
    _keys("scene", data, Scene)
    for thing in data["things"]:
        _keys("thing", thing, Thing)
    _keys("background", data["background"], Background)
    background = dict(data["background"])
    red, blue = background["tint"]
    background["tint"] = (red, blue)
    things = tuple(Thing(**thing) for thing in data["things"])
    return Scene(things=things, background=Background(**background), seed=data["seed"])


def _keys(name: str, data: Mapping[str, Any], kind: type) -> None:
    expected = {field.name for field in fields(kind)}
    if set(data) != expected:
        raise SceneError(f"{name} has keys {sorted(data)}, expected {sorted(expected)}")


def _known(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise SceneError(f"{name} must be one of {', '.join(known)}, got {value!r}")
