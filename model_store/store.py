"""Folders of artifacts: list, open by name, read through digests, publish atomically."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from model_store.errors import ArtifactExists, ArtifactNotFound, IntegrityError, ManifestError
from model_store.identity import build_of, sha256_file
from model_store.manifest import (
    NAME_PATTERN,
    FileEntry,
    GraphSpec,
    ImageSpec,
    Manifest,
    Precision,
    Role,
    TextSpec,
)
from model_store.modality.text import Tokenizer

MANIFEST_FILE = "manifest.json"
BUILTIN_FOLDER = Path(__file__).parent / "builtin"
_STAGING = ".staging"
_NAME = re.compile(NAME_PATTERN)
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Artifact:
    """One opened artifact: its manifest, its folder, and the base whose roles it inherits."""

    manifest: Manifest
    folder: Path
    base: Artifact | None
    writable: bool

    @property
    def reference(self) -> str:
        return f"{self.manifest.name}@{self.manifest.version}"

    @property
    def image_spec(self) -> ImageSpec | None:
        return self.manifest.image or (self.base.image_spec if self.base else None)

    @property
    def text_spec(self) -> TextSpec | None:
        return self.manifest.text or (self.base.text_spec if self.base else None)

    def roles(self) -> tuple[Role, ...]:
        """Every role this artifact can play, inherited ones included, in the order of their first graph."""
        inherited: tuple[Role, ...] = self.base.roles() if self.base else ()
        own: tuple[Role, ...] = tuple(g.role for g in self.manifest.graphs)
        arrays: tuple[Role, ...] = tuple(a.role for a in self.manifest.arrays)
        found: tuple[Role, ...] = own + arrays + inherited
        return tuple(dict.fromkeys(found))

    def owner(self, role: Role) -> Artifact | None:
        """The artifact in the chain (self first) that provides `role`."""
        if any(g.role == role for g in self.manifest.graphs) or any(a.role == role for a in self.manifest.arrays):
            return self
        return self.base.owner(role) if self.base else None

    def graph_spec(self, role: Role, precision: Precision) -> tuple[Artifact, GraphSpec] | None:
        """(owner, spec) of the graph for a role, own before inherited; None when this precision was not built."""
        owner = self.owner(role)
        spec = owner.manifest.graph(role, precision) if owner else None
        return (owner, spec) if owner and spec else None

    def entry(self, path: str) -> FileEntry:
        """The manifest's line for a file.

        Raises:
            IntegrityError: the manifest does not list it.
        """
        for entry in self.manifest.files:
            if entry.path == path:
                return entry
        raise IntegrityError(f"{self.reference}: {path} is not listed in the manifest")

    def path(self, relative: str) -> Path:
        """Absolute path of a listed file; its bytes are not checked here (see `open_verified`)."""
        return self.folder / self.entry(relative).path

    @contextmanager
    def open_verified(self, relative: str) -> Generator[BinaryIO]:
        """A descriptor whose bytes match the manifest; what is loaded must be read through it.

        Raises:
            IntegrityError: missing, not a plain file, a link, outside the artifact, or other bytes than listed.
        """
        entry = self.entry(relative)
        path = self.folder / relative
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise IntegrityError(f"{self.reference}: {relative} lies outside the artifact")
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise IntegrityError(f"{self.reference}: cannot open {relative}: {error.strerror}") from error
        with os.fdopen(descriptor, "rb") as stream:
            self._check(stream, entry)
            yield stream

    def read(self, relative: str) -> bytes:
        """The verified bytes of a listed file."""
        with self.open_verified(relative) as stream:
            return stream.read()

    def array(self, role: Role) -> NDArray[np.float32]:
        """The float32 array that plays `role` (closed-form methods)."""
        owner = self.owner(role)
        for spec in owner.manifest.arrays if owner else ():
            if owner and spec.role == role:
                with owner.open_verified(spec.file) as stream:
                    return np.load(stream, allow_pickle=False).astype(np.float32)
        raise ArtifactNotFound(f"{self.reference} has no array for role {role}")

    def tokenizer(self) -> Tokenizer:
        """The tokeniser of the text tower, inherited if this artifact has none of its own."""
        if self.manifest.text is not None:
            return Tokenizer(self.manifest.text, self.read(self.manifest.text.tokenizer_file))
        if self.base is not None:
            return self.base.tokenizer()
        raise ArtifactNotFound(f"{self.reference} has no text encoder")

    def build(self, precision: Precision) -> str:
        """Identity of the files that serving this precision loads, inherited ones included."""
        entries: list[FileEntry] = []
        for role in self.roles():
            found = self.graph_spec(role, precision) or self.graph_spec(role, "fp32")
            if found:
                entries += [found[0].entry(path) for path in found[1].files]
        return build_of(entries)

    def verify(self) -> None:
        """Check every listed file and that nothing else lies in the folder.

        Raises:
            IntegrityError: names the first file that is wrong.
        """
        for entry in self.manifest.files:
            with self.open_verified(entry.path):
                pass
        listed = {entry.path for entry in self.manifest.files} | {MANIFEST_FILE}
        extra = sorted({p.relative_to(self.folder).as_posix() for p in _files_below(self.folder)} - listed)
        if extra:
            raise IntegrityError(f"{self.reference}: files not listed in the manifest: {extra}")

    def _check(self, stream: BinaryIO, entry: FileEntry) -> None:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise IntegrityError(f"{self.reference}: {entry.path} is not a regular file")
        if self.writable and status.st_nlink > 1:
            raise IntegrityError(f"{self.reference}: {entry.path} has {status.st_nlink} hard links, expected 1")
        if status.st_size != entry.size_bytes:
            raise IntegrityError(
                f"{self.reference}: {entry.path} has {status.st_size} bytes, the manifest says {entry.size_bytes}"
            )
        digest = hashlib.sha256()
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
        if digest.hexdigest() != entry.sha256:
            raise IntegrityError(f"{self.reference}: {entry.path} does not match its sha256 in the manifest")
        stream.seek(0)


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

    def open(self, reference: str) -> Artifact:
        """Open `name` (its highest version) or `name@version`.

        Raises:
            ArtifactNotFound: unknown name or version; the message lists what there is.
            ManifestError: the manifest cannot be read.
        """
        name, _, version = reference.partition("@")
        if not _NAME.fullmatch(name) or (version and not version.isdecimal()) or reference.endswith("@"):
            raise ArtifactNotFound(f"no model {reference[:80]!r}: expected name or name@version")
        versions = self._versions(name)
        wanted = int(version) if version else max(versions, default=0)
        if wanted not in versions:
            known = ", ".join(sorted(a.reference for a in self.list())) or "none"
            raise ArtifactNotFound(f"no model {reference!r}; the store has: {known}")
        folder, writable = versions[wanted]
        return self._load(folder, writable)

    def next_version(self, name: str) -> int:
        return max(self._versions(name), default=0) + 1

    @contextmanager
    def staging(self) -> Generator[Path]:
        """An empty folder on the store's own file system to build an artifact in; removed if not published."""
        folder = self._writable_root() / _STAGING / uuid.uuid4().hex
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, folder: Path, manifest: Manifest) -> Artifact:
        """Move a staged folder into the store; the manifest is written last, so that it means "complete".

        Raises:
            ArtifactExists: this name and version is taken.
            IntegrityError: the folder's files are not those of the manifest.
        """
        target = self._writable_root() / manifest.name / str(manifest.version)
        if manifest.version in self._versions(manifest.name):
            raise ArtifactExists(f"{manifest.name}@{manifest.version} exists already")
        Artifact(manifest, folder, None, writable=True).verify()
        for path in _files_below(folder):
            _sync(path)
        manifest_path = folder / MANIFEST_FILE
        manifest_path.write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
        _sync(manifest_path)
        _sync(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(folder, target)
        except OSError as error:
            raise ArtifactExists(f"cannot publish {manifest.name}@{manifest.version}: {error.strerror}") from error
        _sync(target.parent)
        return self._load(target, writable=True)

    def remove(self, name: str, version: int) -> None:
        """Delete one version of the writable store: the manifest first, so that a crash leaves no half artifact."""
        artifact = self.open(f"{name}@{version}")
        if not artifact.writable:
            raise ArtifactNotFound(f"{artifact.reference} is shipped with the package and cannot be removed")
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
                if folder.name.isdecimal() and (folder / MANIFEST_FILE).is_file():
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

    def _load(self, folder: Path, writable: bool) -> Artifact:
        path = folder / MANIFEST_FILE
        try:
            manifest = Manifest.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "manifest"
            raise ManifestError(f"{path}: {where}: {first['msg']}") from error
        except OSError as error:
            raise ManifestError(f"{path}: {error.strerror}") from error
        if (manifest.name, str(manifest.version)) != (folder.parent.name, folder.name):
            raise ManifestError(f"{path} says {manifest.name}@{manifest.version}, its folder says otherwise")
        return Artifact(manifest, folder, self._load_base(manifest), writable)

    def _load_base(self, manifest: Manifest) -> Artifact | None:
        if manifest.base is None:
            return None
        base = self.open(f"{manifest.base.name}@{manifest.base.version}")
        if base.manifest.fingerprint != manifest.base.fingerprint:
            raise IntegrityError(
                f"{manifest.name}@{manifest.version} derives from another {base.reference}: fingerprints differ"
            )
        return base


def file_entries(folder: Path) -> tuple[FileEntry, ...]:
    """Manifest lines for everything that lies in a staged folder, by path."""
    return tuple(
        FileEntry(path=p.relative_to(folder).as_posix(), size_bytes=p.stat().st_size, sha256=sha256_file(p))
        for p in _files_below(folder)
        if p.name != MANIFEST_FILE
    )


def _files_below(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
