"""A model that can never be opened: the load ends in its time, the server in its own, and no child is left behind."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import psutil
import pytest

KEY = "the-admin-key"


@pytest.fixture
def start(serve: Callable[..., object], endless_store: Path) -> Callable[..., object]:
    def begin(**settings: object) -> object:
        server = serve(store=endless_store, model="tiny", admin_keys=KEY, **settings)
        server.wait_for("ready")  # type: ignore[attr-defined]
        return server

    return begin


class Load:
    """A request to load the endless model, in a thread."""

    def __init__(self, address: str) -> None:
        self.answer: httpx2.Response | None = None
        self._address = address
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        headers = {"Authorization": f"Bearer {KEY}"}
        try:
            self.answer = httpx2.post(f"{self._address}/models/endless/load", headers=headers, timeout=120)
        except httpx2.TransportError:
            return


def probes(server) -> list[psutil.Process]:  # type: ignore[no-untyped-def]
    children = psutil.Process(server.process.pid).children(recursive=True)
    return [child for child in children if "model_store.probe_child" in child.cmdline()]


def probe_of(server) -> psutil.Process:  # type: ignore[no-untyped-def]
    end = time.monotonic() + 30
    while not (found := probes(server)):
        assert time.monotonic() < end, "no probe was started"
        time.sleep(0.05)
    time.sleep(0.5)  # into the graph
    return found[0]


def is_gone(process: psutil.Process, *, within_s: float = 10) -> bool:
    try:
        process.wait(within_s)
    except psutil.TimeoutExpired:
        return False
    except psutil.NoSuchProcess:
        return True
    return True


def test_a_load_that_hangs_is_refused_in_its_time_and_names_the_setting(start: Callable[..., object]) -> None:
    server = start(probe="true", load_timeout_s=8)
    load = Load(server.address)  # type: ignore[attr-defined]
    child = probe_of(server)
    assert httpx2.post(f"{server.address}/embed", json={"inputs": ["a"]}, timeout=30).status_code == 200  # type: ignore[attr-defined]
    load.thread.join(60)
    assert load.answer is not None
    error = load.answer.json()["error"]
    assert (load.answer.status_code, error["code"]) == (500, "graph_error")
    assert "the server's log says why" in error["message"]
    assert is_gone(child)
    assert httpx2.get(f"{server.address}/readyz", timeout=30).status_code == 200  # type: ignore[attr-defined]
    server.stop()  # type: ignore[attr-defined]
    assert any("CLIPWORKS_LOAD_TIMEOUT_S" in line for line in server.log)  # type: ignore[attr-defined]


def test_sigterm_during_a_load_that_hangs_ends_server_and_child(start: Callable[..., object]) -> None:
    server = start(probe="true")
    load = Load(server.address)  # type: ignore[attr-defined]
    child = probe_of(server)
    started = time.monotonic()
    assert server.stop(timeout_s=30) == 0  # type: ignore[attr-defined]
    assert time.monotonic() - started < 15, "it must not wait for the load"
    load.thread.join(10)
    assert load.answer is not None
    assert (load.answer.status_code, load.answer.json()["error"]["code"]) == (503, "draining")
    assert is_gone(child)


def test_a_killed_server_leaves_no_child(start: Callable[..., object]) -> None:
    server = start(probe="true")
    Load(server.address)  # type: ignore[attr-defined]
    child = probe_of(server)
    server.process.kill()  # type: ignore[attr-defined]
    server.process.wait(10)  # type: ignore[attr-defined]
    assert is_gone(child)


def test_sigterm_does_not_wait_for_a_thread_that_never_returns(start: Callable[..., object]) -> None:
    server = start(probe="false", drain_s=1)  # opened in a thread of the server itself
    Load(server.address)  # type: ignore[attr-defined]
    time.sleep(3)
    started = time.monotonic()
    assert server.stop(timeout_s=60) == 0  # type: ignore[attr-defined]
    assert time.monotonic() - started < 20
    assert any("behind, it does not return" in line for line in server.log)  # type: ignore[attr-defined]
