"""Output of a run: a progress bar with loss, rate and ETA, a CSV file and TensorBoard events."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from training.wandb_log import WandbLog

LOG_FILE = "log.csv"
_COLUMNS = ("step", "series", "name", "value")


class RunLog:
    """Writes `folder/log.csv` (long form: step, series, name, value) and `folder/tensorboard/`, and to Weights & Biases
    where a project is named (`wandb`, with `settings` as the run's).

    A resumed run drops the lines behind its start, so no step is logged twice. Without a `console` nothing is printed.

    Raises:
        ValueError: a project is named, and wandb is not installed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        start: int,
        total: int,
        console: Console | None,
        wandb: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOG_FILE
        self._wandb = None if wandb is None else WandbLog(wandb, folder, settings=settings or {}, start=start)
        kept: list[list[str]] = []
        if start and path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                kept = [line for line in csv.reader(file) if line and line[0].isdigit() and int(line[0]) <= start]
        self._file = path.open("w", newline="", encoding="utf-8")
        self._csv = csv.writer(self._file)
        self._csv.writerows([_COLUMNS, *kept])
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start or None)
        self._console, self._total, self._told = console, total, 0.0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[rate]}"),
            console=console,
            disable=console is None,
        )
        self._task = self._progress.add_task("train", total=total, completed=start, loss="", rate="")

    def __enter__(self) -> RunLog:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._board.close()
        self._file.close()
        if self._wandb is not None:
            self._wandb.close(failed=error is not None)

    def advance(self, done: int, loss: float | None) -> None:
        """`done` steps are finished; `loss` is shown when it is known (reading it waits for a GPU)."""
        speed = self._progress.tasks[0].speed
        rate = f"{speed:.1f} steps/s" if speed else ""
        if loss is None:
            self._progress.update(self._task, completed=done, rate=rate)
        else:
            self._progress.update(self._task, completed=done, rate=rate, loss=f"loss {loss:.3f}")

    def write(self, series: str, step: int, numbers: Mapping[str, float]) -> None:
        """Log numbers of one step."""
        for name, value in numbers.items():
            self._csv.writerow([step, series, name, f"{value:.6g}"])
            self._board.add_scalar(f"{series}/{name}", value, step)
        self._file.flush()
        if self._wandb is not None:
            self._wandb.write(step, {f"{series}/{name}": value for name, value in numbers.items()})

    def left_out(self, step: int, counts: Mapping[str, float]) -> None:
        """Log how many samples were left out since the first step, by what was wrong; print that when it doubled."""
        self.write("bad_samples", step, counts)
        bad = sum(counts.values())
        if (bad >= 2 * self._told or step == self._total) and bad > 0:
            self._told = bad
            by_fault = ", ".join(f"{count:.0f} {name}" for name, count in counts.items() if count)
            self.say(f"step {step}: {bad:.0f} samples left out so far ({by_fault})")

    def judged(self, series: str, step: int, report: Mapping[str, object]) -> None:
        """Log a report, such as that of validation, and print its headline above the bar."""
        self.write(series, step, flatten(report))
        self.say(f"step {step}: {headline(report)}")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._console is not None:
            self._console.print(text, highlight=False, markup=False)


class NoLog:
    """What processes have that write nothing."""

    def __enter__(self) -> NoLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def advance(self, done: int, loss: float | None) -> None:
        pass

    def write(self, series: str, step: int, numbers: Mapping[str, float]) -> None:
        pass

    def left_out(self, step: int, counts: Mapping[str, float]) -> None:
        pass

    def judged(self, series: str, step: int, report: Mapping[str, object]) -> None:
        pass

    def say(self, text: str) -> None:
        pass


def headline(report: Mapping[str, object], *, most: int = 8) -> str:
    """One line of a nested report, whatever was measured: the first number of each of its innermost parts."""
    return ", ".join(f"{name} {value:.3f}" for name, value in list(_first_numbers(report))[:most])


def _first_numbers(report: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, float]]:
    parts = {key: value for key, value in report.items() if isinstance(value, Mapping)}
    numbers = {key: value for key, value in report.items() if isinstance(value, float)}
    if "value" in numbers:  # an estimate with its interval
        yield prefix.removesuffix("/"), numbers["value"]
    elif numbers:
        key = next(iter(numbers))
        yield f"{prefix}{key}", numbers[key]
    for key, part in parts.items():
        yield from _first_numbers(part, f"{prefix}{key}/")


def flatten(report: Mapping[str, object], prefix: str = "") -> dict[str, float]:
    """Numbers of a nested report by path, `a/b/c`; an estimate counts as its value."""
    flat: dict[str, float] = {}
    for key, value in report.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and key not in ("low", "high", "n"):
            flat[f"{prefix}{key}"] = float(value)
    return flat
