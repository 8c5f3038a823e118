"""A picture on disk: a file, a member of a tar file, or a part of either; read when it is encoded, not before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.encoder import Shown
from model_store.errors import InputError
from model_store.modality.formats import ALL_FORMATS, suffixes_of
from model_store.modality.image import OWN_FILES, decode

SUFFIXES = suffixes_of(ALL_FORMATS)
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Photograph:
    """`length` bytes of `path` from `start`. name: what messages call it.

    box: left, top, width, height in pixels of the upright picture; the part of it that is shown.
    """

    name: str
    path: Path
    length: int
    start: int = 0
    box: Box | None = None

    @property
    def identity(self) -> str:
        return f"{self.name} {self.length} {self.box}"

    def shown(self) -> Shown:
        """Encoded bytes, or uint8 [H, W, 3] of the box.

        Raises:
            ValueError: the file is gone, is shorter than it was, does not decode, or has nothing inside the box.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                data = file.read(self.length)
        except OSError as error:
            raise ValueError(f"{self.name}: cannot be read ({error})") from error
        if len(data) != self.length:
            raise ValueError(f"{self.name}: {len(data)} bytes, there were {self.length}")
        if self.box is None:
            return data
        try:
            image = decode(data, OWN_FILES)
        except InputError as error:
            raise ValueError(f"{self.name}: {error}") from error
        left, top, width, height = self.box
        right, bottom = min(image.width, round(left + width)), min(image.height, round(top + height))
        left, top = max(0, round(left)), max(0, round(top))
        if right <= left or bottom <= top:
            raise ValueError(f"{self.name}: box {self.box} has no part of its {image.width} x {image.height} pixels")
        return np.asarray(image.crop((left, top, right, bottom)))


def photograph(path: Path, name: str, *, box: Box | None = None) -> Photograph:
    """Raises:
    ValueError: no such file.
    """
    try:
        return Photograph(name, path, path.stat().st_size, box=box)
    except OSError as error:
        raise ValueError(f"{name}: no such picture at {path}") from error


def named_file(folder: Path, name: str) -> Path | None:
    """`folder/name`, else `folder/images/name`, else None; sets come in both forms.

    Raises:
        ValueError: a name that leaves the folder.
    """
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"image path {name!r} leaves the folder {folder}")
    return next((path for path in (folder / name, folder / "images" / name) if path.is_file()), None)


def pictures_in(folder: Path) -> tuple[list[Path], int]:
    """Picture files of a folder by their extension, sorted by name, and how many other (not hidden) entries it has."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    found = [entry for entry in entries if entry.is_file() and entry.suffix.lower() in SUFFIXES]
    return found, len(entries) - len(found)


def photographs_in(folder: Path) -> tuple[Photograph, ...]:
    """The pictures of a folder, sorted by name.

    Raises:
        ValueError: no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    paths, _ = pictures_in(folder)
    if not paths:
        raise ValueError(f"{folder}: no picture (.jpg, .jpeg, .png, .webp) in it")
    return tuple(photograph(path, path.name) for path in paths)


def name_the_broken(photographs: Sequence[Photograph]) -> None:
    """Raises:
    ValueError: one of them does not decode; encoders do not say which.
    """
    for one in photographs:
        shown = one.shown()
        if isinstance(shown, bytes):
            try:
                decode(shown, OWN_FILES)
            except InputError as error:
                raise ValueError(f"{one.name}: {error}") from error


def clusters_of(photographs: Iterable[Photograph]) -> list[int]:
    """One number per file: parts and captions of one photograph are resampled together."""
    seen: dict[tuple[Path, int], int] = {}
    return [seen.setdefault((one.path, one.start), len(seen)) for one in photographs]
