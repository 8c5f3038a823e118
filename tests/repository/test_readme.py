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
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STORE = ROOT / "tests" / "fixtures" / "tiny_store"
PHOTO = STORE / "tiny" / "1" / "goldens" / "rgb_jpeg_331x227.bin"
PAGES = ("README.md", "docs/client.md")
BLOCK = re.compile(r"<!-- run -->\n```(\w+)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)")
HERE = "http://localhost:8000"


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of every marked block."""
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CLIPWORKS_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return {**kept, "PATH": path, "CLIPWORKS_STORE": str(STORE), "CLIPWORKS_MODEL": "tiny", "CLIPWORKS_DATA": "memory"}


@pytest.fixture(scope="module")
def url(environment: dict[str, str]) -> Iterator[str]:
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
    """What the blocks expect to find: photo.jpg, and a folder photos."""
    (tmp_path / "photos").mkdir()
    shutil.copy(PHOTO, tmp_path / "photo.jpg")
    shutil.copy(PHOTO, tmp_path / "photos" / "one.jpg")
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


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page: str) -> None:
    file = ROOT / page
    for target in LINK.findall(file.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (file.parent / target).exists(), f"{page} links to {target}"
