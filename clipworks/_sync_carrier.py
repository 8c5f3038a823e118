"""Carries out the steps of a call for the blocking client: in the caller's thread, or several requests in a pool."""

from __future__ import annotations

import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

import httpx2

from clipworks import errors
from clipworks._calls import CallPlan
from clipworks._exchange import Answer, Broken, Call, Pause, Request, Send, Steps
from clipworks._progress import Progress, progress_bar
from clipworks._setup import Setup, lower_case

T = TypeVar("T")


class Stopped(Exception):
    """Another request of the same call has failed."""


class Carrier:
    """Sends what the steps of a call ask to send; may be used from several threads."""

    def __init__(self, setup: Setup, http: httpx2.Client) -> None:
        self._setup, self._http = setup, http

    def run(self, plan: CallPlan[T], progress: Progress) -> T:
        """All chunks, at most `concurrency` at a time; after the first error nothing more is sent."""
        stop = threading.Event()
        with progress_bar(plan.label, plan.total, shown=progress) as advance:
            plan.batch.done = advance
            workers = min(self._setup.calls.limits.concurrency, len(plan.chunks))
            if workers == 1:
                for chunk in plan.chunks:
                    self.drive(plan.batch.steps(chunk), stop)
                return plan.finish()
            with ThreadPoolExecutor(workers, thread_name_prefix="clipworks") as pool:
                futures = [pool.submit(self.drive, plan.batch.steps(chunk), stop) for chunk in plan.chunks]
                try:
                    wait(futures, return_when=FIRST_EXCEPTION)
                finally:
                    stop.set()
                    pool.shutdown(wait=False, cancel_futures=True)
        raised = [error for future in futures if not future.cancelled() and (error := future.exception())]
        for error in raised:
            if not isinstance(error, Stopped):
                raise error
        return plan.finish()

    def drive(self, steps: Steps[T], stop: threading.Event | None = None) -> T:
        """Carry out steps to their end.

        Raises:
            Stopped: `stop` was set before the next step.
        """
        stop = stop or threading.Event()
        while True:
            try:
                step = next(steps)
            except StopIteration as done:
                return done.value
            if stop.is_set():
                raise Stopped
            match step:
                case Send():
                    step.result = self._send(step.request)
                case Pause():
                    stop.wait(step.seconds)
                case Call():
                    step.run()

    def _send(self, request: Request) -> Answer | Broken:
        deadline = time.monotonic() + self._setup.timeout_s
        try:
            with self._http.stream(
                request.method, request.path, content=request.content, headers=dict(request.headers)
            ) as response:
                body = bytearray()
                for piece in response.iter_bytes():
                    body += piece
                    if time.monotonic() > deadline:
                        return self._setup.too_slow(request)
                return Answer(response.status_code, lower_case(response.headers), bytes(body))
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            return self._setup.broken(request, error)
        except httpx2.InvalidURL as error:
            raise errors.ConnectionFailed(f"{self._setup.url}{request.path}: {error}") from error
