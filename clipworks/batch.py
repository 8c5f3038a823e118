"""Columns of pictures or texts in, the same columns with vectors out: for Ray Data, Dask, Spark, Daft, or a pool.

    dataset.map_batches(Embedder, fn_constructor_kwargs={"model": "everyday-small"}, batch_size=64,
                        compute=ray.data.ActorPoolStrategy(size=4))

`Embedder` runs a stored model in the process that calls it, `RemoteEmbedder` asks a running server. No framework is
imported here. docs/batch.md has a recipe for each.
"""

from __future__ import annotations

import importlib
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from clipworks.client import Client
from clipworks.errors import ModelChanged
from clipworks.local import Device, Kind, LocalModel, Precision
from clipworks.results import EmbedResult
from clipworks.retry import RetryPolicy
from clipworks.schemas import OnUnknown

COLUMNS: Mapping[Kind, tuple[str, ...]] = {"image": ("bytes", "image", "path"), "text": ("text",)}
"""Where inputs are looked for, in this order, when no column is named; of tables that Ray, datasets and pandas make."""
ADDED = ("vector", "error", "space", "fingerprint")
_ATTEMPTS = 20


class ColumnEmbedder(ABC):
    """What `Embedder` and `RemoteEmbedder` share: the call."""

    def __init__(self, kind: Kind, column: str | None, on_unknown: OnUnknown) -> None:
        if kind not in COLUMNS:
            raise ValueError(f"kind: expected image or text, got {kind!r}")
        self.kind: Kind = kind
        self.column = column
        self.on_unknown: OnUnknown = on_unknown
        self.model = self.space = self.fingerprint = ""
        self.dim = 0

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of `batch` (arrays, lists or the columns of a data frame), and four more.

        vector: float32 [n, dim], NaN where there is none. error: "" or "code: message". space, fingerprint: which
        vectors may be compared, and what made them; the same in each row, so that a table of two models shows it.

        Pictures: encoded bytes, paths that this process can read, arrays (uint8 [H, W, 3], ...), PIL images, or
        {"bytes", "path"} as `datasets` stores them. Encoded bytes are the cheapest: others are written as PNG first.

        Raises:
            ValueError: no column to read, or one of the four is there already. Never for one bad row.
        """
        if taken := [name for name in ADDED if name in batch]:
            raise ValueError(f"the batch has a column {taken[0]!r} already: drop or rename it")
        name = self._column_of(batch)
        if getattr(getattr(batch[name], "dtype", None), "kind", "") == "S":
            raise ValueError(f"{name!r}: an array of fixed-width bytes has lost trailing zeros; use dtype=object")
        values = [_plain(value) for value in batch[name]]
        vectors = np.empty((0, self.dim), dtype=np.float32)
        error = np.full(len(values), "", dtype=object)
        if values:
            result = self._embed(values)
            vectors = result.vectors
            if not result.identity:  # no row reached the model
                vectors = np.full((len(values), self.dim), np.nan, dtype=np.float32)
            for index, each in result.errors.items():
                error[index] = f"{getattr(each, 'code', 'failed')}: {each}"
        columns: dict[str, Any] = {key: batch[key] for key in batch}
        constants = {key: np.full(len(values), getattr(self, key), dtype=object) for key in ("space", "fingerprint")}
        return {**columns, "vector": vectors, "error": error, **constants}

    @abstractmethod
    def _embed(self, values: Sequence[Any]) -> EmbedResult:
        """Never empty."""

    def _column_of(self, batch: Mapping[str, Any]) -> str:
        wanted = COLUMNS[self.kind] if self.column is None else (self.column,)
        if found := next((name for name in wanted if name in batch), None):
            return found
        raise ValueError(f"no column {' or '.join(map(repr, wanted))} in the batch, it has {sorted(batch)}")

    def _is(self, reference: str, space: str, fingerprint: str | None, dim: int, expected: str | None) -> None:
        """Raises ModelChanged: it has another fingerprint than the one that was expected."""
        if expected not in (None, fingerprint):
            raise ModelChanged(f"{reference} has the {self.kind} fingerprint {fingerprint} here, expected {expected}")
        self.model, self.space, self.fingerprint, self.dim = reference, space, fingerprint or "", dim


class Embedder(ColumnEmbedder):
    """Embeds columns in this process. Made once per worker: the model is opened and its golden cases are run then, so a
    machine on which it does not give its vectors fails before it writes one. Pickled by its arguments.

    model, store, threads, batch_size, precision, device: as `clipworks.local.LocalModel`.
    column: of the inputs; default: the first of COLUMNS that is there. fingerprint: refuse any other encoder.
    on_unknown: as `Client.embed`.

    Raises:
        model_store.errors.ArtifactError: no such model, or it cannot be used here.
        ModelChanged: it has another fingerprint.
    """

    def __init__(
        self,
        model: str | None = None,
        store: str | os.PathLike[str] | None = None,
        *,
        kind: Kind = "image",
        column: str | None = None,
        threads: int = 1,
        batch_size: int = 32,
        precision: Precision | None = None,
        device: Device = "cpu",
        on_unknown: OnUnknown = "warn",
        fingerprint: str | None = None,
    ) -> None:
        super().__init__(kind, column, on_unknown)
        self._model = LocalModel(
            model,
            store,
            kinds=(kind,),
            threads=threads,
            batch_size=batch_size,
            precision=precision,
            device=device,
        )
        self._options = {
            "store": None if store is None else os.fspath(store),
            "kind": kind,
            "column": column,
            "threads": threads,
            "batch_size": batch_size,
            "precision": precision,
            "device": device,
            "on_unknown": on_unknown,
        }
        found = self._model.fingerprint
        side = found.image if kind == "image" else found.text
        self._is(self._model.model, self._model.space, side, self._model.dim, fingerprint)

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return partial(type(self), self.model, **self._options, fingerprint=self.fingerprint), ()

    def _embed(self, values: Sequence[Any]) -> EmbedResult:
        if self.kind == "image":
            return self._model.embed(images=values, on_error="item", on_unknown=self.on_unknown)
        return self._model.embed(texts=values, on_error="item", on_unknown=self.on_unknown)


class RemoteEmbedder(ColumnEmbedder):
    """The same call, answered by a server: at most `concurrency` requests at a time from each worker, repeated as the
    server's Retry-After says when it is full. What is no fault of a row (no server, a wrong key) raises.

    url, api_key, concurrency, batch_size, timeout_s: as `Client`. The key is pickled with the other arguments.
    retry: by default more patient than the client's, some two minutes: a job can wait, others fill the server too.
    model: name or name@version; needed where the server has several. One version is pinned for the whole job.

    Raises:
        ValueError: the server has several models, or the model has no such encoder.
        ClientError: see clipworks.errors; ModelChanged: the model has another fingerprint than `fingerprint`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        model: str | None = None,
        kind: Kind = "image",
        column: str | None = None,
        api_key: str | None = None,
        concurrency: int = 4,
        batch_size: int = 32,
        timeout_s: float = 60.0,
        retry: RetryPolicy | None = None,
        on_unknown: OnUnknown = "warn",
        fingerprint: str | None = None,
    ) -> None:
        super().__init__(kind, column, on_unknown)
        self._client_options: dict[str, Any] = {
            "url": url,
            "api_key": api_key,
            "concurrency": concurrency,
            "batch_size": batch_size,
            "timeout_s": timeout_s,
            "retry": retry or RetryPolicy(attempts=_ATTEMPTS),
        }
        self._client = self._connected()
        self._client_options["url"] = self._client.url
        if model is None:
            references = [f"{found.name}@{found.version}" for found in self._client.models()]
            if len(references) != 1:
                raise ValueError(f"the server has {len(references)} models, name one of {references}")
            model = references[0]
        found = self._client.model(model)
        side = found.fingerprint.image if kind == "image" else found.fingerprint.text
        if side is None:
            raise ValueError(f"{found.name}@{found.version} has no {kind} encoder")
        self._is(f"{found.name}@{found.version}", found.space, side, found.dim, fingerprint)

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        own: dict[str, Any] = {"kind": self.kind, "column": self.column, "on_unknown": self.on_unknown}
        own |= {"model": self.model, "fingerprint": self.fingerprint}
        return partial(type(self), **self._client_options, **own), ()

    def _embed(self, values: Sequence[Any]) -> EmbedResult:
        if os.getpid() != self._pid:  # connections are not shared with the process that this one was forked from
            self._client = self._connected()
        inputs: dict[str, Any] = {"images" if self.kind == "image" else "texts": values}
        result: EmbedResult = self._client.embed(
            **inputs, model=self.model, on_error="item", on_unknown=self.on_unknown
        )
        identity = result.identity
        if identity is not None:
            side = identity.fingerprint.image if self.kind == "image" else identity.fingerprint.text
            self._is(identity.model, identity.space or "", side, identity.dim or 0, self.fingerprint)
        return result

    def _connected(self) -> Client:
        """Closed with this object."""
        self._pid = os.getpid()
        client = Client(**self._client_options)
        weakref.finalize(self, client.close)
        return client


