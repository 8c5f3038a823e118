"""A folder whose sub-folders are classes: the form of ImageNet, and of most sets that people make themselves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from evaluation.standard.photographs import Photograph, photograph, pictures_in

Part = Literal["train", "validation", "test"]
_PARTS: Mapping[str, Part] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


@dataclass(frozen=True, slots=True)
class LabelledPhotograph:
    """`label` indexes the classes. part: from a folder train/, val/, test/; None where the set has no such folders."""

    photograph: Photograph
    label: int
    part: Part | None


@dataclass(frozen=True)
class ImageFolder:
    """classes: the sub-folders, sorted; names: what they are called in texts."""

    classes: tuple[str, ...]
    names: tuple[str, ...]
    items: tuple[LabelledPhotograph, ...]
    notes: tuple[str, ...]

    @property
    def parts(self) -> set[Part | None]:
        return {item.part for item in self.items}


def read_image_folder(root: Path) -> ImageFolder:
    """Classes are the sub-folders of `root`, or those of `root/train`, `root/val`, `root/test` together.

    Names come from `classes.txt` (a name per line, in the sorted order of the sub-folders, or `FOLDER<tab>NAME`) or
    `classes.json` (a list, or an object FOLDER -> NAME) in `root`; else a name is its folder's, with _ as a space.

    Raises:
        ValueError: no such folder, fewer than two classes, one without a picture, names that do not fit or repeat.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    tops: dict[Part | None, Path] = {None: root}
    inside = _folders(root)
    if "train" in inside and len(inside) > 1 and set(inside) <= set(_PARTS):
        tops = {_PARTS[name]: root / name for name in inside}
        if len(tops) != len(inside):
            raise ValueError(f"{root}: {', '.join(inside)}: two folders for validation")
    classes = tuple(sorted({name for top in tops.values() for name in _folders(top)}))
    if len(classes) < 2:
        raise ValueError(f"{root}: expected at least two sub-folders, one for each class, got {list(classes)}")
    items: list[LabelledPhotograph] = []
    others = 0
    for part, top in tops.items():
        for label, name in enumerate(classes):
            if not (top / name).is_dir():
                continue
            paths, left_out = pictures_in(top / name)
            others += left_out
            prefix = name if part is None else f"{top.name}/{name}"
            items += [LabelledPhotograph(photograph(path, f"{prefix}/{path.name}"), label, part) for path in paths]
    empty = sorted(set(range(len(classes))) - {item.label for item in items})
    if empty:
        raise ValueError(f"{root / classes[empty[0]]}: no picture (.jpg, .jpeg, .png, .webp) in this class")
    notes = (f"{others} files or folders inside the classes are no pictures by their name: left out",) if others else ()
    return ImageFolder(classes, _names(root, classes), tuple(items), notes)


def parted(folder: ImageFolder, *, seed: int = 0) -> dict[Part, tuple[LabelledPhotograph, ...]]:
    """train, validation, test: the set's own folders; what it lacks is taken by a hash of the name.

    Without folders: 60, 20, 20 %. With train/ and test/ only: a fifth of train/ validates. With train/ and val/ only:
    val/ is the test, and a fifth of train/ validates.
    """
    out: dict[Part, list[LabelledPhotograph]] = {"train": [], "validation": [], "test": []}
    has_test, has_validation = "test" in folder.parts, "validation" in folder.parts
    for item in folder.items:
        fifth = _hash(item.photograph.name, seed) % 5
        if item.part is None:
            where: Part = "test" if fifth == 0 else "validation" if fifth == 1 else "train"
        elif item.part == "train" and not (has_test and has_validation):
            where = "validation" if fifth == 1 else "train"
        elif item.part == "validation" and not has_test:
            where = "test"
        else:
            where = item.part
        out[where].append(item)
    return {part: tuple(items) for part, items in out.items()}


def in_hash_order(items: Sequence[LabelledPhotograph], *, seed: int = 0) -> list[LabelledPhotograph]:
    """An order that depends on the names and the seed only."""
    return sorted(items, key=lambda item: (_hash(item.photograph.name, seed), item.photograph.name))


def labels_of(items: Sequence[LabelledPhotograph]) -> NDArray[np.int64]:
    return np.array([item.label for item in items], dtype=np.int64)


def identities(folder: ImageFolder) -> list[str]:
    """All that answers depend on, for a digest."""
    return [*folder.names, *(f"{item.label} {item.part} {item.photograph.identity}" for item in folder.items)]


def _hash(name: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "big")


def _folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _names(root: Path, classes: tuple[str, ...]) -> tuple[str, ...]:
    text, table = root / "classes.txt", root / "classes.json"
    if text.is_file() and table.is_file():
        raise ValueError(f"{root}: both classes.txt and classes.json: keep one")
    if text.is_file():
        lines = [line.strip() for line in _read(text).splitlines() if line.strip()]
        tabbed = ["\t" in line for line in lines]
        if any(tabbed) != all(tabbed):
            raise ValueError(f"{text}: line {1 + tabbed.index(not tabbed[0])}: some lines have a tab, some have not")
        pairs = [tuple(part.strip() for part in line.split("\t", 1)) for line in lines]
        names = _matched(text, dict(cast("list[tuple[str, str]]", pairs)) if any(tabbed) else lines, classes)
    elif table.is_file():
        try:
            names = _matched(table, json.loads(_read(table)), classes)
        except json.JSONDecodeError as error:
            raise ValueError(f"{table}: not JSON: {error}") from error
    else:
        names = tuple(name.replace("_", " ") for name in classes)
    folded = [name.casefold() for name in names]
    twice = next((name for name in names if folded.count(name.casefold()) > 1), None)
    if twice is not None:
        raise ValueError(f"{root}: two classes are called {twice!r}: no text can tell them apart")
    return names


def _matched(path: Path, found: object, classes: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(found, dict):
        missing = [name for name in classes if name not in found]
        if missing:
            raise ValueError(f"{path}: no name for the folder {missing[0]!r} ({len(missing)} are missing)")
        found = [found[name] for name in classes]
    if not isinstance(found, list) or len(found) != len(classes):
        got = f"{len(found)} names" if isinstance(found, list) else type(found).__name__
        raise ValueError(f"{path}: expected a name for each of {len(classes)} sub-folders, got {got}")
    bad = next((name for name in found if not isinstance(name, str) or not name.strip()), None)
    if bad is not None:
        raise ValueError(f"{path}: {bad!r} is no name")
    return tuple(name.strip() for name in found)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from error
