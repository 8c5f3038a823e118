"""Background work of a store: rebuild indexes that fell behind, save them, sync the witness."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from service.retrieval.collection import EmbeddedCollection
from service.retrieval.errors import RetrievalError, StoreClosed
from service.retrieval.index import cache
from service.retrieval.index.live import LiveIndex
from service.retrieval.records import RetrievalSettings

log = logging.getLogger("clipworks.retrieval")
_SAVE_SHARE = 0.1


class StoreUpkeep:
    """One thread, and what it has saved so far; `wake` it when an index may be due.

    collections: those of the store at that moment. indexes: the folder that index snapshots lie in.
    sync_witness: may raise OSError.
    """

    def __init__(
        self,
        *,
        indexes: Path,
        settings: RetrievalSettings,
        collections: Callable[[], Sequence[EmbeddedCollection]],
        sync_witness: Callable[[], None],
    ) -> None:
        self._indexes, self._settings, self._collections = indexes, settings, collections
        self._sync = sync_witness
        self._saved: dict[int, tuple[int, str | None]] = {}
        self._stop = False
        self._due = threading.Event()
        self._thread = threading.Thread(target=self._keep_up, name="retrieval-upkeep", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._due.set()

    def stop(self) -> None:
        """Ask the thread to end; `join` waits for it."""
        self._stop = True
        self._due.set()

    def join(self, *, until: float | None) -> bool:
        """Wait for its end, until then at most (of time.monotonic()); whether it came."""
        self._thread.join(None if until is None else max(0.0, until - time.monotonic()))
        return not self._thread.is_alive()

    def remember(self, number: int, live: LiveIndex) -> None:
        """The collection's index was read from its snapshot: it need not be saved again as it is."""
        self._saved[number] = (live.counters.sequence, live.mapped.path.name if live.mapped else None)

    def forget(self, number: int) -> None:
        self._saved.pop(number, None)

    def save_indexes(self, *, least_share: float, until: float | None = None) -> None:
        """Save indexes that took training and have changed by more than a share of their rows since the last time.

        until: of time.monotonic(); none is begun after it.
        """
        for collection in self._collections():
            if until is not None and time.monotonic() >= until:
                return
            state = collection.searcher.state()
            sequence, vectors_file = self._saved.get(collection.tables.number, (-1, None))
            changes = state.sequence - sequence
            rebuilt = vectors_file != state.vectors_file
            if (
                state.kind == "flat"
                or state.broken
                or not (rebuilt or (changes and changes >= least_share * state.live))
            ):
                continue
            try:
                frozen = collection.searcher.freeze()
                cache.save(cache.path_of(self._indexes, collection.tables), collection.tables, frozen)
                name = frozen.mapped.path.name if frozen.mapped else None
                self._saved[collection.tables.number] = (frozen.counters.sequence, name)
            except OSError as error:
                log.warning("the index of collection %s could not be saved: %s", collection.name, error)

    def _sync_witness(self) -> None:
        try:
            self._sync()
        except OSError as error:
            log.warning("the witness could not be synced: %s", error)

    def _keep_up(self) -> None:
        """The thread: never lets an error end it."""
        note_at = time.monotonic() + self._settings.checkpoint_s
        while not self._stop:
            self._due.wait(timeout=max(0.01, min(1.0, note_at - time.monotonic())))
            self._due.clear()
            for collection in self._collections():
                if self._stop:
                    return
                try:
                    collection.keep_up()
                except StoreClosed:
                    return
                except RetrievalError as error:
                    log.error("the index of collection %s could not be rebuilt: %s", collection.name, error)
                    time.sleep(min(1.0, self._settings.checkpoint_s))
                except Exception:
                    log.exception("the index of collection %s could not be rebuilt", collection.name)
                    time.sleep(min(1.0, self._settings.checkpoint_s))
            if time.monotonic() >= note_at:
                note_at = time.monotonic() + self._settings.checkpoint_s
                self._sync_witness()
                self.save_indexes(least_share=_SAVE_SHARE)
