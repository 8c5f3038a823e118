"""Programs of other projects that tests run: unpacked by .ci/programs, of this environment, or of the machine."""

import os
import shutil
import sys
from pathlib import Path

import pytest

_UNPACKED = Path(__file__).parents[1] / "build" / "programs" / "bin"


def program(name: str) -> str:
    """Its path; the test is skipped where it is not to be had."""
    folders = [str(_UNPACKED), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    return shutil.which(name, path=os.pathsep.join(folders)) or pytest.skip(f"no {name}: run .ci/programs")
