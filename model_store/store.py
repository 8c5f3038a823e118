"""Folders of artifacts: list, open by name, publish atomically, remove."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from model_store.artifact import Artifact, files_below
from model_store.derivation import check_parts
from model_store.errors import ArtifactExists, ArtifactInUse, ArtifactNotFound, IntegrityError, ManifestError
from model_store.files import one_at_a_time, replace_folder, staged_folder, sync
from model_store.identity import sha256_file
from model_store.manifest import NAME_PATTERN, FileEntry, Manifest
from model_store.seal import MANIFEST_FILE, SEAL_FILE, read_manifest, write_manifest

BUILTIN_FOLDER = Path(__file__).parent / "builtin"
DEFAULT_MODEL = "everyday-small"  # of several that are shipped; one alone is the default whatever its name
_STAGING = ".staging"
_NAME = re.compile(NAME_PATTERN)
_VERSION = re.compile("[1-9][0-9]{0,8}")


class Store:
    """Artifacts of one writable folder, and those shipped with the package.

    Layout: `<root>/<name>/<version>/manifest.json`. A name in `root` hides a builtin of the same name and version.
    """

    def __init__(self, root: Path | None, *, builtin: bool = True) -> None:
        self.root = root
        self._folders = [(root, True)] if root else []
        if builtin:
            self._folders.append((BUILTIN_FOLDER, False))

    def list(self) -> list[Artifact]:
        """Every artifact that can be opened, by name and version."""
        return [artifact for artifact, _ in self._scan() if artifact]

    def problems(self) -> list[str]:
        """One line for each folder that looks like an artifact and cannot be opened."""
        return [problem for _, problem in self._scan() if problem]

    def default_name(self) -> str | None:
        """The name of the model that answers where none is named: the shipped one, else the only one of the folder.

        None: there is none, or nothing says which.
        """
        builtin = not all(writable for _, writable in self._folders)
        shipped = {artifact.manifest.name for artifact in Store(None).list()} if builtin else set[str]()
        if DEFAULT_MODEL in shipped:
            return DEFAULT_MODEL
        names = shipped or {artifact.manifest.name for artifact in self.list()}
        return names.pop() if len(names) == 1 else None

    def open(self, reference: str) -> Artifact:
        """Open `name` (its highest version) or `name@version`.

        Raises:
            ArtifactNotFound: unknown name or version; the message lists what there is.
            ManifestError: the manifest cannot be read, or claims what a derivation may not.
            IntegrityError: the manifest or its folder is not what was published, or it derives from another base than
                the one of that name.
        """
        return self._open(reference, ())

    def _open(self, reference: str, above: tuple[str, ...]) -> Artifact:
        name, _, version = reference.partition("@")
        if not _NAME.fullmatch(name) or (version and not _VERSION.fullmatch(version)) or reference.endswith("@"):
            raise ArtifactNotFound(f"no model {reference[:80]!r}: expected name or name@version")
        versions = self._versions(name)
        wanted = int(version) if version else max(versions, default=0)
        if wanted not in versions:
            known = ", ".join(sorted(a.reference for a in self.list())) or "none"
            raise ArtifactNotFound(f"no model {reference!r}; the store has: {known}")
        folder, writable = versions[wanted]
        return self._load(folder, writable, above)

    def next_version(self, name: str) -> int:
        return max(self._versions(name), default=0) + 1

    @contextmanager
    def staging(self) -> Generator[Path]:
        """An empty folder on the store's own file system to build an artifact in; removed if not published.

        So are the folders of processes that were killed.

        Raises:
            OSError: the store cannot be written.
        """
        with staged_folder(self._writable_root() / _STAGING) as folder:
            yield folder

    @contextmanager
    def making(self, name: str, waiting: Callable[[], None]) -> Generator[bool]:
        """Keep other processes from making an artifact of this name; True where one did, and this one waited for it.

        waiting: called once where it has to wait.

        Raises:
            OSError: the store cannot be written.
        """
        with one_at_a_time(self._writable_root() / _STAGING, name, waiting) as waited:
            yield waited

    def publish(self, folder: Path, manifest: Manifest) -> Artifact:
        """Move a staged folder into the store; the manifest is written last, so that it means "complete".

        Raises:
            ArtifactExists: this name and version is taken.
            IntegrityError: the folder's files are not those of the manifest, or its base is another one.
            ManifestError: its parts do not fit together (see model_store.derivation).
        """
        target = self._writable_root() / manifest.name / str(manifest.version)
        if manifest.version in self._versions(manifest.name):
            raise ArtifactExists(f"{manifest.name}@{manifest.version} exists already")
        complete(Artifact(manifest, folder, self._load_base(manifest, ()), writable=True))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(folder, target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            raise ArtifactExists(f"{manifest.name}@{manifest.version} was published meanwhile: {target}") from error
        sync(target.parent)
        return self._load(target, writable=True)

    def remove(self, name: str, version: int) -> None:
        """Delete one version of the writable store: the manifest first, so that a crash leaves no half artifact.

        Raises:
            ArtifactNotFound: there is none, or it is shipped with the package.
            ArtifactInUse: another artifact derives from it.
        """
        artifact = self.open(f"{name}@{version}")
        if not artifact.writable:
            raise ArtifactNotFound(f"{artifact.reference} is shipped with the package and cannot be removed")
        if users := sorted(a.reference for a in self.list() if a.base and a.base.reference == artifact.reference):
            raise ArtifactInUse(f"{artifact.reference} is the base of {', '.join(users)}: remove those first")
        (artifact.folder / MANIFEST_FILE).unlink()
        shutil.rmtree(artifact.folder)
        parent = artifact.folder.parent
        if not any(parent.iterdir()):
            parent.rmdir()

    def _writable_root(self) -> Path:
        if self.root is None:
            raise ArtifactNotFound("this store has no writable folder: set CLIPWORKS_STORE")
        return self.root

    def _versions(self, name: str) -> dict[int, tuple[Path, bool]]:
        found: dict[int, tuple[Path, bool]] = {}
        for root, writable in reversed(self._folders):
            for folder in (root / name).glob("*"):
                if _VERSION.fullmatch(folder.name) and (folder / MANIFEST_FILE).is_file():
                    found[int(folder.name)] = (folder, writable)
        return found

    def _scan(self) -> Generator[tuple[Artifact | None, str | None]]:
        folders = [p for root, _ in self._folders if root.is_dir() for p in root.iterdir()]
        names = {p.name for p in folders if _NAME.fullmatch(p.name)}
        for name in sorted(names):
            for _, (folder, writable) in sorted(self._versions(name).items()):
                try:
                    yield self._load(folder, writable), None
                except (ManifestError, ArtifactNotFound, IntegrityError) as error:
                    yield None, str(error)

    def _load(self, folder: Path, writable: bool, above: tuple[str, ...] = ()) -> Artifact:
        """`above`: the derivations that led here."""
        path = folder / MANIFEST_FILE
        if writable and (folder.is_symlink() or folder.parent.is_symlink()):
            raise IntegrityError(f"{folder} is a link: models are folders of the store itself; move the folder there")
        data, sealed = read_manifest(folder)
        try:
            manifest = Manifest.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "manifest"
            raise ManifestError(f"{path}: {where}: {first['msg']}") from error
        if (manifest.name, str(manifest.version)) != (folder.parent.name, folder.name):
            raise ManifestError(f"{path} says {manifest.name}@{manifest.version}, its folder says otherwise")
        artifact = Artifact(manifest, folder, self._load_base(manifest, above), writable, sealed)
        check_parts(artifact)
        return artifact

    def _load_base(self, manifest: Manifest, above: tuple[str, ...]) -> Artifact | None:
        if manifest.base is None:
            return None
        chain = (*above, f"{manifest.name}@{manifest.version}")
        if (wanted := f"{manifest.base.name}@{manifest.base.version}") in chain:
            raise ManifestError(f"an artifact derives from itself: {' -> '.join((*chain, wanted))}")
        base = self._open(wanted, chain)
        if base.manifest.fingerprint != manifest.base.fingerprint:
            raise IntegrityError(
                f"{manifest.name}@{manifest.version} derives from another {base.reference}: fingerprints differ"
            )
        return base


def complete(staged: Artifact) -> None:
    """Check an artifact in a staged folder, sync its files, and write its manifest last.

    Raises:
        IntegrityError: the folder's files are not those of the manifest.
        ManifestError: its parts do not fit together (see model_store.derivation).
    """
    staged.verify()
    check_parts(staged)
    for path in files_below(staged.folder):
        sync(path)
    for path in write_manifest(staged.folder, staged.manifest):
        sync(path)
    sync(staged.folder)


@contextmanager
def copy_to_change(artifact: Artifact) -> Generator[Path]:
    """A copy of an artifact's folder on the same file system; removed if it does not take its place (`replace`)."""
    with tempfile.TemporaryDirectory(dir=artifact.folder.parent) as name:
        staged = Path(name) / artifact.folder.name
        shutil.copytree(artifact.folder, staged)
        yield staged


def replace(artifact: Artifact, staged: Path, manifest: Manifest) -> Artifact:
    """Put a changed copy in the artifact's own place, checked as `Store.publish` checks; for repairs of a shipped one.

    Raises:
        IntegrityError, ManifestError: as `complete`; nothing was changed.
    """
    complete(dataclasses.replace(artifact, manifest=manifest, folder=staged))
    replace_folder(artifact.folder, staged)
    return dataclasses.replace(artifact, manifest=manifest, sealed=True)


def file_entries(folder: Path) -> tuple[FileEntry, ...]:
    """Manifest lines for everything that lies in a staged folder, by path."""
    return tuple(
        FileEntry(path=p.relative_to(folder).as_posix(), size_bytes=p.stat().st_size, sha256=sha256_file(p))
        for p in files_below(folder)
        if p.name not in (MANIFEST_FILE, SEAL_FILE)
    )
