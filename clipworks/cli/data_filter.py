"""A stored model that says how well pictures fit their captions, in whichever process asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
        folder = None if store is None else str(store)
        found = _model(model, folder)
        said = found.fingerprint.model_dump()
        return cls(model=found.model, store=folder, identity=f"{found.model} {said}")

    def open(self) -> OpenScorer:
        return OpenScorer(_model(self.model, self.store))


class OpenScorer:
    """A PairScorer of training.building."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model

    def scores(self, pictures: Sequence[bytes], captions: Sequence[str]) -> Sequence[float | str]:
        """Cosines, or what the model says against a pair."""
        found = self._model.embed(texts=captions, images=pictures, on_error="item", on_unknown="warn")
        count = len(captions)
        texts, images = found.vectors[:count], found.vectors[count:]
        cosines = (texts * images).sum(axis=1).tolist()
        failed = [found.errors.get(at) or found.errors.get(count + at) for at in range(count)]
        return [cosine if error is None else str(error) for cosine, error in zip(cosines, failed, strict=True)]


def _model(model: str, store: str | None) -> LocalModel:
    from clipworks.local import LocalModel

    return LocalModel(model, store, batch_size=32)
