"""A repository of the Hugging Face Hub, or of a server that speaks its protocol, through the hub client's cache."""

from __future__ import annotations

import glob
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

from huggingface_hub import (
    constants,
    get_session,
    hf_hub_url,
    snapshot_download,  # pyright: ignore[reportUnknownVariableType]
)
from huggingface_hub.errors import IncompleteSnapshotError
from huggingface_hub.utils import (
    build_hf_headers,  # pyright: ignore[reportUnknownVariableType]
    hf_raise_for_status,
    tqdm,
)

from model_store.errors import IntegrityError, RepositoryError
from model_store.hub.downloading import check, download
from model_store.hub.folder import FolderRepository
from model_store.hub.refusals import check_proxy, explained, not_cached
from model_store.hub.repository import (
    README,
    DownloadProgress,
    RepositoryCard,
    RepositoryFile,
    check_path,
    listed,
    read_card,
)

_TREE_FORMAT = 1
_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
# Small, and one of them is in every repository: they come with the listing.
_WITH_THE_LISTING = [README, ".gitattributes", "config.json", "open_clip_config.json"]


class HubRepository:
    """A model repository of the hub at one commit. Files go to the hub client's own cache (HF_HOME), and stay there.

    The commit is found, and its listing read, when it is first asked for. A revision of 40 hex digits whose listing
    and files are in the cache takes no request; nor does any revision under HF_HUB_OFFLINE. The hub's client reads
    HF_TOKEN, and sends it to HF_ENDPOINT only.
    """

    def __init__(self, repo_id: str, revision: str | None = None) -> None:
        self._repo_id = repo_id
        self._asked = revision or constants.DEFAULT_REVISION

    @property
    def name(self) -> str:
        return self._repo_id

    @property
    def revision(self) -> str | None:
        """Raises RepositoryError."""
        return self._snapshot.commit

    @property
    def licence(self) -> str | None:
        """Raises RepositoryError."""
        return self._card.licence

    @property
    def base_models(self) -> tuple[str, ...]:
        """Raises RepositoryError."""
        return self._card.base_models

    def files(self) -> dict[str, RepositoryFile]:
        """Raises RepositoryError, RepositoryNotFound, RepositoryGated."""
        return dict(self._snapshot.files)

    def fetch(self, paths: Iterable[str], progress: DownloadProgress | None = None) -> Path:
        """The cache's folder of the commit.

        Raises:
            RepositoryNotFound, RepositoryGated, RepositoryError
            IntegrityError: a file differs from what the hub states; it is out of the cache.
        """
        wanted = listed(self._snapshot.files, dict.fromkeys(paths), self.name)
        folder = self._snapshot.folder
        missing = [file for file in wanted if not (folder / file.path).is_file()]
        if missing:
            if constants.is_offline_mode():
                raise not_cached(self.name, self._asked, " and ".join(file.path for file in missing))
            self._download(missing, progress or _unseen)
        for file in wanted:
            _check_cached(folder / file.path, file)
        return folder

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """From the cache, or with one request.

        Raises:
            RepositoryNotFound, RepositoryGated
            RepositoryError: the file ends before, or the server does not answer ranges.
        """
        (file,) = listed(self._snapshot.files, [path], self.name)
        if start + length > file.size_bytes:
            raise RepositoryError(f"{self.name}/{path} has {file.size_bytes} bytes, not {start + length}")
        cached = self._snapshot.folder / path
        if cached.is_file():
            with cached.open("rb") as stream:
                stream.seek(start)
                return stream.read(length)
        headers = {**self._headers(), "Accept-Encoding": "identity", "Range": f"bytes={start}-{start + length - 1}"}
        with (
            explained(self.name, self._asked, path),
            get_session().stream(
                "GET", self._url(path), headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            ) as response,
        ):
            hf_raise_for_status(response)
            if response.status_code != HTTPStatus.PARTIAL_CONTENT:
                raise RepositoryError(f"{constants.ENDPOINT} does not answer requests for a part of {path}")
            data = response.read()
        if len(data) != length:
            raise RepositoryError(f"{self.name}/{path}: asked for {length} bytes from {start}, got {len(data)}")
        return data

    @cached_property
    def _card(self) -> RepositoryCard:
        return read_card(self._snapshot.folder)

    @cached_property
    def _snapshot(self) -> _Snapshot:
        check_proxy()
        with explained(self.name, self._asked):
            try:
                folder = snapshot_download(
                    self._repo_id,
                    revision=self._asked,
                    allow_patterns=_WITH_THE_LISTING,
                    local_files_only=constants.is_offline_mode(),
                    tqdm_class=_NoBar,
                )
            except IncompleteSnapshotError as error:
                folder = error.snapshot_path
            return _snapshot_at(Path(folder), self.name)

    def _download(self, missing: list[RepositoryFile], progress: DownloadProgress) -> None:
        folder, storage = self._snapshot.folder, self._snapshot.storage
        total = sum(file.size_bytes for file in missing)
        storage.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(storage).free
        if free < total:
            raise RepositoryError(
                f"{self.name}: {total} bytes to download, {free} are free at {storage}; another folder: HF_HOME"
            )
        done = 0
        for file in missing:
            if file.sha256 is None:
                continue
            before = done

            def arrived(here: int, before: int = before) -> None:
                progress(before + here, total)

            with explained(self.name, self._asked, file.path):
                lock = storage.parent / ".locks" / storage.name / f"{file.sha256}.lock"
                download(self._url(file.path), self._headers(), file, storage / "blobs" / file.sha256, lock, arrived)
            done += file.size_bytes
        # The small ones; and the links of the large ones, which the client finds in its cache.
        with explained(self.name, self._asked, missing[0].path):
            snapshot_download(
                self._repo_id,
                revision=folder.name,
                allow_patterns=[glob.escape(file.path) for file in missing],
                tqdm_class=_NoBar,
            )
        progress(total, total)

    def _url(self, path: str) -> str:
        return hf_hub_url(self._repo_id, path, revision=self._snapshot.commit)

    def _headers(self) -> dict[str, str]:
        return build_hf_headers(library_name="clipworks")


