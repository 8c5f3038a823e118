"""The environment of child processes that open what strangers made: this very package, and no secrets."""

from __future__ import annotations

import os
from pathlib import Path


def child_environment(**more: str) -> dict[str, str]:
    """For `python -P -m ...`: the package this process runs, nothing from the folder it stands in.

    CLIPWORKS_ variables are left out: keys and tokens are among them, and no child reads settings.
    """
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("CLIPWORKS_")}
    return {**kept, **more, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
