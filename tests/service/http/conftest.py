"""An app in this process, and servers of their own process, both on the generated tiny artifact."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from io import BytesIO
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.service.http.loop_watch import LoopWatch

TINY_STORE = Path(__file__).parents[2] / "fixtures" / "tiny_store"


@pytest.fixture(scope="session", autouse=True)
def no_settings_from_outside() -> Generator[None]:
    """Whoever runs the tests may have settings for a server of their own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("CLIPWORKS_") and name != "CLIPWORKS_TEST_DATA"]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def loop_watch() -> Generator[LoopWatch]:
    watch = LoopWatch()
    with watch.watching():
        yield watch


@pytest.fixture(autouse=True)
def nothing_holds_the_loop(loop_watch: LoopWatch) -> Generator[None]:
    """Every test of an app in this process is also one of this."""
    loop_watch.held.clear()
    yield
    assert not loop_watch.held


class Served:
    """A `python -m service` process; `lines` are what it printed, `address` is where it listens."""

    def __init__(self, environment: dict[str, str]) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CLIPWORKS_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "service"],
            env={**inherited, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.log: list[str] = []
        self._readers = [
            threading.Thread(target=self._collect, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.lines), (self.process.stderr, self.log))
        ]
        for reader in self._readers:
            reader.start()

    @property
    def address(self) -> str:
        line = next(line for line in self.lines if "listening on" in line)
        return line.split("listening on ")[1].split('"')[0]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def wait_for(self, text: str, *, timeout_s: float = 60) -> None:
        """Until a printed line has `text`."""
        end = time.monotonic() + timeout_s
        while not any(text in line for line in self.lines):
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"no line with {text!r}: {self.lines} {self.log[-20:]}")
            time.sleep(0.02)

    def stop(self, *, timeout_s: float = 40) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s=timeout_s)

    def wait(self, *, timeout_s: float = 40) -> int:
        try:
            status = self.process.wait(timeout_s)
        finally:
            self.process.kill()
        for reader in self._readers:
            reader.join(10)
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()
        return status

    @staticmethod
    def _collect(stream, into: list[str]) -> None:  # type: ignore[no-untyped-def]
        for line in stream:
            into.append(line.rstrip("\n"))


def _serving() -> Generator[Callable[..., Served]]:
    started: list[Served] = []

    def start(*, store: Path = TINY_STORE, **settings: object) -> Served:
        environment = {"CLIPWORKS_STORE": str(store), "CLIPWORKS_BUILTIN": "false", "CLIPWORKS_PORT": "0"}
        environment |= {"CLIPWORKS_PROBE": "false", "CLIPWORKS_DRAIN_GRACE_S": "0", "CLIPWORKS_DATA": "memory"}
        environment |= {f"CLIPWORKS_{name.upper()}": str(value) for name, value in settings.items()}
        server = Served(environment)
        started.append(server)
        return server

    yield start
    for server in started:
        if server.process.stdout and not server.process.stdout.closed:
            server.process.kill()
            server.wait()


# Start a server process with these settings; it is stopped after the test, or after the module's tests.
serve = pytest.fixture(_serving, name="serve")
serve_module = pytest.fixture(_serving, name="serve_module", scope="module")


def tiny_settings(**changes: object) -> Settings:
    """Settings for an app in this process; every value can be changed."""
    fixed = {"store": TINY_STORE, "builtin": False, "data": None, "probe": False, "access_log": False}
    return Settings(**{**fixed, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def make_app() -> Callable[..., FastAPI]:
    return lambda **changes: create_app(tiny_settings(**changes))


@pytest.fixture(scope="session")
def make_client(make_app: Callable[..., FastAPI]) -> Generator[Callable[..., TestClient]]:
    """A client of a fresh, ready app with these settings; closed at the end of the session."""
    opened: list[TestClient] = []

    def make(**changes: object) -> TestClient:
        client = TestClient(make_app(**changes), raise_server_exceptions=False)
        client.__enter__()
        opened.append(client)
        wait_ready(client)
        return client

    yield make
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture(scope="session")
def client(make_client: Callable[..., TestClient]) -> TestClient:
    """A client of an app with the default settings; tests must leave no label set behind."""
    return make_client()


@pytest.fixture(scope="session")
def png() -> bytes:
    return picture("PNG", 50, 37)


@pytest.fixture(scope="session")
def jpeg() -> bytes:
    return picture("JPEG", 64, 48)


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., bytes]:
    return picture


@pytest.fixture(scope="session")
def colours() -> ModuleType:
    """The module colour_model.py beside this file: `publish(store, name)` writes a model that knows three colours."""
    pytest.importorskip("onnx")
    spec = importlib.util.spec_from_file_location("colour_model", Path(__file__).with_name("colour_model.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def rerank_store(colours: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny, the colour model, and `judge`, a reranker behind it."""
    from tests.service.http import rerank_model

    folder = Path(shutil.copytree(TINY_STORE, tmp_path_factory.mktemp("rerank") / "store"))
    colours.publish(folder, "colours")
    rerank_model.publish(folder, "judge")
    return folder


def picture(form: str, width: int, height: int, *, seed: int = 0) -> bytes:
    """An encoded picture of coloured noise."""
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(levels).save(buffer, form)
    return buffer.getvalue()


def wait_ready(client: TestClient, *, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while client.get("/readyz").status_code != 200:
        if time.monotonic() > end:
            raise AssertionError(client.get("/readyz").text)
        time.sleep(0.02)
