"""The recipes that come with the package: found by name, wherever clipworks is installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).parent / "configs"


def shipped_recipes() -> Mapping[str, str]:
    """Name (`captions`, `lab/b0`) -> the first sentence of its comment."""
    return {
        path.relative_to(FOLDER).with_suffix("").as_posix(): _about(path) for path in sorted(FOLDER.rglob("*.toml"))
    }


def find_recipe(named: str) -> Path:
    """The file of this path, else the shipped recipe of this name.

    Raises:
        ValueError: neither is there; the message lists the shipped ones.
    """
    path = Path(named)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if named.removesuffix(".toml") in shipped:
        return FOLDER / f"{named.removesuffix('.toml')}.toml"
    raise ValueError(f"{named}: no such file, and no recipe of this name; shipped are {', '.join(shipped)}")


def _about(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
