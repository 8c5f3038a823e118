# pyright: basic, reportMissingImports=false
"""LangChain: texts and pictures as `Embeddings`; needs langchain-core.

from clipworks.integrations.langchain import ClipworksEmbeddings

store = InMemoryVectorStore(ClipworksEmbeddings("http://localhost:8000"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.embeddings import Embeddings

from clipworks.integrations._source import VectorSource

if TYPE_CHECKING:
    from clipworks.local import LocalModel


class ClipworksEmbeddings(Embeddings):
    """url, model, api_key, timeout_s: of a server, as `clipworks.Client`. local: a model in this process instead.

    Raises from each method:
        ClientError: the first text or picture that has no vector; see clipworks.errors.
    """

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

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self._source.embed(texts=texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]

    def embed_image(self, uris: list[Any]) -> list[list[float]]:
        """Vectors of pictures, as OpenCLIPEmbeddings of langchain-experimental gives them: in the space of the texts.

        uris: paths; bytes and PIL images too.
        """
        return self._source.embed(images=uris).tolist()

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return (await self._source.aembed(texts=texts)).tolist()

    async def aembed_query(self, text: str) -> list[float]:
        return (await self.aembed_documents([text]))[0]

    async def aembed_image(self, uris: list[Any]) -> list[list[float]]:
        return (await self._source.aembed(images=uris)).tolist()
