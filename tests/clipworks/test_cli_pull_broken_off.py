"""Pulls that are stopped, killed, started twice or run out of room: real processes, and a store that stays whole."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import httpx2
import pytest

from model_store.store import Store

pytest.importorskip("torch")
from tests.model_store.hub.ask import environment_of_child  # noqa: E402
from tests.model_store.hub.layouts import immich  # noqa: E402
from tests.model_store.hub.layouts.captions import taught_captions  # noqa: E402
from tests.model_store.hub.layouts.source_models import tiny_clip  # noqa: E402
from tests.model_store.hub.local_hub import LocalHub, came_bytes, local_hub  # noqa: E402

pytestmark = pytest.mark.torch

REPO = "acme/tiny"
LIMIT_S = 120


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repositories")
    (root / REPO).mkdir(parents=True)
    immich.write_immich_v1(root / REPO, taught_captions(tiny_clip()))
    return root


@pytest.fixture
def hub(repositories: Path) -> Iterator[LocalHub]:
    with local_hub(repositories) as served:
        yield served


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(hub: LocalHub, tmp_path: Path) -> Iterator[Start]:
    """start(*words, limit=None, before=()): `clipworks models pull` of the repository, in a process group of its own.

    limit: bytes that a file may have. before: a command that runs it.
    """
    with ExitStack() as stack:

        def run(*words: str | Path, limit: int | None = None, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
            child = subprocess.Popen(
                [*before, sys.executable, "-m", "clipworks", "models", "pull", *map(str, words)],
                env=environment_of_child(hub.environment(tmp_path / "hub")),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                preexec_fn=limit and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))),
            )
            stack.callback(ended, child)
            return child

        yield run


def ended(child: subprocess.Popen[str]) -> tuple[int, str]:
    """(exit code, the rest of what it wrote to stderr)."""
    try:
        _, said = child.communicate(timeout=LIMIT_S)
    except ValueError:  # it was waited for already
        return child.returncode, ""
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
    return child.returncode, said


def reads_until(child: subprocess.Popen[str], words: str) -> str:
    """What it wrote to stderr, up to the line with these words."""
    assert child.stderr
    seen = ""
    for line in child.stderr:
        seen += line
        if words in line:
            return seen
    raise AssertionError(f"it ended without {words!r}: {seen}")


def wait_for_bytes(child: subprocess.Popen[str], home: Path, count: int) -> None:
    while came_bytes(home) < count:
        assert child.poll() is None
        time.sleep(0.01)


def artifacts(root: Path) -> list[str]:
    """What is in the store, each checked against its digests."""
    store = Store(root, builtin=False)
    assert store.problems() == []
    for artifact in store.list():
        artifact.verify()
    return [artifact.reference for artifact in store.list()]


def staged(root: Path) -> list[str]:
    return sorted(each.name for each in (root / ".staging").iterdir() if each.suffix != ".name" and each.name != "lock")


def starts_asked(hub: LocalHub) -> list[int]:
    """Where the downloads of the text graph began, which is the first of the large files."""
    asked = [part for method, path, _, part in hub.requests if method == "GET" and path.endswith("textual/model.onnx")]
    return [int((part or "bytes=0-").removeprefix("bytes=").partition("-")[0]) for part in asked]


@pytest.mark.slow
def test_a_download_that_was_stopped_and_killed_goes_on(hub: LocalHub, start: Start, tmp_path: Path) -> None:
    store, home = tmp_path / "store", tmp_path / "hub"
    hub.faults.pause_s = 0.4
    hub.faults.cut_at.clear()
    stopped = start(REPO, "--store", store, "--yes")
    wait_for_bytes(stopped, home, 60_000)
    os.killpg(stopped.pid, signal.SIGINT)
    code, said = ended(stopped)
    assert code == 130, said
    assert said.splitlines()[-1] == (
        "interrupted: tiny is not published; the next pull goes on with the download where it stopped"
    )
    assert "Traceback" not in said
    assert (artifacts(store), staged(store)) == ([], [])
    first = came_bytes(home)
    assert first >= 60_000
    killed = start(REPO, "--store", store, "--yes")
    wait_for_bytes(killed, home, first + 1)
    killed.kill()
    ended(killed)
    second = came_bytes(home)
    hub.faults.pause_s = 0.0
    code, said = ended(start(REPO, "--store", store, "--yes"))
    assert code == 0, said
    begun = starts_asked(hub)
    assert begun == [0, first, second]
    assert (artifacts(store), staged(store)) == (["tiny@1"], [])
    assert came_bytes(home) == 0


@pytest.mark.slow
def test_a_publish_that_was_stopped_and_killed_leaves_nothing(start: Start, repositories: Path, tmp_path: Path) -> None:
    words = ("--from", repositories / REPO, "--store", tmp_path / "store")
    stopped = start(*words)
    seen = reads_until(stopped, "tiny: goldens")
    os.killpg(stopped.pid, signal.SIGINT)
    code, said = ended(stopped)
    assert code == 130, said
    assert (seen + said).splitlines()[-1].startswith("interrupted: tiny is not published")
    assert "Traceback" not in said
    assert (artifacts(tmp_path / "store"), staged(tmp_path / "store")) == ([], [])
    killed = start(*words)
    reads_until(killed, "tiny: goldens")
    killed.kill()
    ended(killed)
    assert artifacts(tmp_path / "store") == []
    assert staged(tmp_path / "store"), "a killed process cannot remove what it has built"
    code, said = ended(start(*words))
    assert code == 0, said
    assert (artifacts(tmp_path / "store"), staged(tmp_path / "store")) == (["tiny@1"], [])


@pytest.mark.slow
def test_two_pulls_of_one_name_wait_for_each_other(start: Start, repositories: Path, tmp_path: Path) -> None:
    words = ("--from", repositories / REPO, "--store", tmp_path / "store")
    first = start(*words)
    reads_until(first, "tiny: compare")
    first.send_signal(signal.SIGSTOP)
    second = start(*words)
    reads_until(second, "tiny: another process is making it; waiting for it to end")
    first.send_signal(signal.SIGCONT)
    for child, reference in ((first, "tiny@1"), (second, "tiny@2")):
        code, said = ended(child)
        assert code == 0, said
        assert f"published {reference}" in said
    assert (artifacts(tmp_path / "store"), staged(tmp_path / "store")) == (["tiny@1", "tiny@2"], [])


@pytest.mark.long
@pytest.mark.slow
def test_two_servers_that_start_at_once_share_what_one_pulls(
    hub: LocalHub,
    serving: Callable[..., AbstractContextManager[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name, value in hub.environment(tmp_path / "hub").items():
        monkeypatch.setenv(name, value)
    hub.faults.pause_s = 0.2

    def model_of(_: int) -> str:
        options = ("--model", f"hub:{REPO}", "--store", tmp_path / "store", "--data", "memory")
        with serving(*options, start_s=LIMIT_S) as url:
            shown = httpx2.get(f"{url}/models/tiny").json()
            return f"{shown['name']}@{shown['version']}"

    with ThreadPoolExecutor() as both:
        assert list(both.map(model_of, range(2))) == ["tiny@1", "tiny@1"]
    assert artifacts(tmp_path / "store") == ["tiny@1"]


def in_its_own_mounts(command: str) -> tuple[str, ...]:
    """A command to run another with, which mounts first what only that one sees; skips where that is not allowed."""
    before = ("unshare", "--mount", "--map-root-user", "sh", "-c")
    try:
        subprocess.run([*before, command], check=True, capture_output=True, timeout=LIMIT_S)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no mounts here: {error}")
    return (*before, f'{command} && exec "$@"', "sh")


@pytest.mark.parametrize(("size", "reached"), [("60k", ""), ("600k", "compare"), ("1000k", "text_encoder")])
def test_a_store_without_room_is_named(
    start: Start, repositories: Path, tmp_path: Path, size: str, reached: str
) -> None:
    """Before anything is made, while ONNX Runtime would write, and in the middle of the artifact."""
    store = tmp_path / "store"
    store.mkdir()
    mount = in_its_own_mounts(f"mount -t tmpfs -o size={size} tmpfs '{store}'")
    inside = f'"$@"; code=$?; find {store} -type f >&2; exit $code'
    code, said = ended(
        start("--from", repositories / REPO, "--store", store, before=(*mount, "sh", "-c", inside, "sh"))
    )
    assert code == 2, said
    assert reached in said
    assert f"error: {store}: No space left on device: " in said
    assert "making this model takes up to 1.6 MB. Nothing was published. Another folder: --store" in said
    assert "Traceback" not in said
    left = [line for line in said.splitlines() if line.startswith(f"{store}/")]
    assert sorted(left) == ([f"{store}/.staging/lock", f"{store}/.staging/tiny.name"] if reached else [])


def test_a_store_that_cannot_be_written_is_named(start: Start, repositories: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    mount = in_its_own_mounts(f"mount -t tmpfs tmpfs '{store}' && mount -o remount,ro '{store}'")
    code, said = ended(start("--from", repositories / REPO, "--store", store, before=mount))
    assert code == 2, said
    assert f"error: {store}: Read-only file system: models are published there" in said
    assert "another folder: --store, or CLIPWORKS_STORE" in said
    assert "Traceback" not in said


def test_a_file_that_may_not_grow_is_no_room(start: Start, repositories: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    code, said = ended(start("--from", repositories / REPO, "--store", store, limit=200_000))
    assert code == 2, said
    assert "tiny: compare" in said
    assert f"error: {store}: File too large: " in said
    assert "Nothing was published" in said
    assert (artifacts(store), staged(store)) == ([], [])


def test_a_file_in_the_place_of_the_store_is_named(start: Start, repositories: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    code, said = ended(start("--from", repositories / REPO, "--store", tmp_path / "file" / "store"))
    assert code == 2, said
    assert f"error: {tmp_path / 'file' / 'store'}: Not a directory: models are published there" in said


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("4k", "No space left on device; another folder: HF_HOME"),
        ("300k", "are free at"),
        ("ro", "Read-only file system"),
    ],
)
def test_a_cache_without_room_is_named(hub: LocalHub, start: Start, tmp_path: Path, size: str, said: str) -> None:
    home = tmp_path / "hub"
    home.mkdir()
    small = f"mount -t tmpfs -o size={'1m' if size == 'ro' else size} tmpfs '{home}'"
    mount = in_its_own_mounts(f"{small} && mount -o remount,ro '{home}'" if size == "ro" else small)
    code, err = ended(start(REPO, "--store", tmp_path / "store", "--yes", before=mount))
    assert code == 3, err
    assert f"error: {REPO}: " in err
    assert str(home) in err
    assert said in err
    assert "another folder: HF_HOME" in err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 2, "the hub's client speaks too"


def test_a_broken_file_of_pairs_stops_before_a_request(hub: LocalHub, start: Start, tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text("image,caption\nnone.jpg,a cat\n")
    code, said = ended(start(REPO, "--store", tmp_path / "store", "--yes", "--pairs", file))
    assert (code, said) == (3, f"error: pairs.csv, line 2: '{tmp_path / 'none.jpg'}' is no file\n")
    assert not hub.requests
    assert not (tmp_path / "store").exists()


def test_a_name_that_is_a_path_is_none(hub: LocalHub, start: Start, tmp_path: Path) -> None:
    code, said = ended(start(REPO, "--store", tmp_path / "store", "--yes", "--name", "../evil"))
    assert code == 2, said
    assert said.startswith("error: --name '../evil': expected a small letter or digit")
    assert not hub.requests
    assert not (tmp_path / "store").exists()
