"""A folder on disk as a repository: a clone, a downloaded snapshot, or what an exporter wrote."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from model_store.errors import RepositoryError
from model_store.hub.repository import DownloadProgress, RepositoryCard, RepositoryFile, check_path, listed, read_card

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class FolderRepository:
    """The files below `folder`, hidden ones left out. A link must stay inside, or in the hub cache that it is part of.

    Raises:
        RepositoryError: it is not a folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = Path(os.path.abspath(folder.expanduser()))
        if not self._folder.is_dir():
            raise RepositoryError(f"{folder} is not a folder")

    @property
    def name(self) -> str:
        return self._folder.name

    @property
    def revision(self) -> str | None:
        return None

    @property
    def licence(self) -> str | None:
        return self._card.licence

    @property
    def base_models(self) -> tuple[str, ...]:
        return self._card.base_models

    def files(self) -> dict[str, RepositoryFile]:
        """Raises RepositoryError: a link leaves the folder, or the folder cannot be read."""
        return dict(self._files)

    def fetch(self, paths: Iterable[str], progress: DownloadProgress | None = None) -> Path:
        """The folder itself; a folder states no digests.

        Raises:
            RepositoryNotFound
            RepositoryError: a file is only git's pointer to the real one.
        """
        for file in listed(self._files, paths, self.name):
            with (self._folder / file.path).open("rb") as stream:
                if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
                    raise RepositoryError(f"{self.name}/{file.path} is a pointer of git-lfs: run `git lfs pull` there")
        return self._folder

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """Raises RepositoryNotFound, or RepositoryError: the file ends before."""
        (file,) = listed(self._files, [path], self.name)
        with (self._folder / file.path).open("rb") as stream:
            stream.seek(start)
            data = stream.read(length)
        if len(data) != length:
            raise RepositoryError(f"{self.name}/{path} has {file.size_bytes} bytes, not {start + length}")
        return data

    @cached_property
    def _card(self) -> RepositoryCard:
        return read_card(self._folder)

    @cached_property
    def _files(self) -> dict[str, RepositoryFile]:
        root = self._folder.resolve()
        # A snapshot of the hub's cache holds links to ../../blobs.
        limit = root.parents[1] if root.parent.name == "snapshots" else root
        found: dict[str, RepositoryFile] = {}

        def unreadable(error: OSError) -> None:
            raise RepositoryError(f"{error.filename}: {error.strerror}") from error

        for parent, folders, names in os.walk(self._folder, onerror=unreadable):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(name for name in names if not name.startswith(".")):
                file = Path(parent) / name
                path = check_path(file.relative_to(self._folder).as_posix(), self.name)
                target = file.resolve()
                if not target.is_relative_to(limit):
                    raise RepositoryError(f"{self.name}/{path} is a link to {target}, outside of the folder")
                if target.is_file():
                    found[path] = RepositoryFile(path=path, size_bytes=target.stat().st_size)
        return found
