"""A stored model that says how well pictures fit their captions, or what they show, in whichever process asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipworks.local import LocalModel


@dataclass(frozen=True, kw_only=True)
class StoredScorer:
    """A ScorerSource of training.building: a model of the store, by name and version."""

    model: str
    store: str | None
    identity: str

    @classmethod
    def of(cls, model: str, store: Path | None) -> StoredScorer:
        """Opens the model once, so that what is wrong with it is said before any picture is read.

        Raises:
            ArtifactError: there is no such model, or it cannot be used here.
        """
        folder = _text(store)
        found = _model(model, folder)
        return cls(model=found.model, store=folder, identity=_identity(found))

    def open(self) -> OpenScorer:
        return OpenScorer(_model(self.model, self.store))


class OpenScorer:
    """A PairScorer of training.building."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model

    def scores(
        self, pictures: Sequence[bytes], captions: Sequence[str], images: Sequence[NDArray[np.float32]] | None = None
    ) -> Sequence[float | str]:
        """Cosines, or what the model says against a pair. images: the model's vectors of the pictures, if known."""
        unknown = pictures if images is None else ()
        found = self._model.embed(texts=captions, images=unknown, on_error="item", on_unknown="warn")
        count = len(captions)
        known = found.vectors[count:] if images is None else np.stack(images)
        cosines = (found.vectors[:count] * known).sum(axis=1).tolist()
        failed = [found.errors.get(at) or found.errors.get(count + at) for at in range(count)]
        return [cosine if error is None else str(error) for cosine, error in zip(cosines, failed, strict=True)]


@dataclass(frozen=True, kw_only=True)
class StoredEmbedder:
    """An EmbedderSource of training.building: the image tower of a model of the store, by name and version."""

    model: str
    store: str | None
    identity: str
    dim: int

    @classmethod
    def of(cls, model: str, store: Path | None) -> StoredEmbedder:
        """Opens the model once, so that what is wrong with it is said before any picture is read.

        Raises:
            ArtifactError: there is no such model, or it cannot be used here.
        """
        folder = _text(store)
        found = _tower(model, folder)
        return cls(model=found.model, store=folder, identity=_identity(found), dim=found.dim)

    def open(self) -> OpenEmbedder:
        return OpenEmbedder(_tower(self.model, self.store))


class OpenEmbedder:
    """A PictureEmbedder of training.building. One picture a run: the last bits of a vector may depend on the batch."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model

    def vectors(self, pictures: Sequence[bytes]) -> Sequence[NDArray[np.float32] | str]:
        """Unit vectors, or what the model says against a picture."""
        found = self._model.embed(images=pictures, on_error="item")
        return [
            vector if (error := found.errors.get(row)) is None else str(error)
            for row, vector in enumerate(found.vectors)
        ]


def _text(store: Path | None) -> str | None:
    return None if store is None else str(store)


def _identity(found: LocalModel) -> str:
    """Of scorer and embedder alike: where both have one, the scorer takes the embedder's vectors."""
    return f"{found.model} {found.fingerprint.model_dump()}"


def _model(model: str, store: str | None) -> LocalModel:
    from clipworks.local import LocalModel

    return LocalModel(model, store, batch_size=32)


def _tower(model: str, store: str | None) -> LocalModel:
    from clipworks.local import LocalModel

    return LocalModel(model, store, kinds=("image",), batch_size=1)
