"""Readers of captioned images: a csv or parquet table beside a folder of image files, decoded once into memory."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_store.errors import InputError
from model_store.manifest import ImageSpec
from model_store.modality.image import decode, prepare
from training.data.rows import Row, group_of


def read_table(
    path: Path, *, image_column: str = "image", caption_column: str = "caption", label_columns: Sequence[str] = ()
) -> list[Row]:
    """Rows of a .csv or .parquet table; image paths stay relative to the table's folder.

    Raises:
        ValueError: another extension, a missing column, an empty caption, an image path that leaves the folder.
    """
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            records: list[Mapping[str, object]] = list(csv.DictReader(file))
    elif path.suffix == ".parquet":
        import pyarrow.parquet  # an optional dependency (extra `parquet`)

        records = pyarrow.parquet.read_table(path).to_pylist()
    else:
        raise ValueError(f"{path.name}: expected a .csv or .parquet table")
    wanted = (image_column, caption_column, *label_columns)
    rows: list[Row] = []
    for number, record in enumerate(records, start=1):
        missing = [name for name in wanted if record.get(name) is None]
        if missing:
            raise ValueError(f"{path.name} row {number}: no value for {', '.join(missing)}")
        image, caption = str(record[image_column]), str(record[caption_column]).strip()
        if not caption:
            raise ValueError(f"{path.name} row {number}: empty caption")
        if Path(image).is_absolute() or ".." in Path(image).parts:
            raise ValueError(f"{path.name} row {number}: image path {image!r} leaves the folder")
        labels = {name: str(record[name]) for name in label_columns}
        rows.append(Row(image=image, caption=caption, group=group_of(image), labels=labels))
    return rows


def load_pixels(folder: Path, rows: Sequence[Row], spec: ImageSpec) -> NDArray[np.uint8]:
    """Decode and prepare every row's image: uint8 [N, height_px, width_px, 3].

    Raises:
        ValueError: an image cannot be decoded; the message names the file.
    """
    pixels = np.empty((len(rows), spec.height_px, spec.width_px, 3), dtype=np.uint8)
    for index, row in enumerate(rows):
        try:
            pixels[index] = prepare(decode((folder / row.image).read_bytes()), spec)
        except InputError as error:
            raise ValueError(f"{row.image}: {error}") from error
    return pixels


def data_digest(rows: Iterable[Row], pixels: NDArray[np.uint8]) -> str:
    """sha256 over the captions, names and prepared pixels that a run really saw."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.image}\t{row.caption}\n".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()
