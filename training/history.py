"""Checkpoints of a run: the last few in folders of their own, the newest also in the run's folder, under fixed names.

folder/checkpoints/step-00000500/   checkpoint.json, weights.safetensors, tokenizer.txt, state.safetensors
folder/                             the same files of the newest step, as hard links where the file system has them
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from model_store.files import replace_folder, sync
from training.checkpoint import FILES, INFO_FILE, check_whole, note_metrics, save_checkpoint
from training.interrupts import signals_held

HISTORY = "checkpoints"
_NAME = re.compile(r"step-(\d+)")


def step_folder(folder: Path, step: int) -> Path:
    return folder / HISTORY / f"step-{step:08d}"


def saved_steps(folder: Path) -> dict[int, Path]:
    """The folders of a run's checkpoints by step, ascending."""
    found = ((_NAME.fullmatch(each.name), each) for each in (folder / HISTORY).glob("step-*"))
    return dict(sorted((int(name[1]), each) for name, each in found if name))


def save_step(
    folder: Path,
    info: dict[str, Any],
    *,
    weights: dict[str, Tensor],
    state: dict[str, Tensor],
    tokenizer: bytes,
    keep: int,
    in_use: Collection[Path] = (),
) -> Path:
    """Write the checkpoint of `info["step"]` as the newest, and return its folder; all but `keep` are removed.

    It is written whole in a folder beside the others, which then takes its name, before any of the older files goes: at
    every moment, a power cut included, one good checkpoint is there. in_use: folders that stay as well.
    Steps behind this one are of a line that was left by resuming before them, and go.
    """
    target = step_folder(folder, info["step"])
    part = target.with_name(f"{target.name}.part")
    for left in (folder / HISTORY).glob("*.part*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    save_checkpoint(part, info, weights=weights, state=state, tokenizer=tokenizer)
    with signals_held():
        if target.exists():
            replace_folder(target, part)
        else:
            os.rename(part, target)
            sync(target.parent)
        for name in (*FILES, INFO_FILE):
            _publish(target / name, folder / name)
    older = [step for step in saved_steps(folder) if step <= info["step"]]
    for step, each in saved_steps(folder).items():
        if step not in older[-keep:] and each not in in_use:
            shutil.rmtree(each)
    return target


def note_step(folder: Path, step: int, metrics: dict[str, Any]) -> None:
    """Put numbers into the checkpoint of a step, which is the newest."""
    target = step_folder(folder, step)
    note_metrics(target, metrics)
    _publish(target / INFO_FILE, folder / INFO_FILE)


def resumable(folder: Path, step: int | None = None) -> Path:
    """The folder of the checkpoint to resume from: of a step, or the newest that is whole.

    Raises:
        ValueError: there is none.
    """
    saved = saved_steps(folder)
    if step is None:
        candidates = [folder, *reversed(saved.values())]
    elif step in saved:
        candidates = [saved[step]]
    elif _step_of(folder) == step:
        candidates = [folder]  # of a run from before there was a history
    else:
        raise ValueError(f"{folder} has no checkpoint of step {step}; it has: {', '.join(map(str, saved)) or 'none'}")
    refused: list[ValueError] = []
    for candidate in candidates:
        try:
            check_whole(candidate)
        except ValueError as error:
            refused.append(error)
        else:
            return candidate
    raise refused[0]


def _step_of(folder: Path) -> int | None:
    try:
        return check_whole(folder)
    except ValueError:
        return None


def _publish(file: Path, as_name: Path) -> None:
    """Let `file` be found at `as_name` too, without a moment in which nothing is there."""
    part = as_name.with_name(f"{as_name.name}.part")
    part.unlink(missing_ok=True)
    try:
        os.link(file, part)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, part)
        sync(part)
    os.replace(part, as_name)
    part.unlink(missing_ok=True)  # rename does nothing where both names are of one file already
