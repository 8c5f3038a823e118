"""The server's end of one decode process: start it, ask it, and kill it when an answer is late."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store.child import child_environment
from model_store.errors import ImageTooLarge, InputError, InvalidImage, UnsupportedImage
from model_store.modality.image import DecodeLimits

log = logging.getLogger("clipworks.decode")
_START_TIMEOUT_S = 60.0
ABANDONED_S = 0.5  # an image that nobody waits for any more: finishing it is cheaper than a new process, for so long
_MAX_LINE_BYTES = 2**16
_KEPT_BYTES = 2**20  # of the shared file, between two images
_MAX_SAID_BYTES = 2000  # of one line on stderr
_MAX_SAID_LINES = 100  # of one process
_LAST_WORDS_S = 1.0
_ERRORS: Mapping[str, type[InputError]] = {
    each.code: each for each in (InputError, InvalidImage, UnsupportedImage, ImageTooLarge)
}
# One process is one worker: no threads of its own, nothing on stderr but a crash.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


class WorkerDied(Exception):
    """The process ended by itself, or does not start; the message says how."""


class WorkerLate(Exception):
    """No answer in time; the process was killed."""


class Framed(NamedTuple):
    """Pixels uint8 [H, W, 3] as a spec says (0 x 0 without one), (width, height) of the upright original, and its
    thumbnail (WebP), empty where none was asked for."""

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    thumbnail: bytes = b""


class _Answers(asyncio.Protocol):
    """Lines that a process sends, one for each that it was sent; an empty one stands for its end."""

    def __init__(self) -> None:
        self._received = b""
        self._ended = False
        self._next: asyncio.Future[bytes] | None = None

    def next(self) -> asyncio.Future[bytes]:
        """The line that comes next. Its exception is ValueError when it is endless."""
        self._next = asyncio.get_running_loop().create_future()
        self._hand_over()
        return self._next

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._hand_over()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._hand_over()

    def _hand_over(self) -> None:
        waiting = self._next
        if waiting is None or waiting.done():
            return
        line, end, rest = self._received.partition(b"\n")
        if end:
            self._received = rest
            waiting.set_result(line)
        elif self._ended:
            waiting.set_result(b"")
        elif len(line) > _MAX_LINE_BYTES:
            waiting.set_exception(ValueError("the line of a decode process does not end"))


class _Said(asyncio.Protocol):
    """What a process writes to its stderr, as records of the log; a crash is all there should be."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._rest = b""
        self._lines = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:_MAX_SAID_BYTES]
        for line in lines:
            self._log(line)

    def connection_lost(self, exc: Exception | None) -> None:
        self._log(self._rest)
        if not self.ended.done():
            self.ended.set_result(None)

    def _log(self, line: bytes) -> None:
        self._lines += 1
        if line.strip() and self._lines <= _MAX_SAID_LINES:
            text = line[:_MAX_SAID_BYTES].decode(errors="replace").rstrip()
            log.warning("a decode process says: %s", text, extra={"fields": {"pid": self._pid}})