@dataclass(frozen=True, kw_only=True)
class _Snapshot:
    """A commit in the hub's cache: `storage` is the repository's folder there, `folder` that of the commit."""

    storage: Path
    folder: Path
    files: dict[str, RepositoryFile]

    @property
    def commit(self) -> str:
        return self.folder.name


class _NoBar(tqdm):
    """The client's progress bar, which is not shown."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "disable": True})  # pyright: ignore[reportUnknownMemberType]


def _snapshot_at(folder: Path, name: str) -> _Snapshot:
    storage = folder.parents[1]
    stated = _tree(storage / "trees" / f"{folder.name}.json")
    if stated is None:  # a cache that an older client filled, or a person: what is there is all that is known
        return _Snapshot(storage=storage, folder=folder, files=_files_in(folder))
    files = {path: _file(check_path(path, name), entry, name) for path, entry in stated.items()}
    return _Snapshot(storage=storage, folder=folder, files=files)


def _tree(path: Path) -> dict[str, dict[str, Any]] | None:
    """The listing that the client keeps of a commit, {path: {size, lfs_sha256, lfs_size, ...}}; None without one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = content["format_version"] == _TREE_FORMAT
        return cast("dict[str, dict[str, Any]]", content["files"]) if known else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _file(path: str, entry: dict[str, Any], name: str) -> RepositoryFile:
    size, sha256, git_id = entry.get("lfs_size") or entry.get("size"), entry.get("lfs_sha256"), entry.get("blob_id")
    if not isinstance(size, int) or not (sha256 is None or _is_hex(_SHA256, sha256)):
        raise RepositoryError(f"{name} lists {path} with a size or a digest that is none")
    if sha256 is not None:
        return RepositoryFile(path=path, size_bytes=size, sha256=sha256)
    return RepositoryFile(path=path, size_bytes=size, git_id=git_id if _is_hex(_SHA1, git_id) else None)


def _files_in(folder: Path) -> dict[str, RepositoryFile]:
    """The files of a commit without a listing; the cache calls a blob by what the hub states of it."""
    if not folder.is_dir():
        return {}
    found = FolderRepository(folder).files()
    for path, file in found.items():
        blob = (folder / path).resolve()
        if blob.parent.name == "blobs":
            sha256 = blob.name if _is_hex(_SHA256, blob.name) else None
            git_id = blob.name if _is_hex(_SHA1, blob.name) else None
            found[path] = replace(file, sha256=sha256, git_id=git_id)
    return found


def _is_hex(form: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and form.fullmatch(value) is not None


def _check_cached(path: Path, file: RepositoryFile) -> None:
    try:
        check(path, file)
    except IntegrityError:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise


def _unseen(done_bytes: int, total_bytes: int) -> None: ...
