"""Batches of streamed samples: each process makes its own rows, in loader processes that work ahead."""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from evaluation.standard.shards import FAULTS
from model_store.errors import ImageTooLarge, InputError
from model_store.manifest import ImageSpec
from model_store.modality.image import decode, prepare
from training.data.augment import CaptionAugment, ImageAugment
from training.data.batches import SecondLook, Tokenize
from training.data.sample_stream import SampleStream, StreamPlace, StreamPlan, moved_places

Fields = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class SampleRows:
    """Samples -> the fields of a batch: pictures prepared as for serving at `spec`, then augmented."""

    spec: ImageSpec
    image_augment: ImageAugment
    caption_augment: CaptionAugment
    tokenize: Tokenize
    second: SecondLook | None = None

    def batch(self, stream: SampleStream, size: int) -> Fields:
        """image uint8 [B, S, S, 3], text int64 [B, L], row and caption_id int64 [B]; samples that do not decode are
        counted, and others take their places. With `second` also its second_image and second_text, as held data have.

        row is a digest of the sample's name, caption_id one of its case-folded caption: equal in all processes.
        """
        rng = stream.begin_batch()
        images: list[NDArray[np.uint8]] = []
        others: list[NDArray[np.uint8]] = []
        texts: list[str] = []
        ids: list[NDArray[np.int64]] = []
        names: list[str] = []
        captions: list[str] = []
        while len(images) < size:
            sample = stream.draw(rng)
            try:
                pixels = prepare(decode(sample.data), self.spec)
            except ImageTooLarge as error:
                stream.refuse("too large", f"{sample.name}: {error}")
                continue
            except InputError as error:
                stream.refuse("broken picture", f"{sample.name}: {error}")
                continue
            text = self.caption_augment(sample.caption, rng)
            try:
                own = self.tokenize([text])
                if self.second is not None and self.second.tokenize is not None:
                    self.second.tokenize([text])
            except InputError as error:
                stream.refuse("unreadable text", f"{sample.name}: {error}")
                continue
            view = self.image_augment.draw(pixels.shape[0], rng)
            images.append(self.image_augment.seen(pixels, view))
            if self.second is not None:
                others.append(replace(self.image_augment, size_px=self.second.size_px).seen(pixels, view))
            ids.append(own)
            texts.append(text)
            names.append(sample.name)
            captions.append(sample.caption.casefold())
        alike = len({each.shape for each in ids}) == 1
        found = Fields()
        if self.second is not None:
            found["second_image"] = torch.from_numpy(np.stack(others))
            if self.second.tokenize is not None:
                found["second_text"] = torch.from_numpy(self.second.tokenize(texts))
        return {
            **found,
            "image": torch.from_numpy(np.stack(images)),
            "row": torch.tensor([_digest(name) for name in names]),
            "text": torch.from_numpy(np.concatenate(ids) if alike else self.tokenize(texts)),
            "caption_id": torch.tensor([_digest(caption) for caption in captions]),
        }


