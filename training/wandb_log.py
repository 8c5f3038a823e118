"""A run's numbers in Weights & Biases (extra `wandb`); nothing of that package is imported without it being asked for.

The package's own environment variables say where to: WANDB_MODE=offline keeps everything below the run's folder, for
`wandb sync` later; WANDB_API_KEY and WANDB_BASE_URL name an account and a server.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_RUN_FILE = "wandb-run.txt"


class WandbLog:
    """`project`'s run for `folder`; going on after step `start`, the run that the folder began.

    Raises:
        ValueError: wandb is not installed, or refuses.
    """

    def __init__(self, project: str, folder: Path, *, settings: Mapping[str, Any], start: int) -> None:
        try:
            wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise ValueError("run.wandb needs the extra `wandb`: pip install 'clipworks[wandb]'") from error
        known = folder / _RUN_FILE
        before = known.read_text(encoding="utf-8").strip() if start and known.exists() else None
        try:
            self._run = wandb.init(
                project=project,
                dir=str(folder),
                name=str(settings.get("name", folder.name)),
                config=dict(settings),
                id=before,
                resume="allow" if before else None,
            )
        except wandb.errors.Error as error:
            raise ValueError(f"run.wandb {project}: {error}") from error
        known.write_text(f"{self._run.id}\n", encoding="utf-8")

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of a step; several calls for one step belong together."""
        self._run.log(dict(numbers), step=step)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=1 if failed else 0)
