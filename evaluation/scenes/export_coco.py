"""Scenes in COCO's layout: `images/KEY.png`, `instances.json` and `captions.json`.

Instances carry the exact masks as run lengths; each image carries its scene and the meanings of its captions in fields
that other readers ignore.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from evaluation.scenes.export_webdataset import png_bytes, read_png
from evaluation.scenes.masks import decode_segmentation, encode_rle
from evaluation.scenes.palette import COLOURS, SHAPES
from evaluation.scenes.records import SceneRecord, StoredScene, record_from_json, record_to_json
from evaluation.scenes.rendering import render
from evaluation.scenes.scene import SceneError, Thing

Category = Literal["pair", "shape"]


def write_coco(records: Iterable[SceneRecord], folder: Path, *, size_px: int, category: Category = "pair") -> None:
    """Write the three parts. Categories are "red circle" (`pair`) or "circle" (`shape`).

    Image ids count from 1. A thing that is entirely hidden has no annotation. `bbox` is [x, y, width, height].

    Raises:
        SceneError: a key occurs twice.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    names = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS] if category == "pair" else list(SHAPES)
    ids = {name: number for number, name in enumerate(names, start=1)}
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    seen: set[str] = set()
    for image_id, record in enumerate(records, start=1):
        if record.key in seen:
            raise SceneError(f"key {record.key} occurs twice")
        seen.add(record.key)
        rendered = render(record.scene, size_px)
        file_name = f"images/{record.key}.png"
        (folder / file_name).write_bytes(png_bytes(rendered.image))
        size = {"height": size_px, "width": size_px}
        images.append({"id": image_id, "file_name": file_name, **size, "record": record_to_json(record)})
        for index, (thing, mask) in enumerate(zip(record.scene.things, rendered.masks, strict=True)):
            left, top, right, bottom = (int(side) for side in rendered.boxes[index])
            if not rendered.visible_px[index]:
                continue
            instances.append(
                {
                    "id": len(instances) + 1,
                    "image_id": image_id,
                    "category_id": ids[_name(thing, category)],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": int(rendered.visible_px[index]),
                    "iscrowd": 0,
                    "segmentation": encode_rle(mask),
                    "thing": index,
                }
            )
        for caption in record.captions:
            captions.append({"id": len(captions) + 1, "image_id": image_id, "caption": caption.text})
    categories = [{"id": number, "name": name, "supercategory": name.split()[-1]} for name, number in ids.items()]
    plain = [{key: value for key, value in image.items() if key != "record"} for image in images]
    _write(folder / "instances.json", {"images": images, "annotations": instances, "categories": categories})
    _write(folder / "captions.json", {"images": plain, "annotations": captions})


def read_coco(folder: Path) -> list[StoredScene]:
    """What `write_coco` wrote. (For COCO files of others see `training.data.coco`.)"""
    data = json.loads((folder / "instances.json").read_text(encoding="utf-8"))
    out: dict[int, StoredScene] = {}
    for image in data["images"]:
        record = record_from_json(image["record"])
        pixels = read_png((folder / "images" / f"{record.key}.png").read_bytes())
        out[image["id"]] = StoredScene(record, pixels, np.full(pixels.shape[:2], -1, dtype=np.int8))
    for annotation in data["annotations"]:
        owner = out[annotation["image_id"]].owner
        height, width = owner.shape
        owner[decode_segmentation(annotation["segmentation"], height=height, width=width)] = annotation["thing"]
    return list(out.values())


def _name(thing: Thing, category: Category) -> str:
    return f"{thing.colour} {thing.shape}" if category == "pair" else thing.shape


def _write(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data), encoding="utf-8")
