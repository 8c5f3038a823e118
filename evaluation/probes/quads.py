"""Winoground's quads: two pictures and two captions of the same words, each caption true of one picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.metrics import TIE
from evaluation.probes.pictures import Picture
from evaluation.probes.pool import Pool, named
from evaluation.probes.questions import Reads
from evaluation.probes.readers import Reader, Sentence, said
from evaluation.probes.rows import F64, ProbeRow, mean_row
from evaluation.scenes.contrasts import swap_attribute, swap_roles
from evaluation.scenes.meaning import OPPOSITES, Enumeration, Relation

CHANCE = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}
_DRAWS = 600


@dataclass(frozen=True, slots=True)
class Quad:
    """captions[i] is true of pictures[i] and false of the other."""

    pictures: tuple[Picture, Picture]
    captions: tuple[Sentence, Sentence]
    kind: str
    cluster: int


@dataclass(frozen=True)
class Quads:
    quads: tuple[Quad, ...]
    name: str = "quads"
    reads: Reads = "both"

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return tuple(dict.fromkeys(picture for quad in self.quads for picture in quad.pictures))

    @property
    def texts(self) -> tuple[Sentence, ...]:
        return tuple(dict.fromkeys(caption for quad in self.quads for caption in quad.captions))

    def measure(self, reader: Reader) -> list[ProbeRow]:
        asked = [(picture, caption) for quad in self.quads for picture in quad.pictures for caption in quad.captions]
        tables = reader.scores(asked).reshape(-1, 2, 2)
        marks = marked(tables, ties_wrong=reader.ties_wrong)
        rows: list[ProbeRow] = []
        for kind in dict.fromkeys(quad.kind for quad in self.quads):
            at = [index for index, quad in enumerate(self.quads) if quad.kind == kind]
            clusters = [self.quads[index].cluster for index in at]
            rows += [
                mean_row(f"{kind}, {part}", marks[part][at], clusters, chance=chance) for part, chance in CHANCE.items()
            ]
        return rows


def marked(tables: F64, *, ties_wrong: bool) -> dict[str, F64]:
    """text, image and group marks, each [Q], of scores [Q, picture, caption].

    text: both pictures find their caption; image: both captions find their picture; group: both. Where ties are not
    wrong they are broken at random, averaged over many draws.

    Raises:
        ValueError: a score is NaN: the truth of a caption is open.
    """
    if np.isnan(tables).any():
        raise ValueError(f"quad {int(np.argmax(np.isnan(tables).any(axis=(1, 2))))} has a caption whose truth is open")
    if ties_wrong:
        return _strict(tables, TIE)
    random = np.random.default_rng(0)
    drawn = [_strict(tables + random.uniform(0, TIE, tables.shape), 0.0) for _ in range(_DRAWS)]
    return {part: np.sum([marks[part] for marks in drawn], axis=0) / _DRAWS for part in CHANCE}


def _strict(tables: F64, margin: float) -> dict[str, F64]:
    own, across = tables[:, [0, 1], [0, 1]], tables[:, [0, 1], [1, 0]]  # [Q, picture]
    text = np.all(own > across + margin, axis=1).astype(np.float64)
    image = np.all(own > across[:, ::-1] + margin, axis=1).astype(np.float64)
    return {"text": text, "image": image, "group": text * image}


def build(pool: Pool) -> Quads:
    """Colours exchanged in one layout, and opposite layouts of the same two things; either thing is named first."""
    quads: list[Quad] = []
    for cluster, group in enumerate(pool.compass):
        for turn, (name, scene) in enumerate(group.plain.items()):
            whats = [named(thing) for thing in scene.things]
            first = Enumeration(tuple(reversed(whats)) if turn % 2 else tuple(whats))
            pictures = (Picture(scene), Picture(group.swapped[name]))
            quads.append(Quad(pictures, (said(first), said(swap_attribute(first, "colour"))), "colours", cluster))
        for scenes in (group.plain, group.swapped):
            for name, opposite in OPPOSITES:
                a, b = (named(thing) for thing in scenes[name].things)
                relation = Relation(a, name, b)
                pictures = (Picture(scenes[name]), Picture(scenes[opposite]))
                quads.append(Quad(pictures, (said(relation), said(swap_roles(relation))), "places", cluster))
    return Quads(tuple(quads))
