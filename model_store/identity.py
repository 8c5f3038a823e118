"""Names of encoders and of the spaces their vectors live in: what makes two vectors comparable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from model_store.manifest import FileEntry, Fingerprint, ImageSpec, TextSpec

_CHUNK_BYTES = 1 << 20


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def spec_digest(spec: BaseModel) -> str:
    """Hex digest of a spec's canonical JSON (every field, defaults included, keys sorted)."""
    text = json.dumps(spec.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(
    weights: Iterable[tuple[str, NDArray[np.floating]]],
    spec: ImageSpec | TextSpec,
    recipe: str,
    tokenizer: bytes | None = None,
) -> str:
    """Identity of one encoder: fp32 weights by name, how its input is made, and the graph recipe's version.

    Two exports of the same encoder (other precision, other exporter build) share it; a changed crop rule does not.
    """
    digest = hashlib.sha256()
    for part in (recipe, spec_digest(spec), hashlib.sha256(tokenizer or b"").hexdigest()):
        digest.update(part.encode() + b"\0")
    for part in _weight_bytes(weights):
        digest.update(part)
    return digest.hexdigest()


def adapted_fingerprint(
    encoder: str | None, weights: Iterable[tuple[str, NDArray[np.floating]]], *, normalized: bool, recipe: str
) -> str:
    """Identity of an encoder with an adapter behind it; `normalized`: the adapter takes unit vectors."""
    digest = hashlib.sha256(f"adapter\0{encoder}\0{normalized}\0{recipe}\0".encode())
    for part in _weight_bytes(weights):
        digest.update(part)
    return digest.hexdigest()


def space_of(encoders: Fingerprint) -> str:
    """The space that a base model mints: its two encoders make one."""
    return hashlib.sha256(f"space\0{encoders.image}\0{encoders.text}".encode()).hexdigest()


def build_of(files: Sequence[FileEntry]) -> str:
    """Identity of the files really loaded: changes with precision and exporter, unlike the fingerprint."""
    lines = sorted(f"{entry.path}\0{entry.sha256}" for entry in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _weight_bytes(weights: Iterable[tuple[str, NDArray[np.floating]]]) -> Generator[bytes]:
    """Names, shapes and values in fp32, by name."""
    for name, array in sorted(weights, key=lambda item: item[0]):
        values = np.ascontiguousarray(array, dtype="<f4")
        yield f"{name}\0{values.shape}\0".encode()
        yield values.tobytes()
