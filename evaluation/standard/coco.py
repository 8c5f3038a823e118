"""Readers of COCO's json files: which pictures there are, and the captions of each."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any


def load_coco(path: Path, *keys: str) -> Mapping[str, Any]:
    """The file's object, which has `images` and all of `keys`.

    Raises:
        ValueError: no JSON, or not such an object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    missing = [key for key in ("images", *keys) if not isinstance(data, dict) or key not in data]
    if missing:
        raise ValueError(f"{path.name} has no {', '.join(missing)}: not a COCO file of this kind")
    return data


def coco_images(data: Mapping[str, Any], path: Path) -> dict[int, Mapping[str, Any]]:
    """Image id -> image, in the file's order.

    Raises:
        ValueError: an image without a name, or whose path leaves the folder.
    """
    out: dict[int, Mapping[str, Any]] = {}
    for image in data["images"]:
        name = PurePosixPath(str(image.get("file_name", "")))
        if not name.name or name.is_absolute() or ".." in name.parts:
            raise ValueError(f"{path.name}: image {image.get('id')} has path {str(name)!r}, expected one in the folder")
        out[image["id"]] = image
    return out


def image_of(annotation: Mapping[str, Any], images: Mapping[int, Any], path: Path) -> int:
    """The id of the annotation's image.

    Raises:
        ValueError: there is no such image.
    """
    image_id = annotation.get("image_id")
    if not isinstance(image_id, int) or image_id not in images:
        raise ValueError(f"{path.name}: annotation {annotation.get('id')} is of unknown image {image_id!r}")
    return image_id


def coco_captions(path: Path) -> list[tuple[int, str, tuple[str, ...]]]:
    """(image id, file name, captions) of a `captions_*.json`, in the order of its images.

    Raises:
        ValueError: not such a file, an annotation of an unknown image, an empty caption, a path that leaves the folder.
    """
    data = load_coco(path, "annotations")
    images = coco_images(data, path)
    texts: dict[int, list[str]] = defaultdict(list)
    for annotation in data["annotations"]:
        caption = str(annotation.get("caption", "")).strip()
        if not caption:
            raise ValueError(f"{path.name}: annotation {annotation.get('id')} has no caption")
        texts[image_of(annotation, images, path)].append(caption)
    return [(image_id, image["file_name"], tuple(texts[image_id])) for image_id, image in images.items()]
