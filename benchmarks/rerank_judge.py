"""Measurements of a reranker on held-out scenes: probes, galleries, two stages, naming, and what a pair costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.encoder import Encoder
from evaluation.probes import binding, relation
from evaluation.probes.matching import MatchReader
from evaluation.probes.pictures import Picture
from evaluation.probes.pool import Pool, PoolSize, named
from evaluation.probes.readers import EncoderReader, Reader, Sentence, said
from evaluation.probes.rows import ProbeRow, mean_row
from evaluation.scenes.config import Pair
from evaluation.scenes.meaning import Enumeration, Meaning, Relation, What, is_true
from evaluation.scenes_report import single_scenes
from model_store.reranking import Reranker
from model_store.towers import DenseTower, Tower
from training.methods.parts.rerank_run import TorchReranker

GALLERY = 8
DEPTHS = (8, 32, 100)
NAMED_DEPTH = 8
Numbers = dict[str, dict[str, float | int | None]]
F32 = NDArray[np.float32]
_BOTH = {"binding": binding.build, "relation": relation.build}


@dataclass
class Blind:
    """`see` of a reranker that is shown the mean of the pictures that it is asked about, whatever the picture."""

    reranker: TorchReranker
    mean: F32 | None = field(default=None)

    def __call__(self, pictures: Sequence[NDArray[np.uint8]]) -> list[F32]:
        if self.mean is None:
            self.mean = np.asarray(np.mean(self.reranker.see(pictures), axis=0), dtype=np.float32)
        return [self.mean for _ in pictures]


def readers(reranker: TorchReranker, encoder: Encoder) -> dict[str, Reader]:
    """The dual encoder, the reranker, and the reranker that is blind to pictures."""
    side = side_px(reranker)
    return {
        "dual encoder": EncoderReader(encoder, size_px=side),
        "reranker": MatchReader(reranker.see, reranker.match_texts, size_px=side),
        "blind": MatchReader(Blind(reranker), reranker.match_texts, size_px=side),
    }


def side_px(reranker: TorchReranker) -> int:
    return reranker.dense.spec.height_px or reranker.dense.spec.short_px


def probed(asked: dict[str, Reader], pool: Pool) -> Numbers:
    """Binding and relation, as `<reader>/<row>`."""
    found: Numbers = {}
    for name, build in _BOTH.items():
        for reader, each in asked.items():
            found |= {f"{reader}/{name}: {row.name}": _numbers(row) for row in build(pool).measure(each)}
    return found


def galleries(asked: dict[str, Reader], pool: Pool) -> Numbers:
    """R@1 among GALLERY pictures, of which one is right.

    layouts: the eight scenes of one group, two things in four layouts and both colourings; the query says layout and
    colours. swaps: a scene, the same with its colours exchanged, and scenes of other groups; the query lists things.
    another text: the reranker is asked for the next query's text, which finds the right picture by luck only.
    """
    dice = np.random.default_rng(pool.seed)
    layouts: list[tuple[list[Picture], Sentence, int]] = []
    swaps: list[tuple[list[Picture], Sentence, int]] = []
    for number, group in enumerate(pool.compass):
        pictures = [Picture(scene) for scene in group.scenes]
        for scenes in (group.plain, group.swapped):
            for name, scene in scenes.items():
                a, b = (named(thing) for thing in scene.things)
                layouts.append((_first(Picture(scene), pictures), said(Relation(a, name, b)), number))
            scene, twin = (each["left of"] for each in (scenes, _other(group, scenes)))
            text = Enumeration((named(scene.things[0]), named(scene.things[1])))
            far = [each for other in pool.compass if other is not group for each in other.scenes]
            far = [each for each in far if not is_true(text, each)]
            rest = [Picture(far[at]) for at in dice.choice(len(far), size=GALLERY - 2, replace=False)]
            swaps.append(([Picture(scene), Picture(twin), *rest], said(text), number))
    found: Numbers = {}
    for name, questions in (("layouts", layouts), ("swaps", swaps)):
        for reader, each in asked.items():
            found[f"{reader}/{name}"] = _numbers(_found_first(each, questions))
        turned = [
            (shown, questions[(at + 11) % len(questions)][1], group) for at, (shown, _, group) in enumerate(questions)
        ]
        found[f"another text/{name}"] = _numbers(_found_first(asked["reranker"], turned))
    return found


def _other(group: Any, scenes: Any) -> Any:
    return group.swapped if scenes is group.plain else group.plain


def _first(right: Picture, pictures: Sequence[Picture]) -> list[Picture]:
    return [right, *(each for each in pictures if each != right)]


def _found_first(reader: Reader, questions: Sequence[tuple[list[Picture], Sentence, int]]) -> ProbeRow:
    """The right picture stands first in each question; a tie is wrong."""
    scores = reader.scores([(picture, text) for pictures, text, _ in questions for picture in pictures])
    each = scores.reshape(len(questions), GALLERY)
    right = each[:, 0] > each[:, 1:].max(axis=1) + 1e-6
    return mean_row("R@1", right.astype(float), [group for *_, group in questions], chance=1 / GALLERY)


def two_stages(asked: dict[str, Reader], pool: Pool) -> Numbers:
    """Search of all scenes of the pool by the things of one of them, and by their layout too: R@1, and what stage one
    leaves in reach. A picture is right where the query is true of it. Behind the first k the order of stage one stays.
    """
    things: list[tuple[Meaning, int]] = []
    layouts: list[tuple[Meaning, int]] = []
    for number, group in enumerate(pool.compass):
        for name in ("left of", "above"):
            a, b = (named(thing) for thing in group.plain[name].things)
            layouts.append((Relation(a, name, b), number))
            things.append((Enumeration((a, b) if name == "above" else (b, a)), number))
    return {**_staged("things", asked, pool, things), **_staged("layouts", asked, pool, layouts)}


def _staged(kind: str, asked: dict[str, Reader], pool: Pool, queries: Sequence[tuple[Meaning, int]]) -> Numbers:
    scenes = [scene for group in pool.compass for scene in group.scenes]
    pictures = [Picture(scene) for scene in scenes]
    groups = [number for _, number in queries]
    dual = asked["dual encoder"]
    logits = dual.image_vectors(pictures) @ dual.text_vectors([said(meaning) for meaning, _ in queries]).T
    order = np.argsort(-logits, axis=0, kind="stable")
    truth = np.array([[is_true(meaning, scene) for meaning, _ in queries] for scene in scenes])
    ranked = np.take_along_axis(truth, order, axis=0)
    found: Numbers = {f"{kind}: stage one/R@1": _numbers(mean_row("", ranked[0].astype(float), groups, chance=None))}
    deepest = min(max(DEPTHS), len(scenes))
    pairs = [(pictures[row], said(queries[at][0])) for at in range(len(queries)) for row in order[:deepest, at]]
    matched = asked["reranker"].scores(pairs).reshape(len(queries), deepest)
    for depth in DEPTHS:
        k = min(depth, deepest)
        best = matched[:, :k].argmax(axis=1)
        right = ranked[best, np.arange(len(queries))]
        found[f"{kind}: stage one/R@{depth}"] = _numbers(
            mean_row("", ranked[:k].any(axis=0).astype(float), groups, chance=None)
        )
        found[f"{kind}: reranked {depth}/R@1"] = _numbers(mean_row("", right.astype(float), groups, chance=None))
    return found


def naming(asked: dict[str, Reader], *, pairs: tuple[Pair, ...], seed: int, count: int) -> Numbers:
    """A picture of one thing among the names of all pairs: by the dual encoder, and with its first names reordered."""
    scenes = single_scenes(pairs=pairs, seed=seed, count=count)
    pictures = [Picture(scene) for scene in scenes]
    names = [said(Enumeration((What(shape=shape, colour=colour),))) for shape, colour in pairs]
    answers = np.array([pairs.index((scene.things[0].shape, scene.things[0].colour)) for scene in scenes])
    dual = asked["dual encoder"]
    order = np.argsort(-(dual.image_vectors(pictures) @ dual.text_vectors(names).T), axis=1, kind="stable")
    first = order[:, :NAMED_DEPTH]
    asked_pairs = [(picture, names[name]) for picture, row in zip(pictures, first, strict=True) for name in row]
    best = asked["reranker"].scores(asked_pairs).reshape(first.shape).argmax(axis=1)
    picked = first[np.arange(count), best]
    rows = {"dual encoder": order[:, 0] == answers, f"reranked {NAMED_DEPTH}": picked == answers}
    return {
        name: _numbers(mean_row("", right.astype(float), range(count), chance=1 / len(pairs)))
        for name, right in rows.items()
    }


def judged(
    reranker: TorchReranker,
    encoder: Encoder,
    *,
    known: tuple[Pair, ...],
    unseen: tuple[Pair, ...],
    seed: int,
    size: PoolSize,
    singles: int,
) -> dict[str, Numbers]:
    """All of it. unseen: pairs of shape and colour that training never had."""
    asked, pool = readers(reranker, encoder), Pool(size, seed=seed, pairs=known)
    return {
        "probes": probed(asked, pool),
        "probes, pairs never trained": probed(readers(reranker, encoder), Pool(size, seed=seed, pairs=unseen)),
        "galleries": galleries(asked, pool),
        "two stages": two_stages(asked, pool),
        "naming": naming(asked, pairs=known, seed=seed, count=singles),
    }


def _numbers(row: ProbeRow) -> dict[str, float | int | None]:
    low, high = row.interval()
    return {
        "score": round(row.value, 4), "low": round(low, 4), "high": round(high, 4), "n": row.n,
        "chance": None if row.chance is None else round(row.chance, 4),
    }  # fmt: skip


def latency(
    reranker: Reranker, dense: DenseTower, image: Tower, *, side: int, own: int, k: int, repeats: int
) -> dict[str, float]:
    """Median milliseconds, each visited in turn: a picture embedded; its positions; a text read; k pairs matched.

    side, own: of the pictures that the dense encoder and the image encoder take. Inputs are noise, one thread a graph.
    """
    dice = np.random.default_rng(0)
    prepared = dice.integers(256, size=(1, own, own, 3), dtype=np.uint8)
    whole = dice.integers(256, size=(1, side, side, 3), dtype=np.uint8)
    grids = [dense(whole).positions[0]] * k
    text = "a red circle left of a blue square"
    tokens = reranker.text_tokens([text])
    parts: dict[str, Callable[[], object]] = {
        "embed a picture": lambda: image(prepared),
        "positions of a picture": lambda: dense(whole),
        "read a text": lambda: reranker.text_tokens([text]),
        f"match {k} pairs": lambda: reranker.match_each(grids, tokens),
    }
    spent: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(repeats):
        for name, run in parts.items():
            start = time.perf_counter()
            run()
            spent[name].append(1e3 * (time.perf_counter() - start))
    found = {name: statistics.median(each) for name, each in spent.items()}
    found["match a pair"] = found[f"match {k} pairs"] / k
    ratios = [pairs / k / one for pairs, one in zip(spent[f"match {k} pairs"], spent["embed a picture"], strict=True)]
    return {
        **{name: round(each, 4) for name, each in found.items()},
        "pair / embedded picture": round(statistics.median(ratios), 4),
    }
