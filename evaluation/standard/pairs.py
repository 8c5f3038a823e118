"""Readers of files with a true and a false caption per picture: SugarCrepe's (2023) and ARO's (2023)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.standard.choices import Choice, Choices
from evaluation.standard.photographs import Box, named_file, photograph

FORMS = (
    "SugarCrepe's (filename, caption, negative_caption) or ARO's (image_path, bbox_x, bbox_y, bbox_w, bbox_h,"
    " true_caption, false_caption, and relation_name or attributes)"
)
_SUGAR = ("filename", "caption", "negative_caption")
_ARO = ("image_path", "true_caption", "false_caption")
_BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
_LEAST_ATTRIBUTES = 25  # ARO leaves rarer pairs of attributes out of the mean


@dataclass(frozen=True)
class _Pair:
    picture: str
    true: str
    false: str
    group: str
    box: Box | None


def read_pairs(name: str, path: Path, *, images: Path | None = None) -> Choices:
    """One file, or all .json files of a folder (SugarCrepe: each is a type); pictures in `images`, else beside it.

    Rows whose picture is missing, and rows whose two captions are one text, are left out and counted in the notes.

    Raises:
        ValueError: no such file, none of FORMS or several, a row without a field, or no row that can be asked.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise ValueError(f"{path}: no such file, or a folder without .json files; expected {FORMS}")
    folder = images or (path if path.is_dir() else path.parent)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of pictures")
    found = [_read(file) for file in files]
    groups = {kind for kind, _ in found}
    if len(groups) != 1:
        raise ValueError(f"{path}: files of several forms ({', '.join(sorted(groups))}): ask them one by one")
    pairs = [pair for _, some in found for pair in some]
    kept = [pair for pair in pairs if pair.true.casefold() != pair.false.casefold()]
    at = {pair.picture: named_file(folder, pair.picture) for pair in kept}
    choices: list[Choice] = []
    for pair in kept:
        where = at[pair.picture]
        if where is not None:
            choices.append(Choice(photograph(where, pair.picture, box=pair.box), (pair.true, pair.false), pair.group))
    missing = len(kept) - len(choices)
    if not choices:
        raise ValueError(
            f"{path}: none of its {len(pairs)} rows can be asked: {missing} lack their picture in {folder}"
            " (say where they are with images=FOLDER)"
        )
    notes: list[str] = []
    if missing:
        notes.append(f"{missing} of {len(pairs)} rows lack their picture: left out")
    if len(kept) < len(pairs):
        notes.append(f"{len(pairs) - len(kept)} of {len(pairs)} rows have two equal captions: left out")
    group = groups.pop()
    least = _LEAST_ATTRIBUTES if group == "pairs of attributes" else 1
    return Choices(name, tuple(choices), groups=group, least=least, notes=tuple(notes))


def _read(path: Path) -> tuple[str, list[_Pair]]:
    """What the groups are called, and the rows."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    rows: Sequence[Any] = list(data.values()) if isinstance(data, dict) else data
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        raise ValueError(f"{path.name}: expected rows of {FORMS}, got {type(data).__name__}")
    sugar = "negative_caption" in rows[0]
    if not sugar and "false_caption" not in rows[0]:
        raise ValueError(f"{path.name}: expected rows of {FORMS}, got fields {sorted(rows[0])}")
    aro = "relations" if "relation_name" in rows[0] else "pairs of attributes"
    pairs: list[_Pair] = []
    for number, row in enumerate(rows, start=1):
        try:
            texts = [_text(row, field) for field in (_SUGAR if sugar else _ARO)]
            if sugar:
                pairs.append(_Pair(texts[0], texts[1], texts[2], path.stem, None))
            else:
                pairs.append(_Pair(texts[0], texts[1], texts[2], _aro_group(row, aro), _box(row)))
        except ValueError as error:
            raise ValueError(f"{path.name} row {number}: {error}") from error
    return "types" if sugar else aro, pairs


def _text(row: Any, field: str) -> str:
    value = row.get(field) if isinstance(row, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{field} is {value!r}, expected a text")
    return value.strip()


def _aro_group(row: Mapping[str, Any], groups: str) -> str:
    if groups == "relations":
        return _text(row, "relation_name")
    found = row.get("attributes")
    if not isinstance(found, list) or len(found) != 2 or not all(isinstance(one, str) for one in found):
        raise ValueError(f"attributes is {found!r}, expected two texts (or a relation_name)")
    return f"{found[0]}_{found[1]}"


def _box(row: Mapping[str, Any]) -> Box:
    values = [row.get(field) for field in _BOX]
    left, top, width, height = (float(v) if isinstance(v, int | float) else float("nan") for v in values)
    if not (left >= 0 and top >= 0 and width > 0 and height > 0):
        raise ValueError(f"{', '.join(_BOX)} are {values}, expected a box with a width and a height")
    return left, top, width, height
