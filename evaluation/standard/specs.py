"""Tasks by their specification, `KIND:PATH[,option=value...]`, as a command line has them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from evaluation.dense.coco_instances import read_coco_instances
from evaluation.dense.task import Localisation
from evaluation.dense.voc_folder import read_voc_folder
from evaluation.standard.asking import Task
from evaluation.standard.captioned import read_captioned
from evaluation.standard.classify import WORDINGS, Wording, ZeroShotTask
from evaluation.standard.few_shots import FewShots
from evaluation.standard.image_folder import read_image_folder
from evaluation.standard.linear import LinearProbe
from evaluation.standard.pairs import read_pairs
from evaluation.standard.photographs import photographs_in
from evaluation.standard.recall import Recall
from evaluation.standard.shifted import ShiftedTask
from evaluation.standard.word_order import word_order

_OPTION = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Spec:
    """A specification, taken apart: options are those that were given."""

    text: str
    kind: str
    path: str
    options: Mapping[str, str]

    def seed(self) -> int:
        text = self.options.get("seed", "0")
        if not re.fullmatch(r"[0-9]{1,9}", text):
            raise ValueError(f"{self.text!r}: seed is {text!r}, expected a whole number from 0 on")
        return int(text)

    def images(self) -> Path | None:
        found = self.options.get("images")
        return None if found is None else Path(found)

    def classes(self) -> Path | None:
        found = self.options.get("classes")
        return None if found is None else Path(found)

    def wordings(self, *, default: str) -> tuple[Wording, ...]:
        text = self.options.get("templates", default)
        chosen: tuple[Wording, ...] = tuple(name for name in WORDINGS if text in (name, "all"))
        if not chosen:
            raise ValueError(f"{self.text!r}: templates is {text!r}, expected {', '.join(WORDINGS)} or all")
        return chosen


@dataclass(frozen=True)
class _Kind:
    options: tuple[str, ...]
    says: str
    build: Callable[[Spec], Task]


def _few_shots(spec: Spec) -> Task:
    wording, *others = spec.wordings(default="1")
    if others:
        raise ValueError(f"{spec.text!r}: templates is 'all', few-shot takes one of {', '.join(WORDINGS)}")
    return FewShots(spec.text, read_image_folder(Path(spec.path)), wording, seed=spec.seed())


def _shifted(spec: Spec) -> Task:
    wording, *others = spec.wordings(default="own")
    if others:
        raise ValueError(f"{spec.text!r}: templates is 'all', shifted takes one of {', '.join(WORDINGS)}")
    folder = spec.options.get("backgrounds")
    return ShiftedTask(
        spec.text,
        read_image_folder(Path(spec.path)),
        () if folder is None else photographs_in(Path(folder)),
        wording,
        seed=spec.seed(),
    )


def _order(spec: Spec) -> Task:
    return word_order(spec.text, read_captioned(spec.path, images=spec.images()), seed=spec.seed())


_KINDS: Mapping[str, _Kind] = {
    "folder": _Kind(
        ("templates",),
        "zero-shot classification, a class is a sub-folder; templates=bare|1|7|80|own|all (all)",
        lambda spec: ZeroShotTask(spec.text, read_image_folder(Path(spec.path)), spec.wordings(default="all")),
    ),
    "captions": _Kind(
        ("images",),
        "retrieval in both directions over .csv, .parquet, COCO .json, .tar shards, or a folder of image + .txt",
        lambda spec: Recall(spec.text, read_captioned(spec.path, images=spec.images())),
    ),
    "pairs": _Kind(
        ("images",),
        "true or false caption: a SugarCrepe or ARO .json, or a folder of them",
        lambda spec: read_pairs(spec.text, Path(spec.path), images=spec.images()),
    ),
    "order": _Kind(("images", "seed"), "the caption or a shuffle of its words (ARO), from the same files", _order),
    "few-shot": _Kind(
        ("templates", "seed"), "base and new classes of such a folder, with 1 to 16 shots; templates=1", _few_shots
    ),
    "shifted": _Kind(
        ("backgrounds", "templates", "seed"),
        "the same of pictures of one thing on a plain background, smaller, moved, on other backgrounds; "
        "backgrounds=FOLDER of photographs; templates=own",
        _shifted,
    ),
    "linear": _Kind(
        ("seed",),
        "logistic regression on frozen vectors of such a folder",
        lambda spec: LinearProbe(spec.text, read_image_folder(Path(spec.path)), seed=spec.seed()),
    ),
    "coco-instances": _Kind(
        ("images",),
        "what is where, over a COCO instances .json",
        lambda spec: Localisation(
            spec.text, read_coco_instances(Path(spec.path), images=spec.images()), kind=spec.kind
        ),
    ),
    "voc-seg": _Kind(
        ("split", "classes"),
        "what is where, over a folder with JPEGImages, SegmentationClass and ImageSets",
        lambda spec: Localisation(
            spec.text,
            read_voc_folder(Path(spec.path), part=spec.options.get("split"), classes=spec.classes()),
            kind=spec.kind,
        ),
    ),
}
SPECS_HELP = "KIND:PATH[,option=value...], where KIND is one of: " + "; ".join(
    f"{name} ({kind.says}; options {', '.join(kind.options)})" for name, kind in _KINDS.items()
)


def parse(text: str) -> Spec:
    """Take a specification apart; nothing is read. Trailing `,option=value` parts are options, all before is the path.

    Raises:
        ValueError: no such kind, no path, an option that the kind does not have, that comes twice or has no such value.
    """
    kind, colon, rest = text.partition(":")
    if not colon or kind not in _KINDS:
        raise ValueError(f"{text!r}: expected KIND:PATH[,option=value...] with KIND one of {', '.join(_KINDS)}")
    known = {name for one in _KINDS.values() for name in one.options}
    options: dict[str, str] = {}
    while True:
        before, comma, last = rest.rpartition(",")
        name, equals, value = last.partition("=")
        if not comma or not equals or not _OPTION.fullmatch(name):
            break
        allowed = _KINDS[kind].options
        if name not in known or name not in allowed:
            raise ValueError(f"{text!r}: {kind} has no option {name!r}, it has {', '.join(allowed)}")
        if name in options or not value:
            raise ValueError(f"{text!r}: option {name!r} " + ("comes twice" if name in options else "has no value"))
        options[name], rest = value, before
    if not rest or "\0" in text:
        raise ValueError(f"{text!r}: expected a path after {kind}:")
    found = Spec(text, kind, rest, options)
    found.seed()
    found.wordings(default="all")
    return found


def task(text: str) -> Task:
    """The task of a specification; its lists of files and its texts are read, no picture is decoded.

    Raises:
        ValueError: as `parse`; or data that are not there or are of another form, with what was expected.
        ModuleNotFoundError: a .parquet table without pyarrow.
    """
    spec = parse(text)
    try:
        return _KINDS[spec.kind].build(spec)
    except OSError as error:
        raise ValueError(f"{text!r}: cannot be read ({error})") from error
