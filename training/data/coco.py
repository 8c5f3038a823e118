"""Readers of COCO's json: captions as training rows, instances as boxes and masks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.scenes.masks import decode_segmentation
from evaluation.standard.coco import coco_captions, coco_images, image_of, load_coco
from training.data.rows import Row


@dataclass(frozen=True, kw_only=True)
class Instances:
    """The things of one picture. boxes: float32 [N, 4], left, top, right, bottom in pixels; crowd: bool [N]."""

    image: str
    image_id: int
    width_px: int
    height_px: int
    labels: tuple[str, ...]
    boxes: NDArray[np.float32]
    crowd: NDArray[np.bool_]
    segmentations: tuple[Sequence[Sequence[float]] | Mapping[str, Any], ...]

    def masks(self) -> NDArray[np.bool_]:
        """bool [N, height_px, width_px], decoded now: a large file holds many."""
        size = (self.height_px, self.width_px)
        decoded = [decode_segmentation(s, height=size[0], width=size[1]) for s in self.segmentations]
        return np.stack(decoded) if decoded else np.zeros((0, *size), dtype=bool)


def read_captions(path: Path, *, per_image: Literal["all", "first"] = "all") -> list[Row]:
    """Rows of a `captions_*.json`, in the order of the file's images; image paths are the file's own names.

    The group of a row is its image's id, so all captions of a picture fall on one side of a split.

    Raises:
        ValueError: not such a file, an annotation of an unknown image, an empty caption, a path that leaves the folder.
    """
    return [
        Row(image=name, caption=caption, group=image_id)
        for image_id, name, captions in coco_captions(path)
        for caption in (captions if per_image == "all" else captions[:1])
    ]


def read_instances(path: Path) -> list[Instances]:
    """One entry per image of an `instances_*.json`, also for images without any instance.

    Raises:
        ValueError: not such a file, an unknown image or category, a box that is not [x, y, width, height].
    """
    data = load_coco(path, "annotations", "categories")
    images = coco_images(data, path)
    names = {category["id"]: str(category["name"]) for category in data["categories"]}
    found: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for annotation in data["annotations"]:
        if annotation.get("category_id") not in names:
            raise ValueError(f"{path.name}: annotation {annotation.get('id')} is of an unknown category")
        if len(annotation.get("bbox", ())) != 4:
            raise ValueError(f"{path.name}: annotation {annotation.get('id')} has no [x, y, width, height] box")
        found[image_of(annotation, images, path)].append(annotation)
    return [_instances(image, found[image_id], names) for image_id, image in images.items()]


def category_names(path: Path) -> list[str]:
    """The names of an `instances_*.json`, in the order of their ids, those that occur nowhere included.

    Raises:
        ValueError: not such a file.
    """
    categories = load_coco(path, "annotations", "categories")["categories"]
    return [str(each["name"]) for each in sorted(categories, key=lambda each: each["id"])]


def _instances(
    image: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]], names: Mapping[int, str]
) -> Instances:
    corners = np.array([a["bbox"] for a in annotations], dtype=np.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return Instances(
        image=image["file_name"],
        image_id=image["id"],
        width_px=image["width"],
        height_px=image["height"],
        labels=tuple(names[a["category_id"]] for a in annotations),
        boxes=corners,
        crowd=np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool),
        segmentations=tuple(a.get("segmentation", []) for a in annotations),
    )
