"""Threads that turn encoded bytes into prepared arrays, away from the event loop (Pillow releases the GIL)."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from model_store.manifest import ImageSpec
from model_store.modality.image import DecodeLimits, decode, prepare
from service.timing import Deadline, Timings


class DecodePool:
    """`workers` threads behind a bytes -> array interface; a process pool could take their place."""

    def __init__(self, *, workers: int, limits: DecodeLimits) -> None:
        self.limits = limits
        self._executor = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="decode")

    async def prepare(self, data: bytes, spec: ImageSpec, deadline: Deadline, timings: Timings) -> NDArray[np.uint8]:
        """Decode and prepare one image to uint8 [H, W, 3].

        Raises:
            InputError: the image is refused (see `decode`).
            DeadlineExceeded: it was still waiting for a thread when the deadline passed.
        """
        entered = time.perf_counter()
        loop = asyncio.get_running_loop()
        array, started, ended = await loop.run_in_executor(self._executor, self._prepare, data, spec, deadline)
        timings.add("decode_wait", started - entered)
        timings.add("decode", ended - started)
        return array

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, data: bytes, spec: ImageSpec, deadline: Deadline) -> tuple[NDArray[np.uint8], float, float]:
        started = time.perf_counter()
        deadline.check()
        array = prepare(decode(data, self.limits), spec)
        return array, started, time.perf_counter()
