"""The tasks of the study of adapters: data, base model, halves of the classes, and the questions asked elsewhere.

Products, flowers and textures are photographs, and their base is everyday-small as a checkpoint; drawings are textured
things, and their base is the distilled ViT of benchmarks/distillation.py, which has seen plain ones only. Classes are
sorted, shuffled with one seed, and halved: the first half is trained ("base"), the second never ("new").
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.distillation_judge import two_things
from benchmarks.lab_runs import ROOT
from evaluation.metrics import normalize
from evaluation.scenes.config import SceneConfig
from evaluation.scenes.rendering import render
from evaluation.scenes.sampling import sample
from evaluation.scenes_report import single_scenes
from model_store.files import whole_file
from training.checkpoint import LoadedModel, load_model
from training.config import load_config
from training.data.protocol import Source
from training.data.scenes import scene_splits
from training.data.source import JUDGED, open_source
from training.encoder import TorchEncoder, encoder_of
from training.features import Features, cached_features, picture_vectors
from training.methods.parts.linear_heads import truth_of

STUDY = ROOT / ".runs" / "adapters"
EVERYDAY = STUDY / "everyday"
VIT = ROOT / ".runs" / "lab" / "distillation" / "vit-long" / "unified" / "r0"
SHOTS, SEEDS = (1, 2, 4, 8, 16), (0, 1, 2)
Judging = Literal["validation", "test"]
SPLITS: tuple[Judging, ...] = ("validation", "test")
TASKS = ("drawings", "articles", "colours", "flowers", "textures")
_HALVES = 7  # the seed that shuffles classes
_DRAWN = {"train": 16, "validation": 8, "test": 20}  # pictures of each pair
_SCENES = 400
F32, I64 = NDArray[np.float32], NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures uint8 [N, H, W, 3] and the base's unit vectors of them [N, D]."""

    pixels: NDArray[np.uint8]
    vectors: F32


@dataclass(frozen=True, kw_only=True)
class ShownRows:
    """Some of these pictures: rows int64 [n]. Several questions ask about the same ones, which are encoded once."""

    pictures: Pictures
    rows: I64

    @property
    def vectors(self) -> F32:
        return self.pictures.vectors[self.rows]


@dataclass(frozen=True, kw_only=True)
class Naming:
    """Which of `labels` does each picture show? truth: int64 [n]."""

    shown: ShownRows
    labels: tuple[str, ...]
    truth: I64


@dataclass(frozen=True, kw_only=True)
class CaptionSearch:
    """Which pictures does a caption find? relevant: bool [captions, pictures]."""

    shown: ShownRows
    captions: tuple[str, ...]
    relevant: NDArray[np.bool_]


