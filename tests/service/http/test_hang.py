"""A real artifact whose graph does not end on one picture: /readyz tells the truth, then the server heals or ends."""

import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import httpx2
import pytest
from PIL import Image

HANGING_LEVEL = 200  # see tests/service/conftest.py
HUNG_EXIT_CODE = 70


def grey_picture(level: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (48, 48), (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


def post(address: str, picture: bytes, *, timeout_ms: int = 60_000) -> httpx2.Response:
    headers = {"Content-Type": "image/png", "X-Request-Timeout-Ms": str(timeout_ms)}
    return httpx2.post(f"{address}/embed", content=picture, headers=headers, timeout=90)


def until(address: str, status: int, *, timeout_s: float = 60) -> float:
    """Seconds until /readyz answers `status`."""
    started = time.monotonic()
    while httpx2.get(f"{address}/readyz", timeout=10).status_code != status:
        if time.monotonic() - started > timeout_s:
            raise AssertionError(f"/readyz never answered {status}")
        time.sleep(0.02)
    return time.monotonic() - started


@pytest.mark.parametrize("looping_store", [120_000_000], indirect=True)
def test_a_run_that_hangs_is_given_up_and_a_fresh_session_takes_over(
    looping_store: Path, serve: Callable[..., object]
) -> None:
    server = serve(store=looping_store, hang_s=3, exit_after_s=0)
    server.wait_for("ready")
    address = server.address
    before = post(address, grey_picture(100))
    assert before.status_code == 200

    # Time enough for the picture to be decoded on a busy machine: only then does the graph hang.
    late = post(address, grey_picture(HANGING_LEVEL), timeout_ms=2000)
    assert late.status_code == 504
    assert late.json()["error"]["code"] == "deadline_exceeded"
    assert httpx2.get(f"{address}/livez", timeout=10).status_code == 200
    until(address, 503)
    until(address, 200)
    after = post(address, grey_picture(100))
    assert after.json()["data"] == before.json()["data"]


def test_a_run_that_hangs_for_good_ends_the_process(looping_store: Path, serve: Callable[..., object]) -> None:
    server = serve(store=looping_store, hang_s=3, exit_after_s=2)
    server.wait_for("ready")
    assert post(server.address, grey_picture(HANGING_LEVEL), timeout_ms=2000).status_code == 504
    assert server.wait(timeout_s=60) == HUNG_EXIT_CODE


def test_a_graph_that_hangs_from_the_start_is_refused(looping_store: Path) -> None:
    from model_store.errors import GraphError
    from model_store.probe import probe
    from model_store.store import Store

    artifact = Store(looping_store, builtin=False).open("tiny")
    found = artifact.graph_spec("image_encoder", "fp32")
    assert found is not None
    owner, spec = found
    import numpy as np

    feeds = {"pixels": np.full((1, 48, 48, 3), HANGING_LEVEL, np.uint8)}
    with pytest.raises(GraphError, match="no answer within 5 s"):
        probe(owner.path(spec.file), spec, feeds=feeds, timeout_s=5)
