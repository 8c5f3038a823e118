"""Threads that turn encoded bytes into prepared arrays, away from the event loop (Pillow releases the GIL)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_store.manifest import ImageSpec
from model_store.modality.image import DecodeLimits, decode, prepare
from service.timing import Deadline, Timings

T = TypeVar("T")


class DecodePool:
    """`workers` threads behind a bytes -> array interface; a process pool could take their place."""

    def __init__(self, *, workers: int, limits: DecodeLimits) -> None:
        self.limits = limits
        self._executor = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="decode")

    async def prepare(self, data: bytes, spec: ImageSpec, deadline: Deadline, timings: Timings) -> NDArray[np.uint8]:
        """Decode and prepare one image to uint8 [H, W, 3]. Raises as `decoded`."""
        return await self.decoded(data, lambda image: prepare(image, spec), deadline, timings)

    async def decoded(self, data: bytes, finish: Callable[[Image.Image], T], deadline: Deadline, timings: Timings) -> T:
        """Decode one image and `finish` it in the same thread.

        Raises:
            InputError: the image is refused (see `decode`).
            DeadlineExceeded: it was still waiting for a thread when the deadline passed.
        """
        return await self.run(lambda: finish(decode(data, self.limits)), "decode", deadline, timings)

    async def run(self, work: Callable[[], T], stage: str, deadline: Deadline, timings: Timings) -> T:
        """Do work that holds a core for a while in one of the threads; counted as `stage` and `<stage>_wait`.

        Raises:
            DeadlineExceeded: it was still waiting for a thread when the deadline passed.
        """

        def timed() -> tuple[T, float, float]:
            started = time.perf_counter()
            deadline.check()
            return work(), started, time.perf_counter()

        entered = time.perf_counter()
        done, started, ended = await asyncio.get_running_loop().run_in_executor(self._executor, timed)
        timings.add(f"{stage}_wait", started - entered)
        timings.add(stage, ended - started)
        return done

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
