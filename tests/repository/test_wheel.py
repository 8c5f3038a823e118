"""The wheel, as a stranger meets it: built, put into a bare environment outside the repository, served, asked once.

Building needs no network (the backend is pinned in the development environment). The bare environment takes the hashed
pins of `requirements/serve.txt`, all of which the development environment has already put into the installer's cache.
"""

import base64
import io
import math
import os
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PACKAGES = ("clipworks", "model_store", "service", "evaluation", "training")
READY_TIMEOUT_S = 60

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a virtual environment that holds the serving pins and the wheel, and nothing else."""
    venv = tmp_path_factory.mktemp("bare") / "venv"
    uv = Path(sys.executable).with_name("uv")
    run(uv, "venv", "--python", sys.executable, venv, cwd=venv.parent)
    pins = ROOT / "requirements" / "serve.txt"
    run(uv, "pip", "install", "--python", venv, "--require-hashes", "-r", pins, cwd=venv.parent)
    run(uv, "pip", "install", "--python", venv, "--no-deps", wheel, cwd=venv.parent)
    return venv


@pytest.fixture(scope="module")
def url(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of `clipworks serve`, run with no setting but its port, from an empty folder with an empty home."""
    home = tmp_path_factory.mktemp("home")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = home / "server.log"
    environment = {"PATH": f"{bare / 'bin'}:/usr/bin:/bin", "HOME": str(home), "LANG": "C.UTF-8"}
    command = [bare / "bin" / "clipworks", "serve", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as sink:
        server = subprocess.Popen(command, cwd=home, env=environment, stdout=sink, stderr=subprocess.STDOUT)
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not is_ready(address):
            assert server.poll() is None, f"the server ended with {server.returncode}:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"not ready after {READY_TIMEOUT_S} s:\n{log.read_text()}"
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        try:
            server.wait(timeout=40)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def is_ready(address: str) -> bool:
    try:
        return httpx2.get(f"{address}/readyz", timeout=2).status_code == 200
    except httpx2.TransportError:
        return False


def test_the_wheel_holds_every_file_of_every_package(wheel: Path) -> None:
    """Hatchling obeys .gitignore: a careless line there drops training/data or the embedded model without a word."""
    on_disk = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert inside == on_disk
    for part in ("training/data/", "training/configs/", "service/routes/", "model_store/builtin/"):
        assert any(name.startswith(part) for name in inside), f"nothing of {part} in {wheel.name}"


def test_serving_installs_no_torch(bare: Path) -> None:
    for package in ("torch", "open_clip", "timm", "pytest"):
        done = subprocess.run([bare / "bin" / "python", "-c", f"import {package}"], capture_output=True, check=False)
        assert b"ModuleNotFoundError" in done.stderr, package
    where = run(bare / "bin" / "python", "-c", "import clipworks; print(clipworks.__file__)", cwd=bare)
    assert Path(where.strip()).is_relative_to(bare)


def test_the_installed_package_embeds_text_and_image(url: str) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (97, 61), (180, 30, 40)).save(picture, "PNG")
    image = base64.b64encode(picture.getvalue()).decode("ascii")
    answer = httpx2.post(f"{url}/embed", json={"inputs": ["a red shirt", {"image": image}]}, timeout=30)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert [entry["index"] for entry in body["data"]] == [0, 1]
    for entry in body["data"]:
        vector = entry["embedding"]
        assert len(vector) == body["dim"]
        assert math.sqrt(sum(value * value for value in vector)) == pytest.approx(1.0, abs=1e-4)


def test_the_command_line_names_its_commands(bare: Path) -> None:
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(
        [bare / "bin" / "clipworks", "--help"], env=environment, cwd=bare, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for command in ("serve", "models", "embed", "classify", "train", "export", "bench"):
        assert command in done.stdout, command
