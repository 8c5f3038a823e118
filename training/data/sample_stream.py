"""One reader's endless stream of samples out of shards, shuffled in a buffer, and its place, from which it goes on."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.standard.shards import FAULTS, BadSample, Fault, ShardSample, streamed_samples
from training.data.shard_urls import local, open_shard, skip_to

_ORDER_STREAM, _DRAW_STREAM, _BATCH_STREAM = 6, 7, 8
_SURE_OF_SAMPLES, _SURE_OF_SHARDS = 1000, 10  # among fewer a share says little
_TRIES, _PAUSE_S = 3, 1.0


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """What all readers of a run agree on.

    Shards have turns 0, 1, 2, ...: every `len(shards)` of them are an epoch, in an order of its own; resampled, each
    turn draws a shard for itself. Of n readers the i-th takes the turns i, i + n, i + 2n, ...
    """

    shards: tuple[str, ...]
    samples: int
    seed: int
    buffer: int
    bad_share: float
    resampled: bool = False

    def epoch(self, turn: int) -> int:
        return 0 if self.resampled else turn // len(self.shards)

    @property
    def mean_samples(self) -> int:
        """Of a shard."""
        return max(1, round(self.samples / len(self.shards)))


@dataclass(kw_only=True)
class StreamPlace:
    """Where a reader is: turn `turn` at byte `at` after `read` of its samples, with samples (turn, byte) in the buffer.

    start: the first turn of reader 0. made: batches so far. good, faults: samples so far, by what was wrong with them.
    """

    start: int = 0
    turn: int
    at: int = 0
    read: int = 0
    made: int = 0
    good: int = 0
    faults: list[int] = field(default_factory=lambda: [0] * len(FAULTS))
    buffer: list[tuple[int, int]] = field(default_factory=list)

    def tensors(self) -> dict[str, torch.Tensor]:
        """place int64 [6 + len(FAULTS)], buffer int64 [n, 2]."""
        numbers = [self.start, self.turn, self.at, self.read, self.made, self.good, *self.faults]
        held = np.array(self.buffer, dtype=np.int64).reshape(-1, 2)
        return {"place": torch.tensor(numbers, dtype=torch.int64), "buffer": torch.from_numpy(held)}

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> StreamPlace:
        start, turn, at, read, made, good, *faults = tensors["place"].tolist()
        buffer = [(int(turn), int(at)) for turn, at in tensors["buffer"].tolist()]
        return cls(start=start, turn=turn, at=at, read=read, made=made, good=good, faults=faults, buffer=buffer)


class SampleStream:
    """What reader `reader` of `readers` reads, from `place` on; nothing is held but the buffer.

    The order depends on the plan, the reader and the number of readers. An epoch's samples leave the buffer before one
    of the next comes in, so each reader gives every sample of its turns exactly once.
    """

    def __init__(self, plan: StreamPlan, *, reader: int, readers: int, place: StreamPlace | None = None) -> None:
        self._plan, self._reader, self._readers = plan, reader, readers
        self._place = StreamPlace(turn=reader) if place is None else place
        self._orders: tuple[int, NDArray[np.int64]] | None = None
        self._reading: Iterator[ShardSample | BadSample] | None = None
        self._held: list[tuple[int, ShardSample]] | None = None
        self._last_bad = ""
        self._barren = 0

    def place(self) -> StreamPlace:
        """As of now; a copy."""
        now = self._place
        held = now.buffer if self._held is None else [(turn, sample.at) for turn, sample in self._held]
        return StreamPlace(**{**vars(now), "faults": [*now.faults], "buffer": [*held]})

    def begin_batch(self) -> np.random.Generator:
        """The random numbers of the next batch."""
        now = self._place
        now.made += 1
        return np.random.default_rng((self._plan.seed, _BATCH_STREAM, now.start, self._reader, now.made))

    def draw(self, rng: np.random.Generator) -> ShardSample:
        """One sample of the buffer, after it was filled up.

        Raises:
            ValueError: too many are bad, or no shard has one.
        """
        if self._held is None:
            self._held = self._fetched(self._place.buffer)
        while len(self._held) < self._plan.buffer and not self._epoch_ends(self._held):
            self._read_on(self._held)
        slot = int(rng.integers(len(self._held)))
        self._held[slot], self._held[-1] = self._held[-1], self._held[slot]
        self._place.good += 1
        return self._held.pop()[1]

    def refuse(self, fault: Fault, message: str) -> None:
        """Count a sample that was drawn and cannot be used.

        Raises:
            ValueError: that makes too many.
        """
        self._place.good -= 1
        self._count(fault, message, 1)

    def _epoch_ends(self, held: Sequence[tuple[int, ShardSample]]) -> bool:
        return bool(held) and self._plan.epoch(held[0][0]) != self._plan.epoch(self._place.turn)

    def _read_on(self, held: list[tuple[int, ShardSample]]) -> None:
        """Take the next sample of this turn into `held`, or go on to the next turn."""
        now = self._place
        if self._reading is None:
            self._reading = self._samples(self._shard(now.turn), now.at)
        found = next(self._reading, None)
        if found is None:
            self._barren = 0 if now.read else self._barren + 1
            if self._barren >= len(self._plan.shards):
                raise ValueError(f"{self._barren} shards in turn held no sample that can be used{self._last_bad}")
            now.turn, now.at, now.read, self._reading = now.turn + self._readers, 0, 0, None
        elif isinstance(found, BadSample):
            now.at = found.end
            # What a broken shard lacks is not known; it is taken for an average one.
            lost = max(1, self._plan.mean_samples - now.read) if found.fault == "broken shard" else 1
            self._count(found.fault, str(found), lost)
        else:
            now.at, now.read = found.end, now.read + 1
            held.append((now.turn, found))

    def _count(self, fault: Fault, message: str, samples: int) -> None:
        now = self._place
        now.faults[FAULTS.index(fault)] += samples
        self._last_bad = f"; the last bad one: {message}"
        bad = sum(now.faults)
        seen = bad + now.good
        sure_of = max(_SURE_OF_SAMPLES, _SURE_OF_SHARDS * self._plan.mean_samples)
        if bad > self._plan.bad_share * max(seen, sure_of):
            counts = ", ".join(f"{count} {name}" for name, count in zip(FAULTS, now.faults, strict=True) if count)
            raise ValueError(
                f"{bad} of {seen} samples are bad ({counts}), the limit data.bad_share is {self._plan.bad_share}"
                f"{self._last_bad}"
            )

    def _shard(self, turn: int) -> str:
        shards, seed = self._plan.shards, self._plan.seed
        if self._plan.resampled:
            return shards[int(np.random.default_rng((seed, _DRAW_STREAM, turn)).integers(len(shards)))]
        epoch, at = divmod(turn, len(shards))
        if self._orders is None or self._orders[0] != epoch:
            self._orders = (epoch, np.random.default_rng((seed, _ORDER_STREAM, epoch)).permutation(len(shards)))
        return shards[self._orders[1][at]]

    def _samples(self, shard: str, at: int) -> Iterator[ShardSample | BadSample]:
        """Those behind byte `at`; a shard over the network is opened again where it broke off, a few times."""
        name, tries = shard.rpartition("/")[2], 1 if local(shard) else _TRIES
        for attempt in range(1, tries + 1):
            try:
                with open_shard(shard) as file:
                    skip_to(file, at)
                    for sample in streamed_samples(file, name, at=at):
                        at = sample.end
                        yield sample
                return
            except Exception as error:  # a remote file system raises what its own library raises
                if attempt == tries or isinstance(error, FileNotFoundError):
                    yield BadSample("broken shard", f"{shard}: {type(error).__name__}: {error}", end=at)
                    return
                time.sleep(_PAUSE_S * attempt)

    def _fetched(self, buffer: Sequence[tuple[int, int]]) -> list[tuple[int, ShardSample]]:
        """The samples of a buffer that is only known by places, each shard read once.

        Raises:
            ValueError: a shard is not what it was.
        """
        wanted: dict[int, set[int]] = defaultdict(set)
        for turn, at in buffer:
            wanted[turn].add(at)
        found: dict[tuple[int, int], ShardSample] = {}
        for turn, places in wanted.items():
            for sample in self._samples(self._shard(turn), min(places)):
                if isinstance(sample, ShardSample) and sample.at in places:
                    found[turn, sample.at] = sample
                    places.remove(sample.at)
                if not places:
                    break
            if places:
                raise ValueError(f"cannot go on: {self._shard(turn)} has no sample at byte {min(places)} any more")
        return [(turn, found[turn, at]) for turn, at in buffer]


def moved_places(places: Sequence[StreamPlace], *, readers: int) -> list[StreamPlace]:
    """Places for another number of readers: on behind every shard that has been begun.

    No sample is seen twice in its epoch; what the old readers had not read of the shards that they had open, and what
    was in their buffers, is left out of it.
    """
    start = max(place.turn + (place.at > 0) for place in places)
    good = sum(place.good for place in places)
    faults = np.sum([place.faults for place in places], axis=0).tolist()
    moved = [StreamPlace(start=start, turn=start + reader) for reader in range(readers)]
    moved[0].good, moved[0].faults = good, faults
    return moved
