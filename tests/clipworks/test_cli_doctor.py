"""`clipworks doctor` in its own process, in installations, on machines and with settings that are really broken."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

from clipworks.cli.doctor import checks, data_folder, given
from clipworks.cli.doctor.diagnosis import failure, ok
from clipworks.cli.doctor.file_systems import file_system_of
from clipworks.cli.doctor.subject import subject_of
from tests.stores import TINY_STORE

CLIPWORKS = Path(sys.executable).with_name("clipworks")
# A remedy names a setting, an option, or a command.
REMEDY = re.compile(r"CLIPWORKS_[A-Z]|--[a-z]|pip install|`[a-z]+ |\b(chown|rename|unset|set)\b")


@dataclass
class Report:
    """found: check -> its status, what was found, and the remedy."""

    code: int
    found: dict[str, tuple[str, str, str]]

    def of(self, status: str) -> set[str]:
        return {name for name, (each, _, _) in self.found.items() if each == status}


def look(*words: str | Path, prefix: tuple[str, ...] = (), path: Path | None = None, **variables: str) -> Report:
    """The report of the real command in its own process. path: a folder before all others of PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLIPWORKS_")}
    environment |= variables
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(path), environment.get("PYTHONPATH")]))
    command = [*prefix, str(CLIPWORKS), "doctor", "--json", *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout, done.stderr
    answer = json.loads(done.stdout)
    found = {each["check"]: (each["status"], each["found"], each["remedy"] or "") for each in answer["checks"]}
    for name, (status, what, remedy) in found.items():
        assert (status == "ok") or REMEDY.search(remedy), f"{name}: {what}: no remedy in {remedy!r}"
        assert "cannot be looked at" not in what, f"{name}: {what}"
    report = Report(done.returncode, found)
    assert done.returncode == (1 if report.of("failure") else 0), done.stderr
    assert answer["ok"] is not bool(report.of("failure"))
    return report


@pytest.fixture
def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


@pytest.fixture
def taken_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield str(listener.getsockname()[1])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return shutil.copytree(TINY_STORE, tmp_path / "store")


def largest_graph(store: Path) -> Path:
    return max(store.rglob("*.onnx"), key=lambda path: path.stat().st_size)


def test_nothing_is_wrong_with_a_sound_installation(store: Path, tmp_path: Path, free_port: str) -> None:
    data = tmp_path / "data"
    report = look("--store", store, "--model", "tiny", "--data", data, CLIPWORKS_PORT=free_port)
    assert report.of("failure") == set()
    assert report.found["model"][1] == "tiny@1: every file and the golden cases are right"
    assert report.found["data folder"][1] == f"{data} is not there yet; it can be made"
    assert not data.exists()
    assert set(report.found) == {name for name, _ in checks.CHECKS} - {"server", "data holder"}


def broken_installation(folder: Path) -> Path:
    """Packages whose metadata says what it should not, a Pillow without WebP, a torch that must not be imported."""
    for name, more in {
        "onnxruntime_gpu-1.31.1": "",
        "faiss_gpu_cu12-1.15.1": "",
        "numpy-1.0": "",
        "clipworks-0.1.0": "Requires-Python: >=3.99\nRequires-Dist: numpy>=2.3; extra == 'artifacts'\n",
    }.items():
        described = folder / f"{name}.dist-info"
        described.mkdir(parents=True)
        distribution, version = name.split("-")
        text = f"Metadata-Version: 2.1\nName: {distribution.replace('_', '-')}\nVersion: {version}\n{more}"
        (described / "METADATA").write_text(text)
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text("raise SystemExit('torch was imported')\n")
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['PIL._webp'] = None\n")
    return folder


def test_everything_that_is_broken_is_found_at_once(store: Path, tmp_path: Path, taken_port: str) -> None:
    graph = largest_graph(store)
    os.truncate(graph, graph.stat().st_size - 1)
    (tmp_path / "file").write_text("no folder")
    report = look(
        *("--store", store, "--model", "tiny", "--quick", "--url", "http://127.0.0.1:1"),
        prefix=("bash", "-c", 'ulimit -n 200; exec "$@"', "limited"),
        path=broken_installation(tmp_path / "packages"),
        CLIPWORKS_DATA=str(tmp_path / "file" / "data"),
        CLIPWORKS_DEVICE="cuda",
        CLIPWORKS_INTRA_THREADS="4096",
        CLIPWORKS_DECODE_MEMORY_BYTES=str(2**60),
        CLIPWORKS_HOST="0.0.0.0",
        CLIPWORKS_PORT=taken_port,
        CLIPWORKS_MAX_PIXELS="a-secret",
        CLIPWORKS_MAX_ITMES="3",
        CLIPWORKS_ZEBRA="1",
        OMP_NUM_THREADS="4095",
    )
    expected_failures = {
        "python": (">=3.99", ">=3.99"),
        "packages": ("numpy 1.0 (>=2.3)", "pip install 'numpy>=2.3'"),
        "flavours": ("onnxruntime and onnxruntime-gpu; faiss-cpu and faiss-gpu-cu12", "pip uninstall onnxruntime "),
        "settings": ("CLIPWORKS_MAX_PIXELS (--max-pixels)", "`clipworks serve --help`"),
        "device": ("CPUExecutionProvider", "clipworks[serve-gpu]"),
        "data folder": (f"{tmp_path / 'file'} is no folder", "CLIPWORKS_DATA"),
        "store": (f"{graph.name} has {graph.stat().st_size} bytes", "`clipworks models remove NAME@VERSION`"),
        "port": (f"port {taken_port} of 0.0.0.0 is in use", "CLIPWORKS_PORT"),
        "server": ("http://127.0.0.1:1", "`clipworks serve`"),
    }
    expected_warnings = {
        "picture formats": ("no WEBP", "Pillow"),
        "variables": (
            "CLIPWORKS_MAX_ITMES, CLIPWORKS_ZEBRA",
            "rename CLIPWORKS_MAX_ITMES to CLIPWORKS_MAX_ITEMS; unset",
        ),
        "access": ("0.0.0.0 without keys", "CLIPWORKS_API_KEYS"),
        "threads": ("OMP_NUM_THREADS is 4095", "unset OMP_NUM_THREADS"),
        "memory": ("under load the process may be killed", "CLIPWORKS_DECODE_MEMORY_BYTES"),
        "open files": ("200 open files", "ulimit -n"),
    }
    for status, expected in (("failure", expected_failures), ("warning", expected_warnings)):
        for name, (what, remedy) in expected.items():
            assert report.found[name][0] == status, (name, report.found[name])
            assert what in report.found[name][1]
            assert remedy in report.found[name][2]
    assert report.of("failure") == set(expected_failures)
    assert "set CLIPWORKS_INTRA_THREADS=" in report.found["threads"][2]
    assert report.found["torch"][1].endswith(", for training; a server never imports it")
    assert "a-secret" not in str(report.found)


def test_a_flipped_byte_is_found_by_the_whole_examination(store: Path, tmp_path: Path, free_port: str) -> None:
    graph = largest_graph(store)
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    words = ("--store", store, "--model", "tiny", "--data", tmp_path / "data")
    report = look(*words, CLIPWORKS_PORT=free_port)
    assert report.of("failure") == {"model"}  # its size is what the manifest says
    assert graph.name in report.found["model"][1]
    assert "`clipworks models remove tiny@1`" in report.found["model"][2]


def without_rights() -> tuple[str, ...]:
    """Before a command: root's right to write everywhere is given up. Others never have it."""
    return ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.geteuid() == 0 else ()


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root writes everywhere")
@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_data_folder_that_cannot_be_written_is_a_failure(what: str, tmp_path: Path, free_port: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    if what == "folder":
        data.chmod(0o555)
        data, said = data / "below", "is not there and cannot be made"
    else:
        (data / "collections.sqlite3").touch(mode=0o444)
        said = "files that this user cannot write: collections.sqlite3"
    report = look("--quick", "--data", data, prefix=without_rights(), CLIPWORKS_PORT=free_port)
    assert report.of("failure") == {"data folder"}
    assert said in report.found["data folder"][1]
    assert "chown" in report.found["data folder"][2]


def test_a_running_server_is_told_from_a_fault(
    serving: Callable[..., AbstractContextManager[str]], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    with serving("--store", TINY_STORE, "--model", "tiny", "--data", data) as url:
        port = url.rpartition(":")[2]
        report = look("--quick", "--data", data, CLIPWORKS_PORT=port)
        assert report.of("failure") == set()
        assert report.found["data holder"][0] == "warning"
        assert f"--url {url}" in report.found["data holder"][2]
        assert "is taken by the server that is looked at" in report.found["port"][1]
        # Without the folder nobody knows whose port it is.
        report = look("--quick", "--data", "memory", "--url", url)
        assert report.found["server"][:2] == ("ok", f"{url} is ready, clipworks {version('clipworks')}, serves tiny@1")


def test_a_client_without_a_server_lacks_nothing(tmp_path: Path) -> None:
    absent = ("fastapi", "onnxruntime", "faiss", "apsw", "PIL", "numpy", "pydantic_settings")
    lines = [f"sys.modules[{name!r}] = None" for name in absent]
    (tmp_path / "sitecustomize.py").write_text("\n".join(["import sys", *lines]))
    report = look(path=tmp_path)
    assert report.code == 0
    assert report.of("warning") == {"packages"}
    assert "pip install 'clipworks[serve]'" in report.found["packages"][2]
    assert set(report.found) <= {"python", "packages", "flavours", "torch", "variables"}


def test_only_what_is_ok_has_no_remedy() -> None:
    with pytest.raises(ValueError, match="remedy"):
        failure("the disk burns", "")
    assert ok("fine").remedy == ""


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(subject: object) -> None:
        raise RuntimeError("of its own")

    monkeypatch.setattr(checks, "CHECKS", (("first", broken), ("second", lambda subject: ok("went on"))))
    subject = subject_of({}, {}, url=None, api_key=None, quick=True)
    (_, first), (_, second) = checks.examine(subject)
    assert (first.status, "of its own" in first.found, second.found) == ("failure", True, "went on")


def test_a_key_of_another_name_does_not_leave_the_server_open() -> None:
    subject = subject_of({}, {"CLIPWORKS_API_KEY": "of-a-client"}, url=None, api_key=None, quick=True)
    found = given.check_access(subject)
    assert found
    assert (found.status, "of-a-client" in str(found)) == ("failure", False)
    asks = subject_of({}, subject.environment, url="http://there", api_key=None, quick=True)
    assert given.check_access(asks) == ok("127.0.0.1 without keys: open to everyone on this machine")


@pytest.mark.parametrize(
    ("mount", "status"),
    [
        ("ext4 /dev/vda rw", "ok"),
        ("nfs4 there:/export rw", "warning"),
        ("fuse.sshfs there: rw", "warning"),
        ("overlay overlay rw,lowerdir=/a", "warning"),
        ("tmpfs tmpfs rw", "warning"),
    ],
)
def test_the_file_system_of_the_data_folder(
    mount: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    place = str(tmp_path / "two words").replace(" ", r"\040")
    mounts.write_text(f"21 1 0:1 / / rw - btrfs /dev/vdb rw\n22 21 0:2 / {place} rw shared:1 - {mount}\n")
    assert file_system_of(tmp_path / "other", mounts) == "btrfs"
    monkeypatch.setattr(data_folder, "file_system_of", lambda folder: file_system_of(folder, mounts))
    (tmp_path / "two words").mkdir()
    subject = subject_of({"data": str(tmp_path / "two words")}, {}, url=None, api_key=None, quick=True)
    found = data_folder.check_file_system(subject)
    assert found
    assert (found.status, found.found.partition(":")[0]) == (status, mount.partition(" ")[0])


@pytest.mark.parametrize(("free", "status"), [(2**40, "ok"), (2**29, "warning"), (2**20, "failure")])
def test_a_disk_that_is_nearly_full(free: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**41, 2**40, free))
    subject = subject_of({"data": str(tmp_path)}, {}, url=None, api_key=None, quick=True)
    found = data_folder.check_space(subject)
    assert found
    assert found.status == status
