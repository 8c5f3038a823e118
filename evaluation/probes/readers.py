"""Readers that answer a probe: an encoder, or one of its controls (the truth, a bag of words, a blind encoder)."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from evaluation.encoder import DenseEncoder, Encoder
from evaluation.locating import Label
from evaluation.metrics import normalize
from evaluation.probes.pictures import Picture
from evaluation.probes.rows import F64
from evaluation.scenes.config import Pair, all_pairs
from evaluation.scenes.meaning import Enumeration, Meaning, What, judge
from evaluation.scenes.palette import COLOURS, SHAPES, TEXTURES, TONES
from evaluation.scenes.phrases import noun, say
from evaluation.scenes.scene import Scene
from evaluation.shuffling import shuffled

Key = TypeVar("Key")
_BATCH, _GRIDS = 128, 16
_PAIRS = all_pairs()
NO_GRID = "this encoder does not say where (no dense role)"
_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A text and what it says; None: shuffled words that say nothing and are true of no scene."""

    text: str
    meaning: Meaning | None


def said(meaning: Meaning, frame: str | None = None) -> Sentence:
    return Sentence(say(meaning, frame), meaning)


class NotApplicable(Exception):
    """A probe says nothing about an encoder; the message says why."""


class Reader(Protocol):
    """Anything that can be asked how well texts fit pictures.

    ties_wrong: an encoder that cannot tell two options apart has not answered; a control gets its share by luck.
    """

    ties_wrong: bool

    def scores(self, asked: Sequence[tuple[Picture, Sentence]]) -> F64:
        """float64 [len(asked)], higher fits better; NaN where the truth is open."""
        ...

    def image_vectors(self, pictures: Sequence[Picture]) -> F64:
        """Unit rows [P, D]."""
        ...

    def text_vectors(self, texts: Sequence[Sentence]) -> F64:
        """Unit rows [T, D]."""
        ...


