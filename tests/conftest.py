"""Settings for all tests: nothing is fetched, generated examples repeat, and what needs a GPU skips visibly."""

import atexit
import ctypes
import gc
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import hypothesis
import pytest

# Read by the model hub's client at import: a test that would download fails at once instead.
os.environ["HF_HUB_OFFLINE"] = "1"

# A shared two-core machine makes a deadline per example a coin toss; in CI the same examples run each time.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")


RECORD = Path(__file__).parents[1] / "docs" / "proof.json"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector from what the imports leave: a million objects in a worker that runs all tests, each
    full collection of which takes a second or two and finds nothing. What tests leave is collected as ever.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # at the end libraries look for what nobody took back


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("PYTEST_XDIST_WORKER"):
        longest_first(items)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    missing = what_cuda_lacks() if marked else None
    if missing:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=missing))


def longest_first(items: list[pytest.Item]) -> None:
    """Sort files by the seconds that they took in the recorded run, new ones first, so that no long one comes last."""
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))["files"]
    seconds = {path: found["seconds"] for path, found in recorded.items()}
    items.sort(key=lambda item: -seconds.get(item.location[0], math.inf))  # stable: within a file the order stays


def what_cuda_lacks() -> str | None:
    """The first thing that keeps a session off a GPU here, or None: the provider, the driver, the device."""
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this ONNX Runtime has no CUDA provider (extra serve-gpu)"
    try:
        status = ctypes.CDLL("libcuda.so.1").cuInit(0)
    except OSError:
        return "no NVIDIA driver on this machine"
    return None if status == 0 else f"the NVIDIA driver finds no device (cuInit: {status})"


@contextmanager
def _served(*options: str | Path, start_s: float = 240) -> Iterator[str]:
    command = [Path(sys.executable).with_name("clipworks"), "serve", "--port", "0", "--log-level", "warning"]
    command += ["--no-builtin", "--drain-grace-s", "0", *options]
    # Without any CLIPWORKS_ variable of the person who runs the tests.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLIPWORKS_")}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    alarm = threading.Timer(start_s, server.kill)
    alarm.start()
    try:
        url = ""
        assert server.stdout
        for line in server.stdout:
            url = line.removeprefix("clipworks: listening on ").strip() if "listening" in line else url
            if "ready" in line:
                break
        assert url, f"the server did not start, exit status {server.wait()}"
        alarm.cancel()
        yield url
    finally:
        alarm.cancel()
        server.terminate()
        server.wait(timeout=60)
        if server.stdout:
            server.stdout.close()


@pytest.fixture(scope="session")
def serving() -> Callable[..., AbstractContextManager[str]]:
    """serving(*options, start_s=240): the real server in its own process, ready; the address that it prints."""
    return _served


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for the front of a PATH, whose commands need not import torch: see tests/warm.py."""
    from tests.warm import Warm

    with Warm(tmp_path_factory.mktemp("warm") / "here") as started:
        yield started.folder
