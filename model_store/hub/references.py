"""Names of repositories as people write them, and the artifacts that were made of them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from model_store.artifact import Artifact
from model_store.errors import RepositoryError
from model_store.store import Store

PREFIX = "hub:"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}")
_REVISION = re.compile(r"[\w][\w./-]{0,99}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NOT_IN_A_NAME = re.compile(r"[^a-z0-9._-]+")
_LONGEST_NAME = 64


@dataclass(frozen=True)
class Reference:
    """`ORG/REPO`, or `ORG/REPO@REVISION`: a branch, a tag, or a commit of 40 hex digits."""

    repository: str
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """With or without `hub:` before it.

        Raises:
            RepositoryError: not of that form.
        """
        repository, at, revision = text.removeprefix(PREFIX).partition("@")
        if not _REPOSITORY.fullmatch(repository) or (at and not _REVISION.fullmatch(revision)):
            raise RepositoryError(
                f"{text[:120]!r} is no repository: expected ORG/REPO or ORG/REPO@REVISION, such as "
                "immich-app/ViT-B-32__laion2b-s34b-b79k"
            )
        return cls(repository, revision or None)

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}" if self.revision else self.repository

    @property
    def model_name(self) -> str:
        """The name an artifact has by default: the repository's own, in the letters that names have."""
        return model_name(self.repository)

    @property
    def is_commit(self) -> bool:
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None


def model_name(repository: str) -> str:
    """A name for an artifact from a repository's or a folder's."""
    name = _NOT_IN_A_NAME.sub("-", repository.rsplit("/", 1)[-1].lower()).strip("-._")
    return name[:_LONGEST_NAME] or "model"


def find_pulled(store: Store, reference: Reference, *, commit: str | None = None) -> Artifact | None:
    """The newest artifact of the store that was made of the repository, of its `commit` where one is given."""
    found = [
        artifact
        for artifact in store.list()
        if artifact.manifest.provenance.repository == reference.repository
        and commit in (None, artifact.manifest.provenance.revision)
    ]
    return max(
        found, key=lambda artifact: (artifact.manifest.provenance.created_utc, artifact.manifest.version), default=None
    )
