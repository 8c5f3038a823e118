"""COCO's `instances_*.json` as labelled pictures: polygons, run lengths as numbers and as text, crowds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from evaluation.dense.truth import Box, Instance, Mask, PictureWithTruth, Truth
from evaluation.scenes.masks import decode_segmentation
from evaluation.standard.photographs import Photograph, named_file, photograph

_MOST_ERRORS = 3


class _Foreign(BaseModel):
    """Others write these files, with fields that nobody here needs."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _Image(_Foreign):
    id: int
    file_name: str = Field(min_length=1)
    width: int = Field(ge=1, le=100_000)
    height: int = Field(ge=1, le=100_000)


class _Category(_Foreign):
    id: int
    name: str = Field(min_length=1)


class _RunLengths(_Foreign):
    size: tuple[int, int]
    counts: list[int] | str


class _Annotation(_Foreign):
    id: int | None = None
    image_id: int
    category_id: int
    bbox: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat] | None = None
    segmentation: _RunLengths | list[list[FiniteFloat]]
    iscrowd: int = Field(default=0, ge=0, le=1)


class _Instances(_Foreign):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category] = Field(min_length=1)


@dataclass(frozen=True)
class CocoInstances:
    """labels: the file's categories in its order, also those that no picture has."""

    file: str
    labels: tuple[str, ...]
    asked: str
    rows: tuple[tuple[_Image, Photograph, tuple[_Annotation, ...]], ...]
    positions: Mapping[int, int]
    notes: tuple[str, ...] = ()
    boxed: bool = True

    def __len__(self) -> int:
        return len(self.rows)

    def open(self, index: int) -> PictureWithTruth:
        """Decodes the masks of one picture.

        Raises:
            ValueError: a mask or a box that does not fit its picture, or the picture cannot be read.
        """
        image, shown, annotations = self.rows[index]
        instances = [self._instance(each, image) for each in annotations]
        truth = Truth(width=image.width, height=image.height, instances=tuple(each for each in instances if each))
        return PictureWithTruth(image.file_name, shown.shown(), truth)

    def _instance(self, found: _Annotation, image: _Image) -> Instance | None:
        """None: nothing of it is seen."""
        try:
            mask = _mask(found, height=image.height, width=image.width)
            if not mask.any():
                return None
            box = _box(found, mask)
        except ValueError as error:
            raise ValueError(f"{self.file}: annotation {found.id} of {image.file_name}: {error}") from error
        label = self.positions[found.category_id]
        return Instance(label=label, mask=mask, hit=mask, box=box, crowd=bool(found.iscrowd))


def read_coco_instances(path: Path, *, images: Path | None = None) -> CocoInstances:
    """Pictures lie in `images`, else beside the file. No picture is decoded and no mask.

    Raises:
        ValueError: not such a file, what it refers to is not in it, or pictures are missing.
    """
    data = path.read_bytes()
    found = _parsed(data, path.name)
    names = [each.name for each in found.categories]
    positions = {each.id: at for at, each in enumerate(found.categories)}
    by_id = {each.id: each for each in found.images}
    for what, ids in (("categories", [each.id for each in found.categories]), ("images", [*by_id])):
        whole = len(found.categories if what == "categories" else found.images)
        if len(set(ids)) != whole:
            raise ValueError(f"{path.name}: {whole} {what} have {len(set(ids))} different ids")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path.name}: category name {twice!r} occurs twice, expected different names")
    grouped: dict[int, list[_Annotation]] = {each.id: [] for each in found.images}
    for each in found.annotations:
        if each.image_id not in by_id or each.category_id not in positions:
            kind, missing = ("category", each.category_id) if each.image_id in by_id else ("image", each.image_id)
            raise ValueError(f"{path.name}: annotation {each.id} is of {kind} {missing}, which the file does not have")
        grouped[each.image_id].append(each)
    shown = _photographs(found.images, images or path.parent, path.name)
    rows = tuple((each, shown[each.file_name], tuple(grouped[each.id])) for each in found.images)
    if not rows:
        raise ValueError(f"{path.name} has no images")
    notes = (
        "the masks are those of things that the file names: what it does not name is background",
        *_alone(grouped),
    )
    return CocoInstances(path.name, tuple(names), _asked(data, shown), rows, positions, notes)