class EncoderReader:
    """An encoder behind a memory, so that a picture or text that several probes ask about is encoded once.

    They are sent in a shuffled order, the same on every run: neighbours of a probe are about one thing, and vectors
    that only told when they were asked for would find each other.

    size_px: the side of the drawn pictures, 48 to 448. progress: told how many more inputs were encoded.
    """

    ties_wrong = True

    def __init__(self, encoder: Encoder, *, size_px: int, progress: Callable[[int], None] | None = None) -> None:
        self.encoder = encoder
        self.size_px = size_px
        self._progress = progress
        self._images: dict[Picture, NDArray[np.float32]] = {}
        self._texts: dict[str, NDArray[np.float32]] = {}

    def scores(self, asked: Sequence[tuple[Picture, Sentence]]) -> F64:
        pictures, rows = _indexed(picture for picture, _ in asked)
        texts, columns = _indexed(text.text for _, text in asked)
        images, words = self.image_vectors(pictures), self._text_rows(texts)
        return np.einsum("nd,nd->n", images[rows], words[columns])

    def image_vectors(self, pictures: Sequence[Picture]) -> F64:
        missing = shuffled([one for one in dict.fromkeys(pictures) if one not in self._images], (0, len(self._images)))
        for start in range(0, len(missing), _BATCH):
            part = missing[start : start + _BATCH]
            vectors = self.encoder.encode_images([picture.draw(self.size_px) for picture in part])
            self._images.update(zip(part, _checked(vectors, len(part)), strict=True))
            self._advance(len(part))
        return np.array([self._images[picture] for picture in pictures], dtype=np.float64)

    def text_vectors(self, texts: Sequence[Sentence]) -> F64:
        return self._text_rows([text.text for text in texts])

    def maps(self, asked: Sequence[tuple[Picture, Sentence]], among: Sequence[Sentence]) -> F64:
        """The map of each text over its picture, float64 [len(asked), rows, columns], as the server draws it:
        un-normalised projections, less their mean over `among`, the texts that a label is compared with.

        Raises:
            NotApplicable: the encoder does not say where.
        """
        encoder = _with_places(self.encoder)
        labels = [_label(text) for text in among]
        columns = {text.text: at for at, text in enumerate(among)}
        pictures, rows = _indexed(picture for picture, _ in asked)
        found: dict[int, F64] = {}
        for start in range(0, len(pictures), _GRIDS):
            part = pictures[start : start + _GRIDS]
            located = encoder.locate([picture.draw(self.size_px) for picture in part], labels, boxes=False)
            grids = [one.maps for one in located]
            if any(len(each) != len(among) or not np.isfinite(each).all() for each in grids):
                shapes = sorted({each.shape for each in grids})
                raise ValueError(f"the encoder answered maps {shapes} for {len(among)} labels, or NaN")
            self._advance(len(part))
            for index in np.flatnonzero((rows >= start) & (rows < start + _GRIDS)).tolist():
                grid = grids[rows[index] - start][columns[asked[index][1].text]]
                found[index] = grid.astype(np.float64)
        return np.stack([found[index] for index in range(len(asked))])

    def grid(self) -> tuple[int, int]:
        """Rows and columns of the maps of a drawn picture.

        Raises:
            NotApplicable: as `maps`.
        """
        blank = np.zeros((self.size_px, self.size_px, 3), dtype=np.uint8)
        return _with_places(self.encoder).locate([blank], [Label("thing")], boxes=False)[0].grid

    def _text_rows(self, texts: Sequence[str]) -> F64:
        missing = shuffled([text for text in dict.fromkeys(texts) if text not in self._texts], (1, len(self._texts)))
        for start in range(0, len(missing), _BATCH):
            part = missing[start : start + _BATCH]
            self._texts.update(zip(part, _checked(self.encoder.encode_texts(part), len(part)), strict=True))
            self._advance(len(part))
        return np.array([self._texts[text] for text in texts], dtype=np.float64)

    def _advance(self, count: int) -> None:
        if self._progress is not None:
            self._progress(count)


class BlindReader:
    """The same encoder with its eyes shut: every picture is the mean of the probe's pictures.

    What it scores is what the texts alone give away.
    """

    ties_wrong = False

    def __init__(self, reader: Reader, pictures: Sequence[Picture]) -> None:
        self._reader = reader
        self._mean = normalize(reader.image_vectors(pictures).mean(axis=0, keepdims=True)).astype(np.float64)[0]

    def scores(self, asked: Sequence[tuple[Picture, Sentence]]) -> F64:
        texts, columns = _indexed(text for _, text in asked)
        return (self._reader.text_vectors(texts) @ self._mean)[columns]

    def image_vectors(self, pictures: Sequence[Picture]) -> F64:
        return np.tile(self._mean, (len(pictures), 1))

    def text_vectors(self, texts: Sequence[Sentence]) -> F64:
        return self._reader.text_vectors(texts)


class TruthReader:
    """Knows what is in every scene and what every sentence says; it must score 100 % wherever there is a right answer.

    Its vectors have one axis per (colour, shape).
    """

    ties_wrong = False

    def __init__(self) -> None:
        self._known: dict[tuple[Meaning, Scene], float] = {}

    def scores(self, asked: Sequence[tuple[Picture, Sentence]]) -> F64:
        return np.array([self._score(picture.scene, text.meaning) for picture, text in asked])

    def image_vectors(self, pictures: Sequence[Picture]) -> F64:
        named = [{(thing.shape, thing.colour) for thing in picture.scene.things} for picture in pictures]
        return _unit_rows(named, _PAIRS)

    def text_vectors(self, texts: Sequence[Sentence]) -> F64:
        named: list[set[tuple[str, str]]] = []
        for text in texts:
            if not isinstance(text.meaning, Enumeration):
                raise ValueError(f"the truth has vectors for listings only, got {text.text!r}")
            whats = text.meaning.whats
            named.append({pair for pair in _PAIRS if any(_covers(what, pair) for what in whats)})
        return _unit_rows(named, _PAIRS)

    def _score(self, scene: Scene, meaning: Meaning | None) -> float:
        if meaning is None:
            return 0.0
        key = (meaning, scene)
        if key not in self._known:
            truth = judge(meaning, scene)
            self._known[key] = float("nan") if truth is None else float(truth)
        return self._known[key]


