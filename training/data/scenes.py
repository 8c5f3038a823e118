"""Drawn scenes as training data: pictures drawn once, captions and hard negatives drawn anew for every batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.scenes.config import Pair, SceneConfig
from evaluation.scenes.judging import FALSE, Scenes
from evaluation.scenes.mixing import draw_caption, draw_with_negative
from evaluation.scenes.rendering import render
from evaluation.scenes.sampling import sample
from evaluation.scenes.scene import Scene
from evaluation.scenes.splits import Splits, split
from training.config import SceneData, ScenePart
from training.data.augment import CorruptionAugment
from training.data.meaning_code import MeaningCode
from training.data.rows import Drawn, LabelledRow

_PICK_STREAM, _CAPTION_STREAM, _CORRUPTION_STREAM = 2, 3, 9
_SAMPLED_TEXTS = 8000


def scene_splits(data: SceneData) -> Splits:
    """Which pairs training may see and name, and which are held out, for any recipe with this share and split_seed."""
    return split(SceneConfig(), seed=data.split_seed, share=data.held_out)


@dataclass(frozen=True, kw_only=True)
class SceneRows:
    """The scenes of a recipe, part by part, and their pictures uint8 [N, S, S, 3].

    `part_of` int64 [N] says which part a scene is from. corruption: of pictures as batches show them.
    """

    scenes: Sequence[Scene]
    part_of: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    parts: tuple[ScenePart, ...]
    pairs: tuple[Pair, ...]
    seed: int
    corruption: CorruptionAugment | None = None

    @property
    def code(self) -> MeaningCode:
        """What captions of these scenes affirm and deny, as numbers."""
        return MeaningCode(self.pairs)

    def pick(self, step: int, count: int) -> NDArray[np.int64]:
        """Rows of a 0-based step: parts by their shares, scenes of a part at random, none twice."""
        rng = np.random.default_rng((self.seed, _PICK_STREAM, step))
        shares = np.array([part.share for part in self.parts])
        wanted = rng.multinomial(count, shares / shares.sum())
        picks = [
            rng.choice(np.flatnonzero(self.part_of == number), size=size, replace=False)
            for number, size in enumerate(wanted)
        ]
        return rng.permutation(np.concatenate(picks))

    def shown(self, picks: NDArray[np.int64], *, size_px: int) -> NDArray[np.uint8]:
        """uint8 [n, size_px, size_px, 3]: the scenes of these rows drawn at another size."""
        if size_px == self.pixels.shape[1]:
            return self.pixels[picks]
        return np.stack([render(self.scenes[row], size_px).image for row in picks])

    def seen(self, picks: NDArray[np.int64], draws: Sequence[int], *, size_px: int) -> NDArray[np.uint8]:
        """The same as a batch shows them: perhaps corrupted, as the seed, the row and the number of its draw say."""
        pixels = self.shown(picks, size_px=size_px)
        if self.corruption is None:
            return pixels
        out = pixels.copy()
        for at, (row, number) in enumerate(zip(picks.tolist(), draws, strict=True)):
            drawn = self.corruption.draw(np.random.default_rng((self.seed, _CORRUPTION_STREAM, row, number)))
            if drawn is not None:
                out[at] = drawn.of(out[at])
        return out

    def draw(self, row: int, number: int, *, negative: bool) -> Drawn:
        """The caption that `row` has in the draw `number`; equal arguments give equal captions."""
        scene, part = self.scenes[row], self.parts[self.part_of[row]]
        seed = (self.seed * 2**20 + number) & (2**62 - 1)
        twins = draw_with_negative(scene, seed, pairs=self.pairs, mix=part.mix, words=part.words) if negative else None
        if twins is None:
            alone = draw_caption(scene, seed, pairs=self.pairs, mix=part.mix, words=part.words)
            return Drawn(text=alone.text, meaning=alone.meaning)
        right, wrong = twins.right, twins.wrong
        return Drawn(text=right.text, negative=wrong.text, meaning=right.meaning, negative_meaning=wrong.meaning)

    def excused(self, picks: NDArray[np.int64], drawn: Sequence[Drawn], *, negatives: bool) -> NDArray[np.bool_]:
        """Which texts are not plainly false of which pictures: bool [B, B], or [B, 2B] with the hard negatives behind.

        A softmax over the batch takes every other text for wrong, but "there is no red circle" is true of most
        pictures; whoever knows it leaves it out.
        """
        meanings = [one.meaning for one in drawn]
        if negatives:
            meanings += [one.negative_meaning or one.meaning for one in drawn]
        scenes = Scenes([self.scenes[row] for row in picks])
        known = {
            meaning: np.zeros(len(picks), dtype=np.bool_) if meaning is None else scenes.judge(meaning) != FALSE
            for meaning in dict.fromkeys(meanings)
        }
        return np.stack([known[meaning] for meaning in meanings], axis=1)

    def texts(self) -> list[str]:
        """A sample of what may be said, large enough to hold every word."""
        step = max(1, len(self.scenes) // _SAMPLED_TEXTS)
        return [
            text
            for row in range(0, len(self.scenes), step)
            for drawn in [self.draw(row, 0, negative=True)]
            for text in (drawn.text, drawn.negative)
            if text is not None
        ]

    def digest(self) -> str:
        """sha256 over the pictures and a sample of the captions."""
        found = hashlib.sha256(np.ascontiguousarray(self.pixels).data)
        for text in self.texts():
            found.update(f"{text}\n".encode())
        return found.hexdigest()


def draw_scenes(data: SceneData, *, seed: int, corruption: CorruptionAugment | None = None) -> SceneRows:
    """Sample and draw every scene of a recipe; `seed` (the run's) only decides which captions are drawn when."""
    config = scene_splits(data).train
    scenes: list[Scene] = []
    part_of: list[int] = []
    for number, part in enumerate(data.parts):
        kind = SceneConfig(
            count=part.count,
            size=part.size,
            textures=part.textures,
            differ_in=part.differ_in,
            decided_pair=part.decided_pair,
            decided_place=part.decided_place,
            pairs=config.pairs,
            stream=f"{config.stream}/{data.seed}/{number}",
        )
        scenes += [sample(index, kind) for index in range(part.scenes)]
        part_of += [number] * part.scenes
    pixels = np.empty((len(scenes), data.cache_px, data.cache_px, 3), dtype=np.uint8)
    for row, scene in enumerate(scenes):
        pixels[row] = render(scene, data.cache_px).image
    return SceneRows(
        scenes=scenes,
        part_of=np.array(part_of),
        pixels=pixels,
        parts=data.parts,
        pairs=config.pairs,
        seed=seed,
        corruption=corruption,
    )


def several_scenes(*, pairs: tuple[Pair, ...], seed: int, count: int) -> list[Scene]:
    """Scenes of one to four plain things, for judging; equal arguments give equal scenes."""
    config = SceneConfig(count=(1, 4), pairs=pairs, textures=("plain",), stream=f"several/{seed}")
    return [sample(number, config) for number in range(count)]


def labelled_scenes(scenes: Sequence[Scene], name: str, *, pairs: Sequence[Pair], side_px: int) -> LabelledRow:
    """Which shapes, colours or pairs ("red circle") out of `pairs` each scene has; name: "shape", "colour" or "pair".

    Raises:
        ValueError: another name.
    """
    if name not in ("shape", "colour", "pair"):
        raise ValueError(f"no label {name!r}: scenes have shape, colour and pair")
    words = {"shape": lambda s, c: s, "colour": lambda s, c: c, "pair": lambda s, c: f"{c} {s}"}[name]
    names = tuple(dict.fromkeys(words(shape, colour) for shape, colour in pairs))
    shown = [{words(thing.shape, thing.colour) for thing in scene.things} for scene in scenes]
    return LabelledRow(
        pixels=np.stack([render(scene, side_px).image for scene in scenes]),
        names=names,
        present=np.array([[each in some for each in names] for some in shown], dtype=np.bool_),
    )
