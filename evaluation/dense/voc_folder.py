"""A folder as PASCAL VOC has it: JPEGImages, SegmentationClass, and lists of names in ImageSets/Segmentation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from evaluation.dense.truth import Instance, PictureWithTruth, Truth
from evaluation.standard.photographs import SUFFIXES, Photograph, photograph

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog",
    "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
)  # fmt: skip
_UNJUDGED, _GROUND = 255, "background"
_MOST_PX = 50_000_000


@dataclass(frozen=True)
class VocFolder:
    """rows: name, photograph, and the PNG whose palette index is 0 for the background, n for the n-th label, 255 for
    pixels that count nowhere. Things of one label are not told apart, so there are no boxes."""

    labels: tuple[str, ...]
    asked: str
    rows: tuple[tuple[str, Photograph, Path], ...]
    notes: tuple[str, ...] = ("things of one label are not told apart: no boxes are judged",)
    boxed: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def open(self, index: int) -> PictureWithTruth:
        """Raises:
        ValueError: the picture or its PNG cannot be read, or the PNG holds an index that is no class.
        """
        name, shown, path = self.rows[index]
        indexes = _indexes(path)
        highest = int(indexes[indexes != _UNJUDGED].max(initial=0))
        if highest > len(self.labels):
            raise ValueError(
                f"{path.name}: class {highest}, expected 0 to {len(self.labels)} or {_UNJUDGED}; name the classes with "
                "classes=FILE"
            )
        there = [int(value) for value in np.unique(indexes) if value not in (0, _UNJUDGED)]
        masks = {value - 1: indexes == value for value in there}
        height, width = indexes.shape
        whole = (0.0, 0.0, float(width), float(height))
        instances = tuple(Instance(label=label, mask=mask, hit=mask, box=whole) for label, mask in masks.items())
        unjudged = indexes == _UNJUDGED
        truth = Truth(width=width, height=height, instances=instances, unjudged=unjudged if unjudged.any() else None)
        return PictureWithTruth(name, shown.shown(), truth)


def read_voc_folder(folder: Path, *, part: str | None = None, classes: Path | None = None) -> VocFolder:
    """part: the list in ImageSets/Segmentation; default: val, or the only one. classes: a file with a name on each
    line, in the order of the indexes from 1 (a first line `background` is skipped); default: VOC's twenty.

    Raises:
        ValueError: a part of the folder, a picture or a PNG is missing, or the lists are of another form.
    """
    for name in ("JPEGImages", "SegmentationClass"):
        if not (folder / name).is_dir():
            raise ValueError(f"{folder}: no folder {name}, expected JPEGImages, SegmentationClass and ImageSets")
    labels = VOC_CLASSES if classes is None else _class_names(classes)
    listed = _listed(folder / "ImageSets" / "Segmentation", part)
    names = _lines(listed)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"{listed.name}: {len(names)} names, {len(set(names))} of them different")
    whole = hashlib.sha256("\n".join(labels).encode())
    rows: list[tuple[str, Photograph, Path]] = []
    for name in names:
        if Path(name).name != name or name in ("", ".", ".."):
            raise ValueError(f"{listed.name}: {name!r}, expected the name of a picture without folder and ending")
        paths = (folder / "JPEGImages" / f"{name}{suffix}" for suffix in sorted(SUFFIXES))
        found = next((path for path in paths if path.is_file()), None)
        if found is None:
            raise ValueError(f"{listed.name}: {name} has no picture in JPEGImages ({', '.join(sorted(SUFFIXES))})")
        png = folder / "SegmentationClass" / f"{name}.png"
        if not png.is_file():
            raise ValueError(f"{listed.name}: {name} has no SegmentationClass/{png.name}")
        shown = photograph(found, found.name)
        rows.append((name, shown, png))
        whole.update(f"{shown.identity} {png.stat().st_size}\n".encode())
    return VocFolder(labels, whole.hexdigest(), tuple(rows))


def _listed(folder: Path, part: str | None) -> Path:
    lists = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    known = [path.stem for path in lists]
    chosen = part or ("val" if "val" in known else known[0] if len(known) == 1 else "")
    if chosen not in known:
        raise ValueError(
            f"{folder}: no list {chosen or 'chosen'}, it has {', '.join(known) or 'none'}; choose with split=NAME"
        )
    return folder / f"{chosen}.txt"


def _class_names(path: Path) -> tuple[str, ...]:
    names = _lines(path)
    if names and names[0].lower() == _GROUND:
        names = names[1:]
    if not 0 < len(names) < _UNJUDGED or len(set(names)) != len(names):
        raise ValueError(
            f"{path.name}: {len(names)} names, {len(set(names))} different; expected 1 to 254 different ones"
        )
    return tuple(names)


def _lines(path: Path) -> Sequence[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}: not UTF-8 text ({error})") from error


def _indexes(path: Path) -> NDArray[np.uint8]:
    """uint8 [height, width], the palette's indexes or grey values as they are."""
    try:
        with Image.open(BytesIO(path.read_bytes()), formats=["PNG"]) as image:
            unfit = _unfit(image)
            if unfit is None:
                return np.array(image, dtype=np.uint8)
    except UnidentifiedImageError as error:  # its own words name a buffer
        raise ValueError(f"{path.name}: cannot be read as PNG (Pillow knows no such format)") from error
    except (OSError, SyntaxError, ValueError, MemoryError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path.name}: cannot be read as PNG ({error})") from error
    raise ValueError(f"{path.name}: {unfit}")


def _unfit(image: Image.Image) -> str | None:
    if image.width * image.height > _MOST_PX:
        return f"{image.width} x {image.height} pixels, at most {_MOST_PX} are read"
    return None if image.mode in ("P", "L") else f"a PNG of mode {image.mode}, expected a palette or 8-bit grey"