class BagReader:
    """Sees which shapes, colours, textures and tones there are, and reads which of these words a text holds.

    It knows neither which colour belongs to which shape, nor places, numbers or the word "no". It scores a text by its
    words that are in the picture less those that are not.
    """

    ties_wrong = False

    def scores(self, asked: Sequence[tuple[Picture, Sentence]]) -> F64:
        out: list[float] = []
        for picture, text in asked:
            bag = scene_words(picture.scene)
            out.append(float(sum(1 if word in bag else -1 for word in text_words(text.text))))
        return np.array(out)

    def image_vectors(self, pictures: Sequence[Picture]) -> F64:
        tones = set(TONES)
        return _unit_rows([scene_words(picture.scene) - tones for picture in pictures], list(_VOCABULARY.values()))

    def text_vectors(self, texts: Sequence[Sentence]) -> F64:
        return _unit_rows([set(text_words(text.text)) for text in texts], list(_VOCABULARY.values()))


def _vocabulary() -> dict[str, str]:
    """Word of a text -> word of the bag; plurals are folded."""
    plurals = {shape + ("es" if shape.endswith("s") else "s"): shape for shape in SHAPES}
    return {word: word for word in (*SHAPES, *COLOURS, *TEXTURES, *TONES)} | plurals


_VOCABULARY: Mapping[str, str] = _vocabulary()


def _covers(what: What, pair: Pair) -> bool:
    return what.shape in (None, pair[0]) and what.colour in (None, pair[1])


def scene_words(scene: Scene) -> set[str]:
    found = {scene.background.tone}
    for thing in scene.things:
        found |= {thing.shape, thing.colour, thing.texture}
    return {str(word) for word in found}


def text_words(text: str) -> list[str]:
    """The words of the bag in a text, with repetitions: "two red circles" -> red, circle."""
    return [_VOCABULARY[word] for word in _WORD.findall(text.lower()) if word in _VOCABULARY]


def _with_places(encoder: Encoder) -> DenseEncoder:
    if not isinstance(encoder, DenseEncoder):
        raise NotApplicable(NO_GRID)
    return encoder


def _label(text: Sentence) -> Label:
    """The text as it is said; a model with denials wants a name to deny, "red circle" and not "a red circle"."""
    match text.meaning:
        case Enumeration((what,)):
            return Label(noun(what), (text.text,))
        case _:
            return Label(text.text, (text.text,))


def _unit_rows(named: Sequence[Set[Any]], axes: Sequence[Hashable]) -> F64:
    index = {axis: at for at, axis in enumerate(dict.fromkeys(axes))}
    rows = np.zeros((len(named), len(index)))
    for row, names in zip(rows, named, strict=True):
        row[[index[name] for name in names]] = 1
    return normalize(rows).astype(np.float64)


def _indexed(values: Iterable[Key]) -> tuple[list[Key], NDArray[np.int64]]:
    """Distinct values, and for each value its index among them."""
    found: dict[Key, int] = {}
    order = [found.setdefault(value, len(found)) for value in values]
    return list(found), np.array(order, dtype=np.int64)


def _checked(vectors: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    if vectors.ndim != 2 or len(vectors) != count:
        raise ValueError(f"the encoder answered {vectors.shape} for {count} inputs, expected ({count}, D)")
    if not np.isfinite(vectors).all():
        raise ValueError("the encoder answered NaN or infinity")
    return normalize(vectors)
