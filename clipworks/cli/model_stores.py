"""The folder of artifacts that a command works on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipworks.cli.failures import UsageError

if TYPE_CHECKING:
    from model_store.store import Store

StoreFolder = Annotated[Path | None, typer.Option(envvar="CLIPWORKS_STORE", help="Folder of model artifacts.")]


def open_store(folder: Path | None) -> Store:
    from model_store.store import Store

    return Store(folder)


def writable_store(folder: Path | None) -> Store:
    """Raises UsageError when no folder was given."""
    if folder is None:
        raise UsageError("where to? give --store FOLDER or set CLIPWORKS_STORE")
    return open_store(folder)
