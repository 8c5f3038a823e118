"""The dense encoder of a model: opened by the first request that needs it, proven, then behind a batcher."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from model_store.artifact import Artifact
from model_store.errors import RoleNotFound
from model_store.graph import require_device
from model_store.manifest import Role
from model_store.modality.image import dense_size
from model_store.probe import ProbeLog
from model_store.proving import Proof
from model_store.regions import load_scipy
from model_store.towers import DenseTower, DenseVectors, open_dense_tower
from service.engine.batcher import Batcher, BatchObserver
from service.engine.opening import EngineSettings, Owned, choose_precision, opened_in_time, probe_graphs
from service.engine.stacking import EqualPictures
from service.faults import DeadlinePassed, ServiceNotReady
from service.timing import Deadline

ROLE: Role = "dense_encoder"
_BEHIND: tuple[Role, ...] = ("dense_adapter", "image_adapter")
_TRY_AGAIN_S = 10.0  # what could not be opened is not opened again for every request


class DenseSession:
    """Opens the dense encoder once, whoever asks first; requests that come meanwhile wait. Belongs to an event loop."""

    def __init__(self, artifact: Artifact, settings: EngineSettings, observer: BatchObserver) -> None:
        self.opened: Batcher | None = None
        self._artifact = artifact
        self._settings = settings
        self._observer = observer
        self._closed: str | None = None
        self._opening: asyncio.Future[Batcher] | None = None
        self._task: asyncio.Task[None] | None = None
        self._failed_at = -_TRY_AGAIN_S

    async def batcher(self, deadline: Deadline) -> Batcher:
        """The batcher that gives `packed` rows; `unpacked` takes one apart.

        Raises:
            ArtifactError: it cannot be served (integrity, a crash in the probe, provider, goldens).
            ServiceNotReady: the model was unloaded.
            DeadlinePassed: opening goes on, a later request will find it.
        """
        if self._closed:
            raise ServiceNotReady(f"{self._artifact.reference}/{ROLE} is not running: {self._closed}")
        if self.opened is not None:
            return self.opened
        if self._opening is None or (self._opening.done() and time.monotonic() > self._failed_at + _TRY_AGAIN_S):
            self._opening = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._open(self._opening), name=f"open {self._artifact.reference}/{ROLE}")
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                return await asyncio.shield(self._opening)
        except TimeoutError as error:
            raise DeadlinePassed("the deadline passed while the dense encoder was being opened") from error

    async def close(self, reason: str) -> None:
        """Stop it and fail whatever waits; what is still being opened is dropped."""
        self._closed = reason
        if self._opening is not None and not self._opening.done():
            _fail(self._opening, ServiceNotReady(f"{self._artifact.reference}/{ROLE} is not running: {reason}"))
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.opened is not None:
            await self.opened.close(reason)

    async def _open(self, waiting: asyncio.Future[Batcher]) -> None:
        try:
            tower = await opened_in_time(self._artifact, self._settings, open_dense)
        except Exception as error:
            self._failed_at = time.monotonic()
            if not waiting.done():
                _fail(waiting, error)
            return
        self.opened = Batcher(
            f"{self._artifact.reference}/{ROLE}",
            packing(tower),
            max_batch=self._settings.max_batch_images if tower.batch_invariant else 1,
            max_items=self._settings.max_queue_items,
            max_wait_s=self._settings.max_wait_s,
            observer=self._observer,
            stacking=EqualPictures(self._settings.max_batch_pixels),
        )
        if not waiting.done():
            waiting.set_result(self.opened)


def open_dense(artifact: Artifact, settings: EngineSettings) -> DenseTower:
    """Open the dense encoder and its adapters, and prove them; blocking, takes seconds.

    Raises:
        RoleNotFound: the artifact has none.
        ArtifactError: whatever is wrong with it (integrity, a crash in the probe, provider, goldens).
    """
    precision = choose_precision(artifact, ROLE, settings.precision, settings.device)
    found, spec = artifact.graph_spec(ROLE, precision), artifact.dense_spec
    if found is None or spec is None:
        raise RoleNotFound(f"{artifact.reference} has no {ROLE}")
    width, height = dense_size(1, 1, spec)
    feeds = {found[1].inputs[0].name: np.zeros((1, height, width, 3), dtype=np.uint8)}
    options, probed = replace(settings.session, prepack=settings.dense_prepack), ProbeLog(settings.probe_log)
    key = probed.key(f"{ROLE}/{artifact.build(settings.precision or 'fp32')}", options)
    if settings.probe_first and not probed.knows(key):
        behind: list[Owned] = [each for role in _BEHIND if (each := artifact.graph_spec(role, "fp32"))]
        deadline = Deadline.after(settings.load_timeout_s)
        probe_graphs([found], behind, options, deadline=deadline, stopping=settings.stopping, feeds=feeds)
        probed.remember(key)
    tower = open_dense_tower(artifact, precision, options)
    require_device(found[0], tower.encoder, feeds)
    Proof(artifact).check_dense(tower)
    load_scipy()  # here, in a thread that may take its time
    return tower


def packing(tower: DenseTower) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """The tower with one array for both outputs, as a batcher wants it: see `packed`."""
    return lambda batch: packed(tower(batch))


def packed(vectors: DenseVectors) -> NDArray[np.float32]:
    """float32 [B, rows + 1, columns, D]: one more row of cells, in whose first the pooled vector stands."""
    batch, _, columns, dim = vectors.positions.shape
    last = np.zeros((batch, 1, columns, dim), dtype=np.float32)
    last[:, 0, 0] = vectors.pooled
    return np.concatenate([vectors.positions, last], axis=1)


def unpacked(row: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One item of `packed`: positions [rows, columns, D] and the pooled vector [D]."""
    return row[:-1], row[-1, 0]


def _fail(waiting: asyncio.Future[Batcher], error: Exception) -> None:
    waiting.set_exception(error)
    waiting.exception()  # whoever still waits gets it too; without this a failure that nobody awaits complains
