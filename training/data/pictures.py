"""A folder of pictures without captions as rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evaluation.standard.photographs import SUFFIXES
from training.data.rows import Row


def read_pictures(folder: Path, *, group: Callable[[str], int]) -> list[Row]:
    """Every picture below `folder`, hidden ones left out, in the order of their paths; captions are empty.

    group: of a picture, by its path below `folder`.

    Raises:
        ValueError: no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise ValueError(f"data.folder {folder} is no folder")
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    shown = [name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts)]
    if not shown:
        raise ValueError(f"data.folder {folder} holds no picture ({', '.join(sorted(SUFFIXES))})")
    return [Row(image=name, caption="", group=group(name)) for name in shown]
