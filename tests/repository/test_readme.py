"""The marked blocks of README and docs, run as a reader would: in order, against a server, in an empty folder.

The tiny model stands for the shipped one: what the blocks print differs, that they run does not.
"""

import io
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
STORE = ROOT / "tests" / "fixtures" / "tiny_store"
PHOTO = STORE / "tiny" / "1" / "goldens" / "rgb_jpeg_331x227.bin"
PAGES = ("README.md", "docs/client.md", "docs/teach.md")
BLOCK = re.compile(r"<!-- run -->\n```(\w+)\n(.*?)```", re.DOTALL)
OF_FLOWERS = re.compile(r"<!-- run: flowers -->\n```bash\n(.*?)```", re.DOTALL)
OF_THE_HUB = re.compile(r"<!-- (serve|run): hub -->\n```bash\n(.*?)```", re.DOTALL)
HUB_MODEL = "immich-app/ViT-B-32__laion2b-s34b-b79k"
LINK = re.compile(r"\]\(([^)#]+)")
HERE = "http://localhost:8000"


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of every marked block."""
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The server's and the commands': one data folder, so that the commands find the server there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CLIPWORKS_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    served = {"CLIPWORKS_STORE": str(STORE), "CLIPWORKS_MODEL": "tiny", "CLIPWORKS_DATA": str(tmp_path / "data")}
    return {**kept, **served, "PATH": path, "BROWSER": "true"}


@pytest.fixture
def url(environment: dict[str, str]) -> Iterator[str]:
    with served(environment) as address:
        yield address


@contextmanager
def served(environment: dict[str, str]) -> Iterator[str]:
    """The address of `clipworks serve` with these settings, ready."""
    command = ["clipworks", "serve", "--port", "0", "--log-level", "warning", "--drain-grace-s", "0"]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    alarm = threading.Timer(60, server.kill)
    alarm.start()
    try:
        lines: list[str] = []
        for line in server.stdout or io.StringIO():
            lines.append(line)
            if "ready" in line:
                break
        alarm.cancel()
        found = re.search(r"listening on (\S+)", "".join(lines))
        assert found, lines
        yield found.group(1)
    finally:
        alarm.cancel()
        server.terminate()
        server.wait(timeout=40)
        if server.stdout:
            server.stdout.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the blocks expect to find: the photographs of this repository, a photo.jpg, and five classes of pictures."""
    shutil.copytree(ROOT / "docs" / "photos", tmp_path / "docs" / "photos")
    shutil.copy(PHOTO, tmp_path / "photo.jpg")
    for colour in ("red", "green", "blue", "white", "black"):
        (tmp_path / "my-classes" / colour).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (64, 48 + number), colour).save(tmp_path / "my-classes" / colour / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_marked_blocks_run(page: str, url: str, environment: dict[str, str], folder: Path) -> None:
    found = blocks(page)
    assert len(found) >= 3, "the marks were lost"
    for language, text in found:
        runner = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}[language]
        done = subprocess.run(
            [*runner, text.replace(HERE, url)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{page}\n{text}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip() or done.stderr.strip()


@pytest.mark.skipif("CLIPWORKS_TEST_DATA" not in os.environ, reason="CLIPWORKS_TEST_DATA is not set")
def test_the_example_on_photographs_runs(environment: dict[str, str], tmp_path: Path) -> None:
    """The page's own block with the shipped model, of fewer pictures."""
    [text] = OF_FLOWERS.findall((ROOT / "docs" / "teach.md").read_text(encoding="utf-8"))
    for whole, less in (("sed -n 1,16p", "sed -n 1,2p"), ("tail -n 20", "tail -n 2")):
        assert whole in text
        text = text.replace(whole, less)
    shipped = {name: value for name, value in environment.items() if name not in ("CLIPWORKS_STORE", "CLIPWORKS_MODEL")}
    given = shipped | {"CLIPWORKS_TEST_DATA": os.environ["CLIPWORKS_TEST_DATA"]}
    with served(shipped) as url:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text.replace(HERE, url)],
            cwd=tmp_path, env=given, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "taught flowers: 10 examples of 5 labels, for everyday-small@1" in done.stderr
    found = re.findall(r"^(words|taught): (\d+) of 10$", done.stdout, re.MULTILINE)
    assert [by for by, _ in found] == ["words", "taught"]


@pytest.mark.long
@pytest.mark.torch
def test_a_model_of_the_hub_is_pulled_served_and_searched(folder: Path, tmp_path: Path) -> None:
    """The blocks about real weights, against a hub on this machine that has a tiny model under the real one's name."""
    pytest.importorskip("torch")
    from tests.model_store.hub.ask import environment_of_child
    from tests.model_store.hub.layouts.captions import taught_captions
    from tests.model_store.hub.layouts.immich import write_immich_v1
    from tests.model_store.hub.layouts.source_models import tiny_clip
    from tests.model_store.hub.local_hub import local_hub

    (kind, serve), (other, search) = OF_THE_HUB.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert (kind, other) == ("serve", "run")
    assert f"hub:{HUB_MODEL}" in serve
    write_immich_v1(tmp_path / "hub" / HUB_MODEL, taught_captions(tiny_clip()))
    with local_hub(tmp_path / "hub") as hub:
        given = {
            "CLIPWORKS_STORE": str(tmp_path / "store"),
            "CLIPWORKS_DATA": str(tmp_path / "data"),
            "CLIPWORKS_PORT": "0",
        }
        environment = environment_of_child({**hub.environment(tmp_path / "cache"), **given})
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        server = subprocess.Popen(serve.split(), env=environment, cwd=folder, stdout=subprocess.PIPE, text=True)
        try:
            said = ""
            for line in server.stdout or io.StringIO():
                said += line
                if "ready" in line:
                    break
            url = re.search(r"listening on (\S+)", said)
            assert url, said
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", search.replace(HERE, url.group(1))],
                cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert "laptop.jpg" in done.stdout
        finally:
            server.terminate()
            server.wait(timeout=40)
            if server.stdout:
                server.stdout.close()


def test_make_shell_has_the_command_on_its_path(environment: dict[str, str]) -> None:
    bare = environment | {"PATH": "/usr/bin:/bin", "SHELL": "/bin/sh"}
    prefix = Path(sys.executable).parents[1]
    # The environment that these tests run in stands for the server's: its stamp is newer than what it depends on.
    command = ["make", "--no-print-directory", "shell", f"SERVE={prefix.name}", f"--old-file={prefix.name}/.installed"]
    done = subprocess.run(
        command, cwd=prefix.parent, env=bare, input="command -v clipworks; clipworks --version\n", capture_output=True,
        text=True, timeout=60, check=True,
    )  # fmt: skip
    assert f"{prefix}/bin/clipworks\nclipworks " in done.stdout


def test_the_photographs_are_attributed() -> None:
    folder = ROOT / "docs" / "photos"
    lines = (folder / "ATTRIBUTION.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")][1:]
    assert sorted(row[0] for row in rows) == sorted(path.name for path in folder.glob("*.jpg"))
    assert all(row[1] == "CC BY 2.0" and row[2].startswith("http") for row in rows)


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page: str) -> None:
    file = ROOT / page
    for target in LINK.findall(file.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (file.parent / target).exists(), f"{page} links to {target}"
