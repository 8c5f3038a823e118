"""Rows of captioned pictures from a csv file, from folders of classes, or without captions, divided into splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.config import FolderData, PicturesData, SplitBy, SplitConfig, TableData
from training.data.classes import CLASS, read_classes
from training.data.pictures import read_pictures
from training.data.reader import read_table
from training.data.rows import Row, Split, group_of, group_of_name

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_DECIDES: dict[SplitBy, str] = {
    "number": "the last number of a file's name",
    "name": "a hash of the file's name",
    "family": "a hash of the product's family",
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of captioned images below `folder`, each in its split already; `splitting` says what decided."""

    folder: Path
    rows: dict[Split, list[Row]]
    label_columns: tuple[str, ...]
    has_negatives: bool
    splitting: str
    captioned: bool = True

    @classmethod
    def of_file(cls, data: TableData) -> Table:
        rows = read_table(
            data.folder / data.table,
            image_column=data.image_column,
            caption_column=data.caption_column,
            label_columns=data.label_columns,
            negative_column=data.negative_column,
            group=_group(data.split),
        )
        return cls(
            folder=data.folder,
            rows=_divided(rows, data.split),
            label_columns=data.label_columns,
            has_negatives=data.negative_column is not None,
            splitting=_decided(data.split),
        )

    @classmethod
    def of_folder(cls, data: FolderData) -> Table:
        return cls(
            folder=data.folder,
            rows=read_classes(data.folder),
            label_columns=(CLASS,),
            has_negatives=False,
            splitting="a fifth of each class validates, a fifth is held out; three pictures a class are the least",
        )

    @classmethod
    def of_pictures(cls, data: PicturesData) -> Table:
        rows = read_pictures(data.folder, group=_group(data.split))
        return cls(
            folder=data.folder,
            rows=_divided(rows, data.split),
            label_columns=(),
            has_negatives=False,
            splitting=_decided(data.split),
            captioned=False,
        )


def _group(split: SplitConfig) -> Callable[[str], int]:
    """What decides the split of a picture, by its name."""
    return group_of_name if split.by == "name" else group_of


def _divided(rows: Sequence[Row], split: SplitConfig) -> dict[Split, list[Row]]:
    splits = split.of(rows)
    return {name: [row for row, its in zip(rows, splits, strict=True) if its == name] for name in SPLITS}


def _decided(split: SplitConfig) -> str:
    return f"{_DECIDES[split.by]} modulo {split.modulo} decides (data.split)"
