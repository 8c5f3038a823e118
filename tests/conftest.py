"""Settings for all tests: nothing is fetched, generated examples repeat, and what needs a GPU skips visibly."""

import ctypes
import os

import hypothesis
import pytest

# Read by the model hub's client at import: a test that would download fails at once instead.
os.environ["HF_HUB_OFFLINE"] = "1"

# A shared two-core machine makes a deadline per example a coin toss; in CI the same examples run each time.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    missing = what_cuda_lacks() if marked else None
    if missing:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=missing))


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
