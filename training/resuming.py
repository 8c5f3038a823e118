"""The check that a resumed run has the recipe that it was started with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from training.checkpoint import Checkpoint
from training.config import TrainConfig

# Where it runs, where its data lie, how rows are cut to fit into memory: nothing of it is what was learnt.
# A base is its weights, which are compared apart: a relative and an absolute path name the same one.
_FREE = {
    "run": True,
    "base": True,
    "data": {"folder", "workers", "prefetch", "bad_share"},
    "optim": {"steps", "accumulate"},
}


def refuse_other_run(before: Checkpoint, now: TrainConfig, *, own_model: bool = False) -> None:
    """A run resumes under its own recipe, to its own end or to another one that lies ahead.

    own_model: the method makes the model of its base; the checkpoint names the one that it has made, not the recipe's.

    Raises:
        ValueError: the recipe differs.
    """
    free: dict[str, Any] = {**_FREE, "model": True} if own_model else _FREE
    old, new = before.config.model_dump(exclude=free), now.model_dump(exclude=free)
    changed = [f"{key} was {before}, is {after}" for key, before, after in _differences(old, new)]
    if now.optim.steps < before.step:
        changed.append(f"optim.steps is {now.optim.steps}, and {before.step} steps are done")
    if changed:
        raise ValueError(
            f"cannot resume under another recipe: {'; '.join(changed)}. Take the old values, or another run.folder"
        )


def _differences(old: Any, new: Any, at: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, value before, value now) of every setting that differs, in two dumps of one kind of recipe."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
    elif old != new:
        yield at, old, new
