"""Parts shared by all tasks on real data: their interface, an encoder that counts what it encodes, and the result."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from evaluation.encoder import Encoder, Shown, Vectors
from evaluation.metrics import normalize
from evaluation.probe_results import Control, ProbeResult, RunKey, result_rows
from evaluation.probes.priors import BestPrior
from evaluation.probes.rows import ProbeRow
from evaluation.shuffling import shuffled
from evaluation.standard.photographs import Photograph, name_the_broken
from evaluation.suites import Step, Tell

Item = TypeVar("Item")
_BATCH = 32


class Task(Protocol):
    """A set of real data and what is asked of it. `name`: its specification; `kind`: what it is a case of."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    def key(self, encoder: Encoder) -> RunKey: ...
    def measure(self, encoder: Encoder, *, progress: Tell | None = None) -> ProbeResult:
        """Raises:
        ValueError: a picture that cannot be read, or vectors that cannot be compared.
        """
        ...


class Asking:
    """An encoder that tells how far it is. `pictures`, `texts`: how many different ones there will be."""

    def __init__(self, encoder: Encoder, kind: str, *, pictures: int, texts: int, progress: Tell | None) -> None:
        self.encoder = encoder
        self.pictures, self.texts = pictures, texts
        self._kind, self._progress, self._done = kind, progress, 0
        self._known: dict[str, NDArray[np.float32]] = {}
        self._add(0)

    def image_vectors(self, photographs: Sequence[Photograph]) -> Vectors:
        """Unit float32 [n, D]; equal photographs are encoded once."""
        return self._distinct(photographs, self._encode_images, seed=0)

    def drawn_vectors(self, pictures: Iterable[Shown]) -> Vectors:
        """Unit float32 [n, D] of at least one picture; they are made while others are encoded."""
        parts: list[Vectors] = []
        left = iter(pictures)
        while part := list(islice(left, _BATCH)):
            parts.append(_checked(self.encoder.encode_images(part), len(part)))
            self._add(len(part))
        return np.concatenate(parts)

    def told(self, count: int) -> None:
        """So many more are done that others encoded."""
        self._add(count)

    def text_vectors(self, texts: Sequence[str]) -> Vectors:
        """Unit float32 [n, D]; equal texts are encoded once, also over several calls."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        if missing:
            found = self._distinct(missing, self.encoder.encode_texts, seed=1)
            self._known.update(zip(missing, found, strict=True))
        return np.stack([self._known[text] for text in texts])

    def _encode_images(self, part: Sequence[Photograph]) -> Vectors:
        shown = [one.shown() for one in part]
        try:
            return self.encoder.encode_images(shown)
        except Exception:
            name_the_broken(part)
            raise

    def _distinct(self, items: Sequence[Item], encode: Callable[[Sequence[Item]], Vectors], *, seed: int) -> Vectors:
        """Sent in a shuffled order: those of one class, and a picture and its caption, lie side by side on disk, and
        vectors that only told when they were asked for would find each other."""
        seen = dict.fromkeys(items)
        sent, parts = shuffled(list(seen), (seed, len(self._known))), []
        for start in range(0, len(sent), _BATCH):
            part = sent[start : start + _BATCH]
            parts.append(_checked(encode(part), len(part)))
            self._add(len(part))
        at = {item: place for place, item in enumerate(sent)}
        return np.concatenate(parts)[[at[item] for item in items]]

    def _add(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(Step(probe=self._kind, done=self._done, total=self.pictures + self.texts))


def run_key(task: Task, encoder: Encoder, *, asked: str, seed: int = 0) -> RunKey:
    """asked: the digest of the data. Pictures are sent as they are, so no side in pixels is part of the key."""
    return RunKey(
        probe=task.kind,
        fingerprint=encoder.fingerprint,
        space=encoder.space,
        suite=f"{task.name} (data {asked[:16]})",
        seed=seed,
        size_px=0,
    )


def joined(
    key: RunKey,
    asking: Asking,
    rows: Sequence[ProbeRow],
    *,
    asked: str,
    blind: Sequence[ProbeRow] | None = None,
    priors: Sequence[BestPrior | None] = (),
    notes: Sequence[str] = (),
) -> ProbeResult:
    controls: Mapping[Control, Sequence[ProbeRow] | None] = {"blind": blind}
    return ProbeResult(
        key=key,
        encoder=asking.encoder.name,
        pictures=asking.pictures,
        texts=asking.texts,
        rows=result_rows(rows, controls, priors),
        notes=tuple(notes),
        questions=asked,
    )


def unasked(key: RunKey, encoder: Encoder, reason: str) -> ProbeResult:
    """A task that says nothing about this encoder."""
    return ProbeResult(key=key, encoder=encoder.name, pictures=0, texts=0, rows=(), not_applicable=reason)


def digest(parts: Iterable[object]) -> str:
    """sha256 over names, sizes and texts: two encoders with the same digest were asked the same."""
    found = hashlib.sha256()
    for part in parts:
        found.update(f"{part}\n".encode())
    return found.hexdigest()


def _checked(vectors: NDArray[np.floating], count: int) -> Vectors:
    if vectors.ndim != 2 or len(vectors) != count:
        raise ValueError(f"the encoder answered {vectors.shape} for {count} inputs, expected ({count}, D)")
    if not np.isfinite(vectors).all():
        raise ValueError("the encoder answered NaN or infinity")
    return normalize(vectors)
