"""An opened artifact: the roles it provides and inherits, and its files read through their digests."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from model_store.errors import IntegrityError, RoleNotFound
from model_store.identity import build_of
from model_store.manifest import (
    ADAPTERS,
    ENCODERS,
    FITTED_ON,
    DenseSpec,
    FileEntry,
    GraphSpec,
    HeadSpec,
    ImageSpec,
    Manifest,
    Precision,
    Role,
    TextSpec,
)
from model_store.modality.text import Tokenizer
from model_store.seal import MANIFEST_FILE, SEAL_FILE

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Artifact:
    """One opened artifact: its manifest, its folder, and the base whose roles it inherits.

    sealed: the manifest's own digest was there and right (see model_store.seal).
    """

    manifest: Manifest
    folder: Path
    base: Artifact | None
    writable: bool
    sealed: bool = False

    @property
    def reference(self) -> str:
        return f"{self.manifest.name}@{self.manifest.version}"

    @property
    def image_spec(self) -> ImageSpec | None:
        return self.manifest.image or (self.base.image_spec if self.base else None)

    @property
    def text_spec(self) -> TextSpec | None:
        return self.manifest.text or (self.base.text_spec if self.base else None)

    @property
    def dense_spec(self) -> DenseSpec | None:
        """How pictures are prepared for the dense_encoder that this artifact plays; None: it plays none."""
        owner = self.owner("dense_encoder")
        return owner.manifest.dense if owner else None

    def roles(self) -> tuple[Role, ...]:
        """Every role this artifact can play, inherited ones included, in the order of their first graph."""
        above: tuple[Role, ...] = self.base.roles() if self.base else ()
        own: tuple[Role, ...] = tuple(g.role for g in self.manifest.graphs)
        inherited: tuple[Role, ...] = tuple(role for role in above if self._inherits(role))
        found: tuple[Role, ...] = own + inherited
        return tuple(dict.fromkeys(found))

    def owner(self, role: Role) -> Artifact | None:
        """The artifact in the chain (self first) that provides `role`; see FITTED_ON for what is not inherited."""
        if self.manifest.owns((role,)):
            return self
        return self.base.owner(role) if self.base and self._inherits(role) else None

    def graph_spec(self, role: Role, precision: Precision) -> tuple[Artifact, GraphSpec] | None:
        """(owner, spec) of the graph for a role, own before inherited; None when this precision was not built.

        A class head is found by its name: see `head_graph`.
        """
        owner = self.owner(role)
        spec = owner.manifest.graph(role, precision) if owner else None
        return (owner, spec) if owner and spec else None

    def heads(self) -> dict[str, HeadSpec]:
        """Class heads by name, own before inherited; a head is inherited while its image vectors are."""
        inherited = self.base.heads() if self.base and self._inherits("class_head") else {}
        return {**inherited, **{head.name: head for head in self.manifest.heads}}

    def head_graph(self, name: str) -> tuple[Artifact, GraphSpec]:
        """(owner, spec) of a class head.

        Raises:
            RoleNotFound: no head of this name; the message lists those there are.
        """
        if found := self.manifest.graph("class_head", "fp32", name):
            return self, found
        if self.base and name in self.heads():
            return self.base.head_graph(name)
        raise RoleNotFound(f"{self.reference} has no class head {name!r}, it has {sorted(self.heads())}")

    def served_precision(self, role: Role, wanted: Precision) -> Precision:
        """`wanted` for an encoder when it was built and everything behind it was measured with it, else fp32."""
        if self.graph_spec(role, wanted) is None or any(wanted not in spec.chain for spec in self._behind(role)):
            return "fp32"
        return wanted

    def _behind(self, role: Role) -> list[GraphSpec]:
        """Graphs that take this encoder's vectors."""
        behind: tuple[Role, ...] = ("dense_adapter", "reranker") if role == "dense_encoder" else ()
        behind = (ADAPTERS[ENCODERS.index(role)],) if role in ENCODERS else behind
        found = [each[1] for each in (self.graph_spec(adapter, "fp32") for adapter in behind) if each]
        if role == "image_encoder":
            found += [self.head_graph(name)[1] for name in self.heads()]
            conditional = self.graph_spec("conditional_head", "fp32")
            found += [conditional[1]] if conditional else []
        return found

    def _inherits(self, role: Role) -> bool:
        if self.manifest.owns(FITTED_ON.get(role, ())):
            return False
        # Positions behind the base's encoder lie in its space; an adapter of the pooled vector alone leaves that space.
        alone = self.manifest.owns(("image_adapter",)) and not self.manifest.owns(("dense_adapter",))
        return not (role == "dense_encoder" and alone)

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

    def tokenizer(self) -> Tokenizer:
        """The tokeniser of the text tower, inherited if this artifact has none of its own."""
        if self.manifest.text is not None:
            return Tokenizer(self.manifest.text, self.read(self.manifest.text.tokenizer_file))
        if self.base is not None:
            return self.base.tokenizer()
        raise RoleNotFound(f"{self.reference} has no text encoder")

    def build(self, precision: Precision) -> str:
        """Identity of the files that serving this precision loads, inherited ones included."""
        entries: list[FileEntry] = []
        found = [self.graph_spec(role, self.served_precision(role, precision)) for role in self.roles()]
        for owner, spec in [*(each for each in found if each), *map(self.head_graph, sorted(self.heads()))]:
            entries += [owner.entry(path) for path in spec.files]
        return build_of(entries)

    def verify(self) -> None:
        """Check every listed file and that nothing else lies in the folder.

        Raises:
            IntegrityError: names the first file that is wrong.
        """
        for entry in self.manifest.files:
            with self.open_verified(entry.path):
                pass
        self.refuse_unlisted()

    def refuse_unlisted(self) -> None:
        """A graph may name other files beside it, so nothing may lie there that no digest speaks for.

        Raises:
            IntegrityError: names the files that the manifest does not list.
        """
        listed = {entry.path for entry in self.manifest.files} | {MANIFEST_FILE, SEAL_FILE}
        extra = sorted({p.relative_to(self.folder).as_posix() for p in files_below(self.folder)} - listed)
        if extra:
            raise IntegrityError(f"{self.reference}: files not listed in the manifest: {extra[:8]}")

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


def files_below(folder: Path) -> list[Path]:
    """Every file and link below a folder, by path."""
    return sorted(p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())
