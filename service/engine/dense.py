"""The dense encoder of a model: opened by the first request that needs it, proven, then behind a batcher."""

from __future__ import annotations

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
from service.engine.late import Late
from service.engine.opening import EngineSettings, Owned, choose_precision, opened_in_time, probe_graphs
from service.engine.stacking import EqualPictures
from service.timing import Deadline

ROLE: Role = "dense_encoder"
_BEHIND: tuple[Role, ...] = ("dense_adapter", "image_adapter")


class DenseSession(Late[Batcher]):
    """Opens the dense encoder once, whoever asks first; requests that come meanwhile wait. Belongs to an event loop."""

    def __init__(self, artifact: Artifact, settings: EngineSettings, observer: BatchObserver) -> None:
        name = f"{artifact.reference}/{ROLE}"

        async def opened() -> Batcher:
            tower = await opened_in_time(artifact, settings, open_dense)
            return Batcher(
                name,
                packing(tower),
                max_batch=settings.max_batch_images if tower.batch_invariant else 1,
                max_items=settings.max_queue_items,
                max_wait_s=settings.max_wait_s,
                observer=observer,
                stacking=EqualPictures(settings.max_batch_pixels),
            )

        super().__init__(name, opened, Batcher.close)

    async def batcher(self, deadline: Deadline) -> Batcher:
        """The batcher that gives `packed` rows; `unpacked` takes one apart. Raises as `get`."""
        return await self.get(deadline)


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