Question = Naming | CaptionSearch


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterTask:
    """A label of some pictures, behind a base. data: the recipe's table, as TOML."""

    name: str
    base: Path
    data: Mapping[str, Any]
    label: str
    report: str = "retrieval"
    least: int = 1

    @cached_property
    def opened(self) -> LoadedModel:
        return load_model(self.base)

    @cached_property
    def encoder(self) -> TorchEncoder:
        return encoder_of(self.opened, name="base")

    @cached_property
    def source(self) -> Source:
        return _source(self, {})

    @cached_property
    def features(self) -> Features:
        return cached_features(
            self.opened, self.source, level="features", captions=0, negatives=False, folder=STUDY / "features",
            device="cpu",
        )  # fmt: skip

    @cached_property
    def classes(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Base and new."""
        labels = [label for label in self.source.labels(self.label) if label is not None]
        found = sorted(name for name in set(labels) if labels.count(name) >= self.least)
        order = np.random.default_rng(_HALVES).permutation(len(found))
        half = (len(found) + 1) // 2
        first, second = sorted(order[:half].tolist()), sorted(order[half:].tolist())
        return tuple(found[at] for at in first), tuple(found[at] for at in second)

    def naming(self, split: Judging, label: str, labels: Sequence[str], shown: Pictures, source: Source) -> Naming:
        truth = truth_of(source.labels(label, split), labels)
        rows = np.flatnonzero(truth >= 0)
        return Naming(shown=ShownRows(pictures=shown, rows=rows), labels=tuple(labels), truth=truth[rows])

    def pictures(self, pixels: NDArray[np.uint8]) -> Pictures:
        """Vectors are kept on disk: several tasks, and several calls, look at the same pictures."""
        key = hashlib.sha256(f"{self.opened.info.weights_sha256} {pixels.shape}\n".encode())
        key.update(np.ascontiguousarray(pixels).data)
        path = STUDY / "vectors" / f"{key.hexdigest()[:24]}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path, by_many=True) as stream:
                np.save(stream, normalize(picture_vectors(self.opened, pixels, device="cpu")))
        return Pictures(pixels=pixels, vectors=np.load(path))

    def all_of(self, pixels: NDArray[np.uint8]) -> ShownRows:
        return ShownRows(pictures=self.pictures(pixels), rows=np.arange(len(pixels)))

    @cached_property
    def _own(self) -> dict[Judging, Pictures]:
        return {split: self.pictures(self.source.pictures(split)) for split in SPLITS}

    @cached_property
    def asked(self) -> dict[Judging, dict[str, Question]]:
        """By split: "base" and "new" of the task, then what nobody trains for."""
        found: dict[Judging, dict[str, Question]] = {}
        for split, shown in self._own.items():
            base, new = self.classes
            found[split] = {
                "base": self.naming(split, self.label, base, shown, self.source),
                "new": self.naming(split, self.label, new, shown, self.source),
                **dict(self._elsewhere(split, shown)),
            }
        return found

    def _elsewhere(self, split: Judging, shown: Pictures) -> Iterator[tuple[str, Question]]:
        for label in ("shape", "colour") if self.name == "drawings" else OTHERS.get(self.name, ()):
            names = _names(self.source, label, least=20)
            yield label, self.naming(split, label, names, shown, self.source)
        if self.name == "drawings":
            yield from self._plain(split)
            return
        for other in ("flowers", "textures"):
            if other != self.name:
                source = _source(task(other, data=Path(self.data["folder"]).parent), {})
                pictures = self.pictures(source.pictures(split))
                yield other, self.naming(split, "class", _names(source, "class", least=1), pictures, source)
        yield "photographs R@10", self._photographs(split)

    def _plain(self, split: Judging) -> Iterator[tuple[str, Question]]:
        """What the ViT was distilled on: single plain things, and captions of two."""
        splits = scene_splits(self.opened.info.config.data)  # pyright: ignore[reportArgumentType]
        pairs, side = splits.validation.pairs, self.opened.info.image_spec.height_px
        labels = tuple(f"{colour} {shape}" for shape, colour in pairs)
        scenes = single_scenes(pairs=pairs, seed=JUDGED[split])
        truth = np.array([labels.index(f"{each.things[0].colour} {each.things[0].shape}") for each in scenes])
        shown = self.all_of(np.stack([render(scene, side).image for scene in scenes]))
        yield "plain things", Naming(shown=shown, labels=labels, truth=truth)
        pictures, captions, titles = two_things(splits, JUDGED[split], count=_SCENES, size_px=side)
        relevant = np.array(titles)[:, None] == np.array(titles)[None]
        yield (
            "scenes R@10",
            CaptionSearch(shown=self.all_of(np.stack(pictures)), captions=tuple(captions), relevant=relevant),
        )

    def _photographs(self, split: Judging) -> CaptionSearch:
        """Every second photograph of flickr8k-800, with the first of its captions."""
        folder = Path(self.data["folder"]).parent / "flickr8k-800"
        with (folder / "captions.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        names = sorted({row["image"] for row in rows})[SPLITS.index(split) :: 2]
        place = {name: at for at, name in enumerate(names)}
        first = {row["image"]: row["caption"] for row in reversed(rows)}
        said = [(first[name], at) for name, at in place.items()]
        pixels = np.stack([self.encoder._pixels((folder / "images" / name).read_bytes()) for name in names])  # pyright: ignore[reportPrivateUsage]
        relevant = np.zeros((len(said), len(names)), dtype=np.bool_)
        relevant[np.arange(len(said)), [at for _, at in said]] = True
        return CaptionSearch(
            shown=self.all_of(pixels), captions=tuple(caption for caption, _ in said), relevant=relevant
        )


OTHERS = {"articles": ("baseColour",), "colours": ("article_type",)}


def task(name: str, *, data: Path | None) -> AdapterTask:
    """data: the folder of the photographs' sets; drawings are made here and want none.

    Raises:
        ValueError: no such task, or its data are not named.
    """
    if name == "drawings":
        return AdapterTask(name=name, base=VIT, data=_drawings(STUDY / "drawings"), label="pair")
    if data is None:
        raise ValueError(
            f"{name} are photographs: --data names the folder of fashion-products, flowers5 and textures10"
        )
    if name in ("articles", "colours"):
        table = {
            "folder": str(data / "fashion-products"),
            "label_columns": ["baseColour"],
            "cache_px": 256,
            "split": {"modulo": 10, "test": [1], "validation": [2]},
        }
        label = "article_type" if name == "articles" else "baseColour"
        return AdapterTask(name=name, base=EVERYDAY, data=table, label=label, report="fashion", least=40)
    folder = {"flowers": "flowers5", "textures": "textures10"}.get(name)
    if folder is None:
        raise ValueError(f"no task {name!r}; there are: {', '.join(TASKS)}")
    table = {"kind": "folder", "folder": str(data / folder), "cache_px": 256}
    return AdapterTask(name=name, base=EVERYDAY, data=table, label="class")


def recipe(
    of: AdapterTask, method: str, options: Mapping[str, Any], optim: Mapping[str, Any], run: Mapping[str, Any]
) -> str:
    """A recipe as TOML, whose tables are one line each."""
    tables = {"method_options": options, "data": of.data, "optim": optim, "run": {"report": of.report, **run}}
    head = {"name": "adapters", "seed": run.get("seed", 0), "method": method, "base": str(of.base)}
    lines = [f"{key} = {_toml(value)}" for key, value in head.items()]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items() if key != "seed")]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """JSON's strings, numbers and arrays are TOML's; a table is written inline."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key} = {_toml(each)}" for key, each in value.items())
        return "{" + inner + "}"
    return json.dumps(value)


