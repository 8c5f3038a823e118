"""Readers of captioned images: a csv or parquet table beside a folder of image files, decoded once into memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.standard.tables import table_captions
from model_store.errors import InputError
from model_store.manifest import ImageSpec
from model_store.modality.image import OWN_FILES, decode, prepare
from training.data.rows import Row, group_of
from training.progress import Track, untracked

_SHOWN = 10


def read_table(
    path: Path,
    *,
    image_column: str = "image",
    caption_column: str = "caption",
    label_columns: Sequence[str] = (),
    negative_column: str | None = None,
    group: Callable[[str], int] = group_of,
) -> list[Row]:
    """Rows of a .csv or .parquet table; image paths stay relative to the table's folder.

    An empty `negative_column` means that the row has no false caption. group: image path -> the number that decides
    the split.

    Raises:
        ValueError: another extension, a missing column, an empty caption, an image path that leaves the folder, a
        false caption that is the caption itself.
    """
    rows: list[Row] = []
    found = table_captions(path, image_column=image_column, caption_column=caption_column)
    for number, (image, caption, record) in enumerate(found, start=1):
        missing = [name for name in label_columns if record.get(name) is None]
        if missing:
            raise ValueError(f"{path.name} row {number}: no value for {', '.join(missing)}")
        labels = {name: str(record[name]) for name in label_columns}
        if negative_column is not None and negative_column not in record:
            raise ValueError(f"{path.name}: no column {negative_column!r}")
        negative = str(record[negative_column] or "").strip() or None if negative_column is not None else None
        if negative is not None and negative.casefold() == caption.casefold():
            raise ValueError(f"{path.name} row {number}: the false caption is the caption itself")
        rows.append(Row(image=image, caption=caption, group=group(image), labels=labels, negative=negative))
    return rows


def load_pixels(folder: Path, rows: Sequence[Row], spec: ImageSpec, *, track: Track = untracked) -> NDArray[np.uint8]:
    """Decode and prepare every row's image: uint8 [N, height_px, width_px, 3].

    Raises:
        ValueError: images are missing or cannot be decoded; the message names all of them (the first ten).
    """
    pixels = np.empty((len(rows), spec.height_px, spec.width_px, 3), dtype=np.uint8)
    bad: list[str] = []
    seen: dict[str, int] = {}
    for index, row in enumerate(track(rows, "pictures")):
        if (before := seen.setdefault(row.image, index)) != index:
            pixels[index] = pixels[before]
            continue
        try:
            pixels[index] = prepare(decode((folder / row.image).read_bytes(), OWN_FILES), spec)
        except (InputError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            bad.append(f"{row.image}: {reason}")
    if bad:
        more = [f"and {len(bad) - _SHOWN} more"] if len(bad) > _SHOWN else []
        raise ValueError("\n".join([f"{len(bad)} of {len(rows)} images cannot be read", *bad[:_SHOWN], *more]))
    return pixels


def data_digest(rows: Iterable[Row], pixels: NDArray[np.uint8]) -> str:
    """sha256 over the captions, names and prepared pixels that a run really saw."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.image}\t{row.caption}\n".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()
