"""Copies finished checkpoints to another place, a folder or an fsspec address (`s3://...`), beside the training.

A run does not wait for it and does not end with it: what cannot be copied is tried again, and said.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from fsspec.core import url_to_fs

from training.checkpoint import INFO_FILE

LATEST = "latest.json"
PAUSES_S = (1.0, 5.0)  # between three attempts
_log = logging.getLogger(__name__)


class Mirror:
    """`address/step-00000500/...` for checkpoints, and `address/latest.json`, which names the newest.

    A checkpoint's `checkpoint.json` comes last, and `latest.json` after it: who reads them finds whole checkpoints.
    Nothing is ever removed there. Where copying is slower than training, checkpoints in between are left out. Without
    an address nothing is copied.

    Raises:
        ValueError: fsspec cannot open the address, for want of a package, for example.
    """

    def __init__(self, address: str | None, *, pauses_s: Sequence[float] | None = None) -> None:
        self._address, self._pauses_s = address, PAUSES_S if pauses_s is None else pauses_s
        self._lock = threading.Lock()
        self._copying: Path | None = None
        self._next: Path | None = None
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mirror")
        if address is not None:
            try:
                self._files, self._root = url_to_fs(address)
            except (ImportError, ValueError) as error:
                raise ValueError(f"run.mirror {address}: {error}") from error

    def __enter__(self) -> Mirror:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what is on its way."""
        self._pool.shutdown()

    def send(self, folder: Path) -> None:
        """Copy the folder of a checkpoint in the background; it takes the place of one that still waits."""
        if self._address is None:
            return
        with self._lock:
            self._next = folder
        self._pool.submit(self._send_next)

    def in_use(self) -> set[Path]:
        """Folders that must stay: the one that is being copied and the one that waits."""
        with self._lock:
            return {each for each in (self._copying, self._next) if each is not None}

    def _send_next(self) -> None:
        with self._lock:
            self._copying, self._next = self._next, None
        if self._copying is not None:
            self._try(self._copying)
        with self._lock:
            self._copying = None

    def _try(self, folder: Path) -> None:
        for attempt, pause_s in enumerate((*self._pauses_s, None), start=1):
            try:
                self._copy(folder)
                break
            # Every file system has errors of its own, and none of them may end the run.
            except Exception as error:
                then = "the next checkpoint is tried anew" if pause_s is None else f"once more in {pause_s:g} s"
                what = f"{folder.name} was not copied to {self._address}"
                _log.warning("%s (attempt %d): %s: %s; %s", what, attempt, type(error).__name__, error, then)
                if pause_s is not None:
                    time.sleep(pause_s)

    def _copy(self, folder: Path) -> None:
        target = f"{self._root}/{folder.name}"
        self._files.makedirs(target, exist_ok=True)
        names = sorted(each.name for each in folder.iterdir() if each.name != INFO_FILE)
        for name in (*names, INFO_FILE):
            self._files.put_file(str(folder / name), f"{target}/{name}")
        self._files.pipe_file(f"{self._root}/{LATEST}", json.dumps({"folder": folder.name}).encode())
