"""Drawn scenes of two to four things as labelled pictures: every truth is exact."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import count
from typing import Literal, get_args

from evaluation.dense.truth import Instance, PictureWithTruth, Truth
from evaluation.scenes.config import Pair, SceneConfig, all_pairs
from evaluation.scenes.meaning import What
from evaluation.scenes.phrases import noun
from evaluation.scenes.rendering import render
from evaluation.scenes.sampling import sample
from evaluation.scenes.scene import Scene, SceneError
from evaluation.scenes.splits import split

PairChoice = Literal["all", "trained", "held-out"]
PAIR_CHOICES: tuple[PairChoice, ...] = get_args(PairChoice)
SIZE_PX = 224  # larger than small models see, so that the truth is finer than their grid
PICTURES = 500


def chosen_pairs(choice: PairChoice) -> tuple[Pair, ...]:
    """All 64 pairs of shape and colour, the three quarters that the recipes of this project train on, or the others."""
    if choice == "all":
        return all_pairs()
    parts = split(SceneConfig())
    return parts.train.pairs if choice == "trained" else parts.heldout.pairs


@dataclass(frozen=True)
class SceneSet:
    """Scenes of two to four plain things that do not overlap. labels: all the pairs they are drawn from."""

    scenes: tuple[Scene, ...]
    pairs: tuple[Pair, ...]
    boxed: bool = True
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(noun(What(shape=shape, colour=colour)) for shape, colour in self.pairs)

    @property
    def asked(self) -> str:
        return hashlib.sha256(repr((self.scenes, self.pairs)).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.scenes)

    def open(self, index: int) -> PictureWithTruth:
        scene = self.scenes[index]
        drawn = render(scene, SIZE_PX)
        seen = zip(scene.things, drawn.masks, drawn.outlines, drawn.boxes.tolist(), strict=True)
        instances = [
            Instance(label=self.pairs.index((thing.shape, thing.colour)), mask=mask, hit=outline, box=tuple(box))
            for thing, mask, outline, box in seen
            if mask.any()
        ]
        truth = Truth(width=SIZE_PX, height=SIZE_PX, instances=tuple(instances))
        return PictureWithTruth(f"scene {index}", drawn.image, truth)


def draw_scenes(*, seed: int, pairs: tuple[Pair, ...], pictures: int = PICTURES) -> SceneSet:
    """Equal arguments give equal scenes.

    Raises:
        SceneError: these pairs leave no room for scenes.
    """
    config = SceneConfig(count=(2, 4), pairs=pairs, textures=("plain",), stream=f"localize/{seed}")
    found: list[Scene] = []
    for number in count():
        if len(found) == pictures:
            return SceneSet(tuple(found), pairs)
        if number >= 4 * pictures:
            raise SceneError(f"only {len(found)} of {pictures} scenes found in {number} tries")
        try:
            found.append(sample(number, config))
        except SceneError:
            continue  # four large things may find no place
    raise SceneError("no scenes")
