"""The truth: one SQLite database, one thread that writes it, many connections that read it."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import apsw

from service.retrieval.errors import RetrievalError, StorageFailed, StoreClosed
from service.retrieval.stopping import NEVER, Stop
from service.retrieval.truth.database import is_system_error, open_reader, open_writer, run, translate, translated
from service.retrieval.truth.witness import AcknowledgedState, LogPosition, Witness

log = logging.getLogger("clipworks.retrieval")
_CHECKPOINT_PAGES = 2000
_LOOK_S = 0.25  # between two looks at its stop of who waits for a connection
_SALT_PLACE, _SALT_BYTES = 16, 8  # of the write-ahead log's header
_INTERRUPT_EVERY_S = 0.05
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

    recovered: where the write-ahead log ended when it was opened, before anything was written.
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
        self._ending = False
        self._wal_pages = 0  # since a checkpoint was tried
        self._frames = 0  # in the log, as long as not all of them are in the database
        self._wal: int | None = None
        self._witness: Witness | None = None
        self._seen: dict[str, AcknowledgedState] = {}
        self._idle: queue.LifoQueue[apsw.Connection | None] = queue.LifoQueue()
        with translated(path):
            self._writer = self._connect()
            frames, _ = self._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
            self.recovered = LogPosition(self._salt(), frames) if frames > 0 else LogPosition()
            self._frames = max(0, frames)
            if self._wal is not None and frames > 0:
                os.fsync(self._wal)  # what a killed process had not synced is about to be taken for the truth
            self._readers = [open_reader(path, vfs=vfs) for _ in range(readers)]
        for reader in self._readers:
            self._idle.put(reader)
        self._thread = threading.Thread(target=self._serve, name="retrieval-writer", daemon=True)
        self._thread.start()

    @property
    def path(self) -> Path:
        return self._path

    def disk_bytes(self) -> int:
        """Of the database and of what SQLite keeps beside it."""
        size = 0
        for end in ("", "-wal", "-shm"):
            with suppress(OSError):  # the log comes and goes
                size += self._path.with_name(self._path.name + end).stat().st_size
        return size

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

    def attach(self, folder: Path, seen: Sequence[AcknowledgedState]) -> None:
        """Write a new witness and tell it of commits from now on; without one the log is not emptied.

        Raises:
            StorageFull, StorageFailed
        """

        def swap() -> None:
            position = LogPosition(self._salt(), self._frames) if self._frames else LogPosition()
            before, self._witness = self._witness, Witness(folder, seen, position=position)
            if before is not None:
                before.close()

        self._submit(_Control(swap)).result()

    def note(self, seen: AcknowledgedState) -> None:
        """To be called while a job publishes: what the witness shall know once it is acknowledged."""
        self._seen[seen.epoch] = seen

    def note_first(self, seen: AcknowledgedState) -> None:
        """To be called inside a job: what the witness shall know, durably, before the commit. Raises OSError."""
        if self._witness is not None:
            self._witness.note(seen)
            self._witness.sync()

    @property
    def has_witness(self) -> bool:
        return self._witness is not None

    def sync_witness(self) -> None:
        """Onto the disk, so that a power cut takes little of what it knows. Raises OSError."""
        if self._witness is not None:
            self._witness.sync()

    def close(self, *, until: float | None = None) -> bool:
        """Finish what was accepted, empty the write-ahead log, close every connection; whether all of it was done.

        until: of time.monotonic(). From halfway to it work in SQLite is interrupted and what still waits is refused;
        at it this returns. What was acknowledged is in the log, and the next open finds it.
        """
        with self._closing:
            if self._closed:
                return True
            self._closed = True
            self._jobs.put(None)
        if not self._ended(until):
            log.warning("the store is closed while work goes on that does not end")
            return False
        if self._checkpoint(apsw.SQLITE_CHECKPOINT_TRUNCATE):
            self._writer.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)  # removes the empty log
        self._writer.close()
        if self._wal is not None:
            os.close(self._wal)
        if self._witness is not None:
            self._witness.close()
        return True

    def _ended(self, until: float | None) -> bool:
        """Wait for the writer's thread and for every reading connection, which is closed; whether they all came."""
        gentle = None if until is None else time.monotonic() + max(0.0, until - time.monotonic()) / 2
        self._thread.join(None if gentle is None else max(0.0, gentle - time.monotonic()))
        left = list(self._readers)
        while left or self._thread.is_alive():
            now = time.monotonic()
            if until is not None and now >= until:
                self._idle.put(None)
                return False
            if gentle is not None and now >= gentle:
                self._ending = True
                for connection in (*left, *([self._writer] if self._thread.is_alive() else [])):
                    with suppress(apsw.Error):  # it was replaced just now
                        connection.interrupt()
            try:
                reader = self._idle.get(timeout=None if until is None else _INTERRUPT_EVERY_S) if left else None
            except queue.Empty:
                continue
            if reader is not None:
                reader.close()
                left.remove(reader)
            else:
                self._thread.join(_INTERRUPT_EVERY_S)
        self._idle.put(None)
        return True

    def _connect(self) -> apsw.Connection:
        connection = open_writer(self._path, vfs=self._vfs)
        connection.set_wal_hook(self._note_wal)
        return connection

    def _note_wal(self, connection: apsw.Connection, name: str, pages: int) -> int:
        self._wal_pages = self._frames = pages
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

    def _gather(self, held: _Job | _Control | None, *, until: float) -> tuple[list[_Job], _Job | _Control | None, bool]:
        """Jobs that wait now, up to a group's weight; what came after them, for the next turn; whether to end."""
        group: list[_Job] = []
        weight = 0
        while True:
            if held is None:
                try:
                    # Sleep for the first job only. A group takes what waits already, and never waits to grow: while it
                    # is committed the next one gathers by itself.
                    timeout_s = max(0.0, until - time.monotonic())
                    held = self._jobs.get_nowait() if group else self._jobs.get(timeout=timeout_s)
                except queue.Empty:
                    return group, None, False
                if held is None:
                    return group, None, True
            # A control (swap of the witness, vacuum) runs between transactions, so it ends the group before it.
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
                if self._ending:
                    raise StoreClosed("the store is closing")
                if self._attempt(job):
                    good.append(job)
            with ExitStack() as gates:
                # Held from before COMMIT until the indexes show it, so that nobody sees one without the other. Only
                # this thread holds several at once; the order is for whoever may one day hold two.
                for gate in sorted({job.gate for job in good}, key=id):
                    gates.enter_context(gate)
                run(self._writer, "COMMIT")
                for job in good:
                    self._publish(job)
                self._testify()
        except Exception as error:
            log.error("a commit of %d requests failed: %s", len(group), error)
            failure = self._translated(error)
            self._abandon()
            for job in group:
                if not job.future.done():
                    job.future.set_exception(failure)
            return
        for job in good:  # after the gates are open: who is woken may search at once
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
            failure = self._translated(error) if isinstance(error, (apsw.Error, OSError)) else error
            job.future.set_exception(failure)
            return False
        run(self._writer, "RELEASE job")
        return True

    def _testify(self) -> None:
        """Tell the witness what was committed: once for each collection of the group."""
        seen, self._seen = self._seen, {}
        if self._witness is None:
            return
        if self._frames:
            self._witness.claim(LogPosition(self._salt(), self._frames))
        for each in seen.values():
            self._witness.note(each)

    def _translated(self, error: Exception) -> RetrievalError:
        return translate(error, self._path, system_errno=self._writer.system_errno if is_system_error(error) else 0)

    def _salt(self) -> int:
        """Of the write-ahead log, new whenever SQLite begins it anew; 0 if it cannot be read."""
        try:
            if self._wal is None:
                self._wal = os.open(self._path.with_name(self._path.name + "-wal"), os.O_RDONLY | os.O_CLOEXEC)
            return int.from_bytes(os.pread(self._wal, _SALT_BYTES, _SALT_PLACE), "big")
        except OSError as error:
            log.warning("the write-ahead log of %s cannot be read: %s", self._path, error)
            return 0

    def _publish(self, job: _Job) -> None:
        try:
            job.publish(job.result)
        except Exception:
            log.exception("a committed change could not be shown to searches")
            job.future.set_exception(StorageFailed("written, but the index could not take it; it is being rebuilt"))

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

    def _checkpoint(self, mode: int) -> bool:
        """Whether all of the log is in the database; if not, the next turn tries again.

        Once all of it is in the database the witness no longer claims it, durably, before it can be overwritten or cut.
        """
        self._wal_pages = 0  # asked again after as many pages
        if self._witness is None:
            return False
        cuts = mode == apsw.SQLITE_CHECKPOINT_TRUNCATE
        try:
            frames, moved = self._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_FULL if cuts else mode)
            if frames == moved:
                self._witness.settle()
                self._frames = 0
                if cuts:
                    self._writer.wal_checkpoint(mode=mode)
                return True
        except apsw.BusyError:
            pass  # a reader is in the way
        except Exception as error:
            log.warning("the write-ahead log could not be moved into %s: %s", self._path.name, error)
        return False