def _source(of: AdapterTask, run: Mapping[str, Any]) -> Source:
    folder = STUDY / "recipes"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{of.name}.toml"
    steps = {"batch_size": 2, "steps": 1, "rate": 1e-3, "warmup_steps": 0, "weight_decay": 0.0, "clip_norm": 1.0}
    path.write_text(
        recipe(of, "gda", {"label": of.label}, {**steps, "ema_decay": 0.0}, {"folder": "unset", **run}),
        encoding="utf-8",
    )
    config = load_config(path)
    spec = of.opened.info.image_spec
    return open_source(config, cache_spec=spec, image_spec=spec)


def _names(source: Source, label: str, *, least: int) -> tuple[str, ...]:
    labels = [name for name in source.labels(label) if name is not None]
    return tuple(sorted(name for name in set(labels) if labels.count(name) >= least))


def _drawings(folder: Path) -> dict[str, Any]:
    """A table of single textured things, 44 of each pair that the ViT has seen as plain ones."""
    config = load_model(VIT).info.config.data
    pairs = scene_splits(config).validation.pairs  # pyright: ignore[reportArgumentType]
    each = sum(_DRAWN.values())
    lines = [["image", "caption", "pair", "shape", "colour"]]
    for number, (shape, colour) in enumerate(pairs):
        style = SceneConfig(
            count=(1, 1),
            pairs=((shape, colour),),
            textures=("striped", "dotted", "checked"),
            stream=f"adapters/{shape}/{colour}",
        )
        for at in range(each):
            name = f"{number * each + at:05}.png"
            lines.append([name, f"a {colour} {shape}", f"{colour} {shape}", shape, colour])
            if not (folder / name).exists():
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(render(sample(at, style), 48).image).save(folder / name)
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    first, second = _DRAWN["train"], _DRAWN["train"] + _DRAWN["validation"]
    return {
        "folder": str(folder),
        "label_columns": ["pair", "shape", "colour"],
        "cache_px": 48,
        "split": {"modulo": each, "validation": list(range(first, second)), "test": list(range(second, each))},
    }
