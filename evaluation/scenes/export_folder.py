"""Scenes as an image folder, one sub-folder per class: what most image classifiers read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from evaluation.scenes.export_webdataset import owner_from_png, png_bytes, read_png
from evaluation.scenes.records import SceneRecord, StoredScene, record_from_json, record_to_json
from evaluation.scenes.rendering import render
from evaluation.scenes.scene import Scene, SceneError

_TRUTH = "scenes.jsonl"
_OWNERS = ".owners"  # hidden, or class readers would take it for a class


def only_thing(scene: Scene) -> str:
    """The class of a scene with one thing: "red circle".

    Raises:
        SceneError: another number of things.
    """
    if len(scene.things) != 1:
        raise SceneError(f"a scene of {len(scene.things)} things has no single class; pass another `label`")
    return f"{scene.things[0].colour} {scene.things[0].shape}"


def write_image_folder(
    records: Iterable[SceneRecord], folder: Path, *, size_px: int, label: Callable[[Scene], str] = only_thing
) -> None:
    """Write `LABEL/KEY.png` with blanks in labels as `_`, and the truth beside them (`scenes.jsonl`, `.owners/`)."""
    (folder / _OWNERS).mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for record in records:
        rendered = render(record.scene, size_px)
        name = label(record.scene).replace(" ", "_")
        if not name.replace("_", "").isalnum():
            raise SceneError(f"label {name!r} is no folder name: letters, digits and blanks only")
        (folder / name).mkdir(exist_ok=True)
        (folder / name / f"{record.key}.png").write_bytes(png_bytes(rendered.image))
        (folder / _OWNERS / f"{record.key}.png").write_bytes(png_bytes((rendered.owner + 1).astype("uint8")))
        lines.append(json.dumps({"label": name, **record_to_json(record)}))
    (folder / _TRUTH).write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_image_folder(folder: Path) -> list[tuple[str, StoredScene]]:
    """(label, what was written) in the order of writing."""
    out: list[tuple[str, StoredScene]] = []
    for line in (folder / _TRUTH).read_text(encoding="utf-8").splitlines():
        data = json.loads(line)
        record = record_from_json(data)
        image = read_png((folder / data["label"] / f"{record.key}.png").read_bytes())
        owner = owner_from_png((folder / _OWNERS / f"{record.key}.png").read_bytes())
        out.append((data["label"].replace("_", " "), StoredScene(record, image, owner)))
    return out
