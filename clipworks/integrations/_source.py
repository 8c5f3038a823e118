"""Vectors for the adapters, from a running server or from a model in this process."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from clipworks.client import AsyncClient, Client

if TYPE_CHECKING:
    from clipworks.local import LocalModel
    from clipworks.results import Vectors


class VectorSource:
    """`embed` and `aembed` over the server at `url`, or over `local`, which then is the only argument.

    Raises:
        ValueError: both are given.
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
        if local is not None and not url is model is api_key is None:
            raise ValueError("give url, model and api_key of a server, or local, which has its own model")
        self._options: dict[str, Any] = {"url": url, "api_key": api_key, "timeout_s": timeout_s}
        self._model = model
        self._local = local
        if local is not None:
            self._embed: Callable[..., Vectors] = local.embed
        else:
            client = Client(**self._options)
            weakref.finalize(self, client.close)
            self._embed = partial(client.embed, model=model)

    def embed(self, *, texts: Sequence[str] = (), images: Sequence[Any] = (), normalize: bool = True) -> Vectors:
        """float32 [n, dim], texts first. Raises ClientError: the first input that has no vector."""
        if not len(texts) + len(images):
            return np.empty((0, 0), dtype=np.float32)
        return self._embed(texts=texts, images=images, normalize=normalize)

    async def aembed(self, *, texts: Sequence[str] = (), images: Sequence[Any] = ()) -> Vectors:
        """As `embed`. Connections last as long as a call: an adapter may be used from several event loops."""
        if self._local is not None or not len(texts) + len(images):
            return await asyncio.to_thread(self.embed, texts=texts, images=images)
        async with AsyncClient(**self._options) as client:
            return await client.embed(texts=texts, images=images, model=self._model)

    def dim(self) -> int:
        """Of the vectors."""
        return self._local.dim if self._local else self.embed(texts=["a"]).shape[1]
