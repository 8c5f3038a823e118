"""Data of benchmarks/composed.py: pictures whose contents are known, as vectors, and questions of two words."""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from clipworks.local import LocalModel
from evaluation.fashion import article_type
from evaluation.standard.coco import coco_images, image_of, load_coco

Bools = NDArray[np.bool_]
F32 = NDArray[np.float32]
Given = TypeVar("Given")
SPLITS = ("validation", "heldout")
_BLOCK = 256
_FEWEST = 3  # pictures that a question wants of either kind

# Colours that people would not call different with certainty: neither right nor wrong for one another.
_COLOUR_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "blue": ("blue", "navy blue", "turquoise blue", "teal"),
    "grey": ("grey", "grey melange", "charcoal", "steel", "silver"),
    "brown": ("brown", "coffee brown", "tan", "bronze", "copper", "khaki", "mushroom brown", "beige", "taupe"),
    "red": ("red", "maroon", "burgundy", "rust"),
    "white": ("white", "off white", "cream"),
    "purple": ("purple", "lavender", "magenta", "mauve"),
    "pink": ("pink", "peach", "rose"),
    "green": ("green", "olive", "sea green", "lime green", "fluorescent green"),
    "yellow": ("yellow", "mustard", "gold"),
}
# Words of captions that name a thing; the first is asked. Written before any result was seen.
_CAPTION_WORDS: tuple[tuple[str, ...], ...] = (
    ("dog", "dogs", "puppy", "puppies"), ("man", "men", "guy", "guys", "gentleman"),
    ("woman", "women", "lady", "ladies"), ("boy", "boys"), ("girl", "girls"), ("baby", "toddler", "infant", "babies"),
    ("water", "ocean", "lake", "river", "pool", "sea", "stream", "waves"), ("pool",),
    ("beach", "sand", "sandy", "shore"), ("snow", "snowy"), ("grass", "grassy", "lawn"), ("street", "road", "sidewalk"),
    ("ball", "balls", "football", "basketball"), ("mountain", "mountains", "hill", "cliff"),
    ("rock", "rocks", "rocky", "boulder"), ("tree", "trees", "woods", "forest"),
    ("bicycle", "bike", "bicycles", "bikes", "cyclist", "biker"), ("car", "cars", "truck", "van"),
    ("boat", "boats", "canoe", "kayak"), ("hat", "hats", "cap"), ("helmet", "helmets"), ("sunglasses", "glasses"),
    ("camera",), ("rope", "ropes"), ("crowd",), ("bench", "benches"), ("fence",), ("toy", "toys"), ("stick",),
    ("backpack", "backpacks"), ("playground", "slide", "swing"), ("jeans",), ("dress",), ("table",), ("wall",),
    ("horse", "horses"),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Gallery:
    """Pictures of one split: vectors float32 [N, D] as long as the model makes them, and what is known of each."""

    data: str
    split: str
    names: tuple[str, ...]
    raw: F32
    labels: Mapping[str, Bools]
    unsure: Mapping[str, Bools]
    kinds: tuple[tuple[str, str], ...] = ()
    titles: tuple[str, ...] = ()

    @property
    def lengths(self) -> NDArray[np.float64]:
        return np.linalg.norm(self.raw.astype(np.float64), axis=1)

    @property
    def unit(self) -> NDArray[np.float64]:
        return self.raw.astype(np.float64) / self.lengths[:, None]


@dataclass(frozen=True, eq=False)
class WordPair:
    """`wanted` but not `unwanted`: bool [N] each. negative: the text that is subtracted; ignored: not judged."""

    wanted: str
    unwanted: str
    negative: str
    relevant: Bools
    harmful: Bools
    ignored: Bools


@dataclass(frozen=True, eq=False)
class QuestionSet:
    name: str
    gallery: Gallery
    questions: tuple[WordPair, ...]


class ComposedEncoder:
    """The model, one thread, with a file that remembers what it has encoded (key: the model's and the input's hash)."""

    def __init__(self, model: str, store: Path | None, cache: Path) -> None:
        self._local = LocalModel(model, store, threads=1)
        self.reference = self._local.model
        self._cache = cache / f"{self.reference.replace('@', '-')}.npz"
        self._known: dict[str, F32] = {}
        if self._cache.exists():
            with np.load(self._cache) as kept:
                self._known = dict(zip(kept["keys"].tolist(), kept["vectors"], strict=True))

    def pictures(self, encoded: Sequence[bytes]) -> F32:
        """Vectors [n, D] of encoded pictures, not normalised."""
        keys = [f"{self._local.fingerprint.image}:{hashlib.sha256(each).hexdigest()}" for each in encoded]
        return self._all(keys, encoded, lambda part: self._local.embed(images=part, normalize=False))

    def texts(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Unit vectors [n, D]."""
        keys = [f"{self._local.fingerprint.text}:{text}" for text in texts]
        found = self._all(keys, texts, lambda part: self._local.embed(texts=part)).astype(np.float64)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def _all(self, keys: Sequence[str], inputs: Sequence[Given], embed: Callable[[Sequence[Given]], F32]) -> F32:
        new = {key: each for key, each in zip(keys, inputs, strict=True) if key not in self._known}
        for start in range(0, len(new), _BLOCK):
            part = list(new)[start : start + _BLOCK]
            vectors = np.asarray(embed([new[key] for key in part]), dtype=np.float32)
            self._known.update(zip(part, vectors, strict=True))
        if new:
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            np.savez(self._cache, keys=list(self._known), vectors=np.stack(list(self._known.values())))
        return np.stack([self._known[key] for key in keys])


def products(folder: Path, encoder: ComposedEncoder, split: str) -> Gallery:
    """Photographs whose title names an article: product number % 10 is 2 for validation, 1 for held-out."""
    digit = {"validation": 2, "heldout": 1}[split]
    with (folder / "captions.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if int(Path(row["image"]).stem) % 10 == digit]
    kept = [(row, kind) for row in rows if (kind := article_type(row["caption"]))]
    colours = [row["baseColour"].casefold() for row, _ in kept]
    articles = [kind for _, kind in kept]
    labels = {name: _equal(articles, name) for name in sorted(set(articles))}
    labels |= {name: _equal(colours, name) for name in sorted(set(colours)) if name not in ("multi", "na", "")}
    unsure: dict[str, Bools] = {}
    for name in set(colours):
        family = next((f for f in _COLOUR_FAMILIES.values() if name in f), (name,))
        unsure[name] = np.array([each != name and (each in family or each == "multi") for each in colours])
    return Gallery(
        "products",
        split,
        tuple(row["image"] for row, _ in kept),
        encoder.pictures([(folder / row["image"]).read_bytes() for row, _ in kept]),
        labels,
        unsure,
        tuple(zip(articles, colours, strict=True)),
        tuple(row["caption"].casefold() for row, _ in kept),
    )


def coco(folder: Path, encoder: ComposedEncoder, split: str) -> Gallery:
    """train2017 for validation (the shipped model has seen these), val2017 for held-out (it has not)."""
    part = {"validation": "train2017", "heldout": "val2017"}[split]
    path = folder / "annotations" / f"instances_{part}.json"
    data = load_coco(path, "annotations", "categories")
    images = coco_images(data, path)
    names = {category["id"]: str(category["name"]) for category in data["categories"]}
    inside: dict[int, set[str]] = defaultdict(set)
    for each in data["annotations"]:
        inside[image_of(each, images, path)].add(names[each["category_id"]])
    files = {image_id: str(image["file_name"]) for image_id, image in images.items()}
    order = sorted(files)
    labels = {name: np.array([name in inside[image] for image in order]) for name in names.values()}
    pictures = encoder.pictures([(folder / part / files[image]).read_bytes() for image in order])
    return Gallery("coco-mini", split, tuple(files[image] for image in order), pictures, labels, {})


def flickr(folder: Path, encoder: ComposedEncoder, split: str) -> Gallery:
    """Halves by the name's hash. A thing is there if two captions of five name it, and not there if none does."""
    said: dict[str, list[set[str]]] = defaultdict(list)
    with (folder / "captions.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            said[row["image"]].append(set(re.findall(r"[a-z]+", row["caption"].casefold())))
    half = SPLITS.index(split)
    order = [name for name in sorted(said) if hashlib.sha256(name.encode()).digest()[0] % 2 == half]
    votes = {
        words[0]: np.array([sum(bool(caption & set(words)) for caption in said[name]) for name in order])
        for words in _CAPTION_WORDS
    }
    return Gallery(
        "flickr8k",
        split,
        tuple(order),
        encoder.pictures([(folder / "images" / name).read_bytes() for name in order]),
        {word: count >= 2 for word, count in votes.items()},
        {word: count == 1 for word, count in votes.items()},
    )


def questions(
    gallery: Gallery,
    wanted: Collection[str],
    unwanted: Collection[str],
    *,
    negative: str = "{unwanted}",
    fewest: int = _FEWEST,
) -> tuple[WordPair, ...]:
    """All pairs of which `fewest` pictures show both and as many only the wanted one."""
    found: list[WordPair] = []
    nobody = np.zeros(len(gallery.names), dtype=bool)
    for a in wanted:
        for b in unwanted:
            has_a, has_b = gallery.labels[a], gallery.labels[b]
            ignored = gallery.unsure.get(a, nobody) | gallery.unsure.get(b, nobody)
            relevant, harmful = has_a & ~has_b & ~ignored, has_a & has_b & ~ignored
            if a != b and relevant.sum() >= fewest and harmful.sum() >= fewest:
                text = negative.format(wanted=a, unwanted=b)
                found.append(WordPair(a, b, text, relevant, harmful, ignored))
    return tuple(found)


def unrelated(gallery: Gallery, wanted: Collection[str], unwanted: Collection[str]) -> tuple[WordPair, ...]:
    """A negative that no picture of the wanted ones shows: it should change nothing. One for each wanted word."""
    found: list[WordPair] = []
    nobody = np.zeros(len(gallery.names), dtype=bool)
    for a in wanted:
        has_a, ignored = gallery.labels[a], gallery.unsure.get(a, nobody)
        free = [b for b in sorted(unwanted) if not (has_a & (gallery.labels[b] | gallery.unsure.get(b, nobody))).any()]
        if has_a.sum() >= _FEWEST and free:
            b = free[hashlib.sha256(a.encode()).digest()[0] % len(free)]
            found.append(WordPair(a, b, b, has_a & ~ignored, nobody, ignored))
    return tuple(found)


def question_sets(folder: Path, encoder: ComposedEncoder, split: str) -> list[QuestionSet]:
    """All sets of a split; those whose names begin with "unrelated" set no weight."""
    shop, street = products(folder / "fashion-products", encoder, split), coco(folder / "coco-mini", encoder, split)
    captions = flickr(folder / "flickr8k-800", encoder, split)
    articles = sorted({article for article, _ in shop.kinds})
    colours = sorted(set(shop.labels) - set(articles))
    things, words = sorted(street.labels), sorted(captions.labels)
    frequent = [colour for colour, n in Counter(c for _, c in shop.kinds).items() if n >= _FEWEST and colour in colours]
    return [
        QuestionSet("shirt - blue", shop, questions(shop, articles, colours)),
        QuestionSet("shirt - blue shirt", shop, questions(shop, articles, colours, negative="{unwanted} {wanted}")),
        QuestionSet("blue - shirt", shop, questions(shop, colours, articles)),
        QuestionSet("coco-mini", street, questions(street, things, things, fewest=2)),
        QuestionSet("flickr8k", captions, questions(captions, words, words)),
        QuestionSet("unrelated, products", shop, unrelated(shop, articles, frequent)),
        QuestionSet("unrelated, flickr8k", captions, unrelated(captions, words, words)),
    ]


def _equal(values: Sequence[str], name: str) -> Bools:
    return np.array([each == name for each in values])