def as_table(batch: Mapping[str, Any], *, columns: Sequence[str] = ("path", *ADDED)) -> Any:
    """`columns` of a called batch, those that are there, as a pyarrow Table that every reader understands: the vectors
    are fixed-size lists of float32, and nothing is of a framework's own type. `clipworks collections import` takes it.
    """
    arrow: Any = importlib.import_module("pyarrow")  # it has no types
    found = [name for name in columns if name in batch]
    arrays = [_vectors(arrow, batch[name]) if name == "vector" else arrow.array(list(batch[name])) for name in found]
    return arrow.table(arrays, names=found)


def _vectors(arrow: Any, vectors: Any) -> Any:
    given = list(vectors)
    dim = next((len(each) for each in given if each is not None), 0)
    none = np.full(dim, np.nan, dtype=np.float32)  # what a table says of a row that failed
    rows = np.ascontiguousarray([none if each is None else each for each in given] if given else vectors, np.float32)
    return arrow.FixedSizeListArray.from_arrays(arrow.array(rows.reshape(-1)), rows.shape[-1])


def _plain(value: Any) -> Any:
    """What the client takes: of {"bytes", "path"}, the one that is there."""
    if isinstance(value, Mapping) and {"bytes", "path"} & value.keys():  # pyright: ignore[reportUnknownMemberType]
        return value.get("bytes") or value.get("path")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return value  # pyright: ignore[reportUnknownVariableType]
