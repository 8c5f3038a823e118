"""Features of the frozen trunk and vectors of the locked text tower, for pictures and texts of the recipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model_store.files import whole_file
from model_store.modality.text import Tokenizer
from training.models.aligned import AlignedDualEncoder
from training.models.pretrained import text_vectors

F32 = NDArray[np.float32]
_CHUNK = 32


def unit_rows(rows: F32) -> F32:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-8)


def features(model: AlignedDualEncoder, pictures: Iterable[NDArray[np.uint8]], kept: Path) -> F32:
    """[N, F] of uint8 [S, S, 3] each: the pooled features, then the stages'. Read from `kept` if it is there."""
    if kept.exists():
        return np.load(kept, allow_pickle=False)
    parts: list[F32] = []
    with torch.inference_mode():
        pictures = iter(pictures)
        while chunk := list(islice(pictures, _CHUNK)):
            pixels = torch.from_numpy(np.stack(chunk))
            parts.append(model.features(model.pixel_input.unit_range(pixels)).numpy())
    found = np.concatenate(parts)
    with whole_file(kept) as stream:
        np.save(stream, found)
    return found


@dataclass
class TextVectors:
    """Unit vectors of texts, each encoded once."""

    model: AlignedDualEncoder
    tokenizer: Tokenizer
    _known: dict[str, F32] = field(default_factory=dict)

    def of(self, texts: Sequence[str]) -> F32:
        """[n, D]."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        for chunk in _chunks(sorted(new, key=len), 256):
            ids = self.tokenizer.pad([self.tokenizer.encode(text) for text in chunk])
            vectors = unit_rows(text_vectors(self.model, lambda _, ids=ids: ids, chunk).numpy())
            self._known.update(zip(chunk, vectors, strict=True))
        return np.stack([self._known[text] for text in texts])


def _chunks(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for at in range(0, len(texts), size):
        yield texts[at : at + size]
