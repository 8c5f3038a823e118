"""A repository of model files, in a folder or on a hub: what it lists, and how its files are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol, cast

from model_store.errors import RepositoryError, RepositoryNotFound

README = "README.md"
_LONGEST_README_BYTES = 1 << 20
_LONGEST_NAME = 200  # of a licence or a repository: people see them on a terminal


@dataclass(frozen=True, kw_only=True)
class RepositoryFile:
    """A file of a repository; `path` is relative, with slashes.

    The hub states a sha256 of large files (LFS); of others git's id: the sha1 of "blob SIZE", a zero and the bytes.
    """

    path: str
    size_bytes: int
    sha256: str | None = None
    git_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class RepositoryCard:
    """What the head of a README.md says: the licence's name, and the models that this one was made from."""

    licence: str | None = None
    base_models: tuple[str, ...] = ()


class DownloadProgress(Protocol):
    """Called as bytes arrive: done and total of all the files of one fetch that were not here yet."""

    def __call__(self, done_bytes: int, total_bytes: int, /) -> None: ...


class Repository(Protocol):
    """Files under one name. Every method raises RepositoryError where the repository cannot be read."""

    @property
    def name(self) -> str: ...

    @property
    def revision(self) -> str | None:
        """40 hex digits of the hub's commit; None for a folder."""
        ...

    @property
    def licence(self) -> str | None:
        """As its README.md states it."""
        ...

    @property
    def base_models(self) -> tuple[str, ...]:
        """Names of the repositories that this one was made from, as its README.md states them."""
        ...

    def files(self) -> dict[str, RepositoryFile]:
        """Every file by its path."""
        ...

    def fetch(self, paths: Iterable[str], progress: DownloadProgress | None = None) -> Path:
        """The folder in which the files lie under their own paths, as plain files or links; stated digests compared.

        Raises:
            RepositoryNotFound: one of them is not listed.
            IntegrityError: a file differs from its digest. It is deleted, so that the next call downloads it again.
        """
        ...

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes of a file from `start`, without the rest of it.

        Raises:
            RepositoryNotFound: it is not listed.
        """
        ...


def listed(files: Mapping[str, RepositoryFile], paths: Iterable[str], name: str) -> list[RepositoryFile]:
    """The files of these paths, in their order.

    Raises:
        RepositoryNotFound: the repository `name` does not list one of them.
    """
    found: list[RepositoryFile] = []
    for path in paths:
        file = files.get(path)
        if file is None:
            raise RepositoryNotFound(f"{name} has no file {path}")
        found.append(file)
    return found


def check_path(path: str, name: str) -> str:
    """A path of a listing that is safe to join to a folder.

    Raises:
        RepositoryError: it is absolute, leaves its folder, or no other system would read it so.
    """
    parts = PurePosixPath(path).parts
    unsafe = not parts or path != "/".join(parts) or ".." in parts or "\\" in path or ":" in parts[0] or "\0" in path
    if unsafe or path.startswith("/"):
        raise RepositoryError(f"{name} lists a file {path!r}, which does not stay in its folder")
    return path


def read_card(folder: Path) -> RepositoryCard:
    """The card of a folder's README.md; empty where there is none, or none that can be read."""
    from huggingface_hub.repocard import metadata_load  # pyright: ignore[reportUnknownVariableType]

    readme = folder / README
    try:
        if readme.stat().st_size > _LONGEST_README_BYTES:
            return RepositoryCard()
        metadata = cast("Mapping[str, object] | None", metadata_load(readme))
    except Exception:  # of the file, its encoding, or yaml: what people write there must not stop anything
        return RepositoryCard()
    return card_of(metadata or {})


def card_of(metadata: Mapping[str, object]) -> RepositoryCard:
    """The card that the hub's metadata makes; `license: other` gives way to `license_name`."""
    licences = _strings(metadata.get("license"))
    if licences in ([], ["other"]):
        licences = _strings(metadata.get("license_name")) or licences
    return RepositoryCard(licence=", ".join(licences) or None, base_models=tuple(_strings(metadata.get("base_model"))))


def _strings(value: object) -> list[str]:
    values = cast("list[object]", value) if isinstance(value, list) else [value]
    return [text for text in (plain_text(each) for each in values if isinstance(each, str)) if text]


def plain_text(text: str) -> str:
    """A name as somebody else wrote it, cut to a length and without what a terminal would act on."""
    return "".join(c for c in text if c.isprintable())[:_LONGEST_NAME]