class DecodeWorker:
    """One process of service.decoding.child. Encoded bytes and pixels pass through a file in memory that both hold."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        link: asyncio.WriteTransport,
        answers: _Answers,
        said: tuple[asyncio.ReadTransport, _Said],
        memory: int,
    ) -> None:
        self._process = process
        self._link = link
        self._answers = answers
        self._said = said
        self._memory = memory
        self._open = True

    @classmethod
    async def start(cls, limits: DecodeLimits) -> DecodeWorker:
        """Raises WorkerDied: it cannot be started.

        Called in the thread of the event loop: the kernel ends the process with the thread that started it.
        """
        ours, theirs = socket.socketpair()
        memory = _memory_file()
        try:
            with theirs:
                arguments = [str(os.getpid()), str(theirs.fileno()), str(memory), json.dumps(asdict(limits))]
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "service.decoding.child", *arguments],
                    pass_fds=(theirs.fileno(), memory),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env=child_environment(**_ENVIRONMENT),
                )
        except OSError as error:
            ours.close()
            os.close(memory)
            raise WorkerDied(f"a decode process cannot be started: {error.strerror}") from error
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            said = await loop.connect_read_pipe(lambda: _Said(process.pid), process.stderr)
            link, answers = await loop.create_unix_connection(_Answers, sock=ours)
        except BaseException:  # cancelled: nobody else knows of the process
            process.kill()
            process.wait()
            ours.close()
            os.close(memory)
            raise
        worker = cls(process, link, answers, said, memory)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                greeting = await answers.next()
        except BaseException as error:
            await worker.stop()
            if isinstance(error, (TimeoutError, OSError)):
                raise WorkerDied(f"a decode process did not start ({type(error).__name__})") from error
            raise
        if not greeting:
            raise WorkerDied(f"a decode process did not start: {await worker.stop()}")
        return worker

    @property
    def alive(self) -> bool:
        return self._open and self._process.poll() is None

    async def ask(
        self, data: bytes, frame: Mapping[str, Any], *, limit_s: float, abandoned: asyncio.Future[Any]
    ) -> Framed:
        """Decode and frame one image.

        frame: what service.decoding.child._framed takes. abandoned: done when nobody waits for the answer any more.

        Raises:
            InputError: the image is refused.
            WorkerLate: no answer within limit_s. WorkerDied: the process ended.
        """
        try:
            os.pwrite(self._memory, data, 0)
            self._link.write(json.dumps({"bytes": len(data), "frame": frame, "limit_s": limit_s}).encode() + b"\n")
            line = await self._line(limit_s, abandoned)
            if not line:
                raise WorkerDied(f"the decode process ended: {await self.stop()}")
            answer = json.loads(line)
            if "error" in answer:
                raise _ERRORS.get(answer["error"], InputError)(answer["message"])
            width, height = answer["size"]
            pixels = self._pixels(answer["shape"], is_empty=frame["spec"] is None)
            thumbnail = self._thumbnail(int(answer["thumbnail_bytes"]), pixels.nbytes)
            return Framed(pixels, (int(width), int(height)), thumbnail)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            await self.stop()
            raise WorkerDied(f"the decode process cannot be talked to ({type(error).__name__})") from error
        finally:
            if self._open and os.fstat(self._memory).st_size > _KEPT_BYTES:
                os.ftruncate(self._memory, 0)

    async def stop(self) -> str:
        """Kill it, and say how it ended."""
        if not self._open:
            return "it was stopped"
        self._open = False
        self._process.kill()
        status = await asyncio.shield(asyncio.to_thread(self._process.wait))
        self._link.close()
        os.close(self._memory)
        pipe, said = self._said
        await asyncio.wait([said.ended], timeout=_LAST_WORDS_S)
        pipe.close()
        return f"signal {-status}" if status < 0 else f"status {status}"

    async def _line(self, limit_s: float, abandoned: asyncio.Future[Any]) -> bytes:
        loop = asyncio.get_running_loop()
        answer = self._answers.next()
        late_at = loop.time() + limit_s
        timer = loop.call_at(late_at, _give_up, answer)

        def hurry(_: asyncio.Future[Any]) -> None:
            nonlocal timer
            timer.cancel()
            timer = loop.call_at(min(late_at, loop.time() + ABANDONED_S), _give_up, answer)

        abandoned.add_done_callback(hurry)
        try:
            return await answer
        except WorkerLate:
            await self.stop()
            raise
        finally:
            abandoned.remove_done_callback(hurry)
            timer.cancel()

    def _pixels(self, shape: list[int], *, is_empty: bool) -> NDArray[np.uint8]:
        """Raises ValueError: the file does not hold so many, so that a broken process cannot make us allocate them."""
        rows, columns, channels = (int(each) for each in shape)
        if is_empty and rows == columns == 0:
            return np.empty((0, 0, 3), dtype=np.uint8)
        if min(rows, columns) < 1 or channels != 3 or rows * columns * 3 > os.fstat(self._memory).st_size:
            raise ValueError(f"shape {shape}")
        pixels = np.empty((rows, columns, 3), dtype=np.uint8)
        os.preadv(self._memory, [pixels.data.cast("B")], 0)
        return pixels

    def _thumbnail(self, size: int, offset: int) -> bytes:
        """Raises ValueError: the file does not hold so many bytes."""
        if not 0 <= size <= os.fstat(self._memory).st_size - offset:
            raise ValueError(f"a thumbnail of {size} bytes")
        return os.pread(self._memory, size, offset)


def _give_up(answer: asyncio.Future[bytes]) -> None:
    if not answer.done():
        answer.set_exception(WorkerLate())


def _memory_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("clipworks-decode")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
