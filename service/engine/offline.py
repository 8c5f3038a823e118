"""An opened model without an event loop: inputs in, vectors out, in the thread of the caller (clipworks.batch).

What opens a model, proves, prepares, stacks and finishes is the server's own. What guards a server from its callers is
left out: queues, deadlines, and decoding in processes of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from model_store.errors import ArtifactNotFound, ClipworksError, GraphError, InputError, InvalidImage
from model_store.manifest import Precision, Role
from model_store.modality.image import DecodeLimits, decode, prepare
from model_store.session import Device
from model_store.store import Store
from service.engine.opening import EngineSettings
from service.engine.running import OpenedModel, open_model
from service.engine.stacking import EqualShapes, Stacking
from service.engine.vectors import KNOWS_NOTHING, Vector, finish, is_zero, unknown_inputs
from service.faults import NoDirection, RunFailed

Row = NDArray[Any]
Given = TypeVar("Given")


@dataclass(frozen=True)
class OfflineOutcome:
    """`outcomes` in the order of the inputs: a float32 vector [D], or why there is none.

    weak: indices of inputs of which the model knows nothing; see service.tasks.pipeline.EmbedOutcome.
    """

    outcomes: list[Vector | ClipworksError]
    weak: list[int]


def said_of(weak: Sequence[int]) -> list[str]:
    """What a server says of inputs of which the model knows nothing, by their indices."""
    return unknown_inputs([f"inputs[{index}]" for index in weak])


class OfflineModel:
    """Encoders of one artifact that reproduced its golden cases. May be used from several threads.

    limits: of an encoded picture.
    """

    def __init__(self, opened: OpenedModel, *, batch_size: int, limits: DecodeLimits) -> None:
        self.reference = opened.artifact.reference
        self.space = opened.artifact.manifest.space
        self.dim = opened.artifact.manifest.dim
        self.fingerprint = opened.artifact.manifest.fingerprint
        self._opened = opened
        self._batch_size = batch_size
        self._limits = limits
        self._token_rows = opened.token_rows()

    def embed_images(self, images: Sequence[bytes], *, normalize: bool, is_strict: bool) -> OfflineOutcome:
        """Vectors of encoded pictures. is_strict: one of which the model knows nothing gets NoDirection."""
        spec = self._opened.artifact.image_spec
        if spec is None or "image_encoder" not in self._opened.towers:
            raise ArtifactNotFound(f"{self.reference} was opened without an image encoder")

        def prepared(data: bytes) -> Row:
            try:
                return prepare(decode(data, self._limits), spec)
            except InputError:
                raise
            except (Exception, MemoryError) as error:
                raise InvalidImage(f"image cannot be prepared ({type(error).__name__})") from error

        outcomes: list[Vector | ClipworksError] = []
        for start in range(0, len(images), self._batch_size):  # prepared pictures of one run are held at a time
            rows = [_tried(prepared, data) for data in images[start : start + self._batch_size]]
            outcomes += self._encoded("image_encoder", rows, EqualShapes())
        return _finished(outcomes, [True] * len(outcomes), normalize=normalize, is_strict=is_strict)

    def embed_texts(self, texts: Sequence[str], *, normalize: bool, is_strict: bool) -> OfflineOutcome:
        """Vectors of texts; otherwise as `embed_images`."""
        token_rows = self._token_rows
        if token_rows is None or "text_encoder" not in self._opened.towers:
            raise ArtifactNotFound(f"{self.reference} was opened without a text encoder")
        rows = [_tried(token_rows.row, text) for text in texts]
        known = [isinstance(row, ClipworksError) or token_rows.tokenizer.knows(row.tolist()) for row in rows]
        outcomes = self._encoded("text_encoder", rows, token_rows.stacking)
        return _finished(outcomes, known, normalize=normalize, is_strict=is_strict)

    def _encoded(
        self, role: Role, rows: Sequence[Row | ClipworksError], stacking: Stacking[Row]
    ) -> list[Vector | ClipworksError]:
        """Rows that may share a run are neighbours once they are sorted by length."""
        tower = self._opened.towers[role]
        most = self._batch_size if tower.batch_invariant else 1
        good = [(index, row) for index, row in enumerate(rows) if not isinstance(row, ClipworksError)]
        found: dict[int, Vector | ClipworksError] = {
            index: row for index, row in enumerate(rows) if isinstance(row, ClipworksError)
        }
        waiting = deque(sorted(good, key=lambda each: len(each[1])))
        while waiting:
            run = [waiting.popleft()]
            while waiting and len(run) < most and stacking.joins(run[0][1], waiting[0][1]):
                run.append(waiting.popleft())
            vectors = _in_halves(tower, stacking, [row for _, row in run])
            found |= {index: vector for (index, _), vector in zip(run, vectors, strict=True)}
        return [found[index] for index in range(len(rows))]


def resolve(model: str | None, store: Path | None) -> str:
    """name@version of a model of this store, and of those shipped with the package.

    model: name or name@version; None: the one that a server of this store would take.

    Raises:
        ArtifactError: there is no such model, or its manifest is not what was published.
    """
    opened = Store(store)
    name = model or opened.default_name()
    if name is None:
        raise ArtifactNotFound(f"no model was named, and {store or 'the store'} has no default")
    return opened.open(name).reference


def open_offline(
    reference: str,
    store: Path | None,
    *,
    encoders: Sequence[Role],
    precision: Precision | None,
    device: Device,
    threads: int,
    batch_size: int,
) -> OfflineModel:
    """Open encoders of an artifact and prove them on its golden cases. A picture may be what a server takes by default.

    Raises:
        ArtifactError: there is no such model, or it cannot be served (integrity, provider, golden cases).
    """
    settings = EngineSettings(
        device=device,
        precision=precision,
        intra_threads=threads,
        spinning=False,
        max_batch_images=batch_size,
        max_batch_texts=batch_size,
        max_queue_items=batch_size,
        probe_first=False,  # a crash ends one process of a job, which starts another
    )
    opened = open_model(Store(store).open(reference), settings, only=encoders)
    return OfflineModel(opened, batch_size=batch_size, limits=DecodeLimits())


def _tried(work: Callable[[Given], Row], given: Given) -> Row | ClipworksError:
    try:
        return work(given)
    except ClipworksError as error:
        return error


def _in_halves(
    run: Callable[[Row], Row], stacking: Stacking[Row], rows: Sequence[Row]
) -> list[Vector | ClipworksError]:
    """One vector for each row; a run that ONNX Runtime refuses is repeated in halves, so that a bad row fails alone."""
    try:
        vectors = run(stacking.stack(rows))
    except GraphError as error:
        if len(rows) == 1:
            return [RunFailed(f"the model failed on this item: {error}")]
        middle = len(rows) // 2
        return [*_in_halves(run, stacking, rows[:middle]), *_in_halves(run, stacking, rows[middle:])]
    failed = RunFailed("the model gave a value that is not finite for this item")
    return [vector if np.isfinite(vector).all() else failed for vector in vectors]


def _finished(
    outcomes: Sequence[Vector | ClipworksError], known: Sequence[bool], *, normalize: bool, is_strict: bool
) -> OfflineOutcome:
    finished: list[Vector | ClipworksError] = []
    weak: list[int] = []
    for index, (outcome, knows) in enumerate(zip(outcomes, known, strict=True)):
        if isinstance(outcome, ClipworksError):
            finished.append(outcome)
            continue
        vector = finish(outcome, normalize=normalize)
        if knows and not is_zero(vector):
            finished.append(vector)
        elif is_strict:
            finished.append(NoDirection(KNOWS_NOTHING))
        else:
            weak.append(index)
            finished.append(vector)
    return OfflineOutcome(finished, weak)
