"""Locations of pretrained weights: a path, or `package:NAME/FILE` inside an installed Python package."""

from __future__ import annotations

import importlib.util
from pathlib import Path, PurePosixPath

PACKAGE = "package:"


def located(where: str) -> Path:
    """The file or folder that `where` names; a package is found without being imported.

    Raises:
        ValueError: it is not there, or the package is not installed.
    """
    if not where.startswith(PACKAGE):
        path = Path(where)
        if not path.exists():
            raise ValueError(f"{where}: no such file or folder")
        return path
    name, _, inner = where.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{where}: no package {name!r} is installed here")
    parts = PurePosixPath(inner).parts
    for folder in spec.submodule_search_locations:
        path = Path(folder).joinpath(*parts)
        if ".." not in parts and not PurePosixPath(inner).is_absolute() and path.exists():
            return path
    raise ValueError(f"{where}: package {name!r} has no such file or folder")
