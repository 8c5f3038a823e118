"""Scenes with their captions as plain JSON, so that a written data set still knows what its captions mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.scenes.meaning import And, Count, Enumeration, Ground, Meaning, Not, Place, Relation, What
from evaluation.scenes.phrases import Caption
from evaluation.scenes.scene import Scene, SceneError, scene_from_json, scene_to_json

_WHAT_KEYS = ("shape", "colour", "texture", "size")


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneRecord:
    """One scene of a data set. `key` names its files: digits, letters, `-` and `_`, with at least one digit."""

    key: str
    scene: Scene
    captions: tuple[Caption, ...]

    def __post_init__(self) -> None:
        plain = self.key.replace("-", "").replace("_", "")
        if not (plain.isascii() and plain.isalnum() and any(c.isdigit() for c in plain)):
            raise SceneError(f"a key has letters, digits, - and _ and at least one digit, got {self.key!r}")
        if not self.captions:
            raise SceneError(f"record {self.key} has no caption")


@dataclass(frozen=True, slots=True)
class StoredScene:
    """What was read back: the record, the picture uint8 [H, W, 3] and its owners int8 [H, W] (-1: background)."""

    record: SceneRecord
    image: NDArray[np.uint8]
    owner: NDArray[np.int8]


def record_to_json(record: SceneRecord) -> dict[str, Any]:
    captions = [{"text": c.text, "frame": c.frame, "meaning": meaning_to_json(c.meaning)} for c in record.captions]
    return {"key": record.key, "scene": scene_to_json(record.scene), "captions": captions}


def record_from_json(data: Mapping[str, Any]) -> SceneRecord:
    """The inverse of `record_to_json`.

    Raises:
        SceneError: a missing key or an impossible value.
    """
    try:
        captions = tuple(Caption(c["text"], meaning_from_json(c["meaning"]), c["frame"]) for c in data["captions"])
        return SceneRecord(key=data["key"], scene=scene_from_json(data["scene"]), captions=captions)
    except (KeyError, TypeError) as error:
        raise SceneError(f"not a record of a scene: {type(error).__name__} {error}") from error


def meaning_to_json(meaning: Meaning) -> dict[str, Any]:
    match meaning:
        case Enumeration(whats):
            return {"says": "listing", "whats": [_what_to_json(what) for what in whats]}
        case Count(what, number):
            return {"says": "count", "what": _what_to_json(what), "number": number}
        case Place(what, where):
            return {"says": "place", "what": _what_to_json(what), "where": where}
        case Relation(subject, name, target):
            return {
                "says": "relation",
                "subject": _what_to_json(subject),
                "name": name,
                "target": _what_to_json(target),
            }
        case Ground(tone):
            return {"says": "ground", "tone": tone}
        case Not(part):
            return {"says": "not", "part": meaning_to_json(part)}
        case And(parts):
            return {"says": "and", "parts": [meaning_to_json(part) for part in parts]}


def meaning_from_json(data: Mapping[str, Any]) -> Meaning:
    """The inverse of `meaning_to_json`.

    Raises:
        SceneError: an unknown kind of meaning. KeyError: a missing key.
    """
    match data["says"]:
        case "listing":
            return Enumeration(tuple(_what_from_json(what) for what in data["whats"]))
        case "count":
            return Count(_what_from_json(data["what"]), data["number"])
        case "place":
            return Place(_what_from_json(data["what"]), data["where"])
        case "relation":
            return Relation(_what_from_json(data["subject"]), data["name"], _what_from_json(data["target"]))
        case "ground":
            return Ground(data["tone"])
        case "not":
            return Not(meaning_from_json(data["part"]))
        case "and":
            return And(tuple(meaning_from_json(part) for part in data["parts"]))
        case other:
            raise SceneError(f"a caption cannot say {other!r}")


def _what_to_json(what: What) -> dict[str, Any]:
    out: dict[str, Any] = {key: getattr(what, key) for key in _WHAT_KEYS if getattr(what, key) is not None}
    if what.but_not is not None:
        out["but_not"] = _what_to_json(what.but_not)
    return out


def _what_from_json(data: Mapping[str, Any]) -> What:
    unknown = set(data) - {*_WHAT_KEYS, "but_not"}
    if unknown:
        raise SceneError(f"a description has unknown keys {sorted(unknown)}")
    but_not = _what_from_json(data["but_not"]) if "but_not" in data else None
    return What(
        shape=data.get("shape"),
        colour=data.get("colour"),
        texture=data.get("texture"),
        size=data.get("size"),
        but_not=but_not,
    )