def _alone(grouped: Mapping[int, Sequence[_Annotation]]) -> tuple[str, ...]:
    crowds = sum(each.iscrowd for some in grouped.values() for each in some)
    said = f"{crowds} crowds are areas of their label, but a box on one is neither right nor wrong"
    return (said,) if crowds else ()


def _parsed(data: bytes, name: str) -> _Instances:
    try:
        return _Instances.model_validate(json.loads(data))
    except ValidationError as error:
        some = [": ".join([*_place(each["loc"]), each["msg"]]) for each in error.errors()[:_MOST_ERRORS]]
        more = f", and {error.error_count() - len(some)} more" if error.error_count() > len(some) else ""
        raise ValueError(f"{name} is no COCO file of instances: {'; '.join(some)}{more}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON: {error}") from error


def _place(path: Sequence[int | str]) -> list[str]:
    """Empty for the whole file, as when it holds a list."""
    return [".".join(map(str, path))] if path else []


def _photographs(images: Sequence[_Image], folder: Path, name: str) -> dict[str, Photograph]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of pictures")
    found: dict[str, Photograph] = {}
    missing: list[str] = []
    for each in images:
        plain = PurePosixPath(each.file_name)
        if "\0" in each.file_name or plain.is_absolute() or ".." in plain.parts:
            raise ValueError(f"{name}: image {each.id} has path {each.file_name!r}, expected one in the folder")
        where = named_file(folder, each.file_name)
        if where is None:
            missing.append(each.file_name)
        else:
            found[each.file_name] = photograph(where, each.file_name)
    if missing:
        raise ValueError(
            f"{name}: {len(missing)} of {len(images)} pictures are not in {folder} or {folder / 'images'}, such as "
            f"{missing[0]!r}; say where they are with images=FOLDER"
        )
    return found


def _mask(found: _Annotation, *, height: int, width: int) -> Mask:
    parts = found.segmentation
    if isinstance(parts, _RunLengths):
        return decode_segmentation(parts.model_dump(), height=height, width=width)
    if not parts:
        raise ValueError("no segmentation, expected polygons or run lengths")
    for part in parts:
        for name, values, side in (("x", part[::2], width), ("y", part[1::2], height)):
            if values and not -side <= min(values) <= max(values) <= 2 * side:
                raise ValueError(
                    f"a polygon from {name} = {min(values):g} to {max(values):g} in a picture of {side} px"
                )
    return decode_segmentation(parts, height=height, width=width)


def _box(found: _Annotation, mask: Mask) -> Box:
    """Annotators' boxes stick out a little: what is outside the picture is cut off. Without one, or with one of no
    height or width, of which COCO's own files have a few: that of the mask."""
    if found.bbox is None or min(found.bbox[2:]) == 0:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
    left, upper, width, height = found.bbox
    if not (width > 0 and height > 0):
        raise ValueError(f"a box of {width:g} x {height:g} px, expected more than 0")
    right, lower = left + width, upper + height
    for name, first, last, side in (("x", left, right, mask.shape[1]), ("y", upper, lower, mask.shape[0])):
        between = f"a box from {name} = {first:g} to {last:g}"
        if not -side <= first <= last <= 2 * side:
            raise ValueError(f"{between} in a picture of {side} px")
        if not max(first, 0.0) < min(last, side):
            raise ValueError(f"{between} has no part in a picture of {side} px")
    return max(left, 0.0), max(upper, 0.0), min(right, float(mask.shape[1])), min(lower, float(mask.shape[0]))


def _asked(data: bytes, shown: Mapping[str, Photograph]) -> str:
    whole = hashlib.sha256(data)
    for each in shown.values():
        whole.update(f"{each.identity}\n".encode())
    return whole.hexdigest()
