"""The scenes that all probes share: closed groups in which every caption that is wrong somewhere is right elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from evaluation.scenes.config import Pair, SceneConfig, all_pairs
from evaluation.scenes.dice import Dice
from evaluation.scenes.meaning import RelationName, What, place_of, spatial_relation
from evaluation.scenes.pairs import change, problem, remove, swap
from evaluation.scenes.palette import COLOURS, SHAPES
from evaluation.scenes.sampling import sample
from evaluation.scenes.scene import Scene, SceneError, Thing

RATIOS = (1, 2, 4, 8)
MOST = 10
GRID = 4
_AREA = 2 * 0.24**2  # of both things of a square together, whatever their ratio
_TRIES = 400
Group = TypeVar("Group")


@dataclass(frozen=True, kw_only=True)
class PoolSize:
    """How many groups of each kind. `quick` gives 430 scenes, `full` eight times as many."""

    compass: int
    class_groups: int
    squares: int
    counts: int
    additions: int
    spoilt: int


QUICK = PoolSize(compass=16, class_groups=2, squares=3, counts=5, additions=10, spoilt=16)
FULL = PoolSize(compass=128, class_groups=16, squares=24, counts=40, additions=80, spoilt=128)


@dataclass(frozen=True)
class Compass:
    """Two things A, B of equal size in four layouts (A left of, right of, above, below B), in both colourings."""

    plain: dict[RelationName, Scene]
    swapped: dict[RelationName, Scene]

    @property
    def scenes(self) -> tuple[Scene, ...]:
        return (*self.plain.values(), *self.swapped.values())


@dataclass(frozen=True)
class ClassGroup:
    """One thing on one background, on the left, on the right, at the top and at the bottom, in this order."""

    what: What
    scenes: tuple[Scene, ...]


@dataclass(frozen=True)
class Square:
    """One layout of two places: the first holds A or C, the second B or D, and either may be the larger by `ratio`.

    scenes[ratio, larger, first, second] with larger, first, second in 0, 1; a ratio of 1 has larger 0 only.
    """

    firsts: tuple[What, What]
    seconds: tuple[What, What]
    scenes: dict[tuple[int, int, int, int], Scene]


@dataclass(frozen=True)
class Addition:
    """{A, B}, {A, D}, {A, B, C} and {A, D, C}; `whats` are A, B, C, D."""

    whats: tuple[What, What, What, What]
    two: tuple[Scene, Scene]
    three: tuple[Scene, Scene]


class Pool:
    """Scenes of one seed; equal arguments give equal scenes. `pairs` limits what may be drawn (held-out ones, say)."""

    def __init__(self, size: PoolSize = QUICK, *, seed: int = 0, pairs: tuple[Pair, ...] = all_pairs()) -> None:
        self.size = size
        self.seed = seed
        self.pairs = pairs

    @cached_property
    def compass(self) -> tuple[Compass, ...]:
        return tuple(self._first(f"compass/{i}", self._compass) for i in range(self.size.compass))

    @cached_property
    def grid(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Four shapes and four colours of which every combination is allowed.

        Raises:
            SceneError: the pairs hold no such grid.
        """
        dice = Dice("grid", self.seed)
        for _ in range(_TRIES):
            shapes, colours = dice.shuffled(SHAPES)[:GRID], dice.shuffled(COLOURS)
            free = [colour for colour in colours if all((shape, colour) in self.pairs for shape in shapes)]
            if len(free) >= GRID:
                return tuple(shapes), tuple(free[:GRID])
        raise SceneError(f"no {GRID} shapes by {GRID} colours lie within these {len(self.pairs)} pairs")

    @cached_property
    def classes(self) -> tuple[What, ...]:
        """The 16 combinations of the grid, shape by shape."""
        shapes, colours = self.grid
        return tuple(What(shape=shape, colour=colour) for shape in shapes for colour in colours)

    @cached_property
    def class_groups(self) -> tuple[tuple[ClassGroup, ...], ...]:
        """For each class its groups, each on its own background and in its own pose."""
        return tuple(
            tuple(
                self._first(f"class/{what.shape}/{what.colour}/{i}", lambda c, s, what=what: self._class(what, c, s))
                for i in range(self.size.class_groups)
            )
            for what in self.classes
        )

    @cached_property
    def squares(self) -> tuple[Square, ...]:
        """Their things are classes of the grid, all of different shapes and colours."""
        return tuple(self._first(f"square/{i}", self._square) for i in range(self.size.squares))

    @cached_property
    def counts(self) -> tuple[tuple[Scene, ...], ...]:
        """Groups of one shape: 1, 2, ... 10 things of it."""
        return tuple(self._first(f"count/{i}", self._count) for i in range(self.size.counts))

    @cached_property
    def additions(self) -> tuple[Addition, ...]:
        return tuple(self._first(f"addition/{i}", self._addition) for i in range(self.size.additions))

    def _first(self, name: str, make: Callable[[str, int], Group | None]) -> Group:
        stream = f"probes/{self.seed}/{name}"
        for seed in range(_TRIES):
            try:
                found = make(stream, seed)
            except SceneError:
                continue
            if found is not None:
                return found
        raise SceneError(f"no {name} in {_TRIES} tries: the pairs or the rules leave no room")

    def _compass(self, stream: str, seed: int) -> Compass | None:
        side = Dice(stream, "side").pick((0.20, 0.24, 0.28))
        config = SceneConfig(
            count=(2, 2),
            size=(side, side),
            pairs=self.pairs,
            textures=("plain",),
            differ_in=("shape", "colour"),
            decided_pair=True,
            stream=stream,
        )
        left = sample(seed, config)
        relation = spatial_relation(left, 0, 1)
        if relation in ("above", "below"):
            left = transposed(left)
        if relation in ("right of", "below"):
            left = swap(left, "position")
        right = swap(left, "position")
        plain: dict[RelationName, Scene] = {
            "left of": left,
            "right of": right,
            "above": transposed(left),
            "below": transposed(right),
        }
        group = Compass(plain, {name: swap(scene, "colour") for name, scene in plain.items()})
        return group if _sound(group.scenes, config) else None

    def _class(self, what: What, stream: str, seed: int) -> ClassGroup | None:
        pairs = ((what.shape or "", what.colour or ""),)
        config = SceneConfig(count=(1, 1), pairs=pairs, textures=("plain",), decided_place=True, stream=stream)
        scene = sample(seed, config)
        if place_of(scene.things[0]) == "middle":
            return None
        if place_of(scene.things[0]) in ("top", "bottom"):
            scene = transposed(scene)
        if place_of(scene.things[0]) == "right":
            scene = mirrored(scene)
        scenes = (scene, mirrored(scene), transposed(scene), transposed(mirrored(scene)))
        return ClassGroup(what, scenes) if _sound(scenes, config) else None

    def _square(self, stream: str, seed: int) -> Square | None:
        dice = Dice(stream, seed)
        shapes, colours = self.grid
        names = list(zip(dice.shuffled(shapes), dice.shuffled(colours), strict=True))
        config = SceneConfig(count=(2, 2), size=(0.32, 0.32), pairs=self.pairs, textures=("plain",), stream=stream)
        rules = replace(config, size=(0.1, 0.34), textures=("plain",))
        layout = sample(seed, config)
        scenes: dict[tuple[int, int, int, int], Scene] = {}
        for ratio in RATIOS:
            small = (_AREA / (1 + ratio)) ** 0.5
            for larger in (0, 1) if ratio > 1 else (0,):
                sizes = [small, small]
                sizes[larger] = small * ratio**0.5
                for first in (0, 1):
                    for second in (0, 1):
                        scene = layout
                        for at, name in ((0, names[2 * first]), (1, names[2 * second + 1])):
                            thing = replace(layout.things[at], shape=name[0], colour=name[1], size=sizes[at])
                            scene = change(scene, at, thing)
                        scenes[ratio, larger, first, second] = scene
        whats = [What(shape=shape, colour=colour) for shape, colour in names]
        square = Square((whats[0], whats[2]), (whats[1], whats[3]), scenes)
        return square if _sound(scenes.values(), rules) else None

    def _count(self, stream: str, seed: int) -> tuple[Scene, ...] | None:
        shape = Dice(stream).pick(sorted({shape for shape, _ in self.pairs}))
        pairs = tuple(pair for pair in self.pairs if pair[0] == shape)
        return tuple(
            sample(
                seed,
                SceneConfig(
                    count=(number, number),
                    size=(0.10, 0.14),
                    pairs=pairs,
                    textures=("plain",),
                    stream=f"{stream}/{number}",
                ),
            )
            for number in range(1, MOST + 1)
        )

    def _addition(self, stream: str, seed: int) -> Addition | None:
        dice = Dice(stream, seed)
        config = SceneConfig(
            count=(3, 3),
            size=(0.2, 0.26),
            pairs=self.pairs,
            textures=("plain",),
            differ_in=("shape", "colour"),
            stream=stream,
        )
        full = sample(seed, config)
        used = {thing.shape for thing in full.things}, {thing.colour for thing in full.things}
        fourth = dice.pick([pair for pair in self.pairs if pair[0] not in used[0] and pair[1] not in used[1]])
        other = change(full, 1, replace(full.things[1], shape=fourth[0], colour=fourth[1]))
        if not _sound((full, other), config):
            return None
        a, b, c = (named(thing) for thing in full.things)
        return Addition((a, b, c, named(other.things[1])), (remove(full, 2), remove(other, 2)), (full, other))


def named(thing: Thing) -> What:
    return What(shape=thing.shape, colour=thing.colour)


def transposed(scene: Scene) -> Scene:
    """Places reflected at the falling diagonal: left becomes top. The things themselves stay upright."""
    return replace(scene, things=tuple(replace(thing, x=thing.y, y=thing.x) for thing in scene.things))


def mirrored(scene: Scene) -> Scene:
    """Places reflected left to right. The things themselves stay as they are."""
    return replace(scene, things=tuple(replace(thing, x=1 - thing.x) for thing in scene.things))


def _sound(scenes: Iterable[Scene], config: SceneConfig) -> bool:
    return all(problem(scene, config) is None for scene in scenes)
