# pyright: basic, reportMissingImports=false
"""LlamaIndex: texts and pictures as `MultiModalEmbedding`; needs llama-index-core.

from clipworks.integrations.llama_index import ClipworksEmbedding

index = VectorStoreIndex(nodes, embed_model=ClipworksEmbedding("http://localhost:8000"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.embeddings.multi_modal_base import MultiModalEmbedding

from clipworks.integrations._source import VectorSource

if TYPE_CHECKING:
    from clipworks.local import LocalModel


class ClipworksEmbedding(MultiModalEmbedding):
    """url, model, api_key, timeout_s: of a server, as `clipworks.Client`. local: a model in this process instead.

    Pictures are paths, files opened in binary mode, bytes or PIL images. Other arguments are LlamaIndex's own.

    Raises from each method:
        ClientError: the first text or picture that has no vector; see clipworks.errors.
    """

    _source: VectorSource = PrivateAttr()

    def __init__(
        self,
        url: str | None = None,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        local: LocalModel | None = None,
        embed_batch_size: int = 64,
        **options: Any,
    ) -> None:
        name = local.model if local else model or "clipworks"
        super().__init__(model_name=name, embed_batch_size=embed_batch_size, **options)
        self._source = VectorSource(url, model=model, api_key=api_key, timeout_s=timeout_s, local=local)

    @classmethod
    def class_name(cls) -> str:
        return "ClipworksEmbedding"

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._source.embed(texts=texts).tolist()

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embeddings([query])[0]

    def _get_image_embeddings(self, img_file_paths: list[Any]) -> list[list[float]]:
        return self._source.embed(images=img_file_paths).tolist()

    def _get_image_embedding(self, img_file_path: Any) -> list[float]:
        return self._get_image_embeddings([img_file_path])[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return (await self._source.aembed(texts=texts)).tolist()

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([text]))[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return (await self._aget_text_embeddings([query]))[0]

    async def _aget_image_embeddings(self, img_file_paths: list[Any]) -> list[list[float]]:
        return (await self._source.aembed(images=img_file_paths)).tolist()

    async def _aget_image_embedding(self, img_file_path: Any) -> list[float]:
        return (await self._aget_image_embeddings([img_file_path]))[0]
