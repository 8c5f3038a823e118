"""Tasks of the study of intra-modal maps, by base: pictures and texts with labels, and classes to name.

Each base has vectors to fit maps on (training's), tasks on which knobs are set (validation), and the same held out.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.encoder import ArtifactEncoder, Encoder, Shown, own_templates
from evaluation.fashion import article_type
from evaluation.same_modality import numbered
from evaluation.scenes.config import Pair, SceneConfig
from evaluation.scenes.dice import Dice
from evaluation.scenes.meaning import INVERSE, SPATIAL, Enumeration, Relation, What, spatial_relation
from evaluation.scenes.phrases import captions, noun, with_article
from evaluation.scenes.rendering import render
from evaluation.scenes.sampling import sample
from evaluation.scenes.scene import Scene
from evaluation.scenes_report import single_scenes
from evaluation.zero_shot import class_matrix
from model_store.store import Store
from training.checkpoint import load_model
from training.config import SceneData
from training.data.scenes import scene_splits
from training.data.source import JUDGED
from training.encoder import encoder_of

Judged = Literal["validation", "test"]
Modality = Literal["image", "text"]
F32, I64 = NDArray[np.float32], NDArray[np.int64]
PHOTO = ("a photo of a {}",)
_FIT = 600  # pictures of training that means and directions of pictures come from
_THINGS, _POSES = 6, 6  # of the relation task: pairs of things, and pictures of each of their four relations


@dataclass(frozen=True, kw_only=True)
class SearchTask:
    """Unit vectors [N, D] and which of them belong together."""

    name: str
    modality: Modality
    vectors: F32
    labels: I64


@dataclass(frozen=True, kw_only=True)
class NamingTask:
    """Unit image vectors [N, D], their classes, and the unit text vectors [C, D] of these."""

    name: str
    vectors: F32
    truth: I64
    classes: F32


@dataclass(frozen=True, kw_only=True)
class StudyBase:
    """texts: what principal directions and the mean of texts may be fitted on, by where they come from."""

    name: str
    pictures: F32
    texts: Mapping[str, F32]
    search: Mapping[Judged, tuple[SearchTask, ...]]
    naming: Mapping[Judged, tuple[NamingTask, ...]]
    checkpoint: Path | None = None


@dataclass
class KeptVectors:
    """Vectors of an encoder, kept on disk under what was asked."""

    encoder: Encoder
    folder: Path
    done: dict[str, F32] = field(default_factory=dict[str, F32])

    def images(self, shown: Sequence[Shown], key: str) -> F32:
        return self._kept(f"images {key} {len(shown)}", lambda: self.encoder.encode_images(shown))

    def texts(self, texts: Sequence[str]) -> F32:
        return self._kept("texts\n" + "\n".join(texts), lambda: self.encoder.encode_texts(list(texts)))

    def _kept(self, asked: str, work_out: Callable[[], F32]) -> F32:
        key = hashlib.sha256(f"{self.encoder.fingerprint}\n{asked}".encode()).hexdigest()[:24]
        path = self.folder / f"{key}.npy"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            np.save(path, work_out())
        return np.load(path)


def everyday_base(data: Path, cache: Path) -> StudyBase:
    """everyday-small on products, flowers, textures, and captions of everyday photographs."""
    encode = KeptVectors(ArtifactEncoder(Store(None).open("everyday-small")), cache)
    rows = list(products_of(data))
    trained = rows_of(rows, "train")[:: max(1, len(rows_of(rows, "train")) // _FIT)]
    names = json.loads((data / "prompts" / "imagenet.json").read_text(encoding="utf-8"))["IMAGENET_CLASSNAMES"]
    search: dict[Judged, tuple[SearchTask, ...]] = {}
    naming: dict[Judged, tuple[NamingTask, ...]] = {}
    for split in ("validation", "test"):
        chosen = rows_of(rows, split)
        pictures = encode.images([row.path.read_bytes() for row in chosen], f"products {split}")
        titles = {row.title.casefold(): row for row in reversed(chosen)}  # equal titles would find each other
        flowers, textures = (_folder(data / name, split, encode) for name in ("flowers5", "textures10"))
        captions_, of = _flickr(data, split)
        search[split] = (
            _task("products", "image", pictures, [row.kind for row in chosen]),
            _task("flowers", "image", flowers[0], flowers[1]),
            _task("textures", "image", textures[0], textures[1]),
            _task("product titles", "text", encode.texts(list(titles)), [row.kind for row in titles.values()]),
            _task("captions of photographs", "text", encode.texts(captions_), of),
        )
        where = [at for at, row in enumerate(chosen) if row.article]
        articles = [row.article for row in chosen if row.article]
        templates = own_templates(encode.encoder) or ("{}",)
        naming[split] = (
            _naming("articles", pictures[where], articles, encode, templates),
            _naming("flowers", flowers[0], flowers[1], encode, PHOTO),
            _naming("textures", textures[0], textures[1], encode, PHOTO),
        )
    return StudyBase(
        name="everyday-small",
        pictures=encode.images([row.path.read_bytes() for row in trained], "products train"),
        texts={
            "names": encode.texts([PHOTO[0].format(name) for name in names]),
            "titles": encode.texts([row.title for row in trained]),
        },
        search=search,
        naming=naming,
    )


def scenes_base(checkpoint: Path, cache: Path) -> StudyBase:
    """A model of separate projections on scenes like those that it was trained on."""
    loaded = load_model(checkpoint)
    data = loaded.info.config.data
    if not isinstance(data, SceneData):
        raise ValueError(f"{checkpoint} was trained on {data.kind}, not on scenes")
    pairs, px = scene_splits(data).train.pairs, loaded.info.image_spec.height_px
    encode = KeptVectors(encoder_of(loaded, name="scenes"), cache)

    def drawn(scenes: Sequence[Scene], key: str) -> F32:
        return encode.images([render(scene, px).image for scene in scenes], key)

    search: dict[Judged, tuple[SearchTask, ...]] = {}
    naming: dict[Judged, tuple[NamingTask, ...]] = {}
    names = [with_article(noun(What(shape=shape, colour=colour))) for shape, colour in pairs]
    for split in ("validation", "test"):
        singles = single_scenes(pairs=pairs, seed=JUDGED[split], count=240)
        things = [pairs.index((scene.things[0].shape, scene.things[0].colour)) for scene in singles]
        pictures = drawn(singles, f"single {split}")
        related, said = _relations(pairs, split)
        texts, meanings = _sentences(said)
        search[split] = (
            _task("single things", "image", pictures, [names[at] for at in things]),
            _task("relations", "image", drawn(list(related), f"relations {split}"), list(related.values())),
            _task("sentences of relations", "text", encode.texts(texts), meanings),
        )
        naming[split] = (
            NamingTask(
                name="single things",
                vectors=pictures,
                truth=np.array(things, dtype=np.int64),
                classes=encode.texts(names),
            ),
        )
    seen = [sample(at, SceneConfig(count=(1, 2), pairs=pairs, textures=("plain",), stream="fit")) for at in range(_FIT)]
    told = [each.text for at in range(_FIT) for each in captions(_enumeration(seen[at]))[:1]]
    return StudyBase(
        name="scenes",
        pictures=drawn(seen, "fit"),
        texts={"names": encode.texts(names), "captions": encode.texts(told)},
        search=search,
        naming=naming,
        checkpoint=checkpoint,
    )


@dataclass(frozen=True, kw_only=True)
class ProductRow:
    """A photograph. kind: its article and colour, None where the title names no known article."""

    path: Path
    title: str
    article: str | None
    kind: str | None
    split: Literal["train", "validation", "test"]


def products_of(data: Path) -> Iterator[ProductRow]:
    folder = data / "fashion-products"
    with (folder / "captions.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            path, title = folder / row["image"], row["caption"]
            article, number = article_type(title), int(path.stem) % 10
            yield ProductRow(
                path=path,
                title=title,
                article=article,
                kind=None if article is None else f"{row['baseColour']} {article}",
                split="test" if number == 1 else "validation" if number == 2 else "train",
            )


def rows_of(rows: Sequence[ProductRow], split: str) -> list[ProductRow]:
    return [row for row in rows if row.split == split]


def _folder(folder: Path, split: Judged, encode: KeptVectors) -> tuple[F32, list[str]]:
    """Vectors and classes of at most 60 pictures of each sub-folder; names divide them into two halves."""
    paths: list[Path] = []
    for classes in sorted(path for path in folder.iterdir() if path.is_dir()):
        halves = [path for path in sorted(classes.iterdir()) if _half(path.name) == split]
        paths += halves[:60]
    shown = [path.read_bytes() for path in paths]
    return encode.images(shown, f"{folder.name} {split}"), [path.parent.name for path in paths]


def _half(name: str) -> Judged:
    return "test" if hashlib.sha256(name.encode()).digest()[0] % 2 else "validation"


def _flickr(data: Path, split: Judged) -> tuple[list[str], list[str]]:
    """Captions, and the photograph of each."""
    with (data / "flickr8k-800" / "captions.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if _half(row["image"]) == split]
    return [row["caption"] for row in rows], [row["image"] for row in rows]


def _relations(pairs: tuple[Pair, ...], split: Judged) -> tuple[dict[Scene, str], dict[str, Relation]]:
    """Pictures of two things with what stands where; and the relations by that name. No thing is in two pairs."""
    dice = Dice("intra-modal", split)
    order = dice.shuffled(pairs)
    pictures: dict[Scene, str] = {}
    said: dict[str, Relation] = {}
    while len({label.split("|")[0] for label in pictures.values()}) < _THINGS:
        first = order[0]
        second = next(pair for pair in order if pair[0] != first[0] and pair[1] != first[1])
        order = [pair for pair in order if pair not in (first, second)]
        a, b = (What(shape=shape, colour=colour) for shape, colour in (first, second))
        found = dict.fromkeys(SPATIAL, 0)
        config = SceneConfig(
            count=(2, 2),
            size=(0.2, 0.28),
            pairs=(first, second),
            textures=("plain",),
            differ_in=("shape", "colour"),
            decided_pair=True,
            stream=f"intra-modal/{split}",
        )
        for seed in range(10_000):
            if min(found.values()) == _POSES:
                break
            scene = sample(seed, config)
            name = spatial_relation(scene, 0, 1)
            if name is None:
                continue
            if (scene.things[0].shape, scene.things[0].colour) != first:
                name = INVERSE[name]
            if found[name] < _POSES:
                found[name] += 1
                label = f"{noun(a)}, {noun(b)}|{name}"
                pictures[scene] = label
                said[label] = Relation(a, name, b)
    return pictures, said


def _sentences(said: Mapping[str, Relation]) -> tuple[list[str], list[str]]:
    """Each relation told from either thing in every frame, and what it says."""
    texts: list[str] = []
    labels: list[str] = []
    for label, relation in said.items():
        for told in (relation, Relation(relation.target, INVERSE[relation.name], relation.subject)):
            for each in captions(told):
                texts.append(each.text)
                labels.append(label)
    return texts, labels


def _enumeration(scene: Scene) -> Enumeration:
    return Enumeration(tuple(What(shape=thing.shape, colour=thing.colour) for thing in scene.things))


def _task(name: str, modality: Modality, vectors: F32, labels: Sequence[str | None]) -> SearchTask:
    return SearchTask(name=name, modality=modality, vectors=vectors, labels=numbered(labels))


def _naming(
    name: str, vectors: F32, truth: Sequence[str], encode: KeptVectors, templates: tuple[str, ...]
) -> NamingTask:
    names = sorted(set(truth))
    return NamingTask(
        name=name,
        vectors=vectors,
        truth=np.array([names.index(each) for each in truth], dtype=np.int64),
        classes=class_matrix(encode.texts, names, templates),
    )
