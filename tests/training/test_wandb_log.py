"""Weights & Biases: an offline run holds what log.csv holds, and without a project the package is not imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from training import wandb_log
from training.wandb_log import WandbLog

pytestmark = [pytest.mark.torch, pytest.mark.slow]

OFFLINE = """
import sys
from pathlib import Path
from training.log import RunLog

folder = Path(sys.argv[1])
for start in (0, 2):
    settings = {"name": "squares", "seed": 3}
    with RunLog(folder, start=start, total=4, console=None, wandb="pairs", settings=settings) as log:
        for step in (start + 1, start + 2):
            log.write("train", step, {"loss": 1 / step, "rate": 0.5})
        log.judged("validation", step, {"all": {"r@1": {"value": 0.25, "low": 0.1, "high": 0.4, "n": 9}}})
"""
# The file is a log of LevelDB's format behind seven bytes: blocks of 32 KiB with records of wandb's protocol buffers.
READ = """
import json, sys
from pathlib import Path
from wandb.proto import wandb_internal_pb2

def records(data):
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # all of a record, or its last part
            yield whole
            whole = b""

def values(items):
    return {"/".join(each.nested_key) or each.key: json.loads(each.value_json) for each in items}

found = {"history": [], "config": {}, "runs": []}
for data in records(Path(sys.argv[1]).read_bytes()):
    record = wandb_internal_pb2.Record()
    record.ParseFromString(data)
    if record.HasField("history"):
        found["history"].append(values(record.history.item))
    if record.HasField("run"):
        found["runs"].append([record.run.run_id, record.run.project, record.run.display_name])
        found["config"] |= values(record.run.config.update)
print(json.dumps(found))
"""


def python(source: str, *arguments: str, **environment: str) -> str:
    given = {"PATH": "/usr/bin:/bin", "HOME": arguments[0], "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", source, *arguments],
        env=given,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.long
@pytest.mark.skipif(find_spec("wandb") is None, reason="the extra wandb is not installed")
def test_an_offline_run_and_its_continuation(tmp_path: Path) -> None:
    python(OFFLINE, str(tmp_path), WANDB_MODE="offline", WANDB_SILENT="true")
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    first, second = (json.loads(python(READ, str(file))) for file in files)
    assert first["runs"][0][1:] == ["pairs", "squares"]
    assert first["runs"][0][0] == second["runs"][0][0] == (tmp_path / "wandb-run.txt").read_text().strip()
    assert first["config"]["seed"] == 3
    history = [
        {key: value for key, value in each.items() if "/" in key} | {"step": each["_step"]}
        for each in (*first["history"], *second["history"])
    ]
    told = {(each["step"], name): value for each in history for name, value in each.items() if name != "step"}
    assert told == {
        **{(step, "train/loss"): pytest.approx(1 / step) for step in (1, 2, 3, 4)},
        **{(step, "train/rate"): 0.5 for step in (1, 2, 3, 4)},
        **{(step, "validation/all/r@1/value"): 0.25 for step in (2, 4)},
    }


def test_without_a_project_nothing_is_begun(train_squares: Callable[..., Path]) -> None:
    """timm imports the package where it is installed; this project does not, and starts no run."""
    run = train_squares("optim.steps=1", "run.validate_steps=9")
    assert not list(run.glob("wandb*"))
    assert getattr(sys.modules.get("wandb"), "run", None) is None


def test_without_the_package_a_project_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(wandb_log.importlib, "import_module", absent)
    with pytest.raises(ValueError, match=r"run\.wandb needs the extra `wandb`: pip install 'clipworks\[wandb\]'"):
        WandbLog("pairs", tmp_path, settings={}, start=0)
