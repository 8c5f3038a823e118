"""A file beside the database that says how far each collection had come when a change was last acknowledged.

SQLite opens a write-ahead log that was cut, damaged or removed at its last whole commit, and cannot tell that from a
crash. This file can: it is written after each commit and before its answer, so a database that is behind it has lost
acknowledged changes.

It also says how many frames of the log were in use, while not all of them were in the database: a log that is shorter
was damaged, even where its pages had been moved in part and no sequence is behind.

Format: a line that names it, filled up to 512 bytes; then one record for the log and one for each collection, of two
slots of 128 bytes written in turn, each with a checksum. A kill leaves one slot half written, and the other whole.
The log's record says how many others are on the disk; a collection has one, synced, before it is committed. So what is
missing of this file, and a collection without a record, are damage.

It is written with `pwrite` and not synced: that reaches the kernel's page cache, which survives the process, for a few
microseconds. A power cut may lose the newest slots, but never brings a false alarm: the log was synced before a slot is
written, so no slot on a disk is ahead of it; and that the log is not needed any more is synced before it is emptied.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import threading
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model_store.files import whole_file

NAME = "collections.witness"
NOTE = "progress.json"
State = Literal["live", "changing", "dropped"]
_log = logging.getLogger("clipworks.retrieval")
_HEADER = b"CLIPWORKS-WITNESS 1\n".ljust(512, b"\0")
_SLOT = struct.Struct("<IIQQQ16s80s")
_SLOTS = 2
_RECORD_BYTES = _SLOTS * _SLOT.size
_LOG_STATE = 0
_STATES: tuple[State, ...] = ("live", "changing", "dropped")
_LOG_PLACE = 0
_CHECKSUM_BYTES = 4


@dataclass(frozen=True, slots=True)
class AcknowledgedState:
    """What was acknowledged of one collection: its sequence, its number of items, and whether it is there.

    items: None where only a note of an older release is left.
    state: `changing` is noted before a creation or a drop is committed, so that a stop between the two claims neither.
    """

    epoch: str
    name: str
    sequence: int
    items: int | None
    state: State = "live"


@dataclass(frozen=True, slots=True)
class LogPosition:
    """Frames of the write-ahead log that has this salt; zero frames claim nothing."""

    salt: int = 0
    frames: int = 0

    def reaches(self, claimed: LogPosition) -> bool:
        """Whether a log that ends here still has all that was claimed."""
        return not claimed.frames or (self.salt == claimed.salt and self.frames >= claimed.frames)


@dataclass(frozen=True, slots=True)
class _Claim:
    """The log's record. records: of collections that were on the disk; 0 in files of before they were counted."""

    position: LogPosition
    records: int


@dataclass(frozen=True, slots=True)
class Testimony:
    """`seen` by epoch; `position`: of a log that was needed; `problem`: why it may say too little, in words."""

    seen: Mapping[str, AcknowledgedState]
    position: LogPosition = LogPosition()
    problem: str | None = None


class Witness:
    """Open for writing, with exactly these records. All methods but `sync` are for the log's writer thread.

    A write that fails is logged, once: the change is on disk all the same, only its loss would go unnoticed.
    """

    def __init__(self, folder: Path, seen: Sequence[AcknowledgedState], *, position: LogPosition) -> None:
        """position: of the log, which must be synced. Raises OSError."""
        path = folder / NAME
        with whole_file(path) as stream:
            stream.write(_HEADER + _packed_claim(_Claim(position, len(seen)), 0) + bytes(_SLOT.size))
            for each in seen:
                stream.write(_packed(each, 0) + bytes(_SLOT.size))
        self._path = path
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._places = {each.epoch: place for place, each in enumerate(seen, _LOG_PLACE + 1)}
        self._turns = [0] * (1 + len(seen))
        self._synced_records = len(seen)
        self._dropped = [each.epoch for each in seen if each.state == "dropped"]
        self._free: list[int] = []
        self._owed: dict[str, AcknowledgedState] = {}
        self._using = threading.Lock()

    def note(self, seen: AcknowledgedState) -> None:
        """A change was committed, and is about to be acknowledged."""
        place = self._places.get(seen.epoch)
        is_new = place is None
        if place is None:
            place = self._free.pop() if self._free else len(self._turns)
            if place == len(self._turns):
                self._turns.append(-1)
        if not self._write(place, _packed(seen, self._turns[place] + 1)):
            self._owed[seen.epoch] = seen
            if is_new and self._turns[place] < 0:
                self._turns.pop()  # no record may lie behind one that was never written
            elif is_new:
                self._free.append(place)
            return
        self._places[seen.epoch] = place
        self._owed.pop(seen.epoch, None)
        if seen.state == "dropped":
            self._dropped.append(seen.epoch)

    def claim(self, position: LogPosition) -> None:
        """A commit is in the log up to there."""
        self._write(_LOG_PLACE, _packed_claim(_Claim(position, self._synced_records), self._turns[_LOG_PLACE] + 1))

    def settle(self) -> None:
        """All of the log is in the database and synced: it is claimed no more, and no drop can be undone by its loss.

        Raises:
            OSError: the log must not be emptied yet.
        """
        for seen in list(self._owed.values()):
            self.note(seen)
        self.claim(LogPosition())
        self.sync()
        self._free += [self._places.pop(epoch) for epoch in self._dropped if epoch in self._places]
        self._dropped.clear()

    def _write(self, place: int, data: bytes) -> bool:
        turn = self._turns[place] + 1
        offset = len(_HEADER) + place * _RECORD_BYTES + turn % _SLOTS * _SLOT.size
        try:
            if self._descriptor is None or os.pwrite(self._descriptor, data, offset) != len(data):
                raise OSError("written in part")
        except OSError as error:
            if not self._owed:
                _log.warning("%s cannot be written, so a loss would go unnoticed: %s", self._path, error)
            return False
        self._turns[place] = turn
        return True

    def sync(self) -> None:
        """Onto the disk. Raises OSError."""
        with self._using:
            if self._descriptor is not None:
                written = len(self._turns) - 1 - (self._turns[-1] < 0)
                os.fdatasync(self._descriptor)
                self._synced_records = max(self._synced_records, written)

    def close(self) -> None:
        with self._using:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None


