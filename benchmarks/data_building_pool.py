"""A raw pool of drawn scenes whose vocabulary follows a power law, with the faults of a pool of the web."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.scenes.config import Pair, SceneConfig
from evaluation.scenes.mixing import Topic, draw_caption
from evaluation.scenes.rendering import render
from evaluation.scenes.sampling import sample
from evaluation.scenes.scene import Scene
from evaluation.scenes.splits import split
from model_store.files import whole_file

SIDE_PX = 48
PER_SHARD = 2000
MIX: dict[Topic, float] = {"mentions": 0.7, "attributes": 0.3}
# Shares of the pool: copies of earlier pictures (bytes, and coded again), wrong captions, no words, broken, too small.
EQUAL, CODED_AGAIN, WRONG, WORDLESS, CUT, SMALL = 0.05, 0.05, 0.10, 0.05, 0.005, 0.005


@dataclass(frozen=True, kw_only=True)
class PoolPlan:
    """pairs: how many in the pool. exponent: the k-th concept comes as often as k ** -exponent."""

    pairs: int
    exponent: float
    seed: int


def concepts(seed: int) -> tuple[Pair, ...]:
    """48 (shape, colour), the most frequent first; which they are is another thing for each seed."""
    found = split(SceneConfig(), seed=0, share=0.25).train.pairs
    return tuple(found[place] for place in np.random.default_rng((seed, 1)).permutation(len(found)))


def frequencies(count: int, exponent: float) -> np.ndarray:
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return weights / weights.sum()


def scene_of(pair: Pair, number: int, stream: str) -> Scene:
    """One thing of this kind."""
    return sample(number, SceneConfig(count=(1, 1), pairs=(pair,), textures=("plain",), stream=stream))


def write_pool(plan: PoolPlan, folder: Path) -> list[Path]:
    """Shards of the pool; the json of each pair says its scene, so that copies can be told, and its concept's rank."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[Path] = []
    pairs = _pairs(plan)
    for start in range(0, plan.pairs, PER_SHARD):
        shard = folder / f"raw-{start // PER_SHARD:04d}.tar"
        with whole_file(shard) as file, tarfile.open(fileobj=file, mode="w") as tar:
            for number in range(start, min(start + PER_SHARD, plan.pairs)):
                data, text, meta = next(pairs)
                for extension, part in (
                    ("jpg", data),
                    ("json", json.dumps(meta).encode()),
                    ("txt", text.encode()),
                ):
                    entry = tarfile.TarInfo(f"{number:08d}.{extension}")
                    entry.size = len(part)
                    tar.addfile(entry, io.BytesIO(part))
        shards.append(shard)
    return shards


def write_corpus(path: Path, *, lines: int) -> None:
    """A text in which every concept is as frequent: what queries are made of, as Wikipedia was for CLIP."""
    pairs = concepts(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(lines):
            scene = scene_of(pairs[number % len(pairs)], number, "corpus")
            file.write(draw_caption(scene, number, pairs=pairs, mix=MIX).text + "\n")


def _pairs(plan: PoolPlan) -> Iterator[tuple[bytes, str, dict[str, int]]]:
    """(picture, caption, its scene and the rank of its concept)."""
    rng = np.random.default_rng((plan.seed, 2))
    kinds = concepts(plan.seed)
    drawn = rng.choice(len(kinds), size=plan.pairs, p=frequencies(len(kinds), plan.exponent))
    shares = (EQUAL, CODED_AGAIN, WRONG, WORDLESS, CUT, SMALL)
    fates = rng.choice(7, size=plan.pairs, p=(*shares, 1 - sum(shares)))
    before: list[tuple[int, int, Scene]] = []
    last = ""
    for number, (kind, fate) in enumerate(zip(drawn.tolist(), fates.tolist(), strict=True)):
        scene, origin = scene_of(kinds[kind], number, f"pool/{plan.seed}"), number
        if fate < 2 and before:
            origin, kind, scene = before[int(rng.integers(len(before)))]
        image = Image.fromarray(render(scene, SIDE_PX).image)
        text = draw_caption(scene, number, pairs=kinds, mix=MIX).text
        data = _coded(image, quality=70 if fate == 1 and before else 92)
        if fate == 2 and last:
            last, text = text, last
        elif fate == 3:
            text = f"IMG_{number:05d}"
        elif fate == 4:
            data = data[: len(data) // 2]
        elif fate == 5:
            data = _coded(image.resize((12, 12)), quality=92)
        else:
            last = text
        if fate > 1:
            before.append((number, kind, scene))
        yield data, text, {"scene": origin, "rank": kind}


def _coded(image: Image.Image, *, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=quality)
    return out.getvalue()
