"""Localisation in this process by a dense encoder: scores, maps and boxes of labels as `POST /localize` answers them.

Pictures are prepared, and label vectors, maps, scores and regions computed, by model_store. Only the grouping is done
here: each text is encoded once, and regions are looked for in a few maps at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evaluation.metrics import normalize
from model_store.label_vectors import LabelVectors, compared_texts, filled, label_means
from model_store.manifest import DenseSpec, Presence
from model_store.modality.image import OWN_FILES, decode, prepare_dense
from model_store.presence import presence_scores, score_maps
from model_store.regions import Region, maps_at_once, regions_of

Vectors = NDArray[np.float32]
Shown = NDArray[np.uint8] | bytes
Maps = NDArray[np.float32]
EncodeTexts = Callable[[Sequence[str]], Vectors]
EncodeDense = Callable[[NDArray[np.uint8]], tuple[Vectors, Vectors]]


@dataclass(frozen=True, slots=True)
class Label:
    """What is looked for. prompts: complete texts that stand for it; None: the model's own templates."""

    name: str
    prompts: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Looking:
    """How a picture is looked at and a label said; None: as the model does it by itself.

    short_px: least short side, as in `/localize`. templates: texts with one {} each.
    """

    short_px: int | None = None
    templates: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.short_px is not None and self.short_px < 1:
            raise ValueError(f"short side of {self.short_px} px, expected 1 or more")
        if wrong := [text for text in self.templates or () if text.count("{}") != 1]:
            raise ValueError(f"templates {wrong}: expected exactly one {{}} in each")

    def labels(self, names: Sequence[str]) -> list[Label]:
        return [Label(name, None if self.templates is None else filled(self.templates, name)) for name in names]

    def __str__(self) -> str:
        """Empty if nothing was chosen."""
        parts = [f"short side {self.short_px} px"] if self.short_px is not None else []
        return ", ".join([*parts, *([f"templates {list(self.templates)}"] if self.templates is not None else [])])


@dataclass(frozen=True, eq=False, kw_only=True)
class Found:
    """The answer for one picture, labels in the order they were asked in.

    width, height: of the upright original, in pixels. scores: float64 [C], calibrated as far as the model is; a label
    is present from `threshold` on. maps: float32 [C, rows, columns] over the whole picture. boxes: of each label, best
    first, float64 [n, 5]: left, upper, right, lower edge in pixels, score; whatever the label's own score is.
    """

    width: int
    height: int
    scores: NDArray[np.float64]
    maps: Maps
    boxes: tuple[NDArray[np.float64], ...]
    threshold: float

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the maps."""
        return self.maps.shape[1], self.maps.shape[2]


@dataclass(frozen=True, eq=False)
class EncodedPicture:
    """Un-normalised vectors of one picture: positions [rows, columns, D], pooled [D]; and its size in pixels."""

    positions: Vectors
    pooled: Vectors
    width: int
    height: int


class Locator:
    """A dense encoder with the texts it is asked about; the vectors of the last labels are kept.

    run: uint8 [1, H, W, 3] -> un-normalised positions [1, rows, columns, D] and pooled [1, D], adapters included.
    """

    def __init__(self, run: EncodeDense, spec: DenseSpec, presence: Presence, encode_texts: EncodeTexts) -> None:
        self.presence, self.encode_texts = presence, encode_texts
        self.run, self.spec = run, spec
        self._labels: tuple[Label, ...] = ()
        self._vectors: LabelVectors | None = None

    def locate(
        self, images: Sequence[Shown], labels: Sequence[Label], *, boxes: bool = True, short_px: int | None = None
    ) -> list[Found]:
        """One run for each picture, whatever the number of labels; without `boxes` no regions are looked for.

        Raises:
            ValueError: no labels, or a size for a model that has its own. InputError: a picture that does not decode.
        """
        vectors = self._vectors_of(tuple(labels))
        found: list[Found] = []
        for shown in images:
            seen = self.look(shown, short_px=short_px)
            maps = score_maps(seen.positions, vectors, self.presence)
            scores = presence_scores(maps, seen.pooled, vectors, self.presence)
            found.append(
                Found(
                    width=seen.width,
                    height=seen.height,
                    scores=scores,
                    maps=maps,
                    boxes=boxes_of(maps, scores, width=seen.width, height=seen.height) if boxes else (),
                    threshold=self.presence.threshold,
                )
            )
        return found

    def look(self, shown: Shown, *, short_px: int | None = None) -> EncodedPicture:
        """One run of the encoder.

        Raises:
            ValueError: a size for a model that has its own. InputError: a picture that does not decode.
        """
        if short_px is not None and self.spec.sizes == "fixed":
            size = f"{self.spec.width_px} x {self.spec.height_px}"
            raise ValueError(f"this model looks at every picture as {size} px, a short side of {short_px} is no choice")
        image = decode(shown, OWN_FILES) if isinstance(shown, bytes) else Image.fromarray(shown)
        positions, pooled = self.run(prepare_dense(image, self.spec, short_px=short_px)[None])
        return EncodedPicture(positions[0], pooled[0], image.width, image.height)

    def _vectors_of(self, labels: tuple[Label, ...]) -> LabelVectors:
        if not labels:
            raise ValueError("no labels to look for")
        if self._vectors is None or labels != self._labels:
            self._vectors, self._labels = label_vectors(self.encode_texts, labels, self.presence), labels
        return self._vectors


def label_vectors(encode: EncodeTexts, labels: Sequence[Label], presence: Presence) -> LabelVectors:
    """Unit vectors of labels, of their denials and of the texts that name none, as far as `presence` compares with
    them; a text without a known word has a zero vector."""
    positive = _means(encode, [label.prompts or filled(presence.positive_templates, label.name) for label in labels])
    denials, neutral = compared_texts(presence)
    return LabelVectors(
        positive=positive,
        negative=_means(encode, [filled(denials, label.name) for label in labels]) if denials else None,
        neutral=encode(neutral) if neutral else None,
    )


def boxes_of(maps: Maps, scores: NDArray[np.float64], *, width: int, height: int) -> tuple[NDArray[np.float64], ...]:
    """Boxes of every label, a few maps at a time."""
    step = maps_at_once(maps)
    found: list[list[Region]] = []
    for start in range(0, len(maps), step):
        part = slice(start, start + step)
        found += regions_of(maps[part], scores[part].tolist(), width=width, height=height)
    edges = ([[each.x0, each.y0, each.x1, each.y1, each.score] for each in regions] for regions in found)
    return tuple(np.array(rows, dtype=np.float64).reshape(-1, 5) for rows in edges)


def _means(encode: EncodeTexts, prompts: Sequence[Sequence[str]]) -> Vectors:
    """Label vectors [groups, D] from complete texts, each encoded once; the mean is taken in float64."""
    flat = list(dict.fromkeys(text for group in prompts for text in group))
    rows = dict(zip(flat, normalize(encode(flat)).astype(np.float64), strict=True))
    return label_means(np.stack([rows[text] for text in group]) for group in prompts)
