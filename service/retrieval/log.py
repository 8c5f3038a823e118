"""The truth: one SQLite database, one thread that writes it, many connections that read it."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import apsw

from service.retrieval.database import open_reader, open_writer, run, translate, translated
from service.retrieval.errors import StorageFailed, StoreClosed
from service.retrieval.stopping import NEVER, Stop

log = logging.getLogger("clipworks.retrieval")
_CHECKPOINT_PAGES = 2000
_LOOK_S = 0.25  # between two looks at its stop of who waits for a connection
T = TypeVar("T")


@dataclass(eq=False)
class _Job:
    """One request: `work` inside the transaction, then `publish` of its result once it is on disk."""

    work: Callable[[apsw.Connection], Any]
    publish: Callable[[Any], None]
    gate: threading.Lock
    weight: int
    future: Future[Any] = field(default_factory=lambda: Future[Any]())
    result: Any = None


@dataclass(eq=False)
class _Control:
    """Something that only the writer thread may do, outside any transaction."""

    action: Callable[[], Any]
    future: Future[Any] = field(default_factory=lambda: Future[Any]())

    def run(self, path: Path) -> None:
        try:
            self.future.set_result(self.action())
        except Exception as error:  # the writer thread must outlive whatever goes wrong in one request
            self.future.set_exception(translate(error, path))


class Log:
    """Group commit: jobs that wait at the same time share one transaction and one fsync, each behind its own SAVEPOINT.

    Threads. The writer thread alone touches the writing connection; everybody else talks to it through a queue.
    It takes the gates of a group's collections (in one order, so two locks never cross) before COMMIT and keeps them
    until the last `publish`: whoever holds a collection's gate sees a database and an index of the same sequence.
    Reading connections are handed out one to a thread at a time from a queue, each inside its own read transaction.
    """

    def __init__(self, path: Path, *, vfs: str, readers: int, group_items: int, checkpoint_s: float) -> None:
        """Raises StoreCorrupt, StorageFull, StorageFailed."""
        self._path = path
        self._vfs = vfs
        self._group_items = group_items
        self._checkpoint_s = checkpoint_s
        self._jobs: queue.SimpleQueue[_Job | _Control | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        self._wal_pages = 0
        with translated(path):
            self._writer = self._connect()
            self._idle: queue.LifoQueue[apsw.Connection | None] = queue.LifoQueue()
            for _ in range(readers):
                self._idle.put(open_reader(path, vfs=vfs))
        self._readers = readers
        self._thread = threading.Thread(target=self._serve, name="retrieval-writer", daemon=True)
        self._thread.start()

    @property
    def path(self) -> Path:
        return self._path

    def files(self) -> list[Path]:
        """The database and what SQLite keeps beside it."""
        names = [self._path, *(self._path.with_name(self._path.name + end) for end in ("-wal", "-shm"))]
        return [path for path in names if path.exists()]

    def write(
        self,
        work: Callable[[apsw.Connection], T],
        *,
        publish: Callable[[T], None] = lambda _: None,
        gate: threading.Lock | None = None,
        weight: int = 1,
    ) -> T:
        """Run `work` in the writer thread, commit, publish, and only then return its result.

        What `work` raises undoes its own changes alone and is raised here.

        Raises:
            StoreClosed, StorageFull, StorageFailed, StoreCorrupt: nothing was applied.
        """
        return self._submit(_Job(work=work, publish=publish, gate=gate or threading.Lock(), weight=weight)).result()

    def _submit(self, job: _Job | _Control) -> Future[Any]:
        with self._closing:
            if self._closed:
                raise StoreClosed("the store is closed")
            self._jobs.put(job)
        return job.future

    @contextmanager
    def read(self, stop: Stop = NEVER) -> Generator[apsw.Connection]:
        """A connection inside a read transaction: everything read in it is of one moment.

        Raises:
            Interrupted: `stop` is due, while waiting for a connection or during a statement.
        """
        if self._closed:
            raise StoreClosed("the store is closed")
        connection = self._take(stop)
        if connection is None:
            self._idle.put(None)  # for the next one who waits
            raise StoreClosed("the store is closed")
        try:
            with self._transaction(connection), stop.watching(connection):
                yield connection
        finally:
            self._idle.put(connection)

    def _take(self, stop: Stop) -> apsw.Connection | None:
        while True:
            try:
                return self._idle.get(timeout=_LOOK_S)
            except queue.Empty:
                stop.check()

    @contextmanager
    def read_long(self, stop: Stop = NEVER) -> Generator[apsw.Connection]:
        """The same on a connection of its own, for exports that would keep one of the few busy."""
        if self._closed:
            raise StoreClosed("the store is closed")
        with translated(self._path):
            connection = open_reader(self._path, vfs=self._vfs)
        try:
            with self._transaction(connection), stop.watching(connection):
                yield connection
        finally:
            connection.close()

    @contextmanager
    def _transaction(self, connection: apsw.Connection) -> Generator[None]:
        with translated(self._path):
            run(connection, "BEGIN")
            try:
                yield
            finally:
                if connection.in_transaction:
                    run(connection, "ROLLBACK")

    def checkpoint(self) -> None:
        """Move the write-ahead log into the database and cut it to nothing, as far as readers allow."""
        self._submit(_Control(lambda: self._checkpoint(apsw.SQLITE_CHECKPOINT_TRUNCATE))).result()

    def free_pages(self) -> int:
        """Give unused pages of the file back to the disk; the number of bytes by which it shrank."""
        return self._submit(_Control(self._free_pages)).result()

    def close(self) -> None:
        """Finish what was accepted, cut the write-ahead log, close every connection."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._jobs.put(None)
        self._thread.join()
        for _ in range(self._readers):
            reader = self._idle.get()  # waits for a read that is under way
            if reader is not None:
                reader.close()
        self._idle.put(None)

    def _connect(self) -> apsw.Connection:
        connection = open_writer(self._path, vfs=self._vfs)
        connection.set_wal_hook(self._note_wal)
        return connection

    def _note_wal(self, connection: apsw.Connection, name: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def _serve(self) -> None:
        held: _Job | _Control | None = None
        truncate_at = time.monotonic() + self._checkpoint_s
        while True:
            group, held, last = self._gather(held, until=truncate_at)
            if group:
                self._commit(group)
            if isinstance(held, _Control):
                held.run(self._path)
                held = None
            if last:
                break
            if time.monotonic() >= truncate_at:
                self._checkpoint(apsw.SQLITE_CHECKPOINT_TRUNCATE)
                truncate_at = time.monotonic() + self._checkpoint_s
            elif self._wal_pages >= _CHECKPOINT_PAGES:
                self._checkpoint(apsw.SQLITE_CHECKPOINT_PASSIVE)
        self._checkpoint(apsw.SQLITE_CHECKPOINT_TRUNCATE)
        self._writer.close()

    def _gather(self, held: _Job | _Control | None, *, until: float) -> tuple[list[_Job], _Job | _Control | None, bool]:
        """Jobs that wait now, up to a group's weight; what came after them, for the next turn; whether to end."""
        group: list[_Job] = []
        weight = 0
        while True:
            if held is None:
                try:
                    timeout_s = max(0.0, until - time.monotonic())
                    held = self._jobs.get_nowait() if group else self._jobs.get(timeout=timeout_s)
                except queue.Empty:
                    return group, None, False
                if held is None:
                    return group, None, True
            if isinstance(held, _Control) or (group and weight + held.weight > self._group_items):
                return group, held, False
            group.append(held)
            weight += held.weight
            held = None

    def _commit(self, group: list[_Job]) -> None:
        """One transaction for the group. If it fails as a whole, every job of it fails and nothing was applied."""
        good: list[_Job] = []
        try:
            run(self._writer, "BEGIN IMMEDIATE")
            for job in group:
                if self._attempt(job):
                    good.append(job)
            with ExitStack() as gates:
                for gate in sorted({job.gate for job in good}, key=id):
                    gates.enter_context(gate)
                run(self._writer, "COMMIT")
                for job in good:
                    self._publish(job)
        except Exception as error:
            log.error("a commit of %d requests failed: %s", len(group), error)
            self._abandon()
            for job in group:
                if not job.future.done():
                    job.future.set_exception(translate(error, self._path))
            return
        for job in good:
            if not job.future.done():
                job.future.set_result(job.result)

    def _attempt(self, job: _Job) -> bool:
        """Run one job behind a SAVEPOINT; only an error that ends the whole transaction leaves here."""
        run(self._writer, "SAVEPOINT job")
        try:
            job.result = job.work(self._writer)
        except Exception as error:
            if not self._writer.in_transaction:
                raise  # SQLite has undone the whole group
            run(self._writer, "ROLLBACK TO job")
            run(self._writer, "RELEASE job")
            failure = translate(error, self._path) if isinstance(error, (apsw.Error, OSError)) else error
            job.future.set_exception(failure)
            return False
        run(self._writer, "RELEASE job")
        return True

    def _publish(self, job: _Job) -> None:
        try:
            job.publish(job.result)
        except Exception as error:
            log.exception("a committed change could not be shown to searches")
            job.future.set_exception(StorageFailed(f"written, but the index could not take it: {error}"))

    def _abandon(self) -> None:
        """Back to no transaction, with a fresh connection if this one cannot even undo."""
        try:
            if self._writer.in_transaction:
                run(self._writer, "ROLLBACK")
        except apsw.Error as error:
            log.error("the writing connection is replaced: %s", error)
            self._writer.close(True)
            try:
                self._writer = self._connect()
            except Exception as again:
                log.error("the database cannot be opened again yet: %s", again)

    def _free_pages(self) -> int:
        before = self._path.stat().st_size
        run(self._writer, "PRAGMA incremental_vacuum")
        self._checkpoint(apsw.SQLITE_CHECKPOINT_TRUNCATE)
        return max(0, before - self._path.stat().st_size)

    def _checkpoint(self, mode: int) -> None:
        """Failures are logged only: the write-ahead log keeps everything, and the next turn tries again."""
        try:
            self._writer.wal_checkpoint(mode=mode)
            self._wal_pages = 0
        except apsw.BusyError:
            self._wal_pages = 0  # a reader is in the way; asked again after as many pages
        except Exception as error:
            self._wal_pages = 0
            log.warning("the write-ahead log could not be moved into %s: %s", self._path.name, error)
