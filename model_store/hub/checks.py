"""Checks of a foreign model that need no reference: finite, not constant, and photographs that find their captions."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_store.errors import ExportRefused, InputError
from model_store.golden_images import golden_images
from model_store.manifest import ImageSpec
from model_store.modality.image import OWN_FILES, decode, prepare
from model_store.modality.text import Tokenizer
from model_store.precisions.calibration import FOLDER
from model_store.towers import normalized

Vectors = NDArray[np.float32]
# Of 24 photographs and their captions, how many must find each other; chance is 1 in 24.
CAPTION_RECALL_MIN = 0.5
_ALIKE_COSINE = 1 - 1e-6
_FEWEST_PAIRS = 2


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Photographs, encoded, each with its caption."""

    pictures: tuple[bytes, ...]
    captions: tuple[str, ...]


def shipped_pairs() -> Pairs:
    """The calibration photographs with one caption of COCO each (both CC BY; sources are beside them)."""
    with (FOLDER / "captions.tsv").open(encoding="utf-8", newline="") as stream:
        lines = (line for line in stream if not line.startswith("#"))
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    return Pairs(
        pictures=tuple((FOLDER / row["file"]).read_bytes() for row in rows),
        captions=tuple(row["caption"] for row in rows),
    )


def read_pairs(file: Path) -> Pairs:
    """A CSV with the columns image and caption; pictures are found beside it.

    Raises:
        ExportRefused: other columns, fewer than two pairs, a line without a caption, or a picture that cannot be read;
            the message names the line.
    """
    if not file.is_file():  # a pipe would be waited for
        raise ExportRefused(f"{file.name} is no plain file")
    pictures: list[bytes] = []
    captions: list[str] = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream)
            columns = rows.fieldnames or []
            if not {"image", "caption"} <= set(columns):
                raise ExportRefused(
                    f"{file.name}: expected the columns image,caption in its first line, got {','.join(columns)[:80]!r}"
                )
            for row in rows:
                where = f"{file.name}, line {rows.line_num}"
                if not (row["caption"] or "").strip():
                    raise ExportRefused(f"{where}: no caption")
                captions.append(row["caption"])
                pictures.append(_picture(file.parent, row["image"], where))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ExportRefused(f"{file.name} cannot be read as a CSV file in UTF-8: {error}") from error
    if len(captions) < _FEWEST_PAIRS or len(set(captions)) != len(captions):
        raise ExportRefused(
            f"{file.name} has {len(captions)} captions, {len(set(captions))} of them different; all must be, and "
            f"{_FEWEST_PAIRS} at least"
        )
    return Pairs(pictures=tuple(pictures), captions=tuple(captions))


def _picture(folder: Path, name: str, where: str) -> bytes:
    path = folder / name
    if not path.is_file():
        raise ExportRefused(f"{where}: {str(path)!r} is no file")
    try:
        data = path.read_bytes()
        decode(data, OWN_FILES)
    except OSError as error:
        raise ExportRefused(f"{where}: {str(path)!r}: {error.strerror}") from error
    except InputError as error:
        raise ExportRefused(f"{where}: {str(path)!r}: {error}") from error
    return data


def check_vectors(name: str, vectors: Vectors) -> None:
    """Raises:
    ExportRefused: a value that is not finite, a vector without length, or the same vector for every input.
    """
    if not np.isfinite(vectors).all():
        bad = int((~np.isfinite(vectors).all(axis=1)).sum())
        raise ExportRefused(f"{name}: {bad} of {len(vectors)} vectors are not finite")
    lengths = np.linalg.norm(vectors, axis=1)
    if not (lengths > 0).all():
        raise ExportRefused(f"{name}: {int((lengths == 0).sum())} of {len(vectors)} vectors are zero")
    unit = vectors / lengths[:, None]
    if float((unit @ unit[0]).min()) > _ALIKE_COSINE:
        raise ExportRefused(f"{name} gives the same vector for {len(vectors)} different inputs")


def nasty_pictures(spec: ImageSpec) -> NDArray[np.uint8]:
    """The golden pictures that decode, uint8 [N, H, W, 3]: odd sizes, every mode, one of 3 x 5 pixels."""
    return np.stack([prepare(decode(case.data), spec) for case in golden_images() if case.raises is None])


def caption_recall(
    pairs: Pairs,
    spec: ImageSpec,
    tokenizer: Tokenizer,
    encode_images: Callable[[NDArray[np.uint8]], Vectors],
    encode_texts: Callable[[NDArray[np.int64]], Vectors],
) -> float:
    """Mean recall at 1, over pictures that find their caption and captions that find their picture.

    A wrong resize, colour order, normalisation, tokenizer or activation shows as a drop; chance is 1 / N.
    """
    pixels = np.stack([prepare(decode(data, OWN_FILES), spec) for data in pairs.pictures])
    images = normalized(encode_images(pixels))
    texts = normalized(encode_texts(tokenizer(list(pairs.captions))))
    scores = images @ texts.T
    truth = np.arange(len(scores))
    return float(((scores.argmax(axis=1) == truth).mean() + (scores.argmax(axis=0) == truth).mean()) / 2)


def check_captions(recall: float, pairs: Pairs) -> None:
    """Raises:
    ExportRefused: fewer than half of the photographs and captions find each other.
    """
    if recall < CAPTION_RECALL_MIN:
        raise ExportRefused(
            f"of {len(pairs.captions)} photographs and captions, {recall:.0%} find each other; "
            f"{CAPTION_RECALL_MIN:.0%} are needed, chance is {1 / len(pairs.captions):.0%}. Towers, preprocessing and "
            "tokenizer do not belong together, or the model knows nothing of everyday photographs: then give pairs of "
            "its own domain with --pairs"
        )