def load(folder: Path) -> Testimony | None:
    """What the file in `folder` says; None without one. It only ever adds alarms, so damage in it is no error."""
    try:
        data = (folder / NAME).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        return Testimony({}, problem=f"{NAME} cannot be read: {error.strerror}")
    seen: dict[str, AcknowledgedState] = {}
    claim: _Claim | None = None
    unread: list[int] = []
    rest = (len(data) - len(_HEADER)) % _RECORD_BYTES
    is_whole = data.startswith(_HEADER) and rest in (0, _SLOT.size)  # the last record may have its first slot only
    starts = range(len(_HEADER), len(data), _RECORD_BYTES)
    for place, start in enumerate(starts):
        record = data[start : start + _RECORD_BYTES]
        found = [_unpacked(record[at : at + _SLOT.size]) for at in range(0, len(record), _SLOT.size)]
        good = [each for each in found if each is not None]
        if good:
            newest = max(good, key=lambda each: each[0])[1]
            if isinstance(newest, AcknowledgedState):
                seen[newest.epoch] = newest
            else:
                claim = newest
        elif any(record):
            is_whole = False
        else:
            unread.append(place)  # behind the records that were synced a power cut may leave zeros
    if is_whole and claim and len(starts) > claim.records and all(place > claim.records for place in unread):
        return Testimony(seen, claim.position)
    position = claim.position if claim else LogPosition()
    return Testimony(seen, position, f"{NAME} is damaged or cut: changes that were lost may have gone unnoticed")


def load_note(folder: Path) -> dict[str, AcknowledgedState]:
    """What folders have that were last used before there was a witness: sequences by epoch, noted now and then."""
    try:
        line, checksum, end = (folder / NOTE).read_text().split("\n")
        if end or checksum != f"{zlib.crc32(line.encode()):08x}":
            return {}
        noted: dict[str, int] = {str(epoch): int(sequence) for epoch, sequence in json.loads(line).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
    return {epoch: AcknowledgedState(epoch, "(of unknown name)", sequence, None) for epoch, sequence in noted.items()}


def remove_note(folder: Path) -> None:
    """The witness has taken its place."""
    with suppress(OSError):
        (folder / NOTE).unlink(missing_ok=True)


def _packed(seen: AcknowledgedState, turn: int) -> bytes:
    state = 1 + _STATES.index(seen.state)
    epoch = bytes.fromhex(seen.epoch)
    return _summed(_SLOT.pack(0, state, turn, seen.sequence, seen.items or 0, epoch, seen.name.encode()))


def _packed_claim(claim: _Claim, turn: int) -> bytes:
    count, position = claim.records.to_bytes(16, "little"), claim.position
    return _summed(_SLOT.pack(0, _LOG_STATE, turn, position.frames, position.salt, count, b""))


def _summed(slot: bytes) -> bytes:
    return zlib.crc32(slot[_CHECKSUM_BYTES:]).to_bytes(_CHECKSUM_BYTES, "little") + slot[_CHECKSUM_BYTES:]


def _unpacked(slot: bytes) -> tuple[int, AcknowledgedState | _Claim] | None:
    """(turn, what was seen); None for a slot that was never written, or not to its end."""
    if len(slot) != _SLOT.size or _summed(slot) != slot:
        return None
    state: int
    _, state, turn, sequence, items, epoch, name = _SLOT.unpack(slot)
    if state == _LOG_STATE:
        return turn, _Claim(LogPosition(salt=items, frames=sequence), int.from_bytes(epoch, "little"))
    if state > len(_STATES):
        return None
    text = name.rstrip(b"\0").decode(errors="replace")
    return turn, AcknowledgedState(epoch.hex(), text, sequence, items, _STATES[state - 1])
