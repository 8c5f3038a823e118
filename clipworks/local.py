"""A model that runs in this process, with the client's `embed`: needs the extra `serve`, and no server.

    from clipworks.local import LocalModel

    vectors = LocalModel("everyday-small").embed(texts=["a red shirt"], images=["shirt.jpg"])

This is the one module of clipworks, outside its command line, that imports a room; it does so when a model is opened
(docs/decisions/0015).
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from clipworks import errors
from clipworks._exchange import item_error
from clipworks._inputs import ImageAddress, ImageBytes, InputSource, Text, sources
from clipworks.results import EmbedResult, ModelIdentity
from clipworks.schemas import EncoderFingerprint, ErrorDetail, OnError, OnUnknown

if TYPE_CHECKING:
    from clipworks._inputs import ImageSource
    from clipworks.results import Vectors
    from service.engine.offline import OfflineModel, OfflineOutcome

Kind = Literal["image", "text"]
Precision = Literal["fp32", "fp16", "int8"]
Device = Literal["cpu", "cuda"]
_TYPE = "invalid_request_error"
_OPENED = 4  # models of one process that stay open, whoever was made with them
_opening = threading.Lock()


class LocalModel:
    """Encoders of an artifact, proven on its golden cases before this returns. May be used from several threads.

    A process opens equal ones once. Pickled, it is its arguments and what it found; where it arrives, it is opened.

    model: name or name@version; None: the one that a server of this store would take.
    store: folder of artifacts beside those shipped with the package. No environment variable is read: the workers of a
        job have another environment.
    kinds: what is opened. threads: of one run. batch_size: inputs of one run.
    fingerprint: raise ModelChanged where the model found is another one.

    Raises:
        model_store.errors.ArtifactError: no such model, or it cannot be used here (integrity, provider, golden cases).
    """

    def __init__(
        self,
        model: str | None = None,
        store: str | os.PathLike[str] | None = None,
        *,
        kinds: Sequence[Kind] = ("image", "text"),
        threads: int = 1,
        batch_size: int = 32,
        precision: Precision | None = None,
        device: Device = "cpu",
        fingerprint: Mapping[str, str | None] | None = None,
    ) -> None:
        if not kinds or set(kinds) - {"image", "text"}:
            raise ValueError(f"kinds: expected image, text or both, got {list(kinds)}")
        if threads < 1 or batch_size < 1:
            raise ValueError("threads and batch_size must be at least 1")
        self._options: Mapping[str, Any] = {
            "store": None if store is None else os.fspath(store),
            "kinds": tuple(kinds),
            "threads": threads,
            "batch_size": batch_size,
            "precision": precision,
            "device": device,
        }
        self._pid = os.getpid()
        self._opened = _open(model, **self._options)
        self.model = self._opened.reference
        self.space = self._opened.space
        self.dim = self._opened.dim
        self.fingerprint = EncoderFingerprint(**self._opened.fingerprint.model_dump())
        if fingerprint is not None and self.fingerprint != EncoderFingerprint(**fingerprint):
            raise errors.ModelChanged(
                f"{self.model} of this machine's store has the fingerprint {self.fingerprint.model_dump()}, "
                f"the job began with {dict(fingerprint)}"
            )

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        found = self.fingerprint.model_dump()
        return partial(type(self), self.model, **self._options, fingerprint=found), ()

    @overload
    def embed(
        self,
        *,
        texts: Iterable[str] = (),
        images: Iterable[ImageSource] = (),
        normalize: bool = True,
        on_error: Literal["fail"] = "fail",
        on_unknown: OnUnknown = "warn",
    ) -> Vectors: ...
    @overload
    def embed(
        self,
        *,
        texts: Iterable[str] = (),
        images: Iterable[ImageSource] = (),
        normalize: bool = True,
        on_error: Literal["item"],
        on_unknown: OnUnknown = "warn",
    ) -> EmbedResult: ...
    def embed(
        self,
        *,
        texts: Iterable[str] = (),
        images: Iterable[ImageSource] = (),
        normalize: bool = True,
        on_error: OnError = "fail",
        on_unknown: OnUnknown = "warn",
    ) -> Vectors | EmbedResult:
        """As `Client.embed`, without http addresses; `tokens` of the result is not counted.

        Raises:
            ClientError: with on_error "fail", the first bad input.
        """
        items = sources(texts, images)
        vectors = np.full((len(items), self.dim), np.nan, dtype=np.float32)
        failed: dict[int, errors.ClientError] = {}
        loaded: dict[type[Text] | type[ImageBytes], dict[int, Any]] = {Text: {}, ImageBytes: {}}
        for item in items:
            try:
                value = _loaded(item)
            except errors.ClientError as error:
                failed[item.index] = error
            else:
                loaded[type(value)][item.index] = value.text if isinstance(value, Text) else value.data
        is_strict = on_unknown == "error"
        weak: list[int] = []
        for given, run in (
            (loaded[Text], self._here().embed_texts),
            (loaded[ImageBytes], self._here().embed_images),
        ):
            if given:
                places = list(given)
                found: OfflineOutcome = run(list(given.values()), normalize=normalize, is_strict=is_strict)
                weak += [places[position] for position in found.weak]
                for index, outcome in zip(places, found.outcomes, strict=True):
                    if isinstance(outcome, Exception):
                        detail = ErrorDetail(message=str(outcome), type=_TYPE, code=outcome.code)
                        failed[index] = item_error(detail, index)
                    else:
                        vectors[index] = outcome
        if failed and on_error == "fail":
            raise failed[min(failed)]
        result = EmbedResult(
            vectors=vectors,
            errors=dict(sorted(failed.items())),
            identity=ModelIdentity(model=self.model, fingerprint=self.fingerprint, space=self.space, dim=self.dim),
            texts=len(loaded[Text]),
            images=len(loaded[ImageBytes]),
            tokens=0,
            warnings=_said(weak),
        )
        return result if on_error == "item" else vectors

    def _here(self) -> OfflineModel:
        """The sessions of this process: those of a parent have threads that were not forked."""
        if os.getpid() != self._pid:
            self._opened, self._pid = _open(self.model, **self._options), os.getpid()
        return self._opened


def _open(model: str | None, **options: Any) -> OfflineModel:
    """The process's own model of these arguments; opened by one thread. Raises ModuleNotFoundError, with the remedy."""
    try:
        from service.engine.offline import resolve
    except ModuleNotFoundError as error:
        remedy = "a model in this process needs pip install 'clipworks[serve]'"
        raise ModuleNotFoundError(f"{error}: {remedy}", name=error.name) from error
    store = options["store"]
    with _opening:
        reference = resolve(model, None if store is None else Path(store))
        return _opened_once(os.getpid(), reference, **options)


@lru_cache(maxsize=_OPENED)
def _opened_once(
    pid: int,
    reference: str,
    *,
    store: str | None,
    kinds: tuple[Kind, ...],
    threads: int,
    batch_size: int,
    precision: Precision | None,
    device: Device,
) -> OfflineModel:
    from service.engine.offline import open_offline

    return open_offline(
        reference,
        None if store is None else Path(store),
        encoders=[f"{kind}_encoder" for kind in dict.fromkeys(kinds)],  # pyright: ignore[reportArgumentType]
        precision=precision,
        device=device,
        threads=threads,
        batch_size=batch_size,
    )


def _loaded(item: InputSource) -> Text | ImageBytes:
    """Raises UnreadableInput."""
    value = item.load()
    if isinstance(value, ImageAddress):
        raise errors.UnreadableInput(f"{value.url[:200]!r} is an address: fetch it first", index=item.index)
    return value


def _said(weak: Sequence[int]) -> list[str]:
    """What a server says of inputs of which the model knows nothing; a Python warning as well."""
    from service.engine.offline import said_of

    sentences = said_of(sorted(weak))
    for sentence in sentences:
        warnings.warn(sentence, stacklevel=3)
    return sentences
