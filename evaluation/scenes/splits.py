"""Train, validation and held-out scenes, divided by composition, never by caption.

All captions of a scene are on its side because the side is a property of the scene's things.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from evaluation.scenes.config import Pair, SceneConfig
from evaluation.scenes.dice import Dice
from evaluation.scenes.scene import SceneError


@dataclass(frozen=True, slots=True)
class Splits:
    """Three configs. `validation` has the pairs of `train` and other scenes; `heldout` has pairs that `train` lacks."""

    train: SceneConfig
    validation: SceneConfig
    heldout: SceneConfig


def split(config: SceneConfig, *, seed: int = 0, share: float = 0.25) -> Splits:
    """Hold out about `share` of the (shape, colour) pairs.

    They are held out in blocks of two shapes by two colours, so that two held-out things that swap colours are still
    held out, and binding can be asked on compositions never seen. Every shape and every colour stays in training.

    Raises:
        SceneError: the config's pairs are not a full table of at least 4 shapes by 4 colours, or the share is not
        in (0, 0.5].
    """
    shapes = sorted({shape for shape, _ in config.pairs})
    colours = sorted({colour for _, colour in config.pairs})
    if len(shapes) < 4 or len(colours) < 4 or len(set(config.pairs)) != len(shapes) * len(colours):
        raise SceneError(f"a split needs all pairs of 4 or more shapes and colours, got {len(config.pairs)} pairs")
    if not 0 < share <= 0.5:
        raise SceneError(f"share must be in (0, 0.5], got {share}")
    dice = Dice("split", seed)
    shape_blocks, colour_blocks = _couples(dice.shuffled(shapes)), _couples(dice.shuffled(colours))
    diagonals = max(1, round(share * len(colour_blocks)))
    held: set[Pair] = set()
    for row, shape_block in enumerate(shape_blocks):
        for diagonal in range(diagonals):
            colour_block = colour_blocks[(row + diagonal) % len(colour_blocks)]
            held |= {(shape, colour) for shape in shape_block for colour in colour_block}
    kept = tuple(pair for pair in config.pairs if pair not in held)
    return Splits(
        train=replace(config, pairs=kept, stream=f"{config.stream}/train"),
        validation=replace(config, pairs=kept, stream=f"{config.stream}/validation"),
        heldout=replace(
            config, pairs=tuple(pair for pair in config.pairs if pair in held), stream=f"{config.stream}/heldout"
        ),
    )


def _couples(names: list[str]) -> list[list[str]]:
    """In twos; an odd last one is in no block and is never held out."""
    return [names[i : i + 2] for i in range(0, len(names) - 1, 2)]
