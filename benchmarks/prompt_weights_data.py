"""Pictures, labels and templates of the study of prompt weights, as unit vectors of the shipped model, kept on disk."""

from __future__ import annotations

import ast
import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.marked import ROOT
from evaluation.encoder import ArtifactEncoder
from evaluation.fashion import article_type
from model_store.files import whole_file
from model_store.graph import SessionSettings
from model_store.label_vectors import filled
from model_store.store import Store
from model_store.templates import named_templates

MODEL = "everyday-small"
FOLDERS: Mapping[str, str] = {"flowers": "flowers5", "textures": "textures10"}
PRODUCTS = ("articles", "colours")
TASKS = (*FOLDERS, *PRODUCTS)
KEPT = ROOT / ".runs" / "prompt-weights"
Part = Literal["train", "validation", "test"]
F32, I64 = NDArray[np.float32], NDArray[np.int64]
_PART_OF_DIGIT: Sequence[Part] = ("train",) * 4 + ("validation",) * 2 + ("test",) * 4
_LEAST = 40  # pictures of a label that are not held out
_TRAINING_PRODUCTS = 1000


@dataclass(frozen=True)
class TaskPictures:
    """Unit vectors [N, D] and labels int64 [N] of one part of a task."""

    vectors: F32
    truth: I64


@dataclass(frozen=True)
class TemplateTask:
    """texts: unit vectors [C, P, D] of labels in every template of the pool. In use `train` has no labels."""

    name: str
    labels: tuple[str, ...]
    texts: F32
    train: TaskPictures
    validation: TaskPictures
    test: TaskPictures


def encoder() -> ArtifactEncoder:
    artifact = Store(None, builtin=True).open(MODEL)
    return ArtifactEncoder(artifact, settings=SessionSettings(intra_threads=1))


def template_pool(prompts: Path) -> tuple[str, ...]:
    """The named templates of this project, then those of the sets in `datasets.md` of CLIP's repository, each once."""
    page = (prompts / "datasets.md").read_text(encoding="utf-8")
    lists = [
        ast.literal_eval(found) for found in re.findall(r"^templates = (\[.*?^\])", page, re.DOTALL | re.MULTILINE)
    ]
    given = [each for found in lists for each in found]
    every = [*named_templates("imagenet"), *named_templates("simple"), "{}", "a photo of a {}", "a {}", *given]
    return tuple(dict.fromkeys(each for each in every if each.count("{}") == 1))


def read_tasks(data: Path, pool: Sequence[str], encoder: ArtifactEncoder) -> list[TemplateTask]:
    return [_task(name, data, pool, encoder) for name in TASKS]


def reference_pictures(data: Path, encoder: ArtifactEncoder) -> F32:
    """Vectors of photographs of everyday things, in which no task's labels are meant."""
    paths = [*sorted((data / "coco-mini").rglob("*.jpg")), *sorted((data / "flickr8k-800").rglob("*.jpg"))]
    return image_vectors("reference", paths, encoder)


def _task(name: str, data: Path, pool: Sequence[str], encoder: ArtifactEncoder) -> TemplateTask:
    if name in FOLDERS:
        rows = _folder_rows(data / FOLDERS[name])
        paths = [path for path, _, _ in rows]
    else:
        both = {each: _product_rows(data / "fashion-products", each) for each in PRODUCTS}
        rows = both[name]
        paths = sorted({path for each in both.values() for path, _, _ in each})
    vectors = image_vectors(FOLDERS.get(name, "products"), paths, encoder)
    place = {path: at for at, path in enumerate(paths)}
    labels = tuple(sorted({label for _, label, _ in rows}))
    texts = text_vectors(name, [text for label in labels for text in filled(pool, label)], encoder)
    parts: dict[Part, TaskPictures] = {}
    for part in ("train", "validation", "test"):
        of_part = [(place[path], labels.index(label)) for path, label, its in rows if its == part]
        parts[part] = TaskPictures(vectors[[at for at, _ in of_part]], np.array([label for _, label in of_part]))
    shape = (len(labels), len(pool), -1)
    return TemplateTask(name, labels, texts.reshape(shape), parts["train"], parts["validation"], parts["test"])


def _folder_rows(folder: Path) -> list[tuple[Path, str, Part]]:
    """Parted by the sha256 of the files' names: 40 % train, 20 % validation, 40 % held out."""
    return [
        (path, path.parent.name, _PART_OF_DIGIT[int(hashlib.sha256(path.name.encode()).hexdigest(), 16) % 10])
        for path in sorted(folder.glob("*/*"))
    ]


def _product_rows(folder: Path, name: str) -> list[tuple[Path, str, Part]]:
    """The data's own split by product id; of the training part a thousand by the sha256 of their names."""
    with (folder / "captions.csv").open(newline="", encoding="utf-8") as file:
        given = list(csv.DictReader(file))
    found: list[tuple[Path, str, Part]] = []
    for row in given:
        label = article_type(row["caption"]) if name == "articles" else row["baseColour"].casefold()
        if label:
            digit = int(Path(row["image"]).stem) % 10
            part: Part = "test" if digit == 1 else "validation" if digit == 2 else "train"
            found.append((folder / row["image"], label, part))
    counts = Counter(label for _, label, part in found if part != "test")
    frequent = [row for row in found if counts[row[1]] >= _LEAST]
    train = sorted((row for row in frequent if row[2] == "train"), key=lambda row: _digest([row[0].name]))
    return [*train[:_TRAINING_PRODUCTS], *(row for row in frequent if row[2] != "train")]


def image_vectors(name: str, paths: Sequence[Path], encoder: ArtifactEncoder) -> F32:
    key = _digest([encoder.fingerprint, *(str(path.name) for path in paths)])
    return _kept(f"{name}-{key}", lambda: encoder.encode_images([path.read_bytes() for path in paths]))


def text_vectors(name: str, texts: Sequence[str], encoder: ArtifactEncoder) -> F32:
    return _kept(f"{name}-texts-{_digest([encoder.fingerprint, *texts])}", lambda: encoder.encode_texts(texts))


def _kept(name: str, make: Callable[[], F32]) -> F32:
    path = KEPT / f"{name}.npy"
    if not path.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        print(f"encoding {name}", flush=True)
        vectors = make()
        with whole_file(path) as stream:
            np.save(stream, vectors)
    return np.load(path)


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:16]
