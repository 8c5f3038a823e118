"""A folder of classes as rows: the sub-folder is the label, the name of the class is the caption."""

from __future__ import annotations

import hashlib
from pathlib import Path

from evaluation.standard.image_folder import Part, read_image_folder
from training.data.rows import Row, Split, group_of_name

CLASS = "class"
_SHARE = 5


def read_classes(folder: Path) -> dict[Split, list[Row]]:
    """Rows by split. Without folders train/, val/, test/ a fifth of each class, by a hash of the names, is held out and
    another (one picture at least) validates; with train/ and one other, that one validates.

    Raises:
        ValueError: no such folder, fewer than two classes, a class without a picture.
    """
    found = read_image_folder(folder)
    rows: dict[Split, list[Row]] = {"train": [], "validation": [], "test": []}
    for label, name in enumerate(found.names):
        items = [item for item in found.items if item.label == label]
        ordered = sorted(items, key=lambda item: hashlib.sha256(item.photograph.name.encode()).digest())
        held_out, validating = len(items) // _SHARE, max(1, len(items) // _SHARE)
        for place, item in enumerate(ordered):
            split: Split = "test" if place < held_out else "validation" if place < held_out + validating else "train"
            image = item.photograph.path.relative_to(folder).as_posix()
            row = Row(image=image, caption=name, group=group_of_name(image), labels={CLASS: name})
            rows[split if item.part is None else _of_part(item.part, found.parts)].append(row)
    return rows


def _of_part(part: Part, parts: set[Part | None]) -> Split:
    return "validation" if part == "test" and "validation" not in parts else part
