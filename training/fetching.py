"""The batches of a run as one process gets them: its own rows, on its device, with the time that it waited for them."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from training import distributed
from training.data.protocol import DividedBatches, StepBatches, StreamedBatches

Fields = dict[str, Tensor]


_STATE = "data/"


class Fetching:
    """Gives this process its rows of each step's batch, and keeps the time.

    fields: chooses what the method takes of a batch.
    """

    def __init__(
        self, batches: StepBatches, fields: Callable[[Fields], Fields], *, batch_size: int, device: str
    ) -> None:
        self._batches, self._fields, self._size, self._device = batches, fields, batch_size, device
        self._waited_s = self._took_s = self._began_s = 0.0
        self._steps = 0

    def __call__(self, step: int) -> Fields:
        """The batch of a 0-based step; the step's time begins here."""
        self._began_s = time.perf_counter()
        batch = self._own(step)
        self._waited_s += time.perf_counter() - self._began_s
        return {name: tensor.to(self._device) for name, tensor in batch.items()}

    def stepped(self) -> None:
        """The step is done: what is saved and judged behind it is not part of its time."""
        self._took_s += time.perf_counter() - self._began_s
        self._steps += 1

    def speed(self) -> dict[str, float]:
        """Since this was last asked: pairs_per_s of all processes together, data_wait_s of a step of this process, and
        data_wait_share, the share of a step's time that was spent waiting."""
        took_s, steps = max(self._took_s, 1e-9), max(self._steps, 1)
        found = {
            "pairs_per_s": self._size * self._steps / took_s,
            "data_wait_s": self._waited_s / steps,
            "data_wait_share": self._waited_s / took_s,
        }
        self._waited_s = self._took_s = 0.0
        self._steps = 0
        return found

    def bad_samples(self) -> dict[str, float]:
        """How many samples all processes left out since the first step, by what was wrong; {} for data that are held.

        Every process asks at the same step.
        """
        if not isinstance(self._batches, StreamedBatches):
            return {}
        counts = self._batches.bad_samples()
        total = distributed.mean(torch.tensor(list(counts.values()), dtype=torch.float64, device=self._device))
        return dict(zip(counts, (total * distributed.count()).round().tolist(), strict=True))

    def position(self) -> Fields:
        """What goes on from here, of all processes, for a checkpoint; {} for batches that depend on the step alone.

        Every process asks at the same step.
        """
        if not isinstance(self._batches, StreamedBatches):
            return {}
        every = distributed.gathered(self._batches.position())
        return {f"{_STATE}{name}": tensor for each in every for name, tensor in each.items()}

    def resume(self, position: Fields) -> None:
        """Go on from a position, which may lie among other tensors."""
        own = {name.removeprefix(_STATE): tensor for name, tensor in position.items() if name.startswith(_STATE)}
        if isinstance(self._batches, StreamedBatches):
            self._batches.resume(own)

    def close(self) -> None:
        """End what works ahead."""
        if isinstance(self._batches, StreamedBatches):
            self._batches.close()

    def _own(self, step: int) -> Fields:
        if isinstance(self._batches, StreamedBatches):
            return self._fields(self._batches(step))
        if isinstance(self._batches, DividedBatches):
            part = self._batches.part(step, process=distributed.rank(), processes=distributed.count())
            return self._fields(part)
        return distributed.part_of(self._fields(self._batches(step)))
