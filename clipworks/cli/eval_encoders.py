"""Encoders that `clipworks eval` judges: an artifact or a checkpoint in this process, a server, or an OpenAI-compatible
endpoint.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from clipworks.cli.failures import RefusedError, UsageError
from clipworks.client import Client

if TYPE_CHECKING:
    from evaluation.encoder import ArtifactEncoder, OpenAIEncoder, ServerEncoder
    from model_store.manifest import Precision
    from training.encoder import TorchEncoder

    Judged = ArtifactEncoder | TorchEncoder | ServerEncoder | OpenAIEncoder

Dialect = Literal["clipworks", "jina", "infinity"]
_TIMEOUT_S = 120.0


@contextmanager
def opened(
    *,
    model: str | None,
    url: str | None,
    dialect: Dialect,
    precision: Precision | None,
    image_px: int | None,
    api_key: str | None,
    store: Path | None,
    checkpoint: Path | None = None,
) -> Generator[Judged]:
    """The encoder as long as the block. image_px: the side of drawn pictures, None for the encoder's own.

    Raises:
        UsageError: options that do not go together, or an address that is none.
        RefusedError: an OpenAI-compatible endpoint failed, in the block too.
    """
    if checkpoint is not None:
        if model is not None or url is not None or precision is not None:
            raise UsageError("--checkpoint is a model in this process, in fp32: leave --model, --url, --precision out")
        encoder = _of_checkpoint(checkpoint)
        encoder.image_px = image_px or encoder.image_px
        yield encoder
        return
    if url is None:
        if dialect != "clipworks":
            raise UsageError(f"--dialect {dialect} says how to speak to a server; give its --url too")
        encoder = _artifact(model, store, precision or "fp32")
        encoder.image_px = image_px or encoder.image_px
        yield encoder
        return
    if precision is not None:
        raise UsageError("--precision is for a model in this process; a server has chosen its own")
    if dialect == "clipworks":
        with _client(url, api_key) as client:
            encoder = _of_server(client, model)
            encoder.image_px = image_px or encoder.image_px
            yield encoder
        return
    if model is None:
        raise UsageError(f"--dialect {dialect}: say which model of {url} is asked: --model NAME")
    encoder = _of_endpoint(url, model, dialect, api_key, image_px)
    try:
        yield encoder
    except ConnectionError as error:
        raise RefusedError(str(error)) from error
    finally:
        encoder.close()


def _artifact(model: str | None, store: Path | None, precision: Precision) -> ArtifactEncoder:
    """CLIPWORKS_MODEL, as for the server, where no model is named; else the store's default."""
    from evaluation.encoder import open_artifact
    from model_store.store import Store

    found = Store(store)
    name = model or os.environ.get("CLIPWORKS_MODEL") or found.default_name()
    if not name:
        raise UsageError(f"which model? give --model NAME, of {', '.join(a.reference for a in found.list())}")
    return open_artifact(found.open(name), precision=precision)


def _of_checkpoint(folder: Path) -> TorchEncoder:
    """Raises UsageError: no checkpoint, or no torch to open it."""
    try:
        from training.opening import open_checkpoint
    except ModuleNotFoundError as error:
        raise UsageError(f"--checkpoint wants what trains: install clipworks[train] ({error})") from error
    try:
        return open_checkpoint(folder)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"--checkpoint {folder}: not a checkpoint that encodes ({error})") from error


def _client(url: str, api_key: str | None) -> Client:
    try:
        return Client(url, api_key=api_key, timeout_s=_TIMEOUT_S)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _of_server(client: Client, model: str | None) -> ServerEncoder:
    from evaluation.encoder import open_server

    try:
        return open_server(client, model=model)
    except ValueError as error:
        raise UsageError(f"--model: {error}") from error


def _of_endpoint(
    url: str, model: str, dialect: Literal["jina", "infinity"], api_key: str | None, image_px: int | None
) -> OpenAIEncoder:
    import httpx2

    from evaluation.encoder import OpenAIEncoder

    if not url.lower().startswith(("http://", "https://")):
        raise UsageError(f"--url {url}: expected http:// or https://")
    try:
        return OpenAIEncoder(url, model, dialect=dialect, api_key=api_key, image_px=image_px)
    except httpx2.InvalidURL as error:
        raise UsageError(f"--url {url}: {error}") from error
