"""Processes that turn encoded bytes into prepared arrays: fair between requests, and killed when an image is slow."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from model_store.errors import ImageTooLarge, InputError, InvalidImage
from model_store.manifest import DenseSpec, ImageSpec
from model_store.modality.image import DECODE_BYTES_PER_PIXEL, DecodeLimits, declared_pixels
from service.decoding.queue import FairQueue
from service.decoding.worker import ABANDONED_S, DecodeWorker, Framed, WorkerDied, WorkerLate
from service.faults import DeadlinePassed, ServiceNotReady, TooManyItems
from service.logs import of_no_request
from service.timing import Budget, Deadline

log = logging.getLogger("clipworks.decode")
T = TypeVar("T")
_RESTART_PAUSE_S = 1.0
_IMAGE_FIELDS = {"height_px", "width_px", "resize_mode", "interpolation", "fill"}


@dataclass(eq=False)
class _Job:
    """started: when a process took it, on the clock of `entered`."""

    data: bytes
    frame: Mapping[str, Any]
    deadline: Deadline
    answer: asyncio.Future[Framed]
    context: Context = field(default_factory=copy_context)  # of its request, for the log
    entered: float = field(default_factory=time.perf_counter)
    started: float | None = None

    @property
    def is_over(self) -> bool:
        return self.answer.done() or self.deadline.expired


class DecodePool:
    """Up to `workers` decode processes, started as they are needed, and as many threads for other work of a core.

    timeout_s: what one image may take; its process is killed then, and replaced. memory_bytes: of all images that are
    being decoded at one time, counted at 16 bytes a pixel; those of up to SMALL_PX do not wait for it. One of several
    processes takes no image of more than HUGE_PX, so that ordinary ones never wait for all of them.
    max_request_pixels: of all images of one request.
    All methods belong to the event loop's thread.
    """

    def __init__(
        self, *, workers: int, limits: DecodeLimits, timeout_s: float, memory_bytes: int, max_request_pixels: int
    ) -> None:
        self.limits = limits
        self.timeout_s = timeout_s
        self.max_request_pixels = max_request_pixels
        self._workers = workers
        self._queue: FairQueue[_Job] = FairQueue(
            max_pixels=memory_bytes // DECODE_BYTES_PER_PIXEL, max_huge=max(1, workers - 1)
        )
        self._slots: list[asyncio.Task[None]] = []
        self._idle: deque[asyncio.Future[None]] = deque()
        self._fault: str | None = None
        self._closed = False
        self._first = asyncio.Event()  # a process has started, or failed to
        self._threads = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="work")

    async def begin(self) -> None:
        """Start the first process, so that the first image need not wait for it.

        Raises:
            ServiceNotReady: it does not start.
        """
        self._add_slot()
        await self._first.wait()
        if self._fault:
            raise ServiceNotReady(self._fault)

    def fault(self) -> str | None:
        """Why no image can be decoded now, or None; it is tried again each second."""
        return self._fault

    def check_request(self, images: Iterable[bytes]) -> int:
        """Look at the headers of a request's images, before any work is done; the pixels of the largest.

        Raises:
            TooManyItems: together they have more pixels than one request may bring.
        """
        total = largest = 0
        for data in images:
            try:
                pixels = declared_pixels(data, self.limits)
            except InputError:
                continue  # refused by itself, in its place
            total, largest = total + pixels, max(largest, pixels)
        if total > self.max_request_pixels:
            raise TooManyItems(
                f"the images of this request have {total} pixels together, "
                f"the limit is {self.max_request_pixels} (CLIPWORKS_MAX_REQUEST_PIXELS); send fewer at a time"
            )
        return largest

    async def prepare(self, data: bytes, spec: ImageSpec, budget: Budget) -> NDArray[np.uint8]:
        """Decode and prepare one image to uint8 [H, W, 3].

        Raises:
            InputError: the image is refused (see `model_store.modality.image.decode`), or takes too long.
            DeadlinePassed: the deadline passed before it was done.
        """
        return (await self.prepare_framed(data, spec, budget, with_thumbnail=False)).pixels

    async def prepare_framed(self, data: bytes, spec: ImageSpec, budget: Budget, *, with_thumbnail: bool) -> Framed:
        """As `prepare`; with_thumbnail: and a small one for people, of the same decoded picture. Raises as it."""
        frame = {"dense": False, "spec": spec.model_dump(mode="json", include=_IMAGE_FIELDS)}
        return await self._decoded(data, {**frame, "thumbnail": with_thumbnail}, budget)

    async def thumbnail(self, data: bytes, budget: Budget) -> bytes:
        """A small picture (WebP) of an encoded one, within the same limits. Raises as `prepare`."""
        return (await self._decoded(data, {"dense": False, "spec": None, "thumbnail": True}, budget)).thumbnail

    async def prepare_dense(self, data: bytes, spec: DenseSpec, short_px: int | None, budget: Budget) -> Framed:
        """Decode and prepare a whole picture for the dense encoder. Raises as `prepare`."""
        frame = {"dense": True, "spec": spec.model_dump(mode="json"), "short_px": short_px}
        return await self._decoded(data, frame, budget)

    async def run(self, work: Callable[[], T], stage: str, budget: Budget) -> T:
        """Do work that holds a core for a while in a thread of this process; counted as `stage` and `<stage>_wait`.

        Nothing can stop it, so it looks at the deadline itself.

        Raises:
            DeadlinePassed: it was still waiting for a thread when the deadline passed.
        """

        def timed() -> tuple[T, float, float]:
            started = time.perf_counter()
            budget.check()
            return work(), started, time.perf_counter()

        entered = time.perf_counter()
        done, started, ended = await asyncio.get_running_loop().run_in_executor(self._threads, timed)
        budget.timings.add(f"{stage}_wait", started - entered, ended=started)
        budget.timings.add(stage, ended - started, ended=ended)
        return done

    async def close(self) -> None:
        """End all processes; what waits is refused."""
        self._closed = True
        for slot in self._slots:
            slot.cancel()
        await asyncio.gather(*self._slots, return_exceptions=True)
        self._slots.clear()
        for job in self._queue.empty():
            _fail(job, ServiceNotReady("the server is stopping"))
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _decoded(self, data: bytes, frame: Mapping[str, Any], budget: Budget) -> Framed:
        if self._closed or self._fault:
            raise ServiceNotReady(self._fault or "the server is stopping")
        pixels = declared_pixels(data, self.limits)
        job = _Job(data, frame, budget, asyncio.get_running_loop().create_future())
        self._queue.put(budget.timings, pixels, job)
        self._wake()
        try:
            framed = await job.answer
        finally:
            job.answer.cancel()
            job.data = b""  # its place in the queue may outlive the request
        started = job.started or job.entered
        budget.timings.add("decode_wait", started - job.entered, ended=started)
        budget.timings.add("decode", time.perf_counter() - started)
        return framed

    def _wake(self) -> None:
        """One more process for what waits: an idle one, or a new one as long as there may be more."""
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        if len(self._slots) < self._workers:
            self._add_slot()

    def _add_slot(self) -> None:
        loop = asyncio.get_running_loop()
        name = f"decode {len(self._slots)}"
        self._slots.append(loop.create_task(self._serve(), name=name, context=of_no_request()))

    async def _serve(self) -> None:
        """One process after the other, and its jobs."""
        worker = None
        try:
            while True:
                if worker is None or not worker.alive:
                    worker = await self._new_worker(worker)
                taken = self._queue.take()
                if taken is None:
                    waiter = asyncio.get_running_loop().create_future()
                    self._idle.append(waiter)
                    await waiter
                    continue
                job, pixels = taken
                try:
                    await self._answer(worker, job)
                finally:
                    self._queue.done(pixels)
                    if len(self._queue):
                        self._wake()
        finally:
            if worker is not None:
                await worker.stop()

    async def _new_worker(self, old: DecodeWorker | None) -> DecodeWorker:
        if old is not None:
            await old.stop()
        while True:
            try:
                worker = await DecodeWorker.start(self.limits)
            except WorkerDied as error:
                self._fault = str(error)
                self._first.set()
                log.error("%s; trying again in %g s", error, _RESTART_PAUSE_S)
                await asyncio.sleep(_RESTART_PAUSE_S)
            else:
                self._fault = None
                self._first.set()
                return worker

    async def _answer(self, worker: DecodeWorker, job: _Job) -> None:
        job.started = time.perf_counter()
        remaining_s = job.deadline.remaining_s()
        limit_s = self.timeout_s if remaining_s is None else min(self.timeout_s, remaining_s + ABANDONED_S)
        try:
            framed = await worker.ask(job.data, job.frame, limit_s=limit_s, abandoned=job.answer)
        except InputError as error:
            _fail(job, error)
        except WorkerLate:
            job.context.run(log.warning, "an image took more than %.1f s to decode, its process was killed", limit_s)
            _fail(job, self._late(limit_s))
        except WorkerDied as error:
            job.context.run(log.warning, "%s, while decoding an image", error)
            _fail(job, InvalidImage("the decoder broke down over this image"))
        except Exception:  # whatever it is, the process is replaced and its slot goes on
            job.context.run(log.exception, "a decode process gave an answer that makes no sense")
            await worker.stop()
            _fail(job, InvalidImage("the decoder broke down over this image"))
        except asyncio.CancelledError:
            _fail(job, ServiceNotReady("the server is stopping"))
            raise
        else:
            if not job.answer.done():
                job.answer.set_result(framed)

    def _late(self, limit_s: float) -> Exception:
        if limit_s < self.timeout_s:
            return DeadlinePassed("the request's deadline passed while this image was decoded")
        return ImageTooLarge(
            f"this image took more than {self.timeout_s:g} s to decode, the limit (CLIPWORKS_DECODE_TIMEOUT_S)"
        )


def _fail(job: _Job, error: Exception) -> None:
    if not job.answer.done():
        job.answer.set_exception(error)
