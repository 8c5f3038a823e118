# pyright: basic, reportMissingImports=false
"""`encode` with the arguments and answers of a `SentenceTransformer`, for code that takes one; needs no torch.

from clipworks.integrations.sentence_transformers import ClipworksEncoder

model = ClipworksEncoder("http://localhost:8000")
model.similarity(model.encode([Image.open("shirt.jpg")]), model.encode(["a red shirt", "black shoes"]))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clipworks.integrations._source import VectorSource

if TYPE_CHECKING:
    from clipworks.local import LocalModel


class ClipworksEncoder:
    """url, model, api_key, timeout_s: of a server, as `clipworks.Client`. local: a model in this process instead."""

    similarity_fn_name = "cosine"

    def __init__(
        self,
        url: str | None = None,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        local: LocalModel | None = None,
    ) -> None:
        self._source = VectorSource(url, model=model, api_key=api_key, timeout_s=timeout_s, local=local)

    def encode(
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool = False,
    ) -> Any:
        """Vectors of texts and pictures, mixed, in their order; one input gives one vector.

        inputs: a string is a text; PIL images, arrays, encoded bytes and `Path` objects are pictures.
        convert_to_numpy False gives a list of tensors; convert_to_tensor one tensor. Both need torch.
        batch_size, show_progress_bar, device: taken and not used; the client and its server see to that.

        Raises:
            ValueError: a prompt, an output or a precision that no model here has.
            ClientError: the first input that has no vector; see clipworks.errors.
        """
        if prompt_name or prompt or output_value != "sentence_embedding" or precision != "float32":
            raise ValueError('expected no prompt, output_value="sentence_embedding" and precision="float32"')
        is_one = isinstance(inputs, (str, bytes)) or not isinstance(inputs, (Sequence, np.ndarray)) or _is_array(inputs)
        several: list[Any] = [inputs] if is_one else list(inputs)
        texts = [index for index, each in enumerate(several) if isinstance(each, str)]
        images = [index for index, each in enumerate(several) if not isinstance(each, str)]
        found = self._source.embed(
            texts=[several[index] for index in texts],
            images=[several[index] for index in images],
            normalize=normalize_embeddings,
        )
        vectors = np.empty_like(found)
        vectors[[*texts, *images]] = found
        rows: Any = vectors
        if convert_to_tensor or not convert_to_numpy:
            import torch

            rows = torch.from_numpy(vectors) if convert_to_tensor else [torch.from_numpy(row) for row in vectors]
        return rows[0] if is_one else rows

    def encode_query(self, inputs: Any, **options: Any) -> Any:
        """As `encode`: queries and documents are embedded alike."""
        return self.encode(inputs, **options)

    def encode_document(self, inputs: Any, **options: Any) -> Any:
        return self.encode(inputs, **options)

    def get_embedding_dimension(self) -> int:
        return self._source.dim()

    def get_sentence_embedding_dimension(self) -> int:
        return self._source.dim()

    def similarity(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Cosines [n, m] of rows."""
        first, second = (
            _unit(np.atleast_2d(np.asarray(each, dtype=np.float32))) for each in (embeddings1, embeddings2)
        )
        return first @ second.T


def _is_array(value: Any) -> bool:
    """One picture, and not several inputs."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "bui" and value.ndim < 4


def _unit(vectors: Any) -> np.ndarray:
    rows = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