class StreamBatches:
    """Batches of one process of several, in order from the first or from where `resume` puts it.

    The batch of a step depends on the seed, the step, the number of processes and the number of workers.
    Worker w of process p is reader p * workers + w of all; a process takes a batch from each of its workers in turn.
    """

    def __init__(
        self,
        plan: StreamPlan,
        rows: SampleRows,
        *,
        batch_size: int,
        workers: int,
        prefetch: int,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        """batch_size: of all processes together.

        Raises:
            ValueError: it does not divide, or there are fewer shards than readers.
        """
        if batch_size % processes:
            raise ValueError(
                f"a batch of {batch_size} does not divide among {processes} processes: set optim.batch_size"
            )
        self._own, self._readers = max(1, workers), max(1, workers) * processes
        if len(plan.shards) < self._readers:
            raise ValueError(
                f"{len(plan.shards)} shards for {self._readers} readers (data.workers times processes): write more and "
                "smaller shards, or set data.workers"
            )
        self._plan, self._rows, self._size = plan, rows, batch_size // processes
        self._workers, self._prefetch = workers, prefetch
        self._first = process * self._own
        self._places = [StreamPlace(turn=self._first + own) for own in range(self._own)]
        self._taken = 0
        self._batches: Iterator[tuple[int, Fields, Fields | str]] | None = None

    def __call__(self, step: int) -> Fields:
        """The next batch; steps are asked for in order.

        Raises:
            ValueError: too many samples are bad.
        """
        if self._batches is None:
            self._batches = self._started()
        own, batch, place = next(self._batches)
        if isinstance(place, str):
            raise ValueError(place)
        self._places[own] = StreamPlace.of(place)
        self._taken += 1
        return batch

    def position(self) -> dict[str, torch.Tensor]:
        """Where this process's readers are behind the batches that were taken; what was made ahead does not count."""
        found = {"taken": torch.tensor(self._taken)}
        for own, place in enumerate(self._places):
            found |= {f"{self._first + own}/{name}": tensor for name, tensor in place.tensors().items()}
        return found

    def resume(self, position: Mapping[str, torch.Tensor]) -> None:
        """Go on from the positions of all processes together; before the first batch.

        Where the number of readers is what it was, the next batches are bit-equal to what they would have been.
        Otherwise, see `moved_places`.
        """
        if self._batches is not None:
            raise ValueError("batches were taken already")
        before = [
            StreamPlace.of({name: position[f"{reader}/{name}"] for name in ("place", "buffer")})
            for reader in range(sum(name.endswith("/place") for name in position))
        ]
        if len(before) == self._readers:
            self._places, self._taken = before[self._first : self._first + self._own], int(position["taken"])
        else:
            self._places = moved_places(before, readers=self._readers)[self._first : self._first + self._own]

    def close(self) -> None:
        """End the workers."""
        self._batches = None

    def bad_samples(self) -> dict[str, int]:
        """How many samples this process's readers had to leave out so far, by what was wrong with them."""
        counts = np.sum([place.faults for place in self._places], axis=0).tolist()
        return dict(zip(FAULTS, counts, strict=True))

    def _started(self) -> Iterator[tuple[int, Fields, Fields | str]]:
        turn = self._taken % self._own  # whose batch is the next
        made = _Made(
            self._plan, self._rows, self._size, self._places, first=self._first, readers=self._readers, turn=turn
        )
        if not self._workers:
            return iter(made)
        # Not forked: torch's threads and the event loops of remote file systems do not survive it.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        loader = DataLoader(
            made,
            batch_size=None,
            num_workers=self._workers,
            prefetch_factor=self._prefetch,
            collate_fn=_as_it_is,
            worker_init_fn=_ignore_interrupts,
            multiprocessing_context=context,
            generator=torch.Generator(),  # the run's own random numbers are not touched
        )
        return cast("Iterator[tuple[int, Fields, Fields | str]]", iter(loader))


class _Made(IterableDataset[Any]):
    """(own reader, batch, its place behind it) without end; or, for the last time, what is wrong."""

    def __init__(
        self,
        plan: StreamPlan,
        rows: SampleRows,
        size: int,
        places: Sequence[StreamPlace],
        *,
        first: int,
        readers: int,
        turn: int,
    ) -> None:
        self._plan, self._rows, self._size, self._places = plan, rows, size, [*places]
        self._first, self._readers, self._turn = first, readers, turn

    def __iter__(self) -> Iterator[tuple[int, Fields, Fields | str]]:
        info = get_worker_info()
        own = ((0 if info is None else info.id) + self._turn) % len(self._places)
        stream = SampleStream(self._plan, reader=self._first + own, readers=self._readers, place=self._places[own])
        while True:
            try:
                batch = self._rows.batch(stream, self._size)
            except ValueError as error:
                yield own, {}, str(error)
                return
            yield own, batch, stream.place().tensors()


def _as_it_is(made: Any) -> Any:
    return made


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the training process ends its step, and needs a batch for that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _digest(text: str) -> int:
    """63 bits, so that equal texts have equal numbers in all processes."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big") >> 1
