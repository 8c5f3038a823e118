"""Captioned pictures in the forms they come in: a table, COCO's json, a folder with texts beside, webdataset shards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from evaluation.standard.coco import coco_captions
from evaluation.standard.photographs import Photograph, named_file, photograph, pictures_in
from evaluation.standard.shards import shard_paths, shard_samples
from evaluation.standard.tables import table_captions

FORMS = "a .csv or .parquet table (image, caption), a COCO captions .json, .tar shards, or a folder of image + .txt"


@dataclass(frozen=True)
class Captioned:
    """One (photograph, caption) for each caption; a photograph may have several."""

    pairs: tuple[tuple[Photograph, str], ...]
    notes: tuple[str, ...] = ()


def read_captioned(path: str, *, images: Path | None = None) -> Captioned:
    """`path` may be a range of shards (`x-{000..009}.tar`). Pictures of a table or json are in `images`, else beside.

    Raises:
        ValueError: none of FORMS, a broken file, a missing picture or caption, no captions at all.
    """
    where = Path(path)
    if where.suffix == ".tar":
        found = _shards(path)
    elif where.is_dir():
        found = _folder(where)
    elif not where.is_file():
        raise ValueError(f"{path}: no such file or folder; expected {FORMS}")
    elif where.suffix == ".json":
        rows = ((name, caption) for _, name, captions in coco_captions(where) for caption in captions)
        return _listed(rows, where, images)
    elif where.suffix in (".csv", ".parquet"):
        return _listed(((name, caption) for name, caption, _ in table_captions(where)), where, images)
    else:
        raise ValueError(f"{path}: expected {FORMS}")
    if images is not None:
        raise ValueError(f"{path}: its pictures lie in it, images={images} has no meaning")
    return _some(found, path)


def _some(found: Captioned, where: object) -> Captioned:
    if not found.pairs:
        raise ValueError(f"{where}: no captioned picture in it")
    return found


def _listed(rows: Iterable[tuple[str, str]], table: Path, images: Path | None) -> Captioned:
    folder = images or table.parent
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of pictures")
    known: dict[str, Photograph | None] = {}
    pairs: list[tuple[Photograph, str]] = []
    for name, caption in rows:
        if name not in known:
            path = named_file(folder, name)
            known[name] = None if path is None else photograph(path, name)
        found = known[name]
        if found is not None:
            pairs.append((found, caption))
    missing = [name for name, found in known.items() if found is None]
    if missing:
        raise ValueError(
            f"{table.name}: {len(missing)} of {len(known)} pictures are not in {folder} or {folder / 'images'},"
            f" such as {missing[0]!r}; say where they are with images=FOLDER"
        )
    return _some(Captioned(tuple(pairs)), table)


def _folder(folder: Path) -> Captioned:
    paths, _ = pictures_in(folder)
    pairs: list[tuple[Photograph, str]] = []
    bare: list[str] = []
    for path in paths:
        text = path.with_suffix(".txt")
        lines = _lines(text) if text.is_file() else []
        if not lines:
            bare.append(path.name)
        pairs += [(photograph(path, path.name), line) for line in lines]
    notes = (f"{len(bare)} pictures have no caption beside them, such as {bare[0]}: left out",) if bare else ()
    return Captioned(tuple(pairs), notes)


def _lines(path: Path) -> list[str]:
    """The captions of a picture, one on each line."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from error


def _shards(pattern: str) -> Captioned:
    return Captioned(
        tuple(
            (Photograph(sample.name, shard, len(sample.data), sample.start), line.strip())
            for shard in shard_paths(pattern)
            for sample in shard_samples(shard)
            for line in sample.caption.splitlines()
            if line.strip()
        )
    )
