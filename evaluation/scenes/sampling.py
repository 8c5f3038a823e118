"""Sampling of a scene from a seed: looks first, then a layout that is drawn again until no rule is broken."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.scenes.config import Pair, SceneConfig, layout_problem
from evaluation.scenes.dice import Dice
from evaluation.scenes.palette import BACKGROUND_TINT, TONE_LEVELS
from evaluation.scenes.scene import Background, Scene, SceneError, Thing
from evaluation.scenes.shapes import AREA, OUTER

_LOOKS, _LAYOUTS, _DARTS = 200, 400, 25


def sample(seed: int, config: SceneConfig) -> Scene:
    """The scene of this seed: the same in every process and whatever was sampled before.

    How many things there are and how they look is drawn once; only their layout (size, position, rotation, depth) is
    drawn again when a rule refuses it, so refusals do not skew counts and colours.

    Raises:
        SceneError: no layout was found; the config asks for too many, too big or too constrained things.
    """
    dice = Dice(config.stream, seed)
    background = _background(dice, config)
    looks = _looks(dice, config)
    problem: str | None = "no free place found"
    for _ in range(_LAYOUTS):
        things = _layout(dice, config, looks)
        if things is None:
            continue
        problem = layout_problem(things, config)
        if problem is None:
            return Scene(things=things, background=background, seed=seed)
    raise SceneError(
        f"seed {seed}, stream {config.stream!r}: no layout of {len(looks)} things keeps the rules ({problem})"
    )


@dataclass(frozen=True, slots=True)
class _Look:
    shape: str
    colour: str
    texture: str
    shade: float


def _background(dice: Dice, config: SceneConfig) -> Background:
    pattern, tone = dice.pick(config.patterns), dice.pick(config.tones)
    low, high = TONE_LEVELS[tone]
    return Background(
        pattern=pattern,
        tone=tone,
        level=dice.uniform(low, high),
        tint=(dice.uniform(-BACKGROUND_TINT, BACKGROUND_TINT), dice.uniform(-BACKGROUND_TINT, BACKGROUND_TINT)),
        seed=dice.between(0, 2**31 - 1),
    )


def _looks(dice: Dice, config: SceneConfig) -> list[_Look]:
    count = dice.between(*config.count)
    for _ in range(_LOOKS):
        looks: list[_Look] = []
        for _ in range(count):
            look = _next_look(dice, config, looks)
            if look is None:
                break
            looks.append(look)
        else:
            return looks
    raise SceneError(f"{count} things cannot share {config.share} and differ in {config.differ_in} with these pairs")


def _next_look(dice: Dice, config: SceneConfig, looks: list[_Look]) -> _Look | None:
    pairs: tuple[Pair, ...] | list[Pair] = config.pairs
    textures: tuple[str, ...] | list[str] = config.textures
    if looks and (config.share or config.differ_in or config.distinct_pairs):
        pairs = [pair for pair in pairs if _pair_fits(pair, config, looks)]
        if "texture" in config.share:
            textures = [looks[0].texture]
        if "texture" in config.differ_in:
            textures = [texture for texture in textures if all(texture != look.texture for look in looks)]
        if not pairs or not textures:
            return None
    shape, colour = dice.pick(pairs)
    return _Look(shape, colour, dice.pick(textures), dice.uniform(-1, 1))


def _pair_fits(pair: Pair, config: SceneConfig, looks: list[_Look]) -> bool:
    shape, colour = pair
    return (
        ("shape" not in config.share or shape == looks[0].shape)
        and ("colour" not in config.share or colour == looks[0].colour)
        and ("shape" not in config.differ_in or all(shape != look.shape for look in looks))
        and ("colour" not in config.differ_in or all(colour != look.colour for look in looks))
        and (not config.distinct_pairs or all(pair != (look.shape, look.colour) for look in looks))
    )


def _layout(dice: Dice, config: SceneConfig, looks: list[_Look]) -> tuple[Thing, ...] | None:
    depths = dice.shuffled(range(len(looks)))
    placed: list[tuple[float, float, float]] = []
    things: list[Thing] = []
    for look, depth in zip(looks, depths, strict=True):
        size = dice.uniform(*config.size)
        edge = size * OUTER[look.shape] / AREA[look.shape] ** 0.5
        spot = _spot(dice, config, edge, placed)
        if spot is None:
            return None
        placed.append((*spot, edge))
        turn = dice.between(-config.turn_deg, config.turn_deg)
        things.append(
            Thing(
                shape=look.shape,
                colour=look.colour,
                texture=look.texture,
                size=size,
                x=spot[0],
                y=spot[1],
                z=depth,
                rotation_deg=turn,
                shade=look.shade,
            )
        )
    return tuple(things)


def _spot(
    dice: Dice, config: SceneConfig, edge: float, placed: list[tuple[float, float, float]]
) -> tuple[float, float] | None:
    """A middle for a circle of radius `edge` inside the picture, apart from the others unless overlap is wanted."""
    low, high = edge + 1 / 1024, 1 - edge - 1 / 1024
    if low >= high:
        return None
    if config.overlap == "required" and len(placed) == 1:
        x, y, radius = placed[0]
        spread = 0.9 * (radius + edge)
        return _clip(x + dice.uniform(-spread, spread), low, high), _clip(y + dice.uniform(-spread, spread), low, high)
    for _ in range(_DARTS):
        x, y = dice.uniform(low, high), dice.uniform(low, high)
        if config.overlap != "never" or all(
            (x - px) ** 2 + (y - py) ** 2 >= (edge + radius + config.gap) ** 2 for px, py, radius in placed
        ):
            return x, y
    return None


def _clip(value: float, low: float, high: float) -> float:
    return round(min(max(value, low), high) * 1024) / 1024
