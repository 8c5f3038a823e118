"""One connection to a Milvus, with its errors in this project's words."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

from service.retrieval.backends.errors import BackendUnavailable
from service.retrieval.errors import CollectionNotFound, RetrievalError, StorageFailed, StorageFull, StoreClosed

log = logging.getLogger("clipworks.retrieval")
CONNECT_S = 10.0
_TIMEOUT_S = 30.0
_NOT_FOUND = 100
_FULL = ("disk quota", "memory quota", "no space left")
_AWAY = ("unavailable", "deadline", "timeout", "connect")


class MilvusConnection:
    """A path is milvus-lite in this process, anything else the address of a server.

    milvus-lite wants its writes one after the other; a server takes them as they come.
    """

    def __init__(self, uri: str, *, token: str | None, database: str | None) -> None:
        """Raises StorageFailed, BackendUnavailable: it cannot be opened; never shows the token."""
        from pymilvus import MilvusClient

        # It logs each refusal with a traceback before it raises; what matters of that is in our own error.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        self.is_lite = "://" not in uri
        self._uri = str(Path(uri).expanduser()) if self.is_lite else uri
        if self.is_lite and not self._uri.endswith(".db"):
            raise StorageFailed(f"{uri}: a path of milvus-lite ends in .db; a server's address begins with http://")
        self._writing: AbstractContextManager[Any] = threading.Lock() if self.is_lite else nullcontext()
        self._closed = False
        options = {"db_name": database} if database else {}
        if self.is_lite:
            Path(self._uri).parent.mkdir(parents=True, exist_ok=True)
        try:
            self._client: Any = MilvusClient(self._uri, token=token or "", timeout=CONNECT_S, **options)
        except Exception as error:
            hint = "; is another process using it?" if self.is_lite else ""
            raise BackendUnavailable(f"Milvus at {self._uri} cannot be opened ({type(error).__name__}){hint}") from None
        # milvus-lite and servers before 2.4 have no index for arrays.
        self.indexes_arrays = not self.is_lite and _version_of(self.ask("get_server_version")) >= (2, 4)

    @property
    def uri(self) -> str:
        return self._uri

    @property
    def durability(self) -> Literal["process", "remote"]:
        """milvus-lite hands each write to the operating system and does not wait for the disk."""
        return "process" if self.is_lite else "remote"

    def ask(self, call: str, *args: Any, **options: Any) -> Any:
        """A method of MilvusClient that only reads, or may run beside others."""
        if self._closed:
            raise StoreClosed("the connection to Milvus is closed")
        try:
            return getattr(self._client, call)(*args, timeout=_TIMEOUT_S, **options)
        except Exception as error:
            raise self._translate(call, error) from None

    def write(self, call: str, *args: Any, **options: Any) -> Any:
        with self._writing:
            return self.ask(call, *args, **options)

    def write_many(self, work: Callable[[], Any]) -> Any:
        """Several calls that no other writer of milvus-lite may come between; `work` uses `ask`."""
        with self._writing:
            return work()

    def properties(self, name: str) -> dict[str, str] | None:
        """Of a collection by its name there; None if there is no such collection."""
        try:
            return dict(self.ask("describe_collection", name).get("properties") or {})
        except CollectionNotFound:
            return None

    def names(self) -> Sequence[str]:
        return self.ask("list_collections")

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with self._writing:
            self._client.close()
            if self.is_lite:
                from milvus_lite.server_manager import server_manager_instance

                server_manager_instance.release_server(self._uri)

    def _translate(self, call: str, error: Exception) -> RetrievalError:
        message = str(getattr(error, "message", "") or error)[:300]
        if getattr(error, "code", None) == _NOT_FOUND and "collection" in message:
            return CollectionNotFound("Milvus has no such collection any more")
        lower = f"{type(error).__name__} {message}".lower()
        log.error("Milvus refused %s: %s: %s", call, type(error).__name__, message)
        if any(word in lower for word in _FULL):
            return StorageFull(f"Milvus has no room left ({call})")
        if any(word in lower for word in _AWAY):
            return BackendUnavailable(f"Milvus at {self._uri} does not answer ({call})")
        return StorageFailed(f"Milvus failed at {call}; the server's log has its words")


def _version_of(said: str) -> tuple[int, ...]:
    """(2, 4, 1) of "v2.4.1-dev"; () of what is no version."""
    return tuple(map(int, re.findall(r"\d+", said.split("-")[0])))
