"""Scores of a reranker pair by pair, through model_store alone, and pictures to ask it about."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
from PIL import Image

from model_store.modality.image import decode, prepare_dense
from model_store.reranking import Reranker, open_reranker
from model_store.session import SessionSettings
from model_store.store import Artifact
from model_store.towers import DenseTower, open_dense_tower


class Truth:
    """The reranker of one artifact, pair by pair."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.reranker: Reranker = open_reranker(artifact, SessionSettings())
        self.dense: DenseTower = open_dense_tower(artifact, "fp32", SessionSettings())

    def positions(self, picture: bytes) -> np.ndarray:
        spec = self.artifact.dense_spec
        assert spec
        return self.dense(prepare_dense(decode(picture), spec)[None]).positions[0]

    def score(self, picture: bytes | np.ndarray, text: str) -> float:
        grid = self.positions(picture) if isinstance(picture, bytes) else picture
        logit = float(self.reranker.match_each([grid], self.reranker.text_tokens([text]))[0])
        return 1 / (1 + np.exp(-logit))


def mosaic(seed: int, *, size: tuple[int, int] = (96, 64)) -> bytes:
    """Cells of dim colours, of which seeds have different shares."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 200, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
    cells[..., seed % 3] //= 1 + seed % 4
    buffer = BytesIO()
    Image.fromarray(cells).resize(size, Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def sent(picture: bytes) -> dict[str, str]:
    return {"image": base64.b64encode(picture).decode()}
